"""Reports of small runs: what is measured, how it is written down, and that it is exact."""

import dataclasses
import json
import math
import pathlib
import re
import shutil

import numpy as np
import pytest

from runs import command
from selssm_jax.analysis import scores
from selssm_jax.report import document, sections, summarise
from selssm_jax.report.verdict import verdict
from selssm_jax.runs import Run, exposure, open_run
from selssm_jax.training.evaluation import Evaluator
from small_runs import built, report_on

KEYS = {
    "format",
    "name",
    "split",
    "step",
    "steps",
    "chosen",
    "task",
    "primary",
    "metrics",
    "baselines",
    "config",
    "versions",
    "machine",
    "gates",
    "stability",
    "costs",
    "seconds",
    "title",
    "command",
    "validation_baselines",
    "training_seconds",
    "errors",
    "intervals",
    "seen",
    "course",
}
BLOCK_KEYS = {
    "components",
    "steps",
    "mean",
    "effective_dimension",
    "hard_count",
    "participation_ratio",
    "compression_factor",
    "selectivity",
    "histogram",
    "by_component",
    "over_time",
    "first_sequence",
}
COST_KEYS = {"peak_bytes", "argument_bytes", "temporary_bytes", "flops"}


@pytest.fixture(scope="module")
def written(smoke_run):
    """What was analysed of the trained run."""
    return report_on(smoke_run)


@pytest.fixture(scope="module")
def saved(written, smoke_run):
    """The results of the trained run, as saved."""
    return json.loads((smoke_run / "report" / "results.json").read_text())


def test_results_are_saved_as_returned(written, saved):
    assert saved == json.loads(json.dumps(written.values)) and set(saved) == KEYS and saved["format"] == 1


def test_metrics_are_those_of_evaluation_over_the_whole_split(saved, smoke_run):
    run = open_run(smoke_run)
    exact = Evaluator(run.experiment, run.model)(run.params, run.dataset, "test")
    assert {name: saved["metrics"][name] for name in exact} == pytest.approx(exact)
    assert saved["metrics"]["bits"] == pytest.approx(exact["nats"] / math.log(2))
    assert saved["baselines"]["optimal"] == {"nats": 0.0, "accuracy": 1.0, "bits": 0.0}
    assert saved["primary"] == "nats" and saved["split"] == "test"


def test_the_step_is_the_best_on_validation(saved, smoke_run):
    records = [json.loads(line) for line in (smoke_run / "metrics.jsonl").read_text().splitlines()]
    scores = {record["step"]: record["nats"] for record in records if record["split"] == "validation"}
    assert saved["step"] == min(scores, key=scores.get) and saved["steps"] == 12 and saved["chosen"] == "best"


def test_how_training_went_is_said_where_it_did_not_go_as_planned(saved):
    assert saved["course"] == {"ended_early": None, "skipped": 0, "changes": []}
    plain = sections.scores(saved)[0].text
    config = saved["config"] | {"training": saved["config"]["training"] | {"average": 0.99, "patience": 3}}
    changes = [{"step": 4, "data.batch_size": 16}]
    course = {"ended_early": 1200, "skipped": 2, "changes": changes}
    said = sections.scores(saved | {"config": config, "course": course})[0].text
    for words in (
        ", averaged over the steps up to it with decay 0.99",
        "Training ended early after step 1,200: 3 validations without a better. ",
        "Steps skipped because their loss or gradient was not finite: 2. ",
        "From step 5 on data.batch_size=16. ",
    ):
        assert words in said
        said = said.replace(words, "")
    assert said == plain


@pytest.mark.parametrize(
    ("step", "metric", "found"),
    [(4, "nats", "best"), (8, "nats", "last"), (8, "accuracy", "best"), (9, "nats", "last")],
)
def test_what_was_chosen_is_read_off_the_history(step, metric, found):
    history = [
        {"step": 2, "split": "train", "nats": 0.1},
        *({"step": 4 * n, "split": "validation", "nats": float(n), "accuracy": 0.2 * n} for n in (1, 2)),
    ]
    assert scores.name_choice(step, history, metric) == found


def test_what_softmax_gates_are_bound_to_is_no_finding(saved, tmp_path):
    model = saved["config"]["model"]
    softmax = model | {"selective": model["selective"] | {"gate": "softmax"}}
    said = sections.gates(saved | {"config": saved["config"] | {"model": softmax}}, tmp_path)[1].text
    plain = sections.gates(saved, tmp_path)[1].text
    assert said.startswith(plain) and "sum to 1" in said.removeprefix(plain)


def test_gates_are_measured_by_block(saved):
    assert set(saved["gates"]) == {"block_0"}
    block = saved["gates"]["block_0"]
    assert set(block) == BLOCK_KEYS
    assert block["components"] == 8 and block["steps"] == 24 * 18 == sum(block["histogram"]["counts"]) // 8
    assert block["compression_factor"] == pytest.approx(8 / block["effective_dimension"])
    assert np.mean(block["over_time"]["effective_dimension"]) == pytest.approx(block["effective_dimension"])
    assert len(block["first_sequence"]) == 18


def test_every_block_is_certified(saved, smoke_run):
    assert set(saved["stability"]) == {"block_0"}
    block = saved["stability"]["block_0"]
    # inputs are normalised, so gates stay open a little
    assert block["state_dependent"]["status"] == block["uniform"]["status"] == "holds"
    assert 0 < block["step"]["rate"] < 1 <= block["horizon"] and block["horizon"] == pytest.approx(
        np.log(1e-3) / np.log(block["step"]["rate"]), abs=1
    )
    assert 0 < block["observed_rate"] <= block["step"]["rate"]
    assert "Contraction under every sequence of gates: holds" in block["words"]
    assert "Certificates by block" in (smoke_run / "report" / "report.md").read_text()


def test_costs_are_measured(saved):
    costs = saved["costs"]
    assert set(costs["training_step"]) == set(costs["decode_step"]) == COST_KEYS
    assert costs["state_bytes"] == 4 * 8 and costs["parameter_bytes"] == 4 * sum(costs["parameters"].values())
    assert costs["batch"] == {"size": 8, "steps": 18}
    assert costs["state_bytes_at"] == {"1": 32, "1024": 32, "65536": 32} and costs["crossover"] == 1


def test_the_machine_is_described_and_not_identified(saved, smoke_run):
    assert set(saved["machine"]) == {"platform", "cpus", "devices", "device"}
    assert {"python", "jax", "flax"} <= set(saved["versions"])
    text = (smoke_run / "report" / "report.md").read_text()
    assert str(smoke_run) not in text and "seed" in text


def test_page_and_text_have_all_sections_and_figures(saved, smoke_run):
    folder = smoke_run / "report"
    figures = {path.name for path in folder.glob("*.png")}
    assert figures == {"learning_nats.png", "gates.png", "stability.png"}  # examples of text are text
    text, page = (folder / "report.md").read_text(), (folder / "index.html").read_text()
    assert all(f"]({name})" in text for name in figures)
    assert page.count("data:image/png;base64,") == 3 and 'src="http' not in page
    for title in ("Learning curve", "Gate activity", "An example", "Memory and cost", "Circumstances"):
        assert f"## {title}" in text and f"<h2>{title}</h2>" in page
    assert f"training step {saved['step']} of 12: the best on the validation split" in text


def test_summary_names_every_rival_and_the_page(written):
    lines = summarise(written, pathlib.Path("run/report/index.html")).splitlines()
    assert lines[0].startswith("smoke (test)  ") and "nats" in lines[0] and "bits" in lines[0]
    assert [line.split("  ")[0] for line in lines[1:-2]] == list(written.values["baselines"]) and lines[
        -1
    ] == "report: run/report/index.html"


@pytest.mark.always
def test_another_file_is_evaluated_at_the_runs_vocabulary(untrained, tmp_path):
    workdir = untrained("text", level="word")
    other = tmp_path / "other.txt"
    other.write_text("what a gate says of the past is what it keeps\n" * 60)
    results = report_on(workdir, file=str(other), split="validation").values
    assert (workdir / "report-validation-other" / "index.html").is_file() and not (workdir / "report").exists()
    assert results["task"]["vocab"] == json.loads((workdir / "dataset.json").read_text())["task"]["vocab"]
    assert results["metrics"]["perplexity"] == pytest.approx(math.exp(results["metrics"]["nats"]))
    text = (workdir / "report-validation-other" / "report.md").read_text()
    assert "no metrics.jsonl" in text and "other.txt" in text and str(tmp_path) not in text


def test_another_table_is_scaled_as_the_run_was(untrained, files, tmp_path):
    workdir = untrained("csv")
    rows = (tmp_path / "far.csv").open("w")
    rows.write("sine,cosine\n" + "".join(f"{100 + index % 3},{index % 5}\n" for index in range(200)))
    rows.close()
    run = open_run(workdir, file=str(tmp_path / "far.csv"))
    scaling = run.dataset.metadata()["scaling"]
    assert scaling == json.loads((workdir / "dataset.json").read_text())["scaling"]
    batch = next(iter(run.dataset.evaluate("test", 1)))
    np.testing.assert_allclose(
        batch["inputs"][0, :, 0].mean(), (101 - scaling["mean"][0]) / scaling["deviation"][0], rtol=0.01
    )


def test_a_cut_line_of_the_history_is_left_out(smoke_run, tmp_path):
    shutil.copytree(smoke_run, tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "spl')
    assert open_run(tmp_path / "run").history == open_run(smoke_run).history


@pytest.mark.parametrize(
    "line",
    [
        "[1]",
        "3",
        '{"step": "x", "split": "train"}',
        '{"step": 1, "split": "train", "nats": "low"}',
        "\x00",
        "[" * 100_000,
    ],
)
def test_a_line_of_the_history_that_is_no_record_is_left_out_and_named(line, smoke_run, tmp_path, capsys):
    path = shutil.copytree(smoke_run, tmp_path / "run") / "metrics.jsonl"
    path.write_text(f"{line}\n{path.read_text()}")
    assert open_run(path.parent).history == open_run(smoke_run).history
    assert f"line 1 of {path} is no record of metrics" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "text"), [(28, "No space left"), (13, "Permission denied")])
def test_a_folder_that_cannot_be_written_is_said_before_any_work(
    smoke_run, tmp_path, monkeypatch, number, text, capsys
):
    def refuse(**_):
        raise OSError(number, text)

    shutil.copytree(smoke_run, tmp_path / "run", ignore=shutil.ignore_patterns("report*"))
    monkeypatch.setattr(document.tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr("selssm_jax.analysis.run_analysis.analyse", lambda *_, **__: pytest.fail("work was started"))
    assert command("eval.py", f"--workdir={tmp_path / 'run'}") == 2
    assert re.search(rf"report cannot be written to .*report \({text}\)", capsys.readouterr().err)


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path):
    document.check_writable(tmp_path / "report")
    assert not (tmp_path / "report").exists()
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "index.html").write_text("an earlier one")
    document.check_writable(tmp_path / "report")
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["index.html"]


def test_a_metric_that_is_no_number_is_said_to_be_none(smoke_run):
    run = open_run(smoke_run)
    assert scores.derive_metrics({"nats": math.nan}, run) == {"nats": None, "bits": None}


def test_the_verdict_is_on_top_and_on_the_terminal(written, smoke_run):
    said = verdict(written.values)
    page, text = (smoke_run / "report" / "index.html").read_text(), (smoke_run / "report" / "report.md").read_text()
    assert page.index(said.split(" on the ")[0]) < page.index("Parameters of training step") and text.splitlines()[
        2
    ].startswith("> nats")
    assert said in summarise(written, pathlib.Path("index.html")) and said.endswith(
        "Command: python eval.py --workdir=run"
    )
    assert written.values["training_seconds"] > 0 and "guessing" in said


@pytest.mark.always
def test_own_data_are_called_by_their_file(untrained):
    workdir = untrained("csv")
    results = report_on(workdir).values
    assert (
        results["title"] == "waves.csv (recipe small)"
        and "waves.csv (recipe small)" in (workdir / "report" / "report.md").read_text().splitlines()[0]
    )
    errors = results["errors"]  # by step and channel: their means are the scores
    assert errors["by_channel"]["names"] == ["sine", "cosine"] and len(errors["by_horizon"]["mse"]) == 8
    for metric in ("mse", "mae"):
        assert np.mean(errors["by_horizon"][metric]) == pytest.approx(results["metrics"][metric], rel=1e-5)
        assert np.mean(errors["by_channel"][metric]) == pytest.approx(results["metrics"][metric], rel=1e-5)
    assert np.mean(errors["by_horizon"]["repeat last"]) == pytest.approx(
        results["baselines"]["repeat last"]["mse"], rel=1e-5
    )
    deviation = np.array(json.loads((workdir / "dataset.json").read_text())["scaling"]["deviation"])
    np.testing.assert_allclose(errors["own_units"]["mae"], errors["by_channel"]["mae"] * deviation)
    np.testing.assert_allclose(errors["own_units"]["mse"], errors["by_channel"]["mse"] * deviation**2)
    page = (workdir / "report" / "report.md").read_text()
    assert "Errors by channel" in page and "The same errors in the units of the data" in page


def test_own_signals_have_a_confusion_matrix(untrained):
    workdir = untrained("npz")
    results = report_on(workdir, split="train").values
    table = np.asarray(results["errors"]["confusion"])
    assert table.shape == (2, 2) and np.trace(table) / table.sum() == pytest.approx(results["metrics"]["accuracy"])
    text = (workdir / "report-train" / "report.md").read_text()
    assert "Confusion matrix" in text and "recall (share found)" in text


# train_on, select, whether the step was the best on validation; what is said of the parameters, and which splits the
# run has seen
TRUTHS = [
    (
        "train",
        "best",
        True,
        "the best on the validation split.",
        {"train": "trained", "validation": "chosen", "test": None, "whole": "trained"},
    ),
    (
        "train",
        "last",
        True,
        "the last that was saved.",
        {"train": "trained", "validation": None, "test": None, "whole": "trained"},
    ),
    (
        "train",
        "best",
        False,
        "the last that was saved.",
        {"train": "trained", "validation": "chosen", "test": None, "whole": "trained"},
    ),
    (
        "train+validation",
        "best",
        True,
        "the best on the validation split, which was part of the training data.",
        {"train": "trained", "validation": "trained", "test": None, "whole": "trained"},
    ),
    (
        "train+validation",
        "last",
        True,
        "the last that was saved.",
        {"train": "trained", "validation": "trained", "test": None, "whole": "trained"},
    ),
]


@pytest.mark.parametrize(("train_on", "select", "best", "words", "splits"), TRUTHS)
def test_the_caption_of_own_signals_is_what_their_parameters_are(
    train_on, select, best, words, splits, files, tmp_path, monkeypatch
):
    small, dataset, model, params = built(dataclasses.replace(files["npz"], train_on=train_on))
    small = dataclasses.replace(small, training=dataclasses.replace(small.training, select=select))
    history = [
        {"step": step, "split": "validation", "accuracy": value}
        for step, value in ((3, 0.5), (5, 0.4 if best else 0.6))
    ]
    run = Run(tmp_path, small, model, params, 3, dataset, history)
    monkeypatch.setattr(scores, "Evaluator", lambda *_: lambda *_: {"nats": 1.0, "accuracy": 0.5})
    results = scores.score(run, "test")
    assert str(sections.scores(results)[0].text).startswith(f"Parameters of training step 3 of 5: {words}")
    assert {split: exposure(run, split) for split in splits} == splits
    caption = "The validation split was part of the training data."
    shown = sections.learning(results, history, tmp_path)
    assert all(
        (caption in picture.caption) == (train_on == "train+validation")
        for picture in shown
        if hasattr(picture, "caption")
    )


def test_another_file_was_not_seen_and_the_run_s_own_was(untrained, files, tmp_path):
    workdir, other = untrained("npz"), tmp_path / "other.npz"
    with np.load(files["npz"].file) as arrays:
        np.savez(other, signal=arrays["signal"][::-1], label=arrays["label"][::-1])
    told = {
        name: exposure(open_run(workdir, file=str(file), split="train"), "train")
        for name, file in (("own", files["npz"].file), ("other", other))
    }
    assert told == {"own": "trained", "other": None}


def test_curves_stand_beside_baselines_of_their_own_split(smoke_run, tmp_path, monkeypatch):
    drawn = {}
    curve = sections.figures.learning_curve
    monkeypatch.setattr(
        sections.figures,
        "learning_curve",
        lambda *curves, **options: drawn.update(options) or curve(*curves, **options),
    )
    results = json.loads((smoke_run / "report" / "results.json").read_text()) | {
        "validation_baselines": {"uniform guess": {"nats": 1.25}, "none": {"nats": None}}
    }
    sections.learning(results, open_run(smoke_run).history, tmp_path)
    assert drawn["references"] == {"uniform guess (validation)": 1.25}


def test_hostile_columns_and_rows_are_reported(files, tmp_path, untrained):
    """A column that is half a formula, one in another script, half a surrogate pair's worth of control characters, and
    a test row of 1e38.
    """
    rows = [f"{np.sin(index / 4):.4f},{np.cos(index / 3):.4f}" for index in range(200)]
    rows[190] = "1e38,0.5"
    path = tmp_path / "hostile.csv"
    path.write_text("$\\frac{$,温度 *|<b>\n" + "\n".join(rows) + "\n", encoding="utf-8")
    workdir = untrained("csv", file=str(path))
    results = report_on(workdir).values
    page = (workdir / "report" / "index.html").read_text(encoding="utf-8")
    assert "$\\frac{$" in page and "温度 *|&lt;b&gt;" in page
    assert r"\$\\frac{\$" in (workdir / "report" / "report.md").read_text(encoding="utf-8")
    json.loads((workdir / "report" / "results.json").read_text(), parse_constant=pytest.fail)
    assert results["metrics"]["mse"] is None or results["metrics"]["mse"] > 1e30
