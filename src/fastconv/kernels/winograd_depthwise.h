/* Winograd's F(4, 4) along the rows of a depthwise convolution; microkernel.h includes this once for each type.
 *
 *   depthwise_transform   a row of the input, tile by tile
 *   depthwise_products    a row of outputs from the transformed rows that its windows meet
 *
 * A kernel row is cut into blocks of four taps, and tiles are as far apart as blocks: block b of tile t reads what
 * block 0 of tile t + b reads, so that a row is transformed once, for all blocks and all kernel rows. The points are
 * ±1/2, ±1, ±2 and ∞. With r(t) = (t − 1/4)(t − 1)(t − 4) = t³ − 21/4 t² + 21/4 t − 1 and q_a(t) = r(t) / (t − a²),
 * V at ±a is x q_a(x²) ± a q_a(x²), at ∞ it is r(x²), of the seven pixels x⁰ … x⁶:
 *
 *     q_½ = (t − 1)(t − 4)    q_1 = t² − 17/4 t + 1    q_2 = (t − 1)(t − 1/4)
 *
 * At ±1/2 twice as much is taken, and half of the weights. The last block has fewer taps and nothing at ∞.
 *
 * A store takes the place of two multiply–adds on Zen 5, an addition of none. So differences are written as such, and
 * what is multiplied stays in registers until it is transformed back. */

#ifndef DEPTHWISE_POINTS
#define DEPTHWISE_POINTS 7
#define DEPTHWISE_TILE 4
/* Tiles side by side, whose products are in registers, by the blocks of a row. */
#if defined(__AVX512F__)
#define DEPTHWISE_ABREAST(blocks) ((blocks) == 2 ? 4 : 3)
#define DEPTHWISE_MOST 4
#else
#define DEPTHWISE_ABREAST(blocks) 2
#define DEPTHWISE_MOST 2
#endif
#endif
#define V_TILE (DEPTHWISE_POINTS * LANES)

ALWAYS_INLINE void TYPED(depthwise_transform_tile)(const vec *x, REAL *v)
{
    const vec odd_low = x[3] - x[1], odd_high = x[5] - x[3], even_low = x[2] - x[0], even_high = x[4] - x[2];
    vec odd = odd_high - 4 * odd_low, even = even_high - 4 * even_low;
    TYPED(store)(v, odd + odd + even);
    TYPED(store)(v + LANES, odd + odd - even);
    odd = x[5] + x[1] - (REAL)4.25 * x[3], even = x[4] + x[0] - (REAL)4.25 * x[2];
    TYPED(store)(v + 2 * LANES, odd + even);
    TYPED(store)(v + 3 * LANES, odd - even);
    odd = odd_high - (REAL)0.25 * odd_low, even = even_high - (REAL)0.25 * even_low;
    TYPED(store)(v + 4 * LANES, odd + (even + even));
    TYPED(store)(v + 5 * LANES, odd - (even + even));
    TYPED(store)(v + 6 * LANES, x[6] - x[0] - (REAL)5.25 * even_high);
}

/* The first tile begins at pixel `left` of the row, whose pixel 0 is at `a`. A tile's last three pixels are the next
 * one's first, and stay in registers: where vectors cross cache lines, a load takes twice as long. */
static void TYPED(depthwise_transform)(
    const struct depthwise_row *s, ptrdiff_t tiles, ptrdiff_t left, const REAL *a, REAL *v)
{
    vec x[DEPTHWISE_POINTS];
#define PIXEL(inside, i) (inside || (left + i >= 0 && left + i < s->width) ? TYPED(load)(a + (i) * s->a_pixel) : (vec){0})
    a += left * s->a_pixel;
    _Pragma("GCC unroll 3") for (int i = 0; i < 3; i++) x[i] = PIXEL(0, i);
    for (ptrdiff_t t = 0; t < tiles; t++, v += V_TILE, left += DEPTHWISE_TILE, a += DEPTHWISE_TILE * s->a_pixel) {
        if (left + 3 >= 0 && left + DEPTHWISE_POINTS <= s->width)
            _Pragma("GCC unroll 4") for (int i = 3; i < DEPTHWISE_POINTS; i++)
            {
                x[i] = PIXEL(1, i);
                __builtin_prefetch(a + s->a_row + i * s->a_pixel);
            }
        else
            _Pragma("GCC unroll 4") for (int i = 3; i < DEPTHWISE_POINTS; i++) x[i] = PIXEL(0, i);
        _Pragma("GCC unroll 4") for (int i = 3; i < DEPTHWISE_POINTS; i++) HOLD(x[i]);
        TYPED(depthwise_transform_tile)(x, v);
        _Pragma("GCC unroll 3") for (int i = 0; i < 3; i++) x[i] = x[i + DEPTHWISE_TILE];
    }
#undef PIXEL
}

ALWAYS_INLINE void TYPED(depthwise_out)(const struct depthwise_row *s, vec sum, REAL *y)
{
    if (s->accumulate)
        sum += TYPED(load)(y);
    TYPED(store)(y, s->rectified ? TYPED(rectify)(sum) : sum);
}

/* M = Σ_i Σ_b U_ib ⊙ V_i of tile t + b, in registers for all points of some tiles; then
 *
 *     Y_k = Σ_a a^k (M_a + (−1)^k M_−a), and M_∞ with the last
 *
 * The bias begins the sums at the point 1, which every output has once. The sums and differences of a tile are held
 * in registers, so that its M are free before the next tile's: GCC would store them all. */
ALWAYS_INLINE void TYPED(depthwise_products_tiles)(
    const int blocks, const int tiles, const REAL *const *row, ptrdiff_t first, ptrdiff_t last, ptrdiff_t offset,
    const REAL *u, const REAL *bias_at, REAL *y, ptrdiff_t pitch)
{
    const ptrdiff_t u_row = (DEPTHWISE_POINTS * blocks - 1) * LANES;
    const vec bias = TYPED(load)(bias_at);
    vec m[DEPTHWISE_POINTS][DEPTHWISE_MOST];
    _Pragma("GCC unroll 7") for (int p = 0; p < DEPTHWISE_POINTS; p++)
        _Pragma("GCC unroll 4") for (int t = 0; t < tiles; t++) m[p][t] = p == 2 ? bias : (vec){0};
    u += first * u_row;
    for (ptrdiff_t i = first; i < last; i++, u += u_row) {
        const REAL *v = row[i] + offset;
        __asm__("" : "+r"(v)); /* keeps GCC from holding an address for every load */
        _Pragma("GCC unroll 7") for (int p = 0; p < DEPTHWISE_POINTS; p++)
        {
            const int present = p == DEPTHWISE_POINTS - 1 ? blocks - 1 : blocks;
            vec weight[3];
            _Pragma("GCC unroll 3") for (int b = 0; b < present; b++)
            {
                weight[b] = TYPED(load)(u + (p * blocks + b) * LANES);
                if (DEPTHWISE_MOST == 4)
                    HOLD(weight[b]);
            }
            _Pragma("GCC unroll 6") for (int q = 0; q < tiles + present - 1; q++)
            {
                vec x = TYPED(load)(v + q * V_TILE + p * LANES);
                HOLD(x);
                _Pragma("GCC unroll 3") for (int b = 0; b < present; b++)
                    if (q >= b && q - b < tiles)
                        m[p][q - b] += weight[b] * x;
            }
        }
    }
    _Pragma("GCC unroll 4") for (int t = 0; t < tiles; t++, y += DEPTHWISE_TILE * pitch)
    {
        vec even = m[0][t] + m[1][t], odd = m[0][t] - m[1][t];
        vec even_one = m[2][t] + m[3][t], odd_one = m[2][t] - m[3][t];
        vec even_two = m[4][t] + m[5][t], odd_two = m[4][t] - m[5][t];
        HOLD(even);
        HOLD(odd);
        HOLD(even_one);
        HOLD(odd_one);
        HOLD(even_two);
        HOLD(odd_two);
        TYPED(store)(y, even_one + even + even_two);
        TYPED(store)(y + pitch, odd_one + (REAL)0.5 * odd + 2 * odd_two);
        TYPED(store)(y + 2 * pitch, even_one + (REAL)0.25 * even + 4 * even_two);
        TYPED(store)(y + 3 * pitch, odd_one + m[6][t] + (REAL)0.125 * odd + 8 * odd_two);
    }
}

#define PRODUCTS(blocks, tiles)                                                                              \
    static __attribute__((noinline)) void TYPED(depthwise_products_##blocks##_##tiles)(                      \
        const REAL *const *row, ptrdiff_t first, ptrdiff_t last, ptrdiff_t offset, const REAL *u,            \
        const REAL *bias, REAL *y, ptrdiff_t pitch)                                                          \
    {                                                                                                        \
        TYPED(depthwise_products_tiles)(blocks, tiles, row, first, last, offset, u, bias, y, pitch);         \
    }
PRODUCTS(2, 1) PRODUCTS(2, 2) PRODUCTS(3, 1) PRODUCTS(3, 2)
#if DEPTHWISE_MOST == 4
PRODUCTS(2, 3) PRODUCTS(2, 4) PRODUCTS(3, 3)
#endif
#undef PRODUCTS

/* `count` pixels of outputs in so many tiles. row[i] holds the transformed row that kernel row i meets, for the rows
 * first ≤ i < last that lie in the image; u has the weights of kernel row after kernel row, point after point, block
 * after block. */
static void TYPED(depthwise_products)(
    const struct depthwise_row *s, ptrdiff_t blocks, ptrdiff_t tiles, const REAL *const *row, ptrdiff_t first,
    ptrdiff_t last, const REAL *u, const REAL *bias, ptrdiff_t count, REAL *y)
{
    const ptrdiff_t most = DEPTHWISE_ABREAST(blocks);
    vec block[DEPTHWISE_MOST * DEPTHWISE_TILE];
    for (ptrdiff_t t = 0, run; t < tiles; t += run) {
        const ptrdiff_t runs = (tiles - t + most - 1) / most, offset = t * V_TILE;
        const ptrdiff_t left = count - t * DEPTHWISE_TILE;
        REAL *to = y + t * DEPTHWISE_TILE * s->y_pixel;
        run = (tiles - t + runs - 1) / runs;
        const int as_it_is = left >= DEPTHWISE_TILE * run && !s->accumulate && !s->rectified;
        REAL *at = as_it_is ? to : (REAL *)block;
        const ptrdiff_t pitch = as_it_is ? s->y_pixel : LANES;
#define CASE(blocks, tiles)                                                                                  \
    case 8 * blocks + tiles:                                                                                 \
        TYPED(depthwise_products_##blocks##_##tiles)(row, first, last, offset, u, bias, at, pitch);          \
        break;
        switch (8 * blocks + run) {
            CASE(2, 1) CASE(2, 2) CASE(3, 1) CASE(3, 2)
#if DEPTHWISE_MOST == 4
            CASE(2, 3) CASE(2, 4) CASE(3, 3)
#endif
        }
#undef CASE
        for (ptrdiff_t k = 0; !as_it_is && k < left && k < DEPTHWISE_TILE * run; k++)
            TYPED(depthwise_out)(s, block[k], to + k * s->y_pixel);
    }
}

#undef V_TILE
