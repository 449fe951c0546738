/* Copies of short runs, and of matrices that are transposed on the way; microkernel.h includes this once for each
 * element type. A call of memcpy costs as much as copying half a kilobyte. */

/* A run's last vector overlaps the one before. */
ALWAYS_INLINE void TYPED(copy_run)(const REAL *x, REAL *y, ptrdiff_t count)
{
    ptrdiff_t i = 0;
    if (count < LANES) {
        for (; i < count; i++) y[i] = x[i];
        return;
    }
    for (; i + LANES <= count; i += LANES) TYPED(store)(y + i, TYPED(load)(x + i));
    if (i < count) TYPED(store)(y + count - LANES, TYPED(load)(x + count - LANES));
}

ALWAYS_INLINE void TYPED(fill_run)(REAL *y, ptrdiff_t count, REAL value)
{
    for (ptrdiff_t i = 0; i < count; i++) y[i] = value;
}

/* y[2q] = x[q], y[2q + 1] = x[q + pitch] */
static void TYPED(interleave)(const REAL *x, ptrdiff_t pitch, ptrdiff_t count, REAL *y)
{
    vec_mask low, high;
    ptrdiff_t q = 0;
    for (int i = 0; i < LANES; i++) low[i] = i / 2 + i % 2 * LANES, high[i] = low[i] + LANES / 2;
    for (; q + LANES <= count; q += LANES) {
        const vec a = TYPED(load)(x + q), b = TYPED(load)(x + q + pitch);
        TYPED(store)(y + 2 * q, __builtin_shuffle(a, b, low));
        TYPED(store)(y + 2 * q + LANES, __builtin_shuffle(a, b, high));
    }
    for (; q < count; q++) y[2 * q] = x[q], y[2 * q + 1] = x[q + pitch];
}

/* y[q] = x[2q], y[q + pitch] = x[2q + 1] */
static void TYPED(separate)(const REAL *x, ptrdiff_t count, REAL *y, ptrdiff_t pitch)
{
    vec_mask even, odd;
    ptrdiff_t q = 0;
    for (int i = 0; i < LANES; i++) even[i] = 2 * i, odd[i] = 2 * i + 1;
    for (; q + LANES <= count; q += LANES) {
        const vec a = TYPED(load)(x + 2 * q), b = TYPED(load)(x + 2 * q + LANES);
        TYPED(store)(y + q, __builtin_shuffle(a, b, even));
        TYPED(store)(y + q + pitch, __builtin_shuffle(a, b, odd));
    }
    for (; q < count; q++) y[q] = x[2 * q], y[q + pitch] = x[2 * q + 1];
}

/* y[q] = x[4q], y[q + pitch] = x[4q + 1]: two of four, as channels-last pixels shuffled by 2 are read. Nothing
 * beyond these is read. */
static void TYPED(separate_half)(const REAL *x, ptrdiff_t count, REAL *y, ptrdiff_t pitch)
{
    vec_mask pick, pick_last, low, high;
    ptrdiff_t q = 0;
    for (int i = 0; i < LANES; i++) {
        const int half = i % (LANES / 2);
        pick[i] = 4 * half + 2 * i / LANES;
        pick_last[i] = pick[i] + (half >= LANES / 4 ? 2 : 0);
        low[i] = half + 2 * i / LANES * LANES, high[i] = low[i] + LANES / 2;
    }
    for (; q + LANES <= count; q += LANES) {
        const REAL *from = x + 4 * q;
        const vec a = __builtin_shuffle(TYPED(load)(from), TYPED(load)(from + LANES), pick);
        const vec b =
            __builtin_shuffle(TYPED(load)(from + 2 * LANES), TYPED(load)(from + 3 * LANES - 2), pick_last);
        TYPED(store)(y + q, __builtin_shuffle(a, b, low));
        TYPED(store)(y + q + pitch, __builtin_shuffle(a, b, high));
    }
    for (; q < count; q++) y[q] = x[4 * q], y[q + pitch] = x[4 * q + 1];
}

/* y[column · y_pitch + row] = x[row · x_pitch + column] */
static void TYPED(exchange)(
    const REAL *x, ptrdiff_t x_pitch, ptrdiff_t rows, ptrdiff_t columns, REAL *y, ptrdiff_t y_pitch)
{
    if (rows == 1 && y_pitch == 1)
        TYPED(copy_run)(x, y, columns);
    else if (rows == 2 && y_pitch == 2)
        TYPED(interleave)(x, x_pitch, columns, y);
    else if (columns == 2 && x_pitch == 2)
        TYPED(separate)(x, rows, y, y_pitch);
    else if (columns == 2 && x_pitch == 4 && LANES >= 4)
        TYPED(separate_half)(x, rows, y, y_pitch);
    else if (columns >= rows)
        for (ptrdiff_t r = 0; r < rows; r++)
            for (ptrdiff_t c = 0; c < columns; c++) y[c * y_pitch + r] = x[r * x_pitch + c];
    else
        for (ptrdiff_t c = 0; c < columns; c++)
            for (ptrdiff_t r = 0; r < rows; r++) y[c * y_pitch + r] = x[r * x_pitch + c];
}

/* How the first and the last vector of a padded row are made of those of its `width` pixels: of each where its
 * elements come from in the pair of them, and a mask of the constant ones. Whether they can be. */
static int TYPED(pad_ends)(
    const int64_t *source, ptrdiff_t columns, ptrdiff_t begin, ptrdiff_t count, ptrdiff_t width, void *ends)
{
    if (width < LANES || count < LANES || begin > LANES || columns - begin - count > LANES) return 0;
    vec_mask table[4];
    for (int i = 0; i < 2 * LANES; i++) {
        const int64_t from = source[i < LANES ? i : columns - 2 * LANES + i];
        if (from >= LANES && from < width - LANES) return 0;
        table[i / LANES][i % LANES] = from < 0 ? 0 : from < LANES ? from : from - width + 2 * LANES;
        table[2 + i / LANES][i % LANES] = from < 0 ? -1 : 0;
    }
    memcpy(ends, table, sizeof table);
    return 1;
}

/* A row of a padded image by `ends`; outputs `begin` to `end` lie as in x, and all between those two vectors do. */
static __attribute__((noinline)) void TYPED(pad_row_by_ends)(
    const REAL *x, const void *ends, ptrdiff_t width, ptrdiff_t columns, ptrdiff_t begin, ptrdiff_t end,
    ptrdiff_t first, REAL value, REAL *y)
{
    const REAL *table = ends, *from = x + first - begin;
    const vec_mask left = (vec_mask)TYPED(load)(table), right = (vec_mask)TYPED(load)(table + LANES);
    const vec_mask left_constant = (vec_mask)TYPED(load)(table + 2 * LANES);
    const vec_mask right_constant = (vec_mask)TYPED(load)(table + 3 * LANES);
    const vec a = TYPED(load)(x), b = TYPED(load)(x + width - LANES), constant = TYPED(broadcast)(value);
    ptrdiff_t k = LANES;
    TYPED(store)(y, TYPED(select)(left_constant, constant, __builtin_shuffle(a, b, left)));
    for (; k + LANES <= end; k += LANES) TYPED(store)(y + k, TYPED(load)(from + k));
    if (k < columns - LANES) TYPED(store)(y + end - LANES, TYPED(load)(from + end - LANES));
    TYPED(store)(y + columns - LANES, TYPED(select)(right_constant, constant, __builtin_shuffle(a, b, right)));
}

/* A row of a padded image of `width` pixels: border pixels from the positions `source`, constant where that is
 * negative, and the `count` pixels from `begin` on that lie as in x from `first` on. With `ends`, if there are any. */
static void TYPED(pad_row)(
    const REAL *x, const int64_t *source, const void *ends, ptrdiff_t width, ptrdiff_t columns, ptrdiff_t begin,
    ptrdiff_t first, ptrdiff_t count, ptrdiff_t channels, REAL value, REAL *y)
{
    if (ends) {
        TYPED(pad_row_by_ends)(x, ends, width, columns, begin, begin + count, first, value, y);
        return;
    }
    TYPED(copy_run)(x + first * channels, y + begin * channels, count * channels);
    for (ptrdiff_t k = 0; k < columns; k++) {
        if (k == begin) k += count;
        if (k == columns) break;
        if (source[k] < 0)
            TYPED(fill_run)(y + k * channels, channels, value);
        else if (channels == 1)
            y[k] = x[source[k]];
        else
            TYPED(copy_run)(x + source[k] * channels, y + k * channels, channels);
    }
}
