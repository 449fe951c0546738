# Winograd convolution F(m_h×m_w, k_h×k_w): with n = m + k − 1 points on each axis, for each tile of outputs
#
#     Y = A_hᵀ [ Σ_c (G_h g G_wᵀ) ⊙ (B_hᵀ d B_w) ] A_w
#
# An axis of one tap has one point and is left as it is. The sum over channels is n_h·n_w independent
# matrix products, one a position of the transformed tile. The transformed input V of a block of tiles is
# made once; then panel by panel of weights the products M are made, position after position, and
# transformed back while they are in cache.
#
# Where the input is channels-last, transforms read its pixels in place, and zeros for what lies outside;
# other layouts are copied band by band first.
#
# Tiles lie on a grid of lines × across, numbered line by line; line_origin and across_origin give the
# output pixel each begins at. A kernel dilated by d is d interleaved problems without dilation (its
# polyphase components), whose tiles are just further lines: a tile then reads and writes every d-th pixel.
from cython.parallel cimport prange, threadid


cdef struct Tiling:
    int pairs_h, pairs_w, outputs_h, outputs_w, points_h, points_w
    Py_ssize_t positions, dilation_h, dilation_w, across, panels, depth
    const Py_ssize_t *line_origin
    const Py_ssize_t *across_origin
    bint rectified, accumulate


# Rows top … top + rows, columns left … left + columns of the padded input are in memory; the others are zero.
cdef struct View:
    Py_ssize_t top, left, rows, columns, row_stride, pixel_stride


cdef inline void transform_input(
    const Tiling *tiling, const View *view, const real *image, const real *zeros, Py_ssize_t y, Py_ssize_t x,
    Py_ssize_t channels, real *v, Py_ssize_t position_stride, const real *coefficient_h,
    const real *coefficient_w
) noexcept nogil:
    """One tile of V, whose window begins at pixel (y, x) of the padded input."""
    cdef const real *pixel[64]
    cdef const real *row
    cdef Py_ssize_t i, j, line, column, at = 0
    for i in range(tiling.points_h):
        line = y - view.top + i * tiling.dilation_h
        row = image + line * view.row_stride if 0 <= line < view.rows else NULL
        for j in range(tiling.points_w):
            column = x - view.left + j * tiling.dilation_w
            if row and 0 <= column < view.columns:
                pixel[at] = row + column * view.pixel_stride
            else:
                pixel[at] = zeros
            at += 1
    if real is float:
        winograd_input_f32(tiling.pairs_h, tiling.pairs_w, pixel, channels, v, position_stride, coefficient_h,
                           coefficient_w)
    else:
        winograd_input_f64(tiling.pairs_h, tiling.pairs_w, pixel, channels, v, position_stride, coefficient_h,
                           coefficient_w)


cdef inline void transform_output(
    const Tiling *tiling, const real *m, Py_ssize_t position_stride, int columns, real *y,
    Py_ssize_t row_pitch, Py_ssize_t pixel_pitch, const real *coefficient_h, const real *coefficient_w,
    const real *bias
) noexcept nogil:
    if real is float:
        winograd_output_f32(tiling.pairs_h, tiling.outputs_h, tiling.pairs_w, tiling.outputs_w, m,
                            position_stride, columns, y, row_pitch, pixel_pitch, coefficient_h,
                            coefficient_w, bias, tiling.accumulate, tiling.rectified)
    else:
        winograd_output_f64(tiling.pairs_h, tiling.outputs_h, tiling.pairs_w, tiling.outputs_w, m,
                            position_stride, columns, y, row_pitch, pixel_pitch, coefficient_h,
                            coefficient_w, bias, tiling.accumulate, tiling.rectified)


cdef inline Py_ssize_t padded_position(Py_ssize_t elements, const real *unused) noexcept nogil:
    """Elements from one position to the next, an odd number of cache lines: a multiple of a power of two
    would put all positions of a pixel into the same few cache sets."""
    cdef Py_ssize_t line = 64 // <Py_ssize_t>sizeof(real)
    return ((elements + line - 1) // line | 1) * line


cdef void winograd_outputs(
    const Tiling *tiling, const real *products, Py_ssize_t position_stride, Py_ssize_t first, Py_ssize_t last,
    Py_ssize_t channels, const real *coefficient_h, const real *coefficient_w, const real *bias,
    real *out, const Py_ssize_t *out_stride, Py_ssize_t rows, Py_ssize_t columns, real *block
) noexcept nogil:
    """Transform tiles first … last of one panel back and store the part of them that is in the image."""
    cdef Py_ssize_t width = panel_width(bias), t = first, i, y, x, run, high, wide, row_pitch, pixel_pitch
    cdef Py_ssize_t whole = width // 2 if channels <= width // 2 else width
    cdef Py_ssize_t step = tiling.outputs_w * tiling.dilation_w
    cdef Py_ssize_t[3] stride = [out_stride[0] * tiling.dilation_h, out_stride[1] * tiling.dilation_w,
                                 out_stride[2]]
    cdef real *corner
    cdef real *target
    while t < last:
        y, x = tiling.line_origin[t // tiling.across], tiling.across_origin[t % tiling.across]
        run = 1
        # Where pixels are not channels-last, tiles side by side are stored together, in longer runs.
        while (stride[2] != 1 and t + run < last and (t + run) % tiling.across
               and tiling.across_origin[(t + run) % tiling.across] == x + run * step):
            run = run + 1
        high = min(<Py_ssize_t>tiling.outputs_h, (rows - y + tiling.dilation_h - 1) // tiling.dilation_h)
        wide = min(run * tiling.outputs_w, (columns - x + tiling.dilation_w - 1) // tiling.dilation_w)
        corner = out + y * out_stride[0] + x * out_stride[1]
        target, row_pitch, pixel_pitch = block, run * tiling.outputs_w * whole, whole
        if (stride[2] == 1 and channels == whole and high == tiling.outputs_h
                and wide == run * tiling.outputs_w):
            target, row_pitch, pixel_pitch = corner, stride[0], stride[1]
        elif tiling.accumulate:
            gather_band(<const real *>corner, stride, high, wide, channels, 0, 0, high, wide, block,
                        row_pitch, pixel_pitch)
        for i in range(run):
            transform_output(tiling, products + (t - first + i) * width, position_stride, whole,
                             target + i * tiling.outputs_w * pixel_pitch, row_pitch, pixel_pitch,
                             coefficient_h, coefficient_w, bias)
        if target == block:
            scatter_rows(block, row_pitch, pixel_pitch, high, wide, channels, corner, stride)
        t += run


cdef void winograd_products(
    const Tiling *tiling, Py_ssize_t tiles, const real *v, Py_ssize_t v_position, Py_ssize_t v_tile,
    Py_ssize_t channels, const real *panel, Py_ssize_t columns, real *products, Py_ssize_t m_position
) noexcept nogil:
    """M of one panel: a product for each position and run of channels.

    Each meets its weights for the first time, and they come from far: two tiles fetch half of the next
    product's each, so that memory is as busy as the processor.
    """
    cdef Py_ssize_t width = panel_width(panel), q, k, run, zero = 0
    cdef const real *weights
    for q in range(tiling.positions):
        for k from 0 <= k < channels by tiling.depth:
            run = min(tiling.depth, channels - k)
            weights = panel + (q * channels + k) * width
            gemm_rows_ahead(
                tiles, columns, v + q * v_position + k, v_tile, 1, &zero, &run, weights, width,
                products + q * m_position, width, START_ZERO if k == 0 else START_OUTPUT, NULL, False,
                weights + run * width, run * width // 2)


cdef void winograd_block(
    const Problem *problem, const Tiling *tiling, const View *view, const real *image, Py_ssize_t pixel_pitch,
    Py_ssize_t first, Py_ssize_t last, const real *packed, Py_ssize_t first_panel, Py_ssize_t last_panel,
    const real *coefficient_h, const real *coefficient_w, const real *bias, real *out,
    const Py_ssize_t *out_stride, Py_ssize_t rows, Py_ssize_t columns, real *scratch
) noexcept nogil:
    """Tiles first … last; `scratch` begins with a pixel of zeros."""
    cdef Py_ssize_t width = panel_width(packed), panels = tiling.panels, t, g, p, channels
    cdef Py_ssize_t tiles = last - first
    cdef Py_ssize_t v_position = padded_position(tiles * pixel_pitch, packed)
    cdef Py_ssize_t m_position = padded_position(tiles * width, packed)
    cdef const real *zeros = scratch
    cdef real *v = scratch + pixel_pitch
    cdef real *products = v + tiling.positions * v_position
    for t in range(first, last):
        transform_input(
            tiling, view, image, zeros, tiling.line_origin[t // tiling.across],
            tiling.across_origin[t % tiling.across], pixel_pitch, v + (t - first) * pixel_pitch, v_position,
            coefficient_h, coefficient_w)
    for g in range(problem.groups):
        for p in range(first_panel, last_panel):
            channels = min(width, problem.group_out - p * width)
            winograd_products(
                tiling, tiles, v + g * problem.group_in, v_position, pixel_pitch, problem.group_in,
                packed + (g * panels + p) * tiling.positions * problem.group_in * width,
                width // 2 if channels <= width // 2 else width, products, m_position)
            winograd_outputs(
                tiling, products, m_position, first, last, channels, coefficient_h, coefficient_w,
                bias + (g * panels + p) * width,
                out + (g * problem.group_out + p * width) * out_stride[2], out_stride, rows, columns,
                products + tiling.positions * m_position)


def winograd(
    const real[:, :, :, :] x, const real[:, :, :, :, ::1] packed, const real[::1] bias, geometry, form,
    const real[::1] coefficient_h, const real[::1] coefficient_w, const Py_ssize_t[::1] line_origin,
    const Py_ssize_t[::1] across_origin, Py_ssize_t bands, Py_ssize_t panel_parts, Py_ssize_t block,
    Py_ssize_t pixel_pitch, Py_ssize_t depth, bint rectified, bint accumulate,
    real[:, :, :, :] out, real[::1] workspace, Py_ssize_t per_thread, int num_threads
):
    """Winograd convolution F(m_h×m_w, k_h×k_w), stride 1.

    Parameters
    ----------
    x : (N, H, W, C_in), IN
    packed : (groups, panels, n_h·n_w, C_in/groups, PANEL), IN
        The weights transformed, G_h g G_wᵀ.
    bias : (groups · panels · PANEL), IN
    form : ((pairs_h, pairs_w), (m_h, m_w))
        Pairs of points and outputs of a tile on each axis; 0 pairs leave an axis as it is.
    coefficient_h, coefficient_w : IN
        The constants of the one-dimensional transforms, as winograd.h lists them.
    line_origin, across_origin : IN
        The output row each line of tiles begins at, ascending, and the column of each tile of a line.
    bands, panel_parts : parts the lines of tiles of an image and the panels are cut into
    block : the most tiles that are transformed at a time
    pixel_pitch : C_in in whole vectors
    depth : input channels multiplied at a time
    rectified, accumulate : as Epilogue has them
    out : (N, H_out, W_out, C_out), OUT
    workspace : (num_threads · per_thread), scratch
    """
    cdef Problem problem = problem_of(geometry)
    cdef Tiling tiling
    cdef View view
    (tiling.pairs_h, tiling.pairs_w), (tiling.outputs_h, tiling.outputs_w) = form
    tiling.points_h = tiling.outputs_h + problem.kernel_h - 1
    tiling.points_w = tiling.outputs_w + problem.kernel_w - 1
    tiling.dilation_h, tiling.dilation_w = problem.dilation_h, problem.dilation_w
    tiling.positions, tiling.panels = packed.shape[2], packed.shape[1]
    tiling.line_origin, tiling.across_origin, tiling.across = (
        &line_origin[0], &across_origin[0], across_origin.shape[0])
    tiling.depth, tiling.rectified, tiling.accumulate = depth, rectified, accumulate
    cdef Py_ssize_t item, items = x.shape[0] * bands * panel_parts, part, n, first, last, top, in_rows, parts
    cdef Py_ssize_t i, tiles, lines = line_origin.shape[0], size = sizeof(real)
    cdef Py_ssize_t in_columns = max(across_origin) + (tiling.points_w - 1) * problem.dilation_w + 1
    cdef Py_ssize_t[3] x_stride = [x.strides[1] // size, x.strides[2] // size, x.strides[3] // size]
    cdef Py_ssize_t[3] out_stride = [out.strides[1] // size, out.strides[2] // size, out.strides[3] // size]
    cdef bint in_place = x_stride[2] == 1 and x.shape[3] == pixel_pitch
    cdef real *scratch
    cdef const real *image
    for item in prange(items, nogil=True, num_threads=num_threads, schedule="static"):
        part = item % panel_parts
        n = item // panel_parts // bands
        first = share(lines, bands, item // panel_parts % bands)
        last = share(lines, bands, item // panel_parts % bands + 1)
        scratch = &workspace[threadid() * per_thread]
        image = &x[n, 0, 0, 0]
        view = View(problem.pad_h, problem.pad_w, x.shape[1], x.shape[2], x_stride[0], x_stride[1])
        if not in_place:
            top = line_origin[first]
            in_rows = line_origin[last - 1] - top + (tiling.points_h - 1) * problem.dilation_h + 1
            gather_band(
                image, x_stride, x.shape[1], x.shape[2], x.shape[3], top - problem.pad_h, -problem.pad_w,
                in_rows, in_columns, scratch, in_columns * pixel_pitch, pixel_pitch)
            image = scratch
            scratch = scratch + in_rows * in_columns * pixel_pitch
            view = View(top, 0, in_rows, in_columns, in_columns * pixel_pitch, pixel_pitch)
        memset(scratch, 0, pixel_pitch * size)
        tiles = (last - first) * tiling.across
        parts = (tiles + block - 1) // block
        for i in range(parts):
            winograd_block(
                &problem, &tiling, &view, image, pixel_pitch, first * tiling.across + share(tiles, parts, i),
                first * tiling.across + share(tiles, parts, i + 1), &packed[0, 0, 0, 0, 0],
                share(tiling.panels, panel_parts, part), share(tiling.panels, panel_parts, part + 1),
                &coefficient_h[0], &coefficient_w[0], &bias[0], &out[n, 0, 0, 0], out_stride,
                out.shape[1], out.shape[2], scratch)
