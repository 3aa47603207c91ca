"""Whether relevance is true: what a model says without the steps that are said to matter, and with them alone; and, of
tasks whose relevant steps are known, whether those are they.

Deletion replaces the most relevant steps first, insertion begins with none and gives them first: a faithful order makes
the first curve fall and the second rise at once (Samek et al. 2017; Jafari et al. 2024, arXiv 2406.07592). The
difference of their areas is the one that MambaLRP reports, of least and most relevant first. A replaced step has the
embedding 0, or the values 0.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree
from scipy import stats

from selssm_jax.config import Data
from selssm_jax.errors import suggest
from selssm_jax.explain.attribution import METHODS, Question, explain_output, gather_call
from selssm_jax.layers.variables import parameters
from selssm_jax.model import Inputs, SequenceModel
from selssm_jax.shapes import AnyArray

POINTS = 11  # of a curve, at shares 0, 0.1, ..., 1 of the steps
DRAWS = 8  # orders of the random baseline
RANDOM = "random"

Score = Callable[[Array], Array]


class Curves(NamedTuple):
    """What is said where steps are replaced: shares, (K,), rising from 0 to 1; deletion, (B, K), the score where that
    share of steps, the most relevant, is replaced; insertion, (B, K), where it alone is there.
    """

    shares: Float[np.ndarray, "K"]
    deletion: Float[np.ndarray, "B K"]
    insertion: Float[np.ndarray, "B K"]

    @property
    def difference(self) -> Float[np.ndarray, "B"]:
        """The area under insertion less that under deletion, of each row: the larger, the more faithful; about 0 for an
        order that says nothing.
        """
        return np.asarray(np.trapezoid(self.insertion - self.deletion, self.shares, axis=1))


class Mean(NamedTuple):
    """A mean over examples and its interval, by Student's law."""

    value: float
    low: float
    high: float


class Comparison(NamedTuple):
    """Area differences of methods on the same examples: {method: (B,)}, "random" among them."""

    differences: Mapping[str, Float[np.ndarray, "B"]]

    def mean(self, method: str, *, level: float = 0.95) -> Mean:
        """Returns the mean over examples."""
        return average(self.differences[method], level=level)

    def advantage(self, method: str, over: str, *, level: float = 0.95) -> Mean:
        """Returns the mean by which a method is better than another on the same example."""
        return average(self.differences[method] - self.differences[over], level=level)


def average(values: Float[Any, "B"], *, level: float = 0.95) -> Mean:
    """Returns the mean of independent values, those that are no number left out, and the interval that holds it with
    this probability. Raises ValueError for fewer than two.
    """
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if len(values) < 2:
        raise ValueError(f"{len(values)} values have no interval: give at least 2 examples")
    reach = stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return Mean(float(values.mean()), float(values.mean() - reach), float(values.mean() + reach))


def perturbation_curves(
    model: SequenceModel,
    params: PyTree,
    inputs: Inputs,
    score: Score,
    relevance: AnyArray,
    *,
    valid: Bool[Any, "B T"] | None = None,
    points: int = POINTS,
) -> Curves:
    """Returns what a model says where its most relevant steps are replaced, and where they alone are left.

    Args:
      model, params: as trained. inputs: (B, T) tokens or (B, T, C) values.
      score: the model's outputs -> one number for each row, (B,), for example lambda logits: logits[:, -1, 3].
      relevance: of every step, (B, T); of equals the earlier counts as the more relevant.
      valid: False at padding, which is neither replaced nor counted. points: of a curve, at least 2.

    Raises:
      ValueError: for a relevance of another shape, fewer points, and a score that is not one number for each row.
    """
    inputs, relevance = jnp.asarray(inputs), np.asarray(relevance, np.float64)
    if relevance.shape != inputs.shape[:2]:
        raise ValueError(f"relevance has shape {relevance.shape}, expected (B, T) = {inputs.shape[:2]} of the inputs")
    if points < 2:
        raise ValueError(f"points={points}: use at least 2, the whole and nothing")
    there = np.ones(inputs.shape[:2], bool) if valid is None else np.asarray(valid)
    order = np.argsort(np.where(there, -relevance, np.inf), axis=1, kind="stable")
    rank, count = np.argsort(order, axis=1), there.sum(axis=1, keepdims=True)
    shares = np.linspace(0, 1, points)
    first = np.stack([rank < np.rint(share * count) for share in shares])  # (K, B, T)
    kept = np.concatenate([~first, first | ~there[None]])
    scores = np.asarray(_score_kept(Question(model, score), parameters(params), inputs, valid, jnp.asarray(kept)))
    return Curves(shares, scores[:points].T, scores[points:].T)


@functools.partial(jax.jit, static_argnums=0)
def _score_kept(question: Question, params: PyTree, inputs: Array, valid: Array | None, kept: Array) -> Array:
    """(K, B): scores of inputs of which the steps `kept`, (K, B, T), are left."""
    given = gather_call(inputs, valid=valid)
    x = question.features(params, given)

    def say(kept: Array) -> Array:
        scores = question.output(question.shift(params, given, jnp.where(kept[..., None], 0, -x)))
        if scores.shape != (len(inputs),):
            raise ValueError(
                f"score gives shape {scores.shape}, expected one number for each of {len(inputs)} rows: take one, for "
                "example lambda logits: logits[:, -1, 3]"
            )
        return scores

    return jax.lax.map(say, kept)


@dataclasses.dataclass(frozen=True)
class _Sum:
    """The sum of a score over rows, equal where the score is."""

    score: Score

    def __call__(self, outputs: Array) -> Array:
        return self.score(outputs).sum()


def compare_methods(
    model: SequenceModel,
    params: PyTree,
    inputs: Inputs,
    score: Score,
    *,
    methods: Sequence[str] = ("lrp", "gradient_x_input"),
    others: Mapping[str, Any] | None = None,
    valid: Bool[Any, "B T"] | None = None,
    points: int = POINTS,
    seed: int = 0,
) -> Comparison:
    """Returns the area differences of several methods on the same examples, beside those of random orders, of which
    `DRAWS` are averaged.

    Args:
      model, params, inputs, score, valid, points: see `perturbation_curves`.
      methods: of `relevance`. others: relevances of one's own, (B, T) by name. seed: of the random orders.

    Raises:
      ValueError: what `relevance` and `perturbation_curves` raise.
    """
    relevances = {
        method: explain_output(model, params, inputs, _Sum(score), method=method, valid=valid).relevance
        for method in _check_methods(methods)
    } | dict(others or {})
    curves = functools.partial(perturbation_curves, model, params, inputs, score, valid=valid, points=points)
    rng, shape = np.random.default_rng(seed), np.shape(inputs)[:2]
    differences = {name: curves(values).difference for name, values in relevances.items()}
    draws = [curves(rng.uniform(size=shape)).difference for _ in range(DRAWS)]
    return Comparison(differences | {RANDOM: np.mean(draws, axis=0)})


def _check_methods(methods: Sequence[str]) -> Sequence[str]:
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"method={method!r} is unknown: {suggest(method, METHODS)}")
    return methods


def auroc(
    relevance: Float[Any, "B T"], relevant: Bool[Any, "B T"], among: Bool[Any, "B T"] | None = None
) -> Float[np.ndarray, "B"]:
    """Returns of each row the probability that a relevant step has more relevance than one that is not, a tie counted
    as half (Mann and Whitney 1947); not-a-number where all are, or none is.

    Args:
      relevance: of every step. relevant: which steps are (`relevant_steps`). among: steps that are compared; None: all.
    """
    relevance, relevant = np.asarray(relevance, np.float64), np.asarray(relevant)
    among = np.ones(relevant.shape, bool) if among is None else np.asarray(among)
    return np.array([_auroc_of_row(*row) for row in zip(relevance, relevant, among, strict=True)])


def _auroc_of_row(relevance: np.ndarray, relevant: np.ndarray, among: np.ndarray) -> float:
    relevance, relevant = relevance[among], relevant[among]
    ones, others = int(relevant.sum()), int((~relevant).sum())
    if not ones or not others:
        return float("nan")
    above = stats.rankdata(relevance)[relevant].sum() - ones * (ones + 1) / 2
    return float(above / (ones * others))


def relevant_steps(data: Data, inputs: Any, at: int) -> Bool[np.ndarray, "B T"]:
    """Returns which steps of a synthetic task decide the answer at step `at`, from the inputs themselves.

    "selective_copying": the place of the symbol that is to be said there. "induction_heads": the first mark, and the
    symbol behind it, which is to be said. "associative_recall": the key that is asked for, and the value behind it.
    "delayed_recall": the step `lag` before.

    Args:
      data: as the inputs were made by. inputs: (B, T) tokens. at: a step whose answer is scored.

    Raises:
      ValueError: for a source whose relevant steps are not known, and a step that is not answered.
    """
    if data.source not in SOURCES:
        raise ValueError(f"relevant steps of data.source={data.source!r} are not known: use {', '.join(SOURCES)}")
    inputs = np.asarray(inputs)
    steps = np.arange(inputs.shape[1])[None]
    relevant = SOURCES[data.source](data, inputs, steps, at)
    if not (0 <= at < inputs.shape[1]) or not relevant.any(axis=1).all():
        raise ValueError(f"at={at} is no step of data.source={data.source!r} at which an answer is due in all rows")
    return relevant


def _of_selective_copying(data: Data, inputs: np.ndarray, steps: np.ndarray, at: int) -> np.ndarray:
    symbols = (inputs < data.vocab) & (steps < data.length)
    return symbols & (np.cumsum(symbols, axis=1) == at - data.length + 1)


def _of_induction_heads(data: Data, inputs: np.ndarray, steps: np.ndarray, at: int) -> np.ndarray:
    marks = (inputs == data.vocab) & (steps < data.length - 1) & (at == data.length - 1)
    return marks | np.pad(marks, ((0, 0), (1, 0)))[:, :-1]


def _of_associative_recall(data: Data, inputs: np.ndarray, steps: np.ndarray, at: int) -> np.ndarray:
    asked = inputs[:, at : at + 1]
    keys = (inputs == asked) & (asked >= data.vocab) & (steps < 2 * data.tokens) & (at >= 2 * data.tokens)
    return keys | np.pad(keys, ((0, 0), (1, 0)))[:, :-1]


def _of_delayed_recall(data: Data, inputs: np.ndarray, steps: np.ndarray, at: int) -> np.ndarray:
    return np.broadcast_to(steps == at - data.lag, inputs.shape)


SOURCES = {
    "selective_copying": _of_selective_copying,
    "induction_heads": _of_induction_heads,
    "associative_recall": _of_associative_recall,
    "delayed_recall": _of_delayed_recall,
}
