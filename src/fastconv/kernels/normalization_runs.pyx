# Normalisation of runs, (R, P): planes of one channel, whose pixels are contiguous. The sums of
# normalization.pyx run by run; the caller joins those of a channel, or of a group of channels.
from cython.parallel cimport prange
from libc.math cimport sqrt

cdef extern from "microkernel.h" nogil:
    double run_total_f32(
        Py_ssize_t count, const float *x) noexcept
    double run_total_f64(
        Py_ssize_t count, const double *x) noexcept
    double run_squares_f32(
        Py_ssize_t count, const float *x, float mean) noexcept
    double run_squares_f64(
        Py_ssize_t count, const double *x, double mean) noexcept
    double run_products_f32(
        Py_ssize_t count, const float *g, const float *x, float mean) noexcept
    double run_products_f64(
        Py_ssize_t count, const double *g, const double *x, double mean) noexcept
    void scale_run_f32(
        Py_ssize_t count, const float *x, float mean, float scale, float shift, float *out) noexcept
    void scale_run_f64(
        Py_ssize_t count, const double *x, double mean, double scale, double shift, double *out) noexcept
    void scale_each_f32(
        Py_ssize_t count, const float *x, float mean, float factor, const float *scale, const float *shift,
        float *out) noexcept
    void scale_each_f64(
        Py_ssize_t count, const double *x, double mean, double factor, const double *scale,
        const double *shift, double *out) noexcept
    void combine_run_f32(
        Py_ssize_t count, const float *g, const float *x, float factor, float mean, float slope,
        float shift, float *out) noexcept
    void combine_run_f64(
        Py_ssize_t count, const double *g, const double *x, double factor, double mean, double slope,
        double shift, double *out) noexcept


cdef void piece_moments(const real *x, Py_ssize_t count, double *mean, double *squares) noexcept nogil:
    if real is float:
        mean[0] = run_total_f32(count, x) / count
        squares[0] = run_squares_f32(count, x, <float>mean[0])
    else:
        mean[0] = run_total_f64(count, x) / count
        squares[0] = run_squares_f64(count, x, mean[0])


def run_moments(
    const real[:, ::1] x,       # IN   (R, P)
    double[:, ::1] mean,        # OUT  (R, pieces): of parts of a run, as equal as can be
    double[:, ::1] squares,     # OUT  (R, pieces): Σ (x − mean)² of the part
    int num_threads,
):
    cdef Py_ssize_t r, piece, pieces = mean.shape[1], first, size = x.shape[1]
    for r in prange(x.shape[0], nogil=True, schedule="static", num_threads=num_threads):
        for piece in range(pieces):
            first = share(size, pieces, piece)
            piece_moments(
                &x[r, first], share(size, pieces, piece + 1) - first, &mean[r, piece], &squares[r, piece])


def run_means(
    const real[:, ::1] x,       # IN   (R, P)
    real[::1] mean,             # OUT  (R)
    int num_threads,
):
    cdef Py_ssize_t r, size = x.shape[1]
    for r in prange(x.shape[0], nogil=True, schedule="static", num_threads=num_threads):
        if real is float:
            mean[r] = <float>(run_total_f32(size, &x[r, 0]) / size)
        else:
            mean[r] = run_total_f64(size, &x[r, 0]) / size


def run_products(
    const real[:, ::1] grad,    # IN   (R, P)
    const real[:, ::1] x,       # IN   (R, P)
    const real[::1] mean,       # IN   (R)
    double[::1] total,          # OUT  (R): Σ grad
    double[::1] products,       # OUT  (R): Σ grad · (x − mean)
    int num_threads,
):
    cdef Py_ssize_t r, size = x.shape[1]
    for r in prange(x.shape[0], nogil=True, schedule="static", num_threads=num_threads):
        if real is float:
            total[r] = run_total_f32(size, &grad[r, 0])
            products[r] = run_products_f32(size, &grad[r, 0], &x[r, 0], mean[r])
        else:
            total[r] = run_total_f64(size, &grad[r, 0])
            products[r] = run_products_f64(size, &grad[r, 0], &x[r, 0], mean[r])


def scale_runs(
    const real[:, ::1] x, const real[::1] mean, const real[::1] scale, const real[::1] shift,
    real[:, ::1] out,           # OUT  (R, P): (x − mean) · scale + shift
    int num_threads,
):
    cdef Py_ssize_t r, size = x.shape[1]
    for r in prange(x.shape[0], nogil=True, schedule="static", num_threads=num_threads):
        if real is float:
            scale_run_f32(size, &x[r, 0], mean[r], scale[r], shift[r], &out[r, 0])
        else:
            scale_run_f64(size, &x[r, 0], mean[r], scale[r], shift[r], &out[r, 0])


def normalize_planes(
    const real[:, ::1] x,       # IN   (N·C, P)
    const real[::1] mean, const real[::1] var,      # IN   (C)
    const real[::1] weight, const real[::1] bias,   # IN   (C), or None: 1 and 0
    double eps,
    real[:, ::1] out,           # OUT  (N·C, P): (x − mean) / √(var + eps) · weight + bias
    int num_threads,
):
    cdef Py_ssize_t r, c, size = x.shape[1], channels = mean.shape[0]
    cdef const real *w = NULL
    cdef const real *b = NULL
    cdef real scale, shift
    if weight is not None:
        w = &weight[0]
    if bias is not None:
        b = &bias[0]
    for r in prange(x.shape[0], nogil=True, schedule="static", num_threads=num_threads):
        c = r % channels
        scale = <real>(1 / sqrt(var[c] + eps) * (w[c] if w != NULL else 1))
        shift = b[c] if b != NULL else 0
        if real is float:
            scale_run_f32(size, &x[r, 0], mean[c], scale, shift, &out[r, 0])
        else:
            scale_run_f64(size, &x[r, 0], mean[c], scale, shift, &out[r, 0])


def combine_runs(
    const real[:, ::1] grad, const real[:, ::1] x, const real[::1] factor, const real[::1] mean,
    const real[::1] slope, const real[::1] shift,
    real[:, ::1] out,           # OUT  (R, P): grad · factor + (x − mean) · slope + shift
    int num_threads,
):
    cdef Py_ssize_t r, size = x.shape[1]
    for r in prange(x.shape[0], nogil=True, schedule="static", num_threads=num_threads):
        if real is float:
            combine_run_f32(
                size, &grad[r, 0], &x[r, 0], factor[r], mean[r], slope[r], shift[r], &out[r, 0])
        else:
            combine_run_f64(
                size, &grad[r, 0], &x[r, 0], factor[r], mean[r], slope[r], shift[r], &out[r, 0])
