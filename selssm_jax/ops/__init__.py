"""Recurrences as pure functions of arrays."""

from selssm_jax.ops.linear_scan import linear_scan

__all__ = ["linear_scan"]
