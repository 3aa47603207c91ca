"""RNN, LSTM and GRU against Flax's cells, minGRU against a float64 loop; where they start, what they state of
themselves, what pruning takes.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from selssm_jax.layers.bounds import Ball, Box
from selssm_jax.layers.recurrent import GRU, LSTM, RNN, MinGRU
from selssm_jax.stability import certify, certify_bounds

D, N, STEPS = 3, 4, 9
LAYERS = {"rnn": RNN(D, N), "gru": GRU(D, N), "lstm": LSTM(D, N), "min_gru": MinGRU(D, N)}
X = jax.random.normal(jax.random.key(1), (2, STEPS, D))
CELLS = pytest.mark.parametrize("name", ["rnn", "gru", "lstm"])
EVERY = pytest.mark.parametrize("name", LAYERS)


def drawn(layer, size=0.3):
    """Parameters that are all away from where they start, so that each of them matters."""
    params = jax.jit(layer.init)(jax.random.key(0), X)["params"]
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    return structure.unflatten(
        [leaf + size * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    )


PARAMS = {name: drawn(layer) for name, layer in LAYERS.items()}


def flax_cell(name, p):
    """(Flax's cell, its parameters): the same numbers under Flax's names."""
    inward = [{"kernel": p["W"][:, gate], "bias": p["b"][gate]} for gate in range(p["W"].shape[1])]
    onward = [{"kernel": p["U"][:, gate]} for gate in range(p["U"].shape[1])]
    if name == "rnn":
        return nn.SimpleCell(N), {"i": inward[0], "h": onward[0]}
    if name == "gru":
        onward[2] = onward[2] | {"bias": p["c"]}
        return nn.GRUCell(N), {f"i{gate}": one for gate, one in zip("rzn", inward, strict=True)} | {
            f"h{gate}": one for gate, one in zip("rzn", onward, strict=True)
        }
    own = {f"h{gate}": {**two, "bias": one["bias"]} for gate, one, two in zip("ifgo", inward, onward, strict=True)}
    return nn.OptimizedLSTMCell(N), own | {
        f"i{gate}": {"kernel": one["kernel"]} for gate, one in zip("ifgo", inward, strict=True)
    }


def in_flax(name, p, x, start):
    """(outputs of the cell, its last carry)."""
    cell, params = flax_cell(name, p)
    last, h = nn.RNN(cell, return_carry=True).apply({"params": {"cell": params}}, x, initial_carry=start)
    return h @ p["C"], last


def carry(name, state):
    """Our state as Flax's."""
    return (state["c"], state["h"]) if name == "lstm" else state


@CELLS
def test_equals_flaxs_cell_in_values_and_gradients_from_any_state(name):
    zero = LAYERS[name].initial_state(2)
    start = jax.tree.map(lambda leaf: 0.5 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), zero)

    def total(run):
        def loss(p, x):
            y, last = run(p, x)
            return jnp.sin(y).sum() + sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(last)), (y, last)

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))

    (_, (y, last)), slopes = total(lambda p, x: LAYERS[name].apply({"params": p}, x, start))(PARAMS[name], X)
    (_, (expected, end)), wanted = total(lambda p, x: in_flax(name, p, x, carry(name, start)))(PARAMS[name], X)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5), carry(name, last), end
    )
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4), slopes, wanted)


@CELLS
def test_starts_as_flaxs_cell(name):
    """Orthogonal recurrent maps, one a gate; LeCun's input maps; biases of 0."""
    layer = LAYERS[name].clone(d_model=256, d_state=128)
    params = jax.jit(layer.init)(jax.random.key(0), jnp.zeros((1, 1, 256)))["params"]
    for gate in range(params["U"].shape[1]):
        own = np.asarray(params["U"][:, gate], np.float64)
        np.testing.assert_allclose(own @ own.T, np.eye(128), atol=1e-5)
    # 5 standard errors of the variance of 2^15 draws a gate, cut off as they are at two deviations
    np.testing.assert_allclose(np.var(params["W"], axis=(0, 2)) * 256, 1, atol=5 * math.sqrt(2 / 2**15))
    assert all(not np.any(params[bias]) for bias in {"b", "c"} & set(params))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def min_gru_loop(p, u, reset):
    h, y, gates, targets = np.zeros(N), [], [], []
    for x, forget in zip(u, reset, strict=True):
        z, target = sigmoid(x @ p["W"][:, 0] + p["b"][0]), x @ p["W"][:, 1] + p["b"][1]
        h = (1 - z) * (0 if forget else h) + z * target
        y.append(h @ p["C"])
        gates.append(z)
        targets.append(target)
    return np.array(y), np.array(gates), np.array(targets), h


def min_gru_looped(x, reset):
    params = jax.tree.map(lambda value: np.asarray(value, np.float64), PARAMS["min_gru"])
    return [
        np.stack(part)
        for part in zip(
            *(min_gru_loop(params, u, r) for u, r in zip(np.asarray(x, np.float64), reset, strict=True)), strict=True
        )
    ]


def test_min_gru_equals_the_papers_equations_in_a_loop():
    reset = np.zeros((2, STEPS), bool)
    reset[0, 4] = reset[1, 7] = reset[1, 0] = True
    (y, last), sown = LAYERS["min_gru"].apply(
        {"params": PARAMS["min_gru"]}, X, reset=jnp.asarray(reset), mutable=["intermediates"]
    )
    expected, gates, _, end = min_gru_looped(X, reset)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(last, end, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sown["intermediates"]["gate"][0], gates, rtol=1e-5)


@pytest.mark.parametrize("name", ["gru", "lstm", "min_gru"])
def test_gates_say_what_is_updated(name):
    """Gates of 0 to float32's last digit keep what is carried, for ever; gates of 1 leave nothing of it."""
    which = {"gru": 1, "lstm": 1, "min_gru": 0}[name]  # z keeps in a GRU, f in an LSTM; z updates in a minGRU
    start = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.3), LAYERS[name].initial_state(2))
    for gate in (0.0, 1.0):
        closes = (gate == 0) != (name == "min_gru")
        params = {**PARAMS[name], "b": PARAMS[name]["b"].at[which].set(200.0 if closes else -200.0)}
        if name == "lstm":
            params["b"] = params["b"].at[0].set(-200.0)  # the input gate is another one
        (_, last), sown = LAYERS[name].apply({"params": params}, X, start, mutable=["intermediates"])
        assert (sown["intermediates"]["gate"][0] == gate).all()
        kept = last["c"] if name == "lstm" else last
        assert (kept == 0.3).all() if gate == 0 else (kept != 0.3).all()


def edges(inputs, count):
    """Random inputs on the edge of a set, half of them within, (count, 1, D)."""
    x = np.random.default_rng(0).normal(size=(count, D))
    x = (
        inputs.radius * np.sign(x)
        if isinstance(inputs, Box)
        else inputs.radius * np.asarray(inputs.scale) * x / np.linalg.norm(x, axis=1, keepdims=True)
    )
    x[::2] *= np.random.default_rng(1).uniform(size=(len(x[::2]), 1))
    return jnp.asarray(x[:, None], jnp.float32)


SETS = pytest.mark.parametrize("inputs", [Box(0.5), Ball(jnp.linspace(0.5, 1.5, D), math.sqrt(D))], ids=["box", "ball"])


def derivatives(layer, params, x, state):
    """Of the state after a step by that before it, (count, n, n), c before h where there are both."""
    names = ["c", "h"] if isinstance(state, dict) else []

    def flat(state):
        return jnp.concatenate([state[name] for name in names]) if names else state

    def step(given, x):
        given = dict(zip(names, jnp.split(given, 2), strict=True)) if names else given
        _, after = layer.apply({"params": params}, x[None], jax.tree.map(lambda leaf: leaf[None], given))
        return flat(jax.tree.map(lambda leaf: leaf[0], after))

    return jax.jit(jax.vmap(jax.jacrev(step)))(jax.vmap(flat)(state), x)


def reachable_states(name, params, inputs, count):
    """States on the edge of what can be reached: |h| <= 1, and cells to which open input gates added up for 200
    steps.
    """
    h = jnp.sign(jax.random.normal(jax.random.key(5), (count, N))) * (jnp.arange(count) % 3 / 2)[:, None]
    if name != "lstm":
        return h
    x = jnp.repeat(edges(inputs, count), 200, axis=1)
    return {"h": h * 0.999, "c": LAYERS["lstm"].apply({"params": params}, x)[1]["c"]}


@SETS
@pytest.mark.parametrize("size", [0.05, 0.6], ids=["small", "large"])
@CELLS
def test_no_input_and_no_state_break_the_bounds_of_the_jacobian(name, size, inputs):
    layer, params = LAYERS[name], drawn(LAYERS[name], size)
    params["U"] = size * params["U"]
    stated = np.asarray(layer.apply({"params": params}, inputs, method="bounds").jacobian, np.float64)
    found = np.abs(derivatives(layer, params, edges(inputs, 400), reachable_states(name, params, inputs, 400))).max(
        axis=0
    )
    assert (found <= stated * (1 + 1e-5) + 1e-7).all()
    assert (found > 0.1 * stated).any(axis=1).all(), "not so wide that nothing could break them"


@SETS
def test_no_input_breaks_the_bounds_of_min_gru(inputs):
    bounds = LAYERS["min_gru"].apply({"params": PARAMS["min_gru"]}, inputs, method="bounds")
    _, gates, targets, _ = min_gru_looped(edges(inputs, 1000), np.zeros((1000, 1), bool))
    gates, targets = gates[:, 0], np.abs(targets[:, 0])
    low, high, largest = (
        np.asarray(value, np.float64)[None] for value in (bounds.gate_min, bounds.gate_max, bounds.drive_bound)
    )
    assert (
        (gates >= low * (1 - 1e-5)).all()
        and (gates <= high * (1 + 1e-5)).all()
        and (targets <= largest * (1 + 1e-5)).all()
    )
    assert (
        (gates.min(axis=0) < 1.2 * low[0]).all()
        and (gates.max(axis=0) > 0.8 * high[0]).all()
        and (targets.max(axis=0) > 0.8 * largest[0]).all()
    )


@EVERY
def test_small_recurrent_weights_are_certified_and_two_states_meet_as_fast_as_is_said(name):
    layer, params = LAYERS[name], dict(PARAMS[name])
    if "U" in params:
        params["U"] = 0.05 * params["U"]
    found = certify(layer, params, input_bound=1.0)
    assert found.contraction.status == "holds" and 0 < found.contraction.rate < 1
    starts = [
        jax.tree.map(lambda leaf, sign=sign: jnp.full(leaf.shape, 0.9 * sign), layer.initial_state(2))
        for sign in (1, -1)
    ]
    x = jnp.clip(jax.random.normal(jax.random.key(7), (2, 60, D)), -1, 1)
    one, other = (layer.apply({"params": params}, x, start)[1] for start in starts)
    apart = max(float(jnp.abs(a - b).max()) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
    assert apart <= found.contraction.constant * found.contraction.rate**60 * 1.8 + 1e-6


@EVERY
def test_what_is_not_certified_says_why(name):
    """Orthogonal maps of a recurrent network, and gates that inputs can close."""
    found = certify(LAYERS[name], PARAMS[name])
    assert found.contraction.status == "not established" and found.contraction.reason


def test_cells_without_a_bound_are_said_to_have_none():
    bounds = LAYERS["lstm"].apply({"params": PARAMS["lstm"]}, Box(math.inf), method="bounds")
    assert "as near to 1 as it likes" in bounds.unknown and certify_bounds(bounds).uniform.status == "not established"


def unread(params, kept):
    """The layer where components that are not kept are read by no other, which is what the smaller layer reads."""
    if "U" not in params:
        return params
    read = jnp.isin(jnp.arange(N), kept)
    return {**params, "U": params["U"] * read[:, None, None]}


@EVERY
def test_states_that_are_not_read_can_be_taken_out(name):
    layer, axes, kept = LAYERS[name], LAYERS[name].state_axes(), np.array([3, 1])
    params = unread(PARAMS[name], kept)
    masked = axes.mask_readout(params, jnp.zeros(N).at[kept].set(1.0))
    y, state = layer.apply({"params": masked}, X)
    small, left = layer.clone(d_state=2).apply({"params": axes.take(params, kept)}, X)
    np.testing.assert_allclose(small, y, rtol=1e-5, atol=1e-6)
    jax.tree.map(
        lambda part, whole: np.testing.assert_allclose(part, whole[:, kept], rtol=1e-5, atol=1e-6), left, state
    )
    assert np.abs(y - layer.apply({"params": params}, X)[0]).max() > 1e-3


@EVERY
def test_refuses_what_cannot_be(name):
    with pytest.raises(ValueError, match="d_state=0 is out of range: use at least 1"):
        LAYERS[name].clone(d_state=0).init(jax.random.key(0), X)
