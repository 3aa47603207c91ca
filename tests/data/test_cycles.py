"""Periods that are found: of courses that are known, of real tables, and none where there is none."""

import numpy as np
import pytest

from data.test_forecasting import built
from selssm_jax.data import forecasting
from selssm_jax.data.cycles import LEAST, find_period

STEPS = np.arange(4000)


def noisy(course, size=0.3, seed=0, rows=4000):
    return course[:rows, None] + size * np.random.default_rng(seed).standard_normal((rows, 2))


DAY = np.sin(2 * np.pi * STEPS / 24)
COURSES = {
    "a wave and a trend": (np.sin(2 * np.pi * STEPS / 37) + STEPS / 500, 37),
    "a pulse": (5.0 * (STEPS % 50 == 0), 50),
    "days that differ by weekday": (DAY * np.where(STEPS // 24 % 7 > 4, 0.3, 1), 168),
    "a wave between two whole numbers": (np.sin(2 * np.pi * STEPS / 36.5), 73),
    "an amplitude that changes": (DAY * (1 + 2 * STEPS / 4000), 24),
    "weekdays": (np.where(STEPS % 7 > 4, 0.0, 1.0), 7),
    "every other row": (np.where(STEPS % 2, 1.0, -1.0), 2),
}


@pytest.mark.parametrize("name", COURSES)
def test_a_period_that_is_there_is_found(name):
    course, period = COURSES[name]
    assert find_period(noisy(course)) == period
    gaps = noisy(course)
    gaps[np.random.default_rng(1).random(gaps.shape) < 0.2] = np.nan
    gaps[:, 1] = np.nan
    assert find_period(gaps) == period


def test_the_unit_of_a_channel_and_what_stands_still_play_no_part():
    values = np.concatenate([1e6 * noisy(DAY), np.full((4000, 1), 3.0)], axis=1)
    assert find_period(values) == 24


@pytest.mark.parametrize("kind", ["white", "walk", "heavy tails"])
def test_chance_has_no_period_but_now_and_then(kind):
    """At most 2 of 100 series of 16 to 3,000 rows."""
    false = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        rows = int(rng.integers(16, 3000))
        draw = {"heavy tails": rng.standard_t(2, (rows, 2))}.get(kind, rng.standard_normal((rows, 2)))
        false += find_period(draw.cumsum(axis=0) if kind == "walk" else draw) > 0
    assert false <= 2


@pytest.mark.parametrize("values", [np.ones((100, 2)), np.full((100, 1), np.nan), noisy(DAY)[:15]], ids=str)
def test_what_says_nothing_has_no_period(values):
    assert find_period(values) == 0


def test_a_cycle_seen_too_seldom_or_that_explains_little_is_none():
    assert find_period(noisy(np.sin(2 * np.pi * STEPS / 1100))) == 0
    faint, plain = (np.sqrt(2 * share * LEAST) * DAY for share in (0.3, 3.0))
    assert find_period(noisy(faint, size=1.0)) == 0 and find_period(noisy(plain, size=1.0)) == 24


def test_a_table_is_read_with_the_period_of_its_training_rows():
    values = noisy(DAY, rows=900).astype(np.float32)
    values[700:] = np.random.default_rng(2).standard_normal((200, 2))  # which training does not see
    dataset = built(values, forecasting.share_split(900), length=10, horizon=5, period=-1, course="learned")
    assert dataset.task.period == dataset.info["period"] == 24
    noise = np.random.default_rng(0).standard_normal((900, 2)).astype(np.float32)
    none = built(noise, forecasting.share_split(900), length=10, horizon=5, period=-1)
    assert none.info["period"] == 0 and "cycle" not in none.info["scaling"] and none.task.period == 0
    mean = built(values, forecasting.share_split(900), length=10, horizon=5, period=-1)
    assert len(mean.info["scaling"]["cycle"]) == 24 and mean.task.period == 0
