"""Resampling images to other sizes: nearest, linear and cubic interpolation, and areas; and the gradients."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fastconv import checks
from fastconv.functional import taps
from fastconv.functional.pooled import Pooling
from fastconv.functional.pooling import SHAPES, gradient, image_shape, resampled
from fastconv.functional.prepared import call

# What each mode does along an axis, and for how many spatial axes it is meant.
MODES = {
    "nearest": (1, 2, 3),
    "nearest-exact": (1, 2, 3),
    "linear": (1,),
    "bilinear": (2,),
    "trilinear": (3,),
    "bicubic": (2,),
    "area": (1, 2, 3),
}
_NEAREST = ("nearest", "nearest-exact", "area")
# Keys' kernel has this free parameter; PyTorch's and OpenCV's value.
_CUBIC = -0.75


def _nearest(size: int, outputs: int, mode: str, scale: float | None, dtype: np.dtype) -> taps.Taps:
    # Where a product falls on a whole number, its rounding decides which pixel is the nearest. So positions
    # are those of PyTorch's contiguous images: a step in their dtype, a fused product, and at last float32.
    real, half = dtype.type, 0.5 if mode == "nearest-exact" else 0.0
    step = np.float64(real(1 / scale) if scale else real(size) / real(outputs))
    product = ((np.arange(outputs) + half) * step - half).astype(dtype)
    position = (product.astype(np.float64) + half).astype(np.float32)
    source = np.minimum(np.floor(position).astype(np.int64), size - 1)
    return taps.make(size, np.ones(outputs, np.int64), source)


def _positions(size: int, outputs: int, align_corners: bool, scale: float | None) -> np.ndarray:
    """Where on the input axis each output lies."""
    index = np.arange(outputs, dtype=np.float64)
    if align_corners:
        return index * ((size - 1) / (outputs - 1) if outputs > 1 else 0)
    return (index + 0.5) * (1 / scale if scale else size / outputs) - 0.5


def _linear(size: int, outputs: int, align_corners: bool, scale: float | None) -> taps.Taps:
    position = np.clip(_positions(size, outputs, align_corners, scale), 0, size - 1)
    if outputs == size:
        position = np.arange(size, dtype=np.float64)
    low = np.floor(position).astype(np.int64)
    high = position - low
    # On a pixel: half of it and half of it, so that every output has two taps and none has weight 0, which
    # would make a NaN of its neighbour's infinity.
    between = high > 0
    source = np.stack([low, low + between], axis=1).ravel()
    weight = np.where(between[:, None], np.stack([1 - high, high], axis=1), 0.5).ravel()
    return taps.make(size, np.full(outputs, 2), source, weight)


def _cubic(size: int, outputs: int, align_corners: bool, scale: float | None) -> taps.Taps:
    position = _positions(size, outputs, align_corners, scale)
    first = np.floor(position).astype(np.int64) - 1
    distance = np.abs(position[:, None] - first[:, None] - np.arange(4))
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
    far = _CUBIC * (((distance - 5) * distance + 8) * distance - 4)
    pixels = np.clip(first[:, None] + np.arange(4), 0, size - 1)
    weight = np.where(distance <= 1, near, far)
    used = weight != 0
    return taps.make(size, used.sum(axis=1), pixels[used], weight[used])


def _interpolation(
    size: int, outputs: int, mode: str, align_corners: bool, scale: float | None, dtype: np.dtype
) -> taps.Taps:
    if mode == "area":
        return taps.adaptive(size, outputs)
    if mode in _NEAREST:
        return _nearest(size, outputs, mode, scale, dtype)
    make = _cubic if mode == "bicubic" else _linear
    return make(size, outputs, align_corners, scale)


class Resampling(NamedTuple):
    """Checked arguments of :func:`interpolate` for some number of spatial axes."""

    size: tuple[int, ...] | None
    scale_factor: tuple[float, ...] | None
    mode: str
    align_corners: bool

    @classmethod
    def create(cls, rank, size, scale_factor, mode, align_corners) -> Resampling:
        """Check the arguments.

        Raises
        ------
        TypeError, ValueError
            If one is of the wrong type or out of range, or they do not go together.
        """
        checks.choice("mode", mode, tuple(MODES))
        if rank not in MODES[mode]:
            raise ValueError(
                f"mode {mode!r} must get {' or '.join(SHAPES[n] for n in MODES[mode])}, got {SHAPES[rank]}"
            )
        if (size is None) == (scale_factor is None):
            raise ValueError(
                "size or scale_factor must be given, not both,"
                f" got size={size!r}, scale_factor={scale_factor!r}"
            )
        if align_corners is not None and mode in _NEAREST:
            raise ValueError(f"align_corners must be None with mode={mode!r}, got {align_corners!r}")
        corners = align_corners is not None and checks.boolean("align_corners", align_corners)
        if size is not None:
            return cls(checks.per_axis("size", size, rank, 1), None, mode, corners)
        return cls(None, _factors(scale_factor, rank), mode, corners)

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The output's spatial size: ``size``, or ⌊in · scale_factor⌋ on each axis.

        Raises
        ------
        ValueError
            If the image or the output is empty.
        """
        outputs = self.size
        if outputs is None:
            outputs = tuple(math.floor(n * f) for n, f in zip(size, self.scale_factor, strict=True))
        if max(outputs, default=0) > sys.maxsize // 8:  # of whose positions there is no array
            raise ValueError(
                "size or scale_factor must give an image that fits into memory,"
                f" got {'×'.join(map(str, outputs))} pixels"
            )
        if 0 in size or 0 in outputs:
            raise ValueError(
                f"x must have at least one pixel before and after, got {'×'.join(map(str, size))} pixels"
                f" for an output of {'×'.join(map(str, outputs))}"
            )
        return outputs


@taps.remembered
def _axes(
    resampling: Resampling, size: tuple[int, ...], dtype: np.dtype, transpose: bool = False
) -> taps.Axes:
    """The Axes for an image of this size, computed in ``dtype``."""
    scales = resampling.scale_factor or (None,) * len(size)
    outputs = resampling.output_size(size)
    if len(size) == 2 and resampling.mode in _NEAREST:  # where PyTorch copies an axis that keeps its size
        scales = [None if n == out else s for n, out, s in zip(size, outputs, scales, strict=True)]
    items = [
        (n, out, resampling.mode, resampling.align_corners, scale, dtype)
        for n, out, scale in zip(size, outputs, scales, strict=True)
    ]
    return taps.axes(_interpolation, items, transpose)


def _factors(scale_factor: object, rank: int) -> tuple[float, ...]:
    plain = checks.frozen(scale_factor)
    factors = plain if isinstance(plain, tuple) else (plain,) * rank
    if len(factors) != rank:
        raise ValueError(f"scale_factor must be a number or {rank} of them, got {scale_factor!r}")
    for factor in factors:
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            raise TypeError(f"scale_factor must be a number > 0 or {rank} of them, got {scale_factor!r}")
        if not 0 < factor < math.inf:
            raise ValueError(f"scale_factor must be a number > 0 or {rank} of them, got {scale_factor!r}")
    return tuple(map(float, factors))


def interpolate(x, size=None, scale_factor=None, mode="nearest", align_corners=None, *, num_threads=None):
    """Resample an image to another size. As ``torch.nn.functional.interpolate``, without antialiasing.

    Along each axis, output i lies at input position ``(i + ½) / scale − ½``, or, with ``align_corners``, at
    ``i · (in − 1) / (out − 1)``; positions before the first pixel are the first pixel. There,

    - ``"nearest"`` takes pixel ⌊i / scale⌋, ``"nearest-exact"`` pixel ⌊(i + ½) / scale⌋;
    - ``"linear"``, ``"bilinear"``, ``"trilinear"`` blend the two, four, eight pixels around;
    - ``"bicubic"`` blends sixteen (Keys, IEEE Trans. ASSP 29, 1981, with a = −¾);
    - ``"area"`` is :func:`adaptive_avg_pool2d`.

    Parameters
    ----------
    x : array of float32, float64 or float16 (computed as float32), shape (N, C, ...)
        With one to three spatial axes.
    size : int or one a spatial axis, optional
        Of the output.
    scale_factor : float or one a spatial axis, optional
        Instead of ``size``: the output has ⌊in · scale_factor⌋ pixels.
    mode : str, default "nearest"
    align_corners : bool, optional
        Default False. Only of the linear and cubic modes.
    num_threads : int, optional
        The result does not depend on it.

    Returns
    -------
    ndarray, shape (N, C, *size)
        A channels-last view where ``x`` is one, else C-contiguous.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range, or they do not go together.
    """
    return call(_interpolating, x, num_threads, (size, scale_factor, mode, align_corners))


def _interpolating(x, num_threads, size, scale_factor, mode, align_corners) -> Pooling:
    rank = len(image_shape(x.shape, "x")) - 2
    resampling = Resampling.create(rank, size, scale_factor, mode, align_corners)
    return Pooling(x, _axes(resampling, x.shape[2:], x.dtype), 0, num_threads)


def interpolate_grad(
    grad_output,
    input_shape,
    size=None,
    scale_factor=None,
    mode="nearest",
    align_corners=None,
    *,
    num_threads=None,
):
    """The gradient of :func:`interpolate` by its input.

    Parameters
    ----------
    grad_output : array, shape (N, C, *size)
    input_shape : (N, C, ...)
    size, scale_factor, mode, align_corners, num_threads
        As they were given to :func:`interpolate`.

    Returns
    -------
    ndarray, shape ``input_shape``, in the memory format of ``grad_output``

    Raises
    ------
    TypeError, ValueError
        As :func:`interpolate`, or if ``grad_output`` has not the shape of its output.
    """
    shape = image_shape(input_shape)
    resampling = Resampling.create(len(shape) - 2, size, scale_factor, mode, align_corners)
    outputs = resampling.output_size(shape[2:])
    grad = gradient("grad_output", grad_output, (*shape[:2], *outputs))
    axes = _axes(resampling, shape[2:], checks.float_dtype("grad_output", grad.dtype), True)
    return resampled(grad, axes, 0, num_threads)
