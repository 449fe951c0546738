/* Sums over rows of (rows, channels) matrices, vectors over channels; microkernel.h includes this once for
 * each element type.
 *
 *   add_rows      total[c] += Σ x[r][c]
 *   add_squares   total[c] += Σ (x[r][c] − mean[c])²
 *   add_products  total[c] += Σ u[r][c] · (v[r][c] − mean[c])
 *
 * SUM_ROWS rows are summed in the elements' type, in registers, and then added to the double. */

#define SUM_ROWS 8

ALWAYS_INLINE void TYPED(add_few_rows)(const int rows, const REAL *x, ptrdiff_t channels, double *total)
{
    _Pragma("GCC ivdep") for (ptrdiff_t c = 0; c < channels; c++)
    {
        REAL sum = x[c];
        _Pragma("GCC unroll 8") for (int r = 1; r < rows; r++) sum += x[r * channels + c];
        total[c] += sum;
    }
}

ALWAYS_INLINE void TYPED(add_few_squares)(
    const int rows, const REAL *x, const double *mean, ptrdiff_t channels, double *total)
{
    _Pragma("GCC ivdep") for (ptrdiff_t c = 0; c < channels; c++)
    {
        const REAL center = (REAL)mean[c];
        REAL sum = 0;
        _Pragma("GCC unroll 8") for (int r = 0; r < rows; r++)
            sum += (x[r * channels + c] - center) * (x[r * channels + c] - center);
        total[c] += sum;
    }
}

ALWAYS_INLINE void TYPED(add_few_products)(
    const int rows, const REAL *u, const REAL *v, const REAL *mean, ptrdiff_t channels, double *total)
{
    _Pragma("GCC ivdep") for (ptrdiff_t c = 0; c < channels; c++)
    {
        REAL sum = 0;
        _Pragma("GCC unroll 8") for (int r = 0; r < rows; r++)
            sum += u[r * channels + c] * (v[r * channels + c] - mean[c]);
        total[c] += sum;
    }
}

static void TYPED(add_rows)(ptrdiff_t rows, const REAL *x, ptrdiff_t channels, double *total)
{
    for (; rows >= SUM_ROWS; rows -= SUM_ROWS, x += SUM_ROWS * channels)
        TYPED(add_few_rows)(SUM_ROWS, x, channels, total);
    for (; rows > 0; rows--, x += channels)
        TYPED(add_few_rows)(1, x, channels, total);
}

static void TYPED(add_squares)(
    ptrdiff_t rows, const REAL *x, const double *mean, ptrdiff_t channels, double *total)
{
    for (; rows >= SUM_ROWS; rows -= SUM_ROWS, x += SUM_ROWS * channels)
        TYPED(add_few_squares)(SUM_ROWS, x, mean, channels, total);
    for (; rows > 0; rows--, x += channels)
        TYPED(add_few_squares)(1, x, mean, channels, total);
}

static void TYPED(add_products)(
    ptrdiff_t rows, const REAL *u, const REAL *v, const REAL *mean, ptrdiff_t channels, double *total)
{
    for (; rows >= SUM_ROWS; rows -= SUM_ROWS, u += SUM_ROWS * channels, v += SUM_ROWS * channels)
        TYPED(add_few_products)(SUM_ROWS, u, v, mean, channels, total);
    for (; rows > 0; rows--, u += channels, v += channels)
        TYPED(add_few_products)(1, u, v, mean, channels, total);
}

#undef SUM_ROWS
