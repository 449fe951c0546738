"""Every algorithm, at every instruction-set level, on one and two threads, against the reference."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastconv as fc
import strategies
from fastconv import kernels
from fastconv.geometry import ConvGeometry
from support import (
    ALGORITHMS,
    DTYPES,
    LEVELS,
    SUMMING,
    assert_same_bits,
    assert_within_bound,
    error_bound,
    expected_conv2d,
    geometry,
)


def both_thread_counts(x, weight, bias=None, **keywords):
    """conv2d on one and on two threads; the results must not differ in a bit."""
    y = fc.conv2d(x, weight, bias, num_threads=1, **keywords)
    assert_same_bits(fc.conv2d(x, weight, bias, num_threads=2, **keywords), y)
    return y


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("algorithm", SUMMING)
@given(data=st.data())
def test_integers_are_exact(algorithm, level, data):
    case = data.draw(strategies.cases_for(algorithm))
    for dtype in DTYPES:
        x, weight, bias = case.integers(dtype)
        with kernels.use(level):
            y = both_thread_counts(x, weight, bias, algorithm=algorithm, **case.keywords)
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, expected_conv2d(case, x, weight, bias))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(data=st.data())
def test_normal_data_stays_within_the_stated_bound(algorithm, level, data):
    case = data.draw(strategies.cases_for(algorithm))
    for dtype in DTYPES:
        x, weight, bias = case.normal(dtype)
        with kernels.use(level):
            y = both_thread_counts(x, weight, bias, algorithm=algorithm, **case.keywords)
        assert y.dtype == dtype
        bound = error_bound(algorithm, case, dtype)
        assert 0 < bound < 1e-3
        assert_within_bound(y, expected_conv2d(case, x, weight, bias), bound, case.reduction)


@pytest.mark.parametrize("level", LEVELS)
@given(data=st.data())
def test_auto_is_right_too(level, data):
    case = data.draw(strategies.cases())
    x, weight, bias = case.normal(np.float32)
    with kernels.use(level):
        plan = fc.plan_conv2d(x.shape, weight, bias, calls=1, **case.keywords)
        y = both_thread_counts(x, weight, bias, **case.keywords)
    assert plan.algorithm in ALGORITHMS
    assert_same_bits(y, plan(x))
    assert_within_bound(y, expected_conv2d(case, x, weight, bias), plan.error_bound, case.reduction)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(data=st.data())
def test_every_algorithm_supports_what_it_must(algorithm, data):
    case = data.draw(strategies.cases_for(algorithm))
    described = fc.algorithms.ALGORITHMS[algorithm]
    assert described.name == algorithm
    for dtype in DTYPES:
        assert described.unsupported(geometry(case, dtype)) is None
        # None where every output pixel sees zeros of the padding only.
        assert described.multiplications(geometry(case, dtype)) >= 0
        assert described.workspace_bytes(geometry(case, dtype), 2, kernels.active()) >= 0


# Sizes that hypothesis' budget keeps it from: many channels, several panels, tiles and cache blocks.
LARGE = {
    "3x3": strategies.Case((2, 64, 37, 41), (70, 64, 3, 3), padding=((1, 1), (1, 1)), seed=1),
    "1x1": strategies.Case((1, 300, 19, 23), (130, 300, 1, 1), seed=2),
    "1x1 strided": strategies.Case((2, 96, 29, 31), (129, 96, 1, 1), stride=(2, 2), seed=3),
    "7x7 strided": strategies.Case((1, 3, 97, 101), (64, 3, 7, 7), (2, 2), ((3, 3), (3, 3)), seed=4),
    "many channels": strategies.Case((1, 600, 7, 7), (520, 600, 3, 3), padding=((1, 1), (1, 1)), seed=5),
    "wide": strategies.Case((1, 5, 3, 1500), (9, 5, 3, 3), padding=((1, 1), (2, 0)), seed=6),
    "tall": strategies.Case((1, 5, 1500, 3), (9, 5, 3, 3), padding=((1, 1), (2, 0)), seed=7),
    "large kernel": strategies.Case((1, 4, 60, 70), (6, 4, 31, 29), padding=((15, 15), (14, 14)), seed=8),
    "depthwise": strategies.Case((2, 150, 33, 35), (150, 1, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 150, 9),
    "depthwise strided": strategies.Case(
        (1, 144, 30, 30), (144, 1, 5, 5), (2, 2), ((1, 2), (1, 2)), (1, 1), 144, 10
    ),
    "5x5": strategies.Case((2, 48, 35, 33), (64, 48, 5, 5), padding=((2, 2), (2, 2)), seed=12),
    "1x7": strategies.Case((1, 128, 17, 17), (96, 128, 1, 7), padding=((0, 0), (3, 3)), seed=13),
    "7x1": strategies.Case((1, 128, 17, 17), (96, 128, 7, 1), padding=((3, 3), (0, 0)), seed=14),
    "dilated": strategies.Case((1, 128, 28, 29), (96, 128, 3, 3), (1, 1), ((4, 4), (4, 4)), (4, 4), 1, 15),
    "3x3 strided": strategies.Case((1, 64, 59, 61), (70, 64, 3, 3), (2, 2), ((1, 1), (1, 1)), seed=17),
    "3x3 strided, many channels": strategies.Case(
        (1, 300, 29, 28), (96, 300, 3, 3), (2, 2), ((1, 1), (1, 1)), seed=18
    ),
    "1x9": strategies.Case((1, 128, 3, 400), (96, 128, 1, 9), padding=((0, 0), (4, 4)), seed=19),
    "grouped dilated": strategies.Case(
        (1, 64, 40, 40), (64, 16, 3, 3), (1, 1), ((2, 2), (2, 2)), (2, 2), 4, 11
    ),
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", LARGE)
def test_large_problems(name, algorithm, level):
    case = LARGE[name]
    if algorithm == "winograd" and fc.algorithms.ALGORITHMS["winograd"].unsupported(
        geometry(case, np.float32)
    ):
        pytest.skip("Winograd is for kernels of more taps than their stride, in at most 16 blocks")
    for dtype in DTYPES:
        x, weight, bias = case.integers(dtype) if algorithm in SUMMING else case.normal(dtype)
        expected = expected_conv2d(case, x, weight, bias)
        with kernels.use(level):
            y = both_thread_counts(x, weight, bias, algorithm=algorithm, **case.keywords)
        if algorithm in SUMMING:
            np.testing.assert_array_equal(y, expected)
        else:
            assert_within_bound(y, expected, error_bound(algorithm, case, dtype), case.reduction)


@pytest.mark.parametrize(
    ("keywords", "weight_shape", "named"),
    [
        ({"padding": 1}, (4, 6, 1, 1), "1×1"),
        ({"groups": 2}, (4, 3, 1, 1), "1×1"),
        ({"stride": 2}, (4, 6, 2, 2), "stride"),
        ({"stride": (3, 2)}, (4, 6, 3, 1), "3×1"),
        ({}, (4, 6, 11, 13), "11×13 has 20"),
    ],
)
def test_winograd_refuses_what_it_cannot_do(keywords, weight_shape, named):
    described = ConvGeometry.create((1, 6, 14, 14), weight_shape, **keywords)
    reason = fc.algorithms.ALGORITHMS["winograd"].unsupported(described)
    assert named in reason
    x, weight = np.ones((1, 6, 14, 14), np.float32), np.ones(weight_shape, np.float32)
    for call in (fc.conv2d, lambda x, *rest, **more: fc.plan_conv2d(x.shape, *rest, **more)):
        with pytest.raises(ValueError, match="winograd") as caught:
            call(x, weight, algorithm="winograd", **keywords)
        assert str(caught.value).startswith("algorithm")
        assert reason in str(caught.value)


def test_winograd_states_a_larger_error_than_direct():
    described = ConvGeometry.create((1, 64, 56, 56), (64, 64, 3, 3), padding=1)
    bounds = {name: fc.algorithms.ALGORITHMS[name].error_bound(described) for name in ALGORITHMS}
    assert bounds["direct"] < bounds["winograd"] < 1e-4
    assert fc.algorithms.ALGORITHMS["winograd"].multiplications(described) < described.multiplications


KERNELS = [(3, 3), (5, 5), (1, 7), (7, 1), (1, 3), (5, 1), (4, 4), (1, 9), (11, 1)]


@pytest.mark.parametrize(
    ("kernel", "stride"), [*((k, 1) for k in KERNELS), ((3, 3), 2), ((5, 5), 2)], ids=str
)
@pytest.mark.parametrize("size", [12, 16, 29])
def test_winograd_multiplies_less_than_the_definition(kernel, stride, size):
    padding = tuple(taps // 2 for taps in kernel)
    described = ConvGeometry.create((1, 64, size, size), (64, 64, *kernel), padding=padding, stride=stride)
    assert fc.algorithms.ALGORITHMS["winograd"].multiplications(described) < described.multiplications


@pytest.mark.parametrize("channels", [64, 512])
def test_winograd_3x3_is_accurate(channels):
    """At most 4e-6 of the largest result on N(0, 1) data."""
    case = strategies.Case((1, channels, 30, 30), (32, channels, 3, 3), padding=((1, 1), (1, 1)), seed=16)
    x, weight, _ = case.normal(np.float32)
    expected = expected_conv2d(case, x, weight)
    error = np.abs(fc.conv2d(x, weight, padding=1, algorithm="winograd") - expected).max()
    assert error <= 4e-6 * np.abs(expected).max()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("taps", range(2, 16))
def test_winograd_takes_a_line_of_any_length(taps, dtype, level):
    for stride, dilation, size in ((1, 1, 40), (2, 1, 37), (1, 2, 45)):
        case = strategies.Case(
            (1, 5, 2, size), (3, 5, 1, taps), stride=(1, stride), dilation=(1, dilation), seed=taps
        )
        if taps <= stride:
            continue
        x, weight, bias = case.normal(dtype)
        expected = expected_conv2d(case, x, weight, bias)
        with kernels.use(level):
            y = both_thread_counts(x, weight, bias, algorithm="winograd", **case.keywords)
        assert_within_bound(y, expected, error_bound("winograd", case, dtype), case.reduction)


@pytest.mark.parametrize("taps", [3, 5, 7, 9])
def test_winograd_on_lines_is_accurate(taps):
    """At most 4e-6 of the largest result on N(0, 1) data."""
    case = strategies.Case((1, 64, 8, 500), (32, 64, 1, taps), seed=19)
    x, weight, _ = case.normal(np.float32)
    expected = expected_conv2d(case, x, weight)
    error = np.abs(fc.conv2d(x, weight, algorithm="winograd") - expected).max()
    assert error <= 4e-6 * np.abs(expected).max()


@pytest.mark.parametrize("level", LEVELS)
def test_outputs_written_past_the_caches_are_those_of_any_layout(level):
    """Images of more than 8 MiB, whose edges have parts of tiles, accumulated or not."""
    case = strategies.Case((1, 3, 259, 262), (48, 3, 3, 3), padding=((1, 1), (1, 1)), seed=20)
    x, weight, bias = case.normal(np.float32)
    pixels = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    with kernels.use(level):
        plan = fc.plan_conv2d(x.shape, weight, bias, padding=1, algorithm="winograd", activation="relu")
        expected = plan(x, num_threads=1)
        for threads in (1, 2):
            y = plan(pixels, num_threads=threads)  # on whole cache lines, which NumPy's arrays begin beside
            assert_same_bits(y, expected)
            assert_same_bits(plan(pixels, out=np.copy(y), num_threads=threads), expected)
        added = plan(x, out=expected.copy(), accumulate=True)
        assert_same_bits(plan(pixels, out=y, accumulate=True), added)
    reference = np.maximum(expected_conv2d(case, x, weight, bias), 0)
    assert_within_bound(expected, reference, error_bound("winograd", case, np.float32), case.reduction)


@pytest.mark.parametrize("channels", [128, 512, 1024, 2048])
def test_strassen_is_accurate(channels):
    case = strategies.Case((1, channels, 30, 30), (70, channels, 1, 1), seed=17)
    x, weight, _ = case.normal(np.float32)
    expected = expected_conv2d(case, x, weight)
    error = np.abs(fc.conv2d(x, weight, algorithm="winograd") - expected).max()
    bound = error_bound("winograd", case, np.float32)
    assert error <= bound * np.abs(expected).max()
    assert bound <= 4e-6


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(2, 96, 19, 23), (1, 1030, 7, 7), (1, 2050, 9, 20), (1, 40, 5, 5), (1, 5, 1, 1)], ids=str
)
@pytest.mark.parametrize("out_channels", [70, 128])
def test_strassen_has_the_same_bits_in_any_layout_with_any_threads(shape, out_channels, dtype, level):
    case = strategies.Case(shape, (out_channels, shape[1], 1, 1), seed=18)
    x, weight, bias = case.normal(dtype)
    pixels = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    with kernels.use(level):
        y = fc.conv2d(x, weight, bias, algorithm="winograd", activation="relu", num_threads=1)
        for threads in (1, 2, 3):
            plan = fc.plan_conv2d(
                shape, weight, bias, algorithm="winograd", activation="relu", num_threads=threads
            )
            out = np.empty((shape[0], *shape[2:], out_channels), dtype).transpose(0, 3, 1, 2)
            assert_same_bits(plan(x), y)
            assert_same_bits(plan(pixels, out=out), y)
            assert_same_bits(plan(pixels), y)
            before = np.copy(y)  # a pixel that is in both halves must be added once
            added = plan(x, out=before, accumulate=True)
            assert_same_bits(plan(pixels, out=np.copy(out, order="K"), accumulate=True), added)
            both = expected_conv2d(case, x, weight, bias) + y
            assert_within_bound(
                added, np.maximum(both, 0), error_bound("winograd", case, dtype), case.reduction
            )
    expected = np.maximum(expected_conv2d(case, x, weight, bias), 0)
    assert_within_bound(y, expected, error_bound("winograd", case, dtype), case.reduction)


def test_strassen_is_chosen_where_its_sums_are_repaid():
    weight = np.ones((256, 1024, 1, 1), np.float32)
    assert fc.plan_conv2d((1, 1024, 14, 14), weight).algorithm == "winograd"
    assert fc.plan_conv2d((1, 1024, 14, 14), weight, calls=1).algorithm == "direct"
    assert fc.plan_conv2d((1, 1024, 14, 14), weight, rtol=1.5e-6).algorithm == "direct"
    assert fc.plan_conv2d((1, 64, 56, 56), weight[:, :64]).algorithm == "winograd"
    assert fc.plan_conv2d((1, 32, 56, 56), weight[:, :32]).algorithm == "direct"


@pytest.mark.parametrize("algorithm", SUMMING)
def test_direct_methods_count_the_multiplications_of_the_definition(algorithm):
    described = ConvGeometry.create((2, 6, 9, 9), (4, 3, 3, 3), padding=1, groups=2)
    assert described.multiplications == 2 * 4 * 9 * 9 * 3 * 9
    assert fc.algorithms.ALGORITHMS[algorithm].multiplications(described) >= 2 * 4 * 7 * 7 * 3 * 9


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_stated_bound_is_not_an_empty_promise(algorithm):
    """A bound far above the true error would tell the user nothing: it must lie within a factor 100."""
    case = strategies.Case((1, 64, 30, 30), (32, 64, 3, 3), padding=((1, 1), (1, 1)), seed=12)
    # float32 only: the reference, in float64, has errors of its own.
    x, weight, _ = case.normal(np.float32)
    expected = expected_conv2d(case, x, weight)
    error = np.abs(fc.conv2d(x, weight, padding=1, algorithm=algorithm) - expected).max()
    error /= np.abs(expected).max()
    bound = error_bound(algorithm, case, np.float32)
    assert error <= bound <= 100 * error
