"""What the documentation shows is what happens, and what it names is there."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import fastconv as fc

MODULES = [
    module.name
    for module in pkgutil.walk_packages(fc.__path__, "fastconv.")
    if not module.name.startswith("fastconv.kernels._")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", fc.__all__)
def test_public_names(name):
    assert getattr(fc, name) is not None


def test_every_layer_has_its_line():
    page = Path(__file__).parents[1].joinpath("docs", "layers.md").read_text(encoding="utf-8")
    layers = [value for value in vars(fc.nn).values() if isinstance(value, type)]
    for layer in layers:
        if issubclass(layer, fc.nn.Layer) and layer.__name__ not in ("Layer", "Composite"):
            assert f"`{layer.__name__}`" in page
