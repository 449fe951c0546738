"""Five ways to compute a convolution, behind one small interface.

    conv2d / Plan
        │  choose(geometry) or the caller's name
        ▼
    ALGORITHMS ─┬─ direct     implicit GEMM on the input where it lies; depthwise form
                ├─ im2col     patches lowered panel by panel, then GEMM
                ├─ kn2col     k² shifted 1×1 products
                ├─ winograd   F(m, r) on each axis, by blocks of taps; 1×1: Strassen
                └─ fft        numpy.fft, overlap-save
        │  pack(weight) and bind(strides) once, call(x) often
        ▼
    kernels (one compiled module for each instruction-set level)

A sixth algorithm is one more module and one more line here.
"""

from fastconv.algorithms.base import Algorithm, Epilogue, Packed
from fastconv.algorithms.choice import allowed, choose
from fastconv.algorithms.direct import Direct
from fastconv.algorithms.fft import Fft
from fastconv.algorithms.im2col import Im2col
from fastconv.algorithms.kn2col import Kn2col
from fastconv.algorithms.winograd import Winograd

ALGORITHMS: dict[str, Algorithm] = {
    algorithm.name: algorithm for algorithm in (Direct(), Im2col(), Kn2col(), Winograd(), Fft())
}

__all__ = ["ALGORITHMS", "Algorithm", "Epilogue", "Packed", "allowed", "choose"]
