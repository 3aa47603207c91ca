"""Examples for training and evaluation, from public origins, local folders, files of one's own, or thin air."""

from collections.abc import Callable, Mapping
from typing import Any

from selssm_jax.config import Data, Task
from selssm_jax.data import sources
from selssm_jax.data.pipeline import Batches, Dataset
from selssm_jax.errors import InputError

__all__ = ["Batches", "Dataset", "load"]

LOADERS: Mapping[str, Callable[[Data, Mapping[str, Any]], Dataset]] = {
    "python_reference": sources.python_reference,
    "tiny_shakespeare": sources.tiny_shakespeare,
    "wikitext2": sources.wikitext2,
    "text": sources.text_file,
    "etth1": sources.table,
    "ettm1": sources.table,
    "weather": sources.table,
    "csv": sources.csv_file,
    "fsdd": sources.spoken_digits,
    "smnist": sources.pixels,
    "psmnist": sources.pixels,
    "npz": sources.npz_file,
    "selective_copying": sources.synthetic_task,
    "induction_heads": sources.synthetic_task,
    "delayed_recall": sources.synthetic_task,
    "linear_gaussian": sources.synthetic_task,
}


def load(config: Data, known: Mapping[str, Any] | None = None) -> Dataset:
    """Returns the data set that a config names.

    Args:
      config: which examples.
      known: `metadata()` of a training run, whose vocabulary and scaling then hold; needed to evaluate on other data.

    Raises:
      InputError: where a file is missing, damaged, too small, or holds what the run never saw.
    """
    known = known or {}
    dataset = LOADERS[config.source](config, known)
    if "task" in known:
        _check_task(dataset.task, known["task"], config.file or config.source)
    return dataset


def _check_task(task: Task, trained: Mapping[str, Any], name: str) -> None:
    for field in ("kind", "vocab", "channels", "classes", "horizon"):
        if getattr(task, field) != trained[field]:
            raise InputError(f"{name} has {field} {getattr(task, field)}, the run was trained with {trained[field]}: give data of the same form")
