"""Decoders by lag: what was planted is found, what was not is not, and the bound stays a bound."""

import inspect
import math

import numpy as np
import pytest

from selssm_jax.information import retention
from selssm_jax.information.estimators import Training

QUICK = Training(steps=200, batch=256, width=64, rate=3e-3)


@pytest.fixture(scope="module")
def planted():
    """States that hold one token cleanly, one through noise, and not the third."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 6, (4000, 3))
    clean, noisy = np.eye(6)[tokens[:, 0]] * 4, np.eye(6)[tokens[:, 1]] + 0.6 * rng.normal(size=(4000, 6))
    return np.concatenate([clean, noisy], axis=1), tokens, noisy


def noisy_truth(seed=1, count=20_000):
    """I(token; e_token + 0.6 w) by the exact posterior, known to about 0.005."""
    rng = np.random.default_rng(seed)
    token = rng.integers(0, 6, count)
    seen = np.eye(6)[token] + 0.6 * rng.normal(size=(count, 6))
    logits = seen / 0.36
    logits -= logits.max(1, keepdims=True)
    return math.log(6) + np.mean(logits[np.arange(count), token] - np.log(np.exp(logits).sum(1)))


def test_tokens_are_found_where_they_are(planted):
    states, tokens, _ = planted
    found = retention.tokens(states, tokens, classes=6, training=QUICK)
    assert found.nats[0] > 0.97 * math.log(6) and found.error[0] < 0.005
    truth = noisy_truth()
    # a few hundredths for what a decoder of 2,400 samples misses
    assert truth - 0.08 < found.nats[1] < truth + 3 * found.stderr[1]
    assert abs(found.nats[2]) < 0.01
    np.testing.assert_allclose(found.pointwise.mean(axis=0), found.nats)
    np.testing.assert_allclose(found.entropy, math.log(6), atol=0.01)


def test_values_are_found_by_the_channel_formula():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(6000, 2))
    states = np.stack([x[:, 0] + 0.5 * rng.normal(size=6000), rng.normal(size=6000)], axis=1)
    # monotone maps of a value change nothing
    found = retention.values(states, np.stack([np.exp(x[:, 0]), x[:, 1]], axis=1), training=QUICK)
    truth = 0.5 * math.log(1 + 1 / 0.25)
    assert truth - 0.06 < found.nats[0] < truth + 3 * found.stderr[0]
    assert abs(found.nats[1]) < 0.01 and abs(found.error[0] - 0.2) < 0.03  # variance left: 1 / (1 + 4)
    assert np.isinf(found.entropy).all()


def test_values_and_states_may_lie_far_from_zero():
    """At 1e8 float32 holds every eighth whole number: neither targets nor states may be rounded before they are ranked
    or scaled.
    """
    rng = np.random.default_rng(2)
    x = rng.normal(size=(1000, 1))
    states = x + 0.5 * rng.normal(size=(1000, 1))
    near, far = (retention.values(place + states, place + x, training=QUICK).nats[0] for place in (0.0, 1e8))
    assert far == pytest.approx(near, abs=0.02) and near > 0.5


def test_groups_are_never_on_both_sides_of_the_split():
    """States that only name their sequence know nothing that holds for other sequences; cut between samples, they would
    seem to.
    """
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(200), 20)
    label = rng.integers(0, 2, 200)[groups][:, None]
    states = rng.normal(size=(200, 20))[groups] * 3
    apart = retention.tokens(states, label, classes=2, groups=groups, training=QUICK)
    assert apart.nats[0] < 3 * apart.stderr[0] < 0.3
    assert retention.tokens(states, label, classes=2, training=QUICK).nats[0] > 0.3


def test_errors_are_larger_where_groups_repeat_themselves(planted):
    _, tokens, noisy = planted
    repeated = np.repeat(np.arange(1000), 4)
    grouped = retention.tokens(
        noisy[:1000][repeated], tokens[:1000, 1:2][repeated], classes=6, groups=repeated, training=QUICK
    )
    alone = retention.tokens(noisy[:4000], tokens[:4000, 1:2], classes=6, training=QUICK)
    assert grouped.stderr[0] > 1.5 * alone.stderr[0]  # twice, were nothing else different


def test_the_horizon_is_the_last_lag_that_is_known_of():
    assert retention.horizon([0, 1, 4, 9], np.array([1.0, 0.5, 0.1, 0.02]), np.array([0.01, 0.01, 0.01, 0.01])) == 4
    assert retention.horizon([0, 1], np.array([0.001, 0.0]), np.zeros(2)) is None


def test_the_half_life_of_an_exponential_is_that_of_its_rate():
    lags = np.arange(60)
    found = retention.half_life(lags, 3.0 * 0.5 ** (lags / 20), np.full(60, 0.05))
    assert found.lag == pytest.approx(20, abs=1e-9)
    # (3 + .1) / 2 = curve - .1, and (3 - .1) / 2 = curve + .1
    assert found.low == pytest.approx(20 * np.log2(3 / 1.65), abs=0.02)
    assert found.high == pytest.approx(20 * np.log2(3 / 1.35), abs=0.02)


def test_a_half_life_is_found_between_lags_and_is_the_first():
    errors = np.zeros(4)
    assert retention.half_life([0, 10, 20, 30], [1.0, 0.75, 0.25, 0.6], errors) == (15.0, 15.0, 15.0)
    assert retention.half_life([5, 6], [1.0, 0.5], np.zeros(2)).lag == 6


def test_a_half_life_that_is_not_reached_has_no_end():
    found = retention.half_life([0, 1, 2], [1.0, 0.8, 0.52], np.full(3, 0.02))
    assert found.lag == found.high == float("inf")
    assert 1 < found.low <= 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lags": [0, 2, 2]}, "do not ascend"),
        ({"stderr": [0.1, 0.1]}, r"shapes \(3,\), \(3,\) and \(2,\)"),
        ({"nats": [0.1, 0.05, 0.0]}, "two standard errors above 0"),
        ({"nats": [float("nan"), 0.05, 0.0]}, "two standard errors above 0"),
    ],
)
def test_half_of_nothing_is_no_lag(change, message):
    with pytest.raises(ValueError, match=message):
        retention.half_life(**({"lags": [0, 1, 2], "nats": [1.0, 0.5, 0.2], "stderr": [0.1] * 3} | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": np.full((100, 1), 7)}, "expected 0 to classes - 1 = 2"),
        ({"targets": np.zeros((90, 1), int)}, "100, 90 and 100 rows"),
        ({"states": np.full((100, 2), np.inf)}, "not finite"),
        ({"groups": np.arange(100) % 5}, "5 groups, expected at least 10"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"states": np.ones((100, 2)), "targets": np.zeros((100, 1), int), "classes": 3} | change
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(retention.tokens)(**arguments)
