"""What happened in each epoch, kept and shown."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class History:
    """Measurements of a training, one entry for each epoch; a list is empty where nothing was measured.

    Attributes
    ----------
    loss, accuracy : list of float
        Of the training samples, while they were trained on.
    val_loss, val_accuracy : list of float
        Of the validation samples, after the epoch.
    seconds : list of float
    """

    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    val_accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def to_dict(self) -> dict[str, list[float]]:
        """The lists by name."""
        return asdict(self)

    def add(self, measured: dict[str, float]) -> None:
        """Append one epoch."""
        for name, value in measured.items():
            getattr(self, name).append(value)


class EpochDisplay:
    """Shows one epoch on stderr: a tqdm bar on a terminal, else a line at its end. A context manager."""

    def __init__(self, epoch: int, epochs: int, batches: int, enabled: bool) -> None:
        self._title = f"epoch {epoch}/{epochs}"
        self._enabled = enabled
        self._bar: Any = None
        if enabled and sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self._bar = tqdm(total=batches, desc=self._title, unit="batch", file=sys.stderr)

    def __enter__(self) -> EpochDisplay:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, loss: float) -> None:
        """One more batch is done."""
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            self._bar.update()

    def finish(self, measured: dict[str, float]) -> None:
        """The epoch is done."""
        texts = {name: f"{value:.4f}" for name, value in measured.items() if name != "seconds"}
        if self._bar is not None:
            self._bar.set_postfix(texts)
        elif self._enabled:
            shown = ", ".join(f"{name} {text}" for name, text in texts.items())
            print(f"{self._title}: {shown}, {measured['seconds']:.1f} s", file=sys.stderr, flush=True)
