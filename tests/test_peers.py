"""Functions against PyTorch and ONNX Runtime, where they are installed."""

import numpy as np
import pytest
from hypothesis import given

import fastconv as fc
import strategies
from support import ALGORITHMS, assert_within_bound, error_bound


def torch_conv2d(torch, case, x, weight, bias):
    (top, bottom), (left, right) = case.padding
    padded = torch.nn.functional.pad(torch.from_numpy(x), (left, right, top, bottom))
    y = torch.nn.functional.conv2d(
        padded,
        torch.from_numpy(weight),
        torch.from_numpy(bias),
        stride=case.stride,
        dilation=case.dilation,
        groups=case.groups,
    )
    return y.numpy()


@given(strategies.cases())
def test_torch_float64(case):
    torch = pytest.importorskip("torch")
    x, weight, bias = case.normal(np.float64)
    y = fc.conv2d(x, weight, bias, **case.keywords)
    np.testing.assert_allclose(y, torch_conv2d(torch, case, x, weight, bias), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_torch_float32(algorithm):
    torch = pytest.importorskip("torch")
    case = strategies.Case((2, 64, 28, 28), (64, 64, 3, 3), padding=((1, 1), (1, 1)), seed=21)
    arrays = case.normal(np.float32)
    y = fc.conv2d(*arrays, padding=1, algorithm=algorithm)
    bound = error_bound(algorithm, case, np.float32) + error_bound("direct", case, np.float32)
    assert_within_bound(y, torch_conv2d(torch, case, *arrays), bound, case.reduction)


def test_torch_channels_last_tensors_pass_through_numpy():
    torch = pytest.importorskip("torch")
    x = torch.randn(2, 8, 10, 12).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(6, 8, 3, 3)
    y = torch.from_numpy(fc.conv2d(x.numpy(), weight.numpy(), padding="same"))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, torch.nn.functional.conv2d(x, weight, padding="same"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_torch_padding_modes(mode):
    torch = pytest.importorskip("torch")
    layer = torch.nn.Conv2d(4, 5, (3, 5), padding=(2, 3), padding_mode=mode, dtype=torch.float64)
    x = torch.randn(2, 4, 8, 9, dtype=torch.float64)
    with torch.no_grad():
        expected = layer(x).numpy()
        weight, bias = layer.weight.numpy(), layer.bias.numpy()
    y = fc.conv2d(x.numpy(), weight, bias, padding=(2, 3), padding_mode=mode)
    np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-10)


def onnx_conv(onnx, onnxruntime, x, weight, **attributes):
    helper = onnx.helper
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], **attributes)],
        "conv",
        [
            helper.make_tensor_value_info("x", float32, x.shape),
            helper.make_tensor_value_info("w", float32, weight.shape),
        ],
        [helper.make_tensor_value_info("y", float32, [None] * 4)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x, "w": weight})[0]


@pytest.mark.parametrize("size", [(7, 8), (12, 13), (5, 5)])
@pytest.mark.parametrize("kernel", [(2, 2), (3, 3), (4, 1), (5, 2)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 2)])
def test_same_is_onnx_same_upper(size, kernel, stride):
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(22)
    x = rng.integers(-4, 5, (2, 3, *size)).astype(np.float32)
    weight = rng.integers(-4, 5, (4, 3, *kernel)).astype(np.float32)
    expected = onnx_conv(onnx, onnxruntime, x, weight, auto_pad="SAME_UPPER", strides=stride)
    y = fc.conv2d(x, weight, padding="same", stride=stride, algorithm="direct")
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_onnx_asymmetric_dilated_groups(groups):
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(23)
    x = rng.integers(-4, 5, (2, 6, 11, 12)).astype(np.float32)
    weight = rng.integers(-4, 5, (12, 6 // groups, 3, 2)).astype(np.float32)
    attributes = {"pads": [1, 0, 3, 2], "strides": [2, 1], "dilations": [1, 3], "group": groups}
    expected = onnx_conv(onnx, onnxruntime, x, weight, **attributes)
    y = fc.conv2d(
        x, weight, padding=((1, 3), (0, 2)), stride=(2, 1), dilation=(1, 3), groups=groups, algorithm="direct"
    )
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("shape", [(2, 3, 11), (2, 3, 4, 5)])
@pytest.mark.parametrize("own", [True, False])
def test_torch_instance_norm_positional_order(shape, own):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    x, mean, var = rng.normal(size=shape), rng.normal(size=3), rng.uniform(0.5, 2, 3)
    arguments = (mean, var, rng.normal(size=3), rng.normal(size=3), own, 0.3, 1e-3)
    theirs = [torch.tensor(value) if isinstance(value, np.ndarray) else value for value in arguments]
    expected = torch.nn.functional.instance_norm(torch.tensor(x), *theirs)
    y = fc.functional.instance_norm(x, *arguments)
    np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(mean, theirs[0], rtol=1e-12)
    np.testing.assert_allclose(var, theirs[1], rtol=1e-12)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
@pytest.mark.parametrize(("dtype", "rank"), [(np.float32, 1), (np.float64, 1), (np.float64, 3)])
def test_torch_nearest_pixels(mode, dtype, rank):
    """Sizes and scales whose products fall on, or just beside, whole numbers: their dtype rounds."""
    torch = pytest.importorskip("torch")
    factors = (0.3, 0.7, 1.1, 2.3, 3.3)
    for size in range(1, 60):
        x = np.arange(size, dtype=dtype).reshape(1, 1, *(1,) * (rank - 1), size)
        for scale in (f for f in factors if size * f >= 1):
            scales = (1.0,) * (rank - 1) + (scale,)
            expected = torch.nn.functional.interpolate(torch.tensor(x), scale_factor=scales, mode=mode)
            np.testing.assert_array_equal(fc.functional.interpolate(x, None, scales, mode), expected)
        for outputs in (size + 1, 3 * size - 1, 41):
            sizes = (1,) * (rank - 1) + (outputs,)
            expected = torch.nn.functional.interpolate(torch.tensor(x), sizes, mode=mode)
            np.testing.assert_array_equal(fc.functional.interpolate(x, sizes, None, mode), expected)
