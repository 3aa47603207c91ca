"""Two directions: what each sees, where padding and documents end, and what a block makes of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.compression import pruning
from selssm_jax.config import AttentionConfig, Model, Task
from selssm_jax.layers.bidirectional import Bidirectional
from selssm_jax.layers.bounds import Box
from selssm_jax.layers.recurrent import LSTM
from selssm_jax.layers.rg_lru import RGLRU
from selssm_jax.model import SequenceModel

B, T, D, N = 2, 8, 3, 4
X = jax.random.normal(jax.random.key(1), (B, T, D))
MIXERS = {"lstm": LSTM(D, N), "rg_lru": RGLRU(D, N, blocks=2)}
EVERY = pytest.mark.parametrize("name", MIXERS)
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@functools.cache
def build(name):
    layer = Bidirectional(MIXERS[name], MIXERS[name].clone())
    return layer, jax.jit(layer.init)(jax.random.key(0), X)


@functools.partial(jax.jit, static_argnums=0)
def read(layer, variables, x, state=None, reset=None, **given):
    return layer.apply(variables, x, state, reset=reset, **given)


def split(variables):
    """(the forward mixer's variables, the backward one's)."""
    own = dict(variables["params"])
    backward = own.pop("backward")
    return {"params": own}, {"params": backward}


@EVERY
def test_is_the_sum_of_both_readings_and_carries_the_first(name):
    layer, variables = build(name)
    first, second = split(variables)
    y, state = read(layer, variables, X)
    (forward, onward), (backward, _) = read(MIXERS[name], first, X), read(MIXERS[name], second, X[:, ::-1])
    np.testing.assert_allclose(y, forward + backward[:, ::-1], **CLOSE)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, **CLOSE), state, onward)
    assert jax.tree.map(jnp.shape, layer.initial_state(B)) == jax.tree.map(jnp.shape, onward)
    np.testing.assert_allclose(
        read(layer, variables, X, state)[0], read(MIXERS[name], first, X, state)[0] + backward[:, ::-1], **CLOSE
    )


@EVERY
def test_every_output_depends_on_every_input(name):
    layer, variables = build(name)
    slope = jax.jit(jax.jacrev(lambda x: layer.apply(variables, x)[0][0].sum(axis=-1)))(X[:1])[:, 0]
    assert (np.abs(slope).sum(axis=-1) > 0).all()


@EVERY
def test_padding_to_the_right_changes_nothing_before_it(name):
    """Rows of different lengths, and padding of any value, past the end of the longest too."""
    layer, variables = build(name)
    lengths = (5, 8)
    valid = jnp.arange(11)[None] < jnp.asarray(lengths)[:, None]
    padded = jnp.where(valid[..., None], jnp.pad(X, ((0, 0), (0, 3), (0, 0))), 100.0)

    def total(x):
        y = jnp.where(valid[..., None], read(layer, variables, x, valid=valid)[0], 0)
        return y.sum(), y

    slope, y = jax.jit(jax.grad(total, has_aux=True))(padded)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(y[row, :length], read(layer, variables, X[row : row + 1, :length])[0][0], **CLOSE)
    assert not np.any(np.where(valid[..., None], 0, slope)) and np.any(slope)


@EVERY
def test_packed_documents_are_separate_ones_in_both_directions(name):
    """Also one of a single step, and one that padding follows."""
    layer, variables = build(name)
    starts, ends = [(0, 3), (0, 1)], [8, 6]
    reset = np.zeros((B, T), bool)
    for row, firsts in enumerate(starts):
        reset[row, list(firsts)] = True
    valid = np.arange(T)[None] < np.asarray(ends)[:, None]
    y, _ = read(layer, variables, X, reset=jnp.asarray(reset), valid=jnp.asarray(valid))
    for row, firsts in enumerate(starts):
        for start, stop in zip(firsts, (*firsts[1:], ends[row]), strict=True):
            np.testing.assert_allclose(
                y[row, start:stop], read(layer, variables, X[row : row + 1, start:stop])[0][0], **CLOSE
            )


@EVERY
def test_states_the_bounds_and_sows_the_gates_of_what_is_carried(name):
    layer, variables = build(name)
    first, _ = split(variables)
    found, expected = (
        one.apply(known, Box(0.5), method="bounds") for one, known in ((layer, variables), (MIXERS[name], first))
    )
    jax.tree.map(np.testing.assert_array_equal, dataclasses.asdict(found), dataclasses.asdict(expected))
    sown, alone = (
        jax.jit(lambda known, one=one: one.apply(known, X, mutable=["intermediates"])[1]["intermediates"])(known)
        for one, known in ((layer, variables), (MIXERS[name], first))
    )
    np.testing.assert_allclose(sown["gate"][0], alone["gate"][0], **CLOSE)
    assert sown["backward"]["gate"][0].shape == sown["gate"][0].shape


def test_a_classifier_of_both_directions_does_not_see_padding():
    config = Model(
        pattern=("lru", "gru", "attention", "tcn"),
        d_model=4,
        d_state=4,
        attention=AttentionConfig(heads=2),
        bidirectional=True,
        task=Task("classification", channels=1, classes=3, length=6),
        mlp_ratio=1.0,
    )
    model, signal = SequenceModel(config), jax.random.normal(jax.random.key(2), (2, 6, 1))
    params = jax.jit(model.init)(jax.random.key(0), signal)["params"]
    padded = jnp.pad(signal, ((0, 0), (0, 4), (0, 0)), constant_values=7.0)
    valid = jnp.broadcast_to(jnp.arange(10) < 6, (2, 10))
    logits, _ = read(model, {"params": params}, signal)
    np.testing.assert_allclose(read(model, {"params": params}, padded, valid=valid)[0], logits, rtol=1e-4, atol=1e-5)
    one_way = SequenceModel(dataclasses.replace(config, bidirectional=False))
    stripped = {
        name: part | {"mixer": {key: value for key, value in part["mixer"].items() if key != "backward"}}
        if name.startswith("block")
        else part
        for name, part in params.items()
    }
    assert np.abs(read(one_way, {"params": stripped}, signal)[0] - logits).max() > 1e-4
    with pytest.raises(ValueError, match="no block names state axes, found two directions of"):
        pruning.state_axes(config)
