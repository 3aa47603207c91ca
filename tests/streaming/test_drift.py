"""Detectors of drift: alarms on streams whose changes are known, and river's own as the oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.streaming import ADWIN, PageHinkley


def list_changes(detector, values):
    """Returns {place: sign} of the changes that a detector sees in an array of numbers."""

    def scan(values):
        return jax.lax.scan(detector.update, detector.start(), values)[1]

    changes = np.asarray(jax.jit(scan)(jnp.asarray(values, float)))
    return {int(place): int(changes[place]) for place in np.flatnonzero(changes)}


def draw_stream(seed):
    """A stream of means that jump, of probabilities that do, or of a mean that climbs."""
    rng = np.random.default_rng(seed)
    steps = (300, 700, 1000, 1500, 2000)[seed % 5]
    if seed % 3 == 0:
        return np.concatenate([rng.normal(mean, 1, steps) for mean in (0, 2, 0, 0.7)])
    if seed % 3 == 1:
        return np.concatenate([rng.random(steps) < share for share in (0.1, 0.4, 0.35, 0.9)]).astype(float)
    return np.linspace(0, 3, 4 * steps) + rng.normal(0, 1, 4 * steps)


@pytest.mark.exhaustive
def test_a_stationary_stream_gives_at_most_one_false_alarm():
    rng = np.random.default_rng(0)
    for values in (rng.normal(0, 1, 100_000), rng.random(100_000) < 0.3):
        assert len(list_changes(ADWIN(delta=0.002), values)) <= 1


def test_a_short_stationary_stream_gives_no_alarm():
    values = np.random.default_rng(0).normal(0, 1, 5000)
    assert list_changes(ADWIN(), values) == {} and list_changes(PageHinkley(delta=0.5), values) == {}


@pytest.mark.parametrize("shift", [2, -2])
def test_a_shift_of_two_deviations_is_seen_within_300_steps(shift):
    for seed in range(3):
        values = np.random.default_rng(seed).normal(0, 1, 3000)
        values[2000:] += shift
        changes = list_changes(ADWIN(delta=0.002), values)
        assert 2000 <= min(changes) < 2300 and changes[min(changes)] == np.sign(shift)


def test_the_window_holds_what_came_after_the_change_in_few_buckets():
    detector = ADWIN()
    values = np.random.default_rng(3).normal(0, 0.1, 4000) + (np.arange(4000) >= 3000)
    state, _ = jax.lax.scan(detector.update, detector.start(), jnp.asarray(values, jnp.float32))
    width = float(detector.width(state))
    assert 900 <= width <= 1000 + 256  # what is dropped is whole buckets
    assert float(detector.mean(state)) == pytest.approx(values[-int(width) :].mean(), abs=1e-4)
    assert int(state.counts.sum()) <= 5 * (np.log2(4000) + 1)


def test_every_number_of_the_window_is_in_a_bucket():
    detector, values = ADWIN(delta=1e-6), np.random.default_rng(1).normal(0, 1, 777)
    state, _ = jax.lax.scan(detector.update, detector.start(), jnp.asarray(values, jnp.float32))
    assert float(detector.width(state)) == 777
    assert float(state.totals.sum()) == pytest.approx(values.sum(), abs=1e-3)


@pytest.mark.parametrize("seed", range(10))
def test_changes_are_those_of_river(seed):
    drift = pytest.importorskip("river.drift")
    values = draw_stream(seed)
    oracle = drift.ADWIN()._helper  # of the window alone: river's detector begins anew after an alarm
    ours = list_changes(ADWIN(), values)
    assert list(ours) == [place for place, value in enumerate(values) if oracle.update(float(value))] and ours
    page, alarms = drift.PageHinkley(), []
    for place, value in enumerate(values):
        page.update(float(value))
        alarms += [place] if page.drift_detected else []
    assert list(list_changes(PageHinkley(), values)) == alarms


def test_one_side_of_page_and_hinkley_is_a_rise():
    values = np.random.default_rng(0).normal(0, 1, 3000)
    values[1000:2000] -= 2
    both = list_changes(PageHinkley(delta=0.5), values)
    assert list(both.values()) == [-1, 1] and 1000 <= min(both) < 1200 and 2000 <= max(both) < 2200
    rises = list_changes(PageHinkley(delta=0.5, two_sided=False), values)
    assert list(rises.values()) == [1] and min(rises) >= 2000


@pytest.mark.parametrize(
    ("kind", "options"),
    [(ADWIN, {"delta": 0.0}), (ADWIN, {"clock": 0}), (ADWIN, {"buckets": 0}), (PageHinkley, {"threshold": 0.0})],
)
def test_values_out_of_range_are_refused(kind, options):
    with pytest.raises(ValueError, match="out of range: use"):
        kind(**options)
