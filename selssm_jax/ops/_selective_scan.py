"""The selective scan of Mamba (S6): discretise, run and read out without ever storing a state a step.

h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t,  y_t = C_t h_t + D x_t  (Gu and Dao 2023, algorithm 2), D x N states a
sequence.
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
    name_residuals,
    poison,
    vary_alike,
    zeros_beside,
)
from selssm_jax.ops.inputs import check_inputs
from selssm_jax.ops.stepping import at, cut, join, put

METHODS = ("auto", "sequential", "chunked")
Number = Callable[[Array], Array]  # what is read of an input: itself, or 0 where it is not finite
CHUNK = 64  # steps whose states are alive at once; the state before each chunk is saved for the gradient


class _Inputs(NamedTuple):
    """What every step reads, A as (N, D) and states as (B, N, D): the width last, so that it fills vector registers."""

    x: Array
    dt: Array
    A: Array
    B: Array
    C: Array
    h0: Array


def selective_scan(
    x: Float[Array, "B T D"],
    dt: Float[Array, "B T D"],
    A: Float[Array, "D N"],
    B: Float[Array, "B T N"],
    C: Float[Array, "B T N"],
    D: Float[Array, "D"] | None = None,
    h0: Float[Array, "B D N"] | None = None,
    *,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
) -> tuple[Float[Array, "B T D"], Float[Array, "B D N"]]:
    """Runs h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t and returns y_t = C_t h_t + D x_t and the last state.

    States exist for `CHUNK` steps at a time, forward and backward; the gradient computes them again from the state
    before each chunk. Time O(T D N), memory O(T D + CHUNK D N + T D N / CHUNK) a sequence.

    "sequential" takes one step after the other and reads each state out while it is in the cache. "chunked" composes
    the steps of a chunk in parallel as `linear_scan` does. "auto", decided where the program is lowered, is sequential
    on a CPU (benchmarks/records/selective_scan.json) and chunked elsewhere, which is by reasoning: no accelerator was
    measured.

    The state is float32 (or wider) whatever the inputs are. Gradients of any order, with respect to everything but
    `reset`; forward-mode differentiation is not defined.

    Args:
      x: inputs. dt: step sizes, positive. A: poles, negative. B: input maps. C: readouts. D: weight of x in y; none if
        None.
      h0: state before the first step; zero if None.
      reset: True forgets everything before that step, what is not finite too.
      method: "auto", "sequential" or "chunked".

    Returns:
      (y, h_last): outputs in x's type, the state after the last step in the type of accumulation.

    Raises:
      ValueError: for an unknown method, shapes that do not fit, no steps, or numbers that are not real.
    """
    x, dt, A, B, C = (jnp.asarray(value) for value in (x, dt, A, B, C))
    D, h0, reset = (None if value is None else jnp.asarray(value) for value in (D, h0, reset))
    _check(x, dt, A, B, C, D, h0, reset, method)
    wide = jnp.promote_types(jnp.result_type(x, dt, A, B, C), jnp.float32)
    start = jnp.zeros((x.shape[0], A.shape[1], A.shape[0]), wide) if h0 is None else h0.swapaxes(1, 2).astype(wide)
    given = _Inputs(x, dt, A.T.astype(wide), B, C, start)

    def run(start: Array) -> tuple[Array, Array]:
        return _scan(method, *vary_alike((given._replace(h0=start), reset)))[:2]

    y, last = shards.carry(run, lambda: decay_of_steps(dt.astype(wide)[:, :, None], given.A[None], reset), start)
    if D is not None:
        y += D.astype(wide)[None, None] * x
    return y.astype(x.dtype), last.swapaxes(1, 2)


def decay_of_steps(dt: Array, A: Array, reset: Array | None) -> Array:
    """Returns exp(A sum_t dt_t), what steps (B, T, ...) leave of the state before them: nothing where one forgets."""
    if reset is None:
        return jnp.exp(dt.sum(axis=1) * A)
    forgets = reset.any(axis=1).reshape(-1, *[1] * (dt.ndim - 2))
    # that of steps before a reset may be no number
    return jnp.where(forgets, 0, jnp.exp(jnp.where(forgets[:, None], 0, dt).sum(axis=1) * A))


def _check(
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None,
    h0: Array | None,
    reset: Array | None,
    method: str,
) -> None:
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown: use one of {', '.join(METHODS)}")
    if x.ndim != 3 or x.shape[1] == 0:
        raise ValueError(f"x has shape {x.shape}, expected (B, T, D) with T >= 1")
    if A.ndim != 2 or A.shape[0] != x.shape[2]:
        raise ValueError(f"A has shape {A.shape}, expected (D, N) with D = {x.shape[2]} from x")
    (batch, steps, width), states = x.shape, A.shape[1]
    mapped = (batch, steps, states)
    shapes = {
        "dt": x.shape,
        "B": mapped,
        "C": mapped,
        "D": (width,),
        "h0": (batch, width, states),
        "reset": (batch, steps),
    }
    inputs = {"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "h0": h0, "reset": reset}
    check_inputs(inputs, shapes, f"x {x.shape} and A {A.shape}")


# The gradient is a function of its own, so that it runs by the platform's method and can still be differentiated. The
# states before the chunks only save it work: they follow from the inputs, and no derivative is taken through them.


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(method: str, given: _Inputs, reset: Array | None) -> tuple[Array, Array, Array]:
    """(y, last state, states before each chunk)."""
    return _choose(method, _by_steps, _by_chunks)(given, reset)


def _scan_forward(
    method: str, given: _Inputs, reset: Array | None
) -> tuple[tuple[Array, Array, Array], tuple[_Inputs, Array | None, Array]]:
    y, last, starts = _scan(method, given, reset)
    return (y, last, starts), name_residuals((given, reset, starts))


def _scan_backward(
    method: str, saved: tuple[_Inputs, Array | None, Array], cotangents: tuple[Array, Array, Array]
) -> tuple[_Inputs, None]:
    given, reset, starts, (dy, dlast, _) = vary_alike((*saved, cotangents))
    return _gradient(method, given, reset, starts, dy, dlast), None


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gradient(method: str, given: _Inputs, reset: Array | None, starts: Array, dy: Array, dlast: Array) -> _Inputs:
    plain, careful = (
        _choose(method, partial(_gradient_by_steps, number), partial(_gradient_by_chunks, number))
        for number in (_as_it_is, finite)
    )
    return composed_or_stepped(
        all_finite((given, starts)), plain, partial(_gradient_of_numbers, careful), given, reset, starts, dy, dlast
    )


def _gradient_of_numbers(
    gradient: Callable[..., _Inputs], given: _Inputs, reset: Array | None, starts: Array, dy: Array, dlast: Array
) -> _Inputs:
    """The gradient, of the finite numbers; NaN for a sequence, and for A, where a step is read that sees others."""
    none = jnp.zeros(given.x.shape[:2], bool) if reset is None else reset
    rows = find_lost_sequences((given.x, given.dt, given.B, given.C), given.h0, none, dy, dlast)
    values = gradient(given, reset, finite(starts), dy, dlast)._asdict()
    return _Inputs(
        *(
            poison(value, rows.any() if name == "A" else rows.reshape(-1, *[1] * (value.ndim - 1)))
            for name, value in values.items()
        )
    )


def _as_it_is(value: Array) -> Array:
    return value


def _gradient_forward(
    method: str, given: _Inputs, reset: Array | None, starts: Array, dy: Array, dlast: Array
) -> tuple[_Inputs, tuple[Any, ...]]:
    return _gradient(method, given, reset, starts, dy, dlast), name_residuals((given, reset, dy, dlast))


def _gradient_backward(
    method: str, saved: tuple[Any, ...], cotangents: _Inputs
) -> tuple[_Inputs, None, None, Array, Array]:
    del method
    given, reset, dy, dlast = saved

    def gradient(given: _Inputs, dy: Array, dlast: Array) -> _Inputs:
        return jax.vjp(lambda given: _by_chunks(given, reset)[:2], given)[1]((dy, dlast))[0]

    given, dy, dlast = jax.vjp(gradient, given, dy, dlast)[1](cotangents)
    return given, None, None, dy, dlast


_scan.defvjp(_scan_forward, _scan_backward)
_gradient.defvjp(_gradient_forward, _gradient_backward)


def _choose(method: str, steps: Callable[..., Any], chunks: Callable[..., Any]) -> Callable[..., Any]:
    if method == "auto":
        return lambda *arguments: lax.platform_dependent(*arguments, cpu=steps, default=chunks)
    return steps if method == "sequential" else chunks


# By chunks.


def _by_chunks(given: _Inputs, reset: Array | None) -> tuple[Array, Array, Array]:
    """(y, last state, states before each chunk)."""

    def body(h: Array, operands: tuple[Any, ...]) -> tuple[Array, tuple[Array, Array]]:
        last, y = jax.checkpoint(_chunk)(h, given.A, *operands)
        return last, (y, h)

    parts = [_cut(value) for value in (given.x, given.dt, given.B, given.C)]
    last, (y, starts) = lax.scan(body, given.h0, (*parts, None if reset is None else _cut(reset)))
    return _join(y, given.x.shape[1]), last, starts


def _chunk(h: Array, A: Array, x: Array, dt: Array, B: Array, C: Array, reset: Array | None) -> tuple[Array, Array]:
    dt = dt.astype(h.dtype)
    a = jnp.exp(dt[:, :, None] * A[None, None])
    b = (dt * x)[:, :, None] * B[..., None]
    h, last = scan_shard(a, b, h, reset=reset, method="associative")
    return last, jnp.einsum("btnd,btn->btd", h, C.astype(h.dtype))


def _gradient_by_chunks(
    number: Number, given: _Inputs, reset: Array | None, starts: Array, dy: Array, dlast: Array
) -> _Inputs:
    parts = [_cut(value) for value in (given.x, given.dt, given.B, given.C)]

    def body(carry: tuple[Array, Array], operands: tuple[Any, ...]) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
        dh, dA = carry
        h, dy, reset, *inputs = operands
        pullback = jax.vjp(partial(_chunk, reset=reset), h, given.A, *map(number, inputs))[1]
        dh, share, *rest = pullback((dh, dy))
        return (dh, dA + share), tuple(rest)

    pieces = (starts, _cut(dy), None if reset is None else _cut(reset), *parts)
    (dh, dA), rest = lax.scan(body, (dlast, zeros_beside(given.A.shape, given, given.A.dtype)), pieces, reverse=True)
    dx, ddt, dB, dC = (_join(value, dy.shape[1]) for value in rest)
    return _Inputs(dx, ddt, dA, dB, dC, dh)


def _cut(value: Array) -> Array:
    """(chunks, B, CHUNK, ...): a step of dt = 0, of those that fill the last one up, changes nothing."""
    return cut(value, min(CHUNK, value.shape[1])).swapaxes(0, 1)


def _join(chunks: Array, steps: int) -> Array:
    return join(chunks.swapaxes(0, 1), steps)


# By steps.


def _by_steps(given: _Inputs, reset: Array | None) -> tuple[Array, Array, Array]:
    """(y, last state, states before each chunk), the state in the cache from one step to the next."""

    def body(t: Array | int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        h, y = carry
        h = _step(_as_it_is, given, reset, t, h)
        return h, put(y, jnp.einsum("bnd,bn->bd", h, at(given.C, t, h.dtype)), t)

    def chunk(carry: tuple[Array, Array], start: Array) -> tuple[tuple[Array, Array], Array]:
        return lax.fori_loop(start, jnp.minimum(start + CHUNK, steps), body, carry), carry[0]

    steps = given.x.shape[1]
    if steps == 1:  # decoding: the loops would cost more than the step
        last, y = body(0, (given.h0, zeros_beside(given.x.shape, given, given.h0.dtype)))
        return y, last, given.h0[None]
    y = zeros_beside(given.x.shape, given, given.h0.dtype)
    (last, y), starts = lax.scan(chunk, (given.h0, y), jnp.arange(0, steps, CHUNK))
    return y, last, starts


def _step(number: Number, given: _Inputs, reset: Array | None, t: Array | int, h: Array) -> Array:
    """The state after step t."""
    x, dt, B = (number(at(value, t, h.dtype)) for value in (given.x, given.dt, given.B))
    kept = jnp.exp(dt[:, None] * given.A[None]) * h
    return _unless(reset, t, kept) + (dt * x)[:, None] * B[..., None]


class _Gradients(NamedTuple):
    """With respect to what every step reads, as in `_Inputs`; that of A still apart for every sequence."""

    x: Array
    dt: Array
    A: Array
    B: Array
    C: Array


def _gradient_by_steps(
    number: Number, given: _Inputs, reset: Array | None, starts: Array, dy: Array, dlast: Array
) -> _Inputs:
    """One pass backwards, chunk by chunk: the states of a chunk once more, then its steps in reverse."""

    def chunk(carry: tuple[Array, _Gradients], piece: tuple[Array, Array]) -> tuple[tuple[Array, _Gradients], None]:
        start, before = piece
        count = jnp.minimum(CHUNK, steps - start)
        states = _states(number, given, reset, start, count, before)

        def body(n: Array, carry: tuple[Array, _Gradients]) -> tuple[Array, _Gradients]:
            k = count - 1 - n
            around = at(states, k, before.dtype), at(states, k + 1, before.dtype)
            return _step_back(number, given, reset, start + k, around, at(dy, start + k, before.dtype), *carry)

        return lax.fori_loop(0, count, body, carry), None

    steps = dy.shape[1]
    none = _Gradients(
        *(zeros_beside(value.shape, given, starts.dtype) for value in (given.x, given.dt, given.h0, given.B, given.C))
    )
    (dh, gradients), _ = lax.scan(chunk, (dlast, none), (jnp.arange(0, steps, CHUNK), starts), reverse=True)
    dx, ddt, dB, dC = (
        value.astype(like.dtype)
        for value, like in zip(gradients[:2] + gradients[3:], given[:2] + given[3:5], strict=True)
    )
    return _Inputs(dx, ddt, gradients.A.sum(0), dB, dC, dh)


def _states(number: Number, given: _Inputs, reset: Array | None, start: Array, count: Array, before: Array) -> Array:
    """(B, CHUNK + 1, N, D): the state before a chunk and after each of its steps."""

    def body(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        h, states = carry
        h = _step(number, given, reset, start + k, h)
        return h, put(states, h, k + 1)

    states = zeros_beside((before.shape[0], CHUNK + 1, *before.shape[1:]), given, before.dtype)
    return lax.fori_loop(0, count, body, (before, put(states, before, 0)))[1]


def _step_back(
    number: Number,
    given: _Inputs,
    reset: Array | None,
    t: Array,
    around: tuple[Array, Array],
    dy: Array,
    after: Array,
    gradients: _Gradients,
) -> tuple[Array, _Gradients]:
    """(cotangent of the state before step t, gradients with those of t); `around`, the states there; `after`, what
    later steps say.
    """
    before, h = around
    x, dt, B, C = (number(at(value, t, h.dtype)) for value in (given.x, given.dt, given.B, given.C))
    dh = after + C[..., None] * dy[:, None]
    carried = _unless(reset, t, jnp.exp(dt[:, None] * given.A[None]) * dh)
    ddecay = carried * before  # with respect to dt A
    du = jnp.einsum("bnd,bn->bd", dh, B)
    return carried, _Gradients(
        x=put(gradients.x, du * dt, t),
        dt=put(gradients.dt, du * x + jnp.einsum("bnd,bn->bd", ddecay * given.A[None], jnp.ones_like(B)), t),
        A=gradients.A + ddecay * dt[:, None],
        B=put(gradients.B, jnp.einsum("bnd,bd->bn", dh, dt * x), t),
        C=put(gradients.C, jnp.einsum("bnd,bd->bn", h, dy), t),
    )


def _unless(reset: Array | None, t: Array | int, value: Array) -> Array:
    return value if reset is None else jnp.where(lax.dynamic_index_in_dim(reset, t, 1)[..., None], 0, value)
