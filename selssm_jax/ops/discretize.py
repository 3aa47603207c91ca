"""From x' = A x + B u in continuous time to h_t = a h_{t-1} + b u_t, for a diagonal A (theory, section 1)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

SMALL = 0.02  # |dt A| below which (exp(dt A) - 1) / (dt A) is its series: to float32's precision, as is the slope, which the quotient loses first


def zero_order_hold(A: Inexact[Array, "*s"], dt: Float[Array, "*s"]) -> tuple[Inexact[Array, "*s"], Inexact[Array, "*s"]]:
    """Returns (a, b) = (exp(dt A), (exp(dt A) - 1) / A): exact for inputs that are constant between steps.

    A pole of 0 has b = dt; near it b is dt (1 + z / 2 + z^2 / 6 + z^3 / 24), z = dt A, whose slope no difference of large numbers makes.
    """
    z = dt * A
    near = jnp.abs(z) < SMALL
    far = jnp.where(near, 1, z)
    return jnp.exp(z), dt * jnp.where(near, 1 + z / 2 * (1 + z / 3 * (1 + z / 4)), jnp.expm1(far) / far)


def bilinear(A: Inexact[Array, "*s"], dt: Float[Array, "*s"]) -> tuple[Inexact[Array, "*s"], Inexact[Array, "*s"]]:
    """Returns (a, b) = ((1 + dt A / 2) / (1 - dt A / 2), dt / (1 - dt A / 2)): the trapezoidal rule (Tustin), of second order in dt."""
    half = dt * A / 2
    return (1 + half) / (1 - half), dt / (1 - half)
