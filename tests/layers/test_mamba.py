"""Mamba and Mamba-2 against float64 loops from their papers' equations; where they start, what they state of
themselves, what pruning takes.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.compression import pruning
from selssm_jax.config import Model, Task
from selssm_jax.layers.bounds import Ball, Box
from selssm_jax.layers.mamba import FalconMamba, Mamba, Mamba2, step_size_bias
from selssm_jax.model import SequenceModel
from selssm_jax.stability import certify

D, STEPS = 6, 11
LAYERS = {"mamba": Mamba(D, 4, dt_rank=2), "mamba2": Mamba2(D, 4, heads=4, groups=2)}
X = jax.random.normal(jax.random.key(1), (2, STEPS, D))
RESET = np.zeros((2, STEPS), bool)
RESET[0, 4] = RESET[1, 7] = RESET[1, 0] = True


def drawn(layer):
    """Parameters that are all away from where they start, so that each of them matters."""
    params = layer.init(jax.random.key(0), X)["params"]
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    return structure.unflatten(
        [leaf + 0.3 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    )


PARAMS = {name: drawn(layer) for name, layer in LAYERS.items()}


def silu(x):
    return x / (1 + np.exp(-x))


def softplus(x):
    return np.logaddexp(0, x)


def convolved(conv, inputs, t, since):
    """silu(sum_k w_k x_{t-k} + bias) over inputs that are not before `since`."""
    return silu(conv["bias"] + sum(conv["kernel"][k] * inputs[t - k] for k in range(4) if t - k >= since))


def mamba_loop(p, u, reset):
    """(y, gates, drives u of the retained form, last state) of one sequence."""
    inner = p["D"].size
    h, since, y, gates, drives = np.zeros_like(p["A_log"]), 0, [], [], []
    before = [row @ p["in"] for row in u]
    for t, row in enumerate(before):
        if reset[t]:
            h, since = np.zeros_like(h), t
        x = convolved(p["conv"], [r[:inner] for r in before], t, since)
        dt = softplus(x @ p["down"] @ p["up"] + p["dt_bias"])
        decay = np.exp(dt[:, None] * -np.exp(p["A_log"]))
        drive = np.outer(dt * x, x @ p["B"])
        h = decay * h + drive
        y.append(((h @ (x @ p["C"]) + p["D"] * x) * silu(row[inner:])) @ p["out"])
        gates.append(1 - decay)
        drives.append(drive / (1 - decay))
    return np.array(y), np.array(gates), np.array(drives), h


def mamba2_loop(p, u, reset, heads=4, groups=2):
    inner = p["norm"]["scale"].size
    width, states = inner // heads, p["B"].shape[1] // groups
    h, since, y, gates, drives = np.zeros((heads, width, states)), 0, [], [], []
    before = {"x": [r @ p["in"][:, inner:] for r in u], "B": [r @ p["B"] for r in u], "C": [r @ p["C"] for r in u]}
    for t, row in enumerate(u):
        if reset[t]:
            h, since = np.zeros_like(h), t
        x, B, C = (convolved(p[f"{name}_conv"], before[name], t, since) for name in "xBC")
        dt = softplus(row @ p["rate"] + p["dt_bias"])
        decay = np.exp(-dt * np.exp(p["A_log"]))
        out, drive = np.zeros((heads, width)), np.zeros_like(h)
        for i in range(heads):
            mine, group = x.reshape(heads, width)[i], i // (heads // groups)
            drive[i] = dt[i] * np.outer(mine, B.reshape(groups, states)[group])
            h[i] = decay[i] * h[i] + drive[i]
            out[i] = h[i] @ C.reshape(groups, states)[group] + p["D"][i] * mine
        gated = (out.ravel() * silu(row @ p["in"][:, :inner])).reshape(groups, -1)
        y.append(
            (gated / np.sqrt((gated**2).mean(axis=1, keepdims=True) + 1e-5) * p["norm"]["scale"]).ravel() @ p["out"]
        )
        gates.append(1 - decay)
        drives.append(drive / (1 - decay)[:, None, None])
    return np.array(y), np.array(gates), np.array(drives), h


LOOPS = {"mamba": mamba_loop, "mamba2": mamba2_loop}


def looped(name, x, reset):
    params = jax.tree.map(lambda value: np.asarray(value, np.float64), PARAMS[name])
    return [
        np.stack(part)
        for part in zip(
            *(LOOPS[name](params, u, r) for u, r in zip(np.asarray(x, np.float64), reset, strict=True)), strict=True
        )
    ]


@pytest.mark.parametrize("name", LAYERS)
def test_equals_the_papers_equations_in_a_loop(name):
    (y, state), sown = LAYERS[name].apply(
        {"params": PARAMS[name]}, X, reset=jnp.asarray(RESET), mutable=["intermediates"]
    )
    expected, gates, _, last = looped(name, X, RESET)
    np.testing.assert_allclose(y, expected, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(state["h"], last, rtol=2e-4, atol=2e-5)
    gate = sown["intermediates"]["gate"][0]
    np.testing.assert_allclose(gate, gates.mean(axis=2) if name == "mamba" else gates, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_starts_as_published(name):
    params = LAYERS[name].init(jax.random.key(0), X)["params"]
    dt = np.logaddexp(0, np.asarray(params["dt_bias"], np.float64))
    assert dt.min() > 0.999e-3 and dt.max() < 0.1001
    np.testing.assert_array_equal(params["D"], np.ones_like(params["D"]))
    poles = np.exp(params["A_log"])
    if name == "mamba":
        np.testing.assert_allclose(poles, np.tile(np.arange(1, 5), (2 * D, 1)), rtol=1e-6)
    else:
        assert ((poles >= 1) & (poles <= 16)).all() and np.ptp(poles) > 0


def test_step_sizes_start_log_uniform():
    dt = np.logaddexp(0, np.asarray(step_size_bias(jax.random.key(0), (512,)), np.float64))
    share = np.log(dt / 1e-3) / math.log(100)
    np.testing.assert_allclose(np.quantile(share, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.06)


@pytest.mark.parametrize("inputs", [Box(0.5), Ball(jnp.linspace(0.5, 1.5, D), math.sqrt(D))], ids=["box", "ball"])
@pytest.mark.parametrize("name", LAYERS)
def test_no_input_breaks_the_bounds(name, inputs):
    """Random ones and corners of the set, several steps long, so that the convolution is full of them too."""
    bounds = LAYERS[name].apply({"params": PARAMS[name]}, inputs, method="bounds")
    x = np.sign(np.random.default_rng(0).normal(size=(60, 5, D)))
    x = x * 0.5 if isinstance(inputs, Box) else np.asarray(inputs.scale) * x
    x[:30] *= np.random.default_rng(1).uniform(size=(30, 5, 1))
    _, gates, drives, _ = looped(name, x, np.zeros((60, 5), bool))
    drives = np.abs(drives) if name == "mamba" else np.abs(drives).max(axis=(3, 4))
    low, high, largest = (
        np.asarray(value, np.float64) for value in (bounds.gate_min, bounds.gate_max, bounds.drive_bound)
    )
    gates, drives = gates.reshape(-1, 4), drives.reshape(-1, 4)
    assert (gates >= low[None] * (1 - 1e-5)).all() and (gates <= high[None] * (1 + 1e-5)).all()
    assert (drives <= largest[None] * (1 + 1e-5)).all()
    assert (low > 0).all() and (gates.max(axis=0) > 0.3 * high).any()  # not so wide that nothing could break them
    assert (drives.max(axis=0) > 0.01 * largest).any()


@pytest.mark.parametrize("name", LAYERS)
def test_is_certified_for_bounded_inputs_alone(name):
    bounded = certify(LAYERS[name], PARAMS[name], input_bound=1.0)
    assert (
        bounded.uniform.status == "holds"
        and 0 < bounded.uniform.rate < 1
        and np.isfinite(bounded.invariant_radius).all()
    )
    assert certify(LAYERS[name], PARAMS[name]).uniform.status == "not established"


@pytest.mark.parametrize("name", LAYERS)
def test_states_that_are_not_read_can_be_taken_out(name):
    layer, axes = LAYERS[name], LAYERS[name].state_axes()
    kept = np.array([0, 3])
    masked = axes.mask_readout(PARAMS[name], jnp.zeros(4).at[kept].set(1.0))
    y, state = layer.apply({"params": masked}, X)
    small, left = layer.clone(d_state=2).apply({"params": axes.take(PARAMS[name], kept)}, X)
    np.testing.assert_allclose(small, y, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(left["h"], state["h"][..., kept], rtol=1e-5, atol=1e-6)
    assert np.abs(y - layer.apply({"params": PARAMS[name]}, X)[0]).max() > 1e-3


@pytest.mark.parametrize("name", LAYERS)
def test_a_mask_of_ones_changes_nothing(name):
    masked = LAYERS[name].state_axes().mask_readout(PARAMS[name], jnp.ones(4))
    np.testing.assert_array_equal(
        LAYERS[name].apply({"params": masked}, X)[0], LAYERS[name].apply({"params": PARAMS[name]}, X)[0]
    )


def test_pruning_by_gates_needs_a_gate_of_every_component():
    tokens = np.zeros((1, 5), np.int32)
    batch = {
        "inputs": tokens,
        "targets": tokens,
        "weights": np.ones((1, 5), np.float32),
        "valid": np.ones((1, 5), bool),
    }
    model = SequenceModel(Model(pattern=("mamba2",), d_model=D, d_state=3, task=Task(vocab=4)))
    params = model.init(jax.random.key(0), jnp.asarray(tokens))["params"]
    with pytest.raises(
        ValueError, match=r"block_0: its mixer has 4 gates for 3 components.*use another score than 'gate'"
    ):
        pruning.scores(model, params, [batch], "gate")
    with pytest.raises(ValueError, match="a Mamba2 is not time-invariant"):
        pruning.scores(model, params, [batch], "hankel")
    assert pruning.scores(model, params, [batch], "information")["block_0"].shape == (3,)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (Mamba(D, 0), "d_state=0 is out of range: use at least 1"),
        (Mamba(D, 4, d_conv=0), "d_conv=0 is out of range: use at least 1"),
        (Mamba2(D, 4, heads=5), r"expand \* d_model=12 is no multiple of heads=5"),
        (Mamba2(D, 4, heads=4, groups=3), "heads=4 is no multiple of groups=3"),
        (
            Mamba(D, 4, method="associative"),
            "method='associative' would store all states of 'mamba'.*use 'auto', 'sequential' or 'chunked'",
        ),
    ],
)
def test_refuses_what_cannot_be(layer, words):
    with pytest.raises(ValueError, match=words):
        layer.init(jax.random.key(0), X)


VARIANTS = {
    "biases": Mamba(D, 4, projection_bias=True, conv_bias=False),
    "Falcon's norms": FalconMamba(D, 4, projection_bias=True, inner_norm_epsilon=1e-3),
    "limited steps": Mamba2(D, 4, 2, 1, projection_bias=True, conv_bias=False, dt_limit=(0.02, 0.3)),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_imported_models_carry_their_state_and_keep_their_bounds(name):
    layer = VARIANTS[name]
    drawn = jax.jit(layer.init)(jax.random.key(0), X)
    params = {
        "params": jax.tree.map(
            lambda leaf: leaf + 0.5 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), drawn["params"]
        )
    }
    (y, last), sown = layer.apply(params, X, mutable="intermediates")
    first, state = layer.apply(params, X[:, :3])
    second, state = layer.apply(params, X[:, 3:], state)
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), y, rtol=2e-4, atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), state, last)
    bounds = layer.apply(params, Box(float(jnp.abs(X).max())), method="bounds")
    gate, low, high, drive, h = map(
        np.asarray, (sown["intermediates"]["gate"][0], bounds.gate_min, bounds.gate_max, bounds.drive_bound, last["h"])
    )
    assert (gate >= low * (1 - 1e-5)).all() and (gate <= high * (1 + 1e-5)).all()
    largest = np.abs(h).max(axis=(0, 2, 3) if name == "limited steps" else (0, 1))
    assert (largest <= drive * (1 + 1e-5)).all()  # h is a mean of drives, by gates
    assert callable(getattr(layer, "state_axes", None)) == (name != "Falcon's norms")
