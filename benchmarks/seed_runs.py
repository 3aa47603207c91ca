"""One recipe trained with several seeds, in one step for all, and what differences of pairs of them say."""

import pathlib
from typing import Any

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


def interval(differences: np.ndarray) -> dict[str, Any]:
    """Mean and 95 % t-interval; none of a single run."""
    mean, count = float(differences.mean()), len(differences)
    if count < 2:
        return {"mean": mean, "low": None, "high": None, "runs": count}
    half = float(stats.t.ppf(0.975, count - 1) * differences.std(ddof=1) / np.sqrt(count))
    return {"mean": mean, "low": mean - half, "high": mean + half, "runs": count}
