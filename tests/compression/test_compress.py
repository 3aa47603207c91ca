"""What compression chooses: by relative loss, within what was allowed; and fine-tuning that fails says so."""

import dataclasses

import jax
import pytest

from runs import experiment
from selssm_jax import data
from selssm_jax.compression import compress
from selssm_jax.compression.compress import Candidate, Subject, known, pruned, quantised, relative_loss
from selssm_jax.compression.finetune import finetune
from selssm_jax.errors import InputError
from selssm_jax.model import SequenceModel
from selssm_jax.training import objectives
from selssm_jax.training.evaluation import Evaluator


@pytest.fixture(scope="module")
def subject():
    """The model of configs/smoke.py with parameters as drawn."""
    config = experiment(model__conv=3)
    dataset = data.load(config.data)
    model = SequenceModel(dataclasses.replace(config.model, task=dataset.task))
    batch = next(dataset.train(2, seed=0))
    return Subject(config, model, jax.jit(model.init)(jax.random.key(0), batch["inputs"])["params"], dataset)


def changed(subject, **changes):
    options = dataclasses.replace(subject.experiment.compress, **changes)
    return dataclasses.replace(subject, experiment=dataclasses.replace(subject.experiment, compress=options))


def test_losses_are_relative_and_positive_where_worse():
    assert relative_loss({"nats": 2.02}, {"nats": 2.0}, "nats") == pytest.approx(0.01)
    assert relative_loss({"accuracy": 0.891}, {"accuracy": 0.9}, "accuracy") == pytest.approx(0.01)
    assert compress.loss_of({"accuracy": 0.9}, "accuracy") < compress.loss_of({"accuracy": 0.8}, "accuracy")


def test_the_most_that_is_allowed_is_taken():
    make = lambda nbytes, nats: Candidate("", nbytes, None, {}, {"nats": nats})  # noqa: E731
    points = [make(16, 1.0), make(8, 1.005), make(4, 1.2)]
    assert compress._most(points, make(64, 1.0), 0.01, "nats") == 8
    assert compress._most(points, make(64, 0.5), 0.01, "nats") == 1  # none is good enough


def test_half_of_the_components_are_really_gone(subject):
    half = pruned(subject, "magnitude")
    assert half.model.config.block_states == (subject.experiment.model.d_state // 2,)
    whole, left = (sum(leaf.size for leaf in jax.tree.leaves(one.params)) for one in (subject, half))
    assert left < whole
    assert known(half).float_bytes == known(subject).float_bytes - 4 * subject.experiment.model.d_state // 2


@pytest.mark.parametrize("scope", ["all", "mixers"])
def test_every_rule_keeps_to_the_bytes(subject, scope):
    found = known(changed(subject, scope=scope))
    for rule in (compress.EQUAL, compress.VARIANCE, compress.INFORMATION):
        model, params = quantised(changed(subject, scope=scope), found, found.float_bytes // 16, rule)
        assert model.quantizer(params).nbytes == found.float_bytes // 16
    with pytest.raises(InputError, match=r"lower compress\.factor"):
        quantised(subject, found, -1, compress.EQUAL)


def test_fine_tuning_lowers_the_loss_and_leaves_levels_in_order(subject):
    asked = changed(subject, steps=40, peak_rate=5e-3)
    found = known(asked)
    model, params = quantised(asked, found, found.float_bytes // 8, compress.INFORMATION)
    tuned = finetune(asked.experiment, model, params, asked.dataset)
    before, after = (Evaluator(asked.experiment, model)(one, asked.dataset, "validation")["nats"] for one in (params, tuned))
    assert after < before
    levels = model.quantizer(tuned)
    assert all((levels.levels[i, 1 : 2**count] >= levels.levels[i, : 2**count - 1]).all() for i, count in enumerate(levels.bits))


def test_a_loss_that_is_not_finite_stops_with_the_fix(subject):
    asked = changed(subject, steps=3, peak_rate=1e38)
    with pytest.raises(InputError, match=r"lower compress\.peak_rate"):
        finetune(asked.experiment, asked.model, asked.params, asked.dataset)


def test_scores_of_a_metric_are_those_of_the_task(subject):
    assert subject.metric == objectives.PRIMARY["language"]


def outcome(of, **changes):
    """(what compression tried, the lines that it told) of the subject with another pattern and parameters as drawn."""
    config = dataclasses.replace(of.model.config, **changes)
    model = SequenceModel(config)
    x = next(of.dataset.train(2, seed=0))["inputs"]
    options = dataclasses.replace(of.experiment.compress, factor=4.0, steps=0, calibration=1)
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]
    asked = Subject(dataclasses.replace(of.experiment, model=config, compress=options), model, params, of.dataset)
    lines = []
    return compress.compress(asked, lines.append), lines


def test_without_axes_no_pruned_candidates_are_tried_and_it_is_said(subject):
    found, lines = outcome(subject, pattern=("local_attention",), window=4, heads=1)
    assert not any("components" in one.method for one in found.methods) and len(found.methods) == 3
    assert [line for line in lines if "pruned" in line] == ["no component is pruned: no mixer of local_attention names the axes of its state"]


def test_of_a_hybrid_the_blocks_that_name_axes_are_pruned(subject):
    found, lines = outcome(subject, pattern=("selective", "local_attention"), window=4, heads=1)
    pruned = [one.model.model.config.block_states for one in found.methods if "components" in one.method]
    whole = subject.experiment.model.d_state
    assert pruned == [(whole // 2, whole), (whole // 4, whole)] * 2
    assert not any("no component is pruned" in line for line in lines)
