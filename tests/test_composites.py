"""Composite layers: what they compute, their gradients, names, files, and how they stand in other models."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastconv import nn
from support import assert_same_bits, check_gradients, image

WIDE = {"dtype": np.float64, "seed": 0}
INFERENCE = nn.Mode(cache=False)


def every_composite(**wide):
    """One or more of each, all taking (N, 4, H, W)."""
    bare = {"dtype": wide["dtype"]}
    return [
        nn.Bottleneck(4, 3, **wide),
        nn.Bottleneck(4, 1, stride=2, dilation=2, **wide),
        nn.Bottleneck(4, 2, (1, 3), groups=2, expansion=2, norm=False, **wide),
        nn.Cascade(4, 3, **wide),
        nn.Cascade(4, 2, 3, (3, 1), 2, False, **wide),
        nn.SeparableConv2d(4, 5, 3, padding=1, **wide),
        nn.SeparableConv2d(4, 3, (2, 3), (1, 2), "same", 2, 2, False, **wide),
        nn.SpatiallySeparableConv2d(4, 3, 3, 2, 1, **wide),
        nn.SpatiallySeparableConv2d(4, 3, (3, 2), (2, 1), ((1, 0), (0, 1)), (1, 2), 2, False, **wide),
        nn.SpatiallySeparableConv2d(4, 3, (3, 5), padding="same", **wide),
        nn.NetworkInNetwork(4, 4, 3, True, **wide),
        nn.NetworkInNetwork(4, 2, 2, True, "concat", False, **wide),
        nn.ASPP(4, 3, (1, 2), **wide),
        nn.ASPP(4, 4, [2], (1, 3), False, True, True, "sum", False, **wide),
        nn.ASPP(4, 2, ((1, 2), 3), skip=True, global_pool=False, **wide),
        nn.SubpixelConv2d(4, 3, 3, 2, 1, **wide),
        nn.SubpixelConv2d(4, 2, (1, 3), 3, "same", (1, 2), 2, False, "reflect", **wide),
        nn.Residual(nn.Conv2d(4, 4, 3, padding=1, **wide)),
        nn.Residual(
            nn.Sequential(nn.Conv2d(4, 3, 3, padding=1, **wide), nn.BatchNorm2d(3, **bare)),
            nn.Conv2d(4, 3, 1, **wide),
        ),
        nn.Parallel(
            nn.Conv2d(4, 2, 1, **wide),
            nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(4, 3, 1, **wide)),
            nn.Residual(nn.Parallel(nn.Conv2d(4, 4, 1, **wide), nn.ReLU(), merge="sum")),
        ),
    ]  # fmt: skip


COMPOSITES = every_composite(**WIDE)


@pytest.mark.parametrize("layer", COMPOSITES, ids=repr)
@pytest.mark.parametrize("training", [True, False])
def test_gradients(layer, training):
    # At most a few of the many: each costs two forward passes of the whole composite.
    check_gradients(layer, image(np.random.default_rng(0), 4, (6, 5)), training=training, samples=4)


def test_expanding_gradients():
    rng = np.random.default_rng(0)
    check_gradients(nn.ExpandAs(), rng.standard_normal((2, 3, 1, 1)), rng.standard_normal((2, 5, 3, 4)))
    check_gradients(nn.ExpandAs(), rng.standard_normal((2, 3, 1, 4)), rng.standard_normal((2, 1, 3, 4)))
    check_gradients(nn.ExpandAs(), rng.standard_normal((2, 3, 1)), rng.standard_normal((2, 1, 3)))


@pytest.mark.parametrize("layer", COMPOSITES, ids=repr)
def test_stands_in_a_model_as_in_its_expansion(layer, tmp_path):
    x = image(np.random.default_rng(0), 4, (7, 8))
    model = nn.Sequential(nn.ReLU(), layer)
    whole = model.expanded()
    assert list(whole.parameters) == list(model.parameters)
    assert not any(isinstance(node.layer, nn.Composite) for node in whole.nodes)
    assert layer.output_shape(x.shape) == layer(x).shape == whole.output_shape(x.shape)
    assert layer.macs(x.shape) == whole.macs(x.shape) > 0
    assert nn.count_parameters(model) == sum(array.size for array in whole.parameters.values())
    np.testing.assert_allclose(model(x), whole(x), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(model.forward(x, training=True)[0], whole.forward(x, training=True)[0])
    assert nn.receptive_field(model)[:3] == nn.receptive_field(whole)[:3] or layer.receptive_field is None

    model.save(tmp_path / "m.npz")
    loaded = nn.load(tmp_path / "m.npz")
    assert repr(loaded) == repr(model)
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert_same_bits(loaded(x), model(x))


@pytest.mark.parametrize("layer", COMPOSITES, ids=repr)
def test_threads_seed_and_config(layer):
    x = image(np.random.default_rng(0), 4, (9, 8)).astype(np.float32)
    results = [nn.Sequential(layer)(x, num_threads=count) for count in (1, 2)]
    assert_same_bits(*results)
    again = type(layer).from_config(layer.config())
    assert repr(again) == repr(layer)
    assert {name: array.shape for name, array in again.state.items()} == {
        name: array.shape for name, array in layer.state.items()
    }
    again.initialize(np.random.default_rng(3))
    once = {name: array.copy() for name, array in again.state.items()}
    again.initialize(np.random.default_rng(3))
    for name, array in again.state.items():
        np.testing.assert_array_equal(array, once[name])


def torch_twin(torch, layer):
    """The same layers in PyTorch, under the same names, for the composites with a twin."""

    class Twin(torch.nn.Module):
        def __init__(self, **modules):
            super().__init__()
            self.run = modules.pop("run")
            for name, module in modules.items():
                self.add_module(name, module)

        def forward(self, x):
            return self.run(self, x)

    def conv(*arguments, **keywords):
        return torch.nn.Conv2d(*arguments, **keywords, dtype=torch.float64)

    def norm(channels):
        return torch.nn.BatchNorm2d(channels, dtype=torch.float64)

    def bottleneck(self, x):
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        return (self.bn3(self.conv3(y)) + self.downsample(x)).relu()

    def pyramid(self, x):
        unit, pool = torch.nn.functional.relu, self.global_pool(x.mean((2, 3), keepdim=True))
        branches = [
            unit(self.pointwise(x)),
            *(unit(rate(x)) for rate in self.atrous),
            unit(pool).expand(-1, -1, *x.shape[2:]),
        ]
        return unit(self.project(torch.cat(branches, 1)))

    def unit(*arguments, **keywords):
        return torch.nn.Sequential(conv(*arguments, **keywords, bias=False), norm(arguments[1]))

    if isinstance(layer, nn.Bottleneck):
        return Twin(
            conv1=conv(4, 3, 1, bias=False), bn1=norm(3), conv2=conv(3, 3, 3, 2, 1, bias=False), bn2=norm(3),
            conv3=conv(3, 12, 1, bias=False), bn3=norm(12), downsample=unit(4, 12, 1, 2), run=bottleneck,
        )  # fmt: skip
    if isinstance(layer, nn.ASPP):
        return Twin(
            pointwise=unit(4, 3, 1),
            atrous=torch.nn.ModuleList([unit(4, 3, 3, padding=1), unit(4, 3, 3, padding=2, dilation=2)]),
            global_pool=unit(4, 3, 1), project=unit(12, 3, 1), run=pyramid,
        )  # fmt: skip
    if isinstance(layer, nn.SubpixelConv2d):
        return Twin(
            conv=conv(4, 27, 3, padding=1, padding_mode="circular"),
            run=lambda self, x: torch.nn.functional.pixel_shuffle(self.conv(x), 3),
        )
    return Twin(
        depthwise=conv(4, 8, 3, 2, 1, groups=4), pointwise=conv(8, 5, 1),
        run=lambda self, x: self.pointwise(self.depthwise(x)),
    )  # fmt: skip


@pytest.mark.parametrize(
    "layer",
    [
        nn.Bottleneck(4, 3, stride=2, **WIDE),
        nn.ASPP(4, 3, (1, 2), **WIDE),
        nn.SeparableConv2d(4, 5, 3, 2, 1, 1, 2, **WIDE),
        nn.SubpixelConv2d(4, 3, 3, 3, 1, padding_mode="circular", **WIDE),
    ],
    ids=repr,
)
@pytest.mark.parametrize("training", [True, False])
def test_is_like_torchs(layer, training):
    torch = pytest.importorskip("torch")
    other = torch_twin(torch, layer)
    model = nn.Model(x := nn.Input(), layer(x, name="block"))
    assert [name.removeprefix("block.") for name in model.state_dict()] == list(other.state_dict())
    model.load_state_dict({f"block.{name}": value for name, value in other.state_dict().items()})
    other.train(training)
    x = np.random.default_rng(0).standard_normal((3, 4, 9, 8))
    leaf = torch.tensor(x, requires_grad=True)
    expected = other(leaf)
    output, caches = model.forward(x, training=training)
    np.testing.assert_allclose(output, expected.detach(), rtol=1e-10, atol=1e-12)
    grad = np.random.default_rng(1).standard_normal(output.shape)
    expected.backward(torch.tensor(grad))
    (grad_input,), grads = model.backward(grad, caches)
    np.testing.assert_allclose(grad_input, leaf.grad, rtol=1e-9, atol=1e-11)
    for name, parameter in other.named_parameters():
        np.testing.assert_allclose(grads[f"block.{name}"], parameter.grad, rtol=1e-9, atol=1e-10)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**32),
    channels=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    padding=st.sampled_from([0, 2, (1, 0), ((1, 0), (0, 2)), "same", "full", "valid"]),
    multiplier=st.integers(1, 3),
    bias=st.booleans(),
)
def test_serving_separable_is_training_it(seed, channels, kernel, stride, padding, multiplier, bias):
    rng = np.random.default_rng(seed)
    options = {"stride": stride, "padding": padding, "multiplier": multiplier, "bias": bias}
    layer = nn.SeparableConv2d(*channels, kernel, **options, dtype=np.float64, seed=rng)
    x = rng.standard_normal((2, channels[0], 7, 6))
    served, nothing = layer.forward(x, mode=INFERENCE)
    assert nothing is None
    np.testing.assert_allclose(served, layer.forward(x)[0], rtol=1e-10, atol=1e-12)


def test_spatially_separable_is_the_kernel_it_was_taken_from():
    """With the factors of separate_kernel as weights; also the padding lands on the right axes."""
    from fastconv.functional import separate_kernel

    rng = np.random.default_rng(0)
    options = {"stride": (2, 1), "padding": ((2, 0), (1, 3)), "dilation": (1, 2)}
    plain = nn.Conv2d(3, 4, (3, 2), **options, **WIDE)
    separated = separate_kernel(plain.weight, 8)
    layer = nn.SpatiallySeparableConv2d(3, 4, (3, 2), **options, mid_channels=8, **WIDE)
    layer.vertical.weight, layer.horizontal.weight = separated.vertical, separated.horizontal
    layer.horizontal.bias = plain.bias
    x = rng.standard_normal((2, 3, 9, 8))
    assert separated.error < 1e-12
    np.testing.assert_allclose(layer(x), plain(x), rtol=1e-10, atol=1e-12)


def test_branches_of_network_in_network():
    layer = nn.NetworkInNetwork(2, 2, 3, skip=True, **WIDE)
    plus = np.zeros((2, 2, 3, 3))
    plus[:, :, 1:2] += layer.graph.layers["row"].weight
    plus[:, :, :, 1:2] += layer.graph.layers["column"].weight
    plus[:, :, 1:2, 1:2] += layer.graph.layers["pixel"].weight
    plus[(0, 1), (0, 1), 1, 1] += 1
    whole = nn.Conv2d(2, 2, 3, padding=1, **WIDE)
    whole.weight = plus
    whole.bias = sum(branch.bias for branch in layer.graph.layers.values() if isinstance(branch, nn.Conv2d))
    x = np.random.default_rng(0).standard_normal((2, 2, 6, 7))
    np.testing.assert_allclose(layer(x), whole(x), rtol=1e-10, atol=1e-12)
    joined = nn.NetworkInNetwork(2, 3, 3, skip=True, merge="concat", **WIDE)
    y = joined(x)
    assert y.shape == (2, 11, 6, 7)
    np.testing.assert_array_equal(y[:, 9:], x)


@pytest.mark.parametrize("norm", [True, False])
def test_closed_forms(norm):
    """Parameters and operations as one counts them by hand."""

    def counted(layer, size=8, channels=16):
        return nn.count_parameters(nn.Sequential(layer)), layer.macs((1, channels, size, size))

    assert counted(nn.Conv2d(16, 32, 3, padding=1)) == (4640, 16 * 32 * 9 * 64)
    assert counted(nn.SeparableConv2d(16, 32, 3, padding=1)) == (704, (16 * 9 + 16 * 32) * 64)
    assert counted(nn.SeparableConv2d(16, 32, 3, bias=False))[0] == 16 * 9 + 16 * 32
    assert counted(nn.Cascade(16, 32, bias=False)) == (9 * (16 * 32 + 32 * 32), 9 * (16 * 32 + 32 * 32) * 64)
    assert counted(nn.SubpixelConv2d(16, 3, 3, 2, padding=1)) == (12 * 16 * 9 + 12, 12 * 16 * 9 * 64)
    assert counted(nn.SpatiallySeparableConv2d(16, 32, 5, bias=False))[0] == 5 * (16 * 32 + 32 * 32)
    assert counted(nn.NetworkInNetwork(16, 32, 5)) == (16 * 32 * 11 + 3 * 32, 16 * 32 * 11 * 64)
    weights = 64 * 16 + 16 * 16 * 9 + 16 * 64
    extra = 2 * (16 + 16 + 64) if norm else 16 + 16 + 64
    assert counted(nn.Bottleneck(64, 16, norm=norm), channels=64)[0] == weights + extra
    weights = 16 * 8 + 2 * 9 * 16 * 8 + 16 * 8 + 4 * 8 * 8
    extra = 5 * 8 * (2 if norm else 1)
    assert counted(nn.ASPP(16, 8, (1, 2), norm=norm))[0] == weights + extra


def test_summary_shows_one_line_or_all():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Residual(nn.Cascade(8, 8)), nn.SeparableConv2d(8, 4, 3))
    short, long = model.summary((1, 3, 12, 12)), model.summary((1, 3, 12, 12), expand=True)
    assert [row.layer for row in short.rows] == ["Conv2d", "Residual", "SeparableConv2d"]
    assert [row.name for row in long.rows] == [
        "0", "1.body.conv1", "1.body.relu_0", "1.body.conv2", "1.merge", "2.depthwise", "2.pointwise",
    ]  # fmt: skip
    assert (short.parameters, short.macs) == (long.parameters, long.macs)
    assert short.parameters == sum(row.parameters for row in long.rows)
    assert [row.receptive_field.size for row in short.rows] == [(3, 3), (7, 7), (9, 9)]


def test_training_goes_through():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 64)
    x = (rng.standard_normal((64, 2, 6, 6)) + y[:, None, None, None]).astype(np.float32)
    model = nn.Sequential(
        nn.Parallel(nn.SeparableConv2d(2, 4, 3, padding=1, seed=1), nn.Cascade(2, 4, seed=2)),
        nn.Bottleneck(8, 4, expansion=2, seed=3), nn.GlobalAvgPool2d(), nn.Flatten(), nn.Linear(8, 2, seed=4),
    )  # fmt: skip
    before = model.evaluate(x, y)["loss"]
    model.fit(x, y, epochs=40, optimizer="adam", seed=0, progress=False)
    assert model.evaluate(x, y)["loss"] < 0.7 * before


def test_a_composite_twice_shares_its_parameters():
    block = nn.Cascade(2, 2, **WIDE)
    model = nn.Sequential(block, nn.ReLU(), block)
    assert list(model.parameters) == ["0.conv1.weight", "0.conv1.bias", "0.conv2.weight", "0.conv2.bias"]
    assert list(model.expanded().parameters) == list(model.parameters)
    x = np.random.default_rng(0).standard_normal((1, 2, 6, 6))
    np.testing.assert_array_equal(model(x), block(nn.ReLU()(block(x))))
    inner = nn.Conv2d(2, 2, 1)
    with pytest.raises(ValueError, match="one composite only, got one that '0' and '1' share"):
        nn.Sequential(nn.Residual(inner), inner)


def test_your_own_composite(tmp_path):
    @nn.register
    class Twice(nn.Composite):
        arguments = ("channels",)

        def __init__(self, channels):
            self.channels = channels
            a, b = nn.Input(), nn.Input()
            super().__init__((a, b), nn.Add()(nn.Conv2d(channels, channels, 1, seed=0)(a, name="conv"), b))

    x, y = nn.Input(), nn.Input()
    model = nn.Model((x, y), Twice(3)(x, y, name="twice"))
    assert list(model.parameters) == ["twice.conv.weight", "twice.conv.bias"]
    model.save(tmp_path / "m")
    a, b = np.random.default_rng(0).standard_normal((2, 1, 3, 4, 4)).astype(np.float32)
    assert_same_bits(nn.load(tmp_path / "m")(a, b), model(a, b))
    with pytest.raises(TypeError, match=r"Twice takes 2 input\(s\), got 1"):
        Twice(3)(a)


def test_error_notes_lead_to_the_layer():
    model = nn.Sequential(nn.Residual(nn.Conv2d(2, 3, 3, padding=1)))
    with pytest.raises(ValueError, match="inputs of Add must have one shape") as caught:
        model(np.ones((1, 2, 5, 5), np.float32))
    assert [note.split(":")[0] for note in caught.value.__notes__] == ["in layer 'merge'", "in layer '0'"]
    with pytest.raises(ValueError, match="inputs of ExpandAs must be"):
        nn.ExpandAs()(np.ones((1, 2, 2, 1)), np.ones((1, 2, 3, 3)))
    with pytest.raises(ValueError, match="inputs of ExpandAs must be"):
        nn.ExpandAs()(np.ones((1, 2, 1)), np.ones((1, 2, 3, 3)))


@pytest.mark.parametrize(
    ("error", "message", "make"),
    [
        (ValueError, "^in_channels", lambda: nn.Bottleneck(0, 2)),
        (TypeError, "^channels", lambda: nn.Bottleneck(2, 2.0)),
        (ValueError, "^kernel_size must be odd", lambda: nn.Bottleneck(2, 2, 2)),
        (ValueError, "^stride", lambda: nn.Bottleneck(2, 2, stride=0)),
        (ValueError, "^groups", lambda: nn.Bottleneck(2, 3, groups=2)),
        (ValueError, "^expansion", lambda: nn.Bottleneck(2, 2, expansion=0)),
        (TypeError, "^norm must be True or False", lambda: nn.Bottleneck(2, 2, norm=1)),
        (TypeError, "^dtype", lambda: nn.Bottleneck(2, 2, dtype=np.float16)),
        (ValueError, "^count", lambda: nn.Cascade(2, 2, 0)),
        (ValueError, "^kernel_size must be odd", lambda: nn.Cascade(2, 2, kernel_size=4)),
        (TypeError, "^bias", lambda: nn.Cascade(2, 2, bias="no")),
        (ValueError, "^in_channels", lambda: nn.SeparableConv2d(0, 2, 3)),
        (ValueError, "^multiplier", lambda: nn.SeparableConv2d(2, 2, 3, multiplier=0)),
        (ValueError, "^padding must be one of", lambda: nn.SeparableConv2d(2, 2, 3, padding="some")),
        (ValueError, "^mid_channels", lambda: nn.SpatiallySeparableConv2d(2, 2, 3, mid_channels=0)),
        (ValueError, "^padding", lambda: nn.SpatiallySeparableConv2d(2, 2, 3, padding=-1)),
        (ValueError, "^padding", lambda: nn.SpatiallySeparableConv2d(2, 2, 3, padding=(1, 2, 3))),
        (ValueError, "^padding must be one of", lambda: nn.SpatiallySeparableConv2d(2, 2, 3, padding="some")),
        (ValueError, "^in_channels", lambda: nn.SubpixelConv2d(0, 2, 3, 2)),
        (TypeError, "^out_channels", lambda: nn.SubpixelConv2d(2, 2.0, 3, 2)),
        (ValueError, "^kernel_size", lambda: nn.SubpixelConv2d(2, 2, 0, 2)),
        (ValueError, "^upscale_factor", lambda: nn.SubpixelConv2d(2, 2, 3, 0)),
        (TypeError, "^upscale_factor", lambda: nn.SubpixelConv2d(2, 2, 3, (2, 2))),
        (ValueError, "^padding must be one of", lambda: nn.SubpixelConv2d(2, 2, 3, 2, "some")),
        (ValueError, "^groups", lambda: nn.SubpixelConv2d(2, 1, 3, 3, groups=2)),
        (TypeError, "^kernel_size", lambda: nn.NetworkInNetwork(2, 2, (3, 3))),
        (TypeError, "^skip", lambda: nn.NetworkInNetwork(2, 2, skip=1)),
        (ValueError, "^skip must be False", lambda: nn.NetworkInNetwork(2, 3, skip=True)),
        (ValueError, "^merge must be one of", lambda: nn.NetworkInNetwork(2, 3, merge="add")),
        (TypeError, "^rates", lambda: nn.ASPP(2, 2, 6)),
        (TypeError, "^rates", lambda: nn.ASPP(2, 2, ())),
        (ValueError, r"^rates\[1\]", lambda: nn.ASPP(2, 2, (1, 0))),
        (ValueError, "^skip must be False", lambda: nn.ASPP(2, 3, skip=True, merge="sum")),
        (TypeError, "^global_pool", lambda: nn.ASPP(2, 3, global_pool=0)),
        (TypeError, "^body must be a layer or a model", lambda: nn.Residual(np.tanh)),
        (ValueError, "^body must have one input", lambda: nn.Residual(nn.ExpandAs())),
        (TypeError, "^projection", lambda: nn.Residual(nn.ReLU(), 3)),
        (ValueError, "^branches must hold", nn.Parallel),
        (TypeError, r"^branches\[1\]", lambda: nn.Parallel(nn.ReLU(), "relu")),
        (ValueError, "^merge must be one of", lambda: nn.Parallel(nn.ReLU(), merge="mean")),
    ],
)
def test_refused(error, message, make):
    with pytest.raises(error, match=message):
        make()
