"""Winograd's form along rows, for few channels: every tail, group of tiles, phase and layout."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import fastconv as fc
import strategies
from fastconv.algorithms import winograd, winograd_rows
from support import DTYPES, LEVELS, check_accuracy, check_bound, check_layouts, geometry


@st.composite
def few_channels(draw):
    """Three to five taps of each phase of a stride, of at most 16 channels in all."""
    step, taps = draw(st.integers(1, 4)), draw(st.integers(3, 5))
    channels = draw(st.integers(1, min(8, 16 // step)))
    kernel = draw(st.integers(1, 7)), step * taps - draw(st.integers(0, step - 1))
    stride, dilation = (draw(st.integers(1, 3)), step), (draw(st.integers(1, 3)), 1)
    padding = draw(st.tuples(*[st.tuples(st.integers(0, 4), st.integers(0, 4))] * 2))
    outputs = draw(st.integers(1, 4)), draw(st.integers(1, 140))
    size = [
        max(1, (n - 1) * s + d * (k - 1) + 1 - sum(pads) + draw(st.integers(0, s - 1)))
        for n, s, k, d, pads in zip(outputs, stride, kernel, dilation, padding, strict=True)
    ]
    reach = [d * (k - 1) + 1 - sum(pads) for k, d, pads in zip(kernel, dilation, padding, strict=True)]
    return strategies.Case(
        (draw(st.integers(1, 2)), channels, *map(max, size, reach)),
        (draw(st.integers(1, 20) | st.sampled_from([32, 33, 65])), channels, *kernel),
        stride, padding, dilation, seed=draw(st.integers(0, 99)),
    )  # fmt: skip


def takes_rows(case, dtype=np.float32):
    return winograd.special_form(geometry(case, dtype)) is winograd_rows


def test_first_layers_take_rows():
    layers = (3, 3, 1, True), (3, 7, 2, False), (3, 11, 4, False), (1, 5, 1, False)
    for channels, kernel, stride, short in layers:
        case = strategies.Case((1, channels, 224, 224), (64, channels, kernel, kernel), (stride, stride))
        assert takes_rows(case)
        assert winograd_rows.choose_form(geometry(case, np.float32)).short == short
        x, weight, bias = case.normal(np.float32)
        if channels > 1:
            assert fc.plan_conv2d(x.shape, weight, bias, **case.keywords).algorithm == "winograd"


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=60)
@given(case=few_channels())
def test_rows_are_within_their_bound(case, level):
    for dtype in DTYPES:
        assume(takes_rows(case, dtype))
        check_bound(case, dtype, level)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=40)
@given(case=few_channels(), data=st.data())
def test_any_layout_has_the_same_bits(case, level, data):
    arrange = strategies.MEMORY_LAYOUTS[data.draw(st.sampled_from(sorted(strategies.MEMORY_LAYOUTS)))]
    for dtype in DTYPES:
        assume(takes_rows(case, dtype))
        check_layouts(case, dtype, level, arrange)


@pytest.mark.parametrize(
    ("channels", "kernel", "stride"),
    [(1, 3, 1), (3, 3, 1), (5, 3, 1), (8, 3, 1), (3, 5, 1), (3, 5, 2), (1, 7, 2), (3, 7, 2), (3, 11, 4)],
)
def test_rows_are_accurate(channels, kernel, stride):
    case = strategies.Case((1, channels, 40, 90), (64, channels, kernel, kernel), (stride, stride))
    assert takes_rows(case)
    check_accuracy(case)
