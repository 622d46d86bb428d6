"""What a filter found over a sequence: `FilterResult`, and in it the beliefs of all steps as one `Trajectory`."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agentmem.belief import SparseBelief

if TYPE_CHECKING:
    from scipy.sparse import csr_array


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Trajectory:
    """The beliefs after each step of a sequence, as the rows of one CSR matrix.

    A read-only sequence: ``trajectory[t]`` is a new `SparseBelief` with the content after step t, for O(its support).
    An entry takes the bytes of its value and 4, a step 8.

    Attributes
    ----------
    offsets : (T + 1,) int64
        Entries ``offsets[t]:offsets[t + 1]`` are those of step t.
    states : (entries,) int32, ascending within a step
    values : (entries,) of the model's dtype
    belief_shape : tuple of int
        Of each belief.
    """

    offsets: NDArray[np.int64]
    states: NDArray[np.int32]
    values: NDArray[Any]
    belief_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        for array in (self.offsets, self.states, self.values):
            array.flags.writeable = False

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, step: int) -> SparseBelief:
        t = operator.index(step)
        if not -len(self) <= t < len(self):
            raise IndexError(f"step {t} given; there are {len(self)}")
        entries = slice(*self.offsets[t % len(self) :][:2])
        return SparseBelief.from_indices(self.states[entries], self.values[entries], self.belief_shape)

    def __iter__(self) -> Iterator[SparseBelief]:
        return (self[t] for t in range(len(self)))

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays and of the object."""
        return sys.getsizeof(self) + self.offsets.nbytes + self.states.nbytes + self.values.nbytes

    def to_scipy(self) -> csr_array[Any, tuple[int, int]]:
        """A new (T, S) `scipy.sparse.csr_array`, a row per step."""
        from scipy.sparse import csr_array

        size = len(self), int(np.prod(self.belief_shape))
        return csr_array((self.values, self.states, self.offsets), shape=size, copy=True)

    def __repr__(self) -> str:
        return (
            f"Trajectory(steps={len(self)}, belief_shape={self.belief_shape}, dtype={self.values.dtype}, "
            f"entries={len(self.values)}, nbytes={self.nbytes})"
        )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class FilterResult:
    """What `Model.filter` returns.

    Attributes
    ----------
    belief : SparseBelief
        After the last step.
    log_evidence : (T,) float64
        Log of the probability of each observation given all before (nats), 0.0 where there was none. The sum is the
        log-likelihood of the sequence.
    beliefs : Trajectory or None
        After every step, if they were asked for.
    """

    belief: SparseBelief
    log_evidence: NDArray[np.float64]
    beliefs: Trajectory | None

    def __repr__(self) -> str:
        total = float(self.log_evidence.sum())
        return f"FilterResult(steps={len(self.log_evidence)}, log_evidence={total:.6g} in all, belief={self.belief!r})"
