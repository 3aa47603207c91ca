"""Conditional information: the closed form against determinants, estimators against their definitions and laws of known
truth, and what they refuse.
"""

import inspect
import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import digamma

from selssm_jax.information import conditional, discrete, transfer

N = 3000
CLOSE = 0.05  # nats


def log_det(cov: np.ndarray, *groups: list[int]) -> float:
    rows = [row for group in groups for row in group]
    return float(np.linalg.slogdet(cov[np.ix_(rows, rows)])[1])


def by_determinants(cov: np.ndarray, x: list[int], y: list[int], z: list[int]) -> float:
    scale = np.diagonal(cov) ** -0.5
    cov = cov * scale[:, None] * scale[None]
    return (log_det(cov, x, z) + log_det(cov, y, z) - log_det(cov, z) - log_det(cov, x, y, z)) / 2


@pytest.mark.parametrize("seed", range(20))
def test_the_closed_form_is_that_of_determinants(seed):
    """In any units; up to eight components in any groups."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 9))
    root = rng.normal(size=(n, n + 2)) * 10.0 ** rng.integers(-12, 12, size=(n, 1))
    order, first = rng.permutation(n).tolist(), int(rng.integers(1, n - 1))
    second = int(rng.integers(first + 1, n + 1))
    groups = order[:first], order[first:second], order[second:]
    assert conditional.of_covariance(root @ root.T, *groups) == pytest.approx(
        by_determinants(root @ root.T, *groups), abs=1e-9
    )


def test_small_information_has_all_its_digits():
    """x and y share 1e-8 of their deviation beside z: 1/2 rho^2 = 5e-17 nats, which a difference of determinants
    cannot see.
    """
    z, x, y = np.eye(3)
    root = np.stack([z, z + x, z + 1e-8 * x + y])
    assert conditional.of_covariance(root @ root.T, [1], [2], [0]) == pytest.approx(5e-17, rel=1e-6)


def test_what_is_known_without_noise():
    e = np.eye(3)
    root = np.stack([e[0], 2 * e[0], e[0] + e[1], e[1], e[2]])
    cov = root @ root.T
    assert conditional.of_covariance(cov, [1], [2], [0]) == 0.0  # z tells x: nothing is left of it
    assert conditional.of_covariance(cov, [2], [3], [0]) == math.inf  # given z they are the same
    assert conditional.of_covariance(cov, [2], [3], [0, 1]) == math.inf  # a given part twice is one
    assert conditional.of_covariance(cov, [2], [3]) == pytest.approx(0.5 * math.log(2), abs=1e-12)
    assert conditional.of_covariance(cov * 0, [0], [1], [2]) == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cov": np.eye(4)[:3]}, r"cov has shape \(3, 4\)"),
        ({"cov": np.full((4, 4), np.nan)}, "cov holds nan"),
        ({"cov": 1j * np.eye(4)}, "expected real numbers"),
        ({"cov": np.ma.masked_equal(np.eye(4), 0)}, "cov has 12 masked values"),
        ({"cov": np.eye(4) + np.eye(4, k=1)}, "not symmetric"),
        ({"cov": np.ones((4, 4)) - 0.5 * np.eye(4)}, "no covariance"),
        ({"x": [4]}, "whole numbers from 0 to 3"),
        ({"x": [-1]}, "whole numbers from 0 to 3"),
        ({"z": [0]}, "each in one of them, once"),
        ({"y": []}, "y has no rows"),
    ],
)
def test_bad_covariances_and_rows_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(conditional.of_covariance)(**{"cov": np.eye(4), "x": [0], "y": [1], "z": [2]} | change)


def slow_ksg(x: np.ndarray, y: np.ndarray, z: np.ndarray, k: int) -> float:
    """The definition, all pairs at once."""
    sides = [np.abs(side[:, None] - side[None]).max(-1) for side in (x, y, z)]
    joint = np.maximum.reduce(sides) + np.diag(np.full(len(x), np.inf))
    radius = np.sort(joint, axis=1)[:, k - 1 : k]
    counts = [(np.maximum(side, sides[2]) < radius).sum(1) for side in (*sides[:2], sides[2])]  # with itself
    return digamma(k) + np.mean(digamma(counts[2]) - digamma(counts[0]) - digamma(counts[1]))


@pytest.mark.parametrize("k", [1, 5])
def test_neighbours_are_those_of_the_definition(k):
    x, y, z = np.random.default_rng(0).normal(size=(3, 200, 2))
    y, z = y + x, (z + x + y)[:, :1]
    standard = [(side - side.mean(0)) / side.std(0) for side in (x, y, z)]
    assert conditional.ksg(x, y, z, k=k).nats == pytest.approx(slow_ksg(*standard, k), abs=1e-9)


def test_the_gaussian_value_is_unbiased():
    """Given four columns and of 30 samples, frequent values lie far from the truth, and their mean does not."""
    rng = np.random.default_rng(0)
    values = []
    for _ in range(400):
        z = rng.normal(size=(30, 4))
        x = z.sum(1) + rng.normal(size=30)
        y = np.stack([x + rng.normal(size=30), z[:, 0] + rng.normal(size=30)], axis=1)
        values.append(conditional.gaussian(x, y, z).nats)
    assert abs(np.mean(values) - 0.5 * math.log(2)) < 4 * np.std(values) / 20


def _gaussian_of(build):
    """A law of three Gaussian sides, rows of a map of independent normal numbers, with the truth by determinants."""

    def draw(rng: np.random.Generator):
        maps = [np.atleast_2d(side) for side in build()]
        root = np.concatenate(maps)
        ends = np.cumsum([0, *(len(side) for side in maps)])
        groups = [list(range(start, end)) for start, end in itertools.pairwise(ends)]
        noise = rng.normal(size=(N, root.shape[1]))
        truth = by_determinants(root @ root.T, *groups)
        return (*(noise @ side.T for side in maps), truth)

    return draw


def _chain():
    a, b, c = np.eye(3)
    return a, a + b + c, a + b  # x -> z -> y


def _common_cause():
    a, b, c = np.eye(3)
    return a + b, a + c, a


def _collider():
    a, b, c = np.eye(3)
    return a, b, a + b + 0.7 * c


def _cause_beside_a_common_one():
    a, b, c = np.eye(3)
    return a + b, a + 0.8 * (a + b) + c, a


def _columns():
    a, b, c, d, e = np.eye(5)
    return np.stack([a + c, b]), a + b + d, np.stack([a, a - b + 0.5 * e])


def _bent(rng: np.random.Generator):
    """Given z both are normal: of additive noise that they share, 1/2 log(1 + b^2 / s^2)."""
    z, own, other = rng.normal(size=(3, N))
    x = np.sin(2 * z) + 0.5 * own
    return x, z**2 / 2 + 0.8 * (x - np.sin(2 * z)) + 0.5 * other, z, 0.5 * math.log(1 + 0.8**2)


def binary_entropy(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


def _parity(rng: np.random.Generator):
    """Independent bits, and their parity through a channel that flips a tenth: I(x; y) = 0, I(x; y | z) = log 2 - h."""
    x, y = rng.integers(0, 2, (2, N))
    return x, y, x ^ y ^ (rng.random(N) < 0.1), math.log(2) - binary_entropy(0.1)


def _copies(rng: np.random.Generator):
    """Two noisy copies of one of three symbols."""
    z = rng.integers(0, 3, N)
    x, y = (np.where(rng.random(N) < 0.3, rng.integers(0, 3, N), z) for _ in range(2))
    return x, y, z, 0.0


def autoregress(rng: np.random.Generator, coefficients: np.ndarray, steps: int) -> np.ndarray:
    """A stationary series of unit noise."""
    p, m, _ = coefficients.shape
    series = np.zeros((steps + 200, m))
    noise = rng.normal(size=series.shape)
    for t in range(p, len(series)):
        series[t] = noise[t] + sum(F @ series[t - 1 - back] for back, F in enumerate(coefficients))
    return series[200:]


def _transfer(coefficients, lags, *given):
    F = np.array(coefficients)

    def draw(rng: np.random.Generator):
        series = autoregress(rng, F, N)
        truth = transfer.of_autoregression(F, np.eye(F.shape[1]), source=[0], target=[1], given=given, lags=lags)
        others = series[:, list(given)] if given else None
        return (*transfer.embed_past(series[:, 0], series[:, 1], others, lags=lags), truth)

    return draw


def _driven(rng: np.random.Generator):
    """y_t = 2 tanh(y_{t-1}) + x_{t-1} + e_t of independent x_t: 1/2 log 2 nats."""
    x, e = rng.normal(size=(2, N))
    y = np.zeros(N)
    for t in range(1, N):
        y[t] = 2 * np.tanh(y[t - 1]) + x[t - 1] + e[t]
    return (*transfer.embed_past(x, y), 0.5 * math.log(2))


def _shifted_channel(rng: np.random.Generator):
    """A bit sent a step late through a channel that flips a fifth."""
    x = rng.integers(0, 2, N)
    return (*transfer.embed_past(x, np.roll(x, 1) ^ (rng.random(N) < 0.2)), math.log(2) - binary_entropy(0.2))


def _parity_with_the_past(rng: np.random.Generator):
    """y_t = x_{t-1} + y_{t-1} + flip, of bits: all that y does not know of itself is x."""
    x, flip = rng.integers(0, 2, N), (rng.random(N) < 0.1).astype(int)
    y = np.cumsum(np.roll(x, 1) + flip) % 2
    return (*transfer.embed_past(x, y), math.log(2) - binary_entropy(0.1))


def _label_beside_numbers(rng: np.random.Generator):
    """A coin x decides on which side of z the number y lies: log 2 less what noise of as much hides, by quadrature."""
    x, z, e = rng.integers(0, 2, N), *rng.normal(size=(2, N))
    grid = np.linspace(-12, 12, 20_001)
    normal = lambda at: np.exp(-0.5 * (grid - at) ** 2) / math.sqrt(2 * math.pi)  # noqa: E731
    p = (normal(-1.5) + normal(1.5)) / 2
    truth = -np.sum(p * np.log(p)) * (grid[1] - grid[0]) - 0.5 * math.log(2 * math.pi * math.e)
    return x, 3.0 * x - 1.5 + z + e, z, truth


BOTH, BENT, LABELS = ("gaussian", "ksg"), ("ksg",), ("discrete", "mixed")
LAWS = {
    "chain": (_gaussian_of(_chain), BOTH),
    "common cause": (_gaussian_of(_common_cause), BOTH),
    "collider": (_gaussian_of(_collider), BOTH),
    "cause beside a common one": (_gaussian_of(_cause_beside_a_common_one), BOTH),
    "two, one and two columns": (_gaussian_of(_columns), BOTH),
    "bent common cause": (_bent, BENT),
    "parity of bits": (_parity, LABELS),
    "two copies of a symbol": (_copies, LABELS),
    "a label beside numbers": (_label_beside_numbers, ("mixed",)),
    "transfer, first order": (_transfer([[[0.6, 0.0], [0.5, 0.5]]], 1), BOTH),
    "no transfer, the other way round": (_transfer([[[0.6, 0.5], [0.0, 0.5]]], 1), BOTH),
    "transfer beside a common driver": (
        _transfer([[[0.4, 0.0, 0.6], [0.4, 0.4, 0.6], [0.0, 0.0, 0.5]]], 1, 2),
        BOTH,
    ),
    "transfer, second order": (_transfer([[[0.3, 0.0], [0.4, 0.4]], [[0.2, 0.0], [-0.5, 0.2]]], 2), BOTH),
    "transfer into a bent recurrence": (_driven, BENT),
    "transfer of bits": (_shifted_channel, LABELS),
    "transfer of a parity": (_parity_with_the_past, LABELS),
}


@pytest.mark.parametrize(("name", "estimator"), [(name, how) for name, (_, hows) in LAWS.items() for how in hows])
def test_laws_of_known_information(name, estimator):
    x, y, z, truth = LAWS[name][0](np.random.default_rng(0))
    estimate = getattr(conditional, estimator)(x, y, z)
    assert estimate.direction == "estimate"
    assert abs(estimate.nats - truth) < CLOSE and abs(estimate.nats - truth) < 4 * estimate.stderr + 0.01


def test_the_laws_are_not_all_silent():
    truths = [LAWS[name][0](np.random.default_rng(0))[3] for name in LAWS]
    assert sum(truth > 2 * CLOSE for truth in truths) >= 10


@pytest.mark.parametrize(
    "correction", ["none", "miller-madow", "chao-shen", pytest.param("nsb", marks=pytest.mark.exhaustive)]
)
def test_labels_of_a_known_law_and_their_counts(correction):
    p = np.random.default_rng(0).dirichlet(np.ones(24)).reshape(2, 3, 4)
    by_z = [
        p[..., z].sum() * float(discrete.information_of(jnp.asarray(p[..., z] / p[..., z].sum()))) for z in range(4)
    ]
    truth = float(discrete.conditional_information_of(jnp.asarray(p)))
    assert truth == pytest.approx(sum(by_z), abs=1e-6)
    counts = np.round(1e6 * p).astype(int)
    assert discrete.conditional_information(counts, correction=correction).nats == pytest.approx(truth, abs=1e-4)


def test_corrected_counts_of_nothing_are_nothing():
    """Frequencies of 200 samples in 3 x 3 x 8 cells find (2 * 2 * 8) / 400 = 0.08 nats."""
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, [[3], [3], [8]], (3, 200)) for _ in range(60)]
    plain, mended = (
        [conditional.discrete(*draw, correction=correction) for draw in draws]
        for correction in ("none", "miller-madow")
    )
    assert np.mean([estimate.nats for estimate in plain]) == pytest.approx(0.08, rel=0.3)
    assert abs(np.mean([estimate.nats for estimate in mended])) < 0.3 * 0.08
    assert all(abs(estimate.nats) < 3 * estimate.stderr for estimate in plain)


def test_columns_of_labels_are_one_label():
    x, y, z, w = np.random.default_rng(0).integers(0, 2, (4, 500))
    joined = conditional.discrete(x, y, 2 * z + w)
    assert conditional.discrete(x, y, np.stack([z, w], axis=1)).nats == pytest.approx(joined.nats, abs=1e-12)


@pytest.mark.parametrize("estimator", ["gaussian", "ksg"])
@pytest.mark.parametrize(("unit", "place"), [(1e-20, 0.0), (1.0, 1e8), (1e25, 0.0)])
def test_neither_units_nor_places_matter(estimator, unit, place):
    x, y, z, _ = LAWS["collider"][0](np.random.default_rng(0))
    ask = getattr(conditional, estimator)
    x, y, z = x[:500], y[:500], z[:500]
    assert ask(unit * x + place, y, unit * z - place).nats == pytest.approx(ask(x, y, z).nats, abs=1e-6)


def test_constants_and_copies_are_named_and_change_nothing():
    x, y, z, _ = LAWS["collider"][0](np.random.default_rng(0))
    constant, more = np.full(N, 3.0), np.concatenate([z, 2 * z, np.ones((N, 1))], axis=1)
    assert conditional.gaussian(x, y, more).nats == pytest.approx(conditional.gaussian(x, y, z).nats, abs=1e-9)
    nothing = conditional.gaussian(constant, y, z)
    assert nothing.nats == 0 and "columns of x follow from z" in nothing.notes[0]
    known = conditional.gaussian(3 * z - 1, y, z)
    assert known.nats == 0 and "columns of x follow from z" in known.notes[0]
    shared = conditional.gaussian(x + z, x - z, z)
    assert shared.nats == math.inf and "without noise" in shared.notes[-1]
    with pytest.warns(UserWarning, match="samples coincide"):
        estimate = conditional.ksg(x, y, np.concatenate([z, constant[:, None]], axis=1))
    assert abs(estimate.nats - conditional.ksg(x, y, z).nats) < 0.02 and "ties" in estimate.notes[0]


def test_ties_that_mean_something_are_warned_of():
    """A label as z among numbers: neighbours within a label, as if each were asked alone."""
    rng = np.random.default_rng(0)
    z = rng.integers(0, 3, N)
    x = 2.0 * z + rng.normal(size=N)
    y = 3.0 * z + (x - 2 * z) + rng.normal(size=N)
    with pytest.warns(UserWarning, match="conditional.mixed"):
        estimate = conditional.ksg(x, y, z)
    assert abs(estimate.nats - 0.5 * math.log(2)) < CLOSE
    assert abs(conditional.mixed(x, y, z).nats - 0.5 * math.log(2)) < CLOSE


def test_mixtures_are_ksg_of_numbers_and_counts_of_labels():
    x, y, z, _ = LAWS["collider"][0](np.random.default_rng(0))
    assert conditional.mixed(x, y, z).nats == pytest.approx(conditional.ksg(x, y, z).nats, abs=1e-12)
    x, y, z, _ = LAWS["parity of bits"][0](np.random.default_rng(0))
    counted = conditional.discrete(x, y, z, correction="none").nats
    assert conditional.mixed(x, y, z).nats == pytest.approx(counted, abs=2e-3)  # psi(n) is log n - 1/2n


def test_many_columns_are_said_to_lose_information():
    x, y, *z = np.random.default_rng(0).normal(size=(8, 100))
    assert "outside of what nearest neighbours are good for" in conditional.ksg(x, y, np.stack(z, axis=1)).notes[-1]


@pytest.mark.filterwarnings("ignore:samples coincide")
@pytest.mark.parametrize("estimator", ["gaussian", "ksg", "mixed"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z": np.full(50, np.nan)}, "z holds nan"),
        ({"z": np.zeros(49)}, "x has 50 rows and z has 49"),
        ({"y": np.zeros(49)}, "x has 50 rows and y has 49"),
        ({"z": np.zeros((50, 2, 2))}, "z has shape"),
        ({"z": 1j * np.ones(50)}, "z has shape .* complex"),
        ({"x": np.ma.masked_equal(np.arange(50.0), 3)}, "masked"),
        ({name: np.zeros(3) for name in "xyz"}, "samples|neighbours"),
    ],
)
def test_bad_samples_are_named(estimator, change, message):
    samples = dict(zip("xyz", np.random.default_rng(0).normal(size=(3, 50)), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(getattr(conditional, estimator))(**samples)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z": np.zeros(20)}, "z has dtype float64, expected labels"),
        ({"y": np.zeros(19, int)}, "expected the same"),
        ({"z": np.array(["a"] * 20)}, "z has dtype <U1, expected labels"),
    ],
)
def test_bad_labels_are_named(change, message):
    labels = dict.fromkeys("xyz", np.zeros(20, int)) | change
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(conditional.discrete)(**labels)


def test_tables_of_too_many_cells_are_refused():
    x, y, z = np.random.default_rng(0).permuted(np.tile(np.arange(300), (3, 1)), axis=1)
    with pytest.raises(ValueError, match="merge rare labels"):
        conditional.discrete(x, y, z)
    with pytest.raises(ValueError, match="p_xyz has shape"):
        inspect.unwrap(discrete.conditional_information_of)(jnp.eye(2) / 2)
