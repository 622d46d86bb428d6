"""ModelPool: what is equal in a process as one object, which nobody can write to.

Processes share by `Model.open` of one file.
"""

from __future__ import annotations

import threading
from hashlib import blake2b
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from agentmem.array import SparseArray, read_only
from agentmem.model import Model

T = TypeVar("T", Model, NDArray[Any], SparseArray)


class ModelPool:
    """Keeps one of all models, or arrays, with the same content, as long as somebody uses it.

    Content is every number, the dtype, shape and prior; never the shape alone. Arrays are kept READ-ONLY: an agent that
    writes into what it shares gets a ValueError. Any number of threads may use a pool.

    Examples
    --------
    >>> import agentmem as am
    >>> pool = am.ModelPool()
    >>> ours = pool.intern(am.Model([[0.9, 0.1], [0.2, 0.8]], [[1.0], [1.0]]))
    >>> pool.intern(am.Model([[0.9, 0.1], [0.2, 0.8]], [[1.0], [1.0]])) is ours
    True
    >>> table = pool.intern(np.eye(3))
    >>> pool.intern(np.eye(3)) is table, table.flags.writeable, len(pool)
    (True, False, 2)
    """

    __slots__ = ("_kept", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: WeakValueDictionary[tuple[Any, ...], Any] = WeakValueDictionary()

    def intern(self, shared: T) -> T:
        """The first model or array with this content that is still in use; this one, or a read-only copy, if none is.

        Takes a Model, an ndarray of numbers, or a SparseArray. O(nbytes), once for a model.
        """
        kept: T = self._take(shared)[0]
        return kept

    def _take(self, shared: Any) -> tuple[Any, bool]:
        """What `intern` returns, and whether it is the first of its content."""
        key = _content(shared)
        with self._lock:
            if (known := self._kept.get(key)) is not None:
                return known, False
        kept = shared if isinstance(shared, Model) else _locked(shared)
        with self._lock:
            first = self._kept.setdefault(key, kept)
            return first, first is kept

    def __len__(self) -> int:
        """How many different models and arrays are in use."""
        with self._lock:
            return len(self._kept)


def _content(shared: Any) -> tuple[Any, ...]:
    """Equal for equal content, whatever holds it."""
    if isinstance(shared, Model):
        return Model, shared.digest
    digest = blake2b(digest_size=32)
    if isinstance(shared, SparseArray):
        moment = shared.copy()
        digest.update(moment.indices.data)
        digest.update(moment.values.data)
        return type(shared), str(moment.header), moment.dtype, digest.digest()
    if type(shared) is np.ndarray and not shared.dtype.hasobject:
        digest.update(np.ascontiguousarray(shared.T if _is_by_columns(shared) else shared).view(np.uint8).data)
        return np.ndarray, shared.shape, shared.dtype, _is_by_columns(shared), digest.digest()
    given = f"{shared.dtype} {type(shared).__name__}" if isinstance(shared, np.ndarray) else type(shared).__name__
    raise TypeError(f"{given} given; expected an agentmem.Model, an ndarray of numbers or a SparseArray")


def _is_by_columns(array: NDArray[Any]) -> bool:
    """Kept apart, and so: sums over the same numbers in another order round otherwise."""
    return array.flags.f_contiguous and not array.flags.c_contiguous


def _locked(array: Any) -> Any:
    if isinstance(array, np.ndarray) and _is_by_columns(array):
        return read_only(array.T).T
    return read_only(array)
