"""What the states of a trained model know: of all their past, of single inputs by lag, of the answers and of the future
(theory, sections 4, 6, 7).

All numbers of the results are in bits, and each goes with its direction: exact, lower, upper or estimate.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from selssm_jax.analysis import memory_by_answer, memory_of_future, memory_of_past
from selssm_jax.analysis.memory_by_lag import measure_retention
from selssm_jax.analysis.results import BITS, Results
from selssm_jax.analysis.state_samples import Recording, record, rows_read
from selssm_jax.config import FEWEST, SYNTHETIC, Experiment, Measure, Model
from selssm_jax.data import Dataset
from selssm_jax.errors import ArgumentError
from selssm_jax.information import limits
from selssm_jax.information._estimate import Estimate
from selssm_jax.information.estimators import Training
from selssm_jax.model import block_name
from selssm_jax.runs import Run
from selssm_jax.tasks.registry import kind_of


def measure(run: Run, split: str) -> Results:
    """Returns everything that the report says of the run's memory, as JSON-able values in bits."""
    recording = draw_samples(run, split)
    followed = () if recording.targets is None else (recording.frames, recording.targets)
    covariances = memory_of_future.covariances(*followed) if followed else None
    asked = None if covariances is None else memory_by_answer.find_answers(recording, run.dataset.info)
    blocks = {name: _block(run, recording, name, covariances, asked) for name in recording.blocks}
    answers = None if recording.answers is None else memory_of_future.answers(run, recording, recording.answers, blocks)
    results = {
        "unit": "bits",
        "sequences": len(recording.frames),
        "curve_needs": memory_of_future.count_needed(*followed) if followed and covariances is None else None,
        "overlapping": recording.starts is not None,
        "moments": recording.moments.tolist(),
    }
    return results | {"blocks": blocks, "answers": answers}


class Plan(NamedTuple):
    """What is read of a split: batches of so many rows, the moments of a sequence, the steps with answers, and n
    where every n-th of overlapping windows is kept.
    """

    batch_size: int
    moments: list[int]
    scored: list[int]
    every: int


def plan(experiment: Experiment, dataset: Dataset, split: str) -> Plan:
    """Returns what `experiment.measure` asks for of a split: of windows that overlap, as many as that, spread over the
    whole split.
    """
    settings, data, config = experiment.measure, experiment.data, experiment.model.of_task(dataset.task)
    size = data.eval_batch_size or data.batch_size
    first = next(iter(dataset.evaluate(split, size)))
    scored = _scored_steps(dataset, first)
    windows = int(dataset.info.get(f"{split}_windows", 0))
    every = max(windows * kind_of(config.task).rows(config) // settings.samples, 1) if windows else 0
    return Plan(size, _moments(config, first, settings, scored), scored, every)


def draw_samples(run: Run, split: str) -> Recording:
    """Returns the states and inputs of the sequences that `plan` names."""
    settings, read = run.experiment.measure, plan(run.experiment, run.dataset, split)
    batches = run.dataset.evaluate(split, read.batch_size)
    how: dict[str, Any] = {
        "samples": settings.samples,
        "moments": read.moments,
        "scored": read.scored,
        "every": read.every,
        "seed": settings.seed,
        "piece": run.experiment.training.piece,
    }
    return record(run.model, run.params, batches, **how)


def check_sequences(experiment: Experiment, dataset: Dataset, split: str) -> None:
    """Raises InputError, before work starts, where the split has too few sequences to measure a memory on."""
    count = count_sequences(experiment, dataset, split)
    if count < FEWEST:
        data = experiment.data
        more = (
            f"train with more data.eval_examples than {data.eval_examples}"
            if data.source in SYNTHETIC
            else "give more data" + (f", or train with a data.length below {data.length}" if data.length > 1 else "")
        )
        raise ArgumentError(
            "measure",
            f" needs at least {FEWEST} sequences, and the {split} split has {count}: use another --split of eval.py; "
            f"or {more}",
        )


def count_sequences(experiment: Experiment, dataset: Dataset, split: str) -> int:
    """Returns how many sequences `draw_samples` would read, counted up to as many as a measurement needs."""
    read, count, first = plan(experiment, dataset, split), 0, 0
    config = experiment.model.of_task(dataset.task)
    for batch in dataset.evaluate(split, read.batch_size):
        count += len(rows_read(config, batch, read.moments, first=first, every=read.every)[0])
        first += len(batch["weights"])
        if count >= FEWEST:
            break
    return count


def _scored_steps(dataset: Dataset, batch: dict[str, Any]) -> list[int]:
    """The steps of a task whose answers are all fixed before the first of them, and are therefore in the state if
    anywhere; else none.
    """
    if dataset.info.get("answer_nats") is None:
        return []
    steps = np.flatnonzero(np.asarray(batch["weights"])[0] > 0)
    after = np.asarray(batch["inputs"])[:, steps[0] :]
    return steps.tolist() if (after == after[0, 0]).all() and steps[0] > 0 else []


def _moments(config: Model, batch: dict[str, Any], settings: Measure, scored: list[int]) -> list[int]:
    """Evenly from the longest lag to the end, or to the step before the first answer."""
    frames = kind_of(config.task).frames(config, batch["inputs"].shape[1])
    last = scored[0] - 1 if scored else frames - 1
    start = min(settings.longest_lag, last // 2)
    return sorted({*np.linspace(start, last, settings.positions).round().astype(int).tolist(), last})


def _block(
    run: Run,
    recording: Recording,
    name: str,
    covariances: memory_of_future.Covariances | None,
    asked: memory_by_answer.Answers | None,
) -> Results:
    block, settings = recording.blocks[name], run.experiment.measure
    information = memory_of_past.past_information(run, recording, name)
    results = {"components": block.states.shape[-1], "information": information} | measure_retention(
        recording, block, settings
    )
    ceiling = memory_of_past.ceiling(information)
    results["retention"]["fano"] = None if ceiling is None else _fano(ceiling, results["retention"])
    results["verdict"] = (
        None
        if ceiling is None
        else _verdict(ceiling, results["retention"], information if name == block_name(0) else [])
    )
    training = Training(seed=settings.seed, shuffle=recording.starts is None)
    results["future"] = (
        None if covariances is None else memory_of_future.efficiency(block, information, covariances, training)
    )
    results["by_answer"] = (
        None if asked is None else memory_by_answer.by_answer(block, asked, results["future"], training)
    )
    return results


def _fano(ceiling: Estimate, retention: Results) -> list[float] | None:
    """By lag, the least share of wrong tokens of any decoder of the state."""
    if retention["entropy"] is None:
        return None
    nats = [bits / BITS for bits in retention["entropy"]]
    return [
        float(limits.fano_error(entropy, min(memory_of_past.limit(ceiling), entropy), retention["symbols"]))
        for entropy in nats
    ]


def _verdict(ceiling: Estimate, retention: Results, information: list[Results]) -> Results:
    """Data processing from the state to what a decoder makes of it, at the lag of which it says most.

    A decoder of V symbols says at most log V. Lower bounds on what the state knows of the inputs, of `information`,
    show that it knows more than any decoder can say; those on what it knows of more than the inputs do not.
    """
    most = int(np.argmax(retention["lower"]))
    downstream = [
        Estimate(
            retention["lower"][most] / BITS,
            retention["stderr"][most] / BITS,
            "lower",
            f"decoder of lag {retention['lags'][most]}",
        )
    ]
    if retention["symbols"]:
        downstream.append(Estimate(math.log(retention["symbols"]), 0.0, "upper", "as many symbols"))
    lower = [
        Estimate(moment["lower"] / BITS, moment["stderr"] / BITS, "lower", "the bracket")
        for moment in information
        if "lower" in moment and moment["given"] == memory_of_past.INPUTS
    ]
    least = [min(lower, key=lambda bound: bound.nats)] if lower and len(lower) == len(information) else []
    verdict = limits.data_processing([ceiling, *least], downstream)
    return {"status": verdict.status, "slack": verdict.slack * BITS, "reason": verdict.reason}
