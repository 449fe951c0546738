"""Convolutions of one, two or three spatial axes as 2-D convolutions, which is what the algorithms compute.

1-D   an image of one row.
2-D   itself. Where a row is too long for the cache the image is cut into strips, the inner ones a batch whose
      images overlap by the kernel's reach.
3-D   for each depth of the kernel, 2-D convolutions of the depth slices it meets (the batch), added to the
      outputs: y[d] = Σ_i conv2d(x[d·s + i·dilation − p], w[:, :, i]). Slices of padding are left out;
      long rows are cut as in 2-D, strip by strip.

No input is copied, and nothing depends on the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import product
from math import isqrt
from typing import NamedTuple

import numpy as np

from fastconv.algorithms.base import BAND_BYTES, Call, ceil_div, in_rows
from fastconv.geometry import ConvGeometry

# Bytes of a strip's rows, or of the output slices computed together: the part of an L2 cache a band has.
_PART_BYTES = BAND_BYTES
# Columns of outputs a strip has at least.
_NARROWEST = 256


class Pass(NamedTuple):
    """One 2-D convolution: a part of the input, with one slice of the weight, to a part of the output.

    Attributes
    ----------
    geometry : ConvGeometry
        Of two spatial axes.
    tap : int
        Depth of the kernel whose slice of the weight to use; 0 but in 3-D.
    source, target : tuple of slice
        The parts of an input (N, *spatial, C_in) and of an output (N, *spatial, C_out).
    step : int
        Input columns from one image of the batch to the next, where they are strips of one; else 0.
    first, last : bool
        Whether this is the first and the last contribution to these outputs.
    """

    geometry: ConvGeometry
    tap: int = 0
    source: tuple[slice, ...] = ()
    target: tuple[slice, ...] = ()
    step: int = 0
    first: bool = True
    last: bool = True

    @property
    def is_whole(self) -> bool:
        """Whether this pass reads all of an input and writes all of an output."""
        return not (self.source or self.target or self.step)

    def on_whole(self, call: Call) -> Call:
        """A call for the parts this pass reads and writes as one for the whole input and output."""

        def step(x: np.ndarray, out: np.ndarray, workspace: np.ndarray) -> None:
            call(self.read(x), self.write(out), workspace)

        return step

    def read(self, x: np.ndarray) -> np.ndarray:
        """The input of this pass, (batch, H, W, C_in), as a view of x (N, *spatial, C_in)."""
        if not self.source and x.ndim == 4:
            return x
        return self._images(x, self.source, self.step, self.geometry.input_size[1])

    def write(self, out: np.ndarray) -> np.ndarray:
        """The output of this pass, (batch, H_out, W_out, C_out), as a view of out (N, *spatial, C_out)."""
        if not self.target and out.ndim == 4:
            return out
        columns = self.geometry.output_size[1]
        return self._images(out, self.target, columns if self.step else 0, columns)

    def _images(self, image: np.ndarray, part: tuple, step: int, columns: int) -> np.ndarray:
        if image.ndim == 5:
            return image[part][0]
        image = image[:, None][part] if image.ndim == 3 else image[part]
        if step:
            _, row, pixel, channel = image.strides
            shape = (self.geometry.batch, image.shape[1], columns, image.shape[3])
            return np.lib.stride_tricks.as_strided(image, shape, (step * pixel, row, pixel, channel))
        return image


def planar(geometry: ConvGeometry) -> ConvGeometry:
    """The 2-D problem that stands for ``geometry`` where an algorithm is chosen and weights are packed."""
    if geometry.spatial_rank == 1:
        return replace(
            geometry,
            input_size=(1, *geometry.input_size),
            kernel_size=(1, *geometry.kernel_size),
            stride=(1, *geometry.stride),
            dilation=(1, *geometry.dilation),
            padding=((0, 0), *geometry.padding),
        )
    if geometry.spatial_rank == 3:
        return replace(
            geometry,
            batch=geometry.batch * geometry.output_size[0],
            input_size=geometry.input_size[1:],
            kernel_size=geometry.kernel_size[1:],
            stride=geometry.stride[1:],
            dilation=geometry.dilation[1:],
            padding=geometry.padding[1:],
        )
    return geometry


@lru_cache(maxsize=1024)
def passes(geometry: ConvGeometry, strips: bool = True) -> tuple[Pass, ...]:
    """The 2-D convolutions a problem consists of, in order.

    Outputs that no pass writes lie in the padding of a 3-D problem: they are the bias alone.

    Parameters
    ----------
    geometry : ConvGeometry
        Of one to three spatial axes.
    strips : bool, default True
        Whether wide images may be cut; not where an algorithm cuts them itself.
    """
    if geometry.spatial_rank == 3:
        return tuple(_slices(geometry, strips))
    flat = planar(geometry)
    if not (strips and _strips(flat)):
        return (Pass(flat),)
    images = [(slice(image, image + 1), slice(None)) for image in range(geometry.batch)]
    return tuple(
        Pass(
            strip.geometry,
            source=(*one, slice(strip.begin, None)),
            target=(*one, slice(strip.start, None)),
            step=strip.step,
        )
        for one in images
        for strip in _strips(flat)
    )


class _Strip(NamedTuple):
    """Columns of one image, or a batch of equally many, read from ``begin`` on and written from ``start`` on.

    ``step`` input columns lie between two of a batch.
    """

    geometry: ConvGeometry
    begin: int
    start: int
    step: int


@lru_cache(maxsize=1024)
def _strips(geometry: ConvGeometry) -> tuple[_Strip, ...]:
    """Cut an image into strips of equally many columns; none where it is narrow or its padding is wide."""
    size, outputs, stride = geometry.input_size[1], geometry.output_size[1], geometry.stride[1]
    low, high = geometry.padding[1]
    reach = geometry.dilation[1] * (geometry.kernel_size[1] - 1)
    row = max(size * geometry.in_channels * in_rows(geometry, 1), outputs * geometry.out_channels)
    count = row * geometry.dtype.itemsize // _PART_BYTES
    if count < 2:
        return ()
    # The last strip is less than `count` columns narrower: at least half as wide, so each meets the image.
    length = max(ceil_div(outputs, count), _NARROWEST, isqrt(2 * outputs) + 1)
    count = ceil_div(outputs, length)
    length = ceil_div(outputs, count)
    if count < 2 or max(low, high, reach) > length * stride // 2:
        return ()
    strips, start = [], 0
    while start < outputs:
        begin = start * stride - low
        # Those from here on that lie inside the image, ends included; at least this one.
        inside = (size - begin - reach - 1) // stride + 1
        batch = max(1, min(inside, outputs - start) // length if begin >= 0 else 1)
        run = min(length, outputs - start)
        end = begin + (run - 1) * stride + reach + 1
        pads = (max(0, -begin), max(0, end - size))
        strip = replace(
            geometry,
            batch=batch,
            input_size=(geometry.input_size[0], end - begin - sum(pads)),
            padding=(geometry.padding[0], pads),
        )
        strips.append(_Strip(strip, begin + pads[0], start, length * stride))
        start += batch * run
    return tuple(strips)


def _columns(flat: ConvGeometry, strips: bool) -> Iterator[tuple[ConvGeometry, slice, slice]]:
    """A slice's strips one by one, or all of it: what is computed, the columns that are read and written."""
    if not (strips and _strips(flat)):
        yield flat, slice(None), slice(None)
        return
    for strip in _strips(flat):
        wide, outputs = strip.geometry.input_size[1], strip.geometry.output_size[1]
        for i in range(strip.geometry.batch):
            begin, start = strip.begin + i * strip.step, strip.start + i * outputs
            yield strip.geometry, slice(begin, begin + wide), slice(start, start + outputs)


def _slices(geometry: ConvGeometry, strips: bool) -> Iterator[Pass]:
    """For runs of output slices that meet the same depths of the kernel, one pass a strip and depth."""
    flat = planar(geometry)
    out_bytes = geometry.output_bytes // max(1, geometry.batch * geometry.output_size[0])
    most = max(1, 2 * _PART_BYTES // max(1, out_bytes))
    stride, dilation, (low, _) = geometry.stride[0], geometry.dilation[0], geometry.padding[0]
    for image in range(geometry.batch):
        one = slice(image, image + 1)
        for (start, stop, taps), (part, read, written) in product(
            _runs(geometry, most), _columns(flat, strips)
        ):
            for tap in taps:
                begin = start * stride + tap * dilation - low
                end = begin + (stop - start - 1) * stride + 1
                yield Pass(
                    replace(part, batch=stop - start),
                    tap,
                    (one, slice(begin, end, stride), slice(None), read),
                    (one, slice(start, stop), slice(None), written),
                    first=tap == taps[0],
                    last=tap == taps[-1],
                )


@lru_cache(maxsize=1024)
def untouched(geometry: ConvGeometry) -> tuple[slice, ...]:
    """The output slices of a 3-D problem that see nothing but padding."""
    if geometry.spatial_rank != 3:
        return ()
    met = _depths_met(geometry)
    return tuple(slice(out, out + 1) for out in range(len(met)) if not met[out])


def _depths_met(geometry: ConvGeometry) -> list[tuple[int, ...]]:
    """For each output slice the depths of the kernel that meet the image."""
    (size, *_), (stride, *_), (dilation, *_) = geometry.input_size, geometry.stride, geometry.dilation
    (low, _), taps = geometry.padding[0], range(geometry.kernel_size[0])
    return [
        tuple(tap for tap in taps if 0 <= out * stride + tap * dilation - low < size)
        for out in range(geometry.output_size[0])
    ]


def _runs(geometry: ConvGeometry, most: int) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """(start, stop, depths of the kernel that meet the image) for at most ``most`` output slices each."""
    met = _depths_met(geometry)
    start = 0
    for out in range(1, len(met) + 1):
        if out == len(met) or met[out] != met[start] or out - start == most:
            if met[start]:
                yield start, out, met[start]
            start = out
