"""Which number to believe of samples whose law is not known: values of several methods, each with the error that it
knows of, weighed against one another.

Every method here errs in a way of its own: a held-out bound lacks what its critic could not learn from so few samples,
neighbours smooth, a Gaussian copula sees one kind of dependence, counts are biased where cells are few. So each value
comes corrected by what the same method makes of fewer samples, and its error holds how unsure that correction is.
Values that contradict one another beyond two of their errors are not averaged: the lower one is blind, for each of
these methods loses information, and none of them finds any in the same samples paired at random.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from selssm_jax.information import critics, crossfit, discrete
from selssm_jax.information._estimate import Estimate
from selssm_jax.information.canonical import gaussian
from selssm_jax.information.checks import pairs, scores
from selssm_jax.information.crossfit import HeldOut, Training
from selssm_jax.information.neighbours import mixtures, of_scores

NEIGHBOURS = 6  # columns of x and of y up to which neighbours are asked
FINE = 4  # columns in all up to which they are as good as any; in more they only contradict
# share of their value, for each column beyond two, that neighbours may miss without fewer samples telling
UNSEEN = 0.03
LARGEST = 20_000  # samples that neighbours are asked about: their cost grows with the square
HALVES = 3  # folds whose critics are trained on half of the samples too
# times what half of the samples lost, that all still lack, and the error of that: for a lack between N^-1/4 and N^-1
LACK = (2.2, 1.0)
# share of what a critic learned, beyond a Gaussian one, that more samples would not add and more training might
UNLEARNED = 0.1
# standard errors from which a lower value is left out of a mean, and from which a method is overruled
DISAGREEMENT, CONTRADICTION = 2.0, 3.0
# nats that the corrections of counts may differ by and need no second opinion; of neighbours in pairs at random
SURE = 0.02
SATURATION = 1.0  # nats below a bound's ceiling
# samples a value from which on values are counted, and from which on a side is a label beside numbers
REPEATED, FEW = 2, 20
DEPENDENT = 4.0  # deviations of pairs at random that no chance explains


class _Sides(NamedTuple):
    """Samples as numbers, and the label of each row."""

    x: np.ndarray
    y: np.ndarray
    label_x: np.ndarray
    label_y: np.ndarray

    @property
    def kinds(self) -> tuple[int, int]:
        """How many different rows x and y have."""
        return int(self.label_x.max()) + 1, int(self.label_y.max()) + 1


def estimate(x: np.ndarray, y: np.ndarray, training: Training, *, whole: bool) -> Estimate:
    """The value of all methods that `inputs.pairs` allow, weighed by their errors; whole: the samples were integers.
    See `estimators.estimate`.
    """
    sides = _Sides(x, y, *(np.unique(z, axis=0, return_inverse=True)[1].ravel() for z in (x, y)))
    N = len(x)
    counted = (
        discrete.of_labels(sides.label_x, sides.label_y, shuffle=training.shuffle)
        if REPEATED * max(sides.kinds) <= N
        else None
    )
    if counted is not None and (counted.dispute <= SURE or (whole and N < crossfit.SMALLEST)):
        return counted.estimate
    pairs(x, y, least=crossfit.SMALLEST)
    if (same := _same_order(sides, whole=whole)) is not None:
        return same
    measured = _of_numbers(sides, training)
    if counted is None:
        return measured
    if counted.excess > DEPENDENT and counted.estimate.nats - counted.estimate.stderr > measured.nats:
        why = (
            f"{counted.excess:.0f} deviations above pairs at random; as numbers the values show {measured.nats:.3f} +- "
            f"{measured.stderr:.3f} nats"
        )
        return dataclasses.replace(counted.estimate, notes=(*counted.estimate.notes, why))
    return _average_agreeing([counted.estimate, measured])


def copula(x: np.ndarray, y: np.ndarray) -> Estimate:
    """The Gaussian value of normal scores, ties in random order: nothing but the ranks of (N, dx) and (N, dy)
    matters.
    """
    agreed = gaussian(*_scores(x, y))
    return dataclasses.replace(agreed, method="Gaussian copula (normal scores, canonical correlations, bias-corrected)")


def _same_order(sides: _Sides, *, whole: bool) -> Estimate | None:
    """The answer for columns of which one can be read from the other without error, and no value ever repeats."""
    N = len(sides.x)
    if max(sides.kinds) < N or not math.isinf(copula(sides.x, sides.y).nats):
        return None
    if not whole:
        return Estimate(
            math.inf,
            0.0,
            "estimate",
            "Gaussian copula",
            ("x and y share a direction without noise: no finite number is theirs",),
        )
    why = (
        f"no whole number of x or y repeats, and each tells the other: at least log N = {math.log(N):.2f} nats; {N} "
        "samples set no upper limit"
    )
    return Estimate(
        math.log(N),
        math.nan,
        "lower",
        "distinct whole numbers",
        (why, "row numbers or times in both? then this is that of their order"),
    )


def _of_numbers(sides: _Sides, training: Training) -> Estimate:
    x, y = sides.x, sides.y
    held_out = crossfit.fit(x, y, critics.HYBRID, critics.INFONCE, training, halves=min(HALVES, training.folds))
    bound, _ = held_out.mean_and_error(held_out.trained)
    central = _of_critic(held_out, sides)
    witnesses = neighbours(x, y, shuffle=training.shuffle)
    beyond = x.shape[1] + y.shape[1] - 2
    close = [
        dataclasses.replace(one, stderr=math.hypot(one.stderr, UNSEEN * beyond * one.nats))
        for one in witnesses
        if beyond <= FINE - 2
    ]
    central += close + _within_labels(sides, shuffle=training.shuffle)
    agreed = _average_agreeing(central) if central else _estimate_saturated(held_out, bound)
    for witness in witnesses:
        if (gap := witness.nats - agreed.nats) > CONTRADICTION * math.hypot(witness.stderr, agreed.stderr):
            why = (
                f"nearest neighbours contradict {agreed.method}, which gives {agreed.nats:.3f} nats; pairs at random "
                "have none by them"
            )
            agreed = dataclasses.replace(
                witness, stderr=math.hypot(witness.stderr, gap / 2), notes=(why, *witness.notes)
            )
    return dataclasses.replace(
        agreed,
        notes=(*agreed.notes, f"held-out lower bound: {bound:.3f} nats, of a critic that saw these samples' others"),
    )


def _of_critic(held_out: HeldOut, sides: _Sides) -> list[Estimate]:
    """What training found: the Gaussian copula where a critic learns nothing beyond it, else the bound and what it
    still lacks.
    """
    bound, error = held_out.mean_and_error(held_out.trained)
    gain, chance = held_out.mean_and_error(held_out.trained - held_out.untrained)
    normal = copula(sides.x, sides.y)
    untied = all(len(np.unique(column)) > 0.9 * len(column) for column in (*sides.x.T, *sides.y.T))
    if untied and gain <= 2 * chance:
        why = (
            f"a trained critic finds {gain:.3f} +- {chance:.3f} nats in held-out samples beyond a Gaussian copula, no "
            "more than chance"
        )
        return [dataclasses.replace(normal, stderr=math.hypot(normal.stderr, chance), notes=(why, *normal.notes))]
    if bound > held_out.ceiling() - SATURATION:
        return []
    lost, unsure = held_out.estimate_loss()
    lack, learned = LACK[0] * max(lost, 0.0), bound - max(float(held_out.untrained.mean()), 0.0)
    stderr = math.hypot(error, LACK[1] * lost, LACK[0] * unsure, UNLEARNED * learned)
    why = (
        f"half of the samples train a critic that finds {lost:.3f} nats less: {lack:.3f} are added for what all of "
        "them do not show"
    )
    return [Estimate(bound + lack, stderr, "estimate", "InfoNCE, hybrid critic", (why,))]


def _estimate_saturated(held_out: HeldOut, bound: float) -> Estimate:
    why = (
        f"saturated: within a nat of the bound's ceiling, log K = {held_out.ceiling():.2f}; the truth may be any "
        "number above"
    )
    return Estimate(bound, held_out.mean_and_error(held_out.trained)[1], "lower", "InfoNCE, hybrid critic", (why,))


def neighbours(x: np.ndarray, y: np.ndarray, *, shuffle: bool = True) -> list[Estimate]:
    """Nearest neighbours among the scores of (N, dx) and (N, dy); none in too many columns, and where they see
    something in pairs at random.

    shuffle: False for rows in the order of time, of which each is like the next: y is then moved in time and not mixed.
    """
    if max(x.shape[1], y.shape[1]) > NEIGHBOURS:
        return []
    rows, apart = _rows(len(x), shuffle=shuffle)
    x, y = (z[rows] for z in _scores(x, y))
    return _without_chance(of_scores(x, y), of_scores(x, y[apart]))


def _rows(N: int, *, shuffle: bool) -> tuple[np.ndarray, np.ndarray]:
    """The rows that neighbours are asked about, and an order of these that pairs each with another."""
    rng = np.random.default_rng(0)
    rows = rng.permutation(N)[:LARGEST]
    return (
        (rows, rng.permutation(len(rows)))
        if shuffle
        else (np.sort(rows), np.roll(np.arange(len(rows)), len(rows) // 2))
    )


def _within_labels(sides: _Sides, *, shuffle: bool) -> list[Estimate]:
    """Neighbours of numbers within labels, where one side alone has few values."""
    few = [FEW * kinds <= len(sides.x) for kinds in sides.kinds]
    label, numbers = (sides.label_x, sides.y) if few[0] else (sides.label_y, sides.x)
    if few[0] == few[1] or numbers.shape[1] > NEIGHBOURS:
        return []
    rows, apart = _rows(len(label), shuffle=shuffle)
    label, numbers = label[rows], scores(numbers, np.random.default_rng(0))[rows]
    return _without_chance(mixtures(label, numbers), mixtures(label[apart], numbers))


def _without_chance(estimate: Estimate, chance: Estimate) -> list[Estimate]:
    return [estimate] if abs(chance.nats) <= SURE + CONTRADICTION * chance.stderr else []


def _average_agreeing(candidates: Sequence[Estimate]) -> Estimate:
    """The mean, weighted by 1 / error^2, of those that the largest does not contradict; its error holds their errors
    and their differences.
    """
    largest = max(candidates, key=lambda one: one.nats)
    credible = [
        one for one in candidates if largest.nats - one.nats <= DISAGREEMENT * math.hypot(largest.stderr, one.stderr)
    ]
    weights = np.array([max(one.stderr, 1e-6) ** -2.0 for one in credible])
    weights = weights / weights.sum()
    nats, errors = np.array([[one.nats, one.stderr] for one in credible]).T
    mean = float(weights @ nats)
    stderr = math.sqrt(float(weights @ (errors**2 + (nats - mean) ** 2)))
    order = np.argsort(-weights)
    heavy = [credible[i] for i in order if weights[i] >= 0.05]
    blind = [
        f"{one.method} gives {one.nats:.3f} +- {one.stderr:.3f} nats, which the others contradict"
        for one in candidates
        if one not in credible
    ]
    notes = (*(note for one in heavy for note in one.notes), *blind)
    return Estimate(mean, stderr, "estimate", " and ".join(one.method for one in heavy), notes)


def _scores(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return scores(x, rng), scores(y, rng)
