"""Pooling, batch normalisation, resampling and sub-pixel convolution beside PyTorch, turn by turn.

    python -m benchmarks.families [--threads 1 2] [--repeats 31]

PyTorch runs in both of its layouts and the better one counts; fastconv runs on channels-last views, which
is what flows between layers, and on NCHW arrays.
"""

from __future__ import annotations

import argparse

from benchmarks.timing import Contestant, interleave, quiet_thread_pools

quiet_thread_pools()

import numpy as np  # noqa: E402
