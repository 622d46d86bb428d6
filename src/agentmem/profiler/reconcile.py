"""What each tool counts, held against the others; and what each of them can and cannot see."""

from __future__ import annotations

from dataclasses import dataclass

from agentmem.profiler.records import Reconciled, Snapshot


@dataclass(frozen=True, slots=True)
class Sight:
    """One kind of memory, and whether each tool sees it."""

    kind: str
    footprint: bool
    tracemalloc: bool
    rss: bool
    pss: bool


SIGHTS = (  # tests/test_reconcile.py allocates each kind and looks
    Sight("Python objects, NumPy arrays", footprint=True, tracemalloc=True, rss=True, pss=True),
    Sight("agentmem's containers", footprint=True, tracemalloc=True, rss=True, pss=True),
    Sight("C code by PyMem_RawMalloc", footprint=False, tracemalloc=True, rss=True, pss=True),
    Sight("C code by malloc", footprint=False, tracemalloc=False, rss=True, pss=True),
    Sight("anonymous maps", footprint=True, tracemalloc=False, rss=True, pss=True),
    Sight("file maps", footprint=True, tracemalloc=False, rss=True, pss=True),
    Sight("pages never touched", footprint=True, tracemalloc=True, rss=False, pss=False),
    Sight("a page that n processes share, as 1/n of it", footprint=False, tracemalloc=False, rss=False, pss=True),
)


def reconcile(snapshot: Snapshot) -> tuple[Reconciled, ...]:
    """What the tools say of one moment, and what the difference from one to the next is made of."""
    rss, pss = snapshot.process.rss, snapshot.process.pss
    traced = None if snapshot.traced is None else snapshot.traced.nbytes
    walked = snapshot.agent_bytes
    others = None if traced is None or walked is None else traced - (walked - (snapshot.mapped or 0))
    return (
        Reconciled(
            "containers of agentmem that the agents hold",
            snapshot.counters,
            "nbytes",
            "by their own counters, each once",
        ),
        Reconciled(
            "all that the agents hold",
            walked,
            "footprint",
            "each object once; of which mapped files, that tracemalloc does not see, "
            f"{snapshot.mapped or 0:,} bytes",
        ),
        Reconciled(
            "traced",
            traced,
            "tracemalloc",
            "Python's and NumPy's memory, and C code's that asks Python for it; not malloc, not maps, and nothing from "
            "before tracing began",
        ),
        Reconciled(
            "traced, and not the agents'",
            others,
            "difference",
            "modules, caches, the rest of the program; below zero where agents are older than the tracing",
        ),
        Reconciled("resident", rss, "RSS", "pages in memory, libraries and maps too; not pages that nobody touched"),
        Reconciled(
            "resident, and not traced",
            None if traced is None else rss - traced,
            "difference",
            "the interpreter and libraries, malloc and maps, memory kept free for later, all from before tracing",
        ),
        Reconciled(
            "shared with other processes",
            None if pss is None else rss - pss,
            "RSS - PSS",
            "of pages that n processes share, the parts that count as theirs",
        ),
    )
