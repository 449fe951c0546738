"""Receptive fields: by arithmetic against what inputs move the output, in 1-D to 3-D; and from gradients."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastconv as fc
from fastconv import nn
from networks import branched_network, small_network


class Taps(nn.Layer):
    """A layer of any number of axes that declares a field and has no mathematics."""

    def __init__(self, kernel, stride=1, padding=0, rank=2):
        super().__init__()
        self.field = nn.Field(*((value,) * rank for value in (kernel, stride, padding)))

    def output_shape(self, *input_shapes):
        return input_shapes[0]

    @property
    def receptive_field(self):
        return self.field


def chain(*layers):
    return nn.Sequential(*layers)


def enlarging(kernel, stride, padding, dilation=1, rank=2):
    """The field of a transposed convolution, as nn.Field describes it."""
    reach = dilation * (kernel - 1)
    return Taps(Fraction(reach, stride) + 1, Fraction(1, stride), Fraction(reach - padding, stride), rank)


def test_sizes_from_the_literature():
    vgg = [2, 2, 3, 3, 3]
    layers = []
    for convolutions in vgg:
        layers += [nn.Conv2d(1, 1, 3, padding=1) for _ in range(convolutions)] + [nn.MaxPool2d(2)]
    assert nn.receptive_field(chain(*layers)).size == (212, 212)  # Araujo et al. 2019, VGG-16
    alexnet = chain(
        Taps(11, 4, 2), Taps(3, 2), Taps(5, 1, 2), Taps(3, 2), Taps(3, 1, 1), Taps(3, 1, 1),
        Taps(3, 1, 1), Taps(3, 2),
    )  # fmt: skip
    size, stride, offset, _ = nn.receptive_field(alexnet)
    assert (size, stride) == ((195, 195), (32, 32))  # ibid., AlexNet v2 without its padding's shift
    assert offset == (-2 - 2 * 8 - 3 * 16, -2 - 2 * 8 - 3 * 16)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_any_number_of_axes(rank):
    model = chain(Taps(3, 2, 1, rank), nn.ReLU(), Taps(5, 1, 2, rank))
    field = nn.receptive_field(model)
    assert field == ((11,) * rank, (2,) * rank, (-5,) * rank, False)
    assert str(field) == "×".join(["11"] * rank)
    assert list(nn.receptive_fields(model)) == ["0", "1", "2"]
    assert nn.receptive_fields(model)["1"] == ((3,) * rank, (2,) * rank, (-1,) * rank, False)


def test_layers_without_a_kernel_see_a_pixel():
    assert nn.receptive_field(chain(nn.ReLU())) == ((1, 1), (1, 1), (0, 0), False)
    assert nn.receptive_field(chain(Taps(1, rank=1))) == ((1,), (1,), (0,), False)


@settings(max_examples=60)
@given(st.data())
def test_enlarging_layers_see_what_their_definition_says(data):
    """Against the set of input pixels of every output pixel, through a transposed and a plain layer."""
    draw = data.draw
    kernel, stride, dilation = draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    padding = draw(st.integers(0, dilation * (kernel - 1)))
    taps, step, low = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(0, 2))
    field = nn.receptive_field(
        chain(enlarging(kernel, stride, padding, dilation, 1), Taps(taps, step, low, 1))
    )

    def transposed(output):
        spots = (output + padding - u * dilation for u in range(kernel))
        return {spot // stride for spot in spots if spot % stride == 0}

    largest = 0
    for output in range(20, 20 + 12):
        middle = range(output * step - low, output * step - low + taps)
        seen = set().union(*map(transposed, middle))
        if not seen:
            continue
        first = field.offset[0] + output * field.stride[0]
        # The offset is output 0's, rounded up; another phase may begin up to one pixel earlier.
        assert first - 1 < min(seen)
        assert max(seen) < first + field.size[0]
        largest = max(largest, max(seen) - min(seen) + 1)
    assert largest <= field.size[0]
    # Without holes, and where every phase is met, not a pixel more.
    if dilation == step == 1 and kernel >= stride:
        assert largest == field.size[0]


def test_enlarging_undoes_a_stride():
    model = chain(nn.Conv2d(1, 1, 3, 2, 1), enlarging(4, 2, 1))
    size, stride, offset, _ = nn.receptive_field(model)
    assert (size, stride) == ((6, 6), (1, 1))
    assert all(isinstance(value, int) for value in (*size, *stride, *offset))
    assert nn.receptive_field(chain(enlarging(2, 2, 0))).stride == (Fraction(1, 2),) * 2
    assert nn.receptive_field(chain(enlarging(2, 2, 0))).size == (1, 1)


def test_of_branches_and_of_composites():
    x = nn.Input()
    right = nn.Conv2d(1, 1, 3, dilation=4, padding=4)(x)
    left = nn.Conv2d(1, 1, (1, 5), padding=(0, 2))(x)
    model = nn.Model(x, nn.Add()(left, right))
    assert nn.receptive_field(model) == ((9, 9), (1, 1), (-4, -4), False)
    lopsided = nn.Model(x, nn.Concat()(nn.Conv2d(1, 1, 3, padding=((2, 0), (0, 2)))(x), x))
    assert nn.receptive_field(lopsided) == ((3, 3), (1, 1), (-2, 0), False)
    # Outputs of two strides: the largest stride, and the field of output 0.
    pyramid = nn.Model(x, [nn.Conv2d(1, 1, 3, padding=1)(x), nn.Conv2d(1, 1, 5, stride=4)(x)])
    assert nn.receptive_field(pyramid) == ((6, 6), (4, 4), (-1, -1), False)
    assert nn.Residual(nn.Cascade(1, 1, 3)).receptive_field == ((7, 7), (1, 1), (3, 3))
    assert nn.ASPP(1, 1, (1, 3), global_pool=False).receptive_field == ((7, 7), (1, 1), (3, 3))
    assert nn.ASPP(1, 1).receptive_field is None
    whole = nn.receptive_field(chain(nn.Conv2d(1, 1, 3), nn.ASPP(1, 1), nn.Conv2d(1, 1, 3)))
    assert whole == ((3, 3), (1, 1), (0, 0), True)
    assert str(whole) == "whole"


def test_effective_field_of_one_convolution_is_its_kernel():
    layer = nn.Conv2d(2, 3, 3, padding=1, dtype=np.float64, seed=0)
    field = nn.effective_receptive_field(chain(layer), (2, 7, 9), samples=1)
    expected = np.zeros((7, 9))
    expected[2:5, 3:6] = np.abs(layer.weight.sum(axis=0)).sum(axis=0)
    assert field.dtype == np.float64
    np.testing.assert_allclose(field, expected, rtol=1e-12, atol=0)


def test_effective_field_lies_within_and_follows_the_definition():
    model = branched_network()
    field = nn.effective_receptive_field(model, (2, 8, 8), samples=3, seed=5)
    rng = np.random.default_rng(5)
    total = np.zeros((8, 8))
    for _ in range(3):
        x = rng.standard_normal((1, 2, 8, 8))
        gradient = np.zeros_like(x)
        for index in np.ndindex(*x.shape):
            moved = [x.copy(), x.copy()]
            moved[0][index] += 1e-6
            moved[1][index] -= 1e-6
            gradient[index] = (model(moved[0]).sum() - model(moved[1]).sum()) / 2e-6
        total += np.abs(gradient[0]).sum(axis=0)
    np.testing.assert_allclose(field, total / 3, rtol=1e-3, atol=1e-5)

    deep = chain(*(nn.Conv2d(1, 1, 3, padding=1, seed=index) for index in range(3)))
    field = nn.effective_receptive_field(deep, (1, 15, 17))
    assert field.dtype == np.float32
    seen = np.argwhere(field)
    np.testing.assert_array_equal(seen.min(axis=0), (7 - 3, 8 - 3))
    np.testing.assert_array_equal(seen.max(axis=0), (7 + 3, 8 + 3))
    again = [nn.effective_receptive_field(deep, (1, 15, 17), num_threads=count) for count in (1, 2)]
    np.testing.assert_array_equal(*again)


def two_outputs():
    x = nn.Input()
    return nn.Model(x, [x, nn.ReLU()(x)])


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "^model must be a fastconv model", (nn.ReLU(), (1, 4, 4))),
        (ValueError, "^model must have one input and one output", (two_outputs(), (1,))),
        (TypeError, "^input_shape must be a shape", (chain(nn.ReLU()), 3)),
        (ValueError, r"^input_shape\[1\]", (chain(nn.ReLU()), (1, 0, 4))),
        (ValueError, "num_features|channels|axes|axis|in_features|weight", (small_network(), (5, 8, 8))),
    ],
)
def test_refused(error, message, arguments):
    with pytest.raises(error, match=message):
        nn.effective_receptive_field(*arguments)
    if arguments[1] == (1, 4, 4):
        for function in (nn.receptive_field, nn.receptive_fields):
            with pytest.raises(error, match=message):
                function(arguments[0])
    with pytest.raises(ValueError, match="samples must be an integer >= 1"):
        nn.effective_receptive_field(chain(nn.ReLU()), (1, 4, 4), samples=0)


def test_the_face_has_it():
    assert fc.receptive_field is nn.receptive_field
