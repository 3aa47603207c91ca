"""Every key of the configuration at hostile values, and hostile files and folders: a run, or one message and exit code
2, in bounded time.

The whole, `pytest -m exhaustive tests/test_hostile_values.py`, takes most of an hour; a few of each kind run always.
"""

import dataclasses
import functools
import os
import pathlib
import signal
import typing

import pytest

import runs
from hostile_files import FILES, PLACES
from selssm_jax.config import Experiment, fields

CONFIG = f"--config={runs.REPOSITORY / 'configs' / 'smoke.py'}"
SHORT = [
    f"--config.training.{key}={value}"
    for key, value in {"steps": 1, "devices": 1, "log_every": 1, "eval_every": 1, "checkpoint_every": 1}.items()
]
SHORT += ["--config.optimizer.warmup_steps=0"]
SECONDS = 300  # of one case: compiling and all
WHOLE = (
    "-1",
    "0",
    "1",
    "3",
    "7",
    "50000",
    "4294967296",
    "9223372036854775808",
    "1" + "0" * 30,
    "1.5",
    "nan",
    "",
    "x",
    "None",
    "True",
    "(1,)",
)
REAL = (
    "-1",
    "-1e-9",
    "0",
    "1e-45",
    "0.5",
    "0.999",
    "1",
    "1e10",
    "1e300",
    "inf",
    "-inf",
    "nan",
    "",
    "x",
    "None",
    "(1,)",
)
WORDS = ("", "x", "None", "3", "é", "a/b", "[x]", "$HOME", "'", '"', "\n", "%s", "{}", "\\", "-", "x" * 300)
TUPLES = (
    "()",
    "(1,)",
    "(1, 2)",
    "(0,)",
    "(-1,)",
    "('x',)",
    "('selective',)",
    "('tcn', 'gru')",
    "(1.5,)",
    "(nan,)",
    "x",
    "3",
    "[",
    "((1,),)",
    "(" + "1," * 300 + ")",
    "None",
)
TRUTHS = ("True", "False", "0", "1", "2", "yes", "", "None", "nan", "(1,)")


def values_of(hint: typing.Any) -> tuple[str, ...]:
    if typing.get_origin(hint) is tuple:
        return TUPLES
    return {int: WHOLE, float: REAL, bool: TRUTHS}.get(hint, WORDS)


def cases() -> list[tuple[str, str]]:
    """(key, value) for every key of every group."""
    return [
        (key, value)
        for key, hint in keys_of(Experiment).items()
        if not key.startswith("model.task.")
        for value in values_of(hint)
    ]


def keys_of(kind: typing.Any, path: str = "") -> dict[str, typing.Any]:
    hints = {
        f"{path}{name}": typing.get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
        for name, hint in fields.list_fields(kind).items()
    }
    below = [keys_of(hint, f"{name}.") for name, hint in hints.items() if dataclasses.is_dataclass(hint)]
    return functools.reduce(
        dict.__or__,
        below,
        {name: hint for name, hint in hints.items() if not dataclasses.is_dataclass(hint) and name != "model.own"},
    )


def tried(capsys, *arguments: str) -> int:
    """Runs train.py in this process and asserts that it ends as a command should."""

    def late(number, frame):
        raise TimeoutError(f"{arguments} did not end in {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        code = runs.command("train.py", CONFIG, *SHORT, *arguments)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    told = capsys.readouterr().err
    assert code in (0, 2), (arguments, code, told)
    assert "Traceback" not in told and (code == 0 or "error: " in told), (arguments, told)
    return code


def write(place: pathlib.Path, content: bytes) -> pathlib.Path:
    place.write_bytes(content)
    return place


def test_there_are_as_many_values_and_files_as_were_tried():
    assert len(cases()) > 1481 and len(FILES) + len(PLACES) >= 300


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.seed", "1" + "0" * 30),
        ("model.d_state", "9223372036854775808"),
        ("optimizer.b1", "nan"),
        ("model.norm_epsilon", "1e300"),
        ("model.tcn.dilations", "["),
    ],
)
def test_a_few_hostile_values_are_refused(key, value, tmp_path, capsys):
    assert tried(capsys, f"--workdir={tmp_path / 'run'}", f"--config.{key}={value}") == 2


@pytest.mark.parametrize(
    "name", ["npz: pickled", "npz: claims", "csv: random", "text: empty", "npz: cut at 4", "npz: label large"]
)
def test_a_few_hostile_files_are_refused(name, tmp_path, capsys):
    source, content = FILES[name]
    place = write(tmp_path / "file", content)
    assert (
        tried(capsys, f"--workdir={tmp_path / 'run'}", f"--config.data.source={source}", f"--config.data.file={place}")
        == 2
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("key", sorted({key for key, _ in cases()}))
def test_every_key_at_every_hostile_value_is_a_run_or_a_message(key, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, value in enumerate(value for name, value in cases() if name == key):
        tried(capsys, f"--workdir={tmp_path / str(number)}", f"--config.{key}={value}")


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", FILES)
def test_every_hostile_file_is_a_run_or_a_message(name, tmp_path, capsys):
    source, content = FILES[name]
    place = write(tmp_path / "file", content)
    shape = ["--config.data.length=8", "--config.data.horizon=4"] if source == "csv" else ["--config.data.length=8"]
    tried(
        capsys, f"--workdir={tmp_path / 'run'}", f"--config.data.source={source}", f"--config.data.file={place}", *shape
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", PLACES)
def test_every_hostile_folder_is_a_run_or_a_message(name, tmp_path, capsys):
    place = tmp_path / "run"
    PLACES[name](place)
    assert tried(capsys, f"--workdir={place / 'below' if name == 'below a file' else place}") == 2
    assert os.path.lexists(place)
