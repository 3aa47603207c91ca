"""fit, whole: the same losses on any devices, a run that goes on with others, and what stops it with a word on how to
go on.
"""

import functools
import json
import shutil
import types

import jax
import numpy as np
import pytest

import runs
from selssm_jax.config import Experiment, Task
from selssm_jax.errors import InputError
from selssm_jax.training import checkpoint, checksums, loop, parallel

STEPS = 8


def recipe(*, devices: int, accumulate: int = 1) -> Experiment:
    values = {
        "steps": STEPS,
        "log_every": 1,
        "eval_every": 4,
        "checkpoint_every": 4,
        "gate_l1": 0.1,
        "devices": devices,
    }
    return runs.experiment(
        optimizer__accumulate=accumulate, **{f"training__{key}": value for key, value in values.items()}
    )


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("loop") / "one"
    loop.fit(recipe(devices=1), str(workdir))
    return workdir


def assert_same_records(workdir, expected):
    found, wanted = runs.history(workdir), runs.history(expected)
    assert [(record["step"], record["split"]) for record in found] == [
        (record["step"], record["split"]) for record in wanted
    ]
    assert [record["step"] for record in wanted if record["split"] == "train"] == list(range(1, STEPS + 1))
    for record, other in zip(found, wanted, strict=True):
        numbers = [name for name in other if name != "split"]
        np.testing.assert_allclose(
            [record[name] for name in numbers], [other[name] for name in numbers], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(("devices", "accumulate"), [(2, 1), (4, 1), (1, 2)])
def test_losses_are_those_of_one_device(devices, accumulate, one_device, tmp_path):
    loop.fit(recipe(devices=devices, accumulate=accumulate), str(tmp_path / "run"))
    assert_same_records(tmp_path / "run", one_device)


def test_a_run_goes_on_with_other_devices(one_device, tmp_path):
    workdir = shutil.copytree(one_device, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    for devices in (4, 1):  # from one to four at step 4, from four to one at the end
        assert loop.fit(recipe(devices=devices), str(workdir)).finished
        assert_same_records(workdir, one_device)


OTHER_FORMS = {
    "no meter": lambda progress: progress.pop("meter"),
    "a meter of null": lambda progress: progress.update(meter=None),
    "a meter of words": lambda progress: progress.update(meter={"steps": "x", "seconds": 1.0, "sums": {}}),
    "sums of one number": lambda progress: progress.update(meter={"steps": 1, "seconds": 1.0, "sums": {"nats": [1.0]}}),
    "sums of a list": lambda progress: progress.update(meter={"steps": 1, "seconds": 1.0, "sums": [1.0]}),
    "no data": lambda progress: progress.pop("data"),
    "data of a list": lambda progress: progress.update(data=[]),
    "a fraction of a batch": lambda progress: progress.update(data={"next_index": 1.5}),
    "a batch below the first": lambda progress: progress.update(data={"next_index": -9}),
    "no history": lambda progress: progress.pop("history"),
    "a validation without a score": lambda progress: progress.update(history=[{"step": 4, "split": "validation"}] * 2),
}


def spoiled(checkpoint, change):
    """Changes the progress of a checkpoint to what one of an earlier version, without checksums, might hold."""
    progress = json.loads((checkpoint / "progress" / "metadata").read_text())
    change(progress)
    (checkpoint / "progress" / "metadata").write_text(json.dumps(progress))
    (checkpoint / checksums.MANIFEST).unlink()


@pytest.mark.parametrize("name", OTHER_FORMS)
def test_progress_that_no_run_can_go_on_from_is_named(name, one_device, tmp_path):
    run = shutil.copytree(one_device, tmp_path / "run")
    for place in (run / "checkpoints").iterdir():
        spoiled(place, OTHER_FORMS[name])
    with pytest.raises(
        InputError, match=rf"no checkpoint in .* can be read \(step {STEPS}: .*; step 4: .*\): restore the folder"
    ):
        loop.fit(recipe(devices=1), str(run))


def test_a_run_goes_on_from_the_checkpoint_before_one_with_a_spoiled_meter(one_device, tmp_path, capsys):
    run = shutil.copytree(one_device, tmp_path / "run")
    spoiled(run / "checkpoints" / str(STEPS), OTHER_FORMS["a meter of null"])
    assert loop.fit(recipe(devices=1), str(run)).finished
    assert f"checkpoint {STEPS} of {run} cannot be read" in capsys.readouterr().err
    assert_same_records(run, one_device)


def test_devices_are_counted_against_the_micro_batch(tmp_path):
    with pytest.raises(
        InputError, match=r"data\.batch_size over optimizer\.accumulate is 2, which 4 devices cannot share"
    ):
        loop.fit(recipe(devices=4, accumulate=4), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_last_good_checkpoint(one_device, tmp_path, monkeypatch):
    workdir = shutil.copytree(one_device, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    build = parallel.data_parallel

    def poisoned(step, devices, **how):
        take = build(step, devices, **how)

        def taken(state, batch):
            state, sums = take(state, batch)
            return state, sums | ({"nats": np.array([np.nan, 1])} if state.step == 6 else {})

        return taken

    with monkeypatch.context() as patch:
        patch.setattr(parallel, "data_parallel", poisoned)
        message = (
            r"the loss of step 6 is nan, .*lower optimizer\.peak_rate.*; the last good checkpoint is step 4 in "
            r".*/run/checkpoints"
        )
        with pytest.raises(InputError, match=message):
            loop.fit(recipe(devices=1), str(workdir))
    assert [record["step"] for record in runs.history(workdir)][-1] == 5
    assert loop.fit(recipe(devices=1), str(workdir)).finished, "it goes on once the cause is gone"
    assert runs.history(workdir) == runs.history(one_device)


def test_deleted_best_parameters_come_back_from_the_checkpoint_of_their_step(one_device, tmp_path, capsys):
    run = shutil.copytree(one_device, tmp_path / "run")
    shutil.rmtree(run / "best")
    outcome = loop.fit(recipe(devices=1), str(run))
    assert outcome.finished and outcome.kept in [loop.fit(recipe(devices=1), str(one_device)).kept]
    (found,), (wanted,) = ([path.name for path in (folder / "best").iterdir()] for folder in (run, one_device))
    assert found == wanted
    jax.tree.map(
        np.testing.assert_array_equal, *(checkpoint.restore_for_eval(str(folder))[1] for folder in (run, one_device))
    )
    assert "lost" not in capsys.readouterr().err


def test_best_parameters_that_nothing_holds_any_more_are_named(one_device, tmp_path, capsys):
    """The run then says what it evaluates: the best of what is left, and not the score of what is gone."""
    run = shutil.copytree(one_device, tmp_path / "run")
    newest = run / "checkpoints" / str(STEPS)
    progress = json.loads((newest / "progress" / "metadata").read_text())
    for record in progress["history"]:
        record["nats"] = 0.5 if record["step"] == 4 else record["nats"]
    (newest / "progress" / "metadata").write_text(json.dumps(progress | {"best": 4}))
    (newest / checksums.MANIFEST).unlink()
    shutil.rmtree(run / "best")
    shutil.rmtree(run / "checkpoints" / "4")
    outcome = loop.fit(recipe(devices=1), str(run))
    assert (
        f"the best parameters so far, of step 4, are lost: those of step {STEPS} are the best that are left"
        in capsys.readouterr().err
    )
    assert outcome.kept == outcome.validation and outcome.kept["nats"] > 0.5
    assert [path.name for path in (run / "best").iterdir()] == [str(STEPS)]


def test_a_watch_sees_every_validation_and_what_it_raises_ends_the_run_that_goes_on(tmp_path):
    seen: list[list[int]] = []

    def watch(validations: loop.Validations) -> None:
        seen.append([step for step, _ in validations])
        if len(seen) == 2:
            raise TimeoutError("enough")

    recipe = runs.experiment(
        **runs.SMALL, training__steps=6, training__eval_every=2, training__checkpoint_every=3, training__log_every=1
    )
    with pytest.raises(TimeoutError, match="enough"):
        loop.fit(recipe, str(tmp_path), watch=watch)
    assert loop.fit(recipe, str(tmp_path), watch=watch).finished
    assert seen == [[2], [2, 4], [2], [2, 4], [2, 4, 6]], "of what was lost after step 3 it is told again"


def test_of_equal_scores_the_smaller_loss_is_better():
    """Shares of few examples are often equal, and the first of them may be of a model that has hardly learned."""
    run = types.SimpleNamespace(dataset=types.SimpleNamespace(task=Task("classification", channels=1, classes=2)))
    early, late = {"accuracy": 1.0, "nats": 0.3}, {"accuracy": 1.0, "nats": 0.01}
    improves = functools.partial(loop.Run._improves, run)
    assert improves(late, early) and not improves(early, late) and not improves(early, early)
    assert not improves({"accuracy": 0.9, "nats": 0.001}, early)
