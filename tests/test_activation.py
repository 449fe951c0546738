"""Activations: their values on every instruction-set level, whatever lies how in memory."""

import math

import numpy as np
import pytest

import fastconv as fc
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
    flat = RNG.standard_normal(2 * 5 * 67 * 61).astype(np.float32)
    threads_before = fc.get_num_threads()
    with kernels.use(level):
        fc.set_num_threads(1)
        expected, slopes = function(flat), gradient(flat[::-1], flat)
        try:
            fc.set_num_threads(2)
            images = flat.reshape(2, 5, 67, 61)
            last = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
            for x in (images, last, images.astype(">f4"), np.repeat(images, 2, axis=3)[..., ::2]):
                kept = x.copy()
                y = function(x)
                assert_same_bits(np.ascontiguousarray(y), expected.reshape(images.shape))
                assert_same_bits(
                    np.ascontiguousarray(gradient(flat[::-1].reshape(images.shape), x)),
                    slopes.reshape(images.shape),
                )
                assert np.argsort(y.strides).tolist() == np.argsort(x.strides).tolist()
                assert_same_bits(x, kept)
        finally:
            fc.set_num_threads(threads_before)
        for count in range(40):
            assert_same_bits(function(flat[:count]), expected[:count])
        assert function(flat[:0].reshape(3, 0)).shape == (3, 0)
        assert function(flat[0].reshape(())).shape == ()
        assert_same_bits(function(flat[:40][::-1]), expected[:40][::-1])
        reversed_both = flat[:1830].reshape(30, 61)[::-1, ::-1]
        assert_same_bits(np.ascontiguousarray(function(reversed_both)), expected[:1830][::-1].reshape(30, 61))
        assert_same_bits(function(np.broadcast_to(flat[:7], (3, 7))), np.tile(expected[:7], (3, 1)))
