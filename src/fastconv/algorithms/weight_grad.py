"""The weight gradient in two dimensions: blocked sums over output pixels, direct or by Winograd's tiles."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise
from types import ModuleType
from typing import NamedTuple

import numpy as np

from fastconv.algorithms import base, planes, transforms, winograd
from fastconv.geometry import ConvGeometry
from fastconv.memory import aligned_empty, give_back

# Output pixels multiplied at a time: a panel of their gradients and a tile of their inputs share the L1
# cache. They are summed in registers, so this bounds rounding errors as base.DEPTH does.
_PIXELS = 256
# Pixels of planes from which on they are multiplied where they lie; shorter sums do not pay for it.
_MIN_PLANE = 128
# Tiles multiplied at a time: their transforms and the sums they are added to share the L2 cache.
_TILES = 28
# Channels of a block; more inputs where there is one tap, so that an image is read but once. For Winograd
# bytes of them: 64 · 64 float32 sums at 36 positions are 576 KiB.
_BLOCK_CHANNELS = 128
_POINTWISE_IN_CHANNELS = 512
_TILED_BLOCK_BYTES = 256
# Pieces of work to cut a problem into where its channels alone do not give so many. A fixed number: it
# decides in which order terms are summed, and results must not depend on the number of threads.
_ITEMS = 16
# Pixels that a part should have where it can, since its sums are cleared, and added to the others', by
# itself; and how many parts there may be in any case, for threads to share.
_PART_PIXELS = 512
_MIN_PARTS = 4
# Output pixels of a unit of depthwise rows, so that its sums are seldom moved.
_ROW_PIXELS = 64
# Output channels a narrow group may have; beyond, two vectors of them are a better tile.
_NARROW_CHANNELS = 16
# Bytes of planes that are turned to channels-last pixels as a whole, because several blocks read them.
_MOST_TURNED = 1 << 25
# How many times fewer operations tiles must promise. A tile's transforms cost as much as so many channels of
# its products, as in winograd.py.
_MIN_SAVING = 1.2
_TRANSFORM_CHANNELS = 16


class _Blocks(NamedTuple):
    """How channels are cut, each side's count and its widest block in whole vectors; and the sum's parts."""

    in_blocks: int
    out_blocks: int
    in_pitch: int
    out_pitch: int
    parts: int


def _parts(geometry: ConvGeometry, blocks: int, units: int) -> int:
    """Parts to cut the sum into, where there are so many blocks of channels."""
    pixels = geometry.batch * math.prod(geometry.output_size)
    wanted = min(base.ceil_div(_ITEMS, blocks), max(_MIN_PARTS, pixels // _PART_PIXELS))
    return max(1, min(units, wanted))


def _blocks(
    geometry: ConvGeometry, sides: tuple, groups: int, largest: tuple, lanes: int, units: int
) -> _Blocks:
    counts = [base.ceil_div(*pair) for pair in zip(sides, largest, strict=True)]
    pitches = [
        base.round_up(base.ceil_div(base.round_up(channels, lanes), count), lanes)
        for channels, count in zip(sides, counts, strict=True)
    ]
    return _Blocks(*counts, *pitches, _parts(geometry, groups * math.prod(counts), units))


def _covered(geometry: ConvGeometry, region: tuple[int, int]) -> int:
    """Pixels of input that a region of outputs reads."""
    return math.prod(
        (n - 1) * s + (k - 1) * d + 1
        for n, s, k, d in zip(region, geometry.stride, geometry.kernel_size, geometry.dilation, strict=True)
    )


def _is_depthwise(geometry: ConvGeometry) -> bool:
    """One channel a group on both sides: vectors run over the groups."""
    return 1 < geometry.groups == geometry.in_channels == geometry.out_channels


class _Direct(NamedTuple):
    blocks: _Blocks
    bands: int
    chunks: int
    per_thread: int


@lru_cache(maxsize=1024)
def _direct(geometry: ConvGeometry, kernels: ModuleType) -> _Direct:
    rows, columns = geometry.output_size
    lanes = kernels.vector_bytes() // geometry.dtype.itemsize
    chunks = base.ceil_div(columns, _PIXELS)
    bands = base.ceil_div(rows, max(1, _PIXELS // columns))
    units = geometry.batch * bands * chunks
    if _is_depthwise(geometry):
        blocks = _blocks(geometry, (1, geometry.out_channels), 1, (1, _BLOCK_CHANNELS), lanes, units)
        blocks = blocks._replace(in_pitch=blocks.out_pitch)
    else:
        sides = geometry.in_channels // geometry.groups, geometry.out_channels // geometry.groups
        pointwise = math.prod(geometry.kernel_size) == 1
        largest = _POINTWISE_IN_CHANNELS if pointwise else _BLOCK_CHANNELS, _BLOCK_CHANNELS
        blocks = _blocks(geometry, sides, geometry.groups, largest, lanes, units)
    region = base.ceil_div(rows, bands), base.ceil_div(columns, chunks)
    panel = math.prod(region) * base.panel_width(kernels, geometry.dtype)
    per_thread = _covered(geometry, region) * blocks.in_pitch + panel
    return _Direct(blocks, bands, chunks, base.round_up(per_thread, lanes))


class _Rows(NamedTuple):
    bands: int
    parts: int


@lru_cache(maxsize=1024)
def _rows(geometry: ConvGeometry, kernels: ModuleType) -> _Rows | None:
    """For depthwise kernels of three columns and at most three rows; None for others."""
    lanes = kernels.vector_bytes() // geometry.dtype.itemsize
    height, width = geometry.kernel_size
    three = width == 3 >= height and geometry.stride[1] <= 2 and geometry.dilation[1] == 1
    if not three or max(geometry.padding[1]) >= width or geometry.in_channels < lanes:
        return None
    rows, columns = geometry.output_size
    bands = base.ceil_div(rows, max(1, _ROW_PIXELS // columns))
    return _Rows(bands, _parts(geometry, 1, geometry.batch * bands))


class _Narrow(NamedTuple):
    base: np.ndarray
    lanes: np.ndarray | None
    cuts: tuple[int, int, int]
    parts: int
    per_thread: int


@lru_cache(maxsize=256)
def _narrow(geometry: ConvGeometry, kernels: ModuleType) -> _Narrow | None:
    """For groups whose gradients meet a vector of input channels at once; None for others.

    See kernels/weight_grad_narrow.pyx for the tables.
    """
    lanes = kernels.vector_bytes() // geometry.dtype.itemsize
    group_in, group_out = (n // geometry.groups for n in (geometry.in_channels, geometry.out_channels))
    if geometry.groups == 1 or group_out % 2:
        return None
    channel = np.arange(base.round_up(geometry.in_channels, lanes)).reshape(-1, lanes)
    # The first output channel of each lane's group.
    met = np.minimum(channel, geometry.in_channels - 1) // group_in * group_out
    shuffled = group_in % lanes > 0
    if group_out > _NARROW_CHANNELS or (shuffled and np.ptp(met, axis=1).max() + group_out > lanes):
        return None
    index = (met - met[:, :1])[:, np.newaxis] + np.arange(group_out)[:, np.newaxis]
    index = np.ascontiguousarray(index, f"i{geometry.dtype.itemsize}").reshape(-1).view(np.uint8)

    rows, columns = geometry.output_size
    pixels = _PIXELS // max(geometry.stride)
    chunks, bands = base.ceil_div(columns, pixels), base.ceil_div(rows, max(1, pixels // columns))
    blocks = base.ceil_div(len(met), base.ceil_div(_BLOCK_CHANNELS, lanes))
    region = base.ceil_div(rows, bands), base.ceil_div(columns, chunks)
    per_thread = _covered(geometry, region) * lanes + math.prod(region) * max(lanes, group_out)
    return _Narrow(
        met[:, 0].astype(np.intp), index if shuffled else None, (blocks, bands, chunks),
        _parts(geometry, blocks, geometry.batch * bands * chunks), base.round_up(per_thread, lanes),
    )  # fmt: skip


class _Tiled(NamedTuple):
    form: winograd.Form
    blocks: _Blocks
    chunks: int
    capacity: int
    per_thread: int


@lru_cache(maxsize=1024)
def _tiled(geometry: ConvGeometry, kernels: ModuleType) -> _Tiled | None:
    """Winograd's form of the problem; None where the direct sum is faster."""
    forms = winograd.forms(geometry)
    if _is_depthwise(geometry) or geometry.stride != (1, 1) or not forms:
        return None
    form = min(forms, key=lambda form: form.positions * winograd.tiles(geometry, form))
    if not form.whole:
        return None
    itemsize = geometry.dtype.itemsize
    lanes, largest = kernels.vector_bytes() // itemsize, _TILED_BLOCK_BYTES // itemsize
    sides = geometry.in_channels // geometry.groups, geometry.out_channels // geometry.groups
    transformed = 1 + _TRANSFORM_CHANNELS * sum(1 / min(channels, largest) for channels in sides)
    products = form.positions * winograd.tiles(geometry, form) * transformed
    if math.prod(geometry.kernel_size) * math.prod(geometry.output_size) < _MIN_SAVING * products:
        return None
    down, across = winograd.origins(geometry, form)
    chunks = base.ceil_div(len(across), _TILES)
    units = geometry.batch * len(down) * chunks
    blocks = _blocks(geometry, sides, geometry.groups, (largest, largest), lanes, units)
    ends = [len(across) * chunk // chunks for chunk in range(chunks + 1)]
    span = max(int(np.ptp(across[first:last])) for first, last in pairwise(ends))
    columns = [span + (n - 1) * geometry.dilation[1] + 1 for n in (form.points[1], form.outputs[1])]
    rows = (form.points[0] - 1) * geometry.dilation[0] + 1
    band = max(rows * columns[0] * blocks.in_pitch, form.outputs[0] * columns[1] * blocks.out_pitch)
    # A position's length is rounded up to an odd number of cache lines.
    transformed = _TILES * (blocks.in_pitch + blocks.out_pitch) + 4 * 64 // itemsize
    sums = blocks.in_pitch * blocks.out_pitch
    per_thread = form.positions * (transformed + sums) + band + blocks.in_pitch
    return _Tiled(form, blocks, chunks, _TILES, base.round_up(per_thread, lanes))


def reads_planes(geometry: ConvGeometry, *images: np.ndarray) -> bool:
    """Whether the problem is a matrix product of ``images`` (N, D, H, W, C) whose planes lie in one run."""
    product = planes.is_product(geometry) and not _is_depthwise(geometry)
    return product and math.prod(geometry.output_size) >= _MIN_PLANE and all(map(planes.in_runs, images))


def weight_grad(
    grad_output: np.ndarray, x: np.ndarray, geometry: ConvGeometry, kernels: ModuleType, num_threads: int,
    out: np.ndarray,
) -> None:  # fmt: skip
    """Compute out[g, m, c, tap] = Σ dy x over the pixels of all images.

    Lavin and Gray, "Fast algorithms for convolutional neural networks", arXiv 1509.09308, section 4, for
    the tiled form F(k×k, m×m): the transposed of the forward one, with the tile of gradients as its filter.

    Parameters
    ----------
    grad_output : (N, D, H_out, W_out, C_out), of any strides
        An image for each (n, d); N · D is the geometry's batch, not 0.
    x : (N, D, H, W, C_in), of any strides
    geometry : ConvGeometry
        Of two spatial axes.
    out : (groups, C_out/groups, C_in/groups, k_h·k_w), of any strides
    """
    narrow = None if _is_depthwise(geometry) else _narrow(geometry, kernels)
    if narrow is not None:
        _narrow_weight_grad(narrow, grad_output, x, geometry, kernels, num_threads, out)
        return
    dtype = geometry.dtype
    lanes = kernels.vector_bytes() // dtype.itemsize
    tiled, direct = _tiled(geometry, kernels), _direct(geometry, kernels)
    depthwise = _is_depthwise(geometry)
    if depthwise and _depthwise_rows(grad_output, x, geometry, kernels, num_threads, out):
        return
    groups = 1 if depthwise else geometry.groups
    blocks, per_thread = (tiled or direct).blocks, (tiled or direct).per_thread
    pitch = base.round_up(geometry.out_channels // groups, lanes)
    partial = aligned_empty((blocks.parts, groups, *out.shape[:1:-1], pitch), dtype)
    workspace = aligned_empty((num_threads * per_thread,), dtype)
    in_planes = not tiled and reads_planes(geometry, x, grad_output)
    given = x, grad_output
    if not (in_planes or depthwise):
        x = _turned(x, kernels, num_threads) if blocks.out_blocks > 1 else x
        grad_output = _turned(grad_output, kernels, num_threads) if blocks.in_blocks > 1 else grad_output
    if tiled:
        _tiled_weight_grad(tiled, grad_output, x, geometry, kernels, num_threads, partial, workspace)
    elif in_planes:
        kernels.weight_grad_planes(
            planes.runs(x), planes.runs(grad_output),
            (blocks.in_blocks, blocks.out_blocks, direct.bands * direct.chunks), partial, workspace,
            per_thread, num_threads,
        )  # fmt: skip
    else:
        whole = geometry.out_channels // groups % lanes == 0
        copy_x = geometry.padded or x.strides[4] != x.itemsize or (depthwise and not whole)
        kernels.weight_grad(
            x, grad_output, geometry, (blocks.in_blocks, blocks.out_blocks, direct.bands, direct.chunks),
            copy_x, depthwise, partial, workspace, per_thread, num_threads,
        )  # fmt: skip
    if depthwise:
        out = out.transpose(1, 0, 2, 3)  # vectors ran over the groups
    kernels.sum_weight_grad(partial, out, num_threads)
    turned = [now for now, before in zip((x, grad_output), given, strict=True) if now is not before]
    for array in (partial, workspace, *turned):
        give_back(array)


def _depthwise_rows(
    grad_output: np.ndarray, x: np.ndarray, geometry: ConvGeometry, kernels: ModuleType, num_threads: int,
    out: np.ndarray,
) -> bool:  # fmt: skip
    """Compute it by weight_grad_depthwise; False where that cannot."""
    form = _rows(geometry, kernels)
    if form is None:
        return False
    lanes = kernels.vector_bytes() // geometry.dtype.itemsize
    given = images = x, grad_output
    if x.shape[3] < lanes:  # planes of longer rows are gathered sooner than turned
        images = [_turned(array, kernels, num_threads) for array in given]
    if any(array.strides[4] != array.itemsize for array in images):
        return False
    channels = base.round_up(geometry.in_channels, lanes)
    partial = aligned_empty((form.parts, math.prod(geometry.kernel_size), channels), geometry.dtype)
    kernels.weight_grad_depthwise(*images, geometry, form.bands, partial, num_threads)
    kernels.sum_weight_grad(partial[:, np.newaxis, :, np.newaxis], out.transpose(1, 0, 2, 3), num_threads)
    for array in (partial, *(now for now, before in zip(images, given, strict=True) if now is not before)):
        give_back(array)
    return True


def _tiled_weight_grad(
    tiled: _Tiled, grad_output: np.ndarray, x: np.ndarray, geometry: ConvGeometry, kernels: ModuleType,
    num_threads: int, partial: np.ndarray, workspace: np.ndarray,
) -> None:  # fmt: skip
    """The sums of parts in Winograd's form."""
    form, dtype, blocks = tiled.form, geometry.dtype, tiled.blocks
    axes = [transforms.one_axis(*axis) for axis in zip(form.outputs, form.taps, strict=True)]
    kernels.weight_grad_winograd(
        x, grad_output, geometry, (form.pairs, form.outputs),
        *(axis.coefficient.astype(dtype) for axis in axes), *(axis.weight.astype(dtype) for axis in axes),
        *winograd.origins(geometry, form), (blocks.in_blocks, blocks.out_blocks, tiled.chunks),
        tiled.capacity, partial, workspace, tiled.per_thread, num_threads,
    )  # fmt: skip


def _turned(images: np.ndarray, kernels: ModuleType, num_threads: int) -> np.ndarray:
    """Planar images (N, 1, H, W, C) as channels-last ones; any others, and very large ones, as they are."""
    batch, _, *size, channels = images.shape
    first = images.transpose(0, 1, 4, 2, 3)
    if channels == 1 or not first.flags.c_contiguous or images.nbytes > _MOST_TURNED:
        return images
    turned = aligned_empty(images.shape, images.dtype)
    pixels = math.prod(size)
    kernels.swap_axes(
        first.reshape(batch, channels, pixels), turned.reshape(batch, pixels, channels), num_threads
    )
    return turned


def _narrow_weight_grad(
    narrow: _Narrow, grad_output: np.ndarray, x: np.ndarray, geometry: ConvGeometry, kernels: ModuleType,
    num_threads: int, out: np.ndarray,
) -> None:  # fmt: skip
    dtype, (groups, group_out, group_in, taps) = geometry.dtype, out.shape
    lanes = kernels.vector_bytes() // dtype.itemsize
    # With one vector more, because sums are added up in whole ones from each group on.
    pitch = base.round_up(geometry.in_channels, lanes) + lanes
    partial = aligned_empty((narrow.parts, taps, group_out, pitch), dtype)
    workspace = aligned_empty((num_threads * narrow.per_thread,), dtype)
    kernels.weight_grad_narrow(
        x, grad_output, geometry, narrow.base, narrow.lanes, narrow.cuts, partial, workspace,
        narrow.per_thread, num_threads,
    )  # fmt: skip
    sums = partial[..., : geometry.in_channels].reshape(narrow.parts, taps, group_out, groups, group_in)
    kernels.sum_weight_grad(sums.transpose(0, 3, 1, 2, 4), out.swapaxes(1, 2), num_threads)
    give_back(partial)
    give_back(workspace)
