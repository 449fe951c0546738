"""Argument checks shared by every public function: each message names argument, expectation and value."""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Sequence
from functools import lru_cache
from numbers import Real

import numpy as np

_REALS = (float, int)  # of which bool is none
_FLOAT32, _FLOAT64 = _NATIVE = np.dtype(np.float32), np.dtype(np.float64)


def integer(name: str, value: object, minimum: int) -> int:
    """``value`` as an int of at least ``minimum``; NumPy integers pass, booleans and floats do not."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be an integer >= {minimum}, got {value!r} ({type(value).__name__})")
    if number < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {value!r}")
    if number > sys.maxsize:
        raise ValueError(f"{name} must be an integer of at most {sys.maxsize}, got {value!r}")
    return number


def number(
    name: str, value: object, low: float | None = None, high: float = 0.0, expected: str = "a number"
) -> float:
    """``value`` as a float, of the closed interval where ``low`` is given; ``expected`` says so in words."""
    plain = value if type(value) in _REALS else frozen(value)
    is_real = type(plain) in _REALS or (isinstance(plain, Real) and not isinstance(plain, bool))
    if not is_real or not (low is None or low <= plain <= high):
        raise ValueError(f"{name} must be {expected}, got {value!r}")
    return float(plain)


def finite(name: str, value: object) -> float:
    """``value`` as a float that is neither infinite nor NaN."""
    return number(name, value, -sys.float_info.max, sys.float_info.max, "a finite number")


def positive(name: str, value: object) -> float:
    """``value`` as a finite float above 0."""
    return number(name, value, sys.float_info.min, sys.float_info.max, "a number > 0")


def not_negative(name: str, value: object) -> float:
    """``value`` as a finite float of at least 0."""
    return number(name, value, 0, sys.float_info.max, "a number >= 0")


def axis(name: str, value: object, rank: int) -> int:
    """The number of one of ``rank`` axes; negative ones count from the end."""
    dim = integer(name, value, -sys.maxsize)
    if not -rank <= dim < rank:
        raise ValueError(f"{name} must be an axis of {rank}, from {-rank} to {rank - 1}, got {value!r}")
    return dim


def generator(name: str, seed: object) -> np.random.Generator:
    """Where random numbers come from: ``seed`` itself, or a generator that begins with it."""
    try:
        return np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"{name} must be an integer >= 0, a numpy.random.Generator or None, got {seed!r}"
        ) from None


def frozen(value: object) -> object:
    """Python's numbers and tuples for NumPy's and for other sequences; what is neither stays."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | memoryview):
        return tuple(frozen(item) for item in value)
    return value


def per_axis(name: str, value: object, rank: int, minimum: int) -> tuple[int, ...]:
    """One integer for every spatial axis, from one integer or a sequence of ``rank`` of them."""
    value = frozen(value)
    if not isinstance(value, tuple):
        if isinstance(value, str | bytes | float | None):
            raise TypeError(f"{name} must be an integer >= {minimum} or {rank} of them, got {value!r}")
        return (integer(name, value, minimum),) * rank
    if len(value) != rank:
        raise ValueError(f"{name} must be an integer or {rank} of them, got {len(value)}: {value!r}")
    return tuple(integer(f"{name}[{axis}]", item, minimum) for axis, item in enumerate(value))


def shape(name: str, value: object, rank: int, meaning: str) -> tuple[int, ...]:
    """A shape of ``rank`` non-negative sizes; ``meaning`` says what they are, as in ``"(N, C, H, W)"``."""
    if type(value) is tuple and len(value) == rank and {*map(type, value)} == {int} and min(value) >= 0:
        return value  # as arrays have it, in every call
    found = sizes(name, value, meaning)
    if len(found) != rank:
        raise ValueError(f"{name} must have {rank} axes {meaning}, got {len(found)}: {found}")
    return found


def sizes(name: str, value: object, meaning: str, minimum: int = 0) -> tuple[int, ...]:
    """A shape of any rank, each size at least ``minimum``; ``meaning`` as in :func:`shape`."""
    value = frozen(value)
    if not isinstance(value, tuple):
        raise TypeError(f"{name} must be a shape {meaning}, got {value!r}")
    return tuple(integer(f"{name}[{axis}]", size, minimum) for axis, size in enumerate(value))


def boolean(name: str, value: object) -> bool:
    """``value``, which must be a bool: a number in its place is nearly always a misplaced argument."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def choice(name: str, value: object, allowed: Sequence[object]) -> None:
    """Refuse a value that is not one of ``allowed``."""
    if (value is None or type(value) is str) and value in allowed:
        return
    if not any(value is option or (isinstance(value, str) and value == option) for option in allowed):
        from difflib import get_close_matches  # only who errs needs it

        near = get_close_matches(value, filter(None, allowed), 1) if isinstance(value, str) else ()
        hint = f": did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}{hint}")


def any_dtype(name: str, dtype: object) -> np.dtype:
    """``dtype`` as a dtype; not None, which NumPy takes for float64."""
    try:
        return np.dtype(dtype if dtype is not None else "None")
    except TypeError:
        raise TypeError(f"{name} must be a dtype such as numpy.float32, got {dtype!r}") from None


def path(name: str, value: object) -> str | os.PathLike:
    """``value``, which must be a path."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be a path, got {value!r} ({type(value).__name__})")
    return value


def float_dtype(name: str, dtype: object) -> np.dtype:
    """The dtype to compute in: float32 or float64 as they are, float16 in float32; others are refused."""
    if dtype is _FLOAT32 or dtype is _FLOAT64:
        return dtype
    dtype = any_dtype(name, dtype)
    if dtype.kind == "f" and dtype.itemsize <= 8:
        return np.dtype(np.float64 if dtype.itemsize == 8 else np.float32)
    raise TypeError(
        f"{name} must have dtype float32 or float64 (float16 is computed in float32), got {dtype};"
        f" convert it, as in {name}.astype(np.float32)"
    )


def common_dtype(arrays: Sequence[np.ndarray | None], dtype: object = None) -> np.dtype:
    """The dtype to compute in: the widest of the arrays' (None where one is left out) and ``dtype``."""
    given = [array.dtype for array in arrays if array is not None]
    for native in _NATIVE:
        if dtype is None and given and given.count(native) == len(given):
            return native  # as nearly always
    if dtype is not None:
        given.append(float_dtype("dtype", dtype))
    return np.result_type(np.float32, *given)


def any_array(name: str, value: object) -> np.ndarray:
    """``value`` as an array."""
    try:
        return np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{name} must be an array, got a {type(value).__name__}: {error}") from None


def float_array(name: str, value: object, rank: int | None = None, meaning: str = "") -> np.ndarray:
    """``value`` as an array of float16, float32 or float64, of ``rank`` axes where that is given."""
    if type(value) is np.ndarray and value.dtype in _NATIVE and rank in (None, value.ndim):
        return value  # as nearly always
    array = any_array(name, value)
    float_dtype(name, array.dtype)
    if rank is not None and array.ndim != rank:
        raise ValueError(f"{name} must have {rank} axes {meaning}, got {array.ndim}: shape {array.shape}")
    return array


def planned_array(name: str, value: object, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """``value`` as an array of the shape that a plan was made for, to be computed in the plan's dtype."""
    if type(value) is np.ndarray and value.dtype is dtype and value.shape == shape:
        return value  # as in nearly every call
    array = float_array(name, value)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, as planned, got {array.shape}")
    if float_dtype(name, array.dtype) != dtype:
        raise TypeError(f"{name} must have dtype {dtype}, in which this plan computes, got {array.dtype}")
    return array


def kernel_ready(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The array in ``dtype``, aligned, native and of whole-element strides; a copy only where it must be."""
    flags = array.flags
    if array.dtype is dtype and flags.c_contiguous and flags.aligned:
        return array
    if array.dtype == dtype and array.flags.aligned and _of_whole_elements(array.strides, dtype.itemsize):
        return array
    return array.astype(dtype, order="K")


def kernel_array(name: str, value: object) -> np.ndarray:
    """``value`` as an array of floats, refused where it is none, that a kernel takes."""
    if type(value) is np.ndarray and value.dtype in _NATIVE:
        flags = value.flags
        if flags.c_contiguous and flags.aligned:
            return value  # as nearly always
    array = float_array(name, value)
    return kernel_ready(array, float_dtype(name, array.dtype))


@lru_cache(maxsize=1024)
def _of_whole_elements(strides: tuple[int, ...], itemsize: int) -> bool:
    return all(stride % itemsize == 0 for stride in strides)


@lru_cache(maxsize=1024)
def _repeats_elements(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether two indices of an array are one place in memory."""
    axes = sorted((abs(stride), size) for stride, size in zip(strides, shape, strict=True) if size > 1)
    reach = 0
    for stride, size in axes:
        if stride <= reach:
            break
        reach += stride * (size - 1)
    else:  # each axis steps beyond all that those of smaller strides reach, as in every part of an array
        return False
    offsets = np.zeros(1, np.int64)
    for stride, size in axes:
        offsets = np.add.outer(offsets, stride * np.arange(size)).ravel()
    return len(np.unique(offsets)) < len(offsets)


def output_array(name: str, out: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Refuse an ``out`` that cannot take a result of this shape and dtype."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{name} must be a numpy.ndarray, got {type(out).__name__}")
    if out.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {out.shape}")
    if out.dtype != dtype:
        raise TypeError(f"{name} must have dtype {dtype}, got {out.dtype}")
    flags = out.flags
    if not flags.writeable:
        raise ValueError(f"{name} must be writeable, got a read-only array")
    if flags.c_contiguous and flags.aligned:
        return out
    strides = out.strides
    if not flags.aligned or not _of_whole_elements(strides, dtype.itemsize):
        raise ValueError(f"{name} must be aligned to its dtype, got strides {strides}")
    if _repeats_elements(shape, strides) and out.size:
        raise ValueError(f"{name} must not repeat its elements, got strides {strides}")
    return out
