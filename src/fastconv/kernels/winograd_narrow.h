/* Winograd's F(4, 3) along the rows of narrow groups; microkernel.h includes this once for each element type.
 *
 * A tile of four columns goes down all rows. Each row of input is transformed in registers, and what an input channel
 * is multiplied with, at each of six points, belongs to three rows of outputs, whose sums wait in registers:
 * 6 · 3 · group multiply–adds and as many weights a row, half of what the definition takes. The lanes of a vector of
 * outputs find their input channels by shuffles, or, in groups wider than a vector, by way of memory. */

#ifndef NARROW_ROWS
#define NARROW_ROWS 3 /* of the kernel */
#endif

/* What each lane of a group of 4 or 8 channels multiplies in step c: of its own four, from step 4 on of the other four,
 * the channel (lane + c) % 4, so that no shuffle is needed where that is its own. */
ALWAYS_INLINE vec TYPED(narrow_four)(vec v, const int c)
{
    vec_mask other;
    if (c < 4)
        return v;
    _Pragma("GCC unroll 16") for (int l = 0; l < LANES; l++) other[l] = (l ^ 4) % LANES;
    return __builtin_shuffle(v, other);
}

ALWAYS_INLINE vec TYPED(narrow_channel)(vec four, const int c)
{
    vec_mask next;
    if (c % 4 == 0)
        return four;
    _Pragma("GCC unroll 16") for (int l = 0; l < LANES; l++) next[l] = (l / 4 * 4 + (l + c) % 4) % LANES;
    return __builtin_shuffle(four, next);
}

/* V of six pixels, by the coefficients that winograd.h lists. */
ALWAYS_INLINE void TYPED(narrow_input)(const vec d[SHORT_POINTS], const REAL *coefficient, vec v[SHORT_POINTS])
{
    v[0] = d[4] + coefficient[1] * d[2] + coefficient[0] * d[0];
    v[5] = d[5] + coefficient[1] * d[3] + coefficient[0] * d[1];
    _Pragma("GCC unroll 2") for (int p = 0; p < 2; p++)
    {
        const vec even = d[4] + coefficient[2 + p] * d[2], odd = d[3] + coefficient[2 + p] * d[1];
        v[1 + 2 * p] = even + coefficient[4 + p * WINOGRAD_POWERS + 1] * odd;
        v[2 + 2 * p] = even - coefficient[4 + p * WINOGRAD_POWERS + 1] * odd;
    }
}

/* Six pixels of row r, zeros where they are not in the image. */
ALWAYS_INLINE void TYPED(narrow_pixels)(
    const struct narrow_strip *s, ptrdiff_t r, const REAL *x, vec d[SHORT_POINTS])
{
    static const REAL zeros[LANES];
    const int inside = r >= s->top && r < s->bottom;
    _Pragma("GCC unroll 6") for (int j = 0; j < SHORT_POINTS; j++)
    {
        d[j] = TYPED(load)(inside && j >= s->left && j < s->right ? x : zeros);
        HOLD_HERE(d[j]);
        x += s->x_pixel;
        __asm__("" : "+r"(x)); /* keeps GCC from holding a multiple of the pitch for every j */
    }
}

ALWAYS_INLINE void TYPED(narrow_outputs)(
    const struct narrow_strip *s, const vec m[SHORT_POINTS], const REAL *coefficient, const REAL *bias, REAL *y)
{
    vec sum[SHORT_OUTPUTS];
    TYPED(four_outputs)(m, TYPED(load)(bias), coefficient, sum);
    _Pragma("GCC unroll 4") for (int i = 0; i < SHORT_OUTPUTS; i++)
    {
        if (i >= s->columns)
            break;
        if (s->accumulate)
            sum[i] += TYPED(load)(y);
        TYPED(store)(y, s->rectified ? TYPED(rectify)(sum[i]) : sum[i]);
        y += s->y_pixel;
        __asm__("" : "+r"(y));
    }
}

/* The products of a row, in registers from here on: GCC would postpone a third of them until it knew that a row of
 * outputs was complete. */
ALWAYS_INLINE void TYPED(narrow_products)(
    const int group, const vec *v, const REAL *wide, const REAL *w, vec (*acc)[SHORT_POINTS])
{
    __asm__ volatile("" : "+r"(w)); /* GCC would load all weights once, and keep them on the stack */
    _Pragma("GCC unroll 6") for (int q = 0; q < SHORT_POINTS; q++)
    {
        vec four = v[q];
        _Pragma("GCC unroll 8") for (int c = 0; c < group; c++, w += NARROW_ROWS * 2 * LANES)
        {
            if (c % 4 == 0)
                four = TYPED(narrow_four)(v[q], c);
            vec value = group > LANES ? TYPED(broadcast)(wide[q * group + c]) : TYPED(narrow_channel)(four, c);
            HOLD_HERE(value);
            _Pragma("GCC unroll 3") for (int k = 0; k < NARROW_ROWS; k++)
                acc[k][q] += value * TYPED(load)(w + k * 2 * LANES);
        }
    }
}

ALWAYS_INLINE void TYPED(winograd_narrow_sized)(
    const int group, const struct narrow_strip *s, const REAL *x, const REAL *weight, const REAL *coefficient,
    const REAL *bias, REAL *y)
{
    vec acc[NARROW_ROWS][SHORT_POINTS] = {{{0}}}, d[SHORT_POINTS], v[SHORT_POINTS];
    REAL wide[SHORT_POINTS * 8];
    if (group <= LANES)
        TYPED(narrow_pixels)(s, 0, x, d);
    for (ptrdiff_t r = 0; r < s->rows + NARROW_ROWS - 1; r++, x += s->x_row) {
        if (r >= s->top && r < s->bottom) {
            _Pragma("GCC unroll 4") for (int part = 0; part < group; part += LANES)
            {
                if (group > LANES)
                    TYPED(narrow_pixels)(s, r, x + part, d);
                TYPED(narrow_input)(d, coefficient, v);
                _Pragma("GCC unroll 6") for (int q = 0; q < SHORT_POINTS && group > LANES; q++)
                    TYPED(store)(wide + q * group + part, v[q]);
            }
            TYPED(narrow_products)(group, v, wide, weight, acc);
            _Pragma("GCC unroll 6") for (int q = 0; q < SHORT_POINTS; q++) HOLD_HERE(acc[NARROW_ROWS - 1][q]);
        }
        if (group <= LANES)
            TYPED(narrow_pixels)(s, r + 1, x + s->x_row, d);
        if (r >= NARROW_ROWS - 1) {
            TYPED(narrow_outputs)(s, acc[NARROW_ROWS - 1], coefficient, bias, y);
            y += s->y_row;
        }
        _Pragma("GCC unroll 6") for (int q = 0; q < SHORT_POINTS; q++)
        {
            acc[2][q] = acc[1][q];
            acc[1][q] = acc[0][q];
            acc[0][q] = (vec){0};
        }
    }
}

/* Four columns of a vector of outputs, from the first row on: x is where the first tile's first pixel would be,
 * `weight` (point, channel, kernel row, PANEL). */
static void TYPED(winograd_narrow)(
    int group, const struct narrow_strip *s, const REAL *x, const REAL *weight, const REAL *coefficient,
    const REAL *bias, REAL *y)
{
    const struct narrow_strip own = *s; /* GCC would load it again after each store */
    if (group == 4)
        TYPED(winograd_narrow_sized)(4, &own, x, weight, coefficient, bias, y);
    else
        TYPED(winograd_narrow_sized)(8, &own, x, weight, coefficient, bias, y);
}
