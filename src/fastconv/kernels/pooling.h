/* One row of output pixels from a few rows of input pixels, vectors over channels; microkernel.h includes this
 * once for each element type.
 *
 *   max_row        out[k][c] = max over rows r and taps s of k of row[r][s][c], and where that was
 *   resample_row   out[k][c] = Σ row_weight[r] · weight[s] · row[r][s][c]
 *   divide_row     out[k][c] = out[k][c] / (divisor · divisor[k])
 *
 * Rows may come in parts: with `first` false the parts before are in `out`. The number of taps is a
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

ALWAYS_INLINE void TYPED(sum_square)(
    const int size, const REAL *const *row, const REAL *row_weight, const int64_t *source,
    const double *weight, REAL *out, ptrdiff_t channels)
{
    const REAL *tap[POOL_TAPS];
    REAL product[POOL_TAPS];
    _Pragma("GCC unroll 3") for (int r = 0; r < size; r++)
        _Pragma("GCC unroll 3") for (int s = 0; s < size; s++)
        {
            tap[r * size + s] = row[r] + source[s] * channels;
            product[r * size + s] = row_weight[r] * (REAL)weight[s];
        }
    TYPED(sum_of)(size * size, 1, tap, product, out, channels);
}

static void TYPED(sum_any)(
    int first, int rows, ptrdiff_t count, const REAL *const *row, const REAL *row_weight,
    const int64_t *source, const double *weight, REAL *out, ptrdiff_t channels)
{
    const REAL *tap[POOL_TAPS];
    REAL product[POOL_TAPS];
    int taps = 0;
    if (first && rows * count == 0)
        memset(out, 0, channels * sizeof(REAL));
    for (int r = 0; r < rows; r++)
        for (ptrdiff_t s = 0; s < count; s++) {
            tap[taps] = row[r] + source[s] * channels;
            product[taps++] = row_weight[r] * (REAL)weight[s];
            if (taps == POOL_TAPS) {
                TYPED(sum_taps)(taps, first, tap, product, out, channels);
                first = taps = 0;
            }
        }
    TYPED(sum_taps)(taps, first, tap, product, out, channels);
}

static void TYPED(resample_row)(
    int first, int rows, const REAL *const *row, const REAL *row_weight, const struct taps *w, REAL *out,
    ptrdiff_t channels)
{
    for (ptrdiff_t k = 0; k < w->out_size; k++, out += channels) {
        const int64_t *source = w->source + w->start[k];
        const double *weight = w->weight + w->start[k];
        const ptrdiff_t count = w->start[k + 1] - w->start[k];
        if (first && IS_SQUARE(1))
            TYPED(sum_square)(1, row, row_weight, source, weight, out, channels);
        else if (first && IS_SQUARE(2))
            TYPED(sum_square)(2, row, row_weight, source, weight, out, channels);
        else if (first && IS_SQUARE(3))
            TYPED(sum_square)(3, row, row_weight, source, weight, out, channels);
        else
            TYPED(sum_any)(first, rows, count, row, row_weight, source, weight, out, channels);
    }
}

static void TYPED(divide_row)(double divisor, const struct taps *w, int each, REAL *out, ptrdiff_t channels)
{
    for (ptrdiff_t k = 0; k < w->out_size; k++, out += channels) {
        const REAL by = (REAL)(each ? divisor * w->divisor[k] : divisor);
        if (by != 1)
            _Pragma("GCC ivdep") for (ptrdiff_t c = 0; c < channels; c++) out[c] /= by;
    }
}

#undef FOR_TAPS
#undef CASE
#undef IS_SQUARE
#undef LARGER
