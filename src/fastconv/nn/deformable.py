"""Deformable convolution layers."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from fastconv import checks
from fastconv.functional.activation import sigmoid, sigmoid_grad
from fastconv.functional.convolution import conv2d
from fastconv.functional.deformable import (
    deform_conv2d,
    deform_conv2d_input_grads,
    deform_conv2d_weight_grad,
    deform_geometry,
)
from fastconv.functional.gradients import conv2d_input_grad, conv2d_weight_grad
from fastconv.nn.kernel import KernelLayer
from fastconv.nn.layer import EVALUATION, Layer, Stored, register


@register
class DeformConv2d(KernelLayer):
    """Deformable convolution of (N, C_in, H, W) to (N, C_out, H_out, W_out) by offsets that it is given.

    Its inputs are the image, the offsets and, for version 2, the mask, as in
    :func:`fastconv.deform_conv2d`, which has formula and sources; the offsets' shape says how many offset
    groups there are. :class:`DeformableConv2d` predicts offsets and mask itself.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int or (int, int)
    stride, dilation : int or (int, int), default 1
    padding : int, (int, int), ((top, bottom), (left, right)), "valid", "same" or "full", default 0
    groups : int, default 1
    bias : bool, default True
    dtype : float32 or float64, default float32
    seed : int or numpy.random.Generator, optional
        Initial parameters are drawn as :class:`Conv2d` does.

    Attributes
    ----------
    weight : ndarray, shape (C_out, C_in/groups, k_h, k_w)
    bias : ndarray, shape (C_out,), or None

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range.
    """

    input_count = None
    rank = 2

    def __init__(
        self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True, *,
        dtype=np.float32, seed=None,
    ):  # fmt: skip
        super().__init__()
        self._configure(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, dtype
        )
        self.initialize(checks.generator("seed", seed))

    def _configure(
        self, in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, dtype
    ):
        self._set_place(in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        self._create_parameters(self.out_channels, self.in_channels // self.groups, bias, dtype)
        self._smallest_geometry()  # refuses a padding that is none

    def output_shape(self, *input_shapes):
        x_shape, offset_shape, mask_shape = _three(input_shapes)
        geometry = self._geometry(x_shape)
        deform_geometry(
            x_shape, offset_shape, self.weight.shape, mask_shape, dtype=self.dtype, **self._place()
        )
        return geometry.output_shape

    def macs(self, *input_shapes):
        return self._geometry(input_shapes[0]).multiplications

    @property
    def receptive_field(self):
        """None: offsets may point anywhere."""
        return None

    def forward(self, *inputs, mode=EVALUATION):
        x, offset, mask = _three(inputs)
        self._geometry(x.shape)
        y = deform_conv2d(
            x, offset, self.weight, self.bias, mask=mask, num_threads=mode.num_threads, **self._place()
        )
        return y, inputs

    def backward(self, grad_output, inputs, mode=EVALUATION):
        x, offset, mask = _three(inputs)
        options = {"mask": mask, "num_threads": mode.num_threads, **self._place()}
        grads = {"weight": deform_conv2d_weight_grad(grad_output, x, offset, self.weight.shape, **options)}
        grads |= self._bias_grad(grad_output)
        input_grads = (None,) * len(inputs)
        if mode.input_grad:
            input_grads = deform_conv2d_input_grads(grad_output, x, offset, self.weight, **options)
        return input_grads[: len(inputs)], grads


def _three(inputs):
    """x, offset and mask, or their shapes; None for a mask that is not there."""
    if len(inputs) not in (2, 3):
        raise TypeError(f"DeformConv2d takes 2 or 3 inputs (x, offset, mask), got {len(inputs)}")
    return inputs if len(inputs) == 3 else (*inputs, None)


@register
class DeformableConv2d(DeformConv2d):
    """Deformable convolution by offsets that an ordinary convolution of the same image predicts.

    .. math:: \\Delta, \\mu' = conv(x);\\quad y = deform(x, \\Delta, \\mathrm{sigmoid}(\\mu'))

    The predicting convolution has the kernel, stride, padding and dilation of the other and starts from
    zero, so that training starts from a regular grid, with masks of one half (Dai et al., arXiv 1703.06211,
    sec. 2.1; Zhu et al., arXiv 1811.11168, sec. 3.2).

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, dtype, seed
        As for :class:`DeformConv2d`.
    offset_groups : int, default 1
        Divides ``in_channels``; each run of channels gets offsets of its own.
    modulated : bool, default True
        Whether there is a mask (version 2) or not (version 1).

    Attributes
    ----------
    weight : ndarray, shape (C_out, C_in/groups, k_h, k_w)
    bias : ndarray, shape (C_out,), or None
    offset_weight : ndarray, shape (offset_groups · k_h · k_w · (3 or 2), C_in, k_h, k_w)
        All offsets, as :func:`fastconv.deform_conv2d` wants them, and then all masks.
    offset_bias : ndarray, as many values

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range.
    """

    input_count = 1
    offset_weight = Stored()
    offset_bias = Stored()

    def __init__(
        self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True,
        offset_groups=1, modulated=True, *, dtype=np.float32, seed=None,
    ):  # fmt: skip
        Layer.__init__(self)
        self._configure(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, dtype
        )
        self.offset_groups = checks.integer("offset_groups", offset_groups, 1)
        if self.in_channels % self.offset_groups:
            raise ValueError(
                f"offset_groups must divide in_channels, got offset_groups={offset_groups},"
                f" in_channels={in_channels}"
            )
        self.modulated = checks.boolean("modulated", modulated)
        self._offsets = 2 * self.offset_groups * math.prod(self.kernel_size)
        predicted = self._offsets // 2 * 3 if self.modulated else self._offsets
        shape = (predicted, self.in_channels, *self.kernel_size)
        self.parameters["offset_weight"] = np.empty(shape, self.dtype)
        self.parameters["offset_bias"] = np.empty(predicted, self.dtype)
        self.initialize(checks.generator("seed", seed))

    def initialize(self, rng):
        super().initialize(rng)
        self.offset_weight = np.zeros(self.offset_weight.shape)
        self.offset_bias = np.zeros(self.offset_bias.shape)

    def config(self):
        return {**super().config(), "offset_groups": self.offset_groups, "modulated": self.modulated}

    def output_shape(self, *input_shapes):
        return self._geometry(*input_shapes).output_shape

    def macs(self, *input_shapes):
        geometry = self._geometry(*input_shapes)
        return geometry.multiplications + (
            geometry.batch * math.prod(geometry.output_size) * self.offset_weight.size
        )

    def forward(self, x, mode=EVALUATION):
        self._geometry(x.shape)
        predicted = conv2d(
            x, self.offset_weight, self.offset_bias, num_threads=mode.num_threads, **self._place()
        )
        if not self.modulated:
            return super().forward(x, predicted, mode=mode)
        mask = sigmoid(predicted[:, self._offsets :], num_threads=mode.num_threads)
        return super().forward(x, predicted[:, : self._offsets], mask, mode=mode)

    def backward(self, grad_output, inputs, mode=EVALUATION):
        needed = dataclasses.replace(mode, input_grad=True)
        (grad_input, *grad_predicted), grads = super().backward(grad_output, inputs, needed)
        if self.modulated:
            grad_predicted[1] = sigmoid_grad(grad_predicted[1], inputs[2], num_threads=mode.num_threads)
        grad_predicted = np.concatenate(grad_predicted, axis=1)
        options = {"num_threads": mode.num_threads, **self._place()}
        x, weight = inputs[0], self.offset_weight
        grads["offset_weight"] = conv2d_weight_grad(grad_predicted, x, weight.shape, **options)
        grads["offset_bias"] = grad_predicted.sum(axis=(0, 2, 3))
        if not mode.input_grad:
            return (None,), grads
        return (grad_input + conv2d_input_grad(grad_predicted, weight, x.shape, **options),), grads
