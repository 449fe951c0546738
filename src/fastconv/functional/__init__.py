"""Functions on arrays: ndarray in, ndarray out, no state."""

from fastconv.functional.activation import log_softmax, relu, relu_grad, softmax, softmax_grad
from fastconv.functional.attention import (
    attention_conv2d,
    attention_conv2d_grad,
    attention_conv2d_training,
    scaled_dot_product_attention,
    scaled_dot_product_attention_grad,
)
from fastconv.functional.convolution import (
    conv1d,
    conv2d,
    conv2d_input_grad,
    conv2d_weight_grad,
    conv3d,
    plan_conv1d,
    plan_conv2d,
    plan_conv3d,
)
from fastconv.functional.deformable import (
    deform_conv2d,
    deform_conv2d_input_grads,
    deform_conv2d_weight_grad,
)
from fastconv.functional.linear import linear, linear_input_grad, linear_weight_grad
from fastconv.functional.matrix import conv_matrix
from fastconv.functional.normalization import (
    batch_norm,
    batch_norm_grad,
    batch_norm_training,
    batch_norm_training_grad,
)
from fastconv.functional.pooling import (
    avg_pool2d,
    avg_pool2d_grad,
    global_avg_pool2d,
    max_pool2d,
    max_pool2d_grad,
)

__all__ = [
    "attention_conv2d",
    "attention_conv2d_grad",
    "attention_conv2d_training",
    "avg_pool2d",
    "avg_pool2d_grad",
    "batch_norm",
    "batch_norm_grad",
    "batch_norm_training",
    "batch_norm_training_grad",
    "conv1d",
    "conv2d",
    "conv2d_input_grad",
    "conv2d_weight_grad",
    "conv3d",
    "conv_matrix",
    "deform_conv2d",
    "deform_conv2d_input_grads",
    "deform_conv2d_weight_grad",
    "global_avg_pool2d",
    "linear",
    "linear_input_grad",
    "linear_weight_grad",
    "log_softmax",
    "max_pool2d",
    "max_pool2d_grad",
    "plan_conv1d",
    "plan_conv2d",
    "plan_conv3d",
    "relu",
    "relu_grad",
    "scaled_dot_product_attention",
    "scaled_dot_product_attention_grad",
    "softmax",
    "softmax_grad",
]
