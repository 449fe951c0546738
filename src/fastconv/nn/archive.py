"""One file for a model: an .npz of arrays and a JSON text, without pickle, written atomically.

json, zipfile and the like are imported where they are used: they would take a fifth of the time that
importing fastconv takes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from fastconv import checks

# Weights are named "layer.parameter", with a dot, so no weight can have this name.
_ARCHITECTURE = "architecture"


def write(path: str | os.PathLike, architecture: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write a model's file; a file that was there before is replaced only once the new one is complete.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    import json
    from threading import get_ident

    path = Path(os.path.realpath(checks.path("path", path)))  # the file that a link leads to
    text = np.array(json.dumps(architecture))
    _remove_abandoned(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{get_ident()}.tmp")
    try:
        with _held(temporary) as file:
            np.savez(file, allow_pickle=False, **{_ARCHITECTURE: text}, **arrays)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _held(temporary: Path) -> Iterator[IO[bytes]]:
    """A new file, locked until it is closed: of a process that was killed nobody holds it any more."""
    import fcntl

    while True:
        with open(temporary, "wb") as file:
            with suppress(OSError):  # where there are no locks, no file counts as abandoned either
                fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(file, temporary):
                yield file
                return
        # Another one took it for abandoned before it was locked.


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether it is this open file that lies there."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    return False


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary files of writers of ``path`` that were killed."""
    import fcntl

    with suppress(OSError):
        names = [n for n in os.listdir(path.parent) if n.startswith(f".{path.name}.") and n.endswith(".tmp")]
        for temporary in map(path.with_name, names):
            with suppress(OSError), open(temporary, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(file, temporary):
                    temporary.unlink()


def read(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The architecture and the arrays of a file that :func:`write` wrote.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If it is not such a file, or damaged.
    """
    import io
    import json
    import tokenize
    import zipfile
    import zlib

    # Whole into memory first, so that what cannot be read and what is damaged are told apart.
    content = io.BytesIO(Path(checks.path("path", path)).read_bytes())
    # What NumPy, zipfile and json raise for a file of another kind (a single array has no ``files``),
    # one that was cut off, and one with flipped bits.
    damage = (ValueError, LookupError, TypeError, AttributeError, EOFError, RuntimeError)
    try:
        with np.load(content, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        architecture = json.loads(str(arrays.pop(_ARCHITECTURE)[()]))
    except (*damage, zipfile.BadZipFile, zlib.error, tokenize.TokenError) as error:
        raise ValueError(f"path must be a whole model that fastconv saved, got {path}: {error}") from error
    if not isinstance(architecture, dict):
        raise ValueError(f"path must be a model that fastconv saved, got {path}: no architecture in it")
    return architecture, arrays
