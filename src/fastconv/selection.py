"""From the caller's word to an algorithm: by name, by rule ("auto"), or by measurement ("fastest")."""

from __future__ import annotations

from functools import lru_cache
from numbers import Real
from types import ModuleType
from typing import NamedTuple

from fastconv import checks, measurement
from fastconv.algorithms import ALGORITHMS, allowed, choose
from fastconv.geometry import ConvGeometry

NAMES = ("auto", *ALGORITHMS, "fastest")


class Limits(NamedTuple):
    """What an algorithm must keep to, and how many calls share the cost of packing.

    ``rtol`` bounds ``error_bound``, ``weight_budget`` the bytes of transformed weights; None is no bound.
    ``calls`` None is many.
    """

    rtol: float | None = None
    weight_budget: int | None = None
    calls: int | None = None

    @classmethod
    def create(cls, rtol, weight_budget, calls) -> Limits:
        """The limits, checked but for an ``rtol`` that no algorithm can keep to."""
        if rtol is not None and (isinstance(rtol, bool) or not isinstance(rtol, Real)):
            raise TypeError(f"rtol must be a number or None, got {rtol!r}")
        if weight_budget is not None:
            weight_budget = checks.integer("weight_budget", weight_budget, 0)
        if calls is not None:
            calls = checks.integer("calls", calls, 1)
        return cls(rtol, weight_budget, calls)


def select(
    geometry: ConvGeometry, algorithm: str, limits: Limits, num_threads: int, level: ModuleType
) -> tuple[str, str]:
    """The name of the algorithm to use, and why.

    Parameters
    ----------
    geometry : ConvGeometry
    algorithm : str
        One of ``NAMES``.
    limits : Limits
    num_threads
        What "fastest" measures with; nothing else looks at it.
    level : module
        The kernels.

    Raises
    ------
    ValueError
        If the named algorithm, or every one, cannot compute this problem within the limits.
    """
    if algorithm == "auto" or (algorithm == "fastest" and geometry.batch == 0):
        return _chosen(geometry, limits, level.vector_bytes())
    if algorithm == "fastest":
        names = allowed(geometry, ALGORITHMS, limits.rtol, limits.weight_budget, level.vector_bytes())
        return measurement.fastest(geometry, names, num_threads, level), "measured the fastest here"
    reason = ALGORITHMS[algorithm].unsupported(geometry)
    if reason is not None:
        raise ValueError(f"algorithm {algorithm!r} cannot compute this convolution: {reason}")
    error = ALGORITHMS[algorithm].error_bound(geometry)
    if limits.rtol is not None and error > limits.rtol:
        raise ValueError(
            f"rtol must be at least {error:.1e} for algorithm {algorithm!r} here, got {limits.rtol!r}"
        )
    transformed = ALGORITHMS[algorithm].transformed_bytes(geometry, level.vector_bytes())
    if limits.weight_budget is not None and transformed > limits.weight_budget:
        raise ValueError(
            f"weight_budget must be at least {transformed} for algorithm {algorithm!r} here,"
            f" got {limits.weight_budget}"
        )
    return algorithm, "as asked"


@lru_cache(maxsize=4096)
def _chosen(geometry: ConvGeometry, limits: Limits, vector_bytes: int) -> tuple[str, str]:
    return choose(geometry, ALGORITHMS, **limits._asdict(), vector_bytes=vector_bytes)
