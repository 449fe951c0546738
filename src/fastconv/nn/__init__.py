"""Layers and models.

::

    Layer                Conv2d, Linear, ReLU, ...: parameters, forward, backward
      │  called on arrays: computes      called on Values: adds a node
      ▼
    Value ─► Graph       the walk: forward, backward
               ├─► Model, Sequential     weights, summary, fit, predict, save
               └─► Composite             a small graph that is a layer again: Residual, Bottleneck, ...
"""

from fastconv.nn.activation import (
    ELU,
    GELU,
    SELU,
    Hardsigmoid,
    Hardswish,
    LeakyReLU,
    LogSoftmax,
    PReLU,
    ReLU,
    ReLU6,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from fastconv.nn.attention import AttentionConv2d
from fastconv.nn.blocks import (
    ASPP,
    Bottleneck,
    Cascade,
    NetworkInNetwork,
    SeparableConv2d,
    SpatiallySeparableConv2d,
)
from fastconv.nn.composite import Composite, Parallel, Residual
from fastconv.nn.convolution import Conv1d, Conv2d, Conv3d
from fastconv.nn.deformable import DeformableConv2d, DeformConv2d
from fastconv.nn.dropout import Dropout
from fastconv.nn.fields import ReceptiveField, effective_receptive_field, receptive_field, receptive_fields
from fastconv.nn.graph import Graph, Node
from fastconv.nn.layer import Field, Layer, Mode, register
from fastconv.nn.linear import Linear
from fastconv.nn.merge import Add, Concat, ExpandAs
from fastconv.nn.model import Model, Sequential
from fastconv.nn.normalization import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LayerNorm,
    LocalResponseNorm,
)
from fastconv.nn.padding import (
    CircularPad1d,
    CircularPad2d,
    CircularPad3d,
    ConstantPad1d,
    ConstantPad2d,
    ConstantPad3d,
    ReflectionPad1d,
    ReflectionPad2d,
    ReflectionPad3d,
    ReplicationPad1d,
    ReplicationPad2d,
    ReplicationPad3d,
    ZeroPad1d,
    ZeroPad2d,
    ZeroPad3d,
)
from fastconv.nn.persistence import load
from fastconv.nn.pooling import (
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AdaptiveAvgPool3d,
    AdaptiveMaxPool1d,
    AdaptiveMaxPool2d,
    AdaptiveMaxPool3d,
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    GlobalAvgPool2d,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
)
from fastconv.nn.resampling import Upsample
from fastconv.nn.reshape import Flatten
from fastconv.nn.shuffle import PixelShuffle, PixelUnshuffle, SubpixelConv2d
from fastconv.nn.summary import Summary, count_parameters
from fastconv.nn.transposed import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from fastconv.nn.value import Input, Value

__all__ = [
    "ASPP",
    "ELU",
    "GELU",
    "SELU",
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AdaptiveMaxPool3d",
    "Add",
    "AttentionConv2d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Bottleneck",
    "Cascade",
    "CircularPad1d",
    "CircularPad2d",
    "CircularPad3d",
    "Composite",
    "Concat",
    "ConstantPad1d",
    "ConstantPad2d",
    "ConstantPad3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "DeformConv2d",
    "DeformableConv2d",
    "Dropout",
    "ExpandAs",
    "Field",
    "Flatten",
    "GlobalAvgPool2d",
    "Graph",
    "GroupNorm",
    "Hardsigmoid",
    "Hardswish",
    "Input",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LocalResponseNorm",
    "LogSoftmax",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "Mode",
    "Model",
    "NetworkInNetwork",
    "Node",
    "PReLU",
    "Parallel",
    "PixelShuffle",
    "PixelUnshuffle",
    "ReLU",
    "ReLU6",
    "ReceptiveField",
    "ReflectionPad1d",
    "ReflectionPad2d",
    "ReflectionPad3d",
    "ReplicationPad1d",
    "ReplicationPad2d",
    "ReplicationPad3d",
    "Residual",
    "SeparableConv2d",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "SpatiallySeparableConv2d",
    "SubpixelConv2d",
    "Summary",
    "Tanh",
    "Upsample",
    "Value",
    "ZeroPad1d",
    "ZeroPad2d",
    "ZeroPad3d",
    "count_parameters",
    "effective_receptive_field",
    "load",
    "receptive_field",
    "receptive_fields",
    "register",
]
