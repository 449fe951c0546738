"""Winograd's form for depthwise kernels of long rows: F(4, 4) along the rows, by blocks of four taps."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

import numpy as np

from fastconv.algorithms import base
from fastconv.algorithms.base import Call, Epilogue, Packed, bound
from fastconv.algorithms.transforms import evaluation
from fastconv.geometry import ConvGeometry
from fastconv.memory import aligned_empty

TAPS = OUTPUTS = 4
# The points ±a beside ∞, as kernels/winograd_depthwise.h has them, and what V is multiplied by there.
_POINTS, _SCALES = (0.5, 1.0, 2.0), (2.0, 1.0, 1.0)
# Blocks of a kernel's row, whose products are in registers together, and rows, which wait in a ring.
_BLOCKS, _MAX_ROWS = (2, 3), 16
# Bytes of the ring, part of an L1 cache, and the tiles it holds at least.
_RING_BYTES, _LEAST_TILES = 28 * 1024, 4
# Multiply–adds that a tile's transforms take as long as.
_TRANSFORM = 44
# And transforming a weight, as long as so many of a vector.
_PACKING = 60
# Taps of a row that direct has tiles for, and how much longer others take it. A part of a vector, gathered
# and scattered, takes as long as two whole ones; of the longest vectors, in which shorter ones are counted.
_SIZED, _UNSIZED, _PART = (3, 5, 7), 3.0, 2
# Growth of the error over a direct sum of as many terms.
_ERROR_GROWTH = 7.5


@lru_cache(maxsize=1024)
def fits(geometry: ConvGeometry) -> bool:
    """Whether the problem is a depthwise one of stride 1 whose kernel's rows are two or three blocks.

    The last block has fewer taps than the others.
    """
    if geometry.spatial_rank != 2 or not geometry.in_channels == geometry.out_channels == geometry.groups > 1:
        return False
    rows, taps = geometry.kernel_size
    apart = geometry.stride != (1, 1) or geometry.dilation != (1, 1)
    return not apart and taps % TAPS != 0 and _blocks(geometry) in _BLOCKS and rows <= _MAX_ROWS


def _blocks(geometry: ConvGeometry) -> int:
    return base.ceil_div(geometry.kernel_size[1], TAPS)


def _products(geometry: ConvGeometry) -> int:
    """Products of a tile with a row of the kernel."""
    return (2 * len(_POINTS) + 1) * _blocks(geometry) - 1


def _tiles(geometry: ConvGeometry) -> int:
    """Tiles of a row."""
    return base.ceil_div(geometry.output_size[1], OUTPUTS)


def multiplications(geometry: ConvGeometry) -> int:
    """The products of the transformed tiles; the transforms themselves are left out, as is usual."""
    tiles = geometry.batch * geometry.output_size[0] * _tiles(geometry)
    return tiles * geometry.out_channels * geometry.kernel_size[0] * _products(geometry)


def transformed_bytes(geometry: ConvGeometry) -> int:
    """Bytes of the transformed weights, without what fills the last vector."""
    return geometry.out_channels * geometry.kernel_size[0] * _products(geometry) * geometry.dtype.itemsize


def error_bound(geometry: ConvGeometry) -> float:
    """As ``Algorithm.error_bound``."""
    terms = geometry.kernel_size[0] * _blocks(geometry)
    return _ERROR_GROWTH * base.summation_error(terms, geometry.dtype)


def _met(geometry: ConvGeometry, axis: int) -> int:
    """Pixels of the image that the windows of all outputs meet along an axis."""
    size, kernel = geometry.output_size[axis], geometry.kernel_size[axis]
    first = np.arange(size) - geometry.padding[axis][0]
    inside = np.minimum(first + kernel, geometry.input_size[axis]) - np.maximum(first, 0)
    return int(np.maximum(inside, 0).sum())


def saving(geometry: ConvGeometry, calls: int | None, _slowness: float) -> float:
    """How many times faster than direct convolution to expect this, by counting.

    Neither multiplies rows of padding; the direct sum leaves out its columns, too.
    """
    rows, lanes = _met(geometry, 0), base.WIDEST // geometry.dtype.itemsize
    own = _tiles(geometry) * (rows * _products(geometry) + geometry.output_size[0] * _TRANSFORM)
    if calls is not None:
        weights = geometry.kernel_size[0] * _products(geometry)
        own += weights * _PACKING / (max(geometry.batch, 1) * calls)
    vectors, part = divmod(geometry.out_channels, lanes)
    own *= vectors + (_PART if part else 0)
    direct = rows * _met(geometry, 1) * base.ceil_div(geometry.out_channels, lanes)
    return direct * (1.0 if geometry.kernel_size[1] in _SIZED else _UNSIZED) / max(own, 1)


class _Blocking(NamedTuple):
    strips: int
    bands: int
    per_thread: int


@lru_cache(maxsize=1024)
def _blocking(geometry: ConvGeometry, num_threads: int, kernels: ModuleType) -> _Blocking:
    lanes = kernels.vector_bytes() // geometry.dtype.itemsize
    points, more = 2 * len(_POINTS) + 1, _blocks(geometry) - 1
    column = geometry.kernel_size[0] * points * kernels.vector_bytes()
    most = max(_LEAST_TILES, _RING_BYTES // column - more)
    strips = base.ceil_div(_tiles(geometry), most)
    tiles = base.ceil_div(_tiles(geometry), strips)
    vectors = base.ceil_div(geometry.out_channels, lanes)
    items = max(geometry.batch, 1) * strips * vectors
    # A band transforms the rows that it shares with the one before it anew.
    bands = 1 if items % num_threads == 0 or items >= 8 * num_threads else num_threads
    pixels = max(OUTPUTS * (tiles + more) + points, OUTPUTS * tiles + lanes)
    # Loads from row after row of a ring make the processor fetch what would be the next rows, and with them
    # the ring of another thread, which writes there: so as much is left free as a ring takes.
    ring = (tiles + more) * points * lanes * geometry.kernel_size[0]
    per_thread = 2 * ring + pixels * lanes
    return _Blocking(strips, min(bands, geometry.output_size[0]), base.round_up(per_thread, lanes))


def workspace_bytes(geometry: ConvGeometry, num_threads: int, kernels: ModuleType) -> int:
    """The ring, and a row of pixels that are not channels-last."""
    return _blocking(geometry, num_threads, kernels).per_thread * num_threads * geometry.dtype.itemsize


@lru_cache(maxsize=1)
def _weight_transform() -> np.ndarray:
    """G as (points, taps), the last one being ∞."""
    points = np.stack([_POINTS, np.negative(_POINTS)], axis=1).ravel()
    scales = np.repeat(_SCALES, 2)
    return np.vstack([evaluation(points, TAPS) / scales[:, None], np.eye(TAPS)[-1]])


def pack(
    weight, bias, geometry: ConvGeometry, kernels: ModuleType, num_threads: int, into: Packed | None
) -> Packed:
    """Weights as (vectors, k_h, products, LANES), transformed in float64."""
    channels, (rows, taps) = geometry.out_channels, geometry.kernel_size
    lanes, blocks = kernels.vector_bytes() // geometry.dtype.itemsize, _blocks(geometry)
    vectors = base.ceil_div(channels, lanes)
    cut = np.zeros((vectors * lanes, rows, blocks * TAPS), np.float64)
    cut[:channels, :, :taps] = weight.reshape(channels, rows, taps)
    # [channel, row, point, block]; the last block has nothing at ∞, which comes last.
    transformed = np.einsum("crbt,pt->crpb", cut.reshape(-1, rows, blocks, TAPS), _weight_transform())
    transformed = transformed.reshape(vectors, lanes, rows, -1)[..., :-1]
    if into is None:
        packed = aligned_empty((vectors, rows, _products(geometry), lanes), geometry.dtype)
        packed_bias = np.zeros(vectors * lanes, geometry.dtype)
    else:
        packed, packed_bias = into.weight, into.bias
    packed[...] = transformed.transpose(0, 2, 3, 1)
    packed_bias[:channels] = 0 if bias is None else bias
    # Products with padding are left out, which would make NaN of such a weight: every output meets it.
    packed_bias[:channels][~np.isfinite(weight).all(axis=(1, 2, 3))] = np.nan
    return Packed(kernels, geometry, packed, packed_bias)


def bind(packed: Packed, _out: np.ndarray, epilogue: Epilogue, num_threads: int) -> Call:
    """For x (N, H, W, C) and out (N, H_out, W_out, C) of any strides."""
    geometry = packed.geometry
    blocking = _blocking(geometry, num_threads, packed.kernels)
    before = (packed.weight, packed.bias, geometry, blocking.strips, blocking.bands, *epilogue)
    kernel = packed.kernels.winograd_depthwise
    return bound(kernel, geometry.dtype, before, (blocking.per_thread, num_threads))
