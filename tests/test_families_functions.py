"""Functions of pooling, resampling, padding, shuffling, norms and activations: generated shapes, edges."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastconv import functional, kernels, nn
from support import assert_same_bits

LEVELS = st.sampled_from(kernels.supported_levels())
THREADS = st.sampled_from([1, 2])


@st.composite
def images(draw, rank, smallest=1):
    """An image of small integers, so that sums are exact and ties likely, in one of three memory formats."""
    size = draw(st.tuples(*[st.integers(smallest, 8)] * rank))
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 35)), *size)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = rng.integers(-9, 9, shape).astype(draw(st.sampled_from([np.float32, np.float64])))
    memory_format = draw(st.sampled_from(["contiguous", "channels last", "strided"]))
    if memory_format == "channels last":
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    return x if memory_format == "contiguous" else np.repeat(x, 2, axis=-1)[..., ::2]


@st.composite
def pooling_problems(draw):
    rank = draw(st.integers(1, 3))
    x = draw(images(rank, 4))
    kernel = draw(st.tuples(*[st.integers(1, 4)] * rank))
    padding = tuple(draw(st.tuples(*[st.integers(0, k - 1)] * 2)) for k in kernel)
    # A dilated kernel of 2 may step over a small image: no dilation where there is padding.
    dilation = tuple(
        1 if k > 2 or sum(p) else draw(st.integers(1, 3)) for k, p in zip(kernel, padding, strict=True)
    )
    stride = draw(st.tuples(*[st.integers(1, 3)] * rank))
    return x, {
        "kernel_size": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "ceil_mode": draw(st.booleans()),
    }


def naive_pool(x, reduce, kernel_size, stride, padding, dilation, ceil_mode):
    """The definition: ``reduce`` gets a window's pixels (N, C, taps), where they lie, how many are padded."""
    rank, size = x.ndim - 2, x.shape[2:]
    flat = np.arange(math.prod(size)).reshape(size)
    outputs = []
    for n, k, s, (low, high), d in zip(size, kernel_size, stride, padding, dilation, strict=True):
        room = n + low + high - d * (k - 1) - 1
        count = (math.ceil if ceil_mode else math.floor)(room / s) + 1
        outputs.append(count - (ceil_mode and (count - 1) * s >= n + low))
    result = {}
    for index in np.ndindex(*outputs):
        taps = [
            [i * s - low + t * d for t in range(k)]
            for i, k, s, (low, _), d in zip(index, kernel_size, stride, padding, dilation, strict=True)
        ]
        inside = [[t for t in axis if 0 <= t < n] for axis, n in zip(taps, size, strict=True)]
        padded = [
            [t for t in axis if t < n + high] for axis, n, (_, high) in zip(taps, size, padding, strict=True)
        ]
        where = flat[np.ix_(*inside)].ravel()
        pixels = x.reshape(*x.shape[:2], -1)[..., where]
        result[index] = reduce(pixels, where, math.prod(map(len, padded)))
    stacked = np.stack(list(result.values()), axis=-1)
    return stacked.reshape(*stacked.shape[:-1], *outputs), rank


@given(pooling_problems(), THREADS, LEVELS)
def test_max_pool_is_its_definition(problem, threads, level):
    x, window = problem
    values, rank = naive_pool(x, lambda pixels, where, padded: pixels.max(axis=-1), **window)
    places, _ = naive_pool(x, lambda pixels, where, padded: where[pixels.argmax(axis=-1)], **window)
    pool = getattr(functional, f"max_pool{rank}d")
    with kernels.use(level):
        y, indices = pool(x, **window, return_indices=True, num_threads=threads)
        np.testing.assert_array_equal(pool(x, **window, num_threads=threads), y)
        grad = np.random.default_rng(0).integers(-9, 9, y.shape).astype(x.dtype)
        back = functional.max_pool_grad(grad, indices, x.shape, num_threads=threads)
    np.testing.assert_array_equal(y, values)
    np.testing.assert_array_equal(indices, places)
    expected = np.zeros((*x.shape[:2], math.prod(x.shape[2:])), x.dtype)
    for n, c in np.ndindex(*x.shape[:2]):
        np.add.at(expected[n, c], indices[n, c].ravel(), grad[n, c].ravel())
    np.testing.assert_array_equal(back, expected.reshape(x.shape))


@given(pooling_problems(), st.booleans(), st.sampled_from([None, 3]), THREADS, LEVELS)
def test_avg_pool_is_its_definition(problem, count_include_pad, divisor, threads, level):
    x, window = problem

    def mean(pixels, where, padded):
        count = divisor or (padded if count_include_pad else len(where))
        # A sum of integers is exact and a division correctly rounded: the results must be equal.
        return pixels.sum(axis=-1) / x.dtype.type(count)

    options = {**window, "count_include_pad": count_include_pad, "divisor_override": divisor}
    expected, rank = naive_pool(x, mean, **window)
    with kernels.use(level):
        y = getattr(functional, f"avg_pool{rank}d")(x, **options, num_threads=threads)
        grad = np.random.default_rng(0).standard_normal(y.shape)
        back = functional.avg_pool_grad(grad, x.shape, **options, num_threads=threads)
    np.testing.assert_array_equal(y, expected)
    # The gradient is the adjoint of a linear map.
    np.testing.assert_allclose((back * x).sum(), (grad * y).sum(), rtol=1e-5, atol=1e-3)


@given(st.data(), st.integers(1, 3), THREADS, LEVELS)
def test_adaptive_pools_are_their_definition(data, rank, threads, level):
    x = data.draw(images(rank))
    size = tuple(data.draw(st.none() | st.integers(1, 9)) for _ in range(rank))
    with kernels.use(level):
        mean = getattr(functional, f"adaptive_avg_pool{rank}d")(x, size, num_threads=threads)
        largest, indices = getattr(functional, f"adaptive_max_pool{rank}d")(
            x, size, True, num_threads=threads
        )
    full = [n if s is None else s for n, s in zip(x.shape[2:], size, strict=True)]
    assert mean.shape == (*x.shape[:2], *full)
    for index in np.ndindex(*full):
        part = tuple(
            slice(i * n // s, -(-(i + 1) * n // s)) for i, n, s in zip(index, x.shape[2:], full, strict=True)
        )
        pixels = x[(..., *part)].reshape(*x.shape[:2], -1)
        expected = pixels.sum(axis=-1) / x.dtype.type(pixels.shape[-1])
        np.testing.assert_array_equal(mean[(..., *index)], expected)
        np.testing.assert_array_equal(largest[(..., *index)], pixels.max(axis=-1))
    flat = x.reshape(*x.shape[:2], -1)
    picked = np.take_along_axis(flat, indices.reshape(*x.shape[:2], -1), axis=-1)
    np.testing.assert_array_equal(picked.reshape(largest.shape), largest)


@given(st.data(), st.integers(1, 3), THREADS, LEVELS)
def test_interpolation_is_like_torchs(data, rank, threads, level):
    torch = pytest.importorskip("torch")
    x = data.draw(images(rank))
    modes = [mode for mode, ranks in functional.resampling.MODES.items() if rank in ranks]
    options = {"mode": data.draw(st.sampled_from(modes))}
    if "linear" in options["mode"] or options["mode"] == "bicubic":
        options["align_corners"] = data.draw(st.sampled_from([None, False, True]))
    if data.draw(st.booleans()):
        options["size"] = data.draw(st.tuples(*[st.integers(1, 12)] * rank))
    else:
        factor = st.floats(1 / min(x.shape[2:]) + 0.01, 3.2)
        options["scale_factor"] = data.draw(st.tuples(*[factor] * rank))
    leaf = torch.tensor(np.ascontiguousarray(x), requires_grad=True)
    expected = torch.nn.functional.interpolate(leaf, **options)
    with kernels.use(level):
        y = functional.interpolate(x, **options, num_threads=threads)
        grad = np.random.default_rng(0).standard_normal(y.shape).astype(x.dtype)
        back = functional.interpolate_grad(grad, x.shape, **options, num_threads=threads)
    tolerance = {"rtol": 1e-4, "atol": 2e-3} if x.dtype == np.float32 else {"rtol": 1e-9, "atol": 1e-11}
    np.testing.assert_allclose(y, expected.detach(), **tolerance)
    (expected_grad,) = torch.autograd.grad(expected, leaf, torch.tensor(grad))
    np.testing.assert_allclose(back, expected_grad, **tolerance)
    assert y.dtype == x.dtype


@given(st.data(), st.integers(1, 3), st.sampled_from(["constant", "reflect", "replicate", "circular"]))
def test_padding_is_like_torchs(data, rank, mode):
    torch = pytest.importorskip("torch")
    x = data.draw(images(rank, 3))
    low = -1 if mode == "constant" else 0
    sides = [data.draw(st.integers(low, 2)) for _ in range(2 * rank)]
    value = data.draw(st.sampled_from([0.0, -1.5])) if mode == "constant" else 0.0
    leaf = torch.tensor(np.ascontiguousarray(x), requires_grad=True)
    expected = torch.nn.functional.pad(leaf, sides, mode, value or None)
    y = functional.pad(x, sides, mode, value)
    np.testing.assert_array_equal(y, expected.detach())
    grad = np.random.default_rng(0).integers(-9, 9, y.shape).astype(x.dtype)
    (expected_grad,) = torch.autograd.grad(expected, leaf, torch.tensor(grad))
    np.testing.assert_array_equal(functional.pad_grad(grad, x.shape, sides, mode), expected_grad)


@given(st.data(), st.integers(1, 4), st.sampled_from(["CRD", "DCR"]))
def test_shuffle_is_its_definition(data, r, mode):
    batch, channels, height, width = data.draw(st.tuples(*[st.integers(1, 4)] * 4))
    y = np.arange(batch * channels * height * width * r * r, dtype=np.float32)
    y = y.reshape(batch, channels, height * r, width * r)
    x = np.empty((batch, channels * r * r, height, width), np.float32)
    for c, i, j in np.ndindex(channels, r, r):
        k = c * r * r + i * r + j if mode == "CRD" else (i * r + j) * channels + c
        x[:, k] = y[:, c, i::r, j::r]
    last = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    for image in (x, last):
        np.testing.assert_array_equal(functional.pixel_shuffle(image, r, mode=mode), y)
    np.testing.assert_array_equal(functional.pixel_unshuffle(y, r, mode=mode), x)


def test_max_pool_takes_nan_infinity_and_ties_as_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x = rng.choice([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0], (2, 19, 12, 11)).astype(np.float32)
    for dtype in (np.float32, np.float64):
        image = x.astype(dtype)
        for window in ((3, 2, 1), (2, 2, 0), (4, 1, 2)):
            y, indices = functional.max_pool2d(image, *window, return_indices=True)
            expected = torch.nn.functional.max_pool2d(torch.tensor(image), *window, return_indices=True)
            np.testing.assert_array_equal(y, expected[0])
            np.testing.assert_array_equal(indices, expected[1])


@pytest.mark.parametrize("level", kernels.supported_levels())
@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic", "area"])
@pytest.mark.parametrize("size", [(14, 40), (5, 9), (11, 70), (3, 21)])
def test_planes_are_resampled_as_pixels_are(level, mode, size):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 7, 20)).astype(np.float32)
    last = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    grad = rng.standard_normal((2, 3, *size)).astype(np.float32)
    with kernels.use(level):
        planes = [functional.interpolate(x, size=size, mode=mode, num_threads=n) for n in (1, 2)]
        pixels = functional.interpolate(last, size=size, mode=mode)
        back = functional.interpolate_grad(grad, x.shape, size=size, mode=mode)
    assert_same_bits(*planes)
    np.testing.assert_allclose(planes[0], pixels, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose((back * x).sum(), (grad * pixels).sum(), rtol=1e-3, atol=1e-3)


def test_interpolation_does_not_leak_a_neighbours_infinity():
    x = np.array([[[1.0, np.inf, 2.0]]])
    y = functional.interpolate(x, size=5, mode="linear", align_corners=True)
    np.testing.assert_array_equal(y, [[[1, np.inf, np.inf, np.inf, 2]]])


@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 300), THREADS, LEVELS)
def test_batch_norm_moments_are_accurate(seed, channels, pixels, threads, level):
    rng = np.random.default_rng(seed)
    # A mean far from 0: one pass over squares would lose all digits.
    x = (rng.standard_normal((2, channels, pixels)) + 1000).astype(np.float32)
    with kernels.use(level):
        y, mean, var = functional.batch_norm_training(x, num_threads=threads)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean(axis=(0, 2)), rtol=1e-6)
    np.testing.assert_allclose(var, wide.var(axis=(0, 2)), rtol=1e-4, atol=1e-7)
    assert y.dtype == np.float32


@pytest.mark.parametrize("level", kernels.supported_levels())
def test_batch_norm_bits_do_not_depend_on_threads(level):
    rng = np.random.default_rng(0)
    x, grad = rng.standard_normal((2, 3, 37, 50, 51), dtype=np.float32)
    with kernels.use(level):
        results = []
        for threads in (1, 2, 5):
            y, mean, var = functional.batch_norm_training(x, num_threads=threads)
            gradients = functional.batch_norm_grad(grad, x, mean, var, training=True, num_threads=threads)
            group = functional.group_norm(x, 37, num_threads=threads)
            back = functional.group_norm_grad(grad, x, 1, num_threads=threads)
            last = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
            pixels = functional.group_norm(last, 37, num_threads=threads)
            samples = functional.layer_norm(x, x.shape[1:], num_threads=threads)
            results.append((y, mean, var, *gradients, group, *back, pixels, samples))
    for result in results[1:]:
        for array, expected in zip(result, results[0], strict=True):
            assert_same_bits(array, expected)


@given(st.integers(0, 2**32), st.sampled_from([1, 2, 3, 6]), st.integers(1, 200), THREADS, LEVELS)
def test_group_norm_is_its_definition(seed, groups, pixels, threads, level):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((2, 6, pixels)) + 100).astype(np.float32)
    weight, bias = rng.standard_normal((2, 6))
    last = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    with kernels.use(level):
        y = functional.group_norm(x, groups, weight, bias, num_threads=threads)
        of_last = functional.group_norm(last, groups, weight, bias, num_threads=threads)
        assert_same_bits(functional.group_norm(x, groups, weight, bias, num_threads=3 - threads), y)
        assert_same_bits(functional.group_norm(last, groups, weight, bias, num_threads=3 - threads), of_last)
    assert of_last.strides[1] == 4
    wide = x.astype(np.float64).reshape(2, groups, -1)
    center, var = wide.mean(axis=2, keepdims=True), wide.var(axis=2, keepdims=True)
    expected = ((wide - center) / np.sqrt(var + 1e-5)).reshape(x.shape)
    # Means are rounded to float32: half a unit in the last place of 100, relative to the deviation.
    slack = 1e-5 + (8e-6 / np.sqrt(var + 1e-5)).max() * np.abs(weight).max()
    for result in (y, of_last):
        np.testing.assert_allclose(result, expected * weight[:, None] + bias[:, None], rtol=1e-4, atol=slack)


@given(st.data(), st.sampled_from([np.float32, np.float64]), st.booleans(), THREADS, LEVELS)
def test_norms_are_like_torchs(data, dtype, with_parameters, threads, level):
    """Of groups and of samples: any shape, either layout, against PyTorch in float64."""
    torch = pytest.importorskip("torch")
    groups, width = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([1, 2, 3, 40]))
    # Of few values the deviation may be small, and so are the digits left.
    size = data.draw(st.lists(st.integers(8, 40), min_size=1, max_size=2))
    shape = (data.draw(st.integers(1, 5)), groups * width, *size)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    x, grad = (rng.standard_normal((2, *shape)) + 2).astype(dtype)
    if data.draw(st.booleans()):
        x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    samples = data.draw(st.integers(1, x.ndim - 1))
    for name, argument, of in (("group", groups, shape[1:2]), ("layer", shape[samples:], shape[samples:])):
        parameters = rng.standard_normal((2, *of)) if with_parameters else (None, None)
        used = [torch.tensor(p, requires_grad=True) for p in parameters if p is not None]
        leaf = torch.tensor(x.astype(np.float64), requires_grad=True)
        expected = getattr(torch.nn.functional, f"{name}_norm")(leaf, argument, *used)
        wide = torch.tensor(grad.astype(np.float64))
        gradients = torch.autograd.grad(expected, [leaf, *used], wide)
        with kernels.use(level):
            y = getattr(functional, f"{name}_norm")(x, argument, *parameters, num_threads=threads)
            back = getattr(functional, f"{name}_norm_grad")(grad, x, argument, parameters[0])
        assert y.dtype == dtype
        # PyTorch's own float64 sums are off by 1e-13.
        digits = 1e-5 if dtype == np.float32 else 1e-12
        # What a parameter's gradient sums may cancel: its error is of the terms.
        terms = np.finfo(dtype).eps * np.abs(grad).sum(dtype=np.float64) / math.prod(of)
        slack = (0, 0, terms, terms) if with_parameters else (0, 0)
        results = zip((y, *back), (expected.detach(), *gradients), slack, strict=with_parameters)
        for result, exact, more in results:
            largest = max(1, np.abs(exact.numpy()).max())
            np.testing.assert_allclose(result, exact, rtol=0, atol=digits * largest + more)


@pytest.mark.parametrize("level", kernels.supported_levels())
def test_norms_of_planes_are_those_of_pixels(level):
    rng = np.random.default_rng(0)
    x, grad = rng.standard_normal((2, 3, 5, 97, 101), dtype=np.float32)
    weight = rng.standard_normal(5)
    results = []
    for arrange in (np.asarray, lambda a: np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1)):
        with kernels.use(level):
            y, mean, var = functional.batch_norm_training(arrange(x), weight)
            back = functional.batch_norm_grad(arrange(grad), arrange(x), mean, var, weight, training=True)
            fixed = functional.batch_norm_grad(arrange(grad), arrange(x), mean, var, weight)
            group = functional.group_norm_grad(arrange(grad), arrange(x), 1, weight)
        assert (y.strides[1] == 4) == (back[0].strides[1] == 4) == (results != [])
        results.append((y, mean, var, *back, *fixed, *group))
    for planes, pixels in zip(*results, strict=True):
        np.testing.assert_allclose(planes, pixels, rtol=1e-4, atol=1e-4 * np.abs(pixels).max())


def test_functional_batch_norm_moves_the_running_statistics():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((4, 3, 5))
    mean, var = np.zeros(3), np.ones(3)
    expected_mean, expected_var = torch.zeros(3).double(), torch.ones(3).double()
    y = functional.batch_norm(x, mean, var, training=True, momentum=0.3)
    expected = torch.nn.functional.batch_norm(
        torch.tensor(x), expected_mean, expected_var, training=True, momentum=0.3
    )
    np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-12)
    np.testing.assert_allclose(var, expected_var, rtol=1e-12)
    with pytest.raises(ValueError, match="running_mean must have shape"):
        functional.batch_norm(x, mean[:2], var)
    with pytest.raises(ValueError, match="running_mean and running_var must be given"):
        functional.batch_norm(x, None, None)


ELEMENTWISE = ("relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "sigmoid", "tanh", "softplus",
               "hardswish", "hardsigmoid")  # fmt: skip


@pytest.mark.parametrize("name", [*ELEMENTWISE, "softmax", "log_softmax"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_activations_at_the_ends_of_the_range(name, dtype):
    """Warnings are errors here: nothing may overflow."""
    torch = pytest.importorskip("torch")
    function, other = getattr(functional, name), getattr(torch.nn.functional, name)
    big = 6e4 if dtype == np.float16 else 1e30
    x = np.array(
        [-np.inf, -big, -800, -90, -20, -3, -0.0, 0, 1e-3, 3, 6, 20, 90, 800, big, np.inf, np.nan], dtype
    )
    work = np.float64 if dtype == np.float64 else np.float32
    # Beside an infinity everything of a softmax is a NaN, so all but that one stand alone.
    rows = x[1:-2].reshape(-1, 2) if "softmax" in name else x
    options = {"dim": -1} if "softmax" in name else {}
    y = function(rows, **options)
    assert y.dtype == work
    # In float64: PyTorch's own float32 GELU is off by 1e-4 of itself at −3.
    expected = other(torch.tensor(rows.astype(np.float64)), **options)
    np.testing.assert_allclose(y, expected, rtol=1e-5 if work == np.float32 else 1e-12, atol=1e-6)
    for values in (x, x[:1], x[-1:]):
        function(values, **options)
    if "softmax" not in name:
        assert np.isnan(y[-1])
    gradient = getattr(functional, f"{name}_grad")
    from_output = name in ("relu", "sigmoid", "tanh", "softmax", "log_softmax")
    back = gradient(np.ones_like(y), y if from_output else rows, **options)
    leaf = torch.tensor(rows.astype(work), requires_grad=True)
    (expected,) = torch.autograd.grad(other(leaf, **options).sum(), leaf)
    if name in ("hardswish", "gelu", "silu", "softplus", "elu", "selu"):
        assert np.isnan(back[-1])
    finite = np.isfinite(rows) & np.isfinite(expected.numpy())
    np.testing.assert_allclose(back[finite], expected.numpy()[finite], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*ELEMENTWISE, "softmax", "log_softmax", "global_avg_pool2d"])
def test_functions_refuse_integers(name):
    with pytest.raises(TypeError, match="x must have dtype float32 or float64"):
        getattr(functional, name)(np.ones((1, 1, 2, 2), int))


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, r"x must have 5 axes", lambda x: functional.max_pool3d(x, 2)),
        (TypeError, "return_indices must be True", lambda x: functional.max_pool2d(x, 2, 2, 0, 1, False, 1)),
        (ValueError, "grad_output must have the shape", lambda x: functional.avg_pool_grad(x, x.shape, 2)),
        (ValueError, "grad_output must have the shape", lambda x: functional.gelu_grad(x[:, :, :2], x)),
        (ValueError, "grad_output must have the shape", lambda x: functional.interpolate_grad(x, x.shape, 3)),
        (ValueError, "grad_output must have the shape", lambda x: functional.pad_grad(x, x.shape, (1, 1))),
        (
            ValueError,
            "grad_output must have the shape",
            lambda x: functional.group_norm_grad(x[:, :, :2], x, 1),
        ),
        (ValueError, "input_shape must be", lambda x: functional.interpolate_grad(x, (4, 4), 3)),
        (ValueError, r"pad must be a \(low, high\) pair", lambda x: functional.pad(x, (1, 2, 3))),
        (TypeError, "pad must be integers", lambda x: functional.pad(x, 1)),
        (ValueError, "mode must be one of", lambda x: functional.pad(x, (1, 1), "edge")),
        (ValueError, "num_groups must divide the 3 channels", lambda x: functional.group_norm(x, 2)),
        (ValueError, "weight must have shape", lambda x: functional.layer_norm(x, 4, np.ones(3))),
        (ValueError, r"weight must have shape \(1,\) or \(3,\)", lambda x: functional.prelu(x, np.ones(2))),
        (ValueError, "size must be an integer >= 1", lambda x: functional.local_response_norm(x, 0)),
    ],
)
def test_functions_refuse(error, message, call):
    with pytest.raises(error, match=message):
        call(np.ones((2, 3, 4, 4)))


def test_nothing_overflows_aloud():
    """Warnings are errors here."""
    for dtype in (np.float32, np.float64):
        largest = np.array([1, -1, 1], dtype) * np.finfo(dtype).max
        np.testing.assert_array_equal(functional.softmax(largest), [0.5, 0, 0.5])
        np.testing.assert_array_equal(functional.softplus(largest, 2), np.maximum(largest, 0))
        np.testing.assert_array_equal(functional.softplus_grad(np.ones_like(largest), largest, 2), [1, 0, 1])
    assert nn.LeakyReLU(np.float32(0.25)).negative_slope == 0.25


def test_local_response_norm_of_a_window_beyond_all_channels():
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4))
    wide = 10**15
    np.testing.assert_allclose(
        functional.local_response_norm(x, wide, alpha=wide),
        x / (1 + np.square(x).sum(axis=1, keepdims=True)) ** 0.75,
        rtol=1e-12,
    )
