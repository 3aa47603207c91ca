"""Claim: on ETTm1 with truths that come late, a stream's learner errs at least 5 % less than the trained model.

  python benchmarks/stream_ettm1.py --rounds 3    # with the package installed; --data FOLDER has the two tables

Rounds are seeds. configs/stream_ettm1.py, for horizons of 1 and 24 rows, on ETTm1 and on ETTh1, is trained on the
literature's training months. Then the rows of validation and test come one by one: each is forecast, and a forecast is
learnt from when the last row of its horizon has come. The rate of the learner and the forgetting of recursive least
squares are those of the grids that err least on the rows of validation; what is told are mean squared errors of the
rows of test, of standardised values, each scored before it is learnt from. "frozen" is the model as it was trained.
"""

import dataclasses
import itertools
import pathlib
from statistics import fmean
from typing import Any

import measure
import numpy as np
from seed_runs import train_seeds

from configs import stream_ettm1
from selssm_jax.config import Streaming
from selssm_jax.data import forecasting
from selssm_jax.model import SequenceModel
from selssm_jax.runs import Run
from selssm_jax.streaming import LastValue, RecursiveLeastSquares, Stream
from selssm_jax.streaming.rivals import follow_rows
from selssm_jax.streaming.session import build_stream

SCALES = {"ettm1": 4, "etth1": 1}  # rows an hour
HORIZONS = (1, 24)
RATES, FORGETTING = (3e-5, 1e-4, 3e-4, 1e-3), (0.998, 0.9995, 0.9999)
ASKED = 0.95  # of the frozen model's error
FOLDER = pathlib.Path(__file__).parent.parent / "runs" / "stream_ettm1"


def benchmark(rounds: int, data: pathlib.Path, folder: pathlib.Path = FOLDER, **changes: Any) -> dict[str, Any]:
    """Every table and horizon."""
    found = {}
    for table, horizon in itertools.product(SCALES, HORIZONS):
        config = stream_ettm1.get_config()
        config.data.update({"source": table, "horizon": horizon, "local_dir": str(data)})
        config.training.update(changes)
        place = folder / f"{table}_{horizon}"
        found[f"{table}, horizon {horizon}"] = [follow(run, data) for run in train_seeds(config, place, rounds, "test")]
    ratios: dict[str, Any] = {}
    for name, seeds in found.items():
        for rival in ("frozen", "least squares", "last value"):
            share = fmean(seed["test"]["learner"] / seed["test"][rival] for seed in seeds)
            asked = {"at_most": ASKED} if rival == "frozen" else {}
            ratios[f"{name}: error over that of the {rival}"] = {"ours": share} | asked
    return {"dtype": "float32", "seeds": rounds, "ratios": ratios, "streams": found}


def follow(run: Run, data: pathlib.Path) -> dict[str, Any]:
    """Mean squared errors on the rows of test, and what was chosen on those of validation."""
    assert isinstance(run.model, SequenceModel)
    history, rows, first = read_rows(run, data)
    options, task = run.experiment.stream, run.model.config.task
    errors = {"frozen": {0.0: replay(run, dataclasses.replace(options, rate=0.0), history, rows)}}
    errors["learner"] = {rate: replay(run, dataclasses.replace(options, rate=rate), history, rows) for rate in RATES}
    errors["last value"] = {0.0: follow_rows(LastValue(task.horizon), rows, task.horizon)}
    errors["least squares"] = {
        forgetting: follow_rows(
            RecursiveLeastSquares(task.channels, task.horizon, options.lags, forgetting), rows, task.horizon
        )
        for forgetting in FORGETTING
    }
    known = {name: {key: mean(part[:first]) for key, part in parts.items()} for name, parts in errors.items()}
    chosen = {name: min(parts, key=parts.__getitem__) for name, parts in known.items()}
    print(run.workdir.name, chosen, flush=True)
    return {
        "seed": run.experiment.training.seed,
        "rows": {"validation": first, "test": len(rows) - first},
        "chosen": {"rate": chosen["learner"], "forgetting": chosen["least squares"]},
        "validation": {name: known[name][chosen[name]] for name in errors},
        "test": {name: mean(parts[chosen[name]][first:]) for name, parts in errors.items()},
    }


def replay(run: Run, options: Streaming, history: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Errors by row of a stream that reads the history first."""
    stream: Stream = build_stream(run.model, run.params, options)  # type: ignore[arg-type]
    stream.read_history(history)
    errors = np.asarray(stream.replay(rows).lessons.errors, np.float64)
    return np.where(np.arange(len(rows)) < run.model.config.task.horizon, np.nan, errors)


def mean(errors: np.ndarray) -> float:
    """The mean of what is a number."""
    return float(np.nanmean(errors))


def read_rows(run: Run, data: pathlib.Path) -> tuple[np.ndarray, np.ndarray, int]:
    """(The last rows of training, those of validation and test, where test begins), standardised as in training."""
    table = run.experiment.data.source
    values = np.genfromtxt(data / f"{table}.csv", delimiter=",", skip_header=1)[:, 1:]
    split = forecasting.ett_split(SCALES[table])
    reader = forecasting.History(run.dataset.metadata(), run.model.config.task)
    rows = reader.encode(values, 0)
    (begin, between), (_, end) = split["validation"], split["test"]
    return rows[begin - run.experiment.stream.history : begin], rows[begin:end], between - begin


if __name__ == "__main__":
    measure.run(
        "stream_ettm1",
        __doc__ or "",
        benchmark,
        rounds=3,
        folders={"data": "folder with the files of data.local_dir"},
    )
