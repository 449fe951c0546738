"""The layers of real networks: described, computed right by whatever "auto" picks for them, and tabled."""

from __future__ import annotations

import numpy as np
import pytest

import fastconv as fc
from benchmarks.registry import LAYERS, select
from benchmarks.side_by_side import Row, middle
from benchmarks.timing import Timing
from fastconv.geometry import ConvGeometry


def test_names_are_unique_and_in_families():
    names = [layer.name for layer in LAYERS]
    assert len(set(names)) == len(names) >= 28
    assert all(name.count("/") == 1 for name in names)


def test_globs_select():
    assert {layer.family for layer in select("3x3/*, depthwise/*")} == {"3x3", "depthwise"}
    assert select("*") == LAYERS
    with pytest.raises(ValueError, match="^layers must match"):
        select("4x4/*")


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_shapes_are_those_of_the_geometry(layer):
    geometry = ConvGeometry.create(layer.input_shape, layer.weight_shape, **layer.keywords)
    assert layer.output_shape == geometry.output_shape
    assert layer.multiplications == geometry.multiplications


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_auto_is_within_its_error_bound(layer):
    x, weight, bias = layer.arrays()
    plan = fc.plan_conv2d(layer.input_shape, weight, bias, **layer.keywords)
    wide = (array.astype(np.float64) for array in (x, weight, bias))
    expected = fc.conv2d(*wide, **layer.keywords, algorithm="direct")
    assert np.abs(plan(x) - expected).max() <= plan.error_bound * np.abs(expected).max()


def test_a_disturbed_pass_does_not_count():
    passes = [
        Row(LAYERS[0], "direct", {"direct": Timing(own, 5), "torch": Timing(rival, rounds)})
        for own, rival, rounds in ((1.0, 2.0, 5), (9.0, 3.0, 0), (1.5, 8.0, 5))
    ]
    assert middle(passes).timings == {"direct": Timing(1.5, 5), "torch": Timing(3.0, 0)}
