"""What can go wrong in ways a program may want to catch. Each is also a builtin error, which catches it as well."""

from __future__ import annotations


class ImpossibleObservation(ValueError):
    """Belief and model rule the observation out: its probability (evidence) is zero."""


class BudgetExceeded(MemoryError):
    """A reservation would take more bytes than its budget has left."""


class CorruptData(ValueError):
    """A file is truncated, damaged, of another version, or no file of this library."""
