"""Winograd's form for small images: 3×3 kernels whose weights are transformed along one axis only."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise
from types import ModuleType

import numpy as np

from fastconv.algorithms import base, transforms
from fastconv.algorithms.base import Call, Epilogue, Packed, bound
from fastconv.geometry import ConvGeometry
from fastconv.memory import aligned_empty, give_back

_TAPS, _POINTS, _PAIRS = 3, 6, 2
# Output channels of a panel of AVX-512, float32.
_PANEL = 32
# Channels summed at a time, as winograd_half.h has them.
_CHANNELS = 64
# Tiles transformed at a time: so often is a weight used that comes once.
_BLOCK_TILES = 28
# Tiles whose products take as long as their weights take to come, all of them in the order of use.
_WEIGHT_TILES = 6
# A product takes as long as so many of winograd.py's, by the stride: where all tiles are transformed at once,
# and where they are not, so that weights come again.
_PRODUCT = {1: (1.05, 1.1), 2: (0.95, 1.03)}
# The same with shorter vectors, which take a load for almost every product, beside those.
_SHORT = {1: 1.4, 2: 1.16}
# A tile without a second one takes as long as so many points at stride 1: additions bound it.
_ALONE = 9


def fits(geometry: ConvGeometry) -> bool:
    """Whether the problem has 3×3 kernels of stride 1 or 2, in one group, and lines of tiles of some size."""
    square = geometry.kernel_size == (_TAPS, _TAPS) and geometry.stride in ((1, 1), (2, 2))
    fitting = geometry.spatial_rank == 2 and geometry.groups == 1 and square
    return fitting and _line_bytes(geometry) <= transforms.BLOCK_BYTES


def _blocks(geometry: ConvGeometry) -> int:
    """Blocks of taps along an axis: the phases of the stride."""
    return geometry.stride[0]


def _sets(geometry: ConvGeometry) -> int:
    """Sets of weights: those of the points, at stride 2 one more."""
    return _POINTS + _blocks(geometry) - 1


def _lengths(size: int, most: int) -> list[int]:
    """Outputs of the tiles of a row: of half of them as many as a tile has, of the others what is left."""
    tiles = base.ceil_div(size, most)
    first, second = base.ceil_div(tiles, 2), tiles // 2
    left = size - first * most
    if not second or left < second:
        return [most] * (tiles - 1) + [size - most * (tiles - 1)]
    return [most] * first + [left * (i + 1) // second - left * i // second for i in reversed(range(second))]


@lru_cache(maxsize=1024)
def _axes(geometry: ConvGeometry) -> tuple[np.ndarray, np.ndarray]:
    """(2, tiles) of each axis: the output that a tile begins at, and its points.

    Rows ascend; columns come in pairs, whose first tile has all points where there are enough of these. A
    dilated axis is as many interleaved ones, its phases.
    """
    taps = 4 - _blocks(geometry)
    axes = []
    for size, dilation in zip(geometry.output_size, geometry.dilation, strict=True):
        tiles = []
        for phase in range(min(size, dilation)):
            at = phase
            for outputs in _lengths(base.ceil_div(size - phase, dilation), _POINTS + 1 - taps):
                tiles.append((at, outputs + taps - 1))
                at += dilation * outputs
        axes.append(np.array(tiles, np.intp).reshape(-1, 2).T)
    down, across = axes
    across = across[:, np.argsort(-across[1], kind="stable")]
    first = base.ceil_div(across.shape[1], 2)
    pairs = np.empty(across.shape, np.intp)
    pairs[:, ::2], pairs[:, 1::2] = across[:, :first], across[:, first:]
    return np.ascontiguousarray(down[:, np.argsort(down[0])]), pairs


def _positions(geometry: ConvGeometry) -> int:
    """Products of an image, an input and an output channel: the block of one tap has none at ∞."""
    blocks = _blocks(geometry)
    return math.prod(int((blocks * points - (blocks - 1)).sum()) for _, points in _axes(geometry))


def _line_bytes(geometry: ConvGeometry) -> int:
    """Bytes of a line of transformed tiles, and of their products with a panel."""
    tiles = base.round_up(_axes(geometry)[1].shape[1], 2)
    channels = _blocks(geometry) ** 2 * base.round_up(geometry.in_channels, _CHANNELS)
    return tiles * _POINTS**2 * (channels + _PANEL) * geometry.dtype.itemsize


def multiplications(geometry: ConvGeometry) -> int:
    """The products of the transformed tiles; the transforms themselves are left out, as is usual."""
    return geometry.batch * _positions(geometry) * geometry.in_channels * geometry.out_channels


def transformed_bytes(geometry: ConvGeometry) -> int:
    """Bytes of the transformed weights."""
    return _sets(geometry) * _TAPS * geometry.in_channels * geometry.out_channels * geometry.dtype.itemsize


def error_bound(geometry: ConvGeometry) -> float:
    """As ``Algorithm.error_bound``."""
    terms = geometry.in_channels * _blocks(geometry) ** 2
    return transforms.error_bound((_PAIRS, _PAIRS), terms, geometry.dtype)


def saving(geometry: ConvGeometry, calls: int | None, slowness: float) -> float:
    """How many times faster than direct convolution to expect this, by counting."""
    blocks, (down, across) = _blocks(geometry), _axes(geometry)
    tiles, inputs, outputs = down.shape[1] * across.shape[1], geometry.in_channels, geometry.out_channels
    # The second vector of a panel is computed where it is not needed, too.
    filled = base.round_up(outputs, _PANEL) / outputs * base.round_up(inputs, _PANEL // 2) / inputs
    moved = transforms.TRANSFORM_CHANNELS / slowness * (1 / outputs + 1 / (inputs * blocks**2))
    product = _PRODUCT[blocks][tiles > _BLOCK_TILES] * filled * (_SHORT[blocks] if slowness > 1 else 1)
    own = _positions(geometry) * product + tiles * (blocks * _POINTS) ** 2 * moved
    if blocks == 1 and across.shape[1] % 2:
        own *= 1 + (_ALONE - _POINTS) / across[1].sum()
    cost = max(own, _sets(geometry) * _TAPS * _WEIGHT_TILES)
    if calls is not None:
        cost += _sets(geometry) * _TAPS * transforms.PACKING_TILES / (max(geometry.batch, 1) * calls)
    return _TAPS**2 * max(math.prod(geometry.output_size), transforms.WEIGHT_TILES) / cost


@lru_cache(maxsize=1024)
def _blocking(geometry: ConvGeometry, num_threads: int, kernels: ModuleType) -> tuple[int, ...]:
    """Bands, parts of panels, lines at a time, elements of a pixel, and of scratch memory of a thread."""
    itemsize, width = geometry.dtype.itemsize, base.panel_width(kernels, geometry.dtype)
    line, lanes = 64 // itemsize, kernels.vector_bytes() // itemsize
    panels = base.ceil_div(geometry.out_channels, width)
    (down, across), blocks = _axes(geometry), _blocks(geometry)
    lines, pixel_pitch = down.shape[1], base.round_up(geometry.in_channels, lanes)
    reach = [_POINTS * blocks * dilation for dilation in geometry.dilation]
    row_pitch = (int(across[0].max()) * blocks + reach[1]) * pixel_pitch
    most = max(1, min(_BLOCK_TILES // across.shape[1], transforms.BLOCK_BYTES // _line_bytes(geometry)))

    bands, panel_parts = transforms.shares(geometry, panels, lines, across.shape[1], num_threads)
    # A band feeds a whole block, and more of them while it stays in cache.
    line_bytes = row_pitch * itemsize * blocks * base.ceil_div(geometry.output_size[0], lines)
    band_lines = max(most, base.BAND_BYTES // line_bytes)
    bands = min(lines, base.round_up(base.ceil_div(lines, band_lines), bands))
    block = min(base.ceil_div(lines, bands), most)

    ends = [lines * band // bands for band in range(bands + 1)]
    rows = max(int(down[0, end - 1] - down[0, start]) for start, end in pairwise(ends))
    copied = (rows * blocks + reach[0]) * row_pitch
    tiles = block * base.round_up(across.shape[1], 2)
    chunks = base.ceil_div(pixel_pitch, _CHANNELS)
    transformed = tiles * _POINTS**2 * (blocks**2 * chunks * _CHANNELS + width)
    stored = _POINTS * geometry.output_size[1] * width + base.scatter_slack(kernels, geometry.dtype, width)
    per_thread = base.round_up(copied + pixel_pitch + transformed + stored, line)
    return bands, panel_parts, block, pixel_pitch, per_thread


def workspace_bytes(geometry: ConvGeometry, num_threads: int, kernels: ModuleType) -> int:
    """Some lines of transformed tiles, their products with a panel, and a band's halo copy."""
    return _blocking(geometry, num_threads, kernels)[-1] * num_threads * geometry.dtype.itemsize


def _in_blocks(weight: np.ndarray, blocks: int) -> np.ndarray:
    """Weights (outputs, channels, 3, 3) as (1, outputs, blocks · channels, taps of a block · 3)."""
    outputs, channels = weight.shape[:2]
    if blocks == 1:
        return np.ascontiguousarray(weight).reshape(1, outputs, channels, -1)
    cut = np.zeros((outputs, blocks, channels, 2, _TAPS), weight.dtype)
    cut[:, 0], cut[:, 1, :, 0] = weight[:, :, ::2], weight[:, :, 1]
    return cut.reshape(1, outputs, blocks * channels, -1)


def pack(
    weight, bias, geometry: ConvGeometry, kernels: ModuleType, num_threads: int, into: Packed | None
) -> Packed:
    """The sets of winograd_half.pyx as panels (1, panels, sets · 3, C_in, PANEL)."""
    width, blocks = base.panel_width(kernels, geometry.dtype), _blocks(geometry)
    panels = base.ceil_div(geometry.out_channels, width)
    transformed, bias_memory = (None, None) if into is None else (into.weight, into.bias)
    if transformed is None:
        shape = 1, panels, _sets(geometry) * _TAPS, geometry.in_channels, width
        transformed = aligned_empty(shape, geometry.dtype)
    place = np.arange(_POINTS * _TAPS)[:, None]
    if blocks == 2:
        place = np.concatenate([place + _TAPS, np.where(place < _TAPS, place, -1)], axis=1)
    rows, columns, *_ = transforms.half(blocks)
    cut = _in_blocks(weight, blocks)
    workspace = aligned_empty((num_threads, math.prod(cut.shape[2:]), width), geometry.dtype)
    kernels.pack_winograd(cut, rows, columns, place, True, transformed, workspace, num_threads)
    give_back(workspace)
    return Packed(kernels, geometry, transformed, base.pack_bias(bias, geometry, kernels, bias_memory))


def bind(packed: Packed, _out: np.ndarray, epilogue: Epilogue, num_threads: int) -> Call:
    """For x (N, H, W, C_in) and out (N, H_out, W_out, C_out) of any strides."""
    geometry = packed.geometry
    *blocking, per_thread = _blocking(geometry, num_threads, packed.kernels)
    coefficient = transforms.one_axis(4, 3).coefficient.astype(geometry.dtype)
    half = transforms.half(_blocks(geometry))
    before = (
        packed.weight, packed.bias, geometry, coefficient, half.drop.astype(geometry.dtype),
        half.scale.astype(geometry.dtype), *_axes(geometry), *blocking, *epilogue,
    )  # fmt: skip
    return bound(packed.kernels.winograd_half, geometry.dtype, before, (per_thread, num_threads))
