"""Transposed convolution: the reference (the gradient of convolution), PyTorch, layouts, what is refused."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastconv as fc
import reference
import strategies
from fastconv import kernels, nn
from support import DTYPES, LEVELS, assert_same_bits, check_gradients

RANKS = (1, 2, 3)
CONVOLVE = {1: fc.conv_transpose1d, 2: fc.conv_transpose2d, 3: fc.conv_transpose3d}
PLAN = {1: fc.plan_conv_transpose1d, 2: fc.plan_conv_transpose2d, 3: fc.plan_conv_transpose3d}
LAYER = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


@st.composite
def problems(draw, rank, largest=4, even=False):
    """(x_shape, weight_shape, keywords) that leave at least one output pixel.

    ``even`` ones have as many taps in every phase of the stride, and no groups.
    """
    groups = 1 if even else draw(st.integers(1, 3))
    kernel, stride, dilation, size = (
        draw(st.tuples(*[st.integers(1, most)] * rank)) for most in (5, largest, 4, 6)
    )
    if even:
        times = draw(st.sampled_from([1, 2, 3]))
        kernel, dilation = tuple(times * s for s in stride), (1,) * rank
        size = tuple(n + draw(st.sampled_from([0, 9])) for n in size)
    extra = tuple(draw(st.integers(0, max(pair) - 1)) for pair in zip(stride, dilation, strict=True))
    full = [
        (n - 1) * s + d * (k - 1) + 1 + e
        for n, s, d, k, e in zip(size, stride, dilation, kernel, extra, strict=True)
    ]
    padding = tuple(draw(st.integers(0, min(6, (n - 1) // 2))) for n in full)
    keywords = {
        "stride": stride, "padding": padding, "output_padding": extra, "groups": groups, "dilation": dilation,
    }  # fmt: skip
    x_shape = (draw(st.integers(1, 2)), groups * draw(st.integers(1, 20)), *size)
    filters = st.integers(1, 20)
    if even:  # whole panels of channels go to their places at once
        filters |= st.sampled_from([32, 64])
    return x_shape, (x_shape[1], draw(filters), *kernel), keywords


def expected_output(x, weight, bias, stride, padding, output_padding, groups, dilation):
    """The reference's input gradient, on a canvas that every output padding fits in."""
    size = [
        (n - 1) * s + d * (k - 1) + 1
        for n, s, d, k in zip(x.shape[2:], stride, dilation, weight.shape[2:], strict=True)
    ]
    shape = (x.shape[0], weight.shape[1] * groups, *size)
    whole = reference.conv_input_grad(
        x, weight, shape, stride=stride, padding=((0, 0),) * len(size), dilation=dilation, groups=groups
    )
    whole = np.pad(whole, ((0, 0), (0, 0), *((0, extra) for extra in output_padding)))
    inner = tuple(slice(p, n - p) for n, p in zip(whole.shape[2:], padding, strict=True))
    return whole[..., *inner] + np.asarray(bias, np.float64).reshape(-1, *[1] * len(size))


def arrays(shapes, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(-4, 5, shape).astype(dtype) for shape in shapes]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("even", [False, True])
@settings(max_examples=15)
@given(data=st.data())
def test_reference(rank, level, even, data):
    x_shape, weight_shape, keywords = data.draw(problems(rank, even=even))
    for dtype in DTYPES:
        x, weight, bias = arrays(
            (x_shape, weight_shape, (weight_shape[1] * keywords["groups"],)),
            dtype,
            data.draw(st.integers(0, 99)),
        )
        expected = expected_output(x, weight, bias, **keywords)
        with kernels.use(level):
            y = [CONVOLVE[rank](x, weight, bias, num_threads=n, **keywords) for n in (1, 2)]
        assert_same_bits(*y)
        assert (y[0].dtype, y[0].shape) == (dtype, expected.shape)
        tolerance = 2e-5 if dtype == np.float32 else 1e-13
        assert np.abs(y[0] - expected).max() <= tolerance * max(1, np.abs(expected).max())


@pytest.mark.parametrize("padding", [(0, 0), (5, 0)])
def test_a_kernel_of_its_strides_size_that_is_dilated_along_one_axis(padding):
    x, weight, bias = arrays(((2, 4, 10, 7), (4, 1, 3, 3), (1,)), np.float32)
    keywords = {"stride": (3, 3), "padding": padding, "dilation": (3, 1)}
    y = fc.conv_transpose2d(x, weight, bias, **keywords)
    expected = expected_output(x, weight, bias, output_padding=(0, 0), groups=1, **keywords)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("rank", RANKS)
@settings(max_examples=15)
@given(data=st.data())
def test_torch(rank, data):
    torch = pytest.importorskip("torch")
    x_shape, weight_shape, keywords = data.draw(problems(rank))
    x, weight, bias = arrays((x_shape, weight_shape, (weight_shape[1] * keywords["groups"],)), np.float64)
    convolve = getattr(torch.nn.functional, f"conv_transpose{rank}d")
    expected = convolve(*map(torch.tensor, (x, weight, bias)), **keywords).numpy()
    np.testing.assert_allclose(CONVOLVE[rank](x, weight, bias, **keywords), expected, atol=1e-9)


@pytest.mark.parametrize("rank", RANKS)
@settings(max_examples=15)
@given(data=st.data())
def test_layers_gradients(rank, data):
    x_shape, weight_shape, keywords = data.draw(problems(rank, largest=3))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    bias = data.draw(st.booleans())
    layer = LAYER[rank](
        x_shape[1], weight_shape[1] * keywords["groups"], weight_shape[2:], bias=bias, dtype=np.float64,
        seed=rng, **keywords,
    )  # fmt: skip
    check_gradients(layer, rng.standard_normal(x_shape), samples=4)


@pytest.mark.parametrize("rank", RANKS)
def test_layers_are_torchs(rank):
    torch = pytest.importorskip("torch")
    theirs = getattr(torch.nn, f"ConvTranspose{rank}d")(6, 4, 3, 2, 1, 1, 2)
    ours = LAYER[rank](6, 4, 3, 2, 1, 1, 2)
    state = {name: value.detach().numpy() for name, value in theirs.state_dict().items()}
    assert {name: array.shape for name, array in ours.parameters.items()} == {
        name: array.shape for name, array in state.items()
    }
    bound = 1 / math.sqrt(2 * 3**rank)
    for name, array in state.items():
        assert np.abs(ours.parameters[name]).max() <= bound
        setattr(ours, name, array)
    x = np.random.default_rng(0).standard_normal((2, 6, *[5] * rank)).astype(np.float32)
    expected = theirs(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(ours(x), expected, atol=1e-5)
    assert ours.output_shape(x.shape) == expected.shape
    assert ours.macs(x.shape) == 2 * 6 * 5**rank * 2 * 3**rank


@pytest.mark.parametrize("memory", strategies.MEMORY_LAYOUTS)
@pytest.mark.parametrize(
    ("kernel", "padding", "filters"), [((3, 4), 1, 18), ((4, 6), 1, 18), ((4, 6), 1, 32), ((2, 3), 0, 18)]
)
def test_views_equal_their_copies(memory, kernel, padding, filters):
    arrange = strategies.MEMORY_LAYOUTS[memory]
    x, weight, bias = arrays(((2, 33, 13, 9), (33, filters, *kernel), (filters,)), np.float32)
    keywords = {"stride": (2, 3), "padding": padding}
    expected = fc.conv_transpose2d(x, weight, bias, **keywords)
    assert_same_bits(fc.conv_transpose2d(arrange(x), arrange(weight), bias, **keywords), expected)
    if memory not in ("misaligned", "read_only", "byte_swapped"):  # refused
        out = arrange(np.empty_like(expected))
        assert fc.conv_transpose2d(x, weight, bias, out=out, **keywords) is out
        assert_same_bits(out, expected)


@pytest.mark.parametrize(
    ("kernel", "padding", "plans"),
    [
        (4, 1, 1),  # four phases of 2 × 2 taps
        (2, 0, 2),  # two rows of products, in place
        (2, 1, 4),  # rows that begin in the middle of a run
        (3, 1, 4),  # phases of unequal taps
    ],
)
def test_merged_phases(kernel, padding, plans):
    weight = np.ones((8, 12, kernel, kernel), np.float32)
    plan = fc.plan_conv_transpose2d((6, 8, 14, 15), weight, stride=2, padding=padding)
    assert len(plan.plans) == plans
    assert plan.explain().count("all") == {1: 2, 2: 2, 4: 0}[plans]
    # Each keeps a scratch memory, and so does a result that is not channels-last.
    assert plan.workspace_bytes > sum(inner.workspace_bytes for inner in plan.plans)


@pytest.mark.parametrize(
    ("channels", "kernel", "stride"), [(3, 7, 2), (3, 3, 1), (1, 5, 1), (2, 3, 2), (3, 11, 4), (4, 2, 1)]
)
def test_few_channels_are_computed_for_several_pixels_at_once(channels, kernel, stride):
    """A vector holds the channels of a block of outputs, whose taps are zero where a pixel has none."""
    x, weight, bias = arrays(((2, 5, 61, 66), (5, channels, kernel, kernel), (channels,)), np.float32)
    keywords = {"stride": stride, "padding": kernel // 2, "output_padding": stride - 1}
    expected = expected_output(
        x, weight, bias, stride=(stride,) * 2, padding=(kernel // 2,) * 2, output_padding=(stride - 1,) * 2,
        dilation=(1, 1), groups=1,
    )  # fmt: skip
    for level in LEVELS:
        with kernels.use(level):
            plan = fc.plan_conv_transpose2d(x.shape, weight, bias, **keywords)
            y = plan(x)
            assert_same_bits(plan(strategies.MEMORY_LAYOUTS["channels_last"](x)), y)
            assert np.abs(y - expected).max() <= 2e-5 * np.abs(expected).max()
            if kernels.active().vector_bytes() >= 32:
                assert [inner.geometry.out_channels > channels for inner in plan.plans] == [True]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [((4, 4), (2, 2), 1), ((4, 6), (2, 3), 2), ((4, 3), (2, 1), 0), ((12,), (4,), 3)],
)
def test_whole_panels_of_merged_phases_go_to_their_places_at_once(level, dtype, kernel, stride, padding):
    rank = len(kernel)
    size = (61,) if rank == 1 else (17, 14)
    x, weight, bias = arrays(((2, 48, *size), (48, 32, *kernel), (32,)), dtype)
    keywords = {"stride": stride, "padding": padding, "activation": "relu"}
    with kernels.use(level):
        plan = PLAN[rank](x.shape, weight, bias, num_threads=1, **keywords)
        assert plan.plans[0].shuffles(32)
        result = plan(x)
        assert_same_bits(plan(x, num_threads=2), result)
    pads, none = (padding,) * rank, (0,) * rank
    expected = expected_output(x, weight, bias, stride, pads, none, 1, (1,) * rank)
    expected = np.maximum(expected, 0)
    assert np.abs(result - expected).max() <= plan.plans[0].error_bound * np.abs(expected).max()


def test_merged_phases_of_large_images_go_to_their_places_in_parts():
    x, weight = arrays(((6, 3, 120, 120), (3, 16, 4, 4)), np.float32)
    plan = fc.plan_conv_transpose2d(x.shape, weight, stride=2, padding=1)
    assert plan.plans[0].geometry.batch == 2
    for image in (0, 5):
        single = fc.conv_transpose2d(x[image : image + 1], weight, stride=2, padding=1)
        assert_same_bits(plan(x)[image : image + 1], single)


@pytest.mark.parametrize("rank", RANKS)
def test_plans_layouts_and_out(rank):
    x, weight, bias = arrays(((2, 4, *[6] * rank), (4, 3, *[3] * rank), (3,)), np.float32)
    keywords = {"stride": 2, "padding": 1, "output_padding": 1, "activation": "relu"}
    expected = CONVOLVE[rank](x, weight, bias, **keywords)
    assert expected.min() == 0
    last = "NWC" if rank == 1 else "NHWC" if rank == 2 else "NDHWC"
    flipped = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    plan = PLAN[rank](flipped.shape, weight, bias, layout=last, **keywords)
    out = np.full(plan.output_shape, np.nan, np.float32)
    weight[...] = 0  # a plan keeps its own
    assert plan(flipped, out=out, num_threads=2) is out
    assert_same_bits(np.moveaxis(out, -1, 1), expected)
    view = np.moveaxis(flipped, -1, 1)
    assert CONVOLVE[rank](view, weight, bias, **keywords).strides[1] == 4
    assert "2" in plan.explain()
    assert plan.multiplications > 0
    assert plan.packed_bytes > 0
    with pytest.raises(ValueError, match="^x must have shape"):
        plan(flipped[:1])
    with pytest.raises(TypeError, match="^x must have dtype"):
        plan(flipped.astype(np.float64))


def test_output_over_the_input():
    buffer = np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)
    weight = np.random.default_rng(1).standard_normal((4, 4, 3, 3)).astype(np.float32)
    expected = fc.conv_transpose2d(buffer, weight, padding=1)
    assert_same_bits(fc.conv_transpose2d(buffer, weight, padding=1, out=buffer), expected)


def test_batch_of_zero():
    x, weight = np.empty((0, 4, 5, 5), np.float32), np.ones((4, 2, 3, 3), np.float32)
    assert fc.conv_transpose2d(x, weight, stride=2).shape == (0, 2, 11, 11)


def test_float16_is_computed_in_float32():
    x, weight = np.ones((1, 2, 3, 3), np.float16), np.ones((2, 1, 2, 2), np.float16)
    y = fc.conv_transpose2d(x, weight, stride=2)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, np.full((1, 1, 6, 6), 2))


@pytest.mark.parametrize(
    ("keywords", "error", "start"),
    [
        ({"stride": 0}, ValueError, "stride"),
        ({"stride": 2.0}, TypeError, "stride"),
        ({"stride": (1, 2, 3)}, ValueError, "stride"),
        ({"padding": -1}, ValueError, "padding"),
        ({"padding": 5}, ValueError, "padding"),
        ({"padding": "same"}, TypeError, "padding"),
        ({"output_padding": 1}, ValueError, "output_padding"),
        ({"output_padding": -1}, ValueError, "output_padding"),
        ({"output_padding": (0, 2), "stride": 2}, ValueError, "output_padding"),
        ({"dilation": 0}, ValueError, "dilation"),
        ({"groups": 3}, ValueError, "groups"),
        ({"activation": "tanh"}, ValueError, "activation"),
        ({"layout": "NCW"}, ValueError, "layout"),
        ({"num_threads": 0}, ValueError, "num_threads"),
        ({"bias": np.ones(3)}, ValueError, "bias"),
        ({"bias": np.ones(2, int)}, TypeError, "bias"),
        ({"weight": np.ones((3, 2, 3, 3))}, ValueError, "weight"),
        ({"weight": np.ones((4, 0, 3, 3))}, ValueError, "weight"),
        ({"weight": np.ones((4, 2, 3))}, ValueError, "weight"),
        ({"weight": np.ones((4, 2, 3, 3), int)}, TypeError, "weight"),
        ({"x": np.ones((1, 4, 5, 5), int)}, TypeError, "x"),
        ({"x": np.ones((4, 5, 5))}, ValueError, "x"),
        ({"x": np.ones((1, 4, 0, 5))}, ValueError, "input"),
        ({"out": np.ones((1, 2, 7, 6))}, ValueError, "out"),
    ],
)
def test_bad_arguments_are_refused_by_name(keywords, error, start):
    arguments = {"x": np.ones((1, 4, 5, 5)), "weight": np.ones((4, 2, 3, 3)), **keywords}
    with pytest.raises(error, match=f"^{start}"):
        fc.conv_transpose2d(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "start"),
    [
        ((0, 2, 3), ValueError, "in_channels"),
        ((4, 2, (3, 3, 3)), ValueError, "kernel_size"),
        ((4, 2, 3, 1, 0, 1), ValueError, "output_padding"),
        ((4, 2, 3, 1, 0, 0, 3), ValueError, "groups"),
        ((4, 2, 3, 1, 0, 0, 1, 1), TypeError, "bias"),
    ],
)
def test_layers_refuse_bad_arguments(arguments, error, start):
    with pytest.raises(error, match=f"^{start}"):
        nn.ConvTranspose2d(*arguments)


def test_saved_and_loaded(tmp_path):
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 4, 2, 1, bias=False), nn.ReLU())
    model.save(tmp_path / "model.npz")
    x = np.ones((1, 3, 5, 5), np.float32)
    assert_same_bits(nn.load(tmp_path / "model.npz")(x), model(x))


def test_receptive_field_in_fractions():
    up = nn.ConvTranspose2d(2, 2, 4, 2, 1)
    field = fc.receptive_field(nn.Sequential(up))
    assert (field.size, field.stride, field.offset) == ((2, 2), (0.5, 0.5), (-1, -1))
    # Down by 2 and up by 2: pixels of the input again, seen through 3 × 3 and 2 × 2 windows.
    field = fc.receptive_field(nn.Sequential(nn.Conv2d(2, 2, 3, 2, 1), nn.ConvTranspose2d(2, 2, 2, 2)))
    assert field.stride == (1, 1)
