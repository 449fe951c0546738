# The weight gradient of a depthwise kernel of at most three rows and three columns, on channels-last images
# that are read where they lie, vectors over channels:
#
#     dw[c, u, v] = Σ_n Σ_y Σ_i  dy[n, y, i, c] · x[n, y·s_h + u·d_h − p_h, i·s_w + v − p_w, c]
#
# A few rows of an image are a unit. For each vector of channels a tile of gradients stays in registers with
# all sums, and each input is loaded once for all of its products. Vectors lie pixels apart, which no
# prefetcher follows: with each tile some lines of the next unit are asked for, in the order of memory.
from cython.parallel cimport prange
from libc.string cimport memmove, memset

cdef extern from "microkernel.h" nogil:
    struct row_gradient:
        Py_ssize_t kernel_h, stride_h, dilation_h, pad_h, step, pad_w
        Py_ssize_t height, width, columns, channels
        Py_ssize_t x_row, x_pixel, g_row, g_pixel, sums_tap
        Py_ssize_t[2] ahead
    void depthwise_rows_f32(
        const row_gradient *s, Py_ssize_t first, Py_ssize_t last, const float *x, const float *g,
        float *sums, const char *const *ahead) noexcept
    void depthwise_rows_f64(
        const row_gradient *s, Py_ssize_t first, Py_ssize_t last, const double *x, const double *g,
        double *sums, const char *const *ahead) noexcept
    Py_ssize_t depthwise_rows_tiles_f32(Py_ssize_t columns) noexcept
    Py_ssize_t depthwise_rows_tiles_f64(Py_ssize_t columns) noexcept


cdef void depthwise_part(
    row_gradient s, const Images *images, const real *x, const Images *grads, const real *grad,
    Py_ssize_t bands, Py_ssize_t first, Py_ssize_t last, real *sums, Py_ssize_t lanes
) noexcept nogil:
    """Units first … last, added to sums[t, c]."""
    cdef Py_ssize_t unit, n, band, taps = 3 * s.kernel_h, t, begin, end, tiles, size = sizeof(real), below
    cdef Py_ssize_t vectors = (s.channels + lanes - 1) // lanes, rest = s.channels % lanes
    cdef const char *ahead[2]
    cdef const real *image
    cdef const real *gradient
    memset(sums, 0, taps * s.sums_tap * size)
    for unit in range(first, last):
        n = unit // bands
        band = unit % bands
        begin = share(grads.height, bands, band)
        end = share(grads.height, bands, band + 1)
        image = x + image_offset(images, n)
        gradient = grad + image_offset(grads, n)
        tiles = depthwise_rows_tiles_f32(s.columns) if real is float else depthwise_rows_tiles_f64(s.columns)
        tiles *= (end - begin) * vectors
        # As many rows as these, which the next unit reads and this one does not.
        s.ahead[0] = (end - begin) * s.stride_h * s.x_row * size // tiles
        s.ahead[1] = (end - begin) * s.g_row * size // tiles
        below = max(0, (end - 1) * s.stride_h - s.pad_h + (s.kernel_h - 1) * s.dilation_h + 1)
        ahead[0] = <const char *>(image + below * s.x_row)
        ahead[1] = <const char *>(gradient + end * s.g_row)
        if real is float:
            depthwise_rows_f32(&s, begin, end, image, gradient, sums, ahead)
        else:
            depthwise_rows_f64(&s, begin, end, image, gradient, sums, ahead)
    if rest > 0:  # the last vector's own channels come after those of the one before
        for t in range(taps):
            memmove(sums + t * s.sums_tap + s.channels - rest, sums + t * s.sums_tap + s.channels - 2 * rest
                    + lanes, rest * sizeof(real))


def weight_grad_depthwise(
    const real[:, :, :, :, :] x, const real[:, :, :, :, :] grad, geometry, Py_ssize_t bands,
    real[:, :, ::1] partial, int num_threads
):
    """Weight gradient of a depthwise convolution of at least a vector of channels, in partial sums.

    Parameters
    ----------
    x : (N, D, H, W, C), IN
        An image for each (n, d); channels are contiguous, here and in ``grad``.
    grad : (N, D, H_out, W_out, C), IN
    geometry : k_h ≤ 3, k_w = 3, a stride of 1 or 2 along the row and no dilation there
    bands : parts that an image's rows of outputs are cut into
    partial : (parts, k_h·3, C in whole vectors), OUT
    """
    cdef Problem problem = problem_of(geometry)
    cdef Images images = images_of(x), grads = images_of(grad)
    cdef Py_ssize_t part, parts = partial.shape[0], units = x.shape[0] * x.shape[1] * bands
    cdef Py_ssize_t lanes = panel_width(&partial[0, 0, 0]) // 2
    cdef row_gradient s
    s.kernel_h, s.stride_h, s.dilation_h = problem.kernel_h, problem.stride_h, problem.dilation_h
    s.pad_h, s.step, s.pad_w = problem.pad_h, problem.stride_w, problem.pad_w
    s.height, s.width, s.columns, s.channels = images.height, images.width, grads.width, x.shape[4]
    s.x_row, s.x_pixel = images.stride[0], images.stride[1]
    s.g_row, s.g_pixel = grads.stride[0], grads.stride[1]
    s.sums_tap = partial.shape[2]
    for part in prange(parts, nogil=True, num_threads=num_threads, schedule="static"):
        depthwise_part(s, &images, &x[0, 0, 0, 0, 0], &grads, &grad[0, 0, 0, 0, 0], bands,
                       share(units, parts, part), share(units, parts, part + 1), &partial[part, 0, 0], lanes)
