"""Estimators from samples: known truths, directions, independence, honesty about held-out data, and what each says of
itself.
"""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.information import critics, crossfit, estimators, samplers
from selssm_jax.information.estimators import Training

QUICK = Training(steps=150, batch=256, width=64)  # enough for what is asked here
LOWER = {"infonce": estimators.infonce, "nwj": estimators.nwj, "hybrid": estimators.hybrid}
NEURAL = LOWER | {"donsker_varadhan": estimators.donsker_varadhan, "smile": estimators.smile}
DIRECTIONS = {
    "infonce": "lower",
    "nwj": "lower",
    "hybrid": "lower",
    "donsker_varadhan": "estimate",
    "smile": "estimate",
}


@pytest.fixture(scope="module")
def correlated():
    """2,000 pairs of three columns each, two of them correlated: 0.55 nats."""
    return samplers.multinormal(jax.random.key(1), 2000, samplers.sparse_covariance(3, 3, strength=1.0), 3)


@pytest.mark.parametrize("name", NEURAL)
def test_a_known_truth_within_its_error(name, correlated):
    """Critics trained for so short lose up to 0.1 nats; above, three standard errors."""
    found = NEURAL[name](correlated.x, correlated.y, training=QUICK)
    assert found.direction == DIRECTIONS[name]
    assert correlated.information - 0.15 < found.nats < correlated.information + 3 * found.stderr
    assert 0.005 < found.stderr < 0.06  # one sample's value spreads over about a nat


@pytest.mark.parametrize("name", NEURAL)
def test_independent_samples_have_none(name):
    x, y, _ = samplers.independent(jax.random.key(2), 2000, 3, 3)
    found = NEURAL[name](x, y, training=QUICK)
    assert abs(found.nats) <= max(0.02, 3 * found.stderr) and found.nats < 0.02


@pytest.mark.parametrize("name", LOWER)
def test_lower_bounds_lie_under_the_truth_in_the_mean(name):
    """Five seeds of 2,000 samples, their mean known to about 0.01; benchmarks/information.py has twenty, of every
    task.
    """
    draws = [
        samplers.multinormal(jax.random.key(seed), 2000, samplers.dense_covariance(3, 3, 0.3), 3) for seed in range(5)
    ]
    found = [LOWER[name](draw.x, draw.y, training=QUICK).nats for draw in draws]
    assert np.mean(found) <= draws[0].information + 0.03


def test_a_bound_is_of_samples_that_its_critic_never_saw():
    """On 200 samples of ten columns of noise, a critic that was judged on what it was trained on would find whole
    nats.
    """
    x, y, _ = samplers.independent(jax.random.key(3), 200, 10, 10)
    held_out = crossfit.fit(np.asarray(x), np.asarray(y), critics.HYBRID, critics.INFONCE, QUICK)
    assert held_out.mean_and_error(held_out.trained)[0] < 0.05


def test_folds_of_a_series_are_runs_of_it():
    """Rows whose neighbours are copies know nothing of y, which copies too; folds of shuffled rows would take memory
    for knowledge.
    """
    rng = np.random.default_rng(0)
    x, y = (np.repeat(rng.normal(size=(40, 3)), 20, axis=0) for _ in range(2))

    def found(shuffle: bool) -> float:
        held_out = crossfit.fit(x, y, critics.HYBRID, critics.INFONCE, Training(steps=300, width=64, shuffle=shuffle))
        return held_out.mean_and_error(held_out.trained)[0]

    assert found(shuffle=True) > 0.5 and found(shuffle=False) < 0.02


def test_marginals_do_not_matter(correlated):
    """Monotone maps of the columns change no rank, so nothing at all."""
    plain = estimators.hybrid(correlated.x, correlated.y, training=QUICK)
    mapped = estimators.hybrid(jnp.exp(correlated.x), correlated.y**3, training=QUICK)
    assert mapped.nats == pytest.approx(plain.nats, abs=1e-3)  # exp and cubes of float32 merge a few ranks


@pytest.mark.parametrize(("place", "unit"), [(1e8, 1.0), (0.0, 1e-20)])
def test_neither_places_nor_units_matter(correlated, place, unit):
    """Times and counters around 1e8, of which float32 leaves whole numbers: ranks are taken in float64."""
    x, y = (np.asarray(z, np.float64) for z in correlated[:2])
    assert estimators.hybrid(place + unit * x, place - unit * y, training=QUICK) == estimators.hybrid(
        x, -y, training=QUICK
    )


def test_a_seed_decides_everything(correlated):
    once, again = (estimators.infonce(correlated.x, correlated.y, training=QUICK) for _ in range(2))
    other = estimators.infonce(correlated.x, correlated.y, training=Training(steps=150, batch=256, width=64, seed=1))
    assert once == again and once.nats != other.nats


def test_infonce_says_when_it_is_saturated():
    x = jax.random.normal(jax.random.key(0), (500, 1))
    with pytest.warns(UserWarning, match="collapsed"):  # for a Gaussian one sees more than log K
        found = estimators.infonce(
            x, x + 1e-3 * jax.random.normal(jax.random.key(1), x.shape), training=Training(steps=400, width=64)
        )
    assert found.nats <= math.log(100) and any("saturated" in note for note in found.notes)


def test_a_collapse_is_said_and_warned_of():
    """One step of training finds nothing of 0.8 nats that a Gaussian critic sees at once."""
    x, y, _ = samplers.multinormal(jax.random.key(0), 1000, samplers.dense_covariance(1, 1, 0.9), 1)
    with pytest.warns(UserWarning, match="collapsed"):
        found = estimators.nwj(x, y, training=Training(steps=1, width=8))
    assert "collapsed" in found.notes[0]


def test_club_with_the_exact_conditional_is_an_upper_bound():
    """For y = r x + sqrt(1 - r^2) w its value is r^2 / (1 - r^2) nats, and it spreads by sd / sqrt(N)."""
    r = 0.6
    x, y, truth = samplers.multinormal(jax.random.key(4), 4000, samplers.dense_covariance(1, 1, r), 1)
    found = estimators.club(
        x, y, log_conditional=lambda a, b: jax.scipy.stats.norm.logpdf(b, r * a, math.sqrt(1 - r**2)).sum()
    )
    assert found.direction == "upper" and found.nats > truth
    assert abs(found.nats - r**2 / (1 - r**2)) < 4 * found.stderr


def test_club_refuses_samples_whose_differences_float32_loses():
    x = 1e8 + np.random.default_rng(0).normal(size=(200, 1))
    with pytest.raises(ValueError, match=r"x loses .* to the rounding of float32"):
        estimators.club(x, x - 1e8, log_conditional=lambda a, b: -0.5 * (b - a + 1e8).sum() ** 2)


def test_club_with_a_fitted_conditional_is_an_estimate(correlated):
    found = estimators.club(correlated.x, correlated.y, training=QUICK)
    assert found.direction == "estimate" and found.nats > correlated.information


def test_slices_say_less_and_of_single_columns_all(correlated):
    one = samplers.multinormal(jax.random.key(5), 1000, samplers.dense_covariance(1, 1, 0.8), 1)
    assert abs(estimators.sliced(one.x, one.y, slices=2).nats - one.information) < 0.08  # KSG's spread at 1,000 samples
    few = correlated.x[:1000], correlated.y[:1000]
    assert 0.01 < estimators.sliced(*few, slices=16).nats < correlated.information


def test_slices_state_what_their_samples_leave_open_and_know_no_units(correlated):
    """All directions see the same samples: of one column there is but one, and its error is not 0."""
    x, y = (np.asarray(side[:200], float) for side in (correlated.x, correlated.y))
    one = estimators.sliced(x[:, 0], np.random.default_rng(0).normal(size=200), slices=2)
    assert abs(one.nats) < 3 * one.stderr < 0.5
    plain, other = (
        estimators.sliced(x * units, y, slices=4).nats for units in (1.0, np.geomspace(1e-20, 1e20, x.shape[1]))
    )
    assert other == pytest.approx(plain, abs=1e-3)


def test_the_default_takes_a_gaussian_copula_for_one(correlated):
    found = estimators.estimate(jnp.exp(correlated.x), correlated.y, training=QUICK)
    assert "Gaussian copula" in found.method and abs(found.nats - correlated.information) < 3 * found.stderr + 0.01


def test_the_default_takes_the_bound_where_more_is_found():
    """Student's law without correlation: all information is in the lengths, and no Gaussian sees it."""
    x, y, truth = samplers.student(jax.random.key(6), 2000, np.eye(6), 3, 2.0)
    found = estimators.estimate(x, y, training=QUICK)
    assert (
        found.nats > truth / 2
        and found.notes
        and found.direction in ("lower", "estimate")
        and "Gaussian copula" not in found.method
    )


def test_the_default_counts_labels():
    x = jax.random.randint(jax.random.key(7), (3000,), 0, 4)
    found = estimators.estimate(x, x)
    assert abs(found.nats - math.log(4)) < 0.01 and "labels" in found.notes[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((200, 2, 2))}, "x has shape"),
        ({"x": np.full((200, 1), np.nan)}, "x holds nan, expected finite"),
        ({"x": np.zeros((100, 1))}, "x has 100 rows and y has 200"),
        ({"x": np.zeros((50, 1)), "y": np.zeros((50, 1))}, "50 samples, expected at least 100"),
    ],
)
@pytest.mark.parametrize("name", ["infonce", "estimate", "club"])
def test_bad_samples_are_named(name, change, message):
    samples = {"x": np.ones((200, 1)), "y": np.ones((200, 1))} | change
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(getattr(estimators, name))(**samples)


@pytest.mark.parametrize("setting", [{"steps": 0}, {"folds": 1}, {"batch": 1}, {"width": 0}, {"rate": 0.0}])
def test_bad_training_is_named(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        Training(**setting)


def test_other_bad_settings_are_named(correlated):
    with pytest.raises(ValueError, match="clip=0"):
        estimators.smile(correlated.x, correlated.y, clip=0.0)
    with pytest.raises(ValueError, match="slices=1"):
        estimators.sliced(correlated.x, correlated.y, slices=1)
    with pytest.raises(ValueError, match="log_conditional gives"):
        estimators.club(correlated.x, correlated.y, log_conditional=lambda a, b: jnp.where(b[0] > 0, 0.0, -jnp.inf))


def test_normal_scores_rank_among_the_reference():
    reference = jnp.array([[1.0], [2.0], [2.0], [5.0]])
    found = crossfit.normal_scores(reference, jnp.array([[0.0], [2.0], [9.0]]))[:, 0]
    expected = jax.scipy.special.ndtri(jnp.array([1 / 10, 5 / 10, 9 / 10]))  # mid-ranks 0, 2 and 4 of four
    np.testing.assert_allclose(found, expected, atol=1e-6)
