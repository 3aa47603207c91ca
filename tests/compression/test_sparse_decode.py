"""A trained layer stepped by its open components alone equals the layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.compression import sparse_decode
from selssm_jax.layers import SelectiveSSM

B, T, D, N = 2, 30, 5, 70


def trained(**fields):
    """A layer with gates that are open at a tenth of the steps or so, and that read the state where they can."""
    layer = SelectiveSSM(D, N, **fields)
    x = jax.random.normal(jax.random.key(1), (B, T, D))
    params = layer.init(jax.random.key(0), x)["params"]
    if "state_kernel" in params["G"]:
        params["G"]["state_kernel"] = 0.3 * jax.random.normal(jax.random.key(2), params["G"]["state_kernel"].shape)
    return layer, params, x


FORMS = [
    {"gate": "binary", "output_gate": True},
    {"gate": "binary", "transition": "dense", "gate_state": "elementwise"},
    {"gate": "top_k", "gate_active": 7},
    {"gate": "top_k", "gate_active": 7, "transition": "dense", "gate_state": "dense"},
    {"gate": "hard_sigmoid"},
    {"gate": "hard_concrete", "gate_state": "dense"},
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form.values())))
def test_steps_equal_the_layer(form):
    layer, params, x = trained(**form)
    h0 = jax.random.normal(jax.random.key(3), (B, N))
    (y, last), sown = layer.apply({"params": params}, x, h0, mutable=["intermediates"])
    decoder = sparse_decode.make_decoder(layer, params, None if form["gate"] == "top_k" else N // 3)

    def body(state, now):
        found, state = decoder.step(now, state)
        return state, found

    state, found = jax.jit(lambda state: jax.lax.scan(body, state, x.swapaxes(0, 1)))(decoder.start(h0))
    # float32 over 30 steps of values of order 1; sums of 70 products
    np.testing.assert_allclose(found.swapaxes(0, 1), y, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(state.h, last, rtol=1e-4, atol=1e-5)
    opened = np.asarray(sown["intermediates"]["gate"][0] > 0).mean()
    assert 0.05 < opened < 0.95 or form["gate"].startswith("hard")


def test_a_decoder_goes_into_a_program_as_an_argument_and_goes_on_from_a_state():
    layer, params, x = trained(gate="binary")
    decoder = sparse_decode.make_decoder(layer, params)
    assert (
        decoder.capacity == N // 4
        and sparse_decode.make_decoder(*trained(gate="top_k", gate_active=9)[:2]).capacity == 9
    )
    step = jax.jit(sparse_decode.Decoder.step, donate_argnames="state")
    whole, _ = layer.apply({"params": params}, x)
    _, half = layer.apply({"params": params}, x[:, :15])
    for batch in (1, B):
        y, state = step(decoder, x[:batch, 15], decoder.start(half[:batch]))
        np.testing.assert_allclose(y, whole[:batch, 15], rtol=1e-4, atol=1e-5)
        assert state.h.shape == (batch, N) and state.read.shape == (batch, D)


@pytest.mark.parametrize(
    ("fields", "capacity", "words"),
    [
        ({"gate": "binary", "drive": "normalised"}, None, "drive='normalised' writes more .* drive='gated'"),
        ({"gate": "sigmoid"}, None, "gate='sigmoid' is never 0, so nothing can be skipped: train one of hard_sigmoid"),
        ({"gate": "binary", "gate_floor": 0.1}, None, "gate_floor=0.1 keeps every gate open.*gate_floor=0"),
        ({"gate": "binary", "update": "effective"}, None, "erases where a gate is 0.*update='retain'"),
        ({"gate": "binary", "transition": "complex"}, None, "complex states.*use 'diagonal' or 'dense'"),
        ({"gate": "binary", "process_noise": 0.1}, None, r"layer.clone\(process_noise=0.0"),
        (
            {"gate": "binary", "drive_noise": 0.1, "drive_dropout": 0.2},
            None,
            r"drive_noise=0.1 and drive_dropout=0.2 is drawn .* layer.clone\(drive_noise=0.0, drive_dropout=0.0\)",
        ),
        ({"gate": "binary", "dtype": jnp.bfloat16}, None, r"layer.clone\(dtype=jnp.float32\)"),
        ({"gate": "binary"}, N + 1, f"capacity={N + 1} is no number of components: use one from 1 to {N}"),
    ],
)
def test_layers_that_cannot_skip_are_refused(fields, capacity, words):
    with pytest.raises(ValueError, match=words):
        sparse_decode.make_decoder(SelectiveSSM(D, N, **fields), trained(gate="binary")[1], capacity)
