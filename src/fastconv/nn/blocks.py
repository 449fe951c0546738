"""Composite layers that the literature has names for."""

from __future__ import annotations

import numpy as np

from fastconv import checks
from fastconv.functional.separable import separable_conv2d
from fastconv.geometry import ConvGeometry
from fastconv.nn.activation import ReLU
from fastconv.nn.composite import MERGES, Composite, merged
from fastconv.nn.convolution import Conv2d
from fastconv.nn.layer import EVALUATION, register
from fastconv.nn.merge import Add, ExpandAs
from fastconv.nn.normalization import BatchNorm2d
from fastconv.nn.pooling import GlobalAvgPool2d
from fastconv.nn.value import Input


class _Units:
    """Makes convolutions with what follows them, all with one dtype and one source of random numbers."""

    def __init__(self, norm, dtype, seed):
        self.norm = checks.boolean("norm", norm)
        self.dtype = dtype
        self.rng = checks.generator("seed", seed)

    def __call__(self, x, names, in_channels, out_channels, kernel_size, *, relu=True, **options):
        """Convolution, batch normalisation and ReLU under ``names``, as far as there are names for them."""
        conv = Conv2d(
            in_channels, out_channels, kernel_size, bias=not self.norm, dtype=self.dtype, seed=self.rng,
            **options,
        )  # fmt: skip
        y = conv(x, name=names[0])
        if self.norm:
            y = BatchNorm2d(out_channels, dtype=self.dtype)(y, name=names[1])
        return ReLU()(y) if relu else y


@register
class Bottleneck(Composite):
    """1×1 to few channels, k×k there, 1×1 back to many, around it a skip connection.

    ``relu(bn3(conv3(relu(bn2(conv2(relu(bn1(conv1(x)))))))) + skip(x))``, where skip is the identity, or a
    1×1 convolution with batch normalisation where the shape changes. (He, Zhang, Ren, Sun, "Deep Residual
    Learning for Image Recognition", 2015, arXiv 1512.03385, figure 5; the stride is that of the k×k
    convolution, as in torchvision, whose parameter names these are.)

    Parameters
    ----------
    in_channels : int
    channels : int
        Of the k×k convolution; the output has ``channels · expansion``.
    kernel_size : int or (int, int), default 3
        Odd; padded so that the size is kept.
    stride, dilation : int or (int, int), default 1
    groups : int, default 1
        Of the k×k convolution (ResNeXt).
    expansion : int, default 4
    norm : bool, default True
        Batch normalisation after each convolution; without it the convolutions have a bias.
    dtype : float32 or float64, default float32
    seed : int or numpy.random.Generator, optional
        As for :class:`Conv2d`.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range.
    """

    arguments = (
        "in_channels", "channels", "kernel_size", "stride", "dilation", "groups", "expansion", "norm",
        "dtype",
    )  # fmt: skip

    def __init__(
        self, in_channels, channels, kernel_size=3, stride=1, dilation=1, groups=1, expansion=4, norm=True, *,
        dtype=np.float32, seed=None,
    ):  # fmt: skip
        self.in_channels = checks.integer("in_channels", in_channels, 1)
        self.channels = checks.integer("channels", channels, 1)
        self.kernel_size = checks.per_axis("kernel_size", kernel_size, 2, 1)
        self.stride = checks.per_axis("stride", stride, 2, 1)
        self.dilation = checks.per_axis("dilation", dilation, 2, 1)
        self.groups = checks.integer("groups", groups, 1)
        self.expansion = checks.integer("expansion", expansion, 1)
        self.norm = norm
        unit = _Units(norm, dtype, seed)
        padding = _centred(self.kernel_size, self.dilation)
        out_channels = self.channels * self.expansion
        x = skip = Input()
        y = unit(x, ("conv1", "bn1"), self.in_channels, self.channels, 1)
        y = unit(
            y, ("conv2", "bn2"), self.channels, self.channels, self.kernel_size, stride=self.stride,
            padding=padding, dilation=self.dilation, groups=self.groups,
        )  # fmt: skip
        y = unit(y, ("conv3", "bn3"), self.channels, out_channels, 1, relu=False)
        if self.stride != (1, 1) or self.in_channels != out_channels:
            names = ("downsample.0", "downsample.1")
            skip = unit(x, names, self.in_channels, out_channels, 1, relu=False, stride=self.stride)
        super().__init__(x, ReLU()(Add()(y, skip)))


@register
class Cascade(Composite):
    """Small convolutions one after the other, ReLU between them, that see what one large one sees.

    n of k×k see n·(k − 1) + 1 pixels each way: two 3×3 see 5×5 with 18 weights for 25, and one more
    non-linearity. (Simonyan, Zisserman, "Very Deep Convolutional Networks", 2014, arXiv 1409.1556, section
    2.3.)

    Parameters
    ----------
    in_channels, out_channels : int
        The convolutions after the first have ``out_channels`` on both sides.
    count : int, default 2
        n.
    kernel_size : int or (int, int), default 3
        Odd; padded so that the size is kept.
    stride : int or (int, int), default 1
        Of the last convolution, so that the receptive field stays what it is.
    bias : bool, default True
    dtype : float32 or float64, default float32
    seed : int or numpy.random.Generator, optional
        As for :class:`Conv2d`.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range.
    """

    arguments = ("in_channels", "out_channels", "count", "kernel_size", "stride", "bias", "dtype")

    def __init__(
        self, in_channels, out_channels, count=2, kernel_size=3, stride=1, bias=True, *, dtype=np.float32,
        seed=None,
    ):  # fmt: skip
        self.in_channels, self.out_channels = in_channels, out_channels
        self.count = checks.integer("count", count, 1)
        self.kernel_size = checks.per_axis("kernel_size", kernel_size, 2, 1)
        self.stride = checks.per_axis("stride", stride, 2, 1)
        self.bias = bias
        rng = checks.generator("seed", seed)
        x = y = Input()
        for index in range(self.count):
            last = index == self.count - 1
            conv = Conv2d(
                out_channels if index else in_channels, out_channels, self.kernel_size,
                self.stride if last else 1, _centred(self.kernel_size, (1, 1)), bias=bias, dtype=dtype,
                seed=rng,
            )  # fmt: skip
            y = conv(y, name=f"conv{index + 1}")
            y = y if last else ReLU()(y)
        super().__init__(x, y)


@register
class SeparableConv2d(Composite):
    """Depthwise-separable convolution: k×k on each channel apart, then 1×1 over all of them.

    ``pointwise(depthwise(x))``, with no activation between. In inference both are computed in one pass,
    :func:`fastconv.functional.separable_conv2d`. (Chollet, "Xception: Deep Learning with Depthwise
    Separable Convolutions", 2016, arXiv 1610.02357.)

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int or (int, int)
    stride, dilation : int or (int, int), default 1
    padding : int, (int, int), ((top, bottom), (left, right)), "valid", "same" or "full", default 0
        Of the depthwise convolution.
    multiplier : int, default 1
        Kernels for each input channel.
    bias : bool, default True
        Of both convolutions.
    dtype : float32 or float64, default float32
    seed : int or numpy.random.Generator, optional
        As for :class:`Conv2d`.

    Attributes
    ----------
    depthwise, pointwise : Conv2d
        Their weights are (in_channels·multiplier, 1, k_h, k_w) and
        (out_channels, in_channels·multiplier, 1, 1).

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range.
    """

    arguments = (
        "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "multiplier", "bias",
        "dtype",
    )  # fmt: skip

    def __init__(
        self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, multiplier=1,
        bias=True, *, dtype=np.float32, seed=None,
    ):  # fmt: skip
        self.in_channels = checks.integer("in_channels", in_channels, 1)
        self.out_channels = checks.integer("out_channels", out_channels, 1)
        self.multiplier = checks.integer("multiplier", multiplier, 1)
        rng, channels = checks.generator("seed", seed), self.in_channels * self.multiplier
        self.depthwise = Conv2d(
            in_channels, channels, kernel_size, stride, padding, dilation, in_channels, bias, dtype=dtype,
            seed=rng,
        )  # fmt: skip
        self.pointwise = Conv2d(channels, out_channels, 1, bias=bias, dtype=dtype, seed=rng)
        self.kernel_size, self.stride = self.depthwise.kernel_size, self.depthwise.stride
        self.padding, self.dilation, self.bias = self.depthwise.padding, self.depthwise.dilation, bias
        x = Input()
        super().__init__(x, self.pointwise(self.depthwise(x, name="depthwise"), name="pointwise"))

    def forward(self, x, mode=EVALUATION):
        if mode.cache:
            return super().forward(x, mode=mode)
        first, second = self.depthwise, self.pointwise
        y = separable_conv2d(
            x, first.weight, second.weight, first.bias, second.bias, stride=self.stride,
            padding=self.padding, dilation=self.dilation, num_threads=mode.num_threads,
        )  # fmt: skip
        return y, None


@register
class SpatiallySeparableConv2d(Composite):
    """k_h×1, then 1×k_w: k_h + k_w weights a channel for k_h·k_w, where the kernel has rank 1.

    ``horizontal(vertical(x))``. :func:`fastconv.functional.separate_kernel` finds both for a given kernel.
    (Jaderberg, Vedaldi, Zisserman, "Speeding up Convolutional Neural Networks with Low Rank Expansions",
    BMVC 2014; as layers of their own: Szegedy et al., arXiv 1512.00567, section 3.2.)

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int or (int, int)
    stride, dilation : int or (int, int), default 1
    padding : int, (int, int), ((top, bottom), (left, right)), "valid", "same" or "full", default 0
    mid_channels : int, optional
        Between the two: the rank. Default: ``out_channels``.
    bias : bool, default True
        Of the second convolution; the first has none, as nothing stands between them.
    dtype : float32 or float64, default float32
    seed : int or numpy.random.Generator, optional
        As for :class:`Conv2d`.

    Attributes
    ----------
    vertical, horizontal : Conv2d
        Their weights are (mid_channels, in_channels, k_h, 1) and (out_channels, mid_channels, 1, k_w).

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range.
    """

    arguments = (
        "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "mid_channels", "bias",
        "dtype",
    )  # fmt: skip

    def __init__(
        self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, mid_channels=None,
        bias=True, *, dtype=np.float32, seed=None,
    ):  # fmt: skip
        self.in_channels = checks.integer("in_channels", in_channels, 1)
        self.out_channels = checks.integer("out_channels", out_channels, 1)
        self.mid_channels = (
            self.out_channels if mid_channels is None else checks.integer("mid_channels", mid_channels, 1)
        )
        self.kernel_size = checks.per_axis("kernel_size", kernel_size, 2, 1)
        self.stride = checks.per_axis("stride", stride, 2, 1)
        self.dilation = checks.per_axis("dilation", dilation, 2, 1)
        padding = checks.frozen(padding)
        self.padding, self.bias = padding, bias
        extent = [d * (k - 1) + 1 for k, d in zip(self.kernel_size, self.dilation, strict=True)]
        rows, columns = ConvGeometry.create(
            (1, 1, *extent), (1, 1, *self.kernel_size), padding=padding, dilation=self.dilation
        ).padding
        same, rng = padding == "same", checks.generator("seed", seed)
        self.vertical = Conv2d(
            in_channels, self.mid_channels, (self.kernel_size[0], 1), (self.stride[0], 1),
            padding if same else (rows, (0, 0)), (self.dilation[0], 1), bias=False, dtype=dtype, seed=rng,
        )  # fmt: skip
        self.horizontal = Conv2d(
            self.mid_channels, out_channels, (1, self.kernel_size[1]), (1, self.stride[1]),
            padding if same else ((0, 0), columns), (1, self.dilation[1]), bias=bias, dtype=dtype, seed=rng,
        )  # fmt: skip
        x = Input()
        super().__init__(x, self.horizontal(self.vertical(x, name="vertical"), name="horizontal"))


@register
class NetworkInNetwork(Composite):
    """Branches 1×k, k×1 and 1×1 side by side, and the input itself where asked for, merged.

    Merged by "sum" they are one kernel of the shape of a plus sign. (Small networks within a layer: Lin,
    Chen, Yan, "Network In Network", 2013, arXiv 1312.4400; branches of 1×k and k×1: Szegedy et al.,
    "Rethinking the Inception Architecture", 2015, arXiv 1512.00567, figure 7.)

    Parameters
    ----------
    in_channels : int
    out_channels : int
        Of each branch: the output has as many with "sum"; with "concat" ``3 · out_channels``, and with
        ``skip`` ``in_channels`` more, in the order 1×k, k×1, 1×1, input.
    kernel_size : int, default 3
        k; padded so that the size is kept.
    skip : bool, default False
        A branch that is the input; with "sum" it needs ``in_channels == out_channels``.
    merge : {"sum", "concat"}, default "sum"
    bias : bool, default True
    dtype : float32 or float64, default float32
    seed : int or numpy.random.Generator, optional
        As for :class:`Conv2d`.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range.
    """

    arguments = ("in_channels", "out_channels", "kernel_size", "skip", "merge", "bias", "dtype")

    def __init__(
        self, in_channels, out_channels, kernel_size=3, skip=False, merge="sum", bias=True, *,
        dtype=np.float32, seed=None,
    ):  # fmt: skip
        self.in_channels = checks.integer("in_channels", in_channels, 1)
        self.out_channels = checks.integer("out_channels", out_channels, 1)
        self.kernel_size = checks.integer("kernel_size", kernel_size, 1)
        self.skip = checks.boolean("skip", skip)
        checks.choice("merge", merge, MERGES)
        _check_skip(self.skip, merge, in_channels, out_channels)
        self.merge, self.bias = merge, bias
        rng = checks.generator("seed", seed)
        x = Input()
        branches = []
        for name, size in (("row", (1, kernel_size)), ("column", (kernel_size, 1)), ("pixel", (1, 1))):
            conv = Conv2d(in_channels, out_channels, size, padding="same", bias=bias, dtype=dtype, seed=rng)
            branches.append(conv(x, name=name))
        super().__init__(x, merged([*branches, x] if skip else branches, merge))


@register
class ASPP(Composite):
    """Atrous spatial pyramid pooling: dilated convolutions of several rates side by side, merged.

    Branches: 1×1, one k×k for each rate, and the mean of the whole image through a 1×1, repeated to the
    size of the others; each with batch normalisation and ReLU. Concatenated, they pass through one more
    1×1. (Chen, Papandreou, Schroff, Adam, "Rethinking Atrous Convolution for Semantic Image
    Segmentation", 2017, arXiv 1706.05587, section 3.3.)

    Parameters
    ----------
    in_channels, out_channels : int
        ``out_channels`` of each branch and of the result.
    rates : sequence of int or of (int, int), default (6, 12, 18)
        Dilations, at least one.
    kernel_size : int or (int, int), default 3
        Odd; padded so that the size is kept.
    pointwise : bool, default True
        The 1×1 branch.
    global_pool : bool, default True
        The branch of the image's mean. In training with ``norm`` it needs more than one image.
    skip : bool, default False
        A branch that is the input; with "sum" it needs ``in_channels == out_channels``.
    merge : {"concat", "sum"}, default "concat"
        With "sum" the branches are added, and no 1×1 follows.
    norm : bool, default True
        Batch normalisation after each convolution; without it the convolutions have a bias.
    dtype : float32 or float64, default float32
    seed : int or numpy.random.Generator, optional
        As for :class:`Conv2d`.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range.
    """

    arguments = (
        "in_channels", "out_channels", "rates", "kernel_size", "pointwise", "global_pool", "skip", "merge",
        "norm", "dtype",
    )  # fmt: skip

    def __init__(
        self, in_channels, out_channels, rates=(6, 12, 18), kernel_size=3, pointwise=True, global_pool=True,
        skip=False, merge="concat", norm=True, *, dtype=np.float32, seed=None,
    ):  # fmt: skip
        self.in_channels = checks.integer("in_channels", in_channels, 1)
        self.out_channels = checks.integer("out_channels", out_channels, 1)
        self.rates = _rates(rates)
        self.kernel_size = checks.per_axis("kernel_size", kernel_size, 2, 1)
        self.pointwise = checks.boolean("pointwise", pointwise)
        self.global_pool = checks.boolean("global_pool", global_pool)
        self.skip = checks.boolean("skip", skip)
        checks.choice("merge", merge, MERGES)
        _check_skip(self.skip, merge, in_channels, out_channels)
        self.merge, self.norm = merge, norm
        unit = _Units(norm, dtype, seed)
        x = Input()
        branches = [x] if self.skip else []
        if self.pointwise:
            branches.append(unit(x, ("pointwise.0", "pointwise.1"), in_channels, out_channels, 1))
        for index, rate in enumerate(self.rates):
            names = (f"atrous.{index}.0", f"atrous.{index}.1")
            padding = _centred(self.kernel_size, rate)
            branches.append(
                unit(x, names, in_channels, out_channels, self.kernel_size, padding=padding, dilation=rate)
            )
        if self.global_pool:
            mean = GlobalAvgPool2d()(x)
            mean = unit(mean, ("global_pool.0", "global_pool.1"), in_channels, out_channels, 1)
            branches.append(ExpandAs()(mean, x))
        y = merged(branches, merge)
        if merge == "concat":
            convolved = len(branches) - self.skip
            channels = convolved * out_channels + self.skip * in_channels
            y = unit(y, ("project.0", "project.1"), channels, out_channels, 1)
        super().__init__(x, y)


def _centred(kernel_size, dilation):
    """The padding that keeps the size at stride 1."""
    if any(size % 2 == 0 for size in kernel_size):
        raise ValueError(f"kernel_size must be odd, got {kernel_size}")
    return tuple(step * (size // 2) for size, step in zip(kernel_size, dilation, strict=True))


def _check_skip(skip, merge, in_channels, out_channels):
    if skip and merge == "sum" and in_channels != out_channels:
        raise ValueError(
            "skip must be False where merge='sum' and the channels differ,"
            f" got in_channels={in_channels}, out_channels={out_channels}"
        )


def _rates(rates):
    if not isinstance(rates, tuple | list) or not rates:
        raise TypeError(f"rates must be a sequence of at least one dilation, got {rates!r}")
    return tuple(checks.per_axis(f"rates[{index}]", rate, 2, 1) for index, rate in enumerate(rates))
