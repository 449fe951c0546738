"""Composite layers: small graphs that stand in a model as one layer."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from fastconv import checks
from fastconv.nn.fields import field_of
from fastconv.nn.graph import Graph
from fastconv.nn.layer import EVALUATION, Layer, register
from fastconv.nn.merge import Add, Concat
from fastconv.nn.model import Model
from fastconv.nn.value import Input, Value

MERGES = ("sum", "concat")


class Composite(Layer):
    """Base of layers that are made of layers.

    A subclass joins layers between an :func:`Input` and a Value in its constructor, hands both to this
    one, and names in ``arguments`` the attributes that are its constructor's arguments. It needs no
    mathematics of its own: everything is its graph's, and parameters have the names they have there, such
    as ``"conv1.weight"``. With ``@register`` models that use it can be loaded.

    Parameters
    ----------
    inputs : Value or sequence of Value
    output : Value

    Attributes
    ----------
    graph : Graph
        What :meth:`Graph.expanded` puts in the composite's place.

    Raises
    ------
    TypeError, ValueError
        As :class:`Graph`.
    """

    arguments: ClassVar[tuple[str, ...]] = ()

    def __init__(self, inputs: Value | tuple[Value, ...], output: Value) -> None:
        super().__init__()
        self.graph = Graph(inputs, output)
        self.input_count = len(self.graph.inputs)
        self.parameters = self.graph.parameters
        self.buffers = {
            name: array for name, array in self.graph.state.items() if name not in self.parameters
        }

    @property
    def dtype(self):
        return self.graph.dtype

    @property
    def state(self):
        return self.graph.state

    def config(self):
        values = ((name, getattr(self, name)) for name in self.arguments)
        return {
            name: value.name if isinstance(value, np.dtype) else checks.frozen(value)
            for name, value in values
        }

    def initialize(self, rng):
        for layer in self.graph.layers.values():
            layer.initialize(rng)

    def output_shape(self, *input_shapes):
        return self.graph.output_shape(*input_shapes)

    def check_training(self, *input_shapes):
        self.graph.check_training(*input_shapes)

    def forward(self, *inputs, mode=EVALUATION):
        return self.graph.walk(inputs, mode)

    def backward(self, grad_output, caches, mode=EVALUATION):
        grad_inputs, grads = self.graph.walk_back((grad_output,), caches, mode)
        return grad_inputs, {name: grads[name] for name in self.parameters}

    def macs(self, *input_shapes):
        return self.graph.macs(*input_shapes)

    @property
    def receptive_field(self):
        return field_of(self.graph)


def merged(values: list[Value], merge: str) -> Value:
    """The sum or the concatenation of branches' outputs; call it with ``merge`` checked."""
    return (Add() if merge == "sum" else Concat())(*values, name="merge")


def chained(name: str, part: Any) -> Layer | Model:
    """``part``, which must be a layer or a model of one input and one output."""
    if not isinstance(part, Layer | Model):
        raise TypeError(f"{name} must be a layer or a model, got {part!r}")
    counts = (part.input_count, 1) if isinstance(part, Layer) else (len(part.inputs), len(part.outputs))
    if counts not in ((1, 1), (None, 1)):
        raise ValueError(f"{name} must have one input and one output, got {part!r}")
    return part


@register
class Residual(Composite):
    """``body(x) + x``: a skip connection around layers (He et al., "Deep Residual Learning", 2015).

    Parameters
    ----------
    body : Layer or Model
        Of one input and one output. Its parameters are named ``body.…``.
    projection : Layer or Model, optional
        What the skip passes through, where the shape of ``body``'s output is not that of its input:
        ``body(x) + projection(x)``. Its parameters are named ``projection.…``.

    Raises
    ------
    TypeError, ValueError
        If one is not a layer or model of one input and one output.
    """

    arguments = ("body", "projection")

    def __init__(self, body, projection=None):
        self.body = chained("body", body)
        self.projection = None if projection is None else chained("projection", projection)
        x = Input()
        skip = x if projection is None else projection(x, name="projection")
        super().__init__(x, Add()(body(x, name="body"), skip, name="merge"))


@register
class Parallel(Composite):
    """Branches side by side, their outputs merged: an inception module (Szegedy et al., arXiv 1409.4842).

    Parameters
    ----------
    *branches : Layer or Model
        Each of one input and one output; all get the same input. Parameters of branch i are named ``i.…``.
    merge : {"concat", "sum"}, default "concat"
        "concat" puts the branches' channels one after the other, "sum" adds them.

    Raises
    ------
    TypeError, ValueError
        If there are no branches, one is not a layer or model of one input and one output, or ``merge`` is
        neither of the two.
    """

    arguments = ("branches", "merge")

    def __init__(self, *branches, merge="concat"):
        if not branches:
            raise ValueError("branches must hold at least one layer, got none")
        checks.choice("merge", merge, MERGES)
        self.branches = tuple(chained(f"branches[{index}]", branch) for index, branch in enumerate(branches))
        self.merge = merge
        x = Input()
        outputs = [branch(x, name=str(index)) for index, branch in enumerate(branches)]
        super().__init__(x, merged(outputs, merge))

    @classmethod
    def from_config(cls, config):
        return cls(*config["branches"], merge=config["merge"])
