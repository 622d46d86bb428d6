"""What was spilled comes back equal, changes included, whatever becomes of the disk, the process or the memory."""

import copy
import gc
import json
import os
import pickle
import stat
import subprocess
import sys
import tempfile
import threading
import weakref

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import agentmem as am
import reference
from agentmem.files import KINDS
from agentmem.footprint import footprint
from reference import bits, full_disk, same_environment

quiet = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture
def spill(tmp_path):
    return am.Spill(tmp_path / "spilled")


def model_of(n_states=30, seed=0, **how):
    return am.Model(*reference.random_tables(np.random.default_rng(seed), n_states), **how)


def content(x):
    """All that a container says, its type included."""
    if isinstance(x, am.Model):
        return type(x), x.digest
    if isinstance(x, am.Population):
        return type(x), x.model.digest, x.threads, x.prune, x.max_states, [bits(b)[:6] for b in x]
    if isinstance(x, np.ndarray):
        return type(x), x.dtype, x.shape, x.tobytes(), x.flags.writeable
    own = (x.prune_below, x.pruned_mass) if isinstance(x, am.SparseBelief) else ()
    return type(x), x.dtype, x.shape, x.storage, x.indices.tobytes(), x.values.tobytes(), own


def containers():
    rng = np.random.default_rng(0)
    made = {f"belief, {name}": b for name, b in reference.one_of_each_storage(am.SparseBelief).items()}
    made["belief, 2-D"] = am.SparseBelief(rng.random((5, 7)))
    made["belief, pruned"] = am.SparseBelief(rng.random(50), dtype=np.float32)
    made["belief, pruned"].prune(mass=0.3)
    made["belief, pruned"].prune_below = 1e-5
    for dtype in "?bBhHiIlLqQefd":
        made[f"array of {dtype}"] = am.SparseArray((np.arange(40).reshape(4, 10) % 5 == 0).astype(dtype))
    made["array, all zero"] = am.SparseArray(np.zeros((3, 2)))
    made["array, no cells"] = am.SparseArray(np.zeros((3, 0)))
    made["array, no axes"] = am.SparseArray(np.float64(2.5))
    made["array, not finite"] = am.SparseArray([np.nan, np.inf, 0, 0, -np.inf])
    made["model"] = model_of()
    made["model, dense"] = am.Model(np.full((9, 9), 1 / 9), np.full((9, 2), 0.5), np.arange(9) / 36, dtype=np.float32)
    made["population"] = am.Population(model_of(), 7, prune=1e-4, max_states=9, threads=2)
    made["population"].update(np.zeros(7, int), np.arange(7) % 3)
    for dtype in ("f8", ">i4", "?", "c16", "M8[s]", "U3", [("x", "f4"), ("n", "i8", (2,))]):
        made[f"ndarray of {dtype}"] = np.zeros((2, 3), dtype)
    made["ndarray, no axes"] = np.array(3.5)
    made["ndarray, no cells"] = np.zeros((0, 4))
    made["ndarray, not contiguous"] = rng.random((6, 8))[::2, ::-1]
    made["ndarray, by columns"] = np.asfortranarray(rng.random((3, 4)))
    return made


# ---- there and back


@pytest.mark.parametrize("name", containers())
def test_what_goes_comes_back(spill, name):
    container = containers()[name]
    before = content(container)
    handle = spill.put(container)
    del container
    for _ in range(2):
        back = handle.get()
        assert content(back) == before
        assert not hasattr(back, "_check") or back._check() is None
        del back
        assert handle.evict() > 0 or name.endswith("no cells")
        assert not handle.is_resident


def test_every_real_number_has_a_kind():
    assert {np.dtype(c).str for c in am.array.STORABLE} == set(KINDS)


OTHERS = [{}, [1], "text", None, 3, np.float64(2), np.zeros(3, object), np.zeros(3).view(np.matrix), np.zeros(3, "V0")]


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_other_things_are_refused(spill, other):
    with pytest.raises(TypeError, match="given"):
        spill.put(other)
    assert spill.nbytes == 0


class Pair:
    """A container of somebody else, with the protocol."""

    def __init__(self, name, a):
        self.name, self.a = name, a

    @property
    def header(self):
        return {"name": self.name}

    def buffers(self):
        return {"a": self.a}

    @classmethod
    def from_buffers(cls, header, buffers):
        return cls(header["name"], buffers["a"].copy())

    @property
    def nbytes(self):
        return self.a.nbytes


def test_any_container_with_the_protocol_goes(spill):
    handle = spill.put(Pair("x", np.arange(5)))
    handle.get().a[2] = 9
    assert handle.evict() == 40
    back = handle.get()
    assert (type(back), back.name, back.a.tolist()) == (Pair, "x", [0, 1, 9, 3, 4])
    with pytest.raises(TypeError, match="buffer a of dtype complex128"):
        spill.put(Pair("x", np.zeros(2, complex)))


def test_memory_is_free_in_between(spill):
    array = np.zeros(1000)
    gone = weakref.ref(array)
    handle = spill.put(array)
    assert footprint(handle).total < 3000
    del array
    assert gone() is None
    back = handle.get()
    assert footprint(handle).total > 8000
    gone = weakref.ref(back)
    del back
    assert gone() is not None
    assert handle.evict() == 8000
    assert gone() is None and footprint(handle).total < 3000


def test_a_population_keeps_its_model(spill):
    model = model_of()
    handle = spill.put(am.Population(model, 3))
    assert handle.get().model is model


# ---- who holds it, who changed it


def test_the_same_object_as_long_as_somebody_holds_it(spill):
    handle = spill.put(am.SparseBelief.uniform(50))
    held = handle.get()
    held[3] = 7
    assert handle.evict() == spill.evict() == 0
    assert handle.get() is held
    expected = content(held)
    del held
    assert handle.evict() > 0
    assert content(handle.get()) == expected


@pytest.mark.parametrize(
    "view", [lambda a: a[::2], lambda a: a.reshape(2, 5), memoryview, lambda a: iter(a), lambda a: {"x": [a]}]
)
def test_a_view_holds_it_too(spill, view):
    handle = spill.put(np.zeros(10))
    kept = view(handle.get())
    assert handle.evict() == 0
    handle.get()[:] = 3
    del kept
    assert handle.evict() == 80
    assert set(handle.get()) == {3}


def test_what_was_put_is_the_callers_own(spill):
    b = am.SparseBelief.uniform(8)
    expected = content(b)
    handle = spill.put(b)
    b[0] = 0
    assert content(handle.get()) == expected
    handle.get()[1] = 0
    assert b.nnz == 7 and b[1] != 0


def stamp(spill):
    return [(e.name, e.stat().st_ino, e.stat().st_mtime_ns) for e in os.scandir(spill._folder)]


@pytest.mark.parametrize("name", ["belief, bitmap", "array of ?", "model", "population", "ndarray of f8"])
def test_what_did_not_change_is_not_written(spill, name):
    handle = spill.put(containers()[name])
    before = stamp(spill)
    for _ in range(2):
        handle.get()
        assert handle.evict() > 0
        assert stamp(spill) == before


CHANGES = {
    "belief": (lambda: am.SparseBelief.uniform(9), lambda b: b.correct(np.arange(9) % 2)),
    "what a belief counts": (lambda: am.SparseBelief.uniform(9), lambda b: setattr(b, "prune_below", 0.5)),
    "shape": (lambda: am.SparseArray(np.eye(4)), lambda x: setattr(x, "shape", (2, 8))),
    "population": (lambda: am.Population(model_of(), 3), lambda p: p.update([0, 1, 0], [1, 1, 1])),
    "threads": (lambda: am.Population(model_of(), 3, threads=1), lambda p: setattr(p, "threads", 2)),
    "cell": (lambda: np.zeros(4), lambda a: a.__setitem__(2, -0.0)),
    "size": (lambda: np.zeros(4), lambda a: a.resize(7, refcheck=False)),
}


@pytest.mark.parametrize("what", CHANGES)
def test_no_change_is_lost(spill, what):
    make, change = CHANGES[what]
    before = content(make())
    handle = spill.put(make())
    change(handle.get())
    expected = content(handle.get())
    assert expected != before
    assert handle.evict() > 0
    assert content(handle.get()) == expected
    assert handle.nbytes == handle.get().nbytes


# ---- closing


def test_a_file_goes_with_its_handle(spill):
    handles = [spill.put(np.zeros(10)) for _ in range(3)]
    assert len(stamp(spill)) == 3 and spill.nbytes > 240
    handles[0].close()
    handles[0].close()
    assert len(stamp(spill)) == 2
    with pytest.raises(ValueError, match="closed handle of a ndarray"):
        handles[0].get()
    assert handles[0].evict() == 0
    del handles
    assert stamp(spill) == [] and spill.nbytes == 0


def test_what_somebody_holds_outlives_its_handle(spill):
    model = model_of()
    expected = content(model)
    handle = spill.put(model)
    back = handle.get()
    handle.close()
    gc.collect()
    assert content(back) == expected  # though its arrays are mapped from a file without a name


def test_a_folder_goes_with_its_spill(tmp_path):
    spill = am.Spill(tmp_path)
    handle = spill.put(np.zeros(3))
    del spill
    assert len(list(tmp_path.iterdir())) == 1
    assert handle.get().tolist() == [0, 0, 0]
    del handle
    gc.collect()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_handle_has_one_owner(spill, copied):
    handle = spill.put(np.ones(3))
    with pytest.raises(TypeError, match="one owner"):
        copied(handle)
    gc.collect()
    assert handle.get().tolist() == [1, 1, 1]


def test_handles_say_where_things_are(spill):
    handle = spill.put(np.ones(3))
    said = [repr(handle)]
    handle.get()
    said.append(repr(handle))
    handle.close()
    said.append(repr(handle))
    assert said == [f"Handle(ndarray, nbytes=24, {where})" for where in ("on disk", "in memory", "closed")]
    assert repr(spill) == f"Spill({str(spill.directory)!r}, nbytes=0, resident=0)"


# ---- under a budget


@quiet
def test_the_least_recently_used_goes_first(tmp_path):
    budget = am.Budget(250)
    spill = am.Spill(tmp_path, budget=budget)
    a, b, c = handles = [spill.put(np.full(10, k, float)) for k in range(3)]
    assert budget.used == 0
    for handle in (a, b, c, a):
        handle.get()
    assert [h.is_resident for h in handles] == [True, True, True]
    assert budget.holders == {"spill": 240} and spill.resident_nbytes == 240
    d = spill.put(np.zeros(10))
    d.get()
    assert [h.is_resident for h in (a, b, c, d)] == [True, False, True, True]
    b.get()
    assert [h.is_resident for h in (a, b, c, d)] == [True, True, False, True]
    a.close()
    del d
    assert budget.used == 80 == spill.resident_nbytes
    assert spill.evict() == 80 and budget.used == 0


@quiet
def test_what_is_held_is_not_evicted(tmp_path):
    budget = am.Budget(100)
    spill = am.Spill(tmp_path, budget=budget)
    a, b = spill.put(np.zeros(10)), spill.put(np.ones(10))
    held = a.get()
    with pytest.raises(am.BudgetExceeded, match="spill asks for 80 bytes; the budget has 20"):
        b.get()
    assert not b.is_resident and budget.used == 80
    held[0] = 5
    del held
    assert b.get().tolist() == [1] * 10
    assert a.get()[0] == 5


@quiet
def test_other_holders_get_room_by_eviction(tmp_path):
    budget = am.Budget(200, on_short=lambda _, missing: spill.evict(missing))
    spill = am.Spill(tmp_path, budget=am.Budget(150, parent=budget))
    a, b = spill.put(np.zeros(10)), spill.put(np.ones(5))
    a.get(), b.get()
    budget.reserve(100, "history")
    assert (a.is_resident, b.is_resident) == (False, True)
    assert budget.holders == {"history": 100, "spill": 40}
    a.get()  # for which the budget above is short
    assert (a.is_resident, b.is_resident) == (True, False)


def test_a_file_that_cannot_be_read_charges_nothing(tmp_path):
    budget = am.Budget(1000)
    spill = am.Spill(tmp_path, budget=budget)
    handle = spill.put(np.zeros(10))
    os.truncate(spill._path(0), 100)
    for _ in range(2):
        with pytest.raises(am.CorruptData, match="truncated"):
            handle.get()
        assert budget.used == 0 and not handle.is_resident


# ---- threads and processes


@quiet
def test_threads_get_one_object_and_lose_no_change(tmp_path):
    spill = am.Spill(tmp_path, budget=am.Budget(3 * 80))
    handles = [spill.put(np.zeros(10)) for _ in range(8)]
    locks = [threading.Lock() for _ in handles]

    def run(seed):
        for k in np.random.default_rng(seed).integers(8, size=150).tolist():
            with locks[k]:
                try:
                    array = handles[k].get()
                except am.BudgetExceeded:  # three others are held
                    continue
                array[seed] += 1
                counted[seed][k] += 1
                del array
            if k == seed:
                spill.evict()

    counted = np.zeros((5, 8))
    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted.sum() > 300
    for k, handle in enumerate(handles):
        assert handle.get()[:5].tolist() == counted[:, k].tolist()
    spill.evict()
    assert spill.budget.used == 0


def test_finalizers_may_close_at_any_time(tmp_path):
    """The collector may run one amid a call of the same thread, or of one that holds other locks."""
    spill = am.Spill(tmp_path, budget=am.Budget(10**6))
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for k in range(60):
            cycle = [spill.put(np.full(10, k))]
            cycle.append(cycle)
            cycle[0].get()
            if k % 5 == 0:
                spill.evict()
    finally:
        gc.set_threshold(*threshold)
    del cycle
    gc.collect()
    assert spill.budget.used == 0 and stamp(spill) == []


def test_a_forked_process_leaves_its_parents_files_alone(spill):
    handle = spill.put(np.ones(3))
    handle.get()
    child = os.fork()
    if child == 0:
        refused = 0
        for call in (handle.get, handle.evict, lambda: spill.put(np.ones(2))):
            try:
                call()
            except RuntimeError as error:
                refused += "makes its own" in str(error)
        handle.close()
        del handle
        gc.collect()
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    handle.evict()
    assert handle.get().tolist() == [1, 1, 1]


# ---- files


def test_nobody_else_may_read(tmp_path):
    before = os.umask(0)
    try:
        spill = am.Spill(tmp_path / "new" / "deep")
        handle = spill.put(np.zeros(3))
    finally:
        os.umask(before)
    for path, mode in ((spill.directory, 0o700), (spill._folder, 0o700), (spill._path(0), 0o600)):
        assert stat.S_IMODE(os.stat(path).st_mode) == mode
    handle.get()[0] = 1
    handle.evict()
    assert stat.S_IMODE(os.stat(spill._path(0)).st_mode) == 0o600


def test_the_mode_of_a_directory_that_is_there_stays(tmp_path):
    os.chmod(tmp_path, 0o755)
    am.Spill(tmp_path)
    assert stat.S_IMODE(os.stat(tmp_path).st_mode) == 0o755


def test_a_symbolic_link_to_a_directory_is_refused(tmp_path):
    (tmp_path / "real").mkdir()
    for name, target in (("link", "real"), ("dangling", "nowhere")):
        (tmp_path / name).symlink_to(tmp_path / target)
        with pytest.raises(ValueError, match="is a symbolic link"):
            am.Spill(tmp_path / name)
    assert not (tmp_path / "nowhere").exists() and list((tmp_path / "real").iterdir()) == []


def test_a_symbolic_link_in_the_place_of_a_file_is_not_followed(spill, tmp_path):
    handle, other = spill.put(np.zeros(3)), spill.put(np.ones(3))
    held = other.get()
    victim = tmp_path / "victim"
    os.rename(spill._path(0), victim)
    os.symlink(victim, spill._path(0))
    with pytest.raises(OSError, match="symbolic link"):
        handle.get()
    os.unlink(spill._path(1))
    os.symlink(victim, spill._path(1))
    before = victim.read_bytes()
    held[0] = 7
    del held
    assert other.evict() == 24  # written in the place of the link
    assert other.get().tolist() == [7, 1, 1]
    handle.close()
    assert victim.read_bytes() == before


def test_a_file_where_the_directory_should_be_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        am.Spill(tmp_path / "file")


def test_another_containers_file_is_refused(spill):
    a, b = spill.put(am.SparseArray(np.eye(3))), spill.put(am.SparseBelief(np.eye(3)))
    os.replace(spill._path(0), spill._path(1))
    with pytest.raises(am.CorruptData, match="header of a 'SparseArray'; expected 'SparseBelief'"):
        b.get()
    with pytest.raises(FileNotFoundError):
        a.get()


@pytest.mark.parametrize("make", [lambda: am.SparseBelief.point((3, 4), 5), lambda: np.arange(3.0)])
def test_every_byte_is_checked(spill, make):
    handle = spill.put(make())
    path = spill._path(0)
    with open(path, "rb") as file:
        good = file.read()
    assert len(good) < 1000
    expected, refused = content(make()), 0
    for place in range(len(good)):
        for flip in (0x01, 0x80, 0xFF):
            with open(path, "wb") as file:
                file.write(good[:place] + bytes([good[place] ^ flip]) + good[place + 1 :])
            try:
                assert content(handle.get()) == expected
            except am.CorruptData:
                refused += 1
            else:
                handle.evict()
    assert refused == 3 * len(good)
    for end in range(len(good)):
        with open(path, "wb") as file:
            file.write(good[:end])
        with pytest.raises(am.CorruptData):
            handle.get()
    with open(path, "wb") as file:
        file.write(good)
    assert content(handle.get()) == expected


@quiet
def test_a_full_disk_loses_nothing(tmp_path):
    budget = am.Budget(27_000)
    spill = am.Spill(tmp_path, budget=budget)
    small, large, third = spill.put(np.zeros(100)), spill.put(np.zeros(3000)), spill.put(np.zeros(400))
    large.get()[:] = 5
    small.get()
    files = stamp(spill)
    with full_disk(4096):
        with pytest.raises(OSError):
            spill.put(np.ones(2000))
        for call in (large.evict, spill.evict, third.get):  # for which there is no room beside `large`
            with pytest.raises(OSError):
                call()
        assert large.is_resident and set(large.get()) == {5}
        assert small.is_resident and not third.is_resident
    assert stamp(spill) == files
    assert budget.used == 24_000 + 800
    assert spill.evict() == 24_800
    assert set(large.get()) == {5}
    budget._check()


# ---- processes that die

WRITER = """
import os, sys
import numpy as np
import agentmem as am

spill = am.Spill(sys.argv[1])
handles = [spill.put(np.zeros(3)), spill.put(am.SparseBelief.uniform(9))]
print(os.path.basename(spill._folder), flush=True)
sys.stdin.read()
"""


def writer(directory):
    """A process that has spilled two things, and the name of its folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=same_environment(),
    )
    return process, process.stdout.readline().strip()


def test_orphans_of_the_dead_are_removed_only(tmp_path):
    (dead, of_dead), (alive, of_alive) = writer(tmp_path), writer(tmp_path)
    mine = am.Spill(tmp_path)
    handle = mine.put(np.ones(3))
    (tmp_path / of_dead / ".1.abcd.part").write_bytes(b"half")
    others = [tmp_path / "1-0.spill", tmp_path / "notes.txt", tmp_path / f"1-{'0' * 16}.spill.old"]
    others[0].mkdir()
    others[1].touch()
    others[2].mkdir()
    link, target = tmp_path / f"1-{'1' * 16}.spill", tmp_path / "target"
    target.mkdir()
    (target / "precious").touch()
    link.symlink_to(target)
    (tmp_path / f"1-{'2' * 16}.spill").touch()
    try:
        assert of_dead.startswith(f"{dead.pid}-")
        assert mine.clean() == 0
        dead.kill()
        dead.wait()
        assert (tmp_path / of_dead).exists()
        assert mine.clean() == 3
        assert mine.clean() == 0
        assert not (tmp_path / of_dead).exists()
        assert len(list((tmp_path / of_alive).iterdir())) == 2
        assert all(path.exists() for path in (*others, target / "precious")) and link.is_symlink()
        assert handle.get().tolist() == [1, 1, 1]
        alive.communicate()
        assert not (tmp_path / of_alive).exists()  # it ended as it should
    finally:
        for process in (dead, alive):
            process.kill()
            process.communicate()


# Each round a forked child writes versions of two containers until it is killed; it says on a pipe which are on disk.
KILLER = """
import json, os, random, signal, sys, time
import numpy as np
import agentmem as am
from agentmem.files import read_arrays
from agentmem.spill import _content

directory, rounds = sys.argv[1], int(sys.argv[2])
seen = {"rounds": 0, "files": 0, "old": 0, "new": 0, "parts": 0, "wrong": []}
for round in range(rounds):
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(told)
        spill = am.Spill(directory)
        handles = [spill.put(np.zeros(3000)), spill.put(am.SparseBelief.point(5000, 0))]
        os.write(tell, bytes([0]))
        for version in range(1, 250):
            handles[0].get()[:] = version
            handles[1].get()[:2500] = version
            spill.evict()
            os.write(tell, bytes([version]))
        os._exit(0)
    os.close(tell)
    first = os.read(told, 1)
    time.sleep(random.Random(round).random() * 0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    on_disk = (first + os.read(told, 1000))[-1]
    os.close(told)
    seen["rounds"] += 1
    for folder in os.scandir(directory):
        for entry in os.scandir(folder.path):
            if entry.name.endswith(".part"):
                seen["parts"] += 1
                continue
            try:
                values = read_arrays(entry.path, lambda header, buffers: {k: v.copy() for k, v in buffers.items()})
            except Exception as error:
                seen["wrong"].append(f"{entry.name}: {error!r}")
                continue
            cells = values["cells"].view(float) if "cells" in values else values["values"][:2500]
            seen["files"] += 1
            expected = (0.0, 1.0) if on_disk == 0 else (float(on_disk),)  # a new belief has its point
            if {*cells} <= {*expected} and len({*cells}) == 1:
                seen["old"] += 1
            elif {*cells} == {float(on_disk + 1)}:
                seen["new"] += 1
            else:
                seen["wrong"].append(f"{entry.name}: {sorted({*cells})} after {on_disk}")
    am.Spill(directory).clean()
    if os.listdir(directory):
        seen["wrong"].append(f"left: {os.listdir(directory)}")
print(json.dumps(seen))
"""


def test_a_writer_killed_at_any_instant_leaves_the_old_or_the_new(tmp_path):
    printed = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path), "200"], capture_output=True, text=True, env=same_environment()
    )
    assert printed.returncode == 0, printed.stderr
    seen = json.loads(printed.stdout)
    assert seen["wrong"] == []
    assert seen["rounds"] == 200 and seen["files"] == 400
    assert seen["new"] + seen["parts"] > 0  # or none was killed while it wrote


# ---- any sequence of calls, beside a dict


class SpillMachine(RuleBasedStateMachine):
    """`said` has, for every handle, what its container says."""

    @initialize(limit=st.sampled_from([None, 600, 2000]))
    def start(self, limit):
        self.folder = tempfile.TemporaryDirectory()
        self.budget = None if limit is None else am.Budget(limit)
        self.spill = am.Spill(self.folder.name, budget=self.budget)
        self.handles, self.said, self.held = {}, {}, {}
        self.n = 0

    def teardown(self):
        if hasattr(self, "folder"):
            self.handles = self.held = self.spill = None
            gc.collect()
            assert os.listdir(self.folder.name) == []
            self.folder.cleanup()

    def get(self, key):
        """The container, None where there is no room and should be none."""
        held_nbytes = sum(self.handles[k].nbytes for k in self.held if k in self.handles)
        try:
            return self.handles[key].get()
        except am.BudgetExceeded:
            assert key not in self.held
            assert held_nbytes + self.handles[key].nbytes > self.budget.limit
            return None

    @rule(kind=st.sampled_from(["belief", "array", "ndarray", "model"]), n=st.integers(1, 60))
    def put(self, kind, n):
        made = {
            "belief": lambda: am.SparseBelief.uniform(n),
            "array": lambda: am.SparseArray(np.arange(n) % 3, dtype=np.int16),
            "ndarray": lambda: np.arange(n, dtype=np.float32),
            "model": lambda: am.Model(np.eye(3), np.full((3, n), 1 / n)),
        }[kind]()
        self.n += 1
        self.said[self.n] = content(made)
        self.handles[self.n] = self.spill.put(made)

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def look(self, data):
        key = data.draw(st.sampled_from([*self.handles]))
        got = self.get(key)
        assert got is None or content(got) == self.said[key]
        assert key not in self.held or got is self.held[key]

    @precondition(lambda self: self.handles)
    @rule(data=st.data(), value=st.integers(1, 9))
    def change(self, data, value):
        key = data.draw(st.sampled_from([*self.handles]))
        got = self.get(key)
        if got is not None and not isinstance(got, am.Model):
            got[value % len(got)] = value
            self.said[key] = content(got)

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def hold(self, data):
        key = data.draw(st.sampled_from([*self.handles]))
        if (got := self.get(key)) is not None:
            self.held[key] = got

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def let_go(self, data):
        del self.held[data.draw(st.sampled_from([*self.held]))]

    @precondition(lambda self: self.held)
    @rule(data=st.data(), value=st.integers(1, 9))
    def change_what_is_held(self, data, value):
        key = data.draw(st.sampled_from([*self.held]))
        if not isinstance(self.held[key], am.Model):
            self.held[key][0] = value
            self.said[key] = content(self.held[key])

    @rule(nbytes=st.sampled_from([None, 1, 300]))
    def evict(self, nbytes):
        resident = self.spill.resident_nbytes
        evictable = sum(h.nbytes for k, h in self.handles.items() if h.is_resident and k not in self.held)
        freed = self.spill.evict(nbytes)
        assert freed >= min(evictable, evictable if nbytes is None else nbytes)
        assert freed <= evictable and (nbytes is not None or freed == evictable)
        assert resident - freed <= self.spill.resident_nbytes + 10_000  # sizes are as of the writing

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def close(self, data):
        key = data.draw(st.sampled_from([*self.handles]))
        self.handles.pop(key).close()
        if key in self.held:
            assert content(self.held.pop(key)) == self.said[key]

    @invariant()
    def is_sound(self):
        if not hasattr(self, "spill"):
            return
        assert len(os.listdir(self.spill._folder)) == len(self.handles)
        assert all(self.handles[key].is_resident for key in self.held)
        if self.budget is not None:
            self.budget._check()
            assert self.budget.used == self.spill.resident_nbytes
            assert self.budget.used == sum(h.nbytes for h in self.handles.values() if h.is_resident)


SpillMachine.TestCase.settings = settings(deadline=None, database=None, max_examples=40, stateful_step_count=40)
TestSpill = quiet(SpillMachine.TestCase)


# ---- what is not built yet


def test_lazy_builds_once_when_asked():
    built = []
    lazy = am.Lazy(lambda: built.append(1) or [3])
    assert not lazy.built and built == [] and repr(lazy) == "Lazy(not built)"
    assert lazy.get() is lazy.get()
    assert lazy.built and built == [1] and repr(lazy) == "Lazy([3])"


def test_lazy_builds_none_once_too():
    built = []
    lazy = am.Lazy(lambda: built.append(1))
    assert lazy.get() is lazy.get() is None
    assert built == [1]


def test_many_threads_get_one_lazy_object():
    start, go_on, built, got = threading.Barrier(9), threading.Event(), [], []

    def factory():
        built.append(1)
        assert go_on.wait(30)
        return object()

    lazy = am.Lazy(factory)
    threads = [threading.Thread(target=lambda: (start.wait(), got.append(lazy.get()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    start.wait()
    assert not lazy.built
    go_on.set()
    for thread in threads:
        thread.join()
    assert built == [1] and len(got) == 8 and len(set(map(id, got))) == 1


def test_a_factory_that_fails_is_asked_again():
    outcomes = iter([OSError("not yet"), 5])

    def factory():
        outcome = next(outcomes)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    lazy = am.Lazy(factory)
    with pytest.raises(OSError, match="not yet"):
        lazy.get()
    assert not lazy.built
    assert lazy.get() == 5


def test_a_factory_that_asks_for_itself_is_said():
    lazy = am.Lazy(lambda: lazy.get())
    for _ in range(2):
        with pytest.raises(RuntimeError, match="asks for what it is to build"):
            lazy.get()


def test_a_factory_is_let_go():
    held = np.zeros(1000)
    gone = weakref.ref(held)
    lazy = am.Lazy(lambda held=held: float(held.sum()))
    del held
    assert gone() is not None
    assert lazy.get() == 0.0
    assert gone() is None


def test_a_factory_is_callable():
    with pytest.raises(TypeError, match="factory of type int given"):
        am.Lazy(3)
