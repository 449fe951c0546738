/* Sums over rows of (rows, channels) matrices, and affine maps of them, vectors over channels; microkernel.h
 * includes this once for each element type.
 *
 *   add_rows      total[c] += Σ x[r][c]
 *   add_squares   total[c] += Σ (x[r][c] − mean[c])²
 *   add_products  total[c] += Σ g[r][c], products[c] += Σ g[r][c] · (x[r][c] − mean[c])
 *
 *   scale_rows    out[r][c] = (x[r][c] − mean[c]) · scale[c] + shift[c]
 *   combine_rows  out[r][c] = g[r][c] · factor[c] + ((x[r][c] − mean[c]) · slope[c] + shift[c])
 *
 * SUM_ROWS rows are summed in the elements' type, in registers, eight and eight, and then added to the double:
 * conversions cost as much as the sums of eight rows. The maps go by strips of MAP_ROWS rows and four vectors,
 * whose constants stay in registers: four loads of constants a vector are as many as the elements' own where those
 * lie across lines. What GCC keeps on the stack from strip to strip waits behind the stores, so pixels that are one
 * strip wide are one in all. */

#define SUM_ROWS 32
#define FEW_ROWS 8
#define MAP_ROWS 32
/* Squares find their block, of normalization.pyx, in the L1 cache, and ask for the next one meanwhile. */
#define BLOCK_AHEAD (32768 / (int)sizeof(REAL))
#define SUM_VALUES 0
#define SUM_SQUARES 1
#define SUM_PRODUCTS 2

/* The sums of `rows` rows and of `vectors` vectors of channels side by side, in the order of memory: of `what`
 * SUM_VALUES Σ x, SUM_SQUARES Σ (x − center)², SUM_PRODUCTS Σ g and Σ g · (x − center). */
ALWAYS_INLINE void TYPED(add_strip)(
    const int what, const int rows, const int vectors, const REAL *g, const REAL *x, const vec *center,
    ptrdiff_t channels, double *total, double *products)
{
    vec sum[4] = {0}, product[4] = {0};
    for (int first = 0; first < rows; first += FEW_ROWS) {
        vec few[4] = {0}, few_products[4] = {0};
        for (int r = 0; r < (rows < FEW_ROWS ? rows : FEW_ROWS); r++, g += channels, x += channels)
            _Pragma("GCC unroll 4") for (int v = 0; v < vectors; v++)
            {
                if (what == SUM_SQUARES) __builtin_prefetch(x + v * LANES + BLOCK_AHEAD, 0, 2);
                const vec value = TYPED(load)(x + v * LANES);
                const vec factor = what == SUM_VALUES    ? value
                                   : what == SUM_SQUARES ? value - center[v]
                                                         : TYPED(load)(g + v * LANES);
                if (what != SUM_SQUARES) few[v] += factor;
                if (what != SUM_VALUES) few_products[v] += factor * (value - center[v]);
            }
        _Pragma("GCC unroll 4") for (int v = 0; v < vectors; v++) sum[v] += few[v], product[v] += few_products[v];
    }
    const REAL *sums = (const REAL *)sum, *of_products = (const REAL *)product;
    if (what != SUM_SQUARES)
        for (int i = 0; i < vectors * LANES; i++) total[i] += sums[i];
    if (what != SUM_VALUES)
        for (int i = 0; i < vectors * LANES; i++) products[i] += of_products[i];
}

/* Those of all whole vectors; the first channel that is left. */
ALWAYS_INLINE ptrdiff_t TYPED(add_strips)(
    const int what, const int rows, const REAL *g, const REAL *x, const double *mean, ptrdiff_t channels,
    double *total, double *products)
{
    ptrdiff_t c = 0;
    vec center[4] = {0};
    REAL rounded[4 * LANES];
#define CALL(vectors)                                                                                       \
    do {                                                                                                    \
        if (what != SUM_VALUES) {                                                                           \
            for (int i = 0; i < vectors * LANES; i++) rounded[i] = (REAL)mean[c + i];                       \
            _Pragma("GCC unroll 4") for (int v = 0; v < vectors; v++)                                       \
                center[v] = TYPED(load)(rounded + v * LANES);                                               \
        }                                                                                                   \
        TYPED(add_strip)(what, rows, vectors, g + c, x + c, center, channels, total + c, products + c);     \
        c += vectors * LANES;                                                                               \
    } while (0)
    while (c + 4 * LANES <= channels) CALL(4);
    while (c + LANES <= channels) CALL(1);
#undef CALL
    return c;
}

/* to[c] += Σ TERM(r · channels + c), for `rows` rows. */
#define ADD_FEW_ROWS(TERM, to)                                                                                  \
    do {                                                                                                    \
        REAL sum = 0;                                                                                       \
        _Pragma("GCC unroll 4") for (int first = 0; first < rows; first += FEW_ROWS)                        \
        {                                                                                                   \
            REAL few = TERM(first * channels + c);                                                          \
            _Pragma("GCC unroll 8") for (int r = 1; r < (rows < FEW_ROWS ? rows : FEW_ROWS); r++)           \
                few += TERM((first + r) * channels + c);                                                    \
            sum += few;                                                                                     \
        }                                                                                                   \
        to[c] += sum;                                                                                       \
    } while (0)

#define VALUE(i) x[i]
ALWAYS_INLINE void TYPED(add_few_rows)(const int rows, const REAL *x, ptrdiff_t channels, double *total)
{
    ptrdiff_t c = TYPED(add_strips)(SUM_VALUES, rows, x, x, total, channels, total, total);
    _Pragma("GCC ivdep") for (; c < channels; c++) ADD_FEW_ROWS(VALUE, total);
}

#define SQUARE(i) ((x[i] - center) * (x[i] - center))
ALWAYS_INLINE void TYPED(add_few_squares)(
    const int rows, const REAL *x, const double *mean, ptrdiff_t channels, double *total)
{
    ptrdiff_t c = TYPED(add_strips)(SUM_SQUARES, rows, x, x, mean, channels, total, total);
    _Pragma("GCC ivdep") for (; c < channels; c++)
    {
        const REAL center = (REAL)mean[c];
        ADD_FEW_ROWS(SQUARE, total);
    }
}

#define GRADIENT(i) g[i]
#define PRODUCT(i) (g[i] * (x[i] - center))
ALWAYS_INLINE void TYPED(add_few_products)(
    const int rows, const REAL *g, const REAL *x, const double *mean, ptrdiff_t channels, double *total,
    double *products)
{
    ptrdiff_t c = TYPED(add_strips)(SUM_PRODUCTS, rows, g, x, mean, channels, total, products);
    _Pragma("GCC ivdep") for (; c < channels; c++)
    {
        const REAL center = (REAL)mean[c];
        ADD_FEW_ROWS(GRADIENT, total);
        ADD_FEW_ROWS(PRODUCT, products);
    }
}

/* `call` of as many rows at a time as there are, `advance` moves the pointers on. */
#define IN_FEW_ROWS(call, advance)                                                                          \
    for (; rows >= SUM_ROWS; rows -= SUM_ROWS, advance(SUM_ROWS * channels)) call(SUM_ROWS);                \
    for (; rows >= FEW_ROWS; rows -= FEW_ROWS, advance(FEW_ROWS * channels)) call(FEW_ROWS);                \
    for (; rows > 0; rows--, advance(channels)) call(1)

static void TYPED(add_rows)(ptrdiff_t rows, const REAL *x, ptrdiff_t channels, double *total)
{
#define CALL(count) TYPED(add_few_rows)(count, x, channels, total)
#define ADVANCE(step) x += step
    IN_FEW_ROWS(CALL, ADVANCE);
#undef CALL
}

static void TYPED(add_squares)(
    ptrdiff_t rows, const REAL *x, const double *mean, ptrdiff_t channels, double *total)
{
#define CALL(count) TYPED(add_few_squares)(count, x, mean, channels, total)
    IN_FEW_ROWS(CALL, ADVANCE);
#undef CALL
#undef ADVANCE
}

static void TYPED(add_products)(
    ptrdiff_t rows, const REAL *g, const REAL *x, const double *mean, ptrdiff_t channels, double *total,
    double *products)
{
#define CALL(count) TYPED(add_few_products)(count, g, x, mean, channels, total, products)
#define ADVANCE(step) g += step, x += step
    IN_FEW_ROWS(CALL, ADVANCE);
#undef CALL
#undef ADVANCE
}

/* `call` of MAP_ROWS rows at a time, or all, and of those of strips of four vectors, or one, of channels from c on;
 * `rest` where the channels do not fill a vector. The last strip may overlap the one before: its values are stored twice. */
#define IN_STRIPS(call, rest, advance)                                                                      \
    const ptrdiff_t most = channels == LANES || channels == 4 * LANES ? rows : MAP_ROWS;                    \
    for (; rows > 0; rows -= most, advance(most * channels)) {                                              \
        const ptrdiff_t few = rows < most ? rows : most;                                                    \
        ptrdiff_t c = 0;                                                                                    \
        for (; c + 4 * LANES <= channels; c += 4 * LANES) call(4);                                          \
        for (; c + LANES <= channels; c += LANES) call(1);                                                  \
        if (c < channels && channels >= LANES) {                                                            \
            c = channels - LANES;                                                                           \
            call(1);                                                                                        \
        } else if (c < channels)                                                                            \
            for (ptrdiff_t r = 0; r < few; r++)                                                             \
                for (c = 0; c < channels; c++) rest(r * channels + c);                                      \
    }

ALWAYS_INLINE void TYPED(scale_strip)(
    const int vectors, ptrdiff_t rows, const REAL *x, const REAL *mean, const REAL *scale, const REAL *shift,
    REAL *out, ptrdiff_t channels)
{
    vec m[4], s[4], b[4];
    _Pragma("GCC unroll 4") for (int v = 0; v < vectors; v++) m[v] = TYPED(load)(mean + v * LANES),
        s[v] = TYPED(load)(scale + v * LANES), b[v] = TYPED(load)(shift + v * LANES);
    for (; rows > 0; rows--, x += channels, out += channels)
        _Pragma("GCC unroll 4") for (int v = 0; v < vectors; v++)
            TYPED(store)(out + v * LANES, (TYPED(load)(x + v * LANES) - m[v]) * s[v] + b[v]);
}

static void TYPED(scale_rows)(
    ptrdiff_t rows, const REAL *x, const REAL *mean, const REAL *scale, const REAL *shift, REAL *out,
    ptrdiff_t channels)
{
#define CALL(vectors)                                                                                       \
    TYPED(scale_strip)(vectors, few, x + c, mean + c, scale + c, shift + c, out + c, channels)
#define REST(i) out[i] = (x[i] - mean[c]) * scale[c] + shift[c]
#define ADVANCE(step) x += step, out += step
    IN_STRIPS(CALL, REST, ADVANCE)
#undef CALL
#undef REST
#undef ADVANCE
}

ALWAYS_INLINE void TYPED(combine_strip)(
    const int vectors, ptrdiff_t rows, const REAL *g, const REAL *x, const REAL *factor, const REAL *mean,
    const REAL *slope, const REAL *shift, REAL *out, ptrdiff_t channels)
{
    vec f[4], m[4], s[4], b[4];
    _Pragma("GCC unroll 4") for (int v = 0; v < vectors; v++) f[v] = TYPED(load)(factor + v * LANES),
        m[v] = TYPED(load)(mean + v * LANES), s[v] = TYPED(load)(slope + v * LANES),
        b[v] = TYPED(load)(shift + v * LANES);
    for (; rows > 0; rows--, g += channels, x += channels, out += channels)
        _Pragma("GCC unroll 4") for (int v = 0; v < vectors; v++)
        {
            const vec centered = TYPED(load)(x + v * LANES) - m[v];
            TYPED(store)(out + v * LANES, TYPED(load)(g + v * LANES) * f[v] + (centered * s[v] + b[v]));
        }
}

static void TYPED(combine_rows)(
    ptrdiff_t rows, const REAL *g, const REAL *x, const REAL *factor, const REAL *mean, const REAL *slope,
    const REAL *shift, REAL *out, ptrdiff_t channels)
{
#define CALL(vectors)                                                                                       \
    TYPED(combine_strip)(vectors, few, g + c, x + c, factor + c, mean + c, slope + c, shift + c, out + c, channels)
#define REST(i) out[i] = g[i] * factor[c] + ((x[i] - mean[c]) * slope[c] + shift[c])
#define ADVANCE(step) g += step, x += step, out += step
    IN_STRIPS(CALL, REST, ADVANCE)
#undef CALL
#undef REST
#undef ADVANCE
}

/* The same sums of one run of elements with one mean, and the same maps with one set of constants. Up to
 * FEW_ROWS · RUN_VECTORS vectors are summed in RUN_VECTORS registers, then those, then they are added to doubles:
 * in fewer registers each sum would wait for the one before. */

#define RUN_VECTORS 8

#define RUN_TOTAL(name, arguments, one, many)                                                               \
    static double TYPED(name) arguments                                                                     \
    {                                                                                                       \
        double total[LANES] = {0}, all = 0;                                                                 \
        ptrdiff_t i = 0;                                                                                    \
        while (i + LANES <= count) {                                                                        \
            const ptrdiff_t left = (count - i) / LANES;                                                     \
            ptrdiff_t v = 0, vectors = left < FEW_ROWS * RUN_VECTORS ? left : FEW_ROWS * RUN_VECTORS;       \
            REAL part[LANES];                                                                               \
            vec sum[RUN_VECTORS];                                                                           \
            _Pragma("GCC unroll 8") for (int s = 0; s < RUN_VECTORS; s++) sum[s] = (vec){0};                \
            for (; v + RUN_VECTORS <= vectors; v += RUN_VECTORS)                                            \
                _Pragma("GCC unroll 8") for (int s = 0; s < RUN_VECTORS; s++)                               \
                    sum[s] += many(i + (v + s) * LANES);                                                    \
            for (; v < vectors; v++) sum[0] += many(i + v * LANES);                                         \
            _Pragma("GCC unroll 4") for (int half = RUN_VECTORS / 2; half > 0; half /= 2)                   \
                _Pragma("GCC unroll 4") for (int s = 0; s < half; s++) sum[s] += sum[s + half];             \
            TYPED(store)(part, sum[0]);                                                                     \
            for (int l = 0; l < LANES; l++) total[l] += part[l];                                            \
            i += vectors * LANES;                                                                           \
        }                                                                                                   \
        for (; i < count; i++) all += one(i);                                                               \
        for (int l = 0; l < LANES; l++) all += total[l];                                                    \
        return all;                                                                                         \
    }

#define VALUES(i) TYPED(load)(x + (i))
RUN_TOTAL(run_total, (ptrdiff_t count, const REAL *x), VALUE, VALUES)
#define SQUARES(i) ((TYPED(load)(x + (i)) - center) * (TYPED(load)(x + (i)) - center))
RUN_TOTAL(run_squares, (ptrdiff_t count, const REAL *x, REAL center), SQUARE, SQUARES)
#define PRODUCTS(i) (TYPED(load)(g + (i)) * (TYPED(load)(x + (i)) - center))
RUN_TOTAL(run_products, (ptrdiff_t count, const REAL *g, const REAL *x, REAL center), PRODUCT, PRODUCTS)

/* Σ g · w and Σ g · w · (x − center) */
#define WEIGHTED(i) (g[i] * w[i])
#define WEIGHTEDS(i) (TYPED(load)(g + (i)) * TYPED(load)(w + (i)))
RUN_TOTAL(weighted_total, (ptrdiff_t count, const REAL *g, const REAL *w), WEIGHTED, WEIGHTEDS)
#define WEIGHTED_PRODUCT(i) (WEIGHTED(i) * (x[i] - center))
#define WEIGHTED_PRODUCTS(i) (WEIGHTEDS(i) * (TYPED(load)(x + (i)) - center))
RUN_TOTAL(
    weighted_products, (ptrdiff_t count, const REAL *g, const REAL *w, const REAL *x, REAL center),
    WEIGHTED_PRODUCT, WEIGHTED_PRODUCTS)

/* out = g · w · factor + (x − center) · slope + shift, and what the run adds to the gradients of w and its bias. */
static void TYPED(layer_grad_run)(
    ptrdiff_t count, const REAL *g, const REAL *w, const REAL *x, REAL center, REAL factor, REAL slope, REAL shift,
    REAL *out, REAL *by_weight, REAL *by_bias)
{
    _Pragma("GCC ivdep") for (ptrdiff_t i = 0; i < count; i++)
    {
        const REAL apart = x[i] - center;
        out[i] = WEIGHTED(i) * factor + (apart * slope + shift);
        by_weight[i] += g[i] * (apart * factor);
        by_bias[i] += g[i];
    }
}

static void TYPED(scale_run)(ptrdiff_t count, const REAL *x, REAL mean, REAL scale, REAL shift, REAL *out)
{
    _Pragma("GCC ivdep") for (ptrdiff_t i = 0; i < count; i++) out[i] = (x[i] - mean) * scale + shift;
}

/* The map with a scale and a shift for each element. */
static void TYPED(scale_each)(
    ptrdiff_t count, const REAL *x, REAL mean, REAL factor, const REAL *scale, const REAL *shift, REAL *out)
{
    _Pragma("GCC ivdep") for (ptrdiff_t i = 0; i < count; i++)
        out[i] = (x[i] - mean) * factor * scale[i] + shift[i];
}

static void TYPED(combine_run)(
    ptrdiff_t count, const REAL *g, const REAL *x, REAL factor, REAL mean, REAL slope, REAL shift, REAL *out)
{
    _Pragma("GCC ivdep") for (ptrdiff_t i = 0; i < count; i++)
        out[i] = g[i] * factor + ((x[i] - mean) * slope + shift);
}

#undef RUN_TOTAL
#undef RUN_VECTORS
#undef ADD_FEW_ROWS
#undef IN_FEW_ROWS
#undef IN_STRIPS
#undef VALUE
#undef VALUES
#undef SQUARE
#undef SQUARES
#undef GRADIENT
#undef PRODUCT
#undef PRODUCTS
#undef WEIGHTED
#undef WEIGHTEDS
#undef WEIGHTED_PRODUCT
#undef WEIGHTED_PRODUCTS
#undef MAP_ROWS
#undef BLOCK_AHEAD
#undef SUM_VALUES
#undef SUM_SQUARES
#undef SUM_PRODUCTS
#undef SUM_ROWS
#undef FEW_ROWS
