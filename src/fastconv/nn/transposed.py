"""Transposed convolution layers."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from fastconv import checks, functional
from fastconv.functional.transposed import transposed_geometry
from fastconv.nn.kernel import KernelLayer
from fastconv.nn.layer import EVALUATION, Field, register


class _ConvTranspose(KernelLayer):
    """What the three layers share; only ``rank``, the number of spatial axes, differs."""

    def __init__(
        self, in_channels, out_channels, kernel_size, stride=1, padding=0, output_padding=0, groups=1,
        bias=True, dilation=1, *, dtype=np.float32, seed=None,
    ):  # fmt: skip
        super().__init__()
        self._set_place(in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        self.output_padding = checks.per_axis("output_padding", output_padding, self.rank, 0)
        self._create_parameters(self.in_channels, self.out_channels // self.groups, bias, dtype)
        # Any input will do to check the arguments, if it is too large for the padding to leave nothing of it.
        self._lows = [low for low, _ in self._geometry((1, self.in_channels, *self._large())).padding]
        self.initialize(checks.generator("seed", seed))

    def config(self):
        return {**super().config(), "output_padding": self.output_padding}

    def _large(self):
        numbers = np.asarray(self.padding, object).ravel().tolist()
        largest = max((n for n in numbers if isinstance(n, int)), default=0)
        return [2 * max(largest, 0) + 1] * self.rank

    def _geometry(self, input_shape):
        """Of the convolution that this is the transposed of."""
        self._check_input(input_shape)
        return transposed_geometry(
            tuple(input_shape), self.weight.shape, self.stride, self.padding, self.output_padding,
            self.groups, self.dilation, self.dtype,
        )  # fmt: skip

    def output_shape(self, *input_shapes):
        return self._geometry(*input_shapes).input_shape

    def macs(self, *input_shapes):
        (shape,) = input_shapes
        self._geometry(shape)
        return shape[0] * math.prod(shape[2:]) * self.weight.size

    @property
    def receptive_field(self):
        """As in :attr:`Layer.receptive_field`, in fractions of an input pixel.

        Output pixel i meets the inputs o = (i + p − u·d) / s for the taps u where that is an integer: within
        an interval of length d·(k − 1)/s, which moves by 1/s from one output pixel to the next.
        """
        spans = [
            Fraction(d * (k - 1), s)
            for d, k, s in zip(self.dilation, self.kernel_size, self.stride, strict=True)
        ]
        starts = (
            span - Fraction(low, s) for span, low, s in zip(spans, self._lows, self.stride, strict=True)
        )
        return Field(
            tuple(span + 1 for span in spans), tuple(Fraction(1, s) for s in self.stride), tuple(starts)
        )

    def forward(self, x, mode=EVALUATION):
        function = getattr(functional, f"conv_transpose{self.rank}d")
        y = function(
            x, self.weight, self.bias, output_padding=self.output_padding, groups=self.groups,
            num_threads=mode.num_threads, **self._place(),
        )  # fmt: skip
        return y, x

    def backward(self, grad_output, x, mode=EVALUATION):
        padding, crop = self._adjoint(self._geometry(x.shape), x.shape[2:])
        options = {
            "groups": self.groups,
            "num_threads": mode.num_threads,
            **self._place(),
            "padding": padding,
        }
        seen = grad_output[crop]
        weight_grad = getattr(functional, f"conv{self.rank}d_weight_grad")
        grads = {"weight": weight_grad(x, seen, self.weight.shape, **options)}
        grads |= self._bias_grad(grad_output)
        grad_input = None
        if mode.input_grad:
            grad_input = getattr(functional, f"conv{self.rank}d")(seen, self.weight, **options)
        return (grad_input,), grads

    def _adjoint(self, geometry, input_size):
        """Padding and part of the output with which the convolution gives exactly ``input_size``.

        An output padding of a whole stride or more would make it see inputs that there are not.
        """
        padding, crop = [], [slice(None), slice(None)]
        for (low, high), extra, step, size in zip(
            geometry.padding, self.output_padding, self.stride, geometry.input_size, strict=True
        ):
            end = high - max(0, extra - step + 1)
            padding.append((low, max(0, end)))
            crop.append(slice(0, size + min(0, end)))
        return tuple(padding), tuple(crop)


@register
class ConvTranspose1d(_ConvTranspose):
    """1-D transposed convolution of (N, C_in, W) to (N, C_out, W_out).

    As :class:`ConvTranspose2d`, with one spatial axis and a weight of shape (C_in, C_out/groups, k_w).
    """

    rank = 1


@register
class ConvTranspose2d(_ConvTranspose):
    """2-D transposed convolution of (N, C_in, H, W) to (N, C_out, H_out, W_out).

    .. math:: y[n, m, i s + u d - p, j s + v d - p] \\mathrel{+}= x[n, c, i, j]\\, w[c, m, u, v]

    onto a ``y`` of the bias (Zeiler et al., "Deconvolutional networks", CVPR 2010); see
    :func:`fastconv.conv_transpose2d`.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int or (int, int)
    stride, dilation : int or (int, int), default 1
    padding : int, (int, int) or ((top, bottom), (left, right)), default 0
        Output pixels left out at the borders.
    output_padding : int or (int, int), default 0
        Output pixels added at the end; smaller than the stride or the dilation of its axis.
    groups : int, default 1
    bias : bool, default True
    dtype : float32 or float64, default float32
    seed : int or numpy.random.Generator, optional
        Initial parameters are drawn from ``numpy.random.default_rng(seed)``: weight and bias uniformly
        within ±1/√(C_out/groups · k_h · k_w), as PyTorch does. Default: fresh entropy.

    Attributes
    ----------
    weight : ndarray, shape (C_in, C_out/groups, k_h, k_w)
    bias : ndarray, shape (C_out,), or None

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range.
    """

    rank = 2


@register
class ConvTranspose3d(_ConvTranspose):
    """3-D transposed convolution of (N, C_in, D, H, W) to (N, C_out, D_out, H_out, W_out).

    As :class:`ConvTranspose2d`, with three spatial axes and a weight of shape
    (C_in, C_out/groups, k_d, k_h, k_w).
    """

    rank = 3
