# Pooling and resampling of planes, (N·C, D, H, W), by the tables of pooling.pyx, in its order of operations:
# vectors run along the rows of a plane instead of over channels. For taps that lie close together.
#
# The rows that an output row reads are joined first, their sum or the largest of them, then the neighbours
# along that line: k_h + k_w taps instead of k_h · k_w, and no shuffle in the first half. Some planes go
# together: they share their taps, and a load across two stores that are on their way to the cache waits.
# Largest pixels whose positions are asked for are searched row by row, as their order decides.
from cython.parallel cimport prange
from libc.string cimport memcpy

cdef extern from "microkernel.h" nogil:
    struct plane_taps:
        Py_ssize_t blocks, most, reach
        Py_ssize_t *base
        void *lane
        void *valid
        void *weight
        void *divisor
    bint plane_taps_f32(const taps *w, const plane_taps *t) noexcept
    bint plane_taps_f64(const taps *w, const plane_taps *t) noexcept
    void plane_lines_f32(
        bint largest, int lines, const float *line, Py_ssize_t pitch, const plane_taps *t, Py_ssize_t columns,
        float divisor, float *out, Py_ssize_t out_pitch) noexcept
    void plane_lines_f64(
        bint largest, int lines, const double *line, Py_ssize_t pitch, const plane_taps *t,
        Py_ssize_t columns, double divisor, double *out, Py_ssize_t out_pitch) noexcept
    void plane_max_f32(
        const float *row, Py_ssize_t pixel, const plane_taps *t, float *best, int32_t *at) noexcept
    void plane_max_f64(
        const double *row, Py_ssize_t pixel, const plane_taps *t, double *best, int64_t *at) noexcept
    void plane_max_join_f32(
        const plane_taps *t, const float *first, const int32_t *first_at, const float *second,
        const int32_t *second_at, float *best, int32_t *at) noexcept
    void plane_max_join_f64(
        const plane_taps *t, const double *first, const int64_t *first_at, const double *second,
        const int64_t *second_at, double *best, int64_t *at) noexcept
    void plane_max_keep_f32(
        const plane_taps *t, Py_ssize_t columns, const float *best, const int32_t *at, float *out,
        int64_t *index) noexcept
    void plane_max_keep_f64(
        const plane_taps *t, Py_ssize_t columns, const double *best, const int64_t *at, double *out,
        int64_t *index) noexcept

cdef enum:
    # Elements of two vectors at most.
    WINDOW = 32
    # Planes that go together: PLANE_LINES, for which there is a copy of the loop.
    LINES = 4
    # Rows whose largest pixels are kept for the windows below.
    KEPT = 8


cdef struct Planes:
    # What all planes have in common.
    taps axes[3]
    plane_taps columns
    Py_ssize_t line_pitch
    double divisor
    bint divided, largest, selected     # selected: each output is one pixel


cdef bint planes_of(tables, double divisor, bint reach_two, real[::1] workspace, Planes *planes) except -1:
    """Fill `planes`; false where the tables are not for planes. The lines begin after `planes.columns`."""
    cdef Py_ssize_t axis, k, vectors, lanes = panel_width(&workspace[0]) // 2
    cdef taps *w = &planes.axes[2]
    cdef plane_taps *t = &planes.columns
    axes_of(tables, planes.axes)
    t.blocks = (w.out_size + lanes - 1) // lanes
    t.most = 1
    planes.divisor = divisor
    planes.divided = divisor != 0 and divisor != 1
    planes.selected = True
    for axis in range(3):
        for k in range(planes.axes[axis].out_size):
            planes.divided = planes.divided or planes.axes[axis].divisor[k] != 1
            if planes.axes[axis].start[k + 1] != k + 1 or planes.axes[axis].weight[k] != 1:
                planes.selected = False
    planes.divided = planes.divided and not planes.largest
    planes.selected = planes.selected and not planes.divided
    for k in range(w.out_size):
        t.most = max(t.most, w.start[k + 1] - w.start[k])
    planes.line_pitch = whole_vectors(w.out_size if reach_two else max(w.size, 2 * lanes), &workspace[0])
    if 4 * w.out_size < lanes:
        return False
    # Three vectors and a position, which takes no more than a vector, for each.
    vectors = t.blocks * t.most
    t.lane = &workspace[0]
    t.valid = &workspace[vectors * lanes]
    t.weight = &workspace[2 * vectors * lanes]
    t.base = <Py_ssize_t *>&workspace[3 * vectors * lanes]
    t.divisor = &workspace[4 * vectors * lanes]
    for k in range(2 if reach_two else 1, 3):
        t.reach = k
        if real is float:
            if plane_taps_f32(w, t):
                return True
        else:
            if plane_taps_f64(w, t):
                return True
    return False


cdef inline const real *whole_window(
    const real *row, Py_ssize_t width, const real *end, real *copy
) noexcept nogil:
    """The row, or a copy of it where a window would reach beyond the end of the array."""
    if width >= panel_width(row) or row + panel_width(row) <= end:
        return row
    memcpy(copy, row, width * sizeof(real))
    return copy


cdef void plane_max_row(
    const Planes *planes, const real *plane, const real *end, real *out, int64_t *indices, Py_ssize_t i,
    Py_ssize_t j,
    real *scratch,          # (KEPT + 1, 2, columns in whole vectors): the largest, and where they are
    const real **kept,      # of which rows
) noexcept nogil:
    """Row (i, j) of the largest pixels, and where they are: those along each row, joined."""
    cdef const taps *d = &planes.axes[0]
    cdef const taps *h = &planes.axes[1]
    cdef const taps *w = &planes.axes[2]
    cdef const plane_taps *t = &planes.columns
    cdef const real *row
    cdef real copy[WINDOW]
    cdef real *best = NULL
    cdef real *line
    cdef real *both = scratch + 2 * KEPT * planes.line_pitch
    cdef Py_ssize_t a, b, pixel, slot, pitch = planes.line_pitch
    for a in range(d.start[i], d.start[i + 1]):
        for b in range(h.start[j], h.start[j + 1]):
            pixel = (d.source[a] * h.size + h.source[b]) * w.size
            slot = h.source[b] % KEPT
            line = scratch + 2 * slot * pitch
            if kept[slot] != plane + pixel:
                if best == line:  # the row before has the same place
                    best = both
                    memcpy(both, line, 2 * pitch * sizeof(real))
                kept[slot] = plane + pixel
                row = whole_window(plane + pixel, w.size, end, copy)
                if real is float:
                    plane_max_f32(row, pixel, t, line, <int32_t *>(line + pitch))
                else:
                    plane_max_f64(row, pixel, t, line, <int64_t *>(line + pitch))
            if best == NULL:
                best = line
                continue
            if real is float:
                plane_max_join_f32(t, best, <int32_t *>(best + pitch), line, <int32_t *>(line + pitch), both,
                                   <int32_t *>(both + pitch))
            else:
                plane_max_join_f64(t, best, <int64_t *>(best + pitch), line, <int64_t *>(line + pitch), both,
                                   <int64_t *>(both + pitch))
            best = both
    if real is float:
        plane_max_keep_f32(t, w.out_size, best, <int32_t *>(best + pitch), out, indices)
    else:
        plane_max_keep_f64(t, w.out_size, best, <int64_t *>(best + pitch), out, indices)


cdef void plane_max_share(
    const Planes *planes, const real *x, const real *end, real *out, int64_t *indices, Py_ssize_t first,
    Py_ssize_t last, real *scratch
) noexcept nogil:
    """Rows `first` to `last` of all planes."""
    cdef Py_ssize_t heights = planes.axes[1].out_size, depths = planes.axes[0].out_size, row, slot
    cdef Py_ssize_t i = first // heights % depths, j = first % heights, columns = planes.axes[2].out_size
    cdef Py_ssize_t pixels = planes.axes[0].size * planes.axes[1].size * planes.axes[2].size
    cdef const real *kept[KEPT]
    for slot in range(KEPT):
        kept[slot] = NULL
    x += first // (heights * depths) * pixels
    for row in range(first, last):
        plane_max_row(planes, x, end, out + row * columns, indices + row * columns, i, j, scratch, kept)
        j += 1
        if j == heights:
            i, j = i + 1, 0
        if i == depths:
            i, x = 0, x + pixels


cdef void plane_rows_of(
    const Planes *planes, const real *x, real *out, Py_ssize_t count, Py_ssize_t first, Py_ssize_t last,
    real *line
) noexcept nogil:
    """Rows `first` to `last` of the outputs of a few planes; one that reads what the last did is its copy."""
    cdef const taps *d = &planes.axes[0]
    cdef const taps *h = &planes.axes[1]
    cdef const taps *w = &planes.axes[2]
    cdef Py_ssize_t columns = w.out_size, row, j = first % h.out_size - 1, i = first // h.out_size, p
    cdef Py_ssize_t plane = d.out_size * h.out_size * columns, pitch
    cdef real *to
    cdef const real *source
    cdef real divisor = 0
    # A row is read where it lies if no window reaches beyond it.
    cdef bint direct = planes.selected and w.size >= planes.columns.reach * panel_width(x) // 2
    for row in range(first, last):
        j += 1
        if j == h.out_size:
            i, j = i + 1, 0
        to = out + row * columns
        if row > first and j > 0 and same_taps(h, j):
            for p in range(count):
                memcpy(to + p * plane, to + p * plane - columns, columns * sizeof(real))
            continue
        source, pitch = line, planes.line_pitch
        if direct:
            source, pitch = x + (d.source[i] * h.size + h.source[j]) * w.size, d.size * h.size * w.size
        else:
            joined_rows(x, planes.axes, i, j, planes.largest, 0, w.size, 1, count, line, pitch, True)
        if planes.divided:
            divisor = <real>(planes.divisor or d.divisor[i] * h.divisor[j])
        # The largest of one pixel is that pixel.
        if real is float:
            plane_lines_f32(planes.largest or planes.selected, count, source, pitch, &planes.columns, columns,
                            divisor, to, plane)
        else:
            plane_lines_f64(planes.largest or planes.selected, count, source, pitch, &planes.columns, columns,
                            divisor, to, plane)


cdef void plane_share(
    const Planes *planes, const real *x, real *out, Py_ssize_t count, Py_ssize_t first, Py_ssize_t last,
    real *line
) noexcept nogil:
    """Rows `first` to `last` of all groups of LINES of `count` planes."""
    cdef Py_ssize_t rows = planes.axes[0].out_size * planes.axes[1].out_size, group = first // rows, end
    cdef Py_ssize_t pixels = planes.axes[0].size * planes.axes[1].size * planes.axes[2].size
    while first < last:
        end = min(last, (group + 1) * rows)
        plane_rows_of(
            planes, x + group * LINES * pixels, out + group * LINES * rows * planes.axes[2].out_size,
            min(LINES, count - group * LINES), first - group * rows, end - group * rows, line)
        group, first = group + 1, end


def pool_planes(
    const real[:, :, :, ::1] x,         # IN   (N·C, D, H, W)
    real[:, :, :, ::1] out,             # OUT  (N·C, D_out, H_out, W_out)
    int64_t[:, :, :, ::1] indices,      # OUT  the same, or None: of the largest pixels, (d·H + h)·W + w
    tables, bint largest, double divisor,
    real[::1] workspace,                # scratch for the columns' taps, and lines for each thread
    Py_ssize_t per_thread, int num_threads,
):
    """``max_pool`` of planes if ``largest``, else ``resample``; False, and nothing done, where the tables are
    not for planes."""
    cdef Planes planes
    cdef bint with_indices = indices is not None
    cdef Py_ssize_t task, depths = out.shape[1], heights = out.shape[2]
    cdef Py_ssize_t rows = out.shape[0] * depths * heights
    cdef Py_ssize_t lines = workspace.shape[0] - num_threads * per_thread
    cdef const real *end
    planes.largest = largest
    if not planes_of(tables, divisor, with_indices, workspace, &planes):
        return False
    if with_indices:
        end = &x[0, 0, 0, 0] + x.shape[0] * x.shape[1] * x.shape[2] * x.shape[3]
        for task in prange(num_threads, nogil=True, schedule="static", num_threads=num_threads):
            plane_max_share(&planes, &x[0, 0, 0, 0], end, &out[0, 0, 0, 0], &indices[0, 0, 0, 0],
                            share(rows, num_threads, task), share(rows, num_threads, task + 1),
                            &workspace[lines + task * per_thread])
        return True
    rows = (x.shape[0] + LINES - 1) // LINES * depths * heights
    for task in prange(num_threads, nogil=True, schedule="static", num_threads=num_threads):
        plane_share(&planes, &x[0, 0, 0, 0], &out[0, 0, 0, 0], x.shape[0], share(rows, num_threads, task),
                    share(rows, num_threads, task + 1), &workspace[lines + task * per_thread])
    return True
