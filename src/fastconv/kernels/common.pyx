# What all kernel sources share: the element types.
from cython.parallel cimport prange, threadid
from libc.string cimport memcpy, memset

ctypedef fused real:
    float
    double
