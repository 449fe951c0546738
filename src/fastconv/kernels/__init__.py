"""Compiled kernels: typed memoryviews in, caller-owned ``out``; no policy, no allocation of results.

One source per algorithm (``direct.pyx``, ``im2col.pyx``, ...), all included by one wrapper per
instruction-set level (``_baseline.pyx``, ``_v3.pyx``, ``_v4.pyx``)::

    isa.py (the table of levels)
       │ read by setup.py: which flags          read here: which CPU features
       ▼
    _baseline  _v3  _v4   ──  the same functions, compiled for wider and wider vectors
       └────────┴────┴──►  active(): the best one this CPU and OS can run, or FASTCONV_ISA's

``_system.pyx`` says what the machine has, and ``_calls.pyx`` is how plans call kernels.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from types import ModuleType

from fastconv.kernels import _calls, _system, isa

cpu_features = _system.cpu_features()
compiler = _system.compiler()
openmp_version = _system.openmp_version()
openmp_cpus = _system.openmp_cpus
in_threads = _system.in_threads
past_cache_line = _system.past_cache_line
spread_threads = _calls.spread_threads
KernelCall = _calls.KernelCall
Shortcut = _calls.Shortcut
never = _calls.never
limit_threads = _calls.limit_threads


def supported_levels() -> tuple[str, ...]:
    """Names of the levels this CPU and OS can run, slowest first."""
    return tuple(level.name for level in isa.levels() if level.features <= cpu_features)


def load(level: str) -> ModuleType:
    """The kernels of one level.

    Raises
    ------
    RuntimeError
        If the level is unknown here, or the CPU or the OS lacks an instruction set it needs.
    """
    table = {entry.name: entry for entry in isa.levels()}
    if level not in table:
        raise RuntimeError(f"unknown instruction-set level {level!r}: expected one of {', '.join(table)}")
    missing = table[level].features - cpu_features
    if missing:
        raise RuntimeError(
            f"instruction-set level {level!r} needs {', '.join(sorted(missing))}, which this CPU or its"
            f" operating system lacks; it can run: {', '.join(supported_levels())}"
        )
    return importlib.import_module(f"fastconv.kernels._{level}")


def active() -> ModuleType:
    """The kernels in use."""
    return _active


@contextlib.contextmanager
def use(level: str):
    """Run a block of code with another level's kernels; for tests and comparisons, not thread-safe."""
    global _active
    before, _active = _active, load(level)
    try:
        yield _active
    finally:
        _active = before


def _chosen() -> ModuleType:
    asked = os.environ.get("FASTCONV_ISA")
    try:
        return load(asked or supported_levels()[-1])
    except RuntimeError as error:
        if asked:
            error.add_note(f"asked for by the environment variable FASTCONV_ISA={asked}")
        raise


_active = _chosen()
