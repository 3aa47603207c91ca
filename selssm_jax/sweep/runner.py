"""The runner of a sweep: every model is tuned by equally many trials, chosen on validation, and trained from several
seeds. Optuna keeps the trials.

A sweep's folder holds sweep.db, Optuna's own storage with one study a model, the run of every trial and seed as a
folder like any other, FOLDER/MODEL/trial_0, FOLDER/MODEL/seed_0, and compiled/, what XLA compiled for them. What was
interrupted goes on where it was. Several processes that are started with the same folder share the work.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import pathlib
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from tqdm import tqdm

from selssm_jax import data
from selssm_jax.config import UNREAD, Experiment
from selssm_jax.config.fields import flatten
from selssm_jax.data import Dataset
from selssm_jax.errors import Diverged, InputError
from selssm_jax.sweep import compared_models
from selssm_jax.sweep.compared_models import RATE, Point
from selssm_jax.sweep.locks import LOCK, try_hold
from selssm_jax.sweep.shared_study import Claim, SharedStudy, open_study
from selssm_jax.sweep.storage import open_storage
from selssm_jax.tasks.registry import kind_of
from selssm_jax.tasks.scores import higher_is_better, is_better
from selssm_jax.training import cluster, loop, multi_seed
from selssm_jax.training.checkpoint import CONFIG, check_place, differing, read_experiment

LOG = "log.txt"  # in a run's folder: what a run alone would have said
COMPILED = "compiled"  # in the folder of prepared data: a program from a run's folder could be anyone's
SECONDS = "cpu_seconds.txt"  # in a run's folder: what it took so far
WAIT = 0.5  # seconds between two looks at what other workers do
# what a run may change on its way, but not one of a sweep: it would not come out again by the command in its record
UNCHANGED = ("data.batch_size", "optimizer.accumulate", "training.patience", "training.skip_nonfinite")
OF_A_MACHINE = ("data.local_dir", "data.cache_dir", "name")  # no part of what is computed


class Interrupted(Exception):
    """A run was asked to stop; it is saved."""


class Pruned(Exception):
    """A trial is hopeless: its last step, and what it reached there."""

    def __init__(self, step: int, validation: dict[str, float]) -> None:
        super().__init__(f"pruned at step {step}")
        self.step, self.validation = step, validation


class Trial(NamedTuple):
    """One point of a grid, what it reached on validation (nothing where it diverged), the CPU seconds that it took, and
    its last step if it was pruned there.
    """

    point: Point
    validation: dict[str, float]
    cpu_seconds: float
    pruned_at: int | None = None


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
    _check_pruner(experiment)
    dataset = data.load(experiment.data)
    for model in models:
        for point in compared_models.grid(experiment, model):
            compared_models.configure(experiment, model, point, dataset.task)
    storage = _open_storage(experiment, folder)
    with _Progress(experiment, models) as progress:
        queue = deque(_Cell(experiment, folder, model, dataset, progress, storage) for model in models)
        while queue:
            cell = queue.popleft()
            finished = cell.advance()
            if finished:
                yield finished
            else:
                queue.append(cell)
                progress.note_wait()
                _wait(folder)


def _open_storage(experiment: Experiment, folder: pathlib.Path) -> BaseStorage:
    """The storage of a sweep, whose folder is made; a sweep that is refused leaves none behind."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return open_storage(experiment.sweep.storage, folder)
    except InputError:
        if [path.name for path in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
            folder.rmdir()
        raise


def _check_pruner(experiment: Experiment) -> None:
    sweep, every = experiment.sweep, experiment.training.eval_every
    steps = sweep.trial_steps or experiment.training.steps
    if sweep.pruner != "none" and every >= steps:
        raise InputError(
            f"sweep.pruner={sweep.pruner!r} decides by validations before the last step, but training.eval_every="
            f"{every} leaves none in trials of {steps} steps: lower training.eval_every, or use 'none'"
        )


def _wait(folder: pathlib.Path) -> None:
    """Waits a moment for other workers. Raises Interrupted where a signal came."""
    until = time.monotonic() + WAIT
    with loop.Stop() as stop:
        while time.monotonic() < until and not stop.is_requested():
            time.sleep(WAIT / 10)
    if stop.is_requested():
        raise Interrupted(f"stopped in {folder}, where other workers go on")


class _Cell:
    """The way of one model through its trials and seeds."""

    def __init__(
        self,
        experiment: Experiment,
        folder: pathlib.Path,
        model: str,
        dataset: Dataset,
        progress: "_Progress",
        storage: BaseStorage,
    ) -> None:
        self.experiment, self.folder, self.model, self.task, self.progress = (
            experiment,
            folder / model,
            model,
            dataset.task,
            progress,
        )
        self.metric = kind_of(self.task).primary
        self.trial_steps = experiment.sweep.trial_steps or experiment.training.steps
        grid = compared_models.grid(experiment, model)
        low, high = map(compared_models.round_rate, experiment.sweep.learning_rates)
        self.axes: dict[str, BaseDistribution] = {
            key: CategoricalDistribution(sorted({point[key] for point in grid})) for key in grid[0] if key != RATE
        } | {RATE: FloatDistribution(low, high, log=True)}
        direction = StudyDirection.MAXIMIZE if higher_is_better(self.metric) else StudyDirection.MINIMIZE
        study = open_study(
            storage, folder, f"{model} {self._identify(dataset, grid)}", direction, _build_pruner(experiment)
        )
        self.study = SharedStudy(study, folder, model, partial(self._plan, tuple(grid[0])))
        self._trials: dict[int, Trial] = {}
        self._runs: dict[int, Trained] = {}

    def advance(self) -> Cell | None:
        """Trains what no other worker has trained or trains; returns the cell where all of it is there."""
        while claim := self.study.claim(self.axes):
            self._try_point(claim)
            self._collect()
        self._collect()
        if len(self._trials) < len(self.study.points):
            return None
        trials = tuple(self._trials[number] for number in range(len(self.study.points)))
        chosen = self._best(trials)
        self._train_seeds(chosen)
        if len(self._runs) < self.experiment.sweep.seeds:
            return None
        return Cell(self.model, self.experiment, trials, trials[chosen].point, tuple(self._runs.values()))

    def _plan(self, keys: Sequence[str], points: list[Point]) -> list[Point]:
        """The points to try, given those of the study; without any, as after an earlier version, those of its runs."""
        runs = itertools.takewhile(
            lambda run: (run / CONFIG).is_file(), (self.folder / f"trial_{number}" for number in itertools.count())
        )
        there = (dict(flatten(dataclasses.asdict(read_experiment(str(run))))) for run in runs)
        points = points or [{key: values[key] for key in keys} for values in there]
        return compared_models.extend_grid(self.experiment, self.model, points)

    def _identify(self, dataset: Dataset, grid: Sequence[Point]) -> str:
        """A name for all that decides what the trials reach: another experiment, or other data, is another study. What
        has its default is left out, so that a key that comes later changes no name.
        """
        default = dict(flatten(dataclasses.asdict(Experiment())))
        tuned = (*grid[0], "model.mlp_ratio", *OF_A_MACHINE)
        decides = {
            key: value
            for key, value in flatten(dataclasses.asdict(self._at(grid[0], self.trial_steps, seed=0)))
            if key not in tuned and key.partition(".")[0] not in UNREAD and value != default.get(key)
        }
        others = {key: sorted({point[key] for point in grid}) for key in grid[0] if key != RATE}
        parameters = compared_models.target(self.experiment, self.task)
        whole = [decides, others, self.experiment.sweep.learning_rates, parameters, dataset.metadata()]
        return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def _collect(self) -> None:
        """Takes over what this worker or another one told Optuna, and says it once."""
        for number, done in self.study.list_done().items():
            if number not in self._trials:
                told = done.user_attrs
                trial = Trial(self.study.points[number], told["validation"], told["cpu_seconds"], told["pruned_at"])
                self._trials[number] = trial
                self.progress.note_run(
                    self.model, f"trial_{number}", trial.point, self.trial_steps, self._describe(trial)
                )

    def _describe(self, trial: Trial) -> str:
        if not trial.validation:
            return "diverged"
        score = f"{self.metric} {trial.validation[self.metric]:.4g}"
        return score if trial.pruned_at is None else f"pruned at step {trial.pruned_at}, {score}"

    def _try_point(self, claim: Claim) -> None:
        """Trains at a point and tells Optuna, a failure where training did not end. A run that diverged counts as the
        worst there is.
        """
        with claim:
            experiment = self._at(claim.point, self.trial_steps, seed=0)
            reached = self._read_trial(experiment, self.folder / f"trial_{claim.number}", claim)
            worst = float("-inf" if higher_is_better(self.metric) else "inf")
            claim.tell(
                reached.validation.get(self.metric, worst) if reached.pruned_at is None else None,
                validation=reached.validation,
                cpu_seconds=reached.cpu_seconds,
                pruned_at=reached.pruned_at,
            )

    def _read_trial(self, experiment: Experiment, workdir: pathlib.Path, claim: Claim) -> Trial:
        """The trial of a point, as it is trained now or was trained before."""
        start = time.process_time()
        watch = None if self.experiment.sweep.pruner == "none" else self._watch(claim)
        try:
            (outcome,), seconds = _train([experiment], [workdir], watch)
        except Diverged:
            return Trial(claim.point, {}, round(time.process_time() - start, 1))
        except Pruned as end:
            return Trial(claim.point, end.validation, round(time.process_time() - start, 1), end.step)
        return Trial(claim.point, outcome.kept, seconds)

    def _watch(self, claim: Claim) -> loop.Watch:
        """What reports the validations of a trial to Optuna, and raises Pruned where its pruner finds it hopeless."""
        reported: set[int] = set()

        def watch(validations: loop.Validations) -> None:
            for step, scores in validations:
                if step not in reported:
                    claim.trial.report(scores[self.metric], step)
                    reported.add(step)
            last, scores = validations[-1]
            if last < self.trial_steps and claim.trial.should_prune():
                raise Pruned(last, scores)

        return watch

    def _best(self, trials: Sequence[Trial]) -> int:
        """The number of the first of the trials that did best on validation, of those that came to their end. Raises
        Diverged where there is none.
        """
        scored = [number for number, trial in enumerate(trials) if trial.validation and trial.pruned_at is None]
        if not scored:
            pruned = " or was pruned" * any(trial.pruned_at is not None for trial in trials)
            raise Diverged(
                f"every trial of {self.model!r} diverged{pruned}: lower sweep.learning_rates, found "
                f"{self.experiment.sweep.learning_rates}"
            )
        best = scored[0]
        for number in scored[1:]:
            if is_better(self.metric, trials[number].validation[self.metric], trials[best].validation[self.metric]):
                best = number
        return best

    def _train_seeds(self, chosen: int) -> None:
        """Trains the runs of all seeds that no other worker trains: by one step on an accelerator; on a CPU, where that
        is no faster, one by one, so that each comes out again bit for bit.
        """
        seeds = [seed for seed in range(self.experiment.sweep.seeds) if seed not in self._runs]
        for group in [[seed] for seed in seeds] if jax.default_backend() == "cpu" else [seeds]:
            lock = try_hold(self.folder / f".seed_{group[0]}.lock") if group else None
            if lock is not None:
                with lock:
                    self._train_group(chosen, group)
        self._runs = dict(sorted(self._runs.items()))

    def _train_group(self, chosen: int, group: Sequence[int]) -> None:
        point, steps = self.study.points[chosen], self.experiment.training.steps
        experiments = [self._at(point, steps, seed=seed) for seed in group]
        workdirs = [self._find_folder(chosen, seed) for seed in group]
        outcomes, seconds = _train(experiments, workdirs)
        for seed, experiment, workdir, outcome in zip(group, experiments, workdirs, outcomes, strict=True):
            score = f"{self.metric} {outcome.kept[self.metric]:.4g}"
            self.progress.note_run(self.model, workdir.name, point, steps, score)
            self._runs[seed] = Trained(seed, experiment, workdir, outcome.kept, seconds)

    def _find_folder(self, chosen: int, seed: int) -> pathlib.Path:
        """The folder of a seed's run: MODEL/seed_N, unless that has another point, the best of fewer trials."""
        folder, point = self.folder / f"seed_{seed}", self.study.points[chosen]
        if not (folder / CONFIG).is_file():
            return folder
        there = dict(flatten(dataclasses.asdict(read_experiment(str(folder)))))
        return (
            folder
            if all(there[key] == value for key, value in point.items())
            else self.folder / (f"seed_{seed}_of_trial_{chosen}")
        )

    def _at(self, point: Point, steps: int, *, seed: int) -> Experiment:
        found = compared_models.configure(self.experiment, self.model, point, self.task)
        training = dataclasses.replace(found.training, steps=steps, seed=seed)
        warmup = min(found.optimizer.warmup_steps, steps // 5)
        optimizer = dataclasses.replace(found.optimizer, warmup_steps=warmup)
        return dataclasses.replace(
            found,
            training=training,
            optimizer=optimizer,
            data=dataclasses.replace(found.data, seed=seed),
            sweep=dataclasses.replace(found.sweep, storage=""),  # whose password is nothing for a run's folder
        )


def _build_pruner(experiment: Experiment) -> BasePruner:
    """Optuna's pruner of a name, which reads validations by their training step."""
    every = experiment.training.eval_every
    pruners = {"none": NopPruner(), "median": MedianPruner(), "halving": SuccessiveHalvingPruner(min_resource=every)}
    return pruners[experiment.sweep.pruner]


def _train(
    experiments: Sequence[Experiment], workdirs: Sequence[pathlib.Path], watch: loop.Watch | None = None
) -> tuple[list[loop.Outcome], float]:
    """Trains runs, several of them by one step; returns how they ended, and the CPU seconds that each took, those
    before an interruption among them. `watch` is that of `loop.fit`, of a run alone.

    Raises:
      Interrupted: where a signal came. Diverged: for a loss that is not finite. InputError: for what `fit` refuses, and
        a folder that holds a run of other settings.
    """
    for experiment, workdir in zip(experiments, workdirs, strict=True):
        workdir.mkdir(parents=True, exist_ok=True)
        _check_unchanged(experiment, workdir)
    start, fit = time.process_time(), partial(loop.fit, watch=watch) if watch else loop.fit
    with (workdirs[0] / LOG).open("a") as log, contextlib.redirect_stderr(log):
        paths = [str(workdir) for workdir in workdirs]
        outcomes = multi_seed.fit_seeds(experiments, paths) if len(paths) > 1 else [fit(experiments[0], paths[0])]
    seconds = [_add_to_file(workdir / SECONDS, (time.process_time() - start) / len(workdirs)) for workdir in workdirs]
    if not all(outcome.finished for outcome in outcomes):
        raise Interrupted(f"stopped in {workdirs[0].parent}, saved")
    return outcomes, round(max(seconds), 1)


def _check_unchanged(experiment: Experiment, workdir: pathlib.Path) -> None:
    changed = differing(read_experiment(str(workdir)), experiment) if (workdir / CONFIG).is_file() else {}
    words = "; ".join(f"{key}: {old!r} there, {new!r} now" for key, (old, new) in changed.items() if key in UNCHANGED)
    if words:
        raise InputError(f"{workdir} holds another experiment's run ({words}): use the same config, or a new --workdir")


def _add_to_file(path: pathlib.Path, seconds: float) -> float:
    """Adds to the number that a file holds, and returns it."""
    total = seconds + (float(path.read_text()) if path.is_file() else 0.0)
    path.write_text(f"{total:.3f}\n")
    return total


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
        self._start, self._waited = time.monotonic(), False

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def note_wait(self) -> None:
        """Says once that nothing is left but what other workers train."""
        if not self._waited:
            self._bar.write("waiting for what other workers train", file=sys.stderr)
        self._waited = True

    def note_run(self, model: str, name: str, point: Point, steps: int, score: str) -> None:
        """Says that a run is there."""
        self._passed += 1
        self._bar.update(steps)
        at = ", ".join(f"{key.partition('.')[2]} {value:g}" for key, value in point.items())
        minutes = (time.monotonic() - self._start) / 60
        self._bar.write(
            f"{self._passed}/{self._runs}  {minutes:5.1f} min  {model} {name}  {at}: {score}", file=sys.stderr
        )
