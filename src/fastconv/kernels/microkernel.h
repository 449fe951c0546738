/* The register-blocked inner kernels: with its two parts the only C of this package.
 *
 * Written once with GCC's vector extensions. Their width follows the instruction set the including
 * file is compiled for, and the file includes itself twice to make the float32 (_f32) and float64
 * (_f64) versions.
 *
 *   transpose         between channels-last and planar pixels
 *   gemm_tile         C[rows × columns]  (+)=  A[rows × K] · B[K × columns]   in registers
 *   winograd_input    V = Bᵀ d B   for one tile, vectors over channels
 *   winograd_output   Y = Aᵀ M A   for one tile, vectors over channels, with bias and activation
 *   depthwise.h       depthwise and narrow groups
 *   spectral.h        complex products in the frequency domain
 */
#ifndef FASTCONV_MICROKERNEL_H
#define FASTCONV_MICROKERNEL_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* TILE_ROWS × 2 accumulators, two vectors of B and one broadcast of A fill the register file:
 * 32 registers for AVX-512 (14 · 2 + 2 + 1), 16 otherwise (6 · 2 + 2 + 1). */
#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define TILE_ROWS 14
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#define TILE_ROWS 6
#else
#define VECTOR_BYTES 16
#define TILE_ROWS 6
#endif

/* How many rows of B ahead of their use they are asked for: weights seldom wait in the L1 cache. */
#define PREFETCH_ROWS 24

/* What a tile's sum is added to: flags, START_OUTPUT combines with either bias. With START_OUTPUT the new
 * terms are summed first and then added, so a long sum is a sum of short ones, whose rounding errors grow
 * far slower. */
enum { START_ZERO = 0, START_BIAS = 1, START_ROW_BIAS = 2, START_OUTPUT = 4 };

/* How the lanes of a vector of outputs find their input channels in a narrow problem. */
enum { NARROW_PLAIN, NARROW_SHUFFLED, NARROW_BROADCAST };

/* A depthwise or narrow-group problem on channels-last pixels; strides and pitches count elements. */
struct narrow {
    ptrdiff_t kernel_h, kernel_w, stride_w, dilation_w, pad_w, group_in, width, columns;
    ptrdiff_t interior_begin, interior_end; /* the output columns whose whole window lies in the input */
    ptrdiff_t a_row, a_pixel, w_stride, y_row, y_pixel; /* a_row: from one kernel row to the next */
    ptrdiff_t vectors;                                  /* of output channels, which may overlap */
    const ptrdiff_t *start, *base;
    int mode, rectified, accumulate;
};

/* The rows and columns of a tile's input that lie in the image, counted from the tile's first. */
struct inside {
    ptrdiff_t first_row, last_row, first_column, last_column;
};

/* The same on planes: rows of the gathered input are cut into stride_w phases. */
struct planes {
    ptrdiff_t taps, stride_w, pad_w, phase_pitch, columns;
    ptrdiff_t a_row, w_stride, y_plane, y_row; /* a_row: from one output row to the next */
    int rectified, accumulate;
};

#define ALWAYS_INLINE static inline __attribute__((always_inline))

#define REAL float
#define MASK int32_t
#define TYPED(name) name##_f32
#include "microkernel.h"
#undef REAL
#undef MASK
#undef TYPED

#define REAL double
#define MASK int64_t
#define TYPED(name) name##_f64
#include "microkernel.h"
#undef REAL
#undef MASK
#undef TYPED

#else /* the body, once for each element type */

#define LANES ((int)(VECTOR_BYTES / sizeof(REAL)))
#define vec TYPED(vec)
#define vec_mask TYPED(vec_mask)

typedef REAL vec __attribute__((vector_size(VECTOR_BYTES)));
typedef MASK vec_mask __attribute__((vector_size(VECTOR_BYTES)));

ALWAYS_INLINE vec TYPED(load)(const REAL *p)
{
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

ALWAYS_INLINE void TYPED(store)(REAL *p, vec v) { memcpy(p, &v, sizeof v); }

ALWAYS_INLINE vec TYPED(broadcast)(REAL value) { return value - (vec){0}; }

/* max(v, 0) that lets a NaN through. */
ALWAYS_INLINE vec TYPED(rectify)(vec v) { return (vec)((vec_mask)v & ~(v < (vec){0})); }

/* Transpose a square of LANES × LANES: `rows` and `columns` of it are stored, all of it is loaded.
 *
 * Interleaving the first with the second half of the rows log₂(LANES) times is a transposition. */
ALWAYS_INLINE void TYPED(transpose_square)(
    const REAL *source, ptrdiff_t source_stride, REAL *target, ptrdiff_t target_stride, ptrdiff_t rows,
    ptrdiff_t columns)
{
    vec square[LANES], mixed[LANES];
    vec_mask low, high;
    _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++)
    {
        square[i] = TYPED(load)(source + i * source_stride);
        low[i] = i / 2 + i % 2 * LANES;
        high[i] = LANES / 2 + low[i];
    }
    _Pragma("GCC unroll 4") for (int step = 1; step < LANES; step *= 2)
    {
        _Pragma("GCC unroll 16") for (int i = 0; i < LANES / 2; i++)
        {
            mixed[2 * i] = __builtin_shuffle(square[i], square[i + LANES / 2], low);
            mixed[2 * i + 1] = __builtin_shuffle(square[i], square[i + LANES / 2], high);
        }
        memcpy(square, mixed, sizeof square);
    }
    if (rows == LANES && columns == LANES) {
        _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++)
            TYPED(store)(target + i * target_stride, square[i]);
        return;
    }
    for (ptrdiff_t i = 0; i < rows; i++)
        memcpy(target + i * target_stride, &square[i], columns * sizeof(REAL));
}

/* target[j · target_stride + i] = source[i · source_stride + j]   for i < rows, j < columns.
 *
 * `readable` elements may be read from `source` on; ragged edges are read as parts of whole vectors where
 * that stays within them, and element by element where not. */
static void TYPED(transpose)(
    const REAL *source, ptrdiff_t source_stride, ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t readable,
    REAL *target, ptrdiff_t target_stride)
{
    for (ptrdiff_t i = 0; i < rows; i += LANES)
        for (ptrdiff_t j = 0; j < columns; j += LANES) {
            const ptrdiff_t height = rows - i < LANES ? rows - i : LANES;
            const ptrdiff_t width = columns - j < LANES ? columns - j : LANES;
            const REAL *from = source + i * source_stride + j;
            REAL *to = target + j * target_stride + i;
            if (source_stride > 0 && (i + LANES - 1) * source_stride + j + LANES <= readable)
                TYPED(transpose_square)(from, source_stride, to, target_stride, width, height);
            else
                for (ptrdiff_t r = 0; r < height; r++)
                    for (ptrdiff_t c = 0; c < width; c++)
                        to[c * target_stride + r] = from[r * source_stride + c];
        }
}

/* The tile with its row count and its number of vectors known to the compiler. */
ALWAYS_INLINE void TYPED(gemm_tile_sized)(
    const int rows, const int vectors, const REAL *a, ptrdiff_t a_stride, ptrdiff_t segments,
    const ptrdiff_t *offset, const ptrdiff_t *length, const REAL *b, ptrdiff_t b_stride, REAL *c,
    ptrdiff_t c_stride, int start, const REAL *bias, int rectified)
{
    vec acc[TILE_ROWS][2];
    _Pragma("GCC unroll 16") for (int r = 0; r < rows; r++)
        _Pragma("GCC unroll 2") for (int v = 0; v < vectors; v++)
            acc[r][v] = start & START_BIAS       ? TYPED(load)(bias + v * LANES)
                        : start & START_ROW_BIAS ? TYPED(broadcast)(bias[r])
                                                 : (vec){0};

    for (ptrdiff_t s = 0; s < segments; s++) {
        /* Rows are addressed as a base plus 0, 1, 2, 3 or 4 strides, which x86 does without an
         * address register for each row. */
        const REAL *base[3];
        _Pragma("GCC unroll 3") for (int i = 0; i < 3; i++)
        {
            base[i] = a + offset[s] + 5 * i * a_stride;
            __asm__("" : "+r"(base[i])); /* keeps GCC from merging the three bases again */
        }
        for (ptrdiff_t k = 0; k < length[s]; k++, b += b_stride) {
            vec bv[2];
            _Pragma("GCC unroll 2") for (int v = 0; v < vectors; v++)
            {
                bv[v] = TYPED(load)(b + v * LANES);
                __builtin_prefetch(b + PREFETCH_ROWS * b_stride + v * LANES);
            }
            _Pragma("GCC unroll 16") for (int r = 0; r < rows; r++)
            {
                const vec av = TYPED(broadcast)(base[r / 5][r % 5 * a_stride + k]);
                _Pragma("GCC unroll 2") for (int v = 0; v < vectors; v++)
                    acc[r][v] += av * bv[v];
            }
        }
    }

    _Pragma("GCC unroll 16") for (int r = 0; r < rows; r++)
        _Pragma("GCC unroll 2") for (int v = 0; v < vectors; v++)
        {
            REAL *at = c + r * c_stride + v * LANES;
            const vec sum = start & START_OUTPUT ? TYPED(load)(at) + acc[r][v] : acc[r][v];
            TYPED(store)(at, rectified ? TYPED(rectify)(sum) : sum);
        }
}

/* C[r][j] = start + Σ_s Σ_k A[r · a_stride + offset[s] + k] · B[(k₀(s) + k) · b_stride + j]
 *
 * for r < rows ≤ TILE_ROWS and j < columns ≤ 2 · LANES, where segment s covers length[s] consecutive
 * elements of each row of A and k₀(s) = length[0] + … + length[s − 1]. B's rows hold whole vectors
 * (zero beyond `columns`), and so does `bias`, of which START_BIAS takes a
 * value a column, START_ROW_BIAS one a row. The order of summation is that of k alone, so a result
 * does not depend on how rows were gathered into tiles. */
static void TYPED(gemm_tile)(
    int rows, int columns, const REAL *a, ptrdiff_t a_stride, ptrdiff_t segments, const ptrdiff_t *offset,
    const ptrdiff_t *length, const REAL *b, ptrdiff_t b_stride, REAL *c, ptrdiff_t c_stride, int start,
    const REAL *bias, int rectified)
{
    const int vectors = columns > LANES ? 2 : 1;
    if (columns != vectors * LANES) { /* a ragged tile goes through a buffer of whole vectors */
        REAL whole[TILE_ROWS * 2 * LANES] __attribute__((aligned(VECTOR_BYTES)));
        memset(whole, 0, sizeof whole);
        for (int r = 0; start & START_OUTPUT && r < rows; r++)
            memcpy(whole + r * vectors * LANES, c + r * c_stride, columns * sizeof(REAL));
        TYPED(gemm_tile)(rows, vectors * LANES, a, a_stride, segments, offset, length, b, b_stride, whole,
                         vectors * LANES, start, bias, rectified);
        for (int r = 0; r < rows; r++)
            memcpy(c + r * c_stride, whole + r * vectors * LANES, columns * sizeof(REAL));
        return;
    }
#define TILE(rows, vectors)                                                                             \
    TYPED(gemm_tile_sized)(rows, vectors, a, a_stride, segments, offset, length, b, b_stride, c, c_stride, \
                           start, bias, rectified);                                                     \
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

/* Winograd's one-dimensional transforms for the points 0, ±a₁, …, ±a_P, ∞ (n = 2P + 2 of them).
 *
 * With r(t) = Π_p (t − a_p²) and q_p(t) = r(t) / (t − a_p²), the rows of Bᵀ are the coefficients of
 *     point 0: r(x²),   point ±a_p: x² q_p(x²) ± a_p x q_p(x²),   ∞: x r(x²),
 * so each pair shares its even and its odd half. `coefficient` holds, in this order,
 *     r: P values (the leading 1 is left out), q_p: P − 1 values each, a_p^i: i = 0 … 7 for each p.
 *
 * A tile is transformed along one axis and then along the other. Both passes are the same function: it
 * takes `lines` lines of n vectors, `step` elements apart, line after line `next` elements apart. */
#define WINOGRAD_MAX_POINTS 10
#define R_COEFFICIENT(j) TYPED(broadcast)(coefficient[j])
#define Q_COEFFICIENT(p, j) TYPED(broadcast)(coefficient[pairs + (p) * (pairs - 1) + (j)])
#define POWER(p, i) TYPED(broadcast)(coefficient[pairs * pairs + (p) * 8 + (i)])

ALWAYS_INLINE void TYPED(winograd_input_sized)(
    const int pairs, ptrdiff_t lines, const REAL *d, ptrdiff_t d_step, ptrdiff_t d_next, REAL *v,
    ptrdiff_t v_step, ptrdiff_t v_next, const REAL *coefficient)
{
    const int n = 2 * pairs + 2;
    for (ptrdiff_t line = 0; line < lines; line++, d += d_next, v += v_next) {
        vec x[WINOGRAD_MAX_POINTS];
        _Pragma("GCC unroll 10") for (int i = 0; i < n; i++) x[i] = TYPED(load)(d + i * d_step);
        vec even = x[n - 2], odd = x[n - 1];
        _Pragma("GCC unroll 4") for (int j = 0; j < pairs; j++)
        {
            even += R_COEFFICIENT(j) * x[2 * j];
            odd += R_COEFFICIENT(j) * x[2 * j + 1];
        }
        TYPED(store)(v, even);
        TYPED(store)(v + (n - 1) * v_step, odd);
        _Pragma("GCC unroll 4") for (int p = 0; p < pairs; p++)
        {
            even = x[n - 2], odd = x[n - 3];
            _Pragma("GCC unroll 4") for (int j = 0; j < pairs - 1; j++)
            {
                even += Q_COEFFICIENT(p, j) * x[2 * j + 2];
                odd += Q_COEFFICIENT(p, j) * x[2 * j + 1];
            }
            TYPED(store)(v + (2 * p + 1) * v_step, even + POWER(p, 1) * odd);
            TYPED(store)(v + (2 * p + 2) * v_step, even - POWER(p, 1) * odd);
        }
    }
}

/* y_i = Σ_points α^i m(α), the point ∞ counting for the last i alone; then bias, if any, and activation. */
ALWAYS_INLINE void TYPED(winograd_output_sized)(
    const int pairs, const int outputs, ptrdiff_t lines, const REAL *m, ptrdiff_t m_step, ptrdiff_t m_next,
    REAL *y, ptrdiff_t y_step, ptrdiff_t y_next, const REAL *coefficient, const REAL *bias, int rectified)
{
    const int n = 2 * pairs + 2;
    for (ptrdiff_t line = 0; line < lines; line++, m += m_next, y += y_next) {
        const vec zero = TYPED(load)(m), infinite = TYPED(load)(m + (n - 1) * m_step);
        vec plus[WINOGRAD_MAX_POINTS / 2], minus[WINOGRAD_MAX_POINTS / 2];
        _Pragma("GCC unroll 4") for (int p = 0; p < pairs; p++)
        {
            const vec a = TYPED(load)(m + (2 * p + 1) * m_step), b = TYPED(load)(m + (2 * p + 2) * m_step);
            plus[p] = a + b;
            minus[p] = a - b;
        }
        _Pragma("GCC unroll 8") for (int i = 0; i < outputs; i++)
        {
            vec sum = i == 0 ? zero + plus[0] : POWER(0, i) * (i % 2 ? minus[0] : plus[0]);
            _Pragma("GCC unroll 4") for (int p = 1; p < pairs; p++)
                sum += i == 0 ? plus[p] : POWER(p, i) * (i % 2 ? minus[p] : plus[p]);
            if (i == outputs - 1)
                sum += infinite;
            if (bias) {
                sum += TYPED(load)(bias);
                sum = rectified ? TYPED(rectify)(sum) : sum;
            }
            TYPED(store)(y + i * y_step, sum);
        }
    }
}

static void TYPED(winograd_input_lines)(
    int pairs, ptrdiff_t lines, const REAL *d, ptrdiff_t d_step, ptrdiff_t d_next, REAL *v, ptrdiff_t v_step,
    ptrdiff_t v_next, const REAL *coefficient)
{
#define CASE(pairs)                                                                                     \
    case pairs:                                                                                         \
        TYPED(winograd_input_sized)(pairs, lines, d, d_step, d_next, v, v_step, v_next, coefficient);  \
        return;
    switch (pairs) {
        CASE(1) CASE(2) CASE(3) CASE(4)
    }
#undef CASE
}

static void TYPED(winograd_output_lines)(
    int pairs, int outputs, ptrdiff_t lines, const REAL *m, ptrdiff_t m_step, ptrdiff_t m_next, REAL *y,
    ptrdiff_t y_step, ptrdiff_t y_next, const REAL *coefficient, const REAL *bias, int rectified)
{
#define CASE(pairs, outputs)                                                                            \
    case pairs * 8 + outputs:                                                                           \
        TYPED(winograd_output_sized)(pairs, outputs, lines, m, m_step, m_next, y, y_step, y_next,      \
                                     coefficient, bias, rectified);                                     \
        return;
    switch (pairs * 8 + outputs) { /* F(2, 3), F(2, 5), F(4, 3), F(2, 7), F(4, 5), F(4, 7) */
        CASE(1, 2) CASE(2, 2) CASE(2, 4) CASE(3, 2) CASE(3, 4) CASE(4, 4)
    }
#undef CASE
}

/* One tile of V. Without pairs an axis has one point and is left as it is; one axis at least has some.
 * `channels` is rounded up to whole vectors in d and in v. */
static void TYPED(winograd_input)(
    int pairs_h, int pairs_w, const REAL *d, ptrdiff_t row_pitch, ptrdiff_t pixel_pitch, ptrdiff_t channels,
    REAL *v, ptrdiff_t position_stride, const REAL *coefficient_h, const REAL *coefficient_w)
{
    const int n_h = 2 * pairs_h + 2, n_w = 2 * pairs_w + 2;
    const ptrdiff_t vectors = (channels + LANES - 1) / LANES;
    REAL half[WINOGRAD_MAX_POINTS * WINOGRAD_MAX_POINTS * LANES] __attribute__((aligned(VECTOR_BYTES)));
    if (pairs_h == 0)
        TYPED(winograd_input_lines)(pairs_w, vectors, d, pixel_pitch, LANES, v, position_stride, LANES,
                                    coefficient_w);
    else if (pairs_w == 0)
        TYPED(winograd_input_lines)(pairs_h, vectors, d, row_pitch, LANES, v, position_stride, LANES,
                                    coefficient_h);
    else
        for (ptrdiff_t c = 0; c < vectors * LANES; c += LANES) {
            TYPED(winograd_input_lines)(pairs_w, n_h, d + c, pixel_pitch, row_pitch, half, LANES,
                                        n_w * LANES, coefficient_w);
            TYPED(winograd_input_lines)(pairs_h, n_w, half, n_w * LANES, LANES, v + c,
                                        n_w * position_stride, position_stride, coefficient_h);
        }
}

/* One tile of Y: `columns` is rounded up to whole vectors in m, in y and in bias. */
static void TYPED(winograd_output)(
    int pairs_h, int outputs_h, int pairs_w, int outputs_w, const REAL *m, ptrdiff_t position_stride,
    int columns, REAL *y, ptrdiff_t row_pitch, ptrdiff_t pixel_pitch, const REAL *coefficient_h,
    const REAL *coefficient_w, const REAL *bias, int rectified)
{
    const int n_h = 2 * pairs_h + 2, n_w = 2 * pairs_w + 2;
    REAL half[WINOGRAD_MAX_POINTS * WINOGRAD_MAX_POINTS * LANES] __attribute__((aligned(VECTOR_BYTES)));
    for (int c = 0; c < columns; c += LANES, m += LANES, y += LANES, bias += LANES)
        if (pairs_h == 0)
            TYPED(winograd_output_lines)(pairs_w, outputs_w, 1, m, position_stride, 0, y, pixel_pitch, 0,
                                         coefficient_w, bias, rectified);
        else if (pairs_w == 0)
            TYPED(winograd_output_lines)(pairs_h, outputs_h, 1, m, position_stride, 0, y, row_pitch, 0,
                                         coefficient_h, bias, rectified);
        else {
            TYPED(winograd_output_lines)(pairs_w, outputs_w, n_h, m, position_stride, n_w * position_stride,
                                         half, LANES, outputs_w * LANES, coefficient_w, NULL, 0);
            TYPED(winograd_output_lines)(pairs_h, outputs_h, outputs_w, half, outputs_w * LANES, LANES, y,
                                         row_pitch, pixel_pitch, coefficient_h, bias, rectified);
        }
}

#undef R_COEFFICIENT
#undef Q_COEFFICIENT
#undef POWER
#undef WINOGRAD_MAX_POINTS

#include "depthwise.h"
#include "spectral.h"

#undef vec
#undef vec_mask
#undef LANES

#endif
