"""Normalisation layers."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from fastconv import checks, functional
from fastconv.functional.pooling import SHAPES
from fastconv.nn.layer import EVALUATION, Layer, Stored, parameter_dtype, register


class _Norm(Layer):
    """What all share: a weight (first 1) and a bias (first 0) of one shape, and eps."""

    weight = Stored()
    bias = Stored()

    def __init__(self, shape, eps, affine, bias, dtype):
        super().__init__()
        self.eps = checks.not_negative("eps", eps)
        self._dtype = parameter_dtype(dtype)
        if affine:
            self.parameters["weight"] = np.empty(shape, self._dtype)
            if bias:
                self.parameters["bias"] = np.empty(shape, self._dtype)

    @property
    def dtype(self):
        return self._dtype

    def initialize(self, rng):
        for name, array in self.parameters.items():
            array[...] = name == "weight"

    def macs(self, *input_shapes):
        return math.prod(input_shapes[0])

    def _named(self, gradients):
        """The input's gradient, and those of the parameters there are."""
        grad_input, *others = gradients
        named = dict(zip(("weight", "bias"), others, strict=True))
        return (grad_input,), {name: named[name] for name in self.parameters}


class _ChannelNorm(_Norm):
    """What batch and instance normalisation share: ``num_features`` channels and running statistics."""

    running_mean = Stored()
    running_var = Stored()
    num_batches_tracked = Stored()
    ranks: ClassVar[tuple[int, ...]]

    def __init__(self, num_features, eps, momentum, affine, track_running_stats, dtype):
        self.num_features = checks.integer("num_features", num_features, 1)
        self.affine = checks.boolean("affine", affine)
        super().__init__(self.num_features, eps, self.affine, True, dtype)
        self.momentum = momentum
        if momentum is not None:
            self.momentum = checks.number("momentum", momentum, 0, 1, "a number from 0 to 1, or None")
        self.track_running_stats = checks.boolean("track_running_stats", track_running_stats)
        if self.track_running_stats:
            for name in ("running_mean", "running_var"):
                self.buffers[name] = np.empty(self.num_features, self._dtype)
            self.buffers["num_batches_tracked"] = np.array(0, np.int64)
        self.initialize(np.random.default_rng(0))

    def initialize(self, rng):
        super().initialize(rng)
        for name, array in self.buffers.items():
            array[...] = name == "running_var"

    def config(self):
        return {
            "num_features": self.num_features,
            "eps": self.eps,
            "momentum": self.momentum,
            "affine": self.affine,
            "track_running_stats": self.track_running_stats,
            "dtype": self._dtype.name,
        }

    def output_shape(self, *input_shapes):
        (shape,) = input_shapes
        meanings = {rank: SHAPES.get(rank, "(N, C)") for rank in self.ranks}
        if len(shape) - 2 not in meanings:
            expected = " or ".join(f"{rank + 2} axes {meaning}" for rank, meaning in meanings.items())
            raise ValueError(f"input must have {expected}, got {len(shape)}: {shape}")
        if shape[1] != self.num_features:
            raise ValueError(f"input must have num_features={self.num_features} channels, got shape {shape}")
        return shape

    def _track(self, share, mean, unbiased_var):
        self.running_mean = (1 - share) * self.running_mean + share * mean
        self.running_var = (1 - share) * self.running_var + share * unbiased_var


class _BatchNorm(_ChannelNorm):
    def __init__(
        self,
        num_features,
        eps=1e-5,
        momentum=0.1,
        affine=True,
        track_running_stats=True,
        *,
        dtype=np.float32,
    ):
        super().__init__(num_features, eps, momentum, affine, track_running_stats, dtype)

    def check_training(self, *input_shapes):
        (shape,) = input_shapes
        if math.prod(shape) < 2 * self.num_features:
            raise ValueError(f"input must have more than one value a channel to train on, got shape {shape}")

    def forward(self, x, mode=EVALUATION):
        self.output_shape(x.shape)
        parameters = (self.weight, self.bias)
        if not mode.training and self.track_running_stats:
            statistics = (self.running_mean, self.running_var)
            y = functional.batch_norm(x, *statistics, *parameters, eps=self.eps, num_threads=mode.num_threads)
            return y, (x, *statistics, False)
        y, mean, var = functional.batch_norm_training(x, *parameters, self.eps, num_threads=mode.num_threads)
        if mode.training and self.track_running_stats:
            count = x.size // x.shape[1]
            self.num_batches_tracked = self.num_batches_tracked + 1
            share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
            self._track(share, mean, var * (count / (count - 1)))
        return y, (x, mean, var, True)

    def backward(self, grad_output, cache, mode=EVALUATION):
        x, mean, var, training = cache
        options = {"training": training, "num_threads": mode.num_threads}
        return self._named(
            functional.batch_norm_grad(grad_output, x, mean, var, self.weight, self.eps, **options)
        )


@register
class BatchNorm1d(_BatchNorm):
    """:class:`BatchNorm2d` of (N, C) or (N, C, L)."""

    ranks = (0, 1)


@register
class BatchNorm2d(_BatchNorm):
    """Batch normalisation of each channel of (N, C, H, W). Ioffe and Szegedy 2015.

    In training the statistics are those of the batch, and the running ones move towards them: the one
    state a forward pass changes. In inference the running statistics are used.

    Parameters
    ----------
    num_features : int
        C.
    eps : float, default 1e-5
        Added to the variance.
    momentum : float or None, default 0.1
        ``running = (1 − momentum) · running + momentum · batch``; None: the mean of all batches so far.
        The running variance takes the unbiased one of the batch, the output the biased one (as PyTorch).
    affine : bool, default True
        Learn a weight (first 1) and a bias (first 0) for each channel.
    track_running_stats : bool, default True
        False: always the statistics of the batch.
    dtype : float32 or float64, default float32

    Attributes
    ----------
    weight, bias : ndarray, shape (C,), or None
    running_mean, running_var : ndarray, shape (C,), or None
    num_batches_tracked : ndarray of int64, shape (), or None

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range; in training, if a channel has one value only.
    """

    ranks = (2,)


@register
class BatchNorm3d(_BatchNorm):
    """:class:`BatchNorm2d` of (N, C, D, H, W)."""

    ranks = (3,)


class _InstanceNorm(_ChannelNorm):
    def __init__(
        self,
        num_features,
        eps=1e-5,
        momentum=0.1,
        affine=False,
        track_running_stats=False,
        *,
        dtype=np.float32,
    ):
        super().__init__(num_features, eps, momentum, affine, track_running_stats, dtype)

    def check_training(self, *input_shapes):
        (shape,) = input_shapes
        if math.prod(shape[2:]) < 2:
            raise ValueError(f"input must have more than one pixel a channel to train on, got {shape}")

    def forward(self, x, mode=EVALUATION):
        self.output_shape(x.shape)
        parameters = (self.weight, self.bias)
        if not mode.training and self.track_running_stats:
            statistics = (self.running_mean, self.running_var)
            options = {"eps": self.eps, "num_threads": mode.num_threads}
            return functional.batch_norm(x, *statistics, *parameters, **options), (x, *statistics)
        if mode.training:
            self.check_training(x.shape)
        moved = (None, None)
        if mode.training and self.track_running_stats:
            moved = (self.running_mean, self.running_var)
        # PyTorch does not count the batches here, and takes a momentum of None as never moving.
        options = {"momentum": self.momentum or 0.0, "eps": self.eps, "num_threads": mode.num_threads}
        y = functional.instance_norm(x, *moved, *parameters, **options)
        return y, (x, None, None)

    def backward(self, grad_output, cache, mode=EVALUATION):
        x, mean, var = cache
        options = {"weight": self.weight, "eps": self.eps, "num_threads": mode.num_threads}
        if mean is None:
            return self._named(functional.instance_norm_grad(grad_output, x, **options))
        return self._named(functional.batch_norm_grad(grad_output, x, mean, var, **options))


@register
class InstanceNorm1d(_InstanceNorm):
    """:class:`InstanceNorm2d` of (N, C, L)."""

    ranks = (1,)


@register
class InstanceNorm2d(_InstanceNorm):
    """Normalise each channel of each sample of (N, C, H, W). Ulyanov, Vedaldi, Lempitsky 2016.

    Parameters
    ----------
    num_features, eps, momentum, dtype
        As in :class:`BatchNorm2d`.
    affine : bool, default False
        Learn a weight (first 1) and a bias (first 0) for each channel.
    track_running_stats : bool, default False
        Use running statistics in inference: averages over the samples of those of the training.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range; in training, if a channel has one pixel only.
    """

    ranks = (2,)


@register
class InstanceNorm3d(_InstanceNorm):
    """:class:`InstanceNorm2d` of (N, C, D, H, W)."""

    ranks = (3,)


@register
class LayerNorm(_Norm):
    """Normalise each sample over its last axes. Ba, Kiros, Hinton 2016.

    Parameters
    ----------
    normalized_shape : int or sequence of int
        The sizes of these axes.
    eps : float, default 1e-5
    elementwise_affine : bool, default True
        Learn a weight (first 1) for each element.
    bias : bool, default True
        And a bias (first 0).
    dtype : float32 or float64, default float32

    Attributes
    ----------
    weight, bias : ndarray, shape ``normalized_shape``, or None

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range.
    """

    def __init__(self, normalized_shape, eps=1e-5, elementwise_affine=True, bias=True, *, dtype=np.float32):
        normalized_shape = checks.frozen(normalized_shape)
        if not isinstance(normalized_shape, tuple):
            normalized_shape = (normalized_shape,)
        if not normalized_shape:
            raise ValueError("normalized_shape must have at least one axis, got ()")
        self.normalized_shape = checks.per_axis(
            "normalized_shape", normalized_shape, len(normalized_shape), 1
        )
        self.elementwise_affine = checks.boolean("elementwise_affine", elementwise_affine)
        self._with_bias = checks.boolean("bias", bias)
        super().__init__(self.normalized_shape, eps, self.elementwise_affine, self._with_bias, dtype)
        self.initialize(np.random.default_rng(0))

    def config(self):
        return {
            "normalized_shape": self.normalized_shape,
            "eps": self.eps,
            "elementwise_affine": self.elementwise_affine,
            "bias": self._with_bias,
            "dtype": self._dtype.name,
        }

    def output_shape(self, *input_shapes):
        (shape,) = input_shapes
        if tuple(shape[-len(self.normalized_shape) :]) != self.normalized_shape:
            expected = ", ".join(map(str, self.normalized_shape))
            raise ValueError(f"input must have the normalized_shape (..., {expected}), got {shape}")
        return shape

    def forward(self, x, mode=EVALUATION):
        self.output_shape(x.shape)
        parameters = (self.weight, self.bias, self.eps)
        return functional.layer_norm(x, self.normalized_shape, *parameters, num_threads=mode.num_threads), x

    def backward(self, grad_output, x, mode=EVALUATION):
        return self._named(
            functional.layer_norm_grad(
                grad_output, x, self.normalized_shape, self.weight, self.eps, num_threads=mode.num_threads
            )
        )


@register
class GroupNorm(_Norm):
    """Normalise each sample of (N, C, ...) over each group of channels. Wu and He 2018.

    Parameters
    ----------
    num_groups : int
        Divides ``num_channels``.
    num_channels : int
        C.
    eps : float, default 1e-5
    affine : bool, default True
        Learn a weight (first 1) and a bias (first 0) for each channel.
    dtype : float32 or float64, default float32

    Attributes
    ----------
    weight, bias : ndarray, shape (C,), or None

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range.
    """

    def __init__(self, num_groups, num_channels, eps=1e-5, affine=True, *, dtype=np.float32):
        self.num_groups = checks.integer("num_groups", num_groups, 1)
        self.num_channels = checks.integer("num_channels", num_channels, 1)
        if self.num_channels % self.num_groups:
            raise ValueError(f"num_groups must divide num_channels={num_channels}, got {num_groups}")
        self.affine = checks.boolean("affine", affine)
        super().__init__(self.num_channels, eps, self.affine, True, dtype)
        self.initialize(np.random.default_rng(0))

    def config(self):
        return {
            "num_groups": self.num_groups,
            "num_channels": self.num_channels,
            "eps": self.eps,
            "affine": self.affine,
            "dtype": self._dtype.name,
        }

    def output_shape(self, *input_shapes):
        (shape,) = input_shapes
        if len(shape) < 2 or shape[1] != self.num_channels:
            raise ValueError(f"input must be (N, num_channels={self.num_channels}, ...), got shape {shape}")
        return shape

    def forward(self, x, mode=EVALUATION):
        self.output_shape(x.shape)
        parameters = (self.weight, self.bias, self.eps)
        return functional.group_norm(x, self.num_groups, *parameters, num_threads=mode.num_threads), x

    def backward(self, grad_output, x, mode=EVALUATION):
        options = {"weight": self.weight, "eps": self.eps, "num_threads": mode.num_threads}
        return self._named(functional.group_norm_grad(grad_output, x, self.num_groups, **options))


@register
class LocalResponseNorm(Layer):
    """``x / (k + alpha/size · Σ x²)^beta`` over neighbouring channels; Krizhevsky et al. 2012.

    Parameters
    ----------
    size : int
        Channels of the window.
    alpha, beta, k : float, default 1e-4, 0.75, 1

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range.
    """

    def __init__(self, size, alpha=1e-4, beta=0.75, k=1.0):
        super().__init__()
        self.size = checks.integer("size", size, 1)
        values = {"alpha": alpha, "beta": beta, "k": k}
        for name, value in values.items():
            setattr(self, name, checks.not_negative(name, value))

    def config(self):
        return {"size": self.size, "alpha": self.alpha, "beta": self.beta, "k": self.k}

    def output_shape(self, *input_shapes):
        (shape,) = input_shapes
        if len(shape) < 3:
            raise ValueError(f"input must have at least 3 axes (N, C, ...), got shape {shape}")
        return shape

    def macs(self, *input_shapes):
        return math.prod(input_shapes[0]) * (self.size + 1)

    def forward(self, x, mode=EVALUATION):
        self.output_shape(x.shape)
        return functional.local_response_norm(x, **self.config()), x

    def backward(self, grad_output, x, mode=EVALUATION):
        return (functional.local_response_norm_grad(grad_output, x, **self.config()),), {}
