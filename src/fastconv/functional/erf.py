"""The complementary error function, in float64 to its last digits, by NumPy alone."""

from __future__ import annotations

import math

import numpy as np

# Rational Chebyshev approximations of W. J. Cody, "Rational Chebyshev Approximations for the Error Function",
# Math. Comp. 23 (1969): numerators and denominators, highest power first. Of erf(x)/x in x² for
# |x| ≤ 0.46875; of erfc(x)·exp(x²) in x up to 4; of (1/√π − x·erfc(x)·exp(x²))·x² in 1/x² beyond.
_SMALL = (
    (1.85777706184603153e-1, 3.16112374387056560, 1.13864154151050156e2, 3.77485237685302021e2,
     3.20937758913846947e3),
    (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3),
)  # fmt: skip
_MIDDLE = (
    (2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594, 6.61191906371416295e1,
     2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3,
     1.23033935479799725e3),
    (1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3,
     3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3),
)  # fmt: skip
_LARGE = (
    (1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1,
     1.60837851487422766e-2, 6.58749161529837803e-4),
    (1.0, 2.56852019228982242, 1.87295284992346725, 5.27905102951428412e-1, 6.05183413124413191e-2,
     2.33520497626869185e-3),
)  # fmt: skip
_SPLIT = (0.46875, 4.0)
# Beyond, erfc is below the smallest float64.
_LAST = 27.3


def _ratio(coefficients, x: np.ndarray) -> np.ndarray:
    top, bottom = (np.full_like(x, series[0]) for series in coefficients)
    for a, b in zip(*(series[1:] for series in coefficients), strict=True):
        top *= x
        top += a
        bottom *= x
        bottom += b
    top /= bottom
    return top


def _exp_minus_square(x: np.ndarray) -> np.ndarray:
    """``exp(−x²)``; x² alone would lose the digits that its rounding error becomes in the exponential."""
    head = np.trunc(x * 16) / 16
    return np.exp(-head * head) * np.exp(-(x - head) * (x + head))


def erfc(x) -> np.ndarray:
    """``1 − erf(x) = 2/√π · ∫ₓ^∞ exp(−t²) dt``, with a small relative error also where it is tiny.

    Parameters
    ----------
    x : array
        Of any dtype; computed in float64.

    Returns
    -------
    ndarray of float64, shape and memory format of ``x``
    """
    x = np.asarray(x, np.float64)
    size = np.minimum(np.abs(x), _LAST)
    result = np.full_like(x, np.nan)
    small = size <= _SPLIT[0]
    near = x[small]
    result[small] = 1 - near * _ratio(_SMALL, near * near)
    for part in ("middle", "large"):
        chosen = size > _SPLIT[1] if part == "large" else (size > _SPLIT[0]) & (size <= _SPLIT[1])
        y = size[chosen]
        if part == "large":
            inverse = 1 / (y * y)
            tail = (1 / math.sqrt(math.pi) - inverse * _ratio(_LARGE, inverse)) / y
        else:
            tail = _ratio(_MIDDLE, y)
        tail *= _exp_minus_square(y)
        result[chosen] = np.where(x[chosen] < 0, 2 - tail, tail)
    return result
