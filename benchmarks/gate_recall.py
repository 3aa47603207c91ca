"""Claim: gates that are Kalman gains, and gates that compete, recall as well as sigmoid gates at equal bytes of state.

  python benchmarks/gate_recall.py --rounds 5    # with the package installed

Rounds are seeds. Three tasks of recall, models of two blocks that carry as many numbers each: "kalman" a mean and the
nats of every component, "kalman_attention" a row of values and its nats. Of every gate and seed the accuracy on the
test split, of the parameters that were best on validation, and its difference from that of sigmoid gates at the same
seed with the interval of 95 % that Student's law gives a mean of so many pairs.
"""

import pathlib
from typing import Any

import measure
import numpy as np
from seed_runs import interval, score_runs, train_seeds

from selssm_jax.config import Data, Experiment, Model, Optimizer, Training

WIDTH, STATE, HEADS = 32, 68, 2  # d_model, numbers that a mixer carries, heads of kalman_attention
STEPS = 1500
LOSS = 0.01  # of accuracy that counts as recalling as well
FOLDER = pathlib.Path(__file__).parent.parent / "runs" / "gate_recall"
GATES: dict[str, tuple[str, int, dict[str, Any]]] = {  # mixer, d_state, what it is set to
    "sigmoid": ("selective", STATE, {}),
    "softmax": ("selective", STATE, {"gate": "softmax", "gate_slot_width": 4}),
    "kalman": ("kalman", STATE // 2, {}),
    "kalman_attention": ("kalman_attention", STATE // (WIDTH + HEADS), {"heads": HEADS, "d_conv": 1}),
}
TASKS: dict[str, dict[str, Any]] = {
    "selective copying": {"source": "selective_copying", "length": 32, "vocab": 8, "tokens": 4},
    "induction heads": {"source": "induction_heads", "length": 32, "vocab": 8},
    "associative recall": {"source": "associative_recall", "length": 24, "vocab": 8, "tokens": 4},
}


def benchmark(rounds: int) -> dict[str, Any]:
    """Every gate on every task."""
    accuracy = {task: {gate: train(task, gate, rounds) for gate in GATES} for task in TASKS}
    against = {
        task: {
            gate: interval(np.subtract(scores, found["sigmoid"])) for gate, scores in found.items() if gate != "sigmoid"
        }
        for task, found in accuracy.items()
    }
    ratios = {
        f"{gate}, {task}: accuracy less that of sigmoid gates": {"ours": pairs["mean"], "at_least": -LOSS}
        for task, found in against.items()
        for gate, pairs in found.items()
    }
    return {
        "dtype": "float32",
        "seeds": rounds,
        "steps": STEPS,
        "numbers of the state of a block": STATE,
        "tasks": TASKS,
        "ratios": ratios,
        "accuracy": accuracy,
        "less that of sigmoid gates": against,
    }


def train(task: str, gate: str, seeds: int, folder: pathlib.Path = FOLDER, **changes: Any) -> list[float]:
    """Accuracies on the test split by seed."""
    mixer, size, keys = GATES[gate]
    config = Experiment(
        name="gate_recall",
        data=Data(**TASKS[task], batch_size=16, eval_batch_size=200, eval_examples=2000),
        model=Model(pattern=(mixer,) * 2, d_model=WIDTH, d_state=size, conv=2),
        optimizer=Optimizer(peak_rate=3e-3, end_rate=3e-5, warmup_steps=200),
        training=Training(steps=STEPS, eval_every=STEPS // 6, checkpoint_every=STEPS // 6, devices=1),
    ).to_config_dict()
    config.model[mixer].update(keys)
    config.training.update(changes)
    opened = train_seeds(config, folder / f"{task} {gate}".replace(" ", "_"), seeds, "test")
    return [score["accuracy"] for score in score_runs(opened, "test")]


if __name__ == "__main__":
    measure.run("gate_recall", __doc__, benchmark, rounds=5)
