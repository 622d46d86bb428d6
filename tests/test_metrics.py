"""What Prometheus is told is what there is, with few labels, on loopback."""

import re
import subprocess
import sys
import urllib.request
from contextlib import contextmanager

import numpy as np
import pytest

import agentmem as am
from agentmem.profiler import Profiler
from reference import same_environment

prometheus_client = pytest.importorskip("prometheus_client", reason="needs the extra metrics")
from agentmem.profiler.metrics import MOST_NAMES, OTHERS, Exporter, serve  # noqa: E402


def told(exporter):
    """Values by name and labels."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in exporter.collect()
        for sample in family.samples
    }


@contextmanager
def served(profiler, **options):
    server = serve(profiler, port=0, **options)
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def test_agents_their_parts_and_what_they_share():
    table = np.zeros(1_000)
    agents = {"a": {"log": np.zeros(500), "table": table}, "b": {"log": np.zeros(700), "table": table}}
    profiler = Profiler(agents)
    found, taken = told(Exporter(profiler)), profiler.snapshot()
    assert found["agentmem_agents",] == 2
    for agent in taken.agents:
        assert found["agentmem_agent_bytes", agent.name] == agent.own
    assert found["agentmem_part_bytes", "log"] == sum(agent.parts["log"] for agent in taken.agents)
    assert found["agentmem_shared_bytes", "a.table"] == 8_112


def test_populations_histories_and_budgets():
    model = am.Model([[0.5, 0.5], [0.0, 1.0]], [[0.9, 0.1], [0.2, 0.8]])
    population, history, log = am.Population(model, 7), am.HistoryBuffer(10, dtype=int), am.RecordHistory()
    budget, group = am.Budget("1 MB"), am.HistoryGroup(3, 5, dtype=int)
    history.extend([1, 2, 3])
    log.extend(["x"] * 9)
    group.append([1, 2, 3])
    budget.reserve(1_000, log)
    found = told(Exporter(Profiler({"p": population, "h": history, "l": log, "g": group, "b": budget})))
    assert found["agentmem_population_agents", "p"] == 7
    assert found["agentmem_population_states", "p"] == population.nnz.sum()
    assert found["agentmem_population_bytes", "p"] == population.nbytes
    assert [found["agentmem_history_entries", name] for name in "hlg"] == [3, 9, 1]
    assert found["agentmem_history_bytes", "h"] == history.nbytes
    assert (found["agentmem_budget_limit_bytes", "b"], found["agentmem_budget_used_bytes", "b"]) == (1_000_000, 1_000)


def test_operations_are_counters():
    profiler = Profiler()
    for _ in range(3):
        with profiler.profile_operation("step"):
            pass
    found = told(Exporter(profiler))
    assert found["agentmem_operation_calls_total", "step"] == 3
    assert found["agentmem_operation_seconds_total", "step"] > 0


def test_labels_stay_few():
    agents = {f"robot {k}": {"x": np.zeros(k), f"part {k}": [k]} for k in range(100)}
    profiler = Profiler(agents)
    found = told(Exporter(profiler))
    names = [key for key in found if key[0] == "agentmem_agent_bytes"]
    assert len(names) == MOST_NAMES + 1 and ("agentmem_agent_bytes", "robot 99") in names
    taken = profiler.snapshot()
    assert sum(found[name] for name in names) == sum(agent.own for agent in taken.agents)
    assert found["agentmem_agent_bytes", OTHERS] > 0
    assert len([key for key in found if key[0] == "agentmem_part_bytes"]) == MOST_NAMES + 1


def test_a_look_is_used_again():
    agents = [[1, 2, 3]]
    exporter = Exporter(Profiler(agents))
    before = told(exporter)["agentmem_agent_bytes", "agent[0]"]
    agents[0].extend(range(1_000))
    assert told(exporter)["agentmem_agent_bytes", "agent[0]"] == before


def test_without_agents_it_is_the_process():
    found = told(Exporter(Profiler()))
    assert found["agentmem_process_resident_bytes",] > 2**20
    assert not [key for key in found if key[0].startswith("agentmem_agent")]
    assert ("agentmem_process_traced_bytes",) not in found  # not measured is not there


def test_it_is_served_on_loopback():
    with served(Profiler([[1]])) as server:
        assert server.server_address[0] == "127.0.0.1"
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics") as answer:
            text = answer.read().decode()
    assert re.search(r"^agentmem_process_resident_bytes \d", text, re.MULTILINE)
    assert 'agentmem_agent_bytes{agent="agent[0]"}' in text


def test_it_joins_a_registry():
    registry = prometheus_client.CollectorRegistry()
    prometheus_client.Gauge("mine", "Mine", registry=registry).set(3)
    with served(Profiler(), registry=registry):
        text = prometheus_client.generate_latest(registry).decode()
    assert "mine 3.0" in text and "agentmem_process_resident_bytes" in text


def test_what_raises_is_left_out_and_counted():
    class Hostile(am.HistoryBuffer):
        @property
        def nbytes(self):
            raise RuntimeError("not today")

    agents = {"h": Hostile(9, dtype=int), "b": am.Budget("1 MB"), "name \udcff": [1]}
    registry = prometheus_client.CollectorRegistry()
    with served(Profiler(agents), registry=registry):
        text = prometheus_client.generate_latest(registry).decode()
    assert 'agentmem_budget_limit_bytes{budget="b"} 1e+06' in text
    assert 'agentmem_history_entries{history="h"} 0.0' in text and "agentmem_history_bytes{" not in text
    assert "agentmem_failed_looks_total 1.0" in text
    assert "name \\\\udcff" in text


def test_an_agent_that_raises_hides_no_other():
    class Proxy:
        @property
        def __class__(self):
            raise RuntimeError

        def __sizeof__(self):
            raise RuntimeError

    found = told(Exporter(Profiler({"proxy": Proxy(), "log": am.HistoryBuffer(9, dtype=int)})))
    assert found["agentmem_agent_bytes", "proxy"] > 0 and found["agentmem_history_entries", "log"] == 0
    assert found["agentmem_failed_looks_total",] == 0


def test_agents_of_one_name_count_together():
    found = told(Exporter(Profiler({1: am.Budget("10 MB"), "1": am.Budget("20 MB")})))
    assert found["agentmem_budget_limit_bytes", "1"] == 30_000_000


def test_counts_never_fall():
    profiler = Profiler()
    for k in range(2 * MOST_NAMES):
        with profiler.profile_operation(f"op{k}"):
            pass
    exporter = Exporter(profiler)
    before = told(exporter)
    for _ in range(9):
        with profiler.profile_operation(f"op{MOST_NAMES + 5}"):
            pass
    after = told(exporter)
    assert before.keys() == after.keys()
    assert all(after[key] >= before[key] for key in before if key[0].startswith("agentmem_operation"))


def test_a_port_that_is_taken_leaves_the_registry_as_it_was():
    registry = prometheus_client.CollectorRegistry()
    with served(Profiler()) as server, pytest.raises(OSError, match="in use"):
        serve(Profiler(), port=server.server_port, registry=registry)
    with served(Profiler(), registry=registry):
        pass


def test_a_registry_takes_one():
    registry = prometheus_client.CollectorRegistry()
    registry.register(Exporter(Profiler()))
    with pytest.raises(ValueError, match="Duplicated"):
        serve(Profiler(), port=0, registry=registry)


def test_without_prometheus_client_the_extra_is_named():
    script = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from agentmem.profiler import Profiler, metrics\n"
        "try: metrics.serve(Profiler())\n"
        "except ImportError as error: print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=same_environment())
    assert "pip install 'agentmem-native[metrics]'" in ran.stdout, ran.stderr
