/* Winograd's form whose weights are transformed along the rows' axis only; microkernel.h includes this once for each
 * element type.
 *
 * G_h g, with points 0, ±a, ±2a, ∞, are half the bytes of G_h g G_wᵀ, and less. The other axis is transformed as they
 * come, by additions, which cost little beside multiply–adds. At stride 1, with u₀ = g₀ / 2, u₁ = a g₁, u₂ = a² g₂, its
 * rows are, but for a factor that sums are multiplied with in the end,
 *     0: u₀,   ±a: 2 u₀ + u₂ ± u₁,   ±2a: u₀ + 2 u₂ ± u₁,   ∞: u₂.
 * At stride 2 a kernel of three taps is one of two, for every other pixel, and one of a single tap for those between
 * (winograd.pyx, blocks): with u₀ = g₀, u₁ = g₁, u₂ = a g₂
 *     0: u₀,   ±a: u₀ ± u₂,   ±2a: u₀ ± 2 u₂,   ∞: u₂,   and u₁ at all of them but ∞.
 *
 * A tile of m outputs takes m + r − 1 of the points: 0 and ∞, and of a, −a, 2a, −2a the first ones. Weights stay the
 * same where V of the others is taken off: without point β, row P_α of Bᵀ loses the factor (x − β), and that of G its
 * divisor (α − β),
 *     (α − β) P_α / (x − β) = P_α − P_β,   and P_β is the row of ∞.
 * With those γ dropped before, whose divisors V has: V_α − V_β Π (α − γ) / (β − γ), and V_β / Π (β − γ). */

#ifndef HALF_POINTS
#define HALF_POINTS 6
#define HALF_TAPS 3
#define HALF_CHANNELS 64 /* summed at a time: their weights, 24 KiB, stay in the L1 cache */
#define HALF_FETCHED 3   /* vectors of the next weights, at most, that are asked for with each channel */
#if defined(__AVX512F__)
#define HALF_VECTORS 2 /* at a time: 12 · 2 accumulators, and of the weights and sums of them up to six */
#else
#define HALF_VECTORS 1 /* 12 of 16 registers: weights are loaded again where they are used */
#endif
#endif

/* Whether a tile of so many points has this one. */
ALWAYS_INLINE int TYPED(half_has)(const int points, const int point)
{
    return points && (point == 0 || point == HALF_POINTS - 1 || point < points - 1);
}

/* acc[t][point] += V[t] u for both tiles, of which the second has `second` points. */
ALWAYS_INLINE void TYPED(half_point)(
    const int second, const int point, const REAL *v, const vec u[HALF_VECTORS],
    vec acc[2][HALF_POINTS][HALF_VECTORS])
{
    _Pragma("GCC unroll 2") for (int t = 0; t < 2; t++)
    {
        if (t && !TYPED(half_has)(second, point))
            continue;
        vec value = TYPED(broadcast)(v[(t * HALF_POINTS + point) * HALF_CHANNELS]);
        HOLD(value);
        _Pragma("GCC unroll 2") for (int s = 0; s < HALF_VECTORS; s++) acc[t][point][s] += value * u[s];
    }
}

/* Points ±p of `even` ± `odd`. */
ALWAYS_INLINE void TYPED(half_pair)(
    const int second, const int point, const REAL *v, const vec even[HALF_VECTORS], const vec odd[HALF_VECTORS],
    vec acc[2][HALF_POINTS][HALF_VECTORS])
{
    vec u[HALF_VECTORS];
    _Pragma("GCC unroll 2") for (int s = 0; s < HALF_VECTORS; s++)
    {
        u[s] = even[s] + odd[s];
        HOLD(u[s]);
    }
    TYPED(half_point)(second, point, v, u, acc);
    _Pragma("GCC unroll 2") for (int s = 0; s < HALF_VECTORS; s++)
    {
        u[s] = even[s] - odd[s];
        HOLD(u[s]);
    }
    TYPED(half_point)(second, point + 1, v, u, acc);
}

/* One channel, whose weights are u. With the other block last GCC would spill sums. */
ALWAYS_INLINE void TYPED(half_channel)(
    const int stride, const int second, const REAL *v, vec u[HALF_TAPS][HALF_VECTORS],
    vec acc[2][HALF_POINTS][HALF_VECTORS])
{
    vec even[HALF_VECTORS], odd[HALF_VECTORS];
    if (stride == 2)
        _Pragma("GCC unroll 5") for (int j = 0; j < HALF_POINTS - 1; j++)
            TYPED(half_point)(second, j, v + 2 * HALF_POINTS * HALF_CHANNELS, u[1], acc);
    TYPED(half_point)(second, 0, v, u[0], acc);
    TYPED(half_point)(second, HALF_POINTS - 1, v, u[2], acc);
    _Pragma("GCC unroll 2") for (int s = 0; s < HALF_VECTORS; s++)
    {
        even[s] = stride == 1 ? u[0][s] + u[0][s] + u[2][s] : u[0][s];
        odd[s] = stride == 1 ? u[1][s] : u[2][s];
    }
    TYPED(half_pair)(second, 1, v, even, odd, acc);
    _Pragma("GCC unroll 2") for (int s = 0; s < HALF_VECTORS; s++)
    {
        const vec twice = u[2][s] + u[2][s];
        even[s] = stride == 1 ? u[0][s] + twice : u[0][s];
        odd[s] = stride == 1 ? u[1][s] : twice;
    }
    TYPED(half_pair)(second, 3, v, even, odd, acc);
}

ALWAYS_INLINE void TYPED(winograd_half_sized)(
    const int stride, const int second, const REAL *v, ptrdiff_t channels, const REAL *w, const REAL *ahead,
    int fetched, const REAL *scale, REAL *m)
{
    const ptrdiff_t m_tile = HALF_POINTS * HALF_POINTS * 2 * LANES;
    vec acc[2][HALF_POINTS][HALF_VECTORS] = {{{{0}}}};
    for (ptrdiff_t k = 0; k < channels; k++, w += 2 * HALF_TAPS * LANES) {
        vec u[HALF_TAPS][HALF_VECTORS];
        _Pragma("GCC unroll 3") for (int i = 0; i < HALF_FETCHED && i < fetched; i++, ahead += LANES)
            __builtin_prefetch(ahead);
        _Pragma("GCC unroll 2") for (int s = 0; s < HALF_VECTORS; s++)
            _Pragma("GCC unroll 3") for (int j = 0; j < HALF_TAPS; j++)
                u[j][s] = TYPED(load)(w + (s * HALF_TAPS + j) * LANES);
        TYPED(half_channel)(stride, second, v + k, u, acc);
    }
    _Pragma("GCC unroll 2") for (int t = 0; t < 2; t++)
        _Pragma("GCC unroll 6") for (int j = 0; j < HALF_POINTS; j++)
            _Pragma("GCC unroll 2") for (int s = 0; s < HALF_VECTORS; s++)
            {
                if (t && !TYPED(half_has)(second, j))
                    continue;
                REAL *at = m + t * m_tile + (j * 2 + s) * LANES;
                vec sum = acc[t][j][s] * scale[j];
                HOLD(sum); /* else GCC fuses it with the addition, in some of these functions and not in others */
                TYPED(store)(at, TYPED(load)(at) + sum);
            }
}

/* M[t][j] += scale[j] Σ_k V[t][j][k] u_j[k] for a line of points j of two tiles t, the first of which has all points, and a
 * panel. V has tiles, points and HALF_CHANNELS, M tiles, both axes' points and a panel; w for each channel of two vectors
 * the taps. `fetched` vectors a channel of the next weights are asked for, `ahead` the first of them. */
static void TYPED(winograd_half)(
    int stride, int second, const REAL *v, ptrdiff_t channels, const REAL *w, const REAL *ahead,
    int fetched, const REAL *scale, REAL *m)
{
#define CASE(stride, second)                                                                                \
    case stride * 8 + second:                                                                               \
        for (int s = 0; s < 2; s += HALF_VECTORS)                                                           \
            TYPED(winograd_half_sized)(stride, second, v, channels, w + s * HALF_TAPS * LANES,             \
                                       ahead, s ? 0 : fetched, scale, m + s * LANES);                      \
        return;
    switch (stride * 8 + second) {
        CASE(1, 0) CASE(1, 3) CASE(1, 4) CASE(1, 5) CASE(1, 6)
        CASE(2, 0) CASE(2, 2) CASE(2, 3) CASE(2, 4) CASE(2, 5) CASE(2, 6)
    }
#undef CASE
}

/* A tile that has the first `points` of a line of them. `drop` has for each point dropped, the last one first, what V of
 * it is multiplied with to be taken off the others, and for ∞. V at the points dropped becomes zero. */
ALWAYS_INLINE void TYPED(half_drop)(
    int points, ptrdiff_t lines, ptrdiff_t line, ptrdiff_t channels, REAL *v, ptrdiff_t step, const REAL *drop)
{
    for (int point = HALF_POINTS - 2; point >= points - 1; point--, drop += HALF_POINTS)
        for (ptrdiff_t i = 0; i < lines; i++)
            for (ptrdiff_t c = 0; c < channels; c += LANES) {
                REAL *at = v + i * line + c;
                const vec off = TYPED(load)(at + point * step);
                for (int j = 0; j < point; j++)
                    TYPED(store)(at + j * step, TYPED(load)(at + j * step) - drop[j] * off);
                TYPED(store)(at + (HALF_POINTS - 1) * step, drop[HALF_POINTS - 1] * off);
                TYPED(store)(at + point * step, (vec){0});
            }
}

/* V of a tile's channels first … first + channels, whole vectors and at most HALF_CHANNELS, lines v_line apart; `pixel` as
 * winograd_input has it. */
static void TYPED(winograd_half_input)(
    int points_h, int points_w, const REAL *const *pixel, ptrdiff_t first, ptrdiff_t channels, REAL *v,
    ptrdiff_t v_line, const REAL *coefficient, const REAL *drop)
{
    const ptrdiff_t pitch = WINOGRAD_VECTORS * LANES;
    REAL lines[HALF_POINTS * HALF_POINTS * WINOGRAD_VECTORS * LANES] __attribute__((aligned(VECTOR_BYTES)));
    for (ptrdiff_t c = 0; c < channels; c += pitch) {
        const ptrdiff_t vectors = (channels - c < pitch ? channels - c : pitch) / LANES;
        TYPED(winograd_input_first)(2, HALF_POINTS, vectors, pixel, first + c, lines, HALF_POINTS * pitch, pitch,
                                    coefficient);
        TYPED(winograd_input_second)(2, HALF_POINTS, vectors, lines, v + c, v_line, HALF_CHANNELS, coefficient);
    }
    TYPED(half_drop)(points_w, HALF_POINTS, v_line, channels, v, HALF_CHANNELS, drop);
    TYPED(half_drop)(points_h, HALF_POINTS, HALF_CHANNELS, channels, v, v_line, drop);
}
