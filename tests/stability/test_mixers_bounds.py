"""What mixers state of themselves, attacked: no input of the set and no state leads beyond it, and some lead near
it.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.config import Model, Task
from selssm_jax.layers.attention import Attention
from selssm_jax.layers.bounds import Ball, Box
from selssm_jax.layers.linear import LRU, S4D, S5
from selssm_jax.layers.mamba import Mamba, Mamba2, _logits_after_silu
from selssm_jax.layers.recurrent import GRU, LSTM, RNN, MinGRU
from selssm_jax.layers.rg_lru import RGLRU
from selssm_jax.layers.tcn import TCN
from selssm_jax.model import SequenceModel
from selssm_jax.stability import certify, certify_model

D, N, RADIUS = 2, 4, 1.5
INVARIANT = {"s4d": S4D(D, N), "s5": S5(D, N), "lru": LRU(D, N)}
GATED = {
    "min_gru": MinGRU(D, N),
    "rg_lru": RGLRU(D, N, 2, 2),
    "mamba": Mamba(D, 3, d_conv=2),
    "mamba2": Mamba2(D, 3, 2, 1, d_conv=2),
}
CELLS = {"rnn": RNN(D, N), "gru": GRU(D, N), "lstm": LSTM(D, N)}
LINEAR = INVARIANT | GATED
# shares of bounds that inputs reach
NEAR = {"s4d": 0.99, "s5": 0.9, "lru": 0.9, "min_gru": 0.99, "rg_lru": 0.4, "mamba": 0.1, "mamba2": 0.05}
BALL = Ball(jnp.array([1.0, -0.5]), RADIUS)


@functools.cache
def start(layer):
    return jax.jit(layer.init)(jax.random.key(0), jnp.zeros((1, 2, D)))["params"]


def moved(layer, scale, seed=0):
    """Parameters as far from the start as training may bring them."""
    leaves, tree = jax.tree.flatten(start(layer))
    rng = np.random.default_rng(seed)
    return tree.unflatten([leaf + scale * rng.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves])


def scaled(layer, scale):
    """The parameters of a cell, its two maps times `scale`."""
    params = start(layer)
    return params | {name: scale * params[name] for name in ("U", "W")}


def box_inputs():
    """Two steps of every corner of the box, and of points within, (S, 2, D)."""
    corners = np.array(list(itertools.product((-1.0, 1.0), repeat=2 * D))).reshape(-1, 2, D)
    inner = np.random.default_rng(0).uniform(-1, 1, (240, 2, D))
    return jnp.asarray(RADIUS * np.concatenate([corners, inner]), jnp.float32)


def ball_inputs():
    """Two steps of points on the sphere."""
    x = np.random.default_rng(0).standard_normal((256, 2, D))
    x = RADIUS * x / np.linalg.norm(x, axis=-1, keepdims=True)
    return jnp.asarray(x * np.asarray(BALL.scale), jnp.float32)


SETS = {"box": (Box(RADIUS), box_inputs), "ball": (BALL, ball_inputs)}


@functools.partial(jax.jit, static_argnums=0)
def one_step(layer, params, x):
    """(the transition, the drive times the gate) of the last step: h_t at h_{t-1} = 1 less that at 0, and that at 0."""
    _, state = layer.apply({"params": params}, x[:, :-1])
    twice = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), {"x": x[:, -1:], "state": state})
    h = state["h"] if isinstance(state, dict) else state
    h = jnp.concatenate([jnp.zeros_like(h), jnp.ones_like(h)])
    _, after = layer.apply({"params": params}, twice["x"], twice["state"] | {"h": h} if isinstance(state, dict) else h)
    at_0, at_1 = jnp.split(after["h"] if isinstance(after, dict) else after, 2)
    return at_1 - at_0, at_0


def stated(layer, params, inputs):
    return layer.apply({"params": params}, inputs, method="bounds")


def shaped(layer, value, like):
    """A bound of all components in the shape of the state, (1, ...); of Mamba one a state, for all channels, of Mamba-2
    one a head.
    """
    value = np.asarray(value)
    if isinstance(layer, Mamba):
        return value[None, None]
    return value[None, :, None, None] if isinstance(layer, Mamba2) else value.reshape(1, *like.shape[1:])


@pytest.mark.parametrize("kind", LINEAR)
@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("inputs", SETS)
def test_no_input_of_a_set_leads_gates_or_drives_beyond_what_is_stated(kind, scale, inputs):
    layer, (region, points) = LINEAR[kind], SETS[inputs]
    params = moved(layer, scale)
    bounds = stated(layer, params, region)
    A, driven = (np.asarray(value) for value in one_step(layer, params, points()))
    low, high, most = (shaped(layer, value, A) for value in (bounds.gate_min, bounds.gate_max, bounds.drive_bound))
    if kind in INVARIANT:
        np.testing.assert_allclose(A, np.broadcast_to(shaped(layer, bounds.A, A), A.shape), atol=1e-5)
        gate = np.ones(A.shape)
    else:
        assert not np.any(bounds.A)
        gate = 1 - A
    rounding = 1e-6 * (1 + np.abs(driven))  # of the difference that `gate` is
    assert (gate >= low * (1 - 1e-5) - rounding).all() and (gate <= high * (1 + 1e-5) + rounding).all()
    share = np.abs(driven) / np.maximum((gate + rounding) * most, 1e-30)
    assert (share <= 1 + 1e-5).all()
    assert scale > 0.5 or share.max() >= NEAR[kind], share.max()
    if kind == "min_gru" and inputs == "box":
        corner = gate.min(axis=0), gate.max(axis=0)
        np.testing.assert_allclose(corner[0], low[0], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(corner[1], high[0], rtol=1e-4, atol=1e-6)


def points_of_a_cell(layer, params, count=256):
    """States within |h| <= 1, corners among them, and cells within what sums of gated tanhs can be."""
    rng = np.random.default_rng(1)
    h = np.concatenate([rng.uniform(-1, 1, (count // 2, N)), rng.choice([-1.0, 1.0], (count // 2, N))]).astype(
        np.float32
    )
    if not isinstance(layer, LSTM):
        return jnp.asarray(h)
    spread = np.abs(np.asarray(params["W"], np.float64)).sum(axis=0) * RADIUS + np.abs(
        np.asarray(params["U"], np.float64)
    ).sum(axis=0)
    i, f = (1 / (1 + np.exp(-(np.asarray(params["b"])[gate] + spread[gate]))) for gate in (0, 1))
    return {"h": jnp.asarray(h), "c": jnp.asarray(rng.uniform(-1, 1, h.shape) * i / (1 - f), jnp.float32)}


@functools.partial(jax.jit, static_argnums=0)
def jacobians(layer, params, states, x):
    """df/dh of one step at each state and input, (S, n, n); of an LSTM c comes first."""

    def after(flat, x):
        state = dict(zip(("c", "h"), jnp.split(flat, 2), strict=True)) if isinstance(layer, LSTM) else flat
        new = layer.apply({"params": params}, x[None, None], jax.tree.map(lambda leaf: leaf[None], state))[1]
        return jnp.concatenate([new["c"], new["h"]], axis=-1)[0] if isinstance(new, dict) else new[0]

    flat = jnp.concatenate([states["c"], states["h"]], axis=-1) if isinstance(states, dict) else states
    return jax.vmap(jax.jacfwd(after))(flat, x)


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0])
def test_no_state_and_no_input_of_a_set_lead_beyond_the_jacobian_that_is_stated(kind, scale):
    layer = CELLS[kind]
    params = moved(layer, scale)
    bounds = stated(layer, params, Box(RADIUS))
    J = np.abs(np.asarray(jacobians(layer, params, points_of_a_cell(layer, params), box_inputs()[:, -1])))
    most = np.asarray(bounds.jacobian)
    assert (most[None] * (1 + 1e-5) + 1e-7 - J >= 0).all()
    assert scale or (J / np.maximum(most, 1e-9)[None]).max() >= 0.5


def test_cells_of_an_lstm_are_never_beyond_what_its_bound_rests_on():
    layer = CELLS["lstm"]
    params = moved(layer, 0.5)
    x = jnp.asarray(np.random.default_rng(0).choice([-RADIUS, RADIUS], (64, 1, D)).repeat(60, axis=1), jnp.float32)
    last = jax.jit(lambda x: layer.apply({"params": params}, x)[1])(x)
    spread = jnp.abs(params["W"]).sum(axis=0) * RADIUS + jnp.abs(params["U"]).sum(axis=0) + params["b"]
    most = jax.nn.sigmoid(spread[0]) / jax.nn.sigmoid(-spread[1])
    assert (jnp.abs(last["c"]) <= most[None]).all() and (jnp.abs(last["h"]) <= 1).all()


@pytest.mark.parametrize("kind", INVARIANT)
def test_time_invariant_layers_forget_at_the_rate_of_their_slowest_pole(kind):
    layer = INVARIANT[kind]
    found = certify(layer, start(layer))
    assert found.contraction.status == found.lyapunov.status == "holds"
    assert found.contraction.rate == pytest.approx(
        float(jnp.abs(stated(layer, start(layer), Box(1.0)).A).max()), rel=1e-6
    )


@pytest.mark.parametrize("kind", GATED)
def test_gates_of_the_input_contract_where_inputs_are_bounded(kind):
    layer = GATED[kind]
    found = certify(layer, start(layer), input_bound=RADIUS)
    assert found.contraction.status == "holds" and math.isfinite(found.horizon())
    A, _ = one_step(layer, start(layer), box_inputs())
    assert float(A.max()) <= found.contraction.rate * (1 + 1e-6)
    anything = certify(layer, start(layer)).contraction
    assert anything.status == "not established" and anything.reason


@pytest.mark.parametrize(("kind", "small", "large"), [("rnn", 0.3, 2.0), ("gru", 0.1, 2.0), ("lstm", 0.1, 2.0)])
def test_cells_of_small_weights_contract_and_of_large_ones_nothing_is_established(kind, small, large):
    layer = CELLS[kind]
    params = scaled(layer, small)
    verdict = certify(layer, params, input_bound=RADIUS).contraction
    assert verdict.status == "holds", verdict
    x = box_inputs()[:, -1:].repeat(20, axis=1)
    starts = [
        jax.tree.map(lambda leaf, sign=sign: jnp.full_like(leaf, sign), layer.initial_state(len(x)))
        for sign in (-0.5, 0.5)
    ]
    apart = jax.jit(
        lambda one, two: jax.tree.map(
            jnp.subtract, *(layer.apply({"params": params}, x, start)[1] for start in (one, two))
        )
    )(*starts)
    left = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(apart))
    assert left <= verdict.constant * verdict.rate**20 + 1e-6
    refused = certify(layer, scaled(layer, large), input_bound=RADIUS).contraction
    assert refused.status == "not established" and refused.reason


def test_of_an_lstm_that_reads_anything_nothing_is_established():
    layer = CELLS["lstm"]
    found = certify(layer, scaled(layer, 0.1)).contraction
    assert found.status == "not established" and "neither have the cells" in found.reason
    assert certify(CELLS["rnn"], scaled(CELLS["rnn"], 0.3)).contraction.status == "holds", (
        "tanh bounds what it may read"
    )


@pytest.mark.parametrize("layer", [Attention(4, 2, 8), TCN(4, 3, 1)], ids=["attention", "tcn"])
def test_of_memories_that_are_no_recurrence_nothing_is_established_and_why_is_said(layer):
    params = jax.jit(layer.init)(jax.random.key(0), jnp.zeros((1, 2, 4)))["params"]
    found = certify(layer, params, input_bound=1.0).contraction
    assert found.status == "not established" and found.reason, found


def test_weights_of_zero_read_no_infinity():
    """Bounds of unbounded inputs are numbers or infinite, never undefined."""
    for kind, layer in LINEAR.items():
        params = jax.tree.map(jnp.zeros_like, start(layer))
        bounds = stated(layer, params, Box(math.inf))
        for value in (bounds.A, bounds.gate_min, bounds.gate_max, bounds.drive_bound):
            assert not bool(jnp.isnan(value).any()), kind


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "rg_lru"])
def test_a_horizon_counts_the_steps_that_a_convolution_still_reads_an_input(kind):
    layer = GATED[kind]
    found = certify(layer, start(layer), input_bound=RADIUS)
    assert found.delay == layer.d_conv - 1 > 0
    assert found.horizon() == found.contraction.horizon(1e-3) + layer.d_conv - 1


def test_a_horizon_counts_the_convolution_of_its_block_too():
    config = Model(pattern=("rg_lru",), d_model=4, d_state=4, conv=3, task=Task("language", vocab=5))
    model = SequenceModel(config)
    params = model.init(jax.random.key(0), jnp.zeros((1, 2), int))["params"]
    (found,) = certify_model(model, params).values()
    assert found.delay == (3 - 1) + (4 - 1)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_cells_state_the_box_that_their_certificate_holds_on_and_that_a_state_may_lie_outside(kind):
    layer = CELLS[kind]
    params = scaled(layer, 0.1)
    found = certify(layer, params, input_bound=RADIUS)
    assert found.contraction.status == "holds" and "may lie outside" in found.contraction.reason
    assert found.invariant_radius is not None and (found.invariant_radius[-N:] == 1).all()
    most = np.asarray(stated(layer, params, Box(RADIUS)).jacobian)
    inside = points_of_a_cell(layer, params)
    outside = jax.tree.map(lambda leaf: 40 * leaf, inside)
    J = np.abs(np.asarray(jacobians(layer, params, outside, box_inputs()[:, -1])))
    assert (most[None] * 1.01 < J).any(), "outside a step may stretch more than is certified"


def test_a_cell_without_gates_is_certified_wherever_its_state_is():
    assert certify(CELLS["rnn"], scaled(CELLS["rnn"], 0.3)).invariant_radius is None


@pytest.mark.parametrize("kind", ["ball", "box", "box with a bias before the convolution"])
def test_sums_over_channels_know_that_these_read_the_same_inputs(kind):
    """Ascent on the inputs of four steps: step sizes stay within what is stated, which is less wide than where all
    channels are largest at once.
    """
    layer, rng, D = Mamba(32, 4, projection_bias="bias" in kind), np.random.default_rng(0), 32
    params = layer.init(jax.random.key(0), jnp.zeros((1, 2, D)))["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.2 * jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32), params)
    inputs = Ball(jnp.ones(D), D**0.5) if kind == "ball" else Box(0.5)

    @functools.partial(jax.grad, has_aux=True)
    def rise(u):
        u = u / jnp.linalg.norm(u, axis=-1, keepdims=True) * D**0.5 if kind == "ball" else jnp.clip(u, -0.5, 0.5)
        (_, _), seen = layer.apply(
            {"params": params},
            u,
            capture_intermediates=lambda module, _: module.name == "conv",
            mutable=["intermediates"],
        )
        logits = jax.nn.silu(seen["intermediates"]["conv"]["__call__"][0][0][:, -1]) @ params["down"] @ params["up"]
        return (logits * sign).sum(), logits

    def stated(layer):
        bias = jnp.zeros(2 * D) if layer.inward_bias is None else layer.inward_bias[: 2 * D]
        x = layer.conv.after_map(inputs, layer.inward[:, : 2 * D], bias)
        return layer._logits_of_steps(x), _logits_after_silu(x, layer.down @ layer.up)

    (low, high), boxed = layer.apply({"params": params}, method=stated)
    sign = jnp.where(jnp.arange(2 * D)[:, None] == jnp.arange(2 * D)[None], rng.choice([-1.0, 1.0], 2 * D)[:, None], 0)
    u, climb = jnp.asarray(rng.standard_normal((2 * D, 4, D)), jnp.float32), jax.jit(rise)
    for _ in range(40):
        up, logits = climb(u)
        assert (logits >= low[None] - 1e-4).all() and (logits <= high[None] + 1e-4).all()
        u = u + 0.3 * up / (1e-9 + jnp.linalg.norm(up, axis=-1, keepdims=True))
    share = (logits * sign).sum(axis=1) / jnp.where(sign.sum(axis=1) > 0, high, -low)
    assert share.max() > 0.15, "not so wide that nothing could break them"
    assert ((high - low) < (0.8 if kind == "ball" else 0.95) * (boxed[1] - boxed[0])).all()


def test_what_a_silu_lets_through_is_not_as_far_below_zero_as_above():
    rng = np.random.default_rng(0)
    kernel, radius = rng.normal(size=(6, 3)), rng.uniform(1.3, 5, 6)
    low, high = _logits_after_silu(Box(jnp.asarray(radius, jnp.float32)), jnp.asarray(kernel, jnp.float32))
    x = rng.uniform(-radius, radius, (20_000, 6))
    x = np.concatenate([x, radius * np.sign(kernel.T), np.where(kernel.T > 0, np.maximum(-radius, -1.2784645), radius)])
    reached = np.asarray(jax.nn.silu(x)) @ kernel
    assert (reached >= np.asarray(low) - 1e-5).all() and (reached <= np.asarray(high) + 1e-5).all()
    assert (reached.min(axis=0) <= 0.9 * np.asarray(low)).all()
    assert (-np.asarray(low) < np.abs(kernel).T @ radius - 0.5).all(), "what was said when both sides were alike"
