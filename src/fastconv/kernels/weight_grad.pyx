# The weight gradient, itself a matrix product over output pixels:
#
#     dW[m, (i, j, c)] = Σ_n Σ_y Σ_x  dy[n, m, y, x] · x[n, y·s_h + i·d_h − p_h, x·s_w + j·d_w − p_w, c]
#
# dy's rows (one a channel, pixels contiguous) are the left factor; the right one is lowered a panel of
# PANEL columns (i, j, c) and a run of pixels at a time.
from cython.parallel cimport prange, threadid
from libc.string cimport memcpy, memset


cdef void lower_columns(
    const Problem *problem, const real *x, const Py_ssize_t *x_stride, Py_ssize_t height, Py_ssize_t width,
    Py_ssize_t out_columns, Py_ssize_t first_pixel, Py_ssize_t pixels, Py_ssize_t first_column,
    Py_ssize_t last_column, real *panel, Py_ssize_t pitch
) noexcept nogil:
    """panel[pixel, column − first_column] for the columns (i, j, c) of one group, zero outside x."""
    cdef Py_ssize_t column = first_column, tap, c, run, pixel, y, x0, k
    cdef const real *source
    cdef real *target
    while column < last_column:  # one tap's channels at a time
        tap, c = column // problem.group_in, column % problem.group_in
        run = min(problem.group_in - c, last_column - column)
        for pixel in range(pixels):
            y = ((first_pixel + pixel) // out_columns * problem.stride_h - problem.pad_h
                 + tap // problem.kernel_w * problem.dilation_h)
            x0 = ((first_pixel + pixel) % out_columns * problem.stride_w - problem.pad_w
                  + tap % problem.kernel_w * problem.dilation_w)
            target = panel + pixel * pitch + column - first_column
            if y < 0 or y >= height or x0 < 0 or x0 >= width:
                memset(target, 0, run * sizeof(real))
                continue
            source = x + y * x_stride[0] + x0 * x_stride[1] + c * x_stride[2]
            if x_stride[2] == 1:
                memcpy(target, source, run * sizeof(real))
            else:
                for k in range(run):
                    target[k] = source[k * x_stride[2]]
        column += run


def weight_grad(
    const real[:, :, :, :] x, const real[:, :, ::1] grad, geometry, Py_ssize_t out_columns,
    Py_ssize_t run_pixels, real[:, :, :, ::1] partial, real[::1] workspace, Py_ssize_t per_thread,
    int num_threads
):
    """Weight gradient of a convolution, in partial sums over parts of the batch.

    Parameters
    ----------
    x : (N, H, W, C_in), IN
    grad : (N, C_out, H_out·W_out), IN
    out_columns : W_out
    run_pixels : output pixels lowered at a time
    partial : (parts, groups, C_out/groups, panels · PANEL), OUT
        One sum for each of ``parts`` equal parts of the batch; the caller adds them.
    workspace : (num_threads · per_thread), scratch, run_pixels · PANEL for each thread
    """
    cdef Problem problem = problem_of(geometry)
    cdef Py_ssize_t reduction = problem.kernel_h * problem.kernel_w * problem.group_in
    cdef Py_ssize_t width = panel_width(&workspace[0]), panels = (reduction + width - 1) // width
    cdef Py_ssize_t parts = partial.shape[0], pixels = grad.shape[2], size = sizeof(real), zero = 0
    cdef Py_ssize_t item, part, g, p, n, first, run, columns
    cdef Py_ssize_t[3] x_stride = [x.strides[1] // size, x.strides[2] // size, x.strides[3] // size]
    cdef real *panel
    cdef Py_ssize_t items = parts * problem.groups * panels
    for item in prange(items, nogil=True, num_threads=num_threads, schedule="static"):
        p = item % panels
        g = item // panels % problem.groups
        part = item // panels // problem.groups
        columns = min(width, reduction - p * width)
        panel = &workspace[threadid() * per_thread]
        memset(panel, 0, run_pixels * width * sizeof(real))
        for n in range(share(x.shape[0], parts, part), share(x.shape[0], parts, part + 1)):
            for first from 0 <= first < pixels by run_pixels:
                run = min(run_pixels, pixels - first)
                lower_columns(
                    &problem, &x[n, 0, 0, 0] + g * problem.group_in * x_stride[2], x_stride, x.shape[1],
                    x.shape[2], out_columns, first, run, p * width, p * width + columns, panel, width)
                gemm_rows(
                    problem.group_out, width, &grad[n, g * problem.group_out, first], pixels, 1, &zero, &run,
                    panel, width, &partial[part, g, 0, p * width], partial.shape[3], START_OUTPUT, NULL,
                    False)
