"""Convolution in the frequency domain: numpy.fft on overlapping tiles, products by our own kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import product
from types import ModuleType
from typing import NamedTuple

import numpy as np

from fastconv.algorithms import base
from fastconv.algorithms.base import Algorithm, Epilogue, Packed
from fastconv.geometry import ConvGeometry

# Bytes of spectra that one chunk of tiles may take, input and output together.
_CHUNK_BYTES = 8 * 1024 * 1024
# Bytes of pixels transformed at a time: with their spectra they stay in an L2 cache.
_BLOCK_BYTES = 256 * 1024
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
    """Some channels of one tile: what is transformed at a time."""

    slot: int
    image: int
    tile: tuple[int, int]
    channels: slice


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
    return max(1, min(max(geometry.batch, 1) * tiling.count, _CHUNK_BYTES // spectra))


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
    if itemsize * rows * columns > _BLOCK_BYTES:
        planes *= _COLD
    calls = channels / min(channels, max(1, _BLOCK_BYTES // (itemsize * rows * columns))) * _CALLS
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
    planes = max(_block_channels(geometry, tiling, count) for count in _channel_counts(geometry))
    return _Layout(
        pitch,
        2 * tiling.chunk * geometry.in_channels * pitch,
        2 * tiling.chunk * geometry.out_channels * pitch,
        base.round_up(planes * math.prod(tiling.size), 16),
        base.round_up(2 * planes * tiling.frequencies, 16),
        tiling.chunk * geometry.in_channels // geometry.groups * width,
    )


def _channel_counts(geometry: ConvGeometry) -> tuple[int, int]:
    return geometry.in_channels, geometry.out_channels


def _block_channels(geometry: ConvGeometry, tiling: _Tiling, channels: int) -> int:
    """Channels of a tile that are transformed at a time."""
    fitting = max(1, _BLOCK_BYTES // (geometry.dtype.itemsize * math.prod(tiling.size)))
    return base.ceil_div(channels, base.ceil_div(channels, fitting))


class _Scratch:
    """One thread's part of the workspace, as arrays of whatever number of planes is wanted."""

    def __init__(self, elements: np.ndarray, layout: _Layout, tiling: _Tiling):
        self._pixels = elements[: layout.pixels]
        self._spectrum = elements[layout.pixels : layout.pixels + layout.spectrum]
        self.split = elements[layout.pixels + layout.spectrum :][: layout.split]
        self._tiling = tiling

    def pixels(self, planes: int, rows: int) -> np.ndarray:
        shape = (planes, rows, self._tiling.size[1])
        return self._pixels[: math.prod(shape)].reshape(shape)

    def spectrum(self, planes: int) -> np.ndarray:
        shape = (planes, self._tiling.size[0], self._tiling.half)
        return _complex(self._spectrum[: 2 * math.prod(shape)]).reshape(shape)


def _complex(elements: np.ndarray) -> np.ndarray:
    """The same memory as complex numbers."""
    return elements.view(np.result_type(elements.dtype, np.complex64))


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

    def multiplications(self, geometry: ConvGeometry) -> int:
        """Real multiplications of the complex products; the transforms themselves are left out."""
        tiling = _tiling(geometry)
        channels = geometry.in_channels // geometry.groups * geometry.out_channels
        return 4 * geometry.batch * tiling.count * tiling.frequencies * channels

    def workspace_bytes(self, geometry: ConvGeometry, num_threads: int, kernels: ModuleType) -> int:
        """The spectra of a chunk of tiles, and for each thread a block of planes on their way there.

        NumPy's buffers for one addition of three arrays are counted as well: bias and result.
        """
        elements = _layout(geometry, kernels).total(num_threads) + num_threads * 3 * np.getbufsize()
        return elements * geometry.dtype.itemsize

    def transformed_bytes(self, geometry: ConvGeometry) -> int:
        return _weight_bytes(geometry, _tiling(geometry))

    def error_bound(self, geometry: ConvGeometry) -> float:
        # A transform's relative error grows with its log₂(points) steps (Higham, Accuracy and Stability of
        # Numerical Algorithms, 24.1); the products sum 2·C_in terms, in one run.
        steps = math.log2(math.prod(_tiling(geometry).size))
        terms = 2 * geometry.in_channels // geometry.groups
        sums = base.summation_error(terms, geometry.dtype, block=terms)
        # The worst of the tests, in float64 and with the reference's own rounding, came to 1.3 times the sum.
        return 1.5 * (steps * float(np.finfo(geometry.dtype).eps) / 2 + sums)

    def pack(self, weight, bias, geometry: ConvGeometry, kernels: ModuleType, num_threads: int) -> Packed:
        tiling = _tiling(geometry)
        layout = _layout(geometry, kernels)
        groups, group_in = geometry.groups, geometry.in_channels // geometry.groups
        group_out = geometry.out_channels // groups
        width = base.panel_width(kernels, geometry.dtype)
        blocks = base.ceil_div(2 * tiling.frequencies, width)
        packed_weight = base.aligned_empty((groups, blocks, group_out * group_in, width), geometry.dtype)
        run = kernels.spectral_outputs()
        parts = [(g, first) for g in range(groups) for first in range(0, group_out, run)]

        def transform(parts: Sequence[tuple[int, int]], _worker: int) -> None:
            spectra = np.empty((min(run, group_out), group_in, layout.pitch), _complex_dtype(geometry))
            for g, first in parts:
                begin = g * group_out + first
                taps = weight[begin : begin + min(run, group_out - first)]
                target = spectra[: len(taps)]
                _transform_taps(taps, geometry, tiling, target)
                kernels.pack_spectra(target.view(geometry.dtype), packed_weight[g], first)

        _spread(transform, parts, num_threads)
        packed_bias = np.zeros(geometry.out_channels, geometry.dtype)
        if bias is not None:
            packed_bias[:] = bias
        return Packed(kernels, geometry, packed_weight, packed_bias)

    def run(self, x, packed: Packed, out, epilogue: Epilogue, workspace, num_threads: int) -> None:
        geometry, kernels = packed.geometry, packed.kernels
        tiling, layout = _tiling(geometry), _layout(geometry, kernels)
        if workspace.size < layout.total(num_threads):
            workspace = base.aligned_empty((layout.total(num_threads),), geometry.dtype)
        each = layout.pixels + layout.spectrum + layout.split
        scratch = [_Scratch(workspace[i * each :], layout, tiling) for i in range(num_threads)]
        spectra = workspace[num_threads * each :]
        shape = (tiling.chunk, -1, 2 * layout.pitch)
        before = spectra[: layout.spectra_in].reshape(shape)
        after = spectra[layout.spectra_in :][: layout.spectra_out].reshape(shape)
        images, results = x.transpose(0, 3, 1, 2), out.transpose(0, 3, 1, 2)
        blocks = range(packed.weight.shape[1])

        def forward(items: Sequence[_Block], worker: int) -> None:
            for block in items:
                _transform(images[block.image], block, geometry, scratch[worker], before)

        def multiply(items: range, worker: int) -> None:
            _multiply(packed, before[:used], items, after[:used], scratch[worker].split)

        def backward(items: Sequence[_Block], worker: int) -> None:
            for block in items:
                _transform_back(after, block, packed, epilogue, scratch[worker], results[block.image])

        total = geometry.batch * tiling.count
        for start in range(0, total, tiling.chunk):
            used = min(tiling.chunk, total - start)
            tiles = range(start, start + used)
            _spread(forward, _blocks(geometry, tiles, geometry.in_channels), num_threads)
            _spread(multiply, blocks, num_threads)
            _spread(backward, _blocks(geometry, tiles, geometry.out_channels), num_threads)


def _complex_dtype(geometry: ConvGeometry) -> np.dtype:
    return np.result_type(geometry.dtype, np.complex64)


def _spread(work: Callable[[Sequence, int], None], items: Sequence, num_threads: int) -> None:
    """work(part of the items, worker) on Python threads; numpy.fft and the kernels release the GIL.

    OpenMP's threads would not do: they wait for more work in a loop, and take the CPU from these.
    """
    workers = min(num_threads, len(items))
    parts = [items[len(items) * i // workers : len(items) * (i + 1) // workers] for i in range(workers)]
    if workers == 1:
        work(items, 0)
        return
    from concurrent.futures import ThreadPoolExecutor  # and logging with it: too much for every import

    with ThreadPoolExecutor(workers - 1) as pool:
        others = [pool.submit(work, part, worker) for worker, part in enumerate(parts) if worker]
        work(parts[0], 0)
        for other in others:
            other.result()


def _blocks(geometry: ConvGeometry, tiles: range, channels: int) -> list[_Block]:
    """All channels of some tiles, cut into blocks."""
    tiling = _tiling(geometry)
    step = _block_channels(geometry, tiling, channels)
    blocks = []
    for slot, index in enumerate(tiles):
        image, place = divmod(index, tiling.count)
        tile = divmod(place, tiling.tiles[1])
        blocks += [
            _Block(slot, image, tile, slice(first, min(first + step, channels)))
            for first in range(0, channels, step)
        ]
    return blocks


def _transform_taps(taps: np.ndarray, geometry: ConvGeometry, tiling: _Tiling, spectra: np.ndarray) -> None:
    """The conjugate spectra of some kernels (outputs, channels, k_h, k_w)."""
    shape = (*taps.shape[:2], tiling.size[0], tiling.half)
    target = spectra[..., : tiling.frequencies].reshape(shape)
    spread = np.zeros((*taps.shape[:2], *_extent(geometry)), geometry.dtype)
    spread[:, :, :: geometry.dilation[0], :: geometry.dilation[1]] = taps
    rows = np.fft.rfft(spread, n=tiling.size[1], norm="ortho")
    np.fft.fft(rows, n=tiling.size[0], axis=2, norm="ortho", out=target)
    # The transforms below are scaled to preserve length; a product of two needs the factor once more.
    scale = math.sqrt(math.prod(tiling.size))
    np.multiply(target.real, scale, out=target.real)
    np.multiply(target.imag, -scale, out=target.imag)


def _transform(
    image: np.ndarray, block: _Block, geometry: ConvGeometry, scratch: _Scratch, spectra: np.ndarray
) -> None:
    """The spectra of some channels of one tile of an image (C_in, H, W)."""
    tiling = _tiling(geometry)
    planes = image[block.channels]
    pixels = scratch.pixels(len(planes), tiling.size[0])
    sources, targets = [], []
    for axis in range(2):
        # Pixel `first` of the image, or of the padding before it, is pixel 0 of the tile.
        first = block.tile[axis] * tiling.outputs[axis] * geometry.stride[axis] - geometry.padding[axis][0]
        begin = max(first, 0)
        end = max(begin, min(first + tiling.size[axis], geometry.input_size[axis]))
        sources.append(slice(begin, end))
        targets.append(slice(begin - first, end - first))
    rows, columns = targets
    pixels[:, : rows.start] = pixels[:, rows.stop :] = 0
    pixels[:, rows, : columns.start] = pixels[:, rows, columns.stop :] = 0
    pixels[:, rows, columns] = planes[:, sources[0], sources[1]]
    halves = scratch.spectrum(len(planes))
    # With the default norm numpy.fft computes float32 in float64, at a quarter of the speed.
    np.fft.rfft(pixels, norm="ortho", out=halves)
    np.fft.fft(halves, axis=1, norm="ortho", out=_planes(spectra, block, tiling))


def _planes(spectra: np.ndarray, block: _Block, tiling: _Tiling) -> np.ndarray:
    """The planes of a block among the spectra of a chunk, (channels, rows, columns)."""
    planes = _complex(spectra[block.slot, block.channels])[:, : tiling.frequencies]
    return planes.reshape((len(planes), tiling.size[0], tiling.half))


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
    spectra: np.ndarray, block: _Block, packed: Packed, epilogue: Epilogue, scratch: _Scratch, out: np.ndarray
) -> None:
    """Some channels of one tile of the output (C_out, H_out, W_out), with bias and ReLU."""
    geometry, tiling = packed.geometry, _tiling(packed.geometry)
    target = out[block.channels]
    for axis in range(2):
        first = block.tile[axis] * tiling.outputs[axis]
        target = target[(slice(None),) * (axis + 1) + (slice(first, first + tiling.outputs[axis]),)]
    (down, across), (rows, columns) = geometry.stride, target.shape[1:]
    halves = scratch.spectrum(len(target))
    np.fft.ifft(_planes(spectra, block, tiling), axis=1, norm="ortho", out=halves)
    pixels = scratch.pixels(len(target), rows)
    np.fft.irfft(halves[:, : (rows - 1) * down + 1 : down], n=tiling.size[1], norm="ortho", out=pixels)
    kept = pixels[:, :, : (columns - 1) * across + 1 : across]
    np.add(kept, packed.bias[block.channels, None, None], out=target)
    if epilogue.rectified:
        np.maximum(target, 0, out=target)
