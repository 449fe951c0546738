# kn2col: k² products of 1×1 convolutions, each accumulated into the shifted output; nothing is lowered
# and no zero is multiplied, because each product covers just the outputs its tap reaches:
#
#     out[y, x, :] += X[y·s_h + i·d_h − p_h, x·s_w + j·d_w − p_w, :] · W_ij      for every tap (i, j)
from cython.parallel cimport prange, threadid
from libc.string cimport memcpy


cdef inline Py_ssize_t first_inside(Py_ssize_t start, Py_ssize_t stride) noexcept nogil:
    """The smallest t >= 0 with start + t · stride >= 0."""
    return 0 if start >= 0 else (-start + stride - 1) // stride


cdef inline Py_ssize_t end_inside(
    Py_ssize_t start, Py_ssize_t stride, Py_ssize_t size, Py_ssize_t limit
) noexcept nogil:
    """The end of the t in [0, limit) with start + t · stride < size."""
    return 0 if start >= size else min(limit, (size - 1 - start) // stride + 1)


cdef void kn2col_band(
    const Problem *problem, const real *x, const Py_ssize_t *x_stride, Py_ssize_t x_top, Py_ssize_t height,
    Py_ssize_t width, const real *packed, Py_ssize_t panels, Py_ssize_t depth, real *sums,
    Py_ssize_t row_pitch, Py_ssize_t pixel_pitch, Py_ssize_t rows, Py_ssize_t columns
) noexcept nogil:
    """Add every tap's product to sums[rows][columns][C_out]; x begins `x_top` rows below output row 0."""
    cdef Py_ssize_t panel = panel_width(packed), taps = problem.kernel_h * problem.kernel_w
    cdef Py_ssize_t i, j, g, p, k, y, y0, y1, x0, x1, top, left, run, zero = 0
    cdef const real *a
    for i in range(problem.kernel_h):
        top = i * problem.dilation_h - x_top
        y0, y1 = first_inside(top, problem.stride_h), end_inside(top, problem.stride_h, height, rows)
        for j in range(problem.kernel_w):
            left = j * problem.dilation_w - problem.pad_w
            x0, x1 = first_inside(left, problem.stride_w), end_inside(left, problem.stride_w, width, columns)
            if x0 >= x1:
                continue
            for g in range(problem.groups):
                for p in range(panels):
                    for k from 0 <= k < problem.group_in by depth:
                        run = min(depth, problem.group_in - k)
                        for y in range(y0, y1):
                            a = (x + (top + y * problem.stride_h) * x_stride[0]
                                 + (left + x0 * problem.stride_w) * x_stride[1] + g * problem.group_in + k)
                            gemm_rows(
                                x1 - x0, min(panel, problem.group_out - p * panel), a,
                                problem.stride_w * x_stride[1], 1, &zero, &run,
                                packed + (((g * panels + p) * taps + i * problem.kernel_w + j)
                                          * problem.group_in + k) * panel,
                                panel,
                                sums + y * row_pitch + x0 * pixel_pitch + g * problem.group_out + p * panel,
                                pixel_pitch, START_OUTPUT, NULL, False)


cdef void begin_pixels(
    real *pixels, Py_ssize_t count, Py_ssize_t pitch, const real *bias, Py_ssize_t channels, bint accumulate
) noexcept nogil:
    """Where the sums start: the bias, and what was there before."""
    cdef Py_ssize_t i, c
    for i in range(count):
        if accumulate:
            for c in range(channels):
                pixels[i * pitch + c] += bias[c]
        else:
            memcpy(pixels + i * pitch, bias, channels * sizeof(real))


cdef void finish_pixels(real *pixels, Py_ssize_t count, Py_ssize_t pitch, Py_ssize_t channels) noexcept nogil:
    """ReLU in place; a NaN stays."""
    cdef Py_ssize_t i, c
    for i in range(count):
        for c in range(channels):
            if pixels[i * pitch + c] < 0:
                pixels[i * pitch + c] = 0


def kn2col(
    const real[:, :, :, :] x, const real[:, :, :, ::1] packed, const real[::1] bias, geometry,
    Py_ssize_t bands, Py_ssize_t panel_parts, Py_ssize_t depth, bint copy_band, bint rectified,
    bint accumulate, real[:, :, :, :] out, real[::1] workspace, Py_ssize_t per_thread, int num_threads
):
    """kn2col, a band of output rows at a time.

    Parameters
    ----------
    x : (N, H, W, C_in), IN
    packed : (groups, panels, k_h·k_w·C_in/groups, PANEL), IN
    bias : (C_out), IN
    bands, panel_parts : parts the output rows of an image and, of one group, the panels are cut into
    depth : input channels multiplied at a time
    copy_band : bool
        Copy each band channels-last first; else x's channels must be contiguous.
    rectified, accumulate : the epilogue, out = max(conv + bias + out, 0)
    out : (N, H_out, W_out, C_out), OUT
        Accumulated in place where its channels are contiguous, else in the workspace.
    workspace : (num_threads · per_thread), scratch
    """
    cdef Problem problem = problem_of(geometry), part
    cdef Py_ssize_t item, items = x.shape[0] * bands * panel_parts, columns = out.shape[2], channels
    cdef Py_ssize_t panels = packed.shape[1], width = panel_width(&bias[0]), first_panel, last_panel, m
    cdef Py_ssize_t n, first, last, top, bottom, y, size = sizeof(real)
    cdef Py_ssize_t[3] x_stride = [x.strides[1] // size, x.strides[2] // size, x.strides[3] // size]
    cdef Py_ssize_t[3] out_stride = [out.strides[1] // size, out.strides[2] // size, out.strides[3] // size]
    cdef Py_ssize_t[3] a_stride = [x_stride[0], x_stride[1], x_stride[2]]
    cdef bint in_place = out_stride[2] == 1
    cdef Py_ssize_t row_pitch = out_stride[0] if in_place else columns * out.shape[3]
    cdef Py_ssize_t pixel_pitch = out_stride[1] if in_place else out.shape[3]
    cdef Py_ssize_t reach = (problem.kernel_h - 1) * problem.dilation_h + 1
    cdef const real *source
    cdef real *sums
    if panel_parts != 1 and problem.groups != 1:
        raise ValueError(f"panel_parts must be 1 for groups, got {panel_parts}")
    if copy_band:
        a_stride[0], a_stride[1], a_stride[2] = x.shape[2] * x.shape[3], x.shape[3], 1
    for item in prange(items, nogil=True, num_threads=num_threads, schedule="static"):
        first_panel = share(panels, panel_parts, item // (items // panel_parts))
        last_panel = share(panels, panel_parts, item // (items // panel_parts) + 1)
        m = first_panel * width
        # The part's panels are a problem of their own.
        part = problem
        part.group_out = min(problem.group_out, last_panel * width) - m
        channels = part.groups * part.group_out
        n = item // bands % x.shape[0]
        first = share(out.shape[1], bands, item % bands)
        last = share(out.shape[1], bands, item % bands + 1)
        # The rows of the image that this band of outputs reaches: top to bottom.
        top = min(max(0, first * problem.stride_h - problem.pad_h), x.shape[1])
        bottom = max(top, min(x.shape[1], (last - 1) * problem.stride_h - problem.pad_h + reach))
        source = &x[n, 0, 0, 0] + top * x_stride[0]
        sums = &workspace[threadid() * per_thread]
        if copy_band:
            gather_band(&x[n, 0, 0, 0], x_stride, x.shape[1], x.shape[2], x.shape[3], top, 0, bottom - top,
                        x.shape[2], sums, a_stride[0], a_stride[1])
            source = sums
            sums = sums + (bottom - top) * a_stride[0]
        if in_place:
            sums = &out[n, first, 0, m]
        elif accumulate:
            gather_band(&out[n, first, 0, m], out_stride, last - first, columns, channels, 0, 0, last - first,
                        columns, sums, row_pitch, pixel_pitch)
        for y in range(last - first):
            begin_pixels(sums + y * row_pitch, columns, pixel_pitch, &bias[m], channels, accumulate)
        kn2col_band(
            &part, source, a_stride, top - first * problem.stride_h + problem.pad_h, bottom - top,
            x.shape[2], &packed[0, first_panel, 0, 0], last_panel - first_panel, depth, sums,
            row_pitch, pixel_pitch, last - first, columns)
        for y in range(last - first):
            if rectified:
                finish_pixels(sums + y * row_pitch, columns, pixel_pitch, channels)
        if not in_place:
            scatter_rows(sums, row_pitch, pixel_pitch, last - first, columns, channels, &out[n, first, 0, m],
                         out_stride)
