"""SequenceModel for every task: step = scan = any split, padding, remat, precision. What every mixer obeys is in
tests/layers/test_mixers.py.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from selssm_jax.config import Model, Task
from selssm_jax.model import SequenceModel

SMALL = {"pattern": ("selective", "selective"), "d_model": 8, "d_state": 6, "conv": 3}
B, T = 2, 12
LANGUAGE = Model(**SMALL, task=Task("language", vocab=7))
SIGNAL = Model(**SMALL, frame=4, stride=2, filterbank=3, task=Task("classification", channels=1, classes=5))
VECTOR = Model(**SMALL, pool="last", task=Task("classification", channels=2, classes=5))
FORECAST = Model(
    **SMALL, normalize=False, head_context=3, linear_skip=5, task=Task("forecasting", channels=2, horizon=4)
)
ONE = vars(LANGUAGE) | {"pattern": ("selective",)}
CONFIGS = {"language": LANGUAGE, "signal": SIGNAL, "vector": VECTOR, "forecast": FORECAST}


def build(config):
    model = SequenceModel(config)
    key = jax.random.key(1)
    x = (
        jax.random.randint(key, (B, T), 0, 7)
        if config.task.kind == "language"
        else jax.random.normal(key, (B, T, config.task.channels))
    )
    return model, jax.jit(model.init)(jax.random.key(0), x), x


@functools.partial(jax.jit, static_argnums=0, static_argnames=("method", "mutable"))
def run(model, params, *arguments, **options):
    """What `model.apply` gives, compiled as a whole."""
    return model.apply(params, *arguments, **options)


def pieces(model, params, x, size):
    """Outputs and final state of calls over pieces of `size` steps that carry the state."""
    state, outputs = None, []
    for start in range(0, T, size):
        y, state = run(model, params, x[:, start : start + size], state)
        outputs.append(y)
    return jnp.concatenate(outputs, axis=1) if model.config.task.kind == "language" else outputs[-1], state


@pytest.mark.parametrize("name", CONFIGS)
def test_whole_equals_split_equals_steps(name):
    model, params, x = build(CONFIGS[name])
    whole, state = pieces(model, params, x, T)
    for size in (model.config.stride, 6):
        y, end = pieces(model, params, x, size)
        # float32; the log of a small magnitude costs a digit
        np.testing.assert_allclose(y, whole, rtol=1e-4, atol=1e-4)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), end, state)


def test_blocks_of_unequal_states_are_one_model():
    model, params, x = build(dataclasses.replace(LANGUAGE, block_states=(6, 2), remat=True))
    assert [params["params"][f"block_{index}"]["mixer"]["B"].shape for index in (0, 1)] == [(8, 6), (8, 2)]
    whole, state = pieces(model, params, x, T)
    assert [block["mixer"].shape for block in state["blocks"]] == [(B, 6), (B, 2)]
    y, end = pieces(model, params, x, 4)
    np.testing.assert_allclose(y, whole, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), end, state)


def test_step_equals_the_parallel_pass():
    model, params, x = build(VECTOR)
    whole, _ = run(model, params, x)
    state = model.apply(params, B, method="initial_state")
    for t in range(T):
        y, state = run(model, params, x[:, t], state, method="step")
    np.testing.assert_allclose(y, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gate_state", ["none", "elementwise", "dense"])
def test_a_packed_row_equals_its_documents_apart_and_no_gradient_crosses(gate_state):
    model, params, x = build(runs.model(LANGUAGE, pattern=("selective",), selective__gate_state=gate_state))
    reset = jnp.zeros((B, T), bool).at[:, 5].set(True)
    packed, _ = run(model, params, x, reset=reset)
    np.testing.assert_allclose(packed[:, 5:], run(model, params, x[:, 5:])[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(packed[:, :5], run(model, params, x[:, :5])[0], rtol=1e-5, atol=1e-5)
    signal, weights, values = build(runs.model(FORECAST, pattern=("selective",), selective__gate_state=gate_state))
    gradient = jax.grad(lambda v: (run(signal, weights, v, reset=reset)[0] ** 2).sum())(values)
    assert (gradient[:, :5] == 0).all() and (gradient[:, 5:] != 0).any()


@pytest.mark.parametrize("config", [SIGNAL, VECTOR], ids=["mean", "last"])
def test_padding_does_not_change_a_class(config):
    model, params, x = build(config)
    padded = jnp.concatenate([x, 9 * jnp.ones((B, 6, x.shape[-1]))], axis=1)
    valid = jnp.arange(T + 6)[None] < jnp.array([[T], [T]])
    np.testing.assert_allclose(
        run(model, params, padded, valid=valid)[0], run(model, params, x)[0], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("config", [SIGNAL, VECTOR], ids=["mean", "last"])
def test_padding_that_is_not_finite_reaches_neither_a_class_nor_its_gradient(config):
    model, params, x = build(config)
    valid = jnp.arange(T + 3)[None] < jnp.array([[T], [T]])
    slopes = jax.jit(jax.grad(lambda params, x: jnp.square(model.apply(params, x, valid=valid)[0]).sum()))
    found, expected = (
        slopes(params, jnp.concatenate([x, jnp.full((B, 3, x.shape[-1]), fill)], axis=1)) for fill in (jnp.nan, 0.0)
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_without_norms_a_model_of_constant_gates_is_affine():
    """What the closed form of a linear channel needs: f(x) + f(z) = f(x + z) + f(0)."""
    config = runs.model(
        FORECAST, pattern=("selective",), selective__gate="constant", norm="none", conv=0, mlp_ratio=0.0, linear_skip=0
    )
    model, params, x = build(config)
    z = jax.random.normal(jax.random.key(7), x.shape)
    f = lambda inputs: run(model, params, inputs)[0]  # noqa: E731
    np.testing.assert_allclose(f(x) + f(z), f(x + z) + f(0 * x), atol=1e-5)


def test_normalised_forecasts_follow_shift_and_scale():
    model, params, x = build(Model(**SMALL, task=FORECAST.task))
    y, state = run(model, params, x)
    moved, _ = run(model, params, 3 * x + 5)
    # the variance's floor of 1e-5 keeps the equality from being exact
    np.testing.assert_allclose(moved, 3 * y + 5, rtol=1e-3, atol=1e-3)
    again, _ = run(model, params, x, state)
    assert jnp.isfinite(again).all()


def test_forecasts_normalised_by_level_alone_follow_shifts_but_not_scale():
    model, params, x = build(Model(**SMALL, normalize_scale=False, task=FORECAST.task))
    y, state = run(model, params, x)
    np.testing.assert_allclose(run(model, params, x + 5)[0], y + 5, rtol=1e-4, atol=1e-4)
    assert float(jnp.abs(run(model, params, 3 * x)[0] - 3 * y).max()) > 0.1
    np.testing.assert_array_equal(state["scale"]["deviation"], 1)


def test_channel_independent_are_one_model_on_every_channel():
    model, params, x = build(Model(**SMALL, channel_independent=True, task=FORECAST.task))
    y, _ = run(model, params, x)
    swapped, _ = run(model, params, x[..., ::-1])
    np.testing.assert_allclose(swapped, y[..., ::-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("solver", ["sequential", "newton"])
@pytest.mark.parametrize("gate_state", ["elementwise", "dense"])
def test_models_whose_gates_read_the_state_are_the_same_whole_split_and_step_by_step(gate_state, solver):
    model, params, x = build(
        runs.model(LANGUAGE, pattern=("selective",), selective__gate_state=gate_state, selective__solver=solver)
    )
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # the state's weights start at 0
    whole, state = pieces(model, params, x, T)
    for size in (1, 4):
        y, end = pieces(model, params, x, size)
        np.testing.assert_allclose(y, whole, rtol=1e-4, atol=1e-4)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), end, state)


@pytest.mark.parametrize("name", ["language", "forecast"])
def test_remat_changes_neither_values_nor_gradients(name):
    config = CONFIGS[name]
    model, params, x = build(config)
    remat = SequenceModel(Model(**{**vars(config), "remat": True}))
    results = [
        jax.jit(jax.value_and_grad(lambda p, m=m: (m.apply(p, x)[0] ** 2).sum()))(params) for m in (model, remat)
    ]
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        # an entry near 0 is the sum of terms as large as the largest
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * max(1, np.abs(other).max()))


@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16_outputs_float32_close_to_full_precision(name):
    config = CONFIGS[name]
    model, params, x = build(config)
    y, state = run(SequenceModel(Model(**{**vars(config), "dtype": "bfloat16"})), params, x)
    assert y.dtype == jnp.float32
    assert all(block["mixer"].dtype == jnp.float32 for block in state["blocks"])
    np.testing.assert_allclose(y, run(model, params, x)[0], rtol=0.1, atol=0.1)


def test_every_block_sows_its_gate_and_state():
    model, params, x = build(LANGUAGE)
    _, sown = run(model, params, x, mutable=("intermediates",))
    for block in ("block_0", "block_1"):
        mixer = sown["intermediates"][block]["mixer"]
        assert mixer["gate"][0].shape == mixer["state"][0].shape == (B, T, 6)


SIGNALS = {
    "mean": (Task("classification", channels=2, classes=3, length=12), {"pool": "mean", "frame": 3}),
    "last": (Task("classification", channels=2, classes=3, length=12), {"pool": "last"}),
    "forecast": (
        Task("forecasting", channels=2, horizon=3, length=12),
        {"head_context": 9, "linear_skip": 9, "normalize_scale": True},
    ),
    "apart": (Task("forecasting", channels=2, horizon=3, length=12), {"channel_independent": True}),
}


@pytest.mark.parametrize(
    "name", ["mean", "forecast", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("last", "apart"))]
)
def test_a_document_before_a_reset_moves_neither_outputs_nor_states_nor_parameters(name):
    """A mean over all steps, a window of the head, a forecast's scale and an encoder's frame read it; and a NaN in it
    made all gradients of parameters NaN.
    """
    task, options = SIGNALS[name]
    model = SequenceModel(Model(pattern=("selective",), d_model=8, d_state=4, task=task, **options))
    x = jax.random.normal(jax.random.key(0), (2, 12, 2))
    params = model.init(jax.random.key(1), x)
    reset = jnp.zeros((2, 12), bool).at[:, 5].set(True)

    @functools.partial(jax.value_and_grad, has_aux=True)
    def read(params, x, state, reset):
        y, state = model.apply(params, x, state, reset=reset)
        return jnp.square(y).sum(), (y, state)

    expected = read(params, x[:, 5:], None, None)
    _, carried = model.apply(params, jnp.full_like(x, jnp.nan))
    for given in ((x, None, reset), (x.at[:, :5].set(jnp.nan), None, reset), (x[:, 5:], carried, reset[:, 5:])):
        jax.tree.map(
            lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5),
            read(params, *given),
            expected,
        )
    assert not np.isfinite(model.apply(params, x.at[:, 7].set(jnp.nan), reset=reset)[0]).any(), (
        "what is read after it is no number"
    )
