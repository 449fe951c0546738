"""Winograd's form whose weights are transformed along one axis only: small images, every group of tiles."""

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import fastconv as fc
import strategies
from fastconv.algorithms import winograd
from support import DTYPES, LEVELS, check_accuracy, check_bound, check_layouts, geometry


@st.composite
def small_images(draw):
    """Some tiles, channels of more than one run of a sum, panels of one vector and of two."""
    groups = draw(st.integers(1, 3))
    channels, outputs = draw(st.integers(1, 24) | st.sampled_from([257])), draw(st.integers(1, 70))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = draw(st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 2))
    kernel = draw(st.sampled_from([3, 3, 3, 2, 5])), 3
    size = [
        max(1, draw(st.integers(1, 13)) + d * (k - 1) - sum(pads))
        for k, d, pads in zip(kernel, dilation, padding, strict=True)
    ]
    reach = [d * (k - 1) + 1 - sum(pads) for k, d, pads in zip(kernel, dilation, padding, strict=True)]
    return strategies.Case(
        (draw(st.integers(1, 3)), groups * channels, *map(max, size, reach)),
        (groups * outputs, channels, *kernel),
        (1, 1), padding, dilation, groups, seed=draw(st.integers(0, 99)),
    )  # fmt: skip


def takes_half(case, dtype=np.float32):
    problem = geometry(case, dtype)
    return winograd.special_form(problem) is None and winograd.choose_form(problem).half


def layer(channels, size, batch=1):
    return strategies.Case(
        (batch, channels, size, size), (channels, channels, 3, 3), padding=((1, 1), (1, 1))
    )


def test_few_tiles_take_it():
    for channels, size, half in (
        (512, 7, True),
        (512, 8, True),
        (256, 4, True),
        (512, 14, False),
        (64, 56, False),
    ):
        assert takes_half(layer(channels, size)) == half
    problem = geometry(layer(512, 7), np.float32)
    assert fc.algorithms.ALGORITHMS["winograd"].transformed_bytes(problem) == 18 * 512 * 512 * 4


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=60)
@given(case=small_images())
@example(case=strategies.Case((1, 257, 5, 3), (7, 257, 3, 3), seed=1))  # two runs, a tile or two at a time
def test_sums_are_within_their_bound(case, level):
    for dtype in DTYPES:
        assume(takes_half(case, dtype))
        check_bound(case, dtype, level)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=40)
@given(case=small_images(), data=st.data())
def test_any_layout_has_the_same_bits(case, level, data):
    arrange = strategies.MEMORY_LAYOUTS[data.draw(st.sampled_from(sorted(strategies.MEMORY_LAYOUTS)))]
    for dtype in DTYPES:
        assume(takes_half(case, dtype))
        check_layouts(case, dtype, level, arrange)


@pytest.mark.parametrize("size", [4, 7, 8])
@pytest.mark.parametrize("channels", [64, 512])
def test_sums_are_accurate(channels, size):
    case = layer(channels, size, batch=2)
    assert takes_half(case)
    check_accuracy(case)
