"""The ``fastconv`` command: demo, compare, summary, info.

Exit codes: 0 done; 2 wrong arguments, a missing file or a missing extra, said in one line on stderr;
130 interrupted; 141 the reader of the output went away.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

USAGE_ERROR = 2
INTERRUPTED = 130
BROKEN_PIPE = 141


class _Parser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def __init__(self, **keywords):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **keywords)

    def error(self, message):
        self.exit(USAGE_ERROR, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected integers separated by commas, got {text!r}") from None


def _shape(text: str) -> tuple[int, int, int, int]:
    shape = _integers(text)
    if len(shape) != 4:
        raise argparse.ArgumentTypeError(f"expected four integers, such as 1,64,56,56, got {text!r}")
    return shape


def _per_axis(text: str) -> int | tuple[int, int]:
    values = _integers(text)
    if len(values) > 2:
        raise argparse.ArgumentTypeError(f"expected one integer or two (rows,columns), got {text!r}")
    return values if len(values) == 2 else values[0]


def _padding(text: str):
    if text in ("valid", "same", "full"):
        return text
    try:
        values = _integers(text)
    except argparse.ArgumentTypeError:
        values = ()
    if len(values) == 4:
        return values[:2], values[2:]
    if len(values) not in (1, 2):
        raise argparse.ArgumentTypeError(
            f"expected valid, same, full, or 1, 2 or 4 integers (top,bottom,left,right), got {text!r}"
        )
    return values if len(values) == 2 else values[0]


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text!r}")
    return int(text)


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected an integer of at least 0, got {text!r}")
    return int(text)


def _demo(options: argparse.Namespace) -> None:
    from fastconv import demo

    demo.run(save=options.save, epochs=options.epochs, seed=options.seed, threads=options.threads)


def _compare(options: argparse.Namespace) -> None:
    import numpy as np

    from fastconv.comparison import compare
    from fastconv.geometry import ConvGeometry

    keywords = {
        "stride": options.stride,
        "padding": options.padding,
        "dilation": options.dilation,
        "groups": options.groups,
    }
    # Refuses impossible shapes before memory is asked for.
    ConvGeometry.create(options.input, options.weight, dtype=np.dtype(options.dtype), **keywords)
    rng = np.random.default_rng(0)
    x = rng.standard_normal(options.input, options.dtype)
    weight = rng.standard_normal(options.weight, options.dtype)
    comparison = compare(x, weight, num_threads=options.threads, **keywords)
    print(json.dumps(comparison.to_dict(), indent=2) if options.json else comparison)


def _summary(options: argparse.Namespace) -> None:
    from fastconv import nn

    model = nn.load(options.model)
    if not options.input and None in model.input_shapes:
        raise ValueError(
            f"--input is needed, such as 1,3,32,32: {options.model} does not say what it is made for"
        )
    if len(options.input) not in (0, len(model.inputs)):
        raise ValueError(
            f"--input is needed once for each of {', '.join(model.input_names)}, got {len(options.input)}"
        )
    print(model.summary(*options.input))


def _info(options: argparse.Namespace) -> None:
    from fastconv import environment

    info = environment.info()
    if options.json:
        print(json.dumps(info, indent=2))
        return
    texts = {
        **info,
        "isa_supported": ", ".join(info["isa_supported"]),
        "cpu_features": ", ".join(info["cpu_features"]),
        "openmp": info["openmp"] or "none: this build is single-threaded",
    }
    width = max(map(len, texts))
    for name, text in texts.items():
        print(f"{name:{width}}  {text}")


def _add_demo(commands) -> None:
    parser = commands.add_parser(
        "demo",
        help="train a small network on real handwritten digits",
        description="Trains a small convolutional network on scikit-learn's 1,797 scanned digits,\n"
        "measures it on a fifth it has not seen, saves it, loads it back, draws some digits with\n"
        "its answers, and compares the algorithms on one of its layers.\n"
        'Needs: pip install "fastconv[demo]"',
        epilog="examples:\n  fastconv demo\n  fastconv demo --epochs 20 --seed 1 --save digits.npz",
    )
    parser.add_argument(
        "--save",
        metavar="PATH",
        default="fastconv-digits.npz",
        help="where the trained model goes (default: fastconv-digits.npz in this folder)",
    )
    parser.add_argument("--epochs", type=_positive, default=20, help="passes over the digits (default: 20)")
    parser.add_argument("--seed", type=_natural, default=0, help="of split, weights and order (default: 0)")
    parser.add_argument(
        "--threads", type=_positive, default=1, help="default: 1, the network is too small to gain from more"
    )
    parser.set_defaults(run=_demo)


def _add_compare(commands) -> None:
    parser = commands.add_parser(
        "compare",
        help="measure every algorithm on one convolution",
        description="Measures every algorithm on one convolution of random data: time, workspace, error\n"
        "against float64, and what it supports.",
        epilog="examples:\n"
        "  fastconv compare --input 1,64,56,56 --weight 64,64,3,3 --padding same\n"
        "  fastconv compare --input 1,32,112,112 --weight 32,1,3,3 --groups 32 --padding 1 --json",
    )
    parser.add_argument("--input", type=_shape, required=True, metavar="N,C,H,W", help="shape of the input")
    parser.add_argument(
        "--weight",
        type=_shape,
        required=True,
        metavar="M,C,KH,KW",
        help="shape of the weight; C is per group",
    )
    parser.add_argument("--stride", type=_per_axis, default=1, metavar="S[,S]", help="default: 1")
    parser.add_argument(
        "--padding",
        type=_padding,
        default=0,
        metavar="P",
        help="valid, same, full, P, rows,columns or top,bottom,left,right (default: 0)",
    )
    parser.add_argument("--dilation", type=_per_axis, default=1, metavar="D[,D]", help="default: 1")
    parser.add_argument("--groups", type=_positive, default=1, help="default: 1")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="default: float32")
    parser.add_argument("--threads", type=_positive, help="default: OMP_NUM_THREADS, or every CPU allowed")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_compare)


def _add_summary(commands) -> None:
    parser = commands.add_parser(
        "summary",
        help="print the layers of a saved model",
        description="Prints a saved model's layers: output shape, parameters, multiplications,\n"
        "receptive field.",
        epilog="examples:\n"
        "  fastconv summary fastconv-digits.npz\n"
        "  fastconv summary fastconv-digits.npz --input 32,1,16,16",
    )
    parser.add_argument("model", metavar="MODEL.npz", help="a file written by model.save")
    parser.add_argument(
        "--input",
        type=_integers,
        action="append",
        default=[],
        metavar="N,C,H,W",
        help="shape of an input, once for each (default: one sample of what the model was trained on)",
    )
    parser.set_defaults(run=_summary)


def _add_info(commands) -> None:
    parser = commands.add_parser(
        "info",
        help="print version, instruction set, compiler, threads",
        description="Prints what a bug report needs: versions, the instruction-set level in use and\n"
        "those the CPU has, compiler, OpenMP, threads. FASTCONV_ISA selects another level.",
        epilog="examples:\n  fastconv info\n  FASTCONV_ISA=baseline fastconv info --json",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_info)


def _parser() -> argparse.ArgumentParser:
    from fastconv.environment import __version__

    parser = _Parser(
        prog="fastconv",
        description="Convolution for CPUs: five algorithms behind one call, and layers that train.",
        epilog="examples:\n"
        "  fastconv demo\n"
        "  fastconv compare --input 1,64,56,56 --weight 64,64,3,3 --padding same\n"
        "  fastconv summary fastconv-digits.npz\n"
        "  fastconv info",
    )
    parser.add_argument("--version", action="version", version=f"fastconv {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (_add_demo, _add_compare, _add_summary, _add_info):
        add(commands)
    return parser


def _silence_output() -> None:
    # The interpreter flushes stdout once more on its way out, which would complain again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Default: ``sys.argv[1:]``.

    Returns
    -------
    int
        The exit code. ``--help``, ``--version`` and wrong arguments raise SystemExit with it instead.
    """
    try:
        # A terminal that cannot show a block or a multiplication sign shows "?" instead of failing.
        sys.stdout.reconfigure(errors="replace")
        options = _parser().parse_args(arguments)
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        _silence_output()
        return BROKEN_PIPE
    except KeyboardInterrupt:
        print("\nfastconv: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (ImportError, MemoryError, OSError, ValueError) as error:
        print(f"fastconv: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return USAGE_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
