"""Layers and models.

::

    Layer                Conv2d, Linear, ReLU, ...: parameters, forward, backward
      │  called on arrays: computes      called on Values: adds a node
      ▼
    Value ─► Graph       the walk: forward, backward
               ├─► Model, Sequential     weights, summary, fit, predict, save
               └─► Composite             a small graph that is a layer again: Residual, Bottleneck, ...
"""

from fastconv.nn.activation import ReLU, Softmax
from fastconv.nn.blocks import (
    ASPP,
    Bottleneck,
    Cascade,
    NetworkInNetwork,
    SeparableConv2d,
    SpatiallySeparableConv2d,
)
from fastconv.nn.composite import Composite, Parallel, Residual
from fastconv.nn.convolution import Conv2d
from fastconv.nn.dropout import Dropout
from fastconv.nn.fields import (
    ReceptiveField,
    effective_receptive_field,
    receptive_field,
    receptive_fields,
)
from fastconv.nn.graph import Graph, Node
from fastconv.nn.layer import Field, Layer, Mode, register
from fastconv.nn.linear import Linear
from fastconv.nn.merge import Add, Concat, ExpandAs
from fastconv.nn.model import Model, Sequential
from fastconv.nn.normalization import BatchNorm2d
from fastconv.nn.persistence import load
from fastconv.nn.pooling import AvgPool2d, GlobalAvgPool2d, MaxPool2d
from fastconv.nn.reshape import Flatten
from fastconv.nn.summary import Summary, count_parameters
from fastconv.nn.value import Input, Value

__all__ = [
    "ASPP",
    "Add",
    "AvgPool2d",
    "BatchNorm2d",
    "Bottleneck",
    "Cascade",
    "Composite",
    "Concat",
    "Conv2d",
    "Dropout",
    "ExpandAs",
    "Field",
    "Flatten",
    "GlobalAvgPool2d",
    "Graph",
    "Input",
    "Layer",
    "Linear",
    "MaxPool2d",
    "Mode",
    "Model",
    "NetworkInNetwork",
    "Node",
    "Parallel",
    "ReLU",
    "ReceptiveField",
    "Residual",
    "SeparableConv2d",
    "Sequential",
    "Softmax",
    "SpatiallySeparableConv2d",
    "Summary",
    "Value",
    "count_parameters",
    "effective_receptive_field",
    "load",
    "receptive_field",
    "receptive_fields",
    "register",
]
