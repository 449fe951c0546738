"""Pixel shuffle (sub-pixel convolution's last step), its inverse, and a convolution that ends in one.

Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional
Neural Network", CVPR 2016.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from fastconv import checks, kernels, threads
from fastconv.layout import channels_last, is_channels_last, moved_first, moved_last
from fastconv.memory import fresh

MODES = ("CRD", "DCR")
_IMAGES = "(N, C, H, W)"


def shuffled_shape(shape, factor):
    """The shape after :func:`pixel_shuffle`.

    Raises
    ------
    ValueError
        If factor² does not divide the channels.
    """
    batch, channels, height, width = shape
    if channels % factor**2:
        raise ValueError(
            f"x must have a multiple of upscale_factor² = {factor**2} channels, got shape {shape}"
        )
    return (batch, channels // factor**2, height * factor, width * factor)


def unshuffled_shape(shape, factor):
    """The shape after :func:`pixel_unshuffle`.

    Raises
    ------
    ValueError
        If the factor does not divide height and width.
    """
    batch, channels, height, width = shape
    if height % factor or width % factor:
        raise ValueError(f"x must have a height and width of multiples of {factor}, got shape {shape}")
    return (batch, channels * factor**2, height // factor, width // factor)


def _image(x: object) -> np.ndarray:
    """``x`` in one of the two memory formats that a kernel takes; a copy only where it must be."""
    x = checks.float_array("x", x, 4, _IMAGES)
    x = checks.kernel_ready(x, checks.float_dtype("x", x.dtype))
    if is_channels_last(x):
        return moved_first(channels_last(x, x.dtype))
    return np.ascontiguousarray(x)


def _moved(
    view: np.ndarray, shape: tuple[int, ...], last: bool, split: str, num_threads: int | None,
    out: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """A six-axis view copied to ``shape``; ``last``: the axes that ``split`` calls c innermost in memory."""
    given = None if out is None else moved_last(out) if last else out
    batch, channels, height, width = shape
    if last:
        order = [axis for kind in "nsc" for axis, letter in enumerate(split) if letter == kind]
        view, shape = view.transpose(order), (batch, height, width, channels)
    straight = given is not None and given.flags.c_contiguous
    result = given if straight else fresh(shape, view.dtype)
    if result.size:
        in_memory, steps = _steps(view.shape, view.strides, view.itemsize)
        flat = view.transpose(in_memory).reshape(-1)
        count = threads.for_elements(num_threads, result.size)
        kernels.active().move_axes(flat, steps, result.reshape(-1), count)
    result = moved_first(result) if last else result
    if out is None:
        return result
    if not straight:
        out[...] = result
    return out


@lru_cache(maxsize=256)
def _steps(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> tuple[list[int], np.ndarray]:
    """A view's axes as they lie in memory; and of each its size, its step there and that in a copy.

    After five of them the one with step 1 in the view, and that with step 1 in the copy, if it is another.
    """
    written = np.cumprod((1, *shape[:0:-1]))[::-1]
    axes = [(size, step // itemsize, to) for size, step, to in zip(shape, strides, written, strict=True)]
    column = next((axis for axis in axes if axis[0] > 1 and axis[1] == 1), axes[-1])
    row, missing = axes[-1], (1, 0, 0)
    axes.remove(column)
    if column is row:
        row = missing
    else:
        axes = [*axes[:-1], missing]
    in_memory = sorted(range(len(shape)), key=lambda axis: -strides[axis])
    return in_memory, np.array([*axes, column, row], np.int64)


def pixel_shuffle(x, upscale_factor, *, mode="CRD", num_threads=None):
    """Channels into space: (N, C·r², H, W) to (N, C, H·r, W·r). As ``torch.nn.functional.pixel_shuffle``.

    ``y[n, c, h·r + i, w·r + j] = x[n, k, h, w]`` with ``k = c·r² + i·r + j`` in mode "CRD" and
    ``k = (i·r + j)·C + c`` in mode "DCR": ONNX's two modes of DepthToSpace, of which PyTorch has the first.

    Parameters
    ----------
    x : array of float32, float64 or float16 (computed as float32), shape (N, C·r², H, W)
    upscale_factor : int
        r.
    mode : {"CRD", "DCR"}, default "CRD"
    num_threads : int, optional
        The result does not depend on it.

    Returns
    -------
    ndarray, shape (N, C, H·r, W·r)
        A channels-last view where ``x`` is one, else C-contiguous.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or range, or r² does not divide the channels.
    """
    x = _image(x)
    r = checks.integer("upscale_factor", upscale_factor, 1)
    checks.choice("mode", mode, MODES)
    return shuffle(x, r, mode, num_threads)


def shuffle(
    x: np.ndarray, r: int, mode: str, num_threads: int | None, out: np.ndarray | None = None
) -> np.ndarray:
    """:func:`pixel_shuffle` of an ``x`` in a memory format that a kernel takes; ``out`` has any strides."""
    batch, channels, *_ = shape = shuffled_shape(x.shape, r)
    height, width = x.shape[2:]
    if mode == "CRD":
        view = x.reshape(batch, channels, r, r, height, width).transpose(0, 1, 4, 2, 5, 3)
    else:
        view = x.reshape(batch, r, r, channels, height, width).transpose(0, 3, 4, 1, 5, 2)
    return _moved(view, shape, is_channels_last(x), "ncssss", num_threads, out)


def pixel_unshuffle(x, downscale_factor, *, mode="CRD", num_threads=None):
    """Space into channels: (N, C, H·r, W·r) to (N, C·r², H, W).

    The inverse of :func:`pixel_shuffle`, and so its gradient; as ``torch.nn.functional.pixel_unshuffle``.

    Parameters
    ----------
    x : array of float32, float64 or float16 (computed as float32), shape (N, C, H·r, W·r)
    downscale_factor : int
        r.
    mode : {"CRD", "DCR"}, default "CRD"
        "DCR" is ONNX's SpaceToDepth.
    num_threads : int, optional
        The result does not depend on it.

    Returns
    -------
    ndarray, shape (N, C·r², H, W)
        A channels-last view where ``x`` is one, else C-contiguous.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or range, or r does not divide height and width.
    """
    x = _image(x)
    r = checks.integer("downscale_factor", downscale_factor, 1)
    checks.choice("mode", mode, MODES)
    batch, _, height, width = shape = unshuffled_shape(x.shape, r)
    split = x.reshape(batch, x.shape[1], height, r, width, r)
    if mode == "CRD":
        return _moved(split.transpose(0, 1, 3, 5, 2, 4), shape, is_channels_last(x), "ncccss", num_threads)
    return _moved(split.transpose(0, 3, 5, 1, 2, 4), shape, is_channels_last(x), "ncccss", num_threads)
