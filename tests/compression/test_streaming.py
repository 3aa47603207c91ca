"""Models on packed states: the scan is the steps, bytes are those claimed, many bits are the model itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.compression.quantization import allocate, fit
from selssm_jax.compression.streaming import PackedModel, calibration, components
from selssm_jax.config import Model, Task
from selssm_jax.model import SequenceModel

LANGUAGE = Task("language", vocab=11)
FORMS = {
    "diagonal": {},
    "complex": {"transition": "complex"},
    "dense": {"transition": "dense"},
    "state gates": {"gate_state": "elementwise"},
    "convolution": {"conv": 3},
}


@functools.cache
def packed(bits, form):
    return made(bits, **FORMS[form])


def made(bits, task=LANGUAGE, **changes):
    """A small model with random parameters, its inputs, and itself on packed states."""
    model = SequenceModel(Model(pattern=("selective",) * 2, d_model=12, d_state=10, task=task, **changes))
    if task.kind == "language":
        inputs = jax.random.randint(jax.random.key(0), (4, 60), 0, task.vocab)
    else:
        inputs = jax.random.normal(jax.random.key(0), (4, 60, task.channels))
    params = model.init(jax.random.key(1), inputs)["params"]
    samples = calibration(model, params, [inputs[:2], inputs[2:]])
    chosen = [allocate(one.var(axis=0), bits * one.shape[1]) for one in samples]
    return PackedModel(model, params, tuple(fit(one, count) for one, count in zip(samples, chosen, strict=True))), inputs


@pytest.mark.parametrize("form", FORMS)
def test_the_scan_is_the_steps(form):
    model, inputs = packed(4, form)
    outputs, end = jax.jit(model.scan)(inputs)
    state, step = model.initial_state(4), jax.jit(model.step)
    for t in range(12):
        one, state = step(inputs[:, t], state)
        np.testing.assert_allclose(one, outputs[:, t], rtol=1e-4, atol=1e-5)
    rest, last = jax.jit(model.scan)(inputs[:, 12:], state)
    np.testing.assert_allclose(rest, outputs[:, 12:], rtol=1e-4, atol=1e-5)
    for one, other in zip(last["blocks"], end["blocks"], strict=True):
        np.testing.assert_array_equal(one["mixer"], other["mixer"])


@pytest.mark.parametrize("form", FORMS)
def test_bytes_are_those_claimed(form):
    model, inputs = packed(4, form)
    state = jax.jit(model.scan)(inputs)[1]
    leaves = [block["mixer"] for block in state["blocks"]]
    assert all(leaf.dtype == jnp.uint8 for leaf in leaves)
    assert sum(leaf.nbytes for leaf in leaves) == 4 * model.memory_bytes == 4 * 2 * -(-40 // 8)


@pytest.mark.parametrize("form", FORMS)
def test_more_bits_are_nearer_to_the_model_itself(form):
    errors = []
    for bits in (2, 4, 8):
        model, inputs = packed(bits, form)
        exact, _ = model.model.apply({"params": model.params}, inputs)
        errors.append(float(jnp.abs(jax.jit(model.scan)(inputs)[0] - exact).mean() / jnp.abs(exact).mean()))
    assert errors[0] > 2 * errors[1] > 4 * errors[2] and errors[2] < 0.05


@pytest.mark.parametrize(
    ("task", "changes"),
    [(Task("forecasting", channels=2, horizon=3), {}), (Task("classification", channels=2, classes=3, length=60), {"frame": 4, "stride": 2})],
)
def test_signals_are_read_a_stride_at_a_time(task, changes):
    model, inputs = made(8, task=task, normalize=False, **changes)
    outputs, _ = jax.jit(model.scan)(inputs)
    exact, _ = model.model.apply({"params": model.params}, inputs)
    assert outputs.shape == exact.shape
    np.testing.assert_allclose(outputs, exact, atol=0.1 * float(jnp.abs(exact).max()))


def test_stochastic_rounding_is_seeded_and_differs_from_the_nearest():
    model, inputs = packed(2, "diagonal")
    runs = [jax.jit(model.scan)(inputs, key=key)[0] for key in (jax.random.key(0), jax.random.key(0), jax.random.key(1))]
    assert (runs[0] == runs[1]).all() and (runs[0] != runs[2]).any() and (runs[0] != jax.jit(model.scan)(inputs)[0]).any()


def test_streaming_needs_no_more_memory_as_it_goes():
    model, inputs = packed(4, "diagonal")
    step, state = jax.jit(model.step), model.initial_state(4)
    sizes = set()
    for t in range(300):
        _, state = step(inputs[:, t % 60], state)
        sizes.add(sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
    assert len(sizes) == 1 and step._cache_size() == 1


def test_complex_states_are_pairs():
    h = jnp.array([[1 + 2j, 3 - 4j]])
    assert components(h).tolist() == [[1, 3, 2, -4]] and components(h.real) is not h


def test_quantizers_must_fit():
    model, _ = packed(2, "diagonal")
    with pytest.raises(ValueError, match=r"quantizers of \[10\] components for blocks of \[10, 10\]"):
        PackedModel(model.model, model.params, model.quantizers[:1])
