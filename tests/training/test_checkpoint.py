"""A run's folder: whose it is, what survives damage, what a full disk or a second process is told."""

import dataclasses
import errno
import json
import os
import pathlib
import re
import shutil
import threading
import time
from contextlib import closing, nullcontext
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import runs
from selssm_jax.config import Task
from selssm_jax.errors import InputError
from selssm_jax.runs import open_run
from selssm_jax.training import checksums, loop
from selssm_jax.training.checkpoint import DATASET, Workdir, is_run, read_experiment, read_metadata, restore_for_eval

RECIPE = runs.experiment(training__keep_checkpoints=3)
METADATA = {"vocabulary": ["a", "b"], "train_tokens": 7}


def state_at(step: int) -> dict[str, Any]:
    """Returns a training state in little: every leaf says the step."""
    return {"params": {"w": jnp.full((40,), step, jnp.float32)}, "step": jnp.int32(step)}


SHAPES = jax.eval_shape(lambda: state_at(0))


def write(folder: pathlib.Path, experiment=RECIPE, steps=(1, 2, 3), best=2) -> pathlib.Path:
    """Writes a run with checkpoints at `steps` and its best parameters at another."""
    with closing(Workdir(str(folder), experiment)) as workdir:
        workdir.describe(METADATA)
        for step in steps:
            workdir.save(step, state_at(step), {"data": {"next": step}, "history": []})
        if best:
            workdir.save_best(best, state_at(10 * best)["params"], {"nats": 1.0})
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write(tmp_path_factory.mktemp("checkpoint") / "run")


@pytest.fixture
def run(written, tmp_path):
    """A copy to damage."""
    return shutil.copytree(written, tmp_path / "run")


def restore(run: pathlib.Path, experiment=RECIPE):
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), SHAPES)
    with closing(Workdir(str(run), experiment)) as workdir:
        return workdir.restore(shapes)


def test_the_newest_checkpoint_comes_back(run):
    found = restore(run)
    assert found.step == found.state["step"] == 3 and found.progress == {"data": {"next": 3}, "history": []}
    np.testing.assert_array_equal(found.state["params"]["w"], 3)


def test_there_is_none_in_a_new_folder(tmp_path):
    assert restore(tmp_path / "new" / "folder") is None


def test_as_many_are_kept_as_asked_and_one_best(tmp_path):
    run = write(tmp_path / "run", runs.experiment(training__keep_checkpoints=2), steps=(1, 2, 2, 3, 4), best=3)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["3", "4"]
    with closing(Workdir(str(run), runs.experiment(training__keep_checkpoints=2))) as workdir:
        workdir.save_best(2, state_at(7)["params"], {"nats": 0.5})  # after a fall back to an earlier checkpoint
    assert [path.name for path in (run / "best").iterdir()] == ["2"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer__peak_rate", 0.5, r"optimizer\.peak_rate: 0\.01 there, 0\.5 now"),
        ("model__d_state", 9, r"model\.d_state: 8 there, 9 now"),
        ("data__seed", 3, r"data\.seed: 0 there, 3 now"),
        ("training__seed", 3, r"training\.seed: 0 there, 3 now"),
    ],
)
def test_another_experiment_is_refused_by_the_key_that_differs(run, key, value, message):
    before = runs.content(run)
    with pytest.raises(
        InputError, match=rf"holds another experiment's run \({message}\): use the same config, or a new --workdir"
    ):
        Workdir(str(run), runs.experiment(**{key: value}))
    assert runs.content(run) == before


OFTEN = ("log_every", "eval_every", "checkpoint_every", "keep_checkpoints", "devices", "patience", "skip_nonfinite")


@pytest.mark.parametrize("key", ["steps", *OFTEN])
def test_what_decides_nothing_may_change(run, key):
    assert restore(run, runs.experiment(**{f"training__{key}": 3 if key != "steps" else 600})).step == 3


@pytest.mark.parametrize(("key", "value"), [("data__batch_size", 16), ("optimizer__accumulate", 2)])
def test_how_the_data_are_cut_may_change_and_a_checkpoint_knows_how_they_were(run, key, value):
    """By its own copy: config.json is another's as soon as the run goes on."""
    other = runs.experiment(**{key: value})
    with closing(Workdir(str(run), other)) as workdir:
        workdir.describe(METADATA)
    assert read_experiment(str(run)) == other
    assert restore(run, other).experiment == RECIPE


def test_other_data_under_the_same_name_is_refused(run):
    before = runs.content(run)
    with (
        closing(Workdir(str(run), RECIPE)) as workdir,
        pytest.raises(InputError, match=r"the data changed.*\(vocabulary\): bring back the old data"),
    ):
        workdir.describe(METADATA | {"vocabulary": ["a", "b", "c"]})
    assert runs.content(run) == before


def truncate(folder: pathlib.Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "everything truncated": truncate,
    "state truncated": lambda step: truncate(step / "state"),
    "state emptied": lambda step: [path.write_bytes(b"") for path in (step / "state").rglob("*") if path.is_file()],
    "state gone": lambda step: shutil.rmtree(step / "state"),
    "progress truncated": lambda step: truncate(step / "progress"),
    "progress gone": lambda step: shutil.rmtree(step / "progress"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(run, capsys, damage):
    DAMAGE[damage](run / "checkpoints" / "3")
    before = runs.content(run)
    found = restore(run)
    assert found.step == 2 and found.progress["data"] == {"next": 2}
    np.testing.assert_array_equal(found.state["params"]["w"], 2)
    warning = capsys.readouterr().err
    assert f"warning: checkpoint 3 of {run} cannot be read" in warning and "going on from the one before" in warning
    (aside,) = (run / "unreadable").iterdir()
    moved = {
        path.replace("checkpoints", f"unreadable/{aside.name}") if path.startswith("checkpoints/3/") else path
        for path in before
    }
    assert runs.content(run).keys() == moved, "nothing else was touched, and what is damaged is kept"
    assert restore(run).step == 2
    assert capsys.readouterr().err == ""


def flip(path: pathlib.Path) -> None:
    """Changes one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def files(checkpoint: pathlib.Path) -> list[str]:
    return [str(path.relative_to(checkpoint)) for path in sorted(checkpoint.rglob("*")) if path.is_file()]


OF_THE_COMMIT = checksums.UNLISTED - {checksums.MANIFEST}  # its time and its mark: no part of what is restored


def test_one_flipped_bit_of_any_file_is_noticed(written, tmp_path, capsys):
    there = files(written / "checkpoints" / "3")
    assert len(there) > 8 and any("/d/" in name for name in there)
    for number, name in enumerate(there):
        run = shutil.copytree(written, tmp_path / str(number))
        flip(run / "checkpoints" / "3" / name)
        found = restore(run)
        np.testing.assert_array_equal(found.state["params"]["w"], found.step)
        assert found.step == 2 or name in OF_THE_COMMIT
        assert ("going on from the one before" in capsys.readouterr().err) == (found.step == 2)


def test_one_flipped_bit_of_the_best_parameters_is_noticed(written, tmp_path, capsys):
    for number, name in enumerate(files(written / "best" / "2")):
        run = shutil.copytree(written, tmp_path / str(number))
        flip(run / "best" / "2" / name)
        _, params, step = restore_for_eval(str(run))
        assert step == (2 if name in OF_THE_COMMIT else 3)
        np.testing.assert_array_equal(params["w"], 20 if step == 2 else 3)
        assert (f"{run}/best/2 cannot be read" in capsys.readouterr().err) == (step == 3)


def test_a_checkpoint_of_an_earlier_version_is_read_unchecked_and_says_so(run, capsys):
    for path in run.rglob(checksums.MANIFEST):
        path.unlink()
    assert restore(run).step == 3
    assert (
        f"{run}/checkpoints/3 has no checksums, as those of earlier versions: it is read unchecked"
        in capsys.readouterr().err
    )
    assert restore_for_eval(str(run))[2] == 2
    assert "best/2 has no checksums" in capsys.readouterr().err


@pytest.mark.parametrize("sealed", [True, False])
def test_a_cut_array_file_is_a_damaged_checkpoint_whatever_orbax_raises(run, sealed, capsys):
    """Orbax raises a bare Exception for it."""
    largest = max(
        (path for path in (run / "checkpoints" / "3" / "state").rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    if not sealed:
        (run / "checkpoints" / "3" / checksums.MANIFEST).unlink()
    assert restore(run).step == 2
    assert "going on from the one before" in capsys.readouterr().err


def test_memory_that_is_short_is_no_damage(run, monkeypatch):
    def short(*_: Any, **__: Any) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    before = runs.content(run)
    monkeypatch.setattr(ocp.CheckpointManager, "restore", short)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Out of memory"):
        restore(run)
    assert runs.content(run) == before


def test_the_best_parameters_are_committed_before_the_checkpoint_that_remembers_them(tmp_path, monkeypatch):
    """However slow the one rename is: a kill between the two would leave a run that believes in parameters that are not
    there.
    """
    committed = []

    def slow(rename):
        def renamed(source, target, **options):
            if pathlib.Path(target).parent.name == "best":
                time.sleep(0.5)
            rename(source, target, **options)
            committed.append(f"{pathlib.Path(target).parent.name}/{pathlib.Path(target).name}")

        return renamed

    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, slow(getattr(os, name)))
    write_validated(tmp_path / "run")
    order = [place for place in committed if place in ("best/1", "checkpoints/1", "best/2", "checkpoints/2")]
    assert order == ["best/1", "checkpoints/1", "best/2", "checkpoints/2"]


def write_validated(folder: pathlib.Path, best=(1, 2, 2)) -> pathlib.Path:
    """Writes a run of checkpoints 1, 2, ... of which each remembers the best step so far."""
    with closing(Workdir(str(folder), RECIPE)) as workdir:
        workdir.describe(METADATA)
        for step, remembered in enumerate(best, 1):
            if remembered == step:
                workdir.save_best(step, state_at(step)["params"], {"nats": 1 / step})
            history = [{"step": earlier, "split": "validation", "nats": 1 / earlier} for earlier in range(1, step + 1)]
            workdir.save(step, state_at(step), {"data": {}, "history": history, "best": remembered})
    return folder


def test_the_best_before_goes_when_no_newer_checkpoint_needs_it(tmp_path):
    run = write_validated(tmp_path / "run")
    assert [path.name for path in (run / "best").iterdir()] == ["2"]
    with closing(Workdir(str(run), RECIPE)) as workdir:
        workdir.describe(METADATA)
        workdir.restore(SHAPES)
        workdir.save_best(4, state_at(4)["params"], {"nats": 0.1})
    assert sorted(path.name for path in (run / "best").iterdir()) == ["2", "4"], "checkpoint 3 believes in step 2"
    with closing(Workdir(str(run), RECIPE)) as workdir:
        workdir.restore(SHAPES)
        assert workdir.recall_best(3, [(2, {"nats": 0.5}), (1, {"nats": 1.0})]) == 2
    assert [path.name for path in (run / "best").iterdir()] == ["2"], "step 4 is of a future that was not gone on from"


@pytest.mark.parametrize(
    "damage",
    [
        shutil.rmtree,
        lambda best: flip(best / "2" / checksums.MANIFEST),
        lambda best: shutil.rmtree(best / "2" / "params"),
    ],
)
def test_lost_best_parameters_are_written_again_from_the_checkpoint_of_their_step(tmp_path, damage):
    run = write_validated(tmp_path / "run")
    before = restore_for_eval(str(run))[1:]
    damage(run / "best")
    with closing(Workdir(str(run), RECIPE)) as workdir:
        workdir.restore(SHAPES)
        assert workdir.recall_best(3, [(2, {"nats": 0.5}), (1, {"nats": 1.0})]) == 2
    _, params, step = restore_for_eval(str(run))
    assert step == before[1] == 2
    jax.tree.map(np.testing.assert_array_equal, params, before[0])


@pytest.mark.parametrize("damage", [b"", b"[", b"\xff"])
def test_damaged_scores_of_the_best_parameters_do_not_keep_a_run_from_going_on(run, damage):
    """Orbax reads an item called "metrics" when the folder is opened, and raised a JSONDecodeError."""
    (run / "best" / "2" / "scores" / "metadata").write_bytes(damage)
    assert restore(run).step == 3


def test_evaluation_names_best_parameters_that_are_lost(tmp_path, capsys):
    run = write_validated(tmp_path / "run")
    shutil.rmtree(run / "best")
    assert restore_for_eval(str(run))[2] == 2, "the checkpoint of that step has them"
    assert "warning" not in capsys.readouterr().err
    shutil.rmtree(run / "checkpoints" / "2")
    assert restore_for_eval(str(run))[2] == 3
    assert (
        f"warning: the best parameters of {run}, those of step 2, are lost: these are others" in capsys.readouterr().err
    )


def test_a_kill_in_the_window_of_an_earlier_version_is_named(tmp_path, capsys):
    """It left best/ a step behind, and its checkpoints say nothing of the best."""
    folder = tmp_path / "run"
    with closing(Workdir(str(folder), RECIPE)) as workdir:
        workdir.describe(METADATA)
        workdir.save(1, state_at(1), {"data": {}, "history": [{"step": 1, "split": "validation", "nats": 1.0}]})
    assert restore_for_eval(str(folder))[2] == 1
    assert "the best parameters of" in capsys.readouterr().err


def test_with_no_readable_checkpoint_nothing_is_touched(run):
    truncate(run / "checkpoints")
    before = runs.content(run)
    with pytest.raises(
        InputError,
        match=r"no checkpoint in .* can be read \(step 3: .*step 2: .*step 1: .*restore the folder, or start in a new "
        r"--workdir",
    ):
        restore(run)
    assert runs.content(run) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"config\.json is damaged"),
        ("{", r"config\.json is damaged"),
        ("[1]", r"config\.json is damaged"),
        ('{"format": "x", "experiment": {}}', r"config\.json is damaged"),
        ('{"format": 1}', r"config\.json is damaged"),
        ('{"format": 1, "experiment": {"dta": {}}}', r"config has no key 'dta': did you mean 'data'"),
        (
            '{"format": 3, "experiment": {"later": 1}}',
            r"written by a newer version \(format 3, this one reads up to 2\): upgrade selssm_jax",
        ),
    ],
)
def test_a_config_that_cannot_be_read_is_told_and_left_alone(run, text, message):
    (run / "config.json").write_text(text)
    before = runs.content(run)
    for read in (
        lambda: Workdir(str(run), RECIPE),
        lambda: read_experiment(str(run)),
        lambda: restore_for_eval(str(run)),
    ):
        with pytest.raises(InputError, match=message):
            read()
    assert runs.content(run) == before


@pytest.mark.parametrize("text", ["[" * 100_000, '"x"', "null", '{"format": [], "experiment": {}}'])
def test_a_description_of_another_form_is_told_and_the_copy_named(run, text):
    for name, read in (("config.json", read_experiment), ("dataset.json", read_metadata)):
        (run / name).write_text(text)
        before = runs.content(run)
        with pytest.raises(
            InputError,
            match=rf"{name} (is damaged|cannot be read|is not what).*restore it: .*checkpoints/3/{name} is a copy",
        ):
            read(str(run))
        assert runs.content(run) == before


def test_a_lost_config_is_that_of_the_newest_checkpoint(run, capsys):
    (run / "config.json").unlink()
    flip(run / "checkpoints" / "3" / "config.json")
    assert is_run(run) and read_experiment(str(run)) == RECIPE
    assert f"config.json is missing: {run}/checkpoints/2/config.json is read instead" in capsys.readouterr().err
    assert restore_for_eval(str(run))[0] == RECIPE
    with pytest.raises(InputError, match="holds another experiment's run"):
        Workdir(str(run), runs.experiment(optimizer__peak_rate=0.5))
    with closing(Workdir(str(run), RECIPE)) as workdir:
        workdir.describe(METADATA)
    assert (run / "config.json").read_text() == (run / "checkpoints" / "2" / "config.json").read_text()


def test_a_lost_description_of_the_data_does_not_let_other_data_in(run):
    (run / "dataset.json").unlink()
    with (
        closing(Workdir(str(run), RECIPE)) as workdir,
        pytest.raises(InputError, match=r"the data changed.*\(train_tokens\)"),
    ):
        workdir.describe(METADATA | {"train_tokens": 8})


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [("config.json", '"d_state": 8', '"d_state": 9'), ("dataset.json", '"train_tokens": 7', '"train_tokens": 3')],
)
def test_a_description_that_a_bit_changed_is_not_believed(run, name, old, new):
    """A scale or a floor of gates would be another one, in silence."""
    text = (run / name).read_text()
    assert old in text
    (run / name).write_text(text.replace(old, new))
    with pytest.raises(InputError, match=rf"{name} is not what the run was trained .*restore it: .*/{name} is a copy"):
        restore_for_eval(str(run)) if name == "config.json" else read_metadata(str(run))


def test_progress_of_another_form_is_a_damaged_checkpoint(run, capsys):
    for step, progress in ((3, [1]), (2, {"history": [{"step": "x"}]})):
        (run / "checkpoints" / str(step) / "progress" / "metadata").write_text(json.dumps(progress))
        (run / "checkpoints" / str(step) / checksums.MANIFEST).unlink()  # as of an earlier version
    assert restore(run).step == 1
    assert capsys.readouterr().err.count("going on from the one before") == 2


VALIDATED = [{"step": step, "split": split, "nats": 1.0} for step in (1, 2) for split in ("train", "validation")]


@pytest.mark.parametrize(
    ("progress", "says"),
    [
        ({"best": 3}, r"progress\.best is 3, expected the step of a validation in progress\.history, one of \[1, 2\]"),
        ({"best": -1}, r"progress\.best is -1"),
        ({"best": 10**30}, r"progress\.best is 10{30}"),
        ({"best": True}, r"progress\.best is True"),
        ({"best": 1.0}, r"progress\.best is 1\.0"),
        ({"best": 1, "history": VALIDATED[::2]}, r"progress\.best is 1, .*one of \[\]"),  # trained, and never validated
        ({"history": [*VALIDATED, VALIDATED[-1] | {"step": 4}]}, r"records of steps that are not from 1 to 3"),
        ({"history": [VALIDATED[0] | {"step": -5}]}, r"records of steps that are not from 1 to 3"),
    ],
    ids=range(8),
)
def test_progress_that_remembers_what_was_not_is_a_damaged_checkpoint(progress, says, run, capsys):
    whole = {"data": {"next": 3}, "history": VALIDATED, "best": 2} | progress
    (run / "checkpoints" / "3" / "progress" / "metadata").write_text(json.dumps(whole))
    (run / "checkpoints" / "3" / checksums.MANIFEST).unlink()  # as of an earlier version
    assert restore_for_eval(str(run))[0] == RECIPE, "reading goes on from what is there"
    assert restore(run).step == 2
    assert re.search(rf"warning: checkpoint 3 of .* cannot be read \(.*{says}", capsys.readouterr().err)


def test_the_best_of_a_validation_is_remembered(run):
    whole = {"data": {"next": 3}, "history": VALIDATED, "best": 2}
    (run / "checkpoints" / "3" / "progress" / "metadata").write_text(json.dumps(whole))
    (run / "checkpoints" / "3" / checksums.MANIFEST).unlink()
    assert restore(run).progress == whole


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("config.json", "[]", "it holds a list"),
        ("config.json", "\0", "Expecting value"),
        ("config.json", '{"model_type": "mamba"}', "it has no experiment and no format"),
        ("dataset.json", "[1]", "it holds a list"),
    ],
)
def test_files_of_another_program_are_not_written_over(name, content, says, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=rf"{name} is of no run \({says}.*use another --workdir"):
        Workdir(str(tmp_path), RECIPE)
    assert (tmp_path / name).read_text() == content


def test_a_run_describes_itself(run):
    assert read_experiment(str(run)) == RECIPE
    assert json.loads((run / "dataset.json").read_text()) == METADATA


@pytest.mark.parametrize("name", ["lr=[0.1]", "back\\slash", "a*b", "a[!b]c"])
def test_a_folder_that_orbax_would_read_as_a_pattern_is_refused_before_anything_is_written(tmp_path, name):
    """Its steps are listed, but their arrays are looked for elsewhere."""
    for place in (tmp_path / name, tmp_path / name / "run"):
        with pytest.raises(
            InputError,
            match=r"in its name, which Orbax reads as a pattern.*choose a name without \[ \] \* and backslashes",
        ):
            Workdir(str(place), RECIPE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a?b", "50%41", "{x} y", "#1", "~"])
def test_a_folder_of_another_strange_name_is_read_back(tmp_path, name):
    run = write(tmp_path / name, steps=(1,), best=1)
    assert restore(run).step == restore_for_eval(str(run))[2] == 1


@pytest.mark.parametrize("place", ["gs://bucket/run", "s3://bucket/run", "file:///tmp/run"])
def test_a_place_that_is_no_local_folder_is_refused_by_name(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for use in (lambda: Workdir(place, RECIPE), lambda: open_run(place)):
        with pytest.raises(InputError, match=rf"{place} is no folder of this machine"):
            use()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["file", "file/below"])
def test_a_file_in_the_way_of_the_folder(tmp_path, path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=rf"--workdir .*{path} cannot be written \(.*\): choose another folder"):
        Workdir(str(tmp_path / path), RECIPE)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["checkpoints", "best"])
def test_a_file_in_the_way_inside_the_folder(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(
        InputError,
        match=rf"--workdir {tmp_path} cannot be written \(File exists: .*/{name}\): choose another folder, or free it",
    ):
        Workdir(str(tmp_path), RECIPE)
    assert (tmp_path / name).read_text() == "mine"


def test_two_processes_do_not_train_in_one_folder(run):
    with (
        closing(Workdir(str(run), RECIPE)),
        pytest.raises(InputError, match=r"another process is training in .*: wait for it, stop it, or use"),
    ):
        Workdir(str(run), RECIPE)
    assert restore(run).step == 3


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_names_the_last_good_checkpoint_and_loses_nothing(run, monkeypatch):
    before = runs.content(run)
    message = (
        rf"{run} could not be written, the disk is full: free some space and run the same command again; the "
        r"last good checkpoint is step 3 in .*"
    )
    with closing(Workdir(str(run), RECIPE)) as workdir, monkeypatch.context() as patch:
        patch.setattr(workdir._manager, "save", full)
        patch.setattr(workdir._best, "save", full)
        with pytest.raises(InputError, match=message):
            workdir.save(4, state_at(4), {})
        with pytest.raises(InputError, match=message):
            workdir.save_best(4, state_at(4)["params"], {})
        with pytest.raises(InputError, match=message), workdir.writing():
            full()
    assert runs.content(run) == before


def test_a_disk_with_too_little_space_left_is_told_before_anything_is_written(run, monkeypatch):
    before, needed = runs.content(run), sum(leaf.nbytes for leaf in jax.tree.leaves(state_at(4)))
    with closing(Workdir(str(run), RECIPE)) as workdir:
        for free, is_refused in ((needed - 1, True), (needed, False)):
            monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
            with (
                pytest.raises(InputError, match=r"the disk is full: free some space.*step 3")
                if is_refused
                else nullcontext()
            ):
                workdir.save(4, state_at(4), {})
            assert not is_refused or runs.content(run) == before


def test_a_disk_that_fills_while_a_checkpoint_is_written_in_the_background(run, monkeypatch):
    before = runs.content(run)
    workdir = Workdir(str(run), RECIPE)
    monkeypatch.setattr(workdir._manager, "wait_until_finished", full)
    with pytest.raises(InputError, match=r"the disk is full.*the last good checkpoint is step 3"):
        workdir.close()
    monkeypatch.undo()
    assert runs.content(run) == before
    assert restore(run).step == 3, "its lock is gone"


def test_what_changes_while_a_checkpoint_is_written_is_not_in_it(run, monkeypatch):
    changed, dumps, here = threading.Event(), json.dumps, threading.current_thread()
    progress = {"data": {"next": 4}, "history": [{"step": 4, "split": "train"}]}
    monkeypatch.setattr(
        json, "dumps", lambda value: (threading.current_thread() is here or changed.wait(60)) and dumps(value)
    )
    with closing(Workdir(str(run), RECIPE)) as workdir:
        workdir.save(4, state_at(4), progress)
        progress["data"]["next"] = 5
        progress["history"].append({"step": 5})
        changed.set()
    assert restore(run).progress == {"data": {"next": 4}, "history": [{"step": 4, "split": "train"}]}


@pytest.mark.parametrize(("select", "step", "value"), [("best", 2, 20), ("last", 3, 3)])
def test_parameters_for_evaluation(tmp_path, select, step, value):
    write(tmp_path / "run", runs.experiment(training__select=select))
    experiment, params, found = restore_for_eval(str(tmp_path / "run"))
    assert experiment.training.select == select and found == step
    np.testing.assert_array_equal(params["w"], value)


@pytest.mark.parametrize(("lost", "step", "value"), [("best", 3, 3), ("checkpoints", 2, 20)])
def test_evaluation_takes_what_there_is(run, lost, step, value):
    shutil.rmtree(run / lost)
    _, params, found = restore_for_eval(str(run))
    assert found == step
    np.testing.assert_array_equal(params["w"], value)


def test_evaluation_goes_past_what_is_damaged_with_a_warning(run, capsys):
    truncate(run / "best")
    truncate(run / "checkpoints" / "3")
    before = runs.content(run)
    _, params, found = restore_for_eval(str(run))
    assert found == 2 and capsys.readouterr().err.count("cannot be read") == 2
    np.testing.assert_array_equal(params["w"], 2)
    truncate(run / "checkpoints")
    with pytest.raises(
        InputError, match=r"no checkpoint of .* can be read: restore the folder, or train again in a new --workdir"
    ):
        restore_for_eval(str(run))
    assert runs.content(run).keys() == before.keys()


def test_evaluation_of_what_is_no_run_or_not_trained(run, tmp_path):
    with pytest.raises(InputError, match=r"is not a run: it has no config\.json; give the --workdir of a training run"):
        restore_for_eval(str(tmp_path / "nowhere"))
    for name in ("best", "checkpoints"):
        shutil.rmtree(run / name)
    with pytest.raises(InputError, match="has no checkpoint yet: train it first"):
        restore_for_eval(str(run))


@pytest.mark.parametrize("target", [0.0, 0.1])
def test_the_multiplier_is_part_of_a_run_that_has_one(tmp_path, target):
    """A run without a target keeps the checkpoints it always had, so that older ones are gone on from."""
    options = {
        "training__steps": 4,
        "training__checkpoint_every": 2,
        "training__eval_every": 4,
        "optimizer__warmup_steps": 1,
    }
    folder = tmp_path / "run"
    loop.fit(runs.experiment(**options, training__target_dimension=target), str(folder))
    whole = runs.state(folder, 4)
    assert set(whole["state"]) == {"step", "params", "opt_state", "rng"} | ({"multiplier"} if target else set())
    assert not target or runs.state(folder, 2)["state"]["multiplier"] > 0
    shutil.rmtree(folder / "checkpoints" / "4")
    assert loop.fit(runs.experiment(**options, training__target_dimension=target), str(folder)).finished
    jax.tree.map(np.testing.assert_array_equal, runs.state(folder, 4), whole)


def test_a_config_from_before_there_were_targets_is_gone_on_from(tmp_path):
    options = runs.experiment(
        training__steps=2, training__checkpoint_every=2, training__eval_every=2, optimizer__warmup_steps=1
    )
    loop.fit(options, str(tmp_path / "run"))
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    for key in (
        "target_dimension",
        "multiplier_rate",
        "information_weight",
        "information_bound",
        "penalty_warmup",
        "forecast_loss",
    ):
        del config["experiment"]["training"][key]
    del config["experiment"]["data"]["period"], config["experiment"]["model"]["normalize_scale"]
    path.write_text(json.dumps(config))
    assert loop.fit(options, str(tmp_path / "run")).step == 2
    assert read_experiment(str(tmp_path / "run")) == options


def test_what_a_run_said_of_its_data_before_a_key_of_tasks_was_there_has_its_default(tmp_path):
    """A run that was gone on with says it anew, and its checkpoints have it as it was."""
    task = {"kind": "language", "vocab": 5, "length": 12}
    copied = tmp_path / "checkpoints" / "3" / DATASET
    copied.parent.mkdir(parents=True)
    copied.write_text(json.dumps({"task": task}))
    checksums.seal(copied.parent)
    now = json.loads(json.dumps({"task": dataclasses.asdict(Task(**task))}))
    (tmp_path / DATASET).write_text(json.dumps(now))
    assert read_metadata(str(tmp_path)) == now
    copied.write_text(json.dumps({"task": task | {"vocab": 6}}))
    checksums.seal(copied.parent)
    with pytest.raises(InputError, match=r"dataset\.json is not what the run was trained on \(task\): restore it"):
        read_metadata(str(tmp_path))
