"""Memory formats: between (N, C, ...) arrays of any strides and the channels-last ones that kernels take."""

from __future__ import annotations

import math

import numpy as np

from fastconv import checks, kernels, threads
from fastconv.memory import aligned_empty, fresh


def moved_last(array: np.ndarray) -> np.ndarray:
    """The (N, ..., C) view of an (N, C, ...) array."""
    return array.transpose(0, *range(2, array.ndim), 1)


def moved_first(array: np.ndarray) -> np.ndarray:
    """The (N, C, ...) view of an (N, ..., C) array."""
    return array.transpose(0, array.ndim - 1, *range(1, array.ndim - 1))


def is_channels_last(x: np.ndarray) -> bool:
    """Whether a result computed from ``x`` is to be channels-last in memory: not where both fit.

    A part of a channels-last image, some of its rows for instance, is channels-last as well.
    """
    return not x.flags.c_contiguous and x.strides[1] == x.itemsize


def is_planar(x: np.ndarray, dtype: np.dtype) -> bool:
    """Whether a kernel for planes can take ``x`` (N, C, ...) as it is."""
    return x.flags.c_contiguous and x.flags.aligned and x.dtype == dtype and x.size > 0


def channels_last(array: np.ndarray, dtype: np.dtype, num_threads: int | None = None) -> np.ndarray:
    """Any (N, C, ...) array as the C-contiguous (N, ..., C) one a kernel takes; a view where it can be."""
    array = checks.kernel_ready(array, np.dtype(dtype))
    last = moved_last(array)
    if last.flags.c_contiguous or not array.flags.c_contiguous or array.itemsize not in (4, 8):
        return np.ascontiguousarray(last)
    result = aligned_empty(last.shape, array.dtype)
    batch, channels, *size = array.shape
    _swap_axes(array.reshape(batch, channels, math.prod(size)), result, num_threads)
    return result


def empty(shape: tuple[int, ...], dtype: np.dtype, x: np.ndarray) -> np.ndarray:
    """An uninitialised (N, C, ...) array, on a cache line, in the memory format of ``x``."""
    if is_channels_last(x):
        return moved_first(fresh((shape[0], *shape[2:], shape[1]), dtype))
    return fresh(shape, dtype)


def like(result: np.ndarray, x: np.ndarray, num_threads: int | None = None) -> np.ndarray:
    """A kernel's C-contiguous (N, ..., C) result as (N, C, ...), in the memory format of ``x``."""
    first = moved_first(result)
    if first.flags.c_contiguous or is_channels_last(x):
        return first
    copy = aligned_empty(first.shape, result.dtype)
    store(result, copy, num_threads)
    return copy


def store(result: np.ndarray, out: np.ndarray, num_threads: int | None = None) -> None:
    """Copy a kernel's C-contiguous (N, ..., C) result to ``out`` (N, C, ...) of any strides."""
    if out.flags.c_contiguous:
        batch, *size, channels = result.shape
        _swap_axes(result.reshape(batch, math.prod(size), channels), out, num_threads)
    else:
        out[...] = moved_first(result)


def _swap_axes(x: np.ndarray, out: np.ndarray, num_threads: int | None) -> None:
    # Bits are moved, not numbers: an int64 passes as the float64 of the same bits.
    kind = np.float64 if x.itemsize == 8 else np.float32
    kernels.active().swap_axes(
        x.view(kind),
        out.reshape(len(x), x.shape[2], x.shape[1]).view(kind),
        threads.for_elements(num_threads, x.size),
    )
