# Pooling and resampling of channels-last images with three spatial axes, and their backward passes.
#
# What an output reads is given axis by axis, by tables (fastconv.functional.taps.Taps): output o of an
# axis reads the positions source[start[o]] … source[start[o + 1] − 1], each with a weight. So one kernel is
# every window, dilated, padded, ragged at the end or adaptive, every interpolation, and, with the tables
# transposed, the gradient of each:
#     max_pool:  out[o] = max x[s]                 over the s of the d, h and w axis that o reads
#     resample:  out[o] = Σ w_d·w_h·w_w·x[s] / divisor
# Images of fewer axes have axes of size 1.
#
# Threads share out rows of what is written (or, in max_pool_grad, blocks of channels), never a sum: the
# order of additions, and with it every bit, is the same for any number of threads. The innermost
# loops run over channels, which are contiguous.
from cython.parallel cimport prange
from libc.string cimport memcpy, memset

from libc.stdint cimport int64_t

cdef extern from "microkernel.h" nogil:
    const int POOL_TAPS
    struct taps:
        Py_ssize_t size, out_size
        const int64_t *start
        const int64_t *source
        const double *weight
        const double *divisor
    void max_row_f32(
        bint first, int rows, const float **row, const Py_ssize_t *row_pixel, const taps *w, float *out,
        int64_t *index, Py_ssize_t channels) noexcept
    void max_row_f64(
        bint first, int rows, const double **row, const Py_ssize_t *row_pixel, const taps *w, double *out,
        int64_t *index, Py_ssize_t channels) noexcept
    void resample_row_f32(
        bint first, int rows, const float **row, const float *row_weight, const taps *w, float *out,
        Py_ssize_t channels) noexcept
    void resample_row_f64(
        bint first, int rows, const double **row, const double *row_weight, const taps *w, double *out,
        Py_ssize_t channels) noexcept
    void divide_row_f32(
        double divisor, const taps *w, bint each, float *out, Py_ssize_t channels) noexcept
    void divide_row_f64(
        double divisor, const taps *w, bint each, double *out, Py_ssize_t channels) noexcept

cdef enum:
    # Rows of input handed over at a time.
    ROWS = 16
    # One 64-byte cache line of float32: no two threads of max_pool_grad write into the same line often.
    CHANNEL_BLOCK = 16


cdef taps taps_of(table):
    """The pointers of a Taps, whose arrays the caller keeps alive."""
    cdef const int64_t[::1] start = table.start, source = table.source
    cdef const double[::1] weight = table.weight, divisor = table.divisor
    cdef taps result
    result.size = table.size
    result.out_size = start.shape[0] - 1
    result.start = &start[0]
    # Empty where no output reads anything.
    result.source = &source[0] if source.shape[0] else NULL
    result.weight = &weight[0] if weight.shape[0] else NULL
    result.divisor = &divisor[0] if divisor.shape[0] else NULL
    return result


cdef inline bint same_taps(const taps *axis, Py_ssize_t j) noexcept nogil:
    """Whether output j reads what output j − 1 does."""
    cdef Py_ssize_t a = axis.start[j - 1], b = axis.start[j], count = b - a, i
    if count != axis.start[j + 1] - b or axis.divisor[j] != axis.divisor[j - 1]:
        return False
    for i in range(count):
        if axis.source[a + i] != axis.source[b + i] or axis.weight[a + i] != axis.weight[b + i]:
            return False
    return True


cdef void max_pool_row(
    const real *image,      # IN   (D, H, W, C)
    real *out,              # OUT  (W_out, C)
    int64_t *indices,       # OUT  (W_out, C), or NULL
    const taps *axes, Py_ssize_t i, Py_ssize_t j, Py_ssize_t channels,
) noexcept nogil:
    cdef const taps *d = axes
    cdef const taps *h = axes + 1
    cdef const taps *w = axes + 2
    cdef const real *row[ROWS]
    cdef Py_ssize_t pixel[ROWS]
    cdef int count = 0
    cdef bint first = True
    cdef Py_ssize_t a, b, last = d.start[i + 1] - 1
    for a in range(d.start[i], d.start[i + 1]):
        for b in range(h.start[j], h.start[j + 1]):
            pixel[count] = (d.source[a] * h.size + h.source[b]) * w.size
            row[count] = image + pixel[count] * channels
            count += 1
            if count < ROWS and (a != last or b + 1 != h.start[j + 1]):
                continue
            if real is float:
                max_row_f32(first, count, row, pixel, w, out, indices, channels)
            else:
                max_row_f64(first, count, row, pixel, w, out, indices, channels)
            first = False
            count = 0


cdef void resample_row(
    const real *image,      # IN   (D, H, W, C)
    real *out,              # OUT  (W_out, C)
    const taps *axes, Py_ssize_t i, Py_ssize_t j, Py_ssize_t channels, double divisor,
) noexcept nogil:
    cdef const taps *d = axes
    cdef const taps *h = axes + 1
    cdef const taps *w = axes + 2
    cdef const real *row[ROWS]
    cdef real weight[ROWS]
    cdef int count = 0
    cdef bint first = True
    cdef Py_ssize_t a, b, last = d.start[i + 1] - 1
    if d.start[i] > last or h.start[j] == h.start[j + 1]:
        memset(out, 0, w.out_size * channels * sizeof(real))
    for a in range(d.start[i], d.start[i + 1]):
        for b in range(h.start[j], h.start[j + 1]):
            row[count] = image + (d.source[a] * h.size + h.source[b]) * w.size * channels
            weight[count] = <real>(d.weight[a] * h.weight[b])
            count += 1
            if count < ROWS and (a != last or b + 1 != h.start[j + 1]):
                continue
            if real is float:
                resample_row_f32(first, count, row, weight, w, out, channels)
            else:
                resample_row_f64(first, count, row, weight, w, out, channels)
            first = False
            count = 0
    if real is float:
        divide_row_f32(divisor or d.divisor[i] * h.divisor[j], w, divisor == 0, out, channels)
    else:
        divide_row_f64(divisor or d.divisor[i] * h.divisor[j], w, divisor == 0, out, channels)


cdef void resample_rows(
    const real *image, real *out, const taps *axes, Py_ssize_t i, Py_ssize_t first, Py_ssize_t last,
    Py_ssize_t channels, double divisor,
) noexcept nogil:
    """Rows of one depth of the output; one that reads what the last one did is its copy."""
    cdef Py_ssize_t row = axes[2].out_size * channels, j
    for j in range(first, last):
        if j > first and same_taps(&axes[1], j):
            memcpy(out + j * row, out + (j - 1) * row, row * sizeof(real))
        else:
            resample_row(image, out + j * row, axes, i, j, channels, divisor)


cdef void scatter_channels(
    const real *grad_output,    # IN      (out_pixels, channels), from the first channel of the block
    const int64_t *indices,     # IN      (out_pixels, channels)
    real *grad_input,           # IN/OUT  (pixels, channels)
    Py_ssize_t out_pixels, Py_ssize_t channels, Py_ssize_t block,
) noexcept nogil:
    cdef Py_ssize_t _pixel, c
    for _pixel in range(out_pixels):
        for c in range(block):
            grad_input[indices[c] * channels + c] += grad_output[c]
        grad_output += channels
        indices += channels


def max_pool(
    const real[:, :, :, :, ::1] x,          # IN   (N, D, H, W, C)
    real[:, :, :, :, ::1] out,              # OUT  (N, D_out, H_out, W_out, C)
    int64_t[:, :, :, :, ::1] indices,       # OUT  (N, D_out, H_out, W_out, C), or None: (d·H + h)·W + w
    tables, int num_threads,
):
    """`tables` holds a Taps for each of D, H and W; every output reads at least one pixel."""
    cdef taps axes[3]
    cdef Py_ssize_t row, n, rows = out.shape[1] * out.shape[2], channels = out.shape[4]
    cdef bint with_indices = indices is not None
    if out.shape[0] == 0 or channels == 0:
        return
    axes[0], axes[1], axes[2] = taps_of(tables[0]), taps_of(tables[1]), taps_of(tables[2])
    for row in prange(out.shape[0] * rows, nogil=True, schedule="static", num_threads=num_threads):
        n = row // rows
        max_pool_row(
            &x[n, 0, 0, 0, 0],
            &out[n, 0, 0, 0, 0] + row % rows * axes[2].out_size * channels,
            &indices[n, 0, 0, 0, 0] + row % rows * axes[2].out_size * channels if with_indices else NULL,
            axes, row % rows // axes[1].out_size, row % axes[1].out_size, channels,
        )


def max_pool_grad(
    const real[:, :, ::1] grad_output,      # IN      (N, pixels of the output, C)
    const int64_t[:, :, ::1] indices,       # IN      (N, pixels of the output, C), each a pixel of the input
    real[:, :, ::1] grad_input,             # IN/OUT  (N, pixels of the input, C), zero before
    int num_threads,
):
    cdef Py_ssize_t channels = grad_output.shape[2]
    cdef Py_ssize_t blocks = (channels + CHANNEL_BLOCK - 1) // CHANNEL_BLOCK
    cdef Py_ssize_t task, n, c
    if grad_output.shape[0] == 0 or grad_output.shape[1] == 0 or channels == 0:
        return
    for task in prange(
        grad_output.shape[0] * blocks, nogil=True, schedule="static", num_threads=num_threads
    ):
        n = task // blocks
        c = task % blocks * CHANNEL_BLOCK
        scatter_channels(
            &grad_output[n, 0, c], &indices[n, 0, c], &grad_input[n, 0, c],
            grad_output.shape[1], channels, min(CHANNEL_BLOCK, channels - c),
        )


def resample(
    const real[:, :, :, :, ::1] x,      # IN   (N, D, H, W, C)
    real[:, :, :, :, ::1] out,          # OUT  (N, D_out, H_out, W_out, C)
    tables, double divisor, int num_threads,
):
    """`tables` holds a Taps for each of D, H and W. A `divisor` of 0 stands for the product of theirs."""
    cdef taps axes[3]
    cdef Py_ssize_t task, n, i, channels = out.shape[4], depths = out.shape[1], heights = out.shape[2]
    cdef Py_ssize_t bands
    if out.shape[0] == 0 or channels == 0:
        return
    axes[0], axes[1], axes[2] = taps_of(tables[0]), taps_of(tables[1]), taps_of(tables[2])
    bands = min(heights, 1 + 4 * num_threads // (out.shape[0] * depths))
    for task in prange(
        out.shape[0] * depths * bands, nogil=True, schedule="static", num_threads=num_threads
    ):
        n = task // (depths * bands)
        i = task // bands % depths
        resample_rows(
            &x[n, 0, 0, 0, 0], &out[n, i, 0, 0, 0], axes, i, share(heights, bands, task % bands),
            share(heights, bands, task % bands + 1), channels, divisor,
        )
