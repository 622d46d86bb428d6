"""ObservationBuffer: a ring of observations per agent in a mapped file; one process writes it, many read.

    head | a counter per agent, a flag | a checksum per slot | the slots, capacity + 1 per agent

A write fills the spare slot and its checksum, then publishes it by storing the counter: a crash leaves old or new.
Observation k of an agent is in slot k % (capacity + 1). The counter is the sequence number of all the agent's slots:
while it is at most k + capacity, nobody writes over observation k.
"""

from __future__ import annotations

import ast
import glob
import io
import json
import math
import mmap
import operator
import os
import stat
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple, Self
from weakref import WeakSet

import numpy as np
from numpy.lib.format import descr_to_dtype, dtype_to_descr
from numpy.typing import ArrayLike, DTypeLike, NDArray

from agentmem.errors import CorruptData
from agentmem.files import ALIGNMENT, canonical
from agentmem.footprint import footprint

MAGIC = b"AGENTOBS"
VERSION = 1
PREAMBLE = struct.Struct("=8sIII")  # magic, version, length of the description, checksum of these and of that
ATTEMPTS = 100  # at reading what a writer may be overwriting
LARGE = 1 << 15  # bytes, from which sums are cheaper than a CRC
ROW = 512  # words
UNFINISHED = ".{}.{}.observations"  # name and 8 digits: a file that is not whole yet


class Layout(NamedTuple):
    """What a buffer is asked to hold; it follows where everything lies."""

    n_agents: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    capacity: int

    @classmethod
    def checked(cls, n_agents: int, shape: int | tuple[int, ...], dtype: DTypeLike, capacity: int) -> Self:
        kind = np.dtype(dtype)
        if kind.hasobject or kind.itemsize == 0 or descr_to_dtype(dtype_to_descr(kind.base)) != kind.base:
            raise TypeError(f"dtype {kind} given; expected one of NumPy's, of fixed size and without objects")
        lengths = tuple(map(operator.index, shape)) if isinstance(shape, tuple | list) else (operator.index(shape),)
        layout = cls(operator.index(n_agents), lengths + kind.shape, kind.base, operator.index(capacity))
        if layout.n_agents < 1 or layout.capacity < 1 or min(layout.shape, default=0) < 0:
            raise ValueError(f"{layout} given; expected at least one agent, a capacity of 1 and no negative length")
        return layout

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self._asdict().items())

    def head(self) -> bytes:
        description = canonical({**self._asdict(), "dtype": repr(dtype_to_descr(self.dtype))})
        facts = MAGIC, VERSION, len(description)
        head = PREAMBLE.pack(*facts, zlib.crc32(PREAMBLE.pack(*facts, 0) + description)) + description
        return head + b" " * (-len(head) % ALIGNMENT)

    def places(self) -> tuple[int, int, int, int]:
        """Where the counters, the checksums and the slots begin, and where the file ends."""
        n_slots = self.n_agents * (self.capacity + 1)
        counters = len(self.head())
        checksums = counters + 8 * (self.n_agents + 1)
        slots = checksums + 4 * n_slots
        slots += -slots % ALIGNMENT
        return counters, checksums, slots, slots + n_slots * math.prod(self.shape) * self.dtype.itemsize


class Ring:
    """A mapping with that layout: the slots of all agents, and the protocol between writer and readers."""

    __slots__ = ("_bytes", "_checksums", "_counters", "_n", "_nbytes", "_slots", "layout", "map")

    def __init__(self, mapping: mmap.mmap, layout: Layout) -> None:
        counters, checksums, slots, end = layout.places()
        view = memoryview(mapping)
        self.map, self.layout = mapping, layout
        self._n = layout.capacity + 1
        self._counters = view[counters:checksums].cast("Q")
        self._checksums = view[checksums:slots].cast("I")
        self._bytes = view[slots:end]
        self._slots: NDArray[Any] = np.ndarray((layout.n_agents * self._n, *layout.shape), layout.dtype, mapping, slots)
        self._nbytes = len(self._bytes) // len(self._slots)

    @property
    def is_replaced(self) -> bool:
        """Whether the writer has, or is about to have, another file in the place of this one."""
        return self._counters[-1] != 0

    @is_replaced.setter
    def is_replaced(self, value: bool) -> None:
        self._counters[-1] = value

    def place(self, agent: int) -> int:
        k, n = operator.index(agent), self.layout.n_agents
        if not -n <= k < n:
            raise IndexError(f"agent {k} given; there are {n}")
        return k % n

    def written(self, agent: int) -> int:
        """How many observations were ever written."""
        word = self._counters[agent]
        count = word >> 16
        if _counter(count) != word:
            raise CorruptData(f"agent {agent}: its counter is damaged")
        return count

    def count(self, agent: int) -> int:
        return min(self.written(agent), self.layout.capacity)

    def write(self, agent: int, x: NDArray[Any]) -> None:
        k = self.written(agent)
        slot = agent * self._n + k % self._n
        self._slots[slot] = x
        self._checksums[slot] = _checksum(self._bytes[slot * self._nbytes : (slot + 1) * self._nbytes], k)
        self._counters[agent] = _counter(k + 1)

    def read(self, agent: int, i: int) -> NDArray[Any]:
        capacity = self.layout.capacity
        for _ in range(ATTEMPTS):
            written = self.written(agent)
            oldest = max(0, written - capacity)
            k = i + (written if i < 0 else oldest)
            if not oldest <= k < written:
                raise IndexError(f"observation {i} of agent {agent} asked for; there are {written - oldest}")
            slot = agent * self._n + k % self._n
            content = bytearray(self._bytes[slot * self._nbytes : (slot + 1) * self._nbytes])
            checksum = self._checksums[slot]
            is_kept = self.written(agent) <= k + capacity
            # Python has no fences: on arm64 the counter may be seen before the bytes, and only the checksum tells.
            if is_kept and _checksum(content, k) == checksum:
                return np.ndarray(self.layout.shape, self.layout.dtype, content)
        if is_kept:
            raise CorruptData(f"agent {agent}, slot {k % self._n}: checksum does not agree with the content")
        raise RuntimeError(f"agent {agent}: overwritten {ATTEMPTS} times while it was read; give it a larger capacity")


class ObservationBuffer:
    """The last observations of many agents, in a file that one process writes and any number read meanwhile.

    Parameters
    ----------
    path : path-like or None
        The file. One that exists goes on with what it holds; None takes memory that only forked children share.
    n_agents : int
    shape : tuple of int, or int
        Of one observation; ``()`` is a number.
    dtype : dtype
        Any of fixed size without objects: numbers, bool, times, strings, structured.
    capacity : int
        How many observations an agent keeps.

    Raises
    ------
    ValueError
        The file was made with other parameters: use `resize`.
    BlockingIOError
        Somebody writes it. The lock goes with its process, however that ends.
    CorruptData
        The file is truncated, damaged, or of another kind.
    OSError
        The disk is full, or the path is a symbolic link. New files are whole or not there, with mode 0600.

    Notes
    -----
    The object that makes or continues a buffer writes, from one thread at a time. Others only read, from any thread:
    they `open` the file, or get the buffer by pickle (with a file) or by fork. A writer killed at any instant leaves
    every observation old or new. Nothing is synced to the disk: what a power cut damages is found at the read.

    An agent takes ``(capacity + 1) * (bytes of an observation + 4) + 8`` bytes. Integers that the dtype cannot hold are
    refused; floats are rounded to its precision.

    Examples
    --------
    >>> import agentmem as am
    >>> with am.ObservationBuffer("seen", n_agents=3, shape=(2,), dtype="float32", capacity=4) as seen:
    ...     seen.write(0, [0.5, 1.5])
    ...     seen.write(0, [2.5, 3.5])
    ...     seen
    ObservationBuffer(n_agents=3, shape=(2,), dtype=float32, capacity=4, nbytes=...)
    >>> reader = am.ObservationBuffer.open("seen")
    >>> reader.read(0), reader.count(1)
    (array([2.5, 3.5], dtype=float32), 0)
    """

    __slots__ = ("__weakref__", "_is_writer", "_lock", "_path", "_ring")

    _path: str | None
    _ring: Ring | None
    _lock: int | None
    _is_writer: bool

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        n_agents: int,
        shape: int | tuple[int, ...],
        dtype: DTypeLike,
        *,
        capacity: int = 1,
    ) -> None:
        self._path, self._ring, self._lock, self._is_writer = None, None, None, True
        layout = Layout.checked(n_agents, shape, dtype, capacity)
        if path is None:
            self._ring = _anonymous(layout)
        else:
            self._path = os.path.abspath(path)
            self._lock, self._ring = _claimed(self._path, layout)
        _WRITERS.add(self)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """A reader of the file that another object writes, or wrote. It follows when the writer resizes it.

        Raises CorruptData as the constructor does. O(1); nothing is read but the head.
        """
        path = os.path.abspath(path)
        ring, _ = _mapped(path, os.O_RDONLY)
        reader = cls.__new__(cls)
        reader._path, reader._ring, reader._lock, reader._is_writer = path, ring, None, False
        return reader

    def close(self) -> None:
        """Let go of the file, and let another writer have it. It can be called twice."""
        if self._lock is not None:
            os.close(self._lock)
        self._ring = self._lock = None  # the mapping goes with the last thread that reads from it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_lock"):  # not where a call without its arguments made nothing
            self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._path is None:
            raise TypeError("a buffer without a file cannot be pickled; only forked children share its memory")
        return type(self).open, (self._path,)

    # ---- observations

    def write(self, agent: int, x: ArrayLike) -> None:
        """Keep a copy of an observation, in the place of the agent's oldest where it has `capacity`. O(bytes).

        Raises
        ------
        TypeError
            The dtype does not cast to the buffer's: by NumPy's rule ``"same_kind"`` to floats, by ``"safe"`` to others,
            but integers go by their values.
        ValueError
            The shape is another, or an integer does not fit.
        IndexError
            There is no such agent.
        """
        ring = self._writable()
        ring.write(ring.place(agent), _fitting(x, ring.layout.dtype, ring.layout.shape))

    def write_all(self, xs: ArrayLike) -> None:
        """One observation of every agent, (n_agents, *shape). Nothing is written if they do not fit."""
        ring = self._writable()
        for agent, x in enumerate(_fitting(xs, ring.layout.dtype, (ring.layout.n_agents, *ring.layout.shape))):
            ring.write(agent, x)

    def read(self, agent: int, i: int = -1) -> Any:
        """A copy of an observation: `i` as in a list of those that are kept, oldest first. O(bytes).

        Returns
        -------
        ndarray or scalar
            A scalar where the shape is ``()``.

        Raises
        ------
        IndexError
            There is no such agent, or it has not as many observations.
        CorruptData
            The slot or the counter was damaged.
        RuntimeError
            The writer overtook the reader 100 times in a row: more capacity helps.
        """
        ring = self._current()
        found = ring.read(ring.place(agent), operator.index(i))
        return found if found.ndim else found[()]

    def count(self, agent: int) -> int:
        """How many observations of an agent are kept, at most `capacity`."""
        ring = self._current()
        return ring.count(ring.place(agent))

    def resize(self, *, n_agents: int | None = None, capacity: int | None = None) -> None:
        """Make room for more agents or observations, or less where none is lost (else ValueError). O(bytes).

        A new file takes the place of the old one when it is whole: a crash leaves either, a full disk (OSError) the
        old. Readers follow; forked ones of a buffer without a file cannot, and get a RuntimeError from then on.
        """
        old = self._writable()
        new = Layout.checked(
            old.layout.n_agents if n_agents is None else n_agents,
            old.layout.shape,
            old.layout.dtype,
            old.layout.capacity if capacity is None else capacity,
        )
        for agent in range(old.layout.n_agents):
            if old.count(agent) > (new.capacity if agent < new.n_agents else 0):
                raise ValueError(f"{new} given; agent {agent} has {old.count(agent)} observations, and would lose some")
        path = self._path
        lock, temporary = (None, None) if path is None else _created(path, new)
        try:
            ring = _anonymous(new) if temporary is None else _mapped(temporary, os.O_RDWR)[0]
            for agent in range(min(old.layout.n_agents, new.n_agents)):
                for i in range(old.count(agent)):
                    ring.write(agent, old.read(agent, i))
            ring.map.flush()
            old.is_replaced = True
            if temporary is not None and path is not None:
                os.replace(temporary, path)
        except BaseException:
            old.is_replaced = False
            if lock is not None and temporary is not None:
                os.close(lock)
                os.unlink(temporary)
            raise
        if self._lock is not None:
            os.close(self._lock)
        self._lock, self._ring = lock, ring

    # ---- looks

    @property
    def n_agents(self) -> int:
        return self._current().layout.n_agents

    @property
    def shape(self) -> tuple[int, ...]:
        return self._current().layout.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._current().layout.dtype

    @property
    def capacity(self) -> int:
        return self._current().layout.capacity

    @property
    def nbytes(self) -> int:
        """Bytes of this object and of the file or memory it maps, which other processes may share."""
        return footprint(self).total

    def __repr__(self) -> str:
        if self._ring is None:
            return f"{type(self).__name__}(closed)"
        return f"{type(self).__name__}({self._current().layout}, nbytes={self.nbytes})"

    def _check(self) -> None:
        """Every kept observation is as it was written, in a file as large as it says."""
        ring = self._current()
        assert len(ring.map) == ring.layout.places()[-1]
        for agent in range(ring.layout.n_agents):
            for i in range(ring.count(agent)):
                ring.read(agent, i)

    # ---- which ring

    def _current(self) -> Ring:
        ring = self._ring
        if ring is None:
            raise ValueError("the buffer is closed")
        if ring.is_replaced and not self._is_writer:
            if self._path is None:
                raise RuntimeError("the process that made this buffer has resized it since this one was forked")
            ring = self._ring = _mapped(self._path, os.O_RDONLY)[0]
        return ring

    def _writable(self) -> Ring:
        if not self._is_writer:
            raise io.UnsupportedOperation("opened, unpickled or forked to read; the buffer it came from writes")
        return self._current()


_WRITERS: WeakSet[ObservationBuffer] = WeakSet()


def _leave_to_parent() -> None:
    """Only read in a forked child, which would hold the lock on after its parent's death."""
    for buffer in _WRITERS:
        buffer._is_writer = False
        if buffer._lock is not None:
            os.close(buffer._lock)
            buffer._lock = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


# ---- bytes


def _counter(count: int) -> int:
    """A count, below 2**48, with 16 bits that tell a damaged one; a single word, so that it is stored at once."""
    return count << 16 | (count * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF) >> 48


def _checksum(content: bytearray | memoryview, k: int) -> int:
    """A CRC of an observation and of its number. O(bytes)."""
    if len(content) >= LARGE:
        # Sums along rows and columns show every damaged byte, five times faster than a CRC (430 us for 1.5 MiB).
        words = np.frombuffer(content, np.uint64, len(content) // (8 * ROW) * ROW).reshape(-1, ROW)
        k = zlib.crc32(words.sum(axis=0), zlib.crc32(words.sum(axis=1), k))
        content = content[words.nbytes :]
    return zlib.crc32(content, k)


def _fitting(x: ArrayLike, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The array that goes into slots of that dtype with no more loss than rounding."""
    a = np.asarray(x, dtype if dtype.names and not hasattr(x, "dtype") else None)  # a tuple is a record
    if a.dtype != dtype:
        rule: Any = "same_kind" if dtype.kind in "fc" else "safe"
        if not np.can_cast(a.dtype, dtype, rule):
            if a.dtype.kind not in "iu" or dtype.kind not in "iu":
                raise TypeError(f"observation of dtype {a.dtype} given; expected {dtype} or what casts to it ({rule})")
            info = np.iinfo(dtype)
            if a.size and (a.min() < info.min or a.max() > info.max):
                raise ValueError(f"{a.min()} to {a.max()} given; {dtype} holds {info.min} to {info.max}")
    if a.shape != shape:
        raise ValueError(f"observation of shape {a.shape} given; expected {shape}")
    return a


# ---- files


def _anonymous(layout: Layout) -> Ring:
    return Ring(mmap.mmap(-1, layout.places()[-1]), layout)


def _mapped(path: str, mode: int) -> tuple[Ring, os.stat_result]:
    """The ring in a file, and which file that is. Raises CorruptData for one that was not made here, whole."""
    fd = os.open(path, mode | os.O_NONBLOCK)  # which opens a pipe, too, without waiting
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size < PREAMBLE.size:
            raise CorruptData(f"{path}: not a regular file, or of only {facts.st_size} bytes")
        data = mmap.mmap(fd, 0, access=mmap.ACCESS_READ if mode == os.O_RDONLY else mmap.ACCESS_WRITE)
    finally:
        os.close(fd)
    magic, version, length, checksum = PREAMBLE.unpack_from(data)
    if magic != MAGIC:
        raise CorruptData(f"{path}: begins with {magic!r}; expected {MAGIC!r}")
    if version != VERSION:
        raise CorruptData(f"{path}: format version {version}; this release reads version {VERSION}")
    description = data[PREAMBLE.size : PREAMBLE.size + length]
    if checksum != zlib.crc32(PREAMBLE.pack(magic, version, length, 0) + description):
        raise CorruptData(f"{path}: checksum does not agree with the header")
    try:
        held = json.loads(description)
        held["dtype"] = descr_to_dtype(ast.literal_eval(held["dtype"]))
        layout = Layout.checked(**held)
        if layout.places()[-1] != facts.st_size:
            raise ValueError(f"{facts.st_size} bytes; expected {layout.places()[-1]} (truncated?)")
        return Ring(data, layout), facts
    except (ArithmeticError, LookupError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError) as error:
        raise CorruptData(f"{path}: {error}") from error


def _claimed(path: str, layout: Layout) -> tuple[int, Ring]:
    """The lock of a file that has that layout, and its ring; an empty one is made if there is none."""
    while True:
        try:
            lock = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            lock, temporary = _created(path, layout)
            try:
                os.link(temporary, path)  # unlike a rename, it never replaces what is there
            except OSError as error:
                os.close(lock)
                if not isinstance(error, FileExistsError | FileNotFoundError):  # else somebody was faster
                    raise
                continue
            finally:
                Path(temporary).unlink(missing_ok=True)
        try:
            _lock(lock, path)
            ring, facts = _mapped(path, os.O_RDWR)
            if not os.path.samestat(facts, os.fstat(lock)):  # resized between the two
                os.close(lock)
                continue
            if ring.layout != layout:
                raise ValueError(f"{path} holds {ring.layout}; {layout} asked for")
            _allocate(lock, facts.st_size)  # copying may have made holes
            ring.is_replaced = False
            target = Path(path)
            for orphan in target.parent.glob(UNFINISHED.format(glob.escape(target.name), "[0-9a-f]" * 8)):
                orphan.unlink(missing_ok=True)
            return lock, ring
        except BaseException:
            os.close(lock)
            raise


def _created(path: str, layout: Layout) -> tuple[int, str]:
    """A new file beside the path, without observations, and its lock."""
    target = Path(path)
    temporary = str(target.with_name(UNFINISHED.format(target.name, os.urandom(4).hex())))
    lock = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        _lock(lock, temporary)
        _allocate(lock, layout.places()[-1])
        os.write(lock, layout.head())
        os.fsync(lock)
    except BaseException:
        os.close(lock)
        os.unlink(temporary)
        raise
    return lock, temporary


def _lock(fd: int, path: str) -> None:
    import fcntl  # POSIX only, as are files that are written while others read

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BlockingIOError(error.errno, "somebody else writes this buffer; `open` it to read", path) from None


def _allocate(fd: int, nbytes: int) -> None:
    """Take the disk space now: where it is missing later, a store to the mapping kills the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, nbytes)
    else:
        os.ftruncate(fd, nbytes)
