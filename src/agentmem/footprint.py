"""Footprint: how many bytes an object graph holds, by part, shared parts once.

One walk over what the garbage collector sees and what it does not: owners of array buffers, elements of
object arrays, keys of dicts, memory maps. Our containers are asked what all objects are asked, `__sizeof__`;
`buffers()` only gives names to their parts.
"""

from __future__ import annotations

import gc
import mmap
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from types import CodeType, EllipsisType, FrameType, MemberDescriptorType, ModuleType, NotImplementedType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agentmem._core import Ids, scratch_nbytes

ITSELF = "(itself)"  # the part of what has no name, the object's own header first
MAPPED = "(mapped)"  # the part of the file in which a container's arrays lie
MAX_PARTS = 10_000
NBYTES = np.ndarray.nbytes.__get__
Way = Callable[[Any], list[Any]]
Members = list[tuple[str, MemberDescriptorType]]

# These belong to the program: never counted, never entered.
PROGRAM = ModuleType, type, CodeType, FrameType, np.dtype, type(None), bool, EllipsisType, NotImplementedType

# Objects of types with this flag have attributes in a block that `__sizeof__` omits, pointer and byte each,
# up to Python 3.12 until somebody asks for their `__dict__`.
HAS_BLOCK, BLOCK_EXTRA = (1 << 4, 9) if sys.version_info < (3, 13) else (1 << 2, 17)


@dataclass(frozen=True, slots=True)
class Footprint:
    """What `footprint` found. All figures are bytes."""

    total: int
    parts: dict[str, int]  # sums to total
    mapped: int  # of the total: memory maps, which other processes may share
    scratch: int  # beside the total: workspaces of this process's kernels


def footprint(obj: object, *, ignore: type | tuple[type, ...] = ()) -> Footprint:
    """Count the bytes that an object keeps alive, everything once.

    Parameters
    ----------
    obj : object
        Anything: an agent, a container, a list or dict of agents.
    ignore : type or tuple of types
        Objects not to count or enter: loggers, say, or functions that numba compiled (they hold numba).

    Returns
    -------
    Footprint
        Parts are named by attribute, by key of a dict, by position (``"[0]"``), or as in `buffers()` of our
        containers. ``"(itself)"`` is what has no name, and all that follows the first 10,000 names. A second
        name for the same object does not appear.

    Notes
    -----
    What several parts share belongs to the first that reaches it, unless it is a part itself. To see a shared
    model apart, make it one: ``footprint({"model": model, "agents": agents})``.

    An array that borrows its buffer counts as a header, and the owner of the buffer whole, however small the
    view. Strings and numbers count once each, interned or not; a function with its closure and defaults, a
    bound method with its object, a weak reference without. Modules, classes, code, frames, dtypes and None,
    True and the like count nothing. Bytes are as asked of the allocator, touched or not. Not seen: what C
    code hides from `__sizeof__` or the garbage collector, `threading.local`, long strings of a `StringDType`, and some
    30 bytes of an object whose one attribute is a dict. An object whose `__sizeof__` raises counts as a plain one.

    About 1 us and 30 bytes of memory per object. Nothing changes, but CPython builds `obj.__dict__`
    when asked for the names. What other threads change meanwhile may be counted or not.

    Examples
    --------
    >>> import numpy as np
    >>> table = np.zeros(1000)
    >>> held = footprint({"table": table, "view": table[::2], "log": [table]})
    >>> held.parts["table"], held.parts["view"], held.parts["log"]
    (8112, 112, 64)
    """
    parts: dict[str, int] = {}
    walk = Walk(ignore)
    for _, part, nbytes in walk.over(obj):
        parts[part] = parts.get(part, 0) + nbytes
    return Footprint(sum(parts.values()), parts, walk.mapped, scratch_nbytes())


class Parts(list[tuple[str, object]]):
    """Names and values, to be walked over as one object that itself takes nothing: what several lead to belongs to the
    first of them, even if it is a value itself.
    """


class Walk:
    """A walk over what objects keep alive, to which nothing that it has met is new.

    Parameters
    ----------
    ignore : type or tuple of types
        As for `footprint`.
    met_again : callable, optional
        Is given what is reached another time.
    besides : Walk, optional
        What that one has met is passed over.

    Attributes
    ----------
    mapped : int
        Bytes of the memory maps that were met.
    """

    __slots__ = ("_ignore", "_kept", "_known", "_members", "_met_again", "_owners", "_seen", "_ways", "mapped")

    def __init__(
        self,
        ignore: type | tuple[type, ...] = (),
        *,
        met_again: Callable[[object], None] | None = None,
        besides: Walk | None = None,
    ) -> None:
        self._ignore, self._met_again = ignore, met_again
        self._ways: dict[type, Way | None] = {} if besides is None else besides._ways
        self._members: dict[type, Members] = {} if besides is None else besides._members
        self._seen = Ids()
        self._kept: list[object] = []  # ids are unique among the living
        self._known = Ids() if besides is None else besides._seen
        self._owners: dict[int, int] = {}  # bytes of what an array borrows, as far as a view showed it
        self.mapped = 0

    def over(self, obj: object) -> Iterator[tuple[object, str, int]]:
        """Each object that `obj` keeps alive and nobody met before, the part of `obj` it is in, and its bytes."""
        ways, seen, kept, known = self._ways, self._seen, self._kept, self._known
        owners, again = self._owners, self._met_again
        names: dict[int, tuple[str, object]] = {}
        stack: list[tuple[list[Any], str]] = [([obj], ITSELF)]
        if type(obj) is Parts:
            stack = [([value for _, value in obj[MAX_PARTS:]], ITSELF)]
            stack += (([value], name) for name, value in reversed(obj[:MAX_PARTS]))
        else:
            names[id(obj)] = ITSELF, obj
            kind = type(obj)
            if kind not in self._members:
                self._members[kind] = _members(kind)
            for name, value in islice(_named(obj, self._members[kind]), MAX_PARTS):
                names.setdefault(id(value), (name, value))
        while stack:
            found, inherited = stack.pop()
            below = []
            if 16 < len(found) < 10_000:  # a log repeats its entries
                found = list(dict(zip(map(id, found), found, strict=True)).values())
            for item in found:
                key = id(item)
                if key in seen:
                    if again is not None:
                        again(item)
                    continue
                kind = type(item)  # not isinstance: a proxy answers for the object behind it
                way = ways[kind] if kind in ways else ways.setdefault(kind, _way_into(kind, self._ignore))
                if way is None or key in known:
                    continue
                seen.add(key)
                kept.append(item)
                held = way(item)
                nbytes = _size(item)
                if way is _in_object and not (len(held) == 2 and type(held[0]) is dict):
                    nbytes += 8 * len(held) + (len(held) + BLOCK_EXTRA) // 8 * 8
                if way is _in_array:
                    owner = _owner(item)
                    omitted, before = _omitted(owner, NBYTES(item)), owners.get(id(owner), 0)
                    if omitted > before:
                        nbytes += omitted - before
                        owners[id(owner)] = omitted
                elif way is _in_map and not item.closed:
                    nbytes += len(item)
                    self.mapped += len(item)
                part = names[key][0] if key in names else inherited
                yield item, part, nbytes
                if held:
                    below.append((held, part))
            stack.extend(reversed(below))  # walk the first part to its end before the second


def in_units(nbytes: float) -> str:
    """Bytes for people to read: ``"34.6 MiB"``."""
    unit = "B"
    for larger in ("KiB", "MiB", "GiB"):
        if nbytes < 1024:
            break
        nbytes, unit = nbytes / 1024, larger
    return f"{nbytes:,.0f} {unit}" if unit == "B" or nbytes >= 100 else f"{nbytes:.1f} {unit}"


def _size(item: object) -> int:
    try:
        return sys.getsizeof(item)
    except Exception:  # of the object's own code
        return object.__sizeof__(item)


def _text(name: object) -> str:
    try:
        return str(name)
    except Exception:  # of the key's own code
        return f"({type(name).__name__})"


def is_container(kind: type) -> bool:
    """Whether it is one of agentmem's, which name their parts and count their bytes, or made from one."""
    return any("from_buffers" in vars(base) and base.__module__.split(".")[0] == "agentmem" for base in kind.__mro__)


def _has(kind: type, name: str) -> bool:
    """As hasattr, without asking the class's own code."""
    return any(name in vars(base) for base in kind.__mro__)


def _way_into(kind: type, ignore: type | tuple[type, ...]) -> Way | None:
    """What lists the objects that an object of this type keeps alive; None if it does not count."""
    if issubclass(kind, (PROGRAM, ignore)):
        return None
    if _has(kind, "__globals__"):  # a function, compiled ones too: not what its module holds
        return lambda item: [getattr(item, name, None) for name in ("__closure__", "__defaults__", "__kwdefaults__")]
    if issubclass(kind, dict):  # the garbage collector passes over strings
        return lambda item: [*gc.get_referents(item), *dict.keys(item)]
    if issubclass(kind, list | tuple):  # the garbage collector begins at their end
        return lambda item: gc.get_referents(item)[::-1]
    if issubclass(kind, np.void):  # a record, or a view of one in an array
        return lambda item: [item.base]
    if issubclass(kind, np.ndarray):
        return _in_array
    if issubclass(kind, mmap.mmap):
        return _in_map
    has_block = kind.__flags__ & HAS_BLOCK and not issubclass(kind, set | frozenset | deque)
    return _in_object if has_block else gc.get_referents


def _in_object(item: Any) -> list[Any]:
    return gc.get_referents(item)


def _in_map(item: Any) -> list[Any]:
    return gc.get_referents(item)


def _in_array(array: Any) -> list[Any]:
    elements = _elements(np.ndarray.view(array, np.ndarray)) if array.dtype.hasobject and array.base is None else []
    return [*gc.get_referents(array), array.base, *elements]


def _elements(array: NDArray[Any]) -> list[Any]:
    """The objects in an array, also those in fields of a structured one."""
    if array.dtype.names:
        return [element for name in array.dtype.names for element in _elements(array[name])]
    return [*array.ravel(order="K").tolist()] if array.dtype == object else []


def _owner(array: NDArray[Any]) -> object:
    return array.base.obj if isinstance(array.base, memoryview) else array.base


def _omitted(owner: object, nbytes: int) -> int:
    """How many of an array's bytes the object behind it has, but leaves out of its `__sizeof__`."""
    # A capsule or a ctypes array has memory of its own; what holds other objects may be passing on theirs.
    if owner is None or isinstance(owner, np.ndarray | mmap.mmap) or _holds_objects(owner):
        return 0
    with suppress(TypeError, ValueError):  # of a small view the whole buffer counts
        nbytes = max(nbytes, memoryview(owner).nbytes)  # type: ignore[arg-type]  # TypeError: no buffer
    return nbytes if _size(owner) < nbytes else 0


def _holds_objects(item: object) -> bool:
    return any(not issubclass(type(held), type) for held in gc.get_referents(item))


def _members(kind: type) -> Members:
    """Attributes of objects of a type that lie in slots."""
    return [
        (name, member)
        for base in kind.__mro__
        for name, member in [*vars(base).items()]
        if isinstance(member, MemberDescriptorType) and name != "__dict__"
    ]


def _named(obj: Any, members: Members) -> Iterator[tuple[str, object]]:
    """Name and value of each part. Values made up for the asking do no harm: the walk never meets them."""
    kind = type(obj)
    if is_container(kind) and _holds_objects(obj):
        for name, shown in obj.buffers().items():
            array = shown.base if isinstance(shown.base, np.ndarray) else shown  # held, where a view is shown
            yield name, array
            yield MAPPED if isinstance(_owner(array), mmap.mmap) else name, _owner(array)
    if issubclass(kind, dict):
        yield from ((_text(key), value) for key, value in dict.copy(obj).items())
    elif issubclass(kind, list | tuple | deque | np.ndarray):
        elements = _elements(obj) if issubclass(kind, np.ndarray) else [*obj]
        yield from ((f"[{i}]", value) for i, value in enumerate(elements))
    for name, member in members:
        with suppress(AttributeError):
            yield name, member.__get__(obj)
    with suppress(AttributeError, TypeError):
        attributes = dict.copy(object.__getattribute__(obj, "__dict__"))
        yield from ((_text(name), value) for name, value in attributes.items())
