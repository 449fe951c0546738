"""Sub-pixel convolution: a convolution whose channels are the pixels of a larger image."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv import checks, threads
from fastconv.functional.convolution import arrays
from fastconv.functional.plan_cache import call_once
from fastconv.functional.shuffle import pixel_shuffle, shuffled_shape
from fastconv.geometry import WEIGHTS, ConvGeometry
from fastconv.layout import empty, is_channels_last, moved_first, moved_last
from fastconv.memory import Workspaces
from fastconv.plan import Plan, Remade, design


class SubpixelPlan(Remade):
    """A prepared sub-pixel convolution; ``plan(x)`` computes it.

    Made by :func:`plan_subpixel_conv2d`. Its weights are ordered pixel by pixel of a block, so that
    Winograd's transforms back, where a panel of channels lies in one pixel, write a channels-last result to
    its places. Others write scratch memory first, which is then shuffled.

    Attributes
    ----------
    geometry : ConvGeometry
        Of the convolution.
    upscale_factor : int
    num_threads : int
        Threads a call uses unless it is told otherwise; they never change the result.
    """

    def __init__(
        self, weight: np.ndarray, bias: np.ndarray | None = None, *, geometry: ConvGeometry,
        upscale_factor: int, padding_mode: str = "zeros", num_threads: int | None = None,
        calls: int | None = None,
    ):  # fmt: skip
        self.geometry, self.upscale_factor, self.padding_mode = geometry, upscale_factor, padding_mode
        self.output_shape = shuffled_shape(geometry.output_shape, upscale_factor)
        prepared = design(geometry, padding_mode=padding_mode, num_threads=num_threads, calls=calls)
        self.num_threads = prepared.num_threads
        # Channels of a group stay together.
        self._mode = "DCR" if geometry.groups == 1 else "CRD"
        self._plan = Plan(prepared, self._ordered(weight), self._ordered(bias))
        straight = padding_mode == "zeros" and self._mode == "DCR"
        self._is_straight = straight and self._plan.shuffles(self.output_shape[1])
        self._workspaces = Workspaces(geometry.dtype)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of ``x``."""
        return self.geometry.input_shape

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed weights."""
        return self._plan.packed_bytes

    @property
    def kept_bytes(self) -> int:
        """Bytes of what is held between calls."""
        return self._plan.kept_bytes + self._workspaces.nbytes + self._weight_bytes

    @property
    def workspace_bytes(self) -> int:
        """Bytes of scratch memory of a call, among them those of a result that is not written straight."""
        return self._plan.workspace_bytes + self.geometry.output_bytes

    def __call__(self, x, out: np.ndarray | None = None, num_threads: int | None = None) -> np.ndarray:
        """Convolve ``x``.

        Parameters
        ----------
        x : array of ``input_shape``, float16 or the plan's dtype
            Any strides.
        out : array of ``output_shape`` and the plan's dtype, optional
            Where to write the result; any strides.
        num_threads : int, optional
            Default: the plan's.

        Returns
        -------
        ndarray of ``output_shape``
            ``out`` where it was given; else a new array, channels-last in memory where ``x`` is.
        """
        geometry, factor = self.geometry, self.upscale_factor
        x = checks.planned_array("x", x, self.input_shape, geometry.dtype)
        count = threads.resolve(self.num_threads if num_threads is None else num_threads)
        if out is not None:
            checks.output_array("out", out, self.output_shape, geometry.dtype)
        x = checks.kernel_ready(x, geometry.dtype)
        result = empty(self.output_shape, geometry.dtype, x) if out is None else out
        last = moved_last(result)
        apart = out is None or not np.may_share_memory(x, out)
        if self._is_straight and apart and last.flags.c_contiguous and geometry.batch:
            self._plan.shuffle(x, last, (factor, factor), (0, 0), count)
            return result
        batch, channels, *size = shape = geometry.output_shape
        workspace = self._workspaces.take(batch * channels * size[0] * size[1])
        scratch = workspace[: batch * channels * size[0] * size[1]]
        if is_channels_last(x):
            scratch = moved_first(scratch.reshape(batch, *size, channels))
        else:
            scratch = scratch.reshape(shape)
        try:
            self._plan(x, scratch, count)
            shuffled = pixel_shuffle(scratch, factor, mode=self._mode, num_threads=count)
        finally:
            self._workspaces.give(workspace)
        if out is None:
            return shuffled
        out[...] = shuffled
        return out

    def repack(self, weight: np.ndarray, bias: np.ndarray | None = None) -> None:
        """Take another weight and bias; while no call is in progress.

        Raises
        ------
        ValueError
            If a shape is not the plan's.
        """
        if weight.shape != self.geometry.weight_shape:
            raise ValueError(f"weight must have shape {self.geometry.weight_shape}, got {weight.shape}")
        if self._weights is not None:
            self.keep(weight, bias)
        self._plan.repack(self._ordered(weight), self._ordered(bias))

    def retire(self) -> None:
        """Leave this plan's memory to others: it has done its work."""
        self._plan.retire()
        self._workspaces.give_back()

    def explain(self) -> str:
        """What this plan does and why, in a few lines."""
        how = "written to their places" if self._is_straight else "shuffled afterwards"
        return f"{self._plan.explain()}\npixels           {self.upscale_factor}×{self.upscale_factor}, {how}"

    def __repr__(self) -> str:
        return f"SubpixelPlan({self._plan!r}; {self.upscale_factor}×{self.upscale_factor})"

    def _options(self) -> dict[str, Any]:
        names = ("geometry", "upscale_factor", "padding_mode", "num_threads")
        return {name: getattr(self, name) for name in names}

    def _ordered(self, array: np.ndarray | None) -> np.ndarray | None:
        """The rows of a weight or bias, in PyTorch's order, pixel by pixel of a block."""
        if array is None or self._mode == "CRD":
            return array
        pixels = array.reshape(-1, self.upscale_factor**2, *array.shape[1:])
        return np.ascontiguousarray(pixels.swapaxes(0, 1)).reshape(array.shape)


def subpixel_conv2d(
    x, weight, bias=None, *, upscale_factor, stride=1, padding=0, dilation=1, groups=1, padding_mode="zeros",
    num_threads=None, out=None,
) -> np.ndarray:  # fmt: skip
    """Sub-pixel convolution: :func:`pixel_shuffle` of a :func:`fastconv.conv2d`, without the image between.

    Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional
    Neural Network", CVPR 2016, arXiv 1609.05158, section 3.2.

    Parameters
    ----------
    x : array (N, C_in, H, W)
        float32 or float64; float16 is computed and returned as float32. Any strides; never changed.
        Channels-last views are the fastest.
    weight : array (C_out·r², C_in/groups, k_h, k_w)
        Row c·r² + i·r + j makes the pixels (i, j) of channel c's r×r blocks.
    bias : array (C_out·r²,), optional
    upscale_factor : int
        r.
    stride, padding, dilation, groups, padding_mode, num_threads, out
        As for :func:`fastconv.conv2d`.

    Returns
    -------
    ndarray (N, C_out, H_out·r, W_out·r)

    Raises
    ------
    TypeError
        If an argument has the wrong type or dtype.
    ValueError
        If an argument is out of range, or arguments do not fit each other.
    """
    options = upscale_factor, stride, padding, dilation, groups, padding_mode
    return call_once(_plan, 2, x, weight, bias, out, num_threads, "NCHW", options)


def plan_subpixel_conv2d(
    input_shape, weight, bias=None, *, upscale_factor, stride=1, padding=0, dilation=1, groups=1,
    padding_mode="zeros", num_threads=None, dtype=None,
) -> SubpixelPlan:  # fmt: skip
    """Prepare a :func:`subpixel_conv2d`; other arguments as of :func:`fastconv.plan_conv2d`."""
    options = upscale_factor, stride, padding, dilation, groups, padding_mode
    return _plan(2, input_shape, weight, bias, dtype, num_threads, "NCHW", options)


def _plan(
    rank, input_shape, weight, bias, dtype, num_threads, layout, options: tuple, once=False
) -> SubpixelPlan:
    weight, bias, dtype = arrays(rank, weight, WEIGHTS[rank], bias, dtype)
    upscale_factor, stride, padding, dilation, groups, padding_mode = options
    factor = checks.integer("upscale_factor", upscale_factor, 1)
    if len(weight) % factor**2:
        raise ValueError(
            f"weight must have a multiple of upscale_factor² = {factor**2} output channels,"
            f" got {weight.shape}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape {weight.shape[:1]}, got {bias.shape}")
    geometry = ConvGeometry.create(
        checks.shape("input_shape", input_shape, 4, f"({', '.join(layout)})"), weight.shape, stride=stride,
        padding=padding, dilation=dilation, groups=groups, dtype=dtype,
    )  # fmt: skip
    plan = SubpixelPlan(
        weight, bias, geometry=geometry, upscale_factor=factor, padding_mode=padding_mode,
        num_threads=num_threads, calls=1 if once else None,
    )  # fmt: skip
    return plan if once else plan.keep(weight, bias)
