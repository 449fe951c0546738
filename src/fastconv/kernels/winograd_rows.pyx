# Winograd convolution F(m, r) of few channels, along rows alone. Of stride s, s pixels side by side are one
# of s·C_in channels, and the kernel has r = ⌈k_w / s⌉ taps of stride 1. With n = m + r − 1 points, for each
# tile t of m outputs
#
#     V_q[y, t, c] = Σ_j B_qj d[y, m·t + j, c]
#     M_q[y, t] = Σ_i Σ_c U_q[i, c] V_q[y·s_h + i·d_h, t, c]        U_q[i, c] = Σ_j G_qj g[i, j, c]
#     out[y, m·t + k] = Σ_q A_kq M_q[y, t]
#
# A row is transformed once for all kernel rows that meet it, and a tile's transformed rows follow each other:
# what a product sums lies in one run, or in a run for each kernel row where these are dilated.
from cython.parallel cimport prange, threadid


# Transformed rows: `pitch` elements of a tile's, `channels` of each row.
cdef struct RowBand:
    Py_ssize_t pitch, channels, position, row_step, kernel_rows, kernel_step, block, at_once


cdef void transform_rows(
    const Tiling *tiling, const RowBand *s, const real *image, const Py_ssize_t *stride, Py_ssize_t height,
    Py_ssize_t width, Py_ssize_t channels, Py_ssize_t top, Py_ssize_t left, Py_ssize_t rows, real *row,
    real *v, const real *coefficient
) noexcept nogil:
    """V of `rows` rows from row `top` of the image on; `row` holds one of them.

    Whole vectors are stored: what is beyond a row's channels is overwritten by the next row.
    """
    cdef const real *pixel[MAX_POSITIONS]
    cdef Py_ssize_t lanes = panel_width(v) // 2, vectors = (s.channels + lanes - 1) // lanes * lanes
    cdef Py_ssize_t columns = ((tiling.across - 1) * tiling.outputs_w + tiling.points_w) * tiling.stride_w
    cdef Py_ssize_t r, t, i, j, run, tile = tiling.outputs_w * s.channels
    for r in range(rows):
        gather_band(image, stride, height, width, channels, top + r, left, 1, columns, row, 0, channels)
        for t from 0 <= t < tiling.across by MAX_POSITIONS // tiling.points_w:
            run = min(<Py_ssize_t>MAX_POSITIONS // tiling.points_w, tiling.across - t)
            for i in range(run):
                for j in range(tiling.points_w):
                    pixel[i * tiling.points_w + j] = row + (t + i) * tile + j * s.channels
            transform_input(tiling, run, pixel, vectors, v + t * s.pitch, s.position, s.pitch, coefficient,
                            coefficient)
        v += s.channels


cdef void row_products(
    const RowBand *s, Py_ssize_t tiles, const real *v, const real *weight, Py_ssize_t columns, real *m
) noexcept nogil:
    """M of one panel and point for some tiles of a row, a few kernel rows at a time."""
    cdef Py_ssize_t width = panel_width(v), first, run, i
    cdef Py_ssize_t[MAX_BLOCKS] offset
    cdef Py_ssize_t[MAX_BLOCKS] length
    cdef bint joined = s.kernel_step == s.channels
    for first from 0 <= first < s.kernel_rows by s.at_once:
        run = min(s.at_once, s.kernel_rows - first)
        for i in range(1 if joined else run):
            offset[i] = (first + i) * s.kernel_step
            length[i] = run * s.channels if joined else s.channels
        gemm_rows(tiles, columns, v, s.pitch, 1 if joined else run, offset, length, weight, width, m, width,
                  START_OUTPUT if first else START_ZERO, NULL, False)
        weight += run * s.channels * width


cdef void winograd_row(
    const Tiling *tiling, const RowBand *s, Py_ssize_t y, const real *v, const real *packed,
    Py_ssize_t out_channels, const real *coefficient, const real *bias, real *out, real *m
) noexcept nogil:
    """All outputs of row y: products of a block of tiles, point by point, then their outputs."""
    cdef Py_ssize_t width = panel_width(v), blocks = (tiling.across + s.block - 1) // s.block, i, p, q
    cdef Py_ssize_t first, last, channels, at = y * tiling.across, terms = s.kernel_rows * s.channels
    cdef Py_ssize_t m_position = padded_position(s.block * width, v)
    cdef Place place
    for i in range(blocks):
        first, last = share(tiling.across, blocks, i), share(tiling.across, blocks, i + 1)
        for p in range(tiling.panels):
            channels = min(width, out_channels - p * width)
            place = place_of(tiling, p * width)
            for q in range(tiling.points_w):
                if tiling.fetch and not tiling.stream:
                    fetch_outputs(tiling, at + first + share(last - first, tiling.points_w, q),
                                  at + first + share(last - first, tiling.points_w, q + 1), channels,
                                  out + place.offset)
                row_products(
                    s, last - first, v + q * s.position + first * s.pitch,
                    packed + (p * tiling.points_w + q) * terms * width,
                    width // 2 if channels <= width // 2 else width, m + q * m_position)
            winograd_outputs(
                tiling, &place, m, m_position, at + first, at + last, channels, coefficient, coefficient,
                bias + p * width, out + place.offset, m + tiling.points_w * m_position)


cdef void set_rows(Tiling *tiling, const Problem *problem, int pairs, int outputs) noexcept:
    """Tiles of one row, of pixels as a stride makes them."""
    memset(tiling, 0, sizeof(Tiling))
    tiling.pairs_w, tiling.outputs_w = pairs, outputs
    tiling.outputs_h = tiling.merged_h = tiling.merged_w = 1
    set_spacing(tiling, problem)
    tiling.dilation_h = 1  # rows are lines of tiles, none of them a phase


def winograd_rows(
    const real[:, :, :, :] x, const real[:, :, :, ::1] packed, const real[::1] bias, geometry, form,
    const real[::1] coefficient, const Py_ssize_t[::1] line_origin, const Py_ssize_t[::1] across_origin,
    Py_ssize_t bands, Py_ssize_t block, Py_ssize_t pitch, Py_ssize_t at_once, bint fetch, bint stream,
    bint rectified, bint accumulate, real[:, :, :, :] out, real[::1] workspace, Py_ssize_t per_thread,
    int num_threads
):
    """Winograd convolution F(m, r) along rows, in one group.

    Parameters
    ----------
    x : (N, H, W, C_in), IN
    packed : (panels, points, k_h·s·C_in, PANEL), IN
        The weights transformed, K in the order (k_h, pixel of a stride, C_in).
    bias : (panels · PANEL), IN
    form : (pairs, m)
        Pairs of points, and outputs of a tile.
    coefficient : IN
        The constants of the transforms, as winograd.h lists them.
    line_origin, across_origin : IN
        The output row each line of tiles begins at, which is its number, and the column of each of its tiles.
    bands : parts the output rows of an image are cut into
    block : the most tiles that are multiplied at a time
    pitch : elements from tile to tile of the transformed rows of a band
    at_once : kernel rows summed at a time
    fetch : whether to ask for outputs before they are written
    stream : whether to write outputs past the caches, where they are channels-last and whole vectors
    rectified, accumulate : as Epilogue has them
    out : (N, H_out, W_out, C_out), OUT
    workspace : (num_threads · per_thread), scratch
    """
    cdef Problem problem = problem_of(geometry)
    cdef Tiling tiling
    cdef RowBand s
    set_rows(&tiling, &problem, form[0], form[1])
    tiling.panels, tiling.across = packed.shape[0], across_origin.shape[0]
    tiling.line_origin, tiling.across_origin = &line_origin[0], &across_origin[0]
    tiling.rectified = rectified
    set_outputs(&tiling, out, problem.group_out, accumulate, fetch, stream)
    s.channels, s.pitch = problem.stride_w * x.shape[3], pitch
    s.block, s.at_once = block, at_once
    s.kernel_rows, s.kernel_step = problem.kernel_h, problem.dilation_h * s.channels
    s.row_step = problem.stride_h * s.channels
    s.position = padded_position(tiling.across * pitch, &workspace[0])
    cdef Py_ssize_t item, items = x.shape[0] * bands, n, y, first, last, in_rows, size = sizeof(real)
    cdef Py_ssize_t[3] x_stride = [x.strides[1] // size, x.strides[2] // size, x.strides[3] // size]
    cdef real *v
    cdef real *m
    for item in prange(items, nogil=True, num_threads=num_threads, schedule="static"):
        n = item // bands
        first, last = share(out.shape[1], bands, item % bands), share(out.shape[1], bands, item % bands + 1)
        in_rows = covered(last - first, problem.stride_h, problem.kernel_h, problem.dilation_h)
        v = &workspace[threadid() * per_thread]
        m = v + tiling.points_w * s.position
        transform_rows(&tiling, &s, &x[n, 0, 0, 0], x_stride, x.shape[1], x.shape[2], x.shape[3],
                       first * problem.stride_h - problem.pad_h, -problem.pad_w, in_rows, m, v,
                       &coefficient[0])
        for y in range(first, last):
            winograd_row(&tiling, &s, y, v + (y - first) * s.row_step, &packed[0, 0, 0, 0],
                         problem.group_out, &coefficient[0], &bias[0], &out[n, 0, 0, 0], m)
        if tiling.stream:
            finish_streams()
