# Products of spectra, summed over channels: the pointwise part of a convolution in the frequency domain.
# Planes of (re, im) pairs come and go as Fourier transforms leave them, so nothing is transposed: vectors
# lie along the frequencies, and the weights alone are packed, block of frequencies by block.
from libc.string cimport memcpy, memset

cdef extern from "microkernel.h" nogil:
    const int SPECTRAL_TILES, SPECTRAL_OUTPUTS
    void spectral_split_f32(const float *interleaved, float *split) noexcept
    void spectral_split_f64(const double *interleaved, double *split) noexcept
    void spectral_tile_f32(
        int tiles, int outputs, Py_ssize_t channels, const float *x, const float *w, float *y,
        Py_ssize_t tile_stride, Py_ssize_t output_stride) noexcept
    void spectral_tile_f64(
        int tiles, int outputs, Py_ssize_t channels, const double *x, const double *w, double *y,
        Py_ssize_t tile_stride, Py_ssize_t output_stride) noexcept


def spectral_outputs():
    """Outputs whose weights ``pack_spectra`` keeps together."""
    return SPECTRAL_OUTPUTS


cdef inline void spectral_split(const real *interleaved, real *split) noexcept nogil:
    if real is float:
        spectral_split_f32(interleaved, split)
    else:
        spectral_split_f64(interleaved, split)


def pack_spectra(const real[:, :, ::1] spectra, real[:, :, ::1] packed, Py_ssize_t first, real scale):
    """Pack the conjugate spectra of one group's weights, times ``scale``, some output channels at a time.

    Outputs stand together in runs of ``spectral_outputs()``: packed[f, (run, c, output in run)] is
    block f of that plane, its real parts first.

    Parameters
    ----------
    spectra : (outputs, C_in/groups, ≥ 2·LANES·F), IN
        Pairs (re, im).
    packed : (F, C_out/groups · C_in/groups, 2·LANES), OUT
    first : the first of these output channels in its group, a multiple of ``spectral_outputs()``
    """
    cdef Py_ssize_t f, o, c, i, begin, run, channels = spectra.shape[1], outputs = spectra.shape[0]
    cdef Py_ssize_t width = panel_width(&spectra[0, 0, 0])
    cdef real *block
    with nogil:
        for f in range(packed.shape[0]):
            for begin from 0 <= begin < outputs by SPECTRAL_OUTPUTS:
                run = min(SPECTRAL_OUTPUTS, outputs - begin)
                for c in range(channels):
                    for o in range(run):
                        block = &packed[f, (first + begin) * channels + c * run + o, 0]
                        spectral_split(&spectra[begin + o, c, f * width], block)
                        for i in range(width // 2):
                            block[i] = block[i] * scale
                            block[width // 2 + i] = block[width // 2 + i] * -scale


def spectral_product(
    const real[:, :, :] x, const real[:, :, ::1] packed, Py_ssize_t first, Py_ssize_t last,
    real[:, :, :] out, real[::1] workspace
):
    """out[tile, o] = Σ_c x[tile, c] · w[o, c], for blocks of frequencies from ``first`` to ``last``.

    Parameters
    ----------
    x : (tiles, C_in/groups, ≥ 2·LANES·F), IN
        Pairs (re, im), one after the other; tiles and channels of any strides, in ``out`` too.
    packed : (F, C_out/groups · C_in/groups, 2·LANES), IN
        As ``pack_spectra`` made it.
    out : (tiles, C_out/groups, ≥ 2·LANES·F), OUT
    workspace : (tiles · C_in/groups · 2·LANES), scratch
    """
    cdef Py_ssize_t f, t, c, tiles = x.shape[0], channels = x.shape[1], width = panel_width(&workspace[0])
    with nogil:
        for f in range(first, last):
            for t in range(tiles):
                for c in range(channels):
                    spectral_split(&x[t, c, f * width], &workspace[(t * channels + c) * width])
            product_of_block(&workspace[0], tiles, channels, &packed[f, 0, 0], &out[0, 0, f * width],
                             out.shape[1], out.strides[0] // <Py_ssize_t>sizeof(real),
                             out.strides[1] // <Py_ssize_t>sizeof(real))


cdef void product_of_block(
    const real *x, Py_ssize_t tiles, Py_ssize_t channels, const real *packed, real *out, Py_ssize_t outputs,
    Py_ssize_t tile_stride, Py_ssize_t output_stride
) noexcept nogil:
    """One block of frequencies: a run of outputs' weights stays in cache for all tiles."""
    cdef Py_ssize_t width = panel_width(x), o, t, run, count
    for o from 0 <= o < outputs by SPECTRAL_OUTPUTS:
        run = min(SPECTRAL_OUTPUTS, outputs - o)
        for t from 0 <= t < tiles by SPECTRAL_TILES:
            count = min(SPECTRAL_TILES, tiles - t)
            if real is float:
                spectral_tile_f32(count, run, channels, x + t * channels * width,
                                  packed + o * channels * width,
                                  out + t * tile_stride + o * output_stride, tile_stride, output_stride)
            else:
                spectral_tile_f64(count, run, channels, x + t * channels * width,
                                  packed + o * channels * width,
                                  out + t * tile_stride + o * output_stride, tile_stride, output_stride)


def spectral_planes(
    const real[:, :, :] image, Py_ssize_t top, Py_ssize_t left, real[:, :, :] planes
):
    """planes[c, r, j] = image[top + r, left + j, c], zero where the image has no such pixel.

    Parameters
    ----------
    image : (H, W, C), any strides, IN
    top, left : the first pixel, which may lie before the image
    planes : (C, rows, columns), rows one after the other, OUT
    """
    cdef Py_ssize_t size = sizeof(real), channels = image.shape[2], pitch = planes.strides[0] // size
    cdef Py_ssize_t columns = planes.shape[2]
    cdef Py_ssize_t first = min(max(0, -left), columns)
    cdef Py_ssize_t last = max(first, min(columns, image.shape[1] - left))
    cdef Py_ssize_t row = image.strides[0] // size, pixel = image.strides[1] // size
    cdef Py_ssize_t plane = image.strides[2] // size, r, c, j, readable
    cdef const real *source
    cdef real *target
    with nogil:
        for r in range(planes.shape[1]):
            target = &planes[0, r, 0]
            if top + r < 0 or top + r >= image.shape[0] or first == last:
                for c in range(channels):
                    memset(target + c * pitch, 0, columns * size)
                continue
            for c in range(channels):
                memset(target + c * pitch, 0, first * size)
                memset(target + c * pitch + last, 0, (columns - last) * size)
            source = &image[top + r, left + first, 0]
            target = target + first
            if pixel == 1:
                for c in range(channels):
                    memcpy(target + c * pitch, source + c * plane, (last - first) * size)
            elif plane == 1:
                # To the end of the image where rows follow each other, else to the end of the row.
                readable = (image.shape[0] - 1 - top - r) * row if row > 0 else 0
                readable += (image.shape[1] - 1 - left - first) * pixel + channels
                transpose(source, pixel, last - first, channels, readable, target, pitch)
            else:
                for c in range(channels):
                    for j in range(last - first):
                        target[c * pitch + j] = source[c * plane + j * pixel]


cdef inline real finished(real y, bint rectified) noexcept nogil:
    """ReLU, which keeps NaN, or nothing."""
    return 0 if rectified and y < 0 else y


def spectral_results(
    const real[:, :, :] planes, Py_ssize_t across, const real[::1] bias, bint accumulate, bint rectified,
    real[:, :, :] out, real[::1] workspace
):
    """out[i, j, c] = planes[c, i, across · j] + bias[c], plus what it held, then ReLU, as asked.

    Parameters
    ----------
    planes : (C, at least H, columns), rows one after the other, IN
    across : the stride along a row; that from row to row has been dealt with
    bias : (C), IN
    accumulate : whether to add to ``out``
    rectified : whether to take max(·, 0)
    out : (H, W, C), any strides, OUT
    workspace : (W · C), scratch
    """
    cdef Py_ssize_t channels = out.shape[2], pitch = planes.strides[0] // <Py_ssize_t>sizeof(real)
    cdef Py_ssize_t row = out.strides[0] // <Py_ssize_t>sizeof(real)
    cdef Py_ssize_t pixel = out.strides[1] // <Py_ssize_t>sizeof(real)
    cdef Py_ssize_t plane = out.strides[2] // <Py_ssize_t>sizeof(real), i, j, c
    cdef const real *source
    cdef real *target = &out[0, 0, 0]
    cdef real *turned = &workspace[0]
    with nogil:
        for i in range(out.shape[0]):
            source = &planes[0, i, 0]
            if plane == 1 and across == 1 and pixel != 1:
                transpose(source, pitch, channels, out.shape[1],
                          (channels - 1) * pitch + (planes.shape[1] - i) * planes.shape[2], turned, channels)
                for j in range(out.shape[1]):
                    for c in range(channels):
                        target[j * pixel + c] = finished(
                            turned[j * channels + c] + bias[c] + (target[j * pixel + c] if accumulate else 0),
                            rectified)
            else:
                for c in range(channels):
                    for j in range(out.shape[1]):
                        target[c * plane + j * pixel] = finished(
                            source[c * pitch + j * across] + bias[c]
                            + (target[c * plane + j * pixel] if accumulate else 0), rectified)
            target = target + row
