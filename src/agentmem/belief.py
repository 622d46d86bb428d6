"""SparseBelief: a SparseArray that is a measure, with the filter verbs.

The step itself (`update`, `predict`, `normalize`) is compiled and lives in `_core.belief`; here are the constructors,
the verbs that are a few NumPy lines over the support, and the words for what went wrong.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from agentmem._core import CoreBelief, CoreModel, one_writer
from agentmem.array import SparseArray
from agentmem.errors import ImpossibleObservation

OnImpossible = Literal["raise", "predict", "likelihood"]


class SparseBelief(CoreBelief, SparseArray):
    """A probability distribution over a large discrete state space, held in the fewest bytes.

    Parameters
    ----------
    array_like : array_like, scipy.sparse array or SparseArray
        Mass of every state, of any shape: finite, not negative, not all zero. It need not sum to 1: every verb counts
        the belief as normalised and leaves it so.
    dtype : {float32, float64}, optional
        Of the stored values; float32 stays float32, all else becomes float64. Arithmetic is in double either way.

    Attributes
    ----------
    prune_below : float
        What `update` drops by default: entries below this share of the largest, 1e-12 at first. 0.0 is exact.
    pruned_mass : float
        Sum of the shares of probability that pruning has dropped so far.

    Notes
    -----
    As an array it takes part in everything an ndarray does (see `SparseArray`) and may then hold any values; the verbs
    ask for a measure again. ``b * 2`` and ``np.sqrt(b)`` are beliefs, but ``b + 0.1`` is an ndarray, as is all that
    makes something of zero; ``b += 0.1`` changes the belief.

    A verb that raises leaves the belief bit for bit as it was. One thread at a time: a second one that reads or writes
    a belief inside a long verb gets RuntimeError. Beliefs of one model may be stepped on as many threads as there are.

    Examples
    --------
    >>> import numpy as np, agentmem as am
    >>> model = am.Model([[0.9, 0.1], [0.2, 0.8]], [[0.7, 0.3], [0.1, 0.9]])
    >>> b = am.SparseBelief([0.5, 0.5])
    >>> round(b.update(model, 0, 1), 6)
    -0.562119
    >>> np.asarray(b).round(6)
    array([0.289474, 0.710526])
    """

    __slots__ = ()

    def __init__(self, array_like: Any, *, dtype: DTypeLike | None = None) -> None:
        if dtype is None:
            given = getattr(array_like, "dtype", None)
            dtype = np.float32 if given == np.float32 else np.float64
        if not isinstance(array_like, SparseArray) and np.iscomplexobj(array_like):
            raise TypeError("complex values given; expected probabilities")
        super().__init__(array_like, dtype=_belief_dtype(dtype))
        self._require_measure()

    @classmethod
    def from_indices(
        cls, indices: ArrayLike, values: ArrayLike, shape: int | Sequence[int], *, dtype: DTypeLike | None = None
    ) -> Self:
        """A belief with these masses at these flat C-order indices (any order, no duplicates) and zero elsewhere.

        Raises ValueError for indices out of range or given twice, and for masses that are no measure. O(n log n).
        """
        mass = np.asarray(values)
        if mass.dtype.kind not in "biuf":
            raise TypeError(f"values of dtype {mass.dtype} given; expected probabilities")
        if dtype is None:
            dtype = np.float32 if mass.dtype == np.float32 else np.float64
        made = super().from_indices(indices, mass.astype(_belief_dtype(dtype)), shape)
        made._require_measure()
        return made

    @classmethod
    def uniform(cls, shape: int | Sequence[int], *, dtype: DTypeLike = np.float64) -> Self:
        """The belief that knows nothing. One number is stored, whatever the shape."""
        extents = _extents(shape)
        n_states = math.prod(extents)
        if n_states == 0:
            raise ValueError(f"shape {extents} given; a belief needs at least one state")
        made = cls.__new__(cls)
        made._set_uniform(extents, np.full(1, 1.0 / n_states, dtype=_belief_dtype(dtype)))
        return made

    @classmethod
    def point(cls, shape: int | Sequence[int], state: int | Sequence[int], *, dtype: DTypeLike = np.float64) -> Self:
        """The belief that is certain of one state, given as flat index or as one index per axis."""
        extents = _extents(shape)
        at = _extents(state)
        flat = at[0] if np.ndim(state) == 0 else int(np.ravel_multi_index(at, extents))
        return cls.from_indices([flat], np.ones(1, dtype=_belief_dtype(dtype)), extents)

    @property
    def header(self) -> dict[str, Any]:
        """What `from_buffers` needs beside the buffers."""
        return {**super().header, "prune_below": self.prune_below, "pruned_mass": self.pruned_mass}

    @classmethod
    def from_buffers(cls, header: dict[str, Any], buffers: dict[str, NDArray[Any]]) -> Self:
        """The belief that `header` and `buffers` were taken from."""
        made = super().from_buffers(header, buffers)
        made.prune_below, made.pruned_mass = header["prune_below"], header["pruned_mass"]
        return made

    # ---- verbs

    def correct(self, likelihood: Any, *, on_impossible: OnImpossible = "raise") -> float:
        """Multiply by a likelihood and normalise; return the log-evidence.

        Parameters
        ----------
        likelihood : array_like, scipy.sparse array or SparseArray, (size,) or of the belief's shape
            P(observation | state): finite and not negative; its scale is up to the caller and part of the evidence.
        on_impossible : {"raise", "predict", "likelihood"}
            When likelihood and belief have no state in common: raise, keep the belief, or restart from the likelihood.

        Returns
        -------
        float
            Log of the sum over states of likelihood times (normalised) belief, in nats.

        Raises
        ------
        ImpossibleObservation
            That sum is zero.
        ValueError
            A likelihood of another shape, negative, or not finite.

        Notes
        -----
        O(size) for a dense likelihood, which is checked whole; O(nnz) for a sparse one.
        """
        if on_impossible not in ("raise", "predict", "likelihood"):
            raise ValueError(f"on_impossible={on_impossible!r} given; expected 'raise', 'predict' or 'likelihood'")
        if np.shape(likelihood) not in (self.shape, (self.size,)):
            raise ValueError(f"likelihood of shape {np.shape(likelihood)} given; expected {self.shape}")
        if hasattr(likelihood, "tocoo"):
            likelihood = SparseArray(likelihood)
        sparse = isinstance(likelihood, SparseArray)
        weights = likelihood.values if sparse else np.asarray(likelihood).ravel()
        if weights.dtype.kind not in "biuf":
            raise TypeError(f"likelihood of dtype {weights.dtype} given; expected real numbers")
        if weights.dtype not in (np.float32, np.float64) or not weights.dtype.isnative:
            weights = weights.astype(np.float64)
        largest = float(weights.max(initial=0))
        if not (weights.min(initial=0) >= 0 and largest < math.inf):
            wrong = np.flatnonzero(~((weights >= 0) & (weights < math.inf)))[0]
            at = likelihood.indices[wrong] if sparse else wrong
            raise ValueError(
                f"likelihood with {weights[wrong]} at index {at} given; expected finite values of at least 0"
            )
        with one_writer([self]):
            if sparse:
                weights = likelihood._lookup(self.indices).astype(np.float64, copy=False)
            log_evidence = self._correct(np.ascontiguousarray(weights), sparse)
        if log_evidence is not None:
            return log_evidence
        if on_impossible == "predict":
            self.normalize()
            return -math.inf
        if on_impossible == "likelihood" and largest > 0:
            at = likelihood.indices if sparse else np.flatnonzero(weights)
            self._restart(at, likelihood.values if sparse else weights[at])
            return -math.inf
        raise ImpossibleObservation(
            "the likelihood is zero wherever the belief is not: evidence 0.0; see on_impossible= for ways to go on"
        )

    def prune(
        self,
        *,
        relative: float | None = None,
        absolute: float | None = None,
        mass: float | None = None,
        max_states: int | None = None,
    ) -> float:
        """Drop small entries, renormalise, and return the share of probability dropped. O(nnz log nnz).

        Parameters
        ----------
        relative : float, optional
            Drop entries below this share of the largest.
        absolute : float, optional
            Drop entries below this probability.
        mass : float, optional
            Drop the smallest entries while their sum stays below this share (of equals, the highest index first).
        max_states : int, optional
            Keep the largest this many (of equals, the lowest index).

        Notes
        -----
        With several rules an entry goes if any of them drops it; with none, `relative=prune_below`. What is dropped
        adds to `pruned_mass`. A rule that would drop everything raises ValueError.

        Examples
        --------
        >>> import agentmem as am
        >>> b = am.SparseBelief([0.5, 0.3, 0.15, 0.05])
        >>> round(b.prune(max_states=2), 12), b.values.round(12).tolist()
        (0.2, [0.625, 0.375])
        """
        for name, rule in (("relative", relative), ("absolute", absolute), ("mass", mass)):
            if rule is not None and not 0 <= rule <= 1:
                raise ValueError(f"{name}={rule!r} given; expected at least 0 and at most 1")
        if max_states is not None and operator.index(max_states) < 1:
            raise ValueError(f"max_states={max_states!r} given; expected at least 1")
        if relative is absolute is mass is max_states is None:
            relative = self.prune_below
        self._require_measure()
        with one_writer([self]):
            indices, p = self.indices, self._probabilities()
            keep = np.ones(len(p), dtype=bool)
            if relative is not None:
                keep &= p >= relative * p.max()
            if absolute is not None:
                keep &= p >= absolute
            if mass is not None or max_states is not None:
                descending = np.argsort(-self.values, kind="stable")
                if max_states is not None:
                    keep[descending[max_states:]] = False
                if mass is not None:
                    ascending = descending[::-1]
                    keep[ascending[:-1][np.cumsum(p[ascending[:-1]]) < mass]] = False
            if not keep.any():
                raise ValueError(f"pruning would drop every state; the largest has probability {p.max():.6g}")
            left = np.where(keep, p / p[keep].sum(), 0).astype(self.dtype)
            stored = left > 0  # what the dtype cannot hold goes too
            self._set_pairs(self.shape, indices[stored], left[stored])
            self._is_measure()
            dropped = float(p[~keep].sum())
            self.pruned_mass += dropped
            return dropped

    # ---- queries

    def entropy(self) -> float:
        """Uncertainty in nats: -sum p log p. O(nnz).

        >>> import agentmem as am
        >>> round(am.SparseBelief.uniform(8).entropy(), 6)
        2.079442
        """
        self._require_measure()
        if self.storage == "uniform":
            return math.log(self.size)
        p = self._probabilities()
        p = p[p > 0]
        return float(-(p * np.log(p)).sum() + 0.0)

    def kl_divergence(self, q: Any) -> float:
        """KL divergence of this belief from q in nats: sum p log(p / q); inf where q rules out what p does not."""
        indices, p = self._distribution()
        mass, total = self._other(q, indices)
        p, mass = p[p > 0], mass[p > 0]
        with np.errstate(divide="ignore"):  # logs apart: p / q may overflow
            return float((p * (np.log(p) - np.log(mass) + math.log(total))).sum())

    def total_variation(self, q: Any) -> float:
        """Half the L1 distance between this belief and q, both normalised: 0 for equal, 1 for disjoint ones."""
        indices, p = self._distribution()
        mass, total = self._other(q, indices)
        at_support = mass / total
        return float(0.5 * (np.abs(p - at_support).sum() + max(0.0, 1 - at_support.sum())))

    def mode(self) -> int:
        """Flat index of the most probable state (of equals, the lowest)."""
        self._require_measure()
        if self.storage == "uniform":
            return 0
        moment = self.copy()
        return int(moment.indices[moment.values.argmax()])

    def top(self, k: int) -> tuple[NDArray[np.intp], NDArray[Any]]:
        """The k most probable states (of equals, the lowest first): indices and probabilities, both (min(k, nnz),).

        >>> import agentmem as am
        >>> [x.tolist() for x in am.SparseBelief([0.1, 0.6, 0.3]).top(2)]
        [[1, 2], [0.6, 0.3]]
        """
        if operator.index(k) < 0:
            raise ValueError(f"k={k} given; expected at least 0")
        self._require_measure()
        moment = self.copy()
        largest = np.argsort(-moment.values, kind="stable")[:k]  # not by probabilities: rounding makes new equals
        return moment.indices[largest], moment._probabilities()[largest].astype(self.dtype)

    def expectation(self, f: ArrayLike) -> Any:
        """Mean of f under the belief; f is (size, ...) or starts with the belief's shape. O(nnz)."""
        (indices, p), values = self._distribution(), np.asarray(f)
        if values.shape[: self.ndim] == self.shape:
            values = values.reshape(self.size, *values.shape[self.ndim :])
        if values.shape[:1] != (self.size,):
            raise ValueError(f"f of shape {np.shape(f)} given; expected {self.shape} first")
        return np.tensordot(p, values[indices], axes=1)[()]

    def marginal(self, axis: int | Sequence[int]) -> SparseBelief:
        """The belief over the given axes, summed over all others. O(nnz log nnz).

        >>> import agentmem as am
        >>> am.SparseBelief([[0.1, 0.2], [0.3, 0.4]]).marginal(0).to_dense().round(12)
        array([0.3, 0.7])
        """
        kept = [axis] if isinstance(axis, int | np.integer) else list(axis)
        if len({a % self.ndim for a in kept if -self.ndim <= a < self.ndim}) != len(kept) or not kept:
            raise ValueError(f"axis={axis!r} given; expected different ones from {-self.ndim} to {self.ndim - 1}")
        at, p = self._distribution()
        coordinates = np.unravel_index(at, self.shape)
        extents = tuple(self.shape[a] for a in kept)
        flat = np.ravel_multi_index(tuple(coordinates[a] for a in kept), extents)
        indices, place = np.unique(flat, return_inverse=True)
        return type(self).from_indices(indices, np.bincount(place, weights=p).astype(self.dtype), extents)

    def sample(self, size: int | tuple[int, ...] | None = None, rng: Any = None) -> Any:
        """Draw states: flat indices, an int for `size=None`. `rng` is a Generator or a seed. O(nnz + draws)."""
        indices, p = self._distribution()
        cumulative = np.cumsum(p)
        draws = np.random.default_rng(rng).random(size) * cumulative[-1]
        at = np.minimum(np.searchsorted(cumulative, draws, side="right"), len(p) - 1)
        return int(indices[at]) if size is None else indices[at]

    # ---- private

    def _require_measure(self) -> None:
        """Raise ValueError with what is wrong unless the belief is finite, non-negative and not all zero."""
        if not self._is_measure():
            self._explain_no_measure()

    def _explain_no_measure(self) -> None:
        if self.dtype not in (np.float32, np.float64):
            raise ValueError(f"belief of dtype {self.dtype} given; the filter verbs expect float32 or float64")
        if self.size > np.iinfo(np.int32).max:
            raise ValueError(f"belief of {self.size} states given; the filter verbs expect at most {2**31 - 1}")
        values = self.values
        if not len(values):
            raise ValueError("belief without any mass given; expected at least one value above zero")
        wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))[0]
        raise ValueError(
            f"belief with {values[wrong]} at index {self.indices[wrong]} given; expected finite values of at least 0"
        )

    def _distribution(self) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """The support and its probabilities, float64 that sum to 1, of one moment."""
        self._require_measure()
        moment = self.copy()
        return moment.indices, moment._probabilities()

    def _probabilities(self) -> NDArray[np.float64]:
        """The entries as float64 that sum to 1, in the order of `indices`."""
        self._require_measure()
        p = self.values.astype(np.float64)
        with np.errstate(over="ignore"):
            total = p.sum()
        if not math.isfinite(total):
            raise ValueError("belief whose sum overflows given; expected a finite sum")
        p /= total
        return p

    def _other(self, q: Any, indices: NDArray[np.intp]) -> tuple[NDArray[np.float64], float]:
        """Another distribution: its mass at these indices, and its mass in all."""
        if np.shape(q) not in (self.shape, (self.size,)):
            raise ValueError(f"q of shape {np.shape(q)} given; expected {self.shape}")
        belief = q.copy() if isinstance(q, SparseBelief) else SparseBelief(q)
        belief._require_measure()
        with np.errstate(over="ignore"):
            total = float(belief.values.sum(dtype=np.float64))
        if not math.isfinite(total):
            raise ValueError("q whose sum overflows given; expected a finite sum")
        return belief._lookup(indices).astype(np.float64), total

    def _restart(self, indices: NDArray[np.intp], mass: NDArray[Any]) -> None:
        """Forget all and take this mass (not negative, not all zero), normalised."""
        mass = mass / mass.max().astype(np.float64)
        left = (mass / mass.sum()).astype(self.dtype)
        stored = left > 0
        with one_writer([self]):
            self._set_pairs(self.shape, indices[stored], left[stored])
            self._is_measure()

    def _on_impossible(
        self, model: CoreModel, action: int, observation: int, on_impossible: OnImpossible, prune: float
    ) -> float:
        """What `update` returns or raises when no probability is left; until here the belief is as before."""
        if on_impossible == "predict":
            self.update(model, action, None, prune=prune)
            return -math.inf
        if on_impossible == "likelihood":
            states, likelihood = model._likelihood_pairs(action, observation)
            if len(states):
                self._restart(states, likelihood)
                return -math.inf
        raise ImpossibleObservation(
            f"observation {observation} after action {action} is impossible: evidence 0.0; "
            "see on_impossible= for ways to go on"
        )


def _extents(shape: Any) -> tuple[int, ...]:
    return tuple(operator.index(n) for n in (shape if np.ndim(shape) else [shape]))


def _belief_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise TypeError(f"dtype {np.dtype(dtype)} given; a belief is float32 or float64")
    return np.dtype(dtype)
