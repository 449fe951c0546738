"""Separable convolutions: depthwise and pointwise in one pass, and kernels taken apart into k×1 and 1×k."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from fastconv import checks, kernels, lowering, threads
from fastconv.algorithms import separable
from fastconv.functional.prepared_plan import PreparedPlan
from fastconv.geometry import ConvGeometry
from fastconv.layout import moved_last
from fastconv.memory import Workspaces
from fastconv.plan import ACTIVATIONS

_DEPTHWISE = "(C_in·multiplier, 1, k_h, k_w)"
_POINTWISE = "(C_out, C_in·multiplier, 1, 1)"


class SeparablePlan(PreparedPlan):
    """A prepared depthwise-separable convolution; ``plan(x)`` computes it.

    Made by :func:`plan_separable_conv2d`. Calls may come from several threads at once.

    Attributes
    ----------
    geometry : ConvGeometry
        Of the depthwise convolution.
    input_shape, output_shape : tuple of int
    num_threads : int
        Threads a call uses unless it is told otherwise; they never change the result.
    """

    def __init__(
        self, depthwise_weight, pointwise_weight, depthwise_bias=None, pointwise_bias=None, *, geometry,
        depthwise_activation, activation, num_threads, calls=None,
    ):  # fmt: skip
        self.geometry = geometry
        self.num_threads = threads.resolve(num_threads)
        self._kernels = kernels.active()
        arrays = (depthwise_weight, depthwise_bias, pointwise_weight, pointwise_bias)
        self._packed = separable.pack(
            *(None if array is None else checks.kernel_ready(array, geometry.dtype) for array in arrays),
            geometry, calls, self._kernels, self.num_threads,
        )  # fmt: skip
        self._passes = lowering.passes(geometry)
        self._activations = {"depthwise_activation": depthwise_activation, "activation": activation}
        self._rectified = (depthwise_activation == "relu", activation == "relu")
        self._workspaces = Workspaces()

    def _options(self) -> dict[str, Any]:
        return {"geometry": self.geometry, "num_threads": self.num_threads, **self._activations}

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of ``x``."""
        return self.geometry.input_shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return self._packed.second.geometry.output_shape

    @property
    def workspace_bytes(self) -> int:
        """Bytes of scratch memory of one call."""
        return self._workspace_bytes(self.num_threads)

    def _compute(self, x: np.ndarray, out: np.ndarray, num_threads: int) -> None:
        source, last = moved_last(x), moved_last(out)
        workspace = self._workspaces.take(self._workspace_bytes(num_threads))
        try:
            for part in self._passes:
                separable.run(
                    part.read(source), part.geometry, self._packed, part.write(last), self._rectified,
                    workspace.view(x.dtype), num_threads,
                )  # fmt: skip
        finally:
            self._workspaces.give(workspace)

    def _workspace_bytes(self, num_threads: int) -> int:
        sizes = (separable.workspace_size(part.geometry, self._packed, num_threads) for part in self._passes)
        return max(sizes, default=0) * self.geometry.dtype.itemsize


def plan_separable_conv2d(
    input_shape, depthwise_weight, pointwise_weight, depthwise_bias=None, pointwise_bias=None, *, stride=1,
    padding=0, dilation=1, depthwise_activation=None, activation=None, num_threads=None, dtype=None,
) -> SeparablePlan:  # fmt: skip
    """Prepare a depthwise-separable convolution: check it and pack the weights.

    Parameters
    ----------
    input_shape : (N, C_in, H, W)
    dtype : dtype, optional
        Of the inputs to come; the plan computes in the widest of it and the weights'. Default: the weights'.
    depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, stride, padding, dilation,
    depthwise_activation, activation, num_threads
        As for :func:`separable_conv2d`.

    Returns
    -------
    SeparablePlan
        ``plan(x)`` computes the convolution of an ``x`` of this shape.

    Raises
    ------
    TypeError, ValueError
        As :func:`separable_conv2d`.
    """
    weights = depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias
    options = stride, padding, dilation, depthwise_activation, activation, num_threads, dtype
    weights, plan = _plan(input_shape, *weights, *options)
    return plan.keep(*weights)


def _plan(
    input_shape, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, stride, padding,
    dilation, depthwise_activation, activation, num_threads, dtype, calls=None,
) -> tuple[tuple, SeparablePlan]:  # fmt: skip
    """The checked weights, and the plan."""
    first = checks.float_array("depthwise_weight", depthwise_weight, 4, _DEPTHWISE)
    second = checks.float_array("pointwise_weight", pointwise_weight, 4, _POINTWISE)
    biases = []
    for name, value, weight in (
        ("depthwise_bias", depthwise_bias, first),
        ("pointwise_bias", pointwise_bias, second),
    ):
        bias = None if value is None else checks.float_array(name, value)
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"{name} must have shape {weight.shape[:1]}, got {bias.shape}")
        biases.append(bias)
    checks.choice("depthwise_activation", depthwise_activation, ACTIVATIONS)
    checks.choice("activation", activation, ACTIVATIONS)
    shape = checks.shape("input_shape", input_shape, 4, "(N, C_in, H, W)")
    if first.shape[1] != 1 or shape[1] == 0 or first.shape[0] % shape[1]:
        raise ValueError(
            f"depthwise_weight must be {_DEPTHWISE} with C_in={shape[1]}, got shape {first.shape}"
        )
    if second.shape[1:] != (first.shape[0], 1, 1) or not len(second):
        raise ValueError(
            f"pointwise_weight must be (C_out, {first.shape[0]}, 1, 1), got shape {second.shape}"
        )
    geometry = ConvGeometry.create(
        shape, first.shape, stride=stride, padding=padding, dilation=dilation, groups=shape[1],
        dtype=checks.common_dtype((first, second, *biases), dtype),
    )  # fmt: skip
    weights = first, second, *biases
    return weights, SeparablePlan(
        *weights, geometry=geometry, depthwise_activation=depthwise_activation, activation=activation,
        num_threads=num_threads, calls=calls,
    )  # fmt: skip


def separable_conv2d(
    x, depthwise_weight, pointwise_weight, depthwise_bias=None, pointwise_bias=None, *, stride=1, padding=0,
    dilation=1, depthwise_activation=None, activation=None, num_threads=None, out=None,
) -> np.ndarray:  # fmt: skip
    """Depthwise-separable convolution: each channel apart, then a mixture of channels, in one pass.

    .. math::

        z[n, c, i, j] &= b[c] + \\sum_{u, v} x[n, \\lfloor c / q \\rfloor, i s + u d - p, j s + v d - p]
        \\, w[c, 0, u, v] \\\\
        y[n, m, i, j] &= b'[m] + \\sum_c z[n, c, i, j]\\, w'[m, c, 0, 0]

    The same as two calls of :func:`fastconv.conv2d`, but a few rows of z at a time: they are multiplied
    while they are in cache, and z is never stored as a whole. (Chollet, "Xception: Deep Learning with
    Depthwise Separable Convolutions", CVPR 2017, arXiv 1610.02357.)

    Parameters
    ----------
    x : array (N, C_in, H, W)
        float32 or float64; float16 is computed and returned as float32. Any strides; never changed.
        Channels-last views are the fastest.
    depthwise_weight : array (C_in·q, 1, k_h, k_w)
        q is the multiplier: how many kernels each channel has.
    pointwise_weight : array (C_out, C_in·q, 1, 1)
    depthwise_bias : array (C_in·q,), optional
    pointwise_bias : array (C_out,), optional
    stride, padding, dilation
        Of the depthwise convolution, as for :func:`fastconv.conv2d`.
    depthwise_activation, activation : {None, "relu"}
        Applied to z and to y.
    num_threads : int, optional
        Default: :func:`fastconv.get_num_threads`. The result's bits do not depend on it.
    out : array, optional
        Where to write the result; any strides.

    Returns
    -------
    ndarray (N, C_out, H_out, W_out)

    Raises
    ------
    TypeError
        If an argument has the wrong type or dtype.
    ValueError
        If an argument is out of range, or arguments do not fit each other.
    """
    x = checks.float_array("x", x, 4, "(N, C_in, H, W)")
    _, plan = _plan(
        x.shape, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, stride, padding,
        dilation, depthwise_activation, activation, num_threads, checks.float_dtype("x", x.dtype), calls=1,
    )  # fmt: skip
    return plan(x.astype(plan.geometry.dtype, order="K", copy=False), out=out)


class SeparatedKernel(NamedTuple):
    """A convolution kernel as two one-dimensional ones; see :func:`separate_kernel`.

    Attributes
    ----------
    vertical : ndarray (groups·rank, C_in/groups, k_h, 1)
    horizontal : ndarray (C_out, rank, 1, k_w)
    error : float
        ‖weight − product‖ / ‖weight‖ in the Frobenius norm, from 0 to 1; 0 for a weight of zeros.
    """

    vertical: np.ndarray
    horizontal: np.ndarray
    error: float


def separate_kernel(weight, rank=1, *, groups=1) -> SeparatedKernel:
    """Take a 2-D kernel apart into a vertical and a horizontal one, as well as ``rank`` of them can.

    .. math:: w[m, c, u, v] \\approx \\sum_r h[m, r, 0, v]\\, a[r, c, u, 0]

    so that ``conv2d(conv2d(x, vertical, groups=groups), horizontal, groups=groups)`` approximates
    ``conv2d(x, weight, groups=groups)``. Each group's weights form a matrix with rows (c, u) and columns
    (m, v), whose truncated singular value decomposition is the best approximation of this rank in the
    Frobenius norm (Eckart and Young 1936; for networks: Jaderberg, Vedaldi, Zisserman, "Speeding up
    Convolutional Neural Networks with Low Rank Expansions", BMVC 2014, section 2.1, scheme 2).

    To take every filter apart on its own, give each its own group:
    ``separate_kernel(weight.reshape(-1, 1, k_h, k_w), groups=C_out * C_in)``.

    Parameters
    ----------
    weight : array (C_out, C_in/groups, k_h, k_w)
        float32 or float64; float16 gives float32. Computed in float64.
    rank : int, default 1
        At most min(C_in/groups·k_h, C_out/groups·k_w), with which the error is that of rounding.
    groups : int, default 1
        Divides C_out.

    Returns
    -------
    SeparatedKernel
        ``vertical`` (groups·rank, C_in/groups, k_h, 1), ``horizontal`` (C_out, rank, 1, k_w), ``error``.
        Both kernels carry the square root of the singular value.

    Raises
    ------
    TypeError
        If ``weight`` is not of floats, ``rank`` or ``groups`` not an integer.
    ValueError
        If ``weight`` has not four axes, is empty or not finite, or ``rank`` or ``groups`` is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> sobel = np.array([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
    >>> separate_kernel(sobel[None, None]).error < 1e-15
    True
    """
    weight = checks.float_array("weight", weight, 4, "(C_out, C_in/groups, k_h, k_w)")
    if not weight.size or not np.isfinite(weight).all():
        raise ValueError(f"weight must be finite and not empty, got shape {weight.shape}")
    groups, rank = checks.integer("groups", groups, 1), checks.integer("rank", rank, 1)
    out_channels, group_in, height, width = weight.shape
    if out_channels % groups:
        raise ValueError(f"groups must divide C_out={out_channels}, got {groups}")
    group_out = out_channels // groups
    most = min(group_in * height, group_out * width)
    if rank > most:
        raise ValueError(f"rank must be at most {most} for this weight, got {rank}")
    dtype = checks.float_dtype("weight", weight.dtype)
    matrix = weight.astype(np.float64).reshape(groups, group_out, group_in, height, width)
    matrix = matrix.transpose(0, 2, 3, 1, 4).reshape(groups, group_in * height, group_out * width)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    root = np.sqrt(values[:, :rank])
    vertical = (left[:, :, :rank] * root[:, None]).transpose(0, 2, 1)
    horizontal = (root[:, :, None] * right[:, :rank]).reshape(groups, rank, group_out, width)
    norm = math.sqrt(float((values**2).sum()))
    lost = math.sqrt(float((values[:, rank:] ** 2).sum()))
    return SeparatedKernel(
        vertical.reshape(groups * rank, group_in, height, 1).astype(dtype),
        horizontal.transpose(0, 2, 1, 3).reshape(out_channels, rank, 1, width).astype(dtype),
        lost / norm if norm else 0.0,
    )
