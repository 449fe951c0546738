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
    void join_rows_f32(
        bint largest, Py_ssize_t rows, const float **row, const float *weight, bint first, Py_ssize_t lines,
        Py_ssize_t step, float *line, Py_ssize_t pitch, Py_ssize_t count) noexcept
    void join_rows_f64(
        bint largest, Py_ssize_t rows, const double **row, const double *weight, bint first, Py_ssize_t lines,
        Py_ssize_t step, double *line, Py_ssize_t pitch, Py_ssize_t count) noexcept
    void sum_pixels_f32(
        const float *line, const taps *w, Py_ssize_t begin, Py_ssize_t end, double divisor, float *out,
        Py_ssize_t channels) noexcept
    void sum_pixels_f64(
        const double *line, const taps *w, Py_ssize_t begin, Py_ssize_t end, double divisor, double *out,
        Py_ssize_t channels) noexcept

cdef enum:
    # Rows of input handed over at a time.
    ROWS = 16
    # One 64-byte cache line of float32: no two threads of max_pool_grad write into the same line often.
    CHANNEL_BLOCK = 16
    # Bytes of a line of sums over rows: in the L1 cache beside the rows.
    LINE_BYTES = 16384


cdef struct Span:
    # Neighbouring outputs of a row, and the columns they read.
    Py_ssize_t begin, end, low, high


cdef void axes_of(tables, taps *axes) except *:
    """The pointers of an Axes, whose arrays the caller keeps alive, as the Taps of D, H and W."""
    cdef const int64_t[::1] positions = tables.positions
    cdef const double[::1] factors = tables.factors
    cdef const int64_t *at = &positions[0]
    cdef const double *factor = &factors[0]
    cdef int axis
    for axis in range(3):
        axes[axis].size, axes[axis].out_size = at[0], at[1]
        axes[axis].start = at + 2
        axes[axis].source = axes[axis].start + at[1] + 1
        axes[axis].divisor = factor
        axes[axis].weight = factor + at[1]
        factor = axes[axis].weight + axes[axis].start[at[1]]
        at = axes[axis].source + axes[axis].start[at[1]]


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


cdef Py_ssize_t spans_of(const taps *w, Py_ssize_t most, Span *span) noexcept nogil:
    """Cut a row of outputs into spans that read `most` neighbouring columns, or are one output."""
    cdef Py_ssize_t count = 0, k, a, low, high
    for k in range(w.out_size):
        low, high = w.size, 0
        for a in range(w.start[k], w.start[k + 1]):
            low = min(low, w.source[a])
            high = max(high, w.source[a] + 1)
        if count and (
            low >= high or low <= span[count - 1].high
            and max(high, span[count - 1].high) - min(low, span[count - 1].low) <= most
        ):
            span[count - 1].low = min(low, span[count - 1].low)
            span[count - 1].high = max(high, span[count - 1].high)
        else:
            span[count].begin, span[count].low, span[count].high = k, low, high
            count += 1
        span[count - 1].end = k + 1
    return count


cdef inline const real *joined_rows(
    const real *image,      # IN   (D, H, W, `step`): a pixel is `step` elements; the first of `lines` images
    const taps *axes, Py_ssize_t i, Py_ssize_t j, bint largest, Py_ssize_t low, Py_ssize_t high,
    Py_ssize_t step, Py_ssize_t lines, real *line, Py_ssize_t pitch, bint copied
) noexcept nogil:
    """Pixels `low` to `high` of the sum of the rows that row (i, j) of the output reads, or of the largest of
    them: in lines `pitch` apart, or, where it is one row that need not be `copied`, that row. Returns where
    pixel 0 would be."""
    cdef const taps *d = axes
    cdef const taps *h = axes + 1
    cdef const real *row[ROWS]
    cdef real weight[ROWS]
    cdef Py_ssize_t a, b, count = 0, last = d.start[i + 1] - 1, width = axes[2].size * step
    cdef bint first = True
    for a in range(d.start[i], d.start[i + 1]):
        for b in range(h.start[j], h.start[j + 1]):
            row[count] = image + (d.source[a] * h.size + h.source[b]) * width + low * step
            weight[count] = <real>(d.weight[a] * h.weight[b])
            count += 1
            if count < ROWS and (a != last or b + 1 != h.start[j + 1]):
                continue
            if first and count == 1 and weight[0] == 1 and not copied:
                return row[0] - low * step
            if real is float:
                join_rows_f32(largest, count, row, weight, first, lines, h.size * d.size * width, line, pitch,
                              (high - low) * step)
            else:
                join_rows_f64(largest, count, row, weight, first, lines, h.size * d.size * width, line, pitch,
                              (high - low) * step)
            first = False
            count = 0
    if first:
        memset(line, 0, lines * pitch * sizeof(real))
    return line - low * step


cdef void resample_rows(
    const real *x, real *out, const taps *axes, const Span *span, Py_ssize_t spans, Py_ssize_t first,
    Py_ssize_t last, Py_ssize_t channels, double divisor, real *line,
) noexcept nogil:
    """Rows `first` to `last` of all images' outputs; one that reads what the last one did is its copy."""
    cdef Py_ssize_t heights = axes[1].out_size, depths = axes[0].out_size, row, i, j, s
    cdef Py_ssize_t pixels = axes[0].size * axes[1].size * axes[2].size, pitch = axes[2].out_size * channels
    cdef const real *at
    cdef double by
    # Of the row before the first one: divisions take as long as a row of some places.
    i, j = first // heights % depths, first % heights - 1
    x += first // (heights * depths) * pixels * channels
    for row in range(first, last):
        j += 1
        if j == heights:
            i, j = i + 1, 0
        if i == depths:
            i, x = 0, x + pixels * channels
        if row > first and j > 0 and same_taps(&axes[1], j):
            memcpy(out + row * pitch, out + (row - 1) * pitch, pitch * sizeof(real))
            continue
        by = divisor or axes[0].divisor[i] * axes[1].divisor[j]
        for s in range(spans):
            at = joined_rows(x, axes, i, j, False, span[s].low, span[s].high, channels, 1, line,
                             axes[2].size * channels, False)
            if real is float:
                sum_pixels_f32(at, &axes[2], span[s].begin, span[s].end, by, out + row * pitch, channels)
            else:
                sum_pixels_f64(at, &axes[2], span[s].begin, span[s].end, by, out + row * pitch, channels)


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
    """`tables` is an Axes; every output reads at least one pixel."""
    cdef taps axes[3]
    cdef Py_ssize_t row, n, rows = out.shape[1] * out.shape[2], channels = out.shape[4]
    cdef bint with_indices = indices is not None
    if out.shape[0] == 0 or channels == 0:
        return
    axes_of(tables, axes)
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
    tables, double divisor,
    real[::1] workspace,                # scratch: a row of x for each thread, then a Span for each of W_out
    Py_ssize_t per_thread, int num_threads,
):
    """`tables` is an Axes. A `divisor` of 0 stands for the product of those of the Taps."""
    cdef taps axes[3]
    cdef Py_ssize_t task, channels = out.shape[4], rows = out.shape[0] * out.shape[1] * out.shape[2], count
    cdef Span *span = <Span *>(&workspace[0] + num_threads * per_thread)
    if out.shape[0] == 0 or channels == 0:
        return
    axes_of(tables, axes)
    count = spans_of(&axes[2], LINE_BYTES // (channels * <Py_ssize_t>sizeof(real)), span)
    for task in prange(num_threads, nogil=True, schedule="static", num_threads=num_threads):
        resample_rows(
            &x[0, 0, 0, 0, 0], &out[0, 0, 0, 0, 0], axes, span, count, share(rows, num_threads, task),
            share(rows, num_threads, task + 1), channels, divisor, &workspace[0] + task * per_thread,
        )
