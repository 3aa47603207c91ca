"""What a person may do wrong with train.py: one message that names the thing and the fix, exit code 2, nothing lost.

What may go wrong with eval.py is in the same form in tests/report/test_eval.py, and with the page of the paper in
tests/experiments/test_paper.py.
"""

import dataclasses
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest

import runs
from selssm_jax.training import loop

SMOKE = f"--config={runs.REPOSITORY / 'configs' / 'smoke.py'}"
SHORT = {"training__steps": 8, "training__log_every": 2, "training__eval_every": 4, "training__checkpoint_every": 4}
TABLE = "\n".join(["x,y", *(f"{index}.5,{-index}" for index in range(60))]) + "\n"


@dataclasses.dataclass(frozen=True)
class Mistake:
    """Arguments after --config=configs/smoke.py, and what the message must say; {files} is a folder of bad files."""

    arguments: tuple[str, ...]
    says: tuple[str, ...]


def data(source: str, file: str, *arguments: str) -> tuple[str, ...]:
    return (f"--config.data.source={source}", f"--config.data.file={{files}}/{file}", *arguments)


SETTINGS = {
    "unknown key": Mistake(
        ("--config.model.d_sate=4",), ("config.model has no key 'd_sate'", "did you mean 'd_state'")
    ),
    "an own key that nothing registers": Mistake(
        ("--config.model.own.average.scale=2",), ("config.model.own has no key 'average'", "--extend")
    ),
    "unknown group": Mistake(("--config.modle.d_state=4",), ("'modle'", "did you mean 'model'")),
    "a group as a value": Mistake(("--config.model=4",), ("config.model is a group of keys", "--config.model.")),
    "wrong type": Mistake(("--config.model.d_state=many",), ("d_state='many'", "whole number", "for example")),
    "a fraction for a whole number": Mistake(
        ("--config.training.steps=1.5",), ("steps='1.5'", "whole number", "for example")
    ),
    "a word for a number": Mistake(
        ("--config.optimizer.peak_rate=high",), ("peak_rate='high'", "a number", "for example")
    ),
    "a word for a truth": Mistake(("--config.data.augment=maybe",), ("augment='maybe'", "True or False")),
    "no state": Mistake(("--config.model.d_state=0",), ("model.d_state=0", "at least 1")),
    "unknown choice": Mistake(
        ("--config.model.selective.gate=sigmod",), ("model.selective.gate='sigmod'", "did you mean 'sigmoid'")
    ),
    "unknown source": Mistake(("--config.data.source=etth3",), ("data.source='etth3'", "did you mean 'etth1'")),
    "unknown mixer": Mistake(("--config.model.pattern=('selectiv',)",), ("'selectiv'", "did you mean 'selective'")),
    "dropout of everything": Mistake(("--config.model.dropout=1.0",), ("model.dropout=1.0", "from 0.0 to 0.999")),
    "negative seed": Mistake(("--config.data.seed=-1",), ("data.seed=-1", "at least 0")),
    "only warm-up": Mistake(
        ("--config.optimizer.warmup_steps=60",),
        ("optimizer.warmup_steps=60", "training.steps=60", "fewer warm-up steps"),
    ),
    "micro-batches of unequal size": Mistake(
        ("--config.optimizer.accumulate=3",), ("data.batch_size=8", "optimizer.accumulate=3", "a multiple")
    ),
    "top-k gates without a k": Mistake(
        ("--config.model.selective.gate=top_k",),
        ("model.selective.gate_active=0", "model.selective.gate='top_k'", "from 1 to"),
    ),
    "L0 of a gate without one": Mistake(
        ("--config.training.gate_l0=1.0",), ("training.gate_l0", "'sigmoid'", "use 'hard_concrete'")
    ),
    "a rate without noise": Mistake(
        ("--config.training.information_weight=0.1",),
        ("training.information_weight=0.1", "model.selective.process_noise=0.0", "use for example"),
    ),
    "a target below the floor": Mistake(
        ("--config.training.target_dimension=0.1", "--config.model.selective.gate_floor=0.2"),
        ("training.target_dimension=0.1", "model.selective.gate_floor=0.2", "raise the target"),
    ),
    "a warm-up of nothing": Mistake(
        ("--config.training.penalty_warmup=5",), ("training.penalty_warmup=5", "no penalty", "gate_l1")
    ),
    "rows that devices cannot share": Mistake(
        ("--config.data.batch_size=6", "--config.training.devices=4"),
        ("data.batch_size", "6", "4 devices", "a multiple of 4"),
    ),
    "more devices than there are": Mistake(
        ("--config.training.devices=64",), ("training.devices=64", "4 cpu device(s)", "0 for all")
    ),
    "a key that nothing reads": Mistake(
        ("--config.model.attention.heads=8",), ("model.attention.heads is read by", "model.pattern", "leave it out")
    ),
    "a seed of more than 32 bits": Mistake(
        ("--config.training.seed=9223372036854775808",), ("training.seed=9223372036854775808", "at most 4294967295")
    ),
    "more than there is memory for": Mistake(
        ("--config.data.batch_size=800000000000",), ("this needs at least", "data.batch_size=800000000000")
    ),
    "a gate that closes, with a rate": Mistake(
        (
            "--config.training.information_weight=0.1",
            "--config.model.selective.process_noise=0.3",
            "--config.model.selective.gate=binary",
        ),
        ("'binary' can be exactly 0", "gate_floor"),
    ),
    "unknown flag": Mistake(("--wrkdir=x",), ("wrkdir", "--help")),
    "no flag": Mistake(("quickstart",), ("'quickstart' is no flag", "--name=value")),
}
FILES = {
    "no file named": Mistake(("--config.data.source=text",), ("data.file is empty", "set data.file")),
    "missing file": Mistake(data("text", "absent.txt"), ("absent.txt", "No such file", "existing file")),
    "a folder as a file": Mistake(
        data("text", "."), ("data.file", "it is a folder, expected a regular file", "existing file")
    ),
    "empty text": Mistake(data("text", "empty"), ("empty is empty", "give a text")),
    "text that is not UTF-8": Mistake(data("text", "latin1.txt"), ("latin1.txt is not UTF-8", "line 2", "iconv")),
    "text shorter than a window": Mistake(
        data("text", "short.txt"), ("short.txt", "data.length=16", "a longer text or a shorter data.length")
    ),
    "empty table": Mistake(data("csv", "empty"), ("empty is empty", "one row a time step")),
    "ragged table": Mistake(data("csv", "ragged.csv"), ("ragged.csv line 4 has 3 cells", "has 2", "the same columns")),
    "NaN in a table": Mistake(
        data("csv", "nan.csv"), ("nan.csv line 5 column 2", "'nan'", "finite number", "drop the row")
    ),
    "a word in a table": Mistake(data("csv", "word.csv"), ("word.csv line 6 column 1", "'n/a'", "finite number")),
    "a table with nothing in it": Mistake(
        data("csv", "header.csv"), ("header.csv has no numbers below its header", "one row a time step")
    ),
    "a table shorter than the lookback": Mistake(
        data("csv", "table.csv", "--config.data.length=48"),
        ("table.csv has 42 rows", "data.length=48", "data.horizon=96", "shorten them"),
    ),
    "no NPZ": Mistake(data("npz", "table.csv"), ("table.csv", "NPZ", "numpy.savez")),
    "signals without labels": Mistake(data("npz", "unlabelled.npz"), ("['signal']", "expected 'label'")),
    "labels that are no numbers": Mistake(data("npz", "named.npz"), ("'label'", "<U3", "whole number from 0")),
    "labels out of range": Mistake(data("npz", "range.npz"), ("labels from -1 to 2", "expected 0 to", "renumber them")),
    "fewer labels than signals": Mistake(data("npz", "fewer.npz"), ("12 signals and 11 labels", "one label for each")),
    "NaN in a signal": Mistake(data("npz", "nan.npz"), ("'signal' holds nan at [3, 2, 0]", "fill it in or drop")),
    "a split that is none": Mistake(data("npz", "split.npz"), ("'split'", "0 (training), 1 (validation) or 2 (test)")),
    "a folder without the data": Mistake(
        ("--config.data.source=tiny_shakespeare", "--config.data.local_dir={files}/nothing"),
        ("tinyshakespeare", "nothing"),
    ),
    "another file than the published": Mistake(
        ("--config.data.source=etth1", "--config.data.local_dir={files}/changed"),
        ("ETTh1.csv is not the published file", "sha256", "fetch it again"),
    ),
    "data that has no public origin": Mistake(
        ("--config.data.source=weather", "--config.data.cache_dir={files}/cache"),
        ("no stable public address", "set data.local_dir"),
    ),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with the files that FILES names."""
    folder = tmp_path_factory.mktemp("files")
    for name in ("nothing", "changed"):
        (folder / name).mkdir()
    lines = TABLE.splitlines()
    texts = {
        "empty": "",
        "short.txt": "to be\n",
        "table.csv": TABLE,
        "ragged.csv": "\n".join([*lines[:3], "1,2,3", *lines[4:]]),
        "nan.csv": "\n".join([*lines[:4], "1,nan", *lines[5:]]),
        "word.csv": "\n".join([*lines[:5], "n/a,1", *lines[6:]]),
        "header.csv": "x,y\n",
        "changed/ETTh1.csv": TABLE,
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "latin1.txt").write_bytes(b"caf\xc3\xa9\ncaf\xe9\n")
    write_signals(folder)
    return folder


def write_signals(folder: pathlib.Path) -> None:
    signal, label = np.zeros((12, 20, 1), np.float32), np.arange(12) % 3
    spoiled = signal.copy()
    spoiled[3, 2] = np.nan
    np.savez(folder / "unlabelled.npz", signal=signal)
    np.savez(folder / "named.npz", signal=signal, label=np.array(["one", "two"] * 6))
    np.savez(folder / "range.npz", signal=signal, label=label - np.eye(12, dtype=int)[0])
    np.savez(folder / "fewer.npz", signal=signal, label=label[1:])
    np.savez(folder / "nan.npz", signal=spoiled, label=label)
    np.savez(folder / "split.npz", signal=signal, label=label, split=np.full(12, 3))


def refuse(capsys, *arguments: str, says: tuple[str, ...]) -> None:
    """Runs train.py and asserts that it ends with one message, which says this."""
    assert runs.command("train.py", *arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err and sum(line.startswith("error: ") for line in err.splitlines()) == 1, (
        err
    )
    for words in says:
        assert words in err, err


@pytest.mark.parametrize("name", [*SETTINGS, *FILES])
def test_a_mistake_is_one_message_before_anything_is_written(name, files, tmp_path, capsys):
    mistake = (SETTINGS | FILES)[name]
    refuse(
        capsys,
        SMOKE,
        f"--workdir={tmp_path / 'run'}",
        *(argument.format(files=files) for argument in mistake.arguments),
        says=mistake.says,
    )
    assert list(tmp_path.iterdir()) == [], "a folder of a run that never was"


CONFIGS = {
    "no config": (None, ("--config is missing", "train.py --config quickstart")),
    "no such config": ("", ("there is no config file", "known:")),
    "not Python": ("def get_config(:\n", ("cannot be loaded", "SyntaxError")),
    "no get_config": ("steps = 3\n", ("there is no function get_config",)),
    "another type": ("def get_config():\n    return {'steps': 3}\n", ("returned {'steps': 3}", "to_config_dict()")),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_file_that_is_none(name, tmp_path, capsys):
    text, says = CONFIGS[name]
    if text:
        (tmp_path / "mine.py").write_text(text)
    refuse(capsys, *([] if text is None else [f"--config={tmp_path / 'mine.py'}"]), says=says)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a short run, finished."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    assert loop.fit(runs.experiment(**SHORT), str(workdir)).finished
    return workdir


def newer(run: pathlib.Path) -> None:
    found = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(found | {"format": 99}))


def truncated(run: pathlib.Path) -> None:
    for path in (run / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])


def other_data(run: pathlib.Path) -> None:
    found = json.loads((run / "dataset.json").read_text())
    (run / "dataset.json").write_text(json.dumps(found | {"source": "induction_heads"}))


def unchanged(run: pathlib.Path) -> None:
    pass


RUNS = {
    "of another config": (
        unchanged,
        ("--config.model.d_state=16",),
        ("holds another experiment's run (model.d_state: 8 there, 16 now)", "new --workdir"),
    ),
    "of more steps": (unchanged, ("--config.training.steps=6",), ("training.steps=6", "already taken 8", "use more")),
    "of a newer version": (newer, (), ("newer version (format 99", "upgrade selssm_jax")),
    "with a damaged config.json": (
        lambda run: (run / "config.json").write_text("{"),
        (),
        ("config.json is damaged", "restore it"),
    ),
    "with truncated checkpoints": (
        truncated,
        (),
        ("no checkpoint in", "can be read", "restore the folder", "new --workdir"),
    ),
    "on other data": (other_data, (), ("the data changed", "source", "bring back the old data")),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_cannot_go_on_is_left_as_it_is(name, trained, tmp_path, capsys):
    damage, arguments, says = RUNS[name]
    run = shutil.copytree(trained, tmp_path / "run")
    damage(run)
    before = runs.content(run)
    again = (f"--{'config.' + key.replace('__', '.')}={value}" for key, value in SHORT.items())
    refuse(capsys, SMOKE, f"--workdir={run}", "--config.training.devices=1", *again, *arguments, says=says)
    assert runs.content(run) == before


@pytest.mark.parametrize(
    ("place", "says"), [("file", "File exists"), ("file/below", "Not a directory"), ("/proc/run", "No such file")]
)
def test_a_workdir_that_cannot_be_written(place, says, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    refuse(
        capsys,
        SMOKE,
        f"--workdir={tmp_path / place}",
        says=("--workdir", "cannot be written", says, "choose another folder"),
    )
    assert (tmp_path / "file").read_text() == "mine"


def test_files_that_may_not_grow_end_the_run_and_the_last_good_checkpoint_is_named(trained, tmp_path):
    """The kernel itself refuses the write. Orbax's threads may add their own words around the message, on its line
    too.
    """
    run = shutil.copytree(trained, tmp_path / "run")
    kept = runs.content(run / "checkpoints" / "8")
    arguments = [
        str(runs.REPOSITORY / "train.py"),
        SMOKE,
        f"--workdir={run}",
        *runs.overrides(runs.experiment(**SHORT | {"training__steps": 12})),
    ]
    limited = f"ulimit -f 4 && exec {shlex.join([sys.executable, *arguments])}"
    # What this process compiles must not be kept: it would be half of a program, for the tests after it to read.
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(
        ["bash", "-c", limited], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert re.search(
        r"error: .*/run could not be written, .*: mend that and run the same command again; the last good checkpoint "
        r"is step 8",
        done.stderr,
    )
    assert runs.content(run / "checkpoints" / "8") == kept
