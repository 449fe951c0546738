"""Pixel shuffle layers."""

from __future__ import annotations

from fractions import Fraction

from fastconv import checks
from fastconv.functional.pooling import SHAPES
from fastconv.functional.shuffle import (
    MODES,
    pixel_shuffle,
    pixel_unshuffle,
    shuffled_shape,
    unshuffled_shape,
)
from fastconv.nn.layer import EVALUATION, Field, Layer, register


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
        return pixel_shuffle(x, self.upscale_factor, mode=self.mode), None

    def backward(self, grad_output, cache, mode=EVALUATION):
        return (pixel_unshuffle(grad_output, self.upscale_factor, mode=self.mode),), {}


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
        return pixel_unshuffle(x, self.downscale_factor, mode=self.mode), None

    def backward(self, grad_output, cache, mode=EVALUATION):
        return (pixel_shuffle(grad_output, self.downscale_factor, mode=self.mode),), {}
