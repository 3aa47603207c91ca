"""Figures of a report, as Matplotlib figures without a window: readable in black and white and by colour-blind people.

Lines differ by dash and marker as well as by colour (Okabe and Ito), images are cividis, axes carry units. Every
function takes plain arrays and returns a `Figure`; `save` writes it as PNG. No text is read as a formula, no number
breaks an axis.
"""

import contextlib
import pathlib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import LogFormatter, LogFormatterSciNotation

from selssm_jax.report.tables import block_title, clean, number

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6B6B6B"
LINES = tuple(
    zip(
        (BLUE, ORANGE, GREEN, "black", GREY, "#CC79A7"),
        ("-", "--", "-.", ":", "-", "--"),
        ("o", "s", "^", "D", "v", "x"),
        strict=True,
    )
)
RC: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "lines.linewidth": 1.4,
    "image.cmap": "cividis",
    "text.parse_math": False,  # names of columns and classes are anybody's, and "$\\frac{$" is one of them
}
WIDTH, DPI = 8.2, 130
LABEL = 48  # characters of a name that are drawn
CHARACTER, HANDLE = 4.6, 42.0  # points of a letter of a legend, and of what stands before its name
SPREAD = 10  # of errors, from which on their axis is logarithmic
LARGEST = 1e150  # that is drawn: the lay-out of an axis squares what it holds
FIRST = 0.1  # share of the steps of a curve that may leave the figure: they would flatten all that follows


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
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis) if axis.get_scale() == "log"):
        for kind in ("major", "minor"):
            if isinstance(getattr(axis, f"get_{kind}_formatter")(), LogFormatterSciNotation):
                transform: Any = axis.get_transform()
                getattr(axis, f"set_{kind}_formatter")(Decades(base=transform.base, labelOnlyBase=kind == "major"))
    figure.savefig(path, dpi=DPI, facecolor="white")
    return path


@style()
def learning_curve(
    train: Curve, validation: Curve, *, label: str, chosen: int, references: Mapping[str, float]
) -> Figure:
    """A metric in training and on validation, the step whose parameters were evaluated, and references as horizontal
    lines.

    The axis holds all points after the first tenth of the steps, and the reference that is nearest to the last; others
    may leave it, and are named then.
    """
    figure, (ax,) = panels(1, 1, height=3.6)
    ax.plot(train.steps, finite(train.values), color=BLUE, alpha=0.75, linewidth=1, label=train.name)
    ax.plot(validation.steps, finite(validation.values), color=ORANGE, marker="o", markersize=4, label=validation.name)
    ax.axvline(chosen, color="black", linestyle=":", linewidth=1.1, label=f"evaluated: step {chosen}")
    low, high = _ends([train, validation], list(references.values()))
    for dash, (name, value) in zip(("--", "-.", (0, (1, 1))), references.items(), strict=False):
        outside = high is not None and low is not None and not low <= value <= high
        ax.axhline(
            value,
            color=GREY,
            linestyle=dash,
            linewidth=1,
            label=f"{name}: {number(value)}, not drawn" if outside else name,
        )
    ax.set(xlabel="training step", ylabel=label, xlim=(0, None), ylim=(low, high))
    legend(figure, ax)
    return figure


@style()
def by_horizon(errors: Sequence[float], rival: Sequence[float], *, label: str) -> Figure:
    """Errors by step of the horizon, and those of repeating the last value."""
    figure, (ax,) = panels(1, 1, height=3.0)
    steps = np.arange(1, len(errors) + 1)
    ax.plot(
        steps, finite(errors), color=BLUE, marker="o" if len(steps) < 30 else None, markersize=4, label="this model"
    )
    ax.plot(steps, finite(rival), color=GREY, linestyle="--", label="repeating the last value")
    ax.set(xlabel="step of the horizon", ylabel=label)
    drawn = np.concatenate([line.get_ydata() for line in ax.lines])
    if np.nanmin(drawn, initial=np.inf) > 0 and np.nanmax(drawn, initial=0) > SPREAD * np.nanmin(drawn, initial=np.inf):
        ax.set_yscale("log")
    else:
        ax.set_ylim(0, None)
    legend(figure, ax)
    return figure


def _ends(curves: Sequence[Curve], references: Sequence[float]) -> tuple[float | None, float | None]:
    last = max((step for curve in curves for step in curve.steps), default=0)
    late = [
        value for curve in curves for step, value in zip(curve.steps, curve.values, strict=True) if step > FIRST * last
    ]
    values = finite(late)
    values = values[np.isfinite(values)]
    if not len(values):
        return None, None
    near = min(references, key=lambda value: abs(value - values[-1]), default=values[-1])
    values = np.append(values, near)
    room = 0.06 * np.ptp(values) or 0.06 * abs(values[0]) or 1.0
    return float(values.min() - room), float(values.max() + room)


@style()
def gate_activity(blocks: Mapping[str, Mapping[str, Any]]) -> Figure:
    """One row a block: histogram of gate values, mean gate of every component, dimensions over time.

    Each value of `blocks` is a `Sums.summary()` with first_sequence, the effective dimension of every step of one
    sequence.
    """
    figure, axes = panels(len(blocks), 3, height=0.75 + 1.7 * len(blocks))
    rows: np.ndarray = np.array(axes, object).reshape(len(blocks), 3)
    for (name, block), (histogram, component, time) in zip(blocks.items(), rows, strict=True):
        _histogram(histogram, block)
        _components(component, block)
        _dimensions(time, block)
        histogram.set_ylabel(f"{block_title(name)}\nshare of gates")
    rows[0, 0].set_title("gate values")
    rows[0, 1].set_title("mean gate of each component, sorted")
    rows[0, 2].set_title("components updated, by position")
    for ax, label in zip(rows[-1], ("gate value", "component (rank)", "position (steps)"), strict=True):
        ax.set_xlabel(label)
    legend(figure, rows[0, 2])
    return figure


@style()
def gate_bits(blocks: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draws the bits that a step gains and forgets by position, a row a block, of gates that know of bits."""
    figure, axes = panels(len(blocks), 1, height=1.9 * len(blocks) + 0.5, sharex=True)
    for ax, (name, block) in zip(axes, blocks.items(), strict=True):
        time = block["over_time"]
        ax.plot(time["position"], finite(time["bits_gained"]), color=BLUE, label="gained")
        ax.plot(time["position"], finite(time["bits_forgotten"]), color=ORANGE, linestyle="--", label="forgotten")
        ax.set(ylabel=f"{block_title(name)}\nbits a step", ylim=(0, None), xlim=(0, max(time["position"][-1], 1)))
    axes[-1].set_xlabel("position")
    legend(figure, axes[0])
    return figure


@style()
def forecast(
    past: np.ndarray,
    truth: np.ndarray,
    guess: np.ndarray,
    *,
    names: Sequence[str],
    units: str,
    fan: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
) -> Figure:
    """The lookback (T, C), what followed (H, C) and what was forecast (H, C), one panel a channel, over a `fan` of
    ranges (lower and upper ends, (H, C)) by name, the widest first.
    """
    columns, ranges = 1 if len(names) < 3 else 2, fan or {}
    figure, axes = panels(
        -(-len(names) // columns), columns, height=0.9 + 1.45 * -(-len(names) // columns), sharex=True
    )
    before, after = np.arange(-len(past), 0), np.arange(len(truth))
    for channel, (ax, name) in enumerate(zip(axes, names, strict=False)):
        for shade, (label, (low, high)) in zip(np.linspace(0.15, 0.35, len(ranges)), ranges.items(), strict=True):
            ends = finite(low[:, channel]), finite(high[:, channel])
            ax.fill_between(after, *ends, color=ORANGE, alpha=shade, linewidth=0, label=label)
        ax.plot(before, finite(past[:, channel]), color=GREY, linewidth=1, label="input")
        ax.plot(after, finite(truth[:, channel]), color="black", label="what followed")
        ax.plot(after, finite(guess[:, channel]), color=ORANGE, linestyle="--", linewidth=1.7, label="forecast")
        ax.axvline(-0.5, color="black", linestyle=":", linewidth=0.8)
        ax.set_title(drawable(name, f"channel {channel + 1}"), loc="left")
    _drop(axes[len(names) :])
    for ax in axes[: len(names)][-columns:]:
        ax.tick_params(labelbottom=True)
    figure.supylabel(units, fontsize=9)
    figure.supxlabel("time from the moment of the forecast (steps)", fontsize=9)
    legend(figure, axes[0], place="outside upper right")
    return figure


@style()
def waveform(
    signal: np.ndarray,
    gates: Mapping[str, np.ndarray],
    *,
    duration: float,
    unit: str,
    title: str,
    steps: np.ndarray | None = None,
) -> Figure:
    """A signal (T, C) over its gates, {block: (F, n)}: one image a block, components sorted by their mean. Frames where
    `steps` is True have a mark under the signal.
    """
    figure, (top, *rows) = panels(1 + len(gates), 1, height=1.9 + 1.15 * len(gates), sharex=True)
    top.plot(np.linspace(0, duration, len(signal), endpoint=False), finite(signal), color="black", linewidth=0.7)
    top.set(title=title, ylabel="amplitude", xlim=(0, duration))
    if steps is not None:
        times = (np.flatnonzero(steps) + 0.5) * duration / len(steps)
        top.plot(times, np.full(len(times), 0.05), "|", color="tab:red", transform=top.get_xaxis_transform())
    for ax, (name, gate) in zip(rows, gates.items(), strict=True):
        order = np.argsort(gate.mean(0))
        image = ax.imshow(
            gate[:, order].T,
            aspect="auto",
            origin="lower",
            extent=(0, duration, 0, gate.shape[1]),
            vmin=0,
            vmax=1,
            interpolation="nearest",
        )
        ax.set_ylabel(f"{block_title(name)}\ncomponent (rank)")
        ax.grid(visible=False)
    (rows or [top])[-1].set_xlabel(f"time ({unit})")
    if rows:
        figure.colorbar(image, ax=rows, label="gate (0 keeps, 1 updates)", pad=0.01, fraction=0.04)
    return figure


@style()
def draw_state_bytes(models: Sequence[Curve]) -> Figure:
    """Bytes of the state of one sequence by position, a line a model, both axes logarithmic: a cache rises by one
    decade a decade. At most six models.
    """
    figure, (ax,) = panels(1, 1, height=3.6)
    for curve, (color, dash, marker) in zip(models, LINES[: len(models)], strict=True):
        ax.plot(curve.steps, curve.values, color=color, linestyle=dash, marker=marker, markersize=4, label=curve.name)
    ax.set(xscale="log", yscale="log", xlabel="position (steps read)", ylabel="state of one sequence (bytes)")
    legend(figure, ax)
    return figure


def panels(rows: int, columns: int, *, height: float, sharex: bool = False) -> tuple[Figure, list[Axes]]:
    """Returns an empty figure of the width of a page and its panels, row by row."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=sharex)
    return figure, list(axes.ravel())


def legend(
    figure: Figure, *axes: Axes, place: Literal["outside lower center", "outside upper right"] = "outside lower center"
) -> None:
    """Writes the legend of panels outside of them, in as many columns as the figure is wide enough for."""
    entries = [entry for ax in axes for entry in zip(*ax.get_legend_handles_labels(), strict=True)]
    if not entries:
        return
    handles, labels = [handle for handle, _ in entries], [shorten(label) for _, label in entries]
    across = max(1, min(len(labels), int(figure.get_figwidth() * 72 / (HANDLE + CHARACTER * max(map(len, labels))))))
    figure.legend(handles, labels, loc=place, ncols=across)


class Decades(LogFormatter):
    """Ticks of a logarithmic axis as plain numbers, where Matplotlib would write formulas."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Returns the label of a tick, empty where Matplotlib would leave it out."""
        return _tick(x) if super().__call__(x, pos) else ""


def _tick(value: float) -> str:
    """A number as an axis shows it: 0.01, 100, 65,536, 1e9."""
    return (
        f"{value:,g}"
        if 1e-4 < abs(value) < 1e6
        else f"{value:.3g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")
    )


def finite(values: Any) -> np.ndarray:
    """Returns values that can be drawn: what is not a number, or is too large for an axis, is a gap."""
    values = np.asarray(
        [np.nan if value is None else value for value in values] if isinstance(values, list | tuple) else values,
        np.float64,
    )
    return np.where(np.abs(values) < LARGEST, values, np.nan)


def shorten(text: str) -> str:
    """Returns a name in at most `LABEL` characters of one line."""
    line = " ".join(clean(text).split())
    return line if len(line) <= LABEL else f"{line[: LABEL - 1]}…"


def drawable(text: str, instead: str) -> str:
    """Returns a name as a figure can show it, or `instead`: where the figures' font lacks a letter of it, or it is
    written from right to left.
    """
    line = shorten(text)
    glyphs = get_font(findfont("DejaVu Sans")).get_charmap()
    shown = line and all(
        ord(letter) in glyphs and unicodedata.bidirectional(letter) not in ("R", "AL", "AN") for letter in line
    )
    return line if shown else instead


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


DIMENSIONS = {
    "effective_dimension": "effective, sum of g",
    "participation_ratio": "participation ratio",
    "hard_count": "gates above 1/2",
}


def _drop(axes: Sequence[Axes]) -> None:
    for ax in axes:
        ax.remove()
