# Pixels that a stride leaves out: a 1×1 convolution with a stride reads every s-th pixel alone, and its input
# gradient is zero, or a transposed convolution's bias, between those. Both are products without a stride once
# the pixels are moved.
from cython.parallel cimport prange


cdef inline Py_ssize_t step_of(
    Py_ssize_t position, Py_ssize_t first, Py_ssize_t step, Py_ssize_t count
) noexcept nogil:
    """The k < count with first + k · step = position; −1 if there is none."""
    cdef Py_ssize_t k = (position - first) // step
    return k if position >= first and first + k * step == position and k < count else -1


def spread_pixels(
    const real[:, :, :, :] x, const real[::1] edge, places, real[:, :, :, :] out, int num_threads
):
    """out[n, top + i·s_h, left + j·s_w, c] = x[n, i, j, c], and edge[c] wherever no pixel goes.

    Parameters
    ----------
    x : (N, h, w, C), IN
    edge : (C), IN
    places : (top, s_h, left, s_w)
    out : (N, H, W, C), OUT
        Fastest where channels, or rows, are contiguous as in x.
    """
    cdef Py_ssize_t top, down, left, across, size = sizeof(real), item, n, y, c
    top, down, left, across = places
    cdef Py_ssize_t rows = out.shape[1], channels = out.shape[3]
    cdef bint planar = out.strides[3] != size
    cdef Py_ssize_t[2] x_stride = [x.strides[2] // size, x.strides[3] // size]
    cdef Py_ssize_t[2] out_stride = [out.strides[2] // size, out.strides[3] // size]
    if x.shape[1] == 0 or x.shape[2] == 0 or channels == 0 or out.shape[2] == 0:
        raise ValueError(f"x and out must not be empty, got {x.shape[1]}×{x.shape[2]}×{channels}")
    for item in prange(
        out.shape[0] * (channels if planar else rows), nogil=True, num_threads=num_threads, schedule="static"
    ):
        if planar:
            n = item // channels
            c = item % channels
            for y in range(rows):
                spread_row(&x[n, max(0, step_of(y, top, down, x.shape[1])), 0, c], x_stride,
                           x.shape[2] if step_of(y, top, down, x.shape[1]) >= 0 else 0, &edge[c], left,
                           across, &out[n, y, 0, c], out_stride, out.shape[2], 1)
        else:
            n = item // rows
            y = item % rows
            spread_row(&x[n, max(0, step_of(y, top, down, x.shape[1])), 0, 0], x_stride,
                       x.shape[2] if step_of(y, top, down, x.shape[1]) >= 0 else 0, &edge[0], left, across,
                       &out[n, y, 0, 0], out_stride, out.shape[2], channels)


cdef void spread_row(
    const real *x, const Py_ssize_t *x_stride, Py_ssize_t count, const real *edge, Py_ssize_t left,
    Py_ssize_t across, real *out, const Py_ssize_t *out_stride, Py_ssize_t columns, Py_ssize_t channels
) noexcept nogil:
    """One row of pixels, of `count` that have a place in it; strides lead from pixel to pixel and channel."""
    cdef Py_ssize_t i, c
    if channels == 1 and out_stride[0] == 1:
        for i in range(columns):
            out[i] = edge[0]
        for i in range(count):
            out[left + i * across] = x[i * x_stride[0]]
        return
    for i in range(columns):
        for c in range(channels):
            out[i * out_stride[0] + c * out_stride[1]] = edge[c]
    for i in range(count):
        for c in range(channels):
            out[(left + i * across) * out_stride[0] + c * out_stride[1]] = (
                x[i * x_stride[0] + c * x_stride[1]])


def take_pixels(const real[:, :, :, :] x, real[:, :, :, ::1] out, int num_threads):
    """A copy of planes of any strides.

    Parameters
    ----------
    x, out : (N, C, h, w), IN and OUT
    """
    cdef Py_ssize_t item, n, c, y, i, channels = x.shape[1], step = x.strides[3] // <Py_ssize_t>sizeof(real)
    cdef const real *source
    cdef real *target
    for item in prange(x.shape[0] * channels, nogil=True, num_threads=num_threads, schedule="static"):
        n = item // channels
        c = item % channels
        for y in range(x.shape[2]):
            source = &x[n, c, y, 0]
            target = &out[n, c, y, 0]
            for i in range(x.shape[3]):
                target[i] = source[i * step]
