"""Winograd's form for images of few channels: F(m, r) along the rows alone."""

from __future__ import annotations

import math
from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

import numpy as np

from fastconv.algorithms import base, transforms
from fastconv.algorithms.base import Call, Epilogue, Packed, bound
from fastconv.geometry import ConvGeometry
from fastconv.memory import aligned_empty, give_back

# Outputs a tile may have by the taps of a row, as in winograd.py.
_OUTPUTS = {2: (3, 5), 3: (4, 6), 4: (3, 5), 5: (4,)}
# Channels of the pixels of a stride, at most: a vector of AVX-512.
_MOST_CHANNELS = 16
# Bytes of transformed rows a thread keeps: a part of an L2 cache.
_BAND_BYTES = 256 * 1024
# Tiles multiplied at a time, a register tile of AVX-512: their products stay in the L1 cache.
_BLOCK_TILES = 14


class Form(NamedTuple):
    """F(m, r) on pixels of ``channels`` channels: outputs and taps of a tile."""

    outputs: int
    taps: int
    channels: int

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


def _cost(geometry: ConvGeometry, form: Form) -> float:
    """Time for an image, in products of a tile."""
    rows, across = geometry.output_size[0], _across(geometry, form)
    return form.points * rows * across * geometry.kernel_size[0] * geometry.stride[1]


@lru_cache(maxsize=1024)
def choose_form(geometry: ConvGeometry) -> Form | None:
    """The tile to use; None where this form does not apply."""
    stride, kernel = geometry.stride[1], geometry.kernel_size[1]
    channels, taps = stride * geometry.in_channels, base.ceil_div(kernel, stride)
    if geometry.groups > 1 or geometry.dilation[1] > 1 or channels > _MOST_CHANNELS or taps not in _OUTPUTS:
        return None
    forms = [Form(outputs, taps, channels) for outputs in _OUTPUTS[taps]]
    return min(forms, key=lambda form: _cost(geometry, form))


def fits(geometry: ConvGeometry) -> bool:
    """Whether the rows of few channels are better transformed alone."""
    return len(geometry.kernel_size) == 2 and choose_form(geometry) is not None


def multiplications(geometry: ConvGeometry) -> int:
    """The products of the transformed tiles; the transforms themselves are left out, as is usual."""
    form = choose_form(geometry)
    tiles = geometry.batch * geometry.output_size[0] * _across(geometry, form)
    return tiles * form.points * geometry.kernel_size[0] * form.channels * geometry.out_channels


def transformed_bytes(geometry: ConvGeometry) -> int:
    """Bytes of the transformed weights."""
    form = choose_form(geometry)
    terms = geometry.kernel_size[0] * form.channels
    return form.points * terms * geometry.out_channels * geometry.dtype.itemsize


def error_bound(geometry: ConvGeometry) -> float:
    """As ``Algorithm.error_bound``."""
    form = choose_form(geometry)
    return transforms.error_bound((0, form.pairs), geometry.kernel_size[0] * form.channels, geometry.dtype)


def saving(geometry: ConvGeometry, calls: int | None, slowness: float) -> float:
    """How many times faster than direct convolution to expect this, by counting."""
    return math.prod(geometry.kernel_size) * math.prod(geometry.output_size) * geometry.in_channels / (
        _cost(geometry, choose_form(geometry)) * geometry.in_channels)


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
    row_bytes = form.points * across * form.channels * itemsize * geometry.stride[0]
    fitting = max(geometry.kernel_size[0] // geometry.stride[0], _BAND_BYTES // row_bytes)
    parts = base.ceil_div(num_threads, max(geometry.batch, 1))
    bands = min(rows, base.round_up(base.ceil_div(rows, fitting), parts))
    in_rows = base.in_rows(geometry, base.ceil_div(rows, bands))
    pitch = in_rows * form.channels + base.round_up(form.channels, lanes) - form.channels
    block = base.ceil_div(across, base.ceil_div(across, _BLOCK_TILES))
    pixels = ((across - 1) * form.outputs + form.points) * form.channels + lanes
    products = form.points * (block * width + 2 * line)
    stored = block * form.outputs * width + base.scatter_slack(kernels, geometry.dtype, width)
    per_thread = form.points * (across * pitch + 2 * line) + max(pixels, products + stored)
    at_once = min(geometry.kernel_size[0], max(1, transforms.depth((0, form.pairs)) // form.channels), 16)
    return _Blocking(bands, block, pitch, at_once, base.round_up(per_thread, line))


def workspace_bytes(geometry: ConvGeometry, num_threads: int, kernels: ModuleType) -> int:
    """A band's transformed rows, and the products of a block."""
    return _blocking(geometry, num_threads, kernels).per_thread * num_threads * geometry.dtype.itemsize


def pack(
    weight, bias, geometry: ConvGeometry, kernels: ModuleType, num_threads: int, into: Packed | None
) -> Packed:
    """The transformed weights as panels."""
    form, (rows, columns) = choose_form(geometry), geometry.kernel_size
    width, stride = base.panel_width(kernels, geometry.dtype), geometry.stride[1]
    panels, terms = base.ceil_div(geometry.out_channels, width), rows * form.channels
    # (outputs, k_h, pixel of a stride, C_in, taps), zeros after a phase's last tap
    taps = np.zeros((geometry.out_channels, rows, stride, geometry.in_channels, form.taps), geometry.dtype)
    for phase in range(min(stride, columns)):
        part = weight[..., phase::stride].transpose(0, 2, 1, 3)
        taps[:, :, phase, :, : part.shape[-1]] = part
    transformed, bias_memory = (None, None) if into is None else (into.weight, into.bias)
    if transformed is None:
        transformed = aligned_empty((1, panels, form.points, terms, width), geometry.dtype)
    workspace = aligned_empty((num_threads, terms * form.taps, width), geometry.dtype)
    kernels.pack_winograd(
        taps.reshape(1, geometry.out_channels, terms, form.taps), np.ones((1, 1)),
        transforms.one_axis(form.outputs, form.taps).weight, np.arange(form.points)[:, None], transformed,
        workspace, num_threads,
    )  # fmt: skip
    give_back(workspace)
    return Packed(kernels, geometry, transformed, base.pack_bias(bias, geometry, kernels, bias_memory))


@lru_cache(maxsize=1024)
def _tables(geometry: ConvGeometry) -> tuple:
    """What the kernel takes of the form of a problem, in its order."""
    form = choose_form(geometry)
    coefficient = transforms.one_axis(form.outputs, form.taps).coefficient.astype(geometry.dtype)
    lines, across = np.arange(geometry.output_size[0]), np.arange(_across(geometry, form)) * form.outputs
    return (form.pairs, form.outputs), coefficient, lines.astype(np.intp), across.astype(np.intp)


def bind(packed: Packed, epilogue: Epilogue, num_threads: int) -> Call:
    """For x (N, H, W, C_in) and out (N, H_out, W_out, C_out) of any strides."""
    geometry = packed.geometry
    blocking = _blocking(geometry, num_threads, packed.kernels)
    before = (
        packed.weight, packed.bias, geometry, *_tables(geometry), *blocking[:-1], *base.output_hints(geometry), *epilogue,
    )  # fmt: skip
    return bound(packed.kernels.winograd_rows, geometry.dtype, before, (blocking.per_thread, num_threads))
