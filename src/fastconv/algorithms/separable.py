"""Depthwise and pointwise convolution in one pass, band by band: direct's forms, or Strassen's product."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

import numpy as np

from fastconv.algorithms import base, depthwise, direct, strassen, winograd
from fastconv.algorithms.base import Packed
from fastconv.geometry import ConvGeometry

# Pixels of a band that Strassen's method halves: 16 whole register tiles of AVX-512. Bits depend on the
# bands, so these are of the problem alone, and an image of few of them would share badly among threads.
_HALVED_PIXELS, _MIN_HALVED_BANDS = 224, 4
_NO_SEGMENTS = np.zeros(1, np.intp)


class _Blocking(NamedTuple):
    bands: int
    band_mid: int
    per_thread: int


class Pair(NamedTuple):
    """Both convolutions' weights, and whether the second takes Strassen's product."""

    first: Packed
    second: Packed
    halved: bool


@lru_cache(maxsize=1024)
def _blocking(
    geometry: ConvGeometry, second: ConvGeometry, halved: bool, num_threads: int, kernels: ModuleType
) -> _Blocking:
    rows, columns = geometry.output_size
    itemsize = geometry.dtype.itemsize
    lanes = kernels.vector_bytes() // itemsize
    mid_row = columns * geometry.out_channels
    if halved:
        bands = _halved_bands(geometry)
    else:
        # In bands of few rows panels come back into the L1 cache more often, and more input is read twice.
        bands = base.count_bands(geometry, rows, mid_row * itemsize, num_threads)
    band_rows = base.ceil_div(rows, bands)
    band_mid = base.round_up(band_rows * mid_row, 64 // itemsize)

    gathered = (
        base.in_rows(geometry, band_rows) * base.in_columns(geometry) * max(lanes, geometry.in_channels)
    )
    out_pitch = max(lanes, geometry.out_channels)
    gathered += 2 * columns * out_pitch + base.scatter_slack(kernels, geometry.dtype, out_pitch)
    if halved:
        block = strassen.scratch(second, band_rows * columns, kernels)
    else:
        width = base.panel_width(kernels, geometry.dtype)
        block = band_rows * columns * width + base.scatter_slack(kernels, geometry.dtype, width)
    per_thread = base.round_up(band_mid + max(gathered, block), 64 // itemsize)
    return _Blocking(bands, band_mid, per_thread)


def _halved_bands(geometry: ConvGeometry) -> int:
    rows, columns = geometry.output_size
    return base.ceil_div(rows, max(1, _HALVED_PIXELS // columns))


def _halves(second: ConvGeometry, calls: int | None, kernels: ModuleType) -> bool:
    """Whether Strassen's product pays."""
    enough = _halved_bands(second) >= _MIN_HALVED_BANDS
    return enough and winograd.saving(second, calls, kernels.vector_bytes()) >= strassen.MIN_SAVING


def pack(
    depthwise_weight, depthwise_bias, pointwise_weight, pointwise_bias, geometry: ConvGeometry,
    calls: int | None, kernels: ModuleType, num_threads: int,
) -> Pair:  # fmt: skip
    """Both convolutions' weights for so many calls; ``geometry`` is the depthwise one's."""
    second = ConvGeometry.create(geometry.output_shape, pointwise_weight.shape, dtype=geometry.dtype)
    halved = _halves(second, calls, kernels)
    form = strassen.pack if halved else base.pack_panels
    return Pair(
        depthwise.pack(depthwise_weight, depthwise_bias, geometry, kernels),
        form(pointwise_weight, pointwise_bias, second, kernels, num_threads, None),
        halved,
    )


def workspace_size(geometry: ConvGeometry, pair: Pair, num_threads: int) -> int:
    """Elements of scratch memory a call needs."""
    first, second, halved = pair
    blocking = _blocking(geometry, second.geometry, halved, num_threads, first.kernels)
    return num_threads * blocking.per_thread


def run(
    x, geometry: ConvGeometry, pair: Pair, out, rectified: tuple[bool, bool], workspace, num_threads: int
) -> None:
    """Compute x (N, H, W, C_in), of this geometry, → out (N, H_out, W_out, C_out), both of any strides."""
    first, second, halved = pair
    kernels, channels = first.kernels, geometry.out_channels
    blocking = _blocking(geometry, second.geometry, halved, num_threads, kernels)
    depth = pitch = 0
    if halved:
        segments, depth, pitch = (_NO_SEGMENTS, 0), strassen.DEPTH, 2 * strassen.sum_pitch(second.geometry)
    else:
        segments = direct.segments(second.geometry, geometry.output_size[1] * channels, channels)
    kernels.separable(
        x, first.weight, first.bias, geometry, *depthwise.vectors(geometry, kernels), not first.finite,
        rectified[0], second.weight, second.bias, second.geometry, *segments, depth, pitch, rectified[1],
        blocking.bands, blocking.band_mid, out, workspace, blocking.per_thread, num_threads,
    )  # fmt: skip
