"""Classification: a class for a whole signal."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, PRNGKeyArray

from selssm_jax.config import Model
from selssm_jax.layers.heads import ClassHead
from selssm_jax.tasks.base import Batch, TaskKind, categorical_errors


class Classification(TaskKind):
    """Logits (B, classes) of all valid steps so far."""

    loss = "nats"
    primary = "accuracy"

    def head(self, config: Model) -> nn.Module | None:
        """Returns a linear map of the pooled features."""
        return ClassHead(config.task.classes, config.d_model, config.pool)

    def numbers(self, config: Model, steps: int) -> int:
        """Returns the number of logits."""
        del steps
        return config.task.classes

    def weights(self, config: Model) -> float:
        """Returns the numbers of the encoder and of the readout."""
        return super().weights(config) + config.d_model * config.task.classes

    def errors(self, outputs: Array, batch: Batch) -> dict[str, Array]:
        """Returns nats and accuracy of every signal."""
        return categorical_errors(outputs, batch["targets"])

    def drawn_targets(self, outputs: Array, draws: int, key: PRNGKeyArray) -> tuple[Array, Array]:
        """Returns every class, by the root of its probability: no draw is needed."""
        del draws, key
        return jnp.arange(outputs.shape[-1])[:, None], jnp.sqrt(jax.nn.softmax(outputs[0]))
