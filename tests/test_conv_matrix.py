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
        expected = reference.conv2d(x, weight, **case.keywords)
        matrix = fc.conv_matrix(weight, case.x_shape, **case.keywords)
        assert matrix.dtype == dtype
        assert matrix.shape == (expected.size, x.size)
        np.testing.assert_array_equal(matrix @ x.ravel(), expected.ravel())

        grad = np.random.default_rng(case.seed).integers(-4, 5, expected.shape).astype(dtype)
        back = reference.conv2d_input_grad(grad, weight, x.shape, **case.keywords)
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
