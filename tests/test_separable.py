"""Separable convolutions: one pass against two, and kernels taken apart."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastconv as fc
import reference
from fastconv import kernels, lowering
from fastconv.functional import plan_separable_conv2d, separable_conv2d, separate_kernel
from fastconv.geometry import ConvGeometry
from strategies import MEMORY_LAYOUTS
from support import DTYPES, LEVELS, assert_same_bits

SOBEL = np.array([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])


@st.composite
def problems(draw):
    """(keywords of the depthwise convolution, a function that makes its five arrays from a dtype)."""
    channels = draw(st.sampled_from([1, 2, 3, 5, 8, 16, 17, 33, 40, 300]))
    multiplier = draw(st.sampled_from([1, 1, 2, 3])) if channels < 100 else 1
    outputs = draw(st.sampled_from([1, 2, 7, 31, 32, 33, 70]))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    pair = st.tuples(st.integers(0, 3), st.integers(0, 3))
    padding = draw(st.tuples(pair, pair))
    low = [max(1, d * (k - 1) + 1 - sum(p)) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = tuple(draw(st.integers(smallest, smallest + 9)) for smallest in low)
    seed, batch = draw(st.integers(0, 2**32)), draw(st.integers(1, 3))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))

    def arrays(dtype, exact=True):
        rng = np.random.default_rng(seed)
        shapes = [
            (batch, channels, *size), (channels * multiplier, 1, *kernel),
            (outputs, channels * multiplier, 1, 1), (channels * multiplier,), (outputs,),
        ]  # fmt: skip
        if exact:
            return [rng.integers(-3, 4, shape).astype(dtype) for shape in shapes]
        return [rng.standard_normal(shape).astype(dtype) for shape in shapes]

    return {"stride": stride, "padding": padding, "dilation": dilation}, arrays


def two_convolutions(x, depthwise, pointwise, first_bias, second_bias, keywords, relu=(False, False)):
    mid = reference.conv(x, depthwise, first_bias, groups=x.shape[1], relu=relu[0], **keywords)
    return reference.conv(mid, pointwise, second_bias, relu=relu[1])


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=40)
@given(
    problems(), st.sampled_from(list(MEMORY_LAYOUTS)), st.booleans(), st.tuples(st.booleans(), st.booleans())
)
def test_is_two_convolutions(level, problem, layout, biased, relu):
    """Sums of small integers, so exactly; from any memory layout, with any number of threads."""
    keywords, make = problem
    names = [("relu" if on else None) for on in relu]
    for dtype in DTYPES:
        x, depthwise, pointwise, *biases = make(dtype)
        biases = biases if biased else [None, None]
        expected = two_convolutions(x, depthwise, pointwise, *biases, keywords, relu)
        results = []
        for num_threads in (1, 2):
            with kernels.use(level):
                y = separable_conv2d(
                    MEMORY_LAYOUTS[layout](x), depthwise, pointwise, *biases, **keywords,
                    depthwise_activation=names[0], activation=names[1], num_threads=num_threads,
                )  # fmt: skip
            assert y.dtype == dtype
            np.testing.assert_array_equal(y, expected)
            results.append(y)
        assert_same_bits(*results)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("shape", "multiplier", "keywords"),
    [
        ((2, 24, 5, 5200), 1, {"padding": ((1, 1), (1, 1))}),
        ((1, 12, 6, 12_011), 2, {"padding": ((0, 1), (2, 1)), "stride": (2, 2), "dilation": (1, 3)}),
    ],
)
def test_wide_images_are_cut_into_strips(shape, multiplier, keywords, channels_last):
    rng = np.random.default_rng(0)
    mid = shape[1] * multiplier
    shapes = shape, (mid, 1, 3, 3), (7, mid, 1, 1), (mid,), (7,)
    x, *weights = (rng.integers(-3, 4, size).astype(np.float32) for size in shapes)
    if channels_last:
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    plan = plan_separable_conv2d(shape, *weights, depthwise_activation="relu", **keywords)
    inner = ConvGeometry.create(shape, shapes[1], groups=shape[1], **keywords)
    assert len(lowering.passes(inner)) > shape[0]
    expected = two_convolutions(x, *weights, keywords, ("relu", None))
    for num_threads in (1, 2):
        np.testing.assert_array_equal(plan(x, num_threads=num_threads), expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("channels", [40, 600])
def test_bits_depend_neither_on_threads_nor_on_the_batch(level, channels):
    rng = np.random.default_rng(0)
    for dtype in DTYPES:
        x = rng.standard_normal((3, channels, 19, 21)).astype(dtype)
        depthwise = rng.standard_normal((channels, 1, 3, 3)).astype(dtype)
        pointwise = rng.standard_normal((35, channels, 1, 1)).astype(dtype)
        with kernels.use(level):
            plan = plan_separable_conv2d(x.shape, depthwise, pointwise, padding=1)
            one = plan(x, num_threads=1)
            assert_same_bits(plan(x, num_threads=2), one)
            assert_same_bits(plan(x, num_threads=3), one)
            assert_same_bits(separable_conv2d(x[1:2], depthwise, pointwise, padding=1), one[1:2])
        mid = reference.conv(x, depthwise, padding=((1, 1), (1, 1)), groups=channels)
        expected = reference.conv(mid, pointwise)
        error = np.abs(one - expected).max() / np.abs(expected).max()
        assert error <= np.finfo(dtype).eps * 8


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("size", [(32, 32), (29, 35)], ids=str)
def test_strassens_product_has_the_same_bits_in_any_layout_with_any_threads(level, size):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 128, *size), dtype=np.float32)
    depthwise = rng.standard_normal((128, 1, 3, 3), dtype=np.float32)
    pointwise = rng.standard_normal((253, 128, 1, 1), dtype=np.float32)
    bias = rng.standard_normal(253, dtype=np.float32)
    with kernels.use(level):
        plan = plan_separable_conv2d(x.shape, depthwise, pointwise, None, bias, padding=1, activation="relu")
        assert plan._packed.halved
        one = plan(x, num_threads=1)
        for layout in MEMORY_LAYOUTS.values():
            for num_threads in (1, 2, 3):
                assert_same_bits(plan(layout(x), num_threads=num_threads), one)
    mid = reference.conv(x, depthwise, padding=((1, 1), (1, 1)), groups=128)
    expected = reference.conv(mid, pointwise, bias, relu=True)
    assert np.abs(one - expected).max() <= 2e-6 * np.abs(expected).max()


def test_is_torchs_two_calls():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, depthwise = rng.standard_normal((2, 6, 11, 12)), rng.standard_normal((12, 1, 3, 3))
    pointwise, first, second = (
        rng.standard_normal((5, 12, 1, 1)),
        rng.standard_normal(12),
        rng.standard_normal(5),
    )
    keywords = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
    y = separable_conv2d(x, depthwise, pointwise, first, second, **keywords)
    x, depthwise, pointwise, first, second = map(torch.tensor, (x, depthwise, pointwise, first, second))
    mid = torch.nn.functional.conv2d(x, depthwise, first, groups=6, **keywords)
    np.testing.assert_allclose(y, torch.nn.functional.conv2d(mid, pointwise, second), rtol=1e-10, atol=1e-12)


def test_memory_format_output_and_dtypes():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, 9, 8), dtype=np.float32)
    weights = (
        rng.standard_normal((4, 1, 3, 3), dtype=np.float32),
        rng.standard_normal((6, 4, 1, 1)).astype("f4"),
    )
    y = separable_conv2d(x, *weights)
    assert y.flags.c_contiguous
    last = MEMORY_LAYOUTS["channels_last"](x)
    assert separable_conv2d(last, *weights).strides[1] == 4
    assert_same_bits(separable_conv2d(last, *weights), y)
    out = np.full((7, 6, 2, 6), np.nan, np.float32).transpose(2, 1, 0, 3)
    assert separable_conv2d(x, *weights, out=out) is out
    assert_same_bits(out, y)
    assert separable_conv2d(x.astype(np.float16), *weights).dtype == np.float32
    assert separable_conv2d(x.astype(np.float64), *weights).dtype == np.float64
    assert separable_conv2d(x[:0], *weights).shape == (0, 6, 7, 6)
    # An input that is also the output, as the layers of a chain may share one buffer.
    plan = plan_separable_conv2d(x.shape, weights[0], weights[1][:4], padding=1)
    expected, shared = plan(x), x.copy()
    assert_same_bits(plan(shared, out=shared), expected)
    before = x.copy()
    x.flags.writeable = False
    plan(x)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize(
    ("arguments", "error", "start"),
    [
        ({"x": np.ones((1, 4, 5, 5), int)}, TypeError, "x must have dtype"),
        ({"x": np.ones((4, 5, 5))}, ValueError, "x must have 4 axes"),
        ({"x": np.ones((1, 0, 5, 5))}, ValueError, "depthwise_weight"),
        ({"x": np.ones((1, 4, 0, 5))}, ValueError, "input"),
        ({"depthwise_weight": np.ones((4, 2, 3, 3))}, ValueError, "depthwise_weight must be"),
        ({"depthwise_weight": np.ones((6, 1, 3, 3))}, ValueError, "depthwise_weight must be"),
        ({"depthwise_weight": np.ones((4, 1, 9, 3))}, ValueError, "weight must fit"),
        ({"depthwise_weight": np.ones((4, 1, 3, 3), bool)}, TypeError, "depthwise_weight"),
        ({"pointwise_weight": np.ones((2, 3, 1, 1))}, ValueError, "pointwise_weight must be"),
        ({"pointwise_weight": np.ones((2, 4, 1, 3))}, ValueError, "pointwise_weight must be"),
        ({"pointwise_weight": np.ones((0, 4, 1, 1))}, ValueError, "pointwise_weight must be"),
        ({"depthwise_bias": np.ones(3)}, ValueError, r"depthwise_bias must have shape \(4,\)"),
        ({"pointwise_bias": np.ones(3)}, ValueError, r"pointwise_bias must have shape \(2,\)"),
        ({"stride": 0}, ValueError, "stride"),
        ({"padding": "smae"}, ValueError, "padding"),
        ({"dilation": 1.5}, TypeError, "dilation"),
        ({"activation": "rleu"}, ValueError, "activation"),
        ({"depthwise_activation": "rleu"}, ValueError, "depthwise_activation"),
        ({"num_threads": 0}, ValueError, "num_threads"),
        ({"out": np.ones((1, 2, 5, 5))}, ValueError, "out"),
        ({"out": [1]}, TypeError, "out"),
    ],
)
def test_refused(arguments, error, start):
    good = {
        "x": np.ones((1, 4, 5, 5)), "depthwise_weight": np.ones((4, 1, 3, 3)),
        "pointwise_weight": np.ones((2, 4, 1, 1)),
    }  # fmt: skip
    with pytest.raises(error, match=f"^{start}"):
        separable_conv2d(**{**good, **arguments})


def test_a_plan_refuses_other_inputs():
    plan = plan_separable_conv2d((1, 4, 5, 5), np.ones((4, 1, 3, 3)), np.ones((2, 4, 1, 1)))
    with pytest.raises(ValueError, match=r"x must have shape \(1, 4, 5, 5\), as planned"):
        plan(np.ones((1, 4, 5, 6)))
    with pytest.raises(TypeError, match="x must have dtype float64"):
        plan(np.ones((1, 4, 5, 5), np.float32))


def composed(separated, groups=1):
    """The kernel that a separated one stands for."""
    vertical, horizontal, _ = separated
    rank, group_out = horizontal.shape[1], len(horizontal) // groups
    vertical = vertical.reshape(groups, rank, vertical.shape[1], -1)
    horizontal = horizontal.reshape(groups, group_out, rank, -1)
    return np.einsum("grcu,gmrv->gmcuv", vertical, horizontal).reshape(
        groups * group_out, vertical.shape[2], vertical.shape[3], -1
    )


@pytest.mark.parametrize("profile", [(1, 2, 1), (1, 4, 6, 4, 1), (0.1, 0.8, 0.1)])
def test_separable_kernels_lose_nothing(profile):
    gaussian = np.outer(profile, profile).astype(float)
    for kernel in (gaussian, SOBEL, SOBEL.T):
        separated = separate_kernel(kernel[None, None])
        assert separated.error <= 1e-15
        np.testing.assert_allclose(
            composed(separated)[0, 0], kernel, rtol=0, atol=1e-14 * np.abs(kernel).max()
        )
        x = np.random.default_rng(0).standard_normal((2, 1, 9, 8))
        y = fc.conv2d(fc.conv2d(x, separated.vertical), separated.horizontal)
        np.testing.assert_allclose(y, fc.conv2d(x, kernel[None, None]), rtol=0, atol=1e-12)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    groups=st.integers(1, 3),
    group_out=st.integers(1, 4),
    group_in=st.integers(1, 4),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    data=st.data(),
)
def test_no_kernel_of_its_rank_comes_closer(seed, groups, group_out, group_in, kernel, data):
    """Eckart–Young: the error is that of the singular values left out."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((groups * group_out, group_in, *kernel))
    most = min(group_in * kernel[0], group_out * kernel[1])
    rank = data.draw(st.integers(1, most))
    separated = separate_kernel(weight, rank, groups=groups)
    assert separated.vertical.shape == (groups * rank, group_in, kernel[0], 1)
    assert separated.horizontal.shape == (groups * group_out, rank, 1, kernel[1])
    left = sum(
        (np.linalg.svd(part.transpose(1, 2, 0, 3).reshape(-1, group_out * kernel[1]))[1][rank:] ** 2).sum()
        for part in np.split(weight, groups)
    )
    np.testing.assert_allclose(separated.error, np.sqrt(left) / np.linalg.norm(weight), rtol=1e-9, atol=1e-12)
    lost = np.linalg.norm(composed(separated, groups) - weight) / np.linalg.norm(weight)
    np.testing.assert_allclose(lost, separated.error, rtol=1e-9, atol=1e-12)
    x = rng.standard_normal((1, groups * group_in, 7, 7))
    y = fc.conv2d(fc.conv2d(x, separated.vertical, groups=groups), separated.horizontal, groups=groups)
    expected = fc.conv2d(x, composed(separated, groups), groups=groups)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-10)


def test_every_filter_on_its_own():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((3, 2, 3, 3))
    alone = separate_kernel(weight.reshape(-1, 1, 3, 3), groups=6)
    for index, kernel in enumerate(weight.reshape(-1, 3, 3)):
        left, values, right = np.linalg.svd(kernel)
        best = values[0] * np.outer(left[:, 0], right[0])
        np.testing.assert_allclose(np.outer(alone.vertical[index], alone.horizontal[index]), best, atol=1e-12)
    assert alone.error < separate_kernel(weight).error


def test_zero_kernels_and_dtypes():
    assert separate_kernel(np.zeros((1, 1, 3, 3))).error == 0
    for given_dtype, dtype in ((np.float16, np.float32), (np.float32, np.float32), (np.float64, np.float64)):
        vertical, horizontal, error = separate_kernel(np.ones((1, 2, 3, 3), given_dtype))
        assert vertical.dtype == horizontal.dtype == dtype
        assert isinstance(error, float)


@pytest.mark.parametrize(
    ("arguments", "error", "start"),
    [
        ({"weight": SOBEL}, ValueError, "weight must have 4 axes"),
        ({"weight": np.ones((1, 1, 3, 3), int)}, TypeError, "weight"),
        ({"weight": np.ones((0, 1, 3, 3))}, ValueError, "weight"),
        ({"weight": np.full((1, 1, 3, 3), np.nan)}, ValueError, "weight must be finite"),
        ({"rank": 0}, ValueError, "rank"),
        ({"rank": 4}, ValueError, "rank must be at most 3"),
        ({"rank": 1.0}, TypeError, "rank"),
        ({"groups": 2}, ValueError, "groups must divide C_out=1"),
    ],
)
def test_separate_kernel_refuses(arguments, error, start):
    with pytest.raises(error, match=f"^{start}"):
        separate_kernel(**{"weight": SOBEL[None, None], **arguments})
