"""The one entrance for samples: what is taken, and that nothing is rounded before it is ranked or scaled."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest

from selssm_jax.information import checks


def test_masked_samples_are_refused():
    """numpy#4508: an array of a masked one holds the fill values."""
    with pytest.raises(ValueError, match="x has 1 masked values"):
        checks.columns("x", np.ma.masked_equal([1.0, 2.0, 1e20], 1e20))


def test_bfloat16_is_real():
    np.testing.assert_array_equal(checks.columns("x", jnp.array([1.0, 2.0], jnp.bfloat16)), [[1.0], [2.0]])


@pytest.mark.parametrize("start", [2**62, -(2**63), 0])
@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_large_whole_numbers_stay_apart(start, dtype):
    """Times in nanoseconds: float64 holds every 256th of them."""
    value = np.arange(5, dtype=dtype) + dtype(abs(start) if dtype is np.uint64 else start)
    assert value.dtype == dtype and len(np.unique(checks.columns("x", value))) == 5


@pytest.mark.parametrize("unit", [1e-300, 1e-20, 1.0, 1e20, 1e300])
def test_standardised_columns_know_no_unit_and_no_place(unit):
    z = np.random.default_rng(0).normal(size=(300, 2))
    scaled = checks.standardise(unit * z)
    np.testing.assert_allclose(scaled, checks.standardise(z), rtol=1e-12)
    np.testing.assert_allclose(scaled.std(axis=0), 1, rtol=1e-12)


def test_outliers_leave_the_others_where_they_are_and_in_order():
    z = np.sort(np.r_[np.random.default_rng(0).normal(size=298), 1e30, 1e300])[:, None]
    scaled = checks.standardise(z)[:, 0]
    assert 0.8 < scaled[:298].std() < 1.2 and (np.diff(scaled) > 0).all() and scaled[-1] < 1e9


def test_scores_in_random_order_are_normal_and_keep_the_order():
    z = np.random.default_rng(0).integers(0, 3, size=(500, 1)).astype(float)
    scores = checks.scores(z, np.random.default_rng(1))
    assert kstest(scores[:, 0], "norm").pvalue > 0.99 and len(np.unique(scores)) == 500
    assert all(scores[z == a].max() < scores[z == a + 1].min() for a in (0, 1))
    assert len(np.unique(checks.scores(z))) == 3


def test_ranks_are_exact_where_float32_is_not():
    z = 1e8 + np.array([[3e-7], [0.0], [1e-7], [0.0]])
    np.testing.assert_array_equal(checks.ranks(z)[:, 0], [2, 0, 1, 0])
