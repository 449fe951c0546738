"""Gradients of convolution and linear maps: the reference, finite differences, PyTorch, thread counts."""

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

functional = fc.functional
RNG = np.random.default_rng(9)
MEDIUM = strategies.Case((3, 33, 29, 31), (37, 33, 3, 3), (2, 1), ((1, 1), (1, 0)), seed=5)


def weight_gradients(case, x, weight, grad, level):
    """For each memory layout, the weight gradient by one to three threads."""
    for arrange in (strategies.MEMORY_LAYOUTS["contiguous"], channels_last):
        with kernels.use(level):
            yield [gradients(case, arrange(x), weight, arrange(grad), num_threads=n)[1] for n in (1, 2, 3)]


def cases_of(rank):
    return strategies.cases() if rank == 2 else strategies.ranked_cases(rank)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("rank", [1, 2, 3])
@settings(max_examples=20)
@given(data=st.data())
def test_reference(rank, level, data):
    """Both may go through transforms, so both get a tolerance."""
    case = data.draw(cases_of(rank))
    for dtype in DTYPES:
        x, weight, _ = case.integers(dtype)
        grad = output_gradient(case, dtype)
        wanted = references(case, x, weight, grad)
        with kernels.use(level):
            actual = gradients(case, x, weight, grad, num_threads=1)
            for y, again, expected in zip(
                actual, gradients(case, x, weight, grad, num_threads=2), wanted, strict=True
            ):
                assert_same_bits(y, again)
                assert (y.dtype, y.shape) == (dtype, expected.shape)
                tolerance = 2e-5 if dtype == np.float32 else 1e-13
                assert np.abs(y - expected).max() <= tolerance * max(1, np.abs(expected).max())


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=30)
@given(case=strategies.cases(stride=(2, 1)) | strategies.cases(kernel_size=(1, 1)))
def test_direct_sums_of_integers_are_exact(level, case):
    x, weight, _ = case.integers(np.float32)
    grad = output_gradient(case, np.float32)
    with kernels.use(level):
        actual = functional.conv2d_weight_grad(grad, x, weight.shape, **case.keywords)
    expected = reference.conv_weight_grad(grad, x, weight.shape, **case.keywords)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=25)
@given(
    channels=strategies.channel_counts(),
    size=st.tuples(st.integers(1, 24), st.integers(128, 300))
    | st.tuples(st.integers(12, 24), st.integers(11, 40)),
    batch=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_planes_of_a_pointwise_kernel_are_multiplied_where_they_lie(level, channels, size, batch, seed):
    in_channels, out_channels, groups = channels
    case = strategies.Case(
        (batch, in_channels, *size), (out_channels, in_channels // groups, 1, 1), groups=groups, seed=seed
    )
    for dtype in DTYPES:
        x, weight, _ = case.integers(dtype)
        grad = output_gradient(case, dtype)
        expected = reference.conv_weight_grad(grad, x, weight.shape, **case.keywords)
        for actual in weight_gradients(case, x, weight, grad, level):
            for one in actual:
                np.testing.assert_array_equal(one, expected)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=40)
@given(
    case=strategies.cases(
        channels=st.sampled_from(
            [
                (16, 16, 8),
                (20, 20, 5),
                (48, 48, 6),
                (36, 36, 6),
                (96, 96, 6),
                (12, 24, 3),
                (40, 20, 5),
                (6, 6, 2),
            ]
        ),
        largest_batch=3,
    )
)
def test_narrow_groups(level, case):
    """Vectors of several groups or of one, the last of them not full; the phases of a stride."""
    for dtype in DTYPES:
        x, weight, _ = case.integers(dtype)
        grad = output_gradient(case, dtype)
        wanted = references(case, x, weight, grad)
        for arrange in (strategies.MEMORY_LAYOUTS["contiguous"], channels_last):
            with kernels.use(level):
                results = [gradients(case, arrange(x), weight, arrange(grad), num_threads=n) for n in (1, 2)]
            for y, again, expected in zip(*results, wanted, strict=True):
                assert_same_bits(y, again)
                tolerance = 2e-5 if dtype == np.float32 else 1e-13
                assert np.abs(y - expected).max() <= tolerance * max(1, np.abs(expected).max())


@pytest.mark.parametrize("groups", [4, 8, 32])
def test_many_pixels_of_narrow_groups_are_summed_exactly(groups):
    """Several parts, blocks and units, and columns in chunks."""
    case = strategies.Case(
        (2, 256, 5, 300), (256, 256 // groups, 3, 1), (2, 1), ((1, 0), (0, 0)), groups=groups
    )
    x, weight, _ = case.integers(np.float32)
    grad = output_gradient(case, np.float32)
    expected = reference.conv_weight_grad(grad, x, weight.shape, **case.keywords)
    for level in LEVELS:
        for actual in weight_gradients(case, x, weight, grad, level):
            for one in actual:
                np.testing.assert_array_equal(one, expected)


TILED = [
    # Large enough for several parts, blocks of channels and of tiles, and every form of Winograd's.
    strategies.Case((2, 70, 21, 30), (67, 70, 3, 3), padding=((1, 1), (1, 1))),
    strategies.Case((1, 33, 16, 17), (40, 33, 5, 5), padding=((2, 2), (2, 2))),
    strategies.Case((2, 96, 13, 11), (64, 48, 3, 3), padding=((2, 1), (0, 3)), dilation=(2, 1), groups=2),
    strategies.Case((1, 64, 20, 23), (64, 64, 2, 2)),
    strategies.Case((2, 64, 9, 40), (64, 64, 1, 7), padding=((0, 0), (3, 3))),
    strategies.Case((1, 64, 900), (64, 64, 3), (1,), ((1, 1),), (1,)),
    strategies.Case((1, 48, 6, 12, 14), (48, 48, 3, 3, 3), (1, 1, 1), ((1, 1),) * 3, (1, 1, 1)),
]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", TILED, ids=str)
def test_weight_gradient_by_tiles(case, level):
    """Relative to the largest: an error of a few units times the growth that winograd.py states."""
    for dtype, unit in ((np.float32, 2**-24), (np.float64, 2**-53)):
        x, weight, _ = case.normal(dtype)
        grad = output_gradient(case, dtype)
        expected = reference.conv_weight_grad(grad, x, weight.shape, **case.keywords)
        for actual in weight_gradients(case, x, weight, grad, level):
            assert_same_bits(actual[0], actual[1])
            assert_same_bits(actual[0], actual[2])
            assert np.abs(actual[0] - expected).max() <= 200 * unit * np.abs(expected).max()


def test_channels_last_gradients_stay_channels_last():
    x, weight, _ = MEDIUM.normal(np.float32)
    result = gradients(MEDIUM, x, weight, channels_last(output_gradient(MEDIUM, np.float32)))[0]
    assert result.strides[1] == result.itemsize


@pytest.mark.parametrize("level", LEVELS)
def test_same_bits_for_any_threads(level):
    for dtype in DTYPES:
        x, weight, _ = MEDIUM.normal(dtype)
        grad = RNG.standard_normal(output_gradient(MEDIUM, dtype).shape).astype(dtype)
        with kernels.use(level):
            expected = gradients(MEDIUM, x, weight, grad, num_threads=1)
            for num_threads in (1, 2, 4, 3, 2):
                actual = gradients(MEDIUM, x, weight, grad, num_threads=num_threads)
                assert_same_bits(actual[0], expected[0])
                assert_same_bits(actual[1], expected[1])


@settings(max_examples=20)
@given(strategies.cases(channels=st.sampled_from([(2, 3, 1), (4, 2, 2), (3, 3, 3)]), largest_batch=2))
def test_finite_differences(case):
    x, weight, bias = case.normal(np.float64)
    grad = output_gradient(case, np.float64)
    rng = np.random.default_rng(case.seed)

    def loss():
        return float((fc.conv2d(x, weight, bias, **case.keywords) * grad).sum())

    input_grad, weight_grad = gradients(case, x, weight, grad)
    assert_finite_differences(loss, x, input_grad, rng)
    assert_finite_differences(loss, weight, weight_grad, rng)


@pytest.mark.parametrize("rank", [1, 2, 3])
@settings(max_examples=20)
@given(data=st.data())
def test_torch(rank, data):
    torch = pytest.importorskip("torch")
    case = data.draw(cases_of(rank))
    x, weight, _ = case.normal(np.float64)
    grad = output_gradient(case, np.float64)
    leaves = torch.tensor(x, requires_grad=True), torch.tensor(weight, requires_grad=True)
    padded = torch.nn.functional.pad(leaves[0], [n for pair in reversed(case.padding) for n in pair])
    convolve = getattr(torch.nn.functional, f"conv{rank}d")
    y = convolve(padded, leaves[1], stride=case.stride, dilation=case.dilation, groups=case.groups)
    y.backward(torch.tensor(grad))
    for actual, leaf in zip(gradients(case, x, weight, grad), leaves, strict=True):
        scale = max(1.0, float(leaf.grad.abs().max()))
        np.testing.assert_allclose(actual, leaf.grad.numpy(), rtol=1e-9, atol=1e-11 * scale)


@pytest.mark.parametrize("memory", strategies.MEMORY_LAYOUTS)
def test_views_equal_their_copies(memory):
    arrange = strategies.MEMORY_LAYOUTS[memory]
    x, weight, _ = MEDIUM.normal(np.float32)
    grad = output_gradient(MEDIUM, np.float32)
    expected = gradients(MEDIUM, x, weight, grad)
    actual = gradients(MEDIUM, arrange(x), arrange(weight), arrange(grad))
    assert_same_bits(actual[0], expected[0])
    assert_same_bits(actual[1], expected[1])


def test_batch_of_zero():
    weight = np.ones((4, 3, 3, 3), np.float32)
    grad, x = np.empty((0, 4, 6, 6), np.float32), np.empty((0, 3, 8, 8), np.float32)
    assert functional.conv2d_input_grad(grad, weight, x.shape).shape == x.shape
    np.testing.assert_array_equal(functional.conv2d_weight_grad(grad, x, weight.shape), 0 * weight)


@pytest.mark.parametrize(
    "grad_shape", [(2, 4, 6, 7), (2, 4, 600, 600), (1, 4, 6, 6), (2, 5, 6, 6), (4, 6, 6)]
)
def test_a_gradient_of_the_wrong_shape_is_refused(grad_shape):
    """CVE-2021-29520: a gradient believed to have the output's shape is a heap overflow."""
    grad = np.ones(grad_shape, np.float32)
    x, weight = np.ones((2, 3, 8, 8), np.float32), np.ones((4, 3, 3, 3), np.float32)
    with pytest.raises(ValueError, match="^grad_output "):
        functional.conv2d_input_grad(grad, weight, x.shape)
    with pytest.raises(ValueError, match="^grad_output "):
        functional.conv2d_weight_grad(grad, x, weight.shape)


def test_wrong_dtypes_are_refused():
    grad, x, weight = (np.ones(shape, np.float32) for shape in ((2, 4, 6, 6), (2, 3, 8, 8), (4, 3, 3, 3)))
    with pytest.raises(TypeError, match="^grad_output "):
        functional.conv2d_input_grad(grad.astype(int), weight, x.shape)
    with pytest.raises(TypeError, match="^weight "):
        functional.conv2d_input_grad(grad, weight.astype(int), x.shape)
    with pytest.raises(TypeError, match="^x "):
        functional.conv2d_weight_grad(grad, x.astype(int), weight.shape)


LINEAR_SHAPES = [
    ((5,), 7, 3),
    ((1, 1), 1, 1),
    ((33, 70), 65, 1),
    ((2, 3, 17), 9, 2),
    ((0, 4), 3, 1),
    ((300, 257), 130, 2),
]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("x_shape", "out_features", "seed"), LINEAR_SHAPES)
def test_linear(x_shape, out_features, seed, dtype, level):
    rng = np.random.default_rng(seed)
    x = rng.integers(-4, 5, x_shape).astype(dtype)
    weight = rng.integers(-4, 5, (out_features, x_shape[-1])).astype(dtype)
    bias = rng.integers(-4, 5, out_features).astype(dtype)
    grad = rng.integers(-4, 5, (*x_shape[:-1], out_features)).astype(dtype)
    rows = grad.reshape(-1, out_features), x.reshape(-1, x_shape[-1])
    with kernels.use(level):
        for num_threads in (1, 2, 4):
            y = functional.linear(x, weight, bias, num_threads=num_threads)
            assert y.dtype == dtype
            np.testing.assert_array_equal(y, x @ weight.T + bias)
            y = functional.linear(x, weight, num_threads=num_threads)
            np.testing.assert_array_equal(y, x @ weight.T)
            back = functional.linear_input_grad(grad, weight, num_threads=num_threads)
            np.testing.assert_array_equal(back, grad @ weight)
            back = functional.linear_weight_grad(grad, x, num_threads=num_threads)
            np.testing.assert_array_equal(back, rows[0].T @ rows[1])
            assert back.dtype == dtype


def test_linear_has_the_same_bits_for_any_threads_and_strides():
    x, weight = RNG.standard_normal((131, 257)), RNG.standard_normal((67, 257))
    grad = RNG.standard_normal((131, 67))
    for dtype in DTYPES:
        a, b, c = x.astype(dtype), weight.astype(dtype), grad.astype(dtype)
        for function, arguments in (
            (functional.linear, (a, b)),
            (functional.linear_input_grad, (c, b)),
            (functional.linear_weight_grad, (c, a)),
        ):
            expected = function(*arguments, num_threads=1)
            for num_threads in (2, 3, 4):
                assert_same_bits(function(*arguments, num_threads=num_threads), expected)
            views = [np.asfortranarray(array) for array in arguments]
            assert_same_bits(function(*views), expected)
            views = [array[::-1, ::-1].copy()[::-1, ::-1] for array in arguments]
            assert_same_bits(function(*views), expected)


@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "bias_shape", "start"),
    [
        ((3, 5), (4, 6), None, "x|weight"),
        ((3, 5), (4, 5, 1), None, "weight"),
        ((3, 5), (5,), None, "weight"),
        ((3, 5), (4, 5), (5,), "bias"),
        ((3, 5), (4, 5), (1, 4), "bias"),
        ((), (4, 5), None, "x"),
    ],
)
def test_linear_refuses_shapes_that_do_not_fit(x_shape, weight_shape, bias_shape, start):
    bias = None if bias_shape is None else np.ones(bias_shape)
    with pytest.raises(ValueError, match=f"^({start}) "):
        functional.linear(np.ones(x_shape), np.ones(weight_shape), bias)


def test_linear_gradients_refuse_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="^(grad_output|weight) "):
        functional.linear_input_grad(np.ones((3, 5)), np.ones((4, 6)))
    with pytest.raises(ValueError, match="^(grad_output|x) "):
        functional.linear_weight_grad(np.ones((3, 5)), np.ones((4, 6)))
    with pytest.raises(TypeError, match="^weight "):
        functional.linear(np.ones((3, 5)), np.ones((4, 5), int))
