"""SparseAgent: the agent of pymdp's NumPy half (`pymdp.legacy.agent.Agent`), over sparse tables that agents share.

Here lives the agent; what it computes is in `_pymdp_tables`. For the JAX agent see `pymdp_jax`.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

try:
    from pymdp.legacy import control, maths
    from pymdp.legacy.agent import Agent
except ImportError as missing:
    message = "pymdp is not installed: pip install 'agentmem-native[pymdp]'"
    raise ImportError(message, name=missing.name) from missing

from agentmem.belief import SparseBelief
from agentmem.errors import ImpossibleObservation
from agentmem.integrations._pymdp_tables import (
    Factors,
    ObjectArray,
    OneFactor,
    is_table,
    object_array,
    read_tables,
    without_dust,
)
from agentmem.model import Model
from agentmem.policy import Tree

OnImpossible = Literal["raise", "pymdp"]

LEGACY = "pymdp.legacy.agent.Agent does that, on dense arrays"
# pymdp's options that ask for something else than filtering and planning in a known model, with the values that do not.
UNSUPPORTED = {
    "pA": (None, f"learning A is not supported: {LEGACY}"),
    "pB": (None, f"learning B is not supported: {LEGACY}"),
    "pD": (None, f"learning D is not supported: {LEGACY}; or pass its mean as D"),
    "inference_algo": ("VANILLA", f"only fixed-point iteration ('VANILLA') is supported: {LEGACY}"),
    "inference_horizon": (1, f"only the present is inferred: {LEGACY}"),
    "policy_sep_prior": (False, f"this belongs to marginal message passing: {LEGACY}"),
    "sophisticated": (False, f"sophisticated inference is not supported: {LEGACY}"),
}
# Options of those, and what pymdp itself does not use then.
IGNORED = {
    "use_param_info_gain", "use_BMA", "inference_params", "modalities_to_learn", "factors_to_learn", "lr_pA", "lr_pB",
    "lr_pD", "si_horizon", "si_policy_prune_threshold", "si_state_prune_threshold", "si_prune_penalty",
}  # fmt: skip
MOST_POLICIES = 1_000_000  # that are made unasked: they and their tree take about 1 kB each
# What `from_pymdp` takes over as it is.
KEPT = (
    "policy_len", "control_fac_idx", "policies", "gamma", "alpha", "use_utility", "use_states_info_gain",
    "action_selection", "sampling_mode", "A_factor_list", "B_factor_list", "C", "D", "E",
)  # fmt: skip


class SparseAgent:
    """An active-inference agent with pymdp's methods, numbers and random stream, in a fraction of the bytes and time.

    Parameters
    ----------
    A : P(o | states) of each modality
        One (O, S1, S2, ...) array, a (O, S1 * S2 * ...) scipy.sparse matrix or a SparseArray, or a sequence of them.
    B : P(s' | states, control) of each factor
        One (S', S1, ..., U) array or SparseArray, or a sequence of U matrices (S', S1 * ...), scipy.sparse ones for
        example; or a sequence of such.
    C, D, E : as pymdp's
        Preferences over observations, prior over states, prior over policies. D may hold SparseBeliefs.
    H : as pymdp's
        Goal states of each factor, for inductive inference.
    prune : float
        Drop what is below this share of a belief's largest entry; 0.0 is exact.
    on_impossible : {"raise", "pymdp"}
        When belief and model rule an observation out: raise, or go on with the mix that pymdp makes of it.
    **options
        The other arguments of pymdp's agent.

    Raises
    ------
    ImpossibleObservation
        By `infer_states`; the agent is as before.
    NotImplementedError
        An option that is not supported (learning, marginal message passing, sophisticated inference).
    ValueError
        Arrays that do not fit each other or are no probabilities.

    Notes
    -----
    Inputs are copied, entry by entry: given sparse ones, no dense table is ever made. `copy.deepcopy(agent)` is an
    independent agent over the same tables: make many so. One thread per agent; any number of agents over the same
    tables.

    With one factor beliefs are exact, so they differ from pymdp's by what its 1e-16 inside logs adds, and a step costs
    O(entries in the rows of the support), with distributions as observations O(entries of A). With several factors
    they are pymdp's to rounding, without zeros unless `prune` makes some; a step costs O(entries of A and B), and only
    an observation that one modality rules out for certain counts as impossible. Where stochastic selection meets equal
    options, a last bit of rounding may let the same dice fall the other way than in pymdp.

    Examples
    --------
    >>> import numpy as np
    >>> A = np.array([[0.9, 0.2], [0.1, 0.8]])
    >>> B = np.stack([np.eye(2), np.eye(2)[::-1]], axis=-1)
    >>> agent = SparseAgent(A, B, C=np.array([0.0, 2.0]))
    >>> agent.infer_states([0])[0].to_dense().round(3)
    array([0.818, 0.182])
    >>> q_pi, G = agent.infer_policies()
    >>> agent.sample_action()
    array([1.])
    """

    def __init__(
        self,
        A: Any,
        B: Any,
        C: Any = None,
        D: Any = None,
        E: Any = None,
        H: Any = None,
        *,
        A_factor_list: Sequence[Sequence[int]] | None = None,
        B_factor_list: Sequence[Sequence[int]] | None = None,
        **options: Any,
    ) -> None:
        _refuse_unsupported(options)
        self._begin(read_tables(A, B, A_factor_list, B_factor_list), C, D, E, H, **options)

    @classmethod
    def from_model(
        cls, model: Model, C: Any = None, D: Any = None, E: Any = None, H: Any = None, **options: Any
    ) -> Self:
        """An agent over a `Model`, which it shares: one factor, one modality. D is the model's prior unless given.

        Raises ValueError for a model whose observations depend on the action, which pymdp's A cannot say.
        """
        if not isinstance(model, Model):
            raise TypeError(f"model of type {type(model).__name__} given; expected an agentmem.Model")
        _refuse_unsupported(options)
        agent = cls.__new__(cls)
        agent._begin(OneFactor(model), C, model.belief() if D is None else D, E, H, **options)
        return agent

    @classmethod
    def from_pymdp(cls, agent: Any, **options: Any) -> Self:
        """The same agent as a `pymdp.legacy.agent.Agent`, in the state it is in, over tables of its own.

        `options` are `prune` and `on_impossible`, or change what the agent has.
        """
        if not isinstance(agent, Agent):
            raise TypeError(f"agent of type {type(agent).__module__}.{type(agent).__name__} given; expected a "
                            "pymdp.legacy.agent.Agent (for pymdp.agent.Agent see integrations.pymdp_jax)")
        kept = {name: getattr(agent, name) for name in UNSUPPORTED if hasattr(agent, name)}
        kept |= {name: getattr(agent, name) for name in KEPT} | agent.edge_handling_params
        if options.keys() & {"policies", "policy_len", "control_fac_idx"}:
            del kept["policies"], kept["E"]
        made = cls(agent.A, agent.B, **(kept | options))
        if "H" not in options:
            made.H, made.I = agent.H, agent.I
        made.qs = [without_dust(q) for q in agent.qs] if made.num_factors == 1 else agent.qs
        for name in ("action", "curr_timestep", "q_pi", "G"):
            if hasattr(agent, name):
                setattr(made, name, copy.deepcopy(getattr(agent, name)))
        for name in ("prev_obs", "prev_actions", "q_pi_hist"):
            if getattr(agent, name, None) is not None:
                setattr(made, name, copy.deepcopy(getattr(agent, name)))
        if hasattr(agent, "qs_hist"):
            made.qs_hist = [made._beliefs(qs) for qs in agent.qs_hist]
        return made

    def _begin(
        self,
        tables: OneFactor | Factors,
        C: Any,
        D: Any,
        E: Any,
        H: Any,
        *,
        num_controls: Sequence[int] | None = None,
        policy_len: int = 1,
        control_fac_idx: Sequence[int] | None = None,
        policies: Sequence[NDArray[Any]] | None = None,
        gamma: float = 16.0,
        alpha: float = 16.0,
        use_utility: bool = True,
        use_states_info_gain: bool = True,
        action_selection: str = "deterministic",
        sampling_mode: str = "marginal",
        save_belief_hist: bool = False,
        ii_depth: int = 10,
        ii_threshold: float = 1 / 16,
        prune: float = 0.0,
        on_impossible: OnImpossible = "raise",
    ) -> None:
        _check_choice("action_selection", action_selection, ("deterministic", "stochastic"))
        _check_choice("sampling_mode", sampling_mode, ("marginal", "full"))
        _check_choice("on_impossible", on_impossible, ("raise", "pymdp"))
        if not 0 <= prune < 1:
            raise ValueError(f"prune={prune!r} given; expected at least 0 and below 1")
        if ii_depth < 1:
            raise ValueError(f"ii_depth={ii_depth!r} given; expected at least 1")
        if not math.isfinite(gamma) or not math.isfinite(alpha):
            raise ValueError(f"gamma={gamma!r} and alpha={alpha!r} given; expected finite numbers")
        if num_controls is not None and list(num_controls) != tables.num_controls:
            raise ValueError(f"num_controls={list(num_controls)} given; B has {tables.num_controls}")
        self._tables = tables
        self.num_obs, self.num_modalities = tables.num_obs, len(tables.num_obs)
        self.num_states, self.num_factors = tables.num_states, len(tables.num_states)
        self.num_controls = tables.num_controls
        self.A_factor_list, self.B_factor_list = tables.A_factor_list, tables.B_factor_list
        self.policy_len, self.gamma, self.alpha = policy_len, gamma, alpha
        self.use_utility, self.use_states_info_gain = use_utility, use_states_info_gain
        self.action_selection, self.sampling_mode = action_selection, sampling_mode
        self.inference_algo, self.inference_horizon = "VANILLA", 1
        self.prune, self.on_impossible = prune, on_impossible
        if control_fac_idx is None:
            control_fac_idx = [f for f, n in enumerate(self.num_controls) if n > 1]
        elif not all(0 <= f < self.num_factors and self.num_controls[f] > 1 for f in control_fac_idx):
            raise ValueError(f"control_fac_idx={control_fac_idx} given; B has {self.num_controls} controls")
        self.control_fac_idx = control_fac_idx
        if policies is None:
            n_policies = math.prod(self.num_controls) ** policy_len
            if n_policies > MOST_POLICIES:
                raise ValueError(f"policy_len={policy_len} makes {n_policies:,} policies of {self.num_controls} "
                                 f"controls; expected at most {MOST_POLICIES:,}: pass those that count as policies=")
            policies = control.construct_policies(self.num_states, self.num_controls, policy_len, control_fac_idx)
        self._tree, self._policies = _read_policies(policies, self.num_controls)

        self.C = [np.zeros(n) for n in self.num_obs] if C is None else C
        self.D = self._uniform() if D is None else D
        self.E = E
        self.H = H
        self.I = None if H is None else tables.induction(_items(H, self.num_factors, "H"), ii_threshold, ii_depth)
        if save_belief_hist:
            self.qs_hist: list[ObjectArray] = []
            self.q_pi_hist: list[NDArray[np.float64]] = []
        self.prev_obs: list[Any] = []
        self.action: NDArray[Any] | None = None
        self.prev_actions: list[Any] | None = None
        self.reset()

    # ---- what it knows

    @property
    def A(self) -> ObjectArray:
        """P(o | states) of each modality, (O, S1, S2, ...), as new SparseArrays. O(entries)."""
        return object_array(self._tables.A)

    @property
    def B(self) -> ObjectArray:
        """P(s' | states, control) of each factor, (S', S1, ..., U), as new SparseArrays. O(entries)."""
        return object_array(self._tables.B)

    @property
    def C(self) -> ObjectArray:
        """Preferences over each modality's observations, (O,) or (O, policy_len): relative log-probabilities. To
        change them, set all."""
        return self._C

    @C.setter
    def C(self, C: Any) -> None:
        self._C, self._utility = self._preferences(C, self._tree.depth)

    def _preferences(self, C: Any, depth: int) -> tuple[ObjectArray, Any]:
        """A read-only copy of C, and what states are worth by it."""
        preferences = [np.array(c, dtype=np.float64) for c in _items(C, self.num_modalities, "C")]
        for m, (c, n) in enumerate(zip(preferences, self.num_obs, strict=True)):
            if c.ndim not in (1, 2) or len(c) != n or (c.ndim == 2 and c.shape[1] < depth):
                raise ValueError(f"C of modality {m} has shape {c.shape}; expected ({n},) or ({n}, policy_len)")
            if not np.isfinite(c).all():
                raise ValueError(f"C of modality {m} has {c[~np.isfinite(c)][0]}; expected finite numbers")
            c.flags.writeable = False
        logs = [maths.spm_log_single(maths.softmax(c if c.ndim == 2 else c[:, np.newaxis])) for c in preferences]
        return _locked(preferences), self._tables.utility(logs, depth)

    @property
    def D(self) -> ObjectArray:
        """What it believes about each factor before the first observation: SparseBeliefs. To change them, set all."""
        return self._D

    @D.setter
    def D(self, D: Any) -> None:
        self._D = self._beliefs(_items(D, self.num_factors, "D"))

    @property
    def policies(self) -> tuple[NDArray[Any], ...]:
        """(policy_len, n_factors) controls of each policy. Setting others makes E uniform again."""
        return self._policies

    @policies.setter
    def policies(self, policies: Sequence[NDArray[Any]]) -> None:
        tree, copies = _read_policies(policies, self.num_controls)
        self._C, self._utility = self._preferences(self._C, tree.depth)
        self._tree, self._policies = tree, copies
        self.E = None

    @property
    def E(self) -> NDArray[np.float64]:
        """(n_policies,) prior over policies; None sets a uniform one."""
        return self._E

    @E.setter
    def E(self, E: Any) -> None:
        n = len(self._policies)
        prior = np.full(n, 1 / n) if E is None else np.array(E, dtype=np.float64)
        if prior.shape != (n,):
            raise ValueError(f"E of shape {prior.shape} given; expected ({n},), one for each policy")
        if not (np.isfinite(prior) & (prior >= 0)).all():
            raise ValueError(f"E of {prior} given; expected finite numbers of at least 0")
        self._E = prior

    @property
    def qs(self) -> ObjectArray:
        """What it believes about each factor: SparseBeliefs. To change them, set all."""
        return self._qs

    @qs.setter
    def qs(self, qs: Any) -> None:
        self._qs = self._beliefs(qs)

    def _uniform(self) -> ObjectArray:
        return _locked([SparseBelief.uniform(n, dtype=self._tables.dtype) for n in self.num_states])

    def _beliefs(self, qs: Any) -> ObjectArray:
        """Copies of beliefs about each factor, as SparseBeliefs."""
        beliefs = [SparseBelief(b, dtype=self._tables.dtype) for b in qs]
        if len(beliefs) != self.num_factors:
            raise ValueError(f"{len(beliefs)} beliefs given; expected {self.num_factors}, one for each factor")
        for f, (b, n) in enumerate(zip(beliefs, self.num_states, strict=True)):
            if b.shape != (n,):
                raise ValueError(f"belief about factor {f} of shape {b.shape} given; expected ({n},)")
            if not abs(b.sum() - 1) <= 1e-5:
                raise ValueError(f"belief about factor {f} sums to {b.sum():.12g}; expected 1")
        return _locked(beliefs)

    # ---- pymdp's verbs

    def reset(self, init_qs: Any = None) -> ObjectArray:
        """Believe `init_qs`, else all states alike, and begin to count time anew. Returns the beliefs."""
        self._qs = self._uniform() if init_qs is None else self._beliefs(init_qs)
        self.curr_timestep = 0
        return self._qs

    def infer_states(self, observation: Any, distr_obs: bool = False) -> ObjectArray:
        """The beliefs about each factor, after the last action and this observation.

        Parameters
        ----------
        observation : sequence of int, or int where there is one modality
            What each modality reads.
        distr_obs : bool
            Whether each is a (O,) distribution instead.

        Returns
        -------
        (n_factors,) object array of SparseBelief
        """
        seen = self._readings(observation, distr_obs)
        if self.action is None:
            before, action = self._D, None
        else:
            before, action = self._qs, self._controls(self.action)
        try:
            beliefs = self._tables.infer(before, action, seen, self.prune)
        except ImpossibleObservation:
            if self.on_impossible != "pymdp":
                raise ImpossibleObservation(
                    f"observation {seen} after action {action} is impossible: evidence 0.0; "
                    "on_impossible='pymdp' goes on with the mix that pymdp makes of it"
                ) from None
            beliefs = self._tables.mix(before, action, seen)
        self._qs = _locked(beliefs)
        if hasattr(self, "qs_hist"):
            self.qs_hist.append(self._qs)
        return self._qs

    def infer_policies(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The posterior over policies and the negative expected free energy of each, both (n_policies,)."""
        worth = self._tables.worth(
            self._qs,
            self._tree,
            self._utility if self.use_utility else None,
            None if self.I is None else self._inductive_costs(self.I),
            bool(self.use_states_info_gain),
        )
        self.G = worth[self._tree.ends]
        self.q_pi = maths.softmax(self.G * self.gamma + maths.spm_log_single(self.E))
        if hasattr(self, "q_pi_hist"):
            self.q_pi_hist.append(self.q_pi)
        return self.q_pi, self.G

    def sample_action(self) -> NDArray[Any]:
        """Choose an action for each factor by `action_selection` and `sampling_mode`, and step time.

        Draws from NumPy's global random stream, as pymdp does.
        """
        _check_choice("action_selection", self.action_selection, ("deterministic", "stochastic"))
        _check_choice("sampling_mode", self.sampling_mode, ("marginal", "full"))
        choose = control.sample_action if self.sampling_mode == "marginal" else control.sample_policy
        self.action = choose(
            self.q_pi, self.policies, self.num_controls, action_selection=self.action_selection, alpha=self.alpha
        )
        self.step_time()
        return self.action

    def step_time(self) -> int:
        """Note the last action and count one step; returns the time."""
        if self.prev_actions is None:
            self.prev_actions = []
        self.prev_actions.append(self.action)
        self.curr_timestep += 1
        return self.curr_timestep

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        shared = (
            self._tables, self._tree, self._policies, self._C, self._utility, self.H, self.I, self.num_obs,
            self.num_states, self.num_controls, self.A_factor_list, self.B_factor_list, self.control_fac_idx,
        )  # fmt: skip
        other.__dict__.update(copy.deepcopy(self.__dict__, {**memo, **{id(part): part for part in shared}}))
        return other

    def __repr__(self) -> str:
        return (f"{type(self).__name__}(num_states={self.num_states}, num_obs={self.num_obs}, "
                f"num_controls={self.num_controls}, policies={len(self._policies)}, "
                f"support={[belief.nnz for belief in self._qs]})")

    # ---- private

    def _readings(self, observation: Any, distr_obs: bool) -> list[Any]:
        """What each modality reads: an int, or a (O,) float64 distribution."""
        if distr_obs:
            readings = _items(observation, self.num_modalities, "observation")
        else:
            is_sequence = isinstance(observation, Sequence | np.ndarray) and getattr(observation, "ndim", 1) > 0
            readings = list(observation) if is_sequence else [observation]
        if len(readings) != self.num_modalities:
            raise ValueError(f"observation of {len(readings)} readings given; expected {self.num_modalities}")
        seen: list[Any] = []
        for m, (reading, n) in enumerate(zip(readings, self.num_obs, strict=True)):
            if distr_obs:
                weights = np.asarray(reading, dtype=np.float64)
                if weights.shape != (n,) or not (weights >= 0).all() or not 0 < weights.sum() < np.inf:
                    raise ValueError(f"modality {m}: {weights} given; expected ({n},) finite weights of at least 0")
                seen.append(weights)
            else:
                if not hasattr(reading, "__index__") or np.ndim(reading):
                    raise TypeError(f"modality {m}: observation {reading!r} given; expected an int "
                                    "(or distributions, with distr_obs=True)")
                if not 0 <= operator.index(reading) < n:
                    raise ValueError(f"modality {m}: observation {reading} given; expected 0 to {n - 1}")
                seen.append(operator.index(reading))
        return seen

    def _controls(self, action: Any) -> list[int]:
        controls = [int(u) for u in action]
        if controls != list(action) or len(controls) != self.num_factors or not all(
            0 <= u < n for u, n in zip(controls, self.num_controls, strict=True)
        ):
            raise ValueError(f"action {controls} given; expected one of {self.num_controls} controls for each factor")
        return controls

    def _inductive_costs(self, stages: ObjectArray) -> list[NDArray[np.float64] | None]:
        """What each state of each factor costs for not being on the way to the goal; as pymdp reckons it."""
        costs: list[NDArray[np.float64] | None] = []
        for belief, reached in zip(self._qs, stages, strict=True):
            steps = np.flatnonzero(reached[:, belief.mode()] == 1)
            way = None if not len(steps) else reached[max(steps[0] - 1, 0)]
            costs.append(None if way is None else (1 - way) * math.log(1e-3))
        return costs


def _refuse_unsupported(options: dict[str, Any]) -> None:
    """Take pymdp's options that have no use here out of `options`; raise for those that ask for more."""
    for name, (harmless, why) in UNSUPPORTED.items():
        value = options.pop(name, harmless)
        if value is not None and (not np.isscalar(value) or value != harmless):  # None is pymdp's "not at all"
            raise NotImplementedError(f"{name}{f'={value!r}' if np.isscalar(value) else ''} given: {why}")
    for name in IGNORED & options.keys():
        del options[name]
    known = SparseAgent._begin.__kwdefaults__ or {}
    if unknown := options.keys() - known.keys():
        raise TypeError(f"SparseAgent got unexpected arguments {sorted(unknown)}; beside pymdp's it takes "
                        "prune and on_impossible")


def _check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} given; expected one of {', '.join(map(repr, choices))}")


def _read_policies(
    policies: Sequence[NDArray[Any]], num_controls: Sequence[int]
) -> tuple[Tree, tuple[NDArray[Any], ...]]:
    """Policies as a tree, and as read-only copies."""
    copies = tuple(np.array(policy) for policy in policies)
    tree = Tree.of(copies, num_controls)
    for policy in copies:
        policy.flags.writeable = False
    return tree, copies


def _locked(items: Sequence[Any]) -> ObjectArray:
    """An object array whose items nobody replaces."""
    array = object_array(items)
    array.flags.writeable = False
    return array


def _items(given: Any, n: int, name: str) -> list[Any]:
    """The n arrays of a sequence of them, or the one that is given bare."""
    is_numbers = not is_table(given) and len(given) > 0 and all(np.ndim(item) == 0 for item in given)
    items = [given] if is_table(given) or is_numbers else list(given)
    if len(items) != n:
        raise ValueError(f"{name} of {len(items)} arrays given; expected {n}")
    return items
