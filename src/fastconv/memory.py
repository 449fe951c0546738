"""Memory that begins on cache lines, and memory that is used again.

A fresh array of some megabytes costs as much as what is done with it: the system clears each page when it is
touched first. So the memory of arrays made here, results among them, is kept for the next when nobody uses it
any more; calls that make a plan of their own, as ``conv2d`` does, give its memory back at once.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial

import numpy as np

from fastconv.kernels import past_cache_line

_LINE = 64
_BYTES = np.dtype(np.uint8)
# Bytes of results that are computed in less time than it takes to align them.
_SHORT = 1 << 14
# The C library keeps smaller blocks itself; of larger ones at most so many bytes are kept here.
_SMALLEST, _MOST = 1 << 18, 1 << 26


class _Memory(np.ndarray):
    """Bytes of a type of their own: else NumPy would make them, not the block, the base of arrays."""


class _Block(np.ndarray):
    """A view of some memory, the base of arrays that use it: when the last of them is gone, it is kept."""

    returned = False

    def __del__(self, _ends: Callable[[], bool] = sys.is_finalizing) -> None:
        if not _ends():
            _keep(self)


# Oldest first. ``list.pop`` and ``list.append`` are atomic, so no memory is ever taken twice.
_kept: list[_Memory] = []


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array that begins on a cache line.

    NumPy's begin 16 bytes into one, so that every store of a whole vector would be split between two lines:
    for outputs of 3 MB that cost 5–20 % of a layer.
    """
    size = math.prod(shape) * dtype.itemsize + _LINE
    if size < _SMALLEST:
        memory = block = np.empty(size, _BYTES)
    else:
        memory = _kept_memory(size) if _kept else None
        if memory is None:
            memory = _Memory(size, _BYTES)
        block = memory.view(_Block)
    return np.ndarray(shape, dtype, block, _LINE - past_cache_line(memory))


def fresh(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array for a result: from a cache line on, where it is large enough for that to pay."""
    short = math.prod(shape) * dtype.itemsize < _SHORT
    return np.empty(shape, dtype) if short else aligned_empty(shape, dtype)


def fresh_like(x: np.ndarray) -> np.ndarray:
    """An uninitialised array like a C-contiguous one, for kernels whose stores keep to cache lines."""
    return np.empty_like(x) if x.nbytes < _SMALLEST else aligned_empty(x.shape, x.dtype)


def allocator(shape: tuple[int, ...], dtype: np.dtype) -> Callable[[], np.ndarray]:
    """What makes such arrays, each at once."""
    short = math.prod(shape) * dtype.itemsize < _SHORT
    return partial(np.empty if short else aligned_empty, shape, dtype)


def give_back(array: np.ndarray) -> None:
    """Keep the memory of an array that :func:`aligned_empty` made and nobody uses any more."""
    if isinstance(array.base, _Block):
        _keep(array.base)


def _keep(block: _Block) -> None:
    memory = block.base
    if block.returned or not isinstance(memory, _Memory):  # a part of one
        return
    block.returned = True
    _kept.append(memory)
    while sum(kept.nbytes for kept in _kept.copy()) > _MOST:
        del _kept[:1]  # not pop, which fails where other threads took the rest meanwhile


def _kept_memory(size: int) -> _Memory | None:
    """Some of what is kept that is large enough and not much larger."""
    for _ in range(len(_kept)):
        try:
            memory = _kept.pop(0)
        except IndexError:  # other threads took the rest
            break
        if size <= memory.nbytes <= size + size // 4:
            return memory
        _kept.append(memory)
    return None


class Workspaces:
    """Scratch memory of a plan's calls: each takes some of its own and gives it back for the next to take.

    ``list.pop`` and ``list.append`` are atomic: calls from several threads never share a workspace.
    """

    def __init__(self, dtype: np.dtype = _BYTES) -> None:
        self._dtype = dtype
        self._free: dict[int, list[np.ndarray]] = {}

    def free(self, size: int) -> list[np.ndarray]:
        """Those of a size that nobody has taken."""
        return self._free.setdefault(size, [])

    def take(self, size: int) -> np.ndarray:
        """So many elements, from a cache line on."""
        try:
            return self._free[size].pop()
        except (KeyError, IndexError):
            return aligned_empty((size,), self._dtype)

    @property
    def nbytes(self) -> int:
        """Bytes that nobody has taken."""
        return sum(workspace.nbytes for free in self._free.copy().values() for workspace in free.copy())

    def give(self, workspace: np.ndarray) -> None:
        """Keep what :meth:`take` returned for a later call."""
        self.free(workspace.size).append(workspace)

    def give_back(self) -> None:
        """Nobody will call this plan again: leave its scratch memory to others."""
        for free in self._free.values():
            while free:
                give_back(free.pop())
