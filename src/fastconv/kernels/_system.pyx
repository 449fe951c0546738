"""What this machine and this build have: CPU features, compiler, OpenMP and its threads. Compiled for the
baseline CPU."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.ref cimport PyObject
from cython.parallel cimport parallel, threadid
from libc.stdint cimport uintptr_t

cdef extern from "team.h":
    pass

cdef extern from *:
    """
    /* __builtin_cpu_supports asks CPUID *and* XGETBV: a feature whose registers the operating
       system does not save counts as missing. It accepts string literals only. */
    #if defined(__x86_64__) && defined(__GNUC__)
    #define FASTCONV_CPU_HAS(feature) (__builtin_cpu_supports(feature) != 0)
    #define FASTCONV_CPU_INIT() __builtin_cpu_init()
    #else
    #define FASTCONV_CPU_HAS(feature) 0
    #define FASTCONV_CPU_INIT() (void)0
    #endif

    #if defined(__clang__)
    #define FASTCONV_COMPILER "clang " __clang_version__
    #elif defined(__GNUC__)
    #define FASTCONV_COMPILER "gcc " __VERSION__
    #else
    #define FASTCONV_COMPILER "unknown"
    #endif

    #ifdef _OPENMP
    #include <omp.h>
    #define FASTCONV_OPENMP _OPENMP
    #define FASTCONV_TEAM() omp_get_num_threads()
    #define FASTCONV_CPUS() omp_get_num_procs()
    #else
    #define FASTCONV_OPENMP 0
    #define FASTCONV_TEAM() 1
    #define FASTCONV_CPUS() 1
    #endif

    typedef struct { const char *name; int present; } fastconv_feature;
    enum { FASTCONV_FEATURES = 12 };
    static void fastconv_probe(fastconv_feature *feature)
    {
        FASTCONV_CPU_INIT();
        *feature++ = (fastconv_feature){"sse3", FASTCONV_CPU_HAS("sse3")};
        *feature++ = (fastconv_feature){"ssse3", FASTCONV_CPU_HAS("ssse3")};
        *feature++ = (fastconv_feature){"sse4.1", FASTCONV_CPU_HAS("sse4.1")};
        *feature++ = (fastconv_feature){"sse4.2", FASTCONV_CPU_HAS("sse4.2")};
        *feature++ = (fastconv_feature){"popcnt", FASTCONV_CPU_HAS("popcnt")};
        *feature++ = (fastconv_feature){"avx", FASTCONV_CPU_HAS("avx")};
        *feature++ = (fastconv_feature){"avx2", FASTCONV_CPU_HAS("avx2")};
        *feature++ = (fastconv_feature){"fma", FASTCONV_CPU_HAS("fma")};
        *feature++ = (fastconv_feature){"avx512f", FASTCONV_CPU_HAS("avx512f")};
        *feature++ = (fastconv_feature){"avx512bw", FASTCONV_CPU_HAS("avx512bw")};
        *feature++ = (fastconv_feature){"avx512dq", FASTCONV_CPU_HAS("avx512dq")};
        *feature++ = (fastconv_feature){"avx512vl", FASTCONV_CPU_HAS("avx512vl")};
    }
    """
    ctypedef struct fastconv_feature:
        const char *name
        bint present
    enum:
        FASTCONV_FEATURES
    const char *FASTCONV_COMPILER
    int FASTCONV_OPENMP
    int FASTCONV_TEAM() nogil
    int FASTCONV_CPUS() nogil
    void fastconv_probe(fastconv_feature *feature)


def cpu_features():
    """The instruction sets, of those that ``isa.py`` names, which the CPU and the OS support."""
    cdef fastconv_feature[FASTCONV_FEATURES] probed
    fastconv_probe(probed)
    return frozenset([entry.name.decode() for entry in probed if entry.present])


def compiler():
    """The compiler and version this build was made with."""
    return FASTCONV_COMPILER.decode()


def past_cache_line(memory):
    """How many bytes a buffer begins past the start of a cache line."""
    cdef Py_buffer view
    PyObject_GetBuffer(memory, &view, PyBUF_SIMPLE)
    PyBuffer_Release(&view)
    return <uintptr_t>view.buf % 64


def openmp_version():
    """OpenMP's version date (yyyymm) this build was made with; 0 without OpenMP."""
    return FASTCONV_OPENMP


def openmp_cpus():
    """How many CPUs OpenMP may use: those of the process also where it has bound this thread to one of them
    (``OMP_PROC_BIND``, ``OMP_PLACES``). 1 without OpenMP."""
    return FASTCONV_CPUS()


def in_threads(work, int count):
    """work(number, team) on each thread of a team of ``count``, or of what OpenMP gives, holding the GIL.

    An exception reaches the caller once all have ended.
    """
    cdef list errors = []
    cdef PyObject *borrowed_work = <PyObject *>work
    cdef PyObject *borrowed_errors = <PyObject *>errors
    with nogil, parallel(num_threads=count):
        _member(borrowed_work, borrowed_errors)
    if errors:
        raise errors[0]


# A function of its own: GCC cannot see that what Cython keeps for an exception in a parallel block is set.
cdef void _member(PyObject *work, PyObject *errors) noexcept with gil:
    try:
        (<object>work)(threadid(), FASTCONV_TEAM())
    except BaseException as error:
        (<list>errors).append(error)
