"""The one-dimensional transforms of Winograd's F(m, r), made from points, and what they cost in accuracy."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastconv.algorithms import base

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


@lru_cache(maxsize=1)
def half() -> tuple[np.ndarray, np.ndarray]:
    """What is left of F(4, 3) for others where kernels/winograd_half.h transforms the weights: D, and scale.

    With points 0, ±a, ±2a, ∞ and D = diag(1, a, a²), G = diag(scale) · T · D, and the kernel applies T.
    """
    matrix = _POINTS[2][0] ** np.arange(3.0)
    rows = one_axis(4, 3).weight
    return np.diag(matrix), np.append(rows[:-1, 0], 1 / matrix[-1])


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
