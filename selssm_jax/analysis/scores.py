"""The scores of a run on a split, beside baselines, and where it errs: by step of the horizon and channel of a
forecast, by class of a signal.
"""

import math
import pathlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from selssm_jax.analysis.results import Results
from selssm_jax.analysis.setting import describe_setting
from selssm_jax.config import Experiment
from selssm_jax.data.pipeline import SPLITS
from selssm_jax.runs import Run, exposure
from selssm_jax.shapes import Batch
from selssm_jax.tasks.registry import kind_of
from selssm_jax.tasks.scores import count_since_best, is_better
from selssm_jax.training import pieces
from selssm_jax.training.evaluation import Evaluator

FORMAT = 1  # of results.json


def score(run: Run, split: str) -> Results:
    """Returns metrics beside baselines, what was evaluated, and in which setting."""
    task = run.dataset.task
    return {
        "format": FORMAT,
        "name": run.experiment.name,
        "title": title_of(run.experiment),
        "split": split,
        "step": run.step,
        "steps": run.experiment.training.steps,
        "chosen": name_choice(run.step, run.history, kind_of(task).primary)
        if run.experiment.training.select == "best"
        else "last",
        "seen": exposure(run, split),
        "course": describe_course(run),
        "task": task.describe(),
        "primary": kind_of(task).primary,
        "metrics": derive_metrics(Evaluator(run.experiment, run.model)(run.params, run.dataset, split), run),
        "baselines": _score_baselines(run, split),
        # another file has no validation of the run's
        "validation_baselines": _score_baselines(run, "validation") if split in SPLITS else {},
        "training_seconds": max((record.get("time", 0.0) for record in run.history), default=None),
        **describe_setting(run.experiment),
    }


def title_of(experiment: Experiment) -> str:
    """Returns what a run is called: by its own file, if it reads one, beside the recipe that it took; else by the
    recipe.
    """
    file = pathlib.Path(experiment.data.file).name
    return f"{file} (recipe {experiment.name})" if file else experiment.name


def name_choice(step: int, history: list[dict[str, Any]], metric: str) -> str:
    """Returns "best" where no validated step of the history did better on validation than this one, else "last"."""
    scores = {
        record["step"]: record[metric] for record in history if record.get("split") == "validation" and metric in record
    }
    mine = scores.pop(step, None)
    return "last" if mine is None or any(is_better(metric, other, mine) for other in scores.values()) else "best"


def describe_course(run: Run) -> Results:
    """Returns how training went by its records: the step after which training.patience ended it, or None; how many
    steps were skipped because they were not finite; and which settings changed after which step.
    """
    training, metric = run.experiment.training, kind_of(run.dataset.task).primary
    values = [record[metric] for record in run.history if record.get("split") == "validation" and metric in record]
    last = max((record["step"] for record in run.history), default=0)
    ended = 0 < training.patience <= count_since_best(metric, values) and last < training.steps
    return {
        "ended_early": last if ended else None,
        "skipped": max((record.get("skipped", 0) for record in run.history), default=0),
        "changes": [
            {name: value for name, value in record.items() if name not in ("split", "time")}
            for record in run.history
            if record.get("split") == "settings"
        ],
    }


def derive_metrics(metrics: Mapping[str, float], run: Run) -> dict[str, float | None]:
    """Returns metrics and those that the task derives from them, as bits from nats of language. None: not a finite
    number.
    """
    values = {name: float(value) for name, value in metrics.items()}
    values |= kind_of(run.dataset.task).derive_metrics(values, run.experiment.data, is_stream=run.dataset.is_stream)
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def find_errors(run: Run, split: str) -> Results | None:
    """Returns the errors of a whole split in the parts that the task has, `TaskKind.error_parts`; None where it has
    none.
    """
    model, data = run.model, run.experiment.data
    kind = kind_of(model.config.task)
    if not kind.in_parts:
        return None

    @jax.jit
    def sum_errors(params: PyTree, batch: Batch, number: Array) -> dict[str, Array]:
        read = pieces.make_reader(model, params, jax.random.fold_in(jax.random.key(0), number))
        score = partial(kind.error_sums, model.config)
        return pieces.fold(read, score, model, params, batch, run.experiment.training.piece)[1]

    total: dict[str, np.ndarray] = {}
    for number, batch in enumerate(run.dataset.evaluate(split, data.eval_batch_size or data.batch_size)):
        for name, value in jax.device_get(sum_errors(run.params, batch, number)).items():
            total[name] = np.asarray(total.get(name, 0.0) + np.asarray(value, np.float64))
    return kind.error_parts(total, run.dataset.metadata())


def _score_baselines(run: Run, split: str) -> Results:
    return {name: derive_metrics(metrics, run) for name, metrics in run.dataset.baselines(split).items()}
