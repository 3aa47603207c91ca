"""The report of a compression: the methods at equal bytes, the chosen one, its loss, and the bounds that hold."""

import itertools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from selssm_jax import invocation
from selssm_jax.analysis.results import Results
from selssm_jax.report.document import Block, Paragraph, Picture, write_document
from selssm_jax.report.figures import BLUE, GREY, ORANGE, legend, panels, save, style
from selssm_jax.report.removal_section import removal_section
from selssm_jax.report.sections import section, setting
from selssm_jax.report.stability_section import NEARLY_ONE, with_rate
from selssm_jax.report.tables import Cell, Table, block_title, clean, size, tabulate
from selssm_jax.report.verdict import verdict_on_compression, verdict_on_removal

MARKERS = ("s", "^", "D", "v", "P", "X")
INTRODUCTION = (
    "{scope} Bytes are those that one sequence carries; the table of levels, and which component reads which, is read "
    "by all sequences and counted once: what is given as times fewer counts the share of one of {sequences} sequences "
    "carried at once (compress.sequences). Methods and factors were compared on the validation split, without "
    "fine-tuning; levels, variances and sensitivities come from training batches; the chosen model was {tuned}, and it "
    "and the original were scored on the {split} split once."
)
SCOPES = {
    "all": "Memory is all that is carried from one step to the next: the states of the mixers, the inputs that "
    "convolutions, encoders and heads still see, and what a head has pooled; a few numbers (counts, the scale of a "
    "forecast) stay in float32 and are counted.",
    "mixers": "Memory is the states of the mixers; what convolutions, encoders and heads carry besides stays in "
    "float32 and is not counted: all that is carried is given beside it.",
}
FRONTIER = (
    "Left: bytes of one sequence, its share of the table counted, against the metric on validation; the line is the "
    "frontier of bits by information without fine-tuning, the star the chosen model, the grey band what is allowed. "
    "Right: mean squared error of {count} components drawn at random, in units of their variance, against their mean "
    "bits, and D(R), component by component: no code of as many bits can lie below it."
)
TRUNCATED = (
    "Balanced truncation is of time-invariant blocks. Whatever the input, what the recurrence of a block gives differs "
    "after it by at most the first gain times the size of the input: twice the sum of the Hankel singular values that "
    "went. It is for states that are not yet packed, in exact arithmetic, and before what a layer makes of its output. "
    "The second gain is the largest Hankel singular value, to hold the first against."
)
PROCESSING = (
    "What a decoder reads of a past input from the packed state, at the lag of which it reads most, is a lower bound "
    "on I(x; packed), which the bits of the packed state bound from above: data processing {verdict}. Beside it, what "
    "the same decoder reads of the state as it was before packing."
)
TOO_FEW = "The split has too few sequences to judge decoders of the state on any that they have not seen."
ROUNDING = (
    "A certificate is about exact arithmetic. A packed state is rounded after every step, within the levels by at most "
    "delta: half the largest distance of two neighbouring levels where it is rounded to the nearest, the whole of it "
    "under stochastic rounding, which may draw either (here: {rounding}). Two states under the same inputs then "
    "approach each other at the certified rate until no component differs by more than the radius given, 2 delta / (1 "
    "- rate) with delta in the certificate's norm, where that is certified; and, whatever the rate, they never leave "
    "the levels, which are finitely many."
)


def render_compression(results: Results, folder: pathlib.Path) -> None:
    """Writes index.html, report.md with its figure beside it, and compression.json.

    Raises InputError where `folder` cannot be written.
    """
    if not results["packed"]:
        _render_removal(results, folder)
        return
    title = f"{results['name']}, compressed {results['compressed']['factor']:.1f} times"
    introduction = INTRODUCTION.format(
        split=results["split"],
        scope=SCOPES[results["scope"]],
        sequences=results["sequences"],
        tuned="then fine-tuned on training batches" if results["config"]["compress"]["steps"] else "not fine-tuned",
    )
    knee = (
        "The knee of the frontier, farthest below the chord of its ends over the logarithm of bytes, is at "
        f"{results['knee']}."
    )
    with write_document(folder, title, "compression.json", results) as blocks:
        picture = Picture(
            save(frontier(results), folder / "frontier.png"), FRONTIER.format(count=results["components"])
        )
        blocks += [Paragraph(verdict_on_compression(results), lead=True), Paragraph(introduction), _outcome(results)]
        blocks += section("Memory and loss", [picture, Paragraph(knee), _frontier(results)])
        blocks += section("Methods at equal bytes", [_methods(results), *_truncations(results)])
        blocks += removal_section(results, folder)
        blocks += section("Data processing", _processing(results))
        blocks += section("Stability", [Paragraph(ROUNDING.format(rounding=results["rounding"])), _stability(results)])
        blocks += setting(results)


def summarise_compression(results: Results, workdir: pathlib.Path) -> str:
    """Returns the outcome as lines for a terminal; `workdir` is the compressed run's."""
    made = f"the compressed run: {workdir}   ({invocation.command('eval', '--workdir', str(workdir))})"
    verdict = verdict_on_compression if results["packed"] else verdict_on_removal
    return "\n".join(
        [
            results["name"],
            clean(verdict(results)),
            made,
            f"report: {workdir / 'compression' / 'index.html'}",
        ]
    )


def _render_removal(results: Results, folder: pathlib.Path) -> None:
    """The page of a run without parts of its blocks, of which nothing is packed."""
    gone = len(results["removal"]["remainders"]) - 1
    title = f"{results['name']}, without {gone} part{'s' * (gone > 1)}"
    with write_document(folder, title, "compression.json", results) as blocks:
        blocks += [Paragraph(verdict_on_removal(results), lead=True), *removal_section(results, folder)]
        blocks += setting(results)


def _outcome(results: Results) -> Table:
    metric = results["metric"]
    columns = ("", "a sequence", "table for all", "times fewer", "pays from", "all that is carried")
    scores = (f"{results['split']} {metric}", "loss", f"validation {metric}", "parameters as stored")
    rows = (
        _outcome_row(results, *names)
        for names in (("float32", "reference", "before"), ("compressed", "compressed", "after"))
    )
    return Table("The model before and after", (*columns, *scores), tuple(rows))


def _outcome_row(results: Results, name: str, key: str, time: str) -> tuple[Cell, ...]:
    model, metric = results[key], results["metric"]
    stored, carried = size(results["parameter_bytes"][time]), size(results["carried_bytes"][time])
    scores = model["test"][metric], f"{model['lost']:+.2%}", model["validation"][metric]
    pays_from = "" if model["pays_from"] is None else f"{model['pays_from']:,} sequence{'s' * (model['pays_from'] > 1)}"
    return (
        name,
        f"{model['bytes']:,} B",
        f"{model['table_bytes']:,} B",
        model["factor"],
        pays_from,
        carried,
        *scores,
        stored,
    )


def _frontier(results: Results) -> Table:
    columns = (
        "times fewer",
        "bytes",
        "table",
        "mean bits",
        f"validation {results['metric']}",
        "loss",
        "squared error",
        "D(R)",
    )
    keys = ("factor", "bytes", "table_bytes", "bits", results["metric"], "lost", "error", "error_bound")
    return Table("Bits by information, not fine-tuned", columns, _select(results, results["frontier"], keys))


def _methods(results: Results) -> Table:
    columns = ("method", "bytes", "table", "times fewer", f"validation {results['metric']}", "loss")
    keys = ("method", "bytes", "table_bytes", "factor", results["metric"], "lost")
    return Table(
        "What was tried at the bytes that were asked for",
        columns,
        _select(results, [*results["methods"], results["compressed"]], keys),
    )


def _select(results: Results, candidates: list[Results], keys: tuple[str, ...]) -> tuple[tuple[Cell, ...], ...]:
    """These values of each candidate; its metric and the loss in it are those on validation."""
    metric = results["metric"]
    rows = (one | {metric: one["validation"][metric], "lost": f"{one['validation_lost']:+.2%}"} for one in candidates)
    return tuple(tuple(row[key] for key in keys) for row in rows)


def _truncations(results: Results) -> list[Block]:
    """What is proved of the blocks that were truncated; nothing where none were."""
    proved = {name: block for method in results["methods"] for name, block in method["truncated"].items()}
    columns = {
        "components before": "before",
        "after": "after",
        "gain of the difference, at most": "error_bound",
        "gain of the whole, at least": "largest",
    }
    return [Paragraph(TRUNCATED), tabulate("Balanced truncation by block", proved, columns)] if proved else []


def _processing(results: Results) -> list[Block]:
    blocks = results["data_processing"]
    if not blocks:
        return [Paragraph(TOO_FEW)]
    is_violated = any(block["status"] == "violated" for block in blocks.values())
    verdict = "is violated somewhere: a bound or its standard error is wrong" if is_violated else "is nowhere violated"
    columns = {
        "lag": "lag",
        "state, at least (bits)": "state",
        "packed, at least (bits)": "packed",
        "± standard error": "stderr",
    }
    columns |= {"packed, at most (bits)": "capacity", "data processing": "status"}
    return [
        Paragraph(PROCESSING.format(verdict=verdict)),
        tabulate("From the input to the state and to its packed form", blocks, columns),
    ]


def _stability(results: Results) -> Table:
    before, after = results["certificates"]["before"], results["certificates"]["after"]
    columns = ("block", "before", "rate of a step", "after", "rate of a step", "radius of rounding")
    rows = tuple(
        (block_title(name), *_certificate(before[name]), *_certificate(block), block["radius"])
        for name, block in after.items()
    )
    return Table("Certificates of contraction by block", columns, rows)


def _certificate(block: Results) -> tuple[Cell, ...]:
    rate = block["rate"]
    return with_rate(block["status"], rate, useful=rate is not None and rate < NEARLY_ONE)


@style()
def frontier(results: Mapping[str, Any]) -> Figure:
    """Bytes against the metric, and bits against squared error with its bound."""
    figure, (left, right) = panels(1, 2, height=3.6)
    metric, points, chosen = results["metric"], results["frontier"], results["compressed"]
    reference = results["reference"]["validation"][metric]
    # Bytes of one sequence, and of the table as many as are its share.
    share = lambda one: results["reference"]["bytes"] / one["factor"]  # noqa: E731
    left.plot(
        [share(one) for one in points],
        [one["validation"][metric] for one in points],
        color=BLUE,
        marker="o",
        markersize=4,
        label="bits by information",
    )
    for one, marker in zip(results["methods"][1:], itertools.cycle(MARKERS), strict=False):  # however many were tried
        name = one["method"].replace(" of the components", "")
        left.plot(
            share(one), one["validation"][metric], color=GREY, marker=marker, linestyle="none", markersize=5, label=name
        )
    left.plot(
        share(chosen),
        chosen["validation"][metric],
        color=ORANGE,
        marker="*",
        markersize=11,
        linestyle="none",
        label="chosen",
    )
    left.axhline(reference, color="black", linestyle="--", linewidth=1, label="float32")
    left.axhspan(reference * (1 - results["within"]), reference * (1 + results["within"]), color=GREY, alpha=0.15)
    left.set(
        xscale="log", xlabel="bytes of one sequence, its share of the table counted", ylabel=f"validation {metric}"
    )
    bits = [one["error_bits"] for one in points]
    right.plot(
        bits, [one["error"] for one in points], color=BLUE, marker="o", markersize=4, linestyle="none", label="measured"
    )
    order = np.argsort(bits)
    right.plot(
        np.asarray(bits)[order],
        np.asarray([one["error_bound"] or np.nan for one in points])[order],
        color="black",
        linestyle=":",
        label="D(R)",
    )
    positive = any(one["error"] > 0 for one in points)  # none where components have no more values than levels
    right.set(
        yscale="log" if positive else "linear", xlabel="mean bits of a component", ylabel="squared error / variance"
    )
    legend(figure, left, right)
    return figure
