"""What each way to hold beliefs cost, as records; the Pareto front of them, and the one to take.

Nothing is measured here, and nothing is rendered.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentmem.profiler.filters import Configuration
from agentmem.profiler.worlds import Extent

# Times are told apart where they differ by more than what a busy machine adds, even if the repeats agreed by luck.
TIME_NOISE = 0.1
# Exact steps are promised to equal dense ones to this, so below it no error is smaller than another.
ROUNDING = 1e-12

L1_MOST = 1e-6
TIME_MOST = 2.0
BYTES_ALIKE = 1.1


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one configuration cost in its own process, and how far it is from the first one. Sizes in bytes.

    `peak_rss` is the whole process's, `base_rss` what it was before the world was read: Python and its
    libraries. An update's time is the median over the steps, of the update alone, on one thread; where it was
    measured in several processes, the median of `repeats`. A difference is the largest over all agents and steps:
    of a state, of a belief in L1, of the log-evidence. Decisions changed are the share of agent-steps whose most
    probable state is one that the reference holds less probable than its own. All are None for the reference itself.
    """

    configuration: Configuration
    model_bytes: int
    belief_bytes_median: int
    belief_bytes_peak: int
    base_rss: int
    peak_rss: int
    microseconds_per_update: float
    largest_difference: float | None
    largest_log_evidence_difference: float | None
    largest_l1: float | None
    decisions_changed: float | None
    repeats: tuple[float, ...]

    @property
    def fastest(self) -> float:
        """Microseconds per update, in the fastest repeat."""
        return min(self.repeats)

    @property
    def slowest(self) -> float:
        """Microseconds per update, in the slowest repeat."""
        return max(self.repeats)

    @property
    def error(self) -> float:
        """L1 as it is printed; what is within rounding is all one."""
        return float(f"{max(self.largest_l1 or 0.0, ROUNDING):.1e}")

    def is_less(self, other: Measurement) -> tuple[bool, bool, bool, bool]:
        """Whether it is clearly less than another: in bytes per agent, time, L1 and decisions changed.

        Bytes are the median belief's: the model is one for all agents, whatever their number. A time is less if the
        slowest repeat is faster than the other's fastest, and by more than noise.
        """
        return (
            self.belief_bytes_median < other.belief_bytes_median,
            self._at_most < other._at_least,
            self.error < other.error,
            (self.decisions_changed or 0) < (other.decisions_changed or 0),
        )

    @property
    def _at_most(self) -> float:
        return max(self.slowest, self.microseconds_per_update * (1 + TIME_NOISE))

    @property
    def _at_least(self) -> float:
        return min(self.fastest, self.microseconds_per_update / (1 + TIME_NOISE))


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A configuration that was not measured, and why."""

    configuration: Configuration
    reason: str


@dataclass(frozen=True, slots=True)
class TradeOff:
    """What the ways to hold agents' beliefs cost in one world; the first measurement is the reference.

    `command` measures the same again; None where no command does.
    """

    world: Extent
    measurements: tuple[Measurement, ...]
    left_out: tuple[LeftOut, ...]
    command: str | None

    @property
    def reference(self) -> Measurement:
        return self.measurements[0]

    @property
    def front(self) -> tuple[Measurement, ...]:
        """Those that no other beats."""
        return tuple(it for it in self.measurements if not any(beats(other, it) for other in self.measurements))

    @property
    def recommended(self) -> Measurement:
        """Of the front's that are as good as exact and not slow, the fewest bytes; of about equal ones the most exact.

        As good as exact is: no decision changed, and L1 up to `L1_MOST`. Not slow: up to `TIME_MOST` times the fastest
        of these. About equal: up to `BYTES_ALIKE` times the fewest bytes. Where more than one is left, none is taken
        that is clearly slower than another, then the smaller, then the first. So times, which differ from run to run,
        only tell the slow ones.
        """
        good = [it for it in self.front if not it.decisions_changed and it.error <= L1_MOST]
        fastest = min(it.microseconds_per_update for it in good)
        quick = [it for it in good if it.microseconds_per_update <= TIME_MOST * fastest]
        fewest = min(it.belief_bytes_median for it in quick)
        small = [it for it in quick if it.belief_bytes_median <= BYTES_ALIKE * fewest]
        exact = [it for it in small if it.error == min(other.error for other in small)]
        fast = [it for it in exact if not any(other.is_less(it)[1] for other in exact)]
        return min(fast, key=lambda it: it.belief_bytes_median)


def beats(one: Measurement, other: Measurement) -> bool:
    """Whether one is clearly better in bytes per agent, time, L1 or decisions changed, and in none clearly worse.

    Bytes and errors are in order, and so are times that do not overlap: hence no circle of beating, and always a front.
    What is as good as exact is only beaten by what is so too: hence always one to recommend.
    """
    return any(one.is_less(other)) and not any(other.is_less(one))
