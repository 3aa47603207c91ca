"""Claim: a memory serves two answers, and its report tells what they share of it from what is private to one.

  python benchmarks/two_answers.py --rounds 3    # with the package installed

Rounds are seeds. configs/two_answers.py: three hidden states, of which the first is in both answers. One memory of n
numbers for both answers beside two memories of n/2 numbers for one answer each, which read the same inputs: error of
each answer on the test split over that of the exact filter on the same sequences. Of memories for both, with process
noise and prices of a nat and without: bits of each answer in the last state (`analysis.memory_by_answer`) over what the
past tells of it; squared correlations of each component with the means of the exact filters of the three hidden states;
and whether the report calls it shared where it follows the first of them, private where it follows another.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import measure
import numpy as np
from seed_runs import train_seeds

from configs import two_answers as recipe
from selssm_jax.analysis import memory, memory_by_answer, scores
from selssm_jax.analysis.results import BITS
from selssm_jax.config import Data
from selssm_jax.config.data import SOURCES
from selssm_jax.data import Dataset, register_data, synthetic
from selssm_jax.information import estimators
from selssm_jax.information.estimators import Training
from selssm_jax.runs import Run

ALONE = ("first_answer", "second_answer")  # sources of one of the two answers
NOISE = 0.3  # deviation of the process noise of memories that have a price
PRICED = "4, noise, 0.001 a nat"  # that of the recipe
# by name: numbers of the state, deviation of its noise, price of a nat
MEMORIES = {
    "2": (2, 0.0, 0.0),
    "3": (3, 0.0, 0.0),
    "4": (4, 0.0, 0.0),
    "4, noise": (4, NOISE, 0.0),
    PRICED: (4, NOISE, 0.001),
    "4, noise, 0.01 a nat": (4, NOISE, 0.01),
}
DRAWN = 1  # seed of the sequences: the recipe and its price were chosen on others, those of seed 0
FOLDER = pathlib.Path(__file__).parent.parent / "runs" / "two_answers_benchmark"


def benchmark(rounds: int) -> dict[str, Any]:
    """Every memory."""
    register_alone()
    memories = {name: [describe(run) for run in train(*given, rounds)] for name, given in MEMORIES.items()}
    alone = {n: [errors_alone(answer, n, rounds) for answer in (0, 1)] for n in (1, 2)}

    def excess(errors: Any) -> float:
        """Over the exact filter's, less 1, in the mean over answers and seeds."""
        return float(np.mean(errors) - 1)

    def mean(name: str, key: str) -> float:
        return float(np.mean([found[key] for found in memories[name]]))

    together = {name: excess([found["error over the exact filter's"] for found in memories[name]]) for name in "234"}
    apart = {n: excess(errors) for n, errors in alone.items()}
    ratios: dict[str, dict[str, float]] = {}
    for answer, words in enumerate(("first", "second")):
        for name in ("3", "4", PRICED):
            shares = np.array([found["share of what the past tells"][answer] for found in memories[name]])
            errors = np.array([found["error of the share"][answer] for found in memories[name]])
            ratios[f"bits of the {words} answer in a memory of {name} over those of the past"] = {
                "ours": float(shares.mean()),
                "at_most": 1 + 2 * float(errors.mean()),
            }
    ratios |= {
        "one memory of 4: error over the exact filter's, less 1": {"ours": together["4"], "at_most": 0.01},
        "two memories of 2: the same": {"ours": apart[2]},
        "one memory of 3, three quarters of the bytes: the same": {"ours": together["3"], "at_most": 0.01},
        "one memory of 2: error over that of two memories of 1": {
            "ours": (1 + together["2"]) / (1 + apart[1]),
            "at_most": 1,
        },
    }
    ratios |= {
        f"memory of {name}: components told shared or private as the state they follow, share": {
            "ours": mean(name, "told rightly"),
            **({"at_least": 0.9} if name == PRICED else {}),
        }
        for name in MEMORIES
    }
    ratios |= {
        f"memory of {name}: share of one hidden state in what a component follows": {"ours": mean(name, "purity")}
        for name in MEMORIES
    }
    alone_errors = {str(n): errors for n, errors in alone.items()}
    return {"dtype": "float32", "seeds": rounds, "ratios": ratios, "memories": memories, "alone": alone_errors}


def register_alone() -> None:
    """Makes each answer by itself a source: the inputs of both, its own series in front."""

    def load(answer: int, config: Data, known: Mapping[str, Any]) -> Dataset:
        del known  # the series are drawn
        whole = synthetic.dataset(dataclasses.replace(config, source="two_answers"))
        order = [answer, 1 - answer, 2]

        def choose(batch: Mapping[str, Any]) -> dict[str, Any]:
            return {**batch, "inputs": batch["inputs"][..., order], "targets": batch["targets"][..., [answer]]}

        return dataclasses.replace(
            whole,
            task=dataclasses.replace(whole.task, channels=1, covariates=2),
            draw=lambda seed, numbers: choose(whole.draw(seed, numbers)),
            cover=lambda split, size: map(choose, whole.cover(split, size)),
        )

    for answer, name in enumerate(ALONE):
        if name not in SOURCES:
            register_data(name, partial(load, answer), kind="forecasting")


def train(
    n: int,
    noise: float,
    price: float,
    seeds: int,
    source: str = "two_answers",
    folder: pathlib.Path = FOLDER,
    data: Mapping[str, Any] | None = None,
    **training: Any,
) -> list[Run]:
    """Finished runs of the recipe with n numbers of state, noise in it and a price of a nat, one a seed."""
    config = recipe.get_config()
    config.data.update({"source": source, "seed": DRAWN} | dict(data or {}))
    config.model.d_state = n
    config.model.selective.process_noise = noise
    free = {} if price else {"penalty_warmup": 0}
    config.training.update({"devices": 1, "log_every": 1000, "information_weight": price} | free | training)
    return train_seeds(config, folder / source / f"{n}_{noise:g}_{price:g}", seeds, "test")


def errors_alone(answer: int, n: int, seeds: int, **options: Any) -> list[float]:
    """Error of one answer over that of the exact filter, of a memory of its own, by seed."""
    runs = train(n, 0.0, 0.0, seeds, ALONE[answer], **options)
    exact = filter_errors(synthetic.dataset(dataclasses.replace(runs[0].experiment.data, source="two_answers")))
    return [errors_of(run)[0] / exact[answer] for run in runs]


def describe(run: Run) -> dict[str, Any]:
    """Of a memory of both answers: errors, bits, and what its components follow and are said to be for."""
    recording = memory.draw_samples(run, "test")
    states, known = recording.blocks["block_0"].states[:, -1], run.dataset.info["answers_known"]
    asked = memory_by_answer.find_answers(recording, run.dataset.info)
    assert recording.targets is not None and asked is not None
    training = Training(steps=200, seed=run.experiment.measure.seed)
    whole = estimators.hybrid(states, recording.targets.reshape(len(states), -1), training=training)
    together = {"future": whole.bits, "stderr": whole.stderr * BITS}
    found = memory_by_answer.by_answer(recording.blocks["block_0"], asked, together, training)
    means = filter_means(recording.frames, run.experiment.data.noise)
    n = states.shape[1]
    follows = np.square(np.corrcoef(np.concatenate([states.T, means]))[:n, n:])
    truth = [
        {name for name, mixed in zip(found["answers"], synthetic.MIXING[:, part], strict=True) if mixed}
        for part in follows.argmax(axis=1)
    ]
    told = [set(names) for names in found["components"]["tells"]]
    speaking = [part for part in range(n) if told[part]]
    past = np.array(known["nats"]) * BITS
    return {
        "error over the exact filter's": (np.array(errors_of(run)) / filter_errors(run.dataset)).tolist(),
        "share of what the past tells": (np.array(found["bits"]) / past).tolist(),
        "error of the share": (np.array(found["stderr"]) / past).tolist(),
        "bits": found["bits"],
        "bits of the past": past.tolist(),
        "sum less together": found["overlap"],
        "sum less together, of the past": found["known"]["overlap"],
        "squared correlations with the filters": follows.tolist(),
        "told": found["components"]["tells"],
        "told rightly": float(np.mean([told[part] == truth[part] for part in speaking])) if speaking else 0.0,
        "purity": float(np.mean((follows.max(axis=1) / follows.sum(axis=1))[speaking])) if speaking else 0.0,
        "silent": n - len(speaking),
    }


def errors_of(run: Run) -> list[float]:
    """Mean squared errors of the answers on the test split."""
    found = scores.find_errors(run, "test")
    assert found is not None
    return list(found["by_channel"]["mse"])


def filter_errors(dataset: Dataset) -> np.ndarray:
    """Those of the exact filter on the same sequences."""
    ahead, errors = np.arange(1, dataset.task.horizon + 1), []
    decays = np.array(synthetic.PARTS)[:, None, None] ** ahead
    for batch in dataset.evaluate("test", 500):
        means = filter_means(np.asarray(batch["inputs"]), dataset.info["process"]["noise"])
        said = np.einsum("cp,prk->rkc", synthetic.MIXING, means[:, :, None] * decays)
        wrong = np.square(said - np.asarray(batch["targets"], np.float64)).mean(axis=1)
        errors.append(wrong[np.asarray(batch["weights"]) > 0])
    return np.concatenate(errors).mean(axis=0)


def filter_means(inputs: np.ndarray, noise: float) -> np.ndarray:
    """Of the three hidden states after the last step, (3, M), by the filter of each reading."""
    first, second, shared = np.moveaxis(np.asarray(inputs, np.float64), -1, 0)
    means = []
    for x, decay in zip((shared, first - shared, second - shared), synthetic.PARTS, strict=True):
        m, P = np.zeros(len(x)), 1.0
        for step in range(x.shape[1]):
            m, P = (decay * m, decay**2 * P + 1 - decay**2) if step else (m, P)
            gain = P / (P + noise)
            m, P = m + gain * (x[:, step] - m), (1 - gain) * P
        means.append(m)
    return np.stack(means)


if __name__ == "__main__":
    measure.run("two_answers", __doc__, benchmark, rounds=3)
