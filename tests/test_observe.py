"""One reader of what mixers sow: values by block, rows of channels, and which frames count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from selssm_jax.config import AttentionConfig, Model, Task
from selssm_jax.model import SequenceModel, block_names
from selssm_jax.observe import (
    Observed,
    find_data_frames,
    find_data_rows,
    find_valid_frames,
    observe,
    read_sown,
    replace_states,
)

LANGUAGE = Model(
    pattern=("selective", "mamba", "attention"),
    d_model=8,
    d_state=6,
    attention=AttentionConfig(heads=2),
    task=Task("language", vocab=7),
)
APART = Model(
    pattern=("selective",),
    d_model=8,
    d_state=6,
    frame=4,
    stride=2,
    channel_independent=True,
    task=Task("forecasting", channels=3, horizon=4),
)
NOISE = {"noise": jax.random.key(1)}


def built(config, steps=10):
    """(model, parameters, batch) of two rows, the second half as long and the last row not data."""
    inputs = (
        jnp.zeros((3, steps), jnp.int32)
        if config.task.kind == "language"
        else jnp.ones((3, steps, config.task.channels))
    )
    model = SequenceModel(config)
    params = jax.jit(model.init)({"params": jax.random.key(0), **NOISE}, inputs)["params"]
    valid = np.arange(steps)[None] < np.array([steps, steps // 2, steps])[:, None]
    return (
        model,
        params,
        {"inputs": inputs, "valid": jnp.asarray(valid), "weights": np.array([1.0, 0.5, 0.0], np.float32)},
    )


def test_every_block_shows_what_its_mixer_sows_and_nothing_else():
    model, params, batch = built(LANGUAGE)
    outputs, state, blocks = observe(model, params, batch, rngs=NOISE)
    assert list(blocks) == block_names(LANGUAGE) == ["block_0", "block_1", "block_2"]
    assert blocks["block_0"].gate.shape == blocks["block_0"].state.shape == (3, 10, 6)
    assert blocks["block_1"].gate is not None and blocks["block_1"].state is None
    assert blocks["block_2"] == Observed()
    plain, after = model.apply({"params": params}, batch["inputs"], valid=batch["valid"], rngs=NOISE)
    np.testing.assert_array_equal(outputs, plain)
    jax.tree.map(np.testing.assert_array_equal, state, after)


def test_laws_and_solves_are_shown_where_they_are_asked_for():
    model, params, batch = built(runs.model(LANGUAGE, pattern=("selective",), selective__process_noise=0.3))
    assert observe(model, params, batch, rngs=NOISE).blocks["block_0"].law is None
    law = observe(model, params, batch, rngs=NOISE, collections=["laws"]).blocks["block_0"].law
    assert law.drive.shape == law.noise.shape == (3, 10, 6)
    model, params, batch = built(runs.model(LANGUAGE, pattern=("selective",), selective__gate_state="elementwise"))
    assert observe(model, params, batch, rngs=NOISE, collections=["diagnostics"]).blocks["block_0"].fell_back.shape == (
        3,
    )


def test_what_other_modules_sow_is_no_block():
    sown = {
        "intermediates": {
            "encoder": {"x": (1,)},
            "block_0": {"mixer": {"gate": (2,), "mine": (3,)}},
            "block_1": {"norm": {"x": (4,)}},
        }
    }
    assert read_sown(sown) == {"block_0": Observed(gate=2)}


def test_states_take_the_place_of_those_that_were_sown():
    gate, computed, carried = jnp.zeros(2), jnp.ones(2), jnp.full(2, 2.0)
    sown = {"intermediates": {"block_0": {"mixer": {"gate": (gate,), "state": (computed,)}}}, "laws": {}}
    blocks = read_sown(replace_states(sown, {"block_0": carried, "block_1": carried}))
    assert list(blocks) == ["block_0", "block_1"] and blocks["block_0"].gate is gate and blocks["block_1"].gate is None
    assert blocks["block_0"].state is carried and blocks["block_1"].state is carried
    assert replace_states({"laws": {}}, {"block_0": carried}) == {"laws": {}}


@pytest.mark.parametrize("weights", [np.array([1.0, 0.5, 0.0]), np.array([[0, 1.0], [0.5, 0], [0, 0]])])
def test_rows_without_a_weight_fill_the_last_batch(weights):
    assert find_data_rows({"weights": weights}).tolist() == [True, True, False]


def test_frames_have_a_row_for_every_sequence_of_the_blocks():
    """Five frames of two samples, three channels a row; a frame is valid where its first new sample is."""
    model, params, batch = built(APART)
    gate = observe(model, params, batch, rngs=NOISE).blocks["block_0"].gate
    valid, counted = find_valid_frames(APART, batch["valid"]), find_data_frames(APART, batch)
    assert valid.shape == counted.shape == gate.shape[:2] == (9, 5)
    assert valid.sum(axis=1).tolist() == [5] * 3 + [3] * 3 + [5] * 3
    assert counted.sum(axis=1).tolist() == [5] * 3 + [3] * 3 + [0] * 3
