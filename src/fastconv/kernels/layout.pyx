# Moving pixels between the caller's memory and scratch: the only two places that know about padding and
# about layouts. Both are called by one thread on one band, so the copy is hot when it is used.


cdef void gather_band(
    const real *x, const Py_ssize_t *stride, Py_ssize_t height, Py_ssize_t width, Py_ssize_t channels,
    Py_ssize_t top, Py_ssize_t left, Py_ssize_t rows, Py_ssize_t columns,
    real *band, Py_ssize_t row_pitch, Py_ssize_t pixel_pitch
) noexcept nogil:
    """Copy rows × columns pixels from (top, left) of one image on, zero where the image has none.

    `stride` holds the image's element strides (H, W, C). Channels from `channels` to `pixel_pitch` are
    left as they are.
    """
    cdef Py_ssize_t r, y, first = max(0, -left), last = min(columns, width - left), c, i, block
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
        elif stride[2] == 1:
            for i in range(last - first):
                memcpy(target + i * pixel_pitch, source + i * stride[1], channels * sizeof(real))
        else:
            # Sixteen channels at a time: as many streams read, one cache line written.
            for block in range(0, channels, 16):
                for i in range(last - first):
                    for c in range(block, min(block + 16, channels)):
                        target[i * pixel_pitch + c] = source[i * stride[1] + c * stride[2]]


cdef void scatter_block(
    const real *block, Py_ssize_t block_pitch, Py_ssize_t pixels, Py_ssize_t channels,
    real *out, Py_ssize_t pixel_stride, Py_ssize_t channel_stride
) noexcept nogil:
    """Store a block [pixels][channels] of a row at any strides."""
    cdef Py_ssize_t i, c
    if channel_stride == 1:
        for i in range(pixels):
            memcpy(out + i * pixel_stride, block + i * block_pitch, channels * sizeof(real))
    else:
        for c in range(channels):
            for i in range(pixels):
                out[c * channel_stride + i * pixel_stride] = block[i * block_pitch + c]
