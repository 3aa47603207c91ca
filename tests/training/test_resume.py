"""A killed run goes on as if nothing had happened: parameters, optimiser, order of the data and records, bit for
bit.
"""

import itertools
import os
import pathlib
import random
import re
import shlex
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

import runs
from selssm_jax.training import loop

STEPS = 240
RECIPE = runs.experiment(
    training__steps=STEPS, training__log_every=3, training__eval_every=35, training__checkpoint_every=10
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("resume") / "uninterrupted"
    assert loop.fit(RECIPE, str(workdir)).finished
    return workdir


def start(workdir: pathlib.Path) -> subprocess.Popen:
    command = runs.train_command(workdir, RECIPE)
    return subprocess.Popen(command, cwd=runs.REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def signal_at(process: subprocess.Popen, step: int, number: int) -> tuple[str, str]:
    """Sends a signal once a record of `step` or later was printed; returns (stdout, stderr) of the ended process."""
    seen = ""
    for line in process.stderr:
        seen += line
        reached = re.match(r"step (\d+)/", line)
        if reached and int(reached[1]) >= step:
            process.send_signal(number)
            break
    out, rest = process.communicate(timeout=120)
    return out, seen + rest


def assert_same_end(workdir: pathlib.Path, expected: pathlib.Path, step: int = STEPS) -> None:
    assert runs.history(workdir) == runs.history(expected)
    found, wanted = (runs.state(folder, step) for folder in (workdir, expected))
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert {key.split("/")[1] for key in runs.content(workdir / "best")} == {
        key.split("/")[1] for key in runs.content(expected / "best")
    }


def test_killed_three_times_ends_bit_equal(uninterrupted, tmp_path):
    workdir, resumed = tmp_path / "run", []
    for first in (30, 90, 160):
        process = start(workdir)
        _, errors = signal_at(process, random.Random(first).randint(first, first + 45), signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL, errors
        resumed += re.findall(r"resumed from step (\d+)", errors)
    process = start(workdir)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and f"trained {STEPS} steps" in out, errors
    resumed += re.findall(r"resumed from step (\d+)", errors)
    assert len(resumed) == 3 and 0 < int(resumed[0]) < int(resumed[1]) < int(resumed[2]) < STEPS
    assert_same_end(workdir, uninterrupted)


def test_sigterm_saves_and_names_the_command_to_go_on(uninterrupted, tmp_path):
    workdir = tmp_path / "a run"  # a name that must be quoted
    process = start(workdir)
    out, errors = signal_at(process, random.Random(0).randint(20, 120), signal.SIGTERM)
    assert process.returncode == 75, errors  # so that "train.py && eval.py" does not evaluate half a run
    stopped, command = re.search(rf"stopped at step (\d+) of {STEPS}, saved; to go on: python (.*)", out).groups()
    assert (workdir / "checkpoints" / stopped).is_dir()
    again = subprocess.run(
        [sys.executable, *shlex.split(command)],
        cwd=runs.REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert again.returncode == 0 and f"resumed from step {stopped}" in again.stderr, again.stderr
    assert_same_end(workdir, uninterrupted)


def test_a_run_in_pieces_goes_on_bit_equal(tmp_path, monkeypatch):
    """What is random is drawn for a piece by the step and the piece's number, which a resumed run counts on."""
    recipe = runs.experiment(
        training__steps=24,
        training__piece=5,
        training__eval_every=6,
        training__average=0.9,
        model__dropout=0.2,
        model__pattern=("gru", "lru"),
    )
    assert loop.fit(recipe, str(tmp_path / "uninterrupted")).finished
    for stop in (7, 9):
        asked = itertools.count()
        monkeypatch.setattr(loop.Stop, "is_requested", lambda _, asked=asked, stop=stop: next(asked) > stop)
        assert not loop.fit(recipe, str(tmp_path / "run")).finished
        monkeypatch.undo()
    assert loop.fit(recipe, str(tmp_path / "run")).finished
    assert_same_end(tmp_path / "run", tmp_path / "uninterrupted", 24)


def test_a_finished_run_started_again_changes_nothing(uninterrupted):
    before = runs.content(uninterrupted / "checkpoints"), runs.history(uninterrupted)
    outcome = loop.fit(RECIPE, str(uninterrupted))
    assert outcome.finished and outcome.step == STEPS and outcome.validation["nats"] > 0
    assert (runs.content(uninterrupted / "checkpoints"), runs.history(uninterrupted)) == before


@pytest.fixture
def told_to_ignore_nothing():
    """Signals as in a terminal: nohup and a shell's background have processes ignore some, and so they stay."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in loop.STOPPING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("told_to_ignore_nothing")
def test_a_second_signal_ends_the_process_at_once(capfd):
    before = signal.getsignal(signal.SIGINT)
    with loop.Stop() as stop:
        assert not stop.is_requested()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_requested()
        with pytest.raises(SystemExit) as ended:
            os.kill(os.getpid(), signal.SIGINT)
    assert ended.value.code == 128 + signal.SIGINT
    assert "once more" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("told_to_ignore_nothing")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_to_stop_is_remembered(number, capfd):
    """SIGHUP comes when a terminal is closed, SIGUSR1 from Slurm before a job ends; both ended the process at once."""
    with loop.Stop() as stop:
        os.kill(os.getpid(), number)
        assert stop.is_requested()
    assert "saving" in capfd.readouterr().err


def test_a_signal_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with loop.Stop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.is_requested()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
