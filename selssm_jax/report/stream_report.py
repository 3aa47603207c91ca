"""The report of a stream: errors of the learner and its rivals, what changed, and what the memory holds."""

import itertools
import pathlib

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selssm_jax.analysis.results import Results
from selssm_jax.report.document import Block, Paragraph, Picture, write_document
from selssm_jax.report.figures import GREY, LINES, ORANGE, finite, legend, panels, save, style
from selssm_jax.report.sections import section
from selssm_jax.report.tables import Cell, Table, block_title, number

INTRODUCTION = (
    "{rows:,} rows of {columns}, each answered by a forecast of {horizon}. A forecast is scored as it was given, when "
    "the last row of its horizon has come, and learnt from after that. Errors are squared, of standardised values, "
    "averaged over rows and channels, older ones fading."
)
ERRORS = (
    "Above: the faded error of the learner, of the model as it was trained, of the last value, and of recursive least "
    "squares. Solid lines across: changes that the detector ({detector}) saw as a rise of the learner's error; dotted: "
    "changes that were known. Below: the step size of the learner{gates}."
)
GATES = ", and the mean gate of its blocks over the 256 rows before"
WORLDS = (
    "Bits of a row that the state holds k rows later, in the mean over channels: lower bounds of decoders that are "
    "judged on stretches of rows that they were not fitted to, for the learner's parameters as they are now, {where}."
)
TOO_FEW = "The stream is too short to say what the states hold of its rows."
UNSHOWN = "No block shows its states."


def summarise_stream(results: Results, folder: pathlib.Path) -> str:
    """Returns the outcome in two lines for a terminal."""
    return f"{_say_outcome(results)}\nreport: {folder / 'index.html'}"


def render_stream(results: Results, folder: pathlib.Path) -> None:
    """Writes index.html, report.md with its figures beside it, and stream.json.

    Raises InputError where `folder` cannot be written.
    """
    columns = f"{len(results['columns'])} columns" if len(results["columns"]) > 1 else results["columns"][0]
    introduction = INTRODUCTION.format(
        rows=results["rows"],
        columns=columns,
        horizon="the next row" if results["horizon"] == 1 else f"the {results['horizon']} rows that follow",
    )
    with write_document(folder, f"{results['name']}, on a stream", "stream.json", results) as blocks:
        blocks.extend([Paragraph(_say_outcome(results), lead=True), Paragraph(introduction)])
        picture = Picture(
            save(draw_errors(results), folder / "errors.png"),
            ERRORS.format(detector=results["detector"], gates=GATES if results["gates"] else ""),
        )
        blocks.extend(section("Errors as time went", [picture, _tabulate_scores(results), *_list_events(results)]))
        blocks.extend(section("What the memory holds", _describe_memory(results, folder)))


def _say_outcome(results: Results) -> str:
    error, ratio = results["error"], results["over_frozen"]
    if error is None:
        return f"{results['rows']} rows were read: no forecast has met its truth yet."
    rises = sum(event["event"] == "rise" for event in results["events"])
    seen = (
        "no rise of the error was seen" if not rises else f"the error was seen to rise {rises} time{'s' * (rises > 1)}"
    )
    return (
        f"After {results['rows']:,} rows the learner's error is {number(error)}, {ratio:.2f} times that of "
        f"the model as it was trained; {seen}."
    )


def _tabulate_scores(results: Results) -> Table:
    rows: list[tuple[Cell, ...]] = [(name, results["scores"][name], _mean(results, name)) for name in results["errors"]]
    return Table("Mean squared errors", ("of", "faded, at the end", "mean of the logged ones"), tuple(rows))


def _mean(results: Results, name: str) -> float | None:
    values = [value for value in results["errors"][name] if value is not None]
    return float(np.mean(values)) if values else None


def _list_events(results: Results) -> list[Block]:
    rows = tuple((event["row"], event["event"], event["error"]) for event in results["events"])
    return [Table("What was seen", ("row", "event", "the learner's error then"), rows)] if rows else []


def _describe_memory(results: Results, folder: pathlib.Path) -> list[Block]:
    memory = results["memory"]
    if memory is None or not memory["blocks"]:
        return [Paragraph(TOO_FEW if memory is None else UNSHOWN)]
    change = memory["change"]
    where = "on all rows that are remembered" if change is None else f"before and after the change at row {change:,}"
    picture = Picture(save(draw_worlds(memory), folder / "memory.png"), WORLDS.format(where=where))
    return [picture, _tabulate_half_lives(memory)]


def _tabulate_half_lives(memory: Results) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, block in memory["blocks"].items():
        for part, world in block["worlds"].items():
            half = world["half_life"]
            rows.append((block_title(name), part, world["bits"][0], *_half_cells(half), block["gate"][part]))
    columns = ("block", "rows", "bits of the newest row", "half-life, rows", "at least", "at most", "mean gate")
    return Table("The lag at which half of these bits are left", columns, tuple(rows))


def _half_cells(half: Results | None) -> tuple[Cell, ...]:
    return (None,) * 3 if half is None else tuple(half[key] for key in ("lag", "low", "high"))


@style()
def draw_errors(results: Results) -> Figure:
    """Faded errors by row, the learner's step size, and its gates where it has any."""
    count = 3 if results["gates"] else 2
    figure, (above, *others) = panels(count, 1, height=1.4 + 1.6 * count, sharex=True)
    steps = results["steps"]
    for (colour, dash, _), name in zip(LINES, results["errors"], strict=False):
        values = [np.nan if value is None else value for value in results["errors"][name]]
        above.plot(steps, finite(values), color=colour, linestyle=dash, label=name)
    _mark(above, results)
    above.set(ylabel="faded error", yscale="log" if _spread(results) else "linear")
    others[0].plot(steps, results["rate"], color=GREY)
    others[0].set(ylabel="step size", ylim=(0, None))
    for (colour, dash, _), (name, gates) in zip(itertools.cycle(LINES), results["gates"].items(), strict=False):
        values = [np.nan if value is None else value for value in gates]
        others[1].plot(steps, values, color=colour, linestyle=dash, label=f"gate of {block_title(name)}")
        others[1].set(ylabel="mean gate", ylim=(0, None))
    others[-1].set(xlabel="row")
    legend(figure, above, *others)
    return figure


def _mark(ax: Axes, results: Results) -> None:
    for event in results["events"]:
        if event["event"] == "rise":
            ax.axvline(event["row"], color=ORANGE, linewidth=0.8)
    for row in results["changes"]:
        ax.axvline(row, color="black", linewidth=0.9, linestyle=":")


def _spread(results: Results) -> bool:
    values = [value for errors in results["errors"].values() for value in errors if value]
    return bool(values) and max(values) > 10 * min(values) > 0


@style()
def draw_worlds(memory: Results) -> Figure:
    """Bits by lag, of every block, before and after the change."""
    count = len(memory["blocks"])
    figure, axes = panels(1, count, height=3.0)
    for ax, (name, block) in zip(axes, memory["blocks"].items(), strict=True):
        for (colour, dash, mark), (part, world) in zip(LINES, block["worlds"].items(), strict=False):
            ax.errorbar(
                np.asarray(memory["lags"]) + 1,
                world["bits"],
                2 * np.asarray(world["stderr"]),
                color=colour,
                linestyle=dash,
                marker=mark,
                markersize=3.5,
                label=part,
            )
        ax.set(title=block_title(name), xscale="log", xlabel="k + 1 rows", ylabel="bits", ylim=(0, None))
    legend(figure, *axes)
    return figure
