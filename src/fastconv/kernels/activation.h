/* Activations and their gradients, element by element; microkernel.h includes this once for each element type. */

#if !defined(ACTIVATION_TERMS) /* shared by both element types */
#define ACTIVATION_TERMS 10
/* Φ(−|x|) = t · P(t) · exp(−x²/2), t = 1 / (1 + 0.4 |x|): P fitted at Chebyshev's points for |x| ≤ 14, lowest power
 * first. Its error is 2e-8 of the value. */
static const float normal_tail[ACTIVATION_TERMS] = {
    0.159575339f, 0.159641192f, 0.133000235f, 0.0921067097f, -0.0294128556f, 0.124874397f, -0.381159172f,
    0.388086209f, -0.179435451f, 0.032723366f};
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

/* Φ(x), the distribution function of the normal distribution, with a small relative error also where it is tiny:
 * 2e-7, and 5e-6 where it is 1e-38, of the rounded square. For doubles the C library's. */
ALWAYS_INLINE vec TYPED(normal)(vec x)
{
    if (!SINGLE) {
        vec y;
        for (int i = 0; i < LANES; i++) y[i] = (REAL)(0.5 * erfc(-M_SQRT1_2 * (double)x[i]));
        return y;
    }
    const vec size = TYPED(select)(x < ALL(0), -x, x), t = ALL(1) / (ALL(1) + ALL(0.4) * size);
    vec tail = ALL(normal_tail[ACTIVATION_TERMS - 1]);
    _Pragma("GCC unroll 16") for (int i = ACTIVATION_TERMS - 2; i >= 0; i--) tail = tail * t + ALL(normal_tail[i]);
    /* Of a large x the square could overflow: exp(−∞) is 0 as well. */
    tail = tail * t * TYPED(exponential)(x * x * ALL(-0.5));
    return TYPED(select)(x > ALL(0), ALL(1) - tail, tail);
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
    case SILU: return x * TYPED(logistic)(x);
    case GELU: return x * TYPED(normal)(x);
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
    case GELU: { /* Φ(x) + x Φ'(x), beyond 40 Φ' is 0 and the square of x might overflow */
        const vec near = TYPED(clamp)(x, ALL(-40), ALL(40));
        const vec density = ALL(0.3989422804014327) * TYPED(exponential)(near * near * ALL(-0.5));
        return g * (TYPED(normal)(x) + near * density);
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

/* Softmax of a row of x, or its logarithm:
 *
 *     y = exp(x − m) / s,   m = max x,   s = Σ exp(x − m);   log y = (x − m) − log s */
static void TYPED(softmax_row)(const REAL *x, REAL *y, ptrdiff_t count, int logarithm)
{
    const vec lowest = ALL(-INFINITY);
    vec high = lowest;
    for (ptrdiff_t i = 0; i < count; i += LANES) {
        const vec v = TYPED(load_part)(x + i, count - i, lowest);
        high = TYPED(select)(v > high, v, high);
    }
    REAL most = high[0];
    for (int k = 1; k < LANES; k++) most = high[k] > most ? high[k] : most;
    double total = 0;
    for (ptrdiff_t first = 0; first < count; first += SOFTMAX_BLOCK * LANES) {
        vec sum = ALL(0);
        for (ptrdiff_t i = first; i < count && i < first + SOFTMAX_BLOCK * LANES; i += LANES) {
            const vec e = TYPED(exponential)(TYPED(load_part)(x + i, count - i, lowest) - ALL(most));
            if (!logarithm) TYPED(store_part)(y + i, count - i, e);
            sum += e;
        }
        for (int k = 0; k < LANES; k++) total += sum[k];
    }
    const vec scale = ALL(1 / total), shift = ALL(log(total));
    for (ptrdiff_t i = 0; i < count; i += LANES) {
        const vec v = TYPED(load_part)((logarithm ? x : y) + i, count - i, lowest);
        TYPED(store_part)(y + i, count - i, logarithm ? v - ALL(most) - shift : v * scale);
    }
}

/* The same of at most a vector of columns, whose `count` elements are `stride` apart. */
static void TYPED(softmax_columns)(
    const REAL *x, REAL *y, ptrdiff_t columns, ptrdiff_t count, ptrdiff_t stride, int logarithm)
{
    vec most = ALL(-INFINITY), total = ALL(0), shift;
    for (ptrdiff_t i = 0; i < count; i++) {
        const vec v = TYPED(load_part)(x + i * stride, columns, ALL(0));
        most = TYPED(select)(v > most, v, most);
    }
    for (ptrdiff_t first = 0; first < count; first += SOFTMAX_BLOCK) {
        vec sum = ALL(0);
        for (ptrdiff_t i = first; i < count && i < first + SOFTMAX_BLOCK; i++) {
            const vec e = TYPED(exponential)(TYPED(load_part)(x + i * stride, columns, ALL(0)) - most);
            if (!logarithm) TYPED(store_part)(y + i * stride, columns, e);
            sum += e;
        }
        total += sum;
    }
    for (int k = 0; k < LANES; k++) shift[k] = logarithm ? (REAL)log(total[k]) : 0;
    for (ptrdiff_t i = 0; i < count; i++) {
        const vec v = TYPED(load_part)((logarithm ? x : y) + i * stride, columns, ALL(0));
        TYPED(store_part)(y + i * stride, columns, logarithm ? v - most - shift : v / total);
    }
}

/* An expression of v and u, a vector of x and of g where there is one, for each vector of y; the last may be a part. */
#define EACH_VECTOR(expression)                                                      \
    for (ptrdiff_t i = 0; i < count; i += LANES) {                                   \
        const vec v = TYPED(load_part)(x + i, count - i, ALL(0));                    \
        const vec u = g ? TYPED(load_part)(g + i, count - i, ALL(0)) : ALL(0);       \
        (void)u;                                                                     \
        TYPED(store_part)(y + i, count - i, expression);                             \
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
        if (g) { EACH_VECTOR(TYPED(activation_grad)(name, u, v, a, b)) }                            \
        else { EACH_VECTOR(TYPED(activation)(name, v, a, b)) }                                      \
        break;
        EACH_KIND(CASE)
#undef CASE
    }
}

#undef SINGLE
#undef ALL
#undef EACH_VECTOR
#undef SOFTMAX_BLOCK
#undef EACH_KIND
