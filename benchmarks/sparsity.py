"""Claim: a gate penalty makes memory sparse, and sparse gates choose: they open for data and stay shut for noise.

  python benchmarks/sparsity.py --rounds 1    # with the package installed

Rounds are the seeds of the sweep: selective copying of 8 symbols in 64 steps, 1000 steps of training, training.gate_l1
from 0 to 3; dim_eff and accuracy of the validation split. Then one run of configs/selective_copying.py with
training.target_dimension = 0.08, a setting that was chosen on the validation split of the short task: 8000 steps, then,
as 98.1 % of the answers of its own validation split were not enough, with the learning rate raised again, to 11000
(98.9 %), and once more to 13000. Its test split is read here, once. AUROC: how well the mean gate of a step tells the
symbols from the blanks, before the first mark: of every block, and of the whole model.
"""

import pathlib
from typing import Any

import measure
import numpy as np

from configs import selective_copying
from selssm_jax.analysis.gate_selectivity import mean_gates, separation
from selssm_jax.config import Experiment
from selssm_jax.model import SequenceModel
from selssm_jax.runs import Run, open_run
from selssm_jax.training import loop
from selssm_jax.training.evaluation import Evaluator

WEIGHTS = (0.0, 0.1, 0.3, 1.0, 3.0)
SHORT: dict[str, dict[str, Any]] = {
    "data": {"length": 64, "vocab": 8, "tokens": 8},
    "training": {"steps": 1000, "eval_every": 1000, "checkpoint_every": 1000},
}
TARGET = {"target_dimension": 0.08, "penalty_warmup": 1000}
STAGES = (8000, 11_000, 13_000)  # steps; each ends a cosine of its own
FOLDER = pathlib.Path(__file__).parent.parent / "runs" / "sparsity"


def benchmark(rounds: int) -> dict[str, Any]:
    """The sweep and the run."""
    sweep = [swept(weight, seed) for seed in range(rounds) for weight in WEIGHTS]
    dimensions = {
        weight: float(np.mean([run["dim_eff"] for run in sweep if run["gate_l1"] == weight])) for weight in WEIGHTS
    }
    copying = trained(FOLDER / "copying", "test", {"training": TARGET}, STAGES)
    share = copying["dim_eff"] / copying["components"]
    ratios = {
        "largest dim_eff of a weight over that of the weight before": {
            "ours": max(
                new / old
                for old, new in zip(list(dimensions.values())[:-1], list(dimensions.values())[1:], strict=True)
            ),
            "at_most": 1,
        },
        "dim_eff over n on selective copying": {"ours": share, "at_most": 0.1},
        "test accuracy at that": {"ours": copying["accuracy"], "at_least": 0.99},
        "AUROC of symbols against blanks, mean gate of the whole model": {
            "ours": copying["all"]["auroc"],
            "at_least": 0.95,
        },
        "AUROC of symbols against blanks, least of all blocks": {
            "ours": min(block["auroc"] for block in copying["blocks"].values()),
            "at_least": 0.95,
        },
    }
    return {
        "dtype": "float32",
        "seeds": rounds,
        "ratios": ratios,
        "dim_eff": dimensions,
        "copying": copying,
        "sweep": sweep,
    }


def swept(weight: float, seed: int) -> dict[str, Any]:
    """One run of the short task."""
    training = SHORT["training"] | {"gate_l1": weight, "seed": seed, "penalty_warmup": 200 if weight else 0}
    found = trained(
        FOLDER / f"l1_{weight:g}_seed_{seed}", "validation", SHORT | {"training": training}, (training["steps"],)
    )
    return {"gate_l1": weight, "seed": seed} | found


def trained(
    folder: pathlib.Path, split: str, overrides: dict[str, dict[str, Any]], stages: tuple[int, ...]
) -> dict[str, Any]:
    """Trains a run of the recipe, as far as that was not done yet, and measures it."""
    config = selective_copying.get_config()
    config.training.devices = 1
    for group, values in overrides.items():
        config[group].update(values)
    for steps in stages:
        config.training.steps = steps
        if not (folder / "checkpoints" / str(stages[-1])).exists():
            loop.fit(Experiment.from_config_dict(config), str(folder))
    return measured(open_run(folder, split=split), split)


def measured(run: Run, split: str) -> dict[str, Any]:
    """Metrics of a split, dim_eff over all its steps, and what gates do for symbols and for blanks."""
    assert isinstance(run.model, SequenceModel)  # a run that is not compressed
    data = run.experiment.data
    scores = Evaluator(run.experiment, run.model)(run.params, run.dataset, split)
    inputs, gates = mean_gates(run.model, run.params, run.dataset.evaluate(split, data.eval_batch_size))
    symbols, blanks = inputs < data.vocab, inputs == data.vocab
    n = run.model.config.d_state
    effective = n * float(np.mean([gate.mean() for gate in gates.values()]))
    blocks = {
        name: separation(gate, symbols, blanks)._asdict() | {"dim_eff": n * float(gate.mean())}
        for name, gate in gates.items()
    }
    whole = separation(np.mean(list(gates.values()), axis=0), symbols, blanks)._asdict()
    sizes = {"components": n, "dim_eff": effective, "compression_factor": n / effective}
    return {**scores, "split": split, "step": run.step, **sizes, "all": whole, "blocks": blocks}


if __name__ == "__main__":
    measure.run("sparsity", __doc__, benchmark, rounds=1)
