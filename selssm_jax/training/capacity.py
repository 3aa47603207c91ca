"""Whether a model, its training and what it carries can fit, by an estimate from below; see `data.capacity`."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from selssm_jax.config import Experiment, Task
from selssm_jax.data import capacity
from selssm_jax.data.capacity import NUMBER
from selssm_jax.tasks.registry import kind_of
from selssm_jax.training import parallel, pieces

COPIES = 4  # of every parameter in training: itself, its gradient, two moments; an average is one more
WIDE = 4  # float32 numbers of one of complex128


def available() -> int:
    """Returns the bytes of memory of the device that computes."""
    device = jax.local_devices()[0]
    stated = (device.memory_stats() or {}) if device.platform != "cpu" else {}
    return int(stated.get("bytes_limit", 0)) or capacity.machine()


def check(experiment: Experiment, task: Task, *, trained: bool = True) -> None:
    """Raises InputError where a model for a task cannot fit, with its batches; `trained`: with gradients and moments.

    From sizes alone: a model is not traced before its weights are known to fit, for one of a billion taps would take a
    day to be.
    """
    model, data, kind = experiment.model.of_task(task), experiment.data, kind_of(task)
    rows = data.batch_size if trained else data.eval_batch_size or data.batch_size
    groups, sharing = _count_memories(experiment) if trained else (1, 1)
    examples, steps = -(-rows // groups), -(-max(task.length, 1) // sharing)
    rows = examples * kind.rows(model)
    width = jnp.dtype(model.dtype).itemsize
    copies: float = COPIES + bool(experiment.training.average) if trained else 1
    if experiment.training.shard_parameters:
        copies = max(copies / groups, 1)  # parameters are whole in a step
    parts: dict[str, float] = {
        f"a model of d_model={model.d_model}, {task}": float(copies * NUMBER * kind.weights(model))
    }
    for index, block in enumerate(model.blocks):
        name, hidden = block.pattern[0], block.mlp_ratio * model.d_model
        sizes = block.arguments(name) if block.kinds else {"d_model": block.d_model}
        said = ", ".join(f"{key}={value}" for key, value in sizes.items() if type(value) is int)
        parts[f"block {index}, {name} of {said}, model.mlp_ratio={block.mlp_ratio}"] = (
            copies * NUMBER * (weights(name, sizes) + 3 * hidden * model.d_model)
        )
        if not block.kinds:
            continue
        parts[f"what block {index} carries for {rows} rows: {name} of {said}, model.conv={model.conv}"] = float(
            rows * NUMBER * (state_numbers(name, sizes) + max(model.conv - 1, 0) * model.d_model)
        )
    if sum(parts.values()) <= available():
        steps = pieces.choose(model, examples, steps, experiment.training.piece)
    steps = kind.frames(model, steps)  # whose activations are there at a time
    parts[f"activations of {rows} rows (data.batch_size) of {steps} steps (data.length), d_model={model.d_model}"] = (
        float(rows * steps * model.d_model * width * len(model.pattern))
    )
    parts[f"answers to {rows} rows (data.batch_size), {task}"] = float(rows * kind.numbers(model, steps) * NUMBER)
    capacity.refuse(parts, available())


def _count_memories(experiment: Experiment) -> tuple[int, int]:
    """(groups that share rows, devices of a group), counted where each has a memory of its own: devices of a CPU have
    that of their process.
    """
    if jax.local_devices()[0].platform == "cpu":
        return jax.process_count(), 1
    training, rows = experiment.training, experiment.data.batch_size // experiment.optimizer.accumulate
    count = len(parallel.choose_devices(training.devices, rows, training.mesh))
    return count // training.mesh[1], training.mesh[1]


def weights(name: str, sizes: Mapping[str, Any]) -> float:
    """Returns how many numbers the parameters of a mixer are at least, or what they are made of when they are drawn."""
    d, n, inner = sizes["d_model"], sizes.get("d_state", 0), sizes.get("expand", 0) * sizes["d_model"]
    dense = "dense" in (sizes.get("transition"), sizes.get("gate_state"))
    return {
        "selective": 2 * d * n
        + (d * n + n**2 * dense) / sizes.get("gate_slot_width", 1)
        + d**2 * sizes.get("output_gate", False),
        "kalman": 3 * d * n,
        "kalman_attention": 3 * d * inner + 2 * d * n * sizes.get("heads", 0),
        "s4d": 2 * d * n,
        "s5": 2 * d * n + n**2 * WIDE,
        "lru": 2 * d * n,
        "rg_lru": 3 * d * n + 2 * n**2 / sizes.get("blocks", 1),
        "mamba": 3 * d * inner + 3 * inner * n + inner * sizes.get("d_conv", 0),
        "mamba2": 3 * d * inner + 2 * d * n * sizes.get("groups", 0) + inner * sizes.get("d_conv", 0),
        "min_gru": 3 * d * n,
        "rnn": 2 * d * n + n**2,
        "lstm": 5 * d * n + 4 * n**2,
        "gru": 4 * d * n + 3 * n**2,
        "attention": 4 * d**2,
        "local_attention": 4 * d**2,
        "tcn": 2 * d**2 * sizes.get("kernel", 0),
    }.get(name, 0.0)  # of an own mixer nothing is known


def state_numbers(name: str, sizes: Mapping[str, Any]) -> float:
    """Returns how many numbers a mixer carries for one sequence at least."""
    d, n, past = sizes["d_model"], sizes.get("d_state", 0), max(sizes.get("d_conv", 1) - 1, 0)
    inner = sizes.get("expand", 0) * d
    return {
        "kalman": 2 * n,
        "kalman_attention": (n + past) * inner + n * sizes.get("heads", 0) * (1 + 2 * past),
        "s4d": d * n,
        "mamba": inner * (n + past),
        "mamba2": inner * (n + past),
        "rg_lru": n * (1 + past),
        "attention": 2 * d * sizes.get("window", 0),
        "local_attention": 2 * d * sizes.get("window", 0),
        "tcn": 2 * d * (sizes.get("kernel", 1) - 1) * sizes.get("dilation", 1),
    }.get(name, n)
