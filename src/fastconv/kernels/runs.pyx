# Runs of elements that are apart, joined to rows: merged phases of a transposed convolution.
from cython.parallel cimport prange
from libc.string cimport memcpy


cdef void join_row(
    const real *x, Py_ssize_t stride, Py_ssize_t run, Py_ssize_t skip, real *out, Py_ssize_t length
) noexcept nogil:
    cdef Py_ssize_t count
    while length > 0:
        count = min(run - skip, length)
        memcpy(out, x + skip, count * sizeof(real))
        x += stride
        out += count
        length -= count
        skip = 0


def join_runs(
    const real[:, :, :, :, :] x,    # IN   (N, D, H, J, run), elements of a run side by side
    real[:, :, :, :] out,           # OUT  (N, D, H, length): of each row J · run the elements from `skip` on
    Py_ssize_t skip, int num_threads,
):
    """`skip` is less than a run."""
    cdef Py_ssize_t row, n, d, h, heights = out.shape[2], rows = out.shape[1] * heights
    for row in prange(out.shape[0] * rows, nogil=True, schedule="static", num_threads=num_threads):
        n = row // rows
        d = row // heights % out.shape[1]
        h = row % heights
        join_row(
            &x[n, d, h, 0, 0], x.strides[3] // <Py_ssize_t>sizeof(real), x.shape[4], skip, &out[n, d, h, 0],
            out.shape[3],
        )
