"""Rivals of a stream's learner against what they are in closed form."""

import numpy as np
import pytest

from selssm_jax.streaming.rivals import LastValue, RecursiveLeastSquares, fade, follow_rows


@pytest.mark.parametrize("forgetting", [1.0, 0.9])
def test_recursive_least_squares_is_ridge_regression_with_faded_weights(forgetting):
    rng, horizon, lags, ridge = np.random.default_rng(0), 2, 3, 0.1
    rows = rng.normal(size=(40, 2))
    rival = RecursiveLeastSquares(2, horizon, lags, forgetting, ridge)
    follow_rows(rival, rows, horizon)
    padded = np.concatenate([np.zeros((lags - 1, 2)), rows])
    features = np.stack([[*padded[step : step + lags][::-1].ravel(), 1.0] for step in range(40)])[:-horizon]
    truths = np.stack([rows[step + 1 : step + 1 + horizon].ravel() for step in range(40 - horizon)])
    count = len(truths)
    weights = forgetting ** np.arange(count)[::-1]
    left = features.T @ (weights[:, None] * features) + forgetting**count * ridge * np.eye(7)
    solution = np.linalg.solve(left, features.T @ (weights[:, None] * truths))
    np.testing.assert_allclose(rival.weights, solution, atol=1e-9)


def test_forgetting_follows_a_world_that_changes():
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(4000, 1))
    for step in range(1, 4000):
        rows[step] += (0.9 if step < 2000 else -0.9) * rows[step - 1]
    forgets, remembers = (follow_rows(RecursiveLeastSquares(1, forgetting=factor), rows, 1) for factor in (0.98, 1.0))
    assert forgets[2500:].mean() < 1.1 < 1.4 < remembers[2500:].mean()


def test_a_series_that_stands_still_for_long_does_no_harm():
    rows = np.concatenate([np.zeros((5000, 1)), np.random.default_rng(2).normal(size=(500, 1))])
    errors = follow_rows(RecursiveLeastSquares(1, forgetting=0.95), rows, 1)
    assert np.isfinite(errors[1:]).all() and errors[-200:].mean() < 2


def test_the_last_value_is_repeated():
    rows = np.arange(10.0)[:, None]
    np.testing.assert_array_equal(follow_rows(LastValue(2), rows, 2)[2:], (1 + 4) / 2)


def test_no_rival_learns_a_truth_before_it_is_there():
    rows, other = (np.random.default_rng(3).normal(size=(30, 1)) for _ in range(2))
    other[20:] += 5
    first, second = (follow_rows(RecursiveLeastSquares(1, 4), values, 4) for values in (rows, other))
    np.testing.assert_array_equal(first[:20], second[:20])


def test_faded_errors_are_weighted_means():
    errors = np.array([np.nan, 2.0, 4.0])
    faded = fade(errors, 0.5)
    assert np.isnan(faded[0]) and faded[1:].tolist() == [2.0, (4 + 1) / 1.5]


@pytest.mark.parametrize("options", [{"forgetting": 0.0}, {"ridge": 0.0}, {"lags": 0}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="out of range"):
        RecursiveLeastSquares(1, **options)


@pytest.mark.exhaustive
def test_recursive_least_squares_stays_what_it_is_for_long():
    rows = np.zeros((100_000, 1))
    noise = np.random.default_rng(4).normal(size=len(rows))
    for step in range(2, len(rows)):
        rows[step] = 1.5 * rows[step - 1] - 0.75 * rows[step - 2] + noise[step]
    rival = RecursiveLeastSquares(1, forgetting=0.98)
    assert follow_rows(rival, rows, 1)[-50_000:].mean() < 1.1
    np.testing.assert_array_equal(rival.covariance, rival.covariance.T)
