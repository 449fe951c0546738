/* The exponential function, and softmax over rows too long to be kept; microkernel.h includes this once for
 * each element type. */

#if !defined(INVERSE_FACTORIALS) /* shared by both element types */
#define INVERSE_FACTORIALS 14
static const double inverse_factorial[INVERSE_FACTORIALS] = {
    1., 1., 1. / 2, 1. / 6, 1. / 24, 1. / 120, 1. / 720, 1. / 5040, 1. / 40320, 1. / 362880, 1. / 3628800,
    1. / 39916800, 1. / 479001600, 1. / 6227020800.};
static const float exponential_terms[] = {
    1.f, 1.f, 0.4999999403953552f, 0.1666652113199234f, 0.04166838899254799f, 0.00836874544620514f,
    0.0013814540579915047f};
#endif

#define SINGLE (sizeof(REAL) == 4)
#define MANTISSA (SINGLE ? 23 : 52)
ALWAYS_INLINE vec TYPED(select)(vec_mask where, vec a, vec b)
{
    return (vec)(((vec_mask)a & where) | ((vec_mask)b & ~where));
}

/* y · 2ⁿ with the sum n + 1.5 · 2^MANTISSA as it was rounded: n stands in its lowest bits. For y > 0 whose result
 * is neither subnormal nor infinite, but with AVX-512 any. */
ALWAYS_INLINE vec TYPED(times_power)(vec y, vec n, vec shifted)
{
#if defined(__AVX512F__)
    (void)shifted;
    return SINGLE ? (vec)_mm512_scalef_ps((__m512)y, (__m512)n) : (vec)_mm512_scalef_pd((__m512d)y, (__m512d)n);
#else
    (void)n;
    return (vec)((vec_mask)y + ((vec_mask)shifted << MANTISSA));
#endif
}

/* v, or the nearest number from low to high; NaN stays NaN. */
ALWAYS_INLINE vec TYPED(within)(vec v, REAL low, REAL high)
{
    const vec least = TYPED(broadcast)(low), most = TYPED(broadcast)(high);
#if defined(__AVX512F__) /* these take the second of two that cannot be compared */
    return SINGLE ? (vec)_mm512_max_ps((__m512)least, _mm512_min_ps((__m512)most, (__m512)v))
                  : (vec)_mm512_max_pd((__m512d)least, _mm512_min_pd((__m512d)most, (__m512d)v));
#else
    return TYPED(select)(v < least, least, TYPED(select)(v > most, most, v));
#endif
}

/* exp(v), element by element, within 2 units in the last place; subnormal results may be 0, NaN stays NaN.
 *
 *     exp(v) = 2ⁿ · exp(r),   n = round(v / ln 2),   r = v − n · ln 2,   |r| ≤ ln 2 / 2
 *
 * exp(r) by 1 + r + …, fitted at Chebyshev's points, to r⁶ (float32, error 3e-9), or by Taylor's series to r¹³
 * (float64, 4e-18). Adding 1.5 · 2^MANTISSA leaves n in the lowest bits of the sum; ln 2 is split in two, so that n
 * times its leading part is exact. */
ALWAYS_INLINE vec TYPED(exponential)(vec v)
{
    const REAL shift = SINGLE ? 0x1.8p23 : 0x1.8p52;
    const REAL ln2_high = SINGLE ? 0x1.63p-1 : 0x1.62e42fefp-1;
    const REAL ln2_low = SINGLE ? -0x1.bd0105c610ca8p-13 : 0x1.473de6af278edp-34;
    const int degree = SINGLE ? 6 : 13;
#if defined(__AVX512F__) /* beyond these bounds the scaled result is 0 or infinite of itself */
    const vec bounded = TYPED(within)(v, SINGLE ? -104 : -746, SINGLE ? 89 : 710);
#else
    const vec bounded = v;
#endif
    const vec shifted = bounded * TYPED(broadcast)((REAL)0x1.71547652b82fep0) + TYPED(broadcast)(shift);
    const vec n = shifted - TYPED(broadcast)(shift);
    const vec r = (bounded - n * TYPED(broadcast)(ln2_high)) - n * TYPED(broadcast)(ln2_low);
    vec y = TYPED(broadcast)(SINGLE ? exponential_terms[degree] : (REAL)inverse_factorial[degree]);
    _Pragma("GCC unroll 16") for (int i = degree - 1; i >= 0; i--)
        y = y * r + TYPED(broadcast)(SINGLE ? exponential_terms[i] : (REAL)inverse_factorial[i]);
    y = TYPED(times_power)(y, n, shifted);
#if !defined(__AVX512F__)
    const REAL lowest = SINGLE ? -0x1.5d589ep6 : -0x1.6232bdd7abcd2p9; /* log of the smallest normal number */
    const REAL highest = SINGLE ? 0x1.62e42ep6 : 0x1.62e42fefa39efp9;  /* log of the largest */
    y = (vec)((vec_mask)y & ~(v < TYPED(broadcast)(lowest)));
    y = TYPED(select)(v > TYPED(broadcast)(highest), TYPED(broadcast)((REAL)INFINITY), y);
    y = TYPED(select)(v != v, v, y);
#endif
    return y;
}

static void TYPED(exponentials)(const REAL *v, ptrdiff_t count, REAL *y)
{
    for (ptrdiff_t i = 0; i < count; i += LANES) {
        REAL whole[LANES] = {0};
        const ptrdiff_t run = count - i < LANES ? count - i : LANES;
        memcpy(whole, v + i, run * sizeof(REAL));
        TYPED(store)(whole, TYPED(exponential)(TYPED(load)(whole)));
        memcpy(y + i, whole, run * sizeof(REAL));
    }
}

/* The next block of columns of a softmax, row by row, where s holds the scores of the block:
 *
 *     m' = max(m, max_j s_j),   s_j ← exp(s_j − m'),   total ← total · exp(m − m') + Σ_j s_j,
 *     o ← o · exp(m − m')
 *
 * o being what the rows of the earlier blocks have been multiplied to. Columns up to the next whole vector
 * are written (0), `o_columns` are whole vectors. */
static void TYPED(softmax_block)(
    ptrdiff_t rows, ptrdiff_t columns, REAL *s, ptrdiff_t s_stride, REAL *largest, REAL *total, REAL *o,
    ptrdiff_t o_columns)
{
    for (ptrdiff_t row = 0; row < rows; row++, s += s_stride, o += o_columns) {
        for (ptrdiff_t c = columns; c % LANES; c++) s[c] = -INFINITY;
        vec high = TYPED(broadcast)(largest[row]), sum = {0};
        for (ptrdiff_t c = 0; c < columns; c += LANES) {
            const vec v = TYPED(load)(s + c);
            high = TYPED(select)(v > high, v, high);
        }
        REAL most = high[0];
        for (int i = 1; i < LANES; i++) most = high[i] > most ? high[i] : most;
        for (ptrdiff_t c = 0; c < columns; c += LANES) {
            const vec p = TYPED(exponential)(TYPED(load)(s + c) - TYPED(broadcast)(most));
            TYPED(store)(s + c, p);
            sum += p;
        }
        const vec factor = TYPED(exponential)(TYPED(broadcast)(largest[row] - most));
        REAL part = 0;
        for (int i = 0; i < LANES; i++) part += sum[i];
        total[row] = total[row] * factor[0] + part;
        if (largest[row] != most) {
            largest[row] = most;
            for (ptrdiff_t c = 0; c < o_columns; c += LANES) TYPED(store)(o + c, TYPED(load)(o + c) * factor);
        }
    }
}

/* The softmax and its gradient again from scores s, the logarithms `log_sum` of its denominators, the
 * gradients g of its results and their means `mean`, Σ_j p_j g_j:
 *
 *     s ← p = exp(s − log_sum),   g ← p · (g − mean)
 *
 * Softmax was taken along the columns, and both are given for each row; or, `by_column`, along the rows. */
static void TYPED(softmax_grad_block)(
    ptrdiff_t rows, ptrdiff_t columns, REAL *s, REAL *g, ptrdiff_t stride, const REAL *log_sum,
    const REAL *mean, int by_column)
{
    for (ptrdiff_t row = 0; row < rows; row++, s += stride, g += stride)
        for (ptrdiff_t c = 0; c < columns; c += LANES) {
            const vec l = by_column ? TYPED(load)(log_sum + c) : TYPED(broadcast)(log_sum[row]);
            const vec m = by_column ? TYPED(load)(mean + c) : TYPED(broadcast)(mean[row]);
            const vec p = TYPED(exponential)(TYPED(load)(s + c) - l);
            TYPED(store)(s + c, p);
            TYPED(store)(g + c, p * (TYPED(load)(g + c) - m));
        }
}

#undef SINGLE
#undef MANTISSA
