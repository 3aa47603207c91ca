"""What was run: hardware, software, budget, commands, what is missing, and what limits the results."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from experiments.paper.names import OURS, join_words, title
from experiments.paper.records import Record
from experiments.paper.study import Study, Task, find_differing
from selssm_jax.report.document import Block, Heading, Paragraph, Verbatim
from selssm_jax.report.tables import Table, number

ENDS = ("lowest", "highest", "only")  # of a grid of learning rates
MATCHED = 0.05  # of the target, as the models' parameters are to agree


def circumstances(study: Study) -> list[Block]:
    """Returns the first section of the page."""
    missing = study.cells - len(study.records)
    done = f"{len(study.records)} of {study.cells} cells (a model on a task) have a record" + (
        f"; {missing} are not run." if missing else "."
    )
    return [
        Heading("What was run"),
        Paragraph(done),
        _setting(study),
        _budget(study),
        *_rates(study),
        *_recipes(study),
        *_commands(study),
        *_limits(study),
    ]


def _setting(study: Study) -> Table:
    records = study.records.values()
    rows = [("hardware", _distinct(machine(record.machine) for record in records))]
    if study.scaling is not None and study.scaling.machine:
        rows.append(("hardware of the scaling curves", machine(study.scaling.machine)))
    packages = sorted({name for record in records for name in record.versions})
    rows += [
        (
            "software",
            ", ".join(
                f"{name} {_distinct(record.versions.get(name, 'unknown') for record in records)}" for name in packages
            ),
        )
    ]
    return Table("Setting", ("", ""), (*rows, ("numbers", _distinct(record.dtype for record in records))))


def machine(found: Mapping[str, Any] | str) -> str:
    """Returns a machine in words: "Linux x86_64, 1 CPU core, device cpu"."""
    if isinstance(found, str):
        return found
    cores = f"{found['cpus']} CPU core{'s' if found['cpus'] != 1 else ''}" if "cpus" in found else ""
    device = f"device {found['device']}" if "device" in found else ""
    return ", ".join(part for part in (found.get("platform", ""), cores, device) if part)


def _distinct(values: Iterable[str]) -> str:
    return " or ".join(sorted(set(values)))


def _budget(study: Study) -> Table:
    columns = (
        "task",
        "trained on",
        "trials a model",
        "learning rates tried",
        "steps a trial",
        "steps a run",
        "examples a run reads",
        "seeds",
        "cells run",
        "not run",
    )
    return Table(
        "Budget of every model of a task; where models differ, by or",
        columns,
        tuple(_budget_row(study, task) for task in study.tasks),
    )


def _budget_row(study: Study, task: Task) -> tuple[str, ...]:
    records = study.of(task).values()
    trials, trial_steps, steps = (
        _distinct_numbers(record.budget.get(key) for record in records) for key in ("trials", "trial_steps", "steps")
    )
    loss = _distinct(record.loss for record in records) or "–"
    windows = _distinct_numbers(
        record.budget["steps"] * (record.costs["batch"] or 0) or None for record in records if "steps" in record.budget
    )
    return (
        task.name,
        loss,
        trials,
        _describe_rates(records),
        trial_steps,
        steps,
        windows,
        _distinct_numbers(len(record.runs) for record in records),
        f"{len(records)} of {len(task.models)}",
        ", ".join(map(title, study.missing(task))) or "–",
    )


def _distinct_numbers(values: Iterable[int | float | None]) -> str:
    """Numbers in their order, "3 or 10"; a dash without any."""
    return " or ".join(number(value) for value in sorted({value for value in values if value is not None})) or "–"


def _describe_rates(records: Iterable[Record]) -> str:
    """How many learning rates were tried, and between which: "2 or 4, 0.002 to 0.008"."""
    tried = [record.rates for record in records if record.rates]
    if not tried:
        return "–"
    low, high = min(map(min, tried)), max(map(max, tried))
    return f"{_distinct_numbers(map(len, tried))}, {low:g} to {high:g}" if low < high else f"1, {low:g}"


def _rates(study: Study) -> list[Block]:
    """Which cells were best at an end of the learning rates that were tried."""
    known = [record for record in study.records.values() if record.chosen_rate is not None and record.rates]
    if not known:
        return []
    at_end = [record for record in known if record.end]
    words = (
        f"The best learning rate of {len(at_end)} of {len(known)} cells lies at an end of those that were tried, so "
        "that a rate beyond might be better; of two rates, the best is always at an end."
    )
    rows = []
    for task in study.tasks:
        ends = {end: [title(record.model) for record in study.of(task).values() if record.end == end] for end in ENDS}
        if any(ends.values()):
            rows.append((task.name, *(_list_models(models, task) for models in ends.values())))
    columns = ("task", "best at the lowest rate", "best at the highest rate", "one rate tried")
    return [
        Paragraph(words),
        *([Table("Cells whose best learning rate is at an end", columns, tuple(rows))] if rows else []),
    ]


def _list_models(models: list[str], task: Task) -> str:
    """The models of a task by name, or that they are all."""
    return f"all {len(models)}" if len(models) == len(task.models) else ", ".join(models) or "–"


def _recipes(study: Study) -> list[Paragraph]:
    """Which records of a task were made by another recipe than the others, or than their config's of today."""
    return [
        Paragraph(text)
        for text in (
            _list_differing(study, "Records that their config would not make again as it is", lambda task: task.recipe),
            _list_differing(
                study,
                "Records of another recipe than the selective SSM's of the same task, which are not tested against it",
                lambda task: study.records[task.name, OURS].recipe if (task.name, OURS) in study.records else {},
            ),
        )
        if text
    ]


def _list_differing(study: Study, head: str, reference: Callable[[Task], Mapping[str, Any]]) -> str:
    """The records whose recipe differs from a task's reference, and in which keys; "" where all agree."""
    changes: dict[str, list[str]] = {}
    for task in study.tasks:
        for model, record in study.of(task).items():
            differing = find_differing(reference(task), record.recipe)
            if differing:
                keys = ", ".join(f"{key} {value} for {expected}" for key, (expected, value) in differing.items())
                changes.setdefault(f"{task.name} ({keys})", []).append(title(model))
    return (
        f"{head}: {'; '.join(f'{join_words(models)} on {where}' for where, models in changes.items())}."
        if changes
        else ""
    )


def _commands(study: Study) -> list[Block]:
    record = next(record for task in study.tasks for record in study.of(task).values())
    page = f"python -m experiments.paper --configs {study.configs.as_posix()}"
    lines = [record.command, record.runs[0].command, page]
    words = (
        "The commands that make a cell (trials, runs and record), one run of it alone, and this page. Every record "
        "holds its own."
    )
    return [Paragraph(words), Verbatim("\n".join(line for line in lines if line))]


def _limits(study: Study) -> list[Block]:
    seeds = min(len(record.runs) for record in study.records.values())
    words = [
        f"Limits. At least {seeds} seed{'s' if seeds > 1 else ''} a cell: every table says which difference it could "
        "have shown, and smaller ones are not seen. The budgets are small, and a model that is best within them need "
        "not be best with more steps, parameters or tuning.",
        "Hyperparameters were chosen on the validation split alone; the test split was read once a run. On a CPU a run "
        "comes out bit for bit on as many cores as are named above (one: taskset -c 0 before the command); on more, "
        "last digits differ. Records made before the learning rate of step n was that of its schedule at n come out by "
        "the version that made them: theirs was a step behind. Peaks are the compiler's own count for one step of the "
        "batch that is named, on this device. Times are medians over the seeds, on a machine that may have had other "
        "work, and compare models only roughly.",
        _matching(study.records.values()),
    ]
    strays = (
        f"Records that belong to no task or model of the configs, and are not read: {', '.join(study.strays)}."
        if study.strays
        else ""
    )
    return [Paragraph(text) for text in (*words, strays) if text]


def _matching(records: Iterable[Record]) -> str:
    """Whether parameters are matched, and where not."""
    gaps = [
        (record, record.parameters / record.target_parameters - 1) for record in records if record.target_parameters
    ]
    if not gaps:
        return ""
    outside = [
        f"{title(record.model)} on {record.task} ({100 * gap:+.1f} %)" for record, gap in gaps if abs(gap) > MATCHED
    ]
    widest = (
        f"Parameters are matched within a task: at most {100 * max(abs(gap) for _, gap in gaps):.1f} % from the task's "
        "target"
    )
    return f"{widest}; beyond {100 * MATCHED:g} %: {join_words(outside)}." if outside else f"{widest}."
