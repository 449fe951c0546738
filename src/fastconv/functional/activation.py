"""Activations applied element by element, softmax, and their gradients.

All are stable: nothing overflows for large elements, and a NaN stays one. Where a function has a kink, the
gradient there is PyTorch's.
"""

from __future__ import annotations

import math

import numpy as np

from fastconv import checks, kernels, threads
from fastconv.functional.moments import by_channel
from fastconv.memory import fresh_like

# Klambauer et al., "Self-Normalizing Neural Networks", 2017, section 2.
_SELU_ALPHA = 1.6732632423543772848170429916717
_SELU_SCALE = 1.0507009873554804934193349852946
GELU_FORMS = ("none", "tanh")
# These take the time of reading and writing: so many elements of them are worth as much as one of the others.
_CHEAP, _CHEAPER = frozenset({"relu", "relu6", "leaky_relu", "hardsigmoid", "hardswish"}), 4


def _pair(grad_output: object, name: str, value: object) -> tuple[np.ndarray, np.ndarray]:
    """The gradient and the input or output it belongs to, which have one shape."""
    grad, array = checks.kernel_array("grad_output", grad_output), checks.kernel_array(name, value)
    if grad.shape != array.shape:
        raise ValueError(f"grad_output must have the shape of {name}, {array.shape}, got {grad.shape}")
    return grad, array


def _same_dtype(grad: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    dtype = np.result_type(grad, x)
    return grad.astype(dtype, copy=False), x.astype(dtype, copy=False)


def _apply(
    kind: str, x: object, num_threads: int | None, first: float = 0.0, second: float = 0.0
) -> np.ndarray:
    """An activation of ``x``, a new array in its memory format."""
    return _each(kind, first, second, None, checks.kernel_array("x", x), num_threads)


def _apply_grad(
    kind: str, grad_output: object, name: str, value: object, num_threads: int | None,
    first: float = 0.0, second: float = 0.0,
) -> np.ndarray:  # fmt: skip
    """``grad_output`` times the activation's slope at ``value``, a new array in that one's memory format."""
    return _each(kind, first, second, *_same_dtype(*_pair(grad_output, name, value)), num_threads)


def _each(
    kind: str, first: float, second: float, grad: np.ndarray | None, x: np.ndarray, num_threads: int | None
) -> np.ndarray:
    """An activation of all elements, or its gradient, in the order in which those of ``x`` lie."""
    work = x.size // _CHEAPER if kind in _CHEAP else x.size
    count, axes = threads.for_elements(num_threads, work), _memory_order(x)
    if axes is not None:
        x = _laid_out(x, axes)
    result = fresh_like(x)
    grad = None if grad is None else _laid_out(grad, axes)
    kernels.active().activate(kind, first, second, grad, x, result, count)
    return result if axes is None else result.transpose(np.argsort(axes))


def _memory_order(x: np.ndarray) -> list[int] | None:
    """The axes of ``x``, the outermost first; None where they are as they are numbered."""
    if x.flags.c_contiguous:
        return None
    return sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis]))


def _laid_out(x: np.ndarray, axes: list[int] | None) -> np.ndarray:
    """``x`` with its axes in another order, C-contiguous; a copy only where it must be."""
    x = x if axes is None else x.transpose(axes)
    return x if x.flags.c_contiguous else np.ascontiguousarray(x)  # which has an axis at least


def relu(x, *, num_threads=None):
    """``max(x, 0)``, element by element; NaN stays NaN.

    Parameters
    ----------
    x : array of float32, float64 or float16 (computed as float32), any shape
    num_threads : int, optional
        The result does not depend on it.

    Returns
    -------
    ndarray, shape and memory format of ``x``

    Raises
    ------
    TypeError, ValueError
        If ``x`` is not of floats, or ``num_threads`` no number of them.
    """
    return _apply("relu", x, num_threads)


def relu_grad(grad_output, y, *, num_threads=None):
    """The gradient of :func:`relu` by its input, from its output ``y``; 0 where ``y`` is 0.

    Parameters
    ----------
    grad_output, y : arrays of one shape
    num_threads : int, optional
        The result does not depend on it.

    Returns
    -------
    ndarray, same shape

    Raises
    ------
    TypeError, ValueError
        If an array is not of floats, or their shapes differ.
    """
    return _apply_grad("relu", grad_output, "y", y, num_threads)


def relu6(x, *, num_threads=None):
    """``min(max(x, 0), 6)``; the rest as in :func:`relu`."""
    return _apply("relu6", x, num_threads)


def relu6_grad(grad_output, x, *, num_threads=None):
    """The gradient of :func:`relu6` by its input ``x``."""
    return _apply_grad("relu6", grad_output, "x", x, num_threads)


def leaky_relu(x, negative_slope=0.01, *, num_threads=None):
    """``x`` where it is positive, else ``negative_slope · x``; the rest as in :func:`relu`."""
    return _apply("leaky_relu", x, num_threads, checks.finite("negative_slope", negative_slope))


def leaky_relu_grad(grad_output, x, negative_slope=0.01, *, num_threads=None):
    """The gradient of :func:`leaky_relu` by its input ``x``."""
    slope = checks.finite("negative_slope", negative_slope)
    return _apply_grad("leaky_relu", grad_output, "x", x, num_threads, slope)


# Elements in a row with one slope from which on the kernel takes it so, and with many slopes.
_SHORTEST_RUN, _SHORTEST_ROW = 16, 512


def _slopes(x: np.ndarray, weight: object) -> np.ndarray:
    """A slope for each channel of ``x``, in its dtype."""
    weight = checks.float_array("weight", weight, 1, "(1,) or (C,)")
    channels = x.shape[1] if x.ndim > 1 else 1
    if len(weight) not in (1, channels):
        raise ValueError(f"weight must have shape (1,) or ({channels},), got {weight.shape}")
    return weight.astype(x.dtype, copy=False)


def _by_slopes(
    x: np.ndarray, slopes: np.ndarray, num_threads: int | None, grad: np.ndarray | None = None
) -> np.ndarray:
    """:func:`prelu` of ``x``, or the gradient by its input; in the memory format of ``x``."""
    if len(slopes) == 1:
        return _each("leaky_relu", slopes.item(), 0.0, grad, x, num_threads)
    count, axes = threads.for_elements(num_threads, x.size // _CHEAPER), _memory_order(x)
    x, grad = _laid_out(x, axes), None if grad is None else _laid_out(grad, axes)
    run = math.prod(x.shape[(1 if axes is None else axes.index(1)) + 1 :])
    if run < _SHORTEST_RUN:
        slopes, run = np.repeat(slopes, run), 1
        slopes = np.tile(slopes, -(-_SHORTEST_ROW // max(1, len(slopes))))
    result = fresh_like(x)
    if x.size:
        kernels.active().prelu(x, grad, np.ascontiguousarray(slopes), run, result, count)
    return result if axes is None else result.transpose(np.argsort(axes))


def prelu(x, weight, *, num_threads=None):
    """:func:`leaky_relu` with a learned slope for all channels or one for each.

    He et al., "Delving Deep into Rectifiers", 2015.

    Parameters
    ----------
    x : array of float32, float64 or float16 (computed as float32), shape (N, C, ...)
    weight : array, shape (1,) or (C,)
    num_threads : int, optional
        The result does not depend on it.

    Returns
    -------
    ndarray, shape and memory format of ``x``

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or shape.
    """
    x = checks.kernel_array("x", x)
    return _by_slopes(x, _slopes(x, weight), num_threads)


def prelu_grad(grad_output, x, weight, *, num_threads=None):
    """The gradients of :func:`prelu` by its input ``x`` and by ``weight``."""
    grad, x = _same_dtype(*_pair(grad_output, "x", x))
    slopes = _slopes(x, weight)
    planes = (*x.shape[:2], math.prod(x.shape[2:])) if x.ndim > 1 else (x.size, 1, 1)
    negative = np.minimum(x, 0).reshape(planes)
    products = by_channel(negative, num_threads).products(grad.reshape(planes), np.zeros(planes[1]))
    by_slope = products[1].sum(axis=0) if slopes.size > 1 else products[1].sum(keepdims=True).ravel()
    return _by_slopes(x, slopes, num_threads, grad), by_slope.astype(x.dtype)


def elu(x, alpha=1.0, *, num_threads=None):
    """``x`` where it is positive, else ``alpha · (exp(x) − 1)``; the rest as in :func:`relu`.

    Clevert, Unterthiner, Hochreiter, "Exponential Linear Units", 2015.
    """
    return _apply("elu", x, num_threads, checks.finite("alpha", alpha), 1.0)


def elu_grad(grad_output, x, alpha=1.0, *, num_threads=None):
    """The gradient of :func:`elu` by its input ``x``."""
    return _apply_grad("elu", grad_output, "x", x, num_threads, checks.finite("alpha", alpha), 1.0)


def selu(x, *, num_threads=None):
    """``1.0507 · elu(x, 1.6733)``; the rest as in :func:`relu`.

    Klambauer et al., "Self-Normalizing Neural Networks", 2017.
    """
    return _apply("elu", x, num_threads, _SELU_ALPHA, _SELU_SCALE)


def selu_grad(grad_output, x, *, num_threads=None):
    """The gradient of :func:`selu` by its input ``x``."""
    return _apply_grad("elu", grad_output, "x", x, num_threads, _SELU_ALPHA, _SELU_SCALE)


def sigmoid(x, *, num_threads=None):
    """``1 / (1 + exp(−x))``; the rest as in :func:`relu`."""
    return _apply("sigmoid", x, num_threads)


def sigmoid_grad(grad_output, y, *, num_threads=None):
    """The gradient of :func:`sigmoid` by its input, from its output ``y``."""
    return _apply_grad("sigmoid", grad_output, "y", y, num_threads)


def tanh(x, *, num_threads=None):
    """The hyperbolic tangent; the rest as in :func:`relu`."""
    return _apply("tanh", x, num_threads)


def tanh_grad(grad_output, y, *, num_threads=None):
    """The gradient of :func:`tanh` by its input, from its output ``y``."""
    return _apply_grad("tanh", grad_output, "y", y, num_threads)


def silu(x, *, num_threads=None):
    """``x · sigmoid(x)``; the rest as in :func:`relu`.

    Elfwing, Uchibe, Doya, "Sigmoid-Weighted Linear Units", 2017.
    """
    return _apply("silu", x, num_threads)


def silu_grad(grad_output, x, *, num_threads=None):
    """The gradient of :func:`silu` by its input ``x``."""
    return _apply_grad("silu", grad_output, "x", x, num_threads)


def _gelu(approximate: object) -> str:
    checks.choice("approximate", approximate, GELU_FORMS)
    return "gelu" if approximate == "none" else "gelu_tanh"


def gelu(x, approximate="none", *, num_threads=None):
    """``x · Φ(x)``, Φ the distribution function of the normal distribution.

    Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016.

    Parameters
    ----------
    x : array of float32, float64 or float16 (computed as float32), any shape
    approximate : {"none", "tanh"}, default "none"
        ``"tanh"``: ``Φ(x) ≈ ½ (1 + tanh(√(2/π) (x + 0.044715 x³)))``.
    num_threads : int, optional
        The result does not depend on it.

    Returns
    -------
    ndarray, shape and memory format of ``x``

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or none of these.
    """
    return _apply(_gelu(approximate), x, num_threads)


def gelu_grad(grad_output, x, approximate="none", *, num_threads=None):
    """The gradient of :func:`gelu` by its input ``x``: ``g · (Φ(x) + x · Φ'(x))``."""
    return _apply_grad(_gelu(approximate), grad_output, "x", x, num_threads)


def _softplus(beta: object, threshold: object) -> tuple[float, float]:
    return checks.positive("beta", beta), checks.finite("threshold", threshold)


def softplus(x, beta=1.0, threshold=20.0, *, num_threads=None):
    """``log(1 + exp(beta · x)) / beta``, and ``x`` itself where ``beta · x > threshold``.

    Parameters
    ----------
    x : array of float32, float64 or float16 (computed as float32), any shape
    beta : float, default 1
    threshold : float, default 20
    num_threads : int, optional
        The result does not depend on it.

    Returns
    -------
    ndarray, shape and memory format of ``x``

    Raises
    ------
    TypeError, ValueError
        If ``x`` is not of floats, ``beta`` not a number > 0 or ``threshold`` not a finite one.
    """
    return _apply("softplus", x, num_threads, *_softplus(beta, threshold))


def softplus_grad(grad_output, x, beta=1.0, threshold=20.0, *, num_threads=None):
    """The gradient of :func:`softplus` by its input ``x``."""
    return _apply_grad("softplus", grad_output, "x", x, num_threads, *_softplus(beta, threshold))


def hardsigmoid(x, *, num_threads=None):
    """``min(max(x + 3, 0), 6) / 6``; the rest as in :func:`relu`."""
    return _apply("hardsigmoid", x, num_threads)


def hardsigmoid_grad(grad_output, x, *, num_threads=None):
    """The gradient of :func:`hardsigmoid` by its input ``x``."""
    return _apply_grad("hardsigmoid", grad_output, "x", x, num_threads)


def hardswish(x, *, num_threads=None):
    """``x · hardsigmoid(x)``; the rest as in :func:`relu`.

    Howard et al., "Searching for MobileNetV3", 2019.
    """
    return _apply("hardswish", x, num_threads)


def hardswish_grad(grad_output, x, *, num_threads=None):
    """The gradient of :func:`hardswish` by its input ``x``."""
    return _apply_grad("hardswish", grad_output, "x", x, num_threads)


def _softmax(x: object, dim: object, logarithm: bool, num_threads: int | None) -> np.ndarray:
    x = checks.kernel_array("x", x)
    dim, axes = checks.axis("dim", dim, x.ndim) % x.ndim, _memory_order(x)
    count = threads.for_elements(num_threads, x.size)
    if axes is not None:
        x, dim = _laid_out(x, axes), axes.index(dim)
    result = fresh_like(x)
    if x.size:
        inner = math.prod(x.shape[dim + 1 :])
        kernels.active().softmax(x, x.shape[dim], inner, logarithm, result, count)
    return result if axes is None else result.transpose(np.argsort(axes))


def softmax(x, dim=-1, *, num_threads=None):
    """``exp(x) / Σ exp(x)`` along an axis, computed from ``x − max(x)`` so that nothing overflows.

    Parameters
    ----------
    x : array of float32, float64 or float16 (computed as float32)
    dim : int, default −1
    num_threads : int, optional
        The result does not depend on it.

    Returns
    -------
    ndarray, shape and memory format of ``x``
        Sums to 1 along ``dim``.

    Raises
    ------
    TypeError, ValueError
        If ``x`` is not of floats or ``dim`` none of its axes.
    """
    return _softmax(x, dim, False, num_threads)


def softmax_grad(grad_output, y, dim=-1, *, num_threads=None):
    """The gradient of :func:`softmax` by its input, from its output: ``y · (g − Σ g·y)``.

    Parameters
    ----------
    grad_output, y : arrays of one shape
    dim : int, default −1
    num_threads : int, optional
        The result does not depend on it.

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
    threads.resolve(num_threads)  # NumPy has one
    return y * (grad - (grad * y).sum(axis=dim, keepdims=True))


def log_softmax(x, dim=-1, *, num_threads=None):
    """The logarithm of :func:`softmax`, exact also where softmax underflows.

    Parameters
    ----------
    x : array of float32, float64 or float16 (computed as float32)
    dim : int, default −1
    num_threads : int, optional
        The result does not depend on it.

    Returns
    -------
    ndarray, shape of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`softmax`.
    """
    return _softmax(x, dim, True, num_threads)


def log_softmax_grad(grad_output, y, dim=-1, *, num_threads=None):
    """The gradient of :func:`log_softmax` by its input, from its output: ``g − exp(y) · Σ g``."""
    grad, y = _pair(grad_output, "y", y)
    dim = checks.axis("dim", dim, y.ndim)
    threads.resolve(num_threads)  # NumPy has one
    return grad - np.exp(y) * grad.sum(axis=dim, keepdims=True)
