"""The libraries fastconv is compared with: the same float32 arrays, the same layer, the same thread count.

Each is given its best chance: inputs prepared, weights constant and reordered once where the library can,
outputs preallocated where it can, its precision held to float32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.registry import Layer, aligned
from benchmarks.timing import Absent, Contestant

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def torch_contestants(layer: Layer, arrays: Arrays, threads: int) -> list[Contestant]:
    """PyTorch in NCHW, in channels_last, and in channels_last with the weight reordered once for oneDNN."""
    import torch

    torch.set_num_threads(threads)
    x, weight, bias = (torch.from_numpy(aligned(array)) for array in arrays)
    x_last = x.contiguous(memory_format=torch.channels_last)
    weight_last = weight.contiguous(memory_format=torch.channels_last)
    shape = list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups
    # What Inductor calls for a frozen model; plain conv2d reorders the weight on every call.
    packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *shape, list(layer.input_shape))

    def plain(x, weight):
        with torch.inference_mode():
            return torch.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)

    def reordered():
        with torch.inference_mode():
            return torch.ops.mkldnn._convolution_pointwise(x_last, packed, bias, *shape, "none", [], "")

    return [
        Contestant("torch", lambda: plain(x, weight), lambda y: y.numpy()),
        Contestant("torch_cl", lambda: plain(x_last, weight_last), lambda y: y.numpy()),
        Contestant("torch_packed", reordered, lambda y: y.numpy()),
    ]


def onnx_model(layer: Layer, weight: np.ndarray, bias: np.ndarray) -> bytes:
    """A model of one Conv node with constant weights."""
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node(
        "Conv",
        ["x", "weight", "bias"],
        ["y"],
        kernel_shape=layer.kernel,
        strides=layer.stride,
        pads=layer.padding * 2,
        dilations=layer.dilation,
        group=layer.groups,
    )
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, layer.input_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, layer.output_shape)],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString()


def onnxruntime_contestants(layer: Layer, arrays: Arrays, threads: int) -> list[Contestant]:
    """ONNX Runtime's CPU provider, input and output bound beforehand."""
    import onnxruntime as ort

    x, weight, bias = arrays
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Its threads spin for more than 25 ms after a run; the next contestant's turn must not pay for that.
    # Calls in a row lost nothing by it (64,56,56→64 3×3, two threads: 0.63 ms at best with and without).
    options.add_session_config_entry("session.force_spinning_stop", "1")
    model = onnx_model(layer, weight, bias)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    y = aligned(np.empty(layer.output_shape, np.float32))
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(x))
    binding.bind_output("y", "cpu", 0, np.float32, layer.output_shape, y.ctypes.data)
    return [Contestant("onnxruntime", lambda: session.run_with_iobinding(binding), lambda _: y)]


def openvino_contestants(layer: Layer, arrays: Arrays, threads: int) -> list[Contestant]:
    """OpenVINO's CPU plugin in float32, with NCHW and with channels-last input and output."""
    import openvino as ov
    from openvino.preprocess import PrePostProcessor

    x, weight, bias = arrays
    config = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    core = ov.Core()
    plain = core.read_model(onnx_model(layer, weight, bias))
    steps = PrePostProcessor(core.read_model(onnx_model(layer, weight, bias)))
    steps.input().tensor().set_layout(ov.Layout("NHWC"))
    steps.input().model().set_layout(ov.Layout("NCHW"))
    steps.output().tensor().set_layout(ov.Layout("NHWC"))
    steps.output().model().set_layout(ov.Layout("NCHW"))

    def contestant(name, model, x, read):
        request = core.compile_model(model, "CPU", config).create_infer_request()
        # A shared tensor borrows the array's memory without keeping the array: the lambda keeps both.
        tensor = ov.Tensor(x, shared_memory=True)
        request.set_input_tensor(tensor)
        return Contestant(
            name, request.infer, lambda _, kept=(x, tensor): read(request.get_output_tensor().data)
        )

    x_last = aligned(x.transpose(0, 2, 3, 1))
    return [
        contestant("openvino", plain, x, lambda y: y),
        contestant("openvino_cl", steps.build(), x_last, lambda y: y.transpose(0, 3, 1, 2)),
    ]


RIVALS: dict[str, tuple[Callable[[Layer, Arrays, int], list[Contestant]], tuple[str, ...]]] = {
    "torch": (torch_contestants, ("torch", "torch_cl", "torch_packed")),
    "onnxruntime": (onnxruntime_contestants, ("onnxruntime",)),
    "openvino": (openvino_contestants, ("openvino", "openvino_cl")),
}
# Those whose input and output are contiguous NCHW arrays, and those of them given the weight in every call.
NCHW_RIVALS = ("torch", "onnxruntime", "openvino")
CALLED_RIVALS = ("torch",)


def contestants(layer: Layer, arrays: Arrays, threads: int) -> list[Contestant | Absent]:
    """Everybody who is installed; who is not says so."""
    found: list[Contestant | Absent] = []
    for build, names in RIVALS.values():
        try:
            found += build(layer, arrays, threads)
        except ImportError as error:
            found += [Absent(name, f"not installed: {error}") for name in names]
    return found
