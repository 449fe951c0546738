"""Attention by tiles: the formula, PyTorch's functions and gradients, memory, threads; the exponential."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import strategies
from fastconv import kernels, nn
from fastconv.functional import (
    attention_conv2d,
    attention_conv2d_grad,
    attention_conv2d_training,
    scaled_dot_product_attention,
    scaled_dot_product_attention_grad,
)
from support import DTYPES, LEVELS, assert_same_bits, check_gradients

NAMES = ("query", "key", "value")


@st.composite
def shapes(draw):
    """Leading axes, L, S, E, E_v; the long ones cross tiles of rows and blocks of columns."""
    length = st.integers(1, 70) | st.sampled_from([1, 24, 25, 56, 57, 112])
    keys = st.integers(1, 70) | st.sampled_from([255, 256, 257, 530])
    width = st.integers(1, 40)
    leading = draw(st.sampled_from([(), (1,), (2,), (2, 3)]))
    return leading, draw(length), draw(keys), draw(width), draw(width)


def arrays(sizes, dtype, seed):
    """query, key, value and a gradient."""
    leading, length, keys, width, value_width = sizes
    rng = np.random.default_rng(seed)
    parts = [(length, width), (keys, width), (keys, value_width), (length, value_width)]
    return [rng.standard_normal((*leading, *part)).astype(dtype) for part in parts]


def formula(query, key, value, scale=None):
    """softmax(Q Kᵀ · scale) V in float64, the whole matrix at once."""
    query, key, value = (np.asarray(array, np.float64) for array in (query, key, value))
    scores = query @ key.swapaxes(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ value


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_exponential(level, dtype):
    lowest, highest = np.log(np.finfo(dtype).tiny), np.log(np.finfo(dtype).max)
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(lowest, highest, 100_000), rng.uniform(-1, 1, 50_001)]).astype(dtype)
    y = np.empty_like(x)
    with kernels.use(level) as active:
        active.exponential(x, y)
        exact = np.exp(x.astype(np.longdouble))
        normal = (exact >= np.finfo(dtype).tiny) & (exact <= np.finfo(dtype).max)
        error = np.abs(y - exact)[normal] / np.spacing(exact[normal].astype(dtype))
        assert error.max() <= 2
        special = np.array([0, -0.0, np.inf, -np.inf, np.nan, 2 * highest, 2 * lowest], dtype)
        special = np.append(special, np.frombuffer(b"\xff\xff\xff\x7f" * 2, dtype)[0])  # a NaN of ones
        active.exponential(special, y[: len(special)])
        np.testing.assert_array_equal(y[: len(special)], [1, 1, np.inf, 0, np.nan, np.inf, 0, np.nan])


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=20)
@given(sizes=shapes(), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**32))
def test_is_the_formula(level, sizes, dtype, seed):
    query, key, value, _ = arrays(sizes, dtype, seed)
    with kernels.use(level):
        out = scaled_dot_product_attention(query, key, value, num_threads=1)
        scaled = scaled_dot_product_attention(query, key, value, scale=0.3, num_threads=2)
    assert out.dtype == dtype
    tolerance = 2e-5 if dtype == np.float32 else 1e-13
    np.testing.assert_allclose(out, formula(query, key, value), rtol=0, atol=tolerance)
    np.testing.assert_allclose(scaled, formula(query, key, value, 0.3), rtol=0, atol=tolerance)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=15)
@given(sizes=shapes(), seed=st.integers(0, 2**32))
def test_like_torch(level, sizes, seed):
    torch = pytest.importorskip("torch")
    given = arrays(sizes, np.float64, seed)
    leaves = [torch.tensor(array, requires_grad=True) for array in given[:3]]
    out = torch.nn.functional.scaled_dot_product_attention(*leaves)
    out.backward(torch.tensor(given[3]))
    with kernels.use(level):
        np.testing.assert_allclose(
            scaled_dot_product_attention(*given[:3]), out.detach(), rtol=1e-10, atol=1e-12
        )
        grads = scaled_dot_product_attention_grad(given[3], *given[:3])
    for grad, leaf in zip(grads, leaves, strict=True):
        np.testing.assert_allclose(grad, leaf.grad, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_for_any_threads_and_strides(level, dtype):
    given = arrays(((2, 2), 131, 300, 9, 33), dtype, 0)
    views = [np.repeat(array, 2, axis=-1)[..., ::2] for array in given]
    with kernels.use(level):
        results = [
            (
                scaled_dot_product_attention(*use[:3], num_threads=threads),
                *scaled_dot_product_attention_grad(use[3], *use[:3], num_threads=threads),
            )
            for threads, use in ((1, given), (2, given), (4, given), (3, views))
        ]
    for result in results[1:]:
        for actual, expected in zip(result, results[0], strict=True):
            assert_same_bits(actual, expected)


def test_large_scores_neither_overflow_nor_lose_the_largest():
    rng = np.random.default_rng(0)
    query, key, value = (100 * rng.standard_normal((300, 16)).astype(np.float32) for _ in range(3))
    out = scaled_dot_product_attention(query, key, value)
    np.testing.assert_allclose(out, formula(query, key, value), rtol=1e-2, atol=1e-1)
    key[7] = np.nan
    assert np.isnan(scaled_dot_product_attention(query, key, value)).all()
    query[3] = np.inf
    assert np.isnan(scaled_dot_product_attention(query, np.ones_like(query), value)[3]).all()


@pytest.mark.parametrize(
    ("error", "start", "arguments"),
    [
        (TypeError, "query ", {"query": np.ones((2, 3), int)}),
        (ValueError, "query ", {"query": np.ones(3)}),
        (ValueError, "query ", {"query": np.ones((2, 0)), "key": np.ones((4, 0))}),
        (TypeError, "key ", {"key": np.ones((4, 3), bool)}),
        (ValueError, "key ", {"key": np.ones((4, 2))}),
        (ValueError, "key ", {"key": np.ones((1, 4, 3))}),
        (ValueError, "key ", {"key": np.ones((0, 3)), "value": np.ones((0, 5))}),
        (ValueError, "value ", {"value": np.ones((3, 5))}),
        (ValueError, "value ", {"value": np.ones((4, 0))}),
        (ValueError, "scale ", {"scale": "1"}),
        (ValueError, "scale ", {"scale": np.nan}),
        (ValueError, "num_threads ", {"num_threads": 0}),
    ],
)
def test_refuses(error, start, arguments):
    given = {"query": np.ones((2, 3)), "key": np.ones((4, 3)), "value": np.ones((4, 5)), **arguments}
    with pytest.raises(error, match=f"^{start}"):
        scaled_dot_product_attention(**given)
    with pytest.raises(error, match=f"^{start}"):
        scaled_dot_product_attention_grad(np.ones((2, 5)), **given)


def test_gradients_refuse_another_shape():
    with pytest.raises(ValueError, match="^grad_output "):
        scaled_dot_product_attention_grad(np.ones((2, 4)), np.ones((2, 3)), np.ones((4, 3)), np.ones((4, 5)))
    _, cache = attention_conv2d_training(np.ones((1, 2, 3, 3)), [np.ones((2, 2, 1, 1))] * 3)
    with pytest.raises(ValueError, match="^grad_output "):
        attention_conv2d_grad(np.ones((1, 2, 3, 4)), cache)


def test_empty_batches():
    query, key = np.empty((0, 5, 3)), np.empty((0, 4, 3))
    assert scaled_dot_product_attention(query, key, key).shape == (0, 5, 3)
    assert [g.shape for g in scaled_dot_product_attention_grad(query, query, key, key)] == [
        (0, 5, 3),
        (0, 4, 3),
        (0, 4, 3),
    ]
    assert scaled_dot_product_attention(np.empty((0, 3)), np.ones((4, 3)), np.ones((4, 2))).shape == (0, 2)
    layer = nn.AttentionConv2d(8, dtype=np.float64)
    y, cache = layer.forward(np.empty((0, 8, 3, 3)))
    (grad,), grads = layer.backward(y, cache)
    assert y.shape == grad.shape == (0, 8, 3, 3)
    assert all(not array.any() for array in grads.values())


def torch_attention(torch, x, parameters, heads):
    """The layer's formula on tensors, with the whole matrix."""
    conv = torch.nn.functional.conv2d
    parts = [conv(x, parameters[f"{n}_weight"], parameters.get(f"{n}_bias")) for n in NAMES]
    query, key, value = (
        part.reshape(len(x), heads, part.shape[1] // heads, -1).transpose(2, 3) for part in parts
    )
    weights = torch.softmax(query @ key.transpose(2, 3) / query.shape[-1] ** 0.5, -1)
    return x + parameters["gamma"] * (weights @ value).transpose(2, 3).reshape(x.shape)


@settings(max_examples=15)
@given(
    heads=st.integers(1, 3), width=st.integers(1, 3), multiple=st.integers(1, 4), bias=st.booleans(),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)), seed=st.integers(0, 2**32),
    memory=st.sampled_from([*strategies.MEMORY_LAYOUTS]),
)  # fmt: skip
def test_layer_is_like_torchs_formula(heads, width, multiple, bias, size, seed, memory):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    layer = nn.AttentionConv2d(heads * multiple, heads, heads * width, bias, dtype=np.float64, seed=rng)
    layer.gamma = [0.7]
    x = rng.standard_normal((2, heads * multiple, *size))
    grad = rng.standard_normal(x.shape)
    parameters = {n: torch.tensor(array, requires_grad=True) for n, array in layer.parameters.items()}
    leaf = torch.tensor(x, requires_grad=True)
    expected = torch_attention(torch, leaf, parameters, heads)
    expected.backward(torch.tensor(grad))
    arrange = strategies.MEMORY_LAYOUTS[memory]
    y, cache = layer.forward(arrange(x))
    np.testing.assert_allclose(y, expected.detach(), rtol=1e-10, atol=1e-12)
    given = [layer.parameters.get(f"{n}_{kind}") for kind in ("weight", "bias") for n in NAMES]
    np.testing.assert_array_equal(attention_conv2d(arrange(x), *given, layer.gamma, heads=heads), y)
    (grad_x,), grads = layer.backward(arrange(grad), cache)
    np.testing.assert_allclose(grad_x, leaf.grad, rtol=1e-9, atol=1e-11)
    assert list(grads) == list(layer.parameters)
    for name, tensor in parameters.items():
        np.testing.assert_allclose(grads[name], tensor.grad, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("heads", "bias"), [(1, True), (2, True), (2, False)])
def test_layer_gradients(heads, bias):
    rng = np.random.default_rng(0)
    layer = nn.AttentionConv2d(6, heads, 4, bias, dtype=np.float64, seed=0)
    layer.gamma = [-0.6]
    check_gradients(layer, rng.standard_normal((2, 6, 5, 4)))


def test_layer_has_the_same_bits_for_any_threads():
    rng = np.random.default_rng(0)
    layer = nn.AttentionConv2d(24, 2, seed=0)
    layer.gamma = [0.5]
    x = rng.standard_normal((2, 24, 19, 17), dtype=np.float32)
    results = []
    for threads in (1, 2, 4):
        mode = nn.Mode(num_threads=threads)
        y, cache = layer.forward(x, mode=mode)
        (grad,), grads = layer.backward(y, cache, mode)
        results.append((y, grad, *grads.values()))
    for result in results[1:]:
        for actual, expected in zip(result, results[0], strict=True):
            assert_same_bits(actual, expected)


def test_memory_is_an_eighth_of_the_matrix():
    layer = nn.AttentionConv2d(64, seed=0)
    x = np.random.default_rng(0).standard_normal((1, 64, 64, 64), dtype=np.float32)
    limit = 4 * (64 * 64) ** 2 / 8
    layer.forward(x[:, :, :2])
    tracemalloc.start()
    try:
        y, cache = layer.forward(x, mode=nn.Mode(num_threads=2))
        forward = tracemalloc.get_traced_memory()[1]
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        layer.backward(y, cache, nn.Mode(num_threads=2))
        backward = tracemalloc.get_traced_memory()[1] - held
    finally:
        tracemalloc.stop()
    assert forward <= limit
    assert backward <= 2 * limit


def test_layer_starts_as_the_identity_and_keeps_the_memory_format():
    x = np.random.default_rng(0).standard_normal((2, 16, 5, 6), dtype=np.float32)
    layer = nn.AttentionConv2d(16, seed=0)
    np.testing.assert_array_equal(layer(x), x)
    layer.gamma = [1]
    last = strategies.MEMORY_LAYOUTS["channels_last"](x)
    assert layer(x).flags.c_contiguous
    assert layer(last).transpose(0, 2, 3, 1).flags.c_contiguous
    np.testing.assert_array_equal(layer(last), layer(x))
    assert layer.output_shape(x.shape) == x.shape
    assert layer.macs((1, 16, 5, 6)) == 30 * (16 * 20 + 30 * 18)
    widths = [nn.AttentionConv2d(c, h).key_channels for c, h in ((64, 1), (64, 4), (60, 3), (4, 4))]
    assert widths == [8, 8, 6, 4]


def test_model_trains_saves_and_loads(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 8, 4, 4), dtype=np.float32)
    y = (x[:, 0].max((1, 2)) > x[:, 1].max((1, 2))).astype(np.int64)
    model = nn.Sequential(nn.AttentionConv2d(8, 2, seed=0), nn.Flatten(), nn.Linear(128, 2, seed=0))
    start = model.evaluate(x, y)["loss"]
    model.fit(x, y, 40, optimizer="adam", seed=0, progress=False, num_threads=1)
    assert model.evaluate(x, y)["loss"] < 0.7 * start
    assert model.layers["0"].gamma != 0
    model.save(tmp_path / "model.npz")
    np.testing.assert_array_equal(nn.load(tmp_path / "model.npz").predict(x), model.predict(x))


@pytest.mark.parametrize(
    ("error", "start", "arguments"),
    [
        (ValueError, "channels ", {"channels": 0}),
        (TypeError, "channels ", {"channels": 8.0}),
        (ValueError, "heads ", {"heads": 3}),
        (ValueError, "heads ", {"heads": 2, "key_channels": 3}),
        (ValueError, "key_channels ", {"key_channels": 0}),
        (TypeError, "bias ", {"bias": 0}),
        (TypeError, "dtype ", {"dtype": np.float16}),
    ],
)
def test_layer_refuses(error, start, arguments):
    with pytest.raises(error, match=f"^{start}"):
        nn.AttentionConv2d(**{"channels": 8, **arguments})


@pytest.mark.parametrize(
    ("error", "start", "arguments"),
    [
        (TypeError, "x ", {"x": np.ones((1, 4, 3, 3), int)}),
        (ValueError, "x ", {"x": np.ones((4, 3, 3))}),
        (ValueError, "x ", {"x": np.ones((1, 4, 0, 3))}),
        (ValueError, "heads ", {"heads": 3}),
        (TypeError, "heads ", {"heads": 1.0}),
        (ValueError, "query_weight ", {"query_weight": np.ones((2, 3, 1, 1))}),
        (ValueError, "key_weight ", {"key_weight": np.ones((4, 4, 1, 1))}),
        (ValueError, "value_weight ", {"value_weight": np.ones((2, 4, 1, 1))}),
        (TypeError, "value_weight ", {"value_weight": np.ones((4, 4, 1, 1), int)}),
        (ValueError, "key_bias ", {"query_bias": np.ones(2)}),
        (
            ValueError,
            "query_bias ",
            {"query_bias": np.ones(3), "key_bias": np.ones(2), "value_bias": np.ones(4)},
        ),
        (ValueError, "gamma ", {"gamma": np.ones(2)}),
        (TypeError, "gamma ", {"gamma": "1"}),
    ],
)
def test_function_refuses(error, start, arguments):
    weights = {
        f"{name}_weight": np.ones((rows, 4, 1, 1)) for name, rows in zip(NAMES, (2, 2, 4), strict=True)
    }
    with pytest.raises(error, match=f"^{start}"):
        attention_conv2d(**{"x": np.ones((1, 4, 3, 3)), **weights, **arguments})
