/* Winograd's variant of Strassen's product, on register tiles. Part of microkernel.h, once for each type. */

#define EACH(...)                                           \
    _Pragma("GCC unroll 16") for (int r = 0; r < rows; r++) \
        _Pragma("GCC unroll 2") for (int j = 0; j < 2; j++) \
            __VA_ARGS__;

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

/* z = x + y, or x − y where `sign` is negative, for `rows` rows of one quarter. */
struct TYPED(strassen_sum)
{
    ptrdiff_t rows;
    const REAL *x, *y;
    REAL *z;
    ptrdiff_t x_pitch, y_pitch, z_pitch;
};

/* M = A·B for s->depth terms. Meanwhile a quarter's sum for the next tile is formed, a vector with each term:
 * what it loads and stores would take as long again by itself, and is hidden behind the multiply–adds. */
ALWAYS_INLINE void TYPED(strassen_product)(
    const int rows, const int sign, const struct strassen *s, const REAL *a, ptrdiff_t a_pitch, const REAL *b,
    struct TYPED(strassen_sum) sum, vec acc[TILE_ROWS][2])
{
    const ptrdiff_t width = 2 * LANES, depth = s->depth;
    const REAL *base[3];
    ptrdiff_t k = 0;
    _Pragma("GCC unroll 3") for (int i = 0; i < 3; i++)
    {
        base[i] = a + 5 * i * a_pitch;
        __asm__("" : "+r"(base[i])); /* as in gemm_tile_sized */
    }
    EACH(acc[r][j] = (vec){0})
    EACH(HOLD(acc[r][j])) /* from loop to loop the sums stay in their registers, where GCC would move them */
    if (sign != 0) {
        for (; sum.rows > 0; sum.rows--) {
            for (const ptrdiff_t end = k + depth / LANES; k < end; k++, b += width) {
                const vec x = TYPED(load)(sum.x), y = TYPED(load)(sum.y);
                TYPED(store)(sum.z, sign > 0 ? x + y : x - y);
                sum.x += LANES;
                sum.y += LANES;
                sum.z += LANES;
                TYPED(gemm_term)(rows, 2, base, a_pitch, k, b, width, acc);
            }
            sum.x += sum.x_pitch - depth;
            sum.y += sum.y_pitch - depth;
            sum.z += sum.z_pitch - depth;
        }
        EACH(HOLD(acc[r][j]))
    }
    for (; k < depth; k++, b += width)
        TYPED(gemm_term)(rows, 2, base, a_pitch, k, b, width, acc);
    EACH(HOLD(acc[r][j]))
}

/* u = M + v; v may be NULL, or u. */
ALWAYS_INLINE void TYPED(strassen_keep)(const int rows, vec acc[TILE_ROWS][2], const REAL *v, REAL *u)
{
    EACH(TYPED(store)(u + (2 * r + j) * LANES, v ? acc[r][j] + TYPED(load)(v + (2 * r + j) * LANES) : acc[r][j]))
}

/* c = M + u + bias (+ c, where `added`), rectified on demand; bias may be NULL. */
ALWAYS_INLINE void TYPED(strassen_store)(
    const int rows, vec acc[TILE_ROWS][2], const struct strassen *s, const REAL *bias, const REAL *u, REAL *c)
{
    static const REAL zeros[2 * LANES];
    const REAL *shift = bias ? bias : zeros, *old = s->added ? c : zeros;
    const ptrdiff_t old_pitch = s->added ? s->c_pitch : 0;
    const vec least = TYPED(broadcast)(s->rectified ? 0 : -INFINITY);
    const vec offset[2] = {TYPED(load)(shift), TYPED(load)(shift + LANES)};
    if (!s->added && !s->rectified) {
        EACH({
            const vec sum = acc[r][j] + TYPED(load)(u + (2 * r + j) * LANES) + offset[j];
            TYPED(store)(c + r * s->c_pitch + j * LANES, sum);
        })
    } else {
        EACH({
            const vec sum = acc[r][j] + TYPED(load)(u + (2 * r + j) * LANES) + offset[j]
                            + TYPED(load)(old + r * old_pitch + j * LANES);
            TYPED(store)(c + r * s->c_pitch + j * LANES, (vec)((vec_mask)sum & ~(sum < least)));
        })
    }
}

/* The tile with its row count known to the compiler. */
ALWAYS_INLINE void TYPED(strassen_tile_sized)(
    const int rows, const struct strassen *s, const REAL *top, const REAL *bottom, REAL *sums, const REAL *b,
    const REAL *left_bias, const REAL *right_bias, REAL *const c[4], ptrdiff_t next)
{
    const ptrdiff_t a = s->a_pitch, p = s->s_pitch, product = s->product;
    const REAL *a11 = top + rows * a, *a21 = bottom + rows * a; /* the next tile's */
    REAL *s1 = sums + rows * p, *s2 = s1 + s->s_next, *s3 = s2 + s->s_next, *s4 = s3 + s->s_next;
    REAL u[TILE_ROWS * 2 * LANES] __attribute__((aligned(VECTOR_BYTES)));
    REAL v[TILE_ROWS * 2 * LANES] __attribute__((aligned(VECTOR_BYTES)));
    const struct TYPED(strassen_sum) sum1 = {next, a21, a21 + s->second, s1, a, a, p};
    const struct TYPED(strassen_sum) sum2 = {next, s1, a11, s2, p, a, p}, sum3 = {next, a11, a21, s3, a, a, p};
    const struct TYPED(strassen_sum) sum4 = {next, a11 + s->second, s2, s4, a, p, p};
    vec acc[TILE_ROWS][2];
    TYPED(strassen_product)(rows, 1, s, top, a, b, sum1, acc);
    TYPED(strassen_keep)(rows, acc, NULL, u);
    TYPED(strassen_product)(rows, -1, s, top + s->second, a, b + product, sum2, acc);
    TYPED(strassen_store)(rows, acc, s, left_bias, u, c[0]);
    TYPED(strassen_product)(rows, -1, s, sums + s->s_next, p, b + 2 * product, sum3, acc);
    TYPED(strassen_keep)(rows, acc, u, u);
    TYPED(strassen_product)(rows, -1, s, sums + 2 * s->s_next, p, b + 3 * product, sum4, acc);
    TYPED(strassen_keep)(rows, acc, u, v);
    TYPED(strassen_product)(rows, 0, s, bottom + s->second, a, b + 4 * product, sum1, acc);
    TYPED(strassen_store)(rows, acc, s, left_bias, v, c[1]);
    TYPED(strassen_product)(rows, 0, s, sums, p, b + 5 * product, sum1, acc);
    TYPED(strassen_keep)(rows, acc, u, u);
    TYPED(strassen_store)(rows, acc, s, right_bias, v, c[2]);
    TYPED(strassen_product)(rows, 0, s, sums + 3 * s->s_next, p, b + 6 * product, sum1, acc);
    TYPED(strassen_store)(rows, acc, s, right_bias, u, c[3]);
}

/* The seven products of a tile of pixels with a pair of panels, `product` elements apart in `b`:
 *
 *     u = A₁₁B₁₁    C₁₁ = A₁₂B₂₁ + u    u = S₂T₂ + u    v = S₃T₃ + u    C₂₁ = v − A₂₂T₄
 *     M = S₁T₁    u = M + u    C₂₂ = M + v    C₁₂ = S₄B₂₂ + u
 *
 * Each product begins with zero and is added at its end: a sum that goes on in its registers after they were
 * stored, or begins with values from memory, waits for them, 20 cycles each. `c` is C₁₁, C₂₁, C₂₂, C₁₂. Meanwhile
 * the sums of the `next` rows of A are formed; where that is not 0, whole vectors must make up s->depth. */
static void TYPED(strassen_tile)(
    int rows, const struct strassen *s, const REAL *top, const REAL *bottom, REAL *sums, const REAL *b,
    const REAL *left_bias, const REAL *right_bias, REAL *const c[4], ptrdiff_t next)
{
#define CASE(r)                                                                                            \
    case r:                                                                                                \
        TYPED(strassen_tile_sized)(r, s, top, bottom, sums, b, left_bias, right_bias, c, next);            \
        return;
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if TILE_ROWS > 6
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
#endif
    }
#undef CASE
}
#undef EACH
