"""The bar that the project set itself before the runs, the last seven goals before those of the present recipes: what
was asked for, what was found, met or missed by how much.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from experiments.paper.claims import LONG, Outcome, every, read_recall
from experiments.paper.comparisons import AS_GOOD, BETTER, MARGIN, Comparison
from experiments.paper.effects import NOT_RUN, KindEffect, describe, judge_kinds
from experiments.paper.names import METRICS, OURS, PAPERS, RIVALS, join_words, title
from experiments.paper.study import Study, Task

PEAK, RECALL = 0.6, 0.99
HELD = (
    "Why not less memory: a training step holds what its backward pass reads. Norms, the short convolution and the "
    "residual stream hold the same in all three models, and the mixers much alike. A recurrent matrix of an LSTM or a "
    "GRU is parameters whose use adds no activations of its own; a model with as many parameters has them in a wider "
    "MLP, which does. So equal parameters do not make the selective model the lighter one to train."
)


class Goal(NamedTuple):
    """What was asked for, what was found, and whether that is enough: None where it has not been run."""

    asked: str
    found: str
    met: Outcome
    missed_by: str = ""
    reason: str = ""  # of a miss

    @property
    def verdict(self) -> str:
        """Met, missed by how much, or not run."""
        return {True: "met", False: f"missed{self.missed_by and f' by {self.missed_by}'}", None: "not run"}[self.met]


def evaluate(study: Study) -> list[Goal]:
    """Returns every goal with what the records say of it."""
    return [goal(study) for goal in GOALS]


def as_good(study: Study) -> Goal:
    """At least as good as LSTM and GRU on all three tasks: by the mean over seeds, on every data set of a task."""
    found = _against_rivals(study, study.within(PAPERS))
    tests = [*found.values()]
    behind = [key for key, test in found.items() if test and test.behind]
    words = (
        f"at least as good in {sum(bool(test and not test.behind) for test in tests)} of {len(tests)} comparisons"
        + _missing(tests.count(None))
    )
    met = every(None if test is None else not test.behind for test in tests)
    return Goal(
        "at least as good as LSTM and GRU on all three tasks",
        words,
        met,
        _behind(study, behind),
        _describe_shortfall(study, behind),
    )


def _against_rivals(study: Study, tasks: Sequence[Task]) -> dict[tuple[Task, str], Comparison | None]:
    """The test of every task against each rival, None where one of the two has not been run."""
    return {(task, rival): study.comparisons.get((task.name, rival)) for task in tasks for rival in RIVALS}


def _behind(study: Study, keys: Sequence[tuple[Task, str]]) -> str:
    """The widest gap in each family, in its metric's units."""
    gaps: dict[str, tuple[float, str]] = {}
    for task, rival in keys:
        metric = METRICS[study.records[task.name, OURS].metric]
        gap = abs(study.comparisons[task.name, rival].difference) * metric.scale
        words = f"up to {gap:.2g} {metric.title} ({task.name}, {title(rival)})"
        gaps[task.family] = max(gaps.get(task.family, (0.0, "")), (gap, words))
    return ", ".join(words for _, words in gaps.values())


def _describe_shortfall(study: Study, keys: Sequence[tuple[Task, str]]) -> str:
    """How much of what is behind is more than the spread of seeds."""
    lost = [f"{task.name} ({title(rival)})" for task, rival in keys if study.comparisons[task.name, rival].lost]
    behind, shown = (
        join_words([f"{task.name} ({title(rival)})" for task, rival in keys]),
        f": {', '.join(lost)}" if lost else "",
    )
    return (
        f"Why not everywhere: behind, by the mean over seeds, in {behind}; beyond the spread of the seeds (p < 0.05) "
        f"in {len(lost) or 'none'} of them{shown}."
    )


def clearly_better(study: Study) -> Goal:
    """Better than both with p < 0.05 on two of the three tasks: on every data set of a task."""
    outcomes = {family: _wins(study, study.within([family])) for family in PAPERS}
    certain, possible = (sum(value in allowed for value in outcomes.values()) for allowed in ((True,), (True, None)))
    words = "; ".join(f"{family}: {_count_wins(study, study.within([family]))}" for family in PAPERS)
    met = True if certain >= 2 else None if possible >= 2 else False
    return Goal(
        "better than both with p < 0.05 on two of them", words, met, f"{2 - certain} of the tasks", _leads(study)
    )


def _leads(study: Study) -> str:
    """By how much the selective SSM leads where it does not win, and how far its own seeds are apart, both in % of the
    rival's mean.
    """
    found = _against_rivals(study, study.within(PAPERS))
    shown = [
        _lead(study, task, rival, test)
        for (task, rival), test in found.items()
        if test and test.p is not None and not test.won
    ]
    if not shown:
        return ""
    leads, spreads = zip(*shown, strict=True)
    return (
        f"Why not clearly better: in the {len(shown)} comparisons that are tested and not won, the selective SSM is "
        f"{min(leads):+.1f} to {max(leads):+.1f} % better than its rival, and its own seeds differ by "
        f"{min(spreads):.1f} to {max(spreads):.1f} % (one standard deviation)."
    )


def _lead(study: Study, task: Task, rival: str, test: Comparison) -> tuple[float, float]:
    metric = study.records[task.name, OURS].metric
    ours, theirs = (study.records[task.name, model].values(metric).values() for model in (OURS, rival))
    scale = 100 / statistics.fmean(theirs)
    return (1 if test.better else -1) * abs(test.difference) * scale, statistics.stdev(ours) * scale


def _wins(study: Study, tasks: Sequence[Task]) -> Outcome:
    return every(None if test is None else test.won for test in _against_rivals(study, tasks).values())


def _count_wins(study: Study, tasks: Sequence[Task]) -> str:
    found = [*_against_rivals(study, tasks).values()]
    return f"{sum(bool(test and test.won) for test in found)} of {len(found)}{_missing(found.count(None))}"


def by_kind(study: Study) -> Goal:
    """Better than LSTM and GRU on language and signals, at least as good on time series: by the interval over all data
    sets of a kind.
    """
    judged = judge_kinds(study)
    outcomes = [_outcome(kind) for kind in judged]
    found = "; ".join(
        f"{kind.family}, {kind.names}: {kind.verdict}{f', {describe(kind.effect)}' if kind.effect else ''}"
        for kind in judged
    )
    short = [kind for kind, outcome in zip(judged, outcomes, strict=True) if outcome is False]
    seen = [
        f"{kind.family} against {kind.names} ({100 * kind.effect.smallest:.2g} % could have been seen)"
        for kind in short
        if kind.effect and kind.effect.smallest is not None
    ]
    return Goal(
        "over all data sets of a kind of task, better than LSTM and GRU on language and signals and at least as good "
        f"(within {100 * MARGIN:g} %) on time series, by 95 % intervals",
        found,
        every(outcomes),
        f"{len(short)} of {len(judged)}",
        f"Why not by kind of task: not so on {join_words(seen)}." if seen else "",
    )


def _outcome(kind: KindEffect) -> Outcome:
    good = (BETTER, AS_GOOD) if kind.family == "time series" else (BETTER,)
    return None if kind.verdict == NOT_RUN else kind.verdict in good


def light(study: Study) -> Goal:
    """At most 0.6 times the training peak of LSTM and GRU at 4096 steps and more."""
    asked = f"at most {PEAK} times the training peak of LSTM and GRU at T >= {LONG}"
    worst: dict[str, float] = {}
    for rival in RIVALS:
        ratios = study.scaling.ratios(OURS, rival, "training_peak_bytes", least=LONG) if study.scaling else {}
        worst |= {rival: max(ratios.values())} if ratios else {}
    if not worst:
        return Goal(asked, "not measured", None)
    words = ", ".join(f"{ratio:.2f} times {title(rival)}'s at most" for rival, ratio in worst.items())
    over = max(worst.values())
    met = every([over <= PEAK, *(None for _ in range(len(RIVALS) - len(worst)))])
    return Goal(asked, words, met, f"{over - PEAK:.2f}", HELD)


def _forecast(source: str, asked: str, horizon: int, most: float) -> Callable[[Study], Goal]:
    """The goal of a mean squared error at one horizon."""

    def goal(study: Study) -> Goal:
        sentence = f"{asked}: MSE at most {most:g}"
        task = next((task for task in study.from_source(source) if task.horizon == horizon), None)
        record = study.of(task).get(OURS) if task else None
        mse = record.mean("mse") if record else None
        if task is None or mse is None:
            return Goal(sentence, "not run", None)
        return Goal(sentence, f"{mse:.4f}", mse <= most, f"{mse - most:.4f}", _nearest(study, task, most))

    return goal


def _nearest(study: Study, task: Task, most: float) -> str:
    """How near the best of the other models comes to the goal of MSE."""
    others = [
        (mse, title(name))
        for name, record in study.of(task).items()
        if name != OURS and (mse := record.mean("mse")) is not None
    ]
    if not others:
        return ""
    mse, name = min(others)
    return (
        f"Why not {most:g} on {task.name}: the best of the {len(others)} other models run, {name}, comes to {mse:.4f}."
    )


def _recall(source: str, asked: str, length: int | None, model: str = OURS) -> Callable[[Study], Goal]:
    """The goal of an accuracy, at one length where the task has several."""

    def goal(study: Study) -> Goal:
        found = next((read_recall(study, task, length, model) for task in study.from_source(source)), None)
        if found is None:
            return Goal(asked, "not run", None)
        return Goal(asked, f"{100 * found[0]:.2f} %", found[0] >= RECALL, f"{100 * (RECALL - found[0]):.2f} points")

    return goal


GOALS = (
    as_good,
    clearly_better,
    light,
    _forecast("etth1", "ETTh1, 96 steps ahead", 96, 0.375),
    _recall("induction_heads", "induction heads, trained at 256: at least 99 % at 4096 steps", 4096),
    _recall("selective_copying", "selective copying: at least 99 %", None),
    by_kind,
    _forecast("etth1", "ETTh1, 336 steps ahead", 336, 0.440),
    _forecast("ettm1", "ETTm1, 96 steps ahead", 96, 0.320),
    _forecast("weather", "weather, 96 steps ahead", 96, 0.156),
    _forecast("weather", "weather, 336 steps ahead", 336, 0.260),
    _recall("induction_heads", "Mamba, induction heads: at least 99 % at 256 steps", 0, "mamba"),
    _recall("selective_copying", "Mamba, selective copying: at least 99 %", None, "mamba"),
)


def _missing(count: int) -> str:
    return f" ({count} not run)" if count else ""
