"""FFT: every tiling, chunk, block and number of threads gives the answer, large kernels on large maps too."""

import threading
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastconv as fc
import strategies
from fastconv import kernels, threads
from fastconv.algorithms import fft
from fastconv.functional import plan_cache
from strategies import MEMORY_LAYOUTS
from support import (
    DTYPES,
    LEVELS,
    assert_same_bits,
    assert_within_bound,
    error_bound,
    expected_conv2d,
    geometry,
    python,
)

# Several tiles a row and a column, the last ones ragged; two images; three groups of odd sizes.
TILED = strategies.Case((2, 9, 61, 75), (15, 3, 7, 9), padding=((3, 2), (5, 4)), groups=3, seed=4)
STRIDED = strategies.Case((2, 3, 70, 66), (5, 3, 9, 5), (2, 3), ((4, 4), (2, 2)), (1, 2), seed=5)


def force(monkeypatch, case, dtype, **changes):
    """Give the case's problem another tiling."""
    problem = geometry(case, dtype)
    tiling = fft._tiling(problem)._replace(**changes)
    monkeypatch.setattr(fft, "_tiling", {problem: tiling}.__getitem__)
    plan_cache._cache.clear()  # those of another tiling
    return tiling


def run(case, arrays, **keywords):
    return fc.conv2d(*arrays, algorithm="fft", **case.keywords, **{"num_threads": 1, **keywords})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [TILED, STRIDED], ids=["tiled", "strided"])
def test_every_tiling_is_right(case, dtype, monkeypatch):
    problem = geometry(case, dtype)
    arrays = case.normal(dtype)
    expected = expected_conv2d(case, *arrays)
    bound = error_bound("fft", case, dtype)
    choices = [list(fft._axis_tilings(problem, axis)) for axis in range(2)]
    assert min(map(len, choices)) >= 3
    for axes in product(*(axis[:: max(1, len(axis) // 3)] for axis in choices)):
        size, outputs, tiles = zip(*axes, strict=True)
        with monkeypatch.context() as patch:
            force(patch, case, dtype, size=size, outputs=outputs, tiles=tiles, chunk=2)
            assert_within_bound(run(case, arrays), expected, bound, case.reduction)


@pytest.mark.parametrize("level", LEVELS)
def test_chunks_blocks_and_threads_never_change_a_bit(level, monkeypatch):
    choices = list(
        zip(*(list(fft._axis_tilings(geometry(TILED, np.float32), a))[2] for a in range(2)), strict=True)
    )
    tiling = dict(zip(("size", "outputs", "tiles"), choices, strict=True))
    arrays = TILED.normal(np.float32)
    expected = None
    with kernels.use(level):
        for chunk, block, num_threads in product((1, 3, 1000), (1, 40_000, 1 << 24), (1, 2, 3, 5)):
            with monkeypatch.context() as patch:
                used = force(patch, TILED, np.float32, **tiling, chunk=chunk)
                assert used.count >= 6
                patch.setattr(fft, "_BLOCK_BYTES", block)
                y = run(TILED, arrays, num_threads=num_threads)
            expected = y if expected is None else expected
            assert_same_bits(y, expected)


@settings(max_examples=40)
@given(data=st.data())
def test_large_kernels(data):
    size = st.integers(8, 33)
    case = data.draw(
        strategies.cases(kernel_size=data.draw(st.tuples(size, size) | st.tuples(st.just(1), size)))
    )
    arrays = case.normal(np.float32)
    expected = expected_conv2d(case, *arrays)
    y = run(case, arrays)
    assert_within_bound(y, expected, error_bound("fft", case, np.float32), case.reduction)
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    padded = np.pad(arrays[0], ((0, 0), (0, 0), *case.padding))
    theirs = torch.conv2d(
        *map(torch.from_numpy, (padded, *arrays[1:])), case.stride, 0, case.dilation, case.groups
    ).numpy()
    bound = error_bound("fft", case, np.float32) + error_bound("direct", case, np.float32)
    # One long sum, as PyTorch may take, errs with the root of its length.
    bound += np.finfo(np.float32).eps * case.reduction**0.5
    assert_within_bound(y, theirs, bound, case.reduction)


@pytest.mark.parametrize("memory", ["contiguous", "channels_last", "reversed"])
def test_a_large_map(memory):
    case = strategies.Case((1, 2, 300, 517), (3, 2, 31, 31), padding=((15, 15), (15, 15)), seed=8)
    x, weight, bias = case.normal(np.float32)
    tiling = fft._tiling(geometry(case, np.float32))
    assert tiling.count > 1
    y = run(case, (MEMORY_LAYOUTS[memory](x), weight, bias))
    expected = fc.conv2d(
        *(array.astype(np.float64) for array in (x, weight, bias)), algorithm="direct", **case.keywords
    )
    assert_within_bound(y, expected, error_bound("fft", case, np.float32), case.reduction)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("memory", ["contiguous", "channels_last", "fortran", "width_first"])
@pytest.mark.parametrize("case", [TILED, STRIDED], ids=["tiled", "strided"])
def test_accumulates_in_place(case, memory, activation):
    """In the last pass over the outputs, without another array of their size."""
    arrays = case.normal(np.float64)
    x, weight, bias = arrays
    plan = fc.plan_conv2d(
        x.shape, weight, bias, algorithm="fft", activation=activation, num_threads=1, **case.keywords
    )
    expected = expected_conv2d(case, *arrays)
    residual = np.random.default_rng(1).standard_normal(expected.shape)
    expected = expected + residual
    if activation:
        expected = np.maximum(expected, 0)
    out = MEMORY_LAYOUTS[memory](residual)
    assert plan(x, out=out, accumulate=True) is out
    assert_within_bound(out, expected, error_bound("fft", case, np.float64), case.reduction)
    twice = MEMORY_LAYOUTS[memory](residual)
    plan(MEMORY_LAYOUTS["channels_last"](x), out=twice, accumulate=True, num_threads=2)
    assert_same_bits(twice, out)


def test_relu_keeps_nan_and_drops_negatives():
    x = np.zeros((1, 2, 40, 40), np.float32)
    x[0, 0, 3, 3] = np.nan
    for memory in ("contiguous", "channels_last"):
        y = fc.conv2d(
            MEMORY_LAYOUTS[memory](x), np.ones((3, 2, 5, 5), np.float32), np.full(3, -1, np.float32),
            algorithm="fft", activation="relu",
        )  # fmt: skip
        assert np.isnan(y[:, :, 1:4, 1:4]).all()
        assert not (y < 0).any()


def test_threads_wait_for_each_other():
    log = []

    def work(number, _team, wait):
        for step in range(3):
            log.append((step, number))
            wait()

    threads.together(work, 3)
    assert [step for step, _ in log] == sorted(step for step, _ in log)
    team = 3 if kernels.openmp_version else 1
    assert sorted(log) == [(step, number) for step in range(3) for number in range(team)]
    log.clear()
    threads.together(work, 1)
    assert log == [(0, 0), (1, 0), (2, 0)]


def test_fewer_threads_than_asked_for():
    """OpenMP may refuse them; nobody must wait for a thread that never came."""
    code = """
import numpy as np, fastconv as fc
x, weight = np.ones((1, 4, 40, 40), np.float32), np.ones((4, 4, 5, 5), np.float32)
y = fc.conv2d(x, weight, algorithm="fft", num_threads=4)
print(np.array_equal(y, fc.conv2d(x, weight, algorithm="fft", num_threads=1)))
"""
    assert python(code, OMP_THREAD_LIMIT="2").stdout.split() == ["True"]
    assert python(code, OMP_THREAD_LIMIT="1").stdout.split() == ["True"]


@pytest.mark.skipif(not kernels.openmp_version, reason="a build without OpenMP has one thread")
@pytest.mark.parametrize("failing", [0, 1])
def test_an_exception_in_one_thread_frees_the_others(failing):
    def work(number, _team, wait):
        wait()
        if number == failing:
            raise KeyError("from a thread")
        wait()

    with pytest.raises((KeyError, threading.BrokenBarrierError)):
        threads.together(work, 2)
    threads.together(lambda number, team, wait: wait(), 2)


def test_parts_are_nearly_equal_and_complete():
    parts = [threads.part(range(7), number, 3) for number in range(3)]
    assert [list(part) for part in parts] == [[0, 1], [2, 3], [4, 5, 6]]
    assert not threads.part((), 0, 2)
