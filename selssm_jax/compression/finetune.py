"""Fine-tuning of a compressed model, so that its weights and levels fit the smaller memory."""

import dataclasses
import sys
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from tqdm import tqdm

from selssm_jax.compression.progress import Progress
from selssm_jax.compression.streaming import LEVELS, PackedModel
from selssm_jax.config import Experiment, Optimizer, Training
from selssm_jax.data import Dataset
from selssm_jax.errors import InputError
from selssm_jax.model import ModelLike
from selssm_jax.tasks.registry import kind_of
from selssm_jax.tasks.scores import means
from selssm_jax.training import parallel
from selssm_jax.training.step import TrainState, train_step

PyTree = Any
ITEM = "fine-tuning"  # what a `Progress` calls the state of it
SECONDS = 60.0  # between two times that it is kept


def finetune(
    experiment: Experiment, model: ModelLike, params: PyTree, dataset: Dataset, progress: Progress | None = None
) -> PyTree:
    """Returns the parameters after `compress.steps` steps on training batches: Adam, its rate falling to 0 along a
    cosine, without weight decay.

    Levels of a packed model are trained like the weights, and sorted at the end. Batches are those of a seed of their
    own. The state of the training is kept in `progress` from time to time, and what is there already is not done again:
    the result is the same to the last bit.

    Raises:
      InputError: for a loss that is not finite.
    """
    options = experiment.compress
    if not options.steps:
        return params
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.cosine_decay_schedule(options.peak_rate, options.steps), b2=0.99),
    )
    training, (groups, share) = experiment.training, experiment.training.mesh
    count = training.devices if share == 1 else max(groups, 1)  # no device waits for a part of a sequence here
    devices = parallel.choose_devices(count, experiment.data.batch_size)
    unpenalised = Training(seed=options.seed, forecast_loss=training.forecast_loss, piece=training.piece)
    plain = dataclasses.replace(experiment, optimizer=Optimizer(warmup_steps=0), training=unpenalised)
    one = partial(train_step, model=model, optimizer=tx, experiment=plain)
    take = parallel.data_parallel(one, devices, remat=experiment.model.remat)
    fresh = TrainState(
        jnp.zeros((), jnp.int32), params, tx.init(params), jax.random.key_data(jax.random.key(options.seed))
    )
    progress = progress or Progress()
    # copies: a step uses up what it is given
    state = jax.device_put(jax.tree.map(jnp.array, _restore(progress, fresh)), parallel.layout(devices))
    batches = dataset.train(experiment.data.batch_size, seed=experiment.data.seed + 1 + options.seed)
    done, loss = int(parallel.one_copy(state.step)), kind_of(dataset.task).loss
    for _ in range(done):
        next(batches)
    latest = time.monotonic()
    with tqdm(
        range(done, options.steps), desc="fine-tuning", unit="step", dynamic_ncols=True, disable=not sys.stderr.isatty()
    ) as bar:
        for number in bar:
            state, sums = take(state, next(batches))
            if number % 10 == 0:
                bar.set_postfix_str(f"{loss} {_finite(means(jax.device_get(sums))[loss], number):.4g}", refresh=False)
            if number + 1 == options.steps or time.monotonic() - latest > SECONDS:
                _finite(means(jax.device_get(sums))[loss], number + 1)
                _keep(progress, parallel.one_copy(state))
                latest = time.monotonic()
    tuned = parallel.one_copy(state.params)
    return tuned | {LEVELS: model.sort_levels(tuned)} if isinstance(model, PackedModel) else tuned


def _finite(loss: float, number: int) -> float:
    if not abs(loss) < float("inf"):
        raise InputError(
            f"the loss of fine-tuning step {number} is {loss}: lower compress.peak_rate, or set compress.steps=0"
        )
    return loss


def _keep(progress: Progress, state: TrainState) -> None:
    progress.keep(
        ITEM, {}, {f"leaf_{number}": leaf for number, leaf in enumerate(jax.tree.leaves(jax.device_get(state)))}
    )


def _restore(progress: Progress, fresh: TrainState) -> TrainState:
    """The state that was kept last, of the form of a fresh one; the fresh one where there is none."""
    item = progress.recall(ITEM)
    return (
        fresh
        if item is None
        else jax.tree.unflatten(
            jax.tree.structure(fresh), [item[1][f"leaf_{number}"] for number in range(len(item[1]))]
        )
    )
