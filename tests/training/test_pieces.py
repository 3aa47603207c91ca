"""Sequences in pieces: the loss, the gradients and the metrics of the whole, by every mixer that can be cut."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import runs
from selssm_jax.compression import quantization
from selssm_jax.compression.streaming import PackedModel, calibration
from selssm_jax.config import Data, Experiment, Training
from selssm_jax.config.mixers import MIXERS
from selssm_jax.errors import InputError
from selssm_jax.model import SequenceModel
from selssm_jax.state_layout import StateLayout
from selssm_jax.training import capacity, draws, evaluation, optimizer, parallel, pieces
from selssm_jax.training.step import _keys, initial, train_step

B, T, PIECE = 4, 22, 6  # three pieces and a rest
SIZES = {"d_model": 8, "d_state": 4, "conv": 3} | runs.HEADS | {"attention__window": 7, "local_attention__window": 3}
KINDS = sorted(MIXERS, key=lambda kind: kind != "selective")  # the first is that of every run
TASKS = {name: dataclasses.replace(task, length=T) for name, task in runs.TASKS.items()}
TASKS |= {"cycle": dataclasses.replace(TASKS["forecasting"], period=3)}


def build(name, pattern, *, piece, training=None, optimizer_keys=None, **changes):
    """(experiment, model, a batch) of a task, packed where it is a language."""
    base = Experiment(data=Data(batch_size=B), model=runs.model(pattern=pattern, **SIZES | changes))
    experiment = dataclasses.replace(
        base,
        training=Training(piece=piece, **training or {}),
        optimizer=dataclasses.replace(base.optimizer, **optimizer_keys or {}),
    )
    task = TASKS[name]
    batch = runs.ragged(task, B)
    if name == "language":
        batch |= {"reset": np.random.default_rng(1).random((B, T)) < 0.2}
    return experiment, SequenceModel(experiment.model.of_task(task)), jax.tree.map(jnp.asarray, batch)


def take(name, pattern, *, piece, **keys):
    """(parameters after a step of plain gradient descent, the metrics' sums)."""
    experiment, model, batch = build(name, pattern, piece=piece, **keys)
    tx = optax.sgd(1.0)
    state = initial(experiment, model, tx, batch)
    after, sums = jax.jit(lambda state: train_step(state, batch, model=model, optimizer=tx, experiment=experiment))(
        state
    )
    return jax.tree.map(lambda new, old: np.asarray(new - old), after.params, state.params), jax.device_get(sums)


def compare(one, other, rtol=1e-5):
    """Gradients by their norms, a leaf each, and all sums."""
    for (path, left), right in zip(jax.tree_util.tree_leaves_with_path(one[0]), jax.tree.leaves(other[0]), strict=True):
        scale = max(np.linalg.norm(left), 1e-4)
        assert np.linalg.norm(left - right) <= 5 * rtol * scale, (jax.tree_util.keystr(path), left, right)
    assert one[1].keys() == other[1].keys()
    for metric in set(one[1]) - {"fell_back"}:  # whose count is of pieces
        np.testing.assert_allclose(one[1][metric], other[1][metric], rtol=5 * rtol, err_msg=metric)


@pytest.mark.always
@pytest.mark.parametrize("kind", KINDS)
def test_packed_documents_have_the_gradients_of_the_whole(kind):
    compare(*(take("language", (kind,), piece=piece) for piece in (0, PIECE)))


@pytest.mark.always
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("language", {"training": {"gate_l1": 0.1}, "optimizer_keys": {"accumulate": 2}}),
        ("language", {"selective__gate_state": "dense", "selective__solver": "newton"}),
        ("classification", {"pool": "mean", "frame": 4, "stride": 2, "training": {"target_dimension": 0.3}}),
        ("classification", {"pool": "last"}),
        ("forecasting", {"linear_skip": 9, "head_context": 8}),
        ("forecasting", {"channel_independent": True, "frame": 2, "stride": 2}),
        (
            "cycle",
            {"channel_independent": True, "channel_embedding": True, "channel_mixing": True, "frame": 2, "stride": 2},
        ),
    ],
    ids=str,
)
def test_tasks_and_penalties_are_those_of_the_whole(name, changes):
    compare(*(take(name, ("selective", "s4d"), piece=piece, **changes) for piece in (0, PIECE)))


def test_a_pattern_with_windows_is_that_of_the_whole():
    compare(*(take("language", ("local_attention", "tcn", "mamba2"), piece=piece) for piece in (0, 5)))


@pytest.mark.parametrize("name", TASKS)
def test_evaluation_in_pieces_goes_on_from_a_state_and_leaves_it(name):
    results = []
    for piece in (0, PIECE):
        experiment, model, batch = build(name, ("selective", "lstm"), piece=piece)
        params = initial(experiment, model, optax.sgd(1.0), batch).params
        state = model.apply({"params": params}, B, method="initial_state")
        once = jax.jit(
            lambda params, state, model=model, piece=piece, batch=batch: evaluation._evaluate_batch(
                model, piece, params, batch, state, jnp.int32(0)
            )
        )
        first, state = once(params, state)
        results.append((first, *once(params, state)))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5), *results)


@pytest.mark.parametrize("random", [{}, {"dropout": 0.5, "selective__gate": "hard_concrete"}], ids=["plain", "random"])
def test_devices_and_seeds_share_a_step_in_pieces(random):
    """What is drawn for a row and a piece is the same wherever the row is read."""
    experiment, model, batch = build("language", ("selective",), piece=PIECE, **random)
    tx = optax.sgd(1.0)
    state = initial(experiment, model, tx, batch)
    step = functools.partial(train_step, model=model, optimizer=tx, experiment=experiment)
    one = jax.jit(step)(state, batch)
    changes = lambda after: jax.tree.map(lambda new, old: np.asarray(new) - np.asarray(old), after.params, state.params)  # noqa: E731
    together = jax.jit(jax.vmap(step))(*jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), (state, batch)))
    compare((changes(one[0]), one[1]), jax.tree.map(lambda leaf: leaf[1], (changes(together[0]), together[1])))
    two = parallel.data_parallel(step, jax.devices()[:2])(jax.tree.map(jnp.copy, state), batch)
    compare((changes(one[0]), one[1]), (changes(two[0]), two[1]))
    accumulated = dataclasses.replace(experiment, optimizer=dataclasses.replace(experiment.optimizer, accumulate=2))
    step = functools.partial(train_step, model=model, optimizer=tx, experiment=accumulated)
    four = parallel.data_parallel(step, jax.devices()[:2])(jax.tree.map(jnp.copy, state), batch)
    compare((changes(one[0]), one[1]), (changes(four[0]), four[1]))


@pytest.mark.always
@pytest.mark.parametrize("changes", [{"dropout": 0.5}, {"selective__process_noise": 0.3}], ids=str)
def test_what_is_random_is_drawn_by_the_number_of_the_piece(changes):
    """The loss and gradient are those of pieces that are read one after another, each with the step's key folded."""
    experiment, model, batch = build("language", ("selective", "gru"), piece=PIECE, **changes)
    state = initial(experiment, model, optax.sgd(1.0), batch)
    key = draws.by_row(jax.random.fold_in(jax.random.wrap_key_data(state.rng), 0), 0)

    def loss(params):
        carried, total = model.apply({"params": params}, B, method="initial_state"), 0.0
        for number, start in enumerate(range(0, T, PIECE)):
            part = {name: leaf[:, start : start + PIECE] for name, leaf in batch.items()}
            logits, carried = model.apply(
                {"params": params},
                part["inputs"],
                carried,
                reset=part["reset"],
                valid=part["valid"],
                deterministic=False,
                rngs=_keys(jax.random.fold_in(key, number)),
            )
            total += model.kind.score(logits, part)["nats"][0]
        return total / batch["weights"].sum()

    value, slopes = jax.jit(jax.value_and_grad(loss))(state.params)
    step, sums = take("language", ("selective", "gru"), piece=PIECE, **changes)
    np.testing.assert_allclose(sums["nats"][0] / sums["nats"][1], value, rtol=1e-5)
    compare((step, {}), (jax.tree.map(lambda leaf: np.asarray(-leaf), slopes), {}), rtol=1e-4)


@pytest.mark.always
@pytest.mark.parametrize(
    ("name", "rounding"), [("language", "stochastic"), ("classification", "nearest"), ("forecasting", "nearest")]
)
def test_a_packed_memory_is_read_and_trained_in_pieces(name, rounding):
    """Bits are those of the whole, and gradients go from piece to piece, through levels and weights."""
    experiment, model, batch = build(name, ("selective", "lstm"), piece=PIECE)
    params = initial(experiment, model, optax.sgd(1.0), batch).params
    layout = StateLayout(model, params)
    digits = tuple("3" * (at.stop - at.start) for _, at in layout.parts())
    packed = PackedModel(model, digits, rounding=rounding)
    levels = quantization.fit(calibration(model, params, [batch]), packed.component_bits).levels
    params = {**params, "levels": levels}

    @functools.partial(jax.jit, static_argnums=0)
    def slopes(piece, params):
        def loss(params):
            read = pieces.make_reader(packed, params, jax.random.key(0))
            after, sums = pieces.fold(read, model.kind.score, packed, params, batch, piece)
            return sums[model.kind.loss][0], (sums, packed._unpack(params, after))

        return jax.grad(loss, has_aux=True)(params)

    (cut, (sums, state)), (whole, (expected, end)) = (slopes(piece, params) for piece in (PIECE, 0))
    compare((jax.tree.map(np.asarray, cut), sums), (jax.tree.map(np.asarray, whole), expected))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5), state, end)
    assert np.abs(cut["levels"]).max() > 0


def test_a_forecast_whose_scale_begins_anew_is_read_whole():
    config = runs.model(pattern=("selective",)).of_task(TASKS["forecasting"])
    batch = {"valid": np.ones((B, T), bool), "reset": np.zeros((B, T), bool)}
    assert pieces.choose_for_batch(config, batch, PIECE) == T
    assert pieces.choose_for_batch(dataclasses.replace(config, normalize=False), batch, PIECE) == PIECE


def test_what_fits_is_told_by_a_piece():
    long = dataclasses.replace(TASKS["language"], length=2**31)
    experiment = Experiment(model=runs.model(pattern=("selective",), d_model=64), data=Data(batch_size=1))
    capacity.check(experiment, long)
    with pytest.raises(InputError, match="memory"):
        capacity.check(dataclasses.replace(experiment, training=Training(piece=0)), long)


@pytest.mark.parametrize(
    ("changes", "metric"),
    [
        ({"dropout": 0.5}, "nats"),
        ({"selective__gate": "hard_concrete", "training": {"gate_l0": 0.1}}, "gate_l0"),
    ],
    ids=str,
)
def test_what_is_random_is_drawn_anew_for_each_piece(changes, metric):
    whole, cut = (take("language", ("selective", "s4d"), piece=piece, **changes) for piece in (0, PIECE))
    assert np.isfinite(cut[1][metric]).all()
    with pytest.raises(AssertionError):
        compare(whole, cut)


@pytest.mark.always
def test_memory_is_that_of_a_piece():
    def temporaries(piece, pieces_of_it):
        experiment, model, batch = build("language", ("selective",) * 2, piece=piece, d_model=32, d_state=32)
        batch = {name: np.tile(values, (1, pieces_of_it)) for name, values in batch.items()}
        tx = optimizer.build(experiment)
        state = initial(experiment, model, tx, batch)
        step = jax.jit(lambda state, batch: train_step(state, batch, model=model, optimizer=tx, experiment=experiment))
        return step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes

    whole, cut, longer = temporaries(0, 32), temporaries(T, 32), temporaries(T, 128)
    assert cut < 0.2 * whole and longer < 2 * cut


def test_the_default_cuts_what_would_hold_a_gigabyte():
    config = runs.model(pattern=("selective",) * 4, d_model=128).of_task(TASKS["language"])
    assert pieces.choose(config, 1, 4096, -1) == 4096 and pieces.choose(config, 64, 1024, -1) == 1024
    piece = pieces.choose(config, 1, 65_536, -1)
    assert 512 <= piece <= 1024 and 65_536 % piece == 0
    assert pieces.choose(config, 1, 65_537, -1) == 512  # a prime: with a rest
    framed = dataclasses.replace(config, frame=25, stride=10)
    framed = framed.of_task(dataclasses.replace(TASKS["classification"], length=0))
    assert pieces.choose(framed, 64, 80_000, -1) % 10 == 0
    assert pieces.choose(dataclasses.replace(config, pattern=("attention",)), 64, 65_536, -1) == 1024 // 2
    whole = runs.model(pattern=("attention",), attention=dict(heads=2, window=65_536), d_model=128)
    assert pieces.choose(whole.of_task(TASKS["language"]), 64, 65_536, -1) == 65_536


@pytest.mark.parametrize(
    ("name", "pattern", "changes", "said"),
    [
        ("language", ("attention",), {"attention__window": 64}, "the mixer 'attention' looks back on all"),
        ("classification", ("lru",), {"bidirectional": True}, "model.bidirectional=True"),
        ("classification", ("lru",), {"frame": 5, "stride": 4}, "no multiple of model.stride=4.*example 8"),
    ],
)
def test_what_cannot_be_cut_is_refused_by_name(name, pattern, changes, said):
    data = Data(source="fsdd" if name == "classification" else "selective_copying", batch_size=B)
    experiment = Experiment(
        data=data, model=runs.model(pattern=pattern, **SIZES | changes), training=Training(piece=PIECE)
    )
    with pytest.raises(InputError, match=f"training.piece={PIECE}.*{said}"):
        pieces.check(experiment, TASKS[name])
    pieces.check(dataclasses.replace(experiment, training=Training(piece=-1)), TASKS[name])


def test_pieces_and_a_price_of_information_are_refused_together():
    with pytest.raises(InputError, match=r"training.piece=6 .*information_weight=0.1"):
        Training(piece=6, information_weight=0.1)
