"""Flatten."""

from __future__ import annotations

import math

import numpy as np

from fastconv.nn.layer import EVALUATION, Layer, register


@register
class Flatten(Layer):
    """All axes but the batch into one: (N, ...) to (N, features), in the order C, H, W."""

    def output_shape(self, *input_shapes):
        (shape,) = input_shapes
        if len(shape) < 2:
            raise ValueError(f"input must have a batch and at least one more axis, got shape {shape}")
        return (shape[0], math.prod(shape[1:]))

    @property
    def receptive_field(self):
        return None

    def forward(self, x, mode=EVALUATION):
        # A size −1 cannot be inferred for an empty batch.
        return x.reshape(self.output_shape(x.shape)), x.shape

    def backward(self, grad_output, shape, mode=EVALUATION):
        grad = grad_output.reshape(shape)
        return (channels_last(grad) if len(shape) == 4 else grad,), {}


def channels_last(x: np.ndarray) -> np.ndarray:
    """The same (N, C, H, W) array, channels innermost in memory, as the kernels read it."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
