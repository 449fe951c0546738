"""Convolution in the frequency domain: numpy.fft on overlapping tiles, products by our own kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import product
from types import ModuleType
from typing import NamedTuple

import numpy as np

from fastconv import threads
from fastconv.algorithms import base
from fastconv.algorithms.base import Algorithm, Call, Epilogue, Packed
from fastconv.geometry import ConvGeometry
from fastconv.memory import aligned_empty

# Bytes of spectra that one chunk of tiles may take, input and output together.
_CHUNK_BYTES = 8 * 1024 * 1024
# Bytes of pixels transformed at a time. Between transforms Python runs, one thread at a time, so few large
# blocks scale better than many small ones.
_BLOCK_BYTES = 1024 * 1024
# Bytes of a plane that stays in an L2 cache with its spectrum.
_PLANE_BYTES = 256 * 1024
# Bytes the transformed weights may take before smaller tiles are preferred.
_WEIGHT_BYTES = 256 * 1024 * 1024


class _Tiling(NamedTuple):
    """Tiles of ``outputs`` output pixels each, computed by transforms of ``size``, ``chunk`` at a time."""

    size: tuple[int, int]
    outputs: tuple[int, int]
    tiles: tuple[int, int]
    chunk: int

    @property
    def count(self) -> int:
        """Tiles of an image."""
        return self.tiles[0] * self.tiles[1]

    @property
    def half(self) -> int:
        """Columns of a real image's spectrum."""
        return self.size[1] // 2 + 1

    @property
    def frequencies(self) -> int:
        return self.size[0] * self.half


class _Block(NamedTuple):
    """Some tiles of a chunk and some of their channels: what is transformed at a time."""

    slots: slice
    channels: slice

    @property
    def shape(self) -> tuple[int, int]:
        """Tiles, channels."""
        return self.slots.stop - self.slots.start, self.channels.stop - self.channels.start


# --- sizes and their cost ------------------------------------------------------------------------------

# Nanoseconds on one thread of the machine of benchmarks/RESULTS.md, from a fit to measured times. A line of
# n numbers costs numpy.fft _LINE + n · (_POINT + _STEP · log₂ n), half of that if it is real.
_LINE, _POINT, _STEP = 30.0, 1.2, 0.26
# All of it takes _COLD times as long where a plane and its spectrum leave the L2 cache.
_COLD = 1.35
# Copying a pixel in or out; what NumPy's calls cost for a block, and a call for everything else.
_COPY, _CALLS, _CALL = 0.5, 25_000.0, 50_000.0
# A multiply–add of the product kernel, the same in a direct convolution, and a byte of weights.
_PRODUCT, _DIRECT, _BYTE = 1 / 60, 1 / 75, 0.1


@lru_cache(maxsize=64)
def _fast_sizes(limit: int) -> list[int]:
    """Even sizes 2^a·3^b·5^c up to the first one at or above ``limit``."""
    exponents = range(limit.bit_length() + 1)
    sizes = sorted(
        {2 * 2**a * 3**b * 5**c for a, b, c in product(exponents, repeat=3) if 2**a * 3**b * 5**c <= limit}
    )
    return sizes[: next((i for i, size in enumerate(sizes) if size >= limit), len(sizes) - 1) + 1]


def _extent(geometry: ConvGeometry) -> tuple[int, int]:
    """Pixels the dilated kernel covers."""
    return tuple(d * (k - 1) + 1 for d, k in zip(geometry.dilation, geometry.kernel_size, strict=True))


def _axis_tilings(geometry: ConvGeometry, axis: int) -> Iterator[tuple[int, int, int]]:
    """(size, outputs a tile, tiles) worth considering on one axis, from many small tiles to one."""
    extent, stride = _extent(geometry)[axis], geometry.stride[axis]
    outputs, (low, _) = geometry.output_size[axis], geometry.padding[axis]
    read = (outputs - 1) * stride + extent
    # The transform is periodic: zeros of the padding before the image also serve as those behind it.
    shared = min(low, max(0, read - low - geometry.input_size[axis]), extent - 1)
    whole = read - shared
    before = 0
    for size in _fast_sizes(whole):
        if size >= whole:
            yield size, outputs, 1
        elif size > extent:
            tiles = base.ceil_div(outputs, (size - extent) // stride + 1)
            if tiles != before:
                each = base.ceil_div(outputs, tiles)
                yield size, each, base.ceil_div(outputs, each)
            before = tiles


@lru_cache(maxsize=1024)
def _tiling(geometry: ConvGeometry) -> _Tiling:
    """The cheapest tiling, its weights within their bound if any are."""
    candidates = [
        _Tiling(*zip(*axes, strict=True), chunk=0)
        for axes in product(_axis_tilings(geometry, 0), _axis_tilings(geometry, 1))
    ]
    best = min(
        candidates,
        key=lambda tiling: (
            max(_weight_bytes(geometry, tiling), _WEIGHT_BYTES),
            _nanoseconds(geometry, tiling),
        ),
    )
    return best._replace(chunk=_chunk(geometry, best))


def _chunk(geometry: ConvGeometry, tiling: _Tiling) -> int:
    spectra = (
        2 * geometry.dtype.itemsize * tiling.frequencies * (geometry.in_channels + geometry.out_channels)
    )
    tiles = max(geometry.batch, 1) * tiling.count
    passes = base.ceil_div(tiles, max(1, _CHUNK_BYTES // spectra))
    return base.ceil_div(tiles, passes)


def _weight_bytes(geometry: ConvGeometry, tiling: _Tiling) -> int:
    channels = geometry.in_channels // geometry.groups * geometry.out_channels
    return 2 * geometry.dtype.itemsize * channels * tiling.frequencies


def _nanoseconds(geometry: ConvGeometry, tiling: _Tiling) -> float:
    """Nanoseconds for one image on one thread; the batch must not change the tiles, and so the bits."""
    (rows, columns), half, itemsize = tiling.size, tiling.half, geometry.dtype.itemsize
    scale = itemsize / 4
    row = scale * (_LINE + columns * (_POINT + _STEP * math.log2(columns))) / 2
    column = scale * (_LINE + rows * (_POINT + _STEP * math.log2(rows)))
    copy = scale * _COPY * rows * columns
    kept = tiling.outputs[0]
    channels = geometry.in_channels + geometry.out_channels
    planes = geometry.in_channels * (rows * row + half * column + copy)
    planes += geometry.out_channels * (kept * row + half * column + copy * kept / rows)
    if itemsize * rows * columns > _PLANE_BYTES:
        planes *= _COLD
    calls = channels / max(1, _BLOCK_BYTES // (itemsize * rows * columns)) * _CALLS
    pairs = geometry.in_channels // geometry.groups * geometry.out_channels
    products = 4 * scale * _PRODUCT * pairs * tiling.frequencies
    passes = base.ceil_div(tiling.count, _chunk(geometry, tiling))
    weights = passes * _BYTE * _weight_bytes(geometry, tiling)
    return tiling.count * (planes + calls + products) + weights + _CALL


def cost(geometry: ConvGeometry, calls: int | None) -> float:
    """Time for the whole batch, in multiply–adds of a direct convolution, the weights' part counted.

    They are transformed once for so many calls; None: for so many that it costs nothing.
    """
    tiling = _tiling(geometry)
    nanoseconds = geometry.batch * _nanoseconds(geometry, tiling)
    if calls is not None:
        nanoseconds += _packing_nanoseconds(geometry, tiling) / calls
    return nanoseconds / (_DIRECT * geometry.dtype.itemsize / 4)


def _packing_nanoseconds(geometry: ConvGeometry, tiling: _Tiling) -> float:
    scale = geometry.dtype.itemsize / 4
    pairs = geometry.in_channels // geometry.groups * geometry.out_channels
    rows = _extent(geometry)[0] * (_LINE + tiling.size[1] * (_POINT + _STEP * math.log2(tiling.size[1]))) / 2
    columns = tiling.half * (_LINE + tiling.size[0] * (_POINT + _STEP * math.log2(tiling.size[0])))
    return scale * pairs * (rows + columns + _COPY * 4 * tiling.frequencies)


# --- memory --------------------------------------------------------------------------------------------


def _pitch(geometry: ConvGeometry, tiling: _Tiling, kernels: ModuleType) -> int:
    """Complex numbers from one plane of a spectrum to the next: whole blocks, and an odd number of lines."""
    line = 32 // geometry.dtype.itemsize
    lanes = kernels.vector_bytes() // geometry.dtype.itemsize
    return (base.round_up(tiling.frequencies, max(lanes, line)) // line | 1) * line


class _Layout(NamedTuple):
    """How the workspace is cut: elements of each part, and how many parts of each kind there are."""

    pitch: int
    plane: int
    spectra_in: int
    spectra_out: int
    pixels: int
    spectrum: int
    split: int

    def total(self, num_threads: int) -> int:
        scratch = self.pixels + self.spectrum + self.split
        return self.spectra_in + self.spectra_out + num_threads * scratch


def _layout(geometry: ConvGeometry, kernels: ModuleType) -> _Layout:
    tiling = _tiling(geometry)
    pitch = _pitch(geometry, tiling, kernels)
    width = base.panel_width(kernels, geometry.dtype)
    planes = min(
        max(1, _BLOCK_BYTES // (geometry.dtype.itemsize * math.prod(tiling.size))),
        tiling.chunk * max(geometry.in_channels, geometry.out_channels),
    )
    # An odd number of lines apart: with a power of two all channels of a pixel would fall into one set.
    line = 64 // geometry.dtype.itemsize
    plane = (base.ceil_div(math.prod(tiling.size), line) | 1) * line
    return _Layout(
        pitch,
        plane,
        2 * tiling.chunk * geometry.in_channels * pitch,
        2 * tiling.chunk * geometry.out_channels * pitch,
        planes * plane,
        base.round_up(2 * planes * tiling.frequencies, line),
        tiling.chunk * geometry.in_channels // geometry.groups * width,
    )


class _Scratch:
    """One thread's part of the workspace, as arrays of whatever number of tiles and channels is wanted."""

    def __init__(self, elements: np.ndarray, layout: _Layout, tiling: _Tiling):
        self._pixels = elements[: layout.pixels].reshape(-1, layout.plane)
        self.elements = elements[layout.pixels : layout.pixels + layout.spectrum]
        self.split = elements[layout.pixels + layout.spectrum :][: layout.split]
        self._tiling = tiling

    @property
    def most(self) -> int:
        """Planes there is room for."""
        return len(self._pixels)

    def pixels(self, block: _Block, rows: int) -> np.ndarray:
        """(tiles, channels, rows, columns)."""
        tiles, channels = block.shape
        planes = self._pixels[: tiles * channels, : rows * self._tiling.size[1]]
        return planes.reshape(tiles, channels, rows, self._tiling.size[1], copy=False)

    def spectra(self, block: _Block) -> np.ndarray:
        """(tiles, channels, rows, half), in ``elements``."""
        shape = (*block.shape, self._tiling.size[0], self._tiling.half)
        return _complex(self.elements[: 2 * math.prod(shape)]).reshape(shape)


def _complex(elements: np.ndarray) -> np.ndarray:
    """The same memory as complex numbers."""
    return elements.view(np.result_type(elements.dtype, np.complex64))


# Infinities and NaN pass through, as in the other algorithms; set in each thread, as NumPy wants it.
_silent = np.errstate(over="ignore", invalid="ignore")


class Fft(Algorithm):
    """Overlap-save in the frequency domain: work that hardly grows with the kernel.

    The image is cut into overlapping tiles, each is transformed, multiplied with the conjugate of the
    kernel's spectrum and transformed back; the pixels that did not wrap around are a tile of the output
    (Mathieu, Henaff and LeCun, arXiv 1312.5851; Oppenheim and Schafer, Discrete-Time Signal Processing,
    8.7). Stride is computed at stride 1 and subsampled; dilation spreads the kernel. A non-finite input
    spreads over its whole tile.
    """

    name = "fft"
    strided = "subsampled"
    quantizable = False
    cuts_images = True

    def multiplications(self, geometry: ConvGeometry, vector_bytes: int = base.WIDEST) -> int:
        """Real multiplications of the complex products; the transforms themselves are left out."""
        tiling = _tiling(geometry)
        channels = geometry.in_channels // geometry.groups * geometry.out_channels
        return 4 * geometry.batch * tiling.count * tiling.frequencies * channels

    def workspace_bytes(self, geometry: ConvGeometry, num_threads: int, kernels: ModuleType) -> int:
        """The spectra of a chunk of tiles, and for each thread a block of planes on their way there."""
        return _layout(geometry, kernels).total(num_threads) * geometry.dtype.itemsize

    def transformed_bytes(self, geometry: ConvGeometry, vector_bytes: int = base.WIDEST) -> int:
        return _weight_bytes(geometry, _tiling(geometry))

    def error_bound(self, geometry: ConvGeometry) -> float:
        # A transform's relative error grows with its log₂(points) steps (Higham, Accuracy and Stability of
        # Numerical Algorithms, 24.1); the products sum 2·C_in terms, in one run.
        steps = math.log2(math.prod(_tiling(geometry).size))
        terms = 2 * geometry.in_channels // geometry.groups
        sums = base.summation_error(terms, geometry.dtype, block=terms)
        # The worst of the tests, in float64 and with the reference's own rounding, came to 1.3 times the sum.
        return 1.5 * (steps * float(np.finfo(geometry.dtype).eps) / 2 + sums)

    def pack(
        self, weight, bias, geometry: ConvGeometry, kernels: ModuleType, num_threads: int, into=None
    ) -> Packed:
        tiling = _tiling(geometry)
        layout = _layout(geometry, kernels)
        groups, group_in = geometry.groups, geometry.in_channels // geometry.groups
        group_out = geometry.out_channels // groups
        if into is None:
            width = base.panel_width(kernels, geometry.dtype)
            blocks = base.ceil_div(2 * tiling.frequencies, width)
            packed_weight = aligned_empty((groups, blocks, group_out * group_in, width), geometry.dtype)
            packed_bias = np.empty(geometry.out_channels, geometry.dtype)
        else:
            packed_weight, packed_bias = into.weight, into.bias
        run = kernels.spectral_outputs()
        # The transforms are scaled to preserve length; a product of two needs the factor once more.
        scale = math.sqrt(math.prod(tiling.size))
        parts = [(g, first) for g in range(groups) for first in range(0, group_out, run)]

        @_silent
        def transform(number: int, team: int, _wait) -> None:
            spectra = np.empty((min(run, group_out), group_in, layout.pitch), _complex_dtype(geometry))
            for g, first in threads.part(parts, number, team):
                begin = g * group_out + first
                taps = weight[begin : begin + min(run, group_out - first)]
                target = spectra[: len(taps)]
                _transform_taps(taps, geometry, tiling, target)
                kernels.pack_spectra(target.view(geometry.dtype), packed_weight[g], first, scale)

        threads.together(transform, min(num_threads, len(parts)))
        packed_bias[:] = 0 if bias is None else bias
        return Packed(kernels, geometry, packed_weight, packed_bias)

    def bind(self, packed: Packed, x, out, epilogue: Epilogue, num_threads: int) -> Call:
        def call(x: np.ndarray, out: np.ndarray, workspace: np.ndarray) -> None:
            _compute(x, packed, out, epilogue, workspace, num_threads)

        return call


def _compute(
    x: np.ndarray, packed: Packed, out: np.ndarray, epilogue: Epilogue, workspace: np.ndarray,
    num_threads: int,
) -> None:  # fmt: skip
    """All chunks of tiles in turn; the threads wait for each other between the three steps of a chunk."""
    geometry, kernels = packed.geometry, packed.kernels
    tiling, layout = _tiling(geometry), _layout(geometry, kernels)
    each = layout.pixels + layout.spectrum + layout.split
    scratch = [_Scratch(workspace[i * each :], layout, tiling) for i in range(num_threads)]
    spectra = workspace[num_threads * each :]
    shape = (tiling.chunk, -1, 2 * layout.pitch)
    before = spectra[: layout.spectra_in].reshape(shape)
    after = spectra[layout.spectra_in :][: layout.spectra_out].reshape(shape)
    frequencies = range(packed.weight.shape[1])
    total = geometry.batch * tiling.count

    @_silent
    def work(number: int, team: int, wait: Callable[[], object]) -> None:
        mine = scratch[number]
        for start in range(0, total, tiling.chunk):
            used = min(tiling.chunk, total - start)
            planes = threads.part(range(used * geometry.in_channels), number, team)
            for block in _blocks(planes, geometry.in_channels, mine.most):
                _transform(x, start, block, packed, mine, before)
            wait()
            blocks = threads.part(frequencies, number, team)
            _multiply(packed, before[:used], blocks, after[:used], mine.split)
            wait()
            planes = threads.part(range(used * geometry.out_channels), number, team)
            for block in _blocks(planes, geometry.out_channels, mine.most):
                _transform_back(after, start, block, packed, epilogue, mine, out)

    threads.together(work, num_threads)


def _complex_dtype(geometry: ConvGeometry) -> np.dtype:
    return np.result_type(geometry.dtype, np.complex64)


def _blocks(planes: range, channels: int, most: int) -> Iterator[_Block]:
    """Cut a run of planes, all channels of a tile before the next tile, into blocks of at most so many."""
    begin = planes.start
    while begin < planes.stop:
        slot, channel = divmod(begin, channels)
        left = min(most, planes.stop - begin)
        if channel == 0 and left >= channels:
            tiles = left // channels
            yield _Block(slice(slot, slot + tiles), slice(0, channels))
            begin += tiles * channels
        else:
            count = min(left, channels - channel)
            yield _Block(slice(slot, slot + 1), slice(channel, channel + count))
            begin += count


def _transform_taps(taps: np.ndarray, geometry: ConvGeometry, tiling: _Tiling, spectra: np.ndarray) -> None:
    """The spectra of some kernels (outputs, channels, k_h, k_w)."""
    shape = (*taps.shape[:2], tiling.size[0], tiling.half)
    target = spectra[..., : tiling.frequencies].reshape(shape)
    spread = np.zeros((*taps.shape[:2], *_extent(geometry)), geometry.dtype)
    spread[:, :, :: geometry.dilation[0], :: geometry.dilation[1]] = taps
    rows = np.fft.rfft(spread, n=tiling.size[1], norm="ortho")
    np.fft.fft(rows, n=tiling.size[0], axis=2, norm="ortho", out=target)


def _places(geometry: ConvGeometry, start: int, block: _Block) -> Iterator[tuple[int, int, int]]:
    """Image, first row and first column of the output of each tile of a block."""
    tiling = _tiling(geometry)
    for index in range(start + block.slots.start, start + block.slots.stop):
        image, place = divmod(index, tiling.count)
        down, across = divmod(place, tiling.tiles[1])
        yield image, down * tiling.outputs[0], across * tiling.outputs[1]


def _transform(
    x: np.ndarray, start: int, block: _Block, packed: Packed, scratch: _Scratch, spectra: np.ndarray
) -> None:
    """The spectra of a block, from images (N, H, W, C_in)."""
    geometry, tiling = packed.geometry, _tiling(packed.geometry)
    (down, across), ((above, _), (before, _)) = geometry.stride, geometry.padding
    pixels = scratch.pixels(block, tiling.size[0])
    for target, (image, row, column) in zip(pixels, _places(geometry, start, block), strict=True):
        packed.kernels.spectral_planes(
            x[image, :, :, block.channels], row * down - above, column * across - before, target
        )
    halves = scratch.spectra(block)
    # With the default norm numpy.fft computes float32 in float64, at a quarter of the speed.
    np.fft.rfft(pixels, norm="ortho", out=halves)
    np.fft.fft(halves, axis=2, norm="ortho", out=_planes(spectra, block, tiling))


def _planes(spectra: np.ndarray, block: _Block, tiling: _Tiling) -> np.ndarray:
    """A block among the spectra of a chunk, (tiles, channels, rows, columns)."""
    planes = _complex(spectra[block.slots, block.channels])[..., : tiling.frequencies]
    return planes.reshape((*block.shape, tiling.size[0], tiling.half), copy=False)


def _multiply(
    packed: Packed, before: np.ndarray, blocks: range, after: np.ndarray, workspace: np.ndarray
) -> None:
    groups = packed.geometry.groups
    group_in, group_out = before.shape[1] // groups, after.shape[1] // groups
    for group, weight in enumerate(packed.weight):
        packed.kernels.spectral_product(
            before[:, group * group_in : (group + 1) * group_in], weight, blocks.start, blocks.stop,
            after[:, group * group_out : (group + 1) * group_out], workspace,
        )  # fmt: skip


def _transform_back(
    spectra: np.ndarray, start: int, block: _Block, packed: Packed, epilogue: Epilogue, scratch: _Scratch,
    out: np.ndarray,
) -> None:  # fmt: skip
    """The outputs of a block, into images (N, H_out, W_out, C_out)."""
    geometry, tiling = packed.geometry, _tiling(packed.geometry)
    (down, across), (rows, columns) = geometry.stride, tiling.outputs
    halves = scratch.spectra(block)
    np.fft.ifft(_planes(spectra, block, tiling), axis=2, norm="ortho", out=halves)
    pixels = scratch.pixels(block, rows)
    kept = halves[:, :, : (rows - 1) * down + 1 : down]
    np.fft.irfft(kept, n=tiling.size[1], norm="ortho", out=pixels)
    bias = packed.bias[block.channels]
    for source, (image, row, column) in zip(pixels, _places(geometry, start, block), strict=True):
        packed.kernels.spectral_results(
            source, across, bias, epilogue.accumulate, epilogue.rectified,
            out[image, row : row + rows, column : column + columns, block.channels], scratch.elements,
        )  # fmt: skip
