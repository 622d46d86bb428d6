"""HistoryBuffer: one history, kept whole in a fraction of its bytes.

    block | block | ... | recent frames       frames of one type

Recent frames lie as they are; as many as a block holds are sealed together, by whichever of `codecs` takes the fewest
bytes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator
from typing import Any, Self, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from agentmem.arena import COARSE, Arena
from agentmem.budget import Account, Budget, unpaid
from agentmem.codecs import CHANGED, MOST_SYMBOLS, Alphabet, pack, pack_changes, train, unpack, unpack_changes
from agentmem.footprint import footprint
from agentmem.frames import (
    Frames,
    array_like,
    array_of,
    bytes_of,
    checked,
    damaged,
    described,
    dtype_of,
    narrowest,
    within,
)

BLOCK_FRAMES = 1_000   # small frames in a block: what it takes beside its bits is 0.05 of a bit each
BLOCK_BYTES = 1 << 15  # of larger frames in a block
RETRAIN = 8            # times as many numbers as a coder was made of are sealed before the next one is made
MOST_CHANGES = 2048    # frames in a row that are kept as what changed: a reader goes through all of them


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
    of 1,000 numbers or some 32 KiB. Integers that span at most 64 take about the entropy of each given the one before.
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
        self._hot = self._no_frames()
        self._n_hot = 0     # frames in `_hot`
        self._account: Account | None = None
        if budget is not None:
            self._account = Account(budget, self)

    # ---- in

    def append(self, x: ArrayLike) -> None:
        """Add a frame; where there are `maxlen` already, the oldest goes."""
        if type(x) is int and self._n_hot < len(self._hot) and self._n_hot + 1 < self._per_block and self.maxlen != 0:
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
        given = xs if isinstance(xs, np.ndarray) else array_like(list(xs), self.dtype)
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
        frames = checked(given, self.dtype)
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
        if n >= max(2, self._per_block):  # changes need a frame behind them
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
        if self._per_block == 1 and n_blocks:
            n_blocks = min(n_blocks, kept - 1)
        if n_blocks < len(self._arena):
            recent = self._span(n_blocks * self._per_block - self._gone, n)
            self._sealed -= (len(self._arena) - n_blocks) * self._per_block
            self._arena.cut(n_blocks)
            self._hot, self._n_hot = self._no_frames(), 0
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

    def _no_frames(self) -> Frames:
        return np.empty((0, *self.shape), narrowest(0, 0, self.dtype) if self.dtype.kind in "iu" else self.dtype)

    def _make_room(self, frames: Frames, n: int) -> None:
        """Let recent frames be n, these among them: integers lie in as few bytes as they need."""
        kind = self._hot.dtype
        if self.dtype.kind in "iu" and frames.size:
            limits = np.iinfo(kind)
            lowest, highest = int(frames.min()), int(frames.max())
            if not limits.min <= lowest <= highest <= limits.max:
                kind = narrowest(min(lowest, limits.min), max(highest, limits.max), self.dtype)
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
        self._hot, self._n_hot = self._no_frames(), 0
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
            "maxlen": self.maxlen, "dtype": described(self.dtype), "shape": list(self.shape),
            "precision": None if self.precision is None else float(self.precision), "per_block": self._per_block,
            "sealed": self._sealed, "train_at": self._train_at, "changes": self._changes, "gone": self._gone,
            "n_hot": self._n_hot, "width": self._hot.dtype.itemsize,
            "alphabet": None if alphabet is None else [alphabet.lowest, alphabet.highest],
        }  # fmt: skip

    def buffers(self) -> dict[str, NDArray[Any]]:
        """The content as named 1-D arrays, compressed as it lies; some are views. O(blocks)."""
        table = b"" if self._alphabet is None else self._alphabet.table
        found = {"hot": bytes_of(self._hot[: self._n_hot]), "table": np.frombuffer(table, np.uint8)}
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
        dtype, precision = dtype_of(header["dtype"]), header["precision"]
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
        self._hot = array_of(buffers["hot"], kind).reshape(self._n_hot, *self.shape)
        self._sealed = within(header["sealed"], n_blocks * per)
        self._train_at, self._changes = within(header["train_at"], 0), within(header["changes"], 0)
        if alphabet is not None:
            lowest, highest = map(operator.index, alphabet)
            within(highest - lowest, 0, MOST_SYMBOLS - 1)
            if dtype.kind not in "iub":
                raise ValueError(f"a coder of {dtype}")
            self._alphabet = Alphabet(lowest, highest, array_of(buffers["table"], np.dtype(np.uint8)).tobytes())
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
