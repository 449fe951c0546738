/* Bilinear samples of channels-last pixels, vectors over channels; microkernel.h includes this once for each
 * element type. */

/* target[c] = Σ_k weight[k] · corner[k][c]   for the four corners of a sample. */
static void TYPED(sample)(const REAL *const *corner, const REAL *weight, ptrdiff_t channels, REAL *target)
{
    const REAL *const p0 = corner[0], *const p1 = corner[1], *const p2 = corner[2], *const p3 = corner[3];
    const REAL w0 = weight[0], w1 = weight[1], w2 = weight[2], w3 = weight[3];
    ptrdiff_t c = 0;
    for (; c + LANES <= channels; c += LANES)
        TYPED(store)(target + c, (TYPED(broadcast)(w0) * TYPED(load)(p0 + c) +
                                  TYPED(broadcast)(w1) * TYPED(load)(p1 + c)) +
                                 (TYPED(broadcast)(w2) * TYPED(load)(p2 + c) +
                                  TYPED(broadcast)(w3) * TYPED(load)(p3 + c)));
    for (; c < channels; c++) target[c] = (w0 * p0[c] + w1 * p1[c]) + (w2 * p2[c] + w3 * p3[c]);
}

/* One corner of a sample on the way back: grad_pixel[c] += weight · grad[c]; returns Σ_c grad[c] · pixel[c]. */
static REAL TYPED(sample_grad)(
    const REAL *grad, const REAL *pixel, REAL weight, ptrdiff_t channels, REAL *grad_pixel)
{
    const vec w = TYPED(broadcast)(weight);
    vec product = {0};
    REAL sum = 0;
    ptrdiff_t c = 0;
    for (; c + LANES <= channels; c += LANES) {
        const vec g = TYPED(load)(grad + c);
        product += g * TYPED(load)(pixel + c);
        TYPED(store)(grad_pixel + c, TYPED(load)(grad_pixel + c) + w * g);
    }
    for (; c < channels; c++) {
        sum += grad[c] * pixel[c];
        grad_pixel[c] += weight * grad[c];
    }
    _Pragma("GCC unroll 4") for (int half = LANES / 2; half > 0; half /= 2)
    {
        vec_mask other;
        _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++) other[i] = (i + half) % LANES;
        product += __builtin_shuffle(product, other);
    }
    return sum + product[0];
}
