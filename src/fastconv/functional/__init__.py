"""Functions on arrays: ndarray in, ndarray out, no state."""

from fastconv.functional.convolution import conv2d, conv2d_input_grad, conv2d_weight_grad, plan_conv2d
from fastconv.functional.linear import linear, linear_input_grad, linear_weight_grad
from fastconv.functional.matrix import conv_matrix

__all__ = [
    "conv2d",
    "conv2d_input_grad",
    "conv2d_weight_grad",
    "conv_matrix",
    "linear",
    "linear_input_grad",
    "linear_weight_grad",
    "plan_conv2d",
]
