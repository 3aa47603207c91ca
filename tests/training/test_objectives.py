"""Losses against NumPy; sums that merge; penalties over valid steps only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.information import bracket, variational
from selssm_jax.layers.contract import Law
from selssm_jax.observe import Observed
from selssm_jax.tasks import TASKS
from selssm_jax.tasks.forecasting import huber
from selssm_jax.tasks.scores import Sums, is_better, means
from selssm_jax.training import objectives

RNG = np.random.default_rng(0)


def batch_of(kind: str, rows: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Outputs and a batch with some weights at zero and one at a half."""
    shape = {"language": (rows, 5), "classification": (rows,), "forecasting": (rows,)}[kind]
    weights = RNG.integers(0, 2, shape).astype(np.float32)
    weights[0] = 0.5
    if kind == "forecasting":
        targets, inputs = RNG.standard_normal((rows, 4, 3), np.float32), RNG.standard_normal((rows, 6, 3), np.float32)
        targets[1, :, 0] = inputs[1, -1, 0]  # a channel that stands still
        return RNG.standard_normal((rows, 4, 3), np.float32), {"targets": targets, "inputs": inputs, "weights": weights}
    return 3 * RNG.standard_normal((*shape, 7), np.float32), {
        "targets": RNG.integers(0, 7, shape).astype(np.int32),
        "weights": weights,
    }


def score(kind: str, outputs: np.ndarray, batch: dict[str, np.ndarray]) -> Sums:
    return TASKS[kind].score(jnp.asarray(outputs), {name: jnp.asarray(value) for name, value in batch.items()})


@pytest.mark.parametrize("kind", ["language", "classification"])
def test_categorical_scores_are_the_weighted_means_of_each_target(kind):
    logits, batch = batch_of(kind, 8)
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(-1, keepdims=True)
    nats = -np.log(np.take_along_axis(p, batch["targets"][..., None], -1)[..., 0])
    right = logits.argmax(-1) == batch["targets"]
    found = means(score(kind, logits, batch))
    weights = batch["weights"].astype(np.float64)
    assert found["nats"] == pytest.approx((nats * weights).sum() / weights.sum(), rel=1e-5)
    assert found["accuracy"] == pytest.approx((right * weights).sum() / weights.sum(), rel=1e-5)


def test_regression_scores_are_means_over_horizon_and_channels_of_weighted_rows():
    outputs, batch = batch_of("forecasting", 6)
    error = (outputs - batch["targets"]).astype(np.float64)
    found = means(score("forecasting", outputs, batch))
    assert found["mse"] == pytest.approx(np.average((error**2).mean((1, 2)), weights=batch["weights"]), rel=1e-5)
    assert found["mae"] == pytest.approx(np.average(np.abs(error).mean((1, 2)), weights=batch["weights"]), rel=1e-5)


def test_hubers_loss_is_the_squared_error_up_to_one_and_linear_beyond():
    batch = {"targets": jnp.zeros((2, 2, 1)), "weights": jnp.array([1.0, 3.0])}
    outputs = jnp.array([[[0.5], [-1]], [[3], [-10]]], jnp.float32)  # e^2 = .25 and 1; 2|e| - 1 = 5 and 19
    assert means(huber(outputs, batch)) == {"huber": pytest.approx((0.625 + 3 * 12) / 4)}


def test_r2_is_out_of_sample_and_direction_leaves_out_what_stands_still():
    outputs, batch = batch_of("forecasting", 6)
    targets, weights, last = (
        batch["targets"].astype(np.float64),
        batch["weights"][:, None, None],
        batch["inputs"][:, -1:],
    )
    found = means(score("forecasting", outputs, batch))
    assert found["r2"] == pytest.approx(
        1 - (weights * (outputs - targets) ** 2).sum() / (weights * targets**2).sum(), rel=1e-5
    )
    moved = weights * (targets != last)
    assert found["direction"] == pytest.approx(
        (moved * ((outputs > last) == (targets > last))).sum() / moved.sum(), rel=1e-5
    )
    batch["weights"][:] = 1
    assert means(score("forecasting", batch["targets"], batch))["direction"] == 1
    assert means(score("forecasting", np.broadcast_to(last, targets.shape), batch))["direction"] == 0


def test_scores_of_a_series_whose_cycle_was_taken_off_are_those_of_the_series():
    outputs, batch = batch_of("forecasting", 6)
    course = RNG.standard_normal((6, 10, 3), np.float32)  # of 6 inputs and 4 targets
    less = {
        **batch,
        "inputs": batch["inputs"] - course[:, :6],
        "targets": batch["targets"] - course[:, 6:],
        "course": course,
    }
    less["targets"][1, :, 0] += 1e-3  # what stood still would be told from rounding by chance
    batch["targets"][1, :, 0] += 1e-3
    whole, found = (
        means(score("forecasting", made, part)) for made, part in ((outputs, batch), (outputs - course[:, 6:], less))
    )
    assert found == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("kind", ["language", "classification", "forecasting"])
def test_sums_of_parts_merge_to_those_of_the_whole(kind):
    outputs, batch = batch_of(kind, 8)
    whole = score(kind, outputs, batch)
    parts = [
        score(kind, outputs[cut], {name: value[cut] for name, value in batch.items()})
        for cut in (slice(0, 4), slice(4, 8))
    ]
    for name, pair in whole.items():
        np.testing.assert_allclose(pair, parts[0][name] + parts[1][name], rtol=1e-5)


@pytest.mark.parametrize("kind", ["language", "classification", "forecasting"])
def test_rows_of_weight_zero_change_nothing(kind):
    outputs, batch = batch_of(kind, 8)
    batch["weights"][-1] = 0
    before = score(kind, outputs, batch)
    outputs[-1] += 100
    for name, pair in score(kind, outputs, batch).items():
        np.testing.assert_array_equal(pair, before[name])


def test_no_weight_is_not_a_number_rather_than_a_score():
    assert np.isnan(means({"nats": np.zeros(2)})["nats"])


def test_better_is_higher_accuracy_and_lower_everything_else():
    assert is_better("accuracy", 0.6, 0.5) and not is_better("accuracy", 0.5, 0.5)
    assert is_better("nats", 0.5, 0.6) and not is_better("mse", 0.6, 0.5)
    assert is_better("nats", 9.0, float("nan")) and not is_better("nats", float("nan"), 9.0)
    assert not is_better("nats", float("nan"), float("nan"))


@pytest.mark.parametrize(("stride", "channels"), [(1, 1), (3, 1), (3, 2)])
def test_gate_penalties_are_means_over_valid_frames_whatever_is_padded(stride, channels):
    rows, length, frames = 3, 10, -(-10 // stride)
    valid = np.arange(length)[None] < np.array([10, 7, 4])[:, None]
    gates = [RNG.uniform(size=(rows * channels, frames, 5)).astype(np.float32) for _ in range(2)]
    seen = {
        f"block_{index}": Observed(gate=jnp.asarray(gate), open=jnp.asarray(gate**2))
        for index, gate in enumerate(gates)
    }
    found = objectives.gate_penalties(seen, jnp.asarray(valid[:, ::stride], jnp.float32))
    kept = np.repeat(valid[:, ::stride], channels, axis=0)
    assert means(found)["gate_l1"] == pytest.approx(np.mean([gate[kept].mean() for gate in gates]), rel=1e-5)
    assert means(found)["gate_l0"] == pytest.approx(np.mean([(gate[kept] ** 2).mean() for gate in gates]), rel=1e-5)
    batch = {"valid": jnp.asarray(valid), "weights": jnp.ones(rows)}
    for name, weight in objectives.weights("nats", batch, stride).items():
        assert weight == (rows if name == "nats" else found.get(name, found["gate_l1"])[1])


def test_solves_that_gave_way_are_counted_over_blocks():
    seen = {f"block_{index}": Observed(fell_back=jnp.full(3, index == 2)) for index in range(4)}
    assert means(objectives.fallbacks(seen)) == {"fell_back": 0.25}
    assert objectives.fallbacks({}) == {}


def test_gates_without_an_l0_have_no_such_penalty():
    seen = {"block_0": Observed(gate=jnp.ones((1, 4, 2)))}
    assert set(objectives.gate_penalties(seen, jnp.ones((1, 4)))) == {"gate_l1"}


def test_dimensions_are_sums_over_components_and_merge_over_batches():
    valid = np.arange(6)[None] < np.array([6, 3])[:, None]
    gates = [RNG.uniform(size=(2, 6, n)).astype(np.float32) for n in (4, 8)]
    seen = {f"block_{index}": Observed(gate=jnp.asarray(gate)) for index, gate in enumerate(gates)}
    effective = np.mean([gate.sum(-1)[valid].mean() for gate in gates])
    whole = objectives.dimensions(seen, jnp.asarray(valid, jnp.float32))
    assert means(whole) == pytest.approx({"dim_eff": effective, "compression_factor": 6 / effective}, rel=1e-5)
    parts = [
        objectives.dimensions(
            jax.tree.map(lambda gate, row=row: gate[row : row + 1], seen),
            jnp.asarray(valid[row : row + 1], jnp.float32),
        )
        for row in (0, 1)
    ]
    for name, pair in whole.items():
        np.testing.assert_allclose(pair, parts[0][name] + parts[1][name], rtol=1e-5)


def test_mixers_without_gates_have_no_dimensions():
    assert objectives.dimensions({"block_0": Observed(state=jnp.ones((1, 4, 2)))}, jnp.ones((1, 4))) == {}


def laws_of(rows: int, steps: int, n: int, *, dtype: type = np.float32) -> Law:
    A, drive = (RNG.uniform(0.2, 0.9, (rows, steps, n)).astype(dtype), RNG.normal(size=(rows, steps, n)).astype(dtype))
    if dtype is np.complex64:
        A, drive = A * np.exp(1j * A).astype(dtype), drive + 1j * RNG.normal(size=drive.shape).astype(dtype)
    return Law(jnp.asarray(A), jnp.asarray(drive), jnp.asarray(RNG.uniform(0.1, 1, (rows, steps, n)), jnp.float32))


def observed(*laws: Law) -> dict:
    return {f"block_{index}": Observed(law=law) for index, law in enumerate(laws)}


def test_the_rate_is_that_of_the_laws_of_all_valid_states():
    laws, valid = [laws_of(3, 7, 4) for _ in range(2)], np.arange(7)[None] < np.array([7, 5, 2])[:, None]
    each = []
    for law in laws:
        moments = jax.vmap(lambda A, drive, noise: bracket.conditional_moments(A, drive, noise**2))(*law)
        each.append(float(variational.rate(moments.means[valid], moments.covs[valid])))
    total, weight = objectives.rates(observed(*laws), jnp.asarray(valid, jnp.float32))["rate"]
    assert float(total / weight) == pytest.approx(np.mean(each), rel=1e-4)
    assert weight == valid.sum()


def test_complex_components_are_pairs_of_reals():
    law = laws_of(4, 5, 2, dtype=np.complex64)
    pairs = []
    for A, drive, noise in zip(*law, strict=True):
        blocks = jax.vmap(
            lambda a: jnp.block([[jnp.diag(a.real), -jnp.diag(a.imag)], [jnp.diag(a.imag), jnp.diag(a.real)]])
        )(A)
        pairs.append(
            bracket.conditional_moments(
                blocks, jnp.concatenate([drive.real, drive.imag], -1), jnp.concatenate([noise, noise], -1) ** 2
            )
        )
    centres, covs = (jnp.concatenate([getattr(pair, name) for pair in pairs]) for name in ("means", "covs"))
    expected = variational.rate(centres, jnp.diagonal(covs, axis1=1, axis2=2))
    assert means(objectives.rates(observed(law), jnp.ones((4, 5))))["rate"] == pytest.approx(float(expected), rel=1e-4)


def test_gates_that_read_the_state_have_the_rate_of_one_step():
    law = laws_of(4, 5, 3)._replace(A=None)
    expected = variational.rate(law.drive.reshape(-1, 3), law.noise.reshape(-1, 3) ** 2)
    assert means(objectives.rates(observed(law), jnp.ones((4, 5))))["rate"] == pytest.approx(float(expected), rel=1e-5)


def test_the_capacity_is_that_of_what_comes_in():
    law = laws_of(4, 5, 3)
    expected = variational.capacity(law.drive.reshape(-1, 3), law.noise.reshape(-1, 3))
    assert means(objectives.rates(observed(law), jnp.ones((4, 5)), form="capacity"))["rate"] == pytest.approx(
        float(expected), rel=1e-5
    )


def test_of_last_steps_the_rate_is_that_of_their_states_alone():
    law, lengths = laws_of(4, 5, 3), np.array([5, 2, 4, 1])
    valid = jnp.asarray(np.arange(5)[None] < lengths[:, None], jnp.float32)
    last = objectives.weigh_steps(valid, "last")
    np.testing.assert_array_equal(last, np.arange(5)[None] == lengths[:, None] - 1)
    mean, variance = (np.asarray(part)[np.arange(4), lengths - 1] for part in objectives.moments(law, "vib"))
    expected = variational.rate(jnp.asarray(mean), jnp.asarray(variance))
    total, weight = objectives.rates(observed(law), last)["rate"]
    assert weight == 4 and float(total / weight) == pytest.approx(float(expected), rel=1e-5)
    batch = {"valid": valid > 0, "weights": jnp.ones(4)}
    assert objectives.weights("mse", batch, 1, steps="last")["rate"] == 4
    assert objectives.weights("mse", batch, 1)["rate"] == lengths.sum()


def test_independent_channels_weigh_as_rows_of_their_own():
    law, valid = laws_of(6, 5, 3), np.arange(5)[None] < np.array([5, 2, 4])[:, None]
    apart = objectives.rates(observed(law), jnp.asarray(np.repeat(valid, 2, axis=0), jnp.float32))["rate"]
    together = objectives.rates(observed(law), jnp.asarray(valid, jnp.float32))["rate"]
    assert float(together[0] / together[1]) == pytest.approx(float(apart[0] / apart[1]), rel=1e-5)
    assert together[1] == valid.sum()


@pytest.mark.parametrize("kind", ["language", "classification", "forecasting"])
def test_what_is_not_finite_where_the_weight_is_zero_reaches_neither_scores_nor_gradients(kind):
    outputs, batch = batch_of(kind, 6)
    hidden = batch["weights"] == 0
    assert hidden.any()
    ill = np.where(hidden.reshape(*hidden.shape, *[1] * (outputs.ndim - hidden.ndim)), np.nan, outputs).astype(
        np.float32
    )

    def loss(outputs):
        sums = TASKS[kind].score(outputs, jax.tree.map(jnp.asarray, batch))
        sums |= huber(outputs, jax.tree.map(jnp.asarray, batch)) if kind == "forecasting" else {}
        return sum(pair[0] for pair in sums.values()), sums

    found, expected = (jax.grad(loss, has_aux=True)(jnp.asarray(values)) for values in (ill, outputs))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6), found, expected)


def test_gates_and_laws_of_padding_may_be_anything():
    valid = jnp.arange(4)[None] < jnp.array([[4], [2]])
    frames = valid.astype(jnp.float32)
    ill = jnp.where(valid[..., None], 0.5, jnp.nan) * jnp.ones((2, 4, 3))
    seen = {"block_0": Observed(gate=ill, law=Law(ill, ill, ill))}
    sums = (
        objectives.gate_penalties(seen, frames) | objectives.dimensions(seen, frames) | objectives.rates(seen, frames)
    )
    assert all(np.isfinite(np.asarray(pair)).all() for pair in sums.values())
