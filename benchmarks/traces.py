"""Claim: traces of hard gates take (dim_eff / n + 0.05) of the states' bytes, and every bit comes back.

  python benchmarks/traces.py    # with the package installed

Small models of selective copying (8 tokens of 8 strewn over 48 steps, then 8 steps to say them) are trained with gates
that jump and a penalty on the mean gate, and with gates that are hard but not 0 or 1. Their states on test sequences
are encoded by `compression.event_trace`, one trace a sequence and block, and decoded. dim_eff is the mean of sum_i g_i
over steps and sequences; open counts g_i > 0, which are more where gates lie between 0 and 1. A trace stores what
changed, so its bytes follow `open`. Gates that jump are 0 or 1 and dim_eff is what is open. A component that is open
and does not change in any bit is not stored.
"""

import dataclasses
import tempfile
from typing import Any

import jax
import measure
import numpy as np

from selssm_jax.compression import event_trace
from selssm_jax.config import Data, Experiment, Model, Optimizer, SelectiveConfig, Training
from selssm_jax.data import synthetic
from selssm_jax.model import SequenceModel
from selssm_jax.observe import observe
from selssm_jax.training import checkpoint, loop

SEED, STEPS, SEQUENCES, ALLOWED = 0, 1500, 64, 0.05
# gates, and the weight of the penalty
FORMS = {
    "binary": (SelectiveConfig(gate="binary"), 0.3),
    "top_k": (SelectiveConfig(gate="top_k", gate_active=6), 0.0),  # it would pull at gates whose sum cannot change
    "hard_sigmoid": (SelectiveConfig(gate="hard_sigmoid"), 0.3),
}


def benchmark(rounds: int) -> dict[str, Any]:
    """Trains one model a kind of gate and encodes what it remembers; `rounds` is the number of seeds."""
    runs = [measured(form, SEED + seed) for form in FORMS for seed in range(rounds)]
    blocks = [(run, name, block) for run in runs for name, block in run["blocks"].items()]
    ratios = {}
    for form in FORMS:
        own = [block for run, _, block in blocks if run["gate"] == form]
        most = {"at_most": ALLOWED} if form != "hard_sigmoid" else {}
        ratios[f"{form}: most of bytes / full - dim_eff / n, over blocks and seeds"] = {
            "ratio": max(block["bytes"] - block["dim_eff"] for block in own),
            **most,
        }
        ratios[f"{form}: most of bytes / full - open / n, over blocks and seeds"] = {
            "ratio": max(block["bytes"] - block["open"] for block in own),
            "at_most": ALLOWED,
        }
    ratios["share of traces decoded to the last bit"] = {
        "ratio": float(np.mean([block["exact"] for _, _, block in blocks])),
        "at_least": 1.0,
    }
    return {
        "dtype": "float32",
        "seeds": rounds,
        "training_steps": STEPS,
        "sequences": SEQUENCES,
        "ratios": ratios,
        "runs": runs,
    }


def experiment(form: str, seed: int, steps: int) -> Experiment:
    """The run of one kind of gate."""
    selective, gate_l1 = FORMS[form]
    return Experiment(
        name="traces",
        data=Data(
            source="selective_copying",
            length=48,
            vocab=8,
            tokens=8,
            batch_size=16,
            eval_batch_size=SEQUENCES,
            eval_examples=SEQUENCES,
        ),
        model=Model(pattern=("selective",) * 2, d_model=32, d_state=64, selective=selective),
        optimizer=Optimizer(peak_rate=5e-3, end_rate=5e-5, warmup_steps=steps // 10),
        training=Training(
            steps=steps,
            eval_every=steps,
            checkpoint_every=steps,
            log_every=steps,
            seed=seed,
            select="last",
            devices=1,
            gate_l1=gate_l1,
        ),
    )


def measured(form: str, seed: int, steps: int = STEPS) -> dict[str, Any]:
    """Trains in a folder that is thrown away; returns the accuracy on test sequences and, by block, what their traces
    take.
    """
    with tempfile.TemporaryDirectory() as folder:
        loop.fit(experiment(form, seed, steps), folder)
        found, params, _ = checkpoint.restore_for_eval(folder)
    data = synthetic.dataset(found.data)
    batch = next(iter(data.cover("test", SEQUENCES)))
    model = SequenceModel(dataclasses.replace(found.model, task=data.task))
    outputs, _, blocks = observe(model, params, batch, rngs={})
    right = (outputs.argmax(axis=-1) == batch["targets"]) * batch["weights"]
    return {
        "gate": form,
        "seed": seed,
        "gate_l1": found.training.gate_l1,
        "accuracy": float(right.sum() / batch["weights"].sum()),
        "blocks": {
            name: encoded(jax.device_get(block.state), jax.device_get(block.gate)) for name, block in blocks.items()
        },
    }


def encoded(states: np.ndarray, gate: np.ndarray) -> dict[str, Any]:
    """One trace a sequence, (B, T, n): shares of n and of all bytes."""
    traces = [event_trace.encode(sequence) for sequence in states]
    exact = [
        (one.decode().view(np.uint32) == sequence.view(np.uint32)).all()
        for one, sequence in zip(traces, states, strict=True)
    ]
    return {
        "n": states.shape[-1],
        "dim_eff": round(float(gate.mean()), 4),
        "open": round(float((gate > 0).mean()), 4),
        "changed": round(float(np.mean([one.find_changes().mean() for one in traces])), 4),
        "bytes": round(sum(one.nbytes for one in traces) / sum(one.full_nbytes for one in traces), 4),
        "exact": float(np.mean(exact)),
    }


if __name__ == "__main__":
    measure.run("traces", __doc__, benchmark, rounds=2)
