"""Building a model from its file."""

from __future__ import annotations

import os
from typing import Any

from fastconv.nn import archive
from fastconv.nn.layer import Layer, registered
from fastconv.nn.model import FORMAT, VERSION, Model, Sequential
from fastconv.nn.value import Input


def load(path: str | os.PathLike) -> Model:
    """The model that :meth:`Model.save` wrote.

    Only layers of fastconv, and those you registered with :func:`fastconv.nn.register`, can be in it;
    nothing in the file is executed.

    Parameters
    ----------
    path : str or path-like

    Returns
    -------
    Model or Sequential

    Raises
    ------
    TypeError
        If ``path`` is no path.
    OSError
        If the file cannot be read.
    ValueError
        If it is not such a file, damaged, or of a newer version.
    """
    architecture, state = archive.read(path)
    if architecture.get("format") != FORMAT:
        raise ValueError(f"path must be a model that fastconv saved, got {path}: another program's .npz")
    if architecture.get("version") != VERSION:
        raise ValueError(
            f"path must be a model of format version {VERSION}, got {path}: {architecture.get('version')!r}"
        )
    try:
        layers: list[Layer] = []
        for entry in architecture["layers"]:
            layers.append(_layer(entry, layers))
        model = _build(architecture["model"], layers)
        model.input_shapes = tuple(
            None if shape is None else tuple(map(int, shape)) for shape in architecture["input_shapes"]
        )
        model.load_state_dict(state)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"path must be a whole model of known layers, got {path}: {error}") from error
    return model


def _layer(entry: dict[str, Any], layers: list[Layer]) -> Layer:
    config = {key: _decoded(value, layers) for key, value in entry["config"].items()}
    return registered(entry["type"]).from_config(config)


def _decoded(value: Any, layers: list[Layer]) -> Any:
    if isinstance(value, list):
        # JSON has no tuples, and the layers' arguments no lists.
        return tuple(_decoded(item, layers) for item in value)
    if isinstance(value, dict):
        return layers[value["layer"]] if "layer" in value else _build(value["model"], layers)
    return value


def _build(structure: dict[str, Any], layers: list[Layer]) -> Model:
    if structure["type"] == "Sequential":
        children = structure["children"]
        return Sequential(*(layers[c] if isinstance(c, int) else _build(c, layers) for c in children))
    inputs = [Input(entry["shape"], name=entry["name"]) for entry in structure["inputs"]]
    values = list(inputs)
    for node in structure["nodes"]:
        layer = layers[node["layer"]]
        values.append(layer(*(values[slot] for slot in node["inputs"]), name=node["name"]))
    return Model(inputs, [values[slot] for slot in structure["outputs"]])
