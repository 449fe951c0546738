"""Pooling layers."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from fastconv import checks
from fastconv.functional import pooling
from fastconv.functional.pooling import SHAPES, global_avg_pool2d
from fastconv.functional.taps import Window, adaptive_size
from fastconv.nn.layer import EVALUATION, Field, Layer, register


class _Pool(Layer):
    """What max and average pooling share: the window."""

    rank: ClassVar[int]

    def __init__(self, kernel_size, stride, padding, dilation, ceil_mode):
        super().__init__()
        self._window = Window.create(self.rank, kernel_size, stride, padding, dilation, ceil_mode)
        self.kernel_size, self.stride, sides, self.dilation, self.ceil_mode = self._window
        even = all(low == high for low, high in sides)
        self.padding = tuple(low for low, _ in sides) if even and not _has_pairs(padding) else sides

    def config(self):
        return {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.padding,
            "ceil_mode": self.ceil_mode,
        }

    def output_shape(self, *input_shapes):
        batch, channels, *size = checks.shape("input", *input_shapes, self.rank + 2, SHAPES[self.rank])
        return (batch, channels, *self._window.output_size(size))

    @property
    def receptive_field(self):
        window = self._window
        extent = tuple(d * (k - 1) + 1 for k, d in zip(window.kernel, window.dilation, strict=True))
        return Field(extent, window.stride, tuple(low for low, _ in window.padding))


def _has_pairs(padding):
    padding = checks.frozen(padding)
    return isinstance(padding, tuple) and any(isinstance(item, tuple) for item in padding)


class _MaxPool(_Pool):
    def __init__(self, kernel_size, stride=None, padding=0, dilation=1, *, ceil_mode=False):
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode)

    def config(self):
        return {**super().config(), "dilation": self.dilation}

    def forward(self, x, mode=EVALUATION):
        pool = getattr(pooling, f"max_pool{self.rank}d")
        options = {**self.config(), "num_threads": mode.num_threads}
        if not mode.cache:
            return pool(x, **options), None
        y, indices = pool(x, **options, return_indices=True)
        return y, (indices, x.shape)

    def backward(self, grad_output, cache, mode=EVALUATION):
        return (pooling.max_pool_grad(grad_output, *cache, num_threads=mode.num_threads),), {}


@register
class MaxPool1d(_MaxPool):
    """:class:`MaxPool2d` along the one axis of (N, C, L)."""

    rank = 1


@register
class MaxPool2d(_MaxPool):
    """The largest pixel of each window of (N, C, H, W); as :func:`fastconv.functional.max_pool2d`.

    Parameters
    ----------
    kernel_size : int or (int, int)
    stride : int or (int, int), default ``kernel_size``
    padding : int, (int, int) or ((top, bottom), (left, right)), default 0
        Pixels of −∞ around the image; integers at most half of the kernel.
    dilation : int or (int, int), default 1
    ceil_mode : bool, default False
        Round the output's size up. By name only: PyTorch has ``return_indices`` in its place.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range.
    """

    rank = 2


@register
class MaxPool3d(_MaxPool):
    """:class:`MaxPool2d` over the three axes of (N, C, D, H, W)."""

    rank = 3


class _AvgPool(_Pool):
    def __init__(
        self,
        kernel_size,
        stride=None,
        padding=0,
        ceil_mode=False,
        count_include_pad=True,
        divisor_override=None,
    ):
        super().__init__(kernel_size, stride, padding, 1, ceil_mode)
        self.count_include_pad = checks.boolean("count_include_pad", count_include_pad)
        self.divisor_override = divisor_override
        if divisor_override is not None:
            self.divisor_override = checks.integer("divisor_override", divisor_override, 1)

    def config(self):
        return {
            **super().config(),
            "count_include_pad": self.count_include_pad,
            "divisor_override": self.divisor_override,
        }

    def forward(self, x, mode=EVALUATION):
        pool = getattr(pooling, f"avg_pool{self.rank}d")
        return pool(x, **self.config(), num_threads=mode.num_threads), x.shape

    def backward(self, grad_output, shape, mode=EVALUATION):
        options = {**self.config(), "num_threads": mode.num_threads}
        return (pooling.avg_pool_grad(grad_output, shape, **options),), {}


@register
class AvgPool1d(_AvgPool):
    """:class:`AvgPool2d` along the one axis of (N, C, L)."""

    rank = 1


@register
class AvgPool2d(_AvgPool):
    """The mean of each window of (N, C, H, W); as :func:`fastconv.functional.avg_pool2d`.

    Parameters
    ----------
    kernel_size : int or (int, int)
    stride : int or (int, int), default ``kernel_size``
    padding : int, (int, int) or ((top, bottom), (left, right)), default 0
        Zeros around the image; integers at most half of the kernel.
    ceil_mode : bool, default False
        Round the output's size up.
    count_include_pad : bool, default True
        Divide by the window's pixels in the padded image; otherwise by those in the image.
    divisor_override : int, optional
        Divide by this instead.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range.
    """

    rank = 2


@register
class AvgPool3d(_AvgPool):
    """:class:`AvgPool2d` over the three axes of (N, C, D, H, W)."""

    rank = 3


class _AdaptivePool(Layer):
    """What the adaptive poolings share: the size of the output."""

    rank: ClassVar[int]

    def __init__(self, output_size):
        super().__init__()
        # Whatever is None fits an image of one pixel.
        adaptive_size(output_size, (1,) * self.rank)
        self.output_size = checks.frozen(output_size)

    def config(self):
        return {"output_size": self.output_size}

    def output_shape(self, *input_shapes):
        batch, channels, *size = checks.shape("input", *input_shapes, self.rank + 2, SHAPES[self.rank])
        return (batch, channels, *adaptive_size(self.output_size, size))

    @property
    def receptive_field(self):
        """None, the whole image: what a window spans depends on the image's size."""
        return None


class _AdaptiveAvgPool(_AdaptivePool):
    def forward(self, x, mode=EVALUATION):
        pool = getattr(pooling, f"adaptive_avg_pool{self.rank}d")
        return pool(x, self.output_size, num_threads=mode.num_threads), x.shape

    def backward(self, grad_output, shape, mode=EVALUATION):
        return (pooling.adaptive_avg_pool_grad(grad_output, shape, num_threads=mode.num_threads),), {}


@register
class AdaptiveAvgPool1d(_AdaptiveAvgPool):
    """:class:`AdaptiveAvgPool2d` along the one axis of (N, C, L)."""

    rank = 1


@register
class AdaptiveAvgPool2d(_AdaptiveAvgPool):
    """The means of ``output_size`` parts of (N, C, H, W); as :func:`fastconv.functional.adaptive_avg_pool2d`.

    Parameters
    ----------
    output_size : int, None, or (int or None, int or None)
        None keeps the size of an axis.

    Raises
    ------
    TypeError, ValueError
        If it is not that.
    """

    rank = 2


@register
class AdaptiveAvgPool3d(_AdaptiveAvgPool):
    """:class:`AdaptiveAvgPool2d` over the three axes of (N, C, D, H, W)."""

    rank = 3


class _AdaptiveMaxPool(_AdaptivePool):
    def forward(self, x, mode=EVALUATION):
        pool = getattr(pooling, f"adaptive_max_pool{self.rank}d")
        y, indices = pool(x, self.output_size, True, num_threads=mode.num_threads)
        return y, (indices, x.shape)

    def backward(self, grad_output, cache, mode=EVALUATION):
        return (pooling.max_pool_grad(grad_output, *cache, num_threads=mode.num_threads),), {}


@register
class AdaptiveMaxPool1d(_AdaptiveMaxPool):
    """:class:`AdaptiveMaxPool2d` along the one axis of (N, C, L)."""

    rank = 1


@register
class AdaptiveMaxPool2d(_AdaptiveMaxPool):
    """The largest pixels of the windows of :class:`AdaptiveAvgPool2d`, whose arguments it takes."""

    rank = 2


@register
class AdaptiveMaxPool3d(_AdaptiveMaxPool):
    """:class:`AdaptiveMaxPool2d` over the three axes of (N, C, D, H, W)."""

    rank = 3


@register
class GlobalAvgPool2d(Layer):
    """The mean of each channel: (N, C, H, W) to (N, C, 1, 1). PyTorch's ``AdaptiveAvgPool2d(1)``."""

    def output_shape(self, *input_shapes):
        batch, channels, height, width = checks.shape("input", *input_shapes, 4, SHAPES[2])
        if 0 in (height, width):
            raise ValueError(f"input must have at least one pixel, got shape {input_shapes[0]}")
        return (batch, channels, 1, 1)

    @property
    def receptive_field(self):
        return None

    def forward(self, x, mode=EVALUATION):
        return global_avg_pool2d(x, num_threads=mode.num_threads), x.shape

    def backward(self, grad_output, shape, mode=EVALUATION):
        pixels = math.prod(shape[2:])
        return (np.broadcast_to(grad_output / grad_output.dtype.type(pixels), shape),), {}
