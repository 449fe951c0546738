"""Pooling of images of one form by Axes: what pooling, resampling and their gradients compute with."""

from __future__ import annotations

import math

import numpy as np

from fastconv import kernels, threads
from fastconv.functional.taps import Axes, along_rows, three_axes
from fastconv.layout import channels_last, is_planar, like
from fastconv.memory import Workspaces, aligned_empty, allocator, give_back

# The kernels compare positions as wide as the elements.
_LARGEST_IMAGE = 2**31 - 1
# Where 1-D and 2-D images have axes of size 1, after the first one; threads share out D and H.
_MISSING = {1: (None, slice(None), None), 2: (None,), 3: ()}


def _five_axes(array: np.ndarray) -> np.ndarray:
    """The (N, D, H, W, C) form of an (N, ..., C) array."""
    return array[(slice(None), *_MISSING[array.ndim - 2])]


# Rows of one axis that are planes of their own: so many, for whom the tables are made, and so long at most,
# for tables are scratch memory. Not by the number of threads, on which no bit depends.
_FEWEST_ROWS, _LONGEST_ROW = 32, 1 << 16


class Pooling:
    """Pooling of all images (N, C, ...) like ``x``, of float32 or float64; ``pooling(x)`` computes it.

    Weighted sums where there is a ``divisor``, 0 standing for those of the Axes; else the largest pixels,
    and, if ``indices`` are wanted, also where those are. Results are in the memory format of ``x``.
    """

    def __init__(
        self, x: np.ndarray, axes: Axes, divisor: float | None, num_threads: int | None, indices: bool = False
    ):
        if indices and math.prod(x.shape[2:]) > _LARGEST_IMAGE:
            raise ValueError(f"x must have at most 2³¹ − 1 pixels a channel, got shape {x.shape}")
        self._kernels, self._axes, self._divisor, self._indices = kernels.active(), axes, divisor, indices
        batch, channels, *size = x.shape
        planes, self._dtype = batch * channels, x.dtype
        elements = x.size if divisor is None else max(x.size, planes * math.prod(axes.size))
        self._num_threads = threads.resolve(num_threads)
        self._count = min(self._num_threads, 1 + elements // threads.ELEMENTS_PER_THREAD)
        self._is_planar = is_planar(x, x.dtype)
        self._planes = [(planes, *three_axes(sizes, 1)) for sizes in (tuple(size), axes.size)]
        self._plane_axes = axes
        if len(size) == 1 and planes >= _FEWEST_ROWS and axes.size[0] <= _LONGEST_ROW and self._is_planar:
            self._planes = [(planes, 1, 1, *sizes) for sizes in (size, axes.size)]
            self._plane_axes = along_rows(axes)
        self._empty = allocator((batch, channels, *axes.size), x.dtype)
        self._last = (batch, *axes.size, channels)
        self._workspaces = Workspaces(x.dtype)

    def __call__(self, x: np.ndarray):
        count = self._count
        if count > 1:
            count = threads.team(count)
        if self._is_planar:
            y = self._empty()
            indices = np.empty(y.shape, np.int64) if self._indices else None
            if self._pool_planes(x, y, indices, count):
                return y if indices is None else (y, indices)
            self._is_planar = False  # nothing was done: these Axes are not for planes
        return self._pool_pixels(x, count)

    def _pool_planes(self, x: np.ndarray, y: np.ndarray, indices: np.ndarray | None, count: int) -> bool:
        read, written = self._planes
        lanes = self._kernels.vector_bytes() // x.itemsize
        # The taps of all columns, four vectors for each and one of divisors. For each thread four lines; or
        # the largest, and where those are, of eight rows of windows and their largest.
        width = -(-written[3] // lanes) * lanes
        columns = (4 * self._plane_axes.most + 1) * width
        per_thread = 18 * width if self._indices else 4 * -(-max(read[3], 2 * lanes) // lanes) * lanes
        workspace = self._workspaces.take(columns + count * per_thread)
        try:
            return self._kernels.pool_planes(
                x.reshape(read), y.reshape(written), None if indices is None else indices.reshape(written),
                self._plane_axes, self._divisor is None, self._divisor or 0, workspace, per_thread, count,
            )  # fmt: skip
        finally:
            self._workspaces.give(workspace)

    def _pool_pixels(self, x: np.ndarray, count: int):
        last = channels_last(x, self._dtype, self._num_threads)
        image, y = _five_axes(last), aligned_empty(self._last, self._dtype)
        images, indices = _five_axes(y), None
        if self._divisor is None:
            indices = np.empty(y.shape, np.int64) if self._indices else None
            at = None if indices is None else _five_axes(indices)
            self._kernels.max_pool(image, images, at, self._axes, count)
        else:
            # A line for each thread; four int64 for each column of the output.
            per_thread = image.shape[3] * image.shape[4]
            elements = count * per_thread + images.shape[3] * 4 * 8 // self._dtype.itemsize
            workspace = self._workspaces.take(elements)
            self._kernels.resample(image, images, self._axes, self._divisor, workspace, per_thread, count)
            self._workspaces.give(workspace)
        result = like(y, x, self._num_threads)
        # What was only on the way is left to the next call: fresh memory takes longer than pooling.
        for array, other in ((last, x), (y, result)):
            if not np.may_share_memory(array, other):
                give_back(array)
        return result if indices is None else (result, like(indices, x, self._num_threads))
