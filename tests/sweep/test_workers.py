"""Several workers of one sweep, lost ones, more trials in a folder that is finished, and hopeless trials."""

import collections
import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import optuna
import pytest

import processes
import runs
import sweep_worker
from selssm_jax.config import Experiment
from selssm_jax.errors import Diverged, InputError
from selssm_jax.sweep import compared_models, record, runner
from selssm_jax.sweep.compared_models import RATE
from selssm_jax.sweep.storage import open_storage
from selssm_jax.training import checkpoint, loop
from sweep_worker import MODEL, SEEDS, TRIALS, recipe

SECONDS = 240  # that a worker may take to start and end


def list_trials(folder: pathlib.Path, setting: str = "") -> list[optuna.trial.FrozenTrial]:
    storage = open_storage(setting, folder)
    (study,) = optuna.get_all_study_summaries(storage)
    return optuna.load_study(study_name=study.study_name, storage=storage).trials


@pytest.mark.always
def test_two_processes_share_the_trials_of_a_study_and_one_redoes_what_the_other_lost(tmp_path):
    """SQLite and a journal; in the latter the first worker is killed in its first trial."""
    path = os.pathsep.join([str(runs.REPOSITORY), str(runs.REPOSITORY / "tests")])
    command = [sys.executable, sweep_worker.__file__, str(tmp_path)]
    said = {name: tmp_path / f"{name}.txt" for name in ("first", "second")}
    workers = []
    for name, file in said.items():
        with file.open("w") as errors:
            environment = os.environ | {"PYTHONPATH": path}
            workers.append(subprocess.Popen([*command, name, "first"], env=environment, stderr=errors))
    try:
        lost, waits = tmp_path / "journal", "waiting for what other workers train\n"
        processes.wait_for(
            lambda: len(sweep_worker.read_calls(lost)) == TRIALS and said["second"].read_text().endswith(waits)
        )
        assert workers[1].poll() is None
        workers[0].kill()
        assert workers[1].wait(SECONDS) == 0, said["second"].read_text()
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    names = {f"trial_{number}" for number in range(TRIALS)} | {f"seed_{seed}" for seed in range(SEEDS)}
    calls = sweep_worker.read_calls(tmp_path / "file")
    trained = collections.Counter(run for _, run in calls if run.startswith("trial"))
    assert set(trained) == {name for name in names if name.startswith("trial")} and set(trained.values()) == {1}
    assert {worker for worker, run in calls if run in trained} == {"first", "second"}
    assert {run for _, run in calls} == names
    states = collections.Counter(trial.state.name for trial in list_trials(tmp_path / "file"))
    assert states == {"COMPLETE": TRIALS}
    journal = list_trials(lost, str(tmp_path / sweep_worker.STORAGES["journal"]))
    assert collections.Counter(trial.state.name for trial in journal) == {"COMPLETE": TRIALS, "FAIL": 1}
    ((_, run),) = [call for call in sweep_worker.read_calls(lost) if call[0] == "first"]
    assert ["second", run] in sweep_worker.read_calls(lost)
    assert f"{MODEL} {run} was left by a worker that is gone: it goes on" in said["second"].read_text()
    assert said["second"].read_text().count(waits) <= len(sweep_worker.STORAGES), "once a sweep"


@pytest.fixture
def trained(monkeypatch):
    """The folders of trainings, which leave their config and score the distance of their rate from `.0031`."""
    folders = []

    def fit(experiment: Experiment, workdir: str, watch: loop.Watch | None = None) -> loop.Outcome:
        del watch
        folders.append(pathlib.Path(workdir).name)
        saved = {"format": checkpoint.FORMAT, "experiment": dataclasses.asdict(experiment)}
        (pathlib.Path(workdir) / checkpoint.CONFIG).write_text(json.dumps(saved))
        assert experiment.sweep.storage == "", "a password has no business in a run's folder"
        return loop.Outcome(
            40, finished=True, validation={}, kept={"nats": abs(experiment.optimizer.peak_rate - 3.1e-3)}
        )

    monkeypatch.setattr(loop, "fit", fit)
    return folders


def test_more_trials_go_on_in_a_finished_folder_and_fewer_are_refused(trained, tmp_path):
    (few,) = runner.cells(recipe(trials=2), tmp_path, [MODEL])
    assert trained == ["trial_0", "trial_1", "seed_0", "seed_1"]
    trained.clear()
    (more,) = runner.cells(recipe(trials=4, pruner="median"), tmp_path, [MODEL])
    assert more.trials[:2] == few.trials and len({trial.point[RATE] for trial in more.trials}) == 4
    assert more.chosen[RATE] not in [trial.point[RATE] for trial in few.trials]
    best = next(number for number, trial in enumerate(more.trials) if trial.point == more.chosen)
    seeds = [f"seed_{seed}_of_trial_{best}" for seed in range(SEEDS)]
    assert trained == ["trial_2", "trial_3", *seeds], "the runs of another point stay"
    trained.clear()
    (same,) = runner.cells(recipe(trials=4), tmp_path, [MODEL])
    assert (same.trials, same.chosen) == (more.trials, more.chosen)
    assert [run.workdir.name for run in same.runs] == [run.workdir.name for run in more.runs]
    assert trained == seeds, "which are finished, so that nothing is trained"
    assert len(list_trials(tmp_path)) == 4
    with pytest.raises(InputError, match=r"sweep\.trials=2, but 4 points of 'gru' are part of this sweep already"):
        list(runner.cells(recipe(trials=2), tmp_path, [MODEL]))


def test_a_raised_grid_keeps_its_points_and_fills_the_widest_gaps():
    for sizes, model in (((0.5, 1.0), "selective"), ((1.0,), "lstm")):
        points: list = []
        for trials in (2, 4, 8, 14):
            sweep = recipe(trials=trials, sizes=sizes)
            before, points = points, compared_models.extend_grid(sweep, model, points)
            assert points[: len(before)] == before and len({json.dumps(point) for point in points}) == trials
            assert all(2e-3 <= point[RATE] <= 8e-3 for point in points)
            others = collections.Counter(json.dumps([point[key] for key in point if key != RATE]) for point in points)
            assert set(others.values()) == {trials // len(sizes)}
        assert compared_models.extend_grid(sweep, model, []) == compared_models.grid(sweep, model)
    size = "model.d_state"
    middle = [{size: 5, RATE: 4e-3}]
    rates = [point[RATE] for point in compared_models.extend_grid(recipe(trials=5), MODEL, middle)]
    assert rates == [4e-3, 2e-3, 8e-3, 2.83e-3, 5.66e-3]
    for strange in ([{size: 6, RATE: 4e-3}], [{size: 5, RATE: 1.0}]):
        assert compared_models.extend_grid(recipe(), MODEL, strange) == compared_models.grid(recipe(), MODEL)


def test_points_of_an_earlier_version_or_a_lost_database_are_those_of_the_runs(trained, tmp_path):
    (few,) = runner.cells(recipe(trials=3), tmp_path, [MODEL])
    (tmp_path / "sweep.db").unlink()
    (more,) = runner.cells(recipe(trials=4), tmp_path, [MODEL])
    assert [trial.point for trial in more.trials[:3]] == [trial.point for trial in few.trials]
    assert len({trial.point[RATE] for trial in more.trials}) == 4


@pytest.fixture
def watched(monkeypatch):
    """Trainings of four validations, each half the one before, from the rate at the first."""

    def fit(experiment: Experiment, workdir: str, watch: loop.Watch | None = None) -> loop.Outcome:
        validations = []
        for step in range(10, 41, 10):
            validations.append((step, {"nats": experiment.optimizer.peak_rate / 2 ** (step // 10)}))
            if watch is not None:
                watch(validations)
        return loop.Outcome(40, finished=True, validation={}, kept=validations[-1][1])

    monkeypatch.setattr(loop, "fit", fit)


@pytest.mark.parametrize(("pruner", "pruned_at"), [("median", [None] * 5 + [10]), ("halving", [None] + [10] * 5)])
def test_a_hopeless_trial_is_pruned_said_and_never_chosen(watched, tmp_path, capsys, pruner, pruned_at):
    """Rates rise, and errors with them: the median waits for five complete trials, halving for none."""
    (cell,) = runner.cells(recipe(pruner=pruner), tmp_path, [MODEL])
    assert [trial.pruned_at for trial in cell.trials] == pruned_at
    worst = cell.trials[-1]
    assert worst.validation == {"nats": worst.point[RATE] / 2}, "of its last step"
    assert (
        f"{MODEL} trial_5  d_state 5, peak_rate {worst.point[RATE]:g}: pruned at step 10, nats"
        in capsys.readouterr().err
    )
    assert cell.chosen == cell.trials[0].point
    trials = list_trials(tmp_path)
    assert [trial.state.name for trial in trials] == ["COMPLETE" if at is None else "PRUNED" for at in pruned_at]
    assert [trial.last_step for trial in trials] == [at or 40 for at in pruned_at]
    again = runner.cells(recipe(pruner=pruner), tmp_path, [MODEL])
    assert next(again).trials == cell.trials and len(list_trials(tmp_path)) == TRIALS


def test_where_all_but_the_pruned_diverged_there_is_none_to_choose(watched, tmp_path, monkeypatch):
    fit = loop.fit

    def diverging(experiment, workdir, watch=None):
        outcome = fit(experiment, workdir, watch)
        raise Diverged(f"after step {outcome.step}")

    monkeypatch.setattr(loop, "fit", diverging)
    with pytest.raises(Diverged, match=r"every trial of 'gru' diverged or was pruned: lower sweep\.learning_rates"):
        list(runner.cells(recipe(pruner="halving"), tmp_path, [MODEL]))


def damage(folder: pathlib.Path) -> None:
    (folder / "text.db").write_text("no database, whatever its name says, " * 99)
    (folder / "text.log").write_text('"a journal of another kind"\n')
    (folder / "folder.db").mkdir()


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("nosuch://host/name", r"sweep\.storage: nosuch://host/name cannot be opened \(.*nosuch"),
        (
            "mssql+nodriver://me:secret@host/name",
            r"sweep\.storage: mssql\+nodriver://me:\*\*\*@host/name cannot be opened",
        ),
        ("://", r"sweep\.storage: :// cannot be opened"),
        ("text.db", r"text\.db cannot be opened \(.*file is not a database"),
        ("text.log", r"text\.log cannot be opened"),
        ("folder.db", r"folder\.db cannot be opened"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_named_and_no_folder_is_left(tmp_path, monkeypatch, storage, message):
    monkeypatch.chdir(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        list(runner.cells(recipe(storage), tmp_path / "sweep", [MODEL]))
    assert "secret" not in str(error.value) and not (tmp_path / "sweep").exists()


def test_one_storage_is_of_one_folder(trained, tmp_path):
    storage = str(tmp_path / "trials.log")
    list(runner.cells(recipe(storage), tmp_path / "here", [MODEL]))
    with pytest.raises(InputError, match=r"sweep\.storage holds this sweep for another folder than .*there: workers"):
        list(runner.cells(recipe(storage), tmp_path / "there", [MODEL]))
    (tmp_path / "here").rename(tmp_path / "moved")
    trained.clear()
    list(runner.cells(recipe(storage), tmp_path / "moved", [MODEL]))
    assert not [name for name in trained if name.startswith("trial")]
    assert record.identity(recipe(storage)) == record.identity(recipe())


def test_a_pruner_without_a_validation_to_read_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"sweep\.pruner='median' decides by .* training\.eval_every=10 leaves none"):
        list(runner.cells(recipe(pruner="median", trial_steps=10), tmp_path / "sweep", [MODEL]))
    assert not (tmp_path / "sweep").exists()
