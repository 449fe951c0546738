/* Strips of 3×3 depthwise convolution on channels-last pixels: a vector of channels goes down all rows of a few columns
 * before the next vector. depthwise.h includes this where there are registers enough. */

/* One row of the input of a strip: a column of row sums meets it with every step-th kernel row from `phase` on, the
 * newest with the first. Only sums first ≤ k < last are of the image, where not all are. */
ALWAYS_INLINE void TYPED(strip_input_row)(
    const int wrapped, const int pixels, const int step, const int phase, const int all, ptrdiff_t first,
    ptrdiff_t last, ptrdiff_t begin, ptrdiff_t end, const REAL *at, ptrdiff_t a_pixel, vec_mask wrap,
    const vec (*weight)[3], vec (*sum)[NARROW_PIXELS])
{
    const int taps = 3;
    _Pragma("GCC unroll 32") for (int q = 0; q < (pixels - 1) * step + taps; q++)
    {
        if (COLUMN_IS_INSIDE(q)) {
            vec v = TYPED(load)(at);
            if (wrapped) /* lanes that lie after the pixel's own channels are in the next pixel's line */
                v = __builtin_shuffle(v, TYPED(load)(at + a_pixel), wrap);
            KEEP_IN_REGISTER(v);
            _Pragma("GCC unroll 3") for (int k = 0; k * step + phase < taps; k++)
            {
                if (!all && (k < first || k >= last))
                    continue;
                _Pragma("GCC unroll 7") for (int p = 0; p < pixels; p++)
                {
                    const int j = q - p * step;
                    if (j >= 0 && j < taps)
                        sum[k][p] += v * weight[k * step + phase][j];
                }
            }
        }
        at += a_pixel;
        __asm__("" : "+r"(at));
    }
}

/* The wrapped vector of LANES channels of a row of weights. */
ALWAYS_INLINE vec TYPED(wrapped_weights)(const struct narrow *s, const REAL *row)
{
    vec_mask index;
    for (int l = 0; l < LANES; l++)
        index[l] = l;
    index += (MASK)(LANES - s->lead);
    return __builtin_shuffle(TYPED(load)(row + s->out_channels - LANES), TYPED(load)(row), index);
}

/* Store one: the lanes of other channels are stored over by the second and the last vector. */
ALWAYS_INLINE void TYPED(wrapped_store)(const struct narrow *s, REAL *y, vec sum)
{
    vec_mask index;
    for (int l = 0; l < LANES; l++)
        index[l] = l;
    sum = __builtin_shuffle(s->rectified ? TYPED(rectify)(sum) : sum, index + (MASK)s->lead);
    TYPED(store)(y, sum);
    TYPED(store)(y + s->out_channels - LANES, sum);
}

/* All rows of a tile of a 3×3 kernel: every input vector is loaded once, the weights and the sums of the (at most
 * three) rows that are not yet complete stay in registers. `a` is where the first row's window begins. */
ALWAYS_INLINE void TYPED(strip)(
    const int wrapped, const int pixels, const int step, const struct narrow *s, ptrdiff_t rows, ptrdiff_t top,
    ptrdiff_t begin, ptrdiff_t end, const REAL *a, const REAL *w, const REAL *bias, ptrdiff_t kept, REAL *y)
{
    const int slots = (2 + step) / step, as_it_is = !s->accumulate && !s->rectified;
    vec sum[3][NARROW_PIXELS] = {{{0}}}, weight[3][3];
    _Pragma("GCC unroll 3") for (int i = 0; i < 3; i++)
        _Pragma("GCC unroll 3") for (int j = 0; j < 3; j++)
        {
            const REAL *row = w + (i * 3 + j) * s->w_stride;
            weight[i][j] = wrapped ? TYPED(wrapped_weights)(s, row) : TYPED(load)(row);
            KEEP_IN_REGISTER(weight[i][j]);
        }
    if (wrapped)
        a -= s->lead;
    const vec start = wrapped ? TYPED(wrapped_weights)(s, bias) : TYPED(load)(bias);
    vec_mask wrap;
    for (int l = 0; l < LANES; l++)
        wrap[l] = l;
    wrap = wrap + ((wrap < (MASK)s->lead) & (MASK)LANES);
    for (ptrdiff_t n = 0; n < rows + slots - 1; n++, top += step, a += step * s->a_row) {
        _Pragma("GCC unroll 7") for (int p = 0; p < pixels; p++) sum[0][p] = start;
        const ptrdiff_t first = n - rows + 1, last = n + 1;
#define INPUT_ROW(all)                                                                                     \
    TYPED(strip_input_row)(wrapped, pixels, step, phase, all, first, last, begin, end,                     \
                           a + phase * s->a_row, s->a_pixel, wrap, weight, sum)
        _Pragma("GCC unroll 2") for (int phase = 0; phase < step; phase++)
        {
            if (top + phase < 0 || top + phase >= s->height)
                continue;
            if (first <= 0 && last >= slots)
                INPUT_ROW(1);
            else
                INPUT_ROW(0);
        }
#undef INPUT_ROW
        if (last >= slots) {
            _Pragma("GCC unroll 7") for (int p = 0; p < pixels; p++)
            {
                if (wrapped)
                    TYPED(wrapped_store)(s, y + p * s->y_pixel, sum[slots - 1][p]);
                else if (as_it_is)
                    TYPED(store)(y + p * s->y_pixel, sum[slots - 1][p]);
                else
                    TYPED(narrow_store)(s, y + p * s->y_pixel, sum[slots - 1][p], kept);
            }
            y += s->y_row;
        }
        _Pragma("GCC unroll 2") for (int k = slots - 1; k > 0; k--)
            _Pragma("GCC unroll 7") for (int p = 0; p < pixels; p++) sum[k][p] = sum[k - 1][p];
    }
}

#define STRIP_CASE(wrapped, pixels, step)                                                          \
    case pixels:                                                                                   \
        TYPED(strip)(wrapped, pixels, step, s, rows, top, begin, end, a, w, bias, kept, y);        \
        break;
#define STRIP_RUN(name, wrapped, step)                                                             \
    static void TYPED(name##_s##step)(                                                             \
        const struct narrow *s, ptrdiff_t pixels, ptrdiff_t rows, ptrdiff_t top, ptrdiff_t begin,  \
        ptrdiff_t end, const REAL *a, const REAL *w, const REAL *bias, ptrdiff_t kept, REAL *y)    \
    {                                                                                              \
        switch (pixels) {                                                                          \
            STRIP_CASE(wrapped, 1, step)                                                           \
            STRIP_CASE(wrapped, 2, step)                                                           \
            STRIP_CASE(wrapped, 3, step)                                                           \
            STRIP_CASE(wrapped, 4, step)                                                           \
            STRIP_CASE(wrapped, 5, step)                                                           \
            STRIP_CASE(wrapped, 6, step)                                                           \
            STRIP_CASE(wrapped, 7, step)                                                           \
        }                                                                                          \
    }
STRIP_RUN(strip, 0, 1)
STRIP_RUN(strip, 0, 2)
STRIP_RUN(wrapped_strip, 1, 1)
STRIP_RUN(wrapped_strip, 1, 2)
#undef STRIP_RUN
#undef STRIP_CASE

typedef void TYPED(strip_run)(
    const struct narrow *, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, const REAL *, const REAL *,
    const REAL *, ptrdiff_t, REAL *);

/* What computes vector v. */
static TYPED(strip_run) * TYPED(strip_for)(const struct narrow *s, ptrdiff_t v)
{
    static TYPED(strip_run) *const runs[2][2] = {{TYPED(strip_s1), TYPED(wrapped_strip_s1)},
                                                 {TYPED(strip_s2), TYPED(wrapped_strip_s2)}};
    return runs[s->stride_w - 1][s->wrapped && v == 0];
}
