"""Direct convolution: an implicit GEMM on channels-last rows; depthwise.py has its narrow groups."""

from __future__ import annotations

import math
from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

import numpy as np

from fastconv.algorithms import base, depthwise, planes
from fastconv.algorithms.base import Algorithm, Call, Epilogue, Packed, bound
from fastconv.geometry import ConvGeometry

# To turn planar pixels into channels-last ones, in the time that they take for a product with a panel.
_TURN = 0.7


class Segments(NamedTuple):
    """The K axis as runs of consecutive input elements, in ``chunks`` blocks of sums.

    ``table`` says where each chunk begins (one more at the end), then each segment's offset, then its length.
    """

    table: np.ndarray
    chunks: int


@lru_cache(maxsize=256)
def segments(geometry: ConvGeometry, row_pitch: int, pixel_pitch: int) -> Segments:
    """Cut K = (k_h, k_w, C_in/groups) into runs for the given pitches, and the runs into chunks.

    Chunks end at the same terms whatever the pitches, so strides of the input never change a result.
    """
    channels = geometry.in_channels // geometry.groups
    kernel_h, kernel_w = geometry.kernel_size
    pieces = base.ceil_div(channels, base.DEPTH)
    chunks = base.ceil_div(kernel_h * kernel_w, max(1, base.DEPTH // channels))
    taps_a_chunk = base.ceil_div(kernel_h * kernel_w, chunks)
    offset, length, chunk = [], [], []
    for tap in range(kernel_h * kernel_w):
        i, j = divmod(tap, kernel_w)
        start = i * geometry.dilation[0] * row_pitch + j * geometry.dilation[1] * pixel_pitch
        for piece in range(pieces):
            first, last = channels * piece // pieces, channels * (piece + 1) // pieces
            if pieces > 1 or tap % taps_a_chunk == 0:
                chunk.append(len(offset))
            elif offset[-1] + length[-1] == start:
                length[-1] += channels
                continue
            offset.append(start + first)
            length.append(last - first)
    chunk.append(len(offset))
    return Segments(np.array(chunk + offset + length, np.intp), len(chunk) - 1)


class _Blocking(NamedTuple):
    bands: int
    panel_parts: int
    per_thread: int


@lru_cache(maxsize=1024)
def _blocking(geometry: ConvGeometry, in_place: bool, num_threads: int, kernels: ModuleType) -> _Blocking:
    """How to cut the problem. Unless outputs are stored ``in_place``, they wait in scratch by panels."""
    rows, columns = geometry.output_size
    itemsize = geometry.dtype.itemsize
    width = base.panel_width(kernels, geometry.dtype)
    row_pitch = base.in_columns(geometry) * geometry.in_channels
    row_size = geometry.stride[0] * row_pitch
    row_size = row_size if in_place else max(row_size, columns * width)
    panels = base.ceil_div(geometry.out_channels // geometry.groups, width)
    copy = 0.0 if in_place else _TURN / math.prod(geometry.kernel_size)
    bands, panel_parts = base.share_out(geometry, rows, row_size * itemsize, panels, num_threads, copy)
    band_rows = base.ceil_div(rows, bands)
    block = 0 if in_place else band_rows * columns * width
    block += base.scatter_slack(kernels, geometry.dtype, width)
    per_thread = base.in_rows(geometry, band_rows) * row_pitch + block
    if planes.fits(geometry, kernels):
        per_thread = max(per_thread, planes.per_thread(geometry, num_threads, kernels))
    return _Blocking(bands, panel_parts, base.round_up(per_thread, 64 // itemsize))


class Direct(Algorithm):
    """The definition, computed where the input lies.

    Nothing is lowered: a register tile of output pixels walks the taps of the (channels-last) input while
    a panel of packed weights streams by; sums stay in registers for up to 256 terms. See Georganas et
    al., "Anatomy of high-performance deep learning convolutions on SIMD architectures", SC 2018.
    """

    name = "direct"

    def workspace_bytes(self, geometry: ConvGeometry, num_threads: int, kernels: ModuleType) -> int:
        if depthwise.fits(geometry, kernels):
            return depthwise.workspace_bytes(geometry, num_threads, kernels)
        per_thread = max(
            _blocking(geometry, where, num_threads, kernels).per_thread for where in (True, False)
        )
        return per_thread * num_threads * geometry.dtype.itemsize

    def error_bound(self, geometry: ConvGeometry) -> float:
        block = depthwise.summed_at_once(geometry)
        return base.summation_error(geometry.reduction, geometry.dtype, block)

    def packing(self, geometry: ConvGeometry, kernels: ModuleType) -> bool:
        return planes.fits(geometry, kernels)

    def pack(
        self, weight, bias, geometry: ConvGeometry, kernels: ModuleType, num_threads: int, into=None
    ) -> Packed:
        if planes.fits(geometry, kernels):
            return planes.pack(weight, bias, geometry, kernels, num_threads, into)
        if depthwise.fits(geometry, kernels):
            return depthwise.pack(weight, bias, geometry, kernels, into)
        return base.pack_panels(weight, bias, geometry, kernels, num_threads, into)

    def bind(self, packed: Packed, x, out, epilogue: Epilogue, num_threads: int) -> Call:
        geometry, kernels = packed.geometry, packed.kernels
        if depthwise.fits(geometry, kernels):
            return depthwise.bind(packed, x, out, epilogue, num_threads)
        weight = packed.weight
        if planes.fits(geometry, kernels):
            if planes.is_planar(x, out, geometry):
                return planes.bind(packed, epilogue, num_threads)
            weight = planes.form(packed, planes.panels, num_threads)
        blocking = _blocking(geometry, out.strides[3] == out.itemsize, num_threads, kernels)
        copy_band = geometry.padded or x.strides[3] != x.itemsize
        if copy_band:
            pixel_pitch = geometry.in_channels
            row_pitch = base.in_columns(geometry) * pixel_pitch
        else:
            row_pitch, pixel_pitch = x.strides[1] // x.itemsize, x.strides[2] // x.itemsize
        before = (
            weight, packed.bias, geometry, *segments(geometry, row_pitch, pixel_pitch), blocking.bands,
            blocking.panel_parts, copy_band, *epilogue,
        )  # fmt: skip
        return bound(kernels.direct, geometry.dtype, before, (blocking.per_thread, num_threads))
