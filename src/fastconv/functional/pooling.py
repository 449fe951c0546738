"""Max and average pooling in one to three dimensions, fixed and adaptive windows, and their gradients."""

from __future__ import annotations

import math

import numpy as np

from fastconv import checks, kernels, threads
from fastconv.functional import taps
from fastconv.functional.pooled import Pooling
from fastconv.functional.prepared import call
from fastconv.functional.taps import Window, adaptive_size
from fastconv.layout import channels_last, is_planar, like

SHAPES = {1: "(N, C, L)", 2: "(N, C, H, W)", 3: "(N, C, D, H, W)"}


def _image(rank: int, x: np.ndarray) -> None:
    checks.float_array("x", x, rank + 2, SHAPES[rank])


def resampled(grad: np.ndarray, axes: taps.Axes, divisor: float, num_threads: int | None) -> np.ndarray:
    """The weighted sums of ``axes`` of a gradient (N, C, ...), in its memory format."""
    grad = checks.kernel_ready(grad, checks.float_dtype("grad_output", grad.dtype))
    return Pooling(grad, axes, divisor, num_threads)(grad)


def gradient(name: str, value: object, shape: tuple[int, ...]) -> np.ndarray:
    """``value`` as an array, refused unless it has the shape of the output."""
    grad = checks.float_array(name, value)
    if grad.shape != shape:
        raise ValueError(f"{name} must have the shape of the output, {shape}, got {grad.shape}")
    return grad


def _max_pooling(
    x, num_threads, rank, kernel_size, stride, padding, dilation, ceil_mode, return_indices
) -> Pooling:
    _image(rank, x)
    window = Window.create(rank, kernel_size, stride, padding, dilation, ceil_mode)
    indices = checks.boolean("return_indices", return_indices)
    return Pooling(x, taps.window_axes(window, x.shape[2:]), None, num_threads, indices)


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
    options = 2, kernel_size, stride, padding, dilation, ceil_mode, return_indices
    return call(_max_pooling, x, num_threads, options)


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
    options = 1, kernel_size, stride, padding, dilation, ceil_mode, return_indices
    return call(_max_pooling, x, num_threads, options)


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
    options = 3, kernel_size, stride, padding, dilation, ceil_mode, return_indices
    return call(_max_pooling, x, num_threads, options)


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
    indices = checks.any_array("indices", indices)
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


def _avg_pooling(x, num_threads, rank, *arguments) -> Pooling:
    _image(rank, x)
    window, counted, divisor = _avg_window(rank, *arguments)
    return Pooling(x, taps.window_axes(window, x.shape[2:], counted), divisor, num_threads)


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
    options = 2, kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, divisor_override
    return call(_avg_pooling, x, num_threads, options)


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
    options = 1, kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, divisor_override
    return call(_avg_pooling, x, num_threads, options)


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
    options = 3, kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, divisor_override
    return call(_avg_pooling, x, num_threads, options)


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


def _adaptive_avg_pooling(x, num_threads, rank, output_size) -> Pooling:
    _image(rank, x)
    size = adaptive_size(output_size, x.shape[2:])
    return Pooling(x, _adaptive_axes(x.shape[2:], size), 0, num_threads)


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
    return call(_adaptive_avg_pooling, x, num_threads, (2, output_size))


def adaptive_avg_pool1d(x, output_size, *, num_threads=None):
    """:func:`adaptive_avg_pool2d` along the one axis of (N, C, L)."""
    return call(_adaptive_avg_pooling, x, num_threads, (1, output_size))


def adaptive_avg_pool3d(x, output_size, *, num_threads=None):
    """:func:`adaptive_avg_pool2d` over the three axes of (N, C, D, H, W)."""
    return call(_adaptive_avg_pooling, x, num_threads, (3, output_size))


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


def _adaptive_max_pooling(x, num_threads, rank, output_size, return_indices) -> Pooling:
    _image(rank, x)
    axes = _adaptive_axes(x.shape[2:], adaptive_size(output_size, x.shape[2:]))
    return Pooling(x, axes, None, num_threads, checks.boolean("return_indices", return_indices))


def adaptive_max_pool2d(x, output_size, return_indices=False, *, num_threads=None):
    """The largest pixel of the windows of :func:`adaptive_avg_pool2d`; indices as of :func:`max_pool2d`."""
    return call(_adaptive_max_pooling, x, num_threads, (2, output_size, return_indices))


def adaptive_max_pool1d(x, output_size, return_indices=False, *, num_threads=None):
    """:func:`adaptive_max_pool2d` along the one axis of (N, C, L)."""
    return call(_adaptive_max_pooling, x, num_threads, (1, output_size, return_indices))


def adaptive_max_pool3d(x, output_size, return_indices=False, *, num_threads=None):
    """:func:`adaptive_max_pool2d` over the three axes of (N, C, D, H, W)."""
    return call(_adaptive_max_pooling, x, num_threads, (3, output_size, return_indices))


def global_avg_pool2d(x, *, num_threads=None):
    """The mean of each channel over the whole image.

    Parameters
    ----------
    x : array of float32, float64 or float16 (computed as float32), shape (N, C, H, W)
    num_threads : int, optional
        The result does not depend on it.

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
        return adaptive_avg_pool2d(x, 1, num_threads=num_threads)
    count, mean = threads.for_elements(num_threads, x.size), np.empty((*x.shape[:2], 1, 1), dtype)
    kernels.active().run_means(x.reshape(mean.size, -1), mean.reshape(-1), count)
    return mean
