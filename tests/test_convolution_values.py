"""What comes out: bias, ReLU, padding modes, named paddings, infinities and NaN."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastconv as fc
import reference
import strategies
from fastconv import kernels
from support import (
    ALGORITHMS,
    DTYPES,
    LEVELS,
    SUMMING,
    assert_same_bits,
    assert_within_bound,
    error_bound,
    expected_conv2d,
)

RNG = np.random.default_rng(4)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@settings(max_examples=10)
@given(data=st.data())
def test_bias_and_relu(algorithm, level, data):
    case = data.draw(strategies.cases_for(algorithm))
    for dtype in DTYPES:
        x, weight, bias = case.integers(dtype) if algorithm in SUMMING else case.normal(dtype)
        with kernels.use(level):
            for given_bias in (bias, None):
                keywords = {"algorithm": algorithm, "num_threads": 1, **case.keywords}
                y = fc.conv2d(x, weight, given_bias, activation="relu", **keywords)
                expected = expected_conv2d(case, x, weight, given_bias, relu=True)
                assert (y >= 0).all()
                if algorithm in SUMMING:
                    np.testing.assert_array_equal(y, expected)
                else:
                    bound = error_bound(algorithm, case, dtype)
                    assert_within_bound(y, expected, bound, case.reduction)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_relu_passes_nan_through(algorithm, level):
    """As PyTorch does: max(NaN, 0) is NaN; hiding one would hide the bug that made it."""
    for dtype in DTYPES:
        x = np.full((1, 5, 6, 7), np.nan, dtype)
        weight = np.ones((19, 5, 3, 3), dtype)
        with kernels.use(level):
            y = fc.conv2d(x, weight, padding=1, activation="relu", algorithm=algorithm)
            assert np.isnan(y).all()
            y = fc.conv2d(np.zeros_like(x), weight, np.full(19, np.nan, dtype), padding=1, activation="relu")
            assert np.isnan(y).all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_values_pass_through(value, algorithm, level):
    case = strategies.Case((1, 5, 12, 14), (6, 5, 3, 3), padding=((1, 1), (1, 1)))
    x, weight, _ = case.integers(np.float32)
    weight[weight == 0] = 1
    x[0, 2, 5, 6] = value
    with np.errstate(invalid="ignore"), kernels.use(level):
        y = fc.conv2d(x, weight, padding=1, algorithm=algorithm)
        expected = expected_conv2d(case, x, weight)
    if algorithm in SUMMING:
        np.testing.assert_array_equal(y, expected)
    else:
        # Transforms mix a whole tile: what should be non-finite is, and a far corner is not touched by
        # Winograd's tiles; the Fourier transform's may reach everywhere.
        assert not np.isfinite(y[~np.isfinite(expected)]).any()
        if algorithm == "winograd":
            np.testing.assert_allclose(y[..., -2:, -2:], expected[..., -2:, -2:], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_non_finite_weights_pass_through(algorithm):
    x = np.ones((1, 3, 8, 8), np.float32)
    weight = np.ones((4, 3, 3, 3), np.float32)
    weight[2, 1, 1, 1] = np.nan
    with np.errstate(invalid="ignore"):
        y = fc.conv2d(x, weight, algorithm=algorithm)
    assert np.isnan(y[:, 2]).all()
    np.testing.assert_allclose(y[:, [0, 1, 3]], 27, rtol=1e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@settings(max_examples=8)
@given(data=st.data())
def test_padding_modes(mode, algorithm, data):
    case = data.draw(strategies.cases_for(algorithm).filter(lambda c: min(c.x_shape[2:]) >= 5))
    x, weight, bias = case.integers(np.float64)
    y = fc.conv2d(x, weight, bias, padding_mode=mode, algorithm=algorithm, **case.keywords)
    expected = expected_conv2d(case, x, weight, bias, padding_mode=mode)
    np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-9)
    plan = fc.plan_conv2d(x.shape, weight, bias, padding_mode=mode, algorithm=algorithm, **case.keywords)
    assert_same_bits(plan(x), y)
    last = strategies.MEMORY_LAYOUTS["channels_last"](x)
    y_last = fc.conv2d(last, weight, bias, padding_mode=mode, algorithm=algorithm, **case.keywords)
    assert_same_bits(y_last, y)


def test_reflection_wider_than_the_image_is_refused():
    """A reflection without repeating the edge has only size − 1 pixels to offer, as PyTorch says too."""
    x, weight = np.ones((1, 1, 4, 9), np.float32), np.ones((1, 1, 3, 3), np.float32)
    assert fc.conv2d(x, weight, padding=3, padding_mode="reflect").shape == (1, 1, 8, 13)
    with pytest.raises(ValueError, match="^padding "):
        fc.conv2d(x, weight, padding=4, padding_mode="reflect")
    with pytest.raises(ValueError, match="^padding "):
        fc.conv2d(x, weight, padding=5, padding_mode="circular")


@pytest.mark.parametrize("padding", ["valid", "same", "full", 0, 2, (1, 2), ((1, 0), (2, 3))])
@pytest.mark.parametrize("kernel", [(3, 3), (4, 2), (1, 5)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
def test_named_paddings(padding, kernel, stride):
    x = RNG.integers(-4, 5, (2, 3, 11, 12)).astype(np.float32)
    weight = RNG.integers(-4, 5, (4, 3, *kernel)).astype(np.float32)
    explicit = reference.explicit_padding(padding, (11, 12), kernel, stride, (2, 1))
    y = fc.conv2d(x, weight, stride=stride, padding=padding, dilation=(2, 1), algorithm="direct")
    expected = reference.conv(x, weight, stride=stride, padding=explicit, dilation=(2, 1))
    np.testing.assert_array_equal(y, expected)


def test_full_then_flipped_is_numpys_convolution():
    """conv2d is a correlation: numpy.convolve flips the kernel, "full" is its default padding."""
    signal, kernel = RNG.standard_normal(20), RNG.standard_normal(5)
    y = fc.conv2d(signal[None, None, None], kernel[None, None, None, ::-1], padding="full")
    np.testing.assert_allclose(y[0, 0, 0], np.convolve(signal, kernel), rtol=1e-12, atol=1e-12)


def test_float16_is_computed_and_returned_in_float32():
    case = strategies.Case((1, 64, 8, 8), (4, 64, 3, 3))
    x, weight, bias = (array.astype(np.float16) for array in case.normal(np.float32))
    y = fc.conv2d(x, weight, bias)
    assert y.dtype == np.float32
    assert_within_bound(y, expected_conv2d(case, x, weight, bias), 1e-5, case.reduction)


def test_bias_takes_part_in_the_dtype():
    """NumPy's promotion rule over everything that is added up."""
    x, weight = np.ones((1, 1, 4, 4), np.float32), np.ones((1, 1, 3, 3), np.float32)
    assert fc.conv2d(x, weight, np.ones(1, np.float64)).dtype == np.float64


@pytest.mark.parametrize("algorithm", ["auto", "fastest"])
def test_choosing_gives_what_a_named_algorithm_gives(algorithm):
    case = strategies.Case((1, 16, 20, 20), (16, 16, 3, 3), padding=((1, 1), (1, 1)))
    x, weight, bias = case.normal(np.float32)
    plan = fc.plan_conv2d(x.shape, weight, bias, padding=1, algorithm=algorithm)
    assert plan.algorithm in ALGORITHMS
    assert_same_bits(plan(x), fc.conv2d(x, weight, bias, padding=1, algorithm=plan.algorithm))


def test_fastest_is_measured_once_and_remembered():
    x, weight = np.ones((1, 8, 24, 24), np.float32), np.ones((8, 8, 3, 3), np.float32)
    names = {fc.plan_conv2d(x.shape, weight, algorithm="fastest").algorithm for _ in range(20)}
    assert len(names) == 1
