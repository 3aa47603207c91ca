"""A trained run, ready for use: `load` opens it, and its `TrainedModel` predicts, streams, scores, writes, and shows
its memory, in the user's own units.

model = selssm_jax.load("runs/etth1")
model.predict(table[-512:])                     the values that follow, (horizon, channels)
answer, state = model.read(table[-512:])        the same, and the memory after it
answer, state = model.step(row, state)          the next row alone
"""

import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, PyTree
from scipy.special import softmax

from selssm_jax import generation
from selssm_jax.config import Experiment
from selssm_jax.data import forecasting, signals, vocabulary
from selssm_jax.data.pipeline import Dataset
from selssm_jax.intervals import Follower, Intervals, measure_errors, nest, recall
from selssm_jax.model import ModelLike
from selssm_jax.observe import find_valid_frames, observe
from selssm_jax.runs import Run, open_run
from selssm_jax.shapes import Batch
from selssm_jax.tasks.registry import kind_of
from selssm_jax.training import pieces

State = Any
FOLLOWED = 1000  # windows before the last row that intervals follow: some ten times what a factor needs to settle
PIECE = 1024  # tokens of a text that are scored at a time


class Forecast(NamedTuple):
    """What follows: values (..., horizon, channels) in the units of the table, the channels' names, and of a run whose
    intervals were calibrated their lower and upper ends by level, in the same shape and units (`intervals`). Of a run
    that forecasts quantiles, values are the median, and `quantiles` are what the model says by level, not calibrated.
    """

    values: Float[np.ndarray, "*B H C"]
    channels: tuple[str, ...]
    intervals: dict[float, tuple[np.ndarray, np.ndarray]]
    quantiles: dict[float, np.ndarray]

    @property
    def sides(self) -> dict[float, Float[np.ndarray, "2 *B H C"]]:
        """How far intervals reach below and above the values, by level."""
        return {
            level: np.stack([self.values - low, high - self.values]) for level, (low, high) in self.intervals.items()
        }

    def scale(self, factors: Mapping[float, np.ndarray | float]) -> "Forecast":
        """Returns the forecast with intervals whose widths are multiplied, by level, with one factor a channel; one of
        a higher level holds one of a lower.
        """
        sides = nest({level: side * factors[level] for level, side in self.sides.items()})
        intervals = {level: (self.values - below, self.values + above) for level, (below, above) in sides.items()}
        return self._replace(intervals=intervals)


class Classes(NamedTuple):
    """What a signal is: its most probable class by name (one, or a list of a batch's), and the probability of every
    class, (..., classes).
    """

    label: str | list[str]
    probabilities: Float[np.ndarray, "*B K"]
    classes: tuple[str, ...]


class NextToken(NamedTuple):
    """What comes after a text: the probability of every token of the vocabulary, (..., V), and the tokens' names."""

    probabilities: Float[np.ndarray, "*B V"]
    vocabulary: tuple[str, ...]


class Tags(NamedTuple):
    """What every token of a text is: the tokens, the most probable class of each by name, and the probability of every
    class, (T, classes).
    """

    tokens: tuple[str, ...]
    labels: list[str]
    probabilities: Float[np.ndarray, "T K"]
    classes: tuple[str, ...]


class Score(NamedTuple):
    """-log p of every token of a text given all before it, in nats, and of all together. The first has none before it:
    it is the given beginning, and is not among them, unless the tokenizer has a beginning of its own.
    """

    tokens: tuple[str, ...]
    nats: Float[np.ndarray, "T"]

    @property
    def total(self) -> float:
        """Nats of the whole text."""
        return float(self.nats.sum(dtype=np.float64))


class Features(NamedTuple):
    """What the last layer gave of a piece of R sequences: its sum over valid steps (R, D), their number (R,), and that
    of the last of them.
    """

    total: Array
    steps: Array
    last: Array


class TrainedModel:
    """A run's model with its parameters, vocabulary and scaling. `load` makes it.

    Inputs are in the units of the data that it was trained on: a text, or tokens (T,) or (B, T), or a list of either,
    of unequal length; a signal (T, channels), or (T,) of one channel, a batch (B, T, channels), or a list of signals of
    unequal length; rows of a table (T, columns) or (B, T, columns), in the order of `columns`. Answers have a batch
    axis where inputs have one.

    Of a run that reads missing values, these are not-a-number. Of a run that reads covariates of the rows to be
    forecast, inputs end with these rows, the `horizon` after the last one, of which nothing else is read.

    Programs are compiled when a method first meets a shape. Methods change nothing, so threads may share an object.

    Attributes:
      params, model, config: as trained; a compressed run's model carries its state packed. dataset: what the run
        remembers of its data. step_number: of the parameters. intervals: around forecasts, where they were calibrated.
    """

    def __init__(self, run: Run, intervals: Intervals | None = None) -> None:
        self.params: PyTree = run.params
        self.model: ModelLike = run.model
        self.config: Experiment = run.experiment
        self.dataset: Dataset = run.dataset
        self.step_number: int = run.step
        self.intervals = intervals
        self._kind = kind_of(run.dataset.task)
        self._tags = self._kind.every_step and "classes" in self.about
        last = self._kind.every_step and not self._tags
        self._last = _compile(self.model, _last_answers if last else _keep_answers)
        self._nats = _compile(self.model, _nats)
        self._states = jax.jit(functools.partial(_show_states, self.model))
        self._features = jax.jit(functools.partial(_pool_features, self.model))
        self._step = jax.jit(functools.partial(_step, self.model))

    @property
    def about(self) -> Mapping[str, Any]:
        """What the run remembers of its data, as JSON: vocabulary, scaling, names."""
        return self.dataset.info

    @property
    def channels(self) -> tuple[str, ...]:
        """The names of the columns or channels, in their order."""
        names = self.about.get("channels") or [f"channel {index + 1}" for index in range(self.dataset.task.channels)]
        return tuple(map(str, names))

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns that a forecast reads: the channels, and covariates behind them."""
        return self._history.columns

    @functools.cached_property
    def _history(self) -> forecasting.History:
        return forecasting.History(self.about, self.dataset.task)

    @property
    def lookback(self) -> int:
        """How many steps a window has: those that a forecast reads, or the longest signal."""
        return self.dataset.task.length

    def predict(
        self, inputs: Any, *, first_row: int | None = None, moments: Any = None, key: Array | None = None
    ) -> Any:
        """Returns what the model answers after the last step, from an empty memory: a `Forecast`, `Classes`, `Tags` (a
        list of them for several texts) or `NextToken`; of an own kind of task its outputs.

        Args:
          inputs: see the class. A forecast reads the last `lookback` rows; a signal, or a text whose class is asked, is
            cut to its first `lookback` steps, as in training.
          first_row: of a run with data.period, how many rows the first one comes after the first training row.
          moments: of a run with data.calendar, the time of every row, numpy.datetime64, on to the last that is
            forecast.
          key: of the noise of a model that has any; None: always the same noise.

        Raises:
          ValueError: for inputs of another shape or type, too few rows, values that are not finite, and a first_row
            that is missing; InputError for text that the vocabulary lacks.
        """
        ready = self.prepare(inputs, first_row, moments)
        return self._read(ready, None, key)[0]

    def read(
        self,
        inputs: Any,
        state: State = None,
        *,
        first_row: int | None = None,
        moments: Any = None,
        key: Array | None = None,
    ) -> tuple[Any, State]:
        """Returns (what `predict` does, the state after the last step), read from `state` on. Several sequences that go
        on from a state, and several signals, are equally long.

        Raises ValueError as `predict` does, and for a state of a run that reads what is known of the rows to be
        forecast.
        """
        ready = self.prepare(inputs, first_row, moments, continued=state is not None, exact=True)
        return self._read(ready, state, key)

    def follow(self, rows: Any, *, first_row: int | None = None, moments: Any = None) -> Forecast:
        """Returns the forecast of `predict` from rows (T, columns) of one series, its intervals widened and narrowed
        by how often those of the last `FOLLOWED` windows of the same rows were missed (`intervals.Follower`).
        first_row, moments: as in `predict`.
        """
        shape = rows.shape if hasattr(rows, "shape") else np.shape(rows)
        if len(shape) not in (1, 2):
            raise ValueError(f"rows have shape {shape}, expected (T, columns) of one series: follow one at a time")
        rows = np.asarray(rows)[:, None] if len(shape) == 1 else rows
        forecast: Forecast = self.predict(rows, first_row=first_row, moments=moments)
        if not forecast.intervals:
            return forecast
        horizon, channels = forecast.values.shape
        follower = Follower(forecast.intervals, horizon)
        for stop, earlier in self._predict_earlier(rows, horizon, first_row, moments):
            error = np.asarray(rows[stop : stop + horizon])[:, :channels] - earlier.values
            follower.read({level: measure_errors(error, side) for level, side in earlier.sides.items()})
        return forecast.scale(follower.factors)

    def _predict_earlier(
        self, rows: Any, horizon: int, first_row: int | None, moments: Any
    ) -> Iterator[tuple[int, Forecast]]:
        """(The row after a window, its forecast) of the last `FOLLOWED` windows whose horizon lies in the rows."""
        after = horizon if self._history.beside.future else 0  # rows of each window that hold what is known ahead
        last = len(rows) - after - self.lookback - horizon
        starts = np.arange(max(last - FOLLOWED + 1, 0), last + 1)
        # one first_row is that of a batch
        size = 1 if self._history.period else self.config.data.eval_batch_size or self.config.data.batch_size
        for first in range(0, len(starts), size):
            batch = starts[first : first + size]
            every = np.pad(batch, (0, size - len(batch)), mode="edge")  # filled up, so that one program reads all
            windows = np.stack([rows[start : start + self.lookback + after] for start in every])
            known = None if moments is None else [moments[start : start + self.lookback + horizon] for start in every]
            place = None if first_row is None else first_row + int(batch[0])
            forecasts: Forecast = self.predict(windows, first_row=place, moments=known)
            for number, start in enumerate(batch.tolist()):
                ends = {level: (low[number], high[number]) for level, (low, high) in forecasts.intervals.items()}
                yield start + self.lookback, Forecast(forecasts.values[number], forecasts.channels, ends, {})

    def _read(self, ready: "Ready", state: State, key: Array | None) -> tuple[Any, State]:
        shown, after = self._walk(self._last, ready.batch, state, key)
        return self.decode(np.concatenate(shown, axis=1) if self._tags else shown[-1], ready), after

    def step(
        self, inputs: Any, state: State, *, first_row: int | None = None, key: Array | None = None
    ) -> tuple[Any, State]:
        """Returns (the answer after one step more, the state after it).

        Args:
          inputs: a token or (B,) tokens, one row of values (channels,) or (B, channels). state: of as many sequences.
          first_row: as in `predict`, of this row. key: of noise; needed where a model has any.
        """
        values = np.asarray(inputs)
        if values.dtype.kind in "US":
            raise ValueError(
                f"inputs are text, {inputs!r}, but a step reads a token, a whole number: `read` takes text"
            )
        single = values.ndim == (0 if self._kind.tokens else 1)
        rows = values[None] if single else values
        ready = self.prepare(rows[:, None], first_row, continued=True)
        now = jnp.asarray(ready.batch["inputs"])[:, 0]
        try:
            outputs, after = self._step(self.params, now, state, key)
        except flax.errors.InvalidRngError as error:
            raise ValueError("this model draws noise at every step: give a new key for each") from error
        return self.decode(np.asarray(outputs), ready._replace(single=single)), after

    def initial_state(self, batch: int = 1) -> State:
        """Returns the empty memory of `batch` sequences. A forecast has no scale yet: begin with `read` of a window."""
        return self.model.apply({"params": self.params}, batch, method="initial_state")

    def states(
        self, inputs: Any, *, first_row: int | None = None, moments: Any = None
    ) -> dict[str, Float[np.ndarray, "*B F n"]]:
        """Returns {block: what its memory holds after every step}, for `selssm_jax.information`; blocks that show none
        are left out.

        F steps are those of the blocks, one for each stride of a signal; where channels run apart they are rows.
        """
        ready = self.prepare(inputs, first_row, moments, exact=True)
        shown, _ = self._walk(self._states, ready.batch)
        blocks = {name: np.concatenate([part[name] for part in shown], axis=1) for name in shown[0]}
        alone = ready.single and self._kind.rows(self.model.config) == 1
        return {name: values[0] if alone else values for name, values in blocks.items()}

    def embed(
        self,
        inputs: Any,
        pool: Literal["mean", "last"] = "mean",
        *,
        first_row: int | None = None,
        moments: Any = None,
    ) -> Float[np.ndarray, "*B D"]:
        """Returns what the last layer gives the head, (..., d_model): its mean over all steps that were read, or that
        after the last of them. What fills up a batch does not count. Inputs are as in `predict`; where channels run
        apart they are rows.
        """
        if pool not in ("mean", "last"):
            raise ValueError(f"pool={pool!r} is unknown: use 'mean' or 'last'")
        ready = self.prepare(inputs, first_row, moments)
        shown, _ = self._walk(self._features, ready.batch)
        count = np.stack([part.steps for part in shown])
        if pool == "mean":
            features = np.sum([part.total for part in shown], axis=0) / count.sum(axis=0)[:, None]
        else:
            newest = len(shown) - 1 - (count[::-1] > 0).argmax(axis=0)
            features = np.stack([part.last for part in shown])[newest, np.arange(count.shape[1])]
        alone = ready.single and self._kind.rows(self.model.config) == 1
        return features[0] if alone else features

    def score(self, inputs: Any, targets: Any = None, *, first_row: int | None = None, moments: Any = None) -> Any:
        """Returns how well the model expects what is: of a text (or a list of texts) its `Score`; else the metrics of
        predictions against targets, a mean over rows, errors of a forecast in the table's units.

        Args:
          inputs: see the class. targets: class numbers or names (B,), or values (B, horizon, channels); none of a text.
          first_row, moments: as in `predict`.
        """
        if not self._kind.writes:
            return self._compare(self.predict(inputs, first_row=first_row, moments=moments), targets)
        if targets is not None:
            raise ValueError("a text is its own target: leave targets out")
        several = _is_list(inputs)
        texts = self._tokens(inputs, continued=False)[0]
        scores = [self._score(tokens) for tokens in texts]
        return scores if several else scores[0]

    def score_tokens(self, tokens: Integer[np.ndarray, "T"]) -> Iterator[Float[np.ndarray, "t"]]:
        """Yields -log p of tokens 1, 2, ... of a text, in nats, a piece at a time: the memory of one piece, whatever
        the length. Raises ValueError for fewer than two tokens.
        """
        if len(tokens) < 2:
            raise ValueError("a text of one token has nothing to score: give at least two tokens")
        size = min(PIECE, 1 << int(len(tokens) - 2).bit_length())
        state = self.model.apply({"params": self.params}, 1, len(tokens) + size, method="initial_state")
        for number, first in enumerate(range(0, len(tokens) - 1, size)):
            part = tokens[first : first + size + 1].astype(np.int32)
            read = np.arange(size)[None] < len(part) - 1
            inputs, targets = (np.resize(row, (1, size)) for row in (part[:-1], part[1:]))
            batch = {"inputs": inputs, "targets": targets, "valid": read}
            nats, state = self._nats(self.params, state, batch, number, jax.random.key(0))
            yield np.asarray(nats)[0, : len(part) - 1]

    def generate(self, prompt: str | Sequence[str], tokens: int = 200, *, details: bool = False, **options: Any) -> Any:
        """Returns the text that the model writes after a prompt, the prompt before it; of several prompts, which are
        one batch, a list; of several answers a list to each prompt.

        Args:
          prompt: the beginning, or what follows `state`. tokens: how many to write.
          details: returns a list of `generation.Written` instead, of each answer its `prompt`, the `text` that follows
            it, without it, and tokens, log-probabilities and state of that text.
          options: of `generation.Sampling`, and seed, stop, answers and state, as `generation.write_on` has them; state
            is one of `read`, `step` or `generation.Written`.
        """
        texts = [prompt] if isinstance(prompt, str) else prompt
        how: dict[str, Any] = {"tokens": tokens, **options}
        given = self.model, self.params, self.dataset, texts
        if details:
            return generation.write_texts(*given, **how)
        answers = options.get("answers", 1)
        if len(texts) == 1 and answers == 1:
            told = ["".join(generation.write_on(*given, **how))]
        else:
            told = [written.prompt + written.text for written in generation.write_texts(*given, states=False, **how)]
        rows = told if answers == 1 else [told[first : first + answers] for first in range(0, len(told), answers)]
        return rows[0] if isinstance(prompt, str) else rows

    def _walk(self, read: Any, batch: Batch, state: State = None, key: Array | None = None) -> tuple[list[Any], State]:
        """What a compiled reading shows of every piece of a batch, and the state after the last."""
        key = jax.random.key(0) if key is None else key

        def read_piece(before: State, part: Batch, number: int | None) -> tuple[Any, State]:
            return read(self.params, before, part, number, key)

        shown = []
        for given, after in pieces.walk(read_piece, self.model, self.params, batch, pieces.AUTO, state):
            shown.append(jax.device_get(given))
            state = after
        return shown, state

    def prepare(
        self,
        inputs: Any,
        first_row: int | None = None,
        moments: Any = None,
        *,
        continued: bool = False,
        exact: bool = False,
    ) -> "Ready":
        """Returns inputs as the model reads them. Raises as `predict` does.

        Args:
          inputs, first_row, moments: as `predict` has them. continued: they follow others, and may be few. exact:
            nothing is filled up at its end, so that the state after it is that of the inputs, as where they are
            continued; else signals are, to `lookback`.
        """
        if self._kind.tokens:
            rows, single = self._tokens(inputs, continued=continued)
            if not (self._kind.writes or continued or exact):
                return Ready(_fill_up([row[: self.lookback or None] for row in rows]), single)
            tokens, reset = generation.align_rows(rows)
            if continued and reset is not None:
                raise ValueError("inputs that go on from a state are of several lengths: read one sequence at a time")
            begins = {} if reset is None else {"reset": reset}
            valid = np.ones(tokens.shape, bool) if reset is None else np.cumsum(reset, axis=1) > 0
            return Ready({"inputs": tokens, "valid": valid, **begins}, single)
        with np.errstate(over="ignore"):  # it is refused below
            ready = (
                self._rows(inputs, first_row, moments, continued=continued)
                if self._kind.forecasts
                else self._clips(inputs, exact=exact or continued)
            )
        if not np.isfinite(ready.batch["inputs"]).all():
            raise ValueError(
                "inputs hold numbers too large for float32, as the model reads them: give the data's units"
            )
        steps, stride = ready.batch["inputs"].shape[1], self._kind.stride(self.model.config)
        if continued and steps % stride:  # a frame that is not whole would be filled up with zeros
            raise ValueError(
                f"inputs that go on from a state have {steps} steps, but the run reads {stride} at a time "
                f"(model.stride): give read a multiple of {stride} steps"
            )
        return ready

    def _rows(self, inputs: Any, first_row: int | None, moments: Any, *, continued: bool) -> "Ready":
        values, single = self._values(inputs)
        history = self._history
        if history.ahead and not history.beside.future:  # of these rows their times alone are read
            values = np.pad(values, ((0, 0), (0, history.ahead), (0, 0)))
        rows = values.shape[1] - history.ahead
        if continued and history.ahead:
            raise ValueError(
                "the run reads what is known of the rows to be forecast, which a state does not hold: give predict a "
                "whole window"
            )
        if not continued and rows < self.lookback:
            after = f" besides {history.ahead} that follow" if history.ahead else ""
            raise ValueError(
                f"inputs have {max(rows, 0)} rows{after}, but a forecast reads {self.lookback}: give at least so many"
            )
        left_out = 0 if continued else rows - self.lookback
        if history.period and first_row is None:
            raise ValueError(
                f"the run takes a cycle of {history.period} rows off: give first_row, how many rows the first one "
                "comes after the first training row"
            )
        begin, stamps = (first_row or 0) + left_out, self._moments(moments, values.shape[:2])
        encoded = history.encode(values[:, left_out:], begin, None if stamps is None else stamps[..., left_out:])
        batch = {"inputs": encoded, "valid": np.ones(encoded.shape[:2], bool)}
        return Ready(batch, single, begin + encoded.shape[1])

    def _moments(self, moments: Any, shape: tuple[int, ...]) -> np.ndarray | None:
        """Microseconds since 1970 of every row, of a run that reads a calendar."""
        calendar = self._history.beside.calendar
        if not calendar:
            return None
        stamps = np.asarray(moments if moments is not None else [], "datetime64[us]").astype(np.int64)
        if stamps.shape[-1] != shape[1]:
            raise ValueError(
                f"the run reads {', '.join(calendar)} of every row, and moments has {stamps.shape[-1]} times: give "
                f"{shape[1]}, from the first row to the last that is forecast, as numpy.datetime64"
            )
        return np.broadcast_to(stamps, shape)

    def _clips(self, inputs: Any, *, exact: bool) -> "Ready":
        rows, single = self._signals(inputs)
        clips = signals.join_clips(rows)
        clips = signals.scale_clips({"train": clips}, {**self.about, "task": {}}, "inputs")[0]["train"]
        longest = int(clips.lengths.max())
        if exact and longest > clips.lengths.min():
            raise ValueError("inputs are signals of several lengths, whose states are told of one at a time alone")
        batch = signals.take(clips, np.arange(len(rows)), longest if exact else self.lookback or longest)
        return Ready({name: batch[name] for name in ("inputs", "valid")}, single)

    def _tokens(self, inputs: Any, *, continued: bool) -> tuple[list[np.ndarray], bool]:
        single = not _is_list(inputs)
        rows = [self._encode(row, continued=continued) for row in ([inputs] if single else inputs)]
        _refuse_empty(rows, "text, with one token in it", single=single)
        vocab = self.dataset.task.vocab
        for row in rows:
            if row.ndim != 1 or row.min() < 0 or row.max() >= vocab:
                raise ValueError(
                    f"inputs hold a row of shape {row.shape}, expected (T,), or a token that is not from 0 to "
                    f"{vocab - 1}"
                )
        return rows, single

    def _encode(self, text: Any, *, continued: bool) -> np.ndarray:
        if isinstance(text, str) and continued:
            return self.dataset.encode(text)
        if isinstance(text, str):
            beginning = vocabulary.beginning(self.dataset.level, self.dataset.tokenizer)
            return np.concatenate([beginning, self.dataset.encode(text)]).astype(np.int32)
        tokens = np.asarray(text)
        if tokens.size and tokens.dtype.kind not in "iu":
            raise ValueError(f"inputs are of type {tokens.dtype}, expected a text or tokens, which are whole numbers")
        return tokens.astype(np.int32)

    def _values(self, inputs: Any) -> tuple[np.ndarray, bool]:
        """(B, T, channels) in float64, and whether there is no batch axis."""
        values = np.asarray(inputs)
        if not values.size:
            raise ValueError(f"inputs are empty: give at least one row of the columns {', '.join(self.columns[:8])}")
        if values.dtype.kind not in "iuf":
            raise ValueError(f"inputs are of type {values.dtype}, expected real numbers")
        columns, single = len(self.columns), values.ndim < 3
        values = values[:, None] if values.ndim == 1 and columns == 1 else values
        values = values[None] if single else values
        if values.ndim != 3 or values.shape[2] != columns:
            raise ValueError(
                f"inputs have shape {np.shape(inputs)}, expected (T, {columns}) or (B, T, {columns}): the columns "
                f"{', '.join(self.columns[:8])}"
            )
        values = values.astype(np.float64)
        self._history.check(values)
        return values, single

    def _signals(self, inputs: Any) -> tuple[list[np.ndarray], bool]:
        """Signals (T, channels) of whatever type, and whether there is but one, outside of any list."""
        several = isinstance(inputs, list | tuple) and bool(inputs) and isinstance(inputs[0], np.ndarray | jax.Array)
        single = not several and np.ndim(inputs) < 3
        rows = [np.asarray(row) for row in ([inputs] if single else inputs)]
        _refuse_empty(rows, "signal, with one sample in it", single=single)
        channels = self.dataset.task.channels
        rows = [row[:, None] if row.ndim == 1 and channels == 1 else row for row in rows]
        for row in rows:
            if row.ndim != 2 or row.shape[1] != channels or row.dtype.kind not in "iuf":
                raise ValueError(
                    f"inputs hold a signal of shape {row.shape} and type {row.dtype}, expected real numbers of shape "
                    f"(T, {channels})"
                )
            if not np.isfinite(row).all():
                raise ValueError("inputs hold numbers that are not finite: fill them in")
        if len({row.dtype for row in rows}) > 1:
            raise ValueError("inputs hold signals of several types: give all as one")
        return rows, single

    def decode(self, outputs: Any, ready: "Ready") -> Any:
        """Returns the model's outputs after the last step, a row a sequence, as `predict` gives them; those of the last
        steps, where every token has a class.
        """
        if self._tags:
            tags = self._tag(outputs if outputs.ndim > 2 else outputs[:, None], ready.batch)
            return tags[0] if ready.single else tags
        outputs = outputs[0] if ready.single else outputs
        if self._kind.writes:
            return NextToken(_softmax(outputs), tuple(self.dataset.vocabulary))
        if self._kind.forecasts:
            return self._forecast(outputs, ready)
        if "classes" not in self.about:
            return outputs
        names = tuple(map(str, self.about["classes"]))
        best = outputs.argmax(axis=-1)
        label = names[int(best)] if ready.single else [names[int(index)] for index in best]
        return Classes(label, _softmax(outputs), names)

    def _tag(self, outputs: np.ndarray, batch: Batch) -> list[Tags]:
        names, words, steps = tuple(map(str, self.about["classes"])), self.dataset.vocabulary, outputs.shape[1]
        tags = []
        for tokens, valid, logits in zip(batch["inputs"], batch["valid"], outputs, strict=True):
            read = np.asarray(valid)[-steps:]
            best = logits[read].argmax(axis=-1)
            shown = tuple(words[token] for token in np.asarray(tokens)[-steps:][read])
            tags.append(Tags(shown, [names[index] for index in best], _softmax(logits[read]), names))
        return tags

    def _forecast(self, outputs: np.ndarray, ready: "Ready") -> Forecast:
        window = ready.batch["inputs"][0] if ready.single else ready.batch["inputs"]
        known = None if window.shape[-2] < self.lookback else self.intervals
        forecast, quantiles = self._kind.point(outputs), self._kind.quantiles(outputs)
        masked = self.dataset.task.masked
        ends = {} if known is None else known.around(forecast, window, quantiles, masked=masked)

        def decode(values: np.ndarray) -> np.ndarray:
            return self._history.decode(values, ready.next_row)

        intervals = {level: (decode(lower), decode(upper)) for level, (lower, upper) in ends.items()}
        said = {level: decode(values) for level, values in quantiles.items()}
        return Forecast(decode(forecast), self.channels, intervals, said)

    def _score(self, tokens: np.ndarray) -> Score:
        names = self.dataset.vocabulary or tuple(map(str, range(self.dataset.task.vocab)))
        return Score(tuple(names[token] for token in tokens[1:]), np.concatenate(list(self.score_tokens(tokens))))

    def _compare(self, answer: Any, targets: Any) -> dict[str, float]:
        """Metrics of an answer that are means over its rows."""
        if targets is None:
            raise ValueError("targets are missing: give what follows the inputs, or their classes")
        if isinstance(answer, Forecast):
            error = answer.values - _as_shape(targets, answer.values.shape)
            average = np.nanmean if self.dataset.task.masked else np.mean  # a missing target has no error
            return {"mse": float(average(np.square(error))), "mae": float(average(np.abs(error)))}
        if not isinstance(answer, Classes):
            raise ValueError(f"a task of the kind {self.dataset.task.kind!r} has no score here: use eval.py")
        truth = np.array([_class_number(target, answer.classes) for target in np.atleast_1d(np.asarray(targets))])
        odds = np.atleast_2d(answer.probabilities)
        taken = _as_shape(truth, odds.shape[:1])
        with np.errstate(divide="ignore"):
            nats = -np.log(odds[np.arange(len(odds)), taken])
        return {"accuracy": float((odds.argmax(axis=-1) == taken).mean()), "nats": float(nats.mean())}


class Ready(NamedTuple):
    """Inputs as a model reads them; whether they had no batch axis; of a series, the row in the cycle that follows."""

    batch: Batch
    single: bool
    next_row: int = 0


def load(run_folder: str | pathlib.Path) -> TrainedModel:
    """Returns the model of a run, trained, compressed or imported, ready for use; its data are not opened.

    Raises:
      InputError: where there is no such folder, no run in it, or no checkpoint.
    """
    run = open_run(run_folder, examples=False)
    return TrainedModel(run, recall(run.workdir, run.step))


def _compile(model: ModelLike, show: Any) -> Any:
    """A compiled reading of pieces: (params, state, batch of a piece, its number, key) -> (what it shows, state)."""

    def read(params: PyTree, state: State, part: Batch, number: Any, key: Array) -> tuple[Any, State]:
        outputs, after, _ = pieces.make_reader(model, params, key)(state, part, number)
        return show(outputs, part), after

    return jax.jit(read)


def _show_states(
    model: ModelLike, params: PyTree, state: State, part: Batch, number: Any, key: Array
) -> tuple[dict[str, Array], State]:
    noise = {"noise": pieces.key_of(key, number)}
    _, after, blocks = observe(model, params, part, state, rngs=noise)
    return {name: block.state for name, block in blocks.items() if block.state is not None}, after


def _pool_features(
    model: ModelLike, params: PyTree, state: State, part: Batch, number: Any, key: Array
) -> tuple[Features, State]:
    (_, after), sown = model.apply(
        {"params": params},
        jnp.asarray(part["inputs"]),
        state,
        reset=part.get("reset"),
        valid=jnp.asarray(part["valid"]),
        rngs={"noise": pieces.key_of(key, number)},
        mutable=["features"],
    )
    x = sown["features"]["last"][0].astype(jnp.float32)
    valid = find_valid_frames(model.config, part["valid"])
    last = x.shape[1] - 1 - valid[:, ::-1].argmax(axis=1)
    return Features(
        jnp.where(valid[..., None], x, 0).sum(axis=1), valid.sum(axis=1), x[jnp.arange(len(x)), last]
    ), after


def _fill_up(rows: Sequence[np.ndarray]) -> Batch:
    """Rows of tokens filled up at their end, to a power of two: few programs then read any length."""
    size = 1 << (max(map(len, rows)) - 1).bit_length()
    tokens = np.stack([np.pad(row, (0, size - len(row))) for row in rows])
    return {"inputs": tokens, "valid": np.arange(size)[None] < np.array(list(map(len, rows)))[:, None]}


def _step(model: ModelLike, params: PyTree, inputs: Array, state: State, key: Array | None) -> tuple[Array, State]:
    noise = {} if key is None else {"rngs": {"noise": key}}
    outputs, after = model.apply({"params": params}, inputs, state, method="step", **noise)
    return outputs, after


def _keep_answers(outputs: Array, part: Batch) -> Array:
    del part
    return outputs


def _last_answers(outputs: Array, part: Batch) -> Array:
    del part
    return outputs[:, -1]


def _nats(outputs: Array, part: Batch) -> Array:
    return -jnp.take_along_axis(jax.nn.log_softmax(outputs), jnp.asarray(part["targets"])[..., None], axis=-1)[..., 0]


def _refuse_empty(rows: Sequence[np.ndarray], least: str, *, single: bool) -> None:
    """Raises ValueError where there is no row, or one that holds nothing."""
    empty = [index for index, row in enumerate(rows) if not row.size]
    if empty or not rows:
        which = "inputs are" if single or not rows else f"inputs[{empty[0]}] is"
        raise ValueError(f"{which} empty: give at least one {least}")


def _is_list(texts: Any) -> bool:
    """Whether there are several texts, or rows of tokens, and not one."""
    if isinstance(texts, list | tuple):
        return not texts or isinstance(texts[0], str) or np.ndim(texts[0]) > 0
    return not isinstance(texts, str) and np.ndim(texts) > 1


def _softmax(logits: np.ndarray) -> np.ndarray:
    return softmax(logits.astype(np.float64), axis=-1).astype(np.float32)


def _class_number(target: Any, classes: Sequence[str]) -> int:
    """The number of a class that is given by name or number."""
    name = str(target)
    if isinstance(target, str) and name in classes:
        return classes.index(name)
    if isinstance(target, int | np.integer) and 0 <= target < len(classes):
        return int(target)
    raise ValueError(f"targets hold {target!r}, expected one of {', '.join(classes)}, or a number from 0")


def _as_shape(values: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(values)
    if array.shape != shape:
        raise ValueError(f"targets have shape {array.shape}, expected {shape}")
    return array
