"""Claim: a gate that knows how uncertain the state is comes to the error of the exact filter where noise changes.

  python benchmarks/gate_kinds.py --rounds 3    # with the package installed

Rounds are seeds. configs/channel.py without process noise, one block; the same with data.source=changing_noise, of
which the next clear reading is forecast, and with a state that is slower, so that what is known of it changes more.
Gates at equal numbers of the state: "kalman" carries a mean and its nats. Of each seed the mean squared error on the
test split over that of the exact filter on the same sequences.
"""

import pathlib
from typing import Any

import measure
import numpy as np
from ml_collections import ConfigDict
from seed_runs import score_runs, train_seeds

from configs import channel
from selssm_jax.config import Data
from selssm_jax.data import Dataset, synthetic

STATE = 8  # numbers that a block carries
STEPS = 6000
AVERAGE = 0.998  # decay of the average of the parameters, which is what is scored
FOLDER = pathlib.Path(__file__).parent.parent / "runs" / "gate_kinds"
SELECTIVE = {"pattern": ("selective",), "d_state": STATE}
GATES: dict[str, dict[str, Any]] = {
    "constant": SELECTIVE | {"selective": {"gate": "constant"}},
    "sigmoid": SELECTIVE,
    "sigmoid that reads the state": SELECTIVE | {"selective": {"gate_state": "elementwise"}},
    "kalman": {"pattern": ("kalman",), "d_state": STATE // 2},
    "kalman, decay of the input": {"pattern": ("kalman",), "d_state": STATE // 2, "kalman": {"decay": "input"}},
}
TASKS: dict[str, dict[str, Any]] = {
    "one noise": {"source": "linear_gaussian", "noise": 0.1, "horizon": 8},
    "changing noise": {"source": "changing_noise", "noise": 3.0, "horizon": 1},
    "changing noise, slower state": {"source": "changing_noise", "noise": 3.0, "horizon": 1, "decay": 0.999},
}


def benchmark(rounds: int) -> dict[str, Any]:
    """Every gate on every task."""
    errors = {task: {gate: train(task, gate, rounds) for gate in GATES} for task in TASKS}
    exact = {task: found["sigmoid"].pop("exact") for task, found in errors.items()}
    over = {
        task: {gate: [mse / exact[task] for mse in found["mse"]] for gate, found in gates.items()}
        for task, gates in errors.items()
    }

    def excess(task: str, gate: str) -> float:
        return float(np.median(over[task][gate]) - 1)

    single = float(np.median(errors["one noise"]["kalman"]["mse"])) - exact["one noise"]
    ratios = {
        "kalman, one noise: error less that of the exact filter": {"ours": single, "at_most": 0.0005},
        **{
            f"{gate}, {task}: error over that of the exact filter, less 1": {"ours": excess(task, gate), which: limit}
            for task in TASKS
            if task != "one noise"
            for gate, which, limit in (("kalman", "at_most", 0.01), ("sigmoid", "at_least", 0.05))
        },
    }
    return {
        "dtype": "float32",
        "seeds": rounds,
        "steps": STEPS,
        "numbers of the state": STATE,
        "ratios": ratios,
        "exact filter's mse": exact,
        "over the exact filter's": over,
        "mse": {task: {gate: found["mse"] for gate, found in gates.items()} for task, gates in errors.items()},
    }


def train(task: str, gate: str, seeds: int, folder: pathlib.Path = FOLDER, **changes: Any) -> dict[str, Any]:
    """Mean squared errors on the test split by seed, and that of the exact filter on it."""
    config = configure(TASKS[task], GATES[gate], **changes)
    opened = train_seeds(config, folder / task.replace(" ", "_") / gate.replace(" ", "_"), seeds, "test")
    scores = [score["mse"] for score in score_runs(opened, "test")]
    return {"mse": scores, "exact": filter_error(opened[0].dataset, opened[0].experiment.data)}


def configure(data: dict[str, Any], model: dict[str, Any], **changes: Any) -> ConfigDict:
    """The recipe of the channel without process noise, of other data and another model; `changes` of its training."""
    config = channel.get_config()
    config.data.update(data)
    config.model.selective.update({"gate": "sigmoid", "process_noise": 0.0})
    for group in ("selective", "kalman"):
        config.model[group].update(model.get(group, {}))
    config.model.update({key: value for key, value in model.items() if key not in ("selective", "kalman")})
    own = {"steps": STEPS, "checkpoint_every": STEPS, "average": AVERAGE, "devices": 1}
    config.training.update(own | changes)
    return config


def filter_error(dataset: Dataset, config: Data) -> float:
    """That of the exact filter on the same sequences, which knows the noise of every reading."""
    changing = dataset.info["source"] == "changing_noise"
    decay = config.decay if changing else synthetic.DECAY

    def say(batch: Any) -> np.ndarray:
        inputs = np.asarray(batch["inputs"], np.float64)
        m, P = np.zeros(len(inputs)), np.ones(len(inputs))
        for step in range(inputs.shape[1]):
            m, P = (decay * m, decay**2 * P + 1 - decay**2) if step else (m, P)
            noisy = config.noise
            variance = np.where(inputs[:, step, -1] == 1, synthetic.CLEAR, noisy) if changing else noisy
            gain = P / (P + variance)
            m, P = m + gain * (inputs[:, step, 0] - m), (1 - gain) * P
        return m[:, None] * decay ** np.arange(1, dataset.task.horizon + 1)

    return mean_error(dataset, say)


def mean_error(dataset: Dataset, say: Any) -> float:
    """Mean squared error of what `say` makes of the test split's batches."""
    errors = []
    for batch in dataset.evaluate("test", 500):
        error = np.square(say(batch) - np.asarray(batch["targets"], np.float64)[..., 0]).mean(axis=1)
        errors.append(error[np.asarray(batch["weights"]) > 0])
    return float(np.concatenate(errors).mean())


if __name__ == "__main__":
    measure.run("gate_kinds", __doc__, benchmark, rounds=3)
