"""Pixel shuffle layers, and the convolution that ends in one."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from fastconv import checks
from fastconv.functional.pooling import SHAPES
from fastconv.functional.shuffle import (
    MODES,
    pixel_shuffle,
    pixel_unshuffle,
    shuffled_shape,
    unshuffled_shape,
)
from fastconv.functional.subpixel import subpixel_conv2d
from fastconv.nn.composite import Composite
from fastconv.nn.convolution import Conv2d
from fastconv.nn.layer import EVALUATION, Field, Layer, register
from fastconv.nn.value import Input


@register
class PixelShuffle(Layer):
    """Channels into space: (N, C·r², H, W) to (N, C, H·r, W·r); as :func:`fastconv.functional.pixel_shuffle`.

    Parameters
    ----------
    upscale_factor : int
        r.
    mode : {"CRD", "DCR"}, default "CRD"
        PyTorch's order of the channels, or the other of ONNX's DepthToSpace.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range.
    """

    def __init__(self, upscale_factor, *, mode="CRD"):
        super().__init__()
        self.upscale_factor = checks.integer("upscale_factor", upscale_factor, 1)
        checks.choice("mode", mode, MODES)
        self.mode = mode

    def config(self):
        return {"upscale_factor": self.upscale_factor, "mode": self.mode}

    def output_shape(self, *input_shapes):
        shape = checks.shape("input", *input_shapes, 4, SHAPES[2])
        return shuffled_shape(shape, self.upscale_factor)

    @property
    def receptive_field(self):
        stride = Fraction(1, self.upscale_factor)
        return Field((2 - stride,) * 2, (stride,) * 2, (1 - stride,) * 2)

    def forward(self, x, mode=EVALUATION):
        return pixel_shuffle(x, self.upscale_factor, mode=self.mode, num_threads=mode.num_threads), None

    def backward(self, grad_output, cache, mode=EVALUATION):
        return (
            pixel_unshuffle(grad_output, self.upscale_factor, mode=self.mode, num_threads=mode.num_threads),
        ), {}


@register
class PixelUnshuffle(Layer):
    """Space into channels: (N, C, H·r, W·r) to (N, C·r², H, W), the inverse of :class:`PixelShuffle`.

    Parameters
    ----------
    downscale_factor : int
        r.
    mode : {"CRD", "DCR"}, default "CRD"

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range.
    """

    def __init__(self, downscale_factor, *, mode="CRD"):
        super().__init__()
        self.downscale_factor = checks.integer("downscale_factor", downscale_factor, 1)
        checks.choice("mode", mode, MODES)
        self.mode = mode

    def config(self):
        return {"downscale_factor": self.downscale_factor, "mode": self.mode}

    def output_shape(self, *input_shapes):
        shape = checks.shape("input", *input_shapes, 4, SHAPES[2])
        return unshuffled_shape(shape, self.downscale_factor)

    @property
    def receptive_field(self):
        return Field((self.downscale_factor,) * 2, (self.downscale_factor,) * 2, (0, 0))

    def forward(self, x, mode=EVALUATION):
        return pixel_unshuffle(x, self.downscale_factor, mode=self.mode, num_threads=mode.num_threads), None

    def backward(self, grad_output, cache, mode=EVALUATION):
        return (
            pixel_shuffle(grad_output, self.downscale_factor, mode=self.mode, num_threads=mode.num_threads),
        ), {}


@register
class SubpixelConv2d(Composite):
    """Sub-pixel convolution: r² values a pixel and channel, put side by side as the pixels of a larger image.

    ``PixelShuffle(r)(conv(x))``: (N, C_in, H, W) to (N, C_out, H_out·r, W_out·r). It enlarges as a transposed
    convolution of stride r does, all r² phases with kernels of one size. (Shi et al., "Real-Time Single
    Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural Network", CVPR 2016,
    arXiv 1609.05158, section 3.2.)

    Parameters
    ----------
    in_channels, out_channels : int
        ``out_channels`` of the result; the convolution has ``out_channels · r²``.
    kernel_size : int or (int, int)
    upscale_factor : int
        r.
    padding : int, (int, int), ((top, bottom), (left, right)), "valid", "same" or "full", default 0
    dilation : int or (int, int), default 1
    groups : int, default 1
        Of the convolution.
    bias : bool, default True
    padding_mode : {"zeros", "reflect", "replicate", "circular"}, default "zeros"
    dtype : float32 or float64, default float32
    seed : int or numpy.random.Generator, optional
        As for :class:`Conv2d`.

    Attributes
    ----------
    conv : Conv2d
        Its weight is (out_channels·r², in_channels/groups, k_h, k_w); row c·r² + i·r + j makes the pixels
        (i, j) of channel c's r×r blocks.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range.

    Notes
    -----
    Inference is :func:`fastconv.functional.subpixel_conv2d`, which writes to shuffled places where it can.
    """

    arguments = (
        "in_channels", "out_channels", "kernel_size", "upscale_factor", "padding", "dilation", "groups",
        "bias", "padding_mode", "dtype",
    )  # fmt: skip

    def __init__(
        self, in_channels, out_channels, kernel_size, upscale_factor, padding=0, dilation=1, groups=1,
        bias=True, padding_mode="zeros", *, dtype=np.float32, seed=None,
    ):  # fmt: skip
        self.in_channels = checks.integer("in_channels", in_channels, 1)
        self.out_channels = checks.integer("out_channels", out_channels, 1)
        self.upscale_factor = checks.integer("upscale_factor", upscale_factor, 1)
        self.conv = Conv2d(
            in_channels, self.out_channels * self.upscale_factor**2, kernel_size, 1, padding, dilation,
            groups, bias, padding_mode, dtype=dtype, seed=seed,
        )  # fmt: skip
        self.kernel_size, self.padding = self.conv.kernel_size, self.conv.padding
        self.dilation, self.groups = self.conv.dilation, self.conv.groups
        self.bias, self.padding_mode = bias, padding_mode
        x = Input()
        super().__init__(x, PixelShuffle(self.upscale_factor)(self.conv(x, name="conv")))

    def forward(self, x, mode=EVALUATION):
        if mode.cache:
            return super().forward(x, mode=mode)
        y = subpixel_conv2d(
            x, self.conv.weight, self.conv.bias, upscale_factor=self.upscale_factor, padding=self.padding,
            dilation=self.dilation, groups=self.groups, padding_mode=self.padding_mode,
            num_threads=mode.num_threads,
        )  # fmt: skip
        return y, None
