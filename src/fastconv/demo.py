"""``fastconv demo``: a small network learns real handwritten digits, is saved, loaded, and put to work."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from fastconv import nn
from fastconv.comparison import compare
from fastconv.threads import set_num_threads

SHADES = " ░▒▓█"
DRAWN = 8
PER_ROW = 4


def load_digits(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """scikit-learn's digits, a fifth of each class held out.

    Returns
    -------
    x_train, y_train, x_test, y_test
        Images (N, 1, 8, 8) float32 from 0 to 1; labels (N,) int64.

    Raises
    ------
    ImportError
        Without scikit-learn, naming the extra.
    """
    try:
        from sklearn import datasets
    except ImportError:
        raise ImportError('the demo needs scikit-learn: pip install "fastconv[demo]"') from None
    digits = datasets.load_digits()
    x = np.ascontiguousarray(digits.images[:, np.newaxis] / 16, dtype=np.float32)
    y = digits.target.astype(np.int64)
    rng = np.random.default_rng(seed)
    held_out = np.zeros(len(y), bool)
    for label in range(10):
        members = rng.permutation(np.flatnonzero(y == label))
        held_out[members[: len(members) // 5]] = True
    return x[~held_out], y[~held_out], x[held_out], y[held_out]


def build(seed: int):
    """Three convolutions with batch normalisation, two poolings, a linear layer: 10 scores of an image."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(256, 10),
    )
    model.initialize(seed)
    return model


def picture(image: np.ndarray) -> list[str]:
    """The lines of an image (H, W) from 0 to 1 in block characters, two to a pixel."""
    levels = np.rint(image * (len(SHADES) - 1)).astype(int)
    return ["".join(SHADES[level] * 2 for level in row) for row in levels]


def gallery(images: np.ndarray, predicted: np.ndarray, truth: np.ndarray) -> str:
    """Images (N, 1, H, W) side by side, each above its prediction and the truth."""
    lines = []
    for start in range(0, len(images), PER_ROW):
        chosen = range(start, min(start + PER_ROW, len(images)))
        pictures = [picture(images[i, 0]) for i in chosen]
        lines += ["  ".join(parts).rstrip() for parts in zip(*pictures, strict=True)]
        captions = [
            f"says {predicted[i]}, is {truth[i]}{'' if predicted[i] == truth[i] else ' ✗'}" for i in chosen
        ]
        lines += ["  ".join(caption.ljust(2 * images.shape[3]) for caption in captions).rstrip(), ""]
    return "\n".join(lines)


def check_writable(path: Path) -> None:
    """Fail before the training, not after it.

    Raises
    ------
    OSError
        If the folder is missing or not writable, or the path is a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(f"--save must be a file, got the folder {path}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"--save must be in a folder that exists and is writable, got {path}")


def train(model, digits, epochs: int, seed: int) -> None:
    """Fit the model and say how long it took and how well it does on the held-out fifth."""
    x_train, y_train, x_test, y_test = digits
    start = time.perf_counter()
    model.fit(x_train, y_train, epochs=epochs, batch_size=32, optimizer="adam", seed=seed)
    seconds = time.perf_counter() - start
    accuracy = model.evaluate(x_test, y_test)["accuracy"]
    print(f"Trained {epochs} epochs in {seconds:.1f} s.")
    print(f"Accuracy on the {len(y_test)} held-out digits: {accuracy:.2%}\n")


def show_answers(model, x: np.ndarray, y: np.ndarray) -> None:
    """Draw some digits with the model's answers, first up to two of its mistakes, which nobody shall hide."""
    predicted = model.predict(x).argmax(axis=1)
    wrong, right = np.flatnonzero(predicted != y)[:2], np.flatnonzero(predicted == y)
    spread = np.linspace(0, len(right) - 1, DRAWN - len(wrong)).astype(int)
    some = np.concatenate([wrong, right[spread]])
    print(gallery(x[some], predicted[some], y[some]))


def show_algorithms(model, x: np.ndarray) -> None:
    """Compare the algorithms on the model's second convolution, fed with what reaches it."""
    layers = list(model)
    second = [index for index, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)][1]
    layer = layers[second]
    reaching = nn.Sequential(*layers[:second]).predict(x)
    print(f"The second convolution, {len(x)} digits at once, by every algorithm:\n")
    print(compare(reaching, layer.weight, layer.bias, padding=layer.padding))


def run(save: str, epochs: int, seed: int, threads: int) -> None:
    """The whole demonstration, printed.

    Parameters
    ----------
    save : str
        Where the trained model is written.
    epochs : int
        Passes over the training digits.
    seed : int
        Of the split, the weights and the order of the batches; the same seed gives the same model.
    threads : int
        For every call; the model does not depend on it.

    Raises
    ------
    ImportError
        Without scikit-learn, naming the extra.
    OSError
        If the model cannot be written.
    """
    path = Path(save)
    check_writable(path)
    set_num_threads(threads)
    digits = load_digits(seed)
    x_test, y_test = digits[2:]
    print(f"{len(digits[0])} digits to learn from, {len(x_test)} held out; {threads} thread(s).\n")
    model = build(seed)
    print(f"{model.summary((1, 1, 8, 8))}\n")
    train(model, digits, epochs, seed)
    model.save(path)
    model = nn.load(path)
    print(f"Saved to {path} and loaded back; its answers for some held-out digits:\n")
    show_answers(model, x_test, y_test)
    show_algorithms(model, x_test[:64])
