"""What was run: hardware, software, budget, commands, what is missing, and what limits the results."""

from collections.abc import Iterable, Mapping
from typing import Any

from experiments.paper.names import join_words, title
from experiments.paper.records import Record
from experiments.paper.study import Study, Task
from selssm_jax.report.document import Block, Heading, Paragraph, Verbatim
from selssm_jax.report.tables import Table, number

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
    columns = ("task", "trained on", "trials a model", "steps a trial", "steps a run", "seeds", "cells run", "not run")
    return Table(
        "Budget, the same for every model of a task", columns, tuple(_budget_row(study, task) for task in study.tasks)
    )


def _budget_row(study: Study, task: Task) -> tuple[str, ...]:
    records = study.of(task).values()
    spent = (
        _distinct(number(record.budget.get(key)) for record in records) or "–"
        for key in ("trials", "trial_steps", "steps")
    )
    loss = _distinct(record.loss for record in records) or "–"
    seeds = _distinct(str(len(record.runs)) for record in records) or "–"
    return (
        task.name,
        loss,
        *spent,
        seeds,
        f"{len(records)} of {len(task.models)}",
        ", ".join(map(title, study.missing(task))) or "–",
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
        f"Limits. At least {seeds} seed{'s' if seeds > 1 else ''} a cell: differences that are small beside the spread "
        "are not seen. The budgets are small, and a model that is best within them need not be best with more steps, "
        "parameters or tuning.",
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
