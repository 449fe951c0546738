# Batched matrix products with packed right-hand sides: the pointwise products of a transformed convolution.
from cython.parallel cimport prange


def batched_product(
    const real[:, :, ::1] a, const real[:, :, :, ::1] packed, real[:, :, ::1] out, Py_ssize_t depth,
    int num_threads
):
    """out[f] = a[f] · B[f] for every f.

    Parameters
    ----------
    a : (F, rows, K), IN
    packed : (F, panels, K, PANEL), IN
        Each B[f] packed by ``pack_panels``.
    out : (F, rows, columns), OUT
    depth : rows of a panel multiplied at a time
    """
    cdef Py_ssize_t f, reduction = a.shape[2]
    for f in prange(a.shape[0], nogil=True, num_threads=num_threads, schedule="static"):
        product_of_one(&a[f, 0, 0], a.shape[1], reduction, &packed[f, 0, 0, 0], packed.shape[1],
                       &out[f, 0, 0], out.shape[2], depth)


cdef void product_of_one(
    const real *a, Py_ssize_t rows, Py_ssize_t reduction, const real *packed, Py_ssize_t panels,
    real *out, Py_ssize_t columns, Py_ssize_t depth
) noexcept nogil:
    cdef Py_ssize_t width = panel_width(a), p, k, run, zero = 0
    for p in range(panels):
        for k from 0 <= k < reduction by depth:
            run = min(depth, reduction - k)
            gemm_rows(rows, min(width, columns - p * width), a + k, reduction, 1, &zero, &run,
                      packed + (p * reduction + k) * width, width, out + p * width, columns,
                      START_ZERO if k == 0 else START_OUTPUT, NULL, False)
