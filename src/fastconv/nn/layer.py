"""Layer: the only unit models are made of.

A layer holds parameters and buffers by name and knows its own mathematics, forward and backward. What a
backward pass needs is returned by ``forward`` as a cache, never stored in the layer: the same layer may
stand twice in a graph, and be used by several threads at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import numpy as np

from fastconv import checks
from fastconv.nn.value import Value, apply, name_part

if TYPE_CHECKING:
    from fastconv.nn.graph import Graph


@dataclass(frozen=True)
class Mode:
    """How a walk through a model runs; every layer it passes gets the same.

    Attributes
    ----------
    training : bool, default False
        Batch statistics and dropout, instead of running statistics and none.
    cache : bool, default True
        A backward pass may follow; where it is False, a layer may return None as its cache.
    input_grad : bool, default True
        Whether ``backward`` has to give the gradients of its inputs; where it is False, they may be None.
    rng : numpy.random.Generator, optional
        Where a layer that draws random numbers in training takes them from.
    num_threads : int, optional
        No result depends on it.
    """

    training: bool = False
    cache: bool = True
    input_grad: bool = True
    rng: np.random.Generator | None = None
    num_threads: int | None = None


EVALUATION = Mode()
_INFERENCE = Mode(cache=False)


class Field(NamedTuple):
    """Which pixels one output pixel of a layer sees; one entry for each spatial axis.

    Output pixel o sees the ``kernel`` pixels from o · ``stride`` − ``padding`` on. A layer that enlarges
    its input has entries that are no integers (``fractions.Fraction``): a transposed convolution with
    kernel k, stride s, dilation d and padding p sees d·(k − 1)/s + 1 pixels from
    o · 1/s − (d·(k − 1) − p)/s on, of which the whole numbers count.
    """

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)


POINTWISE = Field()


class Stored:
    """Reads a parameter or buffer as an attribute, ``layer.weight``; assigning copies into the array."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, layer: Layer | None, owner: type) -> Any:
        if layer is None:
            return self
        return layer.parameters.get(self.name, layer.buffers.get(self.name))

    def __set__(self, layer: Layer, value: Any) -> None:
        target = self.__get__(layer, type(layer))
        if target is None:
            raise AttributeError(f"{layer!r} has no {self.name}")
        value = np.asarray(value)
        if value.shape != target.shape:
            raise ValueError(f"{self.name} must have shape {target.shape}, got {value.shape}")
        np.copyto(target, value, casting="same_kind")


class Layer:
    """Base of all layers.

    A subclass sets its constructor's arguments as attributes, fills ``parameters`` and ``buffers``, and
    defines ``output_shape``, ``forward``, ``backward``, ``config``, and, where the defaults do not
    hold, ``initialize``, ``macs`` and ``receptive_field``. With ``@register`` models that use it can be
    loaded.

    Calling a layer on arrays computes in inference mode and returns the output; calling it on Values
    adds it to a graph and returns a Value, under ``name`` where that is given.

    Attributes
    ----------
    parameters : dict of str to ndarray
        What training changes, all of one dtype.
    buffers : dict of str to ndarray
        State that belongs to the layer and is saved with it, but has no gradient.
    input_count : int or None
        How many inputs it takes; None: one or more.
    graph : Graph or None
        What a composite layer is made of; None for all others.
    """

    input_count: ClassVar[int | None] = 1
    graph: Graph | None = None

    def __init__(self) -> None:
        self.parameters: dict[str, np.ndarray] = {}
        self.buffers: dict[str, np.ndarray] = {}

    @property
    def dtype(self) -> np.dtype | None:
        """The dtype of the parameters; None without parameters."""
        return next((array.dtype for array in self.parameters.values()), None)

    @property
    def state(self) -> dict[str, np.ndarray]:
        """All parameters and buffers: the arrays themselves, not copies."""
        return {**self.parameters, **self.buffers}

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, initial values of parameters excepted.

        They are what JSON can write, and layers and models, alone or in tuples.
        """
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Layer:
        """A new layer from what :meth:`config` returned."""
        return cls(**config)

    def initialize(self, rng: np.random.Generator) -> None:
        """Draw new initial parameters, reset buffers."""

    def output_shape(self, *input_shapes: tuple[int, ...]) -> tuple[int, ...]:
        """The output's shape for inputs of these shapes, batch included.

        Raises
        ------
        TypeError, ValueError
            If the layer cannot take such inputs.
        """
        raise NotImplementedError

    def check_training(self, *input_shapes: tuple[int, ...]) -> None:
        """Refuse, by a ValueError, inputs of these shapes that only training cannot take."""

    def forward(self, *inputs: np.ndarray, mode: Mode = EVALUATION) -> tuple[np.ndarray, Any]:
        """The output, and a cache for :meth:`backward`. Inputs are not changed."""
        raise NotImplementedError

    def backward(
        self, grad_output: np.ndarray, cache: Any, mode: Mode = EVALUATION
    ) -> tuple[tuple[np.ndarray | None, ...], dict[str, np.ndarray]]:
        """The gradients of the inputs and, by name, of the parameters. ``grad_output`` is not changed."""
        raise NotImplementedError

    def macs(self, *input_shapes: tuple[int, ...]) -> int:
        """Multiply-accumulate operations for inputs of these shapes."""
        return 0

    @property
    def receptive_field(self) -> Field | None:
        """Which pixels one output pixel sees; None: the whole image."""
        return POINTWISE

    def __call__(self, *inputs: Any, name: str | None = None) -> Any:
        self._check_count(inputs)
        if any(isinstance(value, Value) for value in inputs):
            return apply(self, inputs, (name_part(name, type(self).__name__.lower()),), repr(self))
        arrays = [entry_array("x", value, self.dtype) for value in inputs]
        return self.forward(*arrays, mode=_INFERENCE)[0]

    def _check_count(self, inputs: Sequence[Any]) -> None:
        if len(inputs) != (self.input_count or max(len(inputs), 1)):
            expected = self.input_count or "at least one"
            raise TypeError(f"{type(self).__name__} takes {expected} input(s), got {len(inputs)}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.config().items())})"


def entry_array(name: str, value: Any, dtype: np.dtype | None) -> np.ndarray:
    """An array a user gave, in the dtype to compute in: a layer's own, else the array's."""
    array = checks.float_array(name, value)
    return array.astype(dtype or checks.float_dtype(name, array.dtype), copy=False, order="K")


def parameter_dtype(dtype: Any) -> np.dtype:
    """The dtype of new parameters: float32 or float64."""
    dtype = checks.any_dtype("dtype", dtype)
    if dtype not in (np.float32, np.float64):
        raise TypeError(f"dtype must be float32 or float64, got {dtype}")
    return dtype


_registry: dict[str, type[Layer]] = {}

LayerType = TypeVar("LayerType", bound=type[Layer])


def register(layer_class: LayerType) -> LayerType:
    """Let saved models name this class; use it as a decorator.

    Raises
    ------
    ValueError
        If another class has the name. The same class, defined once more as notebooks do, replaces it.
    """
    name = layer_class.__name__
    known = _registry.get(name, layer_class)
    if (known.__module__, known.__qualname__) != (layer_class.__module__, layer_class.__qualname__):
        raise ValueError(f"a layer named {name!r} is registered already: {known.__module__}.{name}")
    _registry[name] = layer_class
    return layer_class


def is_registered(layer_class: type[Layer]) -> bool:
    """Whether this very class is what saved models mean by its name."""
    return _registry.get(layer_class.__name__) is layer_class


def registered(name: str) -> type[Layer]:
    """The layer class of this name.

    Raises
    ------
    ValueError
        If none is registered.
    """
    if name not in _registry:
        raise ValueError(f"unknown layer {name!r}: known are {', '.join(sorted(_registry))}")
    return _registry[name]
