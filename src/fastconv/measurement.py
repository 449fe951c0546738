"""algorithm="fastest": all algorithms timed once on a problem, the times kept, in a file on request."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType

import numpy as np

from fastconv import checks, environment
from fastconv.algorithms import ALGORITHMS
from fastconv.algorithms.base import Epilogue
from fastconv.geometry import ConvGeometry
from fastconv.memory import aligned_empty

_ROUNDS = 5

# Seconds of each supported algorithm, by problem and machine.
_seconds: dict[str, dict[str, float]] = {}
_path: str | None = None


def remember_measurements(path: str | os.PathLike | None) -> None:
    """Keep what ``algorithm="fastest"`` measures in a file, and use what is there already.

    Times are stored by problem, number of threads, instruction-set level, CPU model and version of
    fastconv, so that one file serves several machines. Each new measurement replaces the file as a whole,
    together with what other processes have added; nobody ever sees half a file.

    Parameters
    ----------
    path : path or None
        A JSON file, made with the first measurement where there is none; its folder must exist.
        None: measurements are kept in memory only from now on, as they are by default.

    Raises
    ------
    TypeError
        If ``path`` is not a path.
    FileNotFoundError
        If its folder does not exist.

    Warns
    -----
    RuntimeWarning
        If the file holds something else; the next measurement replaces it.
    """
    global _path
    if path is None:
        _path = None
        return
    name = os.path.abspath(os.fsdecode(checks.path("path", path)))
    if not os.path.isdir(os.path.dirname(name)):
        raise FileNotFoundError(f"path must be in a folder that exists, got {name!r}")
    _seconds.update(_read(name))
    _path = name


def fastest(geometry: ConvGeometry, names: Iterable[str], num_threads: int, level: ModuleType) -> str:
    """Which of these algorithms, all of which support the problem, takes the least time here."""
    isa = level.__name__.rpartition("_")[2]
    threads = f"{num_threads} thread(s)"
    key = " | ".join((str(geometry), threads, isa, environment.processor(), environment.__version__))
    if not set(names) <= set(_seconds.get(key, ())):
        _seconds[key] = _measure(geometry, num_threads, level)
        if _path is not None:
            _store(_path, key)
    return min(names, key=_seconds[key].__getitem__)


def interleaved_seconds(calls: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """The median time of each call, all of them in turn ``repeats`` times after a warm-up."""
    samples: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(repeats):
        for call, taken in zip(calls, samples, strict=True):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    return [sorted(taken)[len(taken) // 2] for taken in samples]


def _measure(geometry: ConvGeometry, num_threads: int, level: ModuleType) -> dict[str, float]:
    """Seconds of every supported algorithm on random data, channels-last, its weights packed."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((geometry.batch, *geometry.input_size, geometry.in_channels))
    x = x.astype(geometry.dtype)
    weight = rng.standard_normal(geometry.weight_shape).astype(geometry.dtype)
    out = np.empty((geometry.batch, *geometry.output_size, geometry.out_channels), geometry.dtype)

    def prepared(algorithm) -> Callable[[], None]:
        packed = algorithm.pack(weight, None, geometry, level, num_threads)
        size = algorithm.workspace_bytes(geometry, num_threads, level)
        workspace = aligned_empty((size,), np.dtype(np.uint8)).view(geometry.dtype)
        call = algorithm.bind(packed, x, out, Epilogue(), num_threads)
        return lambda: call(x, out, workspace)

    supported = [name for name, algorithm in ALGORITHMS.items() if algorithm.unsupported(geometry) is None]
    calls = [prepared(ALGORITHMS[name]) for name in supported]
    return dict(zip(supported, interleaved_seconds(calls, _ROUNDS), strict=True))


def _read(path: str) -> dict[str, dict[str, float]]:
    """What a file holds; nothing, and a warning, where it is not such a file."""
    import json  # only who asks for the file needs it

    try:
        with open(path, encoding="utf-8") as file:
            entries = json.load(file)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        return _not_ours(path, str(error))
    known = isinstance(entries, dict) and all(map(_is_entry, entries.values()))
    return entries if known else _not_ours(path, "its entries are not times of algorithms")


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and entry.keys() <= ALGORITHMS.keys()
        and all(isinstance(seconds, float) and seconds > 0 for seconds in entry.values())
    )


def _not_ours(path: str, reason: str) -> dict[str, dict[str, float]]:
    import warnings

    warnings.warn(
        f"{path!r} does not hold fastconv's measurements and will be replaced: {reason}",
        RuntimeWarning,
        stacklevel=4,
    )
    return {}


def _store(path: str, key: str) -> None:
    """Add one measurement to the file, whatever others add to it meanwhile."""
    import fcntl
    import json

    temporary = f"{path}.tmp"
    # The lock is a file of its own, because the other one is replaced; a killed process releases it.
    with open(f"{path}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        entries = {**_read(path), key: _seconds[key]}
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                json.dump(entries, file, indent=1, sort_keys=True, ensure_ascii=False)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)
