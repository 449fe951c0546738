"""Sums over channels and affine maps of them, in the two layouts that normalisations meet.

``Rows`` are channels-last pixels, vectors over channels; ``Runs`` are planes, vectors along their pixels.
"""

from __future__ import annotations

import math

import numpy as np

from fastconv import kernels, threads
from fastconv.layout import channels_last, is_channels_last, is_planar, like, moved_first, moved_last, store
from fastconv.memory import aligned_empty

# Elements whose sums are taken together: 32 KiB of float32, so that the second look at a block, for its
# variance, finds it in the L1 cache. A constant, so that sums never depend on threads.
_BLOCK_ELEMENTS = 8192
# Pixels from which on a plane is worth a run of its own.
_MIN_PIXELS = 32


def by_channel(x: np.ndarray, num_threads: int | None) -> Rows | Runs:
    """``x`` (N, C, ...) where it lies if a kernel can take it so."""
    planar = is_planar(x, x.dtype) and math.prod(x.shape[2:]) >= _MIN_PIXELS
    return (Runs if planar else Rows)(x, num_threads)


def joined(means: np.ndarray, squares: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and biased variance of columns, from means and Σ (x − mean)² of their parts (parts, columns).

    Chan, Golub, LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.
    """
    weights = sizes[:, None] / sizes.sum()
    mean = (weights * means).sum(axis=0)
    return mean, squares.sum(axis=0) / sizes.sum() + (weights * (means - mean) ** 2).sum(axis=0)


class Rows:
    """x (N, C, ...) as rows (M, C). Constants are (C,), one a channel."""

    def __init__(self, x: np.ndarray, num_threads: int | None):
        self._format, self._threads = x, threads.for_elements(num_threads, x.size)
        self.count = math.prod(x.shape[:1] + x.shape[2:])
        self._rows = self._as_rows(x)
        self._block = max(1, _BLOCK_ELEMENTS // max(x.shape[1], 1))
        self._sizes = np.full(-(-self.count // self._block), self._block)
        if len(self._sizes):
            self._sizes[-1] = self.count - self._block * (len(self._sizes) - 1)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and biased variance of each channel."""
        means, squares = np.empty((2, len(self._sizes), self._rows.shape[1]))
        kernels.active().channel_moments(self._rows, means, squares, self._block, self._threads)
        return joined(means, squares, self._sizes)

    def products(self, grad: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Σ grad and Σ grad · (x − mean) of each channel."""
        totals, products = np.empty((2, len(self._sizes), len(mean)))
        kernels.active().channel_products(
            self._as_rows(grad), self._rows, *self._cast(mean), totals, products, self._block, self._threads
        )
        return totals.sum(axis=0), products.sum(axis=0)

    def scaled(self, scale: np.ndarray, shift: np.ndarray, other: np.ndarray | None = None) -> np.ndarray:
        """x · scale + shift, or ``other`` instead of x; in the memory format of ``x``."""
        rows = self._rows if other is None else self._as_rows(other)
        out = np.empty_like(rows)
        kernels.active().scale_shift(rows, *self._cast(scale, shift), out, self._block, self._threads)
        return self._image(out)

    def combined(self, grad: np.ndarray, factor, mean, slope, shift) -> np.ndarray:
        """grad · factor + (x − mean) · slope + shift, in the memory format of ``x``."""
        out = np.empty_like(self._rows)
        constants = self._cast(factor, mean, slope, shift)
        kernels.active().combine_gradient(
            self._as_rows(grad), self._rows, *constants, out, self._block, self._threads
        )
        return self._image(out)

    def _as_rows(self, array: np.ndarray) -> np.ndarray:
        return channels_last(array, array.dtype, self._threads).reshape(self.count, array.shape[1])

    def _image(self, rows: np.ndarray) -> np.ndarray:
        batch, channels, *size = self._format.shape
        return like(rows.reshape(batch, *size, channels), self._format, self._threads)

    def _cast(self, *arrays: np.ndarray) -> list[np.ndarray]:
        return [array.astype(self._rows.dtype, copy=False) for array in arrays]


class Runs:
    """x (N, C, ...) as runs (N·C, P), one a plane. Constants are (N, C) or (C,)."""

    def __init__(self, x: np.ndarray, num_threads: int | None):
        self._format, self._threads = x, threads.for_elements(num_threads, x.size)
        self.count = math.prod(x.shape[:1] + x.shape[2:])
        self._shape, self._pixels = x.shape[:2], math.prod(x.shape[2:])
        self._runs = self._as_runs(x)

    def moments(self, groups: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Mean and biased variance of each channel, (C,); or of an image's groups of them, (N, groups)."""
        pieces = -(-self._pixels // _BLOCK_ELEMENTS)
        sizes = np.diff(np.arange(pieces + 1) * self._pixels // max(pieces, 1))
        means, squares = np.empty((2, len(self._runs), pieces))
        kernels.active().run_moments(self._runs, means, squares, self._threads)
        batch, channels = self._shape
        if groups is None:
            order, axes, shape = (batch, channels, pieces), (0, 2, 1), (channels,)
        else:
            shape = (batch, groups)
            order, axes = (batch * groups, channels // groups, pieces), (1, 2, 0)
        sizes = np.tile(sizes, order[axes[0]])
        parts = (
            array.reshape(order).transpose(axes).reshape(len(sizes), math.prod(shape))
            for array in (means, squares)
        )
        return tuple(array.reshape(shape) for array in joined(*parts, sizes))

    def products_of_planes(self, grad: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Σ grad and Σ grad · (x − mean) of each plane, (N, C)."""
        totals, products = np.empty((2, len(self._runs)))
        kernels.active().run_products(
            self._as_runs(grad), self._runs, *self._cast(mean), totals, products, self._threads
        )
        return totals.reshape(self._shape), products.reshape(self._shape)

    def products(self, grad: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Σ grad and Σ grad · (x − mean) of each channel."""
        return tuple(array.sum(axis=0) for array in self.products_of_planes(grad, mean))

    def scaled(self, scale, shift, other: np.ndarray | None = None, mean=0.0) -> np.ndarray:
        """(x − mean) · scale + shift, or ``other`` instead of x; in the memory format of ``x``."""
        runs = self._runs if other is None else self._as_runs(other)
        out = aligned_empty(runs.shape, runs.dtype)
        kernels.active().scale_runs(runs, *self._cast(mean, scale, shift), out, self._threads)
        return self._image(out)

    def combined(self, grad: np.ndarray, factor, mean, slope, shift) -> np.ndarray:
        """grad · factor + (x − mean) · slope + shift, in the memory format of ``x``."""
        out = aligned_empty(self._runs.shape, self._runs.dtype)
        constants = self._cast(factor, mean, slope, shift)
        kernels.active().combine_runs(self._as_runs(grad), self._runs, *constants, out, self._threads)
        return self._image(out)

    def _as_runs(self, array: np.ndarray) -> np.ndarray:
        last = moved_last(array)
        if last.flags.c_contiguous and not array.flags.c_contiguous:
            array = aligned_empty(array.shape, array.dtype)
            store(last, array, self._threads)
        return np.ascontiguousarray(array).reshape(math.prod(self._shape), self._pixels)

    def _image(self, runs: np.ndarray) -> np.ndarray:
        image = runs.reshape(self._format.shape)
        if is_channels_last(self._format):
            return moved_first(channels_last(image, image.dtype, self._threads))
        return image

    def _cast(self, *arrays: np.ndarray) -> list[np.ndarray]:
        return [np.broadcast_to(array, self._shape).astype(self._runs.dtype).ravel() for array in arrays]
