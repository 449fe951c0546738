# Activations and their gradients, element by element, whatever the memory format:
#
#     out = f(x)          out = grad · f'(x)
from cpython.buffer cimport PyBUF_WRITABLE
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


# The arrays of these functions are C-contiguous, of any shape, all float or all double: the memoryviews of
# short ones would take longer than the elements.

cdef void activate_all(
    int kind, double a, double b, const void *grad, const void *x, void *out, Py_ssize_t itemsize,
    Py_ssize_t count, int num_threads
) noexcept nogil:
    cdef Py_ssize_t part, parts = (count + ACTIVATION_PART - 1) // ACTIVATION_PART, first, size
    for part in prange(parts, schedule="static", num_threads=num_threads):
        first = part * ACTIVATION_PART
        size = min(ACTIVATION_PART, count - first)
        if itemsize == sizeof(float):
            activate_f32(
                kind, <float>a, <float>b, <const float *>grad, <const float *>x, <float *>out, first, size)
        else:
            activate_f64(kind, a, b, <const double *>grad, <const double *>x, <double *>out, first, size)


def activate(
    str kind, double a, double b,
    grad,                       # IN   or None: out is f(x), not grad · f'(x)
    x,                          # IN   with grad and of relu, sigmoid and tanh the result
    out,                        # OUT
    int num_threads,
):
    cdef Py_buffer x_flat = flat(x), out_flat = flat(out, PyBUF_WRITABLE)
    cdef const void *g = NULL if grad is None else flat(grad).buf
    cdef int number = activations[kind]
    with nogil:
        activate_all(
            number, a, b, g, x_flat.buf, out_flat.buf, x_flat.itemsize, x_flat.len // x_flat.itemsize,
            num_threads)


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


cdef void prelu_all(
    const real *x, const real *grad, const real *slopes, Py_ssize_t channels, Py_ssize_t run, real *out,
    Py_ssize_t count, int num_threads
) noexcept nogil:
    cdef Py_ssize_t length = channels if run == 1 else run
    cdef Py_ssize_t pieces = 1 if run == 1 else (run + ACTIVATION_PART - 1) // ACTIVATION_PART
    cdef Py_ssize_t task, first, last
    for task in prange((count + length - 1) // length * pieces, schedule="static", num_threads=num_threads):
        first = task // pieces * length + share(length, pieces, task % pieces)
        last = min(task // pieces * length + share(length, pieces, task % pieces + 1), count)
        prelu_part(
            &slopes[0 if run == 1 else task // pieces % channels], run > 1,
            grad + first if grad != NULL else NULL, x + first, out + first, last - first)


def prelu(
    x,                          # IN
    grad,                       # IN   or None: out is f(x), not grad · f'(x)
    slopes,                     # IN   of `run` elements each, again and again; of one, as many as are left
    Py_ssize_t run,
    out,                        # OUT
    int num_threads,
):
    cdef Py_buffer x_flat = flat(x), slopes_flat = flat(slopes), out_flat = flat(out, PyBUF_WRITABLE)
    cdef const void *g = NULL if grad is None else flat(grad).buf
    cdef Py_ssize_t size = x_flat.itemsize, count = x_flat.len // size, channels = slopes_flat.len // size
    with nogil:
        if size == sizeof(float):
            prelu_all(
                <const float *>x_flat.buf, <const float *>g, <const float *>slopes_flat.buf, channels, run,
                <float *>out_flat.buf, count, num_threads)
        else:
            prelu_all(
                <const double *>x_flat.buf, <const double *>g, <const double *>slopes_flat.buf, channels, run,
                <double *>out_flat.buf, count, num_threads)


cdef inline void softmax_part(
    const real *x, real *out, Py_ssize_t columns, Py_ssize_t count, Py_ssize_t stride, bint logarithm
) noexcept nogil:
    """At most a panel of columns; where they are one apart, a row."""
    if stride == 1:
        if real is float:
            softmax_row_f32(x, out, count, logarithm)
        else:
            softmax_row_f64(x, out, count, logarithm)
    elif real is float:
        softmax_columns_f32(x, out, columns, count, stride, logarithm)
    else:
        softmax_columns_f64(x, out, columns, count, stride, logarithm)


cdef void softmax_all(
    const real *x, real *out, Py_ssize_t outer, Py_ssize_t count, Py_ssize_t stride, bint logarithm,
    int num_threads
) noexcept nogil:
    cdef Py_ssize_t panel = panel_width(x), blocks = (stride + panel - 1) // panel, item, left, first
    for item in prange(outer * blocks, schedule="static", num_threads=num_threads):
        left = stride - item % blocks * panel
        first = (item // blocks * count + 1) * stride - left
        softmax_part(x + first, out + first, min(panel, left), count, stride, logarithm)


def softmax(
    x,                          # IN   (outer, C, inner)
    Py_ssize_t count, Py_ssize_t stride,    # C, inner
    bint logarithm,
    out,                        # OUT  softmax along C, or its logarithm
    int num_threads,
):
    cdef Py_buffer x_flat = flat(x), out_flat = flat(out, PyBUF_WRITABLE)
    cdef Py_ssize_t size = x_flat.itemsize, outer = x_flat.len // size // max(count * stride, 1)
    with nogil:
        if size == sizeof(float):
            softmax_all(<const float *>x_flat.buf, <float *>out_flat.buf, outer, count, stride, logarithm,
                        num_threads)
        else:
            softmax_all(<const double *>x_flat.buf, <double *>out_flat.buf, outer, count, stride, logarithm,
                        num_threads)
