# Batch normalisation of channels-last pixels, (M, C), forward and backward.
#
# Sums over the M pixels are taken block by block of rows. A block's own sums are of float in groups of
# SUM_ROWS rows, the groups are added up in double; the caller adds up the blocks, in double, in order.
# The blocks do not depend on the number of threads, so neither does any bit.
from cython.parallel cimport prange
from libc.string cimport memset

cdef extern from "microkernel.h" nogil:
    void add_rows_f32(Py_ssize_t rows, const float *x, Py_ssize_t channels, double *total) noexcept
    void add_rows_f64(Py_ssize_t rows, const double *x, Py_ssize_t channels, double *total) noexcept
    void add_products_f32(
        Py_ssize_t rows, const float *u, const float *v, const float *mean, Py_ssize_t channels, double *total
    ) noexcept
    void add_products_f64(
        Py_ssize_t rows, const double *u, const double *v, const double *mean, Py_ssize_t channels,
        double *total) noexcept
    void add_squares_f32(
        Py_ssize_t rows, const float *x, const double *mean, Py_ssize_t channels, double *total) noexcept
    void add_squares_f64(
        Py_ssize_t rows, const double *x, const double *mean, Py_ssize_t channels, double *total) noexcept
    void scale_rows_f32(
        Py_ssize_t rows, const float *x, const float *scale, const float *shift, float *out,
        Py_ssize_t channels) noexcept
    void scale_rows_f64(
        Py_ssize_t rows, const double *x, const double *scale, const double *shift, double *out,
        Py_ssize_t channels) noexcept
    void combine_rows_f32(
        Py_ssize_t rows, const float *g, const float *x, const float *factor, const float *mean,
        const float *slope, const float *shift, float *out, Py_ssize_t channels) noexcept
    void combine_rows_f64(
        Py_ssize_t rows, const double *g, const double *x, const double *factor, const double *mean,
        const double *slope, const double *shift, double *out, Py_ssize_t channels) noexcept


cdef void block_moments(
    const real *x, Py_ssize_t rows, Py_ssize_t channels, double *mean, double *squares
) noexcept nogil:
    cdef Py_ssize_t c
    memset(mean, 0, channels * sizeof(double))
    memset(squares, 0, channels * sizeof(double))
    if real is float:
        add_rows_f32(rows, x, channels, mean)
    else:
        add_rows_f64(rows, x, channels, mean)
    for c in range(channels):
        mean[c] = mean[c] / rows
    if real is float:
        add_squares_f32(rows, x, mean, channels, squares)
    else:
        add_squares_f64(rows, x, mean, channels, squares)


cdef void block_products(
    const real *grad, const real *x, const real *mean, Py_ssize_t rows, Py_ssize_t channels,
    double *total, double *products
) noexcept nogil:
    memset(total, 0, channels * sizeof(double))
    memset(products, 0, channels * sizeof(double))
    if real is float:
        add_rows_f32(rows, grad, channels, total)
        add_products_f32(rows, grad, x, mean, channels, products)
    else:
        add_rows_f64(rows, grad, channels, total)
        add_products_f64(rows, grad, x, mean, channels, products)


def channel_moments(
    const real[:, ::1] x,       # IN   (M, C)
    double[:, ::1] mean,        # OUT  (blocks, C): of the rows of each block
    double[:, ::1] squares,     # OUT  (blocks, C): Σ (x − mean)² of the block
    Py_ssize_t block, int num_threads,
):
    """Moments of blocks of `block` rows, the last of what is left."""
    cdef Py_ssize_t i, rows = x.shape[0], channels = x.shape[1]
    for i in prange(mean.shape[0], nogil=True, schedule="static", num_threads=num_threads):
        block_moments(
            &x[i * block, 0], min(block, rows - i * block), channels, &mean[i, 0], &squares[i, 0]
        )


def channel_products(
    const real[:, ::1] grad,    # IN   (M, C)
    const real[:, ::1] x,       # IN   (M, C)
    const real[::1] mean,       # IN   (C)
    double[:, ::1] total,       # OUT  (blocks, C): Σ grad of each block
    double[:, ::1] products,    # OUT  (blocks, C): Σ grad · (x − mean)
    Py_ssize_t block, int num_threads,
):
    cdef Py_ssize_t i, rows = x.shape[0], channels = x.shape[1]
    for i in prange(total.shape[0], nogil=True, schedule="static", num_threads=num_threads):
        block_products(
            &grad[i * block, 0], &x[i * block, 0], &mean[0], min(block, rows - i * block), channels,
            &total[i, 0], &products[i, 0],
        )


# The maps follow a pass of sums over the same rows. A thread takes its share of them from the end, which the
# sums have left in its cache.


def scale_shift(
    const real[:, ::1] x, const real[::1] scale, const real[::1] shift,
    real[:, ::1] out,           # OUT  (M, C): x · scale + shift
    Py_ssize_t block, int num_threads,
):
    cdef Py_ssize_t part, i, rows = x.shape[0], channels = x.shape[1], blocks = (rows + block - 1) // block
    cdef Py_ssize_t first, count
    for part in prange(num_threads, nogil=True, schedule="static", num_threads=num_threads):
        first = share(blocks, num_threads, part)
        for i in range(share(blocks, num_threads, part + 1) - 1, first - 1, -1):
            count = min(block, rows - i * block)
            if real is float:
                scale_rows_f32(count, &x[i * block, 0], &scale[0], &shift[0], &out[i * block, 0], channels)
            else:
                scale_rows_f64(count, &x[i * block, 0], &scale[0], &shift[0], &out[i * block, 0], channels)


def combine_gradient(
    const real[:, ::1] grad, const real[:, ::1] x, const real[::1] factor, const real[::1] mean,
    const real[::1] slope, const real[::1] shift,
    real[:, ::1] out,           # OUT  (M, C): grad · factor + (x − mean) · slope + shift
    Py_ssize_t block, int num_threads,
):
    cdef Py_ssize_t part, i, rows = x.shape[0], channels = x.shape[1], blocks = (rows + block - 1) // block
    cdef Py_ssize_t first, at, count
    for part in prange(num_threads, nogil=True, schedule="static", num_threads=num_threads):
        first = share(blocks, num_threads, part)
        for i in range(share(blocks, num_threads, part + 1) - 1, first - 1, -1):
            at = i * block
            count = min(block, rows - at)
            if real is float:
                combine_rows_f32(
                    count, &grad[at, 0], &x[at, 0], &factor[0], &mean[0], &slope[0], &shift[0], &out[at, 0],
                    channels,
                )
            else:
                combine_rows_f64(
                    count, &grad[at, 0], &x[at, 0], &factor[0], &mean[0], &slope[0], &shift[0], &out[at, 0],
                    channels,
                )
