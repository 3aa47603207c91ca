"""The runner of a sweep: every model is tuned by equally many trials, chosen on validation, and trained from several
seeds. Optuna keeps the trials.

A sweep's folder holds sweep.db, Optuna's own storage with one study a model, the run of every trial and seed as a
folder like any other, FOLDER/MODEL/trial_0, FOLDER/MODEL/seed_0, and compiled/, what XLA compiled for them. What was
interrupted goes on where it was.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import pathlib
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import optuna
from jax.experimental.compilation_cache import compilation_cache
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.pool import NullPool
from tqdm import tqdm

from selssm_jax import data
from selssm_jax.config import UNREAD, Experiment
from selssm_jax.config.fields import flatten
from selssm_jax.data import Dataset
from selssm_jax.errors import Diverged
from selssm_jax.sweep import compared_models
from selssm_jax.sweep.compared_models import Point
from selssm_jax.tasks.registry import kind_of
from selssm_jax.tasks.scores import higher_is_better, is_better
from selssm_jax.training import cluster, loop, multi_seed
from selssm_jax.training.checkpoint import check_place

DATABASE = "sweep.db"
LOG = "log.txt"  # in a run's folder: what a run alone would have said
COMPILED = "compiled"  # in the folder of prepared data: a program from a run's folder could be anyone's
SECONDS = "cpu_seconds.txt"  # in a run's folder: what it took so far
OF_A_MACHINE = ("data.local_dir", "data.cache_dir", "name")  # no part of what is computed


class Interrupted(Exception):
    """A run was asked to stop; it is saved."""


class Trial(NamedTuple):
    """One point of a grid, what it reached on validation (nothing where it diverged), and the CPU seconds that it
    took.
    """

    point: Point
    validation: dict[str, float]
    cpu_seconds: float


class Trained(NamedTuple):
    """The run of one seed at the chosen point, what it reached on validation, and its CPU seconds, those of what had to
    be compiled among them.
    """

    seed: int
    experiment: Experiment
    workdir: pathlib.Path
    validation: dict[str, float]
    cpu_seconds: float


@dataclasses.dataclass(frozen=True)
class Cell:
    """One model on one task: its trials, the point that did best on validation, and its runs."""

    model: str
    sweep: Experiment
    trials: tuple[Trial, ...]
    chosen: Point
    runs: tuple[Trained, ...]


@contextlib.contextmanager
def compiled_once(folder: pathlib.Path) -> Iterator[None]:
    """Keeps in `folder`/compiled what XLA compiles, unless JAX has a folder for that already.

    Every fit traces its step anew. Seeds, and points that start from other gate biases, come to the same program, whose
    compilation is more than half of what a short run takes on a CPU: a sweep of etth1_1 with 4 trials and 3 seeds took
    52 CPU seconds instead of 72.
    """
    folder_before, least_before = (
        jax.config.values[key] for key in ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    )
    if folder_before:
        yield
        return
    _keep_compiled(str(folder / COMPILED), 0.3)
    try:
        yield
    finally:
        _keep_compiled(folder_before, least_before)


def _keep_compiled(folder: str | None, least: float) -> None:
    """Lets JAX keep programs that took `least` seconds; it looks for the folder once, so it is told to look again."""
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
    compilation_cache.reset_cache()


def cells(experiment: Experiment, folder: pathlib.Path, models: Sequence[str]) -> Iterator[Cell]:
    """Yields the cell of every model as it is finished, with progress over the whole sweep on standard error.

    Raises:
      InputError: for what `fit` and `configure` refuse; all models are built, by their shapes, before the first is
        trained.
      Interrupted: where SIGTERM or SIGINT came; the same call goes on.
    """
    cluster.check_alone("a sweep")
    check_place(str(folder))
    dataset = data.load(experiment.data)
    for model in models:
        for point in compared_models.grid(experiment, model):
            compared_models.configure(experiment, model, point, dataset.task)
    folder.mkdir(parents=True, exist_ok=True)
    with _Progress(experiment, models) as progress:
        for model in models:
            yield _Cell(experiment, folder, model, dataset, progress).run()


class _Cell:
    """The way of one model through its trials and seeds."""

    def __init__(
        self, experiment: Experiment, folder: pathlib.Path, model: str, dataset: Dataset, progress: "_Progress"
    ) -> None:
        self.experiment, self.folder, self.model, self.task, self.progress = (
            experiment,
            folder / model,
            model,
            dataset.task,
            progress,
        )
        self.metric = kind_of(self.task).primary
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.grid, self.trial_steps = (
            compared_models.grid(experiment, model),
            experiment.sweep.trial_steps or experiment.training.steps,
        )
        self.axes: dict[str, BaseDistribution] = {
            key: CategoricalDistribution(sorted({point[key] for point in self.grid})) for key in self.grid[0]
        }
        direction = StudyDirection.MAXIMIZE if higher_is_better(self.metric) else StudyDirection.MINIMIZE
        self.study = _study(folder, f"{model} {self._identity(dataset)}", direction)

    def run(self) -> Cell:
        """Returns the cell, of which only what is missing is trained."""
        trials = tuple(self._trial(number, point) for number, point in enumerate(self.grid))
        chosen = self._best(trials).point
        return Cell(self.model, self.experiment, trials, chosen, tuple(self._seeds(chosen)))

    def _identity(self, dataset: Dataset) -> str:
        """A name for all that decides what the trials reach: another experiment, or other data, is another study."""
        points = [flatten(dataclasses.asdict(self._at(point, self.trial_steps, seed=0))) for point in self.grid]
        decides = [
            [item for item in point if item[0] not in OF_A_MACHINE and item[0].partition(".")[0] not in UNREAD]
            for point in points
        ]
        return hashlib.sha256(
            json.dumps([decides, dataset.metadata()], sort_keys=True, default=str).encode()
        ).hexdigest()[:16]

    def _trial(self, number: int, point: Point) -> Trial:
        """The trial of a point: as Optuna has it, else trained now."""
        name, found = f"trial_{number}", self.study.get_trials(states=(TrialState.COMPLETE,))
        done = next((trial for trial in found if trial.params == point), None) or self._try_point(name, point)
        validation = done.user_attrs["validation"]
        self.progress.note_run(
            self.model,
            name,
            point,
            self.trial_steps,
            f"{self.metric} {validation[self.metric]:.4g}" if validation else "diverged",
        )
        return Trial(point, validation, done.user_attrs["cpu_seconds"])

    def _try_point(self, name: str, point: Point) -> FrozenTrial:
        """Trains at a point and tells Optuna, a failure where training did not end. A run that diverged counts as the
        worst there is.

        A trial is told whole, when it is there: a kill leaves neither a point that waits nor one that runs for ever.
        """
        try:
            validation, seconds = self._read_trial(self._at(point, self.trial_steps, seed=0), self.folder / name)
        except BaseException:
            self.study.add_trial(create_trial(state=TrialState.FAIL, params=point, distributions=self.axes))
            raise
        value = validation.get(self.metric, float("-inf" if higher_is_better(self.metric) else "inf"))
        reached = create_trial(
            params=point,
            distributions=self.axes,
            value=value,
            user_attrs={"validation": validation, "cpu_seconds": seconds},
        )
        self.study.add_trial(reached)
        return reached

    def _read_trial(self, experiment: Experiment, workdir: pathlib.Path) -> tuple[dict[str, float], float]:
        """The validation of a trial, none where it diverged, and its seconds."""
        start = time.process_time()
        try:
            (outcome,), seconds = _train([experiment], [workdir])
        except Diverged:
            return {}, round(time.process_time() - start, 1)
        return outcome.kept, seconds

    def _best(self, trials: Sequence[Trial]) -> Trial:
        """The first of the trials that did best on validation. Raises Diverged where none has a score."""
        scored = [trial for trial in trials if trial.validation]
        if not scored:
            raise Diverged(
                f"every trial of {self.model!r} diverged: lower sweep.learning_rates, found "
                f"{self.experiment.sweep.learning_rates}"
            )
        best = scored[0]
        for trial in scored[1:]:
            best = (
                trial if is_better(self.metric, trial.validation[self.metric], best.validation[self.metric]) else best
            )
        return best

    def _seeds(self, chosen: Point) -> Iterator[Trained]:
        """The runs of all seeds: by one step on an accelerator; on a CPU, where that is no faster, one by one, so that
        each comes out again bit for bit.
        """
        seeds, steps = range(self.experiment.sweep.seeds), self.experiment.training.steps
        for group in [[seed] for seed in seeds] if jax.default_backend() == "cpu" else [seeds]:
            experiments, workdirs = (
                [self._at(chosen, steps, seed=seed) for seed in group],
                [self.folder / f"seed_{seed}" for seed in group],
            )
            outcomes, seconds = _train(experiments, workdirs)
            for seed, experiment, workdir, outcome in zip(group, experiments, workdirs, outcomes, strict=True):
                self.progress.note_run(
                    self.model, workdir.name, chosen, steps, f"{self.metric} {outcome.kept[self.metric]:.4g}"
                )
                yield Trained(seed, experiment, workdir, outcome.kept, seconds)

    def _at(self, point: Point, steps: int, *, seed: int) -> Experiment:
        found = compared_models.configure(self.experiment, self.model, point, self.task)
        training = dataclasses.replace(found.training, steps=steps, seed=seed)
        warmup = min(found.optimizer.warmup_steps, steps // 5)
        optimizer = dataclasses.replace(found.optimizer, warmup_steps=warmup)
        return dataclasses.replace(
            found, training=training, optimizer=optimizer, data=dataclasses.replace(found.data, seed=seed)
        )


def _train(experiments: Sequence[Experiment], workdirs: Sequence[pathlib.Path]) -> tuple[list[loop.Outcome], float]:
    """Trains runs, several of them by one step; returns how they ended, and the CPU seconds that each took, those
    before an interruption among them.

    Raises:
      Interrupted: where a signal came. Diverged: for a loss that is not finite.
    """
    for workdir in workdirs:
        workdir.mkdir(parents=True, exist_ok=True)
    start = time.process_time()
    with (workdirs[0] / LOG).open("a") as log, contextlib.redirect_stderr(log):
        paths = [str(workdir) for workdir in workdirs]
        outcomes = multi_seed.fit_seeds(experiments, paths) if len(paths) > 1 else [loop.fit(experiments[0], paths[0])]
    seconds = [_add_to_file(workdir / SECONDS, (time.process_time() - start) / len(workdirs)) for workdir in workdirs]
    if not all(outcome.finished for outcome in outcomes):
        raise Interrupted(f"stopped in {workdirs[0].parent}, saved")
    return outcomes, round(max(seconds), 1)


def _add_to_file(path: pathlib.Path, seconds: float) -> float:
    """Adds to the number that a file holds, and returns it."""
    total = seconds + (float(path.read_text()) if path.is_file() else 0.0)
    path.write_text(f"{total:.3f}\n")
    return total


def _study(folder: pathlib.Path, name: str, direction: StudyDirection) -> optuna.Study:
    """The study of a name, made where it is not there yet. Sweeps that start in one moment wait for each other: Optuna
    makes its tables without a lock.
    """
    with (folder / ".lock").open("w") as held:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(held, fcntl.LOCK_EX)
        return optuna.create_study(storage=storage(folder), study_name=name, direction=direction, load_if_exists=True)


def storage(folder: pathlib.Path) -> RDBStorage:
    """Returns the trials of a sweep's folder, which may have any name: in an address, "?" and "%" would lead elsewhere,
    by SQLAlchemy's version.

    No connection outlives its question: one that waits in a pool is closed by nobody.
    """
    connect = partial(sqlite3.connect, folder / DATABASE, check_same_thread=False)
    return RDBStorage(f"sqlite:///{DATABASE}", engine_kwargs={"creator": connect, "poolclass": NullPool})


class _Progress:
    """A bar over the steps of all trials and seeds of a sweep on a terminal, and a line for each that is there."""

    def __init__(self, experiment: Experiment, models: Sequence[str]) -> None:
        sweep, steps = experiment.sweep, experiment.training.steps
        total = len(models) * (sweep.trials * (sweep.trial_steps or steps) + sweep.seeds * steps)
        self._runs, self._passed = len(models) * (sweep.trials + sweep.seeds), 0
        self._bar = tqdm(
            total=total,
            unit="step",
            desc=experiment.name,
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
            smoothing=0,
        )
        self._start = time.monotonic()

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def note_run(self, model: str, name: str, point: Point, steps: int, score: str) -> None:
        """Says that a run is there."""
        self._passed += 1
        self._bar.update(steps)
        at = ", ".join(f"{key.partition('.')[2]} {value:g}" for key, value in point.items())
        minutes = (time.monotonic() - self._start) / 60
        self._bar.write(
            f"{self._passed}/{self._runs}  {minutes:5.1f} min  {model} {name}  {at}: {score}", file=sys.stderr
        )
