/* Depthwise and narrow-group convolution in registers; microkernel.h includes this once for each element type.
 *
 *   narrow_rows   rows of outputs on channels-last pixels, vectors over output channels
 *
 * As planes.h does, it sums a group's products in the order (kernel row, input channel, kernel column) onto the
 * bias, so that the layout of the input never changes a bit of the result. */

/* Output pixels of a register tile: with two rows, 14 sums, 6 weights (of 3×3) and an input. At stride 2 a tile of
 * five reads as many input columns, and more would not stay in the L1 cache. */
#if defined(__AVX512F__)
#define NARROW_PIXELS 7
#define NARROW_MOST(step) ((step) == 1 ? 7 : 5)
#else
#define NARROW_PIXELS 4
#define NARROW_MOST(step) 4
#endif
/* Vectors of a strip that go abreast, and the bytes of a band that are near enough to do without. */
#define NARROW_ABREAST 8
#define NARROW_NEAR (640 << 10)

/* What each output channel of a vector multiplies: its own channel of the LANES that are loaded, one of them
 * that a shuffle finds, or, where the vector is a whole group, the same one for all. */
ALWAYS_INLINE vec TYPED(narrow_load)(const int mode, const REAL *at, vec_mask index)
{
    if (mode == NARROW_BROADCAST)
        return TYPED(broadcast)(*at);
    const vec v = TYPED(load)(at);
    return mode == NARROW_SHUFFLED ? __builtin_shuffle(v, index) : v;
}

/* What becomes of a sum; where it is added to the output, the first `kept` lanes had theirs added before. */
ALWAYS_INLINE void TYPED(narrow_store)(const struct narrow *s, REAL *y, vec sum, ptrdiff_t kept)
{
    const vec old = s->accumulate ? TYPED(load)(y) : sum;
    if (s->accumulate)
        sum += old;
    if (s->rectified)
        sum = TYPED(rectify)(sum);
    if (s->accumulate) {
        vec_mask lane;
        for (int l = 0; l < LANES; l++)
            lane[l] = l;
        const vec_mask done = lane < (MASK)kept;
        sum = (vec)(((vec_mask)old & done) | ((vec_mask)sum & ~done));
    }
    TYPED(store)(y, sum);
}

/* Whether column q of the input of a tile lies in the image: begin ≤ q < end. In a sized problem the first
 * window ends and the last one begins in the image, so that only columns at the tile's ends need a test. */
#define COLUMN_IS_INSIDE(q) \
    (((q) >= taps - 1 || (q) >= begin) && ((q) <= (pixels - 1) * step || (q) < end))

/* One row of the input, whose kernel row is `i` for the first row of sums and `i − step` for the second: every
 * input vector is loaded once and multiplied into all sums that it is part of. */
ALWAYS_INLINE void TYPED(narrow_input_row)(
    const int first, const int second, const int pixels, const int taps, const int step, const int mode,
    const struct narrow *s, const struct inside *in, ptrdiff_t i, const REAL *a, const REAL *w,
    const vec_mask *index, vec (*sum)[NARROW_PIXELS])
{
    const ptrdiff_t begin = in->first_column, end = in->last_column;
    const ptrdiff_t channels = mode == NARROW_PLAIN ? 1 : s->group_in, tap_row = channels * taps * s->w_stride;
    for (ptrdiff_t c = 0; c < channels; c++) {
        const REAL *at = mode == NARROW_BROADCAST ? a + c : a;
        const REAL *row = w + i * tap_row + c * taps * s->w_stride;
        const vec_mask lanes = mode == NARROW_SHUFFLED ? index[c] : (vec_mask){0};
        vec weight[2][7];
        _Pragma("GCC unroll 7") for (int j = 0; j < taps; j++)
        {
            if (first)
                weight[0][j] = TYPED(load)(row + j * s->w_stride);
            if (second)
                weight[1][j] = TYPED(load)(row - step * tap_row + j * s->w_stride);
        }
        _Pragma("GCC unroll 32") for (int q = 0; q < (pixels - 1) * step + taps; q++)
        {
            if (COLUMN_IS_INSIDE(q)) {
                vec v = TYPED(narrow_load)(mode, at, lanes);
                HOLD(v);
                _Pragma("GCC unroll 7") for (int p = 0; p < pixels; p++)
                {
                    const int j = q - p * step;
                    if (j < 0 || j >= taps)
                        continue;
                    if (first)
                        sum[0][p] += v * weight[0][j];
                    if (second)
                        sum[1][p] += v * weight[1][j];
                }
            }
            at += s->a_pixel;
            __asm__("" : "+r"(at)); /* keeps GCC from holding a multiple of the pitch for every q */
        }
    }
}

ALWAYS_INLINE void TYPED(narrow_tile)(
    const int rows, const int pixels, const int taps, const int step, const int mode, const struct narrow *s,
    const struct inside *in, const REAL *a, const REAL *w, const REAL *bias, const vec_mask *index,
    ptrdiff_t kept, REAL *y)
{
    vec sum[2][NARROW_PIXELS];
    _Pragma("GCC unroll 2") for (int r = 0; r < rows; r++)
        _Pragma("GCC unroll 7") for (int p = 0; p < pixels; p++) sum[r][p] = TYPED(load)(bias);
#define INPUT_ROW(one, two) \
    TYPED(narrow_input_row)(one, two, pixels, taps, step, mode, s, in, i, a + i * s->a_row, w, index, sum)
    if (rows == 2) {
        _Pragma("GCC unroll 9") for (int i = 0; i < taps + step; i++)
            if (i >= in->first_row && i < in->last_row) {
                if (i < step)
                    INPUT_ROW(1, 0);
                else if (i < taps)
                    INPUT_ROW(1, 1);
                else
                    INPUT_ROW(0, 1);
            }
    } else {
        const ptrdiff_t last = in->last_row < s->kernel_h ? in->last_row : s->kernel_h;
        for (ptrdiff_t i = in->first_row > 0 ? in->first_row : 0; i < last; i++)
            INPUT_ROW(1, 0);
    }
#undef INPUT_ROW
    const int as_it_is = !s->accumulate && !s->rectified;
    _Pragma("GCC unroll 2") for (int r = 0; r < rows; r++)
        _Pragma("GCC unroll 7") for (int p = 0; p < pixels; p++)
        {
            REAL *at = y + r * s->y_row + p * s->y_pixel;
            if (as_it_is)
                TYPED(store)(at, sum[r][p]);
            else
                TYPED(narrow_store)(s, at, sum[r][p], kept);
        }
}

/* A tile of any number of pixels; one of two rows is of a square kernel with equal strides. */
#define NARROW_RUN(name, rows, taps, step, mode)                                                           \
    static void TYPED(name)(                                                                               \
        const struct narrow *s, ptrdiff_t pixels, const struct inside *in, const REAL *a, const REAL *w,   \
        const REAL *bias, const vec_mask *index, ptrdiff_t kept, REAL *y)                                  \
    {                                                                                                      \
        switch (pixels) {                                                                                  \
            NARROW_CASE(rows, 1, taps, step, mode)                                                         \
            NARROW_CASE(rows, 2, taps, step, mode)                                                         \
            NARROW_CASE(rows, 3, taps, step, mode)                                                         \
            NARROW_CASE(rows, 4, taps, step, mode)                                                         \
            NARROW_WIDE_CASES(rows, taps, step, mode)                                                      \
        }                                                                                                  \
    }
#define NARROW_CASE(rows, pixels, taps, step, mode)                                                        \
    case pixels:                                                                                           \
        if ((pixels) <= NARROW_MOST(step))                                                                 \
            TYPED(narrow_tile)(rows, pixels, taps, step, mode, s, in, a, w, bias, index, kept, y);         \
        break;
#if NARROW_PIXELS > 4
#define NARROW_WIDE_CASES(rows, taps, step, mode) \
    NARROW_CASE(rows, 5, taps, step, mode)        \
    NARROW_CASE(rows, 6, taps, step, mode)        \
    NARROW_CASE(rows, 7, taps, step, mode)
#else
#define NARROW_WIDE_CASES(rows, taps, step, mode)
#endif
#define NARROW_STEP(name, taps, step, mode)                 \
    NARROW_RUN(name##_s##step, 1, taps, step, mode)         \
    NARROW_RUN(name##_s##step##_pair, 2, taps, step, mode)
#define NARROW_RUNS(name, taps, mode)   \
    NARROW_STEP(name, taps, 1, mode)    \
    NARROW_STEP(name, taps, 2, mode)
NARROW_RUNS(narrow_3, 3, NARROW_PLAIN)
NARROW_RUNS(narrow_5, 5, NARROW_PLAIN)
NARROW_RUNS(narrow_7, 7, NARROW_PLAIN)
NARROW_RUNS(narrow_shuffled_3, 3, NARROW_SHUFFLED)
NARROW_RUNS(narrow_broadcast_3, 3, NARROW_BROADCAST)
/* The phases of a gradient at stride 2. */
NARROW_STEP(narrow_shuffled_1, 1, 1, NARROW_SHUFFLED)
NARROW_STEP(narrow_shuffled_2, 2, 1, NARROW_SHUFFLED)
NARROW_STEP(narrow_broadcast_1, 1, 1, NARROW_BROADCAST)
NARROW_STEP(narrow_broadcast_2, 2, 1, NARROW_BROADCAST)
#undef NARROW_RUNS
#undef NARROW_STEP
#undef NARROW_RUN
#undef NARROW_CASE
#undef NARROW_WIDE_CASES

/* Whether tiles are made for this kernel width, stride and dilation; all other problems are `any`. */
static int TYPED(narrow_sized)(const struct narrow *s)
{
    const ptrdiff_t last = (s->columns - 1) * s->stride_w - s->pad_w; /* where the last window begins */
    const int odd = s->stride_w <= 2 && s->kernel_w % 2 == 1 && s->kernel_w >= 3 &&
                    s->kernel_w <= (s->mode == NARROW_PLAIN ? 7 : 3);
    const int phase = s->stride_w == 1 && s->kernel_w <= 2 && s->mode != NARROW_PLAIN;
    return s->dilation_w == 1 && (odd || phase) && s->pad_w < s->kernel_w && last < s->width;
}

typedef void TYPED(narrow_run)(
    const struct narrow *, ptrdiff_t, const struct inside *, const REAL *, const REAL *, const REAL *,
    const vec_mask *, ptrdiff_t, REAL *);

static TYPED(narrow_run) * TYPED(narrow_run_for)(const struct narrow *s, int rows)
{
#define RUNS(name) {TYPED(name##_s1), TYPED(name##_s1_pair), TYPED(name##_s2), TYPED(name##_s2_pair)}
#define PHASES(name) {TYPED(name##_s1), TYPED(name##_s1_pair)}
    static TYPED(narrow_run) *const runs[9][4] = {
        RUNS(narrow_3), RUNS(narrow_5), RUNS(narrow_7),
        PHASES(narrow_shuffled_1), PHASES(narrow_shuffled_2), RUNS(narrow_shuffled_3),
        PHASES(narrow_broadcast_1), PHASES(narrow_broadcast_2), RUNS(narrow_broadcast_3),
    };
#undef PHASES
#undef RUNS
    const int kind = s->mode == NARROW_PLAIN ? (int)s->kernel_w / 2 - 1
                                             : (int)s->kernel_w + (s->mode == NARROW_SHUFFLED ? 2 : 5);
    return runs[kind][2 * (s->stride_w - 1) + rows - 1];
}

/* The first output channel of a vector. */
ALWAYS_INLINE ptrdiff_t TYPED(narrow_start)(const struct narrow *s, ptrdiff_t v)
{
    const ptrdiff_t start = v * LANES - s->lead, last = s->out_channels - LANES;
    return last < 0 || start < 0 ? 0 : start < last ? start : last;
}

/* How many of a vector's first channels the one before has too. */
ALWAYS_INLINE ptrdiff_t TYPED(narrow_kept)(const struct narrow *s, ptrdiff_t v)
{
    return v > 0 ? TYPED(narrow_start)(s, v - 1) + LANES - TYPED(narrow_start)(s, v) : 0;
}

#if NARROW_PIXELS == 7
#include "strips.h"
#endif

/* Any kernel, dilation and stride: a row of pixels, whose kernel columns first_j ≤ j < last_j lie inside. */
ALWAYS_INLINE void TYPED(narrow_any_tile)(
    const int pixels, const int mode, const struct narrow *s, ptrdiff_t first, ptrdiff_t last,
    ptrdiff_t first_j, ptrdiff_t last_j, const REAL *a, const REAL *w, const REAL *bias,
    const vec_mask *index, ptrdiff_t kept, REAL *y)
{
    vec sum[NARROW_PIXELS];
    _Pragma("GCC unroll 7") for (int p = 0; p < pixels; p++) sum[p] = TYPED(load)(bias);
    for (ptrdiff_t i = first; i < last; i++)
        for (ptrdiff_t c = 0; c < s->group_in; c++)
            for (ptrdiff_t j = first_j; j < last_j; j++) {
                const REAL *at = a + i * s->a_row + j * s->dilation_w * s->a_pixel;
                const vec weight = TYPED(load)(w + ((i * s->group_in + c) * s->kernel_w + j) * s->w_stride);
                const vec_mask lanes = mode == NARROW_SHUFFLED ? index[c] : (vec_mask){0};
                at = mode == NARROW_BROADCAST ? at + c : at;
                _Pragma("GCC unroll 7") for (int p = 0; p < pixels; p++)
                    sum[p] += TYPED(narrow_load)(mode, at + p * s->stride_w * s->a_pixel, lanes) * weight;
            }
    _Pragma("GCC unroll 7") for (int p = 0; p < pixels; p++)
        TYPED(narrow_store)(s, y + p * s->y_pixel, sum[p], kept);
}

static void TYPED(narrow_any)(
    const struct narrow *s, ptrdiff_t count, ptrdiff_t first, ptrdiff_t last, ptrdiff_t first_j,
    ptrdiff_t last_j, const REAL *a, const REAL *w, const REAL *bias, const vec_mask *index, ptrdiff_t kept,
    REAL *y)
{
#define TILE(pixels, mode) \
    TYPED(narrow_any_tile)(pixels, mode, s, first, last, first_j, last_j, a, w, bias, index, kept, y)
#define TILES(mode)                                                                       \
    for (; count >= 4; count -= 4, a += 4 * s->stride_w * s->a_pixel, y += 4 * s->y_pixel) \
        TILE(4, mode);                                                                    \
    for (; count > 0; count--, a += s->stride_w * s->a_pixel, y += s->y_pixel)             \
        TILE(1, mode)
    if (s->mode == NARROW_PLAIN) {
        TILES(NARROW_PLAIN);
    } else if (s->mode == NARROW_SHUFFLED) {
        TILES(NARROW_SHUFFLED);
    } else {
        TILES(NARROW_BROADCAST);
    }
#undef TILES
#undef TILE
}

/* Whether pixels, of the input in steps of the stride or of the output, lie a multiple of `bytes` apart: their lines
 * then fall into few sets of the L1 cache. */
ALWAYS_INLINE int TYPED(narrow_apart)(const struct narrow *s, ptrdiff_t bytes)
{
    const ptrdiff_t pitch = bytes / (ptrdiff_t)sizeof(REAL);
    return s->a_pixel * s->stride_w % pitch == 0 || s->y_pixel % pitch == 0;
}

/* How many vectors of a 3×3 kernel go down the rows of a strip abreast. One alone has its sums in registers, but where
 * its lines fall into few sets they are slow to come from L3 and to be written, those of neighbours are not. */
ALWAYS_INLINE int TYPED(narrow_abreast)(const struct narrow *s, ptrdiff_t rows)
{
    const ptrdiff_t bytes = rows * (s->a_step + s->y_row) * (ptrdiff_t)sizeof(REAL);
    const int far = bytes > NARROW_NEAR || s->stride_w == 2 || TYPED(narrow_apart)(s, 2048);
    return s->kernel_w == 3 && far && TYPED(narrow_apart)(s, 512) ? NARROW_ABREAST : 1;
}

/* Whether each row of a strip at stride 2 reads its whole window, all vectors abreast: rows share one of three rows of
 * input, which is less to read again than the sums to keep in memory, and from L3 that stream comes soonest. Where the
 * channels are not whole vectors, two of them share a line. */
ALWAYS_INLINE int TYPED(narrow_windows)(const struct narrow *s, ptrdiff_t rows)
{
    const ptrdiff_t bytes = rows * (s->a_step + s->y_row) * (ptrdiff_t)sizeof(REAL);
    const int shared = s->out_channels % LANES > 0 && 2 * s->out_channels >= 3 * LANES;
    return s->kernel_w == 3 && s->stride_w == 2 && !s->accumulate && s->out_channels <= NARROW_ABREAST * LANES &&
           !TYPED(narrow_apart)(s, 1024) && (bytes > NARROW_NEAR || shared);
}

/* Whether a vector goes down all rows before the next one: what the rows share is then read from the L1 cache,
 * unless its lines fall into too few sets for it. */
ALWAYS_INLINE int TYPED(narrow_in_strips)(const struct narrow *s)
{
    return NARROW_PIXELS == 7 && s->pairs && s->mode == NARROW_PLAIN &&
           (s->windows || s->abreast > 1 || !TYPED(narrow_apart)(s, 1024));
}

/* Where it pays, let the vectors of a run of rows begin on cache lines of the input, which lies at `a`: NumPy's
 * arrays begin 16 bytes into one, and the L1 cache then fetches each line for two vectors. The first one is wrapped
 * where a strip's pixels are contiguous. */
static void TYPED(narrow_align)(struct narrow *s, ptrdiff_t rows, const REAL *a)
{
    const int whole = s->a_pixel % LANES == 0 && s->a_row % LANES == 0 && s->out_channels % LANES == 0 &&
                      (uintptr_t)a % sizeof(REAL) == 0;
    s->windows = TYPED(narrow_windows)(s, rows);
    s->abreast = TYPED(narrow_abreast)(s, rows);
    const int strips = TYPED(narrow_in_strips)(s) && rows > 2;
    const int fits = s->a_pixel == s->out_channels && !s->accumulate;
    s->lead = s->wrapped = 0;
    if (NARROW_PIXELS == 7 && s->mode == NARROW_PLAIN && s->pairs && s->kernel_w == 3 && whole &&
        s->out_channels >= 2 * LANES && (fits || !strips) && !s->windows)
        s->lead = (uintptr_t)a / sizeof(REAL) % LANES;
    s->wrapped = strips && s->lead > 0;
    s->vectors = (s->out_channels + (s->wrapped ? 0 : s->lead) + LANES - 1) / LANES;
}

/* The rows of input, counted from row `top` in steps of the dilation, and the columns from column `left` on that
 * are of the image. */
ALWAYS_INLINE struct inside TYPED(narrow_inside)(const struct narrow *s, ptrdiff_t top, ptrdiff_t left)
{
    const ptrdiff_t e = s->dilation_h, below = top < s->height ? s->height - top : 0;
    /* A division costs as much as 20 products. */
    return (struct inside){top < 0 ? (e - 1 - top) / e : 0, e == 1 ? below : (below + e - 1) / e, -left,
                           s->width - left};
}

/* `count` rows of a tile, two where they are pairs, of one vector of output channels. */
ALWAYS_INLINE void TYPED(narrow_rows_of_tile)(
    const struct narrow *s, TYPED(narrow_run) *run, const struct inside *in, ptrdiff_t pixels, const REAL *a,
    const REAL *w, const REAL *bias, const vec_mask *index, ptrdiff_t kept, REAL *y)
{
    if (run) {
        run(s, pixels, in, a, w, bias, index, kept, y);
        return;
    }
    const ptrdiff_t d = s->dilation_w, left = -in->first_column;
    const ptrdiff_t last = in->last_row < s->kernel_h ? in->last_row : s->kernel_h;
    const ptrdiff_t first_j = left < 0 ? (d - 1 - left) / d : 0;
    ptrdiff_t last_j = left < s->width ? (s->width - left + d - 1) / d : 0;
    last_j = last_j < s->kernel_w ? last_j : s->kernel_w;
    TYPED(narrow_any)(s, pixels, in->first_row, last, first_j, last_j, a, w, bias, index, kept, y);
}

/* All output channels of a few rows of outputs, a tile of pixels at a time, so that the input lines which a vector
 * shares with the next one are read while they are in the L1 cache.
 *
 * `a` is where kernel row 0 of the first output row, which is row `top` of the input, would begin at column 0.
 * Vector v is made from the LANES input channels from base[v] on (its own channels, where there is no base);
 * lanes[v] has group_in shuffles. */
static void TYPED(narrow_tiles)(
    const struct narrow *s, ptrdiff_t rows, ptrdiff_t top, const REAL *a, const REAL *w, const REAL *bias,
    const MASK *lanes, REAL *y)
{
    ptrdiff_t most = s->sized ? NARROW_MOST(s->stride_w) : NARROW_PIXELS, pixels;
#if NARROW_PIXELS == 7
    const int in_strips = rows > 2 && s->kernel_w == 3 && s->mode == NARROW_PLAIN;
    if (in_strips)
        most = NARROW_PIXELS;
#endif
    const ptrdiff_t step = s->pairs ? 2 : 1;
    TYPED(narrow_run) *one = s->sized ? TYPED(narrow_run_for)(s, 1) : NULL;
    TYPED(narrow_run) *two = s->pairs ? TYPED(narrow_run_for)(s, 2) : one;
    vec_mask index[LANES];
    for (ptrdiff_t x = 0; x < s->columns; x += pixels) {
        const ptrdiff_t left = x * s->stride_w - s->pad_w;
        const struct inside in = TYPED(narrow_inside)(s, top, left);
        const int interior = x >= s->interior_begin && x < s->interior_end;
        const ptrdiff_t run_end = s->sized ? s->columns : interior ? s->interior_end : x + 1;
        const ptrdiff_t tiles = (run_end - x + most - 1) / most;
        pixels = (run_end - x + tiles - 1) / tiles;
#if NARROW_PIXELS == 7
        if (in_strips) {
            TYPED(strips)(s, pixels, rows, top, -left, s->width - left, a + left * s->a_pixel, w, bias,
                          y + x * s->y_pixel);
            continue;
        }
#endif
        for (ptrdiff_t v = 0; v < s->vectors; v++) {
            const ptrdiff_t c = TYPED(narrow_start)(s, v), kept = TYPED(narrow_kept)(s, v);
            const REAL *at = a + left * s->a_pixel + (s->base ? s->base[v] : c);
            REAL *to = y + x * s->y_pixel + c;
            if (s->mode == NARROW_SHUFFLED)
                memcpy(index, lanes + v * s->group_in * LANES, s->group_in * sizeof(vec_mask));
            TYPED(narrow_rows_of_tile)(s, rows > 1 ? two : one, &in, pixels, at, w + c, bias + c, index, kept, to);
            for (ptrdiff_t r = step; r < rows; r += step) {
                const struct inside next = TYPED(narrow_inside)(s, top + r * s->stride_h, left);
                TYPED(narrow_rows_of_tile)(s, r + 1 < rows ? two : one, &next, pixels, at + r * s->a_step, w + c,
                                           bias + c, index, kept, to + r * s->y_row);
            }
        }
    }
}

/* narrow_tiles for any number of rows. */
static void TYPED(narrow_rows)(
    const struct narrow *s, ptrdiff_t rows, ptrdiff_t top, const REAL *a, const REAL *w, const REAL *bias,
    const MASK *lanes, REAL *y)
{
    const ptrdiff_t most = TYPED(narrow_in_strips)(s) ? rows : s->pairs ? 2 : 1;
    for (ptrdiff_t r = 0; r < rows; r += most)
        TYPED(narrow_tiles)(s, r + most < rows ? most : rows - r, top + r * s->stride_h, a + r * s->a_step, w, bias,
                            lanes, y + r * s->y_row);
}

#undef COLUMN_IS_INSIDE
#undef NARROW_PIXELS
#undef NARROW_MOST
#undef NARROW_ABREAST
#undef NARROW_NEAR
