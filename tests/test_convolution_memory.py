"""Arrays as they come: any strides, byte order and alignment in; any strides out; two channel orders."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastconv as fc
import strategies
from strategies import MEMORY_LAYOUTS
from support import ALGORITHMS, DTYPES, assert_same_bits

RNG = np.random.default_rng(3)
X = RNG.standard_normal((2, 13, 9, 11)).astype(np.float32)
WEIGHT = RNG.standard_normal((7, 13, 3, 3)).astype(np.float32)
BIAS = RNG.standard_normal(7).astype(np.float32)
Y_SHAPE = (2, 7, 9, 11)


def conv2d(x=X, weight=WEIGHT, bias=BIAS, **keywords):
    return fc.conv2d(x, weight, bias, **{"padding": 1, **keywords})


def channels_last(x):
    """The (N, H, W, C) view of an (N, C, H, W) array."""
    return x.transpose(0, 2, 3, 1)


def channels_first(x):
    """The (N, C, H, W) view of an (N, H, W, C) array."""
    return x.transpose(0, 3, 1, 2)


@pytest.mark.parametrize("memory", MEMORY_LAYOUTS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@settings(max_examples=10)
@given(data=st.data())
def test_views_equal_their_copies_bit_for_bit(algorithm, memory, data):
    case = data.draw(strategies.cases_for(algorithm))
    arrange = MEMORY_LAYOUTS[memory]
    # One thread: on a busy machine the second waits longer than it works; test_convolution has both.
    keywords = {"algorithm": algorithm, "num_threads": 1, **case.keywords}
    for dtype in DTYPES:
        x, weight, bias = case.normal(dtype)
        expected = fc.conv2d(x, weight, bias, **keywords)
        assert_same_bits(fc.conv2d(arrange(x), weight, bias, **keywords), expected)
        assert_same_bits(fc.conv2d(x, arrange(weight), bias, **keywords), expected)


@pytest.mark.parametrize("memory", MEMORY_LAYOUTS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_nhwc_views_equal_their_copies(algorithm, memory):
    x = MEMORY_LAYOUTS[memory](np.ascontiguousarray(channels_last(X)))
    y = conv2d(x, layout="NHWC", algorithm=algorithm)
    assert y.flags.c_contiguous
    assert_same_bits(channels_first(y), conv2d(algorithm=algorithm))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_broadcast_arguments(algorithm):
    """Zero strides: one image seen as two, one channel as thirteen, one tap as nine."""
    x = np.broadcast_to(X[:1, :1], X.shape)
    assert_same_bits(conv2d(x, algorithm=algorithm), conv2d(x.copy(), algorithm=algorithm))
    for weight in (WEIGHT[:1], WEIGHT[:, :1], WEIGHT[..., :1, :1]):
        view = np.broadcast_to(weight, WEIGHT.shape)
        assert_same_bits(
            conv2d(weight=view, algorithm=algorithm), conv2d(weight=view.copy(), algorithm=algorithm)
        )


@pytest.mark.parametrize("strides", [None, (1, -1), (-2, 1)])
def test_bias_of_any_strides(strides):
    for view in (BIAS[::-1], np.repeat(BIAS, 3)[::3], np.broadcast_to(BIAS[:1], 7), BIAS.astype(">f4")):
        assert_same_bits(conv2d(bias=view), conv2d(bias=np.array(view, np.float32)))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_memory_format_follows_the_input(algorithm):
    y = conv2d(algorithm=algorithm)
    assert y.flags.c_contiguous
    assert y.shape == Y_SHAPE
    last = conv2d(MEMORY_LAYOUTS["channels_last"](X), algorithm=algorithm)
    assert channels_last(last).flags.c_contiguous
    assert_same_bits(last, y)
    other = conv2d(MEMORY_LAYOUTS["width_first"](X), algorithm=algorithm)
    assert other.flags.c_contiguous


def test_memory_format_goes_through_a_chain_of_layers():
    weight = np.ones((13, 13, 3, 3), np.float32)
    y = MEMORY_LAYOUTS["channels_last"](X)
    for _ in range(3):
        y = fc.conv2d(y, weight, padding=1)
    assert channels_last(y).flags.c_contiguous


@pytest.mark.parametrize("writeable", [True, False])
@pytest.mark.parametrize("result_is_own", [True])
def test_result_is_a_new_array(writeable, result_is_own):
    x = X.copy()
    x.flags.writeable = writeable
    y = conv2d(x)
    assert y.flags.writeable
    assert not np.shares_memory(y, x)


@pytest.mark.parametrize("memory", sorted(set(MEMORY_LAYOUTS) - {"read_only", "misaligned", "byte_swapped"}))
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_out_of_any_strides(algorithm, memory):
    expected = conv2d(algorithm=algorithm, activation="relu")
    out = MEMORY_LAYOUTS[memory](np.full(Y_SHAPE, np.nan, np.float32))
    assert conv2d(algorithm=algorithm, activation="relu", out=out) is out
    assert_same_bits(out, expected)
    out = MEMORY_LAYOUTS[memory](np.full((2, 9, 11, 7), np.nan, np.float32))
    x = channels_last(X)
    assert conv2d(x, layout="NHWC", algorithm=algorithm, activation="relu", out=out) is out
    assert_same_bits(channels_first(out), expected)


def test_out_between_other_data_leaves_it_alone():
    big = np.full((4, 9, 11, 13), 77, np.float32)
    out = big[1:3, 1:-1, 2:-2, 2:-2]
    y = fc.conv2d(X, WEIGHT, out=out)
    assert y is out
    big[1:3, 1:-1, 2:-2, 2:-2] = 77
    np.testing.assert_array_equal(big, 77)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(
    ("out", "error", "contained"),
    [
        (np.empty((2, 7, 9, 10), np.float32), ValueError, "(2, 7, 9, 10)"),
        (np.empty((7, 9, 11), np.float32), ValueError, "(7, 9, 11)"),
        (np.empty(Y_SHAPE, np.float64), TypeError, "float64"),
        (np.empty(Y_SHAPE, np.int32), TypeError, "int32"),
        (np.empty(Y_SHAPE, ">f4"), TypeError, ">f4"),
        (MEMORY_LAYOUTS["read_only"](np.empty(Y_SHAPE, np.float32)), ValueError, "read-only"),
        (MEMORY_LAYOUTS["misaligned"](np.empty(Y_SHAPE, np.float32)), ValueError, "aligned"),
        ([[1.0]], TypeError, "list"),
    ],
    ids=["shape", "rank", "float64", "int32", "byte order", "read-only", "misaligned", "list"],
)
def test_out_refused(out, error, contained, layout):
    x = X
    if layout == "NHWC":
        x = channels_last(X)
        if getattr(out, "shape", None) == Y_SHAPE:
            out = channels_last(out)
    with pytest.raises(error, match="^out ") as caught:
        conv2d(x, layout=layout, out=out)
    assert contained in str(caught.value)


def test_out_that_repeats_its_elements_is_refused():
    out = np.lib.stride_tricks.as_strided(np.empty((1, 7, 9, 11), np.float32), Y_SHAPE, (0, 396, 44, 4))
    with pytest.raises(ValueError, match="^out "):
        conv2d(out=out)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_out_overlapping_an_argument(algorithm):
    """Either the right answer or a refusal; never a convolution of half-overwritten pixels."""
    weight = WEIGHT[:, :7]
    buffer = RNG.standard_normal((3, 7, 9, 11)).astype(np.float32)
    expected = fc.conv2d(buffer[:2].copy(), weight, padding=1, algorithm=algorithm)
    for out in (buffer[:2], buffer[1:], buffer[1::-1]):
        scratch = buffer.copy()
        offset = (out.__array_interface__["data"][0] - buffer.__array_interface__["data"][0]) // 4
        view = np.lib.stride_tricks.as_strided(scratch.ravel()[offset:], out.shape, out.strides)
        try:
            y = fc.conv2d(scratch[:2], weight, padding=1, algorithm=algorithm, out=view)
        except ValueError as error:
            refusal = str(error)
        else:
            assert_same_bits(y, expected)
            continue
        assert refusal.startswith("out ")
        assert_same_bits(scratch, buffer)
