# Winograd convolution F(m×m, 3×3): n = m + 2, and for each tile of m×m outputs
#
#     Y = Aᵀ [ Σ_c (G g Gᵀ) ⊙ (Bᵀ d B) ] A
#
# The sum over channels is n² independent matrix products, one a position of the transformed tile. Blocks
# of tiles stay in cache: their transformed input V is made once, then each panel of weights is
# multiplied with it and transformed back while its products M are hot.


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


cdef void winograd_store(
    int outputs, const real *products, Py_ssize_t position_stride, Py_ssize_t channels, const real *bias,
    bint rectified, const real *coefficient, real *out, const Py_ssize_t *out_stride, Py_ssize_t rows,
    Py_ssize_t columns, real *tile
) noexcept nogil:
    """Transform one tile back and store its first rows × columns pixels."""
    cdef Py_ssize_t lanes = VECTOR_BYTES // <Py_ssize_t>sizeof(real), i
    cdef Py_ssize_t whole = lanes if channels <= lanes else 2 * lanes
    if out_stride[2] == 1 and channels == whole and rows >= outputs and columns >= outputs:
        transform_output(outputs, products, position_stride, whole, out, out_stride[0], out_stride[1],
                         coefficient, bias, rectified)
        return
    transform_output(outputs, products, position_stride, whole, tile, outputs * whole, whole, coefficient,
                     bias, rectified)
    for i in range(min(rows, outputs)):
        scatter_block(tile + i * outputs * whole, whole, min(columns, outputs), channels,
                      out + i * out_stride[0], out_stride[1], out_stride[2])


cdef void winograd_block(
    const Problem *problem, int outputs, const real *band, Py_ssize_t row_pitch, Py_ssize_t pixel_pitch,
    Py_ssize_t tile_columns, Py_ssize_t first_tile, Py_ssize_t tiles, const real *packed, Py_ssize_t panels,
    Py_ssize_t first_panel, Py_ssize_t last_panel, Py_ssize_t depth, const real *bias, bint rectified,
    const real *coefficient, real *out, const Py_ssize_t *out_stride, Py_ssize_t rows, Py_ssize_t columns,
    real *v, Py_ssize_t v_position, real *products
) noexcept nogil:
    """`tiles` tiles of a band of rows × columns outputs, counted along its rows of tiles."""
    cdef Py_ssize_t width = panel_width(packed), lanes = width // 2, t, y, x, g, p, q, k, run, channels, zero = 0
    cdef Py_ssize_t positions = (outputs + 2) * (outputs + 2), m_position = tiles * width
    cdef Py_ssize_t whole
    cdef const real *b
    for t in range(tiles):
        y = (first_tile + t) // tile_columns * outputs
        x = (first_tile + t) % tile_columns * outputs
        transform_input(outputs, band + y * row_pitch + x * pixel_pitch, row_pitch, pixel_pitch, pixel_pitch,
                        v + t * pixel_pitch, v_position, coefficient)
    for g in range(problem.groups):
        for p in range(first_panel, last_panel):
            channels = min(width, problem.group_out - p * width)
            whole = lanes if channels <= lanes else width
            b = packed + (g * panels + p) * positions * problem.group_in * width
            for q in range(positions):
                for k from 0 <= k < problem.group_in by depth:
                    run = min(depth, problem.group_in - k)
                    gemm_rows(
                        tiles, whole, v + q * v_position + g * problem.group_in + k, pixel_pitch, 1, &zero,
                        &run, b + (q * problem.group_in + k) * width, width, products + q * m_position,
                        width, START_ZERO if k == 0 else START_OUTPUT, NULL, False)
            for t in range(tiles):
                y = (first_tile + t) // tile_columns * outputs
                x = (first_tile + t) % tile_columns * outputs
                winograd_store(
                    outputs, products + t * width, m_position, channels, bias + (g * panels + p) * width,
                    rectified, coefficient,
                    out + y * out_stride[0] + x * out_stride[1]
                    + (g * problem.group_out + p * width) * out_stride[2],
                    out_stride, rows - y, columns - x, products + positions * m_position)


def winograd(
    const real[:, :, :, :] x, const real[:, :, :, :, ::1] packed, const real[::1] bias, geometry,
    int outputs, const real[::1] coefficient, Py_ssize_t bands, Py_ssize_t panel_parts,
    Py_ssize_t block_tiles, Py_ssize_t pixel_pitch, Py_ssize_t depth, bint rectified,
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
    block_tiles : tiles transformed at a time
    pixel_pitch : C_in in whole vectors
    depth : input channels multiplied at a time
    out : (N, H_out, W_out, C_out), OUT
    workspace : (num_threads · per_thread), scratch
    """
    cdef Problem problem = problem_of(geometry)
    cdef Py_ssize_t item, items = x.shape[0] * bands * panel_parts, part, n, first, last, t, blocks, begin
    cdef Py_ssize_t rows = out.shape[1], columns = out.shape[2], panels = packed.shape[1], in_rows, tiles
    cdef Py_ssize_t tile_rows = (rows + outputs - 1) // outputs
    cdef Py_ssize_t tile_columns = (columns + outputs - 1) // outputs, in_columns = tile_columns * outputs + 2
    # A little off a power of two: positions a multiple of 4 KiB apart would share cache sets.
    cdef Py_ssize_t v_position = block_tiles * pixel_pitch + 64 // <Py_ssize_t>sizeof(real)
    cdef Py_ssize_t row_pitch = in_columns * pixel_pitch, size = sizeof(real)
    cdef Py_ssize_t[3] x_stride = [x.strides[1] // size, x.strides[2] // size, x.strides[3] // size]
    cdef Py_ssize_t[3] out_stride = [out.strides[1] // size, out.strides[2] // size, out.strides[3] // size]
    cdef real *scratch
    cdef real *v
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
        v = scratch + in_rows * row_pitch
        tiles = (last - first) * tile_columns
        blocks = (tiles + block_tiles - 1) // block_tiles
        for t in range(blocks):
            begin = share(tiles, blocks, t)
            winograd_block(
                &problem, outputs, scratch, row_pitch, pixel_pitch, tile_columns, begin,
                share(tiles, blocks, t + 1) - begin, &packed[0, 0, 0, 0, 0], panels,
                share(panels, panel_parts, part), share(panels, panel_parts, part + 1), depth, &bias[0],
                rectified, &coefficient[0], &out[n, first * outputs, 0, 0], out_stride,
                rows - first * outputs, columns, v, v_position,
                v + (outputs + 2) * (outputs + 2) * v_position)
