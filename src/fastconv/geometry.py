"""ConvGeometry: the description of a convolution problem, its only validator, its only shape arithmetic."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from fastconv import checks

_LAYOUTS = {1: "(N, C, W)", 2: "(N, C, H, W)", 3: "(N, C, D, H, W)"}
WEIGHTS = {
    1: "(C_out, C_in/groups, k_w)",
    2: "(C_out, C_in/groups, k_h, k_w)",
    3: "(C_out, C_in/groups, k_d, k_h, k_w)",
}
_NAMED_PADDINGS = ("valid", "same", "full")


@dataclass(frozen=True)
class ConvGeometry:
    """A convolution problem: sizes, stride, dilation, padding, groups and dtype.

    Build it with :meth:`create`, which checks everything; the constructor checks nothing.

    Attributes
    ----------
    batch, in_channels, out_channels, groups : int
    input_size, kernel_size, stride, dilation : tuple of int
        One entry a spatial axis.
    padding : tuple of (int, int)
        Zeros before and after, one pair a spatial axis.
    dtype : numpy.dtype
        float32 or float64.
    """

    batch: int
    in_channels: int
    out_channels: int
    input_size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    groups: int
    dtype: np.dtype

    @classmethod
    def create(
        cls, input_shape, weight_shape, *, stride=1, padding=0, dilation=1, groups=1, dtype=np.float32
    ) -> ConvGeometry:
        """Check a problem and describe it.

        Parameters
        ----------
        input_shape : sequence of int
            (N, C_in, *spatial), with one to three spatial axes; N may be 0.
        weight_shape : sequence of int
            (C_out, C_in/groups, *kernel).
        stride, dilation : int or sequence of int, default 1
            At least 1, for all axes or one for each.
        padding : int, sequence of int, sequence of (int, int) or str, default 0
            Zeros on both sides of all axes, of each axis, before and after each axis; or ``"valid"``
            (none), ``"same"`` (output size ``ceil(input / stride)``; an odd zero goes at the end, as in
            ONNX's SAME_UPPER and TensorFlow), ``"full"`` (``dilation · (kernel − 1)`` on each side).
        groups : int, default 1
            Divides C_in and C_out.
        dtype : dtype, default float32
            float32, float64, or float16, which is computed in float32.

        Raises
        ------
        TypeError
            If an argument is of the wrong type.
        ValueError
            If an argument is out of range, or they do not fit each other.
        """
        key = (input_shape, weight_shape, stride, padding, dilation, groups)
        if not is_plain(key):
            key = tuple(map(checks.frozen, key))
        create = _create_cached if is_plain(key) else _create
        return create(*key, np.dtype(dtype))

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        # Every call looks up what is known of its geometry, several times.
        return hash(
            (
                (self.batch, self.in_channels, self.out_channels, self.groups, self.dtype),
                (self.input_size, self.kernel_size, self.stride, self.dilation, self.padding),
            )
        )

    @property
    def spatial_rank(self) -> int:
        """Number of spatial axes."""
        return len(self.input_size)

    @cached_property
    def output_size(self) -> tuple[int, ...]:
        """Spatial size of the output: ``(in + low + high − dilation·(k − 1) − 1) // stride + 1``."""
        return tuple(
            (size + low + high - dilation * (kernel - 1) - 1) // stride + 1
            for size, (low, high), kernel, dilation, stride in zip(
                self.input_size, self.padding, self.kernel_size, self.dilation, self.stride, strict=True
            )
        )

    @cached_property
    def input_shape(self) -> tuple[int, ...]:
        """(N, C_in, *spatial)."""
        return (self.batch, self.in_channels, *self.input_size)

    @cached_property
    def output_shape(self) -> tuple[int, ...]:
        """(N, C_out, *spatial)."""
        return (self.batch, self.out_channels, *self.output_size)

    @cached_property
    def weight_shape(self) -> tuple[int, ...]:
        """(C_out, C_in/groups, *kernel)."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @cached_property
    def padded(self) -> bool:
        """Whether there is any padding."""
        return any(pair != (0, 0) for pair in self.padding)

    @cached_property
    def reduction(self) -> int:
        """Products summed for one output element: ``C_in/groups · Π k``."""
        return self.in_channels // self.groups * math.prod(self.kernel_size)

    @cached_property
    def multiplications(self) -> int:
        """Multiplications of the definition, zeros of the padding included."""
        return math.prod(self.output_shape) * self.reduction

    @cached_property
    def kernel_arguments(self) -> bytes:
        """The integers of a problem of two spatial axes, in the order of the kernels' ``Problem``."""
        group_sizes = self.in_channels // self.groups, self.out_channels // self.groups
        lows = [low for low, _ in self.padding]
        integers = [*self.stride, *self.dilation, *lows, *self.kernel_size, self.groups, *group_sizes]
        return np.array(integers, np.intp).tobytes()

    @property
    def input_bytes(self) -> int:
        """Bytes of the input."""
        return math.prod(self.input_shape) * self.dtype.itemsize

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight."""
        return math.prod(self.weight_shape) * self.dtype.itemsize

    @property
    def output_bytes(self) -> int:
        """Bytes of the output."""
        return math.prod(self.output_shape) * self.dtype.itemsize

    def __str__(self) -> str:
        def times(sizes):
            return "×".join(map(str, sizes))

        text = f"{times(self.input_shape)} * {times(self.weight_shape)} → {times(self.output_shape)}"
        for name, values in (("stride", self.stride), ("dilation", self.dilation)):
            if any(value != 1 for value in values):
                text += f", {name} {times(values)}"
        if self.padded:
            text += f", padding {', '.join(str(a) if a == b else f'{a}+{b}' for a, b in self.padding)}"
        if self.groups != 1:
            text += f", {self.groups} groups"
        return f"{text}, {self.dtype}"


_PLAIN = {int, str}


def is_plain(value: object) -> bool:
    """Whether a value is of ints and strings alone, or of tuples of them.

    Only these may be looked up: 1 == True == 1.0, so that one accepted problem would let others in.
    """
    kind = type(value)
    if kind is tuple:
        return {*map(type, value)} <= _PLAIN or all(map(is_plain, value))
    return kind in _PLAIN


def _create(input_shape, weight_shape, stride, padding, dilation, groups, dtype) -> ConvGeometry:
    rank = _spatial_rank(input_shape)
    input_shape = checks.shape("input_shape", input_shape, rank + 2, _LAYOUTS[rank])
    weight_shape = checks.shape("weight", weight_shape, rank + 2, WEIGHTS[rank])
    dtype = checks.float_dtype("dtype", dtype)
    groups = checks.integer("groups", groups, 1)
    batch, in_channels, *input_size = input_shape
    out_channels, _, *kernel_size = weight_shape
    _check_sizes(input_shape, weight_shape, groups)
    stride = checks.per_axis("stride", stride, rank, 1)
    dilation = checks.per_axis("dilation", dilation, rank, 1)
    geometry = ConvGeometry(
        batch=batch,
        in_channels=in_channels,
        out_channels=out_channels,
        input_size=tuple(input_size),
        kernel_size=tuple(kernel_size),
        stride=stride,
        dilation=dilation,
        padding=_padding(padding, input_size, kernel_size, stride, dilation),
        groups=groups,
        dtype=dtype,
    )
    _check_extent(geometry)
    return geometry


_create_cached = lru_cache(maxsize=4096)(_create)


def _spatial_rank(input_shape: object) -> int:
    try:
        rank = len(input_shape) - 2
    except TypeError:
        raise TypeError(f"input_shape must be a shape such as (N, C, H, W), got {input_shape!r}") from None
    if rank not in _LAYOUTS:
        expected = " or ".join(_LAYOUTS.values())
        raise ValueError(f"input_shape must be {expected}, got {len(input_shape)} axes: {input_shape}")
    return rank


def _check_sizes(input_shape, weight_shape, groups) -> None:
    in_channels, (out_channels, group_channels, *_) = input_shape[1], weight_shape
    if min(input_shape[1:]) < 1:
        raise ValueError(f"input must have at least one channel and one pixel, got shape {input_shape}")
    if min(weight_shape) < 1:
        raise ValueError(f"weight must not be empty, got shape {weight_shape}")
    if in_channels % groups or out_channels % groups:
        raise ValueError(
            f"groups must divide the input and output channels, got groups={groups}"
            f" with {in_channels} input and {out_channels} output channels"
        )
    if group_channels != in_channels // groups:
        raise ValueError(
            f"weight must have {in_channels // groups} input channels a group (the input has {in_channels},"
            f" groups={groups}), got {group_channels}: shape {weight_shape}"
        )


def _padding(padding, input_size, kernel_size, stride, dilation) -> tuple[tuple[int, int], ...]:
    rank = len(input_size)
    if isinstance(padding, str):
        checks.choice("padding", padding, _NAMED_PADDINGS)
        if padding == "valid":
            return ((0, 0),) * rank
        spans = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
        if padding == "full":
            return tuple((span, span) for span in spans)
        totals = [
            max((-(-size // step) - 1) * step + span + 1 - size, 0)
            for size, step, span in zip(input_size, stride, spans, strict=True)
        ]
        return tuple((total // 2, total - total // 2) for total in totals)
    if isinstance(padding, tuple) and any(isinstance(item, tuple) for item in padding):
        if len(padding) != rank:
            raise ValueError(f"padding must have {rank} (low, high) pairs, got {len(padding)}: {padding!r}")
        if not all(isinstance(pair, tuple) for pair in padding):
            raise TypeError(f"padding must be integers or (low, high) pairs, not both, got {padding!r}")
        return tuple(checks.per_axis(f"padding[{axis}]", pair, 2, 0) for axis, pair in enumerate(padding))
    return tuple((amount, amount) for amount in checks.per_axis("padding", padding, rank, 0))


def _check_extent(geometry: ConvGeometry) -> None:
    for axis, (size, (low, high), kernel, dilation) in enumerate(
        zip(geometry.input_size, geometry.padding, geometry.kernel_size, geometry.dilation, strict=True)
    ):
        extent = dilation * (kernel - 1) + 1
        if extent > size + low + high:
            raise ValueError(
                f"weight must fit into the padded input: on spatial axis {axis} the kernel covers {extent}"
                f" (size {kernel}, dilation {dilation}), the input {size} + padding ({low}, {high})"
            )
    padded = [
        size + low + high for size, (low, high) in zip(geometry.input_size, geometry.padding, strict=True)
    ]
    elements = {
        "the padded input": max(geometry.batch, 1) * geometry.in_channels * math.prod(padded),
        "the weight": math.prod(geometry.weight_shape),
        "the output": max(geometry.batch, 1) * geometry.out_channels * math.prod(geometry.output_size),
    }
    for what, count in elements.items():
        if count * geometry.dtype.itemsize > sys.maxsize:
            raise ValueError(f"input_shape and padding are too large: {what} would have {count} elements")
