"""Random numbers by place: the same on every machine, uniform, and independent from place to place and key to key."""

import numpy as np
import pytest

from selssm_jax.data import counter_rng

PLACES = np.arange(4000)


def slow(key, place, count):
    """The same numbers by whole numbers of Python: SplitMix64 as it was published."""
    golden, limit = 0x9E3779B97F4A7C15, 2**64

    def mixed(z):
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % limit
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % limit
        return z ^ (z >> 31)

    state = 0
    for part in key:
        state = mixed((state + part + golden) % limit)
    state = mixed((state + place * golden) % limit)
    return [(mixed((state + step * golden) % limit) >> 11) / 2**53 for step in range(1, count + 1)]


@pytest.mark.parametrize("key", [(0,), (3, 1), (2**64 - 1, 7, 9)])
def test_numbers_are_the_same_everywhere_and_always(key):
    places = np.array([0, 1, 10**12])
    np.testing.assert_array_equal(counter_rng.uniform(key, places, 6), [slow(key, int(place), 6) for place in places])


def test_row_depends_on_its_place_alone():
    rows = counter_rng.uniform((1,), PLACES, 5)
    np.testing.assert_array_equal(counter_rng.uniform((1,), PLACES[[7, 3, 7]], 5), rows[[7, 3, 7]])
    np.testing.assert_array_equal(counter_rng.uniform((1,), PLACES[:9], 3), rows[:9, :3])


def test_uniform_numbers_are_uniform():
    numbers = counter_rng.uniform((0,), PLACES, 50).ravel()
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = np.histogram(numbers, 100, (0, 1))[0]
    expected = len(numbers) / 100
    # chi squared of 99 degrees: exceeded with probability 1e-6
    assert ((counts - expected) ** 2 / expected).sum() < 180


@pytest.mark.parametrize("shift", [(1, 0), (0, 1), (1, -1), (17, 3)])
def test_neighbours_are_uncorrelated(shift):
    numbers = counter_rng.normal((5,), PLACES, 50)
    product = (numbers * np.roll(numbers, shift, axis=(0, 1))).ravel()
    assert abs(product.mean()) < 5 / np.sqrt(len(product))


@pytest.mark.parametrize("other", [(1,), (0, 0), (0, 1), (2**63,)])
def test_keys_are_streams_of_their_own(other):
    first, second = (counter_rng.uniform(key, PLACES, 10) for key in ((0,), other))
    assert not np.intersect1d(first, second).size
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 5 / np.sqrt(first.size)


def test_normal_numbers_have_the_moments_of_the_law():
    numbers = counter_rng.normal((0,), PLACES, 50).ravel()
    moments = [np.mean(numbers**power) for power in (1, 2, 3, 4)]
    assert np.isfinite(numbers).all() and 3.5 < np.abs(numbers).max() < 6.5
    np.testing.assert_allclose(moments, [0, 1, 0, 3], atol=0.08)


def test_integers_reach_both_ends():
    numbers = counter_rng.integers((0,), PLACES, 10, 7)
    assert numbers.dtype == np.int32
    assert np.unique(numbers).tolist() == list(range(7))
