"""Every recipe's training step lowers for TPU and CUDA on this host, with the method that `auto` has for that platform.

No data and no accelerator are needed: shapes alone are lowered, for tasks filled in by hand.
"""

import dataclasses
import importlib.util
import pathlib
import re
import sys
from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import pytest

from selssm_jax.config import Experiment, Task
from selssm_jax.model import SequenceModel
from selssm_jax.ops._linear_scan import CHUNK
from selssm_jax.training import optimizer, step

# Recipes for files of one's own are left out: their lengths come from the file.
CONFIGS = sorted(
    path for path in (pathlib.Path(__file__).parent.parent / "configs").glob("*.py") if not path.stem.startswith("my_")
)
# What each source asks of a model; lengths and horizons come from the recipe.
TASKS = {
    "python_reference": Task("language", vocab=96),
    "tiny_shakespeare": Task("language", vocab=65),
    "wikitext2": Task("language", vocab=33278),
    "selective_copying": Task("language", vocab=18),
    "induction_heads": Task("language", vocab=17),
    "delayed_recall": Task("language", vocab=16),
    "linear_gaussian": Task("forecasting", channels=1),
    "etth1": Task("forecasting", channels=7),
    "ettm1": Task("forecasting", channels=7),
    "weather": Task("forecasting", channels=21),
    "fsdd": Task("classification", channels=1, classes=10, length=18262),
    "smnist": Task("classification", channels=1, classes=10, length=784),
    "psmnist": Task("classification", channels=1, classes=10, length=784),
}


def load(path: pathlib.Path) -> Experiment:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Experiment.from_config_dict(module.get_config())


def batch_of(task: Task, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    shape = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    rowwise, stepwise = (rows,), (rows, task.length)
    tokens = task.kind == "language"
    targets = {
        "language": jax.ShapeDtypeStruct(stepwise, jnp.int32),
        "classification": jax.ShapeDtypeStruct(rowwise, jnp.int32),
        "forecasting": shape((rows, task.horizon, task.channels)),
    }
    return {
        "inputs": jax.ShapeDtypeStruct(stepwise, jnp.int32) if tokens else shape((*stepwise, task.channels)),
        "targets": targets[task.kind],
        "weights": shape(stepwise if tokens else rowwise),
        "valid": jax.ShapeDtypeStruct(stepwise, jnp.bool_),
    }


def lowered(experiment: Experiment, task: Task, platform: str) -> str:
    """Returns the StableHLO of one training step for a platform; one block of each kind stands for all of its kind."""
    model = SequenceModel(
        dataclasses.replace(experiment.model, pattern=tuple(dict.fromkeys(experiment.model.pattern)), task=task)
    )
    tx = optimizer.build(experiment)
    batch = batch_of(task, experiment.data.batch_size)
    state = jax.eval_shape(partial(step.initial, experiment, model, tx), batch)
    train = jax.jit(partial(step.train_step, model=model, optimizer=tx, experiment=experiment))
    return jax.export.export(train, platforms=[platform])(state, batch).mlir_module()


def loops(text: str) -> list[int]:
    """Returns the trip counts of all counted loops of a module."""
    counts = []
    for function in text.split("func.func")[1:]:
        constants = dict(re.findall(r"(%\w+) = stablehlo\.constant dense<(\d+)> : tensor<i32>", function))
        limits = re.findall(r"cond \{\s+%\w+ = stablehlo\.compare\s+LT, %\w+, (%\w+),", function)
        assert len(limits) == function.count("stablehlo.while("), "a loop without a counter"
        counts += [int(constants[limit]) for limit in limits]
    return counts


@pytest.mark.parametrize("platform", ["tpu", "cuda", "cpu"])
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_training_step_lowers_with_the_method_of_the_platform(path, platform, monkeypatch):
    for op in ("linear_scan", "dense_scan"):  # the method alone, without the single steps that it gives way to
        monkeypatch.setattr(
            sys.modules[f"selssm_jax.ops._{op}"],
            "composed_or_stepped",
            lambda safe, composed, stepped, *operands: composed(*operands),
        )
    experiment = load(path)
    task = TASKS[experiment.data.source]
    task = dataclasses.replace(task, length=experiment.data.length or task.length, horizon=experiment.data.horizon)
    steps = -(-task.length // experiment.model.stride)
    assert experiment.model.selective.method == "auto"
    if set(experiment.model.pattern) != {"selective"}:  # a scan of its own, whose loops are in loops
        assert "stablehlo.exponential" in lowered(experiment, task, platform)
        return
    found = loops(lowered(experiment, task, platform))
    passes = 2 * len(set(experiment.model.pattern))  # forward and backward
    if platform == "cpu":  # sequential: a loop over time, with or without its first step
        assert sum(count in (steps - 1, steps) for count in found) == passes
    else:  # associative: no loop at all; or, for large arrays, chunked: a loop over chunks
        assert max(found, default=0) <= steps // CHUNK
