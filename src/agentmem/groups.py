"""HistoryGroup: a history for each of many agents, sealed together.

    block | block | ... | recent rows       a row of numbers a step

Recent rows lie as they are; a block of them is coded column by column, or packed some agents at a time.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from agentmem._core import CoreCoder, CoreLanes
from agentmem.arena import Arena
from agentmem.budget import Account, Budget
from agentmem.codecs import CHANGED, MOST_SYMBOLS, coder_of, numbers_of, pack, symbols_of, unpack
from agentmem.footprint import footprint
from agentmem.frames import (
    Frames,
    array_like,
    array_of,
    bytes_of,
    checked,
    damaged,
    narrowest,
    same_kind,
    within,
)

ENOUGH = 1 << 16    # numbers that a coder is made of at most
MOST_STEPS = 32     # in a block
RETRAIN = 8         # times as many symbols as a coder was made of are coded before the next one is made
PLAIN_AGENTS = 128  # that are packed together where an entropy coder does not fit


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
        given = array_like(row, self.dtype)
        if given.shape != (self.n_agents,):
            raise ValueError(f"row of shape {given.shape} given; expected ({self.n_agents},)")
        row = self._narrow(checked(given, self.dtype))
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
        return row.astype(narrowest(int(row.min()), int(row.max()), self.dtype) if integers else self.dtype)

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
        found = {"hot": bytes_of(self._hot_rows())}
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
        rows = array_of(buffers["hot"], same_kind(header["hot"], self.dtype)).reshape(-1, self.n_agents)
        within(len(rows), int(bool(header["parts"])), self._steps)
        self._hot = [self._narrow(row) for row in checked(rows, self.dtype)]
        shape = self._steps, self.n_agents
        for k, head in enumerate(header["parts"]):
            arrays = {name.removesuffix(f".{k}"): made for name, made in buffers.items() if name.endswith(f".{k}")}
            if head.keys() == {"dtype"}:
                self._parts.append(_Plain.from_buffers(shape, same_kind(head["dtype"], self.dtype), arrays))
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
        return arena.buffers() | {"table": bytes_of(coder.table)} | known

    @classmethod
    def from_buffers(
        cls, shape: tuple[int, int], header: dict[str, Any], buffers: dict[str, NDArray[Any]], hot: Frames | None
    ) -> _Coded:
        """`hot` follows the newest block, where no other part does."""
        made = cls.__new__(cls)
        made.lowest, made.highest = operator.index(header["lowest"]), operator.index(header["highest"])
        within(made.highest - made.lowest, 0, MOST_SYMBOLS - 1)
        n, made.learnt, made.after = made.n_symbols, within(header["learnt"], 0), None
        coder = CoreCoder.from_table(array_of(buffers["table"], np.dtype(np.uint16)).reshape(n, n))
        made.lanes = _lanes_of(coder, shape)
        if hot is not None:
            within(int(hot.min()) - made.lowest, 0)
            within(made.highest - int(hot.max()), 0)
            after = made.symbols_of(hot)
        else:
            after = made.after = array_of(buffers["after"], np.dtype(np.uint8))
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
