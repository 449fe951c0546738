"""Attention over the positions of an image, and its gradients: ndarray in, ndarray out."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from fastconv import checks, kernels, layout, threads
from fastconv.algorithms import base
from fastconv.functional.convolution import conv2d
from fastconv.functional.gradients import conv2d_input_grad, conv2d_weight_grad
from fastconv.memory import aligned_empty

# Rows of the matrix of scores at a time are this many register tiles; columns are base.DEPTH.
_TILES = 4


def scaled_dot_product_attention(query, key, value, *, scale=None, num_threads=None) -> np.ndarray:
    """softmax(query · keyᵀ · scale) · value.

    Vaswani et al., "Attention Is All You Need" (arXiv 1706.03762, eq. 1). Computed by tiles with a
    running softmax (Dao et al., FlashAttention, arXiv 2205.14135): the L × S matrix is never in memory.

    Parameters
    ----------
    query : array (..., L, E)
        float32 or float64; float16 is computed and returned as float32. Any strides; never changed.
    key : array (..., S, E)
    value : array (..., S, E_v)
        The axes before the last two are the same for all three.
    scale : float, optional
        Default: 1 / √E.
    num_threads : int, optional
        Default: :func:`fastconv.get_num_threads`. The result's bits do not depend on it.

    Returns
    -------
    ndarray (..., L, E_v)

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type, shapes do not fit each other, or S or E is 0.
    """
    query, key, value, scale = _checked(query, key, value, scale)
    shape = (*query.shape[:-1], value.shape[-1])
    arrays = [_stacked(array) for array in (query, key, value)]
    out = np.empty((*arrays[0].shape[:3], shape[-1]), query.dtype)
    _attend(*arrays, scale, out, num_threads)
    return out.reshape(shape)


def scaled_dot_product_attention_grad(
    grad_output, query, key, value, *, scale=None, num_threads=None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of :func:`scaled_dot_product_attention`; the matrix is computed once more, by tiles.

    Parameters
    ----------
    grad_output : array (..., L, E_v)
    query, key, value, scale, num_threads
        As for :func:`scaled_dot_product_attention`.

    Returns
    -------
    grad_query, grad_key, grad_value : ndarray
        Of the shapes of ``query``, ``key`` and ``value``.

    Raises
    ------
    TypeError, ValueError
        As :func:`scaled_dot_product_attention`, and if ``grad_output`` has not the shape of its result.
    """
    query, key, value, scale = _checked(query, key, value, scale)
    grad_output = checks.float_array("grad_output", grad_output)
    shape = (*query.shape[:-1], value.shape[-1])
    if grad_output.shape != shape:
        raise ValueError(f"grad_output must have the shape of the output, {shape}, got {grad_output.shape}")
    dtype = np.result_type(query.dtype, grad_output.dtype)
    given = (query, key, value, grad_output)
    arrays = [_stacked(checks.kernel_ready(array, dtype)) for array in given]
    out = np.empty(arrays[3].shape, dtype)
    log_sum = _attend(*arrays[:3], scale, out, num_threads)
    grads = tuple(np.empty(array.shape, dtype) for array in arrays[:3])
    _attend_grad(*arrays, scale, out, log_sum, grads, num_threads)
    return tuple(grad.reshape(array.shape) for grad, array in zip(grads, given[:3], strict=True))


class AttentionCache(NamedTuple):
    """What :func:`attention_conv2d_grad` needs of the forward pass; arrays are (N, H, W, channels)."""

    x: np.ndarray
    like: np.ndarray
    projected: np.ndarray
    attended: np.ndarray
    log_sum: np.ndarray
    weight: np.ndarray
    gamma: np.ndarray
    heads: int


def attention_conv2d(
    x, query_weight, key_weight, value_weight, query_bias=None, key_bias=None, value_bias=None, gamma=1.0, *,
    heads=1, num_threads=None,
) -> np.ndarray:  # fmt: skip
    """Self-attention between all positions of an image, added to the image.

    .. math:: y = x + \\gamma\\, \\mathrm{softmax}(Q K^T / \\sqrt{d})\\, V

    where Q, K and V are 1×1 convolutions of x, rows of the matrices are positions, and the softmax goes over
    the positions of K. With several heads the channels of Q, K and V are cut into as many runs, attended
    apart and put side by side. This is the self-attention of SAGAN (Zhang et al., arXiv 1805.08318, eqs.
    1-3) and the non-local block in its embedded Gaussian form (Wang et al., arXiv 1711.07971, eq. 3), with
    the scaling and the heads of Vaswani et al. (arXiv 1706.03762); the last 1×1 convolution that both have
    is one with V's.

    Parameters
    ----------
    x : array (N, C, H, W)
        float32 or float64; float16 is computed and returned as float32. Any strides; never changed.
    query_weight, key_weight : array (heads · d, C, 1, 1)
    value_weight : array (C, C, 1, 1)
    query_bias, key_bias, value_bias : arrays of as many values, optional
        All three or none.
    gamma : float or array (1,), default 1
        The gate; training starts it from 0, where y = x.
    heads : int, default 1
        Divides C and the channels of Q.
    num_threads : int, optional
        Default: :func:`fastconv.get_num_threads`. The result's bits do not depend on it.

    Returns
    -------
    ndarray (N, C, H, W)
        A channels-last view where ``x`` is one, else C-contiguous.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type, or shapes do not fit each other.
    """
    weights, biases = (query_weight, key_weight, value_weight), (query_bias, key_bias, value_bias)
    return attention_conv2d_training(x, weights, biases, gamma, heads=heads, num_threads=num_threads)[0]


def attention_conv2d_training(
    x, weights, biases=(None, None, None), gamma=1.0, *, heads=1, num_threads=None
) -> tuple[np.ndarray, AttentionCache]:
    """:func:`attention_conv2d`, and what :func:`attention_conv2d_grad` needs.

    Parameters
    ----------
    x, gamma, heads, num_threads
        As for :func:`attention_conv2d`.
    weights, biases : tuples of three arrays
        Of query, key and value, as there.

    Returns
    -------
    y : ndarray (N, C, H, W)
    cache : AttentionCache
        Without the matrix of scores.

    Raises
    ------
    TypeError, ValueError
        As :func:`attention_conv2d`.
    """
    x = checks.float_array("x", x, 4, "(N, C, H, W)")
    weight, bias, gamma = _parameters(x.shape, weights, biases, gamma, checks.integer("heads", heads, 1))
    arrays = [array for array in (x, weight, bias, gamma) if array is not None]
    dtype = checks.common_dtype(arrays)
    image = layout.channels_last(x, dtype)
    weight, gamma = checks.kernel_ready(weight, dtype), gamma.astype(dtype)
    projected = conv2d(image, weight, bias, layout="NHWC", num_threads=num_threads)
    attended = np.empty(image.shape, dtype)
    query, key, value = _heads(projected, x.shape[1], heads)
    (out,) = _split(attended, (x.shape[1],), heads)
    log_sum = _attend(query, key, value, 1 / math.sqrt(query.shape[-1]), out, num_threads)
    y = layout.empty(x.shape, dtype, x)
    np.multiply(attended.transpose(0, 3, 1, 2), gamma, out=y)
    y += x
    return y, AttentionCache(image, x, projected, attended, log_sum, weight, gamma, heads)


def attention_conv2d_grad(
    grad_output, cache: AttentionCache, *, input_grad=True, num_threads=None
) -> dict[str, Any]:
    """Gradients of :func:`attention_conv2d`.

    Parameters
    ----------
    grad_output : array (N, C, H, W)
    cache : AttentionCache
        As :func:`attention_conv2d_training` returned it.
    input_grad : bool, default True
        Whether to compute the gradient of ``x``.
    num_threads : int, optional
        No result depends on it.

    Returns
    -------
    dict of str to ndarray
        ``"x"``, ``"query_weight"``, ``"key_weight"``, ``"value_weight"``, ``"query_bias"``, ``"key_bias"``,
        ``"value_bias"`` and ``"gamma"``, of shape (1,). ``"x"`` is None without ``input_grad``.

    Raises
    ------
    TypeError, ValueError
        If ``grad_output`` is not an array of floats of the output's shape, or ``input_grad`` no bool.
    """
    x, projected, dtype = cache.x, cache.projected, cache.projected.dtype
    channels, input_grad = x.shape[3], checks.boolean("input_grad", input_grad)
    grad_output = checks.float_array("grad_output", grad_output, 4, "(N, C, H, W)")
    if grad_output.shape != cache.like.shape:
        raise ValueError(
            f"grad_output must have the shape of the output, {cache.like.shape}, got {grad_output.shape}"
        )
    grad = layout.channels_last(grad_output, dtype)
    grad_projected = np.empty(projected.shape, dtype)
    query, key, value = _heads(projected, channels, cache.heads)
    (grad_attended,) = _split(grad * cache.gamma, (channels,), cache.heads)
    (attended,) = _split(cache.attended, (channels,), cache.heads)
    _attend_grad(
        query, key, value, grad_attended, 1 / math.sqrt(query.shape[-1]), attended, cache.log_sum,
        _heads(grad_projected, channels, cache.heads), num_threads,
    )  # fmt: skip
    planar = grad_projected.transpose(0, 3, 1, 2)
    grad_weight = conv2d_weight_grad(
        planar, x.transpose(0, 3, 1, 2), cache.weight.shape, num_threads=num_threads
    )
    width = (projected.shape[3] - channels) // 2
    ends = (width, 2 * width)
    grad_bias = grad_projected.sum(axis=(0, 1, 2))
    total = None
    if input_grad:
        grad_x = conv2d_input_grad(planar, cache.weight, cache.like.shape, num_threads=num_threads)
        total = layout.empty(cache.like.shape, dtype, cache.like)
        np.add(grad_x, grad_output, out=total, dtype=dtype)
    names = ("query", "key", "value")
    return {
        "x": total,
        **{f"{name}_weight": part for name, part in zip(names, np.split(grad_weight, ends), strict=True)},
        **{f"{name}_bias": part for name, part in zip(names, np.split(grad_bias, ends), strict=True)},
        "gamma": np.array([(grad * cache.attended).sum()], dtype),
    }


def _checked(query, key, value, scale) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    arrays = [
        checks.float_array(name, array) for name, array in (("query", query), ("key", key), ("value", value))
    ]
    query, key, value = arrays
    if query.ndim < 2 or query.shape[-1] == 0:
        raise ValueError(f"query must have shape (..., L, E) with E >= 1, got {query.shape}")
    if key.ndim < 2 or (*key.shape[:-2], key.shape[-1]) != (*query.shape[:-2], query.shape[-1]):
        expected = f"({', '.join(map(str, (*query.shape[:-2], 'S', query.shape[-1])))})"
        raise ValueError(f"key must have shape {expected} for query {query.shape}, got {key.shape}")
    if key.shape[-2] == 0:
        raise ValueError(f"key must have at least one row, got shape {key.shape}")
    if value.ndim < 2 or value.shape[:-1] != key.shape[:-1] or value.shape[-1] == 0:
        expected = f"({', '.join(map(str, (*key.shape[:-1], 'E_v')))})"
        raise ValueError(f"value must have shape {expected} for key {key.shape}, got {value.shape}")
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else checks.finite("scale", scale)
    dtype = checks.common_dtype(arrays)
    return *(checks.kernel_ready(array, dtype) for array in arrays), scale


def _stacked(array: np.ndarray) -> np.ndarray:
    """(..., L, d) as (1, problems, L, d)."""
    return array.reshape(1, math.prod(array.shape[:-2]), *array.shape[-2:])


def _parameters(shape, weights, biases, gamma, heads):
    """The three weights and biases as one of each, and gamma as an array (1,); checked."""
    channels = shape[1]
    names = ("query", "key", "value")
    arrays = [
        checks.float_array(f"{name}_weight", weight, 4, "(channels, C, 1, 1)")
        for name, weight in zip(names, weights, strict=True)
    ]
    width = arrays[0].shape[0]
    if min(shape[1:]) < 1:
        raise ValueError(f"x must have at least one channel and one pixel, got shape {shape}")
    if channels % heads or width % heads or width < 1:
        raise ValueError(
            f"heads must divide the channels of x and of query_weight, got heads={heads} with {channels}"
            f" and {width} channels"
        )
    for name, array, rows in zip(names, arrays, (width, width, channels), strict=True):
        if array.shape != (rows, channels, 1, 1):
            raise ValueError(f"{name}_weight must have shape {(rows, channels, 1, 1)}, got {array.shape}")
    bias = None
    if any(bias is not None for bias in biases):
        parts = []
        for name, part, array in zip(names, biases, arrays, strict=True):
            if part is None:
                raise ValueError(f"{name}_bias must be given where another bias is, got None")
            parts.append(checks.float_array(f"{name}_bias", part, 1, "(channels,)"))
            if len(parts[-1]) != len(array):
                raise ValueError(f"{name}_bias must have shape ({len(array)},), got {parts[-1].shape}")
        bias = np.concatenate(parts)
    if isinstance(gamma, int | float):
        gamma = np.float32(checks.number("gamma", gamma))
    gamma = checks.float_array("gamma", gamma)
    if gamma.size != 1 or gamma.ndim > 1:
        raise ValueError(f"gamma must be one number, got shape {gamma.shape}")
    return np.concatenate(arrays), bias, gamma.reshape(1)


def _heads(projected: np.ndarray, channels: int, heads: int) -> list[np.ndarray]:
    """Q, K and V, each (N, heads, positions, d), as views of their common projection (N, H, W, channels)."""
    width = (projected.shape[3] - channels) // 2
    return _split(projected, (width, width, channels), heads)


def _split(image: np.ndarray, widths: tuple[int, ...], heads: int) -> list[np.ndarray]:
    batch, height, width, channels = image.shape
    positions = image.reshape(batch, height * width, channels)
    views, first = [], 0
    for count in widths:
        part = positions[:, :, first : first + count]
        views.append(part.reshape(batch, height * width, heads, count // heads).transpose(0, 2, 1, 3))
        first += count
    return views


def _rows(array: np.ndarray) -> np.ndarray:
    """(N, heads, L, d) as the (N · heads, L, d) left factor a kernel takes."""
    return np.ascontiguousarray(array).reshape(array.shape[0] * array.shape[1], *array.shape[2:])


def _as_columns(rows: np.ndarray, level, count: int) -> np.ndarray:
    """A right factor's transpose (G, L, d), packed in panels of its rows: (G, panels, d, PANEL)."""
    width = base.panel_width(level, rows.dtype)
    packed = aligned_empty((len(rows), base.ceil_div(rows.shape[1], width), rows.shape[2], width), rows.dtype)
    level.pack_weight(rows[..., None, None], packed, count)
    return packed


def _as_rows(array: np.ndarray, level) -> np.ndarray:
    """A right factor (N, heads, L, d), packed as it is: (N · heads, panels, L, PANEL)."""
    batch, heads, length, columns = array.shape
    width = base.panel_width(level, array.dtype)
    packed = aligned_empty((batch, heads, base.ceil_div(columns, width), length, width), array.dtype)
    for panel in range(packed.shape[2]):
        part = array[..., panel * width : (panel + 1) * width]
        packed[:, :, panel, :, : part.shape[-1]] = part
        packed[:, :, panel, :, part.shape[-1] :] = 0
    return packed.reshape(batch * heads, *packed.shape[2:])


def _attend(query, key, value, scale, out, num_threads) -> np.ndarray:
    """Attention of (N, heads, L or S, d) arrays into ``out``; the logarithms of the denominators (G, L)."""
    level, count, dtype = kernels.active(), threads.team(num_threads), out.dtype
    rows = _rows(query) if query.size == 0 else _rows(query * dtype.type(scale))
    log_sum = np.empty(rows.shape[:2], dtype)
    if rows.size:
        values = _as_rows(value, level)
        tile = _TILES * level.tile_rows()
        per_thread = base.round_up(tile * (base.DEPTH + values.shape[1] * values.shape[3] + 2), 64)
        level.attention(
            rows, _as_columns(_rows(key), level, count), values, tile, base.DEPTH, out, log_sum,
            aligned_empty((count * per_thread,), dtype), per_thread, count,
        )  # fmt: skip
    return log_sum


def _attend_grad(query, key, value, grad, scale, out, log_sum, grads, num_threads) -> None:
    """Gradients of ``_attend`` by query, key and value into ``grads``; all (N, heads, L or S, d)."""
    level, count, dtype = kernels.active(), threads.team(num_threads), out.dtype
    if query.size == 0:
        for result in grads:
            result[...] = 0
        return
    width, tile = base.panel_width(level, dtype), _TILES * level.tile_rows()
    per_thread = 2 * tile * base.DEPTH
    workspace = aligned_empty((count * per_thread,), dtype)
    mean = np.pad((grad * out).sum(axis=-1).reshape(log_sum.shape), ((0, 0), (0, width)))
    log_sum = np.pad(log_sum, ((0, 0), (0, width)))
    query = query * dtype.type(scale)
    q_rows, k_rows, v_rows, g_rows = map(_rows, (query, key, value, grad))

    def run(a, b, a_other, b_other, a_matrix, b_matrix, by_column):
        factors = _as_columns(a_other, level, count), _as_columns(b_other, level, count)
        right = _as_rows(a_matrix, level), _as_rows(b_matrix, level)
        sums = [np.zeros((*a.shape[:2], part.shape[1] * width), dtype) for part in right]
        level.attention_grad(
            a, b, *factors, *right, log_sum, mean, tile, base.DEPTH, sums[0], sums[1] if by_column else None,
            workspace, per_thread, count,
        )  # fmt: skip
        return sums

    by_query, _ = run(q_rows, g_rows, k_rows, v_rows, key, value, False)
    by_key, by_value = run(k_rows, v_rows, q_rows, g_rows, query, grad, True)
    by_query *= dtype.type(scale)
    for result, total in zip(grads, (by_query, by_key, by_value), strict=True):
        result[...] = total.reshape(*result.shape[:3], -1)[..., : result.shape[3]]
