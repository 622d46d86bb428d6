"""HistoryBuffer and HistoryGroup: what was, kept whole in a fraction of its bytes.

    HistoryBuffer   | block | block | ... | recent frames     one history: frames of one type
    HistoryGroup    | block | block | ... | recent rows       a history for each of many agents: a row of numbers a step

Recent frames lie as they are; as many as a block holds are sealed together, by whichever of `codecs` takes the fewest
bytes.
"""

from __future__ import annotations

import math
import operator
import sys
import zlib
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from agentmem._core import CoreCoder, CoreLanes
from agentmem.budget import Budget
from agentmem.codecs import (
    CHANGED,
    MOST_SYMBOLS,
    Alphabet,
    coder_of,
    numbers_of,
    pack,
    pack_changes,
    symbols_of,
    train,
    unpack,
    unpack_changes,
)
from agentmem.footprint import footprint

BLOCK_FRAMES = 768     # small frames in a block: what it takes beside its bits is 0.06 of a bit each
BLOCK_BYTES = 1 << 15  # of larger frames in a block
RETRAIN = 8            # times as many numbers as a coder was made of are sealed before the next one is made
ENOUGH = 1 << 16       # numbers that a group's coder is made of at most
COARSE = 64            # blocks between two whose place in the arena is kept
MOST_CHANGES = 2048    # frames in a row that are kept as what changed: a reader goes through all of them
MOST_STEPS = 32        # in a block of a group
SPARE = 1 << 8         # bytes to grow by that are reserved at least, beside an eighth of what is held
PLAIN_AGENTS = 128     # of a group that are packed together where an entropy coder does not fit

UNFIT = ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, zlib.error

Frames = NDArray[Any]


class HistoryBuffer:
    """The last `maxlen` frames of one type, like `collections.deque(maxlen)`, compressed.

    Parameters
    ----------
    maxlen : int or None
        How many are kept; the oldest go first. None: all.
    dtype : dtype
        Of a frame's numbers: any without objects.
    shape : tuple of ints
        Of a frame; () for single numbers.
    precision : float, optional
        Floats are rounded to multiples of it as they come in. None: not at all.
    budget : Budget, optional
        Is charged for what is held and room to grow. Its `on_short` may let the oldest frames go. Copies, and what
        comes back from a file, charge none.

    Raises
    ------
    TypeError, ValueError, BudgetExceeded
        What cannot be a frame, options that do not fit, no room in the budget; nothing has changed.

    Notes
    -----
    What is in comes out bit for bit. `append` is O(frame), and once a block O(block) more; `h[i]` decodes one block,
    of 768 numbers or some 32 KiB. Integers that span at most 64 take about the entropy of each given the one before.
    A frame of 32 KiB or more is kept as what changed until the next one, or as support and values, where that is less;
    a SparseArray may be given, and takes its dense form for the time of `append`. One writer.

    Examples
    --------
    >>> import agentmem as am
    >>> log = am.HistoryBuffer(100_000, dtype=int)
    >>> log.extend(step // 100 % 5 for step in range(50_000))
    >>> log.append(3)
    >>> int(log[0]), int(log[-1]), log[150:153], len(log)
    (0, 3, array([1, 1, 1]), 50001)
    >>> log.nbytes < 50_000 / 8  # under a bit each
    True
    """

    __slots__ = (
        "__weakref__", "_account", "_alphabet", "_arena", "_changes", "_gone", "_hot", "_n_hot", "_per_block",
        "_sealed", "_train_at", "dtype", "maxlen", "precision", "shape",
    )  # fmt: skip

    def __init__(
        self,
        maxlen: int | None,
        *,
        dtype: DTypeLike,
        shape: tuple[int, ...] = (),
        precision: float | None = None,
        budget: Budget | None = None,
    ) -> None:
        self.maxlen = None if maxlen is None else operator.index(maxlen)
        if self.maxlen is not None and self.maxlen < 0:
            raise ValueError(f"maxlen={maxlen} given; expected at least 0, or None")
        self.dtype, self.shape = np.dtype(dtype), tuple(map(operator.index, shape))
        if self.dtype.hasobject or not self.dtype.itemsize:
            raise TypeError(f"dtype {self.dtype} given; expected numbers")
        if min(self.shape, default=0) < 0:
            raise ValueError(f"shape {shape} given; expected extents of at least 0")
        self.precision = precision
        if precision is not None:
            floats = np.finfo(self.dtype) if self.dtype.kind == "f" else None
            if floats is None or not float(floats.tiny) <= precision <= float(floats.max):
                raise ValueError(f"precision={precision!r} given with {self.dtype}; expected one above 0, for floats")
        frame = self.dtype.itemsize * math.prod(self.shape)
        most = BLOCK_FRAMES if self.maxlen is None else max(8, min(BLOCK_FRAMES, self.maxlen // 4))
        self._per_block = max(1, min(most, BLOCK_BYTES // max(1, frame)))
        self._arena = Arena()
        self._alphabet: Alphabet | None = None
        self._sealed = 0    # frames in blocks, ever
        self._train_at = 0  # how many of them a new coder waits for
        self._changes = 0   # about the bytes of changes since a frame was kept whole
        self._gone = 0      # of the oldest frames held: those that count no more
        kind = _narrowest(0, 0, self.dtype) if self.dtype.kind in "iu" else self.dtype
        self._hot = np.empty((0, *self.shape), kind)
        self._n_hot = 0     # frames in `_hot`
        self._account: Account | None = None
        if budget is not None:
            self._account = Account(budget, self)

    # ---- in

    def append(self, x: ArrayLike) -> None:
        """Add a frame; where there are `maxlen` already, the oldest goes."""
        if type(x) is int and self._n_hot < len(self._hot) and self._n_hot < self._per_block and self.maxlen != 0:
            try:
                self._hot[self._n_hot] = x  # raises where it does not fit; the rest of this method is for that
            except (OverflowError, ValueError):
                pass
            else:
                if not self.shape and self.dtype.kind in "iu":
                    self._n_hot += 1
                    self._let_go()
                    return
        self._take(self._frames(np.asarray(x), self.shape)[np.newaxis])
        self._let_go()

    def extend(self, xs: Iterable[ArrayLike]) -> None:
        """Add frames, an iterable or (n, *shape). None of them if one does not fit."""
        given = xs if isinstance(xs, np.ndarray) else _array_like(list(xs), self.dtype)
        if not len(given):
            return
        frames = self._frames(given, (len(given), *self.shape))
        if self.maxlen is not None:
            frames = frames[max(0, len(frames) - self.maxlen) :]
        first = 0
        try:
            for first in range(0, len(frames), self._per_block):
                self._take(frames[first : first + self._per_block])
        except BaseException:
            with unpaid(self):
                self._cut(max(0, len(self) - first))
            raise
        self._let_go()

    def _frames(self, given: Frames, shape: tuple[int, ...]) -> Frames:
        if given.shape != shape:
            raise ValueError(f"{given.shape} given; expected frames of shape {self.shape}")
        frames = _checked(given, self.dtype)
        if self.precision is None:
            return frames
        inverse = 1 / self.precision
        with np.errstate(over="ignore", invalid="ignore"):
            steps = np.rint(frames.astype(np.float64) / self.precision) + 0.0  # no -0.0
            is_whole = math.isclose(inverse, round(inverse))  # then dividing gives the decimals nearest to these
            rounded = (steps / round(inverse) if is_whole else steps * self.precision).astype(self.dtype)
        return np.where(np.isfinite(rounded), rounded, frames)

    def _take(self, frames: Frames) -> None:
        """Add at most as many frames as a block holds."""
        if self.maxlen == 0:
            return
        before, n = self._n_hot, self._n_hot + len(frames)
        self._make_room(frames, n)
        self._hot[before:n] = frames
        self._n_hot = n
        if n > self._per_block:
            try:
                self._seal()
            except BaseException:
                self._n_hot = before
                raise

    def popleft(self) -> Any:
        """Take the oldest frame out, and return it."""
        frame = self[0]
        self._forget(1)
        return frame

    def pop(self) -> Any:
        """Take the newest frame out, and return it."""
        frame = self[-1]
        self._cut(len(self) - 1)
        return frame

    def _cut(self, n: int) -> None:
        """Let go of all frames but the n oldest."""
        kept = n + self._gone
        n_blocks = min(len(self._arena), kept // self._per_block)
        if self._per_block == 1 and n_blocks:  # changes need a frame behind them
            n_blocks = min(n_blocks, kept - 1)
        if n_blocks < len(self._arena):
            recent = self._span(n_blocks * self._per_block - self._gone, n)
            self._sealed -= (len(self._arena) - n_blocks) * self._per_block
            self._arena.cut(n_blocks)
            self._hot, self._n_hot = self._hot[:0], 0
            self._make_room(recent, len(recent))
            self._hot[: len(recent)] = recent
        self._n_hot = kept - n_blocks * self._per_block

    def _let_go(self) -> None:
        """Count the oldest frames out where there are more than `maxlen`."""
        if self.maxlen is not None:
            self._forget(max(0, len(self) - self.maxlen))

    def _forget(self, n: int) -> None:
        """Count the n oldest frames out."""
        self._gone += n
        if not len(self._arena) or self._gone < self._per_block:
            return
        while len(self._arena) and self._gone >= self._per_block:
            self._arena.drop()
            self._gone -= self._per_block
        if self._account is not None:
            self._account.settle(self.nbytes)

    def _make_room(self, frames: Frames, n: int) -> None:
        """Let recent frames be n, these among them: integers lie in as few bytes as they need."""
        kind = self._hot.dtype
        if self.dtype.kind in "iu" and frames.size:
            limits = np.iinfo(kind)
            lowest, highest = int(frames.min()), int(frames.max())
            if not limits.min <= lowest <= highest <= limits.max:
                kind = _narrowest(min(lowest, limits.min), max(highest, limits.max), self.dtype)
        if kind != self._hot.dtype or n > len(self._hot):
            room = max(n, min(len(self._hot) * 9 // 8 + 8, self._per_block + 1))
            if self._account is not None:
                self._account.take(room * kind.itemsize * math.prod(self.shape) - self._hot.nbytes, self)
            grown = np.zeros((room, *self.shape), kind)
            grown[: self._n_hot] = self._hot[: self._n_hot]
            self._hot = grown

    def _seal(self) -> None:
        """Make a block of the oldest recent frames."""
        n, hot = self._per_block, self._hot
        numbers = hot[:n].astype(self.dtype).ravel()
        data = self._packed(numbers, hot)
        rest = hot[n : self._n_hot]
        if self._account is not None:
            self._account.take(len(data), self)
            self._account.unused += hot.nbytes
        self._arena.append(data)
        self._sealed += n
        self._hot, self._n_hot = hot[:0], 0
        if self.dtype.kind in "iu":
            self._hot = np.zeros((0, *self.shape), _narrowest(0, 0, self.dtype))
        self._make_room(rest, len(rest))
        self._hot[: len(rest)] = rest
        self._n_hot = len(rest)

    def _packed(self, numbers: Frames, hot: Frames) -> bytes:
        if self._per_block == 1 and numbers.nbytes >= BLOCK_BYTES and self._changes < numbers.nbytes:
            changes = pack_changes(numbers, hot[1].astype(self.dtype).ravel())
            if len(changes) < numbers.nbytes // 8:  # else see what the frame itself takes
                self._changes += max(len(changes), numbers.nbytes // MOST_CHANGES)
                return changes
        self._changes = 0
        if self.dtype.kind in "iub" and not self.shape and self._sealed >= self._train_at:
            self._train(numbers)
        return pack(numbers, self._alphabet)

    def _train(self, numbers: Frames) -> None:
        """Make a coder of all blocks and these numbers, and code them anew."""
        blocks = [self._block(k) for k in range(len(self._arena))]
        self._alphabet = train(np.concatenate([*blocks, numbers]))
        self._train_at = RETRAIN * (self._sealed + len(numbers))
        arena = Arena()
        for block in blocks:
            arena.append(pack(block, self._alphabet))
        self._arena = arena

    # ---- out

    @property
    def _stored(self) -> int:
        return len(self._arena) * self._per_block + self._n_hot

    def __len__(self) -> int:
        return self._stored - self._gone

    @overload
    def __getitem__(self, i: int) -> Any: ...

    @overload
    def __getitem__(self, i: slice) -> Frames: ...

    def __getitem__(self, i: int | slice) -> Any:
        """A frame, a number where frames have no shape; for a slice, (n, *shape)."""
        n = len(self)
        if isinstance(i, slice):
            wanted = range(n)[i]
            if not wanted:
                return np.empty((0, *self.shape), self.dtype)
            first, last = min(wanted[0], wanted[-1]), max(wanted[0], wanted[-1]) + 1
            return self._span(first, last)[np.asarray(wanted) - first]
        k = operator.index(i)
        if not -n <= k < n:
            raise IndexError(f"frame {k} given; there are {n}")
        recent = k % n + self._gone - len(self._arena) * self._per_block
        return self._hot[recent].astype(self.dtype) if recent >= 0 else self._span(k % n, k % n + 1)[0]

    def _span(self, first: int, last: int) -> Frames:
        """Frames [first, last), of those that count."""
        first, last, per = first + self._gone, last + self._gone, self._per_block
        end = len(self._arena) * per
        out = np.empty((last - first, *self.shape), self.dtype)
        if last > end:
            recent = self._hot[max(0, first - end) : last - end]
            out[len(out) - len(recent) :] = recent
        after: Frames | None = None
        for k in range(min(last - 1, end - 1) // per, first // per - 1, -1):
            after = self._block(k, after)
            begin, stop = max(first, k * per), min(last, (k + 1) * per)
            out[begin - first : stop - first] = after.reshape(per, *self.shape)[begin - k * per : stop - k * per]
        return out

    def _block(self, k: int, after: Frames | None = None) -> Frames:
        """The numbers of a block; `after` are those of the next one, where they are at hand."""
        data = self._arena[k]
        if data[0] != CHANGED:
            return unpack(data, self._per_block * math.prod(self.shape), self.dtype, self._alphabet)
        whole = k + 1
        if after is None:
            while whole < len(self._arena) and self._arena[whole][0] == CHANGED:
                whole += 1
            after = self._hot[0].ravel() if whole == len(self._arena) else self._block(whole)
        numbers = after.astype(self.dtype)
        for j in range(whole - 1, k - 1, -1):
            unpack_changes(self._arena[j], numbers)
        return numbers

    def __iter__(self) -> Iterator[Any]:
        """Over the frames, as a list's: what is appended meanwhile comes too."""
        at, at_once = 0, max(self._per_block, COARSE)
        while at < len(self):
            frames = self[at : at + at_once]
            at += len(frames)
            yield from frames

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Frames:
        if copy is False:
            raise ValueError("a history becomes an ndarray only by a copy; copy=False given")
        return self[:] if dtype is None else self[:].astype(dtype, copy=False)

    # ---- one protocol: a header and named arrays

    @property
    def header(self) -> dict[str, Any]:
        """What `from_buffers` needs beside the buffers; JSON can hold it."""
        alphabet = self._alphabet
        return {
            "maxlen": self.maxlen, "dtype": _described(self.dtype), "shape": list(self.shape),
            "precision": None if self.precision is None else float(self.precision), "per_block": self._per_block,
            "sealed": self._sealed, "train_at": self._train_at, "changes": self._changes, "gone": self._gone,
            "n_hot": self._n_hot, "width": self._hot.dtype.itemsize,
            "alphabet": None if alphabet is None else [alphabet.lowest, alphabet.highest],
        }  # fmt: skip

    def buffers(self) -> dict[str, NDArray[Any]]:
        """The content as named 1-D arrays, compressed as it lies; some are views. O(blocks)."""
        table = b"" if self._alphabet is None else self._alphabet.table
        found = {"hot": _bytes_of(self._hot[: self._n_hot]), "table": np.frombuffer(table, np.uint8)}
        return found | self._arena.buffers()

    @classmethod
    def from_buffers(cls, header: dict[str, Any], buffers: dict[str, NDArray[Any]]) -> Self:
        """The history that `header` and `buffers` were taken from; copies. O(bytes), no block is decoded.

        Raises ValueError for what no history can be; reading raises it for a block that `codecs` cannot have made.
        """
        with damaged("history"):
            made = cls.__new__(cls)
            made._restore(header, buffers)
            return made

    def _restore(self, header: dict[str, Any], buffers: dict[str, NDArray[Any]]) -> None:
        dtype, precision = _dtype_of(header["dtype"]), header["precision"]
        HistoryBuffer.__init__(self, header["maxlen"], dtype=dtype, shape=tuple(header["shape"]), precision=precision)
        cells = math.prod(self.shape)
        frame, alphabet = dtype.itemsize * cells, header["alphabet"]
        per = self._per_block = within(header["per_block"], 1, BLOCK_FRAMES)
        if per > 1 and per * frame > BLOCK_BYTES:
            raise ValueError(f"blocks of {per} frames of {frame} bytes")
        self._arena = Arena.from_buffers(buffers)
        self._arena.check(codecs=CHANGED + (per == 1))
        n_blocks = len(self._arena)
        self._n_hot = within(header["n_hot"], int(per == 1 and n_blocks > 0), per)
        self._gone = within(header["gone"], 0, per - 1 if n_blocks else self._n_hot)
        within(len(self), 0, len(self) if self.maxlen is None else self.maxlen)
        kind, width = dtype, within(header["width"], 1, dtype.itemsize)
        if width < dtype.itemsize:
            kind = np.dtype(f"{dtype.kind}{width}")
            if dtype.kind not in "iu":
                raise ValueError(f"frames of {dtype} in {width} bytes")
        if buffers["hot"].size != self._n_hot * cells * width:
            raise ValueError(f"{buffers['hot'].size} bytes of {self._n_hot} recent frames")
        self._hot = _array_of(buffers["hot"], kind).reshape(self._n_hot, *self.shape)
        self._sealed = within(header["sealed"], n_blocks * per)
        self._train_at, self._changes = within(header["train_at"], 0), within(header["changes"], 0)
        if alphabet is not None:
            lowest, highest = map(operator.index, alphabet)
            within(highest - lowest, 0, MOST_SYMBOLS - 1)
            if dtype.kind not in "iub":
                raise ValueError(f"a coder of {dtype}")
            self._alphabet = Alphabet(lowest, highest, _array_of(buffers["table"], np.dtype(np.uint8)).tobytes())
            assert self._alphabet.coder.n_symbols == highest - lowest + 1  # or it raises

    def __reduce_ex__(self, protocol: Any) -> Any:
        return type(self).from_buffers, (self.header, self.buffers())

    # ---- what it takes

    @property
    def nbytes(self) -> int:
        """All bytes held, every object counted."""
        return footprint(self, ignore=Budget).total

    @property
    def compression_ratio(self) -> float:
        """Bytes of the frames as one ndarray, over the bytes held."""
        return len(self) * self.dtype.itemsize * math.prod(self.shape) / self.nbytes

    def __repr__(self) -> str:
        frames = f"{len(self)} of {'any number' if self.maxlen is None else self.maxlen} frames"
        return f"{type(self).__name__}({frames}, dtype={self.dtype}, shape={self.shape}, nbytes={self.nbytes})"


class HistoryGroup:
    """The last `maxlen` numbers of each of many agents, appended a row at a time: what all did or saw in one step.

    Parameters
    ----------
    n_agents : int
    maxlen : int or None
        How many steps are kept; the oldest go first. None: all.
    dtype : dtype
        Of the numbers: ints, floats, bools.
    budget : Budget, optional
        Is charged for what is held and room for a block; copies, and what comes back from a file, charge none.

    Raises
    ------
    TypeError, ValueError, BudgetExceeded
        Rows and options that do not fit, no room in the budget; nothing has changed.

    Notes
    -----
    What goes in comes out bit for bit. `append` takes 5 to 10 ns a number. Integers that span at most 64 take about the
    entropy of each given the next one, others what `codecs` makes of them; the last row of a block to 32 rows lie as
    they are. `group[i]` decodes the steps of 16 to 128 agents. One writer.

    Examples
    --------
    >>> import agentmem as am
    >>> group = am.HistoryGroup(3, 100, dtype=int)
    >>> for step in range(1_000):
    ...     group.append([step % 2, 0, step // 10 % 4])
    >>> len(group), group[0][-3:], group[2][-12:]
    (100, array([1, 0, 1]), array([2, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3]))
    """

    __slots__ = ("__weakref__", "_account", "_gone", "_hot", "_parts", "_steps", "dtype", "maxlen", "n_agents")

    def __init__(
        self, n_agents: int, maxlen: int | None, *, dtype: DTypeLike, budget: Budget | None = None
    ) -> None:
        self.n_agents = operator.index(n_agents)
        self.maxlen = None if maxlen is None else operator.index(maxlen)
        self.dtype = np.dtype(dtype)
        if self.n_agents < 1 or (self.maxlen is not None and self.maxlen < 1):
            raise ValueError(f"{n_agents} agents and maxlen={maxlen} given; expected at least 1 of each")
        if self.dtype.kind not in "biuf":
            raise TypeError(f"dtype {self.dtype} given; expected real numbers")
        self._steps = MOST_STEPS if self.maxlen is None else max(1, min(MOST_STEPS, self.maxlen // 12))
        self._parts: list[_Coded | _Plain] = []  # sealed rows, oldest first
        self._hot: list[Frames] = []             # the rows since; there is always one behind a coded part
        self._gone = 0                           # of the oldest rows held: those that count no more
        self._account: Account | None = None
        if budget is not None:
            self._account = Account(budget, self)

    # ---- in

    def append(self, row: ArrayLike) -> None:
        """Add a step: (n_agents,) numbers."""
        given = _array_like(row, self.dtype)
        if given.shape != (self.n_agents,):
            raise ValueError(f"row of shape {given.shape} given; expected ({self.n_agents},)")
        row = self._narrow(_checked(given, self.dtype))
        is_full, widest = len(self._hot) == self._steps, max((hot.nbytes for hot in self._hot), default=0)
        room = self._steps * row.nbytes
        if self._account is not None and (is_full or row.nbytes > widest):
            self._account.take(room + is_full * self._steps * widest // 2, self)  # streams may be longer than rows
        if is_full:
            self._seal(np.array(self._hot), row)
            self._hot = []
        self._hot.append(row)
        if self.maxlen is not None:
            self._gone = max(self._gone, self._stored - self.maxlen)
        while self._gone >= self._steps:
            self._parts[0].drop()
            if not self._parts[0].n_blocks:
                del self._parts[0]
            self._gone -= self._steps
        if is_full and self._account is not None:
            self._account.settle(self.nbytes + room)

    def _narrow(self, row: Frames) -> Frames:
        """A copy, integers in as few bytes as they need."""
        integers = self.dtype.kind in "iu"
        return row.astype(_narrowest(int(row.min()), int(row.max()), self.dtype) if integers else self.dtype)

    def _seal(self, rows: Frames, after: Frames) -> None:
        """Make a block of these rows, which the row `after` follows."""
        last = self._parts[-1] if self._parts else None
        if rows.dtype.kind not in "biu":
            self._parts.append(_Plain(rows))
            return
        lowest, highest = min(int(rows.min()), int(after.min())), max(int(rows.max()), int(after.max()))
        if not (isinstance(last, _Coded) and last.takes(lowest, highest)):
            if isinstance(last, _Coded):
                last.after = last.symbols_of(rows[0])
                if max(highest, last.highest) - min(lowest, last.lowest) < MOST_SYMBOLS:
                    lowest, highest = min(lowest, last.lowest), max(highest, last.highest)
            if highest - lowest >= MOST_SYMBOLS:
                self._parts.append(_Plain(rows))
                return
            self._parts.append(last := _Coded(rows, after, lowest, highest))
        last.seal(rows, after)

    # ---- out

    @property
    def _stored(self) -> int:
        return sum(part.n_blocks for part in self._parts) * self._steps + len(self._hot)

    def __len__(self) -> int:
        """How many steps there are."""
        return self._stored - self._gone

    def __getitem__(self, agent: int) -> Frames:
        """(len,): what this agent's numbers were, oldest first."""
        k = operator.index(agent)
        if not -self.n_agents <= k < self.n_agents:
            raise IndexError(f"agent {k} given; there are {self.n_agents}")
        k %= self.n_agents
        return self._columns(k, k + 1)[:, 0]

    def __iter__(self) -> Iterator[Frames]:
        return (self[agent] for agent in range(self.n_agents))

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Frames:
        """(len, n_agents), of all."""
        if copy is False:
            raise ValueError("a history becomes an ndarray only by a copy; copy=False given")
        rows = self._columns(0, self.n_agents)
        return rows if dtype is None else rows.astype(dtype, copy=False)

    def _columns(self, first: int, last: int) -> Frames:
        """(len, last - first): the steps of these agents."""
        out, at = np.empty((self._stored, last - first), self.dtype), 0
        for part in self._parts:
            rows = part.read(first, last, self._hot[0])
            out[at : at + len(rows)] = rows
            at += len(rows)
        for row in self._hot:
            out[at] = row[first:last]
            at += 1
        return out[self._gone :]

    # ---- one protocol: a header and named arrays

    @property
    def header(self) -> dict[str, Any]:
        """What `from_buffers` needs beside the buffers; JSON can hold it."""
        return {
            "n_agents": self.n_agents, "maxlen": self.maxlen, "dtype": self.dtype.str, "gone": self._gone,
            "hot": self._hot_rows().dtype.str, "parts": [part.header for part in self._parts],
        }  # fmt: skip

    def buffers(self) -> dict[str, NDArray[Any]]:
        """The content as named 1-D arrays: blocks coded anew, in one piece for all agents. O(numbers)."""
        found = {"hot": _bytes_of(self._hot_rows())}
        for k, part in enumerate(self._parts):
            found |= {f"{name}.{k}": made for name, made in part.buffers(self._hot[0]).items()}
        return found

    def _hot_rows(self) -> Frames:
        return np.array(self._hot) if self._hot else np.empty((0, self.n_agents), self.dtype)

    @classmethod
    def from_buffers(cls, header: dict[str, Any], buffers: dict[str, NDArray[Any]]) -> Self:
        """The group that `header` and `buffers` were taken from. O(numbers); ValueError for what no group can be."""
        with damaged("history group"):
            made = cls.__new__(cls)
            made._restore(header, buffers)
            return made

    def _restore(self, header: dict[str, Any], buffers: dict[str, NDArray[Any]]) -> None:
        HistoryGroup.__init__(self, header["n_agents"], header["maxlen"], dtype=np.dtype(header["dtype"]))
        rows = _array_of(buffers["hot"], _same_kind(header["hot"], self.dtype)).reshape(-1, self.n_agents)
        within(len(rows), int(bool(header["parts"])), self._steps)
        self._hot = [self._narrow(row) for row in _checked(rows, self.dtype)]
        shape = self._steps, self.n_agents
        for k, head in enumerate(header["parts"]):
            arrays = {name.removesuffix(f".{k}"): made for name, made in buffers.items() if name.endswith(f".{k}")}
            if head.keys() == {"dtype"}:
                self._parts.append(_Plain.from_buffers(shape, _same_kind(head["dtype"], self.dtype), arrays))
                continue
            hot = self._hot[0] if k == len(header["parts"]) - 1 else None
            self._parts.append(_Coded.from_buffers(shape, head, arrays, hot))
        self._gone = within(header["gone"], 0, self._steps - 1 if self._parts else len(rows))
        within(len(self), 0, len(self) if self.maxlen is None else self.maxlen)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return type(self).from_buffers, (self.header, self.buffers())

    @property
    def nbytes(self) -> int:
        """All bytes held, every object counted."""
        alone = (self,)  # by itself, it would be asked for its buffers
        return footprint(alone, ignore=Budget).total - sys.getsizeof(alone)

    def __repr__(self) -> str:
        steps = f"{len(self)} of {'any number of' if self.maxlen is None else self.maxlen} steps"
        return f"{type(self).__name__}({self.n_agents} agents, {steps}, dtype={self.dtype}, nbytes={self.nbytes})"


class _Coded:
    """Blocks of rows of integers that span few, by one entropy coder."""

    __slots__ = ("after", "highest", "lanes", "learnt", "lowest")

    def __init__(self, rows: Frames, after: Frames, lowest: int, highest: int) -> None:
        """For rows like these. Empty as yet."""
        self.lowest, self.highest = lowest, highest
        coder = coder_of(self.symbols_of(rows)[::-1], self.symbols_of(after), self.n_symbols)  # back in time
        self.lanes = _lanes_of(coder, rows.shape)
        self.learnt = rows.size                      # numbers that the coder is made of
        self.after: NDArray[np.uint8] | None = None  # the symbols behind the newest block, where another part follows

    @property
    def n_blocks(self) -> int:
        return self.lanes.n_blocks

    @property
    def n_symbols(self) -> int:
        return max(2, self.highest - self.lowest + 1)  # of one, a stream of no bytes would hold any number

    def symbols_of(self, numbers: Frames) -> NDArray[np.uint8]:
        return symbols_of(numbers, self.lowest)

    def takes(self, lowest: int, highest: int) -> bool:
        """Whether it can code these, and need not give way to a coder made of more."""
        sealed = self.lanes.n_blocks * self.lanes.steps * self.lanes.n_lanes
        learns = self.learnt < ENOUGH and sealed >= RETRAIN * self.learnt
        return self.lowest <= lowest and highest <= self.highest and not learns

    def seal(self, rows: Frames, after: Frames) -> None:
        self.lanes.seal(self.symbols_of(rows), self.symbols_of(after))

    def drop(self) -> None:
        self.lanes.drop()

    def read(self, first: int, last: int, hot: Frames) -> Frames:
        """The rows of these agents; `hot` follows the newest block unless another part does."""
        begin, end = self.lanes.span(first, last)
        after = self.symbols_of(hot[begin:end]) if self.after is None else self.after[begin:end]
        symbols = self.lanes.read(first, last, after)
        return numbers_of(symbols, self.lowest, np.dtype(np.uint64)) if self.lowest else symbols

    @property
    def header(self) -> dict[str, Any]:
        return {"lowest": self.lowest, "highest": self.highest, "learnt": self.learnt}

    def buffers(self, hot: Frames) -> dict[str, NDArray[Any]]:
        """A stream for each block, of all agents."""
        after = self.symbols_of(hot) if self.after is None else self.after
        rows = np.concatenate([self.lanes.read(0, self.lanes.n_lanes, after), after[np.newaxis]])
        arena, steps, coder = Arena(), self.lanes.steps, self.lanes.coder
        for first in range(0, len(rows) - 1, steps):
            arena.append(coder.encode(rows[first : first + steps][::-1], rows[first + steps]))
        known = {} if self.after is None else {"after": self.after}
        return arena.buffers() | {"table": _bytes_of(coder.table)} | known

    @classmethod
    def from_buffers(
        cls, shape: tuple[int, int], header: dict[str, Any], buffers: dict[str, NDArray[Any]], hot: Frames | None
    ) -> _Coded:
        """`hot` follows the newest block, where no other part does."""
        made = cls.__new__(cls)
        made.lowest, made.highest = operator.index(header["lowest"]), operator.index(header["highest"])
        within(made.highest - made.lowest, 0, MOST_SYMBOLS - 1)
        n, made.learnt, made.after = made.n_symbols, within(header["learnt"], 0), None
        coder = CoreCoder.from_table(_array_of(buffers["table"], np.dtype(np.uint16)).reshape(n, n))
        made.lanes = _lanes_of(coder, shape)
        if hot is not None:
            within(int(hot.min()) - made.lowest, 0)
            within(made.highest - int(hot.max()), 0)
            after = made.symbols_of(hot)
        else:
            after = made.after = _array_of(buffers["after"], np.dtype(np.uint8))
        arena, blocks = Arena.from_buffers(buffers), []
        within(len(arena), 1)
        for k in range(len(arena) - 1, -1, -1):
            rows = coder.decode(arena[k], after, shape[0])[::-1]
            blocks.append((rows, after))
            after = rows[0]
        for rows, after in reversed(blocks):
            made.lanes.seal(rows, after)
        return made


class _Plain:
    """A block of rows of any numbers, packed for some agents at a time."""

    __slots__ = ("arena", "dtype", "n_blocks", "shape")

    def __init__(self, rows: Frames) -> None:
        self.shape, self.dtype, self.n_blocks = rows.shape, rows.dtype, 1
        self.arena = Arena()
        for first in range(0, self.shape[1], PLAIN_AGENTS):
            self.arena.append(pack(np.ascontiguousarray(rows[:, first : first + PLAIN_AGENTS].T).ravel()))

    @property
    def header(self) -> dict[str, Any]:
        return {"dtype": self.dtype.str}

    def buffers(self, hot: Frames) -> dict[str, NDArray[Any]]:
        return self.arena.buffers()

    @classmethod
    def from_buffers(
        cls, shape: tuple[int, int], dtype: np.dtype[Any], buffers: dict[str, NDArray[Any]]
    ) -> _Plain:
        made = cls.__new__(cls)
        made.shape, made.dtype, made.n_blocks = shape, dtype, 1
        made.arena = Arena.from_buffers(buffers)
        made.arena.check(codecs=CHANGED)
        within(len(made.arena), n := -(-shape[1] // PLAIN_AGENTS), n)
        return made

    def drop(self) -> None:
        self.n_blocks = 0

    def read(self, first: int, last: int, hot: Frames) -> Frames:
        parts = []
        for k in range(first // PLAIN_AGENTS, -(-last // PLAIN_AGENTS)):
            agents = min(PLAIN_AGENTS, self.shape[1] - k * PLAIN_AGENTS)
            parts.append(unpack(self.arena[k], agents * self.shape[0], self.dtype, None).reshape(agents, -1))
        begin = first // PLAIN_AGENTS * PLAIN_AGENTS
        return np.concatenate(parts)[first - begin : last - begin].T


def _lanes_of(coder: CoreCoder, shape: tuple[int, ...]) -> CoreLanes:
    """For blocks of (steps, agents)."""
    return CoreLanes(coder, shape[1], 24 if shape[0] <= 8 else 16, shape[0])


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
        made._data = _array_of(buffers["data"], np.dtype(np.uint8))
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


class Account:
    """What a container has reserved in a budget: what it holds, and room to grow. Given back when both are garbage."""

    __slots__ = ("budget", "holder", "reserved", "unused")

    def __init__(self, budget: Budget, container: Any) -> None:
        if not isinstance(budget, Budget):
            raise TypeError(f"budget of type {type(budget).__name__} given; expected an agentmem.Budget")
        self.budget, self.holder = budget, type(container).__name__
        self.reserved = self.unused = 0
        self.take(0, container)

    def take(self, more: int, container: Any) -> bool:
        """Have so many bytes more. Only where those reserved do not do, it measures and asks the budget: True."""
        if is_short := more > self.unused or not self.reserved:
            need = container.nbytes + more
            spare = min(need // 8 + SPARE, self.budget.free + self.reserved - need)
            before = self.reserved
            if (missing := need + max(0, spare) - before) > 0:
                self.budget.reserve(missing, self.holder)
                self.reserved += missing
            self.unused = more + max(0, spare)
        self.unused -= more
        return is_short

    def settle(self, nbytes: int) -> None:
        """Give back what is reserved beyond so many bytes."""
        beyond = self.reserved - nbytes
        if beyond > 0:
            self.budget.release(beyond, self.holder)
            self.reserved -= beyond
        self.unused = 0

    def __del__(self) -> None:
        if getattr(self, "reserved", 0):
            with suppress(ValueError):  # the budget went first, and gave it back above
                self.budget.release(self.reserved, self.holder)


@contextmanager
def unpaid(container: Any) -> Iterator[None]:
    """Within it, what goes back to how it was asks no budget."""
    account, container._account = container._account, None
    try:
        yield
    finally:
        container._account = account
        if account is not None:
            account.settle(container.nbytes)


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


def _described(dtype: np.dtype[Any]) -> Any:
    """For `_dtype_of`, as JSON has it."""
    if dtype.subdtype is not None:
        return [_described(dtype.subdtype[0]), list(dtype.subdtype[1])]
    if dtype.fields is None or dtype.names is None:
        return dtype.str
    formats = [_described(dtype.fields[name][0]) for name in dtype.names]
    offsets = [dtype.fields[name][1] for name in dtype.names]
    return {"names": list(dtype.names), "formats": formats, "offsets": offsets, "itemsize": dtype.itemsize}


def _dtype_of(found: Any) -> np.dtype[Any]:
    if isinstance(found, dict):
        return np.dtype(found | {"formats": [_dtype_of(part) for part in found["formats"]]})  # type: ignore[call-overload, no-any-return]
    if isinstance(found, list):
        kind, shape = found
        return np.dtype((_dtype_of(kind), tuple(map(operator.index, shape))))
    if not isinstance(found, str):
        raise ValueError(f"dtype {found!r} given")
    return np.dtype(found)


def _same_kind(found: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """This dtype, or of integers a smaller one."""
    kind = np.dtype(found)
    if kind != dtype and not (kind.kind == dtype.kind and kind.kind in "iu" and kind.itemsize < dtype.itemsize):
        raise ValueError(f"numbers of {kind} among those of {dtype}")
    return kind


def _bytes_of(frames: Frames) -> NDArray[np.uint8]:
    return np.ascontiguousarray(frames).reshape(-1).view(np.uint8)


def _array_of(given: NDArray[Any], dtype: np.dtype[Any]) -> Frames:
    """What `_bytes_of` was given, as a copy."""
    if given.dtype != np.uint8 or given.ndim != 1:
        raise ValueError(f"{given.dtype} {given.shape} given; expected bytes")
    return np.frombuffer(given.tobytes(), dtype).copy()


def _narrowest(lowest: int, highest: int, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The integer dtype of fewest bytes, of the sign of this one, that holds both."""
    for kind in (f"{dtype.kind}{size}" for size in (1, 2, 4)):
        if np.iinfo(kind).min <= lowest <= highest <= np.iinfo(kind).max:
            return np.dtype(kind)
    return dtype


def _array_like(xs: Any, dtype: np.dtype[Any]) -> Frames:
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


def _checked(given: Frames, dtype: np.dtype[Any]) -> Frames:
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
