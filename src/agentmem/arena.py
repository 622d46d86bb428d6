"""Arena: many small blocks of bytes in one array, a few bytes each beside their own."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agentmem.frames import array_of

COARSE = 64  # blocks between two whose place is kept


class Arena:
    """Blocks of bytes in one array; they come at the end and go at the front."""

    __slots__ = ("_data", "_first", "_lengths", "_starts", "_used")

    def __init__(self) -> None:
        self._data = np.empty(0, np.uint8)
        self._used = 0
        self._lengths = array("H")
        self._starts = array("Q")  # where every COARSE-th block begins
        self._first = 0            # blocks that are gone, whose bytes are not yet

    def __len__(self) -> int:
        return len(self._lengths) - self._first

    def __getitem__(self, k: int) -> memoryview:
        k += self._first
        start = self._start(k)
        return self._data.data[start : start + self._lengths[k]]

    def append(self, data: bytes) -> None:
        end = self._used + len(data)
        if end > len(self._data):
            grown = np.empty(end + max(64, end >> 6), np.uint8)
            grown[: self._used] = self._data[: self._used]
            self._data = grown
        if len(data) > 0xFFFF and self._lengths.typecode == "H":
            self._lengths = array("Q", self._lengths)
        self._data[self._used : end] = np.frombuffer(data, np.uint8)
        if len(self._lengths) % COARSE == 0:
            self._starts.append(self._used)
        self._lengths.append(len(data))
        self._used = end

    def _start(self, k: int) -> int:
        """Where a block begins, gone ones counted; the end, behind the last."""
        if k == len(self._lengths):
            return self._used
        return self._starts[k // COARSE] + sum(self._lengths[k - k % COARSE : k])

    def cut(self, n: int) -> None:
        """Keep the n oldest blocks."""
        k = n + self._first
        self._used = self._start(k)
        del self._lengths[k:]
        del self._starts[-(-k // COARSE) :]
        self._data = self._data[: self._used].copy()

    def buffers(self) -> dict[str, NDArray[Any]]:
        """The bytes as a view; lengths as a copy, as an array that is looked at cannot grow."""
        return {
            "data": self._data[self._start(self._first) : self._used],
            "lengths": np.array(self._lengths[self._first :], np.uint64),
        }

    @classmethod
    def from_buffers(cls, buffers: dict[str, NDArray[Any]]) -> Arena:
        made, lengths = cls(), buffers["lengths"]
        made._data = array_of(buffers["data"], np.dtype(np.uint8))
        made._used = len(made._data)
        if lengths.dtype != np.uint64 or lengths.ndim != 1 or len(lengths) > made._used:
            raise ValueError(f"lengths {lengths.dtype} {lengths.shape} of blocks in {made._used} bytes")
        if len(lengths) and not 0 < int(lengths.min()) <= int(lengths.max()) <= made._used:
            raise ValueError(f"blocks of {lengths.min()} to {lengths.max()} bytes in {made._used}")
        if int(lengths.sum()) != made._used:
            raise ValueError(f"blocks of {lengths.sum()} bytes in {made._used}")
        made._lengths = array("H" if int(lengths.max(initial=0)) <= 0xFFFF else "Q", lengths.tolist())
        made._place()
        return made

    def check(self, codecs: int) -> None:
        """ValueError unless all blocks begin with one of so many codecs."""
        lengths = np.array(self._lengths, np.int64)
        if len(lengths) and (worst := int(self._data[np.cumsum(lengths) - lengths].max())) >= codecs:
            raise ValueError(f"a block by codec {worst} of {codecs}")

    def _place(self) -> None:
        places = np.cumsum([0, *self._lengths])[:-1]
        self._starts = array("Q", places[::COARSE].tolist())

    def drop(self) -> None:
        """Forget the oldest block. Its bytes go with those of others, before they are a quarter of all."""
        self._first += 1
        k, n = self._first, len(self._lengths)
        start = self._start(k)
        if k == n or start * 4 > self._used:
            self._data = self._data[start : self._used].copy()
            self._used -= start
            del self._lengths[:k]
            self._place()
            self._first = 0
