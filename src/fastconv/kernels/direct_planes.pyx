# Direct convolution of channels-first planes: the weights are the left factor, patches the right one, a panel
# of as many pixels of an output row as two vectors hold:
#
#     out[n, m, y, x] = Σ_i Σ_j Σ_c  W[m, (i, j, c)] · plane[c, y·s_h + i·d_h, x·s_w + j·d_w]
#
# A band of planes is gathered with its halo, columns sorted by their phase modulo the stride, so that a row
# of a panel is two vectors side by side. Some panels are multiplied by a tile of output channels before the
# next channels: outputs are written in long runs, because the planes of many image sizes begin in the same
# few sets of the L1 cache.
from cython.parallel cimport prange, threadid
from libc.string cimport memcpy


cdef inline void gather_patches(
    const real *band, const Py_ssize_t *offset, Py_ssize_t terms, real *panel
) noexcept nogil:
    """panel[k, x] = band[offset[k] + x] for x < PANEL."""
    cdef Py_ssize_t width = panel_width(band), k
    for k in range(terms):
        memcpy(panel + k * width, band + offset[k], 2 * VECTOR_BYTES)


cdef inline Py_ssize_t panel_start(
    Py_ssize_t panel, Py_ssize_t columns, Py_ssize_t width, bint accumulate
) noexcept nogil:
    """The first column of a panel. The last one ends with the row, and overwrites some of what the one before
    it has written; but not where outputs are added to."""
    cdef Py_ssize_t lanes = width // 2, x = panel * width
    if accumulate or columns < width:
        return x
    return columns - lanes if columns - x <= lanes else min(x, columns - width)


cdef void planes_row(
    const real *band, const Py_ssize_t *offset, Py_ssize_t terms, const real *weight, const real *bias,
    Py_ssize_t out_channels, bint rectified, bint accumulate, Py_ssize_t columns, real *out,
    Py_ssize_t out_stride, Py_ssize_t block, real *panels
) noexcept nogil:
    """All output channels of one row of pixels, `block` panels at a time."""
    cdef Py_ssize_t width = panel_width(band), count = (columns + width - 1) // width, first, last, p, m, x
    cdef Py_ssize_t zero = 0
    cdef int start = START_ROW_BIAS | START_OUTPUT if accumulate else START_ROW_BIAS
    for first from 0 <= first < count by block:
        last = min(count, first + block)
        for p in range(first, last):
            x = panel_start(p, columns, width, accumulate)
            gather_patches(band + x, offset, terms, panels + (p - first) * terms * width)
        for m from 0 <= m < out_channels by TILE_ROWS:
            for p in range(first, last):
                x = panel_start(p, columns, width, accumulate)
                gemm_tile(
                    min(<Py_ssize_t>TILE_ROWS, out_channels - m), min(width, columns - x), weight + m * terms,
                    terms, 1, &zero, &terms, panels + (p - first) * terms * width, width,
                    out + m * out_stride + x, out_stride, start, bias + m, rectified, <const real *>NULL)


def direct_planes(
    const real[:, :, :, :] x, const real[:, ::1] weight, const real[::1] bias, geometry,
    const Py_ssize_t[::1] offset, Py_ssize_t phase_pitch, Py_ssize_t bands, Py_ssize_t block,
    bint rectified, bint accumulate, real[:, :, :, :] out, real[::1] workspace, Py_ssize_t per_thread,
    int num_threads
):
    """Convolution in one group where the columns of x and of out are contiguous, all terms in one sum.

    Parameters
    ----------
    x : (N, H, W, C_in), IN
    weight : (C_out, k_h·k_w·C_in), IN
    bias : (at least C_out), IN
    offset : (k_h·k_w·C_in), IN
        Where each term lies in the gathered planes (C_in, rows, stride_w, phase_pitch).
    bands : parts the output rows of an image are cut into
    block : panels multiplied at a time
    rectified, accumulate : the epilogue, out = max(conv + bias + out, 0)
    out : (N, H_out, W_out, C_out), OUT
    workspace : (num_threads · per_thread), scratch, a band and then panels for each thread
    """
    cdef Problem problem = problem_of(geometry)
    cdef Py_ssize_t item, items = x.shape[0] * bands, size = sizeof(real), channels = x.shape[3]
    cdef Py_ssize_t n, c, y, first, last, in_rows, row_pitch = problem.stride_w * phase_pitch
    cdef Py_ssize_t in_columns = covered(out.shape[2], problem.stride_w, problem.kernel_w, problem.dilation_w)
    cdef Py_ssize_t plane_pitch = row_pitch * covered(
        (out.shape[1] + bands - 1) // bands, problem.stride_h, problem.kernel_h, problem.dilation_h)
    # The last row's loads reach beyond the band.
    cdef Py_ssize_t band_size = channels * plane_pitch + panel_width(&workspace[0])
    cdef real *scratch
    cdef planes s
    s.stride_w, s.pad_w, s.phase_pitch = problem.stride_w, problem.pad_w, phase_pitch
    for item in prange(items, nogil=True, num_threads=num_threads, schedule="static"):
        n = item // bands
        first = share(out.shape[1], bands, item % bands)
        last = share(out.shape[1], bands, item % bands + 1)
        in_rows = covered(last - first, problem.stride_h, problem.kernel_h, problem.dilation_h)
        scratch = &workspace[threadid() * per_thread]
        for c in range(channels):
            gather_plane(
                &s, &x[n, 0, 0, c], x.strides[1] // size, x.shape[1], x.shape[2],
                first * problem.stride_h - problem.pad_h, in_rows, in_columns, scratch + c * plane_pitch)
        for y in range(first, last):
            planes_row(
                scratch + (y - first) * problem.stride_h * row_pitch, &offset[0], offset.shape[0],
                &weight[0, 0], &bias[0], out.shape[3], rectified, accumulate, out.shape[2],
                &out[n, y, 0, 0], out.strides[3] // size, block, scratch + band_size)
