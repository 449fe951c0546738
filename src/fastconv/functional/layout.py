"""Memory formats of images: logical (N, C, H, W) arrays in and out, channels innermost for the kernels."""

from __future__ import annotations

import numpy as np


def channels_last(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """An (N, C, H, W) array as the C-contiguous (N, H, W, C) one a kernel takes; a view where it can be."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1), dtype)


def empty_image(shape: tuple[int, ...], dtype: np.dtype, like: np.ndarray) -> np.ndarray:
    """An uninitialised (N, C, H, W) array: a channels-last view where ``like`` is one, else C-contiguous."""
    if not like.transpose(0, 2, 3, 1).flags.c_contiguous:
        return np.empty(shape, dtype)
    return np.empty((shape[0], *shape[2:], shape[1]), dtype).transpose(0, 3, 1, 2)
