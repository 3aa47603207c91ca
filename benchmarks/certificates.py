"""Claim: certificates of stability are found in seconds, and a layer that is certified by construction loses little.

  python benchmarks/certificates.py    # with the package installed

Seconds are of certifying a model of six blocks of 256 components, and a dense transition of 64 components under a law
of gates of four modes. Training is 300 steps of configs/selective_copying.py with gates that read the state
elementwise, `certified` with a gate_floor of 0.01 beside free with none, and free with the same floor, three seeds; the
loss is that of the validation split.
"""

import json
import pathlib
import tempfile
import time
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np

from configs import selective_copying
from selssm_jax.config import Experiment, Model, SelectiveConfig, Task
from selssm_jax.model import SequenceModel
from selssm_jax.stability import certify_model, certify_recurrence
from selssm_jax.training import checkpoint, loop

SEEDS, STEPS, FLOOR = (0, 1, 2), 300, 0.01
FORMS = {
    "free": {"gate_floor": 0.0},
    "free with the floor": {"gate_floor": FLOOR},
    "certified": {"gate_floor": FLOOR, "certified": True},
}


def benchmark(rounds: int) -> dict[str, Any]:
    """Times of certificates, and what they cost in training."""
    runs = [trained(name, seed) for seed in SEEDS for name in FORMS]
    losses = {name: [run["nats"] for run in runs if run["form"] == name] for name in FORMS}
    certified = [run for run in runs if run["form"] == "certified"]
    ratios = {
        "six blocks of 256 components, s": {"ours": median(six_blocks() for _ in range(rounds)), "at_most": 10},
        "a dense transition of 64 components under a law of gates, s": {
            "ours": median(dense() for _ in range(rounds)),
            "at_most": 30,
        },
        "loss of certified over free, 300 steps of selective copying": {
            "ours": np.mean(losses["certified"]) / np.mean(losses["free"]),
            "at_most": 1.05,
        },
        "share of certified runs that are still certified": {
            "ours": np.mean([run["contracts"] for run in certified]),
            "at_least": 1,
        },
    }
    return {"dtype": "float32", "seeds": len(SEEDS), "ratios": ratios, "runs": runs}


def six_blocks(components: int = 256) -> float:
    """Seconds of certifying a model with gates that read all of the state."""
    config = Model(
        pattern=("selective",) * 6,
        d_model=64,
        d_state=components,
        selective=SelectiveConfig(gate_state="dense", gate_floor=0.05),
        task=Task("language", vocab=16),
    )
    model = SequenceModel(config)
    params = model.init(jax.random.key(0), jnp.zeros((1, 2), int))["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.01 * jax.random.normal(jax.random.key(1), leaf.shape), params)
    start = time.perf_counter()
    certify_model(model, params)
    return time.perf_counter() - start


def dense(components: int = 64) -> float:
    """Seconds of one certificate with everything that can be asked of it."""
    rng = np.random.default_rng(0)
    A = rng.standard_normal((components, components)) / 12
    law = [(0.25, rng.uniform(0.1, 1, components)) for _ in range(4)]
    start = time.perf_counter()
    certify_recurrence(A, gate_min=0.1, gate_law=law, noise_cov=np.eye(components))
    certify_recurrence(A, gate_min=0.1, gate_lipschitz=0.01, drive_bound=1.0)
    return time.perf_counter() - start


def trained(
    form: str, seed: int, *, steps: int = STEPS, warmup_steps: int = 200, length: int = 256, d_state: int = 128
) -> dict[str, Any]:
    """Trains one run in a folder that is thrown away; returns its loss and what its blocks' certificates say."""
    config = selective_copying.get_config()
    config.model.update({"d_state": d_state, "selective": {"gate_state": "elementwise"} | FORMS[form]})
    config.optimizer.warmup_steps, config.data.length = warmup_steps, length
    config.training.update(steps=steps, eval_every=steps, checkpoint_every=steps, seed=seed, select="last", devices=1)
    with tempfile.TemporaryDirectory() as folder:
        loop.fit(Experiment.from_config_dict(config), folder)
        found, params, _ = checkpoint.restore_for_eval(folder)
        records = [json.loads(line) for line in (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()]
    nats = [record["nats"] for record in records if record.get("split") == "validation"][-1]
    blocks = certify_model(SequenceModel(found.model), params)
    return {
        "form": form,
        "seed": seed,
        "nats": nats,
        "contracts": all(certificate.contraction.status == "holds" for certificate in blocks.values()),
        "blocks": {
            name: {"status": one.contraction.status, "rate": one.contraction.rate} for name, one in blocks.items()
        },
    }


if __name__ == "__main__":
    measure.run("certificates", __doc__, benchmark, rounds=3)
