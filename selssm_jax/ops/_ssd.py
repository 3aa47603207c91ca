"""The state space dual of Mamba-2: one decay a head, so that a chunk of steps is a few matrix products.

h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t', y_t = h_t C_t + D x_t, h of P x N a head (Dao and Gu 2024, section 6).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from selssm_jax.ops import shards
from selssm_jax.ops._linear_scan import scan_shard
from selssm_jax.ops._selective_scan import decay_of_steps
from selssm_jax.ops.boundaries import (
    all_finite,
    composed_or_stepped,
    vary_alike,
    zeros_beside,
)
from selssm_jax.ops.inputs import check_inputs
from selssm_jax.ops.recomputation import pull_back_numbers, recompute_gradient
from selssm_jax.ops.stepping import at, cut, join, put

CHUNK = 64  # steps of one product where there are matrix units, and at most on a CPU
FORGOTTEN = -128.0  # exp of it is 0 in float32
GRID = 2.0**-10  # sums of 128 steps down to FORGOTTEN are exact multiples of it in float32


def ssd(
    x: Float[Array, "B T H P"],
    dt: Float[Array, "B T H"],
    A: Float[Array, "H"],
    B: Float[Array, "B T G N"],
    C: Float[Array, "B T G N"],
    D: Float[Array, "H"] | None = None,
    h0: Float[Array, "B H P N"] | None = None,
    *,
    reset: Bool[Array, "B T"] | None = None,
    chunk: int | str = "auto",
) -> tuple[Float[Array, "B T H P"], Float[Array, "B H P N"]]:
    """Runs h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t' and returns y_t = h_t C_t + D x_t and the last state.

    Inside a chunk of K steps y = (L * C B') (dt x) with L_ts = exp(sum_{s<r<=t} dt_r A), a masked product of matrices;
    a chunk's own last state is one more product, and from chunk to chunk the states are carried. Work O(T K (N + P) + T
    N P) a head, all of it on the matrix units; memory O(T K + T N P / K). The gradient computes the chunks again.

    On a CPU one chunk follows the other, with memory O(T N P / K) for the gradient and O(N P) without. "auto" takes
    single steps forward there, which no product of matrices beats, and chunks of 16 to `CHUNK` for the gradient, by the
    size of the state (benchmarks/records/ssd.json, 2 cores); elsewhere it takes all chunks of `CHUNK` at once, by
    reasoning: no accelerator was measured.

    Products with masks do not hide what is not finite. Where anything is not, chunks give way to single steps, and the
    gradient is that of the numbers that are, NaN where others are read.

    Products and states are float32 (or wider) whatever the inputs are. Gradients of any order, reverse mode alone.

    Args:
      x: inputs of H heads. dt: step sizes, positive. A: one pole a head, negative.
      B, C: input maps and readouts of G groups; head i reads group i // (H / G).
      D: weight of x in y; none if None. h0: state before the first step; zero if None.
      reset: True forgets everything before that step, what is not finite too.
      chunk: K, or "auto".

    Returns:
      (y, h_last): outputs in x's type, the state after the last step in the type of accumulation.

    Raises:
      ValueError: for shapes that do not fit, no steps, heads that groups do not divide, or a chunk that is none.
    """
    x, dt, A, B, C = (jnp.asarray(value) for value in (x, dt, A, B, C))
    D, h0, reset = (None if value is None else jnp.asarray(value) for value in (D, h0, reset))
    _check(x, dt, A, B, C, D, h0, reset, chunk)
    wide = jnp.promote_types(jnp.result_type(x, dt, A, B, C), jnp.float32)
    heads = B.shape[2], x.shape[2] // B.shape[2]
    state = (x.shape[0], *heads, x.shape[3], B.shape[3])
    start = jnp.zeros(state, wide) if h0 is None else h0.astype(wide).reshape(state)
    reset = jnp.zeros(x.shape[:2], bool) if reset is None else reset
    given = _Inputs(x, dt, A.astype(wide).reshape(heads), B, C, jnp.moveaxis(start, 4, 2))

    def run(start: Array) -> tuple[Array, Array]:
        return _recurrence(None if chunk == "auto" else chunk, *vary_alike((given._replace(h0=start), reset)))

    y, last = shards.carry(run, partial(_decay_of_all, given, reset), given.h0)
    if D is not None:
        y += D.astype(wide)[None, None, :, None] * x
    return y.astype(x.dtype), jnp.moveaxis(last, 2, 4).reshape(x.shape[0], *x.shape[2:], B.shape[3])


def _decay_of_all(given: "_Inputs", reset: Array) -> Array:
    """(B, G, 1, R, 1): what all steps leave of the state before them."""
    A = given.A[None, :, None, :, None]
    return decay_of_steps(given.dt.astype(A.dtype).reshape(*reset.shape, *A.shape[1:]), A, reset)


class _Inputs(NamedTuple):
    """H heads in G groups of R: x (B, T, H, P), dt (B, T, H), A (G, R), B and C (B, T, G, N), h0 (B, G, N, R, P)."""

    x: Array
    dt: Array
    A: Array
    B: Array
    C: Array
    h0: Array


def _run(chunk: int | None, given: _Inputs, reset: Array) -> tuple[Array, Array]:

    def where_safe(form: Callable[..., tuple[Array, Array]]) -> Callable[..., tuple[Array, Array]]:
        return lambda given, reset: composed_or_stepped(_is_safe(given), form, _by_steps, given, reset)

    on_cpu = where_safe(partial(_chunk_by_chunk, chunk)) if chunk else _by_steps
    return lax.platform_dependent(given, reset, cpu=on_cpu, default=where_safe(partial(_by_chunks, chunk)))


def _is_safe(given: _Inputs) -> Array:
    """Whether all is finite and decays: a chunk then holds no product that is no number."""
    rate = given.dt.astype(given.A.dtype) * given.A.reshape(1, 1, -1)
    return all_finite(given) & (rate <= 0).all()


def _gradient(chunk: int | None, given: _Inputs, reset: Array, cotangents: tuple[Array, Array]) -> _Inputs:
    """That of the chunked form, whatever ran forward."""
    forms = partial(_chunk_by_chunk, chunk or _cpu_chunk(given)), partial(_by_chunks, chunk)
    one_by_one, at_once = (pull_back_numbers(form, start="h0", shared=("A",)) for form in forms)
    return lax.platform_dependent(given, reset, cotangents, cpu=one_by_one, default=at_once)


def _cpu_chunk(given: _Inputs) -> int:
    """The power of two near sqrt(N P) / 2: the fastest for the gradient from 16 x 16 to 128 x 128 states a head."""
    width = math.sqrt(given.h0.shape[2] * given.h0.shape[4]) / 2
    return min(max(2 ** math.floor(math.log2(width)), 16), CHUNK)


def _by_steps(given: _Inputs, reset: Array) -> tuple[Array, Array]:
    """One step after the other, the state in the cache: without matrix units a step costs no more than its share of a
    product.
    """

    def body(t: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        h, y = carry
        x, dt, B, C = (at(value, t, h.dtype) for value in (given.x, given.dt, given.B, given.C))
        forget = at(reset, t, bool)
        x, dt = x.reshape(h.shape[:-1]), dt.reshape(h.shape[:-2])
        kept = jnp.exp(dt * given.A[None])[..., None, None] * h
        h = jnp.where(forget[:, None, None, None, None], 0, kept) + (x * dt[..., None])[..., None] * B[:, :, None, None]
        return h, put(y, jnp.einsum("bgrpn,bgn->bgrp", h, C).reshape(y.shape[0], *y.shape[2:]), t)

    y = zeros_beside(given.x.shape, given, given.h0.dtype)
    last, y = lax.fori_loop(0, reset.shape[1], body, (jnp.moveaxis(given.h0, 2, 4), y))
    return y, jnp.moveaxis(last, 4, 2)


def _chunk_by_chunk(size: int, given: _Inputs, reset: Array) -> tuple[Array, Array]:
    """The chunked form on one chunk after the other; the gradient computes each of them again."""

    def body(h: Array, piece: tuple[Array, ...]) -> tuple[Array, Array]:
        chunk = _chunks(given.A, h.dtype, *(value[:, None] for value in piece))
        last = (_chunk_decay(chunk) * h[:, None] + _chunk_input(chunk))[:, 0]
        return last, _outputs(chunk, h[:, None])[:, 0]

    steps = reset.shape[1]
    pieces = tuple(
        cut(value, min(size, steps)).swapaxes(0, 1) for value in (given.x, given.dt, given.B, given.C, reset)
    )
    last, y = lax.scan(jax.checkpoint(body), given.h0, pieces)
    return join(y.swapaxes(0, 1), steps).reshape(given.x.shape), last


def _by_chunks(size: int | None, given: _Inputs, reset: Array) -> tuple[Array, Array]:
    """The chunked form on all chunks at once, of `CHUNK` steps if None."""
    steps = reset.shape[1]
    pieces = (cut(value, min(size or CHUNK, steps)) for value in (given.x, given.dt, given.B, given.C, reset))
    chunks = _chunks(given.A, given.h0.dtype, *pieces)
    own = _chunk_input(chunks)
    ends, last = scan_shard(jnp.broadcast_to(_chunk_decay(chunks), own.shape), own, given.h0)
    starts = jnp.concatenate([given.h0[:, None], ends[:, :-1]], axis=1)
    return join(_outputs(chunks, starts), steps).reshape(given.x.shape), last


_recurrence = recompute_gradient(_run, _gradient, _by_chunks)


class _Chunks(NamedTuple):
    """What chunks of steps make of their inputs, and what is left of it; indices b c k g r p n, with t and s for k
    twice.

    u = dt x and what B and C are. Left are `inside` (b, c, g, r, t, s) from s to t, `since_start` (b, c, k, g, r) from
    before the chunk to k, `until_end` (b, c, k, g, r) from k to the end of the chunk.
    """

    u: Array
    B: Array
    C: Array
    inside: Array
    since_start: Array
    until_end: Array


def _chunks(A: Array, dtype: jnp.dtype, x: Array, dt: Array, B: Array, C: Array, reset: Array) -> _Chunks:
    x, dt, B, C = (value.astype(dtype) for value in (x, dt, B, C))
    x, dt = x.reshape(*x.shape[:3], *A.shape, x.shape[4]), dt.reshape(*dt.shape[:3], *A.shape)
    return _Chunks(x * dt[..., None], B, C, *_decay(dt * A[None, None, None], reset))


def _chunk_decay(chunks: _Chunks) -> Array:
    """(b, c, g, 1, r, 1): what is left of the state before a chunk."""
    return chunks.since_start[:, :, -1, :, None, :, None]


def _chunk_input(chunks: _Chunks) -> Array:
    """(b, c, g, n, r, p): what the steps of a chunk add to the state after it."""
    return jnp.einsum("bckgn,bckgrp->bcgnrp", chunks.B, chunks.u * chunks.until_end[..., None])


def _outputs(chunks: _Chunks, starts: Array) -> Array:
    """(b, c, k, g, r, p): what steps read of earlier ones in their chunk, and of the state before it."""
    inside = chunks.inside * jnp.einsum("bctgn,bcsgn->bcgts", chunks.C, chunks.B)[:, :, :, None]
    before = jnp.einsum("bckgn,bcgnrp->bckgrp", chunks.C, starts) * chunks.since_start[..., None]
    return jnp.einsum("bcgrts,bcsgrp->bctgrp", inside, chunks.u) + before


def _decay(log_decay: Array, reset: Array) -> tuple[Array, Array, Array]:
    """exp of the sum of dt A over s < r <= t, 0 where a reset lies between, as the last three of `_Chunks`."""
    (coarse, fine), document = _sums(log_decay, reset), jnp.cumsum(reset, axis=2)
    steps = jnp.arange(reset.shape[2])
    seen = (steps[:, None] >= steps[None])[None, None] & (document[..., :, None] == document[..., None, :])
    by_time = (jnp.moveaxis(sums, 2, 4) for sums in (coarse, fine))
    large, small = (sums[..., :, None] - sums[..., None, :] for sums in by_time)
    inside = _masked_exp(seen[:, :, None, None], large + small)
    since_start = _masked_exp((document == 0)[..., None, None], coarse + fine)
    to_end = (coarse[:, :, -1:] - coarse) + (fine[:, :, -1:] - fine)
    return inside, since_start, _masked_exp((document == document[..., -1:])[..., None, None], to_end)


def _sums(log_decay: Array, reset: Array) -> tuple[Array, Array]:
    """Cumulative sums in two parts: multiples of GRID, which are exact, and what is left, which is small.

    A difference of plain float32 sums is as wrong as the sums are large, and after some steps of fast decay they are.
    Sums start anew at a reset: else their gradients would cancel across it up to rounding, where none may cross it at
    all.
    """
    log_decay = jnp.maximum(log_decay, FORGOTTEN)
    coarse = lax.stop_gradient(jnp.round(log_decay / GRID) * GRID)
    parts = jnp.stack([coarse, log_decay - coarse], axis=-1)
    parts = parts.reshape(-1, *parts.shape[2:])
    sums = scan_shard(jnp.ones_like(parts), parts, reset=reset.reshape(parts.shape[:2]))[0].reshape(*log_decay.shape, 2)
    return sums[..., 0], sums[..., 1]


def _masked_exp(seen: Array, exponent: Array) -> Array:
    """exp where seen, else 0. The exponent is masked too: unseen it may overflow, and its gradient would be no
    number.
    """
    return jnp.where(seen, jnp.exp(jnp.where(seen, exponent, 0)), 0)


def _check(
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None,
    h0: Array | None,
    reset: Array | None,
    chunk: int | str,
) -> None:
    if chunk != "auto" and not (isinstance(chunk, int) and chunk >= 1):
        raise ValueError(f"chunk={chunk!r} is no number of steps: use 'auto' or a whole number from 1")
    if x.ndim != 4 or x.shape[1] == 0:
        raise ValueError(f"x has shape {x.shape}, expected (B, T, H, P) with T >= 1")
    if B.ndim != 4 or x.shape[2] % B.shape[2]:
        raise ValueError(
            f"B has shape {B.shape}, expected (B, T, G, N) with G a divisor of the {x.shape[2]} heads of x"
        )
    batch, steps, heads, width = x.shape
    grouped = (batch, steps, *B.shape[2:])
    shapes = {
        "dt": x.shape[:3],
        "A": (heads,),
        "B": grouped,
        "C": grouped,
        "D": (heads,),
        "h0": (batch, heads, width, B.shape[3]),
        "reset": (batch, steps),
    }
    inputs = {"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "h0": h0, "reset": reset}
    check_inputs(inputs, shapes, f"x {x.shape} and B {B.shape}")
