"""Direct's form for planar (NCHW) images: no transposition of pixels, the weights as the left factor."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

import numpy as np

from fastconv.algorithms import base
from fastconv.algorithms.base import Call, Epilogue, Packed, bound
from fastconv.geometry import ConvGeometry

# With fewer pixels the empty columns of a 1×1 kernel's last panel cost more than a transposition, and than
# packing the weights.
_MIN_PIXELS = 256
# Bytes of weights that are read for every row of outputs: a part of the L2 cache.
_MOST_WEIGHT_BYTES = 256 * 1024
# Bytes of a band of input planes, which is read once for every row of the kernel; and of panels of patches.
_BAND_BYTES = 96 * 1024
_PANEL_BYTES = 128 * 1024
# Columns computed for each that is wanted, at most: the last vector of a row is seldom full.
_MOST_COMPUTED = 1.25


@lru_cache(maxsize=1024)
def fits(geometry: ConvGeometry, kernels: ModuleType) -> bool:
    """Whether planar images are better multiplied as they are."""
    if geometry.groups > 1:
        return False
    if is_product(geometry):
        return geometry.input_size[0] * geometry.input_size[1] >= _MIN_PIXELS
    width, columns = base.panel_width(kernels, geometry.dtype), geometry.output_size[1]
    row_pitch = geometry.stride[1] * base.phase_pitch(geometry, kernels)
    row = geometry.in_channels * base.in_rows(geometry, 1) * row_pitch
    return (
        geometry.reduction <= base.DEPTH
        and geometry.weight_bytes <= _MOST_WEIGHT_BYTES
        and row * geometry.dtype.itemsize <= _BAND_BYTES
        and width <= columns
        and base.round_up(columns, width // 2) <= _MOST_COMPUTED * columns
    )


def is_product(geometry: ConvGeometry) -> bool:
    """Whether the problem is a matrix product of weights and pixels."""
    plain = geometry.kernel_size == geometry.stride == (1, 1)
    return plain and geometry.input_size == geometry.output_size


class _Blocking(NamedTuple):
    bands: int
    phase_pitch: int
    block: int
    offset: np.ndarray
    per_thread: int


@lru_cache(maxsize=1024)
def _blocking(geometry: ConvGeometry, num_threads: int, kernels: ModuleType) -> _Blocking:
    (rows, columns), itemsize = geometry.output_size, geometry.dtype.itemsize
    phase_pitch, width = base.phase_pitch(geometry, kernels), base.panel_width(kernels, geometry.dtype)
    row_pitch = geometry.stride[1] * phase_pitch
    halo = base.in_rows(geometry, 1) - geometry.stride[0]
    fitting = _BAND_BYTES // (geometry.in_channels * row_pitch * itemsize) - halo
    parts = base.ceil_div(num_threads, max(geometry.batch, 1))
    bands = base.ceil_div(rows, max(1, fitting // geometry.stride[0]))
    bands = min(rows, base.round_up(bands, parts))
    in_rows = base.in_rows(geometry, base.ceil_div(rows, bands))
    panel = geometry.reduction * width
    block = min(base.ceil_div(columns, width), max(1, _PANEL_BYTES // (panel * itemsize)))
    band = geometry.in_channels * in_rows * row_pitch + width
    # Terms in the order in which all forms of direct add them up: (k_h, k_w, C_in).
    offset = base.plane_offsets(geometry, in_rows, phase_pitch).transpose(0, 2, 1)
    return _Blocking(
        bands,
        phase_pitch,
        block,
        offset.ravel().astype(np.intp),
        base.round_up(band + block * panel, 64 // itemsize),
    )


def per_thread(geometry: ConvGeometry, num_threads: int, kernels: ModuleType) -> int:
    """Elements of scratch memory for each thread."""
    if is_product(geometry):  # a panel of as many input channels as are summed at a time
        return min(base.DEPTH, geometry.in_channels) * base.panel_width(kernels, geometry.dtype)
    return _blocking(geometry, num_threads, kernels).per_thread


def pack(
    weight, bias, geometry: ConvGeometry, kernels: ModuleType, num_threads: int, into: Packed | None
) -> Packed:
    """The weights as they are; ``form`` makes what an input's memory layout asks for."""
    if into is None:
        # A copy, as every packed weight is: the caller may change theirs later.
        copy = np.empty(weight.shape, geometry.dtype)
        into = Packed(kernels, geometry, copy, base.pack_bias(bias, geometry, kernels), {})
    else:
        base.pack_bias(bias, geometry, kernels, into.bias)
    matrix = weight.reshape(1, geometry.out_channels, -1).swapaxes(1, 2)
    if matrix.flags.c_contiguous and matrix.dtype == geometry.dtype:
        # A gradient's: NumPy would copy it element by element.
        kernels.swap_axes(matrix, into.weight.reshape(1, geometry.out_channels, -1), num_threads)
    else:
        into.weight[...] = weight
    for make, memory in into.late.items():
        make(into, num_threads, memory)
    return into


def form(packed: Packed, make: Callable, num_threads: int) -> np.ndarray:
    """The weights as ``make``, which is ``panels`` or ``matrix``, has them; made once."""
    if make not in packed.late:
        packed.late[make] = make(packed, num_threads)
    return packed.late[make]


def panels(packed: Packed, num_threads: int, into: np.ndarray | None = None) -> np.ndarray:
    """For images that are not planar: as all of direct's other weights."""
    return base.pack_grouped(packed.weight, packed.geometry, packed.kernels, num_threads, into)


def matrix(packed: Packed, _num_threads: int, into: np.ndarray | None = None) -> np.ndarray:
    """(C_out, k_h·k_w·C_in), terms in the order in which all forms of direct add them up."""
    geometry = packed.geometry
    if into is None:
        into = np.empty((geometry.out_channels, geometry.reduction), geometry.dtype)
    into.reshape(len(into), *geometry.kernel_size, -1)[...] = packed.weight.transpose(0, 2, 3, 1)
    return into


def is_planar(x: np.ndarray, out: np.ndarray, geometry: ConvGeometry) -> bool:
    """Whether pixels (N, H, W, C) lie so that this form may take them: rows, or whole planes, in one run."""
    if is_product(geometry):
        return in_runs(x) and in_runs(out)
    return all(image.strides[2] == image.itemsize for image in (x, out))


def in_runs(images: np.ndarray) -> bool:
    """Whether each plane of images (..., H, W, C) lies in one run."""
    row, pixel = images.strides[-3:-1]
    return pixel == images.itemsize and row == images.itemsize * images.shape[-2]


def runs(images: np.ndarray) -> np.ndarray:
    """Such images (..., H, W, C) as (..., C, H · W)."""
    lead = images.ndim - 3
    return images.transpose(*range(lead), -1, -3, -2).reshape(*images.shape[:lead], images.shape[-1], -1)


def bind(packed: Packed, epilogue: Epilogue, num_threads: int) -> Call:
    """For planar x (N, H, W, C_in) and planar out (N, H_out, W_out, C_out)."""
    geometry, kernels = packed.geometry, packed.kernels
    after = per_thread(geometry, num_threads, kernels), num_threads
    if not is_product(geometry):
        blocking = _blocking(geometry, num_threads, kernels)
        before = (
            form(packed, matrix, num_threads), packed.bias, geometry, blocking.offset,
            blocking.phase_pitch, blocking.bands, blocking.block, *epilogue,
        )  # fmt: skip
        return bound(kernels.direct_planes, geometry.dtype, before, after)
    weight = packed.weight.reshape(geometry.out_channels, geometry.in_channels)
    planes = bound(kernels.pointwise, geometry.dtype, (weight, packed.bias, base.DEPTH, *epilogue), after)

    def call(x: np.ndarray, out: np.ndarray, workspace: np.ndarray) -> None:
        planes(runs(x), runs(out), workspace)

    return call
