"""The RG-LRU: Griffin's equations step by step in float64, where it starts, and gradients where a gate is shut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from selssm_jax.layers.griffin import MODULI, RGLRU

B, T, D, N, HEADS, WIDTH = 2, 7, 3, 4, 2, 3


def drawn(layer):
    """Parameters away from where they start."""
    params = jax.jit(layer.init)(jax.random.key(0), jnp.zeros((1, 2, layer.d_model)))["params"]
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(1)
    return tree.unflatten([leaf + 0.5 * rng.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def loop(p, inputs):
    """De et al. 2024, section 2: two branches, the recurrence on one of them, their product mapped back."""
    gates = np.zeros((2, N, N))  # maps of blocks on the diagonal
    for head, block in enumerate(np.split(np.arange(N), HEADS)):
        gates[:, block[:, None], block[None]] = p["W"][:, head]
    h, past, out, states = np.zeros(N), [np.zeros(N)] * WIDTH, [], []
    for u in inputs:
        past = [u @ p["inward"]["kernel"] + p["inward"]["bias"], *past[: WIDTH - 1]]
        x = p["conv"]["bias"] + sum(weight * before for weight, before in zip(p["conv"]["kernel"], past, strict=True))
        r, i = (sigmoid(x @ gates[k] + p["b"][k]) for k in (0, 1))
        a = np.exp(-8 * np.log1p(np.exp(p["Lambda"])) * r)
        h = a * h + np.sqrt(1 - a**2) * (i * x)
        out.append((h * gelu(u @ p["branch"]["kernel"] + p["branch"]["bias"])) @ p["outward"]["kernel"] + p["outward"]["bias"])
        states.append((1 - a, h))
    return np.stack(out), *map(np.stack, zip(*states, strict=True))


def test_the_layer_is_the_published_equations():
    layer = RGLRU(D, N, HEADS, WIDTH)
    params = drawn(layer)
    x = np.random.default_rng(0).standard_normal((B, T, D)).astype(np.float32)
    (y, last), seen = jax.jit(lambda x: layer.apply({"params": params}, x, mutable=["intermediates"]))(x)
    for row in range(B):
        expected, gates, states = loop(jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params), np.asarray(x[row], np.float64))
        np.testing.assert_allclose(y[row], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(seen["intermediates"]["gate"][0][row], gates, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(seen["intermediates"]["state"][0][row], states, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(last["h"][row], states[-1], rtol=1e-4, atol=1e-5)


def test_decays_start_uniform_in_area_between_their_moduli():
    layer = RGLRU(2, 300, 1, 1)
    Lambda = np.asarray(jax.jit(layer.init)(jax.random.key(0), jnp.zeros((1, 2, 2)))["params"]["Lambda"], np.float64)
    a = np.exp(-8 * np.log1p(np.exp(Lambda)))
    low, high = MODULI
    assert (a >= low - 1e-5).all() and (a <= high + 1e-5).all()
    assert stats.kstest((a**2 - low**2) / (high**2 - low**2), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("bias", [-12.0, -40.0, -200.0])
def test_gradients_are_finite_where_nothing_is_let_in(bias):
    """1 - a^2 is 0 in float32, and the slope of its root has no bound."""
    layer = RGLRU(D, N, HEADS, WIDTH)
    params = drawn(layer)
    params["b"] = params["b"].at[0].set(bias)
    x = jax.random.normal(jax.random.key(0), (B, T, D))
    value, slopes = jax.jit(jax.value_and_grad(lambda p, x: jnp.square(layer.apply({"params": p}, x)[0]).sum(), (0, 1)))(params, x)
    assert np.isfinite(value) and all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(slopes))


def test_widths_that_heads_do_not_divide_are_named():
    with pytest.raises(ValueError, match="d_state=5 must be a multiple of heads=2"):
        RGLRU(D, 5, 2).init(jax.random.key(0), jnp.zeros((1, 2, D)))
