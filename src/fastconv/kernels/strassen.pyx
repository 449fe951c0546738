# 1×1 convolution as Winograd's variant of Strassen's product, one level of it: the pixels of a block, the
# input and the output channels are halved, and seven products of quarters give what eight would:
#
#     S₁ = A₂₁ + A₂₂    S₂ = S₁ − A₁₁    S₃ = A₁₁ − A₂₁    S₄ = A₁₂ − S₂
#     T₁ = B₁₂ − B₁₁    T₂ = B₂₂ − T₁    T₃ = B₂₂ − B₁₂    T₄ = T₂ − B₂₁
#     U₁ = A₁₁B₁₁       U₂ = U₁ + S₂T₂   U₃ = U₂ + S₃T₃    U₄ = U₂ + S₁T₁
#     C₁₁ = U₁ + A₁₂B₂₁    C₂₂ = U₃ + S₁T₁    C₁₂ = U₄ + S₄B₂₂    C₂₁ = U₃ − A₂₂T₄
#
# The products go from registers to where they are added, as in Huang, Smith, Henry and van de Geijn,
# "Strassen's algorithm reloaded", SC 2016.
from cython.parallel cimport prange, threadid
from libc.string cimport memcpy, memset


cdef extern from "microkernel.h" nogil:
    void strassen_sums_f32(
        Py_ssize_t rows, Py_ssize_t half, const float *top, const float *bottom, Py_ssize_t a_pitch,
        Py_ssize_t second, float *s, Py_ssize_t s_pitch, Py_ssize_t s_next) noexcept
    void strassen_sums_f64(
        Py_ssize_t rows, Py_ssize_t half, const double *top, const double *bottom, Py_ssize_t a_pitch,
        Py_ssize_t second, double *s, Py_ssize_t s_pitch, Py_ssize_t s_next) noexcept
    struct strassen_part "strassen":
        Py_ssize_t depth, second, a_pitch, s_pitch, s_next, c_pitch, product
        bint added, rectified
    void strassen_tile_f32(
        int rows, const strassen_part *s, const float *top, const float *bottom, float *sums, const float *b,
        const float *left_bias, const float *right_bias, float *const *c, Py_ssize_t next_rows) noexcept
    void strassen_tile_f64(
        int rows, const strassen_part *s, const double *top, const double *bottom, double *sums,
        const double *b, const double *left_bias, const double *right_bias, double *const *c,
        Py_ssize_t next_rows) noexcept


cdef struct Halving:
    # Pixels and channels of a half, and where the second begins: of an odd number one is in both, and outputs
    # are those of the first half.
    Py_ssize_t rows, bottom, half, second
    Py_ssize_t a_pitch, s_pitch, c_pitch, depth
    bint accumulate, rectified, in_place


cdef inline Halving halving(
    Py_ssize_t pixels, Py_ssize_t channels, Py_ssize_t half, Py_ssize_t a_pitch, Py_ssize_t pitch,
    Py_ssize_t depth, bint accumulate, bint rectified
) noexcept nogil:
    return Halving((pixels + 1) // 2, pixels // 2, half, channels - half, a_pitch, pitch // 2, 0, depth,
                   accumulate, rectified, False)


cdef void strassen_tiles(
    const Halving *h, const strassen_part *s, const real *top, real *sums, bint summed, const real *b,
    const real *left_bias, const real *right_bias, real *const *c
) noexcept nogil:
    """A part of the channels for all rows; the sums are formed on the way unless `summed`."""
    cdef Py_ssize_t tiles = (h.rows + TILE_ROWS - 1) // TILE_ROWS, lanes = panel_width(b) // 2, t, r, i
    cdef Py_ssize_t ready = share(h.rows, tiles, 1), next_rows
    cdef const real *bottom = top + h.bottom * h.a_pitch
    cdef Py_ssize_t row = (h.rows - 1) * s.c_pitch
    cdef bint restored = h.in_place and h.bottom < h.rows and s.added
    cdef real[2 * 32] before  # of the pixel in both halves; panels of float32 with AVX-512 are the widest
    cdef real *tile_c[4]
    if restored:
        memcpy(before, c[0] + row, 2 * VECTOR_BYTES)
        memcpy(before + 2 * lanes, c[3] + row, 2 * VECTOR_BYTES)
    # Each tile forms the next one's, a quarter with each of four products, which have to be long enough;
    # those of the first one, or of all, come first.
    if s.depth % lanes != 0 or TILE_ROWS > lanes:
        ready = h.rows
    if not summed:
        if real is float:
            strassen_sums_f32(ready, s.depth, top, bottom, h.a_pitch, h.second, sums, h.s_pitch, s.s_next)
        else:
            strassen_sums_f64(ready, s.depth, top, bottom, h.a_pitch, h.second, sums, h.s_pitch, s.s_next)
    for t in range(tiles):
        r = share(h.rows, tiles, t)
        next_rows = share(h.rows, tiles, min(t + 2, tiles)) - share(h.rows, tiles, t + 1)
        if summed or ready == h.rows:
            next_rows = 0
        if restored and t == tiles - 1:  # the first tile has stored it
            memcpy(c[0] + row, before, 2 * VECTOR_BYTES)
            memcpy(c[3] + row, before + 2 * lanes, 2 * VECTOR_BYTES)
        for i in range(4):
            tile_c[i] = c[i] + r * s.c_pitch
        if real is float:
            strassen_tile_f32(
                share(h.rows, tiles, t + 1) - r, s, top + r * h.a_pitch, bottom + r * h.a_pitch,
                sums + r * h.s_pitch, b, left_bias, right_bias, tile_c, next_rows)
        else:
            strassen_tile_f64(
                share(h.rows, tiles, t + 1) - r, s, top + r * h.a_pitch, bottom + r * h.a_pitch,
                sums + r * h.s_pitch, b, left_bias, right_bias, tile_c, next_rows)


cdef void strassen_pair(
    const Halving *h, const real *top, real *sums, bint summed, const real *packed, const real *left_bias,
    const real *right_bias, real *const *c
) noexcept nogil:
    """A panel of each half of the output channels; c is C₁₁, C₂₁, C₂₂, C₁₂."""
    cdef Py_ssize_t width = panel_width(top), pieces = (h.half + h.depth - 1) // h.depth, q, k, depth
    cdef strassen_part s
    for q in range(pieces):
        k = share(h.half, pieces, q)
        depth = share(h.half, pieces, q + 1) - k
        s = strassen_part(
            depth, h.second, h.a_pitch, h.s_pitch, h.rows * h.s_pitch, h.c_pitch, depth * width,
            q > 0 or h.accumulate, h.rectified and q == pieces - 1)
        strassen_tiles(h, &s, top + k, sums + k, summed, packed + 7 * k * width, left_bias, right_bias, c)
        left_bias = right_bias = NULL


cdef void strassen_block(
    Halving *h, const real *top, const real[:, :, :, ::1] packed, const real *bias, Py_ssize_t first_pair,
    Py_ssize_t last_pair, Py_ssize_t channels, real *out, const Py_ssize_t *stride, Py_ssize_t columns,
    Py_ssize_t first, bint in_place, real *scratch
) noexcept nogil:
    """A block of pixels, of which the `first` one has this number in the image."""
    cdef Py_ssize_t width = packed.shape[3], right = packed.shape[0] * width, p, i, side, at, count
    cdef real *sums = scratch
    cdef real *quarters = sums + 4 * h.rows * h.s_pitch
    cdef real *c[4]
    # A pixel in both halves must be stored by one tile after another.
    in_place = in_place and (h.rows == h.bottom or h.rows > TILE_ROWS)
    for p in range(first_pair, last_pair):
        h.in_place = in_place and right + (p + 1) * width <= channels
        h.c_pitch = stride[1] if h.in_place else width
        for i in range(4):
            at = p * width + i // 2 * right
            count = max(0, min(width, channels - at))
            c[i] = quarters + i * h.rows * width
            if h.in_place:
                c[i] = out + (first + (i + 1) // 2 % 2 * h.bottom) * stride[1] + at
            elif h.accumulate and count > 0:
                move_block(c[i], width, first + (i + 1) // 2 % 2 * h.bottom, h.rows, columns, count,
                           out + at * stride[2], stride, False)
        strassen_pair(h, top, sums, p > first_pair, &packed[p, 0, 0, 0], bias + p * width,
                      bias + right + p * width, c)
        for side in range(4):
            i = (side + 1) % 4  # the first half last
            at = p * width + i // 2 * right
            count = max(0, min(width, channels - at))
            if not h.in_place and count > 0:
                move_block(c[i], width, first + (i + 1) // 2 % 2 * h.bottom, h.rows, columns, count,
                           out + at * stride[2], stride, True)


def strassen(
    const real[:, :, :, :] x, const real[:, :, :, ::1] packed, const real[::1] bias, Py_ssize_t blocks,
    Py_ssize_t unit, Py_ssize_t pair_parts, Py_ssize_t depth, Py_ssize_t pitch, bint rectified,
    bint accumulate, real[:, :, :, :] out, real[::1] workspace, Py_ssize_t per_thread, int num_threads
):
    """1×1 convolution, stride 1, no padding, one group, with seven products for eight.

    Parameters
    ----------
    x : (N, H, W, C_in), IN
    packed : (pairs of panels, 7, ⌈C_in / 2⌉, PANEL), IN
        As ``pack_strassen`` made it. The first half of the output channels is `pairs` panels.
    bias : (2 · pairs · PANEL), IN
    blocks, unit : parts the pixels of an image are cut into, and the pixels they are multiples of
        The pixels that are added to each other, and so the result's bits, depend on them.
    pair_parts : parts the pairs of panels are cut into
    depth : input channels multiplied at a time
    pitch : elements from pixel to pixel of a copy of a block; half of it for each sum
    rectified, accumulate : the epilogue, out = max(conv + bias + out, 0)
    out : (N, H, W, C_out), OUT
    workspace : (num_threads · per_thread), scratch
    """
    cdef Py_ssize_t item, items = x.shape[0] * blocks * pair_parts, part, n, first, last
    cdef Py_ssize_t channels = x.shape[3], pixels = x.shape[1] * x.shape[2], pairs = packed.shape[0]
    cdef Py_ssize_t size = sizeof(real)
    cdef Py_ssize_t[3] x_stride = [x.strides[1] // size, x.strides[2] // size, x.strides[3] // size]
    cdef Py_ssize_t[3] out_stride = [out.strides[1] // size, out.strides[2] // size, out.strides[3] // size]
    cdef Py_ssize_t x_columns = one_row(x_stride, x.shape[1], x.shape[2])
    cdef Py_ssize_t columns = one_row(out_stride, out.shape[1], out.shape[2])
    cdef Halving h
    cdef real *scratch
    cdef const real *top
    for item in prange(items, nogil=True, num_threads=num_threads, schedule="static"):
        part = item // (items // pair_parts)
        n = item // blocks % x.shape[0]
        first = block_start(pixels, unit, blocks, item % blocks)
        last = block_start(pixels, unit, blocks, item % blocks + 1)
        h = halving(last - first, channels, packed.shape[2], pitch, pitch, depth, accumulate, rectified)
        scratch = &workspace[threadid() * per_thread]
        if x_stride[2] == 1 and x_columns == pixels:
            top = &x[n, 0, 0, 0] + first * x_stride[1]
            h.a_pitch = x_stride[1]
        else:
            move_block(scratch, pitch, first, last - first, x_columns, channels, <real *>&x[n, 0, 0, 0],
                       x_stride, False)
            top = scratch
            scratch = scratch + (last - first) * pitch
        strassen_block(
            &h, top, packed, &bias[0], share(pairs, pair_parts, part), share(pairs, pair_parts, part + 1),
            out.shape[3], &out[n, 0, 0, 0], out_stride, columns, first,
            out_stride[2] == 1 and columns == pixels, scratch)


cdef inline Py_ssize_t block_start(
    Py_ssize_t pixels, Py_ssize_t unit, Py_ssize_t blocks, Py_ssize_t block
) noexcept nogil:
    """Where a block of pixels begins: at a whole unit, and the last block has the rest."""
    return pixels if block == blocks else share(pixels // unit, blocks, block) * unit


cdef Py_ssize_t one_row(const Py_ssize_t *stride, Py_ssize_t rows, Py_ssize_t columns) noexcept nogil:
    """The columns of an image, all of its pixels where its rows follow each other."""
    return rows * columns if rows == 1 or stride[0] == columns * stride[1] else columns


cdef void strassen_weight_row(
    const real *left, const real *right, const real *left_second, const real *right_second, real *packed,
    Py_ssize_t product
) noexcept nogil:
    """One channel of a half: the seven factors of a panel, `product` elements apart; NULL is zero."""
    cdef Py_ssize_t width = panel_width(left), j
    cdef double b11, b12, b21, b22, t1, t2
    for j in range(width):
        b11, b12, b21, b22 = left[j], right[j], 0, 0
        if left_second != NULL:
            b21, b22 = left_second[j], right_second[j]
        t1 = b12 - b11
        t2 = b22 - t1
        packed[j] = <real>b11
        packed[product + j] = <real>b21
        packed[2 * product + j] = <real>t2
        packed[3 * product + j] = <real>(b22 - b12)
        packed[4 * product + j] = <real>(b21 - t2)
        packed[5 * product + j] = <real>t1
        packed[6 * product + j] = <real>b22


def pack_strassen(
    const real[:, :] weight, Py_ssize_t depth, real[:, :, :, ::1] packed, real[:, :, ::1] workspace,
    int num_threads
):
    """The right factors B₁₁, B₂₁, T₂, T₃, B₂₁ − T₂, T₁, B₂₂ as panels, added up in float64.

    Parameters
    ----------
    weight : (C_out, C_in), IN
    depth : input channels multiplied at a time
    packed : (pairs, 7, half, PANEL), OUT
        For the pair of panels p and pairs + p, in the order they are read: of each piece of the channels all
        factors, one after the other. half is ⌈C_in / 2⌉, and of an odd number of inputs the one that is in
        both halves has zero weights in the second.
    workspace : (num_threads, 2·C_in, PANEL), scratch
    """
    cdef Py_ssize_t p, k, i, first, size = sizeof(real), pairs = packed.shape[0], half = packed.shape[2]
    cdef Py_ssize_t channels = weight.shape[1], outputs = weight.shape[0], width = packed.shape[3]
    cdef Py_ssize_t both = 2 * half - channels, pieces = (half + depth - 1) // depth, q, begin, end
    cdef Py_ssize_t[4] stride = [weight.strides[0] // size, weight.strides[1] // size, 0, 0]
    cdef real *side
    for p in prange(pairs, nogil=True, num_threads=num_threads, schedule="static"):
        side = &workspace[threadid(), 0, 0]
        for i in range(2):
            first = (i * pairs + p) * width
            if first < outputs:
                pack_weight_panel(&weight[first, 0], stride, min(width, outputs - first), channels, 1, 1,
                                  side + i * channels * width)
            else:
                memset(side + i * channels * width, 0, channels * width * sizeof(real))
        for q in range(pieces):
            begin, end = share(half, pieces, q), share(half, pieces, q + 1)
            for k in range(begin, end):
                strassen_weight_row(
                    side + k * width, side + (channels + k) * width,
                    <const real *>NULL if k < both else side + (half - both + k) * width,
                    <const real *>NULL if k < both else side + (channels + half - both + k) * width,
                    &packed[p, 0, 0, 0] + (6 * begin + k) * width, (end - begin) * width)
