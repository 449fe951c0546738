"""What an output pixel sees: the receptive field by arithmetic, the effective one from gradients."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from fastconv import checks
from fastconv.nn.graph import Graph
from fastconv.nn.layer import POINTWISE, Field, Layer


class ReceptiveField(NamedTuple):
    """The input pixels that an output pixel sees; the tuples have one entry for each spatial axis.

    Attributes
    ----------
    size : tuple of int
        How many pixels, holes of dilation included. After a layer that enlarges its input output pixels
        may differ in how many they see; it is the most.
    stride : tuple of int or Fraction
        By how many input pixels neighbouring output pixels are apart; a fraction after a layer that
        enlarges its input.
    offset : tuple of int
        The first input pixel that output pixel 0 sees; negative ones lie in the padding.
    whole : bool
        A layer that sees the whole image (Flatten, Linear, GlobalAvgPool2d) has been passed; size, stride
        and offset are those of the feature map before it.
    """

    size: tuple[Any, ...]
    stride: tuple[Any, ...]
    offset: tuple[Any, ...]
    whole: bool = False

    def __str__(self) -> str:
        return "whole" if self.whole else "×".join(map(str, self.size))

    def rounded(self) -> ReceptiveField:
        """In whole pixels: those that lie within the interval that a fractional size and offset stand for."""
        return ReceptiveField(
            tuple(map(math.floor, self.size)),
            tuple(int(step) if step == int(step) else step for step in self.stride),
            tuple(map(math.ceil, self.offset)),
            self.whole,
        )


def _through(layer: Layer, fields: list[ReceptiveField]) -> ReceptiveField:
    field = _union(fields)
    own = layer.receptive_field
    if own is None or field.whole:
        return field._replace(whole=True)
    if own == POINTWISE:
        return field
    axes = list(zip(field.size, field.stride, field.offset, *own, strict=True))
    return ReceptiveField(
        size=tuple(size + (kernel - 1) * step for size, step, _, kernel, _, _ in axes),
        stride=tuple(step * stride for _, step, _, _, stride, _ in axes),
        offset=tuple(offset - padding * step for _, step, offset, _, _, padding in axes),
    )


def _union(fields: list[ReceptiveField]) -> ReceptiveField:
    """The smallest field that holds those of all branches."""
    offset = tuple(map(min, zip(*(field.offset for field in fields), strict=True)))
    stops = [
        tuple(start + size for start, size in zip(field.offset, field.size, strict=True)) for field in fields
    ]
    return ReceptiveField(
        size=tuple(max(ends) - start for ends, start in zip(zip(*stops, strict=True), offset, strict=True)),
        stride=tuple(map(max, zip(*(field.stride for field in fields), strict=True))),
        offset=offset,
        whole=any(field.whole for field in fields),
    )


def _rank(graph: Graph) -> int:
    """How many spatial axes the layers speak of: two unless one of them says otherwise."""
    for node in graph.nodes:
        own = node.layer.receptive_field
        if own is not None and own != POINTWISE:
            return len(own.kernel)
    return 2


def _exact(graph: Graph) -> list[ReceptiveField]:
    rank = _rank(graph)
    fields = [ReceptiveField((1,) * rank, (1,) * rank, (0,) * rank)] * len(graph.inputs)
    for node in graph.nodes:
        fields.append(_through(node.layer, [fields[slot] for slot in node.inputs]))
    return fields


def slot_fields(graph: Graph) -> list[ReceptiveField]:
    """The receptive field of every slot of a graph."""
    return [field.rounded() for field in _exact(graph)]


def field_of(graph: Graph) -> Field | None:
    """A whole graph's receptive field as that of one layer."""
    fields = _exact(graph)
    field = _union([fields[slot] for slot in graph.output_slots])
    if field.whole:
        return None
    return Field(field.size, field.stride, tuple(-start for start in field.offset))


def receptive_field(model: Graph) -> ReceptiveField:
    """Which input pixels an output pixel of a model sees, over all branches and outputs.

    A layer of kernel k, stride s, dilation d and padding p makes of size r, stride j and offset o

    .. math:: r' = r + d (k - 1) j, \\quad j' = s j, \\quad o' = o - p j

    and where branches meet it is the smallest field that holds all of theirs; of different strides, as
    the outputs of a pyramid have them, the largest is given. (Araujo, Norris, Sim, "Computing Receptive
    Fields of Convolutional Neural Networks", Distill 2019.)

    Parameters
    ----------
    model : Model

    Returns
    -------
    ReceptiveField
        In one entry for each spatial axis of the model.

    Raises
    ------
    TypeError
        If it is not a model.
    """
    check_model(model)
    fields = _exact(model)
    return _union([fields[slot] for slot in model.output_slots]).rounded()


def receptive_fields(model: Graph) -> dict[str, ReceptiveField]:
    """Which input pixels an output pixel of each layer sees; otherwise as :func:`receptive_field`.

    Parameters
    ----------
    model : Model

    Returns
    -------
    dict of str to ReceptiveField
        By the layers' names, in the order of computation; of a layer used twice, the last use.

    Raises
    ------
    TypeError
        If it is not a model.
    """
    check_model(model)
    fields = slot_fields(model)
    return {node.name: fields[node.output] for node in model.nodes}


def effective_receptive_field(
    model: Graph, input_shape, *, samples: int = 16, seed=0, num_threads: int | None = None
) -> np.ndarray:
    """How strongly each input pixel moves the centre of the output: the mean gradient.

    .. math:: e[i, j] = \\frac{1}{S} \\sum_{s} \\sum_c \\left| \\frac{\\partial \\sum_m y_s[m, i_0, j_0]}
        {\\partial x_s[c, i, j]} \\right|

    over S inputs drawn from N(0, 1), in evaluation mode. It is zero outside the receptive field, and falls
    off towards its borders (Luo, Li, Urtasun, Zemel, "Understanding the Effective Receptive Field in Deep
    Convolutional Neural Networks", 2016, arXiv 1701.04128, section 2).

    Parameters
    ----------
    model : Model
        Of one input and one output. Without spatial axes in its output all of it is taken.
    input_shape : sequence of int
        Of one sample: (C, H, W), or (C, W), or (C, D, H, W).
    samples : int, default 16
        S, the inputs to average over.
    seed : int or numpy.random.Generator, default 0
        Draws the inputs.
    num_threads : int, optional
        No result depends on it.

    Returns
    -------
    ndarray of the input's spatial shape and the model's dtype
        Not scaled.

    Raises
    ------
    TypeError
        If an argument is of the wrong type.
    ValueError
        If the model has several inputs or outputs, or cannot take such an input.
    """
    check_model(model)
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(f"model must have one input and one output, got {model!r}")
    samples = checks.integer("samples", samples, 1)
    shape = checks.sizes("input_shape", input_shape, "such as (C, H, W)", minimum=1)
    rng = checks.generator("seed", seed)
    total = np.zeros(shape[1:], np.float64)
    for _ in range(samples):
        x = rng.standard_normal((1, *shape)).astype(model.dtype or np.float32)
        y, caches = model.forward(x, num_threads=num_threads)
        grad = np.zeros_like(y)
        grad[(slice(None), slice(None), *(size // 2 for size in y.shape[2:]))] = 1
        (grad_input,), _ = model.backward(grad, caches, num_threads=num_threads)
        total += np.abs(grad_input[0]).sum(axis=0)
    return (total / samples).astype(model.dtype or np.float32)


def check_model(model: object) -> None:
    """Refuse what is not a model."""
    if not isinstance(model, Graph):
        raise TypeError(f"model must be a fastconv model, got {type(model).__name__}")
