"""The report of a compression: the methods at equal bytes, the chosen one, its loss, and the bounds that hold."""

import dataclasses
import itertools
import json
import pathlib
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from selssm_jax import invocation
from selssm_jax.compression import distortion_bound
from selssm_jax.compression.carried import Carried
from selssm_jax.compression.checkpoint import check_folder_is_free, encode_params, nbytes, save_run
from selssm_jax.compression.compress import Calibration, Candidate, Compression, Subject, check_memory, compress, points, relative_loss
from selssm_jax.compression.distortion_bound import rounding_errors, rounding_radius
from selssm_jax.compression.progress import fingerprint, open_progress
from selssm_jax.compression.quantization import Quantizer
from selssm_jax.compression.search import knee
from selssm_jax.compression.streaming import PackedModel
from selssm_jax.config import Experiment
from selssm_jax.data import Dataset
from selssm_jax.errors import InputError
from selssm_jax.model import SequenceModel
from selssm_jax.reporting import accounting, processing
from selssm_jax.reporting.certificates import NEARLY_ONE, with_rate
from selssm_jax.reporting.document import Block, Paragraph, Picture, to_html, to_markdown
from selssm_jax.reporting.figures import BLUE, GREY, ORANGE, legend, panels, save, style
from selssm_jax.reporting.report import circumstances_of, command, writable
from selssm_jax.reporting.run import Run, open_run
from selssm_jax.reporting.sections import circumstances, section
from selssm_jax.reporting.tables import Cell, Table, clean, size
from selssm_jax.reporting.verdict import verdict_on_compression
from selssm_jax.stability import Certificate, certify_bounds
from selssm_jax.stability.verdict import Verdict, plain
from selssm_jax.training.evaluation import Evaluator

FORMAT = 1  # of compression.json
COMPONENTS = 8  # whose D(R) is computed
MADE = "run"  # the compressed run, until it is whole
MARKERS = ("s", "^", "D", "v", "P", "X")
Results = dict[str, Any]
READING = (
    "{scope} Bytes are those that one sequence carries; the table of levels, and which component reads which, is read by all sequences and counted once: what "
    "is given as times fewer counts the share of one of {sequences} sequences carried at once (compress.sequences). "
    "Methods and factors were compared on the validation split, without fine-tuning; levels, variances and sensitivities come from training batches; the "
    "chosen model was then fine-tuned on training batches, and it and the original were scored on the {split} split once."
)
SCOPES = {
    "all": "Memory is all that is carried from one step to the next: the states of the mixers, the inputs that convolutions, encoders and heads still see, "
    "and what a head has pooled; a few numbers (counts, the scale of a forecast) stay in float32 and are counted.",
    "mixers": "Memory is the states of the mixers; what convolutions, encoders and heads carry besides stays in float32 and is not counted: "
    "all that is carried is given beside it.",
}
FRONTIER = (
    "Left: bytes of one sequence, its share of the table counted, against the metric on validation; the line is the frontier of bits by information without "
    "fine-tuning, the star the chosen model, the grey band what is allowed. Right: mean squared error of {count} components drawn at random, in units of "
    "their variance, against their mean bits, and D(R), component by component: no code of as many bits can lie below it."
)
TRUNCATED = (
    "Balanced truncation is of time-invariant blocks. Whatever the input, what the recurrence of a block gives differs after it by at most the first gain "
    "times the size of the input: twice the sum of the Hankel singular values that went. It is for states that are not yet packed, in exact arithmetic, and "
    "before what a layer makes of its output. The second gain is the largest Hankel singular value, to hold the first against."
)
TOO_FEW = "The split has too few sequences to judge decoders of the state on any that they have not seen."
ROUNDING = (
    "A certificate is about exact arithmetic. A packed state is rounded after every step, within the levels by at most delta: half the largest distance of "
    "two neighbouring levels where it is rounded to the nearest, the whole of it under stochastic rounding, which may draw either (here: {rounding}). Two "
    "states under the same inputs then approach each other at the certified rate until no component differs by more than the radius given, "
    "2 delta / (1 - rate) with delta in the certificate's norm, where that is certified; and, whatever the rate, they never leave the levels, which are "
    "finitely many."
)


def write(workdir: str | pathlib.Path, *, split: str = "test", file: str = "", local_dir: str = "", override: Iterable[str] = ()) -> Results:
    """Compresses the run in `workdir` as its `compress` configuration says; writes the compressed run to WORKDIR-compressed, with a report inside.

    The report is WORKDIR-compressed/compression/index.html, with report.md, figures and compression.json beside it. Until all is there, the work is in
    WORKDIR-compressed.unfinished: stopped at any moment, the same command goes on from what that folder holds.

    Raises:
      InputError: for what `open_run` refuses, for a run that is compressed already, and for a folder that exists or cannot be written.
    """
    run = open_run(workdir, split=split, file=file, local_dir=local_dir, override=override)
    if not isinstance(run.model, SequenceModel):
        raise InputError(f"--workdir={workdir} holds a compressed run: give the run that it was made of")
    folder = _beside(run.workdir)
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    check_folder_is_free(folder)
    start = time.perf_counter()
    subject = Subject(run.experiment, run.model, run.params, run.dataset)
    with open_progress(unfinished, fingerprint(run.experiment, run.params, run.step)) as progress:
        told = {"resumed": progress.begun, "command": command(run.workdir, "--compress", split=split, file=file, override=override)}
        found = compress(subject, lambda line: print(line, file=sys.stderr, flush=True), progress)
        smaller = _save(run, found, unfinished / MADE)
        with writable(smaller.workdir / "compression") as place:
            results = _results(run, smaller, found, split, subject.metric) | told
            results["seconds"] = time.perf_counter() - start
            _write(results, place)
        smaller.workdir.rename(folder)
        shutil.rmtree(unfinished)
    return results | {"workdir": str(folder), "report": str(folder / "compression" / "index.html")}


def check(experiment: Experiment, model: SequenceModel, dataset: Dataset, workdir: pathlib.Path) -> None:
    """Raises InputError, before a run in `workdir` is trained, for what its compression would be refused for whatever its parameters are."""
    check_folder_is_free(_beside(workdir))
    inputs = jnp.asarray(next(dataset.evaluate("validation", 1))["inputs"])
    check_memory(experiment, model, jax.eval_shape(lambda: model.init(jax.random.key(0), inputs)["params"]))


def _beside(workdir: pathlib.Path) -> pathlib.Path:
    return workdir.with_name(f"{workdir.name}-compressed")


def _save(run: Run, found: Compression, folder: pathlib.Path) -> Run:
    """Writes the compressed run in place of what an earlier attempt may have left of it."""
    if folder.exists():
        shutil.rmtree(folder)
    saved = save_run(folder, run.experiment, found.chosen.model, found.chosen.params, run.dataset, run.step, found.chosen.validation)
    return dataclasses.replace(run, workdir=folder, experiment=saved, model=found.chosen.model, params=found.chosen.params)


def summary(results: Results) -> str:
    """Returns the outcome as lines for a terminal."""
    made = f"the compressed run: {results['workdir']}   ({invocation.command('eval', '--workdir', results['workdir'])})"
    return "\n".join([results["name"], clean(verdict_on_compression(results)), made, f"report: {results['report']}"])


def _results(run: Run, smaller: Run, found: Compression, split: str, metric: str) -> Results:
    """Everything that compression.json holds."""
    row = partial(_row, reference=found.reference, metric=metric, sequences=run.experiment.compress.sequences)
    test = {name: Evaluator(one.experiment, one.model)(one.params, one.dataset, split) for name, one in (("before", run), ("after", smaller))}
    return {
        "format": FORMAT,
        "name": run.experiment.name,
        "split": split,
        "metric": metric,
        "reference": row(found.reference) | {"test": test["before"], "lost": 0.0},
        "compressed": row(found.chosen) | {"test": test["after"], "lost": relative_loss(test["after"], test["before"], metric)},
        "methods": [row(one) for one in found.methods],
        "frontier": [row(one) | _error(one, found.known) for one in found.frontier],
        "knee": knee(points(found.frontier, found.reference, metric, run.experiment.compress.sequences)).name,
        "within": run.experiment.compress.within,
        "components": COMPONENTS,
        "scope": found.known.scope,
        "sequences": run.experiment.compress.sequences,
        "rounding": run.experiment.compress.rounding,
        "carried_bytes": {"before": accounting.state_bytes(run.model, run.params), "after": accounting.state_bytes(smaller.model, smaller.params)},
        "parameter_bytes": {"before": accounting.tree_bytes(run.params), "after": accounting.tree_bytes(encode_params(smaller.experiment, smaller.params))},
        "disk_bytes": nbytes(smaller.workdir / "best"),
        "data_processing": processing.verdicts(smaller, split),
        "certificates": {"before": _certify(run), "after": _certify(smaller)},
        **circumstances_of(smaller.experiment),
    }


def _row(one: Candidate, *, reference: Candidate, metric: str, sequences: int) -> Results:
    bits = [int(digit) for leaf in one.model.bits for digit in leaf] if isinstance(one.model, PackedModel) else []
    return {
        "method": one.method,
        "bytes": one.nbytes,
        "table_bytes": one.table,
        "pays_from": one.pays_from(reference),
        "factor": reference.nbytes / one.share(sequences),
        "validation": one.validation,
        "validation_lost": relative_loss(one.validation, reference.validation, metric),
        "bits": float(np.mean(bits)) if bits else 32.0,
        "truncated": {name: proved._asdict() for name, proved in one.truncated.items()},
    }


def _error(one: Candidate, known: Calibration) -> Results:
    """The squared error of some components, and what it cannot be less than."""
    components = np.random.default_rng(0).choice(known.layout.size, min(COMPONENTS, known.layout.size), replace=False)
    quantizer = one.model.quantizer(one.params)  # type: ignore[attr-defined]
    measured, least = distortion_bound.squared_error(quantizer, known.samples, components.tolist())
    return {"error": measured, "error_bound": least, "error_bits": float(np.mean([quantizer.bits[index] for index in components]))}


def _certify(run: Run) -> Results:
    """By block, the certified rate of a step and, of a packed state, how near two states come to each other for certain."""
    stated = run.model.apply({"params": run.params}, method="bounds")
    certificates = {name: certify_bounds(bounds) for name, bounds in stated.items()}
    return {name: _row_of(certificate.contraction) | {"radius": _radius(run, name, certificate)} for name, certificate in certificates.items()}


def _row_of(verdict: Verdict) -> Results:
    return {"status": verdict.status, "rate": verdict.rate if verdict.status == "holds" else None}


def _radius(run: Run, block: str, certificate: Certificate) -> float | None:
    """Of a mixer that carries one array, which is what contracts; where it carries past inputs too, their rounding is part of what drives it."""
    verdict = certificate.contraction
    if not isinstance(run.model, PackedModel) or verdict.status != "holds" or verdict.rate is None or verdict.rate >= 1 or verdict.weights is None:
        return None
    layout, quantizer = Carried(run.model.model, run.params, run.model.scope), run.model.quantizer(run.params)
    parts = {leaf.name: (leaf, at) for leaf, at in layout.parts()}
    if (name := block.replace("block_", "blocks/") + "/mixer") not in parts:
        return None
    leaf, at = parts[name]
    turns = 2 if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else 1  # real parts, then imaginary ones
    errors, reach = (np.sqrt((part[at].reshape(turns, -1) ** 2).sum(axis=0)) for part in (rounding_errors(quantizer, run.model.rounding), _largest(quantizer)))
    box = certificate.invariant_radius
    if len(errors) != len(verdict.weights) or (certificate.uniform.status != "holds" and (box is None or (reach > box).any())):
        return None  # gates that read the state are certified on their box, which levels could lie outside of
    return rounding_radius(errors, verdict.rate, verdict.weights)


def _largest(quantizer: Quantizer) -> np.ndarray:
    return np.abs(np.asarray(quantizer.levels, np.float64)).max(axis=1)


def _write(results: Results, folder: pathlib.Path) -> None:
    blocks: list[Block] = [Paragraph(verdict_on_compression(results), lead=True)]
    blocks += [Paragraph(READING.format(split=results["split"], scope=SCOPES[results["scope"]], sequences=results["sequences"])), _outcome(results)]
    figure = save(frontier(results), folder / "frontier.png")
    knee_words = f"The knee of the frontier, farthest below the chord of its ends over the logarithm of bytes, is at {results['knee']}."
    blocks += section("Memory and loss", [Picture(figure, FRONTIER.format(count=results["components"])), Paragraph(knee_words), _frontier(results)])
    blocks += section("Methods at equal bytes", [_methods(results), *_truncations(results)])
    processing: list[Block] = [Paragraph(_describe_processing(results)), _processing(results)] if results["data_processing"] else [Paragraph(TOO_FEW)]
    blocks += section("Data processing", processing)
    blocks += section("Stability", [Paragraph(ROUNDING.format(rounding=results["rounding"])), _stability(results)])
    title = f"{results['name']}, compressed {results['compressed']['factor']:.1f} times"
    blocks += circumstances(results)
    (folder / "index.html").write_text(to_html(title, blocks), encoding="utf-8")
    (folder / "report.md").write_text(to_markdown(title, blocks), encoding="utf-8")
    (folder / "compression.json").write_text(json.dumps(plain(results), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _outcome(results: Results) -> Table:
    metric = results["metric"]
    columns = (
        "",
        "a sequence",
        "table for all",
        "times fewer",
        "pays from",
        "all that is carried",
        f"{results['split']} {metric}",
        "loss",
        f"validation {metric}",
        "parameters as stored",
    )
    rows = tuple(_outcome_row(results, name, key, disk) for name, key, disk in (("float32", "reference", "before"), ("compressed", "compressed", "after")))
    return Table("The model before and after", columns, rows)


def _outcome_row(results: Results, name: str, key: str, disk: str) -> tuple[Cell, ...]:
    one, metric = results[key], results["metric"]
    stored, carried = size(results["parameter_bytes"][disk]), size(results["carried_bytes"][disk])
    scores = one["test"][metric], f"{one['lost']:+.2%}", one["validation"][metric]
    return (name, f"{one['bytes']:,} B", f"{one['table_bytes']:,} B", one["factor"], _sequences(one["pays_from"]), carried, *scores, stored)


def _sequences(count: int | None) -> str:
    return "" if count is None else f"{count:,} sequence{'s' * (count > 1)}"


def _frontier(results: Results) -> Table:
    columns = ("times fewer", "bytes", "table", "mean bits", f"validation {results['metric']}", "loss", "squared error", "D(R)")
    rows = tuple(
        (
            one["factor"],
            one["bytes"],
            one["table_bytes"],
            one["bits"],
            one["validation"][results["metric"]],
            f"{one['validation_lost']:+.2%}",
            one["error"],
            one["error_bound"],
        )
        for one in results["frontier"]
    )
    return Table("Bits by information, not fine-tuned", columns, rows)


def _methods(results: Results) -> Table:
    columns = ("method", "bytes", "table", "times fewer", f"validation {results['metric']}", "loss")
    rows = tuple(
        (one["method"], one["bytes"], one["table_bytes"], one["factor"], one["validation"][results["metric"]], f"{one['validation_lost']:+.2%}")
        for one in [*results["methods"], results["compressed"]]
    )
    return Table("What was tried at the bytes that were asked for", columns, rows)


def _truncations(results: Results) -> list[Block]:
    """What is proved of the blocks that were truncated; nothing where none were."""
    proved = {name: block for one in results["methods"] for name, block in one["truncated"].items()}
    columns = ("block", "components before", "after", "gain of the difference, at most", "gain of the whole, at least")
    rows = tuple((name.replace("_", " "), *(one[key] for key in ("before", "after", "error_bound", "largest"))) for name, one in proved.items())
    return [Paragraph(TRUNCATED), Table("Balanced truncation by block", columns, rows)] if proved else []


def _describe_processing(results: Results) -> str:
    states = {one["status"] for one in results["data_processing"].values()}
    verdict = "is violated somewhere: a bound or its standard error is wrong" if "violated" in states else "is nowhere violated"
    return (
        "What a decoder reads of a past input from the packed state, at the lag of which it reads most, is a lower bound on I(x; packed), which the bits of "
        f"the packed state bound from above: data processing {verdict}. Beside it, what the same decoder reads of the state as it was before packing."
    )


def _processing(results: Results) -> Table:
    columns = ("block", "lag", "state, at least (bits)", "packed, at least (bits)", "± standard error", "packed, at most (bits)", "data processing")
    rows = tuple(
        (name.replace("_", " "), one["lag"], one["state"], one["packed"], one["stderr"], one["capacity"], one["status"])
        for name, one in results["data_processing"].items()
    )
    return Table("From the input to the state and to its packed form", columns, rows)


def _stability(results: Results) -> Table:
    before, after = results["certificates"]["before"], results["certificates"]["after"]
    columns = ("block", "before", "rate of a step", "after", "rate of a step", "radius of rounding")
    rows = tuple((name.replace("_", " "), *_certificate(before[name]), *_certificate(one), one["radius"]) for name, one in after.items())
    return Table("Certificates of contraction by block", columns, rows)


def _certificate(found: Results) -> tuple[Cell, ...]:
    rate = found["rate"]
    return with_rate(found["status"], rate, useful=rate is not None and rate < NEARLY_ONE)


@style()
def frontier(results: Mapping[str, Any]) -> Figure:
    """Bytes against the metric, and bits against squared error with its bound."""
    figure, (left, right) = panels(1, 2, height=3.6)
    metric, points, chosen = results["metric"], results["frontier"], results["compressed"]
    reference = results["reference"]["validation"][metric]
    share = lambda one: results["reference"]["bytes"] / one["factor"]  # noqa: E731  bytes of one sequence, and of the table's as many as are its
    left.plot([share(one) for one in points], [one["validation"][metric] for one in points], color=BLUE, marker="o", markersize=4, label="bits by information")
    for one, marker in zip(results["methods"][1:], itertools.cycle(MARKERS), strict=False):  # however many were tried
        name = one["method"].replace(" of the components", "")
        left.plot(share(one), one["validation"][metric], color=GREY, marker=marker, linestyle="none", markersize=5, label=name)
    left.plot(share(chosen), chosen["validation"][metric], color=ORANGE, marker="*", markersize=11, linestyle="none", label="chosen")
    left.axhline(reference, color="black", linestyle="--", linewidth=1, label="float32")
    left.axhspan(reference * (1 - results["within"]), reference * (1 + results["within"]), color=GREY, alpha=0.15)
    left.set(xscale="log", xlabel="bytes of one sequence, its share of the table counted", ylabel=f"validation {metric}")
    bits = [one["error_bits"] for one in points]
    right.plot(bits, [one["error"] for one in points], color=BLUE, marker="o", markersize=4, linestyle="none", label="measured")
    order = np.argsort(bits)
    right.plot(np.asarray(bits)[order], np.asarray([one["error_bound"] or np.nan for one in points])[order], color="black", linestyle=":", label="D(R)")
    positive = any(one["error"] > 0 for one in points)  # none where components have no more values than levels
    right.set(yscale="log" if positive else "linear", xlabel="mean bits of a component", ylabel="squared error / variance")
    legend(figure, left, right)
    return figure
