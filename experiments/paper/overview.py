"""The first screen of the page: what is best where, how far apart and how sure, in three sentences and one figure."""

import statistics
from collections import Counter

from experiments.paper.claims import RECALL
from experiments.paper.comparisons import POWER
from experiments.paper.effects import describe, pool_kind
from experiments.paper.figures import Dot, Lead
from experiments.paper.names import METRICS, OURS, PAPERS, RIVALS, SHARE, join_words, title
from experiments.paper.records import Record
from experiments.paper.ridge import list_gaps
from experiments.paper.study import Study, Task

DATA_SETS = {"time series": "time series", "language": "texts", "signals": "sets of signals"}


def summarise(study: Study) -> list[str]:
    """Returns the three sentences, each computed from the records."""
    return [sentence for sentence in (say_best(study), say_distance(study), say_certainty(study)) if sentence]


def find_best(study: Study, task: Task) -> str | None:
    """Returns the model with the best mean of a task, of those with the selective SSM's recipe; None where nothing is
    run.
    """
    is_alone = (task.name, OURS) not in study.records
    losses = {
        model: METRICS[record.metric].loss(mean)
        for model, record in study.of(task).items()
        if (model == OURS or is_alone or study.is_comparable(task, model))
        and (mean := record.mean(record.metric)) is not None
    }
    return min(losses, key=lambda model: losses[model]) if losses else None


def say_best(study: Study) -> str:
    """Returns what is best where."""
    kinds = []
    for family in PAPERS:
        best = Counter(model for task in study.within([family]) if (model := find_best(study, task)))
        if best:
            others = [f"{title(model)} on {count}" for model, count in best.most_common() if model != OURS]
            rest = f" ({join_words(others)})" if others else ""
            kinds.append(f"{best[OURS]} of {best.total()} {DATA_SETS[family]}{rest}")
    if not kinds:
        return ""
    ahead = [
        task.name for task in study.tasks if (gaps := list_gaps(study, task)) and all(gap.is_beaten for gap in gaps)
    ]
    ridge = f"; ridge regression a channel is better than every network on {join_words(ahead)}" if ahead else ""
    return f"What is best where: the {title(OURS)} has the best mean of all networks on {join_words(kinds)}{ridge}."


def say_distance(study: Study) -> str:
    """Returns how far the paper's rivals are from the selective SSM on each of the paper's kinds of task."""
    pooled = [pool_kind(study, family, RIVALS) for family in PAPERS]
    parts = [
        f"{kind.family} {describe(kind.effect)}{f', without {join_words(list(kind.missing))}' if kind.missing else ''}"
        for kind in pooled
        if kind.effect
    ]
    if not parts:
        return ""
    return (
        f"How far apart: the loss of {join_words([title(rival) for rival in RIVALS])} minus that of the {title(OURS)}, "
        f"as a share of the latter, is on {join_words(parts)}."
    )


def say_certainty(study: Study) -> str:
    """Returns how many comparisons decide, and what a cell could have shown."""
    tests = [test for test in study.comparisons.values() if test.p is not None]
    if not tests:
        return ""
    won, lost = [test for test in tests if test.won], [test for test in tests if test.lost]
    after = sum(test.holm is not None and test.holm < 0.05 for test in won)
    seen = []
    for family in PAPERS:
        names = {task.name for task in study.within([family])}
        smallest = [
            effect.smallest
            for (name, _), test in study.comparisons.items()
            if name in names and (effect := test.relative) and effect.smallest is not None
        ]
        if smallest:
            seen.append(f"{100 * statistics.median(smallest):.1f} % on {family}")
    return (
        f"How sure: the {title(OURS)} is better with p < 0.05 in {len(won)} of {len(tests)} paired tests over seeds "
        f"({after} after Holm's correction) and worse in {len(lost)}; the smallest difference that a test could have "
        f"shown with a probability of {100 * POWER:g} % is, in the median, {join_words(seen)}."
    )


def list_leads(study: Study) -> dict[str, list[Lead]]:
    """Returns {task: leads over every rival that can be compared}, without tasks of recall, whose losses are near 0."""
    leads: dict[str, list[Lead]] = {}
    for task in study.tasks:
        for model in task.models:
            test = study.comparisons.get((task.name, model))
            if task.source not in RECALL and test and (effect := test.relative):
                percent = effect.scale(100)
                leads.setdefault(task.name, []).append(Lead(model, percent.mean, percent.low, percent.high))
    return leads


def list_recall(study: Study) -> dict[str, list[Dot]]:
    """Returns {task of recall: every model's mean accuracy in %}."""
    return {
        task.name: [make_dot(model, record) for model, record in study.of(task).items()]
        for task in study.from_source(*RECALL)
        if study.of(task)
    }


def make_dot(model: str, record: Record | None) -> Dot:
    """Returns a model's accuracy in %, mean and standard deviation over seeds."""
    values = [100 * value for value in record.values(SHARE[record.kind]).values()] if record else []
    if not values:
        return Dot(model, None)
    return Dot(model, statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
