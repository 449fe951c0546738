"""TransposedPlan: a transposed convolution prepared once, as the phases of its stride."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from fastconv import checks, kernels, threads
from fastconv.functional import depthwise_transposed, phases
from fastconv.functional.depthwise_transposed import DepthwiseTransposed
from fastconv.functional.phases import Phase
from fastconv.functional.prepared_plan import PreparedPlan
from fastconv.geometry import ConvGeometry
from fastconv.layout import channels_last, is_channels_last, moved_first, moved_last, store
from fastconv.memory import Workspaces, aligned_empty
from fastconv.plan import ACTIVATIONS, LAYOUTS, Plan, design

# Scratch memory for merged phases: a part of the L3 cache that leaves some to inputs and outputs. Beyond it
# moving pixels to their places would cost more than the shared transforms save.
_MERGED_BYTES = 8 << 20
# Merged phases begin and end together, so that some of their pixels lie outside the image. Where more than
# this share are computed for each that is wanted, at 7×7 for instance, it costs more than it saves.
_MOST_COMPUTED = 1.25
# Steps of the input for blocks of outputs, where a vector has room for the channels of so many.
_STEPS = (1, 2, 4)
# At stride 1, so many take less time than moving the pixels of blocks.
_FEW_MULTIPLICATIONS = 1 << 19
# What a product costs besides its vectors of outputs, in vectors: its input is loaded and broadcast.
_BROADCAST = 0.5


class _Part(NamedTuple):
    """Some phases of the output: where they lie, what they read, how they are computed (None: bias alone)."""

    place: tuple[slice, ...]
    source: tuple[slice, ...]
    plan: Plan | None
    phases: tuple[Phase, ...]

    @property
    def merged(self) -> tuple[int, ...]:
        """On each axis, how many phases are side by side."""
        return tuple(phase.merged for phase in self.phases)


class TransposedPlan(PreparedPlan):
    """A prepared transposed convolution; ``plan(x)`` computes it.

    Made by :func:`fastconv.plan_conv_transpose2d` and its 1-D and 3-D kin. Its output's phases, every s-th
    pixel of each axis, are convolutions of stride 1 with a part of the kernel's taps, each by the algorithm
    that suits it; or, where all have equally many taps, one convolution with their channels side by side.
    No zeros are stuffed into the input and no columns are added up (Dumoulin and Visin, "A guide to
    convolution arithmetic for deep learning", arXiv 1603.07285, section 4, for the arithmetic; the polyphase
    decomposition of a multirate filter for the computation). A depthwise one of stride 2 has a kernel of its
    own, which writes all phases at once.

    Attributes
    ----------
    geometry : ConvGeometry
        Of the convolution that this is the transposed of: its ``output_size`` is this one's input.
    plans : tuple of Plan
        One for each phase that any tap of the kernel reaches, or for several together; none where a kernel
        computes them all.
    num_threads : int
        Threads a call uses unless it is told otherwise; they never change the result.
    """

    def __init__(
        self, weight: np.ndarray, bias: np.ndarray | None = None, *, geometry: ConvGeometry,
        activation: str | None = None, layout: str | None = None, num_threads: int | None = None,
        input_size: tuple[int, ...] | None = None, calls: int | None = None,
    ):  # fmt: skip
        layouts = LAYOUTS[geometry.spatial_rank]
        checks.choice("activation", activation, ACTIVATIONS)
        self.layout = layouts[0] if layout is None else layout
        checks.choice("layout", self.layout, layouts)
        self.geometry = geometry
        self.num_threads = threads.resolve(num_threads)
        # An output padding beyond the stride adds outputs, which the convolution would see more inputs in.
        self._input_size = geometry.output_size if input_size is None else input_size
        self._channels_first = self.layout == layouts[0]
        self._axes = self._phases()
        self._is_merged = any(phase.merged > 1 for axis in self._axes for phase in axis)
        # A row of separate phases has pixels of all of them: where rows are planar, they are written at last.
        self._is_staged = self._is_merged or (geometry.stride[-1] > 1 and self._image_bytes <= _MERGED_BYTES)
        self._images = self._images_at_once() if self._is_staged else geometry.batch
        self.activation = activation
        self._depthwise = self._depthwise_of(weight, bias)
        self._parts = () if self._depthwise else tuple(self._plan_parts(weight, bias, calls))
        self._unreached = any(part.plan is None for part in self._parts)
        # Where no tap reaches most pixels, the others are computed apart, and then all are written at once.
        reached = len(self.plans) == 1 < len(self._parts)
        planar = geometry.spatial_rank == 2 and not self._is_merged
        self._is_spread = reached and self._is_staged and planar
        # Where every phase has one tap, merged ones are written in place: see _phases.
        apart = self._is_merged and geometry.kernel_size != geometry.stride
        self._is_shuffled = apart and self.plans[0].shuffles(geometry.in_channels)
        self._is_moved = apart and not self._is_shuffled
        self._workspaces = Workspaces()
        self._edge = self._edge_of(bias)
        # One convolution of stride 1, from its whole input to the whole result.
        alone = self._channels_first and not self._is_merged and max(geometry.stride) == 1
        whole = alone and self.plans and self.plans[0].input_shape == self.input_shape
        self._whole = self.plans[0] if whole else None

    @cached_property
    def plans(self) -> tuple[Plan, ...]:
        return tuple(part.plan for part in self._parts if part.plan is not None)

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed weights."""
        return sum(plan.packed_bytes for plan in self._computing)

    @property
    def kept_bytes(self) -> int:
        """Bytes of what is held between calls."""
        kept = sum(plan.kept_bytes for plan in self._computing)
        return kept + self._workspaces.nbytes + self._weight_bytes

    @property
    def workspace_bytes(self) -> int:
        """Bytes of scratch memory; each phase keeps its own, merged ones also what they write first."""
        return sum(plan.workspace_bytes for plan in self._computing) + sum(self._staged_bytes)

    @property
    def multiplications(self) -> int:
        """Multiplications of one call."""
        return sum(plan.multiplications for plan in self._computing)

    @cached_property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of ``x`` in this plan's layout."""
        return self._in_layout(self.geometry.batch, self.geometry.out_channels, *self._input_size)

    @cached_property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the result in this plan's layout."""
        return self._in_layout(*self.geometry.input_shape)

    def __call__(self, x, out: np.ndarray | None = None, num_threads: int | None = None) -> np.ndarray:
        if self._whole is not None:
            return self._whole(x, out, num_threads)
        return super().__call__(x, out, num_threads)

    def _compute(self, x: np.ndarray, out: np.ndarray, num_threads: int) -> None:
        x, target = self._channels_first_view(x), self._channels_first_view(out)
        if self._depthwise is not None:
            self._depthwise.run(x, target, num_threads)
            return
        if self._is_staged:
            run = self._run_spread if self._is_spread else self._run_staged
            for first in range(0, self.geometry.batch, self._images):
                images = slice(first, first + self._images)
                run(x[images], target[images], num_threads)
            return
        self._fill_edges(target)
        for part in self._parts:
            if part.plan is not None:
                part.plan(x[part.source], out=target[part.place], num_threads=num_threads)

    def repack(self, weight: np.ndarray, bias: np.ndarray | None = None) -> None:
        """Take another weight (C_in, C_out/groups, *kernel) and bias (C_out,); while no call is in progress.

        Raises
        ------
        ValueError
            If a shape is not the plan's.
        """
        self._keep_anew(weight, bias)
        if self._depthwise is not None:
            self._depthwise.repack(weight, bias)
            return
        kernel = self._transposed(weight)
        for part in self._parts:
            if part.plan is not None:
                part.plan.repack(phases.taps_of(kernel, part.phases), _tiled(bias, part.merged))
        self._edge = self._edge_of(bias)

    def _options(self) -> dict[str, Any]:
        names = ("geometry", "activation", "layout", "num_threads")
        return {"input_size": self._input_size, **{name: getattr(self, name) for name in names}}

    def retire(self) -> None:
        """Leave this plan's memory to others: it has done its work."""
        for plan in self._computing:
            plan.retire()
        self._workspaces.give_back()

    def explain(self) -> str:
        """What this plan does and why, in a few lines."""
        lines = [f"transposed of {self.geometry}: {self._count} phase(s)"]
        if self._depthwise is not None:
            lines.append("all of them together, by a kernel for depthwise convolutions of stride 2")
        for part in self._parts:
            pairs = zip(part.place[2:], part.merged, strict=True)
            start = ", ".join("all" if merged > 1 else str(place.start) for place, merged in pairs)
            lines.append(f"from ({start})  {'bias alone' if part.plan is None else repr(part.plan)}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"TransposedPlan({self.geometry}; {self._count} phase(s))"

    @property
    def _count(self) -> int:
        if self._depthwise is not None:
            return math.prod(map(len, self._axes))
        return sum(math.prod(part.merged) for part in self._parts)

    @property
    def _computing(self) -> tuple[Plan | DepthwiseTransposed, ...]:
        """What computes the phases."""
        return self.plans if self._depthwise is None else (self._depthwise,)

    def _depthwise_of(self, weight: np.ndarray, bias: np.ndarray | None) -> DepthwiseTransposed | None:
        """The kernel of its own that a depthwise problem may have."""
        if not depthwise_transposed.fits(self.geometry, kernels.active()):
            return None
        self._is_staged = False
        return DepthwiseTransposed(
            weight, bias, geometry=self.geometry, rectified=self.activation == "relu",
            num_threads=self.num_threads,
        )  # fmt: skip

    def _phases(self) -> list[list[Phase]]:
        """The phases of each axis, merged where that is faster.

        Phases of one tap are products with nothing to share but the reading of the input, and with those of
        the last axis merged they write runs of whole pixels in place, rows of the result. Phases of more
        taps share the transformed input; all of them merged, they are moved to their places afterwards.
        """
        geometry = self.geometry
        axes = list(
            zip(
                geometry.input_size, self._input_size, geometry.kernel_size, geometry.stride,
                geometry.dilation, (low for low, _ in geometry.padding), strict=True,
            )
        )  # fmt: skip
        separate = [phases.separate(*axis) for axis in axes]
        if geometry.groups > 1:
            return separate
        if geometry.kernel_size == geometry.stride:
            last = phases.merged(*axes[-1])
            whole = last is not None and not (last.place.start or geometry.input_size[-1] % last.merged)
            return [*separate[:-1], [last]] if whole else separate
        return separate if self._image_bytes > _MERGED_BYTES else self._merged(axes, separate)

    def _merged(self, axes: list, separate: list[list[Phase]]) -> list[list[Phase]]:
        """All phases of all axes merged; ``separate`` where that is faster."""
        geometry = self.geometry
        lanes = kernels.active().vector_bytes() // geometry.dtype.itemsize
        few = 2 * geometry.in_channels <= lanes
        if not few and any(k % s for k, s in zip(geometry.kernel_size, geometry.stride, strict=True)):
            return separate
        flat = [_STEPS if few else (1,)] * len(axes[-2:])
        choices = []
        for steps in product(*[(1,)] * len(axes[:-2]), *flat):
            axis_phases = [phases.merged(*axis, step) for axis, step in zip(axes, steps, strict=True)]
            if None not in axis_phases:
                choices.append([[phase] for phase in axis_phases])
        if few and max(geometry.stride) == 1 and geometry.multiplications < _FEW_MULTIPLICATIONS:
            return separate
        if few:
            # A vector holds the channels of several pixels, and a product is one for all of them.
            return min([separate, *choices], key=lambda choice: self._cost(choice, lanes))
        if not choices:
            return separate
        computed = math.prod(phase.count * phase.merged for (phase,) in choices[0])
        return separate if computed > _MOST_COMPUTED * math.prod(geometry.input_size) else choices[0]

    def _cost(self, axes: list[list[Phase]], lanes: int) -> float:
        """Time of direct products, in vectors; all phases of an axis are merged, or none."""
        channels = self.geometry.in_channels * math.prod(axis[0].merged for axis in axes)
        products = math.prod(sum(phase.products for phase in axis) for axis in axes)
        return products * (-(-channels // lanes) + _BROADCAST)

    @property
    def _image_bytes(self) -> int:
        return math.prod(self.geometry.input_shape[1:]) * self.geometry.dtype.itemsize

    def _images_at_once(self) -> int:
        """Images whose phases are in scratch memory together; divides the batch."""
        batch = self.geometry.batch
        most = max(1, min(batch, _MERGED_BYTES // self._image_bytes))
        return next(images for images in range(most, 0, -1) if batch % images == 0)

    @cached_property
    def _staged_bytes(self) -> tuple[int, int]:
        """Scratch memory for merged phases, and for a channels-last result; both in whole cache lines."""
        if not self._is_staged:
            return 0, 0
        moved = [plan.geometry.output_bytes for plan in self.plans if self._is_moved or self._is_spread]
        last = 0 if self._is_spread else self._images * self._image_bytes
        return tuple(-(-size // 64) * 64 for size in (max(moved, default=0), last))

    def _transposed(self, weight: np.ndarray) -> np.ndarray:
        """The weight as (C_out, C_in/groups, *kernel): each group's matrix transposed.

        Phases read it with a step; so that this is not element by element, and in groups the matrices are not
        copied so, their outputs lie together, or with one tap their inputs, which direct's form for planes
        takes as they are.
        """
        geometry = self.geometry
        dtype, shape = geometry.dtype, weight.swapaxes(0, 1).shape
        if geometry.groups == 1 < len(self._axes[-1]) and math.prod(shape[2:]) == 1:
            matrix = weight.reshape(1, *weight.shape[:2])
            return channels_last(matrix, dtype, self.num_threads).reshape(shape)
        if geometry.groups > 1 or len(self._axes[-1]) > 1:
            matrices = weight.reshape(geometry.groups, len(weight) // geometry.groups, -1)
            turned = channels_last(matrices, dtype, self.num_threads)
            return moved_first(turned.reshape(geometry.in_channels, *geometry.kernel_size, -1))
        return weight.swapaxes(0, 1)

    def _edge_of(self, bias: np.ndarray | None) -> np.ndarray:
        """The outputs (C_out, 1, ...) that no tap reaches."""
        geometry = self.geometry
        edge = np.zeros(geometry.in_channels) if bias is None else bias
        edge = np.maximum(edge, 0) if self.activation == "relu" else edge
        return edge.astype(geometry.dtype).reshape(-1, *[1] * geometry.spatial_rank)

    def _plan_parts(self, weight, bias, calls) -> Iterator[_Part]:
        """How to compute the phases, channels first."""
        geometry, whole = self.geometry, (slice(None), slice(None))
        kernel = self._transposed(weight)
        for chosen in product(*self._axes):
            place = (*whole, *(phase.place for phase in chosen))
            source = (*whole, *(phase.source for phase in chosen))
            if any(phase.taps is None for phase in chosen):
                yield _Part(place, source, None, chosen)
                continue
            taps = phases.taps_of(kernel, chosen)
            sizes = [phase.source.stop - phase.source.start for phase in chosen]
            inner = ConvGeometry.create(
                (self._images, geometry.out_channels, *sizes), taps.shape,
                stride=tuple(phase.step for phase in chosen),
                padding=tuple(phase.padding for phase in chosen),
                dilation=tuple(phase.dilation for phase in chosen), groups=geometry.groups,
                dtype=geometry.dtype,
            )  # fmt: skip
            prepared = design(inner, activation=self.activation, num_threads=self.num_threads, calls=calls)
            biases = _tiled(bias, [phase.merged for phase in chosen])
            yield _Part(place, source, Plan(prepared, taps, biases), chosen)

    def _fill_edges(self, target: np.ndarray) -> None:
        """Write the outputs that no tap reaches, and where there are any all others with them, in one run."""
        if self._unreached:
            target[...] = self._edge if self._edge.any() else 0

    def _run_staged(self, x: np.ndarray, target: np.ndarray, num_threads: int) -> None:
        """Some images x (n, C_in, *size) → target (n, C_out, *size), both of any strides."""
        moved_bytes, last_bytes = self._staged_bytes
        last = moved_last(target)
        in_place = last.flags.c_contiguous
        workspace = self._workspaces.take(moved_bytes + (0 if in_place else last_bytes))
        if not in_place:
            elements = workspace[moved_bytes:].view(target.dtype)
            last = elements[: target.size].reshape(last.shape)
        try:
            first = moved_first(last)
            self._fill_edges(first)
            for part in self._parts:
                if part.plan is None:
                    continue
                if not self._is_merged:
                    part.plan(x[part.source], out=first[part.place], num_threads=num_threads)
                elif self._is_shuffled:
                    skip = tuple(place.start or 0 for place in part.place[2:])
                    part.plan.shuffle(x[part.source], last, part.merged, skip, num_threads)
                elif self._is_moved:
                    shape = part.plan.geometry.output_shape
                    scratch = workspace.view(target.dtype)[: math.prod(shape)]
                    scratch = scratch.reshape(shape[0], *shape[2:], shape[1])
                    part.plan(x[part.source], out=moved_first(scratch), num_threads=num_threads)
                    _move(scratch, part, last, num_threads)
                else:
                    rows = last[:, *part.place[2:-1]]
                    runs = rows.reshape(*rows.shape[:-2], -1, part.merged[-1] * rows.shape[-1])
                    part.plan(x[part.source], out=moved_first(runs), num_threads=num_threads)
            if not in_place:
                store(last, target, num_threads)
        finally:
            self._workspaces.give(workspace)

    def _run_spread(self, x: np.ndarray, target: np.ndarray, num_threads: int) -> None:
        """Some images x (n, C_in, *size) → target (n, C_out, *size), of which one phase is reached."""
        part = next(part for part in self._parts if part.plan is not None)
        workspace = self._workspaces.take(sum(self._staged_bytes))
        try:
            last = is_channels_last(target)
            batch, channels, *size = part.plan.geometry.output_shape
            shape = (batch, *size, channels) if last else (batch, channels, *size)
            pixels = workspace.view(target.dtype)[: math.prod(shape)].reshape(shape)
            pixels = moved_first(pixels) if last else pixels
            part.plan(x[part.source], out=pixels, num_threads=num_threads)
            places = tuple(number for place in part.place[2:] for number in (place.start, place.step))
            kernels.active().spread_pixels(
                moved_last(pixels), self._edge.reshape(-1), places, moved_last(target),
                threads.for_elements(num_threads, target.size),
            )  # fmt: skip
        finally:
            self._workspaces.give(workspace)

    def _in_layout(self, batch: int, channels: int, *size: int) -> tuple[int, ...]:
        return (batch, channels, *size) if self._channels_first else (batch, *size, channels)

    def _channels_first_view(self, array: np.ndarray) -> np.ndarray:
        return array if self._channels_first else moved_first(array)

    def _new_output(self, x: np.ndarray) -> np.ndarray:
        if self._channels_first:
            return super()._new_output(x)
        return aligned_empty(self.output_shape, self.geometry.dtype)


def _tiled(bias: np.ndarray | None, merged: Sequence[int]) -> np.ndarray | None:
    """The bias of merged phases."""
    return None if bias is None else np.tile(bias, math.prod(merged))


def _move(scratch: np.ndarray, part: _Part, last: np.ndarray, num_threads: int) -> None:
    """Merged phases, pixels (n, *counts, *merged · C), to their places in an image (n, *size, C)."""
    *lead, width = part.merged
    channels = last.shape[-1]
    pixels = scratch.reshape(*scratch.shape[:-1], *lead, width * channels)
    rows = last.reshape(*last.shape[:-2], -1)
    *starts, skip = (place.start for place in part.place[2:])
    count = threads.for_elements(num_threads, last.size)
    for read, written in _places(last.shape[1:-2], tuple(lead), tuple(starts)):
        kernels.active().join_runs(pixels[read], rows[written], skip * channels, count)


@lru_cache(maxsize=256)
def _places(
    sizes: tuple[int, ...], steps: tuple[int, ...], starts: tuple[int, ...]
) -> list[tuple[tuple, tuple]]:
    """For each phase of all axes but the last: its pixels, and those of the image (n, *sizes, ...)."""
    places, spread = [], [np.newaxis] * (2 - len(steps))
    for phase in product(*map(range, steps)):
        read, written = [], []
        for size, step, start, skip in zip(sizes, steps, phase, starts, strict=True):
            # Output o is pixel o + skip of them all, of phase (o + skip) mod step.
            first = (start - skip) % step
            begin = (first + skip) // step
            read.append(slice(begin, begin + len(range(first, size, step))))
            written.append(slice(first, None, step))
        whole = slice(None)
        places.append(((whole, *spread, *read, whole, *phase), (whole, *spread, *written)))
    return places
