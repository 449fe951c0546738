"""Normalisation of activations by means and variances, and its gradients.

Sums are taken in float64, or in float64 over short float32 sums, whatever the dtype: a float32 sum over a
large batch loses digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fastconv import checks, threads
from fastconv.functional.moments import (
    Planes,
    by_channel,
    by_image,
    is_by_planes,
    layer_gradients,
    normalized_runs,
)
from fastconv.functional.prepared import call


def activations(name: str, value: object, ndim: int) -> np.ndarray:
    """``value`` as an array of floats that a kernel takes, of at least ``ndim`` axes."""
    array = checks.float_array(name, value)
    if array.ndim < ndim:
        raise ValueError(f"{name} must have at least {ndim} axes (N, C, ...), got shape {array.shape}")
    return checks.kernel_ready(array, checks.float_dtype(name, array.dtype))


def gradient_of(grad_output: object, x: np.ndarray) -> np.ndarray:
    """``grad_output`` as a kernel takes it beside ``x``, refused unless it has the shape of ``x``."""
    grad = checks.float_array("grad_output", grad_output)
    if grad.shape != x.shape:
        raise ValueError(f"grad_output must have the shape of x, {x.shape}, got {grad.shape}")
    return checks.kernel_ready(grad, x.dtype)


def _vector(name: str, value: object, shape: tuple[int, ...]) -> np.ndarray | None:
    """A parameter or statistic in float64; None stays None."""
    if value is None:
        return None
    array = checks.float_array(name, value)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    return array.astype(np.float64, copy=False)


def _times(array: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    return array if weight is None else array * weight


def _scale(var, weight, eps):
    return _times(1 / np.sqrt(var + eps), weight)


def _refuse_one_alone(running_mean: object, running_var: object) -> None:
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var must be given together, got None for one of them")


def _statistics(running_mean: object, running_var: object, shape: tuple[int, ...]) -> list[np.ndarray | None]:
    """Running mean and variance in float64, refused where they cannot be changed."""
    _refuse_one_alone(running_mean, running_var)
    given = {"running_mean": running_mean, "running_var": running_var}
    arrays = [_vector(name, value, shape) for name, value in given.items()]
    for name, value in given.items():
        if value is not None and not (isinstance(value, np.ndarray) and value.flags.writeable):
            raise ValueError(f"{name} must be a writeable numpy.ndarray to be changed, got {value!r}")
    return arrays


def _momentum(value: object) -> float:
    return checks.number("momentum", value, 0, 1, "a number from 0 to 1")


def _normalized(images, mean, var, weight, bias, eps):
    return images.scaled(_scale(var, weight, eps), 0 if bias is None else bias, mean=mean)


def batch_norm(
    x,
    running_mean,
    running_var,
    weight=None,
    bias=None,
    training=False,
    momentum=0.1,
    eps=1e-5,
    *,
    num_threads=None,
):
    """``(x − mean) / √(var + eps) · weight + bias``, channel by channel.

    As ``torch.nn.functional.batch_norm``. Ioffe and Szegedy, "Batch Normalization", 2015.

    Parameters
    ----------
    x : array of float32, float64 or float16 (computed as float32), shape (N, C, ...)
    running_mean, running_var : arrays, shape (C,), or None with ``training``
        The statistics; with ``training`` those of the batch are used, and these arrays are changed: moved
        towards the batch's mean and unbiased variance by the share ``momentum``.
    weight, bias : arrays, shape (C,), default 1 and 0
    training : bool, default False
    momentum : float, default 0.1
    eps : float, default 1e-5
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
    if training is False:
        return call(_by_statistics, x, num_threads, (momentum, eps), running_mean, running_var, weight, bias)
    x = activations("x", x, 2)
    shape, training = x.shape[1:2], checks.boolean("training", training)
    momentum = _momentum(momentum)
    mean, var = _statistics(running_mean, running_var, shape)
    y, batch_mean, batch_var = batch_norm_training(x, weight, bias, eps, num_threads=num_threads)
    if mean is not None:
        count = x.size // x.shape[1]
        running_mean[...] = (1 - momentum) * mean + momentum * batch_mean
        running_var[...] = (1 - momentum) * var + momentum * batch_var * (count / (count - 1))
    return y


def _by_statistics(x: np.ndarray, num_threads: int | None, momentum, eps) -> Callable:
    """How to normalise arrays like ``x`` by given means and variances."""
    x, eps = activations("x", x, 2), checks.not_negative("eps", eps)
    _momentum(momentum)
    shape, dtype = x.shape[1:2], x.dtype
    planes = Planes(x, num_threads) if is_by_planes(x) else None

    def constant(name: str, value: object) -> np.ndarray | None:
        native = type(value) is np.ndarray and value.dtype is dtype
        if native and value.shape == shape and value.flags.c_contiguous:
            return value
        array = _vector(name, value, shape)
        return None if array is None else array.astype(dtype)

    def normalize(x: np.ndarray, mean, var, weight, bias) -> np.ndarray:
        if mean is None or var is None:
            raise ValueError("running_mean and running_var must be given without training=True, got None")
        names = ("running_mean", "running_var", "weight", "bias")
        constants = map(constant, names, (mean, var, weight, bias))
        if planes is not None:
            return planes(x, *constants, eps)
        wide = (None if array is None else array.astype(np.float64) for array in constants)
        return _normalized(by_channel(x, num_threads), *wide, eps)

    return normalize


def batch_norm_training(x, weight=None, bias=None, eps=1e-5, *, num_threads=None):
    """Normalise each channel by the mean and (biased) variance of this batch.

    Parameters
    ----------
    x : array of float32, float64 or float16 (computed as float32), shape (N, C, ...)
    weight, bias : arrays, shape (C,), default 1 and 0
    eps : float, default 1e-5
    num_threads : int, optional
        The result does not depend on it.

    Returns
    -------
    y : ndarray, shape and memory format of ``x``
    mean, var : ndarray of float64, shape (C,)
        The statistics; the variance is the biased one, Σ(x − mean)² / count.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or shape, or a channel has one value only.
    """
    x = activations("x", x, 2)
    shape = x.shape[1:2]
    weight, bias = _vector("weight", weight, shape), _vector("bias", bias, shape)
    eps = checks.not_negative("eps", eps)
    images = by_channel(x, num_threads)
    if images.count < 2:
        raise ValueError(f"x must have more than one value a channel to train on, got shape {x.shape}")
    mean, var = images.moments()
    return _normalized(images, mean, var, weight, bias, eps), mean, var


def batch_norm_grad(grad_output, x, mean, var, weight=None, eps=1e-5, *, training=False, num_threads=None):
    """The gradients of batch normalisation.

    With ``n = (x − mean) / √(var + eps)`` and means over the batch and the image, of
    :func:`batch_norm_training`: ``∂x = weight / √(var + eps) · (g − mean(g) − n · mean(g·n))``; of
    :func:`batch_norm`, whose statistics are constants: ``∂x = weight / √(var + eps) · g``.

    Parameters
    ----------
    grad_output, x : arrays, shape (N, C, ...)
    mean, var : arrays, shape (C,)
        The statistics that were used.
    weight : array, shape (C,), default 1
    eps : float, default 1e-5
    training : bool, default False
        Whether the statistics are those of the batch.
    num_threads : int, optional
        The result does not depend on it.

    Returns
    -------
    grad_input : ndarray, shape and memory format of ``x``
    grad_weight, grad_bias : ndarray, shape (C,)

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or shape.
    """
    x = activations("x", x, 2)
    shape = x.shape[1:2]
    grad = gradient_of(grad_output, x)
    if mean is None or var is None:
        raise TypeError("mean and var must be arrays, the statistics that were used, got None")
    mean, var = _vector("mean", mean, shape), _vector("var", var, shape)
    weight, eps = _vector("weight", weight, shape), checks.not_negative("eps", eps)
    training = checks.boolean("training", training)
    images = by_channel(x, num_threads)
    total, product = (array.sum(axis=0) for array in images.products(grad, mean))
    factor, inverse = _scale(var, weight, eps), 1 / (var + eps)
    if training:
        share = factor / max(images.count, 1)
        grad_input = images.combined(grad, factor, mean, -share * inverse * product, -share * total)
    else:
        grad_input = images.scaled(factor, np.zeros_like(factor), grad)
    grad_weight = product * np.sqrt(inverse)
    return grad_input, grad_weight.astype(x.dtype), total.astype(x.dtype)


def _layer_norm_arguments(x, normalized_shape, weight, bias, eps):
    x, normalized_shape = activations("x", x, 1), checks.frozen(normalized_shape)
    if not isinstance(normalized_shape, tuple):
        normalized_shape = (normalized_shape,)
    shape = checks.per_axis("normalized_shape", normalized_shape, len(normalized_shape), 1)
    if not shape or x.shape[-len(shape) :] != shape:
        raise ValueError(f"x must have the shape (..., {', '.join(map(str, shape))}), got {x.shape}")
    parameters = _vector("weight", weight, shape), _vector("bias", bias, shape)
    return x, tuple(range(x.ndim - len(shape), x.ndim)), *parameters, checks.not_negative("eps", eps)


def _sample_order(x: np.ndarray, samples: int) -> list[int] | None:
    """The axes of ``x`` in the order of memory, the first ``samples`` of them before the others.

    None if it is not stored so, without gaps.
    """
    axes = range(x.ndim)
    order = list(axes) if x.flags.c_contiguous else sorted(axes, key=lambda axis: -x.strides[axis])
    if x.transpose(order).flags.c_contiguous and set(order[:samples]) == set(axes[:samples]):
        return order
    return None


def layer_norm(x, normalized_shape, weight=None, bias=None, eps=1e-5, *, num_threads=None):
    """Normalise each sample over its last axes. As ``torch.nn.functional.layer_norm``.

    Ba, Kiros, Hinton, "Layer Normalization", 2016.

    Parameters
    ----------
    x : array of float32, float64 or float16 (computed as float32), shape (..., *normalized_shape)
    normalized_shape : int or sequence of int
    weight, bias : arrays, shape ``normalized_shape``, default 1 and 0
    eps : float, default 1e-5
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
    x, axes, weight, bias, eps = _layer_norm_arguments(x, normalized_shape, weight, bias, eps)
    samples, y = x.ndim - len(axes), None
    order = _sample_order(x, samples)
    if order is None:
        x, y, order = np.ascontiguousarray(x), np.empty_like(x), list(range(x.ndim))
    moved = x.transpose(order)
    weight, bias = (
        None if array is None else array.transpose([axis - samples for axis in order[samples:]])
        for array in (weight, bias)
    )
    runs = moved.reshape(math.prod(moved.shape[:samples]), math.prod(moved.shape[samples:]))
    count = threads.for_elements(num_threads, x.size)
    result = normalized_runs(runs, 1, weight, bias, eps, count)[0].reshape(moved.shape)
    result = result.transpose(np.argsort(order))
    if y is None:
        return result
    y[...] = result
    return y


def layer_norm_grad(grad_output, x, normalized_shape, weight=None, eps=1e-5, *, num_threads=None):
    """The gradients of :func:`layer_norm`.

    Parameters
    ----------
    grad_output : array, shape of ``x``
    x, normalized_shape, weight, eps, num_threads
        As they were given to :func:`layer_norm`.

    Returns
    -------
    grad_input : ndarray, shape of ``x``
    grad_weight, grad_bias : ndarray, shape ``normalized_shape``

    Raises
    ------
    TypeError, ValueError
        As :func:`layer_norm`, or if ``grad_output`` has not the shape of ``x``.
    """
    x, axes, weight, _, eps = _layer_norm_arguments(x, normalized_shape, weight, None, eps)
    grad = gradient_of(grad_output, x)
    samples = x.ndim - len(axes)
    runs = (math.prod(x.shape[:samples]), math.prod(x.shape[samples:]))
    count = threads.for_elements(num_threads, x.size)
    arrays = [np.ascontiguousarray(array).reshape(runs) for array in (grad, x)]
    grad_input, *sums = layer_gradients(*arrays, weight, eps, count)
    return grad_input.reshape(x.shape), *(total.reshape(x.shape[samples:]) for total in sums)


def _group_norm_arguments(x, num_groups, weight, bias, eps):
    x = activations("x", x, 2)
    channels = x.shape[1]
    groups = checks.integer("num_groups", num_groups, 1)
    if channels % groups:
        raise ValueError(f"num_groups must divide the {channels} channels of x, got {groups}")
    vectors = _vector("weight", weight, (channels,)), _vector("bias", bias, (channels,))
    return x, groups, *vectors, checks.not_negative("eps", eps)


def group_norm(x, num_groups, weight=None, bias=None, eps=1e-5, *, num_threads=None):
    """Normalise each sample over each group of channels. As ``torch.nn.functional.group_norm``.

    Wu and He, "Group Normalization", 2018. With one channel a group it is instance normalisation, with one
    group a layer normalisation over (C, ...).

    Parameters
    ----------
    x : array of float32, float64 or float16 (computed as float32), shape (N, C, ...)
    num_groups : int
        Divides C.
    weight, bias : arrays, shape (C,), default 1 and 0
    eps : float, default 1e-5
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
    x, groups, weight, bias, eps = _group_norm_arguments(x, num_groups, weight, bias, eps)
    return by_image(x, num_threads).normalized(groups, weight, bias, eps)[0]


def group_norm_grad(grad_output, x, num_groups, weight=None, eps=1e-5, *, num_threads=None):
    """The gradients of :func:`group_norm`.

    Parameters
    ----------
    grad_output : array, shape of ``x``
    x, num_groups, weight, eps, num_threads
        As they were given to :func:`group_norm`.

    Returns
    -------
    grad_input : ndarray, shape of ``x``
    grad_weight, grad_bias : ndarray, shape (C,)

    Raises
    ------
    TypeError, ValueError
        As :func:`group_norm`, or if ``grad_output`` has not the shape of ``x``.
    """
    x, groups, weight, _, eps = _group_norm_arguments(x, num_groups, weight, None, eps)
    grad = gradient_of(grad_output, x)
    images = by_image(x, num_threads)
    # Those of a group for each of its channels, (N, C).
    mean, inverse = (
        np.repeat(array, x.shape[1] // groups, axis=1)
        for array in images.normalized(groups, None, None, eps, wanted=False)[1:]
    )
    totals, products = images.products(grad, mean)
    products = products * inverse
    # With u = g · weight: ∂x = (u − mean(u) − n · mean(u·n)) / √(var + eps), means over the group.
    size = max(1, x.size // max(1, len(x) * groups))
    mean_grad, mean_product = (
        np.repeat(
            _times(array, weight).reshape(len(x), groups, x.shape[1] // groups).sum(axis=2) / size,
            x.shape[1] // groups,
            axis=1,
        )
        for array in (totals, products)
    )
    grad_input = images.combined(
        grad, _times(inverse, weight), mean, -inverse * inverse * mean_product, -inverse * mean_grad
    )
    return grad_input, products.sum(axis=0).astype(x.dtype), totals.sum(axis=0).astype(x.dtype)


def instance_norm(
    x,
    running_mean=None,
    running_var=None,
    weight=None,
    bias=None,
    use_input_stats=True,
    momentum=0.1,
    eps=1e-5,
    *,
    num_threads=None,
):
    """Normalise each channel of each sample over its pixels: :func:`group_norm` with a channel a group.

    As ``torch.nn.functional.instance_norm``. Ulyanov, Vedaldi, Lempitsky, "Instance Normalization", 2016.

    Parameters
    ----------
    x : array of float32, float64 or float16 (computed as float32), shape (N, C, ...)
    running_mean, running_var : arrays, shape (C,), optional
        With ``use_input_stats`` they are changed: moved towards the samples' means and unbiased variances,
        averaged over the batch, by the share ``momentum``. Without, they are the statistics, as of
        :func:`batch_norm`.
    weight, bias : arrays, shape (C,), default 1 and 0
    use_input_stats : bool, default True
    momentum : float, default 0.1
    eps : float, default 1e-5
    num_threads : int, optional
        The result does not depend on it.

    Returns
    -------
    ndarray, shape and memory format of ``x``

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or shape, or only one of ``running_mean`` and ``running_var`` is
        given.
    """
    x, own = activations("x", x, 3), checks.boolean("use_input_stats", use_input_stats)
    momentum = _momentum(momentum)
    if not own:
        _refuse_one_alone(running_mean, running_var)
        if running_mean is None:
            raise ValueError(
                "running_mean and running_var must be given with use_input_stats=False, got None"
            )
        return batch_norm(x, running_mean, running_var, weight, bias, eps=eps, num_threads=num_threads)
    mean, var = _statistics(running_mean, running_var, x.shape[1:2])
    x, groups, weight, bias, eps = _group_norm_arguments(x, max(x.shape[1], 1), weight, bias, eps)
    y, means, inverses = by_image(x, num_threads).normalized(groups, weight, bias, eps)
    count = math.prod(x.shape[2:])
    if mean is not None and x.size:
        if count < 2:
            raise ValueError(f"x must have more than one pixel for running_var, got shape {x.shape}")
        variances = (1 / inverses**2 - eps) * (count / (count - 1))
        running_mean[...] = (1 - momentum) * mean + momentum * means.mean(axis=0)
        running_var[...] = (1 - momentum) * var + momentum * variances.mean(axis=0)
    return y


def instance_norm_grad(grad_output, x, weight=None, eps=1e-5, *, num_threads=None):
    """The gradients of :func:`instance_norm`, as :func:`group_norm_grad` returns them."""
    x = activations("x", x, 3)
    return group_norm_grad(grad_output, x, max(x.shape[1], 1), weight, eps, num_threads=num_threads)
