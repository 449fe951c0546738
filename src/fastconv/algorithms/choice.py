"""Which algorithm for which problem: one short pure function."""

from __future__ import annotations

import math

from fastconv.algorithms import base, fft, strassen, winograd
from fastconv.algorithms.base import Algorithm
from fastconv.geometry import ConvGeometry

# How many times fewer operations Winograd must promise, weights and transforms counted, to be chosen.
_MIN_WINOGRAD_SAVING = 1.1
# From about half of DEPTH channels on, direct sums one tap at a time as well, and kn2col needs no halo copy:
# ahead on the 1×7, strided and dilated layers of benchmarks/RESULTS.md.
_MIN_KN2COL_CHANNELS = 128
# A cautious gate: no layer of benchmarks/RESULTS.md below it gains from FFT. With one channel or very many
# the cost model alone would take it earlier, which nobody has validated.
_MIN_FFT_TAPS = 49


def allowed(
    geometry: ConvGeometry,
    algorithms: dict[str, Algorithm],
    rtol: float | None,
    weight_budget: int | None,
    vector_bytes: int,
) -> dict[str, Algorithm]:
    """The algorithms that can compute the problem within the caller's bounds.

    Raises
    ------
    ValueError
        If none can.
    """
    errors = {
        name: algorithm.error_bound(geometry)
        for name, algorithm in algorithms.items()
        if algorithm.unsupported(geometry) is None
        and (weight_budget is None or algorithm.transformed_bytes(geometry, vector_bytes) <= weight_budget)
    }
    usable = {name: algorithms[name] for name, error in errors.items() if rtol is None or error <= rtol}
    if not usable:
        within = "" if weight_budget is None else f" within a weight_budget of {weight_budget}"
        raise ValueError(
            f"rtol must be at least {min(errors.values()):.1e} for this problem{within}, got {rtol!r}"
        )
    return usable


def choose(
    geometry: ConvGeometry, algorithms: dict[str, Algorithm], rtol: float | None = None,
    weight_budget: int | None = None, calls: int | None = None, vector_bytes: int = 64,
) -> tuple[str, str]:  # fmt: skip
    """The algorithm to expect the fastest, and why.

    It looks at the problem and the width of vectors, never at the number of threads, so that the result's
    bits do not change with them.

    Parameters
    ----------
    geometry : ConvGeometry
    algorithms : dict of str to Algorithm
    rtol : float, optional
        Error budget: algorithms whose ``error_bound`` exceeds it are left out. Default: no budget.
    weight_budget : int, optional
        Bytes: algorithms whose ``transformed_bytes`` exceed it are left out. Default: no budget.
    calls : int, optional
        Calls that share the transformation of the weights. Default: so many that it costs nothing.
    vector_bytes : int, optional
        Of a vector. Default: AVX-512's.

    Returns
    -------
    name, reason : str

    Raises
    ------
    ValueError
        If no algorithm is within the budgets.
    """
    usable = allowed(geometry, algorithms, rtol, weight_budget, vector_bytes)
    kernel = "×".join(map(str, geometry.kernel_size))
    taps = math.prod(geometry.kernel_size)
    least = _MIN_WINOGRAD_SAVING if taps > 1 else strassen.MIN_SAVING
    if "winograd" in usable and winograd.saving(geometry, calls, vector_bytes) >= least:
        fewer = geometry.multiplications / max(1, usable["winograd"].multiplications(geometry, vector_bytes))
        form = f"tiles of a {kernel} kernel" if taps > 1 else "Strassen's product of halves"
        return "winograd", f"{form}: {fewer:.1f}× fewer multiplications"
    if taps >= _MIN_FFT_TAPS and "fft" in usable and fft.cost(geometry, calls) < _direct_cost(geometry):
        return "fft", f"a {kernel} kernel: the spectra take fewer operations than the {kernel} products"
    if "kn2col" in usable and taps > 1 and geometry.in_channels // geometry.groups >= _MIN_KN2COL_CHANNELS:
        return "kn2col", "its channels fill a product for each tap, and it copies no padding"
    if "direct" in usable:
        return "direct", "nothing does fewer operations here, and it moves the least memory"
    name = min(usable, key=lambda name: usable[name].multiplications(geometry))
    return name, "the only one within the error budget" if len(usable) == 1 else "the fewest multiplications"


def _direct_cost(geometry: ConvGeometry) -> float:
    """Multiply–adds of the direct form, counted as they fill its vectors."""
    group_out = geometry.out_channels // geometry.groups
    if geometry.groups > 1 and group_out < 16:
        return 2 * geometry.multiplications  # vectors run over several groups, at half the rate
    return geometry.multiplications * base.round_up(group_out, 16) / group_out
