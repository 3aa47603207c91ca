"""Maxima and minima that decide something: NaN is never less than a number, nor left out.

XLA's max and min of float32 drop NaN on a CPU where they go over 4,096 numbers or more (JAX 0.10), so it is asked for
explicitly.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

Axis = int | tuple[int, ...] | None


def largest(x: Float[Array, "..."], axis: Axis = None, *, keepdims: bool = False) -> Float[Array, "..."]:
    """Returns the maximum over `axis`, NaN where any number is."""
    return jnp.where(jnp.isnan(x).any(axis=axis, keepdims=keepdims), jnp.nan, x.max(axis=axis, keepdims=keepdims))


def smallest(x: Float[Array, "..."], axis: Axis = None, *, keepdims: bool = False) -> Float[Array, "..."]:
    """Returns the minimum over `axis`, NaN where any number is."""
    return -largest(-x, axis, keepdims=keepdims)
