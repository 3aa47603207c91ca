"""Recurrences as pure functions of arrays."""

from selssm_jax.ops._dense_scan import dense_scan
from selssm_jax.ops._gated_attention import gated_attention
from selssm_jax.ops._gathered_step import (
    GatheredMemory,
    GatheredRows,
    dense_step,
    gather_rows,
    gathered_step,
    refresh_memory,
)
from selssm_jax.ops._kalman_attention import KalmanAttention, kalman_attention
from selssm_jax.ops._kalman_scan import KalmanScan, KalmanState, kalman_scan
from selssm_jax.ops._linear_scan import linear_scan
from selssm_jax.ops._newton_scan import Solve, expected_iterations, newton_scan, nonlinear_scan, sequential_scan
from selssm_jax.ops._selective_scan import selective_scan
from selssm_jax.ops._ssd import ssd
from selssm_jax.ops.discretize import bilinear, zero_order_hold

__all__ = [
    "GatheredMemory",
    "GatheredRows",
    "KalmanAttention",
    "KalmanScan",
    "KalmanState",
    "Solve",
    "bilinear",
    "dense_scan",
    "dense_step",
    "expected_iterations",
    "gated_attention",
    "gather_rows",
    "gathered_step",
    "kalman_attention",
    "kalman_scan",
    "linear_scan",
    "newton_scan",
    "nonlinear_scan",
    "refresh_memory",
    "selective_scan",
    "sequential_scan",
    "ssd",
    "zero_order_hold",
]
