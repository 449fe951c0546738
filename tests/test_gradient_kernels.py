"""The kernels that gradients are made of, and depthwise gradients: every level, layout, thread count."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastconv as fc
import reference
import strategies
from fastconv import kernels
from support import (
    DTYPES,
    LEVELS,
    assert_finite_differences,
    assert_same_bits,
    channels_last,
    gradients,
    output_gradient,
    references,
)

# Pixels as kernels take them, (N, h, w, C), in several memory formats.
FORMATS = {
    "channels_last": np.copy,
    "planar": lambda a: np.ascontiguousarray(a.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1),
    "every_other": lambda a: np.repeat(np.repeat(a, 2, axis=3), 3, axis=2)[:, :, ::3, ::2],
    "reversed": lambda a: a[:, ::-1, ::-1, ::-1].copy()[:, ::-1, ::-1, ::-1],
}
SEEDS = st.integers(0, 2**32 - 1)
# Counts where vectors of 2 to 16 lanes end, and of a panel or a few vectors.
COUNTS = st.integers(1, 35) | st.sampled_from([47, 48, 63, 64, 65, 100])


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=40)
@given(data=st.data())
def test_pixels_are_spread(level, data):
    steps = [data.draw(st.integers(1, 5)) for _ in range(2)]
    firsts = [data.draw(st.integers(0, 4)) for _ in range(2)]
    taken = [data.draw(st.integers(1, 9)) for _ in range(2)]
    size = [
        first + (n - 1) * step + 1 + data.draw(st.integers(0, 6))
        for first, n, step in zip(firsts, taken, steps, strict=True)
    ]
    batch, channels = data.draw(st.integers(0, 2)), data.draw(COUNTS)
    arrange, arrange_out = (FORMATS[data.draw(st.sampled_from(sorted(FORMATS)))] for _ in range(2))
    rng = np.random.default_rng(data.draw(SEEDS))
    places = [slice(f, f + (n - 1) * s + 1, s) for f, n, s in zip(firsts, taken, steps, strict=True)]
    for dtype in DTYPES:
        x = rng.standard_normal((batch, *taken, channels)).astype(dtype)
        edge = rng.standard_normal(channels).astype(dtype)
        expected = np.broadcast_to(edge, (batch, *size, channels)).copy()
        expected[:, places[0], places[1]] = x
        for count in (1, 2):
            out = arrange_out(np.full(expected.shape, np.nan, dtype))
            with kernels.use(level):
                kernels.active().spread_pixels(
                    arrange(x), edge, (firsts[0], steps[0], firsts[1], steps[1]), out, count
                )
            assert_same_bits(np.ascontiguousarray(out), expected)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=25)
@given(
    batch=st.integers(0, 3), channels=st.integers(1, 5), size=st.tuples(COUNTS, COUNTS),
    steps=st.tuples(st.integers(1, 4), st.integers(1, 5)), backwards=st.booleans(),
)  # fmt: skip
def test_pixels_are_taken(level, batch, channels, size, steps, backwards):
    whole = np.random.default_rng(0).standard_normal((batch, channels, *size))
    for dtype in DTYPES:
        taken = whole.astype(dtype)[:, :, :: steps[0], :: steps[1]]
        taken = taken[:, ::-1, ::-1, ::-1] if backwards else taken
        for count in (1, 2):
            out = np.full(taken.shape, np.nan, dtype)
            with kernels.use(level):
                kernels.active().take_pixels(taken, out, count)
            assert_same_bits(out, np.ascontiguousarray(taken))


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=25)
@given(
    outputs=st.integers(1, 150), inputs=COUNTS, depth=st.integers(1, 20), transposed=st.booleans(), seed=SEEDS
)
def test_strassens_weights(level, outputs, inputs, depth, transposed, seed):
    """Exact: sums of three small integers."""
    weight = np.random.default_rng(seed).integers(-4, 5, (outputs, inputs))
    half = -(-inputs // 2)
    for dtype in DTYPES:
        with kernels.use(level):
            width = 2 * kernels.active().vector_bytes() // np.dtype(dtype).itemsize
            pairs = -(-outputs // (2 * width))
            given_weight = weight.astype(dtype)
            given_weight = np.asfortranarray(given_weight) if transposed else given_weight
            results = []
            for count in (1, 2):
                packed = np.full((pairs, 7, half, width), np.nan, dtype)
                workspace = np.full((count, 2 * inputs, width), np.nan, dtype)
                kernels.active().pack_strassen(given_weight, depth, packed, workspace, count)
                results.append(packed)
        # Of an odd number of inputs the one in both halves counts in the first.
        whole = np.zeros((2, half, 2, pairs * width))
        factor = np.zeros((inputs, 2 * pairs * width))
        factor[:, :outputs] = weight.T
        factor = factor.reshape(inputs, 2, -1)
        whole[0], whole[1, 2 * half - inputs :] = factor[:half], factor[half:]
        (b11, b12), (b21, b22) = whole.transpose(0, 2, 1, 3)
        t1, t3 = b12 - b11, b22 - b12
        t2 = b22 - t1
        seven = np.array([b11, b21, t2, t3, b21 - t2, t1, b22])
        seven = seven.reshape(7, half, pairs, width).transpose(2, 0, 1, 3)
        # All factors of a piece of the channels, then those of the next.
        pieces = -(-half // depth)
        ends = [half * piece // pieces for piece in range(pieces + 1)]
        runs = [seven[:, :, first:last].reshape(pairs, -1) for first, last in pairwise(ends)]
        expected = np.concatenate(runs, axis=1).reshape(seven.shape)
        for packed in results:
            np.testing.assert_array_equal(packed, expected)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=30)
@given(
    parts=st.integers(1, 5), groups=st.integers(1, 3), taps=st.sampled_from([1, 2, 3, 9, 25, 70]),
    inputs=st.integers(1, 40), outputs=COUNTS, order=st.permutations(range(4)), seed=SEEDS,
)  # fmt: skip
def test_sums_of_parts(level, parts, groups, taps, inputs, outputs, order, seed):
    """Into results of any memory order; exact."""
    rng = np.random.default_rng(seed)
    for dtype in DTYPES:
        with kernels.use(level):
            lanes = kernels.active().vector_bytes() // np.dtype(dtype).itemsize
            pitch = -(-outputs // lanes) * lanes
            partial = rng.integers(-9, 10, (parts, groups, taps, inputs, pitch)).astype(dtype)
            shape = (groups, outputs, inputs, taps)
            for count in (1, 2):
                memory = np.full([shape[axis] for axis in order], np.nan, dtype)
                out = memory.transpose(np.argsort(order))
                kernels.active().sum_weight_grad(partial, out, count)
                np.testing.assert_array_equal(out, partial.sum(0)[..., :outputs].transpose(0, 3, 2, 1))


@st.composite
def depthwise_cases(draw):
    """Depthwise kernels of two to seven columns, most of stride 2, and some without a form of their own."""
    channels = draw(st.integers(2, 40) | st.sampled_from([16, 32, 48, 64]))
    kernel = draw(
        st.sampled_from([(3, 3), (5, 5), (3, 3), (2, 2), (4, 4), (7, 7), (6, 6), (2, 3), (1, 3), (3, 5)])
    )
    stride = draw(st.sampled_from([(2, 2), (2, 2), (1, 1), (1, 2), (3, 2), (2, 1)]))
    return draw(
        strategies.cases(
            kernel_size=kernel,
            stride=stride,
            dilation=draw(st.sampled_from([(1, 1), (1, 1), (2, 1)])),
            channels=st.just((channels, channels, channels)),
        )
    )


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=60)
@given(case=depthwise_cases())
def test_depthwise_gradients_are_exact(level, case):
    """In every memory format, one of which is mixed."""
    for dtype in DTYPES:
        x, weight, _ = case.integers(dtype)
        grad = output_gradient(case, dtype)
        wanted = references(case, x, weight, grad)
        plain = strategies.MEMORY_LAYOUTS["contiguous"]
        for arrange, arrange_grad in (
            (plain, plain), (channels_last, channels_last), (plain, channels_last),
            (strategies.MEMORY_LAYOUTS["sliced"], strategies.MEMORY_LAYOUTS["reversed"]),
        ):  # fmt: skip
            with kernels.use(level):
                for count in (1, 2):
                    actual = gradients(case, arrange(x), weight, arrange_grad(grad), num_threads=count)
                    for one, expected in zip(actual, wanted, strict=True):
                        np.testing.assert_array_equal(one, expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("padding", [((1, 1), (1, 0)), ((0, 1), (1, 1)), ((2, 0), (0, 2))])
def test_transposed_depthwise_with_a_bias(level, layout, padding):
    """Plans, whose scratch memory is used again, and images of which several bands or tiles are made."""
    rng = np.random.default_rng(3)
    grad, weight = rng.integers(-4, 5, (2, 72, 61, 75)), rng.integers(-4, 5, (72, 1, 3, 3))
    bias = rng.integers(-9, 10, 72)
    size = tuple(2 * (n - 1) + 3 + 1 - sum(pair) for n, pair in zip((61, 75), padding, strict=True))
    for dtype in DTYPES:
        whole = reference.conv_input_grad(
            grad.astype(dtype), weight.astype(dtype), (2, 72, *size), stride=(2, 2), padding=padding,
            dilation=(1, 1), groups=72,
        )  # fmt: skip
        expected = np.maximum(whole + bias.reshape(1, -1, 1, 1), 0)
        given_grad = grad.astype(dtype)
        if layout == "NHWC":
            given_grad = np.ascontiguousarray(given_grad.transpose(0, 2, 3, 1))
            expected = expected.transpose(0, 2, 3, 1)
        with kernels.use(level):
            plan = fc.plan_conv_transpose2d(
                given_grad.shape, weight.astype(dtype), bias.astype(dtype), stride=2, padding=padding,
                output_padding=1, groups=72, activation="relu", layout=layout, num_threads=2,
            )  # fmt: skip
            for count in (1, 2):
                np.testing.assert_array_equal(plan(given_grad, num_threads=count), expected)
        assert plan.plans == ()
        assert "together" in plan.explain()
        assert plan.kept_bytes <= plan.packed_bytes + plan.workspace_bytes + weight.size * 8 + bias.size * 8
        assert plan.multiplications == grad.size * 9
        plan.repack((2 * weight).astype(dtype), (2 * bias).astype(dtype))
        np.testing.assert_array_equal(plan(given_grad), 2 * expected)


@settings(max_examples=10)
@given(depthwise_cases())
def test_depthwise_gradients_by_finite_differences(case):
    x, weight, bias = case.normal(np.float64)
    grad = output_gradient(case, np.float64)
    rng = np.random.default_rng(case.seed)

    def loss():
        return float((fc.conv2d(x, weight, bias, **case.keywords) * grad).sum())

    for arrange in (np.copy, channels_last):
        actual = gradients(case, arrange(x), weight, arrange(grad))
        assert_finite_differences(loss, x, actual[0], rng)
        assert_finite_differences(loss, weight, actual[1], rng)


def test_depthwise_gradients_of_no_images():
    weight = np.ones((32, 1, 3, 3), np.float32)
    x, grad = np.empty((0, 32, 8, 8), np.float32), np.empty((0, 32, 4, 4), np.float32)
    options = {"stride": 2, "padding": 1, "groups": 32}
    assert fc.functional.conv2d_input_grad(grad, weight, x.shape, **options).shape == x.shape
    np.testing.assert_array_equal(
        fc.functional.conv2d_weight_grad(grad, x, weight.shape, **options), 0 * weight
    )
