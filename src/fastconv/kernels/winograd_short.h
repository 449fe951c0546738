/* Winograd's F(4, 3) along rows where sums are short; microkernel.h includes this once for each element type.
 *
 * The products of all six points of two tiles with a panel, or of two output channels with the tiles of two vectors,
 * are summed at once: 6 · 2 · 2 accumulators, one broadcast and one vector loaded for two multiply–adds (half as many
 * with 16 registers). They never leave the registers before they are outputs, whose stores are spread evenly over the
 * work. */

#ifndef SHORT_POINTS
#define SHORT_POINTS 6
#define SHORT_OUTPUTS 4
#if defined(__AVX512F__)
#define SHORT_ABREAST 2 /* tiles, or output channels, at a time */
#else
#define SHORT_ABREAST 1
#endif
#endif

/* Four vectors of outputs 4·t, 4·t + 1, … as 4 · LANES consecutive ones. */
ALWAYS_INLINE void TYPED(interleave_four)(vec v[SHORT_OUTPUTS])
{
    vec_mask low, high;
    _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++)
    {
        low[i] = i / 2 + i % 2 * LANES;
        high[i] = LANES / 2 + low[i];
    }
    const vec even[2] = {__builtin_shuffle(v[0], v[2], low), __builtin_shuffle(v[0], v[2], high)};
    const vec odd[2] = {__builtin_shuffle(v[1], v[3], low), __builtin_shuffle(v[1], v[3], high)};
    _Pragma("GCC unroll 2") for (int i = 0; i < 2; i++)
    {
        v[2 * i] = __builtin_shuffle(even[i], odd[i], low);
        v[2 * i + 1] = __builtin_shuffle(even[i], odd[i], high);
    }
}

/* Four outputs of a tile from its sums at six points, added to `start`. */
ALWAYS_INLINE void TYPED(four_outputs)(
    const vec m[SHORT_POINTS], vec start, const REAL *coefficient, vec sum[SHORT_OUTPUTS])
{
    const vec plus[2] = {m[1] + m[2], m[3] + m[4]}, minus[2] = {m[1] - m[2], m[3] - m[4]};
    _Pragma("GCC unroll 4") for (int i = 0; i < SHORT_OUTPUTS; i++)
    {
        sum[i] = i == SHORT_OUTPUTS - 1 ? start + m[5] : i == 0 ? start + m[0] : start;
        /* Step by step: of a sum of two products GCC fuses now one, now the other. */
        _Pragma("GCC unroll 2") for (int p = 0; p < 2; p++)
            if (i == 0)
                sum[i] += plus[p];
            else
                sum[i] += TYPED(broadcast)(coefficient[4 + p * WINOGRAD_POWERS + i]) * (i % 2 ? minus[p] : plus[p]);
    }
}

/* `scalar` and `vector` are V and the weights, or, `planar`, the weights and V: (term, point, PANEL) and, of each
 * output channel, (term, point). */
ALWAYS_INLINE void TYPED(winograd_short_sized)(
    const int planar, const int tiles, const int vectors, const struct short_row *s, const REAL *scalar,
    const REAL *vector, const REAL *coefficient, const REAL *bias, REAL *y)
{
    const ptrdiff_t point = planar ? 1 : 2 * LANES, term = SHORT_POINTS * point, row = SHORT_POINTS * 2 * LANES;
    vec acc[SHORT_ABREAST][SHORT_POINTS][2] = {{{{0}}}};
    const ptrdiff_t next = planar ? s->matrix : 1;
    for (ptrdiff_t i = 0; i < s->runs; i++) {
        for (ptrdiff_t k = 0; k < s->run; k++) {
            _Pragma("GCC unroll 6") for (int q = 0; q < SHORT_POINTS; q++)
            {
                vec w[2];
                _Pragma("GCC unroll 2") for (int j = 0; j < vectors; j++)
                {
                    w[j] = TYPED(load)(vector + (q * 2 + j) * LANES);
                    HOLD(w[j]);
                }
                _Pragma("GCC unroll 2") for (int t = 0; t < tiles; t++)
                {
                    const vec value = TYPED(broadcast)(scalar[t * next + q * point]);
                    _Pragma("GCC unroll 2") for (int j = 0; j < vectors; j++) acc[t][q][j] += value * w[j];
                }
            }
            vector += row;
            scalar += term;
        }
        if (planar)
            vector += s->skip;
        else
            scalar += s->skip;
    }
    _Pragma("GCC unroll 2") for (int t = 0; t < tiles; t++)
        _Pragma("GCC unroll 2") for (int j = 0; j < vectors; j++)
        {
            const vec start = planar ? TYPED(broadcast)(bias[t]) : TYPED(load)(bias + j * LANES);
            /* Pixels of a vector are side by side on planes, pixels of a tile where they are not. */
            const ptrdiff_t step = planar ? LANES : s->y_pixel;
            const ptrdiff_t left = planar ? s->columns - j * SHORT_OUTPUTS * LANES : SHORT_OUTPUTS * LANES;
            REAL *to = y + t * s->y_tile + j * (planar ? SHORT_OUTPUTS : 1) * LANES;
            vec m[SHORT_POINTS], sum[SHORT_OUTPUTS];
            _Pragma("GCC unroll 6") for (int q = 0; q < SHORT_POINTS; q++) m[q] = acc[t][q][j];
            TYPED(four_outputs)(m, start, coefficient, sum);
            if (planar)
                TYPED(interleave_four)(sum);
            _Pragma("GCC unroll 4") for (int i = 0; i < SHORT_OUTPUTS; i++)
            {
                const ptrdiff_t count = planar ? left - i * LANES : LANES;
                if (count <= 0)
                    continue;
                if (s->accumulate)
                    sum[i] += TYPED(load_part)(to + i * step, count, (vec){0});
                sum[i] = s->rectified ? TYPED(rectify)(sum[i]) : sum[i];
                if (s->streamed && count >= LANES)
                    TYPED(stream)(to + i * step, sum[i]);
                else
                    TYPED(store_part)(to + i * step, count, sum[i]);
            }
        }
}

/* `count` tiles of a panel, or output channels of the tiles of one or two vectors. */
#define TILES(planar, tiles, vectors)                                                                       \
    for (; count >= tiles; count -= tiles) {                                                                \
        TYPED(winograd_short_sized)(planar, tiles, vectors, s, scalar, vector, coefficient, bias, y);      \
        scalar += tiles * (planar ? s->matrix : 1);                                                        \
        bias += planar * tiles;                                                                             \
        y += tiles * s->y_tile;                                                                             \
    }
#define SHORT(name, planar)                                                                                 \
    static void TYPED(name)(                                                                                \
        int vectors, ptrdiff_t count, const struct short_row *s, const REAL *scalar, const REAL *vector,   \
        const REAL *coefficient, const REAL *bias, REAL *y)                                                 \
    {                                                                                                       \
        if (vectors == 2) {                                                                                 \
            TILES(planar, SHORT_ABREAST, 2) TILES(planar, 1, 2)                                            \
        } else {                                                                                            \
            TILES(planar, SHORT_ABREAST, 1) TILES(planar, 1, 1)                                            \
        }                                                                                                   \
    }
SHORT(winograd_short_pixels, 0)
SHORT(winograd_short_planes, 1)
#undef SHORT
#undef TILES
