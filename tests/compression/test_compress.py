"""What compression chooses: by relative loss, within what was allowed; and fine-tuning that fails says so."""

import dataclasses
import types

import jax
import numpy as np
import pytest

import runs
from runs import experiment
from selssm_jax import data
from selssm_jax.compression import compress
from selssm_jax.compression import finetune as finetuning
from selssm_jax.compression.compress import Candidate, Subject, calibrate, prune_half, quantise, relative_loss
from selssm_jax.compression.finetune import finetune
from selssm_jax.compression.progress import Progress
from selssm_jax.config import Compress
from selssm_jax.errors import InputError
from selssm_jax.model import SequenceModel
from selssm_jax.tasks import TASKS
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
    points, options = [make(16, 1.0), make(8, 1.005), make(4, 1.2)], Compress(within=0.01)
    assert compress._most(points, make(64, 1.0), options, "nats") == 8
    assert compress._most(points, make(64, 0.5), options, "nats") == 1  # none is good enough


def test_half_of_the_components_are_really_gone(subject):
    half = prune_half(subject, "magnitude")
    assert half.model.config.block_states == (subject.experiment.model.d_state // 2,)
    whole, left = (sum(leaf.size for leaf in jax.tree.leaves(one.params)) for one in (subject, half))
    assert left < whole
    assert calibrate(half).float_bytes == calibrate(subject).float_bytes - 4 * subject.experiment.model.d_state // 2


@pytest.mark.parametrize("scope", ["all", "mixers"])
def test_every_rule_keeps_to_the_bytes(subject, scope):
    found = calibrate(changed(subject, scope=scope))
    for rule in (compress.EQUAL, compress.VARIANCE, compress.INFORMATION):
        model, params = quantise(changed(subject, scope=scope), found, found.float_bytes / 16, rule)
        total = model.quantizer(params).nbytes + model.table_bytes(params) / subject.experiment.compress.sequences
        assert 0.5 * found.float_bytes / 16 < total <= found.float_bytes / 16
        assert model.table_bytes(params) == params["levels"].nbytes + -(
            -sum(map(len, model.bits)) * max(model.tables).bit_length() // 8
        )
    for nbytes in (-1, 0.1):
        with pytest.raises(InputError, match=r"lower compress\.factor, or raise compress\.sequences"):
            quantise(subject, found, nbytes, compress.EQUAL)


def test_an_own_method_is_tried_beside_the_others(subject, monkeypatch):
    monkeypatch.setitem(compress.RULES, "bits by range", None)  # undone after the test
    del compress.RULES["bits by range"]
    compress.register_method("bits by range", lambda known: np.square(np.ptp(known.samples, axis=0)).astype(np.float64))
    monkeypatch.setattr(compress._Trials, "fewer", lambda trials, factor: [])
    found = compress.compress(changed(subject, factor=8.0, steps=0))
    assert [one.method for one in found.methods] == [
        compress.INFORMATION,
        compress.VARIANCE,
        compress.EQUAL,
        "bits by range",
    ]
    assert all(one.nbytes <= found.calibration.float_bytes / 8 for one in found.methods)
    with pytest.raises(ValueError, match="there already"):
        compress.register_method("bits by range", lambda known: known.variances)


@pytest.mark.parametrize("errors", [np.ones(2), np.full(10**4, 1.0)])
def test_an_own_method_of_another_form_is_refused(subject, errors, monkeypatch):
    monkeypatch.setitem(compress.RULES, "own", lambda known: errors)
    found = calibrate(subject)
    for wrong in (errors, -found.variances - 1, np.full(found.layout.size, np.nan)):
        monkeypatch.setitem(compress.RULES, "own", lambda known, wrong=wrong: wrong)
        with pytest.raises(ValueError, match="the rule 'own' gives errors of shape"):
            quantise(subject, found, found.float_bytes / 8, "own")


def test_fine_tuning_lowers_the_loss_and_leaves_levels_in_order(subject):
    asked = changed(subject, steps=40, peak_rate=5e-3)
    found = calibrate(asked)
    model, params = quantise(asked, found, found.float_bytes // 8, compress.INFORMATION)
    tuned = finetune(asked.experiment, model, params, asked.dataset)
    before, after = (
        Evaluator(asked.experiment, model)(one, asked.dataset, "validation")["nats"] for one in (params, tuned)
    )
    assert after < before
    levels = model.quantizer(tuned)
    assert all(
        (levels.levels[i, 1 : 2**count] >= levels.levels[i, : 2**count - 1]).all()
        for i, count in enumerate(levels.bits)
    )


def test_a_loss_that_is_not_finite_stops_with_the_fix(subject):
    asked = changed(subject, steps=3, peak_rate=1e38)
    with pytest.raises(InputError, match=r"lower compress\.peak_rate"):
        finetune(asked.experiment, asked.model, asked.params, asked.dataset)


def test_scores_of_a_metric_are_those_of_the_task(subject):
    assert subject.metric == TASKS["language"].primary


def of_pattern(subject, *pattern):
    """The subject with another pattern, parameters as drawn."""
    config = runs.model(
        subject.model.config, pattern=pattern, local_attention__window=4, attention__heads=1, local_attention__heads=1
    )
    model, x = SequenceModel(config), next(subject.dataset.train(2, seed=0))["inputs"]
    return dataclasses.replace(subject, model=model, params=jax.jit(model.init)(jax.random.key(0), x)["params"])


def test_without_axes_no_pruned_candidates_are_tried_and_it_is_said(subject, monkeypatch):
    layout = types.SimpleNamespace(rows=1, size=8, kept_bytes=0)
    monkeypatch.setattr(
        compress, "calibrate", lambda subject: compress.Calibration(layout, "all", np.zeros((2, 8)), np.ones(8))
    )
    monkeypatch.setattr(
        compress, "_score", lambda subject, one: dataclasses.replace(one, validation={subject.metric: 1.0})
    )
    monkeypatch.setattr(
        compress._Trials, "prune", lambda trials, factor, how, rule: [Candidate(f"by {how}, {rule}", 8, None, {}, {})]
    )
    lines = []
    assert compress._Trials(of_pattern(subject, "local_attention", "tcn"), lines.append, Progress()).fewer(4.0) == []
    assert lines[1:] == ["no component is pruned: no mixer of local_attention, tcn names the axes of its state"]
    assert (
        len(compress._Trials(of_pattern(subject, "selective", "local_attention"), lines.append, Progress()).fewer(4.0))
        == 2
    )


def test_a_model_that_reads_both_ways_carries_no_memory_to_compress(subject):
    both = dataclasses.replace(
        subject, model=SequenceModel(dataclasses.replace(subject.model.config, bidirectional=True))
    )
    with pytest.raises(
        InputError,
        match=r"model\.bidirectional=True reads a signal in one piece, .*train it with model\.bidirectional=False",
    ):
        compress.compress(both)


def test_of_a_hybrid_the_blocks_that_name_axes_are_halved(subject):
    hybrid, whole = of_pattern(subject, "selective", "local_attention"), subject.experiment.model.d_state
    half = prune_half(hybrid, "magnitude")
    assert half.model.config.block_states == (whole // 2, whole)
    assert prune_half(half, "magnitude").model.config.block_states == (whole // 4, whole)


def test_half_of_a_time_invariant_block_goes_by_balanced_truncation_and_is_rebuilt(subject):
    whole = of_pattern(subject, "s5", "lstm")
    small, proved = compress.truncate_half(whole)
    assert list(proved) == ["block_0"] and proved["block_0"].error_bound > 0
    sizes = [part.d_state for part in whole.model.config.blocks]
    assert small.model.config.block_states == (sizes[0] // 2, sizes[1])
    values = {
        "method": "half",
        "nbytes": 1,
        "table": 0,
        "validation": {},
        "bits": None,
        "tables": (),
        "truncated": True,
    }
    again = compress._rebuilt(whole, values, {})
    assert again.truncated == proved and again.model.config == small.model.config
    jax.tree.map(np.testing.assert_array_equal, again.params, small.params)


class Stopped(BaseException):
    """A kill, at a moment of a test's choice."""


def counted(monkeypatch, module, name, function, stop):
    """Replaces a function by another that counts its calls, and stops at the call of number stop[name]."""
    calls = []

    def call(*args, **options):
        if len(calls) == stop.get(name, -1):
            del stop[name]
            raise Stopped
        calls.append(args)
        return function(*args, **options)

    monkeypatch.setattr(module, name, call)
    return calls


def test_a_compression_that_is_stopped_at_any_call_goes_on_and_ends_as_if_it_were_not(subject, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    layout = calibrate(subject).layout
    samples = rng.standard_normal((50, layout.size)) * rng.random(layout.size)

    def calibrated(of):
        return dataclasses.replace(
            compress.Calibration(compress.StateLayout(of.model, of.params), "all", samples, np.ones(layout.size)),
            **fewer(of),
        )

    def fewer(of):
        size = compress.StateLayout(of.model, of.params).size
        return {"samples": samples[:, :size], "weights": np.ones(size)}

    def scored(of, one):
        return dataclasses.replace(one, validation={of.metric: 2.0 + np.cos(one.nbytes + len(one.method))})

    def half(of, how):
        return {
            "block_0": np.arange(
                of.model.config.block_states[0] if of.model.config.block_states else of.model.config.d_state
            )[::2]
        }

    stop: dict[str, int] = {}
    doubles = {
        "calibrate": calibrated,
        "_score": scored,
        "best_half": half,
        "finetune": lambda experiment, model, params, dataset, progress: params,
    }
    calls = {name: counted(monkeypatch, compress, name, double, stop) for name, double in doubles.items()}
    whole = compress.compress(subject)
    once = {name: len(args) for name, args in calls.items()}
    assert once["_score"] >= 9 and once["best_half"] == 4
    for name, count in once.items():
        for moment in sorted({0, count // 2, count - 1}):
            progress, stop[name] = Progress(tmp_path / f"{name}{moment}"), moment + len(calls[name])
            progress.folder.mkdir()
            with pytest.raises(Stopped):
                compress.compress(subject, progress=progress)
            before = len(calls["_score"])
            again = compress.compress(subject, progress=progress)
            assert [(one.method, one.nbytes, one.validation) for one in again.methods] == [
                (one.method, one.nbytes, one.validation) for one in whole.methods
            ]
            assert again.chosen.method == whole.chosen.method and again.chosen.model == whole.chosen.model
            jax.tree.map(np.testing.assert_array_equal, again.chosen.params, whole.chosen.params)
            if name == "_score":
                # what was scored is not scored again
                assert len(calls["_score"]) - before <= once["_score"] - min(moment, once["_score"] - 1)


def test_fine_tuning_that_is_stopped_goes_on_bit_for_bit(subject, tmp_path, monkeypatch):
    asked = changed(subject, steps=8)
    whole = finetune(asked.experiment, asked.model, asked.params, asked.dataset)
    monkeypatch.setattr(finetuning, "SECONDS", -1.0)
    stop = {"_keep": 4}
    counted(monkeypatch, finetuning, "_keep", finetuning._keep, stop)
    progress = Progress(tmp_path)
    with pytest.raises(Stopped):
        finetune(asked.experiment, asked.model, asked.params, asked.dataset, progress)
    assert progress.recall(finetuning.ITEM) is not None
    jax.tree.map(
        np.testing.assert_array_equal,
        finetune(asked.experiment, asked.model, asked.params, asked.dataset, progress),
        whole,
    )


def test_a_model_that_diverges_is_chosen_by_no_one_and_a_metric_of_zero_divides_nothing():
    make = lambda nbytes, nats: Candidate("", nbytes, None, {}, {"nats": nats})  # noqa: E731
    one, other = make(8, float("nan")), make(4, 3.0)
    assert min([one, other], key=lambda candidate: compress.loss_of(candidate.validation, "nats")) is other
    assert [point.nbytes for point in compress.points([one, other], make(64, 1.0), "nats", 32)] == [4, 64]
    assert relative_loss({"accuracy": 0.0}, {"accuracy": 0.0}, "accuracy") == 0
    assert relative_loss({"mse": 0.5}, {"mse": 0.0}, "mse") == 0.5
