"""Any two values of the configuration together: refused by name, or a run whose first step is made of numbers.

The fast form asks every pair of the configuration and takes a few steps; the slow one takes a step of every pair that
is let pass, several pairs a run.
"""

import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest

from configs import smoke
from selssm_jax import data
from selssm_jax.config import Experiment, mixers
from selssm_jax.config.fields import assign
from selssm_jax.errors import InputError
from selssm_jax.model import SequenceModel
from selssm_jax.tasks.scores import means
from selssm_jax.training import optimizer, step

VALUES = {
    "data.source": ("induction_heads", "linear_gaussian"),
    "data.batch_size": (6,),
    "data.horizon": (5,),
    "model.pattern": (
        *((name,) for name in mixers.MIXERS if name != "selective"),
        ("selective", "gru"),
        ("tcn", "attention"),
        ("selective", "none"),
    ),
    "model.d_state": (5, 6),
    "model.block_states": ((4,), (5,), (4, 6)),
    "model.selective.gate": tuple(kind for kind in mixers.GATES if kind != "sigmoid"),
    "model.selective.gate_active": (2, 5),
    "model.selective.gate_slot_width": (2, 5),
    "model.selective.gate_temperature": (0.3,),
    "model.selective.gate_floor": (0.1,),
    "model.selective.gate_bias": (-20.0, 2.0),
    "model.selective.gate_state": ("elementwise", "dense"),
    "model.selective.update": ("effective",),
    "model.selective.drive": ("normalised",),
    "model.selective.output_gate": (True,),
    "model.selective.transition": ("complex", "dense"),
    "model.selective.process_noise": (0.3, 1e-12),
    "model.selective.observation_noise": (0.1,),
    "model.selective.certified": (True,),
    "model.selective.method": ("sequential", "associative", "chunked"),
    "model.mamba.method": ("sequential", "associative", "chunked"),
    "model.selective.solver": ("sequential", "newton"),
    "model.mamba.expand": (1, 3),
    "model.mamba2.expand": (1, 3),
    "model.mamba.dt_rank": (3,),
    **dict.fromkeys(("model.mamba.d_conv", "model.mamba2.d_conv", "model.rg_lru.d_conv"), (1, 3)),
    **dict.fromkeys(("model.mamba.projection_bias", "model.mamba2.projection_bias"), (True,)),
    **dict.fromkeys(("model.mamba.conv_bias", "model.mamba2.conv_bias"), (False,)),
    "model.mamba.inner_norm_epsilon": (1e-5,),
    "model.mamba2.dt_limit": ((0.01, 0.1),),
    **dict.fromkeys(
        ("model.attention.heads", "model.local_attention.heads", "model.mamba2.heads", "model.rg_lru.blocks"), (2, 3, 8)
    ),
    "model.mamba2.groups": (2,),
    "model.attention.window": (3,),
    "model.local_attention.window": (1,),
    "model.tcn.kernel": (1, 2),
    "model.tcn.dilations": ((3,),),
    "model.bidirectional": (True,),
    "model.conv": (1, 3),
    "model.mlp_ratio": (0.0, 0.01),
    "model.block_mlp_ratios": ((0.5,), (0.0, 1.0)),
    "model.norm": ("none",),
    "model.norm_epsilon": (0.0,),
    "model.dropout": (0.3,),
    "model.tie_embeddings": (True,),
    "model.frame": (4,),
    "model.stride": (2,),
    "model.filterbank": (3,),
    "model.head_context": (2,),
    "model.linear_skip": (4,),
    "model.normalize": (False,),
    "model.normalize_scale": (False,),
    "model.channel_independent": (True,),
    "model.channel_embedding": (True,),
    "model.channel_mixing": (True,),
    "model.dtype": ("bfloat16",),
    "model.remat": (True,),
    "model.resample.rule": ("static", "equal_time", "boundary", "information"),
    "model.resample.rate": (1,),
    "model.resample.first": (1,),
    "optimizer.clip_norm": (0.0,),
    "optimizer.accumulate": (2,),
    "training.average": (0.9,),
    "training.skip_nonfinite": (2,),
    "training.forecast_loss": ("huber", "mae"),
    "training.gate_l1": (0.1,),
    "training.gate_l0": (0.1,),
    "training.target_dimension": (0.3,),
    "training.information_weight": (0.1,),
    "training.information_bound": ("capacity",),
    "training.resample_ratio": (0.1,),
    "training.penalty_warmup": (2,),
}
Point = dict


def experiment(point: Point) -> Experiment:
    values = smoke.get_config().to_dict()
    values["training"]["devices"] = 1
    for path, value in point.items():
        assign(values, path, value)
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
    state, sums = jax.jit(
        lambda state, batch: step.train_step(state, batch, model=model, optimizer=tx, experiment=made)
    )(state, batch)
    scores = means(jax.device_get(sums))
    assert all(math.isfinite(value) for value in scores.values()), (point, scores)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.params))), point


def covering(left: list[Point], seed: int, size: int = 8):
    """Points of up to `size` values that are let pass together, until every pair is in one of them."""
    rng, left = np.random.default_rng(seed), list(left)
    while left:
        point = dict(left.pop(0))
        for index in rng.permutation(len(left))[:60]:
            more = (
                point | left[index]
                if all(point.get(path, value) == value for path, value in left[index].items())
                else point
            )
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


NOISY = {"model.selective.process_noise": 0.3, "training.information_weight": 0.1}


@pytest.mark.parametrize(
    "point",
    [
        NOISY
        | {"model.selective.gate": "binary", "model.selective.gate_floor": 0.1, "model.selective.update": "effective"},
        NOISY
        | {
            "model.selective.gate": "top_k",
            "model.selective.gate_active": 2,
            "model.selective.gate_floor": 0.1,
            "model.selective.transition": "complex",
            "model.d_state": 6,
        },
        {
            "model.selective.transition": "dense",
            "model.selective.gate_state": "dense",
            "model.selective.certified": True,
            "model.selective.gate_floor": 0.1,
            "model.selective.method": "sequential",
        },
    ],
    ids=lambda point: "-".join(point),
)
def test_a_step_of_settings_that_failed_together_is_made_of_numbers(point):
    take_a_step(point)


@pytest.mark.parametrize(
    "point",
    [
        NOISY | {"model.selective.gate": "binary"},
        NOISY | {"model.selective.gate": "top_k", "model.selective.gate_active": 2},
        NOISY | {"model.selective.gate": "softmax", "model.selective.gate_temperature": 0.1},
        NOISY | {"model.selective.process_noise": 1e-12},
        NOISY | {"model.selective.gate": "tanh", "model.selective.gate_bias": -20.0},
        {"model.selective.transition": "complex", "model.d_state": 5},
        {"model.selective.transition": "dense", "model.selective.method": "chunked"},
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
