"""Frames: arrays of numbers that come in and out of histories, checked, narrowed, as bytes and back."""

from __future__ import annotations

import operator
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNFIT = ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, zlib.error

Frames = NDArray[Any]


# ---- numbers


def checked(given: Frames, dtype: np.dtype[Any]) -> Frames:
    """The same numbers in this dtype; only floats may be rounded, to floats."""
    if given.dtype == dtype:
        return given
    integers = given.dtype.kind in "iu" and dtype.kind in "iu"
    if not integers and not np.can_cast(given.dtype, dtype, "same_kind"):
        raise TypeError(f"{given.dtype} given; expected {dtype}")
    if np.can_cast(given.dtype, dtype, "safe") and given.dtype.kind not in "iu":
        return given.astype(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        cast = given.astype(dtype)
        if given.dtype.kind in "fc":
            wrong = np.isfinite(given) != np.isfinite(cast)  # too large
        else:
            back = cast.astype(given.dtype)
            wrong = (back != given) & ((back == back) | (given == given))  # NaT is NaT
    if given.dtype.kind in "iu":
        wrong |= (cast < 0) != (given < 0)
    if wrong.any():
        raise ValueError(f"{given[wrong].ravel()[0]} given; {dtype} cannot hold it")
    return cast


def array_like(xs: Any, dtype: np.dtype[Any]) -> Frames:
    """As np.asarray, which makes floats of ints beyond 2**63."""
    given = np.asarray(xs)
    if isinstance(xs, np.ndarray) or dtype.kind not in "iu" or given.dtype.kind not in "fO":
        return given
    exact = np.array(xs, object)
    if not all(isinstance(x, int | np.integer) for x in exact.flat):
        return given
    try:
        return exact.astype(dtype)
    except OverflowError as error:
        raise ValueError(f"{dtype} cannot hold what is given: {error}") from error


def narrowest(lowest: int, highest: int, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The integer dtype of fewest bytes, of the sign of this one, that holds both."""
    for kind in (f"{dtype.kind}{size}" for size in (1, 2, 4)):
        if np.iinfo(kind).min <= lowest <= highest <= np.iinfo(kind).max:
            return np.dtype(kind)
    return dtype


# ---- header and buffers


@contextmanager
def damaged(what: str) -> Iterator[None]:
    """ValueError for whatever goes wrong with a header and buffers that nobody can have made."""
    try:
        yield
    except UNFIT as error:
        raise ValueError(f"no {what}: {type(error).__name__}: {error}") from error


def within(number: Any, lowest: int, highest: int | None = None) -> int:
    """The int, if it lies between these, the ends included."""
    n = operator.index(number)
    if n < lowest or (highest is not None and n > highest):
        raise ValueError(f"{n} given; expected {lowest} to {'any' if highest is None else highest}")
    return n


def described(dtype: np.dtype[Any]) -> Any:
    """For `dtype_of`, as JSON has it."""
    if dtype.subdtype is not None:
        return [described(dtype.subdtype[0]), list(dtype.subdtype[1])]
    if dtype.fields is None or dtype.names is None:
        return dtype.str
    formats = [described(dtype.fields[name][0]) for name in dtype.names]
    offsets = [dtype.fields[name][1] for name in dtype.names]
    return {"names": list(dtype.names), "formats": formats, "offsets": offsets, "itemsize": dtype.itemsize}


def dtype_of(found: Any) -> np.dtype[Any]:
    if isinstance(found, dict):
        return np.dtype(found | {"formats": [dtype_of(part) for part in found["formats"]]})  # type: ignore[call-overload, no-any-return]
    if isinstance(found, list):
        kind, shape = found
        return np.dtype((dtype_of(kind), tuple(map(operator.index, shape))))
    if not isinstance(found, str):
        raise ValueError(f"dtype {found!r} given")
    return np.dtype(found)


def same_kind(found: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """This dtype, or of integers a smaller one."""
    kind = np.dtype(found)
    if kind != dtype and not (kind.kind == dtype.kind and kind.kind in "iu" and kind.itemsize < dtype.itemsize):
        raise ValueError(f"numbers of {kind} among those of {dtype}")
    return kind


def bytes_of(frames: Frames) -> NDArray[np.uint8]:
    return np.ascontiguousarray(frames).reshape(-1).view(np.uint8)


def array_of(given: NDArray[Any], dtype: np.dtype[Any]) -> Frames:
    """What `bytes_of` was given, as a copy."""
    if given.dtype != np.uint8 or given.ndim != 1:
        raise ValueError(f"{given.dtype} {given.shape} given; expected bytes")
    return np.frombuffer(given.tobytes(), dtype).copy()
