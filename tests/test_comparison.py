"""compare(): the table of algorithms measured on this machine."""

import json

import numpy as np
import pytest

import fastconv as fc
from support import ALGORITHMS

X = np.random.default_rng(7).standard_normal((1, 8, 20, 20)).astype(np.float32)
WEIGHT = np.random.default_rng(8).standard_normal((8, 8, 3, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def comparison():
    return fc.compare(X, WEIGHT, padding=1)


@pytest.fixture(scope="module")
def strided():
    return fc.compare(X, WEIGHT, stride=3, padding=1)


def test_rows(comparison):
    assert sorted(row.algorithm for row in comparison.rows) == sorted(ALGORITHMS)
    for row in comparison.rows:
        assert row.supported is True
        assert row.seconds > 0
        assert row.workspace_bytes >= 0
        assert 0 <= row.error < 1e-4
        assert row.strided in ("yes", "no", "subsampled")
        assert isinstance(row.int8_ready, bool)


def test_fastest_is_marked(comparison):
    (fastest,) = [row for row in comparison.rows if row.fastest]
    assert fastest.seconds == min(row.seconds for row in comparison.rows)


def test_what_is_known_of_each(comparison):
    rows = {row.algorithm: row for row in comparison.rows}
    assert rows["fft"].strided == "subsampled"
    assert rows["winograd"].strided == "yes"
    for name in ("direct", "im2col", "kn2col"):
        assert rows[name].strided == "yes"


def test_an_unsupported_algorithm_says_why(strided):
    rows = {row.algorithm: row for row in strided.rows}
    row = rows["winograd"]
    assert row.supported is False
    assert row.reason
    assert not row.fastest
    assert row.reason in str(strided) or "winograd" in str(strided)
    assert sum(other.fastest for other in strided.rows) == 1


@pytest.mark.parametrize("name", ["comparison", "strided"])
def test_prints(name, request, capsys):
    table = request.getfixturevalue(name)
    print(table)
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert all(any(name in line for line in lines) for name in ALGORITHMS)
    assert max(map(len, lines)) <= 120
    html = table._repr_html_()
    assert html.count("<table") == html.count("</table>") == 1
    assert all(name in html for name in ALGORITHMS)


@pytest.mark.parametrize("name", ["comparison", "strided"])
def test_json(name, request):
    table = request.getfixturevalue(name)
    text = json.dumps(table.to_dict(), allow_nan=False)
    assert all(f'"{name}"' in text for name in ALGORITHMS)


def test_refuses_what_conv2d_refuses():
    with pytest.raises(ValueError, match="^stride "):
        fc.compare(X, WEIGHT, stride=0)
    with pytest.raises(TypeError, match="^x "):
        fc.compare(X.astype(int), WEIGHT)


def test_arguments_are_not_changed(comparison):
    rng = np.random.default_rng(7)
    np.testing.assert_array_equal(X, rng.standard_normal(X.shape).astype(np.float32))
