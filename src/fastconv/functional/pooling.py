"""Max and average pooling in one to three dimensions, fixed and adaptive windows, and their gradients."""

from __future__ import annotations

import math

import numpy as np

from fastconv import checks, kernels, threads
from fastconv.functional import taps
from fastconv.functional.taps import Window, adaptive_size
from fastconv.layout import channels_last, is_planar, like
from fastconv.memory import aligned_empty

SHAPES = {1: "(N, C, L)", 2: "(N, C, H, W)", 3: "(N, C, D, H, W)"}
# The kernels compare positions as wide as the elements.
_LARGEST_IMAGE = 2**31 - 1


def _image(rank: int, x: object) -> np.ndarray:
    return checks.float_array("x", x, rank + 2, SHAPES[rank])


# Where 1-D and 2-D images have axes of size 1, after the first one; threads share out D and H.
_MISSING = {1: (None, slice(None), None), 2: (None,), 3: ()}


def _five_axes(array: np.ndarray) -> np.ndarray:
    """The (N, D, H, W, C) form of an (N, ..., C) array."""
    return array[(slice(None), *_MISSING[array.ndim - 2])]


def _planes(array: np.ndarray) -> np.ndarray:
    """The (N·C, D, H, W) form of a C-contiguous (N, C, ...) array."""
    return array.reshape(-1, *array.shape[2:])[(slice(None), *_MISSING[array.ndim - 2])]


def _pooled_planes(
    x: np.ndarray,
    y: np.ndarray,
    indices: np.ndarray | None,
    axes: taps.Axes,
    divisor: float | None,
    count: int,
) -> bool:
    """Pool the planes of ``x`` to those of ``y``; False, and nothing done, where ``axes`` are not for planes.

    The largest pixels, without a ``divisor``.
    """
    lanes = kernels.active().vector_bytes() // x.itemsize
    # The taps of all columns, four vectors for each and one of divisors. For each thread four lines; or the
    # largest, and where those are, of eight rows of windows and their largest.
    width = -(-y.shape[-1] // lanes) * lanes
    columns = (4 * axes.most + 1) * width
    per_thread = 4 * -(-max(x.shape[-1], 2 * lanes) // lanes) * lanes if indices is None else 18 * width
    return kernels.active().pool_planes(
        _planes(x), _planes(y), None if indices is None else _planes(indices), axes, divisor is None,
        divisor or 0, aligned_empty((columns + count * per_thread,), x.dtype), per_thread, count,
    )  # fmt: skip


def _largest(x: np.ndarray, axes: taps.Axes, return_indices: bool, num_threads: int | None):
    """Max pooling."""
    dtype = checks.float_dtype("x", x.dtype)
    if return_indices and math.prod(x.shape[2:]) > _LARGEST_IMAGE:
        raise ValueError(f"x must have at most 2³¹ − 1 pixels a channel, got shape {x.shape}")
    count = threads.for_elements(num_threads, x.size)
    if is_planar(x, dtype):
        y = aligned_empty((*x.shape[:2], *axes.size), dtype)
        indices = np.empty(y.shape, np.int64) if return_indices else None
        if _pooled_planes(x, y, indices, axes, None, count):
            return (y, indices) if return_indices else y
    y = aligned_empty((x.shape[0], *axes.size, x.shape[1]), dtype)
    indices = np.empty(y.shape, np.int64) if return_indices else None
    kernels.active().max_pool(
        _five_axes(channels_last(x, dtype, num_threads)),
        _five_axes(y),
        _five_axes(indices) if return_indices else None,
        axes,
        count,
    )
    y = like(y, x, num_threads)
    return (y, like(indices, x, num_threads)) if return_indices else y


def resampled(x: np.ndarray, axes: taps.Axes, divisor: float, num_threads: int | None) -> np.ndarray:
    """The weighted sums of ``axes`` of ``x`` (N, C, ...), in its memory format."""
    dtype = checks.float_dtype("x", x.dtype)
    batch, channels = x.shape[:2]
    count = threads.for_elements(num_threads, max(x.size, batch * channels * math.prod(axes.size)))
    if is_planar(x, dtype):
        y = aligned_empty((batch, channels, *axes.size), dtype)
        if _pooled_planes(x, y, None, axes, divisor, count):
            return y
    y = aligned_empty((batch, *axes.size, channels), dtype)
    image, images = _five_axes(channels_last(x, dtype, num_threads)), _five_axes(y)
    # A line for each thread; four int64 for each column of the output.
    per_thread = image.shape[3] * channels
    workspace = aligned_empty((count * per_thread + images.shape[3] * 4 * 8 // dtype.itemsize,), dtype)
    kernels.active().resample(image, images, axes, divisor, workspace, per_thread, count)
    return like(y, x, num_threads)


def gradient(name: str, value: object, shape: tuple[int, ...]) -> np.ndarray:
    """``value`` as an array, refused unless it has the shape of the output."""
    grad = checks.float_array(name, value)
    if grad.shape != shape:
        raise ValueError(f"{name} must have the shape of the output, {shape}, got {grad.shape}")
    return grad


def _max_pool(rank, x, kernel_size, stride, padding, dilation, ceil_mode, return_indices, num_threads):
    x = _image(rank, x)
    window = Window.create(rank, kernel_size, stride, padding, dilation, ceil_mode)
    axes = taps.window_axes(window, x.shape[2:])
    return _largest(x, axes, checks.boolean("return_indices", return_indices), num_threads)


def max_pool2d(
    x,
    kernel_size,
    stride=None,
    padding=0,
    dilation=1,
    ceil_mode=False,
    return_indices=False,
    *,
    num_threads=None,
):
    """The largest pixel of each window; a NaN counts as the largest. As ``torch.nn.functional.max_pool2d``.

    Parameters
    ----------
    x : array of float32, float64 or float16 (computed as float32), shape (N, C, H, W)
        Of any strides.
    kernel_size : int or (int, int)
        Height and width of the window.
    stride : int or (int, int), default ``kernel_size``
    padding : int, (int, int) or ((top, bottom), (left, right)), default 0
        Pixels of −∞ around the image. Integers are at most half of the kernel, holes included; pairs, as
        ONNX has them, less than all of it.
    dilation : int or (int, int), default 1
        Distance of the window's pixels.
    ceil_mode : bool, default False
        Round the output's size up; a window may then reach beyond the padding, but not start there.
    return_indices : bool, default False
        Also return where each largest pixel is.
    num_threads : int, optional
        The result does not depend on it.

    Returns
    -------
    y : ndarray, shape (N, C, H_out, W_out)
        H_out = ⌊(H + top + bottom − dilation·(kernel − 1) − 1) / stride⌋ + 1. A channels-last view where
        ``x`` is one, else C-contiguous.
    indices : ndarray of int64, same shape
        ``h·W + w`` of the largest pixel, the first of equals; only with ``return_indices``.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type, rank or range.
    """
    return _max_pool(2, x, kernel_size, stride, padding, dilation, ceil_mode, return_indices, num_threads)


def max_pool1d(
    x,
    kernel_size,
    stride=None,
    padding=0,
    dilation=1,
    ceil_mode=False,
    return_indices=False,
    *,
    num_threads=None,
):
    """:func:`max_pool2d` along the one axis of (N, C, L); an index is the position."""
    return _max_pool(1, x, kernel_size, stride, padding, dilation, ceil_mode, return_indices, num_threads)


def max_pool3d(
    x,
    kernel_size,
    stride=None,
    padding=0,
    dilation=1,
    ceil_mode=False,
    return_indices=False,
    *,
    num_threads=None,
):
    """:func:`max_pool2d` over the three axes of (N, C, D, H, W); an index is ``(d·H + h)·W + w``."""
    return _max_pool(3, x, kernel_size, stride, padding, dilation, ceil_mode, return_indices, num_threads)


def max_pool_grad(grad_output, indices, input_shape, *, num_threads=None):
    """The gradient of a max pooling by its input: each output's gradient goes to its largest pixel.

    Parameters
    ----------
    grad_output : array, shape (N, C, ...)
    indices : array of int64, same shape
        As :func:`max_pool1d`, :func:`max_pool2d`, :func:`max_pool3d` and the adaptive ones return them.
    input_shape : (N, C, ...), one to three spatial axes
    num_threads : int, optional
        The result does not depend on it.

    Returns
    -------
    ndarray, shape ``input_shape``, in the memory format of ``grad_output``

    Raises
    ------
    TypeError, ValueError
        If shapes or types do not fit, or an index lies outside the image.
    """
    batch, channels, *size = image_shape(input_shape)
    indices = np.asarray(indices)
    if indices.dtype != np.int64:
        raise TypeError(f"indices must have dtype int64, got {indices.dtype}")
    if indices.ndim != len(size) + 2 or indices.shape[:2] != (batch, channels):
        raise ValueError(
            f"indices must be {SHAPES[len(size)]} with N={batch}, C={channels} as in input_shape,"
            f" got {indices.shape}"
        )
    pixels = math.prod(size)
    if indices.size and not 0 <= indices.min() <= indices.max() < pixels:
        raise ValueError(
            f"indices must be from 0 to {pixels - 1}, the last pixel, got {indices.min()} to {indices.max()}"
        )
    grad = gradient("grad_output", grad_output, indices.shape)
    dtype = checks.float_dtype("grad_output", grad.dtype)
    result = np.zeros((batch, *size, channels), dtype)
    outputs = math.prod(grad.shape[2:])
    kernels.active().max_pool_grad(
        channels_last(grad, dtype, num_threads).reshape(batch, outputs, channels),
        channels_last(indices, np.int64, num_threads).reshape(batch, outputs, channels),
        result.reshape(batch, pixels, channels),
        threads.for_elements(num_threads, grad.size),
    )
    return like(result, grad, num_threads)


def image_shape(shape: object, name: str = "input_shape") -> tuple[int, ...]:
    """``shape`` checked to be (N, C, ...) with one to three spatial axes."""
    found = checks.sizes(name, shape, "(N, C, ...)")
    if len(found) - 2 not in SHAPES:
        raise ValueError(f"{name} must be {' or '.join(SHAPES.values())}, got shape {found}")
    return found


def _avg_window(rank, kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, divisor_override):
    """The window, what its average counts, and the divisor that replaces the count (0: none)."""
    window = Window.create(rank, kernel_size, stride, padding, dilation, ceil_mode)
    counted = "padded" if checks.boolean("count_include_pad", count_include_pad) else "inside"
    if divisor_override is None:
        return window, counted, 0
    return window, "nothing", checks.integer("divisor_override", divisor_override, 1)


def _avg_pool(rank, x, *arguments, num_threads):
    x = _image(rank, x)
    window, counted, divisor = _avg_window(rank, *arguments)
    return resampled(x, taps.window_axes(window, x.shape[2:], counted), divisor, num_threads)


def avg_pool2d(
    x,
    kernel_size,
    stride=None,
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
    *,
    dilation=1,
    num_threads=None,
):
    """The mean of each window. As ``torch.nn.functional.avg_pool2d``.

    Parameters
    ----------
    x, kernel_size, stride, padding, ceil_mode, dilation, num_threads
        As in :func:`max_pool2d`, the padding being zeros. PyTorch has no ``dilation`` here, ONNX has.
    count_include_pad : bool, default True
        Divide by the window's pixels in the padded image; otherwise by those in the image.
    divisor_override : int, optional
        Divide by this instead.

    Returns
    -------
    ndarray, shape (N, C, H_out, W_out)
        A channels-last view where ``x`` is one, else C-contiguous.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type, rank or range.
    """
    arguments = (kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, divisor_override)
    return _avg_pool(2, x, *arguments, num_threads=num_threads)


def avg_pool1d(
    x,
    kernel_size,
    stride=None,
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
    *,
    dilation=1,
    num_threads=None,
):
    """:func:`avg_pool2d` along the one axis of (N, C, L)."""
    arguments = (kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, divisor_override)
    return _avg_pool(1, x, *arguments, num_threads=num_threads)


def avg_pool3d(
    x,
    kernel_size,
    stride=None,
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
    *,
    dilation=1,
    num_threads=None,
):
    """:func:`avg_pool2d` over the three axes of (N, C, D, H, W)."""
    arguments = (kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, divisor_override)
    return _avg_pool(3, x, *arguments, num_threads=num_threads)


def avg_pool_grad(
    grad_output,
    input_shape,
    kernel_size,
    stride=None,
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
    *,
    dilation=1,
    num_threads=None,
):
    """The gradient of an average pooling by its input, in one to three dimensions.

    Parameters
    ----------
    grad_output : array, shape (N, C, ...)
    input_shape : (N, C, ...)
    kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, dilation, num_threads
        As they were given to the pooling.

    Returns
    -------
    ndarray, shape ``input_shape``, in the memory format of ``grad_output``

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type, rank or range, or ``grad_output`` of the wrong shape.
    """
    batch, channels, *size = image_shape(input_shape)
    window, counted, divisor = _avg_window(
        len(size), kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, divisor_override
    )
    grad = gradient("grad_output", grad_output, (batch, channels, *window.output_size(size)))
    return resampled(grad, taps.window_axes(window, tuple(size), counted, True), divisor, num_threads)


@taps.remembered
def _adaptive_axes(size: tuple, output_size: tuple, transpose: bool = False) -> taps.Axes:
    return taps.axes(taps.adaptive, list(zip(size, output_size, strict=True)), transpose)


def _adaptive_avg_pool(rank, x, output_size, num_threads):
    x = _image(rank, x)
    size = adaptive_size(output_size, x.shape[2:])
    return resampled(x, _adaptive_axes(x.shape[2:], size), 0, num_threads)


def adaptive_avg_pool2d(x, output_size, *, num_threads=None):
    """The mean of windows that divide the image into ``output_size`` parts, overlapping where they must.

    Output i of an axis averages the pixels from ⌊i·H/H_out⌋ to ⌈(i + 1)·H/H_out⌉, as
    ``torch.nn.functional.adaptive_avg_pool2d``.

    Parameters
    ----------
    x : array of float32, float64 or float16 (computed as float32), shape (N, C, H, W)
    output_size : int, None, or (int or None, int or None)
        None keeps the size of the axis.
    num_threads : int, optional
        The result does not depend on it.

    Returns
    -------
    ndarray, shape (N, C, H_out, W_out)
        A channels-last view where ``x`` is one, else C-contiguous.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type, rank or range.
    """
    return _adaptive_avg_pool(2, x, output_size, num_threads)


def adaptive_avg_pool1d(x, output_size, *, num_threads=None):
    """:func:`adaptive_avg_pool2d` along the one axis of (N, C, L)."""
    return _adaptive_avg_pool(1, x, output_size, num_threads)


def adaptive_avg_pool3d(x, output_size, *, num_threads=None):
    """:func:`adaptive_avg_pool2d` over the three axes of (N, C, D, H, W)."""
    return _adaptive_avg_pool(3, x, output_size, num_threads)


def adaptive_avg_pool_grad(grad_output, input_shape, *, num_threads=None):
    """The gradient of an adaptive average pooling by its input, in one to three dimensions.

    Parameters
    ----------
    grad_output : array, shape (N, C, ...)
    input_shape : (N, C, ...)
    num_threads : int, optional
        The result does not depend on it.

    Returns
    -------
    ndarray, shape ``input_shape``, in the memory format of ``grad_output``

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type, rank or range.
    """
    batch, channels, *size = image_shape(input_shape)
    grad = checks.float_array("grad_output", grad_output, len(size) + 2, SHAPES[len(size)])
    outputs = adaptive_size(grad.shape[2:], size)
    gradient("grad_output", grad, (batch, channels, *outputs))
    return resampled(grad, _adaptive_axes(tuple(size), outputs, True), 0, num_threads)


def _adaptive_max_pool(rank, x, output_size, return_indices, num_threads):
    x = _image(rank, x)
    size = adaptive_size(output_size, x.shape[2:])
    axes = _adaptive_axes(x.shape[2:], size)
    return _largest(x, axes, checks.boolean("return_indices", return_indices), num_threads)


def adaptive_max_pool2d(x, output_size, return_indices=False, *, num_threads=None):
    """The largest pixel of the windows of :func:`adaptive_avg_pool2d`; indices as of :func:`max_pool2d`."""
    return _adaptive_max_pool(2, x, output_size, return_indices, num_threads)


def adaptive_max_pool1d(x, output_size, return_indices=False, *, num_threads=None):
    """:func:`adaptive_max_pool2d` along the one axis of (N, C, L)."""
    return _adaptive_max_pool(1, x, output_size, return_indices, num_threads)


def adaptive_max_pool3d(x, output_size, return_indices=False, *, num_threads=None):
    """:func:`adaptive_max_pool2d` over the three axes of (N, C, D, H, W)."""
    return _adaptive_max_pool(3, x, output_size, return_indices, num_threads)


def global_avg_pool2d(x):
    """The mean of each channel over the whole image.

    Parameters
    ----------
    x : array of float32, float64 or float16 (computed as float32), shape (N, C, H, W)

    Returns
    -------
    ndarray, shape (N, C, 1, 1)

    Raises
    ------
    TypeError, ValueError
        If ``x`` is of the wrong dtype or rank, or the image is empty.
    """
    x = checks.float_array("x", x, 4, SHAPES[2])
    if 0 in x.shape[2:]:
        raise ValueError(f"x must have at least one pixel, got shape {x.shape}")
    dtype = checks.float_dtype("x", x.dtype)
    if not is_planar(x, dtype):
        return adaptive_avg_pool2d(x, 1)
    mean = np.empty((*x.shape[:2], 1, 1), dtype)
    planes = x.reshape(mean.size, -1)
    kernels.active().run_means(planes, mean.reshape(-1), threads.for_elements(None, x.size))
    return mean
