"""No forecast knows what comes after its window: every recipe of a table, and what one of one's own may read."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import etth1, ettm1, my_table, weather
from selssm_jax import data
from selssm_jax.config import Experiment
from selssm_jax.model import SequenceModel

ROWS, CHANNELS = 900, 3
FIRST = ROWS - int(0.2 * ROWS)  # row that the first test window forecasts first
SHAPE = {"length": 96, "horizon": 24}


def write_table(path, values, known):
    """A table of an hourly clock, channels, and a column that is known ahead."""
    clock = np.datetime64("2020-01-01T00") + np.arange(ROWS)
    lines = [f"{t},{','.join(f'{x:.6f}' for x in row)},{k:.6f}" for t, row, k in zip(clock, values, known, strict=True)]
    path.write_text("\n".join(["date,a,b,c,plan", *lines]) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A table, and the same until the first test window is read, with other channels from there on."""
    rng = np.random.default_rng(0)
    day = 2 * np.pi * np.arange(ROWS)[:, None] / 24
    values = np.sin(day + np.arange(CHANNELS)) + 0.3 * rng.normal(size=(ROWS, CHANNELS))
    changed = values.copy()
    changed[FIRST:] = 50 * rng.normal(size=(ROWS - FIRST, CHANNELS)) - 7
    folder = tmp_path_factory.mktemp("tables")
    known = rng.normal(size=ROWS)
    return [write_table(folder / f"{name}.csv", table, known) for name, table in (("a", values), ("b", changed))]


CASES = {
    "weather": (weather, {}, {}),
    "weather, period found": (weather, {"period": -1}, {}),
    "ettm1": (ettm1, {}, {}),
    "etth1": (etth1, {}, {}),
    "a table": (my_table, {"calendar": ("hour", "weekday"), "future_covariates": ("plan",)}, {}),
    "channels by attention": (weather, {}, {"channel_mixing": False, "pattern": ("selective", "attention")}),
}


@pytest.mark.always
@pytest.mark.parametrize("name", CASES)
def test_what_comes_after_the_window_changes_no_forecast(tables, name):
    recipe, options, changes = CASES[name]
    config = recipe.get_config()
    config.data.update({"source": "csv", "period": min(config.data.period, 24), "eval_batch_size": 4} | SHAPE | options)
    config.model.update(changes | {"linear_skip": min(config.model.linear_skip, SHAPE["length"])})
    forecasts, batches = zip(*(forecast_first_window(config, table) for table in tables), strict=True)
    assert np.abs(batches[0]["targets"][0] - batches[1]["targets"][0]).max() > 1  # it is another future
    np.testing.assert_array_equal(forecasts[0], forecasts[1])


def forecast_first_window(config, table):
    """The forecast of the first test window by a model whose parameters are all drawn, and its batch."""
    config = config.copy_and_resolve_references()
    config.data.file = table
    experiment = Experiment.from_config_dict(config)
    dataset = data.load(experiment.data)
    batch = next(iter(dataset.evaluate("test", 4)))
    model = SequenceModel(dataclasses.replace(experiment.model, task=dataset.task))
    inputs = jnp.asarray(batch["inputs"])
    params = jax.jit(model.init)(jax.random.key(0), inputs)["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    outputs, _ = jax.jit(model.apply)({"params": jax.tree.unflatten(tree, drawn)}, inputs)
    return np.asarray(outputs[0]), batch
