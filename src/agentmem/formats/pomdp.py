"""Cassandra's text format for POMDPs, read piece by piece into sparse rows.

The format is described at pomdp.org (POMDP file format, and its grammar). A file is a preamble, perhaps a start, and
statements that fill tables; of two statements about the same place the later one counts, and what no statement fills is
zero. `_core.Scanner` makes tokens of the text, `_Tokens` holds those of the moment, `_Reader` is the grammar, and a
`_Table` keeps what the statements wrote until it becomes a matrix.
"""

from __future__ import annotations

import os
import re
from array import array
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from io import RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import DTypeLike, NDArray

from agentmem._core import Scanner
from agentmem.errors import CorruptData
from agentmem.model import Model

if TYPE_CHECKING:
    from scipy.sparse import csr_array

PIECE = 1 << 18  # bytes of text that are tokens at the same time, at most 13 bytes of them for each
MOST = 2**31 - 1  # states, actions or observations
ANY, UNKNOWN = -1, -2  # what `*`, and what makes no sense, counts as among the indices

# Kinds of tokens: Scanner's, then those of the words that begin a section, and of the end of the file. Statements
# begin with the kinds T, O and R.
INTEGER, NUMBER, WORD, COLON, STAR, SECTION, END = b"inw:*s$"
SECTIONS = ("discount", "values", "states", "actions", "observations", "start")
OTHERS = ("reward", "cost", "uniform", "identity", "reset", "include", "exclude")  # words only where they are expected
KEYWORDS = ("T", "O", "R", *SECTIONS, *OTHERS)
KINDS = b"TOR" + b"s" * len(SECTIONS) + b"w" * len(OTHERS)
# Statements of one entry each, which are nearly all of a large file: taken many at a time.
ENTRIES = re.compile(rb"(?:(?:[TO]:[wi*]:[wi]:[wi]|R(?::[wi*]){4})[in](?=[TOR$]))++")
LONGEST = 11  # of their tokens, and the one behind


class Rewards(NamedTuple):
    """What a file pays, as it says it: one entry per place, or per set of places; the last that fits counts.

    Attributes
    ----------
    actions, starts, ends, observations : (n,) int32
        The action, the state it is taken in, the state it leads to, what is seen there. -1: any.
    values : (n,) float64
    """

    actions: NDArray[np.int32]
    starts: NDArray[np.int32]
    ends: NDArray[np.int32]
    observations: NDArray[np.int32]
    values: NDArray[np.float64]

    def at(self, action: int, start: int, end: int, observation: int) -> float:
        """The reward (or cost) of one place; 0.0 if no entry fits. O(n)."""
        fits = np.ones(len(self.values), dtype=bool)
        for given, asked in zip(self, (action, start, end, observation), strict=False):
            fits &= (given == asked) | (given == ANY)
        found = np.flatnonzero(fits)
        return float(self.values[found[-1]]) if len(found) else 0.0


class Pomdp(NamedTuple):
    """What a `.POMDP` file says.

    Attributes
    ----------
    model : Model
        Its transition and observation tables, and where it starts.
    discount : float
    values : {"reward", "cost"}
        What `rewards` are.
    states, actions, observations : tuple of str, or range
        Their names in the order of the indices; a range where the file gives a number of them.
    rewards : Rewards
    """

    model: Model
    discount: float
    values: str
    states: Sequence[Any]
    actions: Sequence[Any]
    observations: Sequence[Any]
    rewards: Rewards

    def expected_rewards(self) -> NDArray[np.float64]:
        """The reward (or cost) to expect of each action in each state, (n_actions, n_states).

        Means over the next state and what is seen there. O(entries of the transitions x log(entries of the rewards)),
        where rewards depend on the observation times the observations that a state can show; about 0.1 ms per state
        and action at least.
        """
        rewards, model = self.rewards, self.model
        expected = np.zeros((model.n_actions, model.n_states))
        places = np.stack([rewards.starts, rewards.ends, rewards.observations], axis=1).astype(np.int64)
        for action in range(model.n_actions):
            some = (rewards.actions == action) | (rewards.actions == ANY)
            if some.any():
                matrices = model.transition(action), model.observation(action)
                expected[action] = _expected(places[some], rewards.values[some], *matrices)
        return expected


def read_pomdp(
    path: str | os.PathLike[str], *, dtype: DTypeLike = np.float64, row_tolerance: float = 1e-5
) -> Pomdp:
    """Read a file in Cassandra's `.POMDP` format.

    Parameters
    ----------
    path : path of the file
    dtype : {float64, float32}
        Of the model.
    row_tolerance : float
        How far from 1 rows and the start may sum; rows within it are used as given, as in `Model`.

    Returns
    -------
    Pomdp
        The `model`, and what else the file says.

    Raises
    ------
    CorruptData
        The file is not such a file, or its rows do not sum to 1. One line: file, line, what was expected there, what
        was found. (A ValueError.)

    Notes
    -----
    The text is read piece by piece into sparse entries, 16 bytes each; no dense table is made, whatever form the file
    has. The peak is under 3 times the model, the model included; a million entries take about a second. Names may
    begin with a digit if they are no numbers.

    Examples
    --------
    >>> from pathlib import Path
    >>> from agentmem.formats import read_pomdp
    >>> written = Path("tiger.pomdp").write_text('''
    ... discount: 0.95
    ... values: reward
    ... states: left right
    ... actions: listen open
    ... observations: hear-left hear-right
    ... T: listen
    ... identity
    ... T: open
    ... uniform
    ... O: listen
    ... 0.85 0.15
    ... 0.15 0.85
    ... O: open
    ... uniform
    ... R: listen : * : * : * -1
    ... R: open : left : * : * -100
    ... R: open : right : * : * 10
    ... ''')
    >>> tiger = read_pomdp("tiger.pomdp")
    >>> belief = tiger.model.belief()
    >>> _ = belief.update(tiger.model, tiger.actions.index("listen"), tiger.observations.index("hear-left"))
    >>> tiger.states[belief.mode()], belief.max().round(6)
    ('left', np.float64(0.85))
    >>> tiger.expected_rewards()
    array([[  -1.,   -1.],
           [-100.,   10.]])
    """
    if not 0 <= row_tolerance < 1:
        raise ValueError(f"row_tolerance={row_tolerance!r} given; expected at least 0 and below 1")
    with Path(path).open("rb", buffering=0) as file:
        return _Reader(_Tokens(file, str(path)), row_tolerance).read(dtype)


class _Tokens:
    """The tokens of a file, a piece at a time: `kinds`, `values` and `lines` of those in hand, `at` the next one."""

    def __init__(self, file: RawIOBase, path: str) -> None:
        self.file, self.path = file, path
        self.scanner = Scanner({word.encode(): bytes([kind]) for word, kind in zip(KEYWORDS, KINDS, strict=True)})
        self.kinds = np.empty(0, np.uint8)
        self.values = np.empty(0)
        self.lines = np.empty(0, np.int32)
        self.at = 0
        self.is_first, self.is_all = True, False

    def more(self) -> None:
        """Forget the tokens before `at`, and take those of the next piece in hand; the last of all is of kind END."""
        piece = self.file.read(PIECE) or b""
        self.is_all = not piece
        if self.is_first:
            piece, self.is_first = piece.removeprefix(BOM_UTF8), False
        try:
            kinds, values, lines = self.scanner.scan(piece, last=self.is_all)
        except ValueError as error:
            raise self.error(f"expected text, found {error}", self.scanner.line) from None
        end = slice(0, int(self.is_all))
        self.kinds = np.concatenate([self.kinds[self.at :], kinds, np.array([END], np.uint8)[end]])
        self.values = np.concatenate([self.values[self.at :], values, np.zeros(1)[end]])
        self.lines = np.concatenate([self.lines[self.at :], lines, np.array([self.scanner.line], np.int32)[end]])
        self.at = 0

    def kind(self, ahead: int = 0) -> int:
        """The kind of the next token, or of one behind it."""
        while self.at + ahead >= len(self.kinds):
            if self.is_all:
                return END
            self.more()
        return int(self.kinds[self.at + ahead])

    def value(self) -> float:
        """Of the next token: a number, or that of a word."""
        self.kind()
        return float(self.values[self.at])

    def line(self) -> int:
        """Of the next token."""
        self.kind()
        return int(self.lines[self.at])

    def keyword(self) -> str:
        """The next token, if it is a word of the format, else nothing."""
        is_word = self.kind() in (WORD, SECTION, *b"TOR") and self.value() < len(KEYWORDS)
        return KEYWORDS[int(self.value())] if is_word else ""

    def accept(self, *kinds: int) -> bool:
        """Take the next token if it is of one of these kinds; whether it was."""
        met = self.kind() in kinds
        self.at += met
        return met

    def expect(self, kind: int, what: str) -> None:
        """Take the next token, which must be of this kind."""
        if not self.accept(kind):
            self.fail(what)

    def numbers(
        self, count: int, of: str, least: float, most: float
    ) -> Iterator[tuple[int, NDArray[np.float64], NDArray[np.int32]]]:
        """Take `count` numbers, in parts: how many came before, the numbers, their lines."""
        taken = 0
        while taken < count:
            self.kind()
            kinds = self.kinds[self.at : self.at + count - taken]
            others = np.flatnonzero((kinds != INTEGER) & (kinds != NUMBER))
            n = int(others[0]) if len(others) else len(kinds)
            part = slice(self.at, self.at + n)
            values, lines = self.values[part], self.lines[part]
            wrong = np.flatnonzero(~((values >= least) & (values <= most)))
            if len(wrong) or n == 0:
                self.at += int(wrong[0]) if len(wrong) else 0
                place = f", number {taken + self.at - part.start + 1:,} of {count:,}" if count > 1 else ""
                self.fail(f"{of}{place}")
            self.at += n
            yield taken, values, lines
            taken += n

    def fail(self, what: str) -> NoReturn:
        """Raise the error that the next token is not what was expected."""
        kind = self.kind()
        if kind in (INTEGER, NUMBER):
            found = f"{self.value():.12g}"
        elif kind == END:
            found = "the end of the file"
        elif kind in (WORD, SECTION, *b"TOR"):
            text = list(self.scanner.words)[int(self.value())].decode(errors="backslashreplace")
            found = repr(text if len(text) <= 40 else text[:40] + "...")
        else:
            found = repr(chr(kind))
        raise self.error(f"expected {what}, found {found}", self.line())

    def error(self, what: str, line: int) -> CorruptData:
        return CorruptData(f"{self.path}:{line}: {what}")


class _Space(NamedTuple):
    """What the names and numbers in one place of a statement stand for: states, actions or observations."""

    what: str
    names: Sequence[Any]
    of_word: NDArray[np.int32]  # the index of the one that a word names, UNKNOWN for other words

    def indices(self, kinds: NDArray[np.uint8], values: NDArray[np.float64]) -> NDArray[np.int32]:
        """The index that each token stands for; ANY and UNKNOWN are below zero."""
        found = np.full(len(values), UNKNOWN, np.int32)
        numbers = (kinds == INTEGER) & (values < len(self.names))
        found[numbers] = values[numbers]
        words = (kinds == WORD) & (values < len(self.of_word))
        found[words] = self.of_word[values[words].astype(np.intp)]
        found[kinds == STAR] = ANY
        return found


class _Table:
    """The entries of one matrix in the order they were written; of those for the same cell the last counts."""

    __slots__ = ("columns", "lines", "rows", "shape", "since", "values")

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        self.rows, self.columns, self.values = array("i"), array("i"), array("d")  # these grow without a second copy
        self.lines: NDArray[np.int32] | None = None  # by row, the line that wrote to it last; 0: none did
        self.since: NDArray[np.int64] | None = None  # by row, the first entry that counts; None: all do

    def copy(self) -> _Table:
        copied = _Table(self.shape)
        copied.rows, copied.columns, copied.values = self.rows[:], self.columns[:], self.values[:]
        copied.lines = None if self.lines is None else self.lines.copy()
        copied.since = None if self.since is None else self.since.copy()
        return copied

    def mark(self, rows: Any, lines: Any) -> None:
        """Say which lines write to rows."""
        if self.lines is None:
            self.lines = np.zeros(self.shape[0], np.int32)
        self.lines[rows] = lines

    def put(self, rows: Any, columns: Any, values: Any, lines: Any) -> None:
        """Write to cells. Each argument is an array, or holds for all."""
        self.mark(rows, lines)
        _append((self.rows, self.columns, self.values), rows, columns, values)

    def put_row(self, row: int, cells: NDArray[np.float64], line: int) -> None:
        """Write to all cells of a row: what was written to it before counts no more."""
        if self.lines is not None and self.lines[row]:
            if self.since is None:
                self.since = np.zeros(self.shape[0], np.int64)
            self.since[row] = len(self.rows)
        columns = np.flatnonzero(cells)
        self.put(row, columns, cells[columns], line)

    def put_rows(self, cells: NDArray[np.float64], line: int) -> None:
        """Write the same to every row of a new table."""
        columns, n_rows = np.flatnonzero(cells), self.shape[0]
        self.put(
            np.repeat(np.arange(n_rows, dtype=np.int32), len(columns)),
            np.tile(columns.astype(np.int32), n_rows),
            np.tile(cells[columns], n_rows),
            line,
        )

    def to_csr(self) -> csr_array:
        """The matrix. Empties the table step by step, since memory is shortest here."""
        from scipy.sparse import csr_array

        n_rows, n_columns = self.shape
        rows = np.frombuffer(self.rows, np.int32)
        counts = None if self.since is None else np.flatnonzero(np.arange(len(rows)) >= self.since[rows])
        cells = rows.astype(np.int64)
        del rows
        self.rows = array("i")
        cells *= n_columns
        cells += np.frombuffer(self.columns, np.int32)
        self.columns = array("i")
        values = np.frombuffer(self.values)
        self.values = array("d")
        if counts is not None:
            cells, values = cells[counts], values[counts]
        if not (cells[1:] > cells[:-1]).all():
            values = values[np.argsort(cells, kind="stable")]
            cells.sort()
            is_last = np.append(cells[1:] != cells[:-1], True)
            if not is_last.all():
                cells, values = cells[is_last], values[is_last]
        offsets = np.searchsorted(cells, np.arange(n_rows + 1) * n_columns)
        cells %= n_columns
        small = np.int32 if len(cells) <= MOST else np.int64  # scipy takes the wider of the two for both
        return csr_array((values, cells.astype(np.int32), offsets.astype(small)), shape=self.shape)


class _Reader:
    """The grammar: takes tokens, writes tables."""

    def __init__(self, tokens: _Tokens, row_tolerance: float) -> None:
        self.tokens, self.row_tolerance = tokens, row_tolerance
        self.most = 1 + row_tolerance  # that one entry may be
        self.facts: dict[str, Any] = {}  # discount and values
        self.spaces: dict[str, _Space] = {}  # by what they hold: states, actions, observations
        self.start: NDArray[np.float64] | None = None  # uniform
        self.tables: dict[str, list[_Table]] = {}  # of T and O, by action; several actions may share one
        self.places: dict[str, tuple[_Space, ...]] = {}  # what stands between the colons of T, O and R
        self.rewards = tuple(array(kind) for kind in "iiiid")

    def read(self, dtype: DTypeLike) -> Pomdp:
        self._preamble()
        while self.tokens.kind() != END:
            if not self._entries():
                self._statement()
        model = Model(
            self._matrices("T"), self._matrices("O"), self.start, dtype=dtype, row_tolerance=self.row_tolerance
        )
        actions, starts, ends, observations, values = (np.frombuffer(a, a.typecode) for a in self.rewards)
        return Pomdp(
            model=model,
            discount=self.facts["discount"],
            values=self.facts["values"],
            states=self.spaces["states"].names,
            actions=self.spaces["actions"].names,
            observations=self.spaces["observations"].names,
            rewards=Rewards(actions, starts, ends, observations, values),
        )

    # ---- the preamble

    def _preamble(self) -> None:
        tokens, met = self.tokens, set()
        while tokens.kind() == SECTION:
            section, line = tokens.keyword(), tokens.line()
            if section in met:
                raise tokens.error(f"expected {section}: once, found it again", line)
            if section == "start" and "states" not in met:
                tokens.fail("states: before start:")
            met.add(section)
            tokens.at += 1
            if section == "start":
                self._start()
                continue
            tokens.expect(COLON, f"':' after {section}")
            if section == "discount":
                [self.facts[section]] = self._probabilities(1, "a discount from 0 to 1", 1).tolist()
            elif section == "values":
                self.facts[section] = tokens.keyword()
                if self.facts[section] not in ("reward", "cost"):
                    tokens.fail("reward or cost")
                tokens.at += 1
            else:
                self.spaces[section] = self._names(section)
        for section in SECTIONS[:-1]:
            if section not in met:
                tokens.fail(f"{section}:")
        states, actions, observations = (self.spaces[of] for of in ("states", "actions", "observations"))
        self.places = {
            "T": (actions, states, states),
            "O": (actions, states, observations),
            "R": (actions, states, states, observations),
        }
        for letter in "TO":
            _, rows, columns = self.places[letter]
            self.tables[letter] = [_Table((len(rows.names), len(columns.names)))] * len(actions.names)

    def _names(self, section: str) -> _Space:
        tokens, what = self.tokens, section.removesuffix("s")
        if tokens.kind() == INTEGER:
            if not 1 <= tokens.value() <= MOST:
                tokens.fail(f"1 to {MOST:,} {section}")
            names = range(int(tokens.value()))
            tokens.at += 1
            return _Space(what, names, np.empty(0, np.int32))
        index_of: dict[int, int] = {}  # by the number of the word
        while tokens.kind() == WORD:
            if tokens.value() in index_of:
                tokens.fail(f"{section} of different names")
            index_of[int(tokens.value())] = len(index_of)
            tokens.at += 1
        if not index_of or tokens.kind() in (INTEGER, NUMBER):
            tokens.fail(f"how many {section} there are, or their names (not numbers)")
        words = list(tokens.scanner.words)
        of_word = np.full(len(words), UNKNOWN, np.int32)
        of_word[list(index_of)] = range(len(index_of))
        return _Space(what, tuple(words[word].decode(errors="backslashreplace") for word in index_of), of_word)

    def _start(self) -> None:
        tokens, states = self.tokens, self.spaces["states"]
        n_states = len(states.names)
        how = tokens.keyword()
        if how in ("include", "exclude"):
            tokens.at += 1
        tokens.expect(COLON, "':' after start, or include: or exclude:")
        if how not in ("include", "exclude"):
            if tokens.keyword() == "uniform":
                tokens.at += 1
                return
            is_state = tokens.kind() == INTEGER and tokens.value() < n_states and tokens.kind(1) not in b"in"
            if tokens.kind() != WORD and not is_state:
                self.start = self._probabilities(n_states, "the probability to start in each state")
                self._check_sum(float(self.start.sum()), "start", int(tokens.lines[tokens.at - 1]))
                return
        line = tokens.line()
        listed = np.zeros(n_states, dtype=bool)
        listed[self._index(states, or_any=False)] = True
        while tokens.kind() in (WORD, INTEGER):
            listed[self._index(states, or_any=False)] = True
        chosen = ~listed if how == "exclude" else listed
        if not chosen.any():
            raise tokens.error("expected a state to start in, found all of them excluded", line)
        self.start = chosen / chosen.sum()

    # ---- statements

    def _entries(self) -> bool:
        """Take the statements of one entry each that come next, but not one with anything wrong; whether any came."""
        tokens = self.tokens
        if len(tokens.kinds) - tokens.at < LONGEST and not tokens.is_all:
            tokens.more()
        met = ENTRIES.match(tokens.kinds.data, tokens.at)
        if met is None:
            return False
        first, end = met.span()
        found = {}
        for letter, spaces in self.places.items():
            heads = first + np.flatnonzero(tokens.kinds[first:end] == ord(letter))
            places = [
                space.indices(tokens.kinds[heads + 2 * k], tokens.values[heads + 2 * k])
                for k, space in enumerate(spaces, 1)
            ]
            values = tokens.values[heads + 2 * len(spaces) + 1]
            is_right = np.abs(values) < np.inf if letter == "R" else (values >= 0) & (values <= self.most)
            for place in places:
                is_right &= place != UNKNOWN
            end = min([end, *heads[~is_right][:1].tolist()])
            found[letter] = heads, places, values
        for letter, (heads, places, values) in found.items():
            n = int(np.searchsorted(heads, end))
            places, values, lines = [place[:n] for place in places], values[:n], tokens.lines[heads[:n]]
            if letter == "R":
                _append(self.rewards, *places, values)
            elif n:
                self._put_entries(letter, places, values, lines)
        tokens.at = end
        return end > first

    def _put_entries(
        self, letter: str, places: list[NDArray[np.int32]], values: NDArray[np.float64], lines: NDArray[np.int32]
    ) -> None:
        actions, rows, columns = places
        # Entries of one action and of all write to the same tables: their order counts, that of the actions does not.
        runs = np.flatnonzero(np.diff(actions == ANY)) + 1
        for run in map(slice, [0, *runs], [*runs, len(actions)]):
            order = run.start + np.argsort(actions[run], kind="stable")
            for some in np.split(order, np.flatnonzero(np.diff(actions[order])) + 1):
                for table in self._written(letter, int(actions[some[0]])):
                    table.put(rows[some], columns[some], values[some], lines[some])

    def _statement(self) -> None:
        """Take one statement of any form."""
        tokens = self.tokens
        letter, line = tokens.keyword(), tokens.line()
        if letter not in self.places:
            tokens.fail("a statement (T:, O: or R:)")
        tokens.at += 1
        tokens.expect(COLON, f"':' after {letter}")
        spaces = self.places[letter]
        places = [self._index(spaces[0])]
        while len(places) < len(spaces) and tokens.accept(COLON):
            places.append(self._index(spaces[len(places)]))
        if letter == "R":
            self._reward(places)
        elif len(places) == 1:
            self._matrix(letter, places[0], line)
        elif len(places) == 2:
            self._rows(letter, places[0], places[1], self._row(letter), line)
        else:
            action, row, column = places
            n_rows, n_columns = self.tables[letter][0].shape
            [value] = self._probabilities(1, "a probability")
            if column == ANY:
                self._rows(letter, action, row, np.full(n_columns, value), line)
            else:
                for table in self._written(letter, action):
                    table.put(np.arange(n_rows) if row == ANY else row, column, value, line)

    def _matrix(self, letter: str, action: int, line: int) -> None:
        """Take what fills all of a table: identity, a word for every row, or numbers."""
        tokens = self.tokens
        n_rows, n_columns = self.tables[letter][0].shape
        if tokens.keyword() == "identity":
            if n_rows != n_columns:
                tokens.fail(f"{n_rows} x {n_columns} probabilities or uniform")
            tokens.at += 1
            every = np.arange(n_rows)
            self._replaced(letter, action).put(every, every, 1.0, line)
        elif tokens.kind() == WORD:
            self._rows(letter, action, ANY, self._row(letter), line)
        else:
            table = self._replaced(letter, action)
            for before, values, lines in tokens.numbers(n_rows * n_columns, "a probability", 0, self.most):
                entries = np.flatnonzero(values)
                cells = before + entries
                table.put(cells // n_columns, cells % n_columns, values[entries], lines[entries])
                rows = np.arange(before // n_columns, (before + len(values) - 1) // n_columns + 1)
                ends = np.minimum((rows + 1) * n_columns - before, len(values)) - 1
                table.mark(rows, lines[ends])  # those of zeros too

    def _row(self, letter: str) -> NDArray[np.float64]:
        """Take a row: uniform, reset (as at the start), or numbers."""
        tokens = self.tokens
        n_columns = self.tables[letter][0].shape[1]
        word = tokens.keyword()
        if word == "uniform" or (word == "reset" and letter == "T"):
            tokens.at += 1
            return np.full(n_columns, 1 / n_columns) if word == "uniform" or self.start is None else self.start
        return self._probabilities(n_columns, "a probability")

    def _rows(self, letter: str, action: int, row: int, cells: NDArray[np.float64], line: int) -> None:
        """Write to all cells of a row, or of every row."""
        if row == ANY:
            self._replaced(letter, action).put_rows(cells, line)
        else:
            for table in self._written(letter, action):
                table.put_row(row, cells, line)

    def _written(self, letter: str, action: int) -> list[_Table]:
        """The tables that a statement on an action, or on all, writes to: none that another action has as well."""
        tables = self.tables[letter]
        if action == ANY:
            return list({id(table): table for table in tables}.values())
        if tables.count(tables[action]) > 1:
            tables[action] = tables[action].copy()
        return [tables[action]]

    def _replaced(self, letter: str, action: int) -> _Table:
        """A new table in place of an action's, or of all."""
        tables = self.tables[letter]
        new = _Table(tables[0].shape)
        if action == ANY:
            tables[:] = [new] * len(tables)
        else:
            tables[action] = new
        return new

    def _reward(self, places: list[int]) -> None:
        """Take what an action pays: a number, a row of them by observation, or a matrix by next state as well."""
        tokens = self.tokens
        if len(places) == 1:
            tokens.fail("':' and a state")
        n_observations = len(self.spaces["observations"].names)
        missing = 4 - len(places)
        count = (1, n_observations, len(self.spaces["states"].names) * n_observations)[missing]
        if missing:  # zeros, where what follows is not
            _append(self.rewards, *places, *[ANY] * missing, 0.0)
        largest = float(np.finfo(np.float64).max)
        for before, values, _ in tokens.numbers(count, "a finite number", -largest, largest):
            if not missing:
                _append(self.rewards, *places, values)
                continue
            entries = np.flatnonzero(values)
            cells = divmod(before + entries, n_observations)
            _append(self.rewards, *places, *cells[2 - missing :], values[entries])

    # ---- what statements are made of

    def _index(self, space: _Space, *, or_any: bool = True) -> int:
        """Take the name or the number of a thing, or `*`."""
        tokens = self.tokens
        tokens.kind()
        [found] = space.indices(tokens.kinds[tokens.at : tokens.at + 1], tokens.values[tokens.at : tokens.at + 1])
        if found == UNKNOWN or (found == ANY and not or_any):
            article = "an" if space.what[0] in "ao" else "a"
            name = "its name, or " if len(space.of_word) else ""
            star = ", or '*'" if or_any else ""
            tokens.fail(f"{article} {space.what}: {name}0 to {len(space.names) - 1}{star}")
        tokens.at += 1
        return int(found)

    def _probabilities(self, count: int, of: str, most: float | None = None) -> NDArray[np.float64]:
        """Take numbers from 0 to 1, or to the most given."""
        most = self.most if most is None else most
        return np.concatenate([values for _, values, _ in self.tokens.numbers(count, of, 0, most)])

    # ---- what comes of it

    def _matrices(self, letter: str) -> list[csr_array]:
        """One matrix per action, each row checked; the tables are empty after it."""
        actions, states, _ = self.places[letter]
        matrices: dict[int, csr_array] = {}
        for action, table in enumerate(self.tables[letter]):
            if id(table) in matrices:
                continue
            if len(table.values) < table.shape[0]:  # states may be too many to count rows
                written = np.unique(np.frombuffer(table.rows, np.int32))
                row, total = int(np.append(np.flatnonzero(written != np.arange(len(written))), len(written))[0]), 0.0
            else:
                matrix = matrices[id(table)] = table.to_csr()
                sums = np.asarray(matrix.sum(axis=1)).ravel()
                row = int(np.append(np.flatnonzero(np.abs(sums - 1) > self.row_tolerance), 0)[0])
                total = float(sums[row])
            line = 0 if table.lines is None else int(table.lines[row])
            of = f"{letter} of action {actions.names[action]!r}, state {states.names[row]!r}"
            self._check_sum(total, of, line or self.tokens.line())
        return [matrices[id(table)] for table in self.tables[letter]]

    def _check_sum(self, total: float, of: str, line: int) -> None:
        if abs(total - 1) > self.row_tolerance:
            raise self.tokens.error(
                f"expected {of} to sum to 1 within {self.row_tolerance:g}, found {total:.12g}", line
            )


def _append(arrays: Sequence[array[Any]], *fields: Any) -> None:
    """Add to each array what its field holds; a number stands for as many as the other fields have."""
    for kept, field in zip(arrays, np.broadcast_arrays(*map(np.atleast_1d, fields)), strict=True):
        kept.frombytes(field.astype(kept.typecode).view(np.uint8).data)


def _expected(
    places: NDArray[np.int64], values: NDArray[np.float64], transition: csr_array, observation: csr_array
) -> NDArray[np.float64]:
    """What one action pays on average in each state. `places`: state, next state, observation of each value."""
    n_states, n_observations = observation.shape
    if n_states**2 * n_observations >= 2**63:
        raise ValueError(f"{n_states} states and {n_observations} observations given: too many places to number")
    steps = np.array([n_states * n_observations, n_observations, 1])
    # Of the entries that leave the same fields open, at most one fits a place, the last that names it.
    patterns = []
    for is_open in np.unique(places == ANY, axis=0):
        entries = np.flatnonzero(((places == ANY) == is_open).all(axis=1))[::-1]
        weights = np.where(is_open, 0, steps)
        numbers, last = np.unique(places[entries] @ weights, return_index=True)
        patterns.append((weights, numbers, entries[last]))
    seen_matters = bool((places[:, 2] != ANY).any())
    expected = np.zeros(n_states)
    values = np.append(values, 0.0)  # where no entry fits: index -1
    for state in range(n_states):
        some = slice(transition.indptr[state], transition.indptr[state + 1])
        ends, chances = transition.indices[some], transition.data[some].astype(np.float64)
        shown = observation[ends]
        if seen_matters:
            n_shown = np.diff(shown.indptr)
            ends, chances, seen = np.repeat(ends, n_shown), np.repeat(chances, n_shown) * shown.data, shown.indices
        else:
            chances, seen = chances * shown.sum(axis=1), np.zeros_like(ends)
        found = np.full(len(ends), -1)
        for weights, numbers, entries in patterns:
            asked = state * weights[0] + ends * weights[1] + seen * weights[2]
            at = np.minimum(np.searchsorted(numbers, asked), len(numbers) - 1)
            found = np.maximum(found, np.where(numbers[at] == asked, entries[at], -1))
        expected[state] = chances @ values[found]
    return expected
