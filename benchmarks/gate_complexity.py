"""Claim: the bits that a Kalman gate gains follow the information of its input.

  python benchmarks/gate_complexity.py --rounds 3    # with the package installed

Rounds are seeds. configs/channel.py without process noise and with an MLP, one block, with readings whose information
is switched (data.source=changing_drift), of which the next is forecast. At each step of the test split the exact filter
gains 1/2 log(1 + P- / r) nats. With it are correlated, over all steps and sequences: the nats that "kalman" gains,
summed over its components, and of a sigmoid gate g the sum of -1/2 log(1 - g), as if it were a Kalman gain.
"""

import pathlib
from typing import Any

import gate_kinds
import jax
import measure
import numpy as np
from seed_runs import score_runs, train_seeds

from selssm_jax.data import synthetic
from selssm_jax.observe import observe
from selssm_jax.runs import Run

NOISE = 0.1  # variance of that of a reading
FOLDER = pathlib.Path(__file__).parent.parent / "runs" / "gate_complexity"
GATES = ("kalman", "kalman, decay of the input", "sigmoid", "sigmoid that reads the state")  # of `gate_kinds`


def benchmark(rounds: int) -> dict[str, Any]:
    """Every gate."""
    found = {gate: train(gate, rounds) for gate in GATES}
    correlation = {gate: float(np.median(values["correlation"])) for gate, values in found.items()}
    return {
        "dtype": "float32",
        "seeds": rounds,
        "steps": gate_kinds.STEPS,
        "numbers of the state": gate_kinds.STATE,
        "ratios": {
            "kalman, decay of the input: correlation of nats gained with those of the exact filter": {
                "ours": correlation["kalman, decay of the input"],
                "at_least": 0.8,
            },
            "that correlation less that of sigmoid gates": {
                "ours": correlation["kalman, decay of the input"] - correlation["sigmoid"],
                "at_least": 0.0,
            },
        },
        "gates": found,
    }


def train(gate: str, seeds: int, folder: pathlib.Path = FOLDER, **changes: Any) -> dict[str, list[float]]:
    """By seed: the correlation, and the error over that of the exact filter."""
    data = {"source": "changing_drift", "noise": NOISE, "horizon": 1}
    config = gate_kinds.configure(data, gate_kinds.GATES[gate] | {"mlp_ratio": 4.0}, **changes)
    opened = train_seeds(config, folder / gate.replace(",", "").replace(" ", "_"), seeds, "test")
    optimum = opened[0].dataset.info["optimum"]["mse"]
    return {
        "correlation": [correlate(run) for run in opened],
        "mse over that of the exact filter": [score["mse"] / optimum for score in score_runs(opened, "test")],
    }


def correlate(run: Run) -> float:
    """The correlation of what gates gain at a step with what the exact filter gains, over the test split."""
    gains, exact = [], []
    read = jax.jit(lambda params, batch: observe(run.model, params, batch, rngs={}).blocks)
    for batch in run.dataset.evaluate("test", 500):
        (block,) = read(run.params, batch).values()
        nats = block.gained if block.gained is not None else -np.log1p(-np.asarray(block.gate, np.float64)) / 2
        rows = np.asarray(batch["weights"]) > 0
        gains.append(np.asarray(nats).sum(axis=-1)[rows])
        exact.append(filter_gains(np.asarray(batch["inputs"][..., 1]) == 1)[rows])
    return float(np.corrcoef(np.concatenate(gains).ravel(), np.concatenate(exact).ravel())[0, 1])


def filter_gains(storm: np.ndarray) -> np.ndarray:
    """Nats that the exact filter gains at each step, by whether there is a storm."""
    P, gains = np.ones(len(storm)), []
    for step in range(storm.shape[1]):
        a = np.where(storm[:, step], synthetic.FAST, synthetic.SLOW)
        P = a**2 * P + 1 - a**2 if step else P
        gains.append(np.log1p(P / NOISE) / 2)
        P = P * NOISE / (P + NOISE)
    return np.stack(gains, axis=1)


if __name__ == "__main__":
    measure.run("gate_complexity", __doc__, benchmark, rounds=3)
