"""What every mixer obeys, whatever it is: one call is any split of it, nothing comes from the future, and a reset is a
beginning.

A model of one bare block of the mixer is the subject, the smallest that carries. Tolerances are those of float32 sums
of a few dozen terms in another order; products of matrices of another height round differently.
"""

import dataclasses
import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.nnx import bridge

import runs
from selssm_jax.config import Model, Task
from selssm_jax.config.fields import list_fields
from selssm_jax.config.mixers import MIXERS
from selssm_jax.layers.mixers import LAYERS, mixer
from selssm_jax.model import SequenceModel
from selssm_jax.testing import check_mixer

B, T, VOCAB = 2, 9, 7
WINDOWS = {"attention__window": 16, "local_attention__window": 3}
TAPS = dict.fromkeys(("mamba__d_conv", "mamba2__d_conv", "kalman_attention__d_conv", "rg_lru__d_conv"), 3)
SIZES = {"d_model": 8, "d_state": 4, "mlp_ratio": 0.0} | runs.HEADS | WINDOWS | TAPS
CLOSE = {"rtol": 2e-4, "atol": 2e-5}
ALL = pytest.mark.parametrize("kind", sorted(MIXERS))
DIFFERENT = ("attention", "gru", "mamba2", "s5", "selective")  # in the form of their states, for laws that take long
SOME = pytest.mark.parametrize(
    "kind", [kind if kind in DIFFERENT else pytest.param(kind, marks=pytest.mark.exhaustive) for kind in sorted(MIXERS)]
)


def test_the_configuration_knows_the_same_names():
    assert set(MIXERS) == set(LAYERS)
    groups = {name: type(getattr(Model(), name)) for name in MIXERS if hasattr(Model(), name)}
    assert groups == {name: mixer.config for name, mixer in MIXERS.items() if list_fields(mixer.config)}


@functools.cache
def subject(kind: str, **changes) -> tuple[SequenceModel, dict]:
    """A model of one block and its parameters."""
    made = runs.model(pattern=(kind,), task=Task("language", vocab=VOCAB), **SIZES | changes)
    model = SequenceModel(made)
    return model, jax.jit(model.init)(jax.random.key(0), tokens())["params"]


def tokens(seed: int = 1, steps: int = T) -> jax.Array:
    return jax.random.randint(jax.random.key(seed), (B, steps), 0, VOCAB)


@functools.partial(jax.jit, static_argnums=0, static_argnames="cuts")
def read(model, params, inputs, reset=None, *, cuts=()):
    """Logits of all steps, and the state after the last, of calls that end at the cuts."""
    edges, state, parts = (0, *cuts, inputs.shape[1]), None, []
    for start, stop in itertools.pairwise(edges):
        logits, state = model.apply(
            {"params": params}, inputs[:, start:stop], state, reset=None if reset is None else reset[:, start:stop]
        )
        parts.append(logits)
    return jnp.concatenate(parts, axis=1), state


@functools.partial(jax.jit, static_argnums=0, static_argnames="cuts")
def gradient(model, params, inputs, *, cuts=()):
    return jax.grad(lambda params: jnp.square(read(model, params, inputs, cuts=cuts)[0]).mean())(params)


@functools.partial(jax.jit, static_argnums=0)
def by_steps(model, params, inputs):
    """Logits of one step after the other, from `initial_state` on."""

    def step(state, token):
        logits, state = model.apply({"params": params}, token, state, method="step")
        return state, logits

    state = model.apply({"params": params}, len(inputs), method="initial_state")
    state, logits = jax.lax.scan(step, state, inputs.T)
    return logits.swapaxes(0, 1), state


@ALL
def test_whole_is_any_split_is_step_by_step_in_values_and_gradients(kind):
    model, params = subject(kind)
    whole, last = read(model, params, tokens())
    for logits, state in (read(model, params, tokens(), cuts=(1, 5)), by_steps(model, params, tokens())):
        np.testing.assert_allclose(logits, whole, **CLOSE)
        jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, **CLOSE), state, last)
    one, other = gradient(model, params, tokens()), gradient(model, params, tokens(), cuts=(1, 5))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-5), one, other)
    assert all(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(one["block_0"]["mixer"])), (
        "a parameter that nothing depends on"
    )


@ALL
def test_nothing_comes_from_the_future_and_the_past_arrives(kind):
    layer = mixer(kind, runs.model(pattern=(kind,), **SIZES).blocks[0])
    x = jax.random.normal(jax.random.key(0), (1, T, SIZES["d_model"]))
    params = jax.jit(layer.init)(jax.random.key(1), x)
    # of y_t by x_s
    slope = np.abs(jax.jit(jax.jacrev(lambda x: layer.apply(params, x)[0][0].sum(axis=-1)))(x)[:, 0]).sum(axis=-1)
    assert np.all(slope[np.triu_indices(T, 1)] == 0)
    assert np.all(np.diagonal(slope) > 0) and np.all(np.diagonal(slope, -1) > 0)


@ALL
def test_packed_documents_are_separate_ones_and_padding_changes_nothing(kind):
    model, params = subject(kind)
    inputs, reset = tokens(), jnp.zeros((B, T), bool).at[:, 4].set(True)
    packed, _ = read(model, params, inputs, reset)
    apart, after = read(model, params, inputs[:, 4:])
    np.testing.assert_allclose(packed[:, :4], read(model, params, inputs[:, :4])[0], **CLOSE)
    np.testing.assert_allclose(packed[:, 4:], apart, **CLOSE)  # left padding is a document before
    padded, _ = read(model, params, jnp.pad(inputs, ((0, 0), (0, 3))))
    np.testing.assert_allclose(padded[:, :T], read(model, params, inputs)[0], **CLOSE)
    onward, _ = read(model, params, tokens(2), jnp.zeros((B, T), bool).at[:, 0].set(True))
    model_after = jax.jit(
        lambda params, state: model.apply(
            {"params": params}, tokens(2), state, reset=jnp.zeros((B, T), bool).at[:, 0].set(True)
        )[0]
    )
    np.testing.assert_allclose(model_after(params, after), onward, **CLOSE)


@ALL
def test_no_gradient_crosses_a_reset(kind):
    layer = mixer(kind, runs.model(pattern=(kind,), **SIZES).blocks[0])
    x = jax.random.normal(jax.random.key(0), (1, T, SIZES["d_model"]))
    params = jax.jit(layer.init)(jax.random.key(1), x)
    reset = jnp.zeros((1, T), bool).at[:, 4].set(True)
    before = jax.jit(jax.grad(lambda x: jnp.square(layer.apply(params, x, reset=reset)[0][:, 4:]).sum()))(x)[:, :4]
    assert np.all(np.asarray(before) == 0)


@SOME
def test_the_public_laws_hold(kind):
    check_mixer(mixer(kind, runs.model(pattern=(kind,), **SIZES).blocks[0]), d_model=SIZES["d_model"])


@ALL
def test_what_is_not_finite_crosses_no_reset_and_comes_from_no_later_step(kind):
    layer = mixer(kind, runs.model(pattern=(kind,), **SIZES).blocks[0])
    x = jax.random.normal(jax.random.key(0), (B, T, SIZES["d_model"]))
    params = jax.jit(layer.init)(jax.random.key(1), x)
    state = layer.initial_state(B)
    # a count is a number
    ill = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan if leaf.ndim > 1 else 5.0), state)
    first, middle = (jnp.zeros((B, T), bool).at[:, at].set(True) for at in (0, 4))
    run = jax.jit(lambda x, state, reset: layer.apply(params, x, state, reset=reset)[0])
    np.testing.assert_allclose(run(x, ill, first), run(x, state, first), **CLOSE)
    np.testing.assert_allclose(
        run(x.at[:, 2].set(jnp.nan), state, middle)[:, 4:], run(x, state, middle)[:, 4:], **CLOSE
    )
    later = x.at[:, 6].set(jnp.nan)
    for reset in (middle, None):  # a layer may have a way of its own for sequences without resets
        found, expected = run(later, state, reset), run(x, state, reset)
        np.testing.assert_allclose(found[:, :6], expected[:, :6], **CLOSE)
        assert np.isnan(np.asarray(found[:, 6])).all()


@pytest.mark.exhaustive
@ALL
def test_no_gradient_reads_a_state_that_a_reset_hides(kind):
    layer = mixer(kind, runs.model(pattern=(kind,), **SIZES).blocks[0])
    x = jax.random.normal(jax.random.key(0), (B, T, SIZES["d_model"]))
    params = jax.jit(layer.init)(jax.random.key(1), x)
    state, reset = layer.initial_state(B), jnp.zeros((B, T), bool).at[:, 0].set(True)
    ill = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan if leaf.ndim > 1 else 5.0), state)
    slopes = jax.jit(
        jax.grad(
            lambda params, x, state: jnp.square(layer.apply(params, x, state, reset=reset)[0]).sum(), argnums=(0, 1)
        )
    )
    jax.tree.map(
        lambda found, expected: np.testing.assert_allclose(found, expected, **CLOSE),
        slopes(params, x, ill),
        slopes(params, x, state),
    )


@ALL
def test_bfloat16_activations_are_numbers_and_states_stay_wide(kind):
    model, params = subject(kind, dtype="bfloat16")
    logits, state = read(model, params, tokens())
    assert logits.dtype == jnp.float32 and np.isfinite(np.asarray(logits)).all()
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    recurrent = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state["blocks"])
        if getattr(path[-1], "key", None) in ("mixer", "h", "c")
    ]
    assert all(leaf.dtype in (jnp.float32, jnp.complex64) for leaf in recurrent)
    slopes = gradient(model, params, tokens())
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(slopes))


@ALL
def test_a_second_call_compiles_nothing(kind):
    model, params = subject(kind)
    traced = 0

    @jax.jit
    def step(params, inputs, state):
        nonlocal traced
        traced += 1
        return model.apply({"params": params}, inputs, state)

    state = model.apply({"params": params}, B, method="initial_state")
    for seed in range(3):
        _, state = step(params, tokens(seed, 1), state)
    assert traced == 1


@ALL
def test_types_are_the_same_under_x64_and_one_step_after_the_other(kind):
    with jax.enable_x64(True):
        layer = mixer(kind, runs.model(pattern=(kind,), **SIZES).blocks[0])
        x = jnp.zeros((B, T, SIZES["d_model"]), jnp.float32)
        params = jax.eval_shape(layer.init, jax.random.key(0), x)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
        steps = lambda params, x: jax.lax.scan(  # noqa: E731
            lambda h, u: layer.apply(params, u[:, None], h)[::-1], layer.initial_state(B), x.swapaxes(0, 1)
        )[1]
        for given in (
            params,
            *(
                jax.tree.map(lambda leaf, to=to: leaf.update(dtype=to), params)
                for to in (jnp.bfloat16, jnp.float16, jnp.float64)
            ),
        ):
            assert jax.eval_shape(steps, given, x).dtype == jnp.float32
        for given in (params, jax.tree.map(lambda leaf: leaf.update(dtype=jnp.bfloat16), params)):
            slopes = jax.eval_shape(jax.grad(lambda params, x: layer.apply(params, x)[0].sum()), given, x)
            jax.tree.map(
                lambda slope, leaf: (
                    pytest.fail(f"{slope.dtype} of {leaf.dtype}") if slope.dtype != leaf.dtype else None
                ),
                slopes,
                given,
            )


TASKS = {
    "language": (Task("language", vocab=VOCAB), ()),
    "classification": (Task("classification", channels=2, classes=3), (2,)),
    "forecasting": (Task("forecasting", channels=2, horizon=3), (2,)),
}


@pytest.mark.parametrize("task", TASKS)
def test_states_of_models_keep_their_types_under_x64(task):
    task, width = TASKS[task]
    with jax.enable_x64(True):
        model = SequenceModel(
            runs.model(
                pattern=("selective", "mamba"), frame=2 if task.kind == "classification" else 1, task=task, **SIZES
            )
        )
        x = jnp.zeros((B, T, *width), jnp.float32 if width else jnp.int32)
        params = jax.eval_shape(model.init, jax.random.key(0), x)
        state = jax.eval_shape(lambda params: model.apply(params, B, method="initial_state"), params)
        after = jax.eval_shape(lambda params, state, x: model.apply(params, x, state)[1], params, state, x)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
        assert jax.tree.map(lambda leaf: leaf.dtype, state) == jax.tree.map(lambda leaf: leaf.dtype, after)


@pytest.mark.parametrize("kind", ["selective", "s4d", "lru", "mamba"])
def test_parameters_of_half_precision_are_those_numbers(kind):
    layer = mixer(kind, runs.model(pattern=(kind,), **SIZES).blocks[0])
    x = jax.random.normal(jax.random.key(0), (B, T, SIZES["d_model"]))
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), jax.jit(layer.init)(jax.random.key(1), x))
    found, expected = (
        jax.jit(lambda params: layer.apply(params, x)[0])(jax.tree.map(lambda leaf, to=to: leaf.astype(to), half))
        for to in ("bfloat16", "float32")
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


class Foreign(nn.Module):
    """Someone else's Linen model around one of our layers."""

    kind: str

    @nn.compact
    def __call__(self, x):
        y, _ = mixer(self.kind, runs.model(pattern=(self.kind,), **SIZES).blocks[0])(nn.LayerNorm()(x))
        return nn.Dense(1)(y)


@SOME
def test_one_layer_trains_in_plain_jax_in_linen_and_in_nnx(kind):
    x = jax.random.normal(jax.random.key(0), (B, T, SIZES["d_model"]))
    layer = mixer(kind, runs.model(pattern=(kind,), **SIZES).blocks[0])
    for module, read_out in ((layer, lambda out: out[0]), (Foreign(kind), lambda out: out)):
        variables = jax.jit(module.init)(jax.random.key(1), x)
        before, after = _two_losses(
            lambda params, module=module, read_out=read_out: jnp.square(read_out(module.apply(params, x)) - 1).mean(),
            variables,
        )
        assert after < before
    wrapped = bridge.lazy_init(bridge.ToNNX(layer, rngs=nnx.Rngs(0)), x)
    assert _nnx_step(wrapped, x) > _nnx_step(wrapped, x)


@nnx.jit
def _nnx_step(module, x):
    """The loss before one small step of gradient descent, which it takes."""
    loss, slope = nnx.value_and_grad(lambda module: jnp.square(module(x)[0] - 1).mean())(module)
    nnx.update(module, jax.tree.map(lambda p, g: p - 1e-3 * g, nnx.state(module, nnx.Param), slope))
    return loss


def _two_losses(loss, params):
    """The loss before and after one small step of gradient descent."""

    @jax.jit
    def step(params):
        before, slope = jax.value_and_grad(loss)(params)
        moved = optax.apply_updates(params, jax.tree.map(lambda g: -1e-3 * g, slope))
        return before, loss(moved)

    return step(params)


def test_hybrids_of_all_mixers_are_one_model():
    everything = runs.model(pattern=tuple(sorted(MIXERS)), task=Task("language", vocab=VOCAB), **SIZES)
    assert dataclasses.replace(everything, pattern=("selective", "selective", "attention") * 4).blocks[2].pattern == (
        "attention",
    )
    model = SequenceModel(everything)
    params = jax.jit(model.init)(jax.random.key(0), tokens())["params"]
    np.testing.assert_allclose(read(model, params, tokens(), cuts=(2,))[0], read(model, params, tokens())[0], **CLOSE)
