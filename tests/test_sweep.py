"""All configurations follow the same walks to the same beliefs; each record says what its process held."""

import io
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

import agentmem as am
from agentmem.profiler import child, comparison, filters, sweep, worlds
from agentmem.profiler.filters import Configuration
from agentmem.profiler.worlds import World, grid_world, position_sensor, sample_rows


def assert_same_world(a, b):
    assert a.name == b.name
    for x, y in zip([*a.transition, a.observation], [*b.transition, b.observation], strict=True):
        assert np.array_equal(x.toarray(), y.toarray())
    for field in ("initial", "actions", "observations", "restarts"):
        assert np.array_equal(getattr(a, field), getattr(b, field))


def dense_beliefs(world):
    """(steps, agents, S) beliefs and (steps, agents) log-evidence, by the obvious loop."""
    transition = [table.toarray() for table in world.transition]
    n_actions, n_states = len(transition), world.initial.size
    observation = world.observation.toarray().reshape(-1, n_states, world.observation.shape[1])
    observation = np.broadcast_to(observation, (n_actions, *observation.shape[1:]))
    beliefs = np.empty((*world.actions.shape, world.initial.size))
    evidence = np.empty(world.actions.shape)
    for step, agent in np.ndindex(*world.actions.shape):
        before = world.initial if world.restarts[step, agent] else beliefs[step - 1, agent]
        after = (
            before
            @ transition[world.actions[step, agent]]
            * observation[world.actions[step, agent], :, world.observations[step, agent]]
        )
        beliefs[step, agent] = after / after.sum()
        evidence[step, agent] = np.log(after.sum())
    return beliefs, evidence


@pytest.fixture(scope="module")
def world():
    generated = grid_world(5, 7, agents=4, steps=30, seed=1)
    restarts = generated.restarts.copy()
    restarts[11, 2] = restarts[20, 2] = True
    return replace(generated, restarts=restarts)


@pytest.fixture(scope="module")
def measurements(world):
    return list(sweep.measure(world, sweep.standard_configurations()))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 4), (3, 1), (2, 2), (4, 5)])
def test_the_sensor_reads_its_neighbourhood(rows, columns):
    expected = np.zeros((rows * columns, rows * columns))
    for row, column in np.ndindex(rows, columns):
        for down, right in np.ndindex(3, 3):
            y, x = row + down - 1, column + right - 1
            if 0 <= y < rows and 0 <= x < columns:
                expected[row * columns + column, y * columns + x] = (2 - abs(down - 1)) * (2 - abs(right - 1))
    expected /= expected.sum(axis=1, keepdims=True)
    sensor = position_sensor(rows, columns)
    assert np.allclose(sensor.toarray(), expected, atol=1e-15)
    assert np.diff(sensor.indptr).max() <= 9


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 4), (3, 4)])
def test_the_grid_slips_to_the_sides_and_stays_at_its_border(rows, columns):
    world = grid_world(rows, columns, agents=1, steps=1, seed=0)
    steps = [(0, -1), (1, 0), (0, 1), (-1, 0)]
    for action in range(4):
        expected = np.zeros((rows * columns, rows * columns))
        for row, column in np.ndindex(rows, columns):
            for turn, probability in ((0, 0.8), (-1, 0.1), (1, 0.1)):
                down, right = steps[(action + turn) % 4]
                target = np.clip(row + down, 0, rows - 1) * columns + np.clip(column + right, 0, columns - 1)
                expected[row * columns + column, target] += probability
        assert np.allclose(world.transition[action].toarray(), expected, atol=1e-15)


def test_grids_are_seeded():
    assert_same_world(
        grid_world(4, 4, agents=2, steps=9, seed=5), grid_world(4, 4, agents=2, steps=9, seed=5)
    )
    other = grid_world(4, 4, agents=2, steps=9, seed=6)
    assert not np.array_equal(other.observations, grid_world(4, 4, agents=2, steps=9, seed=5).observations)


def test_rows_are_sampled_by_their_weights():
    table = sparse.csr_array(np.array([[0.0, 0.2, 0.0, 0.8], [1.0, 0.0, 0.0, 0.0]]))
    rng = np.random.default_rng(0)
    drawn = np.bincount(sample_rows(table, np.zeros(2000, int), rng), minlength=4) / 2000
    assert np.allclose(drawn, [0, 0.2, 0, 0.8], atol=0.05)
    assert sample_rows(table, np.array([1, 1]), rng).tolist() == [0, 0]


def test_rows_are_sampled_alike_in_blocks(monkeypatch):
    table, rows = grid_world(4, 5, agents=1, steps=1, seed=0).observation, np.arange(60) % 20
    whole = sample_rows(table, rows, np.random.default_rng(3))
    monkeypatch.setattr(worlds, "_ROWS_AT_ONCE", 7)
    assert np.array_equal(sample_rows(table, rows, np.random.default_rng(3)), whole)
    assert np.all(table.toarray()[rows, whole] > 0) and len(set(whole.tolist())) > 10
    assert sample_rows(table, rows[:0], np.random.default_rng(3)).shape == (0,)


def test_agents_walk_by_the_tables():
    world, n = world_where_actions_read_differently(), 40_000
    transition = [table.toarray() for table in world.transition]
    readings = [table.toarray() for table in world.observation_tables()]
    walk = worlds.random_walk(world.transition, world.observation, np.full(n, 7), np.random.default_rng(2))
    where = np.tile(np.eye(20)[7], (4, 1))  # by the last action
    for _ in range(3):
        actions, observations = next(walk)
        where = np.array([where.mean(axis=0) @ table for table in transition])
        for action in range(4):
            seen = observations[actions == action]
            assert abs(len(seen) / n - 0.25) < 0.02
            found = np.bincount(seen, minlength=20) / len(seen)
            assert np.allclose(found, where[action] @ readings[action], atol=0.03)


def test_a_world_comes_back_from_its_directory(world, tmp_path):
    world.save(tmp_path)
    assert_same_world(World.load(tmp_path), world)


def world_where_actions_read_differently():
    grid = grid_world(4, 5, agents=1, steps=1, seed=0)
    sharp = sparse.eye_array(20, format="csr")
    tables = [grid.observation, sharp * 0.5 + grid.observation * 0.5, sharp, grid.observation]
    observation = sparse.csr_array(sparse.vstack(tables, format="csr"))
    return worlds.walked_world("grid", grid.transition, observation, grid.initial, agents=5, steps=30, seed=1)


def test_each_action_reads_by_its_own_table():
    world = world_where_actions_read_differently()
    assert len(world.observation_tables()) == 4
    assert world.dense_nbytes == 8 * (4 * 20 * 20 + 4 * 20 * 20)
    beliefs, _ = dense_beliefs(world)
    certain, sharp = beliefs.max(axis=2) == 1, world.actions == 2
    assert certain[sharp].all() and not certain.all()
    assert np.array_equal(beliefs[sharp].argmax(axis=1), world.observations[sharp])


TOLERANCE = {0.0: 1e-14, 1e-12: 1e-9, 1e-9: 1e-6, 1e-6: 1e-3}


@pytest.mark.parametrize(
    "configuration", sweep.standard_configurations() + sweep.swept_configurations(), ids=lambda c: c.name
)
@pytest.mark.parametrize("reads_alike", [True, False])
def test_every_filter_follows_the_obvious_loop(world, reads_alike, configuration):
    world = world if reads_alike else world_where_actions_read_differently()
    expected, expected_evidence = dense_beliefs(world)
    step_filter = filters.FILTERS[configuration.filter](world, configuration)
    is_ours = configuration.filter in ("sparse", "population")
    prune = (1e-12 if configuration.prune is None else configuration.prune) if is_ours else 0.0
    tolerance = max(TOLERANCE[prune], 2e-6 if configuration.dtype == "float32" else 0)
    for step, (beliefs, evidence, _) in enumerate(child.run(world, step_filter)):
        found = np.array([np.asarray(belief) for belief in beliefs])
        assert found.dtype == configuration.dtype
        assert np.allclose(found, expected[step], rtol=0, atol=tolerance)
        assert np.allclose(evidence, expected_evidence[step], rtol=0, atol=100 * tolerance)


def test_records_hold_the_bytes_of_each_configuration(world, measurements):
    assert [m.configuration for m in measurements] == sweep.standard_configurations()
    dense, scipy, exact, pruned = measurements
    n_states = world.initial.size
    assert dense.model_bytes == 8 * (4 * n_states**2 + n_states**2 + n_states)
    assert dense.model_bytes == world.dense_nbytes + world.initial.nbytes
    entries = sum(table.nnz for table in world.transition) + world.observation.nnz
    assert scipy.model_bytes == 12 * entries + 4 * 5 * (n_states + 1) + 8 * n_states
    model = am.Model(world.transition, world.observation, world.initial)
    assert exact.model_bytes == pruned.model_bytes == model.nbytes
    assert dense.belief_bytes_median == scipy.belief_bytes_peak == sys.getsizeof(np.empty(n_states))
    for ours in (exact, pruned):
        assert 0 < ours.belief_bytes_median <= ours.belief_bytes_peak <= 8 * n_states + 256
    for measurement in measurements:
        assert 2**20 < measurement.base_rss <= measurement.peak_rss
        assert measurement.repeats == (measurement.microseconds_per_update,)
        assert measurement.microseconds_per_update > 0


def test_the_first_is_the_reference_and_the_others_agree(measurements):
    reference, *others = measurements
    assert reference.largest_difference is reference.largest_log_evidence_difference is None
    for measurement in others[:2]:
        assert measurement.largest_difference < 1e-14
        assert measurement.largest_log_evidence_difference < 1e-12
    assert others[2].largest_difference < 1e-9


def test_a_coarse_filter_shows_its_difference(world):
    coarse = Configuration("coarse", "sparse", prune=0.02)
    reference, measurement = sweep.measure(world, [Configuration("scipy", "scipy"), coarse])
    step_filter = filters.FILTERS["sparse"](world, coarse)
    expected, expected_evidence = dense_beliefs(world)
    difference = evidence_difference = l1 = 0.0
    for step, (beliefs, evidence, _) in enumerate(child.run(world, step_filter)):
        difference = max(difference, np.abs([b.to_dense() for b in beliefs] - expected[step]).max())
        evidence_difference = max(evidence_difference, np.abs(evidence - expected_evidence[step]).max())
        l1 = max(l1, np.abs([b.to_dense() for b in beliefs] - expected[step]).sum(axis=1).max())
    assert difference > 1e-3
    assert measurement.largest_l1 == pytest.approx(l1, rel=1e-9)
    assert measurement.largest_difference == pytest.approx(difference, rel=1e-9)
    assert measurement.largest_log_evidence_difference == pytest.approx(evidence_difference, rel=1e-9)
    assert reference.largest_difference is None


def test_a_failing_child_is_reported_and_leaves_nothing(world, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    impossible = replace(world, observation=sparse.csr_array(world.observation * 0))
    with pytest.raises(RuntimeError, match=r"^scipy failed: ValueError"):
        list(sweep.measure(impossible, [Configuration("scipy", "scipy")]))
    assert not list(tmp_path.iterdir())


def test_json_holds_plain_numbers(world, measurements):
    record = comparison.to_json(world, measurements, command="compare", parameters={"states": 35})
    assert record["schema"] == 1
    assert record["reference"] == "dense NumPy"
    assert record["world"] == {
        "name": "5 x 7 slippery grid",
        "states": 35,
        "actions": 4,
        "observations": 35,
        "agents": 4,
        "steps": 30,
        "episodes": 6,
    }
    assert [r["configuration"] for r in record["measurements"]] == [
        m.configuration.name for m in measurements
    ]
    for entry, measurement in zip(record["measurements"], measurements, strict=True):
        assert entry["peak_rss"] == measurement.peak_rss
        assert entry["prune"] == measurement.configuration.prune
        assert entry["dtype"] == "float64"
        assert list(entry.pop("repeats")) == [measurement.microseconds_per_update]
        assert {type(value) for value in entry.values()} <= {int, float, str, type(None)}


def test_the_table_fits_eighty_columns_and_shows_every_configuration(world, measurements):
    from rich.console import Console

    large = [
        replace(m, model_bytes=999 * 2**20, belief_bytes_peak=999 * 2**10, microseconds_per_update=9999.0)
        for m in measurements
    ]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(comparison.to_table(world, large))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    for measurement in measurements:
        assert sum(line.startswith(measurement.configuration.name + " ") for line in lines) >= 1
    assert "999 MiB" in "".join(lines)
    assert "b @ T[a]" in "".join(lines)


def test_the_summary_tells_gains_and_losses(measurements):
    rival = replace(
        measurements[0],
        belief_bytes_median=1500,
        model_bytes=100,
        peak_rss=10_000,
        microseconds_per_update=2.0,
    )
    ours = replace(
        measurements[3],
        belief_bytes_median=10,
        model_bytes=120,
        peak_rss=10_001,
        microseconds_per_update=5.0,
        largest_difference=3.1e-13,
    )
    assert comparison.summary([rival, ours]) == (
        "SparseBelief pruned against dense NumPy: 150x fewer bytes per belief, "
        "1.20x more model bytes (a loss), "
        "about the same peak RSS, 2.50x more time per update (a loss); "
        "largest difference from dense NumPy 3.1e-13."
    )
