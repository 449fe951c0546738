"""Winograd's form whose weights are transformed along one axis only: tiles of any number of points."""

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import fastconv as fc
import strategies
from fastconv import kernels
from fastconv.algorithms import transforms, winograd, winograd_half
from support import DTYPES, LEVELS, check_accuracy, check_bound, check_layouts, geometry


@st.composite
def small_images(draw):
    """Any number of outputs left for a tile, channels of several runs, panels of one vector and of two."""
    channels, outputs = draw(st.integers(1, 24) | st.sampled_from([100, 257])), draw(st.integers(1, 70))
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = draw(st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 2))
    reach = [2 * d + 1 - sum(pads) for d, pads in zip(dilation, padding, strict=True)]
    size = [max(1, least + draw(st.integers(0, 20))) for least in reach]
    return strategies.Case(
        (draw(st.integers(1, 3)), channels, *size), (outputs, channels, 3, 3),
        (draw(st.integers(1, 2)),) * 2, padding, dilation, seed=draw(st.integers(0, 99)),
    )  # fmt: skip


def takes_half(case, dtype=np.float32, level=LEVELS[-1]):
    with kernels.use(level) as module:
        return winograd.special_form(geometry(case, dtype), module.vector_bytes()) is winograd_half


def layer(channels, size, batch=1, stride=1, dilation=1):
    return strategies.Case(
        (batch, channels, size, size), (channels, channels, 3, 3), (stride,) * 2, ((dilation, dilation),) * 2,
        (dilation,) * 2,
    )  # fmt: skip


def test_small_images_take_it():
    for channels, size, stride, half in (
        (512, 7, 1, True),
        (512, 8, 1, True),
        (256, 4, 1, True),
        (256, 14, 2, True),
        (64, 56, 1, False),
    ):
        assert takes_half(layer(channels, size, stride=stride)) == half
    algorithm = fc.algorithms.ALGORITHMS["winograd"]
    assert algorithm.transformed_bytes(geometry(layer(512, 7), np.float32)) == 18 * 512 * 512 * 4
    assert algorithm.transformed_bytes(geometry(layer(256, 14, stride=2), np.float32)) == 21 * 256 * 256 * 4


def test_a_tile_takes_no_more_points_than_outputs_need():
    """7 outputs are 4 + 3, of 6 and 5 points; of stride 2 5 + 2, of 6 and 3, and in one block of 5 and 2."""
    algorithm = fc.algorithms.ALGORITHMS["winograd"]
    for stride, products in (1, 11), (2, 11 + 5):
        problem = geometry(layer(256, 7 * stride, stride=stride), np.float32)
        assert winograd.special_form(problem) is winograd_half
        assert algorithm.multiplications(problem) == products**2 * 256**2


@pytest.mark.parametrize(
    ("stride", "outputs"), [*((1, m) for m in range(1, 5)), *((2, m) for m in range(1, 6))]
)
def test_dropped_points_leave_a_minimal_filter(stride, outputs):
    """y = A′ᵀ [(G g) ⊙ (V − what the dropped points have)], in float64, for every number of outputs."""
    taps = 4 - stride
    rng = np.random.default_rng(outputs)
    half = transforms.half(stride)
    a = half.rows[1, 1]
    finite = np.array([0, a, -a, 2 * a, -2 * a])
    whole = [np.poly(np.delete(finite, i))[::-1] for i in range(5)]
    forward = np.zeros((6, 6))
    forward[:5, :5], forward[5] = whole, np.poly(finite)[::-1]
    x, g = rng.standard_normal(outputs + taps - 1), rng.standard_normal(taps)
    v = forward @ np.concatenate([x, np.zeros(6 - len(x))])
    for row, last in zip(half.drop, range(4, outputs + taps - 3, -1), strict=False):
        off = v[last]
        v[:last] -= row[:last] * off
        v[5], v[last] = row[5] * off, 0
    divided = np.append(transforms.evaluation(finite, 1)[:, 0], 1.0)
    m = v * divided * (half.rows @ g)
    y = np.vander(finite, outputs, increasing=True).T @ m[:5]
    y[-1] += m[5]
    np.testing.assert_allclose(y, np.convolve(x, g[::-1], "valid"), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=80)
@given(case=small_images())
@example(case=strategies.Case((1, 257, 5, 3), (7, 257, 3, 3), seed=1))
@example(case=strategies.Case((1, 70, 22, 19), (40, 70, 3, 3), stride=(2, 2), seed=1))
def test_sums_are_within_their_bound(case, level):
    for dtype in DTYPES:
        assume(takes_half(case, dtype, level))
        check_bound(case, dtype, level)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=40)
@given(case=small_images(), data=st.data())
def test_any_layout_has_the_same_bits(case, level, data):
    arrange = strategies.MEMORY_LAYOUTS[data.draw(st.sampled_from(sorted(strategies.MEMORY_LAYOUTS)))]
    for dtype in DTYPES:
        assume(takes_half(case, dtype, level))
        check_layouts(case, dtype, level, arrange)


def test_pixels_beyond_the_last_output_do_not_count():
    """A stride of 2 leaves some out, which no tile may read: huge ones would swallow its sums."""
    case = strategies.Case((1, 32, 16, 16), (32, 32, 3, 3), stride=(2, 2))
    assert takes_half(case)
    rng = np.random.default_rng(3)
    x, weight = rng.standard_normal(case.x_shape), rng.standard_normal(case.weight_shape)
    x[:, :, 15], x[:, :, :, 15] = 1e30, 1e30
    plan = fc.plan_conv2d(x.shape, weight.astype(np.float32), stride=2, algorithm="winograd")
    expected = fc.conv2d(x[:, :, :15, :15], weight, stride=2, algorithm="direct")
    assert np.abs(plan(x.astype(np.float32)) - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("channels", "size", "stride"),
    [(64, 4, 1), (512, 4, 1), (64, 7, 1), (512, 7, 1), (64, 8, 1), (512, 8, 1), (512, 14, 1), (128, 14, 2),
     (512, 14, 2), (512, 10, 2), (128, 28, 2)],
)  # fmt: skip
def test_sums_are_accurate(channels, size, stride):
    case = layer(channels, size, batch=2, stride=stride)
    assert takes_half(case)
    check_accuracy(case)
