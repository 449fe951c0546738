# Pooling and resampling of planes, (N·C, D, H, W), by the tables of pooling.pyx, in its order of operations:
# vectors run along the rows of a plane instead of over channels. For taps that lie close together.
from cython.parallel cimport prange
from libc.string cimport memcpy, memset

cdef extern from "microkernel.h" nogil:
    struct plane_taps:
        Py_ssize_t blocks, most
        Py_ssize_t *base
        void *lane
        void *valid
        void *weight
    bint plane_taps_f32(const taps *w, const plane_taps *t) noexcept
    bint plane_taps_f64(const taps *w, const plane_taps *t) noexcept
    void plane_sum_f32(
        bint first, int rows, const float **row, const float *row_weight, const plane_taps *t,
        Py_ssize_t columns, float *out) noexcept
    void plane_sum_f64(
        bint first, int rows, const double **row, const double *row_weight, const plane_taps *t,
        Py_ssize_t columns, double *out) noexcept
    void plane_max_f32(
        bint first, int rows, const float **row, const Py_ssize_t *row_pixel, const plane_taps *t,
        Py_ssize_t columns, float *out, int64_t *index) noexcept
    void plane_max_f64(
        bint first, int rows, const double **row, const Py_ssize_t *row_pixel, const plane_taps *t,
        Py_ssize_t columns, double *out, int64_t *index) noexcept
    void plane_divide_f32(double divisor, const taps *w, bint each, float *out) noexcept
    void plane_divide_f64(double divisor, const taps *w, bint each, double *out) noexcept

cdef enum:
    # Elements of two vectors at most.
    WINDOW = 32


cdef struct Planes:
    # What all planes have in common.
    taps axes[3]
    plane_taps columns
    Py_ssize_t bands
    double divisor
    bint divided


cdef int planes_of(tables, double divisor, real[::1] workspace, Planes *planes) except -1:
    """Fill `planes`; false where the tables are not for planes, or `workspace` is too small for them."""
    cdef Py_ssize_t k, vectors, lanes = panel_width(&workspace[0]) // 2
    cdef taps *w = &planes.axes[2]
    planes.axes[0], planes.axes[1] = taps_of(tables[0]), taps_of(tables[1])
    planes.axes[2] = taps_of(tables[2])
    planes.columns.blocks = (w.out_size + lanes - 1) // lanes
    planes.columns.most = 1
    planes.divisor = divisor
    planes.divided = False
    for k in range(w.out_size):
        planes.columns.most = max(planes.columns.most, w.start[k + 1] - w.start[k])
        planes.divided = planes.divided or w.divisor[k] != 1
    vectors = planes.columns.blocks * planes.columns.most
    # Three vectors and a position, which takes no more than a vector, for each.
    if 2 * w.out_size < lanes or 4 * vectors * lanes > workspace.shape[0]:
        return False
    planes.columns.lane = &workspace[0]
    planes.columns.valid = &workspace[vectors * lanes]
    planes.columns.weight = &workspace[2 * vectors * lanes]
    planes.columns.base = <Py_ssize_t *>&workspace[3 * vectors * lanes]
    if real is float:
        return plane_taps_f32(w, &planes.columns)
    else:
        return plane_taps_f64(w, &planes.columns)


cdef inline const real *whole_window(
    const real *row, Py_ssize_t width, const real *end, real *copy
) noexcept nogil:
    """The row, or a copy of it where a window would reach beyond the end of the array."""
    if width >= panel_width(row) or row + panel_width(row) <= end:
        return row
    memcpy(copy, row, width * sizeof(real))
    return copy


cdef void plane_row_of(
    const Planes *planes, const real *plane, const real *end, real *out, int64_t *indices, bint largest,
    Py_ssize_t i, Py_ssize_t j
) noexcept nogil:
    """Row (i, j) of the output: the largest pixels, or the sums."""
    cdef const taps *d = &planes.axes[0]
    cdef const taps *h = &planes.axes[1]
    cdef const taps *w = &planes.axes[2]
    cdef const real *row[ROWS]
    cdef Py_ssize_t pixel[ROWS]
    cdef real weight[ROWS]
    cdef real copy[ROWS * WINDOW]
    cdef int count = 0
    cdef bint first = True
    cdef Py_ssize_t a, b, last = d.start[i + 1] - 1
    cdef double divisor = planes.divisor or d.divisor[i] * h.divisor[j]
    if d.start[i] > last or h.start[j] == h.start[j + 1]:
        memset(out, 0, w.out_size * sizeof(real))
    for a in range(d.start[i], d.start[i + 1]):
        for b in range(h.start[j], h.start[j + 1]):
            pixel[count] = (d.source[a] * h.size + h.source[b]) * w.size
            row[count] = whole_window(plane + pixel[count], w.size, end, copy + count * WINDOW)
            weight[count] = <real>(d.weight[a] * h.weight[b])
            count += 1
            if count < ROWS and (a != last or b + 1 != h.start[j + 1]):
                continue
            if real is float:
                if largest:
                    plane_max_f32(first, count, row, pixel, &planes.columns, w.out_size, out, indices)
                else:
                    plane_sum_f32(first, count, row, weight, &planes.columns, w.out_size, out)
            else:
                if largest:
                    plane_max_f64(first, count, row, pixel, &planes.columns, w.out_size, out, indices)
                else:
                    plane_sum_f64(first, count, row, weight, &planes.columns, w.out_size, out)
            first = False
            count = 0
    if largest or (divisor == 1 and (planes.divisor or not planes.divided)):
        return
    if real is float:
        plane_divide_f32(divisor, w, planes.divisor == 0, out)
    else:
        plane_divide_f64(divisor, w, planes.divisor == 0, out)


cdef void plane_rows_of(
    const Planes *planes, const real *plane, const real *end, real *out, int64_t *indices, bint largest,
    Py_ssize_t task
) noexcept nogil:
    """A band of rows of one depth of a plane's output; a row that reads what the last one did is its copy."""
    cdef Py_ssize_t columns = planes.axes[2].out_size, heights = planes.axes[1].out_size, j
    cdef Py_ssize_t i = task // planes.bands % planes.axes[0].out_size, band = task % planes.bands
    cdef Py_ssize_t first = share(heights, planes.bands, band), last = share(heights, planes.bands, band + 1)
    out += (i * heights + first) * columns
    if indices:
        indices += (i * heights + first) * columns
    for j in range(first, last):
        if j > first and same_taps(&planes.axes[1], j):
            memcpy(out, out - columns, columns * sizeof(real))
            if indices:
                memcpy(indices, indices - columns, columns * sizeof(int64_t))
        else:
            plane_row_of(planes, plane, end, out, indices, largest, i, j)
        out += columns
        if indices:
            indices += columns


def pool_planes(
    const real[:, :, :, ::1] x,         # IN   (N·C, D, H, W)
    real[:, :, :, ::1] out,             # OUT  (N·C, D_out, H_out, W_out)
    int64_t[:, :, :, ::1] indices,      # OUT  the same, or None: of the largest pixels, (d·H + h)·W + w
    tables, bint largest, double divisor,
    real[::1] workspace,                # scratch for the columns' taps
    int num_threads,
):
    """``max_pool`` of planes if ``largest``, else ``resample``; False, and nothing done, where the tables are
    not for planes."""
    cdef Planes planes
    cdef bint with_indices = indices is not None
    cdef Py_ssize_t task, depths = out.shape[1], n
    cdef const real *end
    if not planes_of(tables, divisor, workspace, &planes):
        return False
    end = &x[0, 0, 0, 0] + x.shape[0] * x.shape[1] * x.shape[2] * x.shape[3]
    planes.bands = min(out.shape[2], 1 + 4 * num_threads // (out.shape[0] * depths))
    for task in prange(
        out.shape[0] * depths * planes.bands, nogil=True, schedule="static", num_threads=num_threads
    ):
        n = task // (depths * planes.bands)
        plane_rows_of(
            &planes, &x[n, 0, 0, 0], end, &out[n, 0, 0, 0], &indices[n, 0, 0, 0] if with_indices else NULL,
            largest, task)
    return True
