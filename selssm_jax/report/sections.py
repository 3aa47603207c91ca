"""The sections of a report: each turns results into headings, words, tables and figures."""

import json
import math
import pathlib
from typing import Any

from selssm_jax.analysis.results import Results
from selssm_jax.config import Data, Task
from selssm_jax.config.fields import build
from selssm_jax.report import figures
from selssm_jax.report.document import Block, Heading, Paragraph, Picture, Verbatim
from selssm_jax.report.figures import Curve
from selssm_jax.report.tables import Cell, Table, size, tabulate
from selssm_jax.tasks.registry import kind_of
from selssm_jax.tasks.scores import METRICS, meaning_of

MOST, SQUARE = 30, 16  # rows of a table of channels or classes; classes of a whole confusion matrix


def section(title: str, blocks: list[Block]) -> list[Block]:
    """Returns the blocks under a heading."""
    return [Heading(title), *blocks]


def scores(results: Results) -> list[Block]:
    """What was evaluated, and its metrics beside the baselines."""
    how = {"best": "the best on the validation split", "last": "the last that was saved"}[results["chosen"]]
    how += ", which was part of the training data" * (
        results["chosen"] == "best" and results["config"]["data"]["train_on"] == "train+validation"
    )
    decay = results["config"]["training"]["average"]
    averaged = f", averaged over the steps up to it with decay {decay:g}" if decay else ""
    which = f"Parameters of training step {results['step']:,} of {results['steps']:,}{averaged}: {how}."
    words = " ".join([which, *_say_course(results), f"The scores are exact over the whole {results['split']} split."])
    rows = {"this model": results["metrics"], **results["baselines"]}
    names = {name for metrics in rows.values() for name in metrics}
    columns = [name for name in METRICS if name in names] + sorted(names - set(METRICS))
    cells: list[tuple[Cell, ...]] = [
        (name, *(metrics.get(column) for column in columns)) for name, metrics in rows.items()
    ]
    return [
        Paragraph(words),
        Table(
            f"Scores on the {results['split']} split",
            ("", *(_unit(column, results) for column in columns)),
            tuple(cells),
        ),
    ]


def _say_course(results: Results) -> list[str]:
    """What a reader should know of the training besides its step; nothing of one that went as planned."""
    course, patience = results["course"], results["config"]["training"]["patience"]
    said = []
    if course["ended_early"] is not None:
        said.append(
            f"Training ended early after step {course['ended_early']:,}: {patience} validations without a better."
        )
    if course["skipped"]:
        said.append(f"Steps skipped because their loss or gradient was not finite: {course['skipped']:,}.")
    for change in course["changes"]:
        keys = ", ".join(f"{key}={value}" for key, value in change.items() if key != "step")
        said.append(f"From step {change['step'] + 1:,} on {keys}.")
    return said


def learning(results: Results, history: list[dict[str, Any]], folder: pathlib.Path) -> list[Block]:
    """The learning curve of every metric of interest that was recorded."""
    blocks: list[Block] = []
    for metric in kind_of(Task.recall(results["task"])).curves:
        train, validation = (
            _curve("training", "train", metric, history),
            _curve("validation", "validation", metric, history),
        )
        if not train.steps and not validation.steps:
            continue
        references = {
            f"{name} (validation)": values[metric]
            for name, values in results["validation_baselines"].items()
            if values.get(metric) is not None
        }
        figure = figures.learning_curve(
            train, validation, label=_unit(metric, results), chosen=results["step"], references=references
        )
        words = (
            "Training and validation over the steps of the run, and what simple baselines score on validation. The "
            "dotted line is the step whose "
        )
        words += "parameters were evaluated. The first tenth of the steps may leave the figure."
        words += (
            " The validation split was part of the training data."
            if results["config"]["data"]["train_on"] == "train+validation"
            else ""
        )
        blocks.append(Picture(figures.save(figure, folder / f"learning_{metric}.png"), words))
    return section(
        "Learning curve", blocks or [Paragraph("The run holds no metrics.jsonl, so there is no curve to draw.")]
    )


def errors(results: Results, folder: pathlib.Path) -> list[Block]:
    """Where the model errs: by step of the horizon and by channel, or by class; nothing for language."""
    parts = results["errors"]
    if parts is None:
        return []
    blocks = _by_class(parts) if "confusion" in parts else _by_step_and_channel(parts, folder)
    return section("Where it errs", [*blocks, *_intervals(results)])


def _intervals(results: Results) -> list[Block]:
    """How often the intervals of forecasts hold what came; nothing where there are none."""
    levels = results.get("intervals")
    if not levels:
        return []
    shares = ("share of all values", "of the worst channel", "of the best channel")
    names = ("level", *shares, "mean width, deviations", "interval score, deviations")
    title = "Intervals, calibrated on the validation split: the share of values that lie in them"
    tables = [Table(title, names, tuple(_coverage_row(level, share) for level, share in levels.items()))]
    if following := {level: share["following"] for level, share in levels.items() if "following" in share}:
        title = "The same intervals, widened and narrowed by how often earlier windows were missed"
        tables.append(Table(title, names, tuple(_coverage_row(level, share) for level, share in following.items())))
    if raw := {level: share["quantiles"] for level, share in levels.items() if "quantiles" in share}:
        title = "The model's own quantiles before calibration: the share of values that lie between them"
        tables.append(Table(title, names, tuple(_coverage_row(level, share) for level, share in raw.items())))
    return [*tables]


def _coverage_row(level: str, share: Results) -> tuple[Cell, ...]:
    channels = share["by_channel"]
    return f"{float(level):.0%}", share["coverage"], min(channels), max(channels), share["width"], share["score"]


def _by_step_and_channel(parts: Results, folder: pathlib.Path) -> list[Block]:
    steps, channels = parts["by_horizon"], parts["by_channel"]
    figure = figures.by_horizon(steps["mse"], steps["repeat last"], label=METRICS["mse"].label)
    words = "Mean squared error by step of the horizon, over all channels, beside that of repeating the last value."
    order = sorted(range(len(channels["names"])), key=lambda channel: -_or_infinite(channels["mse"][channel]))
    shown = order[:MOST]
    rows = tuple(
        (channels["names"][channel], *(channels[key][channel] for key in ("mse", "mae", "repeat last")))
        for channel in shown
    )
    which = "" if len(shown) == len(order) else f", the worst {len(shown)} of {len(order)}"
    names = ("channel", METRICS["mse"].label, METRICS["mae"].label, "mean squared error of repeating the last value")
    table = Table(f"Errors by channel{which}", names, rows)
    return [Picture(figures.save(figure, folder / "errors_by_horizon.png"), words), table, *_in_own_units(parts, shown)]


def _in_own_units(parts: Results, shown: list[int]) -> list[Block]:
    """The errors of channels in the units of the data, where those are known."""
    if "own_units" not in parts:
        return []
    names, errors = parts["by_channel"]["names"], parts["own_units"]
    rows = tuple((names[channel], math.sqrt(errors["mse"][channel]), errors["mae"][channel]) for channel in shown)
    columns = ("channel", "root mean squared error", "mean absolute error")
    return [Table("The same errors in the units of the data", columns, rows)]


def _or_infinite(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _by_class(parts: Results) -> list[Block]:
    """Recall by class, and the table of confusions, or where there are many classes the commonest of them."""
    names, table = parts["classes"], parts["confusion"]
    totals, named = [sum(row) for row in table], [sum(column) for column in zip(*table, strict=True)]
    share = lambda part, whole: part / whole if whole else None  # noqa: E731
    rows = [
        (name, totals[k], share(table[k][k], totals[k]), share(table[k][k], named[k])) for k, name in enumerate(names)
    ]
    rows = sorted(rows, key=lambda row: 2.0 if row[2] is None else row[2])[:MOST]
    which = "" if len(rows) == len(names) else f", the worst {len(rows)} of {len(names)} classes"
    recall = Table(
        f"Recall and precision by class{which}",
        ("class", "signals", "recall (share found)", "precision (share right)"),
        tuple(rows),
    )
    if len(names) <= SQUARE:
        lines = tuple((name, *row) for name, row in zip(names, table, strict=True))
        return [
            recall,
            Table("Confusion matrix: rows are the true class, columns the predicted one", ("", *names), lines),
        ]
    pairs = sorted(
        ((count, i, j) for i, row in enumerate(table) for j, count in enumerate(row) if i != j and count), reverse=True
    )[:MOST]
    return [
        recall,
        Table(
            "The commonest confusions",
            ("class", "taken for", "times"),
            tuple((names[i], names[j], count) for count, i, j in pairs),
        ),
    ]


def gates(results: Results, folder: pathlib.Path) -> list[Block]:
    """How many components of the state the gates update, by block."""
    blocks = results["gates"]
    if not blocks:
        return section("Gate activity", [Paragraph("No block of this model has gates.")])
    steps = next(iter(blocks.values()))["steps"]
    words = (
        f"A gate of 0 keeps a component of the state, a gate of 1 updates it fully. Means over {steps:,} valid steps "
        f"of the {results['split']} split. The effective dimension is the sum of the gates of a step, and n over it is "
        "the compression factor; the participation ratio is (sum g)² / sum g². Selectivity is the standard deviation "
        "of a gate over steps: 0 would be a model that ignores its input. Soft gates save no work by themselves."
    )
    words += _say_shares(results["config"]["model"])
    columns = {
        "n": "components",
        "mean gate": "mean",
        "effective dimension": "effective_dimension",
        "participation ratio": "participation_ratio",
    }
    columns |= {
        "gates above 1/2": "hard_count",
        "compression factor": "compression_factor",
        "selectivity": "selectivity",
    }
    path = figures.save(figures.gate_activity(blocks), folder / "gates.png")
    caption = (
        "Left: how gate values are distributed. Middle: the mean gate of each component. Right: how many components a "
        "step updates, by position in what is read at a time: a sequence, or a window of a text, which goes on from "
        "the memory of the window before."
    )
    parts: list[Block] = [Paragraph(words), tabulate("Gates by block", blocks, columns), Picture(path, caption)]
    return section("Gate activity", [*parts, *_gate_bits(blocks, folder)])


def _say_shares(model: Results) -> str:
    """What is no finding about gates that share out a step; nothing of other gates."""
    if "selective" not in model["pattern"] or model["selective"]["gate"] != "softmax":
        return ""
    return (
        " Softmax gates sum to 1 over their slots at every step, before a floor: of 'selective' blocks the mean, the "
        "effective dimension and the compression factor follow from the settings and say nothing of what was learnt."
    )


def _gate_bits(blocks: Results, folder: pathlib.Path) -> list[Block]:
    """What gates that are gains of a filter take in, in bits."""
    known = {name: block for name, block in blocks.items() if "bits_gained" in block}
    if not known:
        return []
    words = (
        "A gate of a Kalman filter is a number of bits: what the step adds to what the state holds of its readings, "
        "and what it lost since the step before, summed over components. They are bits by the layer's own model, true "
        "where the data follow it."
    )
    columns = {"gained a step (bits)": "bits_gained", "forgotten a step (bits)": "bits_forgotten"}
    picture = Picture(
        figures.save(figures.gate_bits(known), folder / "gate_bits.png"),
        "Bits that a step gains and forgets, by position in what is read at a time. A window of a text goes on from "
        "the memory of the one before, so that it can forget from its first step on.",
    )
    return [Paragraph(words), tabulate("Bits by block, by the layer's own model", known, columns), picture]


def costs(results: Results) -> list[Block]:
    """Memory, operations and parameters."""
    values = results["costs"]
    train, decode = values["training_step"], values["decode_step"]
    rows: tuple[tuple[Cell, ...], ...] = (
        ("recurrent state of one sequence", size(values["state_bytes"]), None),
        ("parameters", size(values["parameter_bytes"]), None),
        (
            f"training step, {values['batch']['size']:,} sequences of {values['batch']['steps']:,} steps",
            size(train["peak_bytes"]),
            train["flops"],
        ),
        ("decoding one step of one sequence", size(decode["peak_bytes"]), decode["flops"]),
    )
    carried = values["state_bytes_at"]
    columns = ("", *(f"{int(position):,} steps" if position != "1" else "1 step" for position in carried))
    states = Table("State of one sequence", columns, (("carried after", *map(size, carried.values())),))
    words = (
        "The state is all that is carried from one step to the next: that of a recurrence is as large at every "
        f"position, a cache grows until it is full. {_overtaken(values['crossover'])} Peak memory is what the compiler "
        "allocates for a call: arguments, outputs and temporaries, less what they share. Operations are the compiler's "
        "own count, in which the body of a loop may be counted once."
    )
    groups = tuple((name, count) for name, count in values["parameters"].items())
    total = ("all", sum(values["parameters"].values()))
    parts = Table("Parameters", ("part of the model", "parameters"), (*groups, total))
    return section(
        "Memory and cost", [Paragraph(words), Table("Memory", ("", "memory", "operations"), rows), states, parts]
    )


def _overtaken(position: int | None) -> str:
    rival = "Attention layers of the same width and number, which keep all keys and values,"
    return f"{rival} carry more from step {position:,} on." if position is not None else f"{rival} never carry more."


def setting(results: Results) -> list[Block]:
    """Machine, versions and configuration."""
    machine = results["machine"]
    where = f"{machine['platform']}, {machine['cpus']} CPU cores, {machine['devices']} × {machine['device']}"
    rows = (("machine", where), *((name, version) for name, version in results["versions"].items()))
    return section(
        "Circumstances",
        [
            Table("Software and machine", ("", ""), rows),
            Verbatim(json.dumps(results["config"], indent=2, ensure_ascii=False), folded="Configuration"),
        ],
    )


def _curve(name: str, split: str, metric: str, history: list[dict[str, Any]]) -> Curve:
    records = [record for record in history if record.get("split") == split and metric in record]
    return Curve(name, [record["step"] for record in records], [record[metric] for record in records])


def _unit(metric: str, results: Results) -> str:
    """The name of a metric with its unit."""
    per = kind_of(Task.recall(results["task"])).unit(build(Data, results["config"]["data"], "data"))
    return meaning_of(metric).label.format(per=f"per {per}") or metric
