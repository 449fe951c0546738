"""What the layers with one kernel of weights share: convolutions, transposed and deformable ones."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from fastconv import checks
from fastconv.geometry import ConvGeometry
from fastconv.nn.layer import Layer, Stored, parameter_dtype


class KernelLayer(Layer):
    """Base of layers with a ``weight`` over ``rank`` spatial axes and, where asked for, a ``bias``."""

    rank: ClassVar[int]

    weight = Stored()
    bias = Stored()

    def _set_place(self, in_channels, out_channels, kernel_size, stride, padding, dilation, groups):
        """Check the arguments and set them; ``padding`` is left to :meth:`_geometry`."""
        self.in_channels = checks.integer("in_channels", in_channels, 1)
        self.out_channels = checks.integer("out_channels", out_channels, 1)
        self.kernel_size = checks.per_axis("kernel_size", kernel_size, self.rank, 1)
        self.stride = checks.per_axis("stride", stride, self.rank, 1)
        self.dilation = checks.per_axis("dilation", dilation, self.rank, 1)
        self.groups = checks.integer("groups", groups, 1)
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(
                f"groups must divide in_channels and out_channels, got groups={groups},"
                f" in_channels={in_channels}, out_channels={out_channels}"
            )
        self.padding = checks.frozen(padding)

    def _create_parameters(self, rows, columns, bias, dtype):
        """Weight (rows, columns, kernel) and bias, not yet initialized."""
        dtype = parameter_dtype(dtype)
        self.parameters["weight"] = np.empty((rows, columns, *self.kernel_size), dtype)
        if checks.boolean("bias", bias):
            self.parameters["bias"] = np.empty(self.out_channels, dtype)

    def config(self):
        return {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "kernel_size": self.kernel_size,
            **self._place(),
            "groups": self.groups,
            "bias": self.bias is not None,
            "dtype": self.dtype.name,
        }

    def _place(self):
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}

    def initialize(self, rng):
        bound = 1 / math.sqrt(math.prod(self.weight.shape[1:]))
        for name in ("weight", "bias"):
            if name in self.parameters:
                array = self.parameters[name]
                array[...] = rng.uniform(-bound, bound, array.shape)

    def _check_input(self, shape):
        if len(shape) != self.rank + 2 or shape[1] != self.in_channels:
            raise ValueError(
                f"input must have {self.rank + 2} axes (N, in_channels={self.in_channels}, ...),"
                f" got shape {tuple(shape)}"
            )

    def _geometry(self, input_shape):
        self._check_input(input_shape)
        return ConvGeometry.create(
            input_shape, self.weight.shape, groups=self.groups, dtype=self.dtype, **self._place()
        )

    def _smallest_geometry(self):
        """On an image as large as the kernel, the smallest that every padding accepts."""
        extent = [d * (k - 1) + 1 for k, d in zip(self.kernel_size, self.dilation, strict=True)]
        return self._geometry((1, self.in_channels, *extent))

    def _bias_grad(self, grad_output):
        """The bias's gradient by name; nothing without a bias."""
        if self.bias is None:
            return {}
        return {"bias": grad_output.sum(axis=(0, *range(2, grad_output.ndim)))}
