"""S4D, S5 and the LRU against float64 loops from their papers' equations; where they start, what they state of
themselves, what pruning takes.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from selssm_jax.compression import pruning
from selssm_jax.config import Model, Task
from selssm_jax.layers import linear
from selssm_jax.layers.bounds import Ball, Box
from selssm_jax.layers.linear import LRU, S4D, S5, hippo_normal
from selssm_jax.model import SequenceModel
from selssm_jax.stability import certify

D, N, STEPS = 3, 4, 11
LAYERS = {"s4d": S4D(D, N), "s4d_bilinear": S4D(D, N, rule="bilinear"), "s5": S5(D, N), "lru": LRU(D, N)}
X = jax.random.normal(jax.random.key(1), (2, STEPS, D))
RESET = np.zeros((2, STEPS), bool)
RESET[0, 4] = RESET[1, 7] = RESET[1, 0] = True
EVERY = pytest.mark.parametrize("name", LAYERS)
ONE_SYSTEM = pytest.mark.parametrize("name", ["s5", "lru"])


def drawn(layer):
    """Parameters that are all away from where they start, so that each of them matters."""
    params = jax.jit(layer.init)(jax.random.key(0), X)["params"]
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    return structure.unflatten(
        [leaf + 0.3 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    )


PARAMS = {name: drawn(layer) for name, layer in LAYERS.items()}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gelu(x):
    """The tanh form, which is Flax's; within 1e-3 of x times the normal distribution function."""
    y = x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    assert np.abs(y - x / 2 * (1 + erf(x / math.sqrt(2)))).max() < 1e-3
    return y


def exact_gelu(x):
    """x P(N(0, 1) <= x), which the published S4D has: its tanh is 5e-4 off."""
    return x / 2 * (1 + erf(x / math.sqrt(2)))


def halves(parts, axis):
    real, imaginary = np.split(parts, 2, axis=axis)
    return real + 1j * imaginary


def held(A, dt, rule="zoh"):
    return (
        (np.exp(A * dt), (np.exp(A * dt) - 1) / A)
        if rule != "bilinear"
        else ((1 + A * dt / 2) / (1 - A * dt / 2), dt / (1 - A * dt / 2))
    )


def s4d_loop(p, u, reset, rule="zoh"):
    """One system a channel, its input map 1."""
    A = -np.exp(p["A_log_decay"]) + 1j * p["A_frequency"]
    a, b = held(A, np.exp(p["log_dt"])[:, None], rule)
    C, h, y = p["C"][0] + 1j * p["C"][1], np.zeros(A.shape, complex), []
    for x, forget in zip(u, reset, strict=True):
        h = (0 if forget else a * h) + b * x[:, None]
        z = exact_gelu(2 * (C * h).sum(axis=1).real + p["D"] * x) @ p["outward"]["kernel"] + p["outward"]["bias"]
        y.append(z[: len(x)] * sigmoid(z[len(x) :]))
    return np.array(y), a, b * np.ones(A.shape), h


def s5_loop(p, u, reset):
    """One system for all channels."""
    a, scale = held(-np.exp(p["A_log_decay"]) + 1j * p["A_frequency"], np.exp(p["log_dt"]))
    B, C, h, y = scale[:, None] * halves(p["B"].T, 0), halves(p["C"], 0).T, np.zeros(a.shape, complex), []
    for x, forget in zip(u, reset, strict=True):
        h = (0 if forget else a * h) + B @ x
        z = gelu(2 * (C @ h).real + p["D"] * x)
        y.append(z * sigmoid(z @ p["gate"]["kernel"]))
    return np.array(y), a, B, h


def lru_loop(p, u, reset):
    a = np.exp(-np.exp(p["nu"]) + 1j * np.exp(p["theta"]))
    B, C, h, y = (
        np.exp(p["gamma_log"])[:, None] * halves(p["B"].T, 0),
        halves(p["C"], 0).T,
        np.zeros(a.shape, complex),
        [],
    )
    for x, forget in zip(u, reset, strict=True):
        h = (0 if forget else a * h) + B @ x
        y.append((C @ h).real + p["D"] * x)
    return np.array(y), a, B, h


LOOPS = {
    "s4d": s4d_loop,
    "s4d_bilinear": lambda *given: s4d_loop(*given, rule="bilinear"),
    "s5": s5_loop,
    "lru": lru_loop,
}


def looped(name, x, reset):
    params = jax.tree.map(lambda value: np.asarray(value, np.float64), PARAMS[name])
    return [
        np.stack(part)
        for part in zip(
            *(LOOPS[name](params, u, r) for u, r in zip(np.asarray(x, np.float64), reset, strict=True)), strict=True
        )
    ]


@EVERY
def test_equals_the_papers_equations_in_a_loop(name):
    y, last = jax.jit(LAYERS[name].apply)({"params": PARAMS[name]}, X, reset=jnp.asarray(RESET))
    expected, _, _, end = looped(name, X, RESET)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(last, end, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["s4d", "s4d_bilinear"])
def test_s4d_as_convolutions_equals_its_recurrence_in_a_loop_from_any_state(name, monkeypatch):
    """Two whole chunks and a rest; what came before is 3 steps by the recurrence, one of them a step by itself."""
    monkeypatch.setattr(linear, "CHUNK", 3)
    layer, params = LAYERS[name], {"params": PARAMS[name]}
    _, before = layer.apply(params, X[:, :2], reset=jnp.zeros((2, 2), bool))
    _, before = layer.apply(params, X[:, 2:3], before)
    y, last = layer.apply(params, X[:, 3:], before)
    expected, _, _, end = looped(name, X, np.zeros((2, STEPS), bool))
    np.testing.assert_allclose(y, expected[:, 3:], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(last, end, rtol=1e-5, atol=1e-5)


def test_s4d_starts_at_harmonics_and_at_step_sizes_of_all_scales():
    params = jax.jit(S4D(512, 8).init)(jax.random.key(0), jnp.zeros((1, 1, 512)))["params"]
    np.testing.assert_allclose(np.exp(params["A_log_decay"]), 0.5, rtol=1e-6)
    np.testing.assert_allclose(params["A_frequency"], np.tile(math.pi * np.arange(4), (512, 1)), rtol=1e-6)
    share = np.log(np.exp(np.asarray(params["log_dt"], np.float64)) / 1e-3) / math.log(100)
    np.testing.assert_allclose(np.quantile(share, [0, 0.5, 1]), [0, 0.5, 1], atol=0.06)
    # C of modulus 1 in the mean square: (C_re, C_im) of variance 1/2; 5 standard errors of 4096 draws
    assert abs((np.asarray(params["C"]) ** 2).mean() - 0.5) < 5 * 0.5 * math.sqrt(2 / 4096)


def test_hippo_is_normal_up_to_rank_one_and_diagonal_in_its_vectors():
    """HiPPO-LegS, A_nk = -sqrt((2n+1)(2k+1)) below and -(n+1) on the diagonal, plus p p', p = sqrt(n + 1/2)."""
    n = np.arange(8)
    legs = -np.tril(np.sqrt(np.outer(2 * n + 1, 2 * n + 1)), -1) - np.diag(n + 1.0)
    normal = legs + np.outer(np.sqrt(n + 0.5), np.sqrt(n + 0.5))
    poles, vectors = hippo_normal(4)
    np.testing.assert_allclose(normal @ normal.T, normal.T @ normal, atol=1e-10)
    np.testing.assert_allclose(normal @ vectors, vectors * poles, atol=1e-10)
    assert vectors.shape == (8, 4) and (poles.imag > 0).all() and (np.diff(poles.imag) > 0).all()
    np.testing.assert_allclose(
        np.sort(np.linalg.eigvals(normal).imag), np.sort(np.concatenate([poles.imag, -poles.imag])), atol=1e-8
    )


def test_s5_starts_as_a_real_system_of_hippos_matrix():
    """Its P poles are half of those of a real system in other coordinates: V* B' and C' V of real B' and C'."""
    layer = S5(D, 8)
    params = jax.jit(layer.init)(jax.random.key(0), X)["params"]
    poles, vectors = hippo_normal(4)
    np.testing.assert_allclose(-np.exp(params["A_log_decay"]) + 1j * params["A_frequency"], poles, rtol=1e-5)
    whole = np.concatenate([vectors, vectors.conj()], axis=1)
    B, C = halves(np.asarray(params["B"].T, np.float64), 0), halves(np.asarray(params["C"], np.float64), 0).T
    for part in (whole @ np.concatenate([B, B.conj()]), np.concatenate([C, C.conj()], axis=1) @ whole.conj().T):
        assert np.abs(part.imag).max() < 1e-6 and np.abs(part.real).min() > 0
    assert ((np.exp(params["log_dt"]) >= 0.999e-3) & (np.exp(params["log_dt"]) <= 0.1001)).all()


def test_the_lru_starts_on_a_ring_and_makes_states_of_the_size_of_its_inputs():
    layer = LRU(256, 1024)
    params = jax.jit(layer.init)(jax.random.key(0), jnp.zeros((1, 1, 256)))["params"]
    a = np.exp(-np.exp(np.asarray(params["nu"], np.float64)))
    share = (a**2 - 0.9**2) / (0.999**2 - 0.9**2)  # of the ring's area within
    np.testing.assert_allclose(np.quantile(share, [0, 0.5, 1]), [0, 0.5, 1], atol=0.08)
    phases = np.exp(params["theta"])
    assert (
        phases.min() > 0 and phases.max() <= math.pi / 10 * (1 + 1e-5) and abs(np.median(phases) - math.pi / 20) < 0.03
    )
    # stationary variance |gamma B|^2 / (1 - |a|^2) of white inputs of variance 1: in the mean 1, by the draw of B
    # within 5 sqrt(1 / (256 512))
    B = halves(np.asarray(params["B"].T, np.float64), 0)
    variance = (np.abs(np.exp(np.asarray(params["gamma_log"], np.float64))[:, None] * B) ** 2).sum(axis=1) / (1 - a**2)
    assert abs(variance.mean() - 1) < 0.02


@pytest.mark.parametrize("inputs", [Box(0.5), Ball(jnp.linspace(0.5, 1.5, D), math.sqrt(D))], ids=["box", "ball"])
@EVERY
def test_no_input_drives_the_state_further_than_is_stated(name, inputs):
    bounds = LAYERS[name].apply({"params": PARAMS[name]}, inputs, method="bounds")
    x = np.random.default_rng(0).normal(size=(4000, D))
    x = (
        0.5 * np.sign(x)
        if isinstance(inputs, Box)
        else x / np.linalg.norm(x, axis=1, keepdims=True) * inputs.radius * np.asarray(inputs.scale)
    )
    _, a, b, _ = looped(name, X[:1], RESET[:1])
    drive = np.abs(b[0].reshape(D, 1, -1) * x.T[:, :, None]) if name.startswith("s4d") else np.abs(x @ b[0].T)
    largest = drive.max(axis=1).ravel() if name.startswith("s4d") else drive.max(axis=0)
    stated = np.asarray(bounds.drive_bound, np.float64)
    assert (largest <= stated * (1 + 1e-5)).all() and (largest > 0.5 * stated).all()
    np.testing.assert_allclose(bounds.A, a[0].ravel(), rtol=1e-5)
    assert (np.asarray(bounds.gate_min) == 1).all() and (np.asarray(bounds.gate_max) == 1).all()


@EVERY
def test_is_certified_at_the_slowest_pole_for_any_input(name):
    found = certify(LAYERS[name], PARAMS[name])
    _, a, _, _ = looped(name, X[:1], RESET[:1])
    assert found.uniform.status == "holds"
    np.testing.assert_allclose(found.uniform.rate, np.abs(a).max(), rtol=1e-5)


@EVERY
def test_states_that_are_not_read_can_be_taken_out(name):
    layer, axes = LAYERS[name], LAYERS[name].state_axes()
    assert axes.components * axes.size == N
    masked = axes.mask_readout(PARAMS[name], jnp.array([0.0, 1.0]))
    y, state = layer.apply({"params": masked}, X)
    small, left = layer.clone(d_state=2).apply({"params": axes.take(PARAMS[name], np.array([1]))}, X)
    np.testing.assert_allclose(small, y, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(left, state[..., 1:], rtol=1e-5, atol=1e-6)
    assert np.abs(y - layer.apply({"params": PARAMS[name]}, X)[0]).max() > 1e-3


@ONE_SYSTEM
def test_dynamics_are_the_recurrence(name):
    A, maps = LAYERS[name].apply({"params": PARAMS[name]}, X, method="dynamics")
    _, a, b, _ = looped(name, X, RESET)
    np.testing.assert_allclose(A, np.repeat(a[:, None], STEPS, axis=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(maps, np.repeat(b[:, None], STEPS, axis=1), rtol=1e-5, atol=1e-6)
    (_, last), sown = LAYERS[name].apply({"params": PARAMS[name]}, X, mutable=["intermediates"])
    assert (sown["intermediates"]["state"][0][:, -1] == last).all()


@ONE_SYSTEM
def test_components_are_scored_by_their_part_in_the_hankel_map(name):
    """|b_i| |c_i| / (1 - |a_i|^2), from the published parameters."""
    model = SequenceModel(Model(pattern=(name,), d_model=D, d_state=N, task=Task(vocab=5)))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    params = {**params, "block_0": {**params["block_0"], "mixer": PARAMS[name]}}
    _, a, b, _ = looped(name, X[:1], RESET[:1])
    read = np.linalg.norm(halves(np.asarray(PARAMS[name]["C"], np.float64), 0), axis=1)
    expected = np.linalg.norm(b[0], axis=1) * read / (1 - np.abs(a[0]) ** 2)
    np.testing.assert_allclose(pruning.scores(model, params, [], "hankel")["block_0"], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (S4D(D, 5), "d_state=5 is no multiple of a complex number, size=2"),
        (S5(D, 0), "d_state=0 is out of range: use at least 1"),
        (LRU(0, 4), "d_model=0 is out of range: use at least 1"),
        (S4D(D, 4, rule="euler"), "rule='euler' is not a choice: known: bilinear, zoh"),
    ],
)
def test_refuses_what_cannot_be(layer, words):
    with pytest.raises(ValueError, match=words):
        layer.init(jax.random.key(0), X)


def test_the_exact_gelu_is_that_of_jax_with_its_derivatives():
    x = jnp.linspace(-12.0, 12.0, 481)
    theirs = lambda x: jax.nn.gelu(x, approximate=False)  # noqa: E731
    np.testing.assert_allclose(linear.exact_gelu(x), theirs(x), rtol=2e-6, atol=1e-30)
    for ours, other in (
        (jax.grad(linear.exact_gelu), jax.grad(theirs)),
        (jax.grad(jax.grad(linear.exact_gelu)), jax.grad(jax.grad(theirs))),
    ):
        np.testing.assert_allclose(jax.vmap(ours)(x), jax.vmap(other)(x), rtol=1e-4, atol=1e-6)
