/* Strips of 3×3 depthwise convolution on channels-last pixels: a vector of channels goes down all rows of a few columns
 * before the next vector, or a few of them abreast. depthwise.h includes this where there are registers enough. */

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
            HOLD(v);
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

/* The weights of a vector of channels, which stay in registers. */
ALWAYS_INLINE void TYPED(strip_weights)(
    const int wrapped, const struct narrow *s, const REAL *w, vec (*weight)[3])
{
    _Pragma("GCC unroll 3") for (int i = 0; i < 3; i++)
        _Pragma("GCC unroll 3") for (int j = 0; j < 3; j++)
        {
            const REAL *row = w + (i * 3 + j) * s->w_stride;
            weight[i][j] = wrapped ? TYPED(wrapped_weights)(s, row) : TYPED(load)(row);
            HOLD(weight[i][j]);
        }
}

/* The input of row n of a strip of `rows`, from row `top` on. */
ALWAYS_INLINE void TYPED(strip_row)(
    const int wrapped, const int pixels, const int step, const struct narrow *s, ptrdiff_t n, ptrdiff_t rows,
    ptrdiff_t top, ptrdiff_t begin, ptrdiff_t end, const REAL *a, vec_mask wrap, const vec (*weight)[3], vec start,
    vec (*sum)[NARROW_PIXELS])
{
    const int slots = (2 + step) / step;
    const ptrdiff_t first = n - rows + 1, last = n + 1;
    _Pragma("GCC unroll 7") for (int p = 0; p < pixels; p++) sum[0][p] = start;
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
}

/* A row of outputs from its complete sums. */
ALWAYS_INLINE void TYPED(strip_out)(
    const int wrapped, const int pixels, const struct narrow *s, const vec *sum, ptrdiff_t kept, REAL *y)
{
    const int as_it_is = !s->accumulate && !s->rectified;
    _Pragma("GCC unroll 7") for (int p = 0; p < pixels; p++)
    {
        if (wrapped)
            TYPED(wrapped_store)(s, y + p * s->y_pixel, sum[p]);
        else if (as_it_is)
            TYPED(store)(y + p * s->y_pixel, sum[p]);
        else
            TYPED(narrow_store)(s, y + p * s->y_pixel, sum[p], kept);
    }
}

/* All rows of a tile of a 3×3 kernel: every input vector is loaded once, the weights and the sums of the (at most
 * three) rows that are not yet complete stay in registers. `a` is where the first row's window begins. */
ALWAYS_INLINE void TYPED(strip)(
    const int wrapped, const int pixels, const int step, const struct narrow *s, ptrdiff_t rows, ptrdiff_t top,
    ptrdiff_t begin, ptrdiff_t end, const REAL *a, const REAL *w, const REAL *bias, ptrdiff_t kept, REAL *y)
{
    const int slots = (2 + step) / step;
    vec sum[3][NARROW_PIXELS] = {{{0}}}, weight[3][3];
    TYPED(strip_weights)(wrapped, s, w, weight);
    if (wrapped)
        a -= s->lead;
    const vec start = wrapped ? TYPED(wrapped_weights)(s, bias) : TYPED(load)(bias);
    vec_mask wrap;
    for (int l = 0; l < LANES; l++)
        wrap[l] = l;
    wrap = wrap + ((wrap < (MASK)s->lead) & (MASK)LANES);
    for (ptrdiff_t n = 0; n < rows + slots - 1; n++, top += step, a += step * s->a_row) {
        TYPED(strip_row)(wrapped, pixels, step, s, n, rows, top, begin, end, a, wrap, weight, start, sum);
        if (n + 1 >= slots) {
            TYPED(strip_out)(wrapped, pixels, s, sum[slots - 1], kept, y);
            y += s->y_row;
        }
        _Pragma("GCC unroll 2") for (int k = slots - 1; k > 0; k--)
            _Pragma("GCC unroll 7") for (int p = 0; p < pixels; p++) sum[k][p] = sum[k - 1][p];
    }
}

/* The same for vectors v ≤ u < end_v abreast: row by row, so that their lines, which lie side by side, are read and
 * written at about the same time. The sums of rows that are not yet complete wait in memory. */
ALWAYS_INLINE void TYPED(strips_abreast)(
    const int pixels, const int step, const struct narrow *shared, ptrdiff_t v, ptrdiff_t end_v, ptrdiff_t rows,
    ptrdiff_t top, ptrdiff_t begin, ptrdiff_t end, const REAL *a, const REAL *w, const REAL *bias, REAL *y)
{
    const int slots = (2 + step) / step;
    const struct narrow own = *shared, *s = &own; /* GCC would load it again after each store */
    const ptrdiff_t lead = s->lead, most = s->out_channels - LANES;
    vec waiting[NARROW_ABREAST][2][NARROW_PIXELS];
    memset(waiting, 0, (end_v - v) * sizeof waiting[0]);
    for (ptrdiff_t n = 0; n < rows + slots - 1; n++, top += step, a += step * s->a_row) {
        for (ptrdiff_t u = v; u < end_v; u++) {
            /* narrow_start, which takes longer, and narrow_kept */
            const ptrdiff_t next = u * LANES - lead, c = next < most ? next : most, kept = next - c;
            vec(*old)[NARROW_PIXELS] = waiting[u - v], sum[3][NARROW_PIXELS], weight[3][3];
            TYPED(strip_weights)(0, s, w + c, weight);
            _Pragma("GCC unroll 2") for (int k = 1; k < slots; k++)
                _Pragma("GCC unroll 7") for (int p = 0; p < pixels; p++) sum[k][p] = old[k - 1][p];
            TYPED(strip_row)(0, pixels, step, s, n, rows, top, begin, end, a + c, (vec_mask){0}, weight,
                             TYPED(load)(bias + c), sum);
            _Pragma("GCC unroll 2") for (int k = 1; k < slots; k++)
                _Pragma("GCC unroll 7") for (int p = 0; p < pixels; p++) old[k - 1][p] = sum[k - 1][p];
            if (n + 1 >= slots)
                TYPED(strip_out)(0, pixels, s, sum[slots - 1], kept, y + c);
        }
        if (n + 1 >= slots)
            y += s->y_row;
    }
}

/* One row of a strip's outputs of a vector at stride 2, from the whole of its window, whose columns and vectors are
 * `plain` where none is to be left out. A sum below `floor` becomes 0. */
ALWAYS_INLINE void TYPED(window_row)(
    const int plain, const int pixels, const struct narrow *s, ptrdiff_t top, ptrdiff_t begin, ptrdiff_t end,
    const REAL *a, const REAL *w, const REAL *bias, vec floor, REAL *y)
{
    const int taps = 3, step = 2, width = (pixels - 1) * step + taps;
    const ptrdiff_t a_row = s->a_row, a_pixel = s->a_pixel;
    vec sum[NARROW_PIXELS], weight[3];
    _Pragma("GCC unroll 7") for (int p = 0; p < pixels; p++) sum[p] = TYPED(load)(bias);
    _Pragma("GCC unroll 3") for (int i = 0; i < taps; i++)
    {
        if (top + i < 0 || top + i >= s->height) {
            w += taps * s->w_stride;
            continue;
        }
        _Pragma("GCC unroll 3") for (int j = 0; j < taps; j++)
        {
            weight[j] = TYPED(load)(w);
            w += s->w_stride;
            __asm__("" : "+r"(w));
        }
        const REAL *at = a + i * a_row;
        _Pragma("GCC unroll 32") for (int q = 0; q < width; q++)
        {
            if (plain || COLUMN_IS_INSIDE(q)) {
                vec v = TYPED(load)(at);
                HOLD(v);
                /* A third of the next window's two new rows with each row, so that no more are on their way at once
                 * than need be. Few read them again: they are not to displace what lies in L2. */
                if (q < (2 - i) * width / 3)
                    __builtin_prefetch(at + 3 * a_row, 0, 0);
                else if (i > 0 && q >= (3 - i) * width / 3)
                    __builtin_prefetch(at + 2 * a_row, 0, 0);
                _Pragma("GCC unroll 7") for (int p = 0; p < pixels; p++)
                {
                    const int j = q - p * step;
                    if (j >= 0 && j < taps)
                        sum[p] += v * weight[j];
                }
            }
            at += a_pixel;
            __asm__("" : "+r"(at));
        }
    }
    _Pragma("GCC unroll 7") for (int p = 0; p < pixels; p++)
    {
        TYPED(store)(y, (vec)((vec_mask)sum[p] & ~(sum[p] < floor)));
        y += s->y_pixel;
        __asm__("" : "+r"(y));
    }
}

/* All rows of a strip, all vectors of a row before the next one: their lines lie side by side, and are read and
 * written as one stream. */
ALWAYS_INLINE void TYPED(window_strip)(
    const int plain, const int pixels, const struct narrow *shared, ptrdiff_t rows, ptrdiff_t top, ptrdiff_t begin,
    ptrdiff_t end, const REAL *a, const REAL *w, const REAL *bias, REAL *y)
{
    const struct narrow own = *shared, *s = &own; /* GCC would load it again after each store */
    const vec floor = TYPED(broadcast)(s->rectified ? 0 : -INFINITY);
    const ptrdiff_t last = s->out_channels - LANES;
    for (ptrdiff_t n = 0; n < rows; n++, top += 2, a += 2 * s->a_row, y += s->y_row)
        for (ptrdiff_t next = 0; plain ? next <= last : next < s->out_channels; next += LANES) {
            const ptrdiff_t c = plain || next < last ? next : last;
            TYPED(window_row)(plain, pixels, s, top, begin, end, a + c, w + c, bias + c, floor, y + c);
        }
}

#define STRIP_CASE(wrapped, pixels, step)                                                          \
    case pixels:                                                                                   \
        TYPED(strip)(wrapped, pixels, step, s, rows, top, begin, end, a, w, bias, kept, y);        \
        break;
#define ABREAST_CASE(name, pixels, step)                                                           \
    case pixels:                                                                                   \
        TYPED(strips_abreast)(pixels, step, s, v, end_v, rows, top, begin, end, a, w, bias, y);    \
        break;
#define WINDOW_CASE(plain, pixels, step)                                                           \
    case pixels:                                                                                   \
        TYPED(window_strip)(plain, pixels, s, rows, top, begin, end, a, w, bias, y);               \
        break;
#define STRIP_CASES(kind, arg, step)                                                               \
    kind(arg, 1, step) kind(arg, 2, step) kind(arg, 3, step) kind(arg, 4, step) kind(arg, 5, step) \
    kind(arg, 6, step) kind(arg, 7, step)
#define STRIP_RUN(name, wrapped, step)                                                             \
    static void TYPED(name##_s##step)(                                                             \
        const struct narrow *s, ptrdiff_t pixels, ptrdiff_t rows, ptrdiff_t top, ptrdiff_t begin,  \
        ptrdiff_t end, const REAL *a, const REAL *w, const REAL *bias, ptrdiff_t kept, REAL *y)    \
    {                                                                                              \
        switch (pixels) {                                                                          \
            STRIP_CASES(STRIP_CASE, wrapped, step)                                                 \
        }                                                                                          \
    }
#define ABREAST_RUN(step)                                                                          \
    static void TYPED(strips_abreast_s##step)(                                                     \
        const struct narrow *s, ptrdiff_t pixels, ptrdiff_t v, ptrdiff_t end_v, ptrdiff_t rows,    \
        ptrdiff_t top, ptrdiff_t begin, ptrdiff_t end, const REAL *a, const REAL *w,               \
        const REAL *bias, REAL *y)                                                                 \
    {                                                                                              \
        switch (pixels) {                                                                          \
            STRIP_CASES(ABREAST_CASE, , step)                                                      \
        }                                                                                          \
    }
STRIP_RUN(strip, 0, 1)
STRIP_RUN(strip, 0, 2)
STRIP_RUN(wrapped_strip, 1, 1)
STRIP_RUN(wrapped_strip, 1, 2)
ABREAST_RUN(1)
ABREAST_RUN(2)
#define WINDOW_RUN(name, plain)                                                                    \
    static void TYPED(name)(                                                                       \
        const struct narrow *s, ptrdiff_t pixels, ptrdiff_t rows, ptrdiff_t top, ptrdiff_t begin,  \
        ptrdiff_t end, const REAL *a, const REAL *w, const REAL *bias, REAL *y)                    \
    {                                                                                              \
        switch (pixels) {                                                                          \
            STRIP_CASES(WINDOW_CASE, plain, 2)                                                     \
        }                                                                                          \
    }
WINDOW_RUN(window_strip_any, 0)
WINDOW_RUN(window_strip_plain, 1)
#undef WINDOW_RUN
#undef STRIP_RUN
#undef STRIP_CASES
#undef WINDOW_CASE
#undef ABREAST_CASE
#undef STRIP_CASE

typedef void TYPED(strip_run)(
    const struct narrow *, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, const REAL *, const REAL *,
    const REAL *, ptrdiff_t, REAL *);

/* All vectors of a tile of pixels down `rows` rows; `a` is channel 0 of the first row's window. */
static void TYPED(strips)(
    const struct narrow *s, ptrdiff_t pixels, ptrdiff_t rows, ptrdiff_t top, ptrdiff_t begin, ptrdiff_t end,
    const REAL *a, const REAL *w, const REAL *bias, REAL *y)
{
    static TYPED(strip_run) *const runs[2][2] = {{TYPED(strip_s1), TYPED(wrapped_strip_s1)},
                                                 {TYPED(strip_s2), TYPED(wrapped_strip_s2)}};
    if (s->windows) {
        const int plain = begin <= 0 && end > 2 * pixels && s->out_channels % LANES == 0;
        (plain ? TYPED(window_strip_plain) : TYPED(window_strip_any))(s, pixels, rows, top, begin, end, a, w, bias, y);
        return;
    }
    ptrdiff_t v = 0;
    for (; v < s->vectors && (s->abreast == 1 || (s->wrapped && v == 0)); v++) {
        const ptrdiff_t c = TYPED(narrow_start)(s, v), kept = TYPED(narrow_kept)(s, v);
        runs[s->stride_w - 1][s->wrapped && v == 0](s, pixels, rows, top, begin, end, a + c, w + c, bias + c, kept,
                                                    y + c);
    }
    for (; v < s->vectors; v += s->abreast) {
        const ptrdiff_t end_v = v + s->abreast < s->vectors ? v + s->abreast : s->vectors;
        if (s->stride_w == 1)
            TYPED(strips_abreast_s1)(s, pixels, v, end_v, rows, top, begin, end, a, w, bias, y);
        else
            TYPED(strips_abreast_s2)(s, pixels, v, end_v, rows, top, begin, end, a, w, bias, y);
    }
}
