"""Claim: a training step of six selective layers over 8192 steps compiles on a CPU in less than 15 seconds.

  python benchmarks/compile.py    # with the package installed

The step is that of train.py with optimiser and gradient: a language model of six blocks, width 128, 128 states, for
gates that read the input alone and for gates that also read the state. Seconds to trace and compile it from empty
caches, median of three; no data is needed, only shapes.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import measure

from selssm_jax.config import Data, Experiment, Model, SelectiveConfig, Task
from selssm_jax.config.mixers import Reads
from selssm_jax.model import SequenceModel
from selssm_jax.training import optimizer, step

STEPS, BLOCKS, SECONDS = 8192, 6, 15.0
GATE_STATES: tuple[Reads, ...] = ("none", "elementwise")


def benchmark(rounds: int) -> dict[str, Any]:
    """Both kinds of gates."""
    del rounds  # measure.seconds_to_compile takes the median of three
    seconds = {gate_state: seconds_to_compile(gate_state) for gate_state in GATE_STATES}
    ratios = {f"seconds, gate_state={name}": {"seconds": value, "at_most": SECONDS} for name, value in seconds.items()}
    return {"dtype": "float32", "steps": STEPS, "blocks": BLOCKS, "ratios": ratios}


def seconds_to_compile(gate_state: Reads) -> float:
    """Of one training step."""
    model = Model(
        pattern=("selective",) * BLOCKS,
        d_model=128,
        d_state=128,
        selective=SelectiveConfig(gate_state=gate_state),
        task=Task("language", vocab=65, length=STEPS),
    )
    experiment = Experiment(
        name="compile",
        data=Data(source="tiny_shakespeare", length=STEPS, batch_size=2),
        model=dataclasses.replace(model, task=Task()),
    )
    network, tx = SequenceModel(model), optimizer.build(experiment)
    tokens = jax.ShapeDtypeStruct((2, STEPS), jnp.int32)
    batch = {
        "inputs": tokens,
        "targets": tokens,
        "weights": jax.ShapeDtypeStruct((2, STEPS), jnp.float32),
        "valid": jax.ShapeDtypeStruct((2, STEPS), bool),
    }
    state = jax.eval_shape(partial(step.initial, experiment, network, tx), batch)
    return measure.seconds_to_compile(
        partial(step.train_step, model=network, optimizer=tx, experiment=experiment), state, batch
    )


if __name__ == "__main__":
    measure.run("compile", __doc__, benchmark, rounds=1)
