"""Which data a run is opened with: its own file is known by its content, another is read whole, and a stranger's paths
are never followed.
"""

import json
import pathlib
import shutil

import numpy as np
import pytest

from runs import command, experiment
from selssm_jax.analysis import rate_sweep
from selssm_jax.config import Data
from selssm_jax.data import provenance
from selssm_jax.errors import InputError
from selssm_jax.runs import _find_source, open_run
from selssm_jax.sweep import command as sweep
from selssm_jax.training import checkpoint
from selssm_jax.training.checkpoint import Workdir


def change(workdir, **data):
    """Changes what config.json says of the run's data, as anyone can who passes a run on."""
    path = workdir / "config.json"
    values = json.loads(path.read_text())
    values["experiment"]["data"] |= data
    path.write_text(json.dumps(values))


def size(run, split):
    return sum(int(batch["weights"].sum()) for batch in run.dataset.evaluate(split, 4))


@pytest.mark.parametrize("source", ["text", "csv", "npz"])
def test_another_file_is_read_whole_and_needs_no_training_file(untrained, files, tmp_path, source):
    workdir = untrained(source)
    other = tmp_path / pathlib.Path(files[source].file).name
    shutil.copy(files[source].file, other)
    own = open_run(workdir, file=str(other))
    assert own.split == "test"  # the same content at another place is the run's own data
    whole = open_run(workdir, file=str(longer(other)))
    assert whole.split == "whole" and size(whole, "whole") > sum(size(own, split) for split in ("validation", "test"))
    assert whole.dataset.reading.startswith(f"{other}: read ")
    change(workdir, file=str(tmp_path / "absent"))
    assert open_run(workdir, file=str(other)).split == "whole"


def longer(path):
    """Adds a little to a file, so that it is another."""
    if path.suffix == ".npz":
        arrays = dict(np.load(path))
        np.savez(path, signal=np.concatenate([arrays["signal"]] * 2), label=np.concatenate([arrays["label"]] * 2))
    else:
        path.write_text(path.read_text() + ("day 200,0.5,10.0\n" if path.suffix == ".csv" else "the state\n"))
    return path


def test_a_file_too_small_for_splits_can_be_evaluated_whole(untrained, tmp_path):
    (tmp_path / "few.csv").write_text("sine,cosine\n" + "".join(f"{i / 9:.3f},{10 - i / 9:.3f}\n" for i in range(24)))
    run = open_run(untrained("csv"), file=str(tmp_path / "few.csv"))
    assert size(run, "whole") == 1 and list(run.dataset.baselines("whole")) == ["repeat last"]
    with pytest.raises(InputError, match=r"the test split of .*few\.csv is too small for one example"):
        open_run(run.workdir, file=str(tmp_path / "few.csv"), split="test")


@pytest.mark.parametrize("source", ["text", "csv", "npz"])
def test_a_file_that_only_a_stranger_names_is_never_opened(untrained, tmp_path, source, monkeypatch):
    workdir = untrained(source)
    secret = tmp_path / "secret.txt"
    secret.write_text("what nobody should see\n" * 100)
    change(workdir, file=str(secret))
    opened = []
    plain = pathlib.Path.open
    monkeypatch.setattr(
        pathlib.Path, "open", lambda path, *args, **options: opened.append(path.name) or plain(path, *args, **options)
    )
    with pytest.raises(
        InputError, match=r"was trained on a file of someone's, 'secret.txt', .*name it yourself, --file=PATH"
    ):
        open_run(workdir)
    with pytest.raises(InputError, match=r"was trained on a file of someone's"):
        rate_sweep.measure(0.0, workdir)
    assert "secret.txt" not in opened


def test_folders_that_only_a_stranger_names_are_neither_read_nor_written(untrained, tmp_path, capsys):
    theirs = Data(source="tiny_shakespeare", local_dir=str(tmp_path / "theirs"), cache_dir=str(tmp_path / "cache"))
    found = _find_source(untrained("text"), theirs, "", "", examples=True)
    assert (found.local_dir, found.cache_dir) == ("", "") and "are not followed" in capsys.readouterr().err
    named = _find_source(tmp_path / "run", theirs, "", str(tmp_path / "mine"), examples=True)
    assert (named.local_dir, named.cache_dir) == (str(tmp_path / "mine"), "")


def test_the_seal_is_of_one_user_and_all_places(files, tmp_path, monkeypatch):
    mine = provenance.seal(files["csv"])
    assert provenance.intact(files["csv"], mine) and not provenance.intact(files["text"], mine)
    assert not provenance.intact(files["csv"], None) and not provenance.intact(files["csv"], "0" * 64)
    monkeypatch.setenv("SELSSM_DATA_DIR", str(tmp_path / "another user"))
    assert not provenance.intact(files["csv"], mine)
    assert (tmp_path / "another user" / "secret").stat().st_mode & 0o077 == 0


def test_a_run_whose_own_file_has_changed_is_refused(untrained, files, tmp_path):
    path = tmp_path / "mine.csv"
    shutil.copy(files["csv"].file, path)
    workdir = untrained("csv", file=str(path))
    assert open_run(workdir).split == "test"
    longer(path)
    with pytest.raises(InputError, match=r"mine\.csv is not what the run was trained on, it has changed"):
        open_run(workdir)


def test_a_run_goes_on_with_its_file_at_another_place(untrained, files, tmp_path):
    path = tmp_path / "moved.csv"
    shutil.copy(files["csv"].file, path)
    workdir = untrained("csv")
    config = checkpoint.read_experiment(str(workdir))
    moved = type(config).from_dict(
        json.loads(config.to_json()) | {"data": json.loads(config.to_json())["data"] | {"file": str(path)}}
    )
    folder = Workdir(str(workdir), moved)
    folder.describe(open_run(workdir, file=str(path)).dataset.metadata())
    folder.close()
    assert open_run(workdir).experiment.data.file == str(path)


def test_writing_on_needs_no_data_at_all(untrained, files, tmp_path, capsys):
    path = tmp_path / "mine.txt"
    shutil.copy(files["text"].file, path)
    workdir = untrained("text", file=str(path))
    path.unlink()
    assert command("eval.py", f"--workdir={workdir}", "--generate=the state", "--tokens=3") == 0
    assert capsys.readouterr().out.startswith("the state")


def test_programs_are_not_taken_from_the_folder_of_a_sweep(tmp_path, data_cache, monkeypatch):
    asked = []

    def compiled_once(folder):
        asked.append(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep.runner, "compiled_once", compiled_once)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(
            experiment(), str(tmp_path), config="configs/smoke.py", base=experiment().to_config_dict(), models=["gru"]
        )
    assert asked == [data_cache]
