"""Two small networks that several test modules share."""

import numpy as np

from fastconv import nn


def small_network(seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, dtype=dtype, seed=rng),
        nn.BatchNorm2d(4, dtype=dtype),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, bias=False, dtype=dtype, seed=rng),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 3, dtype=dtype, seed=rng),
    )


def branched_network(seed=0, dtype=np.float64):
    """A skip, two branches joined by Concat, one layer used twice."""
    rng = np.random.default_rng(seed)
    x = nn.Input((2, 8, 8), name="image")
    stem = nn.ReLU()(nn.Conv2d(2, 4, 3, padding=1, dtype=dtype, seed=rng)(x, name="stem"))
    shared = nn.Conv2d(4, 4, 3, padding=1, dtype=dtype, seed=rng)
    skip = nn.Add()(stem, shared(nn.ReLU()(shared(stem, name="shared"))))
    left = nn.Conv2d(4, 2, 1, dtype=dtype, seed=rng)(skip, name="left")
    right = nn.Conv2d(4, 3, 5, padding=2, dtype=dtype, seed=rng)(skip, name="right")
    joined = nn.Concat()(left, right, skip)
    out = nn.Linear(9, 3, dtype=dtype, seed=rng)(
        nn.Flatten()(nn.GlobalAvgPool2d()(joined)), name="classifier"
    )
    return nn.Model(x, out)
