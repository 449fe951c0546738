/* Winograd's products where weights come from far: microkernel.h includes this once for each element type.
 *
 * The weights of F(·, F(4, 3)) are transformed along one axis only, G_h g: three matrices for the six of G_h g G_wᵀ, so
 * half as many bytes for the same products. The other axis is transformed as they come. With points 0, ±a, ±2a, ∞ and
 * u₀ = g₀, u₁ = a g₁, u₂ = a² g₂ its rows are, but for a factor that the sums are multiplied with in the end,
 *     0: u₀,   ±a: u₀ + u₂ ± u₁,   ±2a: u₀ + 4 u₂ ± 2 u₁,   ∞: u₂:
 * six additions and one multiplication for the products with all tiles, which are summed at once. */

#ifndef HALF_POINTS
#define HALF_POINTS 6
#define HALF_TAPS 3
#define HALF_AHEAD 64 /* rows of weights that are asked for ahead of their use */
#if defined(__AVX512F__)
#define HALF_TILES 4 /* at a time: 6 · 4 accumulators, three weights and what is made of them */
#define HALF_HOLD(vector) HOLD(vector)
#else
#define HALF_TILES 2 /* 6 · 2 of 16 registers: weights are loaded again where they are used */
#define HALF_HOLD(vector) (void)(vector)
#endif
#endif

/* acc[t] += V[t] u for a point's weights u. */
ALWAYS_INLINE void TYPED(winograd_half_point)(
    const int tiles, const REAL *v, ptrdiff_t v_tile, vec u, vec acc[HALF_TILES])
{
    HOLD(u);
    _Pragma("GCC unroll 4") for (int t = 0; t < tiles; t++) acc[t] += TYPED(broadcast)(v[t * v_tile]) * u;
}

ALWAYS_INLINE void TYPED(winograd_half_sized)(
    const int tiles, const REAL *v, ptrdiff_t v_position, ptrdiff_t v_tile, ptrdiff_t terms, const REAL *w,
    const REAL *scale, REAL *m, ptrdiff_t m_position, ptrdiff_t m_tile, int start)
{
    vec acc[HALF_POINTS][HALF_TILES] = {{{0}}};
    const REAL *base[HALF_POINTS];
    _Pragma("GCC unroll 6") for (int i = 0; i < HALF_POINTS; i++)
    {
        base[i] = v + i * v_position;
        __asm__("" : "+r"(base[i])); /* keeps GCC from an address for each position of each tile */
    }
    for (ptrdiff_t k = 0; k < terms; k++, w += HALF_TAPS * LANES) {
        vec u[HALF_TAPS];
        _Pragma("GCC unroll 3") for (int j = 0; j < HALF_TAPS; j++)
        {
            u[j] = TYPED(load)(w + j * LANES);
            HALF_HOLD(u[j]);
            __builtin_prefetch(w + (HALF_AHEAD * HALF_TAPS + j) * LANES);
        }
        TYPED(winograd_half_point)(tiles, base[0] + k, v_tile, u[0], acc[0]);
        TYPED(winograd_half_point)(tiles, base[5] + k, v_tile, u[2], acc[5]);
        vec even = u[0] + u[2], odd = u[1];
        HALF_HOLD(even);
        TYPED(winograd_half_point)(tiles, base[1] + k, v_tile, even + odd, acc[1]);
        TYPED(winograd_half_point)(tiles, base[2] + k, v_tile, even - odd, acc[2]);
        even = u[0] + 4 * u[2];
        odd += odd;
        HALF_HOLD(even);
        HALF_HOLD(odd);
        TYPED(winograd_half_point)(tiles, base[3] + k, v_tile, even + odd, acc[3]);
        TYPED(winograd_half_point)(tiles, base[4] + k, v_tile, even - odd, acc[4]);
    }
    _Pragma("GCC unroll 6") for (int i = 0; i < HALF_POINTS; i++)
        _Pragma("GCC unroll 4") for (int t = 0; t < tiles; t++)
        {
            REAL *at = m + i * m_position + t * m_tile;
            vec sum = acc[i][t] * scale[i];
            HOLD(sum); /* else GCC fuses it with the addition, for some numbers of tiles and not for others */
            TYPED(store)(at, start & START_OUTPUT ? TYPED(load)(at) + sum : sum);
        }
}

/* M[i][t] = start + scale[i] Σ_k V[i][t][k] u_i[k] for tiles t < tiles ≤ HALF_TILES and a vector of output channels;
 * u_0, u_1 and u_2 of each k are the vectors at w. */
static void TYPED(winograd_half)(
    ptrdiff_t tiles, const REAL *v, ptrdiff_t v_position, ptrdiff_t v_tile, ptrdiff_t terms, const REAL *w,
    const REAL *scale, REAL *m, ptrdiff_t m_position, ptrdiff_t m_tile, int start)
{
#define CASE(count)                                                                                         \
    case count:                                                                                             \
        TYPED(winograd_half_sized)(count, v, v_position, v_tile, terms, w, scale, m, m_position, m_tile,   \
                                   start);                                                                  \
        return;
    switch (tiles) {
        CASE(1) CASE(2)
#if HALF_TILES > 2
        CASE(3) CASE(4)
#endif
    }
#undef CASE
}
