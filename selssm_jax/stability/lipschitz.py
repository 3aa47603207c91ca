"""How fast a gate can change with the state: L_G from above, certified, and from below, by maximisation (theory,
section 2).

g = floor + (1 - floor) sigma(z + W h): |G(h) - G(k)| <= L |h - k| with L the largest slope of sigma times the norm of
W.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from selssm_jax.config.mixers import GATES
from selssm_jax.layers.gates import Opening, largest_slope
from selssm_jax.layers.joint_gates import Softmax
from selssm_jax.ops.boundaries import finite
from selssm_jax.ops.extremes import largest

NORMS = ("max", "euclidean")
SQUARINGS = 16  # of the Gram matrix: its Frobenius norm exceeds the spectral one by n^(1/2^17) at most
STARTS, ASCENT, RATE = 16, 200, 0.05  # of the maximisation


@dataclasses.dataclass(frozen=True)
class Lipschitz:
    """lower <= L_G <= upper: what was reached, and what is proved; `norm` of both the state and the gates."""

    lower: float
    upper: float
    norm: str


def spectral_norm_bound(W: np.ndarray) -> float:
    """Returns an upper bound of the largest singular value, within n^(2^-17) of it, proved up to float64's rounding.

    By Gram iteration (Delattre et al. 2023): |W|_2^(2 * 2^k) = |G^(2^k)|_2 <= |G^(2^k)|_F with G = W'W, squared k times
    and rescaled each time. Power iteration alone would be a lower bound.

    Raises:
      ValueError: for a W that is no matrix of numbers.
    """
    W = _read(W)
    if W.ndim != 2:
        raise ValueError(f"W has shape {W.shape}, expected a matrix (m, n)")
    if not W.any():
        return 0.0
    if np.isinf(W).any():
        return math.inf
    largest = np.abs(W).max()
    W = W / largest  # for the squares of its own entries may be out of range
    size = np.linalg.norm(W)
    G, logarithm = (W / size).conj().T @ (W / size), 2 * (np.log(largest) + np.log(size))
    for _ in range(SQUARINGS):
        size = np.linalg.norm(G)
        G, logarithm = (G / size) @ (G / size), 2 * (logarithm + np.log(size))
    rounding = 1 + 8 * max(W.shape) * np.finfo(np.float64).eps
    return float(np.exp((logarithm + np.log(np.linalg.norm(G))) / 2 ** (SQUARINGS + 1)) * rounding)


def operator_norm(W: np.ndarray, *, norm: str = "max", weights: np.ndarray | None = None) -> float:
    """Returns a certified upper bound of the operator norm of W, (n,) for a diagonal matrix or (n, n).

    "max": max_i sum_j |w_ij| v_j / v_i, exact, with `weights` v, ones if None. "euclidean": see `spectral_norm_bound`;
    exact for a diagonal matrix.

    Raises:
      ValueError: for another norm, weights with the Euclidean one or not positive and finite, and a W that is not of
        this shape, or holds nan.
    """
    _check_norm(norm, weights)
    W = _read(W)
    if W.ndim not in (1, 2) or W.shape[0] != W.shape[-1]:
        raise ValueError(f"W has shape {W.shape}, expected (n,) for a diagonal matrix, or (n, n)")
    if W.ndim == 1:
        return float(np.abs(W).max(initial=0.0))
    if norm == "euclidean":
        return spectral_norm_bound(W)
    v = np.ones(len(W)) if weights is None else _read(weights, name="weights")
    if v.shape != (len(W),) or np.iscomplexobj(v) or not ((v > 0) & (v < np.inf)).all():
        raise ValueError(f"weights={v}, expected {len(W)} positive numbers, one a component")
    return float(((np.abs(W) @ v) / v).max(initial=0.0))


def gate_lipschitz(
    kind: str,
    W: np.ndarray,
    *,
    floor: float = 0.0,
    norm: str = "max",
    weights: np.ndarray | None = None,
    logits: tuple[np.ndarray | float, np.ndarray | float] = (-np.inf, np.inf),
    temperature: float = 1.0,
    seed: int = 0,
) -> Lipschitz:
    """Returns both sides of L_G of g = floor + (1 - floor) sigma(z + W h), for z + W h within `logits`.

    Args:
      kind: one of `layers.gates.GATES`. W: (n,) for gates that read their own component alone, else (n, n).
      norm, weights: see `operator_norm`.
      logits: range of z + W h, numbers or (n,); a range away from 0 has smaller slopes.
      temperature: of softmax gates. seed: of the starts of the maximisation.

    Raises:
      ValueError: for an unknown kind or norm, a range that is empty, or a W that is not real and finite.
    """
    W = _read(W)
    if np.iscomplexobj(W) or not np.isfinite(W).all():
        raise ValueError(
            f"W has dtype {W.dtype}, expected real and finite numbers: a gate reads the real coordinates of a state"
        )
    low, high = (np.broadcast_to(np.asarray(end, np.float64), (len(W),)) for end in logits)
    if (low > high).any():
        raise ValueError(f"logits={logits} is empty: expected (low, high) with low <= high")
    slopes = (1 - floor) * np.asarray(largest_slope(kind, low, high), np.float64)
    if GATES[kind].jumps:
        return _of_jumps(kind, bool((np.isinf(slopes) & (W != 0 if W.ndim == 1 else (W != 0).any(axis=1))).any()), norm)
    start, weight = jnp.asarray(np.clip(0, low, high), jnp.float32), jnp.asarray(W, jnp.float32)
    steepest = Opening(start, None, weight, kind, floor, temperature=temperature)
    if isinstance(steepest.joint, Softmax):
        share = (1 - floor) * steepest.joint.slopes(jnp.asarray(low, jnp.float32), jnp.asarray(high, jnp.float32))
        upper = _of_rivals(np.asarray(share, np.float64), W, norm, weights)
    else:
        upper = operator_norm(slopes * W if W.ndim == 1 else slopes[:, None] * W, norm=norm, weights=weights)

    def gate(h: jax.Array) -> jax.Array:
        return dataclasses.replace(steepest, z=jnp.clip(steepest.logits(h), low, high), W=None).at()

    starts = np.random.default_rng(seed).standard_normal((STARTS, len(W))) / max(
        operator_norm(W), float(np.finfo(np.float32).tiny)
    )
    return Lipschitz(min(maximised_ratio(gate, starts, norm=norm, weights=weights), upper), upper, norm)


def _of_jumps(kind: str, jumps: bool, norm: str) -> Lipschitz:
    """No constant where a gate may jump. A binary one does; whether a top_k one does is up to the others, and nothing
    is proved of it.
    """
    return Lipschitz(math.inf if jumps and kind == "binary" else 0.0, math.inf if jumps else 0.0, norm)


def _of_rivals(share: np.ndarray, W: np.ndarray, norm: str, weights: np.ndarray | None) -> float:
    """The norm of a Jacobian J W whose symmetric J has rows of |J|_ii <= share_i and as much beside."""
    if norm == "euclidean":
        return 2 * float(share.max()) * operator_norm(W, norm=norm)
    v = np.ones(len(W)) if weights is None else np.asarray(weights, np.float64)
    reach = abs(W) @ v if W.ndim == 2 else abs(W) * v
    return float((share * (reach + reach.max()) / v).max())


def maximised_ratio(
    gate: Callable[[jax.Array], jax.Array],
    starts: np.ndarray,
    *,
    norm: str = "max",
    weights: np.ndarray | None = None,
    steps: int = ASCENT,
) -> float:
    """Returns a lower bound of the Lipschitz constant of any function of the state: the largest ratio found by gradient
    ascent.

    From each start, (k, n), Adam climbs the norm of the Jacobian, which is the limit of |G(h) - G(k)| / |h - k| as k
    nears h.
    """
    _check_norm(norm, weights)
    v = jnp.ones(starts.shape[1]) if weights is None else jnp.asarray(weights, jnp.float32)

    def slope(h: jax.Array) -> jax.Array:
        J = jax.jacobian(gate)(h)
        return jnp.linalg.norm(J, ord=2) if norm == "euclidean" else largest((jnp.abs(J) @ v) / v)

    best = jax.vmap(partial(_climb, slope, steps))(jnp.asarray(starts, jnp.float32))
    return float(largest(best))


def _climb(slope: Callable[[jax.Array], jax.Array], steps: int, h: jax.Array) -> jax.Array:
    """The largest slope on the way up, of the states at which it is a number."""
    optimizer = optax.adam(RATE * (1e-3 + jnp.abs(h).max()))

    def step(carry: tuple[Any, ...], _: None) -> tuple[tuple[Any, ...], None]:
        h, state, best = carry
        value, gradient = jax.value_and_grad(slope)(h)
        updates, state = optimizer.update(jnp.nan_to_num(-gradient), state)
        return (optax.apply_updates(h, updates), state, jnp.maximum(best, finite(value))), None

    return jax.lax.scan(step, (h, optimizer.init(h), jnp.zeros(())), None, length=steps)[0][2]


def _read(W: np.ndarray, *, name: str = "W") -> np.ndarray:
    """W in float64 or complex128, of numbers without nan, which a norm would hide. Gates that jump have infinite
    slopes, and infinite norms.
    """
    W = np.asarray(W)
    if W.dtype.kind not in "biufc" or np.isnan(W).any():
        raise ValueError(
            f"{name} has dtype {W.dtype}, and holds {'nan' if W.dtype.kind in 'fc' else 'no numbers'}: expected numbers"
        )
    return W.astype(np.complex128 if W.dtype.kind == "c" else np.float64)


def _check_norm(norm: str, weights: np.ndarray | None) -> None:
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r} is unknown: use one of {', '.join(NORMS)}")
    if norm == "euclidean" and weights is not None:
        raise ValueError("weights belong to norm='max': leave them out, or scale W by them first")
