"""The figures of the page, in the style of `report.figures`: every model has a marker and a dash of its own, for black
and white print.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator

from experiments.paper.gate_captions import filler
from experiments.paper.names import MODELS, OURS, title
from experiments.paper.scaling import QUANTITIES, Scaling
from selssm_jax.report.figures import BLUE, GREEN, GREY, LINES, ORANGE, panels, style

MORE = (("#56B4E9", (0, (5, 1)), "P"), ("#E69F00", (0, (3, 1, 1, 1)), "*"), ("#882255", (0, (1, 1)), "<"))
# (colour, dash, marker) of each model
STYLES: dict[str, tuple[str, Any, str]] = dict(zip(MODELS, (*LINES, *MORE), strict=True))
LINE, LINES_SHOWN = 64, 4  # tokens of a line of text, lines of it that are drawn


class Dot(NamedTuple):
    """A model's mean and standard deviation, None where it has not been run."""

    model: str
    mean: float | None
    deviation: float = 0.0


class Point(NamedTuple):
    """A model's cost and score."""

    model: str
    cost: float
    score: float


class Lead(NamedTuple):
    """A rival's loss above that of the selective SSM, in % of it, with the ends of its interval, None without one."""

    model: str
    mean: float
    low: float | None = None
    high: float | None = None


KINDS = {
    "state space": (BLUE, ("selective_state", "mamba", "s5")),
    "recurrent": (ORANGE, ("lstm", "gru", "rnn")),
    "attention": ("black", ("attention",)),
    "convolution": (GREEN, ("tcn",)),
}  # of mixers, and the colour of each in the overview
BOUNDS = (-60.0, 1500.0)  # of the leads that are drawn, in %


@style()
def overview(leads: Mapping[str, Sequence[Lead]], recall: Mapping[str, Sequence[Dot]]) -> Figure:
    """One row a task, narrow enough for a telephone: above, each rival's loss minus that of the selective SSM with its
    95 % interval, linear to 1 % and logarithmic beyond; below, the accuracy of all models on tasks of recall.
    """
    heights = [0.44 * max(len(leads), 1), *([0.44 * len(recall)] if recall else [])]
    figure = Figure(figsize=(4.4, 1.6 + sum(heights) + 0.55 * bool(recall)), layout="constrained")
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights).ravel()
    _draw_leads(axes[0], leads)
    if recall:
        _draw_recall(axes[1], recall)
    models = {lead.model for rows in leads.values() for lead in rows} | {
        d.model for rows in recall.values() for d in rows
    }
    shown = [model for model in MODELS if model in models]
    handles = [
        Line2D([], [], color=_kind_colour(model), marker=STYLES[model][2], markersize=4.5, linestyle="none")
        for model in shown
    ]
    figure.legend(handles, [title(model) for model in shown], loc="outside upper center", ncols=3, handletextpad=0.2)
    return figure


def _draw_leads(ax: Axes, leads: Mapping[str, Sequence[Lead]]) -> None:
    for row, rivals in enumerate(leads.values()):
        for lead in rivals:
            height = _lane(row, lead.model)
            mean, low, high = (_within(lead.mean if end is None else end) for end in (lead.mean, lead.low, lead.high))
            colour, marker = _kind_colour(lead.model), STYLES[lead.model][2]
            ax.plot([low, high], [height, height], color=colour, linewidth=1.0, solid_capstyle="butt")
            ax.plot(mean, height, color=colour, marker=marker, markersize=3.6, markeredgewidth=0.8, linestyle="none")
        if row % 2:
            ax.axhspan(-row - 0.5, -row + 0.5, color="#F4F4F4", zorder=0)
    ax.axvline(0, color="black", linewidth=1.1)
    ax.set_xscale("symlog", linthresh=1, linscale=0.8, subs=[])
    ends = [_within(end) for rows in leads.values() for lead in rows for end in lead[1:] if end is not None]
    ticks = [tick for tick in (-30, -10, -3, -1, 0, 1, 3, 10, 30, 100, 300, 1000) if min(ends) <= tick <= max(ends)]
    ax.set_xticks(ticks, [f"{tick:d}".replace("-", "−") for tick in ticks], fontsize=7.5)
    ax.minorticks_off()
    ax.set_yticks([-row for row in range(len(leads))], list(leads))
    ax.set(ylim=(-len(leads) + 0.5, 0.5), xlabel="loss above the selective SSM's (% of it)")
    ax.grid(visible=False, axis="y")
    ax.text(0.99, 1.0, "selective better →", transform=ax.transAxes, ha="right", va="bottom", fontsize=7.5)
    ax.text(0.0, 1.0, "← worse", transform=ax.transAxes, ha="left", va="bottom", fontsize=7.5)


def _draw_recall(ax: Axes, recall: Mapping[str, Sequence[Dot]]) -> None:
    for row, dots in enumerate(recall.values()):
        for dot in dots:
            if dot.mean is not None:
                colour, marker = _kind_colour(dot.model), STYLES[dot.model][2]
                height = _lane(row, dot.model)
                ax.plot(dot.mean, height, color=colour, marker=marker, markersize=3.6, linestyle="none", clip_on=False)
    ax.set_yticks([-row for row in range(len(recall))], list(recall))
    ax.set(ylim=(-len(recall) + 0.5, 0.5), xlim=(0, 102), xlabel="recall: accuracy (%), higher is better")
    ax.grid(visible=False, axis="y")


def _lane(row: int, model: str) -> float:
    """The height of a model's line in the row of a task: state space models above, convolutions below."""
    order = [OURS, *(model for _, models in KINDS.values() for model in models)]
    return -row + 0.38 - 0.76 * order.index(model) / (len(order) - 1)


def _within(value: float) -> float:
    """A lead, moved to the nearest end of what is drawn."""
    return min(max(value, BOUNDS[0]), BOUNDS[1])


def _kind_colour(model: str) -> str:
    """The colour of a mixer's kind; the selective SSM is of the state space models."""
    return next((colour for colour, models in KINDS.values() if model in models), BLUE)


@style()
def accuracy(tasks: Mapping[str, Sequence[Dot]]) -> Figure:
    """One panel a task: a row a model, its accuracy (%) as a dot with one standard deviation to both sides."""
    figure, axes = _grid(len(tasks), 4, 1.95)
    for index, (ax, (task, dots)) in enumerate(zip(axes, tasks.items(), strict=True)):
        for row, dot in enumerate(dots):
            _dot(ax, dot, len(dots) - row)
        names = [title(dot.model) for dot in dots]
        ax.set_yticks(range(len(dots), 0, -1), names if index % 4 == 0 else [""] * len(dots))
        ax.set(title=task, ylim=(0.3, len(dots) + 0.7))
        ax.margins(x=0.12)
    figure.supxlabel("accuracy (%)", fontsize=9)
    return figure


def _dot(ax: Axes, dot: Dot, height: int) -> None:
    if dot.mean is None:
        ax.text(
            0.5,
            height,
            "not run",
            transform=ax.get_yaxis_transform(),
            ha="center",
            va="center",
            fontsize=7,
            color=GREY,
            style="italic",
        )
        return
    colour, _, marker = STYLES[dot.model]
    fill = colour if dot.model == OURS else "white"
    ax.errorbar(
        dot.mean,
        height,
        xerr=dot.deviation,
        color=colour,
        marker=marker,
        markerfacecolor=fill,
        markersize=5.5,
        capsize=2.5,
        linestyle="none",
    )


@style()
def curves(scaling: Scaling) -> Figure:
    """Memory and time of training and of a forward pass against length, log-log; a ring is where the Transformer
    overtakes a model.
    """
    figure, axes = panels(2, 2, height=6.4)
    models = [model for model in STYLES if model in scaling.models]
    for ax, quantity in zip(
        axes, ("training_peak_bytes", "training_seconds", "forward_peak_bytes", "forward_seconds"), strict=True
    ):
        for model in models:
            series = scaling.series(model, quantity)
            colour, dash, marker = STYLES[model]
            width = 2.2 if model == OURS else 1.1
            ax.plot(
                list(series),
                list(series.values()),
                color=colour,
                linestyle=dash,
                marker=marker,
                markersize=4,
                linewidth=width,
            )
        _rings(ax, scaling, quantity)
        ax.set(xscale="log", yscale="log", ylabel=QUANTITIES[quantity], xlabel="length T (steps)")
        ax.set_xscale("log", base=2)
        ax.set_xticks(scaling.lengths, [_steps(length) for length in scaling.lengths])
    ring = Line2D([], [], color="black", marker="o", markersize=9, markerfacecolor="none", linestyle="none")
    handles = [*(_handle(model) for model in models), ring]
    figure.legend(handles, [*map(title, models), "the Transformer overtakes"], loc="outside lower center", ncols=5)
    return figure


def _rings(ax: Axes, scaling: Scaling, quantity: str) -> None:
    """Rings on the Transformer's curve, interpolated in logarithms."""
    series = scaling.series("attention", quantity)
    places = [length for length in scaling.crossovers.get(quantity, {}).values() if length]
    if not series or not places:
        return
    heights = np.exp(np.interp(np.log(places), np.log(list(series)), np.log(list(series.values()))))
    ax.plot(places, heights, color="black", marker="o", markersize=9, markerfacecolor="none", linestyle="none")


def _steps(length: int) -> str:
    return f"{length // 1024}k" if length % 1024 == 0 else str(length)


@style()
def frontier(tasks: Mapping[str, tuple[str, Sequence[Point]]], *, higher: Mapping[str, bool], cost: str) -> Figure:
    """One panel a task, {task: (label of the metric, points)}: score against cost in bytes, and the Pareto front as a
    step line.
    """
    figure, axes = _grid(len(tasks), 4, 2.0)
    for ax, (task, (label, points)) in zip(axes, tasks.items(), strict=True):
        front = pareto(points, higher=higher[task])
        ax.step(
            [point.cost for point in front],
            [point.score for point in front],
            where="post",
            color="black",
            linewidth=0.9,
            alpha=0.7,
        )
        for point in points:
            colour, _, marker = STYLES[point.model]
            fill = colour if point.model == OURS else "white"
            ax.plot(
                point.cost,
                point.score,
                color=colour,
                marker=marker,
                markersize=6,
                markerfacecolor=fill,
                linestyle="none",
            )
        ax.set(title=task, ylabel=label)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_locator(LogLocator(base=2, numticks=4))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda count, _: _bytes(count)))
        ax.set_xlim(*_octaves([point.cost for point in points]))
        ax.margins(y=0.15)
    figure.supxlabel(cost, fontsize=9)
    drawn = {point.model for _, points in tasks.values() for point in points}
    models = [model for model in STYLES if model in drawn]
    figure.legend(
        [_handle(model, line=False) for model in models],
        [title(model) for model in models],
        loc="outside upper center",
        ncols=5,
    )
    return figure


def _octaves(costs: Sequence[float]) -> tuple[float, float]:
    """A little more than the powers of two around the costs, so that an axis has marks however near they are to each
    other.
    """
    low, high = math.floor(math.log2(min(costs))), math.ceil(math.log2(max(costs)))
    return 2 ** (low - 0.15), 2 ** (max(high, low + 1) + 0.15)


def _bytes(count: float) -> str:
    """A power of two in the largest unit that keeps it at least 1: "512", "4K", "16M"."""
    power = min(max(int(count).bit_length() - 1, 0) // 10, 3)
    return f"{count / 1024**power:.3g}{('', 'K', 'M', 'G')[power]}"


def pareto(points: Iterable[Point], *, higher: bool) -> list[Point]:
    """Returns the points that no other of at most their cost matches in score, from the cheapest on."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.score if higher else point.score)):
        if not front or (point.score > front[-1].score if higher else point.score < front[-1].score):
            front.append(point)
    return front


def _handle(model: str, *, line: bool = True) -> Line2D:
    colour, dash, marker = STYLES[model]
    fill = colour if line or model == OURS else "white"
    return Line2D(
        [], [], color=colour, linestyle=dash if line else "none", marker=marker, markersize=5, markerfacecolor=fill
    )


def _grid(count: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """As many panels as asked for, row by row."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure, axes = panels(rows, columns, height=0.9 + height * rows)
    for ax in axes[count:]:
        ax.remove()
    return figure, axes[:count]


@style()
def reading(example: Mapping[str, Any]) -> Figure:
    """A real example over what the model does with it: for each block the mean gate and the share that is kept until
    the end.

    A text is broken into lines, of which the last are drawn; tokens among filler and signals are drawn in one piece.
    """
    tokens, blocks = example.get("tokens"), example["blocks"]
    broken = bool(tokens and filler(tokens) is None)
    count = len(tokens or example["signal"])
    lines = _lines(count) if broken else [(0, count)]
    tall = [0.3 if tokens else 1.2, *(0.75 if broken else 1.1 for _ in blocks)]
    figure, axes = panels(len(lines) * len(tall), 1, height=1.2 + sum(tall) * len(lines))
    grid: Any = axes[0].get_gridspec()
    grid.set_height_ratios(tall * len(lines))
    for row, (start, stop) in enumerate(lines):
        top, *rest = axes[row * len(tall) : (row + 1) * len(tall)]
        _input(top, example, start, stop, broken=broken)
        for ax, (name, block) in zip(rest, blocks.items(), strict=True):
            _gate(ax, np.asarray(example["position"]), block, name)
        for ax in (top, *rest):
            ax.set_xlim(start - 0.5, (start + LINE if broken else stop) - 0.5)
        for ax in rest[:-1]:
            ax.tick_params(labelbottom=False)
    axes[0].set_title(example.get("title", ""))
    axes[-1].set_xlabel(f"position ({example.get('unit', 'step')}s)")
    figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _lines(count: int) -> list[tuple[int, int]]:
    """(first, beyond the last) token of each line that is drawn."""
    return [(start, min(start + LINE, count)) for start in range(0, count, LINE)][-LINES_SHOWN:]


def _input(ax: Axes, example: Mapping[str, Any], start: int, stop: int, *, broken: bool) -> None:
    """The tokens as text, those among filler on four heights so that neighbours do not meet; or the signal as lines."""
    tokens = example.get("tokens")
    if not tokens:
        signal = np.asarray(example["signal"], float)
        for channel, (_, dash, _) in zip(signal.T, (LINES * len(signal.T))[: signal.shape[1]], strict=True):
            ax.plot(channel, color="black", linestyle=dash, linewidth=0.8)
        ax.set_ylabel("input")
        ax.tick_params(labelbottom=False)
        return
    blank = filler(tokens)
    shown = [(index, tokens[index]) for index in range(start, stop) if tokens[index] != blank]
    for rank, (index, token) in enumerate(shown):
        height = 0.5 if broken else 0.125 + rank % 4 / 4
        ax.text(
            index, height, _visible(token), ha="center", va="center", fontsize=7, family="monospace", parse_math=False
        )
    ax.set(ylim=(0, 1))
    ax.set_axis_off()


def _visible(token: str) -> str:
    return token.replace("\n", "⏎").replace(" ", "·")


def _gate(ax: Axes, position: np.ndarray, block: Mapping[str, Any], name: str) -> None:
    ax.plot(position, block["gate"], color=BLUE, linewidth=1.3, label="mean gate")
    ax.plot(position, block["kept"], color=ORANGE, linestyle="--", linewidth=1.3, label="share kept until the end")
    ax.set(ylim=(-0.04, 1.04), ylabel=name.replace("_", " "), yticks=(0, 1))
