"""The default estimator: what it makes of integers, ties, fills, units and laws that one of its methods alone does not
see; its errors cover.
"""

import math
import warnings

import jax
import numpy as np
import pytest

from selssm_jax.information import agreement, crossfit, discrete, estimators, samplers
from selssm_jax.information._estimate import Estimate
from selssm_jax.information.estimators import Training

QUICK = Training(steps=60, batch=128, width=32)


@pytest.fixture
def without_training(monkeypatch):
    """Held-out values of a critic that learns nothing, where it is not what is tested: training takes most of the
    time.
    """

    def fit(x, y, critic, bound, training, *, halves=0):
        return crossfit.HeldOut(
            *(np.random.default_rng(0).normal(0, 1e-3, (folds, len(x) // 5)) for folds in (5, 5, halves))
        )

    monkeypatch.setattr(crossfit, "fit", fit)


def covered(found: Estimate, truth: float, *, errors: float = 3.0, widest: float = 0.1) -> bool:
    return abs(found.nats - truth) <= errors * found.stderr + 1e-9 and found.stderr <= widest


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("values", [256, 2000])
def test_independent_pixels_have_no_information(without_training, values, seed):
    """As labels their cells are counted once each: plug-in and Miller-Madow find whole nats with an error of 0.02."""
    x, y = np.random.default_rng(seed).integers(0, values, (2, 1000))
    found = estimators.estimate(x, y)
    assert abs(found.nats) <= 0.05 + 3 * found.stderr and found.stderr < 0.1


def test_row_numbers_know_nothing_of_a_permutation(without_training):
    found = estimators.estimate(np.arange(1000), np.random.default_rng(0).permutation(1000))
    assert abs(found.nats) <= 0.05 + 3 * found.stderr and found.stderr < 0.1


def test_row_numbers_know_row_numbers_to_an_extent_that_samples_cannot_tell():
    found = estimators.estimate(np.arange(1000), 7 + 3 * np.arange(1000))
    assert (
        found.direction == "lower"
        and found.nats == math.log(1000)
        and math.isnan(found.stderr)
        and "no upper limit" in found.notes[0]
    )
    numbers = np.random.default_rng(0).normal(size=200)
    assert estimators.estimate(numbers, np.exp(numbers)).nats == math.inf


@pytest.mark.parametrize("values", [10, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int8])
def test_few_different_values_are_labels_whatever_their_type(values, dtype):
    k = (np.random.default_rng(0).integers(0, values, 500) / 7 * (7 if dtype is np.int8 else 1)).astype(dtype)
    p = np.unique(k, return_counts=True)[1] / 500
    found = estimators.estimate(k, k)
    assert covered(found, -(p @ np.log(p)) + (len(p) - 1) / 1000, widest=0.05) and "labels" in found.notes[0]


def test_whole_rows_can_be_labels():
    """Two columns of coins, one of them flipped now and then: the row is the label."""
    rng = np.random.default_rng(1)
    x = rng.integers(0, 2, (1000, 2))
    y = np.stack([x[:, 0] ^ (rng.random(1000) < 0.1), rng.integers(0, 2, 1000)], axis=1)
    assert covered(estimators.estimate(x, y), math.log(2) + 0.1 * math.log(0.1) + 0.9 * math.log(0.9), widest=0.04)


def test_labels_without_an_order_are_seen_where_cells_are_few(without_training):
    """Fifty labels and a channel of chance, 2,500 cells for 2,000 samples: as numbers they say little."""
    law = np.random.default_rng(1).exponential(size=(50, 50)) ** 4
    x, y, truth = samplers.discrete_channel(jax.random.key(0), 2000, np.full(50, 0.02), law / law.sum(1, keepdims=True))
    renamed = np.random.default_rng(2).permutation(50)[np.asarray(y)]
    assert covered(estimators.estimate(np.asarray(x), renamed), truth, widest=0.15)


def test_few_labels_need_no_hundred_samples():
    x = np.arange(60) % 3
    assert covered(estimators.estimate(x, x), math.log(3), widest=0.05)
    with pytest.raises(ValueError, match="60 samples, expected at least 100"):
        estimators.estimate(np.random.default_rng(0).normal(size=60), x)


def test_a_constant_says_nothing():
    assert estimators.estimate(np.zeros(200), np.arange(200) % 7).nats == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("fill", [1e10, 9.96921e36])
def test_one_common_fill_value_is_no_information(without_training, fill):
    x, y = np.random.default_rng(1).normal(size=(2, 1000))
    x[0] = y[0] = fill
    found = estimators.estimate(x, y)
    assert abs(found.nats) <= 0.05 + 3 * found.stderr and found.stderr < 0.05


def test_fills_that_are_missing_on_their_own_take_their_share(without_training):
    """Each side is erased now and then: (1 - p)(1 - q) times the information is left."""
    rng = np.random.default_rng(2)
    x, w = rng.normal(size=(2, 1000))
    y = 0.9 * x + math.sqrt(1 - 0.81) * w
    gone = rng.random((2, 1000)) < np.array([[0.1], [0.2]])
    found = estimators.estimate(np.where(gone[0], -9999.0, x), np.where(gone[1], 1e20, y))
    assert covered(found, -0.72 * 0.5 * math.log(1 - 0.81))


@pytest.mark.parametrize("place", [1e8, -1e12])
def test_what_lies_far_from_zero_keeps_its_information(without_training, place):
    x, w = np.random.default_rng(3).normal(size=(2, 1000))
    near, far = (estimators.estimate(at + x, x + 0.3 * w - at) for at in (0.0, place))
    assert far.nats == pytest.approx(near.nats, abs=1e-3) and near.nats > 1


def test_a_label_beside_numbers_is_told_by_neighbours_within_labels(without_training):
    """Five labels out of order; the truth by quadrature."""
    centres, rng = np.array([4.0, -1.0, 0.5, -3.0, 2.0]), np.random.default_rng(4)
    grid = np.linspace(-12, 13, 20001)
    p = np.exp(-0.5 * (grid[None] - centres[:, None]) ** 2).mean(0) / math.sqrt(2 * math.pi)
    truth = -np.sum(p * np.log(p)) * (grid[1] - grid[0]) - 0.5 * math.log(2 * math.pi * math.e)
    label = rng.integers(0, 5, 1000)
    found = estimators.estimate(centres[label] + rng.normal(size=1000), label)
    assert covered(found, truth) and "mixtures" in found.method


def test_a_law_that_the_critic_does_not_see_is_seen_by_neighbours(without_training):
    """y runs four times round while x runs once; a copula sees nothing, and a note used to say that there is
    nothing.
    """
    rng = np.random.default_rng(5)
    x = rng.random(2000)
    found = estimators.estimate(x, (4 * x + rng.uniform(-0.1, 0.1, 2000)) % 1)
    assert covered(found, -math.log(0.2), widest=0.25) and "KSG" in found.method


def test_the_error_holds_what_more_samples_would_show():
    """Student's law, and critics trained for so short that half of the samples do less well: the bound lacks several of
    its own errors.
    """
    x, y, truth = samplers.student(jax.random.key(6), 1000, np.eye(10), 5, 2.0)
    held_out = crossfit.fit(
        np.asarray(x), np.asarray(y), agreement.critics.HYBRID, agreement.critics.INFONCE, QUICK, halves=3
    )
    bound, error = held_out.mean_and_error(held_out.trained)
    sides = agreement._Sides(np.asarray(x), np.asarray(y), np.arange(1000), np.arange(1000))
    (found,) = agreement._of_critic(held_out, sides)
    assert held_out.halved.shape == (3, 200) and bound < truth - 3 * error
    assert found.nats > bound and covered(found, truth, widest=0.2)


class TestAgreement:
    """What is made of several values with errors."""

    def agreed(self, *values: tuple[float, float]) -> Estimate:
        return agreement._average_agreeing(
            [Estimate(nats, stderr, "estimate", f"method {i}") for i, (nats, stderr) in enumerate(values)]
        )

    def test_values_that_agree_are_averaged_and_their_difference_is_in_the_error(self):
        found = self.agreed((1.0, 0.03), (1.06, 0.03))
        assert found.nats == pytest.approx(1.03) and found.stderr == pytest.approx(math.hypot(0.03, 0.03))

    def test_the_surer_value_weighs_more(self):
        assert self.agreed((1.0, 0.01), (1.1, 0.1)).nats == pytest.approx(1.001, abs=1e-3)

    def test_a_value_that_is_contradicted_is_named_and_left_out(self):
        found = self.agreed((0.2, 0.01), (1.0, 0.05))
        assert found.nats == 1.0 and found.method == "method 1" and "method 0 gives 0.200" in found.notes[0]


def test_neighbours_that_find_something_in_pairs_at_random_are_not_heard():
    value, chance = (Estimate(nats, 0.01, "estimate", "KSG") for nats in (9.4, 9.3))
    assert agreement._without_chance(value, chance) == []
    assert agreement._without_chance(value, Estimate(0.01, 0.01, "estimate", "KSG")) == [value]


@pytest.mark.parametrize(("labels", "samples"), [(256, 1000), (30, 200), (1000, 3000), (2, 200)])
def test_counts_of_independent_labels_state_errors_that_cover(labels, samples):
    """From a tenth of a sample to a hundred a cell; five draws each, one of which may lie outside of two errors."""
    rng = np.random.default_rng(labels)
    found = [discrete.of_labels(*rng.integers(0, labels, (2, samples))) for _ in range(5)]
    assert sum(abs(one.estimate.nats) <= 2 * one.estimate.stderr for one in found) >= 4
    assert all(abs(one.excess) < 4 for one in found)


def test_no_warning_is_given_of_ties():
    """They are put in a random order, which loses nothing."""
    x = np.random.default_rng(6).normal(size=(300, 2)).round(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert agreement.neighbours(x, x[:, :1])[0].nats > 0.5
