"""`Model.filter` is the loop of `update`, bit for bit, and a dense float64 filter to rounding."""

import math
import signal
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

import agentmem as am
import reference
from corpus import FOLDERS, MODELS, model_of, models
from reference import DTYPES, Traced, bits, content, one_of_each_storage, random_tables, ring_tables, unchanged
from test_corpus import reference_of

dtypes = pytest.mark.parametrize("dtype", DTYPES)


def updated(belief, model, actions, observations, **options):
    """What the pass must give: log-evidences and copies of the belief after each step."""
    found, beliefs = [], []
    for action, observation in zip(actions, observations, strict=True):
        seen = None if observation is None or observation < 0 else int(observation)
        found.append(belief.update(model, int(action), seen, **options))
        beliefs.append(belief.copy())
    return found, beliefs


def assert_same_pass(result, found, beliefs):
    assert result.log_evidence.dtype == np.float64
    assert result.log_evidence.tolist() == found
    assert len(result.beliefs) == len(beliefs)
    for ours, theirs in zip(result.beliefs, beliefs, strict=True):
        assert content(ours) == content(theirs)
    if beliefs:
        assert bits(result.belief) == bits(beliefs[-1])
    result.belief._check()


def ring(n_states=1000, dtype=np.float64, **options):
    return am.Model(*ring_tables(n_states), dtype=dtype, **options)


def one_room():
    """Two states that nobody leaves; each shows its own number."""
    return am.Model([np.eye(2), np.eye(2)], np.eye(3)[:2], [1.0, 0.0])


# ---- against dense float64


@st.composite
def passes(draw):
    """Dense tables, a prior, and what is done and seen."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n_states = draw(st.integers(1, 40))
    n_steps = draw(st.integers(0, 12))
    transitions, observation = random_tables(rng, n_states, seen=draw(st.integers(1, 3)))
    prior = np.where(rng.random(n_states) < draw(st.sampled_from([0.1, 0.5, 1.0])), rng.random(n_states) + 0.01, 0)
    prior[rng.integers(n_states)] = 1.0
    actions = draw(st.lists(st.integers(0, 1), min_size=n_steps, max_size=n_steps))
    observations = draw(st.lists(st.sampled_from([None, 0, 1, 2]), min_size=n_steps, max_size=n_steps))
    return transitions, observation, prior, actions, observations


@given(passes(), st.sampled_from(["predict", "correct"]))
def test_a_pass_is_that_of_a_dense_filter(given_pass, first):
    transitions, Z, p, actions, observations = given_pass
    model = am.Model(transitions, Z)
    expected, log_evidence = [], []
    for t, (action, observation) in enumerate(zip(actions, observations, strict=True)):
        if t == 0 and first == "correct":
            p, found = (p, 0.0) if observation is None else reference.correct(p, Z[:, observation])
        else:
            p, found = reference.update(p, transitions[action], Z, observation)
        if p is None:
            break
        p = reference.normalized(p)
        expected.append(p)
        log_evidence.append(found)
    taken = actions if first == "predict" else actions[1:]
    options = {"initial": given_pass[2], "first": first, "prune": 0.0, "beliefs": True}
    if p is None:
        with pytest.raises(am.ImpossibleObservation, match=rf"^step {len(expected)}\b.*observation {observation}\b"):
            model.filter(observations, taken, **options)
        return
    result = model.filter(observations, taken, **options)
    np.testing.assert_allclose(result.log_evidence, log_evidence, rtol=1e-12, atol=1e-12)
    dense = result.beliefs.to_scipy().toarray()
    assert dense.shape == (len(expected), len(p))
    if expected:
        np.testing.assert_allclose(dense, expected, rtol=1e-12, atol=1e-300)


@pytest.mark.skipif(not FOLDERS, reason=f"no models in {MODELS}")
@models
@dtypes
def test_log_evidence_on_real_models_is_that_of_exact_arithmetic(name, dtype):
    model, r = model_of(name, dtype), reference_of(name)
    for actions, observations, expected in zip(r["actions"], r["observations"], r["loglik"], strict=True):
        found = model.filter(observations, actions, prune=0.0).log_evidence
        assert np.abs(found - expected).max() <= (1e-9 if dtype == np.float64 else 2e-6)


# ---- bit for bit


@dtypes
@pytest.mark.parametrize("prune", [None, 0.0, 0.1])
@pytest.mark.parametrize("tables", ["ring", "scattered", "dense"])
def test_a_pass_is_the_loop_of_updates(dtype, prune, tables):
    rng = np.random.default_rng(1)
    if tables == "ring":  # from one state to all of them: pairs, bitmap, dense
        model = ring(dtype=dtype, initial=np.eye(1000)[0])
    else:
        branching = 3 if tables == "scattered" else 60
        model = am.Model(*random_tables(rng, 80, branching=branching, n_observations=4, seen=4), dtype=dtype)
    n_steps = 600 if tables == "ring" else 60
    actions = rng.integers(model.n_actions, size=n_steps)
    observations = rng.integers(-1, 4, size=n_steps)
    result = model.filter(observations, actions, prune=prune, beliefs=True)
    belief = model.belief()
    assert_same_pass(result, *updated(belief, model, actions, observations, prune=prune))
    assert result.belief.pruned_mass == belief.pruned_mass
    assert (prune == 0.1) == (belief.pruned_mass > 1e-6)


@dtypes
@pytest.mark.parametrize("storage", ["pairs", "bitmap", "dense", "uniform"])
@pytest.mark.parametrize("n_steps", [0, 1, 2])
def test_from_every_storage(dtype, storage, n_steps):
    initial = one_of_each_storage(am.SparseBelief, dtype)[storage]
    initial.prune_below, initial.pruned_mass = 0.01, 0.25
    model = ring(initial.size, dtype)
    with unchanged(initial):
        result = model.filter([1] * n_steps, initial=initial, beliefs=True)
    belief = initial.copy()
    assert_same_pass(result, *updated(belief, model, [0] * n_steps, [1] * n_steps))
    assert bits(result.belief) == bits(belief)


@dtypes
@pytest.mark.parametrize("storage", ["pairs", "bitmap", "dense", "uniform"])
@pytest.mark.parametrize("seen", [None, 2])
def test_the_first_step_may_only_correct(dtype, storage, seen):
    initial = one_of_each_storage(am.SparseBelief, dtype)[storage]
    initial *= 3
    model = ring(initial.size, dtype)
    result = model.filter([seen, 1, None], initial=initial, first="correct", beliefs=True)
    belief = initial.copy()
    if seen is None:
        belief.normalize()
    log_evidence = 0.0 if seen is None else belief.correct(model.likelihood(0, seen))
    begun = belief.copy()
    found, beliefs = updated(belief, model, [0, 0], [1, None])
    assert_same_pass(result, [log_evidence, *found], [begun, *beliefs])


def test_the_first_step_may_be_all():
    model = one_room()
    assert model.filter([0], [], first="correct").log_evidence.tolist() == [0.0]
    assert bits(model.filter([], [], first="correct").belief) == bits(model.belief())


def test_beliefs_keep_their_shape_and_class():
    model = ring(12)
    initial = am.SparseBelief.point((3, 4), (1, 2))
    result = model.filter([2, 3], initial=initial, beliefs=True)
    assert result.belief.shape == result.beliefs[0].shape == (3, 4)
    assert bits(model.filter([2], initial=np.eye(12)[5]).belief) == bits(
        model.filter([2], initial=am.SparseBelief.point(12, 5)).belief
    )


def test_numbers_come_in_many_forms():
    model = ring(100)
    expected = model.filter([1, -1, 2]).log_evidence
    strided = np.array([1, 9, -1, 9, 2, 9], np.int16)
    for form in ([1, None, 2], (1, -1, 2), np.array([1, None, 2]), strided[::2], np.array([2, -1, 1])[::-1]):
        assert np.array_equal(model.filter(form).log_evidence, expected)
    for dtype in (np.uint8, np.uint64, np.int32):
        assert np.array_equal(model.filter(np.array([1, 2], dtype)).log_evidence, model.filter([1, 2]).log_evidence)
    assert np.array_equal(model.filter(range(3), [False] * 3).log_evidence, model.filter([0, 1, 2]).log_evidence)


# ---- what goes wrong


def test_an_impossible_observation_names_its_step():
    model = one_room()
    initial = model.belief()
    expected = r"^step 2: observation 1 after action 1 is impossible: evidence 0"
    with unchanged(initial), pytest.raises(am.ImpossibleObservation, match=expected):
        model.filter([0, 0, 1, 0], [0, 1, 1, 0], initial=initial, beliefs=True)
    with unchanged(initial), pytest.raises(am.ImpossibleObservation, match=r"^step 0, observation 1: .*evidence 0"):
        model.filter([1, 0], [0], initial=initial, first="correct")


@dtypes
@pytest.mark.parametrize("way", ["predict", "likelihood"])
def test_a_pass_goes_on_after_an_impossible_observation_as_update_does(dtype, way):
    transition = sparse.csr_array(np.eye(200) * 0.5 + np.roll(np.eye(200), 1, axis=1) * 0.5)
    model = am.Model(transition, sparse.csr_array(np.eye(200)), np.eye(200)[0], dtype=dtype)
    observations = [1, 150, 2, 3, 4, 4, 199]
    result = model.filter(observations, on_impossible=way, beliefs=True)
    found, beliefs = updated(model.belief(), model, [0] * 7, observations, on_impossible=way)
    assert -math.inf in found[1:] and found[0] > -math.inf
    assert_same_pass(result, found, beliefs)
    result = model.filter(observations, first="correct", on_impossible=way, beliefs=True)
    belief = model.belief()
    first = belief.correct(model.likelihood(0, 1), on_impossible=way), belief.copy()
    found, beliefs = updated(belief, model, [0] * 6, observations[1:], on_impossible=way)
    assert first[0] == -math.inf
    assert_same_pass(result, [first[0], *found], [first[1], *beliefs])


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"observations": [0, 3, 4]}, ValueError, r"observations\[1\] is 3; expected -1 to 2"),
        ({"observations": [0, 1, -2]}, ValueError, r"observations\[2\] is -2; expected -1 to 2"),
        ({"observations": [0, 1.0, 1]}, TypeError, r"observations\[0\] is 0.0 of type float; expected an int"),
        ({"observations": [None, "a", 1]}, TypeError, r"observations\[1\] is 'a' of type str"),
        ({"observations": [0, 2**70, 1]}, ValueError, r"observations\[1\] is 1180591620717411303424; no model"),
        ({"observations": np.array([0, 2**63, 1], np.uint64)}, ValueError, r"observations\[1\] is 9223372036854775808"),
        ({"observations": 1}, ValueError, r"observations of shape \(\) given; expected one number per step"),
        ({"observations": [[0, 1, 1]]}, ValueError, r"observations of shape \(1, 3\)"),
        ({"observations": [0, 1]}, ValueError, "3 actions given for 2 observations; expected 2"),
        ({"actions": [0, 2, -1]}, ValueError, r"actions\[1\] is 2; expected 0 to 1"),
        ({"actions": [0, 1, -1]}, ValueError, r"actions\[2\] is -1; expected 0 to 1"),
        ({"actions": [0, None, 1]}, TypeError, r"actions\[1\] is None of type NoneType; expected an int"),
        ({"actions": np.zeros(3)}, TypeError, r"actions\[0\] is 0.0 of type float"),
        ({"actions": [0, 1]}, ValueError, "2 actions given for 3 observations; expected 3"),
        ({"actions": None}, ValueError, "actions=None given with a model of 2 actions; expected one per step"),
        ({"first": "correct"}, ValueError, "3 actions given for 3 observations; expected 2"),
        ({"first": "update"}, ValueError, "first='update' given; expected 'predict' or 'correct'"),
        ({"prune": 1.0}, ValueError, "prune=1.0 given"),
        ({"prune": "all"}, TypeError, "prune='all' given"),
        ({"on_impossible": "skip"}, ValueError, "on_impossible='skip' given"),
        ({"initial": [1.0, 0.0, 0.0]}, ValueError, "belief of 3 states given with a model of 2"),
        ({"initial": [0.0, 0.0]}, ValueError, "without any mass"),
        ({"initial": [1.0, -1.0]}, ValueError, "-1.0 at index 1"),
        ({"initial": am.SparseBelief([1, 0], dtype=np.float32)}, TypeError, "float32 given with a model of float64"),
    ],
)
def test_what_does_not_fit_is_refused(options, error, says):
    taken = {"observations": [0, 0, 0], "actions": [0, 1, 0], **options}
    with pytest.raises(error, match=says):
        one_room().filter(**taken)
    if isinstance(options.get("initial"), am.SparseBelief):
        assert options["initial"]._check() is None


def test_wrong_numbers_are_found_before_the_pass():
    """Else the impossible observation before them would be what is named."""
    with pytest.raises(ValueError, match=r"^observations\[2\] is 7"):
        one_room().filter([0, 1, 7], [0, 0, 0])


def test_a_belief_that_is_no_measure_any_more_is_refused():
    model, initial = one_room(), am.SparseBelief([0.5, 0.5])
    initial -= 1
    with unchanged(initial), pytest.raises(ValueError, match=r"belief with -0.5 at index 0"):
        model.filter([0], [0], initial=initial)


def test_only_correcting_needs_observations_that_no_action_changes():
    model = am.Model([np.eye(2), np.eye(2)], [np.eye(2), np.eye(2)[::-1]])
    with pytest.raises(ValueError, match=r"first='correct' given.*depends on the action"):
        model.filter([0], [], first="correct")
    assert model.filter([0], [1]).belief.mode() == 1


# ---- the record


def test_the_record_is_compact_and_read_only():
    model = ring(1000, np.float32, initial=np.eye(1000)[500])
    record = model.filter([0] * 20, prune=0.0, beliefs=True).beliefs
    n_entries = sum(2 * t + 3 for t in range(20))
    assert (record.offsets.dtype, record.states.dtype, record.values.dtype) == (np.int64, np.int32, np.float32)
    assert (record.offsets.shape, record.states.shape, record.values.shape) == ((21,), (n_entries,), (n_entries,))
    assert 0 < record.nbytes - (21 * 8 + n_entries * 8) < 200
    for array in (record.offsets, record.states, record.values):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    assert repr(record) == (
        f"Trajectory(steps=20, belief_shape=(1000,), dtype=float32, entries={n_entries}, nbytes={record.nbytes})"
    )


def test_the_record_is_a_sequence_and_a_matrix():
    model = ring(300, initial=np.eye(300)[7])
    record = model.filter([0, 1, 2, 3], beliefs=True).beliefs
    assert [content(b) for b in record] == [content(record[t]) for t in range(4)]
    assert content(record[-1]) == content(record[3])
    assert content(record[np.int64(-4)]) == content(record[0])
    matrix = record.to_scipy()
    assert matrix.has_canonical_format and matrix.shape == (4, 300)
    assert np.array_equal(matrix.toarray(), [b.to_dense() for b in record])
    matrix *= 2  # a copy
    assert abs(record[0].sum() - 1) < 1e-12
    for t in (4, -5):
        with pytest.raises(IndexError, match=f"step {t} given; there are 4"):
            record[t]
    with pytest.raises(TypeError):
        record["a"]


def test_nothing_is_recorded_unless_asked():
    assert ring(10).filter([0, 1]).beliefs is None
    empty = ring(10).filter([], beliefs=True).beliefs
    assert list(empty) == [] and empty.to_scipy().shape == (0, 10)


# ---- memory and threads


def test_a_pass_leaves_nothing_behind():
    model, room = ring(2000), one_room()
    actions = [0] * 50

    def work():
        for _ in range(5):
            model.filter([1, -1] * 25, actions, beliefs=True)
            with pytest.raises(am.ImpossibleObservation):
                room.filter([0] * 49 + [1], actions, beliefs=True)

    work()
    with Traced() as traced:
        work()
    assert traced.kept < 2000


def test_threads_filter_with_one_model():
    model = ring(3000)
    observations = np.random.default_rng(3).integers(4, size=(2, 400))
    alone = [model.filter(seen, beliefs=True) for seen in observations]
    together = [None, None]

    def work(k):
        together[k] = model.filter(observations[k], beliefs=True)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(alone, together, strict=True):
        assert bits(one.belief) == bits(other.belief)
        assert np.array_equal(one.log_evidence, other.log_evidence)
        assert one.beliefs.values.tobytes() == other.beliefs.values.tobytes()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timer here")
def test_signals_are_handled_during_a_long_pass():
    """All signals that come in a stretch without pauses are handled as one, at its end."""
    handled = []
    before = signal.signal(signal.SIGALRM, lambda *_: handled.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        model = ring(100_000)
        handled.clear()
        model.filter(np.zeros(1700, np.intp))  # some 5e8 entries
        n_handled = len(handled)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert n_handled > 2
