"""What can go wrong in ways a program may want to catch. Each is also a builtin error, which catches it as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class ImpossibleObservation(ValueError):
    """Belief and model rule the observation out: its probability (evidence) is zero.

    Attributes
    ----------
    agents : list of int
        Whose observations they are, where it is raised for a population; else empty.
    """

    def __init__(self, message: str, agents: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.agents = list(agents)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self.args, self.agents)


class BudgetExceeded(MemoryError):
    """A reservation would take more bytes than its budget has left."""


class CorruptData(ValueError):
    """A file is truncated, damaged, of another version, or no file of this library."""
