"""Recurrences as pure functions of arrays."""

from selssm_jax.ops.linear_scan import linear_scan
from selssm_jax.ops.newton_scan import newton_scan
from selssm_jax.ops.selective_scan import selective_scan
from selssm_jax.ops.ssd import ssd

__all__ = ["linear_scan", "newton_scan", "selective_scan", "ssd"]
