"""Batch normalisation over the channels of (N, C, ...) arrays, and its gradients.

Ioffe and Szegedy, "Batch Normalization", 2015. Sums are taken in float64, whatever the dtype: a
float32 sum over a large batch loses digits, and it costs little beside the passes over memory.
"""

from __future__ import annotations

import numpy as np


def _per_channel(values: np.ndarray, x: np.ndarray) -> np.ndarray:
    return values.astype(x.dtype, copy=False).reshape(1, -1, *(1,) * (x.ndim - 2))


def _sum(x: np.ndarray) -> np.ndarray:
    return x.sum(axis=(0, *range(2, x.ndim)), dtype=np.float64)


def batch_norm(x, mean, var, weight=None, bias=None, eps=1e-5):
    """``(x − mean) / √(var + eps) · weight + bias``, channel by channel, with given statistics.

    Parameters
    ----------
    x : array of float32 or float64, shape (N, C, ...)
    mean, var : arrays, shape (C,)
    weight, bias : arrays, shape (C,), default 1 and 0
    eps : float, default 1e-5

    Returns
    -------
    ndarray, shape, dtype and memory format of ``x``
    """
    scale = 1 / np.sqrt(var.astype(np.float64) + eps)
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale
    if bias is not None:
        shift = shift + bias
    y = x * _per_channel(scale, x)
    y += _per_channel(shift, x)
    return y


def batch_norm_training(x, weight=None, bias=None, eps=1e-5):
    """Normalise each channel by the mean and (biased) variance of this batch.

    Parameters
    ----------
    x : array of float32 or float64, shape (N, C, ...)
    weight, bias : arrays, shape (C,), default 1 and 0
    eps : float, default 1e-5

    Returns
    -------
    y : ndarray, shape of ``x``
    mean, var : ndarray of float64, shape (C,)
        The statistics; the variance is the biased one, Σ(x − mean)² / count.
    normalized : ndarray, shape of ``x``
        ``(x − mean) / √(var + eps)``, which the gradient needs.
    """
    count = x.size // x.shape[1]
    mean = _sum(x) / count
    normalized = x - _per_channel(mean, x)
    var = _sum(normalized * normalized) / count
    normalized *= _per_channel(1 / np.sqrt(var + eps), x)
    y = normalized if weight is None else normalized * _per_channel(weight, x)
    if bias is not None:
        y = y + _per_channel(bias, x)
    return y, mean, var, normalized


def batch_norm_training_grad(grad_output, normalized, var, weight=None, eps=1e-5):
    """The gradients of :func:`batch_norm_training`.

    With ``n = normalized`` and means over the batch and the image:
    ``∂x = weight / √(var + eps) · (g − mean(g) − n · mean(g·n))``.

    Parameters
    ----------
    grad_output, normalized : arrays, shape (N, C, ...)
    var : array, shape (C,)
    weight : array, shape (C,), default 1
    eps : float, default 1e-5

    Returns
    -------
    grad_input : ndarray, shape of ``grad_output``
    grad_weight, grad_bias : ndarray, shape (C,)
    """
    count = grad_output.size // grad_output.shape[1]
    dtype = grad_output.dtype
    grad_bias = _sum(grad_output)
    grad_weight = _sum(grad_output * normalized)
    scale = 1 / np.sqrt(var + eps)
    if weight is not None:
        scale = scale * weight
    grad_input = normalized * _per_channel(-grad_weight / count, grad_output)
    grad_input += grad_output
    grad_input -= _per_channel(grad_bias / count, grad_output)
    grad_input *= _per_channel(scale, grad_output)
    return grad_input, grad_weight.astype(dtype), grad_bias.astype(dtype)


def batch_norm_grad(grad_output, x, mean, var, weight=None, eps=1e-5):
    """The gradients of :func:`batch_norm`, the statistics held constant.

    Parameters
    ----------
    grad_output, x : arrays, shape (N, C, ...)
    mean, var : arrays, shape (C,)
    weight : array, shape (C,), default 1
    eps : float, default 1e-5

    Returns
    -------
    grad_input : ndarray, shape of ``grad_output``
    grad_weight, grad_bias : ndarray, shape (C,)
    """
    dtype = grad_output.dtype
    scale = 1 / np.sqrt(var.astype(np.float64) + eps)
    normalized = (x - _per_channel(mean, x)) * _per_channel(scale, x)
    grad_weight = _sum(grad_output * normalized).astype(dtype)
    if weight is not None:
        scale = scale * weight
    return grad_output * _per_channel(scale, grad_output), grad_weight, _sum(grad_output).astype(dtype)
