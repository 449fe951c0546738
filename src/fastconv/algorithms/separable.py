"""Depthwise and pointwise convolution in one pass: direct's two forms, band by band of rows."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

from fastconv.algorithms import base, depthwise, direct
from fastconv.algorithms.base import Packed
from fastconv.geometry import ConvGeometry


class _Blocking(NamedTuple):
    bands: int
    band_mid: int
    per_thread: int


@lru_cache(maxsize=1024)
def _blocking(geometry: ConvGeometry, num_threads: int, kernels: ModuleType) -> _Blocking:
    rows, columns = geometry.output_size
    itemsize = geometry.dtype.itemsize
    lanes = kernels.vector_bytes() // itemsize
    mid_row = columns * geometry.out_channels
    # In bands of few rows panels come back into the L1 cache more often, and more input is read twice.
    bands = base.count_bands(geometry, rows, mid_row * itemsize, num_threads)
    band_rows = base.ceil_div(rows, bands)
    band_mid = base.round_up(band_rows * mid_row, 64 // itemsize)

    gathered = (
        base.in_rows(geometry, band_rows) * base.in_columns(geometry) * max(lanes, geometry.in_channels)
    )
    out_pitch = max(lanes, geometry.out_channels)
    gathered += 2 * columns * out_pitch + base.scatter_slack(kernels, geometry.dtype, out_pitch)
    width = base.panel_width(kernels, geometry.dtype)
    block = band_rows * columns * width + base.scatter_slack(kernels, geometry.dtype, width)
    per_thread = base.round_up(band_mid + max(gathered, block), 64 // itemsize)
    return _Blocking(bands, band_mid, per_thread)


def pack(
    depthwise_weight, depthwise_bias, pointwise_weight, pointwise_bias, geometry: ConvGeometry,
    kernels: ModuleType, num_threads: int,
) -> tuple[Packed, Packed]:  # fmt: skip
    """Both convolutions' weights; ``geometry`` is the depthwise one's."""
    second = ConvGeometry.create(geometry.output_shape, pointwise_weight.shape, dtype=geometry.dtype)
    return depthwise.pack(depthwise_weight, depthwise_bias, geometry, kernels), Packed(
        kernels, second, base.pack_grouped(pointwise_weight, second, kernels, num_threads),
        base.pack_bias(pointwise_bias, second, kernels),
    )  # fmt: skip


def workspace_size(geometry: ConvGeometry, num_threads: int, kernels: ModuleType) -> int:
    """Elements of scratch memory a call needs."""
    return num_threads * _blocking(geometry, num_threads, kernels).per_thread


def run(
    x, first: Packed, second: Packed, out, rectified: tuple[bool, bool], workspace, num_threads: int
) -> None:
    """Compute x (N, H, W, C_in) → out (N, H_out, W_out, C_out), both of any strides."""
    geometry, kernels = first.geometry, first.kernels
    blocking = _blocking(geometry, num_threads, kernels)
    channels = geometry.out_channels
    kernels.separable(
        x, first.weight, first.bias, geometry, *depthwise.vectors(geometry, kernels), not first.finite,
        rectified[0], second.weight, second.bias, second.geometry,
        *direct.segments(second.geometry, geometry.output_size[1] * channels, channels), rectified[1],
        blocking.bands, blocking.band_mid, out, workspace, blocking.per_thread, num_threads,
    )  # fmt: skip
