"""Scratch: temporary arrays out of buffers that are borrowed, given back and lent again, a set for each thread.

For Python code; the kernels have workspaces of their own, in `_core.scratch`.
"""

from __future__ import annotations

import math
import operator
import os
import sys
import threading
import weakref
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

KEPT = 4  # buffers of a thread; what is borrowed at one time is seldom more
GIVEN_BACK = 0xFF  # in every byte: not a number in floats, -1 in ints
ALONE = 3  # references to an array that its loan and one name hold, or to a buffer under one array: with the question


class ScratchMisuse(RuntimeError):
    """A borrowed array was used after it was given back, given back twice, or never."""


class Scratch:
    """Lends uninitialised arrays, so that what every step needs for a moment is allocated once.

    Parameters
    ----------
    checked : bool, optional
        Look for misuse, which takes a pass over each buffer; see `borrow`. None: if ``AGENTMEM_CHECKED=1`` is set.

    Notes
    -----
    A thread keeps the four largest buffers given back in it, until `release` or its end. No buffer has two owners: one
    that is still viewed or held under a second name when it is given back is not lent again. Any number of threads may
    borrow. About 8 us a loan.

    Examples
    --------
    >>> import agentmem as am
    >>> scratch = am.Scratch()
    >>> def step(x):
    ...     with scratch.borrow((2, 50), "float32") as joint:
    ...         return float(np.multiply(x, 2, out=joint).sum())
    >>> step(1), step(2), step(3)
    (200.0, 400.0, 600.0)
    >>> scratch.nbytes
    400
    """

    __slots__ = ("_lent", "_lock", "_own", "_shelves", "checked")

    def __init__(self, *, checked: bool | None = None) -> None:
        self.checked = os.environ.get("AGENTMEM_CHECKED") == "1" if checked is None else checked
        self._lock = threading.Lock()
        self._shelves: weakref.WeakSet[_Shelf] = weakref.WeakSet()
        self._own = _Own(self._shelves)
        self._lent: set[_Loan] = set()  # in the checked mode

    def borrow(self, shape: int | tuple[int, ...], dtype: DTypeLike = np.float64) -> _Loan:
        """A context manager that gives a C-contiguous array with anything in it, to be forgotten at its end.

        Raises
        ------
        TypeError
            A dtype of Python objects.
        ScratchMisuse
            One loan is begun or ended twice. In the checked mode also: at the end of a block, its array is viewed or
            held under a second name; when its buffer is lent again or released, somebody has written to it.

        Notes
        -----
        In the checked mode an array is read-only after its end, and every byte of it is 255: nan, or -1.
        """
        dtype = np.dtype(dtype)
        if dtype.hasobject:
            raise TypeError(f"dtype {dtype} given; expected one without Python objects")
        caller = sys._getframe(1)
        place = f"{caller.f_code.co_filename}:{caller.f_lineno}" if self.checked else ""
        return _Loan(self, shape if isinstance(shape, tuple) else (operator.index(shape),), dtype, place)

    @property
    def nbytes(self) -> int:
        """Bytes that are kept for the next borrowers, in all threads."""
        with self._lock:
            return sum(loan.buffer.nbytes for shelf in self._shelves for loan in shelf)

    def release(self) -> int:
        """Free what all threads keep; return how many bytes.

        In the checked mode raises ScratchMisuse if an array is still borrowed, after it has freed the others.
        """
        with self._lock:
            ended = [loan for shelf in self._shelves for loan in shelf]
            for shelf in self._shelves:
                shelf.clear()
            leaks = sorted(loan.place for loan in self._lent)
        for loan in ended:
            loan.check()
        if leaks:
            raise ScratchMisuse(f"{len(leaks)} borrowed and never given back: {', '.join(leaks)}")
        return sum(loan.buffer.nbytes for loan in ended)

    def _take(self, nbytes: int) -> NDArray[np.uint8]:
        """The smallest kept buffer of so many bytes, or a new one."""
        with self._lock:
            shelf = self._own.shelf
            found = next((k for k, loan in enumerate(shelf) if loan.buffer.nbytes >= nbytes and loan.is_over()), None)
            ended = None if found is None else shelf.pop(found)
        if ended is None:
            return np.empty(nbytes, np.uint8)
        ended.check()
        return ended.buffer

    def _keep(self, ended: _Loan) -> None:
        with self._lock:
            shelf = self._own.shelf
            shelf.append(ended)
            shelf.sort(key=lambda loan: loan.buffer.nbytes)
            dropped = shelf.pop(0) if len(shelf) > KEPT else None
        if dropped is not None:
            dropped.check()


class _Shelf(list["_Loan"]):
    """The ended loans whose buffers a thread keeps, the smallest first."""

    __slots__ = ("__weakref__",)
    __hash__ = object.__hash__  # type: ignore[assignment]


class _Own(threading.local):
    """The shelf of the thread that asks; it goes with the thread."""

    def __init__(self, shelves: weakref.WeakSet[_Shelf]) -> None:
        self.shelf = _Shelf()
        shelves.add(self.shelf)


class _Loan:
    """One array from `borrow` to the end of its block, then its buffer; in the checked mode with a trace of it."""

    __slots__ = ("_array", "_dtype", "_scratch", "_shape", "_trace", "buffer", "place")

    buffer: NDArray[np.uint8]

    def __init__(self, scratch: Scratch, shape: tuple[int, ...], dtype: np.dtype[Any], place: str) -> None:
        self._scratch, self._shape, self._dtype, self.place = scratch, shape, dtype, place
        self._array: NDArray[Any] | None = None
        self._trace: weakref.ref[NDArray[Any]] | None = None

    def __enter__(self) -> NDArray[Any]:
        if hasattr(self, "buffer"):
            raise ScratchMisuse("one loan begun twice; borrow again")
        self.buffer = self._scratch._take(math.prod(self._shape) * self._dtype.itemsize)
        self._array = np.ndarray(self._shape, self._dtype, buffer=self.buffer)
        if self._scratch.checked:
            self._scratch._lent.add(self)
        return self._array

    def __exit__(self, kind: object, *_: object) -> None:
        if self._array is None:
            raise ScratchMisuse("one loan ended twice, or before it began")
        is_held = sys.getrefcount(self._array) > ALONE or sys.getrefcount(self.buffer) > ALONE
        array, self._array = self._array, None
        scratch = self._scratch
        del self._scratch  # which keeps ended loans: no cycle
        if scratch.checked:
            scratch._lent.discard(self)
            self._trace = weakref.ref(array)
            array.flags.writeable = False
            self.buffer.fill(GIVEN_BACK)
        if not is_held:
            scratch._keep(self)
        elif scratch.checked and kind is None:  # else the traceback may hold it
            raise ScratchMisuse(f"still viewed, or held under a second name, at its end: the array of {self.place}")

    def is_over(self) -> bool:
        """Whether nobody has the array any more, as far as that is known."""
        return self._trace is None or self._trace() is None

    def check(self) -> None:
        if self._trace is not None and not (self.buffer == GIVEN_BACK).all():
            raise ScratchMisuse(f"written to after it was given back: the array of {self.place}")
