"""Direct's form for 1×1 kernels on planar (NCHW) images: no transposition, and the weights as they are."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

import numpy as np

from fastconv.algorithms import base
from fastconv.algorithms.base import Call, Epilogue, Packed, bound
from fastconv.geometry import ConvGeometry

# With fewer pixels the last panel's empty columns cost more than a transposition.
_MIN_PIXELS = 128


@lru_cache(maxsize=1024)
def fits(geometry: ConvGeometry) -> bool:
    """Whether the problem is a matrix product of weights and pixels."""
    plain = geometry.kernel_size == geometry.stride == (1, 1) and geometry.groups == 1
    pixels = geometry.input_size[0] * geometry.input_size[1]
    return plain and geometry.input_size == geometry.output_size and pixels >= _MIN_PIXELS


def is_planar(image: np.ndarray) -> bool:
    """Whether an image (N, H, W, C) has each channel's pixels in one run."""
    _, rows, columns, _ = image.strides
    return columns == image.itemsize and rows == columns * image.shape[2]


def panel_size(geometry: ConvGeometry, kernels: ModuleType) -> int:
    """Elements of scratch memory for each thread."""
    return min(base.DEPTH, geometry.in_channels) * base.panel_width(kernels, geometry.dtype)


def pack(
    weight, bias, geometry: ConvGeometry, kernels: ModuleType, num_threads: int, into: Packed | None
) -> Packed:
    """The weights as a matrix; ``panels`` packs them the other way when that is needed first."""
    matrix = weight.reshape(geometry.out_channels, geometry.in_channels)
    if into is None:
        # A copy, as every packed weight is: the caller may change theirs later.
        return Packed(kernels, geometry, matrix.copy(order="C"), base.pack_bias(bias, geometry, kernels), [])
    into.weight[...] = matrix
    base.pack_bias(bias, geometry, kernels, into.bias)
    for panels in into.late:
        base.pack_grouped(into.weight, geometry, kernels, num_threads, panels)
    return into


def panels(packed: Packed, num_threads: int) -> np.ndarray:
    """The weights as panels, for images that are not planar."""
    if not packed.late:
        panels = base.pack_grouped(packed.weight, packed.geometry, packed.kernels, num_threads)
        packed.late.append(panels)
    return packed.late[0]


def bind(packed: Packed, epilogue: Epilogue, per_thread: int, num_threads: int) -> Call:
    """For planar x (N, H, W, C_in) and planar out (N, H, W, C_out)."""
    before = packed.weight, packed.bias, base.DEPTH, *epilogue
    planes = bound(packed.kernels.pointwise, packed.geometry.dtype, before, (per_thread, num_threads))

    def call(x: np.ndarray, out: np.ndarray, workspace: np.ndarray) -> None:
        planes(_planes(x), _planes(out), workspace)

    return call


def _planes(image: np.ndarray) -> np.ndarray:
    """An image (N, H, W, C), planar, as (N, C, H · W)."""
    return image.transpose(0, 3, 1, 2).reshape(len(image), image.shape[3], -1)
