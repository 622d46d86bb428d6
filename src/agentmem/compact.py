"""compact: find what an agent holds, put our containers in its place where that saves bytes, and say what was done.

    walk -> what it holds -> plan: a replacement of each, equal -> reserve -> swap all, or nothing

What is stored in attributes, slots, lists, dicts and object arrays is read where it lies and put back there: no
property, `__setattr__` or frozen dataclass takes part.
"""

from __future__ import annotations

import math
import operator
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import MemberDescriptorType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agentmem.array import SparseArray
from agentmem.belief import SparseBelief
from agentmem.budget import Budget
from agentmem.footprint import footprint, in_units
from agentmem.groups import HistoryGroup
from agentmem.history import HistoryBuffer
from agentmem.model import Model
from agentmem.observations import ObservationBuffer
from agentmem.population import Population
from agentmem.records import RecordHistory
from agentmem.scratch import Scratch
from agentmem.sharing import ModelPool
from agentmem.spill import Handle, Lazy, Spill
from agentmem.trajectory import FilterResult, Trajectory

LARGE = 4096  # bytes; smaller arrays stay, and are not spoken of, but for beliefs
LONG = 64  # entries of a log, states of a belief
DEEP = 16  # levels of lists, tuples and dicts in a record
ROW_TOLERANCE = 1e-5  # as `Model`'s
WORTH = 0.9  # of an array's bytes at most for a sparse one: below, it would cost time for nothing
WIDTH = 100  # of the report
ALONE = 3  # references to the owner of an array that only the array holds: that, a name, and the question

OURS = (
    SparseArray, Model, FilterResult, Trajectory, Population, HistoryBuffer, HistoryGroup, RecordHistory,
    ObservationBuffer, Budget, Scratch, ModelPool, Spill, Handle, Lazy,
)  # fmt: skip
PRUNING = "relative", "absolute", "mass", "max_states"  # of `SparseBelief.prune`
RECORDS = frozenset({type(None), bool, int, float, complex, str, bytes})


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that an agent holds."""

    path: str  # as in ``agent.model.B[0]``; of several, the first
    was: str
    now: str
    bytes_before: int
    bytes_after: int  # none for what shares with another
    note: str = ""
    pruned_mass: float = 0.0  # share of a belief


@dataclass(frozen=True, slots=True)
class Compaction:
    """What `compact` did, or would do; `dataclasses.asdict` makes JSON of it, `str` a table. All figures are bytes.

    Attributes
    ----------
    rows : tuple of Row
        What was swapped.
    left : tuple of Row
        What takes 4 KiB or more and stays as it is, with the reason in `note`.
    bytes_before, bytes_after : int
        Of both.
    """

    rows: tuple[Row, ...]
    left: tuple[Row, ...]
    bytes_before: int
    bytes_after: int

    def __str__(self) -> str:
        swapped = [(row.path, row.was, row.now, in_units(row.bytes_before), in_units(row.bytes_after), row.note)
                   for row in self.rows]  # fmt: skip
        left = [(row.path, row.was, "left alone", *2 * [in_units(row.bytes_before)], row.note) for row in self.left]
        total = ("in all", "", "", in_units(self.bytes_before), in_units(self.bytes_after), "")
        return _table([("", "was", "is", "before", "after", ""), *swapped, *left, total])


def compact(
    agent: Any,
    *,
    prune: float | Mapping[str, Any] | None = None,
    budget: Budget | None = None,
    pool: ModelPool | None = None,
    dry_run: bool = False,
) -> Compaction:
    """Swap what an agent holds for equal containers of fewer bytes, in place; its own code goes on working.

    =====================================================  =======================================================
    ndarray of 64 or more floats that sum to 1: a belief   `SparseBelief`
    other ndarray of 4 KiB or more                         `SparseArray`; a stochastic matrix goes into the `pool`
    list or ``deque(maxlen)`` of 64 or more records        `RecordHistory`
    `Model`                                                the equal one in the `pool`
    =====================================================  =======================================================

    Records are None, numbers, strings, and tuples and dicts of these.

    Parameters
    ----------
    agent : object
        Anything made of attributes, slots, lists, dicts, tuples, object arrays; a list of agents. What is held twice is
        swapped once, and held twice again.
    prune : float or mapping, optional
        What may go of beliefs: entries below this share of the largest, or options of `SparseBelief.prune`. None: all
        numbers stay. Beliefs that were filtered with noise hardly have zeros: 1e-8 drops next to nothing of them.
    budget : Budget, optional
        Is charged for all new containers, each under its path, before anything is swapped, and paid back as they go;
        not for what they grow by.
    pool : ModelPool, optional
        Makes equal models and stochastic matrices (over the last axis or the first, two or three axes) one object,
        which is READ-ONLY: writing into one raises ValueError.
    dry_run : bool
        Change nothing, and tell what would be.

    Returns
    -------
    Compaction
        ``print(report)`` shows a table.

    Raises
    ------
    BudgetExceeded
        Agent and budget are as they were.
    ValueError, TypeError
        Options that do not fit, or a rule of `prune` that would drop all of a belief. The agent is as it was.

    Notes
    -----
    Each replacement has been compared to what it replaces; -0.0 becomes 0.0. Left alone, with the reason in the report:
    what would not be smaller; views, and arrays that others in the agent are views of; memory maps, subclasses of
    arrays, lists, deques and dicts (but what is in the latter three is seen to); arrays of complex numbers; deques
    without `maxlen`; lists of lists, as tables are; what a tuple holds; arrays of other libraries, scipy's too. What
    classes, modules and functions hold is not looked at.

    `*`, `/` and their in-place forms, comparisons with what is above zero, `np.sqrt` and the like give sparse arrays;
    ``belief @ matrix``, `np.roll`, `np.clip`, sums along an axis give ndarrays. Write such results into the belief
    (``agent.belief[...] = ...``) rather than in its place, and it stays small; or compact again.

    What the agent's code must not rely on: views of an array that is swapped, and ``x is y`` of something outside the
    agent (give both as ``compact([agent, world])``). Slices of sparse arrays are copies, elements of them take
    microseconds. A record comes out as a copy: write ``e = log[-1]; e["x"] = 1; log[-1] = e``. A log is no `list` to
    `isinstance` and `json` (`list(log)` is), and has no `popleft`, `appendleft` and `rotate` of a deque.

    Peak memory is that of the agent before and after and up to four times its largest array, ten times where `prune` is
    other than relative. Some 10 ns a cell, 40 us a record, 10 us any other object. No other thread may use the agent
    meanwhile.

    Examples
    --------
    >>> import numpy as np, agentmem as am
    >>> class Robot:
    ...     def __init__(self):
    ...         self.belief = np.zeros(100_000)
    ...         self.belief[:5] = 0.2
    ...         self.log = [{"type": "move", "x": t % 5} for t in range(2_000)]
    >>> robot = Robot()
    >>> report = am.compact(robot)
    >>> robot.belief.nnz, robot.log[7], report.bytes_before > 50 * report.bytes_after
    (5, {'type': 'move', 'x': 2}, True)
    """
    if isinstance(agent, type | ModuleType) or type(agent) in RECORDS:
        kind_given = type(agent).__name__
        raise TypeError(f"agent of type {kind_given} given; expected an object with attributes, a list or a dict")
    rules = _rules(prune)
    for name, given, kind in (("budget", budget, Budget), ("pool", pool, ModelPool)):
        if given is not None and not isinstance(given, kind):
            raise TypeError(f"{name} of type {type(given).__name__} given; expected an agentmem.{kind.__name__}")
    swaps, left = _plan(agent, rules, pool)
    if not dry_run:
        charged = _reserve(swaps, budget)
        try:
            _swap(swaps)
        except BaseException:
            for pay_back in charged:
                pay_back()
            raise
    rows = tuple(swap.row for swap in swaps)
    before, after = (sum(getattr(row, name) for row in (*rows, *left)) for name in ("bytes_before", "bytes_after"))
    return Compaction(rows, tuple(left), before, after)


def _rules(prune: float | Mapping[str, Any] | None) -> dict[str, Any]:
    """Options of `SparseBelief.prune`; none for no pruning."""
    if prune is None:
        return {}
    rules = dict(prune) if isinstance(prune, Mapping) else {"relative": prune}
    expected = f"a share of the largest entry, from 0 to below 1, or a dict of {', '.join(PRUNING)}"
    if not all(name in PRUNING and isinstance(rule, int | float | np.number) and type(rule) is not bool
               for name, rule in rules.items()):  # fmt: skip
        raise TypeError(f"prune={prune!r} given; expected {expected}")
    try:
        SparseBelief.point(1, 0).prune(**rules)
    except ValueError as error:
        raise ValueError(f"prune={prune!r} given; expected {expected}") from error
    return rules


# ---- what an agent holds


class _Place(NamedTuple):
    """Where something is stored: ``put(holder, key, value)`` stores another there. No `put`: it cannot be changed."""

    put: Callable[[Any, Any, Any], object] | None
    holder: Any
    key: Any


@dataclass(slots=True)
class _Held:
    path: str
    value: Any
    places: list[_Place] = field(default_factory=list)


def _walk(agent: Any) -> tuple[list[_Held], dict[int, str]]:
    """What may be swapped or is large, each once; and what others are views of, by id, with the path of one."""
    held: dict[int, _Held] = {}
    seen: dict[int, Any] = {}  # with the objects: ids are unique among the living
    viewed: dict[int, str] = {}
    ways: dict[type, _Way] = {}
    stack: list[tuple[Any, str, _Place]] = [(agent, "agent", _Place(None, None, None))]
    while stack:
        value, path, place = stack.pop()
        if id(value) in held:
            held[id(value)].places.append(place)
        if id(value) in seen:
            continue
        seen[id(value)] = value
        for owner in _owners(value):
            viewed.setdefault(id(owner), path)
        if isinstance(value, memoryview):
            viewed.setdefault(id(value.obj), path)
        kind = type(value)
        way = ways[kind] if kind in ways else ways.setdefault(kind, _way_into(kind))
        if way.is_whole or (way.is_open and _is_whole(value)):
            held[id(value)] = _Held(path, value, [place])
        elif way.is_open:
            stack.extend([(part, path + step, where) for part, step, where in _parts(value, way.slots)][::-1])
    return [*held.values()], viewed


class _Way(NamedTuple):
    """Whether objects of a type are swapped or left as a whole, whether what is in them is seen to, and their slots."""

    is_whole: bool
    is_open: bool
    slots: tuple[MemberDescriptorType, ...] = ()


def _way_into(kind: type) -> _Way:
    if issubclass(kind, Model) or _is_foreign(kind):
        return _Way(True, False)
    if issubclass(kind, (ModuleType, type, MethodType, *OURS)) or hasattr(kind, "__globals__"):  # functions have these
        return _Way(False, False)
    members = [member for base in kind.__mro__ if "__slots__" in vars(base) for member in vars(base).values()]
    return _Way(False, True, tuple(member for member in members if isinstance(member, MemberDescriptorType)))


def _is_foreign(kind: type) -> bool:
    """Whether it is an array of another library, which has compiled code of its own."""
    is_array = any(hasattr(kind, name) for name in ("__array__", "__array_interface__", "tocoo"))
    return is_array and not issubclass(kind, (np.ndarray, *OURS))


def _is_whole(value: Any) -> bool:
    """Whether it is swapped or left as a whole; else what is in it is seen to."""
    if isinstance(value, np.ndarray):
        return type(value) is not np.ndarray or value.dtype != object
    if type(value) in (list, deque):
        return len(value) >= LONG and all(_is_record(entry, DEEP) for entry in value)
    return not isinstance(value, dict | list | deque | tuple | set | frozenset) and sys.getsizeof(value, 0) >= LARGE


def _is_record(value: Any, levels: int) -> bool:
    """Whether it is all numbers, strings, and lists, tuples and dicts of these."""
    kind = type(value)
    if kind in RECORDS or issubclass(kind, np.generic):
        return True
    if kind not in (list, tuple, dict) or not levels:
        return False
    parts = (*value, *value.values()) if kind is dict else value
    return all(_is_record(part, levels - 1) for part in parts)


def _parts(value: Any, slots: tuple[MemberDescriptorType, ...]) -> Iterator[tuple[Any, str, _Place]]:
    """What is in an object, how its path goes on, and where it is stored. Single numbers and short strings are not."""
    if isinstance(value, dict):
        yield from _stored(dict.items(value), dict.__setitem__, value, _key)
    elif isinstance(value, list):
        yield from _stored(enumerate(list.__iter__(value)), list.__setitem__, value, _at)
    elif isinstance(value, deque):
        yield from _stored(enumerate(deque.__iter__(value)), deque.__setitem__, value, _at)
    elif isinstance(value, tuple | set | frozenset):
        yield from _stored(enumerate(value), None, value, _at)
    elif isinstance(value, np.ndarray):
        # A place is given by all its axes: NumPy would spread an array over what it took for more than one.
        put = np.ndarray.__setitem__ if value.flags.writeable and value.ndim else None
        yield from _stored(((at, value[at]) for at in np.ndindex(value.shape)), put, value, _at)
    for slot in slots:
        with suppress(AttributeError):  # it is empty
            yield from _stored([(slot, slot.__get__(value))], _put_slot, value, _dot)
    if type(value).__dictoffset__:
        attributes = object.__getattribute__(value, "__dict__")
        yield from _stored(dict.items(attributes), dict.__setitem__, attributes, _dot)


def _stored(
    items: Iterable[tuple[Any, Any]],
    put: Callable[[Any, Any, Any], object] | None,
    holder: Any,
    step: Callable[[Any], str],
) -> Iterator[tuple[Any, str, _Place]]:
    for key, part in items:
        is_small = type(part) in RECORDS or isinstance(part, np.generic)
        if not is_small or sys.getsizeof(part) >= LARGE:
            yield part, step(key), _Place(put, holder, key)


def _put_slot(holder: Any, member: MemberDescriptorType, value: Any) -> None:
    member.__set__(holder, value)


def _dot(name: Any) -> str:
    return f".{name.__name__ if isinstance(name, MemberDescriptorType) else name}"


def _at(index: int | tuple[int, ...]) -> str:
    return f"[{index if isinstance(index, int) else ', '.join(map(str, index))}]"


def _key(key: Any) -> str:
    text = repr(key) if _is_record(key, DEEP) else type(key).__name__
    return f"[{text if len(text) <= 40 else text[:37] + '...'}]"


# ---- the plan


def _bytes_of(value: Any, counted: set[int]) -> int:
    """What a thing takes, with the memory that it views, but for what was counted before."""
    owner = [value, *_owners(value)][-1]
    if id(owner) in counted:
        return 0
    counted.add(id(owner))
    return footprint(value).total


def _owners(value: Any) -> Iterator[Any]:
    """What an array is a view of, and that in turn."""
    while isinstance(value, np.ndarray) and value.base is not None:
        value = value.base
        if not isinstance(value, np.ndarray) and isinstance(getattr(value, "base", None), np.ndarray):
            value = value.base  # behind what `as_strided` puts in between
        yield value


class _New(NamedTuple):
    """What takes a thing's place, or None; a note, or why not; whether it was made for it, and may be others' too."""

    value: Any
    note: str = ""
    pruned_mass: float = 0.0
    is_new: bool = True
    is_shared: bool = False


class _Swap(NamedTuple):
    row: Row
    thing: _Held
    new: Any


def _plan(agent: Any, rules: dict[str, Any], pool: ModelPool | None) -> tuple[list[_Swap], list[Row]]:
    """What to swap, with what, and what is left. Nothing has changed yet."""
    held, viewed = _walk(agent)
    swaps: list[_Swap] = []
    left: list[Row] = []
    counted: set[int] = set()  # owners of memory
    shared: dict[int, str] = {}  # where what is in the pool was first met
    for thing in held:
        value, path, was = thing.value, thing.path, _name(thing.value)
        before = _bytes_of(value, counted)
        why = _why_not(thing, viewed)
        new = _New(None, why) if why else _replacement(value, path, rules, pool)
        first = shared.setdefault(id(new.value), path) if new.is_shared else path
        if new.value is value:
            continue
        after = 0 if new.value is None or not new.is_new else footprint(new.value).total
        if new.value is not None and (new.is_shared or after < before):
            note = new.note if first == path else f"shared with {first}"
            now = "ndarray, read-only" if isinstance(new.value, np.ndarray) else _name(new.value)
            row = Row(path, was, now, before, after, note, new.pruned_mass)
            swaps.append(_Swap(row, thing, new.value))
        elif max(before, getattr(value, "nbytes", 0)) >= LARGE:
            left.append(Row(path, was, was, before, before, new.note or "no fewer bytes"))
    return swaps, left


def _why_not(thing: _Held, viewed: dict[int, str]) -> str:
    """Why a thing stays as it is, whatever its content; nothing where it need not."""
    value = thing.value
    if not isinstance(value, Model | np.ndarray | list | deque):
        return "an array of another library" if _is_foreign(type(value)) else "of no kind that could be swapped"
    if isinstance(value, np.ndarray):
        if type(value) is not np.ndarray:
            return "a memory map" if isinstance(value, np.memmap) else "a subclass of ndarray"
        if not (value.dtype.kind in "biuf" and value.itemsize <= 8 and value.dtype.isnative):
            return f"{value.dtype} is no number that a SparseArray keeps"
        if not _is_locked(value):
            if id(value) in viewed:
                return f"{viewed[id(value)]} is a view of it"
            if _is_seen_elsewhere(value):
                return "a view of memory that others hold"
    elif type(value) is deque and value.maxlen is None:
        return "a queue: a deque without maxlen"
    elif isinstance(value, list | deque) and any(type(entry) is list for entry in value):
        return "its entries are lists, which code may change in place"
    if any(place.put is None for place in thing.places):
        return "the agent itself" if thing.path == "agent" else "a tuple, a set or a read-only array holds it"
    return ""


def _is_locked(array: NDArray[Any]) -> bool:
    """Whether nobody can write to its memory."""
    *arrays, memory = array, *_owners(array)
    return isinstance(memory, bytes) and not any(one.flags.writeable for one in arrays)


def _is_seen_elsewhere(array: NDArray[Any]) -> bool:
    """Whether it is a view of memory that others refer to; ``np.arange(6).reshape(2, 3)`` has its alone."""
    owner = array.base
    while owner is not None:
        if type(owner) not in (np.ndarray, bytearray) or sys.getrefcount(owner) > ALONE:
            return True
        array, owner = owner, getattr(owner, "base", None)
    return False


def _replacement(value: Any, path: str, rules: dict[str, Any], pool: ModelPool | None) -> _New:
    if isinstance(value, np.ndarray):
        return _sparse(value, path, rules, pool)
    if not isinstance(value, Model):
        return _log(value)
    return _New(value) if pool is None else _shared(value, pool)


def _shared(value: Any, pool: ModelPool) -> _New:
    kept, is_new = pool._take(value)
    return _New(kept, "shared", is_new=is_new, is_shared=True)


def _sparse(array: NDArray[Any], path: str, rules: dict[str, Any], pool: ModelPool | None) -> _New:
    is_belief = _is_belief(array)
    if not is_belief and array.nbytes < LARGE:
        return _New(None)
    new: SparseArray
    kept, dropped, note = array, 0.0, ""
    if is_belief and [*rules] == ["relative"]:
        # As `SparseBelief.prune`, whose float64 copies would take ten times the bytes of a full belief.
        is_small = array < rules["relative"] * array.max()
        dropped = float(array[is_small].sum(dtype=np.float64) / array.sum(dtype=np.float64))
        kept = np.where(is_small, array.dtype.type(0), array)
    new = SparseBelief(kept) if is_belief else SparseArray(kept)
    if not _equal(new.to_dense(), kept):
        return _New(None, "came back otherwise")
    if isinstance(new, SparseBelief) and rules:
        try:
            if kept is array:
                dropped = new.prune(**rules)
            elif dropped:
                new.normalize()
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        new.pruned_mass = dropped
        note = f"without {dropped:.2g} of its mass" if dropped else ""
    is_smaller = new.nbytes <= WORTH * array.nbytes
    if pool is not None and not is_belief and _is_stochastic(array):
        return _shared(new if is_smaller else array, pool)
    if not is_smaller:
        return _New(None)
    new.setflags(write=array.flags.writeable)
    return _New(new, note, dropped)


def _log(entries: list[Any] | deque[Any]) -> _New:
    log = RecordHistory(entries.maxlen if isinstance(entries, deque) else None)
    try:
        log.extend(entries)
    except TypeError as error:  # names the entry that cannot be kept
        return _New(None, str(error))
    is_same = len(log) == len(entries) and all(map(operator.eq, map(repr, log), map(repr, entries)))  # types, NaN too
    return _New(log) if is_same else _New(None, "came back otherwise")


def _is_belief(array: NDArray[Any]) -> bool:
    """Whether the cells are masses of a distribution, up to the rounding of sums of so many."""
    if array.dtype not in (np.float32, np.float64) or array.size < LONG:
        return False
    with np.errstate(invalid="ignore", over="ignore"):
        off = abs(float(array.sum(dtype=np.float64)) - 1)
        return bool(off <= 4 * np.finfo(array.dtype).eps * math.sqrt(array.size) and array.min() >= 0)


def _is_stochastic(array: NDArray[Any]) -> bool:
    """Whether it is matrices of which all rows, or all columns of pymdp's layout, sum to 1."""
    if array.dtype not in (np.float32, np.float64) or array.ndim not in (2, 3) or min(array.shape) < 1:
        return False
    with np.errstate(invalid="ignore", over="ignore"):
        sums = (array.sum(axis=axis, dtype=np.float64) for axis in (-1, 0))
        return bool(array.min() >= 0) and any(bool((abs(total - 1) <= ROW_TOLERANCE).all()) for total in sums)


def _equal(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether they hold the same numbers; NaN is NaN. In a quarter of the memory that `numpy.array_equal` takes."""
    return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


# ---- the swap


def _reserve(swaps: list[_Swap], budget: Budget | None) -> list[Callable[[], object]]:
    """Charge a budget for what is new, until that goes; return what pays it back before."""
    charged: list[Callable[[], object]] = []
    if budget is None:
        return charged
    try:
        for row, _, new in swaps:
            budget.reserve(row.bytes_after, row.path)
            finalizer = weakref.finalize(new, budget.release, row.bytes_after, row.path)
            finalizer.atexit = False
            charged.append(finalizer)
    except BaseException:
        for pay_back in charged:
            pay_back()
        raise
    return charged


def _swap(swaps: list[_Swap]) -> None:
    """Put everything in its place; where one fails, put back what was there, and raise."""
    done: list[tuple[_Place, Any]] = []
    try:
        for _, thing, new in swaps:
            for place in thing.places:
                assert place.put is not None
                done.append((place, thing.value))
                place.put(place.holder, place.key, new)
    except BaseException:
        for place, value in reversed(done):
            with suppress(Exception):  # the place that failed may do so again
                place.put(place.holder, place.key, value)
        raise


# ---- the words


def _name(value: Any) -> str:
    """What a thing is, in a few words."""
    kind = type(value).__name__
    if isinstance(value, np.ndarray):
        given = "" if type(value) is np.ndarray else f"{kind} "
        return f"{given}{value.dtype} {value.shape}"
    if isinstance(value, SparseArray):
        return f"{kind}, {value.storage}"
    if type(value) in (list, deque):
        kinds = {type(entry).__name__ for entry in value}
        return f"{kind}, {len(value):,} {kinds.pop() if len(kinds) == 1 else 'records'}"
    return kind


def _table(rows: list[tuple[str, ...]]) -> str:
    """Columns of text, sizes to the right; a long path is cut, and a long note has a line of its own."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    widths[0] = min(widths[0], max(20, WIDTH - sum(widths[1:]) - 2 * len(widths)))
    lines = []
    for path, was, now, before, after, note in rows:
        cells = [_cut(path, widths[0]).ljust(widths[0]), was.ljust(widths[1]), now.ljust(widths[2])]
        line = "  ".join([*cells, before.rjust(widths[3]), after.rjust(widths[4])])
        fits = len(line) + 2 + len(note) <= WIDTH
        lines += [f"{line}  {note}".rstrip()] if fits else [line.rstrip(), f"    {note}"]
    return "\n".join(lines)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width // 3]}...{text[len(text) - (width - width // 3 - 3) :]}"
