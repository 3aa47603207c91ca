"""Every recipe's training step lowers for TPU and CUDA on this host, with the method that `auto` has for that platform.

No data and no accelerator are needed: shapes alone are lowered, for tasks filled in by hand. Where the compiler of TPUs
is installed, a step is compiled too; `benchmarks/tpu.py` compiles those of all recipes.
"""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys

import jax
import jax.export
import pytest

from benchmarks import abstract_steps
from selssm_jax.config import Experiment, Task
from selssm_jax.ops._linear_scan import CHUNK


def lowered(experiment: Experiment, task: Task, platform: str) -> str:
    """Returns the StableHLO of one training step for a platform; one block of each kind stands for all of its kind."""
    model = dataclasses.replace(experiment.model, pattern=tuple(dict.fromkeys(experiment.model.pattern)))
    step, state, batch = abstract_steps.step_of(dataclasses.replace(experiment, model=model), task)
    return jax.export.export(jax.jit(step), platforms=[platform])(state, batch).mlir_module()


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
@pytest.mark.parametrize("recipe", [recipe for recipe in abstract_steps.RECIPES if "/" not in recipe])
def test_training_step_lowers_with_the_method_of_the_platform(recipe, platform, monkeypatch):
    for op in ("linear_scan", "dense_scan"):  # the method alone, without the single steps that it gives way to
        monkeypatch.setattr(
            sys.modules[f"selssm_jax.ops._{op}"],
            "composed_or_stepped",
            lambda safe, composed, stepped, *operands: composed(*operands),
        )
    experiment = abstract_steps.load(recipe)
    task = abstract_steps.task_of(experiment.data)
    steps = -(-task.length // experiment.model.of_task(task).stride)
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


@pytest.mark.always
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs the extra 'tpu'")
def test_a_training_step_compiles_for_tpus(repository):
    script = """
import json, abstract_steps, tpu
found = [tpu.describe(abstract_steps.load("smoke"), tpu.Chips("v5e:2x2", count, 16 * 10**9), 1) for count in (1, 4)]
print(json.dumps(found))
"""
    paths = os.pathsep.join([str(repository / "benchmarks"), str(repository), os.environ.get("PYTHONPATH", "")])
    without = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "JAX_ENABLE_COMPILATION_CACHE": "0", "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | without | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    one, four = json.loads(done.stdout.splitlines()[-1])
    assert one["collectives"] == {} and set(four["collectives"]) == {"all-reduce"}
    for program in (one, four):
        assert program["rows"] == 8 and 0 < program["share_of_memory"] < 0.01 and program["float64"] == 0
