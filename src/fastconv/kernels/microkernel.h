/* The register-blocked inner kernels: with its parts the only C of this package.
 *
 * Written once with GCC's vector extensions. Their width follows the instruction set the including
 * file is compiled for, and the file includes itself twice to make the float32 (_f32) and float64
 * (_f64) versions.
 *
 *   transpose         between channels-last and planar pixels
 *   gemm_tile         C[rows × columns]  (+)=  A[rows × K] · B[K × columns]   in registers
 *   depthwise.h       depthwise and narrow groups on channels-last pixels, in strips.h the longest of its tiles
 *   planes.h          the same on planes
 *   depthwise_transposed.h  transposed depthwise convolution of stride 2, on pixels and planes
 *   gradients.h       the weight gradient's products
 *   spectral.h        complex products in the frequency domain
 *   pooling.h         the largest, and the weighted sum, of a few pixels; pooling_planes.h, along a row
 *   normalization.h   sums over rows
 *   winograd.h        the transforms of tiles
 *   winograd_half.h   products whose weights are transformed along one axis
 *   winograd_short.h  products and outputs of tiles of few terms, along a row
 *   winograd_depthwise.h   tiles along the rows of a depthwise convolution
 *   winograd_narrow.h Winograd along the rows of narrow groups
 *   strassen.h        the products and sums of Strassen's method
 *   sampling.h        bilinear samples
 *   attention.h       the exponential function, softmax block by block
 *   activation.h      activations, softmax
 *   moving.h          copies of runs, and of transposed matrices
 */
#ifndef FASTCONV_MICROKERNEL_H
#define FASTCONV_MICROKERNEL_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h> /* for what vector extensions lack: scaling by powers of two, bounds that keep NaN */
#endif

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

/* Activations. */
enum {
    RELU, RELU6, LEAKY_RELU, ELU, SIGMOID, TANH, SILU, GELU, GELU_TANH, SOFTPLUS, HARDSIGMOID, HARDSWISH
};

/* How the lanes of a vector of outputs find their input channels in a narrow problem. */
enum { NARROW_PLAIN, NARROW_SHUFFLED, NARROW_BROADCAST };

/* A depthwise or narrow-group problem on channels-last pixels; strides and pitches count elements. */
struct narrow {
    ptrdiff_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_w, group_in;
    ptrdiff_t height, width, columns;
    ptrdiff_t interior_begin, interior_end; /* the output columns whose whole window lies in the input */
    ptrdiff_t a_row, a_pixel, w_stride, y_row, y_pixel; /* a_row: from one kernel row to the next */
    ptrdiff_t a_step;                                   /* from one output row to the next */
    ptrdiff_t out_channels, vectors; /* the last vector of output channels may overlap the one before */
    ptrdiff_t lead; /* channels by which vectors begin earlier, on cache lines of the input */
    const ptrdiff_t *base;
    int sized, pairs; /* whether tiles are made for this kernel, and tiles of two rows */
    int windows;      /* whether each row of a strip reads its whole window */
    int abreast;      /* else the vectors that go down the rows of a strip together */
    int wrapped;      /* whether the first vector has the last `lead` channels before its own, else it overlaps */
    int mode, rectified, accumulate;
};

/* A row of a depthwise convolution in Winograd's form: pitches count elements, `width` the input's pixels. */
struct depthwise_row {
    ptrdiff_t width, a_row, a_pixel, y_pixel;
    int rectified, accumulate;
};

/* A part of the channels in Strassen's method. Elements: `second` from a pixel's first half of channels to the
 * second, s_next from sum to sum of A's quarters, `product` from panel to panel of B. */
struct strassen {
    ptrdiff_t depth, second, a_pitch, s_pitch, s_next, c_pitch, product;
    int added, rectified;
};

/* Tiles of Winograd's form along rows: `runs` runs of `run` terms, `skip` elements of V between them; matrix, from
 * output channel to output channel of planar weights; from tile (or plane) to tile, and from pixel to pixel of y; on
 * planes `columns` pixels. */
struct short_row {
    ptrdiff_t runs, run, skip, matrix, y_tile, y_pixel, columns;
    int accumulate, rectified, streamed;
};

/* Four columns of outputs of a narrow problem: of its rows + 2 rows of input those from `top` to `bottom`, and of six
 * columns those from `left` to `right`, are in the image. */
struct narrow_strip {
    ptrdiff_t x_row, x_pixel, y_row, y_pixel, rows, top, bottom, left, right, columns;
    int accumulate, rectified;
};

/* The rows and columns of a tile's input that lie in the image, counted from the tile's first. */
struct inside {
    ptrdiff_t first_row, last_row, first_column, last_column;
};

/* The same on planes. Rows of the gathered input are cut into stride_w phases; square kernels of depthwise problems
 * read a plane, `width` wide, where it lies. */
struct planes {
    ptrdiff_t taps, stride_w, pad_w, phase_pitch, columns, width;
    ptrdiff_t a_row, w_stride, y_plane, y_row; /* a_row: from one output row to the next */
    int rectified, accumulate;
};

/* A transposed depthwise convolution of stride 2 along the row. Pair 0 of a row of outputs has the input `shift`, `odd`
 * is 1 where the padding along the row is; weights of a kernel row lie w_stride apart. */
struct transposed {
    ptrdiff_t taps, odd, shift, kernel_h, stride_h, dilation_h, pad_h;
    ptrdiff_t height, width, columns, channels;
    ptrdiff_t w_stride, x_row, x_pixel, y_row, y_pixel;
    int rectified;
};

/* Vectors of a strip of planes. */
#if defined(__AVX512F__)
#define PLANE_WIDE 2
#else
#define PLANE_WIDE 1
#endif

/* Pixels that are asked for ahead of their use; pitches count bytes. */
struct ahead {
    const char *at;
    ptrdiff_t row, pixel;
};

/* The weight gradient of a depthwise kernel of three columns: `step` is the stride along the row. With each tile so many
 * bytes are asked for ahead, of inputs and of gradients. */
struct row_gradient {
    ptrdiff_t kernel_h, stride_h, dilation_h, pad_h, step, pad_w;
    ptrdiff_t height, width, columns, channels;
    ptrdiff_t x_row, x_pixel, g_row, g_pixel, sums_tap;
    ptrdiff_t ahead[2];
};

/* What the outputs of one axis read: output k the positions source[start[k]] … source[start[k + 1] − 1]. */
struct taps {
    ptrdiff_t size, out_size;
    const int64_t *start, *source;
    const double *weight, *divisor;
};

/* The taps of vectors of outputs, each the same number of them: where it reads from, `reach` vectors at most, and
 * lanes of what is there. */
struct plane_taps {
    ptrdiff_t blocks, most, reach;
    ptrdiff_t *base;
    void *lane, *valid, *weight, *divisor;
};

#define POOL_TAPS 9 /* of a 3 × 3 window; longer lists come in parts */
#define PLANE_LINES 4

/* Keeps a vector that was loaded in its register: GCC loads it anew for each use where it can, and one that
 * lies across two cache lines is then fetched twice each time. */
#if defined(__x86_64__)
#define HOLD(vector) __asm__("" : "+v"(vector))
#define HOLD_HERE(vector) __asm__ volatile("" : "+v"(vector)) /* and it is not computed later than here */
#else
#define HOLD(vector) (void)(vector)
#define HOLD_HERE(vector) (void)(vector)
#endif

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

/* `count` elements, at most a vector, and `rest` behind them. */
ALWAYS_INLINE vec TYPED(load_part)(const REAL *p, ptrdiff_t count, vec rest)
{
    if (count >= LANES) return TYPED(load)(p);
    memcpy(&rest, p, count * sizeof(REAL));
    return rest;
}

ALWAYS_INLINE void TYPED(store_part)(REAL *p, ptrdiff_t count, vec v)
{
    if (count >= LANES) /* a move, no call */
        TYPED(store)(p, v);
    else
        memcpy(p, &v, count * sizeof(REAL));
}

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
        square[i] = TYPED(load)(source);
        source += source_stride;
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
        _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++) square[i] = mixed[i];
    }
    _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++)
    {
        if (i == rows)
            return;
        if (columns == LANES)
            TYPED(store)(target, square[i]);
        else
            memcpy(target, &square[i], columns * sizeof(REAL));
        target += target_stride;
    }
}

/* target[j · target_stride + i] = source[i · source_stride + j]   for i < rows, j < columns.
 *
 * `readable` elements may be read from `source` on; ragged edges overlap the squares before them or are read
 * as parts of whole squares where that stays within them, and element by element where not. */
static void TYPED(transpose)(
    const REAL *source, ptrdiff_t source_stride, ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t readable,
    REAL *target, ptrdiff_t target_stride)
{
    for (ptrdiff_t y = 0; y < rows; y += LANES)
        for (ptrdiff_t x = 0; x < columns; x += LANES) {
            const ptrdiff_t i = y + LANES > rows && rows >= LANES ? rows - LANES : y;
            const ptrdiff_t j = x + LANES > columns && columns >= LANES ? columns - LANES : x;
            const ptrdiff_t height = rows - i < LANES ? rows - i : LANES;
            const ptrdiff_t width = columns - j < LANES ? columns - j : LANES;
            const REAL *from = source + i * source_stride + j;
            REAL *to = target + j * target_stride + i;
            if (source_stride > 0 && (i + LANES - 1) * source_stride + j + LANES <= readable)
                if (height == LANES && width == LANES)
                    TYPED(transpose_square)(from, source_stride, to, target_stride, LANES, LANES);
                else
                    TYPED(transpose_square)(from, source_stride, to, target_stride, width, height);
            else
                for (ptrdiff_t r = 0; r < height; r++)
                    for (ptrdiff_t c = 0; c < width; c++)
                        to[c * target_stride + r] = from[r * source_stride + c];
        }
}

/* One term of each of a tile's sums. */
ALWAYS_INLINE void TYPED(gemm_term)(
    const int rows, const int vectors, const REAL *const base[3], ptrdiff_t a_stride, ptrdiff_t k, const REAL *b,
    ptrdiff_t b_stride, vec acc[TILE_ROWS][2])
{
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

/* Terms first … last of a segment; `prefetching` brings a line at `ahead` with each. Two loops, one with it
 * and one without, because even one more instruction a term costs 1–3 %. */
ALWAYS_INLINE void TYPED(gemm_terms)(
    const int rows, const int vectors, const int prefetching, const REAL *const base[3], ptrdiff_t a_stride,
    ptrdiff_t first, ptrdiff_t last, const REAL *b, ptrdiff_t b_stride, const REAL *ahead,
    ptrdiff_t ahead_stride, vec acc[TILE_ROWS][2])
{
    for (ptrdiff_t k = first; k < last; k++, b += b_stride) {
        if (prefetching) {
            __builtin_prefetch(ahead, 0, 2);
            ahead += ahead_stride;
        }
        TYPED(gemm_term)(rows, vectors, base, a_stride, k, b, b_stride, acc);
    }
}

/* The tile with its row count and its number of vectors known to the compiler. */
ALWAYS_INLINE void TYPED(gemm_tile_sized)(
    const int rows, const int vectors, const REAL *a, ptrdiff_t a_stride, ptrdiff_t segments,
    const ptrdiff_t *offset, const ptrdiff_t *length, const REAL *b, ptrdiff_t b_stride, REAL *c,
    ptrdiff_t c_stride, int start, const REAL *bias, int rectified, const REAL *ahead)
{
    const REAL *own = c; /* the next row of C to be brought, and how many are left */
    ptrdiff_t left = rows;
    vec acc[TILE_ROWS][2];
    _Pragma("GCC unroll 16") for (int r = 0; r < rows; r++)
        _Pragma("GCC unroll 2") for (int v = 0; v < vectors; v++)
            acc[r][v] = start & START_BIAS       ? TYPED(load)(bias + v * LANES)
                        : start & START_ROW_BIAS ? TYPED(broadcast)(bias[r])
                                                 : (vec){0};

    for (ptrdiff_t s = 0; s < segments; s++) {
        /* Rows are addressed as a base plus 0, 1, 2, 3 or 4 strides, which x86 does without an
         * address register for each row. */
        const ptrdiff_t first = length[s] < left ? length[s] : left;
        const REAL *base[3];
        _Pragma("GCC unroll 3") for (int i = 0; i < 3; i++)
        {
            base[i] = a + offset[s] + 5 * i * a_stride;
            __asm__("" : "+r"(base[i])); /* keeps GCC from merging the three bases again */
        }
        if (ahead) {
            TYPED(gemm_terms)(rows, vectors, 1, base, a_stride, 0, length[s], b, b_stride, ahead, LANES, acc);
            ahead += length[s] * LANES;
        } else {
            TYPED(gemm_terms)(rows, vectors, 1, base, a_stride, 0, first, b, b_stride, own, c_stride, acc);
            TYPED(gemm_terms)(rows, vectors, 0, base, a_stride, first, length[s], b + first * b_stride, b_stride,
                              own, c_stride, acc);
            own += first * c_stride;
            left -= first;
        }
        b += length[s] * b_stride;
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
 * does not depend on how rows were gathered into tiles. While it sums, a tile has memory fetch a line with each
 * k: what lies `ahead`, needed after this tile, or, where that is NULL, its own rows of C, which it would
 * otherwise wait for in the end where they lie in the L3 cache. */
static void TYPED(gemm_tile)(
    int rows, int columns, const REAL *a, ptrdiff_t a_stride, ptrdiff_t segments, const ptrdiff_t *offset,
    const ptrdiff_t *length, const REAL *b, ptrdiff_t b_stride, REAL *c, ptrdiff_t c_stride, int start,
    const REAL *bias, int rectified, const REAL *ahead)
{
    const int vectors = columns > LANES ? 2 : 1;
    if (columns != vectors * LANES) { /* a ragged tile goes through a buffer of whole vectors */
        REAL whole[TILE_ROWS * 2 * LANES] __attribute__((aligned(VECTOR_BYTES)));
        memset(whole, 0, sizeof whole);
        for (int r = 0; start & START_OUTPUT && r < rows; r++)
            memcpy(whole + r * vectors * LANES, c + r * c_stride, columns * sizeof(REAL));
        TYPED(gemm_tile)(rows, vectors * LANES, a, a_stride, segments, offset, length, b, b_stride, whole,
                         vectors * LANES, start, bias, rectified, ahead);
        for (int r = 0; r < rows; r++)
            memcpy(c + r * c_stride, whole + r * vectors * LANES, columns * sizeof(REAL));
        return;
    }
#define TILE(rows, vectors)                                                                             \
    TYPED(gemm_tile_sized)(rows, vectors, a, a_stride, segments, offset, length, b, b_stride, c, c_stride, \
                           start, bias, rectified, ahead);                                              \
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

#include "depthwise.h"
#include "depthwise_transposed.h"
#include "planes.h"
#include "normalization.h"
#include "pooling.h"
#include "pooling_planes.h"
#include "spectral.h"
#include "winograd.h"
#include "winograd_half.h"
#include "winograd_short.h"
#include "winograd_depthwise.h"
#include "winograd_narrow.h"
#include "strassen.h"
#include "gradients.h"
#include "sampling.h"
#include "attention.h"
#include "activation.h"
#include "moving.h"

#undef vec
#undef vec_mask
#undef LANES

#endif
