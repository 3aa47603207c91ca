"""Claim: intervals of 80 and 95 % that are calibrated on validation cover 80 +- 3 and 95 +- 2 % of the test values.

  python benchmarks/intervals.py --data FOLDER    # of the originals of ETTh1 and weather

The recipe etth1 on ETTh1 as it is, and on weather with 300 steps, each trained on the mean and, with as many steps, on
quantiles; the share of all values of the test split, over channels and steps of the horizon, that lie in the intervals
of `selssm_jax.intervals`: with the widths of validation, and with widths that follow how often earlier windows were
missed, as `eval.py --predict` has them. Below 1, the ratio of two interval scores says that the quantiles' intervals
are the better ones, wherever they are narrow or wide.
"""

import dataclasses
import pathlib
import tempfile
from typing import Any

import measure

from configs import etth1
from selssm_jax import intervals
from selssm_jax.config import Experiment
from selssm_jax.runs import open_run
from selssm_jax.training import loop
from selssm_jax.training.evaluation import Evaluator

ROOM = {0.8: 0.03, 0.95: 0.02}
STEPS = {"etth1": 1200, "weather": 300}
HEADS: dict[str, tuple[float, ...]] = {"mean": (), "quantiles": (0.025, 0.1, 0.5, 0.9, 0.975)}
WAYS = ("widths of validation", "widths that follow")


def benchmark(rounds: int, data: pathlib.Path) -> dict[str, Any]:
    """Two runs of each table; `rounds` is not used, for nothing is timed."""
    del rounds
    heads = {source: {head: cover(source, head, data) for head in HEADS} for source in STEPS}
    return {
        "dtype": "float32",
        "setting": {"steps": STEPS, "config": "configs/etth1.py", "quantiles": HEADS["quantiles"]},
        "ratios": compare_coverage(heads) | compare_heads(heads),
        "coverage": {source: {head: run["intervals"] for head, run in runs.items()} for source, runs in heads.items()},
        "scores": {source: {head: run["metrics"] for head, run in runs.items()} for source, runs in heads.items()},
    }


def compare_coverage(heads: dict[str, Any]) -> dict[str, Any]:
    """How far coverage is from its level, beside how far it may be."""
    return {
        f"{source}, {head}, {float(level):.0%}, {way}: distance of the coverage": {
            "found": round(abs(values["coverage"] - float(level)), 4),
            "at_most": ROOM[float(level)],
        }
        for source, runs in heads.items()
        for head, run in runs.items()
        for level, still in run["intervals"].items()
        for way, values in zip(WAYS, (still, still["following"]), strict=True)
    }


def compare_heads(heads: dict[str, Any]) -> dict[str, Any]:
    """Widths and scores of the quantiles' intervals over those of the mean's."""
    return {
        f"{source}, {level:.0%}, widths that follow: {quantity} of the quantiles over that of the mean": {
            "found": round(
                runs["quantiles"]["intervals"][str(level)]["following"][quantity]
                / runs["mean"]["intervals"][str(level)]["following"][quantity],
                3,
            )
        }
        for source, runs in heads.items()
        for level in intervals.LEVELS
        for quantity in ("width", "score")
    }


def cover(source: str, head: str, data: pathlib.Path) -> dict[str, Any]:
    """Trains on a table, calibrates on its validation split, and covers and evaluates its test split."""
    config = etth1.get_config()
    # alike for both heads: squared errors, which quantiles have in place of Huber's, and the scale of each window
    config.training.update({"forecast_loss": "mse", "average": 0.0})
    config.model.normalize_scale = True
    experiment = Experiment.from_config_dict(config)
    experiment = dataclasses.replace(
        experiment,
        data=dataclasses.replace(experiment.data, source=source, local_dir=str(data), quantiles=HEADS[head]),
        training=dataclasses.replace(experiment.training, steps=STEPS[source], devices=1),
    )
    with tempfile.TemporaryDirectory() as place:
        loop.fit(experiment, f"{place}/run")
        run = open_run(f"{place}/run")
        metrics = Evaluator(run.experiment, run.model)(run.params, run.dataset, "test")
        return {"intervals": intervals.cover(run, intervals.calibrate(run), "test"), "metrics": metrics}


if __name__ == "__main__":
    measure.run("intervals", __doc__, benchmark, rounds=1, folders={"data": "the originals of ETTh1 and weather"})
