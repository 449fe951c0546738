# The same where sums are short: F(4, 3), the products and outputs of a tile in registers. V lies by tiles,
#
#     V[group of tiles][y][c][q][tile]        with two vectors' tiles a group,
#
# so that it is the right factor where outputs are planes; where they are channels-last its elements are the
# left one's. The sums are the same.
from cython.parallel cimport prange, threadid

cdef extern from "microkernel.h" nogil:
    int SHORT_POINTS, SHORT_OUTPUTS
    struct short_row:
        Py_ssize_t runs, run, skip, matrix, y_tile, y_pixel, columns
        bint accumulate, rectified, streamed
    void winograd_short_pixels_f32(
        int vectors, Py_ssize_t count, const short_row *s, const float *scalar, const float *vector,
        const float *coefficient, const float *bias, float *y) noexcept
    void winograd_short_pixels_f64(
        int vectors, Py_ssize_t count, const short_row *s, const double *scalar, const double *vector,
        const double *coefficient, const double *bias, double *y) noexcept
    void winograd_short_planes_f32(
        int vectors, Py_ssize_t count, const short_row *s, const float *scalar, const float *vector,
        const float *coefficient, const float *bias, float *y) noexcept
    void winograd_short_planes_f64(
        int vectors, Py_ssize_t count, const short_row *s, const double *scalar, const double *vector,
        const double *coefficient, const double *bias, double *y) noexcept


# Tiles whose outputs are put together where they are not stored in place.
cdef Py_ssize_t SHORT_TILES = 8
# The points of as many terms as short sums have, as in winograd_rows.py.
cdef enum:
    SHORT_PIXELS = 6 * 16


cdef inline void winograd_short_tiles(
    bint planar, int vectors, Py_ssize_t count, const short_row *s, const real *scalar, const real *vector,
    const real *coefficient, const real *bias, real *y
) noexcept nogil:
    if planar:
        if real is float:
            winograd_short_planes_f32(vectors, count, s, scalar, vector, coefficient, bias, y)
        else:
            winograd_short_planes_f64(vectors, count, s, scalar, vector, coefficient, bias, y)
    else:
        if real is float:
            winograd_short_pixels_f32(vectors, count, s, scalar, vector, coefficient, bias, y)
        else:
            winograd_short_pixels_f64(vectors, count, s, scalar, vector, coefficient, bias, y)


cdef void sort_row(
    const real *row, Py_ssize_t width, Py_ssize_t pixel, Py_ssize_t pad, Py_ssize_t period, Py_ssize_t pitch,
    real *target
) noexcept nogil:
    """target[phase][t] = row[t · period + phase − pad], zero outside of it."""
    cdef Py_ssize_t phase, t, first, last
    memset(target, 0, period * pitch * sizeof(real))
    for phase in range(period):
        first = max(0, (pad - phase + period - 1) // period)
        last = min(pitch, (width + pad - phase + period - 1) // period)
        for t in range(first, last):
            target[phase * pitch + t] = row[(t * period + phase - pad) * pixel]


cdef void short_inputs(
    const Tiling *tiling, const real *image, const Py_ssize_t *stride, Py_ssize_t height, Py_ssize_t width,
    Py_ssize_t channels, Py_ssize_t top, Py_ssize_t rows, Py_ssize_t pad, Py_ssize_t groups, real *sorted,
    real *v, const real *coefficient
) noexcept nogil:
    """V of some rows of the image; `sorted` holds one row, its columns by their phase modulo a tile."""
    cdef Py_ssize_t[SHORT_PIXELS] offset
    cdef const real *pixel[SHORT_PIXELS]
    cdef Py_ssize_t size = panel_width(v), lanes = size // 2, period = SHORT_OUTPUTS * tiling.stride_w
    cdef Py_ssize_t pitch = groups * size + lanes, terms = tiling.stride_w * channels, r, g, c, i, x, tiles
    for i in range(terms * SHORT_POINTS):
        x = i % SHORT_POINTS * tiling.stride_w + i // SHORT_POINTS // channels
        c = i // SHORT_POINTS % channels
        offset[i] = (c * period + x % period) * pitch + x // period
    for r in range(rows):
        if 0 <= top + r < height:
            for c in range(channels):
                sort_row(image + (top + r) * stride[0] + c * stride[2], width, stride[1], pad, period, pitch,
                         sorted + c * period * pitch)
        else:
            memset(sorted, 0, channels * period * pitch * sizeof(real))
        for g in range(groups):
            tiles = lanes if tiling.across - g * size <= lanes else size
            for i in range(terms * SHORT_POINTS):
                pixel[i] = sorted + offset[i] + g * size
            transform_input(
                tiling, terms, pixel, tiles, v + (g * rows + r) * terms * SHORT_POINTS * size, size,
                SHORT_POINTS * size, coefficient, coefficient)


cdef void short_row_pixels(
    const Tiling *tiling, const short_row *s, const real *v, Py_ssize_t v_group, const real *packed,
    Py_ssize_t channels, const real *coefficient, const real *bias, real *out, real *block
) noexcept nogil:
    """One row of a panel's outputs, tile by tile."""
    cdef Py_ssize_t width = panel_width(v), lanes = width // 2, t = 0, x, count, columns
    cdef bint in_place = tiling.out_stride[2] == 1 and channels % lanes == 0
    cdef short_row apart = s[0]
    cdef real *target
    apart.y_pixel, apart.y_tile, apart.streamed = width, SHORT_OUTPUTS * width, False
    while t < tiling.across:
        x = t * SHORT_OUTPUTS
        target = out + x * tiling.out_stride[1]
        count = min(width - t % width, tiling.out_columns // SHORT_OUTPUTS - t) if in_place else 0
        if count > 0:
            winograd_short_tiles(False, channels // lanes, count, s, v + t // width * v_group + t % width,
                                 packed, coefficient, bias, target)
        else:
            count = min(SHORT_TILES, min(width - t % width, tiling.across - t))
            columns = min(count * SHORT_OUTPUTS, tiling.out_columns - x)
            if s.accumulate:
                gather_band(<const real *>target, tiling.out_stride, 1, columns, channels, 0, 0, 1, columns,
                            block, 0, width)
            winograd_short_tiles(False, 1 if channels <= lanes else 2, count, &apart,
                                 v + t // width * v_group + t % width, packed, coefficient, bias, block)
            scatter_rows(block, 0, width, 1, columns, channels, target, tiling.out_stride)
        t += count


cdef void short_row_planes(
    const short_row *s, const real *v, Py_ssize_t v_group, const real *matrix, Py_ssize_t channels,
    const real *coefficient, const real *bias, Py_ssize_t columns, real *out
) noexcept nogil:
    """One row of all outputs, plane by plane, a group of tiles at a time."""
    cdef Py_ssize_t lanes = panel_width(v) // 2, pixels = SHORT_OUTPUTS * lanes, x
    cdef short_row group = s[0]
    for x from 0 <= x < columns by 2 * pixels:
        group.columns = columns - x
        winograd_short_tiles(True, 1 if columns - x <= pixels else 2, channels, &group, matrix,
                             v + x // (2 * pixels) * v_group, coefficient, bias, out + x)


def winograd_short(
    const real[:, :, :, :] x, const real[::1] weight, const real[::1] bias, geometry,
    const real[::1] coefficient, Py_ssize_t bands, bint planar, bint stream, bint rectified, bint accumulate,
    real[:, :, :, :] out, real[::1] workspace, Py_ssize_t per_thread, int num_threads
):
    """Winograd convolution F(4, 3) along rows, in one group, for a few terms.

    Parameters
    ----------
    x : (N, H, W, C_in), IN
    weight : (panels, k_h·s·C_in, points, PANEL), or, planar, (C_out, k_h·s·C_in, points), IN
        The weights transformed, terms in the order (k_h, pixel of a stride, C_in).
    bias : (panels · PANEL), IN
    coefficient : IN
        The constants of the transforms, as winograd.h lists them.
    bands : parts the output rows of an image are cut into
    planar : whether the columns of ``out`` are contiguous, not its channels
    stream : whether to write outputs past the caches, where they are whole vectors
    rectified, accumulate : as Epilogue has them
    out : (N, H_out, W_out, C_out), OUT
    workspace : (num_threads · per_thread), scratch
    """
    cdef Problem problem = problem_of(geometry)
    cdef Tiling tiling
    cdef short_row s
    set_rows(&tiling, &problem, 2, SHORT_OUTPUTS)
    set_outputs(&tiling, out, problem.group_out, accumulate, True, stream)
    cdef Py_ssize_t size = sizeof(real), width = panel_width(&workspace[0])
    cdef Py_ssize_t terms = problem.stride_w * x.shape[3], row = terms * SHORT_POINTS * width
    cdef Py_ssize_t panel = problem.kernel_h * row, v_group, in_rows, groups, start
    cdef Py_ssize_t item, items = x.shape[0] * bands, n, y, p, first, last, channels = out.shape[3]
    cdef Py_ssize_t[3] x_stride = [x.strides[1] // size, x.strides[2] // size, x.strides[3] // size]
    cdef real *v
    cdef real *scratch
    cdef real *target
    tiling.across = (tiling.out_columns + SHORT_OUTPUTS - 1) // SHORT_OUTPUTS
    groups = (tiling.across + width - 1) // width
    s.runs, s.run, s.skip = 1, problem.kernel_h * terms, 0
    if problem.dilation_h > 1:
        s.runs, s.run, s.skip = problem.kernel_h, terms, (problem.dilation_h - 1) * row
    s.matrix, s.accumulate, s.rectified = problem.kernel_h * terms * SHORT_POINTS, accumulate, rectified
    s.y_pixel, s.y_tile = tiling.out_stride[1], SHORT_OUTPUTS * tiling.out_stride[1]
    s.streamed = tiling.stream
    if planar:
        s.y_tile = tiling.out_stride[2]
        start = <Py_ssize_t>&out[0, 0, 0, 0] | out.strides[0] | out.strides[1] | out.strides[3]
        s.streamed = stream and not accumulate and start % VECTOR_BYTES == 0
    for item in prange(items, nogil=True, num_threads=num_threads, schedule="static"):
        n = item // bands
        first, last = share(out.shape[1], bands, item % bands), share(out.shape[1], bands, item % bands + 1)
        in_rows = covered(last - first, problem.stride_h, problem.kernel_h, problem.dilation_h)
        v_group = in_rows * row
        v = &workspace[threadid() * per_thread]
        scratch = v + groups * v_group
        short_inputs(&tiling, &x[n, 0, 0, 0], x_stride, x.shape[1], x.shape[2], x.shape[3],
                     first * problem.stride_h - problem.pad_h, in_rows, problem.pad_w, groups, scratch, v,
                     &coefficient[0])
        for y in range(first, last):
            target = v + (y - first) * problem.stride_h * row
            if planar:
                short_row_planes(&s, target, v_group, &weight[0], channels, &coefficient[0], &bias[0],
                                 out.shape[2], &out[n, y, 0, 0])
            else:
                for p in range((channels + width - 1) // width):
                    short_row_pixels(
                        &tiling, &s, target, v_group, &weight[p * panel],
                        min(width, channels - p * width), &coefficient[0], &bias[p * width],
                        &out[n, y, 0, p * width], scratch)
        if s.streamed:
            finish_streams()
