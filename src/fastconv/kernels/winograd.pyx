# Winograd convolution F(m_h×m_w, r_h×r_w): with n = m + r − 1 points on each axis, for each tile of outputs
#
#     Y = A_hᵀ [ Σ_b Σ_c (G_h g_b G_wᵀ) ⊙ (B_hᵀ d_b B_w) ] A_w
#
# A kernel is a sum of blocks b of r_h × r_w taps, each with a tile d_b of its own: the runs of a long axis,
# and for a stride s its s phases, taps a, a + s, a + 2s, … on every s-th pixel. A block that lacks its last
# tap has no weight at the point ∞, and no product there. An axis of one tap a block has one point and is
# left as it is. The sum over blocks and channels is n_h·n_w independent matrix products, one a position of
# the transformed tile. The transformed input V of some tiles is made once; then panel by panel of weights
# the products M are made, position after position, and transformed back while they are in cache.
#
# Where the input is channels-last, transforms read its pixels in place, and zeros for what lies outside;
# other layouts are copied band by band first.
#
# Tiles lie on a grid of lines × across, numbered line by line; line_origin and across_origin give the
# output pixel each begins at. A kernel dilated by d is d interleaved problems without dilation (its
# polyphase components), whose tiles are just further lines: a tile then writes every d-th pixel, and with
# stride s reads every (s·d)-th.
#
# The channels may be those of several merged pixels, s_h × s_w of the image: the phases of a transposed
# convolution, each of which is stored to every s-th pixel of every s-th row.
from cython.parallel cimport prange, threadid

cdef extern from *:
    """
    /* What was written past the caches is there for other threads to read. */
    #if defined(__x86_64__)
    #define fastconv_finish_streams() __asm__ volatile("sfence" : : : "memory")
    #else
    #define fastconv_finish_streams() (void)0
    #endif
    """
    void finish_streams "fastconv_finish_streams"() nogil

# The most positions of a tile, and the most blocks of a kernel.
cdef enum:
    MAX_POSITIONS = 64
    MAX_BLOCKS = 16


cdef struct Tiling:
    int pairs_h, pairs_w, outputs_h, outputs_w, points_h, points_w
    # step: input pixels from one of a tile to the next.
    Py_ssize_t positions, stride_h, stride_w, dilation_h, dilation_w, step_h, step_w
    Py_ssize_t across, panels, depth, blocks
    const Py_ssize_t *line_origin
    const Py_ssize_t *across_origin
    const Py_ssize_t *corner
    const Py_ssize_t *product_start
    const Py_ssize_t *product_block
    # The image, and of each of its pixels the channels; strides of it, and from one merged pixel to the next.
    Py_ssize_t out_rows, out_columns, out_channels, merged_h, merged_w, skip_h, skip_w
    Py_ssize_t[3] image_stride
    Py_ssize_t[3] out_stride
    bint rectified, accumulate, fetch, stream


# Rows top … top + rows, columns left … left + columns of the padded input are in memory; the others are zero.
cdef struct View:
    Py_ssize_t top, left, rows, columns, row_stride, pixel_stride


# Of a panel's outputs, rows top … bottom and columns left … right lie in the image; the first one of all, in
# it or not, `offset` elements from the image's first.
cdef struct Place:
    Py_ssize_t offset, top, bottom, left, right


cdef inline Place place_of(const Tiling *tiling, Py_ssize_t channel) noexcept nogil:
    """The place of a panel that begins with this channel; its pixel (i, j) is (s_h·i + down, s_w·j + across)
    of the image."""
    cdef Py_ssize_t phase = channel // tiling.out_channels
    cdef Py_ssize_t down = phase // tiling.merged_w - tiling.skip_h
    cdef Py_ssize_t across = phase % tiling.merged_w - tiling.skip_w
    cdef Place place
    place.offset = (down * tiling.image_stride[0] + across * tiling.image_stride[1]
                    + channel % tiling.out_channels * tiling.image_stride[2])
    place.top = (tiling.merged_h - 1 - down) // tiling.merged_h
    place.left = (tiling.merged_w - 1 - across) // tiling.merged_w
    place.bottom = (tiling.out_rows - down + tiling.merged_h - 1) // tiling.merged_h
    place.right = (tiling.out_columns - across + tiling.merged_w - 1) // tiling.merged_w
    return place


cdef inline void tile_pixels(
    const Tiling *tiling, const View *view, const real *image, const real *zeros, Py_ssize_t y, Py_ssize_t x,
    Py_ssize_t high, Py_ssize_t wide, const real **pixel
) noexcept nogil:
    """The addresses of a tile's pixels, zeros beyond high × wide; its window begins at pixel (y, x) of the
    padded input."""
    cdef const real *row
    cdef Py_ssize_t i, j, line, column, at = 0
    for i in range(tiling.points_h):
        line = y - view.top + i * tiling.step_h
        row = image + line * view.row_stride if i < high and 0 <= line < view.rows else NULL
        for j in range(tiling.points_w):
            column = x - view.left + j * tiling.step_w
            if row and j < wide and 0 <= column < view.columns:
                pixel[at] = row + column * view.pixel_stride
            else:
                pixel[at] = zeros
            at += 1


cdef inline void transform_input(
    const Tiling *tiling, Py_ssize_t tiles, const real **pixel, Py_ssize_t channels, real *v,
    Py_ssize_t position_stride, Py_ssize_t v_next, const real *coefficient_h, const real *coefficient_w
) noexcept nogil:
    """Some tiles of V from the addresses of their pixels, v_next apart."""
    if real is float:
        winograd_input_f32(tiling.pairs_h, tiling.pairs_w, tiles, pixel, channels, v, position_stride,
                           v_next, coefficient_h, coefficient_w)
    else:
        winograd_input_f64(tiling.pairs_h, tiling.pairs_w, tiles, pixel, channels, v, position_stride,
                           v_next, coefficient_h, coefficient_w)


cdef inline void transform_output(
    const Tiling *tiling, Py_ssize_t tiles, const real *m, Py_ssize_t position_stride, int columns, real *y,
    Py_ssize_t row_pitch, Py_ssize_t pixel_pitch, const real *coefficient_h, const real *coefficient_w,
    const real *bias, bint streamed
) noexcept nogil:
    """Tiles side by side."""
    cdef Py_ssize_t width = panel_width(m), y_next = tiling.outputs_w * pixel_pitch
    if real is float:
        winograd_output_f32(tiling.pairs_h, tiling.outputs_h, tiling.pairs_w, tiling.outputs_w, tiles, m,
                            position_stride, width, columns, y, row_pitch, pixel_pitch, y_next, coefficient_h,
                            coefficient_w, bias, tiling.accumulate, tiling.rectified, streamed)
    else:
        winograd_output_f64(tiling.pairs_h, tiling.outputs_h, tiling.pairs_w, tiling.outputs_w, tiles, m,
                            position_stride, width, columns, y, row_pitch, pixel_pitch, y_next, coefficient_h,
                            coefficient_w, bias, tiling.accumulate, tiling.rectified, streamed)


cdef inline Py_ssize_t padded_position(Py_ssize_t elements, const real *unused) noexcept nogil:
    """Elements from one position to the next, an odd number of cache lines: a multiple of a power of two
    would put all positions of a pixel into the same few cache sets."""
    cdef Py_ssize_t line = 64 // <Py_ssize_t>sizeof(real)
    return ((elements + line - 1) // line | 1) * line


cdef View copied_band(
    const Problem *problem, const real *image, const Py_ssize_t *stride, Py_ssize_t height, Py_ssize_t width,
    Py_ssize_t channels, Py_ssize_t top, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t pixel_pitch,
    real *band
) noexcept nogil:
    """A copy of some rows of the padded input, from `top` on."""
    gather_band(image, stride, height, width, channels, top - problem.pad_h, -problem.pad_w, rows, columns,
                band, columns * pixel_pitch, pixel_pitch)
    return View(top, 0, rows, columns, columns * pixel_pitch, pixel_pitch)


cdef void winograd_inputs(
    const Tiling *tiling, const View *view, const real *image, const real *zeros, Py_ssize_t first,
    Py_ssize_t last, Py_ssize_t channels, real *v, Py_ssize_t position_stride, const real *coefficient_h,
    const real *coefficient_w
) noexcept nogil:
    """V of tiles first … last: at each position the tiles of block after block."""
    cdef const real *pixel[MAX_POSITIONS]
    cdef Py_ssize_t b, t, i, y, x, run, at_once = MAX_POSITIONS // tiling.positions
    for b in range(tiling.blocks):
        for t from first <= t < last by at_once:
            run = min(at_once, last - t)
            for i in range(run):
                y = tiling.line_origin[(t + i) // tiling.across] * tiling.stride_h
                x = tiling.across_origin[(t + i) % tiling.across] * tiling.stride_w
                tile_pixels(tiling, view, image, zeros, y + tiling.corner[2 * b],
                            x + tiling.corner[2 * b + 1], tiling.points_h, tiling.points_w,
                            pixel + i * tiling.positions)
            transform_input(tiling, run, pixel, channels, v, position_stride, channels, coefficient_h,
                            coefficient_w)
            v += run * channels


cdef void winograd_outputs(
    const Tiling *tiling, const Place *place, const real *products, Py_ssize_t position_stride,
    Py_ssize_t first, Py_ssize_t last, Py_ssize_t channels, const real *coefficient_h,
    const real *coefficient_w, const real *bias, real *out, real *block
) noexcept nogil:
    """Transform tiles first … last of one panel back and store the part of them that is in the image."""
    cdef Py_ssize_t width = panel_width(bias), t = first, y, x, run, high, wide, row_pitch, pixel_pitch
    cdef Py_ssize_t whole = width // 2 if channels <= width // 2 else width, top, left
    cdef Py_ssize_t step = tiling.outputs_w * tiling.dilation_w
    cdef Py_ssize_t[3] stride = [tiling.out_stride[0] * tiling.dilation_h,
                                 tiling.out_stride[1] * tiling.dilation_w, tiling.out_stride[2]]
    cdef bint lines = tiling.pairs_h == 0 or tiling.pairs_w == 0
    cdef real *corner
    cdef real *target
    while t < last:
        y, x = tiling.line_origin[t // tiling.across], tiling.across_origin[t % tiling.across]
        run = 1
        # Tiles side by side are stored together, in longer runs, where pixels are not channels-last; else
        # whole tiles of one axis, each of which is little work.
        while (t + run < last and (stride[2] != 1 or (lines and x + (run + 1) * step <= place.right))
               and (t + run) % tiling.across
               and tiling.across_origin[(t + run) % tiling.across] == x + run * step):
            run = run + 1
        # The part in the image; merged pixels are not dilated.
        top, left = max(<Py_ssize_t>0, place.top - y), max(<Py_ssize_t>0, place.left - x)
        high = min(<Py_ssize_t>tiling.outputs_h,
                   (place.bottom - y + tiling.dilation_h - 1) // tiling.dilation_h) - top
        wide = min(run * tiling.outputs_w,
                   (place.right - x + tiling.dilation_w - 1) // tiling.dilation_w) - left
        corner = out + (y + top) * tiling.out_stride[0] + (x + left) * tiling.out_stride[1]
        target, row_pitch, pixel_pitch = block, run * tiling.outputs_w * whole, whole
        if (stride[2] == 1 and channels == whole and high == tiling.outputs_h
                and wide == run * tiling.outputs_w):
            target, row_pitch, pixel_pitch = corner, stride[0], stride[1]
        elif tiling.accumulate:
            gather_band(<const real *>corner, stride, high, wide, channels, 0, 0, high, wide, block,
                        row_pitch, pixel_pitch)
        transform_output(tiling, run, products + (t - first) * width, position_stride, whole, target,
                         row_pitch, pixel_pitch, coefficient_h, coefficient_w, bias,
                         tiling.stream and target == corner)
        if target == block:
            scatter_rows(block + top * row_pitch + left * pixel_pitch, row_pitch, pixel_pitch, high, wide,
                         channels, corner, stride)
        t += run


# Asking for a pixel outside an image does nothing.
cdef void fetch_outputs(
    const Tiling *tiling, Py_ssize_t first, Py_ssize_t last, Py_ssize_t channels, const real *out
) noexcept nogil:
    """Have memory bring one panel's pixels of tiles first … last, which are going to be written."""
    cdef Py_ssize_t t, i, j, c, y, x, line = 64 // <Py_ssize_t>sizeof(real)
    cdef const real *pixel
    for t in range(first, last):
        y, x = tiling.line_origin[t // tiling.across], tiling.across_origin[t % tiling.across]
        for i in range(tiling.outputs_h):
            for j in range(tiling.outputs_w):
                pixel = (out + (y + i * tiling.dilation_h) * tiling.out_stride[0]
                         + (x + j * tiling.dilation_w) * tiling.out_stride[1])
                for c from 0 <= c < channels by line:
                    prefetch_to_write(pixel + c)


cdef void fetch_inputs(
    const Tiling *tiling, const View *view, const real *image, Py_ssize_t first, Py_ssize_t last,
    Py_ssize_t channels
) noexcept nogil:
    """Have memory bring what tiles first … last read and those before them did not: the last pixel of each
    output's window."""
    cdef Py_ssize_t t, i, j, c, y, x, line = 64 // <Py_ssize_t>sizeof(real)
    cdef const Py_ssize_t *corner = tiling.corner + 2 * (tiling.blocks - 1)
    cdef const real *pixel
    for t in range(first, last):
        y = tiling.line_origin[t // tiling.across] * tiling.stride_h + corner[0] - view.top
        x = tiling.across_origin[t % tiling.across] * tiling.stride_w + corner[1] - view.left
        for i in range(tiling.points_h - tiling.outputs_h, tiling.points_h):
            for j in range(tiling.points_w - tiling.outputs_w, tiling.points_w):
                pixel = (image + (y + i * tiling.step_h) * view.row_stride
                         + (x + j * tiling.step_w) * view.pixel_stride)
                for c from 0 <= c < channels by line:
                    prefetch_to_read(pixel + c)


cdef void winograd_product(
    const Tiling *tiling, Py_ssize_t q, Py_ssize_t tiles, const real *v, Py_ssize_t v_tile,
    Py_ssize_t channels, const real *panel, Py_ssize_t columns, real *product
) noexcept nogil:
    """M of one panel and position: a product for each run of channels, of several blocks where these are few.

    Each meets its weights for the first time, and they come from far: two tiles fetch half of the next
    product's each, so that memory is as busy as the processor.
    """
    cdef Py_ssize_t width = panel_width(panel), b, s, k, run, segments
    cdef Py_ssize_t at_once = max(<Py_ssize_t>1, tiling.depth // channels)
    cdef Py_ssize_t[MAX_BLOCKS] offset
    cdef Py_ssize_t[MAX_BLOCKS] length
    cdef const Py_ssize_t *block = tiling.product_block
    cdef int start = START_ZERO
    for b from tiling.product_start[q] <= b < tiling.product_start[q + 1] by at_once:
        segments = min(at_once, tiling.product_start[q + 1] - b)
        for k from 0 <= k < channels by tiling.depth:
            run = min(tiling.depth, channels - k)
            for s in range(segments):
                offset[s] = block[b + s] * tiles * v_tile + k
                length[s] = run
            gemm_rows_ahead(
                tiles, columns, v, v_tile, segments, offset, length, panel, width, product, width, start,
                NULL, False, panel + segments * run * width, segments * run * width // 2)
            panel += segments * run * width
            start = START_OUTPUT


cdef void winograd_block(
    const Problem *problem, const Tiling *tiling, const View *view, const real *image,
    Py_ssize_t pixel_pitch, Py_ssize_t first, Py_ssize_t last, Py_ssize_t following, const real *packed,
    Py_ssize_t first_panel, Py_ssize_t last_panel, const real *coefficient_h, const real *coefficient_w,
    const real *bias, real *out, real *scratch
) noexcept nogil:
    """Tiles first … last, while memory brings their outputs and the inputs of tiles last … following;
    `scratch` begins with a pixel of zeros."""
    cdef Py_ssize_t width = panel_width(packed), panels = tiling.panels, g, p, q, channels, at = 0
    cdef Py_ssize_t tiles = last - first, columns
    cdef Py_ssize_t weights = problem.group_in * tiling.product_start[tiling.positions]
    cdef Py_ssize_t v_position = padded_position(tiling.blocks * tiles * pixel_pitch, packed)
    cdef Py_ssize_t m_position = padded_position(tiles * width, packed)
    cdef Py_ssize_t products = problem.groups * (last_panel - first_panel) * tiling.positions
    cdef const real *zeros = scratch
    cdef Place place
    cdef const real *panel
    cdef real *v = scratch + pixel_pitch
    cdef real *m = v + tiling.positions * v_position
    cdef real *target
    winograd_inputs(tiling, view, image, zeros, first, last, pixel_pitch, v, v_position, coefficient_h,
                    coefficient_w)
    for g in range(problem.groups):
        for p in range(first_panel, last_panel):
            channels = min(width, problem.group_out - p * width)
            columns = width // 2 if channels <= width // 2 else width
            place = place_of(tiling, g * problem.group_out + p * width)
            target = out + place.offset
            panel = packed + (g * panels + p) * weights * width
            for q in range(tiling.positions):
                if tiling.fetch and not tiling.stream:
                    fetch_outputs(tiling, first + share(tiles, tiling.positions, q),
                                  first + share(tiles, tiling.positions, q + 1), channels, target)
                if tiling.fetch:
                    fetch_inputs(tiling, view, image, last + share(following - last, products, at),
                                 last + share(following - last, products, at + 1), pixel_pitch)
                    at += 1
                winograd_product(
                    tiling, q, tiles, v + q * v_position + g * problem.group_in, pixel_pitch,
                    problem.group_in, panel + tiling.product_start[q] * problem.group_in * width, columns,
                    m + q * m_position)
            winograd_outputs(
                tiling, &place, m, m_position, first, last, channels, coefficient_h, coefficient_w,
                bias + (g * panels + p) * width, target, m + tiling.positions * m_position)


cdef void set_spacing(Tiling *tiling, const Problem *problem) noexcept:
    """A tile's points, and the distances of its pixels, from its pairs and the problem."""
    tiling.points_h = 2 * tiling.pairs_h + 2 if tiling.pairs_h else 1
    tiling.points_w = 2 * tiling.pairs_w + 2 if tiling.pairs_w else 1
    tiling.stride_h, tiling.stride_w = problem.stride_h, problem.stride_w
    tiling.dilation_h, tiling.dilation_w = problem.dilation_h, problem.dilation_w
    tiling.step_h = problem.stride_h * problem.dilation_h
    tiling.step_w = problem.stride_w * problem.dilation_w


cdef Py_ssize_t farthest(const Py_ssize_t[::1] origin) noexcept:
    """The largest: Python's `max` would make an object of each."""
    cdef Py_ssize_t i, result = 0
    for i in range(origin.shape[0]):
        result = max(result, origin[i])
    return result


cdef void set_outputs(
    Tiling *tiling, real[:, :, :, :] out, Py_ssize_t channels, bint accumulate, bint fetch, bint stream
) noexcept:
    """Where outputs go, and how: `channels` of them in a group."""
    cdef Py_ssize_t size = sizeof(real), start = <Py_ssize_t>&out[0, 0, 0, 0]
    cdef Py_ssize_t row = out.strides[1] // size, pixel = out.strides[2] // size
    tiling.out_rows, tiling.out_columns, tiling.out_channels = out.shape[1], out.shape[2], out.shape[3]
    tiling.image_stride = [row, pixel, out.strides[3] // size]
    tiling.out_stride = [row * tiling.merged_h, pixel * tiling.merged_w, tiling.image_stride[2]]
    tiling.accumulate = accumulate
    # Planes are written in runs of a row: nothing to fetch.
    tiling.fetch = fetch and out.strides[3] == size
    # Only whole vectors can go past the caches: each group of each pixel must begin with one.
    start |= out.strides[0] | out.strides[1] | out.strides[2] | channels * size
    tiling.stream = stream and tiling.fetch and not accumulate and start % VECTOR_BYTES == 0


def winograd(
    const real[:, :, :, :] x, const real[:, :, :, :, ::1] packed, const real[::1] bias, geometry, form,
    const real[::1] coefficient_h, const real[::1] coefficient_w, const Py_ssize_t[:, ::1] corner,
    const Py_ssize_t[::1] product_start, const Py_ssize_t[::1] product_block,
    const Py_ssize_t[::1] line_origin, const Py_ssize_t[::1] across_origin, Py_ssize_t bands,
    Py_ssize_t panel_parts, Py_ssize_t block, Py_ssize_t pixel_pitch, Py_ssize_t depth, merged, bint fetch,
    bint stream, bint rectified, bint accumulate, real[:, :, :, :] out, real[::1] workspace,
    Py_ssize_t per_thread, int num_threads
):
    """Winograd convolution F(m_h×m_w, r_h×r_w), summed over blocks of taps.

    Parameters
    ----------
    x : (N, H, W, C_in), IN
    packed : (groups, panels, products, C_in/groups, PANEL), IN
        The weights transformed, G_h g_b G_wᵀ: for each position those of its blocks.
    bias : (groups · panels · PANEL), IN
    form : ((pairs_h, pairs_w), (m_h, m_w))
        Pairs of points and outputs of a tile on each axis; 0 pairs leave an axis as it is.
    coefficient_h, coefficient_w : IN
        The constants of the one-dimensional transforms, as winograd.h lists them.
    corner : (blocks, 2), IN
        The pixel of padded input that each block's tile of outputs (0, 0) begins at.
    product_start : (n_h·n_w + 1), product_block : (products), IN
        Position q has products with the blocks product_block[product_start[q]] … [product_start[q + 1] − 1].
    line_origin, across_origin : IN
        The output row each line of tiles begins at, ascending, and the column of each tile of a line.
    bands, panel_parts : parts the lines of tiles of an image and the panels are cut into
    block : the most tiles that are transformed at a time
    pixel_pitch : C_in in whole vectors
    depth : input channels multiplied at a time
    merged : ((s_h, s_w), (skip_h, skip_w))
        The pixels of `out` whose channels those of an output are, and where the first one lies: at
        (−skip_h, −skip_w). Without accumulation, and unless it is one pixel, whole panels for each.
    fetch : whether to ask for outputs, and for the next tiles' inputs, before they are needed
    stream : whether to write outputs past the caches, where they are channels-last and whole vectors
    rectified, accumulate : as Epilogue has them
    out : (N, H_out, W_out, C_out), or the image of merged pixels, OUT
    workspace : (num_threads · per_thread), scratch
    """
    cdef Problem problem = problem_of(geometry)
    cdef Tiling tiling
    cdef View view
    (tiling.pairs_h, tiling.pairs_w), (tiling.outputs_h, tiling.outputs_w) = form
    (tiling.merged_h, tiling.merged_w), (tiling.skip_h, tiling.skip_w) = merged
    set_spacing(&tiling, &problem)
    tiling.positions, tiling.panels = product_start.shape[0] - 1, packed.shape[1]
    tiling.blocks, tiling.across, tiling.corner = corner.shape[0], across_origin.shape[0], &corner[0, 0]
    tiling.product_start, tiling.product_block = &product_start[0], &product_block[0]
    tiling.line_origin, tiling.across_origin = &line_origin[0], &across_origin[0]
    tiling.depth, tiling.rectified = depth, rectified
    set_outputs(&tiling, out, problem.group_out, accumulate, fetch, stream)
    cdef Py_ssize_t item, items = x.shape[0] * bands * panel_parts, part, n, first, last, top, in_rows, parts
    cdef Py_ssize_t i, tiles, begin, end, following, lines = line_origin.shape[0], size = sizeof(real)
    # Padded input that the tiles of one output, at every block, reach over.
    cdef Py_ssize_t reach_h = (tiling.points_h - 1) * tiling.step_h + corner[corner.shape[0] - 1, 0] + 1
    cdef Py_ssize_t reach_w = (tiling.points_w - 1) * tiling.step_w + corner[corner.shape[0] - 1, 1] + 1
    cdef Py_ssize_t in_columns = farthest(across_origin) * problem.stride_w + reach_w
    cdef Py_ssize_t[3] x_stride = [x.strides[1] // size, x.strides[2] // size, x.strides[3] // size]
    cdef bint in_place = x_stride[2] == 1 and x.shape[3] == pixel_pitch
    cdef real *scratch
    cdef const real *image
    for item in prange(items, nogil=True, num_threads=num_threads, schedule="static"):
        # All bands of some panels one after the other: a thread reads a part of the weights.
        part, n = item // (items // panel_parts), item // bands % x.shape[0]
        first, last = share(lines, bands, item % bands), share(lines, bands, item % bands + 1)
        scratch, image = &workspace[threadid() * per_thread], &x[n, 0, 0, 0]
        view = View(problem.pad_h, problem.pad_w, x.shape[1], x.shape[2], x_stride[0], x_stride[1])
        if not in_place:
            top = line_origin[first] * problem.stride_h
            in_rows = line_origin[last - 1] * problem.stride_h - top + reach_h
            view = copied_band(
                &problem, image, x_stride, x.shape[1], x.shape[2], x.shape[3], top, in_rows, in_columns,
                pixel_pitch, scratch)
            image, scratch = scratch, scratch + in_rows * in_columns * pixel_pitch
        memset(scratch, 0, pixel_pitch * size)
        tiles, parts = (last - first) * tiling.across, ((last - first) * tiling.across + block - 1) // block
        for i in range(parts):
            begin = first * tiling.across + share(tiles, parts, i)
            end = first * tiling.across + share(tiles, parts, i + 1)
            # In place the next band's inputs are in reach as well.
            following = min(end + tiles // parts, (lines if in_place else last) * tiling.across)
            winograd_block(
                &problem, &tiling, &view, image, pixel_pitch, begin, end, following, &packed[0, 0, 0, 0, 0],
                share(tiling.panels, panel_parts, part), share(tiling.panels, panel_parts, part + 1),
                &coefficient_h[0], &coefficient_w[0], &bias[0], &out[n, 0, 0, 0], scratch)
        if tiling.stream:
            finish_streams()
