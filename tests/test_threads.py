"""Thread counts: where they come from, what is refused, and that no more threads run than were asked for."""

import os
import sys

import numpy as np
import pytest

import fastconv as fc
from fastconv import kernels, threads
from support import ALGORITHMS, python

needs_openmp = pytest.mark.skipif(not kernels.openmp_version, reason="this build has no OpenMP")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc and affinity")
PRINT = "import fastconv; print(fastconv.get_num_threads())"


@pytest.fixture
def restored():
    before = fc.get_num_threads()
    yield
    fc.set_num_threads(before)


def test_set_and_get(restored):
    for count in (1, 2, np.int64(2), 1024):
        fc.set_num_threads(count)
        assert fc.get_num_threads() == (count if kernels.openmp_version else 1)
    assert type(fc.get_num_threads()) is int


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        (1025, ValueError),
        (2.0, TypeError),
        ("2", TypeError),
        (None, TypeError),
    ]
    + [(wrong, (TypeError, ValueError)) for wrong in (True, False, np.True_)],
)
def test_wrong_counts_are_refused(wrong, error, restored):
    fc.set_num_threads(2)
    before = fc.get_num_threads()
    with pytest.raises(error, match="^n must be"):
        fc.set_num_threads(wrong)
    assert fc.get_num_threads() == before
    if wrong is not None:
        with pytest.raises(error, match="^num_threads must be"):
            threads.resolve(wrong)


@needs_openmp
def test_the_argument_wins(restored):
    fc.set_num_threads(2)
    assert threads.resolve(3) == 3
    assert threads.resolve(None) == 2


@needs_openmp
@pytest.mark.parametrize(("value", "expected"), [("3", 3), ("3,2", 3), (" 5 ", 5), ("1", 1)])
def test_environment(value, expected):
    assert int(python(PRINT, OMP_NUM_THREADS=value).stdout) == expected


@needs_openmp
@needs_linux
@pytest.mark.parametrize("value", [None, "", "0", "-2", "many", "1000000", "2.5"])
def test_without_a_usable_environment_the_affinity_counts(value):
    code = f"import os; os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}}); {PRINT}"
    assert int(python(code, OMP_NUM_THREADS=value).stdout) == 1


@needs_openmp
@needs_linux
def test_bound_threads_are_counted():
    expected = str(len(os.sched_getaffinity(0)))
    for settings in ({"OMP_PROC_BIND": "true"}, {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}):
        code = "import os; os.environ.pop('OMP_NUM_THREADS', 0); from fastconv import threads as t;"
        code += "t._cgroup_cpus = lambda: 1e9; print(t._from_environment())"
        assert python(code, OMP_NUM_THREADS=None, **settings).stdout.strip() == expected


@needs_openmp
def test_setting_wins_over_the_environment():
    code = "import fastconv as fc; fc.set_num_threads(2); print(fc.get_num_threads())"
    assert int(python(code, OMP_NUM_THREADS="3").stdout) == 2


@pytest.mark.parametrize(("quota", "expected"), [(0.5, 1), (1.0, 1), (1.9, 1), (2.0, 2), (float("inf"), 64)])
def test_quota_of_a_container(monkeypatch, quota, expected):
    monkeypatch.setattr(threads, "_cgroup_cpus", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert threads.available_cpus() == expected


SETUP = """
import os, signal, sys
import numpy as np
import fastconv as fc
x = np.ones((2, 32, 40, 40), np.float32)
weight = np.linspace(-1, 1, 32 * 32 * 9, dtype=np.float32).reshape(32, 32, 3, 3)
"""


@needs_linux
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_more_threads_than_asked_for(algorithm):
    code = f"""{SETUP}
def tasks():
    return len(os.listdir("/proc/self/task"))
before = tasks()
for num_threads in (1, 2, 3):
    fc.conv2d(x, weight, padding=1, algorithm={algorithm!r}, num_threads=num_threads)
    print(tasks() - before)
"""
    one, two, three = map(int, python(code, OMP_NUM_THREADS="4").stdout.split())
    assert one == 0
    assert two <= 1
    assert three <= 2
    if kernels.openmp_version:
        assert two == 1, "two threads were asked for and one worked alone"


@needs_linux
def test_affinity_of_one_cpu_starts_no_thread():
    code = f"""{SETUP}
os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
before = len(os.listdir("/proc/self/task"))
fc.conv2d(x, weight, padding=1)
print(len(os.listdir("/proc/self/task")) - before)
"""
    assert int(python(code, OMP_NUM_THREADS=None).stdout) == 0


@needs_openmp
@needs_linux
@pytest.mark.skipif(threads.available_cpus() < 2, reason="needs two CPUs")
def test_a_team_keeps_off_its_callers_cpu():
    """A thread that is woken on the CPU of the one that waits for it stands still for milliseconds."""
    code = f"""{SETUP}
allowed = os.sched_getaffinity(0)
before = set(os.listdir("/proc/self/task"))
fc.conv2d(x, weight, padding=1, num_threads=2)
(other,) = set(os.listdir("/proc/self/task")) - before
assert os.sched_getaffinity(0) == allowed
print(len(allowed - os.sched_getaffinity(int(other))))
os.sched_setaffinity(0, {{min(allowed)}})
fc.conv2d(x, weight, padding=1, num_threads=2)
print(os.sched_getaffinity(0) == {{min(allowed)}})
"""
    unbound = {"OMP_PROC_BIND": None, "OMP_PLACES": None, "GOMP_CPU_AFFINITY": None}
    assert python(code, **unbound).stdout.split() == ["1", "True"]


@needs_linux
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_forked_child_computes(algorithm):
    """GNU's OpenMP pool does not survive fork(); a child must not wait for threads it has not got."""
    code = f"""{SETUP}
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of fork with threads, which is the point
call = dict(padding=1, algorithm={algorithm!r}, num_threads=2)
plan = fc.plan_conv2d(x.shape, weight, **call)
expected = plan(x)
child = os.fork()
if child == 0:
    signal.alarm(30)  # a child that hangs must not outlive the test
    same = plan(x).tobytes() == expected.tobytes()
    same &= fc.conv2d(x, weight, **call).tobytes() == expected.tobytes()
    grandchild = os.fork()
    if grandchild == 0:
        signal.alarm(30)
        os._exit(0 if plan(x).tobytes() == expected.tobytes() else 1)
    same &= os.waitpid(grandchild, 0)[1] == 0
    os._exit(0 if same else 1)
_, status = os.waitpid(child, 0)
assert status == 0, status
assert plan(x).tobytes() == expected.tobytes()
print("done")
"""
    assert python(code, timeout=60).stdout.split() == ["done"]


@needs_linux
def test_a_forked_child_reports_one_thread():
    code = f"""{SETUP}
import warnings
warnings.simplefilter("ignore", DeprecationWarning)
fc.set_num_threads(2)
child = os.fork()
if child == 0:
    os._exit(fc.get_num_threads())
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert int(python(code).stdout) == 1
