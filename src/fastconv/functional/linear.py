"""The linear layer's function and gradients: a 1×1 convolution over a row of samples."""

from __future__ import annotations

import numpy as np

from fastconv import checks
from fastconv.functional.convolution import conv2d
from fastconv.functional.gradients import conv2d_weight_grad


def linear(x, weight, bias=None, *, num_threads=None) -> np.ndarray:
    """y = x · Wᵀ + b.

    Parameters
    ----------
    x : array (..., in_features)
    weight : array (out_features, in_features)
    bias : array (out_features,), optional
    num_threads : int, optional
        The result's bits do not depend on it.

    Returns
    -------
    ndarray (..., out_features)

    Raises
    ------
    TypeError, ValueError
        If shapes do not fit or dtypes are not float16, float32 or float64.
    """
    x, weight = _checked(x, "x", weight, 1)
    rows = _as_row(x)
    y = conv2d(
        rows, weight[:, :, None, None], bias, layout="NHWC", algorithm="direct", num_threads=num_threads
    )
    return y.reshape(*x.shape[:-1], weight.shape[0])


def linear_input_grad(grad_output, weight, *, num_threads=None) -> np.ndarray:
    """Gradient of :func:`linear` with respect to ``x``: grad_output · W.

    Parameters
    ----------
    grad_output : array (..., out_features)
    weight : array (out_features, in_features)
    num_threads : int, optional
        The result's bits do not depend on it.

    Returns
    -------
    ndarray (..., in_features)

    Raises
    ------
    TypeError, ValueError
        As :func:`linear`.
    """
    grad_output, weight = _checked(grad_output, "grad_output", weight, 0)
    return linear(grad_output, weight.T, num_threads=num_threads)


def linear_weight_grad(grad_output, x, *, num_threads=None) -> np.ndarray:
    """Gradient of :func:`linear` with respect to ``weight``: grad_outputᵀ · x.

    Parameters
    ----------
    grad_output : array (..., out_features)
    x : array (..., in_features)
    num_threads : int, optional
        The result's bits do not depend on it.

    Returns
    -------
    ndarray (out_features, in_features)

    Raises
    ------
    TypeError, ValueError
        As :func:`linear`.
    """
    grad_output, x = checks.float_array("grad_output", grad_output), checks.float_array("x", x)
    if x.ndim < 1 or grad_output.shape[:-1] != x.shape[:-1]:
        expected = "".join(f"{size}, " for size in x.shape[:-1])
        raise ValueError(f"grad_output must have shape ({expected}out_features), got {grad_output.shape}")
    columns = [_as_row(array).transpose(0, 3, 1, 2) for array in (grad_output, x)]
    shape = (columns[0].shape[1], columns[1].shape[1], 1, 1)
    if 0 in (columns[0].shape[3],):
        return np.zeros(shape[:2], np.result_type(np.float32, grad_output.dtype, x.dtype))
    return conv2d_weight_grad(*columns, shape, num_threads=num_threads)[:, :, 0, 0]


def _as_row(x: np.ndarray) -> np.ndarray:
    """(..., features) as one channels-last image of one row, a pixel a sample; no pixels become batch 0."""
    flat = x.reshape(-1, x.shape[-1])
    return flat[None, None] if len(flat) else np.empty((0, 1, 1, x.shape[-1]), x.dtype)


def _checked(x, name: str, weight, axis: int) -> tuple[np.ndarray, np.ndarray]:
    x = checks.float_array(name, x)
    weight = checks.float_array("weight", weight, 2, "(out_features, in_features)")
    if x.ndim < 1 or x.shape[-1] != weight.shape[axis]:
        raise ValueError(
            f"{name} must have shape (..., {weight.shape[axis]}) for weight {weight.shape}, got {x.shape}"
        )
    return x, weight
