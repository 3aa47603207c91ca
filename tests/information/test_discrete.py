"""Entropy and information of labels: exact laws, corrections against what they should mend, degenerate counts,
errors.
"""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.information import discrete

CORRECTED = ("miller-madow", "chao-shen", "nsb")


def draws(p: np.ndarray, count: int, repetitions: int) -> np.ndarray:
    return np.random.default_rng(0).multinomial(count, p.ravel(), size=repetitions).reshape(-1, *p.shape)


def test_exact_laws():
    assert discrete.entropy_of(jnp.array([0.5, 0.25, 0.25, 0.0])) == pytest.approx(1.5 * math.log(2))
    flip = jnp.array([[0.4, 0.1], [0.1, 0.4]])
    assert discrete.information_of(flip) == pytest.approx(
        math.log(2) + 0.8 * math.log(0.8) + 0.2 * math.log(0.2), abs=1e-6
    )
    assert discrete.information_of(jnp.outer(jnp.array([0.3, 0.7]), jnp.array([0.2, 0.8]))) == pytest.approx(
        0, abs=1e-6
    )
    gradient = jax.grad(discrete.entropy_of)(jnp.array([0.2, 0.8]))
    np.testing.assert_allclose(gradient, -np.log([0.2, 0.8]) - 1, rtol=1e-6)


@pytest.mark.parametrize("correction", discrete.CORRECTIONS)
def test_many_samples_need_no_correction(correction):
    p = np.array([0.4, 0.3, 0.2, 0.1])
    counts = (1_000_000 * p).astype(int)
    assert discrete.entropy(counts, correction=correction).nats == pytest.approx(-(p @ np.log(p)), abs=1e-4)


@pytest.mark.parametrize("correction", CORRECTED)
@pytest.mark.parametrize(("symbols", "count"), [(20, 40), (100, 100)])
def test_corrections_mend_most_of_the_bias_of_few_samples(correction, symbols, count):
    """Of a uniform law and one that falls off; plain frequencies lose up to half a nat here."""
    for p in (np.full(symbols, 1 / symbols), np.arange(1.0, symbols + 1) ** -0.5):
        p = p / p.sum()
        truth = -(p @ np.log(p))
        bias = {
            kind: np.mean([discrete.entropy(c, correction=kind).nats for c in draws(p, count, 30)]) - truth
            for kind in ("none", correction)
        }
        assert bias["none"] < -0.15
        assert abs(bias[correction]) < 0.6 * abs(bias["none"])


def test_nsb_is_best_where_nearly_nothing_repeats():
    """A uniform law over 1,000 symbols and 100 samples: NSB sees it by the few repetitions, to three of its own
    deviations.
    """
    counts = draws(np.full(1000, 1e-3), 100, 5)
    found = [discrete.entropy(c, correction="nsb") for c in counts]
    assert all(abs(one.nats - math.log(1000)) < 3 * one.stderr for one in found)
    assert np.mean([discrete.entropy(c).nats for c in counts]) < math.log(100)
    assert all("rough" in one.notes[0] for one in found) and all(0 < one.stderr < 0.5 for one in found)


def test_nsb_equals_its_integral():
    """Two symbols, counts (3, 1): the posterior mean by brute force over the law and the concentration."""
    from scipy.special import betaln, polygamma  # the reference alone needs it

    counts = np.array([3, 1])
    beta, q = np.geomspace(1e-6, 1e6, 4001), (np.arange(20000) + 0.5) / 20000
    weight = (
        (2 * polygamma(1, 2 * beta + 1) - polygamma(1, beta + 1))
        * beta
        * np.exp(betaln(counts[0] + beta, counts[1] + beta) - betaln(beta, beta))
    )
    h = -q * np.log(q) - (1 - q) * np.log(1 - q)
    posterior = np.exp(
        (counts[0] + beta[:, None] - 1) * np.log(q)
        + (counts[1] + beta[:, None] - 1) * np.log1p(-q)
        - betaln(counts[0] + beta, counts[1] + beta)[:, None]
    )
    mean = (posterior * h).mean(axis=1)
    assert discrete.entropy(counts, correction="nsb").nats == pytest.approx(weight @ mean / weight.sum(), abs=2e-3)


def test_the_error_is_the_spread():
    p = np.array([0.6, 0.3, 0.1])
    found = [discrete.entropy(c) for c in draws(p, 500, 400)]
    assert np.mean([one.stderr for one in found]) == pytest.approx(np.std([one.nats for one in found]), rel=0.15)


def test_information_of_independent_labels_is_corrected_to_nothing():
    """Frequencies find (K - 1)^2 / 2N = 0.1 nats in nothing, to first order, which is what Miller and Madow take
    away.
    """
    p = np.full((6, 6), 1 / 36)
    found = {
        kind: np.mean([discrete.mutual_information(c, correction=kind).nats for c in draws(p, 125, 50)])
        for kind in ("none", "miller-madow")
    }
    assert found["none"] == pytest.approx(0.1, rel=0.25) and abs(found["miller-madow"]) < 0.3 * found["none"]


@pytest.mark.parametrize("correction", discrete.CORRECTIONS)
def test_the_error_of_sparse_counts_holds_their_bias(correction):
    """2,000 pairs of independent pixels, 65,536 cells: frequencies find 3.8 nats, Miller and Madow's correction 3.7."""
    counts = discrete.count(*np.random.default_rng(0).integers(0, 256, (2, 2000)))
    found = discrete.mutual_information(counts, correction=correction)
    assert abs(found.nats) <= 1.2 * found.stderr


def test_labels_that_tell_one_another_have_no_bias_to_hold():
    """Each cell of the diagonal is many times counted, whatever pairs at random would do."""
    found = discrete.mutual_information(np.diag(np.full(50, 10)), correction="miller-madow")
    assert abs(found.nats - math.log(50) - 49 / 1000) < 1e-9 and found.stderr < 0.1


def test_labels_in_the_order_of_time_are_moved_and_not_mixed():
    """Two series of runs of one label each: pairs of mixed rows would know nothing of the runs, and find a dependence
    that is none.
    """
    x, y = (np.repeat(np.random.default_rng(seed).integers(0, 3, 60), 20) for seed in range(2))
    assert discrete.of_labels(x, y).excess > 10
    moved = discrete.of_labels(x, y, shuffle=False)
    assert moved.excess < 4 and abs(moved.estimate.nats) < 3 * moved.estimate.stderr


@pytest.mark.parametrize("correction", discrete.CORRECTIONS)
def test_information_of_a_noisy_channel(correction):
    p = 0.25 * (0.6 * np.eye(4) + 0.1)
    counts = draws(p, 5000, 1)[0]
    found = discrete.mutual_information(counts, correction=correction)
    assert abs(found.nats - float(discrete.information_of(jnp.asarray(p)))) < 3 * found.stderr
    assert found.direction == "estimate"


def test_labels_are_counted():
    table = discrete.count(np.array([7, -1, 7, 7]), np.array([2, 2, 3, 3]))
    np.testing.assert_array_equal(table, [[1, 0], [1, 2]])


@pytest.mark.parametrize("correction", discrete.CORRECTIONS)
@pytest.mark.parametrize("counts", [[5], [5, 0, 0], [1, 0], [1, 1, 1, 1]])
def test_degenerate_counts_are_finite(counts, correction):
    found = discrete.entropy(np.array(counts), correction=correction)
    assert np.isfinite([found.nats, found.stderr]).all() and found.nats >= -1e-9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda f: f.entropy(np.array([1, 2]), correction="jackknife"),
            "correction='jackknife' is unknown: use one of none, miller-madow",
        ),
        (lambda f: f.entropy(np.array([0.5, 0.5])), "expected integers"),
        (lambda f: f.entropy(np.array([[1, 2]])), "expected integers with 1 axes"),
        (lambda f: f.entropy(np.array([-1, 2])), "counts go from -1"),
        (lambda f: f.entropy(np.array([0, 0])), "sum to 0"),
        (lambda f: f.count(np.array([0.5]), np.array([1])), "expected integers: number them first"),
        (lambda f: f.count(np.array([1, 2]), np.array([1])), r"x has shape \(2,\) and y \(1,\), expected the same"),
    ],
)
def test_mistakes(call, message):
    class Unchecked:
        """The functions without the type checker of the tests, which would answer first."""

        def __getattr__(self, name):
            return inspect.unwrap(getattr(discrete, name))

    with pytest.raises(ValueError, match=message):
        call(Unchecked())


def _few_labels(labels: int, samples: int, kept: float):
    """The second label is the first in so many cases, else any."""
    p = np.full((labels, labels), (1 - kept) / labels**2) + kept / labels * np.eye(labels)
    truth = float(np.sum(p[p > 0] * np.log(p[p > 0] * labels**2)))

    def draw(seed: int):
        rng = np.random.default_rng(seed)
        x, other = rng.integers(0, labels, (2, samples))
        return x, np.where(rng.random(samples) < kept, x, other), rng.integers(0, 2, samples)

    return draw, truth


@pytest.mark.parametrize("correction", ["none", "miller-madow", "chao-shen"])
@pytest.mark.parametrize(
    ("labels", "samples", "kept"),
    [(20, 60, 0), (20, 400, 0), (5, 100, 0), (2, 20, 0), (20, 1000, 0.5), (4, 100, 0.5), (20, 60, 1), (4, 60, 1)],
)
def test_the_stated_error_covers_few_samples_of_many_cells(labels, samples, kept, correction):
    """Corrections are wrong there, by much where most cells are seen once, and each in its own way."""
    draw, truth = _few_labels(labels, samples, kept)
    for seed in range(6):
        x, y, z = draw(seed)
        alone = discrete.mutual_information(discrete.count(x, y), correction=correction)
        given = discrete.conditional_information(discrete.count(x, y, z), correction=correction)
        assert all(abs(estimate.nats - truth) <= 3 * estimate.stderr + 1e-9 for estimate in (alone, given))
