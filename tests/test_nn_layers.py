"""Every layer: its gradients by finite differences and against PyTorch's, its shapes, what it refuses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastconv import nn
from support import check_gradients, image

TRAINING = nn.Mode(training=True)

sizes = st.tuples(st.integers(5, 7), st.integers(5, 7))
seeds = st.integers(0, 2**32)


@given(
    seed=seeds,
    size=sizes,
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.sampled_from([0, 1, (2, 0), ((1, 0), (0, 2)), "same", "full"]),
    dilation=st.sampled_from([1, (1, 2), 2]),
    groups=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
    padding_mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
)
def test_conv2d_gradients(seed, size, kernel, stride, padding, dilation, groups, bias, padding_mode):
    rng = np.random.default_rng(seed)
    if padding == "full" and padding_mode != "zeros":
        padding = 1
    layer = nn.Conv2d(
        4, 8, kernel, stride, padding, dilation, groups, bias, padding_mode, dtype=np.float64, seed=rng
    )
    check_gradients(layer, image(rng, 4, size), samples=6)


@given(seed=seeds, rank=st.sampled_from([1, 3]), data=st.data())
def test_conv1d_and_conv3d_gradients(seed, rank, data):
    rng = np.random.default_rng(seed)
    taps, small = st.tuples(*[st.integers(1, 3)] * rank), st.tuples(*[st.integers(1, 2)] * rank)
    mode = data.draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    layer = {1: nn.Conv1d, 3: nn.Conv3d}[rank](
        4, 4, data.draw(taps), data.draw(small), data.draw(st.sampled_from([0, 1, "same"])),
        data.draw(small), data.draw(st.sampled_from([1, 2])), data.draw(st.booleans()), mode,
        dtype=np.float64, seed=rng,
    )  # fmt: skip
    x = np.moveaxis(rng.standard_normal((2, *data.draw(st.tuples(*[st.integers(5, 6)] * rank)), 4)), -1, 1)
    check_gradients(layer, x, samples=4)


@given(seed=seeds, size=sizes, kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)), data=st.data())
def test_pooling_gradients(seed, size, kernel, data):
    rng = np.random.default_rng(seed)
    stride = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in kernel)
    x = image(rng, data.draw(st.integers(1, 5)), size)
    check_gradients(nn.MaxPool2d(kernel, stride, padding), x)
    check_gradients(nn.AvgPool2d(kernel, stride, padding, count_include_pad=data.draw(st.booleans())), x)


@given(seed=seeds, size=sizes, channels=st.integers(1, 4), affine=st.booleans(), training=st.booleans())
def test_batch_norm_gradients(seed, size, channels, affine, training):
    rng = np.random.default_rng(seed)
    layer = nn.BatchNorm2d(channels, affine=affine, dtype=np.float64)
    layer.running_var = rng.uniform(0.5, 2, channels)
    for array in layer.parameters.values():
        array[...] = rng.standard_normal(channels)
    check_gradients(layer, image(rng, channels, size), training=training)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "layer",
    [
        nn.ReLU(),
        nn.GlobalAvgPool2d(),
        nn.Flatten(),
        nn.Softmax(),
        nn.Softmax(-1),
        nn.Dropout(0.4),
        nn.Dropout(1.0),
        nn.Linear(5, 3, dtype=np.float64, seed=0),
        nn.Linear(5, 3, bias=False, dtype=np.float64, seed=0),
    ],
    ids=repr,
)
def test_other_gradients(layer, training):
    check_gradients(layer, image(np.random.default_rng(0), 3, (4, 5)), training=training)


def test_merging_gradients():
    rng = np.random.default_rng(0)
    check_gradients(nn.Add(), *(rng.standard_normal((2, 3, 4, 5)) for _ in range(3)))
    for axis in (1, 2, 3):
        shapes = [
            tuple(size + (index == axis) * extra for index, size in enumerate((2, 3, 4, 5)))
            for extra in range(3)
        ]
        inputs = [rng.standard_normal(shape) for shape in shapes]
        check_gradients(nn.Concat(axis), *inputs)
        output = nn.Concat(axis).forward(*inputs)[0]
        np.testing.assert_array_equal(output, np.concatenate(inputs, axis))


def torch_pairs(torch):
    """A layer, PyTorch's layer of the same configuration, and the shape of an input."""
    wide = {"dtype": torch.float64}
    images = (2, 4, 9, 8)
    return [
        (nn.Conv2d(4, 6, 3, dtype=np.float64), torch.nn.Conv2d(4, 6, 3, **wide), images),
        (
            nn.Conv2d(4, 8, (3, 2), (2, 1), (1, 2), (1, 2), 2, False, dtype=np.float64),
            torch.nn.Conv2d(4, 8, (3, 2), (2, 1), (1, 2), (1, 2), 2, False, **wide),
            images,
        ),
        *(
            (
                nn.Conv2d(4, 4, 3, padding=2, padding_mode=padding_mode, dtype=np.float64),
                torch.nn.Conv2d(4, 4, 3, padding=2, padding_mode=padding_mode, **wide),
                images,
            )
            for padding_mode in ("reflect", "replicate", "circular")
        ),
        *(
            (
                getattr(nn, f"Conv{rank}d")(4, 6, 3, 2, 1, 2, 2, padding_mode=padding_mode, dtype=np.float64),
                getattr(torch.nn, f"Conv{rank}d")(4, 6, 3, 2, 1, 2, 2, padding_mode=padding_mode, **wide),
                (2, 4, *[7] * rank),
            )
            for rank in (1, 3)
            for padding_mode in ("zeros", "replicate", "circular")
        ),
        (nn.Linear(8, 5, dtype=np.float64), torch.nn.Linear(8, 5, **wide), images),
        (nn.ReLU(), torch.nn.ReLU(), images),
        (nn.MaxPool2d(3, 2, 1), torch.nn.MaxPool2d(3, 2, 1), images),
        (nn.AvgPool2d(3, 2, 1), torch.nn.AvgPool2d(3, 2, 1), images),
        (nn.AvgPool2d(2, 2, 1, False, False), torch.nn.AvgPool2d(2, 2, 1, False, False), images),
        (nn.GlobalAvgPool2d(), torch.nn.AdaptiveAvgPool2d(1), images),
        (nn.BatchNorm2d(4, dtype=np.float64), torch.nn.BatchNorm2d(4, **wide), images),
        (
            nn.BatchNorm2d(4, 1e-3, None, False, dtype=np.float64),
            torch.nn.BatchNorm2d(4, 1e-3, None, False, **wide),
            images,
        ),
        (nn.Flatten(), torch.nn.Flatten(), images),
        (nn.Softmax(), torch.nn.Softmax(1), images),
    ]


@pytest.mark.parametrize("training", [True, False])
def test_every_layer_is_like_torchs(training):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    for layer, other, shape in torch_pairs(torch):
        model = nn.Sequential(layer)
        # With a prefix for the position, the names are those of a torch.nn.Sequential.
        model.load_state_dict({f"0.{name}": value for name, value in other.state_dict().items()})
        other.train(training)
        for _ in range(3):
            x = rng.standard_normal(shape)
            leaf = torch.tensor(x, requires_grad=True)
            expected = other(leaf)
            output, caches = model.forward(x, training=training)
            np.testing.assert_allclose(output, expected.detach(), rtol=1e-10, atol=1e-12)
        grad = rng.standard_normal(output.shape)
        other.zero_grad()
        expected.backward(torch.tensor(grad))
        (grad_input,), grads = model.backward(grad, caches)
        np.testing.assert_allclose(grad_input, leaf.grad, rtol=1e-9, atol=1e-11)
        for name, parameter in other.named_parameters():
            np.testing.assert_allclose(grads[f"0.{name}"], parameter.grad, rtol=1e-9, atol=1e-11)
        for name, value in other.state_dict().items():
            np.testing.assert_allclose(model.state_dict()[f"0.{name}"], value, rtol=1e-10, atol=1e-12)


def test_dropout_keeps_the_mean_and_the_expected_share():
    x = np.ones((100, 1000), np.float32)
    mode = nn.Mode(training=True, rng=np.random.default_rng(0))
    y, _ = nn.Dropout(0.25).forward(x, mode=mode)
    assert y.dtype == np.float32
    assert abs((y == 0).mean() - 0.25) < 0.01
    assert abs(y.mean() - 1) < 0.01
    np.testing.assert_array_equal(nn.Dropout(0.25)(x), x)


def test_initial_parameters_follow_the_seed_and_torchs_bound():
    layers = [nn.Conv2d(8, 16, 3, groups=2, seed=5), nn.Linear(36, 50, seed=5)]
    for layer in layers:
        again = type(layer)(**layer.config(), seed=5)
        for name, array in layer.parameters.items():
            np.testing.assert_array_equal(array, again.parameters[name])
            assert 0.8 / 6 < np.abs(array).max() <= 1 / 6
        assert not np.array_equal(layer.weight, type(layer)(**layer.config(), seed=6).weight)


def test_calling_a_layer_converts_to_its_dtype():
    layer = nn.Conv2d(1, 2, 3, dtype=np.float32, seed=0)
    assert layer(np.ones((1, 1, 4, 4))).dtype == np.float32
    assert nn.ReLU()(np.ones(3, np.float16)).dtype == np.float32
    with pytest.raises(TypeError, match=r"x must have dtype float32 or float64.*x\.astype"):
        layer(np.ones((1, 1, 4, 4), np.uint8))


def test_assigning_a_parameter_copies_and_checks():
    layer = nn.Conv2d(1, 2, 3, seed=0)
    array = layer.parameters["weight"]
    layer.weight = np.full(layer.weight.shape, 2.0)
    assert layer.weight is array
    assert (array == 2).all()
    with pytest.raises(ValueError, match=r"weight must have shape \(2, 1, 3, 3\), got \(2,\)"):
        layer.weight = np.ones(2)
    with pytest.raises(AttributeError, match="has no bias"):
        nn.Conv2d(1, 2, 3, bias=False).bias = np.ones(2)


@pytest.mark.parametrize(
    ("error", "message", "make"),
    [
        (ValueError, "in_channels must be an integer >= 1, got 0", lambda: nn.Conv2d(0, 1, 3)),
        (TypeError, "out_channels must be an integer", lambda: nn.Conv2d(1, 1.5, 3)),
        (ValueError, "kernel_size", lambda: nn.Conv2d(1, 1, 0)),
        (ValueError, "stride", lambda: nn.Conv2d(1, 1, 3, stride=0)),
        (ValueError, "padding", lambda: nn.Conv2d(1, 1, 3, padding=-1)),
        (ValueError, "padding must be one of", lambda: nn.Conv2d(1, 1, 3, padding="some")),
        (ValueError, "dilation", lambda: nn.Conv2d(1, 1, 3, dilation=0)),
        (ValueError, "groups must divide", lambda: nn.Conv2d(3, 4, 3, groups=2)),
        (TypeError, "bias must be True or False", lambda: nn.Conv2d(1, 1, 3, bias=1)),
        (ValueError, "padding_mode must be one of", lambda: nn.Conv2d(1, 1, 3, padding_mode="mirror")),
        (ValueError, "algorithm must be one of", lambda: nn.Conv2d(1, 1, 3, algorithm="best")),
        (TypeError, "dtype must be float32 or float64", lambda: nn.Conv2d(1, 1, 3, dtype=np.float16)),
        (ValueError, "in_features", lambda: nn.Linear(0, 1)),
        (ValueError, "padding must be at most half", lambda: nn.MaxPool2d(3, padding=2)),
        (TypeError, "count_include_pad must be True or False", lambda: nn.AvgPool2d(2, 2, 0, False, "no")),
        (ValueError, "num_features", lambda: nn.BatchNorm2d(0)),
        (ValueError, "eps must be a number >= 0", lambda: nn.BatchNorm2d(1, eps=-1)),
        (ValueError, "momentum must be a number from 0 to 1, or None", lambda: nn.BatchNorm2d(1, momentum=2)),
        (ValueError, "p must be a probability", lambda: nn.Dropout(1.5)),
        (ValueError, "p must be a probability", lambda: nn.Dropout(float("nan"))),
        (TypeError, "dim must be an integer", lambda: nn.Softmax("channels")),
        (ValueError, "dim must be an integer >= 1", lambda: nn.Concat(0)),
    ],
)
def test_constructors_refuse(error, message, make):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("error", "message", "layer", "shapes"),
    [
        (ValueError, "in_channels=2", nn.Conv2d(2, 4, 3), [(1, 3, 8, 8)]),
        (ValueError, "must have 4 axes|must be", nn.Conv2d(2, 4, 3), [(2, 8)]),
        (
            ValueError,
            r"input must be \(N, \.\.\., in_features=5\)|x must have shape",
            nn.Linear(5, 2),
            [(3, 4)],
        ),
        (ValueError, "must have 4 axes", nn.MaxPool2d(2), [(3, 4)]),
        (ValueError, "kernel_size must fit", nn.AvgPool2d(9), [(1, 1, 8, 8)]),
        (ValueError, "num_features=2 channels", nn.BatchNorm2d(2), [(1, 3, 8, 8)]),
        (ValueError, "axis dim=2", nn.Softmax(2), [(1, 3)]),
        (ValueError, "inputs of Add must have one shape", nn.Add(), [(1, 3), (1, 1)]),
        (ValueError, "agree on all axes but 1", nn.Concat(), [(1, 3, 4, 4), (1, 3, 4, 5)]),
        (ValueError, "axis dim=3", nn.Concat(3), [(1, 3)]),
    ],
)
def test_layers_refuse_inputs(error, message, layer, shapes):
    with pytest.raises(error, match=message):
        layer.output_shape(*shapes)
    with pytest.raises(error, match=message):
        layer(*(np.ones(shape, np.float32) for shape in shapes))


def test_batch_norm_refuses_a_single_value_in_training():
    with pytest.raises(ValueError, match="more than one value a channel"):
        nn.BatchNorm2d(2).forward(np.ones((1, 2, 1, 1), np.float32), mode=TRAINING)


def test_a_name_is_registered_once():
    class ReLU(nn.Layer):
        pass

    with pytest.raises(ValueError, match="'ReLU' is registered already"):
        nn.register(ReLU)
