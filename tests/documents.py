"""Documents as commands write them, made by hand: what reports are tested with."""

import math
from dataclasses import replace

from agentmem.profiler import comparison, records
from agentmem.profiler.filters import Configuration
from agentmem.profiler.front import LeftOut, Measurement, TradeOff
from agentmem.profiler.report import to_json
from agentmem.profiler.worlds import Extent

MIB = 2**20


def snapshot(label="end", at=30.0):
    agents = tuple(
        records.AgentMemory(f"robot {k}", 3_000 + k, 800_000, {"belief": 2_000, "log": 1_000 + k}) for k in range(20)
    )
    return records.Snapshot(
        label=label,
        at=at,
        process=records.ProcessMemory(rss=90 * MIB, peak_rss=110 * MIB, pss=80 * MIB),
        traced=records.Traced(
            30 * MIB,
            42 * MIB,
            (records.Line("simulation.py:12", 20 * MIB, 7), records.Line("/usr/lib/json/decoder.py:353", 9_000, 80)),
        ),
        types=(records.TypeUse("numpy.ndarray", 900, 25 * MIB), records.TypeUse("dict", 8_000, 3 * MIB)),
        collector=records.Collector(True, 900, 12_000, 0),
        agents=agents,
        parts={"belief": 40_000, "log": 20_190},
        shared=(records.SharedPart("robot 0.model", 800_000, 20), records.SharedPart("(small)", 400, 20)),
        mapped=0,
        counters=400_000,
        seconds=0.012,
        nbytes=40_000,
    )


def profile(**changes):
    n = 600
    seconds = tuple(k * 0.05 for k in range(n))
    samples = records.Samples(
        interval=0.05,
        seconds=seconds,
        rss=tuple(int(50 * MIB + 40 * MIB * (1 - math.exp(-t / 5)) + MIB * math.sin(3 * t)) for t in seconds),
        traced=tuple(int(5 * MIB + 25 * MIB * (1 - math.exp(-t / 5))) for t in seconds),
        agents=(None, *(int(MIB + 30_000 * t) for t in seconds[1:])),
        overruns=2,
        cpu_seconds=0.21,
    )
    later = replace(snapshot(), parts={"belief": 40_000, "log": 64_190, "plan": 900})
    whole = records.Profile(
        command="simulation.py --agents 20",
        started="2026-01-02T03:04:05+00:00",
        duration=30.0,
        ended="finished",
        is_whole=True,
        python="3.11.9",
        platform="Linux",
        samples=samples,
        snapshots=(snapshot("before the script", 0.1), snapshot("warmed up", 9.0), later),
        events=(
            records.Event(0.1, "before the script"),
            records.Event(9.0, "warmed up"),
            records.Event(9.3, "a mark that is close to it"),
            records.Event(30.0, "end"),
        ),
        operations=(
            records.Operation("plan", 400, 12.0, 0.09, 6 * MIB, 0, "traced"),
            records.Operation("load", 1, 0.4, 0.4, 30 * MIB, 25 * MIB, "rss"),
        ),
        hotspots=(
            records.Hotspot("shared", "robot 0.model", 800_000, 0.93),
            records.Hotspot("line", "simulation.py:12", 20 * MIB, 0.67),
        ),
        trends=(
            records.Trend("RSS", "decelerating", 600, 900.0, (700.0, 1_100.0), 400_000.0, 99e6, "it slows down"),
            records.Trend("agents", "growing", 600, 1_500.0, (1_450.0, 1_550.0), 9e5, 2e6, "at a pace that holds"),
        ),
        reconciled=(
            records.Reconciled("resident", 90 * MIB, "RSS", "pages in memory"),
            records.Reconciled("traced", None, "tracemalloc", "Python's memory"),
        ),
        notes=("50.0 MiB were resident before the script",),
    )
    return replace(whole, **changes)


def killed():
    """Killed before anything was seen."""
    return profile(ended="killed by SIGKILL", is_whole=False, samples=None, snapshots=(), events=(), operations=(),
                   hotspots=(), trends=(), reconciled=(), notes=())  # fmt: skip


def tradeoff():
    def measurement(name, filter, prune, dtype, nbytes, us, l1):
        reference = l1 is None
        return Measurement(
            configuration=Configuration(name, filter, prune, dtype),
            model_bytes=10_000,
            belief_bytes_median=nbytes,
            belief_bytes_peak=2 * nbytes,
            base_rss=40 * MIB,
            peak_rss=60 * MIB,
            microseconds_per_update=us,
            largest_difference=None if reference else l1 / 2,
            largest_log_evidence_difference=None if reference else l1,
            largest_l1=l1,
            decisions_changed=None if reference else 0.0,
            repeats=(us, us * 1.02, us * 0.99),
        )

    return TradeOff(
        world=Extent("a lake", 2_500, 4, 2_500, 20, 200, 20),
        measurements=(
            measurement("dense float64", "dense", None, "float64", 20_000, 2_400.0, None),
            measurement("scipy float64", "scipy", None, "float64", 20_000, 24.0, 3e-16),
            measurement("sparse float64 exact", "sparse", 0.0, "float64", 196, 0.5, 3e-16),
            measurement("population float32 1e-06", "population", 1e-6, "float32", 64, 1.6, 2e-7),
        ),
        left_out=(LeftOut(Configuration("dense float32", "dense"), "dense float32 is left out: it is too large"),),
        command="agentmem compare --sweep --env FrozenLake",
    )


PROFILE = to_json(profile())
KILLED = to_json(killed())
SWEEP = comparison.tradeoff_to_json(tradeoff(), command="compare", parameters={"env": "FrozenLake"})
