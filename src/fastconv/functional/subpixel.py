"""Sub-pixel convolution: a convolution whose channels are the pixels of a larger image."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastconv import checks
from fastconv.functional.convolution import arrays
from fastconv.functional.plan_cache import call_once
from fastconv.functional.prepared_plan import PreparedPlan
from fastconv.functional.shuffle import shuffle, shuffled_shape
from fastconv.geometry import WEIGHTS, ConvGeometry
from fastconv.layout import is_channels_last, moved_first, moved_last
from fastconv.memory import Workspaces
from fastconv.plan import Plan, design


class SubpixelPlan(PreparedPlan):
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

    def _compute(self, x: np.ndarray, out: np.ndarray, num_threads: int) -> None:
        geometry, factor, last = self.geometry, self.upscale_factor, moved_last(out)
        if self._is_straight and last.flags.c_contiguous:
            self._plan.shuffle(x, last, (factor, factor), (0, 0), num_threads)
            return
        workspace = self._workspaces.take(math.prod(geometry.output_shape))
        scratch = workspace[: math.prod(geometry.output_shape)]
        if is_channels_last(x):
            batch, channels, *size = geometry.output_shape
            scratch = moved_first(scratch.reshape(batch, *size, channels))
        else:
            scratch = scratch.reshape(geometry.output_shape)
        try:
            self._plan(x, scratch, num_threads)
            shuffle(scratch, factor, self._mode, num_threads, out)
        finally:
            self._workspaces.give(workspace)

    def repack(self, weight: np.ndarray, bias: np.ndarray | None = None) -> None:
        """Take another weight and bias; while no call is in progress.

        Raises
        ------
        ValueError
            If a shape is not the plan's.
        """
        self._keep_anew(weight, bias)
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
