"""One step of a stream as a model reads it, and the error of what it said."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from selssm_jax.model import SequenceModel, State
from selssm_jax.tasks.registry import kind_of
from selssm_jax.tasks.scores import hide_unweighted


class Sample(NamedTuple):
    """A step of B streams with its truth.

    Attributes:
      inputs: tokens (B,), or values (B, C). reset: whether all before the step is forgotten. targets: what an answer to
        the step is held against: (B,), or (B, H, C) of a forecast. weights: of every error, 0: there is no truth.
    """

    inputs: Shaped[Array, "B ..."]
    reset: Bool[Array, "B"]
    targets: Shaped[Array, "B ..."]
    weights: Float[Array, "B ..."]


def read_step(
    model: SequenceModel, params: PyTree, inputs: Array, reset: Array, state: State
) -> tuple[Float[Array, "B ..."], State]:
    """Returns (the answer after one step, the state after it)."""
    read: Any = model.apply({"params": params}, inputs[:, None], state, reset=reset[:, None])
    outputs, after = read
    return (outputs[:, 0] if kind_of(model.config.task).every_step else outputs), after


def measure_errors(model: SequenceModel, outputs: Array, sample: Sample) -> Float[Array, "B ..."]:
    """Returns the loss of every stream, of the task's own kind, in the shape of the weights; 0 where there is no
    truth.
    """
    kind = kind_of(model.config.task)
    truth = {"targets": sample.targets, "weights": sample.weights}
    errors = kind.errors(hide_unweighted(outputs, sample.weights), truth)[kind.loss]
    return hide_unweighted(errors, sample.weights)


def average(errors: Array, weights: Array) -> Float[Array, ""]:
    """Returns the weighted mean, 0 of no weight."""
    return (errors * weights).sum() / jnp.maximum(weights.sum(), jnp.finfo(jnp.float32).tiny)


def choose(flag: Bool[Array, ""], yes: PyTree, no: PyTree) -> PyTree:
    """Returns one of two trees of equal shapes."""
    return jax.tree.map(lambda one, other: jnp.where(flag, one, other), yes, no)
