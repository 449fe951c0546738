"""Transposed convolution in 1-D, 2-D and 3-D: ndarray in, ndarray out."""

from __future__ import annotations

import numpy as np

from fastconv import checks
from fastconv.functional.convolution import arrays, channels_first_shape
from fastconv.functional.plan_cache import call_once
from fastconv.functional.polyphase import TransposedPlan
from fastconv.geometry import ConvGeometry

TRANSPOSED_WEIGHTS = {
    1: "(C_in, C_out/groups, k_w)",
    2: "(C_in, C_out/groups, k_h, k_w)",
    3: "(C_in, C_out/groups, k_d, k_h, k_w)",
}


def conv_transpose1d(
    x, weight, bias=None, *, stride=1, padding=0, output_padding=0, groups=1, dilation=1, activation=None,
    layout="NCW", num_threads=None, out=None,
) -> np.ndarray:  # fmt: skip
    """One-dimensional transposed convolution; as :func:`conv_transpose2d`, with one spatial axis.

    Parameters
    ----------
    x : array (N, C_in, W), or (N, W, C_in) with ``layout="NWC"``
    weight : array (C_in, C_out/groups, k_w)
    bias, stride, padding, output_padding, groups, dilation, activation, num_threads, out
        As for :func:`conv_transpose2d`.

    Returns
    -------
    ndarray (N, C_out, W_out), or (N, W_out, C_out)

    Raises
    ------
    TypeError, ValueError
        As :func:`conv_transpose2d`.
    """
    options = stride, padding, output_padding, groups, dilation, activation
    return call_once(_plan, 1, x, weight, bias, out, num_threads, layout, options)


def conv_transpose2d(
    x, weight, bias=None, *, stride=1, padding=0, output_padding=0, groups=1, dilation=1, activation=None,
    layout="NCHW", num_threads=None, out=None,
) -> np.ndarray:  # fmt: skip
    """Two-dimensional transposed (fractionally strided) convolution: every input pixel spreads a kernel.

    .. math:: y[n, m, i s + u d - p, j s + v d - p] \\mathrel{+}= x[n, c, i, j]\\, w[c, m, u, v]

    onto a ``y`` of the bias. It is the gradient of :func:`conv2d` with respect to its input, and computed
    without zeros between the inputs: see :class:`TransposedPlan`.

    Parameters
    ----------
    x : array (N, C_in, H, W), or (N, H, W, C_in) with ``layout="NHWC"``
        float32 or float64; float16 is computed and returned as float32. Any strides; never changed.
    weight : array (C_in, C_out/groups, k_h, k_w)
    bias : array (C_out,), optional
    stride, dilation : int or (int, int), default 1
    padding : int, (int, int) or ((top, bottom), (left, right)), default 0
        Output pixels left out at the borders.
    output_padding : int or (int, int), default 0
        Output pixels added at the end; smaller than the stride or the dilation of its axis.
    groups : int, default 1
    activation : {None, "relu"}
    layout : {"NCHW", "NHWC"}
    num_threads : int, optional
        Default: :func:`fastconv.get_num_threads`. The result's bits do not depend on it.
    out : array, optional
        Where to write the result; any strides.

    Returns
    -------
    ndarray (N, C_out, H_out, W_out), or (N, H_out, W_out, C_out)
        ``H_out = (H − 1)·s − top − bottom + d·(k_h − 1) + output_padding + 1``; channels-last in memory
        where ``x`` is.

    Raises
    ------
    TypeError
        If an argument has the wrong type or dtype.
    ValueError
        If an argument is out of range, arguments do not fit each other, or no output pixel is left.

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> x, weight = np.ones((1, 4, 8, 8), np.float32), np.ones((4, 3, 2, 2), np.float32)
    >>> fc.conv_transpose2d(x, weight, stride=2).shape
    (1, 3, 16, 16)
    """
    options = stride, padding, output_padding, groups, dilation, activation
    return call_once(_plan, 2, x, weight, bias, out, num_threads, layout, options)


def conv_transpose3d(
    x, weight, bias=None, *, stride=1, padding=0, output_padding=0, groups=1, dilation=1, activation=None,
    layout="NCDHW", num_threads=None, out=None,
) -> np.ndarray:  # fmt: skip
    """Three-dimensional transposed convolution; as :func:`conv_transpose2d`, with three spatial axes.

    Parameters
    ----------
    x : array (N, C_in, D, H, W), or (N, D, H, W, C_in) with ``layout="NDHWC"``
    weight : array (C_in, C_out/groups, k_d, k_h, k_w)
    bias, stride, padding, output_padding, groups, dilation, activation, num_threads, out
        As for :func:`conv_transpose2d`.

    Returns
    -------
    ndarray (N, C_out, D_out, H_out, W_out), or (N, D_out, H_out, W_out, C_out)

    Raises
    ------
    TypeError, ValueError
        As :func:`conv_transpose2d`.
    """
    options = stride, padding, output_padding, groups, dilation, activation
    return call_once(_plan, 3, x, weight, bias, out, num_threads, layout, options)


def plan_conv_transpose1d(
    input_shape, weight, bias=None, *, stride=1, padding=0, output_padding=0, groups=1, dilation=1,
    activation=None, layout="NCW", num_threads=None, dtype=None,
) -> TransposedPlan:  # fmt: skip
    """Prepare a :func:`conv_transpose1d`; as :func:`plan_conv_transpose2d`, with one spatial axis."""
    options = stride, padding, output_padding, groups, dilation, activation
    return _plan(1, input_shape, weight, bias, dtype, num_threads, layout, options)


def plan_conv_transpose2d(
    input_shape, weight, bias=None, *, stride=1, padding=0, output_padding=0, groups=1, dilation=1,
    activation=None, layout="NCHW", num_threads=None, dtype=None,
) -> TransposedPlan:  # fmt: skip
    """Prepare a transposed convolution: check it, cut it into phases, pack their weights.

    Parameters
    ----------
    input_shape : (N, C_in, H, W), or (N, H, W, C_in) with ``layout="NHWC"``
    dtype : dtype, optional
        Of the inputs to come; the plan computes in the wider of it and the weight's. Default: the weight's.
    weight, bias, stride, padding, output_padding, groups, dilation, activation, layout, num_threads
        As for :func:`conv_transpose2d`.

    Returns
    -------
    TransposedPlan
        ``plan(x)`` computes the transposed convolution of an ``x`` of this shape.

    Raises
    ------
    TypeError, ValueError
        As :func:`conv_transpose2d`.
    """
    options = stride, padding, output_padding, groups, dilation, activation
    return _plan(2, input_shape, weight, bias, dtype, num_threads, layout, options)


def plan_conv_transpose3d(
    input_shape, weight, bias=None, *, stride=1, padding=0, output_padding=0, groups=1, dilation=1,
    activation=None, layout="NCDHW", num_threads=None, dtype=None,
) -> TransposedPlan:  # fmt: skip
    """Prepare a :func:`conv_transpose3d`; as :func:`plan_conv_transpose2d`, with three spatial axes."""
    options = stride, padding, output_padding, groups, dilation, activation
    return _plan(3, input_shape, weight, bias, dtype, num_threads, layout, options)


def _plan(
    rank, input_shape, weight, bias, dtype, num_threads, layout, options: tuple, once=False
) -> TransposedPlan:
    weight, bias, dtype = arrays(rank, weight, TRANSPOSED_WEIGHTS[rank], bias, dtype)
    stride, padding, output_padding, groups, dilation, activation = options
    shape = channels_first_shape(rank, input_shape, layout)
    geometry = transposed_geometry(
        shape, weight.shape, stride, padding, output_padding, groups, dilation, dtype
    )
    plan = TransposedPlan(
        weight, bias, geometry=geometry, activation=activation, layout=layout, num_threads=num_threads,
        input_size=shape[2:], calls=1 if once else None,
    )  # fmt: skip
    return plan if once else plan.keep(weight, bias)


def transposed_geometry(
    input_shape, weight_shape, stride, padding, output_padding, groups, dilation, dtype
) -> ConvGeometry:
    """The convolution that a transposed one of ``input_shape`` (N, C_in, *spatial) belongs to.

    Its ``input_shape`` is the transposed one's output. Raises as :func:`conv_transpose2d`.
    """
    rank = len(input_shape) - 2
    groups = checks.integer("groups", groups, 1)
    batch, channels, *size = input_shape
    if min(channels, *size) < 1:
        raise ValueError(f"input must have at least one channel and one pixel, got shape {input_shape}")
    if min(weight_shape) < 1:
        raise ValueError(f"weight must not be empty, got shape {weight_shape}")
    if channels % groups:
        raise ValueError(
            f"groups must divide the input channels, got groups={groups} with {channels} input channels"
        )
    if weight_shape[0] != channels:
        raise ValueError(
            f"weight must have {channels} input channels, as the input has, got {weight_shape[0]}:"
            f" shape {weight_shape}"
        )
    if isinstance(padding, str):
        raise TypeError(f"padding must be integers for a transposed convolution, got {padding!r}")
    stride = checks.per_axis("stride", stride, rank, 1)
    dilation = checks.per_axis("dilation", dilation, rank, 1)
    output_padding = checks.per_axis("output_padding", output_padding, rank, 0)
    for axis, (extra, s, d) in enumerate(zip(output_padding, stride, dilation, strict=True)):
        if extra >= max(s, d):
            raise ValueError(
                f"output_padding must be smaller than the stride or the dilation, got {extra} on spatial"
                f" axis {axis} with stride {s} and dilation {d}"
            )
    extent = [d * (k - 1) + 1 for d, k in zip(dilation, weight_shape[2:], strict=True)]
    shape = (batch, weight_shape[1] * groups, *extent)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "dtype": dtype}
    smallest = ConvGeometry.create(shape, weight_shape, **options)
    outputs = tuple(
        (n - 1) * s - sum(pair) + reach + extra
        for n, s, pair, reach, extra in zip(
            size, stride, smallest.padding, extent, output_padding, strict=True
        )
    )
    if min(outputs) < 1:
        raise ValueError(
            f"padding must leave at least one output pixel on each axis, got {padding!r}: size {outputs}"
        )
    return ConvGeometry.create((*shape[:2], *outputs), weight_shape, **options)
