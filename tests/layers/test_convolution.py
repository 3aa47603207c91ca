"""ShortConv: the sum it states, its carried past, and resets that hide what came before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.layers.convolution import ShortConv

X = jax.random.normal(jax.random.key(0), (2, 9, 3))
RESET = jnp.zeros((2, 9), bool).at[0, 4].set(True).at[1, 0].set(True)


@pytest.fixture(scope="module")
def conv():
    layer = ShortConv(4, 3)
    return layer, layer.init(jax.random.key(1), X)


def test_equals_the_sum_over_lags(conv):
    layer, params = conv
    kernel, bias = (np.asarray(params["params"][name]) for name in ("kernel", "bias"))
    padded = np.concatenate([np.zeros((2, 3, 3)), X], axis=1)
    expected = sum(kernel[lag] * padded[:, 3 - lag : 12 - lag] for lag in range(4)) + bias
    np.testing.assert_allclose(layer.apply(params, X)[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cut", range(1, 9))
def test_whole_equals_split_with_resets(conv, cut):
    layer, params = conv
    whole, last = layer.apply(params, X, reset=RESET)
    left, state = layer.apply(params, X[:, :cut], reset=RESET[:, :cut])
    right, end = layer.apply(params, X[:, cut:], state, reset=RESET[:, cut:])
    np.testing.assert_allclose(jnp.concatenate([left, right], axis=1), whole, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(end, last)


def test_a_reset_document_equals_the_document_alone(conv):
    layer, params = conv
    whole, _ = layer.apply(params, X, reset=RESET)
    alone, _ = layer.apply(params, X[:1, 4:])
    np.testing.assert_array_equal(whole[0, 4:], alone[0])


def test_no_gradient_crosses_a_reset(conv):
    layer, params = conv
    gradient = jax.grad(lambda x: layer.apply(params, x, reset=RESET)[0][0, 4:].sum())(X)
    assert (gradient[0, :4] == 0).all() and (gradient[0, 4:] != 0).any()
