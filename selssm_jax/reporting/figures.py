"""Figures of a report, as Matplotlib figures without a window: readable in black and white and by colour-blind people.

Lines differ by dash and marker as well as by colour (Okabe and Ito), images are cividis, the ground of text goes from white
to their blue, axes carry units. Every function takes plain arrays and returns a `Figure`; `save` writes it as PNG.
"""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6B6B6B"
LINES = tuple(zip((BLUE, ORANGE, GREEN, "black", GREY, "#CC79A7"), ("-", "--", "-.", ":", "-", "--"), ("o", "s", "^", "D", "v", "x"), strict=True))
RC = {
    "font.size": 9, "axes.titlesize": 9.5, "axes.labelsize": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#444444",
    "axes.grid": True, "grid.color": "#E3E3E3", "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False, "legend.fontsize": 8,
    "xtick.labelsize": 8, "ytick.labelsize": 8, "lines.linewidth": 1.4, "image.cmap": "cividis",
}  # fmt: skip
SHADES = LinearSegmentedColormap.from_list("shades", ["white", BLUE, "#002B45"])
WIDTH, DPI = 8.2, 130
COLUMNS, ACROSS = 96, 32  # characters of a line of shaded text, tokens of a line of answers


class Curve(NamedTuple):
    """Values at steps, under a name."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The settings under which a figure is drawn and saved; also a decorator."""
    with matplotlib.rc_context(RC):
        yield


@style()
def save(figure: Figure, path: pathlib.Path) -> pathlib.Path:
    """Writes a figure as PNG and returns its path."""
    figure.savefig(path, dpi=DPI, facecolor="white")
    return path


@style()
def learning_curve(train: Curve, validation: Curve, *, label: str, chosen: int, references: Mapping[str, float]) -> Figure:
    """A metric in training and on validation, the step whose parameters were evaluated, and references as horizontal lines."""
    figure, (ax,) = panels(1, 1, height=3.6)
    ax.plot(train.steps, train.values, color=BLUE, alpha=0.75, linewidth=1, label=train.name)
    ax.plot(validation.steps, validation.values, color=ORANGE, marker="o", markersize=4, label=validation.name)
    ax.axvline(chosen, color="black", linestyle=":", linewidth=1.1, label=f"evaluated: step {chosen}")
    for dash, (name, value) in zip(("--", "-.", (0, (1, 1))), references.items(), strict=False):
        ax.axhline(value, color=GREY, linestyle=dash, linewidth=1, label=name)
    ax.set(xlabel="training step", ylabel=label, xlim=(0, None))
    figure.legend(loc="outside lower center", ncols=5)
    return figure


@style()
def gate_activity(blocks: Mapping[str, Mapping[str, Any]]) -> Figure:
    """One row a block: histogram of gate values, mean gate of every component, dimensions over time.

    Each value of `blocks` is a `Sums.summary()` with first_sequence, the effective dimension of every step of one sequence.
    """
    figure, axes = panels(len(blocks), 3, height=0.75 + 1.7 * len(blocks))
    rows = np.reshape(axes, (len(blocks), 3))
    for (name, block), (histogram, component, time) in zip(blocks.items(), rows, strict=True):
        _histogram(histogram, block)
        _components(component, block)
        _dimensions(time, block)
        histogram.set_ylabel(f"{name.replace('_', ' ')}\nshare of gates")
    rows[0, 0].set_title("gate values")
    rows[0, 1].set_title("mean gate of each component, sorted")
    rows[0, 2].set_title("components updated, by position")
    for ax, label in zip(rows[-1], ("gate value", "component (rank)", "position (steps)"), strict=True):
        ax.set_xlabel(label)
    figure.legend(*rows[0, 2].get_legend_handles_labels(), loc="outside lower right", ncols=4)
    return figure


@style()
def forecast(past: np.ndarray, truth: np.ndarray, guess: np.ndarray, *, names: Sequence[str], units: str) -> Figure:
    """The lookback (T, C), what followed (H, C) and what was forecast (H, C), one panel a channel."""
    columns = 1 if len(names) < 3 else 2
    figure, axes = panels(-(-len(names) // columns), columns, height=0.9 + 1.45 * -(-len(names) // columns), sharex=True)
    before, after = np.arange(-len(past), 0), np.arange(len(truth))
    for channel, (ax, name) in enumerate(zip(axes, names, strict=False)):
        ax.plot(before, past[:, channel], color=GREY, linewidth=1, label="input")
        ax.plot(after, truth[:, channel], color="black", label="what followed")
        ax.plot(after, guess[:, channel], color=ORANGE, linestyle="--", linewidth=1.7, label="forecast")
        ax.axvline(-0.5, color="black", linestyle=":", linewidth=0.8)
        ax.set_title(name, loc="left")
    _drop(axes[len(names) :])
    for ax in axes[: len(names)][-columns:]:
        ax.tick_params(labelbottom=True)
    figure.supylabel(units, fontsize=9)
    figure.supxlabel("time from the moment of the forecast (steps)", fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return figure


@style()
def waveform(signal: np.ndarray, gates: Mapping[str, np.ndarray], *, duration: float, unit: str, title: str) -> Figure:
    """A signal (T, C) over its gates, {block: (F, n)}: one image a block, components sorted by their mean."""
    figure, (top, *rows) = panels(1 + len(gates), 1, height=1.9 + 1.15 * len(gates), sharex=True)
    top.plot(np.linspace(0, duration, len(signal), endpoint=False), signal, color="black", linewidth=0.7)
    top.set(title=title, ylabel="amplitude", xlim=(0, duration))
    for ax, (name, gate) in zip(rows, gates.items(), strict=True):
        order = np.argsort(gate.mean(0))
        image = ax.imshow(gate[:, order].T, aspect="auto", origin="lower", extent=(0, duration, 0, gate.shape[1]), vmin=0, vmax=1, interpolation="nearest")
        ax.set_ylabel(f"{name.replace('_', ' ')}\ncomponent (rank)")
        ax.grid(visible=False)
    (rows or [top])[-1].set_xlabel(f"time ({unit})")
    if rows:
        figure.colorbar(image, ax=rows, label="gate (0 keeps, 1 updates)", pad=0.01, fraction=0.04)
    return figure


@style()
def shaded_text(tokens: Sequence[str], shades: Mapping[str, np.ndarray]) -> Figure:
    """The same text once for every shade, {label: one value a token}: the darker its ground, the larger the value."""
    places, lines = layout(tokens)
    figure, axes = panels(len(shades), 1, height=(0.75 + 0.175 * lines) * len(shades))
    for ax, (label, values) in zip(axes, shades.items(), strict=True):
        norm = _norm(values)
        _shade(ax, tokens, places, norm(values))
        ax.set(xlim=(0, COLUMNS), ylim=(lines, 0))
        _shade_bar(figure, ax, norm, label)
    return figure


@style()
def answers(tokens: Sequence[str], truth: Sequence[str], guess: Sequence[str], scored: np.ndarray, gate: np.ndarray) -> Figure:
    """A token sequence with its mean gate as the ground; under each scored step the model's answer, a wrong one boxed over the truth."""
    lines = [range(start, min(start + ACROSS, len(tokens))) for start in range(0, len(tokens), ACROSS)]
    heights = [1.7 if scored[line.start : line.stop].any() else 0.62 for line in lines]
    figure, (ax,) = panels(1, 1, height=0.7 + 0.36 * sum(heights))
    norm = _norm(gate)
    for line, top in zip(lines, np.cumsum([0.0, *heights[:-1]]), strict=True):
        for column, index in enumerate(line):
            _tile(ax, (column, top, 1, 0.56), tokens[index], norm(gate[index]))
            if scored[index]:
                _answer(ax, column + 0.5, top, guess[index], truth[index])
    ax.set(xlim=(0, ACROSS), ylim=(sum(heights), 0))
    _shade_bar(figure, ax, norm, "mean gate of the step")
    return figure


def _answer(ax: Axes, x: float, top: float, guess: str, truth: str) -> None:
    if guess == truth:
        _mark(ax, x, top + 0.85, guess, "black")
        return
    _mark(ax, x, top + 0.85, guess, ORANGE, bbox={"boxstyle": "square,pad=0.15", "edgecolor": ORANGE, "facecolor": "white"})
    _mark(ax, x, top + 1.27, truth, GREY)


def layout(tokens: Sequence[str]) -> tuple[list[tuple[int, int]], int]:
    """Returns ((column, line) of every token, number of lines): left to right, broken at newlines and at COLUMNS."""
    places, column, line = [], 0, 0
    for token in tokens:
        width = max(len(token), 1)
        if column and column + width > COLUMNS:
            column, line = 0, line + 1
        places.append((column, line))
        column, line = (0, line + 1) if token == "\n" else (column + width, line)
    return places, line + 1


@style()
def carried(models: Sequence[Curve]) -> Figure:
    """Bytes of the state of one sequence by position, a line a model, both axes logarithmic: a cache rises by one decade a decade. At most six models."""
    figure, (ax,) = panels(1, 1, height=3.6)
    for curve, (color, dash, marker) in zip(models, LINES[: len(models)], strict=True):
        ax.plot(curve.steps, curve.values, color=color, linestyle=dash, marker=marker, markersize=4, label=curve.name)
    ax.set(xscale="log", yscale="log", xlabel="position (steps read)", ylabel="state of one sequence (bytes)")
    figure.legend(loc="outside lower center", ncols=6)
    return figure


def panels(rows: int, columns: int, *, height: float, sharex: bool = False) -> tuple[Figure, list[Axes]]:
    """Returns an empty figure of the width of a page and its panels, row by row."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=sharex)
    return figure, list(axes.ravel())


def _histogram(ax: Axes, block: Mapping[str, Any]) -> None:
    counts = np.asarray(block["histogram"]["counts"], float)
    ax.stairs(counts / counts.sum(), block["histogram"]["edges"], fill=True, color=BLUE, alpha=0.85)
    ax.axvline(block["mean"], color="black", linestyle=":", linewidth=1.1)
    ax.text(0.97, 0.93, f"mean {block['mean']:.3f}", transform=ax.transAxes, ha="right", va="top", fontsize=8)
    ax.set_xlim(0, 1)


def _components(ax: Axes, block: Mapping[str, Any]) -> None:
    ax.plot(np.sort(block["by_component"])[::-1], color=BLUE)
    ax.set(ylim=(0, 1.02), xlim=(0, max(block["components"] - 1, 1)))


def _dimensions(ax: Axes, block: Mapping[str, Any]) -> None:
    time = block["over_time"]
    ax.plot(block["first_sequence"], color=GREY, linewidth=0.7, label="effective, one sequence")
    for (name, label), colour, dash in zip(DIMENSIONS.items(), (BLUE, ORANGE, GREEN), ("-", "--", "-."), strict=True):
        ax.plot(time["position"], time[name], color=colour, linestyle=dash, linewidth=1.2, label=label)
    highest = max(max(time[name]) for name in DIMENSIONS)
    ax.set(ylim=(0, 1.25 * max(highest, 1e-6)), xlim=(0, max(time["position"][-1], 1)))
    ax.text(0.97, 0.97, f"of n = {block['components']}", transform=ax.transAxes, ha="right", va="top", fontsize=8)


DIMENSIONS = {"effective_dimension": "effective, sum of g", "participation_ratio": "participation ratio", "hard_count": "gates above 1/2"}


def _norm(values: np.ndarray) -> Normalize:
    """The scale of a shade: from the first to the last percentile, so that a few large values leave the others visible."""
    low, high = np.quantile(values, (0.01, 0.99))
    return Normalize(low, max(high, low + 1e-6), clip=True)


def _shade(ax: Axes, tokens: Sequence[str], places: list[tuple[int, int]], levels: np.ndarray) -> None:
    for token, (column, line), level in zip(tokens, places, levels, strict=True):
        _tile(ax, (column, line + 0.04, max(len(token), 1), 0.92), token.replace("\n", "⏎"), level)


def _tile(ax: Axes, place: tuple[float, float, float, float], text: str, level: float) -> None:
    """Writes text on a rectangle (x, y, width, height) of the shade `level`."""
    x, y, width, height = place
    ax.add_patch(Rectangle((x, y), width, height, facecolor=SHADES(level), linewidth=0))
    _mark(ax, x + width / 2, y + height / 2, text, "white" if level > 0.4 else "black", family="monospace")


def _mark(ax: Axes, x: float, y: float, text: str, colour: str, **options: Any) -> None:
    ax.text(x, y, text, ha="center", va="center_baseline", fontsize=8, color=colour, parse_math=False, **options)


def _shade_bar(figure: Figure, ax: Axes, norm: Normalize, label: str) -> None:
    ax.set_axis_off()
    figure.colorbar(ScalarMappable(norm, SHADES), ax=ax, location="top", label=label, ticks=MaxNLocator(5), fraction=0.02, pad=0.01, shrink=0.5, aspect=40)


def _drop(axes: Sequence[Axes]) -> None:
    for ax in axes:
        ax.remove()
