"""The table of kinds of task, and how an own one gets into it."""

from collections.abc import Mapping, Sequence

from selssm_jax.config import Task, data
from selssm_jax.errors import suggest
from selssm_jax.tasks.base import TaskKind
from selssm_jax.tasks.classification import Classification, TextClassification, TokenClassification
from selssm_jax.tasks.forecasting import Forecasting
from selssm_jax.tasks.language import Language
from selssm_jax.tasks.scores import METRICS, Metric

TASKS: dict[str, TaskKind] = {
    "language": Language(),
    "classification": Classification(),
    "text_classification": TextClassification(),
    "token_classification": TokenClassification(),
    "forecasting": Forecasting(),
}


def kind_of(task: Task) -> TaskKind:
    """Returns the object of a task's kind, as the task asks it. Raises ValueError for a kind that is unknown."""
    if task.kind not in TASKS:
        raise ValueError(
            f"the task {task.kind!r} is unknown: {suggest(task.kind, TASKS)}, or make it known with "
            "selssm_jax.tasks.register_task"
        )
    return TASKS[task.kind].of_task(task)


def register_task(
    name: str,
    kind: TaskKind,
    *,
    keys: Sequence[str] = (),
    whole: bool = False,
    metrics: Mapping[str, Metric] | None = None,
) -> None:
    """Makes an own kind of task known: data whose `Task.kind` is `name` are trained on, evaluated, measured and
    reported as those of the package.

    Commands read the file that registers it by `--extend FILE.py`.

    Args:
      name: what it is called from now on. kind: what it is.
      keys: of the keys that not every kind of task reads, those that it does, such as "model.pool" and "model.frame".
      whole: whether all inputs are read before an answer, so that `model.bidirectional` may be set.
      metrics: those of its metrics that `METRICS` lacks; of one that is in neither, less is better.

    Raises:
      ValueError: for a name that is taken, no loss or primary metric, a key that is none of any task, or a metric that
        is already there and another.
    """
    if name in TASKS:
        raise ValueError(f"the task {name!r} is there already: give another name")
    for attribute in ("loss", "primary"):
        if not isinstance(getattr(kind, attribute, None), str):
            raise ValueError(f"the task {name!r} has no {attribute}: name one of its metrics")
    known = {key for rule in data.TASKS.values() for key in rule.keys}
    for key in keys:
        if key not in known:
            raise ValueError(
                f"the task {name!r} reads the key {key!r}, which is none that tasks differ in: "
                f"{suggest(key, sorted(known))}"
            )
    for metric, meaning in (metrics or {}).items():
        if METRICS.get(metric, meaning) != meaning:
            raise ValueError(
                f"the metric {metric!r} of the task {name!r} is there already, as {METRICS[metric]}: give it another "
                "name, or leave it out"
            )
    METRICS.update(metrics or {})
    data.TASKS[name] = data.TaskRule(tuple(keys), whole)
    TASKS[name] = kind
