"""Training: losses, optimizers, the loop. Importing it makes ``Model.fit`` and ``Model.evaluate`` work."""

import sys

from fastconv.nn.model import register_trainer
from fastconv.training.fit import evaluate, fit
from fastconv.training.history import History
from fastconv.training.losses import CrossEntropyLoss, Loss, MSELoss
from fastconv.training.optimizers import SGD, Adam, Optimizer

__all__ = ["SGD", "Adam", "CrossEntropyLoss", "History", "Loss", "MSELoss", "Optimizer", "evaluate", "fit"]

register_trainer(sys.modules[__name__])
