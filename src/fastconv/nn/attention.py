"""Attention over the positions of an image."""

from __future__ import annotations

import math

import numpy as np

from fastconv import checks
from fastconv.functional.attention import attention_conv2d_grad, attention_conv2d_training
from fastconv.nn.layer import EVALUATION, Layer, Stored, parameter_dtype, register

_NAMES = ("query", "key", "value")


@register
class AttentionConv2d(Layer):
    """Self-attention between all positions of an image, added to the image: (N, C, H, W) to the same.

    .. math:: y = x + \\gamma\\, \\mathrm{softmax}(Q K^T / \\sqrt{d})\\, V

    with 1×1 convolutions Q, K and V of x, as :func:`fastconv.functional.attention_conv2d`, which names the
    sources. The gate starts from 0, so that the layer starts as the identity (SAGAN, Zhang et al., arXiv
    1805.08318, sec. 3). Memory grows with the positions, not with their square.

    Parameters
    ----------
    channels : int
        C.
    heads : int, default 1
        Divides ``channels`` and ``key_channels``.
    key_channels : int, optional
        Channels of Q and of K, of all heads together. Default: C/8 as in SAGAN, rounded down to a multiple
        of ``heads`` but at least one a head.
    bias : bool, default True
        Of Q, K and V.
    dtype : float32 or float64, default float32
    seed : int or numpy.random.Generator, optional
        Initial weights and biases are drawn from ``numpy.random.default_rng(seed)``, uniformly within ±1/√C.
        Default: fresh entropy.

    Attributes
    ----------
    query_weight, key_weight : ndarray, shape (key_channels, C, 1, 1)
    value_weight : ndarray, shape (C, C, 1, 1)
    query_bias, key_bias, value_bias : ndarray of as many values, or None
    gamma : ndarray, shape (1,)

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range.
    """

    query_weight = Stored()
    key_weight = Stored()
    value_weight = Stored()
    query_bias = Stored()
    key_bias = Stored()
    value_bias = Stored()
    gamma = Stored()

    def __init__(self, channels, heads=1, key_channels=None, bias=True, *, dtype=np.float32, seed=None):
        super().__init__()
        self.channels = checks.integer("channels", channels, 1)
        self.heads = checks.integer("heads", heads, 1)
        if key_channels is None:
            key_channels = max(self.channels // 8 // self.heads, 1) * self.heads
        self.key_channels = checks.integer("key_channels", key_channels, 1)
        if self.channels % self.heads or self.key_channels % self.heads:
            raise ValueError(
                f"heads must divide channels and key_channels, got heads={heads}, channels={channels},"
                f" key_channels={key_channels}"
            )
        dtype = parameter_dtype(dtype)
        rows = (self.key_channels, self.key_channels, self.channels)
        for name, count in zip(_NAMES, rows, strict=True):
            self.parameters[f"{name}_weight"] = np.empty((count, self.channels, 1, 1), dtype)
        if checks.boolean("bias", bias):
            for name, count in zip(_NAMES, rows, strict=True):
                self.parameters[f"{name}_bias"] = np.empty(count, dtype)
        self.parameters["gamma"] = np.empty(1, dtype)
        self.initialize(checks.generator("seed", seed))

    def initialize(self, rng):
        bound = 1 / math.sqrt(self.channels)
        for name, array in self.parameters.items():
            array[...] = 0 if name == "gamma" else rng.uniform(-bound, bound, array.shape)

    def config(self):
        return {
            "channels": self.channels,
            "heads": self.heads,
            "key_channels": self.key_channels,
            "bias": self.query_bias is not None,
            "dtype": self.dtype.name,
        }

    def output_shape(self, *input_shapes):
        (shape,) = input_shapes
        if len(shape) != 4 or shape[1] != self.channels or min(shape[2:]) < 1:
            raise ValueError(f"input must be (N, channels={self.channels}, H, W), got shape {shape}")
        return shape

    def macs(self, *input_shapes):
        batch, channels, height, width = self.output_shape(*input_shapes)
        positions, computed = height * width, self.key_channels + channels
        projections = channels * (computed + self.key_channels)
        return batch * positions * (projections + positions * computed)

    @property
    def receptive_field(self):
        return None

    def forward(self, x, mode=EVALUATION):
        self.output_shape(x.shape)
        weights, biases = (
            tuple(self.parameters.get(f"{name}_{kind}") for name in _NAMES) for kind in ("weight", "bias")
        )
        return attention_conv2d_training(
            x, weights, biases, self.gamma, heads=self.heads, num_threads=mode.num_threads
        )

    def backward(self, grad_output, cache, mode=EVALUATION):
        grads = attention_conv2d_grad(
            grad_output, cache, input_grad=mode.input_grad, num_threads=mode.num_threads
        )
        return (grads.pop("x"),), {name: grads[name] for name in self.parameters}
