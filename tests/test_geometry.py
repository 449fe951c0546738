"""ConvGeometry: shape arithmetic, named paddings, and the refusal of everything that is no convolution."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
import strategies
from fastconv.geometry import ConvGeometry

SHAPES = (2, 6, 9, 11), (4, 3, 3, 5)


def create(input_shape=SHAPES[0], weight_shape=SHAPES[1], **keywords):
    return ConvGeometry.create(input_shape, weight_shape, **{"groups": 2, **keywords})


@given(strategies.cases())
def test_shapes_and_counts(case):
    described = ConvGeometry.create(case.x_shape, case.weight_shape, dtype=np.float64, **case.keywords)
    size = reference.output_size(
        case.x_shape[2:], case.weight_shape[2:], case.stride, case.padding, case.dilation
    )
    assert described.output_size == size
    assert described.output_shape == (case.x_shape[0], case.weight_shape[0], *size)
    assert (described.input_shape, described.weight_shape) == (case.x_shape, case.weight_shape)
    assert described.multiplications == math.prod(described.output_shape) * case.reduction
    assert described.input_bytes == 8 * math.prod(case.x_shape)
    assert described.weight_bytes == 8 * math.prod(case.weight_shape)
    assert described.output_bytes == 8 * math.prod(described.output_shape)
    assert described.spatial_rank == 2
    assert described.padding == case.padding


@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_same_padding_keeps_the_size_over_the_stride(size, kernel, stride, dilation):
    described = ConvGeometry.create(
        (1, 1, *size), (1, 1, *kernel), stride=stride, dilation=dilation, padding="same"
    )
    assert described.output_size == tuple(math.ceil(n / s) for n, s in zip(size, stride, strict=True))
    assert described.padding == reference.explicit_padding("same", size, kernel, stride, dilation)
    assert all(0 <= high - low <= 1 for low, high in described.padding)


@pytest.mark.parametrize(
    ("padding", "expected"),
    [
        ("valid", ((0, 0), (0, 0))),
        ("full", ((4, 4), (12, 12))),
        ("same", ((2, 2), (6, 6))),
        (3, ((3, 3), (3, 3))),
        (np.int32(3), ((3, 3), (3, 3))),
        ((1, 2), ((1, 1), (2, 2))),
        ([1, 2], ((1, 1), (2, 2))),
        (np.array([1, 2]), ((1, 1), (2, 2))),
        (((1, 2), (3, 4)), ((1, 2), (3, 4))),
        ([(1, 2), [3, 4]], ((1, 2), (3, 4))),
        (np.array([[1, 2], [3, 4]]), ((1, 2), (3, 4))),
    ],
)
def test_padding_forms(padding, expected):
    assert create((2, 6, 20, 20), padding=padding, dilation=(2, 3)).padding == expected


def test_is_a_value():
    one, other = create(stride=(1, 2)), create(list(SHAPES[0]), np.array(SHAPES[1]), stride=[1, np.int64(2)])
    assert one == other
    assert hash(one) == hash(other)
    assert one != create(stride=(2, 1))
    with pytest.raises(AttributeError):
        one.stride = (1, 1)


def test_float16_is_described_as_float32():
    assert create(dtype=np.float16).dtype == np.float32


def test_batch_of_zero():
    described = create((0, 6, 9, 11))
    assert described.output_shape == (0, 4, 7, 7)
    assert described.multiplications == 0


BIG = 2**40
REFUSED = {
    # name: (error, what the message starts with, what it contains, arguments)
    "input rank 3": (ValueError, ("input", "weight"), "(4, 3, 3, 5)", {"input_shape": (6, 9, 11)}),
    "input rank 1": (ValueError, "input", "(6,)", {"input_shape": (6,)}),
    "weight rank": (ValueError, "weight", "(4, 3, 3)", {"weight_shape": (4, 3, 3)}),
    "weight rank 5": (ValueError, "weight", "(4, 3, 3, 3, 3)", {"weight_shape": (4, 3, 3, 3, 3)}),
    "channels": (ValueError, "weight", "5", {"weight_shape": (4, 5, 3, 5)}),
    "groups divide in": (ValueError, "groups", "4", {"groups": 4}),
    "groups divide out": (ValueError, "groups", "3", {"groups": 3, "weight_shape": (4, 2, 3, 5)}),
    "groups 0": (ValueError, "groups", "0", {"groups": 0}),
    "groups negative": (ValueError, "groups", "-2", {"groups": -2}),
    "groups float": (TypeError, "groups", "2.0", {"groups": 2.0}),
    "groups bool": (TypeError, "groups", "True", {"groups": True, "weight_shape": (4, 6, 3, 5)}),
    "stride 0": (ValueError, "stride", "0", {"stride": 0}),
    "stride 0 on one axis": (ValueError, "stride", "0", {"stride": (1, 0)}),
    "stride negative": (ValueError, "stride", "-1", {"stride": -1}),
    "stride float": (TypeError, "stride", "1.0", {"stride": 1.0}),
    "stride float on one axis": (TypeError, "stride", "1.0", {"stride": (1.0, 1)}),
    "stride bool": (TypeError, "stride", "True", {"stride": True}),
    "stride bool on one axis": (TypeError, "stride", "True", {"stride": (1, True)}),
    "stride NumPy bool": (TypeError, "stride", "True", {"stride": np.True_}),
    "stride string": (TypeError, "stride", "'same'", {"stride": "same"}),
    "stride None": (TypeError, "stride", "None", {"stride": None}),
    "stride too many": (ValueError, "stride", "(1, 1, 1)", {"stride": (1, 1, 1)}),
    "stride empty": (ValueError, "stride", "()", {"stride": ()}),
    "stride nested": (TypeError, "stride", "(1, 1)", {"stride": ((1, 1), 1)}),
    "stride dict": (TypeError, "stride", "{", {"stride": {0: 1, 1: 1}}),
    "dilation 0": (ValueError, "dilation", "0", {"dilation": 0}),
    "dilation negative": (ValueError, "dilation", "-1", {"dilation": (1, -1)}),
    "dilation float": (TypeError, "dilation", "1.5", {"dilation": 1.5}),
    "dilation rank": (ValueError, "dilation", "(2, 2, 2)", {"dilation": (2, 2, 2)}),
    "padding negative": (ValueError, "padding", "-1", {"padding": -1}),
    "padding negative on one side": (ValueError, "padding", "-1", {"padding": ((0, -1), (0, 0))}),
    "padding typo": (ValueError, "padding", "'sane'", {"padding": "sane"}),
    "padding upper case": (ValueError, "padding", "'SAME'", {"padding": "SAME"}),
    "padding float": (TypeError, "padding", "1.0", {"padding": 1.0}),
    "padding bool": (TypeError, "padding", "True", {"padding": True}),
    "padding None": (TypeError, "padding", "None", {"padding": None}),
    "padding four numbers": (ValueError, "padding", "(1, 1, 1, 1)", {"padding": (1, 1, 1, 1)}),
    "padding one pair": (ValueError, "padding", "(1, 1)", {"padding": ((1, 1),)}),
    "padding triples": (ValueError, "padding", "(1, 1, 1)", {"padding": ((1, 1, 1), (1, 1, 1))}),
    "padding pair and int": ((TypeError, ValueError), "padding", "1", {"padding": ((1, 1), 1)}),
    "kernel too large": (ValueError, "weight", "10", {"weight_shape": (4, 3, 10, 5)}),
    "dilated kernel too large": (ValueError, "weight", "11", {"dilation": (5, 1)}),
    "kernel with no rows": (ValueError, "weight", "(4, 3, 0, 5)", {"weight_shape": (4, 3, 0, 5)}),
    "no filters": (ValueError, "weight", "(0, 3, 3, 5)", {"weight_shape": (0, 3, 3, 5)}),
    "no channels": (
        ValueError,
        ("input", "weight"),
        "0",
        {"input_shape": (2, 0, 9, 11), "weight_shape": (4, 0, 3, 5)},
    ),
    "no pixels": (ValueError, "input", "(2, 6, 0, 11)", {"input_shape": (2, 6, 0, 11)}),
    "no pixels, padded": (ValueError, "input", "(2, 6, 0, 11)", {"input_shape": (2, 6, 0, 11), "padding": 4}),
    "negative size": (ValueError, "input", "-9", {"input_shape": (2, 6, -9, 11)}),
    "negative batch": (ValueError, "input", "-1", {"input_shape": (-1, 6, 9, 11)}),
    "float size": (TypeError, "input", "9.0", {"input_shape": (2, 6, 9.0, 11)}),
    "size is a string": (TypeError, "input", "'9'", {"input_shape": (2, 6, "9", 11)}),
    "shape is a number": (TypeError, "input", "9", {"input_shape": 9}),
    "overflow of the dilated extent": (ValueError, "weight", str(BIG), {"dilation": BIG}),
    "overflow of 64-bit extent": (ValueError, "dilation", str(2**63), {"dilation": 2**63}),
    "overflow of the padded input": (ValueError, ("padding", "input"), "", {"padding": 2**61}),
    "overflow of the input": (ValueError, "input", "", {"input_shape": (2, 6, BIG, BIG)}),
    "overflow of the weight": (
        ValueError,
        ("weight", "input"),
        "",
        {"weight_shape": (BIG, 3, 2**10, 2**10), "input_shape": (2, 6, 2**11, 2**11)},
    ),
    "overflow of the batch": (ValueError, "input", "", {"input_shape": (2**62, 6, 9, 11)}),
    "integer dtype": (TypeError, "dtype", "int32", {"dtype": np.int32}),
    "bool dtype": (TypeError, "dtype", "bool", {"dtype": bool}),
    "complex dtype": (TypeError, "dtype", "complex64", {"dtype": np.complex64}),
    "long double": (TypeError, "dtype", np.dtype(np.longdouble).name, {"dtype": np.longdouble}),
    "object dtype": (TypeError, "dtype", "object", {"dtype": object}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    error, start, contained, arguments = REFUSED[name]
    with pytest.raises(error) as caught:
        create(**arguments)
    message = str(caught.value)
    assert message.startswith(start), message
    assert contained in message


def test_an_accepted_problem_does_not_let_an_equal_looking_one_in():
    """1 == True == 1.0, so a cache in front of the checks could take one for the other."""
    assert create(stride=(1, 1), padding=((1, 1), (1, 1))).stride == (1, 1)
    for wrong in ((True, 1), (1.0, 1), (1, 1.0)):
        with pytest.raises(TypeError, match="^stride"):
            create(stride=wrong, padding=((1, 1), (1, 1)))
        with pytest.raises(TypeError, match="^padding"):
            create(stride=(1, 1), padding=(wrong, (1, 1)))
    with pytest.raises(TypeError, match="^input"):
        create((2, 6, 9.0, 11), stride=(1, 1), padding=((1, 1), (1, 1)))


def test_large_dilation_of_one_tap_reads_one_pixel():
    """A 1×1 kernel has no extent to overflow, whatever the dilation (pytorch#9404 gone the other way)."""
    assert create(weight_shape=(4, 3, 1, 1), dilation=BIG).output_size == (9, 11)


def test_large_stride_gives_one_pixel():
    assert create(stride=BIG).output_size == (1, 1)


def test_module_needs_no_kernels_to_reason_about_huge_problems():
    """Describing a problem of terabytes allocates nothing."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "from fastconv.geometry import ConvGeometry\n"
        "print(ConvGeometry.create((1, 64, 1 << 18, 1 << 18), (64, 64, 3, 3), padding=1).multiplications)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 64 * 64 * 9 * 2**36
