"""The price of memory: one training run for every price of a nat, with its loss and the bits that its memory holds
(theory, sections 4.2 and 10).

With state noise, or with "kalman" blocks, and `training.information_weight` = beta a run minimises loss + beta * rate.
A dear nat is given up where it saves little loss, so the points of a sweep trace the trade-off between memory and loss
that such models, trained so, reach.
"""

import dataclasses
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from selssm_jax import data
from selssm_jax.config import Experiment
from selssm_jax.model import SequenceModel
from selssm_jax.observe import find_data_frames, observe
from selssm_jax.shapes import AnyArray, Batch
from selssm_jax.tasks.registry import kind_of
from selssm_jax.tasks.scores import hide_unweighted
from selssm_jax.training import checkpoint, loop, objectives
from selssm_jax.training.evaluation import Evaluator

Sums = dict[str, AnyArray]


class Point(NamedTuple):
    """One run of a sweep, measured on the validation split.

    Attributes:
      beta: training.information_weight, the price of a nat. loss: nats a target, or mean squared error.
      bits: of all blocks together, an upper bound on what their states hold of the inputs, in the mean over the steps
        that are priced; of "kalman" blocks without samples the bits that they gain a step, by their own model.
      workdir: the run's folder.
    """

    beta: float
    bits: float
    loss: float
    workdir: pathlib.Path


def sweep(experiment: Experiment, betas: Sequence[float], workdir: str | pathlib.Path) -> list[Point]:
    """Trains the experiment once for every beta, in WORKDIR/beta_BETA, and returns the points in the order of the
    betas.

    A run that is finished is not trained again, and one that was stopped goes on: the same call continues a sweep. Beta
    0 is the run without a price; it needs model.selective.process_noise as the others do, or "kalman" blocks. Each
    run's last parameters are measured: those that were best on validation by loss alone would be of a moment when
    memory was still dear to none.

    Raises:
      ValueError: for no betas, or one that comes twice.
      InputError: for an experiment that has no rate (`config.Experiment`), and what `loop.fit` raises.
    """
    if not betas or len(set(betas)) != len(betas):
        raise ValueError(f"betas={list(betas)}, expected at least one, and each once")
    # all are checked before the first is trained
    runs = [(beta, set_price(experiment, beta), pathlib.Path(workdir) / f"beta_{beta:g}") for beta in betas]
    points = []
    for beta, run, folder in runs:
        if not loop.fit(run, str(folder)).finished:
            break  # it was asked to stop
        points.append(measure(beta, folder))
    return points


def set_price(experiment: Experiment, beta: float) -> Experiment:
    """Returns the experiment at the price beta. Raises InputError where it has no rate, at beta 0 too."""
    dear = dataclasses.replace(
        experiment, training=dataclasses.replace(experiment.training, information_weight=beta or 1.0, select="last")
    )
    if beta:
        return dear
    free = dataclasses.replace(dear.training, information_weight=0.0, penalty_warmup=0)
    return dataclasses.replace(
        dear,
        training=free if not free.penalised else dataclasses.replace(free, penalty_warmup=dear.training.penalty_warmup),
    )


def measure(beta: float, workdir: str | pathlib.Path) -> Point:
    """Returns the point of a finished run."""
    experiment, params, _ = checkpoint.restore_for_eval(str(workdir))
    dataset = data.load(checkpoint.own_places(str(workdir), experiment.data))
    model = SequenceModel(experiment.model.of_task(dataset.task))
    evaluator = Evaluator(experiment, model)
    loss = evaluator(params, dataset, "validation")[kind_of(dataset.task).loss]
    nats = memory(
        model,
        params,
        dataset.evaluate("validation", evaluator.batch_size),
        form=experiment.training.information_bound,
        steps=experiment.training.information_steps,
    )
    return Point(beta, sum(nats.values()) / math.log(2), loss, pathlib.Path(workdir))


def memory(
    model: SequenceModel, params: PyTree, batches: Iterable[Batch], *, form: str = "vib", steps: str = "all"
) -> dict[str, float]:
    """Returns for every block an upper bound on I(h_t; inputs of the block), nats, in the mean over the valid steps of
    the sequences, or over their last ones; of "kalman" blocks without samples the nats that a step gains, by their own
    model.

    The "rate" of training with the moments of all sequences instead of one batch's, 1/2 sum_i (log v_i - E log N_i). By
    data processing the sum over blocks bounds what all states together hold of the model's inputs. Each sequence is
    read from an empty memory, and whole, as it is in training with a price.

    Args:
      model, params: a model with process noise, or of "kalman" blocks. batches: as a dataset's `evaluate` gives them.
      form: see `objectives.rates`. steps: see `objectives.weigh_steps`.

    Raises:
      ValueError: for a model whose blocks sow no law of their states.
    """
    noise = model.config.selective.process_noise
    if not noise and not model.config.knows_gains:
        raise ValueError(
            f"model.selective.process_noise={noise}: without noise a state holds infinitely many nats, expected more "
            "than 0"
        )

    @jax.jit
    def sum_moments(batch: Batch) -> dict[str, Sums]:
        # noise in what later blocks read
        key, shown = jax.random.key(0), ["laws", "intermediates"]
        blocks = observe(model, params, batch, rngs={"noise": key}, collections=shown).blocks
        frames = objectives.weigh_steps(find_data_frames(model.config, batch).astype(jnp.float32), steps)
        known = {
            name: _sums(*objectives.moments(block.law, form), frames)
            for name, block in blocks.items()
            if block.law is not None
        }
        return known | {
            name: {"gained": (frames[..., None] * block.gained).sum((0, 1)), "steps": frames.sum()}
            for name, block in blocks.items()
            if block.gained is not None and block.law is None
        }

    parts = [
        jax.tree.map(lambda value: np.asarray(value, np.float64), jax.device_get(sum_moments(batch)))
        for batch in batches
    ]
    whole = jax.tree.map(lambda *values: sum(values), *parts)
    return {name: _nats(sums) for name, sums in whole.items()}


def _sums(means: Array, variances: Array, frames: Array) -> Sums:
    weights = frames[..., None]
    sums = {"mean": means, "power": variances + means**2, "log": jnp.log(variances)}
    return {name: (weights * hide_unweighted(value, weights)).sum((0, 1)) for name, value in sums.items()} | {
        "steps": weights.sum()
    }


def _nats(sums: Sums) -> float:
    if "gained" in sums:
        return float(sums["gained"].sum() / sums["steps"])
    mean, power, log = (sums[name] / sums["steps"] for name in ("mean", "power", "log"))
    return float(0.5 * (np.log(power - mean**2) - log).sum())
