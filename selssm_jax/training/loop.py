"""The loop: draws a batch, takes a step, logs the step before, and now and then evaluates and saves."""

import dataclasses
import math
import signal
import time
from collections.abc import Iterator
from functools import partial
from types import FrameType
from typing import Any

import jax
import numpy as np

from selssm_jax import data
from selssm_jax.config import Experiment
from selssm_jax.errors import InputError
from selssm_jax.model import SequenceModel
from selssm_jax.training import objectives, optimizer, parallel, step
from selssm_jax.training.checkpoint import Restored, Workdir, write_json
from selssm_jax.training.evaluation import Evaluator
from selssm_jax.training.logging import Logger


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
      InputError: for bad data, a workdir of another experiment, devices that cannot share a batch, or a loss that is
        not finite; the message names the last good checkpoint.
    """
    devices = parallel.choose_devices(experiment.training.devices, experiment.data.batch_size // experiment.optimizer.accumulate)
    dataset = data.load(experiment.data)
    run = _Run(experiment, dataset, Workdir(workdir, experiment), devices)
    with _Stop() as stop:
        return run.train(stop)


class _Run:
    """The parts of one training run, wired together."""

    def __init__(self, experiment: Experiment, dataset: Any, workdir: Workdir, devices: list[jax.Device]) -> None:
        self.experiment, self.dataset, self.workdir = experiment, dataset, workdir
        write_json(workdir.path / "dataset.json", dataset.metadata())
        self.model = SequenceModel(dataclasses.replace(experiment.model, task=dataset.task))
        self.metric = objectives.PRIMARY[dataset.task.kind]
        self.evaluate = Evaluator(experiment, self.model)
        tx = optimizer.build(experiment)
        self.batches = dataset.train(experiment.data.batch_size, seed=experiment.data.seed)
        start = self.batches.get_state()
        self.state = step.initial(experiment, self.model, tx, next(self.batches))
        self.batches.set_state(start)
        self.take = parallel.data_parallel(partial(step.train_step, model=self.model, optimizer=tx, experiment=experiment), devices)
        restored = self._resume()
        self.first = restored.step if restored else 0
        self.log = Logger(workdir.path, restored.history if restored else [], self.first, experiment.training.steps)
        if restored:
            self.log.say(f"resumed from step {self.first} in {workdir.path}")

    def train(self, stop: "_Stop") -> Outcome:
        """Runs the loop and leaves everything saved."""
        reached = self.first
        try:
            for reached, record in self._steps(stop):
                if record is not None:
                    self.log.record(reached, "train", record)
                if self._due(reached, self.experiment.training.eval_every):
                    self._validate(reached)
                if self._due(reached, self.experiment.training.checkpoint_every) or stop.asked:
                    self._save(reached)
        finally:
            self.workdir.close()
            self.log.close()
        return Outcome(reached, reached == self.experiment.training.steps, self._last_validation())

    def _steps(self, stop: "_Stop") -> Iterator[tuple[int, dict[str, float] | None]]:
        """Takes steps and yields (step, record to log or None); a step's metrics are read while the next one runs."""
        meter, pending = _Meter(), None
        for number in range(self.first + 1, self.experiment.training.steps + 1):
            self.state, sums = self.take(self.state, next(self.batches))
            if pending is not None:
                meter.add(self._finite(*pending))
            pending = (number, sums)
            pause = self._due(number, self.experiment.training.eval_every) or self._due(number, self.experiment.training.checkpoint_every) or stop.asked
            if pause:
                meter.add(self._finite(*pending))
                pending = None
            self.log.advance()
            yield number, meter.read() if self._due(number, self.experiment.training.log_every) and meter.steps else None
            if pause:
                meter.restart()
            if stop.asked:
                return

    def _due(self, number: int, every: int) -> bool:
        return number % every == 0 or number == self.experiment.training.steps

    def _finite(self, number: int, sums: objectives.Sums) -> dict[str, np.ndarray]:
        sums = jax.device_get(sums)
        loss, norm = (objectives.means(sums)[name] for name in (objectives.LOSS[self.dataset.task.kind], "gradient_norm"))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise InputError(
                f"the loss of step {number} is {loss} (gradient norm {norm}): lower optimizer.peak_rate, lengthen optimizer.warmup_steps "
                f"or look for extreme values in the data; {self.workdir.last_good()}"
            )
        return sums

    def _validate(self, number: int) -> None:
        metrics = self.evaluate(self.state.params, self.dataset, "validation")
        earlier = [record[self.metric] for record in self.log.history if record["split"] == "validation"]
        self.log.record(number, "validation", metrics)
        if all(objectives.is_better(self.metric, metrics[self.metric], value) for value in earlier):
            self.workdir.save_best(number, self.state.params, metrics)

    def _save(self, number: int) -> None:
        self.workdir.save(number, self.state, self.batches.get_state(), self.log.history)

    def _resume(self) -> Restored | None:
        restored = self.workdir.restore(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), self.state))
        if restored:
            self.state = restored.state
            self.batches.set_state(restored.data)
        return restored

    def _last_validation(self) -> dict[str, float]:
        records = [record for record in self.log.history if record["split"] == "validation"]
        return {name: value for name, value in records[-1].items() if name not in ("step", "split", "time")} if records else {}


class _Meter:
    """Means of the metrics, and steps a second, since the last reading."""

    def __init__(self) -> None:
        self._clear()

    def add(self, sums: dict[str, np.ndarray]) -> None:
        self.steps += 1
        for name, pair in sums.items():
            self._sums[name] = self._sums.get(name, np.zeros(2)) + np.asarray(pair, np.float64)

    def read(self) -> dict[str, float]:
        record = objectives.means(self._sums) | {"steps_per_second": self.steps / max(time.monotonic() - self._start, 1e-9)}
        self._clear()
        return record

    def restart(self) -> None:
        """Leaves the time of an evaluation or a checkpoint out of the speed."""
        if not self.steps:
            self._start = time.monotonic()

    def _clear(self) -> None:
        self.steps, self._sums, self._start = 0, {}, time.monotonic()


class _Stop:
    """Remembers that SIGTERM or SIGINT came, so that the loop can save and return."""

    asked = False

    def __enter__(self) -> "_Stop":
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.asked = True
