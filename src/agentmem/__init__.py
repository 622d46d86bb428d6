"""Sparse belief states for many simulated agents."""

from agentmem.errors import BudgetExceeded, CorruptData, ImpossibleObservation

__version__ = "0.1.0"
__all__ = ["BudgetExceeded", "CorruptData", "ImpossibleObservation"]
