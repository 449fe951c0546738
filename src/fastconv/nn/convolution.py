"""Convolution layers."""

from __future__ import annotations

import numpy as np

from fastconv import checks, selection
from fastconv.functional.convolution import conv1d, conv2d, conv3d
from fastconv.functional.gradients import (
    conv1d_input_grad,
    conv1d_weight_grad,
    conv2d_input_grad,
    conv2d_weight_grad,
    conv3d_input_grad,
    conv3d_weight_grad,
)
from fastconv.functional.padding import pad, pad_grad
from fastconv.nn.kernel import KernelLayer
from fastconv.nn.layer import EVALUATION, Field, register
from fastconv.plan import PADDING_MODES

# By the number of spatial axes.
_FORWARD = {1: conv1d, 2: conv2d, 3: conv3d}
_INPUT_GRAD = {1: conv1d_input_grad, 2: conv2d_input_grad, 3: conv3d_input_grad}
_WEIGHT_GRAD = {1: conv1d_weight_grad, 2: conv2d_weight_grad, 3: conv3d_weight_grad}


class Convolution(KernelLayer):
    """What the convolution layers share; ``rank`` is the number of spatial axes."""

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        bias=True,
        padding_mode="zeros",
        *,
        algorithm="auto",
        dtype=np.float32,
        seed=None,
    ):
        super().__init__()
        self._set_place(in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        checks.choice("padding_mode", padding_mode, tuple(PADDING_MODES))
        checks.choice("algorithm", algorithm, selection.NAMES)
        self.padding_mode = padding_mode
        self.algorithm = algorithm
        self._create_parameters(self.out_channels, self.in_channels // self.groups, bias, dtype)
        self._smallest = self._smallest_geometry()
        self.initialize(checks.generator("seed", seed))

    def config(self):
        return {**super().config(), "padding_mode": self.padding_mode, "algorithm": self.algorithm}

    def output_shape(self, *input_shapes):
        return self._geometry(*input_shapes).output_shape

    def macs(self, *input_shapes):
        return self._geometry(*input_shapes).multiplications

    @property
    def receptive_field(self):
        """As in :attr:`Layer.receptive_field`.

        With "same" padding and a stride the padding depends on the input; taken is that of an input
        which the stride divides.
        """
        kernel = self._smallest.input_size
        if self.padding == "same":
            low = tuple(max(k - s, 0) // 2 for k, s in zip(kernel, self.stride, strict=True))
        else:
            low = tuple(pair[0] for pair in self._smallest.padding)
        return Field(kernel, self.stride, low)

    def forward(self, x, mode=EVALUATION):
        self._check_input(x.shape)
        y = _FORWARD[self.rank](
            x,
            self.weight,
            self.bias,
            groups=self.groups,
            padding_mode=self.padding_mode,
            algorithm=self.algorithm,
            num_threads=mode.num_threads,
            **self._place(),
        )
        return y, x

    def backward(self, grad_output, x, mode=EVALUATION):
        if self.padding_mode == "zeros":
            return self._gradients(grad_output, x, self.padding, mode)
        padding = self._geometry(x.shape).padding
        amounts = [amount for pair in reversed(padding) for amount in pair]
        padded = pad(x, amounts, self.padding_mode, num_threads=mode.num_threads)
        (grad,), grads = self._gradients(grad_output, padded, 0, mode)
        if grad is not None:
            grad = pad_grad(grad, x.shape, amounts, self.padding_mode, num_threads=mode.num_threads)
        return (grad,), grads

    def _gradients(self, grad_output, x, padding, mode):
        options = {
            "groups": self.groups,
            "num_threads": mode.num_threads,
            **self._place(),
            "padding": padding,
        }
        grads = {"weight": _WEIGHT_GRAD[self.rank](grad_output, x, self.weight.shape, **options)}
        grads |= self._bias_grad(grad_output)
        grad_input = None
        if mode.input_grad:
            grad_input = _INPUT_GRAD[self.rank](grad_output, self.weight, x.shape, **options)
        return (grad_input,), grads


@register
class Conv1d(Convolution):
    """1-D convolution (cross-correlation) of (N, C_in, W) to (N, C_out, W_out).

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, algorithm,
    dtype, seed
        As for :class:`Conv2d`, with one spatial axis.

    Attributes
    ----------
    weight : ndarray, shape (C_out, C_in/groups, k_w)
    bias : ndarray, shape (C_out,), or None

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range.
    """

    rank = 1


@register
class Conv2d(Convolution):
    """2-D convolution (cross-correlation) of (N, C_in, H, W) to (N, C_out, H_out, W_out).

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int or (int, int)
    stride, dilation : int or (int, int), default 1
    padding : int, (int, int), ((top, bottom), (left, right)), "valid", "same" or "full", default 0
    groups : int, default 1
    bias : bool, default True
    padding_mode : {"zeros", "reflect", "replicate", "circular"}, default "zeros"
    algorithm : str, default "auto"
        Of the forward pass; as in :func:`fastconv.conv2d`. "fastest" goes by measured times, so that two
        runs may choose, and round, differently.
    dtype : float32 or float64, default float32
    seed : int or numpy.random.Generator, optional
        Initial parameters are drawn from ``numpy.random.default_rng(seed)``: weight and bias uniformly
        within ±1/√(C_in/groups · k_h · k_w), as PyTorch does (He et al. 2015 with gain √⅓). Default: fresh
        entropy.

    Attributes
    ----------
    weight : ndarray, shape (C_out, C_in/groups, k_h, k_w)
    bias : ndarray, shape (C_out,), or None

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range.
    """

    rank = 2


@register
class Conv3d(Convolution):
    """3-D convolution (cross-correlation) of (N, C_in, D, H, W) to (N, C_out, D_out, H_out, W_out).

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, algorithm,
    dtype, seed
        As for :class:`Conv2d`, with three spatial axes.

    Attributes
    ----------
    weight : ndarray, shape (C_out, C_in/groups, k_d, k_h, k_w)
    bias : ndarray, shape (C_out,), or None

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range.
    """

    rank = 3
