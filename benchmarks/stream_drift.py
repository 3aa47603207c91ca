"""Claim: on an autoregression whose coefficients switch, a stream's learner errs at most 1.1 times as much as recursive
least squares with the best forgetting, and is back within 500 rows of a switch.

python benchmarks/stream_drift.py

100,000 rows of x_t = a x_{t-1} + b x_{t-2} + e_t, e_t ~ N(0, 1), whose (a, b) is (1.5, -0.75), then (-0.5, 0.3), and so
on, for 20,000 rows each; the next row is forecast, and its truth is the next row. All errors are prequential: an answer
is scored before its truth is learnt from. The learner is one layer of the paper, of width and state 8, with the last
two inputs beside it, learnt by exact online gradients and Adam, whose steps are 10 times as long after a rise that
ADWIN sees. The frozen model is what it was before the first switch. Forgetting of recursive least squares, on two lags,
is the best of a grid in hindsight. A switch is over at the end of the first 200 rows after it whose mean error is
within 10 % of that of the 5,000 rows before the switch; a mean of 200 rows is itself spread by 10 % by chance.
"""

import time
from typing import Any

import measure
import numpy as np
import optax
from stream import build

from selssm_jax.streaming import ADWIN, LastValue, Reaction, RecursiveLeastSquares, Stream
from selssm_jax.streaming.rivals import follow_rows
from selssm_jax.streaming.synthetic import switch_autoregression

STEPS, EVERY, FIRST = 100_000, 20_000, 100  # rows, rows of a regime, rows that no mean counts
FORGETTING = (1.0, 0.9999, 0.9995, 0.999, 0.998, 0.995, 0.99, 0.98)
MEAN, BEFORE, NEAR = 200, 5000, 1.1  # rows of a mean after a switch and before it, and how near is back
WIDTH, RATE = 8, 3e-3
REACTION = Reaction(rate=10.0, rate_steps=300)


def main(rounds: int) -> dict[str, Any]:
    rows = [measure_stream(seed) for seed in range(rounds)]
    ratios = {
        "mean squared error over that of recursive least squares": {
            "ours": max(row["learner"] / row["recursive least squares"] for row in rows),
            "at_most": 1.1,
        },
        "rows until the error is back": {"ours": max(max(row["rows_back"]) for row in rows), "at_most": 500},
        "error of the frozen model over the learner's": {
            "ours": min(row["frozen"] / row["learner"] for row in rows),
            "at_least": 2,
        },
    }
    return {
        "dtype": "float32",
        "shape": f"{STEPS} rows, one channel, horizon 1, seeds 0 to {rounds - 1}",
        "ratios": {name: value | {"ours": round(float(value["ours"]), 3)} for name, value in ratios.items()},
        "streams": rows,
    }


def measure_stream(seed: int, steps: int = STEPS, every: int = EVERY) -> dict[str, Any]:
    """Mean squared errors of all that forecast one stream, and how soon the learner is back after each switch."""
    stream = switch_autoregression(seed, steps, every)
    model, params = build(WIDTH, seed)
    start = time.perf_counter()
    learner = Stream(model, params, optax.adam(RATE), detector=ADWIN(), reaction=REACTION)
    first = learner.replay(stream.inputs[:every])
    trained = learner.params
    second = learner.replay(stream.inputs[every:])
    seconds = time.perf_counter() - start
    errors, changes = (
        np.concatenate([getattr(part.lessons, name) for part in (first, second)]) for name in ("errors", "change")
    )
    frozen = Stream(model, trained, None).replay(stream.inputs).lessons.errors
    squares = {
        factor: follow_rows(RecursiveLeastSquares(1, lags=2, forgetting=factor), stream.inputs, 1)[FIRST:].mean()
        for factor in FORGETTING
    }
    best = min(squares, key=lambda factor: squares[factor])
    naive = follow_rows(LastValue(1), stream.inputs, 1)
    return {
        "seed": seed,
        "learner": round(float(errors[FIRST:].mean()), 4),
        "frozen": round(float(frozen[every:].mean()), 4),
        "last value": round(float(naive[FIRST:].mean()), 4),
        "recursive least squares": round(float(squares[best]), 4),
        "forgetting": best,
        "rows_back": [count_rows_back(errors, change) for change in stream.changes],
        "rises": [int(place) for place in np.flatnonzero(changes == 1)],
        "changes": list(stream.changes),
        "microseconds_a_row_with_compiling": round(1e6 * seconds / steps, 1),
    }


def count_rows_back(errors: np.ndarray, change: int) -> int:
    """Rows after a change until the mean of the next rows is near that before it; that of all there are where none
    is.
    """
    before = errors[max(change - BEFORE, FIRST) : change].mean()
    sums = np.concatenate([[0.0], np.cumsum(errors[change:], dtype=np.float64)])
    means = (sums[MEAN:] - sums[:-MEAN]) / MEAN
    back = np.flatnonzero(means <= NEAR * before)
    return int(back[0]) + MEAN if len(back) else len(errors) - change


if __name__ == "__main__":
    measure.run("stream_drift", __doc__, main, rounds=3)
