"""eval.py --compress as a person calls it: a smaller run that opens like any other, a report, and clear refusals before
work starts.
"""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from matplotlib import pyplot as plt

from runs import HEADS, REPOSITORY, command, experiment
from selssm_jax import data
from selssm_jax.analysis.costs import state_bytes
from selssm_jax.compression import compress
from selssm_jax.compression.streaming import PackedModel, packed_bytes
from selssm_jax.config.mixers import MIXERS
from selssm_jax.model import SequenceModel
from selssm_jax.report import compression_report
from selssm_jax.report.figures import save
from selssm_jax.report.tables import escape_markdown
from selssm_jax.report.verdict import verdict_on_compression
from selssm_jax.runs import open_run
from selssm_jax.training.checkpoint import Workdir


def compressed(run, folder, *overrides):
    """The results of compressing a run, or a copy of it, in a folder, and the compressed run's folder."""
    if run != folder / "run":
        shutil.copytree(run, folder / "run")
    chosen = [f"--override={name}" for name in ("compress.calibration=2", *overrides)]
    assert command("eval.py", f"--workdir={folder / 'run'}", "--compress", *chosen) == 0
    made = folder / "run-compressed"
    return json.loads((made / "compression" / "compression.json").read_text()), made


@pytest.fixture(scope="module")
def smaller(smoke_run, tmp_path_factory):
    return compressed(
        smoke_run,
        tmp_path_factory.mktemp("compressed"),
        "compress.factor=8",
        "compress.steps=15",
        "compress.weights=int8",
    )


def test_memory_is_as_small_as_was_asked_for(smaller):
    results, made = smaller
    assert results["reference"]["bytes"] == 8 * 4 and results["compressed"]["bytes"] <= 4
    run = open_run(made)
    assert isinstance(run.model, PackedModel)
    assert (
        packed_bytes(run.model, run.params)
        == state_bytes(run.model, run.params)
        == results["carried_bytes"]["after"]
        == results["compressed"]["bytes"]
    )


def test_the_report_has_all_its_parts(smaller):
    results, made = smaller
    page = (made / "compression" / "report.md").read_text()
    assert page.splitlines()[2] == f"> {escape_markdown(verdict_on_compression(results))}"
    for title in ("Memory and loss", "Methods at equal bytes", "Data processing", "Stability"):
        assert f"## {title}" in page
    assert {path.name for path in (made / "compression").iterdir()} == {
        "index.html",
        "report.md",
        "compression.json",
        "frontier.png",
    }
    assert {one["method"] for one in results["methods"]} >= {"equal bits", "bits by variance", "bits by information"}
    assert len(results["methods"]) == 7 and all(one["bytes"] <= 4 for one in results["methods"])


def test_no_measured_point_lies_below_the_rate_distortion_function(smaller):
    for point in smaller[0]["frontier"]:
        assert point["error"] >= point["error_bound"] - 1e-5


def test_nothing_is_violated_and_certificates_stand_side_by_side(smaller):
    results, _ = smaller
    assert {one["status"] for one in results["data_processing"].values()} <= {"consistent", "inconclusive"}
    assert all(one["packed"] - 4 * one["stderr"] <= one["capacity"] for one in results["data_processing"].values())
    assert set(results["certificates"]["before"]) == set(results["certificates"]["after"]) == {"block_0"}


def test_a_fresh_process_opens_it_by_the_same_command(smaller):
    results, made = smaller
    found = subprocess.run(
        [sys.executable, "eval.py", f"--workdir={made}"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert "smoke-compressed (test)" in found.stdout
    scores = json.loads((made / "report" / "results.json").read_text())
    # weights of 8 bits
    assert scores["metrics"]["nats"] == pytest.approx(results["compressed"]["test"]["nats"], abs=0.01)


def test_bytes_of_the_weights_fall_on_disk(smaller):
    results, made = smaller
    stored = results["parameter_bytes"]
    decoded = sum(leaf.nbytes for leaf in jax.tree.leaves(open_run(made).params))
    assert stored["after"] < 0.6 * decoded  # vectors, levels and scales stay in float32
    assert stored["after"] < results["disk_bytes"] < stored["after"] + 40_000  # of the checkpoint's own records


def test_series_are_compressed_too(untrained, tmp_path, monkeypatch):
    monkeypatch.setattr(compress, "FACTORS", ())
    results, made = compressed(untrained("csv", length=16), tmp_path, "compress.steps=2", "compress.factor=4")
    assert results["compressed"]["factor"] >= 4
    assert command("eval.py", f"--workdir={made}") == 0


def test_the_states_of_mixers_alone(smoke_run, tmp_path, monkeypatch):
    monkeypatch.setattr(compress, "FACTORS", (4.0, 16.0))
    results, _ = compressed(
        smoke_run, tmp_path, "compress.scope=mixers", "compress.factor=0", "compress.within=1.0", "compress.steps=0"
    )
    assert results["scope"] == "mixers" and results["compressed"]["bytes"] == min(
        one["bytes"] for one in results["frontier"]
    )


def drawn(folder, **changes):
    """The workdir of configs/smoke.py with these changes, parameters as drawn."""
    heads = {f"model__{key}": value for key, value in HEADS.items()}
    config = experiment(
        data__eval_examples=8, model__attention__window=18, model__local_attention__window=4, **heads, **changes
    )
    dataset = data.load(config.data)
    model = SequenceModel(dataclasses.replace(config.model, task=dataset.task))
    params = jax.jit(model.init)(jax.random.key(0), next(dataset.train(2, seed=0))["inputs"])["params"]
    workdir = Workdir(str(folder), config)
    workdir.describe(dataset.metadata())
    workdir.save_best(1, params, {})
    workdir.close()
    return folder


QUICK = ("compress.factor=4", "compress.steps=2", "compress.calibration=1")


def test_a_mixer_without_components_to_prune_is_compressed_to_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(compress, "FACTORS", ())
    results, made = compressed(drawn(tmp_path / "run", model__pattern=("tcn",), model__tcn__kernel=3), tmp_path, *QUICK)
    assert [one["method"] for one in results["methods"]] == ["bits by information", "bits by variance", "equal bits"]
    assert (made / "compression" / "index.html").is_file() and not made.with_name("run-compressed.unfinished").exists()


@pytest.mark.parametrize("count", [1, 2, 9, 30])
def test_the_frontier_is_drawn_however_many_methods_were_tried(count, tmp_path):
    score = {
        "validation": {"nats": 1.0},
        "bytes": 8,
        "error_bits": 2.0,
        "error": 0.1,
        "error_bound": 0.05,
        "factor": 4.0,
    }
    names = [f"method {index}" for index in range(count)]
    names[1:2] = ["a quarter of the components by information, bits by information"][: count - 1]
    results = {
        "metric": "nats",
        "methods": [score | {"method": name} for name in names],
        "frontier": [score],
        "within": 0.01,
    }
    figure = compression_report.frontier(results | {"compressed": score, "reference": score})
    drawn = {line.get_label() for line in figure.axes[0].lines}
    assert len(drawn & {"a quarter by information, bits by information", *names}) == count - 1
    save(figure, tmp_path / "frontier.png")
    inside, whole = figure.legends[0].get_window_extent(), figure.bbox
    assert whole.x0 <= inside.x0 and inside.x1 <= whole.x1 and whole.y0 <= inside.y0 and inside.y1 <= whole.y1
    plt.close(figure)


def test_a_rate_of_no_use_is_said_as_such():
    one = {"status": "holds", "rate": 1 - 1e-9, "radius": 1e7}
    table = compression_report._stability(
        {"certificates": {"before": {"block_0": one | {"rate": 0.9}}, "after": {"block_0": one}}}
    )
    assert table.rows == (("block 0", "holds", 0.9, "holds, at no useful rate", "1 - 1.0e-09", 1e7),)


HYBRIDS = [("selective", "local_attention"), ("mamba", "lstm", "tcn")]


@pytest.mark.exhaustive
@pytest.mark.parametrize("pattern", [*((name,) for name in sorted(MIXERS)), *HYBRIDS], ids="+".join)
def test_every_mixer_is_measured_and_compressed_to_the_end_by_the_commands(pattern, tmp_path):
    run = drawn(tmp_path / "run", model__pattern=pattern, model__tcn__kernel=3, model__d_model=16)
    quick = (
        "measure.samples=100",
        "measure.positions=2",
        "measure.longest_lag=3",
        "measure.decoder_steps=5",
        "measure.decoder_width=8",
    )
    assert (
        command("eval.py", f"--workdir={run}", "--split=train", "--measure", *(f"--override={name}" for name in quick))
        == 0
    )
    results, made = compressed(run, tmp_path, *QUICK)
    assert results["compressed"]["factor"] >= 4
    assert command("eval.py", f"--workdir={made}") == 0


@pytest.mark.exhaustive
def test_a_compression_that_is_killed_at_any_moment_goes_on_and_gives_the_same(smoke_run, tmp_path):
    """SIGKILL after ever longer times, until one process comes to the end; beside one that was left alone."""
    for name in ("whole", "killed"):
        shutil.copytree(smoke_run, tmp_path / name)
    call = [
        sys.executable,
        "eval.py",
        "--compress",
        *(f"--override={name}" for name in ("compress.factor=8", "compress.steps=200", "compress.calibration=2")),
    ]
    subprocess.run([*call, f"--workdir={tmp_path / 'whole'}"], cwd=REPOSITORY, capture_output=True, check=True)
    kills, patience = 0, 12.0
    while True:
        process = subprocess.Popen(
            [*call, f"--workdir={tmp_path / 'killed'}"],
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.wait(patience) == 0, process.stderr.read()
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            assert not (tmp_path / "killed-compressed").exists()
            kills, patience = kills + 1, patience + 3.0
        finally:
            process.stderr.close()
    assert kills >= 2 and not (tmp_path / "killed-compressed.unfinished").exists()
    one, other = (
        json.loads((tmp_path / f"{name}-compressed" / "compression" / "compression.json").read_text())
        for name in ("whole", "killed")
    )
    for part in ("reference", "compressed", "methods", "frontier"):
        assert one[part] == other[part]
    left, right = (open_run(tmp_path / f"{name}-compressed").params for name in ("whole", "killed"))
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_refusals_come_before_work(smaller, smoke_run, tmp_path, capsys):
    made = smaller[1]
    cases = {
        "exists already": [f"--workdir={made.with_name('run')}", "--compress"],
        "compressed run": [f"--workdir={made}", "--compress"],
        "compress.factor=0.5": [f"--workdir={smoke_run}", "--compress", "--override=compress.factor=0.5"],
        "no key 'factr'": [f"--workdir={smoke_run}", "--compress", "--override=compress.factr=2"],
        "no group that evaluation reads": [f"--workdir={smoke_run}", "--override=model.d_state=2"],
    }
    for words, arguments in cases.items():
        assert command("eval.py", *arguments) == 2
        assert words in capsys.readouterr().err
    config = ["--config=configs/smoke.py", f"--workdir={tmp_path / 'run'}", "--config.model.memory_bits=('11111111',)"]
    assert command("train.py", *config) == 2
    assert "belongs to a compressed run" in capsys.readouterr().err
