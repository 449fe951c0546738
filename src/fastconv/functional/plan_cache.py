"""Plans that calls without one make, kept for the next call that asks for the same."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from fastconv import checks, kernels, threads
from fastconv.functional.kept import Newest, are_plain, kinds
from fastconv.plan import LAYOUTS

# Bytes and number of the plans kept.
_MOST_BYTES, _MOST_PLANS = 1 << 25, 128
# Bytes of weights that are compared with those packed before, which takes less time than to pack them again.
_MOST_COMPARED = 1 << 20


class Kept(NamedTuple):
    """A plan, and the bytes of the weight and of the bias in it.

    These are None where they are not compared with the next ones: they are too many, or have changed before.
    """

    plan: object
    given: tuple[bytearray, ...] | None

    @property
    def nbytes(self) -> int:
        return self.plan.kept_bytes + sum(map(len, self.given or ()))


# By what was asked for. A plan is taken out while it is in use, so that no two calls ever share it.
_cache = Newest(_MOST_PLANS, _MOST_BYTES, attrgetter("nbytes"))


def call_once(
    prepare: Callable, rank: int, x, weight, bias, out, num_threads, layout, options: tuple
) -> np.ndarray:
    """A convolution, plain or transposed, by a plan that ``prepare`` makes, or made, for one such call."""
    num_threads = threads.resolve(num_threads)
    key = _key(prepare, rank, x, weight, bias, num_threads, layout, options)
    try:
        kept = _cache.pop(key, None)
    except (TypeError, ValueError):  # an option that cannot be hashed
        kept = None
    if kept is not None:
        return _call(key, kept, weight, bias, x, out)
    checks.choice("layout", layout, LAYOUTS[rank])
    x = checks.float_array("x", x, rank + 2, f"({', '.join(layout)})")
    dtype = checks.float_dtype("x", x.dtype)
    plan = prepare(rank, x.shape, weight, bias, dtype, num_threads, layout, options, once=True)
    return _first_call(key if _means_the_same(options) else None, plan, weight, bias, x, out)


def through_plan(key: Hashable, make: Callable, arguments: tuple, weight, x: np.ndarray) -> np.ndarray:
    """A convolution of ``x`` by the plan kept for ``key``, or by what ``make(*arguments)`` makes."""
    kept = _cache.pop(key, None)
    if kept is None:
        return _first_call(key, make(*arguments), weight, None, x)
    return _call(key, kept, weight, None, x)


def _first_call(key: Hashable | None, plan, weight, bias, x: np.ndarray, out=None) -> np.ndarray:
    """A call by a new plan, which is kept where it has a key."""
    kept = None if key is None else Kept(plan, _copied(weight, bias))  # before out, which may be the weight
    result = _run(plan, x, out)
    if kept is None:
        plan.retire()
    else:
        _cache[key] = kept
        for dropped in _cache.trim():
            dropped.plan.retire()
    return result


def _call(key: Hashable, kept: Kept, weight, bias, x: np.ndarray, out=None) -> np.ndarray:
    """A call by a plan that has been kept."""
    plan, given = kept
    if given is None or not _are_equal(given, weight, bias):
        plan.repack(weight, bias)
        # Weights that have changed will change again: they are not compared any more.
        kept = Kept(plan, None)
    result = _run(plan, x, out)
    _cache[key] = kept
    return result


def _run(plan, x: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    dtype = plan.geometry.dtype
    return plan(x if x.dtype is dtype else x.astype(dtype, order="K", copy=False), out)


def _copied(weight: np.ndarray, bias: np.ndarray | None) -> tuple[bytearray, ...] | None:
    """What is compared of a weight and a bias with the next ones, whose shapes and dtypes are the same."""
    if weight.nbytes > _MOST_COMPARED:
        return None
    return tuple(bytearray(array.tobytes()) for array in (weight, bias) if array is not None)


def _are_equal(given: tuple[bytearray, ...], weight: np.ndarray, bias: np.ndarray | None) -> bool:
    return given[0] == _in_one_run(weight) and (bias is None or given[1] == _in_one_run(bias))


def _in_one_run(array: np.ndarray) -> np.ndarray | bytes:
    """What a bytearray compares itself with; bytes would need a copy of every array first."""
    return array if array.flags.c_contiguous else array.tobytes()


def _key(
    prepare: Callable, rank: int, x, weight, bias, num_threads: int, layout, options: tuple
) -> Hashable | None:
    """What a plan for these arguments depends on besides the weights; None where it is not to be kept.

    Equal options of other types differ: 1 is right where True is not.
    """
    if type(x) is not np.ndarray or type(weight) is not np.ndarray:
        return None
    key = (
        prepare, rank, kernels.active(), num_threads, layout, options, kinds(options),
        x.shape, x.strides, x.dtype, weight.shape, weight.dtype,
    )  # fmt: skip
    if bias is None:
        return key
    return (*key, bias.shape, bias.dtype) if type(bias) is np.ndarray else None


def _means_the_same(options: tuple) -> bool:
    """Whether options never change, and mean the same every time; "fastest" is what was fastest just now."""
    return are_plain(options) and "fastest" not in options
