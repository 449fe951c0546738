"""Arguments that are numbers, sizes or names: whatever comes instead is refused by the argument's name."""

import numpy as np
import pytest

import fastconv as fc
from fastconv import functional, nn, training

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 4, 6, 6)).astype(np.float32)
ROW = X[0, 0, 0, :4]
WEIGHT = RNG.standard_normal((8, 4, 3, 3)).astype(np.float32)
# No argument below takes any of these.
BYTES = memoryview(np.eye(2, dtype=int))
WRONG = ["zz", b"ab", {}, {1}, object(), 1j, np.complex64(1), ((1, 1), 2, 3), np.array([[None]]), len, BYTES]

CALLS = {
    # what is called, with what; the names of the arguments to spoil
    "conv2d": (fc.conv2d, {"x": X, "weight": WEIGHT}, "x weight bias stride padding dilation groups"),
    "plan_conv2d": (fc.plan_conv2d, {"input_shape": X.shape, "weight": WEIGHT}, "input_shape dtype calls"),
    "conv_transpose2d": (
        fc.conv_transpose2d,
        {"x": X, "weight": WEIGHT.swapaxes(0, 1)},
        "x stride padding output_padding dilation groups",
    ),
    "max_pool2d": (functional.max_pool2d, {"x": X, "kernel_size": 2}, "kernel_size stride padding dilation"),
    "adaptive_avg_pool2d": (functional.adaptive_avg_pool2d, {"x": X, "output_size": 2}, "output_size"),
    "interpolate to": (functional.interpolate, {"x": X, "size": 3}, "x size"),
    "interpolate by": (functional.interpolate, {"x": X, "scale_factor": 2}, "scale_factor mode"),
    "pad": (functional.pad, {"x": X, "pad": (1, 1)}, "pad mode value"),
    "pad_grad": (
        functional.pad_grad,
        {"grad_output": X, "input_shape": X.shape, "pad": (0, 0)},
        "input_shape",
    ),
    "batch_norm": (
        functional.batch_norm,
        {"x": X, "running_mean": ROW.copy(), "running_var": ROW**2, "training": True},
        "running_mean running_var weight momentum eps training",
    ),
    "batch_norm_training": (functional.batch_norm_training, {"x": X}, "eps"),
    "batch_norm_grad": (
        functional.batch_norm_grad,
        {"grad_output": X, "x": X, "mean": ROW, "var": ROW**2},
        "mean var eps training",
    ),
    "layer_norm": (functional.layer_norm, {"x": X, "normalized_shape": 6}, "normalized_shape eps"),
    "layer_norm_grad": (functional.layer_norm_grad, {"grad_output": X, "x": X, "normalized_shape": 6}, "eps"),
    "group_norm": (functional.group_norm, {"x": X, "num_groups": 2}, "num_groups eps"),
    "group_norm_grad": (functional.group_norm_grad, {"grad_output": X, "x": X, "num_groups": 2}, "eps"),
    "instance_norm": (functional.instance_norm, {"x": X}, "eps"),
    "local_response_norm": (functional.local_response_norm, {"x": X, "size": 3}, "size alpha beta k"),
    "scaled_dot_product_attention": (
        functional.scaled_dot_product_attention,
        {"query": X, "key": X, "value": X},
        "scale",
    ),
    "pseudo_inverse": (functional.pseudo_inverse, {"weight": WEIGHT, "input_shape": (4, 4, 4)}, "rtol"),
    "softmax": (functional.softmax, {"x": X}, "dim"),
    "softmax_grad": (functional.softmax_grad, {"grad_output": X, "y": X}, "dim"),
    "log_softmax": (functional.log_softmax, {"x": X}, "dim"),
    "log_softmax_grad": (functional.log_softmax_grad, {"grad_output": X, "y": X}, "dim"),
    "leaky_relu": (functional.leaky_relu, {"x": X}, "negative_slope"),
    "leaky_relu_grad": (functional.leaky_relu_grad, {"grad_output": X, "x": X}, "negative_slope"),
    "elu": (functional.elu, {"x": X}, "alpha"),
    "elu_grad": (functional.elu_grad, {"grad_output": X, "x": X}, "alpha"),
    "softplus": (functional.softplus, {"x": X}, "beta threshold"),
    "softplus_grad": (functional.softplus_grad, {"grad_output": X, "x": X}, "beta threshold"),
    "Conv2d": (
        nn.Conv2d,
        {"in_channels": 4, "out_channels": 8, "kernel_size": 3},
        "in_channels kernel_size stride padding dilation groups dtype seed",
    ),
    "ConvTranspose2d": (
        nn.ConvTranspose2d,
        {"in_channels": 4, "out_channels": 8, "kernel_size": 3},
        "kernel_size stride padding output_padding dtype seed",
    ),
    "Bottleneck": (nn.Bottleneck, {"in_channels": 4, "channels": 4}, "kernel_size stride dtype seed"),
    "Upsample to": (nn.Upsample, {"size": 3}, "size"),
    "Upsample by": (nn.Upsample, {"scale_factor": 2}, "scale_factor"),
    "ZeroPad2d": (nn.ZeroPad2d, {"padding": 1}, "padding"),
    "ConstantPad2d": (nn.ConstantPad2d, {"padding": 1, "value": 0}, "padding value"),
    "BatchNorm2d": (nn.BatchNorm2d, {"num_features": 4}, "num_features eps momentum dtype"),
    "LayerNorm": (nn.LayerNorm, {"normalized_shape": 4}, "normalized_shape eps"),
    "LocalResponseNorm": (nn.LocalResponseNorm, {"size": 3}, "size alpha beta k"),
    "LeakyReLU": (nn.LeakyReLU, {}, "negative_slope"),
    "Dropout": (nn.Dropout, {}, "p"),
    "Linear": (nn.Linear, {"in_features": 4, "out_features": 2}, "in_features dtype seed"),
    "SGD": (training.SGD, {}, "lr momentum weight_decay"),
    "Adam": (training.Adam, {}, "lr betas eps weight_decay"),
    "load": (fc.load, {}, "path"),
    "save": (nn.Sequential(nn.ReLU()).save, {}, "path"),
}


@pytest.mark.parametrize("name", CALLS)
def test_refused_by_name(name):
    call, arguments, spoiled = CALLS[name]
    for argument in spoiled.split():
        for wrong in WRONG:
            if argument in ("path", "seed") and isinstance(wrong, str | tuple):
                continue  # a path; a sequence of integers, which seeds NumPy's generators
            with pytest.raises((TypeError, ValueError)) as caught:
                call(**{**arguments, argument: wrong})
            assert str(caught.value).startswith(argument), (argument, wrong)


def algorithm(name):
    return fc.conv2d(X, WEIGHT, algorithm=name)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("stride must be an integer of at most", lambda: fc.conv2d(X, WEIGHT, stride=10**30)),
        ("dim must be an axis of 4, from -4 to 3", lambda: functional.softmax(X, 4)),
        ("dim must be an axis of 4, from -4 to 3", lambda: functional.log_softmax(X, -5)),
        ("eps must be a number >= 0, got -1", lambda: functional.group_norm(X, 2, eps=-1)),
        ("beta must be a number > 0", lambda: functional.softplus(X, 0)),
        ("running_mean must be a writeable", lambda: functional.batch_norm(X, [0.0] * 4, ROW, training=True)),
        ("x must be", lambda: functional.interpolate(X[0, 0], 3)),
        ("scale_factor must give an image that fits", lambda: functional.interpolate(X, scale_factor=10**30)),
        ("algorithm must be .* got 'winogard': did you mean 'winograd'", lambda: algorithm("winogard")),
        ("algorithm must be .* got 'zz'$", lambda: algorithm("zz")),
        ("indices must be an array", lambda: functional.max_pool_grad(X, [[1], [2, 3]], X.shape)),
        (
            r"grad_output must have shape \(2, 4, 6, out_features\)",
            lambda: functional.linear_weight_grad(ROW, X),
        ),
        (
            "running_mean and running_var must be given together",
            lambda: functional.batch_norm(X, ROW.copy(), None, training=True),
        ),
        (
            "running_mean and running_var must be given with use_input_stats=False",
            lambda: functional.instance_norm(X, use_input_stats=False),
        ),
        (
            "gamma must be a number, got True",
            lambda: functional.attention_conv2d(X, *[WEIGHT[:4, :, :1, :1]] * 3, gamma=True),
        ),
        ("input must have 4 axes", lambda: nn.Conv2d(4, 8, 3)(X[0])),
        ("input must have 4 axes", lambda: nn.Conv2d(3, 8, 3)(X)),
    ],
)
def test_refused_values(message, call):
    with pytest.raises(ValueError, match=message):
        call()


def test_dtype_none_is_not_float64():
    with pytest.raises(TypeError, match="dtype must be a dtype such as numpy.float32, got None"):
        nn.Conv2d(4, 8, 3, dtype=None)


def test_batch_norm_changes_nothing_when_it_refuses():
    mean, var = ROW.copy(), ROW**2
    for wrong in ({"momentum": "x"}, {"eps": "x"}, {"running_var": [1.0] * 4}, {"bias": ROW[:1]}):
        with pytest.raises((TypeError, ValueError)):
            functional.batch_norm(X, **{"running_mean": mean, "running_var": var, "training": True, **wrong})
    np.testing.assert_array_equal(mean, ROW)
    np.testing.assert_array_equal(var, ROW**2)


def test_numpy_numbers_are_numbers():
    one, two = np.int64(1), np.array(2)
    np.testing.assert_array_equal(
        functional.max_pool2d(X, two, [one, two], np.array([1, 0])),
        functional.max_pool2d(X, 2, (1, 2), (1, 0)),
    )
    np.testing.assert_array_equal(
        fc.conv_transpose2d(X, WEIGHT.swapaxes(0, 1), stride=two, output_padding=one),
        fc.conv_transpose2d(X, WEIGHT.swapaxes(0, 1), stride=2, output_padding=1),
    )
    np.testing.assert_array_equal(
        functional.leaky_relu(X, np.float32(0.1)), functional.leaky_relu(X, float(np.float32(0.1)))
    )
