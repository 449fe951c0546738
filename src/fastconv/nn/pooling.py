"""Pooling layers."""

from __future__ import annotations

import math

import numpy as np

from fastconv import checks
from fastconv.functional.pooling import (
    avg_pool2d,
    avg_pool2d_grad,
    global_avg_pool2d,
    max_pool2d,
    max_pool2d_grad,
    pool_output_size,
)
from fastconv.nn.layer import EVALUATION, Field, Layer, boolean, register

_IMAGES = "(N, C, H, W)"


class _Pool2d(Layer):
    """What max and average pooling share: the window."""

    def __init__(self, kernel_size, stride=None, padding=0):
        super().__init__()
        self.kernel_size = checks.per_axis("kernel_size", kernel_size, 2, 1)
        self.stride = self.kernel_size if stride is None else checks.per_axis("stride", stride, 2, 1)
        self.padding = checks.per_axis("padding", padding, 2, 0)
        # The kernel fits into an image of its own size: what this can refuse is the padding.
        pool_output_size(self.kernel_size, self.kernel_size, self.stride, self.padding)

    def config(self):
        return {"kernel_size": self.kernel_size, "stride": self.stride, "padding": self.padding}

    def output_shape(self, *input_shapes):
        batch, channels, *size = checks.shape("input", *input_shapes, 4, _IMAGES)
        return (batch, channels, *pool_output_size(tuple(size), self.kernel_size, self.stride, self.padding))

    @property
    def receptive_field(self):
        return Field(self.kernel_size, self.stride, self.padding)


@register
class MaxPool2d(_Pool2d):
    """The largest pixel of each window of (N, C, H, W).

    Parameters
    ----------
    kernel_size : int or (int, int)
    stride : int or (int, int), default ``kernel_size``
    padding : int or (int, int), default 0
        Pixels of −∞ on each side; at most half the kernel.
    """

    def forward(self, x, mode=EVALUATION):
        window = (self.kernel_size, self.stride, self.padding)
        if not mode.cache:
            return max_pool2d(x, *window, num_threads=mode.num_threads), None
        y, indices = max_pool2d(x, *window, return_indices=True, num_threads=mode.num_threads)
        return y, (indices, x.shape)

    def backward(self, grad_output, cache, mode=EVALUATION):
        return (max_pool2d_grad(grad_output, *cache, num_threads=mode.num_threads),), {}


@register
class AvgPool2d(_Pool2d):
    """The mean of each window of (N, C, H, W).

    Parameters
    ----------
    kernel_size : int or (int, int)
    stride : int or (int, int), default ``kernel_size``
    padding : int or (int, int), default 0
        Zeros on each side; at most half the kernel.
    count_include_pad : bool, default True
        Divide by the size of the kernel; otherwise by the number of pixels inside the image.
    """

    def __init__(self, kernel_size, stride=None, padding=0, count_include_pad=True):
        super().__init__(kernel_size, stride, padding)
        self.count_include_pad = boolean("count_include_pad", count_include_pad)

    def config(self):
        return {**super().config(), "count_include_pad": self.count_include_pad}

    def _options(self, mode):
        return {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.padding,
            "count_include_pad": self.count_include_pad,
            "num_threads": mode.num_threads,
        }

    def forward(self, x, mode=EVALUATION):
        return avg_pool2d(x, **self._options(mode)), x.shape

    def backward(self, grad_output, shape, mode=EVALUATION):
        return (avg_pool2d_grad(grad_output, shape, **self._options(mode)),), {}


@register
class GlobalAvgPool2d(Layer):
    """The mean of each channel: (N, C, H, W) to (N, C, 1, 1). PyTorch's ``AdaptiveAvgPool2d(1)``."""

    def output_shape(self, *input_shapes):
        batch, channels, height, width = checks.shape("input", *input_shapes, 4, _IMAGES)
        if 0 in (height, width):
            raise ValueError(f"input must have at least one pixel, got shape {input_shapes[0]}")
        return (batch, channels, 1, 1)

    @property
    def receptive_field(self):
        return None

    def forward(self, x, mode=EVALUATION):
        return global_avg_pool2d(x), x.shape

    def backward(self, grad_output, shape, mode=EVALUATION):
        pixels = math.prod(shape[2:])
        return (np.broadcast_to(grad_output / grad_output.dtype.type(pixels), shape),), {}
