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
from selssm_jax.reporting.document import Block, Paragraph, Picture, Verbatim

PASSAGE, PROMPT, DRAWN = 400, 64, 480  # steps
TEMPERATURE = 0.8  # of the softmax
CHANNELS = 8  # of a forecast, drawn


class Source(NamedTuple):
    """What an example is made from: the model, its parameters, the dataset, and the first sequence of every batch seen."""

    model: Reader
    params: PyTree
    dataset: Dataset
    seen: list[Sequence]
    folder: pathlib.Path


def show(source: Source) -> list[Block]:
    """Returns the parts of a report that show an example, and writes their figures to `source.folder`."""
    kind = source.model.config.task.kind
    if kind == "language":
        return _text(source) if source.dataset.carries else _answers(source)
    return _signal(source) if kind == "classification" else _forecast(source)


def surprise(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns -log2 p(target) of every step, in bits: (T, V), (T,) -> (T,)."""
    logits = np.asarray(logits, np.float64)
    top = logits.max(axis=-1)
    log_sum = top + np.log(np.exp(logits - top[:, None]).sum(axis=-1))
    return (log_sum - logits[np.arange(len(targets)), targets]) / math.log(2)


def mean_gate(gates: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the gate averaged over the components of all blocks, by step: {block: (T, n)} -> (T,)."""
    return np.concatenate(list(gates.values()), axis=-1).mean(axis=-1)


def _text(source: Source) -> list[Block]:
    """A passage of the split, shaded, and a continuation that the model wrote."""
    passage = _join(source.seen)
    tokens, logits = passage.batch["inputs"], passage.outputs
    blocks: list[Block] = []
    if len(tokens) > 1:
        shades = {"surprise (bits): how unexpected the token was": surprise(logits[:-1], tokens[1:])}
        if passage.gates:
            shades["mean gate: how much of the state the token updates"] = mean_gate(passage.gates)[1:]
        path = figures.save(figures.shaded_text(_names(source, tokens[1:]), shades), source.folder / "passage.png")
        blocks.append(Picture(path, "A passage of the evaluated text, as the model read it: the darker the ground, the larger the value."))
    prompt = tokens[:PROMPT]
    drawn = generate(source.model, source.params, prompt[None], DRAWN, temperature=TEMPERATURE, key=jax.random.key(0))[0]
    words = (
        f"The model reads the first {len(prompt)} tokens of the split as a prompt and writes {DRAWN} more, one step at a time, at temperature {TEMPERATURE}."
    )
    prompt_text, drawn_text = (Verbatim(source.dataset.decode(np.asarray(part))) for part in (prompt, drawn))
    return [*blocks, Paragraph(f"{words} The prompt:"), prompt_text, Paragraph("Written by the model:"), drawn_text]


def _answers(source: Source) -> list[Block]:
    """A sequence of a task with scored steps, and what the model answered there."""
    batch, outputs, gates = source.seen[0]
    tokens, truth, guess = ([name.strip() for name in _names(source, array)] for array in (batch["inputs"], batch["targets"], outputs.argmax(-1)))
    scored = batch["weights"] > 0
    gate = mean_gate(gates) if gates else np.zeros(len(tokens))
    right = sum(mine == theirs for mine, theirs, counts in zip(guess, truth, scored, strict=True) if counts)
    path = figures.save(figures.answers(tokens, truth, guess, scored, gate), source.folder / "answers.png")
    words = f"The first sequence of the split, and under its scored steps what the model answered: {right} of {int(scored.sum())} are right."
    return [Picture(path, f"{words} The darker the ground, the more of the state the step updates.")]


def _signal(source: Source) -> list[Block]:
    """A signal over the gates that it opened, with the class and the prediction."""
    batch, logits, _ = source.seen[0]
    about = source.dataset.metadata()
    rate, length = about.get("sample_rate"), int(batch["valid"].sum())
    odds = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    truth, guess = (about["classes"][int(index)] for index in (batch["targets"], logits.argmax()))
    title = f"class {truth}, predicted {guess} (probability {odds.max():.3f})"
    gates = source.seen[0].live_gates(source.model.config.stride)
    figure = figures.waveform(batch["inputs"][:length], gates, duration=length / (rate or 1), unit="s" if rate else "steps", title=title)
    return [Picture(figures.save(figure, source.folder / "signal.png"), f"The first signal of the split and the gates that it opened: {title}.")]


def _forecast(source: Source) -> list[Block]:
    """The first window of the split, what followed and what the model said would follow, in the units of the data."""
    batch, guess, _ = source.seen[0]
    about = source.dataset.metadata()
    scaling = about.get("scaling", {"mean": 0.0, "deviation": 1.0})
    before, ahead = np.split(batch["course"], [len(batch["inputs"])]) if "course" in batch else (0.0, 0.0)
    series = (batch["inputs"] + before, batch["targets"] + ahead, guess + ahead)
    past, truth, guess = (np.asarray(array) * scaling["deviation"] + scaling["mean"] for array in series)
    names = about.get("channels", ["x"])[:CHANNELS]
    shown = past[-2 * len(truth) :]  # more of the past would leave no room for the forecast
    figure = figures.forecast(shown, truth, guess, names=names, units="value (units of the data)")
    words = f"The first window of the split: the model reads {len(past)} steps and forecasts {len(truth)}."
    return [Picture(figures.save(figure, source.folder / "forecast.png"), words)]


def _join(seen: list[Sequence]) -> Sequence:
    """The first rows of successive batches as one sequence: row 0 of a batch continues row 0 of the one before it."""
    kept = [row.batch["weights"] > 0 for row in seen]

    def join(arrays: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([array[keep] for array, keep in zip(arrays, kept, strict=True)])[:PASSAGE]

    batch = {"inputs": join([row.batch["inputs"] for row in seen])}
    return Sequence(batch, join([row.outputs for row in seen]), {name: join([row.gates[name] for row in seen]) for name in seen[0].gates})


def _names(source: Source, tokens: np.ndarray) -> list[str]:
    """The tokens as a person reads them, one string each; words with the space behind them, lines ended."""
    if source.dataset.level in ("byte", "subword"):
        return [source.dataset.decode(token) for token in np.asarray(tokens)[:, None]]
    space = source.dataset.separator
    names = [source.dataset.vocabulary[token] for token in tokens]
    return ["\n" if name == LINE_END else name + space for name in names]
