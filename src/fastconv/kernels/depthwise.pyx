# Depthwise convolution, direct's form for one input channel a group: vectors run over channels, and each
# row of outputs keeps eight pixels of one vector of channels in registers while it walks the taps:
#
#     out[y, x, c] = Σ_i Σ_j  band[y·s_h + i·d_h, x·s_w + j·d_w, c] · w[(i, j), c]
from cython.parallel cimport prange, threadid


cdef inline void depthwise_pixels(
    Py_ssize_t pixels, const real *a, Py_ssize_t a_stride, Py_ssize_t taps, const Py_ssize_t *offset,
    const real *w, Py_ssize_t w_stride, real *y, Py_ssize_t y_stride, const real *bias, bint rectified
) noexcept nogil:
    if real is float:
        depthwise_row_f32(pixels, a, a_stride, taps, offset, w, w_stride, y, y_stride, bias, rectified)
    else:
        depthwise_row_f64(pixels, a, a_stride, taps, offset, w, w_stride, y, y_stride, bias, rectified)


def depthwise(
    const real[:, :, :, :] x, const real[:, ::1] packed, const real[::1] bias, geometry,
    const Py_ssize_t[::1] offset, Py_ssize_t bands, bint rectified,
    real[:, :, :, :] out, real[::1] workspace, Py_ssize_t per_thread, int num_threads
):
    """Depthwise convolution: as many groups as channels in and channels out.

    Parameters
    ----------
    x : (N, H, W, C), IN
    packed : (k_h·k_w, C in whole vectors), IN
    bias : (C in whole vectors), IN
    offset : (k_h·k_w), IN
        Where each tap lies in a band whose pixels are C in whole vectors apart.
    bands : parts the output rows of an image are cut into
    out : (N, H_out, W_out, C), OUT
    workspace : (num_threads · per_thread), scratch
    """
    cdef Problem problem = problem_of(geometry)
    cdef Py_ssize_t item, items = x.shape[0] * bands, columns = out.shape[2], channels = out.shape[3]
    cdef Py_ssize_t lanes = VECTOR_BYTES // <Py_ssize_t>sizeof(real), pitch = packed.shape[1]
    cdef Py_ssize_t in_columns = covered(columns, problem.stride_w, problem.kernel_w, problem.dilation_w)
    cdef Py_ssize_t n, first, last, in_rows, y, c, size = sizeof(real), row_pitch = in_columns * pitch
    cdef Py_ssize_t[3] x_stride = [x.strides[1] // size, x.strides[2] // size, x.strides[3] // size]
    cdef Py_ssize_t[3] out_stride = [out.strides[1] // size, out.strides[2] // size, out.strides[3] // size]
    cdef bint direct_store
    cdef real *scratch
    cdef real *row
    cdef real *target
    for item in prange(items, nogil=True, num_threads=num_threads, schedule="static"):
        n = item // bands
        first = share(out.shape[1], bands, item % bands)
        last = share(out.shape[1], bands, item % bands + 1)
        in_rows = covered(last - first, problem.stride_h, problem.kernel_h, problem.dilation_h)
        scratch = &workspace[threadid() * per_thread]
        row = scratch + in_rows * row_pitch
        gather_band(
            &x[n, 0, 0, 0], x_stride, x.shape[1], x.shape[2], channels,
            first * problem.stride_h - problem.pad_h, -problem.pad_w, in_rows, in_columns,
            scratch, row_pitch, pitch)
        for y in range(last - first):
            for c from 0 <= c < channels by lanes:
                target = &out[n, first + y, 0, 0] + c * out_stride[2]
                direct_store = out_stride[2] == 1 and c + lanes <= channels
                depthwise_pixels(
                    columns, scratch + y * problem.stride_h * row_pitch + c, problem.stride_w * pitch,
                    packed.shape[0], &offset[0], &packed[0, c], pitch, target if direct_store else row,
                    out_stride[1] if direct_store else lanes, &bias[c], rectified)
                if not direct_store:
                    scatter_rows(row, 0, lanes, 1, columns, min(lanes, channels - c), target, out_stride)
