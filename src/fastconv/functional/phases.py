"""The phases of a transposed convolution's stride: its outputs as convolutions of stride 1, axis by axis."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


class Phase(NamedTuple):
    """Every s-th output of one axis as a stride-1 convolution of the input.

    ``taps`` of the kernel contribute, dilated by ``dilation``, to the input's part ``source`` with
    ``padding`` around it; without ``taps`` nothing does. Or all of them at once, where ``merged`` > 1: output
    j of the convolution then has so many channels for one, which are ``step`` · s pixels side by side.

    Attributes
    ----------
    count : int
        Outputs of the convolution.
    place : slice
        Where the outputs belong; of merged ones, which of the count · merged pixels are outputs.
    step : int
        The convolution's stride.
    """

    count: int
    place: slice
    taps: slice | None
    source: slice = slice(None)
    padding: tuple[int, int] = (0, 0)
    dilation: int = 1
    merged: int = 1
    step: int = 1

    @classmethod
    def reading(cls, first, last, inputs, count, place, taps, dilation=1, merged=1, step=1) -> Phase:
        """The phase whose outputs read the positions ``first`` to ``last``, which may lie outside."""
        source = slice(max(0, first), min(inputs, last + 1))
        padding = max(0, -first), max(0, last + 1 - inputs)
        taps = taps if source.start < source.stop else None
        return cls(count, place, taps, source, padding, dilation, merged, step)

    @property
    def products(self) -> int:
        """Outputs times taps of the convolution's kernel."""
        if self.taps is None:
            return 0
        covered = self.source.stop - self.source.start + sum(self.padding)
        return self.count * ((covered - 1 - (self.count - 1) * self.step) // self.dilation + 1)


def separate(outputs: int, inputs: int, kernel: int, stride: int, dilation: int, low: int) -> list[Phase]:
    """The phases of one axis with ``outputs`` pixels y[i] = Σ x[o] w[u] over o·s + u·d − p = i.

    For i = a + s·j that is u·d ≡ a + p (mod s): with g = gcd(s, d), either no u at all or every (s/g)-th one
    from some u₀ on, u = u₀ + t·s/g, and then o = j + (a + p − u₀·d)/s − t·d/g.
    """
    phases = []
    every, spread = stride // math.gcd(stride, dilation), dilation // math.gcd(stride, dilation)
    for start in range(min(stride, outputs)):
        place, count = slice(start, None, stride), -(-(outputs - start) // stride)
        tap = next((u for u in range(min(every, kernel)) if (u * dilation - start - low) % stride == 0), None)
        if tap is None:
            phases.append(Phase(count, place, None))
            continue
        span = (kernel - 1 - tap) // every * spread
        shift = (start + low - tap * dilation) // stride
        taps = slice(tap, None, every)
        phases.append(Phase.reading(shift - span, shift + count - 1, inputs, count, place, taps, spread))
    return phases


def merged(
    outputs: int, inputs: int, kernel: int, stride: int, dilation: int, low: int, step: int = 1
) -> Phase | None:
    """All phases of one axis as one, a block of B = ``step`` · s outputs at a time; None if it is dilated.

    With p = s·z + r, output B·j + b − r is Σ_q x[step·j + z + q] w[b − s·q] over the q for which w has a tap:
    for all b together those from −⌊(k − 1)/s⌋ to step − 1. Where a b has fewer taps the others are zero.
    """
    block = step * stride
    if block == 1:
        return separate(outputs, inputs, kernel, stride, dilation, low)[0]
    if dilation > 1:
        return None
    shift, skip = divmod(low, stride)
    last = (skip + outputs - 1) // block
    place = slice(skip, skip + outputs)
    phase = Phase.reading(
        shift - (kernel - 1) // stride, step * last + shift + step - 1, inputs, last + 1, place, slice(None),
        merged=block, step=step,
    )  # fmt: skip
    return phase if phase.taps else None


def taps_of(weight: np.ndarray, phases: tuple[Phase, ...]) -> np.ndarray:
    """The kernel of a convolution that computes a phase of each axis, flipped.

    ``weight`` is (C_out, C_in/groups, *kernel); merged phases become output channels, of all axes before
    those of the weight.
    """
    rank = len(phases)
    taps = weight[(..., *(phase.taps for phase in phases))]
    strides = [phase.merged // phase.step for phase in phases]
    if any(phase.merged > 1 for phase in phases):
        taps = sliding_window_view(
            _with_margins(taps, phases, strides),
            [phase.merged for phase in phases],
            tuple(range(2, rank + 2)),
        )
        taps = taps.transpose(*range(rank + 2, 2 * rank + 2), *range(rank + 2))
    taps = taps[(..., *(slice(None, None, -stride) for stride in strides))]
    if taps.ndim == rank + 2:
        return taps
    # Copied with its outputs innermost, as `weight` has them where it is large, so that whole runs are.
    shape, outputs = taps.shape[-rank - 1 :], tuple(range(taps.ndim - rank - 1))
    inputs = taps.transpose(*range(len(outputs), taps.ndim), *outputs).reshape(*shape, -1)
    return np.moveaxis(inputs, -1, 0)


def _with_margins(taps: np.ndarray, phases: tuple[Phase, ...], strides: list[int]) -> np.ndarray:
    """``taps`` with the zeros that merged phases see around them; as they are where there are none."""
    before = [stride * (phase.step - 1) for phase, stride in zip(phases, strides, strict=True)]
    size = [
        stride * ((kernel - 1) // stride + phase.step - 1) + phase.merged
        for kernel, stride, phase in zip(taps.shape[2:], strides, phases, strict=True)
    ]
    if tuple(size) == taps.shape[2:]:
        return taps
    whole = np.zeros((*taps.shape[:2], *size), taps.dtype)
    kernel = zip(before, taps.shape[2:], strict=True)
    whole[(..., *(slice(start, start + count) for start, count in kernel))] = taps
    return whole
