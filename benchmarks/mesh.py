"""Claim: devices that share a sequence hold an eighth of its activations each, and an eighth of the parameters.

  python benchmarks/mesh.py

The step of train.py, optimiser and metrics included, of a language model of four selective blocks of width 128 on one
row, compiled for one device and for eight virtual CPU devices that share its steps, and for eight groups that share the
parameters. Nothing runs: temporaries and collectives are those of the compiled programs, of one device each.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import abstract_steps
import jax
import jax.numpy as jnp
import measure
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from selssm_jax.config import Data, Experiment, Model, Task, Training
from selssm_jax.ops import dense_scan, linear_scan, selective_scan, shards, ssd
from selssm_jax.training import parallel, pieces

DEVICES = 8
LENGTH, PIECE = 65_536, 8192
VOCAB, WIDTH, BLOCKS = 64, 128, 4
COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "collective-permute", "all-to-all")
SCANS = ("linear_scan", "dense_scan", "selective_scan", "ssd")


def build(rows: int, piece: int) -> tuple[Any, Any, Any, Model]:
    """(step, shapes of its state, shapes of a batch, the config of the model)."""
    experiment = Experiment(
        data=Data(source="selective_copying", batch_size=rows),
        model=Model(pattern=("selective",) * BLOCKS, d_model=WIDTH, d_state=WIDTH),
        training=Training(piece=piece),
    )
    task = Task("language", vocab=VOCAB, length=LENGTH)
    return *abstract_steps.step_of(experiment, task), experiment.model.of_task(task)


def on_mesh(groups: int, piece: int, *, shard_parameters: bool = False) -> dict[str, Any]:
    """Temporaries, collectives and bytes of the state of one device of a mesh; each group has one row."""
    step, state, batch, config = build(groups, piece)
    mesh = parallel.build_mesh(jax.devices()[:DEVICES], (groups, DEVICES // groups))
    take = parallel.mesh_parallel(
        step, mesh, over_time=partial(pieces.find_over_time, config), shard_parameters=shard_parameters
    )
    layout = parallel.mesh_layout(mesh, shard_parameters=shard_parameters)
    spread = NamedSharding(mesh, PartitionSpec(*mesh.axis_names))
    place = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)  # noqa: E731
    given = jax.tree.map(lambda leaf: place(leaf, layout(leaf)), state), {n: place(v, spread) for n, v in batch.items()}
    program = measure.compiled(take, *given)
    return {
        "temporary_bytes": measure.temporaries(program),
        "state_bytes": _bytes(state, lambda leaf: layout(leaf).shard_shape(leaf.shape)),
        "parameter_bytes": _bytes(state.params, lambda leaf: layout(leaf).shard_shape(leaf.shape)),
        "collectives": collectives(program),
    }


def alone(rows: int, piece: int) -> dict[str, Any]:
    """The same of one device."""
    step, state, batch, _ = build(rows, piece)
    shape = lambda leaf: leaf.shape  # noqa: E731
    return {
        "temporary_bytes": measure.temporaries(measure.compiled(step, state, batch)),
        "state_bytes": _bytes(state, shape),
        "parameter_bytes": _bytes(state.params, shape),
    }


def collectives(program: jax.stages.Compiled) -> dict[str, int]:
    """How often each is in the text of a program."""
    text = program.as_text()
    assert text is not None
    return {name: len(re.findall(rf" {name}(?:-start)?\(", text)) for name in COLLECTIVES}


def of_scan(name: str) -> dict[str, int]:
    """The collectives of one recurrence, forward."""
    rows, steps, width, states = 1, 64 * DEVICES, 8, 4
    shapes: dict[str, list[tuple[int, ...]]] = {
        "linear_scan": [(rows, steps, width)] * 2,
        "dense_scan": [(rows, steps, states, states), (rows, steps, states)],
        "selective_scan": [(rows, steps, width), (rows, steps, width), (rows, steps, states), (rows, steps, states)],
        "ssd": [(rows, steps, 2, width), (rows, steps, 2), (rows, steps, 1, states), (rows, steps, 1, states)],
    }
    calls: dict[str, Callable[..., jax.Array]] = {
        "linear_scan": lambda a, b: linear_scan(a, b)[0],
        "dense_scan": lambda a, b: dense_scan(a, b)[0],
        "selective_scan": lambda x, dt, b, c: selective_scan(x, dt, -jnp.ones((width, states)), b, c)[0],
        "ssd": lambda x, dt, b, c: ssd(x, dt, -jnp.ones(2), b, c)[0],
    }
    spread = PartitionSpec(None, shards.AXIS)
    mesh = parallel.build_mesh(jax.devices()[:DEVICES], (1, DEVICES))
    run = jax.shard_map(
        calls[name], mesh=mesh, in_specs=(spread,) * len(shapes[name]), out_specs=spread, check_vma=False
    )
    return collectives(measure.compiled(run, *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes[name])))


def _bytes(tree: Any, shape: Any) -> int:
    return int(sum(np.prod(shape(leaf)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)))


def benchmark(rounds: int) -> dict[str, Any]:
    """One device and the meshes, sequences whole and in pieces."""
    del rounds
    found = {
        "one device": alone(1, 0),
        "one device, in pieces": alone(1, PIECE),
        "8 devices a sequence": on_mesh(1, 0),
        "8 devices a sequence, in pieces": on_mesh(1, PIECE),
        "8 groups that share parameters, in pieces": on_mesh(DEVICES, PIECE, shard_parameters=True),
    }
    scans = {name: of_scan(name) for name in SCANS}
    one, split = found["one device"], found["8 devices a sequence"]
    shared = found["8 groups that share parameters, in pieces"]
    ratios = {
        f"temporaries of a device at {LENGTH:,}, {DEVICES} sharing": {
            "over_one_device": round(split["temporary_bytes"] / one["temporary_bytes"], 4),
            "at_most": 0.2,
        },
        "parameters of a device, 8 sharing": {
            "over_whole": round(shared["parameter_bytes"] / one["parameter_bytes"], 4),
            "at_most": 1 / 8 + 0.05,
        },
        "all-gathers of a recurrence, forward": {
            "most": max(found["all-gather"] for found in scans.values()),
            "at_most": 2,
        },
        "all-to-alls": {
            "most": max(
                part["all-to-all"]
                for part in (
                    *scans.values(),
                    *(value["collectives"] for value in found.values() if "collectives" in value),
                )
            ),
            "at_most": 0,
        },
    }
    return {
        "dtype": "float32",
        "shapes": {"length": LENGTH, "width": WIDTH, "state": WIDTH, "blocks": BLOCKS, "vocabulary": VOCAB},
        "ratios": ratios,
        "steps": found,
        "recurrences": scans,
    }


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", DEVICES)
    measure.run("mesh", __doc__, benchmark, rounds=1)
