"""RecordHistory: a log of strings, dicts, tuples and whatever else, equal ones kept once, dicts by columns.

    records   form of each, and its place there
    texts     distinct records as msgpack, deflated together              for what has no columns
    tables    one for each shape of dict: a column per key                numbers as HistoryBuffers, the rest as texts
"""

from __future__ import annotations

import operator
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableSequence, Sequence
from hashlib import blake2b
from itertools import islice
from typing import Any, Self, overload

import numpy as np
from numpy.typing import NDArray

from agentmem.arena import Arena
from agentmem.budget import Account, Budget, unpaid
from agentmem.footprint import footprint
from agentmem.frames import damaged, within
from agentmem.history import HistoryBuffer

RECENT = 64           # distinct texts that a new one is compared with
TEXTS = 256           # texts that are deflated together at most
TEXT_BYTES = 1 << 14  # about, of these
GONE = 64             # records that go at the front together: their blocks are decoded for it
COLUMN_BYTES = 1_500  # about what a new column takes
TEXT_COSTS = 200      # and a recent text beside its bytes
ROWS = 256            # numbers of a column that are sealed together
MOST_TABLES = 255     # shapes of dicts with columns of their own
TUPLE, INTEGER, NUMPY = 1, 2, 3  # msgpack's extension types

COLUMNS: dict[type, Any] = {bool: np.bool_, int: np.int64, float: np.float64}
PLAIN = type(None), bool, int, float, str, bytes, list, tuple, dict, np.ndarray
KINDS: dict[str, type] = {kind.__name__: kind for kind in PLAIN}
KINDS |= {char: np.dtype(char).type for char in np.typecodes["All"] if char not in "SUVOMm"}
NAMES = {kind: name for name, kind in KINDS.items()}

Buffers = dict[str, NDArray[Any]]


class RecordHistory(MutableSequence[Any]):
    """A log of records of any kind, like the list it replaces; what goes in comes out equal, with its types.

    Parameters
    ----------
    maxlen : int or None
        How many are kept; the oldest go first. None: all.
    schema : mapping of str to type, optional
        Keys of the dicts that will come, and `bool`, `int`, `float` or another type for each: where all records must
        be such dicts. None: whatever comes, shapes of dicts are found.
    budget : Budget, optional
        Is charged for what is held and room to grow. Its `on_short` may let records go. Copies, and what comes back
        from a file, charge none.

    Raises
    ------
    TypeError
        A record that cannot be kept, by key and type; or, with a schema, one that is otherwise. Nothing has changed.
    BudgetExceeded
        No room for a record. Nothing has changed.

    Notes
    -----
    Records are None, bools, ints, floats, strings, bytes, NumPy numbers and arrays without objects, and lists, tuples
    and dicts of these. An int stays an int, a tuple a tuple, -0.0 is not 0.0. Equal ones among the last are kept once;
    dicts of one shape lie in typed columns. What comes out is new: changing it does not change the log. `append` takes
    10 us for a string to 50 us for a dict; `log[i]` as much for a recent record, 0.2 to 1 ms for an older one, whose
    blocks are decoded. One writer.

    All that a list does, it does, but for ``*``: the oldest go fast (``del log[:k]``, ``log.pop(0)``), and so does
    ``log.pop()``; what changes a record within encodes those after it anew, 30 to 80 us
    each. Where one is refused, nothing has
    changed. As a list's, an iterator meets what is appended meanwhile.

    Examples
    --------
    >>> import agentmem as am
    >>> log = am.RecordHistory()
    >>> for t in range(10_000):
    ...     log.append({"type": "move", "x": t % 50, "to": "home" if t % 7 else "away", "at": 0.5 * t})
    >>> log[7]
    {'type': 'move', 'x': 7, 'to': 'away', 'at': 3.5}
    >>> len(log), log.nbytes < 6 * 10_000
    (10000, True)
    """

    __slots__ = (
        "__weakref__", "_account", "_cut_off", "_forms", "_gone", "_places", "_shapes", "_tables", "_texts", "_went",
        "maxlen", "schema",
    )  # fmt: skip

    def __init__(
        self,
        maxlen: int | None = None,
        *,
        schema: Mapping[str, type] | None = None,
        budget: Budget | None = None,
    ) -> None:
        if maxlen is not None and not hasattr(maxlen, "__index__"):
            given = type(maxlen).__name__
            raise TypeError(f"maxlen of type {given} given; expected an int or None (`extend` takes records)")
        self.maxlen = None if maxlen is None else operator.index(maxlen)
        if self.maxlen is not None and self.maxlen < 0:
            raise ValueError(f"maxlen={maxlen} given; expected at least 0, or None")
        self.schema = None if schema is None else dict(schema)
        for key, kind in (self.schema or {}).items():
            if type(key) is not str or kind not in NAMES:
                raise TypeError(f"{key!r}: {kind!r} given; expected a key, and a type of what records hold")
        self._account: Account | None = None
        self._begin()
        if budget is not None:
            self._account = Account(budget, self)

    def _begin(self) -> None:
        """Without a record."""
        self._forms = _numbers(np.uint8)   # 0: a text, k: of the table k - 1
        self._places = _numbers(np.int64)  # which text or row
        self._texts = _Texts()
        self._tables: list[_Table] = []
        self._shapes: dict[Any, int] = {}
        self._gone = 0                     # of the oldest records held: those that count no more
        self._went = 0                     # records that were let go since the budget was told
        self._cut_off = 0                  # records that went at the end, whose texts may be here

    # ---- in

    def append(self, record: Any) -> None:
        """Add a record; where there are `maxlen` already, the oldest goes."""
        self._add(record)
        self._let_go()

    def extend(self, records: Iterable[Any]) -> None:
        """Add records; none of them if one is refused."""
        self._replace(len(self), self[:] if records is self else records)

    def insert(self, i: int, record: Any) -> None:
        """Add a record before the i-th. O(records from there on)."""
        first = slice(operator.index(i), None).indices(len(self))[0]
        self._replace(first, [record, *self[first:]])

    def _add(self, record: Any) -> None:
        if self.schema is not None:
            self._check(record)
        shape = None
        if type(record) is dict and record and all(type(key) is str for key in record):
            shape = tuple((key, type(value)) for key, value in record.items())
        k, table, values = self._prepared(record, shape)
        if self._account is not None:
            n_new = 0 if k or table is None else len(values)
            nbytes = n_new * COLUMN_BYTES + sum(TEXT_COSTS + len(v) if type(v) is bytes else 16 for v in values)
            if self._account.take(nbytes, self):  # the budget may have called what changes the log
                k, table, values = self._prepared(record, shape)
        if table is not None and not k:
            self._tables.append(table)
            k = self._shapes[shape] = len(self._tables)
        place = self._texts.append(values[0]) if table is None else table.append(values)
        self._forms.append(k)
        self._places.append(place)

    def _prepared(self, record: Any, shape: Any) -> tuple[int, _Table | None, list[Any]]:
        """The form, the table, which may be a new one, and what goes into it."""
        k = self._shapes.get(shape, 0) if shape else 0
        table = self._tables[k - 1] if k else None
        if shape and table is None and len(self._tables) < MOST_TABLES:
            table = _Table(shape)
        return k, table, [encoded(record)] if table is None else table.encoded(record)

    def _check(self, record: Any) -> None:
        assert self.schema is not None
        if type(record) is not dict or list(record) != list(self.schema):
            raise TypeError(f"{_short(record)} given; expected a dict with the keys {list(self.schema)}")
        for key, kind in self.schema.items():
            if type(record[key]) is not kind:
                raise TypeError(f"key {key!r}: {type(record[key]).__name__} given; expected {kind.__name__}")

    # ---- out of it, and otherwise

    def __delitem__(self, i: int | slice) -> None:
        wanted = self._positions(i)
        if not wanted:
            return
        first, last = min(wanted), max(wanted) + 1
        whole = len(wanted) == last - first
        if whole and first == 0:
            self._forget(last)
        elif whole and last == len(self):
            self._cut(first)
        else:
            self._replace(first, [record for k, record in enumerate(self[first:], first) if k not in wanted])
        if self._account is not None and isinstance(i, slice):
            with unpaid(self):  # and give back; of a few records, most bytes are of what went
                if len(self) <= ROWS:
                    self._replace(0, self[:])

    @overload
    def __setitem__(self, i: int, record: Any) -> None: ...

    @overload
    def __setitem__(self, i: slice, record: Iterable[Any]) -> None: ...

    def __setitem__(self, i: int | slice, record: Any) -> None:
        wanted = self._positions(i)
        if isinstance(i, slice):
            records = self[:]
            records[i] = record
            first = min([max(0, i.indices(len(self))[0]), *wanted])
            self._replace(first, records[first:])
        else:
            self._replace(wanted[0], [record, *self[wanted[0] + 1 :]])

    def pop(self, i: int = -1) -> Any:
        """Take a record out, and return it."""
        record = self[i]
        del self[i]
        return record

    def clear(self) -> None:
        """Let all go."""
        self._cut(0)

    def reverse(self) -> None:
        """The last first. O(n)."""
        self._replace(0, self[::-1])

    def sort(self, *, key: Callable[[Any], Any] | None = None, reverse: bool = False) -> None:
        """As a list's. O(n log n)."""
        self._replace(0, sorted(self, key=key, reverse=reverse))

    def copy(self) -> Self:
        """A log of its own with the same records."""
        return self.from_buffers(self.header, self.buffers())

    def __add__(self, records: Iterable[Any]) -> Self:
        """A new log: these records, and those."""
        if not isinstance(records, RecordHistory | list):
            return NotImplemented
        made = self.copy()
        made.extend(records)
        return made

    def __radd__(self, records: list[Any]) -> list[Any]:
        return [*records, *self] if isinstance(records, list) else NotImplemented

    def _positions(self, i: int | slice) -> range:
        """Of the records that are meant."""
        n = len(self)
        if isinstance(i, slice):
            return range(n)[i]
        k = operator.index(i)
        if not -n <= k < n:
            raise IndexError(f"record {k} given; there are {n}")
        return range(k % n, k % n + 1)

    def _replace(self, first: int, records: Iterable[Any]) -> None:
        """Have these behind the first records; where one is refused, those that were there."""
        before, added = self[first:], 0
        self._cut(first)
        try:
            for record in records:
                self._add(record)
                added += 1
        except BaseException:
            with unpaid(self):
                self._cut(max(0, len(self) - added))
                for record in before:
                    self._add(record)
            raise
        self._let_go()

    def _cut(self, n: int) -> None:
        """Let go of all records but the n oldest."""
        self._went += len(self) - n
        if n == 0:  # and of what columns have become of shapes that came
            self._begin()
            self._settle()
            return
        kept = n + self._gone
        forms, counts = np.unique(self._forms[kept:], return_counts=True)
        for k, count in zip(forms.tolist(), counts.tolist(), strict=True):
            if k:
                self._tables[k - 1].cut(count)
        self._cut_off += len(self) - n
        self._forms._cut(kept)
        self._places._cut(kept)
        if self._cut_off > n + TEXTS:  # or their texts would stay
            records = self[:]
            with unpaid(self):
                self._begin()
                for record in records:
                    self._add(record)
        self._settle()

    def _settle(self) -> None:
        """Give back to the budget where much has gone."""
        if self._account is not None and self._went * 8 >= len(self):
            self._account.settle(self.nbytes)
            self._went = 0

    def _let_go(self) -> None:
        """Let the oldest go where there are more than `maxlen`."""
        if self.maxlen is not None and len(self) > self.maxlen:
            self._forget(len(self) - self.maxlen)

    def _forget(self, n: int) -> None:
        """Count the n oldest records out; sooner or later let them go, and what no other needs."""
        self._gone += n
        if self._gone < GONE and n == 1:
            return
        self._went += self._gone
        n, self._gone = self._gone, 0
        forms, places = self._forms[:n], self._places[:n]
        for k in np.unique(forms).tolist():
            chosen = places[forms == k]
            if k:
                self._tables[k - 1].forget(len(chosen))
            else:
                self._texts.forget_before(int(chosen.max()) + 1 - RECENT)
        self._forms._forget(n)
        self._places._forget(n)
        self._settle()

    # ---- out

    def __len__(self) -> int:
        return len(self._forms) - self._gone

    @overload
    def __getitem__(self, i: int) -> Any: ...

    @overload
    def __getitem__(self, i: slice) -> list[Any]: ...

    def __getitem__(self, i: int | slice) -> Any:
        """A record; for a slice, a list of them."""
        if isinstance(i, slice):
            wanted = range(len(self))[i]
            if not wanted:
                return []
            first, last = min(wanted[0], wanted[-1]), max(wanted[0], wanted[-1]) + 1
            found = self._span(first, last)
            return [found[k - first] for k in wanted]
        k = self._positions(i)[0] + self._gone
        form, place = int(self._forms[k]), int(self._places[k])
        return self._tables[form - 1].row(place) if form else decoded(self._texts[place])

    def _span(self, first: int, last: int) -> list[Any]:
        held = slice(first + self._gone, last + self._gone)
        forms, places = self._forms[held], self._places[held]
        out: list[Any] = [None] * (last - first)
        for k in np.unique(forms).tolist():
            where = np.flatnonzero(forms == k)
            found = self._tables[k - 1].rows(places[where]) if k else map(decoded, self._texts.get(places[where]))
            for at, record in zip(where.tolist(), found, strict=True):
                out[at] = record
        return out

    def __iter__(self) -> Iterator[Any]:
        at = 0
        while at < len(self):
            records = self[at : at + ROWS]
            at += len(records)
            yield from records

    def __reversed__(self) -> Iterator[Any]:
        for last in range(len(self), 0, -ROWS):
            yield from self[max(0, last - ROWS) : last][::-1]

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """Where the first such record is. ValueError where there is none."""
        first, last, _ = slice(start, stop).indices(len(self))
        for k, record in enumerate(islice(self, first, max(first, last)), first):
            if record == value:
                return k
        raise ValueError(f"{_short(value)} is not in the log")

    def __eq__(self, other: object) -> bool:
        """Whether records are those of another log or list."""
        if not isinstance(other, RecordHistory | list):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    # ---- one protocol: a header and named arrays

    @property
    def header(self) -> dict[str, Any]:
        """What `from_buffers` needs beside the buffers; JSON can hold it."""
        schema = None if self.schema is None else [[key, NAMES[kind]] for key, kind in self.schema.items()]
        shapes: list[list[list[Any]]] = [[] for _ in self._tables]
        for shape, k in self._shapes.items():
            shapes[k - 1] = [[key, NAMES.get(kind, "")] for key, kind in shape]
        return {
            "maxlen": self.maxlen, "schema": schema, "shapes": shapes, "gone": self._gone,
            "tables": [table.header for table in self._tables], "forms": self._forms.header,
            "places": self._places.header, "texts": self._texts.header,
        }  # fmt: skip

    def buffers(self) -> Buffers:
        """The content as named 1-D arrays, compressed as it lies; some are views. O(blocks)."""
        parts = {"forms": self._forms, "places": self._places, "texts": self._texts}
        tables = {str(k): table for k, table in enumerate(self._tables)}
        return _joined(parts) | _joined(tables)

    @classmethod
    def from_buffers(cls, header: dict[str, Any], buffers: Buffers) -> Self:
        """The log that `header` and `buffers` were taken from; copies. O(bytes + records), no text is decoded.

        Raises ValueError for what no log can be; reading raises it for texts that no record can have become.
        """
        with damaged("log"):
            made = cls.__new__(cls)
            made._restore(header, _split(buffers))
            return made

    def _restore(self, header: dict[str, Any], parts: dict[str, Buffers]) -> None:
        schema = header["schema"]
        schema = None if schema is None else {key: KINDS[kind] for key, kind in schema}
        RecordHistory.__init__(self, header["maxlen"], schema=schema)
        self._forms = _numbers_from(np.uint8, header["forms"], parts["forms"])
        self._places = _numbers_from(np.int64, header["places"], parts["places"])
        self._texts = _Texts.from_buffers(header["texts"], parts["texts"])
        for k, (head, shape) in enumerate(zip(header["tables"], header["shapes"], strict=True)):
            self._tables.append(_Table.from_buffers(head, _split(parts[str(k)])))
            known = tuple((key, KINDS.get(kind)) for key, kind in shape)
            if known and [key for key, _ in known] != self._tables[-1]._keys:
                raise ValueError(f"keys {known} of a table of {self._tables[-1]._keys}")
            self._shapes[known] = k + 1
        within(len(self._tables), 0, MOST_TABLES)
        self._gone = within(header["gone"], 0, min(GONE - 1, n := len(self._forms)))
        within(len(self), 0, n if self.maxlen is None else self.maxlen)
        within(len(self._places), n, n)
        forms, places = self._forms[:], self._places[:]
        within(int(forms.max(initial=0)), 0, len(self._tables))
        self._texts.check(places[forms == 0])
        for k, table in enumerate(self._tables, 1):
            if not np.array_equal(places[forms == k], np.arange(table._first, table._n)):
                raise ValueError("records of other rows than there are")

    def __reduce_ex__(self, protocol: Any) -> Any:
        return type(self).from_buffers, (self.header, self.buffers())

    @property
    def nbytes(self) -> int:
        """All bytes held, every object counted."""
        return footprint(self, ignore=Budget).total

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} records, nbytes={self.nbytes})"


def _numbers(dtype: Any) -> HistoryBuffer:
    """A column, which has many beside it: so it seals early."""
    column = HistoryBuffer(None, dtype=dtype)
    column._per_block = ROWS
    return column


def _numbers_from(dtype: Any, header: dict[str, Any], buffers: Buffers) -> HistoryBuffer:
    column = HistoryBuffer.from_buffers(header, buffers)
    if (column.dtype, column.shape, column.maxlen, column.precision) != (dtype, (), None, None):
        raise ValueError(f"a column {column!r}; expected one of {np.dtype(dtype)}")
    return column


def _joined(parts: Mapping[str, Any]) -> Buffers:
    """The arrays of several parts under names of their own."""
    return {f"{part}/{name}": found for part in parts for name, found in parts[part].buffers().items()}


def _split(buffers: Buffers) -> dict[str, Buffers]:
    """The arrays of each part that `_joined` put together."""
    parts: dict[str, Buffers] = {}
    for key, found in buffers.items():
        part, _, name = key.partition("/")
        parts.setdefault(part, {})[name] = found
    return parts


class _Table:
    """Dicts with the same keys in the same order, and values of the same types: a column for each key."""

    __slots__ = ("_columns", "_first", "_keys", "_n")

    def __init__(self, shape: Sequence[tuple[str, type]]) -> None:
        self._keys = [key for key, _ in shape]
        self._columns: list[HistoryBuffer | _Column] = [
            _numbers(COLUMNS[kind]) if kind in COLUMNS else _Column() for _, kind in shape
        ]
        self._first = self._n = 0  # rows that are gone, rows ever

    @property
    def header(self) -> dict[str, Any]:
        columns = [column.header for column in self._columns]
        return {"keys": self._keys, "columns": columns, "first": self._first, "n": self._n}

    def buffers(self) -> Buffers:
        return _joined({str(k): column for k, column in enumerate(self._columns)})

    @classmethod
    def from_buffers(cls, header: dict[str, Any], parts: dict[str, Buffers]) -> _Table:
        made = cls([])
        made._keys, heads = header["keys"], header["columns"]
        if not heads or not len({key for key in made._keys if type(key) is str}) == len(made._keys) == len(heads):
            raise ValueError(f"{len(heads)} columns for the keys {made._keys}")
        made._first, made._n = within(header["first"], 0), within(header["n"], header["first"])
        for k, head in enumerate(heads):
            if "texts" in head:
                column: HistoryBuffer | _Column = _Column.from_buffers(head, _split(parts[str(k)]))
            else:
                dtype = {np.dtype(kind).str: kind for kind in COLUMNS.values()}[head["dtype"]]
                column = _numbers_from(dtype, head, parts[str(k)])
            within(len(column), n := made._n - made._first, n)
            made._columns.append(column)
        return made

    def encoded(self, record: dict[str, Any]) -> list[Any]:
        """For `append`: numbers, and texts of all else."""
        return [
            encoded(value, key) if isinstance(column, _Column) else value
            for (key, value), column in zip(record.items(), self._columns, strict=True)
        ]

    def append(self, texts: list[Any]) -> int:
        """The place of a new row."""
        for k, (value, column) in enumerate(zip(texts, self._columns, strict=True)):
            if isinstance(column, HistoryBuffer) and type(value) is int and not -(2**63) <= value < 2**63:
                self._columns[k] = _Column.of(column)
                texts[k] = encoded(value)
        for value, column in zip(texts, self._columns, strict=True):
            column.append(value)
        self._n += 1
        return self._n - 1

    def forget(self, n: int) -> None:
        """Let the n oldest rows go."""
        for column in self._columns:
            column._forget(n)
        self._first += n

    def cut(self, n: int) -> None:
        """Let the n newest rows go."""
        self._n -= n
        for column in self._columns:
            column._cut(self._n - self._first)

    def row(self, place: int) -> dict[str, Any]:
        values = [column[place - self._first] for column in self._columns]
        return {
            key: value if isinstance(column, _Column) else value.item()
            for key, value, column in zip(self._keys, values, self._columns, strict=True)
        }

    def rows(self, places: Any) -> Iterator[dict[str, Any]]:
        if not len(places):
            return
        places = places - self._first
        first, last = int(places.min()), int(places.max()) + 1
        columns = [column[first:last] for column in self._columns]
        values = [column.tolist() if isinstance(column, np.ndarray) else column for column in columns]
        for place in (places - first).tolist():
            yield {key: column[place] for key, column in zip(self._keys, values, strict=True)}


class _Column:
    """Values of any kind: which of its texts each is."""

    __slots__ = ("_places", "_texts")

    def __init__(self) -> None:
        self._places = _numbers(np.int64)
        self._texts = _Texts()

    @classmethod
    def of(cls, numbers: HistoryBuffer) -> _Column:
        column = cls()
        for number in numbers:
            column.append(encoded(int(number)))
        return column

    @property
    def header(self) -> dict[str, Any]:
        return {"places": self._places.header, "texts": self._texts.header}

    def buffers(self) -> Buffers:
        return _joined({"places": self._places, "texts": self._texts})

    @classmethod
    def from_buffers(cls, header: dict[str, Any], parts: dict[str, Buffers]) -> _Column:
        made = cls()
        made._places = _numbers_from(np.int64, header["places"], parts["places"])
        made._texts = _Texts.from_buffers(header["texts"], parts["texts"])
        made._texts.check(made._places[:])
        return made

    def __len__(self) -> int:
        return len(self._places)

    def append(self, text: bytes) -> None:
        self._places.append(self._texts.append(text))

    def _forget(self, n: int) -> None:
        self._texts.forget_before(int(self._places[:n].max()) + 1 - RECENT)
        self._places._forget(n)

    def _cut(self, n: int) -> None:
        self._places._cut(n)

    def __getitem__(self, rows: int | slice) -> Any:
        """A value; for a slice, a list of them."""
        if not isinstance(rows, slice):
            return decoded(self._texts[int(self._places[rows])])
        places = self._places[rows]
        unique, which = np.unique(places, return_inverse=True)
        texts = list(self._texts.get(unique))
        return [decoded(texts[k]) for k in which.tolist()]  # each a value of its own


class _Texts:
    """Byte strings, numbered as they come; one that is among the last distinct ones keeps its number."""

    __slots__ = ("_blocks", "_first", "_firsts", "_hot", "_n", "_recent")

    def __init__(self) -> None:
        self._blocks = Arena()
        self._firsts = array("q")  # number of the first text of each block
        self._first = 0            # and of the first recent one
        self._hot: list[bytes] = []
        self._n = 0                # bytes of them
        self._recent: dict[bytes, int] = {}  # numbers of the last distinct ones, by digest

    def append(self, text: bytes) -> int:
        """Its number."""
        digest = _digest(text)
        known = self._recent.get(digest)
        if known is not None:
            return known
        number = self._first + len(self._hot)
        self._hot.append(text)
        self._n += len(text)
        self._recent[digest] = number
        if len(self._recent) > RECENT:
            del self._recent[next(iter(self._recent))]
        if self._n > TEXT_BYTES or len(self._hot) == TEXTS:
            self._seal()
        return number

    def _seal(self) -> None:
        lengths = np.array([len(self._hot), *map(len, self._hot)], "<u4").tobytes()
        self._blocks.append(zlib.compress(lengths + b"".join(self._hot)))
        self._firsts.append(self._first)
        self._first += len(self._hot)
        self._hot, self._n = [], 0

    def __getitem__(self, number: int) -> bytes:
        return next(self.get(np.array([number]))) if number < self._first else self._hot[number - self._first]

    def get(self, numbers: Any) -> Iterator[bytes]:
        block = None
        for number in numbers.tolist():
            if number >= self._first:
                yield self._hot[number - self._first]
                continue
            k = bisect_right(self._firsts, number) - 1
            if k != block:
                block, texts = k, self._unpacked(k)
            yield texts[number - self._firsts[k]]

    def _unpacked(self, k: int) -> list[bytes]:
        n = (self._firsts[k + 1] if k + 1 < len(self._firsts) else self._first) - self._firsts[k]
        unpacker, head = zlib.decompressobj(), 4 * n + 4
        with damaged("texts"):
            data = unpacker.decompress(self._blocks[k], head)
            lengths = np.frombuffer(data, "<u4", n + 1)
            ends = np.cumsum(lengths[1:], dtype=np.int64).tolist()
            data = unpacker.decompress(unpacker.unconsumed_tail, ends[-1] + 1)
            if lengths[0] != n or len(data) != ends[-1] or not unpacker.eof or unpacker.unused_data:
                raise ValueError(f"texts of {len(data)} bytes; expected {n} of {ends[-1]}")
        return [data[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]

    @property
    def header(self) -> dict[str, Any]:
        return {"first": self._first}

    def buffers(self) -> Buffers:
        return self._blocks.buffers() | {
            "firsts": np.array(self._firsts, np.int64),
            "hot": np.frombuffer(b"".join(self._hot), np.uint8),
            "hot_lengths": np.array(list(map(len, self._hot)), np.int64),
        }

    @classmethod
    def from_buffers(cls, header: dict[str, Any], buffers: Buffers) -> _Texts:
        made, firsts, lengths = cls(), buffers["firsts"], buffers["hot_lengths"]
        made._blocks, made._first = Arena.from_buffers(buffers), within(header["first"], 0, 2**62)
        if firsts.dtype != np.int64 or len(firsts) != len(made._blocks) or int(firsts.min(initial=0)) < 0:
            raise ValueError(f"{firsts.dtype} {firsts.shape} for {len(made._blocks)} blocks")
        in_block = np.diff(firsts, append=made._first)
        if len(firsts) and not 0 < int(in_block.min()) <= int(in_block.max()) <= TEXTS:
            raise ValueError(f"{in_block.min()} to {in_block.max()} texts in a block")
        data = buffers["hot"].tobytes()
        made._n = len(data)
        within(len(lengths), 0, TEXTS - 1)
        if lengths.dtype != np.int64 or int(lengths.min(initial=0)) < 0 or sum(lengths.tolist()) != made._n:
            raise ValueError(f"{len(lengths)} {lengths.dtype} lengths of texts of {made._n} bytes")
        made._firsts = array("q", firsts.tolist())
        ends = np.cumsum(lengths).tolist()
        made._hot = [data[end - n : end] for end, n in zip(ends, lengths.tolist(), strict=True)]
        end = made._first + len(lengths)
        recent = np.arange(max(made._oldest, end - RECENT), end)
        made._recent = {_digest(text): number for text, number in zip(made.get(recent), recent.tolist(), strict=True)}
        return made

    @property
    def _oldest(self) -> int:
        return self._firsts[0] if len(self._firsts) else self._first

    def check(self, numbers: NDArray[Any]) -> None:
        """ValueError unless there are texts of all these numbers."""
        if len(numbers):
            within(int(numbers.min()), self._oldest)
            within(int(numbers.max()), 0, self._first + len(self._hot) - 1)

    def forget_before(self, number: int) -> None:
        """Let blocks go of which all texts have lower numbers."""
        while len(self._firsts) and (self._firsts[1] if len(self._firsts) > 1 else self._first) <= number:
            self._blocks.drop()
            del self._firsts[0]


def _digest(text: bytes) -> bytes:
    return blake2b(text, digest_size=16).digest()


# ---- one record as bytes


def encoded(record: Any, key: str | None = None) -> bytes:
    """With msgpack. TypeError that names the key and the type of what cannot be."""
    import msgpack  # type: ignore[import-untyped]

    expected = "numbers, strings, bytes, None, or lists, tuples and dicts of these"
    for where, value in _refused(record, "" if key is None else f"[{key!r}]"):  # msgpack takes some, as something else
        raise TypeError(f"record{where}: {type(value).__name__} given; expected {expected}")
    try:
        return bytes(msgpack.packb(record, default=_extended, strict_types=True))
    except (TypeError, ValueError, OverflowError) as error:  # a lone surrogate, too many levels
        raise TypeError(f"record{'' if key is None else f'[{key!r}]'}: {error}") from error


def decoded(data: bytes) -> Any:
    import msgpack

    with damaged("record"):
        return msgpack.unpackb(data, ext_hook=_restored, strict_map_key=False, use_list=True)


def _extended(value: Any) -> Any:
    """What msgpack does not know."""
    import msgpack

    if type(value) is tuple:
        return msgpack.ExtType(TUPLE, encoded(list(value)))
    if type(value) is int:
        return msgpack.ExtType(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))
    if isinstance(value, np.generic) or type(value) is np.ndarray:
        array = np.asarray(value)
        kinds = "?biufc" if isinstance(value, np.generic) else "?biufcSU"  # a string scalar loses zeros at its end
        if not array.dtype.hasobject and array.dtype.names is None and array.dtype.kind in kinds:
            shape = None if isinstance(value, np.generic) else list(array.shape)
            return msgpack.ExtType(NUMPY, encoded([array.dtype.str, shape, array.tobytes()]))
    raise TypeError(type(value).__name__)


def _restored(code: int, data: bytes) -> Any:
    if code == TUPLE:
        return tuple(decoded(data))
    if code == INTEGER:
        return int.from_bytes(data, "little", signed=True)
    kind, shape, content = decoded(data)
    array = np.frombuffer(content, np.dtype(kind))
    return array[0] if shape is None else array.reshape(shape).copy()


def _refused(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Where in a record there is what cannot be encoded."""
    if type(value) is dict:
        for key, part in value.items():
            yield from _refused(key, f"{where} key")
            yield from _refused(part, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for k, part in enumerate(value):
            yield from _refused(part, f"{where}[{k}]")
    elif value is not None and type(value) not in (bool, int, float, str, bytes):
        try:
            _extended(value)
        except TypeError:
            yield where, value


def _short(record: Any) -> str:
    text = repr(record)
    return text if len(text) < 60 else text[:57] + "..."
