"""Intervals, pooling and power of paired comparisons, against known values, simulation and what they must obey."""

import math

import numpy as np
import pytest
from scipy import stats

from experiments.paper import comparisons
from experiments.paper.comparisons import AS_GOOD, BETTER, UNDECIDED, WORSE, Effect


def test_power_is_that_of_tables():
    """34 pairs that differ by half their deviation: G*Power and Cohen's tables give 0.81."""
    assert comparisons.power(0.5 * math.sqrt(34), 33) == pytest.approx(0.8078, abs=1e-4)
    assert comparisons.power(0.0, 4) == pytest.approx(comparisons.LEVEL, abs=1e-9)


@pytest.mark.parametrize("freedom", [1, 2, 4.7, 9, 33])
def test_smallest_difference_has_the_power_of_the_noncentral_t(freedom):
    shift = comparisons.find_noncentrality(freedom)
    critical = stats.t.ppf(0.975, freedom)
    assert stats.nct.sf(critical, freedom, shift) == pytest.approx(comparisons.POWER, abs=1e-5)  # the other tail is nil


@pytest.mark.parametrize("pairs", [3, 5, 10])
def test_smallest_difference_is_shown_in_four_of_five_simulated_tests(pairs):
    random = np.random.default_rng(pairs)
    deviation, tests = 0.7, 20_000
    smallest = comparisons.estimate(0.0, deviation / math.sqrt(pairs), pairs - 1).smallest
    samples = random.normal(smallest, deviation, (tests, pairs))
    share = np.mean(stats.ttest_1samp(samples, 0.0, axis=1).pvalue < comparisons.LEVEL)
    assert share == pytest.approx(comparisons.POWER, abs=4 * math.sqrt(0.16 / tests))


def test_interval_is_the_paired_t_interval_and_leaves_out_0_where_p_is_small():
    random = np.random.default_rng(0)
    for shift in (0.0, 0.5, 2.0):
        ours, theirs = random.normal(1, 1, 6), random.normal(1 + shift, 1, 6)
        found = comparisons.compare_paired(dict(enumerate(ours)), dict(enumerate(theirs)), higher=False)
        low, high = stats.ttest_rel(theirs, ours).confidence_interval(0.95)
        assert found.effect[1:3] == pytest.approx((low, high))
        assert (found.effect.low > 0 or found.effect.high < 0) == (found.p < 0.05)


def test_a_relative_effect_is_of_the_loss_and_above_0_where_the_reference_is_better():
    loss = comparisons.compare_paired({0: 0.2, 1: 0.2}, {0: 0.22, 1: 0.24}, higher=False)
    assert loss.relative.mean == pytest.approx(0.15) and loss.better
    share = comparisons.compare_paired({0: 0.8, 1: 0.8}, {0: 0.78, 1: 0.76}, higher=True)
    assert share.difference == pytest.approx(-0.03)
    assert share.relative[:3] == pytest.approx(loss.relative[:3]) and share.relative.smallest > 0
    worse = comparisons.compare_paired({0: 0.8, 1: 0.8}, {0: 0.82, 1: 0.84}, higher=True)
    assert worse.relative.mean == pytest.approx(-0.15) and worse.behind
    assert comparisons.compare_paired({0: 1.0, 1: 1.0}, {0: 0.5, 1: 0.6}, higher=True).relative is None, "no error"


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [(0.001, 0.02, BETTER), (-0.009, 0.02, AS_GOOD), (-0.011, 0.02, UNDECIDED), (-0.03, -0.001, WORSE),
     (-0.005, -0.001, WORSE)],
)  # fmt: skip
def test_verdict_of_an_interval(low, high, says):
    assert Effect((low + high) / 2, low, high, 0.01).verdict == says
    assert Effect(0.5).verdict == UNDECIDED, "no interval"


def test_pool_of_one_sample_is_its_t_interval_and_of_two_alike_is_narrower():
    sample = [0.1, 0.3, 0.2, 0.4]
    low, high = stats.ttest_1samp(sample, 0.0).confidence_interval(0.95)
    assert comparisons.pool([sample])[:3] == pytest.approx((0.25, low, high))
    shifted = [value + 1 for value in sample]
    together = comparisons.pool([sample, shifted])
    assert together.mean == pytest.approx(0.75)
    # of two equal variances, Welch and Satterthwaite's degrees are the sum of both
    half = stats.t.ppf(0.975, 6) * np.std(sample, ddof=1) / math.sqrt(4) / math.sqrt(2)
    assert together.high - together.mean == pytest.approx(half)


def test_pooled_interval_holds_the_truth_in_95_of_100_simulations(monkeypatch):
    monkeypatch.setattr(comparisons, "find_noncentrality", lambda _: 0.0)  # it takes long, and is no part of it
    random, tests = np.random.default_rng(1), 4000
    held = 0
    for _ in range(tests):
        found = comparisons.pool([random.normal(1, 1, 5), random.normal(2, 1.5, 5), random.normal(3, 0.5, 8)])
        held += found.low <= 2 <= found.high
    assert held / tests == pytest.approx(0.95, abs=0.015)


def test_what_cannot_be_pooled_has_no_interval():
    assert comparisons.pool([]) is None
    assert comparisons.pool([[0.1], [0.2, 0.3]]) == Effect(pytest.approx(0.175))
    assert comparisons.pool([[0.1, 0.1]]) == Effect(pytest.approx(0.1))


def test_a_span_shows_two_digits_of_its_half():
    assert comparisons.span(Effect(0.00123, -0.0039, 0.0064)) == "+0.0012 [-0.0039, +0.0064]"
    assert comparisons.span(Effect(12.0, 2.0, 22.0)) == "+12 [+2, +22]" and comparisons.span(Effect(0.5)) == "+0.5000"


def test_an_effect_turned_round_keeps_its_ends_in_order():
    assert Effect(1.0, -1.0, 3.0, 2.0).scale(-2) == Effect(-2.0, -6.0, 2.0, 4.0)
