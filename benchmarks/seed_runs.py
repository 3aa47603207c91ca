"""One recipe trained with several seeds, in one step for all, and what differences of pairs of them say."""

import pathlib
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from scipy import stats

from selssm_jax.config import Experiment
from selssm_jax.runs import Run, open_run
from selssm_jax.training.evaluation import Evaluator
from selssm_jax.training.multi_seed import fit_seeds


def train_seeds(config: ConfigDict, folder: pathlib.Path, seeds: int, split: str) -> list[Run]:
    """The finished runs of seeds 0, 1, ..., opened on a split; those that are finished are not trained again."""
    runs = []
    for seed in range(seeds):
        config.training.seed = seed
        runs.append(Experiment.from_config_dict(config))
    places = [str(folder / str(seed)) for seed in range(seeds)]
    fit_seeds(runs, places)
    return [open_run(place, split=split) for place in places]


def score_runs(runs: list[Run], split: str) -> list[dict[str, float]]:
    """What each run scores on the split."""
    evaluate = Evaluator(runs[0].experiment, runs[0].model)
    return [dict(evaluate(run.params, run.dataset, split)) for run in runs]


def measure_errors(runs: list[Run], split: str) -> dict[str, Any]:
    """Errors on the split by run, mean squared ones or shares of wrong answers, and how many parameters a run has."""
    scores = score_runs(runs, split)
    return {
        "error": [score["mse"] if "mse" in score else 1 - score["accuracy"] for score in scores],
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(runs[0].params)),
    }


def compare(errors: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    """Mean and interval of the errors of runs less those of others, seed by seed."""
    return interval(np.subtract(errors["error"], usual["error"]))


def interval(differences: np.ndarray) -> dict[str, Any]:
    """Mean and 95 % t-interval; none of a single run."""
    mean, count = float(differences.mean()), len(differences)
    if count < 2:
        return {"mean": mean, "low": None, "high": None, "runs": count}
    half = float(stats.t.ppf(0.975, count - 1) * differences.std(ddof=1) / np.sqrt(count))
    return {"mean": mean, "low": mean - half, "high": mean + half, "runs": count}
