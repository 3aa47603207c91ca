"""The RG-LRU against a float64 loop from its paper's equations; where it starts, what it states of itself, what pruning
takes.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.compression import pruning
from selssm_jax.config import Model, RGLRUConfig, Task
from selssm_jax.layers.bounds import Ball, Box
from selssm_jax.layers.rg_lru import RGLRU
from selssm_jax.model import SequenceModel
from selssm_jax.stability import certify

D, N, HEADS, STEPS = 3, 6, 2, 9
LAYER = RGLRU(D, N, HEADS)
X = jax.random.normal(jax.random.key(1), (2, STEPS, D))
RESET = np.zeros((2, STEPS), bool)
RESET[0, 4] = RESET[1, 6] = RESET[1, 0] = True


def drawn(layer):
    """Parameters that are all away from where they start, so that each of them matters."""
    params = jax.jit(layer.init)(jax.random.key(0), X)["params"]
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    return structure.unflatten(
        [leaf + 0.3 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    )


PARAMS = drawn(LAYER)
WIDE = jax.tree.map(lambda value: np.asarray(value, np.float64), PARAMS)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gelu(x):
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def affine(p, x):
    return x @ p["kernel"] + p["bias"]


def gate(p, which, x):
    """sigmoid(W x + b), W of HEADS blocks on its diagonal."""
    blocks, width = p["W"][which], N // HEADS
    W = np.zeros((N, N))
    for i in range(HEADS):
        part = slice(i * width, (i + 1) * width)
        W[part, part] = blocks[i]
    return sigmoid(x @ W + p["b"][which])


def loop(p, u, reset):
    """(y, gates 1 - a, drives of the gated form, states) of one sequence, a = sigmoid(Lambda')^(8 r) with
    sigmoid(Lambda') = exp(-softplus(Lambda)).
    """
    h, since, y, gates, drives, states = np.zeros(N), 0, [], [], [], []
    inward = [affine(p["inward"], x) for x in u]
    for t, row in enumerate(u):
        if reset[t]:
            h, since = np.zeros(N), t
        x = p["conv"]["bias"] + sum(p["conv"]["kernel"][k] * inward[t - k] for k in range(4) if t - k >= since)
        a = sigmoid(-p["Lambda"]) ** (8 * gate(p, 0, x))
        drive = np.sqrt(1 - a**2) * gate(p, 1, x) * x
        h = a * h + drive
        y.append(affine(p["outward"], h * gelu(affine(p["branch"], row))))
        gates.append(1 - a)
        drives.append(drive / (1 - a))
        states.append(h)
    return np.array(y), np.array(gates), np.array(drives), np.array(states)


def looped(x, reset):
    return [
        np.stack(part)
        for part in zip(*(loop(WIDE, u, r) for u, r in zip(np.asarray(x, np.float64), reset, strict=True)), strict=True)
    ]


def test_equals_the_papers_equations_in_a_loop():
    (y, last), sown = jax.jit(lambda reset: LAYER.apply({"params": PARAMS}, X, reset=reset, mutable=["intermediates"]))(
        jnp.asarray(RESET)
    )
    expected, gates, _, states = looped(X, RESET)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sown["intermediates"]["gate"][0], gates, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(sown["intermediates"]["state"][0], states, rtol=1e-5, atol=1e-5)
    assert (last["h"] == sown["intermediates"]["state"][0][:, -1]).all()


def test_starts_with_decays_on_a_ring_when_gates_are_open():
    params = jax.jit(RGLRU(4, 1024).init)(jax.random.key(0), jnp.zeros((1, 1, 4)))["params"]
    a = np.exp(-8 * np.logaddexp(0, np.asarray(params["Lambda"], np.float64)))
    share = (a**2 - 0.9**2) / (0.999**2 - 0.9**2)
    np.testing.assert_allclose(np.quantile(share, [0, 0.5, 1]), [0, 0.5, 1], atol=0.08)
    # LeCun's scale of a block's own width, 256; 5 standard errors of 2^19 draws
    assert abs(np.var(params["W"]) * 256 - 1) < 5 * math.sqrt(2 / 2**19) and not np.any(params["b"])


def test_gradients_are_numbers_where_nothing_decays():
    """a = 1 to float32's last digit: the slope of sqrt(1 - a^2) would have no bound."""
    params = {**PARAMS, "Lambda": jnp.full(N, -40.0)}
    slopes = jax.grad(lambda params: jnp.square(LAYER.apply({"params": params}, X)[0]).sum())(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


@pytest.mark.parametrize("inputs", [Box(0.5), Ball(jnp.linspace(0.5, 1.5, D), math.sqrt(D))], ids=["box", "ball"])
def test_no_input_breaks_the_bounds(inputs):
    """Random ones and corners of the set, several steps long, so that the convolution is full of them too."""
    bounds = LAYER.apply({"params": PARAMS}, inputs, method="bounds")
    x = np.sign(np.random.default_rng(0).normal(size=(60, 5, D)))
    x = x * 0.5 if isinstance(inputs, Box) else np.asarray(inputs.scale) * x
    x[:30] *= np.random.default_rng(1).uniform(size=(30, 5, 1))
    _, gates, drives, _ = looped(x, np.zeros((60, 5), bool))
    low, high, largest = (
        np.asarray(value, np.float64)[None, None] for value in (bounds.gate_min, bounds.gate_max, bounds.drive_bound)
    )
    assert (
        (gates >= low * (1 - 1e-5)).all()
        and (gates <= high * (1 + 1e-5)).all()
        and (np.abs(drives) <= largest * (1 + 1e-5)).all()
    )
    assert (
        (low > 0).all()
        and (gates.max(axis=(0, 1)) > 0.3 * high[0, 0]).any()
        and (np.abs(drives).max(axis=(0, 1)) > 0.1 * largest[0, 0]).any()
    )


def test_is_certified_for_bounded_inputs_alone():
    bounded = certify(LAYER, PARAMS, input_bound=1.0)
    assert (
        bounded.uniform.status == "holds"
        and 0 < bounded.uniform.rate < 1
        and np.isfinite(bounded.invariant_radius).all()
    )
    assert certify(LAYER, PARAMS).uniform.status == "not established"


def unheard(params, kept):
    """The layer where inputs of components that are not kept reach no gate of another, which is what the smaller layer
    reads.
    """
    W = params["W"] * jnp.isin(jnp.arange(N // HEADS), kept)[None, None, :, None]
    return {**params, "W": W}


def test_states_that_are_not_read_can_be_taken_out_of_every_block_at_once():
    axes, kept = LAYER.state_axes(), np.array([2, 0])
    assert (axes.components, axes.size) == (N // HEADS, HEADS)
    params = unheard(PARAMS, kept)
    masked = axes.mask_readout(params, jnp.zeros(3).at[kept].set(1.0))
    y, state = LAYER.apply({"params": masked}, X)
    small, left = LAYER.clone(d_state=4).apply({"params": axes.take(params, kept)}, X)
    np.testing.assert_allclose(small, y, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(left["h"], state["h"][:, [2, 0, 5, 3]], rtol=1e-5, atol=1e-6)
    assert np.abs(y - LAYER.apply({"params": params}, X)[0]).max() > 1e-3


def test_a_model_of_it_is_pruned_to_a_smaller_one():
    tokens = jnp.arange(10).reshape(2, 5) % 4
    config = Model(pattern=("rg_lru",), d_model=D, d_state=N, rg_lru=RGLRUConfig(blocks=HEADS), task=Task(vocab=4))
    params = jax.jit(SequenceModel(config).init)(jax.random.key(0), tokens)["params"]
    scores = pruning.scores(SequenceModel(config), params, [], "magnitude")
    small, left = pruning.prune(config, params, pruning.choose(scores, 2))
    assert scores["block_0"].shape == (3,) and small.block_states == (4,)
    logits, state = SequenceModel(small).apply({"params": left}, tokens)
    assert logits.shape == (2, 5, 4) and state["blocks"][0]["mixer"]["h"].shape == (2, 4)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"blocks": 4}, "d_state=6 is no multiple of blocks=4"),
        ({"d_conv": 0}, "d_conv=0 is out of range: use at least 1"),
    ],
)
def test_refuses_what_cannot_be(fields, words):
    with pytest.raises(ValueError, match=words):
        LAYER.clone(**fields).init(jax.random.key(0), X)
