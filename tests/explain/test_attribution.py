"""Relevance adds up to what it explains, in every mixer, and each rule is needed; values stay what they are."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from selssm_jax import explain
from selssm_jax.compression import PackedModel
from selssm_jax.config import Task
from selssm_jax.config.mixers import MIXERS
from selssm_jax.explain.attribution import METHODS
from selssm_jax.explain.rules import RULES, explaining
from selssm_jax.model import SequenceModel

B, T, VOCAB = 2, 9, 7
WINDOWS = {"attention__window": 16, "local_attention__window": 3}
SIZES = {"d_model": 8, "d_state": 4} | runs.HEADS | WINDOWS
BARE = {"mlp_ratio": 0.0, "norm": "none"}
DIFFERENT = ("lstm", "selective")  # in their rules; the others take long to compile
ALL = pytest.mark.parametrize(
    "kind", [kind if kind in DIFFERENT else pytest.param(kind, marks=pytest.mark.exhaustive) for kind in sorted(MIXERS)]
)
# the rules without which relevance in the mixer itself does not add up
NEEDED = {
    "selective": {"gate"},
    "kalman": {"gate"},
    "kalman_attention": {"activation", "gate", "product", "norm"},
    "s4d": {"activation", "gate"},
    "s5": {"activation", "gate"},
    "lru": set(),
    "rg_lru": {"activation", "gate", "product"},
    "mamba": {"activation", "gate", "product"},
    "mamba2": {"activation", "gate", "product", "norm"},
    "min_gru": {"gate"},
    "rnn": {"activation"},
    "lstm": {"activation", "gate"},
    "gru": {"activation", "gate"},
    "attention": {"attention"},
    "local_attention": {"attention"},
    "tcn": set(),  # a relu is its own tangent
}
OFF = 1e-4  # ten times what sums may be off by rounding; the residual stream, which needs no rule, has most of a sum
SEEN = {"local_attention": 3, "tcn": 5}  # steps that a mixer looks back on, itself among them; others: all
VARIANTS = {
    "state gates": {"selective__gate_state": "elementwise"},
    "state gates, dense, by Newton": {"selective__gate_state": "dense", "selective__solver": "newton"},
    "complex": {"selective__transition": "complex", "selective__drive": "normalised"},
    "dense": {"selective__transition": "dense"},
    "effective": {"selective__update": "effective", "selective__gate": "softmax"},
    "certified": {"selective__certified": True, "selective__gate_floor": 0.1, "selective__gate_state": "elementwise"},
    "output gate": {"selective__output_gate": True, "selective__gate": "hard_concrete"},
    "falcon": {"pattern": ("mamba",), "mamba__inner_norm_epsilon": 1e-6},
    "recomputed": {"pattern": ("mamba",), "remat": True},
    "tied": {"tie_embeddings": True},
    "convolved": {"pattern": ("s4d", "gru"), "conv": 3},
}


def make(inputs, task=None, **changes):
    """A model and parameters as drawn, gates moved off their start, and steps made long enough to be seen."""
    task = task or Task("language", vocab=VOCAB)
    model = SequenceModel(runs.model(task=task, **SIZES | {"pattern": ("selective",)} | changes))
    params = jax.jit(model.init)(jax.random.key(0), inputs)["params"]
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    moved = {
        name: leaf
        + 0.3 * jax.random.normal(jax.random.key(index), leaf.shape) * name.endswith("state_kernel")
        + 4.0 * name.endswith("dt_bias")
        for index, (name, leaf) in enumerate(flat.items())
    }
    return model, flax.traverse_util.unflatten_dict(moved, sep="/")


@functools.cache
def subject(kind, **changes):
    return make(tokens(), pattern=(kind,), **changes)


def tokens(seed=1, steps=T):
    return jax.random.randint(jax.random.key(seed), (B, steps), 0, VOCAB)


def logit(outputs):
    return outputs[:, -1, 3].sum()


def first_row(outputs):
    return outputs[0, 5, 2]


def check(found, *, close=1e-5):
    """Nothing is left over, relative to what is explained."""
    assert abs(found.remainder) <= close * max(abs(found.output), 0.05), found.remainder
    np.testing.assert_allclose(found.relevance.sum() + found.of_state, found.output, rtol=1e-5, atol=1e-6)


@ALL
def test_relevance_adds_up_in_every_block_and_values_keep_their_bits(kind):
    model, params = subject(kind, conv=2)
    found = explain.explain_output(model, params, tokens(), logit)
    check(found)
    assert found.blocks.shape == (2, B, T) and np.array_equal(found.blocks[0], found.relevance)
    np.testing.assert_allclose(found.blocks.sum(axis=(1, 2)), found.output, rtol=1e-5, atol=1e-6)
    read = lambda params: model.apply({"params": params}, tokens())[0]  # noqa: E731
    ordinary = jax.jit(read)(params)
    with explaining():
        np.testing.assert_array_equal(jax.jit(read)(params), ordinary)
    np.testing.assert_allclose(found.output, logit(ordinary), rtol=1e-6, atol=1e-6)


@ALL
def test_each_rule_that_a_mixer_needs_is_needed_and_no_other(kind):
    assert set(NEEDED) == set(MIXERS)
    model, params = subject(kind, **BARE)
    for rule in RULES:
        found = explain.explain_output(model, params, tokens(), logit, rules=set(RULES) - {rule})
        if rule in NEEDED[kind]:
            assert abs(found.remainder) > OFF * abs(found.output), rule
        else:
            check(found)


def test_norms_and_mlps_need_theirs():
    model, params = subject("lru")
    for rule in ("activation", "product", "norm"):
        found = explain.explain_output(model, params, tokens(), logit, rules=set(RULES) - {rule})
        assert abs(found.remainder) > OFF * abs(found.output), rule


@pytest.mark.parametrize(
    "name",
    [name if name == "state gates" else pytest.param(name, marks=pytest.mark.exhaustive) for name in VARIANTS],
)
def test_variants_of_models_add_up_and_keep_their_bits(name):
    model, params = make(tokens(), **VARIANTS[name])
    check(explain.explain_output(model, params, tokens(), logit))
    read = lambda params: model.apply({"params": params}, tokens())[0]  # noqa: E731
    ordinary = jax.jit(read)(params)
    with explaining():
        np.testing.assert_array_equal(jax.jit(read)(params), ordinary)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["series", "apart", "signal", "spectrum", "text"])
def test_inputs_of_every_task_add_up(name):
    series, signal = (
        Task("forecasting", channels=2, length=12, horizon=4),
        Task("classification", channels=1, classes=3),
    )
    changes = {
        "series": {"task": series, "linear_skip": 3},
        "apart": {"task": series, "channel_independent": True, "channel_mixing": True},
        "signal": {"task": signal, "frame": 4, "stride": 2, "bidirectional": True},
        "spectrum": {"task": signal, "frame": 8, "stride": 4, "filterbank": 3},
        "text": {"task": Task("text_classification", vocab=VOCAB, classes=3)},
    }[name]
    width = changes["task"].channels
    inputs = jax.random.normal(jax.random.key(3), (B, 12, width)) + 1 if width else tokens(steps=12)
    model, params = make(inputs, **changes)
    params = jax.tree.map(lambda leaf: leaf + 0.2 * (leaf == 0) * (leaf.ndim > 1), params)  # maps that start at 0
    found = explain.explain_output(model, params, inputs, lambda outputs: outputs.reshape(B, -1)[:, 1].sum())
    check(found, close=3e-5)
    frames = {"signal": 6, "spectrum": 3}.get(name, 12)
    assert found.relevance.shape == (B, 12) and found.blocks.shape == (2, B, frames)


def test_of_a_linear_model_all_methods_agree():
    model, params = subject("lru", **BARE)
    found = [explain.relevance(model, params, tokens(), logit, method=method) for method in METHODS]
    assert np.abs(found[0]).max() > 0.01
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-3, atol=1e-5)


def test_a_gated_mlp_by_hand():
    """u = W_u x, z = W_g x and y = W_o (silu(z) u): half of what y_k owes to hidden unit h goes to u_h, half to z_h,
    and from there to x in proportion to the terms of each sum.
    """
    model, params = subject("lru", norm="none", mlp_ratio=1.0)
    params = flax.traverse_util.flatten_dict(params, sep="/")
    params = {name: 0 * leaf if "mixer" in name else leaf for name, leaf in params.items()}  # y = x in the mixer
    params["block_0/mixer/D"] = jnp.zeros(8)
    x = np.asarray(params["encoder/embedding"], np.float64)[np.asarray(tokens())][:, -1]
    W_g, W_u = np.split(np.asarray(params["block_0/mlp/in/kernel"], np.float64), 2, axis=1)
    W_o, c = (np.asarray(params[name], np.float64) for name in ("block_0/mlp/out/kernel", "head/kernel"))
    z, u = x @ W_g, x @ W_u
    owed = (z / (1 + np.exp(-z)) * u) * (W_o @ c[:, 3])  # by hidden unit
    terms = [x[:, :, None] * W[None] / side[:, None] for W, side in ((W_g, z), (W_u, u))]
    by_hand = x @ c[:, 3] + sum((term * owed[:, None]).sum(axis=(1, 2)) for term in terms) / 2
    assert by_hand.shape == (B,)
    found = explain.relevance(model, flax.traverse_util.unflatten_dict(params, sep="/"), tokens(), logit)
    np.testing.assert_allclose(found[:, -1], by_hand, rtol=1e-5)
    assert not np.any(found[:, :-1])


@ALL
def test_nothing_later_and_no_other_row_is_relevant(kind):
    model, params = subject(kind)
    found = explain.explain_output(model, params, tokens(), first_row)
    check(found)
    assert not np.any(found.relevance[1]) and not np.any(found.relevance[0, 6:])
    np.testing.assert_array_equal(found.relevance[0, :6] != 0, np.arange(6) > 5 - SEEN.get(kind, T))


@ALL
def test_a_reset_hides_and_a_state_carries_what_came_before(kind):
    model, params = subject(kind)
    whole = explain.explain_output(model, params, tokens(), logit)
    reset = jnp.zeros((B, T), bool).at[:, 4].set(True)
    packed = explain.explain_output(model, params, tokens(), logit, reset=reset)
    apart = explain.explain_output(model, params, tokens()[:, 4:], logit)
    assert not np.any(packed.relevance[:, :4])
    np.testing.assert_allclose(packed.relevance[:, 4:], apart.relevance, rtol=2e-4, atol=2e-6)
    _, state = model.apply({"params": params}, tokens()[:, :4])
    onward = explain.explain_output(model, params, tokens()[:, 4:], logit, state=state)
    check(onward)
    np.testing.assert_allclose(onward.relevance, whole.relevance[:, 4:], rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(onward.of_state, whole.relevance[:, :4].sum(), rtol=1e-3, atol=2e-5)


def test_what_is_left_over_is_owed_to_biases():
    model, params = subject("min_gru")
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    flat["block_0/mixer/b"] = jax.random.normal(jax.random.key(5), flat["block_0/mixer/b"].shape)
    params = flax.traverse_util.unflatten_dict(flat, sep="/")
    found = explain.explain_output(model, params, tokens(), logit)
    with explaining():
        slopes = jax.grad(lambda params: logit(model.apply({"params": params}, tokens())[0]))(params)
    share = (slopes["block_0"]["mixer"]["b"] * params["block_0"]["mixer"]["b"]).sum()
    assert abs(share) > 0.01
    np.testing.assert_allclose(found.remainder, share, rtol=1e-3, atol=1e-5)


def test_gradient_x_input_is_that_of_the_model_after_relevance_was_asked_for():
    model, params = subject("selective", conv=2)
    explain.relevance(model, params, tokens(), logit)
    found = explain.relevance(model, params, tokens(), logit, method="gradient_x_input")
    slope = jax.grad(lambda scale: _scaled(model, params, scale))(jnp.ones((B, T)))
    np.testing.assert_allclose(found, slope, rtol=1e-4, atol=1e-5)
    assert abs(found.sum() - _scaled(model, params, jnp.ones((B, T)))) > 0.01


def _scaled(model, params, scale):
    """The logit where embeddings are multiplied by numbers, by the layers of the model alone."""

    def read(module):
        x, state = module.encoder(tokens()) * scale[..., None], None
        for block in module.block:
            x, _ = block(x, state, None, None, True)
        return logit(module.head(module.norm(x)))

    return model.apply({"params": params}, method=read)


def test_integrated_gradients_are_complete_and_occlusion_is_its_definition():
    model, params = subject("selective", norm="none")
    integrated = explain.explain_output(model, params, tokens(), logit, method="integrated_gradients")
    assert abs(integrated.remainder) < 1e-3 * abs(integrated.output) and integrated.blocks is None
    occluded = explain.relevance(model, params, tokens(), logit, method="occlusion")
    for row, step in ((0, 0), (1, 4), (1, T - 1)):
        less = _scaled(model, params, jnp.ones((B, T)).at[row, step].set(0))
        np.testing.assert_allclose(occluded[row, step], integrated.output - less, rtol=1e-4, atol=1e-5)


def test_relevance_inside_a_program():
    model, params = subject("selective")
    program = jax.jit(lambda params, inputs: explain.relevance(model, params, inputs, logit))
    found = program(params, tokens())
    np.testing.assert_allclose(found, explain.relevance(model, params, tokens(), logit), rtol=1e-5, atol=1e-6)


def test_what_cannot_be_explained_is_refused():
    model, params = subject("lru", **BARE)
    ask = functools.partial(explain.explain_output, model, params, tokens())
    with pytest.raises(ValueError, match="method='lpr' is unknown"):
        ask(logit, method="lpr")
    with pytest.raises(ValueError, match="output gives shape"):
        ask(lambda outputs: outputs[:, -1, 3])
    with pytest.raises(ValueError, match="steps=0"):
        ask(logit, method="integrated_gradients", steps=0)
    with pytest.raises(ValueError, match="expected a SequenceModel"):
        explain.relevance(PackedModel(model, ()), params, tokens(), logit)
