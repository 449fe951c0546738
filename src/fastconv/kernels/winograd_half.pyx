# Winograd convolution F(4×4, 3×3), or F(5×5, 2×2) of the blocks of a 3×3 kernel of stride 2 (winograd.pyx),
# whose weights are transformed along the rows' axis only, by winograd_half.h: for images whose tiles are too
# few to hide what the weights take to come.
#
# A tile that has fewer outputs left takes fewer points, along each axis by itself. A line's tiles are
# multiplied in pairs, of which the first one has all points, or zeros in their place. A panel is set after
# set of weights, of each for every input channel two vectors of output channels, with a vector for each tap
# of the columns' axis: in the order in which they are used. At stride 1 a set is for a point of the rows'
# axis; at stride 2 the first one is what the block of one tap has at all points but ∞, and the others are
# the points' of the block of two.
from cython.parallel cimport prange, threadid

cdef extern from "microkernel.h" nogil:
    const int HALF_POINTS, HALF_TAPS, HALF_CHANNELS, HALF_FETCHED
    void winograd_half_f32(
        int stride, int second, const float *v, Py_ssize_t channels, const float *w, const float *ahead,
        int fetched, const float *scale, float *m) noexcept
    void winograd_half_f64(
        int stride, int second, const double *v, Py_ssize_t channels, const double *w, const double *ahead,
        int fetched, const double *scale, double *m) noexcept
    void winograd_half_input_f32(
        int points_h, int points_w, const float *const *pixel, Py_ssize_t first, Py_ssize_t channels,
        float *v, Py_ssize_t v_line, const float *coefficient, const float *drop) noexcept
    void winograd_half_input_f64(
        int points_h, int points_w, const double *const *pixel, Py_ssize_t first, Py_ssize_t channels,
        double *v, Py_ssize_t v_line, const double *coefficient, const double *drop) noexcept


# Some lines of tiles, of which V has (block of rows, point of rows, chunk of channels, line, pair, block of
# columns, tile, point of columns, HALF_CHANNELS), and M (line, pair, tile, points, PANEL).
cdef struct HalfLines:
    Py_ssize_t first, lines, across, pairs, chunks, vectors, pair_size, line_size, chunk_size, point_size
    const Py_ssize_t *line_points
    const Py_ssize_t *across_points


cdef inline void half_product(
    int stride, int second, const real *v, Py_ssize_t channels, const real *w, const real *ahead, int fetched,
    const real *scale, real *m
) noexcept nogil:
    if real is float:
        winograd_half_f32(stride, second, v, channels, w, ahead, fetched, scale, m)
    else:
        winograd_half_f64(stride, second, v, channels, w, ahead, fetched, scale, m)


cdef inline void half_input(
    int points_h, int points_w, const real **pixel, Py_ssize_t first, Py_ssize_t channels, real *v,
    Py_ssize_t v_line, const real *coefficient, const real *drop
) noexcept nogil:
    if real is float:
        winograd_half_input_f32(points_h, points_w, pixel, first, channels, v, v_line, coefficient, drop)
    else:
        winograd_half_input_f64(points_h, points_w, pixel, first, channels, v, v_line, coefficient, drop)


cdef void half_inputs(
    const Tiling *tiling, const HalfLines *part, const View *view, const real *image, const real *zeros,
    real *v, const real *coefficient, const real *drop
) noexcept nogil:
    """V of all tiles of some lines."""
    cdef const real *pixel[MAX_POSITIONS]
    cdef Py_ssize_t lanes = VECTOR_BYTES // <Py_ssize_t>sizeof(real), row, t, i, j, c, top, first
    cdef Py_ssize_t blocks = tiling.stride_h
    cdef int high, wide
    cdef real *at
    for row in range(part.lines):
        high = <int>part.line_points[part.first + row]
        top = tiling.line_origin[part.first + row] * tiling.stride_h
        for t in range(part.across):
            wide = <int>part.across_points[t]
            for i in range(blocks):
                for j in range(blocks):
                    # The second block has a tap, and so a pixel, less.
                    tile_pixels(tiling, view, image, zeros,
                                top + i * tiling.dilation_h,
                                tiling.across_origin[t] * tiling.stride_w + j * tiling.dilation_w,
                                high - i, wide - j, pixel)
                    at = (v + i * HALF_POINTS * part.point_size + row * part.line_size
                          + t // 2 * part.pair_size + (2 * j + t % 2) * HALF_POINTS * HALF_CHANNELS)
                    for c in range(part.chunks):
                        first = share(part.vectors, part.chunks, c) * lanes
                        half_input(high, wide, pixel, first,
                                   share(part.vectors, part.chunks, c + 1) * lanes - first,
                                   at + c * part.chunk_size, part.point_size, coefficient, drop)


cdef void half_set(
    const HalfLines *part, int stride, Py_ssize_t index, Py_ssize_t channels, const real *v, const real *w,
    const real *scale, real *m
) noexcept nogil:
    """What the index-th set of a panel's weights adds to M."""
    cdef Py_ssize_t width = panel_width(v), lanes = width // 2, line_tiles = part.pairs * 2, line_points
    cdef Py_ssize_t c, i, row, q, at, begin, end
    cdef bint shared = stride == 2 and index == 0
    cdef Py_ssize_t point = index if stride == 1 else index - 1
    cdef Py_ssize_t lowest = 0 if shared else point, highest = HALF_POINTS - 2 if shared else point
    cdef int second, fetched = <int>min(
        <Py_ssize_t>HALF_FETCHED, (2 * HALF_TAPS + part.lines * part.pairs - 1) // (part.lines * part.pairs))
    cdef const real *weight
    cdef const real *ahead
    if shared:
        v = v + HALF_POINTS * part.point_size
    for c in range(part.chunks):
        begin = share(part.vectors, part.chunks, c) * lanes
        end = min(channels, share(part.vectors, part.chunks, c + 1) * lanes)
        weight = w + begin * HALF_TAPS * width
        at = 0
        for i from lowest <= i <= highest:
            for row in range(part.lines):
                line_points = part.line_points[part.first + row]
                if 0 < line_points - 1 <= i < HALF_POINTS - 1:
                    continue
                for q in range(part.pairs):
                    second = <int>part.across_points[2 * q + 1] if 2 * q + 1 < part.across else 0
                    # All products ask for a part of the next weights, the first ones where there are enough.
                    ahead = weight + (end - begin) * (2 * HALF_TAPS + at * fetched) * lanes
                    half_product(
                        stride, second,
                        v + i * part.point_size + c * part.chunk_size + row * part.line_size
                        + q * part.pair_size,
                        end - begin, weight, ahead, fetched if at * fetched < 2 * HALF_TAPS else 0,
                        scale + i * HALF_POINTS,
                        m + ((row * line_tiles + 2 * q) * HALF_POINTS + i) * HALF_POINTS * width)
                    at += 1


cdef void half_outputs(
    const Tiling *tiling, const HalfLines *part, const real *m, Py_ssize_t channels, const real *coefficient,
    const real *bias, real *out, real *block
) noexcept nogil:
    """Transform all tiles of one panel back. Lines that cannot be written in place are made in `block`."""
    cdef Py_ssize_t width = panel_width(m), whole = width // 2 if channels <= width // 2 else width
    cdef Py_ssize_t row, t, high, points = HALF_POINTS * HALF_POINTS
    cdef Py_ssize_t taps = HALF_TAPS if tiling.stride_h == 1 else HALF_TAPS - 1
    cdef Py_ssize_t[3] stride = [
        tiling.out_stride[0] * tiling.dilation_h, tiling.out_stride[1], tiling.out_stride[2]]
    cdef bint in_place = stride[2] == 1 and channels == whole
    cdef Py_ssize_t row_pitch = stride[0] if in_place else tiling.out_columns * whole
    cdef Py_ssize_t pixel_pitch = stride[1] if in_place else whole
    cdef Tiling tile = tiling[0]
    cdef real *line
    cdef real *target
    for row in range(part.lines):
        high = part.line_points[part.first + row] + 1 - taps
        line = out + tiling.line_origin[part.first + row] * tiling.out_stride[0]
        target = line if in_place else block
        if tiling.accumulate and not in_place:
            gather_band(<const real *>line, stride, high, tiling.out_columns, channels, 0, 0, high,
                        tiling.out_columns, block, row_pitch, pixel_pitch)
        for t in range(part.across):
            tile.outputs_h, tile.outputs_w = <int>high, <int>(part.across_points[t] + 1 - taps)
            transform_output(&tile, 1, m + (2 * row * part.pairs + t) * points * width, width, whole,
                             target + tiling.across_origin[t] * pixel_pitch, row_pitch,
                             tiling.dilation_w * pixel_pitch, coefficient, coefficient, bias, False)
        if not in_place:
            scatter_rows(block, row_pitch, pixel_pitch, high, tiling.out_columns, channels, line, stride)


cdef void half_lines(
    const Tiling *tiling, const HalfLines *part, const View *view, const real *image, Py_ssize_t pixel_pitch,
    Py_ssize_t channels, Py_ssize_t out_channels, const real *packed, Py_ssize_t first_panel,
    Py_ssize_t last_panel, const real *coefficient, const real *drop, const real *scale, const real *bias,
    real *out, real *scratch
) noexcept nogil:
    """All outputs of some lines of tiles; `scratch` begins with a pixel of zeros."""
    cdef Py_ssize_t width = panel_width(packed), sets = HALF_POINTS + tiling.stride_h - 1, p, s, count
    cdef real *v = scratch + pixel_pitch
    cdef real *m = v + tiling.stride_h * HALF_POINTS * part.point_size
    cdef Py_ssize_t m_size = part.lines * part.pairs * 2 * HALF_POINTS * HALF_POINTS * width
    half_inputs(tiling, part, view, image, <const real *>scratch, v, coefficient, drop)
    for p in range(first_panel, last_panel):
        count = min(width, out_channels - p * width)
        memset(m, 0, m_size * sizeof(real))
        for s in range(sets):
            half_set(part, <int>tiling.stride_h, s, channels, <const real *>v,
                     packed + (p * sets + s) * HALF_TAPS * channels * width, scale, m)
        half_outputs(tiling, part, <const real *>m, count, coefficient, bias + p * width,
                     out + p * width * tiling.image_stride[2], m + m_size)


def winograd_half(
    const real[:, :, :, :] x, const real[:, :, :, :, ::1] packed, const real[::1] bias, geometry,
    const real[::1] coefficient, const real[:, ::1] drop, const real[:, ::1] scale,
    const Py_ssize_t[:, ::1] lines, const Py_ssize_t[:, ::1] across, Py_ssize_t bands, Py_ssize_t panel_parts,
    Py_ssize_t block, Py_ssize_t pixel_pitch, bint rectified, bint accumulate, real[:, :, :, :] out,
    real[::1] workspace, Py_ssize_t per_thread, int num_threads
):
    """Winograd convolution of 3×3 kernels of stride 1 or 2, by weights transformed along one axis.

    Parameters
    ----------
    x : (N, H, W, C_in), IN
    packed : (1, panels, sets · 3, C_in, PANEL), IN
        The weights, as said above.
    bias : (panels · PANEL), IN
    coefficient : IN
        The constants of the one-dimensional transforms, as winograd.h lists them.
    drop : (4, 6), IN; of winograd_half.h
    scale : (6, 6), IN
        What sums are multiplied with, by the points of both axes.
    lines, across : (2, …), IN
        The output row each line of tiles begins at, ascending, and its points; the same for a line's tiles,
        two and two the pairs.
    bands, panel_parts : parts the lines of tiles of an image and the panels are cut into
    block : the most lines that are transformed at a time
    pixel_pitch : C_in in whole vectors
    rectified, accumulate : as Epilogue has them
    out : (N, H_out, W_out, C_out), OUT
    workspace : (num_threads · per_thread), scratch
    """
    cdef Problem problem = problem_of(geometry)
    cdef Tiling tiling
    cdef HalfLines part
    cdef View view
    tiling.pairs_h, tiling.pairs_w = HALF_POINTS // 2 - 1, HALF_POINTS // 2 - 1
    tiling.merged_h, tiling.merged_w = 1, 1
    set_spacing(&tiling, &problem)
    tiling.across, tiling.panels, tiling.rectified = across.shape[1], packed.shape[1], rectified
    tiling.line_origin, tiling.across_origin = &lines[0, 0], &across[0, 0]
    set_outputs(&tiling, out, problem.group_out, accumulate, False, False)
    cdef Py_ssize_t item, items = x.shape[0] * bands * panel_parts, panels, band, n, first, last, top, in_rows
    cdef Py_ssize_t parts, i, begin, size = sizeof(real), reach = HALF_POINTS * problem.stride_h
    cdef Py_ssize_t in_columns = farthest(across[0]) * problem.stride_w + reach * problem.dilation_w
    cdef Py_ssize_t[3] x_stride = [x.strides[1] // size, x.strides[2] // size, x.strides[3] // size]
    cdef bint in_place = x_stride[2] == 1 and x.shape[3] == pixel_pitch
    cdef real *scratch
    cdef const real *image
    for item in prange(items, nogil=True, num_threads=num_threads, schedule="static"):
        # All bands of some panels one after the other: a thread reads a part of the weights.
        panels, n, band = item // (items // panel_parts), item // bands % x.shape[0], item % bands
        first, last = share(lines.shape[1], bands, band), share(lines.shape[1], bands, band + 1)
        scratch, image = &workspace[threadid() * per_thread], &x[n, 0, 0, 0]
        view = View(problem.pad_h, problem.pad_w, x.shape[1], x.shape[2], x_stride[0], x_stride[1])
        if not in_place:
            top = lines[0, first] * problem.stride_h
            in_rows = (lines[0, last - 1] - lines[0, first]) * problem.stride_h + reach * problem.dilation_h
            view = copied_band(
                &problem, image, x_stride, x.shape[1], x.shape[2], x.shape[3], top, in_rows, in_columns,
                pixel_pitch, scratch)
            image, scratch = scratch, scratch + in_rows * in_columns * pixel_pitch
        memset(scratch, 0, pixel_pitch * size)
        parts = (last - first + block - 1) // block
        for i in range(parts):
            begin = first + share(last - first, parts, i)
            part = half_part(
                begin, first + share(last - first, parts, i + 1) - begin, across.shape[1],
                pixel_pitch // (VECTOR_BYTES // size), problem.stride_w, &lines[1, 0], &across[1, 0],
                VECTOR_BYTES // size)
            half_lines(
                &tiling, &part, &view, image, pixel_pitch, problem.group_in, problem.group_out,
                &packed[0, 0, 0, 0, 0], share(tiling.panels, panel_parts, panels),
                share(tiling.panels, panel_parts, panels + 1), &coefficient[0], &drop[0, 0], &scale[0, 0],
                &bias[0], &out[n, 0, 0, 0], scratch)


cdef inline HalfLines half_part(
    Py_ssize_t first, Py_ssize_t lines, Py_ssize_t across, Py_ssize_t vectors, Py_ssize_t blocks,
    const Py_ssize_t *line_points, const Py_ssize_t *across_points, Py_ssize_t lanes
) noexcept nogil:
    """Lines from the first one on, and what follows of their number."""
    cdef HalfLines part
    part.first, part.lines, part.across, part.pairs = first, lines, across, (across + 1) // 2
    part.line_points, part.across_points = line_points, across_points
    part.vectors = vectors
    part.chunks = (vectors * lanes + HALF_CHANNELS - 1) // HALF_CHANNELS
    part.pair_size = blocks * 2 * HALF_POINTS * HALF_CHANNELS
    part.line_size = part.pairs * part.pair_size
    part.chunk_size = lines * part.line_size
    part.point_size = part.chunks * part.chunk_size
    return part
