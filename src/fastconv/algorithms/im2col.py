"""im2col: lower the patches of a panel of output pixels, then multiply."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

from fastconv.algorithms import base
from fastconv.algorithms.base import Algorithm, Call, Epilogue, Packed, bound
from fastconv.geometry import ConvGeometry

# Bytes of patches lowered at a time: with the band they come from, still within an L2 cache.
PANEL_BYTES = 256 * 1024


class _Blocking(NamedTuple):
    bands: int
    panel_pixels: int
    patch_pitch: int
    per_thread: int


@lru_cache(maxsize=1024)
def _blocking(geometry: ConvGeometry, num_threads: int, kernels: ModuleType) -> _Blocking:
    rows, columns = geometry.output_size
    itemsize, tile = geometry.dtype.itemsize, kernels.tile_rows()
    line = 64 // itemsize
    row_pitch = base.in_columns(geometry) * geometry.in_channels
    bands = base.count_bands(geometry, rows, geometry.stride[0] * row_pitch * itemsize, num_threads)
    band_rows = base.ceil_div(rows, bands)
    # An odd number of cache lines from patch to patch: a power of two would put a tile's rows in one set.
    patch_pitch = base.round_up(geometry.reduction, line)
    patch_pitch += line if patch_pitch // line % 2 == 0 else 0
    panel_pixels = max(tile, PANEL_BYTES // (patch_pitch * itemsize) // tile * tile)
    panel_pixels = min(panel_pixels, band_rows * columns)
    width = base.panel_width(kernels, geometry.dtype)
    block = panel_pixels * width + base.scatter_slack(kernels, geometry.dtype, width)
    band = base.in_rows(geometry, band_rows) * row_pitch
    return _Blocking(
        bands, panel_pixels, patch_pitch, base.round_up(band + panel_pixels * patch_pitch + block, line)
    )


class Im2col(Algorithm):
    """Patches as the rows of a matrix, times the weights as a matrix, a bounded panel at a time.

    Chellapilla, Puri and Simard, "High performance convolutional neural networks for document
    processing", 2006; lowered panel by panel as in Anderson et al., arXiv 1709.03395, so that memory
    does not grow with the image.
    """

    name = "im2col"

    def workspace_bytes(self, geometry: ConvGeometry, num_threads: int, kernels: ModuleType) -> int:
        return _blocking(geometry, num_threads, kernels).per_thread * num_threads * geometry.dtype.itemsize

    def error_bound(self, geometry: ConvGeometry) -> float:
        return base.summation_error(geometry.reduction, geometry.dtype)

    def pack(
        self, weight, bias, geometry: ConvGeometry, kernels: ModuleType, num_threads: int, into=None
    ) -> Packed:
        return base.pack_panels(weight, bias, geometry, kernels, num_threads, into)

    def bind(self, packed: Packed, x, out, epilogue: Epilogue, num_threads: int) -> Call:
        geometry = packed.geometry
        blocking = _blocking(geometry, num_threads, packed.kernels)
        before = (
            packed.weight, packed.bias, geometry, blocking.bands, blocking.panel_pixels,
            blocking.patch_pitch, base.DEPTH, *epilogue,
        )  # fmt: skip
        return bound(packed.kernels.im2col, geometry.dtype, before, (blocking.per_thread, num_threads))
