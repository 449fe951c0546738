"""The layers of real networks that tests and benchmarks share.

A name is ``family/network-layer``; ``select("3x3/*")`` picks a family. Figures are batch 1, the sizes
those networks have for 224×224 images (Inception v3: 299×299, AlexNet: 224×224, DeepLab: output stride 8).
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np

from fastconv.memory import aligned_empty


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy in C order that begins on a cache line, as each library's own results do and NumPy's do not."""
    copy = aligned_empty(array.shape, array.dtype)
    copy[...] = array
    return copy


class Layer(NamedTuple):
    """One convolution of a real network; ``padding`` is symmetric, (rows, columns) as everywhere."""

    name: str
    batch: int
    in_channels: int
    height: int
    width: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @property
    def family(self) -> str:
        """The part of the name before the slash."""
        return self.name.partition("/")[0]

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """(N, C_in, H, W)."""
        return self.batch, self.in_channels, self.height, self.width

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """(C_out, C_in/groups, k_h, k_w)."""
        return self.out_channels, self.in_channels // self.groups, *self.kernel

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """(N, C_out, H_out, W_out)."""
        size = (
            (extent + 2 * pad - spread * (taps - 1) - 1) // step + 1
            for extent, taps, step, pad, spread in zip(
                (self.height, self.width), self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )
        return self.batch, self.out_channels, *size

    @property
    def multiplications(self) -> int:
        """Multiplications of direct convolution; twice as many flops."""
        products = self.in_channels // self.groups * self.kernel[0] * self.kernel[1]
        return products * int(np.prod(self.output_shape))

    @property
    def keywords(self) -> dict:
        """What ``fastconv.conv2d`` takes besides the arrays."""
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }

    def arrays(self, seed: int = 0, dtype=np.float32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, weight and bias from N(0, 1), the weight scaled so that the outputs stay near 1; `aligned`."""
        rng = np.random.default_rng(seed)
        x = rng.standard_normal(self.input_shape, dtype=np.float32)
        weight = rng.standard_normal(self.weight_shape, dtype=np.float32)
        weight /= np.float32(np.prod(self.weight_shape[1:])) ** 0.5
        bias = rng.standard_normal(self.out_channels, dtype=np.float32)
        return tuple(aligned(array.astype(dtype, copy=False)) for array in (x, weight, bias))

    def __str__(self) -> str:
        text = f"{self.in_channels},{self.height},{self.width}→{self.out_channels} "
        text += "×".join(map(str, self.kernel))
        if self.batch != 1:
            text = f"{self.batch}×({text})"
        if self.stride != (1, 1):
            text += f" s{self.stride[0]}"
        if self.dilation != (1, 1):
            text += f" d{self.dilation[0]}"
        if self.groups != 1:
            text += " dw" if self.groups == self.in_channels else f" g{self.groups}"
        return text


def _layer(name, channels, size, out_channels, kernel, *, stride=1, dilation=1, groups=1, padding=None):
    """A square, batch-1 layer; by default padded so that stride 1 keeps the size."""
    taps = (kernel, kernel) if isinstance(kernel, int) else kernel
    if padding is None:
        padding = tuple(dilation * (k - 1) // 2 for k in taps)
    return Layer(
        name, 1, channels, size, size, out_channels, taps, (stride,) * 2, padding, (dilation,) * 2, groups
    )


def _depthwise(name, channels, size, kernel, stride=1):
    return _layer(name, channels, size, channels, kernel, stride=stride, groups=channels)


LAYERS = (
    _layer("3x3/vgg16-conv1_2", 64, 224, 64, 3),
    _layer("3x3/vgg16-conv2_2", 128, 112, 128, 3),
    _layer("3x3/vgg16-conv3_2", 256, 56, 256, 3),
    _layer("3x3/vgg16-conv4_2", 512, 28, 512, 3),
    _layer("3x3/resnet-conv2", 64, 56, 64, 3),
    _layer("3x3/resnet-conv3", 128, 28, 128, 3),
    _layer("3x3-small/vgg16-conv5_1", 512, 14, 512, 3),
    _layer("3x3-small/resnet-conv4", 256, 14, 256, 3),
    _layer("3x3-small/resnet-conv5", 512, 7, 512, 3),
    _layer("3x3s2/resnet50-conv3", 128, 56, 128, 3, stride=2),
    _layer("3x3s2/resnet18-conv4", 128, 28, 256, 3, stride=2),
    _layer("3x3s2/resnet18-conv5", 256, 14, 512, 3, stride=2),
    _layer("1x1/resnet50-conv2-out", 64, 56, 256, 1),
    _layer("1x1/resnet50-conv2-in", 256, 56, 64, 1),
    _layer("1x1/resnet50-conv3-out", 128, 28, 512, 1),
    _layer("1x1/resnet50-conv3-in", 512, 28, 128, 1),
    _layer("1x1/resnet50-conv4-out", 256, 14, 1024, 1),
    _layer("1x1/resnet50-conv4-in", 1024, 14, 256, 1),
    _layer("1x1/resnet50-conv5-out", 512, 7, 2048, 1),
    _layer("1x1/resnet50-conv5-in", 2048, 7, 512, 1),
    _layer("1x1/resnet50-conv3-skip", 256, 56, 512, 1, stride=2),
    _layer("first/vgg16-conv1_1", 3, 224, 64, 3),
    _layer("first/resnet-conv1", 3, 224, 64, 7, stride=2),
    _layer("first/alexnet-conv1", 3, 224, 64, 11, stride=4, padding=(2, 2)),
    _layer("5x5/alexnet-conv2", 64, 27, 192, 5),
    _layer("5x5/inceptionv3-mixed5", 48, 35, 64, 5),
    _layer("1d/inceptionv3-1x7", 128, 17, 128, (1, 7)),
    _layer("1d/inceptionv3-7x1", 192, 17, 192, (7, 1)),
    _layer("1d/inceptionv3-1x3", 384, 8, 384, (1, 3)),
    _layer("dilated/deeplab-conv4", 256, 28, 256, 3, dilation=2),
    _layer("dilated/deeplab-conv5", 256, 28, 256, 3, dilation=4),
    _depthwise("depthwise/mobilenet-28", 256, 28, 3),
    _depthwise("depthwise/mobilenetv2-56", 144, 56, 3),
    _depthwise("depthwise/mobilenetv2-14", 384, 14, 3),
    _depthwise("depthwise/mobilenet-112-s2", 64, 112, 3, stride=2),
    _depthwise("depthwise/efficientnet-28-5x5", 240, 28, 5),
    _depthwise("depthwise/convnext-56-7x7", 96, 56, 7),
    _layer("grouped/resnext50-conv2", 128, 56, 128, 3, groups=32),
    _layer("grouped/resnext50-conv3", 256, 28, 256, 3, groups=32),
)


def select(pattern: str) -> tuple[Layer, ...]:
    """The layers whose name matches any of the comma-separated globs.

    Raises
    ------
    ValueError
        If none matches.
    """
    globs = [part.strip() for part in pattern.split(",")]
    chosen = tuple(layer for layer in LAYERS if any(fnmatchcase(layer.name, glob) for glob in globs))
    if not chosen:
        families = ", ".join(dict.fromkeys(layer.family for layer in LAYERS))
        raise ValueError(
            f"layers must match some of the registry's names, got {pattern!r}; families: {families}"
        )
    return chosen
