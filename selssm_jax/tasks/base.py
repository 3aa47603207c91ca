"""What a kind of task is: one object says what it asks of a model, of training and of a report, and everything else
asks the object.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, PRNGKeyArray

from selssm_jax.config import Data, Model, Task, Training
from selssm_jax.layers.encoders import FrameEncoder
from selssm_jax.shapes import Batch
from selssm_jax.tasks.scores import Sums, hide_unweighted, sum_weighted

State = dict[str, Any]
SHOWN = 4  # numbers of a target or an answer, in words


class Ends(NamedTuple):
    """A model's config, its modules before and behind its blocks, and what learns a cycle, where there is one."""

    config: Model
    encoder: Any
    head: Any
    cycle: Any = None


class TaskKind:
    """A kind of task, which `config.Task.kind` names. As it stands: a signal, (B, T, C) values, is read a frame at a
    time and answered after its last step.

    A subclass changes what is different. It must give `loss`, `primary`, `head` and `errors`; every other attribute and
    method has a use as it is. Objects hold no state: a model, its config and a batch are arguments.

    Attributes:
      loss: the metric that training minimises.
      primary: the metric by which parameters are chosen and models ranked.
      tokens: whether inputs are tokens, (B, T), which the data set's vocabulary names. writes: whether an answer is the
        law of the next token.
      in_parts: whether `error_sums` and `error_parts` say where a model errs.
      forecasts: whether targets, (B, H, C), are what follows the inputs, so that it is measured what a state knows of
        the future.
      every_step: whether every step has an answer, (B, T, ...) in one call, not the whole of what was read, (B, ...).
    """

    loss: str
    primary: str
    tokens: bool = False
    writes: bool = False
    in_parts: bool = False
    forecasts: bool = False
    every_step: bool = False

    def encoder(self, config: Model) -> nn.Module:
        """Returns the module that maps inputs to the model's width."""
        return FrameEncoder(
            config.d_model,
            config.task.channels,
            config.frame,
            config.stride,
            config.filterbank,
            jnp.dtype(config.dtype),
        )

    def head(self, config: Model) -> nn.Module | None:
        """Returns the module that answers; None where the encoder does, or nothing."""
        raise TypeError(f"{type(self).__name__} has no head: define head(self, config)")

    def cycle(self, config: Model) -> nn.Module | None:
        """Returns the module that learns what inputs do over a cycle; None where there is none."""
        del config
        return None

    def initial(self, ends: Ends, batch: Any) -> State:
        """Returns what encoder and head carry before the first step of `batch` sequences."""
        rows = batch * self.rows(ends.config)
        return {"encoder": ends.encoder.initial_state(rows), "head": ends.head.initial_state(rows)}

    def begin(self, config: Model, inputs: Array, state: State, read: Array | None) -> State:
        """Returns `state` with what the first call decides for a whole sequence, from all of its inputs, or those of
        `read`, (B, T).
        """
        del config, inputs, read
        return state

    def series(self, config: Model, inputs: Array, state: State, read: Array | None) -> Array:
        """Returns the inputs as the encoder reads them."""
        del config, state, read
        return inputs

    def encode(self, ends: Ends, series: Array, state: Any) -> tuple[Array, Any]:
        """Returns (features (R, F, D), what the encoder carries)."""
        return ends.encoder(series, state)

    def answer(
        self, ends: Ends, x: Array, series: Array, state: State, valid: Array, read: Array | None
    ) -> tuple[Array, State]:
        """Returns (outputs, what is carried besides blocks and encoder).

        Args:
          ends: the model's. x: (R, F, D), from the blocks. series: what was encoded. state: before this call.
          valid: (R, F), False at padding. read: (R, T), False before the last reset; None: all is read.
        """
        del series
        outputs, head = ends.head(x, state["head"], valid if read is None else valid & read)
        return outputs, {"head": head}

    def stride(self, config: Model) -> int:
        """Returns how many steps of the inputs one step of the blocks reads."""
        return config.stride

    def frames(self, config: Model, steps: int) -> int:
        """Returns how many steps of the blocks read `steps` of the inputs."""
        return -(-steps // self.stride(config))

    def rows(self, config: Model) -> int:
        """Returns how many sequences the blocks make of one: those of channels that run apart."""
        del config
        return 1

    def split(self, config: Model, values: Array) -> Array:
        """Returns values (B, T, ...) as the sequences that the blocks make of them."""
        del config
        return values

    def inputs(self, config: Model, rows: int, steps: int) -> jax.ShapeDtypeStruct:
        """Returns shape and type of inputs."""
        return jax.ShapeDtypeStruct((rows, steps, config.task.channels), jnp.float32)

    def numbers(self, config: Model, steps: int) -> int:
        """Returns how many numbers the answer to one row of `steps` is, at least: an estimate of memory."""
        del config, steps
        return 1

    def weights(self, config: Model) -> float:
        """Returns how many numbers the parameters of encoder and head are at least, or what they are made of when they
        are drawn.
        """
        frame = config.frame * max(self._width(config), 1)
        return config.d_model * (config.filterbank or frame) + 4 * frame * config.filterbank

    def _width(self, config: Model) -> int:
        """Channels of a sequence that the blocks read."""
        return 1 if self.rows(config) > 1 else config.task.channels

    def errors(self, outputs: Array, batch: Batch) -> dict[str, Array]:
        """Returns every metric of single rows or steps, in the shape of batch["weights"]; `loss` and `primary` among
        them.
        """
        raise TypeError(f"{type(self).__name__} has no errors: define errors(self, outputs, batch)")

    def score(self, outputs: Array, batch: Batch) -> Sums:
        """Returns the metrics of a batch as (weighted sum, weight): their ratio over any number of batches is exact."""
        outputs = hide_unweighted(outputs, batch["weights"])
        return {name: sum_weighted(error, batch["weights"]) for name, error in self.errors(outputs, batch).items()}

    def trained_on(self, training: Training) -> str:
        """Returns the name of the task's part of the loss."""
        del training
        return self.loss

    def training_score(self, name: str, outputs: Array, batch: Batch) -> Sums:
        """Returns what `score` does, and the loss of that name, which may be one that evaluation does not report."""
        del name
        return self.score(outputs, batch)

    def of_task(self, task: Task) -> "TaskKind":
        """Returns what the kind is for one task: here the same for all."""
        del task
        return self

    def point(self, outputs: Any) -> Any:
        """Returns the forecast, (B, H, C), of outputs that may say more than it; here they are it."""
        return outputs

    def quantiles(self, outputs: Any) -> dict[float, Any]:
        """Returns the quantiles, (B, H, C), that outputs forecast, by their levels, rising; here none."""
        del outputs
        return {}

    def drawn_targets(self, outputs: Array, draws: int, key: PRNGKeyArray) -> tuple[Array, Array]:
        """Returns targets drawn from what the model says, (M, ...), and a factor c of each, (M,), for the curvature of
        the loss.

        With u the gradient of a row's summed loss at a target, the sum over targets of (c u)(c u)' is, at least on
        average, the row's Gauss-Newton matrix. As it stands for a mean of M squares: there the matrix is 2/M J'J, and u
        = -2/M J'e.
        """
        return outputs[None] + jax.random.normal(key, (draws, *outputs.shape)), jnp.full(
            draws, np.sqrt(outputs.size / 2 / draws)
        )

    @property
    def curves(self) -> tuple[str, ...]:
        """The metrics whose learning curves a report draws."""
        return tuple(dict.fromkeys((self.loss, self.primary)))

    def unit(self, data: Data) -> str:
        """Returns what a metric per target is of: "nats per signal"."""
        del data
        return "signal"

    def derive_metrics(self, metrics: Mapping[str, float], data: Data, *, is_stream: bool) -> dict[str, float]:
        """Returns metrics that follow from others and are easier to read; `is_stream`: the data are one text, not
        sequences that each begin anew.
        """
        del metrics, data, is_stream
        return {}

    def error_sums(self, config: Model, outputs: Array, batch: Batch) -> dict[str, Array]:
        """Returns what `error_parts` needs of a batch, as sums over it."""
        del config, outputs, batch
        return {}

    def error_parts(self, total: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> dict[str, Any]:
        """Returns where a model errs, from the sums over a split, as JSON-able values in one of the two forms that a
        report draws.

        {"by_horizon": {"mse", "mae", "repeat last"} by step, "by_channel": {"names", "mse", "mae", "repeat last"}},
        "repeat last" being the squared errors of the last input repeated, and optionally "own_units": {"mse", "mae"} of
        every channel in the units of the data; or {"classes": names, "confusion": counts
        with a row for every true class and a column for every predicted one}.

        Args:
          total: sums of `error_sums`. about: the data set's metadata.
        """
        del total, about
        return {}

    def title(self, batch: Batch, outputs: np.ndarray, about: Mapping[str, Any]) -> str:
        """Returns what the first example of the test split is, in words; `about`: the data set's metadata."""
        del batch, outputs, about
        return "the first signal of the test split"

    def example(self, source: Any) -> list[Any]:
        """Returns what shows the model at work, as values, by the ways to show it that `source`, an
        `analysis.examples.Source`, has.

        As it stands the first signal, its target and the answer.
        """
        batch, outputs, _ = source.seen[0]
        target, answer = (
            ", ".join(f"{number:.4g}" for number in np.ravel(value)[:SHOWN]) for value in (batch["targets"], outputs)
        )
        said = f"target {target}, answer {answer}"
        return source.signal(f"The first signal of the split and the gates that it opened: {said}.", said)


class TokenKind(TaskKind):
    """A kind of task whose inputs are tokens, (B, T), each a step."""

    tokens = True

    def encoder(self, config: Model) -> nn.Module:
        """Returns a table of embeddings."""
        return nn.Embed(config.task.vocab, config.d_model, dtype=jnp.dtype(config.dtype))

    def initial(self, ends: Ends, batch: Any) -> State:
        """Returns nothing: an embedding has no past, and a head that answers step by step none either."""
        del ends, batch
        return {"encoder": None}

    def encode(self, ends: Ends, series: Array, state: Any) -> tuple[Array, Any]:
        """Returns (embeddings, None)."""
        del state
        return ends.encoder(series), None

    def weights(self, config: Model) -> float:
        """Returns the numbers of the embeddings, and of a readout of classes where the task has any."""
        return config.d_model * (config.task.vocab + config.task.classes)

    def stride(self, config: Model) -> int:
        """Returns 1: every token is a step."""
        del config
        return 1

    def inputs(self, config: Model, rows: int, steps: int) -> jax.ShapeDtypeStruct:
        """Returns shape and type of tokens."""
        del config
        return jax.ShapeDtypeStruct((rows, steps), jnp.int32)


class TokenStepKind(TokenKind):
    """A kind of task that answers every token with logits, (B, T, answers)."""

    loss = "nats"
    every_step = True

    def answer(
        self, ends: Ends, x: Array, series: Array, state: State, valid: Array, read: Array | None
    ) -> tuple[Array, State]:
        """Returns (logits, nothing); those of the embedding where there is no head."""
        del series, state, valid, read
        logits = ends.encoder.attend(x) if ends.head is None else ends.head(x)
        return logits.astype(jnp.float32), {}

    def errors(self, outputs: Array, batch: Batch) -> dict[str, Array]:
        """Returns nats and accuracy of every token."""
        return categorical_errors(outputs, batch["targets"])

    def drawn_targets(self, outputs: Array, draws: int, key: PRNGKeyArray) -> tuple[Array, Array]:
        """Returns answers drawn from the model's law."""
        return jax.random.categorical(key, outputs, shape=(draws, *outputs.shape[:-1])), jnp.full(
            draws, 1 / np.sqrt(draws)
        )


def categorical_errors(logits: Array, targets: Array) -> dict[str, Array]:
    """Returns nats, -log p(target), and accuracy, of every row or step."""
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return {"nats": nats, "accuracy": (logits.argmax(axis=-1) == targets).astype(jnp.float32)}
