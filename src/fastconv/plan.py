"""Plan: a convolution prepared once — geometry, algorithm, packed weights, epilogue — and called often."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import numpy as np

from fastconv import checks, kernels, lowering, selection, threads
from fastconv.algorithms import ALGORITHMS
from fastconv.algorithms.base import Epilogue, Packed
from fastconv.geometry import ConvGeometry
from fastconv.layout import empty
from fastconv.memory import Workspaces, aligned_empty, give_back

ACTIVATIONS = (None, "relu")
# By the number of spatial axes: channels first, channels last.
LAYOUTS = {1: ("NCW", "NWC"), 2: ("NCHW", "NHWC"), 3: ("NCDHW", "NDHWC")}
# numpy.pad's names for the padding modes.
PADDING_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


class Design(NamedTuple):
    """All of a plan that depends on shapes and options alone; :func:`design` makes it.

    The fields are those of :class:`Plan`, and: ``level``, the kernels; ``inner``, the problem they see, its
    padding all zeros; ``planar``, the 2-D problem that stands for it; ``passes``, the convolutions it takes.
    """

    geometry: ConvGeometry
    padding_mode: str
    activation: str | None
    layout: str
    num_threads: int
    level: ModuleType
    inner: ConvGeometry
    planar: ConvGeometry
    algorithm: str
    reason: str
    passes: tuple[lowering.Pass, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]


def design(
    geometry: ConvGeometry, *, padding_mode: str = "zeros", activation: str | None = None,
    layout: str | None = None, algorithm: str = "auto", num_threads: int | None = None,
    rtol: float | None = None, weight_budget: int | None = None, calls: int | None = None,
    level: ModuleType | None = None,
) -> Design:  # fmt: skip
    """Check the options of a plan, and choose its algorithm; ``plan_conv2d`` describes them."""
    checks.choice("padding_mode", padding_mode, tuple(PADDING_MODES))
    checks.choice("activation", activation, ACTIVATIONS)
    layouts = LAYOUTS[geometry.spatial_rank]
    layout = layouts[0] if layout is None else layout
    checks.choice("layout", layout, layouts)
    checks.choice("algorithm", algorithm, selection.NAMES)
    num_threads, level = threads.resolve(num_threads), kernels.active() if level is None else level
    inner = geometry if padding_mode == "zeros" else _padded(geometry, padding_mode)
    planar = lowering.planar(inner)
    limits = selection.Limits.create(rtol, weight_budget, calls)
    algorithm, reason = selection.select(planar, algorithm, limits, num_threads, level)
    shapes = geometry.input_shape, geometry.output_shape
    if layout != layouts[0]:
        shapes = [(shape[0], *shape[2:], shape[1]) for shape in shapes]
    # FFT cuts long rows into tiles of its own.
    passes = lowering.passes(inner, algorithm != "fft")
    return Design(
        geometry, padding_mode, activation, layout, num_threads, level, inner, planar, algorithm, reason,
        passes, *shapes,
    )  # fmt: skip


class Plan:
    """A prepared convolution; ``plan(x)`` computes it.

    Made by :func:`fastconv.plan_conv2d` and its 1-D and 3-D kin. Calls may come from several threads at
    once: each takes scratch memory of its own from the plan's, which is allocated once and kept.

    Parameters
    ----------
    design : Design
    weight : array (C_out, C_in/groups, *kernel)
    bias : array (C_out,), optional

    Attributes
    ----------
    geometry : ConvGeometry
    padding_mode, activation, layout : str
        As :func:`fastconv.conv2d` takes them.
    algorithm : str
        The algorithm in use, and in ``reason`` why.
    num_threads : int
        Threads a call uses unless it is told otherwise; they never change the result.
    input_shape, output_shape : tuple of int
        Shapes of ``x`` and of the result in this plan's layout.
    packed_bytes, workspace_bytes : int
        Bytes of the packed weights, and of the scratch memory of one call.
    multiplications : int
        Multiplications of one call.
    error_bound : float
        The largest max|error| / max|result| to expect for zero-mean random data.
    """

    def __init__(self, design: Design, weight: np.ndarray, bias: np.ndarray | None = None):
        geometry = design.geometry
        if bias is not None and bias.shape != (geometry.out_channels,):
            raise ValueError(f"bias must have shape ({geometry.out_channels},), got {bias.shape}")
        self.geometry, self.padding_mode, self.activation = geometry, design.padding_mode, design.activation
        self.layout, self.num_threads = design.layout, design.num_threads
        self.algorithm, self.reason = design.algorithm, design.reason
        self.input_shape, self.output_shape = design.input_shape, design.output_shape
        self._inner, self._passes, self._kernels = design.inner, design.passes, design.level
        self._channels_first = design.layout == LAYOUTS[geometry.spatial_rank][0]
        self._axes = (0, *range(2, geometry.spatial_rank + 2), 1)
        self._bias = None if bias is None else bias.astype(geometry.dtype)
        self._packed = self._pack(design.planar, weight.astype(geometry.dtype, copy=False), bias)
        self._steps = tuple(map(self._step, self._passes))
        self._needed: dict[int, int] = {}
        self._workspaces = Workspaces()

    @property
    def packed_bytes(self) -> int:
        return sum(packed.nbytes for packed in self._packed)

    @property
    def workspace_bytes(self) -> int:
        padded = 0 if self.padding_mode == "zeros" else self._inner.input_bytes
        return padded + self._workspace_bytes(self.num_threads)

    @property
    def multiplications(self) -> int:
        return sum(ALGORITHMS[self.algorithm].multiplications(part.geometry) for part in self._passes)

    @property
    def error_bound(self) -> float:
        return ALGORITHMS[self.algorithm].error_bound(lowering.planar(self._inner))

    def __call__(
        self, x, out: np.ndarray | None = None, num_threads: int | None = None, *, accumulate: bool = False
    ) -> np.ndarray:
        """Convolve ``x``.

        Parameters
        ----------
        x : array of ``input_shape``, float16 or the plan's dtype
            Any strides.
        out : array of ``output_shape`` and the plan's dtype, optional
            Where to write the result; any strides.
        num_threads : int, optional
            Default: the plan's.
        accumulate : bool, default False
            Add the result to ``out``, which must be given, before the activation: a residual connection.

        Returns
        -------
        ndarray of ``output_shape``
            ``out`` where it was given; else a new array, channels-last in memory where ``x`` is.
        """
        dtype = self.geometry.dtype
        x = checks.planned_array("x", x, self.input_shape, dtype)
        if accumulate and out is None:
            raise ValueError("out must be given with accumulate=True, got None")
        # Resolved anew: in a forked child the plan's count is more than OpenMP can give.
        count = threads.team(self.num_threads if num_threads is None else num_threads)
        result = (
            self._new_output(x) if out is None else checks.output_array("out", out, self.output_shape, dtype)
        )
        if self.geometry.batch == 0:
            return result
        if self.padding_mode != "zeros":
            pairs = [(0, 0), *self.geometry.padding]
            pairs.insert(1 if self._channels_first else len(pairs), (0, 0))
            x = np.pad(x, pairs, PADDING_MODES[self.padding_mode])
        x = checks.kernel_ready(x, dtype)
        target = result
        if out is not None and np.may_share_memory(x, out):
            target = result.copy(order="K") if accumulate else np.empty_like(result)
        if self._channels_first:
            self._run(x.transpose(self._axes), target.transpose(self._axes), accumulate, count)
        else:
            self._run(x, target, accumulate, count)
        if target is not result:
            result[...] = target
        return result

    def retire(self) -> None:
        """Leave the memory of packed weights and scratch to other plans; this one is never called again."""
        for packed in self._packed:
            for array in (packed.weight, *(packed.late or ())):
                give_back(array)
        self._workspaces.give_back()

    def explain(self) -> str:
        """What this plan does and why, in a few lines."""
        geometry = self.geometry
        return "\n".join(
            (
                f"{geometry}",
                f"algorithm        {self.algorithm}: {self.reason}",
                f"multiplications  {self.multiplications:,} (by definition {geometry.multiplications:,})",
                f"workspace        {self.workspace_bytes:,} bytes for {self.num_threads} thread(s)",
                f"packed weights   {self.packed_bytes:,} bytes (as given {geometry.weight_bytes:,})",
                f"error            at most about {self.error_bound:.1e} of the largest result",
                f"kernels          {self._kernels.__name__.rpartition('_')[2]}",
            )
        )

    def __repr__(self) -> str:
        return f"Plan({self.geometry}; {self.algorithm})"

    def _pack(self, planar: ConvGeometry, weight: np.ndarray, bias: np.ndarray | None) -> tuple[Packed, ...]:
        """The weights of each depth of the kernel; the first has the bias, the others add none."""
        slices = np.moveaxis(weight, 2, 0) if weight.ndim == 5 else [weight.reshape(planar.weight_shape)]
        pack = ALGORITHMS[self.algorithm].pack
        return tuple(
            pack(np.ascontiguousarray(taps), None if depth else bias, planar, self._kernels, self.num_threads)
            for depth, taps in enumerate(slices)
        )

    def _step(self, part: lowering.Pass) -> tuple[lowering.Pass, Packed, Epilogue]:
        # The last has no bias where there are several.
        bias = self._packed[0 if part.first else -1].bias
        packed = self._packed[part.tap]._replace(geometry=part.geometry, bias=bias)
        return part, packed, Epilogue(self.activation == "relu" and part.last, not part.first)

    def _run(self, x: np.ndarray, out: np.ndarray, accumulate: bool, num_threads: int) -> None:
        """Compute x (N, *spatial, C_in) → out (N, *spatial, C_out), pass by pass."""
        workspace = self._workspaces.take(self._workspace_bytes(num_threads))
        scratch, run = workspace.view(out.dtype), ALGORITHMS[self.algorithm].run
        try:
            for part, packed, epilogue in self._steps:
                if accumulate:
                    epilogue = Epilogue(epilogue.rectified, True)
                run(part.read(x), packed, part.write(out), epilogue, scratch, num_threads)
        finally:
            self._workspaces.give(workspace)
        for slices in lowering.untouched(self._inner):
            bias = 0 if self._bias is None else self._bias
            np.add(out[:, slices] if accumulate else 0, bias, out=out[:, slices])
            if self.activation == "relu":
                np.maximum(out[:, slices], 0, out=out[:, slices])

    def _new_output(self, x: np.ndarray) -> np.ndarray:
        if self._channels_first:
            return empty(self.output_shape, self.geometry.dtype, x)
        return aligned_empty(self.output_shape, self.geometry.dtype)

    def _workspace_bytes(self, num_threads: int) -> int:
        if num_threads not in self._needed:
            needed, geometries = (
                ALGORITHMS[self.algorithm].workspace_bytes,
                {p.geometry for p in self._passes},
            )
            self._needed[num_threads] = max(
                (needed(geometry, num_threads, self._kernels) for geometry in geometries), default=0
            )
        return self._needed[num_threads]


def _padded(geometry: ConvGeometry, padding_mode: str) -> ConvGeometry:
    """The problem on an input already padded by copying its own pixels."""
    for axis, (size, pair) in enumerate(zip(geometry.input_size, geometry.padding, strict=True)):
        limit = {"reflect": size - 1, "circular": size}.get(padding_mode)
        if limit is not None and max(pair) > limit:
            raise ValueError(
                f"padding must be at most {limit} on spatial axis {axis} of size {size} with"
                f" padding_mode={padding_mode!r}, got {pair}"
            )
    size = tuple(n + low + high for n, (low, high) in zip(geometry.input_size, geometry.padding, strict=True))
    return ConvGeometry.create(
        (geometry.batch, geometry.in_channels, *size), geometry.weight_shape, stride=geometry.stride,
        dilation=geometry.dilation, groups=geometry.groups, dtype=geometry.dtype,
    )  # fmt: skip
