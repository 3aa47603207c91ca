"""Models whose whole memory is packed: the scan is the steps, bytes are those claimed, many bits are the model itself,
training goes through.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from selssm_jax.compression.quantization import Quantizer, allocate, fit
from selssm_jax.compression.sensitivity import error_weights
from selssm_jax.compression.streaming import PackedModel, calibration, dither, packed_bytes, read
from selssm_jax.config import Model, Task
from selssm_jax.model import SequenceModel
from selssm_jax.state_layout import StateLayout, components

LANGUAGE = Task("language", vocab=11)
SIGNAL = Task("classification", channels=2, classes=3, length=23)
SERIES = Task("forecasting", channels=2, horizon=4, length=23)
FORMS = {
    "diagonal": (LANGUAGE, {}),
    "complex": (LANGUAGE, {"selective__transition": "complex", "conv": 3}),
    "dense": (LANGUAGE, {"selective__transition": "dense", "block_states": (6, 4)}),
    "state gates": (LANGUAGE, {"selective__gate_state": "elementwise"}),
    "bfloat16": (LANGUAGE, {"dtype": "bfloat16", "conv": 3}),
    "signal": (SIGNAL, {"frame": 5, "stride": 3, "conv": 2}),
    "series": (SERIES, {"frame": 4, "stride": 4, "linear_skip": 6, "head_context": 2}),
    "channels apart": (SERIES, {"frame": 5, "stride": 4, "linear_skip": 6, "channel_independent": True}),
}


@functools.cache
def made(form, bits=4):
    """A small model, its parameters and a batch; and itself packed, with its parameters."""
    task, changes = FORMS[form]
    model = SequenceModel(runs.model(pattern=("selective",) * 2, d_model=12, d_state=10, task=task, **changes))
    rows = 6
    if task.kind == "language":
        inputs = jax.random.randint(jax.random.key(0), (rows, 30), 0, task.vocab)
        batch = {"inputs": inputs, "targets": inputs, "weights": jnp.ones((rows, 30))}
    else:
        targets = (
            jnp.zeros(rows, jnp.int32)
            if task.kind == "classification"
            else jnp.zeros((rows, task.horizon, task.channels))
        )
        inputs = jax.random.normal(jax.random.key(0), (rows, task.length, task.channels))
        batch = {"inputs": inputs, "targets": targets, "weights": jnp.ones(rows)}
    batch["valid"] = jnp.ones(batch["inputs"].shape[:2], bool)
    params = model.init(jax.random.key(1), batch["inputs"])["params"]
    samples = calibration(model, params, [batch])
    layout = StateLayout(model, params)
    chosen = allocate(np.ones(layout.size), bits * layout.size)
    packed = PackedModel(model, tuple("".join(map(str, chosen[at])) for _, at in layout.parts()))
    return model, params, batch, packed, {**params, "levels": fit(samples, chosen, channels=layout.channels()).levels}


def run(model, params, *arguments, **options):
    return jax.jit(lambda params, *given: model.apply({"params": params}, *given, **options))(params, *arguments)


@pytest.mark.parametrize("form", FORMS)
def test_reading_step_by_step_is_reading_at_once(form):
    model, params, batch, _, _ = made(form)
    outputs, state = run(model, params, batch["inputs"])
    found = jax.jit(lambda params: read(model, params, batch["inputs"], None, lambda vector, _: (vector, None)))(params)
    tolerance = 5e-2 if form == "bfloat16" else 1e-4  # products of bfloat16 are rounded in another order
    np.testing.assert_allclose(found.outputs, outputs, atol=tolerance, rtol=tolerance)
    for one, other in zip(jax.tree.leaves(found.state), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("form", ["complex", "bfloat16", "state gates", "signal", "channels apart"])
def test_the_scan_is_any_split_of_it(form):
    _, _, batch, packed, params = made(form)
    inputs, cut = batch["inputs"], 12  # whole strides
    outputs, end = run(packed, params, inputs)
    if form == "channels apart":  # their scale is that of the first call
        state = packed.apply({"params": params}, len(inputs), method="initial_state")
        model, own, *_ = made(form)
        begun = model.apply(
            {"params": own}, inputs, model.apply({"params": own}, len(inputs), method="initial_state"), method="begin"
        )
        state = state | {"kept": StateLayout(model, own).select_fixed(begun)}
    else:
        state = None
    first, state = run(packed, params, inputs[:, :cut], state)
    rest, last = run(packed, params, inputs[:, cut:], state)
    joined = np.concatenate([first, rest], axis=1) if packed.config.task.kind == "language" else rest
    tolerance = 5e-2 if form == "bfloat16" else 1e-4
    np.testing.assert_allclose(joined, outputs, atol=tolerance, rtol=tolerance)
    np.testing.assert_array_equal(last["packed"], end["packed"])


def test_the_scan_is_its_single_steps():
    _, _, batch, packed, params = made("complex")
    outputs, end = run(packed, params, batch["inputs"])
    state = packed.apply({"params": params}, len(batch["inputs"]), method="initial_state")
    step = jax.jit(lambda token, state: packed.apply({"params": params}, token, state, method="step"))
    for t in range(batch["inputs"].shape[1]):
        one, state = step(batch["inputs"][:, t], state)
        np.testing.assert_allclose(one, outputs[:, t], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(state["packed"], end["packed"])


@pytest.mark.parametrize("form", ["complex", "bfloat16", "signal", "channels apart"])
def test_bytes_are_those_claimed(form):
    _, _, batch, packed, params = made(form)
    _, state = run(packed, params, batch["inputs"])
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state)) == packed_bytes(packed, params) * len(batch["inputs"])
    assert state["packed"].dtype == jnp.uint8


@pytest.mark.parametrize("form", ["complex", "series"])
def test_eight_bits_are_nearly_the_model_and_one_is_not(form):
    model, params, batch, _, _ = made(form)
    truth = run(model, params, batch["inputs"])[0]
    errors = [
        float(jnp.abs(run(made(form, bits)[3], made(form, bits)[4], batch["inputs"])[0] - truth).max())
        for bits in (1, 8)
    ]
    assert errors[1] < 0.1 * errors[0]


def test_what_is_sown_is_what_is_carried():
    model, params, batch, packed, packed_params = made("complex")
    (_, state), sown = run(packed, packed_params, batch["inputs"], mutable=["intermediates"])
    (_, _), truth = run(model, params, batch["inputs"], mutable=["intermediates"])
    for block in ("block_0", "block_1"):
        carried, computed = (found["intermediates"][block]["mixer"] for found in (sown, truth))
        assert carried["gate"][0].shape == computed["gate"][0].shape
        assert carried["state"][0].shape == components(computed["state"][0]).shape
    levels = packed.quantizer(packed_params)
    at = {leaf.name: at for leaf, at in StateLayout(model, params).parts()}["blocks/1/mixer"]
    last = levels.dequantize(levels.unpack(state["packed"]))[:, at]
    h = sown["intermediates"]["block_1"]["mixer"]["state"][0][:, -1]
    np.testing.assert_array_equal(last, h)


def test_stochastic_rounding_hangs_on_the_state_alone_and_survives_a_split():
    _, _, batch, nearest, params = made("diagonal", 2)
    packed = dataclasses.replace(nearest, rounding="stochastic")
    outputs, end = run(packed, params, batch["inputs"])
    first, state = run(packed, params, batch["inputs"][:, :11])
    rest, last = run(packed, params, batch["inputs"][:, 11:], state)
    np.testing.assert_allclose(np.concatenate([first, rest], axis=1), outputs, atol=1e-4)
    np.testing.assert_array_equal(last["packed"], end["packed"])
    assert not np.array_equal(run(nearest, params, batch["inputs"])[1]["packed"], end["packed"])


def test_dither_is_spread_evenly_and_states_that_differ_get_another():
    codes = np.random.default_rng(0).integers(0, 4, (500, 40))
    noise = np.asarray(dither(jnp.asarray(codes)))
    assert (noise >= 0).all() and (noise < 1).all()
    edges = np.histogram(noise, bins=10, range=(0, 1))[0] / noise.size
    np.testing.assert_allclose(edges, 0.1, atol=5 * np.sqrt(0.09 / noise.size))  # five standard errors of a share
    assert abs(np.corrcoef(noise[:, 0], noise[:, 1])[0, 1]) < 5 / np.sqrt(500)
    codes[:, 7] += 1
    assert (np.asarray(dither(jnp.asarray(codes))) != noise).mean() > 0.99


def test_small_updates_survive_stochastic_rounding():
    """h <- h + 0.003 (0.75 - h), a slow leak, in levels 1/4 apart: swallowed by the nearest, kept on average by the
    dither of a state that moves.
    """
    quantizer = Quantizer(jnp.tile(jnp.asarray([0.0, 0.25, 0.5, 0.75])[None], (220, 1)), (2,) * 220)
    moving = jax.random.uniform(jax.random.key(0), (200, 20))

    def leak(rounded):
        h = jnp.zeros((1, 200))
        for other in moving:
            h = rounded(jnp.concatenate([h + 0.003 * (0.75 - h), other[None]], axis=1))[:, :200]
        return float(h.mean())

    assert leak(quantizer.snap) == 0
    assert (
        abs(leak(jax.jit(lambda h: quantizer.snap(h, dither(quantizer.quantize(h))))) - 0.75 * (1 - 0.997**200)) < 0.15
    )


def test_a_reset_forgets_as_the_model_does():
    _, _, batch, packed, params = made("diagonal")
    reset = jnp.zeros(batch["inputs"].shape, bool).at[:, 10].set(True)
    one = run(packed, params, batch["inputs"], reset=reset)[0][:, 10:]
    other = run(packed, params, batch["inputs"].at[:, :10].set(0), reset=reset)[0][:, 10:]
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_training_goes_through_the_levels_and_the_weights():
    _, _, batch, packed, params = made("diagonal", 2)

    def loss(params):
        logits = packed.apply({"params": params}, batch["inputs"])[0]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["targets"][..., None], axis=-1).mean()

    gradient = jax.jit(jax.grad(loss))(params)
    assert all(
        float(jnp.abs(leaf).max()) > 0
        for leaf in jax.tree.leaves({name: gradient[name] for name in ("levels", "block_0", "block_1")}["levels"])
    )
    assert float(jnp.abs(gradient["block_0"]["mixer"]["B"]).max()) > 0
    moved = jax.tree.map(lambda value, slope: value - 0.05 * slope, params, gradient)
    assert loss(moved) < loss(params)


def test_error_weights_are_what_small_errors_cost():
    """A quadratic loss of a linear model has exactly the gradients that the weights are made of: here against finite
    differences.
    """
    model, params, batch, _, _ = made("series")
    weights = error_weights(model, params, [batch])
    layout = StateLayout(model, params)
    steps = -(-batch["inputs"].shape[1] // model.config.stride)

    @jax.jit
    def loss(errors):
        outputs = read(
            model, params, batch["inputs"], None, lambda vector, error: (vector + error, None), errors
        ).outputs
        return ((outputs - batch["targets"]) ** 2).mean(axis=(1, 2))

    zero, component = jnp.zeros((steps, len(batch["inputs"]), layout.size)), 2
    slopes = [
        (loss(zero.at[t, :, component].set(1e-2)) - loss(zero.at[t, :, component].set(-1e-2))) / 2e-2
        for t in range(steps)
    ]
    expected = float(jnp.square(jnp.stack(slopes)).sum() / (2 * len(batch["inputs"])))
    np.testing.assert_allclose(weights[component], expected, rtol=2e-2)


def test_models_with_noise_are_calibrated_too():
    """Their states are drawn while they are read, so they need a key."""
    model, params, batch, _, _ = made("diagonal")
    noisy = SequenceModel(
        dataclasses.replace(model.config, selective=dataclasses.replace(model.config.selective, process_noise=0.3))
    )
    assert np.isfinite(calibration(noisy, params, [batch])).all()
    weights = error_weights(noisy, params, [batch])
    assert np.isfinite(weights).all() and (weights > 0).any()


def test_newer_slots_of_a_window_never_get_less():
    layout = StateLayout(*made("series")[:2])
    values = np.random.default_rng(0).uniform(size=layout.size)
    shaped = layout.newest_most(values)
    assert (shaped >= values).all()
    for leaf, at in layout.parts():
        if len(leaf.shape) == 2:
            assert (np.diff(shaped[at].reshape(leaf.shape[0], -1), axis=0) >= 0).all()
        else:
            np.testing.assert_array_equal(shaped[at], values[at])


def test_a_million_steps_at_constant_memory():
    """The state after any number of steps is the same few bytes, and one compiled loop reads them all."""
    model = SequenceModel(
        Model(pattern=("selective",), d_model=4, d_state=4, mlp_ratio=0.0, task=Task("language", vocab=3))
    )
    tokens = jax.random.randint(jax.random.key(0), (1, 200), 0, 3)
    params = model.init(jax.random.key(1), tokens)["params"]
    batch = {"inputs": tokens, "valid": jnp.ones(tokens.shape, bool)}
    packed = PackedModel(model, ("3333",))
    params = {**params, "levels": fit(calibration(model, params, [batch]), (3,) * 4).levels}

    @jax.jit
    def stream(state):
        def one(carry, _):
            state, token = carry
            logits, state = packed.apply({"params": params}, token, state, method="step")
            return (state, logits.argmax(axis=-1).astype(jnp.int32)), None

        return jax.lax.scan(one, (state, tokens[:, 0]), None, length=1_000_000)[0]

    start = packed.apply({"params": params}, 1, method="initial_state")
    compiled = stream.lower(start).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 100_000
    (state, token) = stream(start)
    assert state["packed"].nbytes == start["packed"].nbytes == 2
    assert 0 <= int(token[0]) < 3


def test_the_configuration_names_the_bits():
    model, _, _, packed, _ = made("diagonal")
    assert packed.config == dataclasses.replace(model.config, memory_bits=packed.bits)


@pytest.mark.parametrize(
    ("kind", "slots"), [("s4d", [1]), ("mamba", [3, 1]), ("tcn", [2, 2]), ("attention", [5, 5]), ("gru", [1])]
)
def test_windows_of_time_are_told_from_states_of_two_axes(kind, slots):
    config = runs.model(
        pattern=(kind,),
        d_model=8,
        d_state=4,
        **runs.HEADS,
        attention__window=5,
        mlp_ratio=0.0,
        task=Task("language", vocab=7),
    )
    model = SequenceModel(config)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    assert [leaf.slots for leaf in StateLayout(model, params).leaves] == slots
