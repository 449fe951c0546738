"""Taps: which positions of an axis each output reads, and with what weight.

A pooling window, an interpolation and the gradient of either read, axis by axis, a few positions for each
output. As sparse matrices, one an axis, they are all the same to the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import NamedTuple

import numpy as np

from fastconv import checks
from fastconv.functional.kept import Newest

# Bytes and number of the Axes that :func:`remembered` keeps.
_MOST_BYTES, _MOST = 1 << 24, 256


class Taps(NamedTuple):
    """A sparse matrix along one axis, row by row.

    Attributes
    ----------
    size : int
        Of the axis it reads.
    start : ndarray of int64, shape (outputs + 1,)
        Output ``o`` owns the entries from ``start[o]`` to ``start[o + 1]``.
    source : ndarray of int64
        The position each entry reads.
    weight : ndarray of float64
        The entry's factor.
    divisor : ndarray of float64, shape (outputs,)
        What an average divides by.
    """

    size: int
    start: np.ndarray
    source: np.ndarray
    weight: np.ndarray
    divisor: np.ndarray


class Axes(NamedTuple):
    """The Taps of D, H and W, one after the other, as the kernels read them.

    Attributes
    ----------
    positions : ndarray of int64
        Of each: ``size``, the number of outputs, ``start``, ``source``.
    factors : ndarray of float64
        Of each: ``divisor``, ``weight``.
    size : tuple of int
        Outputs of each spatial axis.
    most : int
        Entries of an output of W, at least 1.
    """

    positions: np.ndarray
    factors: np.ndarray
    size: tuple[int, ...]
    most: int


def remembered(make_axes: Callable[..., Axes]) -> Callable[..., Axes]:
    """``make_axes``, keeping what it made: the newest, of bounded size, and the last one always.

    An axis of a second of sound has megabytes of taps.
    """
    kept = Newest(_MOST, _MOST_BYTES, lambda axes: axes.positions.nbytes + axes.factors.nbytes)

    @wraps(make_axes)
    def call(*arguments):
        found = kept.get(arguments)
        if found is None:
            found = kept[arguments] = make_axes(*arguments)
            kept.trim(stay=1)
        return found

    return call


def make(size: int, counts: np.ndarray, source: np.ndarray, weight=1.0, divisor=1.0) -> Taps:
    """Taps from how many entries each output has, and the entries."""
    start = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=start[1:])
    arrays = (
        start,
        np.ascontiguousarray(source, np.int64),
        np.array(np.broadcast_to(weight, source.shape), np.float64),
        np.array(np.broadcast_to(divisor, counts.shape), np.float64),
    )
    for array in arrays:
        array.flags.writeable = False
    return Taps(size, *arrays)


_ONE = make(1, np.ones(1, np.int64), np.zeros(1, np.int64))


def three_axes(items: Sequence, other: object) -> tuple:
    """One item for each of D, H and W from those of one to three axes; threads share out D and H."""
    return (other, items[0], other) if len(items) == 1 else (other,) * (3 - len(items)) + tuple(items)


def axes(taps_of, arguments: Sequence[tuple], transpose: bool) -> Axes:
    """The Axes of ``taps_of(*arguments[i])``, one for each spatial axis, or of their transposes."""
    items = [transposed(taps_of, *a) if transpose else taps_of(*a) for a in arguments]
    three = three_axes(items, _ONE)
    positions = np.concatenate(
        [part for item in three for part in ((item.size, len(item.divisor)), item.start, item.source)],
        dtype=np.int64,
    )
    factors = np.concatenate([part for item in three for part in (item.divisor, item.weight)])
    positions.flags.writeable = factors.flags.writeable = False
    most = max(1, int(np.diff(three[2].start).max()))
    return Axes(positions, factors, tuple(len(item.divisor) for item in items), most)


def along_rows(axes: Axes) -> Axes:
    """Axes of one spatial axis, there those of H, as those of W: for planes, whose rows they lie along."""
    ones = (len(_ONE.start) + len(_ONE.source) + 2, len(_ONE.divisor) + len(_ONE.weight))
    positions, factors = (
        np.concatenate([array[:one], array[-one:], array[one:-one]])
        for array, one in zip((axes.positions, axes.factors), ones, strict=True)
    )
    outputs = axes.size[0]
    starts = positions[2 * ones[0] + 2 :][: outputs + 1]
    return Axes(positions, factors, axes.size, max(1, int(np.diff(starts).max())))


def transposed(taps_of, *arguments) -> Taps:
    """The matrix of a gradient: the transpose of ``taps_of(*arguments)``, rows divided by their divisors."""
    taps = taps_of(*arguments)
    outputs = np.repeat(np.arange(len(taps.divisor)), np.diff(taps.start))
    order = np.argsort(taps.source, kind="stable")
    counts = np.bincount(taps.source, minlength=taps.size)
    return make(len(taps.divisor), counts, outputs[order], (taps.weight / taps.divisor[outputs])[order])


def window(
    size: int, outputs: int, kernel: int, stride: int, pair: tuple[int, int], dilation: int, counted: str
) -> Taps:
    """A pooling window; the divisor counts its taps ``"inside"``, all ``"padded"`` ones, or is 1."""
    first = np.arange(outputs) * stride - pair[0]
    positions = first[:, None] + dilation * np.arange(kernel)
    inside = (positions >= 0) & (positions < size)
    counts = inside.sum(axis=1)
    divisor = {"inside": counts, "padded": (positions < size + pair[1]).sum(axis=1), "nothing": 1}[counted]
    return make(size, counts, positions[inside], divisor=divisor)


def adaptive(size: int, outputs: int) -> Taps:
    """Output o of an adaptive pooling reads from ⌊o·size/outputs⌋ to ⌈(o + 1)·size/outputs⌉."""
    index = np.arange(outputs)
    first = index * size // outputs
    counts = -(-(index + 1) * size // outputs) - first
    offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return make(size, counts, np.repeat(first, counts) + offsets, divisor=counts)


class Window(NamedTuple):
    """A checked pooling window, one entry a spatial axis; ``padding`` holds (low, high) pairs."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    ceil_mode: bool

    @classmethod
    def create(cls, rank, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False) -> Window:
        """Check the arguments of a pooling of ``rank`` spatial axes.

        Raises
        ------
        TypeError, ValueError
            If one is of the wrong type or out of range: padding given as integers is at most half of the
            kernel with its holes, as PyTorch demands; pairs are less than all of it.
        """
        kernel = checks.per_axis("kernel_size", kernel_size, rank, 1)
        stride = kernel if stride is None else checks.per_axis("stride", stride, rank, 1)
        dilation = checks.per_axis("dilation", dilation, rank, 1)
        padding = checks.frozen(padding)
        pairs = isinstance(padding, tuple) and any(isinstance(item, tuple) for item in padding)
        if pairs:
            if len(padding) != rank:
                raise ValueError(f"padding must have {rank} (low, high) pairs, got {padding!r}")
            sides = tuple(
                checks.per_axis(f"padding[{axis}]", pair, 2, 0) for axis, pair in enumerate(padding)
            )
        else:
            sides = tuple((amount,) * 2 for amount in checks.per_axis("padding", padding, rank, 0))
        for pair, size, step in zip(sides, kernel, dilation, strict=True):
            extent = step * (size - 1) + 1
            if max(pair) > (extent - 1 if pairs else extent // 2):
                limit = "less than" if pairs else "at most half of"
                raise ValueError(
                    f"padding must be {limit} kernel_size, got padding={padding}, kernel_size={kernel}"
                    + (f", dilation={dilation}" if max(dilation) > 1 else "")
                )
        return cls(kernel, stride, sides, dilation, checks.boolean("ceil_mode", ceil_mode))

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Spatial size of the output: ``(in + low + high − dilation·(kernel − 1) − 1) // stride + 1``.

        With ``ceil_mode`` the division is rounded up, so that a window may be larger than the padded image,
        but no window starts in the padding at the end.

        Raises
        ------
        ValueError
            If the kernel does not fit into the padded image, or a window meets no pixel of the image.
        """
        sizes = []
        for axis, (n, k, s, (low, high), d) in enumerate(
            zip(size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        ):
            room = n + low + high - d * (k - 1) - 1
            outputs = (-(-room // s) if self.ceil_mode else room // s) + 1
            if self.ceil_mode and (outputs - 1) * s >= n + low:
                outputs -= 1
            if n < 1 or outputs < 1:
                raise ValueError(
                    f"kernel_size must fit into the padded image, got kernel_size={self.kernel} for an image"
                    f" of {'×'.join(map(str, size))} with padding={self.padding}, dilation={self.dilation}"
                )
            self._check_no_window_is_empty(axis, n, outputs)
            sizes.append(outputs)
        return tuple(sizes)

    def _check_no_window_is_empty(self, axis: int, size: int, outputs: int) -> None:
        (low, high), dilation = self.padding[axis], self.dilation[axis]
        # Neighbouring taps are at most an image apart, and a window starts before the image's end.
        if dilation <= size and (outputs - 1) * self.stride[axis] - low < size:
            return
        first = np.arange(outputs) * self.stride[axis] - low
        if (np.where(first < 0, first % dilation, first) >= size).any():
            raise ValueError(
                f"padding must leave each window a pixel, got padding={(low, high)}, dilation={dilation}"
                f" on spatial axis {axis} of size {size}"
            )


@remembered
def window_axes(
    shape: Window, size: tuple[int, ...], counted: str = "nothing", transpose: bool = False
) -> Axes:
    """The Axes of a window for an image of some size."""
    items = zip(size, shape.output_size(size), *shape[:4], (counted,) * len(size), strict=True)
    return axes(window, list(items), transpose)


def adaptive_size(output_size: object, size: Sequence[int]) -> tuple[int, ...]:
    """``output_size`` of an adaptive pooling as one number an axis; None keeps the axis."""
    rank, output_size = len(size), checks.frozen(output_size)
    if not isinstance(output_size, tuple):
        output_size = (output_size,) * rank
    filled = [n if o is None else o for o, n in zip(output_size, size, strict=False)]
    if len(output_size) != rank or 0 in size:
        raise ValueError(
            f"output_size must be an integer or {rank} of them (None keeps an axis) for an image that is not"
            f" empty, got {output_size!r} for an image of {'×'.join(map(str, size))}"
        )
    return checks.per_axis("output_size", filled, rank, 1)
