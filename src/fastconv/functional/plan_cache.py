"""Plans that calls without one make, kept for the next call that asks for the same."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import numpy as np

from fastconv import checks, kernels, threads
from fastconv.geometry import is_plain
from fastconv.plan import LAYOUTS

# Bytes and number of the plans kept.
_MOST_BYTES, _MOST_PLANS = 1 << 25, 128
_KINDS = frozenset({int, float, str, tuple, type(None)})


class PlanCache:
    """Plans that nobody calls just now, by what was asked for; the newest, and of bounded size.

    A plan is taken out while it is in use, so that no two calls ever share one. Single operations of a
    ``dict`` are atomic; there is no lock that a forked child could find taken for ever.
    """

    def __init__(self) -> None:
        self._plans: dict[Hashable, object] = {}

    def take(self, key: Hashable):
        """A plan for this key, for the caller alone; None where there is none."""
        return self._plans.pop(key, None)

    def give(self, key: Hashable, plan) -> None:
        """Keep a plan that is not in use."""
        self._plans[key] = plan

    def trim(self) -> None:
        """Let the oldest plans go that are too many; their memory is left to others."""
        size = 0
        for count, (key, plan) in enumerate(reversed(list(self._plans.items()))):
            size += plan.kept_bytes
            if size > _MOST_BYTES or count >= _MOST_PLANS:
                dropped = self._plans.pop(key, None)
                if dropped is not None:
                    dropped.retire()


_cache = PlanCache()


def call_once(prepare: Callable, rank: int, x, weight, bias, out, *, num_threads, **options) -> np.ndarray:
    """A convolution, plain or transposed, by a plan that ``prepare`` makes, or made, for one such call."""
    num_threads = threads.resolve(num_threads)
    key = None
    if options.get("algorithm") != "fastest":  # which depends on what is remembered just now
        key = _key(prepare, x, weight, bias, (rank, num_threads, *options.values()))
    if key is None:  # with one, it has been an array from the start
        x = checks.float_array("x", x)

    def make():
        layout = options["layout"]
        checks.choice("layout", layout, LAYOUTS[rank])
        checks.float_array("x", x, rank + 2, f"({', '.join(layout)})")
        dtype = checks.float_dtype("x", x.dtype)
        return prepare(rank, x.shape, weight, bias, dtype, calls=1, num_threads=num_threads, **options)

    return through_plan(key, make, weight, bias, x, out)


def through_plan(key: Hashable | None, make: Callable, weight, bias, x: np.ndarray, out=None) -> np.ndarray:
    """A convolution of ``x`` by the plan kept for ``key``, or by the one that ``make()`` makes."""
    plan = None if key is None else _cache.take(key)
    known = plan is not None
    if known:
        plan.repack(weight, bias)
    else:
        plan = make()
    dtype = plan.geometry.dtype
    result = plan(x if x.dtype is dtype else x.astype(dtype, order="K", copy=False), out)
    if key is None:
        plan.retire()
    else:
        _cache.give(key, plan)
        if not known:
            _cache.trim()
    return result


def _key(prepare: Callable, x, weight, bias, options: tuple) -> Hashable | None:
    """What a plan for these arguments depends on besides the weights; None where it is not to be kept.

    Equal options of other types differ: 1 is right where True is not.
    """
    if type(x) is not np.ndarray or type(weight) is not np.ndarray:
        return None
    kinds = tuple(map(type, options))
    if not _KINDS.issuperset(kinds):
        return None
    if tuple in kinds and not all(is_plain(option) for option in options if type(option) is tuple):
        return None
    arrays = x.shape, x.strides, x.dtype, weight.shape, weight.dtype
    if bias is None:
        return prepare, kernels.active(), arrays, options, kinds
    if type(bias) is not np.ndarray:
        return None
    return prepare, kernels.active(), arrays, options, kinds, bias.shape, bias.dtype
