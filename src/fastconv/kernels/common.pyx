# What all kernel sources share: element types, the micro-kernels, the description of a problem.
#
# Conventions. Images are channels-last, (N, H, W, C), and may have any strides; strides and pitches
# count elements, not bytes. Weights are packed in panels, (groups, panels, K, PANEL), zero beyond the
# last column; `bias` holds panels · PANEL values a group. `workspace` holds `per_thread` elements for
# each thread. What is only read is const; the last array argument before `workspace` is written.
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int32_t, int64_t

ctypedef fused real:
    float
    double

cdef extern from *:
    """
    #define fastconv_prefetch(address) __builtin_prefetch(address)
    /* A line that came to be read is asked for again when it is written. GCC has that instruction with an
       option of its own (processors without it do nothing), and leaves out functions that only prefetch. */
    #if defined(__x86_64__)
    #define fastconv_fetch(how, address) __asm__ volatile(how " %0" : : "m"(*(const char *)(address)))
    #define fastconv_prefetch_to_read(address) fastconv_fetch("prefetcht0", address)
    #define fastconv_prefetch_to_write(address) fastconv_fetch("prefetchw", address)
    #else
    #define fastconv_prefetch_to_read(address) __builtin_prefetch(address)
    #define fastconv_prefetch_to_write(address) __builtin_prefetch(address, 1)
    #endif
    """
    void prefetch "fastconv_prefetch"(const void *address) nogil
    void prefetch_to_read "fastconv_prefetch_to_read"(const void *address) nogil
    void prefetch_to_write "fastconv_prefetch_to_write"(const void *address) nogil

cdef extern from "team.h":
    pass

cdef extern from "microkernel.h" nogil:
    const int VECTOR_BYTES, TILE_ROWS, PLANE_WIDE, START_ZERO, START_BIAS, START_ROW_BIAS, START_OUTPUT
    const int NARROW_PLAIN, NARROW_SHUFFLED, NARROW_BROADCAST
    void gemm_tile_f32(
        int rows, int columns, const float *a, Py_ssize_t a_stride, Py_ssize_t segments,
        const Py_ssize_t *offset, const Py_ssize_t *length, const float *b, Py_ssize_t b_stride,
        float *c, Py_ssize_t c_stride, int start, const float *bias, bint rectified,
        const float *ahead) noexcept
    void gemm_tile_f64(
        int rows, int columns, const double *a, Py_ssize_t a_stride, Py_ssize_t segments,
        const Py_ssize_t *offset, const Py_ssize_t *length, const double *b, Py_ssize_t b_stride,
        double *c, Py_ssize_t c_stride, int start, const double *bias, bint rectified,
        const double *ahead) noexcept
    void winograd_input_f32(
        int pairs_h, int pairs_w, Py_ssize_t tiles, const float *const *pixel, Py_ssize_t channels,
        float *v, Py_ssize_t position_stride, Py_ssize_t v_next, const float *coefficient_h,
        const float *coefficient_w) noexcept
    void winograd_input_f64(
        int pairs_h, int pairs_w, Py_ssize_t tiles, const double *const *pixel, Py_ssize_t channels,
        double *v, Py_ssize_t position_stride, Py_ssize_t v_next, const double *coefficient_h,
        const double *coefficient_w) noexcept
    void winograd_output_f32(
        int pairs_h, int outputs_h, int pairs_w, int outputs_w, Py_ssize_t tiles, const float *m,
        Py_ssize_t position_stride, Py_ssize_t m_next, int columns, float *y, Py_ssize_t row_pitch,
        Py_ssize_t pixel_pitch, Py_ssize_t y_next, const float *coefficient_h, const float *coefficient_w,
        const float *bias, bint accumulate, bint rectified, bint streamed) noexcept
    void winograd_output_f64(
        int pairs_h, int outputs_h, int pairs_w, int outputs_w, Py_ssize_t tiles, const double *m,
        Py_ssize_t position_stride, Py_ssize_t m_next, int columns, double *y, Py_ssize_t row_pitch,
        Py_ssize_t pixel_pitch, Py_ssize_t y_next, const double *coefficient_h, const double *coefficient_w,
        const double *bias, bint accumulate, bint rectified, bint streamed) noexcept
    void winograd_weight_f32(
        int taps_h, int taps_w, Py_ssize_t points_h, Py_ssize_t points_w, const double *matrix_h,
        const double *matrix_w, const float *g, Py_ssize_t tap_stride, float *u,
        Py_ssize_t position_stride) noexcept
    void winograd_weight_f64(
        int taps_h, int taps_w, Py_ssize_t points_h, Py_ssize_t points_w, const double *matrix_h,
        const double *matrix_w, const double *g, Py_ssize_t tap_stride, double *u,
        Py_ssize_t position_stride) noexcept
    struct narrow:
        Py_ssize_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_w, group_in
        Py_ssize_t height, width, columns, interior_begin, interior_end
        Py_ssize_t a_row, a_pixel, w_stride, y_row, y_pixel, a_step, out_channels, vectors
        const Py_ssize_t *base
        int mode
        bint sized, pairs, rectified, accumulate
    struct planes:
        Py_ssize_t taps, stride_w, pad_w, phase_pitch, columns, width
        Py_ssize_t a_row, w_stride, y_plane, y_row
        bint rectified, accumulate
    void narrow_align_f32(narrow *s, Py_ssize_t rows, const float *a) noexcept
    void narrow_align_f64(narrow *s, Py_ssize_t rows, const double *a) noexcept
    bint narrow_sized_f32(const narrow *s) noexcept
    bint narrow_sized_f64(const narrow *s) noexcept
    void narrow_rows_f32(
        const narrow *s, Py_ssize_t rows, Py_ssize_t top, const float *a, const float *w, const float *bias,
        const int32_t *lanes, float *y) noexcept
    void narrow_rows_f64(
        const narrow *s, Py_ssize_t rows, Py_ssize_t top, const double *a, const double *w,
        const double *bias, const int64_t *lanes, double *y) noexcept
    void plane_row_f32(
        const planes *s, const float *source, Py_ssize_t width, Py_ssize_t readable, float *target) noexcept
    void plane_row_f64(
        const planes *s, const double *source, Py_ssize_t width, Py_ssize_t readable, double *target) noexcept
    void plane_rows_f32(
        const planes *s, Py_ssize_t outs, Py_ssize_t rows, const float *a, const Py_ssize_t *offset,
        const float *w, const float *bias, float *y) noexcept
    void plane_rows_f64(
        const planes *s, Py_ssize_t outs, Py_ssize_t rows, const double *a, const Py_ssize_t *offset,
        const double *w, const double *bias, double *y) noexcept
    void square_rows_f32(
        const planes *s, Py_ssize_t outs, Py_ssize_t rows, const float *const *line, const float *w,
        const float *bias, float *block, float *y) noexcept
    void square_rows_f64(
        const planes *s, Py_ssize_t outs, Py_ssize_t rows, const double *const *line, const double *w,
        const double *bias, double *block, double *y) noexcept
    void transpose_f32(
        const float *source, Py_ssize_t source_stride, Py_ssize_t rows, Py_ssize_t columns,
        Py_ssize_t readable, float *target, Py_ssize_t target_stride) noexcept
    void transpose_f64(
        const double *source, Py_ssize_t source_stride, Py_ssize_t rows, Py_ssize_t columns,
        Py_ssize_t readable, double *target, Py_ssize_t target_stride) noexcept


def vector_bytes():
    """Bytes of one vector register of this level."""
    return VECTOR_BYTES


def tile_rows():
    """Rows of the register tile of this level."""
    return TILE_ROWS


ctypedef fused element:
    float
    double
    Py_ssize_t


def held(array):
    """A C-contiguous array as what this level's kernels take without asking for its buffer at each call."""
    return (held_1, held_2, held_3, held_4, held_5)[array.ndim - 1](array)


def held_1(const element[::1] array):
    return array


def held_2(const element[:, ::1] array):
    return array


def held_3(const element[:, :, ::1] array):
    return array


def held_4(const element[:, :, :, ::1] array):
    return array


def held_5(const element[:, :, :, :, ::1] array):
    return array


cdef struct Problem:  # in the order of ConvGeometry.kernel_arguments
    Py_ssize_t stride_h, stride_w, dilation_h, dilation_w, pad_h, pad_w, kernel_h, kernel_w
    Py_ssize_t groups, group_in, group_out


cdef Problem problem_of(geometry):
    """The integers of a ConvGeometry with two spatial axes; only its attributes are known here."""
    cdef const char *integers = geometry.kernel_arguments
    return (<const Problem *>integers)[0]


cdef Py_buffer flat(object array, int flags=PyBUF_SIMPLE) except *:
    """Where the elements of a C-contiguous array lie, which its owner keeps meanwhile."""
    cdef Py_buffer view
    PyObject_GetBuffer(array, &view, flags)
    PyBuffer_Release(&view)
    return view


cdef inline Py_ssize_t panel_width(const real *unused) noexcept nogil:
    """Columns of a packed panel: two vectors."""
    return 2 * VECTOR_BYTES // <Py_ssize_t>sizeof(real)


cdef inline Py_ssize_t share(Py_ssize_t total, Py_ssize_t parts, Py_ssize_t part) noexcept nogil:
    """Where part `part` begins when `total` is cut into `parts` as equal as can be."""
    return total * part // parts


cdef inline Py_ssize_t covered(
    Py_ssize_t outputs, Py_ssize_t stride, Py_ssize_t kernel, Py_ssize_t dilation
) noexcept nogil:
    """Pixels of padded input that a run of outputs reads along one axis."""
    return (outputs - 1) * stride + (kernel - 1) * dilation + 1


cdef inline void gemm_tile(
    Py_ssize_t rows, Py_ssize_t columns, const real *a, Py_ssize_t a_stride, Py_ssize_t segments,
    const Py_ssize_t *offset, const Py_ssize_t *length, const real *b, Py_ssize_t b_stride,
    real *c, Py_ssize_t c_stride, int start, const real *bias, bint rectified, const real *ahead
) noexcept nogil:
    """At most TILE_ROWS rows and one panel's columns; what lies `ahead` is fetched, c if that is NULL."""
    if real is float:
        gemm_tile_f32(rows, columns, a, a_stride, segments, offset, length, b, b_stride, c, c_stride, start,
                      bias, rectified, ahead)
    else:
        gemm_tile_f64(rows, columns, a, a_stride, segments, offset, length, b, b_stride, c, c_stride, start,
                      bias, rectified, ahead)


cdef inline void gemm_rows_ahead(
    Py_ssize_t rows, Py_ssize_t columns, const real *a, Py_ssize_t a_stride, Py_ssize_t segments,
    const Py_ssize_t *offset, const Py_ssize_t *length, const real *b, Py_ssize_t b_stride,
    real *c, Py_ssize_t c_stride, int start, const real *bias, bint rectified, const real *ahead,
    Py_ssize_t ahead_share
) noexcept nogil:
    """gemm_tile for any number of rows, cut into tiles of nearly equal height (17 is 9 + 8, not 14 + 3).

    Of what lies `ahead` each tile fetches `ahead_share` elements; NULL and 0 if there is nothing.
    """
    cdef Py_ssize_t tiles = (rows + TILE_ROWS - 1) // TILE_ROWS, t, first, count
    cdef const real *tile_bias
    for t in range(tiles):
        first = share(rows, tiles, t)
        count = share(rows, tiles, t + 1) - first
        tile_bias = bias + first if start & START_ROW_BIAS else bias
        gemm_tile(count, columns, a + first * a_stride, a_stride, segments, offset, length, b, b_stride,
                  c + first * c_stride, c_stride, start, tile_bias, rectified, ahead)
        ahead += ahead_share


cdef inline void gemm_rows(
    Py_ssize_t rows, Py_ssize_t columns, const real *a, Py_ssize_t a_stride, Py_ssize_t segments,
    const Py_ssize_t *offset, const Py_ssize_t *length, const real *b, Py_ssize_t b_stride,
    real *c, Py_ssize_t c_stride, int start, const real *bias, bint rectified
) noexcept nogil:
    """gemm_rows_ahead with nothing ahead."""
    gemm_rows_ahead(rows, columns, a, a_stride, segments, offset, length, b, b_stride, c, c_stride, start,
                    bias, rectified, <const real *>NULL, 0)
