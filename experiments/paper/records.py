"""One cell of the comparison, a task and a model, as its committed record says it; a damaged record is named."""

import dataclasses
import json
import math
import pathlib
import statistics
from typing import Any, NoReturn

from experiments.paper.names import FIELD, METRICS
from selssm_jax.config import UNREAD, Experiment, renames
from selssm_jax.config.data import TASKS as RULES
from selssm_jax.errors import InputError, suggest
from selssm_jax.paths import check_regular
from selssm_jax.sweep import record as sweep_record
from selssm_jax.sweep.compared_models import RATE
from selssm_jax.sweep.runner import OF_A_MACHINE
from selssm_jax.tasks import TASKS

LOSS = "training.forecast_loss"  # which the sweep of every task holds, and not every kind reads
# keys that no result of a run depends on
APART = (
    *OF_A_MACHINE,
    "training.log_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "data.eval_batch_size",
)
COSTS = ("state_bytes", "training_peak_bytes", "training_flops", "decode_peak_bytes", "decode_flops", "batch", "steps")
DEFAULTS = sweep_record.identity(Experiment())


@dataclasses.dataclass(frozen=True)
class Run:
    """One seed: its metrics on the test split, at every length where the task has several, and the seconds of a
    training step.
    """

    seed: int
    command: str
    test: dict[str, float]
    seconds_per_step: float | None
    lengths: dict[int, dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Record:
    """What `benchmarks/records/paper/TASK/MODEL.json` holds, as far as the page reads it."""

    task: str
    model: str
    kind: str
    metric: str
    loss: str  # that the models were trained with
    command: str
    budget: dict[str, int]
    parameters: int
    target_parameters: int | None
    runs: tuple[Run, ...]
    costs: dict[str, int | float | None]
    baselines: dict[str, dict[str, float]]
    dtype: str
    versions: dict[str, str]
    machine: dict[str, Any]
    reading: dict[str, Any] | None
    recipe: dict[str, Any]  # all that decides a run but what is tuned; empty where the record does not say
    rates: tuple[float, ...]  # the peak learning rates that were tried
    chosen_rate: float | None

    def values(self, metric: str) -> dict[int, float]:
        """Returns {seed: value} of a metric on the test split."""
        return {run.seed: run.test[metric] for run in self.runs if metric in run.test}

    def mean(self, metric: str) -> float | None:
        """Returns the mean over seeds, None where the record has no such metric."""
        found = self.values(metric).values()
        return statistics.fmean(found) if found else None

    def at_length(self, length: int) -> dict[int, float]:
        """Returns {seed: accuracy} at one length."""
        return {
            run.seed: run.lengths[length]["accuracy"] for run in self.runs if "accuracy" in run.lengths.get(length, {})
        }

    @property
    def end(self) -> str:
        """At which end of the learning rates that were tried the chosen one lies: "lowest", "highest", "only" where one
        was tried, "" where it lies inside or is not known.
        """
        if self.chosen_rate is None or not self.rates:
            return ""
        if len(self.rates) == 1:
            return "only"
        return {min(self.rates): "lowest", max(self.rates): "highest"}.get(self.chosen_rate, "")

    @property
    def seconds_per_step(self) -> float | None:
        """The median over seeds: a mean would be moved by what else the machine did."""
        found = [run.seconds_per_step for run in self.runs if run.seconds_per_step is not None]
        return statistics.median(found) if found else None


def read(path: pathlib.Path) -> Record:
    """Returns the record of a file. Raises InputError that names the file, what is wrong in it, and how to make it
    again.
    """
    found = contents(path)
    for key, expected in (("task", path.parent.name), ("model", path.stem)):
        if _need(path, found, key, str) != expected:
            raise_damaged(path, f"{key} is {found[key]!r}, but its place says {expected!r}")
    kind, metric = _need(path, found, "kind", str), _need(path, found, "metric", str)
    if kind not in FIELD:
        raise_damaged(path, f"kind={kind!r}: {suggest(kind, FIELD)}")
    if metric not in METRICS:
        raise_damaged(path, f"metric={metric!r}: {suggest(metric, METRICS)}")
    costs = found.get("costs") or {}
    return Record(
        **{key: _need(path, found, key, str) for key in ("task", "model", "kind", "metric", "command", "dtype")},
        **{key: _need(path, found, key, dict) for key in ("budget", "versions", "machine")},
        loss=(found.get("sweep") or {}).get(LOSS, TASKS[kind].loss) if LOSS in RULES[kind].keys else TASKS[kind].loss,
        parameters=_need(path, found, "parameters", int),
        target_parameters=found.get("target_parameters"),
        runs=_runs(path, found, metric),
        costs={key: costs.get(key) for key in COSTS},
        baselines={
            name: _numbers(path, values, f"baselines.{name}") for name, values in (found.get("baselines") or {}).items()
        },
        reading=_reading(path, found.get("reading")),
        recipe=complete_recipe(found.get("sweep") or {}),
        rates=tuple(sorted({trial["point"][RATE] for trial in found.get("trials") or ()})),
        chosen_rate=(found.get("chosen") or {}).get(RATE),
    )


def complete_recipe(sweep: dict[str, Any]) -> dict[str, Any]:
    """Returns the keys of a sweep that decide a run and are not tuned, under their present names, with the defaults of
    those that an earlier version did not have; nothing of a sweep that holds none.
    """
    if not sweep:
        return {}
    keys = DEFAULTS | renames.update(sweep)
    return {key: keys[key] for key in keys if key not in APART and key.partition(".")[0] not in UNREAD}


def contents(path: pathlib.Path) -> dict[str, Any]:
    """Returns the object of a JSON file. Raises InputError that names the file where it holds none."""
    try:
        check_regular(path)
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise_damaged(path, str(error))
    if not isinstance(found, dict):
        raise_damaged(path, f"it holds a {type(found).__name__}, expected an object")
    return found


def raise_damaged(path: pathlib.Path, reason: str) -> NoReturn:
    """Raises the InputError of a record that cannot be read."""
    raise InputError(
        f"the record {path} is damaged: {reason}; restore it, or remove it and run again the command that made it"
    )


def _need(path: pathlib.Path, found: dict[str, Any], key: str, kind: type) -> Any:
    if key not in found:
        raise_damaged(path, f"{key!r} is missing")
    if not isinstance(found[key], kind):
        raise_damaged(path, f"{key}={found[key]!r} is of type {type(found[key]).__name__}, expected {kind.__name__}")
    return found[key]


def _runs(path: pathlib.Path, found: dict[str, Any], metric: str) -> tuple[Run, ...]:
    runs = tuple(_run(path, run, index) for index, run in enumerate(_need(path, found, "runs", list)))
    if not runs:
        raise_damaged(path, "runs is empty, expected one run a seed")
    for index, run in enumerate(runs):
        if metric not in run.test:
            raise_damaged(path, f"runs[{index}].test has no {metric!r}, the record's metric")
    if len({run.seed for run in runs}) < len(runs):
        raise_damaged(path, f"the seeds {[run.seed for run in runs]} of its runs repeat, expected each once")
    return runs


def _run(path: pathlib.Path, run: Any, index: int) -> Run:
    if not isinstance(run, dict):
        raise_damaged(path, f"runs[{index}] is a {type(run).__name__}, expected an object")
    lengths = {
        int(length): _numbers(path, values, f"runs[{index}].lengths.{length}")
        for length, values in (run.get("lengths") or {}).items()
    }
    test = _numbers(path, _need(path, run, "test", dict), f"runs[{index}].test")
    return Run(_need(path, run, "seed", int), run.get("command", ""), test, run.get("seconds_per_step"), lengths)


def _reading(path: pathlib.Path, found: dict[str, Any] | None) -> dict[str, Any] | None:
    """The example and its gates, of as many frames as it says."""
    if found is None:
        return None
    frames = len(_need(path, found, "position", list))
    if not frames or not (found.get("tokens") or found.get("signal")):
        raise_damaged(path, "reading has no frames, tokens or signal in it")
    for name, block in _need(path, found, "blocks", dict).items():
        for key in ("gate", "kept"):
            if len(block.get(key, ())) != frames:
                raise_damaged(
                    path,
                    f"reading.blocks.{name}.{key} has {len(block.get(key, ()))} values, expected {frames}, one for "
                    "each of reading.position",
                )
    return found


def _numbers(path: pathlib.Path, values: dict[str, Any], place: str) -> dict[str, float]:
    """The numbers of an object; what is not finite would spread over every mean and test of the page."""
    for name, value in values.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise_damaged(path, f"{place}.{name} is {value!r}, expected a finite number")
    return {name: float(value) for name, value in values.items()}
