"""Winograd's minimal filtering F(m, r) on each axis, with its transforms made from points.

A kernel is cut into blocks of r taps, the runs of a long axis and the phases of a stride, whose products are
summed before they are transformed back.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise, product
from types import ModuleType
from typing import NamedTuple

import numpy as np

from fastconv.algorithms import (
    base,
    strassen,
    transforms,
    winograd_depthwise,
    winograd_half,
    winograd_narrow,
    winograd_rows,
)
from fastconv.algorithms.base import Algorithm, Call, Epilogue, Packed, bound
from fastconv.geometry import ConvGeometry
from fastconv.memory import aligned_empty, give_back

# Outputs a tile may have along an axis by the taps of its blocks. F(m, r) takes m + r − 1 points, which must
# be even in number here, for m·r products; an axis of one tap is left alone.
_OUTPUTS = {1: (1,), 2: (3, 5), 3: (2, 4), 5: (2, 4), 7: (2, 4)}
# The same where the other axis has one tap, so that rounding errors grow along one axis alone.
_LINE_OUTPUTS = _OUTPUTS | {3: (2, 4, 6)}
# Taps of a block where an axis, or its phases, have a number of taps that is not listed; one block has all.
_BLOCK_TAPS, _LINE_BLOCK_TAPS = (3,), (3, 5)
# Ten points on both axes would lose two digits.
_MAX_POINTS = 64
# Each block has a transformed tile of its own, and scratch memory is bounded.
_MAX_BLOCKS = 16
# Tiles transformed at a time: two register tiles of AVX-512, so that weights are read half as often as with
# one. Twice as many where so many take little of the L2 cache (one axis), or fill it by themselves (from 256
# channels on), to read weights less.
_BLOCK_TILES = 28
_L2_BYTES = 1 << 20
# With shorter vectors than AVX-512's products take so many times as long beside what is moved.
_SLOWNESS = 1.6
# And beginning with a block's channels, as long as so many of them: first layers have three.
_START_CHANNELS = 2
# Pixels an output stands for, and where the first of them lies; see kernels/winograd.pyx.
_ONE_PIXEL = ((1, 1), (0, 0))


class Form(NamedTuple):
    """F(m_h×m_w, r_h×r_w): outputs and taps of each axis, and the taps of the kernel that each block has.

    Blocks are in ascending order; one may have fewer than r taps, as if zeros followed.
    """

    outputs: tuple[int, int]
    taps: tuple[int, int]
    blocks: tuple[tuple[range, ...], tuple[range, ...]]

    @property
    def whole(self) -> bool:
        """Whether the kernel is one block."""
        return all(len(blocks) == 1 for blocks in self.blocks)

    @property
    def pairs(self) -> tuple[int, int]:
        """Pairs of points ±a of each axis."""
        return tuple((m + r - 2) // 2 for m, r in zip(self.outputs, self.taps, strict=True))

    @property
    def points(self) -> tuple[int, int]:
        """Points of each axis."""
        return tuple(m + r - 1 for m, r in zip(self.outputs, self.taps, strict=True))

    @property
    def positions(self) -> int:
        """Points of both axes."""
        return math.prod(self.points)

    @property
    def products(self) -> int:
        """Products for a tile, a channel and an output channel."""
        return math.prod(int(present.sum()) for present in _present(self))


@lru_cache(maxsize=64)
def _present(form: Form) -> tuple[np.ndarray, np.ndarray]:
    """(points, blocks) of each axis: a block that lacks its last tap is zero at the point ∞."""
    axes = []
    for points, taps, blocks in zip(form.points, form.taps, form.blocks, strict=True):
        axes.append(np.ones((points, len(blocks)), bool))
        axes[-1][-1] = [len(block) == taps for block in blocks]
    return tuple(axes)


class _Products(NamedTuple):
    """Which blocks have products at which positions: ``place[position, block]``, negative where none.

    At position q they are ``block[start[q] : start[q + 1]]``.
    """

    place: np.ndarray
    start: np.ndarray
    block: np.ndarray


@lru_cache(maxsize=64)
def _products(form: Form) -> _Products:
    down, across = _present(form)
    present = np.einsum("ib,jc->ijbc", down, across).reshape(form.positions, -1)
    place = np.where(present, np.cumsum(present).reshape(present.shape) - 1, -1)
    start = np.concatenate([[0], np.cumsum(present.sum(axis=1))])
    return _Products(place.astype(np.intp), start.astype(np.intp), np.nonzero(present)[1].astype(np.intp))


def _corners(geometry: ConvGeometry, form: Form) -> np.ndarray:
    """The pixel of padded input that each block's tile of outputs (0, 0) begins at."""
    down, across = (
        [block.start * dilation for block in blocks]
        for blocks, dilation in zip(form.blocks, geometry.dilation, strict=True)
    )
    return np.array(list(product(down, across)), np.intp)


def _tiles_along(geometry: ConvGeometry, axis: int, outputs: int) -> int:
    """Tiles along an axis: a dilated axis is as many interleaved axes, its phases."""
    size, dilation = geometry.output_size[axis], geometry.dilation[axis]
    return sum(
        base.ceil_div(base.ceil_div(size - phase, dilation), outputs) for phase in range(min(size, dilation))
    )


def tiles(geometry: ConvGeometry, form: Form) -> int:
    """Tiles of one image."""
    return math.prod(_tiles_along(geometry, axis, form.outputs[axis]) for axis in range(2))


def _cost(geometry: ConvGeometry, form: Form, lanes: int = 16, slowness: float = 1.0) -> float:
    """Time for an image's products and transforms, in products of one tile.

    Products take ``slowness`` times as long beside what is moved as with AVX-512.
    """
    # Each block's input is transformed, in whole vectors of channels; their outputs are summed.
    blocks, channels = math.prod(map(len, form.blocks)), geometry.in_channels
    inputs = base.round_up(channels, lanes) / channels / geometry.out_channels
    outputs = 1 / (channels * blocks)
    moved = transforms.TRANSFORM_CHANNELS / slowness * geometry.groups * (inputs + outputs)
    starts = _START_CHANNELS * geometry.groups / channels
    transformed = tiles(geometry, form) * (1 + starts + moved)
    return max(form.products * transformed, form.products * transforms.WEIGHT_TILES)


@lru_cache(maxsize=1024)
def choose_form(geometry: ConvGeometry) -> Form:
    """The tile to use: the fewest products, or weights where it takes longer to read them.

    Large tiles save multiplications and have larger transformed weights, so on small images, where each
    weight meets few tiles, smaller tiles win.
    """
    return min(forms(geometry), key=lambda form: _cost(geometry, form))


def _block_taps(kernel: int, stride: int, alone: bool) -> tuple[int, ...]:
    """Taps a block may have: those of a whole phase of the stride, or fewer."""
    longest = base.ceil_div(kernel, stride)
    if longest in _OUTPUTS:
        return (longest,)
    return tuple(taps for taps in (_LINE_BLOCK_TAPS if alone else _BLOCK_TAPS) if taps <= longest)


def _blocks(kernel: int, stride: int, taps: int) -> tuple[range, ...]:
    """The taps of an axis' blocks.

    y_i = Σ_a Σ_t g[a + s·t] x[s·(i + t) + a]: for each phase a of the stride, every s-th tap is a kernel of
    stride 1 on every s-th pixel. A phase of too many taps is cut into runs.
    """
    starts = (
        phase + stride * first
        for phase in range(min(stride, kernel))
        for first in range(0, base.ceil_div(kernel - phase, stride), taps)
    )
    return tuple(range(start, min(start + stride * taps, kernel), stride) for start in sorted(starts))


def _cuts(geometry: ConvGeometry) -> list[tuple[tuple[int, int], tuple[tuple[range, ...], ...]]]:
    """The ways to cut a kernel into blocks: taps of a block, and the blocks, of each axis."""
    kernel, stride = geometry.kernel_size, geometry.stride
    choices = (_block_taps(*axis, _alone(geometry)) for axis in zip(kernel, stride, strict=True))
    return [(taps, tuple(map(_blocks, kernel, stride, taps))) for taps in product(*choices)]


def _alone(geometry: ConvGeometry) -> bool:
    """Whether only one axis has blocks of more than one tap."""
    return min(map(base.ceil_div, geometry.kernel_size, geometry.stride)) == 1


def _count(blocks: tuple[tuple[range, ...], ...]) -> int:
    return math.prod(map(len, blocks))


@lru_cache(maxsize=1024)
def forms(geometry: ConvGeometry) -> tuple[Form, ...]:
    """The tiles that a kernel may have."""
    outputs = _LINE_OUTPUTS if _alone(geometry) else _OUTPUTS
    every = (
        Form(pair, taps, blocks)
        for taps, blocks in _cuts(geometry)
        if _count(blocks) <= _MAX_BLOCKS
        for pair in product(*(outputs[axis] for axis in taps))
    )
    return tuple(form for form in every if form.positions <= _MAX_POINTS)


@lru_cache(maxsize=1024)
def special_form(geometry: ConvGeometry, vector_bytes: int = base.WIDEST) -> ModuleType | None:
    """The module of the form that the problem takes, if not tiles with weights transformed along both axes.

    Where it is along one, that depends on the length of vectors: short ones take more loads.
    """
    for module in (strassen, winograd_depthwise, winograd_narrow):
        if module.fits(geometry):
            return module
    by_tiles = _tiles_saving(geometry, None, base.WIDEST) if forms(geometry) else 0.0
    if winograd_rows.fits(geometry) and winograd_rows.saving(geometry, None, 1.0) >= by_tiles:
        return winograd_rows
    if winograd_half.fits(geometry):
        by_half = winograd_half.saving(geometry, None, _slowness(vector_bytes))
        if by_half > _tiles_saving(geometry, None, vector_bytes):
            return winograd_half
    return None


def _slowness(vector_bytes: int) -> float:
    """How many times as long products take beside what is moved, as with AVX-512."""
    return 1.0 if vector_bytes >= base.WIDEST else _SLOWNESS


def saving(geometry: ConvGeometry, calls: int | None, vector_bytes: int) -> float:
    """How many times faster than direct convolution to expect this, by counting; for supported problems.

    The weights are transformed once for so many calls; None: for so many that it costs nothing. The shorter
    a vector, the less is transformed in vain for an image of three channels, and the less moving counts.
    """
    if (module := special_form(geometry, vector_bytes)) is not None:
        return module.saving(geometry, calls, _slowness(vector_bytes))
    return _tiles_saving(geometry, calls, vector_bytes)


def _tiles_saving(geometry: ConvGeometry, calls: int | None, vector_bytes: int) -> float:
    direct = math.prod(geometry.kernel_size) * max(math.prod(geometry.output_size), transforms.WEIGHT_TILES)
    form = choose_form(geometry)
    cost = _cost(geometry, form, vector_bytes // geometry.dtype.itemsize, _slowness(vector_bytes))
    if calls is not None:
        cost += form.products * transforms.PACKING_TILES / (max(geometry.batch, 1) * calls)
    return direct / cost


def origins(geometry: ConvGeometry, form: Form) -> tuple[np.ndarray, np.ndarray]:
    """The output rows that lines of tiles begin at, ascending, and the columns of a line's tiles."""
    origins = []
    for size, dilation, outputs in zip(geometry.output_size, geometry.dilation, form.outputs, strict=True):
        phases = [np.arange(phase, size, dilation * outputs) for phase in range(min(size, dilation))]
        origins.append(np.concatenate(phases).astype(np.intp))
    return np.sort(origins[0]), origins[1]


def _in_blocks(weight: np.ndarray, form: Form) -> np.ndarray:
    """Weights (groups, outputs, channels, k_h, k_w) as (groups, outputs, blocks · channels, r_h · r_w)."""
    groups, outputs, channels = weight.shape[:3]
    if form.whole:
        return weight.reshape(groups, outputs, channels, -1)
    down, across = form.blocks
    blocks = np.zeros((groups, outputs, len(down), len(across), channels, *form.taps), weight.dtype)
    for (i, rows), (j, columns) in product(enumerate(down), enumerate(across)):
        part = weight[
            :, :, :, rows.start : rows.stop : rows.step, columns.start : columns.stop : columns.step
        ]
        blocks[:, :, i, j, :, : len(rows), : len(columns)] = part
    return blocks.reshape(groups, outputs, -1, math.prod(form.taps))


class _Blocking(NamedTuple):
    bands: int
    panel_parts: int
    block: int
    pixel_pitch: int
    fetch: bool
    stream: bool
    per_thread: int


@lru_cache(maxsize=1024)
def _tables(geometry: ConvGeometry) -> tuple:
    """What the kernel takes of the form of a problem, in its order."""
    form = choose_form(geometry)
    coefficients = (
        transforms.one_axis(*axis).coefficient.astype(geometry.dtype)
        for axis in zip(form.outputs, form.taps, strict=True)
    )
    products = _products(form)
    return (
        (form.pairs, form.outputs), *coefficients,
        _corners(geometry, form), products.start, products.block,
        *origins(geometry, form),
    )  # fmt: skip


@lru_cache(maxsize=1024)
def _blocking(geometry: ConvGeometry, num_threads: int, kernels: ModuleType) -> _Blocking:
    itemsize, width = geometry.dtype.itemsize, base.panel_width(kernels, geometry.dtype)
    line, lanes = 64 // itemsize, kernels.vector_bytes() // itemsize
    panels = base.ceil_div(geometry.out_channels // geometry.groups, width)
    form = choose_form(geometry)
    down, across = origins(geometry, form)
    lines, pixel_pitch = len(down), base.round_up(geometry.in_channels, lanes)
    reach = [
        (points - 1) * stride * dilation + int(corner) + 1
        for points, stride, dilation, corner in zip(
            form.points, geometry.stride, geometry.dilation, _corners(geometry, form)[-1], strict=True
        )
    ]
    row_pitch = (int(across.max()) * geometry.stride[1] + reach[1]) * pixel_pitch
    tile_pitch = math.prod(map(len, form.blocks)) * pixel_pitch
    tile_bytes = form.positions * (tile_pitch + width) * itemsize
    small = _L2_BYTES // 5 <= _BLOCK_TILES * tile_bytes <= _L2_BYTES
    block = _BLOCK_TILES if small else 2 * _BLOCK_TILES
    block = max(1, min(block, transforms.BLOCK_BYTES // tile_bytes))

    bands, panel_parts = transforms.shares(geometry, panels, lines, len(across), num_threads)
    # A band feeds a whole block, and more of them while it stays in cache.
    line_bytes = row_pitch * itemsize * geometry.stride[0] * base.ceil_div(geometry.output_size[0], lines)
    band_lines = max(base.ceil_div(block, len(across)), base.BAND_BYTES // line_bytes)
    # Rounded up beyond the lines, a band would be empty and seem to reach over the whole image.
    bands = min(lines, base.round_up(base.ceil_div(lines, band_lines), bands))

    ends = [lines * band // bands for band in range(bands + 1)]
    band_rows = max(int(down[end - 1] - down[start]) for start, end in pairwise(ends)) * geometry.stride[0]
    tiles = base.ceil_div(lines, bands) * len(across)
    block = base.ceil_div(tiles, base.ceil_div(tiles, block))
    transformed = form.positions * (block * (tile_pitch + width) + 4 * line)
    stored = math.prod(form.outputs) * len(across) * width
    slack = base.scatter_slack(kernels, geometry.dtype, width)
    per_thread = base.round_up(
        (band_rows + reach[0]) * row_pitch + pixel_pitch + transformed + stored + slack, line
    )
    return _Blocking(bands, panel_parts, block, pixel_pitch, *base.output_hints(geometry), per_thread)


class Winograd(Algorithm):
    """Minimal filtering by tiles: F(4×4, 3×3) takes 4 times fewer multiplications than the definition.

    Kernels of more taps than their stride along an axis; long ones and those of a stride by blocks. Lavin and
    Gray, "Fast algorithms for convolutional neural networks", arXiv 1509.09308. Weights are transformed
    once, in float64. A non-finite input spreads over its whole tile. Few channels have winograd_rows.py,
    small images and strides of 2 winograd_half.py, narrow groups winograd_narrow.py, depthwise kernels of
    long rows winograd_depthwise.py, where it spreads to neighbouring tiles, 1×1 kernels strassen.py, where it
    spreads to the pixel that its own is added to.
    """

    name = "winograd"
    quantizable = False

    def unsupported(self, geometry: ConvGeometry) -> str | None:
        reason = super().unsupported(geometry)
        if reason is None and special_form(geometry) is None:
            (down, across), stride = geometry.kernel_size, geometry.stride
            if down == across == 1:
                reason = "a 1×1 kernel needs one group and no padding"
            elif down <= stride[0] and across <= stride[1]:
                reason = f"it needs more taps than stride, got {down}×{across}"
            elif not forms(geometry):
                fewest = min(_count(blocks) for _, blocks in _cuts(geometry))
                reason = f"it takes {_MAX_BLOCKS} blocks of taps, {down}×{across} has {fewest}"
        return reason

    def multiplications(self, geometry: ConvGeometry, vector_bytes: int = base.WIDEST) -> int:
        """The products of the transformed tiles; the transforms themselves are left out, as is usual."""
        if (module := special_form(geometry, vector_bytes)) is not None:
            return module.multiplications(geometry)
        form = choose_form(geometry)
        channels = geometry.in_channels // geometry.groups * geometry.out_channels
        return geometry.batch * tiles(geometry, form) * form.products * channels

    def workspace_bytes(self, geometry: ConvGeometry, num_threads: int, kernels: ModuleType) -> int:
        if (module := special_form(geometry, kernels.vector_bytes())) is not None:
            return module.workspace_bytes(geometry, num_threads, kernels)
        return _blocking(geometry, num_threads, kernels).per_thread * num_threads * geometry.dtype.itemsize

    def transformed_bytes(self, geometry: ConvGeometry, vector_bytes: int = base.WIDEST) -> int:
        if (module := special_form(geometry, vector_bytes)) is not None:
            return module.transformed_bytes(geometry)
        channels = geometry.in_channels // geometry.groups * geometry.out_channels
        return choose_form(geometry).products * channels * geometry.dtype.itemsize

    def error_bound(self, geometry: ConvGeometry) -> float:
        if (module := special_form(geometry)) is not None:
            return module.error_bound(geometry)
        form = choose_form(geometry)
        terms = geometry.in_channels // geometry.groups * math.prod(map(len, form.blocks))
        return transforms.error_bound(form.pairs, terms, geometry.dtype)

    def merges(self, geometry: ConvGeometry, vector_bytes: int = base.WIDEST) -> bool:
        return special_form(geometry, vector_bytes) is None

    def packing(self, geometry: ConvGeometry, kernels: ModuleType) -> Form | None:
        module = special_form(geometry, kernels.vector_bytes())
        return choose_form(geometry) if module is None else module.__name__

    def pack(
        self, weight, bias, geometry: ConvGeometry, kernels: ModuleType, num_threads: int, into=None
    ) -> Packed:
        if (module := special_form(geometry, kernels.vector_bytes())) is not None:
            return module.pack(weight, bias, geometry, kernels, num_threads, into)
        form = choose_form(geometry)
        groups, channels = geometry.groups, geometry.in_channels // geometry.groups
        width = base.panel_width(kernels, geometry.dtype)
        transformed, bias_memory = (None, None) if into is None else (into.weight, into.bias)
        if transformed is None:
            panels = base.ceil_div(geometry.out_channels // groups, width)
            transformed = aligned_empty((groups, panels, form.products, channels, width), geometry.dtype)
        blocks = _in_blocks(weight.reshape(groups, -1, *weight.shape[1:]), form)
        matrices = [transforms.one_axis(*axis).weight for axis in zip(form.outputs, form.taps, strict=True)]
        workspace = aligned_empty((num_threads, math.prod(blocks.shape[2:]), width), geometry.dtype)
        kernels.pack_winograd(
            blocks, *matrices, _products(form).place, False, transformed, workspace, num_threads
        )
        give_back(workspace)
        return Packed(kernels, geometry, transformed, base.pack_bias(bias, geometry, kernels, bias_memory))

    def bind(
        self, packed: Packed, x, out, epilogue: Epilogue, num_threads: int, merged=_ONE_PIXEL
    ) -> Call:  # fmt: skip
        """As ``Algorithm.bind``; where it ``merges``, an output's channels may be those of several pixels."""
        geometry = packed.geometry
        if (module := special_form(geometry, packed.kernels.vector_bytes())) is not None:
            return module.bind(packed, out, epilogue, num_threads)
        blocking = _blocking(geometry, num_threads, packed.kernels)
        before = (
            packed.weight, packed.bias, geometry, *_tables(geometry), blocking.bands, blocking.panel_parts,
            blocking.block, blocking.pixel_pitch, transforms.depth(choose_form(geometry).pairs), merged,
            blocking.fetch, blocking.stream, *epilogue,
        )  # fmt: skip
        return bound(packed.kernels.winograd, geometry.dtype, before, (blocking.per_thread, num_threads))
