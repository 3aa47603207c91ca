"""Certificates of the blocks of a run, and rates seen in gates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import quickstart
from selssm_jax.analysis import stability
from selssm_jax.config import Experiment
from selssm_jax.layers.bounds import Ball, Bounds
from selssm_jax.layers.selective import SelectiveSSM


def stated(A):
    return Bounds(A=jnp.asarray(A), gate_min=jnp.zeros(len(A)), gate_max=jnp.ones(len(A)))


def test_the_rate_seen_is_that_of_the_product():
    rng = np.random.default_rng(0)
    gates, a = rng.uniform(0, 1, (50, 3)), np.array([0.9, 0.5, -0.2], np.float32)
    product = np.prod(1 - gates * (1 - a), axis=0)
    expected = np.abs(product).max() ** (1 / 50)
    assert stability.observe_rate(stated(a), gates) == pytest.approx(expected)
    assert stability.observe_rate(stated(np.diag(a)), gates) == pytest.approx(expected)
    assert stability.observe_rate(stated(np.zeros(3, np.float32)), np.ones((4, 3))) == 0
    assert stability.observe_rate(Bounds(unknown="nothing"), gates) is None


def test_weights_that_are_not_numbers_have_no_certificate():
    broken = Bounds(A=jnp.full(3, jnp.nan), gate_min=jnp.zeros(3), gate_max=jnp.ones(3))
    assert stability.certify_block(broken).contraction.status == "not established"


def test_the_quickstart_is_certain_to_forget_within_a_thousand_steps():
    """Of any weights: gates of at least the floor, and components that start as slow as they do."""
    experiment = Experiment.from_config_dict(quickstart.get_config())
    layer = SelectiveSSM(
        experiment.model.d_model, experiment.model.d_state, gate_floor=experiment.model.selective.gate_floor
    )
    params = layer.init(jax.random.key(0), jnp.zeros((1, 2, experiment.model.d_model)))["params"]
    found = stability.certify_block(
        layer.apply(
            {"params": params},
            Ball(jnp.ones(experiment.model.d_model), float(experiment.model.d_model) ** 0.5),
            method="bounds",
        )
    )
    assert found.contraction.status == "holds" and found.horizon() < 1000
