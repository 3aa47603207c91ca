"""Networks against a ridge regression a channel, which has no seeds: which of a task's do not beat it, by how much,
and what of their recipe may be why.
"""

import math
import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.paper.comparisons import Effect, estimate, span
from experiments.paper.names import METRICS, title
from experiments.paper.records import Record
from experiments.paper.study import Study, Task

RIDGE = "ridge by channel"
TRAINING_ROWS = {"etth1": 8640, "ettm1": 34560, "weather": 36887}  # of the literature's splits


class RidgeGap(NamedTuple):
    """A network's loss above that of ridge a channel, as a share of the latter."""

    model: str
    effect: Effect

    @property
    def is_beaten(self) -> bool:
        """Whether the network's mean is no lower than that of ridge."""
        return self.effect.mean >= 0


def compare_with_ridge(record: Record) -> RidgeGap | None:
    """Returns a network against the ridge regression of its own record, with the t interval over seeds; None where the
    record has none.
    """
    baseline = record.baselines.get(RIDGE, {}).get(record.metric)
    if not baseline:
        return None
    shares = [
        METRICS[record.metric].loss(value) / METRICS[record.metric].loss(baseline) - 1
        for value in record.values(record.metric).values()
    ]
    mean, deviation = statistics.fmean(shares), statistics.stdev(shares) if len(shares) > 1 else 0.0
    if not deviation:
        return RidgeGap(record.model, Effect(mean))
    return RidgeGap(record.model, estimate(mean, deviation / math.sqrt(len(shares)), len(shares) - 1))


def list_gaps(study: Study, task: Task) -> list[RidgeGap]:
    """Returns every network of a task that can be compared with ridge, the best first."""
    gaps = [gap for record in study.of(task).values() if (gap := compare_with_ridge(record))]
    return sorted(gaps, key=lambda gap: gap.effect.mean)


def describe_ridge(study: Study, task: Task) -> str:
    """Returns in words which networks do not beat ridge a channel, by how much, and why, as far as their recipes tell;
    "" where no record has it.
    """
    gaps = list_gaps(study, task)
    if not gaps:
        return ""
    beaten = [gap for gap in gaps if gap.is_beaten]
    if not beaten:
        best = gaps[0]
        lead = span(best.effect.scale(-100))
        return (
            f"Ridge regression a channel is beaten by all {len(gaps)} networks: the error of the best, "
            f"{title(best.model)}, is lower than its own by {lead} % [95 % interval]."
        )
    shares = ", ".join(f"{title(gap.model)} {span(gap.effect.scale(100))}" for gap in beaten)
    return (
        f"Ridge regression a channel is not beaten by {len(beaten)} of {len(gaps)} networks. By so many % of its own "
        f"error theirs is higher [95 % interval]: {shares}. "
        f"{explain_by_recipe(study.of(task)[beaten[0].model].recipe, task)}"
    )


def explain_by_recipe(recipe: Mapping[str, Any], task: Task) -> str:
    """Returns what of a recipe may be why its networks lose to ridge, or that its keys do not tell."""
    reasons = []
    if takes_mean_day(recipe):
        reasons.append(
            "the data are less the mean day of the training months, which raises the error on test (see The mean day)"
        )
    epochs = count_epochs(recipe, task)
    if epochs is not None and epochs < 1:
        reasons.append(f"a run reads {100 * epochs:.0f} % of the training windows once, and ridge is fitted to all")
    return f"Why, as far as the recipe tells: {'; '.join(reasons)}." if reasons else "The recipe does not tell why."


def count_epochs(recipe: Mapping[str, Any], task: Task) -> float | None:
    """Returns how often a run reads each training window, None where recipe or rows are not known."""
    rows = TRAINING_ROWS.get(task.source)
    if not recipe or rows is None:
        return None
    return recipe["training.steps"] * recipe["data.batch_size"] / (rows - task.length - task.horizon + 1)


def takes_mean_day(recipe: Mapping[str, Any]) -> bool:
    """Whether the mean course of a period is taken off the data before a model reads them."""
    return bool(recipe.get("data.period")) and recipe.get("data.course") == "mean"
