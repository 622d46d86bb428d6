"""Sparse belief states for many simulated agents: the numbers of dense NumPy in fewer bytes and less time.

The house, in import order:

=====================  =====================================================================================
``errors``             `ImpossibleObservation`, `BudgetExceeded`, `CorruptData`
``footprint``          `footprint`: how many bytes an object graph holds, by part
``files``              a header and named arrays in one checksummed, memory-mapped file
``budget``             `Budget`: how many bytes may be held, and by whom they are
``scratch``            `Scratch`: temporary arrays out of buffers that are lent again
``array``              `SparseArray`: real numbers of any shape, mostly zero; takes part in NumPy
``belief``             `SparseBelief`: a `SparseArray` that is a measure, with the filter verbs
``trajectory``         `FilterResult`: what a pass over a sequence found; `Trajectory`: beliefs of all its steps
``model``              `Model`: transition and observation tables with a prior, shared by all beliefs
``frames``             arrays of numbers that come in and out of histories, checked and narrowed
``codecs``             a block of numbers as bytes, by whichever of several codecs takes the fewest
``arena``              many small blocks of bytes in one array
``history``            `HistoryBuffer`: what was, kept whole in a fraction of its bytes
``groups``             `HistoryGroup`: a history for each of many agents, sealed together
``records``            `RecordHistory`: a log of strings, dicts and whatever else, equal ones kept once
``observations``       `ObservationBuffer`: the last observations of agents in a mapped file that many read
``policy``             policies as a tree, and what sensors and preferences make of them
``population``         `Population`: the beliefs of many agents over one model, stepped together
``sharing``            `ModelPool`: equal models and matrices of a process as one object
``spill``              `Spill`: what leaves memory, and comes back; `Lazy`: what is built when asked for
``compact``            `compact`: an agent as it is, with these containers in the place of what it holds
``profiler``           what a change costs and saves, measured (not imported here)
``formats``            readers of public model files: `.POMDP` (not imported here)
``integrations``       worlds and agents of other libraries (not imported here)
``cli``                the command ``agentmem``
=====================  =====================================================================================

Glossary. *State*: one of n numbered possibilities. *Belief*: a probability per state; *mass*: the same before it sums
to 1; *support*: the states with mass. *Transition*: P(s' | s, action), *observation*: P(o | s', action), *likelihood*:
one observation's column of it. *Evidence*: probability of what was observed. *Predict, correct, prune*: the steps of a
filter. *Cells*: all places of an array, *entries*: those that are not zero.

>>> import agentmem as am
>>> model = am.Model(transition=[[0.9, 0.1], [0.2, 0.8]], observation=[[0.7, 0.3], [0.1, 0.9]])
>>> belief = model.belief()
>>> log_evidence = belief.update(model, action=0, observation=1)
>>> belief
SparseBelief(shape=(2,), dtype=float64, nnz=2, storage='dense', nbytes=104)
"""

from agentmem.array import SparseArray
from agentmem.belief import SparseBelief
from agentmem.budget import Budget
from agentmem.compact import compact
from agentmem.errors import BudgetExceeded, CorruptData, ImpossibleObservation
from agentmem.footprint import footprint
from agentmem.groups import HistoryGroup
from agentmem.history import HistoryBuffer
from agentmem.model import Model
from agentmem.observations import ObservationBuffer
from agentmem.population import Population
from agentmem.records import RecordHistory
from agentmem.scratch import Scratch
from agentmem.sharing import ModelPool
from agentmem.spill import Lazy, Spill
from agentmem.trajectory import FilterResult

__version__ = "0.1.0"
__all__ = [
    "Budget",
    "BudgetExceeded",
    "CorruptData",
    "FilterResult",
    "HistoryBuffer",
    "HistoryGroup",
    "ImpossibleObservation",
    "Lazy",
    "Model",
    "ModelPool",
    "ObservationBuffer",
    "Population",
    "RecordHistory",
    "Scratch",
    "SparseArray",
    "SparseBelief",
    "Spill",
    "compact",
    "footprint",
]
