"""Deformable convolution: the papers' definition, ONNX's, PyTorch's sampling; gradients; what it refuses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastconv as fc
import reference
import strategies
from fastconv import kernels, nn
from fastconv.functional import deform_conv2d, deform_conv2d_input_grads, deform_conv2d_weight_grad
from support import DTYPES, LEVELS, assert_same_bits, check_gradients

GRADS = ("x", "offset", "mask", "weight")


@dataclass(frozen=True)
class Problem:
    """A deformable problem; everything but its data."""

    x_shape: tuple
    weight_shape: tuple
    offset_groups: int
    masked: bool
    reach: float
    place: dict
    seed: int

    @property
    def size(self):
        return reference.output_size(
            self.x_shape[2:], self.weight_shape[2:], self.place["stride"], self.place["padding"],
            self.place["dilation"],
        )  # fmt: skip

    def arrays(self, dtype):
        """x, offset, mask, weight, bias, gradient; offsets are exact in float32, often whole numbers."""
        rng = np.random.default_rng(self.seed)
        planes = self.offset_groups * math.prod(self.weight_shape[2:])
        offset = rng.integers(-64, 65, (self.x_shape[0], 2 * planes, *self.size)) / 64 * self.reach
        offset = np.where(rng.random(offset.shape) < 0.2, np.round(offset), offset)
        mask = rng.standard_normal((self.x_shape[0], planes, *self.size)) if self.masked else None
        shapes = (self.x_shape, self.weight_shape, self.weight_shape[:1])
        x, weight, bias = (rng.standard_normal(shape) for shape in shapes)
        grad = rng.standard_normal((self.x_shape[0], self.weight_shape[0], *self.size))
        given = (x, offset, mask, weight, bias, grad)
        return tuple(None if array is None else array.astype(dtype) for array in given)


@st.composite
def problems(draw, largest=20):
    groups, offset_groups = draw(st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 3), (3, 2), (5, 5)]))
    lcm = math.lcm(groups, offset_groups)
    channels = lcm * draw(st.integers(1, max(1, largest // lcm)))
    out_channels = groups * draw(st.integers(1, largest // groups))
    axes = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, dilation = draw(axes), draw(axes)
    padding = draw(st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * 2))
    size = tuple(
        draw(st.integers(max(1, d * (k - 1) + 1 - sum(p)), 8))
        for k, d, p in zip(kernel, dilation, padding, strict=True)
    )
    return Problem(
        x_shape=(draw(st.integers(1, 2)), channels, *size),
        weight_shape=(out_channels, channels // groups, *kernel),
        offset_groups=offset_groups,
        masked=draw(st.booleans()),
        reach=draw(st.sampled_from([0, 1, 4, 64])),
        place={"stride": draw(axes), "padding": padding, "dilation": dilation},
        seed=draw(st.integers(0, 2**32)),
    )


def bilinear(place, length):
    """g(q, p) = max(0, 1 − |q − p|) for q < length (Dai et al., eq. 4), and its derivative by p."""
    q = np.arange(length)
    weight = np.maximum(0, 1 - np.abs(q - place[..., None]))
    low = np.floor(place)[..., None]
    return weight, (q == low + 1) * 1.0 - (q == low)


def definition(problem, x, offset, mask, weight, bias, grad):
    """The output (Zhu et al., eq. 1) and the gradients of sum(output · grad), in float64, tap by tap."""
    x, offset, weight, grad = (np.asarray(array, np.float64) for array in (x, offset, weight, grad))
    stride, dilation = problem.place["stride"], problem.place["dilation"]
    groups, kernel = x.shape[1] // weight.shape[1], weight.shape[2:]
    taps, per_offset = math.prod(kernel), x.shape[1] // problem.offset_groups
    mask = np.ones((len(x), offset.shape[1] // 2, *problem.size)) if mask is None else mask.astype(np.float64)
    y = np.zeros(grad.shape) + np.asarray(bias, np.float64)[:, None, None]
    grads = {
        "x": np.zeros(x.shape), "offset": np.zeros(offset.shape), "mask": np.zeros(mask.shape),
        "weight": np.zeros(weight.shape),
    }  # fmt: skip
    rows, columns = np.indices(problem.size)
    for n, channel, tap in np.ndindex(len(x), x.shape[1], taps):
        i, j = divmod(tap, kernel[1])
        plane = channel // per_offset * taps + tap
        place_y = rows * stride[0] - problem.place["padding"][0][0] + i * dilation[0] + offset[n, 2 * plane]
        place_x = columns * stride[1] - problem.place["padding"][1][0] + j * dilation[1]
        wy, dy = bilinear(place_y, x.shape[2])
        wx, dx = bilinear(place_x + offset[n, 2 * plane + 1], x.shape[3])
        outputs = np.arange(len(weight)).reshape(groups, -1)[channel // weight.shape[1]]
        w = weight[outputs, channel % weight.shape[1], i, j]
        sample = np.einsum("pqh,pqw,hw->pq", wy, wx, x[n, channel], optimize=True)
        back = np.einsum("mpq,m->pq", grad[n, outputs], w)
        m = mask[n, plane]
        y[n, outputs] += w[:, None, None] * m * sample
        grads["mask"][n, plane] += back * sample
        grads["x"][n, channel] += np.einsum("pq,pqh,pqw->hw", back * m, wy, wx, optimize=True)
        slopes = ((dy, wx), (wy, dx))
        for axis, (a, b) in enumerate(slopes):
            slope = np.einsum("pqh,pqw,hw->pq", a, b, x[n, channel], optimize=True)
            grads["offset"][n, 2 * plane + axis] += back * m * slope
        grads["weight"][outputs, channel % weight.shape[1], i, j] += (grad[n, outputs] * m * sample).sum(
            (1, 2)
        )
    return y, grads


def gradients(problem, x, offset, mask, weight, grad, **keywords):
    options = {**problem.place, "mask": mask, **keywords}
    found = deform_conv2d_input_grads(grad, x, offset, weight, **options)
    return (*found, deform_conv2d_weight_grad(grad, x, offset, weight.shape, **options))


def assert_close(actual, expected, dtype):
    scale = max(1.0, np.abs(expected).max(initial=0))
    assert actual.dtype == dtype
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max(initial=0) <= (2e-5 if dtype == np.float32 else 1e-12) * scale


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=15)
@given(
    problem=problems(), dtype=st.sampled_from(DTYPES), memory=st.sampled_from([*strategies.MEMORY_LAYOUTS])
)
def test_is_the_papers_definition(level, problem, dtype, memory):
    x, offset, mask, weight, bias, grad = problem.arrays(dtype)
    expected, expected_grads = definition(problem, x, offset, mask, weight, bias, grad)
    arrange = strategies.MEMORY_LAYOUTS[memory]
    x, offset, grad = map(arrange, (x, offset, grad))
    mask = None if mask is None else arrange(mask)
    with kernels.use(level):
        y = deform_conv2d(x, offset, weight, bias, mask=mask, **problem.place)
        assert_close(y, expected, dtype)
        found = dict(zip(GRADS, gradients(problem, x, offset, mask, weight, grad), strict=True))
        assert (found["mask"] is None) == (mask is None)
        for name, actual in found.items():
            if actual is not None:
                assert_close(actual, expected_grads[name], dtype)
        assert_same_bits(deform_conv2d(x, offset, weight, bias, mask=mask, num_threads=2, **problem.place), y)


@settings(max_examples=15)
@given(problems())
def test_like_sampling_in_torch(problem):
    """grid_sample reads between pixels too; its gradients are PyTorch's own. (There is no torchvision.)"""
    torch = pytest.importorskip("torch")
    x, offset, mask, weight, bias, grad = problem.arrays(np.float64)
    offset += 0.01  # off the kinks, where the coordinates' rounding would decide
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, offset, weight, bias)]
    tx, toffset, tweight, tbias = leaves
    tmask = torch.ones(1) if mask is None else torch.tensor(mask, requires_grad=True)
    place, size, groups = problem.place, problem.size, x.shape[1] // weight.shape[1]
    taps = math.prod(weight.shape[2:])
    columns = []
    for part in range(problem.offset_groups):
        of_part = tx.chunk(problem.offset_groups, 1)[part]
        for tap in range(taps):
            plane = part * taps + tap
            grid = []
            for axis in (1, 0):
                step = place["stride"][axis] * torch.arange(size[axis]) - place["padding"][axis][0]
                at = step + divmod(tap, weight.shape[3])[axis] * place["dilation"][axis]
                at = (at[:, None] if axis == 0 else at[None]) + toffset[:, 2 * plane + axis]
                # Half a pixel outside ±1: align_corners=False.
                grid.append((2 * at + 1) / x.shape[2 + axis] - 1)
            sample = torch.nn.functional.grid_sample(of_part, torch.stack(grid, -1), align_corners=False)
            columns.append(sample if mask is None else sample * tmask[:, plane, None])
    patches = torch.stack(columns, 1).reshape(len(x), problem.offset_groups, taps, -1, *size)
    patches = patches.transpose(2, 3).reshape(len(x), groups, -1, *size)
    weights = tweight.reshape(groups, len(weight) // groups, -1)
    y = torch.einsum("ngkpq,gmk->ngmpq", patches, weights).reshape(grad.shape) + tbias[:, None, None]
    y.backward(torch.tensor(grad))
    options = {"mask": mask, **place}
    np.testing.assert_allclose(
        deform_conv2d(x, offset, weight, bias, **options), y.detach(), rtol=1e-9, atol=1e-11
    )
    for actual, leaf in zip(
        gradients(problem, x, offset, mask, weight, grad), (tx, toffset, tmask, tweight), strict=True
    ):
        if actual is not None:
            np.testing.assert_allclose(actual, leaf.grad, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("level", LEVELS)
def test_same_bits_for_any_threads(level, dtype):
    place = {"stride": (1, 2), "padding": ((1, 1), (2, 0)), "dilation": (1, 2)}
    problem = Problem((3, 66, 17, 19), (34, 33, 3, 2), 1, True, 4, place, 3)
    x, offset, mask, weight, bias, grad = problem.arrays(dtype)
    with kernels.use(level):
        results = []
        for num_threads in (1, 2, 4, 3):
            y = deform_conv2d(x, offset, weight, bias, mask=mask, num_threads=num_threads, **place)
            back = gradients(problem, x, offset, mask, weight, grad, num_threads=num_threads)
            results.append((y, *back))
    for result in results[1:]:
        for actual, expected in zip(result, results[0], strict=True):
            assert_same_bits(actual, expected)


def test_zero_offsets_are_an_ordinary_convolution():
    """Also beside infinite pixels: those of weight 0 are not read."""
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((2, 6, 9, 8)), rng.standard_normal((4, 3, 3, 3))
    x[:, :, 4, 4] = np.inf
    options = {"padding": 1, "stride": (1, 2)}
    expected = fc.conv2d(x, weight, groups=2, algorithm="direct", **options)
    y = deform_conv2d(x, np.zeros((2, 36, 9, 4)), weight, **options)
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
    assert not np.isfinite(expected).all()


def test_a_tap_outside_counts_as_zero_wherever_it_is():
    x, weight = np.ones((1, 1, 4, 5), np.float32), np.ones((1, 1, 1, 1), np.float32)
    far = [np.inf, -np.inf, 3e38, -3e38, 1e10, -1e10, -1.0, 4.0, 2.0**31, 2.0**63, -(2.0**63), -1.0000001]
    for value in far:
        for axis in (0, 1):
            offset = np.zeros((1, 2, 4, 5), np.float32)
            # To row 0 + value or column 0 + value.
            offset[:, axis] = value - (np.arange(4)[:, None] if axis == 0 else np.arange(5))
            beyond = value >= (4, 5)[axis] or value <= -1
            y = deform_conv2d(x, offset, weight)
            np.testing.assert_array_equal(y, 0 if beyond else 1)
            grads = deform_conv2d_input_grads(np.ones_like(y), x, offset, weight)
            assert not beyond or not grads[0].any()
    offset = np.full((1, 2, 4, 5), -0.25, np.float32)
    y = deform_conv2d(x, offset, weight)
    np.testing.assert_array_equal(y[0, 0, 0], [0.5625, 0.75, 0.75, 0.75, 0.75])


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("level", LEVELS)
def test_a_nan_offset_makes_its_output_nan(level, axis):
    x, weight = np.ones((1, 3, 6, 7)), np.ones((2, 3, 3, 3))
    offset = np.zeros((1, 18, 6, 7))
    offset[0, 4 + axis, 2, 3] = np.nan
    offset[0, 5 - axis, 2, 3] = np.inf
    with kernels.use(level):
        y = deform_conv2d(x, offset, weight, padding=1)
        grads = deform_conv2d_input_grads(np.ones_like(y), x, offset, weight, padding=1)
        deform_conv2d_weight_grad(np.ones_like(y), x, offset, weight.shape, padding=1)
    assert np.isnan(y[0, :, 2, 3]).all()
    assert np.isnan(y).sum() == 2
    assert np.isnan(grads[1]).sum() == 2


@settings(max_examples=15)
@given(problems())
def test_like_onnxruntime(problem):
    ort = pytest.importorskip("onnxruntime")
    helper = pytest.importorskip("onnx").helper
    x, offset, mask, weight, bias, _ = problem.arrays(np.float32)
    inputs = {"x": x, "w": weight, "offset": offset, "b": bias, "mask": mask}
    inputs = {name: array for name, array in inputs.items() if array is not None}
    (top, bottom), (left, right) = problem.place["padding"]
    node = helper.make_node(
        "DeformConv", [*inputs], ["y"], strides=problem.place["stride"], pads=[top, left, bottom, right],
        dilations=problem.place["dilation"], offset_group=problem.offset_groups,
        group=x.shape[1] // weight.shape[1], kernel_shape=weight.shape[2:],
    )  # fmt: skip
    values = [helper.make_tensor_value_info(name, 1, array.shape) for name, array in inputs.items()]
    graph = helper.make_graph([node], "g", values, [helper.make_tensor_value_info("y", 1, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, inputs)
    y = deform_conv2d(x, offset, weight, bias, mask=mask, **problem.place)
    scale = max(1.0, np.abs(expected).max())
    assert np.abs(y - expected).max() <= 2e-5 * scale


def test_memory_format_out_and_inputs_that_stay():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5, 6, 7), dtype=np.float32)
    offset, weight = rng.standard_normal((2, 8, 5, 6)), rng.standard_normal((3, 5, 2, 2)).astype(np.float16)
    arrays = (x, offset, weight)
    before = [array.copy() for array in arrays]
    for array in arrays:
        array.flags.writeable = False
    y = deform_conv2d(*arrays)
    assert y.dtype == np.float64
    assert y.flags.c_contiguous
    last = strategies.MEMORY_LAYOUTS["channels_last"](x)
    y_last = deform_conv2d(last, offset, weight)
    assert y_last.transpose(0, 2, 3, 1).flags.c_contiguous
    np.testing.assert_array_equal(y_last, y)
    grads = deform_conv2d_input_grads(y, last, offset, weight)
    assert grads[0].transpose(0, 2, 3, 1).flags.c_contiguous
    assert grads[1].shape == offset.shape
    for memory in ("contiguous", "channels_last", "sliced", "reversed", "width_first"):
        out = strategies.MEMORY_LAYOUTS[memory](np.zeros(y.shape))
        assert deform_conv2d(*arrays, out=out) is out
        np.testing.assert_array_equal(out, y)
    same = np.ones((1, 2, 4, 4))
    expected = deform_conv2d(same.copy(), np.zeros((1, 18, 4, 4)), np.ones((2, 2, 3, 3)), padding=1)
    deform_conv2d(same, np.zeros((1, 18, 4, 4)), np.ones((2, 2, 3, 3)), padding=1, out=same)
    np.testing.assert_array_equal(same, expected)
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert deform_conv2d(x.astype(np.float16), offset.astype(np.float16), weight).dtype == np.float32


def test_batch_of_zero():
    x, offset, weight = np.empty((0, 4, 5, 5)), np.empty((0, 18, 3, 3)), np.ones((2, 4, 3, 3))
    mask = np.empty((0, 9, 3, 3))
    y = deform_conv2d(x, offset, weight, mask=mask)
    assert y.shape == (0, 2, 3, 3)
    grads = deform_conv2d_input_grads(y, x, offset, weight, mask=mask)
    assert [grad.shape for grad in grads] == [x.shape, offset.shape, mask.shape]
    np.testing.assert_array_equal(deform_conv2d_weight_grad(y, x, offset, weight.shape), 0 * weight)


@pytest.mark.parametrize(
    ("error", "start", "arguments"),
    [
        (TypeError, "x ", {"x": np.ones((1, 4, 6, 6), int)}),
        (ValueError, "x ", {"x": np.ones((4, 6, 6))}),
        (ValueError, "input ", {"x": np.ones((1, 4, 0, 6))}),
        (TypeError, "offset ", {"offset": np.ones((1, 18, 4, 4), bool)}),
        (ValueError, "offset ", {"offset": np.ones((18, 4, 4))}),
        (ValueError, "offset ", {"offset": np.ones((1, 17, 4, 4))}),
        (ValueError, "offset ", {"offset": np.ones((1, 54, 4, 4))}),
        (ValueError, "offset ", {"offset": np.ones((1, 0, 4, 4))}),
        (ValueError, "offset ", {"offset": np.ones((1, 18, 4, 5))}),
        (ValueError, "offset ", {"offset": np.ones((2, 18, 4, 4))}),
        (TypeError, "mask ", {"mask": np.ones((1, 9, 4, 4), int)}),
        (ValueError, "mask ", {"mask": np.ones((1, 18, 4, 4))}),
        (ValueError, "mask ", {"mask": np.ones((1, 9, 3, 4))}),
        (TypeError, "weight ", {"weight": np.ones((2, 4, 3, 3), int)}),
        (ValueError, "weight ", {"weight": np.ones((2, 3, 3, 3))}),
        (ValueError, "weight ", {"weight": np.ones((2, 0, 3, 3))}),
        (ValueError, "groups ", {"weight": np.ones((3, 2, 3, 3))}),
        (ValueError, "bias ", {"bias": np.ones(3)}),
        (TypeError, "bias ", {"bias": np.ones(2, int)}),
        (ValueError, "stride ", {"stride": 0}),
        (TypeError, "stride ", {"stride": 1.0}),
        (ValueError, r"padding(\[| )", {"padding": -1}),
        (ValueError, "padding ", {"padding": "sane"}),
        (ValueError, "dilation ", {"dilation": (1, 2, 3)}),
        (ValueError, "num_threads ", {"num_threads": 0}),
        (ValueError, "out ", {"out": np.ones((1, 2, 4, 5))}),
        (TypeError, "out ", {"out": np.ones((1, 2, 4, 4), np.float32)}),
    ],
)
def test_refuses(error, start, arguments):
    given = {"x": np.ones((1, 4, 6, 6)), "offset": np.ones((1, 18, 4, 4)), "weight": np.ones((2, 4, 3, 3))}
    with pytest.raises(error, match=f"^{start}"):
        deform_conv2d(**{**given, **arguments})


@pytest.mark.parametrize("shape", [(1, 2, 4, 5), (1, 3, 4, 4), (2, 2, 4, 4), (2, 4, 4)])
def test_a_gradient_of_the_wrong_shape_is_refused(shape):
    x, offset, weight = np.ones((1, 4, 6, 6)), np.ones((1, 18, 4, 4)), np.ones((2, 4, 3, 3))
    with pytest.raises(ValueError, match="^grad_output "):
        deform_conv2d_input_grads(np.ones(shape), x, offset, weight)
    with pytest.raises(ValueError, match="^grad_output "):
        deform_conv2d_weight_grad(np.ones(shape), x, offset, weight.shape)


@pytest.mark.parametrize("masked", [True, False])
def test_layer_gradients(masked):
    rng = np.random.default_rng(1)
    layer = nn.DeformConv2d(6, 4, (3, 2), (1, 2), 1, (2, 1), 2, dtype=np.float64, seed=0)
    x = rng.standard_normal((2, 6, 6, 5)).transpose(0, 1, 3, 2)
    size = layer._geometry(x.shape).output_size
    # Fractions from 0.1 to 0.9: a step does not cross a kink.
    offset = rng.integers(-2, 3, (2, 36, *size)) + rng.uniform(0.1, 0.9, (2, 36, *size))
    inputs = (x, offset, rng.standard_normal((2, 18, *size)))
    check_gradients(layer, *inputs[: 3 if masked else 2])
    _, cache = layer.forward(x, offset)
    grads, _ = layer.backward(np.ones((2, 4, *size)), cache, nn.Mode(input_grad=False))
    assert grads == (None, None)


@pytest.mark.parametrize("modulated", [True, False])
def test_predicting_layer_gradients(modulated):
    rng = np.random.default_rng(1)
    layer = nn.DeformableConv2d(
        4, 6, 3, 1, "same", 1, 2, offset_groups=2, modulated=modulated, dtype=np.float64, seed=0
    )
    x = rng.standard_normal((2, 4, 5, 6))
    layer.offset_weight = 0.05 * rng.standard_normal(layer.offset_weight.shape)
    layer.offset_bias = rng.integers(-1, 2, layer.offset_bias.shape) + 0.5
    check_gradients(layer, x)


def test_predicting_layer_starts_from_a_regular_grid():
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 6))
    options = {"padding": 1, "bias": False, "dtype": np.float64, "seed": 3}
    expected = nn.Conv2d(4, 6, 3, **options)(x)
    np.testing.assert_allclose(nn.DeformableConv2d(4, 6, 3, **options)(x), expected / 2, atol=1e-12)
    layer = nn.DeformableConv2d(4, 6, 3, modulated=False, **options)
    np.testing.assert_allclose(layer(x), expected, atol=1e-12)
    assert layer.macs(x.shape) == nn.Conv2d(4, 6, 3, padding=1).macs(x.shape) * 4


def test_models_train_save_and_load(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((48, 2, 6, 6), dtype=np.float32)
    y = (x[:, 0, 2, 2] > x[:, 1, 3, 4]).astype(np.int64)
    model = nn.Sequential(
        nn.DeformableConv2d(2, 8, 3, padding=1, seed=0), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2, seed=0)
    )
    start = model.evaluate(x, y)["loss"]
    model.fit(x, y, 25, optimizer="adam", seed=0, progress=False, num_threads=1)
    assert model.evaluate(x, y)["loss"] < 0.7 * start
    assert np.abs(model.layers["0"].offset_weight).max() > 0
    model.save(tmp_path / "model.npz")
    np.testing.assert_array_equal(nn.load(tmp_path / "model.npz").predict(x), model.predict(x))
    image, offset, mask = nn.Input((4, 6, 6)), nn.Input((18, 6, 6)), nn.Input((9, 6, 6))
    layer = nn.DeformConv2d(4, 2, 3, padding=1, seed=0)
    model = nn.Model((image, offset, mask), layer(image, offset, mask, name="deform"))
    assert model.summary().rows[0].output_shape == (1, 2, 6, 6)
    arrays = [rng.standard_normal((2, c, 6, 6), dtype=np.float32) for c in (4, 18, 9)]
    model.save(tmp_path / "model.npz")
    np.testing.assert_array_equal(nn.load(tmp_path / "model.npz")(*arrays), model(*arrays))
    expected = deform_conv2d(arrays[0], arrays[1], layer.weight, layer.bias, 1, 1, 1, arrays[2])
    np.testing.assert_allclose(model(*arrays), expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(TypeError, match="^DeformConv2d takes 2 or 3 inputs"):
        layer(arrays[0])
    with pytest.raises(ValueError, match="in_channels=4"):
        layer(arrays[2], arrays[1])
    with pytest.raises(ValueError, match="^offset "):
        layer(image, mask)


@pytest.mark.parametrize(
    ("error", "start", "arguments"),
    [
        (ValueError, "in_channels ", {"in_channels": 0}),
        (TypeError, "kernel_size ", {"kernel_size": 3.0}),
        (ValueError, "groups ", {"groups": 3}),
        (TypeError, "bias ", {"bias": 1}),
        (ValueError, "padding ", {"padding": "sane"}),
        (TypeError, "dtype ", {"dtype": int}),
        (ValueError, "offset_groups ", {"offset_groups": 3}),
        (TypeError, "modulated ", {"modulated": 2}),
    ],
)
def test_layers_refuse(error, start, arguments):
    given = {"in_channels": 4, "out_channels": 4, "kernel_size": 3, **arguments}
    with pytest.raises(error, match=f"^{start}"):
        nn.DeformableConv2d(**given)
    if not {"offset_groups", "modulated"} & arguments.keys():
        with pytest.raises(error, match=f"^{start}"):
            nn.DeformConv2d(**given)
