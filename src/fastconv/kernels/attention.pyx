# Attention: out = softmax(Q·Kᵀ)·V, a tile of rows of the matrix at a time and of those a block of columns,
# so that the matrix is never in memory (Dao et al., FlashAttention, 2022; the running softmax is Milakov and
# Gimelshein's, 2018).
#
# A matrix is a right factor in one of two packed forms, panels of PANEL columns: its rows as columns
# (its transpose is multiplied by), or as they are.
from cython.parallel cimport prange, threadid
from libc.math cimport INFINITY, log
from libc.string cimport memset

cdef extern from "microkernel.h" nogil:
    void exponentials_f32(const float *v, Py_ssize_t count, float *y) noexcept
    void exponentials_f64(const double *v, Py_ssize_t count, double *y) noexcept
    void softmax_block_f32(
        Py_ssize_t rows, Py_ssize_t columns, float *s, Py_ssize_t s_stride, float *largest, float *total,
        float *o, Py_ssize_t o_columns) noexcept
    void softmax_block_f64(
        Py_ssize_t rows, Py_ssize_t columns, double *s, Py_ssize_t s_stride, double *largest, double *total,
        double *o, Py_ssize_t o_columns) noexcept
    void softmax_grad_block_f32(
        Py_ssize_t rows, Py_ssize_t columns, float *s, float *g, Py_ssize_t stride, const float *log_sum,
        const float *mean, bint by_column) noexcept
    void softmax_grad_block_f64(
        Py_ssize_t rows, Py_ssize_t columns, double *s, double *g, Py_ssize_t stride, const double *log_sum,
        const double *mean, bint by_column) noexcept


def exponential(const real[::1] x, real[::1] out):
    """out = exp(x), as attention computes it; subnormal results are 0."""
    if real is float:
        exponentials_f32(&x[0], x.shape[0], &out[0])
    else:
        exponentials_f64(&x[0], x.shape[0], &out[0])


cdef inline void times_columns(
    Py_ssize_t rows, const real *a, Py_ssize_t terms, const real *packed, Py_ssize_t first,
    Py_ssize_t columns, real *s, Py_ssize_t s_stride
) noexcept nogil:
    """s[i, j] = Σ a[i, t] · b[first + j, t], up to the next whole panel of columns."""
    cdef Py_ssize_t width = panel_width(a), j, zero = 0
    for j from 0 <= j < columns by width:
        gemm_rows(rows, width, a, terms, 1, &zero, &terms, packed + (first + j) * terms, width, s + j,
                  s_stride, START_ZERO, <const real *>NULL, False)


cdef inline void times_rows(
    Py_ssize_t rows, const real *s, Py_ssize_t s_stride, Py_ssize_t terms, const real *packed,
    Py_ssize_t length, Py_ssize_t first, real *o, Py_ssize_t o_columns
) noexcept nogil:
    """o[i, j] += Σ s[i, t] · b[first + t, j] for whole panels of columns; b has `length` rows."""
    cdef Py_ssize_t width = panel_width(s), j, zero = 0
    for j from 0 <= j < o_columns by width:
        gemm_rows(rows, width, s, s_stride, 1, &zero, &terms, packed + j * length + first * width, width,
                  o + j, o_columns, START_OUTPUT, <const real *>NULL, False)


cdef void attend_rows(
    Py_ssize_t rows, const real *query, Py_ssize_t terms, const real *key, const real *value,
    Py_ssize_t length, Py_ssize_t block, Py_ssize_t o_columns, real *scratch, real *out,
    Py_ssize_t out_stride, Py_ssize_t out_columns, real *log_sum
) noexcept nogil:
    """A tile of rows; `scratch` holds rows · (block + o_columns + 2) elements."""
    cdef real *s = scratch
    cdef real *o = s + rows * block
    cdef real *largest = o + rows * o_columns
    cdef real *total = largest + rows
    cdef Py_ssize_t first, count, i, j
    memset(o, 0, rows * o_columns * sizeof(real))
    for i in range(rows):
        largest[i] = -INFINITY
        total[i] = 0
    for first from 0 <= first < length by block:
        count = min(block, length - first)
        times_columns(rows, query, terms, key, first, count, s, block)
        if real is float:
            softmax_block_f32(rows, count, s, block, largest, total, o, o_columns)
        else:
            softmax_block_f64(rows, count, s, block, largest, total, o, o_columns)
        times_rows(rows, s, block, count, value, length, first, o, o_columns)
    for i in range(rows):
        for j in range(out_columns):
            out[i * out_stride + j] = o[i * o_columns + j] / total[i]
        log_sum[i] = largest[i] + <real>log(total[i])


def attention(
    const real[:, :, ::1] query, const real[:, :, :, ::1] key, const real[:, :, :, ::1] value,
    Py_ssize_t tile, Py_ssize_t block, real[:, :, :, :] out, real[:, ::1] log_sum, real[::1] workspace,
    Py_ssize_t per_thread, int num_threads
):
    """out = softmax(query · keyᵀ) · value for N · heads independent problems, G = N · heads.

    Parameters
    ----------
    query : (G, L, D), IN
    key : (G, panels of S, D, PANEL), IN
        Rows as columns.
    value : (G, panels of D_v, S, PANEL), IN
    tile, block : rows and columns of the matrix at a time; `block` is a multiple of PANEL
    out : (N, heads, L, D_v), the last contiguous, OUT
    log_sum : (G, L), OUT
        The logarithms of the denominators.
    workspace : (num_threads · per_thread), scratch, tile · (block + panels of D_v · PANEL + 2) for each
        thread
    """
    cdef Py_ssize_t length = query.shape[1], parts = (length + tile - 1) // tile, item, g, first
    cdef Py_ssize_t o_columns = value.shape[1] * value.shape[3], heads = out.shape[1]
    cdef Py_ssize_t out_stride = out.strides[2] // <Py_ssize_t>sizeof(real)
    for item in prange(query.shape[0] * parts, nogil=True, num_threads=num_threads, schedule="static"):
        g = item // parts
        first = item % parts * tile
        attend_rows(
            min(tile, length - first), &query[g, first, 0], query.shape[2], &key[g, 0, 0, 0],
            &value[g, 0, 0, 0], value.shape[2], block, o_columns, &workspace[threadid() * per_thread],
            &out[g // heads, g % heads, first, 0], out_stride, out.shape[3], &log_sum[g, first])


cdef void grad_rows(
    Py_ssize_t rows, const real *a, Py_ssize_t a_terms, const real *b, Py_ssize_t b_terms,
    const real *a_other, const real *b_other, Py_ssize_t length, Py_ssize_t block, const real *log_sum,
    const real *mean, bint by_column, const real *a_rows, Py_ssize_t a_columns, const real *b_rows,
    Py_ssize_t b_columns, real *s, real *grad_a, real *grad_b
) noexcept nogil:
    """A tile of rows of ``attention_grad``; grad_b is NULL where it is not wanted."""
    cdef real *g = s + rows * block
    cdef Py_ssize_t first, count
    cdef Py_ssize_t skip
    for first from 0 <= first < length by block:
        count = min(block, length - first)
        skip = first if by_column else 0
        times_columns(rows, a, a_terms, a_other, first, count, s, block)
        times_columns(rows, b, b_terms, b_other, first, count, g, block)
        if real is float:
            softmax_grad_block_f32(rows, count, s, g, block, log_sum + skip, mean + skip, by_column)
        else:
            softmax_grad_block_f64(rows, count, s, g, block, log_sum + skip, mean + skip, by_column)
        times_rows(rows, g, block, count, a_rows, length, first, grad_a, a_columns)
        if grad_b != NULL:
            times_rows(rows, s, block, count, b_rows, length, first, grad_b, b_columns)


def attention_grad(
    const real[:, :, ::1] a, const real[:, :, ::1] b, const real[:, :, :, ::1] a_other,
    const real[:, :, :, ::1] b_other, const real[:, :, :, ::1] a_rows, const real[:, :, :, ::1] b_rows,
    const real[:, ::1] log_sum, const real[:, ::1] mean, Py_ssize_t tile, Py_ssize_t block,
    real[:, :, ::1] grad_a, real[:, :, ::1] grad_b, real[::1] workspace, Py_ssize_t per_thread,
    int num_threads
):
    """Gradients of attention by its queries; or, with sides exchanged, by its keys and values.

    With s = a · a_otherᵀ, p = exp(s − log_sum), g = p · (b · b_otherᵀ − mean):
    grad_a = g · a_other, grad_b = p · b_other. For queries, a, b are queries and output gradients, the others
    keys and values; for keys and values it is the other way round, and p and g are transposed.

    Parameters
    ----------
    a, b : (G, R, D) and (G, R, D_v), IN
    a_other, b_other : (G, panels of length, D or D_v, PANEL), IN
        Rows as columns.
    a_rows, b_rows : (G, panels of D or D_v, length, PANEL), IN
        The same as they are.
    log_sum, mean : (G, L), with grad_b a PANEL longer, IN
        As ``attention`` returned it; Σ_v out · grad_out.
    grad_a, grad_b : (G, R, whole panels), zeros, OUT
        grad_b is None for queries.
    workspace : (num_threads · per_thread), scratch, 2 · tile · block for each thread
    """
    cdef Py_ssize_t rows = a.shape[1], parts = (rows + tile - 1) // tile, item, g, first
    cdef bint by_column = grad_b is not None
    for item in prange(a.shape[0] * parts, nogil=True, num_threads=num_threads, schedule="static"):
        g = item // parts
        first = item % parts * tile
        grad_rows(
            min(tile, rows - first), &a[g, first, 0], a.shape[2], &b[g, first, 0], b.shape[2],
            &a_other[g, 0, 0, 0], &b_other[g, 0, 0, 0], a_rows.shape[2], block,
            &log_sum[g, 0 if by_column else first], &mean[g, 0 if by_column else first], by_column,
            &a_rows[g, 0, 0, 0], grad_a.shape[2], &b_rows[g, 0, 0, 0], b_rows.shape[1] * b_rows.shape[3],
            &workspace[threadid() * per_thread], &grad_a[g, first, 0],
            &grad_b[g, first, 0] if by_column else <real *>NULL)
