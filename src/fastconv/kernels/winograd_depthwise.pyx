# Depthwise convolution in Winograd's form, tiles of four outputs along its rows; winograd_depthwise.h has the
# formulas.
#
# A strip of tiles of one vector of channels goes down the rows: each row of the input is transformed once,
# into a ring of as many rows as the kernel has, which stays in the L1 cache, and a row of outputs is made
# from all of the ring. Strips, vectors and bands of rows are computed apart, in any order.
from cython.parallel cimport prange, threadid

cdef extern from "microkernel.h" nogil:
    const int DEPTHWISE_POINTS, DEPTHWISE_TILE
    struct depthwise_row:
        Py_ssize_t width, a_row, a_pixel, y_pixel
        bint rectified, accumulate
    void depthwise_transform_f32(
        const depthwise_row *s, Py_ssize_t tiles, Py_ssize_t left, const float *a, float *v) noexcept
    void depthwise_transform_f64(
        const depthwise_row *s, Py_ssize_t tiles, Py_ssize_t left, const double *a, double *v) noexcept
    void depthwise_products_f32(
        const depthwise_row *s, Py_ssize_t blocks, Py_ssize_t tiles, const float *const *row,
        Py_ssize_t first, Py_ssize_t last, const float *u, const float *bias, Py_ssize_t count,
        float *y) noexcept
    void depthwise_products_f64(
        const depthwise_row *s, Py_ssize_t blocks, Py_ssize_t tiles, const double *const *row,
        Py_ssize_t first, Py_ssize_t last, const double *u, const double *bias, Py_ssize_t count,
        double *y) noexcept

# The most rows of a kernel.
cdef enum:
    DEPTHWISE_ROWS = 16


# Tiles first … first + tiles of the rows of an image, and one vector's channels, fewer in the last one.
cdef struct Strip:
    Py_ssize_t first, tiles, blocks, channels, height, width, columns
    bint rectified, accumulate


cdef void strip_input(
    const Strip *strip, const Problem *problem, const real *x, const Py_ssize_t *stride, Py_ssize_t y,
    real *v, real *block
) noexcept nogil:
    """Transform row y of the input, in place where its pixels have whole vectors of channels."""
    cdef Py_ssize_t lanes = VECTOR_BYTES // <Py_ssize_t>sizeof(real), tiles = strip.tiles + strip.blocks - 1
    cdef Py_ssize_t left = strip.first * DEPTHWISE_TILE - problem.pad_w
    cdef Py_ssize_t columns = (tiles - 1) * DEPTHWISE_TILE + DEPTHWISE_POINTS
    cdef depthwise_row s
    if stride[2] == 1 and strip.channels == lanes:
        s.width, s.a_row, s.a_pixel = strip.width, stride[0], stride[1]
        x = x + y * stride[0]
    else:
        gather_band(x, stride, strip.height, strip.width, strip.channels, y, left, 1, columns, block, 0,
                    lanes)
        s.width, s.a_row, s.a_pixel = columns, 0, lanes
        x, left = block, 0
    if real is float:
        depthwise_transform_f32(&s, tiles, left, x, v)
    else:
        depthwise_transform_f64(&s, tiles, left, x, v)


cdef void strip_output(
    const Strip *strip, const real *const *row, Py_ssize_t first, Py_ssize_t last, const real *u,
    const real *bias, real *out, const Py_ssize_t *stride, real *block
) noexcept nogil:
    """A row of outputs from rows first ≤ i < last of the kernel; `out` is its first pixel."""
    cdef Py_ssize_t lanes = VECTOR_BYTES // <Py_ssize_t>sizeof(real)
    cdef Py_ssize_t count = min(strip.tiles * DEPTHWISE_TILE, strip.columns - strip.first * DEPTHWISE_TILE)
    cdef bint in_place = stride[2] == 1 and strip.channels == lanes
    cdef real *to = out if in_place else block
    cdef depthwise_row s
    s.y_pixel = stride[1] if in_place else lanes
    s.rectified, s.accumulate = strip.rectified, strip.accumulate
    if not in_place and strip.accumulate:
        gather_band(<const real *>out, stride, 1, count, strip.channels, 0, 0, 1, count, block, 0, lanes)
    if real is float:
        depthwise_products_f32(&s, strip.blocks, strip.tiles, row, first, last, u, bias, count, to)
    else:
        depthwise_products_f64(&s, strip.blocks, strip.tiles, row, first, last, u, bias, count, to)
    if not in_place:
        scatter_rows(block, 0, lanes, 1, count, strip.channels, out, stride)


cdef void depthwise_strip(
    const Strip *strip, const Problem *problem, const real *x, const Py_ssize_t *x_stride, const real *u,
    const real *bias, Py_ssize_t first, Py_ssize_t last, real *out, const Py_ssize_t *out_stride,
    real *scratch
) noexcept nogil:
    """Rows first … last of a strip; `x` and `out` are pixel (0, 0) of its channels."""
    cdef Py_ssize_t lanes = VECTOR_BYTES // <Py_ssize_t>sizeof(real), top, y, i, begin, end
    cdef Py_ssize_t pitch = (strip.tiles + strip.blocks - 1) * DEPTHWISE_POINTS * lanes
    cdef Py_ssize_t following = max(<Py_ssize_t>0, first - problem.pad_h)
    cdef real *block = scratch + problem.kernel_h * pitch
    cdef const real *row[DEPTHWISE_ROWS]
    out = out + strip.first * DEPTHWISE_TILE * out_stride[1]
    for y in range(first, last):
        top = y - problem.pad_h
        begin, end = max(<Py_ssize_t>0, -top), min(problem.kernel_h, strip.height - top)
        while following < top + end:
            strip_input(strip, problem, x, x_stride, following,
                        scratch + following % problem.kernel_h * pitch, block)
            following = following + 1
        for i in range(begin, end):
            row[i] = scratch + (top + i) % problem.kernel_h * pitch
        strip_output(strip, row, begin, end, u, bias, out + y * out_stride[0], out_stride, block)


def winograd_depthwise(
    const real[:, :, :, :] x, const real[:, :, :, ::1] packed, const real[::1] bias, geometry,
    Py_ssize_t strips, Py_ssize_t bands, bint rectified, bint accumulate, real[:, :, :, :] out,
    real[::1] workspace, Py_ssize_t per_thread, int num_threads
):
    """Depthwise convolution by F(4, 4) along the rows, stride 1.

    Parameters
    ----------
    x : (N, H, W, C), IN
    packed : (vectors, k_h, 7·blocks − 1, LANES), IN
        The transformed weights of each vector of channels: for every kernel row those of point after point,
        of all blocks of four taps, the last of which has none at ∞.
    bias : (vectors · LANES), IN
    strips, bands : parts the tiles of a row and the rows of an image are cut into
    rectified, accumulate : the epilogue, out = max(conv + bias + out, 0)
    out : (N, H_out, W_out, C), OUT
    workspace : (num_threads · per_thread), scratch
    """
    cdef Problem problem = problem_of(geometry)
    cdef Py_ssize_t vectors = packed.shape[0], lanes = packed.shape[3], size = sizeof(real), item, n, v, s, b
    cdef Py_ssize_t tiles = (out.shape[2] + DEPTHWISE_TILE - 1) // DEPTHWISE_TILE, first
    cdef Py_ssize_t[3] x_stride = [x.strides[1] // size, x.strides[2] // size, x.strides[3] // size]
    cdef Py_ssize_t[3] out_stride = [out.strides[1] // size, out.strides[2] // size, out.strides[3] // size]
    cdef Strip strip
    for item in prange(x.shape[0] * bands * strips * vectors, nogil=True, num_threads=num_threads,
                       schedule="static"):
        # All strips of a vector one after the other: on planes they share cache lines.
        s = item % strips
        v = item // strips % vectors
        b = item // (vectors * strips) % bands
        n = item // (vectors * strips * bands)
        first = share(tiles, strips, s)
        strip = Strip(first, share(tiles, strips, s + 1) - first, (problem.kernel_w + 3) // DEPTHWISE_TILE,
                      min(lanes, x.shape[3] - v * lanes), x.shape[1], x.shape[2], out.shape[2], rectified,
                      accumulate)
        depthwise_strip(
            &strip, &problem, &x[n, 0, 0, v * lanes], x_stride, &packed[v, 0, 0, 0], &bias[v * lanes],
            share(out.shape[1], bands, b), share(out.shape[1], bands, b + 1), &out[n, 0, 0, v * lanes],
            out_stride, &workspace[threadid() * per_thread])
