"""Losses, optimizers and the loop: against PyTorch, the same for any thread count, and what they refuse."""

import sys

import numpy as np
import pytest

from fastconv import nn, training


def network(dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, dtype=dtype, seed=rng),
        nn.BatchNorm2d(6, dtype=dtype),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(96, 3, dtype=dtype, seed=rng),
    )


def samples(count=120, seed=0):
    """Three classes that differ in which column of the image is bright."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, count)
    x = rng.standard_normal((count, 1, 8, 8), dtype=np.float32) * 0.5
    x[np.arange(count), 0, :, 2 * y + 1] += 1
    return x, y


def same_state(one, two):
    return all(np.array_equal(array, two.state_dict()[name]) for name, array in one.state_dict().items())


def torch_network(torch):
    wide = {"dtype": torch.float64}
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 6, 3, padding=1, **wide),
        torch.nn.BatchNorm2d(6, **wide),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Dropout(0),
        torch.nn.Linear(96, 3, **wide),
    )


@pytest.mark.parametrize(
    ("name", "keywords"),
    [
        ("SGD", {"lr": 0.02, "momentum": 0}),
        ("SGD", {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.01}),
        ("SGD", {"lr": 0.01, "momentum": 0.8, "nesterov": True}),
        ("Adam", {"lr": 0.01}),
        ("Adam", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}),
    ],
)
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_steps_are_torchs(name, keywords, loss):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    other = torch_network(torch)
    model = network(np.float64)
    model.children[5].p = 0
    model.load_state_dict(other.state_dict())
    optimizer = getattr(torch.optim, name)(other.parameters(), **keywords)
    x, y = samples(40)
    x = x.astype(np.float64)
    if loss == "mse":
        y = np.eye(3)[y]
    measure = torch.nn.CrossEntropyLoss() if loss == "cross_entropy" else torch.nn.MSELoss()
    losses = []
    for _ in range(2):
        for first in range(0, 40, 10):
            optimizer.zero_grad()
            value = measure(other(torch.tensor(x[first : first + 10])), torch.tensor(y[first : first + 10]))
            value.backward()
            optimizer.step()
            losses.append(value.item())
    own = getattr(training, name)(**keywords)
    history = model.fit(x, y, 2, 10, optimizer=own, loss=loss, shuffle=False, progress=False)
    np.testing.assert_allclose(history.loss, np.reshape(losses, (2, 4)).mean(axis=1), rtol=1e-8)
    for key, array in model.state_dict().items():
        np.testing.assert_allclose(array, other.state_dict()[key], rtol=1e-6, atol=1e-9)


def test_losses_are_torchs_also_for_images_and_extreme_logits():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    output = rng.standard_normal((4, 5, 3, 2)) * 300
    targets = rng.integers(0, 5, (4, 3, 2))
    leaf = torch.tensor(output, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(leaf, torch.tensor(targets))
    expected.backward()
    value, grad = training.CrossEntropyLoss()(output, targets)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-12)
    np.testing.assert_allclose(grad, leaf.grad, rtol=1e-10, atol=1e-15)
    wanted = rng.standard_normal(output.shape)
    expected = torch.nn.functional.mse_loss(leaf, torch.tensor(wanted))
    leaf.grad = None
    expected.backward()
    value, grad = training.MSELoss()(output, wanted)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-12)
    np.testing.assert_allclose(grad, leaf.grad, rtol=1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_learns_and_measures(optimizer):
    x, y = samples(300)
    model = network()
    history = model.fit(x, y, 8, 20, optimizer=optimizer, seed=0, validation=0.2, progress=False)
    assert [len(values) for values in history.to_dict().values()] == [8] * 5
    assert history.val_accuracy[-1] > 0.95
    assert history.loss[-1] < history.loss[0]
    x_test, y_test = samples(100, seed=1)
    metrics = model.evaluate(x_test, y_test, 7)
    assert metrics["accuracy"] == (model.predict(x_test).argmax(axis=1) == y_test).mean() > 0.95
    np.testing.assert_allclose(metrics["loss"], model.evaluate(x_test, y_test)["loss"], rtol=1e-6)
    assert model.summary().input_shapes == ((1, 1, 8, 8),)


def test_same_seed_same_bits_for_any_threads():
    x, y = samples()
    models, histories = [], []
    for threads, seed in ((1, 5), (2, 5), (2, 5), (4, 5), (2, 6)):
        model = network()
        history = model.fit(
            x, y, 2, 16, optimizer="adam", seed=seed, validation=0.25, progress=False, num_threads=threads
        )
        models.append(model)
        histories.append(history.to_dict() | {"seconds": None})
    for model, history in zip(models[1:4], histories[1:4], strict=True):
        assert same_state(models[0], model)
        assert history == histories[0]
    assert not same_state(models[0], models[4])


def test_regression_and_several_inputs():
    a, b = nn.Input((3,)), nn.Input((3,))
    model = nn.Model([a, b], nn.Linear(6, 1, seed=0)(nn.Concat()(a, b)))
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((200, 3)), rng.standard_normal((200, 3)))
    y = (x[0].sum(axis=1) - x[1].sum(axis=1))[:, None]
    history = model.fit(x, y, 30, loss="mse", seed=0, validation=(x, y), progress=False)
    assert history.val_loss[-1] < 1e-6
    assert history.accuracy == []
    assert set(model.evaluate(x, y, loss="mse")) == {"loss"}
    np.testing.assert_allclose(model.parameters["linear_0.weight"], [[1, 1, 1, -1, -1, -1]], atol=1e-3)


def test_zero_epochs_and_no_shuffle():
    x, y = samples(10)
    model = network()
    before = network()
    assert model.fit(x, y, 0, progress=False).loss == []
    assert same_state(model, before)


def test_targets_of_any_integer_dtype_and_data_of_any_float_dtype():
    x, y = samples(40)
    models = [network() for _ in range(3)]
    for model, inputs, targets in zip(
        models, (x, x.astype(float), x), (y, y, y.astype(np.uint8)), strict=True
    ):
        model.fit(inputs, targets, seed=0, progress=False)
    assert same_state(models[0], models[1])
    assert same_state(models[0], models[2])


def test_an_optimizer_continues_where_it_stopped():
    x, y = samples(40)
    together, apart = network(), network()
    together.children[5].p = apart.children[5].p = 0
    together.fit(x, y, 2, 10, optimizer=training.Adam(), shuffle=False, progress=False)
    optimizer = training.Adam()
    for _ in range(2):
        apart.fit(x, y, 1, 10, optimizer=optimizer, shuffle=False, progress=False)
    assert same_state(together, apart)


def test_progress_is_a_line_an_epoch_without_a_terminal(capsys):
    x, y = samples(20)
    network().fit(x, y, 2, seed=0, validation=0.5)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch 1/2: loss ")
    assert "val_accuracy" in lines[1]
    network().fit(x, y, 1, progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("installed", [True, False])
def test_progress_is_a_bar_on_a_terminal_with_tqdm(capsys, monkeypatch, installed):
    if installed:
        pytest.importorskip("tqdm")
    else:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    x, y = samples(20)
    network().fit(x, y, 1)
    err = capsys.readouterr().err
    assert ("batch/s" in err) == installed
    assert err.lstrip("\r").startswith("epoch 1/1: loss") != installed


def test_an_interrupt_leaves_a_usable_model(capsys):
    class Interrupted(training.SGD):
        steps = 0

        def step(self, parameters, grads):
            super().step(parameters, grads)
            self.steps += 1
            if self.steps == 3:
                raise KeyboardInterrupt

    x, y = samples()
    model = network()
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, 5, optimizer=Interrupted())
    assert not same_state(model, network())
    assert np.isfinite(model.predict(x)).all()
    model.fit(x, y, 1, progress=False)


def test_a_last_batch_that_cannot_be_trained_on_is_refused_first():
    model = nn.Sequential(nn.Linear(4, 3), nn.Residual(nn.BatchNorm1d(3)))
    x, y, before = np.zeros((33, 4), np.float32), np.zeros(33, int), model.state_dict()
    with pytest.raises(ValueError, match="more than one value a channel to train on") as caught:
        model.fit(x, y, batch_size=32, progress=False)
    assert "batch_size=32 leaves 1 of 33 samples for the last batch" in caught.value.__notes__
    for name, array in model.state.items():
        np.testing.assert_array_equal(array, before[name])
    model.fit(x, y, batch_size=31, progress=False)
    model.fit(x, y, epochs=0, batch_size=32, progress=False)


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (ValueError, "epochs must be an integer >= 0, got -1", {"epochs": -1}),
        (TypeError, "epochs must be an integer", {"epochs": 1.5}),
        (ValueError, "batch_size must be an integer >= 1, got 0", {"batch_size": 0}),
        (ValueError, "optimizer must be one of 'sgd', 'adam'", {"optimizer": "lbfgs"}),
        (TypeError, "optimizer must be one of 'sgd', 'adam' or an optimizer", {"optimizer": training.Adam}),
        (ValueError, "loss must be one of 'cross_entropy', 'mse'", {"loss": "hinge"}),
        (TypeError, "loss must be one of", {"loss": 3}),
        (TypeError, "shuffle must be True or False", {"shuffle": 1}),
        (TypeError, "progress must be True or False", {"progress": "yes"}),
        (ValueError, "num_threads must be", {"num_threads": 0}),
        (ValueError, "y must have one target for each of the 20 samples, got 19", {"y": np.zeros(19, int)}),
        (ValueError, "y must have one target for each of the 20 samples, got a number", {"y": 1}),
        (ValueError, "y must be classes from 0 to 2.*got -1 to 0", {"y": np.arange(-1, 1).repeat(10)}),
        (ValueError, "y must be classes from 0 to 2.*got 0 to 3", {"y": np.arange(20) % 4}),
        (TypeError, "y must be integer classes, got dtype float64", {"y": np.zeros(20)}),
        (ValueError, r"y must have shape \(20,\)", {"y": np.zeros((20, 1), int)}),
        (ValueError, r"y must have the shape of the output, \(20, 3\)", {"y": np.zeros(20), "loss": "mse"}),
        (ValueError, "x must hold at least one sample", {"x": np.zeros((0, 1, 8, 8)), "y": np.zeros(0, int)}),
        (TypeError, r"x must have dtype.*x\.astype", {"x": np.zeros((20, 1, 8, 8), np.uint8)}),
        (ValueError, "in_channels=", {"x": np.zeros((20, 3, 8, 8))}),
        (ValueError, "in_features", {"x": np.zeros((20, 1, 9, 10))}),
        (TypeError, "validation must be a fraction", {"validation": 1}),
        (ValueError, "validation must be a fraction that leaves", {"validation": 1.0}),
        (ValueError, "validation must be a fraction that leaves", {"validation": 0.01}),
        (ValueError, "validation must be a fraction or", {"validation": (1, 2, 3)}),
        (
            ValueError,
            "validation y must have one target",
            {"validation": (np.zeros((2, 1, 8, 8)), np.zeros(3, int))},
        ),
    ],
)
def test_fit_refuses_before_it_changes_anything(error, message, change):
    x, y = samples(20)
    model = network()
    arguments = {"x": x, "y": y, "progress": False, **change}
    with pytest.raises(error, match=message):
        model.fit(**arguments)
    assert same_state(model, network())
    evaluated = {key: value for key, value in arguments.items() if key in ("x", "y", "loss", "num_threads")}
    if set(change) <= {"x", "y", "loss", "num_threads"}:
        with pytest.raises(error, match=message):
            model.evaluate(**evaluated)


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("lr must be a number >= 0, got -1", lambda: training.SGD(-1)),
        ("lr must be a number >= 0, got nan", lambda: training.Adam(float("nan"))),
        ("momentum must be a number >= 0 and < 1, got 1", lambda: training.SGD(0.1, 1)),
        ("weight_decay", lambda: training.SGD(0.1, weight_decay=-1)),
        ("momentum must be above 0 for nesterov", lambda: training.SGD(0.1, 0, nesterov=True)),
        ("betas must be two numbers", lambda: training.Adam(betas=0.9)),
        (r"betas\[1\] must be", lambda: training.Adam(betas=(0.9, 1.0))),
        ("eps must be", lambda: training.Adam(eps="small")),
    ],
)
def test_optimizers_refuse(message, make):
    with pytest.raises(ValueError, match=message):
        make()


def test_only_models_of_one_output_are_trained():
    x = nn.Input((2,))
    value = nn.Linear(2, 2)(x)
    model = nn.Model(x, [value, nn.ReLU()(value)])
    with pytest.raises(ValueError, match="model must have one output"):
        model.fit(np.ones((1, 2)), np.zeros(1, int))
