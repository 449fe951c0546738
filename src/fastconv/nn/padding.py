"""Padding layers."""

from __future__ import annotations

from typing import ClassVar

from fastconv import checks
from fastconv.functional.padding import checked_pad, pad, pad_grad
from fastconv.functional.pooling import SHAPES
from fastconv.nn.layer import EVALUATION, Field, Layer, register


class _Pad(Layer):
    """A border around (N, C, ...).

    ``padding`` begins with the last axis, as PyTorch's: (left, right, top, ...); an integer is for all sides.
    """

    rank: ClassVar[int]
    mode: ClassVar[str] = "constant"
    value = 0.0

    def __init__(self, padding):
        super().__init__()
        least = -(2**31) if self.mode == "constant" else 0
        self.padding = checks.per_axis("padding", padding, 2 * self.rank, least)

    def config(self):
        return {"padding": self.padding}

    def output_shape(self, *input_shapes):
        shape = checks.shape("input", *input_shapes, self.rank + 2, SHAPES[self.rank])
        pairs = checked_pad(self.padding, shape, self.mode)
        return tuple(size + low + high for size, (low, high) in zip(shape, pairs, strict=True))

    @property
    def receptive_field(self):
        return Field((1,) * self.rank, (1,) * self.rank, self.padding[::2][::-1])

    def forward(self, x, mode=EVALUATION):
        self.output_shape(x.shape)
        return pad(x, self.padding, self.mode, self.value, num_threads=mode.num_threads), x.shape

    def backward(self, grad_output, shape, mode=EVALUATION):
        return (pad_grad(grad_output, shape, self.padding, self.mode, num_threads=mode.num_threads),), {}


class _ConstantPad(_Pad):
    def __init__(self, padding, value):
        super().__init__(padding)
        self.value = checks.number("value", value)

    def config(self):
        return {**super().config(), "value": self.value}


@register
class ZeroPad1d(_Pad):
    """Zeros around (N, C, L). ``padding``: int or (left, right); negative ones cut off."""

    rank = 1


@register
class ZeroPad2d(_Pad):
    """Zeros around (N, C, H, W). ``padding``: int or (left, right, top, bottom); negative ones cut off."""

    rank = 2


@register
class ZeroPad3d(_Pad):
    """Zeros around (N, C, D, H, W).

    ``padding``: int or (left, right, top, bottom, front, back); negative ones cut off.
    """

    rank = 3


@register
class ConstantPad1d(_ConstantPad):
    """:class:`ZeroPad1d` with ``value`` instead of 0."""

    rank = 1


@register
class ConstantPad2d(_ConstantPad):
    """:class:`ZeroPad2d` with ``value`` instead of 0."""

    rank = 2


@register
class ConstantPad3d(_ConstantPad):
    """:class:`ZeroPad3d` with ``value`` instead of 0."""

    rank = 3


@register
class ReflectionPad1d(_Pad):
    """:class:`ZeroPad1d` with the image mirrored at its outermost pixels; less than the image's size."""

    rank, mode = 1, "reflect"


@register
class ReflectionPad2d(_Pad):
    """:class:`ZeroPad2d` with the image mirrored at its outermost pixels; less than the image's size."""

    rank, mode = 2, "reflect"


@register
class ReflectionPad3d(_Pad):
    """:class:`ZeroPad3d` with the image mirrored at its outermost pixels; less than the image's size."""

    rank, mode = 3, "reflect"


@register
class ReplicationPad1d(_Pad):
    """:class:`ZeroPad1d` with copies of the outermost pixels."""

    rank, mode = 1, "replicate"


@register
class ReplicationPad2d(_Pad):
    """:class:`ZeroPad2d` with copies of the outermost pixels."""

    rank, mode = 2, "replicate"


@register
class ReplicationPad3d(_Pad):
    """:class:`ZeroPad3d` with copies of the outermost pixels."""

    rank, mode = 3, "replicate"


@register
class CircularPad1d(_Pad):
    """:class:`ZeroPad1d` with the image once more; at most the image's size."""

    rank, mode = 1, "circular"


@register
class CircularPad2d(_Pad):
    """:class:`ZeroPad2d` with the image once more; at most the image's size."""

    rank, mode = 2, "circular"


@register
class CircularPad3d(_Pad):
    """:class:`ZeroPad3d` with the image once more; at most the image's size."""

    rank, mode = 3, "circular"
