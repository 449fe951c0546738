"""``pytest benchmarks`` times every algorithm on one layer of each family.

FASTCONV_BENCH_LAYERS chooses other layers by comma-separated globs; ``*`` is all of them.
"""

from __future__ import annotations

import os

import pytest

from benchmarks import ours
from benchmarks.registry import LAYERS, select
from benchmarks.timing import Absent
from fastconv.algorithms import ALGORITHMS

pytest.importorskip("pytest_benchmark", reason='needs pytest-benchmark: pip install "fastconv[bench]"')


def chosen_layers():
    """What FASTCONV_BENCH_LAYERS names, by default the cheapest layer of each family."""
    pattern = os.environ.get("FASTCONV_BENCH_LAYERS")
    if pattern:
        return select(pattern)
    families = dict.fromkeys(layer.family for layer in LAYERS)
    return [min(select(f"{family}/*"), key=lambda layer: layer.multiplications) for family in families]


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "auto"])
@pytest.mark.parametrize("layer", chosen_layers(), ids=lambda layer: layer.name)
def test_plan(benchmark, layer, algorithm):
    contestant = ours.planned(layer, layer.arrays(), algorithm, threads=1)
    if isinstance(contestant, Absent):
        pytest.skip(contestant.reason)
    benchmark.group = layer.name
    benchmark.pedantic(contestant.call, rounds=5, iterations=1, warmup_rounds=1)
