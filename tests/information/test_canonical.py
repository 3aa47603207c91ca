"""The bias-corrected Gaussian value: unbiased, within its error on the benchmark's normal tasks, invariant, and honest
about degenerate samples.
"""

import inspect
import math
import os
import pathlib

import jax
import numpy as np
import pytest
from scipy.special import digamma

from conftest import REPOSITORY
from selssm_jax.information import canonical, samplers

FOLDER = pathlib.Path(os.environ.get("SELSSM_TEST_DATA") or REPOSITORY.parent / "shared" / "data") / "mi_benchmark"
NORMAL = ("1v1-normal-0.75", *(task for task in samplers.TASKS if task.startswith("multinormal")))


@pytest.mark.parametrize("task", NORMAL)
def test_normal_tasks_within_two_deviations(task):
    """Of the frozen samples: the spread of one estimate is what `stderr` says."""
    if not FOLDER.is_dir():
        pytest.skip("the frozen samples are not here: name their parent folder in SELSSM_TEST_DATA")
    frozen = np.load(FOLDER / f"{task}.npz")
    found = canonical.gaussian(frozen["x"], frozen["y"])
    assert abs(found.nats - float(frozen["mi"])) < 2 * found.stderr


@pytest.mark.parametrize(
    ("correlation", "dx", "dy", "count"), [(0.0, 1, 1, 10), (0.0, 5, 8, 40), (0.9, 3, 2, 30), (0.5, 4, 4, 25)]
)
def test_it_is_unbiased_and_its_error_is_its_spread(correlation, dx, dy, count):
    """4,000 repetitions: their mean to three of its deviations, their spread to a fifth (`stderr` is of first
    order).
    """
    cov = np.eye(dx + dy)
    cov[0, dx] = cov[dx, 0] = correlation
    draws = np.random.default_rng(0).multivariate_normal(np.zeros(dx + dy), cov, size=(4000, count))
    found = [canonical.gaussian(draw[:, :dx], draw[:, dx:]) for draw in draws]
    nats = np.array([one.nats for one in found])
    assert abs(nats.mean() + 0.5 * math.log1p(-(correlation**2))) < 3 * nats.std() / 4000**0.5
    if count > 5 * (dx + dy):
        assert np.mean([one.stderr for one in found]) == pytest.approx(nats.std(), rel=0.25)


def test_the_digamma_function():
    x = np.array([0.5, 1.0, 2.5, 10.0, 5000.0])
    np.testing.assert_allclose(canonical._digamma(x), digamma(x), atol=1e-12)


def test_linear_maps_of_each_side_change_nothing():
    rng = np.random.default_rng(1)
    x, y, _ = samplers.multinormal(jax.random.key(2), 500, samplers.sparse_covariance(3, 3), 3)
    plain = canonical.gaussian(x, y).nats
    assert canonical.gaussian(np.asarray(x) @ rng.normal(size=(3, 3)) + 7, 1e5 * np.asarray(y)).nats == pytest.approx(
        plain, abs=1e-5
    )


def test_columns_that_follow_from_others_are_left_out_and_named():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(400, 2)), rng.normal(size=(400, 2))
    y = y + x
    twice = canonical.gaussian(np.concatenate([x, x.sum(1, keepdims=True), np.ones((400, 1))], axis=1), y)
    assert twice.nats == pytest.approx(canonical.gaussian(x, y).nats, abs=1e-9)
    assert twice.notes == ("2 columns of x follow from the others",)


def test_a_shared_direction_is_infinite_and_no_direction_is_nothing():
    x = np.random.default_rng(3).normal(size=(100, 2))
    assert canonical.gaussian(x, x[:, :1]).nats == math.inf
    assert canonical.gaussian(np.ones(100), x).nats == 0


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((10, 8)), "10 samples of 8 and 2 columns"),
        (np.zeros((9, 1)), "x has 9 rows and y has 10"),
        (np.zeros((10, 1, 1)), "x has shape"),
    ],
)
def test_mistakes(x, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(canonical.gaussian)(x, np.random.default_rng(0).normal(size=(10, 2)))


@pytest.mark.parametrize("unit", [1e-300, 1e200, 1e300])
def test_any_unit_will_do(unit):
    x, y = np.random.default_rng(4).normal(size=(2, 200, 2))
    assert canonical.gaussian(unit * (x + y), y).nats == pytest.approx(canonical.gaussian(x + y, y).nats, abs=1e-9)


def test_one_row_that_decides_alone_is_named():
    """A fill value in both makes perfect correlation of nothing."""
    x, y = np.random.default_rng(5).normal(size=(2, 200))
    assert not canonical.gaussian(x, y).notes
    x[3] = y[3] = 1e10
    found = canonical.gaussian(x, y)
    assert found.nats > 5 and found.notes[:2] == tuple(
        f"row 3 of {name} alone makes 100% of a direction's variance: no normal law; rank first, as `estimate` does, "
        "or leave it out"
        for name in "xy"
    )
