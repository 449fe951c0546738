"""The convolution written as a matrix."""

from __future__ import annotations

import math

import numpy as np

from fastconv import checks
from fastconv.geometry import ConvGeometry

_MAX_BYTES = 2**31


def conv_matrix(weight, input_shape, *, stride=1, padding=0, dilation=1, groups=1) -> np.ndarray:
    """The matrix K with ``K @ x.ravel() == conv2d(x, weight, ...).ravel()``.

    .. math:: K[(m, i, j), (c, i s + u d - p, j s + v d - p)] = w[m, c, u, v]

    Its transpose is the transposed convolution, ``conv2d_input_grad``.

    Parameters
    ----------
    weight : array (C_out, C_in/groups, k_h, k_w)
    input_shape : (C_in, H, W) or (N, C_in, H, W)
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
    weight = checks.float_array("weight", weight, 4, "(C_out, C_in/groups, k_h, k_w)")
    try:
        shape = tuple(input_shape)
    except TypeError:
        raise TypeError(f"input_shape must be (C, H, W) or (N, C, H, W), got {input_shape!r}") from None
    if len(shape) not in (3, 4):
        raise ValueError(f"input_shape must be (C, H, W) or (N, C, H, W), got {shape}")
    geometry = ConvGeometry.create(
        (1,) * (4 - len(shape)) + shape, weight.shape, stride=stride, padding=padding, dilation=dilation,
        groups=groups, dtype=checks.float_dtype("weight", weight.dtype),
    )  # fmt: skip
    size = math.prod(geometry.output_shape) * math.prod(geometry.input_shape) * geometry.dtype.itemsize
    if size > _MAX_BYTES:
        raise ValueError(
            f"input_shape must give a matrix of at most 2 GiB, got {shape}: {size / 2**30:.1f} GiB"
        )
    block = _one_image(weight, geometry)
    return block if geometry.batch == 1 else np.kron(np.eye(geometry.batch, dtype=block.dtype), block)


def _one_image(weight: np.ndarray, geometry: ConvGeometry) -> np.ndarray:
    group_in, group_out = geometry.in_channels // geometry.groups, geometry.out_channels // geometry.groups
    matrix = np.zeros(
        (geometry.out_channels, *geometry.output_size, geometry.in_channels, *geometry.input_size),
        geometry.dtype,
    )
    for u, v in np.ndindex(*geometry.kernel_size):
        rows, columns = (_reach(geometry, axis, tap) for axis, tap in enumerate((u, v)))
        for group in range(geometry.groups):
            outputs = np.arange(group * group_out, (group + 1) * group_out)
            inputs = np.arange(group * group_in, (group + 1) * group_in)
            # Axes of the indexed block: (row pair, column pair, output channel, input channel).
            index = (
                outputs[None, None, :, None], rows[0][:, None, None, None], columns[0][None, :, None, None],
                inputs[None, None, None, :], rows[1][:, None, None, None], columns[1][None, :, None, None],
            )  # fmt: skip
            matrix[index] = weight[outputs, :, u, v]
    return matrix.reshape(
        geometry.out_channels * math.prod(geometry.output_size),
        geometry.in_channels * math.prod(geometry.input_size),
    )


def _reach(geometry: ConvGeometry, axis: int, tap: int) -> tuple[np.ndarray, np.ndarray]:
    """The outputs of one axis whose tap lies inside the image, and the inputs it lies on."""
    outputs = np.arange(geometry.output_size[axis])
    inputs = outputs * geometry.stride[axis] + tap * geometry.dilation[axis] - geometry.padding[axis][0]
    inside = (inputs >= 0) & (inputs < geometry.input_size[axis])
    return outputs[inside], inputs[inside]
