"""Steps of arrays (B, T, ...): one, read and written in place inside a loop over time, and chunks, cut and joined."""

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array


def at(value: Array, t: Array | int, dtype: DTypeLike) -> Array:
    """Returns value[:, t] as `dtype`, (B, ...)."""
    return lax.dynamic_index_in_dim(value, t, 1, keepdims=False).astype(dtype)


def put(buffer: Array, value: Array, t: Array | int) -> Array:
    """Returns `buffer` with value (B, ...) at [:, t]."""
    return lax.dynamic_update_index_in_dim(buffer, value.astype(buffer.dtype), t, 1)


def cut(value: Array, size: int, fill: float = 0) -> Array:
    """Returns (B, chunks, size, ...), filled up with steps of `fill`."""
    pad = [(0, 0), (0, -value.shape[1] % size)] + [(0, 0)] * (value.ndim - 2)
    value = jnp.pad(value, pad, constant_values=fill)
    return value.reshape(value.shape[0], -1, size, *value.shape[2:])


def join(chunks: Array, steps: int) -> Array:
    """Returns the (B, steps, ...) that were cut."""
    return chunks.reshape(chunks.shape[0], -1, *chunks.shape[3:])[:, :steps]
