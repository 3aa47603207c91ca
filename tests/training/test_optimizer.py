"""Warm-up and cosine; who decays, by path, on the real models; clipping."""

import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from selssm_jax.config import Experiment, Model, Optimizer, Task, Training
from selssm_jax.model import SequenceModel
from selssm_jax.training import optimizer

LANGUAGE = Task("language", vocab=5, length=8)
SIGNAL = Task("classification", channels=1, classes=3, length=16)
SERIES = Task("forecasting", channels=2, length=16, horizon=4)
SMALL = Model(pattern=("selective",), d_model=4, d_state=4)


def parameters(model: Model) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    """Shapes of a model's parameters by path."""
    task = model.task
    inputs = (
        jnp.zeros((1, task.length), jnp.int32)
        if task.kind == "language"
        else jnp.zeros((1, task.length, task.channels))
    )
    shapes = jax.eval_shape(SequenceModel(model).init, jax.random.key(0), inputs)["params"]
    return flax.traverse_util.flatten_dict(shapes)


@pytest.mark.parametrize("transition", ["diagonal", "complex", "dense"])
@pytest.mark.parametrize(
    ("task", "options"), [(LANGUAGE, {"conv": 4}), (SIGNAL, {"frame": 4, "stride": 2, "filterbank": 3}), (SERIES, {})]
)
def test_poles_gate_biases_norms_skips_and_embeddings_do_not_decay_and_matrices_do(task, options, transition):
    paths = parameters(runs.model(SMALL, selective__transition=transition, task=task, **options))
    kept = {path for path in paths if not optimizer.is_decayed(path)}
    for path in paths:
        last = path[-1]
        spared = last in ("A", "A_log_decay", "A_phase", "D", "bias", "scale", "embedding") or any(
            "norm" in part for part in path
        )
        assert (path in kept) == spared, path
    assert any(path[-2:] == ("G", "bias") for path in kept), "a gate has a bias"
    assert any(path[-1].startswith("A") for path in kept), "a recurrence has poles"
    assert {"B", "C"} <= {path[-1] for path in set(paths) - kept}, "input and output matrices decay"


@pytest.mark.parametrize(
    "path",
    [
        ("mixer", "A_log"),
        ("mixer", "dt"),
        ("mixer", "gate", "bias"),
        ("mlp_norm", "scale"),
        ("embedding",),
        ("head", "dt_bias"),
    ],
)
def test_names_that_never_decay(path):
    assert not optimizer.is_decayed(path)


@pytest.mark.parametrize(
    "kind", ["kalman", "kalman_attention", "s4d", "s5", "lru", "rg_lru", "min_gru", "rnn", "lstm", "gru"]
)
def test_of_every_mixer_matrices_decay_and_poles_step_sizes_and_biases_do_not(kind):
    paths = parameters(runs.model(SMALL, pattern=(kind,), **runs.HEADS, task=LANGUAGE))
    found = {path[-1] for path in paths if path[1] == "mixer" and optimizer.is_decayed(path)}
    assert found == {
        "kalman": {"B", "C", "kernel"},
        "kalman_attention": {"in", "B", "C", "out", "kernel"},
        "s4d": {"C", "kernel"},
        "s5": {"B", "C", "kernel"},
        "lru": {"B", "C"},
        "rg_lru": {"W", "kernel"},
        "min_gru": {"W", "C"},
    }.get(kind, {"W", "U", "C"})


def experiment(**options: float) -> Experiment:
    return Experiment(
        optimizer=Optimizer(warmup_steps=10, peak_rate=1e-2, end_rate=1e-4, **options), training=Training(steps=100)
    )


def test_rate_climbs_linearly_and_falls_along_a_cosine():
    rate = optimizer.schedule(experiment())
    np.testing.assert_allclose(
        [rate(0), rate(5), rate(10), rate(55), rate(100)],
        [0, 5e-3, 1e-2, (1e-2 + 1e-4) / 2, 1e-4],
        rtol=1e-5,
        atol=1e-12,
    )


def test_without_a_gradient_only_decaying_parameters_shrink():
    params = {"A": jnp.ones(3), "in": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    tx = optimizer.build(experiment(weight_decay=0.5))
    state, still = tx.init(params), jax.tree.map(jnp.zeros_like, params)
    for _ in range(3):
        updates, state = tx.update(still, state, params)
    np.testing.assert_array_equal(updates["A"], np.zeros(3))
    np.testing.assert_array_equal(updates["in"]["bias"], np.zeros(2))
    # rate 3e-3 at the third step
    np.testing.assert_allclose(updates["in"]["kernel"], np.full((2, 2), -3e-3 * 0.5), rtol=1e-5)


@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_the_first_step_moves_and_the_last_one_has_the_rate_at_the_end(warmup):
    """A schedule of optax begins at step 0: the first step of a warm-up did nothing, and end_rate came after the
    last.
    """
    recipe = dataclasses.replace(
        experiment(), optimizer=dataclasses.replace(experiment(weight_decay=1.0).optimizer, warmup_steps=warmup)
    )
    tx, params = optimizer.build(recipe), {"in": {"kernel": jnp.ones((1, 1))}}
    state, rates = tx.init(params), []
    update = jax.jit(tx.update)
    for _ in range(recipe.training.steps):
        updates, state = update(jax.tree.map(jnp.zeros_like, params), state, params)
        rates.append(-float(updates["in"]["kernel"][0, 0]))
    assert rates[0] == pytest.approx(1e-2 / max(warmup, 1), rel=1e-3)
    assert max(rates) == pytest.approx(1e-2, rel=1e-3)
    assert rates[-1] == pytest.approx(1e-4, rel=1e-5)


@pytest.mark.parametrize(("clip_norm", "same"), [(1.0, True), (0.0, False)])
def test_a_clipped_gradient_keeps_its_direction_only(clip_norm, same):
    """Adam forgets a constant scale, not one that changes: after a step of norm 1, steps of norm 10 and 1000 are one
    when clipped.
    """
    tx = optimizer.build(experiment(clip_norm=clip_norm, weight_decay=0.0))
    params = {"kernel": jnp.zeros(4)}
    first = tx.update({"kernel": jnp.full(4, 0.5)}, tx.init(params), params)[1]
    near, far = (tx.update({"kernel": jnp.full(4, size)}, first, params)[0]["kernel"] for size in (5.0, 500.0))
    assert np.allclose(near, far, rtol=1e-5, atol=0) == same
