"""Memory given back is used again, by one array at a time, and never while somebody still holds it."""

import tracemalloc

import numpy as np
import pytest

from fastconv import functional, memory

FLOAT = np.dtype(np.float32)
LARGE = (1 << 17,)


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(memory, "_kept", [])


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("shape", [(), (0,), (3,), (5, 7), LARGE])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_arrays_begin_on_cache_lines(shape, dtype):
    array = memory.aligned_empty(shape, np.dtype(dtype))
    assert address(array) % 64 == 0
    assert (array.shape, array.dtype) == (shape, dtype)
    assert array.flags.c_contiguous
    assert array.flags.writeable


def test_what_is_given_back_is_used_once():
    first = memory.aligned_empty(LARGE, FLOAT)
    memory.give_back(first)
    second, third = (memory.aligned_empty(LARGE, FLOAT) for _ in range(2))
    assert address(second) == address(first)
    assert not np.may_share_memory(second, third)


def test_a_block_serves_what_it_fits():
    memory.give_back(memory.aligned_empty(LARGE, FLOAT))
    others = [memory.aligned_empty((size,), FLOAT) for size in (LARGE[0] * 2, LARGE[0] * 3 // 4)]
    assert len(memory._kept) == 1
    others.append(memory.aligned_empty((LARGE[0] - 1,), FLOAT))
    assert memory._kept == []


def test_memory_is_kept_when_the_last_array_is_gone():
    array = memory.aligned_empty(LARGE, FLOAT)
    first = address(array)
    for _ in range(3):
        views = [array[5:].reshape(-1, 1).T]
        del array
        assert memory._kept == []
        views.clear()
        assert len(memory._kept) == 1
        array = memory.aligned_empty(LARGE, FLOAT)
        assert address(array) == first


def test_memory_given_back_is_kept_once():
    array = memory.aligned_empty(LARGE, FLOAT)
    memory.give_back(array)
    memory.give_back(array)
    del array
    assert len(memory._kept) == 1


@pytest.mark.parametrize(
    "foreign", [np.empty(LARGE, np.float32), np.empty(1 << 20, np.uint8).view(np.float32)]
)
def test_only_own_memory_is_taken_back(foreign):
    memory.give_back(foreign)
    memory.give_back(memory.aligned_empty((8,), FLOAT))
    assert memory._kept == []


def test_what_is_kept_is_bounded():
    for _ in range(20):
        memory.give_back(memory.aligned_empty((1 << 21,), FLOAT))
        memory._kept += [memory._Memory(1 << 23, np.uint8)]
    memory.give_back(memory.aligned_empty(LARGE, FLOAT))
    assert sum(block.nbytes for block in memory._kept) <= memory._MOST


@pytest.mark.parametrize(
    "call",
    [
        lambda x: functional.max_pool1d(x, 4),
        lambda x: functional.avg_pool_grad(x, (1, 1, 2 * x.shape[2]), 2),
        lambda x: functional.adaptive_avg_pool1d(x, 1000),
        lambda x: functional.interpolate(x, scale_factor=2, mode="linear"),
    ],
)
def test_long_axes_of_many_sizes_are_not_all_remembered(call):
    x = np.zeros((1, 1, 60000), np.float32)
    call(x)
    tracemalloc.start()
    try:
        for length in range(30000, 30100):
            call(x[:, :, :length])
        memory._kept.clear()  # which is bounded by itself
        assert tracemalloc.get_traced_memory()[0] < 2**25
    finally:
        tracemalloc.stop()
