/* One row of output pixels from a few rows of input pixels, vectors over channels; microkernel.h includes this
 * once for each element type.
 *
 *   max_row      out[k][c] = max over rows r and taps s of k of row[r][s][c], and where that was
 *   join_rows    line[i]   = Σ_r weight[r] · row[r][i], or the largest of row[r][i]
 *   sum_pixels   out[k][c] = Σ_s weight[s] · line[s][c] / (divisor · divisor[k])
 *
 * Rows may come in parts: with `first` false the parts before are in the result. The number of taps is a
 * constant in each copy of the loop over channels, which GCC vectorises itself, so that the running value of
 * a vector of channels stays in a register. */

/* A NaN is larger than everything, a later NaN than an earlier one: torch's rule, for the index too. */
#define LARGER(value, than) (((value) > (than)) | ((value) != (value)))

/* Windows and interpolations that have a copy of their own of the loop over pixels' taps. */
#define IS_SQUARE(size) (rows == (size) && count == (size))

ALWAYS_INLINE void TYPED(max_of)(
    const int taps, const int first, const REAL *const *tap, REAL *out, ptrdiff_t channels)
{
    const REAL *p[POOL_TAPS];
    memcpy(p, tap, taps * sizeof *p);
    _Pragma("GCC ivdep") for (ptrdiff_t c = 0; c < channels; c++)
    {
        REAL best = first ? p[0][c] : out[c];
        _Pragma("GCC unroll 9") for (int t = first; t < taps; t++)
            best = LARGER(p[t][c], best) ? p[t][c] : best;
        out[c] = best;
    }
}

ALWAYS_INLINE void TYPED(max_index_of)(
    const int taps, const int first, const REAL *const *tap, const MASK *pixel, REAL *out, int64_t *index,
    ptrdiff_t channels)
{
    const REAL *p[POOL_TAPS];
    MASK at[POOL_TAPS];
    memcpy(p, tap, taps * sizeof *p);
    memcpy(at, pixel, taps * sizeof *at);
    _Pragma("GCC ivdep") for (ptrdiff_t c = 0; c < channels; c++)
    {
        REAL best = first ? p[0][c] : out[c];
        MASK best_at = first ? at[0] : (MASK)index[c];
        _Pragma("GCC unroll 9") for (int t = first; t < taps; t++)
        {
            const MASK larger = LARGER(p[t][c], best);
            best = larger ? p[t][c] : best;
            best_at = larger ? at[t] : best_at;
        }
        out[c] = best;
        index[c] = best_at;
    }
}

ALWAYS_INLINE void TYPED(sum_of)(
    const int taps, const int first, const REAL *const *tap, const REAL *weight, REAL *out, ptrdiff_t channels)
{
    const REAL *p[POOL_TAPS];
    REAL w[POOL_TAPS];
    memcpy(p, tap, taps * sizeof *p);
    memcpy(w, weight, taps * sizeof *w);
    _Pragma("GCC ivdep") for (ptrdiff_t c = 0; c < channels; c++)
    {
        REAL sum = first ? w[0] * p[0][c] : out[c];
        _Pragma("GCC unroll 9") for (int t = first; t < taps; t++) sum += w[t] * p[t][c];
        out[c] = sum;
    }
}

/* A copy of the loop over channels for every number of taps. */
#define CASE(n, call)                                                                                        \
    case n:                                                                                                  \
        if (first)                                                                                           \
            call(n, 1);                                                                                      \
        else                                                                                                 \
            call(n, 0);                                                                                      \
        break;
#define FOR_TAPS(taps, call)                                                                                 \
    switch (taps) {                                                                                          \
        CASE(1, call)                                                                                        \
        CASE(2, call)                                                                                        \
        CASE(3, call)                                                                                        \
        CASE(4, call)                                                                                        \
        CASE(5, call)                                                                                        \
        CASE(6, call)                                                                                        \
        CASE(7, call)                                                                                        \
        CASE(8, call)                                                                                        \
        CASE(9, call)                                                                                        \
    }

static void TYPED(max_taps)(
    int taps, int first, const REAL *const *tap, const MASK *pixel, REAL *out, int64_t *index,
    ptrdiff_t channels)
{
#define MAX(n, start) TYPED(max_of)(n, start, tap, out, channels)
#define MAX_INDEX(n, start) TYPED(max_index_of)(n, start, tap, pixel, out, index, channels)
    if (index)
        FOR_TAPS(taps, MAX_INDEX)
    else
        FOR_TAPS(taps, MAX)
#undef MAX
#undef MAX_INDEX
}

static void TYPED(sum_taps)(
    int taps, int first, const REAL *const *tap, const REAL *weight, REAL *out, ptrdiff_t channels)
{
#define SUM(n, start) TYPED(sum_of)(n, start, tap, weight, out, channels)
    FOR_TAPS(taps, SUM)
#undef SUM
}

ALWAYS_INLINE void TYPED(max_square)(
    const int size, const REAL *const *row, const ptrdiff_t *row_pixel, const int64_t *source, REAL *out,
    int64_t *index, ptrdiff_t channels)
{
    const REAL *tap[POOL_TAPS];
    MASK pixel[POOL_TAPS];
    _Pragma("GCC unroll 3") for (int r = 0; r < size; r++)
        _Pragma("GCC unroll 3") for (int s = 0; s < size; s++)
        {
            tap[r * size + s] = row[r] + source[s] * channels;
            pixel[r * size + s] = (MASK)(row_pixel[r] + source[s]);
        }
    if (index)
        TYPED(max_index_of)(size * size, 1, tap, pixel, out, index, channels);
    else
        TYPED(max_of)(size * size, 1, tap, out, channels);
}

static void TYPED(max_any)(
    int first, int rows, ptrdiff_t count, const REAL *const *row, const ptrdiff_t *row_pixel,
    const int64_t *source, REAL *out, int64_t *index, ptrdiff_t channels)
{
    const REAL *tap[POOL_TAPS];
    MASK pixel[POOL_TAPS];
    int taps = 0;
    for (int r = 0; r < rows; r++)
        for (ptrdiff_t s = 0; s < count; s++) {
            tap[taps] = row[r] + source[s] * channels;
            pixel[taps++] = (MASK)(row_pixel[r] + source[s]);
            if (taps == POOL_TAPS) {
                TYPED(max_taps)(taps, first, tap, pixel, out, index, channels);
                first = taps = 0;
            }
        }
    TYPED(max_taps)(taps, first, tap, pixel, out, index, channels);
}

static void TYPED(max_row)(
    int first, int rows, const REAL *const *row, const ptrdiff_t *row_pixel, const struct taps *w, REAL *out,
    int64_t *index, ptrdiff_t channels)
{
    for (ptrdiff_t k = 0; k < w->out_size; k++, out += channels) {
        const int64_t *source = w->source + w->start[k];
        const ptrdiff_t count = w->start[k + 1] - w->start[k];
        if (first && IS_SQUARE(3))
            TYPED(max_square)(3, row, row_pixel, source, out, index, channels);
        else if (first && IS_SQUARE(2))
            TYPED(max_square)(2, row, row_pixel, source, out, index, channels);
        else
            TYPED(max_any)(first, rows, count, row, row_pixel, source, out, index, channels);
        if (index)
            index += channels;
    }
}

static void TYPED(join_rows)(
    int largest, ptrdiff_t rows, const REAL *const *row, const REAL *weight, int first, REAL *line, ptrdiff_t count)
{
    for (ptrdiff_t r = 0; r < rows; r += POOL_TAPS, first = 0) {
        const int taps = rows - r < POOL_TAPS ? (int)(rows - r) : POOL_TAPS;
        if (largest)
            TYPED(max_taps)(taps, first, row + r, NULL, line, NULL, count);
        else
            TYPED(sum_taps)(taps, first, row + r, weight + r, line, count);
    }
}

ALWAYS_INLINE void TYPED(sum_pixel)(
    const int taps, const int first, const REAL *line, const int64_t *source, const double *weight,
    REAL divisor, REAL *out, ptrdiff_t channels)
{
    const REAL *p[POOL_TAPS];
    REAL w[POOL_TAPS];
    ptrdiff_t c = 0;
    _Pragma("GCC unroll 9") for (int t = 0; t < taps; t++)
    {
        p[t] = line + source[t] * channels;
        w[t] = (REAL)weight[t];
    }
    for (; c + LANES <= channels; c += LANES) {
        vec sum = first ? w[0] * TYPED(load)(p[0] + c) : TYPED(load)(out + c);
        _Pragma("GCC unroll 9") for (int t = first; t < taps; t++) sum += w[t] * TYPED(load)(p[t] + c);
        TYPED(store)(out + c, divisor == 1 ? sum : sum / divisor);
    }
    for (; c < channels; c++) {
        REAL sum = first ? w[0] * p[0][c] : out[c];
        _Pragma("GCC unroll 9") for (int t = first; t < taps; t++) sum += w[t] * p[t][c];
        out[c] = sum / divisor;
    }
}

/* Outputs `begin` to `end` of a row; pixel 0 of the line is the axis's position 0. */
static void TYPED(sum_pixels)(
    const REAL *line, const struct taps *w, ptrdiff_t begin, ptrdiff_t end, double divisor, REAL *out,
    ptrdiff_t channels)
{
    for (ptrdiff_t k = begin; k < end; k++) {
        const REAL by = (REAL)(divisor * w->divisor[k]);
        REAL *to = out + k * channels;
        ptrdiff_t at = w->start[k], left = w->start[k + 1] - at;
        int first = 1;
        if (left == 0)
            memset(to, 0, channels * sizeof(REAL));
        for (; left > 0; left -= POOL_TAPS, at += POOL_TAPS, first = 0) {
#define SUM(n, start) \
    TYPED(sum_pixel)(n, start, line, w->source + at, w->weight + at, left > n ? 1 : by, to, channels)
            FOR_TAPS(left < POOL_TAPS ? left : POOL_TAPS, SUM)
#undef SUM
        }
    }
}

#undef FOR_TAPS
#undef CASE
#undef IS_SQUARE
#undef LARGER
