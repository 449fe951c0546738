# Packing weights: done once for many calls, but on every call of conv2d, so it runs at memory speed.
from cython.parallel cimport prange, threadid
from libc.string cimport memcpy, memset

cdef enum:
    PACK_CHANNELS = 8  # whose weights are transformed side by side
    PACK_AHEAD = 2  # vectors of each row asked for before they are packed


cdef void pack_weight_rows(
    const real *weight, Py_ssize_t row_stride, Py_ssize_t count, Py_ssize_t channels, Py_ssize_t taps,
    real *panel
) noexcept nogil:
    """pack_weight_panel where each output channel's weights (c, tap) lie in one run."""
    cdef Py_ssize_t width = panel_width(weight), lanes = width // 2, reduction = channels * taps, e = 0, i, c
    # Elements of a cache line before the first: NumPy's arrays begin within one, and of rows a power of two
    # apart few lines stay in the L1 cache for the vector that has the rest.
    cdef Py_ssize_t before = <size_t>weight // sizeof(real) % lanes, run
    cdef real[16 * 32] square  # LANES rows of a panel; AVX-512 float32 has the most
    cdef real *turned = square
    if row_stride % lanes != 0:
        before = 0
    while e < reduction:
        run = min(lanes - (before + e) % lanes, reduction - e)
        for i in range(count):  # rows lie pages apart, which no processor foresees
            prefetch(weight + i * row_stride + e + PACK_AHEAD * lanes)
        if taps == 1:
            turned = panel + e * width
        if count < width:
            memset(turned, 0, run * width * sizeof(real))
        transpose(weight + e, row_stride, count, run, (count - 1) * row_stride + reduction - e, turned, width)
        for i in range(run if taps > 1 else 0):
            c = (e + i) // taps
            memcpy(panel + ((e + i - c * taps) * channels + c) * width, square + i * width,
                   width * sizeof(real))
        e += run


cdef void pack_weight_panel(
    const real *weight, const Py_ssize_t *stride, Py_ssize_t count, Py_ssize_t channels, Py_ssize_t taps_h,
    Py_ssize_t taps_w, real *panel
) noexcept nogil:
    """panel[(i, j, c), m] = weight[m, c, i, j] for m < count, zero beyond; `stride` has m, c, i and j."""
    cdef Py_ssize_t width = panel_width(weight), c, t, m, lowest = 0, step = channels * width
    cdef Py_ssize_t taps = taps_h * taps_w, tap = stride[3] if taps_w > 1 else stride[2]
    cdef bint even = taps_h == 1 or taps_w == 1 or stride[2] == taps_w * stride[3]
    cdef bint runs = even and stride[0] > 0 and stride[1] > 0 and (tap == 1 or tap == -1) and taps > 1
    cdef real *row
    cdef const real *at
    if stride[1] == taps and (taps == 1 or (even and tap == 1)):
        pack_weight_rows(weight, stride[0], count, channels, taps, panel)
        return
    # A kernel flipped and its channels exchanged, as a gradient's is, or one that is channels-last.
    if count < width:
        memset(panel, 0, taps * step * sizeof(real))
    if stride[1] == 1 and stride[0] >= channels and channels > 1:
        for t in range(taps):
            transpose(weight + t // taps_w * stride[2] + t % taps_w * stride[3], stride[0], count, channels,
                      (count - 1) * stride[0] + channels, panel + t * step, width)
        return
    if runs and tap < 0:
        lowest, step = 1 - taps, -step
    for c in range(channels):
        row = panel + c * width
        if runs:
            transpose(weight + lowest, stride[0], count, taps,
                      (channels - 1 - c) * stride[1] + (count - 1) * stride[0] + taps,
                      row + lowest * step, step)
        else:
            for t in range(taps):
                at = weight + t // taps_w * stride[2] + t % taps_w * stride[3]
                if stride[0] == 1 and count == width:
                    memcpy(row + t * step, at, 2 * VECTOR_BYTES)
                else:
                    for m in range(count):
                        row[t * step + m] = at[m * stride[0]]
        weight += stride[1]


def pack_weight(const real[:, :, :, :, :] weight, real[:, :, :, ::1] panels, int num_threads):
    """Pack the weights of a convolution: panels[g, p, (i, j, c), m] = weight[g, p · PANEL + m, c, i, j].

    Parameters
    ----------
    weight : (groups, C_out/groups, C_in/groups, k_h, k_w), IN
    panels : (groups, ceil(C_out/groups / PANEL), k_h·k_w·C_in/groups, PANEL), OUT
    """
    cdef Py_ssize_t item, g, p, width = panels.shape[3], parts = panels.shape[1], size = sizeof(real)
    cdef Py_ssize_t[4] stride = [
        weight.strides[1] // size, weight.strides[2] // size, weight.strides[3] // size,
        weight.strides[4] // size]
    for item in prange(panels.shape[0] * parts, nogil=True, num_threads=num_threads, schedule="static"):
        g = item // parts
        p = item % parts
        pack_weight_panel(&weight[g, p * width, 0, 0, 0], stride, min(width, weight.shape[1] - p * width),
                          weight.shape[2], weight.shape[3], weight.shape[4], &panels[g, p, 0, 0])


def pack_narrow(const real[:, :, :, ::1] weight, real[:, ::1] packed):
    """Pack the weights of narrow groups: packed[(i, c, j), m] = weight[m, c, i, j], zero beyond C_out.

    Parameters
    ----------
    weight : (C_out, C_in/groups, k_h, k_w), IN
    packed : (k_h·C_in/groups·k_w, C_out in whole vectors), OUT

    Returns
    -------
    bool
        Whether all weights are finite.
    """
    cdef Py_ssize_t channels = weight.shape[1], kernel_h = weight.shape[2], run = weight.shape[3]
    cdef Py_ssize_t c, i, m, lane
    cdef Py_ssize_t taps = kernel_h * run, reduction = channels * taps, pitch = packed.shape[1], at
    cdef Py_ssize_t count = weight.shape[0], lanes = VECTOR_BYTES // <Py_ssize_t>sizeof(real)
    cdef const real *source = &weight[0, 0, 0, 0]
    cdef real *target = &packed[0, 0]
    cdef real[16] zero  # a NaN where a weight is not finite; AVX-512 float32 has the most lanes
    cdef bint finite = True
    with nogil:
        memset(zero, 0, sizeof(zero))
        if channels == 1:
            kernel_h, run = 1, taps  # the taps are in order as they are
        for i in range(kernel_h):
            for c in range(channels):
                at = (c * kernel_h + i) * run
                transpose(source + at, reduction, count, run, count * reduction - at,
                          target + (i * channels + c) * run * pitch, pitch)
        for i in range(reduction):
            for m in range(count, pitch):
                target[i * pitch + m] = 0
        for m from 0 <= m < reduction * pitch by lanes:
            for lane in range(lanes):
                zero[lane] += 0 * target[m + lane]
        for lane in range(lanes):
            finite = finite and zero[lane] == 0
    return finite


cdef inline void transform_weight(
    const double[:, ::1] matrix_h, const double[:, ::1] matrix_w, const real *g, Py_ssize_t tap_stride,
    real *u, Py_ssize_t position_stride
) noexcept nogil:
    """u = G_h g G_wᵀ for a vector of kernels side by side, in float64."""
    if real is float:
        winograd_weight_f32(matrix_h.shape[1], matrix_w.shape[1], matrix_h.shape[0], matrix_w.shape[0],
                            &matrix_h[0, 0], &matrix_w[0, 0], g, tap_stride, u, position_stride)
    else:
        winograd_weight_f64(matrix_h.shape[1], matrix_w.shape[1], matrix_h.shape[0], matrix_w.shape[0],
                            &matrix_h[0, 0], &matrix_w[0, 0], g, tap_stride, u, position_stride)


cdef inline void store_half(
    const real *side, Py_ssize_t channels, Py_ssize_t tap, real *target
) noexcept nogil:
    """Some channels of a panel at a tap: to where winograd_half.pyx has a set's weights."""
    cdef Py_ssize_t width = panel_width(side), lanes = width // 2, i, s
    for i in range(channels):
        for s in range(2):
            memcpy(target + ((2 * i + s) * HALF_TAPS + tap) * lanes, side + i * width + s * lanes,
                   lanes * sizeof(real))


cdef void transform_panel(
    const real *panel, Py_ssize_t channels, const double[:, ::1] matrix_h, const double[:, ::1] matrix_w,
    const Py_ssize_t[:, ::1] place, bint half, real *transformed
) noexcept nogil:
    """The positions of a panel lie far apart: a few channels at a time are transformed side by side, so that
    what is stored to each position is a run of some length."""
    cdef Py_ssize_t width = panel_width(panel), lanes = width // 2, b, c, i, j, q, run
    cdef Py_ssize_t blocks = place.shape[1], row = PACK_CHANNELS * width
    cdef real[64 * PACK_CHANNELS * 32] side  # the most positions, and the widest panel
    for b in range(blocks):
        for c from 0 <= c < channels by PACK_CHANNELS:
            run = min(<Py_ssize_t>PACK_CHANNELS, channels - c)
            for i in range(run):
                for j from 0 <= j < width by lanes:
                    transform_weight(matrix_h, matrix_w, panel + (b * channels + c + i) * width + j,
                                     blocks * channels * width, side + i * width + j, row)
            for q in range(place.shape[0]):
                if place[q, b] >= 0 and half:
                    store_half(<const real *>side + q * row, run, place[q, b] % HALF_TAPS,
                               transformed + (place[q, b] // HALF_TAPS * channels + c) * HALF_TAPS * width)
                elif place[q, b] >= 0:
                    memcpy(transformed + (place[q, b] * channels + c) * width, side + q * row,
                           run * width * sizeof(real))


def pack_winograd(
    const real[:, :, :, :] weight, const double[:, ::1] matrix_h, const double[:, ::1] matrix_w,
    const Py_ssize_t[:, ::1] place, bint half, real[:, :, :, :, ::1] transformed,
    real[:, :, ::1] workspace, int num_threads
):
    """Transform and pack weights, for a block b of taps and a position q of the tile:
    transformed[g, p, place[q, b], c, j] = (G_h weight[g, p · PANEL + j, (b, c)] G_wᵀ)[q],
    or, `half`, as winograd_half.pyx says: place // 3 is the set then, place % 3 the tap.

    Parameters
    ----------
    weight : (groups, C_out/groups, blocks·C_in/groups, r_h·r_w), IN
    matrix_h, matrix_w : (n_h, r_h) and (n_w, r_w), IN
        G of each axis.
    place : (n_h·n_w, blocks), IN
        Negative where a block has no weight at a position.
    transformed : (groups, panels, products, C_in/groups, PANEL), OUT
    workspace : (num_threads, r_h·r_w·blocks·C_in/groups, PANEL), scratch
    """
    cdef Py_ssize_t item, g, p, width = transformed.shape[4], channels = transformed.shape[3]
    cdef Py_ssize_t parts = transformed.shape[1], size = sizeof(real)
    cdef Py_ssize_t[4] stride = [
        weight.strides[1] // size, weight.strides[2] // size, 0, weight.strides[3] // size]
    cdef real *panel
    for item in prange(transformed.shape[0] * parts, nogil=True, num_threads=num_threads, schedule="static"):
        g = item // parts
        p = item % parts
        panel = &workspace[threadid(), 0, 0]
        pack_weight_panel(&weight[g, p * width, 0, 0], stride, min(width, weight.shape[1] - p * width),
                          weight.shape[2], 1, weight.shape[3], panel)
        transform_panel(<const real *>panel, channels, matrix_h, matrix_w, place, half,
                        &transformed[g, p, 0, 0, 0])
