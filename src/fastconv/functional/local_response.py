"""Local response normalisation: over neighbouring channels of each pixel, and its gradient."""

from __future__ import annotations

import numpy as np

from fastconv import checks
from fastconv.functional.normalization import activations, gradient_of


def _channel_sums(x: np.ndarray, low: int, high: int) -> np.ndarray:
    """For each channel the sum of the ``low`` channels before it, itself, and the ``high`` after it."""
    total = x.copy(order="K")
    channels = x.shape[1]
    for shift in range(1, min(max(low, high) + 1, channels)):
        if shift <= low:
            total[:, shift:] += x[:, : max(channels - shift, 0)]
        if shift <= high:
            total[:, : max(channels - shift, 0)] += x[:, shift:]
    return total


def _lrn_base(x, size, alpha, beta, k):
    """``k + alpha/size · Σ x²`` over the window of channels, and the arguments, checked."""
    x, size = activations("x", x, 3), checks.integer("size", size, 1)
    alpha, beta = checks.not_negative("alpha", alpha), checks.not_negative("beta", beta)
    k = checks.not_negative("k", k)
    return x, size, alpha, beta, k + alpha / size * _channel_sums(np.square(x), size // 2, (size - 1) // 2)


def local_response_norm(x, size, alpha=1e-4, beta=0.75, k=1.0):
    """``x / (k + alpha/size · Σ x²)^beta``, the sum over ``size`` neighbouring channels.

    As ``torch.nn.functional.local_response_norm``: the window reaches from size // 2 channels before to
    (size − 1) // 2 after. Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional
    Neural Networks", 2012, section 3.3.

    Parameters
    ----------
    x : array of float32, float64 or float16 (computed as float32), shape (N, C, ...)
    size : int
    alpha, beta, k : float, default 1e-4, 0.75, 1

    Returns
    -------
    ndarray, shape and memory format of ``x``

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or range.
    """
    x, _, _, beta, base = _lrn_base(x, size, alpha, beta, k)
    return x * base**-beta


def local_response_norm_grad(grad_output, x, size, alpha=1e-4, beta=0.75, k=1.0):
    """The gradient of :func:`local_response_norm`.

    ``∂x = g · b^−beta − 2·alpha·beta/size · x · Σ g·x·b^(−beta − 1)``, the sum over the channels whose
    window holds this one.

    Parameters
    ----------
    grad_output : array, shape of ``x``
    x, size, alpha, beta, k
        As they were given to :func:`local_response_norm`.

    Returns
    -------
    ndarray, shape of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`local_response_norm`, or if ``grad_output`` has not the shape of ``x``.
    """
    x, size, alpha, beta, base = _lrn_base(x, size, alpha, beta, k)
    grad = gradient_of(grad_output, x)
    scaled = grad * base**-beta
    spread = _channel_sums(scaled * x / base, (size - 1) // 2, size // 2)
    return scaled - 2 * alpha * beta / size * x * spread
