"""fastconv's contestants: every algorithm as a plan on a channels-last view; on NCHW a plan and the call."""

from __future__ import annotations

import numpy as np

import fastconv as fc
from benchmarks.registry import Layer, aligned
from benchmarks.timing import NCHW_CALL, NCHW_PLAN, Absent, Contestant
from fastconv.algorithms import ALGORITHMS


def channels_last(x: np.ndarray) -> np.ndarray:
    """The same array with the channels innermost in memory."""
    return aligned(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def planned(layer: Layer, arrays, algorithm: str, threads: int) -> Contestant | Absent:
    """One algorithm, its weights packed once; the name is the algorithm's, also for "auto"."""
    x, weight, bias = arrays
    try:
        plan = fc.plan_conv2d(
            layer.input_shape, weight, bias, **layer.keywords, algorithm=algorithm, num_threads=threads
        )
    except ValueError as error:
        return Absent(algorithm, str(error))
    x = channels_last(x)
    out = plan(x)
    return Contestant(plan.algorithm, lambda: plan(x, out=out), lambda y: y)


def nchw_plan(layer: Layer, arrays, threads: int) -> Contestant:
    """The algorithm that "auto" picks, its weights packed once, on contiguous NCHW arrays."""
    x, weight, bias = arrays
    plan = fc.plan_conv2d(layer.input_shape, weight, bias, **layer.keywords, num_threads=threads)
    out = plan(x)
    return Contestant(NCHW_PLAN, lambda: plan(x, out=out), lambda y: y)


def nchw_call(layer: Layer, arrays, threads: int) -> Contestant:
    """The call a newcomer writes: contiguous NCHW in and out, weights packed every time."""
    x, weight, bias = arrays
    return Contestant(
        NCHW_CALL,
        lambda: fc.conv2d(x, weight, bias, **layer.keywords, num_threads=threads),
        lambda y: y,
    )


def contestants(layer: Layer, arrays, threads: int) -> tuple[list[Contestant | Absent], str]:
    """All of ours for a layer, and the name of the algorithm that "auto" picks."""
    entries = [planned(layer, arrays, name, threads) for name in ALGORITHMS]
    plain = [nchw_plan(layer, arrays, threads), nchw_call(layer, arrays, threads)]
    return [*entries, *plain], planned(layer, arrays, "auto", threads).name
