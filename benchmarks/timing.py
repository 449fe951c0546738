"""Timing several contestants against each other on a machine that changes speed by itself.

Figures of different runs do not compare: a shared machine runs the same loop half as fast for seconds at
a time. So the contestants take turns within one process, round after round, and a contestant's figure
is the median of its rounds. Between turns everybody sleeps, which lets the last one's threads stop spinning;
each then warms up for longer than it takes to wake threads, and each round begins with another contestant, so
that nobody always follows the one whose threads spin longest.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence
from statistics import median
from typing import NamedTuple

import numpy as np

# fastconv's contestants on contiguous NCHW arrays, a prepared plan and the plain call; the others are named
# after algorithms and libraries.
NCHW_PLAN, NCHW_CALL = "nchw_plan", "nchw_call"

REST = 0.015
WARM_UP = 0.005
SLOT = 0.002
MAX_CALLS = 200


class Contestant(NamedTuple):
    """One way to compute a layer: ``call`` computes, ``read`` makes an (N, C, H, W) array of the result."""

    name: str
    call: Callable[[], object]
    read: Callable[[object], np.ndarray]


class Absent(NamedTuple):
    """A contestant that cannot take part, and why."""

    name: str
    reason: str


class Timing(NamedTuple):
    """Seconds per call; ``rounds`` is 0 where one call was so slow that it was not repeated."""

    seconds: float
    rounds: int


def quiet_thread_pools() -> None:
    """Shorten how long idle threads of Intel's OpenMP spin, 200 ms; call it before any library is loaded.

    GNU's, which PyTorch and fastconv use, spin for 6 ms after a call, well within the rest between turns.
    They are left at that: with shorter spins a thread that waits within a call falls asleep, and waking it
    cost a millisecond of every two-thread call here, PyTorch's and ours.
    """
    os.environ.setdefault("KMP_BLOCKTIME", "1")


def seconds_per_call(call: Callable[[], object], calls: int) -> float:
    """The mean of some calls in a row."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def interleave(
    contestants: Sequence[Contestant], repeats: int, optional: Collection[str] = (), too_slow: float = 8.0
) -> dict[str, Timing]:
    """Time contestants turn by turn.

    Parameters
    ----------
    contestants
        Who takes part.
    repeats
        Rounds; each contestant's figure is the median over them.
    optional, too_slow
        A contestant of an optional name is not repeated if its second call takes ``too_slow`` times the
        fastest's.
    """
    first = {}
    for contestant in contestants:
        contestant.call()
        first[contestant.name] = seconds_per_call(contestant.call, 1)
    limit = too_slow * min(first.values())
    racing = [
        contestant
        for contestant in contestants
        if contestant.name not in optional or first[contestant.name] <= limit
    ]
    samples = {contestant.name: [] for contestant in racing}
    for turn in range(repeats):
        for contestant in racing[turn % len(racing) :] + racing[: turn % len(racing)]:
            time.sleep(REST)
            warm = time.perf_counter() + WARM_UP
            contestant.call()
            while time.perf_counter() < warm:
                contestant.call()
            calls = min(MAX_CALLS, max(1, round(SLOT / first[contestant.name])))
            samples[contestant.name].append(seconds_per_call(contestant.call, calls))
    return {
        name: Timing(median(samples[name]), repeats) if name in samples else Timing(seconds, 0)
        for name, seconds in first.items()
    }
