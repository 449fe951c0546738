"""Depthwise and narrow groups: every tile, border and vector tail of both layouts, exact on integers."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastconv as fc
import strategies
from fastconv import kernels
from fastconv.algorithms import depthwise
from fastconv.memory import aligned_empty
from support import (
    DTYPES,
    LEVELS,
    assert_same_bits,
    assert_within_bound,
    error_bound,
    expected_conv2d,
    geometry,
)


@st.composite
def narrow_channels(draw):
    """(C_in, C_out, groups) with one channel a group, or a few, and multipliers."""
    group_in = draw(st.sampled_from([1, 1, 1, 2, 4, 8, 16]))
    group_out = draw(st.sampled_from([group_in, group_in, 1, 2, 3, 4, 8, 16]))
    groups = draw(st.integers(2, 40) | st.sampled_from([8, 16, 32]))
    return groups * group_in, groups * group_out, groups


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 5), (7, 7), (2, 4), (3, 7)])
@given(data=st.data())
def test_both_layouts_are_exact(kernel, level, data):
    case = data.draw(strategies.cases(kernel_size=kernel, channels=narrow_channels()))
    for dtype in DTYPES:
        x, weight, bias = case.integers(dtype)
        expected = expected_conv2d(case, x, weight, bias)
        for view in (
            x,
            strategies.MEMORY_LAYOUTS["channels_last"](x),
            strategies.MEMORY_LAYOUTS["sliced"](x),
        ):
            with kernels.use(level):
                y, other = (
                    fc.conv2d(view, weight, bias, algorithm="direct", num_threads=count, **case.keywords)
                    for count in (1, 2)
                )
            np.testing.assert_array_equal(y, expected)
            assert_same_bits(other, y)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("channels", "group_in", "group_out", "narrow"),
    [(32, 1, 1, True), (32, 1, 3, True), (33, 1, 1, True), (32, 2, 2, True), (64, 32, 32, False)],
)
def test_which_groups_are_narrow(channels, group_in, group_out, narrow, level):
    groups = channels // group_in
    case = strategies.Case((1, channels, 5, 5), (groups * group_out, group_in, 3, 3), groups=groups)
    with kernels.use(level) as active:
        assert depthwise.fits(geometry(case, np.float32), active) is narrow


@pytest.mark.parametrize("level", LEVELS)
def test_a_group_of_a_vector_is_narrow(level):
    with kernels.use(level) as active:
        for dtype in DTYPES:
            lanes = active.vector_bytes() // np.dtype(dtype).itemsize
            case = strategies.Case((1, 3 * lanes, 5, 5), (3 * lanes, lanes, 3, 3), groups=3)
            assert depthwise.fits(geometry(case, dtype), active)


def narrow_case(channels, kernel, group_in=1, group_out=1, **keywords):
    groups = channels // group_in
    return strategies.Case(
        (2, channels, 13, 17), (groups * group_out, group_in, *kernel), groups=groups, **keywords
    )


PADDED = {"padding": ((2, 1), (1, 2))}
# Vectors that overlap, groups of a vector and of less, any kernel.
NARROW_CASES = {
    "3x3": narrow_case(150, (3, 3), **PADDED),
    "3x3 of whole vectors": narrow_case(96, (3, 3), **PADDED),
    "3x3 s2 of whole vectors": narrow_case(64, (3, 3), stride=(2, 2), **PADDED),
    "3x3 of 2 KiB": narrow_case(512, (3, 3), **PADDED),
    "3x3 s2 of 1 KiB": narrow_case(256, (3, 3), stride=(2, 2), **PADDED),
    "5x5 s2": narrow_case(136, (5, 5), stride=(2, 2), **PADDED),
    "7x7": narrow_case(21, (7, 7), **PADDED),
    "2x4": narrow_case(19, (2, 4), dilation=(2, 1), **PADDED),
    "groups of 4": narrow_case(44, (3, 3), 4, 4, **PADDED),
    "groups of 8": narrow_case(24, (3, 3), 8, 8, stride=(2, 2), **PADDED),
    "groups of 16": narrow_case(48, (3, 3), 16, 16, **PADDED),
    "multiplier 16": narrow_case(3, (3, 2), 1, 16, **PADDED),
}


def off_a_cache_line(array, by):
    """The array `by` elements past a cache line, channels last."""
    buffer = aligned_empty((array.size + by,), array.dtype)[by:]
    last = buffer.reshape(array.shape[0], *array.shape[2:], array.shape[1])
    last[...] = array.transpose(0, 2, 3, 1)
    return last


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_every_number_of_rows_and_columns(kernel, stride, level):
    """Tiles of any number of rows and columns, whole vectors and parts of them, as planes and as pixels.

    128 float64 channels lie 1 KiB apart: their vectors do not go down the rows. Those of 25
    channels do so side by side at stride 2.
    """
    rng = np.random.default_rng(2)
    for size in (1, 2, 3, 4, 5, 6, 7, 8, 13, 14, 17, 29, 33):
        height, channels = (size * 7) % 18 + 1, 128 if size == 8 else 25 if size % 2 else 17
        case = strategies.Case(
            (1, channels, height, size), (channels, 1, kernel, kernel), groups=channels,
            stride=(stride, stride), padding=((kernel // 2, kernel // 2),) * 2,
        )  # fmt: skip
        for dtype in DTYPES:
            x, weight, bias = case.integers(dtype)
            expected = expected_conv2d(case, x, weight, bias)
            for view in (x, off_a_cache_line(x, int(rng.integers(16))).transpose(0, 3, 1, 2)):
                for threads in (1, 2):
                    with kernels.use(level):
                        y = fc.conv2d(
                            view, weight, bias, algorithm="direct", num_threads=threads, **case.keywords
                        )
                    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("columns", [1, 3, 5, 8, 9, 11, 13, 14, 28, 76])
def test_large_images_at_stride_2(columns, level):
    """Beyond the L2 cache each row reads its whole window; half an image, which a thread has, may not be."""
    rows = 720_000 // (columns * 384) // 2 * 2 + 1
    for channels, padding in ((64, ((1, 1), (1, 1))), (96, ((2, 0), (0, 2))), (100, ((0, 1), (1, 0)))):
        case = strategies.Case(
            (1, channels, rows, columns + 2),
            (channels, 1, 3, 3),
            groups=channels,
            stride=(2, 2),
            padding=padding,
        )
        x, weight, bias = case.integers(np.float32)
        sums = expected_conv2d(case, x, weight, bias)
        for activation, by in ((None, 0), ("relu", 4)):
            expected = sums if activation is None else np.maximum(sums, 0)
            inputs, out = (
                off_a_cache_line(array, by).transpose(0, 3, 1, 2)
                for array in (x, np.empty_like(sums, np.float32))
            )
            with kernels.use(level):
                plan = fc.plan_conv2d(
                    x.shape, weight, bias, algorithm="direct", activation=activation, **case.keywords
                )
            for threads in (1, 2):
                out[...] = np.nan
                plan(inputs, out=out, num_threads=threads)
                np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", NARROW_CASES)
def test_accumulate_touches_each_output_once(name, level):
    case = NARROW_CASES[name]
    for dtype in DTYPES:
        x, weight, bias = case.integers(dtype)
        sums = expected_conv2d(case, x, weight, bias)
        residual = np.random.default_rng(1).integers(-99, 99, sums.shape).astype(dtype)
        for activation, planar in itertools.product((None, "relu"), (False, True)):
            with kernels.use(level):
                plan = fc.plan_conv2d(
                    x.shape, weight, bias, algorithm="direct", activation=activation, **case.keywords
                )
            expected = np.maximum(sums + residual, 0) if activation else sums + residual
            for threads in (1, 2):
                inputs = x if planar else off_a_cache_line(x, 4).transpose(0, 3, 1, 2)
                out = residual.copy() if planar else off_a_cache_line(residual, 4).transpose(0, 3, 1, 2)
                plan(inputs, out=out, num_threads=threads, accumulate=True)
                np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("name", NARROW_CASES)
def test_same_bits_wherever_the_arrays_begin(name):
    case = NARROW_CASES[name]
    x, weight, bias = case.normal(np.float32)
    plan = fc.plan_conv2d(x.shape, weight, bias, algorithm="direct", activation="relu", **case.keywords)
    expected = plan(x)
    for by in (0, 3, 4, 12):
        out = off_a_cache_line(np.empty_like(expected), by).transpose(0, 3, 1, 2)
        for threads in (1, 2):
            out[...] = np.nan
            plan(off_a_cache_line(x, by).transpose(0, 3, 1, 2), out=out, num_threads=threads)
            assert_same_bits(out, expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [24, 152, 160])
def test_some_channels_of_wide_pixels(channels, stride, level):
    """Pixels lie 2 KiB and more apart, so vectors go down the rows abreast; the last two may overlap."""
    for size, dtype in itertools.product((1, 3, 16), DTYPES):
        case = strategies.Case(
            (1, channels, size + 2, size), (channels, 1, 3, 3), groups=channels,
            stride=(stride, stride), padding=((1, 1), (1, 1)),
        )  # fmt: skip
        x, weight, bias = case.integers(dtype)
        expected = expected_conv2d(case, x, weight, bias)
        wide = aligned_empty((1, *x.shape[2:], 512), x.dtype)
        view = wide[..., 4 : 4 + channels].transpose(0, 3, 1, 2)
        view[...] = x
        target = np.full((1, *expected.shape[2:], 512), 7, x.dtype)
        out = target[..., 1 : 1 + channels].transpose(0, 3, 1, 2)
        for threads, accumulate in itertools.product((1, 2), (False, True)):
            with kernels.use(level):
                plan = fc.plan_conv2d(x.shape, weight, bias, algorithm="direct", **case.keywords)
                plan(view, out=out, num_threads=threads, accumulate=accumulate)
            np.testing.assert_array_equal(out, expected * (1 + accumulate))
        assert (target[..., :1] == 7).all()
        assert (target[..., 1 + channels :] == 7).all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("name", NARROW_CASES)
def test_padding_is_multiplied(name, value, level):
    """As np.pad followed by a convolution without padding: 0 · ∞ is a NaN, in every layout."""
    case = NARROW_CASES[name]
    x, weight, bias = case.normal(np.float32)
    weight[:, :, 0, -1] = value
    with np.errstate(invalid="ignore"):
        expected = expected_conv2d(case, x, weight, bias)
    with kernels.use(level):
        for view in (x, off_a_cache_line(x, 4).transpose(0, 3, 1, 2)):
            y = fc.conv2d(view, weight, bias, algorithm="direct", **case.keywords)
            np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
            np.testing.assert_array_equal(np.isinf(y), np.isinf(expected))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_long_sums_keep_the_stated_bound(layout):
    case = strategies.Case((1, 33, 45, 45), (33, 1, 31, 31), groups=33)
    x, weight, bias = case.normal(np.float32)
    y = fc.conv2d(strategies.MEMORY_LAYOUTS[layout](x), weight, bias, algorithm="direct", groups=33)
    bound = error_bound("direct", case, np.float32)
    assert bound > error_bound("im2col", case, np.float32)  # which cuts the sum into blocks
    assert_within_bound(y, expected_conv2d(case, x, weight, bias), bound, case.reduction)
