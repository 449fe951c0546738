"""Winograd's form along the rows of narrow groups: every column of a tile, level and layout."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import fastconv as fc
import strategies
from fastconv.algorithms import winograd, winograd_narrow
from support import DTYPES, LEVELS, check_accuracy, check_bound, check_layouts, geometry


@st.composite
def narrow_groups(draw):
    """Whole vectors of either type, in groups of four or eight channels."""
    group, channels = draw(st.sampled_from([4, 8])), 16 * draw(st.integers(1, 4))
    padding = draw(st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 2))
    size = [max(1, draw(st.integers(1, 11)) + 2 - sum(pads)) for pads in padding]
    reach = [3 - sum(pads) for pads in padding]
    return strategies.Case(
        (draw(st.integers(1, 3)), channels, *map(max, size, reach)), (channels, group, 3, 3),
        (1, 1), padding, groups=channels // group, seed=draw(st.integers(0, 99)),
    )  # fmt: skip


def takes_narrow(case, dtype=np.float32):
    return winograd.special_form(geometry(case, dtype)) is winograd_narrow


def test_which_problems_take_it():
    one = ((1, 1), (1, 1))
    for channels, group, stride, narrow in (
        (256, 8, 1, True),
        (128, 4, 1, True),
        (256, 8, 2, False),
        (24, 4, 1, False),
    ):
        groups = channels // group
        case = strategies.Case(
            (1, channels, 28, 28), (channels, group, 3, 3), (stride, stride), one, groups=groups
        )
        assert takes_narrow(case) == narrow
        if narrow:
            x, weight, bias = case.normal(np.float32)
            assert fc.plan_conv2d(x.shape, weight, bias, **case.keywords).algorithm == "winograd"


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=60)
@given(case=narrow_groups())
def test_groups_are_within_their_bound(case, level):
    for dtype in DTYPES:
        assume(takes_narrow(case, dtype))
        check_bound(case, dtype, level)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=40)
@given(case=narrow_groups(), data=st.data())
def test_any_layout_has_the_same_bits(case, level, data):
    arrange = strategies.MEMORY_LAYOUTS[data.draw(st.sampled_from(sorted(strategies.MEMORY_LAYOUTS)))]
    for dtype in DTYPES:
        assume(takes_narrow(case, dtype))
        check_layouts(case, dtype, level, arrange)


@pytest.mark.parametrize("group", [4, 8])
def test_groups_are_accurate(group):
    case = strategies.Case((1, 128, 30, 30), (128, group, 3, 3), groups=128 // group)
    assert takes_narrow(case)
    check_accuracy(case)


def test_padding_rows_meet_weights_that_are_not_finite():
    case = strategies.Case((1, 16, 6, 6), (16, 8, 3, 3), (1, 1), ((1, 1), (1, 1)), groups=2)
    x, weight, _ = case.normal(np.float32)
    weight[3, 2, 0, 1] = np.nan
    with np.errstate(invalid="ignore"):
        y = fc.conv2d(x, weight, algorithm="winograd", **case.keywords)
    assert np.isnan(y[:, 3]).all()
    assert np.isfinite(np.delete(y, 3, axis=1)).all()
