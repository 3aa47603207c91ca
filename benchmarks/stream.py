"""Claim: a stream predicts and learns in a time and a memory that do not depend on how much it has read.

python benchmarks/stream.py

One layer of the paper, of width and state N, on one channel and horizon 1, learnt from by Adam. "call" is a row by
`Stream.advance`, with all that Python and the transfers cost; "replay" is a row of a recorded series, 2,000 at a time.
"late" is the same row after 100,000 others. Bytes are those of the tree of state.
"""

import time
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np
import optax

from selssm_jax.config import Model, Task
from selssm_jax.model import SequenceModel
from selssm_jax.streaming import ADWIN, ExactGradient, Stream, TruncatedGradient
from selssm_jax.streaming.gradients import GradientMethod
from selssm_jax.streaming.stream import ADVANCE, REPLAY

SIZES, ROWS, CALLS, BETWEEN = (8, 32, 128), 2000, 200, 100_000
METHODS: dict[str, GradientMethod] = {"exact": ExactGradient(), "pieces of 32": TruncatedGradient(32)}


def main(rounds: int) -> dict[str, Any]:
    streams = {
        f"{name}, N={size}": measure_rows(method, size, rounds) for name, method in METHODS.items() for size in SIZES
    }
    late = [row["replay late"] / row["replay"] for row in streams.values()]
    return {
        "dtype": "float32",
        "shape": f"one stream, N in {SIZES}, {ROWS} rows a replay",
        "ratios": {
            "time of a row after 100,000 others": {"ours": round(median(late), 2), "at_most": 1.25},
            "bytes after 100,000 others": {
                "ours": max(row["bytes late"] / row["bytes"] for row in streams.values()),
                "at_most": 1.02,
            },
            "programs after 100,000 others": {"ours": max(row["programs"] for row in streams.values()), "at_most": 1},
        },
        "microseconds": streams,
    }


def measure_rows(method: GradientMethod, size: int, rounds: int) -> dict[str, float]:
    """Microseconds of a row, early and late, and bytes of the state."""
    model, params = build(size)
    stream = Stream(model, params, optax.adam(1e-3), gradient=method, detector=ADWIN())
    rows = np.random.default_rng(0).normal(size=(ROWS, 1)).astype(np.float32)
    stream.replay(rows)
    early, calls, bytes_early = time_replays(stream, rows, rounds), time_calls(stream, rows), count_bytes(stream)
    programs = REPLAY._cache_size() + ADVANCE._cache_size()
    for _ in range(BETWEEN // ROWS):
        stream.replay(rows)
    return {
        "call": calls,
        "replay": early,
        "replay late": time_replays(stream, rows, rounds),
        "bytes": bytes_early,
        "bytes late": count_bytes(stream),
        "programs": (REPLAY._cache_size() + ADVANCE._cache_size()) / programs,
    }


def time_replays(stream: Stream, rows: np.ndarray, rounds: int) -> float:
    """Median microseconds of a row of a replay."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        stream.replay(rows)
        seconds.append(time.perf_counter() - start)
    return round(1e6 * median(seconds) / len(rows), 2)


def time_calls(stream: Stream, rows: np.ndarray) -> float:
    """Median microseconds of a call."""
    seconds = []
    for row in rows[:CALLS]:
        start = time.perf_counter()
        stream.advance(row)
        seconds.append(time.perf_counter() - start)
    return round(1e6 * median(seconds), 1)


def count_bytes(stream: Stream) -> int:
    """Bytes of the stream's state."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(stream.state))


def build(size: int, seed: int = 0) -> tuple[SequenceModel, Any]:
    """A model of one layer and its parameters as they are drawn."""
    task = Task("forecasting", channels=1, horizon=1)
    sizes: dict[str, Any] = {"pattern": ("selective",), "d_model": size, "d_state": size, "mlp_ratio": 0.0}
    model = SequenceModel(Model(task=task, **sizes, normalize=False, linear_skip=2))
    return model, jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, 1, 1)))["params"]


if __name__ == "__main__":
    measure.run("stream", __doc__, main, rounds=5)
