"""What compression chooses: by relative loss, within what was allowed; and fine-tuning that fails says so."""

import dataclasses
import types

import jax
import numpy as np
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


def of_pattern(subject, *pattern):
    """The subject with another pattern, parameters as drawn."""
    config = dataclasses.replace(subject.model.config, pattern=pattern, window=4, heads=1)
    model, x = SequenceModel(config), next(subject.dataset.train(2, seed=0))["inputs"]
    return dataclasses.replace(subject, model=model, params=jax.jit(model.init)(jax.random.key(0), x)["params"])


def test_without_axes_no_pruned_candidates_are_tried_and_it_is_said(subject, monkeypatch):
    layout = types.SimpleNamespace(rows=1, size=8, kept_bytes=0)
    monkeypatch.setattr(compress, "known", lambda subject: compress.Known(layout, "all", np.zeros((2, 8)), np.ones(8)))
    monkeypatch.setattr(compress, "_judged", lambda subject, method, nbytes, model, params: Candidate(method, nbytes, model, params, {subject.metric: 1.0}))
    monkeypatch.setattr(compress._Trials, "pruned", lambda trials, factor, how, rule: [Candidate(f"by {how}, {rule}", 8, None, {}, {})])
    lines = []
    assert compress._Trials(of_pattern(subject, "local_attention", "tcn"), lines.append).fewer(4.0) == []
    assert lines[1:] == ["no component is pruned: no mixer of local_attention, tcn names the axes of its state"]
    assert len(compress._Trials(of_pattern(subject, "selective", "local_attention"), lines.append).fewer(4.0)) == 2


def test_a_model_that_reads_both_ways_carries_no_memory_to_compress(subject):
    both = dataclasses.replace(subject, model=SequenceModel(dataclasses.replace(subject.model.config, bidirectional=True)))
    with pytest.raises(InputError, match=r"model\.bidirectional=True reads a signal in one piece, .*train it with model\.bidirectional=False"):
        compress.compress(both)


def test_of_a_hybrid_the_blocks_that_name_axes_are_halved(subject):
    hybrid, whole = of_pattern(subject, "selective", "local_attention"), subject.experiment.model.d_state
    half = pruned(hybrid, "magnitude")
    assert half.model.config.block_states == (whole // 2, whole)
    assert pruned(half, "magnitude").model.config.block_states == (whole // 4, whole)
