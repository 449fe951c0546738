"""Graphs and models: structure, names, forward and back through branches, summaries."""

import copy
import json
import pickle
import threading
import weakref

import numpy as np
import pytest

from fastconv import nn
from networks import branched_network, small_network


def torch_branched(torch):
    class Branched(torch.nn.Module):
        def __init__(self):
            super().__init__()
            wide = {"dtype": torch.float64}
            self.stem = torch.nn.Conv2d(2, 4, 3, padding=1, **wide)
            self.shared = torch.nn.Conv2d(4, 4, 3, padding=1, **wide)
            self.left = torch.nn.Conv2d(4, 2, 1, **wide)
            self.right = torch.nn.Conv2d(4, 3, 5, padding=2, **wide)
            self.classifier = torch.nn.Linear(9, 3, **wide)

        def forward(self, x):
            stem = self.stem(x).relu()
            skip = stem + self.shared(self.shared(stem).relu())
            joined = torch.cat([self.left(skip), self.right(skip), skip], 1)
            return self.classifier(joined.mean((2, 3)))

    return Branched()


def torch_small(torch):
    wide = {"dtype": torch.float64}
    return torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3, padding=1, **wide),
        torch.nn.BatchNorm2d(4, **wide),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(4, 6, 3, bias=False, **wide),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(24, 3, **wide),
    )


@pytest.mark.parametrize(
    ("make", "make_torch"), [(small_network, torch_small), (branched_network, torch_branched)]
)
def test_gradients_and_state_are_like_torchs(make, make_torch):
    torch = pytest.importorskip("torch")
    model, other = make(), make_torch(torch)
    assert list(model.state_dict()) == list(other.state_dict())
    model.load_state_dict(other.state_dict())
    x = np.random.default_rng(0).standard_normal((5, 2, 8, 8))
    leaf = torch.tensor(x, requires_grad=True)
    expected = other(leaf)
    output, caches = model.forward(x, training=True)
    np.testing.assert_allclose(output, expected.detach(), rtol=1e-10, atol=1e-12)
    grad = np.random.default_rng(1).standard_normal(output.shape)
    expected.backward(torch.tensor(grad))
    (grad_input,), grads = model.backward(grad, caches)
    np.testing.assert_allclose(grad_input, leaf.grad, rtol=1e-9, atol=1e-11)
    assert set(grads) == set(model.parameters)
    for name, parameter in other.named_parameters():
        np.testing.assert_allclose(grads[name], parameter.grad, rtol=1e-9, atol=1e-11)
    (nothing,), again = model.backward(grad, caches, input_grads=False)
    assert nothing is None
    for name in grads:
        np.testing.assert_array_equal(again[name], grads[name])
    other.load_state_dict({name: torch.tensor(array) for name, array in model.state_dict().items()})
    other.eval()
    np.testing.assert_allclose(model(x), other(torch.tensor(x)).detach(), rtol=1e-10, atol=1e-12)


def test_several_inputs_and_outputs():
    a, b = nn.Input((3,), name="a"), nn.Input((3,), name="b")
    both = nn.Add()(a, b)
    model = nn.Model([a, b], [nn.ReLU()(both), both])
    x, y = np.array([[1.0, -2, 3]]), np.array([[1.0, 1, -5]])
    positive, total = model(x, y)
    np.testing.assert_array_equal(total, x + y)
    np.testing.assert_array_equal(positive, np.maximum(x + y, 0))
    (grad_a, grad_b), grads = model.backward((np.ones((1, 3)), np.ones((1, 3))), model.forward(x, y)[1])
    np.testing.assert_array_equal(grad_a, [[2, 1, 1]])
    np.testing.assert_array_equal(grad_a, grad_b)
    assert grads == {}
    assert model.predict((x, y))[1].shape == (1, 3)
    with pytest.raises(TypeError, match=r"takes 2 input\(s\) \(a, b\), got 1"):
        model(x)
    with pytest.raises(ValueError, match=r"b must have shape \(N, 3\), got \(1, 4\)"):
        model(x, np.ones((1, 4)))


def test_names():
    block = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU())
    nested = nn.Sequential(block, nn.Conv2d(1, 1, 1))
    assert list(nested.parameters) == ["0.0.weight", "0.0.bias", "1.weight", "1.bias"]
    x = nn.Input((1, 4, 4))
    value = nn.Conv2d(1, 1, 1)(block(block(x), name="second"))
    model = nn.Model(x, nn.Conv2d(1, 1, 1)(value))
    names = [node.name for node in model.nodes]
    assert names == ["sequential_0.0", "sequential_0.1", "second.0", "second.1", "conv2d_0", "conv2d_1"]
    # One layer twice: its parameters once, under its first name.
    assert [name for name in model.parameters if name.endswith("weight")] == [
        "sequential_0.0.weight",
        "conv2d_0.weight",
        "conv2d_1.weight",
    ]
    assert value.shape == (1, 1, 4, 4)


def test_sequential_is_a_sequence():
    model = small_network()
    assert len(model) == 8
    assert isinstance(model[0], nn.Conv2d)
    assert [type(layer).__name__ for layer in model][-2:] == ["Flatten", "Linear"]


def test_deep_graphs_need_no_recursion():
    value = start = nn.Input((2,))
    for _ in range(3000):
        value = nn.ReLU()(value)
    np.testing.assert_array_equal(nn.Model(start, value)(np.ones((1, 2))), np.ones((1, 2)))


def test_inference_frees_what_is_not_needed_any_more():
    alive = []

    class Watched(nn.Layer):
        def output_shape(self, *input_shapes):
            return input_shapes[0]

        def forward(self, x, mode=None):
            y = x + 1
            alive.append(weakref.ref(y))
            assert sum(reference() is not None for reference in alive) <= 2
            return y, None

    x = nn.Input()
    value = x
    for _ in range(10):
        value = Watched()(value)
    np.testing.assert_array_equal(nn.Model(x, value)(np.zeros((1, 2))), np.full((1, 2), 10.0))


def test_one_model_in_several_threads():
    model = small_network(dtype=np.float32)
    x = np.random.default_rng(0).standard_normal((8, 2, 8, 8), dtype=np.float32)
    expected = model(x)
    results = [None] * 4

    def work(index):
        for _ in range(5):
            results[index] = model(x)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        np.testing.assert_array_equal(result, expected)


def test_any_memory_format_and_float_dtype_gives_the_same():
    model = small_network(dtype=np.float32)
    x = np.random.default_rng(0).standard_normal((3, 2, 8, 8), dtype=np.float32)
    expected = model(x)
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    flipped = x[::-1, :, ::-1].copy()[::-1, :, ::-1]
    for same in (last, flipped, x.astype(np.float64)):
        np.testing.assert_array_equal(model(same), expected)
    assert model(x[:0]).shape == (0, 3)


def test_predict_in_batches():
    model = small_network(dtype=np.float32)
    x = np.random.default_rng(0).standard_normal((11, 2, 8, 8), dtype=np.float32)
    np.testing.assert_array_equal(model.predict(x, 4), model(x))
    assert model.predict(x[:0]).shape == (0, 3)
    with pytest.raises(ValueError, match="batch_size must be an integer >= 1, got 0"):
        model.predict(x, 0)
    with pytest.raises(TypeError, match=r"x must have dtype.*x\.astype"):
        model.predict(np.ones((1, 2, 8, 8), int))


def test_graphs_refuse():
    x, y = nn.Input((3, 4, 4)), nn.Input((3, 4, 4))
    relu = nn.ReLU()(x)
    with pytest.raises(ValueError, match="not one of the inputs"):
        nn.Model(y, relu)
    with pytest.raises(ValueError, match="inputs must all be used"):
        nn.Model([x, y], relu)
    with pytest.raises(ValueError, match="one of them twice"):
        nn.Model([x, x], relu)
    with pytest.raises(ValueError, match="inputs must be made by Input"):
        nn.Model(relu, relu)
    with pytest.raises(TypeError, match="outputs must be Values"):
        nn.Model(x, [nn.ReLU()])
    with pytest.raises(ValueError, match="'a' twice"):
        nn.Model(x, nn.ReLU()(nn.ReLU()(x, name="a"), name="a"))
    with pytest.raises(ValueError, match=r"one dtype, got float32.*float64"):
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, dtype=np.float64))
    with pytest.raises(ValueError, match="in_channels=4"):
        nn.Conv2d(4, 4, 3)(x)
    with pytest.raises(TypeError, match="Values and ndarray"):
        nn.Add()(x, np.ones((1, 3, 4, 4)))
    with pytest.raises(TypeError, match=r"takes 1 input\(s\), got 2"):
        nn.ReLU()(x, y)
    with pytest.raises(ValueError, match="children must hold"):
        nn.Sequential()
    with pytest.raises(TypeError, match=r"children\[1\] must be a layer"):
        nn.Sequential(nn.ReLU(), nn.ReLU)
    with pytest.raises(TypeError, match="shape must be a sequence"):
        nn.Input(3)
    with pytest.raises(ValueError, match="name must not be empty"):
        nn.ReLU()(x, name="")


def test_errors_inside_a_model_name_the_layer():
    model = nn.Sequential(nn.ReLU(), nn.Linear(4, 2))
    for call in (lambda: model(np.ones((1, 3), np.float32)), lambda: model.output_shape((1, 3))):
        with pytest.raises(ValueError, match="4") as caught:
            call()
        assert caught.value.__notes__[0].startswith("in layer '1': Linear(in_features=4")


def test_load_state_dict_is_strict_and_all_or_nothing():
    model = small_network()
    state = model.state_dict()
    before = model.state_dict()
    for change, error, message in [
        (lambda d: d.pop("0.weight"), ValueError, r"missing: 0\.weight; unknown: none"),
        (lambda d: d.update(extra=1), ValueError, "missing: none; unknown: extra"),
        (
            lambda d: d.update({"7.bias": np.ones(4)}),
            ValueError,
            r"'7\.bias'\] must have shape \(3,\), got \(4,\)",
        ),
        (lambda d: d.update({"7.bias": np.ones(3, int)}), TypeError, "must have dtype float64, got int64"),
    ]:
        changed = {name: array + 1 for name, array in state.items()}
        change(changed)
        with pytest.raises(error, match=message):
            model.load_state_dict(changed)
        for name, array in model.state_dict().items():
            np.testing.assert_array_equal(array, before[name])
    with pytest.raises(TypeError, match="state must be a mapping"):
        model.load_state_dict([1])


def test_initialize_redraws_everything():
    one, two = small_network(1), small_network(2)
    one.forward(np.ones((2, 2, 8, 8)), training=True)
    one.initialize(3)
    two.initialize(3)
    for name, array in one.state_dict().items():
        np.testing.assert_array_equal(array, two.state_dict()[name])


def test_summary_counts():
    model = small_network(dtype=np.float32)
    summary = model.summary((2, 2, 8, 8))
    assert summary.parameters == nn.count_parameters(model) == 2 * 4 * 9 + 4 + 8 + 4 * 6 * 9 + 24 * 3 + 3
    assert summary.rows[0].output_shape == (2, 4, 8, 8)
    assert summary.rows[0].macs == 2 * 4 * 8 * 8 * 2 * 9
    assert summary.rows[-1].macs == 2 * 24 * 3
    lines = str(summary).splitlines()
    assert lines[0] == "input 2×2×8×8"
    assert "whole" in lines[-3]
    assert json.loads(json.dumps(summary.to_dict()))["parameters"] == summary.parameters
    with pytest.raises(TypeError, match="input_shapes must be given"):
        model.summary()
    assert branched_network().summary().rows[0].output_shape == (1, 4, 8, 8)


def seen_by(model, size, row, column):
    """First and last input pixel, on each axis, that changes an output pixel."""
    pixels = size[0] * size[1]
    answers = model(np.eye(pixels + 1, pixels).reshape(-1, 1, *size))[:, 0, row, column]
    seen = np.nonzero((answers[:-1] != answers[-1]).reshape(size))
    return np.min(seen, axis=1), np.max(seen, axis=1)


@pytest.mark.parametrize("branched", [False, True])
def test_receptive_field_is_what_an_output_sees(branched):
    rng = np.random.default_rng(0)

    def conv(*arguments, **keywords):
        return nn.Conv2d(*arguments, **keywords, dtype=np.float64, seed=rng)

    x = nn.Input((1, 24, 26))
    value = conv(1, 2, 3, stride=2, padding=1)(x)
    if branched:
        right = conv(2, 2, (5, 3), padding="same")(value)
        value = nn.Add()(conv(2, 2, 1)(value), right)
    value = nn.AvgPool2d(2, padding=(0, 1))(value)
    value = conv(2, 1, 3, dilation=(1, 2), padding=((1, 2), (2, 1)))(value)
    model = nn.Model(x, value)
    size, stride, offset, whole = nn.receptive_field(model)
    assert not whole
    row, column = 3, 4
    first, last = seen_by(model, (24, 26), row, column)
    start = np.maximum(np.array(offset) + np.array(stride) * (row, column), 0)
    stop = np.minimum(np.array(offset) + np.array(stride) * (row, column) + size, (24, 26))
    np.testing.assert_array_equal(first, start)
    np.testing.assert_array_equal(last, stop - 1)


def test_receptive_field_of_a_classifier():
    field = nn.receptive_field(small_network())
    assert field == ((8, 8), (2, 2), (-1, -1), True)
    with pytest.raises(TypeError, match="model must be a fastconv model, got Conv2d"):
        nn.receptive_field(nn.Conv2d(1, 1, 1))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_train_apart(copied):
    def network():
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, seed=0),
            nn.BatchNorm2d(4),
            nn.Bottleneck(4, 2, expansion=2, seed=1),
            nn.Sequential(nn.ReLU(), nn.Flatten()),
            nn.Linear(144, 3, seed=2),
        )

    x, y = np.random.default_rng(0).standard_normal((12, 2, 8, 8), dtype=np.float32), np.arange(12) % 3
    model = network()
    other, before = copied(model), model.state_dict()
    np.testing.assert_array_equal(other(x), model(x))
    other.fit(x, y, 2, seed=0, progress=False)
    for name, array in before.items():
        np.testing.assert_array_equal(model.state[name], array)
    model.fit(x, y, 2, seed=0, progress=False)
    for name, array in model.state.items():
        np.testing.assert_array_equal(other.state[name], array)
    np.testing.assert_array_equal(other.expanded()(x), model(x))
    assert repr(other) == repr(model)


def test_deep_models_can_be_copied():
    model = nn.Sequential(*(nn.ReLU() for _ in range(2000)))
    assert len(copy.deepcopy(model).nodes) == len(pickle.loads(pickle.dumps(model)).nodes) == 2000


def test_part_of_a_sequential_is_one():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    x = np.random.default_rng(0).standard_normal((2, 2, 8, 8), dtype=np.float32)
    features, head = model[:-1], model[-1]
    assert isinstance(features, nn.Sequential)
    np.testing.assert_array_equal(head(features(x)), model(x))
    assert features[0] is model[0]
    with pytest.raises(ValueError, match="children must hold at least one layer"):
        model[:0]
