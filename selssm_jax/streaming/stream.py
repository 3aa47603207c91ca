"""`Stream`: a model that answers, is told the truth later, and learns from it, for ever and in constant memory.

stream = Stream(model, params, optax.adam(1e-3))
answer = stream.predict(x)                     what the model says after x
lesson = stream.learn(y)                       the truth of the oldest answer that has none yet
answer, lesson = stream.advance(row)           of a series: a row is the truth of what was forecast of it
"""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from selssm_jax.config.mixers import list_noises
from selssm_jax.model import SequenceModel
from selssm_jax.streaming.drift import Detector
from selssm_jax.streaming.gradients import ExactGradient, GradientMethod
from selssm_jax.streaming.learner import Lesson, Rules, StreamState, describe_targets, make_sample
from selssm_jax.streaming.reactions import Reaction
from selssm_jax.streaming.saving import restore_tree, save_tree
from selssm_jax.tasks.registry import kind_of


def _compile(function: Any) -> Any:
    """One program for all streams of the same rules and shapes."""
    return jax.jit(function, static_argnums=0)


START, PREDICT, LEARN, ADVANCE, REPLAY, HISTORY = (
    _compile(function)
    for function in (Rules.start, Rules.predict, Rules.learn, Rules.advance, Rules.replay, Rules.read_history)
)


class Replay(NamedTuple):
    """What a recorded series brought, step by step: answers (T, B, ...), to each its row, and the lessons, whose first
    W are empty.
    """

    answers: np.ndarray
    lessons: Lesson


class Stream:
    """A model on B streams at once, which learns one set of parameters from all of them.

    An answer waits until its truth is told; truths are told in the order of the answers. Nothing is learnt from a step
    before its truth is there, and no truth before its answer was scored. Each method is one program that is compiled
    when it is first called, and takes the same time and memory at every step.

    Arrays have a leading axis B; without `rows` there is one stream, and none.

    Attributes:
      state: all that the stream is, as one tree of arrays (`StreamState`), which may be read and set.

    Args:
      model, params: what the stream begins with; frames of one step, and no noise in its state. optimizer: of Optax;
        None: parameters stay, and answers are scored alone.
      rows: B. waiting: answers that may wait at a time; None: the horizon of a forecast, else 1.
      gradient: `ExactGradient`, or `TruncatedGradient(steps)`, for any model.
      detector: of changes of the mean loss, such as `ADWIN()`; None: none. reaction: what follows a rise.
      fade: factor of older errors in the score.

    Raises:
      ValueError: for a model that cannot be read step by step, or has no such gradient, and values out of range.
    """

    def __init__(
        self,
        model: SequenceModel,
        params: PyTree,
        optimizer: optax.GradientTransformation | None,
        *,
        rows: int | None = None,
        waiting: int | None = None,
        gradient: GradientMethod | None = None,
        detector: Detector | None = None,
        reaction: Reaction | None = None,
        fade: float = 0.999,
    ) -> None:
        _check_model(model)
        task = model.config.task
        self._kind, self._single, self._rows = kind_of(task), rows is None, rows or 1
        waiting = (task.horizon if self._kind.forecasts else 1) if waiting is None else waiting
        if waiting < 1 or not 0 < fade <= 1:
            raise ValueError(
                f"waiting={waiting}, fade={fade} are out of range: use at least one answer that waits, and a factor "
                "above 0, at most 1"
            )
        gradient, reaction = gradient or ExactGradient(), reaction or Reaction()
        if optimizer is not None:
            gradient.check(model, params)
        self.rules = Rules(model, optimizer, gradient, waiting, detector, reaction, fade)
        self._sample = make_sample(model, self._rows)
        params = jax.tree.map(jnp.asarray, params)
        self.state: StreamState = START(self.rules, params, self._sample)

    @property
    def params(self) -> PyTree:
        """The parameters as they are now."""
        return self.state.leader.params

    @property
    def waiting(self) -> int:
        """How many answers wait for their truth."""
        return int(self.state.waiting.filled)

    def predict(self, inputs: Any, reset: Any = None) -> np.ndarray:
        """Returns the model's answer after one step, (B, ...): logits of the next token or of the class, or a forecast
        (B, H, C).

        Args:
          inputs: tokens (B,), or values (B, C). reset: (B,), True forgets all that came before this step.

        Raises:
          ValueError: for other shapes, values that are not finite, a reset or an empty memory of a model that takes its
            scale from what it has read, and where `waiting` answers wait.
        """
        if self.waiting == self.rules.waiting:
            raise ValueError(
                f"{self.rules.waiting} answers wait for their truth: tell that of the oldest by learn, with weights=0 "
                "where there is none, or make a stream with a larger waiting"
            )
        self.state, answer = PREDICT(self.rules, self.state, self._check_inputs(inputs), self._check_reset(reset))
        return self._hand_out(answer)

    def learn(self, targets: Any, weights: Any = None) -> Lesson:
        """Tells the truth of the oldest answer that waits, and returns what it taught.

        Args:
          targets: tokens or classes (B,), or values (B, H, C). weights: of each stream's error (B,), 0 where there is
            no truth; None: 1, and 0 where a value is not-a-number.

        Raises:
          ValueError: for other shapes, and where no answer waits.
        """
        if not self.waiting:
            raise ValueError("no answer waits for its truth: call predict first")
        self.state, lesson = LEARN(self.rules, self.state, *self._check_truth(targets, weights))
        return self._hand_out(lesson)

    def advance(self, row: Any) -> tuple[np.ndarray, Lesson | None]:
        """Reads the next row of a series, which is the truth of forecasts that were made before, and returns (the
        forecast after it, what the forecast taught whose horizon ended with the row; None where none did).

        Args:
          row: (B, C).

        Raises:
          ValueError: as `predict`, for a model that does not forecast, and a stream with another `waiting` than the
            horizon.
        """
        self._check_series()
        begun = self.waiting == self.rules.waiting
        inputs, reset = self._check_inputs(row), self._check_reset(None)
        self.state, (answer, lesson) = ADVANCE(self.rules, self.state, inputs, reset, self._ones())
        return self._hand_out(answer), self._hand_out(lesson) if begun else None

    def replay(self, rows: Any) -> Replay:
        """Reads recorded rows (T, B, C) as `advance` does, in one program for each T.

        Raises:
          ValueError: as `advance`.
        """
        self._check_series()
        values = np.asarray(rows, np.float32)
        values = values[:, None] if self._single and values.ndim == 2 else values
        self._check_shape(values[0], "rows")
        self._check_finite(values)
        self.state, (answers, lessons) = REPLAY(
            self.rules, self.state, jnp.asarray(values), self._check_reset(None), self._ones()
        )
        squeeze = (lambda leaf: leaf[:, 0] if leaf.ndim > 1 else leaf) if self._single else (lambda leaf: leaf)
        return Replay(*jax.tree.map(lambda leaf: squeeze(np.asarray(leaf)), (answers, lessons)))

    def read_history(self, inputs: Any) -> None:
        """Reads steps (B, T, ...) before the first answer: they set a forecast's scale and fill the memory, and nothing
        is learnt from them.

        Raises:
          ValueError: for other shapes, and after the first answer.
        """
        if int(self.state.steps) or self.waiting:
            raise ValueError("the stream has answered already: read_history comes before the first predict")
        values = np.asarray(inputs)
        values = values[None] if self._single else values
        self._check_shape(values[:, 0], "inputs")
        self._check_finite(values)
        self.state = HISTORY(self.rules, self.state, jnp.asarray(values, self._sample.inputs.dtype))

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes the state into a folder as a checkpoint of Orbax, beside the last one, which goes when it is written:
        a process that is killed leaves a whole one.
        """
        # answers and truths so far
        save_tree(folder, 2 * int(self.state.steps) + self.waiting, self.state)

    def restore(self, folder: str | pathlib.Path) -> None:
        """Goes on from the newest state in a folder, bit for bit as if nothing had been in between.

        Raises:
          ValueError: where there is none.
        """
        self.state = restore_tree(folder, self.state)

    def _ones(self) -> jax.Array:
        return jnp.ones_like(self._sample.weights)

    def _hand_out(self, tree: Any) -> Any:
        """Arrays of the host, without the axis of streams where there is one alone."""
        leaves = jax.device_get(tree)
        return jax.tree.map(lambda leaf: leaf[0] if self._single and np.ndim(leaf) else leaf, leaves)

    def _check_series(self) -> None:
        task = self.rules.model.config.task
        if not self._kind.forecasts or self.rules.waiting != task.horizon or task.width != task.channels:
            raise ValueError(
                f"rows are the truth of forecasts of as many steps as wait, of channels alone: found a "
                f"{task.kind!r} task of horizon {task.horizon} with {task.width - task.channels} numbers beside the "
                f"channels and waiting={self.rules.waiting}; use predict and learn"
            )

    def _check_inputs(self, inputs: Any) -> jax.Array:
        values = np.asarray(inputs)
        values = values[None] if self._single else values
        self._check_shape(values, "inputs")
        self._check_finite(values)
        return jnp.asarray(values, self._sample.inputs.dtype)

    def _check_finite(self, values: np.ndarray) -> None:
        if not np.isfinite(values).all():
            raise ValueError("inputs hold values that are not finite: a stream that has read one says nothing else")
        config = self.rules.model.config
        if self._kind.tokens and not (values.min() >= 0 and values.max() < config.task.vocab):
            raise ValueError(f"inputs hold tokens outside 0 to {config.task.vocab - 1}, the vocabulary")

    def _check_shape(self, values: np.ndarray, name: str) -> None:
        expected = self._sample.inputs.shape
        if values.shape != expected:
            skip = 1 if self._single else 0
            raise ValueError(f"{name} have shape {values.shape[skip:]} a step, expected {expected[skip:]}")

    def _check_reset(self, reset: Any) -> jax.Array:
        if reset is None:
            return jnp.zeros(self._rows, bool)
        if self._kind.forecasts and self.rules.model.config.normalize:
            raise ValueError("a reset would take a forecast's scale from one row: use model.normalize=False")
        return jnp.asarray(np.broadcast_to(np.asarray(reset, bool), self._rows))

    def _check_truth(self, targets: Any, weights: Any) -> tuple[jax.Array, jax.Array]:
        shape, weighted = describe_targets(self.rules.model, self._rows)
        values = np.asarray(targets)
        values = values[None] if self._single else values
        if values.shape != shape.shape:
            skip = 1 if self._single else 0
            raise ValueError(f"targets have shape {values.shape[skip:]}, expected {shape.shape[skip:]}")
        there = np.isfinite(values)
        if len(weighted.shape) < values.ndim:
            there = there.reshape(self._rows, -1).all(axis=1)
        chosen = (
            there if weights is None else there * np.asarray(weights, np.float32).reshape(-1, *[1] * (there.ndim - 1))
        )
        values = np.where(np.isfinite(values), values, 0)
        return jnp.asarray(values, shape.dtype), jnp.asarray(np.broadcast_to(chosen, weighted.shape), weighted.dtype)


def _check_model(model: SequenceModel) -> None:
    """Raises ValueError for a model that is no `SequenceModel`, reads several steps at a time, or draws noise."""
    if not isinstance(model, SequenceModel):
        raise ValueError(f"{type(model).__name__} carries its state packed, which has no gradient: give the run itself")
    config = model.config
    if kind_of(config.task).stride(config) != 1:
        raise ValueError(f"the model reads {config.stride} steps at a time, a stream has one: use model.stride=1")
    noises = dict.fromkeys(key for name in config.pattern for key in list_noises(config.mixer(name)))
    if noises:
        raise ValueError(f"the model draws noise at every step ({', '.join(noises)}): use one without")
