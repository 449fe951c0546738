"""Calls whose checks are kept, and the kernels that small ones take."""

import numpy as np
import pytest

from fastconv import functional, kernels
from fastconv.functional import prepared
from support import DTYPES, LEVELS, assert_same_bits

RNG = np.random.default_rng(2)


def test_equal_options_of_other_types_are_told_apart():
    x = RNG.standard_normal((1, 2, 8, 8)).astype(np.float32)
    y = functional.max_pool2d(x, 2, return_indices=False)
    assert isinstance(y, np.ndarray)
    assert len(functional.max_pool2d(x, 2, return_indices=True)) == 2
    for wrong in ({"kernel_size": 2.0}, {"kernel_size": True}, {"kernel_size": 2, "ceil_mode": 1}):
        with pytest.raises((TypeError, ValueError)):
            functional.max_pool2d(x, **wrong)
    with pytest.raises(ValueError, match="^x must have 4 axes"):
        functional.max_pool2d(x[0], 2)


def test_options_that_may_change_are_not_kept():
    x, padding = RNG.standard_normal((1, 2, 8, 8)).astype(np.float32), [0, 0]
    assert functional.max_pool2d(x, 3, 1, padding).shape[2:] == (6, 6)
    padding[0] = 1
    assert functional.max_pool2d(x, 3, 1, padding).shape[2:] == (8, 6)


def test_kept_calls_are_few_and_their_results_their_own():
    for size in range(4, 40):
        for width in range(4, 16):
            functional.avg_pool2d(np.ones((1, 1, size, width), np.float32), 2)
    assert len(prepared._kept) <= prepared._kept.most
    x = RNG.standard_normal((1, 3, 8, 8)).astype(np.float32)
    first, second = functional.max_pool2d(x, 2), functional.max_pool2d(-x, 2)
    assert not np.shares_memory(first, second)
    assert_same_bits(functional.max_pool2d(x, 2), first)
    for form in (x[:, :, ::-1], x.transpose(0, 1, 3, 2), x.astype(">f4"), x.astype(np.float16)):
        expected = form.astype(np.float32).reshape(1, 3, 4, 2, 4, 2).max(axis=(3, 5))
        for _ in range(2):
            np.testing.assert_array_equal(functional.max_pool2d(form, 2), expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 4), (6, 5), (7, 14)])
def test_narrow_planes_are_pooled(size, dtype, level):
    x = RNG.standard_normal((2, 5, 2 * size[0], 2 * size[1])).astype(dtype)
    blocks = x.reshape(2, 5, size[0], 2, size[1], 2)
    with kernels.use(level):
        np.testing.assert_array_equal(functional.max_pool2d(x, 2), blocks.max(axis=(3, 5)))
        y, indices = functional.max_pool2d(x, 2, return_indices=True)
        found = np.take_along_axis(x.reshape(2, 5, -1), indices.reshape(2, 5, -1), 2)
        np.testing.assert_array_equal(found.ravel(), y.ravel())
        np.testing.assert_allclose(
            functional.avg_pool2d(x, 2), blocks.mean(axis=(3, 5)), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 5, 8, 9), (1, 3, 70, 80), (3, 4), (2, 70, 3, 3), (0, 4, 8, 8)])
def test_batch_norm_by_statistics(shape, dtype, level):
    x = RNG.standard_normal(shape).astype(dtype)
    mean, weight, bias = RNG.standard_normal((3, shape[1])).astype(dtype)
    var = RNG.uniform(0.5, 2, shape[1]).astype(dtype)
    wide = [array.reshape(-1, *(1,) * (len(shape) - 2)).astype(float) for array in (mean, var, weight, bias)]
    expected = (x - wide[0]) / np.sqrt(wide[1] + 1e-3) * wide[2] + wide[3]
    last = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    unit = np.finfo(dtype).eps
    with kernels.use(level):
        arrays = mean, var, weight, bias
        for form in (x, last, x):
            results = [functional.batch_norm(form, *arrays, eps=1e-3, num_threads=n) for n in (1, 2)]
            assert_same_bits(*results)
            np.testing.assert_allclose(results[0], expected, rtol=16 * unit, atol=16 * unit)
        wider = functional.batch_norm(x, *(array.astype(np.float64) for array in arrays), eps=1e-3)
        np.testing.assert_allclose(wider, expected, rtol=16 * unit, atol=16 * unit)
        plain = functional.batch_norm(x, list(mean), var[::-1][::-1])
        np.testing.assert_allclose(plain, (x - wide[0]) / np.sqrt(wide[1] + 1e-5), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "axes"), [((5, 7), 1), ((70, 33), 1), ((3, 40, 5, 6), 2), ((2, 1000), 1), ((0, 4), 1)]
)
def test_gradients_of_layer_norm(shape, axes, dtype, level):
    x, grad = RNG.standard_normal((2, *shape)).astype(dtype) + dtype(3)
    weight = RNG.standard_normal(shape[-axes:]).astype(dtype)
    over, before = tuple(range(-axes, 0)), tuple(range(len(shape) - axes))
    wide = x.astype(float)
    inverse = 1 / np.sqrt(wide.var(axis=over, keepdims=True) + 1e-5)
    n, u = (wide - wide.mean(axis=over, keepdims=True)) * inverse, grad.astype(float) * weight
    by_input = (u - u.mean(axis=over, keepdims=True) - n * (u * n).mean(axis=over, keepdims=True)) * inverse
    expected = by_input, (grad * n).sum(axis=before), grad.astype(float).sum(axis=before)
    tolerance = 2e3 * np.finfo(dtype).eps
    with kernels.use(level):
        results = [
            functional.layer_norm_grad(grad, x, shape[-axes:], weight, num_threads=count) for count in (1, 2)
        ]
    for found, other, right in zip(*results, expected, strict=True):
        assert_same_bits(found, other)
        np.testing.assert_allclose(found, right, rtol=tolerance, atol=tolerance)
    if not x.size:
        return
    plain = functional.layer_norm_grad(grad, x, shape[-axes:])[0]
    ones = functional.layer_norm_grad(grad, x, shape[-axes:], np.ones(shape[-axes:], dtype))[0]
    assert_same_bits(plain, ones)
