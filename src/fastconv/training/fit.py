"""The training loop, and measuring a model."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from fastconv import checks, threads
from fastconv.nn.model import Model
from fastconv.training import losses, optimizers
from fastconv.training.history import EpochDisplay, History

Samples = tuple[tuple[np.ndarray, ...], np.ndarray]


def fit(
    model: Model,
    x: Any,
    y: Any,
    epochs: int = 1,
    batch_size: int = 32,
    *,
    validation: Any = None,
    optimizer: Any = "sgd",
    loss: Any = "cross_entropy",
    seed: Any = None,
    shuffle: bool = True,
    progress: bool = True,
    num_threads: int | None = None,
) -> History:
    """Train a model; see :meth:`fastconv.nn.Model.fit`."""
    epochs = checks.integer("epochs", epochs, 0)
    batch_size = checks.integer("batch_size", batch_size, 1)
    optimizer, loss = optimizers.resolve(optimizer), losses.resolve(loss)
    shuffle, progress = checks.boolean("shuffle", shuffle), checks.boolean("progress", progress)
    num_threads = threads.resolve(num_threads)
    rng = checks.generator("seed", seed)
    samples, held_out = _split(_samples(model, x, y, loss, "x", "y"), validation, model, loss, rng)
    if epochs:
        _check_smallest_batch(model, samples, batch_size)
    model.input_shapes = tuple((1, *array.shape[1:]) for array in samples[0])
    history = History()
    parameters = model.parameters
    batches = -(-len(samples[1]) // batch_size)
    for epoch in range(1, epochs + 1):
        order = rng.permutation(len(samples[1])) if shuffle else np.arange(len(samples[1]))
        start = time.perf_counter()
        with EpochDisplay(epoch, epochs, batches, progress) as display:
            tally = _Tally()
            for first in range(0, len(order), batch_size):
                inputs, targets = _take(samples, order[first : first + batch_size])
                output, caches = model.forward(*inputs, training=True, rng=rng, num_threads=num_threads)
                value, grad = loss(output, targets)
                _, grads = model.backward(grad, caches, input_grads=False, num_threads=num_threads)
                optimizer.step(parameters, grads)
                tally.add(value, loss.correct(output, targets), len(targets))
                display.advance(tally.metrics()["loss"])
            measured = tally.metrics()
            if held_out is not None:
                metrics = _measure(model, held_out, loss, batch_size, num_threads)
                measured |= {f"val_{name}": value for name, value in metrics.items()}
            measured["seconds"] = time.perf_counter() - start
            display.finish(measured)
        history.add(measured)
    return history


def _check_smallest_batch(model: Model, samples: Samples, batch_size: int) -> None:
    """Refuse a last batch that a layer cannot be trained on, before the first is."""
    count = len(samples[1])
    smallest = count % batch_size or batch_size
    try:
        model.check_training(*((smallest, *array.shape[1:]) for array in samples[0]))
    except ValueError as error:
        error.add_note(f"batch_size={batch_size} leaves {smallest} of {count} samples for the last batch")
        raise


def evaluate(
    model: Model,
    x: Any,
    y: Any,
    batch_size: int = 256,
    *,
    loss: Any = "cross_entropy",
    num_threads: int | None = None,
) -> dict[str, float]:
    """Measure a model; see :meth:`fastconv.nn.Model.evaluate`."""
    batch_size = checks.integer("batch_size", batch_size, 1)
    loss = losses.resolve(loss)
    num_threads = threads.resolve(num_threads)
    return _measure(model, _samples(model, x, y, loss, "x", "y"), loss, batch_size, num_threads)


class _Tally:
    """Sums of what batches of different sizes measured."""

    def __init__(self) -> None:
        self.count = 0
        self.loss = 0.0
        self.correct: float | None = 0.0

    def add(self, loss: float, correct: float | None, count: int) -> None:
        self.count += count
        self.loss += loss * count
        self.correct = None if correct is None or self.correct is None else self.correct + correct

    def metrics(self) -> dict[str, float]:
        result = {"loss": self.loss / self.count}
        if self.correct is not None:
            result["accuracy"] = self.correct / self.count
        return result


def _measure(
    model: Model, samples: Samples, loss: losses.Loss, batch_size: int, num_threads: int
) -> dict[str, float]:
    tally = _Tally()
    for first in range(0, len(samples[1]), batch_size):
        inputs, targets = _take(samples, slice(first, first + batch_size))
        output = model.infer(*inputs, num_threads=num_threads)
        tally.add(loss(output, targets)[0], loss.correct(output, targets), len(targets))
    return tally.metrics()


def _take(samples: Samples, which: Any) -> Samples:
    inputs, targets = samples
    return tuple(array[which] for array in inputs), targets[which]


def _samples(model: Model, x: Any, y: Any, loss: losses.Loss, x_name: str, y_name: str) -> Samples:
    """Inputs and targets, checked against the model and the loss before anything is computed."""
    if len(model.outputs) != 1:
        raise ValueError(f"model must have one output to be trained or measured, got {len(model.outputs)}")
    inputs = model.input_arrays(x)
    count = len(inputs[0])
    if count == 0:
        raise ValueError(f"{x_name} must hold at least one sample, got shape {inputs[0].shape}")
    if np.ndim(y) == 0 or len(y) != count:
        got = "a number" if np.ndim(y) == 0 else len(y)
        raise ValueError(f"{y_name} must have one target for each of the {count} samples, got {got}")
    for array, value, name in zip(inputs, model.inputs, model.input_names, strict=True):
        if value.shape is not None and array.shape[1:] != value.shape[1:]:
            raise ValueError(
                f"{x_name} must have samples of shape {value.shape[1:]} ({name}), got shape {array.shape}"
            )
    output_shape = model.output_shape(*(array.shape for array in inputs))
    return inputs, loss.check(y_name, y, output_shape)


def _split(
    samples: Samples, validation: Any, model: Model, loss: losses.Loss, rng: np.random.Generator
) -> tuple[Samples, Samples | None]:
    if validation is None:
        return samples, None
    if isinstance(validation, tuple | list):
        if len(validation) != 2:
            raise ValueError(f"validation must be a fraction or (x, y), got {len(validation)} items")
        return samples, _samples(model, *validation, loss, "validation x", "validation y")
    if isinstance(validation, bool) or not isinstance(validation, float | np.floating):
        raise TypeError(f"validation must be a fraction such as 0.1 or (x, y), got {validation!r}")
    count = len(samples[1])
    held = round(count * float(validation)) if 0 < validation < 1 else 0
    if not 0 < held < count:
        raise ValueError(
            f"validation must be a fraction that leaves samples on both sides of {count}, got {validation!r}"
        )
    order = rng.permutation(count)
    return _take(samples, np.sort(order[held:])), _take(samples, order[:held])
