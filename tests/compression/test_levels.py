"""Levels of least squared error: beside the optimum by brute force, beside other quantisers, and on laws that mislead a
start from the quantiles.
"""

import numpy as np
import pytest
from scipy.stats import norm

from selssm_jax.compression.levels import least_error_levels


def error(samples, levels):
    rising = np.unique(levels)
    return ((rising[np.searchsorted((rising[1:] + rising[:-1]) / 2, samples)] - samples) ** 2).mean()


def least(samples, count):
    """The least error of any `count` levels: dynamic programming over all samples, O(M^2 count)."""
    ordered = np.sort(samples)
    sums, squares = (np.concatenate([[0.0], np.cumsum(power)]) for power in (ordered, ordered**2))
    held = np.subtract.outer(np.arange(len(sums)), np.arange(len(sums)))
    cost = squares[:, None] - squares[None] - (sums[:, None] - sums[None]) ** 2 / np.maximum(held, 1)
    cost = np.where(held > 0, cost, np.where(held == 0, 0, np.inf))
    total = cost[:, 0].copy()
    for _ in range(count - 1):
        total = (total[None] + cost).min(axis=1)
    return total[-1] / len(ordered)


LAWS = {
    "normal": lambda rng, size: rng.standard_normal(size),
    "heavy tails": lambda rng, size: rng.standard_cauchy(size),
    "mostly 0": lambda rng, size: np.where(rng.random(size) < 0.9, 0, rng.standard_normal(size)),
    "two far humps": lambda rng, size: rng.standard_normal(size) + np.where(rng.random(size) < 0.99, 0, 100),
    "whole numbers": lambda rng, size: rng.integers(0, 300, size).astype(float),
    "half whole numbers": lambda rng, size: np.where(
        rng.random(size) < 0.5, rng.integers(0, 40, size), 5 * rng.standard_normal(size)
    ),
}


@pytest.mark.parametrize("law", LAWS)
def test_the_error_of_few_samples_is_the_least_there_is(law):
    samples = LAWS[law](np.random.default_rng(0), 300)
    for count in (2, 4, 8, 32):
        assert error(samples, least_error_levels([samples], count)[0]) <= least(samples, count) * (1 + 1e-9) + 1e-15


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("bits", [3, 6, 8])
def test_the_error_of_many_samples_is_at_most_that_of_quantisers_from_other_starts(law, bits):
    samples = LAWS[law](np.random.default_rng(1), 20_000)
    ordered = np.sort(samples)
    uniform = min(
        error(samples, low + (high - low) * (np.arange(2**bits) + 0.5) / 2**bits)
        for low, high in (
            (np.quantile(ordered, share), np.quantile(ordered, 1 - share)) for share in (0, 1e-4, 1e-3, 1e-2)
        )
    )
    # density^(1/3) of a normal law
    companded = np.median(ordered) + np.std(ordered) * 3**0.5 * norm.ppf((np.arange(2**bits) + 0.5) / 2**bits)
    quantiles = np.quantile(ordered, (np.arange(2**bits) + 0.5) / 2**bits)
    lloyd = min(error(samples, iterated(ordered, start)) for start in (companded, quantiles))
    assert error(samples, least_error_levels([samples], 2**bits)[0]) <= 1.01 * min(uniform, lloyd)


def iterated(ordered, levels):
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    for _ in range(100):
        edges = np.concatenate([[0], np.searchsorted(ordered, (levels[1:] + levels[:-1]) / 2), [len(ordered)]])
        held = np.diff(edges)
        levels = np.where(held > 0, np.diff(sums[edges]) / np.maximum(held, 1), levels)
    return levels


def test_units_and_origins_change_nothing():
    samples = np.random.default_rng(0).standard_normal(5000)
    ours = error(samples, least_error_levels([samples], 16)[0])
    for scale, origin in ((1e-20, 0), (1e20, 0), (1, 1e6)):
        moved = samples * scale + origin
        assert error(moved, least_error_levels([moved], 16)[0]) == pytest.approx(ours * scale**2, rel=1e-3)


def test_fewer_values_than_levels_are_kept_exactly_and_sets_do_not_disturb_each_other():
    sets = [
        np.array([3.0, 1.0, 3.0]),
        np.zeros(5),
        np.random.default_rng(0).standard_normal(900),
        np.random.default_rng(1).random(4000),
    ]
    together = least_error_levels(sets, 8)
    np.testing.assert_array_equal(together[0], [1, 3, 3, 3, 3, 3, 3, 3])
    np.testing.assert_array_equal(together[1], np.zeros(8))
    for samples, levels in zip(sets, together, strict=True):
        np.testing.assert_array_equal(levels, least_error_levels([samples], 8)[0])
        assert (np.diff(levels) >= 0).all()
