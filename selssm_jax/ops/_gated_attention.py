"""Gated linear attention: a memory of N x P numbers a head, of which each step fades every row by itself, writes one
outer product and reads one weighted sum.

M_t = diag(a_t) M_{t-1} + k_t v_t',  y_t = M_t' q_t  (Yang et al. 2024, section 3).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from selssm_jax.ops import shards
from selssm_jax.ops._linear_scan import scan_shard
from selssm_jax.ops.boundaries import multiply_state, vary_alike, zeros_beside
from selssm_jax.ops.inputs import check_inputs
from selssm_jax.ops.recomputation import pull_back_numbers, recompute_gradient
from selssm_jax.ops.stepping import at, cut, join, put

METHODS = ("auto", "sequential", "chunked")
CHUNK = 64  # steps whose memories are alive at once


def gated_attention(
    a: Float[Array, "B T H N"],
    k: Float[Array, "B T H N"],
    v: Float[Array, "B T H P"],
    q: Float[Array, "B T H N"],
    M0: Float[Array, "B H N P"] | None = None,
    *,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
) -> tuple[Float[Array, "B T H P"], Float[Array, "B H N P"]]:
    """Runs M_t = diag(a_t) M_{t-1} + k_t v_t' in each of H heads and returns y_t = M_t' q_t and the last memory.

    "sequential" takes one step after the other, the memory in the cache. "chunked" composes the steps of a chunk in
    parallel as `linear_scan` does, and so does the gradient of both: memories exist for `CHUNK` steps at a time, and
    the gradient computes them again. A masked product of matrices, as in `ssd`, would divide by products of a, which
    may be 0. "auto", decided where the program is lowered, is sequential on a CPU and chunked elsewhere.

    The memory is float32 (or wider) whatever the inputs are. Gradients of any order, reverse mode alone.

    Args:
      a: what is kept of each row. k: where a step writes. v: what it writes. q: what it reads.
      M0: the memory before the first step; zero if None.
      reset: True forgets everything before that step, what is not finite too.
      method: "auto", "sequential" or "chunked".

    Returns:
      (y, M_last): outputs in v's type, the memory after the last step in the type of accumulation.

    Raises:
      ValueError: for an unknown method, shapes that do not fit, no steps, or numbers that are not real.
    """
    a, k, v, q = (jnp.asarray(value) for value in (a, k, v, q))
    M0, reset = (None if value is None else jnp.asarray(value) for value in (M0, reset))
    _check({"a": a, "k": k, "v": v, "q": q, "M0": M0, "reset": reset}, method)
    wide = jnp.promote_types(jnp.result_type(a, k, v, q), jnp.float32)
    start = jnp.zeros((*k.shape[:1], *k.shape[2:], v.shape[3]), wide) if M0 is None else M0.astype(wide)
    reset = jnp.zeros(a.shape[:2], bool) if reset is None else reset
    given = _Inputs(jnp.where(reset[..., None, None], 0, a), k, v, q, start)

    def run(start: Array) -> tuple[Array, Array]:
        return _attend(method, *vary_alike((given._replace(M0=start), reset)))

    y, last = shards.carry(run, lambda: _decay_of_all(given.a.astype(wide), reset), start)
    return y.astype(v.dtype), last


class _Inputs(NamedTuple):
    """What every step reads, a 0 at a reset, and the memory before all."""

    a: Array
    k: Array
    v: Array
    q: Array
    M0: Array


def _check(inputs: dict[str, Array | None], method: str) -> None:
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown: use one of {', '.join(METHODS)}")
    k, v = inputs["k"], inputs["v"]
    assert k is not None and v is not None
    if k.ndim != 4 or k.shape[1] == 0:
        raise ValueError(f"k has shape {k.shape}, expected (B, T, H, N) with T >= 1")
    if v.ndim != 4:
        raise ValueError(f"v has shape {v.shape}, expected (B, T, H, P)")
    shapes = {
        "a": k.shape,
        "v": (*k.shape[:3], v.shape[3]),
        "q": k.shape,
        "M0": (k.shape[0], *k.shape[2:], v.shape[3]),
        "reset": k.shape[:2],
    }
    check_inputs(inputs, shapes, f"k {k.shape} and v {v.shape}")


def _decay_of_all(a: Array, reset: Array) -> Array:
    """(B, H, N, 1): what all steps leave of the memory before them; factors before a reset may be no numbers."""
    forgets = reset.any(axis=1)[:, None, None, None]
    return jnp.prod(jnp.where(forgets, 0, a), axis=1)[..., None]


def _run(method: str, given: _Inputs, reset: Array) -> tuple[Array, Array]:
    if method == "auto":
        return lax.platform_dependent(given, reset, cpu=_by_steps, default=_composed)
    return (_by_steps if method == "sequential" else _composed)(given, reset)


def _gradient(method: str, given: _Inputs, reset: Array, cotangents: tuple[Array, Array]) -> _Inputs:
    """That of the chunked form, whatever ran forward."""
    stepped, composed = (pull_back_numbers(form, start="M0") for form in (partial(_by_chunks, "sequential"), _composed))
    if method == "auto":
        return lax.platform_dependent(given, reset, cotangents, cpu=stepped, default=composed)
    return (stepped if method == "sequential" else composed)(given, reset, cotangents)


def _by_steps(given: _Inputs, reset: Array) -> tuple[Array, Array]:
    """One step after the other, the memory in the cache; a says what is forgotten."""
    del reset

    def body(t: Array | int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        M, y = carry
        a, k, v, q = (at(value, t, M.dtype) for value in given[:4])
        M = multiply_state(a[..., None], M) + k[..., None] * v[..., None, :]
        return M, put(y, jnp.einsum("bhnp,bhn->bhp", M, q), t)

    y = zeros_beside(given.v.shape, given, given.M0.dtype)
    last, y = lax.fori_loop(0, given.v.shape[1], body, (given.M0, y))
    return y, last


def _by_chunks(way: str, given: _Inputs, reset: Array) -> tuple[Array, Array]:
    """Chunk after chunk, the memories of one by `linear_scan`; the gradient computes each of them again."""
    del reset

    def body(M: Array, piece: tuple[Array, ...]) -> tuple[Array, Array]:
        a, k, v, q = (value.astype(M.dtype) for value in piece)
        writes = k[..., None] * v[..., None, :]
        # a factor of exactly 0 forgets, and only where a reset is given does the scan ask for it
        memories, last = scan_shard(
            jnp.broadcast_to(a[..., None], writes.shape), writes, M, reset=jnp.zeros(a.shape[:2], bool), method=way
        )
        return last, jnp.einsum("bthnp,bthn->bthp", memories, q)

    steps = given.v.shape[1]
    fills = (1, 0, 0, 0)  # a step of a = 1 that writes nothing changes nothing
    pieces = [cut(value, min(CHUNK, steps), fill) for value, fill in zip(given[:4], fills, strict=True)]
    last, y = lax.scan(jax.checkpoint(body), given.M0, tuple(piece.swapaxes(0, 1) for piece in pieces))
    return join(y.swapaxes(0, 1), steps), last


_composed = partial(_by_chunks, "associative")
_attend = recompute_gradient(_run, _gradient, lambda method, given, reset: _composed(given, reset))
