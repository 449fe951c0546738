"""What several test files share: the things to run over, comparisons, and child processes."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np

import fastconv as fc
import reference
import strategies
from fastconv import kernels, nn
from fastconv.geometry import ConvGeometry

ALGORITHMS = ("direct", "im2col", "kn2col", "winograd", "fft")
# The algorithms that only ever multiply an input by a weight and add: exact on small integers.
SUMMING = ("direct", "im2col", "kn2col")
LEVELS = kernels.supported_levels()
DTYPES = (np.float32, np.float64)


def geometry(case, dtype):
    """The ConvGeometry of a Case."""
    return ConvGeometry.create(case.x_shape, case.weight_shape, dtype=dtype, **case.keywords)


def error_bound(algorithm, case, dtype):
    """What an algorithm states as its error for a Case, relative to the largest output."""
    return fc.algorithms.ALGORITHMS[algorithm].error_bound(geometry(case, dtype))


def assert_within_bound(y, expected, bound, reduction):
    """max|error| ≤ bound·scale. The scale is max|expected|, but at least the standard deviation sqrt(K)
    of one output of N(0, 1) data, which a handful of outputs may all fall short of."""
    assert y.shape == expected.shape
    if y.size == 0:
        return
    scale = max(np.abs(expected).max(), math.sqrt(reduction))
    error = np.abs(y - expected).max() / scale
    assert error <= bound, f"error {error:.3g}, stated bound {bound:.3g}"


def assert_same_bits(actual, expected):
    """Equal dtype, shape and bits: −0 is not 0 here, and a NaN equals itself."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert np.ascontiguousarray(actual).tobytes() == np.ascontiguousarray(expected).tobytes()


def check_bound(case, dtype, level):
    """Winograd's result is within its stated bound, and the same bits with one thread and two."""
    x, weight, bias = case.normal(dtype)
    expected = expected_conv2d(case, x, weight, bias, relu=True)
    keywords = {**case.keywords, "algorithm": "winograd", "activation": "relu"}
    with kernels.use(level):
        y = fc.conv2d(x, weight, bias, num_threads=1, **keywords)
        assert_same_bits(fc.conv2d(x, weight, bias, num_threads=2, **keywords), y)
    assert_within_bound(y, expected, error_bound("winograd", case, dtype), case.reduction)


def check_layouts(case, dtype, level, arrange):
    """Winograd gives the same bits for an ``arrange``d input and any output, fresh or added to."""
    x, weight, bias = case.normal(dtype)
    with kernels.use(level):
        plan = fc.plan_conv2d(x.shape, weight, bias, algorithm="winograd", **case.keywords)
        expected = plan(strategies.MEMORY_LAYOUTS["channels_last"](x))
        assert_same_bits(plan(arrange(x)), expected)
        # Planes whose rows do not follow each other.
        out = np.full((*plan.output_shape[:3], plan.output_shape[3] + 1), np.nan, dtype)
        rows, last = out[..., :-1], expected.copy(order="K")
        plan(x, out=rows)
        assert_same_bits(rows, expected)
        plan(x, out=rows, accumulate=True)
        plan(x, out=last, accumulate=True)
        assert_same_bits(rows, last)
        np.testing.assert_allclose(last, 2 * expected, rtol=1e-5, atol=1e-5)
        assert np.isnan(out[..., -1]).all()


def check_accuracy(case):
    """The project's promise for Winograd: 4e-6 of the largest result."""
    for seed in range(3):
        x, weight, _ = case.with_seed(seed).normal(np.float32)
        expected = expected_conv2d(case, x, weight)
        error = np.abs(fc.conv2d(x, weight, algorithm="winograd", **case.keywords) - expected).max()
        assert error <= min(4e-6, error_bound("winograd", case, np.float32)) * np.abs(expected).max()


def image(rng, channels, size, batch=2):
    """Random pixels at least 0.01 apart from each other and from 0, so that no kink is crossed."""
    count = batch * channels * size[0] * size[1]
    values = (rng.permutation(count) - count // 2 + 0.5) * 0.02
    return values.reshape(batch, *size, channels).transpose(0, 3, 1, 2)


def check_gradients(layer, *inputs, training=False, samples=12):
    """Compare ``backward`` with central differences of a random projection of the output."""
    rng = np.random.default_rng(0)

    def run():
        # Dropout has to draw the same mask every time.
        fresh = nn.Mode(training=training, rng=np.random.default_rng(7), num_threads=1)
        return layer.forward(*inputs, mode=fresh)

    output, cache = run()
    assert output.shape == layer.output_shape(*(x.shape for x in inputs))
    projection = rng.standard_normal(output.shape)
    input_grads, grads = layer.backward(projection, cache, mode=nn.Mode(num_threads=1))
    assert list(grads) == list(layer.parameters)
    _, alone = layer.backward(projection, cache, mode=nn.Mode(num_threads=1, input_grad=False))
    for name in grads:
        assert_same_bits(alone[name], grads[name])
    targets = [*zip(inputs, input_grads, strict=True)]
    targets += [(layer.parameters[name], grads[name]) for name in grads]
    for array, grad in targets:
        assert grad.shape == array.shape
        assert grad.dtype == array.dtype
        for index in rng.choice(array.size, min(samples, array.size), replace=False):
            where = np.unravel_index(index, array.shape)
            before = array[where]
            values = []
            for step in (1e-6, -1e-6):
                array[where] = before + step
                values.append((run()[0] * projection).sum())
            array[where] = before
            np.testing.assert_allclose(grad[where], (values[0] - values[1]) / 2e-6, rtol=1e-3, atol=1e-5)


def output_gradient(case, dtype):
    size = reference.output_size(
        case.x_shape[2:], case.weight_shape[2:], case.stride, case.padding, case.dilation
    )
    rng = np.random.default_rng(case.seed + 1)
    return rng.integers(-4, 5, (case.x_shape[0], case.weight_shape[0], *size)).astype(dtype)


def gradients(case, x, weight, grad, **keywords):
    rank = x.ndim - 2
    return (
        getattr(fc.functional, f"conv{rank}d_input_grad")(grad, weight, x.shape, **case.keywords, **keywords),
        getattr(fc.functional, f"conv{rank}d_weight_grad")(
            grad, x, weight.shape, **case.keywords, **keywords
        ),
    )


def references(case, x, weight, grad):
    """Both gradients by definition."""
    return (
        reference.conv_input_grad(grad, weight, x.shape, **case.keywords),
        reference.conv_weight_grad(grad, x, weight.shape, **case.keywords),
    )


def channels_last(array):
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)


def assert_finite_differences(function, array, gradient, rng):
    """Central differences at up to 10 places; exact but for rounding, as the function is linear."""
    for flat in rng.permutation(array.size)[:10]:
        index = np.unravel_index(flat, array.shape)
        kept, values = array[index], []
        for step in (0.5, -0.5):
            array[index] = kept + step
            values.append(function())
        array[index] = kept
        np.testing.assert_allclose(gradient[index], values[0] - values[1], rtol=1e-8, atol=1e-8)


def expected_conv2d(case, x, weight, bias=None, **keywords):
    """The reference's answer to a Case."""
    return reference.conv(x, weight, bias, **case.keywords, **keywords)


def python(code, *, timeout=120, check=True, **environment):
    """Run code in a new interpreter, with changes to the environment (None removes a variable)."""
    variables = {**os.environ, **{name: value for name, value in environment.items() if value is not None}}
    for name, value in environment.items():
        if value is None:
            variables.pop(name, None)
    return subprocess.run(
        [sys.executable, "-c", code],
        env=variables,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=check,
    )
