"""Activation layers."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from fastconv import checks
from fastconv.functional import activation as functional
from fastconv.nn.layer import EVALUATION, Layer, Stored, parameter_dtype, register


class _Activation(Layer):
    """An activation and its gradient, of the names ``function`` and ``function_grad``.

    The arguments of the constructor are those of the function. The gradient takes the layer's input or,
    with ``from_output``, its output.
    """

    function: ClassVar[str]
    from_output: ClassVar[bool] = False

    def output_shape(self, *input_shapes):
        return input_shapes[0]

    def forward(self, x, mode=EVALUATION):
        self.output_shape(x.shape)
        y = getattr(functional, self.function)(x, **self.config(), num_threads=mode.num_threads)
        return y, y if self.from_output else x

    def backward(self, grad_output, cache, mode=EVALUATION):
        gradient = getattr(functional, f"{self.function}_grad")
        return (gradient(grad_output, cache, **self.config(), num_threads=mode.num_threads),), {}


@register
class ReLU(_Activation):
    """``max(x, 0)``, element by element."""

    function, from_output = "relu", True


@register
class ReLU6(_Activation):
    """``min(max(x, 0), 6)``, element by element."""

    function = "relu6"


@register
class LeakyReLU(_Activation):
    """``x`` where it is positive, else ``negative_slope · x``.

    Parameters
    ----------
    negative_slope : float, default 0.01
    """

    function = "leaky_relu"

    def __init__(self, negative_slope=0.01):
        super().__init__()
        self.negative_slope = checks.finite("negative_slope", negative_slope)

    def config(self):
        return {"negative_slope": self.negative_slope}


@register
class PReLU(Layer):
    """``x`` where it is positive, else ``weight · x``, the weight learned. He et al. 2015.

    Parameters
    ----------
    num_parameters : int, default 1
        One slope for all channels, or C.
    init : float, default 0.25
    dtype : float32 or float64, default float32

    Attributes
    ----------
    weight : ndarray, shape (num_parameters,)
    """

    weight = Stored()

    def __init__(self, num_parameters=1, init=0.25, *, dtype=np.float32):
        super().__init__()
        self.num_parameters = checks.integer("num_parameters", num_parameters, 1)
        self.init = checks.finite("init", init)
        self.parameters["weight"] = np.empty(self.num_parameters, parameter_dtype(dtype))
        self.initialize(np.random.default_rng(0))

    def initialize(self, rng):
        self.weight[...] = self.init

    def config(self):
        return {"num_parameters": self.num_parameters, "init": self.init, "dtype": self.dtype.name}

    def output_shape(self, *input_shapes):
        (shape,) = input_shapes
        channels = shape[1] if len(shape) > 1 else 1
        if self.num_parameters not in (1, channels):
            raise ValueError(f"input must have num_parameters={self.num_parameters} channels, got {shape}")
        return shape

    def macs(self, *input_shapes):
        return math.prod(input_shapes[0])

    def forward(self, x, mode=EVALUATION):
        self.output_shape(x.shape)
        return functional.prelu(x, self.weight, num_threads=mode.num_threads), x

    def backward(self, grad_output, x, mode=EVALUATION):
        grad_input, grad_weight = functional.prelu_grad(
            grad_output, x, self.weight, num_threads=mode.num_threads
        )
        return (grad_input,), {"weight": grad_weight}


@register
class ELU(_Activation):
    """``x`` where it is positive, else ``alpha · (exp(x) − 1)``.

    Parameters
    ----------
    alpha : float, default 1
    """

    function = "elu"

    def __init__(self, alpha=1.0):
        super().__init__()
        self.alpha = checks.finite("alpha", alpha)

    def config(self):
        return {"alpha": self.alpha}


@register
class SELU(_Activation):
    """``1.0507 · elu(x, 1.6733)``; as :func:`fastconv.functional.selu`."""

    function = "selu"


@register
class GELU(_Activation):
    """``x · Φ(x)``; as :func:`fastconv.functional.gelu`.

    Parameters
    ----------
    approximate : {"none", "tanh"}, default "none"
    """

    function = "gelu"

    def __init__(self, approximate="none"):
        super().__init__()
        checks.choice("approximate", approximate, functional.GELU_FORMS)
        self.approximate = approximate

    def config(self):
        return {"approximate": self.approximate}


@register
class SiLU(_Activation):
    """``x · sigmoid(x)``."""

    function = "silu"


@register
class Sigmoid(_Activation):
    """``1 / (1 + exp(−x))``."""

    function, from_output = "sigmoid", True


@register
class Tanh(_Activation):
    """The hyperbolic tangent."""

    function, from_output = "tanh", True


@register
class Softplus(_Activation):
    """``log(1 + exp(beta · x)) / beta``, and ``x`` itself where ``beta · x > threshold``.

    Parameters
    ----------
    beta : float, default 1
    threshold : float, default 20
    """

    function = "softplus"

    def __init__(self, beta=1.0, threshold=20.0):
        super().__init__()
        self.beta = checks.positive("beta", beta)
        self.threshold = checks.finite("threshold", threshold)

    def config(self):
        return {"beta": self.beta, "threshold": self.threshold}


@register
class Hardsigmoid(_Activation):
    """``min(max(x + 3, 0), 6) / 6``."""

    function = "hardsigmoid"


@register
class Hardswish(_Activation):
    """``x · min(max(x + 3, 0), 6) / 6``."""

    function = "hardswish"


class _AlongAxis(_Activation):
    from_output = True

    def __init__(self, dim=1):
        super().__init__()
        self.dim = checks.integer("dim", dim, -32)

    def config(self):
        return {"dim": self.dim}

    def output_shape(self, *input_shapes):
        (shape,) = input_shapes
        if not -len(shape) <= self.dim < len(shape):
            raise ValueError(f"input must have the axis dim={self.dim}, got shape {shape}")
        return shape


@register
class Softmax(_AlongAxis):
    """``exp(x) / Σ exp(x)`` along an axis.

    Not needed before ``loss="cross_entropy"``, which takes logits.

    Parameters
    ----------
    dim : int, default 1
        The axis; 1 are the channels or features.
    """

    function = "softmax"


@register
class LogSoftmax(_AlongAxis):
    """The logarithm of :class:`Softmax`, exact also where that underflows.

    Parameters
    ----------
    dim : int, default 1
    """

    function = "log_softmax"
