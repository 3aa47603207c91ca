"""What breaks a run from outside, counted: kills at any moment, damage of any file, and reading while it is trained.
Minutes: -m exhaustive.
"""

import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import jax
import numpy as np
import pytest

import runs
from selssm_jax.errors import InputError
from selssm_jax.runs import open_run
from selssm_jax.training import checksums, loop
from selssm_jax.training.checkpoint import Workdir, restore_for_eval

pytestmark = pytest.mark.exhaustive
KILLS = 77
SLOWED_KILLS = 15  # most of them before anything is new, so that a run that is killed for ever gets nowhere
READS = 200
STEPS = 240
RECIPE = runs.experiment(
    training__steps=STEPS, training__log_every=5, training__eval_every=20, training__checkpoint_every=10
)

# Runs train.py where every rename into best/ takes its time.
SLOWED = """
import os, runpy, sys, time
def slow(rename):
    def renamed(source, target, **options):
        if os.path.basename(os.path.dirname(target)) == "best":
            time.sleep(0.4)
        rename(source, target, **options)
    return renamed
os.rename, os.replace = slow(os.rename), slow(os.replace)
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("breaking") / "uninterrupted"
    assert loop.fit(RECIPE, str(workdir)).finished
    return workdir


def start(workdir: pathlib.Path, *program: str) -> subprocess.Popen:
    command = [
        sys.executable,
        *(program or ["train.py"]),
        "--config",
        "configs/smoke.py",
        f"--workdir={workdir}",
        *runs.overrides(RECIPE),
    ]
    return subprocess.Popen(command, cwd=runs.REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def killed(process: subprocess.Popen, draw: random.Random) -> bool:
    """Kills a training a moment after its first steps, or lets it end where it is faster; returns whether it was
    killed.
    """
    for line in process.stderr:
        if line.startswith("step "):
            break
    time.sleep(draw.expovariate(3))
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode in (0, -signal.SIGKILL)
    return process.returncode != 0


def assert_remembered_best_is_there(workdir: pathlib.Path) -> None:
    """What the newest checkpoint calls the best can be read, or parameters that did better on validation since."""
    steps = (
        [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
        if (workdir / "checkpoints").is_dir()
        else []
    )
    if steps:
        best = runs.progress(workdir, max(steps))["best"]
        assert best is None or restore_for_eval(str(workdir))[2] >= best


def assert_same_end(workdir: pathlib.Path, expected: pathlib.Path) -> None:
    assert runs.history(workdir) == runs.history(expected)
    jax.tree.map(np.testing.assert_array_equal, runs.state(workdir, STEPS), runs.state(expected, STEPS))
    (_, params, step), (_, wanted, best) = (restore_for_eval(str(folder)) for folder in (workdir, expected))
    assert step == best
    jax.tree.map(np.testing.assert_array_equal, params, wanted)


def test_runs_killed_at_any_moment_end_bit_equal(uninterrupted, tmp_path, capsys):
    draw, kills, ended = random.Random(0), 0, 0
    while kills < KILLS:
        workdir = tmp_path / str(ended)
        while kills < KILLS and killed(start(workdir), draw):
            kills += 1
            assert_remembered_best_is_there(workdir)
        process = start(workdir)
        process.communicate(timeout=300)
        assert process.returncode == 0
        assert_same_end(workdir, uninterrupted)
        ended += 1
    with capsys.disabled():
        print(f"\n{kills} kills of {ended} runs: {ended} ended bit-equal")


def test_no_kill_leaves_a_run_that_believes_in_a_best_that_is_not_there(uninterrupted, tmp_path):
    """Every commit of best/ is slowed, so that a kill falls between it and that of the checkpoint."""
    draw, workdir, kills = random.Random(1), tmp_path / "run", 0
    while kills < SLOWED_KILLS and killed(start(workdir, "-c", SLOWED), draw):
        kills += 1
        assert_remembered_best_is_there(workdir)
    assert kills >= 3
    start(workdir, "-c", SLOWED).communicate(timeout=600)
    assert_same_end(workdir, uninterrupted)


DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "the first bit": lambda content: bytes([content[0] ^ 1, *content[1:]]) if content else None,
    "a bit in the middle": lambda content: (
        content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 4]) + content[len(content) // 2 + 1 :]
    ),
    "the last bit": lambda content: content[:-1] + bytes([content[-1] ^ 128]),
    "cut": lambda content: content[: len(content) // 2],
    "emptied": lambda _: b"",
    "another byte at the end": lambda content: content + b"\0",
    "zeros": lambda content: bytes(len(content)),
    "noise": lambda content: random.Random(len(content)).randbytes(len(content)),
    "gone": lambda _: None,
}
TRUSTED = checksums.UNLISTED - {checksums.MANIFEST}


def damaged(run: pathlib.Path) -> Iterator[tuple[pathlib.Path, str]]:
    """Every file of every checkpoint, damaged in every way: (file, damage). The run is whole again when the next is
    asked for.
    """
    for path in sorted(path for name in ("checkpoints", "best") for path in (run / name).rglob("*") if path.is_file()):
        content = path.read_bytes()
        for name, change in DAMAGE.items():
            fresh = change(content) if content or name in ("another byte at the end", "gone") else content
            if fresh == content:
                continue
            path.unlink()
            if fresh is not None:
                path.write_bytes(fresh)
            yield path, name


def test_no_damage_of_a_file_of_a_checkpoint_is_silent(tmp_path, capsys):
    run = tmp_path / "run"
    recipe = runs.experiment(training__steps=6, training__eval_every=4, training__checkpoint_every=3)
    loop.fit(recipe, str(run))
    intact = shutil.copytree(run, tmp_path / "intact")
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), runs.state(run, 6)["state"]
    )
    states = {step: runs.state(run, step)["state"] for step in (3, 6)}
    params = {step: states[step]["params"] for step in states} | {
        int(path.name): restore_for_eval(str(run))[1] for path in (run / "best").iterdir()
    }
    count, silent = 0, []
    for path, damage in damaged(run):
        count += 1
        capsys.readouterr()
        if path.is_relative_to(run / "checkpoints" / "3"):
            shutil.rmtree(run / "checkpoints" / "6")  # so that the damaged one is read
        named = path.name in TRUSTED and path.parent.name.isdigit()  # nothing is read from it
        try:
            with closing(Workdir(str(run), recipe)) as workdir:
                restored = workdir.restore(shapes)
            same = jax.tree.all(jax.tree.map(np.array_equal, restored.state, states[restored.step]))
            _, found, step = restore_for_eval(str(run))
            same &= jax.tree.all(jax.tree.map(np.array_equal, found, params[step]))
        except InputError:
            same, named = True, True
        told = capsys.readouterr().err
        named |= "cannot be read" in told or "unchecked" in told
        if not (same and named):
            silent.append(f"{path.relative_to(run)}: {damage}")
        shutil.rmtree(run)
        shutil.copytree(intact, run)
    with capsys.disabled():
        print("", f"{count} damaged files, {len(silent)} silent", *silent, sep="\n")
    assert silent == [] and count >= 464


def test_a_run_that_is_trained_is_read_at_any_moment(tmp_path, capsys):
    workdir = tmp_path / "run"
    often = runs.experiment(
        training__steps=4000,
        training__log_every=1,
        training__eval_every=2,
        training__checkpoint_every=1,
        training__keep_checkpoints=1,
    )
    command = runs.train_command(workdir, often)
    process = subprocess.Popen(
        command, cwd=runs.REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        for _ in process.stderr:
            # committed; before that there is nothing to read
            if any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*")):
                break
        # it must not wait for a reader
        drained = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
        steps = set()
        for _ in range(READS):
            steps.add(open_run(workdir).step)
            assert "cannot be read" not in (err := capsys.readouterr().err) and "lost" not in err, err
            assert process.poll() is None
        assert len(steps) > 3, "it went on meanwhile"
    finally:
        process.kill()
        process.communicate()
        drained.wait(timeout=10)
    assert os.path.isdir(workdir)
