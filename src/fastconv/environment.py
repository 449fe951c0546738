"""What this machine has and what this build uses."""

from __future__ import annotations

import platform
from functools import cache

import numpy as np

from fastconv import kernels, threads

__version__ = "0.1.0"


@cache
def processor() -> str:
    """The CPU's name as the system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def info() -> dict[str, object]:
    """Describe the build and the machine.

    Returns
    -------
    dict
        ``version``; ``isa``: the instruction-set level in use; ``isa_supported``: those this CPU can run;
        ``cpu_features``; ``compiler``; ``openmp``: its version date, or None in a single-threaded build;
        ``threads``: the default number; ``cpus``: those this process may use; ``numpy``; ``python``;
        ``platform``.
    """
    return {
        "version": __version__,
        "isa": kernels.active().__name__.rpartition("_")[2],
        "isa_supported": list(kernels.supported_levels()),
        "cpu_features": sorted(kernels.cpu_features),
        "compiler": kernels.compiler,
        "openmp": kernels.openmp_version or None,
        "threads": threads.get_num_threads(),
        "cpus": threads.available_cpus(),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
