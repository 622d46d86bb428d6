"""Growth detection: what leaks is found, what does not is left alone, and each condition decides something."""

import itertools
import subprocess
import sys
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from agentmem.profiler import trend
from agentmem.profiler.trend import detect_trend
from series import BOUNDED, FEWEST_FOUND, HARD, LEAKS, MOST_FALSE, draw

T = np.arange(120)
NOISE = np.random.default_rng(0).normal(size=120)
LEAK = 0.1 * T + NOISE
WARM_UP = 100 * (1 - np.exp(-T / 40)) + NOISE
PEAKS = np.where(T % 2, T, 0)  # the floor is kept
JUMPS = 0.1 * T + 30.0 * (T >= 56) + 30.0 * (T >= 88)
BLOCK = (T - 24) // 8
WAVE = np.where(T % 8, BLOCK + 10.0 * (-1.0) ** BLOCK, BLOCK - 100)  # its minima rise, its means go up and down
JUMP = LEAK + 50 * (T >= 70)
NAMES = [*BOUNDED, *LEAKS, *HARD]


def verdict(series, **options):
    return detect_trend(series, **options).verdict


def share_growing(name):
    return np.mean([verdict(draw(name, seed)) == "growing" for seed in range(200)])


@pytest.mark.parametrize("name", BOUNDED)
def test_what_is_bounded_is_not_called_growing(name):
    assert share_growing(name) <= MOST_FALSE[name]


def test_growing_peaks_of_a_long_run_are_not_called_growing():
    assert np.mean([verdict(draw("growing peaks", seed, 480)) == "growing" for seed in range(200)]) <= 0.01


@pytest.mark.parametrize("name", LEAKS)
def test_leaks_are_found(name):
    assert share_growing(name) >= FEWEST_FOUND


def test_a_slow_warm_up_and_what_fills_late_decelerate():
    for name in ("warm-up, n/3", "full at 70 %"):
        assert np.mean([verdict(draw(name, seed)) == "decelerating" for seed in range(200)]) > 0.9, name


def test_what_ends_beyond_the_samples_cannot_be_told_from_a_leak():
    assert verdict(np.minimum(T, 80)) == "decelerating" and verdict(np.minimum(T, 110)) == "growing"
    assert share_growing("full at 90 %") > 0.9
    assert share_growing("warm-up, n") > 0.9


# ---- each condition decides: with it the series is not growing, without it it is


@pytest.mark.parametrize(
    ("series", "condition", "without", "expected", "reason"),
    [
        (PEAKS, "FLOORS_BY_CHANCE", 2.0, "flat", "minima do not"),
        (JUMPS, "WIDEST_STEP", np.inf, "flat", "one step makes 46% of the rise"),
        (WARM_UP, "SLOWEST_PACE", -1e9, "decelerating", "lately"),
        (WAVE, "OUTSIDE", trend.PAIRS // 2, "flat", "the slope may be as low as -"),
    ],
    ids=["minima", "steps", "pace", "interval"],
)
def test_a_series_that_fails_one_condition_only(series, condition, without, expected, reason, monkeypatch):
    found = detect_trend(series)
    assert (found.verdict, reason in found.reason) == (expected, True), found
    monkeypatch.setattr(trend, condition, without)
    assert verdict(series) == "growing"


def test_the_start_is_left_out(monkeypatch):
    series = LEAK + 20 * (1 - np.exp(-T / 6))
    assert verdict(series) == "growing"
    monkeypatch.setattr(trend, "JUDGED", 1)
    assert verdict(series) == "decelerating"


def test_one_jump_hides_no_leak(monkeypatch):
    found = detect_trend(JUMP)
    assert found.verdict == "growing" and found.reason.startswith("apart from its largest step")
    assert found.slope == pytest.approx(0.1, rel=0.2) and found.rise == pytest.approx(9.5, rel=0.2)
    assert found.projection == pytest.approx(62 + 12, rel=0.05)  # from where it is after the jump
    monkeypatch.setattr(trend, "_evened", lambda blocks: blocks)
    assert verdict(JUMP) == "flat"


@pytest.mark.parametrize(("height", "expected"), [(9, "growing"), (10, "flat")])
def test_how_large_two_steps_may_be(height, expected):
    """Between blocks that rise by 0.8 each: of the rise of pairs it makes (h + 1.6) / (2 h + 8), 0.41 at h = 9.3."""
    assert verdict(0.1 * T + height * (T >= 56) + height * (T >= 88)) == expected


def test_a_rise_that_is_none_from_end_to_end_is_flat():
    """Of its pairs of blocks 10 fall, which might be by chance, but it ends where it began."""
    blocks = [0, 100, 1, 2, 3, 4, 5, 6, 7, 8, 49, 49.1]
    assert verdict(np.repeat([0, 0, 0, *blocks], 8)) == "flat"


@pytest.mark.parametrize(("pace", "expected"), [(0.5, "decelerating"), (0.6, "growing"), (1.0, "growing")])
def test_how_much_slower_it_may_rise(pace, expected):
    assert verdict(np.where(T < 72, T, 72 + pace * (T - 72))) == expected


def test_the_minimum_slope_is_held_against_the_interval():
    low = detect_trend(LEAK).interval[0]
    assert 0.05 < low < 0.1
    assert verdict(LEAK, minimum_slope=low * 0.999) == "growing"
    assert verdict(LEAK, minimum_slope=low) == "flat"  # and not the slope, which is above
    assert verdict(T, minimum_slope=0.999) == "growing" and verdict(T, minimum_slope=1) == "flat"


def test_it_takes_sixty_samples():
    found = detect_trend(range(59), name="cache")
    assert (found.name, found.verdict, found.samples) == ("cache", "not enough data", 59)
    assert (found.slope, found.interval, found.rise, found.projection) == (None,) * 4
    assert found.reason == "59 samples; it takes 60"
    assert verdict([]) == "not enough data"
    assert verdict(range(60)) == "growing"


# ---- the figures


def test_the_figures_of_a_line():
    found = detect_trend(1_000 + 3 * T, name="line")
    assert (found.name, found.samples, found.slope, found.interval) == ("line", 120, 3, (3, 3))
    assert found.rise == 3 * 95  # over the 96 samples judged
    assert found.projection == 1_000 + 3 * (119 + 120)
    assert detect_trend(-3 * T).slope == -3


def test_what_decelerates_is_projected_at_its_later_pace():
    last = 0.6 * T.clip(max=72) + 0.2 * (T - 72).clip(min=0)
    assert verdict(last) == "decelerating"
    assert detect_trend(last).projection == pytest.approx(last[-1] + 0.2 * 120)
    assert detect_trend(NOISE).projection is None


@pytest.mark.parametrize("slope", [0, 0.3])
@pytest.mark.parametrize("n", [60, 66, 67, 120, 1_000])
def test_the_slope_is_theils(n, slope):
    series = np.random.default_rng(n).normal(size=n) + slope * np.arange(n)
    size = round(n * 0.8 / 12)
    judged = series[n - 12 * size :].reshape(12, size).mean(axis=1)
    assert detect_trend(series).slope == pytest.approx(stats.theilslopes(judged, size * np.arange(12)).slope)


def test_the_interval_covers_as_often_as_it_says():
    """0.991, by the exact distribution; the slope of noise that rises by 24 times its deviation."""
    covered = 0
    for seed in range(1_000):
        low, high = detect_trend(draw("rise of 24", seed)).interval
        covered += low <= 24 / 120 <= high
    assert 980 <= covered <= 998


def test_the_chances_are_those_of_random_orders(monkeypatch):
    for k in (0, 1, 10, 14, 33, 60):  # of pairs that disagree, in an order that has as many
        order, left = [], k
        for largest in range(12):  # put each where it falls behind as many as are left
            order.insert(len(order) - min(left, len(order)), largest)
            left -= min(left, largest)
        tau = stats.kendalltau(range(12), order, method="exact", alternative="greater")
        assert trend.CHANCES[k] == pytest.approx(tau.pvalue)
        assert trend._by_chance(np.array(order)) == pytest.approx(tau.pvalue)
    assert trend.CHANCES[trend.OUTSIDE] <= 0.005 < trend.CHANCES[trend.OUTSIDE + 1]
    monkeypatch.setattr(trend, "BLOCKS", 6)
    fallen = [sum(a > b for a, b in itertools.combinations(order, 2)) for order in itertools.permutations(range(6))]
    assert np.allclose(trend._chances(), [np.mean(np.array(fallen) <= k) for k in range(16)])


def partitions(n, most):
    if n == 0:
        yield ()
    for part in range(min(n, most), 0, -1):
        yield from ((part, *rest) for rest in partitions(n - part, part))


def orders_by_pairs_fallen(tied):
    """How many orders of figures, of which so many are equal each, have 0, 1, ... pairs that fall: one figure after the
    other is put in, those of a value among what is there, each at or behind the one before."""
    counts, there = [1], 0
    for ties in tied:
        among = [[0] * (ties * there + 1) for _ in range(ties + 1)]  # by how many are in; of boxes 0 to `there`
        among[0][0] = 1
        for box in range(there + 1):
            for k in range(1, ties + 1):
                for fallen in range(ties * there, box - 1, -1):
                    among[k][fallen] += among[k - 1][fallen - box]
        counts, there = np.convolve(counts, np.array(among[ties])).tolist(), there + ties
    return counts


def test_ties_are_judged_on_the_safe_side():
    tied_twice = orders_by_pairs_fallen((2, 2))  # 0011, 0101, 0110 and 1001, 1010, 1100
    assert tied_twice == [1, 1, 2, 1, 1]
    patterns = list(partitions(12, 12))
    assert len(patterns) == 77
    for tied in patterns:
        counts = orders_by_pairs_fallen(tied)
        figures = np.repeat(np.arange(len(tied)), tied)
        for fallen in range(len(counts)):
            chance = Fraction(sum(counts[: fallen + 1]), sum(counts))
            if 2 * fallen < len(counts) - 1:  # they rise
                assert chance <= trend._by_chance(figures) * (1 + 1e-12), (tied, fallen)
            rising = np.flatnonzero(figures[:-1] < figures[1:])
            if len(rising):  # let one more pair fall
                figures[[rising[0], rising[0] + 1]] = figures[[rising[0] + 1, rising[0]]]


# ---- what must not matter


@given(
    name=st.sampled_from(NAMES),
    seed=st.integers(0, 10**6),
    scale=st.integers(1, 10**6),
    shift=st.integers(-(10**9), 10**9),
)
def test_neither_scale_nor_shift_matter(name, seed, scale, shift):
    series = np.round(100 * draw(name, seed))  # whole: sums are exact, and what is tied stays so
    assert verdict(scale * series + shift) == verdict(series)


@given(series=st.lists(st.floats(-1e300, 1e300), min_size=60, max_size=130))
def test_any_finite_series_has_a_verdict(series):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = detect_trend(series)
        back = detect_trend(sorted(series, reverse=True))
    assert found.verdict in ("growing", "decelerating", "flat")
    assert found.interval[0] <= found.slope <= found.interval[1]
    assert (found.projection is None) == (found.verdict == "flat")
    assert back.verdict == "flat" and back.interval[0] <= 0


@pytest.mark.parametrize("name", LEAKS)
def test_a_leak_backwards_is_flat(name):
    assert {verdict(draw(name, seed)[::-1]) for seed in range(50)} == {"flat"}


def test_a_constant_is_flat_whatever_its_value():
    for value in (0, 0.1, -1e300, 5e-324, 2**53 + 1):
        found = detect_trend(np.full(77, value))
        assert (found.verdict, found.slope, found.interval) == ("flat", 0, (0, 0))


@pytest.mark.parametrize(
    "same",
    [
        lambda x: x.astype(np.int64),
        lambda x: x.astype(np.uint16),
        lambda x: x.astype(np.float32),
        lambda x: x.astype(np.float16),
        lambda x: x.astype(int).tolist(),
        lambda x: tuple(x.tolist()),
        lambda x: np.repeat(x, 2)[::2],
    ],
    ids=["int64", "uint16", "float32", "float16", "list of int", "tuple of float", "strided"],
)
def test_integers_floats_and_lists_are_alike(same):
    series = np.round(10 * LEAK) + 100  # exact in all of them
    assert detect_trend(same(series)) == detect_trend(series)


@pytest.mark.parametrize("series", [LEAK, JUMP])
def test_the_series_is_not_changed(series):
    given = series.copy()
    detect_trend(given)
    assert np.array_equal(given, series)
    given.flags.writeable = False
    assert detect_trend(given) == detect_trend(series)


def test_it_loads_no_scipy():
    code = "import sys, agentmem.profiler.trend as t; t.detect_trend(range(60)); print('scipy' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "False\n"


@pytest.mark.parametrize(
    ("series", "error", "said"),
    [
        ([1.0] * 70 + [np.nan], ValueError, r"finite and up to 1e\+300 in size, got nan at 70"),
        ([np.nan], ValueError, "got nan at 0"),  # also where there are too few
        ([1.0, -np.inf], ValueError, "got -inf at 1"),
        ([1.0, 2e300], ValueError, r"got 2e\+300 at 1"),
        (np.zeros((60, 2)), ValueError, r"one-dimensional, got shape \(60, 2\)"),
        (5.0, ValueError, r"one-dimensional, got shape \(\)"),
        ([[1, 2], [3]], ValueError, "inhomogeneous"),
        ([1, None], TypeError, "integers or floats, got dtype object"),
        (["1", "2"], TypeError, "integers or floats, got dtype <U1"),
        ([True, False], TypeError, "integers or floats, got dtype bool"),
        ([1j], TypeError, "integers or floats, got dtype complex128"),
    ],
)
def test_what_is_no_series_is_refused(series, error, said):
    with pytest.raises(error, match=said):
        detect_trend(series)


@pytest.mark.parametrize(
    ("minimum", "error", "said"),
    [
        (-1, ValueError, "at least 0, got -1"),
        (np.nan, ValueError, "finite and at least 0, got nan"),
        (np.inf, ValueError, "finite and at least 0, got inf"),
        ("1", TypeError, "real number, got str"),
        (None, TypeError, "real number, got NoneType"),
    ],
)
def test_a_minimum_that_is_none_is_refused(minimum, error, said):
    with pytest.raises(error, match=said):
        detect_trend(T, minimum_slope=minimum)
