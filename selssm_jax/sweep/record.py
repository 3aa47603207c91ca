"""The record of a cell, one model on one task: how it was tuned, what each seed scored on the test split, what it
costs, and how to run it again.
"""

import dataclasses
import json
import pathlib
import shlex
import statistics
from typing import Any

from selssm_jax import data
from selssm_jax.analysis import costs
from selssm_jax.analysis.scores import derive_metrics
from selssm_jax.analysis.setting import describe_setting
from selssm_jax.config import EVALUATION, Data, Experiment
from selssm_jax.config.fields import flatten
from selssm_jax.runs import Run, open_run
from selssm_jax.sweep.compared_models import target
from selssm_jax.sweep.gate_example import show_gates
from selssm_jax.sweep.runner import OF_A_MACHINE, Cell, Trained
from selssm_jax.tasks.registry import kind_of
from selssm_jax.training.checkpoint import differing, write_whole
from selssm_jax.training.evaluation import Evaluator

LENGTH_BATCH = 4  # examples at a time of sequences that may be long
Record = dict[str, Any]


def write(cell: Cell, config: str, base: Experiment, folder: pathlib.Path) -> pathlib.Path:
    """Evaluates a cell's runs on the test split and writes FOLDER/MODEL.json; returns its path.

    Args:
      cell: finished. config: the file that the sweep's experiment came from. base: what that file says, before
        overrides of the command line.
      folder: of the task's records; it is made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{cell.model}.json"
    write_whole(path, json.dumps(record(cell, config, base), indent=1, allow_nan=False) + "\n")
    return path


def record(cell: Cell, config: str, base: Experiment) -> Record:
    """Returns the record as JSON-able values; the test split is read here, once a seed."""
    sweep, steps, opened = cell.sweep.sweep, cell.sweep.training.steps, [open_run(run.workdir) for run in cell.runs]
    first = opened[0]
    cost = costs.account(first.experiment, first.model, first.params, _row(first))
    found = {
        "task": cell.sweep.name,
        "model": cell.model,
        "kind": first.dataset.task.kind,
        "metric": kind_of(first.dataset.task).primary,
        "command": f"python train.py --config {config} --sweep --models {cell.model}",
        "sweep": identity(cell.sweep),
        "budget": {
            "trials": sweep.trials,
            "trial_steps": sweep.trial_steps or steps,
            "steps": steps,
            "seeds": sweep.seeds,
        },
        "parameters": sum(cost["parameters"].values()),
        "target_parameters": target(cell.sweep, first.dataset.task),
        "trials": [trial._asdict() for trial in cell.trials],
        "chosen": cell.chosen,
        "runs": [
            _record_seed(trained, run, command(config, base, trained))
            for trained, run in zip(cell.runs, opened, strict=True)
        ],
        "costs": _costs(cost),
        "baselines": first.dataset.baselines("test"),
        "dtype": first.experiment.model.dtype,
        **describe_setting(first.experiment),
    }
    return found | ({"reading": show_gates(first)} if cell.model == "selective" else {})


def identity(sweep: Experiment) -> Record:
    """Returns all that decides what a sweep finds, as JSON has it: two sweeps with the same have the same records."""
    decides = {
        key: value
        for key, value in flatten(dataclasses.asdict(sweep))
        if key not in (*OF_A_MACHINE, "sweep.models", "sweep.storage") and key.partition(".")[0] not in EVALUATION
    }
    return json.loads(json.dumps(decides))


def command(config: str, base: Experiment, run: Trained) -> str:
    """Returns the one command that trains and evaluates a run again: the config's file and every key that differs from
    it.
    """
    changed = {
        key: mine
        for key, (_, mine) in differing(base, run.experiment).items()
        if key not in OF_A_MACHINE and not key.startswith("sweep.")
    }
    flags = [shlex.quote(f"--config.{key}={value}") for key, value in changed.items()]
    return " ".join(
        [
            "python train.py",
            f"--config {config}",
            f"--workdir runs/{run.experiment.name}_{run.seed}",
            *flags,
            "--report",
        ]
    )


def _record_seed(trained: Trained, run: Run, again: str) -> Record:
    """One seed: what it scored, and how to have it again."""
    speeds = [record["steps_per_second"] for record in run.history if "steps_per_second" in record]
    found = {
        "seed": trained.seed,
        "command": again,
        "step": run.step,
        "validation": trained.validation,
        "test": derive_metrics(Evaluator(run.experiment, run.model)(run.params, run.dataset, "test"), run),
        "cpu_seconds": trained.cpu_seconds,
        "seconds_per_step": 1 / statistics.median(speeds) if speeds else None,
    }
    return found | ({"lengths": _lengths(run)} if run.experiment.sweep.lengths else {})


def _lengths(run: Run) -> dict[str, dict[str, float]]:
    """The same parameters on test sequences of other lengths, of the same task."""
    found = {}
    for length in run.experiment.sweep.lengths:
        longer: Data = dataclasses.replace(run.experiment.data, length=length, eval_batch_size=LENGTH_BATCH)
        evaluate = Evaluator(dataclasses.replace(run.experiment, data=longer), run.model)
        found[str(length)] = evaluate(run.params, data.load(longer), "test")
    return found


def _costs(costs: dict[str, Any]) -> Record:
    training, decoding = costs["training_step"], costs["decode_step"]
    return {
        "state_bytes": costs["state_bytes"],
        "training_peak_bytes": training["peak_bytes"],
        "training_flops": training["flops"],
        "decode_peak_bytes": decoding["peak_bytes"],
        "decode_flops": decoding["flops"],
        "batch": costs["batch"]["size"],
        "steps": costs["batch"]["steps"],
    }


def _row(run: Run) -> dict[str, Any]:
    batch = next(run.dataset.evaluate("test", 1))
    return {name: value[0] for name, value in batch.items()}
