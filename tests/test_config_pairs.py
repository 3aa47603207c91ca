"""Any two values of the configuration together: refused by name, or a run whose first step is made of numbers.

The fast form asks every pair of the configuration and takes a few steps; the slow one takes a step of every pair that is let pass, several pairs a run.
"""

import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest

from configs import smoke
from selssm_jax import data, settings
from selssm_jax.config import Experiment
from selssm_jax.errors import InputError
from selssm_jax.model import SequenceModel
from selssm_jax.tasks.scores import means
from selssm_jax.training import optimizer, step

VALUES = {
    "data.source": ("induction_heads", "linear_gaussian"),
    "data.batch_size": (6,),
    "data.horizon": (5,),
    "model.pattern": (*((name,) for name in settings.MIXERS if name != "selective"), ("selective", "gru"), ("tcn", "attention")),
    "model.d_state": (5, 6),
    "model.block_states": ((4,), (5,), (4, 6)),
    "model.gate": tuple(kind for kind in settings.GATES if kind != "sigmoid"),
    "model.gate_active": (2, 5),
    "model.gate_floor": (0.1,),
    "model.gate_bias": (-20.0, 2.0),
    "model.gate_state": ("elementwise", "dense"),
    "model.update": ("effective",),
    "model.transition": ("complex", "dense"),
    "model.process_noise": (0.3, 1e-12),
    "model.observation_noise": (0.1,),
    "model.certified": (True,),
    "model.scan": ("sequential", "associative", "chunked"),
    "model.solver": ("sequential", "newton"),
    "model.expand": (1, 3),
    "model.dt_rank": (3,),
    "model.d_conv": (1, 3),
    "model.projection_bias": (True,),
    "model.conv_bias": (False,),
    "model.inner_norm_epsilon": (1e-5,),
    "model.dt_limit": ((0.01, 0.1),),
    "model.heads": (2, 3, 8),
    "model.groups": (2,),
    "model.context": (3,),
    "model.window": (1,),
    "model.kernel": (1, 2),
    "model.dilations": ((3,),),
    "model.bidirectional": (True,),
    "model.conv": (1, 3),
    "model.mlp_ratio": (0.0, 0.01),
    "model.norm": ("none",),
    "model.norm_epsilon": (0.0,),
    "model.dropout": (0.3,),
    "model.tie_embeddings": (True,),
    "model.frame": (4,),
    "model.stride": (2,),
    "model.filterbank": (3,),
    "model.head_steps": (2,),
    "model.linear_skip": (4,),
    "model.normalize": (False,),
    "model.normalize_scale": (False,),
    "model.channels_apart": (True,),
    "model.dtype": ("bfloat16",),
    "model.remat": (True,),
    "optimizer.clip_norm": (0.0,),
    "optimizer.accumulate": (2,),
    "training.forecast_loss": ("huber",),
    "training.gate_l1": (0.1,),
    "training.gate_l0": (0.1,),
    "training.target_dimension": (0.3,),
    "training.rate": (0.1,),
    "training.rate_form": ("capacity",),
    "training.penalty_warmup": (2,),
}
Point = dict


def experiment(point: Point) -> Experiment:
    values = smoke.get_config().to_dict()
    values["training"]["devices"] = 1
    for path, value in point.items():
        group, _, key = path.partition(".")
        values[group][key] = value
    return Experiment.from_dict(values)


def refused(point: Point) -> str:
    try:
        experiment(point)
    except InputError as error:
        return str(error) or "without a word"
    return ""


def pairs() -> list[Point]:
    singles = [(path, value) for path, values in VALUES.items() for value in values]
    return [dict(two) for two in itertools.combinations(singles, 2) if two[0][0] != two[1][0]]


def take_a_step(point: Point) -> None:
    """One step of training; its loss and gradient are numbers, or the data refuse the sizes."""
    made = experiment(point)
    try:
        dataset = data.load(made.data)
    except InputError:
        return
    model, tx = SequenceModel(dataclasses.replace(made.model, task=dataset.task)), optimizer.build(made)
    batch = next(dataset.train(made.data.batch_size, seed=0))
    state = step.initial(made, model, tx, batch)
    state, sums = jax.jit(lambda state, batch: step.train_step(state, batch, model=model, optimizer=tx, experiment=made))(state, batch)
    scores = means(jax.device_get(sums))
    assert all(math.isfinite(value) for value in scores.values()), (point, scores)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.params))), point


def covering(left: list[Point], seed: int, size: int = 8):
    """Points of up to `size` values that are let pass together, until every pair is in one of them."""
    rng, left = np.random.default_rng(seed), list(left)
    while left:
        point = dict(left.pop(0))
        for index in rng.permutation(len(left))[:60]:
            more = point | left[index] if all(point.get(path, value) == value for path, value in left[index].items()) else point
            if len(more) <= size and more != point and not refused(more):
                point = more
        left = [pair for pair in left if not pair.items() <= point.items()]
        yield point


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_every_pair_of_values_is_let_pass_or_refused_by_name(every):
    """Of the fast form, every fifth."""
    tried = pairs()
    assert len(tried) > 4000
    answers = [refused(pair) for pair in tried[::every]]
    assert "without a word" not in answers and {bool(answer) for answer in answers} == {True, False}


NOISY = {"model.process_noise": 0.3, "training.rate": 0.1}


@pytest.mark.parametrize(
    "point",
    [
        NOISY | {"model.gate": "binary", "model.gate_floor": 0.1, "model.update": "effective"},
        NOISY | {"model.gate": "top_k", "model.gate_active": 2, "model.gate_floor": 0.1, "model.transition": "complex", "model.d_state": 6},
        {"model.transition": "dense", "model.gate_state": "dense", "model.certified": True, "model.gate_floor": 0.1, "model.scan": "sequential"},
    ],
    ids=lambda point: "-".join(point),
)
def test_a_step_of_settings_that_failed_together_is_made_of_numbers(point):
    take_a_step(point)


@pytest.mark.parametrize(
    "point",
    [
        NOISY | {"model.gate": "binary"},
        NOISY | {"model.gate": "top_k", "model.gate_active": 2},
        NOISY | {"model.process_noise": 1e-12},
        NOISY | {"model.gate": "tanh", "model.gate_bias": -20.0},
        {"model.transition": "complex", "model.d_state": 5},
        {"model.transition": "dense", "model.scan": "chunked"},
    ],
    ids=lambda point: "-".join(f"{key}={value}" for key, value in point.items()),
)
def test_settings_that_cannot_go_together_are_refused(point):
    assert refused(point)


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", range(8))
def test_a_step_of_every_pair_is_made_of_numbers(part):
    let_pass = [pair for pair in pairs() if not refused(pair)]
    for point in covering(let_pass[part::8], part):
        take_a_step(point)
