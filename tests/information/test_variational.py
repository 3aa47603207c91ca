"""The rate is an upper bound on what states hold, equal to it where it can be, and its gradient passes through fixed
moments.
"""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.information import bracket, gaussian, variational

RNG = np.random.default_rng(0)


def laws(M: int = 50, n: int = 3) -> tuple[jax.Array, jax.Array]:
    return jnp.asarray(RNG.normal(size=(M, n)), jnp.float32), jnp.asarray(RNG.uniform(0.1, 2, (M, n)), jnp.float32)


def linear(n: int, T: int, *, B: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """A gated layer with a fixed sequence of gates, q = 0.5: A_t, B_t and Q_t as the recurrence takes them."""
    rng = np.random.default_rng(seed)
    g = rng.uniform(0.1, 1, (T, n))
    return {"A": 1 - g * (1 - rng.uniform(0.5, 0.95, n)), "B": g[:, :, None] * B, "Q": 0.5 * g**2}


def simulate(system: dict[str, np.ndarray], M: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means (T, M, n) and variances (T, M, n) of states given unit white inputs, and B_t x_t."""
    rng = np.random.default_rng(seed)
    drives = np.einsum("tnm,tkm->tkn", system["B"], rng.normal(size=(len(system["B"]), M, system["B"].shape[-1])))
    means, variances = np.zeros_like(drives), np.zeros_like(drives)
    mean, variance = np.zeros_like(drives[0]), np.zeros_like(drives[0])
    for t, A in enumerate(system["A"]):
        mean, variance = A * mean + drives[t], A**2 * variance + system["Q"][t]
        means[t], variances[t] = mean, variance
    return means, variances, drives


def exact(system: dict[str, np.ndarray]) -> np.ndarray:
    A, B = (jnp.asarray(system[name], jnp.float32) for name in "AB")
    return np.asarray(
        gaussian.state_information(
            A, B, jnp.eye(B.shape[-1]), jax.vmap(jnp.diag)(jnp.asarray(system["Q"], jnp.float32))
        )
    )


def test_divergence_is_the_integral():
    means, variances = laws(1, 1)
    r = variational.Marginal(jnp.array([0.3]), jnp.array([1.7]))
    h = np.linspace(-14, 14, 20001)
    p, q = (
        np.exp(-0.5 * (h - m) ** 2 / v) / np.sqrt(2 * np.pi * v)
        for m, v in ((float(means[0, 0]), float(variances[0, 0])), (0.3, 1.7))
    )
    kept = p > 0
    assert float(variational.divergence(means, variances, r)[0]) == pytest.approx(
        float((p * np.log(p / q))[kept].sum() * (h[1] - h[0])), rel=1e-4
    )


def test_the_best_independent_normal_law_has_the_states_own_moments():
    means, variances = laws()
    r = variational.marginal(means, variances)
    states = np.asarray(means)[:, None] + np.sqrt(np.asarray(variances))[:, None] * RNG.normal(size=(50, 20000, 3))
    np.testing.assert_allclose(r.mean, states.mean((0, 1)), atol=0.01)
    np.testing.assert_allclose(r.variance, states.var((0, 1)), rtol=0.01)
    slope = jax.grad(lambda r: variational.divergence(means, variances, r).mean())(r)
    assert max(float(jnp.abs(part).max()) for part in slope) < 1e-6
    for other in (variational.Marginal(r.mean + 0.1, r.variance), variational.Marginal(r.mean, 1.2 * r.variance)):
        assert variational.divergence(means, variances, other).mean() > variational.rate(means, variances)
    closed = 0.5 * (jnp.log(r.variance) - jnp.log(variances).mean(0)).sum()
    assert float(variational.rate(means, variances)) == pytest.approx(float(closed), rel=1e-5)


def test_samples_of_no_weight_count_for_nothing_and_parts_merge():
    means, variances = laws()
    weights = jnp.asarray(RNG.uniform(size=50) * (np.arange(50) < 40), jnp.float32)
    whole = variational.rate(means, variances, weights)
    assert float(whole) == pytest.approx(float(variational.rate(means[:40], variances[:40], weights[:40])), rel=1e-5)

    def part(means, variances, weights):
        r = variational.marginal(means, variances, weights, total=lambda part: jax.lax.psum(part, "parts"))
        return jax.lax.psum(
            jnp.stack([(weights * variational.divergence(means, variances, r)).sum(), weights.sum()]), "parts"
        )

    halves = [value.reshape(2, 25, *value.shape[1:]) for value in (means, variances, weights)]
    total, weight = jax.vmap(part, axis_name="parts")(*halves)[0]
    assert float(total / weight) == pytest.approx(float(whole), rel=1e-5)


def test_moments_held_fixed_leave_the_gradient_as_it_is():
    given = laws()

    def held(means, variances):
        return variational.divergence(
            means, variances, jax.lax.stop_gradient(variational.marginal(means, variances))
        ).mean()

    for whole, part in zip(jax.grad(variational.rate, (0, 1))(*given), jax.grad(held, (0, 1))(*given), strict=True):
        np.testing.assert_allclose(whole, part, atol=1e-6)


def test_one_normal_component_is_its_information():
    system = linear(1, 12, B=np.array([[1.5]]))
    means, variances, _ = simulate(system, 100_000, 1)
    found = [
        float(variational.rate(jnp.asarray(mean), jnp.asarray(variance)))
        for mean, variance in zip(means, variances, strict=True)
    ]
    np.testing.assert_allclose(found, exact(system), atol=0.01)
    # theory, section 4.1: whatever the gates
    np.testing.assert_allclose(found, 0.5 * math.log(1 + 1.5**2 / 0.5), atol=0.01)
    # once the gates are constant and the state stationary, one r serves all times
    system = {name: np.concatenate([value[-1:]] * 60) for name, value in system.items()}
    pooled = [jnp.asarray(part[-10:].reshape(-1, 1)) for part in simulate(system, 20_000, 2)[:2]]
    assert float(variational.rate(*pooled)) == pytest.approx(float(exact(system)[-1]), abs=0.01)


@pytest.mark.parametrize("seed", range(3))
def test_correlated_components_hold_less_than_the_rate(seed):
    rng = np.random.default_rng(seed)
    system = linear(4, 15, B=rng.normal(size=(4, 2)), seed=seed)
    means, variances, _ = simulate(system, 20_000, seed)
    found = np.array(
        [
            float(variational.rate(jnp.asarray(mean), jnp.asarray(variance)))
            for mean, variance in zip(means, variances, strict=True)
        ]
    )
    assert (found > exact(system) + 0.05).all()
    pooled = variational.rate(*(jnp.asarray(part.reshape(-1, 4)) for part in (means, variances)))
    assert float(pooled) >= found.mean()  # one r for all times costs something, and bounds the mean


@pytest.mark.parametrize("gate", [lambda x: 1 / (1 + np.exp(-2 * x)), lambda x: 1 / (1 + np.abs(x))])
def test_gates_that_read_the_input_hold_less_than_the_rate(gate):
    rng = np.random.default_rng(3)
    x, w = rng.normal(size=(2, 4000, 1))
    g = gate(x)
    means, covs, states = (jnp.asarray(value, jnp.float32) for value in (g * x, g**2, g * (x + w)))
    found = bracket.state_information(means, covs, states)
    rate = float(variational.rate(means, covs))
    assert rate > float(found.lower - 2 * found.stderr)
    bound = bracket.upper_gaussian(covs, states)
    assert abs(rate - float(bound.nats)) < 3 * float(bound.stderr)  # one component: the cheap bound of the theory


def test_the_bias_of_own_moments_is_what_is_said():
    M, n, noise = 20, 200, 0.25
    draws = np.random.default_rng(5).normal(size=(100, M, n))
    found = jnp.stack([variational.rate(jnp.asarray(mean), jnp.full((M, n), noise)) for mean in draws]).mean()
    share = 1 / (1 + noise)
    truth = n * 0.5 * math.log(1 + 1 / noise)
    assert truth - float(found) == pytest.approx(n * share * (1 + share) / (2 * M), rel=0.1)
    assert truth - float(found) < n / M


@pytest.mark.parametrize("seed", range(3))
def test_no_clocked_gate_keeps_more_than_the_capacity(seed):
    rng = np.random.default_rng(seed)
    B = rng.normal(size=(3, 2))
    drives = rng.normal(size=(50_000, 2)) @ B.T
    capacity = float(variational.capacity(jnp.asarray(drives), jnp.full(3, math.sqrt(0.5))))
    assert capacity == pytest.approx(0.5 * np.log(1 + (B**2).sum(1) / 0.5).sum(), rel=0.01)
    assert (exact(linear(3, 30, B=B, seed=seed)) < capacity).all()
    apart = exact(linear(3, 30, B=np.diag(B[:, 0]), seed=seed))  # an input a component: all of it
    np.testing.assert_allclose(apart, 0.5 * np.log(1 + B[:, 0] ** 2 / 0.5).sum(), rtol=1e-3)


def test_gates_that_read_the_input_keep_more_than_the_capacity():
    """Why the capacity is asked of constant gates only (theory, section 4.2)."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4000, 1)), jnp.float32)
    assert float(variational.capacity(x, jnp.ones(1))) < 0.36 < 0.5903


MISTAKES = [
    ((jnp.ones(3), jnp.ones(3)), r"means has shape \(3,\), expected \(M, n\)"),
    ((jnp.ones((3, 2)), jnp.ones((3, 1))), r"variances has shape \(3, 1\), expected \(3, 2\)"),
    ((jnp.ones((3, 2)), jnp.ones((3, 2)), jnp.ones(2)), r"weights has shape \(2,\), expected \(3,\)"),
    ((jnp.ones((3, 2)), jnp.zeros((3, 2))), r"variances holds 0\.0, expected positive numbers: without noise"),
    ((jnp.ones((3, 2)), jnp.ones((3, 2)), jnp.zeros(3)), r"weights sum to 0\.0 .* expected none below 0"),
    ((jnp.ones((3, 2)), jnp.ones((3, 2)), jnp.array([2.0, -1.0, 1.0])), r"with -1\.0 among them"),
    ((jnp.full((3, 2), jnp.nan), jnp.ones((3, 2))), r"means holds nan, expected finite"),
]


@pytest.mark.parametrize(("given", "message"), MISTAKES)
def test_mistakes_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(variational.rate)(*given)  # without the hook, which refuses shapes before the function can


def test_capacity_without_noise_is_refused():
    with pytest.raises(ValueError, match=r"noise holds 0\.0, expected positive numbers"):
        variational.capacity(jnp.ones((3, 2)), jnp.zeros(2))
