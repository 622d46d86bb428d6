"""Readers of public model files. `pomdp`: Cassandra's text format, `.POMDP`."""

from agentmem.formats.pomdp import Pomdp, Rewards, read_pomdp

__all__ = ["Pomdp", "Rewards", "read_pomdp"]
