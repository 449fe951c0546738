"""The one-dimensional transforms of Winograd's F(m, r), made from points, and what they cost in accuracy."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastconv.algorithms import base
from fastconv.geometry import ConvGeometry

# Interpolation points ±a beside 0 and ∞, by their number of pairs. They are within 3 % of those that
# minimise the growth of rounding errors (the amplification Σ_q A_iq² |B_q|² |G_q|² of Barabasz et al., arXiv
# 1803.10986): √½ and √2 lose several times less accuracy than 1 and 2, and all cost the same operations.
_POINTS = {
    0: (),
    1: (1.0,),
    2: (math.sqrt(0.5), math.sqrt(2.0)),
    3: (0.5, 1.0, 2.0),
    4: (0.4375, 0.8125, 1.21875, 2.25),
}
# Error growth over a direct sum of the channels along one axis, by its number of pairs; measured on N(0, 1)
# data for 1 to 512 channels.
_ERROR_GROWTH = {0: 1.0, 1: 1.25, 2: 2.25, 3: 5.0, 4: 10.0}
# Of some 3,000 small random problems the worst came to 1.05 times that growth; what is stated lies above it.
_ERROR_SLACK = 1.5

# Bytes of transformed input and products a thread keeps at most.
BLOCK_BYTES = 4 << 20
# Tiles whose products take as long as their weights take to come: a row of a panel, 128 bytes, is fetched
# from the L3 cache in the time of 10 to 14 tiles, while those before it are multiplied.
WEIGHT_TILES = 12
# The same for its transforms: a tile's input, or output, takes as long as so many channels of its products.
TRANSFORM_CHANNELS = 16
# And for the transformation of the weights: one of them takes as long as its products with so many tiles.
PACKING_TILES = 75


class Transforms(NamedTuple):
    """F(m, r) for the points 0, ±a₁, …, ∞: G, and the coefficients that microkernel.h's steps take."""

    weight: np.ndarray
    coefficient: np.ndarray


def evaluation(finite: np.ndarray, taps: int) -> np.ndarray:
    """The rows of G for finite points, in float64: (points, taps)."""
    differences = np.subtract.outer(finite, finite)
    np.fill_diagonal(differences, 1.0)
    return np.vander(finite, taps, increasing=True) / np.prod(differences, axis=1, keepdims=True)


@lru_cache(maxsize=16)
def one_axis(outputs: int, taps: int) -> Transforms:
    """The transforms of F(outputs, taps), in float64.

    Y = Aᵀ[(G g) ⊙ (Bᵀ d)] is the transposed Toom–Cook algorithm: row i of G evaluates g at point α_i and
    divides by Π_{j≠i} (α_i − α_j), row i of Bᵀ holds the coefficients of Π_{j≠i} (x − α_j), Aᵀ the powers
    of the points (Lavin and Gray, arXiv 1509.09308; Barabasz et al., arXiv 1803.10986, on the points).
    """
    if taps == 1:
        return Transforms(np.ones((1, 1)), np.zeros(1))
    a = np.array(_POINTS[(outputs + taps - 2) // 2])
    finite = np.concatenate([[0.0], np.stack([a, -a], axis=1).ravel()])
    weight = np.vstack([evaluation(finite, taps), np.eye(taps)[-1]])
    # np.poly gives Π (t − root), highest power first; the leading 1 is implied in the kernel.
    parts = [
        np.atleast_1d(np.poly(roots))[:0:-1]
        for roots in (a**2, *(np.delete(a, p) ** 2 for p in range(len(a))))
    ]
    parts += [np.array([point**i for i in range(8)]) for point in a]
    return Transforms(weight, np.concatenate(parts))


class Half(NamedTuple):
    """What kernels/winograd_half.h leaves of G: the rows' axis, the taps of the columns', a factor for both.

    ``drop``: for each point that is left out, the last one first, what V there is multiplied with to be taken
    off the others.
    """

    rows: np.ndarray
    columns: np.ndarray
    scale: np.ndarray
    drop: np.ndarray


@lru_cache(maxsize=2)
def half(stride: int) -> Half:
    """F(4, 3), or F(5, 2) for every second tap, with points 0, ±a, ±2a, ∞ and the rows of G undivided.

    The kernel makes G_w but for its divisors of what the diagonal ``columns`` makes of three taps.
    """
    a = _POINTS[2][0]
    finite = np.array([0, a, -a, 2 * a, -2 * a])
    taps = 4 - stride
    rows = np.vstack([np.vander(finite, taps, increasing=True), np.eye(taps)[-1]])
    divided = np.append(evaluation(finite, taps)[:, 0], 1.0)
    # What the kernel makes at 0, ±a, ±2a and ∞ of u, times these, is the value there.
    columns, factor = (1.0, 1.0, a), [1, 1, 1, 1, 1, 1 / a]
    if stride == 1:
        columns, factor = (0.5, a, a**2), [2, 1, 1, 2, 2, 1 / a**2]
    drop = np.zeros((4, 6))
    for row, last in enumerate(range(4, 0, -1)):
        divisor = np.prod(finite[last] - finite[last + 1 :])
        drop[row, :last] = np.prod(np.subtract.outer(finite[:last], finite[last + 1 :]), axis=1) / divisor
        drop[row, -1] = 1 / divisor
    return Half(rows, np.diag(columns), np.outer(divided, divided * factor), drop)


def depth(pairs: tuple[int, int]) -> int:
    """Channels summed at a time, for the pairs of points ±a of each axis.

    The transforms back to pixels amplify the rounding errors of these sums, so forms of many points take
    shorter ones: F(4×4, 5×5) then loses half as much accuracy, and 1-D forms 6 % of their speed.
    """
    if max(pairs) < 3:
        return base.DEPTH
    return 32 if min(pairs) else 64


def error_bound(pairs: tuple[int, int], terms: int, dtype: np.dtype) -> float:
    """As ``Algorithm.error_bound``, of sums of so many transformed terms."""
    growth = math.prod(_ERROR_GROWTH[count] for count in pairs)
    return _ERROR_SLACK * growth * base.summation_error(terms, dtype, depth(pairs))


def shares(geometry: ConvGeometry, panels: int, lines: int, across: int, threads: int) -> tuple[int, int]:
    """Parts to cut the lines of tiles and the panels of weights into, to occupy all threads.

    A thread that has some lines reads all the weights, and lines seldom share out evenly; one that has some
    panels reads a part of them but transforms all of the input. The shorter time counts, in tiles.
    """
    batch = max(geometry.batch, 1)
    by_lines = base.ceil_div(batch * lines, threads) * across + WEIGHT_TILES
    transformed = 1 + TRANSFORM_CHANNELS * threads * geometry.groups / geometry.out_channels
    by_panels = (batch * lines * across * transformed + WEIGHT_TILES) / threads
    if panels >= threads and by_panels < by_lines:
        return 1, threads
    return min(lines, base.ceil_div(threads, batch)), 1
