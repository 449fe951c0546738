"""Depthwise and narrow groups: every tile, border and vector tail of both layouts, exact on integers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastconv as fc
import strategies
from fastconv import kernels
from fastconv.algorithms import depthwise
from support import DTYPES, LEVELS, assert_same_bits, expected_conv2d, geometry


@st.composite
def narrow_channels(draw):
    """(C_in, C_out, groups) with one channel a group, or a few, and multipliers."""
    group_in = draw(st.sampled_from([1, 1, 1, 2, 4, 8]))
    group_out = draw(st.sampled_from([group_in, group_in, 1, 2, 3, 4]))
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
