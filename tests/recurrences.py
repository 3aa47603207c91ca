"""Every recurrence of selssm_jax.ops beside the plain loop that it must equal, and random inputs for both.

A loop is `lax.scan` over single steps without any custom gradient; it is run and differentiated in float64.
"""

import dataclasses
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from selssm_jax.ops import gated_attention, kalman_attention, kalman_scan, linear_scan, newton_scan, selective_scan, ssd


@dataclasses.dataclass(frozen=True)
class Recurrence:
    """An op as run(sequences, fixed, h0, reset, method) -> (outputs, h_last), its loop in the same form, and draw(rng,
    batch, steps, size).

    Sequences are the inputs with an axis of time, (B, T, ...); fixed are those without. draw returns (sequences, fixed,
    h0). `singular`: at a state of 0 its derivatives by that state do not exist.
    """

    run: Callable[..., Any]
    loop: Callable[..., Any]
    draw: Callable[..., Any]
    methods: tuple[Any, ...]
    singular: bool = False


def step_by_step(
    step: Callable[..., Any], sequences: tuple, fixed: tuple, h0: Any, reset: Any, method: Any = None
) -> tuple[Any, Any]:
    """(outputs, last state) of (h, out) = step(h, now, fixed), from zero where a reset says so."""
    del method

    def body(h, now):
        forget, *now = now
        h = jnp.where(forget.reshape(-1, *[1] * (h.ndim - 1)), 0, h)
        return step(h, now, fixed)

    last, outputs = lax.scan(body, h0, jax.tree.map(lambda value: value.swapaxes(0, 1), (reset, *sequences)))
    return outputs.swapaxes(0, 1), last


def _linear_step(h, now, fixed):
    a, b = now
    h = a * h + b
    return h, h


def _draw_linear(rng, batch, steps, size):
    return (
        (rng.uniform(-1, 1, (batch, steps, size)), rng.normal(size=(batch, steps, size))),
        (),
        rng.normal(size=(batch, size)),
    )


def _selective_step(h, now, fixed):
    (x, dt, B, C), (A, D) = now, fixed
    h = jnp.exp(dt[:, :, None] * A[None]) * h + (dt * x)[:, :, None] * B[:, None]
    return h, jnp.einsum("bdn,bn->bd", h, C) + D[None] * x


def _run_selective(sequences, fixed, h0, reset, method):
    (x, dt, B, C), (A, D) = sequences, fixed
    return selective_scan(x, dt, A, B, C, D, h0, reset=reset, method=method)


def _draw_selective(rng, batch, steps, size):
    states = 1 + size % 4
    x, dt = rng.normal(size=(batch, steps, size)), rng.uniform(0.01, 1, (batch, steps, size))
    B, C = rng.normal(size=(2, batch, steps, states))
    return (
        (x, dt, B, C),
        (-rng.uniform(0.1, 2, (size, states)), rng.normal(size=size)),
        rng.normal(size=(batch, size, states)),
    )


def _ssd_step(h, now, fixed):
    (x, dt, B, C), (A, D) = now, fixed
    B, C = (jnp.repeat(value, x.shape[1] // value.shape[1], axis=1) for value in (B, C))
    h = jnp.exp(dt * A[None])[..., None, None] * h + (dt[..., None] * x)[..., None] * B[:, :, None]
    return h, jnp.einsum("bhpn,bhn->bhp", h, C) + D[None, :, None] * x


def _run_ssd(sequences, fixed, h0, reset, method):
    (x, dt, B, C), (A, D) = sequences, fixed
    return ssd(x, dt, A, B, C, D, h0, reset=reset, chunk=method)


def _draw_ssd(rng, batch, steps, size):
    groups, per_group, width, states = 1 + size % 2, 1 + size % 3, size, 1 + size % 4
    heads = groups * per_group
    x, dt = rng.normal(size=(batch, steps, heads, width)), rng.uniform(0.01, 1, (batch, steps, heads))
    B, C = rng.normal(size=(2, batch, steps, groups, states))
    return (
        (x, dt, B, C),
        (-rng.uniform(0.1, 2, heads), rng.normal(size=heads)),
        rng.normal(size=(batch, heads, width, states)),
    )


def gated(h, now, fixed):
    """One step of a state-dependent gate, elementwise: a retain update with z + W h before the sigmoid."""
    (z, drive), (W, A) = now, fixed
    gate = jax.nn.sigmoid(z + (W * h if h.ndim == 1 else W[None] * h))
    return (1 - gate) * h + gate * ((A * h if h.ndim == 1 else A[None] * h) + drive)


def _gated_step(h, now, fixed):
    h = gated(h, now, fixed)
    return h, h


def _run_newton(sequences, fixed, h0, reset, method):
    def step(h, now):
        forget, *now = now
        return gated(jnp.where(forget, 0, h), now, fixed)

    h, solve = jax.vmap(partial(newton_scan, step, jacobian=method))(h0, (reset, *sequences))
    return jnp.where(solve.converged[:, None, None], h, jnp.nan), h[:, -1]


def _draw_newton(rng, batch, steps, size):
    z, drive = rng.normal(size=(2, batch, steps, size))
    return (z, drive), (rng.uniform(-0.3, 0.3, size), rng.uniform(-0.9, 0.9, size)), rng.normal(size=(batch, size))


def _run_linear(sequences, fixed, h0, reset, method):
    return linear_scan(*sequences, h0, reset=reset, method=method)


def _kalman_step(h, now, fixed):
    """The filter as textbooks have it, and nats as differences of logarithms; h is (m, P, prior), stacked."""
    (a, q, r, z), (m, P, prior) = now, (h[:, 0], h[:, 1], h[:, 2])
    predicted, carried = a**2 * P + q, a**2 * prior + q
    gain = predicted / (predicted + r)
    gained = -jnp.log(1 - gain) / 2
    known = jnp.log(jnp.where(P > 0, prior, 1) / jnp.where(P > 0, P, 1)) / 2
    m, P = (1 - gain) * a * m + gain * z, (1 - gain) * predicted
    return jnp.stack([m, P, carried], axis=1), jnp.stack(
        [m, P, gained, known - jnp.log(carried / predicted) / 2], axis=1
    )


def _run_kalman(sequences, fixed, h0, reset, method):
    a, q, r, z = sequences
    found = kalman_scan(a, q, r, z, h0[:, 0], h0[:, 1], prior0=h0[:, 2], reset=reset, method=method)
    wide = jnp.promote_types(a.dtype, jnp.float32)  # bfloat16 of the means alone would round the nats
    return jnp.stack([value.astype(wide) for value in found[:4]], axis=2), jnp.stack(found.last, axis=1)


def _draw_kalman(rng, batch, steps, size):
    q, r = np.exp(rng.uniform(-3, 3, (2, batch, steps, size)))
    P = np.exp(rng.uniform(-2, 2, (batch, size)))
    state = np.stack([rng.normal(size=(batch, size)), P, P * rng.uniform(1.5, 9, (batch, size))], axis=1)
    sequences = (rng.uniform(-1, 1, (batch, steps, size)), q, r, rng.normal(size=(batch, steps, size)))
    return sequences, (), state


def _attention_step(M, now, fixed):
    a, k, v, q = now
    M = a[..., None] * M + k[..., None] * v[..., None, :]
    return M, jnp.einsum("bhnp,bhn->bhp", M, q)


def _run_attention(sequences, fixed, h0, reset, method):
    return gated_attention(*sequences, h0, reset=reset, method=method)


def _draw_attention(rng, batch, steps, size):
    heads, width, states = 1 + size % 2, size, 1 + size % 4
    a = rng.uniform(-1, 1, (batch, steps, heads, states))
    k, q = rng.normal(size=(2, batch, steps, heads, states))
    v = rng.normal(size=(batch, steps, heads, width))
    return (a, k, v, q), (), rng.normal(size=(batch, heads, states, width))


def _kalman_attention_step(h, now, fixed):
    """Row by row, of a reading v / k of variance 1 / (k^2 precision); h is means, then variance and prior, side by
    side.
    """
    a, q, precision, k, v, query = now
    m, P, prior = h[..., :-2], h[..., -2], h[..., -1]
    r = 1 / (k**2 * precision[..., None])
    step = [value[..., None] for value in (a, q, r)]
    z = v[:, :, None] / k[..., None]
    P, prior = (jnp.broadcast_to(value[..., None], z.shape) for value in (P, prior))
    state, out = _kalman_step(jnp.stack([m, P, prior], axis=1), (*step, z), fixed)
    m, P, prior = state[:, 0], state[:, 1, ..., :1], state[:, 2, ..., :1]
    y = jnp.einsum("bhnp,bhn->bhp", m, query)
    flat = [value.reshape(len(y), -1) for value in (y, P, out[:, 2, ..., :1], out[:, 3, ..., :1])]
    return jnp.concatenate([m, P, prior], axis=-1), jnp.concatenate(flat, axis=-1)


def _run_kalman_attention(sequences, fixed, h0, reset, method):
    m, P, prior = h0[..., :-2], h0[..., -2], h0[..., -1]
    read = kalman_attention(*sequences, m, P, prior0=prior, reset=reset, method=method)
    flat = [value.astype(jnp.promote_types(value.dtype, jnp.float32)) for value in read[:4]]
    y = jnp.concatenate([value.reshape(*reset.shape, -1) for value in flat], axis=-1)
    m, P, prior = read.last
    return y, jnp.concatenate([m, P[..., None], prior[..., None]], axis=-1)


def _draw_kalman_attention(rng, batch, steps, size):
    (a, k, v, query), _, m = _draw_attention(rng, batch, steps, size)
    k = np.where(k < 0, -1, 1) * (0.3 + abs(k))  # the loop divides by it
    q, precision = np.exp(rng.uniform(-3, 3, k.shape)), np.exp(rng.uniform(-3, 3, k.shape[:3]))
    P = np.exp(rng.uniform(-2, 2, (*m.shape[:3], 1)))
    state = np.concatenate([m, P, P * rng.uniform(1.5, 9, P.shape)], axis=-1)
    return (a, q, precision, k, v, query), (), state


OPS = {
    "gated_attention": Recurrence(
        _run_attention, partial(step_by_step, _attention_step), _draw_attention, ("auto", "sequential", "chunked")
    ),
    "kalman_attention": Recurrence(
        _run_kalman_attention,
        partial(step_by_step, _kalman_attention_step),
        _draw_kalman_attention,
        ("auto", "sequential", "associative"),
        singular=True,
    ),
    "kalman_scan": Recurrence(
        _run_kalman,
        partial(step_by_step, _kalman_step),
        _draw_kalman,
        ("auto", "sequential", "associative"),
        singular=True,
    ),
    "linear_scan": Recurrence(
        _run_linear, partial(step_by_step, _linear_step), _draw_linear, ("auto", "sequential", "associative", "chunked")
    ),
    "selective_scan": Recurrence(
        _run_selective, partial(step_by_step, _selective_step), _draw_selective, ("auto", "sequential", "chunked")
    ),
    "ssd": Recurrence(_run_ssd, partial(step_by_step, _ssd_step), _draw_ssd, ("auto", 1, 7, 16)),
    "newton_scan": Recurrence(_run_newton, partial(step_by_step, _gated_step), _draw_newton, ("diagonal", "dense")),
}


def in_pieces(
    run: Callable[..., Any],
    cuts: tuple[int, ...],
    sequences: tuple,
    fixed: tuple,
    h0: Any,
    reset: Any,
    method: Any = None,
) -> tuple[Any, Any]:
    """Runs from cut to cut, the state carried."""
    pieces = []
    for left, right in itertools.pairwise((0, *cuts, reset.shape[1])):
        y, h0 = run(tuple(value[:, left:right] for value in sequences), fixed, h0, reset[:, left:right], method)
        pieces.append(y)
    return jnp.concatenate(pieces, axis=1), h0


def pullback(run: Callable[..., Any], sequences: tuple, fixed: tuple, h0: Any, cotangents: tuple) -> tuple[Any, Any]:
    """((outputs, h_last), (d sequences, d fixed, d h0)), compiled."""

    def both(sequences, fixed, h0, cotangents):
        out, pull = jax.vjp(run, sequences, fixed, h0)
        return out, pull(jax.tree.map(lambda like, value: value.astype(like.dtype), out, cotangents))

    return jax.jit(both)(sequences, fixed, h0, cotangents)


def reference(
    op: Recurrence, sequences: tuple, fixed: tuple, h0: Any, reset: Any, cotangents: tuple
) -> tuple[Any, Any]:
    """`pullback` of the loop in float64."""
    with jax.enable_x64(True):
        wide = jax.tree.map(
            lambda value: jnp.asarray(np.asarray(value, np.float64)), (sequences, fixed, h0, cotangents)
        )
        found = pullback(lambda *given: op.loop(*given, jnp.asarray(reset)), *wide)
        return jax.tree.map(np.asarray, found)


def error(found: Any, expected: Any) -> float:
    """Largest error over the largest value; 0 where nothing is expected and found."""
    found = np.asarray(found, np.float64)
    assert found.shape == expected.shape
    scale = np.abs(expected).max(initial=0)
    return float(np.abs(found - expected).max(initial=0) / (scale if scale else 1))
