"""Bits of memory against the rate of laws put together by hand; a sweep that trains each run once and gives dear memory
up.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from selssm_jax import data
from selssm_jax.analysis import rate_sweep
from selssm_jax.errors import InputError
from selssm_jax.information import variational
from selssm_jax.model import SequenceModel
from selssm_jax.observe import Observed
from selssm_jax.training import loop, objectives

SHORT = {"training__steps": 40, "training__eval_every": 40, "training__checkpoint_every": 40, "training__log_every": 40}
CHANNEL = {
    "data__source": "linear_gaussian",
    "data__noise": 1.0,
    "data__eval_examples": 50,
    "data__horizon": 4,
    "model__selective__process_noise": 0.5,
    "model__selective__gate": "constant",
    "model__normalize": False,
}
RECIPE = runs.experiment(**SHORT, **CHANNEL)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    return folder, rate_sweep.sweep(RECIPE, (0.0, 0.3), folder)


def test_dear_memory_is_given_up(swept):
    _, (free, dear) = swept
    assert (free.beta, dear.beta) == (0.0, 0.3)
    assert 0 < dear.bits < 0.8 * free.bits
    assert dear.workdir.name == "beta_0.3" and np.isfinite(dear.loss)


def test_a_finished_run_is_not_trained_again(swept, monkeypatch):
    folder, points = swept
    monkeypatch.setattr(
        loop, "train", lambda runs, take, stop, until: pytest.fail("trained") if runs[0].step < until else None
    )
    assert rate_sweep.sweep(RECIPE, (0.3,), folder) == points[1:]


def test_bits_are_the_rate_of_all_states_of_the_split(swept):
    _, points = swept
    dataset = data.load(RECIPE.data)
    model = SequenceModel(dataclasses.replace(RECIPE.model, task=dataset.task))
    params = rate_sweep.checkpoint.restore_for_eval(str(points[0].workdir))[1]
    read = jax.jit(
        lambda inputs: model.apply({"params": params}, inputs, rngs={"noise": jax.random.key(0)}, mutable=["laws"])[1]
    )
    laws, kept = [], []
    for batch in dataset.evaluate("validation", 16):  # 50 examples: the last batch is filled up with rows that are none
        sown = read(jnp.asarray(batch["inputs"]))
        laws.append(objectives.moments(sown["laws"]["block_0"]["mixer"]["law"][0], "vib"))
        kept.append(np.asarray(batch["weights"]) > 0)
    means, variances = (np.concatenate(part)[np.concatenate(kept)].reshape(-1, 8) for part in zip(*laws, strict=True))
    assert len(means) == 50 * 16
    expected = float(variational.rate(jnp.asarray(means), jnp.asarray(variances))) / np.log(2)
    assert points[0].bits == pytest.approx(expected, rel=1e-4)


def test_the_price_of_a_gate_that_knows_its_nats_is_of_those_that_it_gains(tmp_path):
    gains = {"model__pattern": ("kalman",), "model__selective__process_noise": 0.0, "model__selective__gate": "sigmoid"}
    recipe = runs.experiment(**SHORT | CHANNEL | gains)
    free, dear = rate_sweep.sweep(recipe, (0.0, 0.3), tmp_path)
    assert 0 < dear.bits < 0.9 * free.bits
    dataset = data.load(recipe.data)
    model = SequenceModel(dataclasses.replace(recipe.model, task=dataset.task))
    params = rate_sweep.checkpoint.restore_for_eval(str(free.workdir))[1]
    gained = []
    for batch in dataset.evaluate("validation", 16):
        sown = model.apply({"params": params}, jnp.asarray(batch["inputs"]), mutable=["intermediates"])[1]
        gained.append(sown["intermediates"]["block_0"]["mixer"]["gained"][0][np.asarray(batch["weights"]) > 0])
    nats = np.concatenate(gained).sum(axis=-1)
    assert nats.shape == (50, 16) and free.bits == pytest.approx(nats.mean() / np.log(2), rel=1e-5)
    block = {"block_0": Observed(gained=jnp.asarray(nats[..., None]))}
    rate = objectives.rates(block, jnp.ones((50, 16)))["rate"]
    assert float(rate[0] / rate[1]) == pytest.approx(nats.mean(), rel=1e-5)


def test_the_price_of_samples_is_of_what_their_law_holds(tmp_path):
    sampled = {
        "model__pattern": ("kalman",),
        "model__kalman__sampled": True,
        "model__selective__process_noise": 0.0,
        "model__selective__gate": "sigmoid",
        "training__information_steps": "last",
    }
    (dear,) = rate_sweep.sweep(runs.experiment(**SHORT | CHANNEL | sampled), (0.3,), tmp_path)
    dataset = data.load(RECIPE.data)
    experiment, params, _ = rate_sweep.checkpoint.restore_for_eval(str(dear.workdir))
    model = SequenceModel(dataclasses.replace(experiment.model, task=dataset.task))
    laws = []
    for batch in dataset.evaluate("validation", 16):
        sown = model.apply(
            {"params": params}, jnp.asarray(batch["inputs"]), rngs={"noise": jax.random.key(0)}, mutable=["laws"]
        )[1]
        law = objectives.moments(sown["laws"]["block_0"]["mixer"]["law"][0], "vib")
        laws.append([part[np.asarray(batch["weights"]) > 0, -1] for part in law])
    means, variances = (np.concatenate(part) for part in zip(*laws, strict=True))
    assert len(means) == 50
    expected = float(variational.rate(jnp.asarray(means), jnp.asarray(variances))) / np.log(2)
    assert dear.bits == pytest.approx(expected, rel=1e-4)


def test_every_run_is_checked_before_the_first_is_trained(tmp_path):
    silent = dataclasses.replace(RECIPE, model=runs.model(RECIPE.model, selective__process_noise=0.0))
    for betas in ((0.0,), (0.1,)):
        with pytest.raises(InputError, match=r"process_noise=0\.0"):
            rate_sweep.sweep(silent, betas, tmp_path)
    with pytest.raises(InputError, match=r"training\.information_weight=-1"):
        rate_sweep.sweep(RECIPE, (0.1, -1.0), tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("betas", [(), (0.1, 0.1)])
def test_betas_that_make_no_sweep(tmp_path, betas):
    with pytest.raises(ValueError, match="expected at least one, and each once"):
        rate_sweep.sweep(RECIPE, betas, tmp_path)


def test_beta_zero_keeps_the_other_penalties_and_their_warm_up():
    options = dataclasses.replace(RECIPE.training, gate_l1=0.1, penalty_warmup=5)
    penalised = rate_sweep.set_price(dataclasses.replace(RECIPE, training=options), 0.0).training
    assert (penalised.information_weight, penalised.gate_l1, penalised.penalty_warmup) == (0.0, 0.1, 5)
    options = dataclasses.replace(RECIPE.training, information_weight=0.1, penalty_warmup=5)
    free = rate_sweep.set_price(dataclasses.replace(RECIPE, training=options), 0.0).training
    assert (free.information_weight, free.penalty_warmup, free.select) == (0.0, 0, "last")


def test_a_silent_model_has_no_finite_memory():
    silent = SequenceModel(runs.model(RECIPE.model, selective__process_noise=0.0))
    with pytest.raises(ValueError, match="infinitely many nats"):
        rate_sweep.memory(silent, {}, [])
