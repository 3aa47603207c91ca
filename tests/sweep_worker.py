"""A worker of a sweep in a process of its own, whose trials take a moment and no training: `python sweep_worker.py
FOLDER NAME LAST`. It sweeps once for each storage of `STORAGES`; the worker LAST hangs in its first trial of the last.
"""

import dataclasses
import pathlib
import sys
import time

import runs
from selssm_jax.config import Experiment, Sweep
from selssm_jax.sweep import runner
from selssm_jax.training import loop

STORAGES = {"file": "", "journal": "trials.log"}
TRIALS, SEEDS, MOMENT, MODEL = 6, 2, 0.2, "gru"


def recipe(storage: str = "", trials: int = TRIALS, **keys: object) -> Experiment:
    """Returns a sweep of one model; keys of `sweep`."""
    options = {"models": (MODEL,), "trials": trials, "seeds": SEEDS, "sizes": (1.0,), "storage": storage} | keys
    steps = runs.experiment(training__steps=40, training__eval_every=10)
    return dataclasses.replace(steps, sweep=Sweep(**options))


def score(experiment: Experiment, workdir: str) -> loop.Outcome:
    """In place of a training: a score that says the point."""
    del workdir
    return loop.Outcome(1, finished=True, validation={}, kept={"nats": experiment.optimizer.peak_rate})


def read_calls(folder: pathlib.Path) -> list[list[str]]:
    """Returns the worker and the run of every training in a sweep's folder."""
    path = folder / "calls.txt"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def work(folder: pathlib.Path, name: str, last: bool) -> None:
    """Sweeps with each storage, beginning when the other worker does."""

    def fit(experiment: Experiment, workdir: str) -> loop.Outcome:
        run = pathlib.Path(workdir)
        with (run.parent.parent / "calls.txt").open("a") as calls:
            calls.write(f"{name} {run.name}\n")
        time.sleep(3600 if last and run.parent.parent.name == [*STORAGES][-1] else MOMENT)
        return score(experiment, workdir)

    loop.fit = fit
    for place, storage in STORAGES.items():
        (folder / place).mkdir(exist_ok=True)
        (folder / place / f"{name}.ready").touch()
        while len([*(folder / place).glob("*.ready")]) < 2:
            time.sleep(0.02)
        path = storage and str(folder / storage)
        (cell,) = runner.cells(recipe(path), folder / place, [MODEL])
        assert len(cell.trials) == TRIALS and len(cell.runs) == SEEDS


if __name__ == "__main__":
    work(pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[2] == sys.argv[3])
