"""Claim: an output gate or a normalised drive of the paper's layer lessens the error on all three kinds of task.

  python benchmarks/selective_options.py --rounds 3 --data FOLDER    # of the originals of ETTh1 and of spoken digits

Rounds are seeds. Short runs on selective copying, ETTh1 and spoken digits, each with model.selective.output_gate=true,
model.selective.drive=normalised, both, and neither. The errors are those of the validation split, a share of wrong
answers or a mean squared error, for what is chosen here are defaults. An option wins on a task where the 95 % interval
of its errors less those of the plain layer, seed by seed, lies below 0. An output gate has d_model x d_model parameters
more a block.
"""

import pathlib
from typing import Any

import measure
from seed_runs import compare, measure_errors, train_seeds

from configs import etth1, fsdd, selective_copying

FOLDER = pathlib.Path(__file__).parent.parent / "runs" / "selective_options"
PLAIN = "plain"
OPTIONS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "output gate": {"output_gate": True},
    "normalised drive": {"drive": "normalised"},
    "both": {"output_gate": True, "drive": "normalised"},
}
RECIPES = {"copying": selective_copying, "forecasting": etth1, "classification": fsdd}
# What is smaller here than in the recipe.
CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "copying": {
        "data": {"length": 32, "vocab": 8, "tokens": 4, "eval_examples": 500},
        "model": {"d_model": 32, "d_state": 32},
        "training": {"steps": 2000, "eval_every": 500},
    },
    "forecasting": {
        "model": {"normalize_scale": True},
        "training": {"steps": 800, "eval_every": 100, "forecast_loss": "mse", "average": 0.0},
    },
    "classification": {
        "data": {"train_on": "train"},
        "model": {"pattern": ("selective",) * 2, "d_model": 32, "d_state": 64},
        "training": {"steps": 800, "eval_every": 200, "select": "best"},
    },
}


def benchmark(rounds: int, data: pathlib.Path) -> dict[str, Any]:
    """Every option on every task."""
    runs = {task: {option: train(task, option, rounds, FOLDER, data) for option in OPTIONS} for task in RECIPES}
    apart = {
        task: {option: compare(found, options[PLAIN]) for option, found in options.items() if option != PLAIN}
        for task, options in runs.items()
    }
    return {
        "dtype": "float32",
        "seeds": rounds,
        "steps": {task: changes["training"]["steps"] for task, changes in CHANGES.items()},
        "ratios": {
            f"{option}: tasks, of {len(RECIPES)}, on which it wins": {
                "ours": sum(wins(apart[task][option]) for task in RECIPES),
                "at_least": len(RECIPES),
            }
            for option in OPTIONS
            if option != PLAIN
        },
        "validation error less that of the plain layer": apart,
        "validation error": {
            task: {option: found["error"] for option, found in options.items()} for task, options in runs.items()
        },
        "parameters": {
            task: {option: found["parameters"] for option, found in options.items()} for task, options in runs.items()
        },
    }


def train(
    task: str, option: str, seeds: int, folder: pathlib.Path, data: pathlib.Path | None, **changes: Any
) -> dict[str, Any]:
    """Errors on the validation split by seed, and how many parameters there are."""
    config = RECIPES[task].get_config()
    for group, values in CHANGES[task].items():
        config[group].update(values)
    config.data.local_dir = str(data or "")
    config.model.selective.update(OPTIONS[option])
    config.training.update({"devices": 1} | changes)
    config.training.checkpoint_every = config.training.steps
    config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, config.training.steps // 10)
    opened = train_seeds(config, folder / task / option.replace(" ", "_"), seeds, "validation")
    return measure_errors(opened, "validation")


def wins(difference: dict[str, Any]) -> bool:
    """Whether the whole interval is below 0, which a single seed does not say."""
    return difference["high"] is not None and difference["high"] < 0


if __name__ == "__main__":
    measure.run(
        "selective_options", __doc__, benchmark, rounds=3, folders={"data": "the originals of ETTh1 and spoken digits"}
    )
