"""The convolution written as a matrix, and undone by that matrix's pseudo-inverse."""

from __future__ import annotations

import math

import numpy as np

from fastconv import checks
from fastconv.geometry import ConvGeometry

_MAX_BYTES = 2**31
# A singular value decomposition of this size takes seconds, of twice the size a minute.
_MAX_INVERTED = 3072


def conv_matrix(weight, input_shape, *, stride=1, padding=0, dilation=1, groups=1) -> np.ndarray:
    """The matrix K with ``K @ x.ravel() == conv2d(x, weight, ...).ravel()``, alike in 1-D and 3-D.

    .. math:: K[(m, i, j), (c, i s + u d - p, j s + v d - p)] = w[m, c, u, v]

    Its transpose is the transposed convolution, ``conv2d_input_grad``.

    Parameters
    ----------
    weight : array (C_out, C_in/groups, k_h, k_w), or (..., k_w) or (..., k_d, k_h, k_w)
    input_shape : (C_in, H, W) or (N, C_in, H, W); with as many spatial axes as the weight has
        With N, the matrix is block-diagonal, one block for each image.
    stride, padding, dilation, groups
        As for :func:`fastconv.conv2d`.

    Returns
    -------
    ndarray (N·C_out·H_out·W_out, N·C_in·H·W), of the weight's dtype

    Raises
    ------
    TypeError, ValueError
        As :func:`fastconv.conv2d`, and if the matrix would take more than 2 GiB.
    """
    geometry = _geometry(weight, input_shape, stride, padding, dilation, groups)
    rows, columns = math.prod(geometry.output_shape), math.prod(geometry.input_shape)
    size = rows * columns * geometry.dtype.itemsize
    if size > _MAX_BYTES:
        raise ValueError(
            f"input_shape must give a matrix of at most 2 GiB, got {input_shape}: {size / 2**30:.1f} GiB"
        )
    block = _one_image(np.asarray(weight), geometry)
    return block if geometry.batch == 1 else np.kron(np.eye(geometry.batch, dtype=block.dtype), block)


def pseudo_inverse(
    weight, input_shape, *, stride=1, padding=0, dilation=1, groups=1, rtol=None
) -> np.ndarray:
    """The matrix that undoes a convolution as well as one can: the pseudo-inverse of :func:`conv_matrix`.

    .. math:: K^+ = V \\Sigma^+ U^T \\quad \\text{with} \\quad K = U \\Sigma V^T

    ``K⁺ @ y.ravel()`` is the smallest x among those that come closest to ``K @ x.ravel() == y.ravel()``
    (Moore 1920; Penrose 1955). Where K has full column rank, it gives back x.

    Parameters
    ----------
    weight, input_shape, stride, padding, dilation, groups
        As for :func:`conv_matrix`.
    rtol : float from 0 to 1, optional
        Singular values up to this part of the largest count as zero; larger ones than rounding
        keep noise in y from being magnified. Default: max(shape of K) · machine epsilon.

    Returns
    -------
    ndarray (N·C_in·H·W, N·C_out·H_out·W_out), of the weight's dtype
        Computed in float64.

    Raises
    ------
    TypeError, ValueError
        As :func:`conv_matrix`, and if the input or the output has more than 3,072 elements: the time grows
        with the third power.
    """
    geometry = _geometry(weight, input_shape, stride, padding, dilation, groups)
    rows, columns = math.prod(geometry.output_shape), math.prod(geometry.input_shape)
    if max(rows, columns) > _MAX_INVERTED:
        raise ValueError(
            f"input_shape must give a matrix of at most {_MAX_INVERTED:,} rows and columns to invert it,"
            f" got {input_shape}: {rows:,} × {columns:,}"
        )
    if rtol is not None:
        rtol = checks.number("rtol", rtol, 0, 1, "a number from 0 to 1, or None")
    matrix = conv_matrix(
        weight, input_shape, stride=stride, padding=padding, dilation=dilation, groups=groups
    ).astype(np.float64)
    if rtol is None:
        rtol = max(matrix.shape) * np.finfo(np.float64).eps
    return np.linalg.pinv(matrix, rcond=rtol).astype(geometry.dtype)


def deconvolve(y, weight, input_shape, *, stride=1, padding=0, dilation=1, groups=1, rtol=None) -> np.ndarray:
    """The input whose convolution comes closest to ``y``: least squares by :func:`pseudo_inverse`.

    Not the transposed convolution, which only has the shape of an inverse.

    Parameters
    ----------
    y : array (N, C_out, H_out, W_out)
        float32 or float64.
    weight : array (C_out, C_in/groups, k_h, k_w), or (..., k_w) or (..., k_d, k_h, k_w)
    input_shape : (C_in, H, W)
        Of one image.
    stride, padding, dilation, groups
        Of the convolution that is undone, as for :func:`fastconv.conv2d`.
    rtol : float from 0 to 1, optional
        As for :func:`pseudo_inverse`.

    Returns
    -------
    ndarray (N, C_in, H, W)

    Raises
    ------
    TypeError, ValueError
        As :func:`pseudo_inverse`, and if ``y`` has not the shape the other arguments imply.
    """
    geometry = _geometry(weight, input_shape, stride, padding, dilation, groups)
    y = checks.float_array("y", y)
    if len(tuple(input_shape)) != geometry.spatial_rank + 1:
        raise ValueError(f"input_shape must be that of one image, (C_in, ...), got {tuple(input_shape)}")
    if y.shape[1:] != geometry.output_shape[1:] or y.ndim != len(geometry.output_shape):
        expected = ", ".join(map(str, geometry.output_shape[1:]))
        raise ValueError(f"y must have shape (N, {expected}), got {y.shape}")
    inverse = pseudo_inverse(
        weight, input_shape, stride=stride, padding=padding, dilation=dilation, groups=groups, rtol=rtol
    )
    dtype = np.result_type(np.float32, y.dtype, inverse.dtype)
    x = y.reshape(len(y), inverse.shape[1]).astype(dtype, copy=False) @ inverse.T
    return x.reshape(len(y), *geometry.input_shape[1:])


def _geometry(weight, input_shape, stride, padding, dilation, groups) -> ConvGeometry:
    """The problem's description; one image where ``input_shape`` has no batch."""
    weight = checks.float_array("weight", weight)
    if weight.ndim not in (3, 4, 5):
        raise ValueError(
            f"weight must have 3 to 5 axes, such as (C_out, C_in/groups, k_h, k_w), got shape {weight.shape}"
        )
    axes = ", ".join("DHW"[5 - weight.ndim :])
    try:
        shape = tuple(input_shape)
    except TypeError:
        raise TypeError(f"input_shape must be (C, {axes}) or (N, C, {axes}), got {input_shape!r}") from None
    if len(shape) not in (weight.ndim - 1, weight.ndim):
        raise ValueError(
            f"input_shape must be (C, {axes}) or (N, C, {axes}), as the weight has {weight.ndim} axes,"
            f" got {shape}"
        )
    return ConvGeometry.create(
        (1,) * (weight.ndim - len(shape)) + shape, weight.shape, stride=stride, padding=padding,
        dilation=dilation, groups=groups, dtype=checks.float_dtype("weight", weight.dtype),
    )  # fmt: skip


def _one_image(weight: np.ndarray, geometry: ConvGeometry) -> np.ndarray:
    group_in, group_out = geometry.in_channels // geometry.groups, geometry.out_channels // geometry.groups
    rank = geometry.spatial_rank
    matrix = np.zeros(
        (geometry.out_channels, *geometry.output_size, geometry.in_channels, *geometry.input_size),
        geometry.dtype,
    )
    for taps in np.ndindex(*geometry.kernel_size):
        reach = [_reach(geometry, axis, tap) for axis, tap in enumerate(taps)]
        for group in range(geometry.groups):
            outputs = np.arange(group * group_out, (group + 1) * group_out)
            inputs = np.arange(group * group_in, (group + 1) * group_in)
            # Axes of the indexed block: output channel, input channel, one for each spatial axis.
            rows, columns = [_along(0, outputs, rank)], [_along(1, inputs, rank)]
            for axis, (reaching, reached) in enumerate(reach, 2):
                rows.append(_along(axis, reaching, rank))
                columns.append(_along(axis, reached, rank))
            block = weight[(outputs, slice(None), *taps)]
            matrix[(*rows, *columns)] = block.reshape(*block.shape, *(1,) * rank)
    return matrix.reshape(
        geometry.out_channels * math.prod(geometry.output_size),
        geometry.in_channels * math.prod(geometry.input_size),
    )


def _along(axis: int, indices: np.ndarray, rank: int) -> np.ndarray:
    """Indices along one of the axes (C_out, C_in, *spatial) of a block."""
    return indices.reshape([-1 if axis == other else 1 for other in range(rank + 2)])


def _reach(geometry: ConvGeometry, axis: int, tap: int) -> tuple[np.ndarray, np.ndarray]:
    """The outputs of one axis whose tap lies inside the image, and the inputs it lies on."""
    outputs = np.arange(geometry.output_size[axis])
    inputs = outputs * geometry.stride[axis] + tap * geometry.dilation[axis] - geometry.padding[axis][0]
    inside = (inputs >= 0) & (inputs < geometry.input_size[axis])
    return outputs[inside], inputs[inside]
