# The weight gradient by minimal filtering F(k_h×k_w, m_h×m_w), Winograd's convolution transposed:
#
#     dW = G_hᵀ [ Σ_tiles (A_h dY A_wᵀ) ⊙ (B_hᵀ d B_w) ] G_w
#
# The matrices are those of winograd.pyx; a tile of m_h × m_w gradients meets the inputs that its forward
# tile reads. The sum over tiles is n_h·n_w independent matrix products, one a position, and is
# transformed back once, at its end. Tiles of some lines are transformed until a block of them is full.
from cython.parallel cimport prange, threadid
from libc.string cimport memset

cdef extern from "microkernel.h" nogil:
    void winograd_spread_f32(
        int pairs_h, int outputs_h, int pairs_w, int outputs_w, const float *y, Py_ssize_t row_pitch,
        Py_ssize_t pixel_pitch, Py_ssize_t channels, float *m, Py_ssize_t position_stride,
        const float *coefficient_h, const float *coefficient_w) noexcept
    void winograd_spread_f64(
        int pairs_h, int outputs_h, int pairs_w, int outputs_w, const double *y, Py_ssize_t row_pitch,
        Py_ssize_t pixel_pitch, Py_ssize_t channels, double *m, Py_ssize_t position_stride,
        const double *coefficient_h, const double *coefficient_w) noexcept
    void winograd_gather_f32(
        int n_h, int k_h, int n_w, int k_w, const float *m, Py_ssize_t position_stride,
        const float *matrix_h, const float *matrix_w, float *w, Py_ssize_t tap_stride) noexcept
    void winograd_gather_f64(
        int n_h, int k_h, int n_w, int k_w, const double *m, Py_ssize_t position_stride,
        const double *matrix_h, const double *matrix_w, double *w, Py_ssize_t tap_stride) noexcept


cdef struct GradTiling:
    # One block of channels: pitches of x's and the gradient's pixels, and from position to position.
    Tiling tiling
    Py_ssize_t capacity, chunks, in_pitch, out_pitch, in_position, out_position


cdef void transform_unit(
    const Problem *problem, const GradTiling *s, const Images *images, const real *x, Py_ssize_t channels,
    const Images *grads, const real *grad, Py_ssize_t out_channels, Py_ssize_t line, Py_ssize_t first,
    Py_ssize_t last, const real *coefficient_h, const real *coefficient_w, real *v, real *m, real *band
) noexcept nogil:
    """Tiles first … last of one line of an image: of x to v, of the gradient to m."""
    cdef const Tiling *tiling = &s.tiling
    cdef Py_ssize_t top = tiling.line_origin[line], left = tiling.across_origin[first], right = left
    cdef Py_ssize_t t, i, columns, row, rows = (tiling.points_h - 1) * tiling.dilation_h + 1
    cdef View view = View(problem.pad_h, problem.pad_w, images.height, images.width, images.stride[0],
                          images.stride[1])
    cdef const real *zeros = band
    cdef const real *corner
    cdef const real *pixel[MAX_POSITIONS]
    memset(band, 0, s.in_pitch * sizeof(real))
    band += s.in_pitch
    for t in range(first, last):
        left, right = min(left, tiling.across_origin[t]), max(right, tiling.across_origin[t])
    if images.stride[2] != 1 or channels != s.in_pitch:
        columns = right - left + (tiling.points_w - 1) * tiling.dilation_w + 1
        row = columns * s.in_pitch
        gather_band(x, images.stride, images.height, images.width, channels, top - problem.pad_h,
                    left - problem.pad_w, rows, columns, band, row, s.in_pitch)
        x, view = band, View(top, left, rows, columns, row, s.in_pitch)
    for t in range(first, last):
        tile_pixels(tiling, &view, x, zeros, top, tiling.across_origin[t], tiling.points_h,
                    tiling.points_w, pixel)
        transform_input(tiling, 1, pixel, s.in_pitch, v + (t - first) * s.in_pitch, s.in_position, s.in_pitch,
                        coefficient_h, coefficient_w)
    columns = right - left + (tiling.outputs_w - 1) * tiling.dilation_w + 1
    row = columns * s.out_pitch
    for i in range(tiling.outputs_h):
        gather_band(grad, grads.stride, grads.height, grads.width, out_channels, top + i * tiling.dilation_h,
                    left, 1, columns, band + i * row, row, s.out_pitch)
    for t in range(first, last):
        corner = band + (tiling.across_origin[t] - left) * s.out_pitch
        if real is float:
            winograd_spread_f32(
                tiling.pairs_h, tiling.outputs_h, tiling.pairs_w, tiling.outputs_w, corner, row,
                tiling.dilation_w * s.out_pitch, out_channels, m + (t - first) * s.out_pitch,
                s.out_position, coefficient_h, coefficient_w)
        else:
            winograd_spread_f64(
                tiling.pairs_h, tiling.outputs_h, tiling.pairs_w, tiling.outputs_w, corner, row,
                tiling.dilation_w * s.out_pitch, out_channels, m + (t - first) * s.out_pitch,
                s.out_position, coefficient_h, coefficient_w)


cdef void multiply_tiles(
    const GradTiling *s, Py_ssize_t tiles, const real *v, const real *m, Py_ssize_t channels, real *sums
) noexcept nogil:
    """sums[position, c, m] += Σ_tiles v · m."""
    cdef Py_ssize_t width = panel_width(v), q, p
    for q in range(s.tiling.positions):
        for p from 0 <= p < s.out_pitch by width:
            outer_rows(channels, min(width, s.out_pitch - p), 1, tiles, v + q * s.in_position, 0,
                       s.in_pitch, 0, m + q * s.out_position + p, 0, s.out_pitch,
                       sums + q * channels * s.out_pitch + p, s.out_pitch)


cdef void gather_taps(
    const Problem *problem, const GradTiling *s, const real *sums, Py_ssize_t channels,
    const real *matrix_h, const real *matrix_w, real *taps, Py_ssize_t tap_pitch, Py_ssize_t channel_pitch
) noexcept nogil:
    """The sums transformed back: taps[(i, j), c, m]."""
    cdef Py_ssize_t lanes = panel_width(sums) // 2, c, m, position = channels * s.out_pitch
    cdef int n_h = s.tiling.points_h, n_w = s.tiling.points_w
    cdef const real *at
    cdef real *to
    for c in range(channels):
        for m from 0 <= m < s.out_pitch by lanes:
            at = sums + c * s.out_pitch + m
            to = taps + c * channel_pitch + m
            if real is float:
                winograd_gather_f32(n_h, problem.kernel_h, n_w, problem.kernel_w, at, position, matrix_h,
                                    matrix_w, to, tap_pitch)
            else:
                winograd_gather_f64(n_h, problem.kernel_h, n_w, problem.kernel_w, at, position, matrix_h,
                                    matrix_w, to, tap_pitch)


def weight_grad_winograd(
    const real[:, :, :, :, :] x, const real[:, :, :, :, :] grad, geometry, form,
    const real[::1] coefficient_h, const real[::1] coefficient_w, const real[:, ::1] matrix_h,
    const real[:, ::1] matrix_w, const Py_ssize_t[::1] line_origin, const Py_ssize_t[::1] across_origin,
    cuts, Py_ssize_t capacity, real[:, :, :, :, ::1] partial, real[::1] workspace, Py_ssize_t per_thread,
    int num_threads
):
    """Weight gradient of a convolution of stride 1 by tiles, in partial sums.

    Parameters
    ----------
    x : (N, D, H, W, C_in), IN
        An image for each (n, d).
    grad : (N, D, H_out, W_out, C_out), IN
    form, coefficient_h, coefficient_w, line_origin, across_origin : as `winograd` takes them, IN
    matrix_h, matrix_w : (n_h, k_h) and (n_w, k_w), IN
        G of each axis.
    cuts : (in_blocks, out_blocks, chunks)
        Blocks of a group's input and output channels; parts of a line of tiles.
    capacity : the tiles multiplied at a time, no fewer than a part of a line has
    partial : (parts, groups, k_h·k_w, C_in/groups, ≥ C_out/groups), OUT
        In whole vectors.
    workspace : (num_threads · per_thread), scratch
    """
    cdef Problem problem = problem_of(geometry)
    cdef Images images = images_of(x), grads = images_of(grad)
    cdef GradTiling s
    cdef Py_ssize_t in_blocks, out_blocks, item
    in_blocks, out_blocks, s.chunks = cuts
    (s.tiling.pairs_h, s.tiling.pairs_w), (s.tiling.outputs_h, s.tiling.outputs_w) = form
    set_spacing(&s.tiling, &problem)
    s.tiling.line_origin, s.tiling.across_origin = &line_origin[0], &across_origin[0]
    s.tiling.across = across_origin.shape[0]
    s.capacity = capacity
    s.tiling.positions = s.tiling.points_h * s.tiling.points_w
    cdef Py_ssize_t parts = partial.shape[0], lines = line_origin.shape[0]
    cdef Py_ssize_t count = x.shape[0] * x.shape[1] * lines * s.chunks
    cdef GradItem at
    for item in prange(parts * problem.groups * in_blocks * out_blocks, nogil=True,
                       num_threads=num_threads, schedule="static"):
        at = grad_item(item, problem.groups, in_blocks, out_blocks, problem.group_in, problem.group_out,
                       &workspace[0])
        winograd_item(
            &problem, s, &images,
            &x[0, 0, 0, 0, 0] + (at.g * problem.group_in + at.c) * images.stride[2], at.channels, &grads,
            &grad[0, 0, 0, 0, 0] + (at.g * problem.group_out + at.m) * grads.stride[2], at.out_channels,
            share(count, parts, at.part), share(count, parts, at.part + 1), lines, &coefficient_h[0],
            &coefficient_w[0], &matrix_h[0, 0], &matrix_w[0, 0], &partial[at.part, at.g, 0, at.c, at.m],
            problem.group_in * partial.shape[4], partial.shape[4], &workspace[threadid() * per_thread],
            per_thread)


cdef void winograd_item(
    const Problem *problem, GradTiling s, const Images *images, const real *x, Py_ssize_t channels,
    const Images *grads, const real *grad, Py_ssize_t out_channels, Py_ssize_t first, Py_ssize_t last,
    Py_ssize_t lines, const real *coefficient_h, const real *coefficient_w, const real *matrix_h,
    const real *matrix_w, real *taps, Py_ssize_t tap_pitch, Py_ssize_t channel_pitch, real *scratch,
    Py_ssize_t scratch_size
) noexcept nogil:
    """One block of channels and the units first … last, parts of lines of tiles."""
    s.in_pitch, s.out_pitch = whole_vectors(channels, x), whole_vectors(out_channels, x)
    s.in_position = padded_position(s.capacity * s.in_pitch, x)
    s.out_position = padded_position(s.capacity * s.out_pitch, x)
    cdef Py_ssize_t unit, image, line, begin, end, tiles = 0, across = s.tiling.across
    cdef real *sums = scratch
    cdef real *v = sums + s.tiling.positions * channels * s.out_pitch
    cdef real *m = v + s.tiling.positions * s.in_position
    cdef real *band = m + s.tiling.positions * s.out_position
    # Lanes beyond the channels are carried along: zero, because stale bits may be slow to multiply.
    memset(scratch, 0, (scratch_size if s.out_pitch > out_channels else v - sums) * sizeof(real))
    for unit in range(first, last):
        image = unit // (s.chunks * lines)
        line = unit // s.chunks % lines
        begin = share(across, s.chunks, unit % s.chunks)
        end = share(across, s.chunks, unit % s.chunks + 1)
        if tiles + end - begin > s.capacity:
            multiply_tiles(&s, tiles, v, m, channels, sums)
            tiles = 0
        transform_unit(
            problem, &s, images, x + image_offset(images, image), channels, grads,
            grad + image_offset(grads, image), out_channels, line, begin, end, coefficient_h, coefficient_w,
            v + tiles * s.in_pitch, m + tiles * s.out_pitch, band)
        tiles += end - begin
    multiply_tiles(&s, tiles, v, m, channels, sums)
    gather_taps(problem, &s, sums, channels, matrix_h, matrix_w, taps, tap_pitch, channel_pitch)
