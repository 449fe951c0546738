# Normalisation of channels-last pixels, (N, M, C), forward and backward, with constants for each of N: those
# of an image, or N is 1.
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
        Py_ssize_t rows, const float *g, const float *x, const double *mean, Py_ssize_t channels,
        double *total, double *products) noexcept
    void add_products_f64(
        Py_ssize_t rows, const double *g, const double *x, const double *mean, Py_ssize_t channels,
        double *total, double *products) noexcept
    void add_squares_f32(
        Py_ssize_t rows, const float *x, const double *mean, Py_ssize_t channels, double *total) noexcept
    void add_squares_f64(
        Py_ssize_t rows, const double *x, const double *mean, Py_ssize_t channels, double *total) noexcept
    void scale_rows_f32(
        Py_ssize_t rows, const float *x, const float *mean, const float *scale, const float *shift,
        float *out, Py_ssize_t channels) noexcept
    void scale_rows_f64(
        Py_ssize_t rows, const double *x, const double *mean, const double *scale, const double *shift,
        double *out, Py_ssize_t channels) noexcept
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
    const real *grad, const real *x, const double *mean, Py_ssize_t rows, Py_ssize_t channels,
    double *total, double *products
) noexcept nogil:
    memset(total, 0, channels * sizeof(double))
    memset(products, 0, channels * sizeof(double))
    if real is float:
        add_products_f32(rows, grad, x, mean, channels, total, products)
    else:
        add_products_f64(rows, grad, x, mean, channels, total, products)


cdef void scale_block(
    Py_ssize_t rows, const real *x, const real *mean, const real *scale, const real *shift, real *out,
    Py_ssize_t channels
) noexcept nogil:
    if real is float:
        scale_rows_f32(rows, x, mean, scale, shift, out, channels)
    else:
        scale_rows_f64(rows, x, mean, scale, shift, out, channels)


cdef void combine_block(
    Py_ssize_t rows, const real *grad, const real *x, const real *factor, const real *mean, const real *slope,
    const real *shift, real *out, Py_ssize_t channels
) noexcept nogil:
    if real is float:
        combine_rows_f32(rows, grad, x, factor, mean, slope, shift, out, channels)
    else:
        combine_rows_f64(rows, grad, x, factor, mean, slope, shift, out, channels)


def channel_products(
    const real[:, :, ::1] grad,     # IN   (N, M, C)
    const real[:, :, ::1] x,        # IN   (N, M, C)
    const double[:, ::1] mean,      # IN   (N, C)
    double[:, :, ::1] total,        # OUT  (N, blocks, C): Σ grad of each block
    double[:, :, ::1] products,     # OUT  (N, blocks, C): Σ grad · (x − mean)
    Py_ssize_t block, int num_threads,
):
    cdef Py_ssize_t task, n, i, blocks = total.shape[1]
    for task in prange(x.shape[0] * blocks, nogil=True, schedule="static", num_threads=num_threads):
        n, i = task // blocks, task % blocks
        block_products(
            &grad[n, i * block, 0], &x[n, i * block, 0], &mean[n, 0], min(block, x.shape[1] - i * block),
            x.shape[2], &total[n, i, 0], &products[n, i, 0])


def scale_shift(
    const real[:, :, ::1] x, const real[:, ::1] mean, const real[:, ::1] scale, const real[:, ::1] shift,
    real[:, :, ::1] out,            # OUT  (N, M, C): (x − mean) · scale + shift
    Py_ssize_t block, int num_threads,
):
    cdef Py_ssize_t task, n, at, blocks = (x.shape[1] + block - 1) // block
    for task in prange(x.shape[0] * blocks, nogil=True, schedule="static", num_threads=num_threads):
        n, at = task // blocks, task % blocks * block
        scale_block(min(block, x.shape[1] - at), &x[n, at, 0], &mean[n, 0], &scale[n, 0], &shift[n, 0],
                    &out[n, at, 0], x.shape[2])


def combine_gradient(
    const real[:, :, ::1] grad, const real[:, :, ::1] x, const real[:, ::1] factor, const real[:, ::1] mean,
    const real[:, ::1] slope, const real[:, ::1] shift,
    real[:, :, ::1] out,            # OUT  (N, M, C): grad · factor + (x − mean) · slope + shift
    Py_ssize_t block, int num_threads,
):
    cdef Py_ssize_t task, n, at, blocks = (x.shape[1] + block - 1) // block
    for task in prange(x.shape[0] * blocks, nogil=True, schedule="static", num_threads=num_threads):
        n, at = task // blocks, task % blocks * block
        combine_block(min(block, x.shape[1] - at), &grad[n, at, 0], &x[n, at, 0], &factor[n, 0],
                      &mean[n, 0], &slope[n, 0], &shift[n, 0], &out[n, at, 0], x.shape[2])
