"""The phases of a transposed convolution's stride: its outputs as convolutions of stride 1, axis by axis."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Phase(NamedTuple):
    """Every s-th output of one axis as a stride-1 convolution of the input.

    ``taps`` of the kernel contribute, dilated by ``dilation``, to the input's part ``source`` with
    ``padding`` around it; without ``taps`` nothing does. Or all of them at once, where ``merged`` is s:
    output j of the convolution then has s channels for one, which are s pixels side by side.

    Attributes
    ----------
    count : int
        Outputs of the convolution.
    place : slice
        Where the outputs belong; of merged ones, which of the count · s pixels are outputs.
    """

    count: int
    place: slice
    taps: slice | None
    source: slice = slice(None)
    padding: tuple[int, int] = (0, 0)
    dilation: int = 1
    merged: int = 1

    @classmethod
    def reading(cls, first, last, inputs, count, place, taps, dilation=1, merged=1) -> Phase:
        """The phase whose outputs read the positions ``first`` to ``last``, which may lie outside."""
        source = slice(max(0, first), min(inputs, last + 1))
        padding = max(0, -first), max(0, last + 1 - inputs)
        return cls(
            count, place, taps if source.start < source.stop else None, source, padding, dilation, merged
        )


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


def merged(outputs: int, inputs: int, kernel: int, stride: int, dilation: int, low: int) -> Phase | None:
    """All phases of one axis as one, where every one has k/s taps; None where they have not.

    Output i = s·j + b − p is y[s·j + b − p] = Σ_t x[j − t] w[s·t + b], with j from ⌊p/s⌋ on: all b read the
    same inputs.
    """
    if stride == 1:
        return separate(outputs, inputs, kernel, stride, dilation, low)[0]
    if dilation > 1 or kernel % stride:
        return None
    first, skip = divmod(low, stride)
    last = (low + outputs - 1) // stride
    place = slice(skip, skip + outputs)
    phase = Phase.reading(
        first - kernel // stride + 1, last, inputs, last + 1 - first, place, slice(None), merged=stride
    )
    return phase if phase.taps else None


def taps_of(weight: np.ndarray, phases: tuple[Phase, ...]) -> np.ndarray:
    """The kernel of a convolution that computes a phase of each axis, flipped.

    ``weight`` is (C_out, C_in/groups, *kernel); merged phases become output channels, of all axes before
    those of the weight.
    """
    rank = len(phases)
    taps = weight[(..., *(phase.taps for phase in phases))]
    split = [(size // phase.merged, phase.merged) for size, phase in zip(taps.shape[2:], phases, strict=True)]
    taps = taps.reshape(*taps.shape[:2], *(number for pair in split for number in pair))
    taps = taps.transpose(*range(3, 2 * rank + 2, 2), 0, 1, *range(2, 2 * rank + 2, 2))
    taps = np.flip(taps, range(taps.ndim - rank, taps.ndim))
    return taps.reshape(-1, weight.shape[1], *(size for size, _ in split))
