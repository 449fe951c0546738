"""Operators other than 2-D convolution beside PyTorch: ``python -m benchmarks.operators --threads 1``.

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


def ranked(x_shape, weight_shape, options, threads: int) -> list[list[Contestant]]:
    """1-D or 3-D convolution: prepared plans, PyTorch's call; 1-D also as a channels-last image."""
    import torch

    import fastconv as fc

    rank = len(x_shape) - 2
    x, weight = problem(x_shape, weight_shape)
    plan = getattr(fc, f"plan_conv{rank}d")(x.shape, weight, num_threads=threads, **options)
    ours, theirs = [], []
    for name, images in layouts(x).items():
        ours.append(Contestant(f"fastconv {name}", partial(plan, images, out=plan(images)), np.asarray))
        tensors = [torch.from_numpy(array) for array in (images, layouts(weight)[name])]
        settings, flat = options, rank == 1 and name == "nhwc"
        if flat:
            last = {"memory_format": torch.channels_last}
            tensors = [tensor[:, :, None].contiguous(**last) for tensor in tensors]
            settings = {key: (int(key == "dilation"), value) for key, value in options.items()}
        call = partial(getattr(torch.nn.functional, f"conv{2 if flat else rank}d"), *tensors, **settings)
        theirs.append(Contestant(f"torch {name}", call, _without_rows if flat else lambda y: y.numpy()))
    return [ours, theirs]


def _without_rows(y) -> np.ndarray:
    return y.numpy()[:, :, 0]


def large_kernel(channels, size, threads: int) -> list[list[Contestant]]:
    """31×31 kernels, plan and call, beside PyTorch; one channel beside SciPy's ``fftconvolve``."""
    import torch

    import fastconv as fc

    kernel = 31
    x, weight = problem((1, channels, size, size), (channels, channels, kernel, kernel))
    options = {"padding": kernel // 2, "num_threads": threads}
    plan = fc.plan_conv2d(x.shape, weight, **options)
    ours = [
        Contestant("fastconv plan", partial(plan, x, out=plan(x)), np.asarray),
        Contestant("fastconv call", partial(fc.conv2d, x, weight, **options), np.asarray),
    ]
    if channels == 1:
        from scipy.signal import fftconvolve

        call = partial(fftconvolve, x, weight[:, :, ::-1, ::-1], mode="same", axes=(2, 3))
        return [ours, [Contestant("scipy", call, np.asarray)]]
    # In its other layout PyTorch takes 51 s on one thread (EPYC Zen 5), 0.3 s on two.
    tensors = [torch.from_numpy(layouts(array)["nhwc"]) for array in (x, weight)]
    call = partial(torch.conv2d, *tensors, padding=kernel // 2)
    return [ours, [Contestant("torch nhwc", call, torch.Tensor.numpy)]]


def deformable(channels, size, threads: int) -> list[list[Contestant]]:
    """Modulated deformable 3×3 convolution beside ONNX Runtime, whose output is bound."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    import fastconv as fc

    image = (1, channels, size, size)
    x, weight, bias, offset, mask = problem(
        image, (channels, channels, 3, 3), (channels,), (1, 18, size, size), (1, 9, size, size)
    )
    inputs = {"x": x, "offset": offset, "mask": mask}
    node = helper.make_node(
        "DeformConv", ["x", "w", "offset", "b", "mask"], ["y"], kernel_shape=[3, 3], pads=[1] * 4
    )
    graph = helper.make_graph(
        [node],
        "deformable",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, a.shape) for name, a in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, image)],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    ours = [
        Contestant(
            f"fastconv {name}",
            partial(
                fc.deform_conv2d, images, offset, weight, bias, padding=1, mask=mask, num_threads=threads
            ),
            np.asarray,
        )
        for name, images in layouts(x).items()
    ]
    call = partial(session.run, None, inputs)
    return [ours, [Contestant("onnxruntime", call, lambda outputs: outputs[0])]]


def attention(channels, keys, size, fused, threads: int) -> list[list[Contestant]]:
    """Attention over all positions, projections and residual included, beside PyTorch.

    ``fused`` takes PyTorch's fused attention instead of the formula.
    """
    import torch

    import fastconv as fc

    widths = (keys, keys, channels)
    x, *rest = problem(
        (1, channels, size, size), *((width, channels, 1, 1) for width in widths), *((n,) for n in widths)
    )
    weights, biases = [weight / 8 for weight in rest[:3]], rest[3:]
    stacked = [torch.from_numpy(np.concatenate(arrays)) for arrays in (weights, biases)]

    def formula(x):
        z = torch.nn.functional.conv2d(x, *stacked).flatten(2).transpose(1, 2)
        q, k, v = z.split(widths, 2)
        if fused:
            y = torch.nn.functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        else:
            y = torch.softmax(q @ k.transpose(1, 2) / keys**0.5, -1) @ v
        return x + y.transpose(1, 2).reshape(x.shape)

    ours, theirs = [], []
    for name, images in layouts(x).items():
        call = partial(fc.functional.attention_conv2d, images, *weights, *biases, num_threads=threads)
        ours.append(Contestant(f"fastconv {name}", call, np.asarray))
        theirs.append(
            Contestant(f"torch {name}", partial(formula, torch.from_numpy(images)), lambda y: y.numpy())
        )
    return [ours, theirs]


def separable(channels, filters, size, threads: int) -> list[list[Contestant]]:
    """Depthwise 3×3 then pointwise: a prepared plan beside PyTorch's two calls."""
    import torch

    import fastconv as fc

    x, first, second = problem((1, channels, size, size), (channels, 1, 3, 3), (filters, channels, 1, 1))
    plan = fc.functional.plan_separable_conv2d(x.shape, first, second, padding=1, num_threads=threads)

    def both(x, first, second):
        convolve = torch.nn.functional.conv2d
        return convolve(convolve(x, first, padding=1, groups=channels), second)

    ours, theirs = [], []
    for name, images in layouts(x).items():
        ours.append(Contestant(f"fastconv {name}", partial(plan, images), np.asarray))
        tensors = [torch.from_numpy(layouts(array)[name]) for array in (x, first, second)]
        theirs.append(Contestant(f"torch {name}", partial(both, *tensors), lambda y: y.numpy()))
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
    "1d/k9-64-64-16384": partial(ranked, (1, 64, 16384), (64, 64, 9), {"padding": 4}),
    "1d/k3d8-64-64-16384": partial(ranked, (1, 64, 16384), (64, 64, 3), {"padding": 8, "dilation": 8}),
    "3d/3x3x3-64-64-16x28x28": partial(ranked, (1, 64, 16, 28, 28), (64, 64, 3, 3, 3), {"padding": 1}),
    "fft/31x31-16-16-256": partial(large_kernel, 16, 256),
    "fft/31x31-1-1-1024": partial(large_kernel, 1, 1024),
    "deformable/3x3-64-64-56": partial(deformable, 64, 56),
    "separable/3x3-128-128-56": partial(separable, 128, 128, 56),
    "attention/64-64x64": partial(attention, 64, 8, 64, False),
    "attention/64-64x64-keys64": partial(attention, 64, 64, 64, False),
    "attention/64-64x64-keys64-fused": partial(attention, 64, 64, 64, True),
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
    print(f"{options.threads} thread(s), milliseconds; ratio: the rival's best over fastconv's best")
    with torch.inference_mode():
        for name in CASES:
            if any(fnmatch(name, pattern) for pattern in options.cases.split(",")):
                print(measure(name, options.threads, options.repeats), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
