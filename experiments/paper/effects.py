"""What the comparisons of a kind of task say together: the effect of a rival against the selective SSM, as a share of
the latter's loss, pooled over data sets.
"""

from collections.abc import Sequence
from typing import NamedTuple

from experiments.paper.comparisons import UNDECIDED, Effect, pool
from experiments.paper.names import PAPERS, RIVALS, join_words, title
from experiments.paper.study import Study

NOT_RUN = "not complete"  # a data set is missing


class KindEffect(NamedTuple):
    """Rivals against the selective SSM on the data sets of one kind of task.

    effect: mean over data sets and rivals of the loss above the selective SSM's, as a share of it; None where nothing
    can be compared. tasks: the data sets that it is of; missing: those with a cell that is not run, or by another
    recipe.
    """

    family: str
    rivals: tuple[str, ...]
    effect: Effect | None
    tasks: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """Whether the selective SSM is better, at least as good, worse, or none shown; `NOT_RUN` if data lack."""
        if self.missing or self.effect is None:
            return NOT_RUN
        return self.effect.verdict

    @property
    def names(self) -> str:
        """The rivals in words."""
        return join_words([title(rival) for rival in self.rivals])


def pool_kind(study: Study, family: str, rivals: Sequence[str]) -> KindEffect:
    """Returns the effect of rivals on a kind of task; data sets weigh equally, and their seeds are independent."""
    gaps = {task.name: study.relative_gaps(task, rivals) for task in study.within([family])}
    present = {name: sample for name, sample in gaps.items() if sample}
    missing = tuple(name for name in gaps if name not in present)
    return KindEffect(family, tuple(rivals), pool(list(present.values())), tuple(present), missing)


def judge_kinds(study: Study) -> list[KindEffect]:
    """Returns the effect of each of the paper's rivals on each of the paper's kinds of task."""
    return [pool_kind(study, family, [rival]) for family in PAPERS if study.within([family]) for rival in RIVALS]


def is_undecided(effect: KindEffect) -> bool:
    """Whether runs were made and did not decide."""
    return effect.verdict == UNDECIDED


def describe(effect: Effect, *, digits: int = 1) -> str:
    """Returns an effect in percent with its interval: "+0.9 % (95 % interval -0.4 to +2.1)"."""
    mean = f"{100 * effect.mean:+,.{digits}f} %"
    if effect.low is None or effect.high is None:
        return f"{mean} (no interval)"
    return f"{mean} (95 % interval {100 * effect.low:+,.{digits}f} to {100 * effect.high:+,.{digits}f})"
