"""Gradients of convolution in 1-D, 2-D and 3-D with respect to its input and its weight."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np

from fastconv import checks, kernels, lowering, threads
from fastconv.algorithms.weight_grad import reads_planes, weight_grad
from fastconv.functional.plan_cache import through_plan
from fastconv.functional.polyphase import TransposedPlan
from fastconv.geometry import WEIGHTS, ConvGeometry
from fastconv.layout import moved_last
from fastconv.memory import aligned_empty, give_back
from fastconv.plan import LAYOUTS

# Channels from which on it makes no difference which factor of a channels-last weight gradient is gathered.
_WIDE = 256


def conv1d_input_grad(
    grad_output, weight, input_shape, *, stride=1, padding=0, dilation=1, groups=1, num_threads=None
) -> np.ndarray:
    """Gradient of :func:`conv1d` with respect to its input; as :func:`conv2d_input_grad`, one axis."""
    return _input_grad(1, grad_output, weight, input_shape, stride, padding, dilation, groups, num_threads)


def conv2d_input_grad(
    grad_output, weight, input_shape, *, stride=1, padding=0, dilation=1, groups=1, num_threads=None
) -> np.ndarray:
    """Gradient of :func:`conv2d` with respect to its input: the transposed convolution.

    .. math:: dx[n, c, i s + u d - p, j s + v d - p] \\mathrel{+}= dy[n, m, i, j]\\, w[m, c, u, v]

    computed as stride-1 convolutions of ``grad_output``, one for each phase of the stride: see
    :func:`conv_transpose2d`.

    Parameters
    ----------
    grad_output : array (N, C_out, H_out, W_out)
    weight : array (C_out, C_in/groups, k_h, k_w)
    input_shape : (N, C_in, H, W)
    stride, padding, dilation, groups, num_threads
        As for :func:`conv2d`.

    Returns
    -------
    ndarray (N, C_in, H, W)
        Channels-last in memory where ``grad_output`` is.

    Raises
    ------
    TypeError, ValueError
        As :func:`conv2d`, and if ``grad_output`` has not the shape the other arguments imply.
    """
    return _input_grad(2, grad_output, weight, input_shape, stride, padding, dilation, groups, num_threads)


def conv3d_input_grad(
    grad_output, weight, input_shape, *, stride=1, padding=0, dilation=1, groups=1, num_threads=None
) -> np.ndarray:
    """Gradient of :func:`conv3d` with respect to its input; as :func:`conv2d_input_grad`, three axes."""
    return _input_grad(3, grad_output, weight, input_shape, stride, padding, dilation, groups, num_threads)


def conv1d_weight_grad(
    grad_output, x, weight_shape, *, stride=1, padding=0, dilation=1, groups=1, num_threads=None
) -> np.ndarray:
    """Gradient of :func:`conv1d` with respect to its weight; as :func:`conv2d_weight_grad`, one axis."""
    return _weight_grad(1, grad_output, x, weight_shape, stride, padding, dilation, groups, num_threads)


def conv2d_weight_grad(
    grad_output, x, weight_shape, *, stride=1, padding=0, dilation=1, groups=1, num_threads=None
) -> np.ndarray:
    """Gradient of :func:`conv2d` with respect to its weight.

    .. math:: dw[m, c, u, v] = \\sum_{n, i, j} dy[n, m, i, j]\\, x[n, c, i s + u d - p, j s + v d - p]

    a matrix product over pixels; by Winograd's tiles where these save multiplications (stride 1, kernel
    axes of 1, 2, 3, 5 or 7 taps).

    Parameters
    ----------
    grad_output : array (N, C_out, H_out, W_out)
        Channels-last views are read in place, as ``x`` without padding is; others a few rows at a time.
    x : array (N, C_in, H, W)
    weight_shape : (C_out, C_in/groups, k_h, k_w)
    stride, padding, dilation, groups, num_threads
        As for :func:`conv2d`.

    Returns
    -------
    ndarray of ``weight_shape``

    Raises
    ------
    TypeError, ValueError
        As :func:`conv2d`, and if ``grad_output`` has not the shape the other arguments imply.
    """
    return _weight_grad(2, grad_output, x, weight_shape, stride, padding, dilation, groups, num_threads)


def conv3d_weight_grad(
    grad_output, x, weight_shape, *, stride=1, padding=0, dilation=1, groups=1, num_threads=None
) -> np.ndarray:
    """Gradient of :func:`conv3d` with respect to its weight: :func:`conv2d_weight_grad` for each depth."""
    return _weight_grad(3, grad_output, x, weight_shape, stride, padding, dilation, groups, num_threads)


def _input_grad(rank, grad_output, weight, input_shape, stride, padding, dilation, groups, num_threads):
    weight = checks.float_array("weight", weight, rank + 2, WEIGHTS[rank])
    grad_output, geometry = _grad_geometry(
        rank, grad_output, weight, input_shape, weight.shape, stride, padding, dilation, groups
    )
    count = threads.resolve(num_threads)
    key = TransposedPlan, kernels.active(), geometry, weight.dtype, grad_output.strides, count
    return through_plan(key, _input_grad_plan, (geometry, weight, count), weight, grad_output)


def _input_grad_plan(geometry: ConvGeometry, weight: np.ndarray, num_threads: int) -> TransposedPlan:
    return TransposedPlan(weight, geometry=geometry, num_threads=num_threads, calls=1)


def _weight_grad(rank, grad_output, x, weight_shape, stride, padding, dilation, groups, num_threads):
    x = checks.float_array("x", x, rank + 2, f"({', '.join(LAYOUTS[rank][0])})")
    grad_output, geometry = _grad_geometry(
        rank, grad_output, x, x.shape, weight_shape, stride, padding, dilation, groups
    )
    count = threads.team(num_threads)
    result = np.zeros(geometry.weight_shape, geometry.dtype)
    if geometry.batch == 0:
        return result
    images, grads = (_images(array) for array in (checks.kernel_ready(x, geometry.dtype), grad_output))
    # (groups, C_out/groups, C_in/groups, depths of the kernel, taps of a slice)
    depths = geometry.kernel_size[0] if rank == 3 else 1
    taps = result.reshape(geometry.groups, -1, result.shape[1], depths, result[0, 0].size // depths)
    planar = lowering.planar(geometry)
    if rank < 3:
        _planar_weight_grad(planar, grads, images, count, taps[:, :, :, 0])
        return result
    size, step, low = geometry.input_size[0], geometry.stride[0], geometry.padding[0][0]
    for tap in range(depths):
        # The output slices whose input for this depth lies inside: begin = o·step + shift in [0, size).
        shift = tap * geometry.dilation[0] - low
        first, last = max(0, -(shift // step)), min(geometry.output_size[0], (size - 1 - shift) // step + 1)
        if first < last:
            begin = first * step + shift
            _planar_weight_grad(
                replace(planar, batch=geometry.batch * (last - first)), grads[:, first:last],
                images[:, begin : begin + (last - first - 1) * step + 1 : step], count, taps[:, :, :, tap],
            )  # fmt: skip
    return result


def _images(array: np.ndarray) -> np.ndarray:
    """(N, C, *spatial) as a view (N, D, H, W, C)."""
    return moved_last(array)[(slice(None), *[np.newaxis] * (5 - array.ndim))]


def _planar_weight_grad(geometry: ConvGeometry, grads, images, num_threads: int, out: np.ndarray) -> None:
    """The weight gradient of two spatial axes into ``out`` (groups, C_out/groups, C_in/groups, taps)."""
    level = kernels.active()
    group_in, group_out = geometry.in_channels // geometry.groups, geometry.out_channels // geometry.groups
    if geometry.groups > 1 == group_in and group_out > 1:
        # A depthwise convolution with a multiplier is one without, of repeated channels.
        images = np.repeat(images, group_out, axis=-1)
        geometry = replace(geometry, in_channels=geometry.out_channels, groups=geometry.out_channels)
        out = out.reshape(geometry.groups, 1, 1, -1)
    given = images
    if images.strides[4] != images.itemsize:
        geometry, images = _stepped(geometry, images, num_threads)
    stepped = None if images is given else images.base
    swapped = _swapped(geometry)
    lanes = level.vector_bytes() // geometry.dtype.itemsize
    few = group_out < min(lanes, group_in)
    # One tap: the wider side is read where it lies, a panel of the other at a time gathered, or transposed.
    limit = group_out if reads_planes(geometry, images, grads) else min(group_out, _WIDE)
    narrow = math.prod(geometry.kernel_size) == 1 and lanes <= group_in < limit
    if (few or narrow) and swapped is not None:
        # Vectors run over output channels: where these are few, the two factors change places.
        geometry, images, grads = swapped, grads, images
        out = out.transpose(0, 2, 1, 3)[..., ::-1]
    weight_grad(grads, images, geometry, level, num_threads, out)
    if stepped is not None:
        give_back(stepped)


def _stepped(
    geometry: ConvGeometry, images: np.ndarray, num_threads: int
) -> tuple[ConvGeometry, np.ndarray]:  # fmt: skip
    """A 1×1 problem on planes without its stride: a copy of the pixels that it reads; any other as it is."""
    if math.prod(geometry.kernel_size) > 1 or geometry.padded or max(geometry.stride) == 1:
        return geometry, images
    down, across = geometry.stride
    rows, columns = geometry.output_size
    taken = images[:, :, ::down, ::across][:, :, :rows, :columns].transpose(0, 1, 4, 2, 3)
    stepped = aligned_empty(taken.shape, geometry.dtype)
    flat = (-1, *taken.shape[2:])
    if taken.shape[1] == 1:
        kernels.active().take_pixels(taken.reshape(flat), stepped.reshape(flat), num_threads)
    else:
        stepped[...] = taken
    return replace(geometry, input_size=geometry.output_size, stride=(1, 1)), stepped.transpose(0, 1, 3, 4, 2)


@lru_cache(maxsize=1024)
def _swapped(geometry: ConvGeometry) -> ConvGeometry | None:
    """The problem with the gradient as its input: dw[m, c, u] = Σ_q x[q, c] dy[q − u·d + p, m].

    At stride 1 that is a weight gradient as well, its taps reversed. None where it is not.
    """
    pads = tuple(
        tuple(d * (k - 1) - amount for amount in pair)
        for pair, k, d in zip(geometry.padding, geometry.kernel_size, geometry.dilation, strict=True)
    )
    if geometry.groups > 1 or any(s > 1 for s in geometry.stride) or min(map(min, pads)) < 0:
        return None
    return replace(
        geometry, in_channels=geometry.out_channels, out_channels=geometry.in_channels,
        input_size=geometry.output_size, padding=pads,
    )  # fmt: skip


def _grad_geometry(rank, grad_output, other, input_shape, weight_shape, stride, padding, dilation, groups):
    """The forward problem's geometry, and ``grad_output`` checked against it in the common dtype."""
    names = ", ".join(LAYOUTS[rank][0])
    grad_output = checks.float_array("grad_output", grad_output, rank + 2, f"({names})")
    geometry = ConvGeometry.create(
        checks.shape("input_shape", input_shape, rank + 2, f"({names})"),
        checks.shape("weight_shape", weight_shape, rank + 2, WEIGHTS[rank]),
        stride=stride, padding=padding, dilation=dilation, groups=groups,
        dtype=checks.common_dtype((grad_output, other)),
    )  # fmt: skip
    if grad_output.shape != geometry.output_shape:
        raise ValueError(f"grad_output must have shape {geometry.output_shape}, got {grad_output.shape}")
    return checks.kernel_ready(grad_output, geometry.dtype), geometry
