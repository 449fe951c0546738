# The gradients of layer normalisation, run by run, with n = (x − mean) · inverse and u = grad · weight:
#
#     ∂x = (u − mean(u) − n · mean(u · n)) · inverse        ∂weight = Σ grad · n        ∂bias = Σ grad
#
# Threads share out blocks of runs; a block's sums over runs are of the elements' type, the caller adds up the
# blocks, in double, in order.
from cython.parallel cimport prange

cdef extern from "microkernel.h" nogil:
    double weighted_total_f32(Py_ssize_t count, const float *g, const float *w) noexcept
    double weighted_total_f64(Py_ssize_t count, const double *g, const double *w) noexcept
    double weighted_products_f32(
        Py_ssize_t count, const float *g, const float *w, const float *x, float center) noexcept
    double weighted_products_f64(
        Py_ssize_t count, const double *g, const double *w, const double *x, double center) noexcept
    void layer_grad_run_f32(
        Py_ssize_t count, const float *g, const float *w, const float *x, float center, float factor,
        float slope, float shift, float *out, float *by_weight, float *by_bias) noexcept
    void layer_grad_run_f64(
        Py_ssize_t count, const double *g, const double *w, const double *x, double center, double factor,
        double slope, double shift, double *out, double *by_weight, double *by_bias) noexcept


cdef void layer_grad(
    Py_ssize_t count, const real *g, const real *w, const real *x, double mean, double inverse, real *out,
    real *by_weight, real *by_bias
) noexcept nogil:
    cdef double total, product, center = <real>mean
    if real is float:
        total = weighted_total_f32(count, g, w)
        product = weighted_products_f32(count, g, w, x, <float>mean)
    else:
        total = weighted_total_f64(count, g, w)
        product = weighted_products_f64(count, g, w, x, mean)
    product += total * (center - mean)
    product = -product / count * inverse * inverse * inverse
    total = -total / count * inverse + product * (center - mean)
    if real is float:
        layer_grad_run_f32(count, g, w, x, <float>mean, <float>inverse, <float>product, <float>total, out,
                           by_weight, by_bias)
    else:
        layer_grad_run_f64(count, g, w, x, mean, inverse, product, total, out, by_weight, by_bias)


def layer_norm_grad(
    const real[:, ::1] grad,    # IN      (R, L)
    const real[:, ::1] x,       # IN      (R, L)
    const real[::1] weight,     # IN      (L)
    const double[::1] mean,     # IN      (R)
    const double[::1] inverse,  # IN      (R): 1 / √(variance + eps)
    real[:, ::1] out,           # OUT     (R, L)
    real[:, :, ::1] sums,       # IN/OUT  (blocks, 2, L), zero before: by weight, by bias, of each block
    Py_ssize_t block, int num_threads,
):
    """All arrays have elements."""
    cdef Py_ssize_t i, r
    for i in prange(sums.shape[0], nogil=True, schedule="static", num_threads=num_threads):
        for r in range(i * block, min((i + 1) * block, x.shape[0])):
            layer_grad(x.shape[1], &grad[r, 0], &weight[0], &x[r, 0], mean[r], inverse[r], &out[r, 0],
                       &sums[i, 0, 0], &sums[i, 1, 0])
