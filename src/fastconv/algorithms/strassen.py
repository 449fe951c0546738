"""Winograd's form for 1×1 kernels: Winograd's variant of Strassen's product, one level."""

from __future__ import annotations

import math
from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

import numpy as np

from fastconv.algorithms import base
from fastconv.algorithms.base import Call, Epilogue, Packed, bound
from fastconv.geometry import ConvGeometry
from fastconv.memory import aligned_empty, give_back

PRODUCTS = 7
# Blocks of pixels, whose halves are added to each other, are whole units, so that halves begin on cache lines
# of a plane; the last has the rest, too. Seven: two times eight register tiles of AVX-512. More gain nothing,
# fewer read the weights, of which there are 7/4 as many, too often.
_UNIT, _BLOCK_UNITS = 32, 7
# How many times faster than direct convolution this must promise to be, to be chosen: its model has no more
# to count than sums, stores and weights.
MIN_SAVING = 1.04
# Bytes of a block's sums, most of an L2 cache.
_SUMS_BYTES = 1 << 20
# In times that a pixel's product with a row of a panel takes: to store a pixel of a panel of outputs, to add
# up a channel of a pixel's sums, and to bring a row of a panel from the L3 cache.
_STORE, _SUM, _WEIGHT = 3.5, 0.4, 3.5
# Images of so many bytes, those read and those written, leave the caches (32 MiB of L3), and each store to
# quarters then waits for memory.
_CACHED_BYTES, _FAR_STORE = 20 << 20, 25.0
# The same to add up and pack such a row.
_PACKING = 36.0
# Terms summed in registers at most: twice as many as in direct sums, because each product reads both factors
# from the L2 cache anyway, and fewer sums are then added to memory.
DEPTH = 2 * base.DEPTH
# Growth of the error over a sum of the same length, because sums of up to four quarters, in both factors,
# make larger terms: of 400 random problems of 1 to 1024 channels the worst came to 1.72.
_ERROR_GROWTH = 2.25


@lru_cache(maxsize=1024)
def fits(geometry: ConvGeometry) -> bool:
    """Whether the problem is one matrix product of weights and pixels."""
    return geometry.kernel_size == (1, 1) and geometry.groups == 1 and not geometry.padded


def _half(size: int) -> int:
    return base.ceil_div(size, 2)


def _blocks(geometry: ConvGeometry) -> int:
    """Parts to cut the pixels of an image into: of the problem alone, because bits depend on it."""
    unit_bytes = 2 * _UNIT * _half(geometry.in_channels) * geometry.dtype.itemsize
    units = max(1, min(_BLOCK_UNITS, _SUMS_BYTES // unit_bytes))
    return max(1, base.ceil_div(math.prod(geometry.output_size) // _UNIT, units))


def _block_pixels(geometry: ConvGeometry) -> int:
    """The most pixels a block has."""
    units, rest = divmod(math.prod(geometry.output_size), _UNIT)
    return base.ceil_div(units, _blocks(geometry)) * _UNIT + rest


def multiplications(geometry: ConvGeometry) -> int:
    """Seven products of halves; the sums are left out, as is usual."""
    halves = (math.prod(geometry.output_size), geometry.in_channels, geometry.out_channels)
    return geometry.batch * PRODUCTS * math.prod(map(_half, halves))


def transformed_bytes(geometry: ConvGeometry) -> int:
    """Bytes of the seven quarters' sums."""
    quarter = _half(geometry.in_channels) * _half(geometry.out_channels)
    return PRODUCTS * quarter * geometry.dtype.itemsize


def error_bound(geometry: ConvGeometry) -> float:
    """As ``Algorithm.error_bound``."""
    block = min(max(base.DEPTH, _half(geometry.in_channels)), DEPTH)
    return _ERROR_GROWTH * base.summation_error(geometry.in_channels, geometry.dtype, block)


def saving(geometry: ConvGeometry, calls: int | None, slowness: float) -> float:
    """How many times faster than direct convolution to expect this, by counting.

    Products take ``slowness`` times as long beside what is moved as with AVX-512.
    """
    near = geometry.input_bytes + geometry.output_bytes <= _CACHED_BYTES
    costs = _STORE if near else _FAR_STORE, _SUM, _WEIGHT, _PACKING
    store, add, weight, packing = (cost / slowness for cost in costs)
    width = 128 // geometry.dtype.itemsize
    panels, pixels = base.ceil_div(geometry.out_channels, width), math.prod(geometry.output_size)
    pairs, half, channels = _half(panels), _half(geometry.in_channels), geometry.in_channels
    rows = _half(pixels)
    direct = panels * (pixels * (channels + store) + channels * weight)
    # Seven products with eight stores, and the sums once for all pairs of panels.
    own = rows * (pairs * (PRODUCTS * half + 8 * store) + half * add)
    own += PRODUCTS * pairs * half * weight
    if calls is not None:
        own += PRODUCTS * pairs * half * packing / (max(geometry.batch, 1) * calls)
    return direct / own


def sum_pitch(geometry: ConvGeometry) -> int:
    """Elements from pixel to pixel of a sum."""
    # An odd number of cache lines, so that a tile's do not share a cache set.
    line = 64 // geometry.dtype.itemsize
    return (base.ceil_div(_half(geometry.in_channels), line) | 1) * line


def scratch(geometry: ConvGeometry, pixels: int, kernels: ModuleType) -> int:
    """Elements of sums and quarters for a block of so many pixels."""
    width, rows = base.panel_width(kernels, geometry.dtype), _half(pixels)
    slack = base.scatter_slack(kernels, geometry.dtype, width)
    return 4 * rows * (sum_pitch(geometry) + width) + slack


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
    pitch, pixels = 2 * sum_pitch(geometry), _block_pixels(geometry)
    per_thread = 2 * _half(pixels) * pitch + scratch(geometry, pixels, kernels)
    return _Blocking(blocks, min(pairs, pair_parts), pitch, base.round_up(per_thread, line))


def workspace_bytes(geometry: ConvGeometry, num_threads: int, kernels: ModuleType) -> int:
    """Sums and quarters of a block, and a copy of its pixels where they do not follow each other."""
    return _blocking(geometry, num_threads, kernels).per_thread * num_threads * geometry.dtype.itemsize


def pack(
    weight, bias, geometry: ConvGeometry, kernels: ModuleType, num_threads: int, into: Packed | None
) -> Packed:
    """The seven sums of quarters as panels, added up in float64."""
    channels, width = geometry.in_channels, base.panel_width(kernels, geometry.dtype)
    pairs = base.ceil_div(geometry.out_channels, 2 * width)
    if into is None:
        packed = aligned_empty((pairs, PRODUCTS, _half(channels), width), geometry.dtype)
        into = Packed(kernels, geometry, packed, np.zeros(2 * pairs * width, geometry.dtype))
    workspace = aligned_empty((num_threads, 2 * channels, width), geometry.dtype)
    kernels.pack_strassen(
        weight.reshape(geometry.out_channels, channels), DEPTH, into.weight, workspace, num_threads
    )
    give_back(workspace)
    into.bias[: geometry.out_channels] = 0 if bias is None else bias
    return into


def bind(packed: Packed, _out: np.ndarray, epilogue: Epilogue, num_threads: int) -> Call:
    """For x (N, H, W, C_in) and out (N, H_out, W_out, C_out) of any strides."""
    geometry = packed.geometry
    blocking = _blocking(geometry, num_threads, packed.kernels)
    before = (
        packed.weight, packed.bias, blocking.blocks, _UNIT, blocking.pair_parts, DEPTH, blocking.pitch,
        *epilogue,
    )  # fmt: skip
    kernel = bound(packed.kernels.strassen, geometry.dtype, before, (blocking.per_thread, num_threads))
    down, across = geometry.stride
    if down == across == 1:
        return kernel

    def call(x: np.ndarray, out: np.ndarray, workspace: np.ndarray) -> None:
        kernel(x[:, ::down, ::across], out, workspace)

    return call
