"""ModelPool: equal models of one process as one object. Processes share by `Model.open` of one file."""

from __future__ import annotations

import threading
from weakref import WeakValueDictionary

from agentmem.model import Model


class ModelPool:
    """Keeps one of all models with the same content, as long as somebody uses it.

    Content is what `Model.digest` covers: every number, the dtype and the prior; never the shape alone. Any number of
    threads may use a pool.

    Examples
    --------
    >>> import agentmem as am
    >>> pool = am.ModelPool()
    >>> ours = pool.intern(am.Model([[0.9, 0.1], [0.2, 0.8]], [[1.0], [1.0]]))
    >>> pool.intern(am.Model([[0.9, 0.1], [0.2, 0.8]], [[1.0], [1.0]])) is ours
    True
    >>> len(pool)
    1
    """

    __slots__ = ("_lock", "_models")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._models: WeakValueDictionary[str, Model] = WeakValueDictionary()

    def intern(self, model: Model) -> Model:
        """The first model with this content that is still in use, this one if there is none. O(nbytes) once a model."""
        if not isinstance(model, Model):
            raise TypeError(f"model of type {type(model).__name__} given; expected an agentmem.Model")
        digest = model.digest
        with self._lock:
            return self._models.setdefault(digest, model)

    def __len__(self) -> int:
        """How many different models are in use."""
        with self._lock:
            return len(self._models)
