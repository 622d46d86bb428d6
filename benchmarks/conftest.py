"""Options of the benchmarks, and the tables they print last and write to JSON."""

import json
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # counts when set before NumPy is first imported, see bench_update
import numpy as np


@dataclass
class Report:
    """What the benchmarks of one session found: text for the terminal, records for the file."""

    sections: dict[str, list[str]] = field(default_factory=dict)
    records: dict[str, Any] = field(default_factory=dict)


REPORT = pytest.StashKey[Report]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("agentmem")
    group.addoption("--smoke", action="store_true", help="small sizes, few rounds: does it run, not how fast")
    group.addoption(
        "--ratios-json",
        metavar="FILE",
        type=Path,
        help="where the tables are written (default: build/benchmarks.json of the checkout)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[REPORT] = Report()


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> Report:
    return pytestconfig.stash[REPORT]


@pytest.fixture(scope="session")
def smoke(pytestconfig: pytest.Config) -> bool:
    return pytestconfig.getoption("--smoke")


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    found = config.stash[REPORT]
    if not found.sections:
        return
    for title, lines in found.sections.items():
        terminalreporter.section(title)
        for line in lines:
            terminalreporter.line(line)
    path = config.getoption("--ratios-json") or config.rootpath / "build" / "benchmarks.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {"python": platform.python_version(), "numpy": np.__version__, "cores": os.cpu_count()}
    run = {"machine": machine, "smoke": config.getoption("--smoke")}
    path.write_text(json.dumps({**run, **found.records}, indent=1))
    terminalreporter.line("")
    terminalreporter.line(f"written to {path}")
