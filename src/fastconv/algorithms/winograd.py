"""Winograd's minimal filtering, F(2×2, 3×3) and F(4×4, 3×3), with its transforms made from points."""

from __future__ import annotations

import math
from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

import numpy as np

from fastconv.algorithms import base
from fastconv.algorithms.base import Algorithm, Packed
from fastconv.geometry import ConvGeometry

# Interpolation points ±a beside 0 and ∞, for each number of outputs a tile side has. √½ and √2 lose
# several times less accuracy than the usual 1 and 2 and cost no operation more.
_POINTS = {2: (1.0,), 4: (math.sqrt(0.5), math.sqrt(2.0))}
# Error growth over a direct sum of the channels, measured on N(0, 1) data for 1 to 512 channels
# (tests/test_convolution.py holds every run to it).
_ERROR_GROWTH = {2: 1.5, 4: 5.0}
# Bytes of transformed input a thread keeps: half an L2 cache.
_BLOCK_BYTES = 1024 * 1024
# F(4×4) does 36 products for 16 outputs, F(2×2) 16 for 4; below this many tiles its larger transformed
# weights and half-empty register tiles cost more than that saves (KERNELS.md: F(2×2) won at 14×14).
_MIN_TILES_4 = 28


class Transforms(NamedTuple):
    """F(m, r) for the points 0, ±a₁, …, ∞: G, and the coefficients that microkernel.h's steps take."""

    weight: np.ndarray
    coefficient: np.ndarray


@lru_cache(maxsize=16)
def transforms(outputs: int) -> Transforms:
    """The one-dimensional transforms F(outputs, 3), in float64.

    Y = Aᵀ[(G g) ⊙ (Bᵀ d)] is the transposed Toom–Cook algorithm: row i of G evaluates g at point α_i and
    divides by Π_{j≠i} (α_i − α_j), row i of Bᵀ holds the coefficients of Π_{j≠i} (x − α_j), Aᵀ the powers
    of the points (Lavin and Gray, arXiv 1509.09308; Barabasz et al., arXiv 1803.10986, on the points).
    """
    a = np.array(_POINTS[outputs])
    finite = np.concatenate([[0.0], np.stack([a, -a], axis=1).ravel()])
    differences = np.subtract.outer(finite, finite)
    np.fill_diagonal(differences, 1.0)
    rows = np.vander(finite, 3, increasing=True) / np.prod(differences, axis=1, keepdims=True)
    weight = np.vstack([rows, [0.0, 0.0, 1.0]])
    # np.poly gives Π (t − root), highest power first; the leading 1 is implied in the kernel.
    parts = [
        np.atleast_1d(np.poly(roots))[:0:-1]
        for roots in (a**2, *(np.delete(a, p) ** 2 for p in range(len(a))))
    ]
    parts += [np.array([point**i for i in range(8)]) for point in a]
    return Transforms(weight, np.concatenate(parts))


def tile_outputs(geometry: ConvGeometry) -> int:
    """m of F(m×m, 3×3): 4 where there are enough tiles to fill the register tiles, else 2."""
    return 4 if _tiles(geometry, 4) >= _MIN_TILES_4 else 2


def _tiles(geometry: ConvGeometry, outputs: int) -> int:
    return max(geometry.batch, 1) * math.prod(base.ceil_div(size, outputs) for size in geometry.output_size)


class _Blocking(NamedTuple):
    bands: int
    panel_parts: int
    block_rows: int
    block_columns: int
    pixel_pitch: int
    per_thread: int


@lru_cache(maxsize=1024)
def _blocking(geometry: ConvGeometry, num_threads: int, kernels: ModuleType) -> _Blocking:
    itemsize, tile = geometry.dtype.itemsize, kernels.tile_rows()
    line, lanes = 64 // itemsize, kernels.vector_bytes() // itemsize
    outputs = tile_outputs(geometry)
    positions = (outputs + 2) ** 2
    tile_rows, tile_columns = (base.ceil_div(size, outputs) for size in geometry.output_size)
    pixel_pitch = base.round_up(geometry.in_channels, lanes)
    row_pitch = (tile_columns * outputs + 2) * pixel_pitch
    bands = base.count_bands(geometry, tile_rows, outputs * row_pitch * itemsize, num_threads)
    band_rows = base.ceil_div(tile_rows, bands)
    blocks = max(1, min(2, _BLOCK_BYTES // (positions * pixel_pitch * itemsize * tile)))
    across = base.ceil_div(tile_columns, blocks * tile)
    block_columns = base.ceil_div(tile_columns, across)
    block_rows = min(band_rows, max(1, blocks * tile // block_columns))
    tiles = block_rows * block_columns
    width = base.panel_width(kernels, geometry.dtype)
    panels = base.ceil_div(geometry.out_channels // geometry.groups, width)
    panel_parts = min(panels, base.ceil_div(num_threads, bands * max(geometry.batch, 1)))
    band = (band_rows * outputs + 2) * row_pitch
    transformed = positions * (tiles * pixel_pitch + line)
    products = (positions + outputs**2) * tiles * width + base.scatter_slack(kernels, geometry.dtype, width)
    per_thread = base.round_up(band + transformed + products, line)
    return _Blocking(bands, panel_parts, block_rows, block_columns, pixel_pitch, per_thread)


class Winograd(Algorithm):
    """F(2×2, 3×3) and F(4×4, 3×3): 2.25 and 4 times fewer multiplications than the definition.

    Lavin and Gray, "Fast algorithms for convolutional neural networks", arXiv 1509.09308. Weights are
    transformed once, in float64. A non-finite input spreads over its whole tile.
    """

    name = "winograd"
    strided = "no"
    quantizable = False

    def unsupported(self, geometry: ConvGeometry) -> str | None:
        reason = super().unsupported(geometry)
        if reason is None and geometry.kernel_size != (3, 3):
            reason = f"it needs a 3×3 kernel, got {geometry.kernel_size[0]}×{geometry.kernel_size[1]}"
        if reason is None and geometry.stride != (1, 1):
            reason = f"it needs stride 1, got {geometry.stride}"
        if reason is None and geometry.dilation != (1, 1):
            reason = f"it needs dilation 1, got {geometry.dilation}"
        return reason

    def multiplications(self, geometry: ConvGeometry) -> int:
        """The products of the transformed tiles; the transforms themselves are left out, as is usual."""
        outputs = tile_outputs(geometry)
        tiles = _tiles(geometry, outputs) if geometry.batch else 0
        channels = geometry.in_channels // geometry.groups * geometry.out_channels
        return tiles * (outputs + 2) ** 2 * channels

    def workspace_bytes(self, geometry: ConvGeometry, num_threads: int, kernels: ModuleType) -> int:
        return _blocking(geometry, num_threads, kernels).per_thread * num_threads * geometry.dtype.itemsize

    def error_bound(self, geometry: ConvGeometry) -> float:
        channels = geometry.in_channels // geometry.groups
        return _ERROR_GROWTH[tile_outputs(geometry)] * base.summation_error(channels, geometry.dtype)

    def pack(self, weight, bias, geometry: ConvGeometry, kernels: ModuleType, num_threads: int) -> Packed:
        matrix = transforms(tile_outputs(geometry)).weight
        panels = base.pack_grouped(weight, geometry, kernels, num_threads)
        shape = (
            *panels.shape[:2],
            len(matrix) ** 2,
            geometry.in_channels // geometry.groups,
            panels.shape[3],
        )
        transformed = base.aligned_empty(shape, geometry.dtype)
        kernels.pack_winograd(panels, matrix, transformed, num_threads)
        return Packed(kernels, geometry, transformed, base.pack_bias(bias, geometry, kernels))

    def run(self, x, packed: Packed, out, rectified: bool, workspace, num_threads: int) -> None:
        geometry = packed.geometry
        blocking = _blocking(geometry, num_threads, packed.kernels)
        outputs = tile_outputs(geometry)
        packed.kernels.winograd(
            x, packed.weight, packed.bias, geometry, outputs,
            transforms(outputs).coefficient.astype(geometry.dtype), blocking.bands, blocking.panel_parts,
            blocking.block_rows, blocking.block_columns, blocking.pixel_pitch, base.DEPTH, rectified, out,
            workspace, blocking.per_thread, num_threads,
        )  # fmt: skip
