# The weight gradient of groups so narrow that a vector of input channels meets at most a vector of gradients:
#
#     dW[m, (i, j), c] = Σ_n Σ_y Σ_x  dy[n, y, x, m] · x[n, y·s_h + i·d_h − p_h, x·s_w + j·d_w − p_w, c]
#
# for the m of c's group. Vectors run over input channels, of several groups where these are narrower, and the
# gradients are shuffled to meet them, or broadcast where a vector lies in one group; each once for several
# taps. Of some rows and columns a vector's worth of channels is gathered, with its halo, and stays in the L1
# cache. Units and parts are as in weight_grad.pyx; partial[part, (i, j), r, c] has the group's r-th output.
from cython.parallel cimport prange, threadid
from libc.string cimport memset

cdef extern from "microkernel.h" nogil:
    struct ahead:
        const char *at
        Py_ssize_t row, pixel
    int narrow_grad_taps_f32(int outs) noexcept
    void narrow_grad_f32(
        int taps, int outs, const Py_ssize_t *offset, Py_ssize_t rows, Py_ssize_t columns, const float *x,
        Py_ssize_t x_row, Py_ssize_t x_pixel, const float *g, Py_ssize_t g_row, Py_ssize_t g_pixel,
        const int32_t *lanes, float *sums, Py_ssize_t tap_stride, Py_ssize_t out_stride,
        const ahead *ahead) noexcept
    void narrow_grad_f64(
        int taps, int outs, const Py_ssize_t *offset, Py_ssize_t rows, Py_ssize_t columns, const double *x,
        Py_ssize_t x_row, Py_ssize_t x_pixel, const double *g, Py_ssize_t g_row, Py_ssize_t g_pixel,
        const int64_t *lanes, double *sums, Py_ssize_t tap_stride, Py_ssize_t out_stride,
        const ahead *ahead) noexcept


cdef inline ahead pixels_ahead(const Images *images, const real *at) noexcept nogil:
    """An image's pixels from `at` on, where a vector's channels lie together; else nothing new."""
    cdef Py_ssize_t size = sizeof(real) if images.stride[2] == 1 else 0
    return ahead(<const char *>at, images.stride[0] * size, images.stride[1] * size)


cdef void accumulate_narrow(
    const Problem *problem, const Region *region, const real *x, const real *grad, Py_ssize_t g_pixel,
    const void *lanes, real *sums, Py_ssize_t out_stride, ahead x_ahead, const ahead *g_ahead
) noexcept nogil:
    """Add a region's products of a vector of input channels to sums[(i, j), r].

    Meanwhile the next region's gradients are asked for, and then its inputs, one after the other of those
    that a stride leads across.
    """
    cdef Py_ssize_t taps = problem.kernel_h * problem.kernel_w, outs, r = 0, pieces, piece, first, count
    cdef Py_ssize_t x_row = problem.stride_h * region.x_row, x_pixel = problem.stride_w * region.x_pixel
    cdef Py_ssize_t width = panel_width(x) // 2, step = 0
    cdef Py_ssize_t[16] offset
    cdef ahead asked = g_ahead[0], begin = x_ahead
    x_ahead.row, x_ahead.pixel = problem.stride_h * begin.row, problem.stride_w * begin.pixel
    cdef const real *g
    cdef const void *index
    cdef real *to
    while r < problem.group_out:
        outs = 8 if problem.group_out - r >= 8 else 4 if problem.group_out - r >= 4 else 2
        pieces = (taps + narrow_grad_taps_f32(outs) - 1) // narrow_grad_taps_f32(outs)
        g = grad if lanes else grad + r
        index = <const char *>lanes + r * width * sizeof(real) if lanes else NULL
        for piece in range(pieces):
            first = share(taps, pieces, piece)
            count = share(taps, pieces, piece + 1) - first
            tap_offsets(problem, region, first, count, offset)
            to = sums + (first * problem.group_out + r) * out_stride
            if real is float:
                narrow_grad_f32(count, outs, offset, region.rows, region.columns, x, x_row, x_pixel, g,
                                region.columns * g_pixel, g_pixel, <const int32_t *>index, to,
                                problem.group_out * out_stride, out_stride, &asked)
            else:
                narrow_grad_f64(count, outs, offset, region.rows, region.columns, x, x_row, x_pixel, g,
                                region.columns * g_pixel, g_pixel, <const int64_t *>index, to,
                                problem.group_out * out_stride, out_stride, &asked)
            if step < problem.stride_h * problem.stride_w:
                asked = x_ahead
                asked.at += step // problem.stride_w * begin.row + step % problem.stride_w * begin.pixel
            step += 1
        r += outs


cdef void narrow_unit(
    const Problem *problem, const Images *images, const real *x, Py_ssize_t channels, const Images *grads,
    const real *grad, Py_ssize_t out_channels, const void *lanes, Py_ssize_t top, Py_ssize_t bottom,
    Py_ssize_t left, Py_ssize_t right, Py_ssize_t x_ahead, Py_ssize_t g_ahead, real *sums,
    Py_ssize_t out_stride, real *panel
) noexcept nogil:
    """Some rows and columns of one image and a vector of input channels, the first at `x`.

    The next ones lie `x_ahead` and `g_ahead` elements after those of the image's corner.
    """
    cdef Region region = Region(bottom - top, right - left, 0, panel_width(x) // 2, 0)
    cdef Py_ssize_t g_pixel = region.x_pixel if lanes else out_channels
    cdef Py_ssize_t in_rows = covered(region.rows, problem.stride_h, problem.kernel_h, problem.dilation_h)
    cdef Py_ssize_t in_columns = covered(
        region.columns, problem.stride_w, problem.kernel_w, problem.dilation_w)
    cdef real *band = panel + region.rows * region.columns * g_pixel
    region.x_row = in_columns * region.x_pixel
    gather_band(grad, grads.stride, grads.height, grads.width, out_channels, top, left, region.rows,
                region.columns, panel, region.columns * g_pixel, g_pixel)
    gather_band(x, images.stride, images.height, images.width, channels,
                top * problem.stride_h - problem.pad_h, left * problem.stride_w - problem.pad_w, in_rows,
                in_columns, band, region.x_row, region.x_pixel)
    cdef ahead next_grads = pixels_ahead(grads, grad + g_ahead)
    accumulate_narrow(problem, &region, band, panel, g_pixel, lanes, sums, out_stride,
                      pixels_ahead(images, x + x_ahead), &next_grads)


def weight_grad_narrow(
    const real[:, :, :, :, :] x, const real[:, :, :, :, :] grad, geometry, const Py_ssize_t[::1] base,
    const unsigned char[::1] lanes, cuts, real[:, :, :, ::1] partial, real[::1] workspace,
    Py_ssize_t per_thread, int num_threads
):
    """Weight gradient of a convolution in narrow groups, in partial sums.

    Parameters
    ----------
    x : (N, D, H, W, C_in), IN
        An image for each (n, d).
    grad : (N, D, H_out, W_out, C_out), IN
    base : (vectors), IN
        The first of the output channels that each vector of input channels meets.
    lanes : bytes of an integer array (vectors, C_out/groups, LANES), IN
        Which of those output channels each lane meets, in turn; items are as wide as those of x. None where
        a vector lies in one group and meets all of its outputs.
    cuts : (blocks, bands, chunks)
        Blocks of vectors; parts of an image's output rows and columns.
    partial : (parts, k_h·k_w, C_out/groups, ≥ C_in), OUT
        In whole vectors.
    workspace : (num_threads · per_thread), scratch
    """
    cdef Problem problem = problem_of(geometry)
    cdef Images images = images_of(x), grads = images_of(grad)
    cdef Py_ssize_t blocks, bands, chunks, item, unit, n, band, chunk, part, block, v, c, count, channels
    cdef Py_ssize_t after, y, z, x_ahead, g_ahead
    blocks, bands, chunks = cuts
    cdef Py_ssize_t parts = partial.shape[0], pitch = partial.shape[3], vectors = base.shape[0]
    cdef Py_ssize_t units = x.shape[0] * x.shape[1] * bands * chunks, width = panel_width(&workspace[0]) // 2
    cdef Py_ssize_t index_bytes = problem.group_out * VECTOR_BYTES
    cdef bint shuffled = lanes is not None
    cdef real *scratch
    for item in prange(parts * blocks, nogil=True, num_threads=num_threads, schedule="static"):
        part = item // blocks
        block = item % blocks
        scratch = &workspace[threadid() * per_thread]
        # Lanes beyond the channels are multiplied too: zero, because stale bits may be slow to multiply.
        memset(scratch, 0, per_thread * sizeof(real))
        c = share(vectors, blocks, block) * width
        count = share(vectors, blocks, block + 1) * width - c
        clear_block(&partial[part, 0, 0, c], 1, 0, partial.shape[1] * partial.shape[2], pitch, count)
        for unit in range(share(units, parts, part), share(units, parts, part + 1)):
            n = unit // (bands * chunks)
            band = unit // chunks % bands
            chunk = unit % chunks
            x_ahead, g_ahead = 0, 0
            after = (unit + 1) // (bands * chunks)
            if unit + 1 < units:
                y = share(grads.height, bands, (unit + 1) // chunks % bands)
                z = share(grads.width, chunks, (unit + 1) % chunks)
                g_ahead = (image_offset(&grads, after) - image_offset(&grads, n)
                           + y * grads.stride[0] + z * grads.stride[1])
                x_ahead = (image_offset(&images, after) - image_offset(&images, n)
                           + y * problem.stride_h * images.stride[0]
                           + z * problem.stride_w * images.stride[1])
            for v in range(share(vectors, blocks, block), share(vectors, blocks, block + 1)):
                c = v * width
                channels = min(width if shuffled else problem.group_out, grad.shape[4] - base[v])
                narrow_unit(
                    &problem, &images, &x[0, 0, 0, 0, c] + image_offset(&images, n),
                    min(width, x.shape[4] - c), &grads, &grad[0, 0, 0, 0, base[v]] + image_offset(&grads, n),
                    channels, &lanes[v * index_bytes] if shuffled else NULL,
                    share(grads.height, bands, band), share(grads.height, bands, band + 1),
                    share(grads.width, chunks, chunk), share(grads.width, chunks, chunk + 1), x_ahead,
                    g_ahead, &partial[part, 0, 0, c], pitch, scratch)
