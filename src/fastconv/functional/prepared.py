"""Calls prepared once: what the checks of one call found, kept for the next ones like it.

A small image is pooled in less time than it takes to check the arguments and to find its tables. So a
function hands over how to ``prepare`` itself: that checks everything and returns what computes, for all
images of one form and one set of options.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter

import numpy as np

from fastconv import checks, kernels, threads
from fastconv.functional.kept import Newest, are_plain, kinds

# Elements of images whose calls are kept, checks of others cost nothing besides; the length of all their
# axes, with which tables grow; and how many calls.
_MOST_ELEMENTS, _MOST_LENGTH, _MOST_CALLS = 1 << 18, 1 << 18, 256
_NATIVE = (np.dtype(np.float32), np.dtype(np.float64))

# What computes, and the length of its axes.
_kept = Newest(_MOST_CALLS, _MOST_LENGTH, itemgetter(1))


def call(prepare: Callable, x: object, num_threads: int | None, options: tuple, *others) -> np.ndarray:
    """``prepare(x, num_threads, *options)(x, *others)``, kept for an ``x`` of few elements.

    ``prepare`` gets an array of float32 or float64, native and aligned, and must return what computes
    for any such array of the same shape, strides and dtype.
    """
    key = None
    if type(x) is np.ndarray and x.dtype in _NATIVE and x.flags.aligned:
        if x.size <= _MOST_ELEMENTS:
            count = threads.resolve(num_threads)
            key = (
                prepare, kernels.active(), count, x.shape, x.strides, x.dtype, options, kinds(options)
            )  # fmt: skip
            try:
                kept = _kept.get(key)
            except (TypeError, ValueError):  # an option that cannot be hashed
                key = None
            else:
                if kept is not None:
                    return kept[0](x, *others)
    else:
        x = checks.float_array("x", x)
        x = checks.kernel_ready(x, checks.float_dtype("x", x.dtype))
    run = prepare(x, num_threads, *options)
    result = run(x, *others)
    if key is not None and are_plain(options):
        results = result if type(result) is tuple else (result,)
        _kept[key] = run, sum(sum(array.shape) for array in (x, *results))
        _kept.trim()
    return result
