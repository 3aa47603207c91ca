"""The cells are those of Flax with the same weights; the minimal GRU is its equations step by step in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from selssm_jax.layers.recurrent import GRU, LSTM, RNN, MinGRU

B, T, N = 2, 9, 5


def drawn(layer, scale=0.5):
    """Parameters away from where they start, the readout the identity."""
    params = jax.jit(layer.init)(jax.random.key(0), jnp.zeros((1, 2, layer.d_model)))["params"]
    rng = np.random.default_rng(1)
    params = {name: leaf + scale * rng.standard_normal(leaf.shape).astype(np.float32) for name, leaf in params.items()}
    return params | {"C": jnp.eye(layer.d_state)}


def inputs(seed=0):
    return jax.random.normal(jax.random.key(seed), (B, T, N))


def simple(p):
    return {"i": {"kernel": p["W"][:, 0], "bias": p["b"][0]}, "h": {"kernel": p["U"][:, 0]}}


def lstm(p):
    read = {f"i{gate}": {"kernel": p["W"][:, k]} for k, gate in enumerate("ifgo")}
    return read | {f"h{gate}": {"kernel": p["U"][:, k], "bias": p["b"][k]} for k, gate in enumerate("ifgo")}


def gru(p):
    read = {f"i{gate}": {"kernel": p["W"][:, k], "bias": p["b"][k]} for k, gate in enumerate("rzn")}
    own = {f"h{gate}": {"kernel": p["U"][:, k]} for k, gate in enumerate("rzn")}
    return read | own | {"hn": own["hn"] | {"bias": p["c"]}}


@pytest.mark.parametrize(
    ("layer", "cell", "copied"),
    [(RNN(N, N), nn.SimpleCell(N), simple), (LSTM(N, N), nn.OptimizedLSTMCell(N), lstm), (GRU(N, N), nn.GRUCell(N), gru)],
    ids=["rnn", "lstm", "gru"],
)
def test_cells_are_those_of_flax(layer, cell, copied):
    params, x = drawn(layer), inputs()
    y, last = jax.jit(layer.apply)({"params": params}, x)
    theirs = nn.RNN(cell, return_carry=True)
    tree = {"cell": copied(params)}
    assert jax.tree.map(jnp.shape, tree) == jax.tree.map(jnp.shape, jax.eval_shape(theirs.init, jax.random.key(0), x)["params"])
    carry, expected = jax.jit(theirs.apply)({"params": tree}, x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    ours = (last["c"], last["h"]) if isinstance(last, dict) else last
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, carry)


def test_the_minimal_gru_is_the_published_equations():
    layer = MinGRU(N, N)
    params, x = drawn(layer), inputs()
    (y, last), seen = jax.jit(lambda x: layer.apply({"params": params}, x, mutable=["intermediates"]))(x)
    p = {name: np.asarray(value, np.float64) for name, value in params.items()}
    h = np.zeros((B, N))
    for t in range(T):
        now = np.asarray(x[:, t], np.float64)
        z = 1 / (1 + np.exp(-(now @ p["W"][:, 0] + p["b"][0])))
        h = (1 - z) * h + z * (now @ p["W"][:, 1] + p["b"][1])
        np.testing.assert_allclose(y[:, t], h @ p["C"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(seen["intermediates"]["gate"][0][:, t], z, rtol=1e-5)
    np.testing.assert_allclose(last, h, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", [GRU(N, N), LSTM(N, N)], ids=["gru", "lstm"])
def test_gates_that_are_sown_are_the_shares_that_a_step_renews(layer):
    """1 where nothing of the state is kept: its slope by itself, without what gates read, is 1 - gate."""
    params, x = drawn(layer), inputs()
    params["U"] = jnp.zeros_like(params["U"])  # the state then reaches the next one by the gate alone
    name = "c" if isinstance(layer, LSTM) else None
    start = layer.initial_state(B)

    def after(h):
        state = start | {"c": h} if name else h
        _, last = layer.apply({"params": params}, x[:, :1], state)
        return last["c"] if name else last

    _, slope = jax.jit(lambda h: jax.jvp(after, (h,), (jnp.ones_like(h),)))(jnp.full((B, N), 0.3))
    gate = layer.apply({"params": params}, x[:, :1], mutable=["intermediates"])[1]["intermediates"]["gate"][0][:, 0]
    np.testing.assert_allclose(1 - gate, slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer", [RNN(N, N), GRU(N, N), LSTM(N, N)], ids=["rnn", "gru", "lstm"])
def test_recurrent_maps_start_orthogonal_and_input_maps_at_the_variance_of_their_width(layer):
    params = jax.jit(layer.clone(d_model=40, d_state=30).init)(jax.random.key(0), jnp.zeros((1, 2, 40)))["params"]
    for gate in range(layer.gates):
        np.testing.assert_allclose(params["U"][:, gate] @ params["U"][:, gate].T, np.eye(30), atol=1e-5)
        assert float(params["W"][:, gate].var()) == pytest.approx(1 / 40, rel=0.2)
    assert not any(bool(params[name].any()) for name in ("b", "c") if name in params)


def test_sizes_that_are_none_are_named():
    with pytest.raises(ValueError, match="d_model=3 and d_state=0 must be at least 1"):
        GRU(3, 0).init(jax.random.key(0), jnp.zeros((1, 2, 3)))
