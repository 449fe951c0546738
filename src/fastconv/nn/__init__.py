"""Layers and models.

::

    Layer                Conv2d, Linear, ReLU, ...: parameters, forward, backward
      │  called on arrays: computes      called on Values: adds a node
      ▼
    Value ─► Graph       the walk: forward, backward
               └─► Model, Sequential     weights, summary, fit, predict, save
"""

from fastconv.nn.activation import ReLU, Softmax
from fastconv.nn.attention import AttentionConv2d
from fastconv.nn.convolution import Conv2d
from fastconv.nn.deformable import DeformableConv2d, DeformConv2d
from fastconv.nn.dropout import Dropout
from fastconv.nn.graph import Graph, Node
from fastconv.nn.layer import Field, Layer, Mode, register
from fastconv.nn.linear import Linear
from fastconv.nn.merge import Add, Concat
from fastconv.nn.model import Model, Sequential
from fastconv.nn.normalization import BatchNorm2d
from fastconv.nn.persistence import load
from fastconv.nn.pooling import AvgPool2d, GlobalAvgPool2d, MaxPool2d
from fastconv.nn.reshape import Flatten
from fastconv.nn.summary import ReceptiveField, Summary, count_parameters, receptive_field
from fastconv.nn.value import Input, Value

__all__ = [
    "Add",
    "AttentionConv2d",
    "AvgPool2d",
    "BatchNorm2d",
    "Concat",
    "Conv2d",
    "DeformConv2d",
    "DeformableConv2d",
    "Dropout",
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
    "Node",
    "ReLU",
    "ReceptiveField",
    "Sequential",
    "Softmax",
    "Summary",
    "Value",
    "count_parameters",
    "load",
    "receptive_field",
    "register",
]
