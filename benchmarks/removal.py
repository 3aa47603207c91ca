"""Claim: a one-pass score removes a quarter of the blocks as well as greedy removal, and decoding is as much faster.

  python benchmarks/removal.py --rounds 20    # with the package installed

Eight blocks of "selective" on characters of the Python reference, five seeds, trained for STEPS steps. Of each run two
of eight blocks are removed, or two of eight recurrences, or two of eight MLPs, and nothing is trained again: by
"loss", greedily, which reads the calibration batches anew for every set; by one pass over the same batches
("expansion", "information", "memory", "influence", "relevance", as `compression.removal.measure_costs` says); and by
all 28 pairs.
Sets are chosen on training batches, losses are those of batches of the test split. Two blocks are gone in "tuned" too,
by greedy removal and the first of the pairs at random; what is left is trained for TUNED more steps, and so is the
whole model, so that these steps are no advantage. Rounds are those of the clock: CPU
time of a decoded token by the whole model and by that without two, four and six blocks, in turn, at three widths.
"""

import dataclasses
import itertools
import pathlib
import time
from collections.abc import Sequence
from functools import partial
from statistics import fmean, median
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np
from seed_runs import train_seeds

from configs import quickstart
from selssm_jax.compression import removal
from selssm_jax.compression.finetune import finetune
from selssm_jax.config import Model
from selssm_jax.model import SequenceModel
from selssm_jax.runs import Run

BLOCKS, GONE = 8, 2
SEEDS, STEPS = 5, 500
CALIBRATION, TEST = 4, 16  # batches
TUNED = 200  # steps after removal
WIDTH, WIDTHS = 48, (48, 128, 256)  # of what is trained, and of what is timed
ROWS, TOKENS = 8, 32  # sequences that are decoded at once, tokens of a call
KINDS = ("blocks", "recurrences", "mlps")
ONE_PASS = ("expansion", "information", "memory", "influence", "relevance")
WITHIN = 1.02  # of the loss of greedy removal
FOLDER = pathlib.Path(__file__).parent.parent / "runs" / "removal"


def benchmark(rounds: int, folder: pathlib.Path = FOLDER, **changes: Any) -> dict[str, Any]:
    """Every seed, and the clock of the first."""
    config = quickstart.get_config()
    config.data.update({"eval_batch_size": 16})
    config.model.update({"pattern": ("selective",) * BLOCKS, "d_model": WIDTH, "d_state": WIDTH, "dropout": 0.0})
    config.training.update({"steps": STEPS, "eval_every": STEPS, "checkpoint_every": STEPS, "devices": 1} | changes)
    runs = train_seeds(config, folder, SEEDS, "test")
    return summarise([remove_quarters(run) for run in runs], time_decoding(runs[0].model.config, rounds))


def summarise(seeds: list[dict[str, Any]], decoding: dict[str, Any]) -> dict[str, Any]:
    """The record: means over seeds beside their targets, and all that they are means of."""

    def over_greedy(how: str) -> float:
        return fmean(seed["blocks"][how]["test"] / seed["blocks"]["loss"]["test"] for seed in seeds)

    evaluations = {how: fmean(seed["blocks"][how]["evaluations"] for seed in seeds) for how in ("loss", *ONE_PASS)}
    best = [seed["blocks"]["all pairs"]["parts"] == sorted(seed["blocks"]["loss"]["parts"]) for seed in seeds]
    seconds = {
        how: [seed["seconds of a choice of blocks, compiled anew"][how] for seed in seeds] for how in evaluations
    }
    ratios: dict[str, dict[str, float]] = {
        f"{how}, one pass: test loss without two of eight blocks over that of greedy removal": {
            "ours": over_greedy(how),
            "at_most": WITHIN,
        }
        for how in ONE_PASS
    }
    ratios["one pass: evaluations over those of greedy removal"] = {
        "ours": evaluations["information"] / evaluations["loss"],
        "at_most": 1 / BLOCKS,
    }
    for how in ONE_PASS:
        ratios[f"{how}, one pass: seconds over those of greedy removal, both compiled anew"] = {
            "ours": median(mine / greedy for mine, greedy in zip(seconds[how], seconds["loss"], strict=True))
        }
    ratios["greedy removal: share of seeds whose pair is the best of all on the batches of the choice"] = {
        "ours": fmean(best)
    }
    for kind in KINDS:
        for how in ("loss", "a pair at random"):
            whole = fmean(seed[kind][how]["test"] / seed["whole"] for seed in seeds)
            ratios[f"two of eight {kind}, {how}: test loss over that of the whole model"] = {"ours": whole}
    for how in ("loss", "a pair at random"):
        ratios[
            f"two of eight blocks, {how}, {TUNED} steps of tuning: test loss over that of the whole model, tuned"
        ] = {"ours": fmean(seed["tuned"][how] / seed["tuned"]["whole"] for seed in seeds)}
    for width, times in decoding.items():
        fall = times["fall over the share of blocks that went"]["2"]
        ratios[f"{width} wide, without two of eight blocks: fall of the time of a token over the share, less 1"] = {
            "ours, by size": abs(fall - 1),
            "at_most": 0.1,
        }
    return {
        "dtype": "float32",
        "seeds": len(seeds),
        "shapes": {"blocks": BLOCKS, "width": WIDTH, "rows decoded": ROWS, "tokens of a call": TOKENS},
        "steps": STEPS,
        "batches": {"calibration": CALIBRATION, "test": TEST},
        "ratios": ratios,
        "decoding": decoding,
        "runs": seeds,
    }


def remove_quarters(run: Run) -> dict[str, Any]:
    """Test losses of one run, whole and without two parts of every kind, by every choice."""
    assert isinstance(run.model, SequenceModel)
    model, params, data = run.model, run.params, run.experiment.data
    drawn = run.dataset.train(data.batch_size, seed=data.seed + 1)
    batches = [next(drawn) for _ in range(CALIBRATION)]
    held_out = list(itertools.islice(run.dataset.evaluate("test", data.eval_batch_size), TEST))
    test = removal.BypassedLoss(model, params, held_out)
    costs, seconds, blocks = {}, {}, removal.list_parts(model.config, ["blocks"])
    for how in ("loss", *ONE_PASS):
        start = time.perf_counter()
        costs[how] = removal.measure_costs(model, params, batches, how)
        list(removal.find_greedily(costs[how], model.config, blocks, GONE))
        seconds[how] = time.perf_counter() - start
    results: dict[str, Any] = {"seed": run.experiment.training.seed, "whole": test([])}
    results["seconds of a choice of blocks, compiled anew"] = seconds
    for kind in KINDS:
        parts, chosen = removal.list_parts(model.config, [kind]), {}
        for how, cost in costs.items():
            if how == "memory" and kind == "mlps":  # which hold nothing
                continue
            before = getattr(cost, "evaluations", 0)
            steps = removal.find_greedily(cost, model.config, parts, GONE)
            names = [step.part for step in steps]
            count = getattr(cost, "evaluations", 1) - before
            chosen[how] = {"parts": names, "evaluations": count, "test": test(names)}
        pair, _ = removal.find_exhaustively(costs["loss"], model.config, parts, GONE)
        chosen["all pairs"] = {"parts": sorted(pair), "test": test(pair)}
        pairs = [test(pair) for pair in itertools.combinations(parts, GONE)]
        chosen["a pair at random"] = {"test": fmean(pairs), "least": min(pairs), "most": max(pairs)}
        results[kind] = chosen
    results["tuned"] = tune(run, results["blocks"]["loss"]["parts"], held_out)
    print(results, flush=True)
    return results


def tune(run: Run, greedy: list[str], test: Sequence[Any]) -> dict[str, float]:
    """Test losses after TUNED steps of tuning: of the whole model, without the blocks that greedy removal takes, and
    without two at random.
    """
    assert isinstance(run.model, SequenceModel)
    drawn = np.random.default_rng(run.experiment.training.seed).choice(BLOCKS, GONE, replace=False)
    gone = {"whole": [], "loss": greedy, "a pair at random": [f"block_{index}" for index in drawn]}
    compress = dataclasses.replace(run.experiment.compress, steps=TUNED)
    experiment, losses = dataclasses.replace(run.experiment, compress=compress), {}
    for how, parts in gone.items():
        config, params = (
            removal.remove(run.model.config, run.params, parts) if parts else (run.model.config, run.params)
        )
        model = SequenceModel(config)
        params = finetune(experiment, model, params, run.dataset)
        losses[how] = removal.BypassedLoss(model, params, test)([])
    return losses


def time_decoding(config: Model, rounds: int) -> dict[str, Any]:
    """By width, CPU milliseconds of a token, whole and without blocks, and by how much they fall over the share that
    went; the weights are as drawn, which takes as long.
    """
    return {
        str(width): time_width(dataclasses.replace(config, d_model=width, d_state=width), rounds) for width in WIDTHS
    }


def time_width(config: Model, rounds: int) -> dict[str, Any]:
    """The times of one width; every model in turn."""
    tokens = jnp.zeros((ROWS, TOKENS), jnp.int32)
    whole = jax.jit(SequenceModel(config).init)(jax.random.key(0), tokens)["params"]
    calls: dict[int, Any] = {}
    seconds: dict[int, list[float]] = {gone: [] for gone in (0, 2, 4, 6)}
    for gone in seconds:
        smaller, params = removal.remove(config, whole, [f"block_{index}" for index in range(gone)])
        model = SequenceModel(smaller)
        arguments = params, tokens, model.apply({"params": params}, ROWS, method="initial_state")
        calls[gone] = measure.compiled(partial(decode, model), *arguments), arguments
    for _ in range(rounds + 1):  # the first only warms up
        for gone, (call, arguments) in calls.items():
            start = time.process_time()
            jax.block_until_ready(call(*arguments))
            seconds[gone].append(time.process_time() - start)
    pairs = {gone: zip(values[1:], seconds[0][1:], strict=True) for gone, values in seconds.items() if gone}
    falls = {gone: 1 - median(without / all_of_it for without, all_of_it in both) for gone, both in pairs.items()}
    return {
        "rounds": rounds,
        "CPU milliseconds of a token": {str(gone): 1e3 * median(spent[1:]) / TOKENS for gone, spent in seconds.items()},
        "fall over the share of blocks that went": {str(gone): fall / (gone / BLOCKS) for gone, fall in falls.items()},
    }


def decode(model: SequenceModel, params: Any, tokens: jax.Array, state: Any) -> jax.Array:
    """The outputs after tokens that are read one at a time."""

    def step(state: Any, token: jax.Array) -> tuple[Any, jax.Array]:
        outputs, state = model.apply({"params": params}, token, state, method="step")
        return state, outputs.argmax(axis=-1)

    return jax.lax.scan(step, state, tokens.T)[1]


if __name__ == "__main__":
    measure.run("removal", __doc__, benchmark, rounds=20)
