"""What a report and a compression of a run would be refused for, said before the run is trained for them."""

import pathlib

from selssm_jax.analysis.memory import check_sequences
from selssm_jax.config import Experiment
from selssm_jax.data import Dataset
from selssm_jax.runs import check_compression


def check_ahead(experiment: Experiment, workdir: str | pathlib.Path, dataset: Dataset, *, report: bool, measure: bool, compress: bool) -> None:
    """Raises InputError where what is asked for would be refused once the run is trained.

    Args:
      report: a report on its test split. measure: one that measures what the states know. compress: a report, and the run compressed after it.
    """
    if report or measure or compress:
        dataset.check("test")
    if measure:
        check_sequences(experiment, dataset, "test")
    if compress:
        check_compression(experiment, dataset, pathlib.Path(workdir))
