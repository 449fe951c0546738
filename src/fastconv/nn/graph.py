"""Graph: layers joined by Values, walked forward and back.

A graph is described by its inputs and outputs; what lies between is found from the outputs back. The
order of the walk is fixed when the graph is made, as are the points where each intermediate result
is last needed and can go.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fastconv.layout import empty
from fastconv.nn.layer import Layer, Mode, entry_array
from fastconv.nn.reshape import channels_last
from fastconv.nn.value import AutoName, Value, apply, name_part


class Node(NamedTuple):
    """One use of a layer: it computes slot ``output`` from the slots ``inputs``."""

    name: str
    layer: Layer
    inputs: tuple[int, ...]
    output: int
    last_used: tuple[int, ...]
    trainable_before: bool


class Graph:
    """Layers between inputs and outputs.

    Parameters
    ----------
    inputs : Value or sequence of Value
        Made by :func:`Input`.
    outputs : Value or sequence of Value
        Computed from the inputs.

    Attributes
    ----------
    inputs, outputs : tuple of Value
    input_names : tuple of str
    nodes : tuple of Node
        In the order of computation. Slots 0, 1, ... are the inputs, the others the nodes' outputs.
    output_slots : tuple of int

    Raises
    ------
    TypeError, ValueError
        If an argument is not a Value, an output depends on an input that is not listed, an input is
        listed twice or not used, two nodes have one name, or two composite layers share a layer.
    """

    def __init__(self, inputs: Value | Sequence[Value], outputs: Value | Sequence[Value]) -> None:
        self.inputs = _values("inputs", inputs)
        self.outputs = _values("outputs", outputs)
        order = _topological(self.inputs, self.outputs)
        names = _resolve_names(order)
        self.input_names = tuple(names[: len(self.inputs)])
        slots = {id(value): slot for slot, value in enumerate(order)}
        self.output_slots = tuple(slots[id(value)] for value in self.outputs)
        self.nodes = _nodes(order, names, slots, self.output_slots)
        self.layers: dict[str, Layer] = {}
        for node in self.nodes:
            if not any(node.layer is layer for layer in self.layers.values()):
                self.layers[node.name] = node.layer
        _check_shared(self.layers)
        first_names = {id(layer): name for name, layer in self.layers.items()}
        self._prefixes = tuple(first_names[id(node.layer)] for node in self.nodes)
        self._values = tuple(order)
        self.dtype = _common_dtype(self.layers)

    def __getstate__(self) -> dict[str, Any]:
        """For copies: Values by number, as a chain of hundreds is deeper than Python recurses."""
        state = self.__dict__.copy()
        del state["inputs"], state["outputs"]
        state["_values"] = [(value.layer, value.shape, value.path) for value in self._values]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        sources = {node.output: node.inputs for node in self.nodes}
        values: list[Value] = []
        for slot, (layer, shape, path) in enumerate(state["_values"]):
            values.append(Value(layer, tuple(values[s] for s in sources.get(slot, ())), shape, path))
        self._values = tuple(values)
        self.inputs = self._values[: len(self.input_names)]
        self.outputs = tuple(values[slot] for slot in self.output_slots)

    @property
    def parameters(self) -> dict[str, np.ndarray]:
        """All parameters by name, such as ``"0.weight"``: the arrays themselves, not copies."""
        return {
            f"{name}.{key}": array
            for name, layer in self.layers.items()
            for key, array in layer.parameters.items()
        }

    @property
    def state(self) -> dict[str, np.ndarray]:
        """All parameters and buffers by name, layer by layer: the arrays themselves, not copies."""
        return {
            f"{name}.{key}": array
            for name, layer in self.layers.items()
            for key, array in layer.state.items()
        }

    def slot_shapes(self, *input_shapes: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The shape of every slot for inputs of these shapes, batch included."""
        self._check_count(input_shapes)
        shapes = [tuple(shape) for shape in input_shapes]
        for node in self.nodes:
            try:
                shapes.append(node.layer.output_shape(*(shapes[slot] for slot in node.inputs)))
            except (TypeError, ValueError) as error:
                error.add_note(f"in layer {node.name!r}: {node.layer!r}")
                raise
        return shapes

    def output_shape(self, *input_shapes: tuple[int, ...]) -> Any:
        """The output's shape, batch included; a tuple of shapes for several outputs.

        Raises
        ------
        TypeError, ValueError
            If a layer cannot take what it would get; a note names the layer.
        """
        shapes = self.slot_shapes(*input_shapes)
        return _one_or_tuple([shapes[slot] for slot in self.output_slots])

    def check_training(self, *input_shapes: tuple[int, ...]) -> None:
        """Refuse inputs of these shapes, batch included, that training cannot take, and name the layer."""
        shapes = self.slot_shapes(*input_shapes)
        for node in self.nodes:
            try:
                node.layer.check_training(*(shapes[slot] for slot in node.inputs))
            except ValueError as error:
                error.add_note(f"in layer {node.name!r}: {node.layer!r}")
                raise

    def macs(self, *input_shapes: tuple[int, ...]) -> int:
        """Multiply-accumulate operations for inputs of these shapes, batch included."""
        shapes = self.slot_shapes(*input_shapes)
        return sum(node.layer.macs(*(shapes[slot] for slot in node.inputs)) for node in self.nodes)

    def forward(
        self,
        *inputs: np.ndarray,
        training: bool = False,
        rng: np.random.Generator | None = None,
        num_threads: int | None = None,
    ) -> tuple[Any, list[Any]]:
        """Compute, keeping what :meth:`backward` needs.

        Parameters
        ----------
        *inputs : arrays
            One for each input. Converted to the dtype of the parameters.
        training : bool, default False
            Batch statistics and dropout, instead of running statistics and none.
        rng : numpy.random.Generator, optional
            For dropout. Default: fresh entropy.
        num_threads : int, optional
            No result depends on it.

        Returns
        -------
        output : ndarray, or a tuple of them for several outputs
        caches : list
            For :meth:`backward`.

        Raises
        ------
        TypeError, ValueError
            If the inputs do not fit; a note names the layer that found out.
        """
        mode = Mode(training=training, rng=rng, num_threads=num_threads)
        return self.walk(self._enter(inputs), mode)

    def infer(self, *inputs: np.ndarray, num_threads: int | None = None) -> Any:
        """Compute in inference mode and keep nothing; otherwise as :meth:`forward`."""
        return self.walk(self._enter(inputs), Mode(cache=False, num_threads=num_threads))[0]

    def walk(self, inputs: Sequence[np.ndarray], mode: Mode) -> tuple[Any, list[Any]]:
        """:meth:`forward` for arrays that are what the layers expect already, in a given mode."""
        slots: list[Any] = list(inputs)
        caches = []
        for node in self.nodes:
            try:
                output, cache = node.layer.forward(*[slots[slot] for slot in node.inputs], mode=mode)
            except (TypeError, ValueError) as error:
                error.add_note(f"in layer {node.name!r}: {node.layer!r}")
                raise
            slots.append(output)
            caches.append(cache if mode.cache else None)
            for slot in node.last_used:
                slots[slot] = None
        return _one_or_tuple([slots[slot] for slot in self.output_slots]), caches

    def _enter(self, inputs: Sequence[Any]) -> list[Any]:
        self._check_count(inputs)
        slots = []
        for name, value, given in zip(self.input_names, self.inputs, inputs, strict=True):
            array = entry_array("x" if len(inputs) == 1 else name, given, self.dtype)
            if value.shape is not None and array.shape[1:] != value.shape[1:]:
                expected = ", ".join(map(str, value.shape[1:]))
                raise ValueError(f"{name} must have shape (N, {expected}), got {array.shape}")
            slots.append(channels_last(array) if array.ndim == 4 else array)
        return slots

    def _check_count(self, inputs: Sequence[Any]) -> None:
        if len(inputs) != len(self.inputs):
            raise TypeError(
                f"the model takes {len(self.inputs)} input(s) ({', '.join(self.input_names)}),"
                f" got {len(inputs)}"
            )

    def backward(
        self,
        grad_outputs: np.ndarray | Sequence[np.ndarray],
        caches: list[Any],
        *,
        input_grads: bool = True,
        num_threads: int | None = None,
    ) -> tuple[tuple[np.ndarray | None, ...], dict[str, np.ndarray]]:
        """The gradients of inputs and parameters from those of the outputs.

        Parameters
        ----------
        grad_outputs : array, or a sequence of them for several outputs
        caches : list
            As :meth:`forward` returned them.
        input_grads : bool, default True
            Where False, those of the inputs are not computed, and None.
        num_threads : int, optional
            No result depends on it.

        Returns
        -------
        input_grads : tuple of ndarray
        grads : dict of str to ndarray
            By the names of :attr:`parameters`.
        """
        if isinstance(grad_outputs, np.ndarray):
            grad_outputs = (grad_outputs,)
        return self.walk_back(grad_outputs, caches, Mode(input_grad=input_grads, num_threads=num_threads))

    def walk_back(
        self, grad_outputs: Sequence[np.ndarray], caches: list[Any], mode: Mode
    ) -> tuple[tuple[np.ndarray | None, ...], dict[str, np.ndarray]]:
        """:meth:`backward` in a given mode."""
        slots: list[Any] = [None] * (len(self.inputs) + len(self.nodes))
        for slot, grad in zip(self.output_slots, grad_outputs, strict=True):
            slots[slot] = _added(slots[slot], grad)
        grads: dict[str, np.ndarray] = {}
        whole = dataclasses.replace(mode, input_grad=True)
        backwards = map(reversed, (self.nodes, self._prefixes, caches))
        for node, prefix, cache in zip(*backwards, strict=True):
            grad, slots[node.output] = slots[node.output], None
            if not (node.trainable_before or node.layer.parameters or mode.input_grad):
                continue
            node_mode = whole if node.trainable_before else mode
            grads_in, own = node.layer.backward(grad, cache, mode=node_mode)
            for slot, grad_in in zip(node.inputs, grads_in, strict=True):
                slots[slot] = _added(slots[slot], grad_in)
            for key, value in own.items():
                grads[f"{prefix}.{key}"] = _added(grads.get(f"{prefix}.{key}"), value)
        return tuple(slots[: len(self.inputs)]), grads

    def expanded(self) -> Graph:
        """The same computation with each composite layer replaced by the layers it is made of.

        The layers are this graph's own, not copies, and names of parameters stay what they are.
        """
        values = list(self.inputs)
        for node in self.nodes:
            part = node.layer if node.layer.graph is None else node.layer.graph.expanded()
            values.append(part(*(values[slot] for slot in node.inputs), name=node.name))
        return Graph(self.inputs, [values[slot] for slot in self.output_slots])

    def __call__(self, *inputs: Any, name: str | None = None, num_threads: int | None = None) -> Any:
        """Compute on arrays, in inference mode; on Values, become part of another graph.

        In the other graph the layers are this one's own, not copies, and their names are prefixed by
        ``name`` (default: numbered) and a dot.
        """
        if not any(isinstance(value, Value) for value in inputs):
            return self.infer(*inputs, num_threads=num_threads)
        self._check_count(inputs)
        prefix = name_part(name, type(self).__name__.lower())
        values = list(inputs)
        for node in self.nodes:
            arguments = [values[slot] for slot in node.inputs]
            values.append(apply(node.layer, arguments, (prefix, node.name), type(self).__name__))
        return _one_or_tuple([values[slot] for slot in self.output_slots])


def _added(total: np.ndarray | None, more: np.ndarray | None) -> np.ndarray | None:
    if total is None or more is None:
        return more if total is None else total
    # Not in place: a layer may hand one array to several of its inputs.
    if total.ndim < 3:
        return total + more
    return np.add(total, more, out=empty(total.shape, np.result_type(total, more), total))


def _one_or_tuple(items: list[Any]) -> Any:
    return items[0] if len(items) == 1 else tuple(items)


def _values(name: str, values: Value | Sequence[Value]) -> tuple[Value, ...]:
    values = (values,) if isinstance(values, Value) else tuple(values)
    if not values:
        raise ValueError(f"{name} must hold at least one Value, got none")
    for value in values:
        if not isinstance(value, Value):
            raise TypeError(f"{name} must be Values, made by Input and by calling layers, got {value!r}")
    return values


def _topological(inputs: tuple[Value, ...], outputs: tuple[Value, ...]) -> list[Value]:
    """The inputs, then every other Value the outputs depend on, each after what it is computed from."""
    if len({id(value) for value in inputs}) != len(inputs):
        raise ValueError("inputs must be different Values, got one of them twice")
    for value in inputs:
        if value.layer is not None:
            raise ValueError(f"inputs must be made by Input, got {value!r}")
    order = list(inputs)
    done = {id(value) for value in inputs}
    used = set()
    stack = [(value, False) for value in reversed(outputs)]
    while stack:
        value, ready = stack.pop()
        if id(value) in done:
            used.add(id(value))
        elif value.layer is None:
            raise ValueError(f"outputs depend on {value!r}, which is not one of the inputs")
        elif ready:
            order.append(value)
            done.add(id(value))
        else:
            stack.append((value, True))
            stack.extend((source, False) for source in reversed(value.inputs))
    unused = [value for value in inputs if id(value) not in used]
    if unused:
        raise ValueError(f"inputs must all be used by the outputs, got {unused[0]!r}, which is not")
    return order


def _resolve_names(order: list[Value]) -> list[str]:
    counts: dict[str, int] = {}
    resolved: dict[AutoName, str] = {}
    names = []
    for value in order:
        for part in value.path:
            if isinstance(part, AutoName) and part not in resolved:
                number = counts.get(part.kind, 0)
                counts[part.kind] = number + 1
                resolved[part] = f"{part.kind}_{number}"
        names.append(".".join(part if isinstance(part, str) else resolved[part] for part in value.path))
    repeated = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if repeated is not None:
        raise ValueError(f"name must be different for every layer of a model, got {repeated!r} twice")
    return names


def _nodes(order, names, slots, output_slots) -> tuple[Node, ...]:
    last_use = {slots[id(source)]: slot for slot, value in enumerate(order) for source in value.inputs}
    trainable = [False] * len(order)
    nodes = []
    for slot, (value, name) in enumerate(zip(order, names, strict=True)):
        if value.layer is None:
            continue
        inputs = tuple(slots[id(source)] for source in value.inputs)
        before = any(trainable[source] for source in inputs)
        trainable[slot] = before or bool(value.layer.parameters)
        released = tuple({s for s in inputs if last_use[s] == slot and s not in output_slots})
        nodes.append(Node(name, value.layer, inputs, slot, released, before))
    return tuple(nodes)


def _check_shared(layers: dict[str, Layer]) -> None:
    # Under two names an optimizer would change it twice, with two histories.
    owners: dict[int, str] = {}
    for name, layer in layers.items():
        for array in layer.parameters.values():
            owner = owners.setdefault(id(array), name)
            if owner != name:
                raise ValueError(
                    f"a layer may stand in one composite only, got one that {owner!r} and {name!r} share;"
                    " use the composite itself twice"
                )


def _common_dtype(layers: dict[str, Layer]) -> np.dtype | None:
    dtypes = {name: layer.dtype for name, layer in layers.items() if layer.dtype is not None}
    first = next(iter(dtypes), None)
    for name, dtype in dtypes.items():
        if dtype != dtypes[first]:
            raise ValueError(
                f"layers of a model must have one dtype, got {dtypes[first]} ({first!r})"
                f" and {dtype} ({name!r})"
            )
    return None if first is None else dtypes[first]
