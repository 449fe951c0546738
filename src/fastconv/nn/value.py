"""Value: what flows between layers before there are numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastconv import checks

if TYPE_CHECKING:
    from fastconv.nn.layer import Layer


class AutoName:
    """A name still to be numbered: which ``conv2d_0`` it becomes is known only in the whole graph."""

    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind


class Value:
    """The output of a layer in a graph, or an input of the graph; layers make them when called on Values.

    Attributes
    ----------
    layer : Layer or None
        What computes it; None for an input.
    inputs : tuple of Value
        What it is computed from.
    shape : tuple of int or None
        For a batch of one, where it can be known already.
    path : tuple of str and AutoName
        Its name, from the outermost model it was made in to itself.
    """

    __slots__ = ("inputs", "layer", "path", "shape")

    def __init__(
        self,
        layer: Layer | None,
        inputs: tuple[Value, ...],
        shape: tuple[int, ...] | None,
        path: tuple[str | AutoName, ...],
    ) -> None:
        self.layer = layer
        self.inputs = inputs
        self.shape = shape
        self.path = path

    def __repr__(self) -> str:
        what = "Input" if self.layer is None else type(self.layer).__name__
        return f"<Value of {what}, shape {'unknown' if self.shape is None else self.shape}>"


def name_part(name: str | None, kind: str) -> str | AutoName:
    """A given name, checked, or one to be numbered later."""
    if name is None:
        return AutoName(kind)
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {name!r} ({type(name).__name__})")
    if not name or name != name.strip("."):
        raise ValueError(f"name must not be empty, nor start or end with a dot, got {name!r}")
    return name


def apply(
    layer: Layer, inputs: Sequence[Value], path: tuple[str | AutoName, ...], what: str = "the layer"
) -> Value:
    """The Value that ``layer`` computes from ``inputs``."""
    for value in inputs:
        if not isinstance(value, Value):
            raise TypeError(
                f"inputs of {what} must be all Values or all arrays, got Values and {type(value).__name__}"
            )
    shapes = [value.shape for value in inputs]
    shape = None if None in shapes else layer.output_shape(*shapes)
    return Value(layer, tuple(inputs), shape, path)


def Input(shape: Sequence[int] | None = None, *, name: str | None = None) -> Value:
    """An input of a model.

    Parameters
    ----------
    shape : sequence of int, optional
        Of one sample, without the batch, such as (C, H, W). When given, layers that do not fit are
        refused as soon as they are called, and data of another shape later.
    name : str, optional
        Default: ``input_0``, ``input_1``, ...

    Returns
    -------
    Value

    Raises
    ------
    TypeError, ValueError
        If ``shape`` is not a sequence of positive integers or ``name`` no name.
    """
    if shape is not None:
        if isinstance(shape, str) or not isinstance(shape, Sequence):
            raise TypeError(f"shape must be a sequence of integers such as (C, H, W), got {shape!r}")
        sizes = (checks.integer(f"shape[{axis}]", size, 1) for axis, size in enumerate(shape))
        shape = (1, *sizes)
    return Value(None, (), shape, (name_part(name, "input"),))
