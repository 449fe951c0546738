"""Sums over channels and affine maps of them, in the two layouts that normalisations meet.

``Rows`` are channels-last pixels, vectors over channels; ``Runs`` are planes, vectors along their pixels.
"""

from __future__ import annotations

import math

import numpy as np

from fastconv import kernels, threads
from fastconv.layout import channels_last, is_channels_last, is_planar, like, moved_first, moved_last, store
from fastconv.memory import aligned_empty, allocator, fresh

# Elements whose sums are taken together: 32 KiB of float32, so that the second look at a block, for its
# variance, finds it in the L1 cache. A constant, so that sums never depend on threads.
_BLOCK_ELEMENTS = 8192
# But so many rows at least: a block's sums are doubles, to be joined.
_BLOCK_ROWS = 32
# Pixels from which on a plane is worth a run of its own.
_MIN_PIXELS = 32


def by_channel(x: np.ndarray, num_threads: int | None) -> Rows | Runs:
    """``x`` (N, C, ...) where it lies if a kernel can take it so."""
    return Runs(x, num_threads) if is_by_planes(x) else Rows(x, num_threads)


class Planes:
    """Normalisation of planes like those of ``x`` (N, C, ...), C-contiguous, by constants of channels."""

    def __init__(self, x: np.ndarray, num_threads: int | None):
        self._kernels, self._count = kernels.active(), threads.for_elements(num_threads, x.size)
        self._runs = (math.prod(x.shape[:2]), math.prod(x.shape[2:]))
        self._empty = allocator(x.shape, x.dtype)

    def __call__(self, x: np.ndarray, mean, var, weight, bias, eps: float) -> np.ndarray:
        """(x − mean) / √(var + eps) · weight + bias, of arrays (C,) in the dtype of ``x``."""
        y = self._empty()
        count = self._count if self._count == 1 else threads.team(self._count)
        self._kernels.normalize_planes(
            x.reshape(self._runs), mean, var, weight, bias, eps, y.reshape(self._runs), count
        )
        return y


def is_by_planes(x: np.ndarray) -> bool:
    """Whether a kernel takes the planes of ``x`` (N, C, ...), whose channels have constants of their own."""
    return is_planar(x, x.dtype) and math.prod(x.shape[2:]) >= _MIN_PIXELS


def by_image(x: np.ndarray, num_threads: int | None) -> Rows | Runs:
    """``x`` (N, C, ...) in its memory format, for statistics and constants of each image."""
    return Rows(x, num_threads, images=True) if is_channels_last(x) else Runs(x, num_threads)


def joined(means: np.ndarray, squares: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and biased variance of columns, from means and Σ (x − mean)² of their parts (parts, columns).

    Chan, Golub, LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.
    """
    weights = sizes[:, None] / sizes.sum()
    mean = (weights * means).sum(axis=0)
    return mean, squares.sum(axis=0) / sizes.sum() + (weights * (means - mean) ** 2).sum(axis=0)


def normalized_runs(
    runs: np.ndarray,
    pixels: int,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    eps: float,
    count: int,
    wanted: bool = True,
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """Each of ``runs`` (R, L) minus its mean, over its deviation; means and 1 / √(variance + eps), (R,).

    Each ``pixels`` elements of a run have their own weight and bias, of which some runs take all, again and
    again. The first result is None unless ``wanted``; ``count`` threads.
    """
    size = runs.shape[1]
    if weight is None and bias is None:
        weight, bias, pixels = np.ones(1), np.zeros(1), size
    out = fresh(runs.shape, runs.dtype) if wanted else None
    mean, inverse = np.empty((2, len(runs)))
    if runs.size:
        parts = np.empty((count, -(-size // _BLOCK_ELEMENTS), 2))
        parameters = _parameters(weight, bias, runs.dtype)
        kernels.active().normalize_runs(runs, *parameters, eps, out, mean, inverse, parts, pixels, count)
    return out, mean, inverse


def layer_gradients(
    grad: np.ndarray, runs: np.ndarray, weight: np.ndarray | None, eps: float, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gradients of :func:`normalized_runs`, a weight for each element, by ``runs``, weight and bias."""
    _, mean, inverse = normalized_runs(runs, 1, None, None, eps, count, wanted=False)
    out, size = fresh(runs.shape, runs.dtype), runs.shape[1]
    sums = np.zeros((-(-len(runs) // _BLOCK_ROWS), 2, size), runs.dtype)
    if runs.size:
        weight = np.ones(size, runs.dtype) if weight is None else np.ascontiguousarray(weight, runs.dtype)
        kernels.active().layer_norm_grad(
            grad, runs, weight.ravel(), mean, inverse, out, sums, _BLOCK_ROWS, count
        )
    by_weight, by_bias = sums.sum(axis=0, dtype=np.float64).astype(runs.dtype)
    return out, by_weight, by_bias


def _parameters(weight: np.ndarray | None, bias: np.ndarray | None, dtype: np.dtype) -> list[np.ndarray]:
    """Both as a kernel takes them; of one that is None the default, in the other's shape."""
    weight = np.ones_like(bias) if weight is None else weight
    bias = np.zeros_like(weight) if bias is None else bias
    return [np.ascontiguousarray(array, dtype).ravel() for array in (weight, bias)]


def _about_mean(total, product, center, mean) -> tuple[np.ndarray, np.ndarray]:
    """Σ g and Σ g · (x − mean) from Σ g · (x − center), where the center is the rounded mean."""
    return total, product + total * (center - mean)


class Rows:
    """x (N, C, ...) as rows, (1, N·M, C), or those of each of the ``images``, (N, M, C).

    Constants are (C,), one a channel, or, with ``images``, (N, C).
    """

    def __init__(self, x: np.ndarray, num_threads: int | None, images: bool = False):
        self._format, self._threads = x, threads.for_elements(num_threads, x.size)
        self.count = math.prod(x.shape[:1] + x.shape[2:])
        self._shape = (len(x) if images else 1, x.shape[1])
        self._pixels = math.prod(x.shape[2:]) if images else self.count
        self._rows = self._as_rows(x)
        self._block = max(_BLOCK_ROWS, _BLOCK_ELEMENTS // max(x.shape[1], 1))
        self._blocks = -(-self._pixels // self._block)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and biased variance of each channel, (C,), without ``images``."""
        moments, parts = np.empty((2, self._shape[1])), np.empty((self._blocks, 2, self._shape[1]))
        kernels.active().channel_moments(self._rows[0], moments, parts, self._block, self._threads)
        return moments[0], moments[1] / self._pixels

    def products(self, grad: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Σ grad and Σ grad · (x − mean) of each channel, (1, C), or of each image's, (N, C)."""
        totals, products = np.empty((2, self._shape[0], self._blocks, self._shape[1]))
        (center,) = self._cast(mean)
        wide = np.ascontiguousarray(np.broadcast_to(mean, self._shape))
        kernels.active().channel_products(
            self._as_rows(grad), self._rows, wide, totals, products, self._block, self._threads
        )
        return _about_mean(totals.sum(axis=1), products.sum(axis=1), center, mean)

    def normalized(self, groups: int, weight, bias, eps: float, wanted: bool = True):
        """Each image's groups of channels minus their mean, over their deviation, as :func:`normalized_runs`.

        In the memory format of ``x``; means and 1 / √(variance + eps) are (N, groups).
        """
        batch, channels = self._shape
        if weight is None and bias is None:
            weight = np.ones(channels)
        out = fresh(self._rows.shape, self._rows.dtype) if wanted else None
        mean, inverse = np.empty((2, batch, groups))
        if self._rows.size:
            kernels.active().normalize_images(
                self._rows, *_parameters(weight, bias, self._rows.dtype), eps, out, mean, inverse,
                np.empty((self._threads, 2 * (self._blocks + 1) * channels)),
                np.empty((self._threads, 2, channels), self._rows.dtype), self._block, self._threads,
            )  # fmt: skip
        return self._image(out) if wanted else None, mean, inverse

    def scaled(self, scale, shift, other: np.ndarray | None = None, mean=0.0) -> np.ndarray:
        """(x − mean) · scale + shift, or ``other`` instead of x; in the memory format of ``x``."""
        rows = self._rows if other is None else self._as_rows(other)
        out = fresh(rows.shape, rows.dtype)
        constants = self._cast(mean, scale, shift)
        kernels.active().scale_shift(rows, *constants, out, self._block, self._threads)
        return self._image(out)

    def combined(self, grad: np.ndarray, factor, mean, slope, shift) -> np.ndarray:
        """grad · factor + (x − mean) · slope + shift, in the memory format of ``x``."""
        out = fresh(self._rows.shape, self._rows.dtype)
        constants = self._cast(factor, mean, slope, shift)
        kernels.active().combine_gradient(
            self._as_rows(grad), self._rows, *constants, out, self._block, self._threads
        )
        return self._image(out)

    def _as_rows(self, array: np.ndarray) -> np.ndarray:
        rows = channels_last(array, array.dtype, self._threads)
        return rows.reshape(self._shape[0], self._pixels, self._shape[1])

    def _image(self, rows: np.ndarray) -> np.ndarray:
        batch, channels, *size = self._format.shape
        return like(rows.reshape(batch, *size, channels), self._format, self._threads)

    def _cast(self, *arrays: np.ndarray) -> list[np.ndarray]:
        return [np.broadcast_to(array, self._shape).astype(self._rows.dtype, order="C") for array in arrays]


class Runs:
    """x (N, C, ...) as runs (N·C, P), one a plane. Constants are (N, C) or (C,)."""

    def __init__(self, x: np.ndarray, num_threads: int | None):
        self._format, self._threads = x, threads.for_elements(num_threads, x.size)
        self.count = math.prod(x.shape[:1] + x.shape[2:])
        self._shape, self._pixels = x.shape[:2], math.prod(x.shape[2:])
        self._runs = self._as_runs(x)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and biased variance of each channel, (C,)."""
        pieces = -(-self._pixels // _BLOCK_ELEMENTS)
        sizes = np.diff(np.arange(pieces + 1) * self._pixels // max(pieces, 1))
        means, squares = np.empty((2, len(self._runs), pieces))
        kernels.active().run_moments(self._runs, means, squares, self._threads)
        batch, channels = self._shape
        parts = (
            array.reshape(batch, channels, pieces).transpose(0, 2, 1).reshape(batch * pieces, channels)
            for array in (means, squares)
        )
        return joined(*parts, np.tile(sizes, batch))

    def products(self, grad: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Σ grad and Σ grad · (x − mean) of each plane, (N, C)."""
        totals, products = np.empty((2, len(self._runs)))
        (center,) = self._cast(mean)
        kernels.active().run_products(
            self._as_runs(grad), self._runs, center, totals, products, self._threads
        )
        sums = (array.reshape(self._shape) for array in (totals, products, center))
        return _about_mean(*sums, mean)

    def normalized(self, groups: int, weight, bias, eps: float, wanted: bool = True):
        """As that of :class:`Rows`: a group's planes are a run."""
        batch, channels = self._shape
        runs = self._runs.reshape(batch * groups, channels // groups * self._pixels)
        out, *moments = normalized_runs(runs, self._pixels, weight, bias, eps, self._threads, wanted)
        return self._image(out) if wanted else None, *(array.reshape(batch, groups) for array in moments)

    def scaled(self, scale, shift, other: np.ndarray | None = None, mean=0.0) -> np.ndarray:
        """(x − mean) · scale + shift, or ``other`` instead of x; in the memory format of ``x``."""
        runs = self._runs if other is None else self._as_runs(other)
        out = fresh(runs.shape, runs.dtype)
        kernels.active().scale_runs(runs, *self._cast(mean, scale, shift), out, self._threads)
        return self._image(out)

    def combined(self, grad: np.ndarray, factor, mean, slope, shift) -> np.ndarray:
        """grad · factor + (x − mean) · slope + shift, in the memory format of ``x``."""
        out = fresh(self._runs.shape, self._runs.dtype)
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
