"""Weights in 8 bits, as a checkpoint may hold them: a quarter of the bytes of float32, decoded when a run is opened."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from selssm_jax.ops.extremes import largest

PyTree = Any
LARGEST = 127  # of a signed byte, kept symmetric


def encode_weights(params: PyTree) -> PyTree:
    """Returns a tree in which every matrix W (..., n, m) of float32 is {"int8", "scale"}, W ~ int8 * scale, one scale a
    column (..., 1, m).

    Rounded to the nearest; |error| <= scale / 2, scale = max |column| / 127. Vectors stay as they are: poles, biases
    and norms are few and sensitive.
    """
    if isinstance(params, dict):
        return {name: encode_weights(part) for name, part in params.items()}
    return _column_scaled(params) if params.ndim >= 2 and params.dtype == jnp.float32 else params


def decode_weights(params: PyTree) -> PyTree:
    """Returns the tree of arrays that `encode_weights` made its own of; any other tree as it is."""
    if not isinstance(params, dict):
        return params
    if set(params) == {"int8", "scale"}:
        return params["int8"].astype(jnp.float32) * params["scale"]
    return {name: decode_weights(part) for name, part in params.items()}


def _column_scaled(matrix: Array) -> dict[str, Array]:
    scale = largest(jnp.abs(matrix), -2, keepdims=True) / LARGEST
    codes = jnp.round(matrix / jnp.where(scale > 0, scale, 1))
    return {"int8": codes.astype(jnp.int8), "scale": scale}
