"""Paired comparisons over seeds: tests, Holm's correction for how many of them a page holds, effects with 95 %
intervals, and the smallest difference that a comparison could have shown.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import integrate, optimize, stats

from selssm_jax.report.tables import number

LEVEL = 0.05
POWER = 0.8  # with which a test shows the smallest difference that is named
LARGEST = 10.0  # share of a loss that is printed as a number; of losses near 0 it means nothing
MARGIN = 0.01  # of the reference's loss, within which a model is at least as good
BETTER, AS_GOOD, UNDECIDED, WORSE = "better", "at least as good", "not shown", "worse"


class Effect(NamedTuple):
    """A mean with its 95 % interval, and the smallest true value that a test of it shows with a probability of 0.8; all
    but the mean are None where there is no test.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    smallest: float | None = None

    @property
    def verdict(self) -> str:
        """What the interval says, where the value is a share of the reference's loss and what is above 0 speaks for
        the reference: better, at least as good within 1 %, worse, or not shown.
        """
        if self.low is None or self.high is None:
            return UNDECIDED
        if self.high < 0:
            return WORSE
        return BETTER if self.low > 0 else AS_GOOD if self.low > -MARGIN else UNDECIDED

    def scale(self, factor: float) -> "Effect":
        """Returns the effect in another unit; a negative factor turns it round."""
        mean, low, high, smallest = (None if value is None else factor * value for value in self)
        low, high = (high, low) if factor < 0 else (low, high)
        return Effect(mean or 0.0, low, high, None if smallest is None else abs(smallest))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A model against the selective SSM over the seeds that both have.

    difference: mean of the model's values minus the selective SSM's, in the metric's units. better: whether that speaks
    for the selective SSM. reference: the selective SSM's mean loss over the same seeds; that of an accuracy is 1 less
    it. p: two-sided, of the paired t-test; holm: the same after Holm's correction over the page; deviation: of the
    pairs' differences (n - 1). All three are None where there can be no test, and `why` says the reason.
    """

    difference: float
    pairs: int
    better: bool
    reference: float = 0.0
    p: float | None = None
    holm: float | None = None
    deviation: float | None = None
    why: str = ""

    @property
    def won(self) -> bool:
        """Whether the selective SSM is better with p < 0.05."""
        return self.p is not None and self.p < LEVEL and self.better

    @property
    def lost(self) -> bool:
        """Whether the selective SSM is worse with p < 0.05."""
        return self.p is not None and self.p < LEVEL and not self.better

    @property
    def behind(self) -> bool:
        """Whether the mean of the selective SSM is worse, whatever a test says."""
        return not self.better and self.difference != 0

    @property
    def effect(self) -> Effect:
        """The difference in the metric's units, with the interval of the paired t-test."""
        if self.deviation is None:
            return Effect(self.difference)
        return estimate(self.difference, self.deviation / math.sqrt(self.pairs), self.pairs - 1)

    @property
    def relative(self) -> Effect | None:
        """The loss above that of the selective SSM as a share of the latter; None where that is 0."""
        if not self.reference:
            return None
        speaks_for = self.better == (self.difference > 0)  # a loss: what is above the selective SSM's is worse
        return self.effect.scale((1 if speaks_for else -1) / self.reference)

    def words(self) -> str:
        """What the test says, for a table."""
        if self.p is None:
            return f"no test: {self.why}"
        if self.p >= LEVEL:
            as_good = self.relative is not None and self.relative.verdict == AS_GOOD
            return (
                f"no difference shown; selective at least as good within {100 * MARGIN:g} %"
                if as_good
                else ("no difference shown")
            )
        kept = "" if self.holm is not None and self.holm < LEVEL else ", not after Holm"
        return f"selective is {'better' if self.better else 'worse'} (p < {LEVEL:g}{kept})"


def compare_paired(ours: Mapping[int, float], theirs: Mapping[int, float], *, higher: bool) -> Comparison | None:
    """Returns the two-sided paired t-test over the seeds that both have, None without any.

    Two runs of a seed share their data's order. Fewer than two pairs, or pairs that all differ by the same amount,
    leave no test.
    """
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        return None
    gaps = np.asarray([theirs[seed] - ours[seed] for seed in seeds])
    mean, level = float(gaps.mean()), float(np.mean([ours[seed] for seed in seeds]))
    untested = Comparison(
        mean, len(seeds), better=(mean < 0) if higher else (mean > 0), reference=1 - level if higher else level
    )
    if len(seeds) < 2:
        return dataclasses.replace(untested, why="one pair")
    if np.ptp(gaps) <= 1e-9 * np.abs(gaps).max():
        return dataclasses.replace(untested, why="all pairs differ by the same")
    test = stats.ttest_rel([theirs[seed] for seed in seeds], [ours[seed] for seed in seeds])
    return dataclasses.replace(untested, p=float(test.pvalue), deviation=float(gaps.std(ddof=1)))


def estimate(mean: float, error: float, freedom: float) -> Effect:
    """Returns the effect of a mean whose standard error has `freedom` degrees of freedom: the t interval, and the
    smallest value that the t-test shows with the probability `POWER`.
    """
    half = float(stats.t.ppf(1 - LEVEL / 2, freedom)) * error
    return Effect(mean, mean - half, mean + half, find_noncentrality(freedom) * error)


def pool(samples: Sequence[Sequence[float]]) -> Effect | None:
    """Returns the mean of the means of independent samples, with Welch and Satterthwaite's interval: variance sum_i v_i
    / k^2 with v_i = s_i^2 / n_i, and (sum_i v_i)^2 / sum_i v_i^2 / (n_i - 1) degrees of freedom (Welch 1947).

    It is of these samples, not of others that could have been drawn. None without samples; no interval where one of
    them is a single value, or where none varies.
    """
    if not samples:
        return None
    mean = float(np.mean([np.mean(sample) for sample in samples]))
    if min(map(len, samples)) < 2:
        return Effect(mean)
    variances = np.asarray([np.var(sample, ddof=1) / len(sample) for sample in samples])
    if not variances.any():
        return Effect(mean)
    freedom = variances.sum() ** 2 / np.sum(variances**2 / (np.asarray([len(sample) for sample in samples]) - 1))
    return estimate(mean, math.sqrt(variances.sum()) / len(samples), float(freedom))


def count_decimals(deviation: float) -> int:
    """Returns after how many decimals a deviation has two digits, at most 5."""
    return min(max(0, 1 - int(f"{deviation:e}".split("e")[1])), 5)


def span(effect: Effect) -> str:
    """Returns "+0.012 [-0.001, +0.025]", a mean with its 95 % interval; the mean alone where there is none."""
    if effect.low is None or effect.high is None:
        return f"{'+' if effect.mean > 0 else ''}{number(effect.mean)}"
    digits = count_decimals(effect.high - effect.mean)
    return f"{effect.mean:+,.{digits}f} [{effect.low:+,.{digits}f}, {effect.high:+,.{digits}f}]"


def power(noncentrality: float, freedom: float) -> float:
    """Returns the probability that a two-sided t-test at `LEVEL` shows a difference of so many standard errors.

    The statistic (Z + d) / sqrt(V / f), Z normal and V of f degrees of chi squared, is noncentral t; its tails are
    those of Z, integrated over sqrt(V).
    """
    critical = float(stats.t.ppf(1 - LEVEL / 2, freedom))

    def tails(root: float) -> float:
        bound = critical * root / math.sqrt(freedom)
        beyond = stats.norm.cdf(noncentrality - bound) + stats.norm.cdf(-noncentrality - bound)
        return float(beyond * stats.chi.pdf(root, freedom))

    last = float(stats.chi.isf(1e-12, freedom))
    turn = min(noncentrality * math.sqrt(freedom) / critical, last)  # where the tail of Z falls
    return float(integrate.quad(tails, 0, last, points=[turn], limit=200)[0])


@functools.cache
def find_noncentrality(freedom: float) -> float:
    """Returns how many standard errors a difference must have for a t-test to show it with the probability `POWER`."""
    highest = 10 * float(stats.t.ppf(1 - LEVEL / 2, freedom))
    return float(optimize.brentq(lambda shift: power(shift, freedom) - POWER, 0, highest, xtol=1e-9))


def holm(p: Sequence[float]) -> list[float]:
    """Returns Holm's adjusted p-values, in the given order: max over j <= i of min(1, (m - j) p_(j)), p_(0) the
    smallest of m (Holm 1979).
    """
    order = np.argsort(p, kind="stable")
    steps = np.minimum(1.0, (len(p) - np.arange(len(p))) * np.asarray(p, float)[order])
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted.tolist()


def correct_by_holm(comparisons: Mapping[tuple[str, str], Comparison]) -> dict[tuple[str, str], Comparison]:
    """Returns the same comparisons with `holm` filled in, over all of them that have a test."""
    tested = {key: found.p for key, found in comparisons.items() if found.p is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    return {key: dataclasses.replace(found, holm=adjusted.get(key)) for key, found in comparisons.items()}
