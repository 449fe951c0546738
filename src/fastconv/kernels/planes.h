/* Depthwise and narrow-group convolution on planes (channels first), a vector along the row; microkernel.h includes
 * this once for each element type. The products of a sum come in the order that depthwise.h states. */

/* Rows of a register tile of several output channels; vectors of a strip of a square kernel. */
#if defined(__AVX512F__)
#define PLANE_ROWS 4
#else
#define PLANE_ROWS 2
#endif

/* target[r][phase][...] = a row of a plane with its zero halo; column x lies in phase (x + pad) mod stride. */
static void TYPED(plane_row)(
    const struct planes *s, const REAL *source, ptrdiff_t width, ptrdiff_t readable, REAL *target)
{
    const ptrdiff_t pitch = s->stride_w * s->phase_pitch, pad = s->pad_w;
    if (s->stride_w == 1) {
        ptrdiff_t i = 0;
        for (; i < pad; i += LANES)
            TYPED(store)(target + i, (vec){0});
        for (i = 0; i + LANES <= readable && i < width; i += LANES)
            TYPED(store)(target + pad + i, TYPED(load)(source + i));
        if (i < width && width >= LANES)
            TYPED(store)(target + pad + width - LANES, TYPED(load)(source + width - LANES));
        else
            for (; i < width; i++)
                target[pad + i] = source[i];
        for (i = pad + width; i < pitch; i += LANES)
            TYPED(store)(target + i, (vec){0});
        return;
    }
    for (ptrdiff_t i = 0; i < pitch; i += LANES)
        TYPED(store)(target + i, (vec){0});
    ptrdiff_t i = 0;
    if (s->stride_w == 2) {
        vec_mask even;
        for (int l = 0; l < LANES; l++)
            even[l] = 2 * l;
        REAL *first = target + pad % 2 * s->phase_pitch + pad / 2;
        REAL *second = target + (pad + 1) % 2 * s->phase_pitch + (pad + 1) / 2;
        for (; i + 1 < width && width >= 2 * LANES; i += 2 * LANES) {
            i = i + 2 * LANES <= width ? i : (width - 2 * LANES) / 2 * 2; /* the last ones overlap */
            const vec low = TYPED(load)(source + i), high = TYPED(load)(source + i + LANES);
            TYPED(store)(first + i / 2, __builtin_shuffle(low, high, even));
            TYPED(store)(second + i / 2, __builtin_shuffle(low, high, even + 1));
        }
        i = i < width || width % 2 == 0 ? i : width - 1;
    }
    ptrdiff_t phase = (pad + i) % s->stride_w, at = (pad + i) / s->stride_w;
    for (; i < width; i++) {
        target[phase * s->phase_pitch + at] = source[i];
        phase++;
        if (phase == s->stride_w)
            phase = 0, at++;
    }
}

/* Store the first `valid` lanes, or all where `room` elements may be overwritten by what is not yet a result. */
ALWAYS_INLINE void TYPED(plane_store)(
    const struct planes *s, REAL *at, vec sum, ptrdiff_t valid, ptrdiff_t room)
{
    int whole = valid >= LANES || room >= LANES;
    if (s->accumulate) {
        vec old = {0};
        whole = valid >= LANES;
        memcpy(&old, at, whole ? sizeof old : valid * sizeof(REAL));
        sum += old;
    }
    if (s->rectified)
        sum = TYPED(rectify)(sum);
    if (whole)
        TYPED(store)(at, sum);
    else
        memcpy(at, &sum, valid * sizeof(REAL));
}

ALWAYS_INLINE void TYPED(plane_tile)(
    const int outs, const int rows, const struct planes *s, const REAL *a, const ptrdiff_t *offset,
    const REAL *w, const REAL *bias, REAL *y, ptrdiff_t valid, ptrdiff_t room)
{
    vec sum[4][8];
    _Pragma("GCC unroll 4") for (int o = 0; o < outs; o++)
        _Pragma("GCC unroll 8") for (int r = 0; r < rows; r++) sum[o][r] = TYPED(broadcast)(bias[o]);
    for (ptrdiff_t t = 0; t < s->taps; t++) {
        const REAL *at = a + offset[t];
        vec v[8];
        _Pragma("GCC unroll 8") for (int r = 0; r < rows; r++)
        {
            v[r] = TYPED(load)(at + r * s->a_row);
            if (outs > 1)
                HOLD(v[r]);
        }
        _Pragma("GCC unroll 4") for (int o = 0; o < outs; o++)
        {
            const vec weight = TYPED(broadcast)(w[t * s->w_stride + o]);
            _Pragma("GCC unroll 8") for (int r = 0; r < rows; r++) sum[o][r] += v[r] * weight;
        }
    }
    /* Whatever lies beyond the row's end is the start of the next row, which is stored later. */
    _Pragma("GCC unroll 4") for (int o = 0; o < outs; o++)
        _Pragma("GCC unroll 8") for (int r = 0; r < rows; r++)
            TYPED(plane_store)(s, y + o * s->y_plane + r * s->y_row, sum[o][r], valid, room - r * s->y_row);
}

/* `rows` rows of `outs` output channels from the planes of their group; vectors go from right to left. */
ALWAYS_INLINE void TYPED(plane_rows_sized)(
    const int outs, const int most, const struct planes *s, ptrdiff_t rows, const REAL *a,
    const ptrdiff_t *offset, const REAL *w, const REAL *bias, REAL *y)
{
    const ptrdiff_t start = (s->columns - 1) / LANES * LANES;
    ptrdiff_t done = 0;
#define ROWS(count)                                                                                       \
    for (; count <= most && rows - done >= count; done += count)                                          \
        for (ptrdiff_t x = start; x >= 0; x -= LANES)                                                     \
            TYPED(plane_tile)(outs, count, s, a + done * s->a_row + x, offset, w, bias,                    \
                              y + done * s->y_row + x, s->columns - x,                                    \
                              s->y_row == s->columns ? (rows - done) * s->y_row - x : 0);
    ROWS(8) ROWS(4) ROWS(2) ROWS(1)
#undef ROWS
}

/* Every other element, from `first` on, of two vectors side by side. */
ALWAYS_INLINE vec TYPED(every_other)(vec low, vec high, MASK first)
{
    vec_mask index;
    for (int l = 0; l < LANES; l++)
        index[l] = 2 * l + first;
    return __builtin_shuffle(low, high, index);
}

/* One row of the input of a strip of `wide` vectors: sum[k] is of the k-th newest row of outputs, which meets the
 * row with its kernel row k · step + phase. Only sums first ≤ k < last are of the band, where not all are. */
ALWAYS_INLINE void TYPED(square_input_row)(
    const int taps, const int step, const int wide, const int phase, const int all, ptrdiff_t first,
    ptrdiff_t last, const REAL *at, const vec_mask (*inside)[PLANE_WIDE], const vec *weight,
    vec (*sum)[PLANE_WIDE])
{
    vec low[PLANE_WIDE], high[PLANE_WIDE], v[PLANE_WIDE];
    _Pragma("GCC unroll 7") for (int j = 0; j < taps; j++)
    {
        _Pragma("GCC unroll 2") for (int x = 0; x < wide; x++)
        {
            if (j % step == 0) {
                low[x] = TYPED(load)(at + j + x * step * LANES);
                HOLD(low[x]); /* a masked load that crosses a cache line takes longer */
                if (step == 2) {
                    high[x] = TYPED(load)(at + j + (2 * x + 1) * LANES);
                    HOLD(high[x]);
                }
            }
            const vec read = step == 2 ? TYPED(every_other)(low[x], high[x], j % 2) : low[x];
            v[x] = (vec)((vec_mask)read & inside[j][x]);
            HOLD(v[x]);
        }
        _Pragma("GCC unroll 7") for (int k = 0; k * step + phase < taps; k++)
        {
            if (!all && (k < first || k >= last))
                continue;
            vec by = weight[(k * step + phase) * taps + j];
            if (wide > 1)
                HOLD(by); /* one load for all vectors */
            _Pragma("GCC unroll 2") for (int x = 0; x < wide; x++) sum[k][x] += v[x] * by;
        }
    }
}

/* A strip of `wide` vectors down all rows of a band of one output channel, from columns where they lie: line[i] is
 * column −pad_w of input row i, NULL where the row is padding, and lanes that are not `inside` the image are made
 * zeros. The last `tail` rows, which would spill over the band's end, go to `end`. */
ALWAYS_INLINE void TYPED(square_strip)(
    const int taps, const int step, const int wide, const struct planes *s, ptrdiff_t rows,
    const REAL *const *line, ptrdiff_t left, const vec_mask (*inside)[PLANE_WIDE], const vec *weight, REAL bias,
    REAL *y, ptrdiff_t y_row, ptrdiff_t tail, REAL *end)
{
    const int slots = (taps + step - 1) / step, rectified = s->rectified && !s->accumulate;
    vec sum[7][PLANE_WIDE] = {{{0}}};
    for (ptrdiff_t n = 0; n < rows + slots - 1; n++) {
        const ptrdiff_t first = n - rows + 1, last = n + 1;
        _Pragma("GCC unroll 2") for (int x = 0; x < wide; x++) sum[0][x] = TYPED(broadcast)(bias);
        _Pragma("GCC unroll 2") for (int phase = 0; phase < step; phase++)
        {
            const REAL *at = line[n * step + phase];
            if (!at)
                continue;
            at += left * step;
#define INPUT_ROW(all) \
    TYPED(square_input_row)(taps, step, wide, phase, all, first, last, at, inside, weight, sum)
            if (first <= 0 && last >= slots)
                INPUT_ROW(1);
            else
                INPUT_ROW(0);
#undef INPUT_ROW
        }
        if (last >= slots) {
            const ptrdiff_t rest = slots - first; /* rows, with this one */
            REAL *to = rest <= tail ? end + (tail - rest) * wide * LANES : y;
            _Pragma("GCC unroll 2") for (int x = 0; x < wide; x++)
            {
                const vec done = sum[slots - 1][x];
                TYPED(store)(to + x * LANES, rectified ? TYPED(rectify)(done) : done);
            }
            y += y_row;
        }
        _Pragma("GCC unroll 7") for (int k = slots - 1; k > 0; k--)
            _Pragma("GCC unroll 2") for (int x = 0; x < wide; x++) sum[k][x] = sum[k - 1][x];
    }
}

/* y[r][...] = block[r][...], added to what is there and rectified where that is asked for. */
static void TYPED(block_out)(
    const struct planes *s, ptrdiff_t rows, ptrdiff_t columns, const REAL *block, ptrdiff_t pitch, REAL *y)
{
    for (ptrdiff_t r = 0; r < rows; r++, block += pitch, y += s->y_row)
        for (ptrdiff_t x = 0; x < columns; x++) {
            const REAL sum = s->accumulate ? y[x] + block[x] : block[x];
            y[x] = s->accumulate && s->rectified && sum < 0 ? 0 : sum;
        }
}

/* All columns of a band of one output channel. Strips go from right to left, rows downwards: what spills over a
 * row's end is stored later. Where it would not be, rows go to `block` first. */
ALWAYS_INLINE void TYPED(square_band)(
    const int taps, const int step, const struct planes *s, ptrdiff_t rows, const REAL *const *line,
    const REAL *w, REAL bias, REAL *block, REAL *y)
{
    vec weight[7 * 7];
    for (int t = 0; t < taps * taps; t++)
        weight[t] = TYPED(broadcast)(w[t * s->w_stride]);
    const int spills = !s->accumulate && s->y_row == s->columns;
    ptrdiff_t vectors = (s->columns + LANES - 1) / LANES, wide;
    for (; vectors > 0; vectors -= wide) {
        wide = vectors >= PLANE_WIDE ? PLANE_WIDE : 1;
        const ptrdiff_t left = (vectors - wide) * LANES, pitch = wide * LANES;
        const ptrdiff_t columns = s->columns - left < pitch ? s->columns - left : pitch;
        vec_mask inside[7][PLANE_WIDE];
        for (int j = 0; j < taps; j++)
            for (int x = 0; x < wide; x++) {
                vec_mask column;
                for (int l = 0; l < LANES; l++)
                    column[l] = l * step;
                column += (MASK)((left + x * LANES) * step + j - s->pad_w);
                inside[j][x] = (column >= 0) & (column < (MASK)s->width);
            }
        /* A row is stored whole where its last vector ends before the band does. */
        ptrdiff_t tail = rows;
        if (!s->accumulate && columns == pitch)
            tail = 0;
        else if (spills)
            tail = (left + pitch - 1) / s->columns;
        tail = tail < rows ? tail : rows;
        REAL *to = y + left;
#define STRIP(wide) \
    TYPED(square_strip)(taps, step, wide, s, rows, line, left, inside, weight, bias, to, s->y_row, tail, block)
        if (wide == PLANE_WIDE)
            STRIP(PLANE_WIDE);
        else
            STRIP(1);
#undef STRIP
        TYPED(block_out)(s, tail, columns, block, pitch, to + (rows - tail) * s->y_row);
    }
}

#define SQUARE(taps, step)                                                                               \
    static void TYPED(square_##taps##_s##step)(                                                          \
        const struct planes *s, ptrdiff_t rows, const REAL *const *line, const REAL *w, REAL bias,       \
        REAL *block, REAL *y)                                                                            \
    {                                                                                                    \
        TYPED(square_band)(taps, step, s, rows, line, w, bias, block, y);                                \
    }
SQUARE(3, 1)
SQUARE(3, 2)
SQUARE(5, 1)
SQUARE(5, 2)
SQUARE(7, 1)
SQUARE(7, 2)
#undef SQUARE

/* `rows` rows of `outs` output channels of one input channel, with a square kernel of s->taps products; `block` holds
 * rows × PLANE_WIDE vectors. */
static void TYPED(square_rows)(
    const struct planes *s, ptrdiff_t outs, ptrdiff_t rows, const REAL *const *line, const REAL *w,
    const REAL *bias, REAL *block, REAL *y)
{
#define BAND(taps)                                                         \
    if (s->stride_w == 1)                                                  \
        TYPED(square_##taps##_s1)(s, rows, line, w, *bias, block, y);      \
    else                                                                   \
        TYPED(square_##taps##_s2)(s, rows, line, w, *bias, block, y)
    for (; outs > 0; outs--, w++, bias++, y += s->y_plane) {
        if (s->taps == 9) {
            BAND(3);
        } else if (s->taps == 25) {
            BAND(5);
        } else {
            BAND(7);
        }
    }
#undef BAND
}

static void TYPED(plane_rows)(
    const struct planes *s, ptrdiff_t outs, ptrdiff_t rows, const REAL *a, const ptrdiff_t *offset,
    const REAL *w, const REAL *bias, REAL *y)
{
    for (; outs >= 4; outs -= 4, w += 4, bias += 4, y += 4 * s->y_plane)
        TYPED(plane_rows_sized)(4, PLANE_ROWS, s, rows, a, offset, w, bias, y);
    for (; outs > 0; outs--, w++, bias++, y += s->y_plane)
        TYPED(plane_rows_sized)(1, 8, s, rows, a, offset, w, bias, y);
}

#undef PLANE_ROWS
