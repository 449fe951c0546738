"""Direct's form for planes (NCHW) of a few channels: every panel, border and phase, exact on integers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastconv as fc
import strategies
from fastconv import kernels
from fastconv.algorithms import planes
from support import DTYPES, LEVELS, assert_same_bits, expected_conv2d, geometry


@st.composite
def wide_cases(draw):
    """Few input channels, and rows of at least a panel of any level."""
    pair = st.tuples(st.integers(0, 5), st.integers(0, 5))
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    channels = draw(st.integers(1, 6))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 4)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 3)))
    columns = draw(st.integers(8, 100))
    padding = draw(st.tuples(pair, pair))
    rows = draw(st.integers(1, 5))
    size = [
        max(1, (outputs - 1) * s + (k - 1) * d + 1 - sum(pads) + draw(st.integers(0, s - 1)))
        for outputs, s, k, d, pads in zip((rows, columns), stride, kernel, dilation, padding, strict=True)
    ]
    reach = [(k - 1) * d + 1 - sum(pads) for k, d, pads in zip(kernel, dilation, padding, strict=True)]
    size = [max(pair) for pair in zip(size, reach, strict=True)]
    out_channels = draw(st.integers(1, 33))
    return strategies.Case(
        (draw(st.integers(1, 2)), channels, *size), (out_channels, channels, *kernel), stride, padding,
        dilation, seed=draw(st.integers(0, 9)),
    )  # fmt: skip


def takes_planes(case, dtype, level):
    with kernels.use(level) as active:
        return planes.fits(geometry(case, dtype), active)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=80)
@given(case=wide_cases())
def test_planes_are_exact(case, level):
    for dtype in DTYPES:
        x, weight, bias = case.integers(dtype)
        expected = expected_conv2d(case, x, weight, bias)
        with kernels.use(level):
            for count in (1, 2):
                keywords = {**case.keywords, "algorithm": "direct", "num_threads": count}
                np.testing.assert_array_equal(fc.conv2d(x, weight, bias, **keywords), expected)
                rectified = fc.conv2d(x, weight, bias, activation="relu", **keywords)
                np.testing.assert_array_equal(rectified, np.maximum(expected, 0))


@pytest.mark.parametrize("level", LEVELS)
@given(case=wide_cases(), data=st.data())
def test_pixels_and_planes_agree_bit_for_bit(case, level, data):
    arrange = strategies.MEMORY_LAYOUTS[data.draw(st.sampled_from(sorted(strategies.MEMORY_LAYOUTS)))]
    for dtype in DTYPES:
        x, weight, bias = case.normal(dtype)
        with kernels.use(level):
            plan = fc.plan_conv2d(x.shape, weight, bias, algorithm="direct", **case.keywords)
            expected = plan(strategies.MEMORY_LAYOUTS["channels_last"](x))
            assert_same_bits(plan(x), expected)
            assert_same_bits(plan(arrange(x)), expected)
            out = np.full(plan.output_shape, np.nan, dtype)
            plan(arrange(x), out=out)
            assert_same_bits(out, expected)


@pytest.mark.parametrize("level", LEVELS)
@given(case=wide_cases())
def test_sums_into_planes(case, level):
    x, weight, bias = case.integers(np.float32)
    expected = expected_conv2d(case, x, weight, bias)
    with kernels.use(level):
        plan = fc.plan_conv2d(x.shape, weight, bias, algorithm="direct", activation="relu", **case.keywords)
        out = np.random.default_rng(1).integers(-40, 40, plan.output_shape).astype(np.float32)
        wanted = np.maximum(out + expected, 0)
        np.testing.assert_array_equal(plan(x, out=out, accumulate=True), wanted)


@pytest.mark.parametrize("level", LEVELS)
def test_first_layers_take_planes(level):
    for shape, weight, stride in (
        ((1, 3, 224, 224), (64, 3, 3, 3), 1),
        ((1, 3, 224, 224), (32, 3, 3, 3), 2),
        ((1, 3, 224, 224), (64, 3, 7, 7), 2),
        ((1, 1, 64, 64), (8, 1, 3, 3), 1),
    ):
        case = strategies.Case(shape, weight, (stride, stride), ((1, 1), (1, 1)))
        assert takes_planes(case, np.float32, level)
    for shape, weight in (((1, 3, 8, 3), (4, 3, 3, 3)), ((1, 512, 40, 64), (8, 512, 3, 3))):
        case = strategies.Case(shape, weight, padding=((1, 1), (1, 1)))
        assert not takes_planes(case, np.float32, level)


@pytest.mark.parametrize("level", LEVELS)
def test_long_rows_take_bounded_memory(level):
    weight = np.ones((4, 2, 1, 9), np.float32)
    with kernels.use(level) as active:
        plan = fc.plan_conv2d((1, 2, 1, 8192), weight, algorithm="direct", num_threads=1)
        assert planes.fits(plan.geometry, active)
        assert planes.per_thread(plan.geometry, 1, active) * 4 < 1 << 18
        x = np.random.default_rng(0).integers(-3, 4, plan.input_shape).astype(np.float32)
        expected = sum(x[0, :, 0, tap : tap + plan.output_shape[3]].sum(0) for tap in range(9))
        np.testing.assert_array_equal(plan(x)[0], np.broadcast_to(expected, (4, 1, len(expected))))
