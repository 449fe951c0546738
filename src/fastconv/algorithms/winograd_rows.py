"""Winograd's form for images of few channels: F(m, r) along the rows alone."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

import numpy as np

from fastconv.algorithms import base, planes, transforms
from fastconv.algorithms.base import Call, Epilogue, Packed, bound
from fastconv.geometry import ConvGeometry
from fastconv.memory import aligned_empty, give_back

# Outputs of a tile by the taps of a row: eight points instead of six where that saves more than 10 %.
_OUTPUTS = {3: 4, 4: 5, 5: 4}
# Three taps' sums of so many terms at most are made in registers: those of more leave the L1 cache.
_SHORT_TERMS = 16
# Channels, at most, and those of the pixels of a stride: half a vector and a vector of AVX-512.
_MOST_CHANNELS, _MOST_STRIDED = 8, 16
# Kernel rows summed at a time, at most: a register tile takes so many runs of terms.
_MOST_ROWS = 16
# In the time of a vector's multiply–add: of short sums, a vector of a tile's outputs, and an element of a
# tile's transformed row; of others, beginning one, beginning those of a block of tiles, a vector of a
# tile's outputs, and a point of a transformed row. And for the transformation of the weights: one of them
# takes as long as its products with so many tiles.
_COSTS, _PACKING_TILES = (30.0, 9.0, 4.0, 60.0, 80.0, 7.0), 75
# Bytes of transformed rows a thread keeps: a part of an L2 cache.
_BAND_BYTES = 256 * 1024
# Tiles whose short sums are put together where outputs are not stored in place, as in winograd_short.pyx.
_SHORT_TILES = 8
# Tiles multiplied at a time, a register tile of AVX-512: their products stay in the L1 cache.
_BLOCK_TILES = 14


class Form(NamedTuple):
    """F(m, r): outputs and taps of a tile, and the terms of its sums, ``channels`` in each row."""

    outputs: int
    taps: int
    channels: int
    terms: int

    @property
    def short(self) -> bool:
        """Whether a tile's products stay in registers."""
        return self.taps == 3 and self.terms <= _SHORT_TERMS

    @property
    def points(self) -> int:
        """Points of a tile."""
        return self.outputs + self.taps - 1

    @property
    def pairs(self) -> int:
        """Pairs of points ±a."""
        return (self.points - 2) // 2


def _across(geometry: ConvGeometry, form: Form) -> int:
    return base.ceil_div(geometry.output_size[1], form.outputs)


@lru_cache(maxsize=1024)
def choose_form(geometry: ConvGeometry) -> Form | None:
    """The tile to use; None where this form does not apply."""
    stride, kernel = geometry.stride[1], geometry.kernel_size[1]
    channels, taps = stride * geometry.in_channels, base.ceil_div(kernel, stride)
    terms = channels * geometry.kernel_size[0]
    if geometry.groups > 1 or geometry.dilation[1] > 1 or taps not in _OUTPUTS:
        return None
    if geometry.in_channels > _MOST_CHANNELS or channels > _MOST_STRIDED:
        return None
    return Form(_OUTPUTS[taps], taps, channels, terms)


def fits(geometry: ConvGeometry) -> bool:
    """Whether the rows of few channels are better transformed alone."""
    return len(geometry.kernel_size) == 2 and choose_form(geometry) is not None


def multiplications(geometry: ConvGeometry) -> int:
    """The products of the transformed tiles; the transforms themselves are left out, as is usual."""
    form = choose_form(geometry)
    tiles = geometry.batch * geometry.output_size[0] * _across(geometry, form)
    return tiles * form.points * form.terms * geometry.out_channels


def transformed_bytes(geometry: ConvGeometry) -> int:
    """Bytes of the transformed weights."""
    form = choose_form(geometry)
    return form.points * form.terms * geometry.out_channels * geometry.dtype.itemsize


def error_bound(geometry: ConvGeometry) -> float:
    """As ``Algorithm.error_bound``."""
    form = choose_form(geometry)
    return transforms.error_bound((0, form.pairs), form.terms, geometry.dtype)


def saving(geometry: ConvGeometry, calls: int | None, slowness: float) -> float:
    """How many times faster than direct convolution to expect this, by counting.

    Products take ``slowness`` times as long beside what is moved as with AVX-512.
    """
    form, (rows, columns) = choose_form(geometry), geometry.output_size
    width = 32 if geometry.dtype.itemsize == 4 else 16
    vectors, across = base.ceil_div(geometry.out_channels, width // 2), _across(geometry, form)
    short_output, short_input, start, begin, output, inputs = (cost / slowness for cost in _COSTS)
    in_rows = base.in_rows(geometry, rows)
    if form.short:  # a group of tiles may be a vector where outputs are planes
        tiles = base.round_up(across, width // 2)
        own = rows * tiles * vectors * (form.points * form.terms + short_output)
        own += in_rows * tiles * form.channels * short_input
    else:
        own = rows * across * vectors * (form.points * (form.terms + start) + output)
        own += rows * base.ceil_div(across, _BLOCK_TILES) * vectors * form.points * begin
        own += in_rows * across * form.points * inputs
    if calls is not None:
        own += form.points * form.terms * vectors * _PACKING_TILES / (max(geometry.batch, 1) * calls)
    return rows * columns * vectors * (geometry.reduction + 2 * start) / own


class _Blocking(NamedTuple):
    bands: int
    block: int
    pitch: int
    at_once: int
    per_thread: int


@lru_cache(maxsize=1024)
def _blocking(geometry: ConvGeometry, num_threads: int, kernels: ModuleType) -> _Blocking:
    itemsize, width = geometry.dtype.itemsize, base.panel_width(kernels, geometry.dtype)
    line, lanes, form = 64 // itemsize, width // 2, choose_form(geometry)
    rows, across = geometry.output_size[0], _across(geometry, form)
    tiles = base.round_up(across, width) if form.short else across
    row_bytes = form.points * tiles * form.channels * itemsize * geometry.stride[0]
    fitting = max(1, geometry.kernel_size[0] // geometry.stride[0], _BAND_BYTES // row_bytes)
    parts = base.ceil_div(num_threads, max(geometry.batch, 1))
    bands = min(rows, base.round_up(base.ceil_div(rows, fitting), parts))
    in_rows = base.in_rows(geometry, base.ceil_div(rows, bands))
    slack = base.scatter_slack(kernels, geometry.dtype, width)
    if form.short:
        sorted_row = form.outputs * form.channels * (tiles + lanes)
        stored = _SHORT_TILES * form.outputs * width + slack
        per_thread = form.points * tiles * form.channels * in_rows + max(sorted_row, stored)
        return _Blocking(bands, 0, 0, 0, base.round_up(per_thread, line))
    pitch = in_rows * form.channels + base.round_up(form.channels, lanes) - form.channels
    block = base.ceil_div(across, base.ceil_div(across, _BLOCK_TILES))
    pixels = ((across - 1) * form.outputs + form.points) * form.channels + lanes
    products = form.points * (block * width + 2 * line) + block * form.outputs * width + slack
    per_thread = form.points * (across * pitch + 2 * line) + max(pixels, products)
    at_once = max(1, min(transforms.depth((0, form.pairs)) // form.channels, _MOST_ROWS))
    return _Blocking(bands, block, pitch, at_once, base.round_up(per_thread, line))


def workspace_bytes(geometry: ConvGeometry, num_threads: int, kernels: ModuleType) -> int:
    """A band's transformed rows, and the products of a block."""
    return _blocking(geometry, num_threads, kernels).per_thread * num_threads * geometry.dtype.itemsize


def pack(
    weight, bias, geometry: ConvGeometry, kernels: ModuleType, num_threads: int, into: Packed | None
) -> Packed:
    """The transformed weights as panels."""
    form, rows = choose_form(geometry), geometry.kernel_size[0]
    width, stride = base.panel_width(kernels, geometry.dtype), geometry.stride[1]
    panels = base.ceil_div(geometry.out_channels, width)
    # (outputs, k_h, pixel of a stride, C_in, taps), zeros after a phase's last tap
    taps = np.zeros((geometry.out_channels, rows, stride, geometry.in_channels, form.taps), geometry.dtype)
    for phase in range(stride):
        part = weight[..., phase::stride].transpose(0, 2, 1, 3)
        taps[:, :, phase, :, : part.shape[-1]] = part
    transformed = aligned_empty((1, panels, form.points, form.terms, width), geometry.dtype)
    workspace = aligned_empty((num_threads, form.terms * form.taps, width), geometry.dtype)
    kernels.pack_winograd(
        taps.reshape(1, geometry.out_channels, form.terms, form.taps), np.ones((1, 1)),
        transforms.one_axis(form.outputs, form.taps).weight, np.arange(form.points)[:, None], False,
        transformed, workspace, num_threads,
    )  # fmt: skip
    give_back(workspace)
    panel = transformed[0].swapaxes(1, 2) if form.short else transformed[0]
    if into is None:
        packed_bias = base.pack_bias(bias, geometry, kernels)
        into = Packed(kernels, geometry, aligned_empty(panel.shape, geometry.dtype), packed_bias, {})
    else:
        base.pack_bias(bias, geometry, kernels, into.bias)
    into.weight[...] = panel
    give_back(transformed)
    for make, memory in into.late.items():
        make(into, num_threads, memory)
    return into


def _matrix(packed: Packed, _num_threads: int, into: np.ndarray | None = None) -> np.ndarray:
    """The weights of short sums as (panels, PANEL, terms, points), for planar outputs."""
    panels, terms, points, width = packed.weight.shape
    if into is None:
        into = np.empty((panels, width, terms, points), packed.weight.dtype)
    into[...] = packed.weight.transpose(0, 3, 1, 2)
    return into


@lru_cache(maxsize=1024)
def _coefficient(geometry: ConvGeometry) -> np.ndarray:
    form = choose_form(geometry)
    return transforms.one_axis(form.outputs, form.taps).coefficient.astype(geometry.dtype)


@lru_cache(maxsize=1024)
def _origins(geometry: ConvGeometry) -> tuple[np.ndarray, np.ndarray]:
    """The output row each line of tiles begins at, and the columns of its tiles."""
    form = choose_form(geometry)
    across = np.arange(_across(geometry, form), dtype=np.intp) * form.outputs
    return np.arange(geometry.output_size[0], dtype=np.intp), across


def bind(packed: Packed, out: np.ndarray, epilogue: Epilogue, num_threads: int) -> Call:
    """For x (N, H, W, C_in) of any strides, and out (N, H_out, W_out, C_out) of those of ``out``."""
    geometry, kernels, form = packed.geometry, packed.kernels, choose_form(packed.geometry)
    blocking = _blocking(geometry, num_threads, kernels)
    fetch, stream = base.output_hints(geometry)
    after = blocking.per_thread, num_threads
    if not form.short:
        before = (
            packed.weight, packed.bias, geometry, (form.pairs, form.outputs), _coefficient(geometry),
            *_origins(geometry), *blocking[:-1], fetch, stream, *epilogue,
        )  # fmt: skip
        return bound(kernels.winograd_rows, geometry.dtype, before, after)
    planar = out.strides[2] == out.itemsize
    weight = planes.form(packed, _matrix, num_threads) if planar else packed.weight
    before = (
        weight.reshape(-1), packed.bias, geometry, _coefficient(geometry), blocking.bands, planar, stream,
        *epilogue,
    )  # fmt: skip
    return bound(kernels.winograd_short, geometry.dtype, before, after)
