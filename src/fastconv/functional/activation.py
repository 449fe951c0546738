"""Activations applied element by element, softmax, and their gradients.

All are stable: nothing overflows for large elements, and a NaN stays one. Where a function has a kink, the
gradient there is PyTorch's.
"""

from __future__ import annotations

import math

import numpy as np

from fastconv import checks
from fastconv.functional.erf import erfc

# Klambauer et al., "Self-Normalizing Neural Networks", 2017, section 2.
_SELU_ALPHA = 1.6732632423543772848170429916717
_SELU_SCALE = 1.0507009873554804934193349852946
# Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016, section 2.
_GELU_CUBIC = 0.044715
GELU_FORMS = ("none", "tanh")


def _float(name: str, value: object) -> np.ndarray:
    array = checks.float_array(name, value)
    return array.astype(checks.float_dtype(name, array.dtype), copy=False)


def _pair(grad_output: object, name: str, value: object) -> tuple[np.ndarray, np.ndarray]:
    """The gradient and the input or output it belongs to, which have one shape."""
    grad, array = _float("grad_output", grad_output), _float(name, value)
    if grad.shape != array.shape:
        raise ValueError(f"grad_output must have the shape of {name}, {array.shape}, got {grad.shape}")
    return grad, array


def relu(x):
    """``max(x, 0)``, element by element; NaN stays NaN.

    Parameters
    ----------
    x : array of float32, float64 or float16 (computed as float32), any shape

    Returns
    -------
    ndarray, shape and memory format of ``x``

    Raises
    ------
    TypeError, ValueError
        If ``x`` is not of floats.
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

    Raises
    ------
    TypeError, ValueError
        If an array is not of floats, or their shapes differ.
    """
    grad_output, y = _pair(grad_output, "y", y)
    # A product with the mask would turn an infinite gradient of a closed unit into NaN.
    return np.where(y <= 0, grad_output.dtype.type(0), grad_output)


def relu6(x):
    """``min(max(x, 0), 6)``; ``x`` and result as in :func:`relu`."""
    x = _float("x", x)
    return np.clip(x, x.dtype.type(0), x.dtype.type(6))


def relu6_grad(grad_output, x):
    """The gradient of :func:`relu6` by its input ``x``."""
    grad, x = _pair(grad_output, "x", x)
    return np.where((x <= 0) | (x >= 6), grad.dtype.type(0), grad)


def leaky_relu(x, negative_slope=0.01):
    """``x`` where it is positive, else ``negative_slope · x``; ``x`` and result as in :func:`relu`."""
    x, slope = _float("x", x), checks.finite("negative_slope", negative_slope)
    return np.where(x > 0, x, x * x.dtype.type(slope))


def leaky_relu_grad(grad_output, x, negative_slope=0.01):
    """The gradient of :func:`leaky_relu` by its input ``x``."""
    (grad, x), slope = _pair(grad_output, "x", x), checks.finite("negative_slope", negative_slope)
    return np.where(x > 0, grad, grad * grad.dtype.type(slope))


def _slopes(x: np.ndarray, weight: object) -> np.ndarray:
    weight = checks.float_array("weight", weight, 1, "(1,) or (C,)")
    channels = x.shape[1] if x.ndim > 1 else 1
    if len(weight) not in (1, channels):
        raise ValueError(f"weight must have shape (1,) or ({channels},), got {weight.shape}")
    return weight.astype(x.dtype, copy=False).reshape(-1, *(1,) * max(x.ndim - 2, 0))


def prelu(x, weight):
    """:func:`leaky_relu` with a learned slope for all channels or one for each.

    He et al., "Delving Deep into Rectifiers", 2015.

    Parameters
    ----------
    x : array of float32, float64 or float16 (computed as float32), shape (N, C, ...)
    weight : array, shape (1,) or (C,)

    Returns
    -------
    ndarray, shape and memory format of ``x``

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or shape.
    """
    x = _float("x", x)
    return np.where(x > 0, x, x * _slopes(x, weight))


def prelu_grad(grad_output, x, weight):
    """The gradients of :func:`prelu` by its input ``x`` and by ``weight``."""
    grad, x = _pair(grad_output, "x", x)
    slopes = _slopes(x, weight)
    negative = np.where(x > 0, grad.dtype.type(0), grad * x)
    axes = tuple(axis for axis in range(x.ndim) if axis != 1 or slopes.size == 1)
    grad_weight = negative.sum(axis=axes, dtype=np.float64).astype(x.dtype).reshape(slopes.size)
    return np.where(x > 0, grad, grad * slopes), grad_weight


def elu(x, alpha=1.0):
    """``x`` where it is positive, else ``alpha · (exp(x) − 1)``; ``x`` and result as in :func:`relu`.

    Clevert, Unterthiner, Hochreiter, "Exponential Linear Units", 2015.
    """
    x, alpha = _float("x", x), checks.finite("alpha", alpha)
    return np.where(x > 0, x, x.dtype.type(alpha) * np.expm1(np.minimum(x, x.dtype.type(0))))


def elu_grad(grad_output, x, alpha=1.0):
    """The gradient of :func:`elu` by its input ``x``."""
    (grad, x), alpha = _pair(grad_output, "x", x), checks.finite("alpha", alpha)
    slope = x.dtype.type(alpha) * np.exp(np.minimum(x, x.dtype.type(0)))
    return np.where(x > 0, grad, grad * slope)


def selu(x):
    """``1.0507 · elu(x, 1.6733)``; ``x`` and result as in :func:`relu`.

    Klambauer et al., "Self-Normalizing Neural Networks", 2017.
    """
    y = elu(x, _SELU_ALPHA)
    y *= y.dtype.type(_SELU_SCALE)
    return y


def selu_grad(grad_output, x):
    """The gradient of :func:`selu` by its input ``x``."""
    grad = elu_grad(grad_output, x, _SELU_ALPHA)
    grad *= grad.dtype.type(_SELU_SCALE)
    return grad


def sigmoid(x):
    """``1 / (1 + exp(−x))``; ``x`` and result as in :func:`relu`."""
    x = _float("x", x)
    # Of −|x|, so that it cannot overflow.
    small = np.exp(-np.abs(x))
    return np.where(x < 0, small, x.dtype.type(1)) / (1 + small)


def sigmoid_grad(grad_output, y):
    """The gradient of :func:`sigmoid` by its input, from its output ``y``."""
    grad, y = _pair(grad_output, "y", y)
    return grad * y * (1 - y)


def tanh(x):
    """The hyperbolic tangent; ``x`` and result as in :func:`relu`."""
    return np.tanh(_float("x", x))


def tanh_grad(grad_output, y):
    """The gradient of :func:`tanh` by its input, from its output ``y``."""
    grad, y = _pair(grad_output, "y", y)
    return grad * (1 - y * y)


def silu(x):
    """``x · sigmoid(x)``; ``x`` and result as in :func:`relu`.

    Elfwing, Uchibe, Doya, "Sigmoid-Weighted Linear Units", 2017.
    """
    x = _float("x", x)
    # −∞ · 0 is a NaN, as in PyTorch.
    with np.errstate(invalid="ignore"):
        return x * sigmoid(x)


def silu_grad(grad_output, x):
    """The gradient of :func:`silu` by its input ``x``."""
    grad, x = _pair(grad_output, "x", x)
    gate = sigmoid(x)
    with np.errstate(invalid="ignore"):
        return grad * (gate * (1 + x * (1 - gate)))


def _normal_cdf(x: np.ndarray) -> np.ndarray:
    return (0.5 * erfc(x * -math.sqrt(0.5))).astype(x.dtype, copy=False)


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    # tanh is ±1 to the last bit from 10 on; cubes of the whole range would overflow.
    x = np.clip(x, x.dtype.type(-10), x.dtype.type(10))
    return np.tanh(math.sqrt(2 / math.pi) * (x + _GELU_CUBIC * x**3))


def gelu(x, approximate="none"):
    """``x · Φ(x)``, Φ the distribution function of the normal distribution.

    Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016.

    Parameters
    ----------
    x : array of float32, float64 or float16 (computed as float32), any shape
    approximate : {"none", "tanh"}, default "none"
        ``"tanh"``: ``Φ(x) ≈ ½ (1 + tanh(√(2/π) (x + 0.044715 x³)))``.

    Returns
    -------
    ndarray, shape and memory format of ``x``

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or none of these.
    """
    x = _float("x", x)
    checks.choice("approximate", approximate, GELU_FORMS)
    share = _normal_cdf(x) if approximate == "none" else (1 + _gelu_tanh(x)) / 2
    with np.errstate(invalid="ignore"):
        return x * share


def gelu_grad(grad_output, x, approximate="none"):
    """The gradient of :func:`gelu` by its input ``x``: ``g · (Φ(x) + x · Φ'(x))``."""
    grad, x = _pair(grad_output, "x", x)
    checks.choice("approximate", approximate, GELU_FORMS)
    # Beyond these Φ' is 0, and the square of x may overflow.
    near = np.clip(x, x.dtype.type(-40), x.dtype.type(40))
    if approximate == "none":
        return grad * (_normal_cdf(x) + near * np.exp(-near * near / 2) * (1 / math.sqrt(2 * math.pi)))
    bend = _gelu_tanh(x)
    slope = math.sqrt(2 / math.pi) * (1 + 3 * _GELU_CUBIC * near * near)
    return grad * ((1 + bend) / 2 + near * (1 - bend * bend) * slope / 2)


def _scaled(x: np.ndarray, beta: object, threshold: object) -> tuple[np.ndarray, float, float]:
    """``x · beta``, infinite where that is too large, and both arguments checked."""
    beta, threshold = checks.positive("beta", beta), checks.finite("threshold", threshold)
    with np.errstate(over="ignore"):
        return x * x.dtype.type(beta), beta, threshold


def softplus(x, beta=1.0, threshold=20.0):
    """``log(1 + exp(beta · x)) / beta``, and ``x`` itself where ``beta · x > threshold``.

    Parameters
    ----------
    x : array of float32, float64 or float16 (computed as float32), any shape
    beta : float, default 1
    threshold : float, default 20

    Returns
    -------
    ndarray, shape and memory format of ``x``

    Raises
    ------
    TypeError, ValueError
        If ``x`` is not of floats, ``beta`` not a number > 0 or ``threshold`` not a finite one.
    """
    x = _float("x", x)
    scaled, beta, threshold = _scaled(x, beta, threshold)
    bent = np.log1p(np.exp(np.minimum(scaled, x.dtype.type(threshold)))) / x.dtype.type(beta)
    return np.where(scaled > threshold, x, bent)


def softplus_grad(grad_output, x, beta=1.0, threshold=20.0):
    """The gradient of :func:`softplus` by its input ``x``."""
    grad, x = _pair(grad_output, "x", x)
    scaled, _, threshold = _scaled(x, beta, threshold)
    return np.where(scaled > threshold, grad, grad * sigmoid(scaled))


def hardsigmoid(x):
    """``min(max(x + 3, 0), 6) / 6``; ``x`` and result as in :func:`relu`."""
    x = _float("x", x)
    return np.clip(x + 3, x.dtype.type(0), x.dtype.type(6)) / 6


def hardsigmoid_grad(grad_output, x):
    """The gradient of :func:`hardsigmoid` by its input ``x``."""
    grad, x = _pair(grad_output, "x", x)
    return np.where((x > -3) & (x < 3), grad / 6, grad.dtype.type(0))


def hardswish(x):
    """``x · hardsigmoid(x)``; ``x`` and result as in :func:`relu`.

    Howard et al., "Searching for MobileNetV3", 2019.
    """
    x = _float("x", x)
    with np.errstate(invalid="ignore"):
        return x * hardsigmoid(x)


def hardswish_grad(grad_output, x):
    """The gradient of :func:`hardswish` by its input ``x``."""
    grad, x = _pair(grad_output, "x", x)
    near = np.clip(x, x.dtype.type(-3), x.dtype.type(3))
    return np.where(x <= -3, grad.dtype.type(0), np.where(x >= 3, grad, grad * (near / 3 + 0.5)))


def _shifted(x: object, dim: object) -> np.ndarray:
    """``x − max(x)`` along an axis, so that no exponential overflows; a NaN where the maximum is infinite."""
    x = _float("x", x)
    dim = checks.axis("dim", dim, x.ndim)
    with np.errstate(invalid="ignore", over="ignore"):
        return x - x.max(axis=dim, keepdims=True, initial=-np.inf)


def softmax(x, dim=-1):
    """``exp(x) / Σ exp(x)`` along an axis, computed from ``x − max(x)`` so that nothing overflows.

    Parameters
    ----------
    x : array of float32, float64 or float16 (computed as float32)
    dim : int, default −1

    Returns
    -------
    ndarray, shape of ``x``
        Sums to 1 along ``dim``.

    Raises
    ------
    TypeError, ValueError
        If ``x`` is not of floats or ``dim`` none of its axes.
    """
    y = np.exp(_shifted(x, dim))
    y /= y.sum(axis=dim, keepdims=True)
    return y


def softmax_grad(grad_output, y, dim=-1):
    """The gradient of :func:`softmax` by its input, from its output: ``y · (g − Σ g·y)``.

    Parameters
    ----------
    grad_output, y : arrays of one shape
    dim : int, default −1

    Returns
    -------
    ndarray, same shape

    Raises
    ------
    TypeError, ValueError
        If an array is not of floats, their shapes differ, or ``dim`` is none of their axes.
    """
    grad, y = _pair(grad_output, "y", y)
    dim = checks.axis("dim", dim, y.ndim)
    return y * (grad - (grad * y).sum(axis=dim, keepdims=True))


def log_softmax(x, dim=-1):
    """The logarithm of :func:`softmax`, exact also where softmax underflows.

    Parameters
    ----------
    x : array of float32, float64 or float16 (computed as float32)
    dim : int, default −1

    Returns
    -------
    ndarray, shape of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`softmax`.
    """
    shifted = _shifted(x, dim)
    return shifted - np.log(np.exp(shifted).sum(axis=dim, keepdims=True))


def log_softmax_grad(grad_output, y, dim=-1):
    """The gradient of :func:`log_softmax` by its input, from its output: ``g − exp(y) · Σ g``."""
    grad, y = _pair(grad_output, "y", y)
    dim = checks.axis("dim", dim, y.ndim)
    return grad - np.exp(y) * grad.sum(axis=dim, keepdims=True)
