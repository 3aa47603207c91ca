"""Claim: Mamba learns induction heads at 256 steps if it has learnt them at 48 steps before.

  python benchmarks/curriculum.py --rounds 3    # with the package installed

Rounds are seeds. Two blocks of Mamba on the task of configs/induction_heads.py: SHORT steps of training at a length of
48, then, started from that run (training.start), LONG at 256. "from scratch" is the same model that reads as many
tokens, all at 256, with the same rates. Accuracy is that on the test split, at 256 steps.
"""

import pathlib
from statistics import fmean
from typing import Any

import measure
from ml_collections import ConfigDict
from seed_runs import score_runs

from configs import induction_heads
from selssm_jax.config import Experiment
from selssm_jax.runs import open_run
from selssm_jax.training import loop

LENGTH, LONGER = 48, 256
SHORT, LONG = 1000, 150  # steps
ROWS, FEWER = 32, 16  # of a batch, at the two lengths
RATE, LOWER = 3e-3, 1e-3  # peaks of the two stages
ASKED = 0.99  # accuracy
FOLDER = pathlib.Path(__file__).parent.parent / "runs" / "curriculum"


def benchmark(rounds: int, folder: pathlib.Path = FOLDER, **changes: Any) -> dict[str, Any]:
    """Every seed, both ways."""
    seeds = [compare(seed, folder / str(seed), changes) for seed in range(rounds)]
    ways = {way: [seed[way] for seed in seeds] for way in ("short sequences first", "from scratch")}
    return {
        "dtype": "float32",
        "seeds": rounds,
        "steps": {"short": SHORT, "long": LONG, "from scratch": count_scratch()},
        "ratios": {
            f"accuracy at {LONGER} steps, short sequences first": {
                "ours": fmean(ways["short sequences first"]),
                "at_least": ASKED,
            },
            f"accuracy at {LONGER} steps, from scratch with as many tokens": {"ours": fmean(ways["from scratch"])},
        },
        "runs": seeds,
    }


def count_scratch() -> int:
    """Steps at the longer length that read as many tokens as both stages."""
    return LONG + round(SHORT * ROWS * LENGTH / (FEWER * LONGER))


def compare(seed: int, folder: pathlib.Path, changes: dict[str, Any]) -> dict[str, float]:
    """Test accuracies of one seed."""
    train(configure(seed, LENGTH, SHORT, RATE, changes), folder / "short")
    started = configure(seed, LONGER, LONG, LOWER, changes)
    started.training.start = str(folder / "short")
    found = {
        "at 48 steps": score(folder / "short"),
        "short sequences first": train(started, folder / "long"),
        "from scratch": train(configure(seed, LONGER, count_scratch(), RATE, changes), folder / "scratch"),
    }
    print(seed, found, flush=True)
    return found


def configure(seed: int, length: int, steps: int, rate: float, changes: dict[str, Any]) -> ConfigDict:
    """The recipe with two blocks of Mamba, at a length."""
    config = induction_heads.get_config()
    config.data.update({"length": length, "batch_size": ROWS if length == LENGTH else FEWER})
    config.model.update({"pattern": ("mamba", "mamba"), "d_model": 48, "d_state": 16, "mlp_ratio": 0.0})
    config.optimizer.update({"peak_rate": rate, "end_rate": rate / 100, "warmup_steps": min(20, steps - 1)})
    each = {"eval_every": steps, "checkpoint_every": steps}
    config.training.update({"steps": steps, "seed": seed, "devices": 1} | each | changes)
    return config


def train(config: ConfigDict, place: pathlib.Path) -> float:
    """Trains a run, or finds it, and returns its test accuracy."""
    place.parent.mkdir(parents=True, exist_ok=True)
    loop.fit(Experiment.from_config_dict(config), str(place))
    return score(place)


def score(place: pathlib.Path) -> float:
    """Test accuracy of a run."""
    return score_runs([open_run(place, split="test")], "test")[0]["accuracy"]


if __name__ == "__main__":
    measure.run("curriculum", __doc__ or "", benchmark, rounds=3)
