"""Discretisation against the integral that it stands for, in float64, and how its errors grow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.ops.discretize import bilinear, zero_order_hold

RULES = [zero_order_hold, bilinear]
# |dt A| from far below the threshold of the series to far above it, in all directions of the left half plane
SIZES = np.geomspace(1e-6, 3, 40)
POLES = -np.exp(1j * np.linspace(-1.5, 1.5, 40))


def exact(A, dt):
    """(exp(dt A), integral of exp(s A) over 0 <= s <= dt) by Gauss and Legendre, without any quotient."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    inside = dt[..., None] * (nodes + 1) / 2
    return np.exp(A * dt), (np.exp(A[..., None] * inside) * weights).sum(axis=-1) * dt / 2


def test_the_hold_is_the_integral_near_zero_and_far_from_it():
    A, dt = POLES[None].repeat(len(SIZES), 0), SIZES[:, None].repeat(len(POLES), 1)
    # float32 rounds dt A; exp turns that into a relative error of |dt A| 2^-24
    for found, expected in zip(
        zero_order_hold(jnp.asarray(A, jnp.complex64), jnp.asarray(dt, jnp.float32)), exact(A, dt), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    with jax.enable_x64(True):
        for found, expected in zip(zero_order_hold(jnp.asarray(A), jnp.asarray(dt)), exact(A, dt), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-11)


def test_the_gradient_of_the_hold_keeps_its_digits():
    """db/dA = integral of s exp(s A); the quotient's own derivative would have lost all of them at 1e-6."""
    A, dt = jnp.asarray(-SIZES, jnp.float32), jnp.ones(len(SIZES))
    nodes, weights = np.polynomial.legendre.leggauss(20)
    inside = (nodes + 1) / 2
    expected = (inside * np.exp(-SIZES[:, None] * inside) * weights).sum(axis=1) / 2
    np.testing.assert_allclose(jax.grad(lambda A: zero_order_hold(A, dt)[1].sum())(A), expected, rtol=3e-5)


@pytest.mark.parametrize("rule", RULES)
def test_a_pole_of_zero_adds_up(rule):
    a, b = rule(jnp.zeros(3), jnp.array([0.1, 1.0, 10.0]))
    assert (a == 1).all() and (b == jnp.array([0.1, 1.0, 10.0])).all()
    slopes = jax.grad(lambda A: rule(A, jnp.ones(1))[1].sum())(jnp.zeros(1))
    np.testing.assert_allclose(slopes, 0.5, rtol=1e-6)


def test_the_bilinear_rule_is_of_second_order():
    """A tenth of the step is a hundredth of the error after one unit of time."""
    with jax.enable_x64(True):
        A = jnp.asarray(POLES)
        errors = [np.abs(bilinear(A, jnp.full(A.shape, dt))[0] ** round(1 / dt) - np.exp(POLES)) for dt in (0.1, 0.01)]
    np.testing.assert_allclose(errors[0] / errors[1], 100, rtol=0.05)


def test_the_bilinear_rule_equals_its_implicit_step():
    """H - h = dt / 2 (A H + A h) + dt u, solved for H."""
    A, dt, h, u = -0.7 + 2j, 0.3, 0.4 - 1j, 1.7
    a, b = bilinear(jnp.asarray([A], jnp.complex64), jnp.asarray([dt]))
    after = complex(a[0]) * h + complex(b[0]) * u
    assert abs(after - h - dt / 2 * (A * after + A * h) - dt * u) < 1e-6


@pytest.mark.parametrize("rule", RULES)
def test_stable_poles_stay_stable_whatever_the_step(rule):
    A, dt = jnp.asarray(POLES, jnp.complex64), np.geomspace(1e-2, 1e3, 20)
    sizes = np.abs(np.stack([rule(A, jnp.full(A.shape, size, jnp.float32))[0] for size in dt]))
    assert (sizes < 1).all()
    assert (np.abs(rule(-A, jnp.ones(A.shape))[0]) > 1).all()
