# Winograd's F(4, 3) along the rows of 3×3 kernels in groups of 4 or 8 channels, by winograd_narrow.h:
#
#     y[i, 4·t … 4·t + 3] = Aᵀ Σ_k Σ_c (G g[k, c]) ⊙ (Bᵀ x[i + k, 4·t … 4·t + 5, c])
#
# A vector of output channels goes down four columns at a time. Images that are not channels-last are copied
# for each vector, its channels side by side.
from cython.parallel cimport prange, threadid

cdef extern from "microkernel.h" nogil:
    struct narrow_strip:
        Py_ssize_t x_row, x_pixel, y_row, y_pixel, rows, top, bottom, left, right, columns
        bint accumulate, rectified
    void winograd_narrow_f32(
        int group, const narrow_strip *s, const float *x, const float *weight, const float *coefficient,
        const float *bias, float *y) noexcept
    void winograd_narrow_f64(
        int group, const narrow_strip *s, const double *x, const double *weight, const double *coefficient,
        const double *bias, double *y) noexcept


cdef inline void narrow_strip_down(
    int group, const narrow_strip *s, const real *x, const real *weight, const real *coefficient,
    const real *bias, real *y
) noexcept nogil:
    if real is float:
        winograd_narrow_f32(group, s, x, weight, coefficient, bias, y)
    else:
        winograd_narrow_f64(group, s, x, weight, coefficient, bias, y)


cdef void winograd_narrow_band(
    const Problem *problem, const real *x, const Py_ssize_t *x_stride, Py_ssize_t height, Py_ssize_t width,
    const real *weight, const real *coefficient, const real *bias, bint rectified, bint accumulate, real *out,
    const Py_ssize_t *out_stride, Py_ssize_t first, Py_ssize_t rows, Py_ssize_t columns, real *scratch
) noexcept nogil:
    """Rows from `first` on of one vector of output channels; x and out are the first of its channels."""
    cdef Py_ssize_t lanes = VECTOR_BYTES // <Py_ssize_t>sizeof(real), t
    cdef Py_ssize_t channels = max(lanes, problem.group_in)
    cdef Py_ssize_t tiles = (columns + SHORT_OUTPUTS - 1) // SHORT_OUTPUTS
    cdef Py_ssize_t top = first - problem.pad_h, left = -problem.pad_w
    cdef narrow_strip s
    cdef real *y = out + first * out_stride[0]
    s.accumulate, s.rectified, s.rows = accumulate, rectified, rows
    s.x_row, s.x_pixel, s.y_row, s.y_pixel = x_stride[0], x_stride[1], out_stride[0], out_stride[1]
    if x_stride[2] != 1:
        s.x_row, s.x_pixel = (tiles * SHORT_OUTPUTS + 2) * channels, channels
        gather_band(x, x_stride, height, width, channels, top, left, rows + 2, tiles * SHORT_OUTPUTS + 2,
                    scratch, s.x_row, channels)
        x, height, width, top, left = scratch, rows + 2, tiles * SHORT_OUTPUTS + 2, 0, 0
        scratch += height * s.x_row
    if out_stride[2] != 1:
        s.y_row, s.y_pixel, y = columns * lanes, lanes, scratch
        if accumulate:
            gather_band(<const real *>out + first * out_stride[0], out_stride, rows, columns, lanes, 0, 0,
                        rows, columns, scratch, s.y_row, lanes)
    s.top, s.bottom = -top, height - top
    for t in range(tiles):
        s.columns = min(<Py_ssize_t>SHORT_OUTPUTS, columns - t * SHORT_OUTPUTS)
        s.left, s.right = -left - t * SHORT_OUTPUTS, width - left - t * SHORT_OUTPUTS
        narrow_strip_down(
            <int>problem.group_in, &s, x + top * s.x_row + (left + t * SHORT_OUTPUTS) * s.x_pixel, weight,
            coefficient, bias, y + t * SHORT_OUTPUTS * s.y_pixel)
    if out_stride[2] != 1:
        scatter_rows(scratch, s.y_row, lanes, rows, columns, lanes, out + first * out_stride[0], out_stride)


def winograd_narrow(
    const real[:, :, :, :] x, const real[:, :, :, ::1] packed, const real[::1] bias, geometry,
    const real[::1] coefficient, Py_ssize_t bands, bint rectified, bint accumulate, real[:, :, :, :] out,
    real[::1] workspace, Py_ssize_t per_thread, int num_threads
):
    """Winograd convolution along the rows of narrow groups.

    Parameters
    ----------
    x : (N, H, W, C), IN
        C whole vectors, in groups of 4 or 8.
    packed : (panels, 6, C/groups · 3, PANEL), IN
        The weights transformed, for each input channel the three rows of the kernel; where a group fits into
        a vector, its channels in the order of narrow_channel in winograd_narrow.h.
    bias : (C), IN
    coefficient : IN
        The constants of the transforms, as winograd.h lists them.
    bands : parts the output rows of an image are cut into
    rectified, accumulate : as Epilogue has them
    out : (N, H_out, W_out, C), OUT
    workspace : (num_threads · per_thread), scratch
    """
    cdef Problem problem = problem_of(geometry)
    cdef Py_ssize_t size = sizeof(real), lanes = VECTOR_BYTES // size, vectors = out.shape[3] // lanes, item
    cdef Py_ssize_t n, i, first, wide = max(lanes, problem.group_in)
    cdef Py_ssize_t[3] x_stride = [x.strides[1] // size, x.strides[2] // size, x.strides[3] // size]
    cdef Py_ssize_t[3] out_stride = [out.strides[1] // size, out.strides[2] // size, out.strides[3] // size]
    for item in prange(x.shape[0] * bands * vectors, nogil=True, num_threads=num_threads, schedule="static"):
        n, i = item // (bands * vectors), item % vectors
        first = share(out.shape[1], bands, item // vectors % bands)
        winograd_narrow_band(
            &problem, &x[n, 0, 0, i * lanes // wide * wide], x_stride, x.shape[1], x.shape[2],
            &packed[i // 2, 0, 0, i % 2 * lanes], &coefficient[0], &bias[i * lanes], rectified, accumulate,
            &out[n, 0, 0, i * lanes], out_stride, first,
            share(out.shape[1], bands, item // vectors % bands + 1) - first, out.shape[2],
            &workspace[threadid() * per_thread])
