"""What the states of a trained model know: of all their past, of single inputs by lag, of the answers and of the future (theory, sections 4, 6, 7).

All numbers of the results are in bits, and each goes with its direction: exact, lower, upper or estimate.
"""

import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from selssm_jax.config import FEWEST, SYNTHETIC, Experiment, Measure
from selssm_jax.data import Dataset
from selssm_jax.errors import InputError
from selssm_jax.information import limits
from selssm_jax.information._estimate import Estimate
from selssm_jax.information.estimators import Training
from selssm_jax.model import Reader
from selssm_jax.reporting.memory import future, past
from selssm_jax.reporting.memory.lags import measure_retention
from selssm_jax.reporting.memory.recording import Recording, record, rows_read
from selssm_jax.reporting.run import Run
from selssm_jax.tasks.registry import kind_of

Results = dict[str, Any]
BITS = 1 / math.log(2)


def measure(run: Run, split: str) -> Results:
    """Returns everything that the report says of the run's memory, as JSON-able values in bits."""
    seen = recording(run, split)
    covariances = None if seen.targets is None else future.covariances(seen.frames, seen.targets)
    blocks = {name: _block(run, seen, name, covariances) for name in seen.blocks}
    answers = None if seen.answers is None else future.answers(run, seen, seen.answers, blocks)
    found = {"unit": "bits", "sequences": len(seen.frames), "overlapping": seen.starts is not None, "moments": seen.moments.tolist()}
    return found | {"blocks": blocks, "answers": answers}


@runtime_checkable
class Readable(Protocol):
    """What sequences are counted of: a run, or one that is not trained yet."""

    @property
    def experiment(self) -> Experiment:
        """What it was, or is to be, trained as."""
        ...

    @property
    def model(self) -> Reader:
        """Its model."""
        ...

    @property
    def dataset(self) -> Dataset:
        """Its data."""
        ...


class Plan(NamedTuple):
    """What is read of a split: batches of so many rows, the moments of a sequence, the steps with answers, and each so-manieth window of a series."""

    batch_size: int
    moments: list[int]
    scored: list[int]
    every: int


def plan(run: Readable, split: str) -> Plan:
    """Returns what `run.experiment.measure` asks for of a split: of windows that overlap, as many as that, spread over the whole split."""
    settings, data = run.experiment.measure, run.experiment.data
    size = data.eval_batch_size or data.batch_size
    first = next(iter(run.dataset.evaluate(split, size)))
    scored = _scored_steps(run, first)
    windows = int(run.dataset.info.get(f"{split}_windows", 0))
    rows = kind_of(run.model.config.task).rows(run.model.config)
    every = max(windows * rows // settings.samples, 1) if windows else 0
    return Plan(size, _moments(run.model, first, settings, scored), scored, every)


def recording(run: Run, split: str) -> Recording:
    """Returns the states and inputs of the sequences that `plan` names."""
    settings, read = run.experiment.measure, plan(run, split)
    batches = run.dataset.evaluate(split, read.batch_size)
    how: dict[str, Any] = {"samples": settings.samples, "moments": read.moments, "scored": read.scored, "every": read.every, "seed": settings.seed}
    return record(run.model, run.params, batches, **how)


def check_sequences(run: Readable, split: str) -> None:
    """Raises InputError, before work starts, where the split has too few sequences to measure a memory on."""
    count = sequences(run, split)
    if count < FEWEST:
        data = run.experiment.data
        more = f"raise data.eval_examples={data.eval_examples}" if data.source in SYNTHETIC else f"give more data, or a shorter data.length={data.length}"
        raise InputError(f"--measure needs at least {FEWEST} sequences, and the {split} split has {count}: use another --split of eval.py; or {more}")


def sequences(run: Readable, split: str) -> int:
    """Returns how many sequences `recording` would read, counted up to as many as a measurement needs."""
    read, count, first = plan(run, split), 0, 0
    for batch in run.dataset.evaluate(split, read.batch_size):
        count += len(rows_read(run.model, batch, read.moments, first=first, every=read.every)[0])
        first += len(batch["weights"])
        if count >= FEWEST:
            break
    return count


def _scored_steps(run: Readable, batch: dict[str, Any]) -> list[int]:
    """The steps of a task whose answers are all fixed before the first of them, and are therefore in the state if anywhere; else none."""
    if run.dataset.info.get("answer_nats") is None:
        return []
    steps = np.flatnonzero(np.asarray(batch["weights"])[0] > 0)
    after = np.asarray(batch["inputs"])[:, steps[0] :]
    return steps.tolist() if (after == after[0, 0]).all() and steps[0] > 0 else []


def _moments(model: Reader, batch: dict[str, Any], settings: Measure, scored: list[int]) -> list[int]:
    """Evenly from the longest lag to the end, or to the step before the first answer."""
    frames = kind_of(model.config.task).frames(model.config, batch["inputs"].shape[1])
    last = scored[0] - 1 if scored else frames - 1
    start = min(settings.longest_lag, last // 2)
    return sorted({*np.linspace(start, last, settings.positions).round().astype(int).tolist(), last})


def _block(run: Run, seen: Recording, name: str, covariances: future.Covariances | None) -> Results:
    block, settings = seen.blocks[name], run.experiment.measure
    information = past.past_information(run, seen, name)
    found = {"components": block.states.shape[-1], "information": information} | measure_retention(seen, block, settings)
    ceiling = past.ceiling(information)
    found["retention"]["fano"] = None if ceiling is None else _fano(ceiling, found["retention"])
    found["verdict"] = None if ceiling is None else _verdict(ceiling, found["retention"], information if name == "block_0" else [])
    training = Training(seed=settings.seed, shuffle=seen.starts is None)
    found["future"] = None if covariances is None else future.efficiency(block, information, covariances, training)
    return found


def _fano(ceiling: Estimate, kept: Results) -> list[float] | None:
    """By lag, the least share of wrong tokens of any decoder of the state."""
    if kept["entropy"] is None:
        return None
    nats = [bits / BITS for bits in kept["entropy"]]
    return [float(limits.fano_error(entropy, min(past.limit(ceiling), entropy), kept["symbols"])) for entropy in nats]


def _verdict(ceiling: Estimate, kept: Results, information: list[Results]) -> Results:
    """Data processing from the state to what a decoder makes of it, at the lag of which it says most.

    A decoder of V symbols says at most log V. Lower bounds on what the state knows, of `information`, show that it knows more than any decoder can say.
    """
    most = int(np.argmax(kept["lower"]))
    downstream = [Estimate(kept["lower"][most] / BITS, kept["stderr"][most] / BITS, "lower", f"decoder of lag {kept['lags'][most]}")]
    if kept["symbols"]:
        downstream.append(Estimate(math.log(kept["symbols"]), 0.0, "upper", "as many symbols"))
    lower = [Estimate(one["lower"] / BITS, one["stderr"] / BITS, "lower", "the bracket") for one in information if "lower" in one]
    least = [min(lower, key=lambda one: one.nats)] if lower and len(lower) == len(information) else []
    verdict = limits.data_processing([ceiling, *least], downstream)
    return {"status": verdict.status, "slack": verdict.slack * BITS, "reason": verdict.reason}
