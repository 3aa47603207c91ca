"""What is to be compressed, the data that it is compressed by, and how a compressed model is judged."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from selssm_jax.config import Experiment
from selssm_jax.data import Dataset
from selssm_jax.model import ModelLike, SequenceModel
from selssm_jax.tasks.registry import kind_of
from selssm_jax.tasks.scores import higher_is_better
from selssm_jax.training.evaluation import Evaluator

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is to be compressed: a run's experiment, model, parameters and data."""

    experiment: Experiment
    model: SequenceModel
    params: PyTree
    dataset: Dataset

    @property
    def metric(self) -> str:
        """What the task is judged by."""
        return kind_of(self.dataset.task).primary

    def draw_batches(self) -> list[dict[str, np.ndarray]]:
        """Returns the `compress.calibration` training batches that everything is calibrated on."""
        data, count = self.experiment.data, self.experiment.compress.calibration
        batches = self.dataset.train(data.batch_size, seed=data.seed + 1)
        return [next(batches) for _ in range(count)]

    def validate(self, model: ModelLike, params: PyTree) -> dict[str, float]:
        """Returns the metrics of a model made of it on the validation split."""
        return Evaluator(self.experiment, model)(params, self.dataset, "validation")


def relative_loss(metrics: Mapping[str, float], reference: Mapping[str, float], metric: str) -> float:
    """Returns by which share of the reference a metric is worse, negative where it is better; of a reference of 0,
    which has no shares, by how much.
    """
    worse = reference[metric] - metrics[metric] if higher_is_better(metric) else metrics[metric] - reference[metric]
    return worse / (abs(reference[metric]) or 1.0)


def loss_of(metrics: Mapping[str, float], metric: str) -> float:
    """Returns the metric as a number that is better when smaller: infinity where it is not finite, for a model that
    diverges is the worst of all.
    """
    value = metrics[metric] if np.isfinite(metrics[metric]) else np.inf
    return -value if higher_is_better(metric) and np.isfinite(value) else value
