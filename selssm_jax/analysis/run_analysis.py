"""All that the report of a run says, computed in one call."""

import itertools
import pathlib
import time

from selssm_jax import intervals
from selssm_jax.analysis import costs, examples, explanation, memory, scores, stability
from selssm_jax.analysis.gates import observe_gates
from selssm_jax.analysis.results import Analysis, Results
from selssm_jax.config import Experiment
from selssm_jax.data import Dataset
from selssm_jax.errors import InputError
from selssm_jax.runs import Run, check_compression
from selssm_jax.tasks.registry import kind_of

GATE_BATCHES = 8  # evaluation batches whose gates are measured


def analyse(run: Run, *, measure: bool = False, explain: bool = False) -> Analysis:
    """Evaluates a run exactly over its whole split and measures its gates, costs and stability; with `measure` also
    what its states know, in bits; with `explain` also what its answers are owed to.

    Raises InputError, before work starts, where `measure` is asked of a split with too few sequences, and `explain` of
    a model that it cannot be asked of.
    """
    start, split = time.perf_counter(), run.split
    if measure:
        memory.check_sequences(run.experiment, run.dataset, split)
    if explain:
        explanation.check_explanation(run)
    flags = [*["--measure"] * measure, *["--explain"] * explain]
    values = scores.score(run, split) | {"command": run.command(*flags)}
    size = run.experiment.data.eval_batch_size or run.experiment.data.batch_size
    batches = itertools.islice(run.dataset.evaluate(split, size), GATE_BATCHES)
    sums, sequences = observe_gates(
        run.model, run.params, batches, is_stream=run.dataset.is_stream, piece=run.experiment.training.piece
    )
    first = sequences[0].live_gates(kind_of(run.dataset.task).stride(run.model.config))
    values["gates"] = {
        block: total.summary() | {"first_sequence": first[block].sum(-1).tolist()} for block, total in sums.items()
    }
    values["costs"] = costs.account(run.experiment, run.model, run.params, sequences[0].batch)
    values["stability"] = stability.certify_run(run, first)
    values["errors"] = scores.find_errors(run, split)
    values["intervals"] = cover_values(run, split)
    if measure:
        values["memory"] = memory.measure(run, split)
    if explain:
        known = values["memory"] if measure else explanation.recall_memory(run)
        values["explanation"] = explanation.explain_run(run, split, known)
    example = examples.show(run, sequences)
    values["seconds"] = time.perf_counter() - start
    return Analysis(values, run.history, example)


def cover_values(run: Run, split: str) -> Results | None:
    """Returns how often the intervals of forecasts cover the values of a split; None where there are no intervals."""
    if not kind_of(run.dataset.task).forecasts:
        return None
    try:
        ends = intervals.find(run)
    except InputError:
        return None
    return intervals.cover(run, ends, split)


def check_ahead(
    experiment: Experiment,
    workdir: str | pathlib.Path,
    dataset: Dataset,
    *,
    report: bool,
    measure: bool,
    compress: bool,
) -> None:
    """Raises InputError, before a run is trained, where what is asked for would be refused once it is.

    Args:
      report: a report on its test split. measure: one that measures what the states know. compress: a report, and the
        run compressed after it.
    """
    if report or measure or compress:
        dataset.check("test")
    if measure:
        memory.check_sequences(experiment, dataset, "test")
    if compress:
        check_compression(experiment, dataset, pathlib.Path(workdir))
