"""Metrics: what each is called, which way it is better, and sums of it that merge over batches and devices."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Sums = dict[str, Float[Array | np.ndarray, "2"]]  # name -> (weighted sum, weight)


class Metric(NamedTuple):
    """A metric of a task.

    Attributes:
      higher: whether more of it is better.
      share: whether it is a share, which words give in percent.
      label: its name with its unit, for figures and tables; empty: its name alone. `{per}` in it becomes what the task
        counts, such as "per signal".
    """

    higher: bool = False
    share: bool = False
    label: str = ""


METRICS: dict[str, Metric] = {
    "nats": Metric(label="nats {per}"),
    "bits": Metric(label="bits {per}"),
    "perplexity": Metric(),
    "accuracy": Metric(higher=True, share=True, label="accuracy (share)"),
    "mse": Metric(label="mean squared error (scaled units)"),
    "mae": Metric(label="mean absolute error (scaled units)"),
    "pinball": Metric(label="pinball loss (scaled units)"),
    "direction": Metric(higher=True, share=True),
    "r2": Metric(higher=True, label="R² (against forecasting the training mean)"),
}  # in the order in which tables show them; of one that is not here, less is better


def meaning_of(metric: str) -> Metric:
    """Returns what is known of a metric; of one that is not in the table, less is better."""
    return METRICS.get(metric, Metric())


def higher_is_better(metric: str) -> bool:
    """Whether more of a metric is better."""
    return meaning_of(metric).higher


def is_better(metric: str, new: float, old: float) -> bool:
    """Whether `new` improves on `old`; anything improves on not-a-number."""
    if old != old:
        return new == new
    return new > old if higher_is_better(metric) else new < old


def count_since_best(metric: str, values: Iterable[float]) -> int:
    """Returns how many values came after the best, of equals the first."""
    best, since = float("nan"), 0
    for number, value in enumerate(values):
        better = number == 0 or is_better(metric, value, best)
        best, since = (value, 0) if better else (best, since + 1)
    return since


def hide_unweighted(values: Array, weights: Array) -> Array:
    """Returns the values, (B, ...), 0 where the weight of their row or step is: a product with it would not hide what
    is not finite, nor its gradient.
    """
    return jnp.where(weights.reshape(*weights.shape, *[1] * (values.ndim - weights.ndim)) == 0, 0, values)


def sum_weighted(error: Array, weights: Array) -> Float[Array, "2"]:
    """Returns the (weighted sum, weight) of an error of every row or step: their ratio over any number of batches is
    exact.
    """
    return jnp.stack([(hide_unweighted(error, weights) * weights).sum(), weights.sum()])


def means(sums: Mapping[str, Any]) -> dict[str, float]:
    """Returns the weighted means; a weight of zero gives not-a-number, for there is nothing to report."""
    return {name: float(total) / float(weight) if weight else float("nan") for name, (total, weight) in sums.items()}
