"""Optimizers: they change parameters in place, and remember by name what they need between steps.

The formulas and their order are PyTorch's, so that the same steps give the same numbers. One optimizer
belongs to one model; giving it to ``fit`` again continues where it stopped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from fastconv import checks


class Optimizer(Protocol):
    """What training asks of an optimizer."""

    def step(self, parameters: Mapping[str, np.ndarray], grads: Mapping[str, np.ndarray]) -> None:
        """Change the parameters in place, given the gradients of the same names."""


def _share(name: str, value: Any) -> float:
    if checks.number(name, value, 0, 1, "a number >= 0 and < 1") == 1:
        raise ValueError(f"{name} must be a number >= 0 and < 1, got {value!r}")
    return float(value)


class SGD:
    """Stochastic gradient descent with momentum.

    ``g += weight_decay · p; v = momentum · v + g; p −= lr · v`` (Nesterov: ``p −= lr · (g + momentum · v)``).

    Parameters
    ----------
    lr : float, default 0.01
        May be changed between epochs.
    momentum : float, default 0.9
    weight_decay : float, default 0
    nesterov : bool, default False

    Raises
    ------
    ValueError
        If an argument is out of range, or ``nesterov`` without momentum.
    """

    def __init__(self, lr=0.01, momentum=0.9, *, weight_decay=0.0, nesterov=False):
        self.lr = checks.not_negative("lr", lr)
        self.momentum = _share("momentum", momentum)
        self.weight_decay = checks.not_negative("weight_decay", weight_decay)
        self.nesterov = checks.boolean("nesterov", nesterov)
        if self.nesterov and self.momentum == 0:
            raise ValueError("momentum must be above 0 for nesterov, got 0")
        self._velocity: dict[str, np.ndarray] = {}

    def step(self, parameters, grads):
        """Change the parameters in place."""
        for name, parameter in parameters.items():
            grad = grads[name]
            if self.weight_decay:
                grad = grad + self.weight_decay * parameter
            if self.momentum:
                velocity = self._velocity.get(name)
                if velocity is None:
                    velocity = self._velocity[name] = np.array(grad)
                else:
                    velocity *= self.momentum
                    velocity += grad
                grad = grad + self.momentum * velocity if self.nesterov else velocity
            parameter -= self.lr * grad


class Adam:
    """Adam (Kingma and Ba, 2015).

    ``g += weight_decay · p; m = β₁·m + (1 − β₁)·g; v = β₂·v + (1 − β₂)·g²;
    p −= lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + eps)``.

    Parameters
    ----------
    lr : float, default 0.001
        May be changed between epochs.
    betas : (float, float), default (0.9, 0.999)
    eps : float, default 1e-8
    weight_decay : float, default 0

    Raises
    ------
    ValueError
        If an argument is out of range.
    """

    def __init__(self, lr=0.001, betas=(0.9, 0.999), eps=1e-8, *, weight_decay=0.0):
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise ValueError(f"betas must be two numbers >= 0 and < 1, got {betas!r}")
        self.lr = checks.not_negative("lr", lr)
        self.betas = (_share("betas[0]", betas[0]), _share("betas[1]", betas[1]))
        self.eps = checks.not_negative("eps", eps)
        self.weight_decay = checks.not_negative("weight_decay", weight_decay)
        self._steps = 0
        self._moments: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def step(self, parameters, grads):
        """Change the parameters in place."""
        self._steps += 1
        beta1, beta2 = self.betas
        rate = self.lr / (1 - beta1**self._steps)
        root = math.sqrt(1 - beta2**self._steps)
        for name, parameter in parameters.items():
            grad = grads[name]
            if self.weight_decay:
                grad = grad + self.weight_decay * parameter
            if name not in self._moments:
                self._moments[name] = (np.zeros_like(parameter), np.zeros_like(parameter))
            mean, square = self._moments[name]
            mean += (1 - beta1) * (grad - mean)
            square *= beta2
            square += (1 - beta2) * (grad * grad)
            parameter -= rate * (mean / (np.sqrt(square) / root + self.eps))


_NAMED = {"sgd": SGD, "adam": Adam}


def resolve(optimizer: Any) -> Optimizer:
    """A new optimizer of this name with its defaults, or the optimizer itself."""
    if isinstance(optimizer, str):
        checks.choice("optimizer", optimizer, tuple(_NAMED))
        return _NAMED[optimizer]()
    if isinstance(optimizer, type) or not callable(getattr(optimizer, "step", None)):
        raise TypeError(
            f"optimizer must be one of {', '.join(map(repr, _NAMED))} or an optimizer object,"
            f" got {optimizer!r}"
        )
    return optimizer
