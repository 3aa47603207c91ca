"""Both rules against what they discretise: the matrix exponential, and the differential equation itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

from selssm_jax.ops.discretize import bilinear, zero_order_hold

POLES = np.array([0, -1e-6, -1e-3, -0.19, -0.21, -0.5 + 3j, -1 - 40j, 2j, -30, 1.5], np.complex64)
A, U = -0.7 + 2j, 1.3  # x' = A x + u
PACE = 3.0  # of the smooth input cos(PACE t)
STEPS = np.array([16, 32, 64])


@pytest.mark.parametrize("dt", [1e-3, 0.1])
def test_the_hold_is_the_exponential_of_the_augmented_matrix(dt):
    a, b = jax.jit(zero_order_hold)(jnp.asarray(POLES), jnp.full(len(POLES), dt))
    exact = np.stack([expm(dt * np.array([[pole, 1], [0, 0]], np.complex128))[0] for pole in POLES])
    np.testing.assert_allclose(a, exact[:, 0], rtol=3e-6)
    np.testing.assert_allclose(b, exact[:, 1], rtol=3e-7 if dt < 0.01 else 3e-6)  # the phase 40 dt costs float32 digits of its cosine


def test_a_pole_of_zero_adds_up():
    for rule in (zero_order_hold, bilinear):
        assert [float(part[0]) for part in rule(jnp.zeros(1), jnp.full(1, 0.25))] == [1, 0.25]


def test_slopes_are_right_near_zero_and_beyond():
    z = np.array([0, 1e-6, -1e-4, -1e-3, 0.019, -0.021, -0.5, -4.0])
    slopes = jax.jit(jax.vmap(jax.grad(lambda A: zero_order_hold(A, jnp.ones(()))[1])))(jnp.asarray(z, jnp.float32))
    wide = np.asarray(z, np.longdouble)
    series = sum(k * wide ** (k - 1) / np.longdouble(np.prod(np.arange(1.0, k + 2))) for k in range(1, 30))
    np.testing.assert_allclose(slopes, series.astype(float), rtol=5e-5)


@pytest.mark.parametrize("rule", [zero_order_hold, bilinear])
def test_gradients_at_zero_are_finite(rule):
    def size(parts, dt):
        return sum(jnp.square(jnp.abs(value)).sum() for value in rule(jax.lax.complex(*parts), dt))

    found = jax.jit(jax.grad(size, (0, 1)))((jnp.zeros(2), jnp.array([0.0, 1.0])), jnp.full(2, 0.1))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("rule", [zero_order_hold, bilinear])
def test_what_decays_decays(rule):
    a, _ = rule(jnp.asarray([-0.5 + 100j, -1e-3 + 1j, -1000.0]), jnp.full(3, 0.1))
    assert (jnp.abs(a) < 1).all()


def errors(rule, inputs, exact):
    """Of x(1) from x(0) = 0, for each number of steps; inputs(t) at the ends of the steps."""
    found = []
    for count in STEPS:
        a, b = (complex(part[0]) for part in rule(jnp.asarray([A], jnp.complex64), jnp.full(1, 1 / count)))
        h = 0
        for u in inputs(np.arange(count + 1) / count):
            h = a * h + b * u
        found.append(abs(h - exact))
    return np.array(found)


def order(found):
    return np.log2(found[:-1] / found[1:])


def smooth():
    """x(1) of u = cos(PACE t), from the two exponentials of the cosine."""
    parts = [(np.exp(w) - np.exp(A)) / (w - A) / 2 for w in (1j * PACE, -1j * PACE)]
    return sum(parts)


def test_constant_inputs_are_held_exactly_and_met_to_second_order_by_the_other_rule():
    exact = U * (np.exp(A) - 1) / A
    held = lambda t: np.full(len(t) - 1, U)  # noqa: E731
    assert (errors(zero_order_hold, held, exact) < 3e-6).all()
    np.testing.assert_allclose(order(errors(bilinear, held, exact)), 2, atol=0.1)


def test_smooth_inputs_are_met_to_the_orders_of_the_rules():
    np.testing.assert_allclose(order(errors(zero_order_hold, lambda t: np.cos(PACE * t[1:]), smooth())), 1, atol=0.1)
    middle = lambda t: (np.cos(PACE * t[1:]) + np.cos(PACE * t[:-1])) / 2  # noqa: E731
    np.testing.assert_allclose(order(errors(bilinear, middle, smooth())), 2, atol=0.1)
