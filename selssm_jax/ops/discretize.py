"""From x' = A x + B u in continuous time to h_t = a h_{t-1} + b u_t, for a diagonal A (theory, section 1)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

SMALL = 1e-4  # |dt A| below which (exp(dt A) - 1) / (dt A) is taken from its series


def zero_order_hold(A: Inexact[Array, "*s"], dt: Float[Array, "*s"]) -> tuple[Inexact[Array, "*s"], Inexact[Array, "*s"]]:
    """Returns (a, b) = (exp(dt A), (exp(dt A) - 1) / A): exact for inputs that are constant between steps.

    A pole of 0 has b = dt; near it b is dt (1 + dt A / 2), which the quotient of two small numbers would lose.
    """
    z = dt * A
    near = jnp.abs(z) < SMALL
    return jnp.exp(z), dt * jnp.where(near, 1 + z / 2, (jnp.exp(z) - 1) / jnp.where(near, 1, z))


def bilinear(A: Inexact[Array, "*s"], dt: Float[Array, "*s"]) -> tuple[Inexact[Array, "*s"], Inexact[Array, "*s"]]:
    """Returns (a, b) = ((1 + dt A / 2) / (1 - dt A / 2), dt / (1 - dt A / 2)): the trapezoidal rule (Tustin), of second order in dt."""
    half = dt * A / 2
    return (1 + half) / (1 - half), dt / (1 - half)
