"""eval.py --compress that removes parts of blocks: a smaller run that every command opens, and a report."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
import selssm_jax
from runs import command
from selssm_jax.compression import compress as packing
from selssm_jax.compression import removal
from selssm_jax.compression.checkpoint import save_run
from selssm_jax.compression.streaming import PackedModel
from selssm_jax.data import load
from selssm_jax.model import SequenceModel
from selssm_jax.runs import open_run
from selssm_jax.training.checkpoint import Workdir

FEW = [f"--override=measure.{key}" for key in ("samples=100", "positions=2", "decoder_steps=2", "decoder_width=8")]
TINY = ("compress.calibration=1", "compress.steps=2")


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory):
    """The workdir of three blocks on configs/smoke.py's data, parameters as drawn, with penalties of gates."""
    folder = tmp_path_factory.mktemp("hybrid") / "run"
    config = runs.experiment(
        model__pattern=("selective", "rnn", "rnn"),
        model__selective__gate_bias=1.0,
        training__gate_l1=1e-3,
    )
    dataset = load(config.data)
    model = SequenceModel(config.model.of_task(dataset.task))
    params = jax.jit(model.init)(jax.random.key(0), next(dataset.train(2, seed=0))["inputs"])["params"]
    workdir = Workdir(str(folder), config, alone=True)
    workdir.describe(dataset.metadata())
    workdir.save_best(1, params, {"nats": 1.0})
    workdir.close()
    return folder


def compress(run, folder, *overrides):
    """The results of compressing a copy of a run in a folder, and the compressed run's folder."""
    shutil.copytree(run, folder / "run")
    chosen = [f"--override={name}" for name in (*TINY, *overrides)]
    assert command("eval.py", f"--workdir={folder / 'run'}", "--compress", *chosen) == 0
    made = folder / "run-compressed"
    return json.loads((made / "compression" / "compression.json").read_text()), made


@pytest.fixture(scope="module")
def smaller(hybrid, tmp_path_factory):
    """The run without the mixer that its loss needs least, and nothing packed."""
    return compress(hybrid, tmp_path_factory.mktemp("smaller"), "compress.packed=false", "compress.remove=recurrences")


def test_the_report_has_the_curve_and_says_what_it_cost(smaller):
    results, made = smaller
    whole, last = results["removal"]["remainders"]
    assert results["removal"]["parts"] == results["removal"]["evaluations"] == 3 and not whole["gone"]
    assert last["state_bytes"] < whole["state_bytes"] and last["parameters"] < whole["parameters"]
    assert whole["decode_share"] == 1.0 and last["decode_milliseconds"] > 0
    page = (made / "compression" / "report.md").read_text()
    (part,) = last["gone"]
    assert f"without {part.replace('_', ' ')}" in page.lower().replace("\\", "") and "## Parts removed" in page
    assert {path.name for path in (made / "compression").iterdir()} == {
        "index.html",
        "report.md",
        "compression.json",
        "removal.png",
    }


@pytest.mark.exhaustive
def test_the_smaller_run_is_the_whole_one_with_the_part_bypassed(hybrid, tmp_path):
    results, made = compress(
        hybrid, tmp_path, "compress.packed=false", "compress.remove=mlps", "compress.removed=0.5", "compress.steps=0"
    )
    gone = results["removal"]["remainders"][-1]["gone"]
    assert len(gone) == 2 and all(part.endswith("/mlp") for part in gone)
    before, after = open_run(hybrid), open_run(made)
    inputs = jnp.asarray(next(before.dataset.evaluate("test", 4))["inputs"])
    read = lambda run: run.model.apply({"params": run.params}, inputs, rngs={"noise": jax.random.key(0)})[0]  # noqa: E731
    with removal.bypass(dict.fromkeys(gone, 0.0)):
        bypassed = read(before)
    np.testing.assert_allclose(read(after), bypassed, atol=1e-6)


@pytest.mark.exhaustive
def test_every_command_opens_it(smaller):
    _, made = smaller
    assert command("eval.py", f"--workdir={made}", "--measure", "--split=train", *FEW) == 0
    scores = json.loads((made / "report-train" / "results.json").read_text())
    pattern = open_run(made).experiment.model.pattern
    left = [f"block_{index}" for index, mixer in enumerate(pattern) if mixer != "none"]
    assert len(left) == 2 and list(scores["memory"]["blocks"]) == list(scores["stability"]) == left
    trained = selssm_jax.load(made)
    tokens = jnp.arange(9) % 4
    state = trained.initial_state()
    for token in tokens:
        answer, state = trained.step(token, state)
    np.testing.assert_allclose(answer.probabilities, trained.predict(tokens).probabilities, atol=1e-5)
    assert list(trained.states(tokens)) == left


@pytest.mark.exhaustive
def test_it_can_be_packed_afterwards(smaller, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "FACTORS", ())
    monkeypatch.setattr(packing._Trials, "fewer", lambda trials, factor: [])
    results, made = compress(smaller[1], tmp_path, "compress.packed=true", "compress.remove=none", "compress.factor=4")
    assert results["packed"] and results["removal"] is None and isinstance(open_run(made).model, PackedModel)
    assert set(results["certificates"]["after"]) == set(results["certificates"]["before"])


@pytest.mark.exhaustive
def test_removal_is_tried_beside_bits_and_components_at_equal_bytes(hybrid, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "FACTORS", ())
    monkeypatch.setattr(packing._Trials, "fewer", lambda trials, factor: [])
    results, made = compress(
        hybrid, tmp_path, "compress.remove=blocks", "compress.remove_by=influence", "compress.factor=4"
    )
    (tried,) = [one for one in results["methods"] if one["method"].startswith("without block")]
    (gone,) = results["removal"]["remainders"][-1]["gone"]
    assert tried["method"] == f"without {gone.replace('_', ' ')}, bits by information"
    assert tried["bytes"] <= results["reference"]["bytes"] / 4 and len(results["methods"]) == 4
    assert "## Parts removed" in (made / "compression" / "report.md").read_text()
    assert (made / "compression" / "removal.png").is_file()


def test_gates_that_are_gone_are_not_priced_any_more(hybrid, tmp_path):
    """The first block alone has gates: a run without it, whose experiment weighed them, could not be opened."""
    run = open_run(hybrid)
    config, params = removal.remove(run.model.config, run.params, ["block_0"])
    saved = save_run(
        tmp_path / "made", run.experiment, SequenceModel(config), params, run.dataset, run.step, {"nats": 1.0}
    )
    assert saved.training.gate_l1 == 0 and saved.model.selective.gate_bias == 0
    assert open_run(tmp_path / "made").experiment == saved


def test_parts_that_the_model_has_not_are_refused_before_work_starts(hybrid, capsys):
    flags = ("--override=compress.packed=false", "--override=compress.remove=attention")
    assert command("eval.py", f"--workdir={hybrid}", "--compress", *flags) == 2
    assert "compress.remove='attention'" in capsys.readouterr().err
    assert not hybrid.with_name("run-compressed").exists()
