"""What a gate makes of a transition, and how far the state can then go: pure functions of arrays, for NumPy and for JAX
alike.

A certificate works in NumPy's float64, a layer under `jax.jit` in float32; both need these formulas (theory, sections 1
and 5). A is (n,) for a diagonal or (n, n) for a dense transition, real or complex; bounds are (n,), one a component.
"""

from typing import Any

Array = Any  # of NumPy or of JAX


def effective_transition(gate: Array, A: Array, update: str) -> Array:
    """A_t = I - G_t (I - A) for "retain", A_t = G_t A for "effective" (theory, section 1).

    A is (n,) or (n, n); A_t has the gate's leading axes before it.
    """
    identity = _identity(A)
    identity, A = (matrix.reshape((1,) * (gate.ndim - 1) + matrix.shape) for matrix in (identity, A))
    rows = gate if A.ndim == gate.ndim else gate[..., None]
    return identity - rows * (identity - A) if update == "retain" else rows * A


def normalising_scale(gate: Array, A: Array, update: str) -> Array:
    """s_t = sqrt(1 - |A_t|^2) for a diagonal A: h_t = A_t h_{t-1} + s_t u_t has the variance of its drive u_t, where
    this is white and independent of the gates (Orvieto et al. 2023, De et al. 2024).

    Formed without the cancellation of 1 - |A_t|^2: g (2 Re(1 - a) - g |1 - a|^2) for "retain". 0 where the gate is 0.
    """
    xp = gate.__array_namespace__()
    A = A.reshape((1,) * (gate.ndim - 1) + A.shape)
    size = abs(A)
    squared = (
        gate * (2 * (1 - A).real - gate * abs(1 - A) ** 2)
        if update == "retain"
        else (1 - gate * size) * (1 + gate * size)
    )
    positive = squared > 0  # its root has no slope at 0
    return xp.where(positive, xp.sqrt(xp.where(positive, squared, 1)), 0)


def row_sums(A: Array) -> Array:
    """sum_j |a_ij|, (n,): how much each row can make of a state of largest component 1."""
    return abs(A).sum(axis=1) if A.ndim == 2 else abs(A)


def propagate_radius(A: Array, reach: Array) -> Array:
    """|A| m, (n,): the largest |A h| over all |h_i| <= m_i; an infinite m counts where A reads it."""
    xp = A.__array_namespace__()
    size = abs(A)
    moved = xp.where(size == 0, 0, size * xp.where(size == 0, 0, reach))
    return moved.sum(axis=1) if A.ndim == 2 else moved


def invariant_radius(A: Array, drive: Array) -> Array:
    """M = U / (1 - |a|), (n,), so that |h_i| <= M_i is never left, whatever gates in [0, 1] do (theory, section 5 B5);
    inf where |a| >= 1.

    For a dense A, max U / (1 - max_i sum_j |a_ij|): larger than need be, and without a solve.
    """
    xp = A.__array_namespace__()
    rows = row_sums(A)
    if A.ndim == 2:
        rows, drive = xp.broadcast_to(rows.max(), rows.shape), xp.broadcast_to(drive.max(), rows.shape)
    return xp.where(rows < 1, drive / xp.where(rows < 1, 1 - rows, 1), xp.inf)


def step_factor(A: Array, low: Array, high: Array, lipschitz: Array, reach: Array, drive: Array, update: str) -> Array:
    """kappa: the most by which a step can stretch a difference of two states, in the maximum norm, a scalar (theory,
    section 5 B5).

    Gates lie in [low, high] and change by sum_j L_ij |h_j - k_j|, L (n,) or (n, n); states stay within `reach`, drives
    within `drive`.
    """
    xp = A.__array_namespace__()
    ends = [row_sums(effective_transition(gate, A, update)) for gate in (low, high)]
    return (xp.maximum(*ends) + pull(A, reach, drive, update) * row_sums(lipschitz)).max()


def pull(A: Array, reach: Array, drive: Array, update: str) -> Array:
    """The most that a unit of gate can move a component: |(A - I) h + u| for "retain", |A h + u| for "effective", (n,).

    Over all states |h_i| <= reach_i and all drives |u_i| <= drive_i. What a difference of gates does to a difference of
    states is at most this times the difference of gates (theory, section 5 B5).
    """
    if update == "effective":
        return propagate_radius(A, reach) + drive
    return propagate_radius(A - _identity(A), reach) + drive


def _identity(A: Array) -> Array:
    xp = A.__array_namespace__()
    return xp.eye(A.shape[0], dtype=A.dtype) if A.ndim == 2 else xp.ones_like(A)
