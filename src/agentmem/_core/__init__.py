"""The one door to compiled code. Python imports kernels from here and nowhere else.

Contract: wrappers check every length and index they did not make themselves; misuse is a ValueError or TypeError here,
an outcome (an impossible observation) goes to a hook of the container, which names it; content is as before when a call
fails. Kernels hold the GIL for small work only, and borrow their workspaces from `scratch`.
"""

from agentmem._core.array import CoreArray, moment_of, one_writer
from agentmem._core.belief import CoreBelief
from agentmem._core.elementwise import alike, entrywise, entrywise_into, extreme, reduce_stored
from agentmem._core.history import CoreCoder, CoreLanes, count_pairs
from agentmem._core.ids import Ids
from agentmem._core.model import CoreModel
from agentmem._core.policy import CoreSensors
from agentmem._core.population import CoreChunk
from agentmem._core.scratch import release_scratch, scratch_nbytes
from agentmem._core.text import Scanner
from agentmem._core.variables import variables_of

__all__ = [
    "CoreArray",
    "CoreBelief",
    "CoreChunk",
    "CoreCoder",
    "CoreLanes",
    "CoreModel",
    "CoreSensors",
    "Ids",
    "Scanner",
    "alike",
    "count_pairs",
    "entrywise",
    "entrywise_into",
    "extreme",
    "moment_of",
    "one_writer",
    "reduce_stored",
    "release_scratch",
    "scratch_nbytes",
    "variables_of",
]
