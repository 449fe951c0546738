/* Depthwise and narrow-group convolution in registers; microkernel.h includes this once for each element type.
 *
 *   narrow_rows   one or two rows of outputs on channels-last pixels, vectors over output channels
 *   plane_rows    a few output channels of planes (channels first), a vector along the row
 *
 * Both sum a group's products in the order (kernel row, input channel, kernel column) onto the bias, so
 * that the layout of the input never changes a bit of the result. */

/* Output pixels of a register tile: with two rows, 14 sums, 6 weights (of 3×3) and an input. */
#if defined(__AVX512F__)
#define NARROW_PIXELS 7
#define PLANE_ROWS 4
#else
#define NARROW_PIXELS 4
#define PLANE_ROWS 2
#endif

/* Without this GCC loads an input again for every product it is part of. */
#if defined(__x86_64__)
#define KEEP_IN_REGISTER(v) __asm__("" : "+v"(v))
#else
#define KEEP_IN_REGISTER(v) ((void)0)
#endif

/* The input channel that each output channel of a vector reads: a shuffle of the LANES that are loaded. */
ALWAYS_INLINE vec TYPED(narrow_load)(const int shuffled, const REAL *at, vec_mask index)
{
    const vec v = TYPED(load)(at);
    return shuffled ? __builtin_shuffle(v, index) : v;
}

/* One row of the input, whose kernel row is `i` for the first row of sums and `i − 1` for the second:
 * every input vector is loaded and shuffled once and multiplied into all sums that it is part of. */
ALWAYS_INLINE void TYPED(narrow_input_row)(
    const int first, const int second, const int pixels, const int taps, const int step, const int shuffled,
    const struct narrow *s, ptrdiff_t i, const REAL *a, const REAL *w, const vec_mask *index,
    vec (*sum)[NARROW_PIXELS])
{
    for (ptrdiff_t c = 0; c < (shuffled ? s->group_in : 1); c++) {
        const REAL *at = a, *row = w + (i * s->group_in + c) * s->kernel_w * s->w_stride;
        const vec_mask lanes = shuffled ? index[c] : (vec_mask){0};
        vec weight[2][7];
        _Pragma("GCC unroll 7") for (int j = 0; j < taps; j++)
        {
            if (first)
                weight[0][j] = TYPED(load)(row + j * s->w_stride);
            if (second)
                weight[1][j] = TYPED(load)(row + (j - s->group_in * s->kernel_w) * s->w_stride);
        }
        _Pragma("GCC unroll 32") for (int q = 0; q < (pixels - 1) * step + taps; q++)
        {
            vec v = TYPED(narrow_load)(shuffled, at, lanes);
            KEEP_IN_REGISTER(v);
            _Pragma("GCC unroll 7") for (int p = 0; p < pixels; p++)
            {
                const int j = q - p * step;
                if (j < 0 || j >= taps)
                    continue;
                if (first)
                    sum[0][p] += v * weight[0][j];
                if (second)
                    sum[1][p] += v * weight[1][j];
            }
            at += s->a_pixel;
            __asm__("" : "+r"(at)); /* keeps GCC from holding a multiple of the pitch for every q */
        }
    }
}

ALWAYS_INLINE void TYPED(narrow_tile)(
    const int rows, const int pixels, const int taps, const int step, const int shuffled,
    const struct narrow *s, ptrdiff_t first, ptrdiff_t last, const REAL *a, const REAL *w, const REAL *bias,
    const vec_mask *index, REAL *y)
{
    vec sum[2][NARROW_PIXELS];
    _Pragma("GCC unroll 2") for (int r = 0; r < rows; r++)
        _Pragma("GCC unroll 7") for (int p = 0; p < pixels; p++) sum[r][p] = TYPED(load)(bias);
#define INPUT_ROW(one, two, i) \
    TYPED(narrow_input_row)(one, two, pixels, taps, step, shuffled, s, i, a + (i) * s->a_row, w, index, sum)
    if (rows == 2) {
        INPUT_ROW(1, 0, 0);
        for (ptrdiff_t i = 1; i < s->kernel_h; i++)
            INPUT_ROW(1, 1, i);
        INPUT_ROW(0, 1, s->kernel_h);
    } else
        for (ptrdiff_t i = first; i < last; i++)
            INPUT_ROW(1, 0, i);
#undef INPUT_ROW
    _Pragma("GCC unroll 2") for (int r = 0; r < rows; r++)
        _Pragma("GCC unroll 7") for (int p = 0; p < pixels; p++)
            TYPED(store)(y + r * s->y_row + p * s->y_pixel,
                         s->rectified ? TYPED(rectify)(sum[r][p]) : sum[r][p]);
}

/* Any kernel row, dilation and stride, and the kernel columns first_j ≤ j < last_j: borders too. */
ALWAYS_INLINE void TYPED(narrow_any_tile)(
    const int pixels, const int shuffled, const struct narrow *s, ptrdiff_t first, ptrdiff_t last,
    ptrdiff_t first_j, ptrdiff_t last_j, const REAL *a, const REAL *w, const REAL *bias,
    const vec_mask *index, REAL *y)
{
    vec sum[NARROW_PIXELS];
    _Pragma("GCC unroll 7") for (int p = 0; p < pixels; p++) sum[p] = TYPED(load)(bias);
    for (ptrdiff_t i = first; i < last; i++)
        for (ptrdiff_t c = 0; c < s->group_in; c++)
            for (ptrdiff_t j = first_j; j < last_j; j++) {
                const REAL *at = a + i * s->a_row + j * s->dilation_w * s->a_pixel;
                const vec weight = TYPED(load)(w + ((i * s->group_in + c) * s->kernel_w + j) * s->w_stride);
                _Pragma("GCC unroll 7") for (int p = 0; p < pixels; p++)
                    sum[p] += TYPED(narrow_load)(shuffled, at + p * s->stride_w * s->a_pixel, index[c]) * weight;
            }
    _Pragma("GCC unroll 7") for (int p = 0; p < pixels; p++)
        TYPED(store)(y + p * s->y_pixel, s->rectified ? TYPED(rectify)(sum[p]) : sum[p]);
}

/* A tile of any number of pixels whose whole window lies in the input. */
#define NARROW_RUN(name, rows, taps, step, shuffled)                                                      \
    static void TYPED(name)(                                                                              \
        const struct narrow *s, ptrdiff_t pixels, ptrdiff_t first, ptrdiff_t last, const REAL *a,         \
        const REAL *w, const REAL *bias, const vec_mask *index, REAL *y)                                  \
    {                                                                                                     \
        switch (pixels) {                                                                                 \
            NARROW_CASE(rows, 1, taps, step, shuffled)                                                    \
            NARROW_CASE(rows, 2, taps, step, shuffled)                                                    \
            NARROW_CASE(rows, 3, taps, step, shuffled)                                                    \
            NARROW_CASE(rows, 4, taps, step, shuffled)                                                    \
            NARROW_WIDE_CASES(rows, taps, step, shuffled)                                                 \
        }                                                                                                 \
    }
#define NARROW_CASE(rows, pixels, taps, step, shuffled)                                                    \
    case pixels:                                                                                           \
        TYPED(narrow_tile)(rows, pixels, taps, step, shuffled, s, first, last, a, w, bias, index, y);      \
        break;
#if NARROW_PIXELS > 4
#define NARROW_WIDE_CASES(rows, taps, step, shuffled) \
    NARROW_CASE(rows, 5, taps, step, shuffled)        \
    NARROW_CASE(rows, 6, taps, step, shuffled)        \
    NARROW_CASE(rows, 7, taps, step, shuffled)
#else
#define NARROW_WIDE_CASES(rows, taps, step, shuffled)
#endif
NARROW_RUN(narrow_3s1, 1, 3, 1, 0)
NARROW_RUN(narrow_5s1, 1, 5, 1, 0)
NARROW_RUN(narrow_7s1, 1, 7, 1, 0)
NARROW_RUN(narrow_3s1_pair, 2, 3, 1, 0)
NARROW_RUN(narrow_5s1_pair, 2, 5, 1, 0)
NARROW_RUN(narrow_7s1_pair, 2, 7, 1, 0)
NARROW_RUN(narrow_3s2, 1, 3, 2, 0)
NARROW_RUN(narrow_5s2, 1, 5, 2, 0)
NARROW_RUN(narrow_7s2, 1, 7, 2, 0)
NARROW_RUN(narrow_grouped_3s1, 1, 3, 1, 1)
NARROW_RUN(narrow_grouped_3s1_pair, 2, 3, 1, 1)
NARROW_RUN(narrow_grouped_3s2, 1, 3, 2, 1)

/* One pixel at a border, with `taps` of the kernel's columns in the input. */
#define NARROW_EDGE(name, rows, taps, shuffled)                                                          \
    static void TYPED(name)(                                                                              \
        const struct narrow *s, ptrdiff_t pixels, ptrdiff_t first, ptrdiff_t last, const REAL *a,         \
        const REAL *w, const REAL *bias, const vec_mask *index, REAL *y)                                  \
    {                                                                                                     \
        (void)pixels;                                                                                     \
        TYPED(narrow_tile)(rows, 1, taps, 1, shuffled, s, first, last, a, w, bias, index, y);             \
    }
NARROW_EDGE(narrow_edge_2, 1, 2, 0)
NARROW_EDGE(narrow_edge_3, 1, 3, 0)
NARROW_EDGE(narrow_edge_4, 1, 4, 0)
NARROW_EDGE(narrow_edge_5, 1, 5, 0)
NARROW_EDGE(narrow_edge_6, 1, 6, 0)
NARROW_EDGE(narrow_edge_2_pair, 2, 2, 0)
NARROW_EDGE(narrow_edge_3_pair, 2, 3, 0)
NARROW_EDGE(narrow_edge_4_pair, 2, 4, 0)
NARROW_EDGE(narrow_edge_5_pair, 2, 5, 0)
NARROW_EDGE(narrow_edge_6_pair, 2, 6, 0)
NARROW_EDGE(narrow_grouped_edge_2, 1, 2, 1)
NARROW_EDGE(narrow_grouped_edge_2_pair, 2, 2, 1)
#undef NARROW_EDGE
#undef NARROW_RUN
#undef NARROW_CASE
#undef NARROW_WIDE_CASES

static void TYPED(narrow_any)(
    const struct narrow *s, ptrdiff_t count, ptrdiff_t first, ptrdiff_t last, ptrdiff_t first_j,
    ptrdiff_t last_j, const REAL *a, const REAL *w, const REAL *bias, const vec_mask *index, REAL *y)
{
#define TILE(pixels, shuffled) \
    TYPED(narrow_any_tile)(pixels, shuffled, s, first, last, first_j, last_j, a, w, bias, index, y)
    for (; count >= 4; count -= 4, a += 4 * s->stride_w * s->a_pixel, y += 4 * s->y_pixel)
        if (s->shuffled)
            TILE(4, 1);
        else
            TILE(4, 0);
    for (; count > 0; count--, a += s->stride_w * s->a_pixel, y += s->y_pixel)
        if (s->shuffled)
            TILE(1, 1);
        else
            TILE(1, 0);
#undef TILE
}

/* All output channels of `rows` ≤ 2 rows of outputs, a tile of pixels at a time, so that the input lines which a
 * vector shares with the next one are read while they are in the L1 cache.
 *
 * `a` is where kernel row 0 of the first output row would begin at column 0 of the input; only its kernel
 * rows first ≤ i < last lie in the input (with two rows: all of both). Vector v holds the output channels
 * from start[v] on, made from the LANES input channels from base[v] on; lanes[v] has group_in shuffles. */
static void TYPED(narrow_rows)(
    const struct narrow *s, int rows, ptrdiff_t first, ptrdiff_t last, const REAL *a, const REAL *w,
    const REAL *bias, const MASK *lanes, REAL *y)
{
    typedef void narrow_run(const struct narrow *, ptrdiff_t, ptrdiff_t, ptrdiff_t, const REAL *, const REAL *,
                            const REAL *, const vec_mask *, REAL *);
    static narrow_run *const runs[4][3] = {
        {TYPED(narrow_3s1), TYPED(narrow_3s2), TYPED(narrow_3s1_pair)},
        {TYPED(narrow_5s1), TYPED(narrow_5s2), TYPED(narrow_5s1_pair)},
        {TYPED(narrow_7s1), TYPED(narrow_7s2), TYPED(narrow_7s1_pair)},
        {TYPED(narrow_grouped_3s1), TYPED(narrow_grouped_3s2), TYPED(narrow_grouped_3s1_pair)},
    };
    static narrow_run *const edges[6][2] = {
        {TYPED(narrow_edge_2), TYPED(narrow_edge_2_pair)},
        {TYPED(narrow_edge_3), TYPED(narrow_edge_3_pair)},
        {TYPED(narrow_edge_4), TYPED(narrow_edge_4_pair)},
        {TYPED(narrow_edge_5), TYPED(narrow_edge_5_pair)},
        {TYPED(narrow_edge_6), TYPED(narrow_edge_6_pair)},
        {TYPED(narrow_grouped_edge_2), TYPED(narrow_grouped_edge_2_pair)},
    };
    const int sized = s->dilation_w == 1 && s->stride_w <= 2 && s->kernel_w % 2 == 1 && s->kernel_w >= 3 &&
                      s->kernel_w <= (s->shuffled ? 3 : 7);
    vec_mask index[LANES];
    ptrdiff_t pixels;
    for (ptrdiff_t x = 0; x < s->columns; x += pixels) {
        const ptrdiff_t tiles = (s->interior_end - x + NARROW_PIXELS - 1) / NARROW_PIXELS;
        const ptrdiff_t left = x * s->stride_w - s->pad_w, d = s->dilation_w;
        ptrdiff_t first_j = 0, last_j = s->kernel_w;
        narrow_run *run = NULL;
        if (x >= s->interior_begin && x < s->interior_end) {
            pixels = (s->interior_end - x + tiles - 1) / tiles;
            if (sized)
                run = runs[s->shuffled ? 3 : s->kernel_w / 2 - 1][rows == 2 ? 2 : s->stride_w - 1];
        } else {
            pixels = 1;
            first_j = left < 0 ? (d - 1 - left) / d : 0;
            last_j = left < s->width ? (s->width - left + d - 1) / d : 0;
            last_j = last_j < s->kernel_w ? last_j : s->kernel_w;
            if (sized && last_j - first_j >= 2)
                run = edges[s->shuffled ? 5 : last_j - first_j - 2][rows - 1];
        }
        for (ptrdiff_t v = 0; v < s->vectors; v++) {
            const REAL *at = a + left * s->a_pixel + s->base[v];
            const ptrdiff_t c = s->start[v];
            REAL *to = y + x * s->y_pixel + c;
            if (s->shuffled)
                memcpy(index, lanes + v * s->group_in * LANES, s->group_in * sizeof(vec_mask));
            if (run)
                run(s, pixels, first, last, at + first_j * s->a_pixel, w + first_j * s->w_stride + c, bias + c,
                    index, to);
            else
                for (int r = 0; r < rows; r++)
                    TYPED(narrow_any)(s, pixels, first, last, first_j, last_j, at + r * s->a_row, w + c, bias + c,
                                      index, to + r * s->y_row);
        }
    }
}

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

/* Store the first `valid` lanes, or all where `room` elements may be overwritten. */
ALWAYS_INLINE void TYPED(store_ragged)(REAL *at, vec v, ptrdiff_t valid, ptrdiff_t room)
{
    if (valid >= LANES || room >= LANES)
        TYPED(store)(at, v);
    else
        for (ptrdiff_t l = 0; l < valid; l++)
            at[l] = v[l];
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
            TYPED(store_ragged)(y + o * s->y_plane + r * s->y_row,
                                s->rectified ? TYPED(rectify)(sum[o][r]) : sum[o][r], valid,
                                room - r * s->y_row);
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

static void TYPED(plane_rows)(
    const struct planes *s, ptrdiff_t outs, ptrdiff_t rows, const REAL *a, const ptrdiff_t *offset,
    const REAL *w, const REAL *bias, REAL *y)
{
    for (; outs >= 4; outs -= 4, w += 4, bias += 4, y += 4 * s->y_plane)
        TYPED(plane_rows_sized)(4, PLANE_ROWS, s, rows, a, offset, w, bias, y);
    for (; outs > 0; outs--, w++, bias++, y += s->y_plane)
        TYPED(plane_rows_sized)(1, 8, s, rows, a, offset, w, bias, y);
}

#undef KEEP_IN_REGISTER
#undef NARROW_PIXELS
#undef PLANE_ROWS
