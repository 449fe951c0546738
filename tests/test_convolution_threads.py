"""The same bits for any number of threads, from any number of Python threads, without holding the GIL."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastconv as fc
import strategies
from fastconv import kernels
from support import ALGORITHMS, DTYPES, LEVELS, assert_same_bits

MEDIUM = strategies.Case((3, 33, 29, 31), (37, 33, 3, 3), padding=((1, 1), (1, 0)), seed=5)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_same_bits_for_any_threads_and_on_every_repetition(algorithm, level):
    for dtype in DTYPES:
        x, weight, bias = MEDIUM.normal(dtype)
        with kernels.use(level):
            plan = fc.plan_conv2d(x.shape, weight, bias, algorithm=algorithm, **MEDIUM.keywords)
            expected = plan(x, num_threads=1)
            for num_threads in (1, 2, 4, 2, 1, 4, 7):
                assert_same_bits(plan(x, num_threads=num_threads), expected)
            y = fc.conv2d(x, weight, bias, algorithm=algorithm, num_threads=3, **MEDIUM.keywords)
            assert_same_bits(y, expected)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@settings(max_examples=15)
@given(data=st.data())
def test_same_bits_for_more_threads_than_work(algorithm, data):
    case = data.draw(strategies.cases_for(algorithm))
    x, weight, bias = case.normal(np.float32)
    results = [
        fc.conv2d(x, weight, bias, algorithm=algorithm, num_threads=n, **case.keywords) for n in (1, 2, 4)
    ]
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


def test_one_image_has_the_same_bits_alone_and_in_a_batch():
    """Serving one request or a batch of them must not change the answer."""
    x, weight, bias = MEDIUM.normal(np.float32)
    for algorithm in ALGORITHMS:
        together = fc.conv2d(x, weight, bias, algorithm=algorithm, **MEDIUM.keywords)
        for image in range(len(x)):
            alone = fc.conv2d(x[image : image + 1], weight, bias, algorithm=algorithm, **MEDIUM.keywords)
            assert_same_bits(alone, together[image : image + 1])


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_concurrent_calls_of_one_plan(algorithm, num_threads):
    x, weight, bias = MEDIUM.normal(np.float32)
    plan = fc.plan_conv2d(
        x.shape, weight, bias, algorithm=algorithm, num_threads=num_threads, **MEDIUM.keywords
    )
    inputs = [MEDIUM.with_seed(seed).normal(np.float32)[0] for seed in range(4)]
    expected = [plan(x) for x in inputs]
    start = threading.Barrier(len(inputs))

    def work(index):
        start.wait()
        return [plan(inputs[index]) for _ in range(6)]

    with ThreadPoolExecutor(len(inputs)) as pool:
        for results, right in zip(pool.map(work, range(len(inputs))), expected, strict=True):
            for y in results:
                assert_same_bits(y, right)


def test_concurrent_calls_of_several_plans():
    x, weight, bias = MEDIUM.normal(np.float32)
    plans = [
        fc.plan_conv2d(x.shape, weight, bias, algorithm=name, num_threads=2, **MEDIUM.keywords)
        for name in ALGORITHMS
    ]
    expected = [plan(x) for plan in plans]
    start = threading.Barrier(len(plans))

    def work(index):
        start.wait()
        made_here = fc.conv2d(x, weight, bias, algorithm=ALGORITHMS[index], **MEDIUM.keywords)
        return [made_here, *(plans[index](x) for _ in range(5))]

    with ThreadPoolExecutor(len(plans)) as pool:
        for results, right in zip(pool.map(work, range(len(plans))), expected, strict=True):
            for y in results:
                assert_same_bits(y, right)


def long_call(algorithm):
    """A plan and an input whose call lasts at least 0.3 s on one thread, whatever the machine."""
    weight = np.ones((48, 48, 3, 3))
    batch = 1
    while True:
        x = np.ones((batch, 48, 64, 64))
        plan = fc.plan_conv2d(x.shape, weight, padding=1, algorithm=algorithm, num_threads=1)
        plan(x)
        begin = time.perf_counter()
        plan(x)
        if time.perf_counter() - begin > 0.3:
            return plan, x
        batch *= 2


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_other_python_threads_run_during_a_call(algorithm):
    """With the GIL held, no tick could fall into the middle of the call, however long it lasts."""
    with kernels.use("baseline"):
        plan, x = long_call(algorithm)
    span = []
    ready = threading.Event()

    def work():
        ready.set()
        span.append(time.perf_counter())
        plan(x)
        span.append(time.perf_counter())

    thread = threading.Thread(target=work)
    ticks = []
    thread.start()
    ready.wait()
    while thread.is_alive():
        ticks.append(time.perf_counter())
        time.sleep(0.001)
    thread.join()
    begin, end = span
    quarter = (end - begin) / 4
    assert sum(begin + quarter < tick < end - quarter for tick in ticks) >= 3
