/* The inner kernels of the weight gradient; microkernel.h includes this once for each element type.
 *
 *   outer_tile        C[rows × columns]  +=  Aᵀ[rows × K] · B[K × columns]   in registers
 *   depthwise_grad    a few taps of a vector of channels, each its own sum over pixels
 *   depthwise_rows    kernels of three columns, whose inputs are read where they lie
 *   narrow_grad       the same for groups of a few channels, each of which meets every gradient of its group
 *   winograd_spread   A dY Aᵀ for one tile: the transposed of winograd_output
 *   winograd_gather   Gᵀ M G for one pair of channels: the transposed of the weights' transform
 */

/* The tile with its row count and its number of vectors known to the compiler. */
ALWAYS_INLINE void TYPED(outer_tile_sized)(
    const int rows, const int vectors, ptrdiff_t segments, ptrdiff_t length, const REAL *a,
    ptrdiff_t a_segment, ptrdiff_t a_stride, ptrdiff_t a_ahead, const REAL *b, ptrdiff_t b_segment,
    ptrdiff_t b_stride, REAL *c, ptrdiff_t c_stride)
{
    vec acc[TILE_ROWS][2];
    _Pragma("GCC unroll 16") for (int r = 0; r < rows; r++)
        _Pragma("GCC unroll 2") for (int v = 0; v < vectors; v++) acc[r][v] = (vec){0};
    for (ptrdiff_t s = 0; s < segments; s++) {
        const REAL *at = a + s * a_segment, *bt = b + s * b_segment;
        for (ptrdiff_t k = 0; k < length; k++, at += a_stride, bt += b_stride) {
            vec bv[2];
            __builtin_prefetch(at + a_ahead, 0, 2);
            _Pragma("GCC unroll 2") for (int v = 0; v < vectors; v++) bv[v] = TYPED(load)(bt + v * LANES);
            _Pragma("GCC unroll 16") for (int r = 0; r < rows; r++)
            {
                const vec av = TYPED(broadcast)(at[r]);
                _Pragma("GCC unroll 2") for (int v = 0; v < vectors; v++) acc[r][v] += av * bv[v];
            }
        }
    }
    _Pragma("GCC unroll 16") for (int r = 0; r < rows; r++)
        _Pragma("GCC unroll 2") for (int v = 0; v < vectors; v++)
        {
            REAL *to = c + r * c_stride + v * LANES;
            TYPED(store)(to, TYPED(load)(to) + acc[r][v]);
        }
}

/* C[r][j] += Σ_s Σ_k A[s · a_segment + k · a_stride + r] · B[s · b_segment + k · b_stride + j]
 *
 * for r < rows ≤ TILE_ROWS, j < vectors · LANES ≤ 2 · LANES, k < length, s < segments: what lies together
 * are the rows of A and the columns of B, as in channels-last images whose pixels are summed over. What lies
 * `a_ahead` elements after A's rows is asked for meanwhile: no prefetcher sees a pattern in A's narrow rows. */
static void TYPED(outer_tile)(
    int rows, int vectors, ptrdiff_t segments, ptrdiff_t length, const REAL *a, ptrdiff_t a_segment,
    ptrdiff_t a_stride, ptrdiff_t a_ahead, const REAL *b, ptrdiff_t b_segment, ptrdiff_t b_stride, REAL *c,
    ptrdiff_t c_stride)
{
#define TILE(rows, vectors)                                                                             \
    TYPED(outer_tile_sized)(rows, vectors, segments, length, a, a_segment, a_stride, a_ahead, b, b_segment,  \
                            b_stride, c, c_stride);                                                           \
    return
#define CASE(r)                                                                                         \
    case r: TILE(r, 2);                                                                                 \
    case r + 16: TILE(r, 1);
    switch (rows + (vectors == 1) * 16) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if TILE_ROWS > 6
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
#endif
    }
#undef CASE
#undef TILE
}

#define DEPTHWISE_TAPS 9

ALWAYS_INLINE void TYPED(depthwise_grad_sized)(
    const int taps, const ptrdiff_t *offset, ptrdiff_t rows, ptrdiff_t columns, const REAL *x,
    ptrdiff_t x_row, ptrdiff_t x_pixel, const REAL *g, ptrdiff_t g_row, ptrdiff_t g_pixel, REAL *sums,
    ptrdiff_t sums_stride)
{
    vec acc[DEPTHWISE_TAPS];
    _Pragma("GCC unroll 9") for (int t = 0; t < taps; t++) acc[t] = (vec){0};
    for (ptrdiff_t y = 0; y < rows; y++) {
        const REAL *at = x + y * x_row, *gt = g + y * g_row;
        for (ptrdiff_t i = 0; i < columns; i++, at += x_pixel, gt += g_pixel) {
            const vec gv = TYPED(load)(gt);
            _Pragma("GCC unroll 9") for (int t = 0; t < taps; t++)
                acc[t] += gv * TYPED(load)(at + offset[t]);
        }
    }
    _Pragma("GCC unroll 9") for (int t = 0; t < taps; t++)
        TYPED(store)(sums + t * sums_stride, TYPED(load)(sums + t * sums_stride) + acc[t]);
}

/* sums[t][l] += Σ_y Σ_i g[y · g_row + i · g_pixel + l] · x[y · x_row + i · x_pixel + offset[t] + l]
 *
 * for taps ≤ DEPTHWISE_TAPS and a vector of channels l. */
static void TYPED(depthwise_grad)(
    int taps, const ptrdiff_t *offset, ptrdiff_t rows, ptrdiff_t columns, const REAL *x, ptrdiff_t x_row,
    ptrdiff_t x_pixel, const REAL *g, ptrdiff_t g_row, ptrdiff_t g_pixel, REAL *sums, ptrdiff_t sums_stride)
{
#define CASE(taps)                                                                                      \
    case taps:                                                                                          \
        TYPED(depthwise_grad_sized)(taps, offset, rows, columns, x, x_row, x_pixel, g, g_row, g_pixel, sums, \
                                    sums_stride);                                                       \
        return;
    switch (taps) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9)
    }
#undef CASE
}

/* Pixels of gradients in registers, beside the sums of nine taps and an input. */
#if defined(__AVX512F__)
#define ROW_PIXELS 7
#else
#define ROW_PIXELS 4
#endif

/* A few pixels of a row of gradients times three rows of inputs: each of these is loaded once for all its products. From
 * kernel row to kernel row at each column, so that no sum waits for itself. Columns outside the image, the first or the
 * last, are left out. */
ALWAYS_INLINE void TYPED(depthwise_rows_tile)(
    const int pixels, const int step, const struct row_gradient *s, const REAL *const row[3], const ptrdiff_t pitch[3],
    const REAL *g, ptrdiff_t left, vec acc[9])
{
    const int inputs = (pixels - 1) * step + 3;
    const ptrdiff_t begin = -left, end = s->width - left;
    const REAL *at[3];
    vec gv[ROW_PIXELS];
    _Pragma("GCC unroll 7") for (int p = 0; p < pixels; p++) gv[p] = TYPED(load)(g + p * s->g_pixel);
    _Pragma("GCC unroll 3") for (int u = 0; u < 3; u++) at[u] = row[u] + left * pitch[u];
    _Pragma("GCC unroll 16") for (int q = 0; q < inputs; q++)
    {
        const int inside = (q >= 2 || q >= begin) && (q < inputs - 3 || q < end);
        if (inside) {
            _Pragma("GCC unroll 3") for (int u = 0; u < 3; u++)
            {
                vec v = TYPED(load)(at[u]);
                HOLD(v);
                _Pragma("GCC unroll 7") for (int p = 0; p < pixels; p++)
                    if (q >= p * step && q < p * step + 3)
                        acc[u * 3 + q - p * step] += v * gv[p];
            }
        }
        _Pragma("GCC unroll 3") for (int u = 0; u < 3; u++)
        {
            at[u] += pitch[u];
            __asm__("" : "+r"(at[u])); /* keeps GCC from holding multiples of the pitch */
        }
    }
}

/* One vector of channels of rows first … last of gradients; lines are asked for from ahead[0] and ahead[1] on. */
ALWAYS_INLINE void TYPED(depthwise_rows_sized)(
    const int step, const struct row_gradient *s, ptrdiff_t first, ptrdiff_t last, const REAL *x, const REAL *g,
    REAL *sums, const char *const *ahead)
{
    const char *next[2] = {ahead[0], ahead[1]};
    static const REAL outside[LANES];
    const ptrdiff_t tiles = (s->columns + ROW_PIXELS - 1) / ROW_PIXELS;
    vec acc[9];
    _Pragma("GCC unroll 9") for (int t = 0; t < 9; t++) acc[t] = (vec){0};
    for (ptrdiff_t y = first; y < last; y++) {
        const REAL *row[3];
        ptrdiff_t pitch[3];
        for (ptrdiff_t u = 0; u < 3; u++) {
            const ptrdiff_t i = y * s->stride_h - s->pad_h + u * s->dilation_h;
            const int inside = u < s->kernel_h && i >= 0 && i < s->height;
            row[u] = inside ? x + i * s->x_row : outside;
            pitch[u] = inside ? s->x_pixel : 0;
        }
        for (ptrdiff_t t = 0; t < tiles; t++) {
            const ptrdiff_t i = s->columns * t / tiles, pixels = s->columns * (t + 1) / tiles - i;
            const REAL *at = g + y * s->g_row + i * s->g_pixel;
            _Pragma("GCC unroll 2") for (int f = 0; f < 2; f++)
                for (const char *end = next[f] + s->ahead[f]; next[f] < end; next[f] += 64)
                    __builtin_prefetch(next[f], 0, 2);
#define CASE(pixels)                                                                                      \
    case pixels:                                                                                          \
        if ((pixels) <= ROW_PIXELS)                                                                       \
            TYPED(depthwise_rows_tile)(pixels, step, s, row, pitch, at, i * step - s->pad_w, acc);        \
        break;
            switch (pixels) {
                CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7)
            }
#undef CASE
        }
    }
    _Pragma("GCC unroll 9") for (int t = 0; t < 9; t++)
        if (t / 3 < s->kernel_h)
            TYPED(store)(sums + t * s->sums_tap, TYPED(load)(sums + t * s->sums_tap) + acc[t]);
}

/* sums[t][v] += Σ_y Σ_i g[y, i, v] x[y · s_h + t / 3 · d_h − p_h, i · step + t mod 3 − p_w, v]
 *
 * for rows first ≤ y < last of an image's gradients, taps t < 3 · kernel_h ≤ 9 and all channels, a vector of them after
 * the other; the last vector, whose channels overlap the one before, has sums of its own. */
static void TYPED(depthwise_rows)(
    const struct row_gradient *s, ptrdiff_t first, ptrdiff_t last, const REAL *x, const REAL *g, REAL *sums,
    const char *const *ahead)
{
    const ptrdiff_t tiles = (last - first) * ((s->columns + ROW_PIXELS - 1) / ROW_PIXELS);
    for (ptrdiff_t v = 0; v < s->channels; v += LANES) {
        const ptrdiff_t done = v / LANES * tiles;
        const char *const next[2] = {ahead[0] + done * s->ahead[0], ahead[1] + done * s->ahead[1]};
        const ptrdiff_t c = v + LANES <= s->channels ? v : s->channels - LANES;
        if (s->step == 1)
            TYPED(depthwise_rows_sized)(1, s, first, last, x + c, g + c, sums + v, next);
        else
            TYPED(depthwise_rows_sized)(2, s, first, last, x + c, g + c, sums + v, next);
    }
}

ALWAYS_INLINE ptrdiff_t TYPED(depthwise_rows_tiles)(ptrdiff_t columns) { return (columns + ROW_PIXELS - 1) / ROW_PIXELS; }

#undef ROW_PIXELS

#define POWER(p, i) TYPED(broadcast)(coefficient[pairs * pairs + (p) * WINOGRAD_POWERS + (i)])

/* m(±α) = Σ_i (±α)^i y_i, m(0) = y_0, m(∞) the last y: each line of outputs to one of points. */
ALWAYS_INLINE void TYPED(winograd_spread_sized)(
    const int pairs, const int outputs, ptrdiff_t lines, const REAL *y, ptrdiff_t y_step, ptrdiff_t y_next,
    REAL *m, ptrdiff_t m_step, ptrdiff_t m_next, const REAL *coefficient)
{
    for (ptrdiff_t line = 0; line < lines; line++, y += y_next, m += m_next) {
        vec x[6];
        _Pragma("GCC unroll 6") for (int i = 0; i < outputs; i++) x[i] = TYPED(load)(y + i * y_step);
        TYPED(store)(m, x[0]);
        _Pragma("GCC unroll 4") for (int p = 0; p < pairs; p++)
        {
            vec even = x[0], odd = POWER(p, 1) * x[1];
            if (outputs > 2)
                even += POWER(p, 2) * x[2];
            if (outputs > 3)
                odd += POWER(p, 3) * x[3];
            if (outputs > 4)
                even += POWER(p, 4) * x[4];
            if (outputs > 5)
                odd += POWER(p, 5) * x[5];
            TYPED(store)(m + (2 * p + 1) * m_step, even + odd);
            TYPED(store)(m + (2 * p + 2) * m_step, even - odd);
        }
        TYPED(store)(m + (2 * pairs + 1) * m_step, x[outputs - 1]);
    }
}

static void TYPED(winograd_spread_lines)(
    int pairs, int outputs, ptrdiff_t lines, const REAL *y, ptrdiff_t y_step, ptrdiff_t y_next, REAL *m,
    ptrdiff_t m_step, ptrdiff_t m_next, const REAL *coefficient)
{
#define CASE(pairs, outputs)                                                                            \
    case pairs * 8 + outputs:                                                                           \
        TYPED(winograd_spread_sized)(pairs, outputs, lines, y, y_step, y_next, m, m_step, m_next,      \
                                     coefficient);                                                      \
        return;
    switch (pairs * 8 + outputs) { /* as winograd_output_lines */
        CASE(1, 2) CASE(2, 2) CASE(2, 4) CASE(3, 2) CASE(3, 4) CASE(3, 6) CASE(4, 4) CASE(1, 3)
        CASE(2, 5)
    }
#undef CASE
}

/* One tile of gradients to its points; `channels` is rounded up to whole vectors in y and in m. */
static void TYPED(winograd_spread)(
    int pairs_h, int outputs_h, int pairs_w, int outputs_w, const REAL *y, ptrdiff_t row_pitch,
    ptrdiff_t pixel_pitch, ptrdiff_t channels, REAL *m, ptrdiff_t position_stride,
    const REAL *coefficient_h, const REAL *coefficient_w)
{
    const int n_w = 2 * pairs_w + 2;
    const ptrdiff_t vectors = (channels + LANES - 1) / LANES;
    REAL half[5 * WINOGRAD_MAX_POINTS * LANES] __attribute__((aligned(VECTOR_BYTES)));
    if (pairs_h == 0)
        TYPED(winograd_spread_lines)(pairs_w, outputs_w, vectors, y, pixel_pitch, LANES, m, position_stride,
                                     LANES, coefficient_w);
    else if (pairs_w == 0)
        TYPED(winograd_spread_lines)(pairs_h, outputs_h, vectors, y, row_pitch, LANES, m, position_stride,
                                     LANES, coefficient_h);
    else
        for (ptrdiff_t c = 0; c < vectors * LANES; c += LANES) {
            TYPED(winograd_spread_lines)(pairs_w, outputs_w, outputs_h, y + c, pixel_pitch, row_pitch, half,
                                         LANES, n_w * LANES, coefficient_w);
            TYPED(winograd_spread_lines)(pairs_h, outputs_h, n_w, half, n_w * LANES, LANES, m + c,
                                         n_w * position_stride, position_stride, coefficient_h);
        }
}

/* w[a · k_w + b] = Σ_i Σ_j G_h[i][a] M[i · n_w + j] G_w[j][b]   for a vector of channels. */
static void TYPED(winograd_gather)(
    int n_h, int k_h, int n_w, int k_w, const REAL *m, ptrdiff_t position_stride, const REAL *matrix_h,
    const REAL *matrix_w, REAL *w, ptrdiff_t tap_stride)
{
    vec half[7][WINOGRAD_MAX_POINTS];
    for (int i = 0; i < n_h; i++)
        for (int b = 0; b < k_w; b++) {
            vec sum = {0};
            for (int j = 0; j < n_w; j++)
                sum += TYPED(load)(m + (i * n_w + j) * position_stride) * matrix_w[j * k_w + b];
            half[b][i] = sum;
        }
    for (int a = 0; a < k_h; a++)
        for (int b = 0; b < k_w; b++) {
            vec sum = {0};
            for (int i = 0; i < n_h; i++)
                sum += half[b][i] * matrix_h[i * k_h + a];
            TYPED(store)(w + (a * k_w + b) * tap_stride, sum);
        }
}

/* Taps whose sums, one for each of so many output channels of a group, fit the registers. */
#if defined(__AVX512F__)
#define NARROW_GRAD_TAPS(outs) ((outs) == 8 ? 3 : (outs) == 4 ? 5 : 9)
#else
#define NARROW_GRAD_TAPS(outs) ((outs) == 8 ? 1 : (outs) == 4 ? 2 : 4)
#endif

ALWAYS_INLINE void TYPED(narrow_grad_sized)(
    const int taps, const int outs, const int mode, const ptrdiff_t *offset, ptrdiff_t rows, ptrdiff_t columns,
    const REAL *x, ptrdiff_t x_row, ptrdiff_t x_pixel, const REAL *g, ptrdiff_t g_row, ptrdiff_t g_pixel,
    const MASK *lanes, REAL *sums, ptrdiff_t tap_stride, ptrdiff_t out_stride, const struct ahead *ahead)
{
    vec acc[9][8];
    vec_mask index[8];
    _Pragma("GCC unroll 8") for (int r = 0; r < outs; r++)
    {
        if (mode == NARROW_SHUFFLED)
            memcpy(&index[r], lanes + r * LANES, sizeof(vec_mask));
        _Pragma("GCC unroll 9") for (int t = 0; t < taps; t++) acc[t][r] = (vec){0};
    }
    for (ptrdiff_t y = 0; y < rows; y++) {
        const REAL *at = x + y * x_row, *gt = g + y * g_row;
        const char *next = ahead->at + y * ahead->row;
        for (ptrdiff_t i = 0; i < columns; i++, at += x_pixel, gt += g_pixel, next += ahead->pixel) {
            vec xv[9];
            __builtin_prefetch(next, 0, 2);
            _Pragma("GCC unroll 9") for (int t = 0; t < taps; t++) xv[t] = TYPED(load)(at + offset[t]);
            _Pragma("GCC unroll 8") for (int r = 0; r < outs; r++)
            {
                const vec gv = TYPED(narrow_load)(mode, mode == NARROW_BROADCAST ? gt + r : gt, index[r]);
                _Pragma("GCC unroll 9") for (int t = 0; t < taps; t++) acc[t][r] += gv * xv[t];
            }
        }
    }
    _Pragma("GCC unroll 9") for (int t = 0; t < taps; t++)
        _Pragma("GCC unroll 8") for (int r = 0; r < outs; r++)
        {
            REAL *to = sums + t * tap_stride + r * out_stride;
            TYPED(store)(to, TYPED(load)(to) + acc[t][r]);
        }
}

/* sums[t][r][l] += Σ_y Σ_i x[y · x_row + i · x_pixel + offset[t] + l] · g[y · g_row + i · g_pixel + lanes[r][l]]
 *
 * for taps ≤ NARROW_GRAD_TAPS(outs), r < outs (2, 4 or 8) and a vector of input channels l; without `lanes`
 * all of them have the gradient r. Each gradient is shuffled once for all taps. With each pixel memory is asked for
 * one that is needed later. */
static void TYPED(narrow_grad)(
    int taps, int outs, const ptrdiff_t *offset, ptrdiff_t rows, ptrdiff_t columns, const REAL *x,
    ptrdiff_t x_row, ptrdiff_t x_pixel, const REAL *g, ptrdiff_t g_row, ptrdiff_t g_pixel, const MASK *lanes,
    REAL *sums, ptrdiff_t tap_stride, ptrdiff_t out_stride, const struct ahead *ahead)
{
#define TILE(taps, outs, mode)                                                                            \
    TYPED(narrow_grad_sized)(taps, outs, mode, offset, rows, columns, x, x_row, x_pixel, g, g_row, g_pixel, \
                             lanes, sums, tap_stride, out_stride, ahead)
#define CASE(outs, taps)                                 \
    case outs * 16 + taps:                               \
        if ((taps) <= NARROW_GRAD_TAPS(outs)) {          \
            if (lanes)                                   \
                TILE(taps, outs, NARROW_SHUFFLED);       \
            else                                         \
                TILE(taps, outs, NARROW_BROADCAST);      \
        }                                                \
        return;
    switch (outs * 16 + taps) {
        CASE(8, 1) CASE(8, 2) CASE(8, 3)
        CASE(4, 1) CASE(4, 2) CASE(4, 3) CASE(4, 4) CASE(4, 5)
        CASE(2, 1) CASE(2, 2) CASE(2, 3) CASE(2, 4) CASE(2, 5) CASE(2, 6) CASE(2, 7) CASE(2, 8) CASE(2, 9)
    }
#undef CASE
#undef TILE
}

ALWAYS_INLINE int TYPED(narrow_grad_taps)(int outs) { return NARROW_GRAD_TAPS(outs); }

#undef POWER
#undef NARROW_GRAD_TAPS
