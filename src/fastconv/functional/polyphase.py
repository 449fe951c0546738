"""TransposedPlan: a transposed convolution prepared once, as the phases of its stride."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np

from fastconv import checks, threads
from fastconv.geometry import ConvGeometry
from fastconv.layout import empty, moved_first
from fastconv.memory import aligned_empty
from fastconv.plan import ACTIVATIONS, LAYOUTS, Plan, design


class _AxisPhase(NamedTuple):
    """Every s-th output of one axis, from ``place.start`` on, as a stride-1 convolution of the input.

    ``taps`` of the kernel contribute, dilated by ``dilation``, to the input's part ``source`` with
    ``padding`` around it; without ``taps`` nothing does.
    """

    place: slice
    taps: slice | None
    source: slice = slice(None)
    padding: tuple[int, int] = (0, 0)
    dilation: int = 1


def _axis_phases(outputs: int, inputs: int, kernel: int, stride: int, dilation: int, low: int) -> list:
    """The phases of one axis with ``outputs`` pixels y[i] = Σ x[o] w[u] over o·s + u·d − p = i.

    For i = a + s·j that is u·d ≡ a + p (mod s): with g = gcd(s, d), either no u at all or every (s/g)-th one
    from some u₀ on, u = u₀ + t·s/g, and then o = j + (a + p − u₀·d)/s − t·d/g.
    """
    phases = []
    every, spread = stride // math.gcd(stride, dilation), dilation // math.gcd(stride, dilation)
    for start in range(min(stride, outputs)):
        place = slice(start, None, stride)
        first = next(
            (u for u in range(min(every, kernel)) if (u * dilation - start - low) % stride == 0), None
        )
        if first is None:
            phases.append(_AxisPhase(place, None))
            continue
        span = (kernel - 1 - first) // every * spread
        shift = (start + low - first * dilation) // stride
        count = -(-(outputs - start) // stride)
        pads = span - shift, count + shift - inputs
        source = slice(max(0, -pads[0]), inputs - max(0, -pads[1]))
        taps = slice(first, None, every) if source.start < source.stop else None
        phases.append(_AxisPhase(place, taps, source, (max(0, pads[0]), max(0, pads[1])), spread))
    return phases


class TransposedPlan:
    """A prepared transposed convolution; ``plan(x)`` computes it.

    Made by :func:`fastconv.plan_conv_transpose2d` and its 1-D and 3-D kin. Its output's phases, every s-th
    pixel of each axis, are convolutions of stride 1 with a part of the kernel's taps, each by the algorithm
    that suits it and stored where it belongs: no zeros are stuffed into the input and no columns are added
    up (Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", arXiv 1603.07285, section
    4, for the arithmetic; the polyphase decomposition of a multirate filter for the computation).

    Attributes
    ----------
    geometry : ConvGeometry
        Of the convolution that this is the transposed of: its ``output_size`` is this one's input.
    plans : tuple of Plan
        One for each phase that any tap of the kernel reaches.
    num_threads : int
        Threads a call uses unless it is told otherwise; they never change the result.
    """

    def __init__(
        self, geometry: ConvGeometry, weight: np.ndarray, bias: np.ndarray | None = None, *,
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
        self._phases = tuple(self._plan_phases(weight, bias, activation, calls))
        edge = np.zeros(geometry.in_channels) if bias is None else bias
        edge = np.maximum(edge, 0) if activation == "relu" else edge
        self._edge = edge.astype(geometry.dtype).reshape(-1, *[1] * geometry.spatial_rank)

    @property
    def plans(self) -> tuple[Plan, ...]:
        return tuple(plan for _, _, plan in self._phases if plan is not None)

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed weights."""
        return sum(plan.packed_bytes for plan in self.plans)

    @property
    def workspace_bytes(self) -> int:
        """Bytes of scratch memory; each phase keeps its own."""
        return sum(plan.workspace_bytes for plan in self.plans)

    @property
    def multiplications(self) -> int:
        """Multiplications of one call."""
        return sum(plan.multiplications for plan in self.plans)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of ``x`` in this plan's layout."""
        return self._in_layout(self.geometry.batch, self.geometry.out_channels, *self._input_size)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the result in this plan's layout."""
        return self._in_layout(*self.geometry.input_shape)

    def __call__(self, x, out: np.ndarray | None = None, num_threads: int | None = None) -> np.ndarray:
        """Convolve ``x``.

        Parameters
        ----------
        x : array of ``input_shape``, float16 or the plan's dtype
            Any strides.
        out : array of ``output_shape`` and the plan's dtype, optional
            Where to write the result; any strides.
        num_threads : int, optional
            Default: the plan's.

        Returns
        -------
        ndarray of ``output_shape``
            ``out`` where it was given; else a new array, channels-last in memory where ``x`` is.
        """
        dtype = self.geometry.dtype
        x = checks.planned_array("x", x, self.input_shape, dtype)
        count = threads.team(self.num_threads if num_threads is None else num_threads)
        result = (
            self._new_output(x) if out is None else checks.output_array("out", out, self.output_shape, dtype)
        )
        x = checks.kernel_ready(x, dtype)
        if out is not None and np.may_share_memory(x, out):
            x = x.copy(order="K")
        if self.geometry.batch == 0:
            return result
        x, target = self._channels_first_view(x), self._channels_first_view(result)
        for place, source, plan in self._phases:
            if plan is None:
                target[place] = self._edge
            else:
                plan(x[source], out=target[place], num_threads=count)
        return result

    def retire(self) -> None:
        """Leave this plan's memory to others: it has done its work."""
        for _, _, plan in self._phases:
            if plan is not None:
                plan.retire()

    def explain(self) -> str:
        """What this plan does and why, in a few lines."""
        lines = [f"transposed of {self.geometry}: {len(self._phases)} phase(s)"]
        for place, _, plan in self._phases:
            start = ", ".join(str(part.start) for part in place[2:])
            lines.append(f"from ({start})  {'bias alone' if plan is None else repr(plan)}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"TransposedPlan({self.geometry}; {len(self._phases)} phase(s))"

    def _plan_phases(self, weight, bias, activation, calls) -> Iterator[tuple[tuple, tuple, Plan | None]]:
        """(part of the output, part of the input, how to compute it) for each phase, channels first."""
        geometry, whole = self.geometry, (slice(None), slice(None))
        axes = [
            _axis_phases(*numbers)
            for numbers in zip(
                geometry.input_size, self._input_size, geometry.kernel_size, geometry.stride,
                geometry.dilation, (low for low, _ in geometry.padding), strict=True,
            )
        ]  # fmt: skip
        group_out = geometry.out_channels // geometry.groups
        # (groups, C_in/groups, C_out/groups, *kernel): each group's matrix transposed.
        kernel = weight.reshape(geometry.groups, group_out, *weight.shape[1:]).swapaxes(1, 2)
        for phases in product(*axes):
            place = (*whole, *(phase.place for phase in phases))
            source = (*whole, *(phase.source for phase in phases))
            if any(phase.taps is None for phase in phases):
                yield place, source, None
                continue
            taps = kernel[(..., *(phase.taps for phase in phases))]
            taps = np.flip(taps, range(3, taps.ndim)).reshape(geometry.in_channels, *taps.shape[2:])
            sizes = [phase.source.stop - phase.source.start for phase in phases]
            inner = ConvGeometry.create(
                (geometry.batch, geometry.out_channels, *sizes), taps.shape,
                padding=tuple(phase.padding for phase in phases),
                dilation=tuple(phase.dilation for phase in phases), groups=geometry.groups,
                dtype=geometry.dtype,
            )  # fmt: skip
            yield (
                place,
                source,
                Plan(
                    design(inner, activation=activation, num_threads=self.num_threads, calls=calls),
                    taps,
                    bias,
                ),
            )

    def _in_layout(self, batch: int, channels: int, *size: int) -> tuple[int, ...]:
        return (batch, channels, *size) if self._channels_first else (batch, *size, channels)

    def _channels_first_view(self, array: np.ndarray) -> np.ndarray:
        return array if self._channels_first else moved_first(array)

    def _new_output(self, x: np.ndarray) -> np.ndarray:
        if self._channels_first:
            return empty(self.output_shape, self.geometry.dtype, x)
        return aligned_empty(self.output_shape, self.geometry.dtype)
