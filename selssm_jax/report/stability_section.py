"""The section of a report on stability: what is certified of each block, beside what was measured of its memory."""

import math
import pathlib
import re
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from selssm_jax.analysis.results import Results
from selssm_jax.report.document import Block, Paragraph, Picture
from selssm_jax.report.figures import LINES, finite, legend, panels, save, style
from selssm_jax.report.memory_section import describe_horizon
from selssm_jax.report.sections import section
from selssm_jax.report.tables import Cell, Table, block_title, number

LONGEST = 1e9  # steps that are drawn
NEARLY_ONE = 0.99995  # a rate that is written 1.0000: a thousandth is left after 138,000 steps
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")
INTRODUCTION = (
    "A certificate is proved from the weights alone and holds for every input that the norm before the block can pass "
    "on, so it is the worst case: two states of the block, under the same inputs, approach each other at the rate of a "
    "step or faster (docs/theorems.md); beside it, the rate seen in the gates of one sequence. The certified horizon "
    "is where they differ by less than a thousandth of what they did: nothing older can matter. Where nothing is "
    "established, trajectories may still meet; a rate that is 1 to four digits is of no use. A stationary law can be "
    "established where paths need not meet. The condition as printed in the paper, |A| L_G < 1, proves nothing; it is "
    "given for comparison."
)
CURVES = (
    "The certified share of an old difference that can be left after so many steps, C rate^k (lines), and what was "
    "measured to be known of an input so many steps ago, in share of the most known of any (markers): measured memory "
    "ends where the model chose to forget, the line is as far as it could ever reach."
)


def describe_stability(results: Results, folder: pathlib.Path) -> list[Block]:
    """The table of certificates, the reason of each, and a figure, which is written to `folder`, if there is a rate to
    draw.
    """
    certificates = results["stability"]
    measured = (
        {name: describe_horizon(block) for name, block in results["memory"]["blocks"].items()}
        if "memory" in results
        else {}
    )
    columns = (
        "block",
        "paths",
        "certified rate of a step",
        "seen in one sequence",
        "certified horizon (steps)",
        "measured horizon (steps)",
        "stationary law",
        "as printed",
    )
    rows = tuple((block_title(name), *_row(block, measured.get(name))) for name, block in certificates.items())
    blocks: list[Block] = [
        Paragraph(INTRODUCTION),
        Table("Certificates by block", columns, rows),
        *map(Paragraph, _reasons(certificates)),
    ]
    drawn = {name: block["step"] for name, block in certificates.items() if is_useful(block)}
    if drawn:
        retained = (
            {name: results["memory"]["blocks"][name]["retention"] for name in drawn} if "memory" in results else {}
        )
        longest = min(LONGEST, max(1000.0, *(certificates[name]["horizon"] for name in drawn)))
        blocks.append(Picture(save(reach(drawn, retained, longest), folder / "stability.png"), CURVES))
    return section("Stability", blocks)


def is_useful(block: Results) -> bool:
    """Whether a block is certified to forget within a number of steps that anybody can wait for: at a rate that is not
    1 to four digits.
    """
    rate, steps = block["step"]["rate"], block["horizon"]
    return rate is not None and 0 <= rate < NEARLY_ONE and steps is not None and math.isfinite(steps)


def with_rate(status: str, rate: float | None, *, useful: bool) -> tuple[str, Cell]:
    """Returns a status and the rate that is certified with it, in words where it is of no use."""
    if rate is None or useful:
        return status, rate
    return f"{status}, at no useful rate", f"1 - {1 - rate:.1e}" if rate < 1 else number(rate)


def _row(block: Results, measured: str | None) -> tuple[Cell, ...]:
    rate, paths, useful = block["step"]["rate"], block["state_dependent"]["status"], is_useful(block)
    horizon = block["horizon"] if rate is None or useful else f"over {math.log(1e-3) / math.log(NEARLY_ONE):,.0f}"
    others = measured, block["stationary_law"]["status"], block["printed_condition"]["status"]
    return (*with_rate(paths, rate, useful=useful), block["observed_rate"], horizon, *others)


def _reasons(certificates: Results) -> list[str]:
    """Each reason once, before it the blocks that it is of; where it differs in numbers alone, those of all of them."""
    groups: dict[str, dict[str, str]] = {}
    for name, block in certificates.items():
        reason = block["state_dependent"]["reason"]
        groups.setdefault(NUMBER.sub("#", reason), {})[block_title(name)] = reason
    return [f"{', '.join(reasons)}: {_merge_reasons(list(reasons.values()))}" for reasons in groups.values()]


def _merge_reasons(reasons: list[str]) -> str:
    numbers = zip(*(NUMBER.findall(reason) for reason in reasons), strict=True)
    lists = (", ".join(dict.fromkeys(values)) for values in numbers)
    return NUMBER.sub(lambda _: next(lists), reasons[0])


@style()
def reach(certified: Mapping[str, Results], retained: Mapping[str, Results], longest: float) -> Figure:
    """Certified shares C rate^k by lag up to `longest`, one line a block, and measured retention, {lags, lower}, as
    markers of the same colour.
    """
    figure, (ax,) = panels(1, 1, height=3.4)
    steps = np.unique(np.geomspace(1, longest, 200))
    for index, (name, one) in enumerate(certified.items()):
        colour, dash, marker = LINES[index % len(LINES)]
        ax.plot(
            steps,
            np.minimum(1, one["constant"] * np.exp(steps * math.log(max(one["rate"], 1e-300)))),
            color=colour,
            linestyle=dash,
            label=block_title(name),
        )
        if name in retained and max(retained[name]["lower"]) > 0:
            lags, share = (
                np.asarray(retained[name]["lags"]),
                finite(retained[name]["lower"]) / max(retained[name]["lower"]),
            )
            seen = lags > 0
            ax.plot(
                lags[seen], np.clip(share[seen], 0, 1), color=colour, marker=marker, markersize=3.5, linestyle="none"
            )
    ax.set(xscale="log", ylim=(-0.03, 1.05), xlabel="lag k (steps)", ylabel="share that can be left")
    legend(figure, ax)
    return figure
