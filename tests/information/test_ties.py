"""Values that repeat, atoms, fills and heavy tails: nearest neighbours are within three of the errors that they state,
and of no information in the mean where there is none.
"""

import math

import numpy as np
import pytest
from scipy.special import ndtr

from selssm_jax.information import conditional, estimators, neighbours, transfer

N, DRAWS = 400, 3
FILL = 9.96921e36  # netCDF's
ERRORS = 3.0


def normal_pair(rng: np.random.Generator, r: float) -> np.ndarray:
    x, y = rng.normal(size=(2, N))
    return np.stack([x, r * x + math.sqrt(1 - r * r) * y])


def of_normal(r: float) -> float:
    return -0.5 * math.log(1 - r * r)


def of_cells(edges: np.ndarray, r: float) -> float:
    """Of a normal pair of which one sees between which edges either side lies: y exactly, x by fine quadrature."""
    inner = np.linspace(-9, 9, 9001)
    weight = np.exp(-0.5 * inner**2)
    given = np.diff(ndtr((np.r_[-np.inf, edges, np.inf] - r * inner[:, None]) / math.sqrt(1 - r * r)), axis=1)
    cell = np.searchsorted(edges, inner)
    joint = np.stack([weight[cell == k] @ given[cell == k] for k in range(len(edges) + 1)]) / weight.sum()
    outer = joint.sum(1, keepdims=True) * joint.sum(0)
    return float(np.sum(joint[joint > 0] * np.log(joint[joint > 0] / outer[joint > 0])))


def rounded(width: float, r: float):
    edges = width * (np.arange(-int(6 / width), int(6 / width)) + 0.5)
    return lambda rng: np.round(normal_pair(rng, r) / width), of_cells(edges, r)


def clipped(at: float, r: float):
    return lambda rng: np.maximum(normal_pair(rng, r), at), of_cells(np.linspace(at, 6, 601), r)


def missing_apart(rng):
    return np.where(rng.random((2, N)) < [[0.1], [0.2]], -9999.0, normal_pair(rng, 0.9))


def missing_together(rng):
    return np.where(rng.random(N) < 0.1, FILL, normal_pair(rng, 0.8))


def step_in_a_ring(rng):
    x = rng.integers(0, 10, N)
    return x, (x + rng.integers(-1, 2, N)) % 10


def units(draw, x: float, y: float):
    return lambda rng: tuple(side * unit for side, unit in zip(draw[0](rng), (x, y), strict=True)), draw[1]


def independent(side):
    return lambda rng: (side(rng), side(rng)), 0.0


WITHOUT = {
    "rounded to .1": independent(lambda rng: rng.normal(size=N).round(1)),
    "rounded to .5": independent(lambda rng: np.round(2 * rng.normal(size=N))),
    "clipped at 0": independent(lambda rng: np.maximum(rng.normal(size=N), 0)),
    "clipped at -1": independent(lambda rng: np.maximum(rng.normal(size=N), -1)),
    "clipped at 1": independent(lambda rng: np.maximum(rng.normal(size=N), 1)),
    "counts": independent(lambda rng: rng.poisson(3, N)),
    "twenty labels": independent(lambda rng: rng.integers(0, 20, N)),
    "Cauchy's, rounded": independent(lambda rng: rng.standard_cauchy(N).round()),
    "counts with heavy tails": independent(lambda rng: rng.zipf(1.5, N).astype(float)),
    "zeros in 90 %, else exponential": independent(
        lambda rng: np.where(rng.random(N) < 0.9, 0, rng.exponential(size=N))
    ),
}
WITH = {
    **{f"rounded to {width}, {r}": rounded(width, r) for width in (0.1, 0.5, 1.0) for r in (0.5, 0.9)},
    **{f"clipped at {at}, {r}": clipped(at, r) for at in (-1.0, 0.0, 1.0) for r in (0.5, 0.8)},
    "rounded to .1, .8, in units": units(rounded(0.1, 0.8), 1e-20, 1e20),
    "clipped at 0, .8, in units": units(clipped(0.0, 0.8), 1e200, 1e-200),
    "rounded to .1, .8, heavy tails": (lambda rng: np.sinh(0.3 * rounded(0.1, 0.8)[0](rng)), rounded(0.1, 0.8)[1]),
    "missing apart": (missing_apart, 0.9 * 0.8 * of_normal(0.9)),
    "missing together": (
        missing_together,
        -0.1 * math.log(0.1) - 0.9 * math.log(0.9) + 0.9 * of_normal(0.8),
    ),
    "a step in a ring": (step_in_a_ring, math.log(10 / 3)),
}
HEAVY = {
    "normal": lambda z: z,
    "lognormal": lambda z: np.exp(3 * z),
    "cubed": lambda z: z**3,
    "Cauchy's": lambda z: np.tan(math.pi * (ndtr(z) - 0.5)),
}


def deviations(estimator, draw, truth: float, draws: int) -> list[float]:
    """Errors in stated errors."""
    estimates = [estimator(*draw(np.random.default_rng(seed))) for seed in range(draws)]
    return [abs(estimate.nats - truth) / estimate.stderr for estimate in estimates]


def given(z):
    """The conditional estimator beside a z that is independent of both."""
    return lambda x, y: conditional.mixed(x, y, z(np.random.default_rng(99)))


SIDES = {
    "alone": neighbours.mixed,
    "given clipped": given(lambda rng: np.maximum(rng.normal(size=N), 0)),
    "given rounded": given(lambda rng: rng.normal(size=N).round(1)),
    "given a label": given(lambda rng: rng.integers(0, 3, N)),
}


exhaustive = lambda *names: pytest.param(*names, marks=pytest.mark.exhaustive)  # noqa: E731
QUICK = ("alone", "given clipped")
QUICK_HEAVY = [("ksg", "lognormal", 0.9), ("conditional", "Cauchy's", 0.6)]


@pytest.mark.parametrize(
    ("law", "side"),
    [(law, side) if side in QUICK else exhaustive(law, side) for law in [*WITHOUT, *WITH] for side in SIDES],
)
def test_the_stated_error_covers_laws_with_ties(law, side):
    draw, truth = (WITHOUT | WITH)[law]
    assert max(deviations(SIDES[side], draw, truth, DRAWS if side not in QUICK else 1)) <= ERRORS


@pytest.mark.parametrize(
    ("law", "side", "draws"),
    [
        ("rounded to .1", "alone", 8),
        ("clipped at 0", "given clipped", 8),
        *(exhaustive(law, side, 60) for law in WITHOUT for side in SIDES),
    ],
)
def test_without_dependence_the_mean_of_many_draws_is_nothing(law, side, draws):
    """Ties that are counted all or none at the radius make .05 to .4 nats."""
    values = [SIDES[side](*WITHOUT[law][0](np.random.default_rng(seed))).nats for seed in range(draws)]
    assert abs(np.mean(values)) < 0.006 + 3 * np.std(values) / draws**0.5


def _thinned(rng):
    x = rng.exponential(10, N)
    z = rng.poisson(x)
    return x, rng.binomial(z, 0.5), z


def _counts_of_a_cause(rng):
    z = rng.poisson(3, N)
    return z + rng.integers(0, 2, N), z + rng.integers(0, 3, N), z


def _rounded_from_a_rounded_cause(rng):
    z = np.round(2 * rng.normal(size=N)) / 2
    return *(z + rng.normal(size=(2, N))).round(1), z


def _clipped_from_a_clipped_cause(rng):
    z = np.maximum(rng.normal(size=N), 0)
    return *np.maximum(z + rng.normal(size=(2, N)), 0), z


def _moved_by_a_label(rng):
    z, (x, y) = rng.integers(0, 3, N), np.round(2 * normal_pair(rng, 0.8))
    return x + 6 * z, y - 4 * z, z


def _of_rounded_series(rng):
    return transfer.embed_past(*np.round(rng.normal(size=(2, N)) / 0.3))


CONDITIONAL = {
    "a number, its count, and the count thinned": (_thinned, 0.0),
    "counts of a cause": (_counts_of_a_cause, 0.0),
    "rounded, of a rounded cause": (_rounded_from_a_rounded_cause, 0.0),
    "clipped, of a clipped cause": (_clipped_from_a_clipped_cause, 0.0),
    "moved by a label": (_moved_by_a_label, rounded(0.5, 0.8)[1]),
    "transfer of rounded series": (_of_rounded_series, 0.0),
}


@pytest.mark.parametrize("law", CONDITIONAL)
def test_the_stated_error_covers_conditional_laws_with_ties(law):
    assert max(deviations(conditional.mixed, *CONDITIONAL[law], DRAWS)) <= ERRORS


@pytest.mark.parametrize(
    ("estimator", "law", "r"),
    [
        *QUICK_HEAVY,
        *(
            exhaustive(estimator, law, r)
            for estimator in ("ksg", "mixed", "conditional")
            for law in HEAVY
            for r in (0.0, 0.6, 0.9)
            if (estimator, law, r) not in QUICK_HEAVY
        ),
    ],
)
def test_the_stated_error_covers_heavy_tails(estimator, law, r):
    """Information is that of the normal pair, whatever the map of each column."""

    def ask(x, y):
        z = np.random.default_rng(99).standard_cauchy(N)
        return conditional.ksg(x, y, z) if estimator == "conditional" else getattr(estimators, estimator)(x, y)

    draw = lambda rng: HEAVY[law](normal_pair(rng, r))  # noqa: E731
    assert max(deviations(ask, draw, of_normal(r), DRAWS)) <= ERRORS


def test_constants_have_none_whatsoever():
    one = np.ones(N)
    for estimate in (neighbours.mixed(one, one), conditional.mixed(one, one, one), neighbours.mixed(one, np.arange(N))):
        assert estimate.nats == pytest.approx(0, abs=1e-12) and not estimate.notes


def test_a_law_that_hides_its_information_in_its_tails_is_noted():
    x, y = np.exp(3 * normal_pair(np.random.default_rng(0), 0.9))
    assert "heavy tails" in estimators.ksg(x, y).notes[-1]
    assert not estimators.ksg(np.log(x), np.log(y)).notes
