"""The loop, of one run or of several that share a step: draws batches, takes the step, logs the one before, now and
then evaluates and saves.
"""

import contextlib
import dataclasses
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import jax

from selssm_jax import data
from selssm_jax.config import Experiment, Model, fields
from selssm_jax.data import pipeline, provenance
from selssm_jax.errors import Diverged, InputError, out_of_memory
from selssm_jax.model import SequenceModel
from selssm_jax.shapes import Batch
from selssm_jax.tasks.registry import kind_of
from selssm_jax.tasks.scores import Sums, count_since_best, is_better, means
from selssm_jax.training import capacity, cluster, optimizer, parallel, pieces, shares, starting
from selssm_jax.training.checkpoint import Restored, Workdir, differing
from selssm_jax.training.evaluation import Evaluator
from selssm_jax.training.logging import Display, Logger, Meter
from selssm_jax.training.step import TrainState, initial, train_step

SKIPPED = ("steps", "in_a_row")  # what is counted of steps that are skipped: all, and those since one that was not
RECORDED = ("data.batch_size", "training.steps")  # what may change in a run and decides how it goes on
STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a call of `fit` ended: at which step, whether that was the last one, and the last validation metrics.

    kept: the validation metrics of the parameters that evaluation reads, the best or the last as training.select says.
    early: whether it was finished by training.patience, before training.steps.
    """

    step: int
    finished: bool
    validation: dict[str, float]
    kept: dict[str, float] = dataclasses.field(default_factory=dict)
    early: bool = False


Validations = Sequence[tuple[int, dict[str, float]]]  # (step, metrics) of each so far
Watch = Callable[[Validations], None]


def fit(
    experiment: Experiment,
    workdir: str,
    *,
    check: Callable[[data.Dataset], None] | None = None,
    watch: Watch | None = None,
) -> Outcome:
    """Trains until training.steps, or training.patience is at its end, from the newest checkpoint of `workdir` if there
    is one.

    SIGTERM, SIGINT, SIGHUP and SIGUSR1 save a checkpoint and return early. The same command goes on from there, bit for
    bit on one CPU. `check` sees the data before anything is written, and may raise. `watch` sees all validations so
    far, of a run that goes on at once and of each after every new one, and may raise to end the run there.

    In a cluster (`jax.distributed`) every process calls it with the same experiment and the same folder, of a file
    system that they share. They take each step together; a signal to one of them stops all.

    Raises:
      LostProcess: where another process of the cluster is gone.
      InputError: for bad data, a workdir of another experiment or one that cannot be written, devices that cannot share
        a batch, or a loss that is not finite; the message names the last good checkpoint.
    """
    with Stop() as stop:
        return fit_unless(stop, experiment, workdir, check=check, watch=watch)


def fit_unless(
    stop: "Stop",
    experiment: Experiment,
    workdir: str,
    *,
    check: Callable[[data.Dataset], None] | None = None,
    watch: Watch | None = None,
) -> Outcome:
    """As `fit`, for a caller who watches the signals; no step is taken once `stop` was requested."""
    devices = choose_devices(experiment)
    with open_run_folder(experiment, workdir, choose_layout(experiment, devices), check=check) as run:
        try:
            with cluster.noticing_loss():
                run.begin_watch(watch)
                run.validate_if_missing(stop)
                runner = (
                    MeshRun(run.train_step, devices, experiment, run.model.config)
                    if _needs_mesh(experiment, devices)
                    else SingleRun(run.train_step, devices, remat=experiment.model.remat)
                )
                train([run], runner, stop, until=experiment.training.steps)
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise InputError(
                "the device ran out of memory: lower data.batch_size or data.eval_batch_size, raise "
                f"optimizer.accumulate, or set model.remat=True; {run.workdir.last_good()}"
            ) from error
        return run.outcome()


def choose_devices(experiment: Experiment) -> list[jax.Device]:
    """Returns the devices that share a batch.

    Raises:
      InputError: where they cannot, and for a model that cannot be trained.
    """
    if experiment.model.memory_bits:
        raise InputError(
            "model.memory_bits belongs to a compressed run, which eval.py --compress makes of a trained one: train "
            "without it"
        )
    training = experiment.training
    rows = experiment.data.batch_size // experiment.optimizer.accumulate
    return parallel.choose_devices(training.devices, rows, training.mesh)


def choose_layout(experiment: Experiment, devices: list[jax.Device]) -> parallel.Layout:
    """Returns where arrays of the state live on these devices between steps."""
    mesh, training = parallel.layout(devices), experiment.training
    if not _needs_mesh(experiment, devices):
        return lambda _: mesh
    return parallel.mesh_layout(parallel.build_mesh(devices, training.mesh), shard_parameters=training.shard_parameters)


def _needs_mesh(experiment: Experiment, devices: list[jax.Device]) -> bool:
    return len(devices) > 1 and (experiment.training.mesh[1] > 1 or experiment.training.shard_parameters)


@contextlib.contextmanager
def open_run_folder(
    experiment: Experiment,
    workdir: str,
    layout: parallel.Layout,
    *,
    name: str = "",
    display: Display | None = None,
    check: Callable[[data.Dataset], None] | None = None,
) -> Iterator["Run"]:
    """Opens a run where it stands, and at the end waits until all of it is written; `name` and `display` are those of
    `Logger`, `check` that of `fit`.

    Raises:
      InputError: for bad data, and for a folder that holds another experiment or cannot be written.
    """
    with contextlib.ExitStack() as opened:
        with cluster.starting_together():
            folder = opened.enter_context(contextlib.closing(Workdir(workdir, experiment)))
            known = folder.metadata() or starting.recall(experiment)
            dataset = data.load_for_resume(experiment.data, known, started=bool(experiment.training.start))
            capacity.check(experiment, dataset.task)
            pieces.check(experiment, dataset.task)
            shares.check(experiment, dataset.task)
            if check is not None and cluster.is_first():
                check(dataset)
        cluster.check_same("data", {name: value for name, value in dataset.metadata().items() if name != "file"})
        placeless = dataclasses.replace(experiment, data=provenance.without_places(experiment.data))
        cluster.check_same("settings", dict(fields.flatten(dataclasses.asdict(placeless))))
        folder.describe(dataset.metadata())
        if dataset.reading and display is None and cluster.is_first():
            print(dataset.reading, file=sys.stderr, flush=True)
        run = Run(experiment, dataset, folder, layout, name, display)
        with contextlib.closing(run.log):
            yield run


@runtime_checkable
class StepRunner(Protocol):
    """Takes a step of training with all runs of a group."""

    def stack(self, states: Sequence[Any]) -> Any:
        """Returns the states of all runs as one value."""
        ...

    def unstack(self, states: Any) -> Sequence[Any]:
        """Returns the state of each run; the inverse of `stack`."""
        ...

    def __call__(self, states: Any, batches: Sequence[Batch]) -> tuple[Any, Sequence[Sums]]:
        """Returns the states after a step, and each run's metrics. The states given are used up."""
        ...


def train(runs: Sequence["Run"], runner: StepRunner, stop: "Stop", *, until: int) -> None:
    """Takes runs that stand at the same step to step `until`, or saves and ends where `stop` is requested before; ends
    where one of them ends early, which is saved.

    A step's metrics are read while the next one runs.
    """
    if stop.is_requested() or any(run.ends_early(run.step) for run in runs):
        return
    leader, step, pending = runs[0], runs[0].step, None
    states = runner.stack([run.release_state() for run in runs])
    leader.log.display.advance(0)  # shown before the first step is compiled
    for step in range(leader.step + 1, until + 1):
        states, sums = runner(states, [next(run.batches) for run in runs])
        _record_metrics(runs, pending)
        pending = (step, sums)
        leader.log.display.advance(len(runs))
        if stop.is_requested() or leader.pauses(step) or step == until:
            _record_metrics(runs, pending)
            pending = None
            if _pause(runs, step, runner.unstack(states), stop):
                break
    for run, state in zip(runs, runner.unstack(states), strict=True):
        run.step, run.state = step, state


def _record_metrics(runs: Sequence["Run"], pending: tuple[int, Sequence[Sums]] | None) -> None:
    """Reads a step's metrics: waits for the step."""
    if pending is None:
        for run in runs:
            run.meter.mark()
        return
    for run, sums in zip(runs, jax.device_get(pending[1]), strict=True):
        run.record_metrics(pending[0], sums)


def _pause(runs: Sequence["Run"], step: int, states: Sequence[Any], stop: "Stop") -> bool:
    """Evaluates and saves where that is due; returns whether the runs stop here: all were asked to, which then are all
    saved, or one ends early.
    """
    for run, state in zip(runs, states, strict=True):
        run.validate(step, state.evaluated, stop)
    stopping, early = stop.is_requested(), [run.ends_early(step) for run in runs]
    for run, state, ends in zip(runs, states, early, strict=True):
        if stopping or ends or run.is_due(step, run.experiment.training.checkpoint_every):
            run.save(step, state)
        if ends:
            run.say_early(step)
    return stopping or any(early)


class SingleRun:
    """The step of one run, (state, batch, axis) -> (state, metrics), on devices that share its batch."""

    def __init__(self, step: Callable[..., Any], devices: list[jax.Device], *, remat: bool = False) -> None:
        self._step = parallel.data_parallel(step, devices, remat=remat)

    def stack(self, states: Sequence[Any]) -> Any:
        """Returns the one state."""
        return states[0]

    def unstack(self, states: Any) -> Sequence[Any]:
        """Returns a list of the one state."""
        return [states]

    def __call__(self, states: Any, batches: Sequence[Batch]) -> tuple[Any, Sequence[Sums]]:
        """Returns the state after a step, and its metrics."""
        states, sums = self._step(states, batches[0])
        return states, [sums]


class MeshRun(SingleRun):
    """The step of one run on a mesh of devices, which share the steps of a sequence or the parameters too; `config` is
    that of the model, with its task.
    """

    def __init__(
        self, step: Callable[..., Any], devices: list[jax.Device], experiment: Experiment, config: Model
    ) -> None:
        training, shared = experiment.training, experiment.training.mesh[1]
        take = parallel.mesh_parallel(
            step,
            parallel.build_mesh(devices, training.mesh),
            over_time=partial(pieces.find_over_time, config),
            shard_parameters=training.shard_parameters,
            remat=experiment.model.remat,
        )
        groups = len(parallel.choose_local(devices)) // shared * experiment.optimizer.accumulate
        arrange = partial(shares.arrange, config, asked=training.piece, groups=groups, count=shared)
        self._step = lambda state, batch: take(state, arrange(batch))


class Run:
    """The parts of one training run, wired together: all but the taking of steps.

    Attributes:
      step: the number of its last step so far.
      best: the step of the parameters in best/, which did best on validation so far.
      state: its training state there; none while `train` has it.
      skipped: how many of its steps were skipped, by `SKIPPED`.
      train_step: (state, batch, axis) -> (state, metrics), `step.train_step` of this run.
      evaluate: the evaluator of its parameters; runs of the same model may share one, which is then compiled once.
    """

    def __init__(
        self,
        experiment: Experiment,
        dataset: Any,
        workdir: Workdir,
        layout: parallel.Layout,
        name: str,
        display: Display | None,
    ) -> None:
        self.experiment, self.dataset, self.workdir, self.name = experiment, dataset, workdir, name
        self._watch: Watch | None = None
        self.model = SequenceModel(experiment.model.of_task(dataset.task))
        self.evaluate = Evaluator(experiment, self.model)
        tx = optimizer.build(experiment)
        self.train_step: Callable[..., Any] = partial(train_step, model=self.model, optimizer=tx, experiment=experiment)
        self.batches = dataset.train(experiment.data.batch_size, seed=experiment.data.seed)
        restored = self._begin(tx, layout)
        self.step, history = restored.step, restored.progress["history"]
        ranked = self._rank_validations(history)
        self.best = workdir.recall_best(self.step, ranked) if history else None
        with workdir.writing():
            self.log = Logger(
                workdir.path if cluster.is_first() else None,
                history,
                self.step,
                experiment.training.steps,
                name=name,
                display=display,
            )
        if self.step:
            self.log.display.say(f"resumed from step {self.step} of {workdir.path}")
        # checkpoints of earlier versions do not say which is the best
        remembered = restored.progress.get("best", ranked[0][0] if ranked else None)
        if remembered is not None and self.best != remembered:
            left = (
                "the best from here on are kept"
                if self.best is None
                else f"those of step {self.best} are the best that are left"
            )
            self.log.display.say(f"warning: the best parameters so far, of step {remembered}, are lost: {left}")
        self._note_changes(restored.experiment)

    def _begin(self, tx: Any, layout: parallel.Layout) -> Restored:
        """Sets the state, the meter and the order of the data to where the run stands; returns all else that it goes on
        from.
        """
        start = self.batches.get_state()
        fresh = partial(initial, self.experiment, self.model, tx, next(self.batches))
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=cluster.choose_stored(layout(leaf))),
            jax.eval_shape(fresh),
        )
        restored = self.workdir.restore(shapes, self._go_on)
        self.state: Any
        if restored is None:
            self.batches.set_state(start)
            self.state = parallel.place(cluster.take_first(self._start(fresh())), layout)
            self.meter, self.skipped = Meter(), dict.fromkeys(SKIPPED, 0)
            return Restored(0, None, {"history": [], "best": None}, self.experiment)
        self.state = cluster.as_live(restored.state, layout)
        return dataclasses.replace(restored, state=None)

    def _start(self, drawn: TrainState) -> TrainState:
        """The state before the first step, with the parameters of the run that training starts from, if it does."""
        if not self.experiment.training.start:
            return drawn
        params, step = starting.read_params(self.experiment, drawn.params)
        if cluster.is_first():
            print(
                f"{self.name}starts from step {step} of {self.experiment.training.start}", file=sys.stderr, flush=True
            )
        return drawn.start_from(params)

    def _go_on(self, restored: Restored) -> None:
        """Sets the order of the data and the meter to where a checkpoint stands. Raises something for what is of
        another form.
        """
        progress, old, new = restored.progress, restored.experiment.data.batch_size, self.experiment.data.batch_size
        if not all(type(place) is int and place >= 0 for place in progress["data"].values()):
            raise ValueError(f"progress.data is {progress['data']!r}, expected the number of the next batch")
        self.batches.set_state(progress["data"] if old == new else pipeline.resize_state(progress["data"], old, new))
        self.meter = Meter(dict(progress["meter"]))
        skipped = progress.get("skipped", {})
        self.skipped = {name: int(skipped.get(name, 0)) for name in SKIPPED}
        self._rank_validations(progress["history"])  # every validation has the metric that decides

    def _note_changes(self, before: Experiment) -> None:
        """Says and records what decides how training goes on and was something else until here."""
        changed = {key: pair for key, pair in differing(before, self.experiment).items() if key in RECORDED}
        if not changed or self.step == self.experiment.training.steps or self.ends_early(self.step):
            return
        for key, (old, new) in changed.items():
            self.log.display.say(f"{self.name}{key}={new} from here on, until now {old}: {self._explain(key, before)}")
        self._record(self.step, "settings", {key: new for key, (_, new) in changed.items()})

    def _explain(self, key: str, before: Experiment) -> str:
        """Says what the new value of a key in `RECORDED` means for training."""
        if key == "data.batch_size":
            seen = pipeline.count_examples(self.batches.get_state(), self.experiment.data.batch_size)
            return f"the data go on after the {seen:,} examples seen, and optimizer.peak_rate stays as it is"
        updates = self.step - self.skipped["steps"]
        rates = optimizer.schedule(before)(updates), optimizer.schedule(self.experiment)(updates + 1)
        old, new = (f"{float(rate):.3g}" for rate in rates)
        return f"the learning rate is from here on that of a run of so many steps, next {new} after {old}"

    def release_state(self) -> Any:
        """Returns the state to a caller that uses it up; the run keeps none."""
        state, self.state = self.state, None
        return state

    def begin_watch(self, watch: Watch | None) -> None:
        """Shows the validations so far, and from then on each new one, to `watch`, as `fit` has it."""
        self._watch = watch
        self._show_validations()

    def _show_validations(self) -> None:
        validations = _validations(self.log.history)
        if self._watch is not None and validations:
            self._watch(validations)

    def validate_if_missing(self, stop: "Stop") -> None:
        """Runs the validation of the last step if it is due and missing, as after an interruption."""
        if self.step:
            self.validate(self.step, self.state.evaluated, stop)

    def record_metrics(self, step: int, sums: Sums) -> None:
        """Checks that a step's loss is finite, or that the step may be skipped; adds its metrics to the mean, and logs
        the mean if that is due.
        """
        scores = means(sums)
        if scores.get("skipped"):
            self._count_skipped(step, scores)
            sums = {}
        else:
            self._check_finite(step, scores)
            self.skipped["in_a_row"] = 0
        self.meter.add({name: pair for name, pair in sums.items() if name != "skipped"})
        if self.is_due(step, self.experiment.training.log_every):
            skips = {"skipped": self.skipped["steps"]} if self.experiment.training.skip_nonfinite else {}
            self._record(step, "train", self.meter.read() | skips)

    def validate(self, step: int, params: Any, stop: "Stop") -> None:
        """Runs validation for a step if it is due and missing, and saves the parameters if they are the best so far."""
        if not self._lacks_validation(step):
            return
        metrics = self.evaluate(params, self.dataset, "validation", unless=stop.is_requested)
        if not metrics:
            return
        metrics = cluster.take_first_numbers(metrics)
        best = self._scores(self.best)
        self._record(step, "validation", metrics)
        if best is None or self._improves(metrics, best):
            self.workdir.save_best(step, params, metrics)
            self.best = step
        self._show_validations()

    def save(self, step: int, state: Any) -> None:
        """Saves all that the run goes on from."""
        progress = {
            "data": self.batches.get_state(),
            "meter": self.meter.save(),
            "history": self.log.history,
            "best": self.best,
        }
        if self.experiment.training.skip_nonfinite:
            progress["skipped"] = self.skipped
        self.workdir.save(step, state, progress)

    def is_due(self, step: int, every: int) -> bool:
        """Whether work that is done every `every` steps, and after the last, is done after this step."""
        return step % every == 0 or step == self.experiment.training.steps

    def pauses(self, step: int) -> bool:
        """Whether the run is evaluated or saved after this step."""
        return self.is_due(step, self.experiment.training.eval_every) or self.is_due(
            step, self.experiment.training.checkpoint_every
        )

    def outcome(self) -> Outcome:
        """Returns how it ended."""
        last = max((record["step"] for record in self.log.history if record["split"] == "validation"), default=None)
        chosen = self.best if self.experiment.training.select == "best" else last
        early = self.ends_early(self.step)
        ended = early or self.step == self.experiment.training.steps
        finished = ended and not self._lacks_validation(self.step)
        return Outcome(self.step, finished, self._scores(last) or {}, self._scores(chosen) or {}, early)

    def ends_early(self, step: int) -> bool:
        """Whether training.patience is at its end before the last step. It is read off the history alone: a run that
        goes on knows it too, and all processes agree.
        """
        training, metric = self.experiment.training, kind_of(self.dataset.task).primary
        if not training.patience or step == training.steps:
            return False
        values = (scores[metric] for _, scores in _validations(self.log.history))
        return count_since_best(metric, values) >= training.patience

    def say_early(self, step: int) -> None:
        """Says that the run ends early."""
        training = self.experiment.training
        self.log.display.say(
            f"{self.name}stopped early at step {step} of {training.steps}: no better validation in the last "
            f"{training.patience} (training.patience)"
        )

    def _scores(self, step: int | None) -> dict[str, float] | None:
        """The validation metrics of a step; None where it has none."""
        return next((scores for validated, scores in _validations(self.log.history) if validated == step), None)

    def _improves(self, new: dict[str, float], old: dict[str, float]) -> bool:
        """By the metric of the task; of equals, such as shares of few examples, by the loss."""
        kind = kind_of(self.dataset.task)
        equal = new[kind.primary] == old[kind.primary] and kind.loss in new and kind.loss in old
        metric = kind.loss if equal else kind.primary
        return is_better(metric, new[metric], old[metric])

    def _rank_validations(self, history: list[dict[str, Any]]) -> list[tuple[int, dict[str, float]]]:
        """The validations of a history as (step, metrics), the best first, and of equals the first."""
        ranked: list[tuple[int, dict[str, float]]] = []
        for step, scores in _validations(history):
            place = sum(not self._improves(scores, better) for _, better in ranked)
            ranked.insert(place, (step, scores))
        return ranked

    def _record(self, step: int, split: str, metrics: dict[str, float]) -> None:
        with self.workdir.writing():
            self.log.record(step, split, metrics)

    def _check_finite(self, step: int, scores: dict[str, float]) -> None:
        loss, norm = scores[kind_of(self.dataset.task).loss], scores["gradient_norm"]
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise Diverged(self._say_nonfinite(step, scores))

    def _count_skipped(self, step: int, scores: dict[str, float]) -> None:
        """Counts a step that was skipped. Raises Diverged where as many in a row were before it as may be."""
        most = self.experiment.training.skip_nonfinite
        if self.skipped["in_a_row"] >= most:
            raise Diverged(self._say_nonfinite(step, scores, f", after {most} in a row that were skipped"))
        self.skipped = {name: count + 1 for name, count in self.skipped.items()}
        self.log.display.say(
            f"{self.name}step {step} is skipped, for its loss is {scores[kind_of(self.dataset.task).loss]}, the "
            f"gradient's norm {scores['gradient_norm']}: {self.skipped['in_a_row']} in a row, of at most {most} "
            "(training.skip_nonfinite)"
        )

    def _say_nonfinite(self, step: int, scores: dict[str, float], after: str = "") -> str:
        return (
            f"{self.name}the loss of step {step} is {scores[kind_of(self.dataset.task).loss]}, the gradient's norm "
            f"{scores['gradient_norm']}{after}: lower optimizer.peak_rate or lengthen optimizer.warmup_steps (in a new "
            "--workdir), or look for extreme values in the data, or skip such steps (training.skip_nonfinite); "
            f"{self.workdir.last_good()}"
        )

    def _lacks_validation(self, step: int) -> bool:
        there = any(record["step"] == step and record["split"] == "validation" for record in self.log.history)
        return self.is_due(step, self.experiment.training.eval_every) and not there


def _validations(history: list[dict[str, Any]]) -> list[tuple[int, dict[str, float]]]:
    """The validations of a history as (step, metrics)."""
    without = ("step", "split", "time")
    return [
        (record["step"], {name: value for name, value in record.items() if name not in without})
        for record in history
        if record["split"] == "validation"
    ]


class Stop:
    """Remembers that a signal to stop came, so that the loop can save and return. A second one ends the process.

    SIGTERM and SIGINT, SIGHUP of a terminal that is closed, and SIGUSR1, by which Slurm warns of the end of a job. One
    that the process was told to ignore, as by nohup, stays ignored. In a cluster, JAX's preemption service takes
    SIGTERM, and the others become that.
    """

    def __init__(self) -> None:
        self._requested, self._calls = False, 0

    def __enter__(self) -> "Stop":
        here = threading.current_thread() is threading.main_thread()  # Python hands signals to no other
        numbers = [
            number
            for number in STOPPING
            if here and signal.getsignal(number) != signal.SIG_IGN and (number != signal.SIGTERM or cluster.is_alone())
        ]
        self._previous_handlers = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def is_requested(self) -> bool:
        """Whether a signal came; in a cluster, to any process: all of them ask equally often, and are told alike."""
        if not self._requested and not cluster.is_alone():
            self._calls += 1
            self._requested = cluster.is_stop_agreed(self._calls)
        return self._requested

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del frame
        if not cluster.is_alone():
            signal.raise_signal(signal.SIGTERM)  # JAX listens to that one, and tells the other processes
            return
        if self._requested:
            sys.exit(128 + number)
        self._requested = True
        with contextlib.suppress(OSError):  # the terminal may be gone
            # print() is not safe inside a signal
            os.write(2, b"\nstopping after this step, and saving; once more to quit at once\n")
