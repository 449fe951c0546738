/* The transposed depthwise convolution of stride 2 along the row, all phases of it at once; microkernel.h includes
 * this once for each element type.
 *
 *     y[2m + b] = bias + Σ_u Σ_e  x[row of u, m + e] · w[u, b + r − 2e]      0 ≤ b + r − 2e < taps
 *
 * for pairs m of outputs, where r is the lowest padding mod 2 and x begins half the padding further on. Sums go from
 * one kernel row u to the next and, within it, along the inputs, on pixels and on planes alike. */

/* Pairs of outputs in registers: their sums, a row of weights and an input. */
#if defined(__AVX512F__)
#define PAIRS_MOST 7
#else
#define PAIRS_MOST 4
#endif
/* Inputs of a pair, before and after the one at its place. */
#define PAIR_BEFORE(taps, odd) (((taps) - 1 - (odd)) / 2)
#define PAIR_INPUTS(taps, odd) (PAIR_BEFORE(taps, odd) + 1 + (odd))

/* Which kernel rows meet row `i` of the outputs: how many, and the rows of inputs and weights that they multiply. */
ALWAYS_INLINE ptrdiff_t TYPED(transposed_meeting)(
    const struct transposed *s, ptrdiff_t i, const REAL *x, const REAL *w, const REAL **row, const REAL **weight)
{
    ptrdiff_t count = 0;
    /* Of i + pad − u · dilation, whose division takes as long as a row of outputs: the next one's is a subtraction. */
    ptrdiff_t at = (i + s->pad_h) / s->stride_h, rest = i + s->pad_h - at * s->stride_h;
    for (ptrdiff_t u = 0; u < s->kernel_h; u++) {
        if (rest == 0 && at >= 0 && at < s->height) {
            row[count] = x + at * s->x_row;
            weight[count++] = w + u * s->taps * s->w_stride;
        }
        for (rest -= s->dilation_h; rest < 0; rest += s->stride_h)
            at--;
    }
    return count;
}

/* `pairs` pairs of pixels of one vector of channels. Inputs outside, which are the first or the last of them, are
 * left out. */
ALWAYS_INLINE void TYPED(transposed_pixels_tile)(
    const int pairs, const int taps, const int odd, const struct transposed *s, ptrdiff_t rows,
    const REAL *const *row, const REAL *const *weight, ptrdiff_t left, ptrdiff_t c, const REAL *bias, int whole, REAL *y)
{
    const int inputs = pairs - 1 + PAIR_INPUTS(taps, odd), margin = taps / 2 + 1;
    const ptrdiff_t begin = -left, end = s->width - left;
    vec sum[2 * PAIRS_MOST];
    _Pragma("GCC unroll 14") for (int p = 0; p < 2 * pairs; p++) sum[p] = TYPED(load)(bias + c);
    for (ptrdiff_t u = 0; u < rows; u++) {
        const REAL *at = row[u] + left * s->x_pixel + c, *from = weight[u] + c;
        vec w[7];
        _Pragma("GCC unroll 7") for (int j = 0; j < taps; j++) w[j] = TYPED(load)(from + j * s->w_stride);
        _Pragma("GCC unroll 16") for (int q = 0; q < inputs; q++, at += s->x_pixel)
        {
            if ((q < margin && q < begin) || (q >= inputs - margin && q >= end))
                continue;
            vec v = TYPED(load)(at);
            HOLD(v);
            _Pragma("GCC unroll 14") for (int p = 0; p < 2 * pairs; p++)
            {
                const int j = p % 2 + odd - 2 * (q - p / 2 - PAIR_BEFORE(taps, odd));
                if (j >= 0 && j < taps)
                    sum[p] += v * w[j];
            }
        }
    }
    _Pragma("GCC unroll 14") for (int p = 0; p < 2 * pairs; p++)
        if (p < 2 * pairs - 1 || whole)
            TYPED(store)(y + p * s->y_pixel + c, s->rectified ? TYPED(rectify)(sum[p]) : sum[p]);
}

/* Row `i` of the outputs, tile by tile: all channels of one, then the next. */
ALWAYS_INLINE void TYPED(transposed_pixels_sized)(
    const int taps, const int odd, const struct transposed *s, ptrdiff_t i, const REAL *x, const REAL *w,
    const REAL *bias, REAL *y)
{
    const ptrdiff_t all = (s->columns + 1) / 2, tiles = (all + PAIRS_MOST - 1) / PAIRS_MOST;
    const REAL *row[7], *weight[7];
    const ptrdiff_t rows = TYPED(transposed_meeting)(s, i, x, w, row, weight);
    for (ptrdiff_t t = 0; t < tiles; t++) {
        const ptrdiff_t first = all * t / tiles, pairs = all * (t + 1) / tiles - first;
        const ptrdiff_t left = first + s->shift - PAIR_BEFORE(taps, odd);
        const int whole = 2 * (first + pairs) <= s->columns;
        for (ptrdiff_t v = 0; v < s->channels; v += LANES) {
            const ptrdiff_t c = v + LANES <= s->channels ? v : s->channels - LANES;
#define CASE(pairs)                                                                                       \
    case pairs:                                                                                           \
        if ((pairs) <= PAIRS_MOST)                                                                        \
            TYPED(transposed_pixels_tile)(pairs, taps, odd, s, rows, row, weight, left, c, bias, whole,   \
                                          y + 2 * first * s->y_pixel);                                    \
        break;
            switch (pairs) {
                CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7)
            }
#undef CASE
        }
    }
}

/* A vector of pairs m of two rows of a plane; of those, and of the elements behind them that may be overwritten, `room`
 * are left in each. */
ALWAYS_INLINE void TYPED(transposed_plane_tile)(
    const int taps, const int odd, const struct transposed *s, const REAL *x, const REAL *w, REAL bias, vec_mask low,
    vec_mask high, ptrdiff_t columns, const ptrdiff_t *room, REAL *y)
{
    vec sum[2][2];
    _Pragma("GCC unroll 4") for (int p = 0; p < 4; p++) sum[p / 2][p % 2] = TYPED(broadcast)(bias);
    _Pragma("GCC unroll 4") for (int r = PAIR_INPUTS(taps, odd) - 1; r >= 0; r--)
        _Pragma("GCC unroll 4") for (int q = 0; q < PAIR_INPUTS(taps, odd); q++)
        {
            vec v = TYPED(load)(x + r * s->x_row + q);
            HOLD(v);
            _Pragma("GCC unroll 4") for (int p = 0; p < 4; p++)
            {
                const int i = p / 2 + odd - 2 * (r - PAIR_BEFORE(taps, odd));
                const int j = p % 2 + odd - 2 * (q - PAIR_BEFORE(taps, odd));
                if (i >= 0 && i < taps && j >= 0 && j < taps)
                    sum[p / 2][p % 2] += v * TYPED(broadcast)(w[i * taps + j]);
            }
        }
    _Pragma("GCC unroll 2") for (int a = 0; a < 2; a++, y += s->y_row)
    {
        if (room[a] <= 0)
            return;
        if (s->rectified)
            sum[a][0] = TYPED(rectify)(sum[a][0]), sum[a][1] = TYPED(rectify)(sum[a][1]);
        const vec left = __builtin_shuffle(sum[a][0], sum[a][1], low);
        const vec right = __builtin_shuffle(sum[a][0], sum[a][1], high);
        TYPED(store_part)(y, room[a] >= LANES ? LANES : columns, left);
        if (columns > LANES)
            TYPED(store_part)(y + LANES, room[a] >= 2 * LANES ? LANES : columns - LANES, right);
    }
}

/* `rows` rows of a plane's outputs; x leads to lines with zeros around their pixels. Vectors go from right to left:
 * what lies behind a row is written later where it is the next row. */
ALWAYS_INLINE void TYPED(transposed_plane_sized)(
    const int taps, const int odd, const struct transposed *s, ptrdiff_t rows, const REAL *x, const REAL *w, REAL bias,
    REAL *y)
{
    const int together = s->y_row == s->columns;
    vec_mask low, high;
    for (int l = 0; l < LANES; l++) {
        low[l] = l / 2 + l % 2 * LANES;
        high[l] = low[l] + LANES / 2;
    }
    for (ptrdiff_t i = 0; i < rows; i += 2, x += s->x_row, y += 2 * s->y_row)
        for (ptrdiff_t m = (s->columns - 1) / 2 / LANES * LANES; m >= 0; m -= LANES) {
            const ptrdiff_t here = (together ? (rows - i) * s->columns : s->columns) - 2 * m;
            const ptrdiff_t room[2] = {here, i + 1 < rows ? here - (together ? s->columns : 0) : 0};
            TYPED(transposed_plane_tile)(taps, odd, s, x + m, w, bias, low, high, s->columns - 2 * m, room, y + 2 * m);
        }
}

#define CASE(taps)                  \
    case 2 * (taps): RUN(taps, 0); \
    case 2 * (taps) + 1: RUN(taps, 1);
#define CASES CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7)

/* Row `i` of the outputs, channels-last: of kernels 2 to 7 wide. */
static void TYPED(transposed_pixels)(
    const struct transposed *s, ptrdiff_t i, const REAL *x, const REAL *w, const REAL *bias, REAL *y)
{
#define RUN(taps, odd)                                                \
    TYPED(transposed_pixels_sized)(taps, odd, s, i, x, w, bias, y);   \
    return
    switch (2 * s->taps + s->odd) { CASES }
#undef RUN
}

/* Rows of a plane, both axes alike; x is the line and the column that outputs (0, 0) have at their place. */
static void TYPED(transposed_plane)(
    const struct transposed *s, ptrdiff_t rows, const REAL *x, const REAL *w, REAL bias, REAL *y)
{
#define RUN(taps, odd)                                                                                    \
    TYPED(transposed_plane_sized)(taps, odd, s, rows, x - PAIR_BEFORE(taps, odd) * (s->x_row + 1), w, bias, y); \
    return
    switch (2 * s->taps + s->odd) { CASES }
#undef RUN
}

#undef CASE
#undef CASES
#undef PAIR_BEFORE
#undef PAIR_INPUTS
#undef PAIRS_MOST
