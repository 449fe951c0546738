"""algorithm="fastest" and what it remembers: in memory, and in a file that survives crashes and crowds."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import fastconv as fc
from fastconv import kernels, measurement
from fastconv.geometry import ConvGeometry
from support import ALGORITHMS, LEVELS, python

SHAPE, WEIGHT = (1, 4, 12, 12), np.ones((4, 4, 3, 3), np.float32)


def plan(shape=SHAPE, **keywords):
    return fc.plan_conv2d(shape, WEIGHT, algorithm="fastest", **keywords)


@pytest.fixture
def counted(monkeypatch):
    """Nothing remembered, no file, and the problems measured from now on."""
    monkeypatch.setattr(measurement, "_seconds", {})
    monkeypatch.setattr(measurement, "_path", None)
    measured = []

    def measure(geometry, num_threads, level):
        measured.append((geometry, num_threads, level))
        return original(geometry, num_threads, level)

    original = measurement._measure
    monkeypatch.setattr(measurement, "_measure", measure)
    return measured


@pytest.fixture
def path(tmp_path, counted):
    return tmp_path / "times.json"


def forget():
    """As in a new process."""
    measurement._seconds.clear()
    fc.remember_measurements(None)


def test_each_problem_is_measured_once(counted):
    names = {plan().algorithm for _ in range(3)}
    assert len(names) == 1
    assert len(counted) == 1
    plan((2, *SHAPE[1:]))
    plan(padding=1)
    plan(num_threads=1)
    plan(num_threads=2)
    distinct = len({(geometry, num_threads) for geometry, num_threads, _ in counted})
    assert len(counted) == distinct >= 4


@pytest.mark.skipif(len(LEVELS) < 2, reason="this CPU runs one instruction-set level only")
def test_each_level_is_measured(counted):
    for level in LEVELS:
        with kernels.use(level):
            plan()
    assert len(counted) == len(LEVELS)


def test_the_fastest_within_the_bounds(counted):
    geometry = ConvGeometry.create(SHAPE, WEIGHT.shape)
    plan(num_threads=1)
    (times,) = measurement._seconds.values()
    times.update(dict(zip(ALGORITHMS, (3.0, 4.0, 5.0, 1.0, 2.0), strict=True)))
    assert plan(num_threads=1).algorithm == "winograd"
    described = fc.algorithms.ALGORITHMS
    budget = described["winograd"].transformed_bytes(geometry)
    assert budget < described["fft"].transformed_bytes(geometry)
    assert plan(num_threads=1, weight_budget=budget).algorithm == "winograd"
    assert plan(num_threads=1, weight_budget=budget - 1).algorithm == "direct"
    errors = {name: described[name].error_bound(geometry) for name in ALGORITHMS}
    rtol = sorted(errors.values())[2]
    within = [name for name in ALGORITHMS if errors[name] <= rtol]
    assert len(within) < len(ALGORITHMS)
    assert plan(num_threads=1, rtol=rtol).algorithm == min(within, key=times.get)
    assert len(counted) == 1


def test_an_empty_batch_is_not_measured(counted):
    plan((0, *SHAPE[1:]))
    assert not counted


def test_the_file_is_used_by_the_next_process(path, counted):
    fc.remember_measurements(path)
    first = plan().algorithm
    assert sorted(os.listdir(path.parent)) == ["times.json", "times.json.lock"]
    entries = json.loads(path.read_text())
    assert len(entries) == 1
    ((key, times),) = entries.items()
    assert set(times) == set(ALGORITHMS)
    for part in (str(ConvGeometry.create(SHAPE, WEIGHT.shape)), fc.__version__, fc.info()["isa"]):
        assert part in key
    forget()
    fc.remember_measurements(str(path))
    assert plan().algorithm == first
    assert len(counted) == 1


def test_without_a_file_nothing_is_written(tmp_path, counted, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan()
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1, 2]",
        b'{"problem": 3}',
        b'{"problem": {"direct": "fast"}}',
        b'{"problem": {"direct": -1.0}}',
        b'{"problem": {"dirct": 1.0}}',
        b"\xff\xfe",
    ],
)
def test_a_file_of_something_else_is_replaced_with_a_warning(content, path):
    path.write_bytes(content)
    with pytest.warns(RuntimeWarning, match="times.json' does not hold fastconv's measurements"):
        fc.remember_measurements(path)
    with pytest.warns(RuntimeWarning, match="will be replaced"):
        plan()
    assert len(json.loads(path.read_text())) == 1


@pytest.mark.parametrize(
    ("wrong", "error"), [(3, TypeError), (b"x", TypeError), ("no/such/x", FileNotFoundError)]
)
def test_a_wrong_path_is_refused(wrong, error, counted):
    with pytest.raises(error, match="^path must be "):
        fc.remember_measurements(wrong)
    assert measurement._path is None


CHILD = """
import sys, numpy as np, fastconv as fc
fc.remember_measurements(sys.argv[1])
for size in range(int(sys.argv[2]), int(sys.argv[3])):
    fc.plan_conv2d((1, 1, size, size), np.ones((1, 1, 3, 3), np.float32), algorithm="fastest", num_threads=1)
    print(size, flush=True)
"""


def child(path, first, last):
    command = [sys.executable, "-c", CHILD, str(path), str(first), str(last)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_lose_nothing(path):
    processes = [child(path, 4, 12), child(path, 12, 20)]
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert len(json.loads(path.read_text())) == 16
    assert sorted(os.listdir(path.parent)) == ["times.json", "times.json.lock"]


def test_a_killed_process_leaves_a_whole_file(path):
    for done in (1, 3, 5):
        process = child(path, 4, 400)
        for _ in range(done):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert len(json.loads(path.read_text())) >= done
    fc.remember_measurements(path)
    plan()
    assert len(json.loads(path.read_text())) >= 6


def test_a_full_disk_leaves_the_old_file(path):
    code = f"""
import resource, numpy as np, fastconv as fc
fc.remember_measurements({str(path)!r})
weight = np.ones((1, 1, 3, 3), np.float32)
fc.plan_conv2d((1, 1, 8, 8), weight, algorithm="fastest")
before = open({str(path)!r}).read()
resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16))
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    fc.plan_conv2d((1, 1, 9, 9), weight, algorithm="fastest")
except OSError:
    print(open({str(path)!r}).read() == before)
"""
    assert python(code).stdout.split() == ["True"]
    assert sorted(os.listdir(path.parent)) == ["times.json", "times.json.lock"]
