"""A RayPopulation is a Population, bit for bit, whatever dies meanwhile."""

import contextlib
import os
import signal
import threading
import time

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

import agentmem as am
import reference
from corpus import model_of as real_model_of
from corpus import models, needed, walks
from reference import content, full_disk

module = pytest.importorskip("agentmem.integrations.ray", reason="Ray is not installed", exc_type=ImportError)
RayPopulation = module.RayPopulation


@pytest.fixture(scope="module", autouse=True)
def ray():
    """A local Ray, as the first RayPopulation starts it."""
    am.integrations.ray.RayPopulation(divided(), 1, n_shards=1)
    import ray

    yield ray
    ray.shutdown()


def model_of(dtype=np.float64, seed=0):
    return am.Model(*reference.random_tables(np.random.default_rng(seed), 40, n_observations=4, seen=4), dtype=dtype)


def divided():
    """Two states that never meet, and which the observation tells apart."""
    return am.Model([np.eye(2), np.eye(2)], np.eye(2))


def steps(model, n_agents, n_steps, seed=1):
    rng = np.random.default_rng(seed)
    actions = rng.integers(model.n_actions, size=(n_steps, n_agents))
    return list(zip(actions, rng.integers(-1, model.n_observations, size=(n_steps, n_agents)), strict=True))


def both(n_agents=20, n_shards=3, **options):
    """A population here and one in shards."""
    model = model_of()
    return am.Population(model, n_agents, **options), RayPopulation(model, n_agents, n_shards=n_shards, **options)


def snapshot(population):
    return [(content(b), b.pruned_mass) for b in population]


def processes():
    """Of all shards there are, those of populations that nobody holds any more and that end just now among them."""
    ours = {process.pid for process in psutil.Process().children(recursive=True)}
    found = (process for process in psutil.process_iter(["cmdline"]) if process.pid in ours)
    return [process for process in found if "ray::Shard" in " ".join(process.info["cmdline"] or [])]


def kill(population, *shards):
    """End their processes, and wait until that is known."""
    import ray

    for k in shards:
        actor = population.actors[k]
        ray.kill(actor)
        with pytest.raises(ray.exceptions.RayActorError):
            while True:
                ray.get(actor.settle.remote(1 << 60))  # counts whatever it has made


# ---- the same numbers


@needed
@models
@pytest.mark.parametrize("n_shards", [1, 3])
def test_real_models(name, n_shards, tmp_path):
    model = real_model_of(name, np.float64)
    here, there = am.Population(model, 200), RayPopulation(model, 200, n_shards=n_shards)
    for t, (actions, observations) in enumerate(zip(*walks(model, 200, 5), strict=True)):
        if t == 3:
            there.checkpoint(tmp_path / "agents")
            there = RayPopulation.restore(tmp_path / "agents", model, n_shards=n_shards)
        found = there.update(actions, observations, on_impossible="predict")
        assert found.tolist() == here.update(actions, observations, on_impossible="predict").tolist()
    assert snapshot(there) == snapshot(here)


@pytest.mark.parametrize("n_agents", [0, 1, 2, 23])
def test_whatever_is_asked_is_answered_as_by_a_population(n_agents):
    here, there = both(n_agents, initial=am.SparseBelief.uniform((8, 5)), prune=1e-3, max_states=30)
    for actions, observations in steps(here.model, n_agents, 3):
        found = there.update(actions, observations, on_impossible="likelihood")
        assert found.tolist() == here.update(actions, observations, on_impossible="likelihood").tolist()
    assert len(there) == n_agents and (there.prune, there.max_states) == (1e-3, 30)
    assert there.model is not None and there.model == here.model
    assert there.nnz.tolist() == here.nnz.tolist()
    assert there.mode().tolist() == here.mode().tolist()
    assert there.entropy().tolist() == here.entropy().tolist()
    assert [part.tolist() for part in there.top(3)] == [part.tolist() for part in here.top(3)]
    assert there.expectation(np.arange(40.0).reshape(8, 5)).tolist() == here.expectation(np.arange(40.0)).tolist()
    assert there.sample(5).tolist() == here.sample(5).tolist()
    assert [content(b) for b in there.marginal(1)] == [content(b) for b in here.marginal(1)]
    policies, preferences = [[0, 0], [0, 1], [1]], [0.0, 2.0, -1.0, 0.5]
    G = there.expected_free_energy(policies, preferences, use_utility=False)
    assert G.tolist() == here.expected_free_energy(policies, preferences, use_utility=False).tolist()
    for selection in ("deterministic", "stochastic"):
        chosen = [agents.act(policies, preferences, action_selection=selection, rng=3) for agents in (there, here)]
        assert chosen[0].tolist() == chosen[1].tolist()
    assert abs(there.nbytes - here.nbytes) < 1_500
    for which in (slice(None), slice(3, 17), slice(None, None, -2), slice(5, 5)):
        part = there[which]
        assert isinstance(part, am.Population) and snapshot(part) == snapshot(here[which])
    for agent in range(-n_agents, n_agents):
        assert content(there[agent]) == content(here[agent])
    for agent in (n_agents, -n_agents - 1):
        with pytest.raises(IndexError, match=f"agent {agent} given; there are {n_agents}"):
            there[agent]


@pytest.mark.parametrize("n_shards", [1, 2, 5])
def test_beliefs_of_all_kinds(n_shards):
    model = model_of(np.float32)
    rng = np.random.default_rng(0)
    beliefs = [am.SparseBelief(reference.scattered(rng, 40, n, np.float32)) for n in (1, 2, 7, 30, 40)]
    beliefs += [am.SparseBelief.uniform(40, dtype=np.float32), am.SparseBelief.point(40, 7, dtype=np.float32)]
    there = RayPopulation.from_beliefs(model, beliefs, n_shards=n_shards, prune=0.0)
    here = am.Population.from_beliefs(model, beliefs, prune=0.0)
    assert snapshot(there) == snapshot(here)
    there.update(0, -1)
    here.update(0, -1)
    assert snapshot(there) == snapshot(here)


def test_shards_keep_their_share():
    population = RayPopulation(divided(), 10, n_shards=4)
    assert [len(part) for part in population._ask("nnz")] == [3, 3, 2, 2]
    again = population.copy()
    again.update(0, 1)
    assert population.entropy().all() and not again.entropy().any()
    assert repr(population) == "RayPopulation(10 agents in 4 shards, n_states=2)"


# ---- all or none


def test_impossible_observations_name_their_agents_and_change_nothing():
    start = [am.SparseBelief.point(2, k % 2) for k in range(12)]
    population = RayPopulation.from_beliefs(divided(), start, n_shards=3)
    before = snapshot(population)
    observations = np.arange(12) % 2
    observations[[2, 7, 11]] ^= 1
    with pytest.raises(am.ImpossibleObservation, match=r"agents 2 \(action 0, observation 1\), 7 .*, 11 ") as raised:
        population.update(0, observations)
    assert raised.value.agents == [2, 7, 11]
    kill(population, 1)
    assert snapshot(population) == before
    assert population.update(0, np.arange(12) % 2).tolist() == [0.0] * 12


def test_an_interrupt_changes_nothing(ray, monkeypatch):
    here, there = both()
    [first, second] = steps(here.model, 20, 2)
    there.update(*first, on_impossible="predict")
    before, get, seen = snapshot(there), ray.get, []

    def interrupted(answer):
        seen.append(answer)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return get(answer)

    monkeypatch.setattr(ray, "get", interrupted)
    with pytest.raises(KeyboardInterrupt):
        there.update(*second, on_impossible="predict")
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        there.remove([0, 10, 19])
    monkeypatch.undo()
    assert snapshot(there) == before and len(there) == 20
    for step in (first, second):
        here.update(*step, on_impossible="predict")
    there.update(*second, on_impossible="predict")
    assert snapshot(there) == snapshot(here)


@pytest.mark.parametrize("dies", [False, True])
def test_what_was_interrupted_stays_undone_whatever_other_shards_do(dies):
    here, there = both(9)
    with there._alone():  # made by one shard; then the driver is interrupted before it has noted or said anything
        there._results("change", [(0, (("__setitem__", (0, am.SparseBelief.point(40, 3)), {}),))])
    here[8] = there[8] = am.SparseBelief.point(40, 4)
    if dies:
        kill(there, 0)
    assert snapshot(there) == snapshot(here)


def test_a_result_that_is_lost_is_asked_for_again(ray, monkeypatch):
    here, there = both()
    get, lost = ray.get, []

    def losing(answer):
        if len(lost) < 3:
            lost.append(get(answer))
            raise ray.exceptions.OutOfMemoryError("the node ran out of it")
        return get(answer)

    monkeypatch.setattr(ray, "get", losing)
    assert there.update(0, -1).tolist() == here.update(0, -1).tolist()
    assert len(lost) == 3 and snapshot(there) == snapshot(here)


def test_an_interrupted_setting_is_taken_back(ray, monkeypatch):
    _, there = both()
    before, get = snapshot(there), ray.get

    def interrupted(answer):
        get(answer)
        raise KeyboardInterrupt

    monkeypatch.setattr(ray, "get", interrupted)
    with pytest.raises(KeyboardInterrupt):
        there[3] = am.SparseBelief.point(40, 3)
    monkeypatch.undo()
    assert snapshot(there) == before


def test_wrong_calls_are_refused_and_change_nothing():
    _, there = both()
    before = snapshot(there)
    for wrong, error, says in (
        (lambda: there.update([0] * 19, 0), ValueError, r"actions of shape \(19,\) given; expected \(20,\)"),
        (lambda: there.update(2, 0), ValueError, "agent 0: action 2 given"),
        (lambda: there.update(0, 0, on_impossible="ignore"), ValueError, "on_impossible='ignore' given"),
        (lambda: there.add([am.SparseBelief.uniform(41)]), ValueError, "belief of 41 states"),
        (lambda: there.add([None]), TypeError, "belief of type NoneType"),
        (lambda: there.__setitem__(0, am.SparseBelief.uniform(40, dtype=np.float32)), TypeError, "float32"),
        (lambda: there.remove([0, 20]), IndexError, "agent 20 given"),
        (lambda: there.top(-1), ValueError, "k=-1 given"),
        (lambda: there.expectation(np.ones(41)), ValueError, r"f of shape \(41,\)"),
        (lambda: there.expected_free_energy([], [0.0] * 4), ValueError, "no policies given"),
    ):
        with pytest.raises(error, match=says):
            wrong()
    assert snapshot(there) == before
    for options, says in (
        ({"n_shards": 0}, "n_shards=0 given"),
        ({"n_agents": -1}, "n_agents=-1 given"),
        ({"prune": 1.0}, "prune=1.0 given"),
        ({"initial": [1.0, 0.0]}, "belief of 2 states"),
    ):
        with pytest.raises(ValueError, match=says):
            RayPopulation(**({"model": there.model, "n_agents": 3, "n_shards": 2} | options))


def test_one_thread_at_a_time():
    _, there = both()
    with there._alone(), pytest.raises(RuntimeError, match="two threads in one RayPopulation"):
        there.update(0, -1)


# ---- what dies is begun again


class Machine(RuleBasedStateMachine):
    """Whatever is done, and whichever shards die between, agents are those of a list."""

    @initialize(n=st.integers(0, 12), n_shards=st.integers(1, 3))
    def begin(self, n, n_shards):
        self.model = model_of()
        self.agents = RayPopulation(self.model, n, n_shards=n_shards)
        self.beliefs = [self.model.belief() for _ in range(n)]

    @rule(seed=st.integers(0, 99), mode=st.sampled_from(["raise", "predict"]))
    def update(self, seed, mode):
        [(actions, observations)] = steps(self.model, len(self.beliefs), 1, seed)
        stepped = [b.copy() for b in self.beliefs]
        try:
            expected = [
                b.update(self.model, int(a), None if o < 0 else int(o), prune=1e-12, on_impossible=mode)
                for b, a, o in zip(stepped, actions, observations, strict=True)
            ]
        except am.ImpossibleObservation:
            with pytest.raises(am.ImpossibleObservation):
                self.agents.update(actions, observations, on_impossible=mode)
            return
        assert self.agents.update(actions, observations, on_impossible=mode).tolist() == expected
        self.beliefs = stepped

    @rule(seeds=st.lists(st.integers(0, 99), max_size=3))
    def add(self, seeds):
        new = [am.SparseBelief(reference.scattered(np.random.default_rng(seed), 40, 1 + seed % 40)) for seed in seeds]
        self.agents.add(new)
        self.beliefs += new

    @rule(data=st.data())
    def remove(self, data):
        gone = data.draw(st.lists(st.integers(0, len(self.beliefs) - 1), max_size=3)) if self.beliefs else []
        self.agents.remove(np.array(gone, dtype=int))
        self.beliefs = [b for k, b in enumerate(self.beliefs) if k not in gone]

    @rule(data=st.data())
    def put(self, data):
        if self.beliefs:
            k, state = data.draw(st.integers(0, len(self.beliefs) - 1)), data.draw(st.integers(0, 39))
            self.beliefs[k] = am.SparseBelief.point(40, state)
            self.agents[k] = self.beliefs[k]

    @rule(data=st.data())
    def die(self, data):
        kill(self.agents, *data.draw(st.sets(st.integers(0, len(self.agents.actors) - 1), max_size=2)))

    @rule(n_shards=st.integers(1, 3))
    def save(self, n_shards):
        self.agents.checkpoint(self.path)
        assert snapshot(am.Population.open(self.path, self.model)) == snapshot(self.beliefs)
        self.agents = RayPopulation.restore(self.path, self.model, n_shards=n_shards)

    @rule(room=st.sampled_from([0, 1 << 24]))
    def note(self, room):
        self.agents._room = room

    @invariant()
    def equal(self):
        assert snapshot(self.agents) == snapshot(self.beliefs)


def test_a_list_of_beliefs_says_the_same(tmp_path):
    Machine.path = tmp_path / "agents"
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=6, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_ten_thousand_agents_outlive_a_killed_process():
    """Killed in the middle of a step, as far as a thread beside it can tell."""
    model, n_agents = real_world(), 10_000
    actions, observations = walks(model, n_agents, 12)
    here, there = am.Population(model, n_agents), RayPopulation(model, n_agents, n_shards=3)
    stop = threading.Event()
    killed = []

    def killer():
        while not stop.wait(0.15):
            victims = processes()
            if victims and len(killed) < 3:
                victim = victims[len(killed) % len(victims)]
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.send_signal(signal.SIGKILL)
                    killed.append(victim.pid)

    thread = threading.Thread(target=killer)
    thread.start()
    try:
        for a, o in zip(actions, observations, strict=True):
            found = there.update(a, o, on_impossible="predict")
            assert found.tolist() == here.update(a, o, on_impossible="predict").tolist()
            time.sleep(0.05)
    finally:
        stop.set()
        thread.join()
    assert killed and len(there) == n_agents
    assert snapshot(there) == snapshot(here)


def real_world():
    from agentmem.profiler.worlds import grid_world

    world = grid_world(30, 30, agents=1, steps=1, seed=0)
    return am.Model(world.transition, world.observation)


def test_a_shard_that_dies_again_and_again_is_an_error_and_not_the_end(ray, monkeypatch):
    here, there = both()
    before = snapshot(there)
    monkeypatch.setattr(module, "LIVES", 1)
    kill(there, 1)
    with pytest.raises(RuntimeError, match="shard 1 of 3 died 1 times in one call; nothing has changed"):
        there.update(0, -1)
    assert snapshot(there) == before
    there.update(0, -1)
    here.update(0, -1)
    assert snapshot(there) == snapshot(here)


def test_notes_do_not_grow_for_ever(monkeypatch):
    monkeypatch.setattr(module, "NOTED_ROOM", 1_000)
    here, there = both()
    there._room = 1_000
    for step in steps(here.model, 20, 200):
        there.update(*step, on_impossible="predict")
        here.update(*step, on_impossible="predict")
        assert there._noted <= there._room + 4_000
        assert there._room < 20_000
    kill(there, 0, 1, 2)
    assert snapshot(there) == snapshot(here)


def test_without_room_for_a_checkpoint_changes_are_kept(ray, monkeypatch):
    here, there = both()
    there._room = 0

    def full(value):
        raise ray.exceptions.ObjectStoreFullError("no room")

    monkeypatch.setattr(ray, "put", full)
    there.update(0, -1)
    with pytest.warns(RuntimeWarning, match=r"\d{4} bytes of changes are kept.*no room"):
        there.update(1, -1)
    monkeypatch.undo()
    here.update(0, -1)
    here.update(1, -1)
    kill(there, 0, 1, 2)
    assert snapshot(there) == snapshot(here)


# ---- files


def test_checkpoints_and_saved_populations_are_the_same_files(tmp_path):
    here, there = both(23)
    for step in steps(here.model, 23, 3):
        here.update(*step, on_impossible="predict")
        there.update(*step, on_impossible="predict")
    there.checkpoint(tmp_path / "there")
    assert snapshot(am.Population.open(tmp_path / "there", here.model)) == snapshot(here)
    here.save(tmp_path / "here")
    assert snapshot(RayPopulation.restore(tmp_path / "here", here.model, n_shards=4)) == snapshot(here)


def test_a_truncated_checkpoint_is_refused_and_the_one_before_opens(tmp_path):
    here, there = both(23)
    there.checkpoint(tmp_path / "before")
    there.update(0, -1)
    there.checkpoint(tmp_path / "after")
    os.truncate(tmp_path / "after", (tmp_path / "after").stat().st_size // 2)
    with pytest.raises(am.CorruptData, match="truncated"):
        RayPopulation.restore(tmp_path / "after", here.model, n_shards=3)
    assert snapshot(RayPopulation.restore(tmp_path / "before", here.model, n_shards=2)) == snapshot(here)
    with pytest.raises(ValueError, match="a population over the model"):
        RayPopulation.restore(tmp_path / "before", divided(), n_shards=2)
    here.update(0, -1)
    kill(there, 0, 1, 2)  # what they are begun again from is no file that could be damaged
    assert snapshot(there) == snapshot(here)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    model = model_of()
    rng = np.random.default_rng(0)
    start = [am.SparseBelief(rng.random(40)) for _ in range(500)]
    population = RayPopulation.from_beliefs(model, start, n_shards=2)
    population.checkpoint(tmp_path / "agents")
    before = snapshot(population)
    population.update(0, -1)
    with full_disk(20_000), pytest.raises(OSError):
        population.checkpoint(tmp_path / "agents")
    assert os.listdir(tmp_path) == ["agents"]
    assert snapshot(RayPopulation.restore(tmp_path / "agents", model, n_shards=2)) == before
    after = am.Population.from_beliefs(model, start)
    after.update(0, -1)
    assert snapshot(population) == snapshot(after)


# ---- one machine


def test_a_local_ray_listens_to_this_machine_only():
    parent = psutil.Process()
    listening = [
        connection.laddr.ip
        for process in [parent, *parent.children(recursive=True)]
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening and all(ip.removeprefix("::ffff:") in ("127.0.0.1", "::1") for ip in listening)


def test_shards_read_one_model_in_place():
    """Its pages are shared: many shards with a model of 40 MB take little of their own."""
    rng = np.random.default_rng(0)
    rows = rng.random((2_200, 2_200))
    model = am.Model(rows / rows.sum(axis=1, keepdims=True), np.ones((2_200, 1)))
    population = RayPopulation(model, 4, n_shards=2, initial=am.SparseBelief.point(2_200, 0))
    population.update(0, 0)
    shared = []
    for process in processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            maps = [part for part in process.memory_maps() if "plasma" in part.path]
            shared.append(sum(part.shared_clean + part.shared_dirty for part in maps))
    assert sum(taken > 0.9 * model.nbytes for taken in shared) == 2, shared
