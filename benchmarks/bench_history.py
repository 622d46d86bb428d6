"""Claim: a history takes about the entropy of what it holds, and never more than the ways people use for it.

Bits per symbol by everything held (`nbytes` of ours, `footprint` of the others) of 100,000-step logs: a list, a deque,
zlib and zstd-3 per 256 steps, zstd-19 with a trained dictionary, and ours. Then many agents' last steps in one
HistoryGroup, dicts in a RecordHistory, a large observation that changes slowly, and noise. All come back equal first.

Promises: at most 1.15 x the order-1 entropy + 0.08 bits on sticky and grid-walk logs, and never above zlib per 256
steps; 100,000 agents x 100 sticky steps at most 18 bytes an agent, 14 a hundred of 1,000; append at most 10 ns an
agent-step, one agent's history within 20 us; dicts at most 6 bytes an entry; a slowly changing 1.5 MB observation at
most 400 bytes a frame; noise at most 1.02 x raw. Losses are printed too; time never fails a test.
"""

import time
import zlib
from collections import deque
from statistics import median
from typing import Any

import numpy as np
import pytest

import agentmem as am
from harness import replay, table

BLOCK = 256
WAYS = ["list", "deque", "zlib", "zstd-3", "zstd-19 dict"]


def sticky(rng: np.random.Generator, n: int, stay: float = 0.875) -> np.ndarray:
    """Five actions; now and then another is drawn."""
    drawn = np.maximum.accumulate(np.where(rng.random(n) < 1 - stay, np.arange(n), 0))
    return rng.integers(5, size=n)[drawn]


def walk(rng: np.random.Generator, n: int) -> np.ndarray:
    """Of a robot that goes to one place after another, along one axis and then the other, and rests there."""
    moves: list[int] = []
    x, y = 0, 0
    while len(moves) < n:
        to_x, to_y = rng.integers(40, size=2).tolist()
        moves += [1 if to_x > x else 2] * abs(to_x - x) + [3 if to_y > y else 4] * abs(to_y - y) + [0] * 3
        x, y = to_x, to_y
    return np.array(moves[:n])


def logs(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    route = rng.integers(5, size=37)
    return {
        "sticky actions": sticky(rng, n),
        "grid walk": walk(rng, n),
        "periodic route": np.tile(route, n // 37 + 1)[:n],
        "random actions": rng.integers(5, size=n),
        "constant": np.full(n, 3),
        "cells of a maze": np.cumsum(rng.choice([-40, -1, 1, 40], size=n)) % 1_600,
    }


def entropy(x: np.ndarray) -> float:
    """Bits per symbol, given the one before."""
    counts = np.zeros((x.max() + 1,) * 2)
    np.add.at(counts, (x[:-1], x[1:]), 1)
    p = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return max(0.0, float(-(counts[counts > 0] * np.log2(p[counts > 0])).sum() / len(x)))


def rivals(x: np.ndarray) -> dict[str, int]:
    """Bytes that other ways hold."""
    plain = x.astype(np.uint8 if x.max() < 256 else np.uint16)
    blocks = [plain[k : k + BLOCK].tobytes() for k in range(0, len(x), BLOCK)]
    found = {
        "list": am.footprint(x.tolist()).total,
        "deque": am.footprint(deque(x.tolist(), len(x))).total,
        "zlib": sum(len(zlib.compress(block)) for block in blocks),
    }
    try:
        from backports import zstd
    except ImportError:
        return found
    found["zstd-3"] = sum(len(zstd.compress(block, level=3)) for block in blocks)
    try:
        known = zstd.train_dict(blocks, 4_096)
        found["zstd-19 dict"] = sum(len(zstd.compress(block, level=19, zstd_dict=known)) for block in blocks)
    except zstd.ZstdError:  # too regular to learn anything of
        pass
    return found


@pytest.mark.benchmark(timer=replay.read)
def test_logs(benchmark: Any, smoke: bool, report: Any) -> None:
    n, rows, seconds = 5_000 if smoke else 100_000, [], []
    for name, x in logs(n).items():
        began = time.perf_counter()
        history = am.HistoryBuffer(n, dtype=np.int64)
        for value in x.tolist():
            history.append(value)
        seconds.append(time.perf_counter() - began)
        assert np.array_equal(history[:], x)
        ours, theirs, least = 8 * history.nbytes / n, rivals(x), entropy(x)
        bits = [8 * theirs[way] / n if way in theirs else None for way in WAYS]
        limit = 1.15 * least + 0.08 if name in ("sticky actions", "grid walk") else 8 * theirs["zlib"] / n
        rows.append([name, f"{least:.3f}", f"{ours:.3f}", f"{limit:.3f}", "yes" if ours <= limit else "NO",
                     *("-" if b is None else f"{b:.2f}" for b in bits), f"{seconds[-1] / n * 1e6:.2f}"])
    replay.play(benchmark, seconds)
    head = ["log", "entropy", "ours", "promised", "holds", *WAYS, "append us"]
    report.sections[f"bits per symbol of {n:,} steps"] = table(head, rows)


@pytest.mark.benchmark(timer=replay.read)
@pytest.mark.parametrize(("n_agents", "maxlen", "promised"), [(100_000, 100, 18), (20_000, 1_000, 14)])
def test_groups(benchmark: Any, n_agents: int, maxlen: int, promised: int, smoke: bool, report: Any) -> None:
    if smoke:
        n_agents = 500
    rng, row, held, spent, kept = np.random.default_rng(0), np.zeros(n_agents, int), [], [], []
    group = am.HistoryGroup(n_agents, maxlen, dtype=np.int64)
    for step in range(2 * maxlen):
        row = np.where(rng.random(n_agents) < 0.145, rng.integers(5, size=n_agents), row)
        kept.append(row.astype(np.uint8))
        began = time.perf_counter()
        group.append(row)
        spent.append(time.perf_counter() - began)
        if step >= maxlen:
            held.append(group.nbytes)
    assert np.array_equal(np.asarray(group), kept[-maxlen:])
    reads = []
    for agent in rng.integers(n_agents, size=200).tolist():
        began = time.perf_counter()
        group[agent]
        reads.append(time.perf_counter() - began)
    replay.play(benchmark, spent)
    each = float(np.mean(held)) / n_agents / maxlen * 100
    least = entropy(np.array(kept)[:, :200].T.ravel()) * 100 / 8
    report.sections[f"{n_agents:,} agents x {maxlen:,} sticky steps"] = [
        f"{each:.1f} bytes an agent per 100 steps, on average while they go on (promised {promised}; entropy "
        f"{least:.1f}, uint8 100, list of ints {am.footprint(row.tolist()).total / n_agents * 100:.0f})",
        f"append {sum(spent) / n_agents / len(spent) * 1e9:.1f} ns an agent-step (promised 10); one agent's history "
        f"{median(reads) * 1e6:.1f} us (promised 20 for 100 steps)",
    ]


@pytest.mark.benchmark(timer=replay.read)
def test_records_frames_noise(benchmark: Any, smoke: bool, report: Any) -> None:
    rng = np.random.default_rng(0)
    n = 500 if smoke else 100_000
    lines = []
    for size in (3_468, n):
        records = [
            {"type": ("move", "look", "wait")[k], "x": x, "y": y, "target": ("home", "food")[to], "confidence": sure,
             "timestamp": 1.7e9 + t / 10}
            for t, (k, x, y, to, sure) in enumerate(zip(
                sticky(rng, size, 0.8).clip(0, 2).tolist(), (np.cumsum(rng.integers(-1, 2, size=size)) % 100).tolist(),
                (np.cumsum(rng.integers(-1, 2, size=size)) % 100).tolist(), sticky(rng, size, 0.9).clip(0, 1).tolist(),
                np.round(rng.random(size), 2).tolist(), strict=True))
        ]  # fmt: skip
        log = am.RecordHistory()
        began = time.perf_counter()
        log.extend(records)
        spent = time.perf_counter() - began
        assert log == records
        lines.append(f"{size:,} dicts of 6 keys: {log.nbytes / size:.1f} bytes an entry (promised 6), a list "
                     f"{am.footprint(records).total / size:.0f}; append {spent / size * 1e6:.0f} us")
    frame, n_frames = rng.random((768, 512)).astype(np.float32), 20 if smoke else 400
    history, frames = am.HistoryBuffer(n_frames, dtype=np.float32, shape=frame.shape), []
    seconds = []
    for _ in range(n_frames):
        frame = frame.copy()
        frame[rng.integers(768, size=40), rng.integers(512, size=40)] = rng.random(40)
        frames.append(frame)
        began = time.perf_counter()
        history.append(frame)
        seconds.append(time.perf_counter() - began)
        del frames[:-3]
    assert np.array_equal(history[-3:], frames)
    more = (history.nbytes - frame.nbytes * 2) / n_frames
    lines.append(f"a 1.5 MB observation with 40 cells changing: {more:.0f} bytes a frame beside two that lie as they "
                 f"are (promised 400); append {median(seconds) * 1e3:.1f} ms")
    noise = np.frombuffer(rng.bytes(8 * n), np.float64)
    history = am.HistoryBuffer(None, dtype=float)
    history.extend(noise)
    assert history[:].tobytes() == noise.tobytes()
    lines.append(f"noise: {history.nbytes / noise.nbytes:.3f} x raw (promised 1.02)")
    replay.play(benchmark, seconds)
    report.sections["records, frames, noise"] = lines
