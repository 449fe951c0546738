"""What an algorithm is: the small interface behind which all five stand, and what they share."""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from types import ModuleType
from typing import NamedTuple

import numpy as np

from fastconv.geometry import ConvGeometry
from fastconv.kernels import KernelCall
from fastconv.memory import aligned_empty

# Bytes of input a thread copies with its halo at a time: a part of an L2 cache of 1–2 MiB, so that the
# panels of weights and the outputs stay in it as well.
BAND_BYTES = 384 * 1024
# Terms summed in registers before the sum is added to memory: this part of a panel (32 KiB of float32 with
# AVX-512) stays in the L1 cache, and the error of a long sum stays near that of a sum of this length.
DEPTH = 256
# Images of no more bytes of outputs wait near enough to be written, and read, without being asked for.
_NEAR_BYTES = 2 << 20
# Images of more are not in cache when the next layer reads them, and are written past it.
_FAR_BYTES = 8 << 20
# Bytes of a vector of AVX-512: forms may depend on what a level has.
WIDEST = 64
# Pixels whose products with the weights take as long as the weights take to come from the L3 cache.
_WEIGHT_PIXELS = 12


class Packed(NamedTuple):
    """A convolution's weights and bias in the form one algorithm wants on one instruction-set level.

    ``late`` holds other forms of the weights, made when an input's memory layout first asks for them;
    ``finite`` is False where a weight is infinite or NaN, for forms that leave out products with padding.
    """

    kernels: ModuleType
    geometry: ConvGeometry
    weight: np.ndarray
    bias: np.ndarray
    late: dict[Callable, np.ndarray] | None = None
    finite: bool = True

    @property
    def nbytes(self) -> int:
        """Bytes of the packed arrays."""
        return (
            self.weight.nbytes + self.bias.nbytes + sum(array.nbytes for array in (self.late or {}).values())
        )


class Epilogue(NamedTuple):
    """What happens to each output after its sum and its bias, while it is in registers.

    ``accumulate`` adds what ``out`` held before; ``rectified`` then takes max(·, 0).
    """

    rectified: bool = False
    accumulate: bool = False


# call(x, out, workspace)
Call = Callable[[np.ndarray, np.ndarray, np.ndarray], None]


def bound(kernel: Callable, dtype: np.dtype, before: tuple, after: tuple) -> KernelCall:
    """A compiled function of x, what comes ``before`` out, out, workspace, and what comes ``after`` them."""
    held = sys.modules[kernel.__module__].held
    before = tuple(held(value) if isinstance(value, np.ndarray) else value for value in before)
    return KernelCall(kernel["double" if dtype.itemsize == 8 else "float"], before, after)


class Algorithm(ABC):
    """One way to compute a convolution.

    Attributes
    ----------
    name : str
        As in ``conv2d(..., algorithm=name)``.
    strided : str
        ``"yes"``, ``"no"``, or ``"subsampled"``: computed at stride 1, then every s-th output kept.
    quantizable : bool
        Whether the same scheme works on int8 operands with exact integer sums.
    cuts_images : bool
        Whether it cuts wide images itself.
    """

    name: str
    strided: str = "yes"
    quantizable: bool = True
    cuts_images: bool = False

    def unsupported(self, geometry: ConvGeometry) -> str | None:
        """Why this algorithm cannot compute the problem; None where it can."""
        if geometry.spatial_rank != 2:
            return f"it has two spatial axes only, the problem has {geometry.spatial_rank}"
        return None

    def multiplications(self, geometry: ConvGeometry, vector_bytes: int = WIDEST) -> int:
        """Multiplications this algorithm does for the problem, on a level of such vectors."""
        return geometry.multiplications

    @abstractmethod
    def workspace_bytes(self, geometry: ConvGeometry, num_threads: int, kernels: ModuleType) -> int:
        """Bytes of scratch memory a call needs."""

    def transformed_bytes(self, geometry: ConvGeometry, vector_bytes: int = WIDEST) -> int:
        """Bytes of weights in a form larger than they are given; 0 where packing only reorders them."""
        return 0

    @abstractmethod
    def error_bound(self, geometry: ConvGeometry) -> float:
        """The largest max|error| / max|result| to expect for zero-mean random data."""

    def merges(self, geometry: ConvGeometry, vector_bytes: int = WIDEST) -> bool:
        """Whether an output's channels may be those of several pixels, each stored to its own place."""
        return False

    def packing(self, geometry: ConvGeometry, kernels: ModuleType) -> Hashable:
        """Which of this algorithm's forms of packed weights the problem takes."""
        return None

    @abstractmethod
    def pack(
        self,
        weight: np.ndarray,
        bias: np.ndarray | None,
        geometry: ConvGeometry,
        kernels: ModuleType,
        num_threads: int,
        into: Packed | None = None,
    ) -> Packed:
        """Prepare weight (C_out, C_in/groups, k_h, k_w) and bias (C_out,) once for many calls.

        ``into`` is what was packed for the same problem before: the new values are put into its memory,
        which calls may have been bound to.
        """

    @abstractmethod
    def bind(
        self, packed: Packed, x: np.ndarray, out: np.ndarray, epilogue: Epilogue, num_threads: int
    ) -> Call:
        """The call that computes x (N, H, W, C_in) → out (N, H_out, W_out, C_out), both of any strides.

        All that depends on strides is settled here: the call takes arrays whose strides are those of ``x``
        and ``out``, and a workspace of at least ``workspace_bytes`` bytes.
        """


def ceil_div(a: int, b: int) -> int:
    """⌈a / b⌉."""
    return -(-a // b)


def round_up(a: int, multiple: int) -> int:
    """The next multiple of ``multiple`` from ``a`` on."""
    return ceil_div(a, multiple) * multiple


def panel_width(kernels: ModuleType, dtype: np.dtype) -> int:
    """Columns of a packed panel: two vectors."""
    return 2 * kernels.vector_bytes() // dtype.itemsize


def in_rows(geometry: ConvGeometry, rows: int) -> int:
    """Rows of padded input that ``rows`` rows of output read."""
    return (rows - 1) * geometry.stride[0] + (geometry.kernel_size[0] - 1) * geometry.dilation[0] + 1


def in_columns(geometry: ConvGeometry) -> int:
    """Columns of padded input that a row of output reads."""
    return (
        (geometry.output_size[1] - 1) * geometry.stride[1]
        + (geometry.kernel_size[1] - 1) * geometry.dilation[1]
        + 1
    )


def phase_pitch(geometry: ConvGeometry, kernels: ModuleType) -> int:
    """Elements of each phase of a gathered row of a plane, whose columns are sorted modulo the stride."""
    lanes = kernels.vector_bytes() // geometry.dtype.itemsize
    return round_up(ceil_div(in_columns(geometry), geometry.stride[1]), lanes)


def plane_offsets(geometry: ConvGeometry, plane_rows: int, pitch: int) -> np.ndarray:
    """Where each tap (k_h, C_in/groups, k_w) lies in gathered planes of so many rows of phases."""
    stride = geometry.stride[1]
    column = np.arange(geometry.kernel_size[1]) * geometry.dilation[1]
    row = np.arange(geometry.kernel_size[0]) * geometry.dilation[0] * stride * pitch
    plane = np.arange(geometry.in_channels // geometry.groups) * plane_rows * stride * pitch
    return row[:, None, None] + plane[:, None] + column % stride * pitch + column // stride


def count_bands(geometry: ConvGeometry, rows: int, row_bytes: int, num_threads: int) -> int:
    """Parts to cut an image's ``rows`` into, each of about ``BAND_BYTES``, so that every thread has some.

    The count steers only which outputs are computed together, never how one is summed.
    """
    by_cache = ceil_div(rows * row_bytes, BAND_BYTES)
    parts = max(geometry.batch, 1) * min(rows, by_cache)
    if num_threads > 1:
        parts = round_up(parts, num_threads)
    return max(1, min(rows, ceil_div(parts, max(geometry.batch, 1))))


def share_out(
    geometry: ConvGeometry, rows: int, row_bytes: int, panels: int, num_threads: int, copy: float = 0.0
) -> tuple[int, int]:
    """Parts to cut an image's ``rows``, as ``count_bands`` does, and the panels of weights into.

    A thread that has some rows reads all the weights, and few rows share out badly; one that has some panels
    reads a part of them, and all of the input. The shorter time counts, in pixels of an image; a few per cent
    are not worth reading the input more than once. ``copy`` is the time to copy a pixel, in that of its
    product with a panel.
    """
    batch = max(geometry.batch, 1)
    columns = math.prod(geometry.output_size[1:])
    pixels, most = batch * rows * columns, ceil_div(batch * rows, num_threads) * columns
    by_rows = most * (1 + copy / panels) + _WEIGHT_PIXELS
    by_panels = ((pixels + _WEIGHT_PIXELS) * ceil_div(panels, num_threads) + pixels * copy) / panels
    if geometry.groups == 1 and panels >= num_threads > 1 and by_panels < 0.97 * by_rows:
        return count_bands(geometry, rows, row_bytes, 1), num_threads
    bands = count_bands(geometry, rows, row_bytes, num_threads)
    return bands, min(panels, ceil_div(num_threads, bands * batch))


def output_hints(geometry: ConvGeometry) -> tuple[bool, bool]:
    """Whether to ask for outputs before they are written, and whether to write them past the caches."""
    image_bytes = geometry.output_bytes // max(geometry.batch, 1)
    return image_bytes > _NEAR_BYTES, image_bytes > _FAR_BYTES


def scatter_slack(kernels: ModuleType, dtype: np.dtype, pixel_pitch: int) -> int:
    """Elements that storing a block may read beyond its last pixel: a vector's worth of pixels."""
    return kernels.vector_bytes() // dtype.itemsize * pixel_pitch


def pack_grouped(
    weight: np.ndarray, geometry: ConvGeometry, kernels: ModuleType, num_threads: int,
    into: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Weights as panels (groups, panels, k_h·k_w·C_in/groups, PANEL), K in the order (k_h, k_w, C_in)."""
    groups, group_out = geometry.groups, geometry.out_channels // geometry.groups
    packed = into
    if packed is None:
        width = panel_width(kernels, geometry.dtype)
        shape = groups, ceil_div(group_out, width), geometry.reduction, width
        packed = aligned_empty(shape, geometry.dtype)
    grouped = weight.reshape(groups, group_out, geometry.in_channels // groups, *geometry.kernel_size)
    kernels.pack_weight(grouped, packed, num_threads)
    return packed


def pack_bias(
    bias: np.ndarray | None, geometry: ConvGeometry, kernels: ModuleType, into: np.ndarray | None = None
) -> np.ndarray:
    """Bias as (groups · panels · PANEL), zero beyond each group's channels."""
    group_out = geometry.out_channels // geometry.groups
    packed = into
    if packed is None:
        width = panel_width(kernels, geometry.dtype)
        packed = np.zeros(geometry.groups * round_up(group_out, width), geometry.dtype)
    if bias is None:
        packed[:] = 0
    else:
        packed.reshape(geometry.groups, -1)[:, :group_out] = bias.reshape(geometry.groups, group_out)
    return packed


def pack_panels(
    weight: np.ndarray, bias: np.ndarray | None, geometry: ConvGeometry, kernels: ModuleType,
    num_threads: int, into: Packed | None,
) -> Packed:  # fmt: skip
    """Weights and bias as the products of matrices take them."""
    if into is None:
        packed_weight = pack_grouped(weight, geometry, kernels, num_threads)
        return Packed(kernels, geometry, packed_weight, pack_bias(bias, geometry, kernels))
    pack_grouped(weight, geometry, kernels, num_threads, into.weight)
    pack_bias(bias, geometry, kernels, into.bias)
    return into


def summation_error(terms: int, dtype: np.dtype, block: int = DEPTH) -> float:
    """Error of a sum of ``terms`` random products in blocks of ``block``, relative to the largest result.

    Rounding errors of a sum add up like a random walk (Higham and Mary, SIAM J. Sci. Comput. 41, 2019),
    so a sequential sum of n terms has an error near u·√n / 2 of the largest of many such sums; doubled
    here, because a maximum over many outputs is meant.
    """
    unit = float(np.finfo(dtype).eps) / 2
    block = min(terms, block)
    return unit * (2 + math.sqrt(block) + math.sqrt(terms / block))
