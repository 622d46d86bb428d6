"""The profiler: what memory holds, whether it grows, and what saving it costs in time and error.

It looks, and nothing looks back: nothing starts on import, and no container knows of it.

===============  ===========================================================================================
``Profiler``     snapshots of the process and its agents, their differences, samples, operations, growth
``detect_trend``  whether a series grows
``tradeoff``     memory against time and error, over ways to run the same filter
``records``      what all of these find
``report``       records as JSON, text and HTML
``metrics``      figures for Prometheus (extra `metrics`)
===============  ===========================================================================================

Others measure what this does not: memray draws flame graphs of every allocation, C's too (``memray run script.py``,
``memray flamegraph``); pytest-memray holds tests to a limit (``@pytest.mark.limit_memory("24 MB")``); Grafana shows
what ``metrics`` exports. `Operation` takes the place of memory_profiler, which nobody maintains any more.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentmem.profiler.monitor import Profiler
    from agentmem.profiler.operations import Operation
    from agentmem.profiler.sweep import tradeoff
    from agentmem.profiler.trend import detect_trend

__all__ = ["Operation", "Profiler", "detect_trend", "tradeoff"]

_WHERE = {"Operation": "operations", "Profiler": "monitor", "detect_trend": "trend", "tradeoff": "sweep"}


def __getattr__(name: str) -> object:
    if name not in _WHERE:  # loaded when first used: the children that measure filters need none of it
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
