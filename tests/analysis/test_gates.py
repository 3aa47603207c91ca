"""Gate statistics: known gates give known dimensions, and sums over batches are the statistics of the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from selssm_jax.analysis import gates
from selssm_jax.config import Model, Task
from selssm_jax.model import SequenceModel

SMALL = {"pattern": ("selective", "selective"), "d_model": 8, "d_state": 6}
LANGUAGE = Model(**SMALL, task=Task("language", vocab=7))
SIGNAL = Model(**SMALL, frame=4, stride=2, filterbank=3, task=Task("classification", channels=1, classes=3))
APART = Model(**SMALL, channel_independent=True, task=Task("forecasting", channels=3, horizon=4))
B, T = 4, 10


def to_host(sums):
    return gates.Sums(*(np.asarray(value, np.float64) for value in sums))


def draw_gates(key=0, shape=(5, 7, 6)):
    return jax.random.uniform(jax.random.key(key), shape)


def test_dimensions_of_known_gates():
    found = gates.dimensions(
        jnp.array([[0.0, 0, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1], [0.5, 0.5, 0.5, 0.5], [0.9, 0.3, 0, 0]])
    )
    np.testing.assert_allclose(found["effective"], [0, 2, 4, 2, 1.2], rtol=1e-6)
    np.testing.assert_allclose(found["hard"], [0, 2, 4, 0, 1])
    np.testing.assert_allclose(found["participation"], [0, 2, 4, 4, 1.44 / 0.9], rtol=1e-6)


def test_the_three_dimensions_agree_for_gates_of_zero_and_one():
    found = gates.dimensions(jax.random.bernoulli(jax.random.key(0), 0.3, (50, 16)).astype(jnp.float32))
    np.testing.assert_allclose(found["hard"], found["effective"])
    np.testing.assert_allclose(found["participation"], found["effective"], rtol=1e-6)


def test_summary_against_numpy():
    gate, valid = draw_gates(), jnp.arange(7)[None] < jnp.array([7, 3, 5, 1, 6])[:, None]
    found = to_host(gates.sums(gate, valid)).summary()
    live = np.asarray(gate, np.float64)[np.asarray(valid)]
    assert found["components"] == 6 and found["steps"] == 22 == len(live)
    np.testing.assert_allclose(found["mean"], live.mean(), rtol=1e-6)
    np.testing.assert_allclose(found["effective_dimension"], live.sum(1).mean(), rtol=1e-6)
    np.testing.assert_allclose(found["hard_count"], (live > 0.5).sum(1).mean(), rtol=1e-6)
    np.testing.assert_allclose(found["participation_ratio"], (live.sum(1) ** 2 / (live**2).sum(1)).mean(), rtol=1e-6)
    np.testing.assert_allclose(found["compression_factor"], 6 / live.sum(1).mean(), rtol=1e-6)
    np.testing.assert_allclose(found["selectivity"], live.std(0).mean(), rtol=1e-4)
    np.testing.assert_allclose(found["by_component"], live.mean(0), rtol=1e-6)
    np.testing.assert_array_equal(found["histogram"]["counts"], np.histogram(live, gates.BINS, (0, 1))[0])
    assert found["over_time"]["position"] == list(range(7))
    np.testing.assert_allclose(
        found["over_time"]["effective_dimension"][5], np.asarray(gate)[[0, 4], 5].sum(1).mean(), rtol=1e-6
    )


def test_bits_are_those_of_valid_steps_and_there_are_none_of_gates_that_know_of_none():
    gate, nats = draw_gates(), (draw_gates(1), draw_gates(2))
    valid = jnp.arange(7)[None] < jnp.array([7, 3, 5, 1, 6])[:, None]
    parts = [gates.sums(gate[k], valid[k], [value[k] for value in nats]) for k in (slice(0, 2), slice(2, 5))]
    found = to_host(parts[0]).merge(to_host(parts[1])).summary()
    for name, value in zip(("bits_gained", "bits_forgotten"), nats, strict=True):
        bits = np.asarray(value, np.float64).sum(-1) / np.log(2)
        np.testing.assert_allclose(found[name], bits[np.asarray(valid)].mean(), rtol=1e-6)
        np.testing.assert_allclose(found["over_time"][name][5], bits[[0, 4], 5].mean(), rtol=1e-6)
    assert not {"bits_gained", "bits_forgotten"} & set(to_host(gates.sums(gate, valid)).summary())


def test_edges_of_the_histogram_hold_exact_zeros_and_ones():
    found = to_host(gates.sums(jnp.array([[[0.0, 1.0, 1.0]]]), jnp.ones((1, 1), bool))).summary()
    counts = found["histogram"]["counts"]
    assert (counts[0], counts[-1], sum(counts)) == (1, 2, 3)


def test_closed_gates_have_no_compression_factor_and_ignore_the_input():
    found = to_host(gates.sums(jnp.zeros((2, 3, 4)), jnp.ones((2, 3), bool))).summary()
    assert found["compression_factor"] is None and found["effective_dimension"] == 0 and found["selectivity"] == 0


def test_merged_sums_are_the_sums_of_the_whole_even_where_lengths_differ():
    gate, valid = draw_gates(), jnp.arange(7)[None] < jnp.array([3, 2, 3, 7, 6])[:, None]
    whole = to_host(gates.sums(gate, valid))
    short = to_host(gates.sums(gate[:3, :3], valid[:3, :3]))
    long = to_host(gates.sums(gate[3:], valid[3:]))
    for merged in (short.merge(long), long.merge(short)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), merged, whole)


def batches(config, count=3):
    task = config.task
    for index in range(count):
        key = jax.random.key(index)
        inputs = (
            jax.random.randint(key, (B, T), 0, task.vocab)
            if task.kind == "language"
            else jax.random.normal(key, (B, T, task.channels))
        )
        weights = np.ones((B, T) if task.kind == "language" else B, np.float32)
        weights[-1] = 0 if index == count - 1 else 1  # the last row of the last batch is padding
        valid = np.ones((B, T), bool)
        valid[1, 5:] = False
        yield {"inputs": np.asarray(inputs), "weights": weights, "valid": valid}


def built(config):
    model = SequenceModel(config)
    return model, jax.jit(model.init)(jax.random.key(0), jnp.asarray(next(batches(config))["inputs"]))["params"]


@pytest.mark.parametrize(
    ("config", "steps"), [(LANGUAGE, 2 * 35 + 25), (SIGNAL, 2 * 18 + 13), (APART, 3 * (2 * 35 + 25))]
)
def test_observed_steps_are_valid_frames_of_real_rows(config, steps):
    model, params = built(config)
    found, first = gates.observe_gates(model, params, batches(config), is_stream=False)
    assert set(found) == {"block_0", "block_1"} and len(first) == 3
    for block in found.values():
        assert block.summary()["steps"] == steps
    assert first[0].batch["inputs"].shape[0] == T and np.isfinite(first[0].outputs).all()


def test_carried_state_makes_batches_one_sequence():
    model, params = built(LANGUAGE)
    data = list(batches(LANGUAGE))
    _, first = gates.observe_gates(model, params, data, is_stream=True)
    whole, _ = model.apply({"params": params}, jnp.concatenate([batch["inputs"] for batch in data], axis=1))
    np.testing.assert_allclose(np.concatenate([row.outputs for row in first]), whole[0], rtol=1e-4, atol=1e-5)
    _, apart = gates.observe_gates(model, params, data, is_stream=False)
    assert np.abs(apart[1].outputs - first[1].outputs).max() > 1e-4


def test_a_constant_gate_has_no_selectivity():
    model, params = built(runs.model(LANGUAGE, selective__gate="constant"))
    found, _ = gates.observe_gates(model, params, batches(LANGUAGE), is_stream=False)
    assert all(block.summary()["selectivity"] < 1e-3 for block in found.values())
