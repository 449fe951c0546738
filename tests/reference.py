"""Convolution and its gradients in float64, one kernel tap at a time: slow, and plain enough to believe.

With strides s, dilations d and padding (low, high), tap (a, b) of output pixel (i, j) reads the padded
input at (i·s_h + a·d_h, j·s_w + b·d_w); so in one and three spatial axes.
"""

from __future__ import annotations

import math

import numpy as np

PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def pad_image(x, padding, mode="zeros"):
    """x (N, C, H, W) with ((top, bottom), (left, right)) pixels added."""
    return np.pad(x, ((0, 0), (0, 0), *padding), mode=PAD_MODES[mode])


def explicit_padding(padding, input_size, kernel_size, stride=(1, 1), dilation=(1, 1)):
    """The ((top, bottom), (left, right)) that "valid", "same", "full", an int or a pair of ints stand for."""
    if padding == "valid":
        return ((0, 0), (0, 0))
    reach = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
    if padding == "full":
        return tuple((r, r) for r in reach)
    if padding == "same":
        pads = []
        for size, r, s in zip(input_size, reach, stride, strict=True):
            total = max(0, (math.ceil(size / s) - 1) * s + r + 1 - size)
            pads.append((total // 2, total - total // 2))
        return tuple(pads)
    if isinstance(padding, int):
        return ((padding, padding), (padding, padding))
    return tuple((p, p) if isinstance(p, int) else tuple(p) for p in padding)


def output_size(input_size, kernel_size, stride, padding, dilation):
    """Output pixels per axis."""
    return tuple(
        (size + low + high - d * (k - 1) - 1) // s + 1
        for size, k, s, (low, high), d in zip(input_size, kernel_size, stride, padding, dilation, strict=True)
    )


def _taps(kernel_size, output_size, stride, dilation):
    """For every kernel tap: its index and the window of the padded input that it meets."""
    for tap in np.ndindex(*kernel_size):
        starts = [t * d for t, d in zip(tap, dilation, strict=True)]
        ends = [a + (n - 1) * s + 1 for a, n, s in zip(starts, output_size, stride, strict=True)]
        yield (..., *tap), (..., *map(slice, starts, ends, stride))


def _groups(array, axis, groups):
    """array with its channel axis split into (groups, channels of one group), in float64."""
    shape = (*array.shape[:axis], groups, array.shape[axis] // groups, *array.shape[axis + 1 :])
    return np.asarray(array, np.float64).reshape(shape)


def _flat(array):
    """(N, groups, C, pixels)"""
    return array.reshape(*array.shape[:3], -1)


def conv(
    x,
    weight,
    bias=None,
    *,
    stride=(1, 1),
    padding=((0, 0), (0, 0)),
    dilation=(1, 1),
    groups=1,
    padding_mode="zeros",
    relu=False,
):
    """y (N, C_out, H_out, W_out) of x (N, C_in, H, W) and weight (C_out, C_in/groups, k_h, k_w)."""
    kernel_size = weight.shape[2:]
    size = output_size(x.shape[2:], kernel_size, stride, padding, dilation)
    image = _groups(pad_image(x, padding, padding_mode), 1, groups)
    taps = _groups(weight, 0, groups)
    y = np.zeros((x.shape[0], groups, taps.shape[1], *size))
    for tap, window in _taps(kernel_size, size, stride, dilation):
        y += np.einsum("ngc...,gmc->ngm...", image[window], taps[tap], optimize=True)
    y = y.reshape(x.shape[0], weight.shape[0], *size)
    if bias is not None:
        y = y + np.asarray(bias, np.float64).reshape(-1, *[1] * len(size))
    return np.where(y < 0, 0.0, y) if relu else y


def conv_input_grad(
    grad_output, weight, input_shape, *, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1
):
    """The gradient of sum(y·grad_output) for x: every tap scatters back to where it read."""
    batch, channels, *size = input_shape
    padded_size = [low + n + high for n, (low, high) in zip(size, padding, strict=True)]
    taps = _groups(weight, 0, groups)
    grad = _groups(grad_output, 1, groups)
    padded = np.zeros((batch, groups, channels // groups, *padded_size))
    for tap, window in _taps(weight.shape[2:], grad_output.shape[2:], stride, dilation):
        padded[window] += np.einsum("ngm...,gmc->ngc...", grad, taps[tap], optimize=True)
    inner = tuple(slice(low, low + n) for n, (low, _) in zip(size, padding, strict=True))
    return padded[..., *inner].reshape(input_shape)


def conv_weight_grad(
    grad_output, x, weight_shape, *, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1
):
    """The gradient of sum(y·grad_output) for the weight: what a tap read, times the gradient."""
    image = _groups(pad_image(x, padding), 1, groups)
    grad = _groups(grad_output, 1, groups)
    result = np.zeros((groups, weight_shape[0] // groups, *weight_shape[1:]))
    for tap, window in _taps(weight_shape[2:], grad_output.shape[2:], stride, dilation):
        result[tap] = np.einsum("ngmp,ngcp->gmc", _flat(grad), _flat(image[window]), optimize=True)
    return result.reshape(weight_shape)
