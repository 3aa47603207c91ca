"""One example of a trained model at work that a person can look at, for every kind of task, as values."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from selssm_jax.analysis.gates import Sequence
from selssm_jax.analysis.results import Continuation, ShadedText, Shown, ShownForecast, ShownSignal
from selssm_jax.data.pipeline import Dataset
from selssm_jax.data.vocabulary import LINE_END
from selssm_jax.generation import generate
from selssm_jax.model import names_read_in_part
from selssm_jax.observe import observe
from selssm_jax.runs import Run
from selssm_jax.shapes import Batch
from selssm_jax.tasks.forecasting import mark_missing
from selssm_jax.tasks.registry import kind_of

PASSAGE, PROMPT, DRAWN = 400, 64, 480  # steps
TEMPERATURE = 0.8  # of the softmax
CHANNELS = 8  # of a forecast, drawn
LETTER = 4  # bytes of the longest letter in UTF-8


class Source(NamedTuple):
    """What an example is made from, and the ways to show one, among which `TaskKind.example` chooses: a run, and the
    first sequence of every batch seen.
    """

    run: Run
    seen: list[Sequence]

    @property
    def dataset(self) -> Dataset:
        """The run's data."""
        return self.run.dataset

    def text(self) -> list[Shown]:
        """Returns a passage of the split, shaded, and a continuation that the model wrote."""
        passage = _join(self.seen)
        tokens, logits = passage.batch["inputs"], passage.outputs
        shown: list[Shown] = []
        if len(tokens) > 1:
            words = "A passage of the evaluated text, as the model read it; the darker the ground,"
            shown.append(
                self._shade(
                    tokens[1:], surprise(logits[:-1], tokens[1:]), f"{words} the less the token was expected, in bits."
                )
            )
            if passage.gates:
                caption = f"{words} the more of the state the token updates, as the mean gate."
                shown.append(self._shade(tokens[1:], mean_gate(passage.gates)[1:], caption))
            shown += self._shade_read(tokens[1:], 1, is_scored=True)
        prompt = tokens[:PROMPT]
        written = generate(
            self.run.model, self.run.params, prompt[None], DRAWN, temperature=TEMPERATURE, key=jax.random.key(0)
        )[0]
        words = f"The model reads the first {len(prompt)} tokens of the split as a prompt and writes {DRAWN} more, "
        words += f"one step at a time, at temperature {TEMPERATURE}."
        return [*shown, Continuation(words, *(self.dataset.decode(np.asarray(part)) for part in (prompt, written)))]

    def passage(self, words: str) -> list[Shown]:
        """Returns the first text of the split, with words, shaded by the gates that it opened."""
        batch, _, gates = self.seen[0]
        tokens = batch["inputs"][: min(int(batch["valid"].sum()), PASSAGE)]
        shades = mean_gate(gates)[: len(tokens)] if gates else np.zeros(len(tokens))
        words += _say_cut(len(tokens), int(batch["valid"].sum()))
        caption = f"{words} The darker the ground, the more of the state a token updates."
        return [self._shade(tokens, shades, caption), *self._shade_read(tokens, 0)]

    def answers(self, names: list[str] | None = None) -> list[Shown]:
        """Returns a sequence of tokens with scored steps, and what the model answered there: tokens, or of classes
        their `names`.
        """
        batch, outputs, gates = self.seen[0]
        shown = min(len(outputs), int(batch["valid"].sum()))
        tokens = [name.strip() for name in self._name(batch["inputs"][:shown])]
        truths, guesses = (
            [names[label] for label in array] if names else [name.strip() for name in self._name(array)]
            for array in (batch["targets"][:shown], outputs[:shown].argmax(-1))
        )
        scored = batch["weights"][:shown] > 0
        right = sum(guess == truth for guess, truth, counts in zip(guesses, truths, scored, strict=True) if counts)
        words = (
            f"The first sequence of the split, and under its scored steps what the model answered: {right} of "
            f"{int(scored.sum())} are right.{_say_cut(shown, int(batch['valid'].sum()))}"
        )
        words += " The darker the ground, the more of the state the step updates: the mean gate."
        answers = [guess if counts else None for guess, counts in zip(guesses, scored, strict=True)]
        shades = mean_gate(gates)[:shown] if gates else np.zeros(shown)
        return [
            ShadedText(words, tokens, shades, answers, truths),
            *self._shade_read(batch["inputs"][:shown], 0),
        ]

    def signal(self, words: str, title: str, labels: tuple[tuple[str, str], ...] = ()) -> list[Shown]:
        """Returns the first signal of the split over the gates that it opened, with words.

        The title has a {} for each of `labels`: a name that anybody gave, and what stands in for it where a figure
        cannot draw it. Without labels it is drawn as it is.
        """
        batch, config = self.seen[0].batch, self.run.model.config
        stride = kind_of(config.task).stride(config)
        rate, length = self.dataset.metadata().get("sample_rate"), self.seen[0].shown_steps(stride)
        gates = self.seen[0].live_gates(stride)
        words += _say_cut(length, int(batch["valid"].sum()))
        steps, inputs = find_read_steps(self.run, self.seen[:1]), batch["inputs"][:length]
        if steps is not None:
            steps = steps[: -(-length // stride)]
            words += f" Marked are the frames that are read: {self._say_read(steps)}"
        return [ShownSignal(words, title, labels, inputs, gates, length / (rate or 1), "s" if rate else "steps", steps)]

    def forecast(self) -> list[Shown]:
        """Returns the first window of the split, what followed and the forecast, in the units of the data."""
        batch, outputs, _ = self.seen[0]
        about, kind = self.dataset.metadata(), kind_of(self.run.model.config.task)
        scaling = about.get("scaling", {"mean": 0.0, "deviation": 1.0})
        before, ahead = np.split(batch["course"], [len(batch["inputs"])]) if "course" in batch else (0.0, 0.0)
        read, follows = mark_missing(batch["inputs"], batch["targets"], batch["weights"])

        def restore(values: np.ndarray) -> np.ndarray:
            return np.asarray(values) * scaling["deviation"] + scaling["mean"]

        past, truth, guess = (restore(part) for part in (read + before, follows + ahead, kind.point(outputs) + ahead))
        quantiles = {level: restore(values + ahead) for level, values in kind.quantiles(outputs).items()}
        words = f"The first window of the split: the model reads {len(past)} steps and forecasts {len(truth)}."
        words += " The forecast is the median of the quantiles around it." * bool(quantiles)
        names = [str(name) for name in about.get("channels", ["x"])[:CHANNELS]]
        return [ShownForecast(words, past, truth, guess, names, quantiles)]

    def _shade_read(self, tokens: np.ndarray, first: int, *, is_scored: bool = False) -> list[Shown]:
        """Tokens, from step `first` on, of which those are dark that blocks read which read some alone; nothing where
        all read all.
        """
        rows = self.seen if is_scored else self.seen[:1]
        steps = find_read_steps(self.run, rows, is_scored=is_scored)
        if steps is None:
            return []
        steps = steps[first : first + len(tokens)]
        words = f"Dark are the tokens that are read: {self._say_read(steps)}"
        return [self._shade(tokens, steps.astype(float), words)]

    def _say_read(self, steps: np.ndarray) -> str:
        """How many steps are read, by which blocks, and what the others do."""
        options = self.run.model.config.resample
        first, last = options.span(len(self.run.model.config.pattern))
        which = f"block {first}" if last - first == 1 else f"blocks {first} to {last - 1}"
        return (
            f"{int(steps.sum()):,} of {len(steps):,} by {which} (model.resample.rule={options.rule!r}). At the others "
            "these blocks add what they made of the last one."
        )

    def _shade(self, tokens: np.ndarray, values: np.ndarray, caption: str) -> ShadedText:
        pieces = self._cut(tokens)
        return ShadedText(
            caption, [text for text, _ in pieces], np.array([values[piece].mean() for _, piece in pieces])
        )

    def _name(self, tokens: np.ndarray) -> list[str]:
        """The tokens as a person reads them, one string each; words with the space behind them, lines ended."""
        names = [self.dataset.vocabulary[token] for token in tokens]
        return ["\n" if name == LINE_END else name + self.dataset.separator for name in names]

    def _cut(self, tokens: np.ndarray) -> list[tuple[str, slice]]:
        """The text of tokens in pieces that can be read, and which tokens each is made of: a letter may be several
        bytes.
        """
        if self.dataset.level not in ("byte", "subword"):
            return [(name, slice(place, place + 1)) for place, name in enumerate(self._name(tokens))]
        pieces, first = [], 0
        for stop in range(1, len(tokens) + 1):
            text = self.dataset.decode(np.asarray(tokens[first:stop]))
            if text and (not text.endswith("\ufffd") or stop - first == LETTER or stop == len(tokens)):
                pieces.append((text, slice(first, stop)))
                first = stop
        return pieces


def show(run: Run, seen: list[Sequence]) -> list[Shown]:
    """Returns what shows the model at work, from the first sequence of every batch seen."""
    return kind_of(run.model.config.task).example(Source(run, seen))


def find_read_steps(run: Run, seen: list[Sequence], *, is_scored: bool = False) -> np.ndarray | None:
    """Returns which steps of these sequences, each of which goes on from the one before it where the data are one text,
    are read by the blocks that read some alone, (F,); of scored steps alone, where asked. None where all blocks read
    all steps.
    """
    model, names, steps = run.model, names_read_in_part(run.model.config), list[np.ndarray]()
    if not names:
        return None

    @jax.jit
    def read(params: Any, batch: Batch, state: Any) -> tuple[Array, Any]:
        _, after, shown = observe(model, params, batch, state, rngs={"noise": jax.random.key(0)})
        keep = shown[names[0]].keep
        assert keep is not None  # which such blocks show
        return keep[0], after

    state = start = model.apply({"params": run.params}, 1, method="initial_state")
    for row in seen:
        batch = {name: np.asarray(value)[None] for name, value in row.batch.items()}
        keep, after = read(run.params, batch, state)
        state = after if run.dataset.is_stream else start
        steps.append(np.asarray(keep)[row.batch["weights"][: len(keep)] > 0] if is_scored else np.asarray(keep))
        if sum(map(len, steps)) > PASSAGE:
            break
    return np.concatenate(steps)


def surprise(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns -log2 p(target) of every step, in bits: (T, V), (T,) -> (T,)."""
    logits = np.asarray(logits, np.float64)
    top = logits.max(axis=-1)
    log_sum = top + np.log(np.exp(logits - top[:, None]).sum(axis=-1))
    return (log_sum - logits[np.arange(len(targets)), targets]) / math.log(2)


def mean_gate(gates: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the gate averaged over the components of all blocks, by step: {block: (T, n)} -> (T,)."""
    return np.concatenate(list(gates.values()), axis=-1).mean(axis=-1)


def _say_cut(shown: int, steps: int) -> str:
    return "" if shown == steps else f" Shown are its first {shown:,} of {steps:,} steps."


def _join(seen: list[Sequence]) -> Sequence:
    """The first rows of successive batches as one sequence: row 0 of a batch continues row 0 of the one before it."""
    scored = [row.batch["weights"][: len(row.outputs)] > 0 for row in seen]

    def join(arrays: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([array[: len(steps)][steps] for array, steps in zip(arrays, scored, strict=True)])[
            :PASSAGE
        ]

    batch = {"inputs": join([row.batch["inputs"] for row in seen])}
    return Sequence(
        batch,
        join([row.outputs for row in seen]),
        {name: join([row.gates[name] for row in seen]) for name in seen[0].gates},
    )
