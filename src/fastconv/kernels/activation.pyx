# Activations and their gradients, element by element, whatever the memory format:
#
#     out = f(x)          out = grad · f'(x)
from cython.parallel cimport prange

cdef extern from "microkernel.h" nogil:
    const int RELU, RELU6, LEAKY_RELU, ELU, SIGMOID, TANH, SILU, GELU, GELU_TANH, SOFTPLUS, HARDSIGMOID
    const int HARDSWISH
    void activate_f32(
        int kind, float a, float b, const float *grad, const float *x, float *out, Py_ssize_t first,
        Py_ssize_t count) noexcept
    void activate_f64(
        int kind, double a, double b, const double *grad, const double *x, double *out, Py_ssize_t first,
        Py_ssize_t count) noexcept
    void prelu_f32(
        const float *alpha, const float *grad, const float *x, float *out, Py_ssize_t count) noexcept
    void prelu_f64(
        const double *alpha, const double *grad, const double *x, double *out, Py_ssize_t count) noexcept
    void softmax_row_f32(const float *x, float *out, Py_ssize_t count, bint logarithm) noexcept
    void softmax_row_f64(const double *x, double *out, Py_ssize_t count, bint logarithm) noexcept
    void softmax_columns_f32(
        const float *x, float *out, Py_ssize_t columns, Py_ssize_t count, Py_ssize_t stride,
        bint logarithm) noexcept
    void softmax_columns_f64(
        const double *x, double *out, Py_ssize_t columns, Py_ssize_t count, Py_ssize_t stride,
        bint logarithm) noexcept

# Elements a thread passes over at a time.
cdef Py_ssize_t ACTIVATION_PART = 8192

activations = {
    "relu": RELU, "relu6": RELU6, "leaky_relu": LEAKY_RELU, "elu": ELU, "sigmoid": SIGMOID, "tanh": TANH,
    "silu": SILU, "gelu": GELU, "gelu_tanh": GELU_TANH, "softplus": SOFTPLUS, "hardsigmoid": HARDSIGMOID,
    "hardswish": HARDSWISH,
}


cdef void activate_all(
    int kind, double a, double b, const real *grad, const real *x, real *out, Py_ssize_t count,
    int num_threads
) noexcept nogil:
    cdef Py_ssize_t part, parts = (count + ACTIVATION_PART - 1) // ACTIVATION_PART, first, size
    for part in prange(parts, schedule="static", num_threads=num_threads):
        first = part * ACTIVATION_PART
        size = min(ACTIVATION_PART, count - first)
        if real is float:
            activate_f32(kind, <float>a, <float>b, grad, x, out, first, size)
        else:
            activate_f64(kind, a, b, grad, x, out, first, size)


def activate(
    int kind, double a, double b,
    const real[::1] x,          # IN
    real[::1] out,              # OUT
    int num_threads,
):
    with nogil:
        activate_all(kind, a, b, <const real *>NULL, &x[0], &out[0], x.shape[0], num_threads)


def activate_grad(
    int kind, double a, double b,
    const real[::1] grad,       # IN
    const real[::1] x,          # IN   of relu, sigmoid and tanh the result
    real[::1] out,              # OUT
    int num_threads,
):
    with nogil:
        activate_all(kind, a, b, &grad[0], &x[0], &out[0], x.shape[0], num_threads)


cdef void prelu_part(
    const real *slope, bint one, const real *grad, const real *x, real *out, Py_ssize_t count
) noexcept nogil:
    """A slope for each element, or `one` for all."""
    if one:
        if real is float:
            activate_f32(LEAKY_RELU, slope[0], 0, grad, x, out, 0, count)
        else:
            activate_f64(LEAKY_RELU, slope[0], 0, grad, x, out, 0, count)
    elif real is float:
        prelu_f32(slope, grad, x, out, count)
    else:
        prelu_f64(slope, grad, x, out, count)


def prelu(
    const real[::1] x,          # IN
    const real[::1] grad,       # IN   or None: out is f(x), not grad · f'(x)
    const real[::1] slopes,     # IN   of `run` elements each, again and again; of one, as many as are left
    Py_ssize_t run,
    real[::1] out,              # OUT
    int num_threads,
):
    cdef Py_ssize_t length = slopes.shape[0] if run == 1 else run, count = x.shape[0]
    cdef Py_ssize_t pieces = 1 if run == 1 else (run + ACTIVATION_PART - 1) // ACTIVATION_PART
    cdef Py_ssize_t task, first, last, channels = slopes.shape[0]
    cdef const real *g = NULL
    if grad is not None:
        g = &grad[0]
    for task in prange((count + length - 1) // length * pieces, nogil=True, schedule="static",
                       num_threads=num_threads):
        first = task // pieces * length + share(length, pieces, task % pieces)
        last = min(task // pieces * length + share(length, pieces, task % pieces + 1), count)
        prelu_part(
            &slopes[0 if run == 1 else task // pieces % channels], run > 1, g + first if g != NULL else NULL,
            &x[first], &out[first], last - first)


cdef inline void softmax_part(
    const real *x, real *out, Py_ssize_t columns, Py_ssize_t count, Py_ssize_t stride, bint logarithm
) noexcept nogil:
    """At most a vector of columns; where they are one apart, a row."""
    if stride == 1:
        if real is float:
            softmax_row_f32(x, out, count, logarithm)
        else:
            softmax_row_f64(x, out, count, logarithm)
    elif real is float:
        softmax_columns_f32(x, out, columns, count, stride, logarithm)
    else:
        softmax_columns_f64(x, out, columns, count, stride, logarithm)


def softmax(
    const real[:, :, ::1] x,    # IN   (outer, C, inner)
    bint logarithm,
    real[:, :, ::1] out,        # OUT  softmax along C, or its logarithm
    int num_threads,
):
    cdef Py_ssize_t count = x.shape[1], stride = x.shape[2], lanes = panel_width(&x[0, 0, 0]) // 2
    cdef Py_ssize_t blocks = (stride + lanes - 1) // lanes, item, first
    for item in prange(x.shape[0] * blocks, nogil=True, schedule="static", num_threads=num_threads):
        first = item % blocks * lanes
        softmax_part(
            &x[item // blocks, 0, first], &out[item // blocks, 0, first], min(lanes, stride - first), count,
            stride, logarithm)
