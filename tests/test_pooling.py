"""Pooling functions: against the definition, against PyTorch, and what they refuse."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastconv import kernels
from fastconv.functional import pooling
from support import DTYPES


@st.composite
def problems(draw, dtype=np.float64):
    """An image, in one of three memory formats, and a window that fits it; integers make ties likely."""
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    size = tuple(draw(st.integers(max(1, k - 2 * p), 9)) for k, p in zip(kernel, padding, strict=True))
    batch, channels = draw(st.integers(0, 3)), draw(st.integers(1, 35))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = rng.integers(-9, 9, (batch, channels, *size)).astype(dtype)
    memory = draw(st.sampled_from(["contiguous", "channels last", "strided"]))
    if memory == "channels last":
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    elif memory == "strided":
        x = np.repeat(x, 2, axis=3)[..., ::2]
    return x, (kernel, stride, padding)


def windows(x, window, border):
    """Every window with its pixels flattened: (N, C, H_out, W_out, k_h·k_w)."""
    (k_h, k_w), (s_h, s_w), (p_h, p_w) = window
    padded = np.pad(x, ((0, 0), (0, 0), (p_h, p_h), (p_w, p_w)), constant_values=border)
    views = np.lib.stride_tricks.sliding_window_view(padded, (k_h, k_w), axis=(2, 3))
    views = views[:, :, ::s_h, ::s_w]
    return views.reshape(*views.shape[:4], k_h * k_w)


def positions(x, window):
    """Like ``windows``, of h·W + w, and −1 in the border."""
    index = np.arange(x.shape[2] * x.shape[3]).reshape(1, 1, *x.shape[2:])
    return windows(np.broadcast_to(index, x.shape), window, -1)


@given(problems(), st.sampled_from([1, 2]), st.sampled_from(kernels.supported_levels()))
def test_max_pool_is_its_definition(problem, threads, level):
    x, window = problem
    expected = windows(x, window, -np.inf)
    with kernels.use(level):
        y, indices = pooling.max_pool2d(x, *window, return_indices=True, num_threads=threads)
        np.testing.assert_array_equal(pooling.max_pool2d(x, *window, num_threads=threads), y)
    np.testing.assert_array_equal(y, expected.max(axis=-1))
    first = expected.argmax(axis=-1)[..., None]
    np.testing.assert_array_equal(indices, np.take_along_axis(positions(x, window), first, -1)[..., 0])
    assert indices.dtype == np.int64


@given(
    problems(np.float32), st.booleans(), st.sampled_from([1, 2]), st.sampled_from(kernels.supported_levels())
)
def test_avg_pool_is_its_definition(problem, count_include_pad, threads, level):
    x, window = problem
    inside = np.count_nonzero(positions(x, window) >= 0, axis=-1)
    divisor = np.float32(window[0][0] * window[0][1]) if count_include_pad else inside.astype(np.float32)
    with kernels.use(level):
        y = pooling.avg_pool2d(x, *window, count_include_pad=count_include_pad, num_threads=threads)
    # Sums of integers are exact and a division is correctly rounded: the results must be equal.
    np.testing.assert_array_equal(y, windows(x, window, 0).sum(axis=-1) / divisor)
    assert y.dtype == np.float32


@given(problems(), st.sampled_from([1, 2]), st.sampled_from(kernels.supported_levels()))
def test_gradients_are_adjoint_to_the_forward_pass(problem, threads, level):
    x, window = problem
    with kernels.use(level):
        y, indices = pooling.max_pool2d(x, *window, return_indices=True)
        grad = np.random.default_rng(0).integers(-9, 9, y.shape).astype(float)
        grad_max = pooling.max_pool_grad(grad, indices, x.shape, num_threads=threads)
        for count in (True, False):
            mean = pooling.avg_pool2d(x, *window, count_include_pad=count)
            back = pooling.avg_pool_grad(grad, x.shape, *window, count_include_pad=count, num_threads=threads)
            np.testing.assert_allclose((back * x).sum(), (grad * mean).sum(), rtol=1e-10, atol=1e-9)
    expected = np.zeros((*x.shape[:2], x.shape[2] * x.shape[3]))
    n, c = np.indices(y.shape)[:2]
    np.add.at(expected, (n, c, indices), grad)
    np.testing.assert_array_equal(grad_max, expected.reshape(x.shape))


@pytest.mark.parametrize("level", kernels.supported_levels())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [31, 33])
@pytest.mark.parametrize("length", [3, 70, 1001])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(2, 2, 0), (2, 1, 1), (3, 2, 1), (5, 7, 2), (1, 1, 0)]
)
def test_rows_of_one_axis(kernel, stride, padding, length, rows, dtype, level):
    """As images of one row, many of which are pooled where they lie and few as pixels."""
    if length + 2 * padding < kernel:
        return
    x = np.random.default_rng(3).standard_normal((1, rows, length)).astype(dtype)
    x[0, 0, :2] = np.nan, np.inf
    window = (1, kernel), (1, stride), (0, padding)
    with kernels.use(level):
        for count in (1, 2):
            for name in ("max_pool", "avg_pool"):
                y = getattr(pooling, f"{name}1d")(x, kernel, stride, padding, num_threads=count)
                expected = getattr(pooling, f"{name}2d")(x[:, :, None], *window)[:, :, 0]
                np.testing.assert_allclose(y, expected, rtol=4 * np.finfo(dtype).eps, equal_nan=True)
            values = pooling.max_pool1d(x, kernel, stride, padding, return_indices=True, num_threads=count)
            for found, right in zip(
                values, pooling.max_pool2d(x[:, :, None], *window, return_indices=True), strict=True
            ):
                np.testing.assert_array_equal(found, right[:, :, 0])


@pytest.mark.parametrize("count_include_pad", [True, False])
def test_like_torch(count_include_pad):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    rng = np.random.default_rng(1)
    for kernel, stride, padding in [(2, 2, 0), (3, 2, 1), ((3, 2), (1, 3), (1, 0)), (5, 3, 2)]:
        x = rng.standard_normal((2, 17, 11, 13))
        leaf = torch.tensor(x, requires_grad=True)
        y, indices = pooling.max_pool2d(x, kernel, stride, padding, return_indices=True)
        y_torch, indices_torch = functional.max_pool2d(leaf, kernel, stride, padding, return_indices=True)
        np.testing.assert_array_equal(y, y_torch.detach().numpy())
        np.testing.assert_array_equal(indices, indices_torch.numpy())
        grad = rng.standard_normal(y.shape)
        (expected,) = torch.autograd.grad(y_torch, leaf, torch.tensor(grad))
        np.testing.assert_allclose(pooling.max_pool_grad(grad, indices, x.shape), expected, rtol=1e-12)
        mean = pooling.avg_pool2d(x, kernel, stride, padding, count_include_pad=count_include_pad)
        mean_torch = functional.avg_pool2d(leaf, kernel, stride, padding, count_include_pad=count_include_pad)
        np.testing.assert_allclose(mean, mean_torch.detach(), rtol=1e-12, atol=1e-15)
        (expected,) = torch.autograd.grad(mean_torch, leaf, torch.tensor(grad))
        back = pooling.avg_pool_grad(
            grad, x.shape, kernel, stride, padding, count_include_pad=count_include_pad
        )
        np.testing.assert_allclose(back, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("level", kernels.supported_levels())
def test_same_bits_for_any_number_of_threads(level):
    x = np.random.default_rng(0).standard_normal((3, 37, 50, 51), dtype=np.float32)
    window = {"kernel_size": 3, "stride": 2, "padding": 1}
    with kernels.use(level):
        results = []
        for threads in (1, 2, 4, 4):
            y, indices = pooling.max_pool2d(x, **window, return_indices=True, num_threads=threads)
            mean = pooling.avg_pool2d(x, **window, num_threads=threads)
            back = pooling.max_pool_grad(mean, indices, x.shape, num_threads=threads)
            spread = pooling.avg_pool_grad(y, x.shape, **window, num_threads=threads)
            results.append((y, indices, mean, back, spread))
    for result in results[1:]:
        for array, expected in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(array, expected)


def test_memory_format_follows_the_input():
    x = np.random.default_rng(0).standard_normal((2, 5, 6, 7), dtype=np.float32)
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for pool in (pooling.max_pool2d, pooling.avg_pool2d):
        assert pool(x, 2).flags.c_contiguous
        assert pool(last, 2).transpose(0, 2, 3, 1).flags.c_contiguous
        np.testing.assert_array_equal(pool(x, 2), pool(last, 2))


@pytest.mark.parametrize("level", kernels.supported_levels())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [(9, 40), (3, 33), (20, 14), (1, 7), (2, 100)])
def test_planes_are_pooled_as_pixels_are(level, dtype, size):
    rng = np.random.default_rng(0)
    x = rng.integers(-9, 9, (2, 3, *size)).astype(dtype)
    x[0, 1, 0, :6] = np.nan, np.inf, -np.inf, -0.0, np.nan, 0.0
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    windows = [((1, 3), 2, (0, 1)), ((1, 2), (1, 2), 0), ((1, 5), 1, (0, 2)), ((1, 3), (1, 3), 0)]
    with kernels.use(level):
        for window in windows:
            for threads in (1, 2):
                results = [
                    (
                        *pooling.max_pool2d(image, *window, return_indices=True, num_threads=threads),
                        pooling.max_pool2d(image, *window, num_threads=threads),
                        pooling.avg_pool2d(image, *window, num_threads=threads),
                        pooling.avg_pool2d(image, *window, count_include_pad=False, num_threads=threads),
                        pooling.adaptive_avg_pool2d(image, (1, size[1] // 2 + 1), num_threads=threads),
                    )
                    for image in (x, last)
                ]
                for planes, pixels in zip(*results, strict=True):
                    np.testing.assert_array_equal(planes, pixels)
                # Weights of 1/3 and the like are rounded, and the compiler fuses one product more or less.
                grads = results[0][3], results[1][3]
                planes, pixels = (
                    pooling.avg_pool_grad(grad, x.shape, *window, num_threads=threads) for grad in grads
                )
                np.testing.assert_allclose(planes, pixels, rtol=0, atol=32 * np.finfo(dtype).eps)


def test_nan_wins_and_float16_is_computed_in_float32():
    x = np.zeros((1, 1, 2, 4), np.float16)
    x[0, 0, 1, 0] = np.nan
    y, indices = pooling.max_pool2d(x, 2, return_indices=True)
    assert y.dtype == np.float32
    assert np.isnan(y[0, 0, 0, 0])
    assert indices.ravel().tolist() == [4, 2]


def test_input_is_not_changed_and_may_be_read_only():
    x = np.random.default_rng(0).standard_normal((1, 2, 4, 4))
    before = x.copy()
    x.flags.writeable = False
    pooling.max_pool2d(x, 2)
    pooling.avg_pool2d(x, 2)
    np.testing.assert_array_equal(x, before)


def test_global_average():
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    np.testing.assert_allclose(pooling.global_avg_pool2d(x), x.mean((2, 3), keepdims=True))
    with pytest.raises(ValueError, match="x must have at least one pixel"):
        pooling.global_avg_pool2d(x[:, :, :0])


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, r"stride must be an integer >= 1", {"stride": 0}),
        (ValueError, r"kernel_size must be an integer >= 1", {"kernel_size": 0}),
        (ValueError, r"padding must be an integer >= 0", {"padding": -1}),
        (ValueError, r"padding must be at most half of kernel_size", {"padding": 2}),
        (ValueError, r"kernel_size must fit into the padded image", {"kernel_size": 9}),
        (ValueError, r"kernel_size must be an integer or 2", {"kernel_size": (2, 2, 2)}),
        (TypeError, r"kernel_size must be an integer", {"kernel_size": 2.0}),
        (TypeError, r"x must have dtype float32 or float64", {"x": np.ones((1, 1, 4, 4), int)}),
        (ValueError, r"x must have 4 axes \(N, C, H, W\)", {"x": np.ones((4, 4))}),
        (ValueError, r"num_threads must be an integer from 1", {"num_threads": 0}),
    ],
)
def test_refuses(error, message, arguments):
    arguments = {"x": np.ones((1, 1, 4, 4)), "kernel_size": 3, **arguments}
    for pool in (pooling.max_pool2d, pooling.avg_pool2d):
        with pytest.raises(error, match=message):
            pool(**arguments)


def test_gradients_refuse_what_does_not_fit():
    grad, indices = np.ones((1, 2, 2, 2)), np.zeros((1, 2, 2, 2), np.int64)
    shape = (1, 2, 4, 4)
    for bad in (-1, 16):
        with pytest.raises(ValueError, match=r"indices must be from 0 to 15"):
            pooling.max_pool_grad(grad, np.full_like(indices, bad), shape)
    with pytest.raises(TypeError, match="indices must have dtype int64"):
        pooling.max_pool_grad(grad, indices.astype(np.int32), shape)
    with pytest.raises(ValueError, match="indices must be"):
        pooling.max_pool_grad(grad, indices, (1, 3, 4, 4))
    with pytest.raises(ValueError, match="grad_output must have the shape of the output"):
        pooling.max_pool_grad(grad[:, :, :1], indices, shape)
    with pytest.raises(ValueError, match="grad_output must have the shape of the output"):
        pooling.avg_pool_grad(np.ones((1, 2, 9, 9)), shape, 2)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"), [(3, 2, 0, 2), (3, 3, 0, 1), (5, 4, 1, 1), (4, 3, 0, 2)]
)
def test_ceil_mode_takes_images_smaller_than_the_window(kernel, stride, padding, size):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((2, 3, size, 7))
    leaf = torch.tensor(x, requires_grad=True)
    window = (kernel, 1), stride, (padding, 0)
    y, indices = pooling.max_pool2d(x, *window, ceil_mode=True, return_indices=True)
    expected = torch.nn.functional.max_pool2d(leaf, *window, ceil_mode=True, return_indices=True)
    np.testing.assert_array_equal(y, expected[0].detach())
    np.testing.assert_array_equal(indices, expected[1])
    for counted in (True, False):
        options = {"ceil_mode": True, "count_include_pad": counted}
        expected = torch.nn.functional.avg_pool2d(leaf, *window, **options)
        y = pooling.avg_pool2d(x, *window, **options)
        np.testing.assert_allclose(y, expected.detach(), rtol=1e-12)
        (expected,) = torch.autograd.grad(expected.sum(), leaf)
        back = pooling.avg_pool_grad(np.ones_like(y), x.shape, *window, **options)
        np.testing.assert_allclose(back, expected, rtol=1e-12)
    with pytest.raises(ValueError, match="kernel_size must fit"):
        pooling.max_pool2d(x, *window)
    with pytest.raises(ValueError, match="kernel_size must fit"):
        pooling.max_pool2d(x, (kernel, 1), 1, (padding, 0), ceil_mode=True)
