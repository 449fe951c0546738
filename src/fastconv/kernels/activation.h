/* Activations and their gradients, element by element; microkernel.h includes this once for each element type. */

#if !defined(ACTIVATION_TERMS) /* shared by both element types */
#define ACTIVATION_TERMS 9
/* Φ(−|x|) = t · P(t) · exp(−x²/2), t = 1 / (1 + 0.35 |x|): P fitted at Chebyshev's points for |x| ≤ 14, lowest power
 * first. Its error is 3e-8 of the value. */
static const float normal_tail_terms[ACTIVATION_TERMS] = {
    0.139621407f, 0.139861867f, 0.119832858f, 0.105508029f, -0.0231099091f, 0.159174278f, -0.255714357f,
    0.143971756f, -0.029145943f};
#endif

#define SINGLE (sizeof(REAL) == 4)
#define ALL(number) TYPED(broadcast)((REAL)(number))

/* exp(v) − 1 for v ≤ 0, accurate near 0 as well: there by Taylor's series. */
ALWAYS_INLINE vec TYPED(exponential_less_one)(vec v)
{
    const int degree = SINGLE ? 8 : 13;
    vec series = ALL(inverse_factorial[degree]);
    _Pragma("GCC unroll 16") for (int i = degree - 1; i > 0; i--) series = series * v + ALL(inverse_factorial[i]);
    return TYPED(select)(v > ALL(-0.35), series * v, TYPED(exponential)(v) - ALL(1));
}

/* log(1 + t) for 0 ≤ t ≤ 1: 2 artanh(s) = 2 Σ s^(2i+1) / (2i + 1), s = t / (2 + t) ≤ 1/3. */
ALWAYS_INLINE vec TYPED(logarithm_past_one)(vec t)
{
    const int terms = SINGLE ? 8 : 17;
    const vec s = t / (t + ALL(2)), square = s * s;
    vec series = ALL(0);
    _Pragma("GCC unroll 32") for (int i = terms - 1; i >= 0; i--) series = series * square + ALL(2. / (2 * i + 1));
    return series * s;
}

ALWAYS_INLINE vec TYPED(logistic)(vec x)
{
    return ALL(1) / (ALL(1) + TYPED(exponential)(-x));
}

ALWAYS_INLINE vec TYPED(magnitude)(vec x)
{
    return (vec)((vec_mask)x & ~(vec_mask)ALL(-0.0));
}

/* Φ(−x) for x ≥ 0, Φ the distribution function of the normal distribution, with a small relative error also where it
 * is tiny: 2e-7, and 5e-6 where it is 1e-38, of the rounded square; and `bell` = exp(−x²/2). For doubles the C
 * library's. */
ALWAYS_INLINE vec TYPED(normal_tail)(vec x, vec *bell)
{
    *bell = TYPED(exponential)(x * x * ALL(-0.5));
    if (!SINGLE) {
        vec y;
        for (int i = 0; i < LANES; i++) y[i] = (REAL)(0.5 * erfc(M_SQRT1_2 * (double)x[i]));
        return y;
    }
    const vec t = ALL(1) / (ALL(1) + ALL(0.35) * x);
    vec tail = ALL(normal_tail_terms[ACTIVATION_TERMS - 1]);
    _Pragma("GCC unroll 16") for (int i = ACTIVATION_TERMS - 2; i >= 0; i--)
        tail = tail * t + ALL(normal_tail_terms[i]);
    return tail * t * *bell;
}

/* Twice the argument of tanh in Hendrycks and Gimpel's approximation, Φ(x) ≈ logistic(√(8/π) (x + 0.044715 x³)). */
ALWAYS_INLINE vec TYPED(normal_argument)(vec x)
{
    return ALL(1.5957691216057308) * (x + ALL(0.044715) * x * x * x);
}

ALWAYS_INLINE vec TYPED(clamp)(vec x, vec low, vec high)
{
    return TYPED(select)(x < low, low, TYPED(select)(x > high, high, x));
}

/* The larger of two, the second where they cannot be compared. */
ALWAYS_INLINE vec TYPED(maximum)(vec v, vec w)
{
#if defined(__AVX512F__)
    return SINGLE ? (vec)_mm512_max_ps((__m512)v, (__m512)w) : (vec)_mm512_max_pd((__m512d)v, (__m512d)w);
#else
    return TYPED(select)(v > w, v, w);
#endif
}

/* |tanh(x)| = −e / (e + 2), e = exp(−2 |x|) − 1. */
ALWAYS_INLINE vec TYPED(hyperbolic_tangent)(vec x)
{
    const vec less = TYPED(exponential_less_one)(ALL(-2) * TYPED(magnitude)(x));
    return (vec)((vec_mask)(-less / (less + ALL(2))) | ((vec_mask)x & (vec_mask)ALL(-0.0)));
}

ALWAYS_INLINE vec TYPED(activation)(const int kind, vec x, vec a, vec b)
{
    const vec zero = ALL(0);
    switch (kind) {
    case RELU: return TYPED(rectify)(x);
    case RELU6: return TYPED(clamp)(x, zero, ALL(6));
    case LEAKY_RELU: return TYPED(select)(x > zero, x, x * a);
    case ELU: /* b · elu(x, a) */
        return b * TYPED(select)(x > zero, x, a * TYPED(exponential_less_one)(TYPED(select)(x > zero, zero, x)));
    case SIGMOID: return TYPED(logistic)(x);
    case TANH: return TYPED(hyperbolic_tangent)(x);
    case SILU: return x * TYPED(logistic)(x);
    case GELU: { /* max(x, 0) − |x| · Φ(−|x|), where ∞ · 0 may be no part of ∞ */
        vec bell;
        const vec size = TYPED(magnitude)(TYPED(within)(x, -INFINITY, 40));
        return TYPED(rectify)(x) - size * TYPED(normal_tail)(size, &bell);
    }
    case GELU_TANH: return x * TYPED(logistic)(TYPED(normal_argument)(x));
    case SOFTPLUS: { /* a = beta, b = threshold */
        const vec v = x * a, size = TYPED(select)(v < zero, v, -v);
        const vec bent = TYPED(rectify)(v) + TYPED(logarithm_past_one)(TYPED(exponential)(size));
        return TYPED(select)(v > b, x, bent / a);
    }
    case HARDSIGMOID: return TYPED(clamp)(x + ALL(3), zero, ALL(6)) / ALL(6);
    case HARDSWISH: return x * (TYPED(clamp)(x + ALL(3), zero, ALL(6)) / ALL(6));
    default: return x;
    }
}

/* What the gradient g of an activation's results makes of its inputs' x; of relu, sigmoid and tanh x is the result. */
ALWAYS_INLINE vec TYPED(activation_grad)(const int kind, vec g, vec x, vec a, vec b)
{
    const vec zero = ALL(0), one = ALL(1);
    switch (kind) {
    case RELU: return (vec)((vec_mask)g & ~(x <= zero));
    case RELU6: return (vec)((vec_mask)g & ~((x <= zero) | (x >= ALL(6))));
    case LEAKY_RELU: return TYPED(select)(x > zero, g, g * a);
    case ELU:
        return b * TYPED(select)(x > zero, g, g * (a * TYPED(exponential)(TYPED(select)(x > zero, zero, x))));
    case SIGMOID: return g * x * (one - x);
    case TANH: return g * (one - x * x);
    case SILU: {
        const vec gate = TYPED(logistic)(x);
        return g * (gate * (one + x * (one - gate)));
    }
    case GELU: { /* Φ(x) + x Φ'(x) */
        vec bell;
        const vec near = TYPED(within)(x, -40, 40), tail = TYPED(normal_tail)(TYPED(magnitude)(near), &bell);
        return g * (TYPED(select)(near > zero, one - tail, tail) + ALL(0.3989422804014327) * near * bell);
    }
    case GELU_TANH: {
        const vec near = TYPED(clamp)(x, ALL(-40), ALL(40)), share = TYPED(logistic)(TYPED(normal_argument)(near));
        const vec slope = ALL(1.5957691216057308) * (one + ALL(3 * 0.044715) * near * near);
        return g * (share + near * slope * share * (one - share));
    }
    case SOFTPLUS: {
        const vec v = x * a;
        return TYPED(select)(v > b, g, g * TYPED(logistic)(v));
    }
    case HARDSIGMOID: return (vec)((vec_mask)(g / ALL(6)) & ((x > ALL(-3)) & (x < ALL(3))));
    case HARDSWISH: {
        const vec bent = g * (TYPED(clamp)(x, ALL(-3), ALL(3)) / ALL(3) + ALL(0.5));
        return (vec)((vec_mask)TYPED(select)(x >= ALL(3), g, bent) & ~(x <= ALL(-3)));
    }
    default: return g;
    }
}

/* Vectors of a sum that are added up before the sum is added to others, for its error's sake. */
#define SOFTMAX_BLOCK 32

/* For each vector from `first` to `end` the statement, which knows where its `i` is and how many are `left`: whole
 * ones in a loop of their own, as GCC keeps what may be a part of a vector in memory. */
#define VECTORS(first, end, statement)                  \
    do {                                                \
        ptrdiff_t i = first;                            \
        for (; i + LANES <= (end); i += LANES) {        \
            const ptrdiff_t left = LANES;               \
            statement;                                  \
        }                                               \
        if (i < (end)) {                                \
            const ptrdiff_t left = (end) - i;           \
            statement;                                  \
        }                                               \
    } while (0)

/* Softmax of a row of x, or its logarithm:
 *
 *     y = exp(x − m) / s,   m = max x,   s = Σ exp(x − m);   log y = (x − m) − log s */
static void TYPED(softmax_row)(const REAL *x, REAL *y, ptrdiff_t count, int logarithm)
{
    const vec lowest = ALL(-INFINITY);
    vec high = lowest;
    VECTORS(0, count, high = TYPED(maximum)(TYPED(load_part)(x + i, left, lowest), high));
    REAL most = high[0];
    for (int k = 1; k < LANES; k++) most = high[k] > most ? high[k] : most;
    double total = 0;
    for (ptrdiff_t first = 0; first < count; first += SOFTMAX_BLOCK * LANES) {
        const ptrdiff_t end = count - first < SOFTMAX_BLOCK * LANES ? count : first + SOFTMAX_BLOCK * LANES;
        vec sum = ALL(0);
        VECTORS(first, end, {
            const vec e = TYPED(exponential)(TYPED(load_part)(x + i, left, lowest) - ALL(most));
            if (!logarithm) TYPED(store_part)(y + i, left, e);
            sum += e;
        });
        for (int k = 0; k < LANES; k++) total += sum[k];
    }
    const vec scale = ALL(1 / total), shift = ALL(log(total));
    if (logarithm)
        VECTORS(0, count, TYPED(store_part)(y + i, left, TYPED(load_part)(x + i, left, lowest) - ALL(most) - shift));
    else
        VECTORS(0, count, TYPED(store_part)(y + i, left, TYPED(load_part)(y + i, left, lowest) * scale));
}

/* The same of `vectors` of columns, whose `count` elements are `stride` apart; of the last vector only `left`. */
ALWAYS_INLINE void TYPED(softmax_columns_of)(
    const int vectors, const REAL *x, REAL *y, ptrdiff_t left, ptrdiff_t count, ptrdiff_t stride, const int logarithm)
{
    vec most[2], total[2] = {ALL(0), ALL(0)};
    for (int j = 0; j < vectors; j++) most[j] = ALL(-INFINITY);
    for (ptrdiff_t i = 0; i < count; i++)
        for (int j = 0; j < vectors; j++)
            most[j] = TYPED(maximum)(TYPED(load_part)(x + i * stride + j * LANES, left, ALL(0)), most[j]);
    for (ptrdiff_t first = 0; first < count; first += SOFTMAX_BLOCK) {
        vec sum[2] = {ALL(0), ALL(0)};
        for (ptrdiff_t i = first; i < count && i < first + SOFTMAX_BLOCK; i++)
            for (int j = 0; j < vectors; j++) {
                const vec v = TYPED(load_part)(x + i * stride + j * LANES, left, ALL(0));
                const vec e = TYPED(exponential)(v - most[j]);
                if (!logarithm) TYPED(store_part)(y + i * stride + j * LANES, left, e);
                sum[j] += e;
            }
        for (int j = 0; j < vectors; j++) total[j] += sum[j];
    }
    for (int j = 0; j < vectors; j++)
        for (int k = 0; k < LANES; k++) total[j][k] = logarithm ? (REAL)log(total[j][k]) : 1 / total[j][k];
    for (ptrdiff_t i = 0; i < count; i++)
        for (int j = 0; j < vectors; j++) {
            const ptrdiff_t at = i * stride + j * LANES;
            const vec v = TYPED(load_part)((logarithm ? x : y) + at, left, ALL(0));
            TYPED(store_part)(y + at, left, logarithm ? v - most[j] - total[j] : v * total[j]);
        }
}

/* At most two vectors of columns: two whole ones beside each other, as a maximum and a sum wait for themselves. */
static void TYPED(softmax_columns)(
    const REAL *x, REAL *y, ptrdiff_t columns, ptrdiff_t count, ptrdiff_t stride, int logarithm)
{
    if (columns == 2 * LANES && logarithm)
        TYPED(softmax_columns_of)(2, x, y, LANES, count, stride, 1);
    else if (columns == 2 * LANES)
        TYPED(softmax_columns_of)(2, x, y, LANES, count, stride, 0);
    else
        VECTORS(0, columns, TYPED(softmax_columns_of)(1, x + i, y + i, left, count, stride, logarithm));
}

/* An expression of v and u, a vector of x and of g where there is one, for each vector of y, which lies apart from
 * both: whole vectors, all but the first of them on the lines of the cache, overlap their neighbours at both ends. */
#define ONE_VECTOR(first, left, expression)                              \
    do {                                                                 \
        const ptrdiff_t i = first;                                       \
        vec v = TYPED(load_part)(x + i, left, ALL(0)), u = ALL(0);       \
        if (g) u = TYPED(load_part)(g + i, left, u);                     \
        HOLD(v);                                                         \
        HOLD(u);                                                         \
        TYPED(store_part)(y + i, left, expression);                      \
    } while (0)
#define EACH_VECTOR(expression)                                                              \
    if (count < LANES) {                                                                     \
        ONE_VECTOR(0, count, expression);                                                    \
    } else {                                                                                 \
        ptrdiff_t next = LANES - (ptrdiff_t)((uintptr_t)y % sizeof(vec) / sizeof(REAL));     \
        ONE_VECTOR(0, LANES, expression);                                                    \
        for (; next + LANES <= count; next += LANES) ONE_VECTOR(next, LANES, expression);    \
        if (next < count) ONE_VECTOR(count - LANES, LANES, expression);                      \
    }

#define EACH_KIND(DO) \
    DO(RELU) DO(RELU6) DO(LEAKY_RELU) DO(ELU) DO(SIGMOID) DO(TANH) DO(SILU) DO(GELU) DO(GELU_TANH) DO(SOFTPLUS) \
    DO(HARDSIGMOID) DO(HARDSWISH)

/* y = f(x), `count` elements from the `first` on; or, where there is a g, y = g · f'(x). */
static void TYPED(activate)(
    int kind, REAL alpha, REAL beta, const REAL *g, const REAL *x, REAL *y, ptrdiff_t first, ptrdiff_t count)
{
    const vec a = TYPED(broadcast)(alpha), b = TYPED(broadcast)(beta);
    g = g ? g + first : NULL;
    x += first, y += first;
    switch (kind) {
#define CASE(name)                                                                                  \
    case name:                                                                                      \
        if (g) { EACH_VECTOR(TYPED(activation_grad)(name, u, v, a, b)); }                           \
        else { EACH_VECTOR(TYPED(activation)(name, v, a, b)); }                                     \
        break;
        EACH_KIND(CASE)
#undef CASE
    }
}

/* LEAKY_RELU with an `alpha` for each element. */
static void TYPED(prelu)(const REAL *alpha, const REAL *g, const REAL *x, REAL *y, ptrdiff_t count)
{
    const vec b = ALL(0);
    if (g) {
        EACH_VECTOR(TYPED(activation_grad)(LEAKY_RELU, u, v, TYPED(load_part)(alpha + i, count - i, b), b));
    } else {
        EACH_VECTOR(TYPED(activation)(LEAKY_RELU, v, TYPED(load_part)(alpha + i, count - i, b), b));
    }
}

#undef SINGLE
#undef ALL
#undef EACH_VECTOR
#undef ONE_VECTOR
#undef SOFTMAX_BLOCK
#undef VECTORS
#undef EACH_KIND
