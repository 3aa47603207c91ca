"""The TCN block against a plain loop in float64, and how far back it sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.layers.tcn import TCN

D, T = 3, 17


def convolved(x, kernel, bias, dilation):
    y = np.tile(bias, (len(x), 1))
    for t, lag in np.ndindex(len(x), len(kernel)):
        if t - lag * dilation >= 0:
            y[t] += x[t - lag * dilation] @ kernel[lag]
    return y


@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (2, 4), (1, 2)])
def test_it_is_the_plain_loop_and_sees_as_far_as_it_says(kernel, dilation):
    layer = TCN(D, kernel, dilation)
    x = jax.random.normal(jax.random.key(0), (1, T, D))
    params = jax.jit(layer.init)(jax.random.key(1), x)
    y, state = jax.jit(layer.apply)(params, x)
    first, second = (
        jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"][name]) for name in ("first", "second")
    )
    hidden = np.maximum(convolved(np.asarray(x[0], np.float64), first["kernel"], first["bias"], dilation), 0)
    np.testing.assert_allclose(y[0], convolved(hidden, second["kernel"], second["bias"], dilation), atol=1e-5)
    assert [part.shape for part in state.values()] == [(1, (kernel - 1) * dilation, D)] * 2
    slope = np.abs(jax.jit(jax.jacrev(lambda x: layer.apply(params, x)[0][0, -1]))(x)).sum(axis=(0, 1, 3))
    assert T - 1 - np.flatnonzero(slope).min() == 2 * (kernel - 1) * dilation


@pytest.mark.parametrize("options", [{"kernel": 0}, {"dilation": 0}])
def test_impossible_sizes_are_refused(options):
    with pytest.raises(ValueError, match="at least 1"):
        TCN(D, **options).init(jax.random.key(0), jnp.zeros((1, 1, D)))
