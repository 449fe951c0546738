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

ALWAYS_INLINE REAL TYPED(larger_of)(REAL value, REAL best) { return LARGER(value, best) ? value : best; }

ALWAYS_INLINE void TYPED(keep_larger)(REAL value, MASK at, REAL *best, MASK *best_at)
{
    const MASK larger = LARGER(value, *best);
    *best = larger ? value : *best;
    *best_at = larger ? at : *best_at;
}

/* A loop over a single comparison hides from GCC that the one around it can be vectorised, and becomes a
 * branch at each pixel, which costs ten times as much: so one is no loop. */
ALWAYS_INLINE void TYPED(max_of)(
    const int taps, const int first, const REAL *const *tap, ptrdiff_t shift, REAL *out, ptrdiff_t channels)
{
    const REAL *p[POOL_TAPS];
    _Pragma("GCC unroll 9") for (int t = 0; t < taps; t++) p[t] = tap[t] + shift;
    _Pragma("GCC ivdep") for (ptrdiff_t c = 0; c < channels; c++)
    {
        REAL best = first ? p[0][c] : out[c];
        if (taps - first == 1)
            best = TYPED(larger_of)(p[taps - 1][c], best);
        else
            _Pragma("GCC unroll 9") for (int t = first; t < taps; t++) best = TYPED(larger_of)(p[t][c], best);
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
        if (taps - first == 1)
            TYPED(keep_larger)(p[taps - 1][c], at[taps - 1], &best, &best_at);
        else
            _Pragma("GCC unroll 9") for (int t = first; t < taps; t++)
                TYPED(keep_larger)(p[t][c], at[t], &best, &best_at);
        out[c] = best;
        index[c] = best_at;
    }
}

ALWAYS_INLINE vec TYPED(sum_vector)(
    const int taps, const int first, const REAL *const *p, const REAL *w, const REAL *out, ptrdiff_t c)
{
    vec sum = first ? w[0] * TYPED(load)(p[0] + c) : TYPED(load)(out + c);
    _Pragma("GCC unroll 9") for (int t = first; t < taps; t++) sum += w[t] * TYPED(load)(p[t] + c);
    return sum;
}

/* The last vector overlaps the one before, unless sums are continued: the same values are stored twice. */
ALWAYS_INLINE void TYPED(sum_of)(
    const int taps, const int first, const REAL *const *tap, ptrdiff_t shift, const REAL *weight, REAL divisor,
    REAL *out, ptrdiff_t channels)
{
    const REAL *p[POOL_TAPS];
    REAL w[POOL_TAPS];
    ptrdiff_t c = 0;
    _Pragma("GCC unroll 9") for (int t = 0; t < taps; t++) p[t] = tap[t] + shift, w[t] = weight[t];
    for (; c + LANES <= channels; c += LANES) {
        const vec sum = TYPED(sum_vector)(taps, first, p, w, out, c);
        TYPED(store)(out + c, divisor == 1 ? sum : sum / divisor);
    }
    if (c < channels && first && channels >= LANES) {
        const vec sum = TYPED(sum_vector)(taps, 1, p, w, out, channels - LANES);
        TYPED(store)(out + channels - LANES, divisor == 1 ? sum : sum / divisor);
        return;
    }
    for (; c < channels; c++) {
        REAL sum = first ? w[0] * p[0][c] : out[c];
        _Pragma("GCC unroll 9") for (int t = first; t < taps; t++) sum += w[t] * p[t][c];
        out[c] = sum / divisor;
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
#define MAX(n, start) TYPED(max_of)(n, start, tap, 0, out, channels)
#define MAX_INDEX(n, start) TYPED(max_index_of)(n, start, tap, pixel, out, index, channels)
    if (index)
        FOR_TAPS(taps, MAX_INDEX)
    else
        FOR_TAPS(taps, MAX)
#undef MAX
#undef MAX_INDEX
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
        TYPED(max_of)(size * size, 1, tap, 0, out, channels);
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

/* A few lines, `pitch` apart, whose rows are `step` apart. */
static void TYPED(join_rows)(
    int largest, ptrdiff_t rows, const REAL *const *row, const REAL *weight, int first, ptrdiff_t lines,
    ptrdiff_t step, REAL *line, ptrdiff_t pitch, ptrdiff_t count)
{
    for (ptrdiff_t r = 0; r < rows; r += POOL_TAPS, first = 0) {
#define MAX(n, start)                                                                                        \
    for (ptrdiff_t l = 0; l < lines; l++)                                                                    \
    TYPED(max_of)(n, start, row + r, l * step, line + l * pitch, count)
#define SUM(n, start)                                                                                        \
    for (ptrdiff_t l = 0; l < lines; l++)                                                                    \
    TYPED(sum_of)(n, start, row + r, l * step, weight + r, 1, line + l * pitch, count)
        const ptrdiff_t left = rows - r;
        if (largest)
            FOR_TAPS(left < POOL_TAPS ? left : POOL_TAPS, MAX)
        else
            FOR_TAPS(left < POOL_TAPS ? left : POOL_TAPS, SUM)
#undef MAX
#undef SUM
    }
}

ALWAYS_INLINE void TYPED(sum_pixel)(
    const int taps, const int first, const REAL *line, const int64_t *source, const double *weight,
    REAL divisor, REAL *out, ptrdiff_t channels)
{
    const REAL *tap[POOL_TAPS];
    REAL w[POOL_TAPS];
    _Pragma("GCC unroll 9") for (int t = 0; t < taps; t++)
        tap[t] = line + source[t] * channels, w[t] = (REAL)weight[t];
    TYPED(sum_of)(taps, first, tap, 0, w, divisor, out, channels);
}

/* Outputs from k on, while they have so many taps; the first that has not. */
ALWAYS_INLINE ptrdiff_t TYPED(sum_run)(
    const int taps, const REAL *line, const struct taps *w, ptrdiff_t k, ptrdiff_t end, double divisor, REAL *out,
    ptrdiff_t channels)
{
    ptrdiff_t at = w->start[k];
    for (; k < end && w->start[k + 1] - at == taps; k++, at += taps)
        TYPED(sum_pixel)(taps, 1, line, w->source + at, w->weight + at, (REAL)(divisor * w->divisor[k]),
                         out + k * channels, channels);
    return k;
}

/* Outputs `begin` to `end` of a row; pixel 0 of the line is the axis's position 0. */
static void TYPED(sum_pixels)(
    const REAL *line, const struct taps *w, ptrdiff_t begin, ptrdiff_t end, double divisor, REAL *out,
    ptrdiff_t channels)
{
    for (ptrdiff_t k = begin; k < end;) {
        ptrdiff_t at = w->start[k], left = w->start[k + 1] - at;
        REAL *to = out + k * channels;
        switch (left) {
        case 0: memset(out + k++ * channels, 0, channels * sizeof(REAL)); break;
        case 1: k = TYPED(sum_run)(1, line, w, k, end, divisor, out, channels); break;
        case 2: k = TYPED(sum_run)(2, line, w, k, end, divisor, out, channels); break;
        case 3: k = TYPED(sum_run)(3, line, w, k, end, divisor, out, channels); break;
        default:
            for (int first = 1; left > 0; left -= POOL_TAPS, at += POOL_TAPS, first = 0) {
                const REAL by = left > POOL_TAPS ? 1 : (REAL)(divisor * w->divisor[k]);
#define SUM(n, start) TYPED(sum_pixel)(n, start, line, w->source + at, w->weight + at, by, to, channels)
                FOR_TAPS(left < POOL_TAPS ? left : POOL_TAPS, SUM)
#undef SUM
            }
            k++;
        }
    }
}

#undef FOR_TAPS
#undef CASE
#undef IS_SQUARE
