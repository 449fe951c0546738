"""The fully connected layer."""

from __future__ import annotations

import math

import numpy as np

from fastconv import checks
from fastconv.functional.linear import linear, linear_input_grad, linear_weight_grad
from fastconv.nn.layer import EVALUATION, Layer, Stored, parameter_dtype, register


@register
class Linear(Layer):
    """``y = x · weightᵀ + bias`` over the last axis: (..., in_features) to (..., out_features).

    Parameters
    ----------
    in_features, out_features : int
    bias : bool, default True
    dtype : float32 or float64, default float32
    seed : int or numpy.random.Generator, optional
        Initial parameters are drawn from ``numpy.random.default_rng(seed)``, uniformly within
        ±1/√in_features, as PyTorch does. Default: fresh entropy.

    Attributes
    ----------
    weight : ndarray, shape (out_features, in_features)
    bias : ndarray, shape (out_features,), or None

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range.
    """

    weight = Stored()
    bias = Stored()

    def __init__(self, in_features, out_features, bias=True, *, dtype=np.float32, seed=None):
        super().__init__()
        self.in_features = checks.integer("in_features", in_features, 1)
        self.out_features = checks.integer("out_features", out_features, 1)
        dtype = parameter_dtype(dtype)
        self.parameters["weight"] = np.empty((self.out_features, self.in_features), dtype)
        if checks.boolean("bias", bias):
            self.parameters["bias"] = np.empty(self.out_features, dtype)
        self.initialize(checks.generator("seed", seed))

    def initialize(self, rng):
        bound = 1 / math.sqrt(self.in_features)
        for array in self.parameters.values():
            array[...] = rng.uniform(-bound, bound, array.shape)

    def config(self):
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bias": self.bias is not None,
            "dtype": self.dtype.name,
        }

    def output_shape(self, *input_shapes):
        (shape,) = input_shapes
        if len(shape) < 2 or shape[-1] != self.in_features:
            raise ValueError(f"input must be (N, ..., in_features={self.in_features}), got shape {shape}")
        return (*shape[:-1], self.out_features)

    def macs(self, *input_shapes):
        return math.prod(self.output_shape(*input_shapes)) * self.in_features

    @property
    def receptive_field(self):
        return None

    def forward(self, x, mode=EVALUATION):
        return linear(x, self.weight, self.bias, num_threads=mode.num_threads), x

    def backward(self, grad_output, x, mode=EVALUATION):
        grads = {"weight": linear_weight_grad(grad_output, x, num_threads=mode.num_threads)}
        if self.bias is not None:
            grads["bias"] = grad_output.sum(axis=tuple(range(grad_output.ndim - 1)))
        grad_input = None
        if mode.input_grad:
            grad_input = linear_input_grad(grad_output, self.weight, num_threads=mode.num_threads)
        return (grad_input,), grads
