# Depthwise-separable convolution in one pass: a few rows of the depthwise result are made in scratch memory
# that stays in cache, and are multiplied by the pointwise weights at once:
#
#     mid[y, x, c] = Σ_i Σ_j  x[y·s_h + i·d_h − p_h, x·s_w + j·d_w − p_w, g(c)] · depthwise[(i, j), c]
#     out[y, x, m] = Σ_c  mid[y, x, c] · pointwise[c, m]
from cython.parallel cimport prange, threadid


cdef void pointwise_rows(
    const real *mid, Py_ssize_t channels, Py_ssize_t rows, Py_ssize_t columns, const real *packed,
    Py_ssize_t depth, const real *bias, bint rectified, Py_ssize_t out_channels, real *out,
    const Py_ssize_t *out_stride, real *block
) noexcept nogil:
    """All output channels of rows · columns pixels; `block` holds as many times PANEL."""
    cdef Py_ssize_t width = panel_width(packed), p, q, y, k, run, count, zero = 0, runs = rows
    cdef Py_ssize_t pieces = (channels + depth - 1) // depth, pixels = columns
    cdef bint in_place = out_stride[2] == 1
    cdef Py_ssize_t c_row = out_stride[0] if in_place else columns * width
    cdef Py_ssize_t c_pixel = out_stride[1] if in_place else width
    cdef real *c
    if c_row == columns * c_pixel:
        runs, pixels = 1, rows * columns
    for p in range((out_channels + width - 1) // width):
        count = min(width, out_channels - p * width)
        c = out + p * width if in_place else block
        for q in range(pieces):
            k = share(channels, pieces, q)
            run = share(channels, pieces, q + 1) - k
            for y in range(runs):
                gemm_rows(
                    pixels, count, mid + y * pixels * channels + k, channels, 1, &zero, &run,
                    packed + (p * channels + k) * width, width, c + y * c_row, c_pixel,
                    START_BIAS if q == 0 else START_OUTPUT, bias + p * width,
                    rectified and q == pieces - 1)
        if not in_place:
            scatter_rows(c, c_row, width, rows, columns, count, out + p * width * out_stride[2], out_stride)


def separable(
    const real[:, :, :, :] x, const real[:, ::1] depthwise_weight, const real[::1] depthwise_bias, geometry,
    const Py_ssize_t[:, ::1] start, const unsigned char[::1] lanes, bint depthwise_rectified,
    const real[:, :, :, ::1] pointwise_weight, const real[::1] pointwise_bias, bint rectified,
    Py_ssize_t depth, Py_ssize_t bands, Py_ssize_t band_mid, real[:, :, :, :] out, real[::1] workspace,
    Py_ssize_t per_thread, int num_threads
):
    """Depthwise, then pointwise convolution, a band of rows at a time.

    Parameters
    ----------
    x : (N, H, W, C_in), IN
    depthwise_weight, depthwise_bias, geometry, start, lanes : IN
        The depthwise convolution, as for ``depthwise``.
    depthwise_rectified, rectified : bool
        max(·, 0) after the first and after the second convolution.
    pointwise_weight : (1, panels, C_mid, PANEL), IN
    pointwise_bias : (panels · PANEL), IN
    depth : channels of the second convolution summed at a time
    bands : parts the output rows of an image are cut into
    band_mid : elements of a band's depthwise result
    out : (N, H_out, W_out, C_out), OUT
    workspace : (num_threads · per_thread), scratch
    """
    cdef Problem problem = problem_of(geometry)
    cdef Py_ssize_t item, items = x.shape[0] * bands, size = sizeof(real), n, first, last
    cdef Py_ssize_t channels = pointwise_weight.shape[2], columns = out.shape[2]
    cdef Py_ssize_t[3] x_stride = [x.strides[1] // size, x.strides[2] // size, x.strides[3] // size]
    cdef Py_ssize_t[3] out_stride = [out.strides[1] // size, out.strides[2] // size, out.strides[3] // size]
    cdef Py_ssize_t[3] mid_shape = [out.shape[1], columns, channels]
    cdef Py_ssize_t[3] mid_stride = [columns * channels, channels, 1]
    cdef real *mid
    for item in prange(items, nogil=True, num_threads=num_threads, schedule="static"):
        n = item // bands
        first = share(out.shape[1], bands, item % bands)
        last = share(out.shape[1], bands, item % bands + 1)
        mid = &workspace[threadid() * per_thread]
        narrow_item(
            &problem, &x[n, 0, 0, 0], &x.shape[1], x_stride, &depthwise_weight[0, 0],
            depthwise_weight.shape[1], &depthwise_bias[0], &start[0, 0], start.shape[1], &lanes[0],
            depthwise_rectified, first, last, mid, mid_shape, mid_stride, mid + band_mid)
        pointwise_rows(
            mid, channels, last - first, columns, &pointwise_weight[0, 0, 0, 0], depth, &pointwise_bias[0],
            rectified, out.shape[3], &out[n, first, 0, 0], out_stride, mid + band_mid)
