"""Padding, and channels into space and back, against NumPy: every level, memory format, thread count."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastconv as fc
from fastconv import functional, kernels
from support import DTYPES, LEVELS, assert_same_bits

RNG = np.random.default_rng(11)
NUMPYS = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
# Of an array's axes, the first before the last.
PADS = [
    ((9, 4), ((1, 2), (3, 1))),
    ((70,), ((2, 5),)),
    ((2, 3, 5, 40), ((0, 0), (0, 0), (1, 2), (3, 0))),
    ((2, 3, 6, 7), ((0, 0), (2, 1), (0, 0), (1, 4))),
    ((2, 5, 4, 3, 6), ((1, 1), (2, 1), (1, 2), (2, 2), (3, 3))),
    ((3, 4, 5, 2), ((2, 0), (0, 0), (0, 0), (0, 1))),
    ((1, 40, 6, 5), ((0, 0), (0, 0), (2, 2), (4, 4))),
]


def formats(x):
    yield x
    yield np.moveaxis(np.ascontiguousarray(np.moveaxis(x, min(1, x.ndim - 1), -1)), -1, min(1, x.ndim - 1))
    yield np.ascontiguousarray(x[::-1])[::-1]
    yield x.astype(x.dtype.newbyteorder())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", NUMPYS)
@pytest.mark.parametrize(("shape", "pairs"), PADS)
def test_padding_is_numpys(shape, pairs, mode, dtype, level):
    x = RNG.standard_normal(shape).astype(dtype)
    if mode == "reflect":
        pairs = [tuple(min(a, n - 1) for a in pair) for pair, n in zip(pairs, shape, strict=True)]
    if mode == "circular":
        pairs = [tuple(min(a, n) for a in pair) for pair, n in zip(pairs, shape, strict=True)]
    options = {"constant_values": -1.5} if mode == "constant" else {}
    expected = np.pad(x, pairs, NUMPYS[mode], **options)
    amounts = [amount for pair in reversed(pairs) for amount in pair]
    with kernels.use(level):
        for form, count in itertools.product(formats(x), (1, 2)):
            y = functional.pad(form, amounts, mode, -1.5 if mode == "constant" else 0, num_threads=count)
            assert_same_bits(np.ascontiguousarray(y), expected)
            assert y.dtype == dtype


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), mode=st.sampled_from([*NUMPYS]), width=st.integers(1, 70))
def test_rows_of_any_width_and_border_are_numpys(data, mode, width, dtype, level):
    """Whole vectors at a row's ends are shuffled where they can be."""
    most = {"reflect": width - 1, "circular": width}.get(mode, 40)
    low, high = (data.draw(st.integers(0, min(most, 40)), name) for name in ("low", "high"))
    x = RNG.standard_normal((3, 2, width)).astype(dtype)
    x[1] = np.nan
    pad, expected = (low, high, 1, 0), np.pad(x, ((0, 0), (1, 0), (low, high)), NUMPYS[mode])
    if mode == "reflect":
        pad, expected = (low, high), np.pad(x, ((0, 0), (0, 0), (low, high)), "reflect")
    with kernels.use(level):
        assert_same_bits(functional.pad(x, pad, mode), expected)
        if mode == "constant":
            cut = data.draw(st.integers(0, width - 1), "cut")
            assert_same_bits(functional.pad(x, (low, -cut)), functional.pad(x[..., : width - cut], (low, 0)))
            assert_same_bits(functional.pad(x, (-cut, high)), functional.pad(x[..., cut:], (0, high)))


def test_large_images_are_padded_by_all_threads():
    x = RNG.standard_normal((2, 8, 61, 67)).astype(np.float32)
    for mode, count in itertools.product(NUMPYS, (1, 2)):
        expected = np.pad(x, ((0, 0), (0, 0), (2, 1), (3, 4)), NUMPYS[mode])
        assert_same_bits(functional.pad(x, (3, 4, 2, 1), mode, num_threads=count), expected)


@pytest.mark.parametrize("size", [2, 1000])
def test_a_wrong_number_of_threads_is_refused(size):
    x = np.zeros((size, size), np.float32)
    for pad in ((1, 1), (0, 0)):
        with pytest.raises(ValueError, match="^num_threads must be"):
            functional.pad(x, pad, num_threads=0)
        with pytest.raises(ValueError, match="^num_threads must be"):
            functional.pad_grad(functional.pad(x, pad), x.shape, pad, num_threads=0)


@pytest.mark.parametrize("pad", [(-1, 3), (-2, -2), (4, -5), (-3, -3, 0, 2), (0, 0, -6, 6), (2, 2, -3, -3)])
def test_negative_padding_cuts(pad):
    x = RNG.standard_normal((2, 3, 6, 6)).astype(np.float32)
    pairs = [(0, 0)] * 4
    for axis, pair in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        pairs[3 - axis] = pair
    cut = tuple(slice(max(-low, 0), n - max(-high, 0)) for n, (low, high) in zip(x.shape, pairs, strict=True))
    expected = np.pad(x[cut], [tuple(max(amount, 0) for amount in pair) for pair in pairs])
    assert_same_bits(functional.pad(x, pad), expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["CRD", "DCR"])
@pytest.mark.parametrize(
    ("shape", "factor"),
    [((2, 12, 5, 37), 2), ((1, 27, 4, 18), 3), ((2, 8, 1, 1), 2), ((1, 16, 3, 2), 4), ((3, 5, 2, 7), 1),
     ((2, 64, 33, 35), 2), ((1, 4, 1, 50), 2)],
)  # fmt: skip
def test_pixel_shuffle_and_back(shape, factor, mode, dtype, level):
    x = RNG.standard_normal(shape).astype(dtype)
    batch, channels, height, width = shape
    split, order = (channels // factor**2, factor, factor), (0, 1, 4, 2, 5, 3)
    if mode == "DCR":
        split, order = (factor, factor, channels // factor**2), (0, 3, 4, 1, 5, 2)
    expected = x.reshape(batch, *split, height, width).transpose(order)
    expected = expected.reshape(batch, channels // factor**2, height * factor, width * factor)
    before = fc.get_num_threads()
    with kernels.use(level):
        for form, count in itertools.product(formats(x), (1, 2)):
            fc.set_num_threads(count)
            y = functional.pixel_shuffle(form, factor, mode=mode)
            assert_same_bits(np.ascontiguousarray(y), expected)
            assert_same_bits(np.ascontiguousarray(functional.pixel_unshuffle(y, factor, mode=mode)), x)
    fc.set_num_threads(before)
