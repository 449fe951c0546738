"""The weight gradient: blocked sums over output pixels, directly or by Winograd's tiles."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

import numpy as np

from fastconv.algorithms import base, winograd
from fastconv.geometry import ConvGeometry

# Output pixels multiplied at a time: a panel of their gradients and a tile of their inputs share the L1
# cache. They are summed in registers, so this bounds rounding errors as base.DEPTH does.
_PIXELS = 128
# Tiles multiplied at a time: their transforms and the sums they are added to share the L2 cache.
_TILES = 48
# Channels of a block, bytes of them for Winograd: 64 · 64 float32 sums at 36 positions are 576 KiB.
_BLOCK_CHANNELS = 128
_TILED_BLOCK_BYTES = 256
# Pieces of work to cut a problem into where its channels alone do not give so many. A fixed number: it decides
# in which order terms are summed, and results must not depend on the number of threads.
_ITEMS = 16
# As in algorithms/winograd.py: a tile's transforms cost as much as so many channels of its products.
_TRANSFORM_CHANNELS = 16
_MIN_SAVING = 1.2


class _Cuts(NamedTuple):
    """How a problem is cut: see ``weight_grad`` and ``weight_grad_winograd`` in kernels."""

    in_blocks: int
    out_blocks: int
    bands: int
    chunks: int
    parts: int
    per_thread: int
    capacity: int = 0


def _parts(blocks: int, units: int) -> int:
    return max(1, min(units, base.ceil_div(_ITEMS, blocks)))


def is_depthwise(geometry: ConvGeometry) -> bool:
    """One input channel a group: vectors run over the groups."""
    return geometry.groups > 1 and geometry.in_channels == geometry.groups == geometry.out_channels


@lru_cache(maxsize=1024)
def _direct_cuts(geometry: ConvGeometry, kernels: ModuleType) -> _Cuts:
    rows, columns = geometry.output_size
    lanes = kernels.vector_bytes() // geometry.dtype.itemsize
    groups = 1 if is_depthwise(geometry) else geometry.groups
    group_in, group_out = geometry.in_channels // groups, geometry.out_channels // groups
    in_blocks = 1 if is_depthwise(geometry) else base.ceil_div(group_in, _BLOCK_CHANNELS)
    out_blocks = min(base.ceil_div(group_out, _BLOCK_CHANNELS), base.ceil_div(group_out, lanes))
    chunks = base.ceil_div(columns, _PIXELS)
    bands = base.ceil_div(rows, max(1, _PIXELS // columns))
    parts = _parts(groups * in_blocks * out_blocks, geometry.batch * bands * chunks)
    region = (base.ceil_div(rows, bands), base.ceil_div(columns, chunks))
    covered = math.prod(
        (n - 1) * s + (k - 1) * d + 1
        for n, s, k, d in zip(region, geometry.stride, geometry.kernel_size, geometry.dilation, strict=True)
    )
    widest_in, widest_out = (
        base.round_up(base.ceil_div(base.ceil_div(channels, lanes), blocks) * lanes, lanes)
        for channels, blocks in ((group_in, in_blocks), (group_out, out_blocks))
    )
    if is_depthwise(geometry):
        widest_in = widest_out
    per_thread = covered * widest_in + math.prod(region) * widest_out
    return _Cuts(in_blocks, out_blocks, bands, chunks, parts, base.round_up(per_thread, lanes))


@lru_cache(maxsize=1024)
def _form(geometry: ConvGeometry) -> winograd.Form | None:
    """The tile to use: the fewest products; None where the direct sum is faster."""
    if is_depthwise(geometry) or winograd.WINOGRAD.unsupported(geometry):
        return None
    form = winograd.fewest_products(geometry)
    direct = math.prod(geometry.kernel_size) * math.prod(geometry.output_size)
    channels = _BLOCK_CHANNELS // 2
    blocks = (min(n // geometry.groups, channels) for n in (geometry.in_channels, geometry.out_channels))
    transforms = 1 + _TRANSFORM_CHANNELS * sum(1 / block for block in blocks)
    tiled = form.positions * winograd.tiles(geometry, form) * transforms
    return form if direct >= _MIN_SAVING * tiled else None
