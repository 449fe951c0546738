/* One row of output pixels of a plane, whose pixels are contiguous, from a few of its rows; microkernel.h
 * includes this once for each element type. As max_row, resample_row and divide_row of pooling.h, in the same
 * order of operations, but with vectors along the row:
 *
 *   plane_max      out[k] = max over rows r and taps s of k of row[r][source[k][s]], and where that was
 *   plane_sum      out[k] = Σ row_weight[r] · weight[k][s] · row[r][source[k][s]]
 *   plane_divide   out[k] = out[k] / (divisor · divisor[k])
 *
 * Tap s of LANES neighbouring outputs reads at most 2 · LANES neighbouring pixels: two loads and a shuffle,
 * whatever the pattern (every second pixel, each twice, ...). An output of fewer taps than `most` repeats its
 * last one, which changes no maximum; in a sum it then counts nothing: it reads 0, and its weight is −0, because
 * adding −0 changes no sum, not even one of −0. Tap 0 has weight 0, for outputs that read nothing are 0. */

/* Fills `t` from `w`; false if a tap reads from too wide a span. */
static int TYPED(plane_taps)(const struct taps *w, const struct plane_taps *t)
{
    MASK *lane = t->lane, *valid = t->valid;
    REAL *weight = t->weight;
    const ptrdiff_t room = w->size > 2 * LANES ? w->size - 2 * LANES : 0;
    for (ptrdiff_t b = 0; b < t->blocks; b++)
        for (ptrdiff_t s = 0; s < t->most; s++, lane += LANES, valid += LANES, weight += LANES) {
            ptrdiff_t low = room;
            for (int i = 0; i < LANES; i++) {
                const ptrdiff_t k = b * LANES + i < w->out_size ? b * LANES + i : w->out_size - 1;
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
                if (lane[i] >= 2 * LANES)
                    return 0;
            }
        }
    return 1;
}

ALWAYS_INLINE vec TYPED(plane_window)(const REAL *row, vec_mask lane)
{
    return __builtin_shuffle(TYPED(load)(row), TYPED(load)(row + LANES), lane);
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

ALWAYS_INLINE void TYPED(plane_sum_sized)(
    const int most, int first, int rows, const REAL *const *row, const REAL *row_weight,
    const struct plane_taps *t, ptrdiff_t columns, REAL *out)
{
    const vec_mask *lane = t->lane, *valid = t->valid;
    const vec *weight = t->weight;
    const ptrdiff_t *base = t->base;
    for (ptrdiff_t k = 0; k < columns; k += LANES) {
        vec sum = first ? -(vec){0} : TYPED(plane_load)(out + k, columns - k);
        for (int r = 0; r < rows; r++) {
            const vec by = TYPED(broadcast)(row_weight[r]);
            _Pragma("GCC unroll 4") for (int s = 0; s < most; s++)
            {
                const vec pixel = TYPED(plane_window)(row[r] + base[s], lane[s]);
                sum += (by * weight[s]) * (vec)((vec_mask)pixel & valid[s]);
            }
        }
        TYPED(plane_keep)(out + k, sum, columns - k);
        lane += most, valid += most, weight += most, base += most;
    }
}

static void TYPED(plane_sum)(
    int first, int rows, const REAL *const *row, const REAL *row_weight, const struct plane_taps *t,
    ptrdiff_t columns, REAL *out)
{
    if (t->most == 1)
        TYPED(plane_sum_sized)(1, first, rows, row, row_weight, t, columns, out);
    else if (t->most == 2)
        TYPED(plane_sum_sized)(2, first, rows, row, row_weight, t, columns, out);
    else if (t->most == 3)
        TYPED(plane_sum_sized)(3, first, rows, row, row_weight, t, columns, out);
    else
        TYPED(plane_sum_sized)((int)t->most, first, rows, row, row_weight, t, columns, out);
}

/* a NaN is larger than everything, a later NaN than an earlier one. */
ALWAYS_INLINE void TYPED(plane_max_sized)(
    const int most, const int with_index, int first, int rows, const REAL *const *row,
    const ptrdiff_t *row_pixel, const struct plane_taps *t, ptrdiff_t columns, REAL *out, int64_t *index)
{
    const vec_mask *lane = t->lane;
    const ptrdiff_t *base = t->base;
    for (ptrdiff_t k = 0; k < columns; k += LANES) {
        const int count = columns - k < LANES ? (int)(columns - k) : LANES;
        MASK at[LANES] __attribute__((aligned(VECTOR_BYTES))) = {0};
        vec best = first ? TYPED(plane_window)(row[0] + base[0], lane[0])
                         : TYPED(plane_load)(out + k, columns - k);
        vec_mask best_at = lane[0] + (MASK)(row_pixel[0] + base[0]);
        if (with_index && !first) {
            for (int i = 0; i < count; i++) at[i] = (MASK)index[k + i];
            best_at = *(const vec_mask *)at;
        }
        for (int r = 0; r < rows; r++)
            _Pragma("GCC unroll 4") for (int s = 0; s < most; s++)
            {
                const vec pixel = TYPED(plane_window)(row[r] + base[s], lane[s]);
                const vec_mask larger = (pixel > best) | (pixel != pixel);
                best = (vec)((larger & (vec_mask)pixel) | (~larger & (vec_mask)best));
                if (with_index)
                    best_at = (larger & (lane[s] + (MASK)(row_pixel[r] + base[s]))) | (~larger & best_at);
            }
        TYPED(plane_keep)(out + k, best, columns - k);
        if (with_index) {
            *(vec_mask *)at = best_at;
            for (int i = 0; i < count; i++) index[k + i] = at[i];
        }
        lane += most, base += most;
    }
}

static void TYPED(plane_max)(
    int first, int rows, const REAL *const *row, const ptrdiff_t *row_pixel, const struct plane_taps *t,
    ptrdiff_t columns, REAL *out, int64_t *index)
{
#define MAX(most)                                                                                           \
    if (index)                                                                                               \
        TYPED(plane_max_sized)(most, 1, first, rows, row, row_pixel, t, columns, out, index);                \
    else                                                                                                     \
        TYPED(plane_max_sized)(most, 0, first, rows, row, row_pixel, t, columns, out, index);
    if (t->most == 2) {
        MAX(2)
    } else if (t->most == 3) {
        MAX(3)
    } else {
        MAX((int)t->most)
    }
#undef MAX
}

static void TYPED(plane_divide)(double divisor, const struct taps *w, int each, REAL *out)
{
    if (each)
        for (ptrdiff_t k = 0; k < w->out_size; k++) out[k] /= (REAL)(divisor * w->divisor[k]);
    else
        for (ptrdiff_t k = 0; k < w->out_size; k++) out[k] /= (REAL)divisor;
}
