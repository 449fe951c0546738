# Elements moved to other places: borders of padded images, and axes in another order. Threads share out runs
# of what is written.
from cython.parallel cimport prange
from libc.stdint cimport int64_t

cdef extern from "microkernel.h" nogil:
    void fill_run_f32(float *y, Py_ssize_t count, float value) noexcept
    void fill_run_f64(double *y, Py_ssize_t count, double value) noexcept
    bint pad_ends_f32(
        const int64_t *source, Py_ssize_t columns, Py_ssize_t begin, Py_ssize_t count, Py_ssize_t width,
        void *ends) noexcept
    void pad_row_f32(
        const float *x, const int64_t *source, const void *ends, Py_ssize_t width, Py_ssize_t columns,
        Py_ssize_t begin, Py_ssize_t first, Py_ssize_t count, Py_ssize_t channels, float value,
        float *y) noexcept
    bint pad_ends_f64(
        const int64_t *source, Py_ssize_t columns, Py_ssize_t begin, Py_ssize_t count, Py_ssize_t width,
        void *ends) noexcept
    void pad_row_f64(
        const double *x, const int64_t *source, const void *ends, Py_ssize_t width, Py_ssize_t columns,
        Py_ssize_t begin, Py_ssize_t first, Py_ssize_t count, Py_ssize_t channels, double value,
        double *y) noexcept
    void exchange_f32(
        const float *x, Py_ssize_t x_pitch, Py_ssize_t rows, Py_ssize_t columns, float *y,
        Py_ssize_t y_pitch) noexcept
    void exchange_f64(
        const double *x, Py_ssize_t x_pitch, Py_ssize_t rows, Py_ssize_t columns, double *y,
        Py_ssize_t y_pitch) noexcept


cdef enum:
    MOST_VECTOR_BYTES = 64


cdef inline bint row_ends(
    const real *unused, const int64_t *source, Py_ssize_t columns, Py_ssize_t begin, Py_ssize_t count,
    Py_ssize_t width, void *ends
) noexcept nogil:
    if real is float:
        return pad_ends_f32(source, columns, begin, count, width, ends)
    else:
        return pad_ends_f64(source, columns, begin, count, width, ends)


cdef void pad_rows(
    const real *x, real *out, const int64_t **source, const void *ends, const Py_ssize_t *read,
    const Py_ssize_t *written, Py_ssize_t begin, Py_ssize_t first, Py_ssize_t count, double value,
    Py_ssize_t row, Py_ssize_t last
) noexcept nogil:
    """Rows `row` to `last` of the padded images; `read` and `written` are (D, H, W, C)."""
    cdef Py_ssize_t pitch = written[2] * written[3], i, j, at, down = row % written[1]
    cdef Py_ssize_t deep = row // written[1] % written[0], pixels = read[0] * read[1] * read[2] * read[3]
    x += row // (written[0] * written[1]) * pixels
    for at in range(row, last):
        i, j = source[0][deep], source[1][down]
        if i < 0 or j < 0:
            if real is float:
                fill_run_f32(out + at * pitch, pitch, <float>value)
            else:
                fill_run_f64(out + at * pitch, pitch, value)
        elif real is float:
            pad_row_f32(x + (i * read[1] + j) * read[2] * read[3], source[2], ends, read[2], written[2],
                        begin, first, count, read[3], <float>value, out + at * pitch)
        else:
            pad_row_f64(x + (i * read[1] + j) * read[2] * read[3], source[2], ends, read[2], written[2],
                        begin, first, count, read[3], value, out + at * pitch)
        down += 1
        if down == written[1]:
            down, deep = 0, deep + 1
        if deep == written[0]:
            deep, x = 0, x + pixels


def pad(
    const real[:, :, :, :, ::1] x,      # IN   (N, D, H, W, C)
    const int64_t[::1] d, const int64_t[::1] h, const int64_t[::1] w,   # IN   what each output reads, or −1
    Py_ssize_t begin, Py_ssize_t first, Py_ssize_t count,   # outputs `begin` … of W are the pixels `first` …
    double value,
    real[:, :, :, :, ::1] out,          # OUT  (N, D_out, H_out, W_out, C); `value` where nothing is read
    int num_threads,
):
    cdef Py_ssize_t rows = out.shape[0] * out.shape[1] * out.shape[2], t
    cdef const int64_t *source[3]
    cdef Py_ssize_t read[4]
    cdef Py_ssize_t written[4]
    cdef const real *from_ = NULL
    cdef char table[4 * MOST_VECTOR_BYTES]
    cdef const void *ends = NULL
    source[0], source[1], source[2] = &d[0], &h[0], &w[0]
    for t in range(4):
        read[t], written[t] = x.shape[t + 1], out.shape[t + 1]
    if x.shape[0] * x.shape[1] * x.shape[2] * x.shape[3] > 0:
        from_ = &x[0, 0, 0, 0, 0]
    if read[3] == 1 and row_ends(from_, source[2], written[2], begin, count, read[2], table):
        ends = table
    for t in prange(num_threads, nogil=True, schedule="static", num_threads=num_threads):
        pad_rows(from_, &out[0, 0, 0, 0, 0], source, ends, read, written, begin, first, count, value,
                 share(rows, num_threads, t), share(rows, num_threads, t + 1))


cdef enum:
    OUTER = 5


cdef void move_blocks(
    const real *x, real *out, const int64_t *axes, Py_ssize_t first, Py_ssize_t last
) noexcept nogil:
    """Blocks `first` to `last`; `axes` holds size, step in x and step in out of each axis."""
    cdef Py_ssize_t at[OUTER]
    cdef Py_ssize_t k, _block, left = first, source = 0, target = 0
    cdef const int64_t *column = axes + 3 * OUTER
    cdef const int64_t *row = column + 3
    for k in range(OUTER - 1, -1, -1):
        at[k] = left % axes[3 * k]
        left = left // axes[3 * k]
        source += at[k] * axes[3 * k + 1]
        target += at[k] * axes[3 * k + 2]
    for _block in range(first, last):
        if real is float:
            exchange_f32(x + source, row[1], row[0], column[0], out + target, column[2])
        else:
            exchange_f64(x + source, row[1], row[0], column[0], out + target, column[2])
        for k in range(OUTER - 1, -1, -1):
            at[k] += 1
            source += axes[3 * k + 1]
            target += axes[3 * k + 2]
            if at[k] < axes[3 * k]:
                break
            at[k] = 0
            source -= axes[3 * k] * axes[3 * k + 1]
            target -= axes[3 * k] * axes[3 * k + 2]


def move_axes(
    const real[::1] x,              # IN
    const int64_t[:, ::1] axes,     # IN   (7, 3): size, step in x, step in out; the last but one has
                                    #      step 1 in x, the last in out, or that one in both
    real[::1] out,                  # OUT  the elements of x with the axes in another order
    int num_threads,
):
    cdef Py_ssize_t blocks = 1, t
    for t in range(OUTER):
        blocks *= axes[t, 0]
    for t in prange(num_threads, nogil=True, schedule="static", num_threads=num_threads):
        move_blocks(&x[0], &out[0], &axes[0, 0], share(blocks, num_threads, t),
                    share(blocks, num_threads, t + 1))
