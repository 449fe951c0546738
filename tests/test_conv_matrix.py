"""The convolution written as a matrix K: K @ x.ravel() convolves, K.T @ y.ravel() is the transposed one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastconv as fc
import reference
import strategies

SMALL = strategies.cases(
    channels=st.sampled_from([(1, 1, 1), (2, 3, 1), (3, 2, 1), (4, 6, 2), (3, 3, 3)]), largest_batch=2
).filter(lambda case: np.prod(case.x_shape) <= 400)


@settings(max_examples=25)
@given(SMALL)
def test_multiplies_like_the_convolution(case):
    for dtype in (np.float32, np.float64):
        x, weight, _ = case.integers(dtype)
        expected = reference.conv(x, weight, **case.keywords)
        matrix = fc.conv_matrix(weight, case.x_shape, **case.keywords)
        assert matrix.dtype == dtype
        assert matrix.shape == (expected.size, x.size)
        np.testing.assert_array_equal(matrix @ x.ravel(), expected.ravel())

        grad = np.random.default_rng(case.seed).integers(-4, 5, expected.shape).astype(dtype)
        back = reference.conv_input_grad(grad, weight, x.shape, **case.keywords)
        np.testing.assert_array_equal(matrix.T @ grad.ravel(), back.ravel())
        assert (matrix @ x.ravel()) @ grad.ravel() == x.ravel() @ (matrix.T @ grad.ravel())


def test_shape_without_a_batch():
    weight = np.arange(36.0).reshape(2, 2, 3, 3)
    matrix = fc.conv_matrix(weight, (2, 5, 6), padding=1)
    assert matrix.shape == (2 * 5 * 6, 2 * 5 * 6)
    np.testing.assert_array_equal(fc.conv_matrix(weight, (1, 2, 5, 6), padding=1), matrix)


def test_a_batch_is_block_diagonal():
    weight = np.arange(1.0, 37).reshape(2, 2, 3, 3)
    one = fc.conv_matrix(weight, (2, 4, 5))
    three = fc.conv_matrix(weight, (3, 2, 4, 5))
    np.testing.assert_array_equal(three, np.kron(np.eye(3), one))


def test_named_padding():
    weight = np.ones((1, 1, 2, 2))
    assert fc.conv_matrix(weight, (1, 5, 5), padding="same", stride=2).shape == (9, 25)
    assert fc.conv_matrix(weight, (1, 5, 5), padding="full").shape == (36, 25)


@pytest.mark.parametrize(
    ("arguments", "error", "start"),
    [
        ({"input_shape": (5, 5)}, ValueError, "input_shape"),
        ({"input_shape": (1, 1, 1, 5, 5)}, ValueError, "input_shape"),
        ({"input_shape": (3, 5, 5)}, ValueError, "weight"),
        ({"stride": 0}, ValueError, "stride"),
        ({"padding": -1}, ValueError, "padding"),
        ({"padding": "smae"}, ValueError, "padding"),
        ({"dilation": 0}, ValueError, "dilation"),
        ({"groups": 3}, ValueError, "groups"),
        ({"weight": np.ones((2, 2, 3, 3), int)}, TypeError, "weight"),
        ({"weight": np.ones((2, 2, 3))}, ValueError, "weight"),
    ],
)
def test_refused(arguments, error, start):
    with pytest.raises(error, match=f"^{start}"):
        fc.conv_matrix(**{"weight": np.ones((2, 2, 3, 3)), "input_shape": (2, 5, 5), **arguments})


@settings(max_examples=15)
@given(SMALL)
def test_transposed_is_torchs_transposed_convolution(case):
    torch = pytest.importorskip("torch")
    if any(low != high for low, high in case.padding):
        return
    weight = torch.tensor(case.normal(np.float64)[1])
    matrix = fc.conv_matrix(weight.numpy(), case.x_shape, **case.keywords)
    size = reference.output_size(
        case.x_shape[2:], case.weight_shape[2:], case.stride, case.padding, case.dilation
    )
    y = torch.ones((case.x_shape[0], case.weight_shape[0], *size), dtype=torch.float64)
    # conv_transpose2d leaves out what the stride skipped at the far edge unless told its size.
    reach = [
        (n - 1) * s + d * (k - 1) + 1 - 2 * low
        for n, s, d, k, (low, _) in zip(
            size, case.stride, case.dilation, case.weight_shape[2:], case.padding, strict=True
        )
    ]
    skipped = [full - some for full, some in zip(case.x_shape[2:], reach, strict=True)]
    if any(n < 0 or n >= max(s, d) for n, s, d in zip(skipped, case.stride, case.dilation, strict=True)):
        return
    expected = torch.nn.functional.conv_transpose2d(
        y,
        weight,
        stride=case.stride,
        padding=[low for low, _ in case.padding],
        output_padding=skipped,
        groups=case.groups,
        dilation=case.dilation,
    )
    actual = (matrix.T @ y.numpy().ravel()).reshape(case.x_shape)
    np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rank", [1, 3])
@settings(max_examples=25)
@given(data=st.data())
def test_other_numbers_of_axes(rank, data):
    """Every entry by its definition; the convolution and its transpose follow from that."""
    draw = data.draw
    groups = draw(st.integers(1, 2))
    channels, outputs = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))

    def axes(low, high):
        return draw(st.tuples(*[st.integers(low, high)] * rank))

    kernel, stride, dilation, padding = axes(1, 3), axes(1, 2), axes(1, 2), axes(0, 2)
    size = tuple(
        draw(st.integers(max(1, d * (k - 1) + 1 - 2 * p), d * (k - 1) + 3))
        for k, d, p in zip(kernel, dilation, padding, strict=True)
    )
    weight = np.random.default_rng(0).integers(-4, 5, (outputs, channels // groups, *kernel)).astype(float)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    matrix = fc.conv_matrix(weight, (channels, *size), **options)
    shape = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(size, padding, dilation, kernel, stride, strict=True)
    ]
    expected = np.zeros((outputs, *shape, channels, *size))
    for place in np.ndindex(outputs, *shape):
        for tap in np.ndindex(*kernel):
            spot = [
                i * s + u * d - p
                for i, s, u, d, p in zip(place[1:], stride, tap, dilation, padding, strict=True)
            ]
            if all(0 <= position < n for position, n in zip(spot, size, strict=True)):
                first = place[0] // (outputs // groups) * (channels // groups)
                for c in range(channels // groups):
                    expected[(*place, first + c, *spot)] = weight[(place[0], c, *tap)]
    np.testing.assert_array_equal(matrix, expected.reshape(matrix.shape))
    two = fc.conv_matrix(weight, (2, channels, *size), **options)
    np.testing.assert_array_equal(two, np.kron(np.eye(2), matrix))


@settings(max_examples=25)
@given(SMALL)
def test_transpose_is_the_input_gradient(case):
    weight = case.normal(np.float64)[1]
    matrix = fc.conv_matrix(weight, case.x_shape, **case.keywords)
    grad = np.random.default_rng(0).standard_normal(
        (case.x_shape[0], case.weight_shape[0], *reference.output_size(
            case.x_shape[2:], case.weight_shape[2:], case.stride, case.padding, case.dilation
        ))
    )  # fmt: skip
    back = fc.functional.conv2d_input_grad(grad, weight, case.x_shape, **case.keywords)
    scale = max(1, np.abs(back).max())
    np.testing.assert_allclose(matrix.T @ grad.ravel(), back.ravel(), rtol=0, atol=1e-12 * scale)


@settings(max_examples=15)
@given(SMALL)
def test_pseudo_inverse_meets_penroses_four_conditions(case):
    weight = case.normal(np.float64)[1]
    matrix = fc.conv_matrix(weight, case.x_shape, **case.keywords)
    inverse = fc.functional.pseudo_inverse(weight, case.x_shape, **case.keywords)
    assert inverse.shape == matrix.shape[::-1]
    close = {"rtol": 0, "atol": 1e-7 * max(1, np.abs(inverse).max() * np.abs(matrix).max())}
    np.testing.assert_allclose(matrix @ inverse @ matrix, matrix, **close)
    np.testing.assert_allclose(inverse @ matrix @ inverse, inverse, **close)
    np.testing.assert_allclose(matrix @ inverse, (matrix @ inverse).T, **close)
    np.testing.assert_allclose(inverse @ matrix, (inverse @ matrix).T, **close)


@pytest.mark.parametrize("shape", [(1, 12), (2, 5, 6), (1, 4, 3, 4)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_deconvolution_gives_back_the_input(shape, dtype):
    """With more outputs than inputs the convolution loses nothing; with fewer, the result explains y."""
    rng = np.random.default_rng(0)
    kernel = (3,) * (len(shape) - 1)
    convolve = (fc.conv1d, fc.conv2d, fc.conv3d)[len(shape) - 2]
    x = rng.standard_normal((3, *shape)).astype(dtype)
    wide, narrow = (rng.standard_normal((count, shape[0], *kernel)).astype(dtype) for count in (6, 1))
    tolerance = 1e-3 if dtype == np.float32 else 1e-9
    y = convolve(x, wide, padding=1)
    found = fc.functional.deconvolve(y, wide, shape, padding=1)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, x, rtol=0, atol=tolerance)
    y = convolve(x, narrow, stride=2)
    found = fc.functional.deconvolve(y, narrow, shape, stride=2)
    np.testing.assert_allclose(convolve(found, narrow, stride=2), y, rtol=0, atol=tolerance)
    assert np.linalg.norm(found) < np.linalg.norm(x)


def test_a_tolerance_keeps_noise_small():
    # A blur whose smallest singular values are far below the noise.
    weight = np.outer([1.0, 4, 6, 4, 1], [1, 4, 6, 4, 1])[None, None] / 256
    x = np.zeros((1, 1, 12, 12))
    x[..., 4:8, 3:9] = 1
    rng = np.random.default_rng(0)
    y = fc.conv2d(x, weight, padding=2) + 1e-3 * rng.standard_normal((1, 1, 12, 12))
    plain, damped = (
        fc.functional.deconvolve(y, weight, (1, 12, 12), padding=2, rtol=rtol) for rtol in (None, 0.03)
    )
    assert np.abs(damped - x).mean() < 0.1 < np.abs(plain - x).mean()


@pytest.mark.parametrize(
    ("arguments", "error", "start"),
    [
        ({"y": np.ones((1, 2, 3, 4))}, ValueError, r"y must have shape \(N, 2, 3, 3\)"),
        ({"y": np.ones((2, 3, 3))}, ValueError, "y must have shape"),
        ({"y": np.ones((1, 2, 3, 3), int)}, TypeError, "y"),
        ({"input_shape": (1, 2, 5, 5)}, ValueError, "input_shape must be that of one image"),
        (
            {"input_shape": (2, 60, 60), "y": np.ones((1, 2, 58, 58))},
            ValueError,
            "input_shape must give a matrix",
        ),
        ({"rtol": -1}, ValueError, "rtol"),
        ({"rtol": "small"}, ValueError, "rtol"),
        ({"weight": np.ones((2, 2))}, ValueError, "weight must have 3 to 5 axes"),
    ],
)
def test_deconvolution_refuses(arguments, error, start):
    good = {"y": np.ones((1, 2, 3, 3)), "weight": np.ones((2, 2, 3, 3)), "input_shape": (2, 5, 5)}
    with pytest.raises(error, match=f"^{start}"):
        fc.functional.deconvolve(**{**good, **arguments})
