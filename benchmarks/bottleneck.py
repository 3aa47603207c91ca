"""Claim: priced by the nat, a memory of constant gates and its noise come to within 3 % of the information bottleneck.

  python benchmarks/bottleneck.py --rounds 3    # with the package installed

Rounds are seeds. configs/bottleneck.py, whose forecast reads the memory alone, for every kind of gate and of noise at
every price of a nat. Of the last step of the test split: complexity, 1/2 (log det Cov h - E log det Cov(h | x)), at
least I(h; readings), and equal to it where h is Gaussian; relevance, at most I(h; the next value), from the error of
the forecast, 1/2 log(variance of the value / mean squared error), less what the exact filter's differs by chance on
these sequences. The bottleneck is the most relevance that any memory of so much complexity has, in closed form
(`information.bottleneck.gaussian_relevance`): no point lies above it but by chance.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np
from gate_kinds import mean_error
from ml_collections import ConfigDict
from scipy.linalg import toeplitz
from seed_runs import score_runs, train_seeds

from configs import bottleneck as recipe
from selssm_jax.data import synthetic
from selssm_jax.information import bottleneck
from selssm_jax.observe import observe
from selssm_jax.runs import Run
from selssm_jax.training import objectives

PRICES = (0.01, 0.05, 0.2, 0.4)
FOLDER = pathlib.Path(__file__).parent.parent / "runs" / "bottleneck"
GATES: dict[str, dict[str, Any]] = {
    "constant": {"selective": {"gate": "constant"}},
    "sigmoid": {"selective": {"gate": "sigmoid"}},
    "hard_sigmoid": {"selective": {"gate": "hard_sigmoid", "gate_floor": 0.01}},
    "softmax": {"selective": {"gate": "softmax"}},
}
NOISES: dict[str, dict[str, float]] = {
    "additive": {"process_noise": 0.3},
    "multiplicative": {"process_noise": 0.1, "drive_noise": 0.5},
    "dropout": {"process_noise": 0.1, "drive_dropout": 0.2},
}
SAMPLED = ("kalman", "of its filter")  # the one noise that this gate has
NEAR = 0.97  # share of the bottleneck


def benchmark(rounds: int) -> dict[str, Any]:
    """Every gate with every noise at every price."""
    cases = [(gate, noise) for gate in GATES for noise in NOISES] + [SAMPLED]
    points = [
        {"gate": gate, "noise": noise, "price": price, **train(gate, noise, price, rounds)}
        for gate, noise in cases
        for price in PRICES
    ]

    def least(gate: str, noise: str) -> float:
        shares = [np.median(point["share"]) for point in points if (point["gate"], point["noise"]) == (gate, noise)]
        return float(min(shares))

    return {
        "dtype": "float32",
        "seeds": rounds,
        "steps": int(recipe.get_config().training.steps),
        "ratios": {
            "constant gates, additive noise: share of the bottleneck, the least of all prices": {
                "ours": least("constant", "additive"),
                "at_least": NEAR,
            },
            "kalman, noise of its filter: share of the bottleneck, the least of all prices": {
                "ours": least(*SAMPLED),
                "at_least": NEAR,
            },
            "share of the bottleneck, the most of all": {
                "ours": max(float(np.median(point["share"])) for point in points),
                "at_most": 1.01,
            },
        },
        "bottleneck": curve(),
        "points": points,
    }


def train(gate: str, noise: str, price: float, seeds: int, folder: pathlib.Path = FOLDER, **changes: Any) -> Any:
    """Nats of complexity and of relevance, and the share of the bottleneck, by seed."""
    config = configure(gate, noise, price, **changes)
    opened = train_seeds(config, folder / f"{gate}_{noise}_{price}".replace(" ", "_"), seeds, "test")
    complexity = [memory_nats(run) for run in opened]
    relevance = [
        forecast_nats(run, score["mse"]) for run, score in zip(opened, score_runs(opened, "test"), strict=True)
    ]
    best = [most_relevance(config, nats) for nats in complexity]
    return {"complexity": complexity, "relevance": relevance, "share": (np.array(relevance) / best).tolist()}


def configure(gate: str, noise: str, price: float, **changes: Any) -> ConfigDict:
    """The recipe with another gate, noise and price; `changes` of its training."""
    config = recipe.get_config()
    if (gate, noise) == SAMPLED:
        config.model.update({"pattern": ("kalman",), "kalman": {"sampled": True}})
        config.model.selective.update({"gate": "sigmoid", "process_noise": 0.0})
    else:
        config.model.selective.update(GATES[gate]["selective"] | NOISES[noise])
    config.training.update({"information_weight": price, "devices": 1} | changes)
    return config


def memory_nats(run: Run) -> float:
    """An upper bound on what the state of the last step holds of the readings; of a Gaussian state, what it holds."""
    means, logs = [], []
    variance = np.zeros(())

    @jax.jit
    def law(params: Any, batch: Any) -> Any:
        blocks = observe(run.model, params, batch, rngs={"noise": jax.random.key(0)}, collections=["laws"]).blocks
        (block,) = blocks.values()
        assert block.law is not None
        return [values[:, -1] for values in objectives.moments(block.law, "vib")]

    for batch in run.dataset.evaluate("test", 500):
        rows = np.asarray(batch["weights"]) > 0
        mean, spread = (np.asarray(values, np.float64)[rows] for values in law(run.params, batch))
        means.append(mean)
        logs.append(np.log(spread).sum(axis=1))
        variance = variance + spread.sum(axis=0)
    centres = np.concatenate(means)
    cov = np.cov(centres.T, bias=True) + np.diag(variance / len(centres))
    return float(0.5 * (np.linalg.slogdet(cov)[1] - np.concatenate(logs).mean()))


def forecast_nats(run: Run, mse: float) -> float:
    """A lower bound on what the state of the last step tells of the next value."""
    data = run.experiment.data
    optimum = synthetic.dataset(data).info["optimum"]["mse"]
    return float(0.5 * np.log((1 + data.noise) / (optimum * mse / filter_error(run))))


def filter_error(run: Run) -> float:
    """That of the exact filter on the same sequences."""
    data = run.experiment.data
    joint, cross, _ = process(data.length - data.blank, data.noise, data.blank)
    weights = np.linalg.solve(joint, cross)
    return mean_error(
        run.dataset, lambda batch: np.asarray(batch["inputs"], np.float64)[:, : len(weights), 0] @ weights
    )


def most_relevance(config: ConfigDict, complexity: Any) -> Any:
    """The bottleneck of all readings and the next value, in float64."""
    with jax.enable_x64(True):
        cov = process(config.data.length - config.data.blank, config.data.noise, config.data.blank)
        values = (jnp.asarray(value, jnp.float64) for value in (*cov, complexity))
        return np.asarray(bottleneck.gaussian_relevance(*values)).tolist()


def process(steps: int, noise: float, blank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Covariances of the readings, of readings and the value `blank` + 1 steps after them, and its variance."""
    ages = np.arange(steps + blank, blank, -1)
    readings = toeplitz(synthetic.DECAY ** np.arange(steps)) + noise * np.eye(steps)
    return readings, synthetic.DECAY ** ages[:, None], np.array([[1 + noise]])


def curve() -> dict[str, list[float]]:
    """The bottleneck at many complexities, nats."""
    complexity = np.linspace(0, 4, 81)
    return {"complexity": complexity.tolist(), "relevance": most_relevance(recipe.get_config(), complexity)}


if __name__ == "__main__":
    measure.run("bottleneck", __doc__, benchmark, rounds=3)
