"""What a model is made of: summary, parameter count."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastconv.nn.fields import ReceptiveField, check_model, slot_fields
from fastconv.nn.graph import Graph


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
                receptive_field=fields[node.output],
            )
        )
    return Summary(
        input_shapes=tuple(shapes[: len(model.inputs)]),
        rows=tuple(rows),
        parameters=count_parameters(model),
        macs=sum(row.macs for row in rows),
    )
