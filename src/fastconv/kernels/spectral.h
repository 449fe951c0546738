/* The complex products of a convolution in the frequency domain, one vector of frequencies at a time;
 * microkernel.h includes this once for each element type.
 *
 * A block is LANES frequencies of one plane: interleaved, (re, im) pairs as a Fourier transform leaves
 * them, or split, LANES real parts and then LANES imaginary ones, as the products want them. */

/* Tiles × outputs a register block holds: its sums (two vectors each), a block of every tile's input and one
 * block of weights fill the register file (3 · 4 · 2 + 3 · 2 + 2 of 32; 2 · 2 · 2 + 2 · 2 + 2 of 16). */
#if defined(__AVX512F__)
#define SPECTRAL_TILES 3
#define SPECTRAL_OUTPUTS 4
#else
#define SPECTRAL_TILES 2
#define SPECTRAL_OUTPUTS 2
#endif

/* One block, interleaved → split. */
ALWAYS_INLINE void TYPED(spectral_split)(const REAL *interleaved, REAL *split)
{
    const vec low = TYPED(load)(interleaved), high = TYPED(load)(interleaved + LANES);
    vec_mask even;
    _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++) even[i] = 2 * i;
    TYPED(store)(split, __builtin_shuffle(low, high, even));
    TYPED(store)(split + LANES, __builtin_shuffle(low, high, even + 1));
}

/* The tile with its numbers of tiles and outputs known to the compiler. */
ALWAYS_INLINE void TYPED(spectral_tile_sized)(
    const int tiles, const int outputs, ptrdiff_t channels, const REAL *x, const REAL *w, REAL *y,
    ptrdiff_t tile_stride, ptrdiff_t output_stride)
{
    vec re[SPECTRAL_TILES][SPECTRAL_OUTPUTS], im[SPECTRAL_TILES][SPECTRAL_OUTPUTS];
    _Pragma("GCC unroll 4") for (int t = 0; t < tiles; t++)
        _Pragma("GCC unroll 4") for (int o = 0; o < outputs; o++) re[t][o] = im[t][o] = (vec){0};

    for (ptrdiff_t c = 0; c < channels; c++, x += 2 * LANES) {
        vec xr[SPECTRAL_TILES], xi[SPECTRAL_TILES];
        _Pragma("GCC unroll 4") for (int t = 0; t < tiles; t++)
        {
            xr[t] = TYPED(load)(x + t * channels * 2 * LANES);
            xi[t] = TYPED(load)(x + t * channels * 2 * LANES + LANES);
        }
        _Pragma("GCC unroll 4") for (int o = 0; o < outputs; o++, w += 2 * LANES)
        {
            const vec wr = TYPED(load)(w), wi = TYPED(load)(w + LANES);
            _Pragma("GCC unroll 4") for (int t = 0; t < tiles; t++)
            {
                re[t][o] += xr[t] * wr;
                im[t][o] += xr[t] * wi;
                re[t][o] -= xi[t] * wi;
                im[t][o] += xi[t] * wr;
            }
        }
    }

    vec_mask low;
    _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++) low[i] = i / 2 + i % 2 * LANES;
    _Pragma("GCC unroll 4") for (int t = 0; t < tiles; t++)
        _Pragma("GCC unroll 4") for (int o = 0; o < outputs; o++)
        {
            REAL *at = y + t * tile_stride + o * output_stride;
            TYPED(store)(at, __builtin_shuffle(re[t][o], im[t][o], low));
            TYPED(store)(at + LANES, __builtin_shuffle(re[t][o], im[t][o], low + LANES / 2));
        }
}

/* y[t][o] = Σ_c x[t][c] · w[c][o]   for one block of frequencies, t < tiles, o < outputs.
 *
 * x[t][c] and w[c][o] are split blocks, one after the other; y[t][o] are interleaved blocks at
 * y + t · tile_stride + o · output_stride. */
static void TYPED(spectral_tile)(
    int tiles, int outputs, ptrdiff_t channels, const REAL *x, const REAL *w, REAL *y, ptrdiff_t tile_stride,
    ptrdiff_t output_stride)
{
#define CASE(t, o)                                                                                     \
    case (t) * 8 + (o):                                                                                \
        TYPED(spectral_tile_sized)(t, o, channels, x, w, y, tile_stride, output_stride);               \
        return;
    switch (tiles * 8 + outputs) {
        CASE(1, 1) CASE(1, 2) CASE(2, 1) CASE(2, 2)
#if SPECTRAL_OUTPUTS > 2
        CASE(1, 3) CASE(1, 4) CASE(2, 3) CASE(2, 4) CASE(3, 1) CASE(3, 2) CASE(3, 3) CASE(3, 4)
#endif
    }
#undef CASE
}
