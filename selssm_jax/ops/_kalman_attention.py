"""The Kalman filter of a memory that keys address and values fill: linear attention whose writes are Kalman gains
(theory, section 11).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from selssm_jax.ops import shards
from selssm_jax.ops._gated_attention import gated_attention
from selssm_jax.ops._kalman_scan import KalmanState, kalman_scan
from selssm_jax.ops.boundaries import finite, multiply_state, poison
from selssm_jax.ops.inputs import check_inputs

METHODS = ("auto", "sequential", "associative")
SHARPEST = 1e18  # k^2 / r of a reading beyond which it is as sharp, and at 1 / SHARPEST it is none


class KalmanAttention(NamedTuple):
    """What `kalman_attention` returns; variances and nats are of each row, the same for all of its P values."""

    y: Float[Array, "B T H P"]
    P: Float[Array, "B T H N"]
    gained: Float[Array, "B T H N"]
    forgotten: Float[Array, "B T H N"]
    last: KalmanState


def kalman_attention(
    a: Float[Array, "B T H N"],
    q: Float[Array, "B T H N"],
    precision: Float[Array, "B T H"],
    k: Float[Array, "B T H N"],
    v: Float[Array, "B T H P"],
    query: Float[Array, "B T H N"],
    m0: Float[Array, "B H N P"] | None = None,
    P0: Float[Array, "B H N"] | None = None,
    *,
    prior0: Float[Array, "B H N"] | None = None,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
) -> KalmanAttention:
    """Filters a memory of N x P numbers in each of H heads and reads it: y_t = m_t' query_t.

    Row n of the memory drifts, h_t = a_t h_{t-1} + w_t, w_t ~ N(0, q_t) for each of its P numbers, and is read as
    v_t = k_t h_t + e_t, e_t ~ N(0, 1 / precision_t): a step says as much of a row as the square of its key.

    P-_t = a_t^2 P_{t-1} + q_t,  K_t = P-_t s_t / (1 + P-_t s_t) with s_t = k_t^2 precision_t,  P_t = (1 - K_t) P-_t,
    m_t = (1 - K_t) a_t m_{t-1} + P_t k_t precision_t v_t'.

    The variance is that of a row: its P numbers are read with the same key. Rows are taken for independent, each with a
    reading of its own; what one reading says of several rows at once, the covariance between them, is not kept (Kalman
    linear attention, arXiv 2602.10743). Where keys are multiples of unit vectors it is the exact filter.

    Args:
      a: factor of every row and step. q: variance of its drift, at least 0. precision: 1 / r of the reading of a head,
        at least 0; 0 is no reading, and s_t is taken for 0 below 1e-18 and for 1e18 above. k, v: key and value. query:
        weights of the rows in y.
      m0, P0: mean and variance before the first step; 0 if None. prior0: its variance without readings; P0 if None, as
        if nothing had been read before.
      reset: True forgets all that came before that step, what is not finite too.
      method: "auto", "sequential" or "associative", of the variances as in `kalman_scan`, and of the means: chunks are
        composed in parallel where variances are.

    Returns:
      A `KalmanAttention`: y of v's type; `last`, the memory after the last step, whose m, P and prior, given as m0, P0
      and prior0, make a sequence split anywhere equal the whole. The nats of `kalman_scan` are those of one number of a
      row; all P of them gain P times as many.

    Raises:
      ValueError: for an unknown method, shapes that do not fit, no steps, or numbers that are not real.
    """
    steps: dict[str, Array | None] = {"a": a, "q": q, "precision": precision, "k": k, "v": v, "query": query}
    _check(steps | {"m0": m0, "P0": P0, "prior0": prior0, "reset": reset}, method)
    wide = jnp.result_type(jnp.result_type(a, q, precision, k, v, query), jnp.float32)
    seen, pull, bad = _read(precision, k, wide)
    a = jnp.asarray(a, wide) if reset is None else jnp.where(jnp.asarray(reset)[..., None, None], 0, a).astype(wide)
    r = poison(jnp.where(seen > 0, 1 / jnp.where(seen > 0, seen, 1), jnp.inf), bad)
    filtered = kalman_scan(a, q, r, jnp.zeros_like(r), P0=P0, prior0=prior0, reset=reset, method=method)
    start = jnp.zeros(r[:, 0].shape, wide) if P0 is None else jnp.asarray(P0, wide)
    fade, write, lost = _weigh(a, jnp.asarray(q, wide), seen, pull, shards.previous(filtered.P, start, axis=1))
    fade, write = poison(fade, lost | bad), poison(write, lost | bad)
    way = "chunked" if method == "associative" else method
    y, last = gated_attention(fade, write, v, query, m0, reset=reset, method=way)
    return KalmanAttention(
        y.astype(v.dtype), filtered.P, filtered.gained, filtered.forgotten, filtered.last._replace(m=last)
    )


def _check(inputs: dict[str, Array | None], method: str) -> None:
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown: use one of {', '.join(METHODS)}")
    given = {name: None if value is None else jnp.asarray(value) for name, value in inputs.items()}
    k, v = jnp.asarray(inputs["k"]), jnp.asarray(inputs["v"])
    if k.ndim != 4 or k.shape[1] == 0:
        raise ValueError(f"k has shape {k.shape}, expected (B, T, H, N) with T >= 1")
    if v.ndim != 4:
        raise ValueError(f"v has shape {v.shape}, expected (B, T, H, P)")
    rows = (k.shape[0], *k.shape[2:])
    shapes = dict.fromkeys(("a", "q", "query"), k.shape) | dict.fromkeys(("P0", "prior0"), rows)
    shapes |= {
        "precision": k.shape[:3],
        "v": (*k.shape[:3], v.shape[3]),
        "m0": (*rows, v.shape[3]),
        "reset": k.shape[:2],
    }
    check_inputs(given, shapes, f"k {k.shape} and v {v.shape}")


def _read(precision: Array, k: Array, wide: DTypeLike) -> tuple[Array, Array, Array]:
    """(s = k^2 / r, s / k, whether either is no number, that are 0 then): a product with what is not finite has no
    gradient, not even where nothing reads it. s is cut at `SHARPEST`, and s / k with it.
    """
    precision, k = jnp.asarray(precision, wide)[..., None], jnp.asarray(k, wide)
    bad = ~jnp.isfinite(precision + k)
    precision, k = finite(precision), finite(k)
    root = jnp.sqrt(jnp.where(precision > 0, precision, 1))
    size, limit = jnp.where(precision > 0, jnp.abs(k) * root, 0), SHARPEST**0.5
    seen, sharp = (size >= SHARPEST**-0.5) & ~bad, size >= limit
    inner = jnp.where(seen & ~sharp, k, 0) * root  # products of what is cut away would leave the range of numbers
    square = jnp.where(sharp, SHARPEST, jnp.square(inner))
    pull = jnp.where(sharp, SHARPEST / jnp.where(sharp, k, 1), inner * root)
    return square, pull, bad


def _weigh(a: Array, q: Array, seen: Array, pull: Array, before: Array) -> tuple[Array, Array, Array]:
    """((1 - K) a, P k / r, whether what they are made of is no number) of all steps; 1 - K is no difference."""
    lost = ~jnp.isfinite(multiply_state(a, before) + a + q)
    a = finite(a)
    predicted = jnp.square(a) * finite(before) + finite(q)
    keep = 1 / (1 + predicted * seen)
    return keep * a, keep * predicted * pull, lost
