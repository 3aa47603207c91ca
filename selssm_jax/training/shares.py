"""A sequence that devices share: which can be, and where its steps lie (`ops.shards`; theory, section 3)."""

import math

import numpy as np

from selssm_jax.config import Experiment, Model, Task
from selssm_jax.config.mixers import MIXERS
from selssm_jax.errors import InputError
from selssm_jax.shapes import Batch
from selssm_jax.tasks.registry import kind_of
from selssm_jax.training import pieces

PARALLEL = ("selective", "min_gru")  # what is offered in place of a mixer that waits


def check(experiment: Experiment, task: Task) -> None:
    """Raises InputError where training.mesh asks devices to share sequences that they cannot."""
    count, config, steps = experiment.training.mesh[1], experiment.model.of_task(task), max(task.length, 1)
    if count == 1:
        return
    if reason := why_not(config, steps):
        raise InputError(
            f"training.mesh={experiment.training.mesh} lets {count} devices share a sequence, but {reason}, or "
            f"training.mesh={(*experiment.training.mesh[:1], 1)}"
        )
    share, stride = count * kind_of(task).stride(config), kind_of(task).stride(config)
    for name, size in ((f"sequences (data.length) of {steps}", steps), ("training.piece", experiment.training.piece)):
        if size > 0 and size % share:
            raise InputError(
                f"training.mesh={experiment.training.mesh} cuts {name}{'' if size == steps else f'={size}'} steps into "
                f"{count} equal shares, each of a multiple of model.stride={stride}: use a multiple of {share}, for "
                f"example {share * math.ceil(size / share)}"
            )


def why_not(config: Model, steps: int) -> str:
    """Returns why devices cannot share a sequence of so many steps, and what to use; nothing where they can."""
    if reason := pieces.why_whole(config, steps):
        return f"{reason}: use a model that reads forward in bounded memory"
    waiting = sorted({name for name in config.kinds if MIXERS[name].waits})
    if waiting:
        return (
            f"the mixer {waiting[0]!r} waits for the state of each step, so that devices would wait for one another: "
            f"use {' or '.join(map(repr, PARALLEL))}"
        )
    return ""


def arrange(config: Model, batch: Batch, asked: int, *, groups: int, count: int) -> Batch:
    """Returns a batch whose steps are in the order of the devices that share them, each with its share of the first
    piece, of the second, and so on.

    Args:
      config: the model, with its task. asked: training.piece.
      groups: shares of the rows that are read one after another or apart. count: devices that share a sequence.
    """
    if count == 1:
        return batch
    rows, steps = batch["valid"].shape
    own, piece = steps // count, pieces.choose_for_batch(config, batch, asked, groups=groups, count=count)
    cut = own // piece * piece * count

    def reorder(values: np.ndarray) -> np.ndarray:
        beyond = values.shape[2:]
        whole = np.reshape(values[:, :cut], (rows, -1, count, piece, *beyond)).swapaxes(1, 2)
        whole = whole.reshape(rows, count, cut // count, *beyond)
        rest = np.reshape(values[:, cut:], (rows, count, own - cut // count, *beyond))
        return np.concatenate([whole, rest], axis=2).reshape(values.shape)

    over_time = pieces.find_over_time(config, batch)
    return {name: reorder(values) if name in over_time else values for name, values in batch.items()}
