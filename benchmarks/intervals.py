"""Claim: intervals of 80 and 95 % that are calibrated on validation cover 80 +- 3 and 95 +- 2 % of the test values.

  python benchmarks/intervals.py --data FOLDER    # of the originals of ETTh1 and weather

The recipe etth1 on ETTh1 as it is, and on weather with 300 steps; the share of all values of the test split, over
channels and steps of the horizon, that lie in the intervals of `selssm_jax.intervals`: with the widths of validation,
and with widths that follow how often earlier windows were missed, as `eval.py --predict` has them.
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

ROOM = {0.8: 0.03, 0.95: 0.02}
STEPS = {"etth1": 1200, "weather": 300}


def benchmark(rounds: int, data: pathlib.Path) -> dict[str, Any]:
    """One run of each table; `rounds` is not used, for nothing is timed."""
    del rounds
    found = {source: cover(source, steps, data) for source, steps in STEPS.items()}
    ratios = {
        f"{source}, {float(level):.0%}, {kind}: distance of the coverage": {
            "found": round(abs(values["coverage"] - float(level)), 4),
            "at_most": ROOM[float(level)],
        }
        for source, levels in found.items()
        for level, still in levels.items()
        for kind, values in (("widths of validation", still), ("widths that follow", still["following"]))
    }
    return {
        "dtype": "float32",
        "setting": {"steps": STEPS, "config": "configs/etth1.py"},
        "ratios": ratios,
        "coverage": found,
    }


def cover(source: str, steps: int, data: pathlib.Path) -> dict[str, Any]:
    """Trains on a table, calibrates on its validation split and covers its test split."""
    experiment = Experiment.from_config_dict(etth1.get_config())
    experiment = dataclasses.replace(
        experiment,
        data=dataclasses.replace(experiment.data, source=source, local_dir=str(data)),
        training=dataclasses.replace(experiment.training, steps=steps, devices=1),
    )
    with tempfile.TemporaryDirectory() as place:
        loop.fit(experiment, f"{place}/run")
        run = open_run(f"{place}/run")
        return intervals.cover(run, intervals.calibrate(run), "test")


if __name__ == "__main__":
    measure.run("intervals", __doc__, benchmark, rounds=1, folders={"data": "the originals of ETTh1 and weather"})
