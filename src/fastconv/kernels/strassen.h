/* Winograd's variant of Strassen's product, on register tiles. Part of microkernel.h, once for each type. */

/* The sums of A's quarters, each [rows][half] with pixels `s_pitch` and sums `s_next` elements apart:
 *
 *     S₁ = A₂₁ + A₂₂    S₂ = S₁ − A₁₁    S₃ = A₁₁ − A₂₁    S₄ = A₁₂ − S₂
 *
 * A₁₁ begins at `top`, A₂₁ at `bottom`, and those of the second half of the channels `second` elements on. */
static void TYPED(strassen_sums)(
    ptrdiff_t rows, ptrdiff_t half, const REAL *top, const REAL *bottom, ptrdiff_t a_pitch, ptrdiff_t second,
    REAL *s, ptrdiff_t s_pitch, ptrdiff_t s_next)
{
    for (ptrdiff_t r = 0; r < rows; r++, top += a_pitch, bottom += a_pitch, s += s_pitch) {
        ptrdiff_t k = 0;
        for (; k + LANES <= half; k += LANES) {
            const vec a11 = TYPED(load)(top + k), a21 = TYPED(load)(bottom + k);
            const vec s1 = a21 + TYPED(load)(bottom + second + k), s2 = s1 - a11;
            TYPED(store)(s + k, s1);
            TYPED(store)(s + s_next + k, s2);
            TYPED(store)(s + 2 * s_next + k, a11 - a21);
            TYPED(store)(s + 3 * s_next + k, TYPED(load)(top + second + k) - s2);
        }
        for (; k < half; k++) {
            const REAL s1 = bottom[k] + bottom[second + k], s2 = s1 - top[k];
            s[k] = s1;
            s[s_next + k] = s2;
            s[2 * s_next + k] = top[k] - bottom[k];
            s[3 * s_next + k] = top[second + k] - s2;
        }
    }
}

/* The tile below with its row count known to the compiler. */
ALWAYS_INLINE void TYPED(strassen_tile_sized)(
    const int rows, const REAL *a, ptrdiff_t a_stride, ptrdiff_t depth, const REAL *b, const REAL *bias,
    const REAL *from, REAL *to, ptrdiff_t to_stride, REAL *also, int added, int rectified)
{
    const ptrdiff_t width = 2 * LANES, first = depth < rows ? depth : rows;
    const REAL *base[3];
    vec acc[TILE_ROWS][2];
    _Pragma("GCC unroll 16") for (int r = 0; r < rows; r++)
        _Pragma("GCC unroll 2") for (int v = 0; v < 2; v++)
            acc[r][v] = bias ? TYPED(load)(bias + v * LANES) : (vec){0};
    _Pragma("GCC unroll 3") for (int i = 0; i < 3; i++)
    {
        base[i] = a + 5 * i * a_stride;
        __asm__("" : "+r"(base[i])); /* as in gemm_tile_sized */
    }
    TYPED(gemm_terms)(rows, 2, 1, base, a_stride, 0, first, b, width, to, to_stride, acc);
    TYPED(gemm_terms)(rows, 2, 0, base, a_stride, first, depth, b + first * width, width, to, to_stride, acc);
    _Pragma("GCC unroll 16") for (int r = 0; r < rows; r++)
        _Pragma("GCC unroll 2") for (int v = 0; v < 2; v++)
        {
            const ptrdiff_t at = r * width + v * LANES;
            REAL *target = to + r * to_stride + v * LANES;
            vec sum = acc[r][v];
            if (also)
                TYPED(store)(also + at, TYPED(load)(also + at) + sum);
            if (from)
                sum += TYPED(load)(from + at);
            if (added)
                sum += TYPED(load)(target);
            TYPED(store)(target, rectified ? TYPED(rectify)(sum) : sum);
        }
}

/* M = bias + A · B for `rows` rows, `depth` terms and a panel's columns, which goes to two places:
 *
 *     also += M    to = M + from (+ to, where `added`), rectified on demand
 *
 * `from` and `also` have rows of a panel; either may be NULL, and so may `bias`. */
static void TYPED(strassen_tile)(
    int rows, const REAL *a, ptrdiff_t a_stride, ptrdiff_t depth, const REAL *b, const REAL *bias,
    const REAL *from, REAL *to, ptrdiff_t to_stride, REAL *also, int added, int rectified)
{
#define CASE(r)                                                                                               \
    case r:                                                                                                   \
        TYPED(strassen_tile_sized)(r, a, a_stride, depth, b, bias, from, to, to_stride, also, added, rectified); \
        return;
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if TILE_ROWS > 6
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
#endif
    }
#undef CASE
}
