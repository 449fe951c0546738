"""Resampling layers."""

from __future__ import annotations

from fractions import Fraction

from fastconv import checks
from fastconv.functional.pooling import image_shape
from fastconv.functional.resampling import MODES, Resampling, interpolate, interpolate_grad
from fastconv.nn.layer import EVALUATION, Field, Layer, register

# Input pixels beside the nearest that an output pixel blends, on each side.
_REACH = {"nearest": 0, "nearest-exact": 0, "linear": 1, "bilinear": 1, "trilinear": 1, "bicubic": 2}


@register
class Upsample(Layer):
    """Resample (N, C, ...) to another size; as :func:`fastconv.functional.interpolate`.

    Parameters
    ----------
    size : int or one a spatial axis, optional
    scale_factor : float or one a spatial axis, optional
        Instead of ``size``.
    mode : str, default "nearest"
        "nearest", "nearest-exact", "linear", "bilinear", "trilinear", "bicubic" or "area".
    align_corners : bool, optional
        Default False. Only of the linear and cubic modes.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range, or they do not go together.
    """

    def __init__(self, size=None, scale_factor=None, mode="nearest", align_corners=None):
        super().__init__()
        checks.choice("mode", mode, tuple(MODES))
        size, scale_factor = checks.frozen(size), checks.frozen(scale_factor)
        given = size if size is not None else scale_factor
        # The rank is known from one of the arguments, or else from the first input.
        rank = len(given) if isinstance(given, tuple) and len(given) in MODES[mode] else MODES[mode][-1]
        Resampling.create(rank, size, scale_factor, mode, align_corners)
        self.size, self.scale_factor, self.mode, self.align_corners = size, scale_factor, mode, align_corners

    def config(self):
        return {
            "size": self.size,
            "scale_factor": self.scale_factor,
            "mode": self.mode,
            "align_corners": self.align_corners,
        }

    def output_shape(self, *input_shapes):
        (shape,) = input_shapes
        shape = image_shape(shape, "input")
        resampling = Resampling.create(len(shape) - 2, *self.config().values())
        return (*shape[:2], *resampling.output_size(shape[2:]))

    @property
    def receptive_field(self):
        """Of an enlargement by whole numbers; None, the whole image, where it depends on the image's size."""
        factor = self.scale_factor
        single = not isinstance(factor, tuple)
        factors = (factor,) * (2 if 2 in MODES[self.mode] else MODES[self.mode][0]) if single else factor
        known = factor is not None and all(number == int(number) for number in factors)
        if not known or self.align_corners or self.mode == "area":
            return None
        reach = _REACH[self.mode]
        # Nearest: the whole number in (o/s − 1, o/s]. Linear: those within 1 of (o + ½)/s − ½.
        strides = tuple(Fraction(1, int(number)) for number in factors)
        kernel = tuple(2 - stride + reach if reach < 2 else 5 - stride for stride in strides)
        start = {0: Fraction(1), 1: Fraction(3, 2), 2: Fraction(5, 2)}[reach]
        return Field(kernel, strides, tuple(start - stride for stride in strides))

    def forward(self, x, mode=EVALUATION):
        return interpolate(x, **self.config(), num_threads=mode.num_threads), x.shape

    def backward(self, grad_output, shape, mode=EVALUATION):
        grad = interpolate_grad(grad_output, shape, **self.config(), num_threads=mode.num_threads)
        return (grad,), {}
