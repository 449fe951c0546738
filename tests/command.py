"""Runs the command line in a process of its own, on the same fastconv as the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import fastconv

COMMAND = [sys.executable, "-m", "fastconv.cli"]


def environment(**changes):
    """This process's environment, made to find the fastconv that it found, with UTF-8 output."""
    found = str(Path(fastconv.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": found, "PYTHONIOENCODING": "utf-8", **changes}


def run(*arguments, cwd=None, **changes):
    """The finished process; keywords other than cwd change its environment."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        cwd=cwd,
        env=environment(**changes),
    )
