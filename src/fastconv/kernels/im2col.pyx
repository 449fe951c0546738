# im2col: the patches of a panel of output pixels are lowered to a matrix, then multiplied.
#
#     patches[y·W_out + x, (i, j, c)] = band[y·s_h + i·d_h, x·s_w + j·d_w, c];    out = patches · W
#
# The panel is a bounded buffer that one thread fills and multiplies while it is in its cache.
from cython.parallel cimport prange, threadid
from libc.string cimport memcpy


cdef void lower_pixels(
    const Problem *problem, const real *band, Py_ssize_t row_pitch, Py_ssize_t pixel_pitch,
    Py_ssize_t columns, Py_ssize_t first, Py_ssize_t count, real *patches, Py_ssize_t patch_pitch
) noexcept nogil:
    """Lower output pixels first … first + count of a band, counted along its rows of `columns` pixels."""
    cdef Py_ssize_t pixel, i, j, run = problem.group_in, taps = problem.kernel_w
    cdef const real *source
    cdef real *target
    if problem.dilation_w == 1 and problem.group_in == pixel_pitch:  # a kernel row is one run
        run, taps = problem.kernel_w * problem.group_in, 1
    for pixel in range(first, first + count):
        source = (band + pixel // columns * problem.stride_h * row_pitch
                  + pixel % columns * problem.stride_w * pixel_pitch)
        target = patches + (pixel - first) * patch_pitch
        for i in range(problem.kernel_h):
            for j in range(taps):
                memcpy(target, source + i * problem.dilation_h * row_pitch
                       + j * problem.dilation_w * pixel_pitch, run * sizeof(real))
                target += run


cdef void im2col_band(
    const Problem *problem, const real *band, Py_ssize_t row_pitch, Py_ssize_t pixel_pitch,
    const real *packed, Py_ssize_t reduction, Py_ssize_t panels, const real *bias, bint rectified,
    bint accumulate, real *out, const Py_ssize_t *out_stride, Py_ssize_t rows, Py_ssize_t columns,
    Py_ssize_t panel_pixels, Py_ssize_t patch_pitch, Py_ssize_t depth, real *patches
) noexcept nogil:
    """All groups and panels for `rows` output rows; a block of results may lie behind the patches."""
    cdef Py_ssize_t width = panel_width(packed), g, p, k, first, count, channels, run, zero = 0
    cdef bint in_place = out_stride[2] == 1 and out_stride[0] == columns * out_stride[1]
    cdef int start = START_BIAS | START_OUTPUT if accumulate else START_BIAS
    cdef Py_ssize_t c_pixel = out_stride[1] if in_place else width
    cdef real *target
    cdef real *c
    for g in range(problem.groups):
        for first from 0 <= first < rows * columns by panel_pixels:
            count = min(panel_pixels, rows * columns - first)
            lower_pixels(problem, band + g * problem.group_in, row_pitch, pixel_pitch, columns, first, count,
                         patches, patch_pitch)
            for p in range(panels):
                channels = min(width, problem.group_out - p * width)
                target = out + (g * problem.group_out + p * width) * out_stride[2]
                c = target + first * c_pixel if in_place else patches + panel_pixels * patch_pitch
                if accumulate and not in_place:
                    move_block(c, width, first, count, columns, channels, target, out_stride, False)
                for k from 0 <= k < reduction by depth:
                    run = min(depth, reduction - k)
                    gemm_rows(
                        count, channels, patches + k, patch_pitch, 1, &zero, &run,
                        packed + ((g * panels + p) * reduction + k) * width, width, c, c_pixel,
                        start if k == 0 else START_OUTPUT, bias + (g * panels + p) * width,
                        rectified and k + run == reduction)
                if not in_place:
                    move_block(c, width, first, count, columns, channels, target, out_stride, True)


def im2col(
    const real[:, :, :, :] x, const real[:, :, :, ::1] packed, const real[::1] bias, geometry,
    Py_ssize_t bands, Py_ssize_t panel_pixels, Py_ssize_t patch_pitch, Py_ssize_t depth, bint rectified,
    bint accumulate, real[:, :, :, :] out, real[::1] workspace, Py_ssize_t per_thread, int num_threads
):
    """im2col, panel by panel.

    Parameters
    ----------
    x : (N, H, W, C_in), IN
    packed : (groups, panels, k_h·k_w·C_in/groups, PANEL), IN
    bias : (groups · panels · PANEL), IN
    bands : parts the output rows of an image are cut into
    panel_pixels, patch_pitch : output pixels lowered at a time, and elements from one's patch to the next's
    depth : rows of a panel of weights multiplied at a time
    rectified, accumulate : the epilogue, out = max(conv + bias + out, 0)
    out : (N, H_out, W_out, C_out), OUT
    workspace : (num_threads · per_thread), scratch
    """
    cdef Problem problem = problem_of(geometry)
    cdef Py_ssize_t item, items = x.shape[0] * bands, columns = out.shape[2], n, first, last, rows, in_rows
    cdef Py_ssize_t in_columns = covered(columns, problem.stride_w, problem.kernel_w, problem.dilation_w)
    cdef Py_ssize_t row_pitch = in_columns * x.shape[3], size = sizeof(real)
    cdef Py_ssize_t[3] x_stride = [x.strides[1] // size, x.strides[2] // size, x.strides[3] // size]
    cdef Py_ssize_t[3] out_stride = [out.strides[1] // size, out.strides[2] // size, out.strides[3] // size]
    cdef real *scratch
    for item in prange(items, nogil=True, num_threads=num_threads, schedule="static"):
        n = item // bands
        first = share(out.shape[1], bands, item % bands)
        last = share(out.shape[1], bands, item % bands + 1)
        rows = last - first
        in_rows = covered(rows, problem.stride_h, problem.kernel_h, problem.dilation_h)
        scratch = &workspace[threadid() * per_thread]
        gather_band(
            &x[n, 0, 0, 0], x_stride, x.shape[1], x.shape[2], x.shape[3],
            first * problem.stride_h - problem.pad_h, -problem.pad_w, in_rows, in_columns,
            scratch, row_pitch, x.shape[3])
        im2col_band(
            &problem, scratch, row_pitch, x.shape[3], &packed[0, 0, 0, 0], packed.shape[2],
            packed.shape[1], &bias[0], rectified, accumulate, &out[n, first, 0, 0], out_stride, rows, columns,
            panel_pixels, patch_pitch, depth, scratch + in_rows * row_pitch)
