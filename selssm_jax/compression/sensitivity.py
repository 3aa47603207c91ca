"""What an error in a carried component costs: gradients of the loss with respect to all that is carried (theory, section 10)."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from selssm_jax.compression.carried import Carried
from selssm_jax.compression.streaming import read
from selssm_jax.model import SequenceModel
from selssm_jax.training import objectives

PyTree = Any


def error_weights(
    model: SequenceModel, params: PyTree, batches: Iterable[Mapping[str, Any]], *, scope: str = "all", carry: bool = False
) -> Float[np.ndarray, "M"]:
    """Returns 1/2 sum_t E[(dL / dh_(t,i))^2] of every carried component i, per target: what a unit of squared error costs, in the loss's unit.

    An error e_t, independent over steps, adds 1/2 sum_t E[e_t' F_t e_t] to a log loss to second order, F_t the Fisher information that the outputs have
    of the state (the Gauss-Newton matrix); its diagonal is estimated by squared gradients of the loss at the targets.
    For squared errors it is an order of importance, not a prediction.

    Args:
      batches: as a dataset draws them, of training or validation, never of test. scope: see `Carried`.
      carry: row b of a batch goes on where row b of the one before ended.
    """
    layout, kind = Carried(model, params, scope), model.config.task.kind
    stride = 1 if kind == "language" else model.config.stride

    @jax.jit
    def squares(batch: Mapping[str, Array], state: Any) -> tuple[Array, Array, Any]:
        steps = -(-batch["inputs"].shape[1] // stride)

        def loss(errors: Array) -> tuple[Array, tuple[Array, Any]]:
            add = lambda vector, error: (vector + error, None)  # noqa: E731
            options = {"scope": scope, "reset": batch.get("reset"), "valid": batch["valid"]}
            found = read(model, params, batch["inputs"], state, add, errors, **options)
            total, weight = objectives.score(kind, found.outputs, batch)[objectives.LOSS[kind]]
            return total, (weight, found.state)

        gradient, (weight, after) = jax.grad(loss, has_aux=True)(jnp.zeros((steps, layout.rows * len(batch["inputs"]), layout.size)))
        return (gradient**2).sum(axis=(0, 1)), weight, after

    totals, weights, state = [], [], None
    for batch in batches:
        start = model.apply({"params": params}, len(batch["inputs"]), method="initial_state") if state is None or not carry else state
        total, weight, state = squares(dict(batch), start)
        totals.append(np.asarray(total, np.float64))
        weights.append(float(weight))
    return np.sum(totals, axis=0) / (2 * np.sum(weights))
