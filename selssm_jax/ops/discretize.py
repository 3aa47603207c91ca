"""From h'(s) = A h(s) + u(s) in continuous time to h_t = a h_{t-1} + b u_t, for a diagonal A (theory, section 1).

A, (*s), are the poles, per unit of time, real or complex, stable where their real part is negative; dt, (*s), positive,
is the time between steps. Both rules have b -> dt as dt A -> 0.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

# |dt A| below which (exp(dt A) - 1) / (dt A) is taken from its series, whose next term is then below 2e-13
SMALL = 1e-2


def zero_order_hold(
    A: Inexact[Array, "*s"], dt: Float[Array, "*s"]
) -> tuple[Inexact[Array, "*s"], Inexact[Array, "*s"]]:
    """Returns (a, b) = (exp(dt A), (exp(dt A) - 1) / A): exact for inputs that are constant between steps.

    A pole of 0 has b = dt. Near it the quotient of two small numbers would lose b's digits, and more of its gradient's:
    b is dt times a series there.

    Source: as in Gu, Gupta, Goel and Re 2022 (S4D) and in Smith, Warrington and Linderman 2023 (S5).
    """
    z = dt * A
    near = jnp.abs(z) < SMALL
    series = 1 + z / 2 * (1 + z / 3 * (1 + z / 4 * (1 + z / 5)))
    apart = jnp.where(near, 1, z)  # no quotient of zeros, whose gradient would be no number
    return jnp.exp(z), dt * jnp.where(near, series, jnp.expm1(apart) / apart)


def bilinear(A: Inexact[Array, "*s"], dt: Float[Array, "*s"]) -> tuple[Inexact[Array, "*s"], Inexact[Array, "*s"]]:
    """Returns (a, b) = ((1 + dt A / 2) / (1 - dt A / 2), dt / (1 - dt A / 2)): the trapezoidal rule, of second order in
    dt.

    |a| < 1 if and only if Re A < 0, whatever dt is.

    Source: Tustin 1947; Gu, Goel and Re 2022 (S4), eq. 3.
    """
    half = dt * A / 2
    return (1 + half) / (1 - half), dt / (1 - half)
