"""conv2d and plan_conv2d refuse what they cannot compute, before computing, in words that help."""

import functools
import math

import numpy as np
import pytest

import fastconv as fc
from support import ALGORITHMS, assert_same_bits

X = np.ones((2, 6, 9, 11), np.float32)
WEIGHT = np.ones((4, 6, 3, 5), np.float32)
BIAS = np.ones(4, np.float32)


def conv2d(x=X, weight=WEIGHT, bias=None, **keywords):
    return fc.conv2d(x, weight, bias, **keywords)


def plan(x=X, weight=WEIGHT, bias=None, **keywords):
    return fc.plan_conv2d(x.shape, weight, bias, **keywords)


REFUSED = {
    # name: (error, start of the message, contained in it, arguments); plan_conv2d refuses them alike
    "x rank 3": (ValueError, ("x", "input"), "(6, 9, 11)", {"x": X[0]}),
    "x rank 5": (ValueError, ("x", "input"), "(1, 2, 6, 9, 11)", {"x": X[None]}),
    "x rank 0": (ValueError, ("x", "input"), "()", {"x": X[0, 0, 0, 0]}),
    "weight rank": (ValueError, "weight", "(6, 3, 5)", {"weight": WEIGHT[0]}),
    "channels": (ValueError, "weight", "5", {"weight": WEIGHT[:, :5]}),
    "no filters": (ValueError, "weight", "(0, 6, 3, 5)", {"weight": WEIGHT[:0]}),
    "empty filter": (ValueError, "weight", "(4, 6, 0, 5)", {"weight": WEIGHT[:, :, :0]}),
    "empty input": (ValueError, ("x", "input"), "(2, 6, 0, 11)", {"x": X[:, :, :0]}),
    "no channels": (ValueError, ("x", "input", "weight"), "0", {"x": X[:, :0], "weight": WEIGHT[:, :0]}),
    "bias length": (ValueError, "bias", "(3,)", {"bias": BIAS[:3]}),
    "bias rank": (ValueError, "bias", "(1, 4)", {"bias": BIAS[None]}),
    "bias scalar": (ValueError, "bias", "", {"bias": BIAS[0]}),
    "bias ints": (TypeError, "bias", "int64", {"bias": np.ones(4, np.int64)}),
    "weight ints": (TypeError, "weight", "int32", {"weight": WEIGHT.astype(np.int32)}),
    "weight bools": (TypeError, "weight", "bool", {"weight": WEIGHT > 0}),
    "weight complex": (TypeError, "weight", "complex64", {"weight": WEIGHT.astype(np.complex64)}),
    "weight objects": (TypeError, "weight", "object", {"weight": WEIGHT.astype(object)}),
    "weight None": (TypeError, "weight", "", {"weight": None}),
    "stride 0": (ValueError, "stride", "0", {"stride": 0}),
    "stride rank": (ValueError, "stride", "(1, 2, 3)", {"stride": (1, 2, 3)}),
    "stride float": (TypeError, "stride", "2.0", {"stride": 2.0}),
    "stride bool": (TypeError, "stride", "True", {"stride": True}),
    "dilation 0": (ValueError, "dilation", "0", {"dilation": 0}),
    "dilation overflow": (ValueError, "weight", str(2**62), {"dilation": 2**62}),
    "padding negative": (ValueError, "padding", "-1", {"padding": -1}),
    "padding typo": (ValueError, "padding", "'smae'", {"padding": "smae"}),
    "padding overflow": (ValueError, ("padding", "input", "x"), "", {"padding": 2**60}),
    "groups 0": (ValueError, "groups", "0", {"groups": 0}),
    "groups 4": (ValueError, "groups", "4", {"groups": 4, "weight": WEIGHT[:, :1]}),
    "kernel too large": (ValueError, "weight", "12", {"weight": np.ones((4, 6, 1, 12), np.float32)}),
    "algorithm typo": (ValueError, "algorithm", "'windograd'", {"algorithm": "windograd"}),
    "algorithm None": ((TypeError, ValueError), "algorithm", "None", {"algorithm": None}),
    "rtol list": (TypeError, "rtol", "[1]", {"rtol": [1]}),
    "rtol text": (TypeError, "rtol", "'1e-6'", {"rtol": "1e-6"}),
    "activation list": (ValueError, "activation", "['relu']", {"activation": ["relu"]}),
    "padding bools": (TypeError, "padding", "True", {"padding": (True, 1)}),
    "groups bool": (TypeError, "groups", "True", {"groups": True}),
    "activation typo": (ValueError, "activation", "'rleu'", {"activation": "rleu"}),
    "layout typo": (ValueError, "layout", "'NWHC'", {"layout": "NWHC"}),
    "padding_mode typo": (ValueError, "padding_mode", "'zero'", {"padding_mode": "zero"}),
    "threads 0": (ValueError, "num_threads", "0", {"num_threads": 0}),
    "threads negative": (ValueError, "num_threads", "-1", {"num_threads": -1}),
    "threads float": (TypeError, "num_threads", "", {"num_threads": 2.0}),
    "threads bool": ((TypeError, ValueError), "num_threads", "True", {"num_threads": True}),
    "NHWC channels": (ValueError, "weight", "11", {"layout": "NHWC"}),
}


@pytest.mark.parametrize("call", [conv2d, plan])
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, call):
    error, start, contained, arguments = REFUSED[name]
    with pytest.raises(error) as caught:
        call(**arguments)
    message = str(caught.value)
    assert message.startswith(start), message
    assert contained in message


@pytest.mark.parametrize(
    "dtype",
    ["int8", "uint8", "int32", "int64", "bool", "complex64", "complex128", "longdouble", "object", "U1"],
)
def test_dtypes_that_are_no_floats_are_refused(dtype):
    with pytest.raises(TypeError, match=r"^x .*astype"):
        conv2d(X.astype(dtype))


def test_something_that_is_no_array_is_refused():
    for wrong in (None, "image", {"x": 1}, object()):
        with pytest.raises(TypeError, match=r"^x "):
            conv2d(wrong)


def test_message_shows_expectation_and_value():
    with pytest.raises(ValueError, match="^stride must be an integer >= 1.*got 0$"):
        conv2d(stride=0)


@pytest.mark.parametrize("scalar", [np.int8, np.int32, np.int64, np.uint8, np.uint64])
def test_numpy_integers_are_integers(scalar):
    two, one = scalar(2), scalar(1)
    y = conv2d(stride=two, padding=(one, two), dilation=(one, one), groups=one, num_threads=one)
    assert_same_bits(y, conv2d(stride=2, padding=(1, 2)))


def test_sequences_of_any_kind_are_taken():
    expected = conv2d(stride=(2, 1), padding=((0, 1), (2, 3)))
    assert_same_bits(conv2d(stride=[2, 1], padding=[[0, 1], [2, 3]]), expected)
    assert_same_bits(conv2d(stride=np.array([2, 1]), padding=np.array([[0, 1], [2, 3]])), expected)


def test_nested_lists_are_arrays():
    x = [[[[1.0, 2.0], [3.0, 4.0]]]]
    y = fc.conv2d(x, [[[[2.0]]]])
    assert y.dtype == np.float64
    assert y.tolist() == [[[[2.0, 4.0], [6.0, 8.0]]]]


@pytest.mark.parametrize(
    ("x_dtype", "weight_dtype", "expected"),
    [
        ("float32", "float32", "float32"),
        ("float64", "float64", "float64"),
        ("float32", "float64", "float64"),
        ("float64", "float32", "float64"),
        ("float16", "float16", "float32"),
        ("float16", "float32", "float32"),
        ("float16", "float64", "float64"),
        (">f4", "<f4", "float32"),
    ],
)
def test_dtype_rule(x_dtype, weight_dtype, expected):
    rng = np.random.default_rng(1)
    x = rng.standard_normal(X.shape).astype(x_dtype)
    weight = rng.standard_normal(WEIGHT.shape).astype(weight_dtype)
    y = conv2d(x, weight)
    assert y.dtype == np.dtype(expected)
    assert y.dtype.isnative
    assert_same_bits(y, conv2d(x.astype(expected), weight.astype(expected)))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("x_stride", [1, 3, 2**40])
def test_steps_on_axes_of_one_element(algorithm, x_stride):
    """A view's stride along an axis of length 1 is never taken, so it may be anything (pytorch#195394)."""
    x = np.arange(24, dtype=np.float32).reshape(1, 4, 1, 6)
    odd = np.lib.stride_tricks.as_strided(x, x.shape, (4 * x_stride, 24, -4 * x_stride, 4), writeable=False)
    weight = np.arange(36, dtype=np.float32).reshape(1, 4, 3, 3)
    keywords = {"padding": 1, "algorithm": algorithm}
    assert_same_bits(fc.conv2d(odd, weight, **keywords), fc.conv2d(x, weight, **keywords))
    weight = weight[:, :, :1, :1]
    y = fc.conv2d(odd, weight, stride=(7, 5), algorithm=algorithm)
    assert_same_bits(y, fc.conv2d(x, weight, stride=(7, 5), algorithm=algorithm))


@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name != "winograd"])
@pytest.mark.parametrize("padding", [((5, 0), (0, 3)), ((1, 2), (2, 1)), ((0, 7), (7, 0))])
def test_odd_depthwise_padding(algorithm, padding):
    """CVE-2021-41209, CVE-2022-21741: depthwise, padding wider than the kernel, stride beyond it."""
    x = np.ones((1, 3, 2, 2), np.float32)
    weight = np.ones((3, 1, 2, 2), np.float32)
    y = fc.conv2d(x, weight, stride=(3, 4), padding=padding, groups=3, algorithm=algorithm)
    padded = np.pad(x, ((0, 0), (0, 0), *padding))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2, 2), (2, 3))[:, :, ::3, ::4]
    np.testing.assert_allclose(y, windows.sum((-2, -1)), atol=1e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_batch_of_zero(algorithm):
    x = np.empty((0, 6, 9, 11), np.float32)
    weight = np.ones((4, 6, 3, 3), np.float32)
    y = fc.conv2d(x, weight, padding=1, bias=BIAS, activation="relu", algorithm=algorithm)
    assert (y.shape, y.dtype) == ((0, 4, 9, 11), np.float32)
    out = np.empty((0, 4, 9, 11), np.float32)
    assert fc.conv2d(x, weight, padding=1, algorithm=algorithm, out=out) is out
    plan = fc.plan_conv2d(x.shape, weight, padding=1, algorithm=algorithm)
    assert plan(x).shape == out.shape


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_arguments_are_not_changed(algorithm):
    rng = np.random.default_rng(2)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in ((2, 6, 9, 11), (4, 6, 3, 3), (4,))]
    copies = [array.copy() for array in arrays]
    fc.conv2d(*arrays, padding=1, activation="relu", algorithm=algorithm)
    for array, copy in zip(arrays, copies, strict=True):
        assert_same_bits(array, copy)


def overlapping(shape):
    """Arrays of a shape, some of whose indices are one place in memory."""
    memory = np.zeros(1 << 12, np.float32)
    step = memory.itemsize
    contiguous = [step * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    for axis in range(len(shape)):
        strides = list(contiguous)
        strides[axis] = 0
        yield np.lib.stride_tricks.as_strided(memory, shape, strides)
        strides[axis] = contiguous[axis] - step if axis < len(shape) - 1 else 2 * step
        yield np.lib.stride_tricks.as_strided(memory, shape, strides)


def test_an_out_that_overlaps_itself_is_refused():
    x, weight = np.ones((2, 3, 6, 6), np.float32), np.ones((4, 3, 3, 3), np.float32)
    plan = fc.plan_conv2d(x.shape, weight)
    transposed = fc.functional.plan_conv_transpose2d(x.shape, weight.swapaxes(0, 1), padding=2)
    for out in overlapping((2, 4, 4, 4)):
        for call in (plan, transposed, functools.partial(fc.conv2d, weight=weight)):
            with pytest.raises(ValueError, match="^out must not repeat its elements"):
                call(x, out=out)
    # Strides that interlock without meeting: 0, 3 and 0, 2, 4.
    memory = np.zeros(64, np.float32)
    interlocked = np.lib.stride_tricks.as_strided(memory, (1, 1, 2, 3), (0, 0, 12, 8))
    y = fc.conv2d(x[:1, :1, :4, :5], weight[:1, :1], out=interlocked)
    np.testing.assert_array_equal(y, np.full((1, 1, 2, 3), 9))
