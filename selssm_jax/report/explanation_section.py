"""The section of a report that says why the model said it: relevance, hidden attention, and the bits beside it."""

import pathlib

import numpy as np
from matplotlib.figure import Figure

from selssm_jax.analysis.results import Results
from selssm_jax.report.document import Block, Paragraph, Picture
from selssm_jax.report.figures import BLUE, ORANGE, legend, panels, save, style
from selssm_jax.report.relevance_block import Relevances
from selssm_jax.report.sections import section
from selssm_jax.report.tables import Cell, Table, block_title

METHODS = {"lrp": "relevance by the rules of MambaLRP", "gradient_x_input": "gradient times input"}
CAPTION = (
    "The first {count} of the {split} split, by {method}. Choose an answer: the blue inputs speak for it, the orange "
    "ones against it. Choose an input: so coloured are the answers that it went into. By mouse, by touch, or by the "
    "tab and arrow keys."
)
ATTENTION = (
    "Hidden attention of the first sequence: how much of what is read at a step, downwards, was written at another, to "
    "the right; the size of the mean over channels, darkest the least."
)
LAGS = (
    "Two instruments on one axis: the bits of the input k steps back that a decoder reads from the state (left axis), "
    "and the mean size of hidden attention at that lag (right axis)."
)
UNMEASURED = "How many bits the states hold by lag was not measured for this split: add --measure."
NO_ATTENTION = "No block is linear in what it reads, so there is no hidden attention."


def describe_explanation(results: Results, folder: pathlib.Path) -> list[Block]:
    """Returns the section, its figures written into `folder`; nothing where nobody asked for it."""
    explanation = results.get("explanation")
    if not explanation:
        return []
    count = len(explanation["examples"])
    sequences = "sequence" if count == 1 else f"{count} sequences"
    caption = CAPTION.format(count=sequences, split=explanation["split"], method=METHODS[explanation["method"]])
    blocks: list[Block] = [Relevances(explanation["examples"], caption)]
    if not explanation["attention"]:
        return section("Why it said so", [*blocks, Paragraph(NO_ATTENTION)])
    blocks.append(Picture(save(draw_attention(explanation["attention"]), folder / "attention.png"), ATTENTION))
    if not explanation["lags"]:
        return section("Why it said so", [*blocks, Paragraph(UNMEASURED)])
    blocks.append(Picture(save(draw_lags(explanation["lags"]), folder / "lags.png"), LAGS))
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (block_title(name), len(lags["lags"]), lags["spearman"]) for name, lags in explanation["lags"].items()
    )
    table = Table("Do they fade alike?", ("block", "lags", "Spearman's correlation"), rows)
    return section("Why it said so", [*blocks, table])


@style()
def draw_attention(attention: Results) -> Figure:
    """A picture for each block, its largest numbers brightest."""
    columns = min(len(attention), 4)
    figure, axes = panels(-(-len(attention) // columns), columns, height=2.6 * -(-len(attention) // columns))
    for ax, (name, block) in zip(axes, attention.items(), strict=False):
        picture = np.asarray(block["picture"], float)
        top = float(np.quantile(picture, 0.995)) or 1.0
        ax.imshow(picture, vmin=0, vmax=top, interpolation="nearest", aspect="equal")
        ax.set(title=block_title(name), xticks=[], yticks=[], xlabel="written", ylabel="read")
        ax.grid(visible=False)
    for ax in axes[len(attention) :]:
        ax.remove()
    return figure


@style()
def draw_lags(curves: Results) -> Figure:
    """Bits and hidden attention by lag, two axes for each block."""
    figure, axes = panels(1, len(curves), height=2.9)
    for ax, (name, lags) in zip(axes, curves.items(), strict=True):
        places, other = np.asarray(lags["lags"]) + 1, ax.twinx()
        ax.plot(places, lags["bits"], color=BLUE, marker="o", markersize=3.5, label="bits in the state")
        other.plot(places, lags["attention"], color=ORANGE, marker="s", markersize=3.5, linestyle="--")
        ax.plot([], [], color=ORANGE, marker="s", markersize=3.5, linestyle="--", label="hidden attention")
        ax.set(title=block_title(name), xscale="log", xlabel="k + 1 steps", ylabel="bits", ylim=(0, None))
        other.set(ylim=(0, None))
        other.grid(visible=False)
    legend(figure, *axes)
    return figure
