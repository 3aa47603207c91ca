"""One step: the same on any number of devices and micro-batches; what is drawn at random hangs on seed and step
alone.
"""

import dataclasses
import functools
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

import runs
from runs import TASKS, ragged
from selssm_jax.config import Experiment, Optimizer, Training
from selssm_jax.model import SequenceModel
from selssm_jax.shapes import Batch
from selssm_jax.tasks.scores import means
from selssm_jax.training import optimizer, parallel, step


@functools.cache
def begin(network: SequenceModel, experiment: Experiment) -> step.TrainState:
    """A first state on the host: compiled once for all tests that start from it."""
    return jax.device_get(step.initial(experiment, network, optimizer.build(experiment), ragged(network.config.task)))


def build(experiment: Experiment, kind: str, *, count: int = 1, **model: Any) -> tuple[Any, step.TrainState, Batch]:
    """Returns a step over `count` devices, a state for it and a batch."""
    network = SequenceModel(runs.model(experiment.model, task=TASKS[kind], **model))
    devices = parallel.choose_devices(count, 8)
    take = parallel.data_parallel(
        partial(step.train_step, model=network, optimizer=optimizer.build(experiment), experiment=experiment), devices
    )
    plain = Training(target_dimension=experiment.training.target_dimension)  # all else of it changes no first state
    first = begin(network, dataclasses.replace(experiment, optimizer=Optimizer(warmup_steps=0), training=plain))
    return take, jax.device_put(first, parallel.layout(devices)), ragged(TASKS[kind])


def after(
    take: Any, state: step.TrainState, batch: Batch, steps: int = 3
) -> tuple[step.TrainState, list[dict[str, float]]]:
    seen = []
    for _ in range(steps):
        state, sums = take(state, batch)
        seen.append(means(jax.device_get(sums)))
    return jax.device_get(state), seen


def assert_same(one: Any, other: Any) -> None:
    (state, seen), (others, others_seen) = one, other
    for metrics, others_metrics in zip(seen, others_seen, strict=True):
        assert metrics == pytest.approx(others_metrics, rel=1e-5, abs=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5), state.params, others.params)


DIMENSIONS = ("dim_eff", "compression_factor")
NOISY = {"training__information_weight": 0.1, "model__selective__process_noise": 0.3}
CASES = [
    ("language", {}, ((1, 4), (2, 2), (4, 1))),
    ("classification", {"frame": 4, "stride": 2}, ((2, 2),)),
    ("forecasting", {"channel_independent": True}, ((2, 2),)),
]


@pytest.mark.parametrize(("kind", "model", "ways"), CASES)
def test_micro_batches_and_devices_change_nothing(kind, model, ways):
    penalised = {"training__gate_l1": 0.3}
    whole = after(*build(runs.experiment(**penalised), kind, **model))
    for count, parts in ways:
        assert_same(
            whole, after(*build(runs.experiment(**penalised, optimizer__accumulate=parts), kind, count=count, **model))
        )


DRAWING = {
    "dropout": 0.1,
    "selective__process_noise": 0.3,
    "selective__observation_noise": 0.2,
    "selective__gate": "hard_concrete",
}


@pytest.mark.parametrize(
    ("kind", "model", "ways"),
    [
        ("language", DRAWING, ((2, 2),)),
        pytest.param("language", DRAWING, ((1, 4), (2, 1), (4, 1)), marks=pytest.mark.exhaustive),
        pytest.param(
            "classification",
            {**DRAWING, "frame": 4, "stride": 2, "bidirectional": True, "remat": True},
            ((2, 2),),
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            "language",
            {**DRAWING, "selective__transition": "complex", "selective__gate": "sigmoid"},
            ((2, 2), (4, 1)),
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            "forecasting", {**DRAWING, "channel_independent": True}, ((2, 2), (4, 1)), marks=pytest.mark.exhaustive
        ),
    ],
)
def test_what_is_drawn_hangs_on_the_row_and_not_on_where_it_is_read(kind, model, ways):
    """Dropout, noise and gates that are drawn: losses, gradients and parameters of three steps."""
    whole = after(*build(runs.experiment(), kind, **model))
    for count, parts in ways:
        assert_same(whole, after(*build(runs.experiment(optimizer__accumulate=parts), kind, count=count, **model)))


@pytest.mark.parametrize(("count", "parts"), [(2, 1), (1, 4)])
def test_the_share_of_solves_that_gave_way_counts_sequences_and_not_shares(count, parts):
    """Two of eight sequences are beyond Newton: by shares it was 1 for the whole batch, a half for two devices, and a
    quarter for four micro-batches.
    """
    experiment = runs.experiment(optimizer__accumulate=parts)
    solved = jax.numpy.arange(8) >= 2

    class Reader:
        config = dataclasses.replace(experiment.model, task=TASKS["language"])

        def apply(self, variables, inputs, **_):
            logits = jax.numpy.broadcast_to(variables["params"]["bias"], (*inputs.shape, 5))
            return (logits, None), {"diagnostics": {"block_0": {"mixer": {"fell_back": (~solved[inputs[:, 0]],)}}}}

    tx = optimizer.build(experiment)
    params = {"bias": jax.numpy.zeros(5)}
    key = jax.random.key_data(jax.random.key(0))
    state = step.TrainState(jax.numpy.int32(0), params, tx.init(params), key)
    batch = ragged(TASKS["language"])
    batch["inputs"][:, 0] = np.arange(8)
    devices = parallel.choose_devices(count, 8)
    take = parallel.data_parallel(
        partial(step.train_step, model=Reader(), optimizer=tx, experiment=experiment), devices
    )
    _, sums = take(jax.device_put(state, parallel.layout(devices)), batch)
    assert means(jax.device_get(sums))["fell_back"] == 0.25


def test_rows_and_steps_draw_apart():
    """Equal rows, of which dropout makes unequal ones, at every step anew."""
    take, state, batch = build(runs.experiment(optimizer__peak_rate=1e-12), "language", dropout=0.5)
    equal = {name: np.repeat(rows[:1], 8, axis=0) for name, rows in batch.items()}
    lone = equal | {"weights": equal["weights"] * (np.arange(8) == 0)[:, None]}
    fresh = jax.tree.map(jax.numpy.copy, state)
    _, (together, later) = after(take, state, equal, steps=2)
    _, (first,) = after(take, fresh, lone, steps=1)
    assert abs(together["nats"] - first["nats"]) > 1e-3 and abs(together["nats"] - later["nats"]) > 1e-4


def test_a_target_and_a_rate_are_the_same_on_every_number_of_devices():
    options = runs.experiment(**NOISY, training__target_dimension=0.1, training__penalty_warmup=5)
    whole, shared = (after(*build(options, "language", count=count, selective__process_noise=0.3)) for count in (1, 2))
    assert_same(whole, shared)
    assert whole[0].multiplier == pytest.approx(shared[0].multiplier, rel=1e-5) and whole[0].multiplier > 0
    assert whole[1][0]["rate"] > 0


def test_hubers_loss_and_the_absolute_error_bound_what_one_value_can_do():
    """A value far off moves mse's parameters more the farther it is, and those of the others no more."""

    def moved(loss: str, far: float) -> np.ndarray:
        take, state, batch = build(
            runs.experiment(data__source="etth1", training__forecast_loss=loss, optimizer__clip_norm=1e9), "forecasting"
        )
        batch["targets"][0, 0, 0] = far
        _, sums = take(state, batch)
        return jax.device_get(sums)["gradient_norm"][0]

    for loss in ("huber", "mae"):
        assert moved(loss, 1e4) == pytest.approx(moved(loss, 1e6), rel=1e-3)
    assert moved("mse", 1e6) == pytest.approx(100 * moved("mse", 1e4), rel=0.02)


def test_the_multiplier_ascends_with_the_violation_and_never_below_zero():
    options = runs.experiment(training__target_dimension=0.1, training__multiplier_rate=0.5, training__penalty_warmup=4)
    _, seen = after(*build(options, "language"), steps=6)
    expected = 0.0
    for number, metrics in enumerate(seen):
        assert metrics["multiplier"] == pytest.approx(expected, rel=1e-4)
        expected = max(0.0, expected + min(1, (number + 1) / 4) * 0.5 * (metrics["gate_l1"] / 0.1 - 1))
        assert metrics["dim_eff"] == pytest.approx(8 * metrics["gate_l1"], rel=1e-5)
        assert metrics["compression_factor"] == pytest.approx(1 / metrics["gate_l1"], rel=1e-5)
    assert expected > 0
    slack = after(*build(runs.experiment(training__target_dimension=0.9), "language"), steps=2)
    assert slack[0].multiplier == 0


def test_gates_come_under_their_target():
    options = runs.experiment(
        training__target_dimension=0.08, training__multiplier_rate=0.05, training__steps=400, optimizer__peak_rate=0.02
    )
    _, seen = after(*build(options, "language"), steps=200)
    assert seen[0]["gate_l1"] > 0.15
    assert np.mean([metrics["gate_l1"] for metrics in seen[-50:]]) < 0.08


def test_a_warm_up_lets_every_penalty_grow_from_nothing():
    options = runs.experiment(
        training__gate_l1=4.0,
        training__information_weight=2.0,
        model__selective__process_noise=0.3,
        training__penalty_warmup=4,
    )
    states = [step.TrainState(jax.numpy.int32(number), {}, (), jax.numpy.zeros(2)) for number in (0, 1, 3, 9)]
    terms = [step._terms(options, "nats", state) for state in states]
    assert [float(term["gate_l1"]) for term in terms] == [1, 2, 4, 4]
    assert [float(term["rate"]) for term in terms] == [0.5, 1, 2, 2]
    assert all(term["nats"] == 1 for term in terms)
    constrained = step.ConstrainedState(jax.numpy.int32(0), {}, (), jax.numpy.zeros(2), multiplier=jax.numpy.float32(8))
    options = runs.experiment(training__target_dimension=0.1, training__penalty_warmup=4)
    assert float(step._terms(options, "nats", constrained)["gate_l1"]) == 2


def test_a_rate_is_paid_with_nats_of_memory():
    held = {}
    for rate in (1e-6, 0.3):
        options = runs.experiment(training__information_weight=rate, model__selective__process_noise=0.3)
        _, seen = after(*build(options, "language", selective__process_noise=0.3), steps=40)
        held[rate] = seen[-1]["rate"]
        assert seen[-1]["nats"] < seen[0]["nats"]
    assert held[0.3] < 0.7 * held[1e-6]


def test_the_loss_and_its_penalty_fall():
    state, seen = after(*build(runs.experiment(training__gate_l1=3.0), "language"), steps=40)
    assert seen[-1]["nats"] < 0.9 * seen[0]["nats"]
    assert seen[-1]["gate_l1"] < 0.8 * seen[0]["gate_l1"]
    assert state.step == 40


@pytest.mark.parametrize(
    ("options", "model", "names"),
    [
        ({}, {}, set()),
        ({"training__gate_l1": 0.1}, {}, {"gate_l1", *DIMENSIONS}),
        ({"training__target_dimension": 0.1}, {}, {"gate_l1", "multiplier", *DIMENSIONS}),
        ({}, {"selective__gate_state": "elementwise"}, {"fell_back"}),
        (
            {"training__gate_l0": 0.1, "model__selective__gate": "hard_concrete"},
            {"selective__gate": "hard_concrete", "remat": True},
            {"gate_l1", "gate_l0", *DIMENSIONS},
        ),
        (NOISY, {"selective__process_noise": 0.3, "remat": True}, {"gate_l1", "rate", *DIMENSIONS}),
    ],
)
def test_gates_and_laws_are_kept_only_for_a_penalty(monkeypatch, options, model, names):
    experiment, asked = runs.experiment(**options), []
    network = SequenceModel(runs.model(experiment.model, task=TASKS["language"], **model))
    tx, batch = optimizer.build(experiment), ragged(TASKS["language"])
    state = jax.eval_shape(partial(step.initial, experiment, network, tx), batch)
    apply = SequenceModel.apply
    monkeypatch.setattr(
        SequenceModel,
        "apply",
        lambda self, *args, **kwargs: asked.append(kwargs.get("mutable")) or apply(self, *args, **kwargs),
    )
    _, sums = jax.eval_shape(partial(step.train_step, model=network, optimizer=tx, experiment=experiment), state, batch)
    assert asked == [["diagnostics"] + ["intermediates"] * ("dim_eff" in names) + ["laws"] * ("rate" in names)]
    assert set(sums) == {"nats", "accuracy", "gradient_norm"} | names


def test_a_packed_batch_trains_as_its_documents_apart():
    take, state, batch = build(runs.experiment(), "language")
    halves = {name: value.reshape(16, 6) for name, value in batch.items()}
    packed = batch | {"reset": np.broadcast_to(np.arange(12) % 6 == 0, (8, 12))}
    one, other = (after(take, jax.tree.map(jax.numpy.copy, state), rows, 1) for rows in (halves, packed))
    assert_same(one, other)


@pytest.mark.parametrize("count", [1, 2])
def test_what_is_drawn_hangs_on_seed_and_step_alone(count):
    take, state, batch = build(runs.experiment(), "language", count=count, dropout=0.3, selective__process_noise=0.1)
    layout = state.step.sharding
    begun = jax.device_get(state)
    losses = [
        after(take, jax.device_put(begun.replace(step=number), layout), batch, 1)[1][0]["nats"]
        for number in (np.int32(0), np.int32(0), np.int32(5))
    ]
    assert losses[0] == losses[1] != losses[2]
    reseeded = jax.device_put(begun.replace(rng=begun.rng + np.uint32(1)), layout)
    assert after(take, reseeded, batch, 1)[1][0]["nats"] != losses[0]
