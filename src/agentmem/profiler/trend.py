"""Whether a series of figures grows. A line through it rises for most series that do not leak: those that warm up, jump
or wander as allocators do; and a rank test on all samples is fooled as often. So samples are judged in blocks, and what
grows has to do so in all of them, at a pace that holds. How often the verdict is right, and how often with any of this
left out: `benchmarks/bench_growth.py`.
"""

from __future__ import annotations

from numbers import Real

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agentmem.profiler.records import Trend, Verdict

Floats = NDArray[np.float64]

# Why these, as shares of 2,000 simulations of 120 samples where nothing else is said; leaks rise by 12 times the noise.
FEWEST = 60  # 99 % of leaks are found from so many and 1 % of slow warm-ups pass; from 48, 97 % and 2 %
BLOCKS = 12  # with 8, nine tenths of the pairs must agree: 95 % of leaks are found; with 16, 15 % of three jumps pass
JUDGED = 0.8  # of the series. All: a leak after a warm-up is found in 24 %; two thirds: 10 % of small warm-ups pass
FLOORS_BY_CHANCE = 0.01  # without, 5 % of what grows in its peaks only passes, from 480 samples 38 %
WIDEST_STEP = 0.41  # of the rise. Without, 30 % of two jumps pass; at 0.34, 5 % of leaks from 60 samples are missed
SLOWEST_PACE = 0.55  # without, 97 % of slow warm-ups pass; at 0.4, 15 % of small ones
LARGEST = 1e300  # sums and slopes of such numbers do not overflow

EARLIER, LATER = np.triu_indices(BLOCKS, 1)
PAIRS = len(EARLIER)


def _chances() -> Floats:
    """The chance that at most k of the pairs fall where the order of the blocks is random, by k (Kendall 1975)."""
    orders: Floats = np.ones(1)
    for block in range(2, BLOCKS + 1):
        orders = np.convolve(orders, np.ones(block))
    chances: Floats = orders.cumsum() / orders.sum()
    return chances


CHANCES = _chances()
OUTSIDE = int(np.searchsorted(CHANCES, 0.005, side="right")) - 1  # slopes left out at each end of the 99 % (Sen 1968)


def detect_trend(series: ArrayLike, *, name: str = "", minimum_slope: float = 0.0) -> Trend:
    """Whether a series grows, decelerates or is flat, and how fast it rises.

    The last four fifths are cut into 12 blocks. They grow if the slope of their means is surely above the minimum (the
    lower end of the 99 % interval is), their minima rise too (Mann-Kendall, p < 0.01), no step makes more than 0.41 of
    the rise, and the later half rises at 0.55 of the earlier's pace or more. What fails only that decelerates: it warms
    up, or fills. All else is flat, what falls too. One step may be higher, as when a table doubles: it is first cut
    down to the next.

    It sees no further than the samples: a cache that fills until 90 % of them grows; so may a wave longer than they.
    What grows in two or three large steps only is flat mostly, as is a dict of which just the table is counted.

    Parameters
    ----------
    series : (n,) integers or floats
        Figures at equal intervals, oldest first, finite and up to 1e300 in size; at least 60 for a verdict.
    name : str
        Of what may grow, for the record.
    minimum_slope : float
        Units of the series per sample, at least 0. A slope that may be as small is not growth.

    Returns
    -------
    Trend
        `slope` is Theil's (the median over pairs of blocks) and `interval` Sen's, 99 % where noise is independent and
        too narrow for figures that wander; a step that was cut down is in neither, nor in the rise. `projection` goes
        on at that slope, or if it decelerates at the later half's; it is None if flat. All are None where there are
        not enough data.

    Raises
    ------
    TypeError
        If the series holds anything but integers and floats, or the minimum is no real number.
    ValueError
        If the series is not one-dimensional or holds NaN, an infinity or more than 1e300, or the minimum is negative or
        not finite.

    Notes
    -----
    O(n); about 0.1 ms for 120 samples. Deterministic. The null distribution is exact.

    Mann, "Nonparametric tests against trend", Econometrica 13 (1945); Kendall, "Rank correlation methods" (1975);
    Theil, "A rank-invariant method of linear and polynomial regression analysis", Indagationes Mathematicae 12 (1950);
    Sen, "Estimates of the regression coefficient based on Kendall's tau", JASA 63 (1968).

    Examples
    --------
    >>> import numpy as np
    >>> from agentmem.profiler.trend import detect_trend
    >>> noise = np.random.default_rng(0).normal(0, 1_000, 120)
    >>> detect_trend(50_000 + noise).verdict
    'flat'
    >>> leak = detect_trend(50_000 + 200 * np.arange(120) + noise)
    >>> leak.verdict, round(leak.slope), round(leak.projection)
    ('growing', 199, 97728)
    >>> detect_trend(50_000 * (1 - np.exp(-np.arange(120) / 40)) + noise).verdict
    'decelerating'
    """
    values = _checked(series)
    if not isinstance(minimum_slope, Real):
        raise TypeError(f"minimum_slope must be a real number, got {type(minimum_slope).__name__}")
    if not 0 <= minimum_slope < np.inf:
        raise ValueError(f"minimum_slope must be finite and at least 0, got {minimum_slope}")
    n = len(values)
    if n < FEWEST:
        return Trend(name, "not enough data", n, None, None, None, None, f"{n} samples; it takes {FEWEST}")

    size = round(n * JUDGED / BLOCKS)
    blocks = values[-BLOCKS * size :].reshape(BLOCKS, size)
    slopes = _slopes(blocks)
    has_jump = slopes[OUTSIDE] > minimum_slope and _widest_step(blocks) > WIDEST_STEP
    if has_jump:
        blocks = _evened(blocks)
        slopes = _slopes(blocks)
    slope, low, high = float(np.median(slopes)), float(slopes[OUTSIDE]), float(slopes[-1 - OUTSIDE])
    before, lately = _paces(blocks)
    verdict, reason = _judge(blocks, low, float(minimum_slope), before, lately)
    if has_jump:
        reason = f"apart from its largest step, {reason}"

    projection = None
    if verdict != "flat":
        pace = slope if verdict == "growing" else lately
        to_come = n - 0.5 + size * np.arange(BLOCKS / 2 - 0.5, 0, -1)  # samples, from the middles of the later blocks
        projection = float(np.median(blocks[BLOCKS // 2 :].mean(axis=1) + pace * to_come))
    return Trend(name, verdict, n, slope, (low, high), slope * (blocks.size - 1), projection, reason)


def _checked(series: ArrayLike) -> Floats:
    given = np.asarray(series)
    if given.ndim != 1:
        raise ValueError(f"series must be one-dimensional, got shape {given.shape}")
    if given.dtype.kind not in "iuf":
        raise TypeError(f"series must hold integers or floats, got dtype {given.dtype}")
    values = given.astype(np.float64, copy=False)
    wrong = ~(np.abs(values) <= LARGEST)  # NaN too
    if wrong.any():
        at = int(wrong.argmax())
        raise ValueError(f"series must be finite and up to {LARGEST:g} in size, got {given[at]} at {at}")
    return values


def _slopes(blocks: Floats) -> Floats:
    """Of each pair of blocks, per sample, in ascending order."""
    means = blocks.mean(axis=1)
    return np.sort((means[LATER] - means[EARLIER]) / ((LATER - EARLIER) * blocks.shape[1]))


def _judge(blocks: Floats, low: float, minimum: float, before: float, lately: float) -> tuple[Verdict, str]:
    """The verdict and why.

    That `low` is above 0 is Mann-Kendall's test of the means at p < 0.005; nearly all that pass the rest pass it, and
    another one at 0.001 changes 1 verdict in 10,000.
    """
    if low <= minimum:
        return "flat", f"the slope may be as low as {low:.3g} a sample, not above {minimum:.3g}"
    chance = _by_chance(blocks.min(axis=1))
    if chance >= FLOORS_BY_CHANCE:
        return "flat", f"the means of blocks rise, their minima do not (p = {chance:.2g})"
    step = _widest_step(blocks)
    if step > WIDEST_STEP:
        return "flat", f"one step makes {step:.0%} of the rise"
    if lately < SLOWEST_PACE * before:
        return "decelerating", f"it rose by {before:.3g} a sample, and lately by {lately:.3g}"
    return "growing", f"it rises by {low:.3g} a sample at least, its minima too, at a pace that holds"


def _by_chance(figures: Floats) -> float:
    """Mann-Kendall: the chance that 12 figures in random order rise as consistently.

    The distribution is that without ties. Where there are any it bounds theirs from above, for all 77 ways to tie 12
    figures: no normal approximation is needed.
    """
    score = int(np.sign(figures[LATER] - figures[EARLIER]).sum())
    return float(CHANCES[(PAIRS - score + 1) // 2])


def _paces(blocks: Floats) -> tuple[float, float]:
    """Least-squares slopes of the two halves: they tell a bend at 94 % of the efficiency that is possible."""
    halves = blocks.reshape(2, -1)
    weights = np.arange(halves.shape[1]) - (halves.shape[1] - 1) / 2
    before, lately = halves @ (weights / (weights @ weights))
    return float(before), float(lately)


def _widest_step(blocks: Floats) -> float:
    """The most that two blocks rise above the two before, as a share of the whole rise; infinite if there is none.

    Two, because a jump amid a block makes two steps of half its height, but three quarters of it between pairs.
    """
    means = blocks.mean(axis=1)
    pairs = (means[:-1] + means[1:]) / 2
    step, rise = float((pairs[2:] - pairs[:-2]).max()), float(pairs[-1] - pairs[0])
    return step / rise if rise > 0 else np.inf


def _evened(blocks: Floats) -> Floats:
    """The blocks with their largest step cut down to the next largest, by putting up what lies before.

    To the next, not to nothing: of a warm-up, whose steps are alike, that would make a line. With it, 97 % of leaks are
    found where a dict grows with its items, and 23 % without; of two jumps one is left, which is no steady rise.
    """
    values, width = blocks.ravel(), blocks.shape[1]
    sums = np.concatenate(([0.0], values.cumsum()))
    sums = sums[width:] - sums[:-width]
    steps = (sums[width:] - sums[:-width]) / width  # between the means of as many samples before and after
    at = int(steps.argmax())
    elsewhere = np.concatenate((steps[: max(0, at - width + 1)], steps[at + width :], [0.0]))
    evened = values.copy()
    evened[: at + width] += steps[at] - elsewhere.max()
    return evened.reshape(blocks.shape)
