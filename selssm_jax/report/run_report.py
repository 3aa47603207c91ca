"""The report of a run, for people and for programs: scores, gates, memory, certificates, costs and one example."""

import pathlib

from selssm_jax.analysis.results import Analysis, Results
from selssm_jax.report import example_section, sections
from selssm_jax.report.document import Paragraph, write_document
from selssm_jax.report.explanation_section import describe_explanation
from selssm_jax.report.memory_section import describe_memory
from selssm_jax.report.stability_section import describe_stability
from selssm_jax.report.tables import clean, number
from selssm_jax.report.verdict import verdict

SAID = 8  # channels whose errors a terminal shows


def render(analysis: Analysis, folder: pathlib.Path) -> pathlib.Path:
    """Writes index.html, one file with its figures inside, report.md with the figures beside it, and results.json;
    returns the path of the page.

    Raises InputError where `folder` cannot be written.
    """
    results = analysis.values
    with write_document(folder, f"{results['title']}, {results['split']} split", "results.json", results) as blocks:
        blocks += [Paragraph(verdict(results), lead=True), *sections.scores(results), *sections.errors(results, folder)]
        blocks += [*sections.learning(results, analysis.history, folder), *sections.gates(results, folder)]
        blocks += [*describe_memory(results, folder), *describe_stability(results, folder)]
        blocks += [
            *describe_explanation(results, folder),
            *sections.section("An example", example_section.show(analysis.example, folder)),
            *sections.costs(results),
            *sections.setting(results),
        ]
    return folder / "index.html"


def summarise(analysis: Analysis, page: pathlib.Path) -> str:
    """Returns the scores beside the baselines, the verdict, and where the report is, as lines for a terminal."""
    results = analysis.values
    rows = {f"{results['title']} ({results['split']})": results["metrics"], **results["baselines"]}
    width = max(map(len, rows))
    lines = [
        f"{name:{width}s}  " + "  ".join(f"{metric} {number(value)}" for metric, value in metrics.items())
        for name, metrics in rows.items()
    ]
    return "\n".join([*lines, *_say_own_units(results), clean(verdict(results)), f"report: {page}"])


def _say_own_units(results: Results) -> list[str]:
    """The mean absolute errors of the first channels of a forecast, in the units of the data."""
    parts = results["errors"] or {}
    if "own_units" not in parts:
        return []
    names, errors = parts["by_channel"]["names"], parts["own_units"]["mae"]
    said = ", ".join(f"{clean(name)} {number(error)}" for name, error in zip(names[:SAID], errors, strict=False))
    return [f"mean absolute error in the units of the data: {said}" + ", ..." * (len(names) > SAID)]
