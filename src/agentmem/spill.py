"""What leaves memory and comes back: the Spill directory and its handles; and Lazy, what is not in memory yet.

The format of the files is in `files`. They belong to one process and go with it.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import shutil
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from agentmem.budget import Budget
from agentmem.files import checksum_of, read_arrays, write_arrays
from agentmem.model import Model
from agentmem.population import Population

PROTOCOL = "header", "buffers", "from_buffers", "nbytes"
HOLDER = "spill"  # in the budget
ALONE = 2  # references to a container that only its handle holds: that, and the question

T = TypeVar("T")
Build = Callable[[dict[str, Any], dict[str, NDArray[Any]]], T]


class Spill:
    """A directory for containers that leave memory.

    Parameters
    ----------
    directory : path
        On a local disk; made, for this user only, where it is missing.
    budget : Budget, optional
        Is charged for what has come back. `Handle.get` makes room in it by evicting what was not asked for longest.

    Raises
    ------
    ValueError
        The directory is a symbolic link.
    OSError
        It cannot be written, or has no locks.

    Notes
    -----
    Each Spill has a folder of its own there, mode 0700, named after the process and locked while it lives: by the lock
    `clean` knows the living. A file appears whole or not at all, is synced to disk, checksummed, mode 0600, and gone
    when its handle is. Any number of threads may use one; a forked process makes its own.

    For a budget whose other holders need room too: ``Budget(limit, on_short=lambda budget, n: spill.evict(n))``.

    Examples
    --------
    >>> import agentmem as am
    >>> spill = am.Spill("spilled")
    >>> handle = spill.put(am.SparseBelief.uniform(1000))
    >>> belief = handle.get()
    >>> belief[:500] = 0
    >>> del belief
    >>> spill.evict() > 0
    True
    >>> handle.get().nnz
    500
    """

    __slots__ = ("__weakref__", "_folder", "_lock", "_numbers", "_pid", "_resident", "budget", "directory")

    def __init__(self, directory: str | os.PathLike[str], *, budget: Budget | None = None) -> None:
        self.directory, self.budget = Path(os.path.abspath(directory)), budget
        if self.directory.is_symlink():
            raise ValueError(f"{self.directory} is a symbolic link; expected a directory")
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = threading.RLock()  # of all that moves containers, but for what a finalizer does
        self._resident: dict[int, weakref.ref[Handle[Any]]] = {}  # by number, the least recently used first
        self._numbers, self._pid = itertools.count(), os.getpid()
        self._folder, lock = _locked_folder(self.directory)
        weakref.finalize(self, _remove_folder, self._folder, lock, self._pid)

    def put(self, container: T) -> Handle[T]:
        """Write a container as it is now. O(bytes), and a sync of the disk.

        The handle has the content; the container stays the caller's, and what is changed in it later is not in the
        handle. Memory is free when the caller lets it go.

        Parameters
        ----------
        container : SparseArray, SparseBelief, Model, Population, ndarray, or any with our protocol
            `header`, `buffers()`, `from_buffers(header, buffers)` and `nbytes`. A population's model stays in memory.

        Raises
        ------
        TypeError
            Another type, or an array of Python objects.
        OSError
            The disk is full, or fails. Nothing is left behind.
        """
        self._check_process()
        build, number = _builder(container), next(self._numbers)
        checksum = write_arrays(self._path(number), *_content(container), mode=0o600)
        return Handle(self, number, container, build, checksum)

    def evict(self, nbytes: int | None = None) -> int:
        """Let go of what came back, the least recently used first, until so many bytes are free; return how many are.

        What changed is written first. What somebody else still holds stays, as nothing would be freed. Without
        `nbytes`, all goes. An OSError (a full disk) leaves what could not be written in memory.
        """
        freed = 0
        with self._lock:
            for known in list(self._resident.values()):
                if nbytes is not None and freed >= nbytes:
                    break
                handle = known()
                freed += 0 if handle is None else handle.evict()
        return freed

    def clean(self) -> int:
        """Remove the files in this directory whose process has died; return how many there were."""
        removed = 0
        for entry in list(os.scandir(self.directory)):
            if not re.fullmatch(r"\d+-[0-9a-f]{16}\.spill", entry.name):
                continue
            with suppress(OSError):  # no folder, or another user's; BlockingIOError: its process lives
                lock = _opened(entry.path)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    removed += len(os.listdir(lock))
                    shutil.rmtree(entry.path)
                finally:
                    os.close(lock)
        return removed

    @property
    def nbytes(self) -> int:
        """Bytes in files."""
        total = 0
        for entry in list(os.scandir(self._folder)):
            with suppress(FileNotFoundError):  # other threads write and close
                total += entry.stat(follow_symlinks=False).st_size
        return total

    @property
    def resident_nbytes(self) -> int:
        """Bytes of what came back and was not evicted, as of when it was written."""
        handles = [known() for known in list(self._resident.values())]
        return sum(handle.nbytes for handle in handles if handle is not None)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.directory)!r}, nbytes={self.nbytes}, resident={self.resident_nbytes})"

    def _path(self, number: int) -> str:
        return os.path.join(self._folder, str(number))

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError(f"a Spill of process {self._pid} used in {os.getpid()}; a forked process makes its own")

    def _reserve(self, nbytes: int) -> None:
        if self.budget is not None:
            if (missing := nbytes - self.budget.free) > 0:
                self.evict(missing)
            self.budget.reserve(nbytes, HOLDER)

    def _release(self, nbytes: int) -> None:
        if self.budget is not None:
            self.budget.release(nbytes, HOLDER)


class Handle(Generic[T]):
    """What `Spill.put` returns: a container that is in a file, and in memory when asked for.

    The file is removed when the handle is closed or garbage. A handle cannot be copied or pickled.

    Attributes
    ----------
    nbytes : int
        Bytes that the container took in memory when it was written.
    """

    __slots__ = ("__weakref__", "_build", "_checksum", "_container", "_number", "_spill", "kind", "nbytes")

    def __init__(self, spill: Spill, number: int, container: T, build: Build[T], checksum: bytes) -> None:
        self._spill, self._build, self._checksum = spill, build, checksum
        self._number: int | None = number
        self._container: T | None = None
        self.kind, self.nbytes = type(container).__name__, _nbytes(container)

    def get(self) -> T:
        """The container: read from the file, or the same object as before as long as it was not evicted. O(bytes).

        What is changed in it stays, over evictions too.

        Raises
        ------
        BudgetExceeded
            There is no room in the spill's budget even with all evicted that nobody holds.
        CorruptData, OSError
            The file was damaged, or replaced by a symbolic link.
        ValueError
            The handle is closed.
        """
        spill = self._spill
        spill._check_process()
        with spill._lock:
            if self._number is None:
                raise ValueError(f"get() of a closed handle of a {self.kind}")
            container = self._container
            if container is None:
                spill._reserve(self.nbytes)
                try:
                    container = read_arrays(spill._path(self._number), self._rebuilt, follow_symlinks=False)
                except BaseException:
                    spill._release(self.nbytes)
                    raise
                self._container = container
            spill._resident.pop(self._number, None)
            spill._resident[self._number] = weakref.ref(self)
            return container

    def evict(self) -> int:
        """Let the container go if nobody else holds it, written if it changed; return how many bytes that frees."""
        spill = self._spill
        spill._check_process()
        with spill._lock:
            # Counted, not referred to weakly: a change made by its last holder must find its way to the file.
            if self._number is None or self._container is None or sys.getrefcount(self._container) > ALONE:
                return 0
            freed, nbytes, build = self.nbytes, _nbytes(self._container), _builder(self._container)
            if not isinstance(self._container, Model):  # which never changes
                content = _content(self._container)
                if checksum_of(*content) != self._checksum:
                    self._checksum = write_arrays(spill._path(self._number), *content, mode=0o600)
                del content
            self._container, self.nbytes, self._build = None, nbytes, build
            spill._resident.pop(self._number, None)
            spill._release(freed)
            return freed

    def close(self) -> None:
        """Remove the file. A container that somebody holds is theirs; a second call does nothing."""
        with self._spill._lock:
            self._close()

    @property
    def is_resident(self) -> bool:
        """Whether the container is in memory."""
        return self._container is not None

    def __repr__(self) -> str:
        where = "closed" if self._number is None else "in memory" if self.is_resident else "on disk"
        return f"{type(self).__name__}({self.kind}, nbytes={self.nbytes}, {where})"

    def __reduce__(self) -> Any:
        raise TypeError("a Handle has one owner, in one process: copy what get() returns")

    def __del__(self) -> None:
        if hasattr(self, "kind"):
            self._close()

    def _close(self) -> None:
        """Without the lock: a finalizer may run in a thread that holds others, and then nobody else has this handle."""
        spill, number, container = self._spill, self._number, self._container
        self._number = self._container = None
        if number is None or os.getpid() != spill._pid:
            return
        spill._resident.pop(number, None)
        if container is not None:
            spill._release(self.nbytes)
        with suppress(FileNotFoundError):
            os.unlink(spill._path(number))

    def _rebuilt(self, head: dict[str, Any], buffers: dict[str, NDArray[Any]]) -> T:
        if head.keys() != {"class", "header"} or head["class"] != self.kind:
            raise ValueError(f"header of a {head.get('class')!r}; expected {self.kind!r}")
        return self._build(head["header"], buffers)


class Lazy(Generic[T]):
    """What is built when it is first asked for, once.

    Parameters
    ----------
    factory : callable
        Makes the object; is let go of when it has.

    Notes
    -----
    Any number of threads may ask: one builds, the others wait. A factory that raises is called again by the next.

    Examples
    --------
    >>> import agentmem as am
    >>> lazy = am.Lazy(lambda: am.Model([[0.9, 0.1], [0.2, 0.8]], [[1.0], [1.0]]))
    >>> lazy.built
    False
    >>> lazy.get().n_states, lazy.built
    (2, True)
    """

    __slots__ = ("__weakref__", "_factory", "_is_building", "_lock", "_value")

    _value: T

    def __init__(self, factory: Callable[[], T]) -> None:
        if not callable(factory):
            raise TypeError(f"factory of type {type(factory).__name__} given; expected a callable")
        self._factory: Callable[[], T] | None = factory
        self._lock, self._is_building = threading.RLock(), False

    def get(self) -> T:
        """The object, built by the first call."""
        with self._lock:
            if self._factory is None:
                return self._value
            if self._is_building:
                raise RuntimeError("the factory of a Lazy asks for what it is to build")
            self._is_building = True
            try:
                self._value = self._factory()
            finally:
                self._is_building = False
            self._factory = None
            return self._value

    @property
    def built(self) -> bool:
        return self._factory is None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._value!r})" if self.built else f"{type(self).__name__}(not built)"


def _builder(container: T) -> Build[T]:
    """What makes such a container of its header and buffers. It stays in memory: a file names no code to run."""
    kind: Any = type(container)
    if kind is np.ndarray:
        dtype = container.dtype  # type: ignore[attr-defined]
        if dtype.hasobject or not dtype.itemsize:
            raise TypeError(f"array of dtype {dtype} given; expected one of bytes, without Python objects")
        return partial(_array_of, dtype)  # type: ignore[return-value]
    if missing := [name for name in PROTOCOL if not hasattr(kind, name)]:
        raise TypeError(f"container of type {kind.__name__} given, without {', '.join(missing)}; expected an ndarray "
                        f"or a container with {', '.join(PROTOCOL)}")
    if isinstance(container, Population):
        return partial(kind.from_buffers, container.model, threads=container.threads)
    build: Build[T] = kind.from_buffers
    return build


def _content(container: Any) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """What the file of a container holds: header and buffers."""
    if type(container) is np.ndarray:
        cells = np.ascontiguousarray(container).reshape(-1).view(np.uint8)
        return {"class": "ndarray", "header": {"shape": container.shape}}, {"cells": cells}
    return {"class": type(container).__name__, "header": container.header}, container.buffers()


def _array_of(dtype: np.dtype[Any], header: dict[str, Any], buffers: dict[str, NDArray[Any]]) -> NDArray[Any]:
    return buffers["cells"].view(dtype).reshape(header["shape"]).copy()


def _nbytes(container: Any) -> int:
    return int(container.nbytes)


# ---- the folder of a process


def _locked_folder(directory: Path) -> tuple[str, int]:
    """A new folder for this process, and the descriptor by which it is locked until the process ends, however it does.

    A lock tells the living from the dead where a process number cannot: in another container, or after a restart.
    """
    while True:
        folder = os.path.join(directory, f"{os.getpid()}-{os.urandom(8).hex()}.spill")
        os.mkdir(folder, 0o700)
        with suppress(FileNotFoundError):  # a `clean` elsewhere was faster than the lock
            lock = _opened(folder)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                os.stat(folder)
            except BaseException:
                os.close(lock)
                with suppress(FileNotFoundError):
                    os.rmdir(folder)
                raise
            return folder, lock


def _opened(folder: str) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def _remove_folder(folder: str, lock: int, pid: int) -> None:
    if os.getpid() == pid:  # not in a fork that ends before its parent
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
