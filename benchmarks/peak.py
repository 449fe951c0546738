"""Direct convolution's share of the multiply–add peak, measured in the same run.

    python -m benchmarks.peak [--threads N] [--layers GLOBS] [--repeats N]

The peak is what independent multiply–adds in registers reach, in a loop that the C compiler of this machine
makes for the instruction-set level in use. One thread runs it; n threads are taken to reach n times as much.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

import fastconv as fc
from benchmarks import ours
from benchmarks.registry import select
from benchmarks.timing import Contestant, interleave
from fastconv import kernels
from fastconv.kernels.isa import levels

# Multiply–adds that wait for none of the others: latency times units is 8, and 16 registers hold them.
_CHAINS = 12
_ROUNDS = 200_000
_SOURCE = f"""
typedef float vec __attribute__((vector_size(VECTOR_BYTES)));

float run(long rounds)
{{
    vec sum[{_CHAINS}], factor = (vec){{0}} + 0.5f, total = (vec){{0}};
    _Pragma("GCC unroll {_CHAINS}") for (int i = 0; i < {_CHAINS}; i++) sum[i] = (vec){{0}} + (float)i;
    for (long round = 0; round < rounds; round++)
        _Pragma("GCC unroll {_CHAINS}") for (int i = 0; i < {_CHAINS}; i++)
        {{
            sum[i] = sum[i] * factor + factor;
            __asm__("" : "+v"(sum[i])); /* one after the other, as they stand here */
        }}
    _Pragma("GCC unroll {_CHAINS}") for (int i = 0; i < {_CHAINS}; i++) total += sum[i];
    return total[0];
}}
"""


def peak_contestant(folder: Path) -> tuple[Contestant, int]:
    """The loop, and the operations of one call of it."""
    module = kernels.active()
    level = next(one for one in levels() if one.name == module.__name__.rpartition("_")[2])
    source, library = folder / "peak.c", folder / "peak.so"
    source.write_text(_SOURCE)
    command = [os.environ.get("CC", "cc"), "-O2", "-shared", "-fPIC", *level.flags]
    subprocess.run(
        [*command, f"-DVECTOR_BYTES={module.vector_bytes()}", str(source), "-o", str(library)], check=True
    )
    run = ctypes.CDLL(str(library)).run
    run.argtypes, run.restype = [ctypes.c_long], ctypes.c_float
    operations = 2 * _ROUNDS * _CHAINS * module.vector_bytes() // 4
    return Contestant("peak", partial(run, _ROUNDS), np.asarray), operations


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peak", description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1, help="threads for direct (default: 1)")
    parser.add_argument("--layers", default="3x3*,1x1*", help="globs of layer names (default: 3x3*,1x1*)")
    parser.add_argument("--repeats", type=int, default=15, help="rounds, of which the median counts")
    options = parser.parse_args()
    work, contestants = {}, []
    for layer in select(options.layers):
        arrays = layer.arrays()
        work[layer.name] = 2 * layer.multiplications
        timed = ours.planned(layer, arrays, "direct", options.threads)
        contestants.append(timed._replace(name=layer.name))
    with tempfile.TemporaryDirectory() as folder:
        loop, work["peak"] = peak_contestant(Path(folder))
        timings = interleave([loop, *contestants], options.repeats)
    rates = {name: work[name] / timing.seconds / 1e9 for name, timing in timings.items()}
    peak = rates.pop("peak")
    print(f"fastconv {fc.__version__}, {options.threads} thread(s); peak of one: {peak:.0f} GF/s")
    for name, rate in rates.items():
        print(f"{name:28} {rate:7.1f} GF/s  {rate / peak / options.threads:5.0%}")


if __name__ == "__main__":
    main()
