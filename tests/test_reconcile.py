"""Memory of known size, of every kind: who claims to see it reports it within 1 %, and who does not does not."""

import ctypes
import mmap
import os
import subprocess
import sys
import tempfile
import tracemalloc

import numpy as np
import pytest

import agentmem as am
from agentmem.footprint import Walk
from agentmem.profiler import Profiler
from agentmem.profiler.agents import counters
from agentmem.profiler.process import Resident, process_memory, rss
from agentmem.profiler.reconcile import SIGHTS, reconcile
from agentmem.profiler.records import ProcessMemory
from reference import run_alone

SIZE = 128 * 2**20


def python_objects():
    held = [np.zeros(SIZE // 2, np.uint8), bytearray(SIZE // 2)]
    held[0][:] = 1
    held[1][:] = b"\1" * (SIZE // 2)
    return held


def containers():
    dense = np.random.default_rng(0).random(SIZE // 16)
    return [am.SparseArray(dense), am.SparseArray(dense)]


def by_raw_malloc():
    return from_c(ctypes.pythonapi.PyMem_RawMalloc)


def by_malloc():
    return from_c(ctypes.CDLL(None).malloc)


def from_c(allocate):
    allocate.restype, allocate.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    address = allocate(SIZE)
    ctypes.memset(address, 1, SIZE)
    return address


def anonymous_map():
    return touched(mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def file_map():
    with tempfile.TemporaryFile() as file:
        file.truncate(SIZE)
        return touched(mmap.mmap(file.fileno(), SIZE))


def untouched():
    return np.zeros(SIZE, np.uint8)


def shared_map():
    """This process has touched it, and another one, which lives as long."""
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(SIZE)
        shared = touched(mmap.mmap(file.fileno(), SIZE))
        script = (
            "import mmap, sys\n"
            "with open(sys.argv[1], 'r+b') as file: shared = mmap.mmap(file.fileno(), 0)\n"
            "for page in range(0, len(shared), mmap.PAGESIZE): shared[page]\n"
            "print('ready', flush=True); sys.stdin.read()"
        )
        other = subprocess.Popen(
            [sys.executable, "-c", script, file.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert other.stdout.readline() == b"ready\n"
    return shared, other  # it ends when nobody holds its input any more


def touched(block):
    for page in range(0, SIZE, mmap.PAGESIZE):
        block[page] = 1
    return block


MAKERS = dict(
    zip(
        (sight.kind for sight in SIGHTS),
        (python_objects, containers, by_raw_malloc, by_malloc, anonymous_map, file_map, untouched, shared_map),
        strict=True,
    )
)


def look(kind):
    """By how much what each tool says grows when memory of this kind is made, in units of its size."""
    make = MAKERS[kind]
    agent = {"held": None}
    with Profiler({"it": agent}, lines=True) as profiler:
        agent["held"] = make()  # what looking and making take for themselves is there before
        profiler.snapshot("first")
        agent["held"] = None
        before = profiler.snapshot("before")
        agent["held"] = make()
        after = profiler.snapshot("after")
    grown = {
        "footprint": after.agent_bytes - before.agent_bytes,
        "tracemalloc": after.traced.nbytes - before.traced.nbytes,
        "rss": after.process.rss - before.process.rss,
        "pss": after.process.pss - before.process.pss,
    }
    return {tool: nbytes / SIZE for tool, nbytes in grown.items()}


def check(kind):
    [sight] = [sight for sight in SIGHTS if sight.kind == kind]
    claimed = {tool: float(getattr(sight, tool)) for tool in ("footprint", "tracemalloc", "rss", "pss")}
    if kind.startswith("a page that n processes share"):
        claimed |= {"footprint": 1.0, "rss": 1.0, "pss": 0.5}  # the others have it whole
    found = look(kind)
    assert all(abs(found[tool] - claimed[tool]) < 0.01 for tool in claimed), found


def child():
    check(sys.argv[3])


@pytest.mark.parametrize("kind", MAKERS)
def test_each_tool_sees_what_it_claims_to(kind):
    run_alone(child, kind)


def test_views_are_not_copies():
    table = np.zeros(10_000)
    profiler = Profiler({"a": {"rows": table[:5_000]}, "b": {"rows": table[5_000:], "all": table.reshape(100, 100)}})
    assert profiler.snapshot().agent_bytes < table.nbytes + 3_000


def test_a_model_that_agents_share_counts_once():
    model = am.Model(np.eye(200), np.ones((200, 1)))
    profiler = Profiler([{"model": model, "belief": model.belief()} for _ in range(50)])
    taken = profiler.snapshot()
    assert [part.holders for part in taken.shared if part.name.endswith("model")] == [50]
    assert model.nbytes < taken.agent_bytes < model.nbytes + 50 * 1_000
    [containers] = [line for line in profiler.reconcile() if line.tool == "nbytes"]
    assert containers.nbytes == model.nbytes + sum(model.belief().nbytes for _ in range(50))


def test_containers_in_containers_count_once():
    log = am.RecordHistory()
    log.extend({"x": k, "y": str(k)} for k in range(500))  # columns are histories
    column = next(item for item, _, _ in Walk().over(log) if isinstance(item, am.HistoryBuffer))
    assert counters([log]) == counters([log, [log]]) == counters([column, log]) == log.nbytes
    assert counters([column]) == column.nbytes


def test_a_model_of_ones_own_counts_once():
    class Mine(am.Model):
        pass

    model = Mine(np.eye(20), np.ones((20, 1)))
    assert counters([model]) == model.nbytes


def test_what_a_container_does_not_count_counts_beside_it():
    model = am.Model(np.eye(200), np.ones((200, 1)))
    crowd = am.Population(model, n_agents=30)
    assert counters([crowd]) == counters([crowd, model]) == counters([model, crowd]) == crowd.nbytes + model.nbytes
    budget = am.Budget(10**9)
    logs = [am.HistoryBuffer(None, dtype=int, budget=budget) for _ in range(2)]
    for log in logs:
        log.extend(range(5_000))
    assert counters(logs) == counters(logs[::-1]) == sum(log.nbytes for log in logs)


def test_an_old_snapshot_says_what_was_then():
    agent = {"belief": am.SparseBelief(np.full(1_000, 1 / 1_000))}
    profiler = Profiler([agent])
    then = profiler.snapshot(counters=True)
    nbytes = agent.pop("belief").nbytes
    [counted] = [line for line in reconcile(then) if line.tool == "nbytes"]
    assert counted.nbytes == nbytes
    assert profiler.profile().reconciled == reconcile(then)


def test_the_lines_add_up():
    tracemalloc.start()
    try:
        agent = {"x": np.ones(100_000)}
        lines = {line.what: line for line in Profiler([agent]).reconcile()}
    finally:
        tracemalloc.stop()
    assert lines["all that the agents hold"].nbytes >= 800_000
    sizes = {what: line.nbytes for what, line in lines.items()}
    assert sizes["traced"] == sizes["all that the agents hold"] + sizes["traced, and not the agents'"]
    assert sizes["resident"] == sizes["traced"] + sizes["resident, and not traced"]
    assert all(line.tool and line.note for line in lines.values())


def test_what_was_not_measured_is_null():
    lines = {line.what: line.nbytes for line in Profiler().reconcile()}
    assert lines["traced"] is None and lines["all that the agents hold"] is None
    assert lines["resident, and not traced"] is None and lines["resident"] > 0


def test_a_file_that_stays_open_tells_what_a_new_one_does():
    resident = Resident()
    table = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # pages that nobody had before
    before = resident.now()
    touched(table)
    assert abs(resident.now() - before - SIZE) < 2**20 and abs(resident.now() - rss()) < 2**20
    number = resident._file
    os.close(number)  # as a program does that becomes a daemon
    assert abs(resident.now() - rss()) < 2**20
    resident.close()
    with tempfile.TemporaryFile() as other:
        other.write(b"1 2 3")
        other.flush()
        resident.now()
        os.close(resident._file)
        resident._file = other.fileno()  # a program's own, of the same number
        assert abs(resident.now() - rss()) < 2**20
        resident._file = other.fileno()
        resident.close()
        assert os.fstat(other.fileno())


def test_the_process_is_what_psutil_says():
    psutil = pytest.importorskip("psutil")
    found, expected = process_memory(), psutil.Process().memory_full_info()
    assert isinstance(found, ProcessMemory)
    assert abs(found.rss - expected.rss) < 2**20 and abs(found.pss - expected.pss) < 2**20
