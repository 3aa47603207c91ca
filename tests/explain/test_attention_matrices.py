"""Hidden attention is the closed formula of each recurrence, and makes its outputs again."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from selssm_jax import explain
from selssm_jax.config import Task
from selssm_jax.config.mixers import MIXERS
from selssm_jax.explain.attention_matrices import HiddenAttention
from selssm_jax.explain.rules import RULES
from selssm_jax.layers import relevance_rules
from selssm_jax.layers.mixers import mixer
from selssm_jax.model import SequenceModel

B, T, VOCAB = 2, 9, 7
WINDOWS = {"attention__window": 16, "local_attention__window": 3}
SIZES = {"d_model": 8, "d_state": 4, "mlp_ratio": 0.0} | runs.HEADS | WINDOWS
LINEAR = sorted(set(MIXERS) - {"rnn", "lstm", "gru", "tcn"})
SOME = pytest.mark.parametrize(
    "kind",
    [kind if kind == "selective" else pytest.param(kind, marks=pytest.mark.exhaustive) for kind in LINEAR],
)


@functools.cache
def subject(kind, **changes):
    made = runs.model(pattern=(kind,), task=Task("language", vocab=VOCAB), **SIZES | changes)
    model = SequenceModel(made)
    return model, jax.jit(model.init)(jax.random.key(0), tokens())["params"]


def tokens():
    return jax.random.randint(jax.random.key(1), (B, T), 0, VOCAB)


def wide(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf).astype(np.complex128 if np.iscomplexobj(leaf) else float), tree)


def inputs_of_mixer(model, params):
    return model.apply({"params": params}, method=lambda module: module.block[0].norm(module.encoder(tokens())))


def products(A, B):
    """(A_i ... A_{j+1}) B_j of diagonal steps, [i, j], by loops."""
    alpha = np.zeros((*A.shape[:1], A.shape[1], *A.shape[1:]), A.dtype)
    for i, j in itertools.product(range(A.shape[1]), repeat=2):
        if j <= i:
            alpha[:, i, j] = np.prod(A[:, j + 1 : i + 1], axis=1) * B[:, j]
    return alpha


@SOME
def test_outputs_are_made_again_and_tiles_do_not_matter(kind):
    model, params = subject(kind)
    found = explain.hidden_attention(model, params, tokens(), block=0, over="channel", tile=4)
    assert np.abs(found.rest).max() <= 1e-6 * np.abs(found.read).max()
    made = np.einsum("rcij,rjc...->ric...", found.alpha, found.drive)
    made = made + np.reshape(found.skip, (1, 1, -1) + (1,) * (found.drive.ndim - 3)) * found.drive
    np.testing.assert_allclose(made, found.read, rtol=1e-4, atol=1e-5 * np.abs(found.read).max())
    assert not np.any(np.asarray(found.alpha)[:, :, *np.triu_indices(T, 1)])
    mean = explain.hidden_attention(model, params, tokens(), block=0, tile=100)
    np.testing.assert_allclose(mean.alpha, found.alpha.mean(axis=1), rtol=1e-4, atol=1e-7)
    lags = [np.abs(np.diagonal(found.alpha, -lag, axis1=2, axis2=3)).mean() for lag in range(T)]
    np.testing.assert_allclose(found.profile, lags, rtol=1e-4)
    np.testing.assert_allclose(found.energy, np.square(np.abs(found.alpha)).sum(axis=(2, 3)) / T, rtol=1e-4)
    np.testing.assert_allclose(mean.profile, found.profile, rtol=1e-4)


@pytest.mark.parametrize("gate_state", ["none", pytest.param("elementwise", marks=pytest.mark.exhaustive)])
def test_of_a_selective_layer_it_is_the_closed_formula(gate_state):
    """C_i (A_i ... A_{j+1}) B_j, a D x D matrix, with the A_t and B_t that the layer itself states, in float64."""
    model, params = subject("selective", selective__gate_state=gate_state)
    x, own = inputs_of_mixer(model, params), params["block_0"]["mixer"]
    layer = mixer("selective", model.config.blocks[0])
    dynamics = wide(layer.apply({"params": own}, x, method="dynamics"))
    found = wide(explain.hidden_attention(model, params, tokens(), block=0, over="channel"))
    matrices = np.zeros((B, T, T, 8, 8))
    for i, j in itertools.product(range(T), repeat=2):
        if j <= i:
            left = np.prod(dynamics.A[:, j + 1 : i + 1], axis=1)
            matrices[:, i, j] = np.einsum("nd,bn,bne->bde", wide(own["C"]), left, dynamics.B[:, j])
    by_alpha = np.einsum("nd,bnij,en->bijde", wide(own["C"]), found.alpha, wide(own["B"]))
    np.testing.assert_allclose(by_alpha, matrices, rtol=1e-4, atol=1e-6)
    y = np.einsum("bijde,bje->bid", matrices, wide(x)) + wide(own["D"]) * wide(x)
    np.testing.assert_allclose(layer.apply({"params": own}, x)[0], y, rtol=1e-4, atol=1e-5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("transition", ["complex", "dense"])
def test_of_other_transitions_too(transition):
    model, params = subject("selective", selective__transition=transition)
    layer, x = mixer("selective", model.config.blocks[0]), inputs_of_mixer(model, params)
    A = wide(layer.apply({"params": params["block_0"]["mixer"]}, x, method="dynamics")).A
    found = wide(explain.hidden_attention(model, params, tokens(), block=0, over="channel", tile=4))
    assert np.abs(found.rest).max() <= 1e-6 * np.abs(found.read).max()
    i, j = 7, 3
    if transition == "complex":
        ratio = found.alpha[:, :, i, j] / found.alpha[:, :, j, j]
        np.testing.assert_allclose(ratio, np.prod(A[:, j + 1 : i + 1], axis=1), rtol=1e-4)
        return
    product = functools.reduce(lambda left, step: A[:, step] @ left, range(j + 1, i + 1), np.eye(4)[None])
    np.testing.assert_allclose(found.alpha[..., i, j], product @ found.alpha[..., j, j], rtol=1e-4, atol=1e-7)
    mean = wide(explain.hidden_attention(model, params, tokens(), block=0))
    np.testing.assert_allclose(mean.alpha, np.trace(found.alpha, axis1=1, axis2=2) / 4, rtol=1e-4, atol=1e-7)


@pytest.mark.exhaustive
def test_of_mamba_it_is_the_closed_formula():
    """alpha_ij = C_i' diag(exp(A sum of dt_r, j < r <= i)) B_j dt_j of every channel, in float64."""
    model, params = subject("mamba")
    own = wide(params["block_0"]["mixer"])
    found = wide(explain.hidden_attention(model, params, tokens(), block=0, over="channel"))
    x = found.drive
    dt = np.log1p(np.exp(x @ own["down"] @ own["up"] + own["dt_bias"]))
    maps, readouts, A = x @ own["B"], x @ own["C"], -np.exp(own["A_log"])
    alpha = np.zeros_like(found.alpha)
    for i, j in itertools.product(range(T), repeat=2):
        if j <= i:
            left = np.exp(dt[:, j + 1 : i + 1].sum(axis=1)[..., None] * A[None])
            alpha[:, :, i, j] = np.einsum("bn,ben,bn,be->be", readouts[:, i], left, maps[:, j], dt[:, j])
    np.testing.assert_allclose(found.alpha, alpha, rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(found.skip, own["D"])


def test_a_reset_hides_what_came_before_and_a_state_is_the_rest():
    model, params = subject("selective")
    reset = jnp.zeros((B, T), bool).at[:, 4].set(True)
    packed = explain.hidden_attention(model, params, tokens(), block=0, reset=reset)
    assert not np.any(packed.alpha[:, 4:, :4]) and np.abs(packed.rest).max() < 1e-6
    whole = explain.hidden_attention(model, params, tokens(), block=0, over="channel")
    _, state = model.apply({"params": params}, tokens()[:, :4])
    onward = explain.hidden_attention(model, params, tokens()[:, 4:], block=0, state=state, over="channel")
    np.testing.assert_allclose(onward.alpha, whole.alpha[:, :, 4:, 4:], rtol=1e-4, atol=1e-7)
    before = np.einsum("rcij,rjc->ric", whole.alpha[:, :, 4:, :4], whole.drive[:, :4])
    np.testing.assert_allclose(onward.rest, before, rtol=1e-3, atol=1e-6)


def logit(outputs):
    return outputs[:, -1, 3].sum()


@pytest.mark.parametrize(
    "kind", ["selective", *(pytest.param(k, marks=pytest.mark.exhaustive) for k in ("s5", "mamba"))]
)
def test_components_share_what_is_owed_to_the_state(kind):
    """All components together have what the number loses in relevance where the readout is nothing."""
    model, params = subject(kind, norm="none")
    found = explain.component_relevance(model, params, tokens(), logit, block=0)
    layer = mixer(kind, model.config.blocks[0])
    axes, own = layer.state_axes(), params["block_0"]
    assert found.shape == (axes.components,)
    without = {**params, "block_0": {**own, "mixer": axes.mask_readout(own["mixer"], jnp.zeros(axes.components))}}
    read = jax.jit(lambda params: logit(model.apply({"params": params}, tokens())[0]))
    owed = read(params) - read(without)
    owed = owed / 2 if kind == "mamba" else _owed_through_gelu(model, params) if kind == "s5" else owed
    np.testing.assert_allclose(found.sum(), owed, rtol=1e-3, atol=1e-6)
    if kind == "selective":
        one = {**params, "block_0": {**own, "mixer": axes.mask_readout(own["mixer"], jnp.ones(4).at[2].set(0))}}
        np.testing.assert_allclose(found[2], read(params) - read(one), rtol=1e-3, atol=1e-6)


def _owed_through_gelu(model, params):
    """Of s5: C h times the quotient of the GELU, the gate and the head."""
    own, x = params["block_0"]["mixer"], inputs_of_mixer(model, params)
    read = explain.hidden_attention(model, params, tokens(), block=0).read
    C_real, C_imaginary = jnp.split(own["C"], 2)
    of_state = 2 * (read.real @ C_real - read.imag @ C_imaginary)
    z = of_state + own["D"][None, None] * x
    y = jax.nn.gelu(z)
    shares = y / z * of_state * jax.nn.sigmoid(y @ own["gate"]["kernel"])
    return (shares[:, -1] @ params["head"]["kernel"])[:, 3].sum()


def test_what_has_none_is_refused():
    model, params = subject("lru")
    ask = functools.partial(explain.hidden_attention, model, params, tokens())
    with pytest.raises(ValueError, match="block=1 of a model of 1 blocks"):
        ask(block=1)
    with pytest.raises(ValueError, match="over='head' is unknown"):
        ask(block=0, over="head")
    with pytest.raises(ValueError, match="tile=0"):
        ask(block=0, tile=0)
    recurrent, drawn = subject("gru")
    with pytest.raises(ValueError, match="mixer 'gru', which is not linear"):
        explain.hidden_attention(recurrent, drawn, tokens(), block=0)
    with pytest.raises(ValueError, match="names no components"):
        explain.component_relevance(recurrent, drawn, tokens(), logit, block=0)


def test_the_face_of_the_package_names_the_rules():
    assert explain.RULES == RULES == relevance_rules.RULES and explain.HiddenAttention is HiddenAttention
