"""Activation layers."""

from __future__ import annotations

from fastconv import checks
from fastconv.functional.activation import relu, relu_grad, softmax, softmax_grad
from fastconv.nn.layer import EVALUATION, Layer, register


@register
class ReLU(Layer):
    """``max(x, 0)``, element by element."""

    def output_shape(self, *input_shapes):
        return input_shapes[0]

    def forward(self, x, mode=EVALUATION):
        y = relu(x)
        return y, y

    def backward(self, grad_output, y, mode=EVALUATION):
        return (relu_grad(grad_output, y),), {}


@register
class Softmax(Layer):
    """``exp(x) / Σ exp(x)`` along an axis.

    Not needed before ``loss="cross_entropy"``, which takes logits.

    Parameters
    ----------
    dim : int, default 1
        The axis; 1 are the channels or features.
    """

    def __init__(self, dim=1):
        super().__init__()
        self.dim = checks.integer("dim", dim, -32)

    def config(self):
        return {"dim": self.dim}

    def output_shape(self, *input_shapes):
        (shape,) = input_shapes
        if not -len(shape) <= self.dim < len(shape):
            raise ValueError(f"input must have the axis dim={self.dim}, got shape {shape}")
        return shape

    def forward(self, x, mode=EVALUATION):
        self.output_shape(x.shape)
        y = softmax(x, self.dim)
        return y, y

    def backward(self, grad_output, y, mode=EVALUATION):
        return (softmax_grad(grad_output, y, self.dim),), {}
