"""Pooling, normalisation, resampling, padding, shuffle and activation layers: all through the same checks."""

import numpy as np
import pytest

from fastconv import nn, threads
from support import assert_same_bits, check_gradients

RANKS = (1, 2, 3)
SIZES = {1: (9,), 2: (7, 6), 3: (5, 6, 4)}


def pools(rank):
    """(class name, arguments) of the pooling layers of a rank, the same for PyTorch."""
    pairs = (2, 1, 3)[:rank]
    return [
        (f"MaxPool{rank}d", (3, 2, 1), {}),
        (f"MaxPool{rank}d", (2,), {"ceil_mode": True}),
        (f"MaxPool{rank}d", (2, 1, 1, 2), {}),
        (f"AvgPool{rank}d", (3, 2, 1), {}),
        (f"AvgPool{rank}d", (3, 2, 1, True, False), {}),
        (f"AvgPool{rank}d", (3, 2, 1, True, True), {}),
        (f"AdaptiveAvgPool{rank}d", (pairs,), {}),
        (f"AdaptiveAvgPool{rank}d", (1,), {}),
        (f"AdaptiveMaxPool{rank}d", (3,), {}),
    ]


def norms(rank):
    return [
        (f"BatchNorm{rank}d", (4,), {}),
        (f"BatchNorm{rank}d", (4, 1e-3, None, False), {}),
        (f"BatchNorm{rank}d", (4, 1e-5, 0.2, True, False), {}),
        (f"InstanceNorm{rank}d", (4,), {}),
        (f"InstanceNorm{rank}d", (4, 1e-4, 0.3, True, True), {}),
        ("GroupNorm", (2, 4), {}),
        ("GroupNorm", (4, 4, 1e-3, False), {}),
        ("LayerNorm", (SIZES[rank],), {}),
        ("LayerNorm", (SIZES[rank][-1], 1e-3, True, False), {}),
        ("LayerNorm", (SIZES[rank][-1], 1e-3, False), {}),
        ("LocalResponseNorm", (3,), {}),
        ("LocalResponseNorm", (2, 0.5, 0.6, 2.0), {}),
    ]


def paddings(rank):
    sides = (1, 2, 0, 3, 2, 1)[: 2 * rank]
    return [
        *((f"{kind}Pad{rank}d", (sides,), {}) for kind in ("Zero", "Reflection", "Replication", "Circular")),
        (f"ConstantPad{rank}d", (1, -2.5), {}),
        (f"ZeroPad{rank}d", ((-1, 2) * rank,), {}),
    ]


def upsamplings(rank):
    linear = {1: "linear", 2: "bilinear", 3: "trilinear"}[rank]
    found = [
        ("Upsample", (), {"scale_factor": 2}),
        ("Upsample", (), {"scale_factor": 1.7, "mode": "nearest-exact"}),
        ("Upsample", (), {"scale_factor": 2, "mode": linear}),
        ("Upsample", (), {"scale_factor": 0.6, "mode": linear}),
        ("Upsample", ((7, 5, 3)[:rank],), {"mode": linear, "align_corners": True}),
        ("Upsample", ((11, 1, 3)[:rank],), {"mode": "nearest"}),
    ]
    if rank == 2:
        found += [
            ("Upsample", (), {"scale_factor": (1.5, 3.0), "mode": "bicubic"}),
            ("Upsample", (5,), {"mode": "bicubic", "align_corners": True}),
        ]
    return found


ACTIVATIONS = [
    ("ReLU", (), {}),
    ("ReLU6", (), {}),
    ("LeakyReLU", (0.2,), {}),
    ("PReLU", (), {}),
    ("PReLU", (4, 0.1), {}),
    ("ELU", (0.7,), {}),
    ("SELU", (), {}),
    ("GELU", (), {}),
    ("GELU", ("tanh",), {}),
    ("SiLU", (), {}),
    ("Sigmoid", (), {}),
    ("Tanh", (), {}),
    ("Softplus", (2.0, 1.5), {}),
    ("Hardsigmoid", (), {}),
    ("Hardswish", (), {}),
    ("Softmax", (1,), {}),
    ("LogSoftmax", (-1,), {}),
]
SHUFFLES = [("PixelShuffle", (2,), {}), ("PixelUnshuffle", (2,), {})]

LAYERS = [
    *(
        (rank, *entry)
        for rank in RANKS
        for entry in (*pools(rank), *norms(rank), *paddings(rank), *upsamplings(rank))
    ),
    *((2, *entry) for entry in ACTIVATIONS),
    *((0, *entry) for entry in SHUFFLES),
]
# What PyTorch has not.
OURS = [
    (2, "MaxPool2d", (3, 1, ((2, 1), (0, 2))), {}),
    (2, "AvgPool2d", (3, 2, ((0, 1), (2, 2)), True), {}),
    (1, "AvgPool1d", (3, 2, 1, False, True, 5), {}),
    (3, "Upsample", (4,), {"mode": "area"}),
    (0, "PixelShuffle", (2,), {"mode": "DCR"}),
    (0, "PixelUnshuffle", (2,), {"mode": "DCR"}),
]
WITH_DTYPE = ("Norm", "PReLU")


def shape_of(rank):
    return (2, 4, *SIZES[rank]) if rank else (2, 8, 4, 6)


def make(name, arguments, keywords, dtype=np.float64):
    typed = any(kind in name for kind in WITH_DTYPE) and name != "LocalResponseNorm"
    return getattr(nn, name)(*arguments, **keywords, **({"dtype": dtype} if typed else {}))


def named(entry):
    rank, name, arguments, keywords = entry
    text = ",".join([*map(str, arguments), *(f"{key}={value}" for key, value in keywords.items())])
    return f"{rank}-{name}({text})"


def distinct(rng, shape):
    """Values at least 0.02 apart from each other and from any kink at a whole number."""
    count = int(np.prod(shape))
    return ((rng.permutation(count) - count // 2 + 0.5) * 0.0201).reshape(shape)


@pytest.mark.parametrize("entry", LAYERS + OURS, ids=named)
def test_gradients(entry):
    rank, *definition = entry
    rng = np.random.default_rng(0)
    layer = make(*definition)
    for array in layer.parameters.values():
        array[...] = rng.uniform(0.5, 1.5, array.shape)
    for training in (False, True):
        check_gradients(layer, distinct(rng, shape_of(rank)), training=training, samples=6)


@pytest.mark.parametrize("entry", LAYERS, ids=named)
def test_like_torch(entry):
    torch = pytest.importorskip("torch")
    rank, name, arguments, keywords = entry
    rng = np.random.default_rng(1)
    layer = make(name, arguments, keywords)
    other = getattr(torch.nn, name)(*arguments, **keywords).double()
    for array in layer.parameters.values():
        array[...] = rng.uniform(0.5, 1.5, array.shape)
    assert [*layer.parameters, *layer.buffers] == list(other.state_dict())
    with torch.no_grad():
        for parameter, value in other.named_parameters():
            value.copy_(torch.from_numpy(layer.parameters[parameter]))
    for training in (True, True, False):
        x = distinct(rng, shape_of(rank))
        other.train(training)
        leaf = torch.tensor(x, requires_grad=True)
        expected = other(leaf)
        y, cache = layer.forward(x, mode=nn.Mode(training=training))
        np.testing.assert_allclose(y, expected.detach(), rtol=1e-9, atol=1e-12)
        grad = rng.standard_normal(y.shape)
        other.zero_grad()
        expected.backward(torch.tensor(grad))
        (grad_input,), grads = layer.backward(grad, cache)
        # PyTorch's Hardsigmoid divides by 6 in float32, whatever the dtype.
        rtol = 1e-7 if name == "Hardsigmoid" else 1e-8
        np.testing.assert_allclose(grad_input, leaf.grad, rtol=rtol, atol=1e-11)
        for parameter, value in other.named_parameters():
            np.testing.assert_allclose(grads[parameter], value.grad, rtol=1e-8, atol=1e-11)
        for buffer, value in other.named_buffers():
            np.testing.assert_allclose(layer.buffers[buffer], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("entry", LAYERS + OURS, ids=named)
def test_layers_hand_the_number_of_threads_on(entry, monkeypatch):
    rank, *definition = entry
    layer, seen, resolve = make(*definition, dtype=np.float32), [], threads.resolve
    monkeypatch.setattr(threads, "resolve", lambda count: seen.append(count) or resolve(count))
    x = np.random.default_rng(2).standard_normal(shape_of(rank)).astype(np.float32)
    y, cache = layer.forward(x, mode=nn.Mode(num_threads=2))
    forward = len(seen)
    layer.backward(np.ones_like(y), cache, mode=nn.Mode(num_threads=2))
    if definition[0] != "LocalResponseNorm":  # NumPy's alone
        assert 0 < forward < len(seen)
    assert None not in seen


@pytest.mark.parametrize("entry", LAYERS + OURS, ids=named)
def test_formats_dtypes_threads_and_files(entry, tmp_path):
    rank, *definition = entry
    layer = make(*definition, dtype=np.float32)
    x = np.random.default_rng(2).standard_normal(shape_of(rank)).astype(np.float32)
    last = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    wide = np.repeat(x, 2, axis=-1)[..., ::2]
    wide.flags.writeable = False
    results = []
    for image in (x, last, wide):
        y, cache = layer.forward(image, mode=nn.Mode(num_threads=1))
        assert y.dtype == np.float32
        assert y.shape == layer.output_shape(image.shape)
        again, _ = layer.forward(image, mode=nn.Mode(num_threads=2))
        assert_same_bits(again, y)
        grad = np.random.default_rng(3).standard_normal(y.shape).astype(np.float32)
        (one,), _ = layer.backward(grad, cache, mode=nn.Mode(num_threads=1))
        (two,), _ = layer.backward(grad, cache, mode=nn.Mode(num_threads=2))
        assert_same_bits(one, two)
        assert one.shape == x.shape
        results.append((y, one))
    assert results[0][0].flags.c_contiguous
    if rank and "Softmax" not in definition[0]:
        assert np.moveaxis(results[1][0], 1, -1).flags.c_contiguous
    for y, grad_input in results[1:]:
        np.testing.assert_allclose(y, results[0][0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(grad_input, results[0][1], rtol=1e-3, atol=1e-4)
    model = nn.Sequential(layer)
    model.save(tmp_path / "m.npz")
    loaded = nn.load(tmp_path / "m.npz")
    assert repr(loaded) == repr(model)
    assert_same_bits(loaded[0](x), layer(x))
    if getattr(layer, "track_running_stats", True) or "Instance" in definition[0]:
        # Batch normalisation by the statistics of no batch is refused.
        assert layer(x[:0]).shape == layer.output_shape((0, *x.shape[1:]))


def test_every_layer_of_these_families_is_listed():
    elsewhere = ("GlobalAvgPool2d", "SubpixelConv2d")  # in the tests of layers and of composites
    families = ("activation", "normalization", "padding", "pooling", "resampling", "shuffle")
    found = {
        name
        for name in nn.__all__
        if getattr(nn, name).__module__.rpartition(".")[2] in families and name not in elsewhere
    }
    assert found == {entry[1] for entry in LAYERS}


@pytest.mark.parametrize(
    ("error", "message", "make"),
    [
        (ValueError, "padding must be at most half of kernel_size", lambda: nn.MaxPool1d(3, padding=2)),
        (ValueError, "padding must be less than kernel_size", lambda: nn.MaxPool2d(2, 1, ((0, 2), (0, 0)))),
        (ValueError, r"padding must have 2 \(low, high\) pairs", lambda: nn.MaxPool2d(2, 1, ((0, 1),))),
        (TypeError, "ceil_mode must be True or False", lambda: nn.AvgPool3d(2, ceil_mode=1)),
        (ValueError, "dilation must be an integer >= 1", lambda: nn.MaxPool3d(2, dilation=0)),
        (ValueError, "divisor_override must be an integer >= 1", lambda: nn.AvgPool1d(2, divisor_override=0)),
        (ValueError, "output_size must be an integer or 2 of them", lambda: nn.AdaptiveAvgPool2d((1, 2, 3))),
        (ValueError, r"output_size\[0\] must be an integer >= 1", lambda: nn.AdaptiveMaxPool1d(0)),
        (TypeError, "track_running_stats must be True", lambda: nn.BatchNorm1d(2, track_running_stats=0)),
        (ValueError, "num_groups must divide num_channels=4", lambda: nn.GroupNorm(3, 4)),
        (ValueError, "normalized_shape must have at least one axis", lambda: nn.LayerNorm(())),
        (TypeError, "normalized_shape", lambda: nn.LayerNorm(2.5)),
        (ValueError, "alpha must be a number >= 0", lambda: nn.LocalResponseNorm(3, alpha=-1)),
        (ValueError, "mode must be one of", lambda: nn.Upsample(2, mode="cubic")),
        (ValueError, "size or scale_factor must be given", lambda: nn.Upsample()),
        (ValueError, "size or scale_factor must be given", lambda: nn.Upsample(2, 2)),
        (ValueError, "align_corners must be None", lambda: nn.Upsample(2, align_corners=True)),
        (TypeError, "scale_factor must be a number", lambda: nn.Upsample(scale_factor="2")),
        (ValueError, "scale_factor must be a number > 0", lambda: nn.Upsample(scale_factor=0)),
        (ValueError, "scale_factor must be a number > 0", lambda: nn.Upsample(scale_factor=float("nan"))),
        (ValueError, "padding must be an integer or 4 of them", lambda: nn.ZeroPad2d((1, 2))),
        (TypeError, r"padding must be an integer", lambda: nn.ReflectionPad1d(0.5)),
        (ValueError, r"padding must be an integer >= 0", lambda: nn.ReplicationPad1d(-1)),
        (ValueError, "value must be a number", lambda: nn.ConstantPad1d(1, None)),
        (ValueError, "upscale_factor must be an integer >= 1", lambda: nn.PixelShuffle(0)),
        (ValueError, "mode must be one of", lambda: nn.PixelUnshuffle(2, mode="CDR")),
        (ValueError, "approximate must be one of", lambda: nn.GELU("erf")),
        (ValueError, "beta must be a number > 0", lambda: nn.Softplus(0)),
        (ValueError, "negative_slope must be a finite number", lambda: nn.LeakyReLU(float("inf"))),
        (TypeError, "dim must be an integer", lambda: nn.LogSoftmax(None)),
        (ValueError, "num_parameters must be", lambda: nn.PReLU(0)),
    ],
)
def test_constructors_refuse(error, message, make):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("message", "layer", "shape"),
    [
        ("must have 3 axes", nn.MaxPool1d(2), (1, 3, 4, 4)),
        ("must have 5 axes", nn.AvgPool3d(2), (1, 3, 4, 4)),
        ("kernel_size must fit", nn.MaxPool2d(3, dilation=4), (1, 3, 8, 8)),
        ("padding must leave each window a pixel", nn.MaxPool1d(2, 1, 2, 5), (1, 1, 3)),
        ("output_size must be an integer", nn.AdaptiveAvgPool2d(2), (1, 3, 0, 4)),
        ("must have 2 axes .* or 3 axes", nn.BatchNorm1d(2), (1, 2, 3, 4)),
        ("num_features=2", nn.InstanceNorm2d(2), (1, 3, 8, 8)),
        ("num_channels=4", nn.GroupNorm(2, 4), (1, 3, 8)),
        ("normalized_shape", nn.LayerNorm((3, 4)), (2, 4, 3)),
        ("at least 3 axes", nn.LocalResponseNorm(3), (2, 4)),
        ("mode 'bilinear' must get", nn.Upsample(2, mode="bilinear"), (1, 1, 4)),
        ("x must have at least one pixel", nn.Upsample(scale_factor=0.1), (1, 1, 4, 4)),
        ("pad must be at most 3", nn.ReflectionPad2d(4), (1, 1, 4, 9)),
        ("pad must be at most 4", nn.CircularPad2d(5), (1, 1, 4, 9)),
        ("pad must leave axis", nn.ZeroPad1d((-3, -3)), (1, 1, 4)),
        ("multiple of upscale_factor", nn.PixelShuffle(2), (1, 6, 4, 4)),
        ("multiples of 2", nn.PixelUnshuffle(2), (1, 6, 4, 5)),
        ("axis dim=2", nn.LogSoftmax(2), (1, 3)),
        ("num_parameters=3", nn.PReLU(3), (1, 2, 3)),
    ],
)
def test_layers_refuse_inputs(message, layer, shape):
    with pytest.raises(ValueError, match=message):
        layer.output_shape(shape)
    with pytest.raises(ValueError, match=message):
        layer(np.ones(shape, np.float32))
