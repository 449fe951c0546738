"""Winograd's form for 1×1 kernels: Strassen's product of pixels and weights, one level, in Winograd's variant."""

from __future__ import annotations

import math
from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

import numpy as np

from fastconv.algorithms import base
from fastconv.algorithms.base import Epilogue, Packed
from fastconv.geometry import ConvGeometry
from fastconv.memory import aligned_empty

PRODUCTS = 7
# Pixels of a block, whose halves are added to each other: 2 · 98 are fourteen register tiles of AVX-512. Longer
# ones gain nothing, shorter ones read the weights, of which there are 7/4 as many, too often.
import os
_BLOCK_PIXELS = int(os.environ.get("SBLOCK", 196))
# Bytes of a block's sums, most of an L2 cache.
_SUMS_BYTES = 1 << 20
# Of the times below, in which a pixel meets a channel of a panel in one: moving a pixel of a panel of outputs,
# adding up a pixel for a channel of a half, and bringing a panel's row of weights from the L3 cache.
_STORE, _SUM, _WEIGHT = 4.0, 0.95, 3.5
# Adding up and packing a row of a panel of weights.
_PACKING = 1200.0
import os
_DEPTH = int(os.environ.get("SDEPTH", 256))
# Growth of the error over a direct sum of all channels; see error_bound.
_ERROR_GROWTH = 2.5


@lru_cache(maxsize=1024)
def fits(geometry: ConvGeometry) -> bool:
    """Whether the problem is one matrix product of weights and pixels."""
    return geometry.kernel_size == (1, 1) and geometry.groups == 1 and not geometry.padded


def _half(size: int) -> int:
    return base.ceil_div(size, 2)


def _blocks(geometry: ConvGeometry) -> int:
    """Parts to cut the pixels of an image into: of the problem alone, because bits depend on it."""
    sum_bytes = 2 * _half(geometry.in_channels) * geometry.dtype.itemsize
    block = max(2, min(_BLOCK_PIXELS, _SUMS_BYTES // sum_bytes))
    return base.ceil_div(math.prod(geometry.output_size), block)


def multiplications(geometry: ConvGeometry) -> int:
    """Seven products of halves; the sums are left out, as is usual."""
    halves = (math.prod(geometry.output_size), geometry.in_channels, geometry.out_channels)
    return geometry.batch * PRODUCTS * math.prod(map(_half, halves))


def transformed_bytes(geometry: ConvGeometry) -> int:
    """Bytes of the seven quarters' sums."""
    quarter = _half(geometry.in_channels) * _half(geometry.out_channels)
    return PRODUCTS * quarter * geometry.dtype.itemsize


def error_bound(geometry: ConvGeometry) -> float:
    """Sums of up to four quarters, in both factors, make larger terms, and so larger rounding errors."""
    return _ERROR_GROWTH * base.summation_error(geometry.in_channels, geometry.dtype)


def saving(geometry: ConvGeometry, calls: int | None) -> float:
    """How many times faster than direct convolution to expect this, by counting."""
    width = 128 // geometry.dtype.itemsize
    panels, pixels = base.ceil_div(geometry.out_channels, width), math.prod(geometry.output_size)
    pairs, half, channels = _half(panels), _half(geometry.in_channels), geometry.in_channels
    blocks = _blocks(geometry)
    rows = blocks * _half(base.ceil_div(pixels, blocks))
    direct = panels * (pixels * (channels + _STORE) + channels * _WEIGHT)
    # Seven products with eight stores, and the sums once for all pairs of panels.
    own = rows * (pairs * (PRODUCTS * half + 8 * _STORE) + half * _SUM)
    own += PRODUCTS * pairs * half * _WEIGHT
    if calls is not None:
        own += PRODUCTS * pairs * half * _PACKING / (max(geometry.batch, 1) * calls)
    return direct / own


class _Blocking(NamedTuple):
    blocks: int
    pair_parts: int
    pitch: int
    per_thread: int


@lru_cache(maxsize=1024)
def _blocking(geometry: ConvGeometry, num_threads: int, kernels: ModuleType) -> _Blocking:
    line, width = 64 // geometry.dtype.itemsize, base.panel_width(kernels, geometry.dtype)
    blocks, pairs = _blocks(geometry), base.ceil_div(geometry.out_channels, 2 * width)
    items = blocks * max(geometry.batch, 1)
    by_blocks = base.ceil_div(items, num_threads) * pairs
    by_pairs = base.ceil_div(pairs, num_threads) * items
    pair_parts = num_threads if by_pairs < by_blocks else base.ceil_div(num_threads, items)
    # An odd number of cache lines from pixel to pixel of a sum, so that a tile's do not share a cache set.
    sum_pitch = (base.ceil_div(_half(geometry.in_channels), line) | 1) * line
    rows = _half(base.ceil_div(math.prod(geometry.output_size), blocks))
    quarters = (2 + 4) * rows * width + base.scatter_slack(kernels, geometry.dtype, width)
    per_thread = (4 + 2 * 2) * rows * sum_pitch + quarters
    return _Blocking(blocks, min(pairs, pair_parts), 2 * sum_pitch, base.round_up(per_thread, line))


def workspace_bytes(geometry: ConvGeometry, num_threads: int, kernels: ModuleType) -> int:
    """Sums and quarters of a block, and a copy of its pixels where they do not follow each other."""
    return _blocking(geometry, num_threads, kernels).per_thread * num_threads * geometry.dtype.itemsize


def pack(weight, bias, geometry: ConvGeometry, kernels: ModuleType, num_threads: int) -> Packed:
    """The seven sums of quarters as panels, added up in float64."""
    channels, half = geometry.in_channels, _half(geometry.in_channels)
    width = base.panel_width(kernels, geometry.dtype)
    pairs = base.ceil_div(geometry.out_channels, 2 * width)
    # [half of the outputs, output, half of the inputs, input]; the input that is in both halves counts once.
    quarters = np.zeros((2 * pairs * width, 2, half), np.float64)
    matrix = weight.reshape(geometry.out_channels, channels)
    quarters[: len(matrix), 0] = matrix[:, :half]
    quarters[: len(matrix), 1, 2 * half - channels :] = matrix[:, half:]
    (b11, b21), (b12, b22) = quarters.reshape(2, pairs * width, 2, half).transpose(0, 2, 1, 3)
    t1, t3 = b12 - b11, b22 - b12
    t2 = b22 - t1
    factors = np.empty((pairs, PRODUCTS, width, half), geometry.dtype)
    for product, values in enumerate((b11, b21, t2, t3, b21 - t2, t1, b22)):
        factors[:, product] = values.reshape(pairs, width, half)
    packed = aligned_empty((pairs, PRODUCTS, half, width), geometry.dtype)
    kernels.pack_weight(factors.reshape(pairs, PRODUCTS * width, half, 1), packed, num_threads)
    packed_bias = np.zeros(2 * pairs * width, geometry.dtype)
    if bias is not None:
        packed_bias[: len(bias)] = bias
    return Packed(kernels, geometry, packed, packed_bias)


def run(x, packed: Packed, out, epilogue: Epilogue, workspace, num_threads: int) -> None:
    """Compute x (N, H, W, C_in) → out (N, H_out, W_out, C_out), both of any strides."""
    geometry = packed.geometry
    blocking = _blocking(geometry, num_threads, packed.kernels)
    down, across = geometry.stride
    packed.kernels.strassen(
        x[:, ::down, ::across], packed.weight, packed.bias, blocking.blocks, blocking.pair_parts, _DEPTH,
        blocking.pitch, *epilogue, out, workspace, blocking.per_thread, num_threads,
    )  # fmt: skip
