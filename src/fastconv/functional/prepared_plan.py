"""PreparedPlan: what the plans that are more than one convolution share, how they are called."""

from __future__ import annotations

import numpy as np

from fastconv import checks, threads
from fastconv.layout import empty
from fastconv.plan import Remade


class PreparedPlan(Remade):
    """Base of plans for images (N, C, ...); a subclass says how they ``_compute``, and what is allocated."""

    num_threads: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]

    def __call__(self, x, out: np.ndarray | None = None, num_threads: int | None = None) -> np.ndarray:
        """Convolve ``x``.

        Parameters
        ----------
        x : array of ``input_shape``, float16 or the plan's dtype
            Any strides.
        out : array of ``output_shape`` and the plan's dtype, optional
            Where to write the result; any strides.
        num_threads : int, optional
            Default: the plan's.

        Returns
        -------
        ndarray of ``output_shape``
            ``out`` where it was given; else a new array, channels-last in memory where ``x`` is.
        """
        dtype = self.geometry.dtype
        x = checks.planned_array("x", x, self.input_shape, dtype)
        count = threads.team(self.num_threads if num_threads is None else num_threads)
        if out is not None:
            checks.output_array("out", out, self.output_shape, dtype)
        x = checks.kernel_ready(x, dtype)
        if out is None:
            out = self._new_output(x)
        elif np.may_share_memory(x, out):
            x = x.copy(order="K")
        if self.geometry.batch:
            self._compute(x, out, count)
        return out

    def _new_output(self, x: np.ndarray) -> np.ndarray:
        return empty(self.output_shape, self.geometry.dtype, x)

    def _compute(self, x: np.ndarray, out: np.ndarray, num_threads: int) -> None:
        """Convolve ``x``, as kernels take it, into ``out``, which shares no memory with it."""
        raise NotImplementedError
