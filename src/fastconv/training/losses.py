"""Losses: each checks its targets once, then gives value and gradient batch by batch.

Any object with the three methods of :class:`Loss` can be given to ``fit`` and ``evaluate``.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from fastconv import checks
from fastconv.functional.activation import log_softmax


class Loss(Protocol):
    """What training asks of a loss."""

    def check(self, name: str, targets: Any, output_shape: tuple[int, ...]) -> np.ndarray:
        """All targets as an array, or a TypeError or ValueError that calls them ``name``.

        ``output_shape`` is that of the model for as many samples.
        """

    def __call__(self, output: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
        """The mean loss over a batch, and its gradient by ``output``."""

    def correct(self, output: np.ndarray, targets: np.ndarray) -> float | None:
        """How many samples are classified correctly; None where that means nothing."""


class CrossEntropyLoss:
    """``−log softmax(output)[class]``, the mean over all samples (and pixels).

    The output of the model are logits (N, C, ...), the targets integer classes (N, ...) from 0 to C − 1.
    """

    def check(self, name, targets, output_shape):
        targets = np.asarray(targets)
        if targets.dtype.kind not in "iu":
            raise TypeError(f"{name} must be integer classes, got dtype {targets.dtype}")
        if len(output_shape) < 2:
            raise ValueError(f"loss must get outputs (N, C, ...) from the model, got shape {output_shape}")
        classes = output_shape[1]
        expected = (output_shape[0], *output_shape[2:])
        if targets.shape != expected:
            raise ValueError(f"{name} must have shape {expected}, one class each, got {targets.shape}")
        if targets.size and not 0 <= targets.min() <= targets.max() < classes:
            raise ValueError(
                f"{name} must be classes from 0 to {classes - 1}, as the model has {classes} outputs,"
                f" got {targets.min()} to {targets.max()}"
            )
        return targets.astype(np.int64, copy=False)

    def __call__(self, output, targets):
        chosen = np.expand_dims(targets, 1)
        logarithms = log_softmax(output, dim=1)
        value = -np.take_along_axis(logarithms, chosen, axis=1).mean(dtype=np.float64)
        grad = np.exp(logarithms)
        np.put_along_axis(grad, chosen, np.take_along_axis(grad, chosen, axis=1) - 1, axis=1)
        grad /= grad.dtype.type(targets.size)
        return float(value), grad

    def correct(self, output, targets):
        return float((output.argmax(axis=1) == targets).sum()) * len(targets) / targets.size


class MSELoss:
    """``(output − target)²``, the mean over all elements; targets of the output's shape."""

    def check(self, name, targets, output_shape):
        targets = checks.float_array(name, targets)
        if targets.shape != tuple(output_shape):
            raise ValueError(f"{name} must have the shape of the output, {output_shape}, got {targets.shape}")
        return targets

    def __call__(self, output, targets):
        difference = output - targets.astype(output.dtype, copy=False)
        value = np.square(difference).mean(dtype=np.float64)
        return float(value), difference * difference.dtype.type(2 / difference.size)

    def correct(self, output, targets):
        return None


_NAMED = {"cross_entropy": CrossEntropyLoss, "mse": MSELoss}


def resolve(loss: Any) -> Loss:
    """The loss of this name, or the loss itself."""
    if isinstance(loss, str):
        checks.choice("loss", loss, tuple(_NAMED))
        return _NAMED[loss]()
    if isinstance(loss, type) or not all(
        callable(getattr(loss, m, None)) for m in ("check", "correct", "__call__")
    ):
        raise TypeError(f"loss must be one of {', '.join(map(repr, _NAMED))} or a loss object, got {loss!r}")
    return loss
