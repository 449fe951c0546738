"""Max, average and global average pooling of images, and their gradients."""

from __future__ import annotations

import numpy as np

from fastconv import checks, kernels, threads

_IMAGES = "(N, C, H, W)"
_ELEMENTS_PER_THREAD = 1 << 14


def pool_output_size(
    size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> tuple[int, int]:
    """Spatial size of a pooling's output: ``(in + 2·padding − kernel) // stride + 1`` on each axis.

    Raises
    ------
    ValueError
        If the padding is more than half the kernel, or the kernel does not fit into the padded image.
    """
    for axis in range(2):
        if 2 * padding[axis] > kernel[axis]:
            raise ValueError(
                f"padding must be at most half of kernel_size, got padding={padding}, kernel_size={kernel}"
            )
        if size[axis] < 1 or kernel[axis] > size[axis] + 2 * padding[axis]:
            raise ValueError(
                f"kernel_size must fit into the padded image, got kernel_size={kernel} for an image of"
                f" {size[0]}×{size[1]} with padding={padding}"
            )
    return tuple((size[i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in range(2))


def _window(kernel_size, stride, padding) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    kernel = checks.per_axis("kernel_size", kernel_size, 2, 1)
    stride = kernel if stride is None else checks.per_axis("stride", stride, 2, 1)
    return kernel, stride, checks.per_axis("padding", padding, 2, 0)


def _threads(num_threads: int | None, elements: int) -> int:
    """How many threads to use for so many elements: starting one costs as much as pooling some thousands."""
    return min(threads.resolve(num_threads), 1 + elements // _ELEMENTS_PER_THREAD)


def _channels_last(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Any (N, C, H, W) array as the C-contiguous (N, H, W, C) one a kernel takes; a view where it can be."""
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1), dtype)


def _like(result: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A kernel's (N, H, W, C) result as (N, C, H, W), in the memory format of ``x``."""
    result = result.transpose(0, 3, 1, 2)
    if x.transpose(0, 2, 3, 1).flags.c_contiguous:
        return result
    return np.ascontiguousarray(result)


def _gradient(name: str, value: object, shape: tuple[int, ...]) -> np.ndarray:
    grad = checks.float_array(name, value, 4, _IMAGES)
    if grad.shape != shape:
        raise ValueError(f"{name} must have the shape of the output, {shape}, got {grad.shape}")
    return grad


def max_pool2d(x, kernel_size, stride=None, padding=0, *, return_indices=False, num_threads=None):
    """The largest pixel of each window; a NaN counts as the largest.

    Parameters
    ----------
    x : array of float32, float64 or float16 (computed as float32), shape (N, C, H, W)
        Of any strides.
    kernel_size : int or (int, int)
        Height and width of the window.
    stride : int or (int, int), default ``kernel_size``
    padding : int or (int, int), default 0
        Pixels of −∞ on each side; at most half the kernel.
    return_indices : bool, default False
        Also return where each largest pixel is.
    num_threads : int, optional
        The result does not depend on it.

    Returns
    -------
    y : ndarray, shape (N, C, H_out, W_out)
        A channels-last view where ``x`` is one, else C-contiguous.
    indices : ndarray of int64, same shape
        ``h·W + w`` of the largest pixel, the first of equals; only with ``return_indices``.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type, rank or range.
    """
    x = checks.float_array("x", x, 4, _IMAGES)
    window = _window(kernel_size, stride, padding)
    size = pool_output_size(x.shape[2:], *window)
    dtype = checks.float_dtype("x", x.dtype)
    shape = (x.shape[0], *size, x.shape[1])
    y = np.empty(shape, dtype)
    indices = np.empty(shape, np.int64) if return_indices else None
    kernels.active().max_pool(_channels_last(x, dtype), y, indices, *window, _threads(num_threads, x.size))
    return (_like(y, x), _like(indices, x)) if return_indices else _like(y, x)


def max_pool2d_grad(grad_output, indices, input_shape, *, num_threads=None):
    """The gradient of :func:`max_pool2d` by its input: each output's gradient goes to its largest pixel.

    Parameters
    ----------
    grad_output : array, shape (N, C, H_out, W_out)
    indices : array of int64, shape (N, C, H_out, W_out)
        As :func:`max_pool2d` returns them.
    input_shape : (N, C, H, W)
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
    batch, channels, height, width = checks.shape("input_shape", input_shape, 4, _IMAGES)
    indices = np.asarray(indices)
    if indices.dtype != np.int64:
        raise TypeError(f"indices must have dtype int64, got {indices.dtype}")
    if indices.ndim != 4 or indices.shape[:2] != (batch, channels):
        raise ValueError(
            f"indices must be {_IMAGES} with N={batch}, C={channels} as in input_shape, got {indices.shape}"
        )
    if indices.size and not 0 <= indices.min() <= indices.max() < height * width:
        raise ValueError(
            f"indices must be from 0 to H·W − 1 = {height * width - 1},"
            f" got {indices.min()} to {indices.max()}"
        )
    grad = _gradient("grad_output", grad_output, indices.shape)
    dtype = checks.float_dtype("grad_output", grad.dtype)
    result = np.zeros((batch, height, width, channels), dtype)
    kernels.active().max_pool_grad(
        _channels_last(grad, dtype),
        _channels_last(indices, np.int64),
        result,
        _threads(num_threads, grad.size),
    )
    return _like(result, grad)


def avg_pool2d(x, kernel_size, stride=None, padding=0, *, count_include_pad=True, num_threads=None):
    """The mean of each window.

    Parameters
    ----------
    x, kernel_size, stride, num_threads
        As in :func:`max_pool2d`.
    padding : int or (int, int), default 0
        Zeros on each side; at most half the kernel.
    count_include_pad : bool, default True
        Divide by the size of the kernel; otherwise by the number of pixels inside the image.

    Returns
    -------
    ndarray, shape (N, C, H_out, W_out)
        A channels-last view where ``x`` is one, else C-contiguous.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type, rank or range.
    """
    x = checks.float_array("x", x, 4, _IMAGES)
    window = _window(kernel_size, stride, padding)
    size = pool_output_size(x.shape[2:], *window)
    dtype = checks.float_dtype("x", x.dtype)
    y = np.empty((x.shape[0], *size, x.shape[1]), dtype)
    kernels.active().avg_pool(
        _channels_last(x, dtype), y, *window, bool(count_include_pad), _threads(num_threads, x.size)
    )
    return _like(y, x)


def avg_pool2d_grad(
    grad_output, input_shape, kernel_size, stride=None, padding=0, *, count_include_pad=True, num_threads=None
):
    """The gradient of :func:`avg_pool2d` by its input.

    Parameters
    ----------
    grad_output : array, shape (N, C, H_out, W_out)
    input_shape : (N, C, H, W)
    kernel_size, stride, padding, count_include_pad, num_threads
        As they were given to :func:`avg_pool2d`.

    Returns
    -------
    ndarray, shape ``input_shape``, in the memory format of ``grad_output``

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type, rank or range, or ``grad_output`` of the wrong shape.
    """
    batch, channels, *image = checks.shape("input_shape", input_shape, 4, _IMAGES)
    window = _window(kernel_size, stride, padding)
    size = pool_output_size(tuple(image), *window)
    grad = _gradient("grad_output", grad_output, (batch, channels, *size))
    dtype = checks.float_dtype("grad_output", grad.dtype)
    result = np.empty((batch, *image, channels), dtype)
    kernels.active().avg_pool_grad(
        _channels_last(grad, dtype),
        result,
        *window,
        bool(count_include_pad),
        _threads(num_threads, result.size),
    )
    return _like(result, grad)


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
    x = checks.float_array("x", x, 4, _IMAGES)
    if 0 in x.shape[2:]:
        raise ValueError(f"x must have at least one pixel, got shape {x.shape}")
    return x.mean(axis=(2, 3), keepdims=True, dtype=checks.float_dtype("x", x.dtype))
