"""1-D and 3-D convolution: every algorithm, level and thread count against the reference, and PyTorch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastconv as fc
import reference
import strategies
from fastconv import kernels, lowering
from fastconv.geometry import ConvGeometry
from support import ALGORITHMS, LEVELS, SUMMING, assert_same_bits, assert_within_bound, geometry

RANKS = (1, 3)
CONVOLVE = {1: fc.conv1d, 2: fc.conv2d, 3: fc.conv3d}
PLAN = {1: fc.plan_conv1d, 2: fc.plan_conv2d, 3: fc.plan_conv3d}
# A row that is cut into several segments: more than twice the bytes one segment may have.
LONG_ROW = strategies.Case((2, 64, 3500), (6, 32, 5), padding=((3, 1),), stride=(1,), dilation=(2,), groups=2)

# Images whose rows take as much: a kernel taller than the padding, strides, groups, and first layers.
WIDE = (
    strategies.Case((2, 24, 7, 5200), (8, 24, 3, 3), padding=((1, 1), (1, 1))),
    strategies.Case((1, 3, 6, 12_011), (40, 3, 3, 3), padding=((0, 1), (2, 1)), stride=(2, 2)),
    strategies.Case((1, 64, 5, 3001), (64, 1, 3, 5), padding=((1, 1), (3, 0)), groups=64, dilation=(2, 1)),
    strategies.Case((1, 70, 3, 5000), (30, 70, 1, 1)),
    strategies.Case(
        (2, 24, 2, 3, 5200), (4, 24, 2, 3, 3), padding=((1, 1),) * 3, stride=(1, 1, 1), dilation=(1, 1, 1)
    ),
    strategies.Case(
        (1, 24, 5, 3, 9001),
        (4, 24, 3, 3, 3),
        padding=((0, 0), (1, 1), (2, 0)),
        stride=(2, 1, 2),
        dilation=(1, 1, 2),
    ),
)


def supports(algorithm, case, dtype):
    flat = lowering.planar(geometry(case, dtype))
    return fc.algorithms.ALGORITHMS[algorithm].unsupported(flat) is None


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("rank", RANKS)
@given(data=st.data())
def test_integers_are_exact(rank, level, data):
    case = data.draw(strategies.ranked_cases(rank))
    x, weight, bias = case.integers(np.float32)
    expected = reference.conv(x, weight, bias, relu=True, **case.keywords)
    for algorithm in SUMMING:
        with kernels.use(level):
            y = [
                CONVOLVE[rank](
                    x, weight, bias, activation="relu", algorithm=algorithm, num_threads=n, **case.keywords
                )
                for n in (1, 2)
            ]
        assert_same_bits(*y)
        np.testing.assert_array_equal(y[0], expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rank", RANKS)
@given(data=st.data())
def test_normal_data_stays_within_the_stated_bound(rank, dtype, data):
    case = data.draw(strategies.ranked_cases(rank))
    x, weight, bias = case.normal(dtype)
    expected = reference.conv(x, weight, bias, **case.keywords)
    for algorithm in ALGORITHMS:
        if supports(algorithm, case, dtype):
            plan = PLAN[rank](x.shape, weight, bias, algorithm=algorithm, **case.keywords)
            y = plan(x, num_threads=1)
            assert_same_bits(plan(x, num_threads=2), y)
            assert_within_bound(y, expected, plan.error_bound, case.reduction)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_long_rows_are_cut_into_segments(algorithm, channels_last):
    x, weight, bias = LONG_ROW.normal(np.float32)
    if channels_last:
        x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    assert len(lowering.passes(geometry(LONG_ROW, np.float32))) > 2
    plan = fc.plan_conv1d(x.shape, weight, bias, algorithm=algorithm, **LONG_ROW.keywords)
    y = plan(x, num_threads=1)
    assert_same_bits(plan(x, num_threads=2), y)
    expected = reference.conv(x, weight, bias, **LONG_ROW.keywords)
    assert_within_bound(y, expected, plan.error_bound, LONG_ROW.reduction)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("case", WIDE, ids=lambda case: str(case.x_shape))
def test_wide_images_are_cut_into_strips(case, algorithm, channels_last):
    x, weight, bias = case.normal(np.float32)
    if channels_last:
        x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    problem = geometry(case, np.float32)
    assert len(lowering.passes(problem)) > len(lowering.passes(problem, strips=False))
    if not supports(algorithm, case, np.float32):
        pytest.skip(f"{algorithm} does not compute this problem")
    plan = PLAN[problem.spatial_rank](x.shape, weight, bias, algorithm=algorithm, **case.keywords)
    expected = reference.conv(x, weight, bias, **case.keywords)
    out = np.ones(plan.output_shape, np.float32)
    assert_within_bound(plan(x, num_threads=1), expected, plan.error_bound, case.reduction)
    assert_same_bits(plan(x, num_threads=2), plan(x, num_threads=1))
    assert_within_bound(plan(x, out, accumulate=True), expected + 1, plan.error_bound, case.reduction)


@given(
    size=st.integers(1, 60_000),
    kernel=st.integers(1, 9),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 40),
    padding=st.tuples(st.integers(0, 300), st.integers(0, 300)),
    channels=st.sampled_from([1, 3, 64, 600]),
)
def test_segments_cover_every_output_once(size, kernel, stride, dilation, padding, channels):
    size = max(size, dilation * (kernel - 1) + 1)
    problem = ConvGeometry.create(
        (2, channels, size), (4, channels, kernel), stride=stride, dilation=dilation, padding=(padding,)
    )
    x = np.broadcast_to(np.float32(0), (2, size, channels))
    out = np.zeros((2, problem.output_size[0], 1))
    for part in lowering.passes(problem):
        target = part.write(out)
        assert target.shape[:3] == (part.geometry.batch, *part.geometry.output_size)
        assert part.read(x).shape[:3] == (part.geometry.batch, *part.geometry.input_size)
        target += 1
        if part.step:  # whatever lies between two images of a batch must not leave the row
            reach = (part.geometry.batch - 1) * part.step + part.geometry.input_size[1]
            assert part.source[2].start + reach <= size
    assert (out == 1).all()


def test_outputs_in_the_padding_of_a_depth_are_the_bias():
    x, weight = np.ones((1, 2, 3, 4, 4), np.float32), np.ones((3, 2, 2, 1, 1), np.float32)
    bias = np.array([1, -2, 3], np.float32)
    y = fc.conv3d(x, weight, bias, padding=((5, 5), (0, 0), (0, 0)), activation="relu")
    np.testing.assert_array_equal(y[0, :, 0, 0, 0], [1, 0, 3])
    np.testing.assert_array_equal(y[0, :, 6, 0, 0], [5, 2, 7])
    np.testing.assert_array_equal(y[0, :, -1, 0, 0], [1, 0, 3])


@pytest.mark.parametrize("rank", RANKS)
@given(data=st.data())
def test_torch(rank, data):
    torch = pytest.importorskip("torch")
    case = data.draw(strategies.ranked_cases(rank))
    x, weight, bias = case.normal(np.float64)
    widths = [amount for pair in reversed(case.padding) for amount in pair]
    convolve = getattr(torch.nn.functional, f"conv{rank}d")
    expected = convolve(
        torch.nn.functional.pad(torch.from_numpy(x), widths),
        torch.from_numpy(weight),
        torch.from_numpy(bias),
        stride=case.stride,
        dilation=case.dilation,
        groups=case.groups,
    )
    y = CONVOLVE[rank](x, weight, bias, **case.keywords)
    np.testing.assert_allclose(y, expected.numpy(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("rank", RANKS)
def test_padding_modes(rank, mode):
    rng = np.random.default_rng(5)
    x, weight = rng.standard_normal((2, 3, *[6] * rank)), rng.standard_normal((4, 3, *[3] * rank))
    y = CONVOLVE[rank](x, weight, padding=2, padding_mode=mode)
    padded = np.pad(x, [(0, 0), (0, 0), *[(2, 2)] * rank], reference.PAD_MODES[mode])
    np.testing.assert_allclose(y, CONVOLVE[rank](padded, weight), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("rank", "layout"), [(1, "NWC"), (3, "NDHWC")])
def test_channels_last(rank, layout):
    rng = np.random.default_rng(6)
    x, weight = rng.standard_normal((2, 3, *[7] * rank)), rng.standard_normal((4, 3, *[3] * rank))
    expected = CONVOLVE[rank](x, weight, padding="same", stride=2)
    last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    y = CONVOLVE[rank](last, weight, padding="same", stride=2, layout=layout)
    assert y.flags.c_contiguous
    np.testing.assert_array_equal(np.moveaxis(y, -1, 1), expected)
    view = CONVOLVE[rank](np.moveaxis(last, -1, 1), weight, padding="same", stride=2)
    assert np.moveaxis(view, 1, -1).flags.c_contiguous
    np.testing.assert_array_equal(view, expected)


@pytest.mark.parametrize("rank", RANKS)
def test_empty_batch_and_out_and_accumulate(rank):
    rng = np.random.default_rng(7)
    weight = rng.standard_normal((4, 3, *[3] * rank))
    assert CONVOLVE[rank](np.ones((0, 3, *[5] * rank)), weight).shape == (0, 4, *[3] * rank)
    x = rng.standard_normal((2, 3, *[5] * rank))
    plan = PLAN[rank](x.shape, weight, activation="relu", padding=4)
    residual = rng.standard_normal(plan.output_shape)
    out = residual.copy()
    assert plan(x, out=out, accumulate=True) is out
    expected = np.maximum(residual + CONVOLVE[rank](x, weight, padding=4), 0)
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, w: fc.conv1d(x, w), r"^x must have 3 axes \(N, C, W\), got 4"),
        (lambda x, w: fc.conv3d(x, w), r"^x must have 5 axes \(N, C, D, H, W\), got 4"),
        (lambda x, w: fc.conv1d(x[0], w), r"^weight must have 3 axes \(C_out, C_in/groups, k_w\), got 4"),
        (lambda x, w: fc.conv1d(x[0], w[0], layout="NHWC"), r"^layout must be one of 'NCW', 'NWC'"),
        (lambda x, w: fc.conv1d(x[0], w[0], stride=(1, 2)), r"^stride must be an integer or 1 of them"),
        (lambda x, w: fc.conv1d(x[0], w[0], padding=((1, 1), (1, 1))), r"^padding must have 1 \(low, high\)"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones((3, 3, 5, 5), np.float32), np.ones((3, 3, 5, 3), np.float32))
