/* Depthwise and narrow-group convolution on planes (channels first), a vector along the row; microkernel.h includes
 * this once for each element type. The products of a sum come in the order that depthwise.h states. */

/* Rows of a register tile of several output channels; rows and vectors of one of a square kernel. */
#if defined(__AVX512F__)
#define PLANE_ROWS 4
#define PLANE_TALL 7
#define PLANE_WIDE 2
#else
#define PLANE_ROWS 2
#define PLANE_TALL 4
#define PLANE_WIDE 1
#endif

/* target[r][phase][...] = a row of a plane with its zero halo; column x lies in phase (x + pad) mod stride. */
static void TYPED(plane_row)(
    const struct planes *s, const REAL *source, ptrdiff_t width, ptrdiff_t readable, REAL *target)
{
    const ptrdiff_t pitch = s->stride_w * s->phase_pitch, pad = s->pad_w;
    if (s->stride_w == 1) {
        ptrdiff_t i = 0;
        for (; i < pad; i += LANES)
            TYPED(store)(target + i, (vec){0});
        for (i = 0; i + LANES <= readable && i < width; i += LANES)
            TYPED(store)(target + pad + i, TYPED(load)(source + i));
        if (i < width && width >= LANES)
            TYPED(store)(target + pad + width - LANES, TYPED(load)(source + width - LANES));
        else
            for (; i < width; i++)
                target[pad + i] = source[i];
        for (i = pad + width; i < pitch; i += LANES)
            TYPED(store)(target + i, (vec){0});
        return;
    }
    for (ptrdiff_t i = 0; i < pitch; i += LANES)
        TYPED(store)(target + i, (vec){0});
    ptrdiff_t i = 0;
    if (s->stride_w == 2) {
        vec_mask even;
        for (int l = 0; l < LANES; l++)
            even[l] = 2 * l;
        REAL *first = target + pad % 2 * s->phase_pitch + pad / 2;
        REAL *second = target + (pad + 1) % 2 * s->phase_pitch + (pad + 1) / 2;
        for (; i + 1 < width && width >= 2 * LANES; i += 2 * LANES) {
            i = i + 2 * LANES <= width ? i : (width - 2 * LANES) / 2 * 2; /* the last ones overlap */
            const vec low = TYPED(load)(source + i), high = TYPED(load)(source + i + LANES);
            TYPED(store)(first + i / 2, __builtin_shuffle(low, high, even));
            TYPED(store)(second + i / 2, __builtin_shuffle(low, high, even + 1));
        }
        i = i < width || width % 2 == 0 ? i : width - 1;
    }
    ptrdiff_t phase = (pad + i) % s->stride_w, at = (pad + i) / s->stride_w;
    for (; i < width; i++) {
        target[phase * s->phase_pitch + at] = source[i];
        phase++;
        if (phase == s->stride_w)
            phase = 0, at++;
    }
}

/* Store the first `valid` lanes, or all where `room` elements may be overwritten by what is not yet a result. */
ALWAYS_INLINE void TYPED(plane_store)(
    const struct planes *s, REAL *at, vec sum, ptrdiff_t valid, ptrdiff_t room)
{
    int whole = valid >= LANES || room >= LANES;
    if (s->accumulate) {
        vec old = {0};
        whole = valid >= LANES;
        memcpy(&old, at, whole ? sizeof old : valid * sizeof(REAL));
        sum += old;
    }
    if (s->rectified)
        sum = TYPED(rectify)(sum);
    if (whole)
        TYPED(store)(at, sum);
    else
        memcpy(at, &sum, valid * sizeof(REAL));
}

ALWAYS_INLINE void TYPED(plane_tile)(
    const int outs, const int rows, const struct planes *s, const REAL *a, const ptrdiff_t *offset,
    const REAL *w, const REAL *bias, REAL *y, ptrdiff_t valid, ptrdiff_t room)
{
    vec sum[4][8];
    _Pragma("GCC unroll 4") for (int o = 0; o < outs; o++)
        _Pragma("GCC unroll 8") for (int r = 0; r < rows; r++) sum[o][r] = TYPED(broadcast)(bias[o]);
    for (ptrdiff_t t = 0; t < s->taps; t++) {
        const REAL *at = a + offset[t];
        vec v[8];
        _Pragma("GCC unroll 8") for (int r = 0; r < rows; r++)
        {
            v[r] = TYPED(load)(at + r * s->a_row);
            if (outs > 1)
                KEEP_IN_REGISTER(v[r]);
        }
        _Pragma("GCC unroll 4") for (int o = 0; o < outs; o++)
        {
            const vec weight = TYPED(broadcast)(w[t * s->w_stride + o]);
            _Pragma("GCC unroll 8") for (int r = 0; r < rows; r++) sum[o][r] += v[r] * weight;
        }
    }
    /* Whatever lies beyond the row's end is the start of the next row, which is stored later. */
    _Pragma("GCC unroll 4") for (int o = 0; o < outs; o++)
        _Pragma("GCC unroll 8") for (int r = 0; r < rows; r++)
            TYPED(plane_store)(s, y + o * s->y_plane + r * s->y_row, sum[o][r], valid, room - r * s->y_row);
}

/* `rows` rows of `outs` output channels from the planes of their group; vectors go from right to left. */
ALWAYS_INLINE void TYPED(plane_rows_sized)(
    const int outs, const int most, const struct planes *s, ptrdiff_t rows, const REAL *a,
    const ptrdiff_t *offset, const REAL *w, const REAL *bias, REAL *y)
{
    const ptrdiff_t start = (s->columns - 1) / LANES * LANES;
    ptrdiff_t done = 0;
#define ROWS(count)                                                                                       \
    for (; count <= most && rows - done >= count; done += count)                                          \
        for (ptrdiff_t x = start; x >= 0; x -= LANES)                                                     \
            TYPED(plane_tile)(outs, count, s, a + done * s->a_row + x, offset, w, bias,                    \
                              y + done * s->y_row + x, s->columns - x,                                    \
                              s->y_row == s->columns ? (rows - done) * s->y_row - x : 0);
    ROWS(8) ROWS(4) ROWS(2) ROWS(1)
#undef ROWS
}

/* plane_store out of line, so that its calls of memcpy do not keep a tile's sums out of registers. */
__attribute__((noinline, cold)) static void TYPED(plane_store_part)(
    const struct planes *s, REAL *at, const vec *sum, ptrdiff_t valid, ptrdiff_t room)
{
    TYPED(plane_store)(s, at, *sum, valid, room);
}

/* A tile of rows × wide vectors of one output channel of a square kernel with equal strides: each vector of the
 * input is multiplied into all rows that it is part of. `column` holds where the taps of a row lie. */
ALWAYS_INLINE void TYPED(square_tile)(
    const int taps, const int step, const int rows, const int wide, const struct planes *s, const REAL *a,
    const ptrdiff_t *column, const vec *weight, REAL bias, REAL *y, ptrdiff_t valid, ptrdiff_t room)
{
    vec sum[PLANE_TALL][PLANE_WIDE];
    _Pragma("GCC unroll 8") for (int r = 0; r < rows; r++)
        _Pragma("GCC unroll 2") for (int x = 0; x < wide; x++) sum[r][x] = TYPED(broadcast)(bias);
    _Pragma("GCC unroll 24") for (int i = 0; i < (rows - 1) * step + taps; i++)
    {
        _Pragma("GCC unroll 7") for (int j = 0; j < taps; j++)
        {
            _Pragma("GCC unroll 2") for (int x = 0; x < wide; x++)
            {
                vec v = TYPED(load)(a + column[j] + x * LANES);
                KEEP_IN_REGISTER(v);
                _Pragma("GCC unroll 8") for (int r = 0; r < rows; r++)
                    if (i - r * step >= 0 && i - r * step < taps)
                        sum[r][x] += v * weight[(i - r * step) * taps + j];
            }
        }
        a += s->a_line;
        __asm__("" : "+r"(a));
    }
    _Pragma("GCC unroll 8") for (int r = 0; r < rows; r++)
    {
        const ptrdiff_t behind = room - r * s->y_row - (wide - 1) * LANES;
        const int whole = !s->accumulate && (valid >= wide * LANES || behind >= LANES);
        _Pragma("GCC unroll 2") for (int x = wide - 1; x >= 0; x--)
        {
            REAL *at = y + r * s->y_row + x * LANES;
            if (whole) {
                TYPED(store)(at, s->rectified ? TYPED(rectify)(sum[r][x]) : sum[r][x]);
            } else {
                const vec part = sum[r][x];
                TYPED(plane_store_part)(s, at, &part, valid - x * LANES, room - r * s->y_row - x * LANES);
            }
        }
    }
}

/* `rows` rows of one output channel; vectors go from right to left, as each may spill over the row's end. */
ALWAYS_INLINE void TYPED(square_rows)(
    const int taps, const int step, const struct planes *s, ptrdiff_t rows, const REAL *a,
    const ptrdiff_t *column, const REAL *w, const REAL *bias, REAL *y)
{
    vec weight[7 * 7];
    for (int t = 0; t < taps * taps; t++)
        weight[t] = TYPED(broadcast)(w[t * s->w_stride]);
    ptrdiff_t done = 0;
#define TILE(count, wide)                                                                                 \
    TYPED(square_tile)(taps, step, count, wide, s, a + done * s->a_row + x, column, weight, *bias,        \
                       y + done * s->y_row + x, s->columns - x,                                           \
                       s->y_row == s->columns ? (rows - done) * s->y_row - x : 0)
#define ROWS(count)                                                                                       \
    for (; count <= PLANE_TALL && rows - done >= count; done += count) {                                  \
        ptrdiff_t x = (s->columns - 1) / LANES * LANES;                                                   \
        for (; x >= (PLANE_WIDE - 1) * LANES; x -= LANES) {                                               \
            x -= (PLANE_WIDE - 1) * LANES;                                                                \
            TILE(count, PLANE_WIDE);                                                                      \
        }                                                                                                 \
        for (; x >= 0; x -= LANES)                                                                        \
            TILE(count, 1);                                                                               \
    }
    ROWS(PLANE_TALL) ROWS(4) ROWS(2) ROWS(1)
#undef ROWS
#undef TILE
}

#define SQUARE(taps, step)                                                                               \
    static void TYPED(square_##taps##_s##step)(                                                          \
        const struct planes *s, ptrdiff_t rows, const REAL *a, const ptrdiff_t *column, const REAL *w,   \
        const REAL *bias, REAL *y)                                                                       \
    {                                                                                                    \
        TYPED(square_rows)(taps, step, s, rows, a, column, w, bias, y);                                  \
    }
SQUARE(3, 1)
SQUARE(3, 2)
SQUARE(5, 1)
SQUARE(5, 2)
SQUARE(7, 1)
#undef SQUARE

typedef void TYPED(square_run)(
    const struct planes *, ptrdiff_t, const REAL *, const ptrdiff_t *, const REAL *, const REAL *, REAL *);

/* What there is for a kernel of `taps` products; NULL where that is nothing. */
static TYPED(square_run) * TYPED(square_for)(const struct planes *s)
{
    if (s->square_step == 1)
        return s->taps == 9    ? TYPED(square_3_s1)
               : s->taps == 25 ? TYPED(square_5_s1)
               : s->taps == 49 ? TYPED(square_7_s1)
                               : NULL;
    if (s->square_step == 2)
        return s->taps == 9 ? TYPED(square_3_s2) : s->taps == 25 ? TYPED(square_5_s2) : NULL;
    return NULL;
}

static void TYPED(plane_rows)(
    const struct planes *s, ptrdiff_t outs, ptrdiff_t rows, const REAL *a, const ptrdiff_t *offset,
    const REAL *w, const REAL *bias, REAL *y)
{
    TYPED(square_run) *square = TYPED(square_for)(s);
    for (; square && outs > 0; outs--, w++, bias++, y += s->y_plane)
        square(s, rows, a, offset, w, bias, y);
    for (; outs >= 4; outs -= 4, w += 4, bias += 4, y += 4 * s->y_plane)
        TYPED(plane_rows_sized)(4, PLANE_ROWS, s, rows, a, offset, w, bias, y);
    for (; outs > 0; outs--, w++, bias++, y += s->y_plane)
        TYPED(plane_rows_sized)(1, 8, s, rows, a, offset, w, bias, y);
}

#undef KEEP_IN_REGISTER
#undef PLANE_ROWS
#undef PLANE_TALL
#undef PLANE_WIDE
