"""One example of a trained model at work that a person can look at, for every kind of task."""

import math
import pathlib
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from selssm_jax.data.pipeline import Dataset
from selssm_jax.data.vocabulary import LINE_END
from selssm_jax.generation import generate
from selssm_jax.model import Reader
from selssm_jax.reporting import figures
from selssm_jax.reporting.activity import Sequence
from selssm_jax.reporting.document import Block, Paragraph, Picture, Shaded, Token, Verbatim
from selssm_jax.tasks.registry import kind_of

PASSAGE, PROMPT, DRAWN = 400, 64, 480  # steps
TEMPERATURE = 0.8  # of the softmax
CHANNELS = 8  # of a forecast, drawn
LETTER = 4  # bytes of the longest letter in UTF-8


class Source(NamedTuple):
    """What an example is made from, and the ways to show one, among which `TaskKind.example` chooses.

    The model, its parameters, the dataset, and the first sequence of every batch seen; figures are written to `folder`.
    """

    model: Reader
    params: PyTree
    dataset: Dataset
    seen: list[Sequence]
    folder: pathlib.Path

    def text(self) -> list[Block]:
        """Returns a passage of the split, shaded, and a continuation that the model wrote."""
        passage = _join(self.seen)
        tokens, logits = passage.batch["inputs"], passage.outputs
        blocks: list[Block] = []
        if len(tokens) > 1:
            words = "A passage of the evaluated text, as the model read it; the darker the ground,"
            blocks.append(_shade_tokens(self, tokens[1:], surprise(logits[:-1], tokens[1:]), f"{words} the less the token was expected, in bits."))
            if passage.gates:
                caption = f"{words} the more of the state the token updates, as the mean gate."
                blocks.append(_shade_tokens(self, tokens[1:], mean_gate(passage.gates)[1:], caption))
        prompt = tokens[:PROMPT]
        drawn = generate(self.model, self.params, prompt[None], DRAWN, temperature=TEMPERATURE, key=jax.random.key(0))[0]
        words = f"The model reads the first {len(prompt)} tokens of the split as a prompt and writes {DRAWN} more, "
        words += f"one step at a time, at temperature {TEMPERATURE}."
        prompt_text, drawn_text = (Verbatim(self.dataset.decode(np.asarray(part))) for part in (prompt, drawn))
        return [*blocks, Paragraph(f"{words} The prompt:"), prompt_text, Paragraph("Written by the model:"), drawn_text]

    def answers(self) -> list[Block]:
        """Returns a sequence of tokens with scored steps, and what the model answered there."""
        batch, outputs, gates = self.seen[0]
        tokens, truth, guess = ([name.strip() for name in _names(self, array)] for array in (batch["inputs"], batch["targets"], outputs.argmax(-1)))
        scored = batch["weights"] > 0
        gate = mean_gate(gates) if gates else np.zeros(len(tokens))
        right = sum(mine == theirs for mine, theirs, counts in zip(guess, truth, scored, strict=True) if counts)
        ends = _ends(gate)
        steps = zip(tokens, _shades(gate, ends), guess, truth, scored, strict=True)
        shown = tuple(Token(text, shade, mine if counts else None, theirs) for text, shade, mine, theirs, counts in steps)
        words = f"The first sequence of the split, and under its scored steps what the model answered: {right} of {int(scored.sum())} are right."
        return [Shaded(shown, ends, f"{words} The darker the ground, the more of the state the step updates: the mean gate.")]

    def signal(self, words: str, title: str) -> list[Block]:
        """Returns the first signal of the split over the gates that it opened, under a title that can be drawn, with words."""
        batch = self.seen[0].batch
        rate, length = self.dataset.metadata().get("sample_rate"), int(batch["valid"].sum())
        gates = self.seen[0].live_gates(kind_of(self.model.config.task).stride(self.model.config))
        figure = figures.waveform(batch["inputs"][:length], gates, duration=length / (rate or 1), unit="s" if rate else "steps", title=title)
        return [Picture(figures.save(figure, self.folder / "signal.png"), words)]

    def forecast(self) -> list[Block]:
        """Returns the first window of the split, what followed and the forecast, in the units of the data."""
        batch, guess, _ = self.seen[0]
        about = self.dataset.metadata()
        scaling = about.get("scaling", {"mean": 0.0, "deviation": 1.0})
        before, ahead = np.split(batch["course"], [len(batch["inputs"])]) if "course" in batch else (0.0, 0.0)
        series = (batch["inputs"] + before, batch["targets"] + ahead, guess + ahead)
        past, truth, guess = (np.asarray(array) * scaling["deviation"] + scaling["mean"] for array in series)
        names = about.get("channels", ["x"])[:CHANNELS]
        shown = past[-2 * len(truth) :]  # more of the past would leave no room for the forecast
        figure = figures.forecast(shown, truth, guess, names=names, units="value (units of the data)")
        words = f"The first window of the split: the model reads {len(past)} steps and forecasts {len(truth)}."
        if any(figures.drawable(str(name), "") != name for name in names):
            words += " Channels: " + ", ".join(f"{number}, {name}" for number, name in enumerate(names, start=1)) + "."
        return [Picture(figures.save(figure, self.folder / "forecast.png"), words)]

    def drawable(self, text: str, otherwise: str) -> str:
        """Returns the text where the font of figures has all of its letters."""
        return figures.drawable(text, otherwise)


def show(source: Source) -> list[Block]:
    """Returns the parts of a report that show an example, and writes their figures to `source.folder`."""
    return kind_of(source.model.config.task).example(source)


def surprise(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns -log2 p(target) of every step, in bits: (T, V), (T,) -> (T,)."""
    logits = np.asarray(logits, np.float64)
    top = logits.max(axis=-1)
    log_sum = top + np.log(np.exp(logits - top[:, None]).sum(axis=-1))
    return (log_sum - logits[np.arange(len(targets)), targets]) / math.log(2)


def mean_gate(gates: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the gate averaged over the components of all blocks, by step: {block: (T, n)} -> (T,)."""
    return np.concatenate(list(gates.values()), axis=-1).mean(axis=-1)


def _shade_tokens(source: Source, tokens: np.ndarray, values: np.ndarray, caption: str) -> Shaded:
    pieces = _pieces(source, tokens)
    means = np.array([values[piece].mean() for _, piece in pieces])
    ends = _ends(means)
    return Shaded(tuple(Token(text, shade) for (text, _), shade in zip(pieces, _shades(means, ends), strict=True)), ends, caption)


def _ends(values: np.ndarray) -> tuple[float, float]:
    """The scale of a shade: from the first to the last percentile, so that a few large values leave the others visible."""
    real = values[np.isfinite(values)]
    low, high = np.quantile(real, (0.01, 0.99)) if len(real) else (0.0, 0.0)
    return float(low), float(max(high, low + 1e-6))


def _shades(values: np.ndarray, ends: tuple[float, float]) -> list[float]:
    return np.clip((values - ends[0]) / (ends[1] - ends[0]), 0, 1).tolist()


def _join(seen: list[Sequence]) -> Sequence:
    """The first rows of successive batches as one sequence: row 0 of a batch continues row 0 of the one before it."""
    kept = [row.batch["weights"] > 0 for row in seen]

    def join(arrays: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([array[keep] for array, keep in zip(arrays, kept, strict=True)])[:PASSAGE]

    batch = {"inputs": join([row.batch["inputs"] for row in seen])}
    return Sequence(batch, join([row.outputs for row in seen]), {name: join([row.gates[name] for row in seen]) for name in seen[0].gates})


def _names(source: Source, tokens: np.ndarray) -> list[str]:
    """The tokens as a person reads them, one string each; words with the space behind them, lines ended."""
    space = source.dataset.separator
    names = [source.dataset.vocabulary[token] for token in tokens]
    return ["\n" if name == LINE_END else name + space for name in names]


def _pieces(source: Source, tokens: np.ndarray) -> list[tuple[str, slice]]:
    """The text of tokens in pieces that can be read, and which tokens each is made of: a letter may be several bytes."""
    if source.dataset.level not in ("byte", "subword"):
        return [(name, slice(place, place + 1)) for place, name in enumerate(_names(source, tokens))]
    pieces, first = [], 0
    for stop in range(1, len(tokens) + 1):
        text = source.dataset.decode(np.asarray(tokens[first:stop]))
        if text and (not text.endswith("\ufffd") or stop - first == LETTER or stop == len(tokens)):
            pieces.append((text, slice(first, stop)))
            first = stop
    return pieces
