"""Claim: every recipe's training step compiles for TPUs and fits into the memory of a chip: compiled for, not run on.

  python benchmarks/tpu.py    # with the extra [tpu] installed; no TPU is needed

The compiler of TPUs runs on any Linux machine, for a topology that is described to it: one chip of a v5e, which is
Colab's, one of a v6e, and data parallelism over 4 x 4 and 16 x 16 chips of a v5e. Shapes stand for the data
(`abstract_steps.TASKS`). Several chips share the recipe's batch, rounded up to a row for each. Bytes are those of the
compiled program on one chip: arguments, results and temporaries, less what they share. Seconds are CPU seconds of the
compiler alone. Collectives are counted in the compiled text. Programs are kept in runs/tpu/programs.json as they come,
and one that is there is not compiled again.
"""

import dataclasses
import json
import math
import os
import pathlib
import re
import sys
import time
from collections import Counter
from statistics import median
from typing import Any

import abstract_steps
import jax
import measure
from jax.experimental import topologies
from mixers import SIZES

from selssm_jax.config import Experiment
from selssm_jax.training import parallel


@dataclasses.dataclass(frozen=True)
class Chips:
    """A described topology, how many of its chips are used, and the bytes of one's memory."""

    topology: str
    count: int
    bytes: int


TARGETS = {
    "v5e": Chips("v5e:2x2", 1, 16 * 10**9),
    "v6e": Chips("v6e:2x2", 1, 32 * 10**9),
    "v5e 4x4": Chips("v5e:4x4", 16, 16 * 10**9),
    "v5e 16x16": Chips("v5e:16x16", 256, 16 * 10**9),
}
# of a machine that is no TPU: nothing is asked of the network
DESCRIBED = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing is run on a chip, which two processes cannot share
}
NAMED = [recipe for recipe in abstract_steps.RECIPES if "/" not in recipe]
MIXERS = {kind: {"pattern": (kind,)} | sizes for kind, sizes in SIZES.items()} | {
    "selective whose gates read the state": {"selective": {"gate_state": "elementwise"}},
    "selective with a dense transition": {"selective": {"transition": "dense"}},
}
FOLDER = pathlib.Path(__file__).parent.parent / "runs" / "tpu"
COLLECTIVE = re.compile(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


def benchmark(rounds: int) -> dict[str, Any]:
    """Every recipe for every target; recipes of paper/, which have the same blocks in other sizes, and every mixer for
    the first target alone. Without rounds nothing is compiled: what is known is recorded.
    """
    kept, first = FOLDER / "programs.json", next(iter(TARGETS))
    every = {recipe: abstract_steps.load(recipe) for recipe in abstract_steps.RECIPES}
    every |= {f"smoke, {name}": abstract_steps.load("smoke", **model) for name, model in MIXERS.items()}
    planned = [(name, target) for target in TARGETS for name in every if target == first or name in NAMED]
    programs: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else {}
    for name, target in planned:
        if rounds and target not in programs.setdefault(name, {}):
            programs[name][target] = describe(every[name], TARGETS[target], rounds)
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(programs))
            print(name, target, programs[name][target], file=sys.stderr, flush=True)
    return {
        "compiled": "for these chips, not run on them",
        "dtype": "float32",
        "targets": {target: dataclasses.asdict(chips) for target, chips in TARGETS.items()},
        "ratios": ratios(programs, len(planned)),
        "programs": programs,
        "not tried": [f"{name}, {target}" for name, target in planned if target not in programs.get(name, {})],
    }


def devices(chips: Chips) -> list[jax.Device]:
    """The chips, which need not be there."""
    os.environ |= DESCRIBED
    return topologies.get_topology_desc(platform="tpu", topology_name=chips.topology).devices[: chips.count]


def lower(experiment: Experiment, chips: list[jax.Device]) -> jax.stages.Lowered:
    """The step of training on these chips, as `training.loop` takes it."""
    step, state, batch = abstract_steps.step_of(experiment, abstract_steps.task_of(experiment.data))
    if len(chips) > 1:
        apart = lambda shape: (len(chips), shape[0] // len(chips), *shape[1:])  # noqa: E731
        batch = {name: jax.ShapeDtypeStruct(apart(leaf.shape), leaf.dtype) for name, leaf in batch.items()}
        return parallel.map_step(step, chips).lower(state, batch)
    one = parallel.layout(chips)
    state, batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one), (state, batch))
    alone = parallel.data_parallel(step, chips, remat=experiment.model.remat)
    assert isinstance(alone, jax.stages.Wrapped)  # on one device it is what jit makes
    return alone.lower(state, batch)


def share(experiment: Experiment, chips: int) -> Experiment:
    """The recipe with a batch that so many chips can share."""
    unit = chips * experiment.optimizer.accumulate
    rows = unit * math.ceil(experiment.data.batch_size / unit)
    return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, batch_size=rows))


def describe(experiment: Experiment, chips: Chips, rounds: int) -> dict[str, Any]:
    """What the compiler says of a recipe's step on these chips; where it refuses, why."""
    experiment, seconds = share(experiment, chips.count), []
    origin = {"rows": experiment.data.batch_size}
    lowered = lower(experiment, devices(chips))
    try:
        for _ in range(rounds):
            start = time.process_time()
            program = lowered.compile()
            seconds.append(time.process_time() - start)
    except jax.errors.JaxRuntimeError as error:
        return origin | {"refused": str(error).splitlines()[0]}
    memory, text = measure.analyse_memory(program), program.as_text()
    assert text is not None
    held = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )
    return origin | {
        "cpu_seconds_to_compile": round(median(seconds), 1),
        "bytes_a_chip": held,
        "share_of_memory": round(held / chips.bytes, 5),
        "collectives": dict(sorted(Counter(COLLECTIVE.findall(text)).items())),
        "float64": len(re.findall(r"\bf64\[", text)),
    }


def ratios(programs: dict[str, dict[str, Any]], planned: int) -> dict[str, dict[str, float]]:
    """What is claimed, of all programs that were planned; one that was not tried counts as none."""
    every = [program for targets in programs.values() for program in targets.values()]
    compiled = [program for program in every if "refused" not in program]
    return {
        "programs that compile": {"found": len(compiled), "at_least": planned},
        **{
            f"largest share of a chip's memory, {target}": {
                "found": max(
                    targets[target].get("share_of_memory", math.inf)
                    for targets in programs.values()
                    if target in targets
                ),
                "at_most": 1,
            }
            for target in TARGETS
        },
        "all-to-alls": {
            "found": sum(program["collectives"].get("all-to-all", 0) for program in compiled),
            "at_most": 0,
        },
        "numbers of 64 bits": {"found": sum(program["float64"] for program in compiled), "at_most": 0},
        "longest compilation, CPU seconds": {"found": max(program["cpu_seconds_to_compile"] for program in compiled)},
    }


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # what computes here
    measure.run("tpu", __doc__, benchmark, rounds=1)
