/* Winograd's transforms of one tile, vectors over channels; microkernel.h includes this once for each element type.
 *
 *   winograd_input    V = Bᵀ d B, from the addresses of tiles' pixels
 *   winograd_output   Y = Aᵀ M A, with bias, the residual and activation
 *   winograd_weight   U = G_h g G_wᵀ, in float64
 *
 * The one-dimensional transforms are for the points 0, ±a₁, …, ±a_P, ∞ (n = 2P + 2 of them). With
 * r(t) = Π_p (t − a_p²) and q_p(t) = r(t) / (t − a_p²), the rows of Bᵀ are the coefficients of
 *     point 0: r(x²),   point ±a_p: x² q_p(x²) ± a_p x q_p(x²),   ∞: x r(x²),
 * so each pair shares its even and its odd half. `coefficient` holds, in this order,
 *     r: P values (the leading 1 is left out), q_p: P − 1 values each, a_p^i: i = 0 … 7 for each p.
 *
 * A tile is transformed along its columns and then along its rows, a few vectors of channels at a time, which
 * wait in the L1 cache in between. Both passes take line after line of n vectors; the coefficients stay in
 * registers for all lines of a pass. */

#ifndef WINOGRAD_VECTORS
#define WINOGRAD_VECTORS 4        /* of channels at a time */
#define WINOGRAD_MAX_POINTS 10    /* on one axis */
#define WINOGRAD_MAX_POSITIONS 64 /* on both */
#define WINOGRAD_POWERS 8
#endif
#define WINOGRAD_PITCH (WINOGRAD_VECTORS * LANES)

/* `source` holds the addresses of n vectors a line where there is one; else they lie in `half`, side by side. */
ALWAYS_INLINE void TYPED(winograd_input_sized)(
    const int pairs, ptrdiff_t lines, ptrdiff_t vectors, const REAL *const *source, ptrdiff_t offset,
    const REAL *half, REAL *v, ptrdiff_t v_step, ptrdiff_t v_next, const REAL *coefficient)
{
    const int n = 2 * pairs + 2;
    vec r[4], q[4][3], a[4];
    _Pragma("GCC unroll 4") for (int p = 0; p < pairs; p++)
    {
        r[p] = TYPED(broadcast)(coefficient[p]);
        a[p] = TYPED(broadcast)(coefficient[pairs * pairs + p * WINOGRAD_POWERS + 1]);
        _Pragma("GCC unroll 3") for (int j = 0; j < pairs - 1; j++)
            q[p][j] = TYPED(broadcast)(coefficient[pairs + p * (pairs - 1) + j]);
    }
    for (ptrdiff_t line = 0; line < lines; line++, v += v_next) {
        const REAL *from[WINOGRAD_MAX_POINTS];
        _Pragma("GCC unroll 10") for (int i = 0; i < n; i++)
            from[i] = source ? source[line * n + i] + offset : half + (line * n + i) * WINOGRAD_PITCH;
        for (ptrdiff_t c = 0; c < vectors * LANES; c += LANES) {
            vec x[WINOGRAD_MAX_POINTS];
            _Pragma("GCC unroll 10") for (int i = 0; i < n; i++)
            {
                x[i] = TYPED(load)(from[i] + c);
                HOLD(x[i]);
            }
            vec even = x[n - 2], odd = x[n - 1];
            _Pragma("GCC unroll 4") for (int j = 0; j < pairs; j++)
            {
                even += r[j] * x[2 * j];
                odd += r[j] * x[2 * j + 1];
            }
            TYPED(store)(v + c, even);
            TYPED(store)(v + c + (n - 1) * v_step, odd);
            _Pragma("GCC unroll 4") for (int p = 0; p < pairs; p++)
            {
                even = x[n - 2], odd = x[n - 3];
                _Pragma("GCC unroll 3") for (int j = 0; j < pairs - 1; j++)
                {
                    even += q[p][j] * x[2 * j + 2];
                    odd += q[p][j] * x[2 * j + 1];
                }
                TYPED(store)(v + c + (2 * p + 1) * v_step, even + a[p] * odd);
                TYPED(store)(v + c + (2 * p + 2) * v_step, even - a[p] * odd);
            }
        }
    }
}

/* Past the caches, for what the next reader would not find there anyway: no line is read before it is written. */
#if defined(__AVX__)
#define STREAM "vmovntps %1, %0"
#else
#define STREAM "movntps %1, %0"
#endif
ALWAYS_INLINE void TYPED(stream)(REAL *p, vec v)
{
#if defined(__x86_64__)
    __asm__ volatile(STREAM : "=m"(*(vec *)p) : "v"(v));
#else
    TYPED(store)(p, v);
#endif
}
#undef STREAM

/* y_i = Σ_points α^i m(α), the point ∞ counting for the last i alone; with `bias` this is the last pass. */
ALWAYS_INLINE void TYPED(winograd_output_sized)(
    const int pairs, const int outputs, ptrdiff_t lines, ptrdiff_t vectors, const REAL *m, ptrdiff_t m_step,
    ptrdiff_t m_next, REAL *y, ptrdiff_t y_step, ptrdiff_t y_next, const REAL *coefficient, const REAL *bias,
    int accumulate, int rectified, int streamed)
{
    const int n = 2 * pairs + 2;
    vec power[4][WINOGRAD_POWERS];
    _Pragma("GCC unroll 4") for (int p = 0; p < pairs; p++)
        _Pragma("GCC unroll 8") for (int i = 1; i < outputs; i++)
            power[p][i] = TYPED(broadcast)(coefficient[pairs * pairs + p * WINOGRAD_POWERS + i]);
    for (ptrdiff_t line = 0; line < lines; line++, m += m_next, y += y_next)
        for (ptrdiff_t c = 0; c < vectors * LANES; c += LANES) {
            const vec zero = TYPED(load)(m + c), infinite = TYPED(load)(m + c + (n - 1) * m_step);
            vec plus[4], minus[4];
            _Pragma("GCC unroll 4") for (int p = 0; p < pairs; p++)
            {
                const vec s = TYPED(load)(m + c + (2 * p + 1) * m_step);
                const vec t = TYPED(load)(m + c + (2 * p + 2) * m_step);
                plus[p] = s + t;
                minus[p] = s - t;
            }
            _Pragma("GCC unroll 8") for (int i = 0; i < outputs; i++)
            {
                vec sum = i == 0 ? zero + plus[0] : power[0][i] * (i % 2 ? minus[0] : plus[0]);
                _Pragma("GCC unroll 4") for (int p = 1; p < pairs; p++)
                    sum += i == 0 ? plus[p] : power[p][i] * (i % 2 ? minus[p] : plus[p]);
                if (i == outputs - 1)
                    sum += infinite;
                if (bias) {
                    sum += TYPED(load)(bias + c);
                    if (accumulate)
                        sum += TYPED(load)(y + c + i * y_step);
                    sum = rectified ? TYPED(rectify)(sum) : sum;
                }
                if (streamed)
                    TYPED(stream)(y + c + i * y_step, sum);
                else
                    TYPED(store)(y + c + i * y_step, sum);
            }
        }
}

#define CASE(pairs)                                                                                         \
    case pairs:                                                                                             \
        TYPED(winograd_input_sized)(pairs, lines, vectors, source, offset, NULL, v, v_step, v_next,        \
                                    coefficient);                                                           \
        return;
ALWAYS_INLINE void TYPED(winograd_input_first)(
    int pairs, ptrdiff_t lines, ptrdiff_t vectors, const REAL *const *source, ptrdiff_t offset, REAL *v,
    ptrdiff_t v_step, ptrdiff_t v_next, const REAL *coefficient)
{
    switch (pairs) {
        CASE(1) CASE(2) CASE(3) CASE(4)
    }
}
#undef CASE

#define CASE(pairs)                                                                                         \
    case pairs:                                                                                             \
        TYPED(winograd_input_sized)(pairs, lines, vectors, NULL, 0, half, v, v_step, v_next, coefficient); \
        return;
ALWAYS_INLINE void TYPED(winograd_input_second)(
    int pairs, ptrdiff_t lines, ptrdiff_t vectors, const REAL *half, REAL *v, ptrdiff_t v_step,
    ptrdiff_t v_next, const REAL *coefficient)
{
    switch (pairs) {
        CASE(1) CASE(2) CASE(3) CASE(4)
    }
}
#undef CASE

#define CASE(pairs, outputs)                                                                                \
    case pairs * 8 + outputs:                                                                               \
        TYPED(winograd_output_sized)(pairs, outputs, lines, vectors, m, m_step, m_next, y, y_step, y_next, \
                                     coefficient, bias, accumulate, rectified, streamed);                   \
        return;
static void TYPED(winograd_output_lines)(
    int pairs, int outputs, ptrdiff_t lines, ptrdiff_t vectors, const REAL *m, ptrdiff_t m_step,
    ptrdiff_t m_next, REAL *y, ptrdiff_t y_step, ptrdiff_t y_next, const REAL *coefficient, const REAL *bias,
    int accumulate, int rectified, int streamed)
{
    switch (pairs * 8 + outputs) { /* F(2, 3), F(2, 5), F(4, 3), F(2, 7), F(4, 5), F(6, 3), F(4, 7); */
        CASE(2, 1) CASE(1, 2) CASE(2, 2) CASE(2, 4) CASE(3, 2) CASE(3, 4) CASE(3, 6) CASE(4, 4)
        CASE(1, 3) CASE(2, 5) CASE(2, 3) CASE(3, 5) /* F(3, 2), F(5, 2), F(3, 4), F(5, 4) */
    }
}
#undef CASE

/* Some tiles of V, v_next apart. pixel[(tile · n_h + i) · n_w + j] is the address of pixel (i, j) of a tile.
 * Without pairs an axis has one point and is left as it is; one axis at least has some. `channels` counts whole
 * vectors. */
static void TYPED(winograd_input)(
    int pairs_h, int pairs_w, ptrdiff_t tiles, const REAL *const *pixel, ptrdiff_t channels, REAL *v,
    ptrdiff_t position_stride, ptrdiff_t v_next, const REAL *coefficient_h, const REAL *coefficient_w)
{
    const int n_h = 2 * pairs_h + 2, n_w = 2 * pairs_w + 2;
    REAL half[WINOGRAD_MAX_POSITIONS * WINOGRAD_PITCH] __attribute__((aligned(VECTOR_BYTES)));
    if (pairs_h == 0 || pairs_w == 0) {
        TYPED(winograd_input_first)(pairs_h + pairs_w, tiles, channels / LANES, pixel, 0, v, position_stride,
                                    v_next, pairs_h ? coefficient_h : coefficient_w);
        return;
    }
    for (ptrdiff_t tile = 0; tile < tiles; tile++, pixel += n_h * n_w, v += v_next)
        for (ptrdiff_t c = 0; c < channels; c += WINOGRAD_PITCH) {
            const ptrdiff_t vectors = (channels - c < WINOGRAD_PITCH ? channels - c : WINOGRAD_PITCH) / LANES;
            TYPED(winograd_input_first)(pairs_w, n_h, vectors, pixel, c, half, n_h * WINOGRAD_PITCH,
                                        WINOGRAD_PITCH, coefficient_w);
            TYPED(winograd_input_second)(pairs_h, n_w, vectors, half, v + c, n_w * position_stride,
                                         position_stride, coefficient_h);
        }
}

/* Some tiles of Y, from each to the next m_next and y_next: `columns` counts whole vectors, at most two, in m,
 * in y and in bias. Where outputs are `streamed`, they begin on whole vectors. */
static void TYPED(winograd_output)(
    int pairs_h, int outputs_h, int pairs_w, int outputs_w, ptrdiff_t tiles, const REAL *m,
    ptrdiff_t position_stride, ptrdiff_t m_next, int columns, REAL *y, ptrdiff_t row_pitch,
    ptrdiff_t pixel_pitch, ptrdiff_t y_next, const REAL *coefficient_h, const REAL *coefficient_w,
    const REAL *bias, int accumulate, int rectified, int streamed)
{
    const int n_h = 2 * pairs_h + 2, n_w = 2 * pairs_w + 2;
    const ptrdiff_t vectors = columns / LANES;
    REAL half[WINOGRAD_MAX_POSITIONS * 2 * LANES] __attribute__((aligned(VECTOR_BYTES)));
    if (pairs_h == 0)
        TYPED(winograd_output_lines)(pairs_w, outputs_w, tiles, vectors, m, position_stride, m_next, y,
                                     pixel_pitch, y_next, coefficient_w, bias, accumulate, rectified, streamed);
    else if (pairs_w == 0)
        TYPED(winograd_output_lines)(pairs_h, outputs_h, tiles, vectors, m, position_stride, m_next, y,
                                     row_pitch, y_next, coefficient_h, bias, accumulate, rectified, streamed);
    else
        for (ptrdiff_t tile = 0; tile < tiles; tile++, m += m_next, y += y_next) {
            TYPED(winograd_output_lines)(pairs_w, outputs_w, n_h, vectors, m, position_stride,
                                         n_w * position_stride, half, n_h * columns, columns, coefficient_w,
                                         NULL, 0, 0, 0);
            TYPED(winograd_output_lines)(pairs_h, outputs_h, outputs_w, vectors, half, columns,
                                         n_h * columns, y, row_pitch, pixel_pitch, coefficient_h, bias,
                                         accumulate, rectified, streamed);
        }
}

/* points × columns of sums of `taps` rows: target[i][j] = Σ_k matrix[i][k] source[k][j], for one vector's worth of
 * columns j, which is what lets the compiler turn them into vectors. */
#define WEIGHT_LINE(to)                                                                               \
    for (ptrdiff_t i = 0; i < points; i++)                                                                  \
        for (int j = 0; j < LANES; j++) {                                                                   \
            double sum = 0.0;                                                                               \
            _Pragma("GCC unroll 7") for (int k = 0; k < taps; k++)                                          \
                sum += matrix[i * taps + k] * source[k * source_step + j];                                  \
            target[i * target_step + j] = (to)sum;                                                          \
        }
ALWAYS_INLINE void TYPED(winograd_weight_first)(
    const int taps, ptrdiff_t points, const double *matrix, const REAL *restrict source, ptrdiff_t source_step,
    double *restrict target, ptrdiff_t target_step)
{
    WEIGHT_LINE(double)
}

ALWAYS_INLINE void TYPED(winograd_weight_second)(
    const int taps, ptrdiff_t points, const double *matrix, const double *restrict source,
    ptrdiff_t source_step, REAL *restrict target, ptrdiff_t target_step)
{
    WEIGHT_LINE(REAL)
}
#undef WEIGHT_LINE

/* The transformed weights of one vector of kernels, whose taps are tap_stride apart. */
ALWAYS_INLINE void TYPED(winograd_weight_sized)(
    const int taps_h, const int taps_w, ptrdiff_t points_h, ptrdiff_t points_w, const double *matrix_h,
    const double *matrix_w, const REAL *g, ptrdiff_t tap_stride, REAL *u, ptrdiff_t position_stride)
{
    double half[WINOGRAD_MAX_POINTS * 7 * LANES] __attribute__((aligned(VECTOR_BYTES)));
    for (int j = 0; j < taps_w; j++)
        TYPED(winograd_weight_first)(taps_h, points_h, matrix_h, g + j * tap_stride, taps_w * tap_stride,
                                     half + j * LANES, taps_w * LANES);
    for (ptrdiff_t i = 0; i < points_h; i++)
        TYPED(winograd_weight_second)(taps_w, points_w, matrix_w, half + i * taps_w * LANES, LANES,
                                      u + i * points_w * position_stride, position_stride);
}

static void TYPED(winograd_weight)(
    int taps_h, int taps_w, ptrdiff_t points_h, ptrdiff_t points_w, const double *matrix_h,
    const double *matrix_w, const REAL *g, ptrdiff_t tap_stride, REAL *u, ptrdiff_t position_stride)
{
#define CASE(h, w)                                                                                          \
    case h * 8 + w:                                                                                         \
        TYPED(winograd_weight_sized)(h, w, points_h, points_w, matrix_h, matrix_w, g, tap_stride, u,       \
                                     position_stride);                                                      \
        return;
#define CASES(h) CASE(h, 1) CASE(h, 2) CASE(h, 3) CASE(h, 5) CASE(h, 7)
    switch (taps_h * 8 + taps_w) {
        CASES(1) CASE(1, 4) CASES(2) CASES(3) CASES(5) CASES(7)
    }
#undef CASES
#undef CASE
}

#undef WINOGRAD_PITCH
