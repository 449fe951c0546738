"""ONNX operators as calls of fastconv's functions, for the operator cases of the onnx package.

An operator takes its inputs (None where one is left out) and its attributes, and gives its outputs in order.
"""

from __future__ import annotations

import math

import numpy as np

from fastconv import functional as F


class Unsupported(Exception):
    """What a case asks for and fastconv does not have; the message says what."""


def execute(model, inputs):
    """The outputs of a model for the given inputs, node by node."""
    from onnx import helper, numpy_helper  # for these tests only

    graph = model.graph
    values = {"": None, **{tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}}
    names = [entry.name for entry in graph.input if entry.name not in values]
    values.update(zip(names, inputs, strict=False))
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    for node in graph.node:
        operator = OPERATORS.get(node.op_type) or GLUE.get(node.op_type)
        if operator is None:
            raise Unsupported(f"operator {node.op_type}")
        attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        attributes = {
            key: value.decode() if isinstance(value, bytes) else value for key, value in attributes.items()
        }
        arguments = [values[name] for name in node.input]
        outputs = operator(arguments, attributes | {"opset": opset})
        if len(outputs) < len(node.output):
            raise Unsupported(f"{len(node.output)} outputs of {node.op_type}")
        values.update(zip(node.output, outputs, strict=False))
    return [values[entry.name] for entry in graph.output]


def glue(function):
    """An operator that is NumPy's affair, in models of several nodes."""
    return lambda inputs, attributes: (function(*inputs),)


def constant(inputs, attributes):
    from onnx import numpy_helper

    return (numpy_helper.to_array(attributes["value"]),)


def split(inputs, attributes):
    x = inputs[0]
    sizes = inputs[1].tolist() if len(inputs) > 1 else attributes.get("split")
    sections = np.cumsum(sizes)[:-1] if sizes else 2
    return tuple(np.split(x, sections, axis=attributes.get("axis", 0)))


def floats(*arrays):
    """Refuse what is computed in other than floating point."""
    for array in arrays:
        if array is not None and np.asarray(array).dtype.kind != "f":
            raise Unsupported(f"dtype {np.asarray(array).dtype}")


def pairs(pads):
    """ONNX's (low of every axis, then high of every axis) as (low, high) pairs."""
    half = len(pads) // 2
    return tuple(zip(pads[:half], pads[half:], strict=True))


def padding(attributes, rank, size, kernel, stride, dilation):
    """The (low, high) pairs that ``pads`` or ``auto_pad`` stand for."""
    auto = attributes.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", "VALID"):
        return pairs(attributes.get("pads", [0] * (2 * rank)) if auto == "NOTSET" else [0] * (2 * rank))
    result = []
    for n, k, s, d in zip(size, kernel, stride, dilation, strict=True):
        total = max(0, (math.ceil(n / s) - 1) * s + d * (k - 1) + 1 - n)
        low = total // 2 if auto == "SAME_UPPER" else total - total // 2
        result.append((low, total - low))
    return tuple(result)


def window(attributes, x, kernel):
    """stride, dilation and padding of a convolution or a pooling window."""
    rank = x.ndim - 2
    stride = tuple(attributes.get("strides", [1] * rank))
    dilation = tuple(attributes.get("dilations", [1] * rank))
    return stride, dilation, padding(attributes, rank, x.shape[2:], kernel, stride, dilation)


def by_rank(name, rank):
    return getattr(F, f"{name}{rank}d")


def conv(inputs, attributes):
    x, weight, *bias = inputs
    floats(x)
    stride, dilation, pads = window(attributes, x, weight.shape[2:])
    y = by_rank("conv", x.ndim - 2)(
        x, weight, *bias, stride=stride, dilation=dilation, padding=pads, groups=attributes.get("group", 1)
    )
    return (y,)


def conv_transpose(inputs, attributes):
    x, weight, *bias = inputs
    rank, kernel = x.ndim - 2, weight.shape[2:]
    stride = tuple(attributes.get("strides", [1] * rank))
    dilation = tuple(attributes.get("dilations", [1] * rank))
    extra = list(attributes.get("output_padding", [0] * rank))
    whole = [
        (n - 1) * s + d * (k - 1) + 1 + e
        for n, s, d, k, e in zip(x.shape[2:], stride, dilation, kernel, extra, strict=True)
    ]
    auto = attributes.get("auto_pad", "NOTSET")
    wanted = attributes.get("output_shape")
    if wanted is None and auto.startswith("SAME"):
        wanted = [n * s for n, s in zip(x.shape[2:], stride, strict=True)]
    pads = pairs(attributes.get("pads", [0] * (2 * rank)))
    if wanted is not None:
        pads = []
        for full, size in zip(whole, wanted, strict=True):
            small, large = (full - size) // 2, full - size - (full - size) // 2
            pads.append((small, large) if auto == "SAME_UPPER" else (large, small))
    y = by_rank("conv_transpose", rank)(
        x, weight, *bias, stride=stride, dilation=dilation, groups=attributes.get("group", 1),
        padding=0, output_padding=0,
    )  # fmt: skip
    # ONNX crops each side by itself; what output_padding adds and a negative crop are the bias alone.
    level = np.zeros(weight.shape[1] * attributes.get("group", 1), y.dtype) if not bias else bias[0]
    level = level.reshape(1, -1, *[1] * rank)
    ends = [(-low, e - high) for (low, high), e in zip(pads, extra, strict=True)]
    grown = F.pad(y - level, [amount for pair in reversed(ends) for amount in pair])
    return (grown + level,)


def deform_conv(inputs, attributes):
    x, weight, offset, bias, mask = [*inputs, None, None][:5]
    stride, dilation, pads = window(attributes, x, weight.shape[2:])
    y = F.deform_conv2d(x, offset, weight, bias, stride, pads, dilation, mask)
    return (y,)


def max_pool(inputs, attributes):
    (x,) = inputs
    floats(x)
    if attributes.get("storage_order", 0):
        raise Unsupported("storage_order 1")
    kernel = tuple(attributes["kernel_shape"])
    stride, dilation, pads = window(attributes, x, kernel)
    # As tensors of one image and one channel count their elements, and the indices those of the whole tensor.
    y, indices = by_rank("max_pool", x.ndim - 2)(
        x, kernel, stride, pads, dilation, bool(attributes.get("ceil_mode", 0)), return_indices=True
    )
    planes = np.arange(math.prod(x.shape[:2])).reshape(*x.shape[:2], *[1] * (x.ndim - 2))
    return y, indices + planes * math.prod(x.shape[2:])


def avg_pool(inputs, attributes):
    (x,) = inputs
    kernel = tuple(attributes["kernel_shape"])
    stride, dilation, pads = window(attributes, x, kernel)
    counted = bool(attributes.get("count_include_pad", 0))
    y = by_rank("avg_pool", x.ndim - 2)(
        x, kernel, stride, pads, bool(attributes.get("ceil_mode", 0)), counted, dilation=dilation
    )
    return (y,)


def pad(inputs, attributes):
    x, amounts, value, axes = [*inputs, *[None] * 4][:4]
    amounts = attributes.get("pads") if amounts is None else amounts.tolist()
    value = attributes.get("value", 0.0) if value is None or value.size == 0 else value.item()
    floats(x)
    axes = range(x.ndim) if axes is None else [axis % x.ndim for axis in axes.tolist()]
    widths = [(0, 0)] * x.ndim
    for axis, pair in zip(axes, pairs(amounts), strict=True):
        widths[axis] = pair
    modes = {"constant": "constant", "edge": "replicate", "reflect": "reflect", "wrap": "circular"}
    mode = modes[attributes.get("mode", "constant")]
    flat = [amount for pair in reversed(widths) for amount in pair]
    return (F.pad(x, flat, mode, value) if mode == "constant" else F.pad(x, flat, mode),)


def batch_norm(inputs, attributes):
    x, scale, bias, mean, var = inputs
    eps = attributes.get("epsilon", 1e-5)
    if not attributes.get("training_mode", 0):
        return (F.batch_norm(x, mean, var, scale, bias, eps=eps),)
    y, batch_mean, batch_var = F.batch_norm_training(x, scale, bias, eps)[:3]
    kept = attributes.get("momentum", 0.9)
    return y, kept * mean + (1 - kept) * batch_mean, kept * var + (1 - kept) * batch_var


def layer_norm(inputs, attributes):
    x, scale, *bias = inputs
    axis = attributes.get("axis", -1) % x.ndim
    y = F.layer_norm(x, x.shape[axis:], scale, *bias, eps=attributes.get("epsilon", 1e-5))
    return y, None, None  # ONNX gives mean and inverse deviation as well


def group_norm(inputs, attributes):
    x, scale, bias = inputs
    if attributes["opset"] < 21:
        raise Unsupported("GroupNormalization before opset 21, whose scale is one a group")
    return (F.group_norm(x, attributes["num_groups"], scale, bias, eps=attributes.get("epsilon", 1e-5)),)


def instance_norm(inputs, attributes):
    x, scale, bias = inputs
    return (F.instance_norm(x, weight=scale, bias=bias, eps=attributes.get("epsilon", 1e-5)),)


def lrn(inputs, attributes):
    (x,) = inputs
    y = F.local_response_norm(
        x, attributes["size"], attributes.get("alpha", 1e-4), attributes.get("beta", 0.75),
        attributes.get("bias", 1.0),
    )  # fmt: skip
    return (y,)


def softmax(function):
    def call(inputs, attributes):
        (x,) = inputs
        if attributes["opset"] >= 13:
            return (function(x, attributes.get("axis", -1)),)
        axis = attributes.get("axis", 1) % x.ndim  # one softmax over all axes from here on
        return (function(x.reshape(math.prod(x.shape[:axis]), -1), -1).reshape(x.shape),)

    return call


def elementwise(function, **names):
    """An activation; ``names`` maps its arguments to (attribute, default)."""

    def call(inputs, attributes):
        floats(*inputs)
        arguments = {key: attributes.get(name, default) for key, (name, default) in names.items()}
        return (function(*inputs, **arguments),)

    return call


def prelu(inputs, attributes):
    x, slope = inputs
    floats(x)
    if slope.size not in (1, x.shape[1]) or (slope.size > 1 and slope.shape[:1] != x.shape[1:2]):
        raise Unsupported("PRelu with a slope for more than a channel")
    return (F.prelu(x, slope.reshape(-1)),)


def selu(inputs, attributes):
    floats(*inputs)
    if not {"alpha", "gamma"} & attributes.keys():
        return (F.selu(*inputs),)
    return (attributes["gamma"] * F.elu(*inputs, alpha=attributes["alpha"]),)


def hard_sigmoid(inputs, attributes):
    (x,) = inputs
    floats(x)
    # max(0, min(1, αx + β)), where PyTorch has α = 1/6 and β = 1/2.
    line = attributes.get("alpha", 0.2) * x + attributes.get("beta", 0.5)
    return (F.hardsigmoid((6 * line - 3).astype(x.dtype)),)


def gelu(inputs, attributes):
    return (F.gelu(*inputs, approximate=attributes.get("approximate", "none")),)


def depth_to_space(inputs, attributes):
    return (F.pixel_shuffle(*inputs, attributes["blocksize"], mode=attributes.get("mode", "DCR")),)


def space_to_depth(inputs, attributes):
    return (F.pixel_unshuffle(*inputs, attributes["blocksize"], mode=attributes.get("mode", "DCR")),)


def global_pool(reduce):
    def call(inputs, attributes):
        (x,) = inputs
        return (by_rank(f"adaptive_{reduce}_pool", x.ndim - 2)(x, 1),)

    return call


GLUE = {
    "Add": glue(np.add),
    "Constant": constant,
    "Mul": glue(np.multiply),
    "Neg": glue(np.negative),
    "Split": split,
    "Squeeze": lambda inputs, attributes: (inputs[0].squeeze(tuple(attributes["axes"])),),
    "Unsqueeze": lambda inputs, attributes: (np.expand_dims(inputs[0], tuple(attributes["axes"])),),
}
OPERATORS = {
    "AveragePool": avg_pool,
    "BatchNormalization": batch_norm,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "DeformConv": deform_conv,
    "DepthToSpace": depth_to_space,
    "Elu": elementwise(F.elu, alpha=("alpha", 1.0)),
    "Gelu": gelu,
    "GlobalAveragePool": global_pool("avg"),
    "GlobalMaxPool": global_pool("max"),
    "GroupNormalization": group_norm,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": elementwise(F.hardswish),
    "InstanceNormalization": instance_norm,
    "LRN": lrn,
    "LayerNormalization": layer_norm,
    "LeakyRelu": elementwise(F.leaky_relu, negative_slope=("alpha", 0.01)),
    "LogSoftmax": softmax(F.log_softmax),
    "MaxPool": max_pool,
    "PRelu": prelu,
    "Pad": pad,
    "Relu": elementwise(F.relu),
    "Selu": selu,
    "Sigmoid": elementwise(F.sigmoid),
    "Softmax": softmax(F.softmax),
    "Softplus": elementwise(F.softplus),
    "SpaceToDepth": space_to_depth,
    "Tanh": elementwise(F.tanh),
}
