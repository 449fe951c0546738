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
    else if (columns >= rows)
        for (ptrdiff_t r = 0; r < rows; r++)
            for (ptrdiff_t c = 0; c < columns; c++) y[c * y_pitch + r] = x[r * x_pitch + c];
    else
        for (ptrdiff_t c = 0; c < columns; c++)
            for (ptrdiff_t r = 0; r < rows; r++) y[c * y_pitch + r] = x[r * x_pitch + c];
}

/* A row of a padded image: border pixels from the positions `source`, constant where that is negative, and the
 * `count` pixels from `begin` on that lie as in x from `first` on. */
static void TYPED(pad_row)(
    const REAL *x, const int64_t *source, ptrdiff_t columns, ptrdiff_t begin, ptrdiff_t first, ptrdiff_t count,
    ptrdiff_t channels, REAL value, REAL *y)
{
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
