# Moving pixels between the caller's memory and scratch: the only places that know about padding and about
# layouts. They are called by one thread on one band, so the copy is hot when it is used.
from libc.string cimport memcpy, memset


cdef inline void transpose(
    const real *source, Py_ssize_t source_stride, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t readable,
    real *target, Py_ssize_t target_stride
) noexcept nogil:
    if real is float:
        transpose_f32(source, source_stride, rows, columns, readable, target, target_stride)
    else:
        transpose_f64(source, source_stride, rows, columns, readable, target, target_stride)


cdef void gather_band(
    const real *x, const Py_ssize_t *stride, Py_ssize_t height, Py_ssize_t width, Py_ssize_t channels,
    Py_ssize_t top, Py_ssize_t left, Py_ssize_t rows, Py_ssize_t columns,
    real *band, Py_ssize_t row_pitch, Py_ssize_t pixel_pitch
) noexcept nogil:
    """Copy rows × columns pixels from (top, left) of one image on, zero where the image has none.

    `stride` holds the image's element strides (H, W, C). Channels from `channels` to `pixel_pitch` are
    left as they are.
    """
    cdef Py_ssize_t r, y, first = max(0, -left), last = min(columns, width - left), c, i
    cdef Py_ssize_t end = (height - 1) * stride[0] + (width - 1) * stride[1] + (channels - 1) * stride[2] + 1
    cdef const real *source
    cdef real *target
    last = max(last, first)
    for r in range(rows):
        target = band + r * row_pitch
        y = top + r
        if y < 0 or y >= height or first >= columns:
            memset(target, 0, columns * pixel_pitch * sizeof(real))
            continue
        memset(target, 0, first * pixel_pitch * sizeof(real))
        memset(target + last * pixel_pitch, 0, (columns - last) * pixel_pitch * sizeof(real))
        source = x + y * stride[0] + (left + first) * stride[1]
        target = target + first * pixel_pitch
        if stride[2] == 1 and stride[1] == channels and pixel_pitch == channels:
            memcpy(target, source, (last - first) * channels * sizeof(real))
        elif stride[2] == 1 and channels == panel_width(x):
            for i in range(last - first):  # two vectors' moves, no call
                memcpy(target + i * pixel_pitch, source + i * stride[1], 2 * VECTOR_BYTES)
        elif stride[2] == 1 and channels == panel_width(x) // 2:
            for i in range(last - first):
                memcpy(target + i * pixel_pitch, source + i * stride[1], VECTOR_BYTES)
        elif stride[2] == 1:
            for i in range(last - first):
                memcpy(target + i * pixel_pitch, source + i * stride[1], channels * sizeof(real))
        elif stride[1] == 1 and stride[0] >= 0:
            if r + 1 < rows:  # the next row lies in as many places as there are channels
                for c in range(channels):
                    for i from 0 <= i < last - first by VECTOR_BYTES // <Py_ssize_t>sizeof(real):
                        prefetch(source + stride[0] + c * stride[2] + i)
            transpose(source, stride[2], channels, last - first, end - (source - x), target, pixel_pitch)
        else:
            for c in range(channels):  # planes outermost: what a channel has there lies in a few pages
                for i in range(last - first):
                    target[i * pixel_pitch + c] = source[i * stride[1] + c * stride[2]]


cdef void scatter_rows(
    const real *block, Py_ssize_t row_pitch, Py_ssize_t pixel_pitch, Py_ssize_t rows, Py_ssize_t columns,
    Py_ssize_t channels, real *out, const Py_ssize_t *stride
) noexcept nogil:
    """Store a block [rows][columns][channels] at any strides (H, W, C).

    A vector's worth of pixels may be read beyond the block, so that its ragged end is transposed whole.
    """
    cdef Py_ssize_t lanes = VECTOR_BYTES // <Py_ssize_t>sizeof(real), _y, i, c, pixels = columns
    if row_pitch == columns * pixel_pitch and stride[0] == columns * stride[1]:
        pixels, rows = rows * columns, 1  # one run of pixels on both sides
    for _y in range(rows):
        if stride[2] == 1:
            for i in range(pixels):
                memcpy(out + i * stride[1], block + i * pixel_pitch, channels * sizeof(real))
        elif stride[1] == 1:
            transpose(block, pixel_pitch, pixels, channels, (pixels + lanes) * pixel_pitch, out, stride[2])
        else:
            for c in range(channels):
                for i in range(pixels):
                    out[i * stride[1] + c * stride[2]] = block[i * pixel_pitch + c]
        block += row_pitch
        out += stride[0]


cdef void move_block(
    real *block, Py_ssize_t pitch, Py_ssize_t first, Py_ssize_t count, Py_ssize_t columns,
    Py_ssize_t channels, real *out, const Py_ssize_t *out_stride, bint store
) noexcept nogil:
    """Store a block of output pixels first … first + count, or load it, a row of the image at a time."""
    cdef Py_ssize_t done = 0, offset, run
    cdef real *target
    while done < count:
        offset = (first + done) % columns
        run = min(columns - offset, count - done)
        target = out + (first + done) // columns * out_stride[0] + offset * out_stride[1]
        if store:
            scatter_rows(block + done * pitch, 0, pitch, 1, run, channels, target, out_stride)
        else:
            gather_band(target, out_stride, 1, run, channels, 0, 0, 1, run, block + done * pitch, 0, pitch)
        done += run
