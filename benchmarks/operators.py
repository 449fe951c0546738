"""Operators other than plain convolution beside PyTorch: ``python -m benchmarks.operators --threads 1``.

A case makes fastconv's contestants and PyTorch's, each in both memory layouts; the ratio is the fastest of
PyTorch's over the fastest of ours. To add an operator, write a function that returns both lists and enter
it in ``CASES``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from functools import partial

import numpy as np

from benchmarks.timing import Contestant, interleave, quiet_thread_pools

TOLERANCE = 1e-4


def layouts(array: np.ndarray) -> dict[str, np.ndarray]:
    """The array as it is, and the same with the channels innermost in memory."""
    last = np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)
    return {"nchw": array, "nhwc": last}


def problem(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    """N(0, 1) float32 arrays."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def gradient(which: str, batch, channels, filters, size, kernel, threads: int) -> list[list[Contestant]]:
    """``which`` is "input" or "weight": one gradient of a 2-D convolution of stride 1 that keeps the size."""
    import torch

    import fastconv as fc

    x, weight, grad = problem(
        (batch, channels, size, size), (filters, channels, kernel, kernel), (batch, filters, size, size)
    )
    padding = kernel // 2
    options = {"padding": padding, "num_threads": threads}
    mask = [which == "input", which == "weight", False]
    ours, theirs = [], []
    for name, images in layouts(x).items():
        grads = layouts(grad)[name]
        if which == "input":
            call = partial(fc.functional.conv2d_input_grad, grads, weight, x.shape, **options)
        else:
            call = partial(fc.functional.conv2d_weight_grad, grads, images, weight.shape, **options)
        ours.append(Contestant(f"fastconv {name}", call, np.asarray))
        tensors = [torch.from_numpy(layouts(array)[name]) for array in (grad, x, weight)]
        call = partial(
            torch.ops.aten.convolution_backward, *tensors, None, [1, 1], [padding] * 2, [1, 1], False, [0, 0],
            1, mask,
        )  # fmt: skip
        theirs.append(Contestant(f"torch {name}", call, partial(_gradient_of, mask.index(True))))
    return [ours, theirs]


def _gradient_of(which: int, result) -> np.ndarray:
    return result[which].numpy()


def transposed(channels, filters, size, kernel, stride, padding, threads: int) -> list[list[Contestant]]:
    """A transposed convolution of one image: prepared plans, and PyTorch's call in inference mode."""
    import torch

    import fastconv as fc

    x, weight, bias = problem((1, channels, size, size), (channels, filters, kernel, kernel), (filters,))
    options = {"stride": stride, "padding": padding}
    plan = fc.plan_conv_transpose2d(x.shape, weight, bias, num_threads=threads, **options)
    ours, theirs = [], []
    for name, images in layouts(x).items():
        ours.append(Contestant(f"fastconv {name}", partial(plan, images, out=plan(images)), np.asarray))
        tensors = [torch.from_numpy(layouts(array)[name]) for array in (x, weight)]
        call = partial(torch.nn.functional.conv_transpose2d, *tensors, torch.from_numpy(bias), **options)
        theirs.append(Contestant(f"torch {name}", call, lambda y: y.numpy()))
    return [ours, theirs]


# Name → a function of the thread count.
CASES: dict[str, Callable[[int], list[list[Contestant]]]] = {
    "input-grad/3x3-64-56": partial(gradient, "input", 8, 64, 64, 56, 3),
    "input-grad/3x3-128-28": partial(gradient, "input", 8, 128, 128, 28, 3),
    "input-grad/1x1-256-64-56": partial(gradient, "input", 8, 256, 64, 56, 1),
    "weight-grad/3x3-64-56": partial(gradient, "weight", 8, 64, 64, 56, 3),
    "weight-grad/3x3-128-28": partial(gradient, "weight", 8, 128, 128, 28, 3),
    "weight-grad/1x1-256-64-56": partial(gradient, "weight", 8, 256, 64, 56, 1),
    "transposed/4x4s2-256-128-28": partial(transposed, 256, 128, 28, 4, 2, 1),
    "transposed/2x2s2-128-64-56": partial(transposed, 128, 64, 56, 2, 2, 0),
}


def measure(name: str, threads: int, repeats: int) -> str:
    """One case: everybody's milliseconds, and the ratio.

    Raises
    ------
    RuntimeError
        If two contestants compute different things.
    """
    ours, theirs = CASES[name](threads)
    everybody = [*ours, *theirs]
    expected = everybody[0].read(everybody[0].call())
    for contestant in everybody[1:]:
        error = np.abs(contestant.read(contestant.call()) - expected).max() / np.abs(expected).max()
        if not error <= TOLERANCE:
            raise RuntimeError(f"{name}: {contestant.name} differs by {error:.2g} of the largest value")
    seconds = {who: timing.seconds for who, timing in interleave(everybody, repeats).items()}
    best = [min(seconds[contestant.name] for contestant in side) for side in (theirs, ours)]
    times = "  ".join(f"{who} {value * 1e3:.2f}" for who, value in seconds.items())
    return f"{name:28} {best[0] / best[1]:5.2f}   {times}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the cases that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operators", description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cases", default="*", help="globs of names, comma-separated (default: all)")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args(arguments)
    quiet_thread_pools()
    import torch

    torch.set_num_threads(options.threads)
    print(f"{options.threads} thread(s), milliseconds; ratio: PyTorch's best over fastconv's best")
    with torch.inference_mode():
        for name in CASES:
            if any(fnmatch(name, pattern) for pattern in options.cases.split(",")):
                print(measure(name, options.threads, options.repeats), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
