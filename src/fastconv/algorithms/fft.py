"""Convolution in the frequency domain: numpy.fft on overlap-add tiles, products by our own kernel."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import product
from types import ModuleType
from typing import NamedTuple

import numpy as np

from fastconv.algorithms import base
from fastconv.algorithms.base import Algorithm, Packed
from fastconv.geometry import ConvGeometry

# Bytes of spectra that one chunk of tiles may take, input and output together.
_CHUNK_BYTES = 8 * 1024 * 1024
# Bytes the transformed weights may take before smaller tiles are preferred.
_WEIGHT_BYTES = 256 * 1024 * 1024
# Cost of one n·log₂(n) step of numpy.fft, in multiply–adds of the product kernel (64-point rows, one
# thread, AVX-512: 0.6 ns against 0.016 ns).
_FFT_STEP = 40.0


class _Tiling(NamedTuple):
    """Tiles of ``tile`` input pixels; with the kernel's extent they fill transforms of ``size``."""

    size: tuple[int, int]
    tile: tuple[int, int]
    tiles: tuple[int, int]
    chunk: int

    @property
    def frequencies(self) -> int:
        return self.size[0] * (self.size[1] // 2 + 1)

    @property
    def count(self) -> int:
        return self.tiles[0] * self.tiles[1]


def _fast_sizes(limit: int) -> list[int]:
    """Sizes 2^a·3^b·5^c (even, for the real transform) up to the first one at or above ``limit``."""
    exponents = range(limit.bit_length() + 1)
    sizes = sorted(
        {2 * 2**a * 3**b * 5**c for a, b, c in product(exponents, repeat=3) if 2**a * 3**b * 5**c <= limit}
    )
    return sizes[: next((i for i, size in enumerate(sizes) if size >= limit), len(sizes) - 1) + 1]


def _extent(geometry: ConvGeometry) -> tuple[int, int]:
    """Pixels the dilated kernel covers."""
    return tuple(d * (k - 1) + 1 for d, k in zip(geometry.dilation, geometry.kernel_size, strict=True))


def _axis_sizes(pixels: int, extent: int) -> list[int]:
    """Transform sizes worth considering on one axis: from twice the kernel to the whole image."""
    sizes = [
        size for size in _fast_sizes(pixels + extent - 1) if size >= min(2 * extent, pixels + extent - 1)
    ]
    return sizes or [_fast_sizes(pixels + extent - 1)[-1]]


@lru_cache(maxsize=1024)
def _tiling(geometry: ConvGeometry) -> _Tiling:
    """The cheapest tiling by ``_cost`` among the fast sizes, its weights within their bound if any are."""
    extent = _extent(geometry)
    candidates = []
    for size in product(*(_axis_sizes(n, e) for n, e in zip(geometry.input_size, extent, strict=True))):
        tile = tuple(s - e + 1 for s, e in zip(size, extent, strict=True))
        tiles = tuple(base.ceil_div(n, t) for n, t in zip(geometry.input_size, tile, strict=True))
        candidates.append(_Tiling(size, tile, tiles, 0))
    best = min(
        candidates,
        key=lambda tiling: (max(_weight_bytes(geometry, tiling), _WEIGHT_BYTES), _cost(geometry, tiling)),
    )
    spectra = 2 * geometry.dtype.itemsize * best.frequencies * (geometry.in_channels + geometry.out_channels)
    return best._replace(chunk=max(1, min(best.count, _CHUNK_BYTES // spectra)))


def _weight_bytes(geometry: ConvGeometry, tiling: _Tiling) -> int:
    channels = geometry.in_channels // geometry.groups * geometry.out_channels
    return 4 * geometry.dtype.itemsize * channels * tiling.frequencies


def _cost(geometry: ConvGeometry, tiling: _Tiling) -> float:
    """Multiply–adds, or as much time, for one image."""
    points = tiling.size[0] * tiling.size[1]
    transforms = (geometry.in_channels + geometry.out_channels) * points * math.log2(points) * _FFT_STEP
    products = 4 * tiling.frequencies * geometry.in_channels // geometry.groups * geometry.out_channels
    return tiling.count * (transforms + products)


def cost(geometry: ConvGeometry) -> float:
    """Time for the whole batch, in multiply–adds of a direct convolution."""
    return geometry.batch * _cost(geometry, _tiling(geometry))


class Fft(Algorithm):
    """Overlap-add in the frequency domain: work that hardly grows with the kernel.

    The image is cut into tiles, each is transformed with zeros up to tile + kernel − 1, multiplied with
    the kernel's spectrum, transformed back and added to its neighbours (Mathieu, Henaff and LeCun,
    arXiv 1312.5851; Oppenheim and Schafer, Discrete-Time Signal Processing, 8.7). Stride is computed at
    stride 1 and subsampled; dilation spreads the kernel. A non-finite input spreads over its whole tile.
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
        """The arrays of one call; numpy.fft takes and frees them, nothing is kept between calls."""
        tiling = _tiling(geometry)
        channels = geometry.in_channels + geometry.out_channels
        chunks = base.ceil_div(tiling.count, tiling.chunk)
        workers = min(num_threads, chunks)
        # Per worker: pixels and spectra of a chunk, the spectra once more in frequency-major order, and
        # numpy.fft's own temporary. Besides: the full-size sums, and the chunks that wait to be added.
        spectra = tiling.chunk * tiling.frequencies * 2 * channels
        pixels = tiling.chunk * math.prod(tiling.size) * channels
        full = math.prod(n + e - 1 for n, e in zip(geometry.input_size, _extent(geometry), strict=True))
        waiting = (2 * workers) * tiling.chunk * math.prod(tiling.size) * geometry.out_channels
        elements = workers * (3 * spectra + pixels) + geometry.out_channels * full + waiting
        return elements * geometry.dtype.itemsize

    def error_bound(self, geometry: ConvGeometry) -> float:
        # A transform's relative error grows with its log₂(points) steps (Higham, Accuracy and Stability of
        # Numerical Algorithms, 24.1); the products sum 2·C_in terms.
        steps = math.log2(math.prod(_tiling(geometry).size))
        sums = base.summation_error(2 * geometry.in_channels // geometry.groups, geometry.dtype)
        return steps * float(np.finfo(geometry.dtype).eps) / 2 + sums

    def pack(self, weight, bias, geometry: ConvGeometry, kernels: ModuleType, num_threads: int) -> Packed:
        tiling = _tiling(geometry)
        groups = geometry.groups
        group_in, group_out = geometry.in_channels // groups, geometry.out_channels // groups
        spread = np.zeros((*weight.shape[:2], *_extent(geometry)), geometry.dtype)
        # Convolution by spectra flips the kernel; a CNN's convolution does not, so it is flipped here.
        spread[:, :, :: geometry.dilation[0], :: geometry.dilation[1]] = weight[:, :, ::-1, ::-1]
        spectrum = np.fft.rfft2(spread, s=tiling.size, axes=(2, 3))
        spectrum = spectrum.reshape(groups, group_out, group_in, tiling.frequencies).transpose(0, 3, 2, 1)
        # (a + bi)(c + di) as a real product: [a b] · [[c, d], [−d, c]].
        real = np.empty((groups, tiling.frequencies, group_in, 2, group_out, 2), geometry.dtype)
        real[..., 0, :, 0] = real[..., 1, :, 1] = spectrum.real
        real[..., 0, :, 1] = spectrum.imag
        real[..., 1, :, 0] = -spectrum.imag
        real = real.reshape(groups, tiling.frequencies, 2 * group_in, 2 * group_out)
        width = base.panel_width(kernels, geometry.dtype)
        panels = base.ceil_div(2 * group_out, width)
        packed_weight = base.aligned_empty(
            (groups, tiling.frequencies, panels, 2 * group_in, width), geometry.dtype
        )
        for matrices, targets in zip(real, packed_weight, strict=True):
            kernels.pack_panels(matrices, targets, num_threads)
        packed_bias = np.zeros(geometry.out_channels, geometry.dtype)
        if bias is not None:
            packed_bias[:] = bias
        return Packed(kernels, geometry, packed_weight, packed_bias)

    def run(self, x, packed: Packed, out, rectified: bool, workspace, num_threads: int) -> None:
        geometry, tiling = packed.geometry, _tiling(packed.geometry)
        chunks = [range(i, min(i + tiling.chunk, tiling.count)) for i in range(0, tiling.count, tiling.chunk)]
        # Chunks go to Python threads where there are enough of them (numpy.fft and the kernels release the
        # GIL), the frequencies of one chunk to OpenMP threads where there are not.
        workers = min(num_threads, len(chunks))
        inner = num_threads if workers == 1 else 1
        with _thread_pool(workers) if workers > 1 else _Inline() as pool:
            for image, result in zip(x.transpose(0, 3, 1, 2), out.transpose(0, 3, 1, 2), strict=True):
                full = np.zeros(
                    (
                        geometry.out_channels,
                        *(n + e - 1 for n, e in zip(geometry.input_size, _extent(geometry), strict=True)),
                    ),
                    geometry.dtype,
                )
                for start in range(0, len(chunks), workers):
                    batch = chunks[start : start + workers]
                    for chunk, tiles in zip(
                        batch, pool.map(lambda c, i=image: _convolve(i, c, packed, inner), batch), strict=True
                    ):
                        _overlap_add(full, chunk, tiles, tiling)
                _crop(full, geometry, packed.bias, rectified, result)


def _thread_pool(workers: int):
    from concurrent.futures import ThreadPoolExecutor  # and logging with it: too much for every import

    return ThreadPoolExecutor(workers)


class _Inline:
    """The one-thread stand-in for a thread pool."""

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return None

    map = staticmethod(map)


def _corner(index: int, tiling: _Tiling) -> tuple[int, int]:
    row, column = divmod(index, tiling.tiles[1])
    return row * tiling.tile[0], column * tiling.tile[1]


def _convolve(image: np.ndarray, chunk: range, packed: Packed, num_threads: int) -> np.ndarray:
    """The full convolutions of some tiles of an image (C_in, H, W): (tiles, C_out, *size)."""
    geometry, tiling = packed.geometry, _tiling(packed.geometry)
    groups, frequencies = geometry.groups, tiling.frequencies
    pixels = np.zeros((len(chunk), geometry.in_channels, *tiling.size), geometry.dtype)
    for tile, index in zip(pixels, chunk, strict=True):
        top, left = _corner(index, tiling)
        source = image[:, top : top + tiling.tile[0], left : left + tiling.tile[1]]
        tile[:, : source.shape[1], : source.shape[2]] = source
    spectrum = np.fft.rfft2(pixels, axes=(2, 3)).reshape(len(chunk), groups, -1, frequencies)
    result = np.empty((groups, frequencies, len(chunk), geometry.out_channels // groups), spectrum.dtype)
    for group in range(groups):
        factor = np.ascontiguousarray(spectrum[:, group].transpose(2, 0, 1)).view(geometry.dtype)
        packed.kernels.batched_product(
            factor, packed.weight[group], result[group].view(geometry.dtype), base.DEPTH, num_threads
        )
    shape = (len(chunk), geometry.out_channels, tiling.size[0], tiling.size[1] // 2 + 1)
    return np.fft.irfft2(result.transpose(2, 0, 3, 1).reshape(shape), s=tiling.size, axes=(2, 3))


def _overlap_add(full: np.ndarray, chunk: range, tiles: np.ndarray, tiling: _Tiling) -> None:
    """Add each tile's full convolution into the image's, in the order of the tiles."""
    for tile, index in zip(tiles, chunk, strict=True):
        top, left = _corner(index, tiling)
        target = full[:, top : top + tiling.size[0], left : left + tiling.size[1]]
        target += tile[:, : target.shape[1], : target.shape[2]]


def _crop(
    full: np.ndarray, geometry: ConvGeometry, bias: np.ndarray, rectified: bool, out: np.ndarray
) -> None:
    """out[:, y] = full[:, y · stride + extent − 1 − padding], zero outside it; then bias and ReLU."""
    take = []
    for axis, extent in enumerate(_extent(geometry)):
        stride, size = geometry.stride[axis], geometry.output_size[axis]
        start = extent - 1 - geometry.padding[axis][0]
        first = max(0, base.ceil_div(-start, stride))
        last = max(first, min(size, (full.shape[axis + 1] - 1 - start) // stride + 1))
        take.append(
            (slice(first, last), slice(start + first * stride, start + (last - 1) * stride + 1, stride))
        )
    out[...] = 0
    if all(target.stop > target.start for target, _ in take):
        out[:, take[0][0], take[1][0]] = full[:, take[0][1], take[1][1]]
    out += bias[:, None, None]
    if rectified:
        np.maximum(out, 0, out=out)
