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
