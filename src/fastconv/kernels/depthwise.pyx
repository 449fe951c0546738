# Depthwise convolution and groups of a few channels on channels-last pixels: vectors run over output
# channels, and every input vector is multiplied into all sums it is part of, shuffled where a group has
# several channels or several outputs, broadcast where a group fills a vector of outputs:
#
#     out[y, x, m] = Σ_i Σ_c Σ_j  x[y·s_h + i·d_h − p_h, x·s_w + j·d_w − p_w, g(m)·C + c] · w[(i, c, j), m]
#
# x is read where it lies, its borders by leaving out taps; only where its channels are not contiguous, or
# fewer than a vector, is a band of it copied with its halo.
from cython.parallel cimport prange, threadid


cdef inline void narrow_rows(
    const narrow *s, Py_ssize_t rows, Py_ssize_t top, const real *a, const real *w, const real *bias,
    const void *lanes, real *y
) noexcept nogil:
    if real is float:
        narrow_rows_f32(s, rows, top, a, w, bias, <const int32_t *>lanes, y)
    else:
        narrow_rows_f64(s, rows, top, a, w, bias, <const int64_t *>lanes, y)


cdef inline bint narrow_sized(const narrow *s, const real *unused) noexcept nogil:
    if real is float:
        return narrow_sized_f32(s)
    else:
        return narrow_sized_f64(s)


cdef inline void narrow_align(narrow *s, Py_ssize_t rows, const real *a) noexcept nogil:
    if real is float:
        narrow_align_f32(s, rows, a)
    else:
        narrow_align_f64(s, rows, a)


cdef void narrow_band(
    narrow *s, Py_ssize_t top, const real *x, const real *w, const real *bias, const void *lanes,
    Py_ssize_t rows, real *out, const Py_ssize_t *out_stride, real *block
) noexcept nogil:
    """A band of rows; `block` holds two rows where `out` cannot take whole vectors of channels.

    Its first row's window begins in row `top` of the input, whose row 0 is at `x`.
    """
    cdef Py_ssize_t width = VECTOR_BYTES // <Py_ssize_t>sizeof(real), y = 0, count
    s.y_pixel, s.y_row = out_stride[1], out_stride[0]
    x = x + top * (s.a_step // s.stride_h)
    if out_stride[2] == 1 and s.out_channels >= width:
        narrow_align(s, rows, x)
        narrow_rows(s, rows, top, x, w, bias, lanes, out)
        return
    s.y_pixel = max(width, s.out_channels)
    s.y_row = s.columns * s.y_pixel
    narrow_align(s, 2, x)
    for y from 0 <= y < rows by 2:
        count = min(2, rows - y)
        if s.accumulate:
            gather_band(out + y * out_stride[0], out_stride, count, s.columns, s.out_channels, 0, 0, count,
                        s.columns, block, s.y_row, s.y_pixel)
        narrow_rows(s, count, top + y * s.stride_h, x + y * s.a_step, w, bias, lanes, block)
        scatter_rows(block, s.y_row, s.y_pixel, count, s.columns, s.out_channels, out + y * out_stride[0],
                     out_stride)


cdef void narrow_item(
    const Problem *problem, const real *x, const Py_ssize_t *x_shape, const Py_ssize_t *x_stride,
    const real *w, Py_ssize_t w_stride, const real *bias, const Py_ssize_t *base, const void *lanes,
    bint copy_band, bint rectified, bint accumulate, Py_ssize_t first, Py_ssize_t last, real *out,
    const Py_ssize_t *out_shape, const Py_ssize_t *out_stride, real *scratch
) noexcept nogil:
    """Output rows first … last of one image; shapes and strides are (H, W, C), `out` is its row `first`."""
    cdef Py_ssize_t width = VECTOR_BYTES // <Py_ssize_t>sizeof(real), left
    cdef Py_ssize_t in_rows = covered(last - first, problem.stride_h, problem.kernel_h, problem.dilation_h)
    cdef Py_ssize_t in_columns = covered(out_shape[1], problem.stride_w, problem.kernel_w, problem.dilation_w)
    cdef Py_ssize_t row_pitch = x_stride[0], top = first * problem.stride_h - problem.pad_h
    cdef narrow s
    s.kernel_h, s.kernel_w = problem.kernel_h, problem.kernel_w
    s.stride_h, s.stride_w = problem.stride_h, problem.stride_w
    s.dilation_h, s.dilation_w, s.group_in = problem.dilation_h, problem.dilation_w, problem.group_in
    s.mode, s.base, s.rectified, s.accumulate = NARROW_SHUFFLED, base, rectified, accumulate
    if problem.group_in * problem.group_out == 1:
        s.mode, s.base = NARROW_PLAIN, NULL
    elif problem.group_out % width == 0:
        s.mode = NARROW_BROADCAST
    s.columns, s.w_stride = out_shape[1], w_stride
    s.out_channels = out_shape[2]
    s.height, s.width, s.pad_w, s.a_pixel = x_shape[0], x_shape[1], problem.pad_w, x_stride[1]
    if copy_band or x_stride[2] != 1 or x_shape[2] < width:
        s.a_pixel = max(width, x_shape[2])
        row_pitch = in_columns * s.a_pixel
        gather_band(x, x_stride, x_shape[0], x_shape[1], x_shape[2], top, -problem.pad_w, in_rows, in_columns,
                    scratch, row_pitch, s.a_pixel)
        s.height, s.width, s.pad_w, x, top = in_rows, in_columns, 0, scratch, 0
        scratch = scratch + in_rows * row_pitch
    s.a_row, s.a_step = s.dilation_h * row_pitch, s.stride_h * row_pitch
    left = s.width + s.pad_w - (problem.kernel_w - 1) * problem.dilation_w  # one more than the last start
    s.interior_begin = min((s.pad_w + s.stride_w - 1) // s.stride_w, s.columns)
    s.interior_end = (left + s.stride_w - 1) // s.stride_w if left > 0 else 0
    s.interior_end = max(s.interior_begin, min(s.interior_end, s.columns))
    s.sized = narrow_sized(&s, x)
    s.pairs = s.sized and s.kernel_h == s.kernel_w and s.stride_h == s.stride_w and s.dilation_h == 1
    narrow_band(&s, top, x, w, bias, lanes, last - first, out, out_stride, scratch)


def depthwise(
    const real[:, :, :, :] x, const real[:, ::1] packed, const real[::1] bias, geometry,
    bytes base, bytes lanes, Py_ssize_t bands, bint copy_band,
    bint rectified, bint accumulate, real[:, :, :, :] out, real[::1] workspace, Py_ssize_t per_thread,
    int num_threads
):
    """Convolution in groups so narrow that a vector of outputs reads at most a vector of input channels.

    Parameters
    ----------
    x : (N, H, W, C_in), IN
    packed : (k_h·C_in/groups·k_w, C_out in whole vectors), IN
    bias : (C_out in whole vectors), IN
    base : bytes of an array of intp (vectors), IN
        The first of the input channels that each vector of output channels is made from.
    lanes : bytes of an integer array (vectors, C_in/groups, LANES), IN
        Which of those channels each lane reads; its items are as wide as those of x.
    bands : parts the output rows of an image are cut into
    copy_band : bool
        Copy each band with its zero halo in any case, so that padding takes part in the products.
    out : (N, H_out, W_out, C_out), OUT
    workspace : (num_threads · per_thread), scratch
    """
    cdef Problem problem = problem_of(geometry)
    cdef Py_ssize_t item, items = x.shape[0] * bands, size = sizeof(real), n, first, last
    cdef const char *base_at = base
    cdef const char *lanes_at = lanes
    # Bands of an even number of rows need no tile of one row.
    cdef Py_ssize_t unit = 1 if (out.shape[1] + 1) // 2 % bands else 2
    cdef Py_ssize_t units = (out.shape[1] + unit - 1) // unit
    cdef Py_ssize_t[3] x_stride = [x.strides[1] // size, x.strides[2] // size, x.strides[3] // size]
    cdef Py_ssize_t[3] out_stride = [out.strides[1] // size, out.strides[2] // size, out.strides[3] // size]
    for item in prange(items, nogil=True, num_threads=num_threads, schedule="static"):
        n = item // bands
        first = unit * share(units, bands, item % bands)
        last = min(out.shape[1], unit * share(units, bands, item % bands + 1))
        if first < last:
            narrow_item(
                &problem, &x[n, 0, 0, 0], &x.shape[1], x_stride, &packed[0, 0], packed.shape[1], &bias[0],
                <const Py_ssize_t *>base_at, lanes_at, copy_band, rectified, accumulate, first, last,
                &out[n, first, 0, 0], &out.shape[1], out_stride, &workspace[threadid() * per_thread])
