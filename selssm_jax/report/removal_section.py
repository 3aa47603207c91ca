"""What the report of a compression says of removed parts of blocks: loss by how many went, and by time of a step."""

import pathlib
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from selssm_jax.analysis.results import Results
from selssm_jax.report.document import Block, Paragraph, Picture
from selssm_jax.report.figures import BLUE, GREY, ORANGE, legend, panels, save, style
from selssm_jax.report.sections import section
from selssm_jax.report.tables import Table, block_title, size

PARTS = {
    "blocks": "whole blocks",
    "recurrences": "mixers, each replaced by its skip",
    "attention": "attention, replaced by its skip",
    "mlps": "MLPs",
    "all": "whole blocks, mixers and MLPs",
}
CHOICES = {
    "loss": "the loss on training batches without it and without all that went before it, greedily",
    "expansion": "what the loss is expected to rise by, to second order, from one pass over training batches",
    "information": "the nats by which outputs move, to second order, from one pass over training batches",
    "memory": "the nats that its mixer's output holds of earlier inputs, from one pass over training batches",
    "influence": "how far it turns what it is added to, from one pass over training batches",
    "relevance": "its share of the relevance of the answers, from one pass over training batches",
}
INTRODUCTION = (
    "Of {parts} parts ({kind}) {count} went, one after another: each time that one for which this is least: {by}. "
    "{evaluations}Nothing was trained in between. The metric is that on the validation split; a step is one frame of "
    "one sequence, its time the median of calls in turn with the whole model."
)
PICTURE = (
    "The metric on validation by the number of parts that went, and by the milliseconds of a step of decoding; the "
    "dashed line is the whole model."
)


def removal_section(results: Results, folder: pathlib.Path) -> list[Block]:
    """Returns the section on removed parts, its figure written into `folder`; nothing where none were to be removed."""
    removal = results["removal"]
    if removal is None:
        return []
    count = removal["evaluations"]
    words = INTRODUCTION.format(
        parts=removal["parts"],
        kind=PARTS[removal["kind"]],
        count=len(removal["remainders"]) - 1,
        by=CHOICES[removal["by"]],
        evaluations="" if count is None else f"The batches were read {count:,} time{'s' * (count > 1)}. ",
    )
    picture = Picture(save(draw_removal(results), folder / "removal.png"), PICTURE)
    return section("Parts removed", [Paragraph(words), picture, _tabulate_remainders(results)])


def _tabulate_remainders(results: Results) -> Table:
    metric = results["metric"]
    columns = ("without", f"validation {metric}", "loss", "all that is carried", "parameters", "ms of a step", "time")
    rows = tuple(
        (
            block_title(remainder["gone"][-1]) if remainder["gone"] else "the whole model",
            remainder["validation"][metric],
            f"{remainder['validation_lost']:+.2%}",
            size(remainder["state_bytes"]),
            remainder["parameters"],
            remainder["decode_milliseconds"],
            f"{remainder['decode_share']:.1%}",
        )
        for remainder in results["removal"]["remainders"]
    )
    return Table("Each row is without its part and those above it", columns, rows)


@style()
def draw_removal(results: Results) -> Figure:
    """The metric on validation by parts removed, and by the time of a step."""
    figure, (left, right) = panels(1, 2, height=3.2)
    metric, remainders = results["metric"], results["removal"]["remainders"]
    scores: list[Any] = [remainder["validation"][metric] for remainder in remainders]
    scores = [score if np.isfinite(score) else np.nan for score in scores]
    times = [remainder["decode_milliseconds"] for remainder in remainders]
    looks: dict[str, Any] = {"color": BLUE, "marker": "o", "markersize": 4}
    left.plot(range(len(scores)), scores, label="parts removed", **looks)
    right.plot(times, scores, linestyle=":", **looks)
    right.plot(times[-1], scores[-1], color=ORANGE, marker="*", markersize=11, linestyle="none", label="the last")
    for ax in (left, right):
        ax.axhline(scores[0], color=GREY, linestyle="--", linewidth=1)
    left.set(xlabel="parts removed", ylabel=f"validation {metric}", xticks=range(len(scores)))
    right.set(xlabel="milliseconds of a step", ylabel=f"validation {metric}")
    legend(figure, left, right)
    return figure
