"""pymdp's JAX agent over a Model: one padded copy of the tables for the whole batch, in place of a dense one each.

A table is kept by source: each row lists where its state leads (or what it shows), and a push along the rows adds that
up. So it stays narrow where many states lead to one (a reset, an absorbing state), which would widen incoming lists.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import numpy as np

from agentmem.model import Model

try:
    import jax.numpy as jnp
    from equinox import filter_jit
    from jax import Array, lax, nn, vmap
    from jax.scipy.special import xlogy
    from pymdp.agent import Agent
    from pymdp.control import compute_expected_utility
    from pymdp.maths import MINVAL, log_stable, stable_entropy, stable_xlogx
except ImportError as missing:
    message = "pymdp 1.0 or JAX is not installed: pip install 'agentmem-native[pymdp]'"
    raise ImportError(message, name=missing.name) from None

# What needs dense tables, or would change them, and the one value of each that a SparseAgent takes.
FIXED: dict[str, Any] = {
    "inference_algo": "fpi",
    "use_param_info_gain": False,
    "use_inductive": False,
    "H": None,
    "pA": None,
    "pB": None,
    "learn_A": False,
    "learn_B": False,
    "learn_C": False,
    "learn_D": False,
    "learn_E": False,
}
# What else an Agent keeps under the name that its constructor gives it.
OPTIONS = (
    "batch_size",
    "E",
    "policies",
    "policy_len",
    "control_fac_idx",
    "gamma",
    "alpha",
    "use_utility",
    "use_states_info_gain",
    "categorical_obs",
    "preprocess_fn",
    "action_selection",
    "sampling_mode",
    "inference_horizon",
    "num_iter",
    "learning_mode",
)


class Padded(NamedTuple):
    """Rows of one length K, shorter ones filled up with probability 0; see `Model.to_padded`."""

    indices: Array        # (..., S, K) int
    probabilities: Array  # (..., S, K)


def _push(rows: Padded, beliefs: Array, n_targets: int) -> Array:
    """(n_targets, n) sums over s of P(target | s) belief(s), of n beliefs in columns (S, n)."""

    # An entry of every row at a time: an (S, K, n) array would be K times the beliefs.
    def add(k: Array, pushed: Array) -> Array:
        return pushed.at[rows.indices[:, k]].add(rows.probabilities[:, k, None] * beliefs)

    dtype = jnp.result_type(rows.probabilities, beliefs)
    return lax.fori_loop(0, rows.indices.shape[1], add, jnp.zeros((n_targets, beliefs.shape[1]), dtype))


class SparseAgent(Agent):
    """A `pymdp.agent.Agent` of one factor and one modality, with the same numbers to float rounding, from a Model.

    pymdp copies A and B for each batch element; here `A` and `B` are lists of one `Padded` table without a batch axis,
    and no dense one is ever made. It is used as its parent is: step by step, under `jit`, in `rollout`.

    Parameters
    ----------
    model : Model
        With one observation table for all actions. JAX holds its probabilities as float32 unless x64 is enabled.
    C : (O,), (batch_size, O) or (batch_size, policy_len, O) array, or a list of one, optional
        Preferences; uniform if None.
    D : (S,) or (batch_size, S) array, or a list of one, optional
        The belief at the first observation; the model's prior if None.
    batch_size : int
    **options
        As pymdp's: policy_len, policies, E, gamma, alpha, action_selection, sampling_mode, use_utility,
        use_states_info_gain, categorical_obs and so on.

    Raises
    ------
    ValueError
        For learning, parameter information gain, inductive inference, or an inference_algo other than "fpi": these need
        dense tables, so use `pymdp.agent.Agent`. For a model whose observation tables differ by action, which pymdp
        has no words for. For a shape that does not fit.

    Notes
    -----
    A step takes O(batch_size x policies x policy_len x S x K) time, with K the longest row. Policies take turns, so
    memory beside the tables does not grow with their number. pymdp's tree searches (`planning.si`, `planning.mcts`)
    read A and B as dense arrays and do not take this agent.

    Examples
    --------
    >>> import agentmem as am
    >>> stay, swap = [[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]
    >>> model = am.Model([stay, swap], [[0.75, 0.25], [0.25, 0.75]])
    >>> agent = SparseAgent(model, C=[0.0, 1.0], batch_size=2)
    >>> qs = agent.infer_states([jnp.array([0, 1])], agent.D)
    >>> qs[0].round(2).tolist()
    [[[0.75, 0.25]], [[0.25, 0.75]]]
    >>> q_pi, _ = agent.infer_policies(qs)
    >>> agent.sample_action(q_pi).tolist()
    [[1], [0]]
    """

    A: list[Padded]
    B: list[Padded]

    def __init__(self, model: Model, C: Any = None, D: Any = None, *, batch_size: int = 1, **options: Any) -> None:
        if not isinstance(model, Model):
            raise TypeError(f"model of type {type(model).__name__} given; expected an agentmem.Model, "
                            "as Model.from_pymdp(A, B, D) makes one")
        if operator.index(batch_size) < 1:
            raise ValueError(f"batch_size={batch_size} given; expected at least 1")
        for name, value in FIXED.items():
            given = options.pop(name, value)
            if given is not value and (value is None or given != value):
                raise ValueError(f"{name}={given!r} given; a SparseAgent takes {value!r} only: use pymdp.agent.Agent")
        if model.observations_depend_on_action:
            raise ValueError("a model with a table of observations for each action given; pymdp has one for all")
        n_states, n_observations = model.n_states, model.n_observations
        if C is not None:
            C = [_batched(C, "C", n_observations, batch_size)]
        D = [_batched(model.belief().to_dense() if D is None else D, "D", n_states, batch_size)]
        if not (np.all(D[0] >= 0) and np.allclose(D[0].sum(axis=-1), 1, atol=1e-4)):
            raise ValueError(f"D that sums to {D[0].sum(axis=-1)} given; expected probabilities")
        # Views of one zero, for the shapes that pymdp reads its own facts from.
        zero = np.zeros((), np.float32)
        A = [np.broadcast_to(zero, (batch_size, n_observations, n_states))]
        B = [np.broadcast_to(zero, (batch_size, n_states, n_states, model.n_actions))]
        super().__init__(A, B, C, D, batch_size=batch_size, **options)
        indices, probabilities = model.to_padded("observation")
        self.A = [Padded(jnp.asarray(indices[0]), jnp.asarray(probabilities[0]))]
        self.B = [Padded(*map(jnp.asarray, model.to_padded()))]

    @classmethod
    def from_pymdp(cls, agent: Agent) -> Self:
        """The SparseAgent that does as this dense agent does. Raises ValueError for one that it cannot stand in for."""
        if agent.num_factors != 1 or agent.num_modalities != 1 or agent.action_maps is not None:
            raise ValueError(
                f"an agent of {agent.num_factors} factors and {agent.num_modalities} modalities"
                f"{'' if agent.action_maps is None else ', with B_action_dependencies'} given; expected one of each"
            )
        for name in "AB":
            table = getattr(agent, name)[0]
            first = table[0]
            if not all(jnp.array_equal(first, table[i]) for i in range(1, agent.batch_size)):
                raise ValueError(f"an agent whose {name} differs between batch elements given; a SparseAgent has one")
        A, B = np.asarray(agent.A[0][0]), np.asarray(agent.B[0][0])
        model = Model.from_pymdp(A, B, dtype=np.result_type(A, B, np.float32))
        return cls(model, agent.C, agent.D, **{name: getattr(agent, name) for name in (*FIXED, *OPTIONS)})

    def _validate(self) -> None:
        """Nothing: the Model checked its rows, and A and B are not yet there when pymdp asks."""

    def infer_states(
        self,
        observations: list[Array],
        empirical_prior: list[Array],
        *,
        past_actions: Array | None = None,
        qs_hist: list[Array] | None = None,
        valid_steps: int | Array | None = None,
        mask: list[Array] | None = None,
        preprocess_fn: Callable[[Any], list[Array]] | None = None,
        return_info: bool = False,
    ) -> list[Array]:
        """As `Agent.infer_states`; without `mask` and `return_info` (ValueError). The past is in the prior."""
        if mask is not None or return_info:
            raise ValueError("mask or return_info given; a SparseAgent has neither: use pymdp.agent.Agent")
        if not isinstance(empirical_prior, list | tuple) or len(empirical_prior) != 1:
            raise ValueError("`empirical_prior` must be a list of one array, as there is one factor")
        seen = (self.process_obs if preprocess_fn is None else preprocess_fn)(observations)[0]
        seen = seen if seen.ndim == 2 else seen[:, -1]
        q = self._posterior(seen, empirical_prior[0])[:, None]
        if qs_hist is not None:
            q = jnp.concatenate([qs_hist[0], q], axis=1)
            q = q if self.inference_horizon is None else q[:, -self.inference_horizon :]
        return [q]

    @filter_jit  # type: ignore[untyped-decorator]
    def _posterior(self, seen: Array, prior: Array) -> Array:
        """(batch_size, S) beliefs, of distributions over observations (batch_size, O) and of priors (batch_size, S)."""
        shown, probabilities = self.A[0].indices, self.A[0].probabilities[..., None]
        share = jnp.where(probabilities > 0, seen.T[shown], 0)
        never = seen.sum(axis=1) - share.sum(axis=1)  # of what a state does not show, at pymdp's smallest probability
        log_likelihood = xlogy(share, jnp.clip(probabilities, min=MINVAL)).sum(axis=1) + never * jnp.log(MINVAL)
        return nn.softmax(log_likelihood.T + log_stable(prior))

    @filter_jit  # type: ignore[untyped-decorator]
    def update_empirical_prior(self, action: Array, qs: list[Array]) -> list[Array]:
        """As `Agent.update_empirical_prior`."""
        # One push from all pairs of an action and a state, as the batch's actions differ; most masses are zero.
        chosen = action[:, 0] == jnp.arange(self.num_controls[0])[:, None, None]
        pairs = jnp.where(chosen, qs[0][:, -1].T, 0).reshape(-1, self.batch_size)
        rows = Padded(*(table.reshape(-1, table.shape[-1]) for table in self.B[0]))
        return [_push(rows, pairs, self.num_states[0]).T]

    @filter_jit  # type: ignore[untyped-decorator]
    def infer_policies(self, qs: list[Array]) -> tuple[Array, Array]:
        """As `Agent.infer_policies`: (batch_size, policies) posterior and negative expected free energies."""
        ambiguity = -stable_xlogx(self.A[0].probabilities).sum(axis=1)

        def negative_efe(actions: Array) -> Array:
            def step(t: Array, so_far: tuple[Array, Array]) -> tuple[Array, Array]:
                beliefs, total = so_far
                rows = Padded(*(table[actions[t]] for table in self.B[0]))
                beliefs = _push(rows, beliefs, self.num_states[0])
                observed = _push(self.A[0], beliefs, self.num_obs[0])
                if self.use_states_info_gain:
                    total += vmap(stable_entropy, in_axes=1)(observed) - ambiguity @ beliefs
                if self.use_utility:
                    total += vmap(lambda o, C: compute_expected_utility([o], [C], t))(observed.T, self.C[0])
                return beliefs, total

            beliefs = qs[0][:, -1].T
            return lax.fori_loop(0, self.policies.horizon, step, (beliefs, jnp.zeros_like(beliefs[0])))[1]

        neg_efe = lax.map(negative_efe, self.policies.policy_arr[:, :, 0]).T
        return nn.softmax(self.gamma[:, None] * neg_efe + log_stable(self.E)), neg_efe


def _batched(given: Any, name: str, size: int, batch_size: int) -> Array:
    """The array, or the one in a list, with a batch axis."""
    if isinstance(given, list | tuple) and len(given) == 1 and np.ndim(given[0]) > 0:
        given = given[0]
    array = jnp.asarray(given)
    if array.shape == (size,):
        return jnp.broadcast_to(array, (batch_size, size))
    n_axes = 3 if name == "C" else 2
    if not 2 <= array.ndim <= n_axes or array.shape[0] != batch_size or array.shape[-1] != size:
        raise ValueError(
            f"{name} of shape {array.shape} given; expected ({size},) or ({batch_size}, {size})"
            + (f", or by step of the policy ({batch_size}, policy_len, {size})" if name == "C" else "")
        )
    return array
