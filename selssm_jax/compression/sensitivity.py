"""What an error in a carried component costs: gradients of the loss with respect to all that is carried (theory,
section 10).
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from selssm_jax.compression.streaming import read_piece
from selssm_jax.model import SequenceModel
from selssm_jax.state_layout import StateLayout
from selssm_jax.tasks.registry import kind_of
from selssm_jax.training import pieces

PyTree = Any


def error_weights(
    model: SequenceModel,
    params: PyTree,
    batches: Iterable[Mapping[str, Any]],
    *,
    scope: str = "all",
    piece: int = pieces.AUTO,
) -> Float[np.ndarray, "M"]:
    """Returns 1/2 sum_t E[(dL / dh_(t,i))^2] of every carried component i, per target: what a unit of squared error
    costs, in the loss's unit.

    An error e_t, independent over steps, adds 1/2 sum_t E[e_t' F_t e_t] to a log loss to second order, F_t the Fisher
    information that the outputs have of the state (the Gauss-Newton matrix); its diagonal is estimated by squared
    gradients of the loss at the targets. For squared errors it is an order of importance, not a prediction.

    Args:
      batches: as a dataset draws them, of training or validation, never of test. piece: as training.piece.
    """
    kind, size = kind_of(model.config.task), StateLayout(model, params, scope).size

    @jax.jit
    def sum_squares(batch: Mapping[str, Array]) -> tuple[Array, Array]:
        def loss(collector: Array) -> tuple[Array, Array]:
            update = lambda vector, _: (_square_gradients(vector, collector), None)  # noqa: E731

            def read(before: Any, part: Mapping[str, Array], number: Any) -> tuple[Array, Any, Any]:
                reading = read_piece(model, params, part, before, update, number, scope=scope)
                return reading.outputs, reading.state, {}

            total, weight = pieces.fold(read, kind.score, model, params, batch, piece)[1][kind.loss]
            return total, weight

        return jax.grad(loss, has_aux=True)(jnp.zeros(size))

    sums = [jax.device_get(sum_squares(dict(batch))) for batch in batches]
    return np.sum([total for total, _ in sums], axis=0) / (2 * np.sum([weight for _, weight in sums]))


@jax.custom_vjp
def _square_gradients(vector: Array, collector: Array) -> Array:
    """The vector (R, M) as it is. What arrives at `collector`, (M,), as its gradient is the sum, over all calls and
    rows, of the squared gradients with respect to the vectors: no step's own has to be kept.
    """
    del collector
    return vector


def _keep_nothing(vector: Array, collector: Array) -> tuple[Array, None]:
    return _square_gradients(vector, collector), None


def _square(_: None, gradient: Array) -> tuple[Array, Array]:
    return gradient, (gradient**2).sum(axis=0)


_square_gradients.defvjp(_keep_nothing, _square)
