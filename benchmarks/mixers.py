"""Claim: every mixer learns: three layers of it reach 1.95 nats a character of Shakespeare in two and a half CPU
minutes, at half a million parameters.

  python benchmarks/mixers.py --rounds 1 --data FOLDER    # with the package installed

Rounds are seeds. All models have the width, the data, the batch and the schedule of configs/shakespeare.py with three
blocks, trained on the first 85 % of the text; the hidden width of the MLP is what makes the parameters half a million,
within half a per cent. The number of steps is what the budget of CPU time allows, by the time of a short run before:
all threads of the process are counted, the start and the compilation with them. Scored once on the last 10 % of the
text, read as one stream with the state carried. Scores are kept in runs/mixers/scores.json as they come, and a mixer
that has its own there is not trained again.
"""

import argparse
import dataclasses
import json
import pathlib
import shutil
import sys
import time
from typing import Any

import measure

from configs import shakespeare
from selssm_jax.analysis import costs
from selssm_jax.config import Experiment, Model, Task
from selssm_jax.config.mixers import MIXERS
from selssm_jax.runs import open_run
from selssm_jax.sweep import compared_models
from selssm_jax.training import loop
from selssm_jax.training.evaluation import Evaluator

PARAMETERS, BUDGET, TARGET = 500_000, 150.0, 1.95
VOCAB = 65  # characters of the text
PROBE = (20, 60)  # steps of two short runs, whose difference is free of start and compilation
SPARE = 12.0  # seconds of the budget for start, compilation and validation
SIZES: dict[str, dict[str, Any]] = {
    "selective": {"d_state": 160, "conv": 4},
    "kalman": {"d_state": 128, "conv": 4},
    "kalman_attention": {"d_state": 16},
    "s4d": {"d_state": 32},
    "s5": {"d_state": 128},
    "lru": {"d_state": 128},
    "rg_lru": {"d_state": 128, "rg_lru": {"blocks": 4}},
    "mamba": {"d_state": 16},
    "mamba2": {"d_state": 32, "mamba2": {"heads": 8}},
    "min_gru": {"d_state": 128, "conv": 4},
    "rnn": {"d_state": 128, "conv": 4},
    "lstm": {"d_state": 96, "conv": 4},
    "gru": {"d_state": 96, "conv": 4},
    "attention": {"attention": {"heads": 4, "window": 128}},
    "local_attention": {"local_attention": {"heads": 4, "window": 32}},
    "tcn": {"tcn": {"kernel": 3}},
}
FOLDER = pathlib.Path(__file__).parent.parent / "runs" / "mixers"


def benchmark(seeds: int, data: str) -> dict[str, Any]:
    """Every mixer's score, those that are known as they are."""
    kept = FOLDER / "scores.json"
    found: dict[str, list[dict[str, Any]]] = json.loads(kept.read_text()) if kept.exists() else {}
    for kind in MIXERS:
        for seed in range(len(found.get(kind, [])), seeds):
            found[kind] = [*found.get(kind, []), scored(kind, seed, data)]
            kept.write_text(json.dumps(found))
            print(kind, round(found[kind][-1]["nats"], 3), file=sys.stderr, flush=True)
    ratios = {
        f"nats a character, {kind}": {"ours": max(run["nats"] for run in runs), "at_most": TARGET}
        for kind, runs in found.items()
    }
    return {"dtype": "float32", "seeds": seeds, "budget_cpu_seconds": BUDGET, "ratios": ratios, "mixers": found}


def experiment(kind: str, seed: int, steps: int, data: str) -> Experiment:
    """The recipe with three blocks of the mixer."""
    base = shakespeare.get_config()
    base.data.update(train_on="train", local_dir=data, seed=seed)
    base.model.update({"pattern": (kind,) * 3, "conv": 0} | SIZES[kind])
    base.training.update(steps=steps, seed=seed, eval_every=steps, checkpoint_every=steps, devices=1, select="last")
    base.optimizer.warmup_steps = min(base.optimizer.warmup_steps, steps // 2)
    whole = Experiment.from_config_dict(base)
    return dataclasses.replace(whole, model=dataclasses.replace(whole.model, mlp_ratio=_ratio(whole.model)))


def _ratio(model: Model) -> float:
    """The MLP's hidden width over d_model that makes PARAMETERS."""
    without, one = (parameters(dataclasses.replace(model, mlp_ratio=width / model.d_model)) for width in (8, 9))
    return (8 + (PARAMETERS - without) / (one - without)) / model.d_model


def parameters(model: Model) -> int:
    """Parameters of the model, as a language model of the text."""
    return compared_models.parameters(model, Task("language", vocab=VOCAB))


def scored(kind: str, seed: int, data: str) -> dict[str, Any]:
    """One run within the budget, and its score."""
    few, more = (_trained(kind, seed, steps, data)[1] for steps in PROBE)
    pace = (more - few) / (PROBE[1] - PROBE[0])
    folder, seconds = _trained(kind, seed, int((BUDGET - SPARE) / pace), data)
    run = open_run(folder)
    metrics = Evaluator(run.experiment, run.model)(run.params, run.dataset, "test")
    return {
        "nats": metrics["nats"],
        "cpu_seconds": round(seconds, 1),
        "steps": run.step,
        "seed": seed,
        "parameters": sum(costs.parameters(run.params).values()),
        "state_bytes": costs.state_bytes(run.model, run.params),
        "sizes": SIZES[kind] | {"mlp_hidden": round(run.experiment.model.mlp_ratio * run.experiment.model.d_model)},
    }


def _trained(kind: str, seed: int, steps: int, data: str) -> tuple[pathlib.Path, float]:
    folder = FOLDER / f"{kind}_{seed}_{steps}"
    shutil.rmtree(folder, ignore_errors=True)
    start = time.process_time()
    loop.fit(experiment(kind, seed, steps, data), str(folder))
    return folder, time.process_time() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data", default="", help="a folder that holds the text; empty: it is downloaded")
    given, sys.argv[1:] = parser.parse_known_args()
    measure.run("mixers", __doc__, lambda seeds: benchmark(seeds, given.data), rounds=1)
