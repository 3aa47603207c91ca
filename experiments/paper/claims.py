"""The paper's sentences, each with a verdict that is computed from the records: one function a claim.

A claim is made of parts, and each part of checks. It is supported where all hold, not supported where one fails, and
not run where none fails but some could not be made. Better and worse mean p < 0.05 in the paired test over seeds.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from experiments.paper import quotes
from experiments.paper.comparisons import LARGEST, Comparison
from experiments.paper.effects import NOT_RUN, describe, pool_kind
from experiments.paper.gate_captions import contrast
from experiments.paper.names import OURS, PAPERS, RIVALS, join_words, title
from experiments.paper.study import Study, Task
from selssm_jax.report.tables import number

SUPPORTED, REFUTED, UNTESTABLE, UNKNOWN = "supported", "not supported", "untestable", "not run"
LONG = 4096  # steps from which on an input is long
TOLERANCE = 0.2  # of an exponent: linear is at most 1.2, quadratic at least 1.8
RECALL = (
    "selective_copying",
    "induction_heads",
    "associative_recall",
)  # data sources whose answers need the distant past
Outcome = bool | None


class Part(NamedTuple):
    """What was found, with its number, and whether it speaks for the claim; None: it has not been run."""

    text: str
    holds: Outcome


class Verdict(NamedTuple):
    """A sentence, the parts that decide it, and whether anything could."""

    quote: str
    parts: tuple[Part, ...]
    testable: bool = True

    @property
    def status(self) -> str:
        """Supported, not supported, untestable or not run."""
        if not self.testable:
            return UNTESTABLE
        return {True: SUPPORTED, False: REFUTED, None: UNKNOWN}[every(part.holds for part in self.parts)]

    @property
    def reasons(self) -> str:
        """The parts in words, each with whether it holds."""
        marks = {True: " (holds)", False: " (fails)", None: ""}
        return "; ".join(part.text + (marks[part.holds] if self.testable else "") for part in self.parts)


def every(outcomes: Iterable[Outcome]) -> Outcome:
    """Returns False if one is, else None if one is or there are none, else True."""
    found = list(outcomes)
    if False in found:
        return False
    return None if None in found or not found else True


def judge(study: Study) -> list[Verdict]:
    """Returns the verdict on every claim, in the paper's order."""
    return [claim(study) for claim in CLAIMS]


def judge_printed_numbers(_: Study) -> Verdict:
    """Its numbers themselves."""
    return Verdict(
        quotes.SUMMARY,
        (Part("the table names no data, sizes, seeds or hardware, so its numbers cannot be tested", None),),
        testable=False,
    )


def consistent(study: Study) -> Verdict:
    """Better than recurrent networks everywhere, in less memory and time at great length."""
    networks = ("lstm", "gru", "rnn")
    parts = (
        better(study, study.tasks, networks),
        at_length(study, networks, "training_peak_bytes"),
        at_length(study, networks, "training_seconds"),
    )
    return Verdict(quotes.CONSISTENT, parts)


def superior(study: Study) -> Verdict:
    """Better on the paper's three tasks, in much less memory."""
    tasks = study.within(PAPERS)
    return Verdict(
        quotes.SUPERIOR,
        (better(study, tasks, RIVALS), smaller(study, tasks, RIVALS, "training_peak_bytes", quotes.SAVING)),
    )


def judge_pronounced_gain(study: Study) -> Verdict:
    """A gain over LSTM and GRU, and more of it on series and language than on signals: by whole intervals."""
    kinds = [pool_kind(study, family, RIVALS) for family in PAPERS]
    words = join_words(
        [f"{kind.family} {describe(kind.effect) if kind.effect and not kind.missing else 'not run'}" for kind in kinds]
    )
    text = f"loss of {_names(RIVALS)} above the selective SSM's: {words}"
    if any(kind.verdict == NOT_RUN for kind in kinds):
        return Verdict(quotes.PRONOUNCED, (Part(text, None),))
    series, language, signals = (kind.effect for kind in kinds if kind.effect)
    least = [effect.mean if effect.low is None else effect.low for effect in (series, language)]
    most = signals.mean if signals.high is None else signals.high
    return Verdict(quotes.PRONOUNCED, (Part(text, min(least) > max(most, 0)),))


def robust(study: Study) -> Verdict:
    """Recall of the distant past is nearly perfect."""
    return Verdict(quotes.ROBUST, tuple(recall(study, task, 0.99) for task in study.from_source(*RECALL)))


def savings(study: Study) -> Verdict:
    """Much less memory in training on the paper's three tasks."""
    return Verdict(
        quotes.SAVINGS, (smaller(study, study.within(PAPERS), RIVALS, "training_peak_bytes", quotes.SAVING),)
    )


def judge_reduction(study: Study) -> Verdict:
    """A smaller state, less memory, and no worse for it."""
    tasks = study.within(PAPERS)
    sizes = (smaller(study, tasks, RIVALS, key, 1.0) for key in ("state_bytes", "training_peak_bytes"))
    return Verdict(quotes.REDUCED, (*sizes, no_worse(study, tasks, RIVALS)))


def quadratic(study: Study) -> Verdict:
    """Exponents of memory, and whether a recurrence without gates has another."""
    grown = {
        model: study.scaling.exponent(model, "training_peak_bytes") if study.scaling else None
        for model in ("attention", OURS, "s5")
    }
    limits: dict[str, Callable[[float], bool]] = {
        "attention": lambda found: found >= 2 - TOLERANCE,
        OURS: lambda found: found <= 1 + TOLERANCE,
        "s5": lambda found: found > 1 + TOLERANCE,
    }
    notes = {"attention": "", OURS: "", "s5": ", and it has no gates: were they the reason, it would grow faster"}
    parts = []
    for model, value in grown.items():
        text = (
            f"{title(model)}'s training peak grows as T^{value:.2f}"
            if value is not None
            else f"{title(model)}'s growth of memory was not measured"
        )
        parts.append(Part(text + notes[model], None if value is None else limits[model](value)))
    return Verdict(quotes.QUADRATIC, tuple(parts))


def convolutions(study: Study) -> Verdict:
    """Better than a TCN where the distant past is asked for."""
    return Verdict(quotes.CONVOLUTIONS, (better(study, study.from_source(*RECALL), ("tcn",)),))


def comparable(study: Study) -> Verdict:
    """Less memory than Transformer and TCN at great length, and no worse in recall."""
    others = ("attention", "tcn")
    return Verdict(
        quotes.COMPARABLE,
        (at_length(study, others, "training_peak_bytes"), no_worse(study, study.from_source(*RECALL), others)),
    )


def flexible(study: Study) -> Verdict:
    """Gates that open for what matters, and less time than a Transformer at great length."""
    return Verdict(quotes.FLEXIBLE, (adapts(study), at_length(study, ("attention",), "training_seconds")))


CLAIMS = (
    judge_printed_numbers,
    consistent,
    superior,
    judge_pronounced_gain,
    robust,
    savings,
    judge_reduction,
    quadratic,
    convolutions,
    comparable,
    flexible,
)


def better(study: Study, tasks: Sequence[Task], rivals: Sequence[str]) -> Part:
    """Better with p < 0.05 than every rival on every task."""
    tests = [study.comparisons.get((task.name, rival)) for task in tasks for rival in rivals]
    won, lost, missing = (
        sum(bool(t and t.won) for t in tests),
        sum(bool(t and t.lost) for t in tests),
        tests.count(None),
    )
    text = f"better than {_names(rivals)} with p < 0.05 in {won} of {len(tests) - missing} comparisons, worse in {lost}"
    return Part(
        text + _not_run(missing) + _span_effects(tests), every(None if test is None else test.won for test in tests)
    )


def no_worse(study: Study, tasks: Sequence[Task], rivals: Sequence[str]) -> Part:
    """Nowhere worse with p < 0.05."""
    tests = [study.comparisons.get((task.name, rival)) for task in tasks for rival in rivals]
    lost, missing = sum(bool(test and test.lost) for test in tests), tests.count(None)
    text = f"worse than {_names(rivals)} with p < 0.05 in {lost} of {len(tests) - missing} comparisons"
    return Part(
        text + _not_run(missing) + _span_effects(tests),
        every(None if test is None else not test.lost for test in tests),
    )


def cost_ratios(study: Study, tasks: Sequence[Task], rivals: Sequence[str], key: str) -> list[float | None]:
    """Returns the selective SSM's bytes over each rival's on each task, None where one is not known."""
    found: list[float | None] = []
    for task in tasks:
        records = study.of(task)
        ours = records[OURS].costs[key] if OURS in records else None
        theirs = [records[rival].costs[key] if rival in records else None for rival in rivals]
        found += [ours / other if ours is not None and other else None for other in theirs]
    return found


def smaller(study: Study, tasks: Sequence[Task], rivals: Sequence[str], key: str, most: float) -> Part:
    """At most `most` times every rival's bytes on every task."""
    ratios = cost_ratios(study, tasks, rivals, key)
    known = [ratio for ratio in ratios if ratio is not None]
    what = {"training_peak_bytes": "training peak", "state_bytes": "state"}[key]
    text = (
        f"{what} {_span(known)} times that of {_names(rivals)}, at most {most:.2f} asked for"
        if known
        else f"{what} not known"
    )
    return Part(
        text + _not_run(len(ratios) - len(known)), every(None if ratio is None else ratio <= most for ratio in ratios)
    )


def at_length(study: Study, rivals: Sequence[str], quantity: str, most: float = 1.0) -> Part:
    """At most `most` times every rival's memory or time at all lengths from 4096 on."""
    what = {"training_peak_bytes": "training peak", "training_seconds": "time of a training step"}[quantity]
    found = {
        rival: study.scaling.ratios(OURS, rival, quantity, least=LONG) if study.scaling else {} for rival in rivals
    }
    known = [ratio for ratios in found.values() for ratio in ratios.values()]
    if not known:
        return Part(f"{what} at T >= {LONG} not measured", None)
    absent = [title(rival) for rival, ratios in found.items() if not ratios]
    text = f"{what} at T >= {LONG} {_span(known)} times that of {_names(rivals)}" + (
        f" ({join_words(absent)} not measured)" if absent else ""
    )
    return Part(text, every([*(ratio <= most for ratio in known), *(None for _ in absent)]))


def read_recall(
    study: Study, task: Task, length: int | None = None, model: str = OURS
) -> tuple[float, int | None] | None:
    """Returns (a model's mean accuracy on a task of recall, length): by default at the greatest length where it has
    several, with 0 at that of training. None if not run.
    """
    record = study.of(task).get(model)
    if record is None:
        return None
    if length is None:
        length = max((length for run in record.runs for length in run.lengths), default=None)
    values = record.at_length(length) if length else record.values("accuracy")
    return (sum(values.values()) / len(values), length) if values else None


def recall(study: Study, task: Task, least: float) -> Part:
    """At least so accurate on a task of recall."""
    found = read_recall(study, task)
    if found is None:
        return Part(f"{task.name} not run", None)
    accuracy, length = found
    return Part(
        f"accuracy on {task.name}{f' at {length} steps' if length else ''} {100 * accuracy:.2f} %", accuracy >= least
    )


def adapts(study: Study) -> Part:
    """Gates open wider for symbols than for the filler between them."""
    for task in study.from_source("selective_copying"):
        record = study.of(task).get(OURS)
        found = contrast(record.reading) if record and record.reading else None
        if found:
            text = (
                f"on {task.name} the mean gate is {number(found.ours)} at {found.what} and {number(found.others)} at "
                f"{found.rest}"
            )
            return Part(text, found.ours > found.others)
    return Part("no reading of gates at symbols and blanks", None)


def _span_effects(tests: Iterable[Comparison | None]) -> str:
    """The extremes of the effects, and the median of what a comparison could have shown, in % of the loss."""
    effects = [test.relative for test in tests if test and test.relative]
    smallest = [effect.smallest for effect in effects if effect.smallest is not None]
    if not smallest:
        return ""
    low, high = (_cap(extreme(effect.mean for effect in effects)) for extreme in (min, max))
    seen = _cap(statistics.median(smallest)).removeprefix("+")
    ends = low if low == high else f"{low} to {high}"
    return (
        f"; their loss is {ends} % above the selective SSM's, and in the median a comparison could have shown {seen} %"
    )


def _cap(share: float) -> str:
    """A share in percent; of losses near 0 it says no more than that it is large."""
    return f"{100 * share:+.1f}" if share <= LARGEST else f"more than {100 * LARGEST:,.0f}"


def _names(models: Sequence[str]) -> str:
    return join_words([title(model) for model in models])


def _not_run(missing: int) -> str:
    return f" ({missing} not run)" if missing else ""


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"
