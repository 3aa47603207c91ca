"""Paired tests over seeds, and Holm's correction for how many of them a page holds."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

LEVEL = 0.05


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A model against the selective SSM over the seeds that both have.

    difference: mean of the model's values minus the selective SSM's, in the metric's units. better: whether that speaks
    for the selective SSM. p: two-sided, of the paired t-test; holm: the same after Holm's correction over the page.
    Both are None where there can be no test, and `why` says the reason.
    """

    difference: float
    pairs: int
    better: bool
    p: float | None = None
    holm: float | None = None
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
    def as_good(self) -> bool:
        """Whether the mean of the selective SSM is no worse, whatever a test says."""
        return self.better or self.difference == 0

    def words(self) -> str:
        """What the test says, for a table."""
        if self.p is None:
            return f"no test: {self.why}"
        if self.p >= LEVEL:
            return "no difference shown"
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
    mean = float(gaps.mean())
    found = Comparison(mean, len(seeds), better=(mean < 0) if higher else (mean > 0))
    if len(seeds) < 2:
        return dataclasses.replace(found, why="one pair")
    if np.ptp(gaps) <= 1e-9 * np.abs(gaps).max():
        return dataclasses.replace(found, why="all pairs differ by the same")
    test = stats.ttest_rel([theirs[seed] for seed in seeds], [ours[seed] for seed in seeds])
    return dataclasses.replace(found, p=float(test.pvalue))


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
