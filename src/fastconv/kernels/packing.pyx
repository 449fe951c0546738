# Packing weights: done once for many calls, but on every call of conv2d, so it runs at memory speed.
from cython.parallel cimport prange
from libc.string cimport memcpy, memset


cdef void pack_weight_panel(
    const real *weight, Py_ssize_t count, Py_ssize_t channels, Py_ssize_t taps, real *panel
) noexcept nogil:
    """panel[(tap, c), j] = weight[j, c, tap] for j < count, zero beyond."""
    cdef Py_ssize_t width = panel_width(weight), lanes = width // 2, reduction = channels * taps, e, i, c, run
    cdef real[16 * 32] square  # LANES rows of a panel; AVX-512 float32 has the most
    for e from 0 <= e < reduction by lanes:
        run = min(lanes, reduction - e)
        if count < width:
            memset(square, 0, run * width * sizeof(real))
        transpose(weight + e, reduction, count, run, count * reduction - e, square, width)
        for i in range(run):
            c = (e + i) // taps
            memcpy(panel + ((e + i - c * taps) * channels + c) * width, square + i * width,
                   width * sizeof(real))


def pack_weight(const real[:, :, :, ::1] weight, real[:, :, :, ::1] panels, int num_threads):
    """Pack the weights of a convolution: panels[g, p, (tap, c), j] = weight[g, p · PANEL + j, c, tap].

    Parameters
    ----------
    weight : (groups, C_out/groups, C_in/groups, k_h·k_w), IN
    panels : (groups, ceil(C_out/groups / PANEL), k_h·k_w·C_in/groups, PANEL), OUT
    """
    cdef Py_ssize_t item, g, p, width = panels.shape[3], parts = panels.shape[1]
    for item in prange(panels.shape[0] * parts, nogil=True, num_threads=num_threads, schedule="static"):
        g = item // parts
        p = item % parts
        pack_weight_panel(&weight[g, p * width, 0, 0], min(width, weight.shape[1] - p * width),
                          weight.shape[2], weight.shape[3], &panels[g, p, 0, 0])


cdef void transform_weight(
    const real *g, Py_ssize_t tap_stride, const double[:, ::1] matrix_h, const double[:, ::1] matrix_w,
    Py_ssize_t lanes, real *u, Py_ssize_t position_stride
) noexcept nogil:
    """u = G_h g G_wᵀ for `lanes` kernels side by side, in float64."""
    cdef double[10 * 7 * 32] half  # the most points, taps and lanes
    cdef double[32] total
    cdef Py_ssize_t i, j, k, lane, points_w = matrix_w.shape[0], taps_w = matrix_w.shape[1]
    for i in range(matrix_h.shape[0]):
        for j in range(taps_w):
            memset(total, 0, sizeof(total))
            for k in range(matrix_h.shape[1]):
                for lane in range(lanes):
                    total[lane] += matrix_h[i, k] * g[(k * taps_w + j) * tap_stride + lane]
            memcpy(half + (i * taps_w + j) * lanes, total, lanes * sizeof(double))
    for i in range(matrix_h.shape[0]):
        for j in range(points_w):
            memset(total, 0, sizeof(total))
            for k in range(taps_w):
                for lane in range(lanes):
                    total[lane] += matrix_w[j, k] * half[(i * taps_w + k) * lanes + lane]
            for lane in range(lanes):
                u[(i * points_w + j) * position_stride + lane] = <real>total[lane]


def pack_winograd(
    const real[:, :, :, ::1] panels, const double[:, ::1] matrix_h, const double[:, ::1] matrix_w,
    real[:, :, :, :, ::1] transformed, int num_threads
):
    """Transform packed weights: transformed[g, p, :, c, j] = vec(G_h w G_wᵀ).

    Parameters
    ----------
    panels : (groups, panels, k_h·k_w·C_in/groups, PANEL), IN
        As ``pack_weight`` made them.
    matrix_h, matrix_w : (n_h, k_h) and (n_w, k_w), IN
        G of each axis.
    transformed : (groups, panels, n_h·n_w, C_in/groups, PANEL), OUT
    """
    cdef Py_ssize_t item, g, p, c, width = panels.shape[3], channels = transformed.shape[3]
    cdef Py_ssize_t parts = panels.shape[1]
    for item in prange(panels.shape[0] * parts, nogil=True, num_threads=num_threads, schedule="static"):
        g = item // parts
        p = item % parts
        for c in range(channels):
            transform_weight(&panels[g, p, c, 0], channels * width, matrix_h, matrix_w, width,
                             &transformed[g, p, 0, c, 0], channels * width)
