"""Claim: each part of the weather recipe lessens its error.

  python benchmarks/weather_ablation.py --rounds 3 --data FOLDER    # of the original of the weather

Rounds are seeds. The recipe as it is, and without one part at a time: the learned cycle, the vector of each channel,
what channels read of one another, the linear path past the blocks, the normalisation of the scale, and all states of
the blocks but the last; and with the mean day of the training rows taken off in place of a learned one. The errors are
those of the validation split, for what is chosen here is a recipe. A part serves where the 95 % interval of the errors
without it less those of the recipe, seed by seed, lies above 0.
"""

import pathlib
from typing import Any

import measure
from seed_runs import compare, measure_errors, train_seeds

from configs import weather

FOLDER = pathlib.Path(__file__).parent.parent / "runs" / "weather_ablation"
WHOLE = "the recipe"
Changes = dict[str, dict[str, Any]]
WITHOUT: dict[str, Changes] = {
    "no cycle": {"data": {"period": 0, "course": "mean"}},
    "the mean day taken off": {"data": {"course": "mean"}},
    "no channel embedding": {"model": {"channel_embedding": False}},
    "no channel mixing": {"model": {"channel_mixing": False}},
    "no linear skip": {"model": {"linear_skip": 0}},
    "no normalisation of the scale": {"model": {"normalize_scale": False}},
    "the last state alone": {"model": {"head_context": 1}},
}


def benchmark(rounds: int, data: pathlib.Path) -> dict[str, Any]:
    """The recipe, and the recipe without each of its parts."""
    recipes: dict[str, Changes] = {WHOLE: {}} | WITHOUT
    runs = {name: train(changes, rounds, FOLDER / name, data) for name, changes in recipes.items()}
    apart = {name: compare(runs[name], runs[WHOLE]) for name in WITHOUT}
    return {
        "dtype": "float32",
        "seeds": rounds,
        "steps": weather.get_config().training.steps,
        "ratios": {
            "parts that serve": {"ours": sum(map(serves, apart.values())), "at_least": len(WITHOUT)},
        },
        "validation error less that of the recipe": apart,
        "validation error": {name: found["error"] for name, found in runs.items()},
        "parameters": {name: found["parameters"] for name, found in runs.items()},
    }


def train(changes: Changes, seeds: int, folder: pathlib.Path, data: pathlib.Path, **training: Any) -> dict[str, Any]:
    """Mean squared errors on the validation split by seed, and how many parameters there are."""
    config = weather.get_config()
    for group, values in changes.items():
        config[group].update(values)
    config.data.local_dir = str(data)
    config.training.update(training)
    return measure_errors(train_seeds(config, folder, seeds, "validation"), "validation")


def serves(difference: dict[str, Any]) -> bool:
    """Whether the whole interval is above 0, which a single seed does not say."""
    return difference["low"] is not None and difference["low"] > 0


if __name__ == "__main__":
    measure.run("weather_ablation", __doc__, benchmark, rounds=3, folders={"data": "the original of the weather"})
