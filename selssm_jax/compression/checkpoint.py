"""A compressed model as a run's folder, which opens like any other."""

import dataclasses
import pathlib
from typing import Any

from selssm_jax.compression import weights
from selssm_jax.compression.streaming import PackedModel
from selssm_jax.config import Experiment, Model, Task
from selssm_jax.data import Dataset
from selssm_jax.errors import InputError
from selssm_jax.model import ModelLike, SequenceModel
from selssm_jax.training.checkpoint import Workdir

PyTree = Any


def build_model(config: Model, task: Task) -> ModelLike:
    """Returns the model of a configuration: one that carries its state packed where `memory_bits` says in how many
    bits.
    """
    model = SequenceModel(
        dataclasses.replace(
            config.of_task(task), memory_bits=(), memory_tables=(), memory_scope="all", memory_rounding="nearest"
        )
    )
    return (
        PackedModel(model, config.memory_bits, config.memory_scope, config.memory_rounding, config.memory_tables)
        if config.memory_bits
        else model
    )


def check_folder_is_free(folder: pathlib.Path) -> None:
    """Raises InputError, before work starts, where a compressed run cannot be written beside its original."""
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise InputError(
            f"{folder} exists already: move or remove it, so that nothing is overwritten, and run the same command "
            "again"
        )


def save_run(
    folder: pathlib.Path,
    experiment: Experiment,
    model: ModelLike,
    params: PyTree,
    dataset: Dataset,
    step: int,
    metrics: dict[str, float],
) -> Experiment:
    """Writes the run and returns its experiment: that of the original, with the compressed model's configuration.

    Prices and penalties of gates are 0 in it where all blocks of a mixer went: they might be of no gates any more.
    """
    config, training = dataclasses.replace(model.config, task=Task()), experiment.training
    if config.kinds != experiment.model.kinds:
        training = dataclasses.replace(training, gate_l1=0.0, gate_l0=0.0, target_dimension=0.0, information_weight=0.0)
    smaller = dataclasses.replace(experiment, model=config, training=training, name=f"{experiment.name}-compressed")
    workdir = Workdir(str(folder), smaller, alone=True)
    workdir.describe(dataset.metadata())
    workdir.save_best(step, encode_params(experiment, params), metrics)
    workdir.close()
    return smaller


def encode_params(experiment: Experiment, params: PyTree) -> PyTree:
    """Returns the parameters as a compressed run's checkpoint holds them: in bytes, if the configuration says so."""
    return weights.encode_weights(params) if experiment.compress.weights == "int8" else params


def nbytes(folder: pathlib.Path) -> int:
    """Returns the bytes of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
