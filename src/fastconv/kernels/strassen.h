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

/* s->depth terms more. Meanwhile a part of the next product's panel is brought, where `ahead` is not negative, or
 * else the rows of C that the sum will go to, as in gemm_tile. */
ALWAYS_INLINE void TYPED(strassen_terms)(
    const int rows, const struct strassen *s, ptrdiff_t ahead, const REAL *a, ptrdiff_t a_pitch, const REAL *b,
    const REAL *c, vec acc[TILE_ROWS][2])
{
    const ptrdiff_t width = 2 * LANES, depth = s->depth, first = depth < rows ? depth : rows;
    const REAL *base[3];
    _Pragma("GCC unroll 3") for (int i = 0; i < 3; i++)
    {
        base[i] = a + 5 * i * a_pitch;
        __asm__("" : "+r"(base[i])); /* as in gemm_tile_sized */
    }
    if (ahead >= 0) {
        TYPED(gemm_terms)(rows, 2, 1, base, a_pitch, 0, depth, b, width, b + s->product + ahead, LANES, acc);
        return;
    }
    TYPED(gemm_terms)(rows, 2, 1, base, a_pitch, 0, first, b, width, c, s->c_pitch, acc);
    TYPED(gemm_terms)(rows, 2, 0, base, a_pitch, first, depth, b + first * width, width, c, s->c_pitch, acc);
}

/* c = M + bias + u (+ c, where `added`), rectified on demand; bias and u may be NULL. */
ALWAYS_INLINE void TYPED(strassen_store)(
    const int rows, vec acc[TILE_ROWS][2], const struct strassen *s, const REAL *bias, const REAL *u, REAL *c)
{
    _Pragma("GCC unroll 16") for (int r = 0; r < rows; r++)
        _Pragma("GCC unroll 2") for (int v = 0; v < 2; v++)
        {
            REAL *at = c + r * s->c_pitch + v * LANES;
            vec sum = acc[r][v];
            if (u)
                sum += TYPED(load)(u + (2 * r + v) * LANES);
            if (bias)
                sum += TYPED(load)(bias + v * LANES);
            if (s->added)
                sum += TYPED(load)(at);
            TYPED(store)(at, s->rectified ? TYPED(rectify)(sum) : sum);
        }
}

/* A chain with its row count known to the compiler. */
ALWAYS_INLINE void TYPED(strassen_tile_sized)(
    const int rows, int chain, const struct strassen *s, ptrdiff_t ahead, const REAL *const a[3],
    const REAL *b, const REAL *bias, REAL *const c[2], REAL *u, REAL *v)
{
    vec acc[TILE_ROWS][2];
#define EACH(statement)                                                                            \
    _Pragma("GCC unroll 16") for (int r = 0; r < rows; r++)                                        \
        _Pragma("GCC unroll 2") for (int j = 0; j < 2; j++)                                        \
    statement;
    if (chain == 0) {
        EACH(acc[r][j] = (vec){0})
        TYPED(strassen_terms)(rows, s, ahead, a[0], s->a_pitch, b, c[0], acc);
        EACH(TYPED(store)(u + (2 * r + j) * LANES, acc[r][j]))
        TYPED(strassen_terms)(rows, s, ahead, a[1], s->a_pitch, b + s->product, c[0], acc);
        TYPED(strassen_store)(rows, acc, s, bias, NULL, c[0]);
    } else if (chain == 1) {
        EACH(acc[r][j] = TYPED(load)(u + (2 * r + j) * LANES))
        TYPED(strassen_terms)(rows, s, ahead, a[0], s->s_pitch, b, c[0], acc);
        EACH(TYPED(store)(u + (2 * r + j) * LANES, acc[r][j]))
        TYPED(strassen_terms)(rows, s, ahead, a[1], s->s_pitch, b + s->product, c[0], acc);
        EACH(TYPED(store)(v + (2 * r + j) * LANES, acc[r][j]))
        TYPED(strassen_terms)(rows, s, ahead, a[2], s->a_pitch, b + 2 * s->product, c[0], acc);
        TYPED(strassen_store)(rows, acc, s, bias, NULL, c[0]);
    } else {
        EACH(acc[r][j] = (vec){0})
        TYPED(strassen_terms)(rows, s, ahead, a[0], s->s_pitch, b, c[0], acc);
        TYPED(strassen_store)(rows, acc, s, bias, v, c[0]);
        TYPED(strassen_terms)(rows, s, ahead, a[1], s->s_pitch, b + s->product, c[1], acc);
        TYPED(strassen_store)(rows, acc, s, bias, u, c[1]);
    }
#undef EACH
}

/* One of the three chains of products, which a tile's sums go through without leaving the registers:
 *
 *     0    u = A₁₁B₁₁    C₁₁ = u + A₁₂B₂₁
 *     1    u = u + S₂T₂    v = u + S₃T₃    C₂₁ = v − A₂₂T₄
 *     2    C₂₂ = v + S₁T₁    C₁₂ = u + S₁T₁ + S₄B₂₂
 *
 * `a` and `c` are in the order of their use, products `product` elements apart in `b`. While it sums, memory
 * fetches each next product from `ahead` elements on, unless that is negative. */
static void TYPED(strassen_tile)(
    int rows, int chain, const struct strassen *s, ptrdiff_t ahead, const REAL *const a[3], const REAL *b,
    const REAL *bias, REAL *const c[2], REAL *u, REAL *v)
{
#define CASE(r)                                                                 \
    case r:                                                                     \
        TYPED(strassen_tile_sized)(r, chain, s, ahead, a, b, bias, c, u, v);           \
        return;
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if TILE_ROWS > 6
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
#endif
    }
#undef CASE
}
