"""The table of kinds of task, and how an own one gets into it."""

from collections.abc import Mapping

from selssm_jax.config import Task
from selssm_jax.errors import suggest
from selssm_jax.tasks.base import TaskKind
from selssm_jax.tasks.classification import Classification
from selssm_jax.tasks.forecasting import Forecasting
from selssm_jax.tasks.language import Language
from selssm_jax.tasks.scores import METRICS, Metric

TASKS: dict[str, TaskKind] = {"language": Language(), "classification": Classification(), "forecasting": Forecasting()}


def kind_of(task: Task) -> TaskKind:
    """Returns the object of a task's kind. Raises ValueError for a kind that is unknown."""
    if task.kind not in TASKS:
        raise ValueError(f"the task {task.kind!r} is unknown: {suggest(task.kind, TASKS)}, or make it known with selssm_jax.tasks.register_task")
    return TASKS[task.kind]


def register_task(name: str, kind: TaskKind, metrics: Mapping[str, Metric] | None = None) -> None:
    """Makes an own kind of task known: data sets whose `Task.kind` is `name` are trained, evaluated and reported as those of the package.

    Args:
      name: what it is called from now on. kind: what it is.
      metrics: those of its metrics that `METRICS` lacks; of one that it does not have, less is better.

    Raises:
      ValueError: for a name that is taken, no loss or primary metric, or a metric that is already there and another.
    """
    if name in TASKS:
        raise ValueError(f"the task {name!r} is there already: give another name")
    for attribute in ("loss", "primary"):
        if not isinstance(getattr(kind, attribute, None), str):
            raise ValueError(f"the task {name!r} has no {attribute}: name one of its metrics")
    for metric, what in (metrics or {}).items():
        if METRICS.get(metric, what) != what:
            raise ValueError(f"the metric {metric!r} of the task {name!r} is there already and is {METRICS[metric]}: give it another name, or leave it out")
    METRICS.update(metrics or {})
    TASKS[name] = kind
