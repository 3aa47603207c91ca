"""Nearest neighbours: the definition computed the slow way, the reference's values, known truths, ties, and errors."""

import inspect
import json
import math
import os
import pathlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import digamma

from conftest import REPOSITORY
from selssm_jax.information import neighbours, samplers

FOLDER = pathlib.Path(os.environ.get("SELSSM_TEST_DATA") or REPOSITORY.parent / "shared" / "data") / "mi_benchmark"
ROUNDING = 2e-3  # nats a few hundred samples: distances are of float32, and a neighbour at the edge counts or does not


@pytest.fixture(scope="module")
def normal():
    """1,000 pairs of two columns each: 0.69 nats."""
    x, y, information = samplers.multinormal(jax.random.key(0), 1000, samplers.sparse_covariance(2, 2, strength=1.0), 2)
    return np.asarray(x, np.float64), np.asarray(y, np.float64), float(information)


def distances(z: np.ndarray) -> np.ndarray:
    z = (z - z.mean(0)) / z.std(0)
    return np.sqrt(((z[:, None] - z[None]) ** 2).sum(-1)) + np.diag(np.full(len(z), np.inf))


def slow_ksg(x: np.ndarray, y: np.ndarray, k: int, variant: int) -> float:
    """The definition, all pairs at once, in float64."""
    of_x, of_y = distances(x), distances(y)
    joint = np.maximum(of_x, of_y)
    if variant == 1:
        radius = np.sort(joint, axis=1)[:, k - 1 : k]
        near = [(d < radius).sum(1) for d in (of_x, of_y)]
        return digamma(k) + digamma(len(x)) - np.mean(digamma(near[0] + 1) + digamma(near[1] + 1))
    nearest = np.argsort(joint, axis=1)[:, :k]
    near = [(d <= np.take_along_axis(d, nearest, 1).max(1, keepdims=True)).sum(1) for d in (of_x, of_y)]
    return digamma(k) - 1 / k + digamma(len(x)) - np.mean(digamma(near[0]) + digamma(near[1]))


@pytest.mark.parametrize("strict", [True, False])
def test_a_radius_that_was_rounded_elsewhere_counts_alike(strict):
    """The k-th neighbour is where the radius is: a program that rounds its distance the other way must not see it on
    the other side.
    """
    rng = np.random.default_rng(0)
    d = rng.uniform(size=(neighbours.UNROLL, neighbours.BLOCK)).astype(np.float32)
    drawn = jnp.asarray(d)
    radius = np.sort(d, axis=0)[3]
    inside = 3 if strict else 4
    for ulps in (-1, 0, 1):
        moved = radius if not ulps else np.nextafter(radius, np.float32(2 * ulps), dtype=np.float32)
        found = neighbours._counts(lambda i, u: (drawn[u], drawn[u]), 1, (jnp.asarray(moved),) * 2, strict=strict)
        assert all((np.asarray(count) == inside - 1).all() for count in found)  # itself is not counted


@pytest.mark.parametrize("variant", [1, 2])
@pytest.mark.parametrize(("k", "count"), [(1, 50), (5, 333), (10, 1000)])
def test_it_is_the_definition(normal, k, count, variant):
    x, y, _ = normal
    found = neighbours.ksg(x[:count], y[:count], k=k, variant=variant)
    assert found.nats == pytest.approx(
        slow_ksg(x[:count], y[:count], k, variant), abs=ROUNDING if variant == 2 else 1e-6
    )
    assert found.direction == "estimate" and f"k={k}" in found.method


@pytest.mark.parametrize("task", samplers.TASKS)
def test_it_equals_the_reference_implementation(task):
    """benchmark-mi's KSG of the frozen samples, whose distances are float64's."""
    if not FOLDER.is_dir():
        pytest.skip("the frozen samples are not here: name their parent folder in SELSSM_TEST_DATA")
    if "25-25" in task or "sparse-5-5" in task:
        pytest.skip("slow: benchmarks/information.py compares all")
    frozen = np.load(FOLDER / f"{task}-5000.npz")
    rows = json.loads((FOLDER / "reference.json").read_text())["rows"]
    (expected,) = (
        row["val"]
        for row in rows
        if row["task"] == task and row["N"] == 5000 and row["seed"] == 0 and row["est"] == "KSG5"
    )
    assert neighbours.ksg(frozen["x0"], frozen["y0"], k=5).nats == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("variant", [1, 2])
def test_a_normal_law_within_its_error(normal, variant):
    x, y, information = normal
    found = neighbours.ksg(x, y, variant=variant)
    assert 0.005 < found.stderr < 0.1
    assert abs(found.nats - information) < 3 * found.stderr + 0.05  # smoothing loses a little


def test_units_and_places_do_not_matter(normal):
    x, y, _ = normal
    assert neighbours.ksg(1e4 * x + 1e6, -1e-4 * y).nats == pytest.approx(neighbours.ksg(x, y).nats, abs=1e-4)


def test_independent_samples_have_none():
    x, y, _ = samplers.independent(jax.random.key(1), 3000, 2, 1)
    assert abs(neighbours.ksg(np.asarray(x), np.asarray(y)).nats) < 0.03


@pytest.mark.parametrize("variant", [1, 2])
@pytest.mark.parametrize("what", ["ties", "constant", "all equal"])
def test_ties_and_constant_columns_are_finite_and_said(what, variant):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(500, 2)), rng.normal(size=(500, 1))
    x, y = {"ties": (x.round(), y.round()), "constant": (x * [1, 0], y), "all equal": (0 * x, 0 * y)}[what]
    with pytest.warns(UserWarning, match=r"samples coincide: .*mixed\(\)"):
        found = neighbours.ksg(x, y, variant=variant)
    assert np.isfinite(found.nats) and abs(found.nats) < 0.15 and "mixed()" in found.notes[0]


def test_mixed_is_for_ties():
    """A fair coin and its noisy copy: ln 2 - h(1/8) nats, from labels, which parted ties would get wrong by much."""
    rng = np.random.default_rng(1)
    x = rng.integers(0, 2, 4000).astype(float)
    y = np.where(rng.uniform(size=4000) < 1 / 8, 1 - x, x)
    truth = math.log(2) + 1 / 8 * math.log(1 / 8) + 7 / 8 * math.log(7 / 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = neighbours.mixed(x, y)
    assert abs(found.nats - truth) < 3 * found.stderr


def test_mixed_takes_one_label_and_one_number():
    """A coin's sign plus noise: the information of a mixture of two normal laws, by quadrature."""
    rng = np.random.default_rng(2)
    x = rng.choice([-1.0, 1.0], 4000)
    y = x + rng.normal(size=4000)
    grid = np.linspace(-9, 9, 20001)
    p = 0.5 * sum(np.exp(-0.5 * (grid - c) ** 2) for c in (-1, 1)) / math.sqrt(2 * math.pi)
    truth = -np.sum(p * np.log(p)) * (grid[1] - grid[0]) - 0.5 * math.log(2 * math.pi * math.e)
    found = neighbours.mixed(x, y)
    assert abs(found.nats - truth) < 3 * found.stderr + 0.01


def test_mixed_agrees_with_ksg_where_nothing_ties(normal):
    x, y, _ = normal
    assert neighbours.mixed(x, y).nats == pytest.approx(neighbours.ksg(x, y).nats, abs=0.05)


@pytest.mark.parametrize("d", [1, 3])
def test_entropy_of_normal_and_uniform_laws(d):
    """To three times the spread of -log p over 4,000 samples; the cube's walls cost a little more."""
    rng = np.random.default_rng(d)
    normal = neighbours.entropy(5 * rng.normal(size=(4000, d)))
    assert normal == pytest.approx(
        d * (0.5 * math.log(2 * math.pi * math.e) + math.log(5)), abs=3 * math.sqrt(d / 2 / 4000) + 0.05
    )
    assert neighbours.entropy(rng.uniform(size=(4000, d)) / 2) == pytest.approx(-d * math.log(2), abs=0.15)


def test_entropy_of_coincident_samples():
    assert neighbours.entropy(np.zeros((100, 1))) == -math.inf


def test_many_columns_and_nats_are_noted(normal):
    x, y, _ = normal
    assert not neighbours.ksg(x, y).notes
    assert "probably too low" in neighbours.ksg(x[:300], x[:300] + 1e-3 * y[:300]).notes[0]


@pytest.fixture(scope="module")
def pair():
    """400 independent pairs, and a third column that the first tells much of, 0.51 nats."""
    rng = np.random.default_rng(5)
    x, y, w = rng.normal(size=(3, 400))
    return x, y, 0.8 * x + 0.6 * w


FILLS = (1e10, 9.96921e36, 1e200)  # netCDF's among them


@pytest.mark.parametrize("method", [neighbours.ksg, neighbours.mixed])
@pytest.mark.parametrize("fill", FILLS)
def test_a_fill_value_in_both_makes_no_information(pair, fill, method):
    """infomeasure#7: in float32 one such value makes ties of all others."""
    x, y, _ = (z.copy() for z in pair)
    x[7] = y[7] = fill
    found = method(x, y)
    assert abs(found.nats) < 0.05 + 3 * found.stderr and found.stderr < 0.1


@pytest.mark.parametrize("method", [neighbours.ksg, neighbours.mixed])
@pytest.mark.parametrize("fill", FILLS)
def test_a_fill_value_in_one_hides_no_information(pair, fill, method):
    """Scaled by its own size it makes a constant of the rest of its column."""
    x, _, z = (column.copy() for column in pair)
    plain = method(x, z)
    x[7] = -fill
    assert method(x, z).nats == pytest.approx(plain.nats, abs=0.03) and plain.nats > 0.3


@pytest.mark.parametrize("method", [neighbours.ksg, neighbours.mixed])
def test_clusters_further_apart_than_float32_tells_keep_their_inside(pair, method):
    """Two groups a million deviations apart, 0.51 nats within each and log 2 of which it is."""
    x, _, z = pair
    group = 1e8 * (np.arange(400) % 2)
    assert method(x + group, z + group).nats == pytest.approx(method(x, z).nats + math.log(2), abs=0.1)


@pytest.mark.parametrize("unit", [1e-300, 1e-20, 1e-16, 1e20, 1e25, 1e200])
def test_entropy_in_any_unit(pair, unit):
    plain = neighbours.entropy(pair[0])
    assert abs(plain - 1.419) < 0.15
    assert neighbours.entropy(unit * pair[0]) - math.log(unit) == pytest.approx(plain, abs=1e-3)


@pytest.mark.parametrize("units", [(1e-20, 1e20), (1.0, 1e9)])
def test_entropy_of_columns_in_units_of_their_own(pair, units):
    """Of distances in the larger unit the smaller column would be none of it."""
    both = np.stack(pair[:2], axis=1)
    assert neighbours.entropy(both * units) - math.log(units[0]) - math.log(units[1]) == pytest.approx(
        neighbours.entropy(both), abs=1e-3
    )


@pytest.mark.parametrize("place", [1e8, -1e12])
def test_entropy_and_information_of_what_lies_far_from_zero(pair, place):
    x, _, z = pair
    assert neighbours.entropy(x + place) == pytest.approx(neighbours.entropy(x), abs=1e-3)
    assert neighbours.ksg(x + place, z - place).nats == pytest.approx(neighbours.ksg(x, z).nats, abs=0.01)


@pytest.mark.parametrize("outlier", [1e10, 9.96921e36])
def test_entropy_with_one_outlier_is_finite(pair, outlier):
    """It adds one term, the logarithm of its own distance, over N."""
    found = neighbours.entropy(np.r_[pair[0][1:], outlier])
    assert found == pytest.approx(neighbours.entropy(pair[0]) + math.log(outlier) / 400, abs=0.02)


@pytest.mark.parametrize("other", [np.zeros, lambda n: 3 * np.arange(n) / n])
def test_entropy_of_columns_without_a_density_is_minus_infinity(other):
    """A constant column, and one that follows from another: neighbours alone would give a number."""
    x = np.arange(400) / 400
    assert neighbours.entropy(np.stack([x, other(400)], axis=1)) == -math.inf


def test_entropy_refuses_what_its_squares_cannot_hold(pair):
    with pytest.raises(ValueError, match=r"x reaches to .* times the spread of its middle half"):
        neighbours.entropy(np.r_[pair[0][1:], 1.7e308])


def test_the_stated_error_covers_the_edges_of_a_law():
    """y = x + a narrow uniform noise: the value lacks 0.1 nats, ten times what samples spread."""
    x, y, information = samplers.additive_uniform(jax.random.key(3), 400, 0.05)
    found = neighbours.ksg(np.asarray(x), np.asarray(y))
    assert found.nats < information - 0.05 and abs(found.nats - information) < 3 * found.stderr < 1


def test_the_order_of_samples_does_not_matter(pair):
    """Sorted samples, cut in a row, would be ten laws without dependence, and seem to lack whole nats."""
    x, _, z = pair
    order = np.argsort(x)
    plain, ordered = neighbours.ksg(x, z), neighbours.ksg(x[order], z[order])
    assert ordered.nats == pytest.approx(plain.nats, abs=1e-6) and ordered.stderr < 2 * plain.stderr


GOOD = np.random.default_rng(3).normal(size=(100, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": 3}, "variant=3 is unknown"),
        ({"k": 0}, "k=0 neighbours of 100 samples: expected 1 <= k < N"),
        ({"k": 100}, "k=100 neighbours"),
        ({"x": GOOD[:50]}, "x has 50 rows and y has 100"),
        ({"y": np.where(GOOD > 2, np.inf, GOOD)}, "y holds inf, expected finite"),
        ({"x": GOOD.astype(complex)}, "x has shape .* and dtype complex128"),
    ],
)
def test_mistakes(change, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(neighbours.ksg)(**({"x": GOOD, "y": GOOD} | change))
