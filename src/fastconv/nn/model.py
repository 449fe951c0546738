"""Model and Sequential: graphs with weights to save, summaries to read, and a fit method."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fastconv import checks
from fastconv.nn import archive
from fastconv.nn.graph import Graph
from fastconv.nn.layer import Layer, is_registered
from fastconv.nn.summary import Summary, summarize
from fastconv.nn.value import Input, Value

FORMAT = "fastconv-model"
VERSION = 1


class Model(Graph):
    """A network: layers between inputs and outputs.

    Parameters
    ----------
    inputs : Value or sequence of Value
        Made by :func:`Input`.
    outputs : Value or sequence of Value
        Computed from the inputs by calling layers, and other models, on Values.

    Raises
    ------
    TypeError, ValueError
        As :class:`Graph`.

    Examples
    --------
    >>> from fastconv import nn
    >>> x = nn.Input((8, 32, 32))
    >>> model = nn.Model(x, nn.Add()(x, nn.Conv2d(8, 8, 3, padding=1)(x, name="conv")))
    >>> list(model.parameters)
    ['conv.weight', 'conv.bias']
    """

    def __init__(self, inputs: Value | Sequence[Value], outputs: Value | Sequence[Value]) -> None:
        super().__init__(inputs, outputs)
        self.input_shapes: tuple[tuple[int, ...] | None, ...] = tuple(value.shape for value in self.inputs)

    def initialize(self, seed: int | np.random.Generator | None = None) -> None:
        """Draw new initial parameters for all layers, in order, and reset their buffers.

        Parameters
        ----------
        seed : int or numpy.random.Generator, optional
            Default: fresh entropy.
        """
        rng = checks.generator("seed", seed)
        for layer in self.layers.values():
            layer.initialize(rng)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all parameters and buffers by name; in a Sequential the names are PyTorch's."""
        return {name: array.copy() for name, array in self.state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set all parameters and buffers.

        Parameters
        ----------
        state : mapping of str to array
            What :meth:`state_dict` of a model of the same architecture returned, PyTorch's included;
            values are converted to the dtypes of this model.

        Raises
        ------
        TypeError
            If it is not a mapping, or a value of another kind than float for float, integer for integer.
        ValueError
            If names are missing or unknown, or shapes differ. Nothing is changed then.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a mapping of names to arrays, got {type(state).__name__}")
        own = self.state
        missing, unknown = [n for n in own if n not in state], [n for n in state if n not in own]
        if missing or unknown:
            raise ValueError(
                f"state must have the names of this model; missing: {', '.join(missing) or 'none'};"
                f" unknown: {', '.join(map(str, unknown)) or 'none'}"
            )
        arrays = {name: np.asarray(state[name]) for name in own}
        for name, target in own.items():
            array = arrays[name]
            if array.shape != target.shape:
                raise ValueError(f"state[{name!r}] must have shape {target.shape}, got {array.shape}")
            if array.dtype.kind != target.dtype.kind:
                raise TypeError(f"state[{name!r}] must have dtype {target.dtype}, got {array.dtype}")
        for name, target in own.items():
            target[...] = arrays[name]

    def summary(self, *input_shapes: Sequence[int], expand: bool = False) -> Summary:
        """What each layer makes of an input: shape, parameters, operations, receptive field.

        Parameters
        ----------
        *input_shapes : sequence of int
            One for each input, batch included, such as (1, 3, 32, 32). Default: one sample of the shape
            that ``Input`` was given or that the model was trained on.
        expand : bool, default False
            Show the layers that composite layers are made of, instead of one line for each composite.

        Returns
        -------
        Summary
            ``print`` shows the table.

        Raises
        ------
        TypeError, ValueError
            If a shape is missing or does not fit the layers.
        """
        if not input_shapes:
            if None in self.input_shapes:
                raise TypeError("input_shapes must be given, as in summary((1, 3, 32, 32)): none is known")
            input_shapes = self.input_shapes
        shapes = [
            checks.sizes(f"input_shapes[{index}]", shape, "such as (1, 3, 32, 32)")
            for index, shape in enumerate(input_shapes)
        ]
        return summarize(self.expanded() if checks.boolean("expand", expand) else self, *shapes)

    def predict(self, x: Any, batch_size: int = 256, *, num_threads: int | None = None) -> Any:
        """The output for many samples, computed batch by batch.

        Parameters
        ----------
        x : array, or a tuple of them for several inputs
            float32 or float64 (converted to the dtype of the model), samples along the first axis.
        batch_size : int, default 256
            Bounds the memory for intermediate results.
        num_threads : int, optional
            No result depends on it.

        Returns
        -------
        ndarray, or a tuple of them for several outputs

        Raises
        ------
        TypeError, ValueError
            If ``x`` does not fit the model or ``batch_size`` is not an integer of at least 1.
        """
        batch_size = checks.integer("batch_size", batch_size, 1)
        inputs = self.input_arrays(x)
        count = len(inputs[0])
        parts = []
        for start in range(0, max(count, 1), batch_size):
            output = self.infer(
                *(array[start : start + batch_size] for array in inputs), num_threads=num_threads
            )
            parts.append(output if isinstance(output, tuple) else (output,))
        results = [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]
        return results[0] if len(results) == 1 else tuple(results)

    def input_arrays(self, x: Any) -> tuple[np.ndarray, ...]:
        """The arrays in ``x``, one for each input, checked for dtype and for one number of samples."""
        several = len(self.inputs) > 1
        if several and (not isinstance(x, tuple | list) or len(x) != len(self.inputs)):
            raise TypeError(f"x must be a tuple of {len(self.inputs)} arrays ({', '.join(self.input_names)})")
        names = [f"x[{index}]" for index in range(len(x))] if several else ["x"]
        arrays = tuple(
            checks.float_array(name, value) for name, value in zip(names, x if several else (x,), strict=True)
        )
        for name, array in zip(names, arrays, strict=True):
            if array.ndim < 2:
                raise ValueError(f"{name} must have samples along its first axis, got shape {array.shape}")
            if len(array) != len(arrays[0]):
                raise ValueError(f"{name} must have {len(arrays[0])} samples as {names[0]}, got {len(array)}")
        return arrays

    def fit(
        self,
        x: Any,
        y: Any,
        epochs: int = 1,
        batch_size: int = 32,
        *,
        validation: float | tuple[Any, Any] | None = None,
        optimizer: Any = "sgd",
        loss: Any = "cross_entropy",
        seed: int | np.random.Generator | None = None,
        shuffle: bool = True,
        progress: bool = True,
        num_threads: int | None = None,
    ) -> Any:
        """Train on samples ``x`` and targets ``y``; the parameters change in place.

        Parameters
        ----------
        x : array, or a tuple of them for several inputs
            float32 or float64 (converted to the dtype of the model), samples along the first axis.
        y : array
            Targets: integer classes (N,) for cross-entropy, values of the output's shape for the mean
            squared error.
        epochs : int, default 1
            How often to go through all samples. 0 trains nothing.
        batch_size : int, default 32
            Samples for one step; the last batch of an epoch may be smaller.
        validation : float or (x, y), optional
            Samples that are measured after each epoch and not trained on: a fraction to take, drawn by
            ``seed``, or given apart.
        optimizer : {"sgd", "adam"} or object, default "sgd"
            See :mod:`fastconv.training`: "sgd" is ``SGD(lr=0.01, momentum=0.9)``, "adam" ``Adam(lr=0.001)``.
        loss : {"cross_entropy", "mse"} or object, default "cross_entropy"
        seed : int or numpy.random.Generator, optional
            Determines the validation split, the order of samples and dropout. With one seed and one
            initial state the result is the same, bit for bit, for any ``num_threads``. Default: fresh
            entropy.
        shuffle : bool, default True
            Draw a new order of samples for each epoch.
        progress : bool, default True
            Show progress on stderr: a bar where tqdm is installed and stderr is a terminal, else one line
            an epoch.
        num_threads : int, optional
            No result depends on it.

        Returns
        -------
        fastconv.training.History

        Raises
        ------
        TypeError, ValueError
            If an argument is of the wrong type, shape or range. Nothing is changed then.

        Notes
        -----
        After a KeyboardInterrupt the model can be used; it is as trained as it was by then.
        """
        from fastconv import training

        return training.fit(
            self,
            x,
            y,
            epochs,
            batch_size,
            validation=validation,
            optimizer=optimizer,
            loss=loss,
            seed=seed,
            shuffle=shuffle,
            progress=progress,
            num_threads=num_threads,
        )

    def evaluate(
        self,
        x: Any,
        y: Any,
        batch_size: int = 256,
        *,
        loss: Any = "cross_entropy",
        num_threads: int | None = None,
    ) -> dict[str, float]:
        """The mean loss and, for classes, the accuracy on samples; the model is not changed.

        Parameters
        ----------
        x, y, loss, num_threads
            As in :meth:`fit`.
        batch_size : int, default 256
            Bounds the memory for intermediate results.

        Returns
        -------
        dict
            ``"loss"`` and, for cross-entropy, ``"accuracy"`` from 0 to 1.

        Raises
        ------
        TypeError, ValueError
            If an argument is of the wrong type, shape or range.
        """
        from fastconv import training

        return training.evaluate(self, x, y, batch_size, loss=loss, num_threads=num_threads)

    def save(self, path: str | os.PathLike) -> None:
        """Write architecture and weights into one .npz file, atomically and without pickle.

        Parameters
        ----------
        path : str or path-like
            Used as it is; read it with :func:`load`.

        Raises
        ------
        TypeError
            If ``path`` is no path, or a layer's configuration is not what JSON can write.
        ValueError
            If the class of a layer is not registered, so that :func:`load` would not know it.
        OSError
            If it cannot be written; what was there before stays.
        """
        table: list[tuple[Layer, dict[str, Any]]] = []
        structure = self._describe(table)
        architecture = {
            "format": FORMAT,
            "version": VERSION,
            "input_shapes": self.input_shapes,
            "model": structure,
            "layers": [entry for _, entry in table],
        }
        archive.write(path, architecture, self.state)

    def _describe(self, table: list[tuple[Layer, dict[str, Any]]]) -> dict[str, Any]:
        """The structure as JSON can write it; layers are entered into ``table`` and named by their index."""
        return {
            "type": "Model",
            "inputs": [
                {"name": name, "shape": None if value.shape is None else value.shape[1:]}
                for name, value in zip(self.input_names, self.inputs, strict=True)
            ],
            "nodes": [
                {"name": node.name, "layer": _index(table, node.layer), "inputs": node.inputs}
                for node in self.nodes
            ],
            "outputs": self.output_slots,
        }

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self.nodes)} layers>"


class Sequential(Model):
    """Layers and models one after the other.

    Parameters
    ----------
    *children : Layer or Model
        Each takes one input and gives one output. Child i is named ``str(i)``, as in PyTorch.

    Raises
    ------
    TypeError, ValueError
        If there are none, or one is neither a layer nor a model of one input and one output.
    """

    def __init__(self, *children: Layer | Model) -> None:
        if not children:
            raise ValueError("children must hold at least one layer, got none")
        start = value = Input()
        for index, child in enumerate(children):
            if not isinstance(child, Layer | Model):
                raise TypeError(f"children[{index}] must be a layer or a model, got {child!r}")
            if isinstance(child, Model) and (len(child.inputs), len(child.outputs)) != (1, 1):
                raise ValueError(f"children[{index}] must have one input and one output, got {child!r}")
            value = child(value, name=str(index))
        self.children = children
        super().__init__(start, value)

    def _describe(self, table: list[tuple[Layer, dict[str, Any]]]) -> dict[str, Any]:
        return {
            "type": "Sequential",
            "children": [
                _index(table, child) if isinstance(child, Layer) else child._describe(table)
                for child in self.children
            ],
        }

    def __len__(self) -> int:
        return len(self.children)

    def __iter__(self) -> Iterator[Layer | Model]:
        return iter(self.children)

    def __getitem__(self, index: int | slice) -> Layer | Model:
        """One child, or a Sequential of several, which are this model's own, not copies."""
        if isinstance(index, slice):
            return Sequential(*self.children[index])
        return self.children[index]

    def __repr__(self) -> str:
        return f"Sequential({', '.join(map(repr, self.children))})"


def _index(table: list[tuple[Layer, dict[str, Any]]], layer: Layer) -> int:
    """The layer's place in the table; it is entered, those it is made of first, where it is not there yet."""
    for index, (known, _) in enumerate(table):
        if known is layer:
            return index
    if not is_registered(type(layer)):
        raise ValueError(
            f"model must be of layers that can be loaded, got {layer!r}: mark its class with"
            " @fastconv.nn.register"
        )
    config = {key: _encoded(table, value) for key, value in layer.config().items()}
    table.append((layer, {"type": type(layer).__name__, "config": config}))
    return len(table) - 1


def _encoded(table: list[tuple[Layer, dict[str, Any]]], value: Any) -> Any:
    if isinstance(value, Layer):
        return {"layer": _index(table, value)}
    if isinstance(value, Model):
        return {"model": value._describe(table)}
    if isinstance(value, tuple | list):
        return [_encoded(table, item) for item in value]
    return checks.frozen(value)
