"""Convolution in 1-D, 2-D and 3-D: ndarray in, ndarray out."""

from __future__ import annotations

import numpy as np

from fastconv import checks
from fastconv.functional.plan_cache import call_once
from fastconv.geometry import WEIGHTS, ConvGeometry
from fastconv.plan import LAYOUTS, Plan, design


def conv1d(
    x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, padding_mode="zeros",
    activation=None, layout="NCW", algorithm="auto", num_threads=None, out=None, rtol=None,
    weight_budget=None,
) -> np.ndarray:  # fmt: skip
    """One-dimensional convolution: an image of one row, by the same algorithms.

    .. math:: y[n, m, j] = b[m] + \\sum_{c, v} x[n, c, j s + v d - p] w[m, c, v]

    Parameters
    ----------
    x : array (N, C_in, W), or (N, W, C_in) with ``layout="NWC"``
    weight : array (C_out, C_in/groups, k_w)
    bias : array (C_out,), optional
    stride, padding, dilation, groups, padding_mode, activation, algorithm, num_threads, out, rtol,
    weight_budget
        As for :func:`conv2d`, with one spatial axis.
    layout : {"NCW", "NWC"}

    Returns
    -------
    ndarray (N, C_out, W_out), or (N, W_out, C_out)

    Raises
    ------
    TypeError, ValueError
        As :func:`conv2d`.
    """
    options = stride, padding, dilation, groups, padding_mode, activation, algorithm, rtol, weight_budget
    return call_once(_plan, 1, x, weight, bias, out, num_threads, layout, options)


def conv2d(
    x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, padding_mode="zeros",
    activation=None, layout="NCHW", algorithm="auto", num_threads=None, out=None, rtol=None,
    weight_budget=None,
) -> np.ndarray:  # fmt: skip
    """Two-dimensional convolution (cross-correlation, as CNNs have it).

    .. math:: y[n, m, i, j] = b[m] + \\sum_{c, u, v} x[n, c, i s + u d - p, j s + v d - p] w[m, c, u, v]

    Parameters
    ----------
    x : array (N, C_in, H, W), or (N, H, W, C_in) with ``layout="NHWC"``
        float32 or float64; float16 is computed and returned as float32. Any strides; never changed.
    weight : array (C_out, C_in/groups, k_h, k_w)
        Where it and ``x`` are float32 and float64, the result is float64.
    bias : array (C_out,), optional
    stride, dilation : int or (int, int), default 1
    padding : int, (int, int), ((top, bottom), (left, right)), "valid", "same" or "full", default 0
        ``"same"`` gives ``ceil(input / stride)`` pixels, an odd one padded at the end (ONNX SAME_UPPER);
        ``"full"`` pads ``dilation · (k − 1)`` on each side.
    groups : int, default 1
    padding_mode : {"zeros", "reflect", "replicate", "circular"}
    activation : {None, "relu"}
        Applied to the result; NaN stays NaN.
    layout : {"NCHW", "NHWC"}
        Of ``x``, ``out`` and the result. NCHW views whose channels are contiguous in memory are as fast
        as NHWC and give such a view back.
    algorithm : {"auto", "direct", "im2col", "kn2col", "winograd", "fft", "fastest"}
        ``"auto"`` picks by the problem; ``"fastest"`` measures all on first use and remembers. An infinite
        pixel or NaN makes more results NaN than those that see it by Winograd, whose tiles it is in, and by
        FFT, which may be the whole image; ``"direct"`` keeps it where it belongs.
    num_threads : int, optional
        Default: :func:`fastconv.get_num_threads`. The result's bits do not depend on it.
    out : array, optional
        Where to write the result; any strides.
    rtol : float, optional
        Error budget: only algorithms whose error bound is within it are used.
    weight_budget : int, optional
        Only algorithms whose transformed weights take at most so many bytes are used: Winograd's and FFT's
        may be many times larger than the weights, the others' are as large.

    Returns
    -------
    ndarray (N, C_out, H_out, W_out), or (N, H_out, W_out, C_out)

    Raises
    ------
    TypeError
        If an argument has the wrong type or dtype (integers and booleans must be converted first).
    ValueError
        If an argument is out of range, arguments do not fit each other, or ``algorithm`` cannot compute
        this problem.

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> fc.conv2d(np.ones((1, 3, 8, 8), np.float32), np.ones((4, 3, 3, 3), np.float32), padding="same").shape
    (1, 4, 8, 8)
    """
    options = stride, padding, dilation, groups, padding_mode, activation, algorithm, rtol, weight_budget
    return call_once(_plan, 2, x, weight, bias, out, num_threads, layout, options)


def conv3d(
    x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, padding_mode="zeros",
    activation=None, layout="NCDHW", algorithm="auto", num_threads=None, out=None, rtol=None,
    weight_budget=None,
) -> np.ndarray:  # fmt: skip
    """Three-dimensional convolution: 2-D convolutions of depth slices, summed over the kernel's depth.

    .. math:: y[n, m, h, i, j] = b[m] + \\sum_{c, t, u, v}
              x[n, c, h s + t d - p, i s + u d - p, j s + v d - p] w[m, c, t, u, v]

    Parameters
    ----------
    x : array (N, C_in, D, H, W), or (N, D, H, W, C_in) with ``layout="NDHWC"``
    weight : array (C_out, C_in/groups, k_d, k_h, k_w)
    bias : array (C_out,), optional
    stride, padding, dilation, groups, padding_mode, activation, algorithm, num_threads, out, rtol,
    weight_budget
        As for :func:`conv2d`, with three spatial axes.
    layout : {"NCDHW", "NDHWC"}

    Returns
    -------
    ndarray (N, C_out, D_out, H_out, W_out), or (N, D_out, H_out, W_out, C_out)

    Raises
    ------
    TypeError, ValueError
        As :func:`conv2d`.
    """
    options = stride, padding, dilation, groups, padding_mode, activation, algorithm, rtol, weight_budget
    return call_once(_plan, 3, x, weight, bias, out, num_threads, layout, options)


def plan_conv1d(
    input_shape, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, padding_mode="zeros",
    activation=None, layout="NCW", algorithm="auto", num_threads=None, rtol=None,
    weight_budget=None, calls=None, dtype=None,
) -> Plan:  # fmt: skip
    """Prepare a :func:`conv1d`; as :func:`plan_conv2d`, with ``input_shape`` (N, C_in, W) or (N, W, C_in)."""
    options = stride, padding, dilation, groups, padding_mode, activation, algorithm, rtol, weight_budget
    return _plan(1, input_shape, weight, bias, dtype, num_threads, layout, options, calls)


def plan_conv2d(
    input_shape, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, padding_mode="zeros",
    activation=None, layout="NCHW", algorithm="auto", num_threads=None, rtol=None,
    weight_budget=None, calls=None, dtype=None,
) -> Plan:  # fmt: skip
    """Prepare a convolution: check it, choose the algorithm, pack the weights.

    Parameters
    ----------
    input_shape : (N, C_in, H, W), or (N, H, W, C_in) with ``layout="NHWC"``
    dtype : dtype, optional
        Of the inputs to come; the plan computes in the wider of it and the weight's. Default: the weight's.
    weight, bias, stride, padding, dilation, groups, padding_mode, activation, layout, algorithm,
    num_threads, rtol, weight_budget
        As for :func:`conv2d`.
    calls : int, optional
        How many calls the plan is for: with few of them ``"auto"`` counts what transforming the weights
        costs, as it does for :func:`conv2d`. Default: many.

    Returns
    -------
    Plan
        ``plan(x)`` computes the convolution of an ``x`` of this shape.

    Raises
    ------
    TypeError, ValueError
        As :func:`conv2d`.
    """
    options = stride, padding, dilation, groups, padding_mode, activation, algorithm, rtol, weight_budget
    return _plan(2, input_shape, weight, bias, dtype, num_threads, layout, options, calls)


def plan_conv3d(
    input_shape, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, padding_mode="zeros",
    activation=None, layout="NCDHW", algorithm="auto", num_threads=None, rtol=None,
    weight_budget=None, calls=None, dtype=None,
) -> Plan:  # fmt: skip
    """Prepare a :func:`conv3d`; as :func:`plan_conv2d`, with ``input_shape`` (N, C_in, D, H, W) or
    (N, D, H, W, C_in).
    """
    options = stride, padding, dilation, groups, padding_mode, activation, algorithm, rtol, weight_budget
    return _plan(3, input_shape, weight, bias, dtype, num_threads, layout, options, calls)


def _plan(
    rank, input_shape, weight, bias, dtype, num_threads, layout, options: tuple, calls=None, once=False
) -> Plan:
    weight, bias, dtype = arrays(rank, weight, WEIGHTS[rank], bias, dtype)
    stride, padding, dilation, groups, padding_mode, activation, algorithm, rtol, weight_budget = options
    geometry = ConvGeometry.create(
        channels_first_shape(rank, input_shape, layout), weight.shape,
        stride=stride, padding=padding, dilation=dilation, groups=groups, dtype=dtype,
    )  # fmt: skip
    made = design(
        geometry, padding_mode=padding_mode, activation=activation, layout=layout, algorithm=algorithm,
        num_threads=num_threads, rtol=rtol, weight_budget=weight_budget, calls=1 if once else calls,
    )  # fmt: skip
    plan = Plan(made, weight, bias)
    return plan if once else plan.keep(weight, bias)


def arrays(rank, weight, meaning, bias, dtype):
    """Weight, whose axes ``meaning`` names, and bias as arrays, and the dtype to compute in."""
    weight = checks.float_array("weight", weight, rank + 2, meaning)
    bias = None if bias is None else checks.float_array("bias", bias, 1, "(C_out,)")
    return weight, bias, checks.common_dtype((weight, bias), dtype)


def channels_first_shape(rank, input_shape, layout) -> tuple[int, ...]:
    """(N, C, *spatial), whatever the layout."""
    checks.choice("layout", layout, LAYOUTS[rank])
    shape = checks.shape("input_shape", input_shape, rank + 2, f"({', '.join(layout)})")
    return shape if layout == LAYOUTS[rank][0] else (shape[0], shape[-1], *shape[1:-1])
