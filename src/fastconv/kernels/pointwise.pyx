# Pointwise convolution of planar (NCHW) images, direct's form for 1×1 kernels where neither input nor output
# is channels-last: the weights are the left factor as they are, a panel of pixels the right one.
#
#     out[n, m, p] = Σ_c  W[m, c] · x[n, c, p]
from cython.parallel cimport prange, threadid
from libc.string cimport memcpy, memset


cdef void pointwise_panel(
    const real *x, Py_ssize_t channel_stride, Py_ssize_t channels, const real *weight, const real *bias,
    Py_ssize_t out_channels, bint rectified, bint accumulate, Py_ssize_t depth, real *out,
    Py_ssize_t out_stride, Py_ssize_t pixels, real *panel
) noexcept nogil:
    """All output channels of at most PANEL pixels; x's part is copied together first."""
    cdef Py_ssize_t width = panel_width(x), k, c, run, piece, zero = 0
    cdef int start = START_ROW_BIAS | START_OUTPUT if accumulate else START_ROW_BIAS
    cdef Py_ssize_t pieces = (channels + depth - 1) // depth
    for piece in range(pieces):  # the same pieces, and so the same bits, as on channels-last images
        k = share(channels, pieces, piece)
        run = share(channels, pieces, piece + 1) - k
        for c in range(run):
            memcpy(panel + c * width, x + (k + c) * channel_stride, pixels * sizeof(real))
            memset(panel + c * width + pixels, 0, (width - pixels) * sizeof(real))
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
    cdef Py_ssize_t width = panel_width(&workspace[0]), pixels = x.shape[2], size = sizeof(real)
    cdef Py_ssize_t parts = (pixels + width - 1) // width, item, n, first
    for item in prange(x.shape[0] * parts, nogil=True, num_threads=num_threads, schedule="static"):
        n = item // parts
        first = item % parts * width
        pointwise_panel(
            &x[n, 0, first], x.strides[1] // size, x.shape[1], &weight[0, 0], &bias[0], out.shape[1],
            rectified, accumulate, depth, &out[n, 0, first], out.strides[1] // size,
            min(width, pixels - first), &workspace[threadid() * per_thread])
