"""Maxima that decide something do not drop NaN, in sizes at which XLA's do, and nothing that rests on them is certified
of NaN.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.compression.weights import decode_weights, encode_weights
from selssm_jax.layers.gates import Opening
from selssm_jax.layers.mamba import Mamba, Mamba2
from selssm_jax.ops.extremes import largest, smallest
from selssm_jax.stability import certify


@pytest.mark.parametrize("size", [3, 4096, 9000])
def test_extremes_of_what_holds_nan_are_nan(size):
    x = jnp.arange(size, dtype=jnp.float32).at[1].set(jnp.nan)
    for extreme in (largest, smallest):
        assert jnp.isnan(jax.jit(extreme)(x)) and jnp.isnan(extreme(jnp.stack([x, x], axis=1), 0)).all()
    x = jnp.arange(size, dtype=jnp.float32)
    assert largest(x) == size - 1 and smallest(x) == 0 and largest(x[None], 1, keepdims=True).shape == (1, 1)


@pytest.mark.parametrize("layer", [Mamba(128, 16), Mamba2(512, 16, 1)], ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize("leaf", ["A_log", "B", "dt_bias"])
def test_nothing_is_certified_of_weights_that_hold_nan(layer, leaf):
    params = jax.jit(layer.init)(jax.random.key(0), jnp.zeros((1, 2, layer.d_model)))["params"]
    assert certify(layer, params, input_bound=0.01).contraction.status == "holds"
    broken = params | {leaf: params[leaf].at[(0,) * params[leaf].ndim].set(jnp.nan)}
    found = certify(layer, broken, input_bound=0.01)
    assert found.contraction.status == "not established" and "NaN" in found.contraction.reason


def test_the_range_of_gates_that_hold_nan_is_none():
    z = jnp.zeros((5000, 2)).at[7, 1].set(jnp.nan)
    low = Opening(z, None, None, "sigmoid", 0.1).envelope(jnp.ones(2)).low
    assert low[0] == 0.55 and jnp.isnan(low[1])


@pytest.mark.parametrize(
    "W", [jnp.full((3, 3), jnp.nan), jnp.zeros(3).at[1].set(jnp.nan)], ids=["dense", "elementwise"]
)
def test_gates_that_may_read_anything_have_no_lipschitz_constant(W):
    """The largest |W| of a column of NaN is not above 0: such a top_k gate was said to read nothing."""
    bounds = Opening(jnp.zeros((2, 3)), None, W, "top_k", 0.0, 1).envelope(jnp.ones(3))
    assert not np.isfinite(np.asarray(bounds.lipschitz)[:, 1]).any()


def test_a_weight_that_is_nan_stays_so_in_eight_bits():
    matrix = jnp.ones((5000, 2)).at[7, 1].set(jnp.nan)
    restored = decode_weights(encode_weights({"w": matrix}))["w"]
    np.testing.assert_array_equal(np.isnan(restored[7]), [False, True])
