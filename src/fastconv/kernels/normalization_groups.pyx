# Normalisation by the moments of groups of channels, image by image: group, instance and layer normalisation,
# statistics and map in one call. An image's blocks, or a run's pieces, are what normalization.pyx and
# normalization_runs.pyx sum; their moments are joined here, in double, in order (Chan, Golub, LeVeque,
# "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979).
#
# Threads take whole images, so that the map reads what the statistics have left in the cache; of images that
# cannot be shared out evenly, each is for all threads together, which share its blocks.
from cython.parallel cimport prange
from libc.math cimport sqrt
from libc.string cimport memset


cdef struct GroupedImage:
    # Of each image (rows, channels); `block` rows at a time.
    Py_ssize_t rows, channels, groups, block, blocks
    double eps


cdef void image_moments(
    const real *x, const GroupedImage *s, Py_ssize_t first, Py_ssize_t last,
    double *parts,          # OUT  (blocks, 2, C): mean and Σ (x − mean)² of each
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(first, last):
        block_moments(x + i * s.block * s.channels, min(s.block, s.rows - i * s.block), s.channels,
                      parts + 2 * i * s.channels, parts + (2 * i + 1) * s.channels)


cdef void join_blocks(
    const double *parts, const GroupedImage *s, double *mean, double *squares
) noexcept nogil:
    """Moments of each channel of an image from those of its blocks."""
    cdef Py_ssize_t i, c
    cdef double count, apart
    cdef const double *part
    memset(mean, 0, 2 * s.channels * sizeof(double))
    for i in range(s.blocks):
        part = parts + 2 * i * s.channels
        count = min(s.block, s.rows - i * s.block)
        for c in range(s.channels):
            mean[c] += part[c] * (count / s.rows)
    for i in range(s.blocks):
        part = parts + 2 * i * s.channels
        count = min(s.block, s.rows - i * s.block)
        for c in range(s.channels):
            apart = part[c] - mean[c]
            squares[c] += part[s.channels + c] + count * apart * apart


def channel_moments(
    const real[:, ::1] x,       # IN   (M, C)
    double[:, ::1] moments,     # OUT  (2, C): mean and Σ (x − mean)²
    double[:, :, ::1] parts,    # scratch: (blocks, 2, C)
    Py_ssize_t block, int num_threads,
):
    cdef GroupedImage s = GroupedImage(x.shape[0], x.shape[1], 1, block, parts.shape[0], 0)
    cdef Py_ssize_t i
    for i in prange(s.blocks, nogil=True, schedule="static", num_threads=num_threads):
        image_moments(&x[0, 0], &s, i, i + 1, &parts[0, 0, 0])
    with nogil:
        join_blocks(&parts[0, 0, 0], &s, &moments[0, 0], &moments[1, 0])


cdef void image_constants(
    double *parts,          # IN   (blocks, 2, C); scratch behind them, (2, C)
    const GroupedImage *s, const real *weight,
    double *mean,           # OUT  (groups)
    double *inverse,        # OUT  (groups): 1 / √(variance + eps)
    real *center,           # OUT  (C): the group's mean
    real *scale,            # OUT  (C): weight / √(variance + eps)
) noexcept nogil:
    cdef Py_ssize_t g, c, size = s.channels // s.groups
    cdef double *means = parts + 2 * s.blocks * s.channels
    cdef double *squares = means + s.channels
    cdef double total, apart
    join_blocks(parts, s, means, squares)
    for g in range(s.groups):
        total = 0
        for c in range(g * size, (g + 1) * size):
            total += means[c]
        mean[g] = total / size
        total = 0
        for c in range(g * size, (g + 1) * size):
            apart = means[c] - mean[g]
            total += squares[c] + s.rows * apart * apart
        inverse[g] = 1 / sqrt(total / (s.rows * size) + s.eps)
        for c in range(g * size, (g + 1) * size):
            center[c] = <real>mean[g]
            scale[c] = <real>(weight[c] * inverse[g])


cdef void image_map(
    const real *x, const GroupedImage *s, Py_ssize_t first, Py_ssize_t last, const real *center,
    const real *scale, const real *bias, real *out
) noexcept nogil:
    cdef Py_ssize_t i, at
    if out == NULL:
        return
    for i in range(last - 1, first - 1, -1):
        at = i * s.block * s.channels
        scale_block(min(s.block, s.rows - i * s.block), x + at, center, scale, bias, out + at, s.channels)


def normalize_images(
    const real[:, :, ::1] x,            # IN   (N, M, C)
    const real[::1] weight, const real[::1] bias,   # IN   (C)
    double eps,
    real[:, :, ::1] out,                # OUT  (N, M, C), or None: (x − mean) · inverse · weight + bias
    double[:, ::1] mean,                # OUT  (N, groups)
    double[:, ::1] inverse,             # OUT  (N, groups): 1 / √(variance + eps)
    double[:, ::1] parts,               # scratch for each thread: (blocks + 1, 2, C)
    real[:, :, ::1] constants,          # scratch for each thread: (2, C)
    Py_ssize_t block, int num_threads,
):
    """All arrays have elements."""
    cdef Py_ssize_t blocks = (x.shape[1] + block - 1) // block
    cdef GroupedImage s = GroupedImage(x.shape[1], x.shape[2], mean.shape[1], block, blocks, eps)
    cdef Py_ssize_t n, whole = x.shape[0] // num_threads * num_threads, t
    cdef real *to = NULL if out is None else &out[0, 0, 0]
    cdef Py_ssize_t pitch = s.rows * s.channels if out is not None else 0
    for t in prange(num_threads, nogil=True, schedule="static", num_threads=num_threads):
        for n in range(share(whole, num_threads, t), share(whole, num_threads, t + 1)):
            image_moments(&x[n, 0, 0], &s, 0, s.blocks, &parts[t, 0])
            image_constants(&parts[t, 0], &s, &weight[0], &mean[n, 0], &inverse[n, 0], &constants[t, 0, 0],
                            &constants[t, 1, 0])
            image_map(&x[n, 0, 0], &s, 0, s.blocks, &constants[t, 0, 0], &constants[t, 1, 0], &bias[0],
                      to + n * pitch)
    for n in range(whole, x.shape[0]):
        for t in prange(num_threads, nogil=True, schedule="static", num_threads=num_threads):
            image_moments(&x[n, 0, 0], &s, share(s.blocks, num_threads, t),
                          share(s.blocks, num_threads, t + 1), &parts[0, 0])
        image_constants(&parts[0, 0], &s, &weight[0], &mean[n, 0], &inverse[n, 0], &constants[0, 0, 0],
                        &constants[0, 1, 0])
        for t in prange(num_threads, nogil=True, schedule="static", num_threads=num_threads):
            image_map(&x[n, 0, 0], &s, share(s.blocks, num_threads, t), share(s.blocks, num_threads, t + 1),
                      &constants[0, 0, 0], &constants[0, 1, 0], &bias[0], to + n * pitch)


cdef struct GroupedRun:
    # Of `size` elements, `pixels` of each channel side by side, in pieces as equal as can be.
    Py_ssize_t size, pixels, pieces
    double eps


cdef void run_parts(
    const real *x, const GroupedRun *s, Py_ssize_t first, Py_ssize_t last,
    double *parts,          # OUT  (pieces, 2): mean and Σ (x − mean)²
) noexcept nogil:
    cdef Py_ssize_t i, at
    for i in range(first, last):
        at = share(s.size, s.pieces, i)
        piece_moments(x + at, share(s.size, s.pieces, i + 1) - at, parts + 2 * i, parts + 2 * i + 1)


cdef void join_pieces(const double *parts, const GroupedRun *s, double *mean, double *inverse) noexcept nogil:
    cdef Py_ssize_t i
    cdef double total = 0, squares = 0, apart
    for i in range(s.pieces):
        total += parts[2 * i] * (share(s.size, s.pieces, i + 1) - share(s.size, s.pieces, i))
    mean[0] = total / s.size
    for i in range(s.pieces):
        apart = parts[2 * i] - mean[0]
        squares += parts[2 * i + 1]
        squares += apart * apart * (share(s.size, s.pieces, i + 1) - share(s.size, s.pieces, i))
    inverse[0] = 1 / sqrt(squares / s.size + s.eps)


cdef void piece_map(
    const real *x, const GroupedRun *s, Py_ssize_t at, Py_ssize_t end, double mean, double inverse,
    const real *weight, const real *bias, real *out
) noexcept nogil:
    """Elements `at` to `end`, channel by channel; weight and bias are those of the run's channels."""
    cdef Py_ssize_t c, stop
    if s.pixels == 1:
        if real is float:
            scale_each_f32(end - at, x + at, mean, inverse, weight + at, bias + at, out + at)
        else:
            scale_each_f64(end - at, x + at, mean, inverse, weight + at, bias + at, out + at)
        return
    c = at // s.pixels
    while at < end:
        stop = min(end, (c + 1) * s.pixels)
        if real is float:
            scale_run_f32(stop - at, x + at, mean, weight[c] * inverse, bias[c], out + at)
        else:
            scale_run_f64(stop - at, x + at, mean, weight[c] * inverse, bias[c], out + at)
        c, at = c + 1, stop


cdef void run_map(
    const real *x, const GroupedRun *s, Py_ssize_t first, Py_ssize_t last, double mean, double inverse,
    const real *weight, const real *bias, real *out
) noexcept nogil:
    cdef Py_ssize_t i
    if out == NULL:
        return
    for i in range(last - 1, first - 1, -1):
        piece_map(x, s, share(s.size, s.pieces, i), share(s.size, s.pieces, i + 1), mean, inverse, weight,
                  bias, out)


def normalize_runs(
    const real[:, ::1] x,               # IN   (R, L)
    const real[::1] weight, const real[::1] bias,   # IN   (C): of the channels of some runs, again and again
    double eps,
    real[:, ::1] out,                   # OUT  (R, L), or None: (x − mean) · inverse · weight + bias
    double[::1] mean,                   # OUT  (R)
    double[::1] inverse,                # OUT  (R): 1 / √(variance + eps)
    double[:, :, ::1] parts,            # scratch for each thread: (pieces, 2)
    Py_ssize_t pixels, int num_threads,
):
    """A channel has `pixels` elements side by side, whole channels make a run. All arrays have elements."""
    cdef GroupedRun s = GroupedRun(x.shape[1], pixels, parts.shape[1], eps)
    cdef Py_ssize_t r, c, t, whole = x.shape[0] // num_threads * num_threads, channels = s.size // pixels
    cdef Py_ssize_t period = weight.shape[0] // channels
    cdef real *to = NULL if out is None else &out[0, 0]
    cdef Py_ssize_t pitch = s.size if out is not None else 0
    for t in prange(num_threads, nogil=True, schedule="static", num_threads=num_threads):
        for r in range(share(whole, num_threads, t), share(whole, num_threads, t + 1)):
            c = r % period * channels
            run_parts(&x[r, 0], &s, 0, s.pieces, &parts[t, 0, 0])
            join_pieces(&parts[t, 0, 0], &s, &mean[r], &inverse[r])
            run_map(&x[r, 0], &s, 0, s.pieces, mean[r], inverse[r], &weight[c], &bias[c], to + r * pitch)
    for r in range(whole, x.shape[0]):
        c = r % period * channels
        for t in prange(num_threads, nogil=True, schedule="static", num_threads=num_threads):
            run_parts(&x[r, 0], &s, share(s.pieces, num_threads, t), share(s.pieces, num_threads, t + 1),
                      &parts[0, 0, 0])
        join_pieces(&parts[0, 0, 0], &s, &mean[r], &inverse[r])
        for t in prange(num_threads, nogil=True, schedule="static", num_threads=num_threads):
            run_map(&x[r, 0], &s, share(s.pieces, num_threads, t), share(s.pieces, num_threads, t + 1),
                    mean[r], inverse[r], &weight[c], &bias[c], to + r * pitch)
