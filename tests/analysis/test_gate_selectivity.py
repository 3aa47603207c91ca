"""Ranks against all pairs, ties and ends; gates of a model that is known."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from selssm_jax.analysis import gate_selectivity
from selssm_jax.config import Task
from selssm_jax.model import SequenceModel

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("levels", [0, 3, 1])
def test_auroc_is_the_share_of_pairs_in_order(levels):
    positive, negative = RNG.normal(0.4, 1, 60), RNG.normal(0, 1, 90)
    if levels:
        positive, negative = (np.clip(np.round(side), 0, levels) for side in (positive, negative))
    order = positive[:, None] - negative[None]
    assert gate_selectivity.auroc(positive, negative) == pytest.approx(((order > 0) + 0.5 * (order == 0)).mean())


def test_auroc_of_perfect_reversed_and_equal_scores():
    low, high = np.arange(5.0), np.arange(5.0, 9.0)
    assert (
        gate_selectivity.auroc(high, low),
        gate_selectivity.auroc(low, high),
        gate_selectivity.auroc(np.ones(3), np.ones(4)),
    ) == (1.0, 0.0, 0.5)


def test_auroc_only_reads_the_order():
    positive, negative = RNG.normal(0.4, 1, 30), RNG.normal(0, 1, 40)
    assert gate_selectivity.auroc(positive, negative) == gate_selectivity.auroc(np.exp(positive), np.exp(negative))
    assert gate_selectivity.auroc(positive, negative) == pytest.approx(1 - gate_selectivity.auroc(negative, positive))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((np.ones(0), np.ones(2)), r"positive holds no scores"),
        ((np.ones(2), np.array([np.nan])), r"negative holds nan, expected finite"),
    ],
)
def test_scores_that_order_nothing(given, message):
    with pytest.raises(ValueError, match=message):
        gate_selectivity.auroc(*given)


def test_separation_leaves_out_what_is_neither():
    gate = RNG.uniform(size=(4, 10))
    kind = RNG.integers(0, 3, (4, 10))
    found = gate_selectivity.separation(gate, kind == 0, kind == 1)
    assert found == (
        gate_selectivity.auroc(gate[kind == 0], gate[kind == 1]),
        gate[kind == 0].mean(),
        gate[kind == 1].mean(),
    )


def test_masks_that_do_not_fit():
    gate, one = np.ones((2, 3)), np.ones((2, 3), bool)
    with pytest.raises(ValueError, match="6 steps are data and noise at once"):
        gate_selectivity.separation(gate, one, one)
    with pytest.raises(ValueError, match=r"data \(2, 2\).*expected the same"):
        inspect.unwrap(gate_selectivity.separation)(gate, one[:, :2], one)


def test_mean_gates_are_read_by_block_and_say_what_the_gates_read():
    """Gates whose weights are the embedding of token 0 open for it alone."""
    model = SequenceModel(
        dataclasses.replace(
            runs.experiment().model, norm="none", mlp_ratio=0.0, task=Task("language", vocab=3, length=6)
        )
    )
    tokens = RNG.integers(0, 3, (4, 6)).astype(np.int32)
    params = model.init(jax.random.key(0), jnp.asarray(tokens[:1]))["params"]
    params["encoder"]["embedding"] = jnp.eye(3, 8)
    params["block_0"]["mixer"]["G"] = {"bias": jnp.full(8, -5.0), "kernel": jnp.outer(jnp.eye(8)[0], jnp.full(8, 10.0))}
    batches = [
        {"inputs": half, "valid": np.ones(half.shape, bool), "weights": np.ones(half.shape, np.float32)}
        for half in (tokens[:2], tokens[2:])
    ]
    inputs, gates = gate_selectivity.mean_gates(model, params, batches)
    np.testing.assert_array_equal(inputs, tokens)
    np.testing.assert_allclose(
        gates["block_0"], np.where(tokens == 0, jax.nn.sigmoid(5.0), jax.nn.sigmoid(-5.0)), rtol=1e-5
    )
    assert gate_selectivity.separation(gates["block_0"], tokens == 0, tokens > 0).auroc == 1
