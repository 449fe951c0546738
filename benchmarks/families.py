"""Pooling, normalisation and resampling beside PyTorch, turn by turn.

    python -m benchmarks.families [--threads N] [--rounds N] [--works GLOBS]

PyTorch computes in both of its layouts, and the better one counts; fastconv on channels-last views, which is
what flows between its layers, and on NCHW arrays. Every call allocates its results, as layers do.
"""

from __future__ import annotations

import argparse
from fnmatch import fnmatch
from functools import partial

import numpy as np

from benchmarks.timing import Contestant, interleave, quiet_thread_pools


def _channels_last(x):
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def _contestants(x, ours, theirs):
    """The four: ``ours`` and ``theirs`` make a call from an array in either layout."""
    import torch

    last = _channels_last(x)
    tensors = [torch.from_numpy(array) for array in (x, last)]
    calls = [ours(last), ours(x), theirs(tensors[1]), theirs(tensors[0])]
    names = ("fastconv channels-last", "fastconv NCHW", "torch channels-last", "torch NCHW")
    return [Contestant(name, call, np.asarray) for name, call in zip(names, calls, strict=True)]


def _of_rows(x, name, *arguments):
    """Of rows, which have one layout: a function of both libraries."""
    import torch

    from fastconv import functional

    tensors = [torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in (x, *arguments)]
    ours, theirs = partial(getattr(functional, name), x, *arguments), getattr(torch.nn.functional, name)
    return [
        Contestant("fastconv", ours, np.asarray),
        Contestant("torch", partial(theirs, *tensors), np.asarray),
    ]


def _group_norm_step(x, grad):
    from fastconv.functional import group_norm, group_norm_grad

    weight, bias = np.ones(x.shape[1], x.dtype), np.zeros(x.shape[1], x.dtype)

    def step():
        group_norm(x, 8, weight, bias)
        return group_norm_grad(grad, x, 8, weight)

    return step


def _torch_group_norm_step(x, grad):
    import torch

    layer, leaf = torch.nn.GroupNorm(8, x.shape[1]), x.requires_grad_(True)
    return lambda: torch.autograd.grad(layer(leaf), [leaf, layer.weight, layer.bias], grad)


def _batch_norm_step(x, grad):
    from fastconv.functional import batch_norm_grad, batch_norm_training

    weight, bias = np.ones(x.shape[1], x.dtype), np.zeros(x.shape[1], x.dtype)

    def step():
        _, mean, var = batch_norm_training(x, weight, bias)
        return batch_norm_grad(grad, x, mean, var, weight, training=True)

    return step


def _torch_batch_norm_step(x, grad):
    import torch

    layer, leaf = torch.nn.BatchNorm2d(x.shape[1]), x.requires_grad_(True)
    return lambda: torch.autograd.grad(layer(leaf), [leaf, layer.weight, layer.bias], grad)


def works():
    """(title, contestants) of each work."""
    import torch

    from fastconv import functional

    theirs = torch.nn.functional
    rng = np.random.default_rng(0)
    image = rng.standard_normal((1, 64, 112, 112), dtype=np.float32)
    small = rng.standard_normal((1, 64, 56, 56), dtype=np.float32)
    batch, grad = rng.standard_normal((2, 8, 64, 56, 56), dtype=np.float32)

    def simple(x, name, *arguments, **keywords):
        def call(library):
            return lambda array: lambda: getattr(library, name)(array, *arguments, **keywords)

        return _contestants(x, call(functional), call(theirs))

    def matching(array):
        return _channels_last(grad) if array.strides[1] == array.itemsize else grad

    def matching_tensor(tensor):
        last = tensor.stride(1) == 1
        return torch.from_numpy(_channels_last(grad) if last else grad)

    yield "max pool 3×3 s2, 64×112×112", simple(image, "max_pool2d", 3, 2, 1)
    yield "with indices", simple(image, "max_pool2d", 3, 2, 1, return_indices=True)
    yield "average pool 3×3 s2", simple(image, "avg_pool2d", 3, 2, 1)
    yield "bilinear ×2, 64×56×56", simple(small, "interpolate", scale_factor=2, mode="bilinear")
    yield "nearest ×2", simple(small, "interpolate", scale_factor=2)
    yield "group norm, 8 groups", simple(batch, "group_norm", 8)
    yield "instance norm", simple(batch, "instance_norm")
    rows, weight, bias = rng.standard_normal((1568, 768), np.float32), *np.ones((2, 768), np.float32)
    yield "layer norm, 1568 rows of 768", _of_rows(rows, "layer_norm", (768,), weight, bias)
    steps = {
        "group norm step, 8 groups": (_group_norm_step, _torch_group_norm_step),
        "batch norm step, 8×64×56×56": (_batch_norm_step, _torch_batch_norm_step),
    }
    for title, (ours, theirs_step) in steps.items():
        yield (
            title,
            _contestants(
                batch,
                lambda array, step=ours: step(array, matching(array)),
                lambda tensor, step=theirs_step: step(tensor, matching_tensor(tensor)),
            ),
        )


def main():
    """Print microseconds a call, and the ratio of PyTorch's better layout to each of ours."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument(
        "--works", default="*", help="parts of titles, or globs of them, comma-separated (default: all)"
    )
    options = parser.parse_args()
    quiet_thread_pools()
    import torch

    import fastconv as fc

    torch.set_num_threads(options.threads)
    fc.set_num_threads(options.threads)
    for title, contestants in works():
        if not any(fnmatch(title, f"*{pattern}*") for pattern in options.works.split(",")):
            continue
        timings = {name: t.seconds * 1e6 for name, t in interleave(contestants, options.rounds).items()}
        best = min(value for name, value in timings.items() if name.startswith("torch"))
        print(f"{title}, {options.threads} thread(s)")
        for name, value in timings.items():
            ratio = f"   {best / value:.2f}×" if name.startswith("fastconv") else ""
            print(f"    {name:24}{value:9.0f} µs{ratio}")


if __name__ == "__main__":
    main()
