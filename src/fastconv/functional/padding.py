"""Padding an array by constants or by copies of its own border, and the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastconv import checks, kernels, threads
from fastconv.functional.prepared import call
from fastconv.memory import fresh

# numpy.pad's names of PyTorch's modes.
MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
# Axes that the kernel pads at once.
_MOST_AXES = 3


def checked_pad(pad: object, shape: Sequence[int], mode: str) -> tuple[tuple[int, int], ...]:
    """The (low, high) pair of every axis of an array of this shape, from PyTorch's ``pad``: last axis first.

    Raises
    ------
    TypeError, ValueError
        If ``pad`` is no even number of integers for the axes there are, or more than the mode can take.
    """
    checks.choice("mode", mode, tuple(MODES))
    pad = checks.frozen(pad)
    if not isinstance(pad, tuple):
        raise TypeError(f"pad must be integers (low, high) for each axis, the last first, got {pad!r}")
    if len(pad) % 2 or len(pad) > 2 * len(shape):
        raise ValueError(
            f"pad must be a (low, high) pair for each of at most {len(shape)} axes, got {len(pad)}: {pad!r}"
        )
    least = -max(shape, default=0) if mode == "constant" else 0
    amounts = [checks.integer(f"pad[{i}]", amount, least) for i, amount in enumerate(pad)]
    pairs = [(0, 0)] * len(shape)
    for i in range(len(amounts) // 2):
        axis, pair = len(shape) - 1 - i, (amounts[2 * i], amounts[2 * i + 1])
        size = shape[axis]
        limit = {"reflect": size - 1, "circular": size}.get(mode, max(pair))
        if max(pair) > limit:
            raise ValueError(
                f"pad must be at most {limit} on axis {axis} of size {size} with mode={mode!r}, got {pair}"
            )
        if size + sum(pair) < 0 or (mode == "replicate" and size == 0 and max(pair) > 0):
            raise ValueError(f"pad must leave axis {axis} of size {size} a size >= 0, got {pair}")
        pairs[axis] = pair
    return tuple(pairs)


def _memory_order(x: np.ndarray) -> list[int]:
    """The axes, outermost in memory first."""
    return sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis]))


def pad(x, pad, mode="constant", value=0.0, *, num_threads=None):
    """Add a border. As ``torch.nn.functional.pad``, for any number of axes in every mode.

    Parameters
    ----------
    x : array of float32, float64 or float16 (computed as float32), any shape
    pad : sequence of int
        (low, high) of the last axis, then of the one before it, and so on. Negative ones, with
        ``"constant"`` only, cut off.
    mode : {"constant", "reflect", "replicate", "circular"}, default "constant"
        The border is ``value``; the image mirrored at its outermost pixels; copies of these; the image again.
    value : float, default 0
    num_threads : int, optional
        The result does not depend on it.

    Returns
    -------
    ndarray
        In the memory format of ``x``.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type, or out of range: a reflected border is smaller than the image, a
        circular one at most as large.
    """
    return call(_padding, x, num_threads, (pad, mode, value))


def _padding(x: np.ndarray, num_threads: int | None, pad, mode, value) -> Callable:
    """How to pad arrays like ``x``."""
    pairs, value = checked_pad(pad, x.shape, mode), checks.number("value", value)
    num_threads = threads.resolve(num_threads)
    order = _memory_order(x)
    shape, back = [x.shape[axis] for axis in order], np.argsort(order).tolist()
    is_ordered = order == sorted(order) and x.flags.c_contiguous
    left, steps = [position for position, axis in enumerate(order) if pairs[axis] != (0, 0)], []
    while left:
        # The innermost ones, at most three axes that lie beside each other.
        few = [position for position in left if left[-1] - position < _MOST_AXES]
        left = left[: -len(few)]
        amounts = [pairs[order[position]] for position in range(few[0], few[-1] + 1)]
        steps.append(_Step.create(shape, few[0], amounts, mode))
        shape[few[0] : few[-1] + 1] = [
            n + sum(pair) for n, pair in zip(shape[few[0] : few[-1] + 1], amounts, strict=True)
        ]

    def padded(x: np.ndarray) -> np.ndarray:
        result = x if is_ordered else np.ascontiguousarray(x.transpose(order))
        for step in steps:
            result = step(result, value, num_threads)
        if not steps:
            result = result.copy()
        result = result.reshape(shape)
        return result if is_ordered else result.transpose(back)

    return padded


class _Step(NamedTuple):
    """At most three neighbouring axes of a C-contiguous array padded: (N, D, H, W, C) read and written."""

    read: tuple[int, ...]
    written: tuple[int, ...]
    sources: tuple[np.ndarray, ...]
    inside: tuple[int, int, int]

    @classmethod
    def create(cls, shape: list[int], first: int, amounts: list[tuple[int, int]], mode: str) -> _Step:
        """Of the axes from ``first`` on."""
        end, missing = first + len(amounts), _MOST_AXES - len(amounts)
        sizes, pairs = [1] * missing + shape[first:end], [(0, 0)] * missing + amounts
        sources = tuple(_sources(*axis, mode) for axis in zip(sizes, pairs, strict=True))
        outer, inner = math.prod(shape[:first]), math.prod(shape[end:])
        low, high = pairs[-1]
        inside = max(low, 0), max(-low, 0), max(sizes[-1] + min(low, 0) + min(high, 0), 0)
        return cls((outer, *sizes, inner), (outer, *map(len, sources), inner), sources, inside)

    def __call__(self, x: np.ndarray, value: float, num_threads: int | None) -> np.ndarray:
        result = fresh(self.written, x.dtype)
        if result.size:
            count = threads.for_elements(num_threads, result.size)
            kernels.active().pad(x.reshape(self.read), *self.sources, *self.inside, value, result, count)
        return result


@lru_cache(maxsize=256)
def _sources(size: int, pair: tuple[int, int], mode: str) -> np.ndarray:
    """Which position each of an axis' outputs copies; −1 for the constant."""
    low, high = pair
    positions = np.arange(size)[max(-low, 0) : size - max(-high, 0)]
    options = {"constant_values": -1} if mode == "constant" else {}
    sources = np.pad(positions, (max(low, 0), max(high, 0)), MODES[mode], **options).astype(np.int64)
    sources.flags.writeable = False
    return sources


def pad_grad(grad_output, input_shape, pad, mode="constant", *, num_threads=None):
    """The gradient of :func:`pad` by its input: every copy's is added to its pixel's.

    Parameters
    ----------
    grad_output : array
    input_shape : sequence of int
    pad, mode
        As they were given to :func:`pad`.
    num_threads : int, optional
        The result does not depend on it.

    Returns
    -------
    ndarray, shape ``input_shape``

    Raises
    ------
    TypeError, ValueError
        As :func:`pad`, or if ``grad_output`` has not the shape of its output.
    """
    shape = checks.sizes("input_shape", input_shape, "of the input")
    pairs = checked_pad(pad, shape, mode)
    grad = checks.float_array("grad_output", grad_output)
    expected = tuple(n + low + high for n, (low, high) in zip(shape, pairs, strict=True))
    if grad.shape != expected:
        raise ValueError(f"grad_output must have the shape of the output, {expected}, got {grad.shape}")
    grad = grad.astype(checks.float_dtype("grad_output", grad.dtype), copy=False)
    threads.resolve(num_threads)  # NumPy has one
    for axis, pair in enumerate(pairs):
        if pair != (0, 0):
            grad = _unpad(grad, axis, shape[axis], pair, MODES[mode])
    return grad


def _unpad(grad, axis, size, amounts, mode):
    """The gradient before padding an axis: each border line's is added to that of the line it copies.

    Parameters
    ----------
    grad : array
        Of the padded one.
    axis, size : int
        The axis, and its size before.
    amounts : (int, int)
    mode : str
        As numpy.pad names it.

    Returns
    -------
    ndarray
    """
    low, high = amounts
    lines = np.moveaxis(grad, axis, 0)
    if mode == "constant":
        kept = lines[max(low, 0) : len(lines) - max(high, 0)]
        result = np.zeros_like(kept, shape=(size, *kept.shape[1:]))
        result[max(-low, 0) : size - max(-high, 0)] = kept
        return np.moveaxis(result, 0, axis)
    sources = np.pad(np.arange(size), amounts, mode)
    result = lines[low : low + size].copy(order="K")
    for border in (*range(low), *range(low + size, len(sources))):
        result[sources[border]] += lines[border]
    return np.moveaxis(result, 0, axis)
