"""Pictures; they need matplotlib (``pip install "fastconv[plot]"``)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from fastconv import checks
from fastconv.nn.fields import check_model, effective_receptive_field, receptive_field

# What counts as seen: above 1 − 95.45 % of the largest gradient (Luo et al. 2016, section 4.2).
_SMALL = 0.0455
_BLUE, _ORANGE, _GREY = "#1f4e79", "#d95f02", "#8a8a8a"


def plot_receptive_field(
    model, input_shape, path: str | os.PathLike | None = None, *, samples: int = 16, seed=0
) -> Any:
    """What the centre of a model's output sees: the receptive field around the effective one.

    The square is :func:`fastconv.receptive_field`, by arithmetic; the colours are
    :func:`fastconv.nn.effective_receptive_field`, from gradients, as a share of its largest value; the
    curves beside it are its sums over rows and over columns, as shares of theirs.

    Parameters
    ----------
    model : Model
        Of one input (N, C, H, W) and one output.
    input_shape : (C, H, W)
    path : str or path-like, optional
        Where to write the picture, atomically; its suffix names the format, such as .png or .svg.
    samples, seed
        As for :func:`fastconv.nn.effective_receptive_field`.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    TypeError, ValueError
        As :func:`fastconv.nn.effective_receptive_field`, and if ``input_shape`` is not (C, H, W) or
        ``path`` names no format matplotlib can write.
    OSError
        If the file cannot be written; what was there before stays.
    """
    figure = _figure()
    target = None if path is None else _target(figure, path)
    check_model(model)
    input_shape = checks.shape("input_shape", input_shape, 3, "(C, H, W)")
    effective = effective_receptive_field(model, input_shape, samples=samples, seed=seed)
    field = receptive_field(model)
    output_size = model.output_shape((1, *input_shape))[2:]
    box = _box(field, output_size, effective.shape)
    _draw(figure, effective, box, _caption(field, effective))
    if target is not None:
        _write(figure, target)
    return figure


def _figure():
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plotting needs matplotlib: pip install "fastconv[plot]"') from error
    return Figure(dpi=150, layout="constrained")


def _box(field, output_size, input_size):
    """First and one more than the last pixel, (rows, columns), that the centre of the output sees."""
    if field.whole or not output_size:
        return [(0, size) for size in input_size]
    box = []
    for axis, size in enumerate(input_size):
        first = field.offset[axis] + output_size[axis] // 2 * field.stride[axis]
        box.append((max(0, float(first)), min(size, float(first + field.size[axis]))))
    return box


def _caption(field, effective) -> str:
    """The receptive field's size, and that of the part where the gradient is not small."""
    seen = effective > _SMALL * effective.max()
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    extent = "×".join(str(line[-1] - line[0] + 1 if line.size else 0) for line in (rows, columns))
    return f"receptive field {field} (frame); gradient above {_SMALL:.2%} of its largest: {extent}"


def _draw(figure, effective, box, caption) -> None:
    from matplotlib.patches import Rectangle

    height, width = effective.shape
    figure.set_size_inches(6.4, 1.4 + 4.4 * min(max(height / width, 0.25), 3))
    # Axes placed by the main one's box, which takes the shape of the image.
    gap, thin = 0.03 * max(height, width), 0.16 * max(height, width)
    main = figure.add_subplot()
    top = main.inset_axes((0, 1 + gap / height, 1, thin / height), sharex=main)
    side = main.inset_axes((1 + gap / width, 0, thin / width, 1), sharey=main)
    scale = main.inset_axes((1 + (2 * gap + thin) / width, 0, 0.25 * thin / width, 1))

    image = main.imshow(
        effective / (effective.max() or 1), cmap="Blues", vmin=0, vmax=1, interpolation="nearest"
    )
    (row, bottom), (column, right) = box
    main.add_patch(
        Rectangle(
            (column - 0.5, row - 0.5), right - column, bottom - row, fill=False, edgecolor=_ORANGE,
            linewidth=1.6, clip_on=False,
        )
    )  # fmt: skip
    for axes, axis in ((top, 0), (side, 1)):
        profile = effective.sum(axis=axis) / (effective.sum(axis=axis).max() or 1)
        positions = np.arange(len(profile))
        axes.plot(*((positions, profile) if axis == 0 else (profile, positions)), color=_BLUE, linewidth=1.4)
        first, stop = box[1 - axis]
        span = axes.axvspan if axis == 0 else axes.axhspan
        span(first - 0.5, stop - 0.5, color=_ORANGE, alpha=0.12, linewidth=0)
        axes.tick_params(labelbottom=axis == 1, labelleft=axis == 0)
    main.set_xlabel("input column [pixels]")
    main.set_ylabel("input row [pixels]")
    top.set_ylabel("sum", fontsize=8)
    side.set_xlabel("sum", fontsize=8)
    top.set_title(caption, fontsize=9, loc="left")
    for axes in (main, top, side):
        axes.tick_params(labelsize=8, color=_GREY)
        axes.spines[["top", "right"]].set_visible(False)
    bar = figure.colorbar(image, cax=scale)
    bar.set_label("mean |∂ output centre / ∂ input|, share of the largest", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def _format(path: Path) -> str:
    return path.suffix.removeprefix(".").lower()


def _target(figure, path: object) -> Path:
    target, known = Path(checks.path("path", path)), figure.canvas.get_supported_filetypes()
    if _format(target) not in known:
        raise ValueError(f"path must end in one of {', '.join(sorted(known))}, got {str(path)!r}")
    return target


def _write(figure, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format=_format(path))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
