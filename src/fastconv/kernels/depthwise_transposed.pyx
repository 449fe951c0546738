# The input gradient of a depthwise convolution of stride 2 along the row, or the transposed convolution:
#
#     y[i, j, c] = bias[c] + Σ_u Σ_v  x[(i + p_h − u·d_h) / s_h, (j + p_w − v) / 2, c] · w[(u, v), c]
#
# over the taps for which both divisions leave no rest. Row by row of outputs: the kernel rows that meet it,
# then pairs of pixels, which read the same inputs, so that each output is written once.
from cython.parallel cimport prange, threadid
from libc.string cimport memcpy, memset

cdef extern from "microkernel.h" nogil:
    struct transposed:
        Py_ssize_t taps, odd, shift, kernel_h, stride_h, dilation_h, pad_h
        Py_ssize_t height, width, columns, channels
        Py_ssize_t w_stride, x_row, x_pixel, y_row, y_pixel
        bint rectified
    void transposed_pixels_f32(
        const transposed *s, Py_ssize_t i, const float *x, const float *w, const float *bias,
        float *y) noexcept
    void transposed_pixels_f64(
        const transposed *s, Py_ssize_t i, const double *x, const double *w, const double *bias,
        double *y) noexcept
    void transposed_plane_f32(
        const transposed *s, Py_ssize_t rows, const float *x, const float *w, float bias, float *y) noexcept
    void transposed_plane_f64(
        const transposed *s, Py_ssize_t rows, const double *x, const double *w, double bias,
        double *y) noexcept


cdef enum:
    LINE_MARGIN = 16  # zeros before the pixels of a line; at least half a kernel


cdef transposed transposed_of(const Problem *problem, bint rectified) noexcept nogil:
    """What does not depend on the layout."""
    return transposed(
        problem.kernel_w, problem.pad_w % 2, problem.pad_w // 2, problem.kernel_h, problem.stride_h,
        problem.dilation_h, problem.pad_h, 0, 0, 0, 0, 0, 0, 0, 0, 0, rectified)


def depthwise_transposed(
    const real[:, :, :, :] x, const real[:, ::1] packed, const real[::1] bias, geometry, bint rectified,
    real[:, :, :, :] out, int num_threads
):
    """Transposed depthwise convolution on channels-last images of at least a vector of channels.

    Parameters
    ----------
    x : (N, H_out, W_out, C), IN
        Channels are contiguous, here and in ``out``.
    packed : (k_h·k_w, C in whole vectors), IN
        k_h ≤ 7, 2 ≤ k_w ≤ 7.
    bias : (C in whole vectors), IN
    geometry : of the convolution, whose stride along the row is 2 and its dilation there 1
    out : (N, H, W, C), OUT
    """
    cdef Problem problem = problem_of(geometry)
    cdef Py_ssize_t item, n, i, size = sizeof(real), rows = out.shape[1]
    cdef transposed s = transposed_of(&problem, rectified)
    s.height, s.width, s.columns, s.channels = x.shape[1], x.shape[2], out.shape[2], out.shape[3]
    s.w_stride = packed.shape[1]
    s.x_row, s.x_pixel, s.y_pixel = x.strides[1] // size, x.strides[2] // size, out.strides[2] // size
    for item in prange(out.shape[0] * rows, nogil=True, num_threads=num_threads, schedule="static"):
        n = item // rows
        i = item % rows
        if real is float:
            transposed_pixels_f32(&s, i, &x[n, 0, 0, 0], &packed[0, 0], &bias[0], &out[n, i, 0, 0])
        else:
            transposed_pixels_f64(&s, i, &x[n, 0, 0, 0], &packed[0, 0], &bias[0], &out[n, i, 0, 0])


cdef void transposed_band(
    const transposed *s, Py_ssize_t first, Py_ssize_t last, const real *x, const Py_ssize_t *x_stride,
    const real *packed, Py_ssize_t w_stride, real bias, real *out, real *lines
) noexcept nogil:
    """Rows first … last of a plane of outputs, whose inputs are copied to lines; `first` is even."""
    cdef Py_ssize_t reach = s.taps // 2, begin = first // 2 + s.shift - reach, y, i
    cdef real[49] weight
    cdef real *line = lines
    for i in range(s.taps * s.taps):
        weight[i] = packed[i * w_stride]
    for y in range(begin, begin + (last - first + 1) // 2 + 2 * reach):
        memset(line, 0, s.x_row * sizeof(real))
        if 0 <= y < s.height and x_stride[1] == 1:
            memcpy(line + LINE_MARGIN, x + y * x_stride[0], s.width * sizeof(real))
        elif 0 <= y < s.height:
            for i in range(s.width):
                line[LINE_MARGIN + i] = x[y * x_stride[0] + i * x_stride[1]]
        line += s.x_row
    lines += reach * s.x_row + LINE_MARGIN + s.shift
    if real is float:
        transposed_plane_f32(s, last - first, lines, weight, bias, out)
    else:
        transposed_plane_f64(s, last - first, lines, weight, bias, out)


def depthwise_transposed_planes(
    const real[:, :, :, :] x, const real[:, ::1] packed, const real[::1] bias, geometry, Py_ssize_t bands,
    Py_ssize_t pitch, bint rectified, real[:, :, :, :] out, real[::1] workspace, Py_ssize_t per_thread,
    int num_threads
):
    """The same on planes, of any number of channels, for a square kernel whose other axis is like the row.

    The two axes' padding is the same at the low end.

    Parameters
    ----------
    x : (N, C, H_out, W_out), IN
    bands : parts that a plane's rows of outputs are cut into
    pitch : elements of a line of inputs, which a margin and zeros surround
    out : (N, C, H, W), OUT
        Pixels of a row are contiguous.
    workspace : (num_threads · per_thread), scratch
    """
    cdef Problem problem = problem_of(geometry)
    cdef Py_ssize_t item, n, c, first, last, size = sizeof(real), channels = out.shape[1]
    cdef Py_ssize_t rows = out.shape[2]
    cdef transposed s = transposed_of(&problem, rectified)
    cdef Py_ssize_t[2] x_stride = [x.strides[2] // size, x.strides[3] // size]
    s.height, s.width, s.columns = x.shape[2], x.shape[3], out.shape[3]
    s.w_stride, s.x_row, s.y_row = 1, pitch, out.strides[2] // size
    cdef Py_ssize_t pairs = (rows + 1) // 2
    for item in prange(
        out.shape[0] * channels * bands, nogil=True, num_threads=num_threads, schedule="static"
    ):
        n = item // (channels * bands)
        c = item // bands % channels
        first = 2 * share(pairs, bands, item % bands)
        last = min(rows, 2 * share(pairs, bands, item % bands + 1))
        if first < last:
            transposed_band(
                &s, first, last, &x[n, c, 0, 0], x_stride, &packed[0, c], packed.shape[1], bias[c],
                &out[n, c, first, 0], &workspace[threadid() * per_thread])
