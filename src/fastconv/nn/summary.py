"""What a model is made of: summary, parameter count."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastconv.nn.fields import ReceptiveField, check_model, slot_fields
from fastconv.nn.graph import Graph
from fastconv.nn.layer import Layer


class ReceptiveField(NamedTuple):
    """The input pixels that an output pixel sees; the tuples have one entry for each spatial axis.

    Attributes
    ----------
    size : (int, int)
        How many pixels, holes of dilation included.
    stride : (int, int)
        By how many input pixels neighbouring output pixels are apart; a fraction where a transposed
        convolution has made the image larger.
    offset : (int, int)
        The first input pixel that output pixel 0 sees; negative ones lie in the padding.
    whole : bool
        A layer that sees the whole image (Flatten, Linear, GlobalAvgPool2d) has been passed; size, stride
        and offset are those of the feature map before it.
    """

    size: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    offset: tuple[int, int] = (0, 0)
    whole: bool = False

    def __str__(self) -> str:
        return "whole" if self.whole else f"{self.size[0]}×{self.size[1]}"


def _through(layer: Layer, fields: list[ReceptiveField]) -> ReceptiveField:
    field = _union(fields)
    own = layer.receptive_field
    if own is None or field.whole:
        return field._replace(whole=True)
    size, stride, offset = [], [], []
    for axis in range(2):
        step = field.stride[axis]
        size.append(field.size[axis] + (own.kernel[axis] - 1) * step)
        stride.append(step * own.stride[axis])
        offset.append(field.offset[axis] - own.padding[axis] * step)
    return ReceptiveField(tuple(size), tuple(stride), tuple(offset))


def _union(fields: list[ReceptiveField]) -> ReceptiveField:
    """The smallest field that holds those of all branches."""
    first = tuple(min(field.offset[axis] for field in fields) for axis in range(2))
    stop = tuple(max(field.offset[axis] + field.size[axis] for field in fields) for axis in range(2))
    return ReceptiveField(
        size=tuple(stop[axis] - first[axis] for axis in range(2)),
        stride=tuple(max(field.stride[axis] for field in fields) for axis in range(2)),
        offset=first,
        whole=any(field.whole for field in fields),
    )


def _slot_fields(graph: Graph) -> list[ReceptiveField]:
    fields = [ReceptiveField()] * len(graph.inputs)
    for node in graph.nodes:
        fields.append(_through(node.layer, [fields[slot] for slot in node.inputs]))
    return fields


def receptive_field(model: Graph) -> ReceptiveField:
    """Which input pixels an output pixel of a model sees, over all branches and outputs.

    Follows Araujo, Norris, Sim, "Computing Receptive Fields of Convolutional Neural Networks", 2019.

    Parameters
    ----------
    model : Model

    Returns
    -------
    ReceptiveField

    Raises
    ------
    TypeError
        If it is not a model.
    """
    _check_model(model)
    fields = _slot_fields(model)
    return _in_pixels(_union([fields[slot] for slot in model.output_slots]))


def _in_pixels(field: ReceptiveField) -> ReceptiveField:
    """Whole pixels: behind a transposed convolution a field is an interval whose ends lie between pixels."""
    return field._replace(
        size=tuple(map(math.floor, field.size)),
        stride=tuple(int(step) if step == int(step) else float(step) for step in field.stride),
        offset=tuple(map(math.ceil, field.offset)),
    )


def count_parameters(model: Graph) -> int:
    """How many numbers training changes; a layer used twice counts once.

    Parameters
    ----------
    model : Model

    Returns
    -------
    int

    Raises
    ------
    TypeError
        If it is not a model.
    """
    check_model(model)
    return sum(array.size for array in model.parameters.values())


@dataclass(frozen=True)
class SummaryRow:
    """One layer of a summary."""

    name: str
    layer: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
    receptive_field: ReceptiveField


@dataclass(frozen=True)
class Summary:
    """A model, layer by layer; ``print`` shows it as a table.

    Attributes
    ----------
    input_shapes : tuple of tuple of int
    rows : tuple of SummaryRow
    parameters : int
        A layer used twice counts once.
    macs : int
        Multiply-accumulate operations for these inputs, batch included.
    """

    input_shapes: tuple[tuple[int, ...], ...]
    rows: tuple[SummaryRow, ...]
    parameters: int
    macs: int

    def to_dict(self) -> dict:
        """The same as JSON can write it."""
        return {
            "input_shapes": [list(shape) for shape in self.input_shapes],
            "layers": [
                {
                    "name": row.name,
                    "layer": row.layer,
                    "output_shape": list(row.output_shape),
                    "parameters": row.parameters,
                    "macs": row.macs,
                    "receptive_field": None if row.receptive_field.whole else list(row.receptive_field.size),
                }
                for row in self.rows
            ],
            "parameters": self.parameters,
            "macs": self.macs,
        }

    def __str__(self) -> str:
        head = ("name", "layer", "output shape", "parameters", "MACs", "receptive field")
        lines = [
            (
                row.name,
                row.layer,
                _times(row.output_shape),
                f"{row.parameters:,}",
                f"{row.macs:,}",
                str(row.receptive_field),
            )
            for row in self.rows
        ]
        total = ("total", "", "", f"{self.parameters:,}", f"{self.macs:,}", "")
        widths = [max(map(len, column)) for column in zip(head, *lines, total, strict=True)]
        rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
        shown = [_aligned(line, widths) for line in (head, *lines, total)]
        title = f"input {', '.join(map(_times, self.input_shapes))}"
        return "\n".join([title, rule, shown[0], rule, *shown[1:-1], rule, shown[-1]])


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _aligned(cells: tuple[str, ...], widths: list[int]) -> str:
    # Names to the left, numbers to the right.
    padded = [
        cell.ljust(width) if column < 3 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()


def summarize(model: Graph, *input_shapes: tuple[int, ...]) -> Summary:
    """The summary of a model for inputs of these shapes."""
    shapes = model.slot_shapes(*input_shapes)
    fields = slot_fields(model)
    counted: set[int] = set()
    rows = []
    for node in model.nodes:
        own = 0
        if id(node.layer) not in counted:
            counted.add(id(node.layer))
            own = sum(math.prod(array.shape) for array in node.layer.parameters.values())
        rows.append(
            SummaryRow(
                name=node.name,
                layer=type(node.layer).__name__,
                output_shape=shapes[node.output],
                parameters=own,
                macs=node.layer.macs(*(shapes[slot] for slot in node.inputs)),
                receptive_field=_in_pixels(fields[node.output]),
            )
        )
    return Summary(
        input_shapes=tuple(shapes[: len(model.inputs)]),
        rows=tuple(rows),
        parameters=count_parameters(model),
        macs=sum(row.macs for row in rows),
    )
