/* Sums over rows of (rows, channels) matrices, and affine maps of them, vectors over channels; microkernel.h
 * includes this once for each element type.
 *
 *   add_rows      total[c] += Σ x[r][c]
 *   add_squares   total[c] += Σ (x[r][c] − mean[c])²
 *   add_products  total[c] += Σ u[r][c] · (v[r][c] − mean[c])
 *
 *   scale_rows    out[r][c] = x[r][c] · scale[c] + shift[c]
 *   combine_rows  out[r][c] = g[r][c] · factor[c] + ((x[r][c] − mean[c]) · slope[c] + shift[c])
 *
 * SUM_ROWS rows are summed in the elements' type, in registers, and then added to the double. The maps take as
 * many at a time, for which the channels' constants are loaded once. */

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

ALWAYS_INLINE void TYPED(scale_few_rows)(
    const int rows, const REAL *x, const REAL *scale, const REAL *shift, REAL *out, ptrdiff_t channels)
{
    _Pragma("GCC ivdep") for (ptrdiff_t c = 0; c < channels; c++)
        _Pragma("GCC unroll 8") for (int r = 0; r < rows; r++)
            out[r * channels + c] = x[r * channels + c] * scale[c] + shift[c];
}

ALWAYS_INLINE void TYPED(combine_few_rows)(
    const int rows, const REAL *g, const REAL *x, const REAL *factor, const REAL *mean, const REAL *slope,
    const REAL *shift, REAL *out, ptrdiff_t channels)
{
    _Pragma("GCC ivdep") for (ptrdiff_t c = 0; c < channels; c++)
        _Pragma("GCC unroll 8") for (int r = 0; r < rows; r++)
        {
            const ptrdiff_t at = r * channels + c;
            out[at] = g[at] * factor[c] + ((x[at] - mean[c]) * slope[c] + shift[c]);
        }
}

static void TYPED(scale_rows)(
    ptrdiff_t rows, const REAL *x, const REAL *scale, const REAL *shift, REAL *out, ptrdiff_t channels)
{
    for (; rows >= SUM_ROWS; rows -= SUM_ROWS, x += SUM_ROWS * channels, out += SUM_ROWS * channels)
        TYPED(scale_few_rows)(SUM_ROWS, x, scale, shift, out, channels);
    for (; rows > 0; rows--, x += channels, out += channels)
        TYPED(scale_few_rows)(1, x, scale, shift, out, channels);
}

static void TYPED(combine_rows)(
    ptrdiff_t rows, const REAL *g, const REAL *x, const REAL *factor, const REAL *mean, const REAL *slope,
    const REAL *shift, REAL *out, ptrdiff_t channels)
{
    const ptrdiff_t step = SUM_ROWS * channels;
    for (; rows >= SUM_ROWS; rows -= SUM_ROWS, g += step, x += step, out += step)
        TYPED(combine_few_rows)(SUM_ROWS, g, x, factor, mean, slope, shift, out, channels);
    for (; rows > 0; rows--, g += channels, x += channels, out += channels)
        TYPED(combine_few_rows)(1, g, x, factor, mean, slope, shift, out, channels);
}

/* The same sums of one run of elements with one mean, and the same maps with one set of constants. */

#define RUN_TOTAL(name, arguments, one, many)                                                               \
    static double TYPED(name) arguments                                                                     \
    {                                                                                                       \
        double total[LANES] = {0}, all = 0;                                                                 \
        ptrdiff_t i = 0;                                                                                    \
        for (; i + SUM_ROWS * LANES <= count; i += SUM_ROWS * LANES) {                                      \
            REAL part[LANES];                                                                               \
            vec sum = {0};                                                                                  \
            _Pragma("GCC unroll 8") for (int r = 0; r < SUM_ROWS; r++) sum += many(i + r * LANES);          \
            TYPED(store)(part, sum);                                                                        \
            for (int l = 0; l < LANES; l++) total[l] += part[l];                                            \
        }                                                                                                   \
        for (; i < count; i++) all += one(i);                                                               \
        for (int l = 0; l < LANES; l++) all += total[l];                                                    \
        return all;                                                                                         \
    }

#define VALUE(i) x[i]
#define VALUES(i) TYPED(load)(x + (i))
RUN_TOTAL(run_total, (ptrdiff_t count, const REAL *x), VALUE, VALUES)
#define SQUARE(i) ((x[i] - mean) * (x[i] - mean))
#define SQUARES(i) ((TYPED(load)(x + (i)) - mean) * (TYPED(load)(x + (i)) - mean))
RUN_TOTAL(run_squares, (ptrdiff_t count, const REAL *x, REAL mean), SQUARE, SQUARES)
#define PRODUCT(i) (u[i] * (v[i] - mean))
#define PRODUCTS(i) (TYPED(load)(u + (i)) * (TYPED(load)(v + (i)) - mean))
RUN_TOTAL(run_products, (ptrdiff_t count, const REAL *u, const REAL *v, REAL mean), PRODUCT, PRODUCTS)

static void TYPED(scale_run)(ptrdiff_t count, const REAL *x, REAL mean, REAL scale, REAL shift, REAL *out)
{
    _Pragma("GCC ivdep") for (ptrdiff_t i = 0; i < count; i++) out[i] = (x[i] - mean) * scale + shift;
}

static void TYPED(combine_run)(
    ptrdiff_t count, const REAL *g, const REAL *x, REAL factor, REAL mean, REAL slope, REAL shift, REAL *out)
{
    _Pragma("GCC ivdep") for (ptrdiff_t i = 0; i < count; i++)
        out[i] = g[i] * factor + ((x[i] - mean) * slope + shift);
}

#undef RUN_TOTAL
#undef VALUE
#undef VALUES
#undef SQUARE
#undef SQUARES
#undef PRODUCT
#undef PRODUCTS
#undef SUM_ROWS
