# Direct convolution as an implicit GEMM: nothing is lowered. A row of output pixels multiplies the packed
# weights panel by panel while the micro-kernel walks the taps of the input where they lie:
#
#     out[n, y, x, m] = Σ_i Σ_j Σ_c  band[y·s_h + i·d_h, x·s_w + j·d_w, c] · W[(i, j, c), m]
#
# K = k_h·k_w·C_in/groups is cut into segments, runs of consecutive input elements (a whole kernel row
# where taps and pixels touch), and segments into chunks whose part of a panel stays in cache.
from cython.parallel cimport prange, threadid


# Register tiles that share a panel before the next panel is taken: their inputs stay in the L1 cache or near
# it, and their outputs, of which each panel writes a few lines, in the L2 cache.
cdef Py_ssize_t BLOCK_TILES = 16
# Not where sums are as short as in a first layer: outputs are then most of what is moved, and are better
# written in longer runs; panels stay in the L1 cache anyway.
cdef Py_ssize_t SHORT_REDUCTION = 64


cdef void direct_tiles(
    const real *a, Py_ssize_t a_row, Py_ssize_t a_pixel, const Py_ssize_t *offset, const Py_ssize_t *length,
    const Py_ssize_t *chunk, Py_ssize_t chunks, const real *panel, Py_ssize_t count, const real *bias,
    bint rectified, bint accumulate, real *c, Py_ssize_t c_row, Py_ssize_t c_pixel, Py_ssize_t columns,
    Py_ssize_t first_tile, Py_ssize_t last_tile
) noexcept nogil:
    """`count` columns of one panel for tiles first … last, numbered along rows of `columns` pixels."""
    cdef Py_ssize_t width = panel_width(a), across = (columns + TILE_ROWS - 1) // TILE_ROWS, q, s, t, y, x
    cdef int start = START_BIAS | START_OUTPUT if accumulate else START_BIAS
    for q in range(chunks):
        for t in range(first_tile, last_tile):
            y = t // across
            x = share(columns, across, t - y * across)
            gemm_tile(
                share(columns, across, t - y * across + 1) - x, count, a + y * a_row + x * a_pixel, a_pixel,
                chunk[q + 1] - chunk[q], offset + chunk[q], length + chunk[q], panel, width,
                c + y * c_row + x * c_pixel, c_pixel, start if q == 0 else START_OUTPUT, bias,
                rectified and q == chunks - 1, NULL)
        for s in range(chunk[q], chunk[q + 1]):
            panel += length[s] * width


cdef void direct_band(
    const Problem *problem, const real *band, Py_ssize_t row_pitch, Py_ssize_t pixel_pitch,
    const Py_ssize_t *offset, const Py_ssize_t *length, const Py_ssize_t *chunk, Py_ssize_t chunks,
    const real *packed, Py_ssize_t reduction, Py_ssize_t panels, Py_ssize_t first_panel,
    Py_ssize_t last_panel, const real *bias, bint rectified, bint accumulate, real *out,
    const Py_ssize_t *out_stride, Py_ssize_t rows, Py_ssize_t columns, real *scratch
) noexcept nogil:
    """All groups and the given panels for `rows` output rows; `scratch` holds rows · columns · PANEL."""
    cdef Py_ssize_t width = panel_width(packed), g, p, i, count, runs = rows, run = columns, tiles, blocks
    cdef bint in_place = out_stride[2] == 1
    cdef Py_ssize_t c_row = out_stride[0] if in_place else columns * width
    cdef Py_ssize_t c_pixel = out_stride[1] if in_place else width
    cdef real *target
    cdef real *c
    if (problem.kernel_h * problem.kernel_w * problem.stride_h * problem.stride_w == 1
            and row_pitch == columns * pixel_pitch and c_row == columns * c_pixel):
        runs, run = 1, rows * columns  # a 1×1 kernel sees one long row
    tiles = runs * ((run + TILE_ROWS - 1) // TILE_ROWS)
    blocks = (tiles + BLOCK_TILES - 1) // BLOCK_TILES if in_place and reduction >= SHORT_REDUCTION else 1
    for i in range(blocks):
        for g in range(problem.groups):
            for p in range(first_panel, last_panel):
                count = min(width, problem.group_out - p * width)
                target = out + (g * problem.group_out + p * width) * out_stride[2]
                c = target if in_place else scratch
                if accumulate and not in_place:
                    gather_band(target, out_stride, rows, columns, count, 0, 0, rows, columns, c, c_row,
                                width)
                direct_tiles(
                    band + g * problem.group_in, problem.stride_h * row_pitch, problem.stride_w * pixel_pitch,
                    offset, length, chunk, chunks, packed + (g * panels + p) * reduction * width, count,
                    bias + (g * panels + p) * width, rectified, accumulate, c, c_row, c_pixel, run,
                    share(tiles, blocks, i), share(tiles, blocks, i + 1))
                if not in_place:
                    scatter_rows(c, c_row, width, rows, columns, count, target, out_stride)


def direct(
    const real[:, :, :, :] x, const real[:, :, :, ::1] packed, const real[::1] bias, geometry,
    const Py_ssize_t[::1] segments, Py_ssize_t chunks, Py_ssize_t bands, Py_ssize_t panel_parts,
    bint copy_band, bint rectified, bint accumulate, real[:, :, :, :] out, real[::1] workspace,
    Py_ssize_t per_thread, int num_threads
):
    """Direct convolution.

    Parameters
    ----------
    x : (N, H, W, C_in), IN
    packed : (groups, panels, k_h·k_w·C_in/groups, PANEL), IN
    bias : (groups · panels · PANEL), IN
    segments, chunks : IN
        The segments of K for the pitches in use: where each of the chunks begins, and where they all end;
        each segment's offset; each one's length.
    bands, panel_parts : parts the output rows of an image and the panels are cut into
    copy_band : bool
        Copy each band with its zero halo; else x is read where it lies and must have no padding.
    rectified, accumulate : the epilogue, out = max(conv + bias + out, 0)
    out : (N, H_out, W_out, C_out), OUT
    workspace : (num_threads · per_thread), scratch
    """
    cdef Problem problem = problem_of(geometry)
    cdef Py_ssize_t item, items = x.shape[0] * bands * panel_parts, columns = out.shape[2]
    cdef Py_ssize_t panels = packed.shape[1]
    cdef const Py_ssize_t *chunk = &segments[0]
    cdef const Py_ssize_t *offset = chunk + chunks + 1
    cdef const Py_ssize_t *length = offset + chunk[chunks]
    cdef Py_ssize_t in_columns = covered(columns, problem.stride_w, problem.kernel_w, problem.dilation_w)
    cdef Py_ssize_t row_pitch = in_columns * x.shape[3], pixel_pitch = x.shape[3]
    cdef Py_ssize_t size = sizeof(real), n, first, last, part, rows, in_rows
    cdef Py_ssize_t[3] x_stride = [x.strides[1] // size, x.strides[2] // size, x.strides[3] // size]
    cdef Py_ssize_t[3] out_stride = [out.strides[1] // size, out.strides[2] // size, out.strides[3] // size]
    cdef const real *band
    cdef real *scratch
    if not copy_band:
        row_pitch, pixel_pitch = x_stride[0], x_stride[1]
    for item in prange(items, nogil=True, num_threads=num_threads, schedule="static"):
        # All bands of some panels one after the other: their weights stay in the thread's cache.
        part = item // (items // panel_parts)
        n = item // bands % x.shape[0]
        first = share(out.shape[1], bands, item % bands)
        last = share(out.shape[1], bands, item % bands + 1)
        rows = last - first
        in_rows = covered(rows, problem.stride_h, problem.kernel_h, problem.dilation_h)
        scratch = &workspace[threadid() * per_thread]
        band = &x[n, 0, 0, 0] + first * problem.stride_h * x_stride[0]
        if copy_band:
            gather_band(
                &x[n, 0, 0, 0], x_stride, x.shape[1], x.shape[2], x.shape[3],
                first * problem.stride_h - problem.pad_h, -problem.pad_w, in_rows, in_columns,
                scratch, row_pitch, pixel_pitch)
            band = scratch
            scratch = scratch + in_rows * row_pitch
        direct_band(
            &problem, band, row_pitch, pixel_pitch, offset, length, chunk, chunks,
            &packed[0, 0, 0, 0], packed.shape[2], panels, share(panels, panel_parts, part),
            share(panels, panel_parts, part + 1), &bias[0], rectified, accumulate, &out[n, first, 0, 0],
            out_stride, rows, columns, scratch)
