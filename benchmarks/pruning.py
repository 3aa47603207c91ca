"""Claim: components chosen by information cost less loss than components chosen by their weights, at equal bytes and
without fine-tuning.

  python benchmarks/pruning.py --runs RUN [RUN ...]    # folders that train.py wrote; runs that the record holds already
                                                       are not pruned again

Of every run 1/2, 1/4, 1/8 and 1/16 of the components of all blocks together are kept, by each method, each share from
what the one before it left, and nothing is trained. "information" and "loss" are the greedy choices on the second-order
form of the outputs' divergence and of the loss, "random" is the control. Methods choose on sequences of the validation
split, evenly spaced over it; losses are those of the test split, of its first batches where it has more than
--test-batches. Differences are paired by run, with 95 % t-intervals over the runs of a task.
"""

import argparse
import dataclasses
import itertools
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import measure
import numpy as np
from seed_runs import interval

from selssm_jax.analysis.costs import state_bytes
from selssm_jax.compression import pruning
from selssm_jax.data import Dataset
from selssm_jax.model import SequenceModel
from selssm_jax.runs import Run, open_run
from selssm_jax.tasks.registry import kind_of
from selssm_jax.training.evaluation import Evaluator

SHARES = (2, 4, 8, 16)  # one component of so many is kept
# of calibration in all, of the test split at most, and of a batch of calibration
SEQUENCES, TEST_BATCHES, AT_ONCE = 256, 24, 32
Batches = list[dict[str, np.ndarray]]
Choice = Callable[[SequenceModel, Any, Batches, int], pruning.Keep]


def scored(how: str) -> Choice:
    """The components of highest score."""
    return lambda model, params, batches, budget: pruning.choose(pruning.scores(model, params, batches, how), budget)


def at_random(model: SequenceModel, params: Any, batches: Batches, budget: int) -> pruning.Keep:
    """Any components, always the same for a budget."""
    del params, batches
    rng = np.random.default_rng(budget)
    return pruning.choose(
        {name: rng.uniform(size=axes.components) for name, axes in pruning.state_axes(model.config).items()}, budget
    )


METHODS: dict[str, Choice] = {
    "information": lambda model, params, batches, budget: pruning.quadratic(model, params, batches).divergence.choose(
        budget
    ),
    "loss": lambda model, params, batches, budget: pruning.quadratic(model, params, batches).choose(budget),
    "magnitude": scored("magnitude"),
    "gate": scored("gate"),
    "random": at_random,
}


def main() -> None:
    """Prunes every run by every method and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", type=pathlib.Path, required=True, help="folders that train.py wrote")
    parser.add_argument(
        "--sequences", type=int, default=SEQUENCES, help="of the validation split, to choose by (default %(default)s)"
    )
    parser.add_argument(
        "--test-batches", type=int, default=TEST_BATCHES, help="of the test split, at most (default %(default)s)"
    )
    parser.add_argument(
        "--record",
        type=pathlib.Path,
        default=measure.RECORDS / "pruning.json",
        help="file to write (default %(default)s)",
    )
    chosen = parser.parse_args()
    origin = {
        "claim": __doc__.splitlines()[0],
        "command": f"python benchmarks/pruning.py --runs {' '.join(folder.name for folder in chosen.runs)}",
        "machine": measure.machine() | {"load_average_at_start": round(os.getloadavg()[0], 1)},
        "dtype": "float32",
    }
    chosen.record.parent.mkdir(exist_ok=True)
    known = json.loads(chosen.record.read_text())["runs"] if chosen.record.is_file() else []
    runs = []
    for folder in chosen.runs:
        run = open_run(folder)
        name = (run.experiment.name, run.experiment.training.seed)
        runs.append(
            next((one for one in known if (one["task"], one["seed"]) == name), None)
            or pruned(run, chosen.sequences, chosen.test_batches)
        )
        chosen.record.write_text(json.dumps(origin | summary(runs) | {"runs": runs}, indent=1) + "\n")
        print(json.dumps(runs[-1]["methods"]), flush=True)


def pruned(run: Run, sequences: int, test_batches: int) -> dict[str, Any]:
    """Metrics of the test split of one run, whole and at every share by every method."""
    assert isinstance(run.model, SequenceModel)  # a run that is not compressed
    start, kind = time.perf_counter(), kind_of(run.model.config.task)
    size = run.experiment.data.eval_batch_size or run.experiment.data.batch_size
    batches = calibration(run.dataset, size, sequences)
    test = dataclasses.replace(
        run.dataset, cover=lambda split, size: itertools.islice(run.dataset.cover(split, size), test_batches)
    )
    components = sum(axes.components for axes in pruning.state_axes(run.model.config).values())

    def measured(model: SequenceModel, params: Any) -> dict[str, Any]:
        metrics = Evaluator(run.experiment, model)(params, test, "test")
        return {
            "blocks": [part.d_state for part in model.config.blocks],
            "state_bytes": state_bytes(model, params),
            "metrics": metrics,
        }

    budgets = [max(components // share, len(run.model.config.pattern)) for share in SHARES]
    found: dict[str, Any] = {name: {} for name in METHODS}
    for name, choice in METHODS.items():
        for share, (model, params) in zip(
            _shares(), ladder(run.model, run.params, batches, budgets, choice), strict=True
        ):
            found[name][share] = measured(model, params)
    return {
        "task": run.experiment.name,
        "seed": run.experiment.training.seed,
        "loss": kind.loss,
        "components": components,
        "calibration": {"split": "validation", "sequences": sum(len(batch["weights"]) for batch in batches)},
        "test": {
            "batches": len(list(test.evaluate("test", size))),
            "of": len(list(run.dataset.evaluate("test", size))),
        },
        "whole": measured(run.model, run.params),
        "methods": found,
        "seconds": round(time.perf_counter() - start, 1),
    }


def ladder(
    model: SequenceModel, params: Any, batches: Batches, budgets: list[int], choice: Choice
) -> Iterator[tuple[SequenceModel, Any]]:
    """The pruned model at every budget, each from the one before it, whose components are judged anew."""
    for budget in budgets:
        config, params = pruning.prune(model.config, params, choice(model, params, batches, budget))
        model = SequenceModel(config)
        yield model, params


def calibration(dataset: Dataset, size: int, sequences: int) -> Batches:
    """Sequences evenly spaced over the validation split: neighbours overlap in time and say the same."""
    found = list(dataset.evaluate("validation", size))
    whole = {name: np.concatenate([batch[name] for batch in found]) for name in found[0]}
    scored = np.flatnonzero(whole["weights"].reshape(len(whole["weights"]), -1).any(axis=1))
    rows = scored[np.unique(np.linspace(0, len(scored) - 1, sequences).astype(int))]
    return [
        {name: value[rows[start : start + AT_ONCE]] for name, value in whole.items()}
        for start in range(0, len(rows), AT_ONCE)
    ]


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean loss of every task by method and share, and differences of losses by run: of what is chosen by outputs or
    loss - magnitude.
    """
    means: dict[str, dict[str, float | dict[str, float]]] = {}
    differences = {}
    for task in sorted({run["task"] for run in runs}):
        mine = [run for run in runs if run["task"] == task]
        loss = {
            (name, share): np.array([run["methods"][name][share]["metrics"][run["loss"]] for run in mine])
            for name in METHODS
            for share in _shares()
        }
        means[task] = {"whole": float(np.mean([run["whole"]["metrics"][run["loss"]] for run in mine]))}
        means[task] |= {name: {share: float(loss[name, share].mean()) for share in _shares()} for name in METHODS}
        differences[task] = {
            name: {share: interval(loss[name, share] - loss["magnitude", share]) for share in _shares()}
            for name in ("information", "loss")
        }
    return {"mean_loss": means, "minus_magnitude": differences}


def _shares() -> list[str]:
    return [f"1/{share}" for share in SHARES]


if __name__ == "__main__":
    main()
