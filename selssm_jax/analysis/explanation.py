"""Why a run says what it says: relevance of inputs for its answers, hidden attention of its blocks, and the bits of
memory beside it by lag.
"""

import itertools
import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy import stats

from selssm_jax.analysis.results import Results
from selssm_jax.config import Explain, Task
from selssm_jax.data.vocabulary import LINE_END
from selssm_jax.errors import ArgumentError, InputError
from selssm_jax.explain import hidden_attention, relevance_matrix
from selssm_jax.model import SequenceModel, block_name
from selssm_jax.runs import Run
from selssm_jax.shapes import Batch
from selssm_jax.tasks.registry import kind_of

BINS = 240  # of a signal or a series, each a stretch of its steps
ANSWERS = 24  # of a forecast or a class, at most
CELLS = 96  # of a picture of hidden attention, along a side
DIGITS = 4  # of a number that the page holds
LEAST = 4  # lags that are ranked


def check_explanation(run: Run) -> SequenceModel:
    """Returns the model that is explained. Raises InputError where there is none, or no such channel."""
    options, task = run.experiment.explain, run.dataset.task
    if not isinstance(run.model, SequenceModel):
        raise ArgumentError(
            "explain", f" is of models as they were trained, {run.workdir} is compressed: name the run before"
        )
    if kind_of(task).forecasts and options.channel >= task.channels:
        raise InputError(
            f"explain.channel={options.channel} is no channel of the run: use a number from 0 to {task.channels - 1}"
        )
    return run.model


def explain_run(run: Run, split: str, memory: Results | None) -> Results:
    """Returns the relevance of the inputs of the first sequences of a split, the hidden attention of every block that
    is linear in what it reads, and its profile by lag beside the bits of `memory`, where these were measured.

    Raises:
      InputError: as `check_explanation`.
    """
    model, options = check_explanation(run), run.experiment.explain
    batch = next(run.dataset.evaluate(split, max(options.examples, 2)))
    count = min(
        options.examples, int((np.asarray(batch["weights"]).reshape(len(batch["inputs"]), -1) > 0).any(1).sum())
    )
    attention = dict(filter(None, (_attend(run, model, batch, block) for block in range(len(model.config.pattern)))))
    return {
        "split": split,
        "output": options.output,
        "method": options.method,
        "examples": [_explain_row(run, model, batch, row) for row in range(count)],
        "attention": attention,
        "lags": {
            name: _compare_lags(found["profile"], memory["blocks"][name]["retention"])
            for name, found in attention.items()
            if memory and name in memory["blocks"]
        },
    }


def recall_memory(run: Run) -> Results | None:
    """Returns what an earlier report of the same split says of the memory; None where it was not measured."""
    path = run.report_folder / "results.json"
    try:
        return json.loads(path.read_text()).get("memory")
    except (OSError, ValueError, AttributeError):
        return None


def _explain_row(run: Run, model: SequenceModel, batch: Batch, row: int) -> Results:
    options, task = run.experiment.explain, model.config.task
    valid = int(np.asarray(batch["valid"])[row].sum())
    kind, whole = kind_of(task), jnp.asarray(batch["inputs"])[row : row + 1, :valid]
    inputs = whole[:, : options.longest] if kind.tokens and _is_stepwise(run, whole) else whole
    outputs = np.asarray(kind.point(model.apply({"params": run.params}, inputs)[0]))[0]
    places, names, truths = _choose_answers(run, batch, row, outputs)
    R, numbers = jax.device_get(relevance_matrix(model, run.params, inputs, places, method=options.method))
    shown: Results = {"outputs": names, "truths": truths, "numbers": _round(numbers)}
    if kind.tokens:
        pieces = _name_tokens(run, np.asarray(inputs)[0])
        return shown | {"pieces": pieces, "relevance": _round(R)}
    edges = _cut(inputs.shape[1], BINS)
    return shown | {
        "curves": [_round(_widest(np.asarray(inputs)[0, :, c], edges)) for c in _channels(task, options)],
        "edges": edges.tolist(),
        "relevance": _round(np.add.reduceat(R, edges[:-1], axis=1)),
    }


def _is_stepwise(run: Run, inputs: Array) -> bool:
    """Whether every step has an answer, so that a sequence may be cut."""
    return jax.eval_shape(lambda: run.model.apply({"params": run.params}, inputs)[0]).ndim == 3


def _choose_answers(
    run: Run, batch: Batch, row: int, outputs: np.ndarray
) -> tuple[list[tuple[int, ...]], list[str], list[str]]:
    """(Places of the numbers that are explained, what is said there, what is right there)."""
    options, task = run.experiment.explain, run.dataset.task
    target = np.asarray(batch["targets"])[row]
    if kind_of(task).forecasts:
        rows = np.unique(np.linspace(0, task.horizon - 1, min(ANSWERS, task.horizon)).round().astype(int)).tolist()
        places: list[tuple[int, ...]] = [(ahead, options.channel) for ahead in rows]
        truths = [f"{target[place]:.{DIGITS}g}" for place in places]
        return places, [f"row {ahead + 1}" for ahead in rows], truths
    if outputs.ndim == 1:
        order = np.argsort(-outputs)[:ANSWERS]
        names = [_name_class(run, int(label)) for label in order]
        return [(int(label),) for label in order], names, [_name_class(run, int(target))] * len(names)
    scored = np.flatnonzero(np.asarray(batch["weights"])[row][: len(outputs)] > 0)
    said = outputs[scored].argmax(-1) if options.output == "said" else target[scored]
    name = (
        (lambda labels: [_name_class(run, int(label)) for label in labels])
        if task.classes
        else (lambda labels: _name_tokens(run, labels))
    )
    return list(zip(scored.tolist(), said.tolist(), strict=True)), name(said), name(target[scored])


def _name_tokens(run: Run, tokens: np.ndarray) -> list[str]:
    names = run.dataset.vocabulary
    said = [names[token] if token < len(names) else str(token) for token in tokens.tolist()]
    return ["⏎" if name == LINE_END else name for name in said]


def _name_class(run: Run, label: int) -> str:
    classes = run.dataset.metadata().get("classes") or []
    return str(classes[label]) if label < len(classes) else str(label)


def _channels(task: Task, options: Explain) -> Sequence[int]:
    return [options.channel] if kind_of(task).forecasts else range(min(task.channels, 3))


def _cut(length: int, most: int) -> np.ndarray:
    """The ends of at most so many stretches that are about equally long."""
    return np.linspace(0, length, min(most, length) + 1).round().astype(int)


def _widest(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Of every stretch the value of the largest size: means of a wave would be near 0."""
    parts = [values[first:last] for first, last in itertools.pairwise(edges)]
    return np.array([part[np.abs(part).argmax()] for part in parts])


def _attend(run: Run, model: SequenceModel, batch: Batch, block: int) -> tuple[str, Results] | None:
    """(The block's name, its picture and its profile by lag); None of a mixer that is no linear recurrence."""
    options = run.experiment.explain
    inputs = jnp.asarray(batch["inputs"])[: max(options.examples, 1)]
    inputs = inputs[:, : options.longest] if kind_of(model.config.task).tokens else inputs
    try:
        found = hidden_attention(model, run.params, inputs, block=block)
    except ValueError:
        return None
    alpha = np.abs(np.asarray(found.alpha)[0])
    return block_name(block), {"picture": _pool(alpha).tolist(), "profile": np.asarray(found.profile).tolist()}


def _pool(alpha: np.ndarray) -> np.ndarray:
    """The largest numbers of at most CELLS stretches along both sides."""
    edges = _cut(len(alpha), CELLS)[:-1]
    return np.maximum.reduceat(np.maximum.reduceat(alpha, edges, axis=0), edges, axis=1)


def _compare_lags(profile: list[float], retention: Results) -> Results:
    """Bits and hidden attention at the lags that both have, and Spearman's correlation; None of too few lags."""
    pairs = [(lag, bits) for lag, bits in zip(retention["lags"], retention["lower"], strict=True) if lag < len(profile)]
    lags, bits = [lag for lag, _ in pairs], [value for _, value in pairs]
    attention = [profile[lag] for lag in lags]
    ranked = len(lags) >= LEAST and len(set(bits)) > 1 and len(set(attention)) > 1
    correlation = float(stats.spearmanr(bits, attention).statistic) if ranked else None
    return {"lags": lags, "bits": bits, "attention": attention, "spearman": correlation}


def _round(values: np.ndarray) -> Any:
    """Nested lists of numbers with a few digits."""
    if values.ndim > 1:
        return [_round(row) for row in values]
    return [float(f"{value:.{DIGITS}g}") for value in values.tolist()]
