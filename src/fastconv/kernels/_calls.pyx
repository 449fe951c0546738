"""Calls of kernels: their threads, and the short way from a plan to its kernel, on which all that is the same
each time is kept in C. Compiled for the baseline CPU."""

cimport cython
from cpython.buffer cimport PyBUF_STRIDED_RO, PyBuffer_Release, PyObject_GetBuffer
from cpython.ref cimport PyObject
from libc.stdint cimport uintptr_t

cdef extern from "team.h":
    pass

cdef extern from *:
    """
    #if defined(__linux__) && !defined(_GNU_SOURCE)
    #define _GNU_SOURCE /* sched_getcpu, CPU_CLR */
    #endif
    #include <sched.h>

    /* Keeps a team's threads off the CPU of the thread that calls them. A sleeping thread is often woken on
       the CPU of its waker, which then spins, waiting for it, until the next tick of the scheduler: 4 ms.
       The others' affinity is all that changes, and only when the caller has moved or its team has grown.
       Whoever binds threads by OpenMP's own settings is left alone. */
    #if defined(_OPENMP) && defined(__linux__)
    static __thread int fastconv_caller_cpu = -1, fastconv_team_size;
    static int fastconv_is_spread(int count)
    {
        const int cpu = sched_getcpu();
        const int known = cpu == fastconv_caller_cpu && count <= fastconv_team_size;
        fastconv_caller_cpu = cpu;
        fastconv_team_size = count; /* a smaller team ends the others, which are new when it grows again */
        return known || cpu < 0;
    }
    static void fastconv_spread(int count)
    {
        cpu_set_t others;
        if (omp_get_proc_bind() != omp_proc_bind_false)
            return;
        if (sched_getaffinity(0, sizeof others, &others) != 0)
            return;
        if (CPU_COUNT(&others) >= count)
            CPU_CLR(fastconv_caller_cpu, &others);
        #pragma omp parallel num_threads(count)
        if (omp_get_thread_num() != 0)
            sched_setaffinity(0, sizeof others, &others);
    }
    #else
    static int fastconv_is_spread(int count) { return count > 0; }
    static void fastconv_spread(int count) { (void)count; }
    #endif
    """
    bint fastconv_is_spread(int count)
    void fastconv_spread(int count) nogil

cdef extern from "Python.h":
    object PyObject_Vectorcall(object function, PyObject **arguments, size_t count, PyObject *names)

cdef enum:
    AXES = 4
    ARGUMENTS = 32

# The largest team of a shortcut; see limit_threads.
cdef int most_threads = 1 << 10


cpdef spread_threads(int count):
    """Keep the other threads of this thread's teams of ``count`` off the CPU it runs on."""
    if not fastconv_is_spread(count):
        with nogil:
            fastconv_spread(count)


def limit_threads(int count):
    """From now on no shortcut for more than ``count`` threads is taken: a forked child has but one."""
    global most_threads
    most_threads = count


@cython.final
@cython.no_gc
@cython.freelist(8)
cdef class Pixels:
    """The (N, H, W, C) view of an array that a kernel is called with, for as long as that array lives."""

    cdef Py_ssize_t[AXES] shape
    cdef Py_ssize_t[AXES] strides
    cdef Py_ssize_t itemsize, bytes
    cdef void *data
    cdef char[2] format
    cdef bint readonly

    def __getbuffer__(self, Py_buffer *view, int flags):
        view.buf, view.obj, view.len, view.readonly = self.data, self, self.bytes, self.readonly
        view.format, view.itemsize, view.ndim = self.format, self.itemsize, AXES
        view.shape, view.strides, view.suboffsets, view.internal = self.shape, self.strides, NULL, NULL


@cython.final
cdef class KernelCall:
    """A compiled function of x, what comes ``before`` out, out, workspace, and what comes ``after`` them."""

    cdef object kernel
    cdef tuple arguments
    cdef Py_ssize_t out

    def __cinit__(self, kernel, tuple before, tuple after):
        self.kernel, self.out = kernel, 1 + len(before)
        self.arguments = (None, *before, None, None, *after)
        assert len(self.arguments) <= ARGUMENTS

    def __call__(self, x, out, workspace):
        self.run(x, out, workspace)

    cdef run(self, x, out, workspace):
        cdef PyObject *arguments[ARGUMENTS]
        cdef Py_ssize_t i, count = len(self.arguments)
        for i in range(count):
            arguments[i] = <PyObject *>self.arguments[i]
        arguments[0], arguments[self.out], arguments[self.out + 1] = (
            <PyObject *>x, <PyObject *>out, <PyObject *>workspace
        )
        PyObject_Vectorcall(self.kernel, arguments, count, NULL)


cdef class _Form:
    """Shape, strides and type of an array as some call had it, and its axes as a kernel takes them."""

    cdef Py_ssize_t[AXES] shape
    cdef Py_ssize_t[AXES] strides
    cdef Py_ssize_t[AXES] axis
    cdef Py_ssize_t itemsize, bytes, low, high
    cdef int ndim
    cdef char format
    cdef object type, dtype

    def __cinit__(self, array, tuple axes):
        cdef Py_ssize_t i, reach
        self.type, self.dtype, self.format = type(array), array.dtype, ord(array.dtype.char)
        self.ndim, self.itemsize, self.bytes = array.ndim, array.itemsize, array.nbytes
        self.low, self.high = 0, array.itemsize
        for i in range(self.ndim):
            self.shape[i], self.strides[i] = array.shape[i], array.strides[i]
            reach = (self.shape[i] - 1) * self.strides[i]
            if reach < 0:
                self.low += reach
            else:
                self.high += reach
        for i in range(AXES):
            self.axis[i] = axes[i]

    cdef Pixels taken(self, array, bint written):
        """The array as a kernel takes it; None where it is not of this form."""
        cdef Py_buffer view
        cdef Pixels pixels
        cdef Py_ssize_t i
        if type(array) is not self.type or array.dtype is not self.dtype:
            return None
        PyObject_GetBuffer(array, &view, PyBUF_STRIDED_RO)
        cdef bint same = (
            view.ndim == self.ndim and <uintptr_t>view.buf % self.itemsize == 0
            and not (written and view.readonly)
        )
        for i in range(self.ndim):
            same = same and view.shape[i] == self.shape[i] and view.strides[i] == self.strides[i]
        PyBuffer_Release(&view)
        if not same:
            return None
        pixels = Pixels.__new__(Pixels)
        pixels.data, pixels.readonly = view.buf, not written
        pixels.itemsize, pixels.bytes = self.itemsize, self.bytes
        pixels.format[0], pixels.format[1] = self.format, 0
        for i in range(AXES):
            if self.axis[i] < 0:
                pixels.shape[i], pixels.strides[i] = 1, 0
            else:
                pixels.shape[i], pixels.strides[i] = self.shape[self.axis[i]], self.strides[self.axis[i]]
        return pixels


def never(x, out, num_threads, accumulate):
    """``repeat`` of no shortcut."""
    return False


@cython.final
cdef class Shortcut:
    """A call that was made once, for arrays like those it was made with.

    Parameters
    ----------
    call : KernelCall
    x, out : ndarray
        The arrays of that call, which passed all checks.
    axes : tuple of int
        Their axes that a kernel takes as (N, H, W, C); −1 for one that is not theirs.
    workspaces : Workspaces
        Where its scratch memory is from.
    elements : int
        How much of it.
    team : int
        Its threads.
    """

    cdef KernelCall call
    cdef _Form source, target
    cdef object workspaces, elements, free
    cdef int team

    def __cinit__(self, KernelCall call, x, out, tuple axes, workspaces, elements, int team):
        self.call, self.source, self.target = call, _Form(x, axes), _Form(out, axes)
        self.workspaces, self.elements, self.free = workspaces, elements, workspaces.free(elements)
        self.team = team

    def repeat(self, x, out, num_threads, bint accumulate):
        """Compute x → out; False where it was not: with options, or for arrays of another form."""
        cdef Pixels source, target
        if num_threads is not None or accumulate or self.team > most_threads:
            return False
        source = self.source.taken(x, False)
        if source is None:
            return False
        target = self.target.taken(out, True)
        if target is None:
            return False
        if (  # they overlap
            <char *>source.data + self.source.low < <char *>target.data + self.target.high
            and <char *>target.data + self.target.low < <char *>source.data + self.source.high
        ):
            return False
        if self.team > 1:
            spread_threads(self.team)
        try:
            workspace = self.free.pop()
        except IndexError:
            workspace = self.workspaces.take(self.elements)
        try:
            self.call.run(source, target, workspace)
        finally:
            self.free.append(workspace)
        return True
