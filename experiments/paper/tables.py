"""The tables of the page: the paper's Table 1 beside ours, the scores, effects, published numbers and costs of every
task, scaling, claims and the bar.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from experiments.paper import quotes
from experiments.paper.claims import LONG, Verdict
from experiments.paper.comparisons import LARGEST, Effect, count_decimals, span
from experiments.paper.effects import KindEffect
from experiments.paper.goals import Goal
from experiments.paper.names import FIELD, METRICS, OURS, PAPERS, RIVALS, SHARE, title
from experiments.paper.published import READ, Published, list_published
from experiments.paper.records import Record
from experiments.paper.ridge import RIDGE
from experiments.paper.scaling import QUANTITIES, Scaling
from experiments.paper.study import Study, Task, find_differing
from selssm_jax.report.tables import Cell, Table, number, size

Row = tuple[Cell, ...]
NOT_RUN = "not run"
THREE = (OURS, *RIVALS)  # the models of the paper's Table 1


def spread(values: Iterable[float], scale: float = 1.0) -> str:
    """Returns "mean ± sd" over seeds, the standard deviation (n - 1) to two digits and the mean as far; a single value
    stands alone.
    """
    found = [scale * value for value in values]
    mean, deviation = statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else 0.0
    if not deviation:
        return number(mean)
    digits = count_decimals(deviation)
    return f"{mean:,.{digits}f} ± {deviation:.{digits}f}"


def share(effect: Effect | None) -> str | None:
    """Returns an effect in percent with its interval; of one above `LARGEST` only that it is."""
    if effect is None:
        return None
    return f"> {100 * LARGEST:,.0f}" if effect.mean > LARGEST else span(effect.scale(100))


def round_to_two(value: float | None, *, sign: bool = False) -> str | None:
    """Returns a number to two digits, with its sign if that is asked for."""
    if value is None:
        return None
    rounded = float(f"{value:.2g}")
    return f"{rounded:+,g}" if sign else f"{rounded:,g}"


def megabytes(count: Cell) -> str:
    """Returns bytes in MB of 10^6."""
    return f"{count / 1e6:,.1f}" if isinstance(count, int | float) else number(None)


def table_one(study: Study) -> list[Table]:
    """The paper's Table 1: accuracy, memory in training and memory of the state, ours under its printed numbers."""
    columns = ("", *(title(model) for model in THREE))
    accuracy = _table(
        "Table 1, prediction accuracy (%), mean ± sd over seeds", columns, tuple(_by_family(study, 0, _accuracy))
    )
    peak = _table("Table 1, memory: peak of a training step (MB)", columns, tuple(_by_family(study, 1, _peak, _batch)))
    state = _table(
        "Table 1, memory: what is carried from step to step (state of one sequence)",
        columns,
        tuple(_rows(study, study.within(PAPERS), _state)),
    )
    return [accuracy, peak, state]


def _by_family(
    study: Study,
    printed: int,
    cell: Callable[[Record], Cell],
    note: Callable[[Study, Task], str] = lambda _, task: task.name,
) -> Iterable[Row]:
    """For each of the paper's tasks its printed row, then one row a data set of ours."""
    for family in PAPERS:
        yield (f"*{family}: {quotes.LABEL}*", *(f"*{quotes.TABLE[family, model][printed]}*" for model in THREE))
        yield from _rows(study, study.within([family]), cell, note)


def _rows(
    study: Study,
    tasks: Sequence[Task],
    cell: Callable[[Record], Cell],
    note: Callable[[Study, Task], str] = lambda _, task: task.name,
) -> Iterable[Row]:
    for task in tasks:
        records = study.of(task)
        yield (note(study, task), *(cell(records[model]) if model in records else NOT_RUN for model in THREE))


def _accuracy(record: Record) -> Cell:
    share = SHARE[record.kind]
    values = record.values(share).values()
    return spread(values, METRICS[share].scale) if values else None


def _peak(record: Record) -> Cell:
    return megabytes(record.costs["training_peak_bytes"])


def _state(record: Record) -> Cell:
    return _bytes(record.costs["state_bytes"])


def _batch(study: Study, task: Task) -> str:
    """The task, and the batch that a training step reads."""
    costs = next((record.costs for record in study.of(task).values() if record.costs["batch"]), None)
    return f"{task.name} ({number(costs['batch'])} × {number(costs['steps'])} steps)" if costs else task.name


def scores(study: Study, task: Task) -> Table:
    """Every metric of the field for every model and baseline."""
    records = study.of(task)
    kind = next(record.kind for record in records.values())
    shown = [name for name in FIELD[kind] if any(record.values(name) for record in records.values())]
    best = {name: _best(records.values(), name) for name in shown}
    columns = ("", *(METRICS[name].title for name in shown), "seeds")
    rows: list[Row] = []
    for model in task.models:
        if model not in records:
            rows.append((title(model), NOT_RUN, *(None for _ in columns[2:])))
            continue
        cells = (_score(records[model], name, best[name]) for name in shown)
        rows.append((title(model), *cells, str(len(records[model].runs))))
    baselines = {name: values for record in reversed(records.values()) for name, values in record.baselines.items()}
    for name, values in baselines.items():
        cells = (number(values[key] * METRICS[key].scale) if key in values else None for key in shown)
        rows.append((f"*{name}*", *cells, None))
    return _table("Scores on the test split, mean ± sd over seeds; the best mean is bold", columns, tuple(rows))


def effects(study: Study, task: Task) -> Table | None:
    """Every rival against the selective SSM: difference with its interval, test, and what it could have shown."""
    records = study.of(task)
    rivals = [model for model in records if model != OURS]
    if OURS not in records or not rivals:
        return None
    metric = METRICS[records[OURS].metric]
    columns = (
        "",
        f"{metric.title}, minus selective [95 % interval]",
        f"{metric.loss_title} above selective's (%) [95 % interval]",
        "smallest that could be shown",
        "the same in %",
        "p",
        "p (Holm)",
        "pairs",
        "in words",
    )
    rows = tuple((title(model), *_effect(study, task, model)) for model in rivals)
    return _table(f"Against the selective SSM, seed by seed; {metric.direction}", columns, rows)


def _effect(study: Study, task: Task, model: str) -> Row:
    test = study.comparisons.get((task.name, model))
    if test is None:
        return (*(None for _ in range(7)), f"no test: {_explain_missing_test(study, task, model)}")
    effect, relative = test.effect.scale(METRICS[study.records[task.name, OURS].metric].scale), test.relative
    seen = relative.smallest if relative else None
    return (
        span(effect),
        share(relative),
        round_to_two(effect.smallest),
        None if seen is None else f"> {100 * LARGEST:,.0f}" if seen > LARGEST else round_to_two(100 * seen),
        probability(test.p),
        probability(test.holm),
        str(test.pairs),
        test.words(),
    )


def _explain_missing_test(study: Study, task: Task, model: str) -> str:
    ours, other = study.records[task.name, OURS], study.records[task.name, model]
    differing = find_differing(ours.recipe, other.recipe)
    if differing:
        changes = (f"{key} {theirs} for {mine}" for key, (mine, theirs) in differing.items())
        return f"another recipe ({', '.join(changes)})"
    return "another metric" if ours.metric != other.metric else "no seed in common with the selective SSM"


def kinds(study: Study, judged: Sequence[KindEffect]) -> Table:
    """Rivals against the selective SSM on each kind of task, pooled over its data sets."""
    rows = tuple(
        (
            kind.family,
            kind.names,
            share(kind.effect),
            f"**{kind.verdict}**",
            round_to_two(100 * kind.effect.smallest) if kind.effect and kind.effect.smallest is not None else None,
            _by_data_set(study, kind),
        )
        for kind in judged
    )
    columns = (
        "",
        "against",
        "loss above selective's (%) [95 % interval]",
        "the selective SSM is",
        "smallest that could be shown (%)",
        "by data set (%)",
    )
    return _table("The selective SSM against the paper's rivals, by kind of task", columns, rows)


def _by_data_set(study: Study, kind: KindEffect) -> str:
    """The mean of each data set, and those that are missing."""
    gaps = {task.name: study.relative_gaps(task, kind.rivals) for task in study.within([kind.family])}
    means = [f"{name} {round_to_two(100 * statistics.fmean(gaps[name]), sign=True)}" for name in kind.tasks]
    return ", ".join([*means, *(f"{name} not run or by another recipe" for name in kind.missing)])


def published_table(study: Study, task: Task) -> Table | None:
    """What others report of a task at the same lookback, the best first, and ours among them."""
    others, records = list_published(task), study.of(task)
    if not others or not records:
        return None
    primary = METRICS[next(iter(records.values())).metric]
    shown = [name for name in METRICS if any(name in other.values for other in others)]
    lines = [(other.values.get(primary.name), _published_row(other, shown)) for other in others]
    for model, record in records.items():
        cells = (_score(record, name, None) for name in shown)
        lines.append((record.mean(primary.name), (f"**ours: {title(model)}**", *cells, "this page")))
    ridge = next((record.baselines[RIDGE] for record in records.values() if RIDGE in record.baselines), None)
    if ridge:
        cells = (number(ridge[name]) if name in ridge else None for name in shown)
        lines.append((ridge.get(primary.name), (f"**ours: {RIDGE}**", *cells, "this page")))
    ordered = sorted(lines, key=lambda line: primary.loss(line[0]) if line[0] is not None else math.inf)
    lookback = f", lookback {task.length}" if primary.name == "mse" else ""
    columns = ("", *(METRICS[name].title for name in shown), "source")
    return _table(f"Published numbers beside ours{lookback}, the best first", columns, tuple(row for _, row in ordered))


def _published_row(other: Published, shown: Sequence[str]) -> Row:
    cells = (_print_as_source(other.values[name], name) if name in other.values else None for name in shown)
    notes = [other.differs, "" if other.source.basis == READ else other.source.basis]
    source = f"{other.source.title}, {other.source.place}"
    return (other.model, *cells, "; ".join([source, *(note for note in notes if note)]))


def _print_as_source(value: float, metric: str) -> str:
    """A published number; forecasts are printed to three decimals."""
    return f"{value:.3f}" if metric in FIELD["forecasting"] else f"{value * METRICS[metric].scale:.6g}"


def _best(records: Iterable[Record], metric: str) -> float | None:
    means = [mean for record in records if (mean := record.mean(metric)) is not None]
    return (max if METRICS[metric].higher else min)(means) if means else None


def _score(record: Record, metric: str, best: float | None) -> Cell:
    values = record.values(metric).values()
    if not values:
        return None
    text = spread(values, METRICS[metric].scale)
    return f"**{text}**" if record.mean(metric) == best else text


def probability(p: float | None) -> str | None:
    """Returns a p-value to two digits, "< 0.0001" below that."""
    if p is None:
        return None
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def lengths(study: Study, task: Task) -> Table | None:
    """Accuracy at every length, for tasks that are evaluated at several."""
    records = study.of(task)
    found = sorted({length for record in records.values() for run in record.runs for length in run.lengths})
    if not found:
        return None
    rows = tuple((title(model), *(_at_length(record, length) for length in found)) for model, record in records.items())
    return _table(
        "Accuracy (%) at every length, mean ± sd over seeds", ("", *(f"{length:,} steps" for length in found)), rows
    )


def _at_length(record: Record, length: int) -> Cell:
    values = record.at_length(length).values()
    return spread(values, 100.0) if values else None


def costs(study: Study, task: Task) -> Table:
    """What each model needs: parameters, bytes, time and operations."""
    records = study.of(task)
    rows = tuple(
        (title(model), *_cost(records[model]))
        if model in records
        else (title(model), NOT_RUN, *(None for _ in range(6)))
        for model in task.models
    )
    columns = (
        "",
        "parameters",
        "state",
        "training peak",
        "decoding peak",
        "ms a training step",
        "ms per 1k tokens of training",
        "FLOPs of a training step",
    )
    batch = _batch(study, task).removeprefix(task.name).strip(" ()")
    return _table(f"Costs{f'; a training step reads {batch}' if batch else ''}", columns, rows)


def _cost(record: Record) -> Row:
    costs, seconds = record.costs, record.seconds_per_step
    tokens = (costs["batch"] or 0) * (costs["steps"] or 0)
    step = None if seconds is None else f"{1e3 * seconds:.3g}"
    rate = None if seconds is None or not tokens else f"{1e6 * seconds / tokens:.3g}"
    peaks = (_bytes(costs[key]) for key in ("state_bytes", "training_peak_bytes", "decode_peak_bytes"))
    flops = costs["training_flops"]
    return (f"{record.parameters:,}", *peaks, step, rate, None if flops is None else f"{flops:.2e}")


def _bytes(count: int | float | None) -> str | None:
    return size(None if count is None else int(count))


def growth(scaling: Scaling) -> Table:
    """Training peak and time of a step at 4096 steps and at the longest, and the exponents of both."""
    at = sorted({LONG, scaling.lengths[-1]} & set(scaling.lengths))
    rows: list[Row] = []
    for model in scaling.models:
        peak, time = scaling.series(model, "training_peak_bytes"), scaling.series(model, "training_seconds")
        powers = (scaling.exponent(model, key) for key in ("training_peak_bytes", "training_seconds"))
        memory = (_bytes(peak.get(length)) for length in at)
        rows.append(
            (
                title(model),
                *memory,
                *(_seconds(time.get(length)) for length in at),
                *(None if e is None else f"T^{e:.2f}" for e in powers),
            )
        )
    columns = (
        "",
        *(f"training peak, T = {length:,}" for length in at),
        *(f"step, T = {length:,}" for length in at),
        "peak grows as",
        "time grows as",
    )
    return _table("Memory and time of a training step", columns, tuple(rows))


def _seconds(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g} s"


def pieces(found: Mapping[str, Any]) -> Table:
    """Bytes of a training step of every model by length, read whole and in pieces."""
    rows: list[Row] = []
    for model, forms in found["models"].items():
        for form, bytes_ in forms.items():
            if bytes_:
                pairs = zip(bytes_["peak_bytes"], bytes_["temporary_bytes"], strict=True)
                cells = (f"{_bytes(peak)} ({_bytes(temporary)})" for peak, temporary in pairs)
                rows.append((f"{title(model)}, {'whole' if form == 'whole' else 'in pieces'}", *cells))
    columns = ("", *(f"T = {length:,}" for length in found["lengths"]))
    return _table("Peak of a training step, and of it the temporaries of the program", columns, tuple(rows))


def crossovers(scaling: Scaling) -> Table | None:
    """The length from which on a Transformer needs more than each model."""
    found = {quantity: values for quantity, values in scaling.crossovers.items() if quantity in QUANTITIES}
    models = [model for model in scaling.models if any(model in values for values in found.values())]
    if not models:
        return None
    rows = tuple((title(model), *(_crossing(values, model) for values in found.values())) for model in models)
    return _table(
        "Length from which on the Transformer needs more",
        ("", *(QUANTITIES[quantity].split(" (")[0] for quantity in found)),
        rows,
    )


def _crossing(values: Mapping[str, Any], model: str) -> Cell:
    if model not in values:
        return None
    length = values[model]
    return "at none measured" if length is None else f"{length:,.0f}"


def claims(verdicts: Sequence[Verdict]) -> Table:
    """Each sentence, its verdict and the numbers."""
    rows = tuple((f"“{verdict.quote}”", f"**{verdict.status}**", verdict.reasons) for verdict in verdicts)
    return _table("What section 8 of the paper says", ("sentence", "verdict", "what was found"), rows)


def bar(goals: Sequence[Goal]) -> Table:
    """Each goal, what was found and the verdict."""
    return _table(
        "What the project asked of itself before the runs",
        ("goal", "found", "verdict"),
        tuple((goal.asked, goal.found, f"**{goal.verdict}**") for goal in goals),
    )


def _table(caption: str, columns: tuple[str, ...], rows: tuple[tuple[Cell, ...], ...]) -> Table:
    """A table of this page, which is Markdown alone: its cells have bold and italics in them."""
    return Table(caption, columns, rows, markup=True)
