"""fastconv and its rivals, layer by layer, in one process: ``python -m benchmarks.side_by_side``."""

from __future__ import annotations

import argparse
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from benchmarks import rivals
from benchmarks.registry import LAYERS, Layer, select
from benchmarks.timing import NCHW_CALL, NCHW_PLAN, Absent, Contestant, Timing, interleave, quiet_thread_pools

TOLERANCE = 1e-4
# Auto's choice is good where it takes at most so many times the best own algorithm's time, on so many layers.
GOOD_CHOICE, GOOD_SHARE = 1.10, 0.95
# What holds the rivals to AVX2, set before they are loaded. ONNX Runtime and OpenVINO ask the CPU alone.
AVX2 = {"FASTCONV_ISA": "v3", "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
LEGEND = (
    "Milliseconds per call, float32, median of the rounds. Algorithms: plans on channels-last views, weights"
    " packed once, `*` the one auto picks. On contiguous NCHW arrays: nchw_plan, auto's plan; nchw_call, the"
    " function `conv2d`, which compares weights of up to 1 MiB with those it packed last and packs others in"
    " every call, as torch does all. torch_cl: channels_last;"
    " torch_packed: channels_last and the weight reordered once; openvino_cl: channels-last in and out. `–`"
    " not supported or not installed; `~` so slow that it was timed once. ratio: the best rival's time over"
    " auto's; ratio_nchw: the best NCHW rival's over nchw_plan's; ratio_call: torch's over nchw_call's."
)


class Row(NamedTuple):
    """One layer's figures, by contestant, and who "auto" is."""

    layer: Layer
    auto: str
    timings: dict[str, Timing]

    def regret(self) -> tuple[str, float]:
        """The fastest of our algorithms, and how many times its time the one "auto" picks takes."""
        own = [name for name in own_names() if name in self.timings]
        best = min(own, key=lambda name: self.timings[name].seconds)
        return best, self.timings[self.auto].seconds / self.timings[best].seconds

    def best_rival(self, names: Sequence[str]) -> str | None:
        """The fastest of the rivals that took part, None when none did."""
        present = [name for name in names if name in self.timings]
        return min(present, key=lambda name: self.timings[name].seconds, default=None)

    def ratio(self, names: Sequence[str], ours: str) -> float:
        """The best rival's time over ours; NaN without rivals."""
        best = self.best_rival(names)
        return math.nan if best is None else self.timings[best].seconds / self.timings[ours].seconds


def own_names() -> list[str]:
    """Our algorithms; imported late, because the instruction set must be chosen before."""
    from fastconv.algorithms import ALGORITHMS

    return list(ALGORITHMS)


def choice_lines(rows: Sequence[Row]) -> list[str]:
    """On how many layers "auto" picks the fastest of our algorithms or nearly so, and where it does not."""
    poor = [(row, *row.regret()) for row in rows if row.regret()[1] > GOOD_CHOICE]
    share = 1 - len(poor) / len(rows)
    verdict = "as wanted" if share >= GOOD_SHARE else f"wanted: {GOOD_SHARE:.0%}"
    lines = [
        f"auto within {GOOD_CHOICE - 1:.0%} of our fastest algorithm on {share:.0%} of the layers ({verdict})"
    ]
    return lines + [
        f"{row.layer.name}: {row.auto} takes {times:.2f} times as long as {best}" for row, best, times in poor
    ]


def rival_names() -> list[str]:
    """All rivals' contestants, installed or not."""
    return [name for _, names in rivals.RIVALS.values() for name in names]


def check_agreement(layer: Layer, contestants: Sequence[Contestant]) -> None:
    """Everybody must compute the same thing before anybody is timed.

    Raises
    ------
    RuntimeError
        Naming who differs, from whom, and by how much.
    """
    judge = contestants[0]
    expected = judge.read(judge.call())
    for contestant in contestants[1:]:
        result = contestant.read(contestant.call())
        error = np.abs(result - expected).max() / np.abs(expected).max()
        if not error <= TOLERANCE:
            raise RuntimeError(
                f"{layer.name}: {contestant.name} and {judge.name} differ by {error:.2g} of the largest value"
            )


def measure(layer: Layer, threads: int, repeats: int) -> tuple[Row, dict[str, str]]:
    """Time everybody on one layer; also says why the absent are absent."""
    from benchmarks import ours

    arrays = layer.arrays()
    own, auto = ours.contestants(layer, arrays, threads)
    everybody = [*own, *rivals.contestants(layer, arrays, threads)]
    present = [entry for entry in everybody if isinstance(entry, Contestant)]
    absent = {entry.name: entry.reason for entry in everybody if isinstance(entry, Absent)}
    check_agreement(layer, present)
    # Only what no ratio needs may be left out for being slow.
    optional = {entry.name for entry in own} - {auto, NCHW_PLAN, NCHW_CALL}
    return Row(layer, auto, interleave(present, repeats, optional)), absent


def measure_all(
    layers: Sequence[Layer], threads: int, repeats: int, passes: int
) -> tuple[list[Row], dict[str, str]]:
    """All layers, pass after pass: what disturbs the machine for seconds meets a layer in one of them."""
    found, absent = [], {}
    for number in range(passes * len(layers)):
        layer = layers[number % len(layers)]
        print(f"\r{number + 1}/{passes * len(layers)} {layer.name:40}", end="", file=sys.stderr, flush=True)
        row, missing = measure(layer, threads, repeats)
        found.append(row)
        absent |= {name: why for name, why in missing.items() if name in rival_names()}
    print(file=sys.stderr)
    return [middle(found[first :: len(layers)]) for first in range(len(layers))], absent


def middle(rows: Sequence[Row]) -> Row:
    """One row of a layer's rows of several passes: each contestant's median."""
    timings = {
        name: Timing(
            median(row.timings[name].seconds for row in rows), min(row.timings[name].rounds for row in rows)
        )
        for name in rows[0].timings
    }
    return rows[0]._replace(timings=timings)


def cells(row: Row, columns: Sequence[str]) -> list[str]:
    """One line of the table."""
    texts = [row.layer.name, str(row.layer)]
    for name in columns:
        timing = row.timings.get(name)
        mark = "*" if name == row.auto else ""
        slow = "~" if timing and timing.rounds == 0 else ""
        texts.append(f"{slow}{timing.seconds * 1e3:.3g}{mark}" if timing else "–")
    return [
        *texts,
        row.best_rival(rival_names()) or "–",
        *(f"{ratio:.2f}" for ratio in ratios(row)),
    ]


RATIOS = ("ratio", "ratio_nchw", "ratio_call")


def ratios(row: Row) -> tuple[float, ...]:
    """A row's ``RATIOS``."""
    return (
        row.ratio(rival_names(), row.auto),
        row.ratio(rivals.NCHW_RIVALS, NCHW_PLAN),
        row.ratio(rivals.CALLED_RIVALS, NCHW_CALL),
    )


def geometric_mean(values: Sequence[float]) -> float:
    """NaN for values that are NaN or none at all."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def summary_cells(rows: Sequence[Row]) -> list[list[str]]:
    """Per family and over all: how many layers, geometric mean and worst layer of each ratio."""
    families = dict.fromkeys(row.layer.family for row in rows)
    table = []
    for family in [*families, "all"]:
        members = [ratios(row) for row in rows if family in (row.layer.family, "all")]
        figures = [[f"{geometric_mean(each):.2f}", f"{min(each):.2f}"] for each in zip(*members, strict=True)]
        table.append([family, str(len(members)), *(text for pair in figures for text in pair)])
    return table


def version(distribution: str) -> str:
    """A library's version, or that it is missing."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def setting(threads: int, repeats: int, passes: int, load: float, command: str) -> list[str]:
    """What a reader needs to judge the figures."""
    import fastconv as fc

    info = fc.info()
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "torch", "onnxruntime", "openvino"))
    return [
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"{fc.environment.processor()}, {os.cpu_count()} CPUs, load average {load:.1f} at the start,"
        f" {platform.platform()}",
        f"fastconv {fc.__version__}, instruction set {info['isa']}, {info['compiler']}; {versions}",
        f"{threads} thread(s), {passes} × {repeats} rounds; {command}",
    ]


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Text columns, names to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index < 2 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]


def markdown(table: Sequence[Sequence[str]]) -> list[str]:
    """The same as a Markdown table."""
    lines = [f"| {' | '.join(line)} |" for line in table]
    rule = "|" + "|".join(" --- " if index < 2 else " ---: " for index in range(len(table[0]))) + "|"
    return [lines[0], rule, *lines[1:]]


def write_atomically(path: Path, text: str) -> None:
    """Replace a file, or leave it as it was."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.side_by_side", description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="threads for everybody (default: 1)")
    parser.add_argument("--layers", default="*", help="globs of layer names, comma-separated (default: all)")
    parser.add_argument(
        "--repeats", type=int, default=15, help="rounds, of which the median counts (default: 15)"
    )
    parser.add_argument(
        "--passes", type=int, default=1, help="times over the whole table, medians again (default: 1)"
    )
    parser.add_argument("--batch", type=int, default=1, help="images per call (default: 1)")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file too")
    parser.add_argument(
        "--isa", choices=["v3"], help="AVX2 for everybody who can be held to it, in a fresh process"
    )
    parser.add_argument("--list", action="store_true", help="print the registry and stop")
    options = parser.parse_args(arguments)
    for name in ("threads", "repeats", "passes", "batch"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    try:
        options.layers = [layer._replace(batch=options.batch) for layer in select(options.layers)]
    except ValueError as error:
        parser.error(str(error))
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write what was asked for."""
    options = parse(arguments)
    if options.list:
        print("\n".join(aligned([[layer.name, str(layer)] for layer in LAYERS])))
        return 0
    words = sys.argv[1:] if arguments is None else arguments
    if options.isa and any(os.environ.get(name) != value for name, value in AVX2.items()):
        # Libraries read these when they are loaded, and some may be here already.
        fresh = [sys.executable, "-m", "benchmarks.side_by_side", *words]
        return subprocess.run(fresh, env={**os.environ, **AVX2}).returncode
    load = os.getloadavg()[0]
    quiet_thread_pools()
    if options.isa:
        rivals.RIVALS = {"torch": rivals.RIVALS["torch"]}
    columns = [*own_names(), NCHW_PLAN, NCHW_CALL, *rival_names()]
    rows, absent = measure_all(options.layers, options.threads, options.repeats, options.passes)

    command = shlex.join(["python", "-m", "benchmarks.side_by_side", *words])
    header = ["layer", "shape", *columns, "best rival", *RATIOS]
    table = [header, *(cells(row, columns) for row in rows)]
    means = [
        ["family", "layers", *(word for ratio in RATIOS for word in (ratio, "worst"))],
        *summary_cells(rows),
    ]
    notes = [f"{name}: {reason}" for name, reason in absent.items()]
    about = [*setting(options.threads, options.repeats, options.passes, load, command), *notes]
    if options.markdown:
        lines = [*(f"- {line}" for line in about), "", LEGEND, "", *markdown(table), ""]
        choices = ["", *(f"- {line}" for line in choice_lines(rows))]
        text = "\n".join([*lines, "Geometric means", "", *markdown(means), *choices, ""])
        write_atomically(options.markdown, text)
    print(
        "\n".join(
            [
                *about,
                "",
                *aligned(table),
                "",
                LEGEND,
                "",
                "Geometric means:",
                *aligned(means),
                "",
                *choice_lines(rows),
            ]
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
