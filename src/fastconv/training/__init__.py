"""Training: losses, optimizers, and the loop behind ``Model.fit`` and ``Model.evaluate``."""

from fastconv.training.fit import evaluate, fit
from fastconv.training.history import History
from fastconv.training.losses import CrossEntropyLoss, Loss, MSELoss
from fastconv.training.optimizers import SGD, Adam, Optimizer

__all__ = ["SGD", "Adam", "CrossEntropyLoss", "History", "Loss", "MSELoss", "Optimizer", "evaluate", "fit"]
