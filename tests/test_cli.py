"""The command line, run as users run it: in a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

import fastconv as fc
from command import COMMAND, environment, run

SMALL = ("--input", "1,8,10,10", "--weight", "8,8,3,3")
COMMANDS = ("demo", "compare", "summary", "info")


def check_refused(result, *words):
    """Exit code 2 and one line on stderr that holds the words."""
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.npz"
    fc.nn.Sequential(fc.nn.Conv2d(1, 4, 3), fc.nn.ReLU(), fc.nn.Flatten(), fc.nn.Linear(144, 10)).save(path)
    return path


@pytest.fixture
def _interruptible():
    """SIGINT reaches children even where the shell started us with it ignored, as it does background jobs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_help_lists_the_commands():
    result = run("--help")
    assert result.returncode == 0
    for command in COMMANDS:
        assert command in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_examples(command):
    result = run(command, "--help")
    assert result.returncode == 0
    assert result.stderr == ""
    assert f"examples:\n  fastconv {command}" in result.stdout


def test_version():
    assert run("--version").stdout == f"fastconv {fc.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("COMMAND",)),
        (("bake",), ("bake",)),
        (("info", "--verbose"), ("--verbose",)),
        (("compare", "--input", "1,8,10,10"), ("--weight",)),
        (("compare", "--input", "1,8,10", "--weight", "8,8,3,3"), ("--input", "1,8,10")),
        (("compare", "--input", "1,8,ten,10", "--weight", "8,8,3,3"), ("--input", "ten")),
        (("compare", *SMALL, "--padding", "wide"), ("--padding", "wide")),
        (("compare", *SMALL, "--padding", "1,2,3"), ("--padding", "1,2,3")),
        (("compare", *SMALL, "--stride", "1,1,1"), ("--stride", "1,1,1")),
        (("compare", *SMALL, "--threads", "0"), ("--threads", "0")),
        (("compare", *SMALL, "--dtype", "int8"), ("--dtype", "int8")),
        (("compare", *SMALL, "--stride", "0"), ("stride", "0")),
        (("compare", *SMALL, "--groups", "3"), ("groups", "3")),
        (("compare", "--input", "1,7,10,10", "--weight", "8,8,3,3"), ("7", "8")),
        (("compare", "--input", "1,8,2,2", "--weight", "8,8,3,3"), ("3",)),
        (("compare", "--input", "1,8,999999999,999999999", "--weight", "8,8,3,3"), ()),
        (("summary",), ("MODEL.npz",)),
        (("summary", "missing.npz"), ("missing.npz",)),
        (("summary", "missing.npz", "--input", "1,1,a,8"), ("--input", "1,1,a,8")),
        (("demo", "--epochs", "0"), ("--epochs", "0")),
        (("demo", "--save", "missing/digits.npz"), ("missing/digits.npz",)),
    ],
)
def test_wrong_arguments_get_one_line_and_exit_code_2(arguments, words, tmp_path):
    check_refused(run(*arguments, cwd=tmp_path), *words)


def test_summary_of_a_saved_model(saved_model):
    result = run("summary", saved_model, "--input", "1,1,8,8")
    assert result.returncode == 0, result.stderr
    assert "Conv2d" in result.stdout
    parameters = 4 * 9 + 4 + 144 * 10 + 10
    assert str(parameters) in result.stdout.replace(",", "")


def test_summary_of_a_file_that_is_no_model(tmp_path):
    path = tmp_path / "notes.npz"
    path.write_text("not a model")
    check_refused(run("summary", path, "--input", "1,1,8,8"), "notes.npz")


def test_summary_without_a_known_input(saved_model):
    check_refused(run("summary", saved_model), "--input")


def test_summary_for_an_impossible_input(saved_model):
    check_refused(run("summary", saved_model, "--input", "1,3,8,8"), "3")


def test_compare_prints_a_table():
    result = run("compare", *SMALL, "--padding", "same", "--threads", "1")
    assert result.returncode == 0, result.stderr
    for algorithm in ("direct", "im2col", "kn2col", "winograd", "fft"):
        assert algorithm in result.stdout


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_compare_prints_json(dtype):
    result = run("compare", *SMALL, "--stride", "3,4", "--padding", "0,1,1,0", "--dtype", dtype, "--json")
    assert result.returncode == 0, result.stderr
    rows = {row["algorithm"]: row for row in json.loads(result.stdout)["rows"]}
    assert set(rows) == {"direct", "im2col", "kn2col", "winograd", "fft"}
    assert rows["direct"]["supported"]
    assert not rows["winograd"]["supported"]
    assert sum(row["fastest"] for row in rows.values()) == 1


def test_info_prints_json():
    result = run("info", "--json")
    assert result.returncode == 0, result.stderr
    info = json.loads(result.stdout)
    assert info["version"] == fc.__version__
    assert info["isa"] in info["isa_supported"]


def test_info_follows_the_environment():
    assert "baseline" in json.loads(run("info", "--json", FASTCONV_ISA="baseline").stdout)["isa"]
    assert json.loads(run("info", "--json", OMP_NUM_THREADS="1").stdout)["threads"] == 1


def test_info_prints_lines():
    result = run("info")
    assert result.returncode == 0, result.stderr
    for name in fc.info():
        assert name in result.stdout


def test_summary_asks_for_one_shape_an_input(tmp_path):
    a, b = fc.nn.Input((2, 4, 4)), fc.nn.Input((2, 4, 4))
    fc.nn.Model((a, b), fc.nn.Add()(a, b)).save(tmp_path / "two.npz")
    shape = ("--input", "1,2,4,4")
    check_refused(run("summary", tmp_path / "two.npz", *shape), "--input", "input_0, input_1", "got 1")
    assert run("summary", tmp_path / "two.npz", *shape, *shape).returncode == 0


def test_output_survives_a_terminal_without_unicode(saved_model):
    result = run("summary", saved_model, "--input", "1,1,8,8", PYTHONIOENCODING="ascii")
    assert result.returncode == 0, result.stderr


def test_a_reader_that_leaves_is_no_error():
    process = subprocess.Popen(
        [*COMMAND, "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 141


def test_demo_without_its_extra():
    script = (
        "import sys; sys.modules['sklearn'] = None; from fastconv.cli import main; sys.exit(main(['demo']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=environment()
    )
    check_refused(result, "scikit-learn", 'pip install "fastconv[demo]"')


@pytest.mark.usefixtures("_interruptible")
def test_interrupting_the_demo_leaves_no_traceback_and_no_file(tmp_path):
    pytest.importorskip("sklearn", reason="the demo's digits come with scikit-learn")
    process = subprocess.Popen(
        [*COMMAND, "demo", "--epochs", "1000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment(PYTHONUNBUFFERED="1"),
    )
    assert "held out" in process.stdout.readline()
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "interrupted" in errors
    assert list(tmp_path.iterdir()) == []
