"""The one door to compiled code. Python imports kernels from here and nowhere else.

Contract: wrappers check every length and index they did not make themselves; misuse is a ValueError or TypeError here,
an outcome (no evidence, no measure) comes back as a value and is named by the caller; arrays are as before when a call fails.
"""

from agentmem._core.array import CoreArray

__all__ = ["CoreArray"]
