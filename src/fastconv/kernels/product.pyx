# Products of spectra, summed over channels: the pointwise part of a convolution in the frequency domain.
# Planes of (re, im) pairs come and go as Fourier transforms leave them, so nothing is transposed: vectors
# lie along the frequencies, and the weights alone are packed, block of frequencies by block.
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


def pack_spectra(const real[:, :, ::1] spectra, real[:, :, ::1] packed, Py_ssize_t first):
    """Pack the spectra of one group's weights, some output channels at a time.

    Outputs stand together in runs of ``spectral_outputs()``: packed[f, (run, c, output in run)] is
    block f of that plane, its real parts first.

    Parameters
    ----------
    spectra : (outputs, C_in/groups, ≥ 2·LANES·F), IN
        Pairs (re, im).
    packed : (F, C_out/groups · C_in/groups, 2·LANES), OUT
    first : the first of these output channels in its group, a multiple of ``spectral_outputs()``
    """
    cdef Py_ssize_t f, o, c, begin, run, channels = spectra.shape[1], width = panel_width(&spectra[0, 0, 0])
    cdef Py_ssize_t outputs = spectra.shape[0]
    with nogil:
        for f in range(packed.shape[0]):
            for begin from 0 <= begin < outputs by SPECTRAL_OUTPUTS:
                run = min(SPECTRAL_OUTPUTS, outputs - begin)
                for c in range(channels):
                    for o in range(run):
                        spectral_split(&spectra[begin + o, c, f * width],
                                       &packed[f, (first + begin) * channels + c * run + o, 0])


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
