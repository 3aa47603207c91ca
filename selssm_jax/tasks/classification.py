"""Classification: a class for a whole signal, for a text, or for every token of one."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, PRNGKeyArray

from selssm_jax.config import Data, Model
from selssm_jax.layers.output_heads import ClassHead
from selssm_jax.layers.projection import Projection
from selssm_jax.shapes import Batch
from selssm_jax.tasks.base import Ends, State, TaskKind, TokenKind, TokenStepKind, categorical_errors


class Classification(TaskKind):
    """Logits (B, classes) of all valid steps so far."""

    loss = "nats"
    primary = "accuracy"
    in_parts = True

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

    def error_sums(self, config: Model, outputs: Array, batch: Batch) -> dict[str, Array]:
        """Returns how often every class was taken for every class."""
        truth, guess = (
            jax.nn.one_hot(labels, config.task.classes) for labels in (batch["targets"], outputs.argmax(axis=-1))
        )
        return {"confusion": jnp.einsum("...,...i,...j->ij", jnp.asarray(batch["weights"]), truth, guess)}

    def error_parts(self, total: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the names of classes and the table of confusions."""
        table = total["confusion"].round().astype(int)
        names = [str(name) for name in about.get("classes") or range(len(table))]
        return {"classes": names, "confusion": table.tolist()}

    def title(self, batch: Batch, outputs: np.ndarray, about: Mapping[str, Any]) -> str:
        """Returns its class and the model's answer."""
        truth, guess = (about["classes"][int(index)] for index in (batch["targets"], np.argmax(outputs)))
        return f"the first signal of the test split: class {truth}, taken for {guess}"

    def example(self, source: Any) -> list[Any]:
        """Returns a signal over the gates that it opened, with the class and the prediction."""
        batch, logits, _ = source.seen[0]
        classes, indices = source.dataset.metadata()["classes"], [int(batch["targets"]), int(logits.argmax())]
        odds = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        said = f"(probability {odds.max():.3f})"
        truth, guess = (classes[index] for index in indices)
        labels = tuple((str(classes[index]), f"number {index}") for index in indices)
        words = f"The first signal of the split and the gates that it opened: class {truth}, predicted {guess} {said}."
        return source.signal(words, f"class {{}}, predicted {{}} {said}", labels)


class TextClassification(TokenKind, Classification):
    """Logits (B, classes) of all valid tokens so far, (B, T)."""

    def initial(self, ends: Ends, batch: Any) -> State:
        """Returns what the head carries."""
        return {"encoder": None, "head": ends.head.initial_state(batch)}

    def unit(self, data: Data) -> str:
        """Returns that it is a text."""
        del data
        return "text"

    def title(self, batch: Batch, outputs: np.ndarray, about: Mapping[str, Any]) -> str:
        """Returns its class and the model's answer."""
        return super().title(batch, outputs, about).replace("signal", "text", 1)

    def example(self, source: Any) -> list[Any]:
        """Returns a text, shaded by the gates that it opened, with the class and the prediction."""
        batch, logits, _ = source.seen[0]
        classes = source.dataset.metadata()["classes"]
        truth, guess = (classes[index] for index in (int(batch["targets"]), int(logits.argmax())))
        return source.passage(f"The first text of the split: class {truth}, predicted {guess}.")


class TokenClassification(TokenStepKind, Classification):
    """Logits (B, T, classes) of every token of (B, T)."""

    def head(self, config: Model) -> nn.Module | None:
        """Returns a linear map of the features of a step, in float32."""
        return Projection(config.task.classes)

    def numbers(self, config: Model, steps: int) -> int:
        """Returns the number of logits."""
        return steps * config.task.classes

    def unit(self, data: Data) -> str:
        """Returns that it is a token."""
        del data
        return "token"

    def title(self, batch: Batch, outputs: np.ndarray, about: Mapping[str, Any]) -> str:
        """Returns that it is a text."""
        del batch, outputs, about
        return "the first text of the test split"

    def example(self, source: Any) -> list[Any]:
        """Returns a text with the class that the model gives each token."""
        return source.answers(source.dataset.metadata()["classes"])
