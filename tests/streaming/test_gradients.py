"""Gradients of a stream against backpropagation through all of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from selssm_jax.config import Model, SelectiveConfig, Task
from selssm_jax.config.mixers import KalmanConfig
from selssm_jax.model import SequenceModel
from selssm_jax.streaming import ExactGradient, TruncatedGradient
from selssm_jax.streaming.samples import Sample, average, measure_errors, read_step

FORECAST = Task("forecasting", channels=2, horizon=3)
LANGUAGE = Task("language", vocab=7)
CLASSES = Task("classification", channels=2, classes=3)
SMALL = {"pattern": ("selective",), "d_model": 5, "d_state": 6, "mlp_ratio": 1.0, "normalize": False}
MIXERS = {
    "real": {"pattern": ("selective",)},
    "complex": {"pattern": ("selective",), "selective": SelectiveConfig(transition="complex")},
    "effective": {"pattern": ("selective",), "selective": SelectiveConfig(update="effective", gate="hard_sigmoid")},
    "normalised": {
        "pattern": ("selective",),
        "selective": SelectiveConfig(drive="normalised", transition="complex", output_gate=True),
    },
    "reads its own state": {"pattern": ("selective",), "selective": SelectiveConfig(gate_state="elementwise")},
    "kalman": {"pattern": ("kalman",)},
    "kalman of inputs": {"pattern": ("kalman",), "kalman": KalmanConfig(decay="input")},
    "lru": {"pattern": ("lru",)},
    "min_gru": {"pattern": ("min_gru",)},
    "convolution before it": {"pattern": ("selective",), "conv": 3},
}


def build(task=FORECAST, rows=2, **options):
    """A model, its parameters away from their zeros, and B streams' first inputs."""
    model = SequenceModel(Model(task=task, **SMALL | options))
    inputs = jnp.zeros((rows, 1), jnp.int32) if task.vocab else jnp.zeros((rows, 1, task.channels))
    params = model.init(jax.random.key(0), inputs)["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return model, jax.tree.unflatten(tree, moved)


def draw(task, steps, rows=2, seed=0, share=0.03):
    """Samples (T, B, ...) with resets."""
    rng = np.random.default_rng(seed)
    if task.vocab:
        inputs, targets = (rng.integers(0, task.vocab, (steps, rows)) for _ in range(2))
    else:
        inputs = rng.normal(size=(steps, rows, task.channels)).astype(np.float32)
        shape = (steps, rows, task.horizon, task.channels) if task.horizon else (steps, rows)
        targets = rng.normal(size=shape).astype(np.float32) if task.horizon else rng.integers(0, task.classes, shape)
    weights = (rng.random((steps, rows)) < 0.8).astype(np.float32)
    return Sample(*map(jnp.asarray, (inputs, rng.random((steps, rows)) < share, targets, weights)))


def backpropagate(model, params, samples):
    """The gradient of the sum over all steps of the mean loss over streams, through all of time."""

    def step(params, state, sample):
        outputs, state = read_step(model, params, sample.inputs, sample.reset, state)
        return state, average(measure_errors(model, outputs, sample), sample.weights)

    def total(params):
        state = model.apply({"params": params}, samples.inputs.shape[1], method="initial_state")
        return jax.lax.scan(functools.partial(step, params), state, samples)[1].sum()

    return jax.jit(jax.grad(total))(params)


def follow(method, model, params, samples):
    """The sum of a method's gradients, step by step."""
    first = jax.tree.map(lambda leaf: leaf[0], samples)
    state = model.apply({"params": params}, samples.inputs.shape[1], method="initial_state")

    def step(carry, sample):
        total, state, memory = carry
        given = method.differentiate(model, params, state, memory, sample)
        told = sample.weights.sum() > 0  # without a truth there is nothing to sum, though inputs be no numbers
        total = jax.tree.map(lambda total, leaf: total + jnp.where(told, leaf, 0), total, given.gradient)
        return (total, given.state, given.memory), given.ready

    start = jax.tree.map(jnp.zeros_like, params), state, method.start(model, params, first)
    (total, *_), ready = jax.jit(functools.partial(jax.lax.scan, step))(start, samples)
    return total, ready


def assert_equal(ours, truth, names, tolerance=1e-5):
    """Equal to `tolerance` of the largest entry of each parameter."""
    ours, truth = (flatten_dict(tree, sep="/") for tree in (ours, truth))
    chosen = [name for name in truth if name.startswith(names)]
    assert chosen
    for name in chosen:
        scale = max(float(jnp.abs(truth[name]).max()), 1e-3)
        np.testing.assert_allclose(ours[name] / scale, truth[name] / scale, atol=tolerance, err_msg=name)


# all that has no memory before the mixer
EXACT = ("block_0/mixer/", "block_0/mlp", "norm", "head")


def compare(task, steps, share=0.03, **options):
    model, params = build(task, **options)
    samples = draw(task, steps, share=share)
    ExactGradient().check(model, params)
    total, _ = follow(ExactGradient(), model, params, samples)
    assert_equal(total, backpropagate(model, params, samples), EXACT)


def exhaustive_but(*quick):
    return [kind if kind in quick else pytest.param(kind, marks=pytest.mark.exhaustive) for kind in MIXERS]


@pytest.mark.parametrize("kind", exhaustive_but("complex", "kalman"))
def test_traces_give_the_gradient_of_backpropagation(kind):
    compare(FORECAST, 40, **MIXERS[kind])


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", MIXERS)
def test_traces_give_the_gradient_of_backpropagation_over_a_thousand_steps(kind):
    compare(FORECAST, 1000, 0.002, **MIXERS[kind])


@pytest.mark.exhaustive
@pytest.mark.parametrize("task", [LANGUAGE, CLASSES], ids=["language", "classification"])
def test_traces_are_of_every_kind_of_task(task):
    compare(task, 30, **MIXERS["complex"], **({"pool": "last"} if task.classes else {}))


@pytest.mark.exhaustive
def test_within_a_stack_the_last_mixer_is_exact_and_the_first_one_is_not():
    model, params = build(pattern=("selective", "selective"))
    samples = draw(FORECAST, 40)
    total, _ = follow(ExactGradient(), model, params, samples)
    truth = backpropagate(model, params, samples)
    assert_equal(total, truth, ("block_1/mixer/", "block_1/mlp", "norm", "head"))
    assert not np.allclose(total["block_0"]["mixer"]["B"], truth["block_0"]["mixer"]["B"], rtol=1e-2)


def test_a_piece_as_long_as_the_stream_gives_the_gradient_of_all_parameters():
    model, params = build()
    samples = draw(FORECAST, 24)._replace(weights=jnp.ones((24, 2)))
    total, ready = follow(TruncatedGradient(24), model, params, samples)
    truth = jax.tree.map(lambda leaf: leaf / 24, backpropagate(model, params, samples))
    assert_equal(total, truth, ("block_0", "encoder", "norm", "head"))
    assert ready.tolist() == [False] * 23 + [True]


@pytest.mark.exhaustive
def test_pieces_leave_out_what_came_before_them():
    model, params = build()
    samples = draw(FORECAST, 24)._replace(weights=jnp.ones((24, 2)))
    total, ready = follow(TruncatedGradient(6), model, params, samples)
    parts, state = [], model.apply({"params": params}, 2, method="initial_state")
    for first in range(0, 24, 6):
        piece = jax.tree.map(lambda leaf: leaf[first : first + 6], samples)  # noqa: B023
        gradient, state = follow_from(state, model, params, piece)
        parts.append(gradient)
    assert_equal(total, jax.tree.map(lambda *leaves: sum(leaves), *parts), ("block_0", "encoder", "norm", "head"))
    assert int(ready.sum()) == 4


def follow_from(state, model, params, samples):
    """The gradient of the mean loss of some steps from a state on, and the state after them."""

    def score(params):
        def step(state, sample):
            outputs, state = read_step(model, params, sample.inputs, sample.reset, state)
            return state, average(measure_errors(model, outputs, sample), sample.weights)

        after, errors = jax.lax.scan(step, state, samples)
        return errors.mean(), after

    return jax.jit(jax.grad(score, has_aux=True))(params)


@pytest.mark.exhaustive
def test_what_came_before_a_reset_leaves_no_trace_not_even_where_it_is_no_number():
    model, params = build()
    samples = draw(FORECAST, 6, share=0.0)
    spoilt = samples._replace(
        inputs=samples.inputs.at[0].set(jnp.nan),
        weights=samples.weights.at[:3].set(0),
        reset=samples.reset.at[3].set(True),
    )
    after = jax.tree.map(lambda leaf: leaf[3:], samples)
    later, _ = follow(ExactGradient(), model, params, spoilt)
    fresh, _ = follow(ExactGradient(), model, params, after)
    assert_equal(later, fresh, ("block_0", "norm", "head"))


def test_traces_take_as_much_memory_as_the_parameters_of_the_mixer():
    model, params = build(rows=1)
    first = jax.tree.map(lambda leaf: leaf[0], draw(FORECAST, 1, rows=1))
    (traces,) = ExactGradient().start(model, params, first)
    mixer = flatten_dict(params["block_0"]["mixer"], sep="/")
    assert set(traces) == {"A", "B", "G/kernel", "G/bias"}
    assert all(trace.size == mixer[name].size for name, trace in traces.items())


def test_a_piece_has_at_least_one_step():
    with pytest.raises(ValueError, match="steps=0 is out of range"):
        TruncatedGradient(0)
