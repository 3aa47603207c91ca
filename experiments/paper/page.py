"""Writes docs/results.md and its figures from committed records: `python -m experiments.paper`."""

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from matplotlib.figure import Figure

from experiments.paper import claims, effects, figures, gate_captions, overview, quotes, tables
from experiments.paper.comparisons import LEVEL, MARGIN, POWER
from experiments.paper.goals import evaluate as evaluate_goals
from experiments.paper.mean_day import describe_mean_day
from experiments.paper.names import METRICS, OURS, join_words, title
from experiments.paper.ridge import describe_ridge
from experiments.paper.setting import circumstances
from experiments.paper.study import Study, Task, open_study
from selssm_jax.errors import InputError
from selssm_jax.report import figures as drawing
from selssm_jax.report.document import Block, Heading, Paragraph, Picture, Verbatim, to_markdown
from selssm_jax.report.tables import size

RECORDS, OUT = pathlib.Path("benchmarks/records/paper"), pathlib.Path("docs/results.md")


def write(configs: str | pathlib.Path, records: str | pathlib.Path = RECORDS, out: str | pathlib.Path = OUT) -> str:
    """Reads the records and writes the page and its figures, which go into a folder of its name beside it; returns what
    to tell.

    No model is run. The same records give the same bytes. Raises InputError for what `open_study` refuses and for a
    place that cannot be written.
    """
    study, out = open_study(pathlib.Path(configs), pathlib.Path(records)), pathlib.Path(out)
    folder = out.with_suffix("")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        out.write_text(to_markdown("Results", compose(study, folder)), encoding="utf-8")
    except OSError as error:
        raise InputError(f"the page {out} cannot be written: {error.strerror}; free that place") from error
    return summary(study, out)


def summary(study: Study, out: pathlib.Path) -> str:
    """Returns what a person is told at the end: cells, claims, goals and where the page is."""
    verdicts, goals = (
        [verdict.status for verdict in claims.judge(study)],
        [goal.verdict for goal in evaluate_goals(study)],
    )
    counted = ", ".join(
        f"{verdicts.count(status)} {status}"
        for status in (claims.SUPPORTED, claims.REFUTED, claims.UNTESTABLE, claims.UNKNOWN)
    )
    met = f"{goals.count('met')} of {len(goals)} goals met, {goals.count('not run')} not run"
    return f"{len(study.records)} of {study.cells} cells; claims: {counted}; {met}\npage: {out}"


def compose(study: Study, folder: pathlib.Path) -> list[Block]:
    """Returns the page, section by section, and draws its figures into `folder`."""
    return [
        *_first_screen(study, folder),
        Paragraph(
            "These are the experiments of the paper's section 8, done again with everything named. Every number comes "
            "from a committed record."
        ),
        *_kinds(study),
        *circumstances(study),
        *_table_one(study),
        *_tasks(study),
        *describe_mean_day(study),
        *_accuracy(study, folder),
        *_scaling(study, folder),
        *_frontier(study, folder),
        *_readings(study, folder),
        *_claims(study),
    ]


def _first_screen(study: Study, folder: pathlib.Path) -> list[Block]:
    """What a busy reader takes away: three sentences and a figure."""
    sentences = [Paragraph(sentence, lead=True) for sentence in overview.summarise(study)]
    leads = overview.list_leads(study)
    if not leads:
        return [*sentences]
    caption = (
        f"Every rival against the {title(OURS)}: its loss minus that of the {title(OURS)}, in % of the latter, with "
        "the 95 % interval of pairs of seeds; an interval that crosses 0 does not say which is better. The axis is "
        "linear to 1 % and logarithmic beyond. Blue: state space models; orange: recurrent networks; black: "
        "attention; green: convolutions. Below: mean accuracy on tasks of recall."
    )
    return [*sentences, _picture(folder, "overview", figures.overview(leads, overview.list_recall(study)), caption)]


def _kinds(study: Study) -> list[Block]:
    judged = effects.judge_kinds(study)
    words = (
        "Loss is MSE, nats, or the share of wrong answers. Data sets of a kind weigh equally, and the interval, by "
        "Welch and Satterthwaite, is of these data sets over seeds: it does not say what others would show. Better: "
        f"the whole interval is above 0. At least as good: it is above -{100 * MARGIN:g} %. Not shown: neither, and "
        "not worse. The smallest difference is the one that the test shows with a probability of "
        f"{100 * POWER:g} % if the spread of seeds is what was seen; of few seeds, that spread is itself uncertain."
    )
    doubts = [_explain_doubt(study, kind) for kind in judged if effects.is_undecided(kind)]
    return [
        Heading("Against LSTM and GRU, by kind of task"),
        Paragraph(words),
        tables.kinds(study, judged),
        *(Paragraph(text) for text in doubts),
    ]


def _explain_doubt(study: Study, kind: effects.KindEffect) -> str:
    """Why a kind of task does not decide: where the rival is ahead, and what could have been seen."""
    ahead = [
        f"{name} ({effects.describe(test.relative)})"
        for name in kind.tasks
        for rival in kind.rivals
        if (test := study.comparisons.get((name, rival))) and test.behind and test.relative
    ]
    seen = (
        f"differences below {100 * kind.effect.smallest:.1f} % could not be seen with these seeds"
        if kind.effect and kind.effect.smallest
        else "there are too few seeds for an interval"
    )
    where = f"{kind.names} ahead on {join_words(ahead)}" if ahead else f"{kind.names} nowhere ahead"
    return f"Why not shown for {kind.family}: {where}; {seen}."


def _table_one(study: Study) -> list[Block]:
    words = (
        "The paper's numbers are those that it prints; it names no data, sizes, seeds or hardware for them, so the two "
        "are not to be compared digit by digit. Ours: the share of forecast values on the right side of the last input "
        "(time series), of characters predicted right (language), of signals classified right (signals). A MB is 10^6 "
        "bytes."
    )
    return [Heading("Table 1: accuracy and memory"), Paragraph(words), *tables.table_one(study)]


def _tasks(study: Study) -> list[Block]:
    count = sum(test.p is not None for test in study.comparisons.values())
    words = (
        "Each model is compared with the selective SSM over the seeds that both have: the mean of the paired "
        "differences with its 95 % t interval, and the two-sided paired t-test. Beside it stands the smallest "
        f"difference that such a test shows with a probability of {100 * POWER:g} %, given the spread of the pairs "
        "(noncentral t). The "
        f"page holds {count} such tests, so that about {number_of_false(count)} would show p < {LEVEL:g} if no model "
        "differed from another; p (Holm) is corrected for all of them together. The gates of Selective SSM (x, h) also "
        "read the state. Baselines are in italics."
    )
    blocks: list[Block] = [Heading("Every task"), Paragraph(words)]
    for task in study.tasks:
        blocks += [Heading(f"{task.name}: {task.title}", level=3), *_task(study, task)]
    return blocks


def number_of_false(count: int) -> str:
    """Returns how many tests of so many come out below the level by chance alone."""
    return f"{LEVEL * count:.1f}".removesuffix(".0")


def _task(study: Study, task: Task) -> Iterable[Block]:
    if not study.of(task):
        return [Paragraph("Not run.")]
    blocks = (
        tables.scores(study, task),
        tables.effects(study, task),
        tables.lengths(study, task),
        tables.published_table(study, task),
        Paragraph(ridge) if (ridge := describe_ridge(study, task)) else None,
        tables.costs(study, task),
    )
    return [block for block in blocks if block]


def _picture(folder: pathlib.Path, name: str, figure: Figure, caption: str) -> Picture:
    return Picture(drawing.save(figure, folder / f"{name}.png"), caption, folder.name)


def _accuracy(study: Study, folder: pathlib.Path) -> list[Block]:
    dots = {
        task.name: [overview.make_dot(model, study.of(task).get(model)) for model in task.models]
        for task in study.tasks
        if study.of(task)
    }
    caption = (
        "Figure 1. Prediction accuracy of every model on every task, mean and one standard deviation over seeds; each "
        "panel has its own scale."
    )
    return [Heading("Figure 1: accuracy"), _picture(folder, "accuracy", figures.accuracy(dots), caption)]


def _scaling(study: Study, folder: pathlib.Path) -> list[Block]:
    heading = Heading("Memory and time against length")
    if study.scaling is None:
        return [heading, Paragraph("Not measured.")]
    caption = (
        "Memory and time of every model against the length of its input, both axes logarithmic; rings are where the "
        "Transformer comes to need more."
    )
    words = (
        "The Transformer makes the scores of its attention for some queries at a time on a CPU, and again for the "
        "gradient, as a fused kernel does: its memory grows with T, its time with T squared. A crossover at the "
        "shortest length that was measured may lie before it."
    )
    found = (tables.growth(study.scaling), tables.crossovers(study.scaling))
    command = [Verbatim(study.scaling.command)] if study.scaling.command else []
    return [
        heading,
        Paragraph(words),
        _picture(folder, "scaling", figures.curves(study.scaling), caption),
        *(table for table in found if table),
        *command,
        *_pieces(study.scaling.pieces),
    ]


def _pieces(found: Mapping[str, Any]) -> list[Block]:
    """What of the memory of training recurrence saves, and what selectivity."""
    if not found:
        return []
    whole, cut = (
        {model: forms[form]["peak_bytes"][-1] for model, forms in found["models"].items() if forms[form]}
        for form in ("whole", "pieces")
    )
    shares = {model: cut[model] / whole[model] for model in cut}
    rivals = [title(model) for model in cut if model != OURS]
    said = [f"{title(model)} {100 * share:.2g} %" for model, share in shares.items()]
    words = (
        "All that a recurrent model knows of the past is its state, so it can be trained on one piece of a sequence "
        f"after another, with the gradient of the whole. In pieces of {found['piece']:,} steps the peak of a training "
        f"step at T = {found['lengths'][-1]:,} is this share of that of the whole: {join_words(said)}. "
    )
    words += (
        f"The saving comes from recurrence, not from selectivity: {join_words(rivals)} save as much. "
        if max(shares.values()) <= 2 * shares[OURS]
        else f"{join_words(rivals)} do not all save as much as the {title(OURS)}. "
    )
    words += " ".join(_compare_uncut(model, whole, max(cut.values())) for model in whole if model not in cut)
    return [Paragraph(words), tables.pieces(found), Verbatim(found.get("command", ""))]


def _compare_uncut(model: str, whole: Mapping[str, int], largest: int) -> str:
    return (
        f"What the {title(model)} carries grows with every step, so that nothing is saved by cutting: its peak is "
        f"{size(whole[model])}, {whole[model] / largest:.0f} times the largest of those in pieces, and "
        f"{whole[model] / whole[OURS]:.2f} times that of the {title(OURS)} read whole."
    )


def _frontier(study: Study, folder: pathlib.Path) -> list[Block]:
    blocks: list[Block] = [Heading("Memory and performance")]
    for name, key, cost in (
        ("state", "state_bytes", "state of one sequence (bytes)"),
        ("peak", "training_peak_bytes", "peak of a training step (bytes)"),
    ):
        panels, higher = {}, {}
        for task in study.tasks:
            points = _points(study, task, key)
            if points:
                metric = METRICS[next(iter(study.of(task).values())).metric]
                panels[task.name], higher[task.name] = (metric.title, points), metric.higher
        if not panels:
            blocks.append(Paragraph(f"Not measured: {cost}."))
            continue
        caption = (
            f"Score against the {cost}. The line joins the models that no other of at most their memory matches; MSE "
            "and nats are better below."
        )
        blocks.append(_picture(folder, f"frontier_{name}", figures.frontier(panels, higher=higher, cost=cost), caption))
    return blocks


def _points(study: Study, task: Task, key: str) -> list[figures.Point]:
    points = []
    for model, record in study.of(task).items():
        cost, score = record.costs[key], record.mean(record.metric)
        if cost and score is not None:
            points.append(figures.Point(model, float(cost), score * METRICS[record.metric].scale))
    return points


def _readings(study: Study, folder: pathlib.Path) -> list[Block]:
    words = (
        "A trained selective SSM on one example of the test split. A gate of 0 keeps the state and a gate of 1 writes "
        "it anew; what is kept is the share of what was written at a step that is still in the state at the end. Both "
        "are means over the components of a block."
    )
    blocks: list[Block] = [Heading("Reading the gates"), Paragraph(words)]
    found = {
        task.name: record.reading for task in study.tasks if (record := study.of(task).get(OURS)) and record.reading
    }
    for name, reading in found.items():
        caption = f"{name}. {gate_captions.caption(reading)}"
        blocks.append(_picture(folder, f"reading_{name}", figures.reading(reading), caption))
    return blocks if found else [*blocks, Paragraph("Not run.")]


def _claims(study: Study) -> list[Block]:
    words = (
        "Every sentence of the paper's 8.2 and 8.3 that asserts something, word for word; its other sentences say what "
        "was done. The verdicts are computed from the records: a sentence is supported where all that it says holds. "
        f"Better and worse mean p < {LEVEL:g} before Holm's correction. Memory is saved significantly where it is at "
        f"most {quotes.SAVING:.2f} times, the smallest saving of the paper's own table."
    )
    judged = tables.claims(claims.judge(study))
    goals = evaluate_goals(study)
    reasons = [Paragraph(goal.reason) for goal in goals if goal.met is False and goal.reason]
    return [Heading("The paper's claims"), Paragraph(words), judged, Heading("The bar"), tables.bar(goals), *reasons]
