"""Language: a token for every step, of a text or of a task with symbols."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from selssm_jax.config import TEXTS, Data, Model
from selssm_jax.layers.projection import Projection
from selssm_jax.shapes import Batch
from selssm_jax.tasks.base import TokenStepKind

LARGEST_EXPONENT = 700.0  # whose exponential a float can hold


class Language(TokenStepKind):
    """Next-token logits (B, T, V) of tokens (B, T)."""

    primary = "nats"
    writes = True

    def head(self, config: Model) -> nn.Module | None:
        """Returns a linear map to logits; None where the embedding is the readout too."""
        return (
            None
            if config.tie_embeddings
            else Projection(config.task.vocab, use_bias=False, dtype=jnp.dtype(config.dtype))
        )

    def numbers(self, config: Model, steps: int) -> int:
        """Returns the number of logits."""
        return steps * config.task.vocab

    def weights(self, config: Model) -> float:
        """Returns the numbers of the embeddings, and of the readout where it is another."""
        return config.d_model * config.task.vocab * (1 if config.tie_embeddings else 2)

    def unit(self, data: Data) -> str:
        """Returns what a token is: that of a text, or a symbol."""
        return data.level if data.source in TEXTS else "symbol"

    def derive_metrics(self, metrics: Mapping[str, float], data: Data, *, is_stream: bool) -> dict[str, float]:
        """Returns bits, nats / ln 2, and for words of a text the perplexity exp(nats)."""
        if "nats" not in metrics:
            return {}
        words = data.level == "word" and is_stream
        return {"bits": metrics["nats"] / math.log(2)} | (
            {"perplexity": math.exp(min(metrics["nats"], LARGEST_EXPONENT))} if words else {}
        )

    def title(self, batch: Batch, outputs: np.ndarray, about: Mapping[str, Any]) -> str:
        """Returns that it is a sequence."""
        del batch, outputs, about
        return "the first sequence of the test split"

    def example(self, source: Any) -> list[Any]:
        """Returns a passage and a continuation of a text, or a sequence with what the model answered at its scored
        steps.
        """
        return source.text() if source.dataset.is_stream else source.answers()
