"""Thread counts, resolved in one place: argument → ``set_num_threads`` → ``OMP_NUM_THREADS`` → the CPUs
this process may use (affinity and cgroup quota). And Python functions spread over threads."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Sequence

from fastconv import kernels

_MAX_THREADS = 1024
# Starting a thread costs as much as passing over some thousands of elements.
ELEMENTS_PER_THREAD = 1 << 14
# And as so many multiplications.
MULTIPLICATIONS_PER_THREAD = 1 << 16
_default: int | None = None
_limit = _MAX_THREADS if kernels.openmp_version else 1


def _positive(name: str, value: int) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}") from None
    if isinstance(value, bool) or not 1 <= count <= _MAX_THREADS:
        raise ValueError(f"{name} must be an integer from 1 to {_MAX_THREADS}, got {value!r}")
    return count


def _cgroup_cpus() -> float:
    """CPUs the control group's quota allows (cgroup v2); infinity where there is no quota."""
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
        return float("inf") if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return float("inf")


def available_cpus() -> int:
    """CPUs this process may use, by affinity and cgroup quota; at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Where the user has OpenMP bind threads, this one has been bound to one CPU, and its team will use more.
    return max(1, int(min(max(affinity, kernels.openmp_cpus()), _cgroup_cpus())))


def _from_environment() -> int:
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if first.isdecimal() and 1 <= int(first) <= _MAX_THREADS:
        return int(first)
    return available_cpus()


def set_num_threads(n: int) -> None:
    """Set how many threads a call uses when its ``num_threads`` is not given.

    Parameters
    ----------
    n : int
        From 1 to 1024.

    Raises
    ------
    TypeError, ValueError
        If ``n`` is not such an integer.
    """
    global _default
    _default = _positive("n", n)


def get_num_threads() -> int:
    """How many threads a call uses when its ``num_threads`` is not given (1 in a build without OpenMP)."""
    return resolve(None)


def resolve(num_threads: int | None) -> int:
    """The number of threads for one call; the results never depend on it."""
    if num_threads is None:
        global _default
        if _default is None:
            _default = _from_environment()
        num_threads = _default
    elif type(num_threads) is not int or not 1 <= num_threads <= _MAX_THREADS:
        num_threads = _positive("num_threads", num_threads)
    return num_threads if num_threads < _limit else _limit


def team(num_threads: int | None, most: int = _MAX_THREADS) -> int:
    """The number of threads for one call, and those threads apart from each other, ready to be called."""
    count = resolve(num_threads)
    count = count if count < most else most
    if count > 1:
        kernels.spread_threads(count)
    return count


def for_elements(num_threads: int | None, elements: int) -> int:
    """The number of threads for one call that passes over so many elements: fewer where they are few."""
    if num_threads is None and elements < ELEMENTS_PER_THREAD:
        return 1
    return team(num_threads, 1 + elements // ELEMENTS_PER_THREAD)


def for_multiplications(num_threads: int | None, multiplications: int) -> int:
    """The number of threads for one call of so many multiplications: fewer where they are few."""
    return team(num_threads, worth(multiplications))


def worth(multiplications: int) -> int:
    """How many threads so many multiplications are worth."""
    return 1 + multiplications // MULTIPLICATIONS_PER_THREAD


def together(work: Callable[[int, int, Callable[[], object]], None], count: int) -> None:
    """work(number, team, wait) on the threads of a team; for work that releases the GIL.

    The team has ``count`` threads, or fewer where OpenMP has not so many. ``wait()`` returns once all of
    them have called it. The threads are those of the kernels: Linux lets one that was just started share
    its parent's CPU for some milliseconds, when a call is long over, while OpenMP's are apart. They wait
    for each other asleep, which leaves a busy machine's CPUs to their peers.
    """
    if count == 1:
        work(0, 1, lambda: None)
        return
    from threading import Barrier  # only who needs several threads needs it

    barriers: dict[int, Barrier] = {}

    def member(number: int, team: int) -> None:
        barrier = barriers.setdefault(team, Barrier(team))
        complete = False
        try:
            work(number, team, barrier.wait)
            complete = True
        finally:
            if not complete:
                barrier.abort()

    kernels.in_threads(member, count)


def part(items: Sequence, number: int, count: int) -> Sequence:
    """One of ``count`` parts, as equal as can be, of some items."""
    return items[len(items) * number // count : len(items) * (number + 1) // count]


def _single_threaded_child() -> None:
    # GNU's OpenMP pool does not survive fork(): a child that opens a parallel region hangs.
    global _limit
    _limit = 1
    kernels.limit_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_single_threaded_child)
