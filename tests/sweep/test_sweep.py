"""A sweep of two small models, as the command line runs it: records, what is left out, what goes on, and runs that come
out the same again.
"""

import contextlib
import dataclasses
import json
import pathlib
import shlex
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import optuna
import pytest
from optuna.study import StudyDirection

import runs
from configs import smoke
from selssm_jax.config import Sweep
from selssm_jax.errors import Diverged, InputError
from selssm_jax.sweep import command, gate_example, runner, shared_study
from selssm_jax.sweep import record as records_of
from selssm_jax.sweep.storage import DATABASE, open_storage
from selssm_jax.training import loop

CONFIG = "configs/smoke.py"
SWEEP = dataclasses.replace(
    runs.experiment(training__steps=6, training__eval_every=3, training__checkpoint_every=3, optimizer__warmup_steps=1),
    sweep=Sweep(models=("selective", "gru"), trials=2, trial_steps=3, seeds=2, sizes=(1.0,), lengths=(32,)),
)


def swept(folder: pathlib.Path, *models: str) -> dict[str, dict]:
    command.run(SWEEP, str(folder), config=CONFIG, base=smoke.get_config(), models=models)
    return {path.stem: json.loads(path.read_text()) for path in sorted((folder / "records").glob("*.json"))}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    return folder, swept(folder, "selective", "gru")


def test_a_record_says_how_a_cell_was_tuned_trained_and_tested(finished):
    _, records = finished
    for name, record in records.items():
        assert (record["model"], record["metric"], record["budget"]) == (
            name,
            "nats",
            {"trials": 2, "trial_steps": 3, "steps": 6, "seeds": 2},
        )
        assert record["chosen"] in [trial["point"] for trial in record["trials"]]
        scores = {json.dumps(trial["point"]): trial["validation"]["nats"] for trial in record["trials"]}
        assert scores[json.dumps(record["chosen"])] == min(scores.values())
        assert [run["seed"] for run in record["runs"]] == [0, 1]
        assert all(
            {"nats", "bits", "accuracy"} <= set(run["test"]) and set(run["lengths"]) == {"32"} for run in record["runs"]
        )
        assert abs(record["parameters"] / record["target_parameters"] - 1) <= 0.05
        assert all(record["costs"][key] for key in ("state_bytes", "training_peak_bytes", "decode_peak_bytes"))
        assert not any(str(value).startswith("/") for value in record["config"]["data"].values())
    assert ("reading" in records["selective"], "reading" in records["gru"]) == (True, False)


def test_what_is_there_is_left_out_and_another_sweep_is_not(finished, capsys):
    folder, records = finished
    before = runs.content(folder)
    assert swept(folder, "gru") == records
    assert "is there: gru is left out" in capsys.readouterr().err
    assert runs.content(folder) == before
    other = dataclasses.replace(SWEEP, sweep=dataclasses.replace(SWEEP.sweep, seeds=3))
    assert not command._there(folder / "records" / "gru.json", other, "gru")
    assert command._there(
        folder / "records" / "gru.json",
        dataclasses.replace(SWEEP, data=dataclasses.replace(SWEEP.data, cache_dir="elsewhere")),
        "gru",
    )


def test_a_record_from_before_a_key_was_there_has_the_keys_default(finished, tmp_path):
    record = json.loads((finished[0] / "records" / "gru.json").read_text())
    # mse, as ever; but not the 2 seeds of this sweep
    del record["sweep"]["training.forecast_loss"], record["sweep"]["sweep.seeds"]
    path = tmp_path / "gru.json"
    path.write_text(json.dumps(record))
    assert not command._there(path, SWEEP, "gru")
    record["sweep"]["sweep.seeds"] = 2
    path.write_text(json.dumps(record))
    assert command._there(path, SWEEP, "gru")


def test_a_run_comes_out_bit_for_bit_by_the_command_in_its_record(finished, tmp_path):
    """In a process of its own, as a reader would do it; the clock alone differs."""
    run = finished[1]["gru"]["runs"][1]
    words = shlex.split(run["command"])
    workdir = tmp_path / "again"
    words = [
        sys.executable,
        *[f"--workdir={workdir}" if word.startswith("runs/") else word for word in words[1:] if word != "--workdir"],
    ]
    done = subprocess.run(words, cwd=runs.REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((workdir / "report" / "results.json").read_text())["metrics"] == run["test"]


def test_what_was_interrupted_goes_on_and_optuna_keeps_every_trial(tmp_path, monkeypatch, finished, capsys):
    fit, calls = loop.fit, []

    def stopping(experiment, workdir):
        calls.append(workdir)
        return loop.Outcome(1, finished=False, validation={}) if len(calls) == 2 else fit(experiment, workdir)

    monkeypatch.setattr(loop, "fit", stopping)
    assert swept(tmp_path, "gru") == {}
    assert "saved; to go on: python" in capsys.readouterr().out
    assert len(calls) == 2
    begun = float((tmp_path / "gru" / "trial_1" / runner.SECONDS).read_text())
    found = swept(tmp_path, "gru")["gru"]
    assert len(calls) == 2 + 3  # the second trial again, and two seeds
    assert [run["test"] for run in found["runs"]] == [run["test"] for run in finished[1]["gru"]["runs"]]
    assert found["trials"][1]["cpu_seconds"] >= round(begun, 1)
    (study,) = optuna.get_all_study_summaries(open_storage("", tmp_path))
    states = [
        trial.state.name
        for trial in optuna.load_study(study_name=study.study_name, storage=open_storage("", tmp_path)).trials
    ]
    assert states == ["COMPLETE", "FAIL", "COMPLETE"]


class Killed(BaseException):
    """What no handler of errors may mend."""


RATE = "optimizer.peak_rate"


def scored(experiment, _):
    """In place of a training: a score that says the point."""
    return loop.Outcome(1, finished=True, validation={}, kept={"nats": experiment.optimizer.peak_rate})


@pytest.mark.parametrize("method", ["ask", "add_trial", "tell"])
def test_a_sweep_killed_at_any_moment_writes_no_score_under_another_point(tmp_path, monkeypatch, method):
    """As optuna#2021: a point that waits since a kill is asked for before any other."""
    monkeypatch.setattr(loop, "fit", scored)
    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, method, lambda *_, **__: (_ for _ in ()).throw(Killed()))
        with contextlib.suppress(Killed):
            list(runner.cells(SWEEP, tmp_path, ["gru"]))
    (found,) = runner.cells(SWEEP, tmp_path, ["gru"])
    assert len(found.trials) == 2 and all(trial.validation["nats"] == trial.point[RATE] for trial in found.trials)
    assert found.chosen[RATE] == min(SWEEP.sweep.learning_rates)
    (study,) = optuna.get_all_study_summaries(open_storage("", tmp_path))
    trials = optuna.load_study(study_name=study.study_name, storage=open_storage("", tmp_path)).trials
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "FAIL"}, "none waits or runs for ever"
    assert all(
        trial.user_attrs["validation"]["nats"] == trial.params[RATE]
        for trial in trials
        if trial.state.name == "COMPLETE"
    )


@pytest.mark.parametrize(
    ("group", "change"), [("optimizer", {"weight_decay": 0.2}), ("data", {"batch_size": 4}), ("model", {"d_model": 24})]
)
def test_another_experiment_does_not_take_over_the_trials_of_a_folder(finished, tmp_path, group, change):
    """Its runs are there too, and named."""
    folder = shutil.copytree(finished[0], tmp_path / "sweep")
    other = dataclasses.replace(SWEEP, **{group: dataclasses.replace(getattr(SWEEP, group), **change)})
    with pytest.raises(
        InputError, match=rf"trial_0 holds another experiment's run \(.*{group}\.{next(iter(change))}: .* there, .* now"
    ):
        list(runner.cells(other, folder, ["gru"]))
    assert len(optuna.get_all_study_summaries(open_storage("", folder))) == 3


def test_the_same_experiment_on_other_data_is_another_study(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "fit", scored)
    load, tokens = runner.data.load, []

    def other(config):
        dataset = load(config)
        return dataclasses.replace(dataset, info=dict(dataset.info) | {"sha256": str(len(tokens))})

    monkeypatch.setattr(runner.data, "load", other)
    for _ in range(2):
        list(runner.cells(SWEEP, tmp_path, ["gru"]))
        tokens.append(None)
    assert len(optuna.get_all_study_summaries(open_storage("", tmp_path))) == 2


@pytest.mark.parametrize("name", ["a?b", "50%41", "a?uri=true", "{x}", "#1 ü"])
def test_the_database_lies_in_the_folder_of_any_name(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    shared_study.open_study(open_storage("", folder), folder, "gru", StudyDirection.MINIMIZE)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (folder / DATABASE).stat().st_size > 0


@pytest.mark.parametrize(
    ("workdir", "records"), [("gs://bucket/sweep", None), ("lr=[0.1]", None), ("sweep", "gs://bucket/records")]
)
def test_a_sweep_in_a_place_that_cannot_be_written_is_refused_before_work(tmp_path, monkeypatch, workdir, records):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no folder of this machine|reads as a pattern"):
        command.run(SWEEP, workdir, config=CONFIG, base=smoke.get_config(), records=records)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_sweep_ends_with_75(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "fit", lambda *_: loop.Outcome(1, finished=False, validation={}))
    models = ["--models=gru", "--config.sweep.trials=1", "--config.sweep.sizes=(1.0,)"]
    assert runs.command("train.py", f"--config={CONFIG}", "--sweep", f"--workdir={tmp_path / 'sweep'}", *models) == 75
    assert "saved; to go on: python" in capsys.readouterr().out


def test_sweeps_of_one_task_that_start_in_one_moment_share_their_database(tmp_path):
    """Without a lock, two to three of four lose: they find tables half made, or made twice."""
    start, names = threading.Barrier(4), ("gru 0", "gru 1", "lstm 0", "lstm 0")

    def study(name: str) -> str:
        start.wait()
        storage = open_storage("", tmp_path)
        return shared_study.open_study(storage, tmp_path, name, StudyDirection.MINIMIZE).study_name

    with ThreadPoolExecutor(len(names)) as pool:
        assert tuple(pool.map(study, names)) == names
    assert {found.study_name for found in optuna.get_all_study_summaries(open_storage("", tmp_path))} == set(names)


def test_what_is_compiled_is_kept_and_found_again_unless_there_is_a_folder_for_it(tmp_path):
    settings = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = [getattr(jax.config, name) for name in settings]
    with runner.compiled_once(tmp_path / "left"):
        assert [getattr(jax.config, name) for name in settings] == before
    assert not (tmp_path / "left").exists()
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        with runner.compiled_once(tmp_path):
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
            kept = []
            for _ in range(2):  # two functions, as two fits have them, of one program
                jax.jit(lambda x: jax.numpy.sin(x) * 7.25)(1.5)
                kept.append(sorted(path.name for path in (tmp_path / runner.COMPILED).glob("*-cache")))
        assert kept[0] and kept[0] == kept[1]
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        runner._keep_compiled(*before)
    assert [getattr(jax.config, name) for name in settings] == before


def test_a_trial_that_diverges_is_the_worst_and_all_of_them_are_an_error(tmp_path, monkeypatch):
    fit = loop.fit

    def diverging(experiment, workdir):
        if (
            experiment.optimizer.peak_rate == max(SWEEP.sweep.learning_rates)
            or tmp_path / "all" in pathlib.Path(workdir).parents
        ):
            raise Diverged("the loss is nan")
        return fit(experiment, workdir)

    monkeypatch.setattr(loop, "fit", diverging)
    (found,) = runner.cells(SWEEP, tmp_path / "one", ["gru"])
    assert [bool(trial.validation) for trial in found.trials] == [True, False]
    assert found.chosen["optimizer.peak_rate"] == min(SWEEP.sweep.learning_rates)
    with pytest.raises(InputError, match=r"every trial of .gru. diverged: lower sweep\.learning_rates"):
        list(runner.cells(SWEEP, tmp_path / "all", ["gru"]))


def test_the_command_line_refuses_a_model_it_does_not_know(capsys, tmp_path):
    assert runs.command("train.py", f"--config={CONFIG}", "--sweep", "--models=lstn", f"--workdir={tmp_path}") == 2
    assert "--models names 'lstn': did you mean 'lstm'?" in capsys.readouterr().err


def test_kept_is_the_share_of_a_frames_writing_that_survives():
    rng = np.random.default_rng(0)
    gate, a = rng.uniform(size=(2, 5, 3))
    for s in range(5):
        survives = np.prod(a[s + 1 :], axis=0)
        assert gate_example.share_kept(gate, a)[s] == pytest.approx((gate[s] * survives).sum() / gate[s].sum())
    assert gate_example.share_kept(np.zeros((2, 3)), a[:2]).tolist() == [0, 0]


def test_a_command_names_every_key_that_differs_and_no_folder(finished):
    for record in finished[1].values():
        for run in record["runs"]:
            assert "local_dir" not in run["command"]
            assert f"--config.training.steps={SWEEP.training.steps}" in run["command"]
    assert records_of.identity(SWEEP)["training.steps"] == 6
