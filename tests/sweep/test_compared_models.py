"""Compared models of a sweep: one number of parameters, equally many points, nothing but the mixer changed."""

import dataclasses
import math
import pathlib

import jax
import jax.numpy as jnp
import pytest

import runs
from selssm_jax.config import COMPARED, Experiment, Sweep, Task, load
from selssm_jax.errors import InputError
from selssm_jax.model import SequenceModel
from selssm_jax.sweep import compared_models

PAPER = sorted((pathlib.Path(__file__).parents[2] / "configs" / "paper").glob("*.py"))
TASKS = {
    "language": Task("language", vocab=65, length=128),
    "classification": Task("classification", channels=1, classes=10, length=784),
    "forecasting": Task("forecasting", channels=7, length=96, horizon=96),
}
LANGUAGE = TASKS["language"]


def sweeping(**changes) -> Experiment:
    sweep = Sweep(**({"parameters": 40_000, "trials": 8, "gate_biases": (0.0, 1.0)} | changes))
    return dataclasses.replace(
        runs.experiment(model__pattern=("selective",) * 2, model__d_model=32, model__d_state=64), sweep=sweep
    )


@pytest.mark.parametrize("name", COMPARED)
def test_a_compared_model_has_the_parameters_that_are_asked_for_by_its_mlp_alone(name):
    base = sweeping()
    point = compared_models.grid(base, name)[-1]
    found = compared_models.configure(base, name, point, LANGUAGE)
    model = SequenceModel(dataclasses.replace(found.model, task=LANGUAGE))
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    drawn = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert abs(drawn / 40_000 - 1) <= compared_models.WITHIN
    assert found.data == base.data
    assert found.optimizer == dataclasses.replace(base.optimizer, peak_rate=point["optimizer.peak_rate"])
    assert found.model.d_model == base.model.d_model
    assert found.model.pattern == (COMPARED[name].mixer,) * 2


@pytest.mark.parametrize("name", COMPARED)
def test_every_compared_model_gets_as_many_trials_none_of_them_twice(name):
    points = compared_models.grid(sweeping(), name)
    assert len(points) == len({tuple(point.items()) for point in points}) == 8
    assert {"optimizer.peak_rate"} < set(points[0])


def test_gate_biases_and_penalties_are_for_selective_gates_alone():
    base = sweeping(penalties=(0.0, 0.01))
    assert {point["model.selective.gate_bias"] for point in compared_models.grid(base, "selective")} == {0.0, 1.0}
    assert {point["training.gate_l1"] for point in compared_models.grid(base, "selective")} == {0.0, 0.01}
    assert not {"model.selective.gate_bias", "training.gate_l1"} & set(compared_models.grid(base, "gru")[0])


def test_rates_are_spaced_evenly_in_their_logarithm():
    rates = sorted(
        {point["optimizer.peak_rate"] for point in compared_models.grid(sweeping(learning_rates=(1e-3, 8e-3)), "gru")}
    )
    assert rates == pytest.approx([1e-3, 2e-3, 4e-3, 8e-3])
    (middle,) = {
        point["optimizer.peak_rate"]
        for point in compared_models.grid(sweeping(trials=4, learning_rates=(1e-3, 4e-3)), "selective")
    }
    assert middle == pytest.approx(2e-3)


def test_without_a_number_the_configured_model_gives_it():
    base = sweeping(parameters=0)
    assert compared_models.target(base, LANGUAGE) == compared_models.parameters(base.model, LANGUAGE)


def test_mixers_that_are_larger_than_the_whole_are_refused():
    base = sweeping(parameters=5_000)
    with pytest.raises(
        InputError,
        match=r"'lstm' has [\d,]+ parameters with MLPs of 1 hidden units, where sweep.parameters asks for 5,000",
    ):
        compared_models.configure(base, "lstm", compared_models.grid(base, "lstm")[-1], LANGUAGE)


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_the_largest_compared_models_of_the_papers_tasks_can_be_built(path):
    base = Experiment.from_config_dict(load(str(path)))
    kinds = {
        "tiny_shakespeare": "language",
        "wikitext2": "language",
        "selective_copying": "language",
        "induction_heads": "language",
        "fsdd": "classification",
    }
    kind = kinds.get(base.data.source, "classification" if base.data.source == "smnist" else "forecasting")
    task = dataclasses.replace(TASKS[kind], horizon=base.data.horizon if kind == "forecasting" else 0)
    assert base.name == path.stem
    for name in ("lstm", "tcn"):
        point = compared_models.grid(base, name)[-1]
        assert math.isclose(
            compared_models.parameters(compared_models.configure(base, name, point, task).model, task),
            compared_models.target(base, task),
            rel_tol=0.05,
        )
