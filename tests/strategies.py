"""Hypothesis strategies: convolution problems, their data, and the memory layouts arrays come in."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st

# One example costs the reference at most this many multiplications, so that a suite of
# thousands of them stays at minutes.
MULTIPLICATIONS = 3_000_000


@dataclass(frozen=True)
class Case:
    """One convolution problem and the seed of its data; repr() is enough to reproduce it."""

    x_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[tuple[int, int], ...] = ((0, 0), (0, 0))
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1
    seed: int = 0

    @property
    def keywords(self):
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }

    @property
    def reduction(self):
        """K: how many products one output is the sum of."""
        return math.prod(self.weight_shape[1:])

    def normal(self, dtype):
        """x, weight, bias from N(0, 1)."""
        rng = np.random.default_rng(self.seed)
        return tuple(rng.standard_normal(shape).astype(dtype) for shape in self._shapes())

    def integers(self, dtype):
        """x, weight, bias of integers from −4 to 4: every sum of them is exact in float32."""
        assert self.reduction * 16 + 4 < 2**24
        rng = np.random.default_rng(self.seed)
        return tuple(rng.integers(-4, 5, shape).astype(dtype) for shape in self._shapes())

    def _shapes(self):
        return self.x_shape, self.weight_shape, self.weight_shape[:1]

    def with_seed(self, seed):
        return replace(self, seed=seed)


@st.composite
def channel_counts(draw):
    """(C_in, C_out, groups): plain, grouped, or depthwise with a multiplier."""
    # Counts just off the multiples of the vector widths (4, 8, 16, 32 lanes) are where tails live.
    count = st.integers(1, 70) | st.sampled_from([1, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65])
    kind = draw(st.sampled_from(["plain", "plain", "grouped", "depthwise"]))
    if kind == "plain":
        return draw(count), draw(count), 1
    if kind == "depthwise":
        channels = draw(count)
        return channels, channels * draw(st.integers(1, 3)), channels
    groups = draw(st.integers(2, 5))
    return groups * draw(st.integers(1, 14)), groups * draw(st.integers(1, 14)), groups


@st.composite
def cases(draw, kernel_size=None, stride=None, dilation=None, channels=None, largest_batch=3):
    """A valid problem. Arguments that are given fix a pair (kernel size, stride, dilation) or a strategy."""
    in_channels, out_channels, groups = draw(channel_counts() if channels is None else channels)
    axes = st.integers(1, 7), st.integers(1, 7)
    kernel = kernel_size or draw(st.tuples(*axes))
    step = stride or draw(st.just((1, 1)) | st.tuples(st.integers(1, 3), st.integers(1, 3)))
    spread = dilation or draw(st.just((1, 1)) | st.tuples(st.integers(1, 3), st.integers(1, 3)))
    batch = draw(st.integers(1, largest_batch))
    padding = draw(st.tuples(*[st.tuples(st.integers(0, 4), st.integers(0, 4))] * 2))

    # Widths before heights: the vector tails of a row matter more than the number of rows.
    per_pixel = batch * out_channels * (in_channels // groups) * math.prod(kernel)
    size = [1, 1]
    for axis, limit in ((1, 40), (0, 20)):
        smallest = max(1, spread[axis] * (kernel[axis] - 1) + 1 - sum(padding[axis]))
        other = size[1] if axis == 0 else 1
        affordable = MULTIPLICATIONS // (per_pixel * other)
        size[axis] = draw(st.integers(smallest, max(smallest, min(limit, affordable))))
    return Case(
        x_shape=(batch, in_channels, *size),
        weight_shape=(out_channels, in_channels // groups, *kernel),
        stride=step,
        padding=padding,
        dilation=spread,
        groups=groups,
        seed=draw(st.integers(0, 2**32 - 1)),
    )


@st.composite
def ranked_cases(draw, rank):
    """A valid problem of any number of spatial axes, small along each."""
    in_channels, out_channels, groups = draw(channel_counts())
    kernel, step, spread = (
        draw(st.tuples(*[values] * rank))
        for values in (st.integers(1, 5), st.integers(1, 3), st.integers(1, 3))
    )
    padding = draw(st.tuples(*[st.tuples(st.integers(0, 4), st.integers(0, 4))] * rank))
    cost = out_channels * (in_channels // groups) * math.prod(kernel)
    size = []
    # The last axis first: its vector tails matter more than the number of rows or slices.
    for k, s, d, pads in reversed(tuple(zip(kernel, step, spread, padding, strict=True))):
        smallest = max(1, d * (k - 1) + 1 - sum(pads))
        affordable = s * MULTIPLICATIONS // cost // 3
        size.insert(0, draw(st.integers(smallest, max(smallest, min(30 // rank, affordable)))))
        cost *= (size[0] + sum(pads) - d * (k - 1) - 1) // s + 1
    return Case(
        x_shape=(draw(st.integers(1, 2)), in_channels, *size),
        weight_shape=(out_channels, in_channels // groups, *kernel),
        stride=step,
        padding=padding,
        dilation=spread,
        groups=groups,
        seed=draw(st.integers(0, 2**32 - 1)),
    )


@st.composite
def pointwise_cases(draw):
    """1×1 kernels of one group without padding: products of matrices."""
    count = st.integers(1, 70) | st.sampled_from([127, 128, 130, 255, 256])
    channels = st.tuples(count, count, st.just(1))
    return replace(draw(cases(kernel_size=(1, 1), channels=channels)), padding=((0, 0), (0, 0)))


@st.composite
def winograd_cases(draw):
    """Problems Winograd must take: more taps than the stride along an axis, in at most 16 blocks; or 1×1."""
    if draw(st.integers(0, 3)) == 0:
        return draw(pointwise_cases())
    taps = st.integers(1, 7)
    whole = st.just((3, 3)) | st.tuples(taps, taps).filter(lambda pair: pair != (1, 1))
    long = st.tuples(st.integers(1, 3), st.integers(8, 17)).map(
        lambda pair: pair[:: draw(st.sampled_from([1, -1]))]
    )
    if draw(st.booleans()):
        return draw(cases(kernel_size=draw(whole | long), stride=(1, 1)))
    stride = draw(st.just((2, 2)) | st.tuples(st.integers(1, 3), st.integers(1, 3)))
    strided = whole.filter(lambda pair: pair[0] > stride[0] or pair[1] > stride[1])
    return draw(cases(kernel_size=draw(strided), stride=stride))


def cases_for(algorithm):
    """Problems that an algorithm must support."""
    return winograd_cases() if algorithm == "winograd" else cases()


def _contiguous(x):
    return x.copy()


def _channels_last(x):
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def _fortran(x):
    return np.asfortranarray(x)


def _width_first(x):
    return np.ascontiguousarray(x.transpose(3, 1, 0, 2)).transpose(2, 1, 3, 0)


def _sliced(x):
    steps = (2, 3, 2, 3)
    big = np.full([s * n + 1 for s, n in zip(steps, x.shape, strict=True)], np.nan, x.dtype)
    view = big[tuple(slice(1, s * n + 1, s) for s, n in zip(steps, x.shape, strict=True))]
    view[...] = x
    return view


def _reversed(x):
    return x[::-1, ::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1, ::-1]


def _channels_last_reversed(x):
    return _channels_last(x[:, ::-1, :, ::-1])[:, ::-1, :, ::-1]


def _read_only(x):
    view = x.copy()
    view.flags.writeable = False
    return view


def _misaligned(x):
    buffer = np.zeros(x.nbytes + 1, np.uint8)
    view = buffer[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


def _off_by_one_element(x):
    buffer = np.zeros(x.size + 1, x.dtype)
    view = buffer[1:].reshape(x.shape)
    view[...] = x
    return view


def _byte_swapped(x):
    return x.astype(x.dtype.newbyteorder())


MEMORY_LAYOUTS = {
    "contiguous": _contiguous,
    "channels_last": _channels_last,
    "fortran": _fortran,
    "width_first": _width_first,
    "sliced": _sliced,
    "reversed": _reversed,
    "channels_last_reversed": _channels_last_reversed,
    "read_only": _read_only,
    "misaligned": _misaligned,
    "off_by_one_element": _off_by_one_element,
    "byte_swapped": _byte_swapped,
}
