"""Claim: a step of three runs together, vmapped over their seeds, costs on one CPU core what three steps alone cost,
and is compiled once for all.

  python benchmarks/seeds.py    # with the package installed

The steps are those of train.py and of training/multi_seed.py with optimiser and donated state: the forecasting model of
configs/etth1.py with lookback 96, and the language model of configs/quickstart.py, on random batches of their shapes.
Seconds of a step are medians over rounds in which both run; drawing the data, which is the same work either way, is
left out. Compiling alone counts three times: every run by itself is compiled anew where no compilation cache is kept on
disk. No target is set: neither way is ours more than the other.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import measure
import numpy as np

from configs import etth1, quickstart
from selssm_jax.config import Experiment, Task
from selssm_jax.model import SequenceModel
from selssm_jax.shapes import Batch
from selssm_jax.tasks.registry import kind_of
from selssm_jax.training import loop, multi_seed, optimizer, step

RUNS = 3
COMPILATIONS = 3  # of each, in turn
LOOKBACK, CHANNELS, HORIZON = 96, 7, 96  # of ETTh1
VOCAB = 103  # characters of the Python reference


def benchmark(rounds: int) -> dict[str, Any]:
    """Both models."""
    cases = {"forecasting": forecasting(), "language": language()}
    found = {name: compare(experiment, task, rounds) for name, (experiment, task) in cases.items()}
    ratios = {}
    for name, case in found.items():
        ratios[f"{RUNS} steps alone over one together, {name}"] = {
            "alone_over_together": case["step_alone_over_together"]
        }
        ratios[f"compiling {RUNS} times alone over once together, {name}"] = {
            "alone_over_together": case["compile_alone_over_together"]
        }
    return {"dtype": "float32", "runs": RUNS, "rounds": rounds, "ratios": ratios, "models": found}


def forecasting() -> tuple[Experiment, Task]:
    """The recipe of ETTh1 with the lookback of most of the literature."""
    config = etth1.get_config()
    config.data.length = config.model.linear_skip = LOOKBACK
    return Experiment.from_config_dict(config), Task("forecasting", channels=CHANNELS, length=LOOKBACK, horizon=HORIZON)


def language() -> tuple[Experiment, Task]:
    """The recipe that needs no data."""
    experiment = Experiment.from_config_dict(quickstart.get_config())
    return experiment, Task("language", vocab=VOCAB, length=experiment.data.length)


def compare(experiment: Experiment, task: Task, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step of all runs, and to compile it, together and alone."""
    take, states, batches = begin(experiment, task)
    every = multi_seed.StackedRuns(take, RUNS)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(states[0].params))
    compiled = {
        "together": (
            compiling(jax.vmap(partial(take, axis=None))),
            (every.stack(states), jax.tree.map(lambda *rows: np.stack(rows), *batches)),
        ),
        "alone": (compiling(partial(take, axis=None)), (states[0], batches[0])),
    }
    seconds = measure.in_turn(compiled, COMPILATIONS)
    alone, joint = loop.SingleRun(take, jax.local_devices()[:1]), stepping(every, states)  # which copies the states
    each = [stepping(alone, [state]) for state in states]
    calls: measure.Calls = {
        "together": (joint, (batches,)),
        "alone": (lambda: [call([batch]) for call, batch in zip(each, batches, strict=True)], ()),
    }
    times = measure.in_turn(calls, rounds)
    return {
        "model": {
            "pattern": experiment.model.pattern,
            "d_model": experiment.model.d_model,
            "d_state": experiment.model.d_state,
        },
        "batch": experiment.data.batch_size,
        "parameters": parameters,
        "milliseconds": measure.milliseconds(times),
        "milliseconds_to_compile": measure.milliseconds(seconds),
        "step_alone_over_together": measure.ratio(times["alone"], times["together"]),
        "compile_alone_over_together": round(RUNS * measure.ratio(seconds["alone"], seconds["together"]), 2),
    }


def begin(experiment: Experiment, task: Task) -> tuple[Callable[..., Any], list[step.TrainState], list[Batch]]:
    """The step, and a first state and a batch of every run."""
    network, tx = SequenceModel(dataclasses.replace(experiment.model, task=task)), optimizer.build(experiment)
    take = partial(step.train_step, model=network, optimizer=tx, experiment=experiment)
    batches = [batch(task, experiment.data.batch_size, seed) for seed in range(RUNS)]
    seeded = [
        dataclasses.replace(experiment, training=dataclasses.replace(experiment.training, seed=seed))
        for seed in range(RUNS)
    ]
    return take, [step.initial(one, network, tx, batches[0]) for one in seeded], batches


def batch(task: Task, rows: int, seed: int) -> Batch:
    """Random examples."""
    rng, valid = np.random.default_rng(seed), np.ones((rows, task.length), bool)
    if kind_of(task).tokens:
        tokens = rng.integers(0, task.vocab, (2, rows, task.length)).astype(np.int32)
        return {"inputs": tokens[0], "targets": tokens[1], "weights": valid.astype(np.float32), "valid": valid}
    inputs, targets = (
        rng.standard_normal((rows, steps, task.channels), np.float32) for steps in (task.length, task.horizon)
    )
    return {"inputs": inputs, "targets": targets, "weights": np.ones(rows, np.float32), "valid": valid}


def compiling(function: Callable[..., Any]) -> Callable[..., Any]:
    """Traces and compiles a function at every call, from empty caches."""

    def call(*arguments: Any) -> Any:
        jax.clear_caches()
        return measure.compiled(function, *arguments)

    return call


def stepping(take: loop.StepRunner, states: list[step.TrainState]) -> Callable[[list[Batch]], Any]:
    """Takes a step at every call, from where the one before ended; returns the metrics."""
    held = take.stack(states)

    def call(batches: list[Batch]) -> Any:
        nonlocal held
        held, sums = take(held, batches)
        return sums

    return call


if __name__ == "__main__":
    measure.run("seeds", __doc__, benchmark, rounds=30)
