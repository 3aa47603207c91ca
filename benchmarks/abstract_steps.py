"""The training step of a recipe and the shapes that it is given, for programs that are lowered or compiled and not run:
no data are read.
"""

import dataclasses
import importlib.util
import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from selssm_jax import data
from selssm_jax.config import Data, Experiment, Task
from selssm_jax.model import SequenceModel
from selssm_jax.tasks import kind_of
from selssm_jax.training import optimizer, step

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"
RECIPES = {
    str(path.relative_to(CONFIGS).with_suffix("")): path
    for folder in ("", "paper")
    for path in sorted((CONFIGS / folder).glob("*.py"))
}
# What sources that are read from files ask of a model. Of files of one's own it is an example: a second of sound, seven
# columns.
TASKS = {
    "python_reference": Task("language", vocab=96),
    "tiny_shakespeare": Task("language", vocab=65),
    "wikitext2": Task("language", vocab=33278),
    "text": Task("language", vocab=96, length=128),
    "etth1": Task("forecasting", channels=7),
    "ettm1": Task("forecasting", channels=7),
    "weather": Task("forecasting", channels=21),
    "csv": Task("forecasting", channels=7, length=96),
    "fsdd": Task("classification", channels=1, classes=10, length=18262),
    "smnist": Task("classification", channels=1, classes=10, length=784),
    "psmnist": Task("classification", channels=1, classes=10, length=784),
    "npz": Task("classification", channels=1, classes=10, length=16_000, frame=400, stride=160),
}
Arrays = dict[str, jax.ShapeDtypeStruct]


def load(recipe: str, **model: Any) -> Experiment:
    """The experiment of a recipe, named by its path below configs/, without .py; `model`: keys that replace its own."""
    spec = importlib.util.spec_from_file_location(RECIPES[recipe].stem, RECIPES[recipe])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.model.update(model)
    return Experiment.from_config_dict(config)


def task_of(config: Data) -> Task:
    """What a recipe's data ask of a model."""
    if config.source not in TASKS:
        return data.load(config).task  # drawn, not read
    task = TASKS[config.source]
    return dataclasses.replace(task, length=config.length or task.length, horizon=config.horizon)


def batch_of(task: Task, rows: int) -> Arrays:
    """The shapes of a batch of training examples."""
    rowwise, stepwise, kind = (rows,), (rows, task.length), kind_of(task)
    shape, numbers = jax.ShapeDtypeStruct, partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    classes = shape(stepwise if kind.tokens else rowwise, jnp.int32)
    return {
        "inputs": classes if kind.tokens else numbers((*stepwise, task.width)),
        "targets": numbers((rows, task.horizon, task.channels)) if kind.forecasts else classes,
        "weights": numbers(classes.shape),
        "valid": shape(stepwise, jnp.bool_),
    }


def step_of(experiment: Experiment, task: Task) -> tuple[Callable[..., Any], Any, Arrays]:
    """(step, the shapes of its state, those of its batch)."""
    model, tx = SequenceModel(experiment.model.of_task(task)), optimizer.build(experiment)
    batch = batch_of(task, experiment.data.batch_size)
    state = jax.eval_shape(partial(step.initial, experiment, model, tx), batch)
    return partial(step.train_step, model=model, optimizer=tx, experiment=experiment), state, batch
