"""The sections of a report: each turns results into headings, words, tables and figures."""

import json
import pathlib
from typing import Any

from selssm_jax.reporting import figures
from selssm_jax.reporting.document import Block, Heading, Paragraph, Picture, Verbatim
from selssm_jax.reporting.figures import Curve
from selssm_jax.reporting.tables import Cell, Table, size

Results = dict[str, Any]
CURVES = {"language": ("nats",), "classification": ("nats", "accuracy"), "forecasting": ("mse",)}
UNITS = {"accuracy": "accuracy (share)", "mse": "mean squared error (scaled units)", "mae": "mean absolute error (scaled units)"}
COLUMNS = ("nats", "bits", "perplexity", "accuracy", "mse", "mae")


def titled(title: str, blocks: list[Block]) -> list[Block]:
    """Returns the blocks under a heading."""
    return [Heading(title), *blocks]


def scores(results: Results) -> list[Block]:
    """What was evaluated, and its metrics beside the baselines."""
    how = {"best": "the best on the validation split", "last": "the last that was saved"}[results["chosen"]]
    which = f"Parameters of training step {results['step']:,} of {results['steps']:,}: {how}."
    words = f"{which} The scores are exact over the whole {results['split']} split."
    rows = {"this model": results["metrics"], **results["baselines"]}
    found = {name for metrics in rows.values() for name in metrics}
    columns = [name for name in COLUMNS if name in found] + sorted(found - set(COLUMNS))
    cells: list[tuple[Cell, ...]] = [(name, *(metrics.get(column) for column in columns)) for name, metrics in rows.items()]
    return [Paragraph(words), Table(f"Scores on the {results['split']} split", ("", *(_unit(column, results) for column in columns)), tuple(cells))]


def learning(results: Results, history: list[dict[str, Any]], folder: pathlib.Path) -> list[Block]:
    """The learning curve of every metric of interest that was recorded."""
    blocks: list[Block] = []
    for metric in CURVES[results["task"]["kind"]]:
        train, validation = _curve("training", "train", metric, history), _curve("validation", "validation", metric, history)
        if not train.steps and not validation.steps:
            continue
        references = {f"{name} ({results['split']})": values[metric] for name, values in results["baselines"].items() if metric in values}
        figure = figures.learning_curve(train, validation, label=_unit(metric, results), chosen=results["step"], references=references)
        words = "Training and validation over the steps of the run. The dotted line is the step whose parameters were evaluated."
        words += " The validation split was part of the training data." if results["config"]["data"]["train_on"] == "train+validation" else ""
        blocks.append(Picture(figures.save(figure, folder / f"learning_{metric}.png"), words))
    return titled("Learning curve", blocks or [Paragraph("The run holds no metrics.jsonl, so there is no curve to draw.")])


def gates(results: Results, folder: pathlib.Path) -> list[Block]:
    """How many components of the state the gates update, by block."""
    found = results["gates"]
    if not found:
        return titled("Gate activity", [Paragraph("No block of this model has gates.")])
    steps = next(iter(found.values()))["steps"]
    words = (
        f"A gate of 0 keeps a component of the state, a gate of 1 updates it fully. Means over {steps:,} valid steps of the {results['split']} split. "
        "The effective dimension is the sum of the gates of a step, and n over it is the compression factor; the participation ratio is (sum g)² / sum g². "
        "Selectivity is the standard deviation of a gate over steps: 0 would be a model that ignores its input. Soft gates save no work by themselves."
    )
    keys = ("components", "mean", "effective_dimension", "participation_ratio", "hard_count", "compression_factor", "selectivity")
    names = ("block", "n", "mean gate", "effective dimension", "participation ratio", "gates above 1/2", "compression factor", "selectivity")
    rows = tuple((name.replace("_", " "), *(block[key] for key in keys)) for name, block in found.items())
    path = figures.save(figures.gate_activity(found), folder / "gates.png")
    caption = "Left: how gate values are distributed. Middle: the mean gate of each component. Right: how many components a step updates, by position."
    return titled("Gate activity", [Paragraph(words), Table("Gates by block", names, rows), Picture(path, caption)])


def costs(results: Results) -> list[Block]:
    """Memory, operations and parameters."""
    found = results["costs"]
    train, decode = found["training_step"], found["decode_step"]
    rows: tuple[tuple[Cell, ...], ...] = (
        ("recurrent state of one sequence", size(found["state_bytes"]), None),
        ("parameters", size(found["parameter_bytes"]), None),
        (f"training step, {found['batch']['size']:,} sequences of {found['batch']['steps']:,} steps", size(train["peak_bytes"]), train["flops"]),
        ("decoding one step of one sequence", size(decode["peak_bytes"]), decode["flops"]),
    )
    carried = found["state_bytes_at"]
    columns = ("", *(f"{int(position):,} steps" if position != "1" else "1 step" for position in carried))
    states = Table("State of one sequence", columns, (("carried after", *map(size, carried.values())),))
    words = (
        "The state is all that is carried from one step to the next: that of a recurrence is as large at every position, a cache grows until it is full. "
        f"{_overtaken(found['crossover'])} Peak memory is what the compiler allocates for a call: arguments, outputs and temporaries, less what they "
        "share. Operations are the compiler's own count, in which the body of a loop may be counted once."
    )
    groups = tuple((name, count) for name, count in found["parameters"].items())
    total = ("all", sum(found["parameters"].values()))
    parts = Table("Parameters", ("part of the model", "parameters"), (*groups, total))
    return titled("Memory and cost", [Paragraph(words), Table("Memory", ("", "memory", "operations"), rows), states, parts])


def _overtaken(position: int | None) -> str:
    rival = "Attention layers of the same width and number, which keep all keys and values,"
    return f"{rival} carry more from step {position:,} on." if position is not None else f"{rival} never carry more."


def circumstances(results: Results) -> list[Block]:
    """Machine, versions and configuration."""
    machine = results["machine"]
    where = f"{machine['platform']}, {machine['cpus']} CPU cores, {machine['devices']} × {machine['device']}"
    rows = (("machine", where), *((name, version) for name, version in results["versions"].items()))
    return titled("Circumstances", [Table("Software and machine", ("", ""), rows), Verbatim(json.dumps(results["config"], indent=2))])


def _curve(name: str, split: str, metric: str, history: list[dict[str, Any]]) -> Curve:
    records = [record for record in history if record.get("split") == split and metric in record]
    return Curve(name, [record["step"] for record in records], [record[metric] for record in records])


def _unit(metric: str, results: Results) -> str:
    """The name of a metric with its unit."""
    data = results["config"]["data"]
    token = data["level"] if data["source"] in ("python_reference", "tiny_shakespeare", "wikitext2", "text") else "symbol"
    per = f" per {token}" if results["task"]["kind"] == "language" else " per signal"
    return f"{metric}{per}" if metric in ("nats", "bits") else UNITS.get(metric, metric)
