# Deformable convolution: im2col whose taps read between pixels, where the offsets say.
#
#     patches[pixel, (i, j, c)] = mask · Σ_q max(0, 1 − |q_y − p_y|) · max(0, 1 − |q_x − p_x|) · x[q, c],
#     p = (y·s_h − pad_h + i·d_h + offset_y,  x·s_w − pad_w + j·d_w + offset_x);      out = patches · W
#
# Where a tap reads is found once for all the channels that share an offset. Offsets and masks may have any
# strides; an offset may be any number: what it points to outside the image is 0, and NaN makes NaN.
from cython.parallel cimport prange, threadid
from libc.string cimport memset

cdef extern from "microkernel.h" nogil:
    void sample_f32(const float **corner, const float *weight, Py_ssize_t channels, float *target) noexcept
    void sample_f64(const double **corner, const double *weight, Py_ssize_t channels, double *target) noexcept
    float sample_grad_f32(
        const float *grad, const float *pixel, float weight, Py_ssize_t channels, float *grad_pixel) noexcept
    double sample_grad_f64(
        const double *grad, const double *pixel, double weight, Py_ssize_t channels,
        double *grad_pixel) noexcept


# A deformable problem; strides count elements, of channels, rows and columns, and of masks' images.
cdef struct Deformed:
    Problem problem
    Py_ssize_t height, width, channels, columns, pixels, offset_groups, mask_image
    Py_ssize_t[3] offset_stride
    Py_ssize_t[3] mask_stride


cdef Deformed deformed_of(geometry, Py_ssize_t offset_groups, offset, mask):
    cdef Deformed d
    cdef Py_ssize_t axis
    d.problem = problem_of(geometry)
    d.height, d.width = geometry.input_size
    d.channels = geometry.in_channels
    d.columns = geometry.output_size[1]
    d.pixels = geometry.output_size[0] * d.columns
    d.offset_groups = offset_groups
    for axis in range(3):
        d.offset_stride[axis] = offset.strides[axis + 1] // offset.itemsize
        d.mask_stride[axis] = 0 if mask is None else mask.strides[axis + 1] // mask.itemsize
    d.mask_image = 0 if mask is None else mask.strides[0] // mask.itemsize
    return d


cdef inline const real *mask_of(const Deformed *d, const real *masks, Py_ssize_t n) noexcept nogil:
    """The masks of image n; NULL where there are none."""
    if masks == NULL:
        return NULL
    return masks + n * d.mask_image


cdef inline void locate(
    const Deformed *d, real y, real x, Py_ssize_t *corner, real *weight, real *fraction
) noexcept nogil:
    """The four pixels around a place, as offsets into the image, −1 outside; their weights."""
    cdef Py_ssize_t y0, x0, k, at
    cdef bint top, bottom, left, right
    if not (y >= -1 and y < <real>d.height and x >= -1 and x < <real>d.width):
        for k in range(4):
            corner[k] = -1
            weight[k] = 0
        fraction[0] = fraction[1] = 0
        if y != y or x != x:
            corner[0] = 0
            weight[0] = fraction[0] = fraction[1] = y + x
        return
    y0, x0 = <Py_ssize_t>y, <Py_ssize_t>x
    y0 -= y < <real>y0
    x0 -= x < <real>x0
    top, bottom, left, right = y0 >= 0, y0 + 1 < d.height, x0 >= 0, x0 + 1 < d.width
    at = (y0 * d.width + x0) * d.channels
    corner[0] = at if top and left else -1
    corner[1] = at + d.channels if top and right else -1
    corner[2] = at + d.width * d.channels if bottom and left else -1
    corner[3] = at + (d.width + 1) * d.channels if bottom and right else -1
    fraction[0] = y - <real>y0
    fraction[1] = x - <real>x0
    weight[0] = (1 - fraction[0]) * (1 - fraction[1])
    weight[1] = (1 - fraction[0]) * fraction[1]
    weight[2] = fraction[0] * (1 - fraction[1])
    weight[3] = fraction[0] * fraction[1]


cdef inline real locate_tap(
    const Deformed *d, const real *offset, const real *mask, Py_ssize_t row, Py_ssize_t column,
    Py_ssize_t group, Py_ssize_t i, Py_ssize_t j, Py_ssize_t *corner, real *weight, real *fraction
) noexcept nogil:
    """`locate` for tap (i, j) of one output pixel of an image; returns its mask."""
    cdef const Problem *p = &d.problem
    cdef Py_ssize_t plane = (group * p.kernel_h + i) * p.kernel_w + j
    cdef const real *at = (offset + 2 * plane * d.offset_stride[0] + row * d.offset_stride[1]
                           + column * d.offset_stride[2])
    locate(d, <real>(row * p.stride_h - p.pad_h + i * p.dilation_h) + at[0],
           <real>(column * p.stride_w - p.pad_w + j * p.dilation_w) + at[d.offset_stride[0]],
           corner, weight, fraction)
    if mask == NULL:
        return 1
    return mask[plane * d.mask_stride[0] + row * d.mask_stride[1] + column * d.mask_stride[2]]


cdef void sample_pixel(
    const Deformed *d, const real *x, const real *offset, const real *mask, Py_ssize_t row,
    Py_ssize_t column, const real *zeros, real *patch
) noexcept nogil:
    """The patch (i, j, c) of one output pixel of an image."""
    cdef Py_ssize_t channels = d.channels // d.offset_groups, i, j, group, k
    cdef Py_ssize_t[4] corner
    cdef real[4] weight
    cdef real[2] fraction
    cdef const real *source[4]
    cdef real scale
    for i in range(d.problem.kernel_h):
        for j in range(d.problem.kernel_w):
            for group in range(d.offset_groups):
                scale = locate_tap(d, offset, mask, row, column, group, i, j, corner, weight, fraction)
                for k in range(4):
                    # A pixel that does not count is not read: it may be infinite.
                    source[k] = zeros
                    if corner[k] >= 0 and weight[k] != 0:
                        source[k] = x + corner[k] + group * channels
                    weight[k] *= scale
                if real is float:
                    sample_f32(source, weight, channels, patch)
                else:
                    sample_f64(source, weight, channels, patch)
                patch += channels


cdef void sample_pixels(
    const Deformed *d, const real *x, const real *offset, const real *mask, Py_ssize_t first,
    Py_ssize_t count, real *patches, Py_ssize_t pitch, real *zeros
) noexcept nogil:
    """Lower output pixels first … first + count of an image; `zeros` takes a pixel's channels."""
    cdef Py_ssize_t pixel
    memset(zeros, 0, d.channels * sizeof(real))
    for pixel in range(first, first + count):
        sample_pixel(d, x, offset, mask, pixel // d.columns, pixel % d.columns, zeros,
                     patches + (pixel - first) * pitch)


cdef inline Py_ssize_t slice_length(const Deformed *d) noexcept nogil:
    """Elements of a patch that one group of channels has side by side: all of it, or a tap's."""
    if d.problem.groups == 1:
        return d.problem.kernel_h * d.problem.kernel_w * d.channels
    return d.problem.group_in


cdef void multiply_patches(
    const Deformed *d, const real *patches, Py_ssize_t pitch, Py_ssize_t count, const real *packed,
    Py_ssize_t panels, const real *bias, Py_ssize_t depth, real *block, real *out,
    const Py_ssize_t *out_stride
) noexcept nogil:
    """out[pixel, m] for `count` lowered pixels; `block` takes a panel of them and scatter_rows' slack."""
    cdef const Problem *p = &d.problem
    cdef Py_ssize_t width = panel_width(patches), reduction = p.kernel_h * p.kernel_w * p.group_in
    cdef Py_ssize_t length = slice_length(d), g, panel, s, k, run, offset, columns
    cdef const real *weight
    for g in range(p.groups):
        for panel in range(panels):
            weight = packed + (g * panels + panel) * reduction * width
            columns = min(width, p.group_out - panel * width)
            for s in range(reduction // length):
                for k from 0 <= k < length by depth:
                    run = min(depth, length - k)
                    offset = s * d.channels + g * p.group_in + k
                    gemm_rows(
                        count, columns, patches, pitch, 1, &offset, &run, weight + (s * length + k) * width,
                        width, block, width, START_BIAS if s + k == 0 else START_OUTPUT,
                        bias + (g * panels + panel) * width, False)
            scatter_rows(block, 0, width, 1, count, columns,
                         out + (g * p.group_out + panel * width) * out_stride[2], out_stride)


def deform_conv(
    const real[:, :, :, ::1] x, const real[:, :, :, :] offset, const real[:, :, :, :] mask,
    const real[:, :, :, ::1] packed, const real[::1] bias, geometry, Py_ssize_t offset_groups,
    Py_ssize_t panel_pixels, Py_ssize_t pitch, Py_ssize_t depth, real[:, :, :] out, real[::1] workspace,
    Py_ssize_t per_thread, int num_threads
):
    """Deformable convolution.

    Parameters
    ----------
    x : (N, H, W, C_in), IN
    offset : (N, offset_groups·k_h·k_w·2, H_out, W_out), IN
    mask : (N, offset_groups·k_h·k_w, H_out, W_out) or None, IN
    packed : (groups, panels, k_h·k_w·C_in/groups, PANEL), IN
    bias : (groups · panels · PANEL), IN
    panel_pixels, pitch : output pixels lowered at a time, and elements from one's patch to the next's
    depth : rows of a panel of weights multiplied at a time
    out : (N, H_out·W_out, C_out), of any strides, OUT
    workspace : (num_threads · per_thread), scratch, panel_pixels · (pitch + PANEL) + C_in for each thread,
        and scatter_rows' slack
    """
    cdef Deformed d = deformed_of(geometry, offset_groups, offset, mask)
    cdef Py_ssize_t parts = (d.pixels + panel_pixels - 1) // panel_pixels, item, n, first, count
    cdef Py_ssize_t size = sizeof(real)
    cdef Py_ssize_t[3] out_stride = [0, out.strides[1] // size, out.strides[2] // size]
    cdef const real *masks = NULL
    cdef real *scratch
    if mask is not None:
        masks = &mask[0, 0, 0, 0]
    for item in prange(x.shape[0] * parts, nogil=True, num_threads=num_threads, schedule="static"):
        n = item // parts
        first = share(d.pixels, parts, item % parts)
        count = share(d.pixels, parts, item % parts + 1) - first
        scratch = &workspace[threadid() * per_thread]
        sample_pixels(&d, &x[n, 0, 0, 0], &offset[n, 0, 0, 0], mask_of(&d, masks, n), first, count, scratch,
                      pitch, scratch + per_thread - d.channels)
        multiply_patches(&d, scratch, pitch, count, &packed[0, 0, 0, 0], packed.shape[1], &bias[0], depth,
                         scratch + panel_pixels * pitch, &out[n, first, 0], out_stride)


def deform_conv_weight_grad(
    const real[:, :, :, ::1] x, const real[:, :, :, :] offset, const real[:, :, :, :] mask,
    const real[:, :, ::1] grad, geometry, Py_ssize_t offset_groups, Py_ssize_t panel_pixels,
    Py_ssize_t pitch, real[:, :, ::1] partial, real[::1] workspace, Py_ssize_t per_thread, int num_threads
):
    """Weight gradient of a deformable convolution, in partial sums over parts of the pixels of all images.

    Parameters
    ----------
    x, offset, mask, panel_pixels, pitch : as for ``deform_conv``
    grad : (N, C_out, H_out·W_out), IN
    partial : (parts, C_out, k_h·k_w·C_in/groups), zeros, OUT
        One sum for each of the parts; the caller adds them.
    workspace : (num_threads · per_thread), scratch, panel_pixels · pitch + C_in + PANEL for each thread
    """
    cdef Deformed d = deformed_of(geometry, offset_groups, offset, mask)
    cdef Py_ssize_t pieces = (d.pixels + panel_pixels - 1) // panel_pixels, item, piece, n, first, count
    cdef Py_ssize_t total = x.shape[0] * pieces
    cdef const real *masks = NULL
    cdef real *scratch
    if mask is not None:
        masks = &mask[0, 0, 0, 0]
    for item in prange(partial.shape[0], nogil=True, num_threads=num_threads, schedule="static"):
        scratch = &workspace[threadid() * per_thread]
        for piece in range(share(total, partial.shape[0], item), share(total, partial.shape[0], item + 1)):
            n = piece // pieces
            first = share(d.pixels, pieces, piece % pieces)
            count = share(d.pixels, pieces, piece % pieces + 1) - first
            sample_pixels(
                &d, &x[n, 0, 0, 0], &offset[n, 0, 0, 0], mask_of(&d, masks, n),
                first, count, scratch, pitch, scratch + panel_pixels * pitch)
            add_weight_grad(&d, scratch, pitch, count, &grad[n, 0, first], &partial[item, 0, 0])


cdef void add_weight_grad(
    const Deformed *d, const real *patches, Py_ssize_t pitch, Py_ssize_t count, const real *grad, real *sums
) noexcept nogil:
    """sums[m, (tap, c)] += Σ_pixel grad[m, pixel] · patches[pixel, (tap, c)]."""
    cdef const Problem *p = &d.problem
    cdef Py_ssize_t width = panel_width(patches), reduction = p.kernel_h * p.kernel_w * p.group_in
    cdef Py_ssize_t length = slice_length(d), g, s, c, zero = 0
    for g in range(p.groups):
        for s in range(reduction // length):
            for c from 0 <= c < length by width:
                gemm_rows(
                    p.group_out, min(width, length - c), grad + g * p.group_out * d.pixels, d.pixels, 1,
                    &zero, &count, patches + s * d.channels + g * p.group_in + c, pitch,
                    sums + g * p.group_out * reduction + s * length + c, reduction, START_OUTPUT,
                    <const real *>NULL, False)


def deform_conv_input_grad(
    const real[:, :, :, ::1] x, const real[:, :, :, :] offset, const real[:, :, :, :] mask,
    const real[:, :, ::1] grad, const real[:, :, :, ::1] packed, const Py_ssize_t[:, ::1] pieces, geometry,
    Py_ssize_t offset_groups, Py_ssize_t panel_pixels, Py_ssize_t depth, real[:, :, :, ::1] grad_x,
    real[:, :, :, :, ::1] grad_place, real[::1] workspace, Py_ssize_t per_thread, int num_threads
):
    """Gradients of a deformable convolution by input, offset and mask, piece by piece of the channels.

    A piece is at most PANEL channels of one group and one offset group. Its input gradient is one
    thread's own, so no two threads add to one place; the other gradients are its share of a sum.

    Parameters
    ----------
    x, offset, mask : as for ``deform_conv``
    grad : (N, H_out·W_out, C_out), IN
    packed : (pieces, k_h·k_w, C_out/groups, PANEL), IN
        The weights from the outputs to a piece's channels.
    pieces : (pieces, 2), IN
        First channel and number of channels.
    panel_pixels : output pixels at a time
    depth : output channels multiplied at a time
    grad_x : (N, H, W, C_in), zeros, OUT
    grad_place : (N, pieces, H_out·W_out, k_h·k_w, 3), OUT
        By offset_y, offset_x and mask; the caller adds the pieces.
    workspace : (num_threads · per_thread), scratch, panel_pixels · k_h·k_w · PANEL for each thread
    """
    cdef Deformed d = deformed_of(geometry, offset_groups, offset, mask)
    cdef Py_ssize_t count = pieces.shape[0], item, n, piece, first
    cdef const real *masks = NULL
    cdef real *scratch
    if mask is not None:
        masks = &mask[0, 0, 0, 0]
    for item in prange(x.shape[0] * count, nogil=True, num_threads=num_threads, schedule="static"):
        n = item // count
        piece = item % count
        scratch = &workspace[threadid() * per_thread]
        for first from 0 <= first < d.pixels by panel_pixels:
            grad_patches(
                &d, &grad[n, first, 0], min(panel_pixels, d.pixels - first), &packed[piece, 0, 0, 0],
                pieces[piece, 0], pieces[piece, 1], depth, scratch)
            spread_patches(
                &d, &x[n, 0, 0, 0], &offset[n, 0, 0, 0], mask_of(&d, masks, n),
                first, min(panel_pixels, d.pixels - first), scratch, pieces[piece, 0], pieces[piece, 1],
                &grad_x[n, 0, 0, 0], &grad_place[n, piece, first, 0, 0])


cdef void grad_patches(
    const Deformed *d, const real *grad, Py_ssize_t count, const real *packed, Py_ssize_t first_channel,
    Py_ssize_t channels, Py_ssize_t depth, real *patches
) noexcept nogil:
    """patches[pixel, tap, c] = Σ_m grad[pixel, m] · W[m, c, tap] for the channels of a piece."""
    cdef const Problem *p = &d.problem
    cdef Py_ssize_t width = panel_width(grad), taps = p.kernel_h * p.kernel_w, tap, m, run, zero = 0
    cdef Py_ssize_t out_channels = p.groups * p.group_out
    grad += first_channel // p.group_in * p.group_out
    for tap in range(taps):
        for m from 0 <= m < p.group_out by depth:
            run = min(depth, p.group_out - m)
            gemm_rows(
                count, channels, grad + m, out_channels, 1, &zero, &run,
                packed + (tap * p.group_out + m) * width, width, patches + tap * width, taps * width,
                START_ZERO if m == 0 else START_OUTPUT, <const real *>NULL, False)


cdef void spread_patches(
    const Deformed *d, const real *x, const real *offset, const real *mask, Py_ssize_t first,
    Py_ssize_t count, const real *patches, Py_ssize_t first_channel, Py_ssize_t channels, real *grad_x,
    real *grad_place
) noexcept nogil:
    """Add the gradients of lowered pixels to those of the pixels they were sampled from."""
    cdef Py_ssize_t width = panel_width(x), taps = d.problem.kernel_h * d.problem.kernel_w, pixel, tap, k
    cdef Py_ssize_t kernel_w = d.problem.kernel_w
    cdef Py_ssize_t group = first_channel // (d.channels // d.offset_groups)
    cdef Py_ssize_t[4] corner
    cdef real[4] weight
    cdef real[4] product
    cdef real[2] fraction
    cdef real scale, sample
    cdef const real *grad
    for pixel in range(first, first + count):
        for tap in range(taps):
            grad = patches + ((pixel - first) * taps + tap) * width
            scale = locate_tap(d, offset, mask, pixel // d.columns, pixel % d.columns, group, tap // kernel_w,
                               tap % kernel_w, corner, weight, fraction)
            sample = 0
            for k in range(4):
                product[k] = 0
                if corner[k] < 0:
                    continue
                if real is float:
                    product[k] = sample_grad_f32(
                        grad, x + corner[k] + first_channel, scale * weight[k], channels,
                        grad_x + corner[k] + first_channel)
                else:
                    product[k] = sample_grad_f64(
                        grad, x + corner[k] + first_channel, scale * weight[k], channels,
                        grad_x + corner[k] + first_channel)
                if weight[k] != 0:
                    sample += weight[k] * product[k]
            grad_place[0] = scale * ((1 - fraction[1]) * (product[2] - product[0])
                                     + fraction[1] * (product[3] - product[1]))
            grad_place[1] = scale * ((1 - fraction[0]) * (product[1] - product[0])
                                     + fraction[0] * (product[3] - product[2]))
            grad_place[2] = sample
            grad_place += 3
