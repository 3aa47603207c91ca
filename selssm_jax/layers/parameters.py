"""Parameters of one type, whatever JAX's default is and whatever a caller made of them."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array


class Layer(nn.Module):
    """A module whose parameters are float32: drawn so under `jax_enable_x64` too, and read so where they were cast, to
    bfloat16 or float64.

    Gates, poles and recurrences are computed in float32 then, whatever is stored; gradients have the type of what is
    stored.
    """

    @nn.nowrap
    def param(self, name: str, init_fn: Callable[..., Any], *init_args: Any, **options: Any) -> Array:  # type: ignore[override]  # an array alone
        """Returns the parameter as float32, drawn by `init_fn(key, *init_args)` where it is not there yet."""

        def draw_float32(*arguments: Any) -> Array:
            return jnp.asarray(init_fn(*arguments), jnp.float32)

        return super().param(name, draw_float32, *init_args, **options).astype(jnp.float32)
