"""Two directions: each step sees all of its document and nothing of another, nor of padding."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from selssm_jax.compression import pruning
from selssm_jax.config import Model, Task
from selssm_jax.layers.bidirectional import Bidirectional
from selssm_jax.layers.recurrent import GRU
from selssm_jax.model import SequenceModel

B, T, D = 2, 8, 3
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


LAYER = Bidirectional(GRU(D, 4), GRU(D, 4))


@pytest.fixture(scope="module")
def params():
    """Parameters of two directions."""
    return jax.jit(LAYER.init)(jax.random.key(0), jnp.zeros((1, 2, D)))["params"]


def inputs():
    return jax.random.normal(jax.random.key(1), (B, T, D))


@jax.jit
def read(params, x, reset=None, valid=None):
    return LAYER.apply({"params": params}, x, reset=reset, valid=valid)[0]


def test_outputs_are_the_sum_of_two_mixers_one_of_which_reads_from_the_end(params):
    x = inputs()
    assert set(params) == {"forward", "backward"}
    one = GRU(D, 4)
    ahead, back = (one.apply({"params": params[name]}, value)[0] for name, value in (("forward", x), ("backward", x[:, ::-1])))
    assert float(jnp.abs(ahead - back[:, ::-1]).max()) > 0.1, "parameters of their own"
    np.testing.assert_allclose(read(params, x), ahead + back[:, ::-1], **CLOSE)


def test_the_first_step_sees_the_last_and_the_last_the_first(params):
    for step, other in ((0, T - 1), (T - 1, 0)):
        slope = jax.grad(lambda x, step=step: read(params, x)[:, step].sum())(inputs())
        assert float(jnp.abs(slope[:, other]).min()) > 0


def test_padding_to_the_right_changes_nothing(params):
    x, lengths = inputs(), np.array([5, T])
    valid = jnp.asarray(np.arange(T)[None] < lengths[:, None])
    found, other = (read(params, jnp.where(valid[..., None], x, filling), valid=valid) for filling in (0.0, 50.0))
    for row, length in enumerate(lengths):
        alone = read(params, x[:, :length])[row]
        np.testing.assert_allclose(found[row, :length], alone, **CLOSE)
        np.testing.assert_allclose(other[row, :length], alone, **CLOSE)


def test_documents_of_a_row_do_not_see_each_other(params):
    x, ends = inputs(), (0, 4, T)
    reset = jnp.zeros((B, T), bool).at[:, jnp.array(ends[:-1])].set(True)
    found = read(params, x, reset=reset)
    for start, stop in itertools.pairwise(ends):
        np.testing.assert_allclose(found[:, start:stop], read(params, x[:, start:stop]), **CLOSE)


def test_documents_and_padding_together(params):
    x = inputs()
    reset, valid = jnp.zeros((B, T), bool).at[:, 3].set(True), jnp.broadcast_to(jnp.arange(T)[None] < 6, (B, T))
    found = read(params, x, reset=reset, valid=valid)
    np.testing.assert_allclose(found[:, :3], read(params, x[:, :3]), **CLOSE)
    np.testing.assert_allclose(found[:, 3:6], read(params, x[:, 3:6]), **CLOSE)


STEPS = 24
CONFIG = Model(("lru",), 8, 8, bidirectional=True, mlp_ratio=1.0, frame=2, stride=2, task=Task("classification", channels=1, classes=2))


def words(seed, rows=32):
    """Tones of two pitches, of unequal lengths, in noise; the steps after them are padding."""
    rng = np.random.default_rng(seed)
    label, length = rng.integers(0, 2, rows), 2 * rng.integers(6, STEPS // 2 + 1, rows)
    t = np.arange(STEPS)[None]
    tone = np.sin(t * np.where(label, 1.2, 0.5)[:, None] + rng.uniform(0, 6, (rows, 1))) + 0.1 * rng.standard_normal((rows, STEPS))
    valid = t < length[:, None]
    return jnp.asarray(np.where(valid, tone, 0)[..., None], jnp.float32), jnp.asarray(valid), jnp.asarray(label)


def test_a_model_that_reads_both_ways_learns_to_classify():
    model, optimizer = SequenceModel(CONFIG), optax.adam(0.03)
    x, valid, label = words(0)
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]

    @jax.jit
    def step(params, state):
        def loss(params):
            logits = model.apply({"params": params}, x, valid=valid)[0]
            return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

        slopes = jax.grad(loss)(params)
        updates, state = optimizer.update(slopes, state)
        return optax.apply_updates(params, updates), state, slopes

    state = optimizer.init(params)
    _, _, slopes = step(params, state)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(slopes))
    assert all(bool(leaf.any()) for way in ("forward", "backward") for leaf in jax.tree.leaves(slopes["block_0"]["mixer"][way]))
    for _ in range(40):
        params, state, _ = step(params, state)
    x, valid, label = words(1)
    answer = jax.jit(lambda x, valid: model.apply({"params": params}, x, valid=valid)[0])
    assert float((answer(x, valid).argmax(axis=1) == label).mean()) >= 0.9
    noise = jnp.where(valid[..., None], x, 9.0)
    np.testing.assert_allclose(answer(noise, valid), answer(x, valid), **CLOSE)


def test_components_of_two_directions_are_not_pruned_one_by_one():
    with pytest.raises(ValueError, match="no block names state axes, found two directions of lru"):
        pruning.state_axes(CONFIG)
    assert not pruning.prunable(CONFIG) and pruning.prunable(dataclasses.replace(CONFIG, bidirectional=False))
