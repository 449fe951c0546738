# Max and average pooling over channels-last images, and their backward passes.
#
# Forward, for every output (n, i, j, c), over the window's pixels that lie inside the image:
#     max:      out = max x,   indices = h·W + w of the first pixel that has it (a NaN wins)
#     average:  out = Σ x / divisor,   divisor = kernel_h·kernel_w, or the number of pixels inside
# The border of a max pooling is −∞, of an average pooling 0. Padding is at most half the kernel, so
# every window has a pixel inside.
#
# Threads share out rows of what is written (or, in max_pool_grad, blocks of channels), never a sum: the
# order of additions, and with it every bit, is the same for any number of threads. The innermost
# loops run over channels, which are contiguous.
from cython.parallel cimport prange
from libc.string cimport memcpy, memset

from libc.stdint cimport int64_t

cdef enum:
    # One 64-byte cache line of float32: no two threads of max_pool_grad write into the same line often.
    CHANNEL_BLOCK = 16

cdef struct Window:
    Py_ssize_t height, width, channels      # of the image
    Py_ssize_t out_height, out_width
    Py_ssize_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w
    bint count_padding


cdef Window pool_window(x_shape, out_shape, kernel, stride, padding, bint count_padding):
    cdef Window w
    w.height, w.width, w.channels = x_shape[1:4]
    w.out_height, w.out_width = out_shape[1:3]
    w.kernel_h, w.kernel_w = kernel
    w.stride_h, w.stride_w = stride
    w.pad_h, w.pad_w = padding
    w.count_padding = count_padding
    return w


cdef inline Py_ssize_t window_start(Py_ssize_t start) noexcept nogil:
    return start if start > 0 else 0


cdef inline Py_ssize_t window_stop(Py_ssize_t stop, Py_ssize_t size) noexcept nogil:
    return stop if stop < size else size


cdef inline Py_ssize_t average_divisor(const Window *w, Py_ssize_t rows, Py_ssize_t columns) noexcept nogil:
    return w.kernel_h * w.kernel_w if w.count_padding else rows * columns


cdef inline void take_larger(const real *x, real *out, Py_ssize_t channels) noexcept nogil:
    cdef Py_ssize_t c
    for c in range(channels):
        out[c] = x[c] if (x[c] > out[c] or x[c] != x[c]) else out[c]


cdef inline void take_larger_index(
    const real *x, real *out, int64_t *indices, int64_t index, Py_ssize_t channels
) noexcept nogil:
    cdef Py_ssize_t c
    cdef bint larger
    for c in range(channels):
        larger = x[c] > out[c] or x[c] != x[c]
        out[c] = x[c] if larger else out[c]
        indices[c] = index if larger else indices[c]


cdef void max_pool_row(
    const real *image,      # IN   (height, width, channels)
    real *out,              # OUT  (out_width, channels)
    int64_t *indices,       # OUT  (out_width, channels), or NULL
    const Window *w,
    Py_ssize_t out_row,
) noexcept nogil:
    cdef Py_ssize_t top = out_row * w.stride_h - w.pad_h
    cdef Py_ssize_t row_start = window_start(top), row_stop = window_stop(top + w.kernel_h, w.height)
    cdef Py_ssize_t left, column_start, column_stop, column, row, i, c, pixel
    for i in range(w.out_width):
        left = i * w.stride_w - w.pad_w
        column_start = window_start(left)
        column_stop = window_stop(left + w.kernel_w, w.width)
        pixel = row_start * w.width + column_start
        memcpy(out, image + pixel * w.channels, w.channels * sizeof(real))
        if indices != NULL:
            for c in range(w.channels):
                indices[c] = pixel
        for row in range(row_start, row_stop):
            for column in range(column_start, column_stop):
                pixel = row * w.width + column
                if indices == NULL:
                    take_larger(image + pixel * w.channels, out, w.channels)
                else:
                    take_larger_index(image + pixel * w.channels, out, indices, pixel, w.channels)
        out += w.channels
        if indices != NULL:
            indices += w.channels


cdef void avg_pool_row(
    const real *image,      # IN   (height, width, channels)
    real *out,              # OUT  (out_width, channels)
    const Window *w,
    Py_ssize_t out_row,
) noexcept nogil:
    cdef Py_ssize_t top = out_row * w.stride_h - w.pad_h
    cdef Py_ssize_t row_start = window_start(top), row_stop = window_stop(top + w.kernel_h, w.height)
    cdef Py_ssize_t left, column_start, column_stop, column, row, i, c
    cdef const real *pixel
    cdef real divisor
    for i in range(w.out_width):
        left = i * w.stride_w - w.pad_w
        column_start = window_start(left)
        column_stop = window_stop(left + w.kernel_w, w.width)
        divisor = average_divisor(w, row_stop - row_start, column_stop - column_start)
        memset(out, 0, w.channels * sizeof(real))
        for row in range(row_start, row_stop):
            for column in range(column_start, column_stop):
                pixel = image + (row * w.width + column) * w.channels
                for c in range(w.channels):
                    out[c] = out[c] + pixel[c]
        for c in range(w.channels):
            out[c] = out[c] / divisor
        out += w.channels


cdef void avg_pool_grad_row(
    const real *grad_output,    # IN   (out_height, out_width, channels)
    real *grad_row,             # OUT  (width, channels)
    const Window *w,
    Py_ssize_t row,
) noexcept nogil:
    # The output rows whose window holds this row: out_row·stride ≤ row + pad ≤ out_row·stride + kernel − 1.
    cdef Py_ssize_t reach = row + w.pad_h - w.kernel_h + 1
    cdef Py_ssize_t out_start = (reach + w.stride_h - 1) // w.stride_h if reach > 0 else 0
    cdef Py_ssize_t out_stop = window_stop((row + w.pad_h) // w.stride_h + 1, w.out_height)
    cdef Py_ssize_t out_row, i, c, column, column_start, column_stop, top, left
    cdef const real *grad
    cdef real divisor
    memset(grad_row, 0, w.width * w.channels * sizeof(real))
    for out_row in range(out_start, out_stop):
        top = out_row * w.stride_h - w.pad_h
        for i in range(w.out_width):
            left = i * w.stride_w - w.pad_w
            column_start = window_start(left)
            column_stop = window_stop(left + w.kernel_w, w.width)
            divisor = average_divisor(
                w, window_stop(top + w.kernel_h, w.height) - window_start(top), column_stop - column_start
            )
            grad = grad_output + (out_row * w.out_width + i) * w.channels
            for column in range(column_start, column_stop):
                for c in range(w.channels):
                    grad_row[column * w.channels + c] += grad[c] / divisor


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
    const real[:, :, :, ::1] x,         # IN   (N, H, W, C)
    real[:, :, :, ::1] out,             # OUT  (N, H_out, W_out, C)
    int64_t[:, :, :, ::1] indices,      # OUT  (N, H_out, W_out, C), or None
    kernel, stride, padding, int num_threads,
):
    cdef Window w = pool_window(x.shape, out.shape, kernel, stride, padding, True)
    cdef Py_ssize_t row, n, i
    cdef bint with_indices = indices is not None
    if out.shape[0] == 0 or w.channels == 0:
        return
    for row in prange(
        out.shape[0] * w.out_height, nogil=True, schedule="static", num_threads=num_threads
    ):
        n = row // w.out_height
        i = row % w.out_height
        max_pool_row(
            &x[n, 0, 0, 0], &out[n, i, 0, 0], &indices[n, i, 0, 0] if with_indices else NULL, &w, i
        )


def max_pool_grad(
    const real[:, :, :, ::1] grad_output,       # IN      (N, H_out, W_out, C)
    const int64_t[:, :, :, ::1] indices,        # IN      (N, H_out, W_out, C), each in 0 … H·W − 1
    real[:, :, :, ::1] grad_input,              # IN/OUT  (N, H, W, C), zero before
    int num_threads,
):
    cdef Py_ssize_t channels = grad_output.shape[3]
    cdef Py_ssize_t out_pixels = grad_output.shape[1] * grad_output.shape[2]
    cdef Py_ssize_t blocks = (channels + CHANNEL_BLOCK - 1) // CHANNEL_BLOCK
    cdef Py_ssize_t task, n, c
    if grad_output.shape[0] == 0 or channels == 0:
        return
    for task in prange(
        grad_output.shape[0] * blocks, nogil=True, schedule="static", num_threads=num_threads
    ):
        n = task // blocks
        c = task % blocks * CHANNEL_BLOCK
        scatter_channels(
            &grad_output[n, 0, 0, c], &indices[n, 0, 0, c], &grad_input[n, 0, 0, c],
            out_pixels, channels, window_stop(CHANNEL_BLOCK, channels - c),
        )


def avg_pool(
    const real[:, :, :, ::1] x,     # IN   (N, H, W, C)
    real[:, :, :, ::1] out,         # OUT  (N, H_out, W_out, C)
    kernel, stride, padding, bint count_include_pad, int num_threads,
):
    cdef Window w = pool_window(x.shape, out.shape, kernel, stride, padding, count_include_pad)
    cdef Py_ssize_t row, n, i
    if out.shape[0] == 0 or w.channels == 0:
        return
    for row in prange(
        out.shape[0] * w.out_height, nogil=True, schedule="static", num_threads=num_threads
    ):
        n = row // w.out_height
        i = row % w.out_height
        avg_pool_row(&x[n, 0, 0, 0], &out[n, i, 0, 0], &w, i)


def avg_pool_grad(
    const real[:, :, :, ::1] grad_output,   # IN   (N, H_out, W_out, C)
    real[:, :, :, ::1] grad_input,          # OUT  (N, H, W, C)
    kernel, stride, padding, bint count_include_pad, int num_threads,
):
    cdef Window w = pool_window(
        grad_input.shape, grad_output.shape, kernel, stride, padding, count_include_pad
    )
    cdef Py_ssize_t row, n, i
    if grad_input.shape[0] == 0 or w.channels == 0:
        return
    for row in prange(
        grad_input.shape[0] * w.height, nogil=True, schedule="static", num_threads=num_threads
    ):
        n = row // w.height
        i = row % w.height
        avg_pool_grad_row(&grad_output[n, 0, 0, 0], &grad_input[n, i, 0, 0], &w, i)
