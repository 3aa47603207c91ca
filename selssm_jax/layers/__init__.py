"""Flax modules with one contract: (x, state=None, *, reset=None) -> (y, state)."""

from selssm_jax.layers.selective import SelectiveSSM

__all__ = ["SelectiveSSM"]
