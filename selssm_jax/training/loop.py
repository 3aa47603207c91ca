"""The loop: draws a batch, takes a step, logs the step before, and now and then evaluates and saves."""

import contextlib
import dataclasses
import math
import os
import signal
import sys
import threading
from functools import partial
from types import FrameType
from typing import Any

import jax

from selssm_jax import data
from selssm_jax.config import Experiment
from selssm_jax.errors import Diverged, InputError
from selssm_jax.model import SequenceModel
from selssm_jax.training import objectives, optimizer, parallel, step
from selssm_jax.training.checkpoint import Workdir
from selssm_jax.training.evaluation import Evaluator
from selssm_jax.training.logging import Logger, Meter


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a call of `fit` ended: at which step, whether that was the last one, and the last validation metrics."""

    step: int
    finished: bool
    validation: dict[str, float]


def fit(experiment: Experiment, workdir: str) -> Outcome:
    """Trains until training.steps, from the newest checkpoint of `workdir` if there is one.

    SIGTERM and SIGINT save a checkpoint and return early. The same command goes on from there, bit for bit on one CPU.

    Raises:
      InputError: for bad data, a workdir of another experiment or one that cannot be written, devices that cannot share a
        batch, or a loss that is not finite; the message names the last good checkpoint.
    """
    if experiment.model.memory_bits:
        raise InputError("model.memory_bits belongs to a compressed run, which eval.py --compress makes of a trained one: train without it")
    devices = parallel.choose_devices(experiment.training.devices, experiment.data.batch_size // experiment.optimizer.accumulate)
    with contextlib.closing(Workdir(workdir, experiment)) as folder, _Stop() as stop:
        dataset = data.load(experiment.data)
        folder.describe(dataset.metadata())
        return _Run(experiment, dataset, folder, devices).train(stop)


class _Run:
    """The parts of one training run, wired together."""

    def __init__(self, experiment: Experiment, dataset: Any, workdir: Workdir, devices: list[jax.Device]) -> None:
        self.experiment, self.dataset, self.workdir = experiment, dataset, workdir
        self.model = SequenceModel(dataclasses.replace(experiment.model, task=dataset.task))
        self.evaluate = Evaluator(experiment, self.model)
        tx = optimizer.build(experiment)
        self.take = parallel.data_parallel(partial(step.train_step, model=self.model, optimizer=tx, experiment=experiment), devices)
        self.batches = dataset.train(experiment.data.batch_size, seed=experiment.data.seed)
        self.first, history = self._begin(tx, parallel.layout(devices))
        with workdir.writing():
            self.log = Logger(workdir.path, history, self.first, experiment.training.steps)
        if self.first:
            self.log.say(f"resumed from step {self.first} of {workdir.path}")

    def train(self, stop: "_Stop") -> Outcome:
        """Runs the loop and leaves everything saved."""
        try:
            if self.first and self._lacks_validation(self.first):  # it was interrupted
                self._validate(self.first, stop)
            reached = self._loop(stop)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise InputError(
                f"the device ran out of memory: lower data.batch_size or data.eval_batch_size, raise optimizer.accumulate, or set model.remat=True; "
                f"{self.workdir.last_good()}"
            ) from error
        finally:
            self.log.close()
        return Outcome(reached, reached == self.experiment.training.steps and not self._lacks_validation(reached), self._last_validation())

    def _begin(self, tx: Any, layout: jax.sharding.Sharding) -> tuple[int, list[dict[str, Any]]]:
        """Sets the state, the meter and the order of the data to where the run stands; returns its step and records."""
        start = self.batches.get_state()
        fresh = partial(step.initial, self.experiment, self.model, tx, next(self.batches))
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout), jax.eval_shape(fresh))
        restored = self.workdir.restore(shapes)
        if restored is None:
            self.batches.set_state(start)
            self.state, self.meter = jax.device_put(fresh(), layout), Meter()
            return 0, []
        self.batches.set_state(restored.progress["data"])
        self.state, self.meter = restored.state, Meter(restored.progress["meter"])
        return restored.step, restored.progress["history"]

    def _loop(self, stop: "_Stop") -> int:
        """Takes steps and returns the last one; a step's metrics are read while the next one runs."""
        number, pending = self.first, None
        for number in range(self.first + 1, self.experiment.training.steps + 1):
            self.state, sums = self.take(self.state, next(self.batches))
            self._settle(pending)
            pending = (number, sums)
            self.log.advance()
            if stop.asked() or self._due(number, self.experiment.training.eval_every) or self._due(number, self.experiment.training.checkpoint_every):
                self._settle(pending)
                pending = None
                if self._pause(number, stop):
                    break
        return number

    def _settle(self, pending: tuple[int, objectives.Sums] | None) -> None:
        """Reads a step's metrics: waits for the step, checks that its loss is finite, and logs where that is due."""
        if pending is None:
            self.meter.mark()
            return
        number, sums = pending[0], jax.device_get(pending[1])
        self._check_finite(number, objectives.means(sums))
        self.meter.add(sums)
        if self._due(number, self.experiment.training.log_every):
            self._record(number, "train", self.meter.read())

    def _pause(self, number: int, stop: "_Stop") -> bool:
        """Evaluates and saves where that is due; returns whether the run was asked to stop, which then is saved."""
        if self._lacks_validation(number):
            self._validate(number, stop)
        stopping = stop.asked()
        if stopping or self._due(number, self.experiment.training.checkpoint_every):
            progress = {"data": self.batches.get_state(), "meter": self.meter.save(), "history": self.log.history}
            self.workdir.save(number, self.state, progress)
        return stopping

    def _validate(self, number: int, stop: "_Stop") -> None:
        metrics = self.evaluate(self.state.params, self.dataset, "validation", unless=stop.asked)
        if not metrics:
            return
        metric = objectives.PRIMARY[self.dataset.task.kind]
        earlier = [record[metric] for record in self.log.history if record["split"] == "validation"]
        self._record(number, "validation", metrics)
        if all(objectives.is_better(metric, metrics[metric], value) for value in earlier):
            self.workdir.save_best(number, self.state.params, metrics)

    def _record(self, number: int, split: str, metrics: dict[str, float]) -> None:
        with self.workdir.writing():
            self.log.record(number, split, metrics)

    def _check_finite(self, number: int, means: dict[str, float]) -> None:
        loss, norm = means[objectives.LOSS[self.dataset.task.kind]], means["gradient_norm"]
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise Diverged(
                f"the loss of step {number} is {loss}, the gradient's norm {norm}: lower optimizer.peak_rate or lengthen optimizer.warmup_steps "
                f"(in a new --workdir), or look for extreme values in the data; {self.workdir.last_good()}"
            )

    def _due(self, number: int, every: int) -> bool:
        return number % every == 0 or number == self.experiment.training.steps

    def _lacks_validation(self, number: int) -> bool:
        there = any(record["step"] == number and record["split"] == "validation" for record in self.log.history)
        return self._due(number, self.experiment.training.eval_every) and not there

    def _last_validation(self) -> dict[str, float]:
        records = [record for record in self.log.history if record["split"] == "validation"]
        return {name: value for name, value in records[-1].items() if name not in ("step", "split", "time")} if records else {}


class _Stop:
    """Remembers that SIGTERM or SIGINT came, so that the loop can save and return. A second one ends the process."""

    def __init__(self) -> None:
        self._asked = False

    def __enter__(self) -> "_Stop":
        here = threading.current_thread() is threading.main_thread()  # Python hands signals to no other
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT) if here}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self) -> bool:
        """Whether a signal came."""
        return self._asked

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._asked:
            sys.exit(128 + number)
        self._asked = True
        os.write(2, b"\nstopping after this step, and saving; once more to quit at once\n")  # print() is not safe inside a signal
