/* A row of output pixels of a plane, whose pixels are contiguous, from a few of its rows; microkernel.h
 * includes this once for each element type. As max_row and sum_pixels of pooling.h, in the same order of
 * operations, but with vectors along the row:
 *
 *   plane_lines   out[k] = Σ_s weight[k][s] · line[source[k][s]] / (divisor · divisor[k]), or the largest of them
 *   plane_max     best[k] = max over s of row[source[k][s]], and where that was; plane_max_join, of two rows
 *
 * Tap s of LANES neighbouring outputs reads at most 2 · LANES neighbouring pixels: two loads, one where LANES
 * of them are enough, and a shuffle, whatever the pattern (every second pixel, each twice, ...). An output of
 * fewer taps than `most` repeats its last one, which changes no maximum; in a sum it then counts nothing: it
 * reads 0, and its weight is −0, because adding −0 changes no sum, not even one of −0. Tap 0 has weight 0, for
 * outputs that read nothing are 0. The last vector of outputs may overlap the one before. */

/* The first output of vector b. */
ALWAYS_INLINE ptrdiff_t TYPED(plane_first)(ptrdiff_t b, ptrdiff_t columns)
{
    return columns < LANES ? 0 : b * LANES < columns - LANES ? b * LANES : columns - LANES;
}

/* Fills `t` from `w`; false if a tap reads from more than `t->reach` vectors of pixels. */
static int TYPED(plane_taps)(const struct taps *w, const struct plane_taps *t)
{
    MASK *lane = t->lane, *valid = t->valid;
    REAL *weight = t->weight, *divisor = t->divisor;
    const ptrdiff_t window = t->reach * LANES, room = w->size > window ? w->size - window : 0;
    for (ptrdiff_t b = 0; b < t->blocks; b++) {
        const ptrdiff_t begin = TYPED(plane_first)(b, w->out_size);
        for (int i = 0; i < LANES; i++)
            *divisor++ = begin + i < w->out_size ? (REAL)w->divisor[begin + i] : 1;
        for (ptrdiff_t s = 0; s < t->most; s++, lane += LANES, valid += LANES, weight += LANES) {
            ptrdiff_t low = room;
            for (int i = 0; i < LANES; i++) {
                const ptrdiff_t k = begin + i < w->out_size ? begin + i : w->out_size - 1;
                const ptrdiff_t start = w->start[k], count = w->start[k + 1] - start;
                const ptrdiff_t at = start + (s < count ? s : count - 1);
                lane[i] = count ? (MASK)w->source[at] : -1;
                valid[i] = s < count ? -1 : 0;
                weight[i] = s < count ? (REAL)w->weight[at] : s ? -(REAL)0 : 0;
                if (count && lane[i] < low)
                    low = lane[i];
            }
            t->base[b * t->most + s] = low;
            for (int i = 0; i < LANES; i++) {
                lane[i] = lane[i] < 0 ? 0 : lane[i] - (MASK)low;
                if (lane[i] >= window)
                    return 0;
            }
        }
    }
    return 1;
}

ALWAYS_INLINE vec TYPED(plane_window)(const int reach, const REAL *row, vec_mask lane)
{
    if (reach == 1)
        return __builtin_shuffle(TYPED(load)(row), lane);
    return __builtin_shuffle(TYPED(load)(row), TYPED(load)(row + LANES), lane);
}

ALWAYS_INLINE vec_mask TYPED(larger)(vec value, vec than) { return LARGER(value, than); }

ALWAYS_INLINE vec TYPED(choose)(vec_mask which, vec one, vec other)
{
    return (vec)((which & (vec_mask)one) | (~which & (vec_mask)other));
}

ALWAYS_INLINE vec TYPED(plane_load)(const REAL *from, ptrdiff_t count)
{
    REAL whole[LANES] = {0};
    if (count >= LANES)
        return TYPED(load)(from);
    memcpy(whole, from, count * sizeof(REAL));
    return TYPED(load)(whole);
}

ALWAYS_INLINE void TYPED(plane_keep)(REAL *to, vec value, ptrdiff_t count)
{
    REAL whole[LANES];
    if (count >= LANES) {
        TYPED(store)(to, value);
        return;
    }
    TYPED(store)(whole, value);
    memcpy(to, whole, count * sizeof(REAL));
}

ALWAYS_INLINE void TYPED(plane_lines_sized)(
    const int largest, const int most, const int reach, const int lines, const REAL *line, ptrdiff_t pitch,
    const struct plane_taps *t, ptrdiff_t columns, REAL divisor, REAL *out, ptrdiff_t out_pitch)
{
    const vec_mask *lane = t->lane, *valid = t->valid;
    const vec *weight = t->weight, *divisors = t->divisor;
    const ptrdiff_t *base = t->base;
    for (ptrdiff_t b = 0; b < t->blocks; b++) {
        const ptrdiff_t k = TYPED(plane_first)(b, columns);
        vec value[PLANE_LINES];
        _Pragma("GCC unroll 4") for (int r = 0; r < lines; r++) value[r] =
            largest ? TYPED(plane_window)(reach, line + r * pitch + base[0], lane[0]) : -(vec){0};
        _Pragma("GCC unroll 4") for (int s = largest; s < most; s++)
            _Pragma("GCC unroll 4") for (int r = 0; r < lines; r++)
            {
                const vec pixel = TYPED(plane_window)(reach, line + r * pitch + base[s], lane[s]);
                if (largest)
                    value[r] = TYPED(choose)(TYPED(larger)(pixel, value[r]), pixel, value[r]);
                else
                    value[r] += weight[s] * (vec)((vec_mask)pixel & valid[s]);
            }
        _Pragma("GCC unroll 4") for (int r = 0; r < lines; r++)
        {
            if (divisor)
                value[r] /= divisor * divisors[b];
            TYPED(plane_keep)(out + r * out_pitch + k, value[r], columns - k);
        }
        lane += most, valid += most, weight += most, base += most;
    }
}

/* `lines` rows of outputs, at most PLANE_LINES of them, each from a line of its own. A divisor of 0 stands for
 * nothing to divide by. */
static void TYPED(plane_lines)(
    int any_largest, int lines, const REAL *line, ptrdiff_t pitch, const struct plane_taps *t,
    ptrdiff_t columns, REAL divisor, REAL *out, ptrdiff_t out_pitch)
{
#define SIZED(largest, count, reach)                                                                         \
    do {                                                                                                     \
        if (lines == PLANE_LINES)                                                                            \
            TYPED(plane_lines_sized)(largest, count, reach, PLANE_LINES, line, pitch, t, columns, divisor,   \
                                     out, out_pitch);                                                        \
        else                                                                                                 \
            for (int r = 0; r < lines; r++)                                                                  \
                TYPED(plane_lines_sized)(                                                                    \
                    largest, count, reach, 1, line + r * pitch, pitch, t, columns, divisor,                  \
                    out + r * out_pitch, out_pitch);                                                         \
    } while (0)
#define CASE(largest, count)                                                                                 \
    case (largest)*4 + (count):                                                                              \
        if (t->reach == 1)                                                                                   \
            SIZED(largest, (count) ? (count) : (int)t->most, 1);                                             \
        else                                                                                                 \
            SIZED(largest, (count) ? (count) : (int)t->most, 2);                                             \
        break;
    switch ((any_largest != 0) * 4 + (t->most < 4 ? (int)t->most : 0)) {
        CASE(0, 0) CASE(0, 1) CASE(0, 2) CASE(0, 3) CASE(1, 0) CASE(1, 1) CASE(1, 2) CASE(1, 3)
    }
#undef CASE
#undef SIZED
}

ALWAYS_INLINE void TYPED(plane_max_sized)(
    const int most, const REAL *row, ptrdiff_t pixel, const struct plane_taps *t, REAL *best, MASK *at)
{
    const ptrdiff_t blocks = t->blocks;
    const vec_mask *lane = t->lane;
    const ptrdiff_t *base = t->base;
    for (ptrdiff_t b = 0; b < blocks; b++, lane += most, base += most) {
        vec largest = TYPED(plane_window)(2, row + base[0], lane[0]);
        vec_mask where = lane[0] + (MASK)(pixel + base[0]);
        _Pragma("GCC unroll 3") for (int s = 1; s < most; s++)
        {
            const vec one = TYPED(plane_window)(2, row + base[s], lane[s]);
            const vec_mask larger = TYPED(larger)(one, largest);
            largest = TYPED(choose)(larger, one, largest);
            where = (larger & (lane[s] + (MASK)(pixel + base[s]))) | (~larger & where);
        }
        TYPED(store)(best + b * LANES, largest);
        *(vec_mask *)(at + b * LANES) = where;
    }
}

/* The largest along one row, which begins at `pixel`, and where they are; with two vectors of reach. */
static void TYPED(plane_max)(
    const REAL *row, ptrdiff_t pixel, const struct plane_taps *t, REAL *best, MASK *at)
{
    switch (t->most) {
    case 2: TYPED(plane_max_sized)(2, row, pixel, t, best, at); break;
    case 3: TYPED(plane_max_sized)(3, row, pixel, t, best, at); break;
    default: TYPED(plane_max_sized)((int)t->most, row, pixel, t, best, at);
    }
}

/* Of two rows' largest, the first before the second. */
static void TYPED(plane_max_join)(
    const struct plane_taps *t, const REAL *first, const MASK *first_at, const REAL *second, const MASK *second_at,
    REAL *best, MASK *at)
{
    _Pragma("GCC ivdep") for (ptrdiff_t k = 0; k < t->blocks * LANES; k++)
    {
        const MASK larger = LARGER(second[k], first[k]);
        const REAL value = larger ? second[k] : first[k];
        at[k] = larger ? second_at[k] : first_at[k];
        best[k] = value;
    }
}

static void TYPED(plane_max_keep)(
    const struct plane_taps *t, ptrdiff_t columns, const REAL *best, const MASK *at, REAL *out, int64_t *index)
{
    for (ptrdiff_t b = 0; b < t->blocks; b++, best += LANES, at += LANES) {
        const ptrdiff_t k = TYPED(plane_first)(b, columns), count = columns - k;
        TYPED(plane_keep)(out + k, TYPED(load)(best), count);
        if (count >= LANES)
            for (int i = 0; i < LANES; i++) index[k + i] = at[i];
        else
            for (int i = 0; i < count; i++) index[k + i] = at[i];
    }
}

#undef LARGER
