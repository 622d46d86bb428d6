"""Claim: in a real process a leak of 100 bytes a step is found and named, and a clean run is not called one.

A simulation in a process of its own: agents over a shared Model with beliefs, logs that keep their last entries, caches
that warm up, arrays and dicts that churn. It takes 240 steps, with a look at memory after each (`Profiler.growth`), and
runs clean 50 times, then 50 times with a leak of 100 bytes a step: a dict of one agent that grows, a memory
map that is opened and never closed, a log without limit. Every run has a seed of its own.

Promises: no clean run is called growing, in any of its some 150 lines and parts; all leaking ones are, and the line or
the part that leaks is named. What is called growing and is not is printed.
"""

import gc
import json
import mmap
import os
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import numpy as np
import pytest

import agentmem as am
from agentmem.profiler import Profiler
from agentmem.profiler.worlds import grid_world
from harness import in_child, replay, table

N_AGENTS, STEPS, RUNS = 5, 240, 50
LEAKS = ["a growing dict", "an unclosed map", "a log without limit"]
OPEN: list[mmap.mmap] = []


class Agent:
    def __init__(self, model: am.Model, seed: int) -> None:
        self.model, self.belief = model, model.belief()
        self.random = random.Random(seed)
        self.log: list[str] = []
        self.plans: dict[str, list[float]] = {}
        self.seen: dict[int, tuple[int, int]] = {}
        self.history = am.HistoryBuffer(50, dtype=int)
        self.records = am.RecordHistory(maxlen=60)
        self.scratch = np.zeros(10)

    def step(self, t: int, action: int, observation: int, leak: str | None) -> None:
        self.belief.update(self.model, action, observation, on_impossible="likelihood")
        self.history.append(action)
        for _ in range(4):  # the rows that it keeps at most are there after 80 steps
            self.records.append({"t": t, "cell": self.belief.mode(), "why": self.random.choice(["a", "b", "c"])})
        self.scratch = np.zeros(50 + self.random.randrange(100))  # churn
        cell = self.random.randrange(15)  # all of them are there after some 50 steps
        self.plans[f"plan {cell}"] = [self.random.random() for _ in range(5 + self.random.randrange(10))]  # warms up
        self.log.append(f"step {t}: {action} {observation}")
        if leak != "a log without limit":
            del self.log[: max(0, len(self.log) - 30)]
        else:
            self.log[-1] += "." * 30
        if leak == "a growing dict":
            self.seen[1_000 + t] = (t + 1_000, t + 2_000)
        if leak == "an unclosed map":
            OPEN.append(mmap.mmap(-1, 4_096))


# Where each leak is, as lines of this file or parts of the agent that has it.
PLACES = {
    "a growing dict": ("agent[3].seen", "self.seen[1_000 + t]"),
    "an unclosed map": (None, "OPEN.append("),
    "a log without limit": ("agent[3].log", 'self.log[-1] += "."'),
}


def child(seed: int, leak: str | None) -> dict[str, Any]:
    world = grid_world(12, 12, agents=N_AGENTS, steps=STEPS, seed=seed)
    model = am.Model(world.transition, world.observation)
    agents = [Agent(model, seed * 100 + k) for k in range(N_AGENTS)]
    walk = [(a.tolist(), o.tolist()) for a, o in zip(world.actions, world.observations, strict=True)]
    gc.collect()
    gc.freeze()  # what is loaded by now is not looked through each time
    looks = np.zeros(STEPS)  # laid out before, or it would be found
    with Profiler(agents, lines=True) as profiler:
        growth = profiler.growth(STEPS)
        for t, (actions, observations) in enumerate(walk):
            for k, agent in enumerate(agents):
                agent.step(t, actions[k], observations[k], leak if k == 3 else None)
            began = time.perf_counter()
            growth.sample()
            looks[t] = time.perf_counter() - began
        trends = growth.trends()
    return {"growing": [trend.name for trend in trends if trend.verdict == "growing"], "look": float(np.median(looks))}


def is_named(leak: str, growing: list[str]) -> bool:
    part, source = PLACES[leak]
    with open(__file__, encoding="utf-8") as file:
        lines = [f"bench_leaks.py:{k}" for k, line in enumerate(file, 1) if source in line and "PLACES" not in line]
    return part in growing or any(name.endswith(line) for name in growing for line in lines)


@pytest.mark.benchmark(timer=replay.read)
def test_leaks(benchmark: Any, smoke: bool, report: Any) -> None:
    runs = 1 if smoke else RUNS
    with ThreadPoolExecutor(os.cpu_count()) as several:  # what is measured are bytes
        clean = list(several.map(lambda seed: in_child(__file__, seed, "-"), range(runs)))
        kinds = [LEAKS[seed % 3] for seed in range(runs)]
        found = several.map(lambda seed: in_child(__file__, seed, kinds[seed]), range(runs))
        leaking = list(zip(kinds, found, strict=True))
    flagged = [name for one in clean for name in one["growing"]]
    rows = [["clean", f"{sum(bool(one['growing']) for one in clean)} of {runs}", "0", "-"]]
    for leak in LEAKS:
        some = [one["growing"] for kind, one in leaking if kind == leak]
        named = sum(is_named(leak, growing) for growing in some)
        rows.append([leak, f"{sum(map(bool, some))} of {len(some)}", "all", f"{named} of {len(some)}"])
    looks = [one["look"] for one in clean]
    replay.play(benchmark, looks)
    report.sections[f"leaks of 100 bytes a step in {STEPS} steps of a real process"] = [
        *table(["", "called growing", "promised", "named"], rows),
        *(f"clean, and yet: {name}" for name in sorted(set(flagged))),
        f"a look takes {median(looks) * 1e3:.0f} ms, tracemalloc tracing",
    ]
    report.records["leaks"] = {"clean": clean, "leaking": leaking}
    assert smoke or all(is_named(leak, one["growing"]) for leak, one in leaking)


if __name__ == "__main__":
    seed, leak = int(sys.argv[1]), sys.argv[2]
    print(json.dumps(child(seed, None if leak == "-" else leak)))
