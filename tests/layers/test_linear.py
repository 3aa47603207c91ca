"""S4D, S5 and the LRU: the published equations step by step in float64, and where they start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from selssm_jax.layers.linear import LARGEST_PHASE, LRU, RING, S4D, S5, STEP_SIZES, hippo_normal

B, T, D, N = 2, 7, 3, 8


def drawn(layer, scale=0.5):
    """Parameters away from where they start."""
    params = jax.jit(layer.init)(jax.random.key(0), jnp.zeros((1, 2, layer.d_model)))["params"]
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(1)
    return tree.unflatten([leaf + scale * rng.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves])


def start(layer):
    return jax.jit(layer.init)(jax.random.key(3), jnp.zeros((1, 2, layer.d_model)))["params"]


def wide(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def halves(parts, axis=0):
    real, imaginary = np.split(parts, 2, axis=axis)
    return real + 1j * imaginary


def continuous(p):
    return -np.exp(p["A_log_decay"]) + 1j * p["A_frequency"]


def s4d(p, x, rule):
    """h' = A h + 1 x in every channel, discretised; y = 2 Re(C h) + D x; GELU; a gated linear map."""
    A, dt = continuous(p), np.exp(p["log_dt"])[:, None]
    a, b = (np.exp(dt * A), (np.exp(dt * A) - 1) / A) if rule == "zoh" else ((1 + dt * A / 2) / (1 - dt * A / 2), dt / (1 - dt * A / 2))
    C, h, out = p["C"][0] + 1j * p["C"][1], 0, []
    for u in x:
        h = a * h + b * u[:, None]
        value, gate = np.split(gelu(2 * (C * h).sum(axis=1).real + p["D"] * u) @ p["outward"]["kernel"] + p["outward"]["bias"], 2)
        out.append(value * sigmoid(gate))
    return np.stack(out), h


def s5(p, x):
    """h' = A h + B x, discretised by a step size a pole; y = 2 Re(C h) + D x; gelu(y) * sigmoid(W gelu(y))."""
    A, dt = continuous(p), np.exp(p["log_dt"])
    B, C, h, out = halves(p["B"].T), halves(p["C"]).T, 0, []
    for u in x:
        h = np.exp(dt * A) * h + (np.exp(dt * A) - 1) / A * (B @ u)
        y = gelu(2 * (C @ h).real + p["D"] * u)
        out.append(y * sigmoid(y @ p["gate"]["kernel"]))
    return np.stack(out), h


def lru(p, x):
    """h_t = lambda h_{t-1} + gamma B x_t, y_t = Re(C h_t) + D x_t."""
    poles = np.exp(-np.exp(p["nu"]) + 1j * np.exp(p["theta"]))
    B, C, h, out = halves(p["B"].T), halves(p["C"]).T, 0, []
    for u in x:
        h = poles * h + np.exp(p["gamma_log"]) * (B @ u)
        out.append((C @ h).real + p["D"] * u)
    return np.stack(out), h


@pytest.mark.parametrize(
    ("layer", "loop"),
    [
        (S4D(D, N), lambda p, x: s4d(p, x, "zoh")),
        (S4D(D, N, rule="bilinear"), lambda p, x: s4d(p, x, "bilinear")),
        (S5(D, N), s5),
        (LRU(D, N), lru),
    ],
    ids=["s4d", "s4d-bilinear", "s5", "lru"],
)
def test_layers_are_the_published_equations(layer, loop):
    params = drawn(layer)
    x = np.random.default_rng(0).standard_normal((B, T, D)).astype(np.float32)
    y, last = jax.jit(layer.apply)({"params": params}, x)
    for row in range(B):
        expected, h = loop(wide(params), np.asarray(x[row], np.float64))
        np.testing.assert_allclose(y[row], expected, rtol=1e-4, atol=2e-5)
        np.testing.assert_allclose(last[row], h, rtol=1e-4, atol=2e-5)


def test_eigenvalues_and_vectors_are_of_the_normal_part_of_hippo():
    poles = 6
    values, vectors = hippo_normal(poles)
    n = np.arange(2 * poles)
    root = np.sqrt(2 * n + 1)
    legs = -np.tril(np.outer(root, root), -1) - np.diag(n + 1)  # HiPPO-LegS (Gu et al. 2020)
    normal = legs + np.outer(root, root) / 2  # plus the rank one that makes it normal, p = sqrt(n + 1/2)
    np.testing.assert_allclose(normal @ normal.T, normal.T @ normal, atol=1e-9)
    both, basis = np.concatenate([values, values.conj()]), np.concatenate([vectors, vectors.conj()], axis=1)
    np.testing.assert_allclose(basis @ np.diag(both) @ basis.conj().T, normal, atol=1e-9)
    np.testing.assert_allclose(values.real, -0.5)
    assert (values.imag > 0).all() and (np.diff(values.imag) > 0).all()


def test_s4d_starts_as_s4d_lin():
    params = wide(start(S4D(40, 12)))
    np.testing.assert_allclose(continuous(params), np.broadcast_to(-0.5 + 1j * np.pi * np.arange(6), (40, 6)), rtol=1e-6)
    assert within(np.exp(params["log_dt"]), *STEP_SIZES)
    assert (params["C"] ** 2).sum(axis=0).mean() == pytest.approx(1, abs=0.3), "complex normal of variance 1"


def within(value, low, high):
    return (value >= low * (1 - 1e-6)).all() and (value <= high * (1 + 1e-6)).all()


def uniform(value, low, high):
    """Whether samples look uniform between bounds that none of them leaves."""
    return within(value, low, high) and stats.kstest((value - low) / (high - low), "uniform").pvalue > 1e-3


def test_s5_starts_as_a_real_map_in_the_eigenvectors_of_hippo():
    d_model, poles = 48, 32
    params = wide(start(S5(d_model, 2 * poles)))
    values, V = hippo_normal(poles)
    np.testing.assert_allclose(continuous(params), values, rtol=1e-5)
    assert uniform(params["log_dt"], *np.log(STEP_SIZES))
    own_B, own_C = halves(params["B"].T), halves(params["C"]).T
    B, C = 2 * (V @ own_B).real, 2 * (own_C @ V.conj().T).real  # V and its conjugate are a basis: the real maps that these are of
    np.testing.assert_allclose(V.conj().T @ B, own_B, atol=1e-5)
    np.testing.assert_allclose(C @ V, own_C, atol=1e-5)
    np.testing.assert_allclose(2 * (own_C @ own_B).real, C @ B, atol=1e-5)
    assert B.var() == pytest.approx(1 / d_model, rel=0.1) and C.var() == pytest.approx(1 / (2 * poles), rel=0.1)
    assert stats.kstest(B.ravel() * np.sqrt(d_model), "norm").pvalue > 1e-3


def test_the_lru_starts_on_its_ring_with_states_of_the_size_of_its_inputs():
    layer = LRU(16, 256)
    params = start(layer)
    p = wide(params)
    assert uniform(np.exp(-2 * np.exp(p["nu"])), *np.square(RING)), "uniform in area"
    assert within(np.exp(p["theta"]), 0, LARGEST_PHASE) and np.exp(p["theta"]).max() > 0.9 * LARGEST_PHASE
    np.testing.assert_allclose(np.exp(2 * p["gamma_log"]), 1 - np.exp(-2 * np.exp(p["nu"])), rtol=1e-4)
    x = jax.random.normal(jax.random.key(0), (1, 3000, 16))
    states = jax.jit(lambda x: layer.apply({"params": params}, x, mutable=["intermediates"])[1]["intermediates"]["state"][0])(x)
    assert float(jnp.square(jnp.abs(states[:, 1000:])).mean()) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("layer", [S4D(D, 5), S5(D, 0), LRU(0, 4)])
def test_sizes_that_are_none_are_named(layer):
    with pytest.raises(ValueError, match="even: its numbers are the two of each complex pole"):
        layer.init(jax.random.key(0), jnp.zeros((1, 2, 3)))


def test_an_unknown_rule_is_named():
    with pytest.raises(ValueError, match="rule='euler' is unknown: use one of zoh, bilinear"):
        S4D(D, N, rule="euler").init(jax.random.key(0), jnp.zeros((1, 2, D)))
