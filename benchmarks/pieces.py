"""Claim: a training step in pieces of time has the gradient of the whole, in memory that does not grow with the length.

  python benchmarks/pieces.py

The step of train.py, optimiser and metrics included, of a language model of four blocks of width 128, on one row of
random tokens. Temporaries are those of the compiled program. Seconds are medians over rounds in which the whole and its
pieces run in turn, in a process whose allocator keeps its pages (`selssm_jax.allocator`) and in one whose does not. The
longest steps run in processes of their own, and how far their resident memory rose is read from the kernel.
"""

import json
import os
import pathlib
import resource
import subprocess
import sys
import time
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np
import optax

from selssm_jax.config import AttentionConfig, Data, Experiment, Model, Task, Training
from selssm_jax.model import SequenceModel
from selssm_jax.training import optimizer
from selssm_jax.training.step import initial, train_step

KINDS = ("selective", "lstm", "gru", "attention")
LENGTHS = (4096, 16_384, 65_536)
PIECES = (256, 1024)  # of which the first is the smallest that is worth a loop
LONGEST = (1_048_576, 2_097_152)
VOCAB, WIDTH, BLOCKS = 64, 128, 4
HERE = pathlib.Path(__file__)


def build(kind: str, steps: int, piece: int, tx: optax.GradientTransformation | None = None) -> tuple[Any, Any, Any]:
    """(step, state, batch); full attention, that of a Transformer, looks back on all steps."""
    experiment = Experiment(
        data=Data(source="selective_copying", batch_size=1),
        model=Model(pattern=(kind,) * BLOCKS, d_model=WIDTH, d_state=WIDTH, attention=AttentionConfig(window=steps)),
        training=Training(piece=piece),
    )
    model = SequenceModel(experiment.model.of_task(Task("language", vocab=VOCAB, length=steps)))
    tokens = np.random.default_rng(0).integers(0, VOCAB, (2, 1, steps)).astype(np.int32)
    batch = {
        "inputs": tokens[0],
        "targets": tokens[1],
        "weights": np.ones((1, steps), np.float32),
        "valid": np.ones((1, steps), bool),
    }
    tx = tx or optimizer.build(experiment)
    state = initial(experiment, model, tx, {name: jnp.asarray(values[:, :64]) for name, values in batch.items()})
    return partial(train_step, model=model, optimizer=tx, experiment=experiment), state, batch


def difference(kind: str, steps: int, piece: int) -> float:
    """The largest difference of a parameter's gradient, relative to the norm of that gradient, over parameters."""
    changes = []
    for size in (0, piece):
        step, state, batch = build(kind, steps, size, tx=optax.sgd(1.0))
        after = jax.jit(step)(state, batch)[0].params
        changes.append(jax.tree.leaves(jax.tree.map(jnp.subtract, after, state.params)))
    return max(
        float(jnp.linalg.norm(one - other) / jnp.maximum(jnp.linalg.norm(one), 1e-12))
        for one, other in zip(*changes, strict=True)
    )


def compare(kind: str, steps: int, rounds: int) -> dict[str, Any]:
    """Bytes and seconds of the whole and of its pieces."""
    sizes = (0, *(() if kind == "attention" else PIECES))
    programs = {}
    for size in sizes:
        step, state, batch = build(kind, steps, size)
        programs[size] = measure.compiled(step, state, batch)
    state, batch = build(kind, steps, 0)[1:]
    times = measure.in_turn({size: (program, (state, batch)) for size, program in programs.items()}, rounds)
    return {
        str(size) if size else "whole": {
            "temporary_bytes": measure.temporaries(program),
            "seconds": round(median(times[size]), 4),
            "over_whole": {
                "bytes": round(measure.temporaries(program) / measure.temporaries(programs[0]), 4),
                "seconds": measure.ratio(times[size], times[0]),
            },
        }
        for size, program in programs.items()
    }


def rise(steps: int, piece: int) -> dict[str, float]:
    """Bytes that resident memory rose by in one step of the selective model, and its seconds."""
    step, state, batch = build("selective", steps, piece)
    program, before = measure.compiled(step, state, batch), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    jax.block_until_ready(program(state, batch))
    return {
        "rise_bytes": 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before),
        "seconds": round(time.perf_counter() - start, 1),
    }


def apart(call: str, kept: bool) -> Any:
    """What a call of this module returns in a process of its own, with pages kept or as glibc does."""
    script = (
        "from selssm_jax import allocator; allocator.keep_pages(); import json, pieces; "
        f"print(json.dumps(pieces.{call}))"
    )
    environment = os.environ | ({} if kept else {"GLIBC_TUNABLES": ""})
    paths = os.pathsep.join([str(HERE.parent), str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def benchmark(rounds: int) -> dict[str, Any]:
    """Every mixer at every length, the selective one with and without kept pages, and the longest steps."""
    table = {
        kind: {
            steps: apart(f"compare({kind!r}, {steps}, {rounds})", True)
            for steps in LENGTHS[: 3 if kind == "selective" else 2]
        }
        for kind in KINDS
    }
    returned = {steps: apart(f"compare('selective', {steps}, {rounds})", False) for steps in LENGTHS[:2]}
    longest = {steps: apart(f"rise({steps}, 1024)", True) for steps in LONGEST}
    errors = {kind: apart(f"difference({kind!r}, 2048, 256)", True) for kind in KINDS if kind != "attention"}
    selective = table["selective"]
    ratios = {
        "largest relative difference of gradients": {"pieces_and_whole": max(errors.values()), "at_most": 1e-5},
        **{
            f"temporaries at {steps:,} in pieces of 256": {
                "over_whole": selective[steps]["256"]["over_whole"]["bytes"],
                "at_most": most,
            }
            for steps, most in ((4096, 0.08), (65_536, 0.01))
        },
        **{
            f"seconds at {steps:,} in pieces of 1,024, pages {pages}": {
                "over_whole": found[steps]["1024"]["over_whole"]["seconds"],
                "at_most": most,
            }
            for pages, found in (("kept", selective), ("returned", returned))
            for steps, most in ((4096, 1.05), (16_384, 1.0))
        },
        **{
            f"MiB that a step of {steps:,} rises by": {"MiB": found["rise_bytes"] / 2**20, "at_most": 300}
            for steps, found in longest.items()
        },
    }
    return {
        "dtype": "float32",
        "shapes": {"rows": 1, "width": WIDTH, "state": WIDTH, "blocks": BLOCKS, "vocabulary": VOCAB},
        "rounds": rounds,
        "ratios": ratios,
        "pages kept": table,
        "pages returned": {"selective": returned},
        "longest": longest,
        "gradients": errors,
    }


if __name__ == "__main__":
    measure.run("pieces", __doc__, benchmark, rounds=3)
