"""What an error in a carried component costs: gradients of the loss with respect to all that is carried (theory,
section 10).
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from selssm_jax.compression.streaming import read
from selssm_jax.model import SequenceModel
from selssm_jax.state_layout import StateLayout
from selssm_jax.tasks.registry import kind_of

PyTree = Any


def error_weights(
    model: SequenceModel, params: PyTree, batches: Iterable[Mapping[str, Any]], *, scope: str = "all"
) -> Float[np.ndarray, "M"]:
    """Returns 1/2 sum_t E[(dL / dh_(t,i))^2] of every carried component i, per target: what a unit of squared error
    costs, in the loss's unit.

    An error e_t, independent over steps, adds 1/2 sum_t E[e_t' F_t e_t] to a log loss to second order, F_t the Fisher
    information that the outputs have of the state (the Gauss-Newton matrix); its diagonal is estimated by squared
    gradients of the loss at the targets. For squared errors it is an order of importance, not a prediction.

    Args:
      batches: as a dataset draws them, of training or validation, never of test.
    """
    layout, kind = StateLayout(model, params, scope), kind_of(model.config.task)

    @jax.jit
    def squares(batch: Mapping[str, Array]) -> tuple[Array, Array]:
        steps = kind.frames(model.config, batch["inputs"].shape[1])

        def loss(errors: Array) -> tuple[Array, Array]:
            add = lambda vector, error: (vector + error, None)  # noqa: E731
            options: dict[str, Any] = {
                "scope": scope,
                "reset": batch.get("reset"),
                "valid": batch["valid"],
                "rngs": {"noise": jax.random.key(0)},
            }
            outputs = read(model, params, batch["inputs"], None, add, errors, **options).outputs
            total, weight = kind.score(outputs, batch)[kind.loss]
            return total, weight

        gradient, weight = jax.grad(loss, has_aux=True)(
            jnp.zeros((steps, layout.rows * len(batch["inputs"]), layout.size))
        )
        return (gradient**2).sum(axis=(0, 1)), weight

    sums = [jax.device_get(squares(dict(batch))) for batch in batches]
    return np.sum([total for total, _ in sums], axis=0) / (2 * np.sum([weight for _, weight in sums]))
