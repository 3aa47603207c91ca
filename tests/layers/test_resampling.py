"""Blocks that read some steps alone: which, by slow references, the laws of the contract, and what the future may
choose.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from selssm_jax.compression import removal
from selssm_jax.compression.compress import check_memory
from selssm_jax.compression.removal_search import check_removal
from selssm_jax.config import Model, ResampleConfig, Task
from selssm_jax.errors import InputError
from selssm_jax.explain import hidden_attention, relevance
from selssm_jax.layers import resampling
from selssm_jax.layers.resampling import Resampler
from selssm_jax.model import SequenceModel
from selssm_jax.observe import Observed, observe
from selssm_jax.streaming import gradients
from selssm_jax.training import objectives, pieces

B, T, D, RATE, SPARE = 2, 19, 6, 3, 2
TOKENS = jax.random.randint(jax.random.key(1), (B, T), 0, 5)
X = jax.random.normal(jax.random.key(2), (B, T, D))
RULES = {
    "static": ResampleConfig("static", RATE, 1, window=3),
    "equal_time": ResampleConfig("equal_time", RATE, 1, spare=SPARE, window=4),
    "boundary": ResampleConfig("boundary", RATE, 1, spare=SPARE),
    "information": ResampleConfig("information", RATE, 1, spare=SPARE, bits=0.6),
    "whole": ResampleConfig("equal_time", RATE, 1, causal=False, window=4),
}
CAUSAL = tuple(rule for rule, options in RULES.items() if options.causal)
EVERY, EVERY_CAUSAL = pytest.mark.parametrize("rule", RULES), pytest.mark.parametrize("rule", CAUSAL)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # of activations of size 20


def configure(options, **changes):
    sizes = {"pattern": ("kalman", "lru", "gru"), "d_model": D, "d_state": 4, "mlp_ratio": 0.0, "norm": "none"}
    return Model(**(sizes | changes), resample=options, task=Task("language", vocab=5, length=T))


@functools.cache
def build(rule, **changes):
    """(the model, its parameters, those of the choice moved from where they start)."""
    model = SequenceModel(configure(RULES[rule], **changes))
    params = jax.jit(model.init)(jax.random.key(0), TOKENS)["params"]
    if "resample" in params:
        moved = lambda leaf: leaf + 0.6 * jax.random.normal(jax.random.key(3), leaf.shape)  # noqa: E731
        params |= {"resample": jax.tree.map(moved, params["resample"])}
    return model, params


@functools.partial(jax.jit, static_argnums=0)
def mix(model, params, x, state=None, reset=None, valid=None):
    """Features and what is carried, of activations."""
    state = model.apply({"params": params}, len(x), method="_unread") if state is None else state
    valid = jnp.ones(x.shape[:2], bool) if valid is None else valid
    return model.apply({"params": params}, x, state, reset, valid, True, method="_mix")


@functools.partial(jax.jit, static_argnums=0)
def read(model, params, tokens, state=None, reset=None):
    return model.apply({"params": params}, tokens, state, reset=reset)


@functools.partial(jax.jit, static_argnums=0)
def observe_blocks(model, params, batch):
    return observe(model, params, batch, rngs={"noise": jax.random.key(0)}).blocks


def show(model, params, tokens, **given):
    return observe_blocks(model, params, {"inputs": tokens, "valid": np.ones(tokens.shape, bool)} | given)["block_1"]


@pytest.mark.parametrize("rule", ["static", "equal_time", "whole", "information", "boundary"])
def test_with_every_step_read_the_outputs_are_those_of_the_plain_blocks_bit_for_bit(rule, monkeypatch):
    options = {
        "static": ResampleConfig("static", 1, 1),
        "equal_time": ResampleConfig("equal_time", 1, 1),
        "whole": ResampleConfig("equal_time", 1, 1, causal=False),
        "information": ResampleConfig("information", 1, 1, bits=1e-3),
        "boundary": ResampleConfig("boundary", 1, 1),
    }[rule]
    if rule == "boundary":  # each step is one for certain
        monkeypatch.setattr(Resampler, "_measure_steps", lambda self, x, *rest: (None, jnp.ones(x.shape[:2])))
    config = configure(options, norm="rms")
    model = SequenceModel(config)
    params = jax.jit(model.init)(jax.random.key(0), TOKENS)["params"]
    if "basis" in params.get("resample", {}):
        params["resample"] = params["resample"] | {"basis": jnp.ones((resampling.BASES, D))}
    assert np.all(show(model, params, TOKENS).keep)
    plain = SequenceModel(configure(ResampleConfig(), norm="rms"))
    rest = {name: part for name, part in params.items() if name != "resample"}
    np.testing.assert_array_equal(read(model, params, TOKENS)[0], read(plain, rest, TOKENS)[0])


def choose_slowly(rule, params, x, nats):
    """(steps that are read, weights of all steps by channel in what each gathers, chances) of one sequence, in a
    loop.
    """
    options, part, count = RULES[rule], params.get("resample", {}), len(x)
    sizes, chance = np.full(count, 1 / RATE), np.ones(count)
    if options.rule == "equal_time":
        sizes = np.log1p(np.exp(x @ np.asarray(part["dt_kernel"], float)[:, 0] + float(part["dt_bias"][0])))
        sizes = np.minimum(sizes, 1) if options.causal else sizes / sizes.sum() * np.ceil(count / RATE)
    if rule == "information":
        sizes = np.minimum(nats / np.log(2) / options.bits, 1)
    if rule == "boundary":
        for step in range(1, count):
            q, k = x[step - 1] @ np.asarray(part["query"], float), x[step] @ np.asarray(part["key"], float)
            chance[step] = (1 - q @ k / np.linalg.norm(q) / np.linalg.norm(k)) / 2
    steps, weights, credit, tau = [], [], RATE * (options.spare_steps + 1), 0.0
    most = credit
    for step in range(count):
        tau, before = (tau + sizes[step], tau) if step else (0.0, -1.0)
        credit = min(credit + 1, most) if step else most
        wanted = chance[step] > 0.5 if rule == "boundary" else np.floor(tau + 1e-9) > np.floor(before + 1e-9)
        if not wanted or credit < RATE:
            continue
        credit -= RATE
        first = max(steps[-1] + 1 if steps else 0, step - options.window + 1)
        apart = np.array([sizes[earlier + 1 : step + 1].sum() for earlier in range(first, step + 1)])
        row = np.zeros((count, D))
        row[step] = 1
        if options.gathers:
            bases = np.exp(-np.square(apart[:-1, None] * resampling.BASES - np.arange(resampling.BASES)) / 2)
            row[first:step] = bases @ np.asarray(part["basis"], float)
        steps.append(step)
        weights.append(row)
    return steps, np.array(weights), chance


@EVERY
def test_steps_are_those_of_a_loop_and_every_step_gets_what_was_made_of_the_last(rule):
    """z of the gathered steps alone by the plain blocks, smoothed where they are boundaries, and held."""
    model, params = build(rule)
    first = SequenceModel(configure(ResampleConfig(), pattern=("kalman",)))
    inner = SequenceModel(configure(ResampleConfig(), pattern=("lru", "gru")))
    entering, _ = mix(first, params, X)
    nats = model.apply({"params": params}, X, None, None, method=lambda m, *args: m.block[0].measure_gains(*args))
    y, _ = mix(model, params, X)
    shown = jax.jit(
        lambda params: model.apply(
            {"params": params}, X, model.apply({"params": params}, B, method="_unread"), None,
            jnp.ones((B, T), bool), True, method="_mix", mutable=["intermediates"],
        )[1]
    )(params)["intermediates"]["block_1"]["mixer"]  # fmt: skip
    parts = {"block_0": params["block_1"], "block_1": params["block_2"], "encoder": params["encoder"]}
    for row in range(B):
        steps, weights, chance = choose_slowly(rule, params, np.asarray(entering[row], float), np.asarray(nats[row]))
        assert 2 < len(steps) < T
        np.testing.assert_array_equal(np.flatnonzero(shown["keep"][0][row]), steps)
        gathered = np.einsum("ktd,td->kd", weights, np.asarray(entering[row], float))
        z = np.asarray(mix(inner, parts, jnp.asarray(gathered, jnp.float32)[None])[0][0], float)
        held, expected = np.zeros((2, D)), []
        for step in range(T):
            if step in steps:
                now = np.stack([z[steps.index(step)], gathered[steps.index(step)]])
                held = chance[step] * now + (1 - chance[step]) * held if rule == "boundary" else now
            expected.append(held[0] + np.asarray(entering[row, step]) - held[1])
        np.testing.assert_allclose(y[row], expected, rtol=1e-4, atol=2e-6 * np.abs(expected).max())


@EVERY_CAUSAL
@pytest.mark.parametrize("cut", [1, 7])
def test_one_call_is_as_many_calls_as_one_likes(rule, cut):
    """In outputs, in all that is carried and in gradients."""
    model, params = build(rule)
    whole, state = read(model, params, TOKENS)
    outputs, carried = [], model.apply({"params": params}, B, method="initial_state")
    for start in range(0, T, cut):
        out, carried = read(model, params, TOKENS[:, start : start + cut], carried)
        outputs.append(out)
    np.testing.assert_allclose(jnp.concatenate(outputs, axis=1), whole, **CLOSE)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, **CLOSE), carried, state)

    def loss(params, places):
        state, total = model.apply({"params": params}, B, method="initial_state"), 0.0
        for start, stop in zip([0, *places], [*places, T], strict=True):
            out, state = model.apply({"params": params}, TOKENS[:, start:stop], state)
            total += jnp.square(out).sum()
        return total

    if cut == 7:
        one, two = (jax.jit(jax.grad(functools.partial(loss, places=places)))(params) for places in ([], [7]))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), one, two)


@EVERY
def test_documents_in_one_row_are_documents_apart(rule):
    """Values and what is carried; nothing of what is not finite before a reset is seen behind it, nor in gradients."""
    model, params = build(rule)
    reset = jnp.zeros((B, T), bool).at[:, 8].set(True).at[0, 12].set(True)
    y, state = mix(model, params, X, reset=reset)
    for row, starts in enumerate([(0, 8, 12, T), (0, 8, T)]):
        for start, stop in itertools.pairwise(starts):
            alone, after = mix(model, params, X[row : row + 1, start:stop])
            np.testing.assert_allclose(y[row, start:stop], alone[0], **CLOSE)
        of_row = jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], state)
        jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, **CLOSE), of_row, after)
    spoiled = X.at[1, :8].set(jnp.nan)
    total = jax.jit(jax.value_and_grad(lambda x: (mix(model, params, x, reset=reset)[0][1, 8:] ** 2).sum()))
    (value, slope), (expected, clean) = total(spoiled), total(X)
    assert value == expected and np.any(clean[1, 8:]) and not np.any(clean[1, :8])
    np.testing.assert_array_equal(slope[1, 8:], clean[1, 8:])


@EVERY
def test_no_output_of_a_causal_rule_depends_on_a_later_input(rule):
    """Neither its value nor, exactly, its gradient; of a whole signal some do."""
    model, params = build(rule)
    slope = jax.jit(jax.jacrev(lambda x: mix(model, params, x)[0][0].sum(axis=-1)))(X[:1])[:, 0]
    later = np.triu(np.ones((T, T), bool), 1)
    assert (np.any(np.where(later, np.abs(slope).sum(axis=-1), 0)) == (not RULES[rule].causal)) and np.any(slope)
    y, _ = mix(model, params, X)
    changed = jnp.stack([mix(model, params, X.at[:, step:].multiply(-3.0))[0] for step in (5, 11)])
    same = [np.array_equal(y[:, :step], other[:, :step]) for step, other in zip((5, 11), changed, strict=True)]
    assert all(same) == RULES[rule].causal


@EVERY
def test_padding_is_not_read_and_rows_do_not_see_one_another(rule):
    model, params = build(rule)
    lengths = (11, T)
    valid = jnp.arange(T + 4)[None] < jnp.asarray(lengths)[:, None]
    padded = jnp.where(valid[..., None], jnp.pad(X, ((0, 0), (0, 4), (0, 0))), 9.0)
    y, _ = mix(model, params, padded, valid=valid)
    for row, length in enumerate(lengths):
        alone, _ = mix(model, params, X[row : row + 1, :length])
        np.testing.assert_allclose(y[row, :length], alone[0], **CLOSE)


def test_there_is_never_more_read_than_there_is_room_for_and_what_is_refused_is_said(monkeypatch):
    """Every step is a boundary: SPARE + 1 are read at once and then every RATE-th, also in calls that go on."""
    monkeypatch.setattr(Resampler, "_measure_steps", lambda self, x, *rest: (None, jnp.ones(x.shape[:2])))
    model = SequenceModel(configure(RULES["boundary"], d_state=2))  # which no other test has: programs are kept
    params = jax.jit(model.init)(jax.random.key(0), TOKENS)["params"]
    shown = show(model, params, TOKENS)
    expected = [0, 1, 2, *range(RATE, T, RATE)]
    assert [np.flatnonzero(row).tolist() for row in shown.keep] == [sorted(set(expected))] * B
    np.testing.assert_array_equal(shown.refused, ~shown.keep)
    assert shown.keep.sum() <= B * RULES["boundary"].capacity(T) < B * T
    reset = np.zeros((B, T), bool)
    reset[:, ::2] = True  # each begins with full credit: no call has too few places
    assert np.all(show(model, params, TOKENS, reset=reset).keep)


@EVERY
def test_what_blocks_show_is_of_all_steps_and_0_at_those_that_they_do_not_read(rule):
    model, params = build(rule)
    shown = show(model, params, TOKENS)
    assert shown.state is None and shown.law is None and shown.gate is None  # "lru" has no gates
    block = observe_blocks(model, params, {"inputs": TOKENS, "valid": np.ones((B, T), bool)})["block_2"]
    assert block.gate.shape == (B, T, 4) and not np.any(block.gate[~block.keep])
    assert np.all(np.asarray(block.gate)[np.asarray(block.keep)] > 0)
    bounds = model.apply({"params": params}, method="bounds")
    assert "nothing contracts" in bounds["block_1"].unknown and "contracts" not in bounds["block_0"].unknown


def test_the_bits_of_a_step_are_those_that_the_kalman_block_sows():
    model, params = build("information")
    block = observe_blocks(model, params, {"inputs": TOKENS, "valid": np.ones((B, T), bool)})
    bits = block["block_0"].gained.sum(axis=-1) / np.log(2)
    np.testing.assert_allclose(block["block_1"].clock, np.minimum(bits / RULES["information"].bits, 1), rtol=1e-5)


def test_the_ratio_loss_is_1_at_its_least_and_of_each_sequence_by_itself():
    """N / (N - 1) ((N - 1) F G + (1 - F)(1 - G)) in a loop, over valid frames; its gradient is that of G alone."""
    rng = np.random.default_rng(0)
    keep, chance = rng.random((3, 8)) < 0.4, rng.random((3, 8))
    frames = np.arange(8)[None] < np.array([8, 5, 3])[:, None]

    def measure(keep, chance, frames):
        keep, chance = jnp.asarray(keep), jnp.asarray(chance)
        shown = {"a": Observed(keep=keep, refused=jnp.zeros_like(keep), chance=chance)}
        return objectives.ratios(shown, jnp.asarray(frames, jnp.float32), 4)["ratio"]

    total = 0.0
    for row in range(3):
        F, G = keep[row, frames[row]].mean(), chance[row, frames[row]].mean()
        total += frames[row].sum() * 4 / 3 * (3 * F * G + (1 - F) * (1 - G))
    np.testing.assert_allclose(measure(keep, chance, frames), [total, frames.sum()], rtol=1e-5)
    apart = sum(measure(keep[row : row + 1], chance[row : row + 1], frames[row : row + 1]) for row in range(3))
    np.testing.assert_allclose(measure(keep, chance, frames), apart, rtol=1e-5)
    quarter = np.arange(8)[None] % 4 == 0
    np.testing.assert_allclose(measure(quarter, np.full((1, 8), 0.25), np.ones((1, 8))), [8, 8], rtol=1e-6)
    half = np.arange(8)[None] % 2 == 0
    slope = jax.grad(lambda chance: measure(half, chance, np.ones((1, 8)))[0])(jnp.full((1, 8), 0.25))
    np.testing.assert_allclose(slope, np.full((1, 8), 4 / 3 * (3 / 2 - 1 / 2)), rtol=1e-5)


def test_a_boundary_has_the_gradient_of_its_confidence_and_the_value_of_none():
    """By the definition: c + stop(1 - c) times what is held, c = p where read and 1 - p where not."""
    model, params = build("boundary")
    key = jax.random.key(5)
    x, z, g = (jax.random.normal(jax.random.fold_in(key, number), (1, 6, D)) for number in range(3))
    keep = jnp.array([[True, False, True, False, False, True]])
    begin = jnp.arange(6)[None] == 0
    start = {"held": jnp.zeros((1, D)), "gathered": jnp.zeros((1, D))}

    def ours(chance):
        choice = resampling.Choice(keep, begin, ~keep, chance, jnp.zeros((1, 6), int), {})
        slots = resampling._place(choice, 4)
        call = lambda m: m.resample._carry_back(x, z[:, :4], g[:, :4], start, choice, slots)[0]  # noqa: E731
        return model.apply({"params": params}, method=call)

    def slowly(chance):
        held, outputs, place = jnp.zeros((2, D)), [], 0
        for step in range(6):
            p = chance[0, step]
            if keep[0, step]:
                now = jnp.stack([z[0, place], g[0, place]])
                held, place = (p * now + (1 - p) * held if step else now * p), place + 1
            c = p if keep[0, step] else 1 - p
            held_now = held * (c + jax.lax.stop_gradient(1 - c))
            outputs.append(held_now[0] + x[0, step] - held_now[1])
        return jnp.stack(outputs)[None]

    chance = jnp.array([[1.0, 0.3, 0.7, 0.4, 0.1, 0.9]])
    np.testing.assert_allclose(ours(chance), slowly(chance), rtol=1e-5, atol=1e-6)
    one, two = (jax.grad(lambda p, f=f: (f(p) ** 2).sum())(chance) for f in (ours, slowly))
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


def test_a_removed_block_leaves_the_others_where_they_were():
    model, params = build("boundary")
    first, _ = removal.remove(model.config, params, ["block_0"])
    assert first.resample.span(2) == (0, 2)
    second, left = removal.remove(model.config, params, ["block_2"])
    assert second.resample.span(2) == (1, 2) and "resample" in left
    third, nothing = removal.remove(model.config, params, ["block_1", "block_2"])
    assert third.resample == ResampleConfig() and "resample" not in nothing


def test_relevances_add_up_to_the_number_that_is_explained_where_some_steps_are_read_alone():
    """Of linear parts without biases; and what has no meaning for such blocks is refused by name."""
    plain = {"pattern": ("lru", "lru", "lru")}
    for rule in ("static", "equal_time", "boundary"):
        model, params = build(rule, **plain)
        output = lambda outputs: outputs[0, -2, 1]  # noqa: E731
        R = relevance(model, params, TOKENS, output)
        number = output(read(model, params, TOKENS)[0])
        np.testing.assert_allclose(R.sum(), number, rtol=1e-3)
        assert np.any(R[0]) and not np.any(R[1])
    with pytest.raises(ValueError, match=r"block=1 reads some steps alone, found model\.resample\.rule='boundary'"):
        hidden_attention(model, params, TOKENS, block=1)
    small = runs.experiment()
    options = dataclasses.replace(small.compress, remove="blocks")
    with pytest.raises(InputError, match=r"compress\.remove='blocks' weighs .*found model\.resample\.rule='boundary'"):
        check_removal(options, model.config)
    with pytest.raises(ValueError, match="whose traces are not kept: use TruncatedGradient"):
        gradients.list_components(model, params)


def test_a_sequence_is_read_whole_in_training():
    config = configure(RULES["static"])
    assert "model.resample.rule='static'" in pieces.why_whole(config, T)
    assert pieces.choose(config, B, T, 4) == T


def test_what_is_chosen_of_a_whole_signal_is_no_memory_to_compress():
    config = configure(RULES["whole"])
    with pytest.raises(InputError, match=r"model\.resample\.causal=False reads a signal in one piece, .*causal=True"):
        check_memory(runs.experiment(), SequenceModel(config), build("whole")[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first": 3}, r"first=3 and last=0 are no part of the 3 blocks .*first < last <= 3"),
        ({"last": 4}, r"last=4 are no part of the 3 blocks"),
        ({"rule": "information"}, r"'information' reads the bits .*found no block before block 0"),
        ({"rule": "information", "first": 2}, r"found 'lru' before block 2: use model\.pattern with 'kalman'"),
        ({"causal": False}, r"causal=False is read by model\.resample\.rule='equal_time' alone, found 'static'"),
        ({"rule": "boundary", "window": 3}, r"window=3 is .*rule='static' or 'equal_time' alone, found 'boundary'"),
        ({"spare": 3}, r"spare=3 is read by .*'information' alone, found 'static': use spare=8"),
        ({"bits": 2.0}, r"bits=2\.0 is read by model\.resample\.rule='information' alone"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(changes, message):
    with pytest.raises(InputError, match=message):
        configure(ResampleConfig(**({"rule": "static"} | changes)))


@pytest.mark.parametrize(("kind", "key", "value"), [("selective", "process_noise", 0.1), ("kalman", "sampled", True)])
def test_noise_that_would_be_drawn_twice_is_refused(kind, key, value):
    options = ResampleConfig("static")
    with pytest.raises(InputError, match=rf"model\.{kind}\.{key}={value} draws noise.*or model\.resample\.rule='none'"):
        runs.model(pattern=(kind,), resample=options, **{f"{kind}__{key}": value})
