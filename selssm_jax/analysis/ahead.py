"""What a report and a compression of a run would be refused for, said before the run is trained for them."""

import dataclasses
import pathlib

from selssm_jax.config import Experiment
from selssm_jax.data import Dataset
from selssm_jax.model import SequenceModel
from selssm_jax.reporting import compression
from selssm_jax.reporting.memory.measure import check_sequences


@dataclasses.dataclass(frozen=True)
class Planned:
    """A run that has no parameters yet."""

    experiment: Experiment
    model: SequenceModel
    dataset: Dataset


def check(experiment: Experiment, workdir: str | pathlib.Path, dataset: Dataset, *, report: bool, measure: bool, compress: bool) -> None:
    """Raises InputError where what is asked for would be refused once the run is trained.

    Args:
      report: a report on its test split. measure: one that measures what the states know. compress: a report, and the run compressed after it.
    """
    if report or measure or compress:
        dataset.check("test")
    planned = Planned(experiment, SequenceModel(experiment.model.of_task(dataset.task)), dataset)
    if measure:
        check_sequences(planned, "test")
    if compress:
        compression.check(experiment, planned.model, dataset, pathlib.Path(workdir))
