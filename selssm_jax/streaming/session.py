"""A learner on a series, row by row, beside what it is held against, as one thing that is saved and goes on.

The rivals are told the same truths at the same rows: the model as it was trained ("frozen"), the last value, and
recursive least squares. Errors are those of forecasts as they were given, when the last row of their horizon has come.
"""

import functools
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from selssm_jax.config import Streaming
from selssm_jax.model import SequenceModel
from selssm_jax.observe import observe
from selssm_jax.streaming.drift import ADWIN, Detector, PageHinkley
from selssm_jax.streaming.gradients import ExactGradient, TruncatedGradient
from selssm_jax.streaming.reactions import Reaction
from selssm_jax.streaming.rivals import Follower, LastValue, RecursiveLeastSquares, Rival
from selssm_jax.streaming.saving import has_tree, restore_tree, save_tree
from selssm_jax.streaming.stream import Stream

LEARNER, FROZEN, LAST, LEAST_SQUARES = "learner", "frozen", "last value", "least squares"
NAMES = (LEARNER, FROZEN, LAST, LEAST_SQUARES)
GATED = 256  # rows that gates are a mean of
DETECTORS: dict[str, type[Detector] | None] = {"adwin": ADWIN, "page_hinkley": PageHinkley, "none": None}


class Entry(NamedTuple):
    """What a row brought.

    Attributes:
      row: its number, from 0. forecast: (H, C), of the rows after it. errors: by name in `NAMES`, mean squared, of the
        forecasts whose horizon ended with it; not-a-number before the first. scores: their faded means.
      change, boost, replaced: of the learner's lesson (`Lesson`).
    """

    row: int
    forecast: Float[np.ndarray, "H C"]
    errors: dict[str, float]
    scores: dict[str, float]
    change: int
    boost: float
    replaced: bool


def build_stream(model: SequenceModel, params: PyTree, options: Streaming) -> Stream:
    """Returns the learner that a configuration describes.

    Raises:
      ValueError: for a model that cannot be read row by row, or has no such gradient.
    """
    kind = DETECTORS[options.detector]
    detector = None if kind is None else ADWIN(delta=options.delta) if kind is ADWIN else kind()
    return Stream(
        model,
        params,
        optax.adam(options.rate) if options.rate else None,
        gradient=ExactGradient() if options.gradient == "exact" else TruncatedGradient(options.piece),
        detector=detector,
        reaction=Reaction(
            options.rise_rate, options.rise_rows, options.reset_optimizer, options.keep_memory, options.fork
        ),
        fade=options.fade,
    )


@functools.partial(jax.jit, static_argnums=0)
def _mean_gates(model: SequenceModel, params: PyTree, rows: Float[Array, "T C"]) -> dict[str, Float[Array, ""]]:
    batch = {"inputs": rows[None], "valid": np.ones((1, len(rows)), bool)}
    blocks = observe(model, params, batch, rngs={"noise": jax.random.key(0)}).blocks
    return {name: block.gate.mean() for name, block in blocks.items() if block.gate is not None}


class Session:
    """A learner and its rivals on one series of standardised rows.

    Args:
      model, params: as trained. options: what learns, and how.

    Attributes:
      rows: how many have come. read: how many before them, as history.

    Raises:
      ValueError: as `Stream`, and for a model that does not forecast rows by rows.
    """

    def __init__(self, model: SequenceModel, params: PyTree, options: Streaming) -> None:
        self._options, self._model, task = options, model, model.config.task
        self._learner = build_stream(model, params, options)
        self._frozen = Stream(model, params, None, fade=options.fade)
        self._horizon = task.horizon
        self._least_squares = RecursiveLeastSquares(task.channels, task.horizon, options.lags, options.forgetting)
        rivals: dict[str, Rival] = {LAST: LastValue(task.horizon), LEAST_SQUARES: self._least_squares}
        self._followers = {name: Follower(rival, task.horizon, task.channels) for name, rival in rivals.items()}
        self._sums = np.zeros((len(NAMES), 2))
        self.rows = self.read = 0
        # twice as long as what is remembered: a row costs one copy of a row
        self._buffer = np.zeros((2 * options.remembered, task.channels), np.float32)
        self._end = options.remembered

    @property
    def recent(self) -> Float[np.ndarray, "R C"]:
        """The last rows, of the history too, (remembered, C), the newest last."""
        return self._buffer[self._end - self._options.remembered : self._end]

    @property
    def params(self) -> PyTree:
        """The learner's parameters as they are now."""
        return self._learner.params

    def read_history(self, row: Float[np.ndarray, "C"]) -> None:
        """Reads a row of the history, `options.history` in all, which come before the first `advance`."""
        self._remember(row)
        self._least_squares.read(row)
        self.read += 1
        if self.read == self._options.history:
            for stream in (self._learner, self._frozen):
                stream.read_history(self.recent[-self.read :])

    def advance(self, row: Float[np.ndarray, "C"]) -> Entry:
        """Reads a row, which is the truth of forecasts that were made before. Raises ValueError for another shape, and
        for values that are not finite.
        """
        row = np.asarray(row, np.float32)
        forecast, lesson = self._learner.advance(row)
        _, frozen = self._frozen.advance(row)
        self._remember(row)
        self.rows += 1
        errors = dict.fromkeys(NAMES, float("nan"))
        if lesson is not None and frozen is not None:
            errors |= {LEARNER: float(lesson.errors), FROZEN: float(frozen.errors)}
        errors |= self._advance_rivals(row.astype(np.float64))
        return Entry(
            self.rows - 1,
            forecast,
            errors,
            self._fade(errors),
            0 if lesson is None else int(lesson.change),
            1.0 if lesson is None else float(lesson.boost),
            lesson is not None and bool(lesson.replaced),
        )

    def measure_gates(self) -> dict[str, float]:
        """Returns the mean gate of each block that has gates over the last `GATED` rows, read from an empty memory by
        the learner's parameters of now; nothing before so many have come.
        """
        if self.rows + self.read < GATED:
            return {}
        gates = jax.device_get(_mean_gates(self._model, self.params, self.recent[-GATED:]))
        return {name: float(gate) for name, gate in gates.items()}

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes all of it into a folder, whole or not at all."""
        save_tree(folder, self.rows + self.read, self._pack())

    def restore(self, folder: str | pathlib.Path) -> bool:
        """Goes on from what a folder holds, bit for bit; returns whether it holds anything."""
        if not has_tree(folder):
            return False
        tree = restore_tree(folder, self._pack())
        self._learner.state, self._frozen.state = tree["learner"], tree["frozen"]
        for follower, answers in zip(self._followers.values(), tree["answers"], strict=True):
            follower.answers = answers
        self._least_squares.state = tuple(tree["least_squares"])
        self._sums, self._end = tree["sums"], self._options.remembered
        self._buffer[: self._end] = tree["recent"]
        self.rows, self.read = map(int, tree["rows"])
        return True

    def _pack(self) -> dict[str, Any]:
        """Everything that decides what comes, as one tree."""
        return {
            "learner": self._learner.state,
            "frozen": self._frozen.state,
            "answers": [follower.answers for follower in self._followers.values()],
            "least_squares": list(self._least_squares.state),
            "sums": self._sums,
            "recent": self.recent,
            "rows": np.array([self.rows, self.read]),
        }

    def _advance_rivals(self, row: Float[np.ndarray, "C"]) -> dict[str, float]:
        """Their errors at this row, each scored before it learns."""
        truth = self.recent[-self._horizon :].astype(np.float64) if self.rows > self._horizon else None
        return {name: follower.advance(row, truth) for name, follower in self._followers.items()}

    def _fade(self, errors: dict[str, float]) -> dict[str, float]:
        values = np.array([errors[name] for name in NAMES])
        there = np.isfinite(values)
        self._sums = self._options.fade * self._sums + np.stack([np.where(there, values, 0), there], axis=1)
        with np.errstate(invalid="ignore"):
            return dict(zip(NAMES, (self._sums[:, 0] / self._sums[:, 1]).tolist(), strict=True))

    def _remember(self, row: Float[np.ndarray, "C"]) -> None:
        kept = self._options.remembered
        if self._end == len(self._buffer):
            self._buffer[:kept], self._end = self._buffer[kept:], kept
        self._buffer[self._end] = row
        self._end += 1
