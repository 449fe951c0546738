"""Dropout."""

from __future__ import annotations

import numpy as np

from fastconv import checks
from fastconv.nn.layer import EVALUATION, Layer, register


@register
class Dropout(Layer):
    """In training, sets each element to 0 with probability ``p`` and divides the others by ``1 − p``.

    The random numbers come from the generator of the training loop, which its seed determines.
    Srivastava et al., "Dropout", 2014.

    Parameters
    ----------
    p : float, default 0.5
        From 0 to 1.
    """

    def __init__(self, p=0.5):
        super().__init__()
        self.p = checks.number("p", p, 0, 1, "a probability from 0 to 1")

    def config(self):
        return {"p": self.p}

    def output_shape(self, *input_shapes):
        return input_shapes[0]

    def forward(self, x, mode=EVALUATION):
        if not mode.training:
            return x, None
        rng = np.random.default_rng() if mode.rng is None else mode.rng
        kept = rng.random(x.shape, np.float32) >= self.p
        factor = kept * x.dtype.type(1 / (1 - self.p) if self.p < 1 else 0)
        return x * factor, factor

    def backward(self, grad_output, factor, mode=EVALUATION):
        return (grad_output if factor is None else grad_output * factor,), {}
