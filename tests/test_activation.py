"""Activations: their values on every instruction-set level, whatever lies how in memory."""

import math

import numpy as np
import pytest

from fastconv import functional, kernels
from support import LEVELS, assert_same_bits

RNG = np.random.default_rng(5)
# What a gradient takes besides: these the result, the others the input.
FROM_OUTPUT = ("relu", "sigmoid", "tanh")
ACTIVATIONS = {
    "relu": lambda x: max(x, 0),
    "relu6": lambda x: min(max(x, 0), 6),
    "leaky_relu": lambda x: x if x > 0 else 0.01 * x,
    "elu": lambda x: x if x > 0 else math.expm1(x),
    "selu": lambda x: 1.0507009873554805 * (x if x > 0 else 1.6732632423543772 * math.expm1(x)),
    "gelu": lambda x: x * math.erfc(-x / math.sqrt(2)) / 2,
    "silu": lambda x: x / (1 + math.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "tanh": math.tanh,
    "softplus": lambda x: math.log1p(math.exp(x)) if x <= 20 else x,
    "hardswish": lambda x: x * min(max(x + 3, 0), 6) / 6,
    "hardsigmoid": lambda x: min(max(x + 3, 0), 6) / 6,
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_activations_are_their_definitions(name, dtype, level):
    x = np.concatenate([np.linspace(-30, 30, 4801), np.linspace(-1e-3, 1e-3, 99)]).astype(dtype)
    expected = np.array([ACTIVATIONS[name](value) for value in x.astype(float).tolist()])
    with kernels.use(level):
        y = getattr(functional, name)(x)
    # The tail of gelu goes with exp(−x²/2): of √½ · x, twice rounded, here and in the reference.
    unit, tail = np.finfo(dtype).eps, 2 * x * x if name == "gelu" else 0 * x
    held = np.abs(expected) > 1e3 * np.finfo(dtype).tiny
    assert np.all(np.abs(y - expected)[held] <= ((4 + tail) * unit * np.abs(expected))[held])
    assert np.all(np.abs(y)[~held] <= 2e3 * np.finfo(dtype).tiny)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_slopes_of_activations_are_differences_of_their_definitions(name, dtype, level):
    x = np.linspace(-9.97, 9.99, 1801).astype(dtype)
    step, function = 1e-6, ACTIVATIONS[name]
    slope = [(function(v + step) - function(v - step)) / (2 * step) for v in x.astype(float).tolist()]
    grad = RNG.standard_normal(x.shape).astype(dtype)
    with kernels.use(level):
        value = getattr(functional, name)(x) if name in FROM_OUTPUT else x
        found = getattr(functional, f"{name}_grad")(grad, value)
    np.testing.assert_allclose(found, grad * slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_of_any_memory_format_length_and_team(name, level):
    """The same bits, element by element, in an array that lies as the input does."""
    function, gradient = getattr(functional, name), getattr(functional, f"{name}_grad")
    flat = RNG.standard_normal(2 * 5 * 131 * 67).astype(np.float32)
    with kernels.use(level):
        expected, slopes = function(flat, num_threads=1), gradient(flat[::-1], flat, num_threads=1)
        images = flat.reshape(2, 5, 131, 67)
        last = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        for x in (images, last, images.astype(">f4"), np.repeat(images, 2, axis=3)[..., ::2]):
            kept = x.copy()
            y = function(x, num_threads=2)
            assert_same_bits(np.ascontiguousarray(y), expected.reshape(images.shape))
            assert_same_bits(
                np.ascontiguousarray(gradient(flat[::-1].reshape(images.shape), x, num_threads=2)),
                slopes.reshape(images.shape),
            )
            assert np.argsort(y.strides).tolist() == np.argsort(x.strides).tolist()
            assert_same_bits(x, kept)
        for count in range(40):
            assert_same_bits(function(flat[:count]), expected[:count])
            assert_same_bits(gradient(flat[::-1][:count], flat[:count]), slopes[:count])
            assert_same_bits(function(flat[3:][:count]), expected[3:][:count])
        assert function(flat[:0].reshape(3, 0)).shape == (3, 0)
        assert function(flat[0].reshape(())).shape == ()
        assert_same_bits(function(flat[:40][::-1]), expected[:40][::-1])
        reversed_both = flat[:1830].reshape(30, 61)[::-1, ::-1]
        assert_same_bits(np.ascontiguousarray(function(reversed_both)), expected[:1830][::-1].reshape(30, 61))
        assert_same_bits(function(np.broadcast_to(flat[:7], (3, 7))), np.tile(expected[:7], (3, 1)))


@pytest.mark.parametrize("name", [*ACTIVATIONS, "softmax", "log_softmax", "prelu"])
def test_a_wrong_number_of_threads_is_refused(name):
    weight = (np.ones(3, np.float32),) if name == "prelu" else ()
    for x in (np.zeros((2, 3), np.float32), np.zeros((0, 3), np.float32)):
        for wrong, error in ((0, ValueError), ("2", TypeError), (True, ValueError)):
            with pytest.raises(error, match="^num_threads must be"):
                getattr(functional, name)(x, *weight, num_threads=wrong)
            with pytest.raises(error, match="^num_threads must be"):
                getattr(functional, f"{name}_grad")(x, x, *weight, num_threads=wrong)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "shape", [(3,), (5, 4), (2, 3, 7, 5), (1, 70, 9, 11), (3, 2, 130, 150), (2, 3, 0, 4)]
)
def test_prelu_with_a_slope_a_channel(shape, dtype, level):
    x, grad = RNG.standard_normal((2, *shape)).astype(dtype)
    channels = shape[1] if len(shape) > 1 else 1
    slopes = RNG.standard_normal(channels).astype(dtype)
    wide = slopes.reshape(-1, *(1,) * max(len(shape) - 2, 0))
    expected = np.where(x > 0, x, x * wide), np.where(x > 0, grad, grad * wide)
    axes = tuple(axis for axis in range(len(shape)) if axis != 1)
    sums = np.where(x > 0, 0, grad.astype(float) * x).sum(axis=axes)
    last = np.ascontiguousarray(np.moveaxis(x, 1, -1)) if len(shape) > 1 else x
    with kernels.use(level):
        for form in (x, np.moveaxis(last, -1, 1) if len(shape) > 1 else x, x[::-1]):
            turn = slice(None, None, -1 if form.strides[0] < 0 and x.size else None)
            results = [
                (
                    functional.prelu(form, slopes, num_threads=count),
                    *functional.prelu_grad(grad[turn], form, slopes, num_threads=count),
                )
                for count in (1, 2)
            ]
            for one, other in zip(*results, strict=True):
                assert_same_bits(one, other)
            y, by_input, by_slope = results[0]
            assert_same_bits(np.ascontiguousarray(y[turn]), expected[0])
            assert_same_bits(np.ascontiguousarray(by_input[turn]), expected[1])
            np.testing.assert_allclose(by_slope, sums, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tanh_is_within_one_and_odd(dtype, level):
    x = np.array([-np.inf, -1e30, -9.3, -9.1, -1e-30, -0.0, 0, 1e-30, 9.1, 9.3, 1e30, np.inf], dtype)
    with kernels.use(level):
        y = functional.tanh(x)
        assert np.isnan(functional.tanh(np.array([np.nan], dtype))).all()
    np.testing.assert_array_equal(y, -y[::-1])
    assert np.abs(y).max() == 1
    np.testing.assert_allclose(y, np.tanh(x.astype(float)), rtol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dim", [0, 1, 2, -1])
@pytest.mark.parametrize(
    "shape",
    [
        (3, 5, 4, 7),
        (2, 70, 3, 40),
        (1, 3, 2, 1500),
        (2, 36, 5, 17),
        (3, 4, 1, 67),
        (33, 2, 1, 1),
        (2, 0, 3, 3),
    ],
)
def test_softmax_along_every_axis(shape, dim, dtype, level):
    x = (RNG.standard_normal(shape) * 20).astype(dtype)
    shifted = x.astype(float) - x.max(axis=dim, keepdims=True, initial=-np.inf)
    total = np.exp(shifted).sum(axis=dim, keepdims=True) if x.size else 1.0
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    unit = np.finfo(dtype).eps
    with kernels.use(level):
        y, logarithm = functional.softmax(x, dim), functional.log_softmax(x, dim)
        np.testing.assert_allclose(y, np.exp(shifted) / total, rtol=80 * unit, atol=np.finfo(dtype).tiny)
        np.testing.assert_allclose(logarithm, shifted - np.log(total), rtol=8 * unit, atol=8 * unit)
        of_last = functional.softmax(last, dim)
        np.testing.assert_allclose(of_last, y, rtol=80 * unit, atol=np.finfo(dtype).tiny)
        assert of_last.transpose(0, 2, 3, 1).flags.c_contiguous


@pytest.mark.parametrize("level", LEVELS)
def test_softmax_is_the_same_for_any_team(level):
    with kernels.use(level):
        for shape, dim in (((300, 257), 1), ((2, 33, 999), 1)):
            x = RNG.standard_normal(shape).astype(np.float32)
            assert_same_bits(*(functional.softmax(x, dim, num_threads=count) for count in (1, 2)))
