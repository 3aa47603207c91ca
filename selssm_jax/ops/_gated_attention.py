"""Gated linear attention: a memory of N x P numbers a head, of which each step fades every row by itself, writes one
outer product and reads one weighted sum.

M_t = diag(a_t) M_{t-1} + k_t v_t',  y_t = M_t' q_t  (Yang et al. 2024, section 3).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from selssm_jax.ops import shards
from selssm_jax.ops._linear_scan import scan_shard
from selssm_jax.ops.boundaries import (
    all_finite,
    composed_or_stepped,
    find_lost_sequences,
    finite,
    multiply_state,
    name_residuals,
    poison,
    vary_alike,
    zeros_beside,
)
from selssm_jax.ops.inputs import check_inputs
from selssm_jax.ops.stepping import at, put

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
        return _run(method, *vary_alike((given._replace(M0=start), reset)))

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


# The gradient is that of the chunked form whatever ran forward, and runs it once more: only the inputs are saved. It is
# a function of its own, so that it runs by the platform's form and can still be differentiated.


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(method: str, given: _Inputs, reset: Array) -> tuple[Array, Array]:
    """(y, last memory)."""
    del reset
    chunks = partial(_by_chunks, "associative")
    if method == "auto":
        return lax.platform_dependent(given, cpu=_by_steps, default=chunks)
    return (_by_steps if method == "sequential" else chunks)(given)


def _run_forward(method: str, given: _Inputs, reset: Array) -> tuple[tuple[Array, Array], tuple[_Inputs, Array]]:
    return _run(method, given, reset), name_residuals((given, reset))


def _run_backward(method: str, saved: tuple[_Inputs, Array], cotangents: tuple[Array, Array]) -> tuple[_Inputs, None]:
    return _gradient(method, *vary_alike((*saved, cotangents))), None


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gradient(method: str, given: _Inputs, reset: Array, cotangents: tuple[Array, Array]) -> _Inputs:

    def by(way: str) -> Callable[..., _Inputs]:
        ways = partial(_pullback, way), partial(_pullback_of_numbers, way)
        return lambda *given: composed_or_stepped(all_finite(given[0]), *ways, *given)

    if method == "auto":
        return lax.platform_dependent(given, reset, cotangents, cpu=by("sequential"), default=by("associative"))
    return by("sequential" if method == "sequential" else "associative")(given, reset, cotangents)


def _gradient_forward(
    method: str, given: _Inputs, reset: Array, cotangents: tuple[Array, Array]
) -> tuple[_Inputs, tuple[Any, ...]]:
    return _gradient(method, given, reset, cotangents), name_residuals((given, reset, cotangents))


def _gradient_backward(
    method: str, saved: tuple[Any, ...], cotangents: _Inputs
) -> tuple[_Inputs, None, tuple[Array, Array]]:
    del method
    given, reset, before = saved
    again = jax.vjp(lambda given, before: _pullback("associative", given, reset, before), given, before)[1]
    dgiven, dbefore = again(cotangents)
    return dgiven, None, dbefore


_run.defvjp(_run_forward, _run_backward)
_gradient.defvjp(_gradient_forward, _gradient_backward)


def _pullback(way: str, given: _Inputs, reset: Array, cotangents: tuple[Array, Array]) -> _Inputs:
    del reset
    return jax.vjp(partial(_by_chunks, way), given)[1](cotangents)[0]


def _pullback_of_numbers(way: str, given: _Inputs, reset: Array, cotangents: tuple[Array, Array]) -> _Inputs:
    """The gradient, of the finite numbers; NaN for a sequence where a step is read that sees others."""
    rows = find_lost_sequences(given[:4], given.M0, reset, *cotangents)
    gradient = _pullback(way, _Inputs(*map(finite, given)), reset, cotangents)
    return _Inputs(*(poison(value, rows.reshape(-1, *[1] * (value.ndim - 1))) for value in gradient))


def _by_steps(given: _Inputs) -> tuple[Array, Array]:
    """One step after the other, the memory in the cache."""

    def body(t: Array | int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        M, y = carry
        a, k, v, q = (at(value, t, M.dtype) for value in given[:4])
        M = multiply_state(a[..., None], M) + k[..., None] * v[..., None, :]
        return M, put(y, jnp.einsum("bhnp,bhn->bhp", M, q), t)

    y = zeros_beside(given.v.shape, given, given.M0.dtype)
    last, y = lax.fori_loop(0, given.v.shape[1], body, (given.M0, y))
    return y, last


def _by_chunks(way: str, given: _Inputs) -> tuple[Array, Array]:
    """Chunk after chunk, the memories of one by `linear_scan`; the gradient computes each of them again."""

    def body(M: Array, piece: tuple[Array, ...]) -> tuple[Array, Array]:
        a, k, v, q = (value.astype(M.dtype) for value in piece)
        writes = k[..., None] * v[..., None, :]
        # a factor of exactly 0 forgets, and only where a reset is given does the scan ask for it
        memories, last = scan_shard(
            jnp.broadcast_to(a[..., None], writes.shape), writes, M, reset=jnp.zeros(a.shape[:2], bool), method=way
        )
        return last, jnp.einsum("bthnp,bthn->bthp", memories, q)

    steps = given.v.shape[1]
    size = min(CHUNK, steps)
    pieces = [_cut(value, size, fill) for value, fill in zip(given[:4], (1, 0, 0, 0), strict=True)]
    last, y = lax.scan(jax.checkpoint(body), given.M0, tuple(pieces))
    y = y.swapaxes(0, 1)
    return y.reshape(y.shape[0], -1, *y.shape[3:])[:, :steps], last


def _cut(value: Array, size: int, fill: int) -> Array:
    """(B, T, ...) as (chunks, B, size, ...), filled up: a step of a = 1 that writes nothing changes nothing."""
    pad = [(0, 0), (0, -value.shape[1] % size)] + [(0, 0)] * (value.ndim - 2)
    value = jnp.pad(value, pad, constant_values=fill)
    return value.reshape(value.shape[0], -1, size, *value.shape[2:]).swapaxes(0, 1)
