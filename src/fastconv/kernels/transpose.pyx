# Between planes and channels-last pixels, for the kernels that take whole channels-last arrays.
from cython.parallel cimport prange

cdef enum:
    # Of one task: what is read in runs of the one and written in runs of the other.
    SWAP_ROWS = 256
    SWAP_COLUMNS = 64


def swap_axes(
    const real[:, :, ::1] x,    # IN   (N, R, K)
    real[:, :, ::1] out,        # OUT  (N, K, R)
    int num_threads,
):
    cdef Py_ssize_t rows = x.shape[1], columns = x.shape[2], size = rows * columns
    cdef Py_ssize_t row_blocks = (rows + SWAP_ROWS - 1) // SWAP_ROWS
    cdef Py_ssize_t column_blocks = (columns + SWAP_COLUMNS - 1) // SWAP_COLUMNS
    cdef Py_ssize_t task, n, r, k
    if x.shape[0] == 0 or size == 0:
        return
    for task in prange(
        x.shape[0] * row_blocks * column_blocks, nogil=True, schedule="static", num_threads=num_threads
    ):
        n = task // (row_blocks * column_blocks)
        r = task // column_blocks % row_blocks * SWAP_ROWS
        k = task % column_blocks * SWAP_COLUMNS
        transpose(
            &x[n, r, k], columns, min(SWAP_ROWS, rows - r), min(SWAP_COLUMNS, columns - k),
            size - r * columns - k, &out[n, k, r], rows,
        )
