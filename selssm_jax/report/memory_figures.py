"""Figures of what a memory holds, in the style of `figures`; every function takes results of `memory.measure`, in
bits.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from selssm_jax.report.figures import BLUE, LINES, ORANGE, drawable, legend, panels, style
from selssm_jax.report.tables import block_title

Results = Mapping[str, Any]


@style()
def retention(blocks: Mapping[str, Results]) -> Figure:
    """Lower bounds by lag, one line a block, with bands of two standard errors and all there is to know as a dotted
    line.
    """
    figure, (ax,) = panels(1, 1, height=3.6)
    for (name, block), (colour, dash, marker) in zip(blocks.items(), _lines(blocks), strict=True):
        bounds = block["retention"]
        low, error = np.asarray(bounds["lower"]), 2 * np.asarray(bounds["stderr"])
        ax.plot(
            bounds["lags"],
            low,
            color=colour,
            linestyle=dash,
            marker=marker,
            markersize=3.5,
            label=f"{block_title(name)} (lower bound)",
        )
        ax.fill_between(bounds["lags"], low - error, low + error, color=colour, alpha=0.18, linewidth=0)
    if bounds["entropy"]:
        ax.plot(
            bounds["lags"], bounds["entropy"], color="black", linestyle=":", linewidth=1, label="entropy of the input"
        )
    _lag_axis(ax, bounds["lags"])
    ax.set(ylabel="known of that input (bits)")
    legend(figure, ax)
    return figure


@style()
def all_of_the_past(known: Mapping[str, list[Results]]) -> Figure:
    """Bounds by step, one panel a block: bars from lower to upper, two standard errors beyond both, and the exact
    value.
    """
    figure, axes = panels(-(-len(known) // 2), min(len(known), 2), height=0.6 + 2.2 * -(-len(known) // 2))
    for ax, (name, moments) in zip(axes, known.items(), strict=False):
        steps = [one["moment"] for one in moments]
        low, high, error = (np.asarray([one[key] for one in moments]) for key in ("lower", "upper", "stderr"))
        ax.vlines(steps, low - 2 * error, high + 2 * error, color=BLUE, linewidth=1, label="± 2 standard errors")
        ax.vlines(steps, low, high, color=BLUE, linewidth=5, label="lower to upper bound")
        exact = [(one["moment"], one["exact"]) for one in moments if one["exact"] is not None]
        if exact:
            ax.plot(*zip(*exact, strict=True), color=ORANGE, marker="x", linestyle="none", label="exact")
        # not from 0: the intervals are to be seen
        ax.set(title=block_title(name), xlabel="step", ylabel="known of all inputs (bits)")
    for ax in axes[len(known) :]:
        ax.remove()
    legend(figure, axes[0])
    return figure


@style()
def components(maps: Mapping[str, Results]) -> Figure:
    """Components by lags, one image a block, components sorted by the lag of which they know most."""
    lags = {name: one["lags"] for name, one in maps.items()}
    ticks = {name: {place: str(lag) for place, lag in list(enumerate(these))[::3]} for name, these in lags.items()}
    return _draw_maps({name: one["bits"] for name, one in maps.items()}, ticks, "lag (steps)")


@style()
def by_answer(maps: Mapping[str, Results]) -> Figure:
    """Components by answers, one image a block, components sorted by the answer of which they know most."""
    ticks = {
        name: {place: drawable(answer, f"answer {place + 1}") for place, answer in enumerate(one["answers"])}
        for name, one in maps.items()
    }
    return _draw_maps({name: one["components"]["bits"] for name, one in maps.items()}, ticks, "answer")


def _draw_maps(maps: Mapping[str, list[list[float]]], ticks: Mapping[str, dict[int, str]], across: str) -> Figure:
    """Bits of components by columns, of which some have ticks, one image a block."""
    columns = min(len(maps), 4)
    figure, axes = panels(-(-len(maps) // columns), columns, height=0.6 + 2.4 * -(-len(maps) // columns))
    tables = {name: np.maximum(np.asarray(bits), 0) for name, bits in maps.items()}
    highest = max(max(table.max() for table in tables.values()), 1e-3)
    for ax, (name, table) in zip(axes, tables.items(), strict=False):
        order = np.lexsort((table.max(axis=1), table.argmax(axis=1)))
        image = ax.imshow(table[order], aspect="auto", origin="lower", vmin=0, vmax=highest, interpolation="nearest")
        ax.set_xticks(list(ticks[name]), list(ticks[name].values()))
        ax.set(title=block_title(name), xlabel=across)
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(visible=False)
    axes[0].set_ylabel("component (rank)")
    for ax in axes[len(tables) :]:
        ax.remove()
    figure.colorbar(image, ax=axes[: len(tables)], label="bits (estimate)", pad=0.01, fraction=0.04)
    return figure


@style()
def by_gate(parts: Mapping[str, Results]) -> Figure:
    """Bits known of past inputs over the mean gate at which they were read, one line a block."""
    figure, (ax,) = panels(1, 1, height=3.2)
    for (name, part), (colour, dash, marker) in zip(parts.items(), _lines(parts), strict=True):
        error = 2 * np.asarray(part["stderr"])
        ax.errorbar(
            part["gate"],
            part["bits"],
            error,
            color=colour,
            linestyle=dash,
            marker=marker,
            markersize=4,
            capsize=2,
            label=block_title(name),
        )
    ax.set(
        xlabel="mean gate when the input was read (0 keeps, 1 updates)", ylabel="still known of it (bits, lower bound)"
    )
    legend(figure, ax)
    return figure


@style()
def bottleneck(points: Mapping[str, Results]) -> Figure:
    """The curve of a Gaussian process and every block's point under it."""
    figure, (ax,) = panels(1, 1, height=3.4)
    curve = next(iter(points.values()))["curve"]
    ax.plot(curve["past"], curve["future"], color="black", label="the most there is (Gaussian bottleneck)")
    edge = max([1.0, *curve["past"], *(one["past"] or 0 for one in points.values())])
    for (name, one), (colour, _, marker) in zip(points.items(), _lines(points), strict=True):
        at = edge if one["past"] is None else one["past"]
        ax.errorbar(
            [at],
            [one["future"]],
            [2 * one["stderr"]],
            color=colour,
            marker=marker,
            markersize=6,
            capsize=3,
            linestyle="none",
            label=block_title(name),
        )
    ax.set(
        xlabel="known of the past (bits, at most)",
        ylabel="known of the future (bits, at least)",
        xlim=(0, 1.05 * edge),
        ylim=(0, None),
    )
    legend(figure, ax)
    return figure


def _lag_axis(ax: Axes, lags: list[int]) -> None:
    ax.set_xscale("symlog", linthresh=1, linscale=0.5)
    ticks = lags[::3]
    ax.set_xticks(ticks, [str(lag) for lag in ticks])
    ax.set_xticks([], minor=True)
    ax.set(xlabel="lag k (steps back)", xlim=(-0.1, max(lags[-1] * 1.1, 1)))


def _lines(blocks: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    return [LINES[index % len(LINES)] for index in range(len(blocks))]
