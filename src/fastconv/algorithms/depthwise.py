"""Direct's form for depthwise convolution and for groups of a few channels."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

import numpy as np

from fastconv.algorithms import base
from fastconv.algorithms.base import Call, Epilogue, Packed, bound
from fastconv.geometry import ConvGeometry
from fastconv.memory import aligned_empty

# Bytes of a group's planes gathered at a time: half an L1 cache, the rest is for weights and outputs.
_PLANE_BYTES = 24 * 1024
# Weights of a vector that lie so many bytes apart fall into a few sets of the L1 cache, and groups of several
# channels have more of them than fit there.
_ALIASING_BYTES = 1024


class Vectors(NamedTuple):
    """Where the inputs of each vector of output channels are; see kernels/depthwise.pyx.

    Bytes, because a kernel has an array's only after 0.06 µs of each call.
    """

    base: bytes
    lanes: bytes


def _firsts(geometry: ConvGeometry, lanes: int) -> np.ndarray:
    """The first output channel of each vector; the last vector overlaps the one before."""
    first = np.arange(0, geometry.out_channels, lanes)
    first[-1] = max(0, geometry.out_channels - lanes)
    return first


@lru_cache(maxsize=256)
def vectors(geometry: ConvGeometry, kernels: ModuleType) -> Vectors:
    lanes = kernels.vector_bytes() // geometry.dtype.itemsize
    group_in, group_out = (n // geometry.groups for n in (geometry.in_channels, geometry.out_channels))
    first = _firsts(geometry, lanes)
    base = first // group_out * group_in
    if group_out % lanes:  # else a vector lies in one group, and its channels are broadcast one by one
        base = np.minimum(base, max(0, geometry.in_channels - lanes))
    channel = (first[:, None] + np.arange(lanes)) // group_out * group_in - base[:, None]
    channel = channel[:, None, :] + np.arange(group_in)[:, None]
    index = np.dtype(f"i{geometry.dtype.itemsize}")
    return Vectors(base.astype(np.intp).tobytes(), channel.astype(index).tobytes())


@lru_cache(maxsize=1024)
def fits(geometry: ConvGeometry, kernels: ModuleType) -> bool:
    """Whether each vector of output channels reads at most one of input channels, or is a whole group."""
    lanes = kernels.vector_bytes() // geometry.dtype.itemsize
    group_in, group_out = (n // geometry.groups for n in (geometry.in_channels, geometry.out_channels))
    if geometry.groups == 1 or group_in == 1:
        return geometry.groups > 1
    if geometry.reduction > base.DEPTH:
        return False
    if group_out == lanes:
        return True  # wider groups are better off as a product of matrices
    if group_in > lanes // 2:
        return False
    first = _firsts(geometry, lanes)
    last = np.minimum(first + lanes, geometry.out_channels) - 1
    return bool(((last // group_out - first // group_out + 1) * group_in <= lanes).all())


class _Blocking(NamedTuple):
    bands: int
    shares: int
    plane_bands: int
    phase_pitch: int
    offset: np.ndarray
    per_thread: int


@lru_cache(maxsize=1024)
def _blocking(geometry: ConvGeometry, num_threads: int, kernels: ModuleType) -> _Blocking:
    rows, columns = geometry.output_size
    itemsize = geometry.dtype.itemsize
    lanes = kernels.vector_bytes() // itemsize
    group_in = geometry.in_channels // geometry.groups
    in_columns, stride = base.in_columns(geometry), geometry.stride[1]

    row_pitch = in_columns * max(lanes, geometry.in_channels)
    bands = base.count_bands(geometry, rows, geometry.stride[0] * row_pitch * itemsize, num_threads)
    band_rows = 2 * base.ceil_div(base.ceil_div(rows, 2), bands)  # bands hold pairs of rows
    gathered = base.in_rows(geometry, band_rows) * row_pitch
    out_pitch = max(lanes, geometry.out_channels)
    gathered += 2 * columns * out_pitch + base.scatter_slack(kernels, geometry.dtype, out_pitch)

    phase_pitch = base.phase_pitch(geometry, kernels)
    plane_row = stride * phase_pitch
    halo = base.in_rows(geometry, 1) - geometry.stride[0]
    band_rows = (_PLANE_BYTES // (group_in * plane_row * itemsize) - halo) // geometry.stride[0]
    plane_bands = base.ceil_div(rows, max(8, band_rows))
    if geometry.batch * geometry.groups * plane_bands < 4 * num_threads:
        plane_bands = min(rows, base.round_up(plane_bands, num_threads))
    plane_rows = base.in_rows(geometry, base.ceil_div(rows, plane_bands))
    planes = group_in * plane_rows * plane_row + 2 * lanes
    # At worst every row of a strip is copied; see square_band in kernels/planes.pyx.
    copied_row = base.round_up(columns, lanes) * stride + geometry.kernel_size[1]
    strip_rows = plane_rows + 2
    strips = strip_rows * (8 // itemsize + copied_row) + 2 * lanes * plane_rows
    return _Blocking(
        bands,
        base.count_bands(geometry, rows, 1, num_threads),
        plane_bands,
        phase_pitch,
        base.plane_offsets(geometry, plane_rows, phase_pitch).ravel().astype(np.intp),
        base.round_up(max(gathered, planes, strips), 64 // itemsize),
    )


def summed_at_once(geometry: ConvGeometry) -> int:
    """Terms of the longest sum that is not cut into blocks: depthwise kernels are summed in one run."""
    return geometry.reduction if geometry.in_channels == geometry.groups > 1 else base.DEPTH


def workspace_bytes(geometry: ConvGeometry, num_threads: int, kernels: ModuleType) -> int:
    """Scratch for the worst of the layouts; channels-last views in and out use none of it."""
    return _blocking(geometry, num_threads, kernels).per_thread * num_threads * geometry.dtype.itemsize


def pack(weight, bias, geometry: ConvGeometry, kernels: ModuleType, into: Packed | None = None) -> Packed:
    """Weights as (k_h·C_in/groups·k_w, C_out in whole vectors)."""
    channels = geometry.out_channels
    if into is None:
        lanes = kernels.vector_bytes() // geometry.dtype.itemsize
        pitch = base.round_up(channels, lanes)
        if geometry.in_channels > geometry.groups and pitch * geometry.dtype.itemsize % _ALIASING_BYTES == 0:
            pitch += lanes
        packed = aligned_empty((geometry.reduction + 1, pitch), geometry.dtype)
        packed_weight, packed_bias = packed[:-1], packed[-1]
    else:
        packed_weight, packed_bias = into.weight, into.bias
    finite = kernels.pack_narrow(np.ascontiguousarray(weight), packed_weight)
    packed_bias[channels:] = 0
    packed_bias[:channels] = 0 if bias is None else bias
    return Packed(kernels, geometry, packed_weight, packed_bias, finite=finite)


def bind(packed: Packed, x, out, epilogue: Epilogue, num_threads: int) -> Call:
    """Planes stay planes and pixels stay pixels; any other strides are gathered into pixels.

    Padding is zeros that are multiplied: an infinite or NaN weight makes a NaN of them. Leaving those
    products out is the same for finite weights alone.
    """
    geometry, kernels = packed.geometry, packed.kernels
    blocking = _blocking(geometry, num_threads, kernels)
    after = blocking.per_thread, num_threads
    if x.strides[2] == out.strides[2] == x.itemsize:
        before = (
            packed.weight, packed.bias, geometry, blocking.offset, blocking.phase_pitch,
            blocking.plane_bands, packed.finite, *epilogue,
        )  # fmt: skip
        return bound(kernels.depthwise_planes, geometry.dtype, before, after)
    # What lies in whole vectors of channels is read where it lies, and only threads need bands.
    copied = (
        not packed.finite
        or x.strides[3] != x.itemsize
        or geometry.in_channels * x.itemsize < kernels.vector_bytes()
    )
    before = (
        packed.weight, packed.bias, geometry, *vectors(geometry, kernels),
        blocking.bands if copied else blocking.shares, copied, *epilogue,
    )  # fmt: skip
    return bound(kernels.depthwise, geometry.dtype, before, after)
