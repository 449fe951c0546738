# The products of a Winograd tile whose weights are transformed along the rows only, by winograd_half.h.
#
# A panel is, for each point of the rows' axis, two vectors of output channels after the other, of each for
# every input channel a vector for each tap of the columns' axis: in the order in which they are used.

cdef extern from "microkernel.h" nogil:
    const int HALF_TILES, HALF_TAPS
    void winograd_half_f32(
        Py_ssize_t tiles, const float *v, Py_ssize_t v_position, Py_ssize_t v_tile, Py_ssize_t terms,
        const float *w, const float *scale, float *m, Py_ssize_t m_position, Py_ssize_t m_tile,
        int start) noexcept
    void winograd_half_f64(
        Py_ssize_t tiles, const double *v, Py_ssize_t v_position, Py_ssize_t v_tile, Py_ssize_t terms,
        const double *w, const double *scale, double *m, Py_ssize_t m_position, Py_ssize_t m_tile,
        int start) noexcept


cdef inline void half_tiles(
    Py_ssize_t tiles, const real *v, Py_ssize_t v_position, Py_ssize_t v_tile, Py_ssize_t terms,
    const real *w, const real *scale, real *m, Py_ssize_t m_position, Py_ssize_t m_tile, int start
) noexcept nogil:
    if real is float:
        winograd_half_f32(tiles, v, v_position, v_tile, terms, w, scale, m, m_position, m_tile, start)
    else:
        winograd_half_f64(tiles, v, v_position, v_tile, terms, w, scale, m, m_position, m_tile, start)


cdef void half_products(
    Py_ssize_t tiles, const real *v, Py_ssize_t v_position, Py_ssize_t v_tile, Py_ssize_t channels,
    Py_ssize_t depth, const real *panel, Py_ssize_t columns, const real *scale, real *product,
    Py_ssize_t m_position
) noexcept nogil:
    """M of one panel at all points of a line: from `product` on, m_position apart."""
    cdef Py_ssize_t width = panel_width(panel), lanes = width // 2, j, t, k
    for j from 0 <= j < columns by lanes:
        for t from 0 <= t < tiles by HALF_TILES:
            for k from 0 <= k < channels by depth:
                half_tiles(
                    min(<Py_ssize_t>HALF_TILES, tiles - t), v + t * v_tile + k, v_position, v_tile,
                    min(depth, channels - k), panel + (j * channels + k * lanes) * HALF_TAPS, scale,
                    product + t * width + j, m_position, width, START_OUTPUT if k else START_ZERO)


cdef inline void store_half(
    const real *side, Py_ssize_t rows, Py_ssize_t row, Py_ssize_t tap, Py_ssize_t channels, real *point
) noexcept nogil:
    """Some rows of a panel, its channels from `row` on, at a tap: to where a point's weights begin."""
    cdef Py_ssize_t width = panel_width(side), lanes = width // 2, i, j
    for i in range(rows):
        for j in range(2):
            memcpy(point + ((j * channels + row + i) * HALF_TAPS + tap) * lanes, side + i * width + j * lanes,
                   lanes * sizeof(real))
