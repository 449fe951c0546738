"""Deformable convolution and its gradients: ndarray in, ndarray out."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from fastconv import checks, kernels, layout, threads
from fastconv.algorithms import base
from fastconv.geometry import ConvGeometry
from fastconv.memory import aligned_empty

# Bytes of patches lowered at a time: they stay in an L2 cache until they are multiplied.
_PANEL_BYTES = 256 * 1024
# Parts of all pixels whose weight gradients are summed one by one; with the threads the bits would change.
_GRAD_PARTS = 8


class _Problem(NamedTuple):
    """A checked problem; arrays in the common dtype, the image (N, H, W, C_in) and contiguous."""

    geometry: ConvGeometry
    offset_groups: int
    image: np.ndarray
    offset: np.ndarray
    mask: np.ndarray | None

    @property
    def taps(self) -> int:
        height, width = self.geometry.kernel_size
        return height * width

    @property
    def pixels(self) -> int:
        height, width = self.geometry.output_size
        return height * width

    def panel_pixels(self, elements: int) -> int:
        """How many output pixels to lower at a time, of so many elements each."""
        tile = kernels.active().tile_rows()
        count = max(tile, _PANEL_BYTES // (elements * self.geometry.dtype.itemsize) // tile * tile)
        return min(count, self.pixels)

    @property
    def pitch(self) -> int:
        """Elements from patch to patch: an odd number of cache lines, a power of two would share sets."""
        line = 64 // self.geometry.dtype.itemsize
        return (base.ceil_div(self.taps * self.geometry.in_channels, line) | 1) * line


def deform_conv2d(
    x, offset, weight, bias=None, stride=1, padding=0, dilation=1, mask=None, *, num_threads=None, out=None
) -> np.ndarray:
    """Deformable convolution: each tap of each output pixel is moved by an offset of its own.

    .. math:: y[n, m, p] = b[m] + \\sum_{c, k} w[m, c, k]\\, \\mu[n, k, p]\\, x[n, c](p s + k d - pad +
              \\Delta[n, k, p])

    where :math:`x(\\cdot)` between pixels is bilinear interpolation, and outside the image 0. Offsets were
    introduced by Dai et al., "Deformable Convolutional Networks" (arXiv 1703.06211, eqs. 2-4), the
    modulation :math:`\\mu` by Zhu et al., "Deformable ConvNets v2" (arXiv 1811.11168, eq. 1). Names, order
    of the arguments and layout of the offsets are torchvision's and those of ONNX's DeformConv.

    Parameters
    ----------
    x : array (N, C_in, H, W)
        float32 or float64; float16 is computed and returned as float32. Any strides; never changed.
    offset : array (N, offset_groups · k_h · k_w · 2, H_out, W_out)
        Pixels by which a tap is moved down and to the right, in this order, tap after tap, offset group after
        offset group: the channels of ``x`` are cut into ``offset_groups`` runs with offsets of their own. Any
        numbers: what lies outside the image, at ±inf too, counts as 0; NaN makes the output NaN.
    weight : array (C_out, C_in/groups, k_h, k_w)
        Its shape says how many groups there are.
    bias : array (C_out,), optional
    stride, dilation : int or (int, int), default 1
    padding : int, (int, int), ((top, bottom), (left, right)), "valid", "same" or "full", default 0
    mask : array (N, offset_groups · k_h · k_w, H_out, W_out), optional
        What each sample is multiplied by (version 2); default: 1 (version 1).
    num_threads : int, optional
        Default: :func:`fastconv.get_num_threads`. The result's bits do not depend on it.
    out : array (N, C_out, H_out, W_out), optional
        Where to write the result; any strides.

    Returns
    -------
    ndarray (N, C_out, H_out, W_out)
        A channels-last view where ``x`` is one, else C-contiguous. float64 where any array is.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range, or shapes do not fit each other.

    Notes
    -----
    A pixel whose weight in an interpolation is 0 is not read. So with zero offsets this is
    :func:`conv2d`, next to infinite pixels too.
    """
    weight = _weight(weight)
    bias = None if bias is None else checks.float_array("bias", bias, 1, "(C_out,)")
    problem = _problem(x, offset, weight.shape, mask, stride, padding, dilation, weight, bias)
    geometry, level, count = problem.geometry, kernels.active(), threads.team(num_threads)
    if bias is not None and bias.shape != (geometry.out_channels,):
        raise ValueError(f"bias must have shape ({geometry.out_channels},), got {bias.shape}")
    if out is not None:
        checks.output_array("out", out, geometry.output_shape, geometry.dtype)
    y = out
    if not _is_ready(out, (x, offset, mask)):
        y = layout.empty(geometry.output_shape, geometry.dtype, np.asarray(x))
    if geometry.batch:
        panel_pixels, pitch = problem.panel_pixels(problem.pitch), problem.pitch
        width = base.panel_width(level, geometry.dtype)
        block = panel_pixels * width + base.scatter_slack(level, geometry.dtype, width)
        per_thread = base.round_up(panel_pixels * pitch + block + geometry.in_channels, 64)
        level.deform_conv(
            problem.image, problem.offset, problem.mask,
            base.pack_grouped(checks.kernel_ready(weight, geometry.dtype), geometry, level, count),
            base.pack_bias(bias, geometry, level), geometry, problem.offset_groups, panel_pixels, pitch,
            base.DEPTH, y.reshape(geometry.batch, geometry.out_channels, -1).transpose(0, 2, 1),
            aligned_empty((count * per_thread,), geometry.dtype), per_thread, count,
        )  # fmt: skip
    if out is not None and y is not out:
        out[...] = y
    return y if out is None else out


def _is_ready(out: np.ndarray | None, inputs: tuple) -> bool:
    """Whether a kernel can write to ``out``: it is no input, and its pixels can be one axis of a view."""
    if out is None or any(array is not None and np.may_share_memory(out, array) for array in inputs):
        return False
    return 1 in out.shape[2:] or out.strides[2] == out.shape[3] * out.strides[3]


def deform_conv2d_input_grads(
    grad_output, x, offset, weight, stride=1, padding=0, dilation=1, mask=None, *, num_threads=None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Gradients of :func:`deform_conv2d` by ``x``, ``offset`` and ``mask``.

    Each pixel gets its weight's share of the gradient of every sample it had a part in (Dai et al., appendix
    A). Where a sample lies on a row or column of pixels, where interpolation has a kink, the gradient by
    its offset is the one towards larger offsets, as in torchvision.

    Parameters
    ----------
    grad_output : array (N, C_out, H_out, W_out)
    x, offset, weight, stride, padding, dilation, mask, num_threads
        As for :func:`deform_conv2d`.

    Returns
    -------
    grad_x : ndarray (N, C_in, H, W), in the memory format of ``x``
    grad_offset : ndarray, shape of ``offset``
    grad_mask : ndarray, shape of ``mask``; None without one

    Raises
    ------
    TypeError, ValueError
        As :func:`deform_conv2d`, and if ``grad_output`` has not the shape the other arguments imply.
    """
    weight = _weight(weight)
    grad_output = checks.float_array("grad_output", grad_output, 4, "(N, C_out, H_out, W_out)")
    problem = _problem(x, offset, weight.shape, mask, stride, padding, dilation, weight, grad_output)
    geometry, level, count = problem.geometry, kernels.active(), threads.team(num_threads)
    _check_grad(grad_output, geometry)
    width, taps, dtype = base.panel_width(level, geometry.dtype), problem.taps, geometry.dtype
    pieces = _pieces(geometry.in_channels, (geometry.groups, problem.offset_groups), width)
    grad_x = np.zeros((geometry.batch, *geometry.input_size, geometry.in_channels), dtype)
    places = np.empty((geometry.batch, len(pieces), problem.pixels, taps, 3), dtype)
    if geometry.batch:
        grad = layout.channels_last(grad_output, dtype).reshape(geometry.batch, problem.pixels, -1)
        panel_pixels = problem.panel_pixels(taps * width)
        per_thread = panel_pixels * taps * width
        level.deform_conv_input_grad(
            problem.image, problem.offset, problem.mask, grad,
            _pack_pieces(weight, pieces, geometry, width), np.array(pieces, np.intp), geometry,
            problem.offset_groups, panel_pixels, base.DEPTH, grad_x, places,
            aligned_empty((count * per_thread,), dtype), per_thread, count,
        )  # fmt: skip
    grad_offset, grad_mask = _sum_places(places, pieces, problem)
    result = layout.empty(geometry.input_shape, dtype, np.asarray(x))
    result[...] = grad_x.transpose(0, 3, 1, 2)
    return result, grad_offset, grad_mask


def deform_conv2d_weight_grad(
    grad_output, x, offset, weight_shape, stride=1, padding=0, dilation=1, mask=None, *, num_threads=None
) -> np.ndarray:
    """Gradient of :func:`deform_conv2d` by its weight: the gradient of each output, times what it sampled.

    Parameters
    ----------
    grad_output : array (N, C_out, H_out, W_out)
    weight_shape : (C_out, C_in/groups, k_h, k_w)
    x, offset, stride, padding, dilation, mask, num_threads
        As for :func:`deform_conv2d`.

    Returns
    -------
    ndarray of ``weight_shape``

    Raises
    ------
    TypeError, ValueError
        As :func:`deform_conv2d`, and if ``grad_output`` has not the shape the other arguments imply.
    """
    weight_shape = checks.shape("weight_shape", weight_shape, 4, "(C_out, C_in/groups, k_h, k_w)")
    grad_output = checks.float_array("grad_output", grad_output, 4, "(N, C_out, H_out, W_out)")
    problem = _problem(x, offset, weight_shape, mask, stride, padding, dilation, grad_output)
    geometry, level, count = problem.geometry, kernels.active(), threads.team(num_threads)
    _check_grad(grad_output, geometry)
    partial = np.zeros((_GRAD_PARTS, geometry.out_channels, geometry.reduction), geometry.dtype)
    if geometry.batch:
        grad = np.ascontiguousarray(grad_output, geometry.dtype)
        panel_pixels, pitch = problem.panel_pixels(problem.pitch), problem.pitch
        slack = base.panel_width(level, geometry.dtype)  # a ragged panel is read whole
        per_thread = panel_pixels * pitch + base.round_up(geometry.in_channels + slack, 64)
        level.deform_conv_weight_grad(
            problem.image, problem.offset, problem.mask,
            grad.reshape(geometry.batch, geometry.out_channels, -1), geometry, problem.offset_groups,
            panel_pixels, pitch, partial,
            aligned_empty((count * per_thread,), geometry.dtype), per_thread, count,
        )  # fmt: skip
    taps = partial.sum(axis=0).reshape(
        geometry.out_channels, *geometry.kernel_size, geometry.in_channels // geometry.groups
    )
    return np.ascontiguousarray(taps.transpose(0, 3, 1, 2))


def _weight(weight) -> np.ndarray:
    return checks.float_array("weight", weight, 4, "(C_out, C_in/groups, k_h, k_w)")


def deform_geometry(x_shape, offset_shape, weight_shape, mask_shape, stride, padding, dilation, dtype):
    """The geometry of a deformable convolution and its number of offset groups, from shapes alone.

    Raises
    ------
    TypeError, ValueError
        If the shapes or the other arguments do not fit.
    """
    x_shape = checks.shape("x", x_shape, 4, "(N, C_in, H, W)")
    offset_shape = checks.shape("offset", offset_shape, 4, "(N, offset_groups·k_h·k_w·2, H_out, W_out)")
    channels, group_in = x_shape[1], weight_shape[1]
    if group_in < 1 or channels % group_in:
        raise ValueError(
            f"weight must have a number of input channels that divides the input's {channels},"
            f" got {group_in}: shape {weight_shape}"
        )
    geometry = ConvGeometry.create(
        x_shape, weight_shape, stride=stride, padding=padding, dilation=dilation,
        groups=max(1, channels // group_in), dtype=dtype,
    )  # fmt: skip
    taps = weight_shape[2] * weight_shape[3]
    offset_groups = offset_shape[1] // (2 * taps)
    if offset_groups < 1 or channels % offset_groups or offset_shape[1] != offset_groups * 2 * taps:
        raise ValueError(
            f"offset must have offset_groups · {2 * taps} channels (two for each tap of the weight), where"
            f" offset_groups divides the input's {channels} channels, got shape {offset_shape}"
        )
    _check_shape("offset", offset_shape, offset_shape[1], geometry)
    if mask_shape is not None:
        mask_shape = checks.shape("mask", mask_shape, 4, "(N, offset_groups·k_h·k_w, H_out, W_out)")
        _check_shape("mask", mask_shape, offset_groups * taps, geometry)
    return geometry, offset_groups


def _check_shape(name: str, shape: tuple[int, ...], channels: int, geometry: ConvGeometry) -> None:
    expected = (geometry.batch, channels, *geometry.output_size)
    if shape != expected:
        raise ValueError(f"{name} must have shape {expected} for this input and weight, got {shape}")


def _check_grad(grad_output: np.ndarray, geometry: ConvGeometry) -> None:
    _check_shape("grad_output", grad_output.shape, geometry.out_channels, geometry)


def _problem(x, offset, weight_shape, mask, stride, padding, dilation, *others) -> _Problem:
    """Check everything but ``others``, arrays that only have a say in the dtype; None among them has none."""
    x = checks.float_array("x", x, 4, "(N, C_in, H, W)")
    offset = checks.float_array("offset", offset, 4, "(N, offset_groups·k_h·k_w·2, H_out, W_out)")
    if mask is not None:
        mask = checks.float_array("mask", mask, 4, "(N, offset_groups·k_h·k_w, H_out, W_out)")
    arrays = (array for array in (x, offset, mask, *others) if array is not None)
    dtype = checks.common_dtype(arrays)
    geometry, offset_groups = deform_geometry(
        x.shape, offset.shape, weight_shape, None if mask is None else mask.shape, stride, padding, dilation,
        dtype,
    )  # fmt: skip
    ready = [None if array is None else checks.kernel_ready(array, dtype) for array in (offset, mask)]
    return _Problem(geometry, offset_groups, layout.channels_last(x, dtype), *ready)


def _pieces(channels: int, groupings: tuple[int, ...], width: int) -> list[tuple[int, int]]:
    """(first, count) of runs of at most ``width`` channels, each within one group of every grouping."""
    starts = {start for groups in groupings for start in range(0, channels, channels // groups)}
    edges = [*sorted(starts), channels]
    return [
        (first, min(width, edge - first))
        for start, edge in itertools.pairwise(edges)
        for first in range(start, edge, width)
    ]


def _pack_pieces(weight, pieces, geometry: ConvGeometry, width: int) -> np.ndarray:
    """packed[piece, tap, m, j] = weight[m of the group, first channel + j, tap], zero beyond the piece."""
    group_in = geometry.in_channels // geometry.groups
    group_out = geometry.out_channels // geometry.groups
    grouped = weight.reshape(geometry.groups, group_out, group_in, -1).transpose(0, 3, 1, 2)
    packed = np.zeros((len(pieces), grouped.shape[1], group_out, width), geometry.dtype)
    for index, (first, count) in enumerate(pieces):
        at = first % group_in
        packed[index, :, :, :count] = grouped[first // group_in, :, :, at : at + count]
    return packed


def _sum_places(places, pieces, problem: _Problem) -> tuple[np.ndarray, np.ndarray | None]:
    """The gradients of offset and mask, summed over the pieces of each offset group in their order."""
    geometry, groups = problem.geometry, problem.offset_groups
    total = np.zeros((geometry.batch, groups, *places.shape[2:]), places.dtype)
    for index, (first, _) in enumerate(pieces):
        total[:, first * groups // geometry.in_channels] += places[:, index]
    planes = total.transpose(0, 1, 3, 4, 2)  # (N, offset_groups, taps, 3, pixels)
    shape = (geometry.batch, -1, *geometry.output_size)
    if geometry.batch == 0:
        return np.empty_like(problem.offset), None if problem.mask is None else np.empty_like(problem.mask)
    grad_mask = None if problem.mask is None else np.ascontiguousarray(planes[:, :, :, 2]).reshape(shape)
    return np.ascontiguousarray(planes[:, :, :, :2]).reshape(shape), grad_mask
