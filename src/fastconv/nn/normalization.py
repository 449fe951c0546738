"""Batch normalisation."""

from __future__ import annotations

import math

import numpy as np

from fastconv import checks
from fastconv.functional.normalization import (
    batch_norm,
    batch_norm_grad,
    batch_norm_training,
    batch_norm_training_grad,
)
from fastconv.nn.layer import EVALUATION, Layer, Stored, boolean, number, parameter_dtype, register


@register
class BatchNorm2d(Layer):
    """Batch normalisation of each channel of (N, C, H, W).

    In training the statistics are those of the batch, and the running ones move towards them: the one
    state a forward pass changes. In inference the running statistics are used.

    Parameters
    ----------
    num_features : int
        C.
    eps : float, default 1e-5
        Added to the variance.
    momentum : float or None, default 0.1
        ``running = (1 − momentum) · running + momentum · batch``; None: the mean of all batches so far.
        The running variance takes the unbiased one of the batch, the output the biased one (as PyTorch).
    affine : bool, default True
        Learn a weight (first 1) and a bias (first 0) for each channel.
    dtype : float32 or float64, default float32

    Attributes
    ----------
    weight, bias : ndarray, shape (C,), or None
    running_mean, running_var : ndarray, shape (C,)
    num_batches_tracked : ndarray of int64, shape ()

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range; in training, if a channel has one value only.
    """

    weight = Stored()
    bias = Stored()
    running_mean = Stored()
    running_var = Stored()
    num_batches_tracked = Stored()

    def __init__(self, num_features, eps=1e-5, momentum=0.1, affine=True, *, dtype=np.float32):
        super().__init__()
        self.num_features = checks.integer("num_features", num_features, 1)
        self.eps = number("eps", eps, 0, math.inf, "a number >= 0")
        self.momentum = momentum
        if momentum is not None:
            self.momentum = number("momentum", momentum, 0, 1, "a number from 0 to 1, or None")
        self.affine = boolean("affine", affine)
        self._dtype = parameter_dtype(dtype)
        if self.affine:
            self.parameters = {name: np.empty(num_features, self._dtype) for name in ("weight", "bias")}
        self.buffers = {name: np.empty(num_features, self._dtype) for name in ("running_mean", "running_var")}
        self.buffers["num_batches_tracked"] = np.array(0, np.int64)
        self.initialize(np.random.default_rng(0))

    @property
    def dtype(self):
        return self._dtype

    def initialize(self, rng):
        if self.affine:
            self.weight = np.ones(self.num_features, self._dtype)
            self.bias = np.zeros(self.num_features, self._dtype)
        self.running_mean = np.zeros(self.num_features, self._dtype)
        self.running_var = np.ones(self.num_features, self._dtype)
        self.num_batches_tracked = np.array(0, np.int64)

    def config(self):
        return {
            "num_features": self.num_features,
            "eps": self.eps,
            "momentum": self.momentum,
            "affine": self.affine,
            "dtype": self._dtype.name,
        }

    def output_shape(self, *input_shapes):
        shape = checks.shape("input", *input_shapes, 4, "(N, C, H, W)")
        if shape[1] != self.num_features:
            raise ValueError(f"input must have num_features={self.num_features} channels, got shape {shape}")
        return shape

    def macs(self, *input_shapes):
        return math.prod(input_shapes[0])

    def forward(self, x, mode=EVALUATION):
        self.output_shape(x.shape)
        if not mode.training:
            y = batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.eps)
            return y, (x, None)
        count = x.size // x.shape[1]
        if count < 2:
            raise ValueError(
                f"input must have more than one value a channel to train on, got shape {x.shape}"
            )
        y, mean, var, normalized = batch_norm_training(x, self.weight, self.bias, self.eps)
        self._track(mean, var * (count / (count - 1)))
        return y, (normalized, var)

    def _track(self, mean, unbiased_var):
        self.num_batches_tracked = self.num_batches_tracked + 1
        share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean = (1 - share) * self.running_mean + share * mean
        self.running_var = (1 - share) * self.running_var + share * unbiased_var

    def backward(self, grad_output, cache, mode=EVALUATION):
        saved, var = cache
        if var is None:
            result = batch_norm_grad(
                grad_output, saved, self.running_mean, self.running_var, self.weight, self.eps
            )
        else:
            result = batch_norm_training_grad(grad_output, saved, var, self.weight, self.eps)
        grad_input, grad_weight, grad_bias = result
        return (grad_input,), {"weight": grad_weight, "bias": grad_bias} if self.affine else {}
