# Pointwise convolution of planar (NCHW) images, direct's form for 1×1 kernels where neither input nor output
# is channels-last: the weights are the left factor as they are, a panel of pixels the right one.
#
#     out[n, m, p] = Σ_c  W[m, c] · x[n, c, p]
from cython.parallel cimport prange, threadid
from libc.string cimport memcpy, memset


cdef void gather_panel(
    const real *x, Py_ssize_t channel_stride, Py_ssize_t channels, Py_ssize_t pixels, real *panel
) noexcept nogil:
    """panel[c, p] = x[c, p] for p < pixels ≤ PANEL, zero beyond."""
    cdef Py_ssize_t width = panel_width(x), _c
    for _c in range(channels):
        if pixels == width:
            memcpy(panel, x, 2 * VECTOR_BYTES)  # two vectors' moves, no call
        else:
            memset(panel, 0, 2 * VECTOR_BYTES)
            memcpy(panel, x, pixels * sizeof(real))
        x, panel = x + channel_stride, panel + width


cdef void pointwise_panel(
    const real *x, Py_ssize_t channel_stride, Py_ssize_t channels, const real *weight, const real *bias,
    Py_ssize_t out_channels, bint rectified, bint accumulate, Py_ssize_t depth, real *out,
    Py_ssize_t out_stride, Py_ssize_t pixels, real *panel
) noexcept nogil:
    """All output channels of at most PANEL pixels; x's part is copied together first."""
    cdef Py_ssize_t width = panel_width(x), k, run, piece, zero = 0
    cdef int start = START_ROW_BIAS | START_OUTPUT if accumulate else START_ROW_BIAS
    # The same pieces, and so the same bits, as on channels-last images.
    cdef Py_ssize_t pieces = (channels + depth - 1) // depth
    for piece in range(pieces):
        k = share(channels, pieces, piece)
        run = share(channels, pieces, piece + 1) - k
        gather_panel(x + k * channel_stride, channel_stride, run, pixels, panel)
        gemm_rows(
            out_channels, pixels, weight + k, channels, 1, &zero, &run, panel, width, out, out_stride,
            start if k == 0 else START_OUTPUT, bias, rectified and k + run == channels)


def pointwise(
    const real[:, :, :] x, const real[:, ::1] weight, const real[::1] bias, Py_ssize_t depth,
    bint rectified, bint accumulate, real[:, :, :] out, real[::1] workspace, Py_ssize_t per_thread,
    int num_threads
):
    """1×1 convolution, stride 1, no padding, one group, of planar images.

    Parameters
    ----------
    x : (N, C_in, H·W), pixels contiguous, IN
    weight : (C_out, C_in), IN
    bias : (at least C_out), IN
    depth : input channels multiplied at a time
    rectified, accumulate : the epilogue, out = max(conv + bias + out, 0)
    out : (N, C_out, H·W), pixels contiguous, OUT
    workspace : (num_threads · per_thread), scratch, depth · PANEL for each thread
    """
    cdef Py_ssize_t size = sizeof(real), width = panel_width(&workspace[0]), pixels = x.shape[2]
    cdef Py_ssize_t lanes = width // 2, vectors = (pixels + lanes - 1) // lanes, item, n, first, last, p
    # An image's pixels are shared out by vectors: seven panels would share badly between two threads.
    cdef Py_ssize_t batch = max(x.shape[0], 1), parts = (num_threads + batch - 1) // batch
    for item in prange(x.shape[0] * parts, nogil=True, num_threads=num_threads, schedule="static"):
        n = item // parts
        first = lanes * share(vectors, parts, item % parts)
        last = min(pixels, lanes * share(vectors, parts, item % parts + 1))
        for p from first <= p < last by width:
            pointwise_panel(
                &x[n, 0, p], x.strides[1] // size, x.shape[1], &weight[0, 0], &bias[0], out.shape[1],
                rectified, accumulate, depth, &out[n, 0, p], out.strides[1] // size, min(width, last - p),
                &workspace[threadid() * per_thread])
