"""Activations applied element by element, softmax, and their gradients."""

from __future__ import annotations

import numpy as np

from fastconv import checks


def _float(name: str, value: object) -> np.ndarray:
    array = checks.float_array(name, value)
    return array.astype(checks.float_dtype(name, array.dtype), copy=False)


def relu(x):
    """``max(x, 0)``, element by element; NaN stays NaN.

    Parameters
    ----------
    x : array of float32, float64 or float16 (computed as float32), any shape

    Returns
    -------
    ndarray, shape and memory format of ``x``
    """
    x = _float("x", x)
    return np.maximum(x, x.dtype.type(0))


def relu_grad(grad_output, y):
    """The gradient of :func:`relu` by its input, from its output ``y``; 0 where ``y`` is 0.

    Parameters
    ----------
    grad_output, y : arrays of one shape

    Returns
    -------
    ndarray, same shape
    """
    # A product with the mask would turn an infinite gradient of a closed unit into NaN.
    return np.where(y <= 0, grad_output.dtype.type(0), grad_output)


def softmax(x, axis=-1):
    """``exp(x) / Σ exp(x)`` along an axis, computed from ``x − max(x)`` so that nothing overflows.

    Parameters
    ----------
    x : array of float32, float64 or float16 (computed as float32)
    axis : int, default −1

    Returns
    -------
    ndarray, shape of ``x``
        Sums to 1 along ``axis``.
    """
    x = _float("x", x)
    y = np.exp(x - x.max(axis=axis, keepdims=True, initial=-np.inf))
    y /= y.sum(axis=axis, keepdims=True)
    return y


def softmax_grad(grad_output, y, axis=-1):
    """The gradient of :func:`softmax` by its input, from its output: ``y · (g − Σ g·y)``.

    Parameters
    ----------
    grad_output, y : arrays of one shape
    axis : int, default −1

    Returns
    -------
    ndarray, same shape
    """
    return y * (grad_output - (grad_output * y).sum(axis=axis, keepdims=True))


def log_softmax(x, axis=-1):
    """The logarithm of :func:`softmax`, exact also where softmax underflows.

    Parameters
    ----------
    x : array of float32, float64 or float16 (computed as float32)
    axis : int, default −1

    Returns
    -------
    ndarray, shape of ``x``
    """
    x = _float("x", x)
    shifted = x - x.max(axis=axis, keepdims=True, initial=-np.inf)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))
