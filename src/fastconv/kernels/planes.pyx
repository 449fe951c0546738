# The same convolution on channels-first planes: vectors run along a row of outputs, weights are broadcast.
# A band of a group's input planes is gathered with its halo, columns sorted by their phase modulo the stride,
# so that every tap reads consecutive elements; the band stays in the L1 cache for all outputs of the group.
# Square kernels of depthwise problems read each row where it lies, and beyond its ends: the first and
# the last rows in memory are copied.
from cython.parallel cimport prange, threadid
from libc.string cimport memcpy, memset


cdef inline void plane_row(
    const planes *s, const real *source, Py_ssize_t width, Py_ssize_t readable, real *target
) noexcept nogil:
    if real is float:
        plane_row_f32(s, source, width, readable, target)
    else:
        plane_row_f64(s, source, width, readable, target)


cdef inline void plane_rows(
    const planes *s, Py_ssize_t outs, Py_ssize_t rows, const real *a, const Py_ssize_t *offset, const real *w,
    const real *bias, real *y
) noexcept nogil:
    if real is float:
        plane_rows_f32(s, outs, rows, a, offset, w, bias, y)
    else:
        plane_rows_f64(s, outs, rows, a, offset, w, bias, y)


cdef inline void square_rows(
    const planes *s, Py_ssize_t outs, Py_ssize_t rows, const real *const *line, const real *w,
    const real *bias, real *block, real *y
) noexcept nogil:
    if real is float:
        square_rows_f32(s, outs, rows, line, w, bias, block, y)
    else:
        square_rows_f64(s, outs, rows, line, w, bias, block, y)


cdef inline bint is_square(const Problem *problem) noexcept nogil:
    """Whether there are strips for this problem."""
    return (
        problem.group_in == 1 and problem.dilation_h == problem.dilation_w == 1
        and problem.kernel_h == problem.kernel_w and problem.kernel_h in (3, 5, 7)
        and problem.stride_h == problem.stride_w and problem.stride_h <= 2
    )


cdef void square_band(
    const planes *s, const Problem *problem, const real *x, Py_ssize_t height, Py_ssize_t row_stride,
    const real *lowest, const real *highest, Py_ssize_t top, bint finite, const real *w, const real *bias,
    Py_ssize_t rows, real *out, real *scratch
) noexcept nogil:
    """`rows` rows of all output channels of the plane x; the first one's window begins in row `top`.

    Elements from `lowest` to `highest` may be read. `scratch` holds a pointer for each row of input, a strip
    of outputs and copies of rows.
    """
    cdef Py_ssize_t lanes = VECTOR_BYTES // <Py_ssize_t>sizeof(real), y, in_rows
    cdef Py_ssize_t reach = (s.columns + lanes - 1) // lanes * lanes * s.stride_w + problem.kernel_w
    cdef const real **line = <const real **>scratch
    cdef const real *row
    in_rows = covered(rows, problem.stride_h, problem.kernel_h, 1)
    cdef real *block = scratch + (in_rows + 2) * <Py_ssize_t>(sizeof(row) // sizeof(real))
    cdef real *copies = block + PLANE_WIDE * lanes * rows
    for y in range(in_rows + 2):
        line[y] = NULL
        if y < in_rows and 0 <= top + y < height:
            row = x + (top + y) * row_stride - problem.pad_w
            if row < lowest or row + reach > highest:
                memcpy(copies + problem.pad_w, row + problem.pad_w,
                       min(s.width, reach - problem.pad_w) * sizeof(real))
                row = copies
                copies = copies + reach
            line[y] = row
        elif not finite:  # a product of zero is NaN then
            memset(copies, 0, reach * sizeof(real))
            line[y] = copies
            copies = copies + reach
    square_rows(s, problem.group_out, rows, line, w, bias, block, out)


cdef void gather_plane(
    const planes *s, const real *x, Py_ssize_t row_stride, Py_ssize_t height, Py_ssize_t width,
    Py_ssize_t top, Py_ssize_t rows, Py_ssize_t in_columns, real *target
) noexcept nogil:
    """`rows` rows of a plane from row `top` on. Rows go upwards: each may spill into the next one's place."""
    cdef Py_ssize_t y, inside, pitch = s.stride_w * s.phase_pitch
    cdef Py_ssize_t taken = max(0, min(width, in_columns - s.pad_w))
    for y in range(top, top + rows):
        inside = taken if 0 <= y < height else 0
        plane_row(
            s, x + y * row_stride if inside else x, inside,
            width + (height - 1 - y) * row_stride if row_stride >= width else inside, target)
        target += pitch


def depthwise_planes(
    const real[:, :, :, :] x, const real[:, ::1] packed, const real[::1] bias, geometry,
    const Py_ssize_t[::1] offset, Py_ssize_t phase_pitch, Py_ssize_t bands, bint finite, bint rectified,
    bint accumulate, real[:, :, :, :] out, real[::1] workspace, Py_ssize_t per_thread, int num_threads
):
    """Convolution in narrow groups where the columns of x and of out are contiguous.

    Parameters
    ----------
    x : (N, H, W, C_in), IN
    packed, bias : as `depthwise` takes them, IN
    offset : (k_h·C_in/groups·k_w), IN
        Where each tap lies in the gathered planes (C_in/groups, rows, stride_w, phase_pitch).
    bands : parts the output rows of an image are cut into
    finite : whether all weights are
    out : (N, H_out, W_out, C_out), OUT
    workspace : (num_threads · per_thread), scratch
    """
    cdef Problem problem = problem_of(geometry)
    cdef Py_ssize_t item, items = x.shape[0] * problem.groups * bands, size = sizeof(real)
    cdef Py_ssize_t columns = out.shape[2]
    cdef Py_ssize_t n, g, c, m, first, last, in_rows, row_pitch = problem.stride_w * phase_pitch
    cdef Py_ssize_t in_columns = covered(columns, problem.stride_w, problem.kernel_w, problem.dilation_w)
    cdef Py_ssize_t plane_pitch = row_pitch * covered(
        (out.shape[1] + bands - 1) // bands, problem.stride_h, problem.kernel_h, problem.dilation_h)
    cdef real *scratch
    cdef const real *lowest = &x[0, 0, 0, 0]
    cdef const real *highest = lowest + 1
    cdef int axis
    cdef planes s
    s.taps, s.stride_w, s.pad_w, s.phase_pitch = packed.shape[0], problem.stride_w, problem.pad_w, phase_pitch
    s.columns, s.a_row, s.w_stride = columns, problem.stride_h * row_pitch, packed.shape[1]
    s.y_plane, s.y_row, s.rectified = out.strides[3] // size, out.strides[1] // size, rectified
    s.accumulate, s.width = accumulate, x.shape[2]
    for axis in range(4):
        if x.strides[axis] < 0:
            lowest = lowest + (x.shape[axis] - 1) * x.strides[axis] // size
        else:
            highest = highest + (x.shape[axis] - 1) * x.strides[axis] // size
    for item in prange(items, nogil=True, num_threads=num_threads, schedule="static"):
        n = item // bands // problem.groups
        g = item // bands % problem.groups
        first = share(out.shape[1], bands, item % bands)
        last = share(out.shape[1], bands, item % bands + 1)
        in_rows = covered(last - first, problem.stride_h, problem.kernel_h, problem.dilation_h)
        scratch = &workspace[threadid() * per_thread]
        m = g * problem.group_out
        if is_square(&problem):
            square_band(
                &s, &problem, &x[n, 0, 0, g], x.shape[1], x.strides[1] // size, lowest, highest,
                first * problem.stride_h - problem.pad_h, finite, &packed[0, m], &bias[m], last - first,
                &out[n, first, 0, m], scratch)
            continue
        for c in range(problem.group_in):
            gather_plane(
                &s, &x[n, 0, 0, g * problem.group_in + c], x.strides[1] // size, x.shape[1], x.shape[2],
                first * problem.stride_h - problem.pad_h, in_rows, in_columns, scratch + c * plane_pitch)
        plane_rows(&s, problem.group_out, last - first, scratch, &offset[0], &packed[0, m], &bias[m],
                   &out[n, first, 0, m])
