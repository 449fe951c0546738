"""The demo does what the README promises."""

from __future__ import annotations

import re

import numpy as np
import pytest

import fastconv as fc
from command import run
from fastconv import demo


def run_demo(folder, *arguments):
    pytest.importorskip("sklearn", reason="the demo's digits come with scikit-learn")
    result = run("demo", *arguments, cwd=folder)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def full_demo(tmp_path_factory):
    """The demo as the README runs it: what it printed and the folder it ran in."""
    folder = tmp_path_factory.mktemp("demo")
    return run_demo(folder), folder


def test_the_network_learns(full_demo):
    accuracy = re.search(r"held-out digits: ([\d.]+)%", full_demo[0])
    assert float(accuracy[1]) >= 98


def test_the_answers_are_drawn(full_demo):
    text = full_demo[0]
    assert "█" in text
    assert len(re.findall(r"says \d, is \d", text)) == demo.DRAWN


def test_the_algorithms_are_compared(full_demo):
    for algorithm in ("direct", "im2col", "kn2col", "winograd", "fft"):
        assert algorithm in full_demo[0]


def test_the_saved_model_is_the_one_that_was_measured(full_demo):
    text, folder = full_demo
    assert [path.name for path in folder.iterdir()] == ["fastconv-digits.npz"]
    model = fc.load(folder / "fastconv-digits.npz")
    _, _, x, y = demo.load_digits(0)
    accuracy = np.mean(model.predict(x).argmax(axis=1) == y)
    assert f"held-out digits: {accuracy:.2%}" in text


def test_threads_do_not_change_what_is_learned(tmp_path):
    for threads in ("1", "2"):
        run_demo(tmp_path, "--epochs", "1", "--threads", threads, "--save", f"{threads}.npz")
    one, two = (fc.load(tmp_path / f"{threads}.npz").state_dict() for threads in ("1", "2"))
    assert list(one) == list(two)
    for name, values in one.items():
        np.testing.assert_array_equal(values, two[name], err_msg=name)


def test_a_fifth_of_every_class_is_held_out():
    pytest.importorskip("sklearn", reason="the demo's digits come with scikit-learn")
    x_train, y_train, x_test, y_test = demo.load_digits(3)
    assert len(x_train) + len(x_test) == 1797
    assert x_train.shape[1:] == (1, 8, 8)
    assert x_train.dtype == np.float32
    shares = np.bincount(y_test, minlength=10) / np.bincount(np.concatenate([y_train, y_test]))
    assert np.all((shares > 0.18) & (shares <= 0.2))


def test_pictures_shade_from_empty_to_full():
    assert demo.picture(np.array([[0.0, 0.5, 1.0]])) == ["  ▒▒██"]
