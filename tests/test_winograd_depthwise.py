"""Winograd's form for depthwise kernels of long rows: every tail, part of a vector, strip and layout."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastconv as fc
import strategies
from fastconv.algorithms import winograd, winograd_depthwise
from support import DTYPES, LEVELS, check_accuracy, check_bound, check_layouts, geometry


@st.composite
def long_rows(draw):
    """Kernels whose rows are two or three blocks, on maps of one tile to several strips."""
    kernel = draw(st.integers(1, 12)), draw(st.sampled_from([5, 6, 7, 9, 10, 11]))
    channels = draw(st.integers(2, 40) | st.sampled_from([48, 64, 65]))
    padding = draw(st.tuples(*[st.tuples(st.integers(0, 12), st.integers(0, 12))] * 2))
    outputs = draw(st.integers(1, 14)), draw(st.integers(1, 20) | st.integers(21, 80))
    size = (
        max(n + k - 1 - sum(pads), k - sum(pads), 1)
        for n, k, pads in zip(outputs, kernel, padding, strict=True)
    )
    return strategies.Case(
        (draw(st.integers(1, 3)), channels, *size), (channels, 1, *kernel), padding=padding, groups=channels,
        seed=draw(st.integers(0, 99)),
    )  # fmt: skip


def square(channels, size, kernel):
    padding = ((kernel // 2, kernel // 2),) * 2
    return strategies.Case(
        (1, channels, size, size), (channels, 1, kernel, kernel), padding=padding, groups=channels
    )


@pytest.mark.parametrize(
    ("channels", "size", "kernel", "taken"),
    [(96, 56, 7, True), (192, 28, 7, True), (384, 14, 7, False), (768, 7, 7, False), (240, 28, 5, False),
     (24, 32, 7, False), (64, 56, 9, True), (64, 14, 11, True)],
)  # fmt: skip
def test_choice(channels, size, kernel, taken):
    case = square(channels, size, kernel)
    assert winograd.special_form(geometry(case, np.float32)) is winograd_depthwise
    x, weight, bias = case.normal(np.float32)
    chosen = fc.plan_conv2d(x.shape, weight, bias, **case.keywords).algorithm
    assert (chosen == "winograd") == taken


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=60)
@given(case=long_rows())
def test_within_its_bound(case, level):
    for dtype in DTYPES:
        check_bound(case, dtype, level)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=40)
@given(case=long_rows(), data=st.data())
def test_any_layout_has_the_same_bits(case, level, data):
    arrange = strategies.MEMORY_LAYOUTS[data.draw(st.sampled_from(sorted(strategies.MEMORY_LAYOUTS)))]
    for dtype in DTYPES:
        check_layouts(case, dtype, level, arrange)


@pytest.mark.parametrize("kernel", [5, 7, 9, 11])
def test_accuracy(kernel):
    case = square(33, 40, kernel)
    check_accuracy(case)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("row", [0, 3, 6])
def test_a_weight_that_is_not_finite_meets_every_output(row, value):
    case = square(20, 9, 7)
    x, weight, bias = case.normal(np.float32)
    weight[2, 0, row, 1] = value
    y = fc.conv2d(x, weight, bias, algorithm="winograd", **case.keywords)
    assert not np.isfinite(y[:, 2]).any()
    assert np.isfinite(np.delete(y, 2, axis=1)).all()
