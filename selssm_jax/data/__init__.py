"""Data sets for training and evaluation: public ones, local folders, your own files, and synthetic tasks."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from selssm_jax.config import Data, Task, add_source
from selssm_jax.data import capacity, sources
from selssm_jax.data.pipeline import Batches, Dataset
from selssm_jax.errors import InputError

__all__ = ["Batches", "Dataset", "load", "recall_dataset", "register_data"]

LOADERS: dict[str, Callable[[Data, Mapping[str, Any]], Dataset]] = {
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
    "labelled_text": sources.labelled_texts_file,
    "tagged_text": sources.labelled_texts_file,
    "selective_copying": sources.synthetic_task,
    "induction_heads": sources.synthetic_task,
    "associative_recall": sources.synthetic_task,
    "delayed_recall": sources.synthetic_task,
    "linear_gaussian": sources.synthetic_task,
    "changing_noise": sources.synthetic_task,
    "changing_drift": sources.synthetic_task,
    "two_answers": sources.synthetic_task,
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
    capacity.check_examples(config)
    dataset = LOADERS[config.source](config, known)
    if config.quantiles:  # the config's word, whatever the source is
        dataset = dataclasses.replace(dataset, task=dataclasses.replace(dataset.task, quantiles=config.quantiles))
    if "task" in known:
        _check_task(dataset.task, known["task"], config.file or config.source)
    return dataset


def register_data(name: str, load: Callable[[Data, Mapping[str, Any]], Dataset], *, kind: str) -> None:
    """Makes an own source known: `data.source=name`, trained on, evaluated and reported as those of the package.

    Commands read the file that registers it by `--extend FILE.py`.

    Args:
      name: what it is called. kind: the kind of its task, one of `tasks.TASKS`.
      load: (config, known) -> data set; `known` is the metadata of the training run that is evaluated, {} in training.

    Raises:
      ValueError: for a name that is taken, or a kind of task that is unknown.
    """
    add_source(name, kind)
    LOADERS[name] = load


def load_for_resume(config: Data, metadata: Mapping[str, Any], *, started: bool = False) -> Dataset:
    """Returns the training data of a run that goes on, at the scale of its beginning where that was another than
    today's (`signals.scale_clips`); where it `started` from another run, at the vocabulary and scaling of that.
    """
    old = config.source == "npz" and "task" in metadata and "scaling" not in metadata
    return load(config, metadata if old or started else None)


def recall_dataset(known: Mapping[str, Any]) -> Dataset:
    """Returns the data set of a run without its examples, from its metadata: what its task is, and how text becomes
    tokens.
    """
    words = {key: known[key] for key in ("level", "tokenizer") if key in known}
    return Dataset(
        Task.recall(known["task"]),
        _no_examples,
        _no_examples,
        dict(known),
        lambda split: {},
        vocabulary=tuple(known.get("vocabulary") or ()),
        **words,
    )


def _no_examples(*_: Any) -> Any:
    raise ValueError("this data set was opened without its examples: load it from its source")


def _check_task(task: Task, trained: Mapping[str, Any], name: str) -> None:
    asked = Task.recall(trained)
    for field in ("kind", "vocab", "channels", "classes", "horizon", "masked", "covariates", "known_ahead"):
        wanted = getattr(asked, field)
        if getattr(task, field) != wanted:
            raise InputError(
                f"{name} has {field} {getattr(task, field)}, the run was trained with {wanted}: give data of the same "
                "form"
            )
