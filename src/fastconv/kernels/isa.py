"""The one table of instruction-set levels.

``setup.py`` reads it to know which extension to build with which flags; the loader in
``fastconv.kernels`` reads it to know which of them this CPU may run. A level's ``features`` are
exactly the instruction sets its ``flags`` allow the compiler to use.

This module imports nothing of fastconv, because ``setup.py`` loads it before anything is built.
"""

from __future__ import annotations

import platform
from typing import NamedTuple


class IsaLevel(NamedTuple):
    """One instruction-set level: what it is called, how it is compiled, what the CPU must have."""

    name: str
    flags: tuple[str, ...]
    features: frozenset[str]


_X86_BASELINE = ("sse3", "ssse3", "sse4.1", "sse4.2", "popcnt")
_X86_V3 = ("avx", "avx2", "fma")
_X86_V4 = ("avx512f", "avx512bw", "avx512dq", "avx512vl")


def _x86_level(name: str, features: tuple[str, ...], *extra_flags: str) -> IsaLevel:
    return IsaLevel(name, (*(f"-m{feature}" for feature in features), *extra_flags), frozenset(features))


_X86_LEVELS = (
    _x86_level("baseline", _X86_BASELINE),
    _x86_level("v3", _X86_BASELINE + _X86_V3),
    # GCC prefers 256-bit vectors for AVX-512 by default, which would halve our loops' width.
    _x86_level("v4", _X86_BASELINE + _X86_V3 + _X86_V4, "-mprefer-vector-width=512"),
)
_OTHER_LEVELS = (IsaLevel("baseline", (), frozenset()),)


def levels(machine: str | None = None) -> tuple[IsaLevel, ...]:
    """The levels built for a machine type, slowest first.

    Parameters
    ----------
    machine : str, optional
        As ``platform.machine()`` names it; default: the machine this runs on.
    """
    machine = platform.machine() if machine is None else machine
    return _X86_LEVELS if machine.lower() in ("x86_64", "amd64") else _OTHER_LEVELS
