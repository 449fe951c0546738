# The weight gradient of a 1×1 kernel on planar images, both of whose factors have their pixels in one run:
#
#     dW[m, c] = Σ_n Σ_p  dy[n, m, p] · x[n, c, p]
#
# The planes of x are the left factor where they lie. A panel of dy's channels is transposed into the right
# one, some pixels at a time, which stay in the L1 cache. Blocks, units and parts are as in weight_grad.pyx.
from cython.parallel cimport prange, threadid
from libc.string cimport memset


def weight_grad_planes(
    const real[:, :, :, :] x, const real[:, :, :, :] grad, cuts, real[:, :, :, :, ::1] partial,
    real[::1] workspace, Py_ssize_t per_thread, int num_threads
):
    """Weight gradient of a 1×1 convolution of stride 1, in partial sums.

    Parameters
    ----------
    x : (N, D, C_in, H·W), pixels contiguous, IN
        An image for each (n, d).
    grad : (N, D, C_out, H·W), pixels contiguous, IN
    cuts : (in_blocks, out_blocks, runs)
        Blocks of a group's input and output channels; parts of an image's pixels.
    partial : (parts, groups, 1, C_in/groups, ≥ C_out/groups), OUT
        In whole vectors.
    workspace : (num_threads · per_thread), scratch; for each thread a panel of pixels
    """
    cdef Py_ssize_t in_blocks, out_blocks, runs, item, unit, n, p, first, run, count, columns, zero = 0
    in_blocks, out_blocks, runs = cuts
    cdef Py_ssize_t parts = partial.shape[0], groups = partial.shape[1], group_out = grad.shape[2] // groups
    cdef Py_ssize_t units = x.shape[0] * x.shape[1] * runs, pixels = x.shape[3], pitch = partial.shape[4]
    cdef Py_ssize_t width = panel_width(&workspace[0]), size = sizeof(real)
    cdef Py_ssize_t x_plane = x.strides[2] // size, grad_plane = grad.strides[2] // size
    cdef GradItem at
    cdef const real *planes
    cdef const real *grads
    cdef real *sums
    cdef real *panel
    for item in prange(parts * groups * in_blocks * out_blocks, nogil=True, num_threads=num_threads,
                       schedule="static"):
        at = grad_item(item, groups, in_blocks, out_blocks, partial.shape[3], group_out, &workspace[0])
        sums = &partial[at.part, at.g, 0, at.c, at.m]
        panel = &workspace[threadid() * per_thread]
        clear_block(sums, 1, 0, at.channels, pitch, whole_vectors(at.out_channels, sums))
        # Lanes beyond the channels are multiplied too: zero, because stale bits may be slow to multiply.
        memset(panel, 0, (pixels + runs - 1) // runs * width * sizeof(real))
        for unit in range(share(units, parts, at.part), share(units, parts, at.part + 1)):
            n = unit // runs
            first = share(pixels, runs, unit % runs)
            run = share(pixels, runs, unit % runs + 1) - first
            planes = &x[n // x.shape[1], n % x.shape[1], at.g * partial.shape[3] + at.c, first]
            for p from 0 <= p < at.out_channels by width:
                count = min(width, at.out_channels - p)
                columns = whole_vectors(count, sums)
                grads = &grad[n // x.shape[1], n % x.shape[1], at.g * group_out + at.m + p, first]
                transpose(grads, grad_plane, count, run, (count - 1) * grad_plane + run, panel, columns)
                gemm_rows(at.channels, columns, planes, x_plane, 1, &zero, &run, panel, columns, sums + p,
                          pitch, START_OUTPUT, NULL, False)
