"""P-values and intervals: what each promises, over draws; the dependence that must not be destroyed; refusals."""

import functools
import inspect
import math

import numpy as np
import pytest
from scipy.signal import lfilter
from scipy.stats import binomtest, kstest, rankdata

from selssm_jax.information import Estimate, conditional, discrete, estimators, inference, transfer

RUNS, REARRANGED = 200, 19


def covariance(x: np.ndarray, y: np.ndarray, *_: np.ndarray) -> Estimate:
    """No information, but as good a statistic."""
    return Estimate(float(np.ravel(x) @ np.ravel(y)), math.nan, "estimate", "covariance")


def slow_series(rng: np.random.Generator, steps: int = 300, pole: float = 0.95) -> np.ndarray:
    return lfilter([1.0], [1.0, -pole], rng.normal(size=steps + 200))[200:]


def spread_evenly(test, draw, runs: int = RUNS, rearranged: int = REARRANGED) -> np.ndarray:
    """P-values of draws without dependence, each spread over the step of 1 / (n + 1) that it stands for: uniform
    exactly where the ranks are.
    """
    p = []
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        p.append(test(draw(rng), seed).p_value - rng.random() / (rearranged + 1))
    return np.array(p)


def _independent(rng):
    return rng.exponential(size=(2, 40)) ** 2


def _common_cause(rng):
    z, a, b = rng.normal(size=(3, 200))
    return z + a, np.sin(z) + 0.5 * b, z


def _slow(rng):
    return slow_series(rng), slow_series(rng)


def _feedback(rng, steps=300):
    """y drives x and not the other way round: the series depend, and the transfer from x to y is 0."""
    y = slow_series(rng, steps, 0.6)
    return transfer.embed_past(lfilter([0.0, 0.8], [1.0, -0.5], y) + rng.normal(size=steps), y)


def _rounded(rng):
    return rng.normal(size=(2, 60)).round(1)


def _slow_and_clipped(rng):
    return tuple(np.maximum(slow_series(rng, 100, 0.6), 0) for _ in range(2))


def _rounded_beside_a_label(rng):
    z = rng.integers(0, 3, 60)
    return *(z + rng.normal(size=(2, 60))).round(1), z


def _labels(rng):
    return rng.integers(0, 4, (2, 100))


def _labels_of_a_cause(rng):
    z = rng.integers(0, 3, 150)
    return *(z + rng.integers(0, 3, (2, 150))), z


def counted(x: np.ndarray, y: np.ndarray) -> Estimate:
    return discrete.mutual_information(discrete.count(x, y), correction="miller-madow")


def _permute(estimator):
    return lambda draw, seed: inference.permutation_test(estimator, *draw, permutations=REARRANGED, seed=seed)


def _shift(estimator):
    return lambda draw, seed: inference.shift_test(estimator, *draw, shifts=REARRANGED, seed=seed)


def _permute_locally(estimator):
    return lambda draw, seed: inference.local_permutation_test(estimator, *draw, permutations=REARRANGED, seed=seed)


def correlation(x: np.ndarray, y: np.ndarray, z: np.ndarray | None = None) -> Estimate:
    """The squared (partial) correlation, which takes no time: a test is as valid for it as for information."""
    given = np.column_stack([np.ones(len(x)), *([] if z is None else [z])])
    sides = [side - given @ np.linalg.lstsq(given, side, rcond=None)[0] for side in map(np.ravel, (x, y))]
    return Estimate(float(np.corrcoef(*sides)[0, 1] ** 2), math.nan, "estimate", "squared correlation")


def transferred_correlation(source: np.ndarray, target: np.ndarray) -> Estimate:
    return correlation(*transfer.embed_past(source, target))


linear_transfer = functools.partial(transfer.entropy, estimator=conditional.gaussian)
UNIFORM = {
    "permutations": (_permute(correlation), _independent),
    "shifts": (_shift(correlation), _slow),
    "shifts, transfer": (_shift(transferred_correlation), _slow),
    "local permutations": (_permute_locally(correlation), _common_cause),
    "local permutations, transfer": (_permute_locally(correlation), _feedback),
}
OF_INFORMATION = {
    "permutations, linear": (_permute(estimators.gaussian), _independent),
    "permutations, neighbours": (_permute(estimators.ksg), _independent),
    "shifts, linear transfer": (_shift(linear_transfer), _slow),
    "shifts, transfer by neighbours": (_shift(transfer.entropy), _slow),
    "local permutations, linear": (_permute_locally(conditional.gaussian), _common_cause),
    "local permutations, neighbours": (_permute_locally(conditional.ksg), _common_cause),
    "local permutations, linear transfer": (_permute_locally(conditional.gaussian), _feedback),
    "local permutations, transfer by neighbours": (_permute_locally(conditional.ksg), _feedback),
    "permutations, neighbours of ties": (_permute(estimators.mixed), _rounded),
    "shifts, neighbours of ties": (_shift(estimators.mixed), _slow_and_clipped),
    "local permutations, neighbours of ties": (_permute_locally(conditional.mixed), _rounded_beside_a_label),
    "permutations, labels": (_permute(counted), _labels),
    "local permutations, labels": (_permute_locally(conditional.discrete), _labels_of_a_cause),
}


@pytest.mark.parametrize("name", UNIFORM)
def test_p_values_are_uniform_where_there_is_no_dependence(name):
    assert kstest(spread_evenly(*UNIFORM[name]), "uniform").pvalue > 0.01


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", OF_INFORMATION)
def test_p_values_of_estimators_are_uniform_too(name):
    assert kstest(spread_evenly(*OF_INFORMATION[name], runs=200), "uniform").pvalue > 0.01


def test_ties_of_the_statistic_make_p_values_larger_and_never_smaller():
    """Bits have few tables: many rearrangements are as good as the samples."""
    counted = lambda x, y: discrete.mutual_information(discrete.count(x, y))  # noqa: E731
    p = [
        inference.permutation_test(counted, *np.random.default_rng(seed).integers(0, 2, (2, 12)), permutations=19)
        for seed in range(40)
    ]
    for level in (0.05, 0.25, 0.5):
        hits = sum(test.p_value <= level + 1e-9 for test in p)
        assert binomtest(hits, 40, level, "greater").pvalue > 0.01


def test_permuted_rows_of_slow_series_find_dependence_that_is_none():
    """What `shift_test` is for."""
    p = spread_evenly(_permute(correlation), _slow, 100)
    assert np.mean(p < 0.05) > 0.3


def test_dependence_is_found():
    rng = np.random.default_rng(0)
    x, z, e = rng.normal(size=(3, 300))
    driven = np.roll(x, 1) + e
    tests = [
        inference.permutation_test(estimators.gaussian, x, x + e, permutations=99),
        inference.shift_test(linear_transfer, x, driven, shifts=99),
        inference.local_permutation_test(conditional.gaussian, x + z, x + z + e, z, permutations=99),
        inference.local_permutation_test(conditional.gaussian, *transfer.embed_past(x, driven), permutations=99),
    ]
    assert [test.p_value for test in tests] == [0.01] * 4
    assert "p = 0.01 of ~" in str(tests[0]) and "exact" in str(tests[0])


def test_a_p_value_counts_the_samples_themselves():
    """Of three rows in order x'y is the largest there is: permutations that equal it count."""
    x = np.arange(3.0)
    test = inference.permutation_test(covariance, x, x, permutations=30)
    ties = int(np.sum(test.null == 5.0))
    assert 0 < ties < 30 and test.p_value == (1 + ties) / 31 and test.estimate.nats == 5.0
    assert inference.permutation_test(covariance, x, -x, permutations=30).p_value == 1.0


def test_shifts_are_all_different_and_none_is_zero():
    x = np.eye(1, 10)[0]
    test = inference.shift_test(
        lambda x, y: Estimate(float(x @ y), 0.0, "estimate", "where"), x, np.arange(10.0), shifts=9
    )
    assert sorted(test.null) == list(range(1, 10))


def test_bounds_and_estimates_keep_their_direction():
    def lower(x, y):
        return Estimate(float(np.corrcoef(x, y)[0, 1]), 0.1, "lower", "a bound")

    x, y = np.random.default_rng(0).normal(size=(2, 50))
    assert inference.permutation_test(lower, x, y, permutations=5).estimate.direction == "lower"
    assert inference.jackknife_interval(lower, x, y, blocks=5).upper == math.inf


def test_cells_hold_neighbours_and_never_part_the_same():
    rng = np.random.default_rng(0)
    z = np.stack([rng.integers(0, 3, 500), rng.normal(size=500)], axis=1)
    cells = inference._cut_cells(rankdata(z, axis=0), 5)
    assert sorted(np.concatenate(cells)) == list(range(500))
    assert all(5 <= len(cell) < 15 for cell in cells)
    assert all(len(np.unique(z[cell, 0])) == 1 for cell in cells)  # a label is a step that reaches farthest
    assert max(np.ptp(z[cell, 1]) for cell in cells) < 2.0
    labels = rng.integers(0, 3, (500, 1))
    assert [len(np.unique(labels[cell])) for cell in inference._cut_cells(rankdata(labels, axis=0), 5)] == [1, 1, 1]
    (same,) = inference._cut_cells(np.zeros((50, 2)), 5)
    assert len(same) == 50


def test_local_permutations_move_rows_within_cells_alone():
    z = np.repeat(np.arange(10), 6)
    x = 100 * z + np.arange(60)
    seen = []

    def look(x, y, z):
        seen.append(x)
        return covariance(x, y)

    test = inference.local_permutation_test(look, x, x, z, permutations=5)
    assert all((order // 100 == z).all() and sorted(order) == sorted(x) for order in seen)
    assert len({tuple(order) for order in seen}) == 6 and "exact, for z does not vary" in test.condition
    assert "an approximation" in inference.local_permutation_test(look, x, x, x, permutations=1).condition


def test_the_rows_that_are_given_say_nothing_by_their_order():
    """Rows sorted by x, z all ties: cells cut by the order of rows would keep x where it was."""
    x = np.arange(60.0)
    test = inference.local_permutation_test(covariance, x, x, np.zeros(60), permutations=19)
    assert test.p_value == 0.05


def test_intervals_of_stated_errors():
    two = inference.confidence_interval(Estimate(1.0, 0.1, "estimate", "e"), level=0.9)
    assert (two.lower, two.upper) == pytest.approx((1 - 0.1645, 1 + 0.1645), abs=1e-4)
    one = inference.confidence_interval(Estimate(1.0, 0.1, "lower", "e"), level=0.95)
    assert (one.lower, one.upper) == (pytest.approx(1 - 0.1645, abs=1e-4), math.inf)
    other = inference.confidence_interval(Estimate(1.0, 0.1, "upper", "e"), level=0.95)
    assert (other.lower, other.upper) == (-math.inf, pytest.approx(1 + 0.1645, abs=1e-4))
    exact = inference.confidence_interval(Estimate(1.0, 0.0, "exact", "e"))
    assert exact.lower == exact.upper == 1.0
    endless = inference.confidence_interval(Estimate(math.inf, 0.0, "estimate", "e"))
    assert endless.lower == endless.upper == math.inf
    assert "at 90% (stated standard error) of ~ 1.443" in str(two)


@pytest.mark.parametrize("r", [0.8, pytest.param(0.3, marks=pytest.mark.exhaustive)])
def test_jackknife_intervals_cover(r):
    """Of 60 samples of 200 pairs, nominally 54: of a correlation whose value is not normal at so few."""
    truth, hits = -0.5 * math.log(1 - r * r), 0
    for seed in range(60):
        x, e = np.random.default_rng(seed).normal(size=(2, 200))
        interval = inference.jackknife_interval(estimators.gaussian, x, r * x + math.sqrt(1 - r * r) * e, level=0.9)
        hits += interval.lower <= truth <= interval.upper
    assert binomtest(hits, 60, 0.9).pvalue > 0.01


def test_consecutive_blocks_see_the_dependence_that_the_stated_error_does_not():
    """Means of products of two slow series spread many times as far as those of independent rows."""
    values, errors, blind = [], [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x = slow_series(rng, 2000, 0.9)
        y = x + slow_series(rng, 2000, 0.9)
        interval = inference.jackknife_interval(estimators.gaussian, x, y, serial=True)
        values.append(interval.estimate.nats)
        errors.append(interval.stderr)
        blind.append(interval.estimate.stderr)
    assert np.mean(blind) < 0.5 * np.std(values)
    assert 0.7 * np.std(values) < np.mean(errors) < 1.5 * np.std(values)


def test_biases_that_an_estimate_states_are_in_its_interval():
    """A jackknife of a constant shift sees none of it."""
    biased = lambda x, y: Estimate(float(np.mean(x)) + 1, 1.0, "estimate", "off by one")  # noqa: E731
    x = np.random.default_rng(0).normal(size=(100, 1))
    assert inference.jackknife_interval(biased, x, x).stderr == 1.0
    assert inference.jackknife_interval(biased, x, x, serial=True).stderr > 1.0


def test_infinite_information_of_some_rows_is_no_error_of_a_finite_value():
    x = np.random.default_rng(0).normal(size=100)
    endless = inference.jackknife_interval(estimators.gaussian, x, x)
    assert endless.lower == math.inf
    y = x.copy()
    y[:3] = -x[:3]
    sometimes = lambda x, y: Estimate(math.inf if (x == y).all() else 1.0, 0.1, "estimate", "e")  # noqa: E731
    wide = inference.jackknife_interval(sometimes, x, y, serial=True)
    assert (wide.lower, wide.upper) == (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, x: f.permutation_test(covariance, x, x[1:]), "x 50, y 49"),
        (lambda f, x: f.permutation_test(covariance, x, x, permutations=0), "permutations=0"),
        (lambda f, x: f.permutation_test(covariance, x, np.float64(3)), "expected rows"),
        (lambda f, x: f.permutation_test(estimators.gaussian, np.full(50, np.nan), x), "x holds nan"),
        (lambda f, x: f.permutation_test(estimators.gaussian, np.ma.masked_less(x, 0), x), "masked"),
        (lambda f, x: f.shift_test(covariance, x, x, shifts=50), "expected at most 49"),
        (lambda f, x: f.shift_test(covariance, x, x[1:]), "x 50, y 49"),
        (lambda f, x: f.local_permutation_test(covariance, x, x, x[1:]), "z 49"),
        (lambda f, x: f.local_permutation_test(covariance, x, x, x, neighbours=1), "neighbours=1"),
        (lambda f, x: f.local_permutation_test(covariance, x[:3], x[:3], x[:3]), "3 rows, expected at least"),
        (lambda f, x: f.local_permutation_test(covariance, x, x, np.full(50, np.inf)), "z holds inf"),
        (lambda f, x: f.jackknife_interval(covariance, x, x, blocks=1), "blocks=1"),
        (lambda f, x: f.jackknife_interval(covariance, x, x, blocks=30), "expected at least 60"),
        (lambda f, x: f.jackknife_interval(covariance, x, x, level=1.0), "level=1.0"),
        (lambda f, x: f.jackknife_interval(covariance), "expected rows"),
        (lambda f, x: f.confidence_interval(covariance(x, x)), "states no standard error"),
        (lambda f, x: f.confidence_interval(Estimate(1.0, -0.1, "estimate", "e")), "stderr=-0.1 is below 0"),
        (lambda f, x: f.confidence_interval(Estimate(1.0, 0.1, "lower", "e"), level=math.nan), "level=nan"),
    ],
)
def test_mistakes(call, message):
    class Unchecked:
        """The functions without the type checker of the tests, which would answer first."""

        def __getattr__(self, name):
            return inspect.unwrap(getattr(inference, name))

    with pytest.raises(ValueError, match=message):
        call(Unchecked(), np.random.default_rng(0).normal(size=50))
