"""KalmanAttention against a float64 loop, its nats against their identity, and its certificate attacked."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.layers.bounds import Ball, Box
from selssm_jax.layers.kalman import KalmanAttention
from selssm_jax.layers.selective import RADIUS
from selssm_jax.stability import certify, certify_bounds

B, T, D, N, H = 2, 11, 4, 3, 2
TAPS, P = 2, D // H
DECAYS = pytest.mark.parametrize("decay", ["constant", "input"])


def build(decay="constant", scale=0.5, seed=0, **fields):
    """A layer, parameters away from where they begin, and an input."""
    layer = KalmanAttention(D, N, H, d_conv=TAPS, decay=decay, **fields)
    x = jax.random.normal(jax.random.key(1), (B, T, D))
    leaves, tree = jax.tree.flatten(start(layer))
    rng = np.random.default_rng(seed)
    return layer, tree.unflatten([leaf + scale * rng.standard_normal(leaf.shape).astype("f") for leaf in leaves]), x


@functools.cache
def start(layer):
    return jax.jit(layer.init)(jax.random.key(0), jnp.zeros((1, 2, D)))["params"]


def silu(x):
    return x / (1 + np.exp(-x))


def convolve(params, x):
    """Of one sequence from nothing on, with its silu."""
    kernel = np.asarray(params["kernel"], float)
    padded = np.concatenate([np.zeros((TAPS - 1, x.shape[1])), x])
    lagged = [padded[TAPS - 1 - lag : len(padded) - lag] * kernel[lag] for lag in range(TAPS)]
    return silu(sum(lagged) + np.asarray(params["bias"], float))


def read_sequence(params, x):
    """(y, means, variances, gates) of one sequence, step by step in float64."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = np.asarray(x, np.float64)
    z, v = np.split(x @ p["in"], 2, axis=1)
    v = convolve(p["v_conv"], v).reshape(-1, H, P)
    k, query = (convolve(p[f"{name}_conv"], x @ p[name]).reshape(-1, H, N) for name in ("B", "C"))
    m, variance, shown = np.zeros((H, N, P)), np.ones((H, N)), []
    for t in range(len(x)):
        a = RADIUS * np.tanh(p["A"] + (x[t] @ p["decay_kernel"] if "decay_kernel" in p else 0)).reshape(H, N)
        precision = np.exp(x[t] @ p["G"]["kernel"] + p["G"]["bias"])[:, None]
        predicted = a**2 * variance + 1 - a**2
        gain = predicted * k[t] / (predicted * k[t] ** 2 + 1 / precision)  # of the readings v = k h + e
        gate = gain * k[t]
        m = a[..., None] * m
        m = m + gain[..., None] * (v[t][:, None] - k[t][..., None] * m)
        variance = (1 - gate) * predicted
        y = np.einsum("hnp,hn->hp", m, query[t]) + p["D"][:, None] * v[t]
        y = y / np.sqrt(np.square(y).mean(axis=-1, keepdims=True) + 1e-5) * p["norm"]["scale"]
        shown.append(((y.ravel() * silu(z[t])) @ p["out"], m, variance, gate))
    return [np.stack(values) for values in zip(*shown, strict=True)]


@DECAYS
@pytest.mark.parametrize("method", ["sequential", "associative"])
def test_layer_equals_the_loop(decay, method):
    layer, params, x = build(decay, method=method)
    (y, last), sown = jax.jit(functools.partial(layer.apply, mutable=["intermediates"]))({"params": params}, x)
    gate = np.asarray(sown["intermediates"]["gate"][0])
    for b in range(B):
        out, means, variances, gates = read_sequence(params, x[b])
        np.testing.assert_allclose(y[b], out, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(last["h"][b], means[-1], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(last["nats"][b], -np.log(variances[-1]).ravel() / 2, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(gate[b], gates.reshape(T, -1), rtol=1e-4, atol=1e-5)


def test_nats_gained_less_nats_forgotten_are_what_all_numbers_of_the_rows_hold():
    layer, params, x = build("input")
    (_, last), sown = layer.apply({"params": params}, x, mutable=["intermediates"])
    gained, forgotten = (np.asarray(sown["intermediates"][name][0]) for name in ("gained", "forgotten"))
    assert (gained >= 0).all() and (forgotten >= 0).all() and gained.sum() > forgotten.sum() > 0
    np.testing.assert_allclose((gained - forgotten).sum(axis=1), P * last["nats"], rtol=1e-4, atol=1e-4)


def test_what_a_row_is_worth_is_asked_by_a_mask():
    layer, params, x = build()
    y = layer.apply({"params": params}, x)[0]
    np.testing.assert_array_equal(layer.apply({"params": params | {"mask": jnp.ones(N)}}, x)[0], y)
    without = layer.apply({"params": params | {"mask": jnp.ones(N).at[1].set(0)}}, x)[0]
    smaller = KalmanAttention(D, N - 1, H, d_conv=TAPS)
    left = layer.state_axes().take(params, np.array([0, 2]))
    np.testing.assert_allclose(smaller.apply({"params": left}, x)[0], without, rtol=1e-4, atol=1e-5)


@functools.partial(jax.jit, static_argnums=0)
def jacobians(layer, params, m, variance, past, x):
    """d(m, P)_t / d(m, P)_{t-1} of one step after inputs `past`, the means first: (S, H N (P + 1), H N (P + 1))."""

    def step(flat, past, x):
        _, state = layer.apply({"params": params}, past[None])
        m, variance = flat[: H * N * P].reshape(1, H, N, P), flat[None, H * N * P :]
        _, after = layer.apply({"params": params}, x[None, None], state | {"h": m, "nats": -jnp.log(variance) / 2})
        return jnp.concatenate([after["h"].ravel(), jnp.exp(-2 * after["nats"]).ravel()])

    flat = jnp.concatenate([m.reshape(len(m), -1), variance], axis=-1)
    return jax.vmap(jax.jacrev(step))(flat, past, x)


def by_rows(J):
    """What the largest of a row's P means, and its variance, owe to those of each row at most: (2 H N, 2 H N)."""
    J, means = np.abs(J).max(axis=0), H * N * P
    top = J[:means, :means].reshape(H * N, P, H * N, P).sum(axis=3).max(axis=1)
    crossing = J[:means, means:].reshape(H * N, P, H * N).max(axis=1)
    bottom = J[means:, :means].reshape(H * N, H * N, P).sum(axis=2)
    return np.block([[top, crossing], [bottom, J[means:, means:]]])


@pytest.mark.parametrize(
    ("decay", "count", "ascents"),
    [
        pytest.param("input", 1, 0, marks=pytest.mark.always),
        pytest.param("constant", 125, 3, marks=pytest.mark.exhaustive),
        pytest.param("input", 125, 3, marks=pytest.mark.exhaustive),
    ],
)
def test_no_input_and_no_state_leads_beyond_the_certificate_which_always_holds(decay, count, ascents):
    rng = np.random.default_rng(3)
    for seed in range(count):
        layer, params, _ = build(decay, scale=rng.choice([0.0, 0.5, 2.0]), seed=seed)
        radius = rng.choice([0.3, 1.5, 5.0])
        inner = rng.standard_normal((48, TAPS, D))
        sphere = radius * inner / np.linalg.norm(inner, axis=-1, keepdims=True)
        for region, x in (
            (Box(radius), np.clip(radius * inner, -radius, radius)),
            (Ball(jnp.ones(D), radius), sphere),
        ):
            share, certificate = attack(layer, params, region, x.astype("f"), rng, ascents=ascents)
            assert share <= 1 + 1e-3, (seed, share)
            assert certificate.contraction.status == "holds" and certificate.contraction.rate < 1


def attack(layer, params, region, x, rng, *, ascents):
    """Largest |derivatives| found over what is stated of them, at inputs of the set and states of the box, and at worse
    ones that steps of gradient ascent lead to.
    """
    bounds = layer.apply({"params": params}, region, method="bounds")
    reach, J = np.asarray(bounds.box[: H * N]), np.asarray(bounds.jacobian)
    wide = reach.reshape(H, N, 1)
    m = (wide * rng.uniform(-1, 1, (len(x), H, N, P))).astype("f")
    variance = np.exp(rng.uniform(-8, 0, (len(x), H * N))).astype("f")
    past, now = x[:, :-1], x[:, -1]
    unit = max(J[: H * N, H * N :].max(), 1e-30)
    norm = jax.jit(
        jax.grad(
            # in units of what is stated, or squares leave the range of float32
            lambda m, v: jnp.square(jacobians(layer, params, m, v, past, now)[:, : -H * N, -H * N :] / unit).sum(),
            (0, 1),
        )
    )
    found = by_rows(jacobians(layer, params, m, variance, past, now))
    for _ in range(ascents):
        dm, dv = norm(m, variance)
        m = np.clip(m + 0.3 * wide * np.sign(dm), -wide, wide).astype("f")
        variance = np.clip(variance * np.exp(0.5 * np.sign(dv)), 1e-4, 1).astype("f")
        found = np.maximum(found, by_rows(jacobians(layer, params, m, variance, past, now)))
    assert (found[J == 0] == 0).all()
    after = layer.apply({"params": params}, jnp.asarray(x))[1]["h"]
    assert (np.abs(after).max(axis=(0, 3)).ravel() <= reach * (1 + 1e-5)).all(), "means stay in the box"
    return (found / np.where(J > 0, J, 1)).max(), certify_bounds(bounds)


def test_inputs_without_bound_leave_the_means_without_a_box():
    layer, params, _ = build()
    certificate = certify(layer, params)
    assert certificate.contraction.status == "not established"
