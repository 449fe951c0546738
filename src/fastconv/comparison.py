"""compare(): the algorithms side by side on one problem, measured on this machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial

import numpy as np

from fastconv import checks
from fastconv.algorithms import ALGORITHMS
from fastconv.functional import conv2d, plan_conv2d
from fastconv.measurement import interleaved_seconds

# Rounds are added until the measurement has taken about this long, between these numbers of rounds.
_SECONDS = 0.5
_MIN_ROUNDS, _MAX_ROUNDS = 3, 51

_HEADINGS = ("algorithm", "time", "relative", "workspace", "error", "strided", "int8-ready", "")


@dataclass(frozen=True)
class ComparisonRow:
    """One algorithm's line; the measured fields are None where it does not support the problem.

    Attributes
    ----------
    algorithm : str
    supported : bool
    reason : str
        Why not, where it is not.
    seconds : float or None
        Median time of a call with packed weights.
    workspace_bytes, packed_bytes : int or None
    error : float or None
        max|error| / max|result| against float64.
    strided : str
        "yes", "no" or "subsampled".
    int8_ready : bool
    fastest : bool
    """

    algorithm: str
    supported: bool
    reason: str
    seconds: float | None
    workspace_bytes: int | None
    packed_bytes: int | None
    error: float | None
    strided: str
    int8_ready: bool
    fastest: bool


class Comparison:
    """The table that :func:`compare` makes; prints in a terminal and shows in a notebook.

    Attributes
    ----------
    rows : list of ComparisonRow
    title : str
        The problem, the dtype and the number of threads.
    """

    def __init__(self, title: str, rows: list[ComparisonRow]):
        self.title, self.rows = title, rows

    @property
    def fastest(self) -> str:
        """The fastest algorithm's name."""
        return next(row.algorithm for row in self.rows if row.fastest)

    def to_dict(self) -> dict[str, object]:
        """The table for JSON."""
        return {"title": self.title, "fastest": self.fastest, "rows": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        cells = [_HEADINGS, *self._cells()]
        widths = [max(len(row[column]) for row in cells if len(row) > column) for column in range(7)]
        lines = [self.title, ""]
        for row in cells:
            aligned = [row[0].ljust(widths[0])]
            aligned += [cell.rjust(width) for cell, width in zip(row[1:7], widths[1:], strict=True)]
            lines.append("  ".join((*aligned, row[7])).rstrip())
        lines[2:3] = [lines[2], "  ".join("─" * width for width in widths)]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        import html  # for notebooks only

        def line(cells, tag):
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        body = "".join(line(cells, "td") for cells in self._cells())
        caption = html.escape(self.title)
        return f"<table><caption>{caption}</caption>{line(_HEADINGS, 'th')}{body}</table>"

    def _cells(self) -> list[tuple[str, ...]]:
        best = min(row.seconds for row in self.rows if row.supported)
        cells = []
        for row in self.rows:
            measured = ("–",) * 4
            if row.supported:
                measured = (
                    _seconds(row.seconds),
                    f"{row.seconds / best:.2f}×",
                    _bytes(row.workspace_bytes),
                    f"{row.error:.1e}",
                )
            note = "◀ fastest" if row.fastest else row.reason
            cells.append((row.algorithm, *measured, row.strided, "yes" if row.int8_ready else "no", note))
        return cells


def compare(
    x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, padding_mode="zeros", activation=None,
    layout="NCHW", num_threads=None,
) -> Comparison:  # fmt: skip
    """Run every algorithm on this convolution and compare them.

    Parameters
    ----------
    x, weight, bias, stride, padding, dilation, groups, padding_mode, activation, layout, num_threads
        As for :func:`fastconv.conv2d`.

    Returns
    -------
    Comparison
        One row an algorithm: time (median of interleaved calls with packed weights), workspace, error
        against float64, whether strides and int8 suit it; the fastest is marked.

    Raises
    ------
    TypeError, ValueError
        As :func:`fastconv.conv2d`, and if the batch is empty.
    """
    x = checks.float_array("x", x, 4, "(N, C, H, W)")
    weight = checks.float_array("weight", weight, 4, "(C_out, C_in/groups, k_h, k_w)")
    if x.shape[0] == 0:
        raise ValueError("x must hold at least one image to be measured, got a batch of 0")
    options = {
        "stride": stride, "padding": padding, "dilation": dilation, "groups": groups,
        "padding_mode": padding_mode, "activation": activation, "layout": layout, "num_threads": num_threads,
    }  # fmt: skip
    dtype = checks.float_dtype("x", x.dtype)
    first = plan_conv2d(x.shape, weight, bias, algorithm="direct", dtype=dtype, **options)
    geometry = first.geometry
    x = x.astype(geometry.dtype, order="K", copy=False)
    wide = [None if array is None else np.asarray(array, np.float64) for array in (x, weight, bias)]
    reference = conv2d(*wide, algorithm="direct", **options)
    missing = {name: algorithm.unsupported(geometry) for name, algorithm in ALGORITHMS.items()}
    plans = {
        name: first
        if name == "direct"
        else plan_conv2d(x.shape, weight, bias, algorithm=name, dtype=dtype, **options)
        for name, reason in missing.items()
        if reason is None
    }
    out = np.empty(first.output_shape, geometry.dtype)
    calls = [partial(plan, x, out) for plan in plans.values()]
    once = sum(interleaved_seconds(calls, 1))
    seconds = interleaved_seconds(calls, int(min(_MAX_ROUNDS, max(_MIN_ROUNDS, _SECONDS / once))))
    times = dict(zip(plans, seconds, strict=True))
    rows = [_row(name, reason, plans.get(name), times, x, reference) for name, reason in missing.items()]
    return Comparison(f"{geometry}, {first.num_threads} thread(s)", rows)


def _row(name, reason, plan, times, x, reference) -> ComparisonRow:
    algorithm = ALGORITHMS[name]
    error = None
    if plan is not None:
        error = float(
            np.max(np.abs(plan(x) - reference)) / max(np.max(np.abs(reference)), np.finfo(float).tiny)
        )
    return ComparisonRow(
        algorithm=name,
        supported=plan is not None,
        reason=reason or "",
        seconds=times.get(name),
        workspace_bytes=None if plan is None else plan.workspace_bytes,
        packed_bytes=None if plan is None else plan.packed_bytes,
        error=error,
        strided=algorithm.strided,
        int8_ready=algorithm.quantizable,
        fastest=name == min(times, key=times.get),
    )


def _seconds(value: float) -> str:
    return (
        f"{value * 1e6:.1f} µs"
        if value < 1e-3
        else f"{value * 1e3:.2f} ms"
        if value < 1
        else f"{value:.2f} s"
    )


def _bytes(value: int) -> str:
    return f"{value / 1024:.0f} KiB" if value < 1024**2 else f"{value / 1024**2:.1f} MiB"
