"""Normalised information: closed cases of each divisor, its spread over samples, directions, refusals."""

import inspect
import math

import numpy as np
import pytest

from selssm_jax.information import Estimate, estimators, normalisation, transfer


def test_linfoots_coefficient_is_the_correlation_of_normal_numbers():
    for r in (0.0, 1e-6, 0.5, 0.99):
        found = normalisation.correlation(Estimate(-0.5 * math.log1p(-r * r), 0.0, "exact", "closed form"))
        assert found.value == pytest.approx(r, abs=1e-9) and found.stderr == 0 and found.direction == "exact"
    assert normalisation.correlation(Estimate(math.inf, 0.0, "estimate", "e")).value == 1.0


def test_linfoots_square_is_the_share_of_the_error_that_a_source_takes_away():
    """y_t = x_{t-1} + e_t / 2: errors of 1.25 without x and 0.25 with it."""
    nats = transfer.of_autoregression(
        np.array([[[0.0, 0.0], [1.0, 0.3]]]), np.diag([1.0, 0.25]), source=[0], target=[1]
    )
    assert normalisation.correlation(Estimate(nats, 0.0, "exact", "e")).value ** 2 == pytest.approx(1 - 0.25 / 1.25)


def test_linfoots_error_is_the_spread():
    values, errors = [], []
    for seed in range(300):
        x, e = np.random.default_rng(seed).normal(size=(2, 300))
        found = normalisation.correlation(estimators.gaussian(x, 0.6 * x + 0.8 * e))
        values.append(found.value)
        errors.append(found.stderr)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.2)


def test_values_below_nothing_stay_below_and_their_error_is_finite():
    found = normalisation.correlation(Estimate(-0.01, 0.02, "estimate", "e", ("a note",)))
    assert -0.2 < found.value < 0 and 0.1 < found.stderr < 0.4 and found.notes == ("a note",)


@pytest.mark.parametrize("direction", ["lower", "upper", "estimate"])
def test_directions_stay(direction):
    information = Estimate(0.5, 0.1, direction, "e")
    assert normalisation.correlation(information).direction == direction
    found = normalisation.share(information, math.log(4))
    assert (found.value, found.stderr, found.direction) == (0.5 / math.log(4), 0.1 / math.log(4), direction)
    assert str(found)[:2].strip() == {"lower": ">=", "upper": "<=", "estimate": "~"}[direction]
    assert math.isnan(normalisation.share(Estimate(0.5, math.nan, direction, "e"), 1.0).stderr)


def test_divisors_of_a_label_that_another_tells():
    """x has four values, y is its parity: y is told by x, and half of x by y."""
    counts = np.array([[250, 0], [0, 250]] * 2)
    shares = {by: normalisation.of_counts(counts, by=by).value for by in normalisation.DIVISORS}
    expected = {"x": 0.5, "y": 1, "smaller": 1, "larger": 0.5, "mean": 2 / 3, "geometric": 0.5**0.5, "joint": 0.5}
    assert shares == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("by", normalisation.DIVISORS)
def test_the_error_of_a_share_is_its_spread(by):
    p = np.array([[0.3, 0.1, 0.05], [0.05, 0.1, 0.4]])
    draws = np.random.default_rng(0).multinomial(600, p.ravel(), size=120).reshape(-1, *p.shape)
    found = [normalisation.of_counts(counts, by=by) for counts in draws]
    assert np.mean([one.stderr for one in found]) == pytest.approx(np.std([one.value for one in found]), rel=0.25)
    assert 0 < np.mean([one.value for one in found]) < 1 and "I / " in found[0].normalisation


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f.of_counts(np.array([[5, 2], [1, 7]]), by="entropy"), "by='entropy' is unknown: use one of x, y"),
        (lambda f: f.of_counts(np.array([[5, 2]])), "a label that never changes"),
        (lambda f: f.of_counts(np.array([[5, 2]]), by="geometric"), "a label that never changes"),
        (lambda f: f.share(Estimate(1.0, 0.1, "lower", "e"), 0.0), "entropy=0.0, expected a positive number"),
        (lambda f: f.share(Estimate(1.0, 0.1, "lower", "e"), math.nan), "entropy=nan"),
        (lambda f: f.share(Estimate(1.0, 0.1, "lower", "e"), math.inf), "entropy=inf"),
    ],
)
def test_mistakes(call, message):
    class Unchecked:
        """The functions without the type checker of the tests, which would answer first."""

        def __getattr__(self, name):
            return inspect.unwrap(getattr(normalisation, name))

    with pytest.raises(ValueError, match=message):
        call(Unchecked())
