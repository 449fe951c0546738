"""The picture of a receptive field: what is drawn where, files, and what happens without matplotlib."""

import sys

import numpy as np
import pytest

from fastconv import nn, plot

matplotlib = pytest.importorskip("matplotlib")


@pytest.fixture
def model():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, 2, 1, seed=0), nn.ReLU(), nn.Conv2d(3, 2, (3, 5), padding="same", seed=1)
    )


def test_draws_both_where_they_are(model):
    figure = plot.plot_receptive_field(model, (2, 20, 24))
    (main,) = figure.axes
    top, side = main.child_axes[:2]
    (image,) = main.images
    drawn = np.asarray(image.get_array())
    assert drawn.shape == (20, 24)
    assert drawn.max() == 1
    field = nn.receptive_field(model)
    (square,) = main.patches
    (column, row), width, height = square.get_xy(), square.get_width(), square.get_height()
    assert (height, width) == field.size == (7, 11)
    seen = np.argwhere(drawn)
    np.testing.assert_array_equal(seen.min(axis=0), (row + 0.5, column + 0.5))
    np.testing.assert_array_equal(seen.max(axis=0), (row + height - 0.5, column + width - 0.5))
    for axes, data, axis in ((top, "ydata", 0), (side, "xdata", 1)):
        (line,) = axes.lines
        values = getattr(line, f"get_{data}")()
        np.testing.assert_allclose(values, drawn.sum(axis=axis) / drawn.sum(axis=axis).max(), rtol=1e-5)
    assert main.get_xlabel() == "input column [pixels]"
    assert "receptive field 7×11" in top.get_title("left")


def test_a_model_that_sees_everything():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GlobalAvgPool2d(), nn.Flatten(), nn.Linear(2, 3))
    main = plot.plot_receptive_field(model, (1, 6, 8)).axes[0]
    (square,) = main.patches
    assert (square.get_width(), square.get_height()) == (8, 6)


@pytest.mark.parametrize("suffix", ["png", "svg", "PDF"])
def test_files_are_written_whole_or_not_at_all(model, tmp_path, suffix, monkeypatch):
    path = tmp_path / f"field.{suffix}"
    plot.plot_receptive_field(model, (2, 12, 12), path, samples=1)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    before = path.read_bytes()
    assert len(before) > 1000

    def fail(self, file, **keywords):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plot.plot_receptive_field(model, (2, 12, 12), path, samples=1)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_refused(model, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="^path must end in one of"):
        plot.plot_receptive_field(model, (2, 12, 12), tmp_path / "field.xyz", samples=1)
    assert not list(tmp_path.iterdir())
    with pytest.raises(TypeError, match="^model must be a fastconv model"):
        plot.plot_receptive_field(nn.ReLU(), (2, 12, 12))
    with pytest.raises(ValueError, match=r"^input_shape must have 3 axes \(C, H, W\)"):
        plot.plot_receptive_field(nn.Sequential(nn.ReLU()), (2, 12))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "fastconv\[plot\]"'):
        plot.plot_receptive_field(model, (2, 12, 12))
