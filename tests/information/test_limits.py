"""Fano's inequality against every enumerable channel, and verdicts on chains that are valid and on one that leaks."""

import inspect
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.information import canonical, estimators, limits, samplers
from selssm_jax.information._estimate import Estimate
from selssm_jax.information.estimators import Training

EXACT = 1e-10


def binary(p: np.ndarray) -> np.ndarray:
    return -p * np.log(p) - (1 - p) * np.log1p(-p)


@pytest.mark.parametrize(("cardinality", "equivocation", "error"), [(10, 1.0, 0.217034), (2, 0.3, 0.088906)])
def test_values_of_the_theory(cardinality, equivocation, error):
    entropy = math.log(cardinality)
    assert limits.fano_error(entropy, entropy - equivocation, cardinality) == pytest.approx(error, abs=1e-6)


@pytest.mark.parametrize(("M", "L"), [(2, 1), (10, 1), (1000, 1), (10, 3), (10, 9)])
def test_it_inverts_fanos_function(M, L):
    with jax.enable_x64(True):
        p = np.linspace(1e-6, 1 - L / M - 1e-6, 201)
        F = binary(p) + p * math.log(M - L) + (1 - p) * math.log(L)
        np.testing.assert_allclose(
            limits.fano_error(jnp.full(201, math.log(M)), math.log(M) - F, M, list_size=L), p, atol=EXACT, rtol=1e-8
        )


def test_it_is_below_the_best_decoder_of_a_thousand_channels():
    """Random laws of X and channels to Y, some nearly deterministic; MAP is the best decoder, whose error is
    enumerated.
    """
    rng = np.random.default_rng(0)
    closest = 1.0
    for _ in range(1000):
        M, K = rng.integers(2, 9, 2)
        joint = rng.dirichlet(np.full(M, rng.uniform(0.1, 3)))[:, None] * rng.dirichlet(
            np.full(K, rng.uniform(0.02, 1)), size=M
        )
        p_x, p_y = joint.sum(1), joint.sum(0)
        entropy = -np.sum(p_x * np.log(p_x + 1e-300))
        information = max(np.sum(joint * np.log((joint + 1e-300) / (np.outer(p_x, p_y) + 1e-300))), 0.0)
        error = 1 - joint.max(axis=0).sum()
        bound = float(limits.fano_error(entropy, information, int(M)))
        assert bound <= error + 1e-5  # float32
        closest = min(closest, error - bound)
    assert closest < 1e-3  # and some channels reach it


def test_lists_of_the_best_decoder():
    """For a decoder that names the two likeliest."""
    rng = np.random.default_rng(1)
    for _ in range(100):
        joint = rng.dirichlet(np.full(5, 1.0))[:, None] * rng.dirichlet(np.full(4, 0.3), size=5)
        p_x, p_y = joint.sum(1), joint.sum(0)
        information = np.sum(joint * np.log(joint / np.outer(p_x, p_y)))
        error = 1 - np.sort(joint, axis=0)[-2:].sum()
        assert limits.fano_error(-np.sum(p_x * np.log(p_x)), information, 5, list_size=2) <= error + 1e-5


def test_sequences_of_the_best_decoder():
    """Three fair bits of which two are known, by their parity alone or plainly: mean error of a symbol."""
    words = np.array(list(itertools.product([0, 1], repeat=3)))
    for seen in (words[:, :2], np.stack([words[:, 0] ^ words[:, 1], words[:, 1] ^ words[:, 2]], axis=1)):
        error = np.mean([_best_symbol_error(words, seen, position) for position in range(3)])
        bound = float(limits.fano_error(3 * math.log(2), 2 * math.log(2), 2, length=3))
        assert 0 < bound <= error
        assert bound == pytest.approx(0.061490, abs=1e-5)  # h_b(p) = ln 2 / 3


def _best_symbol_error(words: np.ndarray, seen: np.ndarray, position: int) -> float:
    wrong = 0
    for value in np.unique(seen, axis=0):
        symbols = words[(seen == value).all(axis=1), position]
        wrong += min(symbols.sum(), len(symbols) - symbols.sum())
    return wrong / len(words)


def test_ends_shapes_and_derivative():
    entropy = math.log(4)
    assert limits.fano_error(entropy, entropy, 4) == 0
    assert limits.fano_error(entropy, math.inf, 4) == 0
    assert limits.fano_error(entropy, 0.0, 4) == pytest.approx(0.75)
    assert limits.fano_error(entropy, jnp.array([0.1, 0.2, 0.3]), 4).shape == (3,)
    with jax.enable_x64(True):
        value = lambda information: limits.fano_error(entropy, information, 4)  # noqa: E731
        slope = jax.grad(value)(0.7)
        assert slope == pytest.approx(float(value(0.7 + 1e-6) - value(0.7 - 1e-6)) / 2e-6, rel=1e-5)
        assert jax.grad(value)(2.0) == 0
    assert jax.jit(lambda i: limits.fano_error(entropy, i, 4))(0.7) == pytest.approx(
        float(limits.fano_error(entropy, 0.7, 4))
    )


def test_estimates_must_bound_from_above():
    entropy = math.log(4)
    upper = Estimate(0.5, 0.1, "upper", "bracket")
    assert limits.fano_error(entropy, upper, 4) == limits.fano_error(entropy, 0.7, 4)
    assert limits.fano_error(entropy, Estimate(0.5, math.nan, "exact", "closed form"), 4) == limits.fano_error(
        entropy, 0.5, 4
    )
    with pytest.raises(ValueError, match=r"a 'lower' value \(probe\): only an upper bound"):
        limits.fano_error(entropy, Estimate(0.5, 0.1, "lower", "probe"), 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"list_size": 4}, "list_size=4 of cardinality=4"),
        ({"cardinality": 1}, "list_size=1 of cardinality=1"),
        ({"length": 0}, "length=0, expected at least 1"),
        ({"entropy": 1.5}, "entropy=1.5 nats, expected from 0 to length"),
        ({"information": -0.1}, "information=-0.1.* nats, expected at least 0"),
    ],
)
def test_mistakes_of_fano(change, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(limits.fano_error)(**({"entropy": 1.0, "information": 0.5, "cardinality": 4} | change))


def test_two_hundred_valid_chains_are_never_violated():
    """Exact upstream, unbiased Gaussian values with their errors taken for lower bounds downstream, 1,000 samples each.

    Between the two limits lie 3.7 standard errors: one false alarm in 10,000. benchmarks/memory.py has the neural
    bounds.
    """
    for seed in range(200):
        chain = samplers.markov_chain(jax.random.key(seed), 1000, dim=2, upstream=0.3 + 0.005 * seed, downstream=2.5)
        found = canonical.gaussian(chain.x, chain.compressed)
        downstream = Estimate(found.nats, found.stderr, "lower", "Gaussian law, known")
        assert (
            limits.data_processing(Estimate(chain.upstream, 0.0, "exact", "closed form"), downstream).status
            != "violated"
        )


def test_a_leak_of_three_tenths_of_a_nat_is_found():
    chain = samplers.markov_chain(jax.random.key(0), 5000, upstream=0.5, downstream=6.0, leak=0.3)
    assert chain.total - chain.upstream > 0.25
    found = limits.data_processing(
        Estimate(chain.upstream, 0.0, "exact", "closed form"),
        estimators.hybrid(chain.x, chain.compressed, training=Training(steps=200, width=64)),
    )
    assert found.status == "violated" and found.slack < 0 and "at least" in found.reason


def test_verdicts():
    up, down = Estimate(1.0, 0.05, "upper", "a"), Estimate(0.5, 0.05, "lower", "b")
    assert limits.data_processing(up, down).status == "inconclusive"
    assert (
        limits.data_processing([up, Estimate(0.9, 0.01, "lower", "a")], Estimate(0.5, 0.01, "upper", "b")).status
        == "consistent"
    )
    assert limits.data_processing(up, Estimate(2.0, 0.05, "lower", "b")).status == "violated"
    assert limits.data_processing(up, Estimate(1.1, 0.05, "lower", "b")).status == "inconclusive"  # within the errors
    missing = limits.data_processing(Estimate(1.0, 0.1, "estimate", "a"), down)
    assert (
        missing.status == "inconclusive"
        and math.isnan(missing.slack)
        and "an upper bound upstream would be needed" in missing.reason
    )
    with pytest.raises(ValueError, match=r"confidence=0\.3"):
        limits.data_processing(up, down, confidence=0.3)
