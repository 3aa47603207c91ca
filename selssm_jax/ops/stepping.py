"""One step of arrays (B, T, ...), read and written inside a loop over time: in place, without transposing anything."""

from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array


def at(value: Array, t: Array | int, dtype: DTypeLike) -> Array:
    """Returns value[:, t] as `dtype`, (B, ...)."""
    return lax.dynamic_index_in_dim(value, t, 1, keepdims=False).astype(dtype)


def put(buffer: Array, value: Array, t: Array | int) -> Array:
    """Returns `buffer` with value (B, ...) at [:, t]."""
    return lax.dynamic_update_index_in_dim(buffer, value.astype(buffer.dtype), t, 1)
