"""Plan: a convolution prepared once — geometry, algorithm, packed weights, epilogue — and called often."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple, Self

import numpy as np

from fastconv import checks, kernels, lowering, selection, threads
from fastconv.algorithms import ALGORITHMS
from fastconv.algorithms.base import Algorithm, Call, Epilogue, Packed, panel_width
from fastconv.geometry import ConvGeometry
from fastconv.layout import is_channels_last, moved_first
from fastconv.memory import Workspaces, allocator, give_back

ACTIVATIONS = (None, "relu")
# By the number of spatial axes: channels first, channels last.
LAYOUTS = {1: ("NCW", "NWC"), 2: ("NCHW", "NHWC"), 3: ("NCDHW", "NDHWC")}
# numpy.pad's names for the padding modes.
PADDING_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}

# Sets of strides a plan remembers the calls for.
_MOST_BOUND = 32


class Design(NamedTuple):
    """All of a plan that depends on shapes and options alone; :func:`design` makes it.

    The fields are those of :class:`Plan`, and: ``level``, the kernels; ``inner``, the problem they see, its
    padding all zeros; ``passes``, its 2-D convolutions; ``planar``, one of them, to pack the weights for.
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
) -> Design:  # fmt: skip
    """Check the options of a plan, and choose its algorithm; ``plan_conv2d`` describes them."""
    checks.choice("padding_mode", padding_mode, tuple(PADDING_MODES))
    checks.choice("activation", activation, ACTIVATIONS)
    layouts = LAYOUTS[geometry.spatial_rank]
    layout = layouts[0] if layout is None else layout
    checks.choice("layout", layout, layouts)
    checks.choice("algorithm", algorithm, selection.NAMES)
    num_threads, level = threads.resolve(num_threads), kernels.active()
    inner = geometry if padding_mode == "zeros" else _padded(geometry, padding_mode)
    planar = lowering.planar(inner)
    limits = selection.Limits.create(rtol, weight_budget, calls)
    algorithm, reason = selection.select(planar, algorithm, limits, num_threads, level)
    shapes = geometry.input_shape, geometry.output_shape
    if layout != layouts[0]:
        shapes = [(shape[0], *shape[2:], shape[1]) for shape in shapes]
    passes = _passes(inner, ALGORITHMS[algorithm], level)
    planar = passes[0].geometry if passes else planar
    return Design(
        geometry, padding_mode, activation, layout, num_threads, level, inner, planar, algorithm, reason,
        passes, *shapes,
    )  # fmt: skip


def _passes(geometry: ConvGeometry, algorithm: Algorithm, level: ModuleType) -> tuple[lowering.Pass, ...]:
    """The 2-D convolutions a problem consists of, all of which take their weights in one form."""
    for strips in (not algorithm.cuts_images, False):
        passes = lowering.passes(geometry, strips)
        if len({algorithm.packing(part.geometry, level) for part in passes}) <= 1:
            break
    return passes


class _Bound(NamedTuple):
    """The calls a plan makes for arrays of certain strides, and the elements of scratch memory they need.

    ``whole`` is the call where there is but one, of a kernel on all of the arrays, and ``shortcut`` the short
    way to it.
    """

    workspace: int
    steps: tuple[Call, ...]
    whole: kernels.KernelCall | None = None
    shortcut: kernels.Shortcut | None = None


class Remade:
    """Base of plans: copied and pickled as options and weights, from which they are made anew.

    So a plan may move to a machine whose kernels pack weights otherwise. Plans of a single call keep no
    weights, and cannot be copied.
    """

    geometry: ConvGeometry
    _weights: tuple[np.ndarray | None, ...] | None = None

    def keep(self, *weights: np.ndarray | None) -> Self:
        """Keep copies of the weights that this plan was made of."""
        self._weights = tuple(None if array is None else np.array(array) for array in weights)
        return self

    def _keep_anew(self, weight: np.ndarray, bias: np.ndarray | None) -> None:
        """Refuse a weight that has not the plan's shape; keep it where that before was kept."""
        shape = self.geometry.weight_shape
        if weight.shape != shape:
            raise ValueError(f"weight must have shape {shape}, got {weight.shape}")
        if self._weights is not None:
            self.keep(weight, bias)

    @property
    def _weight_bytes(self) -> int:
        return sum(array.nbytes for array in self._weights or () if array is not None)

    def _options(self) -> dict[str, Any]:
        """What this plan was made of besides the weights."""
        raise NotImplementedError

    @classmethod
    def _remade(cls, weights: tuple[np.ndarray | None, ...], options: dict[str, Any]) -> Self:
        return cls(*weights, **options).keep(*weights)

    def __reduce__(self):
        if self._weights is None:
            raise TypeError(f"a {type(self).__name__} of a single call cannot be copied or pickled")
        return self._remade, (self._weights, self._options())


class Plan(Remade):
    """A prepared convolution; ``plan(x)`` computes it.

    Made by :func:`fastconv.plan_conv2d` and its 1-D and 3-D kin. Calls may come from several threads at
    once: each takes scratch memory of its own from the plan's, which is allocated once and kept. Plans can
    be copied and pickled.

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
    packed_bytes, workspace_bytes, kept_bytes : int
        Bytes of the packed weights, of the scratch memory of one call, and of what is held between calls.
    multiplications : int
        Multiplications of one call.
    error_bound : float
        The largest max|error| / max|result| to expect for zero-mean random data.
    """

    def __init__(self, design: Design, weight: np.ndarray, bias: np.ndarray | None = None):
        geometry = design.geometry
        self.geometry, self.padding_mode, self.activation = geometry, design.padding_mode, design.activation
        self.layout, self.num_threads = design.layout, design.num_threads
        self.algorithm, self.reason = design.algorithm, design.reason
        self.input_shape, self.output_shape = design.input_shape, design.output_shape
        self._inner, self._passes, self._kernels = design.inner, design.passes, design.level
        self._planar, self._algorithm = design.planar, ALGORITHMS[design.algorithm]
        self._channels_first = design.layout == LAYOUTS[geometry.spatial_rank][0]
        self._axes = (0, *range(2, geometry.spatial_rank + 2), 1)
        self._edges = lowering.untouched(design.inner)
        self._packed: list[Packed] = []
        self._bound: dict[tuple, _Bound] = {}
        self._repeat = kernels.never
        self._team = min(self.num_threads, threads.worth(geometry.multiplications))
        self._workspaces = Workspaces(geometry.dtype)
        self._empty = allocator(self.output_shape, geometry.dtype)
        batch, channels, *size = geometry.output_shape
        self._empty_last = allocator((batch, *size, channels), geometry.dtype)
        self.repack(weight, bias)

    @property
    def packed_bytes(self) -> int:
        return sum(packed.nbytes for packed in self._packed)

    @property
    def kept_bytes(self) -> int:
        return self.packed_bytes + self._workspaces.nbytes + self._weight_bytes

    @property
    def workspace_bytes(self) -> int:
        padded = 0 if self.padding_mode == "zeros" else self._inner.input_bytes
        return padded + self._workspace_bytes(self.num_threads)

    @property
    def multiplications(self) -> int:
        return sum(
            self._algorithm.multiplications(part.geometry, self._kernels.vector_bytes())
            for part in self._passes
        )

    @property
    def error_bound(self) -> float:
        return self._algorithm.error_bound(self._planar)

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
        if out is not None and self._repeat(x, out, num_threads, accumulate):
            return out
        dtype = self.geometry.dtype
        x = checks.planned_array("x", x, self.input_shape, dtype)
        if out is not None:
            result = checks.output_array("out", out, self.output_shape, dtype)
        elif accumulate:
            raise ValueError("out must be given with accumulate=True, got None")
        else:
            result = self._new_output(x)
            if self._repeat(x, result, num_threads, accumulate):
                return result
        count = 1
        if num_threads is not None or self._team > 1:
            # Resolved anew: in a forked child the plan's count is more than OpenMP can give.
            wanted = self._team if num_threads is None else num_threads
            count = threads.for_multiplications(wanted, self.geometry.multiplications)
        if self.geometry.batch == 0:
            return result
        if self.padding_mode != "zeros":
            x = self._pad(x)
        target = result
        if out is not None and np.may_share_memory(x, out):
            target = result.copy(order="K") if accumulate else np.empty_like(result)
        key = x.strides, target.strides, accumulate, count
        bound = self._bound.get(key)
        if bound is None or x.dtype is not dtype or not x.flags.aligned:
            x = checks.kernel_ready(x, dtype)
            bound = self._bind(x, target, accumulate, count)
        elif num_threads is None and not accumulate and target is result:
            shortcut = self._shorten(key, bound, x, target)
            self._repeat = kernels.never if shortcut is None else shortcut.repeat
        self._run(bound, x, target, accumulate)
        if target is not result:
            result[...] = target
        return result

    def shuffles(self, channels: int) -> bool:
        """Whether this plan can ``shuffle`` into an image of so many channels."""
        whole = channels % panel_width(self._kernels, self.geometry.dtype) == 0
        planar = self.geometry.spatial_rank < 3 and len(self._passes) == 1
        return whole and planar and self._algorithm.merges(self._planar, self._kernels.vector_bytes())

    def shuffle(
        self, x: np.ndarray, image: np.ndarray, merged: tuple[int, ...], skip: tuple[int, ...],
        num_threads: int,
    ) -> None:  # fmt: skip
        """Convolve ``x`` (N, C_in, *spatial) into an ``image`` (N, *size, C), depth to space.

        Output pixel i has the channels of ``merged`` pixels of the image, from i · merged − skip on; those
        that lie outside are left out.
        """
        num_threads = threads.for_multiplications(num_threads, self.geometry.multiplications)
        part = self._passes[0]
        x, image = part.read(x.transpose(self._axes)), part.write(image)
        key = (x.strides, image.strides, merged, num_threads)
        if key not in self._bound:
            if self.geometry.spatial_rank == 1:
                merged, skip = (1, *merged), (0, *skip)
            call = self._algorithm.bind(
                self._packed[0], x, image, Epilogue(self.activation == "relu"), num_threads, (merged, skip)
            )
            self._keep(key, (call,), num_threads)
        bound = self._bound[key]
        workspace = self._workspaces.take(bound.workspace)
        try:
            bound.steps[0](x, image, workspace)
        finally:
            self._workspaces.give(workspace)

    def repack(self, weight: np.ndarray, bias: np.ndarray | None = None) -> None:
        """Take another weight and bias, in the memory of those before; while no call is in progress.

        Parameters
        ----------
        weight : array (C_out, C_in/groups, *kernel)
        bias : array (C_out,), optional
            Without it there is none from now on.

        Raises
        ------
        ValueError
            If a shape is not the plan's.
        """
        geometry, planar = self.geometry, self._planar
        if bias is not None and bias.shape != (geometry.out_channels,):
            raise ValueError(f"bias must have shape ({geometry.out_channels},), got {bias.shape}")
        self._keep_anew(weight, bias)
        weight = checks.kernel_ready(weight, geometry.dtype)
        if self._edges:
            self._edge = 0 if bias is None else bias.astype(geometry.dtype)
        # Each depth of a 3-D kernel by itself; the first has the bias, the others add none.
        slices = weight.swapaxes(0, 2).swapaxes(1, 2) if weight.ndim == 5 else (weight,)
        before = self._packed or [None] * len(slices)
        self._packed = []
        for taps, into in zip(slices, before, strict=True):
            taps = taps.reshape(planar.weight_shape)
            packed = self._algorithm.pack(taps, bias, planar, self._kernels, self.num_threads, into)
            if into is not None and packed.finite != into.finite:
                self._bound.clear()
                self._repeat = kernels.never
            self._packed.append(packed)
            bias = None

    def _options(self) -> dict[str, Any]:
        names = ("geometry", "padding_mode", "activation", "layout", "algorithm", "num_threads", "reason")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def _remade(cls, weights: tuple[np.ndarray | None, ...], options: dict[str, Any]) -> Self:
        reason = options.pop("reason")
        return cls(design(**options)._replace(reason=reason), *weights).keep(*weights)

    def retire(self) -> None:
        """Leave the memory of packed weights and scratch to other plans; this one is never called again."""
        for packed in self._packed:
            for array in (packed.weight, *(packed.late or {}).values()):
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

    def _run(self, bound: _Bound, x: np.ndarray, out: np.ndarray, accumulate: bool) -> None:
        """Compute x → out in the plan's layout, pass by pass."""
        if self._channels_first:
            x, out = x.transpose(self._axes), out.transpose(self._axes)
        workspace = self._workspaces.take(bound.workspace)
        try:
            for step in bound.steps:
                step(x, out, workspace)
        finally:
            self._workspaces.give(workspace)
        for slices in self._edges:
            np.add(out[:, slices] if accumulate else 0, self._edge, out=out[:, slices])
            if self.activation == "relu":
                np.maximum(out[:, slices], 0, out=out[:, slices])

    def _bind(self, x: np.ndarray, out: np.ndarray, accumulate: bool, num_threads: int) -> _Bound:
        """The calls for arrays of such strides in the plan's layout, kept for the next ones."""
        key, steps = (x.strides, out.strides, accumulate, num_threads), []
        if key in self._bound:
            return self._bound[key]
        if self._channels_first:
            x, out = x.transpose(self._axes), out.transpose(self._axes)
        for part in self._passes:
            # The last has no bias where there are several.
            bias = self._packed[0 if part.first else -1].bias
            packed = self._packed[part.tap]._replace(geometry=part.geometry, bias=bias)
            epilogue = Epilogue(self.activation == "relu" and part.last, accumulate or not part.first)
            source, target = part.read(x), part.write(out)
            call = self._algorithm.bind(packed, source, target, epilogue, num_threads)
            steps.append(call if source is x and target is out else part.on_whole(call))
        alone = len(steps) == 1 and part.is_whole and not self._edges and self.padding_mode == "zeros"
        whole = call if alone and isinstance(call, kernels.KernelCall) else None
        return self._keep(key, tuple(steps), num_threads, whole)

    def _keep(
        self, key: tuple, steps: tuple[Call, ...], num_threads: int, whole: kernels.KernelCall | None = None
    ) -> _Bound:
        if len(self._bound) == _MOST_BOUND:
            self._bound.clear()
        elements = -(-self._workspace_bytes(num_threads) // self.geometry.dtype.itemsize)
        bound = self._bound[key] = _Bound(elements, steps, whole)
        return bound

    def _shorten(self, key: tuple, bound: _Bound, x: np.ndarray, out: np.ndarray) -> kernels.Shortcut | None:
        """The short way to repeat a call for arrays like these, if there is one."""
        if bound.shortcut is not None or bound.whole is None or {type(x), type(out)} != {np.ndarray}:
            return bound.shortcut
        axes = (0, 2, 3, 1) if self._channels_first else (0, 1, 2, 3)
        if self.geometry.spatial_rank == 1:
            axes = (0, -1, 2, 1) if self._channels_first else (0, -1, 1, 2)
        shortcut = kernels.Shortcut(bound.whole, x, out, axes, self._workspaces, bound.workspace, key[-1])
        self._bound[key] = bound._replace(shortcut=shortcut)
        return shortcut

    def _pad(self, x: np.ndarray) -> np.ndarray:
        pairs = [(0, 0), *self.geometry.padding]
        pairs.insert(1 if self._channels_first else len(pairs), (0, 0))
        return np.pad(x, pairs, PADDING_MODES[self.padding_mode])

    def _new_output(self, x: np.ndarray) -> np.ndarray:
        if self._channels_first and is_channels_last(x):
            return moved_first(self._empty_last())
        return self._empty()

    def _workspace_bytes(self, num_threads: int) -> int:
        geometries = {part.geometry for part in self._passes}
        needed = self._algorithm.workspace_bytes
        return max((needed(geometry, num_threads, self._kernels) for geometry in geometries), default=0)


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
