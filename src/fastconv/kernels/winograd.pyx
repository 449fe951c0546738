# Winograd convolution F(m×m, 3×3): n = m + 2, and for each tile of m×m outputs
#
#     Y = Aᵀ [ Σ_c (G g Gᵀ) ⊙ (Bᵀ d B) ] A
#
# The sum over channels is n² independent matrix products, one a position of the transformed tile. Blocks
# of tiles stay in cache: their transformed input V is made once, then each panel of weights is
# multiplied with it and transformed back while its products M are hot.
from cython.parallel cimport prange, threadid


cdef inline void transform_input(
    int outputs, const real *d, Py_ssize_t row_pitch, Py_ssize_t pixel_pitch, Py_ssize_t channels, real *v,
    Py_ssize_t position_stride, const real *coefficient
) noexcept nogil:
    if real is float:
        winograd_input_f32(outputs, d, row_pitch, pixel_pitch, channels, v, position_stride, coefficient)
    else:
        winograd_input_f64(outputs, d, row_pitch, pixel_pitch, channels, v, position_stride, coefficient)


cdef inline void transform_output(
    int outputs, const real *m, Py_ssize_t position_stride, int columns, real *y, Py_ssize_t row_pitch,
    Py_ssize_t pixel_pitch, const real *coefficient, const real *bias, bint rectified
) noexcept nogil:
    if real is float:
        winograd_output_f32(outputs, m, position_stride, columns, y, row_pitch, pixel_pitch, coefficient,
                            bias, rectified)
    else:
        winograd_output_f64(outputs, m, position_stride, columns, y, row_pitch, pixel_pitch, coefficient,
                            bias, rectified)


cdef void winograd_outputs(
    int outputs, const real *products, Py_ssize_t tile_rows, Py_ssize_t tile_columns, Py_ssize_t channels,
    const real *bias, bint rectified, const real *coefficient, real *out, const Py_ssize_t *out_stride,
    Py_ssize_t rows, Py_ssize_t columns, real *block
) noexcept nogil:
    """Transform a block of tiles of one panel back and store its first rows × columns pixels."""
    cdef Py_ssize_t width = panel_width(bias), tiles = tile_rows * tile_columns, t, y, x
    cdef Py_ssize_t whole = width // 2 if channels <= width // 2 else width
    cdef bint in_place = (out_stride[2] == 1 and channels == whole and rows >= tile_rows * outputs
                          and columns >= tile_columns * outputs)
    cdef real *target = out if in_place else block
    cdef Py_ssize_t row_pitch = out_stride[0] if in_place else tile_columns * outputs * whole
    cdef Py_ssize_t pixel_pitch = out_stride[1] if in_place else whole
    for t in range(tiles):
        y, x = t // tile_columns * outputs, t % tile_columns * outputs
        transform_output(outputs, products + t * width, tiles * width, whole,
                         target + y * row_pitch + x * pixel_pitch, row_pitch, pixel_pitch, coefficient, bias,
                         rectified)
    if not in_place:
        scatter_rows(block, row_pitch, pixel_pitch, min(rows, tile_rows * outputs),
                     min(columns, tile_columns * outputs), channels, out, out_stride)


cdef void winograd_block(
    const Problem *problem, int outputs, const real *band, Py_ssize_t row_pitch, Py_ssize_t pixel_pitch,
    Py_ssize_t tile_rows, Py_ssize_t tile_columns, const real *packed, Py_ssize_t panels,
    Py_ssize_t first_panel, Py_ssize_t last_panel, Py_ssize_t depth, const real *bias, bint rectified,
    const real *coefficient, real *out, const Py_ssize_t *out_stride, Py_ssize_t rows, Py_ssize_t columns,
    real *v, Py_ssize_t v_position, real *products
) noexcept nogil:
    """A block of tile_rows × tile_columns tiles; rows × columns outputs are left from its corner on."""
    cdef Py_ssize_t width = panel_width(packed), t, g, p, q, k, run, channels, whole, zero = 0
    cdef Py_ssize_t positions = (outputs + 2) * (outputs + 2), tiles = tile_rows * tile_columns
    cdef const real *b
    for t in range(tiles):
        transform_input(
            outputs, band + (t // tile_columns * row_pitch + t % tile_columns * pixel_pitch) * outputs,
            row_pitch, pixel_pitch, pixel_pitch, v + t * pixel_pitch, v_position, coefficient)
    for g in range(problem.groups):
        for p in range(first_panel, last_panel):
            channels = min(width, problem.group_out - p * width)
            whole = width // 2 if channels <= width // 2 else width
            b = packed + (g * panels + p) * positions * problem.group_in * width
            for q in range(positions):
                for k from 0 <= k < problem.group_in by depth:
                    run = min(depth, problem.group_in - k)
                    gemm_rows(
                        tiles, whole, v + q * v_position + g * problem.group_in + k, pixel_pitch, 1, &zero,
                        &run, b + (q * problem.group_in + k) * width, width, products + q * tiles * width,
                        width, START_ZERO if k == 0 else START_OUTPUT, NULL, False)
            winograd_outputs(
                outputs, products, tile_rows, tile_columns, channels, bias + (g * panels + p) * width,
                rectified, coefficient, out + (g * problem.group_out + p * width) * out_stride[2], out_stride,
                rows, columns, products + positions * tiles * width)


cdef void winograd_band(
    const Problem *problem, int outputs, const real *band, Py_ssize_t row_pitch, Py_ssize_t pixel_pitch,
    Py_ssize_t tile_rows, Py_ssize_t tile_columns, Py_ssize_t block_rows, Py_ssize_t block_columns,
    const real *packed, Py_ssize_t panels, Py_ssize_t first_panel, Py_ssize_t last_panel, Py_ssize_t depth,
    const real *bias, bint rectified, const real *coefficient, real *out, const Py_ssize_t *out_stride,
    Py_ssize_t rows, Py_ssize_t columns, real *v, Py_ssize_t v_position
) noexcept nogil:
    """A band of tiles, cut evenly into blocks of at most block_rows × block_columns."""
    cdef Py_ssize_t down = (tile_rows + block_rows - 1) // block_rows
    cdef Py_ssize_t across = (tile_columns + block_columns - 1) // block_columns, i, j, y, x
    for i in range(down):
        y = share(tile_rows, down, i)
        for j in range(across):
            x = share(tile_columns, across, j)
            winograd_block(
                problem, outputs, band + y * outputs * row_pitch + x * outputs * pixel_pitch, row_pitch,
                pixel_pitch, share(tile_rows, down, i + 1) - y, share(tile_columns, across, j + 1) - x,
                packed, panels, first_panel, last_panel, depth, bias, rectified, coefficient,
                out + y * outputs * out_stride[0] + x * outputs * out_stride[1], out_stride,
                rows - y * outputs, columns - x * outputs, v, v_position,
                v + (outputs + 2) * (outputs + 2) * v_position)


def winograd(
    const real[:, :, :, :] x, const real[:, :, :, :, ::1] packed, const real[::1] bias, geometry,
    int outputs, const real[::1] coefficient, Py_ssize_t bands, Py_ssize_t panel_parts,
    Py_ssize_t block_rows, Py_ssize_t block_columns, Py_ssize_t pixel_pitch, Py_ssize_t depth,
    bint rectified,
    real[:, :, :, :] out, real[::1] workspace, Py_ssize_t per_thread, int num_threads
):
    """Winograd convolution F(outputs×outputs, 3×3), stride 1.

    Parameters
    ----------
    x : (N, H, W, C_in), IN
    packed : (groups, panels, n², C_in/groups, PANEL), IN
        The weights transformed, G g Gᵀ.
    bias : (groups · panels · PANEL), IN
    coefficient : IN
        The constants of the one-dimensional transforms, as microkernel.h lists them.
    bands, panel_parts : parts the rows of tiles of an image and the panels are cut into
    block_rows, block_columns : tiles transformed at a time
    pixel_pitch : C_in in whole vectors
    depth : input channels multiplied at a time
    out : (N, H_out, W_out, C_out), OUT
    workspace : (num_threads · per_thread), scratch
    """
    cdef Problem problem = problem_of(geometry)
    cdef Py_ssize_t item, items = x.shape[0] * bands * panel_parts, part, n, first, last
    cdef Py_ssize_t rows = out.shape[1], columns = out.shape[2], panels = packed.shape[1], in_rows
    cdef Py_ssize_t tile_rows = (rows + outputs - 1) // outputs
    cdef Py_ssize_t tile_columns = (columns + outputs - 1) // outputs, in_columns = tile_columns * outputs + 2
    # A little off a power of two: positions a multiple of 4 KiB apart would share cache sets.
    cdef Py_ssize_t v_position = block_rows * block_columns * pixel_pitch + 64 // <Py_ssize_t>sizeof(real)
    cdef Py_ssize_t row_pitch = in_columns * pixel_pitch, size = sizeof(real)
    cdef Py_ssize_t[3] x_stride = [x.strides[1] // size, x.strides[2] // size, x.strides[3] // size]
    cdef Py_ssize_t[3] out_stride = [out.strides[1] // size, out.strides[2] // size, out.strides[3] // size]
    cdef real *scratch
    for item in prange(items, nogil=True, num_threads=num_threads, schedule="static"):
        part = item % panel_parts
        n = item // panel_parts // bands
        first = share(tile_rows, bands, item // panel_parts % bands)
        last = share(tile_rows, bands, item // panel_parts % bands + 1)
        in_rows = (last - first) * outputs + 2
        scratch = &workspace[threadid() * per_thread]
        gather_band(
            &x[n, 0, 0, 0], x_stride, x.shape[1], x.shape[2], x.shape[3], first * outputs - problem.pad_h,
            -problem.pad_w, in_rows, in_columns, scratch, row_pitch, pixel_pitch)
        winograd_band(
            &problem, outputs, scratch, row_pitch, pixel_pitch, last - first, tile_columns, block_rows,
            block_columns, &packed[0, 0, 0, 0, 0], panels, share(panels, panel_parts, part),
            share(panels, panel_parts, part + 1), depth, &bias[0], rectified, &coefficient[0],
            &out[n, first * outputs, 0, 0], out_stride, rows - first * outputs, columns,
            scratch + in_rows * row_pitch, v_position)
