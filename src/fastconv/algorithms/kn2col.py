"""kn2col: k² products of 1×1 convolutions, each added to the shifted output."""

from __future__ import annotations

import math
from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

import numpy as np

from fastconv.algorithms import base
from fastconv.algorithms.base import Algorithm, Call, Epilogue, Packed, bound
from fastconv.geometry import ConvGeometry


class _Blocking(NamedTuple):
    bands: int
    panel_parts: int
    per_thread: int


@lru_cache(maxsize=1024)
def _blocking(geometry: ConvGeometry, num_threads: int, kernels: ModuleType) -> _Blocking:
    rows, columns = geometry.output_size
    itemsize = geometry.dtype.itemsize
    in_row = geometry.input_size[1] * geometry.in_channels
    out_row = columns * geometry.out_channels
    row_bytes = (geometry.stride[0] * in_row + out_row) * itemsize
    width = base.panel_width(kernels, geometry.dtype)
    panels = base.ceil_div(geometry.out_channels // geometry.groups, width)
    bands, panel_parts = base.share_out(geometry, rows, row_bytes, panels, num_threads)
    if geometry.groups > 1:
        panel_parts = 1  # each group has panels of its own
    band_rows = base.ceil_div(rows, bands)
    per_thread = min(base.in_rows(geometry, band_rows), geometry.input_size[0]) * in_row + band_rows * out_row
    per_thread += base.scatter_slack(kernels, geometry.dtype, geometry.out_channels)
    return _Blocking(bands, panel_parts, base.round_up(per_thread, 64 // itemsize))


def _reached(geometry: ConvGeometry, axis: int) -> int:
    """Pairs (output, tap) of one axis whose input lies inside the image."""
    size, stride, low = geometry.input_size[axis], geometry.stride[axis], geometry.padding[axis][0]
    outputs = np.arange(geometry.output_size[axis]) * stride - low
    taps = np.arange(geometry.kernel_size[axis]) * geometry.dilation[axis]
    reached = np.add.outer(taps, outputs)
    return int(np.count_nonzero((reached >= 0) & (reached < size)))


class Kn2col(Algorithm):
    """One 1×1 product for every tap, accumulated where the tap points: no lowering, no zero multiplied.

    The accumulating variant of Anderson, Vasudevan, Keane and Gregg, "Low-memory GEMM-based convolution
    algorithms for deep neural networks", arXiv 1709.03395; done a band of output rows at a time.
    """

    name = "kn2col"

    def multiplications(self, geometry: ConvGeometry, vector_bytes: int = base.WIDEST) -> int:
        """Those whose input lies inside the image."""
        inside = (_reached(geometry, axis) for axis in range(geometry.spatial_rank))
        channels = geometry.in_channels // geometry.groups * geometry.out_channels
        return geometry.batch * channels * math.prod(inside)

    def workspace_bytes(self, geometry: ConvGeometry, num_threads: int, kernels: ModuleType) -> int:
        return _blocking(geometry, num_threads, kernels).per_thread * num_threads * geometry.dtype.itemsize

    def error_bound(self, geometry: ConvGeometry) -> float:
        block = min(base.DEPTH, geometry.in_channels // geometry.groups)
        return base.summation_error(geometry.reduction, geometry.dtype, block)

    def pack(
        self, weight, bias, geometry: ConvGeometry, kernels: ModuleType, num_threads: int, into=None
    ) -> Packed:
        panels = None if into is None else into.weight
        packed_bias = np.empty(geometry.out_channels, geometry.dtype) if into is None else into.bias
        packed_bias[:] = 0 if bias is None else bias
        packed_weight = base.pack_grouped(weight, geometry, kernels, num_threads, panels)
        return Packed(kernels, geometry, packed_weight, packed_bias)

    def bind(self, packed: Packed, x, out, epilogue: Epilogue, num_threads: int) -> Call:
        geometry = packed.geometry
        blocking = _blocking(geometry, num_threads, packed.kernels)
        before = (
            packed.weight, packed.bias, geometry, blocking.bands, blocking.panel_parts, base.DEPTH,
            x.strides[3] != x.itemsize, *epilogue,
        )  # fmt: skip
        return bound(packed.kernels.kn2col, geometry.dtype, before, (blocking.per_thread, num_threads))
