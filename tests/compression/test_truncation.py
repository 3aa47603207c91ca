"""Balanced truncation of blocks: the same function where nothing goes, and no further from it than the Hankel bound
where something does.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from selssm_jax.compression import truncation
from selssm_jax.compression.reduction import System, gain
from selssm_jax.config import Task
from selssm_jax.layers.blocks import mixing
from selssm_jax.model import SequenceModel

CIRCLE = np.linspace(-np.pi, np.pi, 101)
X = jax.random.normal(jax.random.key(2), (2, 30, 6))
TOKENS = jnp.arange(12)[None] % 5


def drawn(kind, **options):
    """(config, parameters) of a small model of one block."""
    config = runs.model(pattern=(kind,), d_model=6, d_state=16, task=Task("language", vocab=5), **options)
    return config, jax.jit(SequenceModel(config).init)(jax.random.key(0), TOKENS)["params"]


def mixer(config):
    return mixing(config.pattern[0], config.blocks[0])


def outputs(config, params):
    return jax.jit(SequenceModel(config).apply)({"params": params}, TOKENS)[0]


def systems(config, params):
    return mixer(config).apply({"params": params["block_0"]["mixer"]}, method="systems")


KINDS = [("s5", {}), ("lru", {}), ("s4d", {"rule": "bilinear"})]


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_the_system_of_a_layer_is_what_it_computes(kind, options):
    layer = mixer(drawn(kind)[0]).clone(**options)
    own = jax.jit(layer.init)(jax.random.key(1), X)["params"]
    found = layer.apply({"params": own}, method="systems")
    again = layer.apply({"params": own}, found, method="of_systems")
    call = jax.jit(layer.apply)
    same = call({"params": {**own, **jax.tree.map(jnp.float32, again)}}, X)[0]
    np.testing.assert_allclose(same, call({"params": own}, X)[0], atol=2e-4)


@pytest.mark.parametrize("kind", ["s5", "lru", "s4d"])
def test_a_truncated_block_is_within_the_hankel_bound(kind):
    config, params = drawn(kind)
    small, fewer, proved = truncation.truncate(config, params, {"block_0": 5})
    assert small.block_states == (10,) and proved["block_0"][:2] == (8, 5)
    whole, left = systems(config, params), systems(small, fewer)
    assert left.a.shape[1] == 5
    bound = proved["block_0"].error_bound
    for parts in zip(*whole, *left, strict=True):
        one, other = System(*parts[:3]), System(*parts[3:])
        difference = System(
            np.concatenate([one.A, other.A]),
            np.concatenate([one.B, other.B]),
            np.concatenate([one.C, -other.C], axis=1),
        )
        assert gain(difference, CIRCLE).max() <= bound * 1.01 + 1e-4  # parameters are of float32
    assert bound > 0 and proved["block_0"].largest > 0
    assert np.isfinite(outputs(small, fewer)).all()


@pytest.mark.parametrize("kind", [pytest.param("s5", marks=pytest.mark.exhaustive), "s4d"])
def test_what_carries_nothing_goes_without_a_trace(kind):
    """Half of the components are not read; equal poles of one channel have one component's work."""
    config, params = drawn(kind)
    own = dict(params["block_0"]["mixer"])
    C = np.array(own["C"])
    unread = np.arange(8) >= 4
    if kind == "s4d":
        C[:, :, unread] = 0
    else:
        C[np.tile(unread, 2)] = 0
    params = {**params, "block_0": {**params["block_0"], "mixer": {**own, "C": jnp.asarray(C)}}}
    small, fewer, proved = truncation.truncate(config, params, {"block_0": 6})
    np.testing.assert_allclose(outputs(small, fewer), outputs(config, params), atol=2e-4)
    assert proved["block_0"].error_bound < 1e-5 * proved["block_0"].largest


def test_blocks_that_are_no_systems_are_not_truncated():
    config, params = drawn("lstm")
    assert truncation.truncatable(config) == []
    with pytest.raises(ValueError, match="block_0 is no time-invariant block"):
        truncation.truncate(config, params, {"block_0": 2})
    config, params = drawn("s5")
    for count in (0, 9):
        with pytest.raises(ValueError, match="use from 1 to 8 components"):
            truncation.truncate(config, params, {"block_0": count})
