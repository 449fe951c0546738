# Depthwise-separable convolution in one pass: a few rows of the depthwise result are made in scratch memory
# that stays in cache, and are multiplied by the pointwise weights at once:
#
#     mid[y, x, c] = Σ_i Σ_j  x[y·s_h + i·d_h − p_h, x·s_w + j·d_w − p_w, g(c)] · depthwise[(i, j), c]
#     out[y, x, m] = Σ_c  mid[y, x, c] · pointwise[c, m]
from cython.parallel cimport prange, threadid


def separable(
    const real[:, :, :, :] x, const real[:, ::1] depthwise_weight, const real[::1] depthwise_bias,
    depthwise_geometry, bytes base, bytes lanes, bint copy_band,
    bint depthwise_rectified, const real[:, :, :, ::1] weight, const real[::1] bias, geometry,
    const Py_ssize_t[::1] segments, Py_ssize_t chunks, Py_ssize_t depth, Py_ssize_t pitch, bint rectified,
    Py_ssize_t bands, Py_ssize_t band_mid, real[:, :, :, :] out, real[::1] workspace, Py_ssize_t per_thread,
    int num_threads
):
    """Depthwise, then pointwise convolution, a band of rows at a time.

    Parameters
    ----------
    x : (N, H, W, C_in), IN
    depthwise_weight, depthwise_bias, depthwise_geometry, base, lanes, copy_band : IN
        The first convolution, as for ``depthwise``.
    weight, bias, geometry, segments, chunks : IN
        The second one, as for ``direct``; the pixels of its input are C_mid apart.
    depth, pitch : int
        Unless ``depth`` is 0, weight and bias are as for ``strassen``: so many channels are multiplied at a
        time, and a pixel's sums are half of ``pitch`` elements apart.
    depthwise_rectified, rectified : bool
        max(·, 0) after the first and after the second convolution.
    bands : parts the output rows of an image are cut into
        With Strassen's product the result's bits depend on them.
    band_mid : elements of a band's depthwise result
    out : (N, H_out, W_out, C_out), OUT
    workspace : (num_threads · per_thread), scratch
    """
    cdef Problem first_problem = problem_of(depthwise_geometry), problem = problem_of(geometry)
    cdef Py_ssize_t item, items = x.shape[0] * bands, size = sizeof(real), n, first, last
    cdef Py_ssize_t channels = problem.groups * problem.group_in, panels = weight.shape[1]
    cdef Py_ssize_t columns = out.shape[2], half = weight.shape[2]
    cdef Py_ssize_t[3] x_stride = [x.strides[1] // size, x.strides[2] // size, x.strides[3] // size]
    cdef Py_ssize_t[3] out_stride = [out.strides[1] // size, out.strides[2] // size, out.strides[3] // size]
    cdef Py_ssize_t[3] mid_shape = [out.shape[1], columns, channels]
    cdef Py_ssize_t[3] mid_stride = [columns * channels, channels, 1]
    cdef const Py_ssize_t *chunk = &segments[0]
    cdef const Py_ssize_t *offset = chunk + chunks + 1
    cdef Py_ssize_t out_columns = one_row(out_stride, out.shape[1], columns)
    cdef bint in_place = out_stride[2] == 1 and out_columns == out.shape[1] * columns
    cdef const char *base_at = base
    cdef const char *lanes_at = lanes
    cdef Halving h
    cdef real *mid
    for item in prange(items, nogil=True, num_threads=num_threads, schedule="static"):
        n = item // bands
        first = share(out.shape[1], bands, item % bands)
        last = share(out.shape[1], bands, item % bands + 1)
        mid = &workspace[threadid() * per_thread]
        narrow_item(
            &first_problem, &x[n, 0, 0, 0], &x.shape[1], x_stride, &depthwise_weight[0, 0],
            depthwise_weight.shape[1], &depthwise_bias[0], <const Py_ssize_t *>base_at, lanes_at, copy_band,
            depthwise_rectified, False, first, last, mid, mid_shape, mid_stride, mid + band_mid)
        if depth > 0:
            h = halving((last - first) * columns, channels, half, channels, pitch, depth, False, rectified)
            strassen_block(
                &h, mid, weight, &bias[0], 0, weight.shape[0], out.shape[3], &out[n, 0, 0, 0], out_stride,
                out_columns, first * columns, in_place, mid + band_mid)
        else:
            direct_band(
                &problem, mid, mid_stride[0], channels, offset, offset + chunk[chunks], chunk, chunks,
                &weight[0, 0, 0, 0], channels, panels, 0, panels, &bias[0], rectified, False,
                &out[n, first, 0, 0], out_stride, last - first, columns, mid + band_mid)
