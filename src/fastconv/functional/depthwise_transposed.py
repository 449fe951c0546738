"""DepthwiseTransposed: a transposed depthwise convolution of stride 2, whose phases are written together."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np

from fastconv import kernels
from fastconv.algorithms import base
from fastconv.geometry import ConvGeometry
from fastconv.layout import moved_last, store
from fastconv.memory import Workspaces

# Kernels' widths, and the most of their heights.
_TAPS = range(2, 8)
# Bytes of images in scratch memory, where they are not channels-last: a part of the L3 cache.
_STAGED_BYTES = 8 << 20
# Bytes of a plane's inputs that are copied to lines with zeros around them; the zeros before a line.
_LINES_BYTES = 24 << 10
_LINE_MARGIN = 16


def fits(geometry: ConvGeometry, level: ModuleType) -> bool:
    """Whether the transposed of ``geometry`` is one of these."""
    lanes = level.vector_bytes() // geometry.dtype.itemsize
    return (
        geometry.spatial_rank == 2
        and geometry.groups == geometry.in_channels == geometry.out_channels >= lanes
        and geometry.stride[1] == 2
        and geometry.dilation[1] == 1
        and geometry.kernel_size[1] in _TAPS
        and geometry.kernel_size[0] < _TAPS.stop
    )


class DepthwiseTransposed:
    """A prepared transposed depthwise convolution of stride 2 along the row.

    Four phases of one to four taps each would read the input four times and write every other pixel of every
    other row, on planes a part of a cache line. See kernels/depthwise_transposed.pyx.
    """

    def __init__(self, weight, bias, *, geometry: ConvGeometry, rectified: bool, num_threads: int):
        self.geometry, self._rectified, self._num_threads = geometry, rectified, num_threads
        self._level = kernels.active()
        lanes = self._level.vector_bytes() // geometry.dtype.itemsize
        taps = math.prod(geometry.kernel_size)
        self._packed = np.empty((taps + 1, base.round_up(geometry.in_channels, lanes)), geometry.dtype)
        self.repack(weight, bias)
        # On planes both axes are alike, and four outputs of a pair of rows are made of the same inputs.
        (low, _), (left, _) = geometry.padding
        height, width = geometry.kernel_size
        self._on_planes = geometry.stride == (2, 2) and geometry.dilation == (1, 1) and height == width
        self._on_planes = self._on_planes and low == left
        pairs = base.round_up(base.ceil_div(geometry.input_size[1], 2), lanes)
        inputs = max(geometry.output_size[1] + 1, pairs + left // 2 + 1)
        self._pitch = base.round_up(_LINE_MARGIN + inputs, lanes)
        rows = base.ceil_div(geometry.input_size[0], 2)
        most = max(8, _LINES_BYTES // (self._pitch * geometry.dtype.itemsize))
        self._bands = base.ceil_div(rows, most)
        self._lines = (base.ceil_div(rows, self._bands) + 2 * (height // 2)) * self._pitch
        self._workspaces = Workspaces()

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed weights."""
        return self._packed.nbytes

    @property
    def kept_bytes(self) -> int:
        """Bytes of what is held between calls."""
        return self.packed_bytes + self._workspaces.nbytes

    @property
    def workspace_bytes(self) -> int:
        """Bytes of scratch memory for the worst of the formats: images to convert, or lines of planes."""
        lines = self._num_threads * self._lines * self.geometry.dtype.itemsize
        return max(lines if self._on_planes else 0, self._converted_bytes)

    @property
    def multiplications(self) -> int:
        """Multiplications of one call: each input meets each weight."""
        return math.prod(self.geometry.output_shape) * math.prod(self.geometry.kernel_size)

    def repack(self, weight: np.ndarray, bias: np.ndarray | None) -> None:
        """Take another weight (C, 1, k_h, k_w) and bias (C,)."""
        weight = np.ascontiguousarray(weight, self.geometry.dtype)
        self._level.pack_narrow(weight, self._packed[:-1])
        self._packed[-1] = 0
        self._packed[-1, : self.geometry.in_channels] = 0 if bias is None else bias

    def retire(self) -> None:
        """Leave scratch memory to others."""
        self._workspaces.give_back()

    def run(self, x: np.ndarray, out: np.ndarray, num_threads: int) -> None:
        """``x`` (N, C, H_out, W_out) → ``out`` (N, C, H, W), of any strides."""
        if x.strides[1] == out.strides[1] == x.itemsize:
            self._run_pixels(moved_last(x), moved_last(out), num_threads)
        elif self._on_planes and out.strides[3] == out.itemsize:
            self._run_planes(x, out, num_threads)
        else:
            self._run_converted(x, out, num_threads)

    def _run_pixels(self, x: np.ndarray, out: np.ndarray, num_threads: int) -> None:
        self._level.depthwise_transposed(
            x, self._packed[:-1], self._packed[-1], self.geometry, self._rectified, out, num_threads
        )

    def _run_planes(self, x: np.ndarray, out: np.ndarray, num_threads: int) -> None:
        workspace = self._workspaces.take(num_threads * self._lines * x.itemsize)
        self._level.depthwise_transposed_planes(
            x, self._packed[:-1], self._packed[-1], self.geometry, self._bands, self._pitch, self._rectified,
            out, workspace.view(x.dtype), self._lines, num_threads,
        )  # fmt: skip
        self._workspaces.give(workspace)

    @property
    def _image_bytes(self) -> tuple[int, int]:
        """Of an image read and one written, in whole cache lines."""
        geometry = self.geometry
        images = (math.prod(shape[1:]) for shape in (geometry.output_shape, geometry.input_shape))
        return tuple(base.round_up(size * geometry.dtype.itemsize, 64) for size in images)

    @property
    def _images(self) -> int:
        return max(1, min(self.geometry.batch, _STAGED_BYTES // sum(self._image_bytes)))

    @property
    def _converted_bytes(self) -> int:
        return self._images * sum(self._image_bytes)

    def _run_converted(self, x: np.ndarray, out: np.ndarray, num_threads: int) -> None:
        """Some images at a time, as channels-last ones."""
        workspace = self._workspaces.take(self._converted_bytes)
        read = self._images * self._image_bytes[0]
        for first in range(0, len(x), self._images):
            images = slice(first, first + self._images)
            taken, given = (
                memory.view(x.dtype)[: part.size].reshape(moved_last(part).shape)
                for memory, part in ((workspace[:read], x[images]), (workspace[read:], out[images]))
            )
            taken[...] = moved_last(x[images])
            self._run_pixels(taken, given, num_threads)
            store(given, out[images], num_threads)
        self._workspaces.give(workspace)
