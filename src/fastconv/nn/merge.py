"""Layers that join branches."""

from __future__ import annotations

import numpy as np

from fastconv import checks
from fastconv.nn.layer import EVALUATION, Layer, register


@register
class Add(Layer):
    """The sum of its inputs, which have one shape: the end of a skip connection."""

    input_count = None

    def output_shape(self, *input_shapes):
        if any(tuple(shape) != tuple(input_shapes[0]) for shape in input_shapes):
            raise ValueError(f"inputs of Add must have one shape, got {', '.join(map(str, input_shapes))}")
        return input_shapes[0]

    def forward(self, *inputs, mode=EVALUATION):
        self.output_shape(*(x.shape for x in inputs))
        total = inputs[0]
        for x in inputs[1:]:
            total = total + x
        return total, len(inputs)

    def backward(self, grad_output, count, mode=EVALUATION):
        return (grad_output,) * count, {}


@register
class Concat(Layer):
    """Its inputs one after the other along an axis; their other sizes are the same.

    Parameters
    ----------
    dim : int, default 1
        The axis; 1 are the channels.
    """

    input_count = None

    def __init__(self, dim=1):
        super().__init__()
        self.dim = checks.integer("dim", dim, 1)

    def config(self):
        return {"dim": self.dim}

    def output_shape(self, *input_shapes):
        first = input_shapes[0]
        if len(first) <= self.dim:
            raise ValueError(f"inputs of Concat must have the axis dim={self.dim}, got shape {first}")

        def others(shape):
            return (*shape[: self.dim], *shape[self.dim + 1 :])

        if any(others(shape) != others(first) for shape in input_shapes):
            raise ValueError(
                f"inputs of Concat must agree on all axes but {self.dim},"
                f" got {', '.join(map(str, input_shapes))}"
            )
        total = sum(shape[self.dim] for shape in input_shapes)
        return (*first[: self.dim], total, *first[self.dim + 1 :])

    def forward(self, *inputs, mode=EVALUATION):
        self.output_shape(*(x.shape for x in inputs))
        if inputs[0].ndim == 4:
            # numpy.concatenate keeps the channels innermost only if it is told where they are.
            axis = (0, 3, 1, 2)[self.dim]
            y = np.concatenate([x.transpose(0, 2, 3, 1) for x in inputs], axis=axis).transpose(0, 3, 1, 2)
        else:
            y = np.concatenate(inputs, axis=self.dim)
        return y, np.cumsum([x.shape[self.dim] for x in inputs])[:-1]

    def backward(self, grad_output, ends, mode=EVALUATION):
        return tuple(np.split(grad_output, ends, axis=self.dim)), {}


@register
class ExpandAs(Layer):
    """Its first input, sizes of 1 repeated to those of the second: (N, C, 1, 1) to (N, C, H, W).

    The channels stay the first input's; nothing of the second counts but its spatial size. What a branch
    of global pooling ends with.
    """

    input_count = 2

    def output_shape(self, *input_shapes):
        shape, like = input_shapes
        pairs = zip(shape[2:], like[2:], strict=False)
        if len(shape) != len(like) or shape[:1] != like[:1] or any(a not in (1, b) for a, b in pairs):
            raise ValueError(
                f"inputs of ExpandAs must be (N, C, 1, ...) and (N, any, H, ...), got {shape} and {like}"
            )
        return (*shape[:2], *like[2:])

    def forward(self, x, like, mode=EVALUATION):
        return np.broadcast_to(x, self.output_shape(x.shape, like.shape)), (x.shape, like.shape)

    def backward(self, grad_output, shapes, mode=EVALUATION):
        shape, like = shapes
        axes = tuple(axis for axis in range(2, len(shape)) if shape[axis] != like[axis])
        nothing = np.broadcast_to(grad_output.dtype.type(0), like)
        return (grad_output.sum(axis=axes, keepdims=True), nothing), {}
