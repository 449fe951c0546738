"""out = activation(convolution + bias + out): the residual add, wherever outputs are assembled."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastconv as fc
import strategies
from fastconv import kernels
from strategies import MEMORY_LAYOUTS
from support import ALGORITHMS, DTYPES, LEVELS, SUMMING, assert_same_bits, expected_conv2d

WRITEABLE = sorted(set(MEMORY_LAYOUTS) - {"read_only", "misaligned", "byte_swapped"})
# Kernel, channels and sizes by the path they take: several runs of channels of one tap; a 1×1 kernel as one
# long row, or on planes; windows too short for a whole chunk; two groups.
PATHS = {
    "deep": strategies.Case((1, 300, 5, 6), (40, 300, 1, 1)),
    "pointwise": strategies.Case((2, 270, 12, 11), (37, 270, 1, 1)),
    "taps": strategies.Case((1, 70, 9, 8), (33, 70, 3, 3), padding=((1, 1), (1, 1))),
    "grouped": strategies.Case((2, 48, 7, 7), (66, 24, 3, 2), stride=(2, 1), groups=2),
}


def accumulated(case, arrays, residual, memory, threads, **keywords):
    """A plan's result on top of a residual that lies in memory as named."""
    x, weight, bias = arrays
    plan = fc.plan_conv2d(x.shape, weight, bias, num_threads=threads, **case.keywords, **keywords)
    out = MEMORY_LAYOUTS[memory](residual)
    if memory == "channels_last":
        x = MEMORY_LAYOUTS[memory](x)
    assert plan(x, out=out, accumulate=True) is out
    return out


def residual_of(case, shape, dtype):
    return np.random.default_rng(case.seed + 1).integers(-99, 99, shape).astype(dtype)


@pytest.mark.parametrize("algorithm", SUMMING)
@settings(max_examples=15)
@given(data=st.data())
def test_exact_on_integers(algorithm, data):
    case = data.draw(strategies.cases())
    memory = data.draw(st.sampled_from(WRITEABLE))
    activation = data.draw(st.sampled_from([None, "relu"]))
    for dtype in DTYPES:
        arrays = case.integers(dtype)
        expected = expected_conv2d(case, *arrays)
        residual = residual_of(case, expected.shape, dtype)
        expected = expected + residual
        if activation:
            expected = np.maximum(expected, 0)
        y = accumulated(case, arrays, residual, memory, 1, algorithm=algorithm, activation=activation)
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("algorithm", SUMMING)
def test_every_path_layout_and_thread_count(algorithm, path, level):
    case = PATHS[path]
    for dtype in DTYPES:
        arrays = case.integers(dtype)
        expected = expected_conv2d(case, *arrays)
        residual = residual_of(case, expected.shape, dtype)
        expected = np.maximum(expected + residual, 0)
        with kernels.use(level):
            for memory in ("contiguous", "channels_last", "sliced", "reversed"):
                for threads in (1, 2):
                    y = accumulated(
                        case, arrays, residual, memory, threads, algorithm=algorithm, activation="relu"
                    )
                    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("algorithm", SUMMING)
def test_same_bits_for_every_layout_and_thread_count(algorithm, path):
    case = PATHS[path]
    arrays = case.normal(np.float32)
    residual = fc.conv2d(*arrays, **case.keywords)[:, ::-1].copy()
    expected = accumulated(case, arrays, residual, "contiguous", 1, algorithm=algorithm)
    for memory in ("contiguous", "channels_last", "sliced"):
        for threads in (1, 2):
            assert_same_bits(
                accumulated(case, arrays, residual, memory, threads, algorithm=algorithm), expected
            )


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_on_top_of_the_input_itself(algorithm, layout):
    case = strategies.Case((1, 9, 12, 11), (9, 9, 3, 3), padding=((1, 1), (1, 1)))
    x, weight, bias = case.normal(np.float64)
    expected = x + expected_conv2d(case, x, weight, bias)
    y = MEMORY_LAYOUTS[layout](x)
    plan = fc.plan_conv2d(x.shape, weight, bias, algorithm=algorithm, **case.keywords)
    assert plan(y, out=y, accumulate=True) is y
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_nan_in_out_stays_one(algorithm):
    case = PATHS["taps"]
    x, weight, bias = case.normal(np.float32)
    plan = fc.plan_conv2d(x.shape, weight, bias, algorithm=algorithm, activation="relu", **case.keywords)
    out = np.zeros(plan.output_shape, np.float32)
    out[0, 5, 3, 4] = np.nan
    plan(x, out=out, accumulate=True)
    assert np.argwhere(np.isnan(out)).tolist() == [[0, 5, 3, 4]]
