# The weight gradient, itself a matrix product over output pixels:
#
#     dW[m, (i, j, c)] = Σ_n Σ_y Σ_x  dy[n, y, x, m] · x[n, y·s_h + i·d_h − p_h, x·s_w + j·d_w − p_w, c]
#
# For a pixel the micro-kernel takes some channels of x (of a whole kernel row, where taps and pixels touch)
# times a panel of channels of dy. A panel of a few rows of dy is gathered and stays in the L1 cache; x is
# read where it lies, unless it has padding or is not channels-last.
#
# Work is cut twice: the output into blocks of channels, and the sum into `parts` runs of units (some rows
# and columns of one image), a fixed number of them, so that the order of summation is always the same.
# Each part has its own sums, partial[part, g, (i, j), c, m]; sum_weight_grad adds them.
from cython.parallel cimport prange, threadid
from libc.string cimport memcpy, memset

cdef extern from "microkernel.h" nogil:
    const int DEPTHWISE_TAPS
    void outer_tile_f32(
        int rows, int vectors, Py_ssize_t segments, Py_ssize_t length, const float *a, Py_ssize_t a_segment,
        Py_ssize_t a_stride, Py_ssize_t a_ahead, const float *b, Py_ssize_t b_segment, Py_ssize_t b_stride,
        float *c, Py_ssize_t c_stride) noexcept
    void outer_tile_f64(
        int rows, int vectors, Py_ssize_t segments, Py_ssize_t length, const double *a, Py_ssize_t a_segment,
        Py_ssize_t a_stride, Py_ssize_t a_ahead, const double *b, Py_ssize_t b_segment, Py_ssize_t b_stride,
        double *c, Py_ssize_t c_stride) noexcept
    void depthwise_grad_f32(
        int taps, const Py_ssize_t *offset, Py_ssize_t rows, Py_ssize_t columns, const float *x,
        Py_ssize_t x_row, Py_ssize_t x_pixel, const float *g, Py_ssize_t g_row, Py_ssize_t g_pixel,
        float *sums, Py_ssize_t sums_stride) noexcept
    void depthwise_grad_f64(
        int taps, const Py_ssize_t *offset, Py_ssize_t rows, Py_ssize_t columns, const double *x,
        Py_ssize_t x_row, Py_ssize_t x_pixel, const double *g, Py_ssize_t g_row, Py_ssize_t g_pixel,
        double *sums, Py_ssize_t sums_stride) noexcept


cdef enum:
    SUMMED_TERMS = 64  # of a vector of output channels, added up before they are stored
    SUMMED_VECTORS = 4  # of a row of partial sums, one after the other
    SUMMED_SHARES = 4  # of the input channels, for threads


cdef struct Images:
    # A batch of images (N, D, H, W, C): an image for each (n, d).
    Py_ssize_t depths, height, width
    Py_ssize_t[2] image_stride
    Py_ssize_t[3] stride


cdef struct GradItem:
    # One block of the result in one part of the sum; channels of all groups.
    Py_ssize_t part, g, c, channels, m, out_channels


cdef struct Region:
    # Some rows and columns of gradients, and the pitches of what they are multiplied with.
    Py_ssize_t rows, columns, x_row, x_pixel, x_ahead


cdef Images images_of(const real[:, :, :, :, :] array) noexcept:
    cdef Images images
    cdef Py_ssize_t size = sizeof(real), axis
    images.depths, images.height, images.width = array.shape[1], array.shape[2], array.shape[3]
    for axis in range(2):
        images.image_stride[axis] = array.strides[axis] // size
    for axis in range(3):
        images.stride[axis] = array.strides[axis + 2] // size
    return images


cdef inline Py_ssize_t image_offset(const Images *images, Py_ssize_t n) noexcept nogil:
    """Where image n of all N · D begins."""
    return n // images.depths * images.image_stride[0] + n % images.depths * images.image_stride[1]


cdef GradItem grad_item(
    Py_ssize_t item, Py_ssize_t groups, Py_ssize_t in_blocks, Py_ssize_t out_blocks, Py_ssize_t group_in,
    Py_ssize_t group_out, const real *unused
) noexcept nogil:
    """Item number `item`, out_blocks varying fastest; blocks of outputs begin at whole vectors."""
    cdef GradItem result
    cdef Py_ssize_t lanes = panel_width(unused) // 2, vectors = (group_out + lanes - 1) // lanes
    cdef Py_ssize_t block = item // out_blocks % in_blocks
    result.part = item // (out_blocks * in_blocks * groups)
    result.g = item // (out_blocks * in_blocks) % groups
    result.c = share(group_in, in_blocks, block)
    result.channels = share(group_in, in_blocks, block + 1) - result.c
    block = item % out_blocks
    result.m = share(vectors, out_blocks, block) * lanes
    result.out_channels = min(group_out, share(vectors, out_blocks, block + 1) * lanes) - result.m
    return result


cdef inline Py_ssize_t whole_vectors(Py_ssize_t elements, const real *unused) noexcept nogil:
    cdef Py_ssize_t lanes = VECTOR_BYTES // <Py_ssize_t>sizeof(real)
    return (elements + lanes - 1) // lanes * lanes


cdef inline void outer_rows(
    Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t segments, Py_ssize_t length, const real *a,
    Py_ssize_t a_segment, Py_ssize_t a_stride, Py_ssize_t a_ahead, const real *b, Py_ssize_t b_segment,
    Py_ssize_t b_stride, real *c, Py_ssize_t c_stride
) noexcept nogil:
    """outer_tile for any number of rows, as gemm_rows; columns are whole vectors, at most a panel."""
    cdef Py_ssize_t tiles = (rows + TILE_ROWS - 1) // TILE_ROWS, t, first, count
    cdef int vectors = columns * <Py_ssize_t>sizeof(real) // VECTOR_BYTES
    for t in range(tiles):
        first = share(rows, tiles, t)
        count = share(rows, tiles, t + 1) - first
        if real is float:
            outer_tile_f32(count, vectors, segments, length, a + first, a_segment, a_stride, a_ahead, b,
                           b_segment, b_stride, c + first * c_stride, c_stride)
        else:
            outer_tile_f64(count, vectors, segments, length, a + first, a_segment, a_stride, a_ahead, b,
                           b_segment, b_stride, c + first * c_stride, c_stride)


cdef void accumulate_taps(
    const Problem *problem, const Region *region, const real *x, Py_ssize_t channels, const real *grad,
    Py_ssize_t columns, bint ahead, real *sums, Py_ssize_t sums_pitch
) noexcept nogil:
    """Add a region's products with one panel of gradients (rows, columns, `columns`) to sums[i, j, c, m]."""
    cdef Py_ssize_t i, j, segments = region.rows, length = region.columns
    cdef Py_ssize_t runs = problem.kernel_w, run = channels
    cdef Py_ssize_t a_segment = problem.stride_h * region.x_row, a_stride = problem.stride_w * region.x_pixel
    if problem.dilation_w * region.x_pixel == channels and channels == problem.group_in:
        runs, run = 1, problem.kernel_w * channels  # a kernel row is one run of elements
    if a_segment == length * a_stride:
        segments, length = 1, segments * length
    for i in range(problem.kernel_h):
        for j in range(runs):
            outer_rows(
                run, columns, segments, length,
                x + i * problem.dilation_h * region.x_row + j * problem.dilation_w * region.x_pixel,
                a_segment, a_stride, region.x_ahead if ahead else 0, grad, length * columns, columns,
                sums + (i * problem.kernel_w + j) * problem.group_in * sums_pitch, sums_pitch)


cdef inline void tap_offsets(
    const Problem *problem, const Region *region, Py_ssize_t first, Py_ssize_t count, Py_ssize_t *offset
) noexcept nogil:
    """Where `count` taps from the `first` on begin in a region's gathered input."""
    cdef Py_ssize_t i, t
    for i in range(count):
        t = first + i
        offset[i] = (t // problem.kernel_w * problem.dilation_h * region.x_row
                     + t % problem.kernel_w * problem.dilation_w * region.x_pixel)


cdef void accumulate_depthwise(
    const Problem *problem, const Region *region, const real *x, const real *grad, Py_ssize_t columns,
    real *sums, Py_ssize_t sums_pitch
) noexcept nogil:
    """The same for one input channel a group, vectors over groups."""
    cdef Py_ssize_t taps = problem.kernel_h * problem.kernel_w, lanes = panel_width(x) // 2, c
    cdef Py_ssize_t pieces = (taps + DEPTHWISE_TAPS - 1) // DEPTHWISE_TAPS, piece, first, count
    cdef Py_ssize_t[16] offset
    cdef Py_ssize_t x_row = problem.stride_h * region.x_row, x_pixel = problem.stride_w * region.x_pixel
    cdef Py_ssize_t row = region.columns * columns
    cdef const real *at
    cdef real *to
    for piece in range(pieces):
        first = share(taps, pieces, piece)
        count = share(taps, pieces, piece + 1) - first
        tap_offsets(problem, region, first, count, offset)
        for c from 0 <= c < columns by lanes:
            at = x + c
            to = sums + first * sums_pitch + c
            if real is float:
                depthwise_grad_f32(count, offset, region.rows, region.columns, at, x_row, x_pixel, grad + c,
                                   row, columns, to, sums_pitch)
            else:
                depthwise_grad_f64(count, offset, region.rows, region.columns, at, x_row, x_pixel, grad + c,
                                   row, columns, to, sums_pitch)


cdef void accumulate_unit(
    const Problem *problem, const Images *images, const real *x, Py_ssize_t channels, bint copy_x,
    const Images *grads, const real *grad, Py_ssize_t out_channels, bint depthwise, Py_ssize_t top,
    Py_ssize_t bottom, Py_ssize_t left, Py_ssize_t right, real *sums, Py_ssize_t sums_pitch, real *panel
) noexcept nogil:
    """Some rows and columns of one image, a panel of output channels after the other."""
    cdef Py_ssize_t in_top = top * problem.stride_h - problem.pad_h, in_rows, in_columns, p, columns
    cdef Py_ssize_t in_left = left * problem.stride_w - problem.pad_w, width = panel_width(x)
    cdef Region region
    cdef real *band = panel + (bottom - top) * (right - left) * width
    region.rows, region.columns = bottom - top, right - left
    if copy_x:
        in_rows = covered(region.rows, problem.stride_h, problem.kernel_h, problem.dilation_h)
        in_columns = covered(region.columns, problem.stride_w, problem.kernel_w, problem.dilation_w)
        region.x_ahead, region.x_pixel = 0, whole_vectors(channels, x) if depthwise else channels
        region.x_row = in_columns * region.x_pixel
        gather_band(x, images.stride, images.height, images.width, channels, in_top, in_left, in_rows,
                    in_columns, band, region.x_row, region.x_pixel)
        x = band
    else:
        region.x_row, region.x_pixel = images.stride[0], images.stride[1]
        region.x_ahead = region.rows * problem.stride_h * images.stride[0]  # the next unit's
        x = x + in_top * images.stride[0] + in_left * images.stride[1]
    for p from 0 <= p < out_channels by width:
        columns = whole_vectors(min(width, out_channels - p), x)
        gather_band(grad + p * grads.stride[2], grads.stride, grads.height, grads.width,
                    min(width, out_channels - p), top, left, region.rows, region.columns, panel,
                    region.columns * columns, columns)
        if depthwise:
            accumulate_depthwise(problem, &region, x + p, panel, columns, sums + p, sums_pitch)
        else:
            accumulate_taps(problem, &region, x, channels, panel, columns, p == 0, sums + p, sums_pitch)


def weight_grad(
    const real[:, :, :, :, :] x, const real[:, :, :, :, :] grad, geometry, cuts, bint copy_x,
    bint depthwise, real[:, :, :, :, ::1] partial, real[::1] workspace, Py_ssize_t per_thread,
    int num_threads
):
    """Weight gradient of a convolution, in partial sums.

    Parameters
    ----------
    x : (N, D, H, W, C_in), IN
        An image for each (n, d).
    grad : (N, D, H_out, W_out, C_out), IN
    cuts : (in_blocks, out_blocks, bands, chunks)
        Blocks of a group's input and output channels; parts of an image's output rows and columns.
    copy_x : bool
        Gather it; else it is read where it lies and must be channels-last without padding, and for a
        depthwise convolution channels must be whole vectors.
    depthwise : bool
        One input and one output channel a group; blocks of outputs are then cut from all channels.
    partial : (parts, groups, k_h·k_w, C_in/groups, ≥ C_out/groups), OUT
        In whole vectors; depthwise (parts, 1, k_h·k_w, 1, ≥ C).
    workspace : (num_threads · per_thread), scratch
    """
    cdef Problem problem = problem_of(geometry)
    cdef Images images = images_of(x), grads = images_of(grad)
    cdef Py_ssize_t in_blocks, out_blocks, bands, chunks, item, unit, n, band, chunk
    in_blocks, out_blocks, bands, chunks = cuts
    cdef Py_ssize_t parts = partial.shape[0], groups = partial.shape[1], group_out = grad.shape[4] // groups
    cdef Py_ssize_t count = x.shape[0] * x.shape[1] * bands * chunks
    cdef GradItem at
    cdef real *sums
    for item in prange(parts * groups * in_blocks * out_blocks, nogil=True, num_threads=num_threads,
                       schedule="static"):
        at = grad_item(item, groups, in_blocks, out_blocks, partial.shape[3], group_out, &workspace[0])
        sums = &partial[at.part, at.g, 0, at.c, at.m]
        clear_block(sums, partial.shape[2], partial.shape[3] * partial.shape[4], at.channels,
                    partial.shape[4], whole_vectors(at.out_channels, sums))
        if at.out_channels != whole_vectors(at.out_channels, sums):
            # Lanes beyond the channels are multiplied too: zero, because stale bits may be slow to multiply.
            memset(&workspace[threadid() * per_thread], 0, per_thread * sizeof(real))
        for unit in range(share(count, parts, at.part), share(count, parts, at.part + 1)):
            n = unit // (bands * chunks)
            band = unit // chunks % bands
            chunk = unit % chunks
            accumulate_unit(
                &problem, &images, &x[0, 0, 0, 0, 0] + image_offset(&images, n)
                + (at.m if depthwise else at.g * partial.shape[3] + at.c) * images.stride[2],
                at.out_channels if depthwise else at.channels, copy_x, &grads,
                &grad[0, 0, 0, 0, 0] + image_offset(&grads, n)
                + (at.g * group_out + at.m) * grads.stride[2], at.out_channels, depthwise,
                share(grads.height, bands, band), share(grads.height, bands, band + 1),
                share(grads.width, chunks, chunk), share(grads.width, chunks, chunk + 1), sums,
                partial.shape[4], &workspace[threadid() * per_thread])


cdef void clear_block(
    real *sums, Py_ssize_t taps, Py_ssize_t tap_pitch, Py_ssize_t channels, Py_ssize_t pitch, Py_ssize_t count
) noexcept nogil:
    cdef Py_ssize_t t, c
    for t in range(taps):
        for c in range(channels):
            memset(sums + t * tap_pitch + c * pitch, 0, count * sizeof(real))


def sum_weight_grad(const real[:, :, :, :, :] partial, real[:, :, :, :] out, int num_threads):
    """out[g, m, c, tap] = Σ_part partial[part, g, tap, c, m], in the order of the parts.

    Parameters
    ----------
    partial : (parts, groups, k_h·k_w, C_in/groups, ≥ C_out/groups), IN
        A vector may be read from each group's last vector on.
    out : (groups, C_out/groups, C_in/groups, k_h·k_w), OUT
    """
    cdef Py_ssize_t lanes = panel_width(&partial[0, 0, 0, 0, 0]) // 2, item, g, size = sizeof(real)
    cdef Py_ssize_t run = SUMMED_VECTORS * lanes, runs = (out.shape[1] + run - 1) // run
    cdef Py_ssize_t[3] stride = [out.strides[1] // size, out.strides[2] // size, out.strides[3] // size]
    cdef Py_ssize_t[3] pitch = [
        partial.strides[0] // size, partial.strides[2] // size, partial.strides[3] // size]
    cdef Py_ssize_t m, c
    for item in prange(
        out.shape[0] * runs * SUMMED_SHARES, nogil=True, num_threads=num_threads, schedule="static"
    ):
        g = item // (runs * SUMMED_SHARES)
        m = item // SUMMED_SHARES % runs * run
        c = share(out.shape[2], SUMMED_SHARES, item % SUMMED_SHARES)
        sum_run(&partial[0, g, 0, 0, m] + c * pitch[2], partial.shape[0], partial.shape[2],
                share(out.shape[2], SUMMED_SHARES, item % SUMMED_SHARES + 1) - c, pitch,
                min(run, out.shape[1] - m), &out[g, m, 0, 0] + c * stride[1], stride)


cdef void sum_run(
    const real *partial, Py_ssize_t parts, Py_ssize_t taps, Py_ssize_t channels, const Py_ssize_t *pitch,
    Py_ssize_t outputs, real *out, const Py_ssize_t *stride
) noexcept nogil:
    """Some channels of some output channels: what is read next lies beside what is read now."""
    cdef Py_ssize_t lanes = panel_width(partial) // 2, block = max(1, SUMMED_TERMS // taps), c, m
    for c from 0 <= c < channels by block:
        for m from 0 <= m < outputs by lanes:
            sum_parts(partial + c * pitch[2] + m, parts, taps, min(block, channels - c), pitch,
                      lanes if m + lanes < outputs else block * pitch[2] - m, min(lanes, outputs - m),
                      out + c * stride[1] + m * stride[0], stride)


cdef void sum_parts(
    const real *partial, Py_ssize_t parts, Py_ssize_t taps, Py_ssize_t channels, const Py_ssize_t *pitch,
    Py_ssize_t ahead, Py_ssize_t count, real *out, const Py_ssize_t *stride
) noexcept nogil:
    """At most a vector of output channels, some of an output channel's (c, t) at a time.

    `pitch` leads from part to part, tap to tap and channel to channel, `ahead` to what is asked for next.
    """
    cdef Py_ssize_t lanes = panel_width(partial) // 2, run, r, part, i, first = 0
    cdef Py_ssize_t whole = channels * taps if stride[1] == taps else taps  # terms that lie together in `out`
    cdef bint together = stride[0] == 1  # a vector's outputs do
    cdef real[SUMMED_TERMS * 16] total
    cdef real *sums
    cdef const real *at
    if together:
        whole = channels * taps
    while first < channels * taps:
        run = min(SUMMED_TERMS, whole - first % whole)
        for r in range(run):
            at = partial + (first + r) % taps * pitch[1] + (first + r) // taps * pitch[2]
            sums = &total[r * lanes]
            memcpy(sums, at, VECTOR_BYTES)
            prefetch(at + ahead)
            for part in range(1, parts):
                prefetch(at + part * pitch[0] + ahead)
                for i in range(lanes):
                    sums[i] += at[part * pitch[0] + i]
            if together:
                memcpy(out + (first + r) // taps * stride[1] + (first + r) % taps * stride[2], sums,
                       count * sizeof(real))
        if together:
            pass
        elif stride[2] == 1 or taps == 1:
            transpose(total, lanes, run, count, SUMMED_TERMS * lanes,
                      out + first // taps * stride[1] + first % taps * stride[2], stride[0])
        else:
            for r in range(run):
                for i in range(count):
                    out[i * stride[0] + (first + r) // taps * stride[1] + (first + r) % taps * stride[2]] = (
                        total[r * lanes + i])
        first += run
