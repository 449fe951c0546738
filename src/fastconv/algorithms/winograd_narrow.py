"""Winograd's form for narrow groups: F(4, 3) along the rows of 3×3 kernels."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

import numpy as np

from fastconv.algorithms import base, transforms
from fastconv.algorithms.base import Call, Epilogue, Packed, bound
from fastconv.geometry import ConvGeometry
from fastconv.memory import aligned_empty, give_back

_OUTPUTS, _TAPS, _POINTS = 4, 3, 6
# Channels of a group: so many lanes of a vector find theirs by two shuffles.
_GROUPS = (4, 8)
# The definition's time over this form's, by channels of a group, where no column of a tile is computed in
# vain and there are as many rows of input as of outputs.
_GAIN = {4: 1.35, 8: 1.55}
# Transforming a weight takes as long as its products with so many rows of tiles.
_PACKING_ROWS = 90


@lru_cache(maxsize=1024)
def fits(geometry: ConvGeometry) -> bool:
    """Whether the problem has 3×3 kernels of stride 1 in narrow groups of whole vectors."""
    if geometry.spatial_rank != 2 or geometry.in_channels != geometry.out_channels or geometry.groups == 1:
        return False
    plain = geometry.stride == geometry.dilation == (1, 1) and geometry.kernel_size == (_TAPS, _TAPS)
    whole = geometry.in_channels * geometry.dtype.itemsize % base.WIDEST == 0
    return plain and whole and geometry.in_channels // geometry.groups in _GROUPS


def _tiles(geometry: ConvGeometry) -> int:
    """Tiles of a row."""
    return base.ceil_div(geometry.output_size[1], _OUTPUTS)


def multiplications(geometry: ConvGeometry) -> int:
    """The products of the transformed tiles; the transforms themselves are left out, as is usual."""
    tiles = geometry.batch * geometry.output_size[0] * _tiles(geometry)
    return tiles * _POINTS * _TAPS * geometry.out_channels * geometry.in_channels // geometry.groups


def transformed_bytes(geometry: ConvGeometry) -> int:
    """Bytes of the transformed weights."""
    channels = geometry.out_channels * geometry.in_channels // geometry.groups
    return _POINTS * _TAPS * channels * geometry.dtype.itemsize


def error_bound(geometry: ConvGeometry) -> float:
    """As ``Algorithm.error_bound``."""
    terms = _TAPS * geometry.in_channels // geometry.groups
    return transforms.error_bound((0, 2), terms, geometry.dtype)


def saving(geometry: ConvGeometry, calls: int | None, _slowness: float) -> float:
    """How many times faster than direct convolution to expect this, by counting."""
    rows, columns = geometry.output_size
    own = geometry.input_size[0] * _tiles(geometry)
    if calls is not None:
        own += _PACKING_ROWS / (max(geometry.batch, 1) * calls)
    return _GAIN[geometry.in_channels // geometry.groups] * rows * columns / max(own * _OUTPUTS, 1)


@lru_cache(maxsize=1024)
def _blocking(geometry: ConvGeometry, num_threads: int, kernels: ModuleType) -> tuple[int, int]:
    """Bands of rows of an image, and elements of scratch memory of a thread."""
    lanes = kernels.vector_bytes() // geometry.dtype.itemsize
    channels = max(lanes, geometry.in_channels // geometry.groups)
    rows, columns = geometry.output_size
    row = (_tiles(geometry) * _OUTPUTS + _TAPS - 1) * channels
    bands = base.ceil_div(rows, max(1, base.BAND_BYTES // (row * geometry.dtype.itemsize) - _TAPS + 1))
    items = max(geometry.batch, 1) * geometry.out_channels // lanes
    if bands * items < num_threads:
        bands = min(rows, base.ceil_div(num_threads, items))
    most = base.ceil_div(rows, bands)
    stored = most * columns * lanes + base.scatter_slack(kernels, geometry.dtype, lanes)
    # As much is left free before the next thread's: rows that are read one after the other make the processor
    # fetch what would be the next ones, and with them what that thread writes.
    return bands, 2 * base.round_up((most + _TAPS - 1) * row + stored, base.WIDEST // geometry.dtype.itemsize)


def workspace_bytes(geometry: ConvGeometry, num_threads: int, kernels: ModuleType) -> int:
    """A band of a vector's inputs, and of its outputs, for images that are not channels-last."""
    return _blocking(geometry, num_threads, kernels)[1] * num_threads * geometry.dtype.itemsize


@lru_cache(maxsize=256)
def _order(channels: int, group: int) -> np.ndarray:
    """The input channels of each output channel, as its lane meets them, among all pairs of both."""
    lane, step = np.ogrid[:channels, :group]
    return lane * group + (lane % group // 4 ^ step // 4) * 4 + (lane + step) % 4


def pack(
    weight, bias, geometry: ConvGeometry, kernels: ModuleType, num_threads: int, into: Packed | None
) -> Packed:
    """The transformed weights as panels (panels, 6, C/groups · 3, PANEL)."""
    channels, width = geometry.out_channels, base.panel_width(kernels, geometry.dtype)
    group = geometry.in_channels // geometry.groups
    terms = _TAPS * group
    if into is None:
        panels = aligned_empty((base.ceil_div(channels, width), _POINTS, terms, width), geometry.dtype)
        into = Packed(kernels, geometry, panels, np.zeros(channels, geometry.dtype))
    ordered = np.ascontiguousarray(weight).reshape(-1, _TAPS * _TAPS)
    if group * geometry.dtype.itemsize <= kernels.vector_bytes():
        ordered = ordered.take(_order(channels, group), axis=0)
    workspace = aligned_empty((num_threads, terms * _TAPS, width), geometry.dtype)
    kernels.pack_winograd(
        ordered.reshape(1, channels, terms, _TAPS), np.ones((1, 1)),
        transforms.one_axis(_OUTPUTS, _TAPS).weight, np.arange(_POINTS)[:, None], False, into.weight[None],
        workspace, num_threads,
    )  # fmt: skip
    give_back(workspace)
    into.bias[:] = 0 if bias is None else bias
    # Products with rows of padding are left out, which would make NaN of such a weight: all outputs meet it.
    into.bias[~np.isfinite(weight).all(axis=(1, 2, 3))] = np.nan
    return into


def bind(packed: Packed, _out: np.ndarray, epilogue: Epilogue, num_threads: int) -> Call:
    """For x (N, H, W, C) and out (N, H_out, W_out, C) of any strides."""
    geometry = packed.geometry
    bands, per_thread = _blocking(geometry, num_threads, packed.kernels)
    coefficient = transforms.one_axis(_OUTPUTS, _TAPS).coefficient.astype(geometry.dtype)
    before = (packed.weight, packed.bias, geometry, coefficient, bands, *epilogue)
    return bound(packed.kernels.winograd_narrow, geometry.dtype, before, (per_thread, num_threads))
