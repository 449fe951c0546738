"""The package's main job on real data: 8,000 handwritten digits, and how many of 2,000 others it knows."""

from pathlib import Path

import numpy as np
import pytest

from fastconv import nn, training

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist10k.npz"


@pytest.mark.skipif(not DATA.exists(), reason=f"MNIST is not here: {DATA}")
def test_mnist_reaches_97_5_percent():
    with np.load(DATA) as data:
        x, y = data["x"][:, None].astype(np.float32) / 255, data["y"]
    rng = np.random.default_rng(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, seed=rng),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, seed=rng),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.4),
        nn.Linear(32 * 49, 10, seed=rng),
    )
    optimizer = training.Adam(0.002)
    for epochs, optimizer.lr in ((4, 0.002), (2, 0.0005)):
        # The result is the same for any number of threads; one keeps its pace also where CPUs are shared.
        model.fit(x[:8000], y[:8000], epochs, 64, optimizer=optimizer, seed=0, num_threads=1)
    assert model.evaluate(x[8000:], y[8000:])["accuracy"] >= 0.975
