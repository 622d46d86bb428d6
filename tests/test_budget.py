"""A budget counts as plain dicts would, never lets more in than its limit, and forgets nothing it was told."""

import contextlib
import gc
import threading
import warnings
import weakref

import psutil
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import agentmem as am

quiet = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def ledger(budget):
    """All that a budget and those above it know."""
    return [(b.used, b.holders) for b in budget._chain()]


# ---- limits


@pytest.mark.parametrize(
    "limit, nbytes",
    [
        ("10 MB", 10_000_000),
        ("10MB", 10_000_000),
        ("1.5 GiB", 3 * 2**29),
        ("0.1 GB", 100_000_000),
        (" 3 kib ", 3072),
        ("2 kB", 2000),
        ("1 TB", 10**12),
        ("1 PiB", 2**50),
        ("512 B", 512),
        ("512", 512),
        (512, 512),
    ],
)
def test_a_limit_is_a_size(limit, nbytes):
    assert am.Budget(limit).limit == nbytes


@pytest.mark.parametrize("limit", ["", "MB", "ten MB", "10 XB", "10 M", "-1 MB", "1e6", "1,000 B", "1 MB MB", "٣ MB"])
def test_what_is_no_size_is_said(limit):
    with pytest.raises(ValueError, match=r"given; expected a size such as '10 MB'"):
        am.Budget(limit)


@pytest.mark.parametrize("limit", [0, -1, "0 MB", "0.3 B"])
def test_a_limit_is_positive(limit):
    with pytest.raises(ValueError, match="at least one byte"):
        am.Budget(limit)


@pytest.mark.parametrize("limit", [1e6, None, [1]])
def test_a_limit_of_another_type_is_said(limit):
    with pytest.raises(TypeError, match="expected a size"):
        am.Budget(limit)


def test_a_parent_is_a_budget():
    with pytest.raises(TypeError, match="parent of type str given"):
        am.Budget(10, parent="10 MB")


# ---- the ledger


@quiet
def test_reserving_charges_all_budgets_above():
    top = am.Budget(100)
    middle = am.Budget(60, parent=top)
    low = am.Budget(50, parent=middle, name="agent 7")
    low.reserve(20, "belief")
    low.reserve(10, ["any object is named by its type"])
    middle.reserve(5, "map")
    assert low.holders == {"belief": 20, "list": 10}
    assert middle.holders == top.holders == {"agent 7": 30, "map": 5}
    assert [b.used for b in (low, middle, top)] == [30, 35, 35]
    assert [b.free for b in (low, middle, top)] == [20, 25, 65]
    low.release(20, "belief")
    low.release(10, [])
    assert ledger(low) == [(0, {}), (5, {"map": 5}), (5, {"map": 5})]


@quiet
def test_free_is_what_can_be_reserved():
    top = am.Budget(100)
    left, right = am.Budget(90, parent=top), am.Budget(90, parent=top)
    left.reserve(70, "x")
    assert (left.free, right.free) == (20, 30)
    right.reserve(right.free, "y")
    assert top.free == left.free == right.free == 0


@quiet
@pytest.mark.parametrize("limits", [(10, 100), (100, 10)], ids=["the nearest is short", "the farthest is short"])
def test_all_are_charged_or_none(limits):
    top = am.Budget(limits[1])
    low = am.Budget(limits[0], parent=top)
    low.reserve(4, "x")
    before = ledger(low)
    with pytest.raises(am.BudgetExceeded):
        low.reserve(7, "y")
    assert ledger(low) == before
    low.reserve(6, "y")
    assert low.used == top.used == 10


@quiet
def test_a_refusal_names_who_what_and_the_five_largest():
    top = am.Budget("1 kB", name="simulation")
    agent = am.Budget("1 MB", parent=top)
    for k in range(1, 8):
        agent.reserve(k * 10, f"part {k}")
    with pytest.raises(MemoryError) as raised:
        agent.reserve(721, "history")
    assert str(raised.value) == (
        "history asks for 721 bytes; simulation has 720 of 1,000 free; "
        "held by: part 7 70, part 6 60, part 5 50, part 4 40, part 3 30 and 2 more"
    )
    with pytest.raises(am.BudgetExceeded, match=r"the budget has 5 of 5 free; held by: nobody$"):
        am.Budget(5).reserve(6, "x")


def test_more_than_held_is_not_given_back():
    top = am.Budget(100)
    low = am.Budget(100, parent=top)
    low.reserve(10, "x")
    top.reserve(5, "x")
    before = ledger(low)
    for budget, n, name in ((low, 11, "x"), (low, 1, "y"), (top, 16, "x"), (top, 1, "y")):
        with pytest.raises(ValueError, match=f"{name} gives back {n} bytes"):
            budget.release(n, name)
    top.release(10, "x")  # what the budget below holds there
    with pytest.raises(ValueError, match=r"x gives back 10 bytes; the budget knows of 5"):
        low.release(10, "x")
    assert ledger(low) == [before[0], (5, {"x": 5})]


@pytest.mark.parametrize("call", ["reserve", "release"])
def test_amounts_are_ints_of_at_least_zero(call):
    budget = am.Budget(10)
    budget.reserve(5, "x")
    with pytest.raises(ValueError, match="-1 bytes given"):
        getattr(budget, call)(-1, "x")
    with pytest.raises(TypeError):
        getattr(budget, call)(1.5, "x")
    getattr(budget, call)(0, "nobody")
    assert budget.holders == {"x": 5}


def test_a_budget_that_goes_gives_back():
    top = am.Budget(100)
    for name in ("agent", None):
        low = am.Budget(50, parent=top, name=name)
        low.reserve(20, "x")
        low.reserve(3, "y")
        assert top.used == 23
        del low
        gc.collect()
        assert ledger(top) == [(0, {})]


def test_no_holder_is_kept_alive():
    class Holder:
        pass

    gone = []
    holder = Holder()
    budget = am.Budget(100)
    weakref.finalize(holder, gone.append, True)
    budget.reserve(10, holder)
    del holder
    gc.collect()
    assert gone == [True]
    assert budget.holders == {"Holder": 10}


# ---- when short


@quiet
def test_what_on_short_frees_is_used():
    asked = []

    def free(budget, missing):
        asked.append((budget, missing))
        budget.release(missing, "cache")

    budget = am.Budget(100, on_short=free)
    budget.reserve(70, "cache")
    budget.reserve(50, "belief")
    assert asked == [(budget, 20)]
    assert budget.holders == {"cache": 50, "belief": 50}


@quiet
def test_the_nearest_is_asked_first_and_each_once():
    asked = []

    def note(budget, missing):
        asked.append((budget.name, missing))

    top = am.Budget(100, on_short=note, name="top")
    middle = am.Budget(1000, parent=top, on_short=note, name="not short")
    low = am.Budget(90, parent=middle, on_short=note, name="low")
    low.reserve(60, "x")
    before = ledger(low)
    with pytest.raises(am.BudgetExceeded, match="low has 30 of 90 free"):
        low.reserve(50, "y")
    assert asked == [("low", 20), ("top", 10)]
    assert ledger(low) == before


def test_nobody_is_asked_for_what_can_never_fit():
    budget = am.Budget(100, on_short=lambda *_: pytest.fail("asked"))
    budget.reserve(10, "x")
    with pytest.raises(am.BudgetExceeded, match="101"):
        budget.reserve(101, "y")


@quiet
def test_on_short_is_not_called_for_what_it_reserves_itself():
    depth = []

    def free(budget, missing):
        depth.append(missing)
        budget.release(40, "cache")
        budget.reserve(30, "compressed")
        with pytest.raises(am.BudgetExceeded):
            budget.reserve(80, "too much")

    budget = am.Budget(100, on_short=free)
    budget.reserve(95, "cache")
    budget.reserve(10, "x")
    assert depth == [5]
    assert budget.holders == {"cache": 55, "compressed": 30, "x": 10}
    budget.release(30, "compressed")
    budget.reserve(40, "y")  # and is called again for the next
    assert len(depth) == 2


def test_an_error_in_on_short_leaves_the_ledger():
    def fail(budget, missing):
        raise OSError("disk full")

    budget = am.Budget(10, on_short=fail)
    budget.reserve(7, "x")
    for _ in range(2):
        with pytest.raises(OSError, match="disk full"):
            budget.reserve(5, "y")
        assert ledger(budget) == [(7, {"x": 7})]


@quiet
def test_on_short_of_one_thread_does_not_hold_others_up():
    inside, go_on, done = threading.Event(), threading.Event(), []

    def wait(budget, missing):
        inside.set()
        assert go_on.wait(30)
        budget.release(50, "x")

    budget = am.Budget(100, on_short=wait)
    budget.reserve(90, "x")
    thread = threading.Thread(target=lambda: (budget.reserve(20, "y"), done.append(True)))
    thread.start()
    assert inside.wait(30)
    budget.reserve(5, "z")
    budget.release(5, "z")
    go_on.set()
    thread.join()
    assert done and budget.holders == {"x": 40, "y": 20}


# ---- warnings


def told(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert all(w.category is RuntimeWarning and w.filename == __file__ for w in caught)
    return [str(w.message).split(" of ")[0] for w in caught]


def test_each_crossing_is_told_once():
    budget = am.Budget(100, name="swarm")
    assert told(lambda: budget.reserve(79, "x")) == []
    assert told(lambda: budget.reserve(1, "x")) == ["swarm: over 80 %"]
    assert told(lambda: budget.reserve(14, "x")) == []
    assert told(lambda: budget.reserve(1, "x")) == ["swarm: over 95 %"]
    assert told(lambda: budget.reserve(5, "x")) == []
    budget.release(6, "x")  # to 94
    assert told(lambda: budget.reserve(1, "x")) == ["swarm: over 95 %"]
    budget.release(20, "x")  # to 75
    assert told(lambda: budget.reserve(5, "x")) == ["swarm: over 80 %"]
    budget.release(80, "x")
    assert told(lambda: budget.reserve(96, "x")) == ["swarm: over 95 %"]


def test_every_budget_warns_of_itself():
    top = am.Budget(100, name="simulation")
    low = am.Budget(100, parent=top)
    assert told(lambda: low.reserve(85, "x")) == ["the budget: over 80 %", "simulation: over 80 %"]
    assert told(lambda: top.reserve(10, "y")) == ["simulation: over 95 %"]


def test_a_warning_made_an_error_charges_nothing():
    top = am.Budget(100)
    low = am.Budget(1000, parent=top)
    low.reserve(50, "x")
    before = ledger(low)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with pytest.raises(RuntimeWarning):
                low.reserve(40, "y")
            assert ledger(low) == before


# ---- threads and finalizers


@quiet
def test_many_threads_lose_no_byte():
    top = am.Budget(1000)
    budgets = [am.Budget(400, parent=top, name=f"agent {k}") for k in range(4)]
    start, over = threading.Barrier(4), []

    def run(budget):
        start.wait()
        for k in range(2000):
            with contextlib.suppress(am.BudgetExceeded):
                budget.reserve(k % 400, "x")
                over.append(top.used > 1000 or budget.used > 400)
                budget.release(k % 400, "x")

    threads = [threading.Thread(target=run, args=(budget,)) for budget in budgets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert over and not any(over)
    assert ledger(top) == [(0, {})]
    assert all(budget.used == 0 for budget in budgets)


def test_finalizers_may_release_at_any_time():
    """The collector may run one amid a call of the same thread."""
    top = am.Budget(10**9)
    low = am.Budget(10**9, parent=top)

    class Holder:
        def __init__(self):
            self.cycle = self
            low.reserve(3, "x")

        def __del__(self):
            low.release(3, "x")

    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for k in range(3000):
            Holder()
            low.reserve(k, "y")
            assert low.holders.get("y", 0) == k
            low.release(k, "y")
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    assert ledger(low) == [(0, {}), (0, {})]


# ---- the machine


def group(root, version, path, limit, used, reclaimable=0):
    """A memory cgroup as the kernel shows it under `root`."""
    folder = root / "sys/fs/cgroup" / ("" if version == 2 else "memory") / path
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    prefix = "" if version == 2 else "total_"
    (folder / "memory.stat").write_text(f"anon 1\n{prefix}inactive_file {reclaimable}\nother 2\n")


def member(root, *lines):
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in lines))


V1 = ("9:name=systemd:/", "4:cpu,memory:/", "2:cpuset:/")


@pytest.mark.parametrize("version, line", [(2, "0::/pod/agent"), (1, "4:cpu,memory:/pod/agent")])
def test_the_smaller_limit_wins(tmp_path, version, line):
    member(tmp_path, "9:name=systemd:/else", line)
    group(tmp_path, version, "pod", 900_000, 400_000, 100_000)
    group(tmp_path, version, "pod/agent", 700_000, 50_000)
    assert am.Budget.for_machine(0.5, root=str(tmp_path)).limit == 300_000  # of the group above
    group(tmp_path, version, "pod", "max" if version == 2 else 2**63 - 4096, 400_000)
    assert am.Budget.for_machine(1.0, root=str(tmp_path)).limit == 650_000


@pytest.mark.parametrize("version, line", [(2, "0::/kubepods/pod1/abc"), (1, "4:memory:/docker/abc")])
def test_a_container_sees_its_group_as_the_root(tmp_path, version, line):
    member(tmp_path, line)
    group(tmp_path, version, "", 500_000, 100_000)
    assert am.Budget.for_machine(0.25, root=str(tmp_path)).limit == 100_000


def test_a_throttle_is_a_limit(tmp_path):
    member(tmp_path, "0::/")
    group(tmp_path, 2, "", "max", 100_000)
    (tmp_path / "sys/fs/cgroup/memory.high").write_text("300000\n")
    assert am.Budget.for_machine(1.0, root=str(tmp_path)).limit == 200_000


def test_without_limits_the_machine_is_asked(tmp_path):
    unlimited = tmp_path / "unlimited"
    member(unlimited, "0::/")
    group(unlimited, 2, "", "max", 100_000)
    for root in (tmp_path / "no cgroups", unlimited):
        limit = am.Budget.for_machine(0.5, root=str(root)).limit
        assert 1_000_000 < limit <= psutil.virtual_memory().total / 2


def test_a_full_group_leaves_next_to_nothing(tmp_path):
    member(tmp_path, "0::/")
    group(tmp_path, 2, "", 1000, 2000)
    assert am.Budget.for_machine(1.0, root=str(tmp_path)).limit == 1


@pytest.mark.parametrize("fraction", [0, -0.5, 1.5, float("nan")])
def test_a_fraction_is_a_share(fraction):
    with pytest.raises(ValueError, match="expected above 0 and at most 1"):
        am.Budget.for_machine(fraction)


# ---- any sequence of calls, beside plain dicts

PARENT_OF = {"top": None, "left": "top", "right": "top", "leaf": "left"}
LIMITS = {"top": 100, "left": 70, "right": 60, "leaf": 40}
NAMES = {"top": None, "left": "left agent", "right": None, "leaf": None}


class BudgetMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.budgets, self.held = {}, {}
        for key, parent in PARENT_OF.items():
            on_short = self.drop_cache if key == "left" else None
            self.budgets[key] = am.Budget(
                LIMITS[key], parent=self.budgets.get(parent), name=NAMES[key], on_short=on_short
            )
            self.held[key] = {}

    def accounts(self, key, holder):
        while key is not None:
            yield self.held[key], LIMITS[key], holder
            key, holder = PARENT_OF[key], NAMES[key] or holder

    def change(self, key, holder, n):
        for held, _, name in self.accounts(key, holder):
            held[name] = held.get(name, 0) + n
            if not held[name]:
                del held[name]

    def drop_cache(self, budget, missing):
        assert budget is self.budgets["left"] and missing > 0
        if cached := self.held["left"].get("cache", 0):
            budget.release(cached, "cache")
            self.change("left", "cache", -cached)

    def fits(self, key, holder, n, freed=0):
        """Whether n bytes fit, once `left` and what is above it are freed of some."""
        freed_of = [self.held["left"], self.held["top"]]
        return all(
            sum(held.values()) + n - freed * any(held is other for other in freed_of) <= limit
            for held, limit, _ in self.accounts(key, holder)
        )

    @rule(key=st.sampled_from([*PARENT_OF]), holder=st.sampled_from(["belief", "log", "cache"]), n=st.integers(0, 80))
    def reserve(self, key, holder, n):
        is_asked = key in ("left", "leaf") and sum(self.held["left"].values()) + n > LIMITS["left"]
        expected = self.fits(key, holder, n, freed=self.held["left"].get("cache", 0) if is_asked else 0)
        try:
            self.budgets[key].reserve(n, holder)
        except am.BudgetExceeded:
            assert not expected
        else:
            assert expected and self.fits(key, holder, n)
            if n:
                self.change(key, holder, n)

    @rule(key=st.sampled_from([*PARENT_OF]), holder=st.sampled_from(["belief", "log", "cache"]), n=st.integers(0, 80))
    def release(self, key, holder, n):
        enough = all(held.get(name, 0) >= n for held, _, name in self.accounts(key, holder))
        try:
            self.budgets[key].release(n, holder)
        except ValueError:
            assert not enough
        else:
            assert enough
            if n:
                self.change(key, holder, -n)

    @invariant()
    def is_as_the_dicts_say(self):
        for key, budget in self.budgets.items():
            budget._check()
            assert budget.holders == self.held[key]
            assert budget.used == sum(self.held[key].values()) <= budget.limit
        leaf = [LIMITS[key] - sum(self.held[key].values()) for key in ("leaf", "left", "top")]
        assert self.budgets["leaf"].free == min(leaf)


BudgetMachine.TestCase.settings = settings(deadline=None, database=None, max_examples=100, stateful_step_count=40)
TestBudget = quiet(BudgetMachine.TestCase)
