"""What is constant to relevance: each rule by hand, ordinary programs as without them, and no cache that mixes both."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from selssm_jax.layers import relevance_rules as rules
from selssm_jax.ops import linear_scan

Z = jnp.array([-2.0, -0.3, 0.0, 1e-9, 0.7, 3.0])
FUNCTIONS = {"silu": jax.nn.silu, "gelu": nn.gelu, "tanh": jnp.tanh, "relu": jax.nn.relu}


def slope(function, *values):
    with rules.explaining():
        return jax.grad(lambda *values: function(*values).sum(), argnums=tuple(range(len(values))))(*values)


def normed(cls, x):
    norm = cls(epsilon=1e-3)
    variables = jax.tree.map(lambda leaf: leaf + 0.5, norm.init(jax.random.key(0), x))
    return variables["params"], lambda x: norm.apply(variables, x)


def test_ordinary_programs_are_those_of_plain_functions():
    x = jnp.ones((2, 4))
    scale, bias = {"params": {"scale": jnp.ones(4)}}, {"params": {"scale": jnp.ones(4), "bias": jnp.zeros(4)}}
    pairs = [
        (lambda x: rules.detach(x), lambda x: x),
        (lambda x: rules.activate(jax.nn.silu, x), jax.nn.silu),
        (lambda x: rules.multiply(x, x), lambda x: x * x),
        (rules.gate_linear_units, nn.glu),
        (lambda x: rules.RMSNorm().apply(scale, x), lambda x: nn.RMSNorm().apply(scale, x)),
        (lambda x: rules.LayerNorm().apply(bias, x), lambda x: nn.LayerNorm().apply(bias, x)),
    ]
    for ours, plain in pairs:
        assert str(jax.make_jaxpr(ours)(x)) == str(jax.make_jaxpr(plain)(x))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_quotient_of_an_activation_is_constant(name):
    function = FUNCTIONS[name]
    (found,) = slope(lambda z: rules.activate(function, z), Z)
    large = np.abs(Z) > 1e-3
    np.testing.assert_allclose(found[large], (function(Z) / Z)[large], rtol=1e-6)
    near = {"relu": 1.0, "tanh": 1.0}.get(name, 0.5)  # the limit, of relu that from above
    np.testing.assert_allclose(found[~large], near, atol=1e-5)


def test_branches_of_a_product_take_half_each():
    a, b = Z, jnp.arange(6.0) - 2
    of_a, of_b = slope(rules.multiply, a, b)
    np.testing.assert_array_equal(of_a, b / 2)
    np.testing.assert_array_equal(of_b, a / 2)
    np.testing.assert_allclose((a * of_a + b * of_b).sum(), (a * b).sum(), rtol=1e-6)


def test_gates_and_roots_of_norms_are_constant():
    x = jax.random.normal(jax.random.key(1), (2, 6))
    assert not np.any(slope(lambda x: rules.detach(jnp.square(x)), x)[0])
    value, gate = jnp.split(x, 2, axis=-1)
    found = jnp.split(slope(rules.gate_linear_units, x)[0], 2, axis=-1)
    np.testing.assert_allclose(found[0], jax.nn.sigmoid(gate), rtol=1e-6)
    assert value.shape == found[1].shape and not np.any(found[1])
    params, read = normed(rules.RMSNorm, x)
    root = np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + 1e-3)
    np.testing.assert_allclose(slope(read, x)[0], params["scale"][None] / root, rtol=1e-5)
    params, read = normed(rules.LayerNorm, x)
    np.testing.assert_allclose(
        (x * slope(read, x)[0]).sum(), (read(x) - params["bias"][None]).sum(), rtol=1e-4, atol=1e-5
    )


def test_values_are_the_same_bits():
    x = jax.random.normal(jax.random.key(1), (50, 6))
    functions = [lambda x: rules.activate(nn.gelu, x), rules.gate_linear_units, lambda x: rules.multiply(x, x + 1)]
    functions += [normed(cls, x)[1] for cls in (rules.RMSNorm, rules.LayerNorm)]
    for function in functions:
        with rules.explaining():
            explained = jax.jit(function)(x), function(x)
        np.testing.assert_array_equal(explained[0], jax.jit(function)(x))
        np.testing.assert_array_equal(explained[1], function(x))


@jax.jit
def inner(x):
    """Compiled once in ordinary programs; the rules are not in them."""

    def step(h, x):
        return h * rules.detach(jax.nn.sigmoid(x)) + x, None

    return jax.lax.scan(jax.checkpoint(step), jnp.zeros(x.shape[1]), x)[0] * rules.detach(x.sum(axis=0))


def test_what_was_traced_without_the_rules_is_not_used_with_them_nor_the_reverse():
    x = jax.random.normal(jax.random.key(1), (5, 3))
    gradient = jax.jit(jax.grad(lambda x: inner(x).sum()))
    inner(x)
    ordinary = gradient(x)
    with rules.explaining():
        explained = gradient(x)
        only_products = jax.jit(rules.multiply)(x, x)
    assert not np.allclose(explained, ordinary)
    np.testing.assert_array_equal(gradient(x), ordinary)
    with rules.explaining():
        np.testing.assert_array_equal(gradient(x), explained)
    with rules.explaining(["norm"]):
        np.testing.assert_array_equal(gradient(x), ordinary)
    np.testing.assert_array_equal(only_products, x * x)
    np.testing.assert_allclose((x * explained).sum(), inner(x).sum(), rtol=1e-4)  # linear, gates held


def test_a_compiled_recurrence_serves_both():
    x = jax.random.normal(jax.random.key(1), (1, 6, 2))

    @jax.jit
    def read(x):
        return linear_scan(rules.detach(jax.nn.sigmoid(x)), x)[1].sum()

    read(x)
    ordinary = jax.grad(read)(x)
    with rules.explaining():
        explained = jax.grad(read)(x)
    np.testing.assert_allclose((x * explained).sum(), read(x), rtol=1e-5)
    assert abs((x * ordinary).sum() - read(x)) > 0.1
    np.testing.assert_array_equal(jax.grad(read)(x), ordinary)


def test_other_threads_are_not_explained():
    seen = []
    with rules.explaining():
        thread = threading.Thread(target=lambda: seen.append(rules.is_active("gate")))
        thread.start()
        thread.join()
        assert rules.is_active("gate") and seen == [False]
    assert not rules.is_active("gate")


def test_rules_that_are_none_are_refused():
    with pytest.raises(ValueError, match="unknown: use some of activation, gate"):
        rules.explaining(["gates"])
